//! One area of an address space: a range of pages with one set of rights and one source.
//!
//! Problem: fork copies every area and exit frees every one, so an area must be cheap to make;
//! truncation reaches areas through the file, without the lock of their address space.
//!
//! Mechanism: one slab object with the links of both trees inside (by address in its mm, by page
//! offset in its file). Fields are cells.
//!
//! Invariants
//! - INV-VMA-1 (life): an area in the tree of an mm is allocated; it is freed only by a holder of
//!   `mmap_lock` for write (or by exit, alone), after it left the tree and `i_mmap`.
//! - INV-VMA-2 (who reads, who writes): all fields are read under `mmap_lock` or under `i_mmap`;
//!   `start`, `end`, `pgoff` change only with `mmap_lock` held for write and the area not linked in
//!   `i_mmap` (or `i_mmap` held for write); other cells change under `mmap_lock` held for write and
//!   are not read by walkers of `i_mmap`. `has_anon` is atomic: faults set it.
//! - INV-VMA-3 (owner): `mm` outlives the area's membership in `i_mmap`.
//! - INV-VMA-4: `start < end`, both page aligned, within MMAP_MIN_ADDR..TASK_SIZE.

use crate::Mm;
use crate::pgtable::{ACCESSED, DIRTY, NX, PRESENT, PROTNONE, RW, USER};
use core::cell::Cell;
use core::mem::MaybeUninit;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use interval_tree::RbNode;
use ksync::PAGE_SHIFT;
use rmap::{AddressSpace, MapNode, SpaceRef};
use slab::{AllocError, CacheFlags, Gfp, KArc, KmemCache};

bitflags::bitflags! {
    /// What an area allows and is.
    #[derive(Copy, Clone, PartialEq, Eq, Debug)]
    pub struct VmFlags: u32 {
        /// May be read.
        const READ = 1;
        /// May be written.
        const WRITE = 2;
        /// May be executed.
        const EXEC = 4;
        /// Writes go to the file (or the shared memory), not to a private copy.
        const SHARED = 8;
        /// mprotect may set READ.
        const MAYREAD = 0x10;
        /// mprotect may set WRITE.
        const MAYWRITE = 0x20;
        /// mprotect may set EXEC.
        const MAYEXEC = 0x40;
        /// Grows down when touched below its start.
        const GROWSDOWN = 0x100;
        /// Shared anonymous memory: pages count as shmem.
        const SHMEM = 0x200;
        /// The program's initial stack.
        const STACK = 0x400;
        /// READ, WRITE and EXEC.
        const ACCESS = 7;
    }
}

/// An area. See the file's head for who may touch what.
#[repr(C)]
pub struct Vma {
    pub(crate) rb: RbNode,
    pub(crate) start: Cell<usize>,
    pub(crate) end: Cell<usize>,
    pub(crate) flags: Cell<VmFlags>,
    /// Some page in the range may be a private one, which only fork's copy can hand down.
    pub(crate) has_anon: AtomicBool,
    /// Bits of a new page-table entry, without RW and DIRTY.
    pub(crate) prot: Cell<u64>,
    /// End of the area before this one (0: none), for the gap summary (INV-TREE-2).
    pub(crate) prev_end: Cell<usize>,
    /// Greatest gap before any area of this subtree, in bytes (INV-TREE-3).
    pub(crate) subtree_gap: Cell<usize>,
    pub(crate) mm: NonNull<Mm>,
    /// Page of the file at `start`.
    pub(crate) pgoff: Cell<u64>,
    pub(crate) file: Option<SpaceRef>,
    /// Place in `i_mmap`. Written right before the area is linked there the first time.
    map: MaybeUninit<MapNode>,
}

/// Bits of an entry for pages of an area with `flags`, without write permission.
#[inline]
pub(crate) fn prot_bits(flags: VmFlags) -> u64 {
    let base = if flags.intersects(VmFlags::ACCESS) {
        PRESENT
    } else {
        PROTNONE
    };
    let nx = if flags.contains(VmFlags::EXEC) { 0 } else { NX };
    base | nx | USER | ACCESSED
}

