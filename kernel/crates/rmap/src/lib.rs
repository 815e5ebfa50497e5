//! The page cache of a file, and the reverse map from a file's pages to their mappings.
//!
//! Problem. A file's pages are found by offset on every fault and every read; all processes that
//! map the file must be found when a page goes away. Fork and exit of programs that map the same
//! libraries change that second set all the time, from all CPUs at once: it is one of the
//! places where large machines serialise.
//!
//! Mechanism. [`AddressSpace`] is the file's memory: `i_pages`, a radix tree from page offset to
//! page, read without locks; `i_mmap`, the set of mapped ranges ([`MapNode`]s inside the VMAs), an
//! interval tree behind a contract ([`FileRmap`]) so that other structures can stand beside the
//! first, [`Global`].
//!
//! Lock order (outer to inner): mm's mmap_lock; i_mmap's lock (sleeping); page table locks;
//! `i_pages_lock` (spin, leaf).
//!
//! Invariants: INV-RMAP-1..4 in [`i_mmap`], INV-PCACHE-1..4 in [`space`].
#![no_std]

#[cfg(test)]
extern crate std;

pub mod i_mmap;
pub mod space;

#[cfg(test)]
mod tests;

pub use i_mmap::{Adjust, FileRmap, Global, IMmap, IMmapKind, MapNode, Resize};
pub use space::{AddressSpace, FillError, Filler, MAX_FILE_SIZE};
