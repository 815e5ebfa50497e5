//! fork, vfork, clone, wait4, exit, kill, process groups and sessions, pid namespaces.

use crate::files::{close, read, write};
use crate::pipes::pipe;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use rt::abi::*;
use rt::process::{self, End, fork, getpid, in_child, wait, wait_options};
use rt::signal::kill;
use rt::sys::at_mut;
use rt::{Errno, Suite, sys};

pub fn run(t: &mut Suite) {
    identity(t);
    exit_codes(t);
    waiting(t);
    vfork(t);
    clone_flags(t);
    groups(t);
    killing(t);
    orphans(t);
    faults(t);
    namespaces(t);
    many(t);
    t.is(
        "kill: a group that forks all the time",
        as_namespace_init(end_runners).number(),
        0,
    );
}

const CHILD: usize = SIGCHLD as usize;

fn identity(t: &mut Suite) {
    let me = getpid();
    t.ok("getpid", me > 0);
    t.is("gettid: same in the first thread", sys!(GETTID), me);
    let child =
        fork(|| i32::from(sys!(GETPPID) != me || getpid() == me || sys!(GETTID) != getpid()));
    t.ok("fork: a new pid", child > 0 && child != me);
    t.is("fork: the child's view", wait(child).number(), 0);
    t.is("set_tid_address: the tid", sys!(SET_TID_ADDRESS, 0), me);
}

fn exit_codes(t: &mut Suite) {
    t.is("exit: 0", in_child(|| 0).number(), 0);
    t.is("exit: 255", in_child(|| 255).number(), 255);
    t.is("exit: 256 is 0", in_child(|| 256).number(), 0);
    t.is("exit: -1 is 255", in_child(|| -1).number(), 255);
    t.is(
        "exit: of the only thread",
        in_child(|| process::exit_thread(7)).number(),
        7,
    );
}

fn waiting(t: &mut Suite) {
    let wait4 = |pid: isize, options: usize| sys!(WAIT4, pid, 0, options, 0);
    t.err("wait4: no children", wait4(-1, 0), Errno::ECHILD);
    t.err(
        "wait4: WNOHANG, no children",
        wait4(-1, WNOHANG),
        Errno::ECHILD,
    );
    let (r, w) = pipe(0);
    let child = fork(|| {
        close(w);
        let mut byte = [0u8; 1];
        3 + read(r, &mut byte) as i32
    });
    t.is("wait4: WNOHANG, child still runs", wait4(child, WNOHANG), 0);
    t.is("wait4: WNOHANG, any child", wait4(-1, WNOHANG), 0);
    t.err("wait4: not a child", wait4(1 << 22, 0), Errno::ECHILD);
    t.err("wait4: itself", wait4(getpid(), 0), Errno::ECHILD);
    t.err("wait4: unknown option", wait4(-1, 0x100), Errno::EINVAL);
    t.err(
        "wait4: a group without children",
        wait4(-(1 << 22), 0),
        Errno::ECHILD,
    );
    t.err(
        "wait4: pid INT_MIN",
        wait4(i32::MIN as isize, 0),
        Errno::ESRCH,
    );
    write(w, b"g");
    t.is("wait4: own group", wait_options(0, 0).number(), 4);
    t.err(
        "wait4: a child is reaped once",
        wait4(child, 0),
        Errno::ECHILD,
    );
    close(r);
    close(w);
    let (a, b) = (fork(|| 11), fork(|| 12));
    t.is("wait4: the second first", wait(b).number(), 12);
    t.is("wait4: then the first", wait(a).number(), 11);
    let (a, b) = (fork(|| 1), fork(|| 1));
    let sum = wait4(-1, 0) + wait4(-1, 0);
    t.is("wait4: any, both pids", sum, a + b);
    let mut usage = [1u64; 18];
    let child = fork(|| 0);
    t.is(
        "wait4: with rusage",
        sys!(WAIT4, child, 0, 0, at_mut(&mut usage)),
        child,
    );
    t.ok("wait4: rusage filled", usage[17] != 1 || usage[0] != 1);
    let child = fork(|| 0);
    let bad = sys!(WAIT4, child, 0xffff_8000_0000_0000usize, 0, 0);
    t.err("wait4: bad status pointer", bad, Errno::EFAULT);
    t.err(
        "wait4: the child is reaped all the same",
        wait4(child, 0),
        Errno::ECHILD,
    );
}

