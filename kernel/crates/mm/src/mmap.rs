//! Making and removing areas: mmap, munmap.
//!
//! Problem. Both may have to split areas, and so need memory in the middle of the work; failing
//! there must leave everything as it was.
//!
//! Mechanism. First everything is checked and allocated, then changed, without a way to fail.
//! Anonymous areas with the same rights that touch become one.

use crate::mm::Mm;
use crate::tree::MmTree;
use crate::vma::{VmFlags, Vma, VmaMem, VmaPtr};
use crate::zap::{Gather, unmap_range};
use crate::{MAX_MAP_COUNT, MMAP_MIN_ADDR, MmError, TASK_SIZE, file, page_align};
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;
use ksync::{PAGE_SHIFT, PAGE_SIZE};
use rmap::{AddressSpace, SpaceRef};
use slab::KArc;

bitflags::bitflags! {
    /// Rights of a mapping; Linux's numbers.
    #[derive(Copy, Clone, PartialEq, Eq, Debug)]
    pub struct Prot: u32 {
        /// PROT_READ.
        const READ = 1;
        /// PROT_WRITE.
        const WRITE = 2;
        /// PROT_EXEC.
        const EXEC = 4;
    }

    /// Kinds of mapping; Linux's numbers. Bits not named here have no effect.
    #[derive(Copy, Clone, PartialEq, Eq, Debug)]
    pub struct MapFlags: u32 {
        /// Writes reach the file, and other mappings of it.
        const SHARED = 0x1;
        /// Writes make a private copy.
        const PRIVATE = 0x2;
        /// Exactly at `addr`; what is there goes.
        const FIXED = 0x10;
        /// No file: zeroes.
        const ANONYMOUS = 0x20;
        /// Grows down when touched below its start.
        const GROWSDOWN = 0x100;
        /// Fault all pages in at once.
        const POPULATE = 0x8000;
        /// Exactly at `addr`, but nothing may be there.
        const FIXED_NOREPLACE = 0x10_0000;
    }
}

/// What to map. Addresses and lengths in bytes, `pgoff` in pages.
#[derive(Clone)]
pub struct MapArgs<'a> {
    /// Where; a hint without FIXED (0: none).
    pub addr: usize,
    /// How much; rounded up to pages.
    pub len: usize,
    /// Rights.
    pub prot: Prot,
    /// Kind: exactly one of SHARED and PRIVATE.
    pub flags: MapFlags,
    /// The file's pages and the first page of it. None: anonymous.
    pub file: Option<(&'a KArc<AddressSpace>, u64)>,
    /// What mprotect may ever allow: what the file was opened for (all for PRIVATE and
    /// anonymous, but no WRITE for SHARED of a file opened for reading).
    pub max_prot: Prot,
}

impl MapArgs<'_> {
    /// Private anonymous memory anywhere.
    pub fn anon(len: usize, prot: Prot) -> Self {
        MapArgs {
            addr: 0,
            len,
            prot,
            flags: MapFlags::PRIVATE | MapFlags::ANONYMOUS,
            file: None,
            max_prot: Prot::all(),
        }
    }

    /// The same at exactly `addr`, replacing what is there.
    pub fn fixed(mut self, addr: usize) -> Self {
        self.addr = addr;
        self.flags |= MapFlags::FIXED;
        self
    }
}

/// READ, WRITE, EXEC of an area.
pub(crate) fn prot_flags(prot: Prot) -> VmFlags {
    VmFlags::from_bits_truncate(prot.bits())
}

/// Whether `start..start + len` (len > 0, aligned) lies where mappings may be.
pub(crate) fn in_task(start: usize, len: usize) -> bool {
    start >= MMAP_MIN_ADDR && len <= TASK_SIZE && start <= TASK_SIZE - len
}

/// The area's flags, or why the request makes no sense.
fn area_flags(args: &MapArgs<'_>) -> Result<VmFlags, MmError> {
    let shared = args.flags.contains(MapFlags::SHARED);
    if shared == args.flags.contains(MapFlags::PRIVATE) {
        return Err(MmError::Invalid);
    }
    if !args.max_prot.contains(args.prot) {
        return Err(MmError::Access);
    }
    let mut flags = prot_flags(args.prot) | VmFlags::from_bits_truncate(args.max_prot.bits() << 4);
    if shared {
        flags |= VmFlags::SHARED;
        if args.file.is_none() {
            flags |= VmFlags::SHMEM;
        }
    } else if args.file.is_none() && args.flags.contains(MapFlags::GROWSDOWN) {
        flags |= VmFlags::GROWSDOWN;
    }
    Ok(flags)
}

