//! Process ids chosen, held and refused: clone3 with set_tid, capabilities, pidfds, waitid, setns, kill to all.

use crate::files::{close, open};
use crate::pipes::pipe;
use crate::proc::slurp;
use crate::process::as_namespace_init;
use rt::abi::*;
use rt::process::{End, decode, exit_group, fork, getpid, in_child, wait};
use rt::signal::kill;
use rt::sys::{at, at_mut};
use rt::{Errno, Suite, sys};

pub fn run(t: &mut Suite) {
    pidfd_errors(t);
    pidfd_life(t);
    waitid_errors(t);
    waitid_info(t);
    set_tid_errors(t);
    set_tid(t);
    capabilities(t);
    joining(t);
    kill_all(t);
    exhausted(t);
}

const P_ALL: usize = 0;
const P_PID: usize = 1;
const P_PGID: usize = 2;
const P_PIDFD: usize = 3;
const WEXITED: usize = 4;
const WNOWAIT: usize = 0x0100_0000;
const POLLIN: i16 = 1;
const POLLHUP: i16 = 0x10;
const O_NONBLOCK: usize = 0o4000;

/// `struct clone_args`.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A fork whose child gets the ids in `tids`, innermost namespace first; the child runs `body`.
fn fork_as(tids: &[i32], body: impl FnOnce() -> i32) -> isize {
    let args = CloneArgs {
        exit_signal: SIGCHLD as u64,
        set_tid: if tids.is_empty() { 0 } else { at(tids) as u64 },
        set_tid_size: tids.len() as u64,
        ..Default::default()
    };
    let pid = sys!(CLONE3, at(&args), size_of::<CloneArgs>());
    if pid == 0 {
        exit_group(body());
    }
    pid
}

/// The error of a [`fork_as`] that must fail; the child, if there is one, is reaped.
fn fork_error(tids: &[i32]) -> isize {
    let raw = fork_as(tids, || 0);
    if raw > 0 {
        wait(raw);
    }
    raw
}

fn pause() -> i32 {
    loop {
        sys!(PAUSE);
    }
}

/// What poll says of one descriptor, at once or within a second.
fn poll(fd: isize, wait_ms: usize) -> isize {
    let mut entry = (fd as i32, POLLIN, 0i16);
    let ready = sys!(POLL, at_mut(&mut entry), 1, wait_ms);
    if ready == 1 { entry.2 as isize } else { ready }
}

fn pidfd_errors(t: &mut Suite) {
    let open = |pid: isize, flags: usize| sys!(PIDFD_OPEN, pid, flags);
    t.err("pidfd_open: pid 0", open(0, 0), Errno::EINVAL);
    t.err("pidfd_open: pid -1", open(-1, 0), Errno::EINVAL);
    t.err("pidfd_open: unknown flag", open(getpid(), 1), Errno::EINVAL);
    t.err(
        "pidfd_open: flags before the pid",
        open(1 << 22, 1),
        Errno::EINVAL,
    );
    t.err("pidfd_open: nobody", open(1 << 22, 0), Errno::ESRCH);
    let me = open(getpid(), 0);
    t.ok("pidfd_open: itself", me > 2);
    t.is("pidfd_open: closes on exec", sys!(FCNTL, me, 1, 0), 1);
    let send = |fd: isize, sig: usize, flags: usize| sys!(PIDFD_SEND_SIGNAL, fd, sig, 0, flags);
    t.is("pidfd_send_signal: 0", send(me, 0, 0), 0);
    t.err(
        "pidfd_send_signal: flags",
        send(me, 0, 0x100),
        Errno::EINVAL,
    );
    t.err(
        "pidfd_send_signal: signal 65",
        send(me, 65, 0),
        Errno::EINVAL,
    );
    t.err("pidfd_send_signal: a bad fd", send(-1, 0, 0), Errno::EBADF);
    let (r, w) = pipe(0);
    t.err("pidfd_send_signal: a pipe", send(r, 0, 0), Errno::EBADF);
    t.err("setns: a pipe", sys!(SETNS, r, CLONE_NEWPID), Errno::EINVAL);
    t.err(
        "setns: a bad fd",
        sys!(SETNS, -1isize, CLONE_NEWPID),
        Errno::EBADF,
    );
    t.err(
        "setns: no namespace named",
        sys!(SETNS, me, 0),
        Errno::EINVAL,
    );
    t.err(
        "read: a pidfd",
        sys!(READ, me, at_mut(&mut [0u8; 8]), 8),
        Errno::EINVAL,
    );
    for fd in [r, w, me] {
        close(fd);
    }
}

