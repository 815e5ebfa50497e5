//! Growing, shrinking and moving a mapping.
//!
//! Problem: realloc of large blocks. Moving must carry private pages over without copying them,
//! against truncation walking the file.
//!
//! Mechanism. The new area is linked before entries move, as in fork, and entries move under the page-table
//! lock: fork's argument (INV-FORK-1, INV-FORK-2). Old translations are flushed under that lock too: a walker that
//! zaps the new entry flushes the new address only. Only private pages move; others fault in again.
//! Tables for them are made first, so that nothing fails once something has changed.

use crate::mm::Mm;
use crate::mmap::in_task;
use crate::pgtable::{L1_SHIFT, Pte, find_l1, for_ptes, get_l1, index, walk_l1};
use crate::tree::MmTree;
use crate::vma::{VmFlags, VmaMem, VmaPtr};
use crate::zap::{Gather, unmap_range};
use crate::{MAX_MAP_COUNT, MmError, TASK_SIZE, file, page_align};
use core::convert::Infallible;
use ksync::{PAGE_SHIFT, PAGE_SIZE};
use page_alloc::OutOfMemory;

bitflags::bitflags! {
    /// How a mapping may be resized; Linux's numbers.
    #[derive(Copy, Clone, PartialEq, Eq, Debug)]
    pub struct RemapFlags: u32 {
        /// It may get another address.
        const MAYMOVE = 1;
        /// It shall get the address given. With MAYMOVE only.
        const FIXED = 2;
    }
}

/// An aligned request.
#[derive(Copy, Clone)]
struct Move {
    from: usize,
    old_len: usize,
    to: usize,
    new_len: usize,
}

impl Mm {
    /// Makes the mapping of `old_len` bytes at `addr` `new_len` bytes long, moving it if it must
    /// and may; returns its address. May sleep. Errors: Invalid, Fault (not one area), NoMemory.
    pub fn mremap(
        &self,
        addr: usize,
        old_len: usize,
        new_len: usize,
        flags: RemapFlags,
        new_addr: usize,
    ) -> Result<usize, MmError> {
        let old_len = page_align(old_len)
            .filter(|&l| l != 0)
            .ok_or(MmError::Invalid)?;
        let new_len = page_align(new_len)
            .filter(|&l| l != 0)
            .ok_or(MmError::Invalid)?;
        let fixed = flags.contains(RemapFlags::FIXED);
        if !addr.is_multiple_of(PAGE_SIZE)
            || !in_task(addr, old_len)
            || (fixed && !flags.contains(RemapFlags::MAYMOVE))
        {
            return Err(MmError::Invalid);
        }
        let mut tree = self.mmap_lock().write();
        let v = tree.find_exact(addr).ok_or(MmError::Fault)?;
        if fixed {
            let apart = new_addr >= addr + old_len || addr >= new_addr.wrapping_add(new_len);
            if !new_addr.is_multiple_of(PAGE_SIZE) || !in_task(new_addr, new_len) || !apart {
                return Err(MmError::Invalid);
            }
        } else if new_len <= old_len {
            if new_len < old_len {
                self.unmap_locked(&mut tree, addr + new_len, addr + old_len)?;
            }
            return Ok(addr);
        }
        if addr + old_len > v.end() {
            return Err(MmError::Fault);
        }
        let more = new_len.saturating_sub(old_len) >> PAGE_SHIFT;
        if tree.as_limit.saturating_sub(tree.total_vm) < more {
            return Err(MmError::NoMemory);
        }
        if !fixed && grow_in_place(&mut tree, v, addr, old_len, new_len) {
            return Ok(addr);
        }
        if !flags.contains(RemapFlags::MAYMOVE) {
            return Err(MmError::NoMemory);
        }
        let to = if fixed {
            new_addr
        } else {
            tree.find_gap(new_len).ok_or(MmError::NoMemory)?.0
        };
        self.move_area(
            &mut tree,
            v,
            Move {
                from: addr,
                old_len,
                to,
                new_len,
            },
        )
    }

