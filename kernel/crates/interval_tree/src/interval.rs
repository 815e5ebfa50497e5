//! An augmented interval tree: closed intervals [start, last] of u64, ordered by start.
//!
//! Problem: truncating or migrating a page of a file must find all mappings that show it, among
//! thousands, while fork and exit add and remove mappings all the time.
//!
//! Mechanism: a red-black tree by start; each node carries the greatest `last` of its subtree.
//! A subtree whose greatest `last` lies before the query is never entered, and neither is anything
//! right of a start beyond it: O(log n + answers). Equal starts go right, so they are visited in
//! the order of insertion; `insert_after` puts a node directly behind a given one of equal start.
//!
//! Invariants
//! - INV-ITREE-1 (order): a walk sees non-decreasing starts.
//! - INV-ITREE-2 (summary): `subtree_last` is the greatest `last` in the node's subtree.
//! - INV-ITREE-3 (frozen key): `start` does not change while linked, `last` only by `set_last`.

use crate::rbtree::{Augment, RbNode, RbTree, ancestor_after};
use core::cell::Cell;
use core::ptr::NonNull;

/// One member's links and interval. Embed it; 48 bytes, links first.
#[repr(C)]
pub struct IntervalNode {
    rb: RbNode,
    start: Cell<u64>,
    last: Cell<u64>,
    subtree_last: Cell<u64>,
}

// SAFETY: the cells are written only while unlinked and exclusively owned, or under the tree's
// lock held for writing (INV-RBT-2, INV-ITREE-3).
unsafe impl Send for IntervalNode {}
// SAFETY: as above.
unsafe impl Sync for IntervalNode {}

impl IntervalNode {
    /// An unlinked node for [start, last].
    pub const fn new(start: u64, last: u64) -> Self {
        debug_assert!(start <= last);
        IntervalNode {
            rb: RbNode::new(),
            start: Cell::new(start),
            last: Cell::new(last),
            subtree_last: Cell::new(last),
        }
    }

    /// The first value of the interval. Context: the tree's lock held, or exclusive access.
    #[inline(always)]
    pub fn start(&self) -> u64 {
        self.start.get()
    }

    /// The last value of the interval (inclusive).
    #[inline(always)]
    pub fn last(&self) -> u64 {
        self.last.get()
    }

    /// Whether the node is in a tree. Context: the tree's lock held, or exclusive access.
    #[inline]
    pub fn is_linked(&self) -> bool {
        self.rb.is_linked()
    }

    /// Gives an unlinked node another interval.
    ///
    /// # Safety
    /// The node is unlinked, and no other thread reads it or links it meanwhile.
    #[inline]
    pub unsafe fn set_range(&self, start: u64, last: u64) {
        debug_assert!(!self.is_linked(), "INV-ITREE-3");
        debug_assert!(start <= last);
        self.start.set(start);
        self.last.set(last);
    }
}

/// Keeps `subtree_last`.
struct SubtreeLast;

// SAFETY: reads nodes and children, writes only `subtree_last`.
unsafe impl Augment for SubtreeLast {
    #[inline(always)]
    unsafe fn update(node: NonNull<RbNode>) -> bool {
        // SAFETY: every member of an `IntervalTree` is the `rb` of an `IntervalNode` (first field
        // of a repr(C) struct), kept alive by INV-RBT-1.
        unsafe {
            let n = of(node);
            let mut max = n.last.get();
            if let Some(c) = n.rb.left() {
                max = max.max(of(c).subtree_last.get());
            }
            if let Some(c) = n.rb.right() {
                max = max.max(of(c).subtree_last.get());
            }
            n.subtree_last.replace(max) != max
        }
    }

    #[inline(always)]
    unsafe fn copy(from: NonNull<RbNode>, to: NonNull<RbNode>) {
        // SAFETY: as in `update`.
        unsafe { of(to).subtree_last.set(of(from).subtree_last.get()) };
    }
}

