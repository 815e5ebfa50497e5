//! Waiting for files and for times: poll, select, eventfd, timers that signal; limits.

use crate::files::{close, open, read, write};
use crate::pipes::pipe;
use rt::abi::*;
use rt::process::{fork, in_child, wait};
use rt::sys::{at, at_mut};
use rt::{Errno, Suite, sys};

const POLLIN: i16 = 1;
const POLLOUT: i16 = 4;
const POLLHUP: i16 = 0x10;
const POLLNVAL: i16 = 0x20;
const RLIMIT_NPROC: usize = 6;
const RLIMIT_NOFILE: usize = 7;

pub fn run(t: &mut Suite) {
    polling(t);
    selecting(t);
    event_counters(t);
    alarms(t);
    timers(t);
    limits(t);
}

#[repr(C)]
struct PollFd {
    fd: i32,
    events: i16,
    revents: i16,
}

fn poll_one(fd: isize, events: i16, timeout_ms: isize) -> (isize, i16) {
    let mut p = PollFd {
        fd: fd as i32,
        events,
        revents: 77,
    };
    let got = sys!(POLL, at_mut(&mut p), 1, timeout_ms);
    (got, p.revents)
}

fn elapsed_ms(body: impl FnOnce()) -> i64 {
    let before = rt::time::now_ns();
    body();
    (rt::time::now_ns() - before) / 1_000_000
}

/// A child that sleeps for some milliseconds and then runs `body`.
fn later(ms: i64, body: impl FnOnce()) -> isize {
    fork(|| {
        let time = Timespec {
            sec: 0,
            nsec: ms * 1_000_000,
        };
        sys!(NANOSLEEP, at(&time), 0);
        body();
        0
    })
}

fn polling(t: &mut Suite) {
    let (reader, writer) = pipe(0);
    t.ok("poll: nothing yet", poll_one(reader, POLLIN, 0) == (0, 0));
    t.ok("poll: room", poll_one(writer, POLLOUT, 0) == (1, POLLOUT));
    let took = elapsed_ms(|| _ = poll_one(reader, POLLIN, 20));
    t.ok("poll: waits for its time", took >= 20);
    let child = later(20, || _ = write(writer, b"x"));
    t.ok(
        "poll: woken by a write",
        poll_one(reader, POLLIN, -1) == (1, POLLIN),
    );
    wait(child);
    let mut byte = [0];
    read(reader, &mut byte);
    let child = later(20, || _ = write(writer, b"x"));
    let mut both = [
        PollFd {
            fd: -1,
            events: POLLIN,
            revents: 5,
        },
        PollFd {
            fd: reader as i32,
            events: POLLIN,
            revents: 0,
        },
    ];
    t.is(
        "poll: one of several",
        sys!(POLL, at_mut(&mut both), 2, -1isize),
        1,
    );
    t.ok(
        "poll: a negative descriptor is skipped",
        both[0].revents == 0,
    );
    wait(child);
    t.ok("poll: closed", poll_one(77777, POLLIN, 0) == (1, POLLNVAL));
    close(writer);
    read(reader, &mut byte);
    t.ok(
        "poll: hung up",
        poll_one(reader, POLLIN, -1) == (1, POLLHUP),
    );
    close(reader);
    t.err("poll: a bad pointer", sys!(POLL, 1, 1, 0), Errno::EFAULT);
    t.is("poll: nothing to wait for", sys!(POLL, 0, 0, 5), 0);
    let time = Timespec {
        sec: 0,
        nsec: 5_000_000,
    };
    t.is("ppoll: times out", sys!(PPOLL, 0, 0, at(&time), 0, 8), 0);
    let bad = Timespec { sec: 0, nsec: -1 };
    t.err(
        "ppoll: a bad time",
        sys!(PPOLL, 0, 0, at(&bad), 0, 8),
        Errno::EINVAL,
    );
    t.err(
        "ppoll: a mask of a wrong size",
        sys!(PPOLL, 0, 0, 0, at(&bad), 7),
        Errno::EINVAL,
    );
}

