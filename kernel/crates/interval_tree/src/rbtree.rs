//! A raw intrusive red-black tree.
//!
//! Problem: ordered sets of objects that already exist, without memory for the set itself, with
//! first, last, next and append in (amortised) constant time, and with a value per subtree for
//! those who need one, at no cost for those who do not.
//!
//! Mechanism: textbook red-black balancing. The two children are an array, so that each case is
//! written once for both sides. The colour is bit 0 of the parent word; bit 1 marks a node that is
//! in no tree. The tree caches both ends: `push_back` links to the right of the last node without
//! a search, which makes copying a sorted set O(n).
//!
//! ```text
//!   RbTree { root, first, last }        RbNode (24 bytes)
//!              |                        +----------------------------+
//!              v                        | parent | unlinked | black  |
//!            node                       | child[LEFT]                |
//!           /    \                      | child[RIGHT]               |
//!        ...      ...                   +----------------------------+
//! ```
//!
//! Invariants
//! - INV-RBT-1 (nodes outlive membership): a linked node stays at its address, valid for reads and
//!   writes through the pointer it was inserted with, until it is erased.
//! - INV-RBT-2 (one lock): links are read and written only by a thread that holds the tree's owner
//!   lock: shared for reading (`&RbTree`), exclusive for changes (`&mut RbTree`).
//! - INV-RBT-3 (balance): the root is black, a red node has black children, every path to a null
//!   child has the same number of black nodes.
//! - INV-RBT-4 (ends): `first` and `last` are the leftmost and rightmost nodes.

mod balance;
mod copy;

use core::cell::Cell;
use core::cmp::Ordering;
use core::marker::PhantomPinned;
use core::ptr::{self, NonNull};

/// Which child of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Side {
    /// Before the node in order.
    Left = 0,
    /// After the node in order.
    Right = 1,
}

impl Side {
    #[inline(always)]
    fn other(self) -> Side {
        match self {
            Side::Left => Side::Right,
            Side::Right => Side::Left,
        }
    }
}

/// Bit of the parent word: the node is black.
const BLACK: usize = 1;
/// Bit of the parent word: the node is in no tree.
const UNLINKED: usize = 2;
const TAGS: usize = BLACK | UNLINKED;

const _: () = assert!(core::mem::size_of::<RbNode>() == 24);
const _: () = assert!(core::mem::align_of::<RbNode>() > TAGS);

type Link = Option<NonNull<RbNode>>;

/// The links of one member. Embed it in the member's struct; find the member again with
/// `container_of` arithmetic from the pointer that was inserted (which therefore must have been
/// made from a pointer to the whole member).
#[repr(C)]
pub struct RbNode {
    parent: Cell<*mut RbNode>,
    child: [Cell<Link>; 2],
    _pin: PhantomPinned,
}

// SAFETY: a node's cells are touched only under the owner lock of its tree (INV-RBT-2), or by
// whoever has exclusive access to an unlinked node; a node has no tie to a thread.
unsafe impl Send for RbNode {}
// SAFETY: as above; the only safe method, `is_linked`, documents the same lock.
unsafe impl Sync for RbNode {}

impl RbNode {
    /// A node in no tree.
    pub const fn new() -> Self {
        RbNode {
            parent: Cell::new(ptr::without_provenance_mut(UNLINKED)),
            child: [Cell::new(None), Cell::new(None)],
            _pin: PhantomPinned,
        }
    }

    /// Whether the node is in a tree. Context: the tree's lock held, or exclusive access.
    #[inline]
    pub fn is_linked(&self) -> bool {
        self.parent.get().addr() & UNLINKED == 0
    }

    #[inline(always)]
    fn parent(&self) -> Link {
        NonNull::new(self.parent.get().map_addr(|a| a & !TAGS))
    }

    #[inline(always)]
    fn is_black(&self) -> bool {
        self.parent.get().addr() & BLACK != 0
    }

    #[inline(always)]
    fn set_parent(&self, parent: Link) {
        let color = self.parent.get().addr() & BLACK;
        self.set_parent_color(parent, color);
    }

    #[inline(always)]
    fn set_parent_color(&self, parent: Link, color: usize) {
        let p = parent.map_or(ptr::null_mut(), NonNull::as_ptr);
        self.parent.set(p.map_addr(|a| a | color));
    }

    #[inline(always)]
    fn set_black(&self) {
        self.parent.set(self.parent.get().map_addr(|a| a | BLACK));
    }

