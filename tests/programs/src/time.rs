//! Cycles and nanoseconds.

use crate::abi::{CLOCK_MONOTONIC, Timespec};
use crate::sys;
use crate::sys::at_mut;
use core::arch::asm;

/// The time-stamp counter, with everything before finished and nothing after begun.
#[inline(always)]
pub fn cycles() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter; no memory, no stack.
    unsafe {
        asm!("lfence", "rdtsc", "lfence", out("eax") low, out("edx") high, options(nostack, nomem));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// The monotonic clock (ns).
pub fn now_ns() -> i64 {
    let mut now = Timespec::default();
    sys!(CLOCK_GETTIME, CLOCK_MONOTONIC, at_mut(&mut now));
    now.sec * 1_000_000_000 + now.nsec
}

/// Sleeps for at least `ns`; a signal may end it early.
pub fn sleep_ns(ns: i64) {
    let time = Timespec {
        sec: ns / 1_000_000_000,
        nsec: ns % 1_000_000_000,
    };
    sys!(NANOSLEEP, crate::sys::at(&time), 0);
}
