//! `Idr<T>`: numbers to counted objects, many maps behind one lock, safe from outside.
//!
//! Problem. Several maps must change in one hold of one lock (a pid has a number in its namespace
//! and in every ancestor), a number must be taken before its object may be seen, look-ups must not
//! take the lock, and crates that forbid unsafe code must be able to say all this.
//!
//! Mechanism. The lock is a value of its own ([`IdrLock`]); each map remembers which lock guards it
//! and every change asks for the guard as evidence, checked by one comparison. Taking a number
//! yields a [`Reserved`], which alone can show an object under it ([`Reserved::publish`], without a
//! second walk) or give it back. Entries own a reference; objects must be `RCU_FREE`, so a reader
//! inside an RCU section may look at what it found, or try to take a reference.
//!
//! The bottom node behind the cursor is *kept*: the next number is most likely in it, and is taken there without a walk;
//! and when numbers come and go one at a time, as in a small namespace, the node need not be made and retired each
//! time. A look at one word says whether it applies. The cursor leaves a node after at most 64 numbers.
//!
//! Lock order: an `IdrLock` is a leaf spinlock, except that RCU callbacks may be queued and (through
//! the last reference to an object) nothing else runs under it.
//!
//! Invariants
//! - INV-IDR-1 (one lock): `tree` changes only while a guard of `lock` exists.
//! - INV-IDR-2 (tokens): for each word RESERVED in the tree there is at most one [`Reserved`]; while
//!   it lives the word stays, hence its node stays.
//! - INV-IDR-3 (references): each visible word is `KArc::into_raw` of a reference the map owns; the
//!   word is cleared before the reference is given up.
//! - INV-IDR-4 (kept node): `kept` is null or the bottom node, in the tree, of the number given out last; its `count` is
//!   one higher for it than the words in it. A node without words is in the tree only if it is kept.

use crate::NeedNodes;
use crate::node::{Node, Preload, SLOTS};
use crate::tree::{Place, RESERVED, Retire, SlotRef, Tree};
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering::Relaxed};
use ksync::rcu::{self, RcuGuard};
use ksync::{LockClass, SpinGuard, SpinLock};
use slab::{KArc, Object};

/// Why a number was not had. Nothing has changed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum IdrError {
    /// The number asked for is taken.
    Exists,
    /// No number is free in the range.
    Full,
    /// Too few spare nodes: this many are needed in all.
    NeedNodes(usize),
}

impl From<NeedNodes> for IdrError {
    fn from(NeedNodes(n): NeedNodes) -> Self {
        IdrError::NeedNodes(n)
    }
}

/// The lock of any number of [`Idr`]s.
pub struct IdrLock {
    lock: SpinLock<()>,
}

impl IdrLock {
    /// A lock counted under `class`.
    pub const fn new(class: &'static LockClass) -> Self {
        IdrLock {
            lock: SpinLock::new((), class),
        }
    }

    /// Acquires. Spins; preemption is off until the guard drops.
    #[inline]
    pub fn lock(&self) -> IdrGuard<'_> {
        IdrGuard {
            owner: self,
            _held: self.lock.lock(),
        }
    }
}

/// Evidence that an [`IdrLock`] is held.
#[must_use]
pub struct IdrGuard<'a> {
    owner: &'a IdrLock,
    _held: SpinGuard<'a, ()>,
}

/// Where a number may lie, both ends included.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct AllocRange {
    /// The smallest number.
    pub min: u32,
    /// The greatest number.
    pub max: u32,
}

/// Which lock guards a map.
enum LockRef {
    /// One for several maps.
    Shared(&'static IdrLock),
    /// The map's own.
    Own(IdrLock),
}

/// A map from numbers to `T`s, guarded by an [`IdrLock`], read under RCU.
///
/// # Invariants
/// INV-IDR-1..3.
pub struct Idr<T: Object> {
    tree: Tree,
    /// One more than the number given out last. Written under the lock.
    cursor: AtomicU32,
    /// INV-IDR-4. Written under the lock.
    kept: AtomicPtr<Node>,
    lock: LockRef,
    owns: PhantomData<KArc<T>>,
}

// SAFETY: a set of KArc<T> (INV-IDR-3) and a tree changed under its lock only.
unsafe impl<T: Object + Send + Sync> Send for Idr<T> {}
// SAFETY: as above; readers get `&T` or new references.
unsafe impl<T: Object + Send + Sync> Sync for Idr<T> {}

impl<T: Object> Idr<T> {
    /// Look-ups return objects whose last reference may go at any moment.
    const READERS_ARE_SAFE: () = assert!(T::RCU_FREE, "objects in an Idr must be RCU_FREE");

