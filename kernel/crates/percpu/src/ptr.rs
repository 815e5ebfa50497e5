//! `PerCpu<T>`: a value per CPU, owned.
//!
//! Problem: a per-CPU value may be used without locks only as long as its user stays on the CPU.
//! Mechanism: `this_cpu` asks for evidence that preemption is off, and the reference it returns
//! cannot outlive the evidence. Another CPU's value is reached with `on`, which asks T: Sync.
//!
//! Interrupt handlers run on top of a section with preemption off. A T that handlers touch must be
//! Sync and made of atomics; per-CPU values of other types are not for hard IRQ context.
//!
//! INV-PTR-1: `offset` is an allocation of T's layout, and every possible CPU's copy is an
//! initialised T, until drop.
//! INV-PTR-2: a `&T` of a T that is not Sync is seen by one thread at a time: it is obtained with
//! preemption off on its CPU, and lives no longer than that.

use crate::{OutOfMemory, Zero, alloc, free};
use core::alloc::Layout;
use core::cell::Cell;
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, MaybeUninit};
use core::sync::atomic::*;
use ksync::arch;

/// Evidence that preemption is off for the lifetime of the value.
///
/// # Safety
/// While a value of this type exists, the thread that holds it is not preempted, and the value
/// cannot be sent to another thread.
pub unsafe trait PreemptOff {}
// SAFETY: that is what it is for.
unsafe impl PreemptOff for ksync::PreemptGuard {}
// SAFETY: a read-side section disables preemption.
unsafe impl PreemptOff for ksync::rcu::RcuGuard {}
// SAFETY: a held spinlock disables preemption.
unsafe impl<T: ?Sized, B: ksync::Backend> PreemptOff for ksync::Guard<'_, T, B> {}
// SAFETY: as above.
unsafe impl<T: ?Sized, B: ksync::Backend> PreemptOff for ksync::IrqGuard<'_, T, B> {}

/// Types for which all zero bytes are a valid value.
///
/// # Safety
/// As it says.
pub unsafe trait Zeroable {}
macro_rules! zeroable {
    ($($t:ty)*) => {$(
        // SAFETY: an integer, or a cell around one.
        unsafe impl Zeroable for $t {}
        // SAFETY: as above.
        unsafe impl Zeroable for Cell<$t> {}
    )*};
}
macro_rules! zeroable_atomic {
    // SAFETY: a cell around an integer.
    ($($t:ty)*) => {$( unsafe impl Zeroable for $t {} )*};
}
zeroable!(u8 u16 u32 u64 usize i8 i16 i32 i64 isize);
zeroable_atomic!(AtomicU8 AtomicU16 AtomicU32 AtomicU64 AtomicUsize AtomicI8 AtomicI16 AtomicI32
    AtomicI64 AtomicIsize);
// SAFETY: an array of zeroable values.
unsafe impl<T: Zeroable, const N: usize> Zeroable for [T; N] {}
// SAFETY: any bytes will do.
unsafe impl<T> Zeroable for MaybeUninit<T> {}

/// One `T` per possible CPU.
pub struct PerCpu<T> {
    offset: usize,
    owns: PhantomData<T>,
}

// SAFETY: an owner of Ts; `&PerCpu` gives `&T` to the thread on that CPU (INV-PTR-2), and to others
// only if T: Sync. Threads on one CPU take turns at it, hence T: Send.
unsafe impl<T: Send> Send for PerCpu<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for PerCpu<T> {}

impl<T> PerCpu<T> {
    /// Allocates and fills each CPU's copy with `init(cpu)`, in one pass over the possible CPUs.
    /// Any context but hard IRQ.
    pub fn new(mut init: impl FnMut(usize) -> T) -> Result<Self, OutOfMemory> {
        let uninit = PerCpu::<T>::new_uninit()?;
        for cpu in 0..arch::nr_cpu_ids() {
            // SAFETY: freshly allocated, room for a T (INV-PTR-1).
            unsafe { uninit.as_ptr(cpu).cast::<T>().write(init(cpu)) };
        }
        // INV-PTR-1: every copy is initialised now.
        Ok(PerCpu {
            offset: ManuallyDrop::new(uninit).offset,
            owns: PhantomData,
        })
    }

    /// Allocates copies of zero bytes.
    pub fn new_zeroed() -> Result<Self, OutOfMemory>
    where
        T: Zeroable,
    {
        // INV-PTR-1: zero bytes are a T.
        Ok(PerCpu {
            offset: alloc(Layout::new::<T>(), Zero::Yes)?,
            owns: PhantomData,
        })
    }

    /// Allocates copies without writing them: for one pass that fills several arrays, or for
    /// initialisation on first use.
    pub fn new_uninit() -> Result<PerCpu<MaybeUninit<T>>, OutOfMemory> {
        Ok(PerCpu {
            offset: alloc(Layout::new::<T>(), Zero::No)?,
            owns: PhantomData,
        })
    }

    /// This CPU's copy. The evidence keeps the thread here.
    #[inline(always)]
    pub fn this_cpu<'a, E: PreemptOff>(&'a self, _evidence: &'a E) -> &'a T {
        // SAFETY: INV-PTR-1; preemption is off, so no other thread of this CPU has a reference
        // (INV-PTR-2).
        unsafe { &*((arch::this_cpu_base() + self.offset) as *const T) }
    }

    /// `cpu`'s copy, from anywhere. `cpu` is a possible CPU.
    #[inline]
    pub fn on(&self, cpu: usize) -> &T
    where
        T: Sync,
    {
        debug_assert!(cpu < arch::nr_cpu_ids());
        // SAFETY: INV-PTR-1.
        unsafe { &*self.as_ptr(cpu) }
    }

    /// Every possible CPU's copy.
    pub fn iter(&self) -> impl Iterator<Item = &T>
    where
        T: Sync,
    {
        (0..arch::nr_cpu_ids()).map(|cpu| self.on(cpu))
    }

    /// `cpu`'s copy, by exclusive access to all of them.
    pub fn get_mut(&mut self, cpu: usize) -> &mut T {
        debug_assert!(cpu < arch::nr_cpu_ids());
        // SAFETY: INV-PTR-1, and `&mut self`.
        unsafe { &mut *self.as_ptr(cpu) }
    }

    /// The address of `cpu`'s copy.
    #[inline]
    pub fn as_ptr(&self, cpu: usize) -> *mut T {
        (arch::percpu_base(cpu) + self.offset) as *mut T
    }

    /// The offset in every window.
    #[inline]
    pub fn offset(&self) -> usize {
        self.offset
    }
}

impl<T> PerCpu<MaybeUninit<T>> {
    /// Declares every copy initialised.
    ///
    /// # Safety
    /// Every possible CPU's copy has been written.
    pub unsafe fn assume_init(self) -> PerCpu<T> {
        PerCpu {
            offset: ManuallyDrop::new(self).offset,
            owns: PhantomData,
        }
    }
}

impl<T> Drop for PerCpu<T> {
    fn drop(&mut self) {
        if core::mem::needs_drop::<T>() {
            for cpu in 0..arch::nr_cpu_ids() {
                // SAFETY: INV-PTR-1; nobody uses the copies again.
                unsafe { self.as_ptr(cpu).drop_in_place() };
            }
        }
        // SAFETY: INV-PTR-1.
        unsafe { free(self.offset, size_of::<T>()) };
    }
}
