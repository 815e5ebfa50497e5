//! `TreeCounter`: a number that every CPU changes, summed per node on the way.
//!
//! Problem: a `PercpuCounter` folds into one line under one lock. On a machine of many nodes that line travels between
//! them, the more often the smaller the batch, and the approximate read is off by a batch per CPU.
//!
//! Mechanism: three levels. A CPU's delta, plain, on a line of its own. At `CPU_BATCH` it is added to its node's sum, one
//! atomic on a line of that node's memory, which only CPUs of the node write. At `NODE_BATCH` the node's sum moves to the
//! total. No lock.
//!
//! ```text
//! CPU deltas    d d d d | d d d d      plain, below CPU_BATCH
//! node sums        s    |    s         atomic, about NODE_BATCH
//! total                 t              atomic
//! ```
//!
//! INV-TREE-1: value = total + node sums + deltas whenever nobody is in `add`.
//! INV-TREE-2: a delta is written by its own CPU with preemption off.

use crate::{OutOfMemory, PerCpu};
use core::sync::atomic::{AtomicI32, AtomicI64, Ordering::Relaxed};
use ksync::{MAX_NUMNODES, PreemptGuard, arch};

const CPU_BATCH: i64 = 32;
const NODE_BATCH: i64 = 1024;

/// Keeps a value on cache lines that nobody else writes.
#[repr(align(128))]
struct Line<T>(T);

/// A counter with a delta per CPU and a sum per node.
pub struct TreeCounter {
    deltas: PerCpu<Line<AtomicI32>>,
    /// Used in the window of each node's first CPU.
    nodes: PerCpu<Line<AtomicI64>>,
    /// That CPU, by node.
    first: [u16; MAX_NUMNODES],
    total: Line<AtomicI64>,
}

impl TreeCounter {
    /// A counter that starts at `value`.
    pub fn new(value: i64) -> Result<Self, OutOfMemory> {
        let mut first = [u16::MAX; MAX_NUMNODES];
        for cpu in (0..arch::nr_cpu_ids()).rev() {
            first[arch::cpu_to_node(cpu)] = cpu as u16;
        }
        Ok(TreeCounter {
            deltas: PerCpu::new(|_| Line(AtomicI32::new(0)))?,
            nodes: PerCpu::new(|_| Line(AtomicI64::new(0)))?,
            first,
            total: Line(AtomicI64::new(value)),
        })
    }

    /// Adds `n`. Any context but hard IRQ.
    #[inline]
    pub fn add(&self, n: i64) {
        let guard = PreemptGuard::new();
        let delta = &self.deltas.this_cpu(&guard).0;
        let new = delta.load(Relaxed) as i64 + n;
        if new.abs() < CPU_BATCH {
            delta.store(new as i32, Relaxed);
        } else {
            delta.store(0, Relaxed);
            self.fold(new);
        }
    }

    /// Adds to this CPU's node. Preemption is off.
    #[cold]
    #[inline(never)]
    fn fold(&self, n: i64) {
        let first = self.first[arch::numa_node_id()] as usize;
        let node = &self.nodes.on(first).0;
        let before = node.fetch_add(n, Relaxed);
        if before.wrapping_add(n).abs() >= NODE_BATCH {
            self.total.0.fetch_add(node.swap(0, Relaxed), Relaxed);
        }
    }

    /// The total without what nodes and CPUs keep: cheap.
    pub fn read(&self) -> i64 {
        self.total.0.load(Relaxed)
    }

    /// The value without what CPUs keep: reads a line per node; off by less than a batch per CPU.
    pub fn read_nodes(&self) -> i64 {
        let nodes = self.first.iter().filter(|&&cpu| cpu != u16::MAX);
        self.read()
            + nodes
                .map(|&cpu| self.nodes.on(cpu as usize).0.load(Relaxed))
                .sum::<i64>()
    }

    /// The value: exact if nobody adds meanwhile. Visits every possible CPU's line.
    pub fn sum(&self) -> i64 {
        self.read_nodes()
            + self
                .deltas
                .iter()
                .map(|d| d.0.load(Relaxed) as i64)
                .sum::<i64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_sum_is_exact_and_each_level_is_near(
            ops in prop::collection::vec((0..8usize, prop_oneof![-3..4i64, -100..100i64, -5000..5000i64]), 1..300)
        ) {
            let _serial = crate::tests::serial();
            let counter = TreeCounter::new(-7).unwrap();
            let mut model = -7;
            for (cpu, n) in ops {
                arch::host::run_on(cpu, || counter.add(n));
                model += n;
                prop_assert_eq!(counter.sum(), model);
                let cpus = arch::nr_cpu_ids() as i64;
                prop_assert!((counter.read_nodes() - model).abs() < CPU_BATCH * cpus);
                prop_assert!((counter.read() - counter.read_nodes()).abs() < NODE_BATCH * cpus);
            }
        }
    }

    #[test]
    fn threads_lose_nothing() {
        let _serial = crate::tests::serial();
        let counter = TreeCounter::new(0).unwrap();
        std::thread::scope(|s| {
            for t in 0..4 {
                let counter = &counter;
                s.spawn(move || {
                    arch::host::set_cpu(t % 3);
                    (0..20_000).for_each(|i| counter.add(if i % 3 == 0 { -1 } else { 40 }));
                });
            }
        });
        let one: i64 = (0..20_000).map(|i| if i % 3 == 0 { -1 } else { 40 }).sum();
        assert_eq!(counter.sum(), 4 * one);
    }

    #[test]
    fn lines_are_not_shared() {
        let _serial = crate::tests::serial();
        let counter = TreeCounter::new(0).unwrap();
        let mut lines = std::collections::BTreeSet::new();
        for cpu in 0..arch::nr_cpu_ids() {
            for at in [
                counter.deltas.as_ptr(cpu) as usize,
                counter.nodes.as_ptr(cpu) as usize,
            ] {
                assert!(at.is_multiple_of(128) && lines.insert(at / 128));
            }
        }
    }

    #[test]
    fn batches_lie_side_by_side_and_go_one_by_one() {
        use core::alloc::Layout;
        let _serial = crate::tests::serial();
        let before = crate::stats().used;
        for layout in [
            Layout::new::<u64>(),
            Layout::new::<[u8; 3]>(),
            Layout::from_size_align(72, 64).unwrap(),
        ] {
            let mut offsets = [0; 20];
            crate::alloc_batch(layout, crate::Zero::Yes, &mut offsets).unwrap();
            for (i, &offset) in offsets.iter().enumerate() {
                assert!(offset.is_multiple_of(layout.align()));
                assert!(i == 0 || offset >= offsets[i - 1] + layout.size());
            }
            let used = crate::stats().used - before;
            assert_eq!(used, 20 * layout.size().next_multiple_of(8));
            for offset in offsets {
                // SAFETY: allocated above.
                unsafe { crate::free(offset, layout.size()) };
            }
            assert_eq!(crate::stats().used, before);
        }
        assert!(
            crate::alloc_batch(Layout::new::<[u8; 4096]>(), crate::Zero::No, &mut [0; 64]).is_err()
        );
        assert_eq!(crate::stats().used, before);
    }
}
