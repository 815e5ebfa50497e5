//! SIGCHLD, calls that a signal interrupts, and signals among threads.

use crate::{LAST, note, runs};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use rt::abi::*;
use rt::process::{self, fork, getpid, in_child, wait};
use rt::signal::{self, handle, kill, raise, set_mask};
use rt::sys::{at, at_mut};
use rt::thread::{self, Thread};
use rt::{Errno, Suite, sys};

static STATUS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn child_ended(signal: i32, info: &mut Siginfo, context: &mut Ucontext) {
    STATUS.store(info.status() as usize, SeqCst);
    note(signal, info, context);
}

pub fn children(t: &mut Suite) {
    handle(SIGCHLD, child_ended, 0, 0);
    let child = fork(|| 7);
    t.is("SIGCHLD: wait succeeds", wait(child).number(), 7);
    t.is("SIGCHLD: handler ran", runs(), 1);
    t.is("SIGCHLD: CLD_EXITED", LAST[1].load(SeqCst) as isize, 1);
    t.is("SIGCHLD: pid", LAST[2].load(SeqCst) as isize, child);
    t.is("SIGCHLD: status", STATUS.load(SeqCst) as isize, 7);
    let child = fork(|| raise(SIGKILL) as i32);
    t.is(
        "SIGCHLD: killed child",
        wait(child).number(),
        1000 + SIGKILL as isize,
    );
    t.is("SIGCHLD: handler ran again", runs(), 1);
    t.is("SIGCHLD: CLD_KILLED", LAST[1].load(SeqCst) as isize, 2);
    t.is(
        "SIGCHLD: status is the signal",
        STATUS.load(SeqCst) as isize,
        SIGKILL as isize,
    );
    signal::action(SIGCHLD, SIG_IGN, 0, 0);
    let child = fork(|| 1);
    t.err(
        "SIGCHLD ignored: children are reaped at once",
        wait(child).number(),
        Errno::ECHILD,
    );
    signal::action(SIGCHLD, SIG_DFL, SA_NOCLDWAIT, 0);
    let child = fork(|| 1);
    t.err(
        "SA_NOCLDWAIT: the same",
        wait(child).number(),
        Errno::ECHILD,
    );
    signal::action(SIGCHLD, SIG_DFL, 0, 0);
    let child = fork(|| 9);
    t.is(
        "SIGCHLD default: the child waits to be reaped",
        wait(child).number(),
        9,
    );
    handle(SIGUSR2, note, 0, 0);
    let quiet = sys!(CLONE, SIGUSR2, 0, 0, 0, 0);
    if quiet == 0 {
        process::exit_group(0);
    }
    process::wait_options(quiet, WALL);
    t.is("clone: another exit signal", runs(), 1);
    signal::action(SIGUSR2, SIG_DFL, 0, 0);
}

/// A child that sends SIGUSR1 to this process after `ms` milliseconds, and again until it is killed:
/// so no wake-up can be lost.
fn alarm(ms: i64) -> isize {
    let parent = getpid();
    fork(move || {
        loop {
            rt::time::sleep_ns(ms * 1_000_000);
            if kill(parent, SIGUSR1) != 0 {
                return 1;
            }
        }
    })
}

fn silence(child: isize) {
    kill(child, SIGKILL);
    wait(child);
    runs();
}

/// Runs `call` with a signal on its way; its result.
fn interrupted_by(flags: usize, call: impl FnOnce() -> isize) -> isize {
    handle(SIGUSR1, note, flags, 0);
    let child = alarm(3);
    let got = call();
    silence(child);
    got
}

