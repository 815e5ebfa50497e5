//! `FileRmap`: what every set of a file's mappings guarantees, and the node that a VMA embeds.
//!
//! Problem. A walker (truncate, migration) must reach every page table that can show a page of
//! [first, last]; mutators add and remove mappings at every mmap, fork, exec and exit, on all CPUs.
//!
//! Mechanism. Each VMA embeds a [`MapNode`]: an interval of page offsets, a pointer to its owner, and
//! the number of the shard it is in, for structures that have several. The contract says what a
//! structure over these nodes guarantees; the files beside this one are the structures.
//!
//! The trap. Fork links the child's node, and then copies page tables, under page table locks alone:
//!
//! ```text
//!   fork:    link child ........ copy PTE  (parent's PTE lock, child's PTE lock)
//!   walker:                    zap child's PTE ........ zap parent's PTE      <- the wrong order
//! ```
//!
//! A copy that falls between the two zaps puts a page into the child behind the walker's back, and the page is
//! freed while it is mapped. So a walk that comes to the parent after a copy has to come to the child after it
//! too. There are two ways to be sure, and one that only looks like a third:
//!
//! - *order*: the child is behind its parent in every walk. With several trees that means: in the parent's tree.
//! - *exclusion*: no walk is under way from the link to the end of the copy.
//! - that walkers hold every lock at once does **not** help: fork copies when it holds none.
//!
//! mremap moves entries from an area to one that it has just linked, and relies on the same.
//!
//! Why pairs are enough. Suppose a walk leaves a stale entry in node X: it came by a copy from some Y after X was
//! visited (or X was linked too late to be visited). Y had the entry then. If Y had been visited before, Y's entry
//! is itself one that came too late, and we look at Y instead; the chain ends, for the first entry was no copy. So
//! some Y was visited after the copy and its X was not: just what INV-RMAP-4 forbids.
//!
//! Lock order: see the crate. `i_mmap` locks sleep: no spinlock may be held.
//!
//! Invariants
//! - INV-RMAP-1 (nodes outlive membership): a linked MapNode stays valid and in place until it is
//!   removed from the same i_mmap. Its owner keeps the AddressSpace alive as long.
//! - INV-RMAP-2 (frozen range): a linked node's range changes only inside [`FileRmap::adjust`].
//! - INV-RMAP-3 (complete): a walk visits every node that overlaps the range and is linked from
//!   before the walk's start to its end, exactly once, and no node after its removal returned. A page
//!   offset that some [`FileRmap::adjust`] hands from node to node is not missed on the way.
//! - INV-RMAP-4 (fork cover): a walk that visits `parent` after the `copy` of a `fork(parent, child,
//!   copy)` visits `child` after it too (unless `child` has been removed).
//! - INV-RMAP-5 (shard): `shard` names the tree that a linked node is in. It changes only under
//!   locks that keep the node's owner and all walkers away.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering::Relaxed};
use interval_tree::IntervalNode;
use slab::AllocError;

/// A node by address, made from a pointer to the whole embedding struct.
pub type NodePtr = NonNull<MapNode>;

/// A mapping of [first, last] pages of a file. Embed it in the VMA.
#[repr(C)]
pub struct MapNode {
    interval: IntervalNode,
    owner: AtomicPtr<()>,
    shard: AtomicU32,
}

impl MapNode {
    /// An unlinked node for page offsets [first, last], without an owner.
    pub const fn new(first: u64, last: u64) -> Self {
        MapNode {
            interval: IntervalNode::new(first, last),
            owner: AtomicPtr::new(core::ptr::null_mut()),
            shard: AtomicU32::new(0),
        }
    }

    /// The first page offset. Context: the i_mmap lock held, or not linked.
    #[inline]
    pub fn first(&self) -> u64 {
        self.interval.start()
    }

    /// The last page offset (inclusive). Context as for [`MapNode::first`].
    #[inline]
    pub fn last(&self) -> u64 {
        self.interval.last()
    }

    /// Whether the node is linked. Context as for [`MapNode::first`].
    #[inline]
    pub fn is_linked(&self) -> bool {
        self.interval.is_linked()
    }

    /// What the embedding VMA wants a walker to find: usually itself.
    #[inline]
    pub fn owner(&self) -> *mut () {
        self.owner.load(Relaxed)
    }

    /// Sets the owner, before the node is linked.
    #[inline]
    pub fn set_owner(&self, owner: *mut ()) {
        self.owner.store(owner, Relaxed);
    }

