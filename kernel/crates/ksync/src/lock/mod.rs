//! One generic spinning lock over several algorithms.
//!
//! # Problem
//! The algorithm decides how a lock behaves under contention on a large machine, and nothing else about it: guards,
//! preemption, interrupts, statistics are the same. And when nobody contends, all of it must be a few instructions.
//!
//! # Mechanism
//! [`Backend`] is the algorithm; [`Lock`] joins one with the data it protects; a guard holds it. `lock` is: one `inc`
//! of the preemption count, the backend's fast path, one NOP where lock statistics may be patched in. Dropping the
//! guard is: that NOP again, the backend's release, and `preempt_enable`.
//!
//! | alias | algorithm | uncontended | waits by |
//! |---|---|---|---|
//! | [`SpinLock`] | [`Queued`]: one word, MCS queue behind it | one cmpxchg, a byte store | spinning on a line of its own |
//! | [`McsLock`] | [`Mcs`]: the queue alone | one xchg, one cmpxchg | spinning on a line of its own |
//! | [`TicketLock`] | [`Ticket`] | one xadd, a store | all on one line, in order |
//! | [`TasLock`] | [`Tas`]: test and set | one xchg, a store | all on one line, no order |
//!
//! # Lock order
//! None of its own. A class is either taken with IRQs off everywhere or never in an interrupt.
//!
//! # Invariants
//! - INV-LOCK-1: between a `Backend::lock` that returned and its `unlock`, no other `lock` of it returns.
//! - INV-LOCK-2: whatever the holder did before `unlock` happens before the next `lock` returns.
//! - INV-LOCK-3: preemption is off from before the lock word is touched until after the release, so a guard is
//!   dropped on the CPU that took it.
mod mcs;
mod queued;
mod tas;
mod ticket;

pub use mcs::Mcs;
pub(crate) use mcs::McsNode;
pub(crate) use queued::QueuedNode;
pub use queued::{Queued, VIRT_SPIN};
pub use tas::Tas;
pub use ticket::Ticket;

use crate::LockClass;
use crate::arch::{self, IrqFlags};
use crate::lockdep::How;
use crate::lockstat::{self, HoldStart};
use crate::sync::const_unless_loom;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

/// A locking algorithm. All its functions are called with preemption off.
///
/// # Safety
/// INV-LOCK-1 and INV-LOCK-2 hold.
pub unsafe trait Backend: Sized {
    /// What the holder carries from lock to unlock.
    type State;
    /// The word that names the algorithm in reports.
    const NAME: &'static str;
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
    /// `state` is what this holder's acquisition returned, and is not used again.
    unsafe fn unlock(&self, state: &Self::State);
    /// Whether somebody holds it; a hint.
    fn is_locked(&self) -> bool;
}

/// A spinning lock around a `T`.
pub struct Lock<T: ?Sized, B: Backend> {
    raw: B,
    class: &'static LockClass,
    data: UnsafeCell<T>,
}

/// The default spinning lock.
pub type SpinLock<T> = Lock<T, Queued>;
/// A test-and-set lock.
pub type TasLock<T> = Lock<T, Tas>;
/// A ticket lock.
pub type TicketLock<T> = Lock<T, Ticket>;
/// An MCS lock.
pub type McsLock<T> = Lock<T, Mcs>;
/// Guard of [`SpinLock::lock`](Lock::lock).
pub type SpinGuard<'a, T> = Guard<'a, T, Queued>;
/// Guard of [`SpinLock::lock_irqsave`](Lock::lock_irqsave).
pub type SpinIrqGuard<'a, T> = IrqGuard<'a, T, Queued>;

