//! The page descriptor and the handle to it.
//!
//! Problem. Every 4 KiB frame needs a few words that outlive any one owner: is it free, in which
//! block, on which node, how many references, who maps it. Owners (slab, page cache, page tables)
//! want a few words of their own on each frame.
//!
//! Mechanism. One array of 64-byte descriptors, the *vmemmap*, indexed by page frame number:
//! `pfn_to_page(pfn) = vmemmap_base() + pfn * 64`. A [`PageRef`] names one descriptor.
//!
//! ```text
//!   0        4          8          12       16                            64
//!   | tag    | refcount | mapcount | flags  | words[0..6]                  |
//!     state:8 order:8 node:8 kind:8          0,1 list links; all six are
//!                                            the owner's while allocated
//! ```
//!
//! States, and who may change them:
//!
//! ```text
//!   RESERVED --init_node--> FREE, INNER... <--Buddy--> ALLOCATED, TAIL...
//!                              FREE --refill--> ON_LIST <--alloc, free--> ALLOCATED
//! ```
//!
//! FREE and INNER are set and cleared only under the lock of the node's buddy; ON_LIST only by the
//! CPU that owns the list; ALLOCATED is left only by the caller who drops the last reference.
//!
//! # Invariants
//! - INV-PAGE-1: a descriptor is exactly 64 bytes and lives for ever: `&'static Page` is sound for
//!   every pfn the kernel has mapped in the vmemmap (see [`crate::init_node`]).
//! - INV-PAGE-2: state FREE marks exactly the first frame of each block on a buddy free list, and
//!   `order` is that block's order; the other frames of the block are INNER.
//! - INV-PAGE-3: a free page has refcount 0 and mapcount 0.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::*};
use ksync::{PAGE_SHIFT, arch};

/// Words of a descriptor that belong to the owner while the page is allocated.
pub const NR_WORDS: usize = 6;
/// log2 of the size of a descriptor.
const DESC_SHIFT: u32 = 6;

/// What a frame is doing. Stored in the low byte of the tag; zero-filled memory reads RESERVED.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PageState {
    /// Not managed: firmware, the kernel image, a hole.
    Reserved = 0,
    /// Inside a free block, not its first frame.
    Inner = 1,
    /// First frame of a free block on a buddy list.
    Free = 2,
    /// In a per-CPU page list.
    OnList = 3,
    /// First (or only) frame of an allocated block.
    Allocated = 4,
    /// A later frame of an allocated block; `order` says how to find the head.
    Tail = 5,
}

/// Who owns an allocated page. Reporting and type checks (is this pointer slab memory?).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PageKind {
    /// Nobody said.
    Kernel = 0,
    /// Slab memory.
    Slab = 1,
    /// Anonymous user memory.
    Anon = 2,
    /// Page cache.
    File = 3,
    /// A page table.
    PageTable = 4,
    /// A per-CPU chunk.
    Percpu = 5,
    /// A kernel stack.
    Stack = 6,
}

/// The descriptor of one frame. See the file's head for the layout.
#[repr(C, align(64))]
pub struct Page {
    tag: AtomicU32,
    refcount: AtomicU32,
    mapcount: AtomicU32,
    flags: AtomicU32,
    words: [AtomicUsize; NR_WORDS],
}

const _: () = assert!(size_of::<Page>() == 1 << DESC_SHIFT);

/// The kind's bits of the tag.
pub(crate) const KIND_MASK: u32 = 0xff << 24;

/// The tag's value for a state, order and node, with kind zero.
pub(crate) const fn tag(state: PageState, order: u32, node: usize) -> u32 {
    state as u32 | order << 8 | (node as u32) << 16
}

impl Page {
    /// A zero descriptor: RESERVED. For emulated vmemmaps.
    pub const fn new() -> Self {
        Page {
            tag: AtomicU32::new(0),
            refcount: AtomicU32::new(0),
            mapcount: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            words: [const { AtomicUsize::new(0) }; NR_WORDS],
        }
    }

    #[inline(always)]
    pub(crate) fn raw_tag(&self) -> u32 {
        self.tag.load(Relaxed)
    }

    #[inline(always)]
    pub(crate) fn set_tag(&self, tag: u32) {
        self.tag.store(tag, Relaxed);
    }

    /// State byte of the tag.
    #[inline(always)]
    pub(crate) fn state_is(&self, s: PageState) -> bool {
        self.raw_tag() as u8 == s as u8
    }

    #[inline(always)]
    pub(crate) fn order(&self) -> u32 {
        self.raw_tag() >> 8 & 0xff
    }

    #[inline(always)]
    pub(crate) fn node(&self) -> usize {
        (self.raw_tag() >> 16 & 0xff) as usize
    }

    #[inline(always)]
    pub(crate) fn words(&self) -> &[AtomicUsize; NR_WORDS] {
        &self.words
    }

    #[inline(always)]
    pub(crate) fn set_refcount_zero(&self) {
        self.refcount.store(0, Relaxed);
    }

