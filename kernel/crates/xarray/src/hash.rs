//! `HashTable<T>`: (space, number) to counted objects, chains read without locks.
//!
//! Problem. Where numbers are taken elsewhere (a bitmap), what they stand for needs no order: one hash
//! for all spaces finds it in one or two steps whatever the numbers.
//!
//! Mechanism. Buckets of singly linked nodes, changed under the table's lock, read under RCU. A node
//! costs no allocation under the lock: an object brings a [`Chain`], one node for each space that it
//! will be in. Nodes are freed a grace period after their chain is dropped, so that a reader that stands
//! on one finds its way on.
//!
//! Lock order: the table's lock is a leaf.
//!
//! Invariants
//! - INV-HASH-1 (one list): a node with `table` set is in one bucket of that table; with 0, in none. It
//!   changes under that table's lock. A chain is not dropped while one of its nodes is in a table.
//! - INV-HASH-2 (references): `owner` of a node in a table is `KArc::into_raw` of a reference that the
//!   table owns; the node is unlinked before the reference is given up.
//! - INV-HASH-3 (way on): `next` of an unlinked node stays until its grace period has ended.

use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering::*};
use ksync::{LockClass, SpinGuard, SpinLock, rcu};
use slab::{AllocError, KArc, KBox, Object};

struct Node {
    next: AtomicPtr<Node>,
    /// The table it is in.
    table: AtomicUsize,
    space: AtomicUsize,
    owner: AtomicPtr<()>,
    key: AtomicU32,
}

struct Nodes<const N: usize>([Node; N]);
slab::object!(impl[const N: usize] Nodes<N>, links = 0, rcu);

impl<const N: usize> Nodes<N> {
    fn make() -> Result<KArc<Self>, AllocError> {
        KArc::new(Nodes(
            [const {
                Node {
                    next: AtomicPtr::new(ptr::null_mut()),
                    table: AtomicUsize::new(0),
                    space: AtomicUsize::new(0),
                    owner: AtomicPtr::new(ptr::null_mut()),
                    key: AtomicU32::new(0),
                }
            }; N],
        ))
    }
}

enum Kind {
    One(KArc<Nodes<1>>),
    Four(KArc<Nodes<4>>),
    Most(KArc<Nodes<{ Chain::MOST }>>),
}

/// Room for an object in up to [`Chain::MOST`] spaces.
pub struct Chain(Kind);

impl Chain {
    /// The most nodes.
    pub const MOST: usize = 33;

    /// At least `nr` nodes.
    pub fn new(nr: usize) -> Result<Chain, AllocError> {
        Ok(Chain(match nr {
            0..=1 => Kind::One(Nodes::make()?),
            2..=4 => Kind::Four(Nodes::make()?),
            _ => Kind::Most(Nodes::make()?),
        }))
    }

    #[inline]
    fn nodes(&self) -> &[Node] {
        match &self.0 {
            Kind::One(n) => &n.0,
            Kind::Four(n) => &n.0,
            Kind::Most(n) => &n.0,
        }
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        for node in self.nodes() {
            assert!(node.table.load(Relaxed) == 0, "INV-HASH-1");
        }
    }
}

/// Buckets of one piece of the table.
const PIECE: usize = 512;
/// Pieces.
const NR_PIECES: usize = 8;

type Piece = [AtomicPtr<Node>; PIECE];

/// A hash of counted objects by space and number.
///
/// # Invariants
/// INV-HASH-1..3.
pub struct HashTable<T: Object> {
    pieces: [KBox<Piece>; NR_PIECES],
    lock: SpinLock<()>,
    owns: PhantomData<KArc<T>>,
}

slab::object!(impl[T: Object] HashTable<T>, links = 0);

/// Evidence that a [`HashTable`]'s lock is held.
#[must_use]
pub struct HashGuard<'a, T: Object> {
    table: &'a HashTable<T>,
    _held: SpinGuard<'a, ()>,
}

impl<T: Object> HashTable<T> {
    const READERS_ARE_SAFE: () = assert!(T::RCU_FREE, "objects in a HashTable must be RCU_FREE");

    /// An empty table whose lock is counted under `class`.
    pub fn new(class: &'static LockClass) -> Result<Self, AllocError> {
        let () = Self::READERS_ARE_SAFE;
        let piece = || KBox::new([const { AtomicPtr::new(ptr::null_mut()) }; PIECE]);
        Ok(HashTable {
            pieces: [
                piece()?,
                piece()?,
                piece()?,
                piece()?,
                piece()?,
                piece()?,
                piece()?,
                piece()?,
            ],
            lock: SpinLock::new((), class),
            owns: PhantomData,
        })
    }

