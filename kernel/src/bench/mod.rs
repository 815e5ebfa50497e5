//! Benchmarks that run inside the kernel, without a program in between.
//!
//! # Problem
//! Many operations are to be measured, each in many variants, and the figures must differ by the operation alone: not
//! by how workers are placed, started, timed and added up.
//!
//! # Mechanism
//! A [`Benchmark`] is a file of this folder and a row of the table below: what all workers share, what each has, and
//! one operation. [`run`] does the rest, the same for all: workers on their CPUs, warm-up, the gate, the clock;
//! `report` makes the table and the record. Workers stop after a number of operations, or, where throughput under
//! contention is the question, at the end of a window of time whose ramp is left out.

mod crowd;
mod leak;
mod mapped;
mod report;
mod run;
mod tiny;
mod window;

pub mod inject;

pub use self::mm::MmOp;
pub use self::mmap::{MmapOf, MmapOp};
pub use self::peers::Peer;
pub use self::percpu::PercpuOp;
pub use self::slab::SlabPattern;
pub use locks::LockWord;
pub use mapped::WalkWord;

use crate::errno::Errno;
use alloc::string::String;
use kbench::Record;

/// The contract of a benchmark. A value of it is what all workers of a run share.
pub trait Benchmark: Sized + Sync + 'static {
    /// What one worker owns.
    type Worker;
    /// Operations over all workers when the boot line names none.
    const OPS: u64 = 2_000;
    /// Cycles of the window when the boot line names neither window nor operations, where CPUs run at the same time.
    /// None: count operations.
    const WINDOW: Option<u64> = None;
    /// Compare what is in use (pages, objects, pids, stacks) before and after.
    const LEAK_CHECK: bool = false;
    /// `clone` flags with which the workers start.
    const WORKER_FLAGS: u64 = 0;

    /// What the workers share, from the boot words. Process 1, before any worker starts. May sleep.
    fn new(workers: usize) -> Self;
    /// What is measured after this one, in the same boot. As [`new`](Self::new).
    fn next(&self) -> Option<Self> {
        None
    }
    /// The window for `workers` workers: [`WINDOW`](Self::WINDOW), unless it depends on what is measured.
    fn window(&self, _workers: usize) -> Option<u64> {
        Self::WINDOW
    }
    /// Cycles before the window that do not count.
    fn ramp(&self, _workers: usize, window: u64) -> u64 {
        window / 4
    }
    /// A worker's own part, made on its own thread and CPU. May sleep.
    fn worker(&self, index: usize) -> Self::Worker;
    /// One operation. What it may do is the benchmark's own matter, but it prints nothing.
    fn operation(&self, worker: &mut Self::Worker) -> Result<(), Errno>;
    /// Whether this worker's operations count: not if it is there to disturb the others.
    fn counts(&self, _worker: &Self::Worker) -> bool {
        true
    }
    /// How many operations one reading of the clock covers: more than one where the clock would cost more than they.
    fn batch(&self) -> u64 {
        1
    }
    /// Takes back a worker's part when all its operations are done, outside the timed region.
    fn finish(&self, _worker: Self::Worker) {}
    /// What must hold after all workers have finished; the error says what does not.
    fn verify(&self) -> Result<(), String> {
        Ok(())
    }
    /// Adds to the record what distinguishes this run beyond the common words.
    fn describe(&self, _record: &mut Record) {}
}

/// A row per benchmark: its module, its type there, its word after `bench=`.
macro_rules! benchmarks {
    ($($(#[doc = $doc:literal])+ $module:ident::$name:ident = $word:literal,)+) => {
        $(mod $module;)+

        kparam::choices! {
            /// In-kernel benchmarks.
            pub enum BenchWord { $($(#[doc = $doc])+ $name = $word,)+ }
        }

        /// Runs the benchmark that the boot line names and ends the machine with its verdict. Process 1.
        pub fn start(word: BenchWord) -> ! {
            match word { $(BenchWord::$name => run::run::<$module::$name>(word.name()),)+ }
        }
    };
}

benchmarks! {
    /// Fork, exit, wait.
    fork::Fork = "fork",
    /// The same in namespaces and with files of one's own.
    apart::Apart = "apart",
    /// A program that execs, over and over.
    exec::Exec = "exec",
    /// Fork, exec, exit, wait.
    forkexec::ForkExec = "forkexec",
    /// Thread create, exit, join.
    thread::Thread = "thread",
    /// All CPUs fork, exec, exit and wait at random; then nothing may be missing.
    storm::Storm = "storm",
    /// Forks and execs without memory to spare; then nothing may be missing.
    pressure::Pressure = "pressure",
    /// Take a pid and give it back; `depth` namespaces down.
    pid::PidAlloc = "pid",
    /// Fork, exit, wait, `depth` pid namespaces down.
    clone::Clone = "clone",
    /// kill(pid, 0) at processes that sleep.
    lookup::Lookup = "lookup",
    /// The list of processes by number.
    proc::Proc = "proc",
    /// Address spaces made and ended, by design and by possible CPUs.
    mm::MmBench = "mm",
    /// Objects allocated and freed, by one CPU and across.
    slab::Slab = "slab",
    /// The slab beside allocators that others wrote.
    peers::Peers = "peers",
    /// Per-CPU memory, and counters.
    percpu::Percpu = "percpu",
    /// A mapping into a file's set and out, at several sizes of the set.
    rmap::Rmap = "rmap",
    /// mmap and munmap of one file or of many.
    mmap::Mmap = "mmap",
    /// exec of a program with an interpreter and a library, by all at once.
    execl::Execl = "execl",
    /// Files cut, punched and moved between nodes under processes that map them and fork.
    filestorm::FileStorm = "filestorm",
    /// The lock laboratory: one critical section, or one counter, for all.
    locks::Locks = "locks",
}