/// The interval node around a link.
///
/// # Safety
/// `n` is the `rb` field of a live `IntervalNode`, and was made from a pointer to it.
#[inline(always)]
unsafe fn of<'a>(n: NonNull<RbNode>) -> &'a IntervalNode {
    // SAFETY: `rb` is the first field of a repr(C) struct.
    unsafe { n.cast::<IntervalNode>().as_ref() }
}

/// A set of intervals.
///
/// # Invariants
/// INV-RBT-1..4 and INV-ITREE-1..3. Every member is an [`IntervalNode`].
pub struct IntervalTree {
    tree: RbTree,
}

impl IntervalTree {
    /// An empty tree.
    pub const fn new() -> Self {
        IntervalTree {
            tree: RbTree::new(),
        }
    }

    /// Whether there are no intervals.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// The first interval in order, O(1).
    #[inline]
    pub fn first(&self) -> Option<NonNull<IntervalNode>> {
        self.tree.first().map(NonNull::cast)
    }

    /// The interval after `node` in order.
    ///
    /// # Safety
    /// `node` is linked in a tree whose lock is held.
    #[inline]
    pub unsafe fn next(node: NonNull<IntervalNode>) -> Option<NonNull<IntervalNode>> {
        // SAFETY: the caller's promise.
        unsafe { RbTree::next(node.cast()) }.map(NonNull::cast)
    }

    /// Adds `node`, behind all with an equal start. O(log n).
    ///
    /// # Safety
    /// `node` is unlinked, made from a pointer to the whole embedding struct, and stays valid and
    /// in place until removed (INV-RBT-1); its range does not change meanwhile (INV-ITREE-3).
    pub unsafe fn insert(&mut self, node: NonNull<IntervalNode>) {
        // SAFETY: `node` is valid by contract; `p` is a member.
        unsafe {
            let start = node.as_ref().start();
            let pos = self.tree.insert_pos(|p| of(p).start() <= start);
            self.tree.insert_at::<SubtreeLast>(node.cast(), pos);
        }
    }

    /// Adds `node` directly behind `prev`, whose start it shares. O(log n), no search.
    ///
    /// # Safety
    /// As for [`IntervalTree::insert`]; `prev` is a member of this tree.
    pub unsafe fn insert_after(
        &mut self,
        prev: NonNull<IntervalNode>,
        node: NonNull<IntervalNode>,
    ) {
        // SAFETY: `prev` is a member, `node` valid, by contract.
        unsafe {
            debug_assert_eq!(prev.as_ref().start(), node.as_ref().start(), "INV-ITREE-1");
            self.tree
                .insert_after::<SubtreeLast>(prev.cast(), node.cast());
        }
    }

    /// Removes `node`. O(log n), no search.
    ///
    /// # Safety
    /// `node` is a member of this tree.
    pub unsafe fn remove(&mut self, node: NonNull<IntervalNode>) {
        // SAFETY: the caller's promise.
        unsafe { self.tree.erase::<SubtreeLast>(node.cast()) };
    }

    /// Gives a member another end. It keeps its place. O(log n), usually less.
    ///
    /// # Safety
    /// `node` is a member of this tree.
    pub unsafe fn set_last(&mut self, node: NonNull<IntervalNode>, last: u64) {
        // SAFETY: a member; `&mut self` is the exclusive hold (INV-RBT-2).
        unsafe {
            debug_assert!(node.as_ref().start() <= last);
            node.as_ref().last.set(last);
            self.tree.update_path::<SubtreeLast>(node.cast());
        }
    }

    /// The first interval in order that overlaps [start, last].
    #[inline]
    pub fn iter_first(&self, start: u64, last: u64) -> Option<NonNull<IntervalNode>> {
        let (root, first) = (self.tree.root()?, self.tree.first()?);
        // SAFETY: both are members (INV-RBT-1); `&self` allows reading (INV-RBT-2).
        unsafe {
            if of(root).subtree_last.get() < start || of(first).start() > last {
                return None;
            }
            subtree_search(root, start, last)
        }
    }

