//! `AddressSpace`: the pages of one file and who maps them.
//!
//! Problem. Faults and reads look pages up by offset on all CPUs at once; a page that is not there
//! yet must be made exactly once; truncation takes pages away under everybody's feet.
//!
//! Mechanism. `i_pages` is a radix tree read under RCU. The tree holds one reference to each page,
//! and gives it up only a grace period after the page left the tree: a reader who found a page
//! may therefore simply take a reference. Missing pages are made by the [`Filler`] outside the
//! lock; the loser of a race frees its page and takes the winner's.
//!
//! Truncation against faults:
//!
//! ```text
//!   truncate:  size = new; take pages out, mapping = null;  walk i_mmap, zap PTEs (PTE locks)
//!   fault:     page = find_or_create_page(..);  PTE lock { still_cached(page)? map it : retry }
//! ```
//!
//! If the check passed before the page was taken out, the PTE stands before the walk reaches that
//! PTE lock, and the walk zaps it. If the walk was there first, the check fails.
//!
//! Lock order: `i_pages_lock` is a leaf spinlock. Nothing here sleeps but the methods of `i_mmap`.
//!
//! Invariants
//! - INV-PCACHE-1 (reference): the tree owns one reference to each page in it; it is dropped no
//!   earlier than a grace period after the page left the tree, unless nobody else can read it.
//! - INV-PCACHE-2 (identity): a page in the tree at `i` has `mapping()` = this and `index()` = i;
//!   `mapping()` is null from before its removal returns.
//! - INV-PCACHE-3 (content): a page is in the tree only when filled; bytes past `fill_end` read zero
//!   unless somebody wrote them through the cache.
//! - INV-PCACHE-4 (end): `find_or_create_page` adds no page at or past the end that `size` had when
//!   the page was added.

use crate::contract::FileRmap;
use crate::i_mmap::{IMmap, IMmapKind};
use crate::migrate::{is_moving, wait_moved};
use crate::refs::RefsSlot;
use core::mem::size_of;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering::*};
use ksync::rcu::{self, RcuHead};
use ksync::{PAGE_SHIFT, PAGE_SIZE, SpinLock, arch, lock_class};
use page_alloc::{Gfp, PageKind, PageRef, alloc_page};
use slab::{AllocError, KArc};
use xarray::{NeedNodes, Preload, XArray};

/// The greatest size of a file, in bytes.
pub const MAX_FILE_SIZE: u64 = i64::MAX as u64 & !(PAGE_SIZE as u64 - 1);

/// Bytes kept of a name.
pub const NAME_LEN: usize = 63;

/// Why a page was not had.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum FillError {
    /// No memory for the page or for the tree. Nothing has changed.
    Oom,
    /// The offset is at or past the end of the file.
    PastEof,
}

/// What fills a page that is not in the cache.
#[derive(Copy, Clone, Debug)]
pub enum Filler {
    /// Zeroes: a file that lives only in its cache.
    Zero,
    /// Bytes that are always there (the initramfs), then zeroes.
    Static(&'static [u8]),
}

/// A file's pages and mappings.
///
/// # Invariants
/// INV-PCACHE-1..4.
pub struct AddressSpace {
    /// Readers: RCU. Writer: holds `i_pages_lock`.
    i_pages: XArray<PageRef>,
    i_pages_lock: SpinLock<()>,
    /// Pages in the tree. Written under `i_pages_lock`.
    nr_pages: AtomicUsize,
    /// Bytes. Written by the file system, which serialises its writers.
    size: AtomicU64,
    /// The filler's bytes from here on count as zero: the smallest size since the start.
    fill_end: AtomicU64,
    filler: Filler,
    i_mmap: IMmap,
    refs: RefsSlot,
    name: Name,
    /// For the file system above.
    owner: AtomicPtr<()>,
}

// The link is that of the files whose pages can be given back.
slab::object!(AddressSpace, "address_space", links = 1);

struct Name {
    len: u8,
    bytes: [u8; NAME_LEN],
}

/// The kind of `i_mmap` that new address spaces get.
static DEFAULT_KIND: AtomicU8 = AtomicU8::new(IMmapKind::Global as u8);

/// Chooses the `i_mmap` of address spaces made from now on. Boot.
pub fn set_default_i_mmap(kind: IMmapKind) {
    DEFAULT_KIND.store(kind as u8, Relaxed);
}

fn default_kind() -> IMmapKind {
    IMmapKind::ALL[usize::from(DEFAULT_KIND.load(Relaxed))].1
}

// The RCU head of a page that left the tree lives in its last two words.
const RCU_WORD: usize = page_alloc::NR_WORDS - 2;
const _: () = assert!(size_of::<RcuHead>() == 2 * size_of::<usize>());

/// Drops a reference after a grace period (INV-PCACHE-1).
pub(crate) fn put_rcu(page: PageRef) {
    /// # Safety
    /// `head` is the last two words of a page given away below.
    unsafe fn callback(head: NonNull<RcuHead>) {
        // The descriptor is 64 bytes, aligned to 64.
        let desc = head.as_ptr().map_addr(|a| a & !63).cast();
        // SAFETY: within the descriptor the head is in, hence `as_ptr` of that page.
        unsafe { PageRef::from_ptr(NonNull::new_unchecked(desc)) }.put();
    }
    let offset = size_of::<page_alloc::Page>() - size_of::<RcuHead>();
    // SAFETY: the tree's reference keeps the descriptor's words the owner's, that is ours, until
    // the callback has run; the page is in no tree, so nobody else uses these two.
    unsafe {
        let head = page.as_ptr().byte_add(offset).cast::<RcuHead>();
        head.write(RcuHead::new());
        rcu::call(head, callback);
    }
}
const _: () = assert!(RCU_WORD >= 4, "words 2 and 3 are mapping and index");

impl AddressSpace {
    /// A file of `size` bytes made by `filler`, with no page in the cache. `name` is shown in
    /// /proc/PID/maps; what does not fit is cut off.
    pub fn new(filler: Filler, size: u64, name: &[u8]) -> Result<KArc<Self>, AllocError> {
        Self::new_with(filler, size, name, default_kind())
    }