// SAFETY: the lock owns its value.
unsafe impl<T: ?Sized + Send, B: Backend> Send for Lock<T, B> {}
// SAFETY: INV-LOCK-1: one thread at a time reaches the value.
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
    /// Acquires; preemption is off until the guard drops. Spins. Not for locks that interrupts take.
    #[inline(always)]
    pub fn lock(&self) -> Guard<'_, T, B> {
        arch::preempt_disable();
        let (state, since) = self.acquire();
        Guard {
            lock: self,
            state,
            since,
            _not_send: PhantomData,
        }
    }

    /// Acquires; preemption and IRQs are off until the guard drops. Spins. Any context.
    #[inline(always)]
    pub fn lock_irqsave(&self) -> IrqGuard<'_, T, B> {
        let flags = arch::local_irq_save();
        arch::preempt_disable();
        let (state, since) = self.acquire();
        IrqGuard {
            lock: self,
            state,
            since,
            flags,
            _not_send: PhantomData,
        }
    }

    /// Acquires if free, as [`lock`](Self::lock).
    #[inline]
    pub fn try_lock(&self) -> Option<Guard<'_, T, B>> {
        arch::preempt_disable();
        let Some(state) = self.raw.try_lock() else {
            arch::preempt_enable();
            return None;
        };
        Some(Guard {
            lock: self,
            state,
            since: lockstat::try_acquired(|| self.class, How::Spin),
            _not_send: PhantomData,
        })
    }

    /// Acquires if free, as [`lock_irqsave`](Self::lock_irqsave).
    #[inline]
    pub fn try_lock_irqsave(&self) -> Option<IrqGuard<'_, T, B>> {
        let flags = arch::local_irq_save();
        arch::preempt_disable();
        let Some(state) = self.raw.try_lock() else {
            arch::local_irq_restore(flags);
            arch::preempt_enable();
            return None;
        };
        Some(IrqGuard {
            lock: self,
            state,
            since: lockstat::try_acquired(|| self.class, How::Spin),
            flags,
            _not_send: PhantomData,
        })
    }

    /// The value, without locking: the borrow proves that nobody holds it.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }

    /// Whether somebody holds it; a hint, for assertions.
    pub fn is_locked(&self) -> bool {
        self.raw.is_locked()
    }

    /// The class it is counted under.
    pub fn class(&self) -> &'static LockClass {
        self.class
    }

    #[inline(always)]
    fn acquire(&self) -> (B::State, HoldStart) {
        lockstat::acquire(
            || self.class,
            How::Spin,
            || self.raw.try_lock(),
            || self.raw.lock(),
        )
    }
}

/// Holds a [`Lock`]; preemption is off.
#[must_use]
pub struct Guard<'a, T: ?Sized, B: Backend> {
    lock: &'a Lock<T, B>,
    state: B::State,
    since: HoldStart,
    _not_send: PhantomData<*mut ()>,
}

/// Holds a [`Lock`]; preemption and IRQs are off.
#[must_use]
pub struct IrqGuard<'a, T: ?Sized, B: Backend> {
    lock: &'a Lock<T, B>,
    state: B::State,
    since: HoldStart,
    flags: IrqFlags,
    _not_send: PhantomData<*mut ()>,
}

impl<T: ?Sized, B: Backend> Drop for Guard<'_, T, B> {
    #[inline(always)]
    fn drop(&mut self) {
        lockstat::released(|| self.lock.class, self.since);
        // SAFETY: the guard is the holder and drops once.
        unsafe { self.lock.raw.unlock(&self.state) };
        arch::preempt_enable();
    }
}

impl<T: ?Sized, B: Backend> Drop for IrqGuard<'_, T, B> {
    #[inline(always)]
    fn drop(&mut self) {
        lockstat::released(|| self.lock.class, self.since);
        // SAFETY: the guard is the holder and drops once.
        unsafe { self.lock.raw.unlock(&self.state) };
        arch::local_irq_restore(self.flags);
        arch::preempt_enable();
    }
}

macro_rules! guard_deref {
    ($guard:ident) => {
        impl<T: ?Sized, B: Backend> Deref for $guard<'_, T, B> {
            type Target = T;
            #[inline(always)]
            fn deref(&self) -> &T {
                // SAFETY: the guard holds the lock (INV-LOCK-1).
                unsafe { &*self.lock.data.get() }
            }
        }

        impl<T: ?Sized, B: Backend> DerefMut for $guard<'_, T, B> {
            #[inline(always)]
            fn deref_mut(&mut self) -> &mut T {
                // SAFETY: the guard holds the lock (INV-LOCK-1).
                unsafe { &mut *self.lock.data.get() }
            }
        }
    };
}
guard_deref!(Guard);
guard_deref!(IrqGuard);

/// Preemption is off while this lives: evidence for per-CPU accesses.
#[must_use]
pub struct PreemptGuard(PhantomData<*mut ()>);

impl PreemptGuard {
    /// Turns preemption off. Any context.
    #[inline(always)]
    pub fn new() -> Self {
        arch::preempt_disable();
        PreemptGuard(PhantomData)
    }
}

impl Drop for PreemptGuard {
    #[inline(always)]
    fn drop(&mut self) {
        arch::preempt_enable();
    }
}

/// Interrupts are off while this lives (and with them preemption).
#[must_use]
pub struct IrqOffGuard(IrqFlags, PhantomData<*mut ()>);

impl IrqOffGuard {
    /// Turns interrupts off. Any context.
    #[inline(always)]
    pub fn new() -> Self {
        IrqOffGuard(arch::local_irq_save(), PhantomData)
    }
}

impl Drop for IrqOffGuard {
    #[inline(always)]
    fn drop(&mut self) {
        arch::local_irq_restore(self.0);
    }
}
