//! Moving one page of an address space to another memory node (move_pages).
//!
//! Problem. Other threads and, for files, other processes use the page. Mechanism. A page of a file is moved by its
//! cache, for all who map it ([`rmap::migrate`]). A private page that only this entry refers to is moved under
//! `mmap_lock` held for write: faults wait, the entry is taken out, translations are flushed, the copy is entered. A
//! private page that forks share stays: its other owners cannot be found (areas without a file have no reverse map).
//!
//! Lock order: `mmap_lock`, `page_table_lock` (against truncation, which also takes private copies). `mmap_lock` is not
//! held while a file's page moves: faults that hold it wait for the move.

use crate::TASK_SIZE;
use crate::file::unmap_mapping_range;
use crate::mm::Mm;
use crate::pgtable::{ADDR_MASK, L1_SHIFT, Pte, Slot, find_l1, index};
use crate::zap::Gather;
use ksync::{PAGE_SIZE, arch};
use page_alloc::{Gfp, alloc_pages_node};
use rmap::MoveError;

/// Where a page is, or why it cannot be told.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum PageNode {
    /// On this node.
    On(usize),
    /// Nothing is present there (ENOENT).
    Absent,
    /// Nothing is mapped there, or only the zero page (EFAULT).
    Unmapped,
    /// Somebody else uses it and does not let go (EBUSY).
    Busy,
    /// Other processes share the private page (EACCES).
    Shared,
    /// The node has no memory left (ENOMEM).
    Oom,
}

impl From<MoveError> for PageNode {
    fn from(e: MoveError) -> Self {
        match e {
            MoveError::NotCached => PageNode::Absent,
            MoveError::Busy => PageNode::Busy,
            MoveError::Oom => PageNode::Oom,
        }
    }
}

impl Mm {
    /// Where the page at `addr` is. May sleep.
    pub fn node_of(&self, addr: usize) -> PageNode {
        let tree = self.mmap_lock().read();
        match tree.find_exact(addr) {
            Some(_) => self
                .page_at(addr)
                .map_or_else(|e| e, |(_, pte)| PageNode::On(pte.page().node())),
            None => PageNode::Unmapped,
        }
    }

    /// Moves the page at `addr` to `node`; says where it then is. May sleep.
    pub fn move_page(&self, addr: usize, node: usize) -> PageNode {
        let addr = addr & !(PAGE_SIZE - 1);
        let source = {
            let tree = self.mmap_lock().read();
            let Some(v) = tree.find_exact(addr) else {
                return PageNode::Unmapped;
            };
            match (self.page_at(addr), &v.file) {
                (Err(why), _) => return why,
                (Ok((_, pte)), Some(file)) if !pte.is_anon() => {
                    Some((file.clone(), v.pgoff_of(addr)))
                }
                _ => None,
            }
        };
        let Some((file, pgoff)) = source else {
            return self.move_private(addr, node);
        };
        let unmap = || unmap_mapping_range(&file, pgoff, pgoff, false);
        match file.migrate_page(pgoff, node, unmap) {
            Ok(()) => PageNode::On(node),
            Err(e) => e.into(),
        }
    }

    /// The entry at `addr`, of a page that can be moved. `mmap_lock` is held.
    fn page_at(&self, addr: usize) -> Result<(Slot, Pte), PageNode> {
        if addr >= TASK_SIZE {
            return Err(PageNode::Unmapped);
        }
        let t1 = find_l1(self.pgd(), addr).ok_or(PageNode::Absent)?;
        let slot = t1.slot(index(addr, L1_SHIFT));
        match slot.load() {
            pte if pte.is_none() => Err(PageNode::Absent),
            pte if pte.is_special() => Err(PageNode::Unmapped),
            pte => Ok((slot, pte)),
        }
    }

    fn move_private(&self, addr: usize, node: usize) -> PageNode {
        // Excludes faults and forks of this address space.
        let tree = self.mmap_lock().write();
        if tree.find_exact(addr).is_none() {
            return PageNode::Unmapped;
        }
        let (slot, pte) = match self.page_at(addr) {
            Ok(found) => found,
            Err(why) => return why,
        };
        let old = pte.page();
        if old.node() == node {
            return PageNode::On(node);
        }
        if !pte.is_anon() || old.ref_count() != 1 {
            return if pte.is_anon() {
                PageNode::Shared
            } else {
                PageNode::Busy
            };
        }
        let Ok(new) = alloc_pages_node(node, 0, Gfp::THISNODE) else {
            return PageNode::Oom;
        };
        let mut gather = Gather::new(self);
        // Against a truncation that takes private copies too: it comes before or after us.
        let held = self.page_table_lock().lock();
        let pte = slot.swap(Pte::NONE);
        if pte.is_none() || pte.page() != old {
            debug_assert!(pte.is_none(), "mmap_lock is held for write");
            drop(held);
            new.put();
            return PageNode::Absent;
        }
        gather.cover(addr, PAGE_SIZE);
        gather.flush();
        // SAFETY: the new page is ours; the old one has one reference, that of the entry just taken out, and no CPU
        // translates to it any more.
        unsafe { arch::copy_page(new.virt(), old.virt()) };
        slot.store(Pte::new(new.phys(), pte.0 & !ADDR_MASK));
        drop(held);
        old.put();
        PageNode::On(node)
    }
}
