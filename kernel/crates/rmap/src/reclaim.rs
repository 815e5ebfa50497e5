//! Clean pages: which pages of a file nobody has changed, and giving these back when memory runs short.
//!
//! Problem. Most of the memory of a machine that has run for a while is pages of files that can be had again. When there
//! is no other memory they must go, out of all page tables that show them, while processes read, write and map them.
//!
//! Which pages. There is no disk here: a page can be had again only if the file's filler would make the same bytes, that
//! is, a page of a file of the boot archive that nobody has written to. Pages of tmpfs and of shared memory have no
//! other copy, and private pages neither (there is no swap).
//!
//! Mechanism, writes. A page is written through `write`, or through a shared writable mapping. Both mark it [`DIRTY`]:
//! entries of shared mappings of such files begin without write permission, and the fault that gives it marks the page
//! (`page_mkwrite` elsewhere). [`AddressSpace::clean_page`] takes the permission away again (msync) and, if the bytes are
//! the archive's once more, the mark: the archive is a storage that takes only what it has.
//!
//! ```text
//!   writer:   get page; make the entry writable; DIRTY = 1; put page
//!   cleaner:  get page; DIRTY = 0; walk: entries lose RW, count them, flush;
//!             nobody holds the page but the cache, the entries counted and me, and the bytes are the archive's?
//!             no: DIRTY = 1
//! ```
//!
//! A writer whose reference the cleaner does not see came after it has looked, or has marked the page after the cleaner
//! took the mark away.
//!
//! Mechanism, reclaim. A handful of pages of one file at a time, as migration does it ([`crate::migrate`]): MOVING, so
//! that who finds them waits; a grace period, and who had found them has counted himself; a walk takes them out of page
//! tables; then what nobody holds and nobody has written leaves the cache as GONE, the rest stays. A second grace period,
//! and nobody looks at them. Pages that no page table shows go first.
//!
//! Lock order: under `reclaim_files` nothing is taken. `i_pages_lock` for moments; the walks take `i_mmap` and page table locks. A
//! caller of [`shrink`] holds none of these and is in no RCU section; it may hold `mmap_lock` and inode locks: nobody
//! who waits for a page that is on its way holds what this takes.
//!
//! Invariants
//! - INV-DIRTY-1: a page of a file that [`tracks_writes`](AddressSpace::tracks_writes) and is not DIRTY has the bytes that
//!   the filler would make, unless somebody holds a reference who will mark it, or a cleaner who is not done. Entries of
//!   shared mappings show it without write permission, with the same exceptions.

use crate::migrate::{GONE, MOVED, MOVING};
use crate::space::AddressSpace;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicUsize, Ordering::*};
use ksync::{LockClass, SpinLock, rcu};
use page_alloc::PageRef;
use slab::{KArc, List};

/// In a page's flags: it has been written, see INV-DIRTY-1.
pub(crate) const DIRTY: u32 = 2;

/// Pages per walk. 1 KiB of stack.
const BATCH: usize = 64;
/// Pages looked at per hold of `i_pages_lock`.
const SCAN: usize = 256;

static CLASS: LockClass = LockClass::new("reclaim_files");
/// Files with an owner whose pages can be given back; the next to look at is in front.
static FILES: SpinLock<List<AddressSpace, 0>> = SpinLock::new(List::new(), &CLASS);
static NR_RECLAIMED: AtomicUsize = AtomicUsize::new(0);

/// A file that has an owner now.
pub(crate) fn register(space: &KArc<AddressSpace>) {
    if space.tracks_writes() {
        let known = FILES.lock().push_back(space.clone());
        debug_assert!(known.is_ok(), "one owner per file");
    }
}

/// Its owner is about to go.
pub(crate) fn forget(space: &KArc<AddressSpace>) {
    if space.tracks_writes() {
        let reference = FILES.lock().remove(space);
        drop(reference);
    }
}

/// Pages given back since boot.
pub fn nr_reclaimed() -> usize {
    NR_RECLAIMED.load(Relaxed)
}

/// Whether a walk on behalf of [`AddressSpace::reclaim`] is to take `page` out of page tables.
#[inline(always)]
pub fn is_leaving(page: PageRef) -> bool {
    page.flags().load(Relaxed) & MOVING != 0
}

/// Gives back up to `target` clean pages of files, about; returns how many. `unmap` takes those pages of first..=last
/// that [`is_leaving`] says out of all page tables, and flushes. Sleeps; locks: see above.
pub fn shrink(target: usize, mut unmap: impl FnMut(&AddressSpace, u64, u64)) -> usize {
    let mut freed = 0;
    for mapped in [false, true] {
        let mut left = FILES.lock().len();
        while left > 0 && freed < target {
            left -= 1;
            let Some(file) = next_file() else { break };
            freed += file.reclaim(target - freed, mapped, &mut unmap);
        }
    }
    freed
}

fn next_file() -> Option<KArc<AddressSpace>> {
    let mut files = FILES.lock();
    let first = files.pop_front()?;
    let reference = first.clone();
    // It was in no list.
    let _ = files.push_back(first);
    Some(reference)
}

/// Pages on their way out, each with a reference.
struct Batch {
    pages: [MaybeUninit<(u64, PageRef)>; BATCH],
    nr: usize,
}

impl Batch {
    fn new() -> Self {
        Batch {
            pages: [const { MaybeUninit::uninit() }; BATCH],
            nr: 0,
        }
    }