    /// An empty map guarded by `lock`; no memory.
    pub const fn new(lock: &'static IdrLock) -> Self {
        let () = Self::READERS_ARE_SAFE;
        Idr {
            tree: Tree::new(),
            cursor: AtomicU32::new(0),
            kept: AtomicPtr::new(ptr::null_mut()),
            lock: LockRef::Shared(lock),
            owns: PhantomData,
        }
    }

    /// An empty map with a lock of its own, counted under `class`; no memory.
    pub const fn with_own_lock(class: &'static LockClass) -> Self {
        let () = Self::READERS_ARE_SAFE;
        Idr {
            tree: Tree::new(),
            cursor: AtomicU32::new(0),
            kept: AtomicPtr::new(ptr::null_mut()),
            lock: LockRef::Own(IdrLock::new(class)),
            owns: PhantomData,
        }
    }

    /// The lock that guards this map.
    #[inline(always)]
    pub fn lock(&self) -> &IdrLock {
        match &self.lock {
            LockRef::Shared(lock) => lock,
            LockRef::Own(lock) => lock,
        }
    }

    /// Whether no number is taken and no node kept.
    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// Where the cyclic search starts next. Exact under the lock, a hint otherwise.
    #[inline(always)]
    pub fn cursor(&self) -> u32 {
        self.cursor.load(Relaxed)
    }

    /// Moves the cursor.
    #[inline]
    pub fn set_cursor(&self, guard: &mut IdrGuard<'_>, cursor: u32) {
        self.let_go(guard);
        self.cursor.store(cursor, Relaxed);
    }

    /// Keeps no node any more: for who wants the memory back.
    pub fn let_go(&self, guard: &mut IdrGuard<'_>) {
        self.check(guard);
        self.keep(ptr::null_mut());
    }

    /// Keeps `node` (or nothing) instead of what was kept before. The lock is held; the node is in the tree.
    #[cold]
    fn keep(&self, node: *mut Node) {
        let before = self.kept.load(Relaxed);
        if before == node {
            return;
        }
        // SAFETY: the lock is held: the only writer; both nodes are in the tree (INV-IDR-4).
        unsafe {
            if let Some(node) = NonNull::new(node) {
                node.as_ref().set_count(node.as_ref().count() + 1);
            }
            self.kept.store(node, Relaxed);
            if let Some(before) = NonNull::new(before) {
                let count = before.as_ref().count() - 1;
                before.as_ref().set_count(count);
                if count == 0 {
                    self.tree.unlink_bottom(before, Retire::Rcu);
                }
            }
        }
    }

    /// A guess, without the lock, of the spare nodes that the next [`Idr::reserve_cyclic`] needs:
    /// right but for races and for a tree that has no node yet.
    #[inline(always)]
    pub fn spare_hint(&self, range: AllocRange) -> usize {
        let next = self.cursor().max(range.min);
        if next & 63 != 0 {
            0
        } else {
            (next.trailing_zeros() / crate::node::SHIFT).max(1) as usize
        }
    }

    /// INV-IDR-1.
    #[inline(always)]
    fn check(&self, guard: &IdrGuard<'_>) {
        assert!(
            core::ptr::eq(guard.owner, self.lock()),
            "guard of another lock"
        );
    }

