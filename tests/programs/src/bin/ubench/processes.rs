//! fork, vfork, exec, exit, wait, threads, namespaces.

use crate::{Bench, Context, FAILED, bench, heavy, map, time, touch, unmap};
use rt::Args;
use rt::abi::*;
use rt::process::{self, End, exec, fork, in_child, vfork_exec, wait};
use rt::sys;
use rt::sys::at;
use rt::thread::{FLAGS, Thread};

pub const BENCHES: &[Bench] = &[
    bench("fork_exit_wait", 20, 10, |_, n| fork_exit_wait(n)),
    bench("fork_16_pages", 20, 5, |_, n| with_pages(n, 16)),
    bench("fork_256_pages", 10, 5, |_, n| with_pages(n, 256)),
    bench("fork_1024_pages", 5, 4, |_, n| with_pages(n, 1024)),
    heavy("fork_4096_pages", 3, 3, |_, n| with_pages(n, 4096)),
    bench("fork_512_vmas", 4, 4, |_, n| with_areas(n, 512)),
    heavy("fork_6000_file_maps", 2, 3, with_file_maps),
    bench("vfork_exit_wait", 20, 10, vfork_exit_wait),
    bench("fork_only_64", 64, 4, |_, n| batch(n).0),
    bench("reap_only_64", 64, 4, |_, n| batch(n).1),
    bench("vfork_exec_wait", 20, 10, vfork_exec_wait),
    bench("fork_exec_wait", 20, 10, fork_exec_wait),
    bench("exec_self", 50, 4, exec_self),
    bench("thread", 50, 10, thread),
    bench("thread_mmap", 50, 10, thread_with_stack),
    bench("fork_64_threads_exit_group", 2, 4, many_threads),
    bench("newpid_exit_wait", 20, 5, newpid),
    bench("fork_depth_1", 10, 5, |_, n| at_depth(n, 1, fork_exit_wait)),
    bench("fork_depth_8", 10, 5, |_, n| at_depth(n, 8, fork_exit_wait)),
    bench("fork_depth_16", 10, 5, |_, n| {
        at_depth(n, 16, fork_exit_wait)
    }),
    bench("fork_depth_31", 10, 5, |_, n| {
        at_depth(n, 31, fork_exit_wait)
    }),
    bench("thread_depth_0", 10, 5, |_, n| at_depth(n, 0, threads)),
    bench("thread_depth_8", 10, 5, |_, n| at_depth(n, 8, threads)),
    bench("thread_depth_31", 10, 5, |_, n| at_depth(n, 31, threads)),
    bench("kill_init_of_100", 1, 4, kill_init),
    bench("set_tid", 20, 5, set_tid),
    bench("pidfd_open", 200, 5, |_, n| {
        let me = process::getpid();
        time(n, |_| {
            sys!(CLOSE, sys!(PIDFD_OPEN, me, 0));
        })
    }),
    bench("readdir_proc", 500, 2, |_, n| in_proc(n, list_proc)),
    bench("read_proc_stat", 200, 2, |_, n| in_proc(n, read_stats)),
];

/// Runs `body` while there are `n` more processes, whose pids it gets.
pub fn in_proc(n: u32, body: impl FnOnce(&[i32], u32) -> u64) -> u64 {
    let at = map(n as usize * 4 / PAGE + 1);
    if at == 0 {
        return FAILED;
    }
    // SAFETY: mapped above, as large as that, and nobody else's.
    let pids = unsafe { core::slice::from_raw_parts_mut(at as *mut i32, n as usize) };
    for pid in pids.iter_mut() {
        let child = fork(|| {
            loop {
                sys!(PAUSE);
            }
        });
        if child <= 0 {
            return FAILED;
        }
        *pid = child as i32;
    }
    let cycles = body(pids, n);
    for &pid in pids.iter() {
        rt::signal::kill(pid as isize, SIGKILL);
        wait(pid as isize);
    }
    unmap(at, n as usize * 4 / PAGE + 1);
    cycles
}