fn pidfd_life(t: &mut Suite) {
    let child = fork(pause);
    let fd = sys!(PIDFD_OPEN, child, 0);
    t.is("pidfd: poll while it lives", poll(fd, 0), 0);
    t.is(
        "pidfd: SIGKILL by it",
        sys!(PIDFD_SEND_SIGNAL, fd, SIGKILL, 0, 0),
        0,
    );
    t.is(
        "pidfd: poll wakes at the end",
        poll(fd, 10_000),
        POLLIN as isize,
    );
    let gone = sys!(PIDFD_SEND_SIGNAL, fd, 0, 0, 0);
    t.is("pidfd: a zombie can be sent to", gone, 0);
    let again = sys!(WAITID, P_PIDFD, fd, 0, WEXITED, 0);
    t.is("waitid: P_PIDFD", again, 0);
    t.is(
        "pidfd: poll when reaped",
        poll(fd, 0) & !(POLLHUP as isize),
        POLLIN as isize,
    );
    t.err(
        "pidfd: nobody to send to",
        sys!(PIDFD_SEND_SIGNAL, fd, 0, 0, 0),
        Errno::ESRCH,
    );
    t.err(
        "waitid: P_PIDFD, reaped",
        sys!(WAITID, P_PIDFD, fd, 0, WEXITED, 0),
        Errno::ECHILD,
    );
    close(fd);
    let child = fork(pause);
    let fd = sys!(PIDFD_OPEN, child, O_NONBLOCK);
    t.err(
        "waitid: P_PIDFD that does not block",
        sys!(WAITID, P_PIDFD, fd, 0, WEXITED, 0),
        Errno::EAGAIN,
    );
    kill(child, SIGKILL);
    t.is("waitid: after the poll", poll(fd, 10_000), POLLIN as isize);
    t.is(
        "wait4: beside a pidfd",
        wait(child).number(),
        1000 + SIGKILL as isize,
    );
    close(fd);
    let mut fd = -1i32;
    let args = CloneArgs {
        flags: 0x1000,
        exit_signal: SIGCHLD as u64,
        pidfd: at_mut(&mut fd) as u64,
        ..Default::default()
    };
    let child = sys!(CLONE3, at(&args), size_of::<CloneArgs>());
    if child == 0 {
        exit_group(5);
    }
    t.ok("clone3: CLONE_PIDFD", child > 0 && fd > 2);
    t.is(
        "clone3: the pidfd polls",
        poll(fd as isize, 10_000),
        POLLIN as isize,
    );
    t.is("clone3: and the child ends", wait(child).number(), 5);
    close(fd as isize);
}

fn waitid_errors(t: &mut Suite) {
    let waitid = |kind: usize, id: isize, options: usize| sys!(WAITID, kind, id, 0, options, 0);
    t.err("waitid: no event", waitid(P_ALL, 0, WNOHANG), Errno::EINVAL);
    t.err(
        "waitid: unknown option",
        waitid(P_ALL, 0, WEXITED | 0x100),
        Errno::EINVAL,
    );
    t.err("waitid: unknown kind", waitid(4, 1, WEXITED), Errno::EINVAL);
    t.err("waitid: pid 0", waitid(P_PID, 0, WEXITED), Errno::EINVAL);
    t.err(
        "waitid: pgid -1",
        waitid(P_PGID, -1, WEXITED),
        Errno::EINVAL,
    );
    t.err(
        "waitid: pidfd -1",
        waitid(P_PIDFD, -1, WEXITED),
        Errno::EINVAL,
    );
    t.err(
        "waitid: not open",
        waitid(P_PIDFD, 999, WEXITED),
        Errno::EBADF,
    );
    t.err(
        "waitid: no children",
        waitid(P_ALL, 0, WEXITED),
        Errno::ECHILD,
    );
    t.err(
        "waitid: not a child",
        waitid(P_PID, 1 << 22, WEXITED),
        Errno::ECHILD,
    );
}

