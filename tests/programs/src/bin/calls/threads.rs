//! Threads: clone, futex, TLS, exit, exit_group, exec.

use crate::files::write;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use rt::abi::*;
use rt::process::{self, getpid, in_child};
use rt::sys::at;
use rt::thread::{self, FLAGS, Thread, futex_wait, futex_wake};
use rt::{Args, Errno, Suite, sys};

pub fn run(t: &mut Suite, args: &Args) {
    basics(t);
    tls(t);
    futexes(t);
    counting(t);
    endings(t, args);
}

static SEEN: AtomicUsize = AtomicUsize::new(0);
static WORD: AtomicU32 = AtomicU32::new(0);

extern "C" fn note_ids(parent: usize) -> i32 {
    let fine = getpid() as usize == parent && sys!(GETTID) != getpid();
    SEEN.store(1 + usize::from(fine), SeqCst);
    0
}

fn basics(t: &mut Suite) {
    let thread = Thread::new();
    let tid = thread.start(note_ids, getpid() as usize);
    t.ok("clone: a thread", tid > 0 && tid != getpid());
    thread.join();
    t.is(
        "thread: one pid, own tid, shared memory",
        SEEN.swap(0, SeqCst) as isize,
        2,
    );
    t.err(
        "thread: no child to wait for",
        sys!(WAIT4, -1isize, 0, WALL, 0),
        Errno::ECHILD,
    );
    for _ in 0..50 {
        thread.start(note_ids, getpid() as usize);
        thread.join();
    }
    t.is(
        "thread: the stack can be used again",
        SEEN.swap(0, SeqCst) as isize,
        2,
    );
    thread.free();
}

/// The word at fs:0.
fn tls_word() -> usize {
    let word;
    // SAFETY: the callers point FS at a live word.
    unsafe { core::arch::asm!("mov {}, fs:[0]", out(reg) word, options(readonly, nostack)) };
    word
}

extern "C" fn check_tls(want: usize) -> i32 {
    for _ in 0..20 {
        if tls_word() != want {
            SEEN.fetch_add(1, SeqCst);
        }
        sys!(SCHED_YIELD);
    }
    0
}

fn tls(t: &mut Suite) {
    let blocks = [111usize, 222, 333, 444];
    let mut old = 0usize;
    sys!(ARCH_PRCTL, ARCH_GET_FS, rt::sys::at_mut(&mut old));
    t.is(
        "arch_prctl: set FS",
        sys!(ARCH_PRCTL, ARCH_SET_FS, at(&blocks[0])),
        0,
    );
    let threads = [Thread::new(), Thread::new(), Thread::new()];
    for (thread, block) in threads.iter().zip(&blocks[1..]) {
        thread.start_with(FLAGS | CLONE_SETTLS, check_tls, *block, at(block));
    }
    check_tls(111);
    threads.iter().for_each(Thread::join);
    t.is(
        "clone: CLONE_SETTLS, an FS for each thread",
        SEEN.swap(0, SeqCst) as isize,
        0,
    );
    let end = in_child(|| i32::from(tls_word() != 111));
    t.is("fork: FS is copied", end.number(), 0);
    sys!(ARCH_PRCTL, ARCH_SET_FS, old);
    threads.into_iter().for_each(Thread::free);
}

extern "C" fn wake_later(nr: usize) -> i32 {
    rt::time::sleep_ns(2_000_000);
    WORD.store(1, SeqCst);
    futex_wake(&WORD, nr as u32) as i32
}

extern "C" fn sleep_on_word(_: usize) -> i32 {
    SEEN.fetch_add(1, SeqCst);
    while WORD.load(SeqCst) == 0 {
        futex_wait(&WORD, 0);
    }
    0
}

