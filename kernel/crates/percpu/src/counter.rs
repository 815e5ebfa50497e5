//! `PercpuCounter`: a number that every CPU changes and few read.
//!
//! Problem: one atomic number moves its cache line to every CPU that adds to it.
//!
//! Mechanism: a 32-bit delta per CPU and a 64-bit total. `add` changes the delta with plain loads
//! and stores, preemption off; at `batch` it folds the delta into the total under a lock. `read` is
//! the total alone, off by at most `batch * CPUs`; `sum` adds all deltas.
//!
//! Lock order: `percpu_counter` is a leaf.
//!
//! INV-CNT-1: value = total + the sum of deltas, at every moment when the lock is free.
//! INV-CNT-2: a delta is written by its own CPU with preemption off, or by `set`.

use crate::{OutOfMemory, PerCpu};
use core::sync::atomic::{AtomicI32, AtomicI64, Ordering::Relaxed};
use ksync::{LockClass, PreemptGuard, SpinLock, arch};

static CLASS: LockClass = LockClass::new("percpu_counter");

/// A counter with a delta per CPU.
pub struct PercpuCounter {
    deltas: PerCpu<AtomicI32>,
    batch: i32,
    /// Written under `lock`, read anywhere.
    total: AtomicI64,
    lock: SpinLock<()>,
}

impl PercpuCounter {
    /// A counter that starts at `value`.
    pub fn new(value: i64) -> Result<Self, OutOfMemory> {
        Self::with_batch(value, (2 * arch::nr_cpu_ids() as i32).max(32))
    }

    /// A counter whose deltas stay below `batch`: `read` is off by less than that per CPU. 1 or more.
    pub fn with_batch(value: i64, batch: i32) -> Result<Self, OutOfMemory> {
        Ok(PercpuCounter {
            deltas: PerCpu::new_zeroed()?,
            batch: batch.max(1),
            total: AtomicI64::new(value),
            lock: SpinLock::new((), &CLASS),
        })
    }

    /// Adds `n`. Any context but hard IRQ.
    #[inline]
    pub fn add(&self, n: i64) {
        let guard = PreemptGuard::new();
        let delta = self.deltas.this_cpu(&guard);
        let new = delta.load(Relaxed) as i64 + n;
        if new.abs() < self.batch as i64 {
            delta.store(new as i32, Relaxed);
        } else {
            self.fold(delta, n);
        }
    }

    /// Moves a delta and `n` into the total. Preemption is off and `delta` is this CPU's.
    #[cold]
    #[inline(never)]
    fn fold(&self, delta: &AtomicI32, n: i64) {
        let _held = self.lock.lock();
        let sum = delta.load(Relaxed) as i64 + n;
        self.total.store(self.total.load(Relaxed) + sum, Relaxed);
        delta.store(0, Relaxed);
    }

    /// The total without the deltas: cheap, off by at most `batch` per CPU.
    #[inline]
    pub fn read(&self) -> i64 {
        self.total.load(Relaxed)
    }

    /// [`read`](Self::read), but never below zero, for numbers that cannot be.
    #[inline]
    pub fn read_positive(&self) -> u64 {
        self.read().max(0) as u64
    }

    /// The value: exact if nobody adds meanwhile; else each addition during the call is counted
    /// or not. Visits every possible CPU's line.
    pub fn sum(&self) -> i64 {
        let _held = self.lock.lock();
        self.deltas.iter().fold(self.total.load(Relaxed), |sum, d| {
            sum + d.load(Relaxed) as i64
        })
    }

    /// Sets the value. Additions during the call may be lost.
    pub fn set(&self, value: i64) {
        let _held = self.lock.lock();
        for delta in self.deltas.iter() {
            delta.store(0, Relaxed);
        }
        self.total.store(value, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[derive(Clone, Debug)]
    enum Op {
        Add(usize, i64),
        Set(i64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            20 => (0..8usize, prop_oneof![-3..4i64, -100..100i64, any::<i32>().prop_map(|n| n as i64)])
                .prop_map(|(cpu, n)| Op::Add(cpu, n)),
            1 => any::<i32>().prop_map(|n| Op::Set(n as i64)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn sum_is_exact_and_read_is_near(ops in prop::collection::vec(op(), 1..300)) {
            let _serial = crate::tests::serial();
            let counter = PercpuCounter::new(5).unwrap();
            let mut model = 5i64;
            for op in ops {
                match op {
                    Op::Add(cpu, n) => {
                        arch::host::run_on(cpu, || counter.add(n));
                        model += n;
                    }
                    Op::Set(n) => {
                        counter.set(n);
                        model = n;
                    }
                }
                prop_assert_eq!(counter.sum(), model);
                let slack = counter.batch as i64 * arch::nr_cpu_ids() as i64;
                prop_assert!((counter.read() - model).abs() <= slack);
            }
        }
    }

    #[test]
    fn threads_lose_nothing() {
        let _serial = crate::tests::serial();
        let counter = PercpuCounter::new(0).unwrap();
        std::thread::scope(|s| {
            let threads: Vec<_> = (0..4)
                .map(|t| {
                    let counter = &counter;
                    s.spawn(move || {
                        // Two threads per CPU: preemption, in a way.
                        arch::host::set_cpu(t % 2);
                        for i in 0..5_000 {
                            counter.add(if i % 3 == 0 { -1 } else { 2 });
                            if i % 1000 == 0 {
                                counter.sum();
                            }
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|t| t.join().unwrap());
        });
        let per_thread: i64 = (0..5_000).map(|i| if i % 3 == 0 { -1 } else { 2 }).sum();
        assert_eq!(counter.sum(), 4 * per_thread);
    }
}
