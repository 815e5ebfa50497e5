//! `i_mmap`: which VMAs map which pages of a file.
//!
//! Problem. A walker (truncate, migration) must reach every page table that can show a page of
//! [first, last]; mutators add and remove mappings at every mmap, fork, exec and exit.
//!
//! Mechanism. Each VMA embeds a [`MapNode`]: an interval of page offsets and a pointer to its owner.
//! The contract [`FileRmap`] says what every structure over these nodes guarantees; [`Global`] is
//! Linux's: one sleeping reader-writer lock, one interval tree.
//!
//! The order that fork relies on. Fork links the child's node, drops the lock, and only then copies
//! page tables, under page table locks alone. It is safe because a walker visits the parent before
//! the child:
//!
//! ```text
//!   fork:    link child after parent ... copy PTE  (parent's PTE lock, child's PTE lock)
//!   walker:                    zap parent's PTE ........ zap child's PTE
//! ```
//!
//! If the copy saw the parent's PTE, the walker had not yet zapped the parent, and still comes to
//! the child, and zaps the copy. If the walker zapped the parent first, the copy sees nothing. With
//! the child visited first, the copy could land behind the walker's back and map a page that has
//! been freed.
//!
//! Lock order: see the crate. `i_mmap` locks sleep: no spinlock may be held.
//!
//! Invariants
//! - INV-RMAP-1 (nodes outlive membership): a linked MapNode stays valid and in place until it is
//!   removed from the same i_mmap. Its owner keeps the AddressSpace alive as long.
//! - INV-RMAP-2 (frozen range): a linked node's range changes only inside [`FileRmap::adjust`].
//! - INV-RMAP-3 (complete): a walk visits every node that overlaps the range and is linked from
//!   before the walk's start to its end, exactly once, and no node after its removal returned.
//! - INV-RMAP-4 (fork order): a node linked by `insert_after(parent, child)` is visited after
//!   `parent` by every walk that visits both, until one of them is removed or adjusted (fork holds
//!   the mmap_lock of both for writing while it copies, so neither is).

use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use interval_tree::{IntervalNode, IntervalTree};
use ksync::{RwSem, lock_class};

/// A mapping of [first, last] pages of a file. Embed it in the VMA.
#[repr(C)]
pub struct MapNode {
    interval: IntervalNode,
    owner: AtomicPtr<()>,
}