fn futexes(t: &mut Suite) {
    WORD.store(5, SeqCst);
    t.err(
        "futex: wait, value differs",
        futex_wait(&WORD, 4),
        Errno::EAGAIN,
    );
    t.is("futex: wake nobody", futex_wake(&WORD, 10), 0);
    let short = Timespec {
        sec: 0,
        nsec: 2_000_000,
    };
    let word = WORD.as_ptr();
    let before = rt::time::now_ns();
    t.err(
        "futex: wait, timeout",
        sys!(FUTEX, word, FUTEX_WAIT, 5, at(&short)),
        Errno::ETIMEDOUT,
    );
    t.ok(
        "futex: not before the timeout",
        rt::time::now_ns() - before >= 2_000_000,
    );
    let bad = Timespec {
        sec: 0,
        nsec: 1_000_000_000,
    };
    t.err(
        "futex: bad timeout",
        sys!(FUTEX, word, FUTEX_WAIT, 5, at(&bad)),
        Errno::EINVAL,
    );
    t.err(
        "futex: not aligned",
        sys!(FUTEX, word as usize + 1, FUTEX_WAIT, 0, 0),
        Errno::EINVAL,
    );
    t.err(
        "futex: unmapped",
        sys!(FUTEX, 8, FUTEX_WAIT, 0, 0),
        Errno::EFAULT,
    );
    t.err(
        "futex: kernel address",
        sys!(FUTEX, 0xffff_8000_0000_0000usize, FUTEX_WAKE, 1, 0),
        Errno::EFAULT,
    );
    t.err(
        "futex: unknown operation",
        sys!(FUTEX, word, 99, 0, 0),
        Errno::ENOSYS,
    );
    WORD.store(0, SeqCst);
    let thread = Thread::new();
    thread.start(wake_later, 1);
    while WORD.load(SeqCst) == 0 {
        futex_wait(&WORD, 0);
    }
    t.ok("futex: woken", WORD.load(SeqCst) == 1);
    thread.join();
    WORD.store(0, SeqCst);
    let sleepers = [Thread::new(), Thread::new(), Thread::new(), Thread::new()];
    for sleeper in &sleepers {
        sleeper.start(sleep_on_word, 0);
    }
    while SEEN.load(SeqCst) < 4 {
        sys!(SCHED_YIELD);
    }
    rt::time::sleep_ns(5_000_000);
    WORD.store(1, SeqCst);
    let two = futex_wake(&WORD, 2);
    let rest = futex_wake(&WORD, 100);
    t.is("futex: wake two of four", two, 2);
    t.is("futex: wake the rest", rest, 2);
    sleepers.iter().for_each(Thread::join);
    SEEN.store(0, SeqCst);
    shared_futex(t);
    sleepers.into_iter().for_each(Thread::free);
    thread.free();
}

/// A futex in memory shared between processes.
fn shared_futex(t: &mut Suite) {
    let page = sys!(MMAP, 0, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1isize, 0) as usize;
    // SAFETY: a fresh shared page, aligned, mapped until the end of this function.
    let word = unsafe { &*(page as *const AtomicU32) };
    let child = process::fork(|| {
        while word.load(SeqCst) == 0 {
            sys!(FUTEX, page, FUTEX_WAIT, 0, 0);
        }
        9
    });
    rt::time::sleep_ns(3_000_000);
    word.store(1, SeqCst);
    sys!(FUTEX, page, FUTEX_WAKE, 1);
    t.is("futex: across processes", process::wait(child).number(), 9);
    sys!(MUNMAP, page, PAGE);
}

static LOCK: AtomicU32 = AtomicU32::new(0);
static mut COUNTER: usize = 0;

/// A futex mutex: 0 free, 1 held, 2 held with sleepers.
fn lock() {
    if LOCK.compare_exchange(0, 1, SeqCst, SeqCst).is_ok() {
        return;
    }
    while LOCK.swap(2, SeqCst) != 0 {
        futex_wait(&LOCK, 2);
    }
}

fn unlock() {
    if LOCK.swap(0, SeqCst) == 2 {
        futex_wake(&LOCK, 1);
    }
}

extern "C" fn count(rounds: usize) -> i32 {
    for i in 0..rounds {
        lock();
        // SAFETY: LOCK guards COUNTER.
        unsafe {
            let value = core::ptr::read_volatile(&raw const COUNTER);
            if i % 64 == 0 {
                sys!(SCHED_YIELD);
            }
            core::ptr::write_volatile(&raw mut COUNTER, value + 1);
        }
        unlock();
    }
    0
}

fn counting(t: &mut Suite) {
    const ROUNDS: usize = 2000;
    let threads: [Thread; 8] = core::array::from_fn(|_| Thread::new());
    let started = threads
        .iter()
        .filter(|thread| thread.start(count, ROUNDS) > 0)
        .count();
    t.is("clone: 8 threads", started as isize, 8);
    threads.iter().for_each(Thread::join);
    // SAFETY: all threads have ended.
    let total = unsafe { core::ptr::read_volatile(&raw const COUNTER) };
    t.is(
        "futex: a mutex counts right",
        total as isize,
        (8 * ROUNDS) as isize,
    );
    threads.into_iter().for_each(Thread::free);
}

