//! A sleeping reader-writer lock.
use crate::sync::atomic::{AtomicUsize, Ordering::*};
use crate::sync::const_unless_loom;
use crate::{LockClass, WaitQueue};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

const WRITER: usize = usize::MAX;

/// A sleeping reader-writer lock around a `T`.
pub struct RwSem<T: ?Sized> {
    count: AtomicUsize,
    class: &'static LockClass,
    queue: WaitQueue,
    data: UnsafeCell<T>,
}

// SAFETY: the lock moves its value between threads.
unsafe impl<T: ?Sized + Send> Send for RwSem<T> {}
// SAFETY: readers share it, one writer owns it.
unsafe impl<T: ?Sized + Send + Sync> Sync for RwSem<T> {}

impl<T> RwSem<T> {
    const_unless_loom! {
        /// An unlocked lock counted under `class`.
        pub fn new(value: T, class: &'static LockClass) -> Self {
            RwSem { count: AtomicUsize::new(0), class, queue: WaitQueue::new(), data: UnsafeCell::new(value) }
        }
    }
    /// Takes the value out.
    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }
}

impl<T: ?Sized> RwSem<T> {
    fn take_read(&self) -> bool {
        self.count
            .fetch_update(Acquire, Relaxed, |c| (c != WRITER).then(|| c + 1))
            .is_ok()
    }
    fn take_write(&self) -> bool {
        self.count
            .compare_exchange(0, WRITER, Acquire, Relaxed)
            .is_ok()
    }

    /// Acquires for reading. May sleep.
    pub fn read(&self) -> RwSemReadGuard<'_, T> {
        self.queue.wait_until(|| self.take_read());
        RwSemReadGuard {
            lock: self,
            _not_send: PhantomData,
        }
    }
    /// Acquires for writing. May sleep.
    pub fn write(&self) -> RwSemWriteGuard<'_, T> {
        self.queue.wait_until(|| self.take_write());
        RwSemWriteGuard {
            lock: self,
            _not_send: PhantomData,
        }
    }
    /// Acquires for reading if that needs no wait.
    pub fn try_read(&self) -> Option<RwSemReadGuard<'_, T>> {
        self.take_read().then_some(RwSemReadGuard {
            lock: self,
            _not_send: PhantomData,
        })
    }
    /// Acquires for writing if that needs no wait.
    pub fn try_write(&self) -> Option<RwSemWriteGuard<'_, T>> {
        if self.take_write() {
            Some(RwSemWriteGuard {
                lock: self,
                _not_send: PhantomData,
            })
        } else {
            None
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

/// Holds an [`RwSem`] for reading.
#[must_use]
pub struct RwSemReadGuard<'a, T: ?Sized> {
    lock: &'a RwSem<T>,
    _not_send: PhantomData<*mut ()>,
}

/// Holds an [`RwSem`] for writing.
#[must_use]
pub struct RwSemWriteGuard<'a, T: ?Sized> {
    lock: &'a RwSem<T>,
    _not_send: PhantomData<*mut ()>,
}

impl<'a, T: ?Sized> RwSemWriteGuard<'a, T> {
    /// Turns a write hold into a read hold without letting a writer in between.
    pub fn downgrade(self) -> RwSemReadGuard<'a, T> {
        let lock = self.lock;
        core::mem::forget(self);
        lock.count.store(1, Release);
        lock.queue.wake_all();
        RwSemReadGuard {
            lock,
            _not_send: PhantomData,
        }
    }
}

impl<T: ?Sized> Drop for RwSemReadGuard<'_, T> {
    fn drop(&mut self) {
        if self.lock.count.fetch_sub(1, AcqRel) == 1 {
            self.lock.queue.wake_all();
        }
    }
}

impl<T: ?Sized> Drop for RwSemWriteGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.count.store(0, Release);
        self.lock.queue.wake_all();
    }
}

impl<T: ?Sized> Deref for RwSemReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: held for reading.
        unsafe { &*self.lock.data.get() }
    }
}
impl<T: ?Sized> Deref for RwSemWriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: held for writing.
        unsafe { &*self.lock.data.get() }
    }
}
impl<T: ?Sized> DerefMut for RwSemWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: held for writing.
        unsafe { &mut *self.lock.data.get() }
    }
}
