//! What the structures are made of: a tree of MapNodes, tables of such trees, a shard under a spinlock.
//!
//! Problem. All structures do the same few things to a tree and differ in what they hold meanwhile.
//! Mechanism. [`Tree`] has no lock. [`Table`] is a boxed slice whose allocation can fail. [`SpinShard`] is for structures
//! with an outer lock: its tree may be used by whoever excludes all others by that lock, or who shares it and holds
//! the shard's own.
//!
//! Lock order: `i_mmap_shard` (spin) is taken under an outer `i_mmap_rwsem`; nothing under it but what `meanwhile` of an
//! adjust does (no locks).
//!
//! Invariants
//! - INV-RTREE-1 (members): a Tree's members are MapNodes that INV-RMAP-1 keeps in place.
//! - INV-SHARD-1 (who may): [`SpinShard::tree`] is dereferenced for change only by a holder of the outer lock for
//!   writing, or for reading and of `lock`; for reading only by a holder of the outer lock, in either way, who knows that
//!   nobody changes trees under it.

use crate::contract::{Adjust, MapNode, NodePtr, Resize};
use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ops::Deref;
use core::ptr::NonNull;
use interval_tree::IntervalTree;
use ksync::{SpinLock, lock_class};
use slab::{AllocError, Gfp, kfree, kmalloc};

/// Mappings in order of their first page.
pub(crate) struct Tree(IntervalTree);

impl Tree {
    pub(crate) const fn new() -> Self {
        Tree(IntervalTree::new())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds `node`, behind all with the same first page.
    ///
    /// # Safety
    /// As for [`crate::FileRmap::insert`].
    #[inline(always)]
    pub(crate) unsafe fn link(&mut self, node: NodePtr, shard: u32) {
        // SAFETY: the interval node is the first field of a repr(C) struct; the caller's promise gives
        // INV-RTREE-1; the range is frozen by INV-RMAP-2.
        unsafe {
            node.as_ref().set_shard(shard);
            self.0.insert(node.cast());
        }
    }

    /// Adds `child` somewhere behind `parent` in the order of walks; right behind it, and without a search, if it
    /// begins at the same page.
    ///
    /// # Safety
    /// As for [`Tree::link`]; `parent` is a member, and begins at or before `child`'s first page.
    #[inline(always)]
    pub(crate) unsafe fn link_after(&mut self, parent: NodePtr, child: NodePtr, shard: u32) {
        // SAFETY: as for `link`.
        unsafe {
            if parent.as_ref().first() == child.as_ref().first() {
                child.as_ref().set_shard(shard);
                self.0.insert_after(parent.cast(), child.cast());
            } else {
                debug_assert!(parent.as_ref().first() < child.as_ref().first());
                self.link(child, shard);
            }
        }
    }

    /// # Safety
    /// `node` is a member.
    #[inline(always)]
    pub(crate) unsafe fn unlink(&mut self, node: NodePtr) {
        // SAFETY: the caller's promise.
        unsafe { self.0.remove(node.cast()) };
    }

    /// # Safety
    /// `r.node` is a member.
    pub(crate) unsafe fn resize(&mut self, r: &Resize) {
        // SAFETY: a member, out of the tree while its first page changes.
        unsafe {
            if r.node.as_ref().first() == r.first {
                self.0.set_last(r.node.cast(), r.last);
            } else {
                self.0.remove(r.node.cast());
                r.node.as_ref().set_range(r.first, r.last);
                self.0.insert(r.node.cast());
            }
        }
    }

    /// Moves all members to `to`, in order.
    pub(crate) fn drain_into(&mut self, to: &mut Tree, shard: u32) {
        while let Some(node) = self.0.first() {
            // SAFETY: a member of this tree, then of none.
            unsafe {
                self.unlink(node.cast());
                to.link(node.cast(), shard);
            }
        }
    }

    #[inline]
    pub(crate) fn visit(&self, first: u64, last: u64, visit: &mut impl FnMut(&MapNode)) {
        for node in self.0.overlaps(first, last) {
            // SAFETY: INV-RTREE-1; `&self` keeps them linked.
            visit(unsafe { node.cast::<MapNode>().as_ref() });
        }
    }

    /// Panics on a broken invariant, or a member that does not name `shard`; returns the number of members.
    pub(crate) fn check(&self, shard: u32) -> usize {
        self.visit(0, u64::MAX, &mut |n| {
            assert_eq!(n.shard(), shard, "INV-RMAP-5")
        });
        self.0.check_invariants()
    }
}

/// Makes the changes of `adjust`; `tree(shard)` is the tree of that name, `home` where insertions go.
///
/// # Safety
/// As for [`crate::FileRmap::adjust`]; what `tree` returns may be changed during the call.
pub(crate) unsafe fn apply(
    adjust: &Adjust<'_>,
    meanwhile: impl FnOnce(),
    home: u32,
    tree: impl Fn(u32) -> NonNull<Tree>,
) {
    // SAFETY: the caller's promises. One `&mut` exists at a time.
    unsafe {
        for node in adjust.remove {
            tree(node.as_ref().shard()).as_mut().unlink(*node);
        }
        for r in adjust.resize {
            tree(r.node.as_ref().shard()).as_mut().resize(r);
        }
        meanwhile();
        for node in adjust.insert {
            tree(home).as_mut().link(*node, home);
        }
    }
}

/// A fixed number of `T`s on the heap.
///
/// # Invariants
/// `first` is `kmalloc`ed for `nr` initialised `T`s, owned.
pub(crate) struct Table<T> {
    first: NonNull<T>,
    nr: usize,
}

// SAFETY: owns its Ts.
unsafe impl<T: Send> Send for Table<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Table<T> {}

impl<T> Table<T> {
    pub(crate) fn new(nr: usize, mut make: impl FnMut(usize) -> T) -> Result<Self, AllocError> {
        let layout = Layout::array::<T>(nr).map_err(|_| AllocError)?;
        let first = kmalloc(layout, Gfp::empty())?.cast::<T>();
        for i in 0..nr {
            // SAFETY: within the room just allocated.
            unsafe { first.cast::<MaybeUninit<T>>().add(i).as_mut() }.write(make(i));
        }
        Ok(Table { first, nr })
    }

