//! Reading and writing an address space from outside.
//!
//! Problem: exec builds the new program's stack before anything runs on it; /proc and futexes look
//! at memory of others. Mechanism: page by page, resolve the fault as the owner would have, hold
//! the page, copy through the direct map, all with `mmap_lock` held for read (so no fork can make
//! the page shared between the look and the write).

use crate::fault::{FaultFlags, Stop};
use crate::mm::Mm;
use crate::pgtable::{L1_SHIFT, find_l1, index};
use crate::tree::MmTree;
use crate::{FaultError, MmError, TASK_SIZE};
use ksync::{PAGE_SHIFT, PAGE_SIZE};
use page_alloc::PageRef;
use slab::KArc;

impl From<FaultError> for MmError {
    fn from(e: FaultError) -> Self {
        match e {
            FaultError::Oom => MmError::NoMemory,
            _ => MmError::Fault,
        }
    }
}

impl Mm {
    /// Copies from user address `addr` to `to`. May sleep. On an error some bytes may have been
    /// copied. Errors: Fault, NoMemory.
    pub fn read_remote(&self, addr: usize, to: &mut [u8]) -> Result<(), MmError> {
        let mut done = 0;
        self.each_page(addr, to.len(), FaultFlags::empty(), |page, offset, n| {
            // SAFETY: the page is held; offset + n <= PAGE_SIZE. Its user may write it meanwhile,
            // as with any reader of user memory.
            unsafe {
                core::ptr::copy_nonoverlapping(
                    page.virt().add(offset),
                    to[done..].as_mut_ptr(),
                    n.min(to.len() - done),
                );
            }
            done += n;
        })
    }

    /// Copies `from` to user address `addr`. May sleep. On an error some bytes may have been
    /// copied. Errors: Fault (read-only areas too), NoMemory.
    pub fn write_remote(&self, addr: usize, from: &[u8]) -> Result<(), MmError> {
        let mut done = 0;
        self.each_page(addr, from.len(), FaultFlags::WRITE, |page, offset, n| {
            // SAFETY: as in `read_remote`; the entry was writable when it was looked up.
            unsafe {
                core::ptr::copy_nonoverlapping(
                    from[done..].as_ptr(),
                    page.virt().add(offset),
                    n.min(from.len() - done),
                );
            }
            done += n;
        })
    }

    /// Names the byte at `addr` for futexes between address spaces: what backs a shared mapping
    /// (its address, as an identity only) and the offset in it, in bytes. None: private memory, or
    /// nothing mapped. May sleep.
    pub fn shared_object_at(&self, addr: usize) -> Option<(usize, usize)> {
        let tree = self.mmap_lock().read();
        let v = tree.find_exact(addr).filter(|v| v.is_shared())?;
        let object = KArc::as_ptr(v.file.as_ref()?).addr();
        Some((
            object,
            ((v.pgoff_of(addr) as usize) << PAGE_SHIFT) + addr % PAGE_SIZE,
        ))
    }

    /// Calls `f(page, offset, bytes)` for each page of the range, held and faulted in.
    fn each_page(
        &self,
        addr: usize,
        len: usize,
        flags: FaultFlags,
        mut f: impl FnMut(PageRef, usize, usize),
    ) -> Result<(), MmError> {
        let end = addr
            .checked_add(len)
            .filter(|&e| e <= TASK_SIZE)
            .ok_or(MmError::Fault)?;
        let mut at = addr;
        while at < end {
            let base = at & !(PAGE_SIZE - 1);
            let n = (base + PAGE_SIZE).min(end) - at;
            let tree = self.mmap_lock().read();
            match self.hold_page(&tree, base, flags) {
                Ok(page) => {
                    f(page, at - base, n);
                    page.put();
                    at += n;
                }
                Err(stop) => {
                    drop(tree);
                    self.after_stop(stop, base)?;
                }
            }
        }
        Ok(())
    }

    /// The page at `addr` with a reference, present and (for WRITE) writable.
    fn hold_page(&self, tree: &MmTree, addr: usize, flags: FaultFlags) -> Result<PageRef, Stop> {
        self.fault_locked(tree, addr, flags)?;
        let slot = find_l1(self.pgd(), addr)
            .ok_or(Stop::Retry)?
            .slot(index(addr, L1_SHIFT));
        let pte = slot.load();
        let fine = pte.is_present() && (pte.is_writable() || !flags.contains(FaultFlags::WRITE));
        if !fine || !pte.page().try_get() {
            return Err(Stop::Retry);
        }
        // The entry still names the page, so it is that page's reference we took.
        if slot.load() != pte {
            pte.page().put();
            return Err(Stop::Retry);
        }
        Ok(pte.page())
    }
}
