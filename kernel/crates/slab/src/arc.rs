//! `KArc<T>`: a counted pointer to an object of its own cache.
//!
//! Problem: `alloc::sync::Arc` aborts when memory is short, takes memory from a general heap, and
//! has nowhere to put list links or the head that an RCU callback needs.
//!
//! Mechanism: one block per object,
//!
//! ```text
//! 0          8 (or align of T)                 
//! | refcount | value: T ...       | Links or RcuHead |
//! ```
//!
//! The count shares a cache line with the start of the value; what is used rarely is at the end.
//! The RcuHead needs no room beside links: it is used only once the count is zero, and then no
//! list holds the object (a list owns a reference).
//!
//! INV-ARC-1: while `refcount > 0` value and links are initialised, and there are exactly
//! `refcount` owners: KArcs, list memberships, and raw pointers from `into_raw`.
//! INV-ARC-2: whoever takes the count from 1 to 0 owns the block alone; of an `RCU_FREE` type whoever then takes it from
//! 0 to [`DEAD`], except for RCU readers, who look at the value until the grace period ends. A reader that takes the
//! count up from 0 has a reference like any other: the object lives on, and its last owner's mark fails. One that finds
//! DEAD has nothing. So a reader needs one addition, not a loop that starts again whenever another CPU was faster
//! (`rcuref` of Linux, 2023, does the same).
//! INV-ARC-3: at count 0 no link is in a list, so the tail may be reused as an RcuHead, or by a `RestPool` as its link.
//! INV-ARC-4: an [`Idle`] is the block of an `RCU_FREE` type at count [`DEAD`] or above, its value initialised, alone but
//! for RCU readers who look. A reader's addition in vain is overwritten when it is revived: nobody takes it back.

use crate::object::{LinkArray, Object};
use crate::{AllocError, Gfp};
use core::mem::{ManuallyDrop, MaybeUninit, offset_of};
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering, fence};
use ksync::arch::interleave;
use ksync::rcu::{self, RcuHead};

/// What follows the value: links while anybody holds the object, an RcuHead afterwards (INV-ARC-3).
#[repr(C)]
pub(crate) union Tail<L> {
    links: ManuallyDrop<L>,
    rcu: ManuallyDrop<RcuHead>,
    rest: *mut (),
}

/// The memory behind a `KArc<T>`.
#[repr(C)]
pub struct Block<T: Object> {
    refcount: AtomicU32,
    value: ManuallyDrop<T>,
    tail: Tail<T::Links>,
}

impl<T: Object> Block<T> {
    /// The link in `slot`, which exists.
    ///
    /// # Safety
    /// A reference to the block is held for 'a.
    #[inline(always)]
    pub(crate) unsafe fn link<'a>(this: *mut Self, slot: usize) -> &'a crate::Link {
        // SAFETY: the links are initialised while a reference is held (INV-ARC-1).
        unsafe { &*T::Links::slot((&raw const (*this).tail.links).cast::<T::Links>(), slot) }
    }
}

impl<T: Object> Block<T> {
    /// The link of a `RestPool`.
    ///
    /// # Safety
    /// The block is an [`Idle`] of the caller's, and the link was written.
    #[inline(always)]
    pub(crate) unsafe fn rest_next(this: NonNull<Self>) -> *mut Self {
        // SAFETY: the caller's promise (INV-ARC-3).
        unsafe { (*this.as_ptr()).tail.rest.cast() }
    }

    /// # Safety
    /// The block is an [`Idle`] of the caller's.
    #[inline(always)]
    pub(crate) unsafe fn set_rest_next(this: NonNull<Self>, next: *mut Self) {
        // SAFETY: the caller's promise (INV-ARC-3).
        unsafe { (*this.as_ptr()).tail.rest = next.cast() };
    }
}

/// A counted pointer to a `T` from its cache. Cloning and dropping: any context but hard IRQ;
/// the last drop runs `T`'s destructor and frees (for `RCU_FREE` types: after a grace period).
#[repr(transparent)]
pub struct KArc<T: Object> {
    block: NonNull<Block<T>>,
}

// SAFETY: as for alloc::sync::Arc: a KArc gives &T to any thread that holds one, and the last
// holder drops T (INV-ARC-1, INV-ARC-2). Links are Sync.
unsafe impl<T: Object + Send + Sync> Send for KArc<T> {}
// SAFETY: as above.
unsafe impl<T: Object + Send + Sync> Sync for KArc<T> {}

/// The count beyond which a further clone panics: half of what fits, so that clones racing past
/// the check cannot wrap it.
const REFCOUNT_MAX: u32 = i32::MAX as u32;

/// In the count of an `RCU_FREE` object: its end has begun. Readers who come too late add to it in vain, and not for
/// long enough to overflow it: each does so inside one RCU section.
const DEAD: u32 = 0xc000_0000;

