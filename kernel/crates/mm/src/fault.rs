//! Page faults.
//!
//! Problem. Faults are the commonest way into this crate, on all CPUs, often many threads in one
//! address space. Mechanism: `mmap_lock` held for read keeps areas and tables in place; entries
//! change by compare-and-swap alone. Whoever loses the race lets its page go and returns: the
//! instruction runs again and finds what the winner made, or faults again.
//!
//! What an entry of a range under `mmap_lock` (read) can become:
//!
//! ```text
//!   none ---> zero page (read only) ---> private page, writable
//!     |                                        ^
//!     +-----> private page, writable           | copy, or reuse if ours alone
//!     |                                        |
//!     +-----> file page ----------------> private page  (also: read only after fork)
//!                 \__ truncation: none __/
//! ```
//!
//! Invariants
//! - INV-FAULT-1 (no ABA): in an area without a file, an entry never returns to a value it had
//!   while `mmap_lock` is held for read. So a page may be copied without a reference, if the
//!   compare-and-swap afterwards decides whether the copy counts. (Entries of files can
//!   return: there the source is held by a reference.)
//! - INV-FAULT-2 (truncation): after entering a page that comes from a file, or a copy of one, the
//!   fault checks that the source is still cached, and else takes the entry out again. See
//!   [`crate::file`].
//! - INV-FAULT-3 (reuse): a private page with a reference count of 1 belongs to this entry alone:
//!   only fork makes another owner, and fork is excluded.

use crate::mm::{Mm, zero_page};
use crate::pgtable::{ANON, index};
use crate::pgtable::{L1_SHIFT, L2_SHIFT, Pte, SHMEM, SPECIAL, Slot, Table, find_l1, get_l1};
use crate::rss::RssKind;
use crate::tree::MmTree;
use crate::vma::{VmFlags, VmaPtr};
use crate::zap::rss_kind;
use crate::{STACK_GUARD_GAP, TASK_SIZE, interleave, planted};
use ksync::{PAGE_SHIFT, PAGE_SIZE, arch};
use page_alloc::{Gfp, OutOfMemory, PageRef, alloc_page};
use rmap::{AddressSpace, FillError};

/// Pages of a file entered around a faulting one, if they are cached.
const FAULT_AROUND: usize = 16;

bitflags::bitflags! {
    /// What the access was.
    #[derive(Copy, Clone, PartialEq, Eq, Debug)]
    pub struct FaultFlags: u32 {
        /// A write.
        const WRITE = 1;
        /// An instruction fetch.
        const EXEC = 2;
        /// From user mode (not the kernel copying to or from a user address).
        const USER = 4;
    }
}

/// Why a fault cannot be resolved.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum FaultError {
    /// Nothing is mapped there (SIGSEGV, SEGV_MAPERR).
    SegvMaperr,
    /// What is mapped does not allow this (SIGSEGV, SEGV_ACCERR).
    SegvAccerr,
    /// Past the end of the file (SIGBUS, BUS_ADRERR).
    Sigbus,
    /// No memory.
    Oom,
}

/// Why `fault_locked` did not finish.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    Error(FaultError),
    /// The area below grows down: take the lock for write and let it.
    Grow,
    /// Truncation interfered: look again.
    Retry,
}

impl From<OutOfMemory> for Stop {
    #[cold]
    fn from(_: OutOfMemory) -> Self {
        Stop::Error(FaultError::Oom)
    }
}

impl From<FillError> for Stop {
    #[cold]
    fn from(e: FillError) -> Self {
        Stop::Error(match e {
            FillError::Oom => FaultError::Oom,
            FillError::PastEof => FaultError::Sigbus,
        })
    }
}

impl Mm {
    /// Resolves a fault at `addr`. Context: IRQs on, no spinlock; takes `mmap_lock` for read (for
    /// write if a stack grows), may sleep. On Ok the access is tried again.
    #[inline]
    pub fn handle_fault(&self, addr: usize, flags: FaultFlags) -> Result<(), FaultError> {
        if addr >= TASK_SIZE {
            return Err(FaultError::SegvMaperr);
        }
        let addr = addr & !(PAGE_SIZE - 1);
        loop {
            let tree = self.mmap_lock().read();
            let stop = match self.fault_locked(&tree, addr, flags) {
                Ok(()) => return Ok(()),
                Err(stop) => stop,
            };
            drop(tree);
            self.after_stop(stop, addr)?;
        }
    }

