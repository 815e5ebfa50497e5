//! x86-64 page tables: entries, tables, walks.
//!
//! Problem. Four levels of 512 eight-byte entries, read by hardware at any moment, written by
//! faults on many CPUs, by fork, by unmapping and by truncation, must stay consistent without a
//! lock on the way of every fault.
//!
//! Mechanism. A [`Table`] names one table page, a [`Slot`] one entry; entries are atomics. The
//! hardware writes to an entry only to set the accessed and dirty bits. Tine never looks at them
//! (it neither evicts nor writes back), so every entry it makes has A set, and D where writable:
//! then the hardware never writes, and a compare-and-swap can only fail because of other software.
//!
//! ```text
//!  47      39 38      30 29      21 20      12 11         0
//!  +---------+----------+----------+----------+------------+
//!  |  L4 pgd |   L3     |   L2     |   L1     |   offset   |
//!  +---------+----------+----------+----------+------------+
//!  L1 entry: | NX | 0 ... | frame 51..12 | SHMEM ANON SPECIAL PROTNONE . D A . . US W P |
//!              63                          11    10   9       8          6 5     2  1 0
//! ```
//!
//! Invariants
//! - INV-PT-1 (life): a table reached from a root stays allocated while the root's owner holds
//!   what excludes freeing: for a user address space `mmap_lock` (either way), or `i_mmap` of a
//!   file whose mapping covers the table; tables are freed only by `unmap_range`, which runs with
//!   `mmap_lock` held for write (or alone, at exit) after the mappings were unlinked from i_mmap.
//! - INV-PT-2 (A and D): every present user entry has ACCESSED, and DIRTY if it has RW.
//! - INV-PT-3 (zero when free): a user table that is freed has no entry left but, in the root, the
//!   kernel's half. So it can be used again without clearing 4 KiB.
//! - INV-PT-4 (one owner per entry): a present L1 entry without SPECIAL owns one reference of its
//!   page; whoever changes the entry away from it (by `swap` or a successful `cas`) takes that
//!   reference over.

mod kernel;
mod table;

pub use kernel::{MapError, PageSize, map, map_range, translate, unmap};
#[cfg(test)]
pub(crate) use table::test_root;
pub(crate) use table::{alloc_pgd, free_pgd, free_table, init_stash};
pub use table::{drain_tables, set_kernel_pgd};

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use ksync::arch;
use page_alloc::{OutOfMemory, PageRef};

/// Entries of a table.
pub const NR_ENTRIES: usize = 512;

/// The entry maps something (or points to a table).
pub const PRESENT: u64 = 1 << 0;
/// Writable.
pub const RW: u64 = 1 << 1;
/// User mode may use it.
pub const USER: u64 = 1 << 2;
/// Write-through.
pub const PWT: u64 = 1 << 3;
/// Uncached (for device memory).
pub const PCD: u64 = 1 << 4;
/// Accessed.
pub const ACCESSED: u64 = 1 << 5;
/// Dirty.
pub const DIRTY: u64 = 1 << 6;
/// In L2 and L3 entries: maps 2 MiB or 1 GiB.
pub const HUGE: u64 = 1 << 7;
/// Survives a change of root. Kernel mappings only.
pub const GLOBAL: u64 = 1 << 8;
/// In a user L1 entry without PRESENT: the page is there, but access is forbidden (PROT_NONE).
pub const PROTNONE: u64 = 1 << 8;
/// Software: the zero page, which is not counted.
pub const SPECIAL: u64 = 1 << 9;
/// Software: the page belongs to this mapping (or is shared with forked relatives until a write),
/// and its content exists nowhere else.
pub const ANON: u64 = 1 << 10;
/// Software: the page belongs to shared anonymous memory (only its accounting differs).
pub const SHMEM: u64 = 1 << 11;
/// Not executable.
pub const NX: u64 = 1 << 63;

/// Bits that hold the frame's address.
pub const ADDR_MASK: u64 = 0x000f_ffff_ffff_f000;

/// The bits of an entry that points to a user table.
const TABLE_BITS: u64 = PRESENT | RW | USER | ACCESSED;

pub(crate) const L1_SHIFT: u32 = 12;
pub(crate) const L2_SHIFT: u32 = 21;
pub(crate) const L3_SHIFT: u32 = 30;
pub(crate) const L4_SHIFT: u32 = 39;

/// Index of `va` in the table whose entries cover `1 << shift` bytes.
#[inline(always)]
pub(crate) const fn index(va: usize, shift: u32) -> usize {
    (va >> shift) & (NR_ENTRIES - 1)
}

/// The value of a page-table entry.
#[derive(Copy, Clone, PartialEq, Eq)]
#[repr(transparent)]
pub struct Pte(pub u64);

