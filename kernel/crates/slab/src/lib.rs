//! Object caches (kmem_cache), counted and owned pointers made from them, and intrusive lists.
//!
//! # Problem
//! The kernel makes and frees objects of a few kinds all the time, on all CPUs, and may never die of
//! it: out of memory is an error that the caller gets. A page is too large for an object, a lock per
//! allocation too dear, an object of another node's memory too far.
//!
//! # Mechanism
//! ```text
//!  KArc, KBox, KernelHeap
//!      |
//!  KmemCache       per CPU: main, spare and remote sheaf (arrays of free objects), no locks
//!      |           per node: a barn of full and empty sheaves          slab_barn
//!      |           per node: partial and full slabs                    slab_list
//!  page_alloc
//! ```
//! - `geometry`: how objects lie on pages. `page`: a slab and its list. `sheaf`: sheaves and barns.
//! - `cache`: the interface and the fast paths. `slow`: everything else about alloc and free.
//! - `node`: slabs of a node, and the way back. `drain`: shrink and destroy. `registry`: all caches.
//! - `object`, `arc`, `list`, `kbox`, `heap`: what the rest of the kernel uses.
//!
//! # States of an object
//! ```text
//!            new slab                refill                 pop
//!  (no page) -------> free on slab <--------> in a sheaf <--------> a client's
//!            <-------   constructed  flush      constructed push
//!            discard
//! ```
//! A constructor runs on the first arrow and a destructor on its way back, nowhere else: an object
//! keeps what its constructor built through any number of clients.
//!
//! # Counting
//! Each CPU counts the allocations and frees that clients make on it. Their difference, summed, is
//! the number of objects that clients hold: exact when nobody is in alloc or free, with any number
//! of objects in sheaves. A leak check needs no draining.
//!
//! # Lock order
//! `slab_drain` (mutex) > `slab_registry` > percpu's locks; and > `slab_list`, `slab_barn`, which are
//! leaves. page_alloc's locks come under all but the leaves. Alloc and free take, at most,
//! `slab_registry` (first use) or one leaf at a time.
//!
//! # Invariants
//! INV-SHEAF, INV-SLAB, INV-NODE, INV-CACHE, INV-DRAIN, INV-REG, INV-DEBUG, INV-OBJ, INV-ARC, INV-LIST,
//! INV-BOX, INV-POOL, INV-REST and INV-HEAP, each at the top of the file of that name.
#![no_std]

#[cfg(test)]
extern crate std;

mod arc;
mod cache;
mod check;
mod debug;
mod drain;
mod geometry;
mod heap;
mod kbox;
mod list;
mod node;
mod object;
mod page;
mod place;
mod reclaim;
mod refpool;
mod registry;
mod report;
mod rest;
mod sheaf;
mod slow;
#[cfg(test)]
mod tests;

pub use arc::{Idle, KArc, KArcUninit};
pub use cache::{CacheFlags, CacheStats, Ctor, CtorError, DestroyError, Dtor, KmemCache};
pub use check::{Track, nr_quarantined, set_debug};
pub use drain::{report_live, shrink_all};
pub use heap::{KernelHeap, init_heap, kfree, kmalloc};
pub use kbox::{KBox, KBoxUninit};
pub use ksync::rcu::RcuGuard;
pub use list::{Iter, List};
pub use object::{Link, LinkArray, Object, ObjectCache, class_cache};
pub use page_alloc::Gfp;
pub use place::{Place, owner_of_percpu, place_of};
pub use reclaim::{
    Reclaim, pressure_counts, run_worker, set_reclaim, start_reclaim, under_pressure,
};
pub use refpool::RefPool;
pub use registry::slabinfo;
pub use report::{Reporter, nr_reports, set_reporter};
pub use rest::RestPool;

/// Whether a test has planted this bug. Never outside of tests.
#[inline(always)]
pub(crate) fn planted(_bug: &str) -> bool {
    #[cfg(test)]
    return tests::is_planted(_bug);
    #[cfg(not(test))]
    false
}

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
