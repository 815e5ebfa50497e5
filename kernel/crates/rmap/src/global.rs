//! `i_mmap=global`: one tree, one reader-writer semaphore. Linux to 7.3, and the base line here.
//!
//! Problem: the contract, in the simplest way. Mechanism: mutators hold the lock for writing, walkers for reading.
//!
//! Fork (INV-RMAP-4), by order: the child is linked behind its parent in the one tree, and later insertions keep the
//! order of those that are there. The lock is not held over the copy.
//!
//! Lock order: `i_mmap_rwsem`, and what `visit` takes.
//!
//! Invariants: none of its own; the lock guards the tree by its type.

use crate::contract::{Adjust, FileRmap, MapNode, NodePtr};
use crate::tree::{Tree, apply};
use core::ptr::NonNull;
use ksync::{RwSem, lock_class};
use slab::AllocError;

/// One tree under one lock.
pub struct Global {
    tree: RwSem<Tree>,
}

impl FileRmap for Global {
    const NAME: &'static str = "global";

    fn new() -> Result<Self, AllocError> {
        Ok(Global {
            tree: RwSem::new(Tree::new(), lock_class!("i_mmap_rwsem")),
        })
    }

    unsafe fn insert(&self, node: NodePtr) {
        // SAFETY: the caller's promise.
        unsafe { self.tree.write().link(node, 0) };
    }

    unsafe fn fork<R>(&self, parent: NodePtr, child: NodePtr, copy: impl FnOnce() -> R) -> R {
        // SAFETY: the caller's promise. INVARIANT: INV-RMAP-4 by order.
        unsafe { self.tree.write().link_after(parent, child, 0) };
        copy()
    }

    unsafe fn insert_copies(&self, pairs: &[(NodePtr, NodePtr)]) {
        let mut tree = self.tree.write();
        for &(parent, child) in pairs {
            // SAFETY: the caller's promise.
            unsafe { tree.link_after(parent, child, 0) };
        }
    }

    unsafe fn remove(&self, nodes: &[NodePtr]) {
        let mut tree = self.tree.write();
        for node in nodes {
            // SAFETY: linked here, by the caller's promise.
            unsafe { tree.unlink(*node) };
        }
    }

    unsafe fn adjust(&self, adjust: Adjust<'_>, meanwhile: impl FnOnce()) {
        let mut tree = self.tree.write();
        let tree = NonNull::from(&mut *tree);
        // SAFETY: the caller's promises; the tree is held for writing.
        unsafe { apply(&adjust, meanwhile, 0, |_| tree) };
    }

    fn for_each_overlap(&self, first: u64, last: u64, mut visit: impl FnMut(&MapNode)) {
        self.tree.read().visit(first, last, &mut visit);
    }

    fn is_empty(&self) -> bool {
        self.tree.read().is_empty()
    }

    fn check_invariants(&self) -> usize {
        self.tree.read().check(0)
    }
}
