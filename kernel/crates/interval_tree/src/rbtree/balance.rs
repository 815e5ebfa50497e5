//! Shape: rotations and the two repairs that keep a red-black tree balanced.
//!
//! Insertion adds a red node; the repair pushes a red-red conflict up by recolouring until at most
//! two rotations end it. Removal takes a node with at most one child out (a node with two is first
//! replaced by its successor); if it was black, the repair pushes the missing black up until a
//! red node can pay for it, with at most three rotations. Summaries ([`Augment`]) follow each
//! rotation.
//!
//! Invariants: establishes INV-RBT-3 of the parent module; relies on INV-RBT-1 and INV-RBT-2.

use super::{Augment, BLACK, Link, RbNode, RbTree, Side, is_red, outermost, r};
use core::ptr::NonNull;

impl RbTree {
    /// Points whatever pointed at `old` (a child slot of `parent`, or the root) at `new`.
    #[inline(always)]
    pub(super) unsafe fn relink(&mut self, parent: Link, old: NonNull<RbNode>, new: Link) {
        match parent {
            None => self.root = new,
            Some(p) => {
                // SAFETY: `p` is a member.
                let p = unsafe { r(p) };
                let side = if p.left() == Some(old) {
                    Side::Left
                } else {
                    Side::Right
                };
                p.set(side, new);
            }
        }
    }

    /// Recomputes summaries from `from` up to and excluding `stop`, until one does not change.
    #[inline(always)]
    pub(super) unsafe fn propagate<A: Augment>(&mut self, from: Link, stop: Link) {
        let mut at = from;
        while at != stop {
            let Some(n) = at else { break };
            // SAFETY: `n` is an ancestor of a member, hence a member.
            unsafe {
                if !A::update(n) {
                    break;
                }
                at = r(n).parent();
            }
        }
    }

    /// Recomputes summaries from `from` up: all up to and with `through`, if given, and on until one
    /// does not change.
    #[inline(always)]
    pub(super) unsafe fn propagate_through<A: Augment>(&mut self, from: Link, through: Link) {
        let (mut at, mut due) = (from, through);
        while let Some(n) = at {
            // SAFETY: `n` is an ancestor of a member, hence a member.
            unsafe {
                let changed = A::update(n);
                if due == Some(n) {
                    due = None;
                }
                if !changed && due.is_none() {
                    break;
                }
                at = r(n).parent();
            }
        }
        debug_assert!(due.is_none(), "not an ancestor");
    }

    /// Rotates `top` down to `side`; its other child takes its place. Colours stay with the nodes.
    pub(super) unsafe fn rotate<A: Augment>(&mut self, top: NonNull<RbNode>, side: Side) {
        // SAFETY: callers rotate only members that have a child on the other side.
        unsafe {
            let t = r(top);
            let up = t.get(side.other()).expect("rotation needs a child");
            let u = r(up);
            let inner = u.get(side);
            t.set(side.other(), inner);
            if let Some(c) = inner {
                r(c).set_parent(Some(top));
            }
            let parent = t.parent();
            u.set_parent(parent);
            self.relink(parent, top, Some(up));
            u.set(side, Some(top));
            t.set_parent(Some(up));
            A::copy(top, up);
            A::update(top);
        }
    }

    /// Restores INV-RBT-3 after a red node was linked.
    pub(super) unsafe fn insert_fixup<A: Augment>(&mut self, mut node: NonNull<RbNode>) {
        // SAFETY: ancestors, uncles and children of members are members; a red parent is never the
        // root (black), so a grandparent exists.
        unsafe {
            loop {
                let Some(mut parent) = r(node).parent() else {
                    r(node).set_black();
                    return;
                };
                if r(parent).is_black() {
                    return;
                }
                let grand = r(parent).parent().expect("a red node has a parent");
                let side = if r(grand).left() == Some(parent) {
                    Side::Left
                } else {
                    Side::Right
                };
                if let Some(uncle) = r(grand).get(side.other()).filter(|&u| !r(u).is_black()) {
                    r(parent).set_black();
                    r(uncle).set_black();
                    r(grand).set_red();
                    node = grand;
                    continue;
                }
                if r(parent).get(side.other()) == Some(node) {
                    self.rotate::<A>(parent, side);
                    parent = node;
                }
                r(parent).set_black();
                r(grand).set_red();
                self.rotate::<A>(grand, side.other());
                return;
            }
        }
    }

