//! Intrusive balanced trees: a red-black tree, and an interval tree on top of it.
//!
//! Problem. A kernel keeps ordered sets whose members are parts of other objects: the VMAs of an
//! address space by address, the mappings of a file by page offset. Inserting must not allocate
//! (it runs where failure has no way back), removing must not search, and the cost must stay
//! logarithmic with thousands of members.
//!
//! Mechanism. The links live inside the members ([`RbNode`], three words). [`rbtree`] balances and
//! knows nothing of keys: the caller finds the place, or says "right after this one". A type
//! parameter ([`Augment`]) lets a user keep a value per subtree; [`interval`] uses it for the
//! greatest end below each node, which turns "who overlaps [a, b]?" into a walk that never
//! enters a subtree that cannot answer.
//!
//! Lock order. None of its own: every tree belongs to a lock of its owner, which must be held for
//! writing to change the tree and for reading to look at it.
//!
//! Invariants: INV-RBT-1..4 in [`rbtree`], INV-ITREE-1..3 in [`interval`].
#![no_std]

#[cfg(test)]
extern crate std;
#[cfg(test)]
mod tests;

pub mod interval;
pub mod rbtree;

pub use interval::{IntervalNode, IntervalTree, Overlaps};
pub use rbtree::{Augment, InsertPos, NoAugment, RbNode, RbTree, Side};
