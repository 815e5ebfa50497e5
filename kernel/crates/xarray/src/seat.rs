//! `Seat<T>`: the slot of a [`LeaseMap`](crate::LeaseMap) that an object has, whether it is in it or not.
//!
//! Problem. An object that leaves a map and comes back under the same number walks the tree twice, and its node may have
//! gone in between.
//!
//! Mechanism. The seat remembers node and slot in one word, and keeps the node as a taken number does. It is no right to the
//! number: while the object is away its slot is null, free for anybody, and to have it back takes the same
//! compare-and-swap as any claim (INV-LEASE-1).
//!
//! Context: as for the map; a seat may be used by several at once.
//!
//! Invariants
//! - INV-SEAT-1 (kept node): a seat that is set counts one in its node (INV-LEASE-2). It is followed inside an RCU section,
//!   which outlasts the node if another gives the seat up meanwhile.

use crate::leased::Claim;
use crate::node::{Node, SLOTS};
use crate::tree::RESERVED;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering::*};
use ksync::rcu::{self, RcuGuard};
use slab::{KArc, Object};

/// The bits of a node's address that its alignment leaves for the slot.
const OFFSET: usize = SLOTS - 1;
const _: () = assert!(align_of::<Node>() >= SLOTS);

/// Where in a map an object belongs. Dropped, it is given up.
///
/// # Invariants
/// INV-SEAT-1.
pub struct Seat<T: Object> {
    /// The node, with the slot's number in the low bits; null: none.
    at: AtomicPtr<Node>,
    owns: PhantomData<fn(KArc<T>)>,
}

impl<T: Object> Seat<T> {
    /// No seat yet.
    #[inline(always)]
    pub const fn none() -> Self {
        Seat {
            at: AtomicPtr::new(ptr::null_mut()),
            owns: PhantomData,
        }
    }

    /// The slot, for as long as the RCU section lasts.
    #[inline(always)]
    fn slot<'r>(&self, _here: &'r RcuGuard) -> Option<&'r AtomicPtr<()>> {
        let at = self.at.load(Relaxed);
        if at.is_null() {
            return None;
        }
        let node = at.map_addr(|a| a & !OFFSET);
        // SAFETY: INV-SEAT-1.
        Some(unsafe { &(&(*node).slots)[at.addr() & OFFSET] })
    }

    /// Takes the number again, unless somebody has it. The caller shows the object or cancels.
    #[inline(always)]
    pub fn take(&self, here: &RcuGuard) -> bool {
        let Some(word) = self.slot(here) else {
            return false;
        };
        crate::leased::try_take(word)
    }

    /// Shows `object`, after [`take`](Self::take), in the same RCU section.
    #[inline(always)]
    pub fn show(&self, object: KArc<T>, here: &RcuGuard) {
        if let Some(word) = self.slot(here) {
            ksync::arch::interleave();
            debug_assert!(word.load(Relaxed) == RESERVED, "INV-LEASE-1");
            // Release: the object's contents become visible with it (INV-LEASE-4).
            word.store(KArc::into_raw(object).as_ptr().cast(), Release);
        }
    }

    /// Frees the number, after [`take`](Self::take), in the same RCU section.
    pub fn cancel(&self, here: &RcuGuard) {
        if let Some(word) = self.slot(here) {
            debug_assert!(word.load(Relaxed) == RESERVED, "INV-LEASE-1");
            word.store(ptr::null_mut(), Release);
        }
    }

    /// Takes `object` out and frees the number; the seat stays. None: it is not there.
    #[inline(always)]
    pub fn leave(&self, object: &KArc<T>, here: &RcuGuard) -> Option<KArc<T>> {
        let word = self.slot(here)?;
        let expected = KArc::as_ptr(object).cast_mut().cast::<()>();
        ksync::arch::interleave();
        word.compare_exchange(expected, ptr::null_mut(), AcqRel, Relaxed)
            .ok()?;
        // SAFETY: the word was a reference of the map and is cleared (INV-LEASE-4); it was not null.
        Some(unsafe { KArc::from_raw(NonNull::new_unchecked(expected).cast()) })
    }

    /// Makes the claim's slot this seat's, and the claim's reason to keep the node.
    pub(crate) fn set(&self, node: NonNull<Node>, offset: usize) {
        let at = node.as_ptr().map_addr(|a| a | (offset & OFFSET));
        self.replace(at);
    }

    /// Gives the seat up, wherever the object is.
    #[inline]
    pub fn give_up(&self) {
        self.replace(ptr::null_mut());
    }

    #[inline(always)]
    fn replace(&self, at: *mut Node) {
        let _here = rcu::read_lock();
        let old = self.at.swap(at, AcqRel).map_addr(|a| a & !OFFSET);
        if !old.is_null() {
            // SAFETY: INV-SEAT-1: kept until here.
            unsafe { &*old }.count.fetch_sub(1, AcqRel);
        }
    }
}

impl<T: Object> Drop for Seat<T> {
    #[inline]
    fn drop(&mut self) {
        if !self.at.get_mut().is_null() {
            self.give_up();
        }
    }
}

impl<T: Object> Claim<'_, T> {
    /// Shows `object` under the number, from now on, and makes the slot its `seat`. No walk, cannot fail.
    #[inline(always)]
    pub fn publish(self, object: KArc<T>, seat: &Seat<T>) {
        ksync::arch::interleave();
        seat.set(self.slot.node, self.slot.offset);
        // SAFETY: the seat keeps the node now (INV-SEAT-1). Release in `set_slot` makes the object's contents visible with
        // it (INV-LEASE-4).
        unsafe { self.slot.node.as_ref() }
            .set_slot(self.slot.offset, KArc::into_raw(object).as_ptr().cast());
    }
}
