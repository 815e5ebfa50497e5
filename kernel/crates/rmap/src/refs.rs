//! References to a file's pages that many mappings hold: counted one by one, or from a stock per CPU.
//!
//! Problem. Each mapping keeps its file alive. When everybody maps the same library, one count is written at every
//! mmap, munmap, fork and exit by all CPUs: a line as hot as the lock of `i_mmap`, whichever design that has.
//!
//! Mechanism. A mapping holds a [`SpaceRef`]. It is an ordinary counted pointer until more than [`MANY`] exist; then
//! the file gets a [`RefPool`], and references come from and go to stocks of the CPUs. The count falls to zero only
//! after the pool has been closed, so somebody must know when the file is gone: whoever holds its [`SpaceOwner`]
//! (the inode). A file without an owner never gets a pool.
//!
//! Lock order: `space_refs` is a leaf; a pool's opening takes, before that, what allocation takes.
//!
//! Invariants
//! - INV-REFS-1: `refs` of an AddressSpace is null, or a `Refs` that lives as long as it. It is set once, while there
//!   is an owner, under `owned`.
//! - INV-REFS-2: the owner closes the pool, and its reference is dropped only after the stocks have been emptied, a
//!   grace period later. Later mappings are counted one by one.

use crate::AddressSpace;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering::*};
use ksync::rcu::{self, RcuHead};
use ksync::{SpinLock, lock_class};
use slab::{KArc, KBox, RefPool};

/// References beyond which a file gets a pool.
const MANY: u32 = if cfg!(test) { 8 } else { 64 };

/// What an AddressSpace has for this: two words.
pub(crate) struct RefsSlot {
    refs: AtomicPtr<Refs>,
    /// Whether there is an owner.
    owned: SpinLock<bool>,
}

#[repr(C)]
struct Refs {
    rcu: RcuHead,
    pool: RefPool<AddressSpace>,
    /// The owner's reference, once it is given up.
    last: AtomicPtr<AddressSpace>,
}

impl RefsSlot {
    pub(crate) const fn new() -> Self {
        RefsSlot {
            refs: AtomicPtr::new(null_mut()),
            owned: SpinLock::new(false, lock_class!("space_refs")),
        }
    }

    #[inline(always)]
    fn get(&self) -> Option<&Refs> {
        // SAFETY: INV-REFS-1.
        unsafe { self.refs.load(Acquire).as_ref() }
    }

    /// Makes the pool. Without memory things stay as they are.
    #[cold]
    fn open(&self, space: &KArc<AddressSpace>) {
        if !*self.owned.lock() {
            return;
        }
        let made = KBox::new(Refs {
            rcu: RcuHead::new(),
            pool: RefPool::new(),
            last: AtomicPtr::new(null_mut()),
        });
        let Ok(refs) = made else { return };
        if refs.pool.open(space).is_err() {
            return;
        }
        let owned = self.owned.lock();
        if *owned && self.refs.load(Relaxed).is_null() {
            // INVARIANT: INV-REFS-1.
            self.refs.store(KBox::into_raw(refs).as_ptr(), Release);
        }
    }
}

impl Drop for RefsSlot {
    fn drop(&mut self) {
        if let Some(refs) = NonNull::new(*self.refs.get_mut()) {
            // SAFETY: from `open`; the stocks are empty, since the count has come to zero (INV-REFS-2).
            drop(unsafe { KBox::from_raw(refs) });
        }
    }
}

/// A reference to a file's pages. Taking and dropping one: any context but hard IRQ.
pub struct SpaceRef(ManuallyDrop<KArc<AddressSpace>>);

impl SpaceRef {
    /// One more reference to `space`, whose pool this may open. May sleep.
    #[inline]
    pub fn of(space: &KArc<AddressSpace>) -> SpaceRef {
        let reference = SpaceRef::get(space);
        if KArc::refcount(space) > MANY {
            SpaceRef::expect_many(space);
        }
        reference
    }

    /// Opens the pool of a file that will have many mappings, if it has an owner. Without memory things stay as they
    /// are. May sleep.
    pub fn expect_many(space: &KArc<AddressSpace>) {
        if space.refs().get().is_none() {
            space.refs().open(space);
        }
    }

    #[inline(always)]
    fn get(space: &KArc<AddressSpace>) -> SpaceRef {
        SpaceRef(ManuallyDrop::new(match space.refs().get() {
            Some(refs) => refs.pool.get(space),
            None => space.clone(),
        }))
    }
}

impl From<KArc<AddressSpace>> for SpaceRef {
    fn from(space: KArc<AddressSpace>) -> SpaceRef {
        SpaceRef(ManuallyDrop::new(space))
    }
}

impl Clone for SpaceRef {
    /// Does not sleep.
    #[inline]
    fn clone(&self) -> SpaceRef {
        SpaceRef::get(self)
    }
}

impl Deref for SpaceRef {
    type Target = KArc<AddressSpace>;
    #[inline(always)]
    fn deref(&self) -> &KArc<AddressSpace> {
        &self.0
    }
}

impl Drop for SpaceRef {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: taken once, here.
        let space = unsafe { ManuallyDrop::take(&mut self.0) };
        match space.refs().get() {
            None => drop(space),
            // The pool lives as long as the object, of which we hold a reference (INV-REFS-1).
            Some(refs) => {
                let pool: *const _ = &refs.pool;
                // SAFETY: as said.
                RefPool::put(space, |_| unsafe { &*pool });
            }
        }
    }
}

/// The reference of a file to its own pages: as long as it is held, references of mappings may come from stocks. One
/// per AddressSpace.
pub struct SpaceOwner(ManuallyDrop<KArc<AddressSpace>>);

impl SpaceOwner {
    /// Becomes the owner.
    pub fn new(space: KArc<AddressSpace>) -> SpaceOwner {
        *space.refs().owned.lock() = true;
        crate::reclaim::register(&space);
        SpaceOwner(ManuallyDrop::new(space))
    }
}

impl Deref for SpaceOwner {
    type Target = KArc<AddressSpace>;
    #[inline(always)]
    fn deref(&self) -> &KArc<AddressSpace> {
        &self.0
    }
}

impl Drop for SpaceOwner {
    fn drop(&mut self) {
        // SAFETY: taken once, here.
        let space = unsafe { ManuallyDrop::take(&mut self.0) };
        crate::reclaim::forget(&space);
        // From here on no pool is made.
        *space.refs().owned.lock() = false;
        let Some(refs) = space.refs().get().map(NonNull::from) else {
            return;
        };
        // SAFETY: INV-REFS-1; our reference keeps the object, and with it this, until the callback has run.
        let refs = unsafe { refs.as_ref() };
        refs.pool.close();
        refs.last.store(KArc::into_raw(space).as_ptr(), Relaxed);
        // SAFETY: the head is used once, for there is one owner, and lives until the callback drops our reference.
        unsafe { rcu::call(NonNull::from(&refs.rcu), drained) };
    }
}

/// The owner's last act (INV-REFS-2).
///
/// # Safety
/// `head` is the `rcu` of a closed `Refs`, with the owner's reference in `last`, a grace period after it was closed.
unsafe fn drained(head: NonNull<RcuHead>) {
    // SAFETY: the first field of a repr(C) struct, alive while `last` is.
    unsafe {
        let refs = head.cast::<Refs>().as_ref();
        let space = KArc::from_raw(NonNull::new_unchecked(refs.last.load(Relaxed)));
        refs.pool.drain(&space);
        drop(space);
    }
}
