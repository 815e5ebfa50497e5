//! A log-linear histogram of cycle counts: exact extremes and mean, quantiles within 1 %.
//!
//! Problem: p99 of a million operations without keeping a million samples, without an allocation
//! while recording, and mergeable across CPUs.
//!
//! Mechanism: values below 128 have a bucket each. Above, each power of two is divided into
//! [`SUB`] equal buckets, so a bucket is at most 1/64 of its value wide, and its middle is at most
//! 1/128 (0.8 %) from any value in it:
//!
//! ```text
//! value      0 .. 127 | 128,129 | 130,131 | ... | 254,255 | 256..259 | ...
//! bucket     0 .. 127 |   128   |   129   | ... |   191   |   192    | ...
//! ```
//!
//! Values from [`LIMIT`] on (about an hour of cycles) share the last bucket; `max` and the mean stay
//! exact. Invariants: INV-KBENCH-1, 2 and 3 of the crate.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// log2 of the number of buckets per power of two.
const SUB_BITS: u32 = 6;
/// Buckets per power of two.
pub const SUB: usize = 1 << SUB_BITS;
/// Values at or above 2^LIMIT_BITS fall into the last bucket.
const LIMIT_BITS: u32 = 44;
/// First value that is not resolved any more (cycles).
pub const LIMIT: u64 = 1 << LIMIT_BITS;
/// Number of buckets (10 KiB of counters).
pub const NR_BUCKETS: usize = ((LIMIT_BITS - SUB_BITS) as usize + 1) * SUB;

const _: () = assert!(bucket_of(LIMIT - 1) == NR_BUCKETS - 1);
const _: () = assert!(bucket_of(127) == 127 && bucket_of(128) == 128 && bucket_of(129) == 128);

/// The memory for a histogram could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// Counts of cycle values; see the module text. Single owner, any context.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u32; NR_BUCKETS]>,
    count: u64,
    sum: u128,
    min: u64,
    max: u64,
}

/// The bucket of `value`: a shift, an add and a compare.
#[inline]
const fn bucket_of(value: u64) -> usize {
    if value < 2 * SUB as u64 {
        return value as usize;
    }
    let value = if value < LIMIT { value } else { LIMIT - 1 };
    let shift = value.ilog2() - SUB_BITS;
    ((shift as usize) << SUB_BITS) + (value >> shift) as usize
}

/// The middle of bucket `index` (rounded down).
const fn middle_of(index: usize) -> u64 {
    if index < 2 * SUB {
        return index as u64;
    }
    let shift = (index >> SUB_BITS) as u32 - 1;
    let low = ((index & (SUB - 1)) + SUB) as u64;
    (low << shift) + ((1 << shift) >> 1)
}

