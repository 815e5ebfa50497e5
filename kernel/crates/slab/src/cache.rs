//! `KmemCache`: the cache of one kind of object, its fast paths, its interface.
//!
//! Problem: the kernel makes and frees the same few kinds of object all the time, on all CPUs.
//!
//! Mechanism: see the crate. Here are the two paths that matter: `alloc` pops this CPU's main sheaf,
//! `free` pushes it, with preemption off, in about twenty instructions each, no locked one among them,
//! on lines that only this CPU writes. Whatever is not ready (the cache's first use, an empty sheaf,
//! an object of another node, a cache that is being drained) looks like an empty, capacity-0 sheaf
//! and so ends in the slow path without a test of its own.
//!
//! Context of all operations unless said otherwise: any, with IRQs on or off and any spinlock held
//! that is not this crate's or below, but not hard IRQ: a handler would find a sheaf half changed.
//!
//! INV-CACHE-1: `cpu_offset` is the cache's own CpuCache or `percpu::ZERO_AREA`. It moves to
//! ZERO_AREA (freeze) and back only under `slab_drain`, and the drainer waits for a grace period
//! between: whoever read the offset with preemption off has finished by then.
//! INV-CACHE-2: an object handed to a client is at least as large and aligned as asked, and nobody
//! else's until freed. If there is a constructor it is in constructed state.

pub(crate) use crate::geometry::Geometry;
use crate::node::Node;
use crate::sheaf::{CpuCache, Sheaf};
use crate::{AllocError, check, debug};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use ksync::{MAX_NUMNODES, arch};
use page_alloc::{Gfp, PageRef, fault_inject};

bitflags::bitflags! {
    /// Properties of a cache.
    #[derive(Copy, Clone, Debug, PartialEq, Eq)]
    pub struct CacheFlags: u32 {
        /// Objects do not share cache lines (small ones: do not straddle them).
        const HWCACHE_ALIGN = 1;
        /// Slab pages are freed after an RCU grace period: a reader who finds a freed object still
        /// sees an object of this type, perhaps another one.
        const TYPESAFE_BY_RCU = 2;
        /// No sheaves: every operation takes the node's lock. For caches that are hardly used.
        const NO_SHEAVES = 4;
        /// Reclaim leaves this cache's memory alone: for what is soon needed again at any price.
        const NO_RECLAIM = 8;
        /// Objects come from all nodes in turn, whoever allocates: for what all of them use. Takes
        /// the node's lock each time.
        const INTERLEAVE = 16;
        /// Objects come from the allocating CPU's node or not at all.
        const THIS_NODE = 32;
    }
}

/// A constructor could not build the object; it has undone what it had done to it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct CtorError;

/// Builds an object in fresh memory. Called once per object, when its slab is made, in the context
/// of an allocation, with no lock of this crate held. It may allocate from other caches.
pub type Ctor = fn(NonNull<u8>) -> Result<(), CtorError>;
/// Undoes a constructor, when the slab is freed: in the context of a free, where the caller may hold
/// any lock. It must not sleep, and may take only leaf spinlocks.
pub type Dtor = fn(NonNull<u8>);

/// Why a cache was not destroyed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum DestroyError {
    /// So many objects are still clients'. The cache and its memory stay.
    Busy(usize),
}

/// A cache's figures.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// The cache's name.
    pub name: &'static str,
    /// Bytes per object as asked for.
    pub object_size: usize,
    /// Bytes from object to object.
    pub stride: usize,
    /// Objects that clients hold: exact while nobody allocates or frees.
    pub active: usize,
    /// Objects in sheaves.
    pub cached: usize,
    /// Objects on slab pages.
    pub total: usize,
    /// Pages in slabs.
    pub pages: usize,
    /// Allocations ever made (0 for NO_SHEAVES).
    pub allocs: u64,
    /// Frees ever made.
    pub frees: u64,
}