fn vfork(t: &mut Suite) {
    let slot = AtomicUsize::new(1);
    let child = process::vfork_store_exit(&slot, 99, 5);
    t.ok("vfork: a pid", child > 0);
    t.is(
        "vfork: the child ran first, in the parent's memory",
        slot.load(SeqCst) as isize,
        99,
    );
    t.is("vfork: exit code", wait(child).number(), 5);
}

fn clone_flags(t: &mut Suite) {
    let clone = |flags: usize| {
        let pid = sys!(CLONE, flags, 0, 0, 0, 0);
        if pid == 0 {
            process::exit_group(0);
        }
        pid
    };
    t.err(
        "clone: CLONE_THREAD without CLONE_SIGHAND",
        clone(CLONE_THREAD | CLONE_VM),
        Errno::EINVAL,
    );
    t.err(
        "clone: CLONE_SIGHAND without CLONE_VM",
        clone(CLONE_SIGHAND | CHILD),
        Errno::EINVAL,
    );
    let namespace = CLONE_NEWPID | CLONE_THREAD | CLONE_SIGHAND | CLONE_VM;
    t.err(
        "clone: CLONE_NEWPID with CLONE_THREAD",
        clone(namespace),
        Errno::EINVAL,
    );
    t.is("clone: like fork", wait(clone(CHILD)).number(), 0);
    let quiet = clone(0);
    t.err(
        "wait4: no exit signal, plain wait",
        wait_options(quiet, 0).number(),
        Errno::ECHILD,
    );
    t.is(
        "wait4: no exit signal, __WALL",
        wait_options(quiet, WALL).number(),
        0,
    );
    let quiet = clone(0);
    t.is(
        "wait4: no exit signal, __WCLONE",
        wait_options(quiet, WCLONE).number(),
        0,
    );
    let (mut parent_tid, mut child_tid) = (0i32, 0i32);
    let flags = CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CHILD;
    let child = sys!(
        CLONE,
        flags,
        0,
        at_mut(&mut parent_tid),
        at_mut(&mut child_tid),
        0
    );
    if child == 0 {
        // SAFETY: a live local, which the kernel wrote behind the compiler's back.
        let seen = unsafe { core::ptr::read_volatile(&child_tid) };
        process::exit_group(i32::from(seen as isize != getpid()));
    }
    t.is("clone: CLONE_CHILD_SETTID", wait(child).number(), 0);
    // SAFETY: as above.
    let seen = unsafe { core::ptr::read_volatile(&parent_tid) };
    t.is("clone: CLONE_PARENT_SETTID", seen as isize, child);
    let end = in_child(|| {
        let parent = sys!(GETPPID);
        let sibling = sys!(CLONE, CLONE_PARENT | CHILD, 0, 0, 0, 0);
        if sibling == 0 {
            process::exit_group(i32::from(sys!(GETPPID) != parent));
        }
        i32::from(sys!(WAIT4, sibling, 0, 0, 0) != Errno::ECHILD.raw())
    });
    t.is(
        "clone: CLONE_PARENT, not the caller's child",
        end.number(),
        0,
    );
    t.is(
        "clone: CLONE_PARENT, the caller's parent's child",
        wait_options(-1, 0).number(),
        0,
    );
}

