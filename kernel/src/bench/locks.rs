//! `bench=locks`: the lock laboratory. All workers want the same critical section, or count with the same counter.
//!
//! The critical section adds one to four shared lines, by plain loads and stores, as the fields of a structure would be
//! changed under its lock. Afterwards each line must show every operation: a lock that lets two in at once loses some.
//! A reader looks at the four lines, which must be equal.

use super::Benchmark;
use crate::errno::Errno;
use crate::params;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use kbench::record::{Record, Setting};
use ksync::{Lock, McsLock, PreemptGuard, RwLock, SpinLock, TasLock, TicketLock, lock_class};
use page_alloc::Gfp;
use percpu::PerCpu;

kparam::choices! {
    /// What the lock laboratory compares.
    pub enum LockWord {
        /// All of them, one after the other.
        All = "all",
        /// The kernel's own spin lock: one word, a queue behind it.
        Spin = "spin",
        /// Test and set.
        Tas = "tas",
        /// Ticket lock.
        Ticket = "ticket",
        /// MCS queue lock.
        Mcs = "mcs",
        /// Reader-writer lock; `readers` says how many of a hundred operations read.
        Rw = "rw",
        /// One counter, added to atomically.
        Atomic = "atomic",
        /// A counter per node, added to atomically.
        PerNode = "per-node",
        /// A counter per CPU.
        PerCpu = "per-cpu",
    }
}

/// Turns of each worker in a window, about.
const TURNS: u64 = 6;

/// A cache line.
#[repr(align(64))]
struct Line(Cell<u64>);

/// What the locks protect.
struct Shared([Line; 4]);

impl Shared {
    const fn new() -> Shared {
        Shared([const { Line(Cell::new(0)) }; 4])
    }
    #[inline(always)]
    fn change(&self) {
        self.0.iter().for_each(|line| line.0.set(line.0.get() + 1));
    }
    #[inline(always)]
    fn agree(&self) -> bool {
        let first = self.0[0].0.get();
        self.0[1..].iter().all(|line| line.0.get() == first)
    }
}

// SAFETY: the cells are written only by the lock's only holder; readers of the reader-writer lock only read.
unsafe impl Sync for Shared {}

/// A counter on a line of its own.
#[repr(align(64))]
struct Counter(AtomicU64);

/// A subject of the laboratory.
enum Subject {
    Spin(SpinLock<Shared>),
    Tas(TasLock<Shared>),
    Ticket(TicketLock<Shared>),
    Mcs(McsLock<Shared>),
    Rw(RwLock<Shared>),
    Atomic(Counter),
    /// Each in its node's memory.
    PerNode(Vec<&'static Counter>),
    PerCpu(PerCpu<AtomicU64>),
}

/// The benchmark.
pub struct Locks {
    word: LockWord,
    workers: usize,
    subject: Box<Subject>,
    /// Of a hundred operations on a reader-writer lock.
    readers: u64,
    /// Changes that finished workers made.
    changes: AtomicU64,
}

/// A worker: how often it has operated and changed something.
pub struct Worker {
    random: u64,
    changes: u64,
}

impl Locks {
    fn of(word: LockWord, workers: usize) -> Self {
        let subject = match word {
            LockWord::All | LockWord::Spin => Subject::Spin(Lock::new(Shared::new(), lock_class!("lab_spin"))),
            LockWord::Tas => Subject::Tas(Lock::new(Shared::new(), lock_class!("lab_tas"))),
            LockWord::Ticket => Subject::Ticket(Lock::new(Shared::new(), lock_class!("lab_ticket"))),
            LockWord::Mcs => Subject::Mcs(Lock::new(Shared::new(), lock_class!("lab_mcs"))),
            LockWord::Rw => Subject::Rw(RwLock::new(Shared::new(), lock_class!("lab_rw"))),
            LockWord::Atomic => Subject::Atomic(Counter(AtomicU64::new(0))),
            LockWord::PerNode => Subject::PerNode(counters()),
            LockWord::PerCpu => Subject::PerCpu(PerCpu::new_zeroed().expect("memory for counters")),
        };
        let word = if word == LockWord::All { LockWord::Spin } else { word };
        let readers = params::get().readers.min(100);
        Locks { word, workers, subject: Box::new(subject), readers, changes: AtomicU64::new(0) }
    }

    #[inline(always)]
    fn with<B: ksync::Backend>(lock: &Lock<Shared, B>) {
        lock.lock().change();
    }

    /// Whether the next operation reads, by a generator of its own (Knuth's MMIX constants).
    #[inline(always)]
    fn reads(&self, worker: &mut Worker) -> bool {
        worker.random = worker.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((worker.random >> 32) * 100) >> 32 < self.readers
    }

