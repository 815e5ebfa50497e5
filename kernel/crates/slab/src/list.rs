//! `List<T, SLOT>`: an intrusive, doubly linked list that owns one reference per element.
//!
//! Problem: kernel lists must not allocate, must remove an element in O(1) from its address alone,
//! and an object sits in several lists at once. With pointers inside the objects this is unsafe in
//! C style: nothing stops the removal of an element from a list it is not in.
//!
//! Mechanism: each block carries N links. A link records the unique id of the list that it is in,
//! so that membership is checked, never assumed: insertion into a second list through the same slot
//! hands the element back, removal from another list returns None.
//!
//! Lock order: none here. A list is guarded by whatever guards the value it is a part of.
//!
//! INV-LIST-1: ids are never used twice, and are not 0. A list takes its id at its first insertion;
//! 2^48 of them per CPU last for years.
//! INV-LIST-2: `link.owner == id != 0` holds exactly for the elements of the list with that id. It
//! becomes so by a compare-exchange from 0 under `&mut` of that list, and 0 again under `&mut` of
//! the same list. `next` and `prev` of a link belong to that list: written under `&mut`, read
//! under `&`.
//! INV-LIST-3: the list owns one reference to each element; following `next` from `head` meets
//! `len` elements and ends in null; `prev` mirrors it from `tail`.

use crate::arc::{Block, KArc};
use crate::object::{Link, LinkArray, Object};
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU64, Ordering};
use ksync::{PreemptGuard, arch};

/// A list of `KArc<T>` through link number `SLOT` of each.
pub struct List<T: Object, const SLOT: usize> {
    head: *mut Block<T>,
    tail: *mut Block<T>,
    len: usize,
    /// 0 until the first insertion.
    id: u64,
    owns: PhantomData<KArc<T>>,
}

// SAFETY: a list is a set of KArcs (INV-LIST-3) plus links that only it touches (INV-LIST-2).
unsafe impl<T: Object + Send + Sync, const SLOT: usize> Send for List<T, SLOT> {}
// SAFETY: as above; `&List` only reads.
unsafe impl<T: Object + Send + Sync, const SLOT: usize> Sync for List<T, SLOT> {}

impl<T: Object, const SLOT: usize> List<T, SLOT> {
    /// Refuses at compile time a slot that T does not have.
    const SLOT_EXISTS: () = assert!(SLOT < T::Links::N, "T has no such link slot");

    /// An empty list.
    pub const fn new() -> Self {
        let () = Self::SLOT_EXISTS;
        List {
            head: ptr::null_mut(),
            tail: ptr::null_mut(),
            len: 0,
            id: 0,
            owns: PhantomData,
        }
    }

    /// The number of elements.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// The first element.
    #[inline]
    pub fn front(&self) -> Option<&KArc<T>> {
        as_arc(&self.head)
    }

    /// The last element.
    #[inline]
    pub fn back(&self) -> Option<&KArc<T>> {
        as_arc(&self.tail)
    }

    /// Whether `element` is in this list.
    #[inline]
    pub fn contains(&self, element: &KArc<T>) -> bool {
        self.id != 0 && element.link(SLOT).owner.load(Ordering::Relaxed) == self.id
    }

    /// The element after `element`; None at the end or if `element` is not in this list.
    #[inline]
    pub fn next(&self, element: &KArc<T>) -> Option<&KArc<T>> {
        if !self.contains(element) {
            return None;
        }
        let next: *const *mut Block<T> = element.link(SLOT).next.get().cast();
        // SAFETY: INV-LIST-2: the link is this list's, and `&self` keeps it unchanged for the
        // life of the result, which the list's own reference keeps alive.
        as_arc(unsafe { &*next })
    }

    /// Appends. Gives `element` back if its slot is in a list (this or another).
    #[inline]
    pub fn push_back(&mut self, element: KArc<T>) -> Result<(), KArc<T>> {
        let element = self.claim(element)?;
        let prev = self.tail;
        self.link_between(element, prev, ptr::null_mut());
        Ok(())
    }

    /// Prepends. Gives `element` back if its slot is in a list (this or another).
    #[inline]
    pub fn push_front(&mut self, element: KArc<T>) -> Result<(), KArc<T>> {
        let element = self.claim(element)?;
        let next = self.head;
        self.link_between(element, ptr::null_mut(), next);
        Ok(())
    }

    /// Inserts before `at`. Gives `element` back if its slot is in a list, or `at` is not in this.
    pub fn insert_before(&mut self, at: &KArc<T>, element: KArc<T>) -> Result<(), KArc<T>> {
        if !self.contains(at) {
            return Err(element);
        }
        let element = self.claim(element)?;
        let next = at.block_ptr();
        // SAFETY: `at` is in this list (INV-LIST-2).
        let prev = unsafe { read(&at.link(SLOT).prev) };
        self.link_between(element, prev, next);
        Ok(())
    }

    /// Removes and returns the first element.
    #[inline]
    pub fn pop_front(&mut self) -> Option<KArc<T>> {
        let block = NonNull::new(self.head)?;
        // SAFETY: the head is in this list (INV-LIST-3).
        Some(unsafe { self.unlink(block) })
    }