/// Whether a new area may become part of a neighbour: only private anonymous ones may.
pub(crate) fn mergeable(flags: VmFlags) -> bool {
    !flags.intersects(VmFlags::SHARED | VmFlags::GROWSDOWN | VmFlags::STACK)
}

impl Mm {
    /// Maps; returns the address. May sleep. Errors: Invalid (no length, flags, address not
    /// aligned or out of range with FIXED), Exists, Access, NoMemory.
    pub fn mmap(&self, args: &MapArgs<'_>) -> Result<usize, MmError> {
        if args.len == 0 {
            return Err(MmError::Invalid);
        }
        let len = page_align(args.len).ok_or(MmError::NoMemory)?;
        let flags = area_flags(args)?;
        let source = match args.file {
            Some((f, pgoff)) => {
                pgoff
                    .checked_add((len >> PAGE_SHIFT) as u64)
                    .ok_or(MmError::Overflow)?;
                Some((SpaceRef::of(f), pgoff))
            }
            None if flags.contains(VmFlags::SHMEM) => Some((file::new_shmem(len)?.into(), 0)),
            None => None,
        };
        let mut tree = self.mmap_lock().write();
        let (addr, at) = choose_address(&tree, args, len)?;
        self.map_at(&mut tree, (addr, addr + len), at, flags, source)?;
        drop(tree);
        if args.flags.contains(MapFlags::POPULATE) {
            self.populate(addr, addr + len, flags);
        }
        Ok(addr)
    }

    /// Unmaps `addr..addr + len`; holes are fine. May sleep. Errors: Invalid, NoMemory.
    pub fn munmap(&self, addr: usize, len: usize) -> Result<(), MmError> {
        let len = page_align(len)
            .filter(|&l| l != 0)
            .ok_or(MmError::Invalid)?;
        if !addr.is_multiple_of(PAGE_SIZE) || len > TASK_SIZE || addr > TASK_SIZE - len {
            return Err(MmError::Invalid);
        }
        let mut tree = self.mmap_lock().write();
        self.unmap_locked(&mut tree, addr, addr + len)
    }

    /// Maps the program's initial stack: `size` bytes below `top`, growing down to the stack
    /// limit. Returns its start. May sleep.
    pub fn map_stack(&self, top: usize, size: usize) -> Result<usize, MmError> {
        let size = page_align(size)
            .filter(|&s| s != 0 && s < top)
            .ok_or(MmError::Invalid)?;
        if !top.is_multiple_of(PAGE_SIZE) || !in_task(top - size, size) {
            return Err(MmError::Invalid);
        }
        let flags = VmFlags::READ
            | VmFlags::WRITE
            | VmFlags::MAYREAD
            | VmFlags::MAYWRITE
            | VmFlags::MAYEXEC
            | VmFlags::GROWSDOWN
            | VmFlags::STACK;
        let mut tree = self.mmap_lock().write();
        let at = tree.find(top - size);
        if at.is_some_and(|v| v.start() < top) {
            return Err(MmError::Exists);
        }
        self.map_at(&mut tree, (top - size, top), at, flags, None)?;
        Ok(top - size)
    }

    /// Makes an area at `start..end`, where what exists is unmapped. `at` is the first area that
    /// ends after `start`.
    pub(crate) fn map_at(
        &self,
        tree: &mut MmTree,
        (start, end): (usize, usize),
        at: Option<VmaPtr>,
        flags: VmFlags,
        source: Option<(SpaceRef, u64)>,
    ) -> Result<(), MmError> {
        let pages = (end - start) >> PAGE_SHIFT;
        if tree.as_limit.saturating_sub(tree.total_vm) < pages || tree.map_count >= MAX_MAP_COUNT {
            return Err(MmError::NoMemory);
        }
        let mut next = at;
        let occupied = at.filter(|v| v.start() < end);
        if occupied.is_none() && source.is_none() && try_merge(tree, start, end, flags, next) {
            return Ok(());
        }
        // From here on nothing may fail after something has changed.
        let room = VmaMem::alloc()?;
        if let Some(first) = occupied {
            let tail = tail_room(tree, first, start, end)?;
            let gather = &mut Gather::new(self);
            next = self.unmap_with(tree, gather, first, (start, end), tail, true);
            if source.is_none() && try_merge(tree, start, end, flags, next) {
                return Ok(());
            }
        }
        let v = room.init(Vma::new(NonNull::from(self), start, end, flags, source));
        tree.insert_before(next, v);
        if v.file.is_some() {
            file::link(v);
        }
        Ok(())
    }

