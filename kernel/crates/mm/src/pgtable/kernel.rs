//! The kernel's own mappings: direct map, vmalloc area, per-CPU windows, devices.
//!
//! Problem: boot and the per-CPU allocator map ranges with the largest pages that fit, with tables
//! from wherever memory comes from at that time. Mechanism: one walk that stops at the level of
//! the page size; the caller supplies zeroed table pages. Kernel tables are never freed.
//!
//! Lock order: none here; the caller serialises changes to one root.

use super::{
    ADDR_MASK, HUGE, L1_SHIFT, L2_SHIFT, L3_SHIFT, L4_SHIFT, PRESENT, Pte, RW, Slot, Table, index,
};

/// What one entry maps.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum PageSize {
    /// 4 KiB, in L1.
    Size4K,
    /// 2 MiB, in L2.
    Size2M,
    /// 1 GiB, in L3.
    Size1G,
}

impl PageSize {
    const fn shift(self) -> u32 {
        match self {
            PageSize::Size4K => L1_SHIFT,
            PageSize::Size2M => L2_SHIFT,
            PageSize::Size1G => L3_SHIFT,
        }
    }

    /// In bytes.
    pub const fn bytes(self) -> usize {
        1 << self.shift()
    }
}

/// Why a kernel mapping was not made.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum MapError {
    /// No memory for a table.
    NoMemory,
    /// Something is mapped there already.
    Occupied,
    /// An address is not aligned to the page size.
    Misaligned,
}

/// Finds the entry of level `shift` for `va`, making tables on the way. Tables get `bits`' USER.
unsafe fn entry(
    root: usize,
    va: usize,
    shift: u32,
    alloc: &mut dyn FnMut() -> Option<usize>,
) -> Result<Slot, MapError> {
    // SAFETY: the caller's root.
    let mut table = unsafe { Table::from_phys(root) };
    let mut level = L4_SHIFT;
    while level > shift {
        let slot = table.slot(index(va, level));
        let pte = slot.load();
        let next = if pte.is_none() {
            let pa = alloc().ok_or(MapError::NoMemory)?;
            slot.store(Pte::new(pa, PRESENT | RW));
            pa
        } else if pte.0 & HUGE != 0 {
            return Err(MapError::Occupied);
        } else {
            pte.phys()
        };
        // SAFETY: a table of this root, or the zeroed page the caller has just given.
        table = unsafe { Table::from_phys(next) };
        level -= 9;
    }
    Ok(table.slot(index(va, shift)))
}

/// Maps one page of `size` at `va` to `pa` with `bits` (PRESENT and HUGE are added here). `alloc`
/// returns the physical address of a zeroed page for a table. No flush: nothing was there.
///
/// # Safety
/// `root` is the physical address of a root, changes to it are serialised by the caller, the
/// address belongs to the kernel, and mapping `pa` with `bits` breaks nobody's expectations.
pub unsafe fn map(
    root: usize,
    va: usize,
    pa: usize,
    size: PageSize,
    bits: u64,
    alloc: &mut dyn FnMut() -> Option<usize>,
) -> Result<(), MapError> {
    if (va | pa) & (size.bytes() - 1) != 0 {
        return Err(MapError::Misaligned);
    }
    // SAFETY: the caller's root.
    let slot = unsafe { entry(root, va, size.shift(), alloc)? };
    if !slot.load().is_none() {
        return Err(MapError::Occupied);
    }
    let huge = if size == PageSize::Size4K { 0 } else { HUGE };
    slot.store(Pte::new(pa, bits | PRESENT | huge));
    Ok(())
}

/// Maps `len` bytes at `va` to `pa`, with the largest pages that fit. On an error the part before
/// it stays mapped.
///
/// # Safety
/// As for [`map`].
pub unsafe fn map_range(
    root: usize,
    va: usize,
    pa: usize,
    len: usize,
    bits: u64,
    alloc: &mut dyn FnMut() -> Option<usize>,
) -> Result<(), MapError> {
    let mut done = 0;
    while done < len {
        let (v, p, left) = (va + done, pa + done, len - done);
        let fits = |s: PageSize| (v | p) & (s.bytes() - 1) == 0 && left >= s.bytes();
        let size = if fits(PageSize::Size1G) {
            PageSize::Size1G
        } else if fits(PageSize::Size2M) {
            PageSize::Size2M
        } else {
            PageSize::Size4K
        };
        // SAFETY: the caller's promise.
        unsafe { map(root, v, p, size, bits, alloc)? };
        done += size.bytes();
    }
    Ok(())
}

/// Finds what `va` maps to: the entry and its size.
fn leaf(root: usize, va: usize) -> Option<(Slot, PageSize)> {
    // SAFETY: callers name a live root.
    let mut table = unsafe { Table::from_phys(root) };
    for (level, size) in [
        (L4_SHIFT, None),
        (L3_SHIFT, Some(PageSize::Size1G)),
        (L2_SHIFT, Some(PageSize::Size2M)),
        (L1_SHIFT, Some(PageSize::Size4K)),
    ] {
        let slot = table.slot(index(va, level));
        let pte = slot.load();
        if !pte.is_present() {
            return None;
        }
        match size {
            Some(s) if s == PageSize::Size4K || pte.0 & HUGE != 0 => return Some((slot, s)),
            // SAFETY: a present entry without HUGE above L1 points to a table of this root.
            _ => table = unsafe { Table::from_phys(pte.phys()) },
        }
    }
    None
}

/// Removes the page at `va`; returns what it mapped. The caller flushes.
///
/// # Safety
/// As for [`map`]; nobody uses the mapping any more.
pub unsafe fn unmap(root: usize, va: usize) -> Option<(usize, PageSize)> {
    let (slot, size) = leaf(root, va)?;
    let pte = slot.swap(Pte::NONE);
    Some(((pte.0 & ADDR_MASK) as usize & !(size.bytes() - 1), size))
}

/// The physical address of `va`, the size of its page, and the entry.
///
/// # Safety
/// `root` is the physical address of a live root whose tables are not freed meanwhile.
pub unsafe fn translate(root: usize, va: usize) -> Option<(usize, PageSize, Pte)> {
    let (slot, size) = leaf(root, va)?;
    let pte = slot.load();
    let base = (pte.0 & ADDR_MASK) as usize & !(size.bytes() - 1);
    Some((base + (va & (size.bytes() - 1)), size, pte))
}
