//! `KBox<T>`: an owned value on the kernel heap, whose allocation can fail.
//!
//! INV-BOX-1: `ptr` is to an initialised T in memory from `heap::kmalloc` of T's layout (dangling
//! for a T without size), owned by this box alone.

use crate::{AllocError, Gfp, heap};
use core::alloc::Layout;
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, MaybeUninit};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

/// An owned value from the size classes (or whole pages above them).
#[repr(transparent)]
pub struct KBox<T> {
    ptr: NonNull<T>,
    owns: PhantomData<T>,
}

// SAFETY: owns its T like a Box (INV-BOX-1).
unsafe impl<T: Send> Send for KBox<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for KBox<T> {}

impl<T> KBox<T> {
    /// Allocates and moves `value` in. On error `value` is dropped.
    #[inline]
    pub fn new(value: T) -> Result<Self, AllocError> {
        Ok(Self::try_uninit()?.write(value))
    }

    /// Allocates room to be filled later.
    #[inline]
    pub fn try_uninit() -> Result<KBoxUninit<T>, AllocError> {
        let ptr = heap::kmalloc(Layout::new::<T>(), Gfp::empty())?.cast();
        Ok(KBoxUninit {
            ptr,
            owns: PhantomData,
        })
    }

    /// Gives up ownership without dropping.
    #[inline]
    pub fn into_raw(this: Self) -> NonNull<T> {
        ManuallyDrop::new(this).ptr
    }

    /// Takes back what [`into_raw`](Self::into_raw) gave.
    ///
    /// # Safety
    /// `ptr` came from `into_raw` of a `KBox<T>`, and is taken back once.
    #[inline]
    pub unsafe fn from_raw(ptr: NonNull<T>) -> Self {
        KBox {
            ptr,
            owns: PhantomData,
        }
    }

    /// Moves the value out and frees the memory.
    #[inline]
    pub fn into_inner(this: Self) -> T {
        let this = ManuallyDrop::new(this);
        // SAFETY: INV-BOX-1; the box is forgotten, so the value is read once and freed once.
        unsafe {
            let value = this.ptr.read();
            heap::kfree(this.ptr.cast(), Layout::new::<T>());
            value
        }
    }
}

impl<T> Deref for KBox<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: INV-BOX-1.
        unsafe { self.ptr.as_ref() }
    }
}

impl<T> DerefMut for KBox<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: INV-BOX-1.
        unsafe { self.ptr.as_mut() }
    }
}

impl<T> Drop for KBox<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: INV-BOX-1; nobody uses the box again.
        unsafe {
            self.ptr.drop_in_place();
            heap::kfree(self.ptr.cast(), Layout::new::<T>());
        }
    }
}

impl<T: core::fmt::Debug> core::fmt::Debug for KBox<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        T::fmt(self, f)
    }
}

/// Room for a T. Dropping it frees the room.
pub struct KBoxUninit<T> {
    ptr: NonNull<T>,
    owns: PhantomData<T>,
}

// SAFETY: an owned piece of memory without a value.
unsafe impl<T: Send> Send for KBoxUninit<T> {}

impl<T> KBoxUninit<T> {
    /// Moves `value` in.
    #[inline]
    pub fn write(mut self, value: T) -> KBox<T> {
        self.value_mut().write(value);
        // SAFETY: just written.
        unsafe { self.assume_init() }
    }

    /// The room.
    #[inline]
    pub fn value_mut(&mut self) -> &mut MaybeUninit<T> {
        // SAFETY: owned memory of T's layout; MaybeUninit asks nothing of its contents.
        unsafe { self.ptr.cast().as_mut() }
    }

    /// Declares the room filled.
    ///
    /// # Safety
    /// The value has been written through [`value_mut`](Self::value_mut).
    #[inline]
    pub unsafe fn assume_init(self) -> KBox<T> {
        KBox {
            ptr: ManuallyDrop::new(self).ptr,
            owns: PhantomData,
        }
    }
}

impl<T> Drop for KBoxUninit<T> {
    fn drop(&mut self) {
        // SAFETY: owned memory of this layout, without a value.
        unsafe { heap::kfree(self.ptr.cast(), Layout::new::<T>()) }
    }
}
