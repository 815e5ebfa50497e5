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
        let mut new = match copy(old) {
            Ok(n) => n,
            Err(e) => return (tree, Err(e)),
        };
        // SAFETY: `old` runs over members of this tree, `new` over their counterparts, which are
        // ours; both stand at the same place in their trees throughout.
        let result = unsafe {
            place(old, new, None, Side::Left);
            tree.root = Some(new);
            let mut side = Side::Left;
            loop {
                // Down where there is something on `side`; else the other way; else up.
                if let Some(child) = r(old).get(side) {
                    match copy(child) {
                        Ok(c) => {
                            place(child, c, Some(new), side);
                            (old, new, side) = (child, c, Side::Left);
                            continue;
                        }
                        Err(e) => break Err(e),
                    }
                }
                if side == Side::Left {
                    side = Side::Right;
                    continue;
                }
                match next_right(old, new) {
                    Some(at) => (old, new) = at,
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

/// Up from a finished subtree to the nearest ancestor whose right side is still to be done, in both
/// trees at once.
///
/// # Safety
/// `old` is a member whose tree's lock is held; `new` stands at the same place in the copy.
#[inline(always)]
unsafe fn next_right(
    mut old: NonNull<RbNode>,
    mut new: NonNull<RbNode>,
) -> Option<(NonNull<RbNode>, NonNull<RbNode>)> {
    // SAFETY: parents of members are members, and the copy has all ancestors (parents first).
    unsafe {
        loop {
            let (up, up_new) = (r(old).parent()?, r(new).parent()?);
            if r(up).left() == Some(old) {
                return Some((up, up_new));
            }
            (old, new) = (up, up_new);
        }
    }
}
