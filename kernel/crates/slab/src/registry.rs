//! The list of all caches; how a cache comes to be and goes.
//!
//! Problem: a cache needs memory per CPU and per node, which comes from percpu and from a cache.
//!
//! Mechanism: statics register themselves on first use. Five internal caches without sheaves supply
//! sheaves and node parts; their own node parts are in one page per node.
//!
//! Lock order: `slab_registry` > `slab_list`, percpu's locks, page_alloc's. It is taken in any
//! context in which an allocation is allowed, and held while the parts of a cache are made.
//!
//! INV-REG-1: a cache is in the list exactly while `registered`, but for the last part of its
//! destruction.

use crate::cache::{CacheFlags, CacheStats, Ctor, Dtor, KmemCache};
use crate::geometry::SHEAF_CAPACITIES;
use crate::node::Node;
use crate::report::report;
use crate::sheaf::{CpuCache, Sheaf};
use crate::{AllocError, check, debug};
use core::alloc::Layout;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::*;
use ksync::{LockClass, PAGE_SIZE, SpinGuard, SpinLock, arch};
use page_alloc::Gfp;
use percpu::Zero;

const fn internal(name: &'static str, size: usize) -> KmemCache {
    KmemCache::new_static(name, size, 64, CacheFlags::NO_SHEAVES)
}

/// Sheaves of each class.
static SHEAVES: [KmemCache; SHEAF_CAPACITIES.len()] = [
    internal("slab_sheaf_4", Sheaf::bytes(SHEAF_CAPACITIES[0])),
    internal("slab_sheaf_12", Sheaf::bytes(SHEAF_CAPACITIES[1])),
    internal("slab_sheaf_28", Sheaf::bytes(SHEAF_CAPACITIES[2])),
    internal("slab_sheaf_60", Sheaf::bytes(SHEAF_CAPACITIES[3])),
];
static NODES: KmemCache = internal("kmem_cache_node", size_of::<Node>());
/// The caches that `create` makes.
static CACHES: KmemCache = KmemCache::new_static(
    "kmem_cache",
    size_of::<KmemCache>(),
    64,
    CacheFlags::NO_SHEAVES,
);

const NR_INTERNAL: usize = SHEAVES.len() + 1;
const _: () = assert!(NR_INTERNAL * size_of::<Node>() <= PAGE_SIZE);

struct Registry {
    head: *mut KmemCache,
    internal_ready: bool,
}

// SAFETY: pointers to statics and to caches that unregister before they go.
unsafe impl Send for Registry {}

static CLASS: LockClass = LockClass::new("slab_registry");
static REGISTRY: SpinLock<Registry> = SpinLock::new(
    Registry {
        head: ptr::null_mut(),
        internal_ready: false,
    },
    &CLASS,
);

/// The cache of sheaves of a class. Registered before any cache that has sheaves.
pub(crate) fn sheaf_cache(class: usize) -> &'static KmemCache {
    &SHEAVES[class]
}

/// Makes the parts of a cache and puts it into the list. Nothing has changed on error.
#[cold]
pub(crate) fn register(cache: &'static KmemCache) -> Result<(), AllocError> {
    percpu::ensure_ready().map_err(|_| AllocError)?;
    let mut registry = REGISTRY.lock();
    if cache.is_registered() {
        return Ok(());
    }
    if !registry.internal_ready {
        register_internal(&mut registry)?;
    }
    let has_sheaves = !cache.flags().contains(CacheFlags::NO_SHEAVES);
    cache.decide_debug();
    let mut offset = 0;
    if has_sheaves {
        // Zero: valid and empty (INV-SHEAF-1).
        offset = percpu::alloc_gfp(Layout::new::<CpuCache>(), Zero::Yes, Gfp::NOFAULT_INJECT)
            .map_err(|_| AllocError)?;
    }
    cache.own_offset.store(offset, Release);
    for id in 0..arch::nr_node_ids() {
        match NODES.alloc_uncached(id, Gfp::NOFAULT_INJECT) {
            Ok(memory) => {
                debug::hand_out(&NODES, memory.as_ptr());
                set_node(cache, id, memory.cast());
            }
            Err(e) => {
                // SAFETY: the cache is not registered, so nobody has seen the parts.
                unsafe { free_parts(cache) };
                return Err(e);
            }
        }
    }
    publish(&mut registry, cache);
    if cache.has_fast_paths() {
        cache.set_cpu_offset(offset);
    }
    Ok(())
}

