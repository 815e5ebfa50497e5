//! One generic spinning lock over several algorithms.
use crate::LockClass;
use crate::arch::{self, IrqFlags};
use crate::sync::atomic::{AtomicBool, Ordering::*};
use crate::sync::const_unless_loom;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

/// A locking algorithm. All methods are called with preemption off.
///
/// # Safety
/// Between a `lock` (or successful `try_lock`) and its `unlock` no other `lock` returns; an `unlock`
/// happens before the next `lock` returns.
pub unsafe trait Backend: Sized {
    /// What the holder carries from lock to unlock.
    type State;
    /// An unlocked lock.
    #[cfg(not(loom))]
    const INIT: Self;
    /// An unlocked lock.
    #[cfg(loom)]
    fn init() -> Self;
    /// Spins until acquired.
    fn lock(&self) -> Self::State;
    /// Acquires if free.
    fn try_lock(&self) -> Option<Self::State>;
    /// Releases.
    ///
    /// # Safety
    /// `state` is from this holder's acquisition.
    unsafe fn unlock(&self, state: &mut Self::State);
}

/// Test and set.
pub struct Tas(AtomicBool);

// SAFETY: only the thread that swaps false for true returns; Release in unlock pairs with its Acquire.
unsafe impl Backend for Tas {
    type State = ();
    #[cfg(not(loom))]
    const INIT: Self = Tas(AtomicBool::new(false));
    #[cfg(loom)]
    fn init() -> Self {
        Tas(AtomicBool::new(false))
    }
    #[inline]
    fn lock(&self) {
        while self.0.swap(true, Acquire) {
            while self.0.load(Relaxed) {
                arch::cpu_relax();
            }
        }
    }
    #[inline]
    fn try_lock(&self) -> Option<()> {
        (!self.0.swap(true, Acquire)).then_some(())
    }
    #[inline]
    unsafe fn unlock(&self, _: &mut ()) {
        self.0.store(false, Release);
    }
}

/// Ticket lock backend.
pub type Ticket = Tas;
/// MCS lock backend.
pub type Mcs = Tas;
/// Default backend.
pub type Queued = Tas;

/// A spinning lock around a `T`.
pub struct Lock<T: ?Sized, B: Backend> {
    raw: B,
    class: &'static LockClass,
    data: UnsafeCell<T>,
}

/// The default spinning lock.
pub type SpinLock<T> = Lock<T, Queued>;
/// Test-and-set lock.
pub type TasLock<T> = Lock<T, Tas>;
/// Ticket lock.
pub type TicketLock<T> = Lock<T, Ticket>;
/// MCS lock.
pub type McsLock<T> = Lock<T, Mcs>;
/// Guard of [`SpinLock::lock`](Lock::lock).
pub type SpinGuard<'a, T> = Guard<'a, T, Queued>;
/// Guard of [`SpinLock::lock_irqsave`](Lock::lock_irqsave).
pub type SpinIrqGuard<'a, T> = IrqGuard<'a, T, Queued>;

// SAFETY: the lock moves its value between threads.
unsafe impl<T: ?Sized + Send, B: Backend> Send for Lock<T, B> {}
// SAFETY: the lock gives the value to one thread at a time.
unsafe impl<T: ?Sized + Send, B: Backend> Sync for Lock<T, B> {}

impl<T, B: Backend> Lock<T, B> {
    const_unless_loom! {
        /// An unlocked lock counted under `class`.
        pub fn new(value: T, class: &'static LockClass) -> Self {
            #[cfg(not(loom))]
            let raw = B::INIT;
            #[cfg(loom)]
            let raw = B::init();
            Lock { raw, class, data: UnsafeCell::new(value) }
        }
    }

    /// Takes the value out.
    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }
}

impl<T: ?Sized, B: Backend> Lock<T, B> {
    /// Acquires, preemption off until the guard drops. Spins; may not be taken in interrupts by others.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T, B> {
        arch::preempt_disable();
        let state = self.raw.lock();
        Guard {
            lock: self,
            state,
            _not_send: PhantomData,
        }
    }

    /// Acquires with preemption and IRQs off until the guard drops.
    #[inline]
    pub fn lock_irqsave(&self) -> IrqGuard<'_, T, B> {
        let flags = arch::local_irq_save();
        arch::preempt_disable();
        let state = self.raw.lock();
        IrqGuard {
            lock: self,
            state,
            flags,
            _not_send: PhantomData,
        }
    }

    /// Acquires if free.
    #[inline]
    pub fn try_lock(&self) -> Option<Guard<'_, T, B>> {
        arch::preempt_disable();
        match self.raw.try_lock() {
            Some(state) => Some(Guard {
                lock: self,
                state,
                _not_send: PhantomData,
            }),
            None => {
                arch::preempt_enable();
                None
            }
        }
    }

    /// The value, without locking.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }

    /// The class.
    pub fn class(&self) -> &'static LockClass {
        self.class
    }
}

/// Holds a [`Lock`], preemption off.
#[must_use]
pub struct Guard<'a, T: ?Sized, B: Backend> {
    lock: &'a Lock<T, B>,
    state: B::State,
    _not_send: PhantomData<*mut ()>,
}

/// Holds a [`Lock`], preemption and IRQs off.
#[must_use]
pub struct IrqGuard<'a, T: ?Sized, B: Backend> {
    lock: &'a Lock<T, B>,
    state: B::State,
    flags: IrqFlags,
    _not_send: PhantomData<*mut ()>,
}

impl<T: ?Sized, B: Backend> Drop for Guard<'_, T, B> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the guard is the holder.
        unsafe { self.lock.raw.unlock(&mut self.state) };
        arch::preempt_enable();
    }
}

impl<T: ?Sized, B: Backend> Drop for IrqGuard<'_, T, B> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the guard is the holder.
        unsafe { self.lock.raw.unlock(&mut self.state) };
        arch::local_irq_restore(self.flags);
        arch::preempt_enable();
    }
}

macro_rules! deref {
    ($g:ident) => {
        impl<T: ?Sized, B: Backend> Deref for $g<'_, T, B> {
            type Target = T;
            #[inline]
            fn deref(&self) -> &T {
                // SAFETY: the guard holds the lock.
                unsafe { &*self.lock.data.get() }
            }
        }
        impl<T: ?Sized, B: Backend> DerefMut for $g<'_, T, B> {
            #[inline]
            fn deref_mut(&mut self) -> &mut T {
                // SAFETY: the guard holds the lock.
                unsafe { &mut *self.lock.data.get() }
            }
        }
    };
}
deref!(Guard);
deref!(IrqGuard);

/// Preemption is off while this lives: evidence for per-CPU accesses.
#[must_use]
pub struct PreemptGuard(PhantomData<*mut ()>);

impl PreemptGuard {
    /// Turns preemption off.
    #[inline]
    pub fn new() -> Self {
        arch::preempt_disable();
        PreemptGuard(PhantomData)
    }
}

impl Drop for PreemptGuard {
    #[inline]
    fn drop(&mut self) {
        arch::preempt_enable();
    }
}