    /// Does what `stop` asks for with `mmap_lock` released; Ok: try again.
    #[cold]
    pub(crate) fn after_stop(&self, stop: Stop, addr: usize) -> Result<(), FaultError> {
        match stop {
            Stop::Error(FaultError::Oom) if crate::reclaim_for_retry() => Ok(()),
            Stop::Error(e) => Err(e),
            Stop::Retry => {
                arch::cpu_relax();
                Ok(())
            }
            Stop::Grow => self.grow_down(addr),
        }
    }

    /// Extends the area above `addr` down to it.
    fn grow_down(&self, addr: usize) -> Result<(), FaultError> {
        let mut tree = self.mmap_lock().write();
        let v = tree.find(addr).ok_or(FaultError::SegvMaperr)?;
        if v.start() <= addr {
            return Ok(());
        }
        let more = (v.start() - addr) >> PAGE_SHIFT;
        let fits = v.flags().contains(VmFlags::GROWSDOWN)
            && v.end() - addr <= tree.stack_limit
            && addr >= v.prev_end.get() + STACK_GUARD_GAP
            && tree.as_limit.saturating_sub(tree.total_vm) >= more;
        if !fits {
            return Err(FaultError::SegvMaperr);
        }
        tree.set_range(v, addr, v.end());
        Ok(())
    }

    /// Resolves a fault at the page `addr` with `mmap_lock` held for read.
    #[inline]
    pub(crate) fn fault_locked(
        &self,
        tree: &MmTree,
        addr: usize,
        flags: FaultFlags,
    ) -> Result<(), Stop> {
        let v = tree.find(addr).ok_or(Stop::Error(FaultError::SegvMaperr))?;
        if addr < v.start() {
            return Err(below(v));
        }
        let need = if flags.contains(FaultFlags::WRITE) {
            VmFlags::WRITE
        } else if flags.contains(FaultFlags::EXEC) {
            VmFlags::EXEC
        } else {
            VmFlags::ACCESS
        };
        if !v.flags().intersects(need) {
            return Err(Stop::Error(FaultError::SegvAccerr));
        }
        let t1 = match find_l1(self.pgd(), addr) {
            Some(t) => t,
            None => self.new_l1(addr)?,
        };
        let slot = t1.slot(index(addr, L1_SHIFT));
        let old = slot.load();
        let write = flags.contains(FaultFlags::WRITE);
        if old.is_none() {
            match &v.file {
                None if write => self.new_anon(v, slot, old),
                None => self.map_zero(v, slot),
                Some(f) if write && !v.is_shared() => self.copy_from_file(v, f, slot, addr),
                Some(f) => self.map_file(v, f, t1, addr),
            }
        } else if write && !old.is_writable() {
            self.write_protected(v, slot, old, addr)
        } else {
            // Somebody else was faster, or this CPU's translation is out of date.
            arch::flush_tlb_local_page(addr);
            Ok(())
        }
    }

    #[cold]
    fn new_l1(&self, addr: usize) -> Result<Table, OutOfMemory> {
        let mut made = 0;
        let t1 = get_l1(self.pgd(), addr, &mut made);
        self.tables_made(made);
        t1
    }

    /// A fresh page of zeroes for a write to `old`: no entry, or the zero page.
    #[inline]
    fn new_anon(&self, v: VmaPtr, slot: Slot, old: Pte) -> Result<(), Stop> {
        let page = alloc_page(Gfp::ZERO)?;
        if self.enter_anon(v, slot, old, page) {
            self.rss().add(RssKind::Anon, 1);
        }
        Ok(())
    }

    /// Replaces `old` by a private page whose reference is given away; false if `old` was gone.
    #[inline]
    fn enter_anon(&self, v: VmaPtr, slot: Slot, old: Pte, page: PageRef) -> bool {
        v.note_anon();
        let done = slot.cas(
            old,
            Pte::new(page.phys(), v.prot.get() | v.write_bits() | ANON),
        );
        if !done {
            page.put();
        }
        done
    }