    /// Unmaps `start..end` (aligned). On an error nothing has changed.
    pub(crate) fn unmap_locked(
        &self,
        tree: &mut MmTree,
        start: usize,
        end: usize,
    ) -> Result<(), MmError> {
        let Some(v) = tree.find(start).filter(|v| v.start() < end) else {
            return Ok(());
        };
        let tail = tail_room(tree, v, start, end)?;
        self.unmap_with(tree, &mut Gather::new(self), v, (start, end), tail, true);
        Ok(())
    }

    /// Unmaps `start..end` (aligned), where `first` is the first area, with `tail` for the split
    /// that this may need. Returns the first area behind. Tables are kept unless `free_tables`:
    /// then the caller sees to INV-ZAP-2.
    pub(crate) fn unmap_with(
        &self,
        tree: &mut MmTree,
        gather: &mut Gather<'_>,
        first: VmaPtr,
        (start, end): (usize, usize),
        tail: Option<VmaMem>,
        free_tables: bool,
    ) -> Option<VmaPtr> {
        let floor = if first.start() < start {
            start
        } else {
            first.prev_end.get()
        };
        let next = remove_areas(tree, first, start, end, tail);
        let ceiling = next.map_or(1 << 47, |n| n.start());
        let floor = if free_tables { floor } else { usize::MAX };
        unmap_range(gather, self.pgd(), start, end, floor, ceiling);
        next
    }

    /// Faults in a range that has just been mapped; errors do not matter (as on Linux).
    fn populate(&self, start: usize, end: usize, flags: VmFlags) {
        let write = flags.contains(VmFlags::WRITE) && !flags.contains(VmFlags::SHARED);
        let how = if write {
            crate::FaultFlags::WRITE
        } else {
            crate::FaultFlags::empty()
        };
        for addr in (start..end).step_by(PAGE_SIZE) {
            if self.handle_fault(addr, how).is_err() {
                return;
            }
        }
    }
}

/// Memory for the split that unmapping `start..end` needs if it lies inside the area `v`.
fn tail_room(
    tree: &MmTree,
    v: VmaPtr,
    start: usize,
    end: usize,
) -> Result<Option<VmaMem>, MmError> {
    if v.start() >= start || v.end() <= end {
        return Ok(None);
    }
    if tree.map_count >= MAX_MAP_COUNT {
        return Err(MmError::NoMemory);
    }
    Ok(Some(VmaMem::alloc()?))
}

/// Takes `start..end` out of the tree and out of `i_mmap`; `first` is the first area there, `tail`
/// memory for the upper part if the range lies inside it. Returns the first area behind.
fn remove_areas(
    tree: &mut MmTree,
    first: VmaPtr,
    start: usize,
    end: usize,
    tail: Option<VmaMem>,
) -> Option<VmaPtr> {
    if let Some(room) = tail
        && first.start() < start
        && first.end() > end
    {
        split(tree, first, end, room);
    }
    let mut at = Some(first);
    while let Some(v) = at.filter(|v| v.start() < end) {
        if v.end() > end {
            resize(tree, v, end, v.end());
            break;
        }
        at = tree.next(v);
        if v.start() < start {
            resize(tree, v, v.start(), start);
            continue;
        }
        if v.file.is_some() {
            file::unlink(v);
        }
        tree.erase(v);
        // SAFETY: out of the tree and of i_mmap, mmap_lock is held for write.
        unsafe { v.free() };
    }
    at
}