    fn move_area(&self, tree: &mut MmTree, v: VmaPtr, mv: Move) -> Result<usize, MmError> {
        let (from_end, to_end) = (mv.from + mv.old_len, mv.to + mv.new_len);
        // The areas of source and target may both be cut in two, and there is the new one.
        if tree.map_count + 3 > MAX_MAP_COUNT {
            return Err(MmError::NoMemory);
        }
        let room = VmaMem::alloc()?;
        let cut_from = VmaMem::alloc()?;
        let occupied = tree.find(mv.to).filter(|t| t.start() < to_end);
        let cut_to = occupied.map(|_| VmaMem::alloc()).transpose()?;
        if let Err(e) = self.make_tables(v, mv) {
            self.free_tables_in_holes(tree, mv.to, to_end);
            return Err(e.into());
        }
        // From here on nothing fails.
        let gather = &mut Gather::new(self);
        if let Some(first) = occupied {
            // Keep all tables: we have just made sure they are there.
            self.unmap_with(tree, gather, first, (mv.to, to_end), cut_to, false);
        }
        // The unmapping may have cut the source's area: look again.
        let v = tree.find(mv.from).unwrap_or(v);
        let new = room.init_copy(&v, v.mm);
        new.pgoff.set(if v.file.is_some() {
            v.pgoff_of(mv.from)
        } else {
            0
        });
        new.set_flags(v.flags().difference(VmFlags::GROWSDOWN | VmFlags::STACK));
        new.start.set(mv.to);
        new.end.set(to_end);
        tree.insert_before(tree.find(mv.to), new);
        file::fork(v, new, || self.move_entries(gather, v, mv));
        self.unmap_with(tree, gather, v, (mv.from, from_end), Some(cut_from), true);
        Ok(mv.to)
    }

    /// Makes the tables that the private pages of the source need at the target.
    fn make_tables(&self, v: VmaPtr, mv: Move) -> Result<(), OutOfMemory> {
        if !v.has_anon() {
            return Ok(());
        }
        let end = mv.from + mv.old_len.min(mv.new_len);
        let mut made = 0;
        let result = walk_l1(self.pgd(), mv.from, end, |t1, a, b| {
            for_ptes(t1, a, b, |_, pte, va| {
                if pte.is_anon() {
                    get_l1(self.pgd(), va - mv.from + mv.to, &mut made)?;
                }
                Ok(())
            })
        });
        self.tables_made(made);
        result
    }

    /// Frees tables that `make_tables` made where there is no area (INV-ZAP-2).
    #[cold]
    fn free_tables_in_holes(&self, tree: &MmTree, start: usize, end: usize) {
        let mut gather = Gather::new(self);
        let mut at = start;
        while at < end {
            let next = tree.find(at);
            let hole_end = next.map_or(end, |v| v.start().min(end));
            if at < hole_end {
                let floor = next.map_or_else(|| tree.last_end(), |v| v.prev_end.get());
                let ceiling = next.map_or(1 << 47, |v| v.start());
                unmap_range(&mut gather, self.pgd(), at, hole_end, floor, ceiling);
            }
            at = next.map_or(end, |v| v.end());
        }
    }

    /// Moves private pages to the same place in the new area.
    fn move_entries(&self, gather: &mut Gather<'_>, v: VmaPtr, mv: Move) {
        if !v.has_anon() {
            return;
        }
        let end = mv.from + mv.old_len.min(mv.new_len);
        let done: Result<(), Infallible> = walk_l1(self.pgd(), mv.from, end, |t1, a, b| {
            let _lock = self.page_table_lock().lock();
            for_ptes(t1, a, b, |slot, pte, va| {
                if pte.is_anon() {
                    let target = va - mv.from + mv.to;
                    if let Some(t) = find_l1(self.pgd(), target) {
                        t.slot(index(target, L1_SHIFT)).store(pte);
                        slot.store(Pte::NONE);
                        gather.cover(va, 1 << L1_SHIFT);
                    } else {
                        debug_assert!(false, "make_tables made it");
                    }
                }
                Ok::<(), Infallible>(())
            })?;
            if v.file.is_some() {
                gather.flush();
            }
            Ok(())
        });
        match done {
            Ok(()) => {}
            Err(e) => match e {},
        }
    }
}

/// Lengthens the area at its end if the range is its end and the room behind is free.
fn grow_in_place(tree: &mut MmTree, v: VmaPtr, addr: usize, old: usize, new: usize) -> bool {
    let end = addr + new;
    if addr + old != v.end() || end > TASK_SIZE {
        return false;
    }
    if tree.next(v).is_some_and(|n| n.guarded_start() < end) {
        return false;
    }
    file::adjust(v, (v.start(), end), None, || {
        tree.set_range(v, v.start(), end)
    });
    true
}