    /// The zero page for a read.
    #[inline]
    fn map_zero(&self, v: VmaPtr, slot: Slot) -> Result<(), Stop> {
        slot.cas(
            Pte::NONE,
            Pte::new(zero_page().phys(), v.prot.get() | SPECIAL),
        );
        Ok(())
    }

    /// A write to a present entry without RW.
    fn write_protected(&self, v: VmaPtr, slot: Slot, old: Pte, addr: usize) -> Result<(), Stop> {
        if v.is_shared() {
            return match &v.file {
                Some(file) if file.tracks_writes() => page_mkwrite(file, slot, old),
                _ => {
                    slot.cas(old, old.mkwrite());
                    Ok(())
                }
            };
        }
        if old.is_special() {
            self.new_anon(v, slot, old)?;
            self.flush_page(addr);
            return Ok(());
        }
        if !old.is_anon() {
            return self.copy_mapped_file(v, slot, old, addr);
        }
        if old.page().ref_count() == 1 {
            interleave("count is one");
            // INV-FAULT-3. If the entry has changed meanwhile the count meant nothing.
            slot.cas(old, old.mkwrite());
            return Ok(());
        }
        let page = alloc_page(Gfp::empty())?;
        interleave("private page found");
        // SAFETY: the new page is ours. The old one may be freed and written while we read it;
        // then the entry has changed for good, and the copy is thrown away (INV-FAULT-1).
        unsafe { arch::copy_page(page.virt(), old.page().virt()) };
        if self.enter_anon(v, slot, old, page) {
            self.flush_page(addr);
            old.page().put();
        }
        Ok(())
    }

    /// Other CPUs may still translate `addr` to the page just replaced.
    #[inline]
    fn flush_page(&self, addr: usize) {
        if !self.cpumask().is_empty() {
            arch::flush_tlb_range(self.cpumask(), self.id(), addr, addr + PAGE_SIZE);
        }
    }

    /// A write to a mapped page of a file in a private area: copy it.
    fn copy_mapped_file(&self, v: VmaPtr, slot: Slot, old: Pte, addr: usize) -> Result<(), Stop> {
        let source = old.page();
        if !source.try_get() {
            return Err(Stop::Retry);
        }
        // With the entry still there, the reference is one of the page we mean.
        let result = if slot.load() == old {
            self.copy_page_for(v, slot, old, source, addr)
        } else {
            Err(Stop::Retry)
        };
        source.put();
        result
    }

    /// A write to a page of a file not mapped yet, in a private area.
    fn copy_from_file(
        &self,
        v: VmaPtr,
        file: &AddressSpace,
        slot: Slot,
        addr: usize,
    ) -> Result<(), Stop> {
        let source = file.find_or_create_page(v.pgoff_of(addr))?;
        let result = self.copy_page_for(v, slot, Pte::NONE, source, addr);
        source.put();
        result
    }

    /// Replaces `old` by a private copy of `source`, of which the caller holds a reference.
    fn copy_page_for(
        &self,
        v: VmaPtr,
        slot: Slot,
        old: Pte,
        source: PageRef,
        addr: usize,
    ) -> Result<(), Stop> {
        let page = alloc_page(Gfp::empty())?;
        interleave("file page found");
        // SAFETY: the new page is ours, the source is held. Others may write the source (it is
        // shared memory): each byte is then the old or the new one, as for any reader of a file.
        unsafe { arch::copy_page(page.virt(), source.virt()) };
        if !self.enter_anon(v, slot, old, page) {
            return Ok(());
        }
        self.rss().add(RssKind::Anon, 1);
        if !old.is_none() {
            self.rss().add(rss_kind(old), -1);
            self.flush_page(addr);
            old.page().put();
        }
        let entered = Pte::new(page.phys(), v.prot.get() | v.write_bits() | ANON);
        self.check_source(v, source, slot, entered, addr)
    }

    /// INV-FAULT-2: takes `entered` out again if its source has left the cache.
    #[inline]
    fn check_source(
        &self,
        v: VmaPtr,
        source: PageRef,
        slot: Slot,
        entered: Pte,
        addr: usize,
    ) -> Result<(), Stop> {
        let cached = v.file.as_ref().is_some_and(|f| f.still_cached(source));
        if cached {
            return Ok(());
        }
        self.undo(slot, entered, addr)
    }

