//! `XArray<E>`: indices to copyable entries.
//!
//! Mechanism. A typed face of the tree. Three ways in, by what the caller can show:
//! - `&mut self` (say, through a lock's guard that owns the array): store, erase, allocate; nobody
//!   else can be reading, so nodes are freed at once;
//! - an RCU guard: [`XArray::load`], [`XArray::next`], lockless, beside one writer;
//! - the promise (unsafe) to be the only writer: [`XArray::writer`]; nodes are freed after a grace
//!   period. What an entry refers to needs its own protection, for the entry may be erased at
//!   any moment after the load.

use crate::NeedNodes;
use crate::idr::IdrError;
use crate::node::Preload;
use crate::tree::{RESERVED, Retire, Tree};
use core::marker::PhantomData;
use core::ptr::NonNull;
use ksync::rcu::RcuGuard;
use slab::AllocError;

/// Something that fits a slot.
///
/// # Safety
/// `from_raw(into_raw(e))` is `e`, and `into_raw` never gives address 2.
pub unsafe trait Entry: Copy {
    /// The word for the slot.
    fn into_raw(self) -> NonNull<()>;
    /// The entry back.
    ///
    /// # Safety
    /// `raw` came from `into_raw` of the same type.
    unsafe fn from_raw(raw: NonNull<()>) -> Self;
}

/// An integer of 63 bits as an entry.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value(pub usize);

// SAFETY: odd, so neither null nor 2; the shift is undone.
unsafe impl Entry for Value {
    #[inline(always)]
    fn into_raw(self) -> NonNull<()> {
        debug_assert!(self.0 <= usize::MAX >> 1);
        NonNull::without_provenance(core::num::NonZeroUsize::MIN | self.0 << 1)
    }
    #[inline(always)]
    unsafe fn from_raw(raw: NonNull<()>) -> Self {
        Value(raw.addr().get() >> 1)
    }
}

// SAFETY: a cast there and back; a `T` aligned to 4 or more never sits at address 2.
unsafe impl<T> Entry for NonNull<T> {
    #[inline(always)]
    fn into_raw(self) -> NonNull<()> {
        const { assert!(align_of::<T>() >= 4) };
        self.cast()
    }
    #[inline(always)]
    unsafe fn from_raw(raw: NonNull<()>) -> Self {
        raw.cast()
    }
}

// SAFETY: as for NonNull<Page>, which it is.
unsafe impl Entry for page_alloc::PageRef {
    #[inline(always)]
    fn into_raw(self) -> NonNull<()> {
        self.as_ptr().cast()
    }
    #[inline(always)]
    unsafe fn from_raw(raw: NonNull<()>) -> Self {
        // SAFETY: from `as_ptr` by the caller's promise.
        unsafe { page_alloc::PageRef::from_ptr(raw.cast()) }
    }
}

/// A sparse array from `u64` to `E`.
///
/// # Invariants
/// INV-XA-1..6. Every visible word is `into_raw` of an `E`.
pub struct XArray<E: Entry> {
    tree: Tree,
    entries: PhantomData<E>,
}

// SAFETY: words move between threads as entries do.
unsafe impl<E: Entry + Send> Send for XArray<E> {}
// SAFETY: shared access copies entries out (E: Sync for good measure) or writes under the
// promise of `writer`, which hands entries in from one thread at a time.
unsafe impl<E: Entry + Send + Sync> Sync for XArray<E> {}

impl<E: Entry> XArray<E> {
    /// An empty array; no memory.
    pub const fn new() -> Self {
        XArray {
            tree: Tree::new(),
            entries: PhantomData,
        }
    }

    /// Whether nothing is stored.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// The entry at `index`. Lockless.
    #[inline]
    pub fn load(&self, _rcu: &RcuGuard, index: u64) -> Option<E> {
        // SAFETY: inside an RCU section (INV-XA-5); words are entries.
        unsafe { entry(self.tree.load(index)) }
    }

    /// The first entry at or after `from`, up to and with `max`. Lockless; entries stored or
    /// erased meanwhile may or may not be seen.
    #[inline]
    pub fn next(&self, _rcu: &RcuGuard, from: u64, max: u64) -> Option<(u64, E)> {
        // SAFETY: inside an RCU section (INV-XA-5); words are entries.
        unsafe {
            let (index, word) = self.tree.next(from, max)?;
            Some((index, entry(word)?))
        }
    }

    /// Gives each entry of [first, last] to `f`, in order; entries of one node cost no walk. Lockless;
    /// `f` runs inside the RCU section.
    #[inline]
    pub fn for_each(&self, _rcu: &RcuGuard, first: u64, last: u64, mut f: impl FnMut(u64, E)) {
        // SAFETY: inside an RCU section (INV-XA-5); words are entries.
        unsafe {
            self.tree.for_each(first, last, |index, word| {
                if let Some(e) = entry(word) {
                    f(index, e);
                }
            });
        }
    }

