//! `bench=percpu`: per-CPU memory allocated and freed, and counters.
//!
//! `percpu_op` chooses: an allocation with or without zeroing, of 64 bytes on every possible CPU; an addition to one
//! shared counter; the exact sum of one. What an allocation costs by the number of possible CPUs: `possible=N`.

use super::Benchmark;
use crate::errno::Errno;
use crate::params;
use ::percpu::{PercpuCounter, TreeCounter, Zero};
use alloc::string::String;
use core::alloc::Layout;
use core::sync::atomic::{AtomicI64, Ordering::Relaxed};
use kbench::record::{Record, Setting};

kparam::choices! {
    /// What `bench=percpu` does.
    pub enum PercpuOp {
        /// Allocate zeroed, free.
        Zeroed = "zeroed",
        /// Allocate, free.
        Uninit = "uninit",
        /// Add to a counter with a delta per CPU.
        Add = "add",
        /// Add to a counter with sums per node.
        Tree = "tree",
        /// Add to one atomic word.
        Atomic = "atomic",
        /// The exact sum of a counter.
        Sum = "sum",
    }
}

/// Operations per reading of the clock.
const BATCH: u64 = 16;

#[repr(align(128))]
struct Alone(AtomicI64);

/// The benchmark.
pub struct Percpu {
    op: PercpuOp,
    counter: PercpuCounter,
    tree: TreeCounter,
    atomic: Alone,
    /// Additions of finished workers.
    added: AtomicI64,
}

impl Benchmark for Percpu {
    /// Additions made.
    type Worker = i64;
    const OPS: u64 = 100_000;
    const WINDOW: Option<u64> = Some(20_000_000);

    fn new(_workers: usize) -> Self {
        Percpu {
            op: params::get().percpu_op,
            counter: PercpuCounter::new(0).expect("memory for a counter"),
            tree: TreeCounter::new(0).expect("memory for a counter"),
            atomic: Alone(AtomicI64::new(0)),
            added: AtomicI64::new(0),
        }
    }

    fn worker(&self, _index: usize) -> i64 {
        0
    }

    fn operation(&self, added: &mut i64) -> Result<(), Errno> {
        const LINE: Layout = Layout::new::<[u64; 8]>();
        let alloc = |zero| -> Result<(), Errno> {
            for _ in 0..BATCH {
                let offset = ::percpu::alloc(LINE, zero).map_err(|_| Errno::ENOMEM)?;
                // SAFETY: allocated just now, used by nobody.
                unsafe { ::percpu::free(offset, LINE.size()) };
            }
            Ok(())
        };
        match self.op {
            PercpuOp::Zeroed => alloc(Zero::Yes)?,
            PercpuOp::Uninit => alloc(Zero::No)?,
            PercpuOp::Add => (0..BATCH).for_each(|_| self.counter.add(1)),
            PercpuOp::Tree => (0..BATCH).for_each(|_| self.tree.add(1)),
            PercpuOp::Atomic => (0..BATCH).for_each(|_| _ = self.atomic.0.fetch_add(1, Relaxed)),
            PercpuOp::Sum => (0..BATCH).for_each(|_| _ = core::hint::black_box(self.counter.sum())),
        }
        *added += BATCH as i64;
        Ok(())
    }

    fn batch(&self) -> u64 {
        BATCH
    }

    fn finish(&self, added: i64) {
        self.added.fetch_add(added, Relaxed);
    }

    fn verify(&self) -> Result<(), String> {
        let added = self.added.load(Relaxed);
        let counted = match self.op {
            PercpuOp::Add => self.counter.sum(),
            PercpuOp::Tree => self.tree.sum(),
            PercpuOp::Atomic => self.atomic.0.load(Relaxed),
            _ => return Ok(()),
        };
        if counted == added { Ok(()) } else { Err(alloc::format!("{added} additions, {counted} counted")) }
    }

    fn describe(&self, record: &mut Record) {
        record.params.push(Setting::new("op", self.op.name()));
        record.params.push(Setting::new("possible", alloc::format!("{}", ksync::arch::nr_cpu_ids())));
    }
}