impl Vma {
    /// An area of `mm`, in no tree.
    pub(crate) fn new(
        mm: NonNull<Mm>,
        start: usize,
        end: usize,
        flags: VmFlags,
        file: Option<(SpaceRef, u64)>,
    ) -> Vma {
        let (file, pgoff) = match file {
            Some((f, off)) => (Some(f), off),
            None => (None, 0),
        };
        Vma {
            rb: RbNode::new(),
            start: Cell::new(start),
            end: Cell::new(end),
            flags: Cell::new(flags),
            has_anon: AtomicBool::new(false),
            prot: Cell::new(prot_bits(flags)),
            prev_end: Cell::new(0),
            subtree_gap: Cell::new(0),
            mm,
            pgoff: Cell::new(pgoff),
            file,
            map: MaybeUninit::uninit(),
        }
    }

    #[inline(always)]
    pub(crate) fn start(&self) -> usize {
        self.start.get()
    }

    #[inline(always)]
    pub(crate) fn end(&self) -> usize {
        self.end.get()
    }

    #[inline(always)]
    pub(crate) fn flags(&self) -> VmFlags {
        self.flags.get()
    }

    /// In pages.
    #[inline(always)]
    pub(crate) fn pages(&self) -> usize {
        (self.end() - self.start()) >> PAGE_SHIFT
    }

    #[inline(always)]
    pub(crate) fn is_shared(&self) -> bool {
        self.flags().contains(VmFlags::SHARED)
    }

    /// Sets the rights.
    #[inline]
    pub(crate) fn set_flags(&self, flags: VmFlags) {
        self.flags.set(flags);
        self.prot.set(prot_bits(flags));
    }

    /// RW and DIRTY if pages that belong to the area may be written.
    #[inline(always)]
    pub(crate) fn write_bits(&self) -> u64 {
        if self.flags().contains(VmFlags::WRITE) {
            RW | DIRTY
        } else {
            0
        }
    }

    /// Page of the file at `addr`, which lies in the area.
    #[inline(always)]
    pub(crate) fn pgoff_of(&self, addr: usize) -> u64 {
        self.pgoff.get() + ((addr - self.start()) >> PAGE_SHIFT) as u64
    }

    /// Whether fork must copy page-table entries: others can be had again by a fault.
    #[inline(always)]
    pub(crate) fn has_anon(&self) -> bool {
        self.has_anon.load(Relaxed)
    }

    /// A private page is about to be entered.
    #[inline(always)]
    pub(crate) fn note_anon(&self) {
        if !self.has_anon.load(Relaxed) {
            self.has_anon.store(true, Relaxed);
        }
    }

    /// Start, less the guard gap if the area grows down.
    #[inline(always)]
    pub(crate) fn guarded_start(&self) -> usize {
        let gap = if self.flags().contains(VmFlags::GROWSDOWN) {
            crate::STACK_GUARD_GAP
        } else {
            0
        };
        self.start().saturating_sub(gap)
    }
}

/// What others may know of an area (for /proc and tests).
#[derive(Clone)]
pub struct VmaInfo {
    /// First address.
    pub start: usize,
    /// First address after.
    pub end: usize,
    /// Rights and kind.
    pub flags: VmFlags,
    /// Source and the page of it at `start`; None for private anonymous memory.
    pub file: Option<(KArc<AddressSpace>, u64)>,
}

static VMA_CACHE: KmemCache = KmemCache::new_static(
    "vm_area_struct",
    size_of::<Vma>(),
    align_of::<Vma>(),
    CacheFlags::HWCACHE_ALIGN,
);

/// Memory for one area. Dropping it gives the memory back.
pub(crate) struct VmaMem(NonNull<MaybeUninit<Vma>>);

impl VmaMem {
    /// Takes memory from the cache.
    #[inline]
    pub(crate) fn alloc() -> Result<VmaMem, AllocError> {
        Ok(VmaMem(VMA_CACHE.alloc(Gfp::empty())?.cast()))
    }