    /// Access for a writer who has the array for himself.
    #[inline(always)]
    pub fn exclusive(&mut self) -> Writer<'_, E> {
        Writer {
            tree: &self.tree,
            retire: Retire::Now,
            entries: PhantomData,
        }
    }

    /// Access for the writer while readers may be around.
    ///
    /// # Safety
    /// No other writer exists while the result lives: typically, the caller holds the lock that
    /// belongs to this array.
    #[inline(always)]
    pub unsafe fn writer(&self) -> Writer<'_, E> {
        Writer {
            tree: &self.tree,
            retire: Retire::Rcu,
            entries: PhantomData,
        }
    }

    /// The entry at `index`.
    #[inline]
    pub fn get(&mut self, index: u64) -> Option<E> {
        self.exclusive().get(index)
    }

    /// Stores `e` at `index`, allocating nodes as needed; returns what was there.
    pub fn store(&mut self, index: u64, e: E) -> Result<Option<E>, AllocError> {
        let mut spare = Preload::new();
        loop {
            match self.exclusive().store(index, e, &mut spare) {
                Ok(old) => return Ok(old),
                Err(NeedNodes(n)) => spare.fill(n)?,
            }
        }
    }

    /// Takes out the entry at `index`.
    #[inline]
    pub fn erase(&mut self, index: u64) -> Option<E> {
        self.exclusive().erase(index)
    }

    /// Takes out all entries and gives them to `f`.
    pub fn drain(&mut self, mut f: impl FnMut(u64, E)) {
        self.tree.drain(Retire::Now, |index, word| {
            // SAFETY: words are entries.
            if let Some(e) = unsafe { entry(word) } {
                f(index, e);
            }
        });
    }

    /// Panics unless the tree is as its invariants say; returns (entries, nodes). For tests.
    pub fn check_invariants(&mut self) -> (usize, usize) {
        // SAFETY: `&mut`.
        unsafe { self.tree.check(core::ptr::null_mut()) }
    }
}

/// # Safety
/// `word` is null, RESERVED, or `into_raw` of an `E`.
#[inline(always)]
unsafe fn entry<E: Entry>(word: *mut ()) -> Option<E> {
    let word = NonNull::new(word).filter(|w| w.as_ptr() != RESERVED)?;
    // SAFETY: the caller's promise.
    Some(unsafe { E::from_raw(word) })
}

/// The right to change an [`XArray`], see [`XArray::exclusive`] and [`XArray::writer`].
pub struct Writer<'a, E: Entry> {
    tree: &'a Tree,
    retire: Retire,
    entries: PhantomData<E>,
}

impl<E: Entry> Writer<'_, E> {
    /// The entry at `index`.
    #[inline]
    pub fn get(&self, index: u64) -> Option<E> {
        // SAFETY: the writer may read (INV-XA-5); words are entries.
        unsafe { entry(self.tree.load(index)) }
    }

    /// The first entry at or after `from`, up to and with `max`.
    pub fn next(&self, from: u64, max: u64) -> Option<(u64, E)> {
        // SAFETY: as in `get`.
        unsafe {
            let (index, word) = self.tree.next(from, max)?;
            Some((index, entry(word)?))
        }
    }

    /// Stores `e` at `index` and returns what was there. With too few spare nodes nothing changes.
    #[inline]
    pub fn store(&mut self, index: u64, e: E, spare: &mut Preload) -> Result<Option<E>, NeedNodes> {
        let word = e.into_raw().as_ptr();
        // SAFETY: this is the writer (INV-XA-5); the place is used at once; an opened slot is
        // filled unless it holds a word, which is replaced.
        unsafe {
            let place = self.tree.place(index);
            let slot = self.tree.open(place, spare)?;
            let n = slot.node.as_ref();
            let old = n.slot(slot.offset);
            if old.is_null() {
                self.tree.fill(slot, word);
            } else {
                n.set_slot(slot.offset, word);
            }
            Ok(entry(old))
        }
    }

    /// Stores `e` at the first free index in [start, max] and returns the index.
    #[inline]
    pub fn alloc(
        &mut self,
        start: u64,
        max: u64,
        e: E,
        spare: &mut Preload,
    ) -> Result<u64, IdrError> {
        // SAFETY: as in `store`; a free place's slot is empty.
        unsafe {
            let place = self.tree.find_free(start, max).ok_or(IdrError::Full)?;
            let slot = self.tree.open(place, spare)?;
            self.tree.fill(slot, e.into_raw().as_ptr());
            Ok(place.index)
        }
    }

    /// Takes out the entry at `index`.
    #[inline]
    pub fn erase(&mut self, index: u64) -> Option<E> {
        // SAFETY: this is the writer; the slot holds a word when it is cleared.
        unsafe {
            let slot = self.tree.slot(index)?;
            let e = entry(slot.node.as_ref().slot(slot.offset))?;
            self.tree.clear(slot, self.retire);
            Some(e)
        }
    }
}
