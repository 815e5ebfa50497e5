//! The sleeping mutex: the writing half of [`RwSem`](crate::RwSem), with its fairness and its fast path.
use crate::lockdep::How;
use crate::lockstat::{self, HoldStart, LockClass};
use crate::rwsem::RawRwSem;
use crate::sync::const_unless_loom;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

/// A sleeping lock around a `T`. Uncontended: one atomic to lock, one to unlock.
pub struct Mutex<T: ?Sized> {
    raw: RawRwSem,
    class: &'static LockClass,
    data: UnsafeCell<T>,
}

// SAFETY: the lock owns its value.
unsafe impl<T: ?Sized + Send> Send for Mutex<T> {}
// SAFETY: INV-RWSEM-1: one holder at a time reaches the value.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    const_unless_loom! {
        /// An unlocked mutex counted under `class`.
        pub fn new(value: T, class: &'static LockClass) -> Self {
            Mutex { raw: RawRwSem::new(), class, data: UnsafeCell::new(value) }
        }
    }

    /// Takes the value out.
    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Acquires. Sleeps: thread context, preemption and IRQs on.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let ((), since) = lockstat::acquire(
            || self.class,
            How::Sleep,
            || self.raw.try_write(),
            || self.raw.write(),
        );
        MutexGuard {
            lock: self,
            since,
            _not_send: PhantomData,
        }
    }

    /// Acquires if free. Does not sleep, but is released in thread context.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.raw.try_write()?;
        Some(MutexGuard {
            lock: self,
            since: lockstat::try_acquired(|| self.class, How::Sleep),
            _not_send: PhantomData,
        })
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

/// Holds a [`Mutex`].
#[must_use]
pub struct MutexGuard<'a, T: ?Sized> {
    lock: &'a Mutex<T>,
    since: HoldStart,
    _not_send: PhantomData<*mut ()>,
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        lockstat::released(|| self.lock.class, self.since);
        self.lock.raw.unlock_write();
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock (INV-RWSEM-1).
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock (INV-RWSEM-1).
        unsafe { &mut *self.lock.data.get() }
    }
}