    /// Hands the page to an owner: one reference, no mapping, no flags.
    #[inline(always)]
    pub(crate) fn make_allocated(&self, tag: u32) {
        self.tag.store(tag, Relaxed);
        self.flags.store(0, Relaxed);
        // Release: a speculative `try_get` that sees 1 sees the new tag.
        self.refcount.store(1, Release);
    }
}

/// A name for one page: copyable, pointer-sized, not an owner. Holding one says nothing about the
/// page's life; a reference count does ([`PageRef::get`], [`PageRef::put`]). The memory itself is
/// reached through the raw pointer [`PageRef::virt`], so using it is its user's proof obligation.
#[derive(Copy, Clone, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct PageRef(NonNull<Page>);

// SAFETY: a PageRef is an address; all fields behind it are atomics (INV-PAGE-1).
unsafe impl Send for PageRef {}
// SAFETY: as above.
unsafe impl Sync for PageRef {}

impl core::fmt::Debug for PageRef {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "PageRef(pfn {:#x})", self.pfn())
    }
}

impl PageRef {
    #[inline(always)]
    pub(crate) fn from_desc(page: NonNull<Page>) -> Self {
        PageRef(page)
    }

    #[inline(always)]
    pub(crate) fn desc(self) -> &'static Page {
        // SAFETY: INV-PAGE-1: every PageRef is made from a pfn whose descriptor is mapped.
        unsafe { self.0.as_ref() }
    }

    /// The page of a frame number. The pfn must be one whose descriptor the kernel has mapped
    /// (any frame of a range given to `init_node`, or of its 4 MiB hull).
    #[inline(always)]
    pub fn from_pfn(pfn: usize) -> Self {
        let p = (arch::vmemmap_base() + (pfn << DESC_SHIFT)) as *mut Page;
        debug_assert!(!p.is_null());
        // SAFETY: the vmemmap does not start at address zero.
        PageRef(unsafe { NonNull::new_unchecked(p) })
    }

    /// The page that holds physical address `pa`.
    #[inline(always)]
    pub fn from_phys(pa: usize) -> Self {
        Self::from_pfn(pa >> PAGE_SHIFT)
    }

    /// The page behind an address of the direct map.
    #[inline(always)]
    pub fn from_virt(va: *const u8) -> Self {
        Self::from_phys(arch::virt_to_phys(va))
    }

    /// The node of the memory at `va`, which is in an allocated block that stays allocated during the call. For fast
    /// paths: one byte of the descriptor is looked at.
    #[inline(always)]
    pub fn node_of_virt(va: *const u8) -> usize {
        const { assert!(core::mem::offset_of!(Page, tag) == 0 && cfg!(target_endian = "little")) };
        let tag = arch::page_desc_of(va) as *const u8;
        // SAFETY: INV-PAGE-1; the tag of an allocated block's frames does not change, so nothing races with the read.
        unsafe { tag.add(2).read() as usize }
    }

    /// Back from [`PageRef::as_ptr`]: for page pointers stored in xarray entries and lists.
    ///
    /// # Safety
    /// `p` came from `as_ptr`.
    #[inline(always)]
    pub unsafe fn from_ptr(p: NonNull<Page>) -> Self {
        PageRef(p)
    }

    /// The descriptor's address: stable, aligned to 64, fit for tagged entries.
    #[inline(always)]
    pub fn as_ptr(self) -> NonNull<Page> {
        self.0
    }

    /// Frame number.
    #[inline(always)]
    pub fn pfn(self) -> usize {
        (self.0.as_ptr() as usize - arch::vmemmap_base()) >> DESC_SHIFT
    }

    /// Physical address of the first byte.
    #[inline(always)]
    pub fn phys(self) -> usize {
        self.pfn() << PAGE_SHIFT
    }

    /// Address of the first byte in the direct map.
    #[inline(always)]
    pub fn virt(self) -> *mut u8 {
        arch::phys_to_virt(self.phys())
    }

    /// First page of the block this page belongs to: itself unless it is a tail.
    #[inline(always)]
    pub fn head(self) -> PageRef {
        let d = self.desc();
        if !d.state_is(PageState::Tail) {
            return self;
        }
        Self::from_pfn(self.pfn() & !((1 << d.order()) - 1))
    }

    /// Order of the block (of the head; a tail gives the same).
    #[inline(always)]
    pub fn order(self) -> u32 {
        self.desc().order()
    }

    /// The node whose memory this is.
    #[inline(always)]
    pub fn node(self) -> usize {
        self.desc().node()
    }

    /// What the frame is doing. For checks and reports.
    pub fn state(self) -> PageState {
        match self.desc().raw_tag() as u8 {
            0 => PageState::Reserved,
            1 => PageState::Inner,
            2 => PageState::Free,
            3 => PageState::OnList,
            4 => PageState::Allocated,
            _ => PageState::Tail,
        }
    }

    /// True for the head of an allocated block. For checks and reports.
    pub fn is_allocated(self) -> bool {
        self.desc().state_is(PageState::Allocated)
    }

    /// One more reference. The caller holds one already. Any context.
    #[inline(always)]
    pub fn get(self) {
        let old = self.head().desc().refcount.fetch_add(1, Relaxed);
        debug_assert!(old != 0, "get of a free page {self:?}");
    }

    /// One more reference unless the page is free: for look-ups under RCU, which must check
    /// afterwards that the page is still the one they meant. Order-0 pages. Any context.
    #[inline]
    pub fn try_get(self) -> bool {
        self.desc()
            .refcount
            .fetch_update(
                Acquire,
                Relaxed,
                |n| if n == 0 { None } else { Some(n + 1) },
            )
            .is_ok()
    }

    /// Drops one reference; the last one frees the whole block, whose order the head knows.
    /// Any context but hard IRQ; IRQs may be off. Never sleeps.
    #[inline]
    pub fn put(self) {
        let head = self.head();
        if head.drop_ref() {
            crate::lists::free_block(head);
        }
    }

    /// One reference fewer on a head; true if it was the last.
    #[inline(always)]
    pub(crate) fn drop_ref(self) -> bool {
        // AcqRel: what other holders did to the page happens before its next owner's writes.
        let old = self.desc().refcount.fetch_sub(1, AcqRel);
        if old == 0 {
            self.put_of_free_page();
        }
        old == 1
    }

    #[cold]
    #[inline(never)]
    fn put_of_free_page(self) -> ! {
        self.desc().set_refcount_zero();
        crate::bad_page(self, "put of a free page")
    }

    /// References held now (a snapshot).
    #[inline(always)]
    pub fn ref_count(self) -> u32 {
        self.desc().refcount.load(Acquire)
    }

    /// One more page-table entry maps this page. Order: under that page table's lock.
    #[inline(always)]
    pub fn map_inc(self) {
        self.desc().mapcount.fetch_add(1, Relaxed);
    }

    /// One page-table entry fewer; true if it was the last.
    #[inline(always)]
    pub fn map_dec(self) -> bool {
        let old = self.desc().mapcount.fetch_sub(1, Relaxed);
        debug_assert!(old != 0, "map_dec of an unmapped page {self:?}");
        old == 1
    }

    /// Page-table entries that map this page (a snapshot). For owners who count mappings; debug
    /// builds refuse to free a page whose count is not zero.
    #[inline(always)]
    pub fn map_count(self) -> u32 {
        self.desc().mapcount.load(Relaxed)
    }

    /// Says what the page is used for. The owner's to call; reset by the allocator.
    #[inline(always)]
    pub fn set_kind(self, kind: PageKind) {
        let d = self.desc();
        d.set_tag(d.raw_tag() & !KIND_MASK | (kind as u32) << 24);
    }

    /// What the owner said; `PageKind::Kernel` if nothing.
    #[inline(always)]
    pub fn kind(self) -> PageKind {
        match self.desc().raw_tag() >> 24 {
            1 => PageKind::Slab,
            2 => PageKind::Anon,
            3 => PageKind::File,
            4 => PageKind::PageTable,
            5 => PageKind::Percpu,
            6 => PageKind::Stack,
            _ => PageKind::Kernel,
        }
    }

    /// Flag bits of the owner (up to date, dirty, ...); zero after allocation.
    #[inline(always)]
    pub fn flags(self) -> &'static AtomicU32 {
        &self.desc().flags
    }

    /// All six words of the owner. After allocation their content is undefined: write first.
    #[inline(always)]
    pub fn words(self) -> &'static [AtomicUsize; NR_WORDS] {
        self.desc().words()
    }

    /// Word `i` (0 to 5) as a pointer. Relaxed: order comes from the owner's lock.
    #[inline(always)]
    pub fn ptr<T>(self, i: usize) -> *mut T {
        self.words()[i].load(Relaxed) as *mut T
    }

    /// Stores a pointer in word `i` (0 to 5).
    #[inline(always)]
    pub fn set_ptr<T>(self, i: usize, p: *const T) {
        self.words()[i].store(p as usize, Relaxed);
    }

    /// Page cache: the address space this page belongs to (word 2).
    #[inline(always)]
    pub fn mapping<T>(self) -> *mut T {
        self.words()[2].load(Acquire) as *mut T
    }

    /// Page cache: sets the address space (word 2).
    #[inline(always)]
    pub fn set_mapping<T>(self, p: *const T) {
        self.words()[2].store(p as usize, Release);
    }

    /// Page cache: offset in the file, in pages (word 3).
    #[inline(always)]
    pub fn index(self) -> usize {
        self.words()[3].load(Relaxed)
    }

    /// Page cache: sets the offset, in pages (word 3).
    #[inline(always)]
    pub fn set_index(self, index: usize) {
        self.words()[3].store(index, Relaxed);
    }

    /// Private word `i` (0 or 1; words 4 and 5).
    #[inline(always)]
    pub fn private(self, i: usize) -> usize {
        self.words()[4 + i].load(Relaxed)
    }

    /// Sets private word `i` (0 or 1).
    #[inline(always)]
    pub fn set_private(self, i: usize, v: usize) {
        self.words()[4 + i].store(v, Relaxed);
    }
}