fn groups(t: &mut Suite) {
    let getpgid = |pid: isize| sys!(GETPGID, pid);
    let setpgid = |pid: isize, group: isize| sys!(SETPGID, pid, group);
    t.is("getpgid: 0 is itself", getpgid(0), getpgid(getpid()));
    t.err("getpgid: no such process", getpgid(1 << 22), Errno::ESRCH);
    t.err("getpgid: negative", getpgid(-1), Errno::ESRCH);
    t.err("setpgid: negative group", setpgid(0, -1), Errno::EINVAL);
    t.err(
        "setpgid: no such process",
        setpgid(1 << 22, 0),
        Errno::ESRCH,
    );
    let end = in_child(|| {
        let inherited = getpgid(0) == getpgid(sys!(GETPPID));
        let moved = setpgid(0, 0) == 0 && getpgid(0) == getpid();
        let leader = sys!(SETSID) == Errno::EPERM.raw();
        i32::from(!(inherited && moved && leader))
    });
    t.is(
        "setpgid: a group of one's own; a leader may not setsid",
        end.number(),
        0,
    );
    let end = in_child(|| {
        let session = sys!(SETSID);
        let fine = session == getpid() && getpgid(0) == session;
        let again = sys!(SETSID) == Errno::EPERM.raw();
        let moving = setpgid(0, 0) == Errno::EPERM.raw();
        let member = in_child(|| i32::from(getpgid(0) != session));
        i32::from(!(fine && again && moving && member.number() == 0))
    });
    t.is("setsid: new session and group, once", end.number(), 0);
    let (r, w) = pipe(0);
    let child = fork(|| {
        close(w);
        read(r, &mut [0u8; 1]) as i32
    });
    t.is("setpgid: of a child", setpgid(child, child), 0);
    t.is("getpgid: of a child", getpgid(child), child);
    t.err(
        "setpgid: to a missing group",
        setpgid(child, 1 << 22),
        Errno::EPERM,
    );
    t.is(
        "wait4: by group, running",
        sys!(WAIT4, -child, 0, WNOHANG, 0),
        0,
    );
    close(r);
    close(w);
    t.is("wait4: by group", wait_options(-child, 0).number(), 0);
}

fn killing(t: &mut Suite) {
    t.is("kill: signal 0 to itself", kill(getpid(), 0), 0);
    t.err("kill: no such process", kill(1 << 22, 0), Errno::ESRCH);
    t.err("kill: no such group", kill(-(1 << 22), 0), Errno::ESRCH);
    t.err("kill: signal 65", kill(getpid(), 65), Errno::EINVAL);
    t.err("kill: signal -1", kill(getpid(), -1), Errno::EINVAL);
    for signal in [SIGKILL, SIGTERM, SIGHUP, SIGUSR1, SIGRTMIN] {
        let child = fork(|| {
            loop {
                sys!(PAUSE);
            }
        });
        kill(child, signal);
        t.is(
            "kill: default action ends a pausing child",
            wait(child).number(),
            1000 + signal as isize,
        );
    }
    for signal in [SIGCHLD, SIGURG, SIGWINCH, SIGCONT] {
        t.is(
            "kill: ignored by default",
            in_child(|| kill(getpid(), signal) as i32).number(),
            0,
        );
    }
    let child = fork(|| 0);
    const P_PID: usize = 1;
    const WEXITED_NOWAIT: usize = 0x0100_0004;
    sys!(WAITID, P_PID, child, 0, WEXITED_NOWAIT, 0); // it is a zombie, and stays one
    t.is("kill: a zombie can be signalled", kill(child, SIGKILL), 0);
    t.is("kill: but keeps its exit code", wait(child).number(), 0);
    t.err("kill: a reaped pid", kill(child, 0), Errno::ESRCH);
    let leader = fork(|| {
        if sys!(SETPGID, 0, 0) != 0 {
            return 1;
        }
        for _ in 0..3 {
            fork(|| {
                loop {
                    sys!(PAUSE);
                }
            });
        }
        kill(0, SIGTERM);
        loop {
            sys!(PAUSE);
        }
    });
    t.is(
        "kill: own group",
        wait(leader).number(),
        1000 + SIGTERM as isize,
    );
    let spinning = fork(|| {
        loop {
            core::hint::spin_loop();
        }
    });
    rt::time::sleep_ns(2_000_000);
    kill(spinning, SIGKILL);
    t.is(
        "kill: a child that never calls the kernel",
        wait(spinning).number(),
        1000 + SIGKILL as isize,
    );
}

/// A grandchild whose parent has died gets another parent, and can still report.
fn orphans(t: &mut Suite) {
    let (r, w) = pipe(0);
    let child = fork(|| {
        let parent = getpid();
        fork(|| {
            while sys!(GETPPID) == parent {
                rt::time::sleep_ns(500_000);
            }
            write(w, b"orphan") as i32
        });
        0
    });
    t.is("orphan: its parent ends", wait(child).number(), 0);
    close(w);
    let mut bytes = [0u8; 8];
    t.is("orphan: has another parent", read(r, &mut bytes), 6);
    close(r);
    t.err(
        "orphan: not the grandparent's child",
        sys!(WAIT4, -1isize, 0, 0, 0),
        Errno::ECHILD,
    );
}