    #[inline(always)]
    fn set_red(&self) {
        self.parent.set(self.parent.get().map_addr(|a| a & !BLACK));
    }

    #[inline(always)]
    fn get(&self, side: Side) -> Link {
        self.child[side as usize].get()
    }

    #[inline(always)]
    fn set(&self, side: Side, link: Link) {
        self.child[side as usize].set(link);
    }

    /// The left child. Context: the tree's lock held.
    #[inline(always)]
    pub fn left(&self) -> Option<NonNull<RbNode>> {
        self.get(Side::Left)
    }

    /// The right child. Context: the tree's lock held.
    #[inline(always)]
    pub fn right(&self) -> Option<NonNull<RbNode>> {
        self.get(Side::Right)
    }
}

impl Default for RbNode {
    fn default() -> Self {
        Self::new()
    }
}

/// A value per node that summarises its subtree, kept right through every change of shape.
///
/// # Safety
/// Implementations may read the node, its children and the owner structs around them, and write
/// only their own summary field (through a cell). They must not touch links.
pub unsafe trait Augment {
    /// Computes the node's summary anew from itself and its children. Returns whether it changed.
    ///
    /// # Safety
    /// `node` is linked in a tree whose members all are of the kind this augmentation expects, and
    /// the tree's lock is held for writing.
    unsafe fn update(node: NonNull<RbNode>) -> bool;

    /// Gives `to` the summary of `from`: `to` now stands where `from` stood.
    ///
    /// # Safety
    /// As for [`Augment::update`], for both nodes.
    unsafe fn copy(from: NonNull<RbNode>, to: NonNull<RbNode>);
}

/// No summary. All calls compile to nothing.
pub struct NoAugment;

// SAFETY: does nothing at all.
unsafe impl Augment for NoAugment {
    #[inline(always)]
    unsafe fn update(_: NonNull<RbNode>) -> bool {
        false
    }
    #[inline(always)]
    unsafe fn copy(_: NonNull<RbNode>, _: NonNull<RbNode>) {}
}

/// A place where a node can be linked: as the root, or as the empty child of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InsertPos {
    parent: Link,
    side: Side,
}

/// A red-black tree: the root and the two ends. Members are linked through [`RbNode`]s.
///
/// # Invariants
/// INV-RBT-1..4, see the module.
pub struct RbTree {
    root: Link,
    first: Link,
    last: Link,
}

// SAFETY: a tree is only three pointers; INV-RBT-1 and INV-RBT-2 keep their targets valid and
// their accesses ordered whichever thread holds the lock.
unsafe impl Send for RbTree {}
// SAFETY: as above: `&RbTree` only reads, under the lock held shared.
unsafe impl Sync for RbTree {}

/// Shared view of a node that INV-RBT-1 keeps alive.
///
/// # Safety
/// `n` is linked in a tree whose lock is held (INV-RBT-1, INV-RBT-2), or exclusively owned.
#[inline(always)]
unsafe fn r<'a>(n: NonNull<RbNode>) -> &'a RbNode {
    // SAFETY: valid by INV-RBT-1; all fields are cells, so a shared view suffices to write.
    unsafe { n.as_ref() }
}

/// Whether a link is a red node (null children count as black).
///
/// # Safety
/// As for [`r`].
#[inline(always)]
unsafe fn is_red(n: Link) -> bool {
    match n {
        // SAFETY: passed on.
        Some(n) => unsafe { !r(n).is_black() },
        None => false,
    }
}

/// The outermost node of a subtree on one side.
///
/// # Safety
/// As for [`r`].
#[inline]
unsafe fn outermost(mut n: NonNull<RbNode>, side: Side) -> NonNull<RbNode> {
    // SAFETY: children of linked nodes are linked nodes.
    while let Some(c) = unsafe { r(n).get(side) } {
        n = c;
    }
    n
}

/// The neighbour of a node in order.
///
/// # Safety
/// As for [`r`].
#[inline]
unsafe fn neighbour(mut n: NonNull<RbNode>, side: Side) -> Link {
    // SAFETY: children and parents of linked nodes are linked nodes.
    unsafe {
        if let Some(c) = r(n).get(side) {
            return Some(outermost(c, side.other()));
        }
        while let Some(p) = r(n).parent() {
            if r(p).get(side) != Some(n) {
                return Some(p);
            }
            n = p;
        }
        None
    }
}