    /// [`AddressSpace::new`] with a chosen `i_mmap`.
    pub fn new_with(
        filler: Filler,
        size: u64,
        name: &[u8],
        kind: IMmapKind,
    ) -> Result<KArc<Self>, AllocError> {
        let len = name.len().min(NAME_LEN);
        let mut bytes = [0; NAME_LEN];
        bytes[..len].copy_from_slice(&name[..len]);
        KArc::new(AddressSpace {
            i_pages: XArray::new(),
            i_pages_lock: SpinLock::new((), lock_class!("i_pages_lock")),
            nr_pages: AtomicUsize::new(0),
            size: AtomicU64::new(size.min(MAX_FILE_SIZE)),
            fill_end: AtomicU64::new(size.min(MAX_FILE_SIZE)),
            filler,
            i_mmap: IMmap::of(kind)?,
            refs: RefsSlot::new(),
            name: Name {
                len: len as u8,
                bytes,
            },
            owner: AtomicPtr::new(core::ptr::null_mut()),
        })
    }

    /// The mappings of this file.
    #[inline(always)]
    pub fn i_mmap(&self) -> &IMmap {
        &self.i_mmap
    }

    /// For [`crate::migrate`] and [`crate::reclaim`].
    pub(crate) fn pages(&self) -> &XArray<PageRef> {
        &self.i_pages
    }

    pub(crate) fn pages_lock(&self) -> &SpinLock<()> {
        &self.i_pages_lock
    }

    pub(crate) fn count_removed(&self, nr: usize) {
        self.nr_pages
            .store(self.nr_pages.load(Relaxed) - nr, Relaxed);
    }

    /// Whether somebody asks which pages have been written (INV-DIRTY-1): those of files that the boot archive has.
    #[inline(always)]
    pub fn tracks_writes(&self) -> bool {
        matches!(self.filler, Filler::Static(_))
    }

    #[inline(always)]
    pub(crate) fn refs(&self) -> &RefsSlot {
        &self.refs
    }

    /// The name given at creation, at most [`NAME_LEN`] bytes.
    pub fn name(&self) -> &[u8] {
        &self.name.bytes[..usize::from(self.name.len)]
    }

    /// A word of the file system whose file this is: where the file has a name, if it has. Means nothing here.
    pub fn owner(&self) -> &AtomicPtr<()> {
        &self.owner
    }

    /// The size in bytes.
    #[inline(always)]
    pub fn size(&self) -> u64 {
        self.size.load(Acquire)
    }

    /// Grows the file to at least `size` bytes; the new bytes read zero. Never shrinks. The caller
    /// serialises changes of the size.
    #[inline]
    pub fn extend(&self, size: u64) {
        if size > self.size() {
            self.size.store(size.min(MAX_FILE_SIZE), Release);
        }
    }