    /// Removes and returns the last element.
    #[inline]
    pub fn pop_back(&mut self) -> Option<KArc<T>> {
        let block = NonNull::new(self.tail)?;
        // SAFETY: the tail is in this list (INV-LIST-3).
        Some(unsafe { self.unlink(block) })
    }

    /// Removes `element` and returns the list's reference; None if it is not in this list.
    #[inline]
    pub fn remove(&mut self, element: &KArc<T>) -> Option<KArc<T>> {
        if !self.contains(element) {
            return None;
        }
        // SAFETY: just checked (INV-LIST-2).
        Some(unsafe { self.unlink(element.block_nonnull()) })
    }

    /// The elements in order.
    #[inline]
    pub fn iter(&self) -> Iter<'_, T, SLOT> {
        Iter {
            next: self.front(),
            list: self,
        }
    }

    /// Keeps the elements for which `keep` says so and drops the others.
    pub fn retain(&mut self, mut keep: impl FnMut(&KArc<T>) -> bool) {
        let mut at = self.head;
        while let Some(block) = NonNull::new(at) {
            let element = as_arc(&at).expect("not null");
            // SAFETY: the element is in this list (INV-LIST-3).
            let next = unsafe { read(&element.link(SLOT).next) };
            if !keep(element) {
                // SAFETY: as above.
                drop(unsafe { self.unlink(block) });
            }
            at = next;
        }
    }

    /// Removes and returns the first element for which `wanted` says so.
    pub fn remove_first(&mut self, mut wanted: impl FnMut(&KArc<T>) -> bool) -> Option<KArc<T>> {
        let block = self.iter().find(|e| wanted(e))?.block_nonnull();
        // SAFETY: just found in this list.
        Some(unsafe { self.unlink(block) })
    }

    /// Moves all elements of `other` to the end of this list, in order. O(1) if this list is
    /// empty, else linear in `other`, whose links must learn this list's id.
    pub fn append(&mut self, other: &mut Self) {
        if self.is_empty() {
            core::mem::swap(self, other);
            return;
        }
        while let Some(element) = other.pop_front() {
            let linked = self.push_back(element);
            // The slot was free a moment ago, but another list may have taken it since.
            drop(linked);
        }
    }

    /// Marks the element as this list's and gives up its reference to the list.
    #[inline(always)]
    fn claim(&mut self, element: KArc<T>) -> Result<NonNull<Block<T>>, KArc<T>> {
        if self.id == 0 {
            self.id = new_id();
        }
        // Acquire: after the previous list's last use of the links (Release in unlink).
        let claimed = element.link(SLOT).owner.compare_exchange(
            0,
            self.id,
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        match claimed {
            Ok(_) => Ok(element.into_block()),
            Err(_) => Err(element),
        }
    }

    /// Links a claimed element between two neighbours of this list (null: the ends).
    #[inline(always)]
    fn link_between(&mut self, block: NonNull<Block<T>>, prev: *mut Block<T>, next: *mut Block<T>) {
        // SAFETY: `block` was claimed, `prev` and `next` are in this list, and we hold `&mut`
        // (INV-LIST-2).
        unsafe {
            let link = link_of::<T, SLOT>(block.as_ptr());
            *link.prev.get() = prev.cast();
            *link.next.get() = next.cast();
        }
        self.set_next(prev, block.as_ptr());
        self.set_prev(next, block.as_ptr());
        self.len += 1;
    }

    /// Takes an element out and returns the list's reference.
    ///
    /// # Safety
    /// `block` is in this list.
    #[inline(always)]
    unsafe fn unlink(&mut self, block: NonNull<Block<T>>) -> KArc<T> {
        // SAFETY: the caller's promise, and INV-LIST-2 under `&mut self`.
        unsafe {
            let link = link_of::<T, SLOT>(block.as_ptr());
            let (prev, next) = (read::<T>(&link.prev), read::<T>(&link.next));
            self.set_next(prev, next);
            self.set_prev(next, prev);
            self.len -= 1;
            // Release: our uses of the links come before the next list's (Acquire in claim).
            link.owner.store(0, Ordering::Release);
            KArc::from_block(block)
        }
    }

    #[inline(always)]
    fn set_next(&mut self, of: *mut Block<T>, next: *mut Block<T>) {
        if of.is_null() {
            self.head = next;
        } else {
            // SAFETY: `of` is in this list (INV-LIST-2).
            unsafe { *link_of::<T, SLOT>(of).next.get() = next.cast() }
        }
    }

    #[inline(always)]
    fn set_prev(&mut self, of: *mut Block<T>, prev: *mut Block<T>) {
        if of.is_null() {
            self.tail = prev;
        } else {
            // SAFETY: `of` is in this list (INV-LIST-2).
            unsafe { *link_of::<T, SLOT>(of).prev.get() = prev.cast() }
        }
    }

    /// Walks the list and panics if it is not as INV-LIST-3 says.
    pub fn check_invariants(&self) {
        let (mut at, mut prev, mut count) = (self.head, ptr::null_mut(), 0);
        while let Some(element) = as_arc(&at) {
            assert!(self.contains(element));
            // SAFETY: an element of this list (INV-LIST-2).
            let (p, n) = unsafe {
                (
                    read(&element.link(SLOT).prev),
                    read(&element.link(SLOT).next),
                )
            };
            assert!(p == prev);
            count += 1;
            assert!(count <= self.len);
            prev = at;
            at = n;
        }
        assert!(prev == self.tail && count == self.len);
    }
}