fn waitid_info(t: &mut Suite) {
    let mut info = [-1i32; 32];
    let child = fork(|| 9);
    let kept = sys!(
        WAITID,
        P_PID,
        child,
        at_mut(&mut info),
        WEXITED | WNOWAIT,
        0
    );
    t.is("waitid: WNOWAIT", kept, 0);
    t.is("waitid: it stays a zombie", info[4] as isize, child);
    info = [-1; 32];
    let got = sys!(WAITID, P_PGID, 0, at_mut(&mut info), WEXITED, 0);
    t.is("waitid: own group", got, 0);
    t.is("waitid: si_signo", info[0] as isize, SIGCHLD as isize);
    t.is("waitid: si_code CLD_EXITED", info[2] as isize, 1);
    t.is("waitid: si_pid", info[4] as isize, child);
    t.is("waitid: si_status", info[6] as isize, 9);
    let child = fork(pause);
    info = [-1; 32];
    let got = sys!(WAITID, P_ALL, 0, at_mut(&mut info), WEXITED | WNOHANG, 0);
    t.is("waitid: WNOHANG", got, 0);
    t.is("waitid: nobody ended", info[4] as isize, 0);
    kill(child, SIGTERM);
    sys!(WAITID, P_ALL, 0, at_mut(&mut info), WEXITED, 0);
    t.is("waitid: si_code CLD_KILLED", info[2] as isize, 2);
    t.is("waitid: the signal", info[6] as isize, SIGTERM as isize);
}

/// Runs `body` as the first process of a namespace; its exit code is a number of the check that failed.
fn in_namespace(t: &mut Suite, name: &str, body: impl FnOnce() -> i32) {
    t.is(name, as_namespace_init(body).number(), 0);
}

fn set_tid_errors(t: &mut Suite) {
    let raw = |tids: usize, size: usize| {
        let args = CloneArgs {
            exit_signal: SIGCHLD as u64,
            set_tid: tids as u64,
            set_tid_size: size as u64,
            ..Default::default()
        };
        let pid = sys!(CLONE3, at(&args), size_of::<CloneArgs>());
        if pid == 0 {
            exit_group(0);
        }
        pid
    };
    let tids = [9i32; 40];
    t.err("clone3: 33 tids", raw(at(&tids), 33), Errno::EINVAL);
    t.err(
        "clone3: no tids, but their number",
        raw(0, 1),
        Errno::EINVAL,
    );
    t.err(
        "clone3: tids, but no number",
        raw(at(&tids), 0),
        Errno::EINVAL,
    );
    t.err("clone3: unreadable tids", raw(1, 1), Errno::EFAULT);
    t.err("clone3: tid 0", fork_error(&[0]), Errno::EINVAL);
    t.err("clone3: tid -1", fork_error(&[-1]), Errno::EINVAL);
    t.err(
        "clone3: tid past pid_max",
        fork_error(&[1 << 22]),
        Errno::EINVAL,
    );
    t.err(
        "clone3: its own tid",
        fork_error(&[getpid() as i32]),
        Errno::EEXIST,
    );
    in_namespace(t, "clone3: more tids than levels", || {
        i32::from(fork_error(&[9; 32]) != Errno::EINVAL.raw())
    });
    let first = in_child(|| {
        sys!(UNSHARE, CLONE_NEWPID);
        let second = fork_error(&[2]);
        if second != Errno::EINVAL.raw() {
            return 1;
        }
        // What failed left nothing behind: the next one is the first.
        in_child(|| i32::from(getpid() != 1)).number() as i32
    });
    t.is("clone3: the first process must be 1", first.number(), 0);
    let dead = in_child(|| {
        sys!(UNSHARE, CLONE_NEWPID);
        in_child(|| 0);
        (-fork_error(&[7])) as i32
    });
    t.is(
        "clone3: a namespace whose init has ended",
        dead.number(),
        Errno::ENOMEM.0 as isize,
    );
    let order = in_child(|| {
        sys!(UNSHARE, CLONE_NEWPID);
        in_child(|| 0);
        (-fork_error(&[0])) as i32
    });
    t.is(
        "clone3: a bad tid comes before that",
        order.number(),
        Errno::EINVAL.0 as isize,
    );
}