    /// The next interval in order after `node` that overlaps [start, last].
    ///
    /// # Safety
    /// `node` is linked in a tree whose lock is held.
    pub unsafe fn iter_next(
        node: NonNull<IntervalNode>,
        start: u64,
        last: u64,
    ) -> Option<NonNull<IntervalNode>> {
        let mut at: NonNull<RbNode> = node.cast();
        // SAFETY: `node` is a member, and so is all that is reached from it.
        unsafe {
            loop {
                if let Some(right) = of(at).rb.right()
                    && of(right).subtree_last.get() >= start
                {
                    return subtree_search(right, start, last);
                }
                // Up to the first ancestor of which we are on the left.
                at = ancestor_after(at)?;
                if of(at).start() > last {
                    return None;
                }
                if of(at).last() >= start {
                    return Some(at.cast());
                }
            }
        }
    }

    /// All intervals that overlap [start, last], in order.
    #[inline]
    pub fn overlaps(&self, start: u64, last: u64) -> Overlaps<'_> {
        Overlaps {
            next: self.iter_first(start, last),
            start,
            last,
            _tree: self,
        }
    }

    /// Checks INV-RBT-3..4 and INV-ITREE-1..2; panics on a violation. Returns the number of
    /// intervals. O(n), for tests.
    pub fn check_invariants(&self) -> usize {
        fn walk(link: Option<NonNull<RbNode>>, prev_start: &mut u64) -> u64 {
            let Some(n) = link else { return 0 };
            // SAFETY: a member, see INV-RBT-1.
            let n = unsafe { of(n) };
            assert!(n.start() <= n.last());
            let left = walk(n.rb.left(), prev_start);
            assert!(*prev_start <= n.start(), "INV-ITREE-1");
            *prev_start = n.start();
            let max = left.max(walk(n.rb.right(), prev_start)).max(n.last());
            assert_eq!(n.subtree_last.get(), max, "INV-ITREE-2");
            max
        }
        walk(self.tree.root(), &mut 0);
        self.tree.check_invariants()
    }
}

impl Default for IntervalTree {
    fn default() -> Self {
        Self::new()
    }
}

/// The first node in order of the subtree at `at` that overlaps [start, last].
///
/// # Safety
/// `at` is linked in a tree whose lock is held, and its `subtree_last` is at least `start`.
unsafe fn subtree_search(
    mut at: NonNull<RbNode>,
    start: u64,
    last: u64,
) -> Option<NonNull<IntervalNode>> {
    // SAFETY: children of members are members.
    unsafe {
        loop {
            let n = of(at);
            debug_assert!(n.subtree_last.get() >= start);
            if let Some(left) = n.rb.left()
                && of(left).subtree_last.get() >= start
            {
                // Something on the left ends late enough. If its start is beyond `last`, then so
                // are all starts to the right, and there is no answer at all.
                at = left;
                continue;
            }
            if n.start() > last {
                return None;
            }
            if n.last() >= start {
                return Some(at.cast());
            }
            match n.rb.right() {
                Some(right) if of(right).subtree_last.get() >= start => at = right,
                _ => return None,
            }
        }
    }
}

/// Iterator of [`IntervalTree::overlaps`].
pub struct Overlaps<'a> {
    next: Option<NonNull<IntervalNode>>,
    start: u64,
    last: u64,
    _tree: &'a IntervalTree,
}

impl Iterator for Overlaps<'_> {
    type Item = NonNull<IntervalNode>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let n = self.next?;
        // SAFETY: `n` is a member: the tree is borrowed, so it has not changed since.
        self.next = unsafe { IntervalTree::iter_next(n, self.start, self.last) };
        Some(n)
    }
}

#[cfg(test)]
impl IntervalNode {
    /// Plants a bug for the test of the checks.
    pub(crate) fn break_summary(&self) {
        self.subtree_last.set(u64::MAX);
    }
}