impl<T: Object, const SLOT: usize> Drop for List<T, SLOT> {
    fn drop(&mut self) {
        while self.pop_front().is_some() {}
    }
}

/// Iterates over a list; yields `&KArc<T>`.
pub struct Iter<'a, T: Object, const SLOT: usize> {
    list: &'a List<T, SLOT>,
    next: Option<&'a KArc<T>>,
}

impl<'a, T: Object, const SLOT: usize> Iterator for Iter<'a, T, SLOT> {
    type Item = &'a KArc<T>;
    #[inline]
    fn next(&mut self) -> Option<&'a KArc<T>> {
        let element = self.next?;
        self.next = self.list.next(element);
        Some(element)
    }
}

impl<'a, T: Object, const SLOT: usize> IntoIterator for &'a List<T, SLOT> {
    type Item = &'a KArc<T>;
    type IntoIter = Iter<'a, T, SLOT>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// A stored pointer seen as the reference that it stands for.
#[inline(always)]
fn as_arc<T: Object>(stored: &*mut Block<T>) -> Option<&KArc<T>> {
    if stored.is_null() {
        return None;
    }
    // SAFETY: KArc<T> is repr(transparent) over a non-null block pointer, and the list owns a
    // reference for each stored pointer (INV-LIST-3).
    Some(unsafe { &*(stored as *const *mut Block<T>).cast::<KArc<T>>() })
}

/// # Safety
/// `block` is in a list borrowed for 'a.
#[inline(always)]
unsafe fn link_of<'a, T: Object, const SLOT: usize>(block: *mut Block<T>) -> &'a Link {
    // SAFETY: the caller's promise: the list owns a reference (INV-LIST-3).
    unsafe { Block::link(block, SLOT) }
}

/// # Safety
/// The pointer belongs to a list that the caller has borrowed.
#[inline(always)]
unsafe fn read<T: Object>(cell: &core::cell::UnsafeCell<*mut ()>) -> *mut Block<T> {
    // SAFETY: the caller's promise (INV-LIST-2).
    unsafe { (*cell.get()).cast() }
}

/// A list id that nobody has had (INV-LIST-1): the CPU's number above a count that this CPU keeps.
#[cold]
fn new_id() -> u64 {
    let guard = PreemptGuard::new();
    let cpu = arch::smp_processor_id() as u64;
    // SAFETY: SLAB_AREA is this crate's, in every window, zero at boot (INV-PCPU-3); this word is
    // used here only.
    let count = unsafe { &*((arch::this_cpu_base() + percpu::SLAB_AREA) as *const AtomicU64) };
    let n = count.load(Ordering::Relaxed) + 1;
    count.store(n, Ordering::Relaxed);
    drop(guard);
    cpu << 48 | n
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    struct Item(u32);
    crate::object!(Item, "test_item", links = 2);

    fn values<const S: usize>(list: &List<Item, S>) -> Vec<u32> {
        list.check_invariants();
        list.iter().map(|e| e.0).collect()
    }

    #[test]
    fn an_element_is_in_one_list_per_slot() {
        let _machine = crate::tests::machine();
        let mut a = List::<Item, 0>::new();
        let mut b = List::<Item, 0>::new();
        let mut other_slot = List::<Item, 1>::new();
        let x = KArc::new(Item(1)).unwrap();
        assert!(a.push_back(x.clone()).is_ok());
        assert!(b.push_back(x.clone()).is_err());
        assert!(other_slot.push_front(x.clone()).is_ok());
        assert!(b.remove(&x).is_none());
        assert_eq!(KArc::refcount(&x), 3);
        assert!(a.remove(&x).is_some());
        assert!(b.push_back(x.clone()).is_ok());
        drop((a, b, other_slot));
        assert_eq!(KArc::refcount(&x), 1);
    }

    #[test]
    fn order() {
        let _machine = crate::tests::machine();
        let mut a = List::<Item, 0>::new();
        for i in 0..5 {
            let x = KArc::new(Item(i)).unwrap();
            let r = if i % 2 == 0 {
                a.push_back(x)
            } else {
                a.push_front(x)
            };
            assert!(r.is_ok());
        }
        assert_eq!(values(&a), [3, 1, 0, 2, 4]);
        a.retain(|e| e.0 != 0 && e.0 != 4);
        assert_eq!(values(&a), [3, 1, 2]);
        assert_eq!(a.pop_back().unwrap().0, 2);
        let mut b = List::new();
        b.append(&mut a);
        assert_eq!(values(&b), [3, 1]);
        assert!(values(&a).is_empty());
    }
}