    /// Makes an area of it; whoever links it in a tree sees to its end.
    #[inline]
    pub(crate) fn init(self, vma: Vma) -> VmaPtr {
        let p = self.0;
        core::mem::forget(self);
        // SAFETY: the memory is ours, and as large and aligned as a Vma (see VMA_CACHE).
        unsafe { (*p.as_ptr()).write(vma) };
        VmaPtr(p.cast())
    }
}

impl VmaMem {
    /// Makes the same area as `of` in it, for `mm`, in no tree: field by field where it is to be, for fork makes
    /// thousands.
    #[inline]
    pub(crate) fn init_copy(self, of: &Vma, mm: NonNull<Mm>) -> VmaPtr {
        let p = self.0.cast::<Vma>();
        core::mem::forget(self);
        let new = p.as_ptr();
        // SAFETY: the memory is ours, and as large and aligned as a Vma (see VMA_CACHE). All fields are written but
        // `map`, which may be anything.
        unsafe {
            (&raw mut (*new).rb).write(RbNode::new());
            (&raw mut (*new).start).write(of.start.clone());
            (&raw mut (*new).end).write(of.end.clone());
            (&raw mut (*new).flags).write(of.flags.clone());
            (&raw mut (*new).has_anon).write(AtomicBool::new(of.has_anon.load(Relaxed)));
            (&raw mut (*new).prot).write(of.prot.clone());
            (&raw mut (*new).prev_end).write(of.prev_end.clone());
            (&raw mut (*new).subtree_gap).write(of.subtree_gap.clone());
            (&raw mut (*new).mm).write(mm);
            (&raw mut (*new).pgoff).write(of.pgoff.clone());
            (&raw mut (*new).file).write(of.file.as_deref().map(SpaceRef::of));
        }
        VmaPtr(p)
    }
}

impl Drop for VmaMem {
    fn drop(&mut self) {
        // SAFETY: from VMA_CACHE, holds no value, and nobody else has it.
        unsafe { VMA_CACHE.free(self.0.cast()) };
    }
}

/// A pointer to a live area. Whoever has one holds the lock that keeps it alive (INV-VMA-1).
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) struct VmaPtr(NonNull<Vma>);

impl VmaPtr {
    /// The area whose links `rb` are.
    ///
    /// # Safety
    /// `rb` is the `rb` field of a live area, in the tree of an mm whose lock is held.
    #[inline(always)]
    pub(crate) unsafe fn from_rb(rb: NonNull<RbNode>) -> VmaPtr {
        // `rb` is the first field of a repr(C) struct.
        VmaPtr(rb.cast())
    }

    #[inline(always)]
    pub(crate) fn from_raw(p: *mut Vma) -> Option<VmaPtr> {
        NonNull::new(p).map(VmaPtr)
    }

    #[inline(always)]
    pub(crate) fn as_raw(self) -> *mut Vma {
        self.0.as_ptr()
    }

    #[inline(always)]
    pub(crate) fn rb(self) -> NonNull<RbNode> {
        self.0.cast()
    }

    /// Its place in its file, with provenance of the whole area. For areas of files.
    #[inline(always)]
    pub(crate) fn map_node(self) -> NonNull<MapNode> {
        debug_assert!(self.file.is_some());
        // SAFETY: stays within the area.
        unsafe { self.0.byte_add(core::mem::offset_of!(Vma, map)) }.cast()
    }

    /// Ends the area.
    ///
    /// # Safety
    /// It is in no tree and in no `i_mmap`, and nobody else has a pointer to it.
    #[inline]
    pub(crate) unsafe fn free(self) {
        // SAFETY: made by VmaMem::init from VMA_CACHE; ours alone by contract.
        unsafe {
            core::ptr::drop_in_place(self.0.as_ptr());
            VMA_CACHE.free(self.0.cast());
        }
    }
}

impl Deref for VmaPtr {
    type Target = Vma;
    #[inline(always)]
    fn deref(&self) -> &Vma {
        // SAFETY: INV-VMA-1, see the type.
        unsafe { self.0.as_ref() }
    }
}