/// The internal caches, with the parts of a node in one page of that node. Pages that were had
/// before memory ran out stay set, and are used by the next attempt.
fn register_internal(registry: &mut SpinGuard<'_, Registry>) -> Result<(), AllocError> {
    let caches = || SHEAVES.iter().chain([&NODES]);
    for id in 0..arch::nr_node_ids() {
        if !NODES.nodes[id].load(Relaxed).is_null() {
            continue;
        }
        let page = page_alloc::alloc_pages_node(id, 0, Gfp::NOFAULT_INJECT);
        let mut at = page.map_err(|_| AllocError)?.virt().cast::<Node>();
        for cache in caches() {
            // SAFETY: `at` is inside the fresh page, which has room for all.
            unsafe {
                set_node(cache, id, NonNull::new_unchecked(at));
                at = at.add(1);
            }
        }
    }
    for cache in caches() {
        publish(registry, cache);
    }
    registry.internal_ready = true;
    Ok(())
}

fn set_node(cache: &KmemCache, id: usize, memory: NonNull<Node>) {
    // SAFETY: the callers give memory of a Node's size and alignment.
    unsafe { memory.write(Node::new()) };
    cache.nodes[id].store(memory.as_ptr(), Release);
}

/// The cache can be found and used from here on.
fn publish(registry: &mut SpinGuard<'_, Registry>, cache: &'static KmemCache) {
    cache.next.store(registry.head, Relaxed);
    registry.head = ptr::from_ref(cache).cast_mut();
    cache.set_registered(true);
}

/// Frees what a cache has per CPU and node.
///
/// # Safety
/// Nobody uses the cache, and it has no slabs and no sheaves.
unsafe fn free_parts(cache: &'static KmemCache) {
    for node in &cache.nodes {
        if let Some(memory) = NonNull::new(node.swap(ptr::null_mut(), AcqRel)) {
            // SAFETY: from NODES, see `register`; unused by the caller's promise.
            unsafe { NODES.free(memory.cast()) };
        }
    }
    let offset = cache.own_offset.swap(0, AcqRel);
    if offset != 0 {
        // SAFETY: from percpu::alloc of this layout, see `register`.
        unsafe { percpu::free(offset, size_of::<CpuCache>()) };
    }
}

/// Takes a cache out of the list, and waits until no walk is at it. From then on reclaim does not
/// find it. The caller holds `slab_drain`.
pub(crate) fn unlink(cache: &'static KmemCache) {
    let mut registry = REGISTRY.lock();
    let this = ptr::from_ref(cache).cast_mut();
    let next = cache.next.load(Relaxed);
    if registry.head == this {
        registry.head = next;
    } else {
        let mut at = registry.head;
        // SAFETY: caches in the list are live (INV-REG-1); `this` is among them.
        unsafe {
            while (*at).next.load(Relaxed) != this {
                at = (*at).next.load(Relaxed);
            }
            (*at).next.store(next, Relaxed);
        }
    }
    drop(registry);
    // Whoever is at this cache in a walk leaves without looking back at it (see `walk`).
    while cache.pins.load(Acquire) != 0 && !crate::planted("destroy does not wait for walks") {
        arch::cpu_relax();
    }
}

/// Frees the parts of a cache that is out of the list.
///
/// # Safety
/// As [`free_parts`].
pub(crate) unsafe fn unregister(cache: &'static KmemCache) {
    let _registry = REGISTRY.lock();
    cache.set_registered(false);
    // SAFETY: the caller's promise.
    unsafe { free_parts(cache) };
}

