//! The file side of areas: linking them into `i_mmap`, and truncation's walk over them.
//!
//! Truncation against lock-free faults. The file system shrinks the file and takes the pages out
//! of the cache (each page's `mapping` becomes null), then calls [`unmap_mapping_range`]. A fault
//! enters the page by compare-and-swap and then looks whether it is still cached:
//!
//! ```text
//!   truncate:  mapping = null;  full barrier;  read entry -> zap if there
//!   fault:     cas entry (full barrier);       read mapping -> undo if null
//! ```
//!
//! Whatever the interleaving, one of them sees the other (INV-FAULT-2).

use crate::MmError;
use crate::mm::Mm;
use crate::pgtable::{L1_SHIFT, Pte, find_l1, for_ptes, index, walk_l1};
use crate::vma::VmaPtr;
use crate::zap::{Gather, zap_range};
use core::convert::Infallible;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering::SeqCst, fence};
use kbench::Phase;
use ksync::trace;
use ksync::{MmId, PAGE_SHIFT, PAGE_SIZE, arch};
use page_alloc::PageRef;
use rmap::{AddressSpace, Adjust, FileRmap, Filler, MapNode, Resize};
use slab::KArc;

/// First and last page of the file that `start..end` of `v` shows.
fn pages_of(v: VmaPtr, start: usize, end: usize) -> (u64, u64) {
    debug_assert!(start >= v.start());
    let first = v.pgoff_of(start);
    (first, first + ((end - start) >> PAGE_SHIFT) as u64 - 1)
}

/// Makes the area's node ready to be linked for the first time.
#[inline]
fn prepare(v: VmaPtr) -> NonNull<MapNode> {
    let (first, last) = pages_of(v, v.start(), v.end());
    let node = v.map_node();
    // SAFETY: part of the area, which nobody but us knows yet (the callers' promise).
    unsafe { node.write(MapNode::new(first, last)) };
    // SAFETY: just written.
    unsafe { node.as_ref() }.set_owner(v.as_raw().cast());
    node
}

/// Links a new area of a file. May sleep.
pub(crate) fn link(v: VmaPtr) {
    let Some(file) = &v.file else { return };
    // SAFETY: unlinked; stays in place until `unlink` (INV-VMA-1), and holds the file.
    timed(|| unsafe { file.i_mmap().insert(prepare(v)) });
}

/// Runs `f` as part of the phase "i_mmap".
#[inline(always)]
fn timed(f: impl FnOnce()) {
    let timer = trace::begin();
    f();
    trace::end(Phase::IMmap as usize, timer);
}

/// Links `child`, which shows the pages of `parent` or later ones, and runs `copy`, which copies or moves entries from the one
/// to the other under page table locks; no walk misses one (INV-FORK-1). May sleep.
#[inline]
pub(crate) fn fork<R>(parent: VmaPtr, child: VmaPtr, copy: impl FnOnce() -> R) -> R {
    let Some(file) = &child.file else {
        return copy();
    };
    // The copy is timed as what it is, not as part of "i_mmap".
    let timer = trace::begin();
    // SAFETY: as in `link`; the parent is linked while its mmap_lock is held for write.
    unsafe {
        file.i_mmap().fork(parent.map_node(), prepare(child), || {
            trace::end(Phase::IMmap as usize, timer);
            copy()
        })
    }
}

/// Areas per hold of a file's `i_mmap` at fork.
const LINK_BATCH: usize = 8;

/// Links copies of areas of files from which no entries are copied, several of the same file in one hold.
pub(crate) struct Linker {
    pairs: [(NonNull<MapNode>, NonNull<MapNode>); LINK_BATCH],
    nr: usize,
    /// A copy that waits.
    first: Option<VmaPtr>,
}

impl Linker {
    pub(crate) const fn new() -> Self {
        Linker {
            pairs: [(NonNull::dangling(), NonNull::dangling()); LINK_BATCH],
            nr: 0,
            first: None,
        }
    }