fn selecting(t: &mut Suite) {
    let (reader, writer) = pipe(0);
    let bit = |fd: isize| 1u64 << fd;
    let mut sets = [bit(reader), bit(writer), 0u64];
    let nr = reader.max(writer) + 1;
    let zero = [0i64, 0];
    let select = |sets: &mut [u64; 3]| {
        let [r, w, x] = sets;
        sys!(SELECT, nr, at_mut(r), at_mut(w), at_mut(x), at(&zero))
    };
    t.is("select: one is ready", select(&mut sets), 1);
    t.ok("select: the other is cleared", sets == [0, bit(writer), 0]);
    write(writer, b"x");
    let mut sets = [bit(reader), bit(writer), 0];
    t.is("select: both", select(&mut sets), 2);
    close(reader);
    let mut sets = [bit(reader), 0, 0];
    t.err("select: closed", select(&mut sets), Errno::EBADF);
    close(writer);
    t.err(
        "select: a negative number",
        sys!(SELECT, -1isize, 0, 0, 0, 0),
        Errno::EINVAL,
    );
}

fn event_counters(t: &mut Suite) {
    let fd = sys!(EVENTFD2, 3, O_NONBLOCK);
    t.ok("eventfd2", fd >= 0);
    let mut value = 0u64;
    let take = |value: &mut u64| sys!(READ, fd, at_mut(value), 8);
    t.is("eventfd: read", take(&mut value), 8);
    t.is("eventfd: what it was made with", value as isize, 3);
    t.err("eventfd: empty", take(&mut value), Errno::EAGAIN);
    let add = |value: u64| sys!(WRITE, fd, at(&value), 8);
    t.is("eventfd: write", add(5), 8);
    t.is("eventfd: again", add(6), 8);
    t.ok(
        "eventfd: poll",
        poll_one(fd, POLLIN | POLLOUT, 0) == (1, POLLIN | POLLOUT),
    );
    take(&mut value);
    t.is("eventfd: the sum", value as isize, 11);
    t.err("eventfd: too large", add(u64::MAX), Errno::EINVAL);
    t.is("eventfd: the largest", add(u64::MAX - 1), 8);
    t.err("eventfd: full", add(1), Errno::EAGAIN);
    t.err(
        "eventfd: a short read",
        sys!(READ, fd, at_mut(&mut value), 7),
        Errno::EINVAL,
    );
    close(fd);
    let fd = sys!(EVENTFD2, 2, 1);
    sys!(READ, fd, at_mut(&mut value), 8);
    t.is("eventfd: as a semaphore", value as isize, 1);
    close(fd);
    t.err(
        "eventfd2: unknown flag",
        sys!(EVENTFD2, 0, 0x10),
        Errno::EINVAL,
    );
    let fd = sys!(EVENTFD2, 0, 0);
    let child = later(20, || {
        let one = 1u64;
        sys!(WRITE, fd, at(&one), 8);
    });
    t.is(
        "eventfd: a read waits",
        sys!(READ, fd, at_mut(&mut value), 8),
        8,
    );
    wait(child);
    close(fd);
}

fn alarms(t: &mut Suite) {
    let killed = in_child(|| {
        let soon = [0i64, 0, 0, 20_000];
        sys!(SETITIMER, 0, at(&soon), 0);
        sys!(PAUSE);
        0
    });
    t.is("setitimer: SIGALRM ends a process", killed.number(), 1014);
    t.is("alarm: none was set", sys!(ALARM, 100), 0);
    let left = sys!(ALARM, 0);
    t.ok("alarm: what was left", left == 100 || left == 99);
    let mut old = [9i64; 4];
    let far = [7i64, 0, 50, 0];
    sys!(SETITIMER, 0, at(&far), at_mut(&mut old));
    t.ok("setitimer: none was set", old == [0; 4]);
    let none = [0i64; 4];
    sys!(SETITIMER, 0, at(&none), at_mut(&mut old));
    t.ok(
        "setitimer: the old one",
        old[0] == 7 && (old[2] == 49 || old[2] == 50),
    );
    t.err(
        "setitimer: a bad time",
        sys!(SETITIMER, 0, at(&[0i64, 1_000_000, 0, 0]), 0),
        Errno::EINVAL,
    );
    t.err(
        "setitimer: no such timer",
        sys!(SETITIMER, 9, at(&none), 0),
        Errno::EINVAL,
    );
    let inherited = in_child(|| {
        sys!(ALARM, 100);
        in_child(|| sys!(ALARM, 0) as i32).number() as i32
    });
    t.is("alarm: not inherited", inherited.number(), 0);
}