impl<T: Object> KArc<T> {
    /// Allocates a block and moves `value` in, with a count of 1. On error `value` is dropped.
    #[inline]
    pub fn new(value: T) -> Result<Self, AllocError> {
        Ok(Self::try_uninit()?.write(value))
    }

    /// Allocates a block to be filled later, so that a caller can allocate before it takes locks.
    #[inline]
    pub fn try_uninit() -> Result<KArcUninit<T>, AllocError> {
        Self::try_uninit_with(Gfp::empty())
    }

    /// [`try_uninit`](Self::try_uninit) with allocation flags.
    #[inline]
    pub fn try_uninit_with(gfp: Gfp) -> Result<KArcUninit<T>, AllocError> {
        // INV-OBJ-1: an object of T's cache holds a Block<T>.
        let block = T::CACHE.kmem_cache().alloc(gfp)?.cast();
        Ok(KArcUninit { block })
    }

    /// Whether both point to the same object.
    #[inline]
    pub fn ptr_eq(a: &Self, b: &Self) -> bool {
        a.block == b.block
    }

    /// The address of the value: an identity, valid to read while a reference is held.
    #[inline]
    pub fn as_ptr(this: &Self) -> *const T {
        Self::value_ptr(this.block)
    }

    /// Gives up the reference without dropping it.
    #[inline]
    pub fn into_raw(this: Self) -> NonNull<T> {
        let this = ManuallyDrop::new(this);
        // SAFETY: the value's address inside a live block is not null.
        unsafe { NonNull::new_unchecked(Self::value_ptr(this.block).cast_mut()) }
    }

    /// Takes back a reference given up by [`into_raw`](Self::into_raw).
    ///
    /// # Safety
    /// `value` came from `into_raw` of a `KArc<T>`, and each such pointer is taken back once.
    #[inline]
    pub unsafe fn from_raw(value: NonNull<T>) -> Self {
        KArc {
            block: Self::block_of(value),
        }
    }

    /// A new reference from a pointer whose reference somebody else holds.
    ///
    /// # Safety
    /// `value` came from `into_raw` or `as_ptr`, and a reference is held throughout the call.
    #[inline]
    pub unsafe fn clone_raw(value: NonNull<T>) -> Self {
        // SAFETY: the caller's promise; the reference is not ours to drop.
        let held = ManuallyDrop::new(unsafe { Self::from_raw(value) });
        KArc::clone(&held)
    }

    /// A new reference from a pointer found in an RCU-protected structure; None if the last
    /// reference is already gone.
    ///
    /// # Safety
    /// `value` came from `into_raw` or `as_ptr`; `T::RCU_FREE`; the pointer was read inside the
    /// RCU read-side section that the caller is still in, from a place that was cleared, if at all,
    /// before the reference it stood for was dropped.
    #[inline]
    pub unsafe fn try_get_rcu(value: NonNull<T>) -> Option<Self> {
        debug_assert!(T::RCU_FREE);
        let block = Self::block_of(value);
        // SAFETY: the block is not freed before the reader's section ends (INV-ARC-2).
        let refcount = unsafe { &(*block.as_ptr()).refcount };
        // The dead are told without a write.
        if refcount.load(Ordering::Relaxed) >= DEAD {
            return None;
        }
        interleave();
        match refcount.fetch_add(1, Ordering::Acquire) {
            0..REFCOUNT_MAX => Some(KArc { block }),
            REFCOUNT_MAX..DEAD => refcount_overflow(),
            DEAD.. => None,
        }
    }

    /// The number of references at some moment during the call.
    #[inline]
    pub fn refcount(this: &Self) -> u32 {
        this.block().refcount.load(Ordering::Relaxed)
    }

    /// The value, if this is the only reference. Never for `RCU_FREE` types, whose readers may
    /// take a reference at any time.
    #[inline]
    pub fn get_mut(this: &mut Self) -> Option<&mut T> {
        if T::RCU_FREE || this.block().refcount.load(Ordering::Acquire) != 1 {
            return None;
        }
        // SAFETY: the only reference is borrowed mutably, so nobody can clone it (INV-ARC-1); the
        // Acquire load orders this after the other owners' last accesses (Release in drop).
        Some(unsafe { &mut (*this.block.as_ptr()).value })
    }

