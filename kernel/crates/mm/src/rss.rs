//! Resident pages of an address space, by kind.
//!
//! Problem: each page that comes or goes changes a counter that /proc reads and limits look at.
//! Mechanism: this is the view; where the copies of a counter are is for [`crate::setup`]. Paths that move many pages
//! (fork, unmap, exit) sum up first and add once. Exact at every quiet moment.

use crate::setup::Shell;
use core::ptr::NonNull;

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
pub struct RssStat(NonNull<Shell>);

impl RssStat {
    /// The counters of a shell.
    ///
    /// # Safety
    /// The shell lives as long as the value.
    pub(crate) unsafe fn of(shell: NonNull<Shell>) -> Self {
        RssStat(shell)
    }

    /// The shell.
    #[inline(always)]
    pub(crate) fn shell(&self) -> &Shell {
        // SAFETY: the promise of `of`.
        unsafe { self.0.as_ref() }
    }

    /// Adds `pages` (may be negative). Any context but hard IRQ.
    #[inline]
    pub fn add(&self, kind: RssKind, pages: isize) {
        self.shell().add(kind as usize, pages);
    }

    /// Adds all kinds of `delta`.
    #[inline]
    pub(crate) fn add_all(&self, delta: &RssDelta) {
        for (kind, &n) in delta.iter().enumerate() {
            if n != 0 {
                self.shell().add(kind, n);
            }
        }
    }

    /// Resident pages of one kind.
    pub fn of_kind(&self, kind: RssKind) -> isize {
        self.shell().sum(kind as usize)
    }

    /// Resident pages of all kinds.
    pub fn total(&self) -> isize {
        (0..NR_RSS).map(|kind| self.shell().sum(kind)).sum()
    }
}