impl core::fmt::Debug for Pte {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Pte({:#x})", self.0)
    }
}

impl Pte {
    /// No entry.
    pub const NONE: Pte = Pte(0);

    /// An entry for the frame at `phys` with `bits`.
    #[inline(always)]
    pub const fn new(phys: usize, bits: u64) -> Pte {
        Pte(phys as u64 | bits)
    }

    /// Nothing here.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The hardware may use it.
    #[inline(always)]
    pub const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// Writable.
    #[inline(always)]
    pub const fn is_writable(self) -> bool {
        self.0 & RW != 0
    }

    /// The zero page.
    #[inline(always)]
    pub const fn is_special(self) -> bool {
        self.0 & SPECIAL != 0
    }

    /// An anonymous page.
    #[inline(always)]
    pub const fn is_anon(self) -> bool {
        self.0 & ANON != 0
    }

    /// Physical address of the frame.
    #[inline(always)]
    pub const fn phys(self) -> usize {
        (self.0 & ADDR_MASK) as usize
    }

    /// The page whose reference this entry owns (INV-PT-4), or the zero page.
    #[inline(always)]
    pub fn page(self) -> PageRef {
        PageRef::from_phys(self.phys())
    }

    /// Without write permission.
    #[inline(always)]
    pub const fn wrprotect(self) -> Pte {
        Pte(self.0 & !RW)
    }

    /// With write permission (and dirty, INV-PT-2).
    #[inline(always)]
    pub const fn mkwrite(self) -> Pte {
        Pte(self.0 | RW | DIRTY)
    }
}

/// One entry of a live table.
#[derive(Copy, Clone)]
pub struct Slot(NonNull<AtomicU64>);

impl Slot {
    #[inline(always)]
    fn cell(&self) -> &AtomicU64 {
        // SAFETY: INV-PT-1: a Slot comes from a Table whose page is allocated.
        unsafe { self.0.as_ref() }
    }

    /// The entry now. Acquire: what a table pointer leads to is initialised.
    #[inline(always)]
    pub fn load(self) -> Pte {
        Pte(self.cell().load(Ordering::Acquire))
    }

    /// Sets the entry, which nobody else changes now.
    #[inline(always)]
    pub fn store(self, pte: Pte) {
        self.cell().store(pte.0, Ordering::Release);
    }

    /// Sets the entry and returns what was there.
    #[inline(always)]
    pub fn swap(self, pte: Pte) -> Pte {
        Pte(self.cell().swap(pte.0, Ordering::AcqRel))
    }

    /// Sets the entry if it still is `old`. A full barrier (INV-FAULT-2 leans on that).
    #[inline(always)]
    pub fn cas(self, old: Pte, new: Pte) -> bool {
        self.cell()
            .compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// The table an upper-level user entry points to.
    #[inline(always)]
    pub fn table(self) -> Option<Table> {
        let pte = self.load();
        if pte.is_none() {
            return None;
        }
        debug_assert!(pte.is_present() && pte.0 & HUGE == 0);
        // SAFETY: user tables hold only pointers to live tables (INV-PT-1).
        Some(unsafe { Table::from_phys(pte.phys()) })
    }
}

/// One page of 512 entries.
#[derive(Copy, Clone, PartialEq, Eq)]
pub struct Table(NonNull<[AtomicU64; NR_ENTRIES]>);

impl Table {
    /// The table at physical address `pa`.
    ///
    /// # Safety
    /// There is a table, and it stays allocated while this handle and its slots are used
    /// (INV-PT-1).
    #[inline(always)]
    pub unsafe fn from_phys(pa: usize) -> Table {
        // SAFETY: the direct map does not contain address 0.
        Table(unsafe { NonNull::new_unchecked(arch::phys_to_virt(pa).cast()) })
    }

    /// Physical address of the table.
    #[inline(always)]
    pub fn phys(self) -> usize {
        arch::virt_to_phys(self.0.as_ptr().cast())
    }

    #[inline(always)]
    pub(crate) fn virt(self) -> NonNull<u8> {
        self.0.cast()
    }

    /// Entry number `i` (taken modulo 512).
    #[inline(always)]
    pub fn slot(self, i: usize) -> Slot {
        // SAFETY: masked to the table's length.
        Slot(unsafe { self.0.cast::<AtomicU64>().add(i & (NR_ENTRIES - 1)) })
    }

    /// Whether entries `i..i + 8` are all empty. `i + 8 <= 512`.
    #[inline(always)]
    pub(crate) fn eight_empty(self, i: usize) -> bool {
        debug_assert!(i + 8 <= NR_ENTRIES);
        let mut any = 0;
        for k in 0..8 {
            // SAFETY: INV-PT-1 and the bound above.
            any |=
                unsafe { self.0.cast::<AtomicU64>().add(i + k).as_ref() }.load(Ordering::Relaxed);
        }
        any == 0
    }

