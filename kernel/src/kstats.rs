//! Counters of the kernel itself, per CPU.

use crate::syscall::NR_SYSCALLS;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

kstat::counters! {
    /// What programs asked for, and what came unasked.
    pub enum Stat on ksync {
        /// System calls, known or not.
        nr_syscalls,
        /// Children made by fork, vfork and clone.
        nr_forks,
        /// Programs started by exec.
        nr_execs,
        /// Threads that ended.
        nr_exits,
        /// Interrupts on vectors that nobody uses.
        nr_unexpected_interrupts,
    }
}

/// Calls that programs made and this kernel does not have, by number.
static MISSING: [AtomicU32; NR_SYSCALLS] = [const { AtomicU32::new(0) }; NR_SYSCALLS];

#[cold]
pub fn missing_syscall(nr: usize) {
    if let Some(count) = MISSING.get(nr) {
        count.fetch_add(1, Relaxed);
    }
}

/// Missing calls: number and count.
pub fn missing() -> impl Iterator<Item = (usize, u32)> {
    MISSING
        .iter()
        .enumerate()
        .map(|(nr, n)| (nr, n.load(Relaxed)))
        .filter(|&(_, n)| n > 0)
}