    /// Pages in the cache.
    #[inline]
    pub fn nr_pages(&self) -> usize {
        self.nr_pages.load(Relaxed)
    }

    /// Whether `page` is (still) in this cache. Under a PTE lock: see the picture above.
    #[inline(always)]
    pub fn still_cached(&self, page: PageRef) -> bool {
        core::ptr::eq(page.mapping::<AddressSpace>(), self)
    }

    /// The page at `pgoff` if it is in the cache, with a reference that the caller puts. Lockless; sleeps while the page
    /// is on its way to another node.
    #[inline]
    pub fn find_page(&self, pgoff: u64) -> Option<PageRef> {
        loop {
            let guard = rcu::read_lock();
            let page = self.i_pages.load(&guard, pgoff)?;
            // The tree's reference lives until our section ends (INV-PCACHE-1).
            page.get();
            drop(guard);
            if !is_moving(page) {
                return Some(page);
            }
            wait_moved(page);
            page.put();
        }
    }

    /// Calls `f` with the page at `pgoff` if it is in the cache, without a reference: `f` runs inside an RCU section,
    /// may take spinlocks and may not sleep. Any context.
    #[inline]
    pub fn with_page<R>(&self, pgoff: u64, f: impl FnOnce(PageRef) -> R) -> Option<R> {
        let guard = rcu::read_lock();
        // The tree's reference lives until our section ends (INV-PCACHE-1).
        let page = self.i_pages.load(&guard, pgoff)?;
        (!is_moving(page)).then(|| f(page))
    }

    /// Calls `f` with each cached page of [first, last] and a reference that `f` puts or keeps.
    /// `f` runs inside an RCU section: it may take spinlocks and may not sleep.
    pub fn for_each_cached(&self, first: u64, last: u64, mut f: impl FnMut(u64, PageRef)) {
        let guard = rcu::read_lock();
        self.i_pages.for_each(&guard, first, last, |pgoff, page| {
            if !is_moving(page) {
                page.get();
                f(pgoff, page);
            }
        });
    }

    /// The page at `pgoff`, made by the filler if it is not in the cache, with a reference that the
    /// caller puts. No spinlock may be held.
    #[inline]
    pub fn find_or_create_page(&self, pgoff: u64) -> Result<PageRef, FillError> {
        match self.find_page(pgoff) {
            // A page past the end may linger for a moment while the file is being cut.
            Some(page) if !self.is_past_end(pgoff) => Ok(page),
            Some(page) => {
                page.put();
                Err(FillError::PastEof)
            }
            None => self.create_page(pgoff, true),
        }
    }

    /// As [`AddressSpace::find_or_create_page`], whatever the size: for writes that are about to
    /// extend the file. The caller excludes truncation.
    pub fn find_or_create_page_for_write(&self, pgoff: u64) -> Result<PageRef, FillError> {
        if pgoff >= MAX_FILE_SIZE >> PAGE_SHIFT {
            return Err(FillError::PastEof);
        }
        match self.find_page(pgoff) {
            Some(page) => Ok(page),
            None => self.create_page(pgoff, false),
        }
    }

    #[inline(always)]
    fn is_past_end(&self, pgoff: u64) -> bool {
        pgoff >= self.size().div_ceil(PAGE_SIZE as u64)
    }

    #[cold]
    fn create_page(&self, pgoff: u64, inside: bool) -> Result<PageRef, FillError> {
        let mut spare = Preload::new();
        loop {
            if inside && self.is_past_end(pgoff) {
                return Err(FillError::PastEof);
            }
            let fill_end = self.fill_end.load(Acquire);
            let page = self.filled_page(pgoff, fill_end)?;
            page.set_kind(PageKind::File);
            page.set_mapping(self);
            page.set_index(pgoff as usize);
            #[cfg(test)]
            crate::tests::lose_the_race_often();
            loop {
                match self.add_page(pgoff, page, inside, fill_end, &mut spare) {
                    Added::Yes => return Ok(page),
                    Added::Found(winner) => {
                        discard(page);
                        if !is_moving(winner) {
                            return Ok(winner);
                        }
                        wait_moved(winner);
                        let cached = self.still_cached(winner);
                        if cached {
                            return Ok(winner);
                        }
                        winner.put();
                        break;
                    }
                    Added::Stale => {
                        discard(page);
                        break;
                    }
                    // The page is filled: it is worth keeping while the tree gets its nodes.
                    Added::Need(n) => {
                        if let Err(AllocError) = spare.fill(n) {
                            discard(page);
                            return Err(FillError::Oom);
                        }
                    }
                }
            }
        }
    }