    /// Takes the first free number from the cursor up, or if there is none from `range.min` up, and
    /// moves the cursor behind it.
    #[inline(always)]
    pub fn reserve_cyclic<'i>(
        &'i self,
        guard: &mut IdrGuard<'_>,
        range: AllocRange,
        spare: &mut Preload,
    ) -> Result<Reserved<'i, T>, IdrError> {
        self.check(guard);
        let id = self.cursor();
        let offset = id as usize % SLOTS;
        if let Some(node) = NonNull::new(self.kept.load(Relaxed))
            && offset != 0
            && id >= range.min
            && id <= range.max
        {
            // SAFETY: in the tree (INV-IDR-4), and the lock is held. The number before `id` is in this node, so `id` is.
            unsafe {
                if node.as_ref().free() >> offset & 1 != 0 {
                    let slot = SlotRef { node, offset };
                    // INVARIANT: INV-IDR-2: the one token for this word is made here.
                    self.tree.fill(slot, RESERVED);
                    self.cursor.store(id + 1, Relaxed);
                    return Ok(Reserved {
                        idr: self,
                        id,
                        slot,
                    });
                }
            }
        }
        self.reserve_and_keep(guard, range, spare)
    }

    #[inline(never)]
    fn reserve_and_keep<'i>(
        &'i self,
        guard: &mut IdrGuard<'_>,
        range: AllocRange,
        spare: &mut Preload,
    ) -> Result<Reserved<'i, T>, IdrError> {
        let reserved = self.reserve_by_walk(guard, range, spare)?;
        self.keep(reserved.slot.node.as_ptr());
        Ok(reserved)
    }

    /// [`reserve_cyclic`](Self::reserve_cyclic) by a walk from the top, keeping no node. A map is used in one of the two
    /// ways.
    #[inline]
    pub fn reserve_by_walk<'i>(
        &'i self,
        guard: &mut IdrGuard<'_>,
        range: AllocRange,
        spare: &mut Preload,
    ) -> Result<Reserved<'i, T>, IdrError> {
        self.check(guard);
        let (min, max) = (u64::from(range.min), u64::from(range.max));
        let start = u64::from(self.cursor()).max(min);
        // SAFETY: the lock is held: the only writer.
        let place = unsafe { self.tree.find_free(start, max) };
        let place = match place {
            Some(place) => place,
            None => self.wrap(min, start, max)?,
        };
        let reserved = self.take(place, spare)?;
        self.cursor.store(reserved.id.wrapping_add(1), Relaxed);
        Ok(reserved)
    }

    #[cold]
    fn wrap(&self, min: u64, start: u64, max: u64) -> Result<Place, IdrError> {
        if start <= min {
            return Err(IdrError::Full);
        }
        // SAFETY: called with the lock held.
        unsafe { self.tree.find_free(min, max.min(start - 1)) }.ok_or(IdrError::Full)
    }

    /// Takes exactly `id`. The cursor stays.
    pub fn reserve_at<'i>(
        &'i self,
        guard: &mut IdrGuard<'_>,
        id: u32,
        spare: &mut Preload,
    ) -> Result<Reserved<'i, T>, IdrError> {
        self.check(guard);
        let id = u64::from(id);
        // SAFETY: the lock is held: the only writer.
        match unsafe { self.tree.find_free(id, id) } {
            Some(place) => self.take(place, spare),
            None => Err(IdrError::Exists),
        }
    }

    #[inline(always)]
    fn take(&self, place: Place, spare: &mut Preload) -> Result<Reserved<'_, T>, IdrError> {
        // SAFETY: called with the lock held, with a place found under it.
        unsafe {
            let slot = self.tree.open(place, spare)?;
            // INVARIANT: INV-IDR-2: the one token for this word is made here.
            self.tree.fill(slot, RESERVED);
            Ok(Reserved {
                idr: self,
                id: place.index as u32,
                slot,
            })
        }
    }

    /// Takes the object at `id` out and frees the number. None if nothing is visible there.
    #[inline]
    pub fn remove(&self, guard: &mut IdrGuard<'_>, id: u32) -> Option<KArc<T>> {
        self.check(guard);
        // SAFETY: the lock is held; a visible word is a reference the map owns, which passes to
        // the caller after the word is cleared (INV-IDR-3). RESERVED words are left alone
        // (INV-IDR-2).
        unsafe {
            let slot = self.tree.slot(u64::from(id))?;
            let word = slot.node.as_ref().slot(slot.offset);
            let value = NonNull::new(word).filter(|w| w.as_ptr() != RESERVED)?;
            self.tree.clear(slot, Retire::Rcu);
            Some(KArc::from_raw(value.cast()))
        }
    }

    /// The object at `id`, to look at during the RCU section. Lockless.
    #[inline]
    pub fn peek<'r>(&self, _rcu: &'r RcuGuard, id: u32) -> Option<&'r T> {
        // SAFETY: inside an RCU section. The word was a reference of the map when read; T is
        // RCU_FREE, so the value stays until the section ends (INV-IDR-3).
        unsafe { NonNull::new(self.tree.load(u64::from(id)).cast::<T>()).map(|p| p.as_ref()) }
    }

    /// A reference to the object at `id`. Lockless.
    #[inline]
    pub fn get(&self, id: u32) -> Option<KArc<T>> {
        let _rcu = rcu::read_lock();
        // SAFETY: inside an RCU section; the word came from `KArc::into_raw` and is cleared
        // before its reference is given up (INV-IDR-3); T is RCU_FREE.
        unsafe {
            let value = NonNull::new(self.tree.load(u64::from(id)))?;
            KArc::try_get_rcu(value.cast())
        }
    }

    /// Gives each object of [first, last] to `f`, in order, to look at during the RCU section. Lockless; what comes and
    /// goes meanwhile may or may not be seen.
    #[inline]
    pub fn for_each<'r>(
        &self,
        _rcu: &'r RcuGuard,
        first: u32,
        last: u32,
        mut f: impl FnMut(u32, &'r T),
    ) where
        T: 'r,
    {
        // SAFETY: as in `peek`.
        unsafe {
            self.tree.for_each(first.into(), last.into(), |id, word| {
                f(id as u32, &*word.cast::<T>().cast_const());
            });
        }
    }

    /// The first object at or after `from`, with its number. Lockless; what comes and goes meanwhile
    /// may or may not be seen.
    pub fn next(&self, mut from: u32) -> Option<(u32, KArc<T>)> {
        let _rcu = rcu::read_lock();
        loop {
            // SAFETY: as in `get`.
            unsafe {
                let (id, word) = self.tree.next(u64::from(from), u64::from(u32::MAX))?;
                if let Some(object) = KArc::try_get_rcu(NonNull::new_unchecked(word.cast())) {
                    return Some((id as u32, object));
                }
                from = (id as u32).checked_add(1)?;
            }
        }
    }

    /// Panics unless the tree is as its invariants say; returns (numbers taken, nodes). For tests.
    pub fn check_invariants(&self, guard: &mut IdrGuard<'_>) -> (usize, usize) {
        self.check(guard);
        // SAFETY: the lock is held.
        unsafe { self.tree.check(self.kept.load(Relaxed)) }
    }
}