/// The nearest ancestor that comes after `n` in order.
///
/// # Safety
/// `n` is linked in a tree whose lock is held.
#[inline]
pub(crate) unsafe fn ancestor_after(mut n: NonNull<RbNode>) -> Link {
    // SAFETY: parents of linked nodes are linked nodes.
    unsafe {
        while let Some(p) = r(n).parent() {
            if r(p).right() != Some(n) {
                return Some(p);
            }
            n = p;
        }
        None
    }
}

impl RbTree {
    /// An empty tree.
    pub const fn new() -> Self {
        RbTree {
            root: None,
            first: None,
            last: None,
        }
    }

    /// Whether the tree has no members.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// The top node, for hand-written descents (with [`RbNode::left`] and [`RbNode::right`]).
    #[inline]
    pub fn root(&self) -> Option<NonNull<RbNode>> {
        self.root
    }

    /// The first node in order, O(1).
    #[inline]
    pub fn first(&self) -> Option<NonNull<RbNode>> {
        self.first
    }

    /// The last node in order, O(1).
    #[inline]
    pub fn last(&self) -> Option<NonNull<RbNode>> {
        self.last
    }

    /// The node after `node` in order, amortised O(1) over a walk.
    ///
    /// # Safety
    /// `node` is linked in a tree whose lock is held.
    #[inline]
    pub unsafe fn next(node: NonNull<RbNode>) -> Option<NonNull<RbNode>> {
        // SAFETY: the caller's promise.
        unsafe { neighbour(node, Side::Right) }
    }

    /// The node before `node` in order.
    ///
    /// # Safety
    /// `node` is linked in a tree whose lock is held.
    #[inline]
    pub unsafe fn prev(node: NonNull<RbNode>) -> Option<NonNull<RbNode>> {
        // SAFETY: the caller's promise.
        unsafe { neighbour(node, Side::Left) }
    }

    /// Searches by `cmp(node)`, the ordering of the *sought key relative to the node*: `Less` goes
    /// left. Returns a node that compares `Equal`, or the place to link such a node.
    #[inline]
    pub fn search(
        &self,
        mut cmp: impl FnMut(NonNull<RbNode>) -> Ordering,
    ) -> Result<NonNull<RbNode>, InsertPos> {
        let mut pos = InsertPos {
            parent: None,
            side: Side::Left,
        };
        let mut link = self.root;
        while let Some(n) = link {
            pos.parent = Some(n);
            pos.side = match cmp(n) {
                Ordering::Equal => return Ok(n),
                Ordering::Less => Side::Left,
                Ordering::Greater => Side::Right,
            };
            // SAFETY: reached from the root of this tree, which `&self` lets us read (INV-RBT-2).
            link = unsafe { r(n).get(pos.side) };
        }
        Err(pos)
    }

    /// The first node in order for which `before` is false, with `before` true for a prefix of the
    /// order: `lower_bound(|v| v.end <= addr)` is Linux's `find_vma`.
    #[inline]
    pub fn lower_bound(
        &self,
        mut before: impl FnMut(NonNull<RbNode>) -> bool,
    ) -> Option<NonNull<RbNode>> {
        let mut best = None;
        let mut link = self.root;
        while let Some(n) = link {
            // SAFETY: reached from the root of this tree (INV-RBT-2).
            link = unsafe {
                if before(n) {
                    r(n).right()
                } else {
                    best = Some(n);
                    r(n).left()
                }
            };
        }
        best
    }

    /// The place after every node for which `before` is true: equal keys go right (FIFO).
    #[inline]
    pub fn insert_pos(&self, mut before: impl FnMut(NonNull<RbNode>) -> bool) -> InsertPos {
        let mut pos = InsertPos {
            parent: None,
            side: Side::Left,
        };
        let mut link = self.root;
        while let Some(n) = link {
            pos.parent = Some(n);
            pos.side = if before(n) { Side::Right } else { Side::Left };
            // SAFETY: reached from the root of this tree (INV-RBT-2).
            link = unsafe { r(n).get(pos.side) };
        }
        pos
    }