    /// Puts a filled page into the tree. On `Yes` the tree's reference and the caller's are both
    /// counted.
    fn add_page(
        &self,
        pgoff: u64,
        page: PageRef,
        inside: bool,
        fill_end: u64,
        spare: &mut Preload,
    ) -> Added {
        let _held = self.i_pages_lock.lock();
        // SAFETY: i_pages_lock is held: the only writer.
        let mut tree = unsafe { self.i_pages.writer() };
        if let Some(winner) = tree.get(pgoff) {
            winner.get();
            return Added::Found(winner);
        }
        // INV-PCACHE-3, INV-PCACHE-4: truncation stores both before it takes the lock.
        if self.fill_end.load(Acquire) != fill_end || (inside && self.is_past_end(pgoff)) {
            return Added::Stale;
        }
        // INVARIANT: INV-PCACHE-1: the reference is there before readers can find the page.
        page.get();
        match tree.store(pgoff, page, spare) {
            Ok(_) => {
                self.nr_pages
                    .store(self.nr_pages.load(Relaxed) + 1, Relaxed);
                Added::Yes
            }
            Err(NeedNodes(n)) => {
                page.put();
                Added::Need(n)
            }
        }
    }

    /// What the filler has for the page at `pgoff`; zeroes follow.
    fn filler_bytes(&self, pgoff: u64, fill_end: u64) -> &'static [u8] {
        match self.filler {
            Filler::Zero => &[],
            Filler::Static(data) => {
                let end = (data.len() as u64).min(fill_end);
                let start = pgoff.checked_shl(PAGE_SHIFT).unwrap_or(u64::MAX).min(end);
                &data[start as usize..end.min(start.saturating_add(PAGE_SIZE as u64)) as usize]
            }
        }
    }

    /// Whether `page`, which the caller holds and nobody writes, has what the filler would make at `pgoff`.
    pub(crate) fn is_as_filled(&self, pgoff: u64, page: PageRef) -> bool {
        let data = self.filler_bytes(pgoff, self.fill_end.load(Acquire));
        // SAFETY: held; a page's bytes are initialised as far as the abstract machine knows.
        let bytes = unsafe { core::slice::from_raw_parts(page.virt(), PAGE_SIZE) };
        let (filled, rest) = bytes.split_at(data.len());
        filled == data && rest.iter().all(|&b| b == 0)
    }

    /// A page with the file's content at `pgoff`, seen by nobody else.
    fn filled_page(&self, pgoff: u64, fill_end: u64) -> Result<PageRef, FillError> {
        let data = self.filler_bytes(pgoff, fill_end);
        let gfp = if data.is_empty() {
            Gfp::ZERO
        } else {
            Gfp::empty()
        };
        let page = alloc_page(gfp).map_err(|_| FillError::Oom)?;
        if !data.is_empty() {
            let to = page.virt();
            // SAFETY: a fresh page of PAGE_SIZE bytes, ours alone; data.len() <= PAGE_SIZE.
            unsafe {
                if data.len() == PAGE_SIZE && data.as_ptr().addr().is_multiple_of(PAGE_SIZE) {
                    arch::copy_page(to, data.as_ptr());
                } else {
                    to.copy_from_nonoverlapping(data.as_ptr(), data.len());
                    to.add(data.len()).write_bytes(0, PAGE_SIZE - data.len());
                }
            }
        }
        Ok(page)
    }

    /// Sets the size. Shrinking takes the pages past the new end out of the cache, and clears the
    /// rest of the last page, so that the bytes read zero should the file grow again. Returns the
    /// number of pages taken out. Afterwards the caller zaps their mappings (the picture above).
    /// The caller serialises changes of the size; no spinlock may be held.
    pub fn truncate(&self, size: u64) -> usize {
        let size = size.min(MAX_FILE_SIZE);
        let old = self.size.swap(size, AcqRel);
        if size >= old {
            return 0;
        }
        self.fill_end.fetch_min(size, AcqRel);
        let freed = self.truncate_pages(size.div_ceil(PAGE_SIZE as u64));
        let used = size as usize & (PAGE_SIZE - 1);
        if used != 0
            && let Some(page) = self.find_page(size >> PAGE_SHIFT)
        {
            // SAFETY: our reference keeps the page; the range lies in it. Users may map it: file
            // contents are shared memory, and only their view is affected.
            unsafe { page.virt().add(used).write_bytes(0, PAGE_SIZE - used) };
            page.put();
        }
        freed
    }