    /// Takes on `child`, which shows the pages of `parent`, both of one file. Nobody can fault in it, or see it, before
    /// `flush`. May sleep.
    #[inline(always)]
    pub(crate) fn add(&mut self, parent: VmaPtr, child: VmaPtr) {
        let same = |a: VmaPtr| match (&a.file, &child.file) {
            (Some(a), Some(b)) => KArc::ptr_eq(a, b),
            _ => false,
        };
        if self.nr == LINK_BATCH || !self.first.is_none_or(same) {
            self.flush();
        }
        self.pairs[self.nr] = (parent.map_node(), prepare(child));
        self.nr += 1;
        self.first = Some(child);
    }

    /// Links all that were taken on. May sleep.
    pub(crate) fn flush(&mut self) {
        let pairs = &self.pairs[..self.nr];
        if let Some(file) = self.first.as_ref().and_then(|v| v.file.as_ref()) {
            // SAFETY: as in `link`; the parents are linked while their mmap_lock is held for write.
            timed(|| unsafe { file.i_mmap().insert_copies(pairs) });
        }
        self.nr = 0;
        self.first = None;
    }
}

/// Unlinks an area of a file: no walker knows it any more when this returns. May sleep.
#[inline]
pub(crate) fn unlink(v: VmaPtr) {
    let Some(file) = &v.file else { return };
    // SAFETY: linked since `link`, `fork` or `Linker::flush`.
    timed(|| unsafe { file.i_mmap().remove(&[v.map_node()]) });
}

/// Areas per hold of a file's `i_mmap` at exit.
const UNLINK_BATCH: usize = 8;

/// Unlinks areas of files, several of the same file in one hold.
pub(crate) struct Unlinker {
    nodes: [Option<VmaPtr>; UNLINK_BATCH],
    nr: usize,
}

impl Unlinker {
    pub(crate) const fn new() -> Self {
        Unlinker {
            nodes: [None; UNLINK_BATCH],
            nr: 0,
        }
    }

    /// Takes on an area of a file; it stays valid until `flush`.
    #[inline]
    pub(crate) fn add(&mut self, v: VmaPtr) {
        let same = |a: VmaPtr| match (&a.file, &v.file) {
            (Some(a), Some(b)) => KArc::ptr_eq(a, b),
            _ => false,
        };
        if self.nr == UNLINK_BATCH || !self.nodes[0].is_none_or(same) {
            self.flush();
        }
        self.nodes[self.nr] = Some(v);
        self.nr += 1;
    }

    /// Unlinks all that were taken on. May sleep.
    #[inline]
    pub(crate) fn flush(&mut self) {
        if self.nr != 0 {
            self.unlink_all();
        }
    }

    fn unlink_all(&mut self) {
        let mut nodes = [NonNull::dangling(); UNLINK_BATCH];
        let mut file = None;
        for (node, v) in nodes.iter_mut().zip(self.nodes.iter().flatten()) {
            *node = v.map_node();
            file = v.file.as_ref();
        }
        if let Some(file) = file {
            // SAFETY: so many have been set, all linked in this file's i_mmap.
            timed(|| unsafe { file.i_mmap().remove(&nodes[..self.nr]) });
        }
        *self = Self::new();
    }
}

/// Runs `change`, which gives `v` the range `to` (within what it has, or longer at the end), and
/// links `new`: all at once for walkers. May sleep.
pub(crate) fn adjust(v: VmaPtr, to: (usize, usize), new: Option<VmaPtr>, change: impl FnOnce()) {
    let Some(file) = &v.file else { return change() };
    let (first, last) = pages_of(v, to.0, to.1);
    let node = v.map_node();
    let insert = new.map(prepare);
    let adjust = Adjust {
        resize: &[Resize { node, first, last }],
        insert: insert.as_slice(),
        ..Adjust::default()
    };
    // SAFETY: `v` is linked, `new` is not; both as in `link`.
    unsafe { file.i_mmap().adjust(adjust, change) };
}