    #[cold]
    fn undo(&self, slot: Slot, entered: Pte, addr: usize) -> Result<(), Stop> {
        if slot.cas(entered, Pte::NONE) {
            self.rss().add(rss_kind(entered), -1);
            self.flush_page(addr);
            entered.page().put();
        }
        Err(Stop::Retry)
    }

    /// Maps the page at `addr` of a file, and its neighbours that are cached.
    fn map_file(&self, v: VmaPtr, file: &AddressSpace, t1: Table, addr: usize) -> Result<(), Stop> {
        let mut bits = v.prot.get();
        // Where writes are noticed, the first one faults (INV-DIRTY-1).
        if v.is_shared() && !file.tracks_writes() {
            bits |= v.write_bits();
        }
        if v.flags().contains(VmFlags::SHMEM) {
            bits |= SHMEM;
        }
        let page = file.find_or_create_page(v.pgoff_of(addr))?;
        self.enter_file(file, t1, addr, page, bits)?;
        let (start, end) = around(v, addr);
        if end - start > PAGE_SIZE {
            let (first, last) = (v.pgoff_of(start), v.pgoff_of(end - PAGE_SIZE));
            file.for_each_cached(first, last, |pgoff, page| {
                let at = start + (((pgoff - first) as usize) << PAGE_SHIFT);
                // A neighbour that is being truncated is no concern of this fault.
                let _ = self.enter_file(file, t1, at, page, bits);
            });
        }
        Ok(())
    }

    /// Enters `page`, whose reference is given away, at `addr` unless something is there.
    #[inline]
    fn enter_file(
        &self,
        file: &AddressSpace,
        t1: Table,
        addr: usize,
        page: PageRef,
        bits: u64,
    ) -> Result<(), Stop> {
        let slot = t1.slot(index(addr, L1_SHIFT));
        let pte = Pte::new(page.phys(), bits);
        interleave("file page found");
        if !slot.load().is_none() || !slot.cas(Pte::NONE, pte) {
            page.put();
            return Ok(());
        }
        self.rss().add(rss_kind(pte), 1);
        // INV-FAULT-2. `page` cannot be freed and reused before this look: if a walker took our
        // entry out, the page has left the cache for good, or is back as it was (a move given up): then the access faults
        // once more, for there is no entry.
        if file.still_cached(page) {
            Ok(())
        } else {
            self.undo(slot, pte, addr)
        }
    }
}

/// Makes `old`, an entry of a shared mapping, writable, and says that its page is written (INV-DIRTY-1). The reference
/// tells reclaim and cleaning that somebody is at it: whoever counts after we let go sees the mark.
#[cold]
fn page_mkwrite(file: &AddressSpace, slot: Slot, old: Pte) -> Result<(), Stop> {
    let page = old.page();
    if planted("nobody says that he writes") {
        file.mark_dirty(page);
        interleave("page held for writing");
        slot.cas(old, old.mkwrite());
        return Ok(());
    }
    if !page.try_get() {
        return Err(Stop::Retry);
    }
    interleave("page held for writing");
    // With the entry still there, the reference is one of the page we mean.
    if slot.load() == old && slot.cas(old, old.mkwrite()) {
        interleave("entry made writable");
        file.mark_dirty(page);
    }
    page.put();
    Ok(())
}

/// `addr` lies below the first area that ends after it.
#[cold]
fn below(v: VmaPtr) -> Stop {
    if v.flags().contains(VmFlags::GROWSDOWN) {
        Stop::Grow
    } else {
        Stop::Error(FaultError::SegvMaperr)
    }
}

/// The part of `v` around `addr` that one fault may enter: aligned, in one L1 table.
#[inline]
fn around(v: VmaPtr, addr: usize) -> (usize, usize) {
    const BYTES: usize = FAULT_AROUND * PAGE_SIZE;
    const _: () = assert!(BYTES.is_power_of_two() && BYTES <= 1 << L2_SHIFT);
    let base = addr & !(BYTES - 1);
    (base.max(v.start()), (base + BYTES).min(v.end()))
}