/// A cache of objects of one size.
#[repr(C, align(64))]
pub struct KmemCache {
    /// Offset of this CPU's [`CpuCache`] in every window, or ZERO_AREA (INV-CACHE-1).
    cpu_offset: AtomicUsize,
    geometry: Geometry,
    /// The same with red zones and tracks, if that fits.
    debug_geometry: Option<Geometry>,
    /// Which of the two holds. Decided before the cache is registered.
    debugged: AtomicBool,
    /// Walks of the list of caches that are at this one and hold no lock.
    pub(crate) pins: AtomicU32,
    /// INTERLEAVE: where the next object comes from.
    pub(crate) rotor: AtomicU32,
    flags: CacheFlags,
    name: &'static str,
    size: usize,
    ctor: Option<Ctor>,
    dtor: Option<Dtor>,
    /// Whether `create` made it.
    pub(crate) is_made: bool,
    /// Whether `own_offset`, `nodes` and `next` are set. From then on they do not change.
    registered: AtomicBool,
    /// Offset of the cache's own CpuCache; 0: not registered, or NO_SHEAVES.
    pub(crate) own_offset: AtomicUsize,
    /// In the list of all caches, under its lock.
    pub(crate) next: AtomicPtr<KmemCache>,
    pub(crate) nodes: [AtomicPtr<Node>; MAX_NUMNODES],
}

impl KmemCache {
    /// A cache to be placed in a static. What it needs per CPU and node is made at the first
    /// allocation, which fails if that fails. `align` is a power of two, at most a page.
    pub const fn new_static(
        name: &'static str,
        size: usize,
        align: usize,
        flags: CacheFlags,
    ) -> Self {
        Self::new_static_ctor(name, size, align, flags, None, None)
    }

    /// [`new_static`](Self::new_static) with a constructor and a destructor.
    pub const fn new_static_ctor(
        name: &'static str,
        size: usize,
        align: usize,
        flags: CacheFlags,
        ctor: Option<Ctor>,
        dtor: Option<Dtor>,
    ) -> Self {
        match Self::build(name, size, align, flags, ctor, dtor) {
            Some(cache) => cache,
            None => panic!("slab: objects too large, or bad alignment"),
        }
    }

    pub(crate) const fn build(
        name: &'static str,
        size: usize,
        align: usize,
        flags: CacheFlags,
        ctor: Option<Ctor>,
        dtor: Option<Dtor>,
    ) -> Option<Self> {
        let outside = ctor.is_some() || flags.contains(CacheFlags::TYPESAFE_BY_RCU);
        let Some(geometry) = Geometry::new(size, align, flags, outside) else {
            return None;
        };
        Some(KmemCache {
            cpu_offset: AtomicUsize::new(percpu::ZERO_AREA),
            geometry,
            debug_geometry: Geometry::debugged(size, align, flags),
            debugged: AtomicBool::new(false),
            pins: AtomicU32::new(0),
            rotor: AtomicU32::new(0),
            flags,
            name,
            size,
            ctor,
            dtor,
            is_made: false,
            registered: AtomicBool::new(false),
            own_offset: AtomicUsize::new(0),
            next: AtomicPtr::new(ptr::null_mut()),
            nodes: [const { AtomicPtr::new(ptr::null_mut()) }; MAX_NUMNODES],
        })
    }

