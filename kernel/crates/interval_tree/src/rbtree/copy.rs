//! Copies: a second tree of the same shape.
//!
//! Problem: fork copies an address space of thousands of areas; linking each copy by insertion
//! would search (or not), summarise and rebalance for each what the original tree knows already.
//!
//! Mechanism: walk both trees at once, depth first, parents before children. Each node's copy gets
//! the links and the colour that its original has, so nothing is compared and nothing rotates. No
//! stack: both trees have parent links.
//!
//! Invariants: the copy has INV-RBT-3 and INV-RBT-4 because the original has them.

use super::{BLACK, Link, RbNode, RbTree, Side, outermost, r};
use core::ptr::NonNull;

/// Gives `copy` the place under `parent` (as its child on `side`) and the colour of `old`.
///
/// # Safety
/// `old` is a member whose tree's lock is held; `copy` and `parent` are exclusively owned.
#[inline(always)]
unsafe fn place(old: NonNull<RbNode>, copy: NonNull<RbNode>, parent: Link, side: Side) {
    // SAFETY: the caller's promise.
    unsafe {
        let n = r(copy);
        debug_assert!(!n.is_linked(), "the copy is in a tree");
        n.set_parent_color(parent, r(old).parent.get().addr() & BLACK);
        n.set(Side::Left, None);
        n.set(Side::Right, None);
        if let Some(p) = parent {
            r(p).set(side, Some(copy));
        }
    }
}

impl RbTree {
    /// Makes a tree of the same shape: `copy(node)` returns the counterpart of each node, parents
    /// first. The counterparts' summaries must be those of the originals; the caller sees to that.
    /// O(n), about a dozen instructions per node beyond `copy`.
    ///
    /// If `copy` fails, the tree holds the counterparts made so far, in order, but unbalanced:
    /// good for walking it and taking it apart (without `erase`), for nothing else.
    ///
    /// # Safety
    /// `copy` returns unlinked nodes that satisfy the contract of [`RbTree::insert_at`] for the new
    /// tree, and does not change this one.
    pub unsafe fn copy_shape<E>(
        &self,
        mut copy: impl FnMut(NonNull<RbNode>) -> Result<NonNull<RbNode>, E>,
    ) -> (RbTree, Result<(), E>) {
        let mut tree = RbTree::new();
        let Some(mut old) = self.root else {
            return (tree, Ok(()));
        };
        // Where the copy of `old` goes.
        let (mut parent, mut side) = (None, Side::Left);
        let result = loop {
            // One call in the loop, so that it can be inlined.
            let new = match copy(old) {
                Ok(new) => new,
                Err(e) => break Err(e),
            };
            // SAFETY: `old` runs over members of this tree, `new` is its counterpart, which is ours,
            // and so is `parent`; old and new stand at the same place in their trees.
            unsafe {
                place(old, new, parent, side);
                if parent.is_none() {
                    tree.root = Some(new);
                }
                match next_to_copy(old, new) {
                    Some((at, under, on)) => (old, parent, side) = (at, Some(under), on),
                    None => break Ok(()),
                }
            }
        };
        // SAFETY: members of the new tree.
        unsafe {
            tree.first = tree.root.map(|n| outermost(n, Side::Left));
            tree.last = tree.root.map(|n| outermost(n, Side::Right));
        }
        (tree, result)
    }
}

/// The next node in depth-first order after `old`, and where its copy goes: under whom, on which
/// side.
///
/// # Safety
/// `old` is a member whose tree's lock is held; `new` stands at the same place in the copy, which
/// has all nodes before `old` in depth-first order.
#[inline(always)]
unsafe fn next_to_copy(
    mut old: NonNull<RbNode>,
    mut new: NonNull<RbNode>,
) -> Option<(NonNull<RbNode>, NonNull<RbNode>, Side)> {
    // SAFETY: children and parents of members are members; the copy has all ancestors.
    unsafe {
        if let Some(left) = r(old).left() {
            return Some((left, new, Side::Left));
        }
        loop {
            if let Some(right) = r(old).right() {
                return Some((right, new, Side::Right));
            }
            // Up, past all whose right side is done.
            loop {
                let (up, up_new) = (r(old).parent()?, r(new).parent()?);
                let from_left = r(up).left() == Some(old);
                (old, new) = (up, up_new);
                if from_left {
                    break;
                }
            }
        }
    }
}
