//! Where cycles go: two clock reads around a region of code, summed per CPU and slot. Off unless the boot line asks;
//! then a region costs two NOPs.
//!
//! A slot is a number that the caller gives meaning (the phases of a fork, say). A region neither sleeps nor contains
//! a region of another slot, so the sums of all slots never count a cycle twice; a region may be interrupted.

use crate::NR_CPUS;
use crate::arch::{get_cycles, smp_processor_id};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Number of slots.
pub const NR_SLOTS: usize = 32;

crate::static_key! {
    /// Whether regions are timed.
    pub static TRACE;
}

#[repr(align(64))]
struct Sums([AtomicU64; NR_SLOTS]);

static SUMS: [Sums; NR_CPUS] = [const { Sums([const { AtomicU64::new(0) }; NR_SLOTS]) }; NR_CPUS];

/// The start of a region.
#[derive(Clone, Copy)]
pub struct Start(u64);

/// Begins a region. Any context.
#[inline(always)]
pub fn begin() -> Start {
    if crate::static_branch!(TRACE) {
        Start(get_cycles())
    } else {
        Start(0)
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
    let cycles = get_cycles().saturating_sub(start.0);
    SUMS[smp_processor_id()].0[slot].fetch_add(cycles, Relaxed);
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
