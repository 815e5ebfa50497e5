//! Resident pages of an address space, by kind.
//!
//! Problem: each page that comes or goes changes a counter that /proc reads and limits look at.
//! Mechanism: one atomic per kind. Paths that move many pages (fork, unmap, exit) sum up first and
//! add once. Exact at every quiet moment; other representations (per CPU, hierarchical) can take
//! this type's place.

use core::sync::atomic::{AtomicIsize, Ordering::Relaxed};

/// What kind of page is resident.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum RssKind {
    /// Page cache of a file.
    File = 0,
    /// Private memory.
    Anon = 1,
    /// Shared anonymous memory.
    Shmem = 2,
}

/// Number of kinds.
pub const NR_RSS: usize = 3;

/// Pages by kind, summed up before they are added to a [`RssStat`].
pub(crate) type RssDelta = [isize; NR_RSS];

/// Resident pages of one address space.
pub struct RssStat {
    counts: [AtomicIsize; NR_RSS],
}

impl RssStat {
    /// All zero.
    pub const fn new() -> Self {
        RssStat {
            counts: [const { AtomicIsize::new(0) }; NR_RSS],
        }
    }

    /// Adds `pages` (may be negative). Any context.
    #[inline]
    pub fn add(&self, kind: RssKind, pages: isize) {
        self.counts[kind as usize].fetch_add(pages, Relaxed);
    }

    /// Adds all kinds of `delta`.
    #[inline]
    pub(crate) fn add_all(&self, delta: &RssDelta) {
        for (count, &n) in self.counts.iter().zip(delta) {
            if n != 0 {
                count.fetch_add(n, Relaxed);
            }
        }
    }

    /// Pages of `kind`, now.
    pub fn get(&self, kind: RssKind) -> isize {
        self.counts[kind as usize].load(Relaxed)
    }

    /// Resident pages of all kinds.
    pub fn total(&self) -> isize {
        self.counts.iter().map(|c| c.load(Relaxed)).sum()
    }
}