fn set_tid(t: &mut Suite) {
    in_namespace(t, "clone3: a tid of one's choice", || {
        let child = fork_as(&[70], || i32::from(getpid() != 70));
        i32::from(child != 70) + wait(child).number() as i32
    });
    in_namespace(t, "clone3: taken while it lives, free after", || {
        let child = fork_as(&[71], pause);
        if fork_error(&[71]) != Errno::EEXIST.raw() {
            return 1;
        }
        kill(child, SIGKILL);
        wait(child);
        let again = fork_as(&[71], || 0);
        i32::from(again != 71) + wait(again).number() as i32
    });
    in_namespace(t, "clone3: a zombie keeps its number", || {
        let child = fork_as(&[72], || 0);
        sys!(WAITID, P_PID, child, 0, WEXITED | WNOWAIT, 0);
        let taken = fork_error(&[72]);
        wait(child);
        i32::from(taken != Errno::EEXIST.raw())
    });
    in_namespace(t, "clone3: automatic numbers go on as before", || {
        let chosen = fork_as(&[200], || 0);
        wait(chosen);
        let next = fork(|| 0);
        wait(next);
        i32::from(next != 2)
    });
    in_namespace(t, "clone3: two levels", || {
        as_namespace_init(|| {
            let child = fork_as(&[33, 44], || i32::from(getpid() != 33));
            i32::from(child != 33) + wait(child).number() as i32
        })
        .number() as i32
    });
}

/// Leaves itself without any capability.
fn drop_all() -> isize {
    let header = [0x2008_0522u32, 0];
    let none = [0u32; 6];
    sys!(CAPSET, at(&header), at(&none))
}

fn capabilities(t: &mut Suite) {
    let mut header = [0u32, 0];
    t.err(
        "capget: an unknown version",
        sys!(CAPGET, at(&header), at(&[0u32; 6])),
        Errno::EINVAL,
    );
    t.is(
        "capget: says which one it knows",
        header[0] as isize,
        0x2008_0522,
    );
    t.is(
        "capget: nothing to fill",
        sys!(CAPGET, at_mut(&mut header), 0),
        0,
    );
    let mut sets = [0u32; 6];
    t.is("capget", sys!(CAPGET, at(&header), at_mut(&mut sets)), 0);
    header[1] = 1 << 22;
    t.err(
        "capget: nobody",
        sys!(CAPGET, at(&header), at_mut(&mut sets)),
        Errno::ESRCH,
    );
    t.err(
        "capset: somebody else",
        sys!(CAPSET, at(&header), at(&sets)),
        Errno::EPERM,
    );
    t.err(
        "prctl: an unknown capability",
        sys!(PRCTL, 24, 64),
        Errno::EINVAL,
    );
    t.err(
        "prctl: of which nobody knows",
        sys!(PRCTL, 23, 64),
        Errno::EINVAL,
    );
    type Check = fn() -> i32;
    let checks: [(&str, Check, Errno); 8] = [
        ("capset: up again", || (-regain()) as i32, Errno::EPERM),
        (
            "capset: effective beyond permitted",
            || (-effective_only()) as i32,
            Errno::EPERM,
        ),
        (
            "unshare: without CAP_SYS_ADMIN",
            || (-sys!(UNSHARE, CLONE_NEWPID)) as i32,
            Errno::EPERM,
        ),
        (
            "clone: without CAP_SYS_ADMIN",
            || (-new_namespace()) as i32,
            Errno::EPERM,
        ),
        (
            "clone3: a tid without the capability",
            || (-fork_error(&[30000])) as i32,
            Errno::EPERM,
        ),
        (
            "clone3: a bad tid comes first",
            || (-fork_error(&[0])) as i32,
            Errno::EINVAL,
        ),
        (
            "clone3: not allowed comes before taken",
            || (-fork_error(&[getpid() as i32])) as i32,
            Errno::EPERM,
        ),
        (
            "prctl: the bounding set",
            || (-sys!(PRCTL, 24, 21)) as i32,
            Errno::EPERM,
        ),
    ];
    for (name, body, want) in checks {
        let end = in_child(|| {
            if drop_all() != 0 {
                return 255;
            }
            body()
        });
        t.is(name, end.number(), want.0 as isize);
    }
    let kept = in_child(|| {
        drop_all();
        in_child(|| (-sys!(UNSHARE, CLONE_NEWPID)) as i32).number() as i32
    });
    t.is(
        "fork: the child has no more",
        kept.number(),
        Errno::EPERM.0 as isize,
    );
}