impl<T: Object> Drop for Idr<T> {
    fn drop(&mut self) {
        self.tree.drain(Retire::Now, |_, word| {
            if let Some(value) = NonNull::new(word).filter(|w| w.as_ptr() != RESERVED) {
                // SAFETY: a reference of the map (INV-IDR-3).
                drop(unsafe { KArc::<T>::from_raw(value.cast()) });
            }
        });
    }
}

/// A number that is taken and shows nothing. Publish it or cancel it: dropped, it stays taken.
#[must_use]
pub struct Reserved<'i, T: Object> {
    idr: &'i Idr<T>,
    id: u32,
    slot: SlotRef,
}

impl<T: Object> Reserved<'_, T> {
    /// The number.
    #[inline(always)]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Shows `object` under the number, from now on. No walk, cannot fail.
    #[inline]
    pub fn publish(self, guard: &mut IdrGuard<'_>, object: KArc<T>) {
        self.idr.check(guard);
        // SAFETY: the node is in the tree because the word is (INV-IDR-2). Release in `set_slot`
        // makes the object's contents visible with it (INV-IDR-3).
        unsafe { self.slot.node.as_ref() }
            .set_slot(self.slot.offset, KArc::into_raw(object).as_ptr().cast());
    }

    /// [`publish`](Self::publish) by a walk from the top, as an API without tokens has to.
    #[inline]
    pub fn publish_by_walk(self, guard: &mut IdrGuard<'_>, object: KArc<T>) {
        self.idr.check(guard);
        // SAFETY: the lock is held: the only writer.
        let slot = unsafe { self.idr.tree.slot(u64::from(self.id)) };
        let slot = slot.expect("INV-IDR-2: the word keeps its node");
        // SAFETY: a node of the tree; the rest as in `publish`.
        let node = unsafe { slot.node.as_ref() };
        node.set_slot(slot.offset, KArc::into_raw(object).as_ptr().cast());
    }

    /// Frees the number.
    pub fn cancel(self, guard: &mut IdrGuard<'_>) {
        self.idr.check(guard);
        // SAFETY: the lock is held, the slot holds RESERVED (INV-IDR-2), and the token is gone.
        unsafe { self.idr.tree.clear(self.slot, Retire::Rcu) };
    }
}
