//! The `bitmap-hash` map: a bit per number and one hash for what numbers stand for. Linux before 4.15.
//!
//! Mechanism. Each namespace has a [`PagedBitmap`] and the number given out last; a number is taken by an
//! atomic test-and-set, level by level, without a lock. Then one hold of `pidmap_lock` enters the pid into
//! the hash, once per level, and counts it. The last number is advanced by a compare-and-swap in which the
//! cyclically later value wins, so that numbers are not reused at once. Free takes the pid out of the hash under
//! the lock and clears the bits after it. A look-up hashes; a listing walks the bits and looks each up.
//!
//! Linux never had set_tid on it: here a chosen number is one more test-and-set, and leaves `last` alone.
//!
//! Memory: a page of bits (4 KiB) for each 32,768 numbers of which one was ever used, for as long as the
//! namespace lives; pids bring the nodes of their hash chains, where Linux embedded them in `struct pid`.
//!
//! Lock order: `pidmap_lock` is a leaf, except for the wait queue of a namespace that drains.

use crate::idr::check_listing;
use crate::map::{PidMap, PidMaps, Plan, other_kind};
use crate::namespace::{PIDNS_ADDING, PidNamespace};
use crate::object::{Extra, Pid};
use crate::{Member, PID_MAX_LIMIT, PidError};
use ::xarray::{HashTable, PagedBitmap};
use core::sync::atomic::{AtomicU32, Ordering::*};
use ksync::lock_class;
use slab::{AllocError, KArc};

/// 64-bit words in a page of bits.
const WORDS: usize = if cfg!(test) { 4 } else { 512 };
const PAGES: usize = PID_MAX_LIMIT as usize / (WORDS * 64);

/// The numbers of one namespace.
pub struct BitmapHashMap<T: Member> {
    bits: PagedBitmap<PAGES, WORDS>,
    /// One more than the number given out last, cyclically.
    cursor: AtomicU32,
    /// Shared by a tree of namespaces.
    hash: KArc<HashTable<Pid<T>>>,
}

impl<T: Member> BitmapHashMap<T> {
    #[inline(always)]
    fn space(&self) -> usize {
        core::ptr::from_ref(self) as usize
    }

