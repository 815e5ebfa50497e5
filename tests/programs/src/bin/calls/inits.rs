//! The first processes of pid namespaces: with threads, replaced, nested, and what ends with them.

use crate::files::{close, read};
use crate::pipes::pipe;
use crate::process::as_namespace_init;
use rt::abi::*;
use rt::process::{exit_group, exit_thread, fork, getpid, in_child, wait};
use rt::signal::kill;
use rt::thread::{FLAGS, Thread};
use rt::{Args, Errno, Suite, sys};

pub fn run(t: &mut Suite, args: &Args) {
    second_namespaces(t);
    threads_of_init(t);
    exec_by_a_thread(t, args);
    nested(t);
    orphans(t);
}

fn pause() -> i32 {
    loop {
        sys!(PAUSE);
    }
}

/// The error number of a clone with `flags`, 0 if it made a child.
fn clone_error(flags: usize) -> i32 {
    let raw = sys!(CLONE, flags | SIGCHLD as usize, 0, 0, 0, 0);
    if raw == 0 {
        exit_group(0);
    }
    if raw > 0 {
        wait(raw);
    }
    (-raw).max(0) as i32
}

extern "C" fn nothing(_: usize) -> i32 {
    0
}

fn second_namespaces(t: &mut Suite) {
    let twice = in_child(|| {
        sys!(UNSHARE, CLONE_NEWPID);
        (-sys!(UNSHARE, CLONE_NEWPID)) as i32
    });
    let invalid = Errno::EINVAL.0 as isize;
    t.is("unshare: a second time", twice.number(), invalid);
    let cloned = in_child(|| {
        sys!(UNSHARE, CLONE_NEWPID);
        clone_error(CLONE_NEWPID)
    });
    t.is(
        "clone: CLONE_NEWPID after unshare",
        cloned.number(),
        invalid,
    );
    let thread = in_child(|| {
        sys!(UNSHARE, CLONE_NEWPID);
        (-Thread::new().start(nothing, 0)) as i32
    });
    t.is("clone: a thread after unshare", thread.number(), invalid);
    let both = in_child(|| (-Thread::new().start_with(FLAGS | CLONE_NEWPID, nothing, 0, 0)) as i32);
    t.is(
        "clone: a thread in a namespace of its own",
        both.number(),
        invalid,
    );
    let sibling = as_namespace_init(|| clone_error(CLONE_PARENT));
    t.is(
        "clone: CLONE_PARENT by a first process",
        sibling.number(),
        invalid,
    );
}

/// The first thread of an init has gone when this runs: the namespace goes on until this one ends, too.
extern "C" fn goes_on(write_end: usize) -> i32 {
    let child = fork(|| i32::from(sys!(GETPPID) != 1));
    let fine = child > 2 && wait(child).number() == 0;
    let orphan = in_child(|| {
        fork(|| {
            while sys!(GETPPID) != 1 {
                sys!(SCHED_YIELD);
            }
            0
        });
        0
    });
    let reaped = wait(-1).number() == 0 && orphan.number() == 0;
    let verdict = [b'0' + u8::from(fine) + 2 * u8::from(reaped)];
    sys!(WRITE, write_end, verdict.as_ptr(), 1);
    fork(pause);
    exit_thread(5)
}

fn threads_of_init(t: &mut Suite) {
    let (r, w) = pipe(0);
    let end = as_namespace_init(|| {
        close(r);
        let thread = Thread::new();
        if thread.start(goes_on, w as usize) <= 0 {
            return 97;
        }
        exit_thread(4)
    });
    close(w);
    t.is("init: its status is its last thread's", end.number(), 5);
    let mut said = [0u8; 2];
    t.is("init: one byte, and nobody left", read(r, &mut said), 1);
    t.is(
        "init: its other thread forks and reaps",
        said[0] as isize,
        b'3' as isize,
    );
    t.is("init: with the last thread all end", read(r, &mut said), 0);
    close(r);
    let group = as_namespace_init(|| {
        let thread = Thread::new();
        fork(pause);
        thread.start(ends_all, 0);
        pause()
    });
    t.is("init: exit_group by its second thread", group.number(), 8);
}

extern "C" fn ends_all(_: usize) -> i32 {
    exit_group(8)
}

/// What a second thread execs: the suite's own program, in the role that checks its process id.
static PROGRAM: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(0);

