//! Moving a cached page to another memory node, while processes map, read and write it.
//!
//! Problem. Memory should be where it is used, and a page in use cannot stand still for long: faults, `read` and `write`
//! find it without a lock.
//!
//! Mechanism. The new page takes the old one's place in the cache first, marked [`MOVING`]; who finds it there waits.
//! Then the old page loses its users, one kind after the other:
//!
//! ```text
//!   in i_pages   new page instead of the old, whose mapping is null   no new look-up finds the old one
//!   grace period                                                      who had found it has counted himself by now
//!   unmap        walk of i_mmap                                       no page table shows it, no CPU translates to it
//!   count        only the move itself holds it?                       no: put the old page back, Busy
//!   copy         MOVING is cleared, those who wait are woken
//! ```
//!
//! A fault that entered the old page meanwhile sees that it is no longer cached and takes it out again, as when it is
//! truncated (INV-PCACHE-2). If the file is cut during the move the new page is out of the cache already, and just dies.
//!
//! Lock order: `i_pages_lock` for moments; `unmap` takes `i_mmap` and page table locks. Who waits may hold `mmap_lock`:
//! the mover takes none.
//!
//! Invariants
//! - INV-MOVE-1: a page with MOVING is in the cache of one file, and who finds it there waits. The new page of a move is in
//!   no page table, and nobody reads or writes its bytes but its mover.
//! - INV-MOVE-2: at most one of the two pages is in the cache, at every moment one of them unless the file is cut.

use crate::reclaim::DIRTY;
use crate::space::{AddressSpace, put_rcu};
use core::sync::atomic::Ordering::*;
use ksync::{WaitQueue, arch, rcu};
use page_alloc::{Gfp, PageKind, PageRef, alloc_pages_node};
use xarray::Preload;

/// In a page's flags: its content is on its way, or it is about to be given back.
pub(crate) const MOVING: u32 = 1;
/// It has been given back: who finds it looks again.
pub(crate) const GONE: u32 = 4;

/// How many grace periods a move waits for others to let go of the page.
const PATIENCE: usize = 4;

pub(crate) static MOVED: WaitQueue = WaitQueue::new();

/// Why a page stays where it is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum MoveError {
    /// It is not in memory.
    NotCached,
    /// Somebody holds it and does not let go.
    Busy,
    /// The node has no memory left.
    Oom,
}

/// Whether who has found `page` may not use it, but waits and looks again.
#[inline(always)]
pub(crate) fn is_moving(page: PageRef) -> bool {
    page.flags().load(Acquire) & (MOVING | GONE) != 0
}

/// Waits until `page`, which the caller holds, has its content, or has been given up.
#[cold]
pub(crate) fn wait_moved(page: PageRef) {
    MOVED.wait_until(|| page.flags().load(Acquire) & MOVING == 0);
}

impl AddressSpace {
    /// Moves the page at `pgoff` to `node`. `unmap` removes it from all page tables and flushes. Sleeps; no lock is held
    /// but what the caller's callers hold outside `i_mmap`, and not the `mmap_lock` of anybody who waits for a fault.
    pub fn migrate_page(
        &self,
        pgoff: u64,
        node: usize,
        unmap: impl FnOnce(),
    ) -> Result<(), MoveError> {
        self.if_cached(pgoff, |old| match old.node() == node {
            true => Ok(()),
            false => self.replace(pgoff, old, node, unmap),
        })
    }

    /// As [`AddressSpace::migrate_page`], but a page that is on `node` already makes room too, as for compaction.
    pub fn replace_page(
        &self,
        pgoff: u64,
        node: usize,
        unmap: impl FnOnce(),
    ) -> Result<(), MoveError> {
        self.if_cached(pgoff, |old| self.replace(pgoff, old, node, unmap))
    }

    fn if_cached(
        &self,
        pgoff: u64,
        f: impl FnOnce(PageRef) -> Result<(), MoveError>,
    ) -> Result<(), MoveError> {
        let page = self.find_page(pgoff).ok_or(MoveError::NotCached)?;
        let result = f(page);
        page.put();
        result
    }

    /// Moves `old`, which the caller holds.
    fn replace(
        &self,
        pgoff: u64,
        old: PageRef,
        node: usize,
        unmap: impl FnOnce(),
    ) -> Result<(), MoveError> {
        let new = alloc_pages_node(node, 0, Gfp::THISNODE).map_err(|_| MoveError::Oom)?;
        new.set_kind(PageKind::File);
        new.set_index(pgoff as usize);
        new.flags().store(MOVING, Relaxed);
        // The tree's reference is the one it was made with; ours:
        new.get();
        if !self.exchange(pgoff, old, new) {
            new.put();
            new.put();
            return Err(MoveError::Busy);
        }
        rcu::synchronize();
        unmap();
        // The tree's reference to `old` is ours now, and the caller holds one.
        let alone = (0..PATIENCE).any(|i| {
            if i > 0 {
                rcu::synchronize();
            }
            old.ref_count() == 2
        });
        if alone {
            // SAFETY: both are held; INV-MOVE-1: nobody else touches the new one, and nobody writes the old one: no
            // page table shows it, and nobody holds it but we.
            unsafe { arch::copy_page(new.virt(), old.virt()) };
            // INV-DIRTY-1: before anybody can use it.
            new.flags()
                .fetch_or(old.flags().load(Acquire) & DIRTY, Relaxed);
        }
        let restored = !alone && self.exchange(pgoff, new, old);
        new.flags().fetch_and(!MOVING, AcqRel);
        MOVED.wake_all();
        // Readers may still look at either.
        put_rcu(if restored { new } else { old });
        new.put();
        if alone { Ok(()) } else { Err(MoveError::Busy) }
    }

    /// Puts `to` in the place of `from`; false if that is not there any more. The tree's references change hands: the
    /// caller's for `to` goes in, that for `from` comes out.
    fn exchange(&self, pgoff: u64, from: PageRef, to: PageRef) -> bool {
        let _held = self.pages_lock().lock();
        // SAFETY: i_pages_lock is held: the only writer.
        let mut tree = unsafe { self.pages().writer() };
        if tree.get(pgoff) != Some(from) {
            return false;
        }
        to.set_mapping(self);
        // A slot that holds something needs no nodes.
        let stored = tree.store(pgoff, to, &mut Preload::new()).is_ok();
        debug_assert!(stored);
        // INV-PCACHE-2.
        from.set_mapping::<AddressSpace>(core::ptr::null());
        stored
    }
}
