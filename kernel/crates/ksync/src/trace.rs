//! Where cycles go: two clock reads around a region of code, summed per CPU and slot. Off unless the boot line asks;
//! then a region costs two NOPs.
//!
//! A slot is a number that the caller gives meaning (the phases of a fork, say). Regions nest: what ends inside another
//! region is taken off the outer one, by a sum per CPU of all that ended there, so the slots never count a cycle twice.
//! A region should stay on its CPU: of one that moved in between, what ended inside it counts in both.

use crate::NR_CPUS;
use crate::arch::{get_cycles, smp_processor_id};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Number of slots.
pub const NR_SLOTS: usize = 32;

crate::static_key! {
    /// Whether regions are timed.
    pub static TRACE;
}

/// One CPU's sums: a slot's own cycles each, and behind them those of all regions together.
#[repr(align(64))]
struct Sums([AtomicU64; NR_SLOTS + 1]);

impl Sums {
    fn all(&self) -> &AtomicU64 {
        &self.0[NR_SLOTS]
    }
}

static SUMS: [Sums; NR_CPUS] =
    [const { Sums([const { AtomicU64::new(0) }; NR_SLOTS + 1]) }; NR_CPUS];

/// The start of a region.
#[derive(Clone, Copy)]
pub struct Start {
    at: u64,
    /// What had ended on the CPU by then.
    ended: u64,
    cpu: usize,
}

/// Begins a region. Any context.
#[inline(always)]
pub fn begin() -> Start {
    if crate::static_branch!(TRACE) {
        started()
    } else {
        Start {
            at: 0,
            ended: 0,
            cpu: 0,
        }
    }
}

#[cold]
#[inline(never)]
fn started() -> Start {
    let cpu = smp_processor_id();
    Start {
        ended: SUMS[cpu].all().load(Relaxed),
        cpu,
        at: get_cycles(),
    }
}

/// Ends a region that belongs to `slot`.
#[inline(always)]
pub fn end(slot: usize, start: Start) {
    if crate::static_branch!(TRACE) {
        add(slot, start);
    }
}

#[cold]
#[inline(never)]
fn add(slot: usize, start: Start) {
    let elapsed = get_cycles().saturating_sub(start.at);
    let cpu = smp_processor_id();
    let here = &SUMS[cpu];
    let inner = match cpu == start.cpu {
        true => here.all().load(Relaxed).saturating_sub(start.ended),
        false => 0,
    };
    let own = elapsed.saturating_sub(inner);
    here.0[slot].fetch_add(own, Relaxed);
    here.all().fetch_add(own, Relaxed);
}

/// The sum of `slot` over all CPUs since the last [`reset`].
pub fn sum(slot: usize) -> u64 {
    SUMS.iter()
        .fold(0, |sum, cpu| sum.wrapping_add(cpu.0[slot].load(Relaxed)))
}

/// Forgets everything.
pub fn reset() {
    SUMS.iter()
        .flat_map(|cpu| &cpu.0)
        .for_each(|sum| sum.store(0, Relaxed));
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_inner_region_is_taken_off_the_outer() {
        let wait = |cycles| {
            let start = get_cycles();
            while get_cycles() - start < cycles {
                core::hint::spin_loop();
            }
        };
        let _here = crate::PreemptGuard::new();
        let whole = get_cycles();
        let outer = started();
        wait(2_000_000);
        let inner = started();
        wait(3_000_000);
        add(1, inner);
        wait(1_000_000);
        add(0, outer);
        let whole = get_cycles() - whole;
        assert!(sum(1) >= 3_000_000);
        assert!(sum(0) >= 3_000_000);
        assert!(sum(0) + sum(1) <= whole, "a cycle counted twice");
    }
}
