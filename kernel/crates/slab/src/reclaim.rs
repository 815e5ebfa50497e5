//! Memory taken back from caches when there is no other, and what a destructor may hold up.
//!
//! Problem: free slabs and full barns are memory that somebody else may need, now, in a context where nothing may
//! sleep; and a destructor is somebody's code that runs then, under locks that nobody foresaw.
//!
//! Mechanism: `page_alloc` calls [`under_pressure`] when it has no page left. That empties the barns and gives back
//! the free slabs of every cache, with locks that are leaves. What sheaves of CPUs hold needs a grace period, and is
//! left to the worker, a thread that the kernel gives ([`run_worker`]). The boot word `slab_reclaim` decides where
//! destructors run:
//!
//! | | caches without destructor | with destructor |
//! |---|---|---|
//! | `inline` | reclaimed on the spot | on the spot: a destructor may take only leaf locks |
//! | `worker` | on the spot | their slabs queue up for the worker, which may be in no lock |
//!
//! Lock order: `slab_pending` is a leaf. The worker destroys slabs under `slab_drain`, so that `destroy` can wait for
//! it.
//!
//! INV-RECLAIM-1: a slab in the queue is private (INV-SLAB), and its cache exists: `destroy` empties the queue, under
//! `slab_drain`, after the last slab of the cache can have come to it.

use crate::cache::{CacheFlags, KmemCache};
use crate::drain::DRAIN;
use crate::node::destroy_slab;
use crate::page::Slab;
use crate::registry;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering::*};
use ksync::{LockClass, SpinLock};

/// Where slabs with destructors are reclaimed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reclaim {
    /// Where memory runs out, or where the last object is freed.
    Inline,
    /// In a thread of their own.
    Worker,
}

impl Reclaim {
    /// The words of the boot line.
    pub const NAMES: [&'static str; 2] = ["inline", "worker"];

    /// The policy of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "inline" => Some(Reclaim::Inline),
            "worker" => Some(Reclaim::Worker),
            _ => None,
        }
    }
}

static POLICY: AtomicU8 = AtomicU8::new(Reclaim::Inline as u8);
static WAKER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
static NR_CALLS: AtomicUsize = AtomicUsize::new(0);
static NR_PAGES: AtomicUsize = AtomicUsize::new(0);
static CLASS: LockClass = LockClass::new_leaf("slab_pending");
/// Slabs that wait for the worker.
static PENDING: SpinLock<Option<Slab>> = SpinLock::new(None, &CLASS);

/// Chooses the policy. Boot, before any cache with a destructor is used.
pub fn set_reclaim(policy: Reclaim) {
    POLICY.store(policy as u8, Relaxed);
}

/// The policy.
pub(crate) fn policy() -> Reclaim {
    match POLICY.load(Relaxed) {
        0 => Reclaim::Inline,
        _ => Reclaim::Worker,
    }
}

/// Lets `page_alloc` ask for memory, and says how to wake the worker (any context; may take only run-queue locks).
pub fn start_reclaim(wake_worker: fn()) {
    WAKER.store(wake_worker as *mut (), Release);
    page_alloc::set_pressure_hook(under_pressure);
}

fn wake_worker() {
    let waker = WAKER.load(Acquire);
    if !waker.is_null() {
        // SAFETY: only `start_reclaim` stores here, and what it stores is a fn().
        unsafe { core::mem::transmute::<*mut (), fn()>(waker)() };
    }
}

/// Queues a private slab for the worker.
pub(crate) fn defer(slab: Slab) {
    {
        let mut pending = PENDING.lock_irqsave();
        slab.set_next(pending.take());
        *pending = Some(slab);
    }
    wake_worker();
}

/// Destroys what is in the queue. The caller holds `slab_drain`.
pub(crate) fn run_pending() {
    let mut at = PENDING.lock_irqsave().take();
    while let Some(slab) = at {
        at = slab.next();
        destroy_slab(slab);
    }
}

/// One round of the worker: destructors of queued slabs, then what CPUs keep. Sleeps. Returns the pages.
pub fn run_worker() -> usize {
    {
        let _held = DRAIN.lock();
        run_pending();
    }
    crate::shrink_all()
}

/// Gives back what can be had on the spot; returns the pages. Any context in which an allocation is allowed, with any
/// lock held under which one is.
pub fn under_pressure() -> usize {
    let mut pages = 0;
    let worker = policy() == Reclaim::Worker;
    let mut left = false;
    registry::walk(|cache| {
        if cache.flags().contains(CacheFlags::NO_RECLAIM) {
        } else if worker && cache.dtor().is_some() {
            left = true;
        } else {
            pages += cache.reclaim();
        }
    });
    if left || pages == 0 {
        wake_worker();
    }
    NR_CALLS.fetch_add(1, Relaxed);
    NR_PAGES.fetch_add(pages, Relaxed);
    pages
}

/// How often memory ran out, and how many pages the caches gave back at once.
pub fn pressure_counts() -> (usize, usize) {
    (NR_CALLS.load(Relaxed), NR_PAGES.load(Relaxed))
}

impl KmemCache {
    /// Empties the barns and gives back the free slabs. Returns the pages.
    fn reclaim(&'static self) -> usize {
        if !self.is_registered() {
            return 0;
        }
        for node in self.nodes() {
            loop {
                let sheaf = node.barn.lock().take_any();
                if sheaf.is_null() {
                    break;
                }
                // SAFETY: taken from the barn, which owned it.
                unsafe { self.flush_and_free(sheaf) };
            }
        }
        self.discard_free_slabs()
    }
}

/// Forgets what waits: for tests with a planted bug.
#[cfg(test)]
pub(crate) fn forget_pending() {
    *PENDING.lock_irqsave() = None;
}
