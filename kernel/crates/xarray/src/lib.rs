//! Sparse arrays: a radix tree from integers to pointers, read without locks.
//!
//! Problem. A file's pages by offset, a namespace's pids by number: maps from small integers that
//! are dense in places, empty in others, read far more often than written, and written under a
//! spinlock where memory must not be asked for. Handing out numbers needs the first free one at or
//! after a cursor, fast even when millions are taken.
//!
//! Mechanism. A tree of nodes with 64 slots, as high as the greatest index needs. Each node keeps a
//! bitmap of slots below which something is free, so a free number is found in one walk down.
//! Readers follow slots under RCU; nodes taken out are freed after a grace period. Insertion takes
//! its nodes from a [`Preload`] filled before the lock; with too few it changes nothing and says
//! how many it needs.
//!
//! - [`XArray`]: the map of copyable entries. Writers hold `&mut`, or prove that they hold a lock.
//! - [`Idr`]: numbers to counted objects, safe to use from crates that forbid unsafe code; any
//!   number of them behind one [`IdrLock`].
//!
//! - [`LeaseMap`]: numbers to counted objects, taken by CPUs that do not meet; [`Seat`]: the slot that an object had.
//! - [`PagedBitmap`], [`HashTable`]: which numbers are taken, and what they stand for, kept apart.
//!
//! Lock order. None of its own; an [`IdrLock`] is a leaf spinlock.
//!
//! Invariants: INV-XA-1..6 in `node` and `tree`, INV-IDR-1..3 in `idr`, INV-LEASE-1..4
//! in `leased`, INV-SEAT-1 in `seat`, INV-BITMAP-1..2 in `bitmap`, INV-HASH-1..3 in `hash`.
#![no_std]

#[cfg(test)]
extern crate std;

mod array;
mod bitmap;
mod hash;
mod idr;
mod leased;
mod node;
mod seat;
mod tree;

#[cfg(test)]
mod tests;

pub use array::{Entry, Value, Writer, XArray};
pub use bitmap::PagedBitmap;
pub use hash::{Chain, HashGuard, HashTable};
pub use idr::{AllocRange, Idr, IdrError, IdrGuard, IdrLock, Reserved};
pub use leased::{Claim, LeaseMap, LeaseRange, SlowError};
pub use node::{Preload, nr_nodes};
pub use seat::Seat;

/// An insertion needs this many nodes in the [`Preload`] (in all, not in addition). Nothing has
/// changed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct NeedNodes(pub usize);