    /// The address of one, good for whatever the locks that the caller holds allow.
    #[inline(always)]
    pub(crate) fn get(&self, i: u32) -> NonNull<T> {
        assert!((i as usize) < self.nr);
        // SAFETY: within the table.
        unsafe { self.first.add(i as usize) }
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the type's invariant.
        unsafe { core::slice::from_raw_parts(self.first.as_ptr(), self.nr) }
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        // SAFETY: the type's invariant; the layout is the one of `new`.
        unsafe {
            core::ptr::slice_from_raw_parts_mut(self.first.as_ptr(), self.nr).drop_in_place();
            kfree(
                self.first.cast(),
                Layout::from_size_align_unchecked(self.nr * size_of::<T>(), align_of::<T>()),
            );
        }
    }
}

/// On lines of its own.
#[repr(align(64))]
pub(crate) struct Padded<T>(pub(crate) T);

/// A tree for structures with an outer lock.
pub(crate) struct SpinShard {
    /// Holds the number of changes since somebody last asked.
    lock: SpinLock<u32>,
    tree: UnsafeCell<Tree>,
}

// SAFETY: the tree is touched as INV-SHARD-1 says.
unsafe impl Sync for SpinShard {}

impl SpinShard {
    pub(crate) const fn new() -> Self {
        SpinShard {
            lock: SpinLock::new(0, lock_class!("i_mmap_shard")),
            tree: UnsafeCell::new(Tree::new()),
        }
    }

    /// Locks it and counts a change.
    #[inline(always)]
    pub(crate) fn lock(&self) -> impl Drop + '_ {
        let mut changes = self.lock.lock();
        *changes = changes.saturating_add(1);
        changes
    }

    /// Changes since the last call.
    pub(crate) fn take_changes(&self) -> u32 {
        core::mem::take(&mut *self.lock.lock())
    }

    /// Its tree: INV-SHARD-1.
    #[inline(always)]
    pub(crate) fn tree(&self) -> NonNull<Tree> {
        // SAFETY: the address of a field.
        unsafe { NonNull::new_unchecked(self.tree.get()) }
    }
}

/// CPUs that share a shard, where a structure shards by the number of CPUs.
pub(crate) const CPUS_PER_SHARD: usize = if cfg!(test) { 2 } else { 8 };

/// How many shards that makes.
pub(crate) fn nr_cpu_shards() -> usize {
    ksync::arch::nr_cpu_ids().div_ceil(CPUS_PER_SHARD)
}

/// This CPU's shard. A hint: the thread may move on at once, which costs time and nothing else.
#[inline(always)]
pub(crate) fn this_cpu_shard() -> usize {
    ksync::arch::smp_processor_id() / CPUS_PER_SHARD
}
