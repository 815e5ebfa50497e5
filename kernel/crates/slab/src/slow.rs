//! What happens when a sheaf is empty, full, missing, or closed.
//!
//! ```text
//! alloc: main -> spare -> full sheaf of the barn -> refill main from the node's partial slabs
//!        -> a new slab of this node -> partial slabs of other nodes -> a new slab anywhere
//! free:  main -> spare -> empty sheaf for main, main to the barn -> flush main to its slabs
//!        object of another node: remote sheaf -> flush it to the nodes
//! ```
//!
//! A new slab of this node comes before other nodes' partial slabs: locality is worth a page.
//!
//! The part that works on this CPU's sheaves runs with preemption off throughout. Pages are
//! allocated and constructors run outside of it.

use crate::cache::{CacheFlags, KmemCache, bump, is_remote};
use crate::node::return_objects;
use crate::page::Slab;
use crate::sheaf::{CpuCache, Sheaf};
use crate::{AllocError, check, debug, registry};
use core::ptr::{self, NonNull};
use core::slice;
use core::sync::atomic::Ordering::Relaxed;
use ksync::{PreemptGuard, arch};
use page_alloc::{Gfp, PageKind, PageRef};

impl KmemCache {
    /// `alloc` when `pop` failed.
    #[cold]
    #[inline(never)]
    pub(crate) fn alloc_slow(&'static self, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.ensure_registered()?;
        let local = {
            let _guard = PreemptGuard::new();
            let local = arch::numa_node_id();
            if let Some(cpu) = self.open_part() {
                // SAFETY: preemption is off and the cache is not frozen (INV-SHEAF-1): if it is
                // being frozen now, the drainer waits for us.
                let object = unsafe {
                    debug::enter(cpu);
                    let object = self.pop_or_refill(cpu, local);
                    debug::leave(cpu);
                    object
                };
                if let Some(object) = object {
                    return Ok(object);
                }
            }
            local
        };
        self.alloc_uncached(local, gfp)
    }

    /// Registers a static cache on first use.
    #[inline]
    pub(crate) fn ensure_registered(&'static self) -> Result<(), AllocError> {
        if self.is_registered() {
            Ok(())
        } else {
            registry::register(self)
        }
    }

    /// An object from a sheaf, after doing what it takes short of a new slab.
    ///
    /// # Safety
    /// INV-SHEAF-1: the caller may touch `cpu`, whose node is `local`.
    unsafe fn pop_or_refill(
        &'static self,
        cpu: *mut CpuCache,
        local: usize,
    ) -> Option<NonNull<u8>> {
        let node = self.node(local);
        // SAFETY: INV-SHEAF-1 by the caller's promise, here and below; sheaves are live.
        unsafe {
            if (*cpu).size == 0 && !(*cpu).spare.is_null() && (*(*cpu).spare).size > 0 {
                CpuCache::swap_spare(cpu);
            }
            if (*cpu).size == 0 {
                if !(*cpu).main.is_null() {
                    (*(*cpu).main).size = 0;
                }
                let exchanged = node.barn.lock().exchange_empty((*cpu).main);
                if let Some((full, left_over)) = exchanged {
                    CpuCache::set_main(cpu, full);
                    self.free_sheaf(left_over);
                }
            }
            if (*cpu).size == 0 {
                if (*cpu).main.is_null() {
                    let empty = node.barn.lock().take_empty();
                    CpuCache::set_main(
                        cpu,
                        if empty.is_null() {
                            self.new_sheaf()
                        } else {
                            empty
                        },
                    );
                }
                let want = (*cpu).capacity as usize;
                let mut next = (want > 0).then(|| Sheaf::objects((*cpu).main))?;
                let n = node.lists.lock().take(self, want, |object| {
                    next.write(object);
                    next = next.add(1);
                });
                (*cpu).size = n as u32;
            }
            let n = ((*cpu).size as usize).checked_sub(1)?;
            (*cpu).size = n as u32;
            bump(&(*cpu).allocs);
            Some(NonNull::new_unchecked(
                Sheaf::objects((*cpu).main).add(n).read(),
            ))
        }
    }