    /// Gives an unlinked node another range.
    ///
    /// # Safety
    /// The node is unlinked, and no other thread reads or links it meanwhile.
    #[inline]
    pub unsafe fn set_range(&self, first: u64, last: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.interval.set_range(first, last) };
    }

    /// The tree it is in (INV-RMAP-5).
    #[inline(always)]
    pub(crate) fn shard(&self) -> u32 {
        self.shard.load(Relaxed)
    }

    #[inline(always)]
    pub(crate) fn set_shard(&self, shard: u32) {
        self.shard.store(shard, Relaxed);
    }
}

/// A new range for a linked node, see [`Adjust`].
#[derive(Copy, Clone)]
pub struct Resize {
    /// The node.
    pub node: NodePtr,
    /// Its new first page offset.
    pub first: u64,
    /// Its new last page offset.
    pub last: u64,
}

/// Several changes of one file's mappings, seen by walkers all at once: a split is one resize and
/// one insertion, a merge one removal and one resize.
#[derive(Copy, Clone, Default)]
pub struct Adjust<'a> {
    /// Linked nodes to unlink.
    pub remove: &'a [NodePtr],
    /// Linked nodes that get another range.
    pub resize: &'a [Resize],
    /// Unlinked nodes to link, in order.
    pub insert: &'a [NodePtr],
}

impl Adjust<'_> {
    /// The linked nodes it names.
    pub(crate) fn linked(&self) -> impl Iterator<Item = NodePtr> + '_ {
        self.remove
            .iter()
            .copied()
            .chain(self.resize.iter().map(|r| r.node))
    }

    /// The shard of all linked nodes it names; None if there are several, or none.
    ///
    /// # Safety
    /// The nodes are linked, their owner keeps them so, and their shard does not change meanwhile.
    #[inline]
    pub(crate) unsafe fn one_shard(&self) -> Option<u32> {
        // SAFETY: the caller's promise.
        let mut shards = self.linked().map(|n| unsafe { n.as_ref() }.shard());
        let first = shards.next()?;
        shards.all(|s| s == first).then_some(first)
    }
}

/// The contract of an i_mmap.
///
/// Every implementation guarantees INV-RMAP-3 and INV-RMAP-4. What it may choose: the order of
/// nodes, how many locks there are, what a walker and a mutator wait for, what it costs to set up.
///
/// All methods may sleep. All pointers are made from pointers to the whole embedding struct.
pub trait FileRmap: Sized {
    /// The word that selects it on the boot command line.
    const NAME: &'static str;

    /// An empty set.
    fn new() -> Result<Self, AllocError>;

    /// Links `node`.
    ///
    /// # Safety
    /// The node is unlinked; INV-RMAP-1 from now until it is removed.
    unsafe fn insert(&self, node: NodePtr);

    /// Links `child`, whose first page offset is the parent's or a later one, then runs `copy`, which
    /// may copy or move page table entries from the parent's range to the child's (INV-RMAP-4). `copy` takes page
    /// table locks; it must not touch this i_mmap.
    ///
    /// # Safety
    /// As for `insert`; `parent` is linked here, and both stay so during the call (their mmap_locks
    /// are held for writing).
    unsafe fn fork<R>(&self, parent: NodePtr, child: NodePtr, copy: impl FnOnce() -> R) -> R;

    /// Links the second of each pair, which shows what the first shows and has no entries to copy: they come by faults
    /// (fork gives up to a handful of the same file). Whatever guards the set is taken once, if it can be.
    ///
    /// # Safety
    /// As for `fork`.
    #[inline]
    unsafe fn insert_copies(&self, pairs: &[(NodePtr, NodePtr)]) {
        for &(parent, child) in pairs {
            // SAFETY: the caller's promise.
            unsafe { self.fork(parent, child, || ()) };
        }
    }

    /// Unlinks all `nodes` (exit gives up to a handful of the same file).
    ///
    /// # Safety
    /// Each is linked here.
    unsafe fn remove(&self, nodes: &[NodePtr]);

    /// Makes the changes of `adjust`, and in the midst of it calls `meanwhile`, which updates the VMAs,
    /// unseen by walkers. `meanwhile` must not sleep.
    ///
    /// # Safety
    /// `remove` and `resize` name nodes linked here, `insert` nodes as for `insert`; no node is
    /// named twice.
    unsafe fn adjust(&self, adjust: Adjust<'_>, meanwhile: impl FnOnce());

    /// Calls `visit` for each node that overlaps [first, last]. `visit` may take page table locks;
    /// it must not change this i_mmap.
    fn for_each_overlap(&self, first: u64, last: u64, visit: impl FnMut(&MapNode));

    /// Whether no mapping is linked: a snapshot.
    fn is_empty(&self) -> bool;

    /// Panics on a broken invariant; returns the number of nodes. For tests, with nobody else around.
    fn check_invariants(&self) -> usize;
}
