//! A bitmap with one atomic bit per possible CPU.
//!
//! Each bit is set and cleared by one locked instruction, a full barrier, so a mask can stand in a protocol ("I set my
//! bit, then I look"). Nothing is promised about a mask as a whole: a walk reads word after word.
use crate::NR_CPUS;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

const WORDS: usize = NR_CPUS / 64;

/// A set of CPUs. Single bits change atomically; nothing is promised about the set as a whole.
#[derive(Debug)]
pub struct CpuMask {
    words: [AtomicU64; WORDS],
}

impl CpuMask {
    /// The empty set (for initialisers).
    #[allow(clippy::declare_interior_mutable_const)]
    pub const EMPTY: CpuMask = CpuMask::new();

    /// The empty set.
    pub const fn new() -> Self {
        CpuMask {
            words: [const { AtomicU64::new(0) }; WORDS],
        }
    }

    /// Adds `cpu`. A full barrier; any context.
    #[inline]
    pub fn set(&self, cpu: usize) {
        self.words[cpu / 64].fetch_or(1 << (cpu % 64), SeqCst);
    }

    /// Removes `cpu`. A full barrier; any context.
    #[inline]
    pub fn clear(&self, cpu: usize) {
        self.words[cpu / 64].fetch_and(!(1 << (cpu % 64)), SeqCst);
    }

    /// Adds `cpu`; returns whether it was there before. A full barrier.
    #[inline]
    pub fn test_and_set(&self, cpu: usize) -> bool {
        self.words[cpu / 64].fetch_or(1 << (cpu % 64), SeqCst) >> (cpu % 64) & 1 != 0
    }

    /// Removes `cpu`; returns whether it was there before. A full barrier.
    #[inline]
    pub fn test_and_clear(&self, cpu: usize) -> bool {
        self.words[cpu / 64].fetch_and(!(1 << (cpu % 64)), SeqCst) >> (cpu % 64) & 1 != 0
    }

    /// Whether `cpu` is in the set. No ordering.
    #[inline]
    pub fn test(&self, cpu: usize) -> bool {
        self.words[cpu / 64].load(Relaxed) >> (cpu % 64) & 1 != 0
    }

    /// Number of CPUs in the set.
    pub fn weight(&self) -> usize {
        self.words
            .iter()
            .map(|w| w.load(Relaxed).count_ones() as usize)
            .sum()
    }

    /// Whether no CPU is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| w.load(Relaxed) == 0)
    }

    /// The lowest CPU in the set.
    pub fn first(&self) -> Option<usize> {
        self.iter().next()
    }

    /// The CPUs in ascending order. Each word is read once, when the walk reaches it.
    pub fn iter(&self) -> Iter<'_> {
        Iter {
            mask: self,
            word: 0,
            bits: self.words[0].load(Relaxed),
        }
    }

    /// Adds every CPU of `other`.
    pub fn or_with(&self, other: &CpuMask) {
        for (a, b) in self.words.iter().zip(&other.words) {
            let bits = b.load(Relaxed);
            if bits != 0 {
                a.fetch_or(bits, SeqCst);
            }
        }
    }

    /// Removes every CPU.
    pub fn clear_all(&self) {
        for w in &self.words {
            w.store(0, SeqCst);
        }
    }
}

impl Clone for CpuMask {
    fn clone(&self) -> Self {
        let copy = CpuMask::new();
        for (to, from) in copy.words.iter().zip(&self.words) {
            to.store(from.load(Relaxed), Relaxed);
        }
        copy
    }
}

/// Iterator of [`CpuMask::iter`].
pub struct Iter<'a> {
    mask: &'a CpuMask,
    word: usize,
    bits: u64,
}

impl Iterator for Iter<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        while self.bits == 0 {
            self.word += 1;
            self.bits = self.mask.words.get(self.word)?.load(Relaxed);
        }
        let bit = self.bits.trailing_zeros() as usize;
        self.bits &= self.bits - 1;
        Some(self.word * 64 + bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    /// A small generator, so that the crate needs no other.
    fn next(state: &mut u64) -> usize {
        *state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (*state >> 33) as usize
    }

    #[test]
    fn agrees_with_a_set() {
        let (mask, mut model, mut state) = (CpuMask::new(), BTreeSet::new(), 42);
        for step in 0..5000 {
            let cpu = next(&mut state) % NR_CPUS;
            match next(&mut state) % 5 {
                0 => {
                    mask.set(cpu);
                    model.insert(cpu);
                }
                1 => {
                    mask.clear(cpu);
                    model.remove(&cpu);
                }
                2 => assert_eq!(mask.test_and_set(cpu), !model.insert(cpu)),
                3 => assert_eq!(mask.test_and_clear(cpu), model.remove(&cpu)),
                _ => assert_eq!(mask.test(cpu), model.contains(&cpu)),
            }
            if step % 50 == 0 {
                assert!(mask.iter().eq(model.iter().copied()));
                assert_eq!(mask.weight(), model.len());
                assert_eq!(mask.first(), model.first().copied());
                assert_eq!(mask.is_empty(), model.is_empty());
            }
        }
        let copy = mask.clone();
        let other = CpuMask::new();
        other.set(NR_CPUS - 1);
        other.or_with(&copy);
        model.insert(NR_CPUS - 1);
        assert_eq!(
            other.iter().collect::<Vec<_>>(),
            model.into_iter().collect::<Vec<_>>()
        );
        other.clear_all();
        assert!(other.is_empty() && other.iter().next().is_none());
    }
}