    /// An object straight from a slab, of `node` if possible. The cache is registered.
    pub(crate) fn alloc_uncached(
        &'static self,
        node: usize,
        gfp: Gfp,
    ) -> Result<NonNull<u8>, AllocError> {
        let (node, gfp) = self.apply_policy(node, gfp);
        loop {
            let object = self
                .take_one(node)
                .map_or_else(|| self.take_elsewhere(node, gfp), Ok)?;
            if !self.is_debugged() || check::on_alloc(self, object.as_ptr()) {
                self.count(|part| bump(&part.allocs));
                return Ok(object);
            }
            // Damaged: it stays handed out, to nobody.
        }
    }

    /// Where the cache's flags want the next object from.
    fn apply_policy(&self, node: usize, gfp: Gfp) -> (usize, Gfp) {
        if self.flags().contains(CacheFlags::INTERLEAVE) {
            let turn = self.rotor.fetch_add(1, Relaxed) as usize;
            return (turn % arch::nr_node_ids(), gfp);
        }
        if self.flags().contains(CacheFlags::THIS_NODE) {
            return (node, gfp | Gfp::THISNODE);
        }
        (node, gfp)
    }

    fn take_elsewhere(&'static self, node: usize, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        if let Ok(object) = self.take_from_new_slab(node, gfp | Gfp::THISNODE) {
            return Ok(object);
        }
        if gfp.contains(Gfp::THISNODE) {
            return Err(AllocError);
        }
        let nr_nodes = arch::nr_node_ids();
        (1..nr_nodes)
            .find_map(|i| self.take_one((node + i) % nr_nodes))
            .map_or_else(|| self.take_from_new_slab(node, gfp), Ok)
    }

    /// One object of a node's partial slabs.
    fn take_one(&self, node: usize) -> Option<NonNull<u8>> {
        let mut object = ptr::null_mut();
        self.node(node).lists.lock().take(self, 1, |o| object = o);
        NonNull::new(object)
    }

    /// Makes a slab, takes one object, and gives the rest to the slab's node.
    fn take_from_new_slab(&'static self, node: usize, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        let slab = self.new_slab(node, gfp)?;
        let mut object = ptr::null_mut();
        slab.take(self, 1, |o| object = o);
        self.node(slab.node()).lists.lock().add(slab);
        NonNull::new(object).ok_or(AllocError)
    }

    /// A private slab with every object constructed. The injection of failures has been consulted
    /// by `alloc`, once.
    fn new_slab(&'static self, node: usize, gfp: Gfp) -> Result<Slab, AllocError> {
        let gfp = gfp & Gfp::THISNODE | Gfp::NOFAULT_INJECT;
        let g = self.geometry();
        let page = page_alloc::alloc_pages_node(node, g.order, gfp)
            .or_else(|_| page_alloc::alloc_pages_node(node, g.order_min, gfp))
            .map_err(|_| AllocError)?;
        page.set_kind(PageKind::Slab);
        let slab = Slab::new(page, self, g.objects(page.order()));
        debug::init_slab(slab);
        if self.is_debugged() {
            check::init_slab(self, slab);
        }
        if let Err(e) = self.construct(slab) {
            page_alloc::free_pages(page);
            return Err(e);
        }
        Ok(slab)
    }

    /// Runs the constructor on every object; on failure the destructor on those built before.
    fn construct(&self, slab: Slab) -> Result<(), AllocError> {
        let Some(ctor) = self.ctor() else {
            return Ok(());
        };
        // SAFETY: an object is never at address zero.
        let object = |i| unsafe { NonNull::new_unchecked(slab.object(self, i)) };
        for i in 0..slab.objects() {
            if ctor(object(i)).is_err() {
                if let Some(dtor) = self.dtor() {
                    (0..i).rev().for_each(|i| dtor(object(i)));
                }
                return Err(AllocError);
            }
        }
        Ok(())
    }

    /// `free` when `push` failed.
    ///
    /// # Safety
    /// As [`free`](Self::free).
    #[cold]
    #[inline(never)]
    pub(crate) unsafe fn free_slow(&'static self, object: NonNull<u8>) {
        if self.is_debugged() && !check::on_free(self, object.as_ptr()) {
            return;
        }
        let _guard = PreemptGuard::new();
        self.count(|part| bump(&part.frees));
        let kept = self.open_part().is_some_and(|cpu| {
            // SAFETY: preemption is off and the cache is not frozen (INV-SHEAF-1).
            unsafe {
                debug::enter(cpu);
                let kept = if is_remote(object) && !crate::planted("remote objects stay") {
                    self.push_remote(cpu, object)
                } else {
                    self.push_or_flush(cpu, object)
                };
                debug::leave(cpu);
                kept
            }
        });
        if !kept {
            // SAFETY: the caller's promise.
            unsafe { return_objects(self, &mut [object.as_ptr()]) };
        }
    }

    /// Puts an object of this node into main, after doing what it takes. False: no sheaf.
    ///
    /// # Safety
    /// INV-SHEAF-1: the caller may touch `cpu`; the object as in `free`.
    unsafe fn push_or_flush(&'static self, cpu: *mut CpuCache, object: NonNull<u8>) -> bool {
        // SAFETY: INV-SHEAF-1 by the caller's promise; sheaves are live.
        unsafe {
            if (*cpu).size == (*cpu).capacity {
                let spare = (*cpu).spare;
                if !spare.is_null() && (*spare).size < (*spare).capacity {
                    CpuCache::swap_spare(cpu);
                } else if !self.replace_full_main(cpu) && !(*cpu).main.is_null() {
                    self.flush((*cpu).main, (*cpu).size);
                    (*cpu).size = 0;
                }
            }
            // Still no room: there is no main at all.
            let n = (*cpu).size;
            if n == (*cpu).capacity {
                return false;
            }
            Sheaf::objects((*cpu).main)
                .add(n as usize)
                .write(object.as_ptr());
            (*cpu).size = n + 1;
            true
        }
    }

    /// Makes an empty sheaf main. The old main becomes the spare, or goes to the barn.
    ///
    /// # Safety
    /// INV-SHEAF-1; main is full or missing, and the spare too.
    unsafe fn replace_full_main(&'static self, cpu: *mut CpuCache) -> bool {
        // SAFETY: INV-SHEAF-1 by the caller's promise; sheaves are live.
        unsafe {
            let to_spare = (*cpu).spare.is_null();
            let barn = &self.node(arch::numa_node_id()).barn;
            let mut empty = {
                let mut barn = barn.lock();
                if !to_spare && !barn.has_room() {
                    return false;
                }
                barn.take_empty()
            };
            if empty.is_null() {
                empty = self.new_sheaf();
            }
            if empty.is_null() {
                return false;
            }
            arch::interleave();
            let main = CpuCache::take_main(cpu);
            if to_spare {
                (*cpu).spare = main;
            } else if !barn.lock().put_full(main) && !crate::planted("a full barn drops a sheaf") {
                // Another CPU of the node was faster.
                self.flush(main, (*main).size);
                (*main).size = 0;
                self.free_sheaf(main);
            }
            CpuCache::set_main(cpu, empty);
            true
        }
    }

    /// Puts an object of another node into the remote sheaf. False: no sheaf.
    ///
    /// # Safety
    /// INV-SHEAF-1: the caller may touch `cpu`; the object as in `free`.
    unsafe fn push_remote(&'static self, cpu: *mut CpuCache, object: NonNull<u8>) -> bool {
        // SAFETY: INV-SHEAF-1 by the caller's promise; sheaves are live.
        unsafe {
            if (*cpu).remote.is_null() {
                (*cpu).remote = self.new_sheaf();
            }
            let remote = (*cpu).remote;
            if remote.is_null() {
                return false;
            }
            if (*remote).size == (*remote).capacity {
                self.flush(remote, (*remote).size);
                (*remote).size = 0;
            }
            Sheaf::objects(remote)
                .add((*remote).size as usize)
                .write(object.as_ptr());
            (*remote).size += 1;
            true
        }
    }

    /// Returns the first `n` objects of a sheaf to their slabs. The caller resets the count.
    ///
    /// # Safety
    /// The sheaf is the caller's and has that many objects.
    pub(crate) unsafe fn flush(&'static self, sheaf: *mut Sheaf, n: u32) {
        // SAFETY: the caller's promise; the objects are free and handed out (INV-SHEAF-2).
        unsafe {
            return_objects(
                self,
                slice::from_raw_parts_mut(Sheaf::objects(sheaf), n as usize),
            );
        }
    }

    /// An empty sheaf of this node's memory, or null. Sheaf caches have no sheaves of their own.
    fn new_sheaf(&self) -> *mut Sheaf {
        let class = self.geometry().sheaf_class as usize;
        let cache = registry::sheaf_cache(class);
        match cache.alloc_uncached(arch::numa_node_id(), Gfp::NOFAULT_INJECT) {
            Ok(memory) => {
                debug::hand_out(cache, memory.as_ptr());
                let sheaf = memory.cast().as_ptr();
                // SAFETY: objects of this cache have the size.
                unsafe { Sheaf::init(sheaf, self.geometry().capacity()) };
                sheaf
            }
            Err(AllocError) => ptr::null_mut(),
        }
    }

    /// Frees an empty sheaf; null is ignored.
    ///
    /// # Safety
    /// The sheaf is the caller's, and nobody uses it any more.
    pub(crate) unsafe fn free_sheaf(&self, sheaf: *mut Sheaf) {
        if let Some(memory) = NonNull::new(sheaf.cast::<u8>()) {
            // SAFETY: from `new_sheaf` of the same class.
            unsafe { registry::sheaf_cache(self.geometry().sheaf_class as usize).free(memory) };
        }
    }

    /// Counts an operation on this CPU, whether the fast paths are open or not.
    fn count(&self, f: impl FnOnce(&CpuCache)) {
        if self.flags().contains(CacheFlags::NO_SHEAVES) {
            return;
        }
        let _guard = PreemptGuard::new();
        // SAFETY: a registered cache's part; only its atomics are touched, by this CPU.
        f(unsafe { &*self.own_part(arch::smp_processor_id()) });
    }
}

/// Pages for something larger than the classes. `layout.align()` is at most a page, or the size.
#[cold]
pub(crate) fn alloc_large(
    layout: core::alloc::Layout,
    gfp: Gfp,
) -> Result<NonNull<u8>, AllocError> {
    percpu::ensure_ready().map_err(|_| AllocError)?;
    let order = large_order(layout.size());
    if order > page_alloc::MAX_ORDER || layout.align() > ksync::PAGE_SIZE << order {
        return Err(AllocError);
    }
    let page = page_alloc::alloc_pages(order, gfp).map_err(|_| AllocError)?;
    NonNull::new(page.virt()).ok_or(AllocError)
}

/// Frees what [`alloc_large`] gave.
///
/// # Safety
/// `memory` came from `alloc_large`, once.
#[cold]
pub(crate) unsafe fn free_large(memory: NonNull<u8>) {
    page_alloc::free_pages(PageRef::from_virt(memory.as_ptr()));
}

pub(crate) fn large_order(size: usize) -> u32 {
    size.div_ceil(ksync::PAGE_SIZE)
        .next_power_of_two()
        .trailing_zeros()
}
