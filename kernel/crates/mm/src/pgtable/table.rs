//! Where user page tables come from and go to.
//!
//! Problem. A fork makes about seven tables and the exit frees them; clearing 4 KiB each time
//! would cost more than all the rest of the fork of a small process.
//!
//! Mechanism. Tearing an address space down clears each entry it finds anyway, so a table is
//! empty when it is freed (INV-PT-3). Each CPU keeps some of its node's in this *constructed
//! state*, linked through their descriptors, so that the tables themselves are not even touched.
//! Roots keep the kernel's half for the same reason.
//!
//! ```text
//!  window of a CPU                  vmemmap
//!  Stash { tables: Pile ---------> Page ---> Page ---> ...   (at most 32)
//!          roots:  Pile ---------> Page ---> ... }           (at most 8)
//! ```
//!
//! Lock order: `table_drain` (sleeps) before nothing.
//!
//! Invariants
//! - INV-STASH-1: a stash is touched only by a thread on its CPU with preemption off that found its
//!   offset in `OFFSET`, or by the holder of `DRAIN` that has set `OFFSET` to the area of zeroes
//!   and then waited for a grace period. All zero is an empty stash that takes nothing.
//! - INV-STASH-2: pages in a stash are of the CPU's node, ours alone, and as INV-PT-3 says.

use super::{NR_ENTRIES, PRESENT, Table};
use core::alloc::Layout;
use core::cell::Cell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use ksync::{LockClass, Mutex, PreemptGuard, arch, rcu};
use page_alloc::{Gfp, OutOfMemory, Page, PageKind, PageRef, fault_inject, free_pages};
use percpu::{ZERO_AREA, Zero};

/// Empty tables a CPU keeps.
const MAX_TABLES: u32 = 32;
/// Roots a CPU keeps.
const MAX_ROOTS: u32 = 8;

/// A stack of pages linked through word 0 of their descriptors.
#[repr(C)]
struct Pile {
    head: Cell<*mut Page>,
    nr: Cell<u32>,
    max: Cell<u32>,
}

impl Pile {
    #[inline(always)]
    fn pop(&self) -> Option<PageRef> {
        let head = NonNull::new(self.head.get())?;
        // SAFETY: `push` stored it.
        let page = unsafe { PageRef::from_ptr(head) };
        self.head.set(page.ptr(0));
        self.nr.set(self.nr.get() - 1);
        Some(page)
    }

    /// False if the pile is full.
    #[inline(always)]
    fn push(&self, page: PageRef) -> bool {
        if self.nr.get() == self.max.get() {
            return false;
        }
        page.set_ptr(0, self.head.get());
        self.head.set(page.as_ptr().as_ptr());
        self.nr.set(self.nr.get() + 1);
        true
    }
}

/// What a CPU keeps.
#[repr(C, align(64))]
struct Stash {
    tables: Pile,
    roots: Pile,
    node: Cell<usize>,
}

const _: () = assert!(size_of::<Stash>() == 64, "as large as the area of zeroes");

/// Offset of the stash in every CPU's window (INV-STASH-1).
static OFFSET: AtomicUsize = AtomicUsize::new(ZERO_AREA);
/// The real offset, once `init_stash` has run.
static OWN_OFFSET: AtomicUsize = AtomicUsize::new(0);
static DRAIN_CLASS: LockClass = LockClass::new("table_drain");
static DRAIN: Mutex<()> = Mutex::new((), &DRAIN_CLASS);

/// Physical address of the root with the kernel's half; 0: none.
static KERNEL_PGD: AtomicUsize = AtomicUsize::new(0);

#[inline(always)]
fn stash(_preempt_off: &PreemptGuard) -> &Stash {
    // SAFETY: INV-STASH-1: both offsets are 64 bytes of every window that read as a Stash.
    unsafe { &*((arch::this_cpu_base() + OFFSET.load(Ordering::Acquire)) as *const Stash) }
}

/// Makes the stashes. Once at boot, after percpu.
pub(crate) fn init_stash() -> Result<(), OutOfMemory> {
    percpu::ensure_ready()?;
    let _alone = DRAIN.lock();
    if OWN_OFFSET.load(Ordering::Acquire) != 0 {
        return Ok(());
    }
    let offset = percpu::alloc_gfp(Layout::new::<Stash>(), Zero::Yes, Gfp::NOFAULT_INJECT)?;
    for cpu in 0..arch::nr_cpu_ids() {
        // SAFETY: fresh, zeroed per-CPU memory that nobody else knows yet.
        let stash = unsafe { &*((arch::percpu_base(cpu) + offset) as *const Stash) };
        stash.tables.max.set(MAX_TABLES);
        stash.roots.max.set(MAX_ROOTS);
        stash.node.set(arch::cpu_to_node(cpu));
    }
    OWN_OFFSET.store(offset, Ordering::Release);
    OFFSET.store(offset, Ordering::Release);
    Ok(())
}