    /// Drops this reference; if it was the last, the value is dropped and freed after an RCU grace
    /// period. For `RCU_FREE` types a plain drop does the same.
    #[inline]
    pub fn drop_rcu(this: Self) {
        if T::RCU_FREE {
            return drop(this);
        }
        let this = ManuallyDrop::new(this);
        if this.block().refcount.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            // SAFETY: the count went from 1 to 0 here (INV-ARC-2).
            unsafe { release_rcu(this.block) };
        }
    }

    /// The end of a reference to an `RCU_FREE` object.
    #[inline(always)]
    fn put_rcu_free(&self) {
        // Once our reference is given up only the section keeps the block: another may end it before we look again.
        let section = rcu::read_lock();
        let refcount = &self.block().refcount;
        if refcount.fetch_sub(1, Ordering::Release) == 1 {
            interleave();
            let marked = refcount
                .compare_exchange(0, DEAD, Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
            #[cfg(test)]
            let marked = marked || crate::tests::is_planted("an end without the mark");
            if marked {
                #[cfg(test)]
                crate::tests::interleave::note_end(core::any::type_name::<T>());
                // INVARIANT: INV-ARC-4: the count went from 0 to DEAD here (INV-ARC-2).
                T::rest(Idle { block: self.block }, &section);
            }
        }
    }

    /// Drops a reference that is not the last: `other` is one to the same object.
    #[inline(always)]
    pub fn drop_beside(this: Self, other: &Self) {
        if !Self::ptr_eq(&this, other) {
            return drop(this);
        }
        ManuallyDrop::new(this)
            .block()
            .refcount
            .fetch_sub(1, Ordering::Release);
    }

    /// `nr` references more, the caller's to keep track of.
    #[inline]
    pub(crate) fn add_refs(this: &Self, nr: u32) {
        if this.block().refcount.fetch_add(nr, Ordering::Relaxed) >= REFCOUNT_MAX {
            refcount_overflow();
        }
    }

    /// `nr` of these fewer. None of them is the last.
    #[inline]
    pub(crate) fn sub_refs(this: &Self, nr: u32) {
        let before = this.block().refcount.fetch_sub(nr, Ordering::Release);
        debug_assert!(before > nr, "INV-ARC-1");
    }

    #[inline(always)]
    fn block(&self) -> &Block<T> {
        // SAFETY: INV-ARC-1: this KArc is one of the owners.
        unsafe { self.block.as_ref() }
    }

    #[inline(always)]
    fn value_ptr(block: NonNull<Block<T>>) -> *const T {
        block
            .as_ptr()
            .cast::<u8>()
            .wrapping_add(offset_of!(Block<T>, value))
            .cast()
    }

    #[inline(always)]
    fn block_of(value: NonNull<T>) -> NonNull<Block<T>> {
        let block = value
            .as_ptr()
            .cast::<u8>()
            .wrapping_sub(offset_of!(Block<T>, value))
            .cast();
        // SAFETY: a value never sits at the start of the address space.
        unsafe { NonNull::new_unchecked(block) }
    }

    /// The link in `slot`, which List has checked at compile time to exist.
    #[inline(always)]
    pub(crate) fn link(&self, slot: usize) -> &crate::Link {
        // SAFETY: a reference is held.
        unsafe { Block::link(self.block.as_ptr(), slot) }
    }

    #[inline(always)]
    pub(crate) fn block_ptr(&self) -> *mut Block<T> {
        self.block.as_ptr()
    }

    #[inline(always)]
    pub(crate) fn block_nonnull(&self) -> NonNull<Block<T>> {
        self.block
    }

    #[inline(always)]
    pub(crate) fn into_block(self) -> NonNull<Block<T>> {
        ManuallyDrop::new(self).block
    }

    /// # Safety
    /// `block` came from `into_block`, once.
    #[inline(always)]
    pub(crate) unsafe fn from_block(block: NonNull<Block<T>>) -> Self {
        KArc { block }
    }
}

impl<T: Object> Clone for KArc<T> {
    #[inline]
    fn clone(&self) -> Self {
        if self.block().refcount.fetch_add(1, Ordering::Relaxed) >= REFCOUNT_MAX {
            refcount_overflow();
        }
        KArc { block: self.block }
    }
}

impl<T: Object> Deref for KArc<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        &self.block().value
    }
}

impl<T: Object> Drop for KArc<T> {
    #[inline]
    fn drop(&mut self) {
        if T::RCU_FREE {
            return self.put_rcu_free();
        }
        if self.block().refcount.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            // SAFETY: the count went from 1 to 0 here (INV-ARC-2).
            unsafe { release(self.block) };
        }
    }
}

impl<T: Object + core::fmt::Debug> core::fmt::Debug for KArc<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        T::fmt(self, f)
    }
}

/// Drops the value and frees the block.
///
/// # Safety
/// The caller is alone with the block (INV-ARC-2).
#[inline(never)]
unsafe fn release<T: Object>(block: NonNull<Block<T>>) {
    // SAFETY: the caller's promise; the value is not touched again.
    unsafe {
        ManuallyDrop::drop(&mut (*block.as_ptr()).value);
        T::CACHE.kmem_cache().free(block.cast());
    }
}

