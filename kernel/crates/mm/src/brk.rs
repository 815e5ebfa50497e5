//! The heap that brk moves.
//!
//! Problem: the oldest allocator interface, called often by small programs, page by page.
//! Mechanism: the heap is an ordinary private anonymous area; growing is a merge with itself.

use crate::mm::Mm;
use crate::mmap::in_task;
use crate::vma::VmFlags;
use crate::{MmError, page_align};

/// Rights of the heap.
const HEAP: VmFlags = VmFlags::READ
    .union(VmFlags::WRITE)
    .union(VmFlags::MAYREAD)
    .union(VmFlags::MAYWRITE)
    .union(VmFlags::MAYEXEC);

impl Mm {
    /// Says where the heap starts (exec: behind the program's data). Empty at first.
    pub fn set_brk_start(&self, addr: usize) {
        let mut tree = self.mmap_lock().write();
        tree.start_brk = addr;
        tree.brk = addr;
    }

    /// The brk system call: moves the end of the heap to `to` if that is possible, and returns
    /// where it is then. May sleep.
    pub fn brk(&self, to: usize) -> usize {
        let mut tree = self.mmap_lock().write();
        let _ = self.move_brk(&mut tree, to);
        tree.brk
    }

    fn move_brk(&self, tree: &mut crate::tree::MmTree, to: usize) -> Result<(), MmError> {
        if to < tree.start_brk || to - tree.start_brk > tree.data_limit {
            return Err(MmError::NoMemory);
        }
        let old = page_align(tree.brk).ok_or(MmError::NoMemory)?;
        let new = page_align(to).ok_or(MmError::NoMemory)?;
        if new < old {
            self.unmap_locked(tree, new, old)?;
        } else if new > old {
            let next = tree.find(old);
            if !in_task(old, new - old) || next.is_some_and(|n| n.guarded_start() < new) {
                return Err(MmError::NoMemory);
            }
            self.map_at(tree, (old, new), next, HEAP, None)?;
        }
        tree.brk = to;
        Ok(())
    }
}
