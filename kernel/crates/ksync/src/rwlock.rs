//! A spinning reader-writer lock that is fair.
//!
//! # Problem
//! Readers of a list share; but a stream of readers must not keep a writer out, nor writers a reader.
//!
//! # Mechanism
//! The design of Linux's qrwlock. One word counts readers and says whether a writer holds it or waits:
//!
//! ```text
//!   31                      2        1         0
//!  ┌─────────────────────────┬───────────┬──────────┐
//!  │ readers                 │ a writer  │ a writer │
//!  │                         │ waits     │ holds    │
//!  └─────────────────────────┴───────────┴──────────┘
//! ```
//!
//! Who cannot have it at once queues on an inner [`Queued`] lock, readers and writers alike, in order of arrival.
//! The one at the head of that queue waits for the word: a reader for the writer to leave, a writer (having set
//! "waits", which turns new readers away) for everyone to leave.
//!
//! A thread that holds it for reading must not take it for reading again: with a writer in between it would wait for
//! itself. An interrupt may take it only if every holder has IRQs off.
//!
//! # Invariants
//! - INV-RWL-1: `HELD` and a reader never both hold: readers count in only while `HELD` is seen clear (or take their
//!   count back), and a writer sets `HELD` only in a word without readers.
//! - INV-RWL-2: `WAITS` is set only by the holder of the inner lock.
use crate::arch::{self, IrqFlags};
use crate::lock::{Backend, Queued};
use crate::lockdep::How;
use crate::lockstat::{self, HoldStart, LockClass};
use crate::sync::atomic::{AtomicU32, Ordering::*};
use crate::sync::{const_unless_loom, planted};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

const HELD: u32 = 1;
const WAITS: u32 = 2;
const READER: u32 = 4;

struct RawRwLock {
    word: AtomicU32,
    queue: Queued,
}

impl RawRwLock {
    #[inline(always)]
    fn read(&self) {
        if self.word.fetch_add(READER, Acquire) & (HELD | WAITS) != 0 {
            self.read_slow();
        }
    }

    #[cold]
    #[inline(never)]
    fn read_slow(&self) {
        self.word.fetch_sub(READER, Relaxed);
        self.queue.lock();
        // At the head of the queue: no writer waits before us, so only a holder is in the way.
        self.word.fetch_add(READER, Relaxed);
        while self.word.load(Acquire) & HELD != 0 && !planted!(RwLockIgnoreWriter) {
            arch::cpu_relax();
        }
        // SAFETY: locked above.
        unsafe { self.queue.unlock(&()) };
    }

    #[inline(always)]
    fn try_read(&self) -> Option<()> {
        if self.word.load(Relaxed) & (HELD | WAITS) == 0 {
            if self.word.fetch_add(READER, Acquire) & (HELD | WAITS) == 0 {
                return Some(());
            }
            self.word.fetch_sub(READER, Relaxed);
        }
        None
    }

    #[inline(always)]
    fn write(&self) {
        if self
            .word
            .compare_exchange(0, HELD, Acquire, Relaxed)
            .is_err()
        {
            self.write_slow();
        }
    }

    #[cold]
    #[inline(never)]
    fn write_slow(&self) {
        self.queue.lock();
        if self
            .word
            .compare_exchange(0, HELD, Acquire, Relaxed)
            .is_err()
        {
            self.word.fetch_or(WAITS, Relaxed);
            while self.word.load(Relaxed) != WAITS
                || self
                    .word
                    .compare_exchange(WAITS, HELD, Acquire, Relaxed)
                    .is_err()
            {
                arch::cpu_relax();
            }
        }
        // SAFETY: locked above.
        unsafe { self.queue.unlock(&()) };
    }

    #[inline(always)]
    fn try_write(&self) -> Option<()> {
        self.word
            .compare_exchange(0, HELD, Acquire, Relaxed)
            .ok()
            .map(drop)
    }

    #[inline(always)]
    fn unlock_read(&self) {
        self.word.fetch_sub(READER, Release);
    }

    #[inline(always)]
    fn unlock_write(&self) {
        self.word.fetch_sub(HELD, Release);
    }
}

/// A spinning reader-writer lock around a `T`.
pub struct RwLock<T: ?Sized> {
    raw: RawRwLock,
    class: &'static LockClass,
    data: UnsafeCell<T>,
}

