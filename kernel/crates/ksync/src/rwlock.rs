//! A spinning reader-writer lock.
use crate::LockClass;
use crate::arch;
use crate::sync::atomic::{AtomicUsize, Ordering::*};
use crate::sync::const_unless_loom;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

const WRITER: usize = usize::MAX;

/// A spinning reader-writer lock around a `T`.
pub struct RwLock<T: ?Sized> {
    count: AtomicUsize,
    class: &'static LockClass,
    data: UnsafeCell<T>,
}

// SAFETY: the lock moves its value between threads.
unsafe impl<T: ?Sized + Send> Send for RwLock<T> {}
// SAFETY: readers share it, one writer owns it.
unsafe impl<T: ?Sized + Send + Sync> Sync for RwLock<T> {}

impl<T> RwLock<T> {
    const_unless_loom! {
        /// An unlocked lock counted under `class`.
        pub fn new(value: T, class: &'static LockClass) -> Self {
            RwLock { count: AtomicUsize::new(0), class, data: UnsafeCell::new(value) }
        }
    }
}

impl<T: ?Sized> RwLock<T> {
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

    /// Acquires for reading, preemption off.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        arch::preempt_disable();
        while !self.take_read() {
            arch::cpu_relax();
        }
        RwLockReadGuard {
            lock: self,
            _not_send: PhantomData,
        }
    }
    /// Acquires for writing, preemption off.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        arch::preempt_disable();
        while !self.take_write() {
            arch::cpu_relax();
        }
        RwLockWriteGuard {
            lock: self,
            flags: None,
            _not_send: PhantomData,
        }
    }
    /// Acquires for writing, preemption and IRQs off.
    pub fn write_irqsave(&self) -> RwLockWriteGuard<'_, T> {
        let flags = arch::local_irq_save();
        arch::preempt_disable();
        while !self.take_write() {
            arch::cpu_relax();
        }
        RwLockWriteGuard {
            lock: self,
            flags: Some(flags),
            _not_send: PhantomData,
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

/// Holds an [`RwLock`] for reading.
#[must_use]
pub struct RwLockReadGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    _not_send: PhantomData<*mut ()>,
}

/// Holds an [`RwLock`] for writing.
#[must_use]
pub struct RwLockWriteGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    flags: Option<arch::IrqFlags>,
    _not_send: PhantomData<*mut ()>,
}

impl<T: ?Sized> Drop for RwLockReadGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.count.fetch_sub(1, Release);
        arch::preempt_enable();
    }
}

impl<T: ?Sized> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.count.store(0, Release);
        if let Some(f) = self.flags {
            arch::local_irq_restore(f);
        }
        arch::preempt_enable();
    }
}

impl<T: ?Sized> Deref for RwLockReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: held for reading.
        unsafe { &*self.lock.data.get() }
    }
}
impl<T: ?Sized> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: held for writing.
        unsafe { &*self.lock.data.get() }
    }
}
impl<T: ?Sized> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: held for writing.
        unsafe { &mut *self.lock.data.get() }
    }
}
