//! Calls that come straight back: the entry path, signals, files, pipes, futexes.

use crate::{Bench, Context, FAILED, bench, time};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use rt::abi::*;
use rt::process::{self, fork};
use rt::signal::{self, handle, kill};
use rt::sys;
use rt::sys::{at, at_mut};
use rt::thread::{Thread, futex_wait, futex_wake};

pub const BENCHES: &[Bench] = &[
    bench("nothing", 1000, 5, |_, n| {
        time(n, |_| core::hint::black_box(()))
    }),
    bench("getpid", 1000, 10, |_, n| {
        time(n, |_| {
            sys!(GETPID);
        })
    }),
    bench("enosys", 1000, 10, |_, n| {
        time(n, |_| {
            // SAFETY: no such call.
            unsafe { sys::raw(1023, [0; 6]) };
        })
    }),
    bench("kill0", 1000, 10, |_, n| {
        let me = process::getpid();
        time(n, |_| {
            kill(me, 0);
        })
    }),
    bench("signal", 200, 10, signal_to_self),
    bench("open_close", 200, 10, open_close),
    bench("stat", 200, 10, |context, n| {
        let mut st = Stat::default();
        time(n, |_| {
            sys!(STAT, context.tiny.as_ptr(), at_mut(&mut st));
        })
    }),
    bench("pread1", 500, 10, pread_one),
    bench("sched_yield", 500, 10, yield_between_two),
    bench("pipe_pingpong", 100, 10, pipe_pingpong),
    bench("futex_pingpong", 100, 10, futex_pingpong),
];

extern "C" fn nothing(_: i32, _: &mut Siginfo, _: &mut Ucontext) {}

fn signal_to_self(_: &Context, n: u32) -> u64 {
    handle(SIGUSR1, nothing, 0, 0);
    let me = process::getpid();
    let cycles = time(n, |_| {
        kill(me, SIGUSR1);
    });
    signal::action(SIGUSR1, SIG_DFL, 0, 0);
    cycles
}

fn open_close(context: &Context, n: u32) -> u64 {
    let path = context.tiny.as_ptr();
    if sys!(CLOSE, sys!(OPEN, path, O_RDONLY, 0)) != 0 {
        return FAILED;
    }
    time(n, |_| {
        sys!(CLOSE, sys!(OPEN, path, O_RDONLY, 0));
    })
}

fn pread_one(context: &Context, n: u32) -> u64 {
    let fd = sys!(OPEN, context.tiny.as_ptr(), O_RDONLY, 0);
    let mut byte = [0u8; 1];
    if sys!(PREAD64, fd, at_mut(&mut byte), 1, 0) != 1 {
        return FAILED;
    }
    let cycles = time(n, |_| {
        sys!(PREAD64, fd, at_mut(&mut byte), 1, 0);
    });
    sys!(CLOSE, fd);
    cycles
}

/// Puts the calling process on the first CPU it may use, so that two processes must switch.
fn pin() {
    let mut mask = [0u64; 16];
    sys!(SCHED_GETAFFINITY, 0, 128, at_mut(&mut mask));
    let mut found = false;
    for word in &mut mask {
        *word = if found {
            0
        } else {
            *word & word.wrapping_neg()
        };
        found |= *word != 0;
    }
    sys!(SCHED_SETAFFINITY, 0, 128, at(&mask));
}

/// The cycles that a pinned child of its own gets from `body`, so that this process stays unpinned.
fn in_pinned_child(body: impl FnOnce() -> u64) -> u64 {
    let page = sys!(MMAP, 0, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1isize, 0);
    if page < 0 {
        return FAILED;
    }
    let result = page as *mut u64;
    let child = fork(|| {
        pin();
        // SAFETY: a fresh shared page, which the parent reads after this child's end.
        unsafe { result.write_volatile(body()) };
        0
    });
    let end = process::wait(child);
    // SAFETY: as above.
    let cycles = unsafe { result.read_volatile() };
    sys!(MUNMAP, page, PAGE);
    if end == process::End::Exit(0) {
        cycles
    } else {
        FAILED
    }
}

/// Two processes on one CPU yield to each other; one operation is one yield, with its switch.
fn yield_between_two(_: &Context, n: u32) -> u64 {
    in_pinned_child(|| {
        let partner = fork(|| {
            loop {
                sys!(SCHED_YIELD);
            }
        });
        sys!(SCHED_YIELD);
        let cycles = time(n, |_| {
            sys!(SCHED_YIELD);
        });
        kill(partner, SIGKILL);
        process::wait(partner);
        // The partner yielded as often as we did.
        cycles / 2
    })
}

fn pipe() -> [i32; 2] {
    let mut fds = [-1i32; 2];
    sys!(PIPE, at_mut(&mut fds));
    fds
}

/// A byte there and back between two processes on one CPU.
fn pipe_pingpong(_: &Context, n: u32) -> u64 {
    in_pinned_child(|| {
        let (there, back) = (pipe(), pipe());
        let partner = fork(|| {
            let mut byte = [0u8; 1];
            sys!(CLOSE, there[1]);
            while sys!(READ, there[0], at_mut(&mut byte), 1) == 1 {
                sys!(WRITE, back[1], at(&byte), 1);
            }
            0
        });
        let mut byte = [1u8; 1];
        let mut turn = |_| {
            sys!(WRITE, there[1], at(&byte), 1);
            sys!(READ, back[0], at_mut(&mut byte), 1);
        };
        turn(0);
        let cycles = time(n, turn);
        sys!(CLOSE, there[1]);
        process::wait(partner);
        cycles
    })
}

static BALL: AtomicU32 = AtomicU32::new(0);

fn pass(from: u32, to: u32) {
    while BALL.load(SeqCst) != from {
        futex_wait(&BALL, to);
    }
    BALL.store(to, SeqCst);
    futex_wake(&BALL, 1);
}

extern "C" fn player(rounds: usize) -> i32 {
    for _ in 0..rounds {
        pass(1, 0);
    }
    0
}

/// A futex handed over and back between two threads on one CPU.
fn futex_pingpong(_: &Context, n: u32) -> u64 {
    in_pinned_child(|| {
        BALL.store(0, SeqCst);
        let thread = Thread::new();
        thread.start(player, n as usize + 1);
        let turn = |_| {
            pass(0, 1);
            while BALL.load(SeqCst) != 0 {
                futex_wait(&BALL, 1);
            }
        };
        turn(0);
        let cycles = time(n, turn);
        thread.join();
        cycles
    })
}