/// Gives the tables that CPUs keep back to page_alloc. May sleep (a grace period). For a caller
/// that found memory short, and for leak checks.
pub fn drain_tables() {
    let _alone = DRAIN.lock();
    let own = OWN_OFFSET.load(Ordering::Acquire);
    if own == 0 {
        return;
    }
    OFFSET.store(ZERO_AREA, Ordering::Release);
    rcu::synchronize();
    for cpu in 0..arch::nr_cpu_ids() {
        // SAFETY: INV-STASH-1, second case.
        let stash = unsafe { &*((arch::percpu_base(cpu) + own) as *const Stash) };
        for pile in [&stash.tables, &stash.roots] {
            while let Some(page) = pile.pop() {
                free_pages(page);
            }
        }
    }
    OFFSET.store(own, Ordering::Release);
}

/// Names the root whose upper half every address space shares. Once at boot, before the first
/// [`crate::Mm`]; its entries 256..512 do not change any more from then on.
pub fn set_kernel_pgd(phys: usize) {
    KERNEL_PGD.store(phys, Ordering::Release);
}

#[inline(always)]
fn table_of(page: PageRef) -> Table {
    // SAFETY: the page is allocated, as a table, and the caller's.
    unsafe { Table::from_phys(page.phys()) }
}

#[cold]
#[inline(never)]
fn fresh() -> Result<Table, OutOfMemory> {
    let page = page_alloc::alloc_page(Gfp::ZERO | Gfp::NOFAULT_INJECT)?;
    page.set_kind(PageKind::PageTable);
    Ok(table_of(page))
}

/// Puts a page away if it is of this CPU's node and there is room.
#[inline(always)]
fn put_away(table: Table, pile: impl Fn(&Stash) -> &Pile) {
    let page = PageRef::from_virt(table.virt().as_ptr());
    let guard = PreemptGuard::new();
    let stash = stash(&guard);
    if page.node() != stash.node.get() || !pile(stash).push(page) {
        free_pages(page);
    }
}

/// An empty table. Any context but hard IRQ.
#[inline]
pub(crate) fn alloc_table() -> Result<Table, OutOfMemory> {
    if fault_inject::should_fail() {
        return Err(OutOfMemory);
    }
    let kept = stash(&PreemptGuard::new()).tables.pop();
    match kept {
        Some(page) => Ok(table_of(page)),
        None => fresh(),
    }
}

/// Frees a table. Any context but hard IRQ.
///
/// # Safety
/// It came from [`alloc_table`], is empty (INV-PT-3), and neither software nor a TLB can reach it.
#[inline]
pub(crate) unsafe fn free_table(table: Table) {
    debug_assert!(table.is_empty(0..NR_ENTRIES), "INV-PT-3");
    put_away(table, |s| &s.tables);
}

/// A root: user half empty, kernel half as set by [`set_kernel_pgd`]. Any context but hard IRQ.
#[inline]
pub(crate) fn alloc_pgd() -> Result<Table, OutOfMemory> {
    if fault_inject::should_fail() {
        return Err(OutOfMemory);
    }
    let kept = stash(&PreemptGuard::new()).roots.pop();
    match kept {
        Some(page) => Ok(table_of(page)),
        None => fresh_pgd(),
    }
}

#[cold]
fn fresh_pgd() -> Result<Table, OutOfMemory> {
    let pgd = fresh()?;
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

/// Frees a root. Any context but hard IRQ.
///
/// # Safety
/// It came from [`alloc_pgd`], its user half is empty (INV-PT-3), and no CPU has it loaded.
#[inline]
pub(crate) unsafe fn free_pgd(pgd: Table) {
    debug_assert!(pgd.is_empty(0..NR_ENTRIES / 2), "INV-PT-3");
    put_away(pgd, |s| &s.roots);
}

/// A zeroed root for tests of kernel mappings: its physical address.
#[cfg(test)]
pub(crate) fn test_root() -> usize {
    page_alloc::alloc_page(Gfp::ZERO).map_or(0, |p| p.phys())
}

const _: () = assert!(ZERO_AREA.is_multiple_of(64));