fn timers(t: &mut Suite) {
    let mut id = 77i32;
    t.is(
        "timer_create",
        sys!(TIMER_CREATE, CLOCK_MONOTONIC, 0, at_mut(&mut id)),
        0,
    );
    let far = [3i64, 0, 100, 0];
    t.is("timer_settime", sys!(TIMER_SETTIME, id, 0, at(&far), 0), 0);
    let mut now = [0i64; 4];
    t.is(
        "timer_gettime",
        sys!(TIMER_GETTIME, id, at_mut(&mut now)),
        0,
    );
    t.ok(
        "timer_gettime: period and time left",
        now[0] == 3 && (99..=100).contains(&now[2]),
    );
    t.is("timer_delete", sys!(TIMER_DELETE, id), 0);
    t.err("timer_delete: twice", sys!(TIMER_DELETE, id), Errno::EINVAL);
    t.err(
        "timer_settime: gone",
        sys!(TIMER_SETTIME, id, 0, at(&far), 0),
        Errno::EINVAL,
    );
    t.err(
        "timer_create: no such clock",
        sys!(TIMER_CREATE, 99, 0, at_mut(&mut id)),
        Errno::EINVAL,
    );
    let killed = in_child(|| {
        let mut id = 0i32;
        // sigev_value, SIGUSR1, SIGEV_SIGNAL.
        let event = [0u64, 10, 0, 0, 0, 0, 0, 0];
        sys!(TIMER_CREATE, CLOCK_REALTIME, at(&event), at_mut(&mut id));
        let mut now = Timespec::default();
        sys!(CLOCK_GETTIME, CLOCK_REALTIME, at_mut(&mut now));
        let soon = [0i64, 0, now.sec, now.nsec];
        sys!(TIMER_SETTIME, id, 1, at(&soon), 0);
        sys!(PAUSE);
        0
    });
    t.is(
        "timer: an absolute time, another signal",
        killed.number(),
        1010,
    );
}

fn limits(t: &mut Suite) {
    let get = |which: usize| {
        let mut limit = [0u64; 2];
        (sys!(GETRLIMIT, which, at_mut(&mut limit)), limit)
    };
    let set = |which: usize, limit: [u64; 2]| sys!(SETRLIMIT, which, at(&limit));
    t.err("getrlimit: no such resource", get(16).0, Errno::EINVAL);
    t.err(
        "setrlimit: no such resource",
        set(16, [0, 0]),
        Errno::EINVAL,
    );
    t.err(
        "setrlimit: soft above hard",
        set(RLIMIT_NOFILE, [2, 1]),
        Errno::EINVAL,
    );
    t.err(
        "setrlimit: a bad pointer",
        sys!(SETRLIMIT, RLIMIT_NOFILE, 1),
        Errno::EFAULT,
    );
    let inherited = in_child(|| {
        let hard = get(4).1[1];
        if set(4, [1 << 20, hard]) != 0 {
            return 1;
        }
        in_child(|| i32::from(get(4).1[0] != 1 << 20)).number() as i32
    });
    t.is("setrlimit: inherited", inherited.number(), 0);
    let files = in_child(|| {
        let hard = get(RLIMIT_NOFILE).1[1];
        set(RLIMIT_NOFILE, [20, hard]);
        while open(c"/dev/null", O_RDONLY) >= 0 {}
        let last = open(c"/dev/null", O_RDONLY);
        i32::from(last != Errno::EMFILE.raw()) + 2 * i32::from(sys!(DUP, 0) != Errno::EMFILE.raw())
    });
    t.is("setrlimit: open files", files.number(), 0);
    let mut old = [0u64; 2];
    let prlimit = sys!(PRLIMIT64, 0, RLIMIT_NPROC, 0, at_mut(&mut old));
    t.ok(
        "prlimit64: reads",
        prlimit == 0 && old == get(RLIMIT_NPROC).1,
    );
    t.err(
        "prlimit64: no such process",
        sys!(PRLIMIT64, 999_999_999, 7, 0, 0),
        Errno::ESRCH,
    );
}