    /// Whether all entries in the range are empty. For checks.
    pub(crate) fn is_empty(self, range: core::ops::Range<usize>) -> bool {
        range.into_iter().all(|i| self.slot(i).load().is_none())
    }
}

/// The L1 table that covers `va`, if there is one. Context: INV-PT-1.
#[inline]
pub fn find_l1(pgd: Table, va: usize) -> Option<Table> {
    let t3 = pgd.slot(index(va, L4_SHIFT)).table()?;
    let t2 = t3.slot(index(va, L3_SHIFT)).table()?;
    t2.slot(index(va, L2_SHIFT)).table()
}

/// The L1 table that covers `va`, made if missing; adds the number of tables made to `made`, on
/// errors too. Several threads may do this at once for one root.
#[inline]
pub(crate) fn get_l1(pgd: Table, va: usize, made: &mut usize) -> Result<Table, OutOfMemory> {
    let t3 = get_table(pgd.slot(index(va, L4_SHIFT)), made)?;
    let t2 = get_table(t3.slot(index(va, L3_SHIFT)), made)?;
    get_table(t2.slot(index(va, L2_SHIFT)), made)
}

#[inline(always)]
fn get_table(slot: Slot, made: &mut usize) -> Result<Table, OutOfMemory> {
    match slot.table() {
        Some(t) => Ok(t),
        None => make_table(slot, made),
    }
}

#[inline(never)]
fn make_table(slot: Slot, made: &mut usize) -> Result<Table, OutOfMemory> {
    let new = table::alloc_table()?;
    if slot.cas(Pte::NONE, Pte::new(new.phys(), TABLE_BITS)) {
        *made += 1;
        return Ok(new);
    }
    // Another fault was faster. SAFETY: nobody has seen the new table, and it is empty.
    unsafe { free_table(new) };
    Ok(slot
        .table()
        .expect("INV-PT-1: tables are not freed under a fault"))
}

/// Calls `f(slot, from, to)` for each entry of `table` that covers part of `start..end`.
#[inline(always)]
pub(crate) fn for_slots<const SHIFT: u32, E>(
    table: Table,
    start: usize,
    end: usize,
    mut f: impl FnMut(Slot, usize, usize) -> Result<(), E>,
) -> Result<(), E> {
    let mut va = start;
    while va < end {
        let next = ((va >> SHIFT) + 1) << SHIFT;
        f(table.slot(index(va, SHIFT)), va, next.min(end))?;
        va = next;
    }
    Ok(())
}

/// Calls `f(l1, from, to)` for each L1 table that covers part of the user range `start..end`, in
/// order. Stops at the first error. Cost: O(tables present), plus O(entries) of upper levels.
#[inline(always)]
pub(crate) fn walk_l1<E>(
    pgd: Table,
    start: usize,
    end: usize,
    mut f: impl FnMut(Table, usize, usize) -> Result<(), E>,
) -> Result<(), E> {
    for_slots::<L4_SHIFT, E>(pgd, start, end, |s4, a, b| match s4.table() {
        None => Ok(()),
        Some(t3) => for_slots::<L3_SHIFT, E>(t3, a, b, |s3, a, b| match s3.table() {
            None => Ok(()),
            Some(t2) => for_slots::<L2_SHIFT, E>(t2, a, b, |s2, a, b| match s2.table() {
                None => Ok(()),
                Some(t1) => f(t1, a, b),
            }),
        }),
    })
}

/// Calls `f(slot, entry, va)` for the entries of the L1 table `t1` in `start..end` that are not
/// empty. Empty lines of eight entries are skipped at once.
#[inline(always)]
pub(crate) fn for_ptes<E>(
    t1: Table,
    start: usize,
    end: usize,
    mut f: impl FnMut(Slot, Pte, usize) -> Result<(), E>,
) -> Result<(), E> {
    debug_assert!(start < end && start >> L2_SHIFT == (end - 1) >> L2_SHIFT);
    let base = start & !((1 << L2_SHIFT) - 1);
    let (mut i, last) = (index(start, L1_SHIFT), index(end - 1, L1_SHIFT));
    while i <= last {
        if i & 7 == 0 && i + 7 <= last && t1.eight_empty(i) {
            i += 8;
            continue;
        }
        let slot = t1.slot(i);
        let pte = slot.load();
        if !pte.is_none() {
            f(slot, pte, base + (i << L1_SHIFT))?;
        }
        i += 1;
    }
    Ok(())
}