/// Calls `f` with each cache, no lock held; a cache does not go while `f` has it. For reclaim in
/// any context: if the list is locked (perhaps by the caller), nothing is done. Caches that come or
/// go meanwhile may be missed.
pub(crate) fn walk(mut f: impl FnMut(&'static KmemCache)) {
    let pin = |at: *mut KmemCache| {
        // SAFETY: caches in the list are live while it is locked (INV-REG-1).
        let cache = unsafe { at.cast_const().as_ref() }?;
        cache.pins.fetch_add(1, Relaxed);
        Some(cache)
    };
    let Some(registry) = REGISTRY.try_lock() else {
        return;
    };
    let mut at = pin(registry.head);
    drop(registry);
    while let Some(cache) = at {
        f(cache);
        let registry = REGISTRY.lock();
        // A cache that is being destroyed is out of the list, but its `next` still leads into it or to
        // one that went later, whose memory may be gone: stop there.
        let mut listed = registry.head;
        let this = ptr::from_ref(cache).cast_mut();
        while !listed.is_null() && listed != this {
            // SAFETY: caches in the list are live while it is locked (INV-REG-1).
            listed = unsafe { (*listed).next.load(Relaxed) };
        }
        at = if listed.is_null() {
            None
        } else {
            pin(cache.next.load(Relaxed))
        };
        drop(registry);
        cache.pins.fetch_sub(1, Release);
    }
}

impl KmemCache {
    /// A cache made at run time, registered. Fails if memory is short, or the objects are larger
    /// than 16 KiB or aligned to more than a page (that is reported). Consults fault injection once.
    pub fn create(
        name: &'static str,
        size: usize,
        align: usize,
        ctor: Option<Ctor>,
        dtor: Option<Dtor>,
        flags: CacheFlags,
    ) -> Result<&'static KmemCache, AllocError> {
        let Some(mut cache) = KmemCache::build(name, size, align, flags, ctor, dtor) else {
            report_absurd(name, size, align);
            return Err(AllocError);
        };
        cache.is_made = true;
        let memory = CACHES.alloc(Gfp::empty())?;
        // SAFETY: fresh memory of a KmemCache's size and alignment; given back only by `release`.
        let made = unsafe {
            memory.cast::<KmemCache>().write(cache);
            memory.cast::<KmemCache>().as_ref()
        };
        if let Err(e) = register(made) {
            // SAFETY: nobody has seen the cache.
            unsafe { CACHES.free(memory) };
            return Err(e);
        }
        Ok(made)
    }
}

#[cold]
fn report_absurd(name: &str, size: usize, align: usize) {
    report(format_args!(
        "slab {name}: no objects of {size} bytes aligned to {align}\ncreated {}",
        check::Track::here()
    ));
}

/// Frees the memory of a cache that `create` made; statics keep theirs.
///
/// # Safety
/// The cache is unregistered, and nobody uses it any more.
pub(crate) unsafe fn release(cache: &'static KmemCache) {
    if cache.is_made {
        // SAFETY: from `create`; unused by the caller's promise.
        unsafe { CACHES.free(NonNull::from(cache).cast()) };
    }
}

/// Calls `f` with each registered cache, no lock held. The caller holds `slab_drain`, so that no
/// cache goes; those that come meanwhile are missed.
pub(crate) fn for_each(mut f: impl FnMut(&'static KmemCache)) {
    let mut at = REGISTRY.lock().head;
    // SAFETY: only `destroy` takes caches out of the list, under `slab_drain` (INV-REG-1).
    while let Some(cache) = unsafe { at.cast_const().as_ref() } {
        f(cache);
        let _registry = REGISTRY.lock();
        at = cache.next.load(Relaxed);
    }
}

/// Calls `f` with the figures of each registered cache, no lock held. A cache that comes or goes
/// meanwhile may be missed, or another one seen twice.
pub fn slabinfo(mut f: impl FnMut(CacheStats)) {
    for i in 0.. {
        let stats = {
            let registry = REGISTRY.lock();
            let mut at = registry.head;
            for _ in 0..i {
                // SAFETY: caches in the list are live while it is locked (INV-REG-1).
                at = unsafe { at.as_ref() }.map_or(ptr::null_mut(), |c| c.next.load(Relaxed));
            }
            // SAFETY: as above.
            match unsafe { at.as_ref() } {
                Some(cache) => cache.stats(),
                None => return,
            }
        };
        f(stats);
    }
}
