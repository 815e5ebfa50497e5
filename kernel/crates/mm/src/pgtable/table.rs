//! Where user page tables come from and go to.
//!
//! Problem. A fork makes about seven tables and the exit frees them; clearing 4 KiB each time
//! would cost more than all the rest of the fork of a small process.
//!
//! Mechanism. Tearing an address space down clears each entry it finds anyway, so a table is
//! empty when it is freed (INV-PT-3): it goes back to its cache *in constructed state*. Roots keep
//! the kernel's half for the same reason.

use super::{NR_ENTRIES, PRESENT, Table};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use page_alloc::{Gfp, OutOfMemory, PageKind, PageRef};

/// Physical address of the root with the kernel's half; 0: none (host tests).
static KERNEL_PGD: AtomicUsize = AtomicUsize::new(0);
static NR_TABLES: AtomicUsize = AtomicUsize::new(0);

/// Names the root whose upper half every address space shares. Once at boot, before the first
/// [`crate::Mm`]; its entries 256..512 do not change any more from then on.
pub fn set_kernel_pgd(phys: usize) {
    KERNEL_PGD.store(phys, Ordering::Release);
}

/// User tables in use now, roots included. For leak checks.
pub fn nr_user_tables() -> usize {
    NR_TABLES.load(Ordering::Relaxed)
}

fn alloc_zeroed() -> Result<Table, OutOfMemory> {
    let page = page_alloc::alloc_page(Gfp::ZERO)?;
    page.set_kind(PageKind::PageTable);
    NR_TABLES.fetch_add(1, Ordering::Relaxed);
    // SAFETY: just allocated.
    Ok(unsafe { Table::from_phys(page.phys()) })
}

/// An empty table.
#[inline]
pub(crate) fn alloc_table() -> Result<Table, OutOfMemory> {
    alloc_zeroed()
}

/// Frees a table.
///
/// # Safety
/// It came from [`alloc_table`], is empty (INV-PT-3), and neither software nor a TLB can reach it.
#[inline]
pub(crate) unsafe fn free_table(table: Table) {
    debug_assert!(table.is_empty(0..NR_ENTRIES), "INV-PT-3");
    free_page(table);
}

fn free_page(table: Table) {
    NR_TABLES.fetch_sub(1, Ordering::Relaxed);
    let virt: NonNull<u8> = table.virt();
    PageRef::from_virt(virt.as_ptr()).put();
}

/// A root: user half empty, kernel half as set by [`set_kernel_pgd`].
pub(crate) fn alloc_pgd() -> Result<Table, OutOfMemory> {
    let pgd = alloc_zeroed()?;
    let kernel = KERNEL_PGD.load(Ordering::Acquire);
    if kernel != 0 {
        // SAFETY: the kernel's root is never freed.
        let kernel = unsafe { Table::from_phys(kernel) };
        for i in NR_ENTRIES / 2..NR_ENTRIES {
            let pte = kernel.slot(i).load();
            if pte.0 & PRESENT != 0 {
                pgd.slot(i).store(pte);
            }
        }
    }
    Ok(pgd)
}

/// Frees a root.
///
/// # Safety
/// It came from [`alloc_pgd`], its user half is empty (INV-PT-3), and no CPU has it loaded.
pub(crate) unsafe fn free_pgd(pgd: Table) {
    debug_assert!(pgd.is_empty(0..NR_ENTRIES / 2), "INV-PT-3");
    free_page(pgd);
}

/// A zeroed root for tests of kernel mappings: its physical address.
#[cfg(test)]
pub(crate) fn test_root() -> usize {
    page_alloc::alloc_page(Gfp::ZERO).map_or(0, |p| p.phys())
}