    /// The place right before `next`; for None, after the last node. Amortised O(1).
    ///
    /// # Safety
    /// `next` is a member of this tree.
    #[inline]
    pub unsafe fn pos_before(&self, next: Option<NonNull<RbNode>>) -> InsertPos {
        let Some(next) = next else {
            return InsertPos {
                parent: self.last,
                side: Side::Right,
            };
        };
        // SAFETY: a member, and its left subtree.
        unsafe {
            match r(next).left() {
                None => InsertPos {
                    parent: Some(next),
                    side: Side::Left,
                },
                Some(c) => InsertPos {
                    parent: Some(outermost(c, Side::Right)),
                    side: Side::Right,
                },
            }
        }
    }

    /// Links `node` at `pos` and rebalances. O(log n), no allocation.
    ///
    /// # Safety
    /// - `node` is unlinked and stays valid and in place until erased (INV-RBT-1); if members are
    ///   found by `container_of`, the pointer was made from one to the whole member.
    /// - `pos` came from this tree and the tree has not changed since.
    /// - All members of this tree use the same augmentation `A`.
    #[inline]
    pub unsafe fn insert_at<A: Augment>(&mut self, node: NonNull<RbNode>, pos: InsertPos) {
        // SAFETY: the caller's promise.
        unsafe { self.insert_before::<A>(node, pos, None) };
    }

    /// [`RbTree::insert_at`] when what the node that follows `node` contributes to summaries has
    /// changed too (a gap that became smaller): `changed` is that node, if there is one. One pass
    /// up instead of two.
    ///
    /// # Safety
    /// As for [`RbTree::insert_at`]; `changed` is the member that will follow `node`, or None.
    #[inline]
    pub unsafe fn insert_before<A: Augment>(
        &mut self,
        node: NonNull<RbNode>,
        pos: InsertPos,
        changed: Option<NonNull<RbNode>>,
    ) {
        // SAFETY: `node` is valid and ours by contract.
        let n = unsafe { r(node) };
        debug_assert!(!n.is_linked(), "inserting a node that is in a tree");
        n.set_parent_color(pos.parent, 0);
        n.set(Side::Left, None);
        n.set(Side::Right, None);
        match pos.parent {
            None => {
                debug_assert!(self.root.is_none());
                self.root = Some(node);
                self.first = Some(node);
                self.last = Some(node);
            }
            Some(p) => {
                // SAFETY: `p` is a member (contract).
                let p_ref = unsafe { r(p) };
                debug_assert!(p_ref.get(pos.side).is_none(), "place taken");
                p_ref.set(pos.side, Some(node));
                match pos.side {
                    Side::Left if self.first == Some(p) => self.first = Some(node),
                    Side::Right if self.last == Some(p) => self.last = Some(node),
                    _ => {}
                }
            }
        }
        // SAFETY: `node` and all its ancestors are members now. What follows a leaf is one of its
        // ancestors.
        unsafe {
            A::update(node);
            self.propagate_through::<A>(pos.parent, changed);
            self.insert_fixup::<A>(node);
        }
    }

    /// Links `node` right after `prev` in order.
    ///
    /// # Safety
    /// As for [`RbTree::insert_at`]; `prev` is a member of this tree.
    pub unsafe fn insert_after<A: Augment>(
        &mut self,
        prev: NonNull<RbNode>,
        node: NonNull<RbNode>,
    ) {
        // SAFETY: `prev` is a member (contract); the position is computed here and now.
        unsafe {
            let pos = match r(prev).right() {
                None => InsertPos {
                    parent: Some(prev),
                    side: Side::Right,
                },
                Some(c) => InsertPos {
                    parent: Some(outermost(c, Side::Left)),
                    side: Side::Left,
                },
            };
            self.insert_at::<A>(node, pos);
        }
    }

    /// Links `node` after the last one: amortised O(1) without augmentation.
    ///
    /// # Safety
    /// As for [`RbTree::insert_at`].
    #[inline]
    pub unsafe fn push_back<A: Augment>(&mut self, node: NonNull<RbNode>) {
        let pos = InsertPos {
            parent: self.last,
            side: Side::Right,
        };
        // SAFETY: the last node has no right child; the rest is the caller's promise.
        unsafe { self.insert_at::<A>(node, pos) };
    }

    /// Unlinks `node` and rebalances. O(log n), no search.
    ///
    /// # Safety
    /// `node` is a member of this tree, inserted with the same `A`.
    #[inline]
    pub unsafe fn erase<A: Augment>(&mut self, node: NonNull<RbNode>) {
        // SAFETY: the caller's promise.
        unsafe { self.erase_before::<A>(node, None) };
    }