/// The pages behind a shared anonymous mapping of `len` bytes.
pub(crate) fn new_shmem(len: usize) -> Result<KArc<AddressSpace>, MmError> {
    Ok(AddressSpace::new(
        Filler::Zero,
        len as u64,
        b"/dev/zero (deleted)",
    )?)
}

/// Removes every mapping of pages `first..=last` of `file`, in all address spaces; private copies
/// too if `even_cows` (truncation: yes; punching a hole: no).
///
/// Protocol: first set the size and take the pages out of the cache (`AddressSpace::truncate`),
/// then call this. May sleep; takes `i_mmap` and, under it, page table locks.
pub fn unmap_mapping_range(file: &AddressSpace, first: u64, last: u64, even_cows: bool) {
    unmap(file, first, last, |pte| even_cows || !pte.is_anon());
}

fn unmap(file: &AddressSpace, first: u64, last: u64, which: impl Fn(Pte) -> bool) {
    // INV-FAULT-2: between the caller's clearing of `mapping` and our reading of entries.
    fence(SeqCst);
    for_each_mapping(file, first, last, |_, mm, start, end| {
        zap_range(&mut Gather::new(mm), mm, start, end, &which);
    });
}

/// Calls `f` with each area that shows pages of first..=last, its address space, and where these pages are there.
/// `i_mmap` is held.
fn for_each_mapping(
    file: &AddressSpace,
    first: u64,
    last: u64,
    mut f: impl FnMut(VmaPtr, &Mm, usize, usize),
) {
    file.i_mmap().for_each_overlap(first, last, |node| {
        let Some(v) = VmaPtr::from_raw(node.owner().cast()) else {
            return;
        };
        let from = first.max(node.first()) - node.first();
        let to = last.min(node.last()) - node.first() + 1;
        let start = v.start() + ((from as usize) << PAGE_SHIFT);
        let end = v.start() + ((to as usize) << PAGE_SHIFT);
        // SAFETY: INV-VMA-3: the mm outlives the area's membership, which `i_mmap` holds now.
        f(v, unsafe { v.mm.as_ref() }, start, end);
    });
}

/// Gives back up to `target` clean pages of files, wherever they are mapped; returns how many. Sleeps; takes what
/// [`rmap::reclaim::shrink`] says.
pub fn reclaim_pages(target: usize) -> usize {
    rmap::reclaim::shrink(target, unmap_leaving)
}

/// For a caller that may sleep and was refused memory: gives back clean pages of files, unless memory is not what was
/// missing; whether it is worth trying again. As [`reclaim_pages`].
#[cold]
pub fn reclaim_for_retry() -> bool {
    /// Pages that nobody holds, beyond which there is memory.
    const ENOUGH: usize = 64;
    /// Pages given back at once.
    const PAGES: usize = 128;
    /// With fewer, two pages that one instruction needs could chase each other for ever.
    const WORTH_IT: usize = 16;
    let in_buddies = |node| {
        let stat = page_alloc::nr_free(node);
        stat.free.saturating_sub(stat.on_lists)
    };
    let free: usize = (0..arch::nr_node_ids()).map(in_buddies).sum();
    free < ENOUGH && reclaim_pages(PAGES) >= WORTH_IT
}

/// The walk of a reclaim: see [`rmap::reclaim`].
pub fn unmap_leaving(file: &AddressSpace, first: u64, last: u64) {
    unmap(file, first, last, |pte| {
        !pte.is_anon() && rmap::reclaim::is_leaving(pte.page())
    });
}

/// Makes pages first..=last of `file` clean where they can be: takes the write permission from all shared mappings, so
/// that the next write is noticed, and compares with the archive ([`rmap::reclaim`]). Returns how many stay dirty.
/// Sleeps; takes `i_mmap`, and under it page table locks.
pub fn clean_mapping_range(file: &AddressSpace, first: u64, last: u64) -> usize {
    let (mut at, mut dirty) = (first, 0);
    while let Some(pgoff) = file.next_dirty(at, last) {
        let clean = file.clean_page(pgoff, |page| write_protect(file, pgoff, page));
        dirty += usize::from(!clean);
        at = pgoff + 1;
    }
    dirty
}

