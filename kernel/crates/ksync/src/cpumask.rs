//! A bitmap with one atomic bit per possible CPU.
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