// SAFETY: the lock owns its value.
unsafe impl<T: ?Sized + Send> Send for RwLock<T> {}
// SAFETY: INV-RWL-1: readers share the value, or one writer has it.
unsafe impl<T: ?Sized + Send + Sync> Sync for RwLock<T> {}

impl<T> RwLock<T> {
    const_unless_loom! {
        /// An unlocked lock counted under `class`.
        pub fn new(value: T, class: &'static LockClass) -> Self {
            #[cfg(not(loom))]
            let queue = Queued::INIT;
            #[cfg(loom)]
            let queue = Queued::init();
            RwLock { raw: RawRwLock { word: AtomicU32::new(0), queue }, class, data: UnsafeCell::new(value) }
        }
    }

    /// Takes the value out.
    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }
}

/// Defines one acquiring function and its `try_` and `_irqsave` forms.
macro_rules! acquire {
    ($(#[$doc:meta])* $name:ident, $irqsave:ident, $try_name:ident, $guard:ident) => {
        $(#[$doc])*
        /// Preemption is off until the guard drops. Spins. Not for locks that interrupts take.
        #[inline(always)]
        pub fn $name(&self) -> $guard<'_, T> {
            arch::preempt_disable();
            let ((), since) = lockstat::acquire(|| self.class, How::Spin, || self.raw.$try_name(), || self.raw.$name());
            $guard { lock: self, since, flags: None, _not_send: PhantomData }
        }

        $(#[$doc])*
        /// Preemption and IRQs are off until the guard drops. Spins. Any context.
        #[inline(always)]
        pub fn $irqsave(&self) -> $guard<'_, T> {
            let flags = Some(arch::local_irq_save());
            arch::preempt_disable();
            let ((), since) = lockstat::acquire(|| self.class, How::Spin, || self.raw.$try_name(), || self.raw.$name());
            $guard { lock: self, since, flags, _not_send: PhantomData }
        }

        $(#[$doc])*
        /// Only if it need not wait.
        #[inline]
        pub fn $try_name(&self) -> Option<$guard<'_, T>> {
            arch::preempt_disable();
            if self.raw.$try_name().is_none() {
                arch::preempt_enable();
                return None;
            }
            Some($guard { lock: self, since: lockstat::try_acquired(|| self.class, How::Spin), flags: None, _not_send: PhantomData })
        }
    };
}

impl<T: ?Sized> RwLock<T> {
    acquire! {
        /// Acquires for reading.
        read, read_irqsave, try_read, RwLockReadGuard
    }
    acquire! {
        /// Acquires for writing.
        write, write_irqsave, try_write, RwLockWriteGuard
    }

    /// The value, without locking: the borrow proves that nobody holds it.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }

    /// The class it is counted under.
    pub fn class(&self) -> &'static LockClass {
        self.class
    }
}

/// Holds an [`RwLock`] for reading; preemption is off.
#[must_use]
pub struct RwLockReadGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    since: HoldStart,
    flags: Option<IrqFlags>,
    _not_send: PhantomData<*mut ()>,
}

/// Holds an [`RwLock`] for writing; preemption is off.
#[must_use]
pub struct RwLockWriteGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    since: HoldStart,
    flags: Option<IrqFlags>,
    _not_send: PhantomData<*mut ()>,
}

macro_rules! guard_impl {
    ($guard:ident, $unlock:ident) => {
        impl<T: ?Sized> Drop for $guard<'_, T> {
            #[inline(always)]
            fn drop(&mut self) {
                lockstat::released(|| self.lock.class, self.since);
                self.lock.raw.$unlock();
                if let Some(flags) = self.flags {
                    arch::local_irq_restore(flags);
                }
                arch::preempt_enable();
            }
        }

        impl<T: ?Sized> Deref for $guard<'_, T> {
            type Target = T;
            #[inline(always)]
            fn deref(&self) -> &T {
                // SAFETY: the guard holds the lock (INV-RWL-1).
                unsafe { &*self.lock.data.get() }
            }
        }
    };
}
guard_impl!(RwLockReadGuard, unlock_read);
guard_impl!(RwLockWriteGuard, unlock_write);

impl<T: ?Sized> DerefMut for RwLockWriteGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock for writing (INV-RWL-1).
        unsafe { &mut *self.lock.data.get() }
    }
}