    /// Moves the cursor behind `nr`, found from `start`, unless somebody moved it further meanwhile.
    #[inline]
    fn advance(&self, start: u32, nr: u32) {
        let mut seen = start;
        loop {
            match self.cursor.compare_exchange(seen, nr + 1, Relaxed, Relaxed) {
                Ok(_) => return,
                // Distances from where this search began: the later one stays.
                Err(now) if now.wrapping_sub(start) >= (nr + 1).wrapping_sub(start) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// The next number below `limit`.
    #[inline]
    fn take_next<const N: usize>(&self, limit: u32) -> Result<u32, PidError> {
        let cursor = self.cursor.load(Relaxed);
        let min = Plan::<T, N>::automatic_min(cursor);
        let start = cursor.max(min);
        let found = match self.bits.take_from(start, limit)? {
            Some(nr) => Some(nr),
            None => self.bits.take_from(min, start.min(limit))?,
        };
        let nr = found.ok_or(PidError::Exhausted)?;
        self.advance(cursor, nr);
        Ok(nr)
    }

    #[inline]
    fn take<const N: usize>(&self, plan: &Plan<'_, T, N>, at: usize) -> Result<u32, PidError> {
        match plan.tids.get(at) {
            None => self.take_next::<N>(plan.limits[at]),
            Some(&tid) if self.bits.take(tid)? => Ok(tid),
            Some(_) => Err(PidError::Exists),
        }
    }
}

/// Takes the numbers of all levels. `nr_taken` says how many are the caller's, also on error.
#[inline(always)]
fn take_all<T: Member, const N: usize>(
    plan: &Plan<'_, T, N>,
    nr_taken: &mut usize,
) -> Result<(), PidError> {
    for (at, ns) in plan.ns.chain().take(N).enumerate() {
        let nr = BitmapHashMap::of(ns).take(plan, at)?;
        plan.pid.set_nr(ns.level(), nr);
        *nr_taken += 1;
        Plan::<T, N>::check_first(ns, nr)?;
    }
    Ok(())
}

/// Shows the pid at every level, in one hold.
#[inline(always)]
fn publish<T: Member, const N: usize>(plan: &Plan<'_, T, N>) -> Result<(), PidError> {
    let leaf = BitmapHashMap::of(plan.ns);
    let mut guard = leaf.hash.lock();
    if !plan.ns.chain().take(N).all(|ns| ns.is_adding()) {
        return Err(PidError::NoMemory);
    }
    let Some(chain) = plan.pid.chain() else {
        return Err(PidError::NoMemory);
    };
    for (at, ns) in plan.ns.chain().take(N).enumerate() {
        let space = BitmapHashMap::of(ns).space();
        guard.insert(
            chain,
            at,
            space,
            plan.pid.nr_at(ns.level()),
            plan.pid.clone(),
        );
        let n = &ns.pid_allocated;
        n.store(n.load(Relaxed) + 1, Relaxed);
    }
    Ok(())
}

impl<T: Member> PidMap<T> for BitmapHashMap<T> {
    const NAME: &'static str = "bitmap-hash";

    #[inline(always)]
    fn extra(nr: usize) -> Result<Extra<T>, AllocError> {
        ::xarray::Chain::new(nr).map(Extra::Chain)
    }

    fn new(parent: Option<&Self>) -> Result<Self, AllocError> {
        let hash = match parent {
            Some(parent) => parent.hash.clone(),
            None => KArc::new(HashTable::new(lock_class!("pidmap_lock"))?)?,
        };
        Ok(BitmapHashMap {
            bits: PagedBitmap::new()?,
            cursor: AtomicU32::new(0),
            hash,
        })
    }

    #[inline(always)]
    fn of(ns: &PidNamespace<T>) -> &Self {
        match ns.map() {
            PidMaps::BitmapHash(map) => map,
            _ => other_kind(),
        }
    }

    #[inline]
    fn alloc<const N: usize>(plan: &Plan<'_, T, N>) -> Result<(), PidError> {
        let leaf = Self::of(plan.ns);
        if plan.ns.pid_allocated.load(Relaxed) == PIDNS_ADDING {
            leaf.cursor.store(0, Relaxed);
        }
        let mut nr_taken = 0;
        let mut result = take_all(plan, &mut nr_taken);
        if result.is_ok() {
            result = publish(plan);
        }
        if result.is_err() {
            for ns in plan.ns.chain().take(nr_taken) {
                Self::of(ns).bits.put(plan.pid.nr_at(ns.level()));
            }
        }
        result
    }

    #[inline]
    fn free(pid: &KArc<Pid<T>>) {
        let Some(chain) = pid.chain() else { return };
        {
            let mut guard = Self::of(pid.ns()).hash.lock();
            if !pid.mark_freed() {
                return;
            }
            for (at, ns) in pid.ns().chain().enumerate() {
                // Not the last reference: the caller has one.
                let removed = guard.remove(chain, at);
                debug_assert!(removed.is_some_and(|p| KArc::ptr_eq(&p, pid)), "INV-PID-2");
                let n = ns.pid_allocated.load(Relaxed) - 1;
                ns.pid_allocated.store(n, Release);
                ns.note_freed(n);
            }
        }
        for ns in pid.ns().chain() {
            Self::of(ns).bits.put(pid.nr_at(ns.level()));
        }
    }

    #[inline]
    fn find(&self, nr: u32) -> Option<KArc<Pid<T>>> {
        self.hash.find(self.space(), nr)
    }

    fn find_ge(&self, nr: u32) -> Option<(u32, KArc<Pid<T>>)> {
        let mut at = nr;
        loop {
            at = self.bits.next_set(at)?;
            if let Some(pid) = self.find(at) {
                return Some((at, pid));
            }
            at += 1;
        }
    }

    fn disable(&self, ns: &PidNamespace<T>) {
        let _guard = self.hash.lock();
        let n = &ns.pid_allocated;
        n.store(n.load(Relaxed) & !PIDNS_ADDING, Release);
    }

    fn check_invariants(&self, ns: &PidNamespace<T>) {
        check_listing(self, ns, self.bits.check_invariants().0);
    }
}