/// How a child ends that runs one instruction.
macro_rules! end_of {
    ($($instruction:literal),+) => {
        in_child(|| {
            // SAFETY: the instruction raises an exception, which ends this child.
            unsafe { core::arch::asm!($($instruction),+, out("rax") _, out("rdx") _, out("rcx") _) };
            0
        })
        .number()
    };
}

fn faults(t: &mut Suite) {
    let signal = |signal: i32| 1000 + signal as isize;
    t.is(
        "fault: null",
        end_of!("xor eax, eax", "mov eax, [rax]"),
        signal(SIGSEGV),
    );
    t.is(
        "fault: write to own code",
        end_of!("lea rax, [rip]", "mov byte ptr [rax], 0"),
        signal(SIGSEGV),
    );
    t.is(
        "fault: kernel address",
        end_of!("mov rax, -4096", "mov eax, [rax]"),
        signal(SIGSEGV),
    );
    t.is(
        "fault: kernel half, low",
        end_of!("mov rax, 0xffff800000000000", "mov [rax], eax"),
        signal(SIGSEGV),
    );
    t.is(
        "fault: not canonical",
        end_of!("mov rax, 0x8000000000000000", "mov eax, [rax]"),
        signal(SIGSEGV),
    );
    t.is(
        "fault: jump to null",
        end_of!("xor eax, eax", "jmp rax"),
        signal(SIGSEGV),
    );
    t.is(
        "fault: jump to a kernel address",
        end_of!("mov rax, -4096", "jmp rax"),
        signal(SIGSEGV),
    );
    t.is(
        "fault: jump to a non-canonical address",
        end_of!("mov rax, 0x8000000000000000", "jmp rax"),
        signal(SIGSEGV),
    );
    t.is(
        "fault: bad stack at a call",
        end_of!("xor esp, esp", "call rax"),
        signal(SIGSEGV),
    );
    t.is("fault: invalid instruction", end_of!("ud2"), signal(SIGILL));
    t.is("fault: breakpoint", end_of!("int3"), signal(SIGTRAP));
    t.is(
        "fault: division by zero",
        end_of!("xor ecx, ecx", "mov eax, 1", "cdq", "idiv ecx"),
        signal(SIGFPE),
    );
    t.is("fault: hlt", end_of!("hlt"), signal(SIGSEGV));
    t.is("fault: cli", end_of!("cli"), signal(SIGSEGV));
    t.is("fault: read cr3", end_of!("mov rax, cr3"), signal(SIGSEGV));
    t.is(
        "fault: rdmsr",
        end_of!("xor ecx, ecx", "rdmsr"),
        signal(SIGSEGV),
    );
    t.is(
        "fault: port",
        end_of!("mov dx, 0x80", "out dx, al"),
        signal(SIGSEGV),
    );
    t.is(
        "fault: software interrupt",
        end_of!("int 0x30"),
        signal(SIGSEGV),
    );
    t.is(
        "fault: single step",
        end_of!("pushf", "or qword ptr [rsp], 0x100", "popf", "nop"),
        signal(SIGTRAP),
    );
}

/// `body` as the first process of a new pid namespace, seen from a child that unshared.
pub fn as_namespace_init(body: impl FnOnce() -> i32) -> End {
    in_child(|| {
        if sys!(UNSHARE, CLONE_NEWPID) != 0 {
            return 99;
        }
        match in_child(body) {
            End::Exit(code) => code,
            End::Signal(signal) => 100 + signal,
            End::Wait(_) => 98,
        }
    })
}