/// Takes the write permission from all entries of `page`, at `pgoff` of `file`; returns how many there are.
fn write_protect(file: &AddressSpace, pgoff: u64, page: PageRef) -> u32 {
    let mut shown = 0;
    for_each_mapping(file, pgoff, pgoff, |_, mm, addr, _| {
        let Some(t1) = find_l1(mm.pgd(), addr) else {
            return;
        };
        let mut gather = Gather::new(mm);
        // The table stays: an area that `i_mmap` knows needs it (INV-ZAP-2).
        let _lock = mm.page_table_lock().lock();
        let slot = t1.slot(index(addr, L1_SHIFT));
        let mut pte = slot.load();
        while !pte.is_none() && !pte.is_anon() && pte.page() == page {
            if slot.cas(pte, pte.wrprotect()) {
                shown += 1;
                if pte.is_writable() {
                    gather.cover(addr, PAGE_SIZE);
                }
                break;
            }
            pte = slot.load();
        }
    });
    shown
}

/// One area that shows a file.
pub struct Mapping {
    /// Its address space ([`Mm::id`]).
    pub mm: MmId,
    /// First address.
    pub start: usize,
    /// First address after.
    pub end: usize,
    /// Page of the file at `start`.
    pub pgoff: u64,
}

/// Calls `f` for each area that shows `file`. `i_mmap` is held: `f` may not sleep, nor fault. May sleep.
pub fn for_each_mapping_of(file: &AddressSpace, mut f: impl FnMut(Mapping)) {
    for_each_mapping(file, 0, u64::MAX, |v, mm, start, end| {
        f(Mapping {
            mm: mm.id(),
            start,
            end,
            pgoff: v.pgoff.get(),
        });
    });
}

impl Mm {
    /// Makes pages of shared mappings in `start..start + len` clean, where they can be ([`clean_mapping_range`]). May
    /// sleep; `mmap_lock` is held for moments only.
    pub fn sync_range(&self, start: usize, len: usize) {
        let (mut at, end) = (start, start.saturating_add(len));
        while at < end {
            let (file, first, last) = {
                let tree = self.mmap_lock().read();
                let Some(v) = tree.find(at).filter(|v| v.start() < end) else {
                    return;
                };
                let (from, to) = (at.max(v.start()), end.min(v.end()));
                at = v.end();
                let Some(file) = v.file.as_ref().filter(|_| v.is_shared()) else {
                    continue;
                };
                let (first, last) = pages_of(v, from, to.next_multiple_of(PAGE_SIZE));
                (file.clone(), first, last)
            };
            clean_mapping_range(&file, first, last);
        }
    }

    /// Entries that show a page which its file does not own (any more), or at another place, or that allow writes which
    /// nobody would notice (INV-DIRTY-1). While files are cut there
    /// may be some on their way out; when nobody walks there are none. Takes `mmap_lock` for write: faults are excluded.
    pub fn nr_stale_entries(&self) -> usize {
        let tree = self.mmap_lock().write();
        let mut stale = 0;
        let mut at = tree.first();
        while let Some(v) = at {
            at = tree.next(v);
            let Some(file) = &v.file else { continue };
            let done: Result<(), Infallible> =
                walk_l1(self.pgd(), v.start(), v.end(), |t1, a, b| {
                    for_ptes(t1, a, b, |_, pte, va| {
                        let shows_file = !pte.is_anon() && !pte.is_special();
                        let fine = || {
                            let page = pte.page();
                            let noticed = !pte.is_writable() || file.is_dirty(page);
                            file.still_cached(page)
                                && page.index() as u64 == v.pgoff_of(va)
                                && (noticed || !file.tracks_writes())
                        };
                        stale += usize::from(shows_file && !fine());
                        Ok(())
                    })
                });
            match done {
                Ok(()) => {}
                Err(e) => match e {},
            }
        }
        stale
    }
}