/// Releases the block after a grace period.
///
/// # Safety
/// The object's end has just begun (INV-ARC-2, INV-ARC-3).
#[inline(never)]
unsafe fn release_rcu<T: Object>(block: NonNull<Block<T>>) {
    // SAFETY: the tail is free for reuse (INV-ARC-3) and stays untouched until the callback, which
    // runs once, after the last reader (INV-ARC-2).
    unsafe {
        let head = (&raw mut (*block.as_ptr()).tail).cast::<RcuHead>();
        head.write(RcuHead::new());
        rcu::call(NonNull::new_unchecked(head), rcu_release::<T>);
    }
}

/// # Safety
/// `head` is the tail of a block given to `release_rcu`, and its grace period has ended.
unsafe fn rcu_release<T: Object>(head: NonNull<RcuHead>) {
    let block = head
        .as_ptr()
        .cast::<u8>()
        .wrapping_sub(offset_of!(Block<T>, tail))
        .cast();
    // SAFETY: the block around the head; no reader is left, so the caller is alone (INV-ARC-2).
    unsafe { release::<T>(NonNull::new_unchecked(block)) }
}

#[cold]
#[inline(never)]
fn refcount_overflow() -> ! {
    panic!("KArc reference count overflow");
}

/// An object of an `RCU_FREE` type whose last reference is gone. Dropped, it is freed after a grace period.
///
/// # Invariants
/// INV-ARC-4.
pub struct Idle<T: Object> {
    block: NonNull<Block<T>>,
}

// SAFETY: an object is Send and Sync; the holder is alone with it but for readers.
unsafe impl<T: Object> Send for Idle<T> {}
// SAFETY: as above.
unsafe impl<T: Object> Sync for Idle<T> {}

impl<T: Object> Idle<T> {
    #[inline(always)]
    pub(crate) fn into_block(self) -> NonNull<Block<T>> {
        ManuallyDrop::new(self).block
    }

    /// # Safety
    /// `block` came from `into_block`, once.
    #[inline(always)]
    pub(crate) unsafe fn from_block(block: NonNull<Block<T>>) -> Self {
        Idle { block }
    }

    /// The first reference of another life. RCU readers with a stale pointer may take theirs from now on.
    #[inline(always)]
    pub fn revive(self) -> KArc<T> {
        let block = self.into_block();
        // SAFETY: INV-ARC-4: the value is there; no list holds it, so the links are the holder's to make anew. Release:
        // who takes a reference sees what was prepared.
        unsafe {
            (&raw mut (*block.as_ptr()).tail.links)
                .cast::<T::Links>()
                .write(T::Links::NEW);
            (*block.as_ptr()).refcount.store(1, Ordering::Release);
        }
        KArc { block }
    }
}

impl<T: Object> Deref for Idle<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: INV-ARC-4.
        unsafe { &(*self.block.as_ptr()).value }
    }
}

impl<T: Object> Drop for Idle<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: INV-ARC-4: at its end, once.
        unsafe { release_rcu(self.block) };
    }
}

/// An allocated block without a value. Dropping it frees the block.
pub struct KArcUninit<T: Object> {
    block: NonNull<Block<T>>,
}

// SAFETY: an owned block without a value in it.
unsafe impl<T: Object> Send for KArcUninit<T> {}
// SAFETY: no access through a shared reference.
unsafe impl<T: Object> Sync for KArcUninit<T> {}

impl<T: Object> KArcUninit<T> {
    /// Moves `value` in and makes the first reference.
    #[inline]
    pub fn write(mut self, value: T) -> KArc<T> {
        self.value_mut().write(value);
        // SAFETY: just written.
        unsafe { self.assume_init() }
    }

    /// The room for the value.
    #[inline]
    pub fn value_mut(&mut self) -> &mut MaybeUninit<T> {
        // SAFETY: the block is owned, and MaybeUninit asks nothing of its contents.
        unsafe { &mut *KArc::<T>::value_ptr(self.block).cast_mut().cast() }
    }

    /// Makes the first reference.
    ///
    /// # Safety
    /// The value has been written through [`value_mut`](Self::value_mut).
    #[inline]
    pub unsafe fn assume_init(self) -> KArc<T> {
        let block = ManuallyDrop::new(self).block;
        // SAFETY: the block is owned and large enough (INV-OBJ-1). This establishes INV-ARC-1.
        unsafe {
            let raw = block.as_ptr();
            (&raw mut (*raw).refcount).write(AtomicU32::new(1));
            (&raw mut (*raw).tail.links)
                .cast::<T::Links>()
                .write(T::Links::NEW);
        }
        KArc { block }
    }
}

impl<T: Object> Drop for KArcUninit<T> {
    fn drop(&mut self) {
        // SAFETY: the block came from this cache and holds no value.
        unsafe { T::CACHE.kmem_cache().free(self.block.cast()) }
    }
}
