//! Stopping and continuing: what wait tells of it, what signals the parent gets, groups that are orphaned.

use rt::abi::*;
use rt::process::{End, decode, exit_group, fork, getpid, in_child, wait};
use rt::signal::kill;
use rt::sys::{at, at_mut};
use rt::{Errno, Suite, sys};

const SIGTSTP: i32 = 20;
const SIGTTIN: i32 = 21;
const WSTOPPED: usize = 2;
const WEXITED: usize = 4;
const P_PID: usize = 1;
const CONTINUED: isize = 0xffff;

pub fn run(t: &mut Suite) {
    stop_and_continue(t);
    once_each(t);
    killed_while_stopped(t);
    by_waitid(t);
    parents_signal(t);
    orphaned(t);
    pending_stops(t);
}

/// What wait4 says of `pid` with `options`: its status, or the raw result where there is none.
fn status(pid: isize, options: usize) -> isize {
    let mut word = 0u32;
    match sys!(WAIT4, pid, at_mut(&mut word), options, 0) {
        got if got > 0 => word as isize,
        other => other,
    }
}

fn stopped(signal: i32) -> isize {
    (signal as isize) << 8 | 0x7f
}

/// A child that sleeps, in a group of its own: the one it comes from may be orphaned.
fn pauses() -> isize {
    let child = fork(|| {
        loop {
            sys!(PAUSE);
        }
    });
    sys!(SETPGID, child, child);
    child
}

fn stop_and_continue(t: &mut Suite) {
    let child = pauses();
    t.is(
        "wait4: running, WUNTRACED",
        status(child, WUNTRACED | WNOHANG),
        0,
    );
    kill(child, SIGSTOP);
    t.is("wait4: stopped", status(child, WUNTRACED), stopped(SIGSTOP));
    t.is(
        "wait4: running, WCONTINUED",
        status(child, WCONTINUED | WNOHANG),
        0,
    );
    kill(child, SIGCONT);
    t.is("wait4: continued", status(child, WCONTINUED), CONTINUED);
    kill(child, SIGTSTP);
    let either = WUNTRACED | WCONTINUED;
    t.is("wait4: SIGTSTP", status(child, either), stopped(SIGTSTP));
    kill(child, SIGTERM);
    t.is("wait4: stopped, SIGTERM waits", status(child, WNOHANG), 0);
    kill(child, SIGCONT);
    t.is(
        "wait4: continued, it ends",
        wait(child).number(),
        1000 + SIGTERM as isize,
    );
}

fn once_each(t: &mut Suite) {
    let child = pauses();
    kill(child, SIGSTOP);
    t.is(
        "wait4: the stop",
        status(child, WUNTRACED),
        stopped(SIGSTOP),
    );
    t.is("wait4: told once", status(child, WUNTRACED | WNOHANG), 0);
    kill(child, SIGSTOP);
    t.is(
        "wait4: stopped again is no stop",
        status(child, WUNTRACED | WNOHANG),
        0,
    );
    kill(child, SIGCONT);
    t.is("wait4: plain wait is not told", status(child, WNOHANG), 0);
    t.is("wait4: the other is", status(child, WCONTINUED), CONTINUED);
    kill(child, SIGCONT);
    t.is(
        "wait4: SIGCONT to who runs",
        status(child, WCONTINUED | WNOHANG),
        0,
    );
    kill(child, SIGKILL);
    wait(child);
}

fn killed_while_stopped(t: &mut Suite) {
    let child = pauses();
    kill(child, SIGSTOP);
    status(child, WUNTRACED);
    kill(child, SIGKILL);
    t.is(
        "SIGKILL ends who is stopped",
        wait(child).number(),
        1000 + SIGKILL as isize,
    );
    let stops_itself = fork(|| {
        kill(getpid(), SIGSTOP);
        7
    });
    t.is(
        "kill: SIGSTOP to oneself",
        status(stops_itself, WUNTRACED),
        stopped(SIGSTOP),
    );
    kill(stops_itself, SIGCONT);
    t.is("kill: and on", wait(stops_itself).number(), 7);
}

fn by_waitid(t: &mut Suite) {
    const WNOWAIT: usize = 0x0100_0000;
    let child = pauses();
    let mut info = [0i32; 32];
    let mut ask = |options| {
        let raw = sys!(WAITID, P_PID, child, at_mut(&mut info), options, 0);
        (raw, info[2], info[5 + 1])
    };
    kill(child, SIGSTOP);
    let looked = ask(WSTOPPED | WNOWAIT);
    t.ok("waitid: WSTOPPED, WNOWAIT", looked == (0, 5, SIGSTOP));
    t.ok("waitid: CLD_STOPPED", ask(WSTOPPED) == (0, 5, SIGSTOP));
    kill(child, SIGCONT);
    t.ok("waitid: CLD_CONTINUED", ask(WCONTINUED) == (0, 6, SIGCONT));
    kill(child, SIGKILL);
    t.ok("waitid: CLD_KILLED", ask(WEXITED) == (0, 2, SIGKILL));
}

