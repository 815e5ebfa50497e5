//! The allocation map of a chunk: first fit over a bitmap, with hints that make misses cheap.
//!
//! Problem: find n free granules in a row, fast when the answer is no, and without visiting the
//! full front part of the map each time.
//!
//! Mechanism: a bit per granule, 1 = taken. `first_free` skips the full front. `hint` bounds the
//! longest free run from above: an allocation above it fails without a look, and a search that
//! fails has seen every run and makes the hint exact.
//!
//! Locks: none; the owner's lock guards the map.
//!
//! INV-MAP-1: `free` is the number of zero bits.
//! INV-MAP-2: no bit below `first_free` is zero.
//! INV-MAP-3: no run of zero bits is longer than `hint`.

/// A map of `WORDS * 64` granules.
#[repr(C)]
pub(crate) struct Map<const WORDS: usize> {
    free: u32,
    hint: u32,
    first_free: u32,
    _pad: u32,
    words: [u64; WORDS],
}

impl<const WORDS: usize> Map<WORDS> {
    /// Granules in the map.
    pub const LEN: usize = WORDS * 64;

    /// A map with every granule free.
    pub const fn new() -> Self {
        Map {
            free: Self::LEN as u32,
            hint: Self::LEN as u32,
            first_free: 0,
            _pad: 0,
            words: [0; WORDS],
        }
    }

    /// Free granules.
    pub fn nr_free(&self) -> usize {
        self.free as usize
    }

    /// Upper bound of the longest free run.
    pub fn hint(&self) -> usize {
        self.hint as usize
    }

    /// Takes the first `n` free granules in a row that start at a multiple of `align` (a power of
    /// two). None: there is no such run, and the hint is exact now.
    pub fn alloc(&mut self, n: usize, align: usize) -> Option<usize> {
        debug_assert!(n > 0 && align.is_power_of_two());
        if n > self.hint() {
            return None;
        }
        let mut at = self.next(self.first_free as usize, false, Self::LEN);
        self.first_free = at as u32;
        let mut longest = 0;
        while at < Self::LEN {
            let start = at.next_multiple_of(align);
            let end = self.next(at, true, (start + n).min(Self::LEN));
            if end >= start + n {
                self.take(start, n);
                return Some(start);
            }
            longest = longest.max(end - at);
            at = self.next(end, false, Self::LEN);
        }
        self.hint = longest as u32;
        None
    }

    /// Whether no granule of the range is taken.
    pub fn is_free(&self, start: usize, n: usize) -> bool {
        self.next(start, true, start + n) == start + n
    }

    /// Marks a range as taken. It must be free.
    pub fn take(&mut self, start: usize, n: usize) {
        self.for_words(start, n, |word, mask| {
            assert!(*word & mask == 0, "percpu map: taken twice");
            *word |= mask;
        });
        self.free -= n as u32;
        if start == self.first_free as usize {
            self.first_free = (start + n) as u32;
        }
        self.hint = self.hint.min(self.free);
    }

    /// Marks a taken range as free. Panics on a double free.
    pub fn free(&mut self, start: usize, n: usize) {
        self.for_words(start, n, |word, mask| {
            assert!(*word & mask == mask, "percpu map: freed twice");
            *word &= !mask;
        });
        self.free += n as u32;
        self.first_free = self.first_free.min(start as u32);
        // The new run may join one on each side, and neither is longer than the hint.
        self.hint = (2 * self.hint + n as u32).min(self.free);
    }

    /// The first granule at or after `from` and before `limit` that is taken (or free); `limit`
    /// if there is none.
    fn next(&self, from: usize, taken: bool, limit: usize) -> usize {
        let mut at = from;
        while at < limit {
            let word = self.words[at / 64];
            let wanted = (if taken { word } else { !word }) >> (at % 64);
            if wanted != 0 {
                return (at + wanted.trailing_zeros() as usize).min(limit);
            }
            at = (at / 64 + 1) * 64;
        }
        limit
    }

    /// Calls `f` with each word of the range and the bits of it that lie in the range.
    fn for_words(&mut self, start: usize, n: usize, mut f: impl FnMut(&mut u64, u64)) {
        let end = start + n;
        let mut at = start;
        while at < end {
            let bits = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - bits)) << (at % 64);
            f(&mut self.words[at / 64], mask);
            at += bits;
        }
    }

    /// Panics unless INV-MAP-1 to 3 hold.
    #[cfg(test)]
    pub fn check_invariants(&self) {
        let mut run = 0;
        let mut free = 0;
        for i in 0..Self::LEN {
            if self.words[i / 64] >> (i % 64) & 1 == 0 {
                assert!(i >= self.first_free as usize);
                run += 1;
                free += 1;
                assert!(run <= self.hint());
            } else {
                run = 0;
            }
        }
        assert_eq!(free, self.nr_free());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const LEN: usize = Map::<3>::LEN;

    /// First fit, by looking.
    fn model_alloc(taken: &mut [bool], n: usize, align: usize) -> Option<usize> {
        let start = (0..LEN)
            .step_by(align)
            .find(|&s| s + n <= LEN && taken[s..s + n].iter().all(|t| !t))?;
        taken[start..start + n].fill(true);
        Some(start)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn matches_first_fit(ops in prop::collection::vec((any::<bool>(), 1..80usize, 0..5u32, any::<usize>()), 1..200)) {
            let mut map = Map::<3>::new();
            let mut taken = [false; LEN];
            let mut held: Vec<(usize, usize)> = Vec::new();
            for (is_alloc, n, align, pick) in ops {
                if is_alloc || held.is_empty() {
                    let n = if pick % 4 == 0 { n } else { n % 8 + 1 };
                    let got = map.alloc(n, 1 << align);
                    prop_assert_eq!(got, model_alloc(&mut taken, n, 1 << align));
                    held.extend(got.map(|start| (start, n)));
                } else {
                    let (start, n) = held.swap_remove(pick % held.len());
                    map.free(start, n);
                    taken[start..start + n].fill(false);
                }
                map.check_invariants();
            }
            for (start, n) in held.drain(..) {
                map.free(start, n);
            }
            prop_assert_eq!(map.nr_free(), LEN);
            prop_assert_eq!(map.alloc(LEN, 1), Some(0));
        }
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn a_double_free_panics() {
        let mut map = Map::<1>::new();
        let a = map.alloc(4, 1).unwrap();
        map.free(a, 4);
        map.free(a + 1, 2);
    }

    #[test]
    fn a_failed_search_makes_the_hint_exact() {
        let mut map = Map::<1>::new();
        while map.alloc(4, 1).is_some() {}
        map.free(8, 4);
        map.free(16, 4);
        assert!(map.hint() >= 4);
        assert_eq!(map.alloc(5, 1), None);
        assert_eq!(map.hint(), 4);
    }
}
