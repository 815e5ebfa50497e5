//! Taking pages out of an address space.
//!
//! Problem. A page may be freed only when no CPU can reach it any more, through page tables or
//! through a TLB; asking other CPUs to flush is dear, so it is done once for many pages. And exit
//! must not pay for any of this when nobody runs the address space.
//!
//! Mechanism. [`Gather`] collects what has been taken out, flushes, then lets go of all of it. At
//! exit, with no CPU left in the mm's cpumask, there is nothing to flush. Table pages travel the
//! same way.
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
use page_alloc::{PageRef, put_pages};

/// Pages let go of at once. 1 KiB of stack.
const BATCH: usize = 112;
/// Tables let go of at once.
const TABLES: usize = 16;

/// What was taken out and not yet let go. Lets go of the rest when dropped.
pub(crate) struct Gather<'a> {
    mm: &'a Mm,
    /// No CPU can have translations: no flush is needed.
    quiet: bool,
    /// Smallest range that covers the entries cleared since the last flush.
    start: usize,
    end: usize,
    nr_pages: usize,
    nr_tables: usize,
    rss: RssDelta,
    tables_freed: usize,
    pages: [MaybeUninit<PageRef>; BATCH],
    tables: [MaybeUninit<Table>; TABLES],
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
            nr_pages: 0,
            nr_tables: 0,
            rss: [0; NR_RSS],
            tables_freed: 0,
            pages: [const { MaybeUninit::uninit() }; BATCH],
            tables: [const { MaybeUninit::uninit() }; TABLES],
        }
    }

    /// Takes over what the entry `pte`, just cleared at `va`, owned.
    #[inline(always)]
    pub(crate) fn pte(&mut self, pte: Pte, va: usize) {
        self.cover(va, 1 << L1_SHIFT);
        if pte.is_special() {
            return;
        }
        self.rss[rss_kind(pte) as usize] -= 1;
        self.pages[self.nr_pages].write(pte.page());
        self.nr_pages += 1;
        if self.nr_pages == BATCH {
            self.flush();
        }
    }

    /// Takes over a table that covered `size` bytes at `base`.
    #[inline(always)]
    fn table(&mut self, table: Table, base: usize, size: usize) {
        self.tables_freed += 1;
        if self.quiet {
            // SAFETY: empty (INV-ZAP-2), unreachable: unlinked, and no CPU walks this mm.
            unsafe { free_table(table) };
            return;
        }
        self.cover(base, size);
        self.tables[self.nr_tables].write(table);
        self.nr_tables += 1;
        if self.nr_tables == TABLES {
            self.flush();
        }
    }

    /// A translation in the range was narrowed.
    #[inline(always)]
    pub(crate) fn cover(&mut self, va: usize, size: usize) {
        self.start = self.start.min(va);
        self.end = self.end.max(va + size);
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
        let (pages, tables) = (&self.pages[..self.nr_pages], &self.tables[..self.nr_tables]);
        (self.nr_pages, self.nr_tables) = (0, 0);
        // SAFETY: so many have been written; PageRef and its MaybeUninit have the same layout.
        put_pages(unsafe { &*(pages as *const [MaybeUninit<PageRef>] as *const [PageRef]) });
        for table in tables {
            // SAFETY: written by `table`; `unmap_range` took it out empty; flushed since.
            unsafe { free_table(table.assume_init()) };
        }
    }
}

impl Drop for Gather<'_> {
    fn drop(&mut self) {
        if self.start < self.end {
            self.flush();
        }
        self.mm.rss().add_all(&self.rss);
        if self.tables_freed != 0 {
            self.mm.tables_freed(self.tables_freed);
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
    infallible(for_slots::<L4_SHIFT, Infallible>(
        pgd,
        start,
        end,
        |s4, a, b| {
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
        },
    ));
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
            while !pte.is_none() && which(pte) {
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