extern "C" fn exit_all(code: usize) -> i32 {
    process::exit_group(code as i32)
}

extern "C" fn forever(_: usize) -> i32 {
    loop {
        sys!(PAUSE);
    }
}

extern "C" fn spin(_: usize) -> i32 {
    loop {
        core::hint::spin_loop();
    }
}

extern "C" fn outlive(code: usize) -> i32 {
    rt::time::sleep_ns(5_000_000);
    process::exit_thread(code as i32)
}

extern "C" fn fork_here(_: usize) -> i32 {
    let end = in_child(|| i32::from(sys!(GETTID) != getpid()));
    SEEN.store(end.number() as usize + 1, SeqCst);
    0
}

/// The program's path, for a thread that executes it.
static PATH: AtomicUsize = AtomicUsize::new(0);

extern "C" fn exec_here(_: usize) -> i32 {
    let pid = sys!(GETTID) == getpid();
    let argv = [at(b"calls\0"), at(b"@group\0"), 0];
    if !pid {
        sys!(EXECVE, PATH.load(SeqCst), argv.as_ptr(), 0);
    }
    process::exit_group(3)
}

extern "C" fn fault(_: usize) -> i32 {
    crate::memory::peek(0) as i32
}

fn endings(t: &mut Suite, args: &Args) {
    let with_threads = |bodies: [extern "C" fn(usize) -> i32; 3], code: usize| {
        in_child(|| {
            let _threads = bodies.map(|body| {
                let thread = Thread::new();
                // The slot's tid word moves with it: these threads are never joined.
                let flags = FLAGS & !(CLONE_CHILD_CLEARTID | CLONE_PARENT_SETTID);
                thread.start_with(flags, body, code, 0);
                thread
            });
            rt::time::sleep_ns(1_000_000_000);
            50
        })
        .number()
    };
    t.is(
        "exit_group: from a thread",
        with_threads([forever, spin, exit_all], 21),
        21,
    );
    t.is(
        "fault: in a thread ends the process",
        with_threads([forever, spin, fault], 0),
        1000 + SIGSEGV as isize,
    );
    let end = in_child(|| {
        let thread = Thread::new();
        thread.start(forever, 0);
        22
    });
    t.is("exit_group: with a sleeping thread", end.number(), 22);
    let end = in_child(|| {
        let thread = Thread::new();
        thread.start(outlive, 23);
        process::exit_thread(24)
    });
    t.is(
        "exit: the first thread ends first, the last one's code counts",
        end.number(),
        23,
    );
    let child = process::fork(|| {
        let thread = Thread::new();
        thread.start(spin, 0);
        forever(0)
    });
    rt::time::sleep_ns(2_000_000);
    rt::signal::kill(child, SIGKILL);
    t.is(
        "kill: all threads",
        process::wait(child).number(),
        1000 + SIGKILL as isize,
    );
    let thread = Thread::new();
    thread.start(fork_here, 0);
    thread.join();
    t.is(
        "fork: from a thread, the child has one",
        SEEN.swap(0, SeqCst) as isize,
        1,
    );
    thread.free();
    PATH.store(args.execfn().as_ptr() as usize, SeqCst);
    let end = in_child(|| {
        sys!(SETPGID, 0, 0);
        let threads = [Thread::new(), Thread::new()];
        threads[0].start(forever, 0);
        threads[1].start(exec_here, 0);
        forever(0)
    });
    t.is(
        "execve: from a thread, under the process's pid",
        end.number(),
        42,
    );
    let end = in_child(|| {
        let (r, w) = crate::pipes::pipe(0);
        let thread = Thread::new();
        let flags = FLAGS & !CLONE_FILES;
        thread.start_with(flags, close_fd, w as usize, 0);
        thread.join();
        i32::from(write(w, b"x") != 1 || r < 0)
    });
    t.is(
        "clone: without CLONE_FILES, own descriptors",
        end.number(),
        0,
    );
    t.ok("threads: own stack size", thread::STACK == 65536);
}

extern "C" fn close_fd(fd: usize) -> i32 {
    crate::files::close(fd as isize) as i32
}