pub fn interrupted(t: &mut Suite) {
    t.err(
        "pause: EINTR",
        interrupted_by(0, || sys!(PAUSE)),
        Errno::EINTR,
    );
    t.err(
        "pause: EINTR in spite of SA_RESTART",
        interrupted_by(SA_RESTART, || sys!(PAUSE)),
        Errno::EINTR,
    );
    let mut left = Timespec::default();
    let long = Timespec { sec: 1000, nsec: 0 };
    let slept = interrupted_by(0, || sys!(NANOSLEEP, at(&long), at_mut(&mut left)));
    t.err("nanosleep: EINTR", slept, Errno::EINTR);
    t.ok(
        "nanosleep: what is left",
        left.sec == 999 && (1..1_000_000_000).contains(&left.nsec),
    );
    let mut fds = [0i32; 2];
    sys!(PIPE, at_mut(&mut fds));
    let mut byte = [0u8; 1];
    let read = interrupted_by(0, || sys!(READ, fds[0], at_mut(&mut byte), 1));
    t.err("read: EINTR", read, Errno::EINTR);
    pipe_restart(t, fds);
    let sleeper = fork(|| {
        loop {
            sys!(PAUSE);
        }
    });
    let waited = interrupted_by(0, || sys!(WAIT4, sleeper, 0, 0, 0));
    t.err("wait4: EINTR", waited, Errno::EINTR);
    kill(sleeper, SIGKILL);
    wait(sleeper);
    wait_restart(t);
    let word = AtomicU32::new(0);
    let slept = interrupted_by(0, || thread::futex_wait(&word, 0));
    t.err("futex: EINTR", slept, Errno::EINTR);
    let full = interrupted_by(0, || {
        let page = [0u8; 4096];
        loop {
            let wrote = sys!(WRITE, fds[1], at(&page), 4096);
            if wrote != 4096 {
                return wrote;
            }
        }
    });
    t.err("write: EINTR on a full pipe", full, Errno::EINTR);
    let none = 0u64;
    let suspended = interrupted_by(0, || sys!(RT_SIGSUSPEND, at(&none), 8));
    t.extra("rt_sigsuspend", suspended, Errno::EINTR.raw());
    sys!(CLOSE, fds[0]);
    sys!(CLOSE, fds[1]);
    ignored_does_not_interrupt(t);
    killed_asleep(t);
    signal::action(SIGUSR1, SIG_DFL, 0, 0);
}

/// With SA_RESTART a read goes on waiting after the handler.
fn pipe_restart(t: &mut Suite, fds: [i32; 2]) {
    handle(SIGUSR1, note, SA_RESTART, 0);
    let parent = getpid();
    let child = fork(|| {
        for _ in 0..3 {
            rt::time::sleep_ns(2_000_000);
            kill(parent, SIGUSR1);
        }
        rt::time::sleep_ns(2_000_000);
        sys!(WRITE, fds[1], at(b"!"), 1) as i32
    });
    let mut byte = [0u8; 1];
    t.is(
        "read: SA_RESTART",
        sys!(READ, fds[0], at_mut(&mut byte), 1),
        1,
    );
    t.ok("read: handlers ran meanwhile", runs() >= 1);
    t.is("read: the sender", wait(child).number(), 1);
}

fn wait_restart(t: &mut Suite) {
    handle(SIGUSR1, note, SA_RESTART, 0);
    let parent = getpid();
    let child = fork(|| {
        rt::time::sleep_ns(2_000_000);
        kill(parent, SIGUSR1);
        rt::time::sleep_ns(2_000_000);
        13
    });
    let mut status = 0u32;
    t.is(
        "wait4: SA_RESTART",
        sys!(WAIT4, child, at_mut(&mut status), 0, 0),
        child,
    );
    t.is("wait4: a handler ran meanwhile", runs(), 1);
    t.is("wait4: status", (status >> 8) as isize, 13);
}

