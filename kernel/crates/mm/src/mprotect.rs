//! Changing the rights of a range, and throwing pages away (madvise).
//!
//! Problem. The range may begin and end inside areas: up to two splits, either of which can fail.
//! Mechanism. Check all, allocate all, then change. (Linux changes area by area and can stop half
//! way; here an error means that nothing has happened.)
//!
//! Flush rule: widening needs none, since a CPU with the old, narrower translation faults, and
//! the fault finds nothing to do; narrowing flushes before `mmap_lock` is released.

use crate::mm::Mm;
use crate::mmap::{Prot, merge_with_prev, prot_flags, split};
use crate::pgtable::{ADDR_MASK, ANON, DIRTY, L1_SHIFT, NX, PRESENT, Pte, RW, SHMEM, SPECIAL};
use crate::pgtable::{for_ptes, walk_l1};
use crate::tree::MmTree;
use crate::vma::{VmFlags, VmaMem, VmaPtr};
use crate::zap::{Gather, zap_range};
use crate::{MAX_MAP_COUNT, MmError, TASK_SIZE, page_align};
use core::convert::Infallible;
use ksync::PAGE_SIZE;

impl Mm {
    /// Gives all pages of `addr..addr + len` the rights `prot`. May sleep. Errors: Invalid,
    /// NoMemory (a hole in the range too), Access (a file not opened for it).
    pub fn mprotect(&self, addr: usize, len: usize, prot: Prot) -> Result<(), MmError> {
        let Some((start, end)) = checked_range(addr, len)? else {
            return Ok(());
        };
        let mut tree = self.mmap_lock().write();
        let (low, high) = prepare(&tree, start, end, prot)?;
        let mut gather = Gather::new(self);
        self.protect_areas(&mut tree, &mut gather, (start, end), prot, (low, high));
        Ok(())
    }

    /// MADV_DONTNEED: throws the pages of the range away; the next access finds zeroes, or the
    /// file's content. May sleep. Errors: Invalid, NoMemory (a hole; the rest is done).
    pub fn madvise_dontneed(&self, addr: usize, len: usize) -> Result<(), MmError> {
        let Some((start, end)) = checked_range(addr, len)? else {
            return Ok(());
        };
        let tree = self.mmap_lock().write();
        let mut gather = Gather::new(self);
        let (mut at, mut covered, mut whole) = (tree.find(start), start, true);
        while let Some(v) = at.filter(|v| v.start() < end) {
            whole &= v.start() <= covered;
            covered = v.end();
            zap_range(
                &mut gather,
                self,
                v.start().max(start),
                v.end().min(end),
                |_| true,
            );
            at = tree.next(v);
        }
        // The flush comes before faults can happen again.
        drop(gather);
        drop(tree);
        if whole && covered >= end {
            Ok(())
        } else {
            Err(MmError::NoMemory)
        }
    }

    /// Changes areas and entries; cannot fail. `rooms` is memory for the splits at both ends.
    fn protect_areas(
        &self,
        tree: &mut MmTree,
        gather: &mut Gather<'_>,
        (start, end): (usize, usize),
        prot: Prot,
        (mut low, mut high): (Option<VmaMem>, Option<VmaMem>),
    ) {
        let mut at = tree.find(start);
        while let Some(mut v) = at.filter(|v| v.start() < end) {
            let flags = v.flags().difference(VmFlags::ACCESS) | prot_flags(prot);
            if flags != v.flags() {
                if v.start() < start
                    && let Some(room) = low.take()
                {
                    v = split(tree, v, start, room);
                }
                if v.end() > end
                    && let Some(room) = high.take()
                {
                    split(tree, v, end, room);
                }
                v.set_flags(flags);
                protect_range(self, gather, v);
            }
            v = merge_with_prev(tree, v);
            at = tree.next(v);
        }
        if let Some(v) = at.filter(|v| v.start() == end) {
            merge_with_prev(tree, v);
        }
    }
}

/// Start and end of an aligned range of pages; None if it is empty.
fn checked_range(addr: usize, len: usize) -> Result<Option<(usize, usize)>, MmError> {
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(MmError::Invalid);
    }
    let len = page_align(len).ok_or(MmError::NoMemory)?;
    let end = addr
        .checked_add(len)
        .filter(|&e| e <= TASK_SIZE)
        .ok_or(MmError::NoMemory)?;
    Ok((len != 0).then_some((addr, end)))
}

/// Checks that the change is allowed everywhere, and takes memory for the splits it needs.
fn prepare(
    tree: &MmTree,
    start: usize,
    end: usize,
    prot: Prot,
) -> Result<(Option<VmaMem>, Option<VmaMem>), MmError> {
    let want = prot_flags(prot);
    let (mut at, mut covered, mut splits) = (tree.find(start), start, [false; 2]);
    while let Some(v) = at.filter(|v| v.start() < end) {
        if v.start() > covered {
            return Err(MmError::NoMemory);
        }
        let may = VmFlags::from_bits_truncate(v.flags().bits() >> 4) & VmFlags::ACCESS;
        if !may.contains(want) {
            return Err(MmError::Access);
        }
        if v.flags() & VmFlags::ACCESS != want {
            splits[0] |= v.start() < start;
            splits[1] |= v.end() > end;
        }
        covered = v.end();
        at = tree.next(v);
    }
    if covered < end {
        return Err(MmError::NoMemory);
    }
    let nr = splits.iter().filter(|&&s| s).count();
    if tree.map_count + nr > MAX_MAP_COUNT {
        return Err(MmError::NoMemory);
    }
    let room = |wanted: bool| wanted.then(VmaMem::alloc).transpose();
    Ok((room(splits[0])?, room(splits[1])?))
}

/// The entry `pte` with the rights that `v` gives now.
#[inline(always)]
fn reprotect(pte: Pte, v: &VmaPtr) -> Pte {
    let mut bits = pte.0 & (ADDR_MASK | SPECIAL | ANON | SHMEM | DIRTY) | v.prot.get();
    // A private page that was not writable may be shared with relatives, a page of a file may be clean: the fault will
    // see.
    let tracked = |v: &VmaPtr| v.file.as_ref().is_some_and(|f| f.tracks_writes());
    if pte.is_writable() || v.is_shared() && !tracked(v) {
        bits |= v.write_bits();
    }
    Pte(bits)
}

/// Gives the entries of `v` its rights; notes in `gather` what must be flushed.
fn protect_range(mm: &Mm, gather: &mut Gather<'_>, v: VmaPtr) {
    let done: Result<(), Infallible> = walk_l1(mm.pgd(), v.start(), v.end(), |t1, a, b| {
        for_ptes(t1, a, b, |slot, mut pte, va| {
            // Faults are excluded; a walker of i_mmap may clear the entry at any time.
            while !pte.is_none() {
                let new = reprotect(pte, &v);
                if new == pte {
                    break;
                }
                if slot.cas(pte, new) {
                    let lost = (pte.0 & !new.0) & (PRESENT | RW) | (new.0 & !pte.0) & NX;
                    if pte.is_present() && lost != 0 {
                        gather.cover(va, 1 << L1_SHIFT);
                    }
                    break;
                }
                pte = slot.load();
            }
            Ok(())
        })
    });
    match done {
        Ok(()) => {}
        Err(e) => match e {},
    }
}
