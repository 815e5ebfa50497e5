//! The watchdog: a machine that makes no progress is reported and ended, not left to hang.
//!
//! CPU 0 looks at a count that everything useful moves (context switches and system calls) once per period. Two looks
//! without a change, while work is supposed to be going on, end in [`crate::panic::hang`].

use crate::kstats::Stat;
use crate::sched;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use kstat::Counters;
use ksync::arch::smp_processor_id;

static PERIOD_NS: AtomicU64 = AtomicU64::new(0);
static NEXT_LOOK_NS: AtomicU64 = AtomicU64::new(u64::MAX);
static LAST_PROGRESS: AtomicU64 = AtomicU64::new(0);

/// Starts watching with a period of `seconds`; 0 turns it off.
pub fn start(seconds: u64) {
    PERIOD_NS.store(seconds * 1_000_000_000, Relaxed);
    if seconds > 0 {
        NEXT_LOOK_NS.store(
            crate::arch::clock::now_ns() + seconds * 1_000_000_000,
            Relaxed,
        );
    }
}

/// How long CPU 0 may sleep at most.
pub fn idle_bound_ns(cpu: usize) -> u64 {
    match PERIOD_NS.load(Relaxed) {
        0 => u64::MAX,
        period if cpu == 0 => period,
        _ => u64::MAX,
    }
}

/// Looks if it is time to. Timer interrupt of CPU 0.
pub fn tick(now_ns: u64) {
    if smp_processor_id() != 0 || now_ns < NEXT_LOOK_NS.load(Relaxed) {
        return;
    }
    let period = PERIOD_NS.load(Relaxed);
    NEXT_LOOK_NS.store(now_ns + period, Relaxed);
    let progress = sched::nr_switches() + Stat::nr_syscalls.sum();
    let before = LAST_PROGRESS.swap(progress, Relaxed);
    let waits = crate::timer::any_armed() || crate::tty::is_in_use();
    if before == progress && !waits {
        crate::panic::hang(format_args!("no progress in {} s", period / 1_000_000_000));
    }
}
