//! Taking objects back from sheaves: shrink, destroy, the list of live objects.
//!
//! Problem: sheaves of other CPUs are changed without locks, so nobody may touch them from outside,
//! and interrupting every CPU for it would be rude (and no help: the interrupt may fall into the
//! middle of a fast path).
//!
//! Mechanism: *freeze*. The cache's `cpu_offset` is pointed at `percpu::ZERO_AREA`, which looks like
//! an empty sheaf of capacity 0, so that every later operation takes the slow path, sees that the
//! cache is closed and works on slabs directly. Operations that had read the old offset run with
//! preemption off, which is an RCU read-side section: after one grace period they are over, and
//! the sheaves of all CPUs belong to the drainer. *Thaw* points the offset back. No interrupts, no
//! flag tested on the fast paths, and allocation goes on meanwhile.
//!
//! Lock order: `slab_drain` (a mutex) > everything else of this crate. All functions here may
//! sleep; the scheduler must run.
//!
//! INV-DRAIN-1: between freeze and thaw, after the grace period, the holder of `slab_drain` alone
//! touches the CpuCaches of the cache, except for the counts of operations.

use crate::cache::{DestroyError, KmemCache};
use crate::page::Slab;
use crate::report::report;
use crate::sheaf::{CpuCache, Sheaf};
use crate::{check, reclaim, registry};
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::*;
use ksync::{LockClass, Mutex, arch, rcu};

static CLASS: LockClass = LockClass::new("slab_drain");
pub(crate) static DRAIN: Mutex<()> = Mutex::new((), &CLASS);

/// More objects than a slab has.
const SLAB_OBJECTS_MAX: usize = 512;
/// Live objects that a failed destroy names, per node.
const LIVE_REPORTED: usize = 16;

/// Gives the free memory of every cache back; returns the number of pages. One grace period.
/// May sleep.
pub fn shrink_all() -> usize {
    let _held = DRAIN.lock();
    registry::for_each(KmemCache::close);
    rcu::synchronize();
    let mut pages = 0;
    registry::for_each(|cache| {
        // A cache registered since the first pass is not closed.
        if cache.is_closed() {
            // SAFETY: closed before a grace period (INV-DRAIN-1).
            unsafe { cache.drain() };
            pages += cache.discard_free_slabs();
            cache.thaw();
        }
    });
    // Twice: what the first pass freed of sheaves and node parts.
    registry::for_each(|cache| pages += cache.discard_free_slabs());
    reclaim::run_pending();
    pages
}

/// Reports what clients hold of the debugged caches and have allocated at time stamp `since` or later, with the call
/// sites: who keeps what a leak check misses. A grace period per debugged cache. May sleep.
pub fn report_live(since: u64) {
    let _held = DRAIN.lock();
    registry::for_each(|cache| {
        if cache.is_debugged() {
            cache.freeze_and_drain();
            cache.name_live(since);
            cache.thaw();
        }
    });
}

impl KmemCache {
    /// Gives free memory back: all sheaves, then all slabs without a used object. Returns the
    /// number of pages. May sleep (a grace period).
    pub fn shrink(&'static self) -> usize {
        if !self.is_registered() {
            return 0;
        }
        let _held = DRAIN.lock();
        self.freeze_and_drain();
        let pages = self.discard_free_slabs();
        self.thaw();
        reclaim::run_pending();
        pages
    }

    /// Frees everything the cache has, if clients hold none of its objects; a cache made by
    /// [`create`](Self::create) is gone then, a static one as if it had never been used. With live
    /// objects nothing is freed: see [`for_each_live`](Self::for_each_live) for a report.
    /// May sleep (a grace period or two).
    ///
    /// # Safety
    /// Nobody uses the cache during the call, nor after an Ok (a static one may be used again).
    pub unsafe fn destroy(&'static self) -> Result<(), DestroyError> {
        let held = DRAIN.lock();
        if self.is_registered() {
            self.freeze_and_drain();
            let active = self.active();
            if active != 0 {
                self.report_live(active);
                self.thaw();
                return Err(DestroyError::Busy(active));
            }
            // Reclaim may be at the cache; afterwards nobody makes slabs wait any more.
            registry::unlink(self);
            self.discard_free_slabs();
            assert!(self.nodes().all(|node| node.lists.lock().objects == 0));
            // Slabs that wait for a grace period, or for the worker, know the cache.
            rcu::barrier();
            if !crate::planted("destroy forgets the worker") {
                reclaim::run_pending();
            }
            // SAFETY: no objects, no sheaves, and no users by the caller's promise.
            unsafe { registry::unregister(self) };
        }
        drop(held);
        // SAFETY: as above.
        unsafe { registry::release(self) };
        Ok(())
    }