    fn push(&mut self, pgoff: u64, page: PageRef) {
        self.pages[self.nr].write((pgoff, page));
        self.nr += 1;
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, PageRef)> + '_ {
        // SAFETY: so many have been written.
        self.pages[..self.nr]
            .iter()
            .map(|p| unsafe { p.assume_init() })
    }
}

impl AddressSpace {
    /// Says that `page` of this file is written now. The caller holds a reference, since before the first byte.
    #[inline(always)]
    pub fn mark_dirty(&self, page: PageRef) {
        if self.tracks_writes() && page.flags().load(Relaxed) & DIRTY == 0 {
            page.flags().fetch_or(DIRTY, AcqRel);
        }
    }

    /// Whether `page` of this file has been written (INV-DIRTY-1).
    #[inline]
    pub fn is_dirty(&self, page: PageRef) -> bool {
        page.flags().load(Acquire) & DIRTY != 0
    }

    /// The first page of from..=last that has been written.
    pub fn next_dirty(&self, from: u64, last: u64) -> Option<u64> {
        let guard = rcu::read_lock();
        let mut at = from;
        while at <= last
            && let Some((pgoff, page)) = self.pages().next(&guard, at, last)
        {
            if self.is_dirty(page) {
                return Some(pgoff);
            }
            at = pgoff + 1;
        }
        None
    }

    /// Makes the page at `pgoff` clean if it can be; whether it is. `protect` takes the write permission from all entries
    /// that show the page it is given, flushes, and returns how many show it. Sleeps.
    pub fn clean_page(&self, pgoff: u64, protect: impl FnOnce(PageRef) -> u32) -> bool {
        let Some(page) = self.find_page(pgoff) else {
            return true;
        };
        let was_dirty = page.flags().fetch_and(!DIRTY, AcqRel) & DIRTY != 0;
        let mut clean = true;
        if was_dirty {
            let shown = protect(page);
            // In this order: who is not counted now will mark it again.
            clean = page.ref_count() == shown + 2 && self.is_as_filled(pgoff, page);
            if !clean {
                page.flags().fetch_or(DIRTY, AcqRel);
            }
        }
        page.put();
        clean
    }

    /// Gives back up to `target` clean pages, only those that nobody maps or uses unless `mapped`; returns how many.
    /// See [`shrink`].
    pub fn reclaim(
        &self,
        target: usize,
        mapped: bool,
        mut unmap: impl FnMut(&AddressSpace, u64, u64),
    ) -> usize {
        let (mut at, mut freed) = (Some(0), 0);
        while let Some(from) = at
            && freed < target
            && self.tracks_writes()
            && self.nr_pages() > 0
        {
            let mut batch = Batch::new();
            at = self.gather(&mut batch, from, (target - freed).min(BATCH), mapped);
            if batch.nr > 0 {
                freed += self.give_back(&batch, &mut unmap);
            }
        }
        NR_RECLAIMED.fetch_add(freed, Relaxed);
        freed
    }

    /// Marks and holds up to `most` pages from `from` on that may go. Returns where to go on.
    fn gather(&self, batch: &mut Batch, from: u64, most: usize, mapped: bool) -> Option<u64> {
        let _held = self.pages_lock().lock();
        // SAFETY: i_pages_lock is held: the only writer.
        let tree = unsafe { self.pages().writer() };
        let mut at = from;
        for _ in 0..SCAN {
            let (pgoff, page) = tree.next(at, u64::MAX - 1)?;
            at = pgoff + 1;
            let free = mapped || page.ref_count() == 1;
            if free && page.flags().load(Acquire) & (MOVING | DIRTY) == 0 {
                // INV-MOVE-1: under the lock only we set it on a page that is in the cache.
                page.flags().fetch_or(MOVING, AcqRel);
                page.get();
                batch.push(pgoff, page);
                if batch.nr == most {
                    break;
                }
            }
        }
        Some(at)
    }

    /// Takes out of the cache what nobody holds or has written; the rest may be used again. Returns how many went.
    fn give_back(&self, batch: &Batch, unmap: &mut impl FnMut(&AddressSpace, u64, u64)) -> usize {
        rcu::synchronize();
        // Who had found one of them has counted himself by now; the tree and we hold one reference each.
        let shown = |&(_, page): &(u64, PageRef)| page.ref_count() > 2;
        if let (Some((first, _)), Some((last, _))) =
            (batch.iter().find(shown), batch.iter().rev().find(shown))
        {
            unmap(self, first, last);
        }
        let mut gone = [false; BATCH];
        {
            let _held = self.pages_lock().lock();
            // SAFETY: i_pages_lock is held: the only writer.
            let mut tree = unsafe { self.pages().writer() };
            for ((pgoff, page), gone) in batch.iter().zip(&mut gone) {
                // In this order: a writer marks it while he holds it.
                *gone = page.ref_count() == 2
                    && page.flags().load(Acquire) & DIRTY == 0
                    && tree.get(pgoff) == Some(page);
                if *gone {
                    tree.erase(pgoff);
                    // INV-PCACHE-2.
                    page.set_mapping::<AddressSpace>(core::ptr::null());
                    page.flags().fetch_or(GONE, Relaxed);
                }
                page.flags().fetch_and(!MOVING, AcqRel);
            }
            let nr = gone.iter().filter(|&&g| g).count();
            self.count_removed(nr);
        }
        MOVED.wake_all();
        let freed = gone.iter().filter(|&&g| g).count();
        if freed > 0 {
            // INV-PCACHE-1: who still looks at one of them.
            rcu::synchronize();
        }
        for ((_, page), gone) in batch.iter().zip(gone) {
            if gone {
                // The tree's.
                page.put();
            }
            page.put();
        }
        freed
    }
}