    /// What the subject has counted.
    fn counted(&self) -> Result<u64, String> {
        let lines = |shared: &Shared| match shared.agree() {
            true => Ok(shared.0[0].0.get()),
            false => Err(format!("{}: the four lines disagree", self.word.name())),
        };
        match &*self.subject {
            Subject::Spin(l) => lines(&l.lock()),
            Subject::Tas(l) => lines(&l.lock()),
            Subject::Ticket(l) => lines(&l.lock()),
            Subject::Mcs(l) => lines(&l.lock()),
            Subject::Rw(l) => lines(&l.read()),
            Subject::Atomic(c) => Ok(c.0.load(Relaxed)),
            Subject::PerNode(all) => Ok(all.iter().map(|c| c.0.load(Relaxed)).sum()),
            Subject::PerCpu(all) => Ok(all.iter().map(|c| c.load(Relaxed)).sum()),
        }
    }
}

/// A counter in the memory of each node that has some, or of a near one.
fn counters() -> Vec<&'static Counter> {
    let on = |node| {
        let page = page_alloc::alloc_pages_node(node, 0, Gfp::ZERO).expect("memory for a counter");
        // SAFETY: a page of zeroes that is never given back.
        unsafe { &*page.virt().cast::<Counter>() }
    };
    (0..ksync::arch::nr_node_ids()).map(on).collect()
}

impl Benchmark for Locks {
    type Worker = Worker;
    const WINDOW: Option<u64> = Some(1_000_000);

    fn new(workers: usize) -> Self {
        Self::of(params::get().lock, workers)
    }

    fn next(&self) -> Option<Self> {
        if params::get().lock != LockWord::All {
            return None;
        }
        let mut words = LockWord::ALL.iter().skip_while(|w| **w != self.word);
        words.nth(1).map(|word| Self::of(*word, self.workers))
    }

    /// Time enough for every worker to have its turn several times, and no more than it takes to see that: where all
    /// look at one line, a turn takes longer the more they are; a counter per CPU takes hardly any time.
    fn window(&self, workers: usize) -> Option<u64> {
        let workers = workers as u64;
        let turn = match self.word {
            LockWord::Tas | LockWord::Ticket => 700 + 33 * workers,
            LockWord::Spin => 1_400,
            LockWord::Rw => 700 + 16 * workers,
            LockWord::Mcs => 1_000,
            LockWord::Atomic => 400,
            LockWord::PerNode => 1 + 400 / ksync::arch::nr_node_ids() as u64,
            LockWord::All | LockWord::PerCpu => 0,
        };
        Some((TURNS * turn * workers).max(1_000_000 / workers).max(60_000))
    }

    /// The queue of a spin lock takes a while to form when all come at the same moment, once.
    fn ramp(&self, workers: usize, window: u64) -> u64 {
        let forms = match self.word {
            LockWord::Spin => 2_000 * workers as u64,
            _ => 0,
        };
        forms.max(window / 4)
    }

    fn worker(&self, index: usize) -> Worker {
        Worker { random: (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15), changes: 0 }
    }

    #[inline]
    fn operation(&self, worker: &mut Worker) -> Result<(), Errno> {
        match &*self.subject {
            Subject::Spin(l) => Self::with(l),
            Subject::Tas(l) => Self::with(l),
            Subject::Ticket(l) => Self::with(l),
            Subject::Mcs(l) => Self::with(l),
            Subject::Rw(l) => {
                if self.reads(worker) {
                    return if l.read().agree() { Ok(()) } else { Err(Errno::EIO) };
                }
                l.write().change();
            }
            Subject::Atomic(c) => _ = c.0.fetch_add(1, Relaxed),
            Subject::PerNode(all) => _ = all[ksync::arch::numa_node_id()].0.fetch_add(1, Relaxed),
            Subject::PerCpu(all) => {
                let guard = PreemptGuard::new();
                let mine = all.this_cpu(&guard);
                mine.store(mine.load(Relaxed) + 1, Relaxed); // only this CPU writes it
            }
        }
        worker.changes += 1;
        Ok(())
    }

    /// Counting alone takes less than reading the clock; with others it takes longer the more they are.
    fn batch(&self) -> u64 {
        let others = match *self.subject {
            Subject::Atomic(_) => self.workers,
            Subject::PerNode(_) => self.workers.div_ceil(ksync::arch::nr_node_ids()),
            Subject::PerCpu(_) => 1,
            _ => return 1,
        };
        (16 / others as u64).max(1)
    }

    fn finish(&self, worker: Worker) {
        self.changes.fetch_add(worker.changes, Relaxed);
    }

    fn verify(&self) -> Result<(), String> {
        let (counted, made) = (self.counted()?, self.changes.load(Relaxed));
        if counted == made {
            return Ok(());
        }
        Err(format!("{}: {made} changes were made, {counted} are left", self.word.name()))
    }

    fn describe(&self, record: &mut Record) {
        record.variants.push(Setting::new("lock", self.word.name()));
        if self.word == LockWord::Rw {
            record.params.push(Setting::new("readers", self.readers));
        }
    }
}
