//! Taking pages out of an address space.
//!
//! Problem. A page may be freed only when no CPU can reach it any more, through page tables or
//! through a TLB; asking other CPUs to flush is dear, so it is done once for many pages. And exit
//! must not pay for any of this when nobody runs the address space.
//!
//! Mechanism. [`Gather`] collects what has been taken out, flushes, then lets go. At exit, with no
//! CPU left in the mm's cpumask, it lets go at once. Table pages travel the same way.
//!
//! Three ways to clear entries:
//! - `unmap_range`: `mmap_lock` held for write (or exit), the areas gone from `i_mmap`: nobody else
//!   changes these entries, so plain stores do, and tables that no area needs any more are freed.
//! - `zap_range`: races with others (truncation against faults; discarding): atomic swaps, and
//!   tables stay.
//!
//! Invariants
//! - INV-ZAP-1 (flush before free): a page or table taken out of page tables is released only
//!   after each CPU in the mm's cpumask has flushed, or when the mask was empty after the clearing.
//!   A CPU not in the mask holds no translation of the mm (see [`crate::Mm::activate`]).
//! - INV-ZAP-2 (no table without area): every table of an mm covers part of at least one area. So
//!   unmapping each area, with the bounds of its neighbours, frees every table exactly once.

use crate::mm::Mm;
use crate::pgtable::{
    L1_SHIFT, L2_SHIFT, L3_SHIFT, L4_SHIFT, Pte, SHMEM, Table, for_ptes, for_slots, free_table,
    walk_l1,
};
use crate::rss::{NR_RSS, RssDelta, RssKind};
use core::convert::Infallible;
use core::mem::MaybeUninit;
use core::sync::atomic::{Ordering::SeqCst, fence};
use ksync::arch;
use page_alloc::PageRef;

/// Pages and tables per flush. 1 KiB of stack.
const BATCH: usize = 128;
/// Tag of a batch entry that is a table.
const IS_TABLE: usize = 1;

/// What was taken out and not yet let go. Lets go of the rest when dropped.
pub(crate) struct Gather<'a> {
    mm: &'a Mm,
    /// No CPU can have translations: let go at once.
    quiet: bool,
    /// Smallest range that covers the entries cleared since the last flush.
    start: usize,
    end: usize,
    nr: usize,
    batch: [MaybeUninit<usize>; BATCH],
    rss: RssDelta,
    tables: usize,
}

/// The counter a page-table entry is counted in.
#[inline(always)]
pub(crate) fn rss_kind(pte: Pte) -> RssKind {
    if pte.is_anon() {
        RssKind::Anon
    } else if pte.0 & SHMEM != 0 {
        RssKind::Shmem
    } else {
        RssKind::File
    }
}

impl<'a> Gather<'a> {
    /// Starts to collect for `mm`.
    #[inline]
    pub(crate) fn new(mm: &'a Mm) -> Self {
        Self::with(mm, false)
    }

    /// For exit: no thread can enter the mm any more. If no CPU is in it either, nothing is
    /// collected.
    pub(crate) fn exiting(mm: &'a Mm) -> Self {
        Self::with(mm, mm.cpumask().is_empty())
    }

    #[inline]
    fn with(mm: &'a Mm, quiet: bool) -> Self {
        Gather {
            mm,
            quiet,
            start: usize::MAX,
            end: 0,
            nr: 0,
            batch: [const { MaybeUninit::uninit() }; BATCH],
            rss: [0; NR_RSS],
            tables: 0,
        }
    }

    /// Takes over what the entry `pte`, just cleared at `va`, owned.
    #[inline(always)]
    pub(crate) fn pte(&mut self, pte: Pte, va: usize) {
        if pte.is_special() {
            self.cover(va, 1 << L1_SHIFT);
            return;
        }
        self.rss[rss_kind(pte) as usize] -= 1;
        if self.quiet {
            pte.page().put();
            return;
        }
        self.cover(va, 1 << L1_SHIFT);
        self.push(pte.page().as_ptr().as_ptr() as usize);
    }

    /// Takes over a table that covered `size` bytes at `base`.
    #[inline(always)]
    fn table(&mut self, table: Table, base: usize, size: usize) {
        self.tables += 1;
        if self.quiet {
            // SAFETY: empty (INV-ZAP-2), unreachable: unlinked, and no CPU walks this mm.
            unsafe { free_table(table) };
            return;
        }
        self.cover(base, size);
        self.push(table.virt().as_ptr() as usize | IS_TABLE);
    }

    /// A translation in the range was narrowed.
    #[inline(always)]
    pub(crate) fn cover(&mut self, va: usize, size: usize) {
        self.start = self.start.min(va);
        self.end = self.end.max(va + size);
    }

    #[inline(always)]
    fn push(&mut self, entry: usize) {
        self.batch[self.nr].write(entry);
        self.nr += 1;
        if self.nr == BATCH {
            self.flush();
        }
    }

