//! Restartable sequences: what rseq(2) takes, what it keeps up to date, and that a section is never finished elsewhere.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use rt::abi::*;
use rt::process::in_child;
use rt::signal::{self, handle};
use rt::sys::at;
use rt::thread::Thread;
use rt::{Errno, Suite, sys};

/// What stands before each abort handler here.
const SIGNATURE: u32 = 0x5305_3053;
const LEN: usize = 32;
const UNREGISTER: usize = 1;
const THREADS: usize = 6;
const ROUNDS: usize = 30_000;

/// `struct rseq` as far as `mm_cid`.
#[repr(C, align(32))]
struct Area {
    cpu_id_start: AtomicU32,
    cpu_id: AtomicU32,
    section: AtomicUsize,
    flags: AtomicU32,
    node_id: AtomicU32,
    mm_cid: AtomicU32,
}

/// `struct rseq_cs`.
#[repr(C, align(32))]
#[derive(Default)]
struct Section {
    version_flags: u64,
    start: usize,
    len: usize,
    abort: usize,
}

impl Area {
    const fn new() -> Area {
        Area {
            cpu_id_start: AtomicU32::new(0),
            cpu_id: AtomicU32::new(u32::MAX),
            section: AtomicUsize::new(0),
            flags: AtomicU32::new(0),
            node_id: AtomicU32::new(0),
            mm_cid: AtomicU32::new(0),
        }
    }

    fn register(&self, flags: usize, signature: u32) -> isize {
        sys!(RSEQ, at(self), LEN, flags, signature)
    }
}

static AREA: Area = Area::new();
static AREAS: [Area; THREADS] = [const { Area::new() }; THREADS];
/// One per concurrency id, each on a line of its own.
static COUNTERS: [[AtomicUsize; 8]; 64] = [const { [const { AtomicUsize::new(0) }; 8] }; 64];
static MAX_CID: AtomicU32 = AtomicU32::new(0);
static FAILURES: AtomicUsize = AtomicUsize::new(0);
static READY: AtomicUsize = AtomicUsize::new(0);

pub fn run(t: &mut Suite) {
    if AREA.register(UNREGISTER, SIGNATURE) == Errno::ENOSYS.raw() {
        return t.extra("rseq", Errno::ENOSYS.raw(), 0);
    }
    arguments(t);
    current(t);
    inheritance(t);
    signals(t);
    concurrency(t);
}

fn arguments(t: &mut Suite) {
    let invalid = Errno::EINVAL;
    let call = |at: usize, len: usize, flags: usize| sys!(RSEQ, at, len, flags, SIGNATURE);
    let area = at(&AREA);
    t.err("rseq: nothing to unregister", call(area, LEN, 1), invalid);
    t.err("rseq: unknown flag", call(area, LEN, 8), invalid);
    t.err("rseq: too short", call(area, 16, 0), invalid);
    t.err("rseq: not aligned", call(area + 8, LEN, 0), invalid);
    let kernel = 0xffff_8000_0000_0000usize;
    t.err("rseq: kernel memory", call(kernel, LEN, 0), Errno::EFAULT);
    t.is("rseq: registers", call(area, LEN, 0), 0);
    t.err("rseq: twice", call(area, LEN, 0), Errno::EBUSY);
    t.err("rseq: another signature", AREA.register(0, 1), Errno::EPERM);
    t.err(
        "rseq: another area",
        AREAS[0].register(0, SIGNATURE),
        invalid,
    );
    t.err(
        "rseq: unregisters another area",
        AREAS[0].register(1, SIGNATURE),
        invalid,
    );
    t.err(
        "rseq: unregisters, signature",
        AREA.register(1, 1),
        Errno::EPERM,
    );
}

