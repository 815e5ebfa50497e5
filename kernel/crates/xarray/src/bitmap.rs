//! `PagedBitmap`: which numbers are taken, one bit each, pages of bits allocated on first use.
//!
//! Problem. To know that a number is taken needs one bit, not a slot of a tree; and one bit can be taken
//! without a lock.
//!
//! Mechanism. An array of pages, each with a count of its zero bits. A bit is taken by an atomic OR: who
//! finds it set already has lost, and takes the next zero bit. A page is allocated by whoever needs it
//! first; who loses that race frees its own. Pages stay until the bitmap goes.
//!
//! Invariants
//! - INV-BITMAP-1 (one owner): a bit goes from 0 to 1 by one atomic OR that saw 0.
//! - INV-BITMAP-2 (count): `nr_free` is the number of zero bits, but for operations under way.

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering::*};
use slab::{AllocError, KBox};

type Bits<const WORDS: usize> = [AtomicU64; WORDS];

struct Page<const WORDS: usize> {
    nr_free: AtomicU32,
    /// A leaked KBox; null until first use.
    bits: AtomicPtr<Bits<WORDS>>,
}

/// `PAGES` pages of `WORDS` times 64 bits.
pub struct PagedBitmap<const PAGES: usize, const WORDS: usize> {
    pages: KBox<[Page<WORDS>; PAGES]>,
}

impl<const PAGES: usize, const WORDS: usize> PagedBitmap<PAGES, WORDS> {
    const PER_PAGE: u32 = WORDS as u32 * 64;

    /// All zero; no pages.
    pub fn new() -> Result<Self, AllocError> {
        Ok(PagedBitmap {
            pages: KBox::new(
                [const {
                    Page {
                        nr_free: AtomicU32::new(WORDS as u32 * 64),
                        bits: AtomicPtr::new(ptr::null_mut()),
                    }
                }; PAGES],
            )?,
        })
    }

    fn bits(page: &Page<WORDS>) -> Option<&Bits<WORDS>> {
        // SAFETY: set once, to a box that stays until the bitmap is dropped.
        unsafe { page.bits.load(Acquire).as_ref() }
    }

    #[cold]
    fn first_use(page: &Page<WORDS>) -> Result<&Bits<WORDS>, AllocError> {
        let fresh = KBox::into_raw(KBox::new([const { AtomicU64::new(0) }; WORDS])?);
        match page
            .bits
            .compare_exchange(ptr::null_mut(), fresh.as_ptr(), AcqRel, Acquire)
        {
            // SAFETY: ours, now the bitmap's until it is dropped.
            Ok(_) => Ok(unsafe { fresh.as_ref() }),
            Err(theirs) => {
                // SAFETY: `fresh` was never shown; `theirs` is the page's box.
                unsafe {
                    drop(KBox::from_raw(fresh));
                    Ok(&*theirs)
                }
            }
        }
    }

    fn bits_or_new(page: &Page<WORDS>) -> Result<&Bits<WORDS>, AllocError> {
        match Self::bits(page) {
            Some(bits) => Ok(bits),
            None => Self::first_use(page),
        }
    }

    /// Takes the first zero bit of [start, end), page by page; None: there was none. Lock-free; may allocate.
    pub fn take_from(&self, start: u32, end: u32) -> Result<Option<u32>, AllocError> {
        let mut nr = start;
        while nr < end {
            let page = &self.pages[(nr / Self::PER_PAGE) as usize];
            let base = nr - nr % Self::PER_PAGE;
            if page.nr_free.load(Relaxed) == 0 {
                nr = base + Self::PER_PAGE;
                continue;
            }
            let bits = Self::bits_or_new(page)?;
            let last = (end - base).min(Self::PER_PAGE);
            if let Some(at) = Self::take_in(bits, nr - base, last) {
                page.nr_free.fetch_sub(1, Relaxed);
                return Ok(Some(base + at));
            }
            nr = base + Self::PER_PAGE;
        }
        Ok(None)
    }

    fn take_in(bits: &Bits<WORDS>, start: u32, end: u32) -> Option<u32> {
        let mut at = start;
        while at < end {
            let word = &bits[(at / 64) as usize];
            let zero = !word.load(Relaxed) >> (at % 64) << (at % 64);
            if zero == 0 {
                at = (at | 63) + 1;
                continue;
            }
            at = at / 64 * 64 + zero.trailing_zeros();
            if at >= end {
                return None;
            }
            // INV-BITMAP-1; if another was quicker, the same word again.
            ksync::arch::interleave();
            if word.fetch_or(1 << (at % 64), Acquire) >> (at % 64) & 1 == 0 {
                return Some(at);
            }
        }
        None
    }

    /// Takes bit `nr`; false: it is taken. May allocate.
    pub fn take(&self, nr: u32) -> Result<bool, AllocError> {
        let page = &self.pages[(nr / Self::PER_PAGE) as usize];
        let bits = Self::bits_or_new(page)?;
        let (word, bit) = (nr % Self::PER_PAGE / 64, nr % 64);
        let won = bits[word as usize].fetch_or(1 << bit, Acquire) >> bit & 1 == 0;
        if won {
            page.nr_free.fetch_sub(1, Relaxed);
        }
        Ok(won)
    }

    /// Gives bit `nr`, the caller's, back.
    pub fn put(&self, nr: u32) {
        let page = &self.pages[(nr / Self::PER_PAGE) as usize];
        if let Some(bits) = Self::bits(page) {
            let (word, bit) = (nr % Self::PER_PAGE / 64, nr % 64);
            let before = bits[word as usize].fetch_and(!(1 << bit), Release);
            debug_assert!(before >> bit & 1 == 1, "INV-BITMAP-1");
            page.nr_free.fetch_add(1, Relaxed);
        }
    }

    /// The first set bit at or after `from`.
    pub fn next_set(&self, from: u32) -> Option<u32> {
        let mut nr = from;
        while let Some(page) = self.pages.get((nr / Self::PER_PAGE) as usize) {
            let base = nr - nr % Self::PER_PAGE;
            if let Some(bits) = Self::bits(page) {
                let mut at = nr - base;
                while at < Self::PER_PAGE {
                    let set = bits[(at / 64) as usize].load(Acquire) >> (at % 64) << (at % 64);
                    if set != 0 {
                        return Some(base + at / 64 * 64 + set.trailing_zeros());
                    }
                    at = (at | 63) + 1;
                }
            }
            nr = base + Self::PER_PAGE;
        }
        None
    }

    /// Panics on a broken INV-BITMAP-2; returns (bits set, pages). For tests, with nobody else around.
    pub fn check_invariants(&self) -> (usize, usize) {
        let (mut set, mut nr_pages) = (0, 0);
        for page in self.pages.iter() {
            let free = match Self::bits(page) {
                None => Self::PER_PAGE,
                Some(bits) => {
                    nr_pages += 1;
                    bits.iter().map(|w| w.load(Relaxed).count_zeros()).sum()
                }
            };
            assert_eq!(free, page.nr_free.load(Relaxed), "INV-BITMAP-2");
            set += (Self::PER_PAGE - free) as usize;
        }
        (set, nr_pages)
    }
}

impl<const PAGES: usize, const WORDS: usize> Drop for PagedBitmap<PAGES, WORDS> {
    fn drop(&mut self) {
        for page in self.pages.iter() {
            if let Some(bits) = ptr::NonNull::new(page.bits.load(Relaxed)) {
                // SAFETY: from `KBox::into_raw` in `first_use`; nobody uses the bitmap any more.
                drop(unsafe { KBox::from_raw(bits) });
            }
        }
    }
}
