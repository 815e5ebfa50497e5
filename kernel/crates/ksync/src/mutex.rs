//! A sleeping mutual exclusion lock.
use crate::sync::const_unless_loom;
use crate::{LockClass, RwSem, RwSemWriteGuard};

/// A sleeping lock around a `T`.
pub struct Mutex<T: ?Sized>(RwSem<T>);
/// Holds a [`Mutex`].
pub type MutexGuard<'a, T> = RwSemWriteGuard<'a, T>;

impl<T> Mutex<T> {
    const_unless_loom! {
        /// An unlocked mutex counted under `class`.
        pub fn new(value: T, class: &'static LockClass) -> Self {
            Mutex(RwSem::new(value, class))
        }
    }
    /// Takes the value out.
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Acquires. May sleep.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.write()
    }
    /// Acquires if free.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_write()
    }
    /// The value, without locking.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}