    /// Replaces `node`, which has at most `child`, by `child`. Returns where black may be missing.
    /// `changed`: see [`RbTree::erase_before`].
    pub(super) unsafe fn splice_out<A: Augment>(
        &mut self,
        node: NonNull<RbNode>,
        child: Link,
        changed: Link,
    ) -> Hole {
        // SAFETY: `node` is a member, so are its parent and child.
        unsafe {
            let parent = r(node).parent();
            let side = match parent {
                Some(p) if r(p).left() != Some(node) => Side::Right,
                _ => Side::Left,
            };
            self.relink(parent, node, child);
            let mut through = changed;
            if let Some(c) = child {
                r(c).set_parent(parent);
                if changed == child {
                    // The successor was the right child, which has no children.
                    A::update(c);
                    through = None;
                }
            }
            self.propagate_through::<A>(parent, through);
            Hole {
                node: child,
                parent,
                side,
            }
        }
    }

    /// Removes `node`, which has two children, by moving its successor into its place.
    pub(super) unsafe fn swap_out<A: Augment>(
        &mut self,
        node: NonNull<RbNode>,
        right: NonNull<RbNode>,
    ) -> (Hole, bool) {
        // SAFETY: everything reached from the member `node` is a member.
        unsafe {
            let n = r(node);
            let succ = outermost(right, Side::Left);
            let s = r(succ);
            let removed_black = s.is_black();
            let child = s.right();
            let hole = if succ == right {
                Hole {
                    node: child,
                    parent: Some(succ),
                    side: Side::Right,
                }
            } else {
                let parent = s.parent();
                r(parent.expect("below node")).set(Side::Left, child);
                if let Some(c) = child {
                    r(c).set_parent(parent);
                }
                s.set(Side::Right, Some(right));
                r(right).set_parent(Some(succ));
                Hole {
                    node: child,
                    parent,
                    side: Side::Left,
                }
            };
            let left = n.left();
            s.set(Side::Left, left);
            if let Some(l) = left {
                r(l).set_parent(Some(succ));
            }
            s.parent.set(n.parent.get());
            self.relink(n.parent(), node, Some(succ));
            if hole.parent != Some(succ) {
                self.propagate::<A>(hole.parent, Some(succ));
            }
            A::copy(node, succ);
            self.propagate::<A>(Some(succ), None);
            (hole, removed_black)
        }
    }

    /// Restores INV-RBT-3 after a black node left from `hole`.
    pub(super) unsafe fn erase_fixup<A: Augment>(&mut self, mut hole: Hole) {
        // SAFETY: members only; a hole short of one black has a sibling, else the black heights
        // differed before the removal.
        unsafe {
            loop {
                if let Some(n) = hole.node.filter(|&n| !r(n).is_black()) {
                    r(n).set_black();
                    return;
                }
                let Some(parent) = hole.parent else { return };
                let (near, far) = (hole.side, hole.side.other());
                let mut sib = r(parent).get(far).expect("black height");
                if !r(sib).is_black() {
                    r(sib).set_black();
                    r(parent).set_red();
                    self.rotate::<A>(parent, near);
                    sib = r(parent).get(far).expect("black height");
                }
                if !is_red(r(sib).get(near)) && !is_red(r(sib).get(far)) {
                    r(sib).set_red();
                    let up = r(parent).parent();
                    let side = match up {
                        Some(g) if r(g).left() != Some(parent) => Side::Right,
                        _ => Side::Left,
                    };
                    hole = Hole {
                        node: Some(parent),
                        parent: up,
                        side,
                    };
                    continue;
                }
                if !is_red(r(sib).get(far)) {
                    r(r(sib).get(near).expect("red")).set_black();
                    r(sib).set_red();
                    self.rotate::<A>(sib, far);
                    sib = r(parent).get(far).expect("just rotated here");
                }
                let color = r(parent).parent.get().addr() & BLACK;
                r(sib).set_parent_color(r(sib).parent(), color);
                r(parent).set_black();
                r(r(sib).get(far).expect("red")).set_black();
                self.rotate::<A>(parent, near);
                return;
            }
        }
    }
}

/// A child slot whose subtree may be one black node short.
#[derive(Clone, Copy)]
pub(super) struct Hole {
    node: Link,
    parent: Link,
    side: Side,
}