    /// Names the objects that clients still hold when the cache is to be destroyed.
    fn report_live(&self, active: usize) {
        let name = self.name();
        report(format_args!(
            "slab {name}: destroyed with {active} live objects; the cache and its memory stay"
        ));
        self.name_live(0);
    }

    /// Names objects that clients hold, a few per node; of a debugged cache those allocated at `since` or later. The
    /// cache is frozen and drained.
    fn name_live(&self, since: u64) {
        let name = self.name();
        for node in self.nodes() {
            // Gathered under the lock, reported without it.
            let mut found = [core::ptr::null_mut(); LIVE_REPORTED];
            let mut nr = 0;
            node.lists.lock().for_each(|slab| {
                self.live_on(slab, &mut |object| {
                    let track = check::allocated_by(self, object.as_ptr());
                    if track.is_some_and(|track| track.cycles < since) {
                        return;
                    }
                    if let Some(slot) = found.get_mut(nr) {
                        *slot = object.as_ptr();
                        nr += 1;
                    }
                });
            });
            for &object in &found[..nr] {
                match check::allocated_by(self, object) {
                    Some(track) => report(format_args!(
                        "slab {name}: {object:p} is live, allocated {track}"
                    )),
                    None => report(format_args!("slab {name}: {object:p} is live")),
                }
            }
        }
    }

    /// Calls `f` with each object that a client holds: exact if nobody allocates or frees
    /// meanwhile. For leak reports. `f` runs under the node's list lock and must not use the cache.
    /// May sleep (a grace period).
    pub fn for_each_live(&'static self, mut f: impl FnMut(NonNull<u8>)) {
        if !self.is_registered() {
            return;
        }
        let _held = DRAIN.lock();
        self.freeze_and_drain();
        for node in self.nodes() {
            node.lists
                .lock()
                .for_each(|slab| self.live_on(slab, &mut f));
        }
        self.thaw();
    }

    /// The objects of a slab that are handed out. With sheaves drained these are clients'.
    fn live_on(&self, slab: Slab, f: &mut impl FnMut(NonNull<u8>)) {
        let mut free = [0u64; SLAB_OBJECTS_MAX / 64];
        let base = slab.object(self, 0) as usize;
        slab.for_each_free(self, |object| {
            let i = (object as usize - base) / self.geometry().stride as usize;
            free[i / 64] |= 1 << (i % 64);
        });
        for i in 0..slab.objects() {
            if free[i / 64] >> (i % 64) & 1 == 0 {
                NonNull::new(slab.object(self, i))
                    .into_iter()
                    .for_each(&mut *f);
            }
        }
    }

    /// Closes the fast paths. Those in progress go on until a grace period has passed.
    fn close(&self) {
        self.set_cpu_offset(percpu::ZERO_AREA);
    }

    fn freeze_and_drain(&'static self) {
        self.close();
        if !crate::planted("shrink does not wait for fast paths") {
            rcu::synchronize();
        }
        // SAFETY: closed before a grace period (INV-DRAIN-1).
        unsafe { self.drain() };
    }

    /// Opens the fast paths, if the cache has any.
    fn thaw(&self) {
        let own = self.own_offset.load(Relaxed);
        if own != 0 && self.has_fast_paths() {
            self.set_cpu_offset(own);
        }
    }

    /// Returns the objects of all sheaves to their slabs and frees the sheaves.
    ///
    /// # Safety
    /// INV-DRAIN-1: the cache is frozen and `slab_drain` is held.
    unsafe fn drain(&'static self) {
        for cpu in 0..arch::nr_cpu_ids() {
            let part = self.own_part(cpu);
            if part.is_null() {
                break;
            }
            // SAFETY: INV-DRAIN-1; sheaves are live and ours now.
            unsafe {
                let main = CpuCache::take_main(part);
                for sheaf in [main, (*part).spare, (*part).remote] {
                    self.flush_and_free(sheaf);
                }
                (*part).spare = ptr::null_mut();
                (*part).remote = ptr::null_mut();
            }
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
    }

    /// Null is ignored.
    ///
    /// # Safety
    /// The sheaf is the caller's.
    pub(crate) unsafe fn flush_and_free(&'static self, sheaf: *mut Sheaf) {
        if !sheaf.is_null() {
            // SAFETY: the caller's promise.
            unsafe {
                self.flush(sheaf, (*sheaf).size);
                self.free_sheaf(sheaf);
            }
        }
    }

    /// Frees every slab without a used object; returns the number of pages.
    pub(crate) fn discard_free_slabs(&'static self) -> usize {
        self.nodes()
            .map(|node| {
                if crate::planted("reclaim looks before it locks") {
                    let seen = node.lists.lock().first_free();
                    arch::interleave();
                    node.lists.lock().detach_seen(seen).discard(self);
                }
                let chain = node.lists.lock().detach_free();
                arch::interleave();
                chain.discard(self)
            })
            .sum()
    }
}