fn current(t: &mut Suite) {
    let (mut cpu, mut node) = (0u32, 0u32);
    let agrees = (0..100).any(|_| {
        let before = AREA.cpu_id.load(SeqCst);
        sys!(
            GETCPU,
            rt::sys::at_mut(&mut cpu),
            rt::sys::at_mut(&mut node),
            0
        );
        before == cpu && AREA.cpu_id_start.load(SeqCst) == cpu && AREA.node_id.load(SeqCst) == node
    });
    t.ok("rseq: CPU and node as getcpu says", agrees);
    // Threads of the groups before this one have been joined, but may still be on their way out with an id each.
    let alone = (0..100).any(|_| {
        let first = AREA.mm_cid.load(SeqCst) == 0;
        if !first {
            rt::time::sleep_ns(1_000_000);
        }
        first
    });
    t.ok("rseq: one thread has concurrency id 0", alone);
    // Moved to each CPU in turn, it knows where it is.
    let mut all = [0u64; 8];
    let len = sys!(SCHED_GETAFFINITY, 0, size_of_val(&all), all.as_mut_ptr());
    let (mut wrong, mut moves) = (0, 0);
    for cpu in (0..512).filter(|c| all[c / 64] >> (c % 64) & 1 != 0) {
        let mut one = [0u64; 8];
        one[cpu / 64] = 1 << (cpu % 64);
        if sys!(SCHED_SETAFFINITY, 0, len, one.as_ptr()) == 0 {
            moves += 1;
            wrong += usize::from(AREA.cpu_id.load(SeqCst) as usize != cpu);
        }
    }
    sys!(SCHED_SETAFFINITY, 0, len, all.as_ptr());
    t.ok("rseq: moved, it says so", moves > 0 && wrong == 0);
}

extern "C" fn registers(area: usize) -> i32 {
    // SAFETY: an element of AREAS.
    let area = unsafe { &*(area as *const Area) };
    FAILURES.fetch_add(usize::from(area.register(0, SIGNATURE) != 0), SeqCst);
    FAILURES.fetch_add(usize::from(area.cpu_id.load(SeqCst) == u32::MAX), SeqCst);
    0
}

fn inheritance(t: &mut Suite) {
    let child = in_child(|| {
        let busy = AREA.register(0, SIGNATURE) == Errno::EBUSY.raw();
        let gone = AREA.register(UNREGISTER, SIGNATURE) == 0;
        i32::from(busy && gone && AREA.cpu_id.load(SeqCst) == u32::MAX)
    });
    t.is("rseq: a fork keeps the registration", child.number(), 1);
    let thread = Thread::new();
    thread.start(registers, at(&AREAS[0]));
    thread.join();
    t.is(
        "rseq: a thread registers for itself",
        FAILURES.swap(0, SeqCst) as isize,
        0,
    );
    thread.free();
}

extern "C" fn ignore(_: i32, _: &mut Siginfo, _: &mut Ucontext) {}

/// Raises SIGTRAP inside of a section; true if it ended at the abort handler.
fn trap_in_section(section: &mut Section, area: &Area) -> bool {
    let aborted: usize;
    // SAFETY: the section is this function's; a handler for SIGTRAP is installed. The last operand is what is told.
    unsafe {
        core::arch::asm!(
            "lea {x}, [rip + 2f]",
            "mov [{cs} + 8], {x}",
            "lea {y}, [rip + 3f]",
            "sub {y}, {x}",
            "mov [{cs} + 16], {y}",
            "lea {x}, [rip + 4f]",
            "mov [{cs} + 24], {x}",
            "xor {y:e}, {y:e}",
            "mov [{area} + 8], {cs}",
            "2: int3",
            "nop",
            "3: jmp 5f",
            ".byte 0x0f, 0xb9, 0x3d",
            ".long 0x53053053",
            "4: mov {y:e}, 1",
            "5:",
            x = out(reg) _, y = out(reg) aborted,
            cs = in(reg) section, area = in(reg) area,
        );
    }
    aborted == 1
}