    /// [`RbTree::erase`] when what the node that follows `node` contributes to summaries has
    /// changed too: `changed` is that node, if there is one. One pass up instead of two.
    ///
    /// # Safety
    /// As for [`RbTree::erase`]; `changed` is the member that follows `node`, or None.
    pub unsafe fn erase_before<A: Augment>(
        &mut self,
        node: NonNull<RbNode>,
        changed: Option<NonNull<RbNode>>,
    ) {
        // SAFETY: `node` is a member, and so is everything reached from it. With two children, the
        // successor is summarised anew where it goes; with none on the right, it is an ancestor.
        unsafe {
            let n = r(node);
            debug_assert!(n.is_linked(), "erasing a node that is in no tree");
            if self.first == Some(node) {
                self.first = neighbour(node, Side::Right);
            }
            if self.last == Some(node) {
                self.last = neighbour(node, Side::Left);
            }
            let (hole, removed_black) = match (n.left(), n.right()) {
                (None, child) | (child, None) => {
                    (self.splice_out::<A>(node, child, changed), n.is_black())
                }
                (Some(_), Some(right)) => self.swap_out::<A>(node, right),
            };
            n.parent.set(ptr::without_provenance_mut(UNLINKED));
            if removed_black {
                self.erase_fixup::<A>(hole);
            }
        }
    }

    /// Puts `new` exactly where `old` stands; `old` becomes unlinked. O(1), no rebalancing.
    ///
    /// # Safety
    /// As for [`RbTree::insert_at`] for `new` and [`RbTree::erase`] for `old`; `new` sorts where
    /// `old` did. The augmented value of `new` is recomputed and propagated.
    pub unsafe fn replace<A: Augment>(&mut self, old: NonNull<RbNode>, new: NonNull<RbNode>) {
        // SAFETY: `old` is a member, `new` is ours; neighbours of `old` are members.
        unsafe {
            let (o, n) = (r(old), r(new));
            debug_assert!(o.is_linked() && !n.is_linked());
            n.parent.set(o.parent.get());
            self.relink(o.parent(), old, Some(new));
            for side in [Side::Left, Side::Right] {
                n.set(side, o.get(side));
                if let Some(c) = o.get(side) {
                    r(c).set_parent(Some(new));
                }
            }
            if self.first == Some(old) {
                self.first = Some(new);
            }
            if self.last == Some(old) {
                self.last = Some(new);
            }
            o.parent.set(ptr::without_provenance_mut(UNLINKED));
            A::copy(old, new);
            self.propagate::<A>(Some(new), None);
        }
    }

    /// Recomputes the summaries from `node` up, after its own contribution has changed.
    ///
    /// # Safety
    /// `node` is a member of this tree, inserted with the same `A`.
    #[inline]
    pub unsafe fn update_path<A: Augment>(&mut self, node: NonNull<RbNode>) {
        // SAFETY: `node` and its ancestors are members.
        unsafe { self.propagate::<A>(Some(node), None) };
    }

    /// Checks INV-RBT-3, INV-RBT-4 and parent links; panics on the first violation. Returns the
    /// number of nodes. O(n), for tests.
    pub fn check_invariants(&self) -> usize {
        fn walk(link: Link, parent: Link, parent_red: bool) -> (usize, usize) {
            let Some(n) = link else { return (0, 1) };
            // SAFETY: reached from the root (INV-RBT-1); `&self` allows reading (INV-RBT-2).
            let n = unsafe { r(n) };
            assert!(n.is_linked());
            assert!(n.parent() == parent, "parent link");
            let red = !n.is_black();
            assert!(!(red && parent_red), "INV-RBT-3: red under red");
            let (ln, lb) = walk(n.left(), link, red);
            let (rn, rb) = walk(n.right(), link, red);
            assert!(lb == rb, "INV-RBT-3: black heights {lb} and {rb}");
            (ln + rn + 1, lb + usize::from(!red))
        }
        // A red root would be a "red under red".
        let (count, _) = walk(self.root, None, true);
        // SAFETY: as above.
        let (first, last) = unsafe {
            (
                self.root.map(|n| outermost(n, Side::Left)),
                self.root.map(|n| outermost(n, Side::Right)),
            )
        };
        assert!(self.first == first && self.last == last, "INV-RBT-4");
        count
    }
}

impl Default for RbTree {
    fn default() -> Self {
        Self::new()
    }
}
