//! Object caches (kmem_cache), counted and owned pointers made from them, and intrusive lists.
#![no_std]

#[cfg(test)]
extern crate std;

mod arc;
mod cache;
mod debug;
mod drain;
mod geometry;
mod heap;
mod kbox;
mod list;
mod node;
mod object;
mod page;
mod registry;
mod sheaf;
mod slow;
#[cfg(test)]
mod tests;

pub use arc::{KArc, KArcUninit};
pub use cache::{CacheFlags, CacheStats, Ctor, CtorError, DestroyError, Dtor, KmemCache};
pub use drain::shrink_all;
pub use heap::{KernelHeap, kfree, kmalloc};
pub use kbox::{KBox, KBoxUninit};
pub use list::{Iter, List};
pub use object::{Link, LinkArray, Object, ObjectCache, class_cache};
pub use page_alloc::Gfp;
pub use registry::slabinfo;

/// Memory could not be had (or a planned failure fell on this allocation).
///
/// Nothing has changed: the caller keeps what it had and reports ENOMEM.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct AllocError;

impl core::fmt::Display for AllocError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("out of memory")
    }
}

impl core::error::Error for AllocError {}