fn regain() -> isize {
    let header = [0x2008_0522u32, 0];
    let all = [!0u32, !0, 0, 0x1ff, 0x1ff, 0];
    sys!(CAPSET, at(&header), at(&all))
}

fn effective_only() -> isize {
    let header = [0x2008_0522u32, 0];
    sys!(CAPSET, at(&header), at(&[1u32, 0, 0, 0, 0, 0]))
}

fn new_namespace() -> isize {
    let raw = sys!(CLONE, CLONE_NEWPID | SIGCHLD as usize, 0, 0, 0, 0);
    if raw == 0 {
        exit_group(0);
    }
    raw
}

fn joining(t: &mut Suite) {
    let joined = in_child(|| {
        let init = new_sleeper();
        let fd = sys!(PIDFD_OPEN, init, 0);
        let before = getpid();
        if sys!(SETNS, fd, CLONE_NEWPID) != 0 || getpid() != before {
            return 1;
        }
        let inside = in_child(|| i32::from(getpid() != 2 || sys!(GETPPID) != 0));
        kill(init, SIGKILL);
        wait(init);
        if sys!(SETNS, fd, CLONE_NEWPID) != Errno::ESRCH.raw() {
            return 2;
        }
        inside.number() as i32
    });
    t.is("setns: children join, oneself does not", joined.number(), 0);
    let upwards = in_child(|| {
        let outer = sys!(PIDFD_OPEN, getpid(), 0);
        as_namespace_init(|| (-sys!(SETNS, outer, CLONE_NEWPID)) as i32).number() as i32
    });
    t.is(
        "setns: not to the namespace above",
        upwards.number(),
        Errno::EINVAL.0 as isize,
    );
    let refused = in_child(|| {
        let me = sys!(PIDFD_OPEN, getpid(), 0);
        drop_all();
        (-sys!(SETNS, me, CLONE_NEWPID)) as i32
    });
    t.is(
        "setns: without CAP_SYS_ADMIN",
        refused.number(),
        Errno::EPERM.0 as isize,
    );
    let unseen = in_child(|| {
        let outer = sys!(PIDFD_OPEN, getpid(), 0);
        as_namespace_init(|| (-sys!(PIDFD_SEND_SIGNAL, outer, 0, 0, 0)) as i32).number() as i32
    });
    t.is(
        "pidfd_send_signal: not upwards",
        unseen.number(),
        Errno::EINVAL.0 as isize,
    );
}

/// The first process of a new namespace, asleep.
fn new_sleeper() -> isize {
    let raw = sys!(CLONE, CLONE_NEWPID | SIGCHLD as usize, 0, 0, 0, 0);
    if raw == 0 {
        pause();
    }
    raw
}

