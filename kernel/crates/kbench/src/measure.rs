//! The measuring loop: clock, operation, clock, record.
//!
//! Problem: two readings of the clock cost something themselves, and a loop written anew for every
//! benchmark measures something else in each.
//!
//! Mechanism: the clock is a closure (`lfence; rdtsc; lfence` in the kernel and in user programs,
//! the monotonic clock on the host). [`Overhead::of`] takes the smallest distance of adjacent
//! readings; [`measure()`] subtracts it from every sample, so that an empty operation counts 0.

use crate::Histogram;

/// What two adjacent clock readings cost (cycles).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overhead(pub u64);

impl Overhead {
    /// The smallest of 64 distances between adjacent readings of `clock`.
    pub fn of(mut clock: impl FnMut() -> u64) -> Overhead {
        let mut least = u64::MAX;
        for _ in 0..64 {
            let start = clock();
            let end = clock();
            least = least.min(end.saturating_sub(start));
        }
        Overhead(least)
    }

    /// Cycles between two readings, without the readings.
    #[inline]
    pub const fn between(self, start: u64, end: u64) -> u64 {
        end.saturating_sub(start).saturating_sub(self.0)
    }
}

/// How often to run an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Operations run before the timed ones and not recorded.
    pub warmup: u64,
    /// Operations recorded.
    pub ops: u64,
}

/// Runs `op` `plan.warmup + plan.ops` times and records each timed call into `into`. Returns the
/// cycles from the first timed operation's start to the last one's end. May sleep if `op` may.
///
/// `op` is given the operation's number, counted from 0 through warm-up and timed part.
///
/// # Errors
/// The first error of `op`; what was recorded before it stays.
pub fn measure<E>(
    plan: Plan,
    mut clock: impl FnMut() -> u64,
    into: &mut Histogram,
    mut op: impl FnMut(u64) -> Result<(), E>,
) -> Result<u64, E> {
    let overhead = Overhead::of(&mut clock);
    for i in 0..plan.warmup {
        op(i)?;
    }
    let first = clock();
    let mut end = first;
    for i in plan.warmup..plan.warmup + plan.ops {
        let start = clock();
        op(i)?;
        end = clock();
        into.record(overhead.between(start, end));
    }
    Ok(end.saturating_sub(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;
    use std::vec::Vec;

    /// A clock on which each reading costs 7 cycles.
    fn clock(now: &Cell<u64>) -> impl FnMut() -> u64 {
        || {
            now.set(now.get() + 7);
            now.get()
        }
    }

    #[test]
    fn the_clock_costs_nothing() {
        let now = Cell::new(1000);
        let mut h = Histogram::try_new().unwrap();
        let mut seen = Vec::new();
        let plan = Plan { warmup: 3, ops: 5 };
        let total = measure(plan, clock(&now), &mut h, |i| {
            seen.push(i);
            now.set(now.get() + 100 * (i + 1));
            Ok::<(), ()>(())
        });
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!((h.count(), h.min(), h.max()), (5, 400, 800));
        assert_eq!(h.mean_centi(), 60_000);
        assert_eq!(total, Ok(400 + 500 + 600 + 700 + 800 + 5 * 14));
    }

    #[test]
    fn an_error_stops_the_loop() {
        let now = Cell::new(0);
        let mut h = Histogram::try_new().unwrap();
        let plan = Plan { warmup: 1, ops: 10 };
        let result = measure(plan, clock(&now), &mut h, |i| {
            if i == 4 { Err("four") } else { Ok(()) }
        });
        assert_eq!((result, h.count()), (Err("four"), 3));
    }

    #[test]
    fn a_clock_that_steps_back_gives_zero() {
        assert_eq!(Overhead(5).between(100, 90), 0);
        assert_eq!(Overhead(5).between(100, 103), 0);
        assert_eq!(Overhead(5).between(100, 106), 1);
    }
}