impl MapNode {
    /// An unlinked node for page offsets [first, last], without an owner.
    pub const fn new(first: u64, last: u64) -> Self {
        MapNode {
            interval: IntervalNode::new(first, last),
            owner: AtomicPtr::new(core::ptr::null_mut()),
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
}

/// A new range for a linked node, see [`Adjust`].
#[derive(Copy, Clone)]
pub struct Resize {
    /// The node.
    pub node: NonNull<MapNode>,
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
    pub remove: &'a [NonNull<MapNode>],
    /// Linked nodes that get another range.
    pub resize: &'a [Resize],
    /// Unlinked nodes to link, in order.
    pub insert: &'a [NonNull<MapNode>],
}

/// The contract of an i_mmap.
///
/// Every implementation guarantees INV-RMAP-3 and INV-RMAP-4. What it may choose: the order of
/// nodes otherwise, how many locks there are, what a walker and a mutator wait for.
///
/// A trap for implementations that shard: INV-RMAP-4 needs the child in its parent's shard, or a
/// walk order of parents before children over all shards; that walkers take every lock is not
/// enough, for fork copies page tables after it has dropped them.
///
/// All methods may sleep. All pointers are made from pointers to the whole embedding struct.
pub trait FileRmap {
    /// The word that selects it on the boot command line.
    const NAME: &'static str;

    /// An empty set.
    fn new() -> Self;

    /// Links `node`.
    ///
    /// # Safety
    /// The node is unlinked; INV-RMAP-1 from now until it is removed.
    unsafe fn insert(&self, node: NonNull<MapNode>);

    /// Links `child`, whose first page offset is the parent's, behind `parent` (INV-RMAP-4).
    ///
    /// # Safety
    /// As for `insert`; `parent` is linked here, and stays so during the call (its mmap_lock is
    /// held for writing).
    unsafe fn insert_after(&self, parent: NonNull<MapNode>, child: NonNull<MapNode>);

    /// Unlinks all `nodes` (exit gives up to a handful of the same file) in one hold.
    ///
    /// # Safety
    /// Each is linked here.
    unsafe fn remove(&self, nodes: &[NonNull<MapNode>]);

    /// Makes the changes of `adjust` in one hold, and in the midst of it calls `meanwhile`, which
    /// updates the VMAs, unseen by walkers.
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

    /// Panics on a broken invariant; returns the number of nodes. For tests.
    fn check_invariants(&self) -> usize;
}

/// Linux's i_mmap: one interval tree, one reader-writer semaphore.
pub struct Global {
    tree: RwSem<IntervalTree>,
}

/// # Safety
/// INV-RMAP-1: the node is valid.
#[inline(always)]
unsafe fn link(tree: &mut IntervalTree, after: Option<NonNull<MapNode>>, node: NonNull<MapNode>) {
    // SAFETY: the interval node is the first field of a repr(C) struct; the caller's promise gives
    // RBT-1; the range is frozen by INV-RMAP-2.
    unsafe {
        match after {
            None => tree.insert(node.cast()),
            Some(prev) => tree.insert_after(prev.cast(), node.cast()),
        }
    }
}

impl FileRmap for Global {
    const NAME: &'static str = "global";

    fn new() -> Self {
        Global {
            tree: RwSem::new(IntervalTree::new(), lock_class!("i_mmap_rwsem")),
        }
    }

    unsafe fn insert(&self, node: NonNull<MapNode>) {
        // SAFETY: the caller's promise.
        unsafe { link(&mut self.tree.write(), None, node) };
    }

    unsafe fn insert_after(&self, parent: NonNull<MapNode>, child: NonNull<MapNode>) {
        // SAFETY: the caller's promise. INVARIANT: INV-RMAP-4: directly behind the parent in the
        // order of walks; later insertions keep the relative order of linked nodes.
        unsafe { link(&mut self.tree.write(), Some(parent), child) };
    }

    unsafe fn remove(&self, nodes: &[NonNull<MapNode>]) {
        let mut tree = self.tree.write();
        for node in nodes {
            // SAFETY: linked here, by the caller's promise.
            unsafe { tree.remove(node.cast()) };
        }
    }

    unsafe fn adjust(&self, adjust: Adjust<'_>, meanwhile: impl FnOnce()) {
        let mut tree = self.tree.write();
        // SAFETY: the caller's promises; a resized node is unlinked while its range changes, and
        // the write hold keeps readers away.
        unsafe {
            for node in adjust.remove {
                tree.remove(node.cast());
            }
            for r in adjust.resize {
                if r.node.as_ref().first() == r.first {
                    tree.set_last(r.node.cast(), r.last);
                } else {
                    tree.remove(r.node.cast());
                    r.node.as_ref().set_range(r.first, r.last);
                    tree.insert(r.node.cast());
                }
            }
            meanwhile();
            for node in adjust.insert {
                link(&mut tree, None, *node);
            }
        }
    }

    fn for_each_overlap(&self, first: u64, last: u64, mut visit: impl FnMut(&MapNode)) {
        let tree = self.tree.read();
        for node in tree.overlaps(first, last) {
            // SAFETY: all members are MapNodes, valid while linked (INV-RMAP-1), and the hold
            // keeps them linked.
            visit(unsafe { node.cast::<MapNode>().as_ref() });
        }
    }

    fn is_empty(&self) -> bool {
        self.tree.read().is_empty()
    }

    fn check_invariants(&self) -> usize {
        self.tree.read().check_invariants()
    }
}

/// The closed set of i_mmap structures. An AddressSpace owns one, chosen when it is made.
pub enum IMmap {
    /// [`Global`].
    Global(Global),
}

/// Names a structure of [`IMmap`].
#[derive(Copy, Clone, Debug, PartialEq, Eq, Default)]
pub enum IMmapKind {
    /// [`Global`].
    #[default]
    Global,
}

impl IMmapKind {
    /// All kinds, with the words that select them.
    pub const ALL: &'static [(&'static str, IMmapKind)] = &[(Global::NAME, IMmapKind::Global)];

    /// The kind that `word` selects.
    pub fn from_name(word: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(name, _)| *name == word)
            .map(|&(_, kind)| kind)
    }
}

/// Runs `$body` with `$map` bound to the structure inside.
macro_rules! visit {
    ($self:expr, $map:ident => $body:expr) => {
        match $self {
            IMmap::Global($map) => $body,
        }
    };
}

impl IMmap {
    /// An empty set of this kind.
    pub fn of(kind: IMmapKind) -> Self {
        match kind {
            IMmapKind::Global => IMmap::Global(Global::new()),
        }
    }

    /// The word that selects this structure.
    pub fn name(&self) -> &'static str {
        match self {
            IMmap::Global(_) => Global::NAME,
        }
    }
}

impl FileRmap for IMmap {
    const NAME: &'static str = "i_mmap";

    fn new() -> Self {
        Self::of(IMmapKind::default())
    }
    #[inline]
    unsafe fn insert(&self, node: NonNull<MapNode>) {
        // SAFETY: passed on.
        visit!(self, map => unsafe { map.insert(node) })
    }
    #[inline]
    unsafe fn insert_after(&self, parent: NonNull<MapNode>, child: NonNull<MapNode>) {
        // SAFETY: passed on.
        visit!(self, map => unsafe { map.insert_after(parent, child) })
    }
    #[inline]
    unsafe fn remove(&self, nodes: &[NonNull<MapNode>]) {
        // SAFETY: passed on.
        visit!(self, map => unsafe { map.remove(nodes) })
    }
    #[inline]
    unsafe fn adjust(&self, adjust: Adjust<'_>, meanwhile: impl FnOnce()) {
        // SAFETY: passed on.
        visit!(self, map => unsafe { map.adjust(adjust, meanwhile) })
    }
    #[inline]
    fn for_each_overlap(&self, first: u64, last: u64, f: impl FnMut(&MapNode)) {
        visit!(self, map => map.for_each_overlap(first, last, f))
    }
    fn is_empty(&self) -> bool {
        visit!(self, map => map.is_empty())
    }
    fn check_invariants(&self) -> usize {
        visit!(self, map => map.check_invariants())
    }
}