fn signals(t: &mut Suite) {
    handle(SIGTRAP, ignore, 0, 0);
    let mut section = Section::default();
    t.ok(
        "rseq: a handler aborts the section",
        trap_in_section(&mut section, &AREA),
    );
    t.is(
        "rseq: and the section is forgotten",
        AREA.section.load(SeqCst) as isize,
        0,
    );
    signal::action(SIGTRAP, SIG_DFL, 0, 0);
    // A section without the signature before its abort handler is an attack.
    let end = in_child(|| {
        handle(SIGTRAP, ignore, 0, 0);
        section.version_flags = 0;
        AREA.register(UNREGISTER, SIGNATURE);
        AREA.register(0, SIGNATURE + 1);
        trap_in_section(&mut section, &AREA);
        0
    });
    t.ok(
        "rseq: the signature is looked at",
        end == rt::process::End::Signal(SIGSEGV),
    );
}

/// Adds one to the counter of the thread's concurrency id, by plain loads and stores.
fn count_once(section: &mut Section, area: &Area) -> u32 {
    let cid: usize;
    // SAFETY: the section is this function's; ids are below the number of counters. A thread that is taken off the CPU
    // between the load of the id and the store of the sum starts again.
    unsafe {
        core::arch::asm!(
            "6: lea {x}, [rip + 2f]",
            "mov [{cs} + 8], {x}",
            "lea {y}, [rip + 3f]",
            "sub {y}, {x}",
            "mov [{cs} + 16], {y}",
            "lea {x}, [rip + 4f]",
            "mov [{cs} + 24], {x}",
            "mov [{area} + 8], {cs}",
            "2: mov {cid:e}, [{area} + 24]",
            "mov {x}, {cid}",
            "shl {x}, 6",
            "add {x}, {counters}",
            "mov {y}, [{x}]",
            "pause",
            "pause",
            "add {y}, 1",
            "mov [{x}], {y}",
            "3: jmp 5f",
            ".byte 0x0f, 0xb9, 0x3d",
            ".long 0x53053053",
            "4: jmp 6b",
            "5:",
            x = out(reg) _, y = out(reg) _, cid = out(reg) cid,
            cs = in(reg) section, area = in(reg) area, counters = in(reg) &raw const COUNTERS,
        );
    }
    cid as u32
}

extern "C" fn count(area: usize) -> i32 {
    // SAFETY: an element of AREAS.
    let area = unsafe { &*(area as *const Area) };
    FAILURES.fetch_add(usize::from(area.register(0, SIGNATURE) != 0), SeqCst);
    READY.fetch_add(1, SeqCst);
    while READY.load(SeqCst) < THREADS {
        sys!(SCHED_YIELD);
    }
    let mut section = Section::default();
    for i in 0..ROUNDS {
        let cid = count_once(&mut section, area);
        MAX_CID.fetch_max(cid, SeqCst);
        if i % 1024 == 0 {
            sys!(SCHED_YIELD);
        }
    }
    area.section.store(0, SeqCst);
    0
}

fn concurrency(t: &mut Suite) {
    let threads: [Thread; THREADS] = core::array::from_fn(|_| Thread::new());
    for (thread, area) in threads.iter().zip(&AREAS) {
        area.section.store(0, SeqCst);
        thread.start(count, at(area));
    }
    threads.iter().for_each(Thread::join);
    t.is(
        "rseq: every thread registered",
        FAILURES.swap(0, SeqCst) as isize,
        0,
    );
    // This thread is one more.
    let max = MAX_CID.load(SeqCst) as usize;
    t.ok(
        "rseq: concurrency ids are below the number of threads",
        max <= THREADS,
    );
    let total: usize = COUNTERS.iter().map(|c| c[0].load(SeqCst)).sum();
    // Two threads that run with one id would have lost some.
    t.is(
        "rseq: no two threads have one id",
        total as isize,
        (THREADS * ROUNDS) as isize,
    );
    t.is("rseq: unregisters", AREA.register(UNREGISTER, SIGNATURE), 0);
    threads.into_iter().for_each(Thread::free);
}
