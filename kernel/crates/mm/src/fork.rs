//! Fork: a copy of an address space.
//!
//! Problem. The copy must be cheap in proportion to what cannot be had again by a fault, and must
//! not race with truncation: a child entry made after the walker has passed would keep a
//! truncated page.
//!
//! Mechanism. One pass over the areas: each is copied to the same place in a tree of the same
//! shape (no search, no balancing), linked into its file, and then its private pages are shared: write-protected in the
//! parent, counted, entered in the child. Areas of files without private pages are linked a handful at a time, later:
//! without entries there is nothing a walk could miss. File pages and the zero page are left to the child's faults.
//! A child table is made when the first entry for it comes.
//!
//! Invariants
//! - INV-FORK-1 (cover): a child's area is linked in `i_mmap` before its entries are copied, and the copy is covered by
//!   INV-RMAP-4: a walk that comes to the parent after it comes to the child after it too. All areas are linked
//!   before the child's `mmap_lock` is released, so before it has entries of its own.
//! - INV-FORK-2 (one lock): entries of an area linked in `i_mmap` are copied under the parent's
//!   `page_table_lock`, which walkers of `i_mmap` also take. With INV-FORK-1: a walker that gets to
//!   the parent's table first leaves nothing to copy; one that comes later finds the child's
//!   entry when it gets to the child. Areas of no file have no walkers and need no lock.
//! - INV-FORK-3 (flush): if any entry of the parent lost its write permission, the CPUs that run
//!   the parent flush before `mmap_lock` is released, on errors too: a stale writable translation
//!   would let the parent write into pages that a later fork shares without a flush of its own.

use crate::file::{self, Linker};
use crate::mm::{Mm, MmUser};
use crate::pgtable::{Table, for_ptes, get_l1, walk_l1};
use crate::rss::RssKind;
use crate::tree::MmTree;
use crate::vma::{VmaMem, VmaPtr};
use crate::{MmError, TASK_SIZE, interleave};
use core::ptr::NonNull;
use core::sync::atomic::{Ordering::SeqCst, fence};
use kbench::Phase;
use ksync::arch;
use ksync::trace;
use page_alloc::OutOfMemory;

/// What a copy has done so far.
struct Copied {
    /// Private pages entered in the child.
    anon: isize,
    /// Tables made for the child.
    tables: usize,
    /// Some entry of the parent lost RW.
    narrowed: bool,
}

/// See [`MmUser::dup`].
pub(crate) fn dup_mm(parent: &MmUser) -> Result<MmUser, MmError> {
    let timer = trace::begin();
    let child = Mm::new()?;
    let mut old = parent.mmap_lock().write();
    ksync::lockdep::nested();
    let mut new = child.mmap_lock().write();
    new.inherit(&old);
    *child.exe_slot().lock() = parent.exe();
    let mut copied = Copied {
        anon: 0,
        tables: 0,
        narrowed: false,
    };
    let result = dup_areas(parent, child.as_ptr(), &old, &mut new, &mut copied);
    if copied.narrowed {
        fence(SeqCst);
        if !parent.cpumask().is_empty() {
            arch::flush_tlb_range(parent.cpumask(), parent.id(), 0, TASK_SIZE);
        }
    }
    child.rss().add(RssKind::Anon, copied.anon);
    child.tables_made(copied.tables);
    drop(new);
    // The parent's lock is held for write without a change to its tree: nothing else to do.
    let _: &mut MmTree = &mut old;
    drop(old);
    trace::end(Phase::MmSetup as usize, timer);
    // On an error the child's last user drops here and takes away what was made.
    result.map(|()| child)
}

fn dup_areas(
    parent: &Mm,
    child: NonNull<Mm>,
    old: &MmTree,
    new: &mut MmTree,
    copied: &mut Copied,
) -> Result<(), MmError> {
    // SAFETY: the caller holds a user of the child.
    let child_pgd = unsafe { child.as_ref() }.pgd();
    let mut failed = None;
    let mut linker = Linker::new();
    let result = new.copy_areas(old, |v| {
        if let Some(e) = failed {
            return Err(e);
        }
        let copy = VmaMem::alloc()?.init_copy(&v, child);
        if v.has_anon() {
            let copy_entries = || copy_range(parent, child_pgd, v, copied);
            // On an error too the copy exists and is linked: it goes into the tree, and nothing after it.
            failed = file::fork(v, copy, copy_entries).err().map(MmError::from);
        } else if v.file.is_some() {
            linker.add(v, copy);
        }
        Ok(copy)
    });
    // On an error too: exit takes them out again.
    linker.flush();
    result.and(failed.map_or(Ok(()), Err))
}

/// Shares the private pages of `v` with the child.
fn copy_range(
    parent: &Mm,
    child_pgd: Table,
    v: VmaPtr,
    copied: &mut Copied,
) -> Result<(), OutOfMemory> {
    let timer = trace::begin();
    let result = walk_l1(parent.pgd(), v.start(), v.end(), |t1, start, end| {
        // INV-FORK-2.
        let _lock = v.file.is_some().then(|| parent.page_table_lock().lock());
        copy_l1(child_pgd, t1, start, end, copied)
    });
    trace::end(Phase::PgtableCopy as usize, timer);
    result
}

#[inline(always)]
fn copy_l1(
    child_pgd: Table,
    t1: Table,
    start: usize,
    end: usize,
    copied: &mut Copied,
) -> Result<(), OutOfMemory> {
    let mut child_l1: Option<Table> = None;
    for_ptes(t1, start, end, |slot, pte, va| {
        if !pte.is_anon() {
            return Ok(());
        }
        let to = match child_l1 {
            Some(t) => t,
            None => *child_l1.insert(get_l1(child_pgd, va, &mut copied.tables)?),
        };
        interleave("entry read");
        let shared = pte.wrprotect();
        if pte.is_writable() {
            // Nobody else changes it: faults are excluded, walkers by the lock, hardware by
            // INV-PT-2.
            slot.store(shared);
            copied.narrowed = true;
        }
        // The child's entry owns a reference of its own (INV-PT-4).
        shared.page().get();
        to.slot(va >> crate::pgtable::L1_SHIFT).store(shared);
        copied.anon += 1;
        Ok(())
    })
}