impl Histogram {
    /// An empty histogram. Allocates its 10 KiB here and never again.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn try_new() -> Result<Histogram, OutOfMemory> {
        let mut counts: Vec<u32> = Vec::new();
        counts
            .try_reserve_exact(NR_BUCKETS)
            .map_err(|_| OutOfMemory)?;
        counts.resize(NR_BUCKETS, 0);
        let counts = counts
            .into_boxed_slice()
            .try_into()
            .map_err(|_| OutOfMemory)?;
        Ok(Histogram {
            counts,
            count: 0,
            sum: 0,
            min: u64::MAX,
            max: 0,
        })
    }

    /// Records one operation that took `cycles`. No allocation, no lock.
    #[inline]
    pub fn record(&mut self, cycles: u64) {
        let slot = &mut self.counts[bucket_of(cycles)];
        *slot = slot.saturating_add(1);
        self.count += 1;
        self.sum += u128::from(cycles);
        self.min = self.min.min(cycles);
        self.max = self.max.max(cycles);
    }

    /// Adds everything `other` recorded (INV-KBENCH-3).
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts.iter()) {
            *mine = mine.saturating_add(*theirs);
        }
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        (self.count, self.sum, self.min, self.max) = (0, 0, u64::MAX, 0);
    }

    /// Number of recorded operations.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Sum of all recorded cycles.
    pub const fn sum(&self) -> u128 {
        self.sum
    }

    /// Smallest recorded value (cycles), exact; 0 if nothing was recorded.
    pub const fn min(&self) -> u64 {
        if self.count == 0 { 0 } else { self.min }
    }

    /// Greatest recorded value (cycles), exact; 0 if nothing was recorded.
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// Exact mean in hundredths of a cycle, rounded to nearest; 0 if nothing was recorded.
    pub fn mean_centi(&self) -> u64 {
        if self.count == 0 {
            return 0;
        }
        let count = u128::from(self.count);
        u64::try_from((self.sum * 100 + count / 2) / count).unwrap_or(u64::MAX)
    }

    /// The sample at rank `ceil(permille * count / 1000)`, within 1 % (INV-KBENCH-2); 0 if nothing
    /// was recorded. `quantile(500)` is the median.
    pub fn quantile(&self, permille: u32) -> u64 {
        let rank = (u128::from(self.count) * u128::from(permille.min(1000)))
            .div_ceil(1000)
            .max(1);
        if rank >= u128::from(self.count) {
            return self.max;
        }
        let mut seen = 0u128;
        for (index, nr) in self.counts.iter().enumerate() {
            seen += u128::from(*nr);
            if seen >= rank {
                return middle_of(index).clamp(self.min(), self.max);
            }
        }
        self.max
    }

    /// The median (cycles).
    pub fn p50(&self) -> u64 {
        self.quantile(500)
    }

    /// The 99th percentile (cycles).
    pub fn p99(&self) -> u64 {
        self.quantile(990)
    }

    /// Asserts INV-KBENCH-1 (a saturated bucket is the one permitted exception).
    pub fn check_invariants(&self) {
        let saturated = self.counts.contains(&u32::MAX);
        let sum: u64 = self.counts.iter().map(|nr| u64::from(*nr)).sum();
        assert!(
            saturated || sum == self.count,
            "INV-KBENCH-1: {sum} in buckets, {} counted",
            self.count
        );
        let mut last = self.min();
        for permille in [0, 1, 10, 100, 500, 900, 990, 999, 1000] {
            let value = self.quantile(permille);
            assert!(
                last <= value && value <= self.max(),
                "INV-KBENCH-1: quantiles out of order"
            );
            last = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// Values spread over all magnitudes rather than uniformly.
    fn cycles() -> impl Strategy<Value = u64> {
        (0u32..LIMIT_BITS, any::<u64>()).prop_map(|(bits, v)| v & ((1 << bits) - 1))
    }

    fn of(values: &[u64]) -> Histogram {
        let mut h = Histogram::try_new().unwrap();
        values.iter().for_each(|v| h.record(*v));
        h.check_invariants();
        h
    }

    fn figures(h: &Histogram) -> (u64, u64, u64, u64, Vec<u64>) {
        let q = (0..=1000).map(|p| h.quantile(p)).collect();
        (h.count(), h.min(), h.max(), h.mean_centi(), q)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

        #[test]
        fn agrees_with_a_sorted_vector(values in prop::collection::vec(cycles(), 1..400)) {
            let h = of(&values);
            let mut sorted = values.clone();
            sorted.sort_unstable();
            prop_assert_eq!(h.min(), sorted[0]);
            prop_assert_eq!(h.max(), *sorted.last().unwrap());
            let sum: u128 = values.iter().map(|v| u128::from(*v)).sum();
            let nr = values.len() as u128;
            prop_assert_eq!(u128::from(h.mean_centi()), (sum * 100 + nr / 2) / nr);
            for permille in [1usize, 10, 250, 500, 900, 990, 999, 1000] {
                let truth = sorted[(values.len() * permille).div_ceil(1000) - 1];
                let got = h.quantile(permille as u32);
                prop_assert!(got.abs_diff(truth) * 100 <= truth, "p{}: {} for {}", permille, got, truth);
            }
        }

        #[test]
        fn merge_equals_recording_everything(
            a in prop::collection::vec(cycles(), 0..100),
            b in prop::collection::vec(cycles(), 0..100),
        ) {
            let both: Vec<u64> = a.iter().chain(&b).copied().collect();
            let (mut ab, mut ba) = (of(&a), of(&b));
            ab.merge(&of(&b));
            ba.merge(&of(&a));
            ab.check_invariants();
            prop_assert_eq!(figures(&ab), figures(&of(&both)));
            prop_assert_eq!(figures(&ab), figures(&ba));
        }

        #[test]
        fn every_bucket_holds_its_own_middle(value in cycles()) {
            let middle = middle_of(bucket_of(value));
            prop_assert_eq!(bucket_of(middle), bucket_of(value));
            prop_assert!(middle.abs_diff(value) * 128 <= value);
        }
    }

    #[test]
    fn buckets_are_monotonic_at_every_power_of_two() {
        for bits in 1..=LIMIT_BITS {
            let v = 1u64 << bits;
            assert!(bucket_of(v) - bucket_of(v - 1) <= 1);
            assert!(bucket_of(v) <= bucket_of(v + 1));
        }
    }

    #[test]
    fn empty_and_extreme() {
        let mut h = of(&[]);
        assert_eq!(
            (h.min(), h.p50(), h.p99(), h.max(), h.mean_centi()),
            (0, 0, 0, 0, 0)
        );
        h.record(u64::MAX);
        h.record(u64::MAX);
        h.record(0);
        h.check_invariants();
        assert_eq!((h.min(), h.max(), h.count()), (0, u64::MAX, 3));
        h.clear();
        assert_eq!(figures(&h), figures(&of(&[])));
    }

    #[test]
    fn single_value_is_exact() {
        let h = of(&[123_457]);
        assert_eq!(
            (h.p50(), h.p99(), h.mean_centi()),
            (123_457, 123_457, 12_345_700)
        );
    }
}
