//! `RestPool<T>`: objects whose last reference is gone, kept per CPU as they are, for another life.
//!
//! Problem. An object that is made and ended all the time (a pid with its numbers) goes to RCU, to the slab, comes back
//! as raw memory and is filled in anew, though most of it would be as it was.
//!
//! Mechanism. The last reference's drop offers the object to its type ([`Object::rest`](crate::Object::rest)) as an
//! [`Idle`]: alone, but for RCU readers who may still look. The type may put it into a pool, a FIFO per CPU that
//! links the blocks through their tails, and [revive](Idle::revive) it later. No grace period is needed between the two lives:
//! who comes by a stale pointer finds the count [dead](crate::arc), or the new life. What that may be taken for is the
//! type's business; what it drops is freed after a grace period as ever.
//!
//! Invariants
//! - INV-REST-1 (owned): a block between `first` and `last` of a queue is an `Idle` that the queue owns; `len` counts them.
//! - INV-REST-2 (own CPU): a queue is changed by its CPU inside an RCU section that saw the pool open, or by
//!   [`drain`](RestPool::drain).

use crate::arc::{Block, Idle};
use crate::{AllocError, Object};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering::*};
use ksync::rcu::RcuGuard;
use ksync::{SpinLock, lock_class};
use percpu::PerCpu;

/// One CPU's objects, oldest first. Atomics only for a shared view.
struct Queue<T: Object> {
    first: AtomicPtr<Block<T>>,
    last: AtomicPtr<Block<T>>,
    len: AtomicU32,
}

impl<T: Object> Queue<T> {
    const fn new() -> Self {
        Queue {
            first: AtomicPtr::new(ptr::null_mut()),
            last: AtomicPtr::new(ptr::null_mut()),
            len: AtomicU32::new(0),
        }
    }

    /// The oldest, if there are more than `min`.
    #[inline(always)]
    fn pop(&self, min: u32) -> Option<Idle<T>> {
        let len = self.len.load(Relaxed);
        if len <= min {
            return None;
        }
        self.len.store(len - 1, Relaxed);
        // SAFETY: INV-REST-1: there is one, and it is the queue's. When it was the last, `last` dangles, and is not
        // looked at before `len` is above 0 again.
        unsafe {
            let block = NonNull::new_unchecked(self.first.load(Relaxed));
            self.first.store(Block::rest_next(block), Relaxed);
            Some(Idle::from_block(block))
        }
    }

    #[inline(always)]
    fn push(&self, idle: Idle<T>) {
        let block = idle.into_block();
        let len = self.len.load(Relaxed);
        if len == 0 {
            self.first.store(block.as_ptr(), Relaxed);
        } else {
            // SAFETY: INV-REST-1: `last` is a block of the queue.
            unsafe {
                let last = NonNull::new_unchecked(self.last.load(Relaxed));
                Block::set_rest_next(last, block.as_ptr());
            }
        }
        self.last.store(block.as_ptr(), Relaxed);
        self.len.store(len + 1, Relaxed);
    }
}

/// Objects at rest. Closed until [`open`](Self::open) and after [`close`](Self::close): then it takes none.
pub struct RestPool<T: Object> {
    open: AtomicBool,
    /// `queues` is initialised.
    was_opened: AtomicBool,
    queues: UnsafeCell<MaybeUninit<PerCpu<Queue<T>>>>,
    opening: SpinLock<()>,
    owns: PhantomData<Idle<T>>,
}

// SAFETY: a set of Idle<T> (INV-REST-1), each queue reached by one CPU at a time (INV-REST-2).
unsafe impl<T: Object> Send for RestPool<T> {}
// SAFETY: as above; `queues` is written once, before `open` is set with Release.
unsafe impl<T: Object> Sync for RestPool<T> {}

impl<T: Object> RestPool<T> {
    const READERS_ARE_SAFE: () = assert!(T::RCU_FREE, "only RCU_FREE objects are offered");