/// A parent of its own with SIGCHLD blocked; the codes of the signals it gets within some seconds, as digits.
fn codes(flags: usize, patience_s: i64) -> End {
    in_child(|| {
        extern "C" fn nothing(_: i32, _: &mut Siginfo, _: &mut Ucontext) {}
        rt::signal::handle(SIGCHLD, nothing, flags, 0);
        let mask = bit(SIGCHLD);
        sys!(RT_SIGPROCMASK, SIG_BLOCK, at(&mask), 0, 8);
        let child = pauses();
        let mut seen = 0;
        let mut look = || {
            const RT_SIGTIMEDWAIT: usize = 128;
            let mut info = [0i32; 32];
            let patience = Timespec {
                sec: patience_s,
                nsec: 0,
            };
            // SAFETY: the buffers outlive the call.
            let got = unsafe {
                rt::sys::raw(
                    RT_SIGTIMEDWAIT,
                    [at(&mask), at_mut(&mut info), at(&patience), 8, 0, 0],
                )
            };
            seen = seen * 10 + if got > 0 { info[2] } else { 0 };
        };
        kill(child, SIGSTOP);
        status(child, WUNTRACED);
        look();
        kill(child, SIGCONT);
        status(child, WCONTINUED);
        look();
        kill(child, SIGKILL);
        wait(child);
        look();
        // Three digits do not fit an exit status; their sum by weights does.
        seen / 100 * 36 + seen / 10 % 10 * 6 + seen % 10
    })
}

fn parents_signal(t: &mut Suite) {
    t.is(
        "SIGCHLD: stopped, continued, killed",
        codes(0, 10).number(),
        5 * 36 + 6 * 6 + 2,
    );
    t.is("SIGCHLD: SA_NOCLDSTOP", codes(SA_NOCLDSTOP, 0).number(), 2);
}

/// What becomes of the group of a child that leads a session: nobody outside could continue it.
fn orphaned(t: &mut Suite) {
    for (name, signal) in [("SIGTSTP", SIGTSTP), ("SIGTTIN", SIGTTIN)] {
        let ended = in_child(|| {
            sys!(SETSID);
            kill(getpid(), signal);
            9
        });
        t.is(name, ended.number(), 9);
    }
    let child = fork(|| {
        sys!(SETSID);
        kill(getpid(), SIGSTOP);
        9
    });
    t.is(
        "SIGSTOP stops all the same",
        status(child, WUNTRACED),
        stopped(SIGSTOP),
    );
    kill(child, SIGCONT);
    wait(child);
    // A leader that ends leaves a stopped group behind: it is hung up and continued.
    let mut fds = [0i32; 2];
    sys!(PIPE, at_mut(&mut fds));
    let leader = fork(|| {
        sys!(SETSID);
        let member = fork(|| {
            sys!(SETPGID, 0, 0);
            sys!(CLOSE, fds[0]);
            kill(getpid(), SIGSTOP);
            exit_group(0)
        });
        status(member, WUNTRACED);
        0
    });
    sys!(CLOSE, fds[1]);
    wait(leader);
    let mut byte = 0u8;
    t.is(
        "an orphaned stopped group is hung up",
        sys!(READ, fds[0], at_mut(&mut byte), 1),
        0,
    );
    sys!(CLOSE, fds[0]);
}

fn pending_stops(t: &mut Suite) {
    let child = fork(|| {
        let mask = bit(SIGTSTP) | bit(SIGCONT);
        sys!(RT_SIGPROCMASK, SIG_BLOCK, at(&mask), 0, 8);
        let pending = || {
            let mut set = 0u64;
            sys!(RT_SIGPENDING, at_mut(&mut set), 8);
            i32::from(set & bit(SIGTSTP) != 0) + 2 * i32::from(set & bit(SIGCONT) != 0)
        };
        kill(getpid(), SIGTSTP);
        let first = pending();
        kill(getpid(), SIGCONT);
        let second = pending();
        kill(getpid(), SIGTSTP);
        first + 4 * second + 16 * pending()
    });
    t.is(
        "a stop and SIGCONT drive each other out",
        wait(child).number(),
        1 + 4 * 2 + 16,
    );
    t.is("decode: stopped", decode(0x137f).number(), -9999);
    t.err(
        "wait4: nobody is left",
        status(child, WUNTRACED),
        Errno::ECHILD,
    );
}