fn namespaces(t: &mut Suite) {
    t.err("unshare: unknown flag", sys!(UNSHARE, 1), Errno::EINVAL);
    t.is("unshare: nothing", sys!(UNSHARE, 0), 0);
    let init = as_namespace_init(|| {
        i32::from(!(getpid() == 1 && sys!(GETTID) == 1 && sys!(GETPPID) == 0))
    });
    t.is(
        "namespace: its first process is 1 and has no parent",
        init.number(),
        0,
    );
    let second = as_namespace_init(|| {
        let child = fork(|| i32::from(!(getpid() == 2 && sys!(GETPPID) == 1)));
        i32::from(child != 2) | wait(child).number() as i32
    });
    t.is("namespace: the second is 2", second.number(), 0);
    let kept = in_child(|| {
        let before = getpid();
        i32::from(sys!(UNSHARE, CLONE_NEWPID) != 0 || getpid() != before)
    });
    t.is("namespace: the caller stays where it is", kept.number(), 0);
    let nested =
        as_namespace_init(|| as_namespace_init(|| i32::from(getpid() != 1)).number() as i32);
    t.is("namespace: nested", nested.number(), 0);
    let immune = as_namespace_init(|| {
        kill(getpid(), SIGTERM);
        kill(getpid(), SIGKILL);
        6
    });
    t.is(
        "namespace: init survives signals from inside",
        immune.number(),
        6,
    );
    let deep = deep_namespace(31);
    t.is("namespace: 31 deep", deep.number(), 0);
    t.is(
        "namespace: 33 deep is refused",
        deep_namespace(33).number(),
        Errno::ENOSPC.0 as isize,
    );
    let (r, w) = pipe(0);
    let dead = as_namespace_init(|| {
        for _ in 0..4 {
            fork(|| {
                close(r);
                loop {
                    sys!(PAUSE);
                }
            });
        }
        0
    });
    close(w);
    t.is("namespace: init ends", dead.number(), 0);
    t.is(
        "namespace: and takes every member along",
        read(r, &mut [0u8; 1]),
        0,
    );
    close(r);
    let after = in_child(|| {
        sys!(UNSHARE, CLONE_NEWPID);
        in_child(|| 0);
        let raw = sys!(FORK);
        if raw == 0 {
            process::exit_group(0);
        }
        (-raw) as i32
    });
    t.is(
        "namespace: no fork after its init has ended",
        after.number(),
        Errno::ENOMEM.0 as isize,
    );
    let cloned = sys!(CLONE, CLONE_NEWPID | CHILD, 0, 0, 0, 0);
    if cloned == 0 {
        process::exit_group(getpid() as i32);
    }
    t.is("clone: CLONE_NEWPID", wait(cloned).number(), 1);
}

/// Nests `depth` namespaces; the innermost must be process 1. The end is an error number or 0.
fn deep_namespace(depth: u32) -> End {
    in_child(|| {
        if depth == 0 {
            return i32::from(getpid() != 1);
        }
        let raw = sys!(UNSHARE, CLONE_NEWPID);
        if raw < 0 {
            (-raw) as i32
        } else {
            deep_namespace(depth - 1).number() as i32
        }
    })
}

/// Many children at once, reaped in the order of their end.
fn many(t: &mut Suite) {
    let mut sum = 0;
    let mut started = 0;
    for _ in 0..100 {
        let child = fork(|| 1);
        started += isize::from(child > 0);
        sum += child;
    }
    t.is("fork: 100 children", started, 100);
    for _ in 0..100 {
        sum -= sys!(WAIT4, -1isize, 0, 0, 0);
    }
    t.is("wait4: all 100 and no other", sum, 0);
    t.err(
        "wait4: none left",
        sys!(WAIT4, -1isize, 0, 0, 0),
        Errno::ECHILD,
    );
    t.is("fork: 40 generations", generation(40).number(), 0);
}

fn generation(left: u32) -> End {
    in_child(|| {
        if left == 0 {
            0
        } else {
            generation(left - 1).number() as i32
        }
    })
}

/// Forks, leaves the rest to the child and ends, until a signal comes.
fn run_away() -> i32 {
    loop {
        match sys!(FORK) {
            0 => {}
            child if child > 0 => return 0,
            _ => _ = sys!(SCHED_YIELD),
        }
    }
}

/// Processes whose whole life is a fork are all ended by one signal to their group, sent while they are born. The first
/// process of a namespace, to which all of them fall.
fn end_runners() -> i32 {
    for _ in 0..3 {
        let group = fork(|| {
            sys!(SETPGID, 0, 0);
            for _ in 0..3 {
                fork(run_away);
            }
            run_away()
        });
        while sys!(GETPGID, group) != group {
            sys!(SCHED_YIELD);
        }
        rt::time::sleep_ns(1_000_000);
        if kill(-group, SIGTERM) != 0 {
            return 1;
        }
        while sys!(WAIT4, -1isize, 0, 0, 0) > 0 {}
        if kill(-group, 0) != Errno::ESRCH.raw() {
            return 2;
        }
    }
    0
}