    /// A closed pool; no memory.
    pub const fn new() -> Self {
        let () = Self::READERS_ARE_SAFE;
        RestPool {
            open: AtomicBool::new(false),
            was_opened: AtomicBool::new(false),
            queues: UnsafeCell::new(MaybeUninit::uninit()),
            opening: SpinLock::new((), lock_class!("rest_pool")),
            owns: PhantomData,
        }
    }

    /// Begins to take objects, the first time it is called. Any context but hard IRQ.
    pub fn open(&self) -> Result<(), AllocError> {
        if self.was_opened.load(Relaxed) {
            return Ok(());
        }
        let fresh = PerCpu::new(|_| Queue::new()).map_err(|_| AllocError)?;
        let held = self.opening.lock();
        if self.was_opened.load(Relaxed) {
            drop(held);
            drop(fresh);
            return Ok(());
        }
        // SAFETY: not yet open, so nobody reads it; the lock keeps others out.
        unsafe { (*self.queues.get()).write(fresh) };
        self.was_opened.store(true, Relaxed);
        self.open.store(true, Release);
        Ok(())
    }

    #[inline(always)]
    fn queues(&self) -> Option<&PerCpu<Queue<T>>> {
        if !self.open.load(Acquire) {
            return None;
        }
        // SAFETY: written before `open` was set, and never since.
        Some(unsafe { (*self.queues.get()).assume_init_ref() })
    }

    /// The object that has rested longest on this CPU, if more than `min` do.
    #[inline(always)]
    pub fn pop(&self, min: u32, here: &RcuGuard) -> Option<Idle<T>> {
        self.queues()?.this_cpu(here).pop(min)
    }

    /// Lets `idle` rest on this CPU, in the pool that `pool_of` finds, unless `max` do already or the pool is closed. The
    /// pool may be a part of what the object itself keeps.
    #[inline(always)]
    pub fn push(
        idle: Idle<T>,
        pool_of: impl FnOnce(&T) -> &RestPool<T>,
        max: u32,
        here: &RcuGuard,
    ) -> Result<(), Idle<T>> {
        let Some(queues) = pool_of(&idle).queues() else {
            return Err(idle);
        };
        let queue = ptr::from_ref(queues.this_cpu(here));
        // SAFETY: alive with the pool, which the object may keep: a moved Idle leaves it where it is, and what is in the
        // queue comes out after this section only (INV-REST-2).
        let queue = unsafe { &*queue };
        if queue.len.load(Relaxed) >= max {
            return Err(idle);
        }
        queue.push(idle);
        Ok(())
    }

    /// Takes no more from here on. Whoever pushed or popped before has ended an RCU section when [`drain`](Self::drain) is
    /// called.
    pub fn close(&self) {
        self.open.store(false, Release);
    }

    /// Takes all out. After [`close`](Self::close) and a grace period, once.
    pub fn drain(&self, mut f: impl FnMut(Idle<T>)) {
        if !self.was_opened.load(Relaxed) {
            return;
        }
        debug_assert!(!self.open.load(Relaxed));
        // SAFETY: initialised.
        let queues = unsafe { (*self.queues.get()).assume_init_ref() };
        for queue in queues.iter() {
            while let Some(idle) = queue.pop(0) {
                f(idle);
            }
        }
    }

    /// Objects at rest: exact while nobody pushes or pops.
    pub fn len(&self) -> usize {
        if !self.was_opened.load(Acquire) {
            return 0;
        }
        // SAFETY: initialised.
        let queues = unsafe { (*self.queues.get()).assume_init_ref() };
        queues.iter().map(|q| q.len.load(Relaxed) as usize).sum()
    }

    /// Whether no object rests here.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Object> Drop for RestPool<T> {
    fn drop(&mut self) {
        self.open.store(false, Relaxed);
        self.drain(drop);
        if *self.was_opened.get_mut() {
            // SAFETY: initialised, and not used again.
            unsafe { self.queues.get_mut().assume_init_drop() };
        }
    }
}