    /// Takes all pages at or past `from` out of the cache and returns how many they were. Their
    /// memory is free after a grace period, once nobody else holds them.
    pub fn truncate_pages(&self, from: u64) -> usize {
        self.remove_pages(from, u64::MAX)
    }

    /// Takes the bytes `start..end` away: they read zero, and whole pages are free. The size stays. Afterwards the caller
    /// removes the mappings of the pages whose first and last numbers this returns. The caller excludes writers and
    /// changes of the size.
    pub fn punch(&self, start: u64, end: u64) -> Result<Option<(u64, u64)>, AllocError> {
        let end = end.min(self.size().next_multiple_of(PAGE_SIZE as u64));
        let (first, behind) = (start.div_ceil(PAGE_SIZE as u64), end >> PAGE_SHIFT);
        // Bytes of the archive would come back: there pages of zeroes stand in the hole.
        let filled = self.fill_end.load(Acquire).div_ceil(PAGE_SIZE as u64);
        let keep = match self.filler {
            Filler::Static(_) => filled.clamp(first, behind.max(first)),
            Filler::Zero => first,
        };
        let mut at = start;
        while at < end {
            let (pgoff, offset) = (at >> PAGE_SHIFT, at as usize & (PAGE_SIZE - 1));
            let n = (PAGE_SIZE - offset).min((end - at) as usize);
            let whole = pgoff >= first && pgoff < behind;
            if whole && pgoff >= keep {
                at = (behind << PAGE_SHIFT).max(at + n as u64);
                continue;
            }
            let page = match self.find_or_create_page(pgoff) {
                Ok(page) => page,
                Err(FillError::PastEof) => break,
                Err(FillError::Oom) => return Err(AllocError),
            };
            self.mark_dirty(page);
            // SAFETY: our reference keeps the page; the range lies in it. File contents are shared memory.
            unsafe { page.virt().add(offset).write_bytes(0, n) };
            page.put();
            at += n as u64;
        }
        if keep >= behind {
            return Ok(None);
        }
        self.remove_pages(keep, behind - 1);
        Ok(Some((keep, behind - 1)))
    }

    /// Takes the pages of [from, last] out of the cache.
    fn remove_pages(&self, from: u64, last: u64) -> usize {
        /// Pages per hold of the lock.
        const BATCH: usize = 64;
        let (mut at, mut freed) = (from, 0);
        loop {
            let mut batch = 0;
            let held = self.i_pages_lock.lock();
            // SAFETY: i_pages_lock is held: the only writer.
            let mut tree = unsafe { self.i_pages.writer() };
            while batch < BATCH
                && let Some((pgoff, page)) = tree.next(at, last)
            {
                tree.erase(pgoff);
                // INV-PCACHE-2.
                page.set_mapping::<AddressSpace>(core::ptr::null());
                put_rcu(page);
                batch += 1;
                at = pgoff;
            }
            self.nr_pages
                .store(self.nr_pages.load(Relaxed) - batch, Relaxed);
            drop(held);
            freed += batch;
            if batch < BATCH {
                return freed;
            }
        }
    }

    /// Panics unless the cache is as its invariants say. For tests, with nobody else around.
    pub fn check_invariants(&self) {
        let guard = rcu::read_lock();
        let (mut at, mut count) = (0, 0);
        while let Some((pgoff, page)) = self.i_pages.next(&guard, at, u64::MAX - 1) {
            assert!(
                self.still_cached(page) && page.index() as u64 == pgoff,
                "INV-PCACHE-2"
            );
            assert!(page.ref_count() >= 1, "INV-PCACHE-1");
            count += 1;
            at = pgoff + 1;
        }
        drop(guard);
        assert_eq!(count, self.nr_pages());
        self.i_mmap.check_invariants();
    }
}

/// Frees a page that never was in the tree.
fn discard(page: PageRef) {
    page.set_mapping::<AddressSpace>(core::ptr::null());
    page.put();
}

enum Added {
    Yes,
    Found(PageRef),
    /// The file was cut meanwhile.
    Stale,
    Need(usize),
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        debug_assert!(self.i_mmap.is_empty(), "INV-RMAP-1: mapped when dropped");
        self.i_pages.drain(|_, page| {
            page.set_mapping::<AddressSpace>(core::ptr::null());
            // Nobody else can read the tree: no grace period (INV-PCACHE-1).
            page.put();
        });
    }
}