    /// Acquires the lock. Spins; preemption is off until the guard drops.
    #[inline]
    pub fn lock(&self) -> HashGuard<'_, T> {
        HashGuard {
            table: self,
            _held: self.lock.lock(),
        }
    }

    #[inline(always)]
    fn id(&self) -> usize {
        ptr::from_ref(self) as usize
    }

    #[inline(always)]
    fn bucket(&self, space: usize, key: u32) -> &AtomicPtr<Node> {
        let mixed = (space as u64 >> 5 ^ u64::from(key)).wrapping_mul(0x61c8_8646_80b5_83eb);
        let at = (mixed >> 52) as usize;
        &self.pieces[at / PIECE % NR_PIECES][at % PIECE]
    }

    /// The object at `key` in `space`. Lockless.
    pub fn find(&self, space: usize, key: u32) -> Option<KArc<T>> {
        let _rcu = rcu::read_lock();
        ksync::arch::interleave();
        let mut at = self.bucket(space, key).load(Acquire);
        // SAFETY: inside an RCU section: nodes reached from a bucket, also since unlinked ones, stay until it ends
        // (INV-HASH-3). `owner` of a node that was reached was a reference of the table, T is RCU_FREE (INV-HASH-2).
        unsafe {
            while let Some(node) = at.as_ref() {
                if node.key.load(Relaxed) == key && node.space.load(Relaxed) == space {
                    return KArc::try_get_rcu(NonNull::new(node.owner.load(Relaxed))?.cast());
                }
                at = node.next.load(Acquire);
            }
        }
        None
    }
}

impl<T: Object> HashGuard<'_, T> {
    /// Shows `owner` at `key` in `space`, by node `at` of its chain, which is in no table.
    ///
    /// # Panics
    /// If the node is in use.
    pub fn insert(&mut self, chain: &Chain, at: usize, space: usize, key: u32, owner: KArc<T>) {
        let node = &chain.nodes()[at];
        let taken = node
            .table
            .compare_exchange(0, self.table.id(), Relaxed, Relaxed);
        assert!(taken.is_ok(), "INV-HASH-1");
        node.space.store(space, Relaxed);
        node.key.store(key, Relaxed);
        node.owner
            .store(KArc::into_raw(owner).as_ptr().cast(), Relaxed);
        let bucket = self.table.bucket(space, key);
        node.next.store(bucket.load(Relaxed), Relaxed);
        ksync::arch::interleave();
        bucket.store(ptr::from_ref(node).cast_mut(), Release);
    }

    /// Takes node `at` of the chain out and returns the object. None: it is not in this table.
    pub fn remove(&mut self, chain: &Chain, at: usize) -> Option<KArc<T>> {
        let node = &chain.nodes()[at];
        if node.table.load(Relaxed) != self.table.id() {
            return None;
        }
        let (space, key) = (node.space.load(Relaxed), node.key.load(Relaxed));
        let mut link = self.table.bucket(space, key);
        // SAFETY: the lock is held, so nodes in the bucket stay; the node is one of them (INV-HASH-1). Its reference
        // passes to the caller after it is unlinked (INV-HASH-2).
        unsafe {
            while !ptr::eq(link.load(Relaxed), node) {
                link = &(*link.load(Relaxed)).next;
            }
            link.store(node.next.load(Relaxed), Release);
            node.table.store(0, Relaxed);
            Some(KArc::from_raw(
                NonNull::new(node.owner.load(Relaxed))?.cast(),
            ))
        }
    }
}

impl<T: Object> Drop for HashTable<T> {
    fn drop(&mut self) {
        for bucket in self.pieces.iter().flat_map(|piece| piece.iter()) {
            let mut at = bucket.load(Relaxed);
            // SAFETY: `&mut`: no readers, no writers; each node's reference is given up once (INV-HASH-2).
            unsafe {
                while let Some(node) = at.as_ref() {
                    at = node.next.load(Relaxed);
                    node.table.store(0, Relaxed);
                    if let Some(owner) = NonNull::new(node.owner.load(Relaxed)) {
                        drop(KArc::<T>::from_raw(owner.cast()));
                    }
                }
            }
        }
    }
}