fn ignored_does_not_interrupt(t: &mut Suite) {
    signal::action(SIGUSR1, SIG_IGN, 0, 0);
    let child = alarm(1);
    let before = rt::time::now_ns();
    let ten = Timespec {
        sec: 0,
        nsec: 10_000_000,
    };
    let slept = sys!(NANOSLEEP, at(&ten), 0);
    t.is("nanosleep: an ignored signal does not interrupt", slept, 0);
    t.ok(
        "nanosleep: all of it",
        rt::time::now_ns() - before >= 10_000_000,
    );
    silence(child);
    let child = alarm(1);
    handle(SIGUSR1, note, 0, 0);
    set_mask(bit(SIGUSR1));
    t.is(
        "nanosleep: nor does a blocked one",
        sys!(NANOSLEEP, at(&ten), 0),
        0,
    );
    silence(child);
    set_mask(0);
    runs();
}

fn killed_asleep(t: &mut Suite) {
    let mut fds = [0i32; 2];
    sys!(PIPE, at_mut(&mut fds));
    let sleepers: [&dyn Fn() -> isize; 5] = [
        &|| sys!(PAUSE),
        &|| sys!(READ, fds[0], at_mut(&mut [0u8; 1]), 1),
        &|| sys!(NANOSLEEP, at(&Timespec { sec: 1000, nsec: 0 }), 0),
        &|| thread::futex_wait(&AtomicU32::new(0), 0),
        &|| {
            fork(|| {
                rt::time::sleep_ns(50_000_000);
                0
            });
            sys!(WAIT4, -1isize, 0, 0, 0)
        },
    ];
    for sleeper in sleepers {
        let child = fork(|| {
            set_mask(u64::MAX);
            sleeper();
            1
        });
        rt::time::sleep_ns(2_000_000);
        kill(child, SIGKILL);
        t.is(
            "SIGKILL: in a sleeping call",
            wait(child).number(),
            1000 + SIGKILL as isize,
        );
    }
    sys!(CLOSE, fds[0]);
    sys!(CLOSE, fds[1]);
}

static HANDLED_BY: AtomicUsize = AtomicUsize::new(0);
static STOP: AtomicU32 = AtomicU32::new(0);

extern "C" fn who(signal: i32, info: &mut Siginfo, context: &mut Ucontext) {
    HANDLED_BY.store(sys!(GETTID) as usize, SeqCst);
    note(signal, info, context);
}

extern "C" fn block_and_wait(mask: usize) -> i32 {
    set_mask(mask as u64);
    STOP.fetch_add(1, SeqCst);
    while STOP.load(SeqCst) < 100 {
        rt::time::sleep_ns(500_000);
    }
    0
}

pub fn threads(t: &mut Suite) {
    handle(SIGUSR1, who, 0, 0);
    let (blocking, open) = (Thread::new(), Thread::new());
    blocking.start(block_and_wait, bit(SIGUSR1) as usize);
    let tid = open.start(block_and_wait, 0);
    while STOP.load(SeqCst) < 2 {
        sys!(SCHED_YIELD);
    }
    set_mask(bit(SIGUSR1));
    raise(SIGUSR1);
    let mut patience = 5000;
    while HANDLED_BY.load(SeqCst) == 0 && patience > 0 {
        rt::time::sleep_ns(200_000);
        patience -= 1;
    }
    t.is(
        "threads: the one that does not block it takes it",
        HANDLED_BY.swap(0, SeqCst) as isize,
        tid,
    );
    set_mask(0);
    let directed = sys!(TGKILL, getpid(), tid, SIGUSR1);
    t.extra("tgkill", directed, 0);
    if directed == 0 {
        while HANDLED_BY.load(SeqCst) == 0 {
            rt::time::sleep_ns(200_000);
        }
        t.is(
            "tgkill: that thread takes it",
            HANDLED_BY.swap(0, SeqCst) as isize,
            tid,
        );
    }
    STOP.store(100, SeqCst);
    blocking.join();
    open.join();
    blocking.free();
    open.free();
    runs();
    signal::action(SIGUSR1, SIG_DFL, 0, 0);
    let end = in_child(|| {
        let thread = Thread::new();
        thread.start(block_and_wait, 0);
        raise(SIGTERM);
        0
    });
    t.is(
        "threads: a fatal signal ends all",
        end.number(),
        1000 + SIGTERM as isize,
    );
}