/// One listing of /proc; an operation is an entry.
pub fn list_proc(_: &[i32], n: u32) -> u64 {
    let dir = sys!(OPEN, c"/proc".as_ptr(), O_RDONLY | O_DIRECTORY, 0);
    let (mut buf, mut bytes, mut failed) = ([0u8; 32768], 0, false);
    let cycles = time(1, |_| {
        loop {
            match sys!(GETDENTS64, dir, buf.as_mut_ptr(), buf.len()) {
                0 => break,
                got if got > 0 => bytes += got,
                _ => {
                    failed = true;
                    break;
                }
            }
        }
    });
    sys!(CLOSE, dir);
    if failed || bytes < n as isize * 24 {
        return FAILED;
    }
    cycles
}

/// Opens, reads and closes each process's stat, as ps does.
pub fn read_stats(pids: &[i32], n: u32) -> u64 {
    let mut failed = false;
    let mut buf = [0u8; 1024];
    let cycles = time(n, |i| {
        let mut path = *b"/proc/0000000000/stat\0";
        let mut rest = pids[i as usize];
        // Zeros in front are no part of a number: fill from the end, start where it starts.
        let mut at = 16;
        while rest > 0 {
            at -= 1;
            path[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        path.copy_within(0..6, at - 6);
        let fd = sys!(OPEN, path[at - 6..].as_ptr(), O_RDONLY, 0);
        failed |= sys!(READ, fd, buf.as_mut_ptr(), buf.len()) < 100;
        sys!(CLOSE, fd);
    });
    if failed { FAILED } else { cycles }
}

/// Forks a child that exits, waits for it; whether all went well.
#[inline(always)]
fn once() -> bool {
    let pid = sys!(FORK);
    if pid == 0 {
        sys!(EXIT_GROUP, 0);
    }
    sys!(WAIT4, pid, 0, 0, 0) == pid
}

pub fn fork_exit_wait(n: u32) -> u64 {
    let mut fine = true;
    let cycles = time(n, |_| fine &= once());
    if fine { cycles } else { FAILED }
}

const MADV_NOHUGEPAGE: usize = 15;

/// The parent has `pages` touched anonymous pages.
fn with_pages(n: u32, pages: usize) -> u64 {
    let at = map(pages);
    if at == 0 {
        return FAILED;
    }
    // Pages are what this is about, not huge ones.
    sys!(MADVISE, at, pages * PAGE, MADV_NOHUGEPAGE);
    touch(at, pages);
    let cycles = fork_exit_wait(n);
    unmap(at, pages);
    cycles
}

/// The parent has `areas` more mappings, one page each, touched.
fn with_areas(n: u32, areas: usize) -> u64 {
    let at = map(2 * areas);
    if at == 0 {
        return FAILED;
    }
    for i in 0..areas {
        sys!(MPROTECT, at + (2 * i + 1) * PAGE, PAGE, PROT_NONE);
    }
    let cycles = fork_exit_wait(n);
    unmap(at, 2 * areas);
    cycles
}

fn with_file_maps(context: &Context, n: u32) -> u64 {
    const MAPS: usize = 6000;
    let fd = sys!(OPEN, context.tiny.as_ptr(), O_RDONLY, 0);
    let at = sys!(
        MMAP,
        0,
        2 * MAPS * PAGE,
        PROT_NONE,
        ANON | MAP_NORESERVE,
        -1isize,
        0
    );
    if fd < 0 || at < 0 {
        return FAILED;
    }
    for i in 0..MAPS {
        sys!(
            MMAP,
            at as usize + 2 * i * PAGE,
            PAGE,
            PROT_READ,
            MAP_SHARED | MAP_FIXED,
            fd,
            0
        );
    }
    let cycles = fork_exit_wait(n);
    unmap(at as usize, 2 * MAPS);
    sys!(CLOSE, fd);
    cycles
}

static SLOT: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(0);

fn vfork_exit_wait(_: &Context, n: u32) -> u64 {
    let mut fine = true;
    let cycles = time(n, |i| {
        let pid = process::vfork_store_exit(&SLOT, i as usize, 0);
        fine &= sys!(WAIT4, pid, 0, 0, 0) == pid && pid > 0;
    });
    if fine { cycles } else { FAILED }
}

/// `n` forks, then `n` waits, timed apart: (forks, waits with the children's ends).
fn batch(n: u32) -> (u64, u64) {
    let mut fine = true;
    let forks = time(n, |_| {
        let pid = sys!(FORK);
        if pid == 0 {
            sys!(EXIT_GROUP, 0);
        }
        fine &= pid > 0;
    });
    let waits = time(n, |_| fine &= sys!(WAIT4, -1isize, 0, 0, 0) > 0);
    if fine {
        (forks, waits)
    } else {
        (FAILED, FAILED)
    }
}

fn vfork_exec_wait(context: &Context, n: u32) -> u64 {
    let argv = [context.tiny.as_ptr() as usize, 0];
    let mut fine = true;
    let cycles = time(n, |_| {
        let pid = vfork_exec(context.tiny, argv.as_ptr(), argv.as_ptr().wrapping_add(1));
        let mut status = 1u32;
        fine &= sys!(WAIT4, pid, sys::at_mut(&mut status), 0, 0) == pid && status == 0;
    });
    if fine { cycles } else { FAILED }
}

fn fork_exec_wait(context: &Context, n: u32) -> u64 {
    let argv = [context.tiny.as_ptr() as usize, 0];
    let mut fine = true;
    let cycles = time(n, |_| {
        let pid = sys!(FORK);
        if pid == 0 {
            exec(context.tiny, argv.as_ptr(), argv.as_ptr().wrapping_add(1));
            process::exit_group(127);
        }
        let mut status = 1u32;
        fine &= sys!(WAIT4, pid, sys::at_mut(&mut status), 0, 0) == pid && status == 0;
    });
    if fine { cycles } else { FAILED }
}

/// A program that executes itself `n` times; what is timed is the difference to none.
fn exec_self(context: &Context, n: u32) -> u64 {
    let run = |times: u8| {
        let left = [times, 0];
        let argv = [
            context.itself.as_ptr() as usize,
            at(b"@self\0"),
            at(&left),
            0,
        ];
        let mut end = End::Exit(1);
        let cycles = time(1, |_| {
            end = wait(vfork_exec(
                context.itself,
                argv.as_ptr(),
                argv.as_ptr().wrapping_add(3),
            ));
        });
        if end == End::Exit(0) { cycles } else { FAILED }
    };
    let (none, all) = (run(1), run(n as u8 + 1));
    if none == FAILED || all == FAILED {
        FAILED
    } else {
        all.saturating_sub(none)
    }
}

/// The program executed by `exec_self`: the byte in its second argument says how often again, plus 1.
pub fn exec_again(args: &Args) -> i32 {
    let left = args
        .get(2)
        .and_then(|a| a.to_bytes().first().copied())
        .unwrap_or(0);
    if left <= 1 {
        return i32::from(left != 1);
    }
    let next = [left - 1, 0];
    let argv = [
        args.execfn().as_ptr() as usize,
        at(b"@self\0"),
        at(&next),
        0,
    ];
    exec(args.execfn(), argv.as_ptr(), argv.as_ptr().wrapping_add(3));
    1
}

extern "C" fn end(_: usize) -> i32 {
    0
}

/// A thread on a stack that is used again.
fn thread(_: &Context, n: u32) -> u64 {
    threads(n)
}

/// The same with mmap and munmap of the stack.
fn thread_with_stack(_: &Context, n: u32) -> u64 {
    let mut fine = true;
    let cycles = time(n, |_| {
        let thread = Thread::new();
        fine &= thread.start(end, 0) > 0;
        thread.join();
        thread.free();
    });
    if fine { cycles } else { FAILED }
}

extern "C" fn sleep_forever(_: usize) -> i32 {
    loop {
        sys!(PAUSE);
    }
}

/// A child makes 64 threads and ends them all with exit_group.
fn many_threads(_: &Context, n: u32) -> u64 {
    let flags = FLAGS & !(CLONE_CHILD_CLEARTID | CLONE_PARENT_SETTID);
    let stacks: [Thread; 64] = core::array::from_fn(|_| Thread::new());
    let mut fine = true;
    let cycles = time(n, |_| {
        let ended = in_child(|| {
            let started = stacks
                .iter()
                .filter(|t| t.start_with(flags, sleep_forever, 0, 0) > 0)
                .count();
            i32::from(started != 64)
        });
        fine &= ended == End::Exit(0);
    });
    stacks.into_iter().for_each(Thread::free);
    if fine { cycles } else { FAILED }
}

fn newpid(_: &Context, n: u32) -> u64 {
    let mut fine = true;
    let cycles = time(n, |_| {
        let pid = sys!(CLONE, CLONE_NEWPID | SIGCHLD as usize, 0, 0, 0, 0);
        if pid == 0 {
            sys!(EXIT_GROUP, 0);
        }
        fine &= sys!(WAIT4, pid, 0, 0, 0) == pid && pid > 0;
    });
    if fine { cycles } else { FAILED }
}

/// Threads, one after another, on a stack that is used again.
fn threads(n: u32) -> u64 {
    let thread = Thread::new();
    let mut fine = true;
    let cycles = time(n, |_| {
        fine &= thread.start(end, 0) > 0;
        thread.join();
    });
    thread.free();
    if fine { cycles } else { FAILED }
}

/// The end of a namespace: its first process is killed and with it 100 others, until the first is reaped.
fn kill_init(_: &Context, n: u32) -> u64 {
    const MEMBERS: usize = 100;
    let (mut cycles, mut fine) = (0, true);
    for _ in 0..n {
        let mut ready = [-1i32; 2];
        sys!(PIPE, sys::at_mut(&mut ready));
        let init = sys!(CLONE, CLONE_NEWPID | SIGCHLD as usize, 0, 0, 0, 0);
        if init == 0 {
            for _ in 0..MEMBERS {
                fork(|| {
                    loop {
                        sys!(PAUSE);
                    }
                });
            }
            sys!(WRITE, ready[1], c"x".as_ptr(), 1);
            loop {
                sys!(PAUSE);
            }
        }
        let mut byte = 0u8;
        fine &= sys!(READ, ready[0], sys::at_mut(&mut byte), 1) == 1;
        // All members are asleep.
        (0..3 * MEMBERS).for_each(|_| _ = sys!(SCHED_YIELD));
        cycles += time(1, |_| {
            rt::signal::kill(init, SIGKILL);
            fine &= wait(init) == End::Signal(SIGKILL);
        });
        ready.iter().for_each(|fd| _ = sys!(CLOSE, *fd));
    }
    if fine { cycles } else { FAILED }
}

/// clone3 of a child with a number of our choice, its end and wait.
fn set_tid(_: &Context, n: u32) -> u64 {
    // `struct clone_args`: exit_signal is word 4, set_tid word 8, set_tid_size word 9.
    let mut args = [0u64; 11];
    let tids = [20_001i32];
    args[4] = SIGCHLD as u64;
    args[8] = at(&tids) as u64;
    args[9] = 1;
    let mut fine = true;
    let cycles = time(n, |_| {
        let pid = sys!(CLONE3, at(&args), size_of_val(&args));
        if pid == 0 {
            sys!(EXIT_GROUP, 0);
        }
        fine &= pid == 20_001 && sys!(WAIT4, pid, 0, 0, 0) == pid;
    });
    if fine { cycles } else { FAILED }
}

/// `body` in a pid namespace `depth` levels down. The cycles come back through a page.
fn at_depth(n: u32, depth: u32, body: fn(u32) -> u64) -> u64 {
    let page = sys!(MMAP, 0, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1isize, 0);
    if page < 0 {
        return FAILED;
    }
    let ended = descend(depth, n, body, page as *mut u64);
    // SAFETY: a shared page whose writer has ended.
    let cycles = unsafe { (page as *const u64).read_volatile() };
    sys!(MUNMAP, page, PAGE);
    if ended == End::Exit(0) {
        cycles
    } else {
        FAILED
    }
}

fn descend(depth: u32, n: u32, body: fn(u32) -> u64, result: *mut u64) -> End {
    if depth == 0 {
        let cycles = body(n);
        // SAFETY: the shared page of `at_depth`.
        unsafe { result.write_volatile(cycles) };
        return End::Exit(0);
    }
    let child = fork(|| {
        if sys!(UNSHARE, CLONE_NEWPID) != 0 {
            return 1;
        }
        // The namespace begins with the next child, which stays its first process.
        match in_child(|| i32::from(descend(depth - 1, n, body, result) != End::Exit(0))) {
            End::Exit(code) => code,
            _ => 1,
        }
    });
    wait(child)
}
