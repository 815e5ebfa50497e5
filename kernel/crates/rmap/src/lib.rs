//! The page cache of a file, and the reverse map from a file's pages to their mappings.
//!
//! Problem. A file's pages are found by offset on every fault and every read; all processes that
//! map the file must be found when a page goes away. Fork and exit of programs that map the same
//! libraries change that second set all the time, from all CPUs at once: it is one of the
//! places where large machines serialise.
//!
//! Mechanism. [`AddressSpace`] is the file's memory: `i_pages`, a radix tree from page offset to
//! page, read without locks; `i_mmap`, the set of mapped ranges ([`MapNode`]s inside the VMAs), one of several
//! structures behind one contract ([`FileRmap`]), listed in [`i_mmap`].
//!
//! Lock order (outer to inner): mm's mmap_lock; i_mmap's lock (sleeping); page table locks;
//! `i_pages_lock` (spin, leaf).
//!
//! Invariants: INV-RMAP-1..5 in [`contract`], INV-PCACHE-1..4 in [`space`], INV-REFS-1..2 in [`refs`],
//! INV-MOVE-1..2 in [`migrate`], INV-DIRTY-1 in [`reclaim`].
#![no_std]

#[cfg(test)]
extern crate std;

mod adaptive;
mod best;
mod by_node;
pub mod contract;
mod global;
pub mod i_mmap;
mod inverted;
pub mod migrate;
pub mod reclaim;
mod refs;
pub mod space;
mod tree;

#[cfg(test)]
mod tests;

pub use contract::{Adjust, FileRmap, MapNode, NodePtr, Resize};
pub use i_mmap::{Adaptive, Best, Global, IMmap, IMmapKind, Inverted, NodeLocks, NodeTrees};
pub use migrate::MoveError;
pub use refs::{SpaceOwner, SpaceRef};
pub use space::{AddressSpace, FillError, Filler, MAX_FILE_SIZE};
