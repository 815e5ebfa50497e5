//! Counters of the kernel itself, per CPU.

use crate::syscall::NR_SYSCALLS;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use ksync::NR_CPUS;
use ksync::arch::smp_processor_id;

/// One CPU's counts.
#[repr(align(64))]
struct Counts {
    syscalls: AtomicU64,
    forks: AtomicU64,
    execs: AtomicU64,
    exits: AtomicU64,
    unexpected_interrupts: AtomicU64,
}

static COUNTS: [Counts; NR_CPUS] = [const {
    Counts {
        syscalls: AtomicU64::new(0),
        forks: AtomicU64::new(0),
        execs: AtomicU64::new(0),
        exits: AtomicU64::new(0),
        unexpected_interrupts: AtomicU64::new(0),
    }
}; NR_CPUS];

/// Calls that programs made and this kernel does not have, by number.
static MISSING: [AtomicU32; NR_SYSCALLS] = [const { AtomicU32::new(0) }; NR_SYSCALLS];

/// Only its CPU writes a count, so a plain add is enough; an interrupt in between loses at most one.
#[inline(always)]
fn bump(count: &AtomicU64) {
    count.store(count.load(Relaxed) + 1, Relaxed);
}

#[inline(always)]
pub fn syscall() {
    bump(&COUNTS[smp_processor_id()].syscalls);
}

pub fn fork() {
    bump(&COUNTS[smp_processor_id()].forks);
}

pub fn exec() {
    bump(&COUNTS[smp_processor_id()].execs);
}

pub fn exit() {
    bump(&COUNTS[smp_processor_id()].exits);
}

pub fn unexpected_interrupt() {
    bump(&COUNTS[smp_processor_id()].unexpected_interrupts);
}

#[cold]
pub fn missing_syscall(nr: usize) {
    if let Some(count) = MISSING.get(nr) {
        count.fetch_add(1, Relaxed);
    }
}

/// System calls since boot.
pub fn nr_syscalls() -> u64 {
    COUNTS.iter().map(|c| c.syscalls.load(Relaxed)).sum()
}

/// Forks, execs and exits since boot.
pub fn process_counts() -> [u64; 3] {
    COUNTS.iter().fold([0; 3], |[f, e, x], c| {
        [
            f + c.forks.load(Relaxed),
            e + c.execs.load(Relaxed),
            x + c.exits.load(Relaxed),
        ]
    })
}

/// Missing calls: number and count.
pub fn missing() -> impl Iterator<Item = (usize, u32)> {
    MISSING
        .iter()
        .enumerate()
        .map(|(nr, n)| (nr, n.load(Relaxed)))
        .filter(|&(_, n)| n > 0)
}