/// Cuts `v` in two at `at`; returns the upper part, made in `room`.
pub(crate) fn split(tree: &mut MmTree, v: VmaPtr, at: usize, room: VmaMem) -> VmaPtr {
    debug_assert!(v.start() < at && at < v.end());
    let upper = room.init_copy(&v, v.mm);
    upper
        .pgoff
        .set(if v.file.is_some() { v.pgoff_of(at) } else { 0 });
    upper.start.set(at);
    file::adjust(v, (v.start(), at), Some(upper), || tree.split(v, upper));
    upper
}

/// Shrinks `v` to `start..end`.
pub(crate) fn resize(tree: &mut MmTree, v: VmaPtr, start: usize, end: usize) {
    file::adjust(v, (start, end), None, || {
        if v.file.is_some() && start >= v.start() {
            v.pgoff.set(v.pgoff_of(start));
        }
        tree.set_range(v, start, end);
    });
}

/// Adds `start..end`, which is free, to a neighbouring private anonymous area with the same
/// flags; joins both neighbours if the room between them closes. `next`: the first area behind.
pub(crate) fn try_merge(
    tree: &mut MmTree,
    start: usize,
    end: usize,
    flags: VmFlags,
    next: Option<VmaPtr>,
) -> bool {
    if !mergeable(flags) {
        return false;
    }
    let like = |v: &VmaPtr| v.file.is_none() && v.flags() == flags;
    let prev = match next {
        Some(n) if n.prev_end.get() == start => tree.prev(n),
        Some(_) => None,
        None => tree.last().filter(|l| l.end() == start),
    };
    let prev = prev.filter(like);
    let next = next.filter(|n| n.start() == end && like(n));
    match (prev, next) {
        (None, None) => return false,
        (Some(p), None) => tree.set_range(p, p.start(), end),
        (None, Some(n)) => tree.set_range(n, start, n.end()),
        (Some(p), Some(n)) => {
            let new_end = n.end();
            p.has_anon.fetch_or(n.has_anon(), Relaxed);
            tree.erase(n);
            // SAFETY: out of the tree, of no file, mmap_lock is held for write.
            unsafe { n.free() };
            tree.set_range(p, p.start(), new_end);
        }
    }
    true
}

/// Joins `v` with the area before it if they touch and are alike; returns what `v` is part of now.
pub(crate) fn merge_with_prev(tree: &mut MmTree, v: VmaPtr) -> VmaPtr {
    let Some(p) = tree.prev(v) else { return v };
    let alike = p.end() == v.start() && p.flags() == v.flags();
    if !alike || p.file.is_some() || v.file.is_some() || !mergeable(v.flags()) {
        return v;
    }
    let end = v.end();
    p.has_anon.fetch_or(v.has_anon(), Relaxed);
    tree.erase(v);
    // SAFETY: out of the tree, of no file, mmap_lock is held for write.
    unsafe { v.free() };
    tree.set_range(p, p.start(), end);
    p
}

/// Where to map `len` bytes, and the first area that ends after that address.
fn choose_address(
    tree: &MmTree,
    args: &MapArgs<'_>,
    len: usize,
) -> Result<(usize, Option<VmaPtr>), MmError> {
    let noreplace = args.flags.contains(MapFlags::FIXED_NOREPLACE);
    if noreplace || args.flags.contains(MapFlags::FIXED) {
        if !args.addr.is_multiple_of(PAGE_SIZE) {
            return Err(MmError::Invalid);
        }
        if !in_task(args.addr, len) {
            return Err(if args.addr < MMAP_MIN_ADDR {
                MmError::Perm
            } else {
                MmError::NoMemory
            });
        }
        let at = tree.find(args.addr);
        if noreplace && at.is_some_and(|v| v.start() < args.addr + len) {
            return Err(MmError::Exists);
        }
        return Ok((args.addr, at));
    }
    match hinted(tree, args.addr, len) {
        Some(found) => Ok(found),
        None => tree.find_gap(len).ok_or(MmError::NoMemory),
    }
}

/// The hint, if there is one and its place is free; and the first area behind.
fn hinted(tree: &MmTree, hint: usize, len: usize) -> Option<(usize, Option<VmaPtr>)> {
    let addr = page_align(hint)?;
    if hint == 0 || !in_task(addr, len) {
        return None;
    }
    let next = tree.find(addr);
    let free = next.is_none_or(|v| v.guarded_start() >= addr + len);
    free.then_some((addr, next))
}
