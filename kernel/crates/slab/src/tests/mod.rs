//! Tests of caches on an emulated machine of 4 CPUs and 2 nodes.

mod cache;
mod check;
pub mod interleave;
mod model;
mod pointers;
mod stress;

use crate::*;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use ksync::{arch, rcu};
use page_alloc::PageRef;
use std::sync::{Mutex, MutexGuard};
use std::vec::Vec;

/// The bug that a test has planted.
static PLANTED: Mutex<&'static str> = Mutex::new("");

pub fn is_planted(bug: &str) -> bool {
    *PLANTED.lock().unwrap_or_else(|e| e.into_inner()) == bug
}

/// Runs `f` with a bug in the code.
pub fn with_bug<R>(bug: &'static str, f: impl FnOnce() -> R) -> R {
    *PLANTED.lock().unwrap() = bug;
    let r = f();
    *PLANTED.lock().unwrap() = "";
    r
}

pub const NR_CPUS: usize = 4;
pub const NR_NODES: usize = 2;

/// The machine, for one test at a time: the tests count its pages.
pub fn machine() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        arch::set_nr_cpu_ids(NR_CPUS);
        page_alloc::host::init(&[2048, 2048]);
        // Internal caches exist from here on, and their pages are counted.
        let warm = test_cache("warm", 64, 8, CacheFlags::empty());
        on(0, || give_back(warm, take(warm).unwrap()));
        destroy(warm).unwrap();
    });
    reset_ctor(usize::MAX);
    guard
}

pub fn on<R>(cpu: usize, f: impl FnOnce() -> R) -> R {
    arch::host::run_on(cpu, f)
}

pub fn test_cache(
    name: &'static str,
    size: usize,
    align: usize,
    flags: CacheFlags,
) -> &'static KmemCache {
    KmemCache::create(name, size, align, None, None, flags).unwrap()
}

pub fn take(cache: &'static KmemCache) -> Result<NonNull<u8>, AllocError> {
    cache.alloc(Gfp::empty())
}

pub fn give_back(cache: &'static KmemCache, object: NonNull<u8>) {
    // SAFETY: the tests give back what they took.
    unsafe { cache.free(object) }
}

pub fn destroy(cache: &'static KmemCache) -> Result<(), DestroyError> {
    // SAFETY: the tests are done with the cache.
    unsafe { cache.destroy() }
}

pub fn node_of(object: NonNull<u8>) -> usize {
    PageRef::from_virt(object.as_ptr()).node()
}

/// Free pages of the machine, after everything that is unused went back.
pub fn free_pages() -> usize {
    rcu::barrier();
    shrink_all();
    // Slabs that waited for readers.
    rcu::barrier();
    (0..NR_NODES).map(|n| page_alloc::nr_free(n).free).sum()
}

/// Takes all free pages of the machine, or of a node, until dropped.
pub struct Hog(Vec<PageRef>);

impl Hog {
    pub fn new() -> Self {
        Self::with(0, Gfp::empty())
    }

    pub fn node(node: usize) -> Self {
        Self::with(node, Gfp::THISNODE)
    }

    fn with(node: usize, gfp: Gfp) -> Self {
        // Other CPUs' lists too.
        page_alloc::drain_all();
        let gfp = gfp | Gfp::NOFAULT_INJECT;
        Hog(core::iter::from_fn(|| page_alloc::alloc_pages_node(node, 0, gfp).ok()).collect())
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.0.drain(..).for_each(PageRef::put);
    }
}

pub const MAGIC: u64 = 0xc0de_c0de_0000_0001;
static BUILT: AtomicUsize = AtomicUsize::new(0);
/// Constructors left until one fails.
static FUSE: AtomicUsize = AtomicUsize::new(usize::MAX);

/// No object is built; the constructor fails after `fuse` objects.
pub fn reset_ctor(fuse: usize) {
    BUILT.store(0, Relaxed);
    FUSE.store(fuse, Relaxed);
}

pub fn set_fuse(fuse: usize) {
    FUSE.store(fuse, Relaxed);
}

pub fn nr_built() -> usize {
    BUILT.load(Relaxed)
}

pub fn ctor(object: NonNull<u8>) -> Result<(), CtorError> {
    if FUSE.load(Relaxed) == 0 {
        return Err(CtorError);
    }
    FUSE.fetch_sub(1, Relaxed);
    BUILT.fetch_add(1, Relaxed);
    // SAFETY: the object has at least 8 bytes.
    unsafe { object.cast::<u64>().write(MAGIC) };
    Ok(())
}

pub fn dtor(object: NonNull<u8>) {
    // SAFETY: a constructed object.
    let word = unsafe { object.cast::<u64>().read() };
    assert_eq!(word, MAGIC, "freed in constructed state");
    assert!(BUILT.fetch_sub(1, Relaxed) > 0);
}