extern "C" fn execs(_: usize) -> i32 {
    let path = PROGRAM.load(core::sync::atomic::Ordering::Relaxed);
    let argv = [path, c"@pid".as_ptr() as usize, c"1".as_ptr() as usize, 0];
    sys!(EXECVE, path, argv.as_ptr(), [0usize].as_ptr());
    exit_group(96)
}

fn exec_by_a_thread(t: &mut Suite, args: &Args) {
    PROGRAM.store(
        args.execfn().as_ptr() as usize,
        core::sync::atomic::Ordering::Relaxed,
    );
    let replaced = as_namespace_init(|| {
        let thread = Thread::new();
        thread.start(execs, 0);
        pause()
    });
    t.is(
        "init: a thread that execs is process 1",
        replaced.number(),
        42,
    );
    let leaderless = as_namespace_init(|| {
        let thread = Thread::new();
        thread.start(execs, 0);
        exit_thread(7)
    });
    t.is(
        "init: also when the first thread has gone",
        leaderless.number(),
        42,
    );
}

/// `depth` namespaces further down, each first process with a child that sleeps; the innermost sleeps, too.
fn tower(depth: u32, write_end: isize) -> i32 {
    fork(pause);
    if depth == 0 {
        sys!(WRITE, write_end, c"x".as_ptr(), 1);
        return pause();
    }
    let raw = sys!(CLONE, CLONE_NEWPID | SIGCHLD as usize, 0, 0, 0, 0);
    if raw == 0 {
        exit_group(tower(depth - 1, write_end));
    }
    pause()
}

fn nested(t: &mut Suite) {
    let (r, w) = pipe(0);
    let raw = sys!(CLONE, CLONE_NEWPID | SIGCHLD as usize, 0, 0, 0, 0);
    if raw == 0 {
        close(r);
        exit_group(tower(5, w));
    }
    close(w);
    let mut byte = [0u8; 1];
    t.is("nested: six namespaces of two stand", read(r, &mut byte), 1);
    kill(raw, SIGKILL);
    t.is(
        "nested: the outermost is killed",
        wait(raw).number(),
        1000 + SIGKILL as isize,
    );
    t.is("nested: and all with it", read(r, &mut byte), 0);
    close(r);
    // One in the middle: its own go, the one above stays.
    let middle = as_namespace_init(|| {
        let (r, w) = pipe(0);
        let inner = sys!(CLONE, CLONE_NEWPID | SIGCHLD as usize, 0, 0, 0, 0);
        if inner == 0 {
            close(r);
            exit_group(tower(2, w));
        }
        close(w);
        let mut byte = [0u8; 1];
        if read(r, &mut byte) != 1 {
            return 1;
        }
        kill(inner, SIGKILL);
        let ended = wait(inner).number() == 1000 + SIGKILL as isize && read(r, &mut byte) == 0;
        i32::from(!ended) + 2 * i32::from(in_child(|| 0).number() != 0)
    });
    t.is("nested: one in the middle", middle.number(), 0);
}

fn orphans(t: &mut Suite) {
    let inherited = as_namespace_init(|| {
        let child = fork(|| {
            fork(|| {
                while sys!(GETPPID) != 1 {
                    sys!(SCHED_YIELD);
                }
                9
            });
            0
        });
        wait(child);
        wait(-1).number() as i32
    });
    t.is("orphans: are the first process's", inherited.number(), 9);
    let joined = in_child(|| {
        let init = sys!(CLONE, CLONE_NEWPID | SIGCHLD as usize, 0, 0, 0, 0);
        if init == 0 {
            exit_group(pause());
        }
        let fd = sys!(PIDFD_OPEN, init, 0);
        sys!(SETNS, fd, CLONE_NEWPID);
        let member = fork(pause);
        kill(init, SIGKILL);
        let second = wait(member).number() == 1000 + SIGKILL as isize;
        let first = wait(init).number() == 1000 + SIGKILL as isize;
        i32::from(!(first && second)) + 2 * i32::from(clone_error(0) != Errno::ENOMEM.0 as i32)
    });
    t.is(
        "orphans: one who joined dies with the others, its parent reaps it",
        joined.number(),
        0,
    );
    let early = as_namespace_init(|| {
        let fine = kill(1, SIGKILL) == 0 && getpid() == 1;
        let inside = in_child(|| i32::from(kill(1, SIGKILL) != 0 || kill(1, SIGTERM) != 0));
        i32::from(!fine) + inside.number() as i32
    });
    t.is("init: no signal from inside ends it", early.number(), 0);
}
