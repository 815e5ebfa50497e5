//! Object caches (kmem_cache), counted and owned pointers made from them, and intrusive lists.
#![no_std]

#[cfg(test)]
extern crate std;

mod arc;
mod cache;
mod heap;
mod kbox;
mod list;
mod object;

pub use arc::{KArc, KArcUninit};
pub use cache::{CacheFlags, CacheStats, CtorError, DestroyError, Gfp, KmemCache, slabinfo};
pub use heap::KernelHeap;
pub use kbox::{KBox, KBoxUninit};
pub use list::{Iter, List};
pub use object::{Link, LinkArray, Object, ObjectCache, class_cache};

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
