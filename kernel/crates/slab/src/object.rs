//! What makes a type allocatable as a counted, listable object: its cache and its links.
//!
//! Problem: a kernel object (a task, a file) is counted, sits in several lists at once, and comes
//! from a cache of its own. Declaring that must need no unsafe code, since policy crates forbid it.
//!
//! Mechanism: [`object!`](crate::object!) implements [`Object`], which is a safe trait: its only
//! datum that soundness depends on is a constant of type `&'static ObjectCache<Self>`, and the only
//! constructors of an [`ObjectCache<T>`] make a cache whose objects hold a whole `KArc<T>` block.
//! A constant cannot change between alloc and free.
//!
//! INV-OBJ-1: every object of an `ObjectCache<T>` is at least as large and as aligned as
//! `arc::Block<T>`.

use crate::arc::{Block, Idle};
use crate::cache::{CacheFlags, KmemCache};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::sync::atomic::AtomicU64;
use ksync::rcu::RcuGuard;

/// A type that lives in counted blocks ([`KArc`](crate::KArc)) of its own cache.
///
/// Send and Sync, since references travel, and the last drop may happen in an RCU callback anywhere.
/// Implement it with [`object!`](crate::object!).
pub trait Object: Sized + Send + Sync + 'static {
    /// `[Link; N]`: the type can be in N lists at once, one per slot. N may be 0.
    type Links: LinkArray;
    /// The cache that every block of this type comes from.
    const CACHE: &'static ObjectCache<Self>;
    /// Whether the last reference's drop waits for an RCU grace period (see `KArc::try_get_rcu`).
    const RCU_FREE: bool = false;
    /// Takes an object of an `RCU_FREE` type whose last reference has just been dropped, in that drop's context: drops it,
    /// or lets it rest for another life ([`RestPool`](crate::RestPool)).
    #[inline(always)]
    fn rest(idle: Idle<Self>, _section: &RcuGuard) {
        drop(idle);
    }
    /// The cache, to shrink it or to read its statistics.
    fn cache() -> &'static KmemCache {
        Self::CACHE.kmem_cache()
    }
}

/// Implements [`Object`] for a type.
///
/// ```ignore
/// slab::object!(Task, "task_struct", links = 4);
/// slab::object!(Pid, "pid", links = 0, rcu);          // freed after an RCU grace period
/// slab::object!(impl[T: Send + Sync + 'static] Node<T>, links = 1); // generic: uses size classes
/// slab::object!(impl[T: Send + Sync + 'static] Leaf<T>, links = 0, rcu, rest = Leaf::at_rest); // may live again
/// ```
#[macro_export]
macro_rules! object {
    (impl[$($gen:tt)*] $ty:ty, links = $n:literal $(, $rcu:ident $(, rest = $rest:path)?)?) => {
        impl<$($gen)*> $crate::Object for $ty {
            type Links = [$crate::Link; $n];
            const CACHE: &'static $crate::ObjectCache<Self> = $crate::ObjectCache::class();
            const RCU_FREE: bool = $crate::object!(@rcu $($rcu)?);
            $($(
                #[inline(always)]
                fn rest(idle: $crate::Idle<Self>, section: &$crate::RcuGuard) {
                    $rest(idle, section);
                }
            )?)?
        }
    };
    ($ty:ty, $name:literal, links = $n:literal $(, $rcu:ident)?) => {
        impl $crate::Object for $ty {
            type Links = [$crate::Link; $n];
            const CACHE: &'static $crate::ObjectCache<Self> = {
                static CACHE: $crate::ObjectCache<$ty> = $crate::ObjectCache::new($name);
                &CACHE
            };
            const RCU_FREE: bool = $crate::object!(@rcu $($rcu)?);
        }
    };
    (@rcu) => { false };
    (@rcu rcu) => { true };
}

/// A [`KmemCache`] whose objects hold a whole `KArc<T>` block (INV-OBJ-1).
#[repr(transparent)]
pub struct ObjectCache<T: Object> {
    cache: KmemCache,
    object: PhantomData<fn() -> T>,
}

impl<T: Object> ObjectCache<T> {
    /// A cache for `T`, to be placed in a static.
    pub const fn new(name: &'static str) -> Self {
        // INV-OBJ-1: size and alignment are the block's.
        ObjectCache {
            cache: KmemCache::new_static(
                name,
                size_of::<Block<T>>(),
                align_of::<Block<T>>(),
                CacheFlags::HWCACHE_ALIGN,
            ),
            object: PhantomData,
        }
    }

    /// The size-class cache that fits `T`: for generic types, which cannot own a static.
    pub const fn class() -> &'static Self {
        let cache = match class_cache(size_of::<Block<T>>(), align_of::<Block<T>>()) {
            Some(cache) => cache,
            None => panic!("no size class holds this object"),
        };
        // SAFETY: repr(transparent), and class_cache returned a cache whose objects have at least
        // the size and alignment of the block (INV-OBJ-1, INV-HEAP-1).
        unsafe { &*(cache as *const KmemCache as *const Self) }
    }

    /// The untyped cache.
    pub const fn kmem_cache(&self) -> &KmemCache {
        &self.cache
    }
}

pub use crate::heap::class_cache;

/// The place of a block in one list. Its contents belong to [`List`](crate::List).
pub struct Link {
    /// The id of the list that this link is in; 0: none.
    pub(crate) owner: AtomicU64,
    pub(crate) next: UnsafeCell<*mut ()>,
    pub(crate) prev: UnsafeCell<*mut ()>,
}

impl Link {
    /// An unlinked link.
    #[expect(
        clippy::declare_interior_mutable_const,
        reason = "a template to copy from"
    )]
    pub const NEW: Link = Link {
        owner: AtomicU64::new(0),
        next: UnsafeCell::new(core::ptr::null_mut()),
        prev: UnsafeCell::new(core::ptr::null_mut()),
    };
}

// SAFETY: `next` and `prev` are read and written only through exclusive (write) or shared (read)
// access to the list named by `owner` (INV-LIST-2); `owner` is atomic.
unsafe impl Sync for Link {}
// SAFETY: as above; the pointers are followed only by a List, which asks for T: Send + Sync.
unsafe impl Send for Link {}

mod sealed {
    pub trait Sealed {}
    impl<const N: usize> Sealed for [super::Link; N] {}
}

/// `[Link; N]`.
pub trait LinkArray: sealed::Sealed + Sized + 'static {
    /// The number of slots.
    const N: usize;
    #[doc(hidden)]
    const NEW: Self;
    #[doc(hidden)]
    fn slot(this: *const Self, slot: usize) -> *const Link;
}

impl<const N: usize> LinkArray for [Link; N] {
    const N: usize = N;
    const NEW: Self = [const { Link::NEW }; N];
    #[inline(always)]
    fn slot(this: *const Self, slot: usize) -> *const Link {
        debug_assert!(slot < N);
        this.cast::<Link>().wrapping_add(slot)
    }
}