    /// An object: in constructed state if there is a constructor, else with undefined contents
    /// (zero with [`Gfp::ZERO`]). Consults fault injection.
    #[inline]
    pub fn alloc(&'static self, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        if !gfp.contains(Gfp::NOFAULT_INJECT) && fault_inject::should_fail() {
            return Err(AllocError);
        }
        let object = match self.pop() {
            Some(object) => object,
            None => self.alloc_slow(gfp)?,
        };
        Ok(self.prepare(object, gfp))
    }

    /// An object of `node`'s memory, or near it: for data that belongs to a node. Takes locks.
    pub fn alloc_node(&'static self, node: usize, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        if !gfp.contains(Gfp::NOFAULT_INJECT) && fault_inject::should_fail() {
            return Err(AllocError);
        }
        self.ensure_registered()?;
        Ok(self.prepare(self.alloc_uncached(node, gfp)?, gfp))
    }

    #[inline(always)]
    fn prepare(&self, object: NonNull<u8>, gfp: Gfp) -> NonNull<u8> {
        debug::hand_out(self, object.as_ptr());
        if gfp.contains(Gfp::ZERO) {
            debug_assert!(self.ctor.is_none(), "zeroing would undo the constructor");
            // SAFETY: the object is the caller's, and that large (INV-CACHE-2).
            unsafe { object.write_bytes(0, self.size) };
        }
        object
    }

    /// Gives an object back, in constructed state if there is a constructor.
    ///
    /// # Safety
    /// `object` came from this cache's `alloc`, is freed once, and nobody uses it any more.
    #[inline]
    pub unsafe fn free(&'static self, object: NonNull<u8>) {
        debug::take_back(self, object.as_ptr());
        // SAFETY: the caller's promise.
        if !unsafe { self.push(object) } {
            // SAFETY: as above.
            unsafe { self.free_slow(object) };
        }
    }

    /// Fills `out` with objects, or with none. One section with preemption off for as many as main
    /// has. Consults fault injection once.
    pub fn alloc_bulk(&'static self, gfp: Gfp, out: &mut [*mut u8]) -> Result<(), AllocError> {
        if !gfp.contains(Gfp::NOFAULT_INJECT) && fault_inject::should_fail() {
            return Err(AllocError);
        }
        let mut n = 0;
        while n < out.len() {
            n += self.pop_many(&mut out[n..]);
            if n == out.len() {
                break;
            }
            match self.alloc_slow(gfp) {
                Ok(object) => out[n] = object.as_ptr(),
                Err(e) => {
                    for &object in &out[..n] {
                        debug::hand_out(self, object);
                    }
                    // SAFETY: objects that this call took, and that nobody has seen.
                    unsafe { self.free_bulk(&out[..n]) };
                    return Err(e);
                }
            }
            n += 1;
        }
        for &object in &*out {
            // SAFETY: an object is never at address zero.
            self.prepare(unsafe { NonNull::new_unchecked(object) }, gfp);
        }
        Ok(())
    }

    /// As many objects as main has, up to the length of `out`.
    fn pop_many(&self, out: &mut [*mut u8]) -> usize {
        arch::preempt_disable();
        let cpu = self.this_cpu();
        // SAFETY: preemption is off (INV-SHEAF-1); the objects below `size` are free (INV-SHEAF-2).
        let n = unsafe {
            let size = (*cpu).size as usize;
            let n = size.min(out.len());
            if n > 0 {
                (*cpu).size = (size - n) as u32;
                add(&(*cpu).allocs, n as u64);
                let from = Sheaf::objects((*cpu).main).add(size - n);
                ptr::copy_nonoverlapping(from, out.as_mut_ptr(), n);
            }
            n
        };
        arch::preempt_enable();
        n
    }

    /// Gives objects back: those of this node in one section with preemption off, as far as main
    /// has room.
    ///
    /// # Safety
    /// As [`free`](Self::free), for each.
    pub unsafe fn free_bulk(&'static self, objects: &[*mut u8]) {
        let mut left = objects;
        while !left.is_empty() {
            // SAFETY: the caller's promise.
            let n = unsafe { self.push_many(left) };
            left = &left[n..];
            if let [object, rest @ ..] = left {
                // SAFETY: the caller's promise; an object is never at address zero.
                unsafe { self.free(NonNull::new_unchecked(*object)) };
                left = rest;
            }
        }
    }

    /// Puts objects into main until there is no room or one of another node; returns how many.
    ///
    /// # Safety
    /// As [`free`](Self::free).
    unsafe fn push_many(&self, objects: &[*mut u8]) -> usize {
        arch::preempt_disable();
        let cpu = self.this_cpu();
        let mut n = 0;
        // SAFETY: preemption is off (INV-SHEAF-1); there is room below `capacity`.
        unsafe {
            let size = (*cpu).size as usize;
            let room = ((*cpu).capacity as usize)
                .saturating_sub(size)
                .min(objects.len());
            while n < room && !is_remote(NonNull::new_unchecked(objects[n])) {
                debug::take_back(self, objects[n]);
                Sheaf::objects((*cpu).main).add(size + n).write(objects[n]);
                n += 1;
            }
            if n > 0 {
                (*cpu).size = (size + n) as u32;
                add(&(*cpu).frees, n as u64);
            }
        }
        arch::preempt_enable();
        n
    }

    /// The fast path of `alloc`.
    #[inline(always)]
    fn pop(&self) -> Option<NonNull<u8>> {
        arch::preempt_disable();
        let cpu = self.this_cpu();
        // SAFETY: preemption is off (INV-SHEAF-1); the objects below `size` are free (INV-SHEAF-2).
        let object = unsafe {
            let Some(n) = (*cpu).size.checked_sub(1) else {
                arch::preempt_enable();
                return None;
            };
            debug::enter(cpu);
            arch::interleave();
            debug_assert!(!(*cpu).main.is_null(), "slab: a sheaf left a fast path");
            (*cpu).size = n;
            bump(&(*cpu).allocs);
            let object = Sheaf::objects((*cpu).main).add(n as usize).read();
            debug::leave(cpu);
            NonNull::new_unchecked(object)
        };
        arch::preempt_enable();
        Some(object)
    }

    /// The fast path of `free`; false if it does not apply.
    ///
    /// # Safety
    /// As [`free`](Self::free).
    #[inline(always)]
    unsafe fn push(&self, object: NonNull<u8>) -> bool {
        arch::preempt_disable();
        let cpu = self.this_cpu();
        // SAFETY: preemption is off (INV-SHEAF-1); there is room below `capacity`.
        unsafe {
            let n = (*cpu).size;
            if n >= (*cpu).capacity || is_remote(object) {
                arch::preempt_enable();
                return false;
            }
            arch::interleave();
            debug_assert!(!(*cpu).main.is_null(), "slab: a sheaf left a fast path");
            (*cpu).size = n + 1;
            bump(&(*cpu).frees);
            Sheaf::objects((*cpu).main)
                .add(n as usize)
                .write(object.as_ptr());
        }
        arch::preempt_enable();
        true
    }

    /// This CPU's part. Preemption is off, or the pointer is not used.
    #[inline(always)]
    pub(crate) fn this_cpu(&self) -> *mut CpuCache {
        // Acquire: the part is initialised.
        (arch::this_cpu_base() + self.cpu_offset.load(Acquire)) as *mut CpuCache
    }

    /// This CPU's part if the fast paths are open: one look at the offset. Whoever looked twice, once whether it is open
    /// and once for the part, could work on the area of zeroes. Preemption is off while the part is used.
    #[inline]
    pub(crate) fn open_part(&self) -> Option<*mut CpuCache> {
        let mut offset = self.cpu_offset.load(Acquire);
        if offset == percpu::ZERO_AREA {
            return None;
        }
        if crate::planted("a second look at the offset") {
            arch::interleave();
            offset = self.cpu_offset.load(Acquire);
        }
        Some((arch::this_cpu_base() + offset) as *mut CpuCache)
    }

    /// `cpu`'s own part; null: there is none.
    pub(crate) fn own_part(&self, cpu: usize) -> *mut CpuCache {
        match self.own_offset.load(Acquire) {
            0 => ptr::null_mut(),
            offset => (arch::percpu_base(cpu) + offset) as *mut CpuCache,
        }
    }

    /// Whether the fast paths are closed: not registered, NO_SHEAVES, or frozen.
    pub(crate) fn is_closed(&self) -> bool {
        self.cpu_offset.load(Acquire) == percpu::ZERO_AREA
    }

    /// Points the fast paths at `offset` (INV-CACHE-1).
    pub(crate) fn set_cpu_offset(&self, offset: usize) {
        self.cpu_offset.store(offset, Release);
    }

    /// Whether the cache is in the list of caches and has its nodes.
    pub(crate) fn is_registered(&self) -> bool {
        self.registered.load(Acquire)
    }

    pub(crate) fn set_registered(&self, yes: bool) {
        self.registered.store(yes, Release);
    }

    /// The part of a node. The cache is registered.
    #[inline]
    pub(crate) fn node(&self, id: usize) -> &Node {
        let node = self.nodes[id].load(Acquire);
        debug_assert!(!node.is_null(), "slab {}: used after its end", self.name);
        // SAFETY: set for every node before the cache is registered, until it is destroyed.
        unsafe { &*node }
    }

    /// Not for fast paths.
    pub(crate) fn geometry(&self) -> &Geometry {
        match &self.debug_geometry {
            Some(g) if self.is_debugged() => g,
            _ => &self.geometry,
        }
    }

    /// Whether the cache is in debug mode.
    pub fn is_debugged(&self) -> bool {
        self.debugged.load(Relaxed)
    }

    /// Looks whether the boot line wants this cache debugged. Before it is registered.
    pub(crate) fn decide_debug(&self) {
        let can = self.debug_geometry.is_some() && !self.flags.contains(CacheFlags::NO_SHEAVES);
        self.debugged
            .store(can && check::is_wanted(self.name), Relaxed);
    }

    /// Whether the cache has fast paths at all.
    pub(crate) fn has_fast_paths(&self) -> bool {
        !self
            .flags
            .intersects(CacheFlags::NO_SHEAVES.union(CacheFlags::INTERLEAVE))
            && !self.is_debugged()
    }

    pub(crate) fn flags(&self) -> CacheFlags {
        self.flags
    }

    pub(crate) fn ctor(&self) -> Option<Ctor> {
        self.ctor
    }

    pub(crate) fn dtor(&self) -> Option<Dtor> {
        self.dtor
    }

    /// The cache's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Bytes per object as asked for.
    pub const fn object_size(&self) -> usize {
        self.size
    }

    /// Objects that clients hold: exact while nobody allocates or frees; visits every CPU's line.
    pub fn active(&self) -> usize {
        if !self.is_registered() {
            return 0;
        }
        if self.flags.contains(CacheFlags::NO_SHEAVES) {
            return self.nodes().map(|node| node.lists.lock().in_use).sum();
        }
        let (allocs, frees) = self.op_counts();
        allocs.wrapping_sub(frees) as usize
    }

    /// Allocations and frees, summed over the CPUs. Frees are read first: the difference is not
    /// below zero.
    fn op_counts(&self) -> (u64, u64) {
        let sum = |which: fn(&CpuCache) -> &AtomicU64| {
            (0..arch::nr_cpu_ids())
                .map(|cpu| self.own_part(cpu))
                .filter(|part| !part.is_null())
                // SAFETY: a registered cache's part is mapped; only its atomics are looked at.
                .map(|part| which(unsafe { &*part }).load(Relaxed))
                .fold(0, u64::wrapping_add)
        };
        let frees = sum(|part| &part.frees);
        (sum(|part| &part.allocs), frees)
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        (0..arch::nr_node_ids()).map(|id| self.node(id))
    }

    /// The cache's figures. Takes each node's lock in turn.
    pub fn stats(&self) -> CacheStats {
        let mut stats = CacheStats {
            name: self.name,
            object_size: self.size,
            stride: self.geometry().stride as usize,
            ..CacheStats::default()
        };
        if !self.is_registered() {
            return stats;
        }
        let mut in_use = 0;
        for node in self.nodes() {
            let lists = node.lists.lock();
            in_use += lists.in_use;
            stats.total += lists.objects;
            stats.pages += lists.pages;
        }
        stats.active = self.active();
        stats.cached = in_use.saturating_sub(stats.active);
        (stats.allocs, stats.frees) = self.op_counts();
        stats
    }
}

/// Adds one to a count that only this CPU writes.
#[inline(always)]
pub(crate) fn bump(count: &AtomicU64) {
    count.store(count.load(Relaxed).wrapping_add(1), Relaxed);
}

/// Adds to a count that only this CPU writes.
fn add(count: &AtomicU64, n: u64) {
    count.store(count.load(Relaxed).wrapping_add(n), Relaxed);
}

/// Whether the object is of another node than this CPU's. Preemption is off.
#[inline(always)]
pub(crate) fn is_remote(object: NonNull<u8>) -> bool {
    // No look at the number of nodes first: it would cost more than it saves.
    PageRef::node_of_virt(object.as_ptr()) != arch::numa_node_id()
}
