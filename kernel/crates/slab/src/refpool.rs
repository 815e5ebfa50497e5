//! `RefPool<T>`: spare references to one object, some per CPU, so that taking and dropping one is no shared write.
//!
//! Problem. An object that everything refers to (a pid namespace, by each of its pids) has one count, and every
//! new and every dropped reference moves its cache line to another CPU, with the object's other fields on it.
//!
//! Mechanism. A CPU takes [`BULK`] references at once and hands them out one by one; references that are put back
//! refill its stock, and what is too much is given back in bulk. The object's count is then an upper bound of those in
//! use; it falls to zero only after [`close`](RefPool::close), which empties the stocks: so the owner of the
//! object decides when.
//!
//! Invariants
//! - INV-POOL-1 (owned): `object`, once set, has `stock` references, summed over the CPUs, that
//!   belong to the pool.
//! - INV-POOL-2 (own CPU): a stock is changed by its CPU with preemption off, or by `close`.

use crate::{AllocError, KArc, Object};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering::*};
use ksync::{PreemptGuard, SpinLock, lock_class};
use percpu::PerCpu;

/// References that a CPU takes or gives back at once.
const BULK: u32 = 64;

/// Spare references to one `T`. Closed until [`open`](Self::open) and after [`close`](Self::close): then
/// references are counted one by one.
pub struct RefPool<T: Object> {
    /// The object while the pool is open.
    target: AtomicPtr<T>,
    /// The object since the pool was opened.
    object: AtomicPtr<T>,
    /// `stocks` is initialised.
    was_opened: AtomicBool,
    stocks: UnsafeCell<MaybeUninit<PerCpu<AtomicU32>>>,
    opening: SpinLock<()>,
    owns: PhantomData<KArc<T>>,
}

// SAFETY: a set of KArc<T> (INV-POOL-1), reached by one CPU at a time (INV-POOL-2).
unsafe impl<T: Object + Send + Sync> Send for RefPool<T> {}
// SAFETY: as above; `stocks` is written once, before `target` is set with Release.
unsafe impl<T: Object + Send + Sync> Sync for RefPool<T> {}

impl<T: Object> RefPool<T> {
    /// A closed pool; no memory.
    pub const fn new() -> Self {
        RefPool {
            target: AtomicPtr::new(ptr::null_mut()),
            object: AtomicPtr::new(ptr::null_mut()),
            was_opened: AtomicBool::new(false),
            stocks: UnsafeCell::new(MaybeUninit::uninit()),
            opening: SpinLock::new((), lock_class!("ref_pool")),
            owns: PhantomData,
        }
    }

    /// Begins to keep references to `object`, the first time it is called.
    pub fn open(&self, object: &KArc<T>) -> Result<(), AllocError> {
        if self.was_opened.load(Relaxed) {
            return Ok(());
        }
        let fresh = PerCpu::new(|_| AtomicU32::new(0)).map_err(|_| AllocError)?;
        let held = self.opening.lock();
        if self.was_opened.load(Relaxed) {
            drop(held);
            drop(fresh);
            return Ok(());
        }
        // SAFETY: not yet open, so nobody reads it; the lock keeps others out.
        unsafe { (*self.stocks.get()).write(fresh) };
        self.object.store(KArc::as_ptr(object).cast_mut(), Relaxed);
        self.was_opened.store(true, Relaxed);
        self.target.store(KArc::as_ptr(object).cast_mut(), Release);
        Ok(())
    }

    #[inline(always)]
    fn stocks_for(&self, object: &KArc<T>) -> Option<&PerCpu<AtomicU32>> {
        if self.target.load(Acquire) != KArc::as_ptr(object).cast_mut() {
            return None;
        }
        // SAFETY: written before `target` was set, and never since.
        Some(unsafe { (*self.stocks.get()).assume_init_ref() })
    }

    /// One more reference to `object`.
    #[inline(always)]
    pub fn get(&self, object: &KArc<T>) -> KArc<T> {
        let here = PreemptGuard::new();
        let Some(stocks) = self.stocks_for(object) else {
            return object.clone();
        };
        let stock = stocks.this_cpu(&here);
        let mut nr = stock.load(Relaxed);
        if nr == 0 {
            KArc::add_refs(object, BULK);
            nr = BULK;
        }
        stock.store(nr - 1, Relaxed);
        // SAFETY: one of the references that the pool owned (INV-POOL-1), which it has just counted out.
        unsafe { KArc::from_raw(NonNull::new_unchecked(KArc::as_ptr(object).cast_mut())) }
    }

    /// Gives a reference back. `pool` finds the object's pool.
    #[inline(always)]
    pub fn put(object: KArc<T>, pool: impl FnOnce(&T) -> &RefPool<T>) {
        let here = PreemptGuard::new();
        let Some(stocks) = pool(&object).stocks_for(&object) else {
            drop(here);
            return drop(object);
        };
        let stock = stocks.this_cpu(&here);
        let nr = stock.load(Relaxed) + 1;
        // INVARIANT: INV-POOL-1: the reference is the pool's from here on.
        if nr <= 2 * BULK {
            stock.store(nr, Relaxed);
        } else {
            stock.store(nr - BULK, Relaxed);
            // Not the last: the stock has more, and the owner its own.
            KArc::sub_refs(&object, BULK);
        }
        core::mem::forget(object);
    }

    /// From here on references are counted one by one. Whoever got or put one before has ended an RCU section when
    /// [`drain`](Self::drain) is called.
    pub fn close(&self) {
        self.target.store(ptr::null_mut(), Release);
    }

    /// Gives back all that is in stock. After [`close`](Self::close) and a grace period; the caller holds a reference to
    /// `object`, the one that the pool was opened for.
    pub fn drain(&self, object: &T) {
        if !self.was_opened.load(Relaxed) || !ptr::eq(self.object.load(Relaxed), object) {
            return;
        }
        // SAFETY: initialised; closed, and a grace period has passed: nobody else looks at the stocks.
        let stocks = unsafe { (*self.stocks.get()).assume_init_ref() };
        let nr: u32 = stocks.iter().map(|stock| stock.swap(0, Relaxed)).sum();
        for _ in 0..nr {
            // SAFETY: references that the pool owned (INV-POOL-1), each given back once; the caller's stays.
            drop(unsafe { KArc::from_raw(NonNull::from(object)) });
        }
    }
}

impl<T: Object> Drop for RefPool<T> {
    fn drop(&mut self) {
        if *self.was_opened.get_mut() {
            // SAFETY: initialised, and not used again.
            unsafe { self.stocks.get_mut().assume_init_drop() };
        }
    }
}
