//! Host tests: real page tables in an arena, walked by a software MMU.
//!
//! Problem: the crate's promises are about what programs see in memory, and about what is left
//! when they are gone. Mechanism: [`Machine`] boots the arena, serialises tests (the counts are
//! global) and checks at its end that every page, area, table and object is back.

mod basic;
pub(crate) mod interleave;
mod model;
mod nth;
mod reclaim;
pub(crate) mod setup;
mod stress;
mod tlb;

use crate::pgtable::{self, L1_SHIFT, Pte, find_l1, index};
use crate::{FaultError, FaultFlags, MapArgs, MapFlags, Mm, MmUser, Prot};
use ksync::{PAGE_SIZE, rcu};
use rmap::{AddressSpace, Filler};
use slab::KArc;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

pub(crate) const RW: Prot = Prot::READ.union(Prot::WRITE);
pub(crate) const PAGE: usize = PAGE_SIZE;

/// What must be the same before and after.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Census {
    /// Free pages, and pages that allocators hold as theirs.
    pages: usize,
    /// Live objects of the caches that this crate fills, by name.
    objects: BTreeMap<&'static str, usize>,
}

pub(crate) fn census() -> Census {
    rcu::barrier();
    crate::drain_shells();
    slab::shrink_all();
    pgtable::drain_tables();
    slab::shrink_all();
    percpu::shrink();
    page_alloc::drain_all();
    let mut pages = percpu::host::nr_populated();
    pages += (0..2).map(|n| page_alloc::nr_free(n).free).sum::<usize>();
    let mut objects = BTreeMap::new();
    slab::slabinfo(|s| {
        pages += s.pages;
        if [
            "vm_area_struct",
            "mm_struct",
            "address_space",
            "xarray_node",
        ]
        .contains(&s.name)
        {
            objects.insert(s.name, s.active);
        }
    });
    Census { pages, objects }
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The emulated machine, held by one test at a time.
pub(crate) struct Machine {
    /// None: a planted bug has left something.
    pub(crate) before: Option<Census>,
    _alone: MutexGuard<'static, ()>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        page_alloc::host::init(&[8192, 4096]);
        crate::init().unwrap();
        // Caches that register at first use.
        Mm::new().unwrap().mmap(&MapArgs::anon(PAGE, RW)).unwrap();
        file(1).find_or_create_page(0).unwrap().put();
        Machine {
            before: Some(census()),
            _alone: alone,
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !std::thread::panicking()
            && let Some(before) = &self.before
        {
            assert_eq!(&census(), before, "something leaked (or was freed twice)");
        }
    }
}

/// First word of page `i` of every test file.
pub(crate) fn file_word(i: u64) -> u64 {
    0xf11e_0000_0000 | i
}

/// Bytes for files of up to 64 pages: page i starts with `file_word(i)`.
fn file_bytes() -> &'static [u8] {
    static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    BYTES.get_or_init(|| {
        let mut bytes = std::vec![0u8; 64 * PAGE];
        for i in 0..64 {
            bytes[i * PAGE..i * PAGE + 8].copy_from_slice(&file_word(i as u64).to_ne_bytes());
        }
        bytes
    })
}

/// A file of `pages` pages.
pub(crate) fn file(pages: usize) -> KArc<AddressSpace> {
    AddressSpace::new(Filler::Static(file_bytes()), (pages * PAGE) as u64, b"test").unwrap()
}

/// Arguments to map `pages` pages of a file.
pub(crate) fn of_file(
    f: &KArc<AddressSpace>,
    pgoff: u64,
    pages: usize,
    shared: bool,
) -> MapArgs<'_> {
    MapArgs {
        flags: if shared {
            MapFlags::SHARED
        } else {
            MapFlags::PRIVATE
        },
        file: Some((f, pgoff)),
        ..MapArgs::anon(pages * PAGE, RW)
    }
}

pub(crate) fn shared_anon(pages: usize) -> MapArgs<'static> {
    MapArgs {
        flags: MapFlags::SHARED | MapFlags::ANONYMOUS,
        ..MapArgs::anon(pages * PAGE, RW)
    }
}

/// The entry for `addr` as the hardware would see it.
pub(crate) fn entry(mm: &Mm, addr: usize) -> Pte {
    find_l1(mm.pgd(), addr).map_or(Pte::NONE, |t| t.slot(index(addr, L1_SHIFT)).load())
}

/// Finds the page behind `addr` as the hardware would, with faults handled.
pub(crate) fn access(mm: &Mm, addr: usize, how: FaultFlags) -> Result<*mut u8, FaultError> {
    for _ in 0..1000 {
        let pte = entry(mm, addr);
        let write = how.contains(FaultFlags::WRITE);
        let exec = how.contains(FaultFlags::EXEC);
        let allowed = pte.is_present()
            && (!write || pte.is_writable())
            && (!exec || pte.0 & pgtable::NX == 0);
        if allowed {
            return Ok(pte.page().virt().wrapping_add(addr % PAGE));
        }
        mm.handle_fault(addr, how | FaultFlags::USER)?;
    }
    panic!("the fault at {addr:#x} never ends");
}

/// Reads the word at `addr` as a program would.
pub(crate) fn read(mm: &Mm, addr: usize) -> Result<u64, FaultError> {
    let p = access(mm, addr, FaultFlags::empty())?;
    // SAFETY: a page of the arena; tests align addresses.
    Ok(unsafe { p.cast::<u64>().read_volatile() })
}

/// Writes the word at `addr` as a program would.
pub(crate) fn write(mm: &Mm, addr: usize, value: u64) -> Result<(), FaultError> {
    let p = access(mm, addr, FaultFlags::WRITE)?;
    // SAFETY: as in `read`.
    unsafe { p.cast::<u64>().write_volatile(value) };
    Ok(())
}

/// An address space with one private anonymous area at `addr`.
pub(crate) fn mm_with(addr: usize, pages: usize) -> MmUser {
    let mm = Mm::new().unwrap();
    assert_eq!(
        mm.mmap(&MapArgs::anon(pages * PAGE, RW).fixed(addr)),
        Ok(addr)
    );
    mm
}