fn kill_all(t: &mut Suite) {
    in_namespace(t, "kill: -1 ends all but oneself and the first", || {
        let sent = in_child(|| {
            for _ in 0..3 {
                fork(pause);
            }
            new_sleeper();
            i32::from(kill(-1, SIGKILL) != 0)
        });
        // Orphans are the first process's: three, and the first of the inner namespace.
        let mut ended = 0;
        let mut status = 0u32;
        while sys!(WAIT4, -1isize, at_mut(&mut status), 0, 0) > 0 {
            ended += i32::from(decode(status) == End::Signal(SIGKILL));
        }
        i32::from(sent != End::Exit(0) || ended != 4)
    });
    in_namespace(t, "kill: -1 with nobody else", || {
        i32::from(kill(-1, 0) != Errno::ESRCH.raw())
    });
    in_namespace(t, "kill: 0 is the own group", || {
        sys!(SETSID);
        let child = fork(pause);
        let other = fork(|| {
            sys!(SETPGID, 0, 0);
            pause()
        });
        while sys!(GETPGID, other) != other {
            sys!(SCHED_YIELD);
        }
        kill(0, SIGTERM); // we are the first process: it does not end us
        let first = wait(child).number() == 1000 + SIGTERM as isize;
        let spared = sys!(WAIT4, other, 0, WNOHANG, 0) == 0;
        kill(-other, SIGKILL);
        let second = wait(other).number() == 1000 + SIGKILL as isize;
        i32::from(!(first && spared && second))
    });
    t.err(
        "kill: a group that is none",
        kill(-(1 << 22), 0),
        Errno::ESRCH,
    );
}

/// Whether this machine is a test's own: what is set here is nobody else's.
fn is_own_machine() -> bool {
    let has = |text: &[u8], word: &[u8]| text.windows(word.len()).any(|part| part == word);
    let mut buf = [0; 1024];
    has(slurp(c"/proc/cmdline", &mut buf), b"rdinit=/init")
        || has(slurp(c"/proc/sys/kernel/osrelease", &mut buf), b"tine")
}

fn set_pid_max(text: &[u8]) -> bool {
    let fd = open(c"/proc/sys/kernel/pid_max", O_WRONLY);
    let written = sys!(WRITE, fd, at(text), text.len());
    close(fd);
    written == text.len() as isize
}

/// A fork whose child sleeps, or the error.
fn sleeper() -> isize {
    let raw = sys!(CLONE, SIGCHLD as usize, 0, 0, 0, 0);
    if raw == 0 {
        exit_group(pause());
    }
    raw
}

/// All numbers below the limit are taken, one comes back, the limit rises. Numbers up to 300 are out of reach once later
/// ones have been given out, so it takes few processes. On one CPU: a design may have set low ones aside for another.
fn exhausted(t: &mut Suite) {
    if !is_own_machine() {
        return;
    }
    let mut all = [0u64; 16];
    sys!(SCHED_GETAFFINITY, 0, size_of_val(&all), at_mut(&mut all));
    let one = [1u64; 1];
    sys!(SCHED_SETAFFINITY, 0, size_of_val(&one), at(&one));
    exhausted_here(t);
    sys!(SCHED_SETAFFINITY, 0, size_of_val(&all), at(&all));
}

fn exhausted_here(t: &mut Suite) {
    let (mut buf, mut children) = ([0; 32], [0isize; 320]);
    let before = slurp(c"/proc/sys/kernel/pid_max", &mut buf);
    for _ in 0..640 {
        let child = fork(|| 0);
        wait(child);
        if child > 310 {
            break;
        }
    }
    t.ok("pid_max: can be lowered to 301", set_pid_max(b"301\n"));
    let mut nr = 0;
    let refused = loop {
        let child = sleeper();
        if child < 0 || nr == children.len() {
            break child;
        }
        children[nr] = child;
        nr += 1;
    };
    t.err("pid_max: all taken", refused, Errno::EAGAIN);
    t.err("pid_max: and again", sleeper(), Errno::EAGAIN);
    let low = children[..nr].iter().all(|&child| child < 301);
    t.ok("pid_max: none is above", low);
    let last = children[..nr].iter().position(|&child| child == 300);
    if let Some(last) = last {
        kill(300, SIGKILL);
        wait(300);
        children[last] = sleeper();
    }
    let back = last.map_or(300, |last| children[last]);
    t.is("pid_max: one that was freed comes back", back, 300);
    t.ok("pid_max: can be raised", set_pid_max(before));
    let child = sleeper();
    t.ok("pid_max: then there are more", child > 300);
    for &child in children[..nr].iter().chain([&child]) {
        kill(child, SIGKILL);
        wait(child);
    }
}