    /// Flushes what was narrowed and lets go of what was taken out. Not with a spinlock that a
    /// flushing CPU might want, and not with IRQs off.
    #[inline(never)]
    pub(crate) fn flush(&mut self) {
        if self.start < self.end && !self.quiet {
            // The mask is read after the entries were cleared; `activate` sets its bit before it
            // loads the root (INV-ZAP-1).
            fence(SeqCst);
            if !self.mm.cpumask().is_empty() {
                arch::flush_tlb_range(self.mm.cpumask(), self.mm.id(), self.start, self.end);
            }
        }
        (self.start, self.end) = (usize::MAX, 0);
        let nr = core::mem::take(&mut self.nr);
        for entry in &self.batch[..nr] {
            // SAFETY: the first `nr` entries have been written by `push`.
            let entry = unsafe { entry.assume_init() };
            if entry & IS_TABLE != 0 {
                let pa = arch::virt_to_phys((entry & !IS_TABLE) as *const u8);
                // SAFETY: a table that `unmap_range` took out empty; flushed since.
                unsafe { free_table(Table::from_phys(pa)) };
            } else if let Some(p) = core::ptr::NonNull::new(entry as *mut _) {
                // SAFETY: from `as_ptr` of a PageRef.
                unsafe { PageRef::from_ptr(p) }.put();
            }
        }
    }
}

impl Drop for Gather<'_> {
    fn drop(&mut self) {
        if self.start < self.end || self.nr != 0 {
            self.flush();
        }
        self.mm.rss().add_all(&self.rss);
        if self.tables != 0 {
            self.mm.tables_freed(self.tables);
        }
    }
}

#[inline(always)]
fn infallible(r: Result<(), Infallible>) {
    match r {
        Ok(()) => {}
        Err(e) => match e {},
    }
}

/// Clears all entries in `start..end` and frees the tables that lie wholly in `floor..ceiling`,
/// where no area is left (below `start` and above `end`, that is).
///
/// Context: `mmap_lock` held for write, or exit; no area of the range linked in an `i_mmap`.
pub(crate) fn unmap_range(
    gather: &mut Gather<'_>,
    pgd: Table,
    start: usize,
    end: usize,
    floor: usize,
    ceiling: usize,
) {
    let unused = |va: usize, shift: u32| {
        let base = va >> shift << shift;
        (base >= floor && base + (1 << shift) <= ceiling).then_some(base)
    };
    infallible(for_slots::<L4_SHIFT, Infallible>(pgd, start, end, |s4, a, b| {
        let Some(t3) = s4.table() else { return Ok(()) };
        for_slots::<L3_SHIFT, Infallible>(t3, a, b, |s3, a, b| {
            let Some(t2) = s3.table() else { return Ok(()) };
            for_slots::<L2_SHIFT, Infallible>(t2, a, b, |s2, a, b| {
                let Some(t1) = s2.table() else { return Ok(()) };
                clear_l1(gather, t1, a, b);
                if let Some(base) = unused(a, L2_SHIFT) {
                    s2.store(Pte::NONE);
                    gather.table(t1, base, 1 << L2_SHIFT);
                }
                Ok(())
            })?;
            if let Some(base) = unused(a, L3_SHIFT) {
                s3.store(Pte::NONE);
                gather.table(t2, base, 1 << L3_SHIFT);
            }
            Ok(())
        })?;
        if let Some(base) = unused(a, L4_SHIFT) {
            s4.store(Pte::NONE);
            gather.table(t3, base, 1 << L4_SHIFT);
        }
        Ok(())
    }));
}

/// Clears the entries of one L1 table in `start..end`; nobody else changes them.
#[inline(always)]
fn clear_l1(gather: &mut Gather<'_>, t1: Table, start: usize, end: usize) {
    infallible(for_ptes(t1, start, end, |slot, pte, va| {
        slot.store(Pte::NONE);
        gather.pte(pte, va);
        Ok(())
    }));
}

/// Clears the entries in `start..end` that `which` accepts, while others may change them too.
/// Tables stay. Context: `mmap_lock` held, or `i_mmap` of the file that the range maps and, in
/// that case, `page_table_lock` taken here table by table (INV-FORK-2).
pub(crate) fn zap_range(
    gather: &mut Gather<'_>,
    mm: &Mm,
    start: usize,
    end: usize,
    which: impl Fn(Pte) -> bool,
) {
    infallible(walk_l1(mm.pgd(), start, end, |t1, a, b| {
        // The gather may flush while we hold the lock: the flush is an IPI handled by CPUs that
        // may spin for this very lock with IRQs on, which is fine.
        let _lock = mm.page_table_lock().lock();
        for_ptes(t1, a, b, |slot, mut pte, va| {
            while which(pte) && !pte.is_none() {
                if slot.cas(pte, Pte::NONE) {
                    gather.pte(pte, va);
                    break;
                }
                pte = slot.load();
            }
            Ok(())
        })
    }));
}
