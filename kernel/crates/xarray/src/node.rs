//! The node of the tree, where nodes come from, and how they go.
//!
//! ```text
//!   Node { slots[64] | free bitmap | parent | rcu head | shift, offset, count }
//!   shift 0:  slots hold entries            shift 6k: slots hold nodes of shift 6(k-1)
//! ```
//!
//! Invariants
//! - INV-XA-1 (who writes): all fields but `slots` belong to the writer; `shift` never changes while
//!   a reader can reach the node. Slots are written by the writer alone, with Release, and read
//!   by anybody inside an RCU section.
//! - INV-XA-2 (free bitmap): bit i is set if and only if slot i is empty, or leads to a node that
//!   has a set bit.
//! - INV-XA-3 (count): `count` is the number of slots that are not null; a node in a tree has
//!   `count > 0`. Bottom nodes of a `LeaseMap` and the kept node of an `Idr` differ, see there.
//! - INV-XA-4 (last words): a node that readers may have reached is freed only after a grace period,
//!   and keeps its slots until then.

use core::mem::offset_of;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU16, AtomicU64, Ordering::*};
use ksync::rcu::{self, RcuHead};
use slab::{AllocError, CacheFlags, Gfp, KmemCache};

/// log2 of the slots of a node.
pub(crate) const SHIFT: u32 = 6;
/// Slots of a node.
pub(crate) const SLOTS: usize = 1 << SHIFT;

/// One node. All fields are atomics, so that a shared view suffices for the writer too; on the
/// machine relaxed loads and stores are plain moves. On lines of its own, and low bits of its address are free for a slot's
/// number.
#[repr(C, align(64))]
pub(crate) struct Node {
    /// Entries or nodes; null: empty.
    pub slots: [AtomicPtr<()>; SLOTS],
    /// INV-XA-2.
    pub free: AtomicU64,
    /// The node above; null at the top. In a [`Preload`]: the next spare node.
    pub parent: AtomicPtr<Node>,
    rcu: RcuHead,
    /// Bits of the index below this node's six.
    pub shift: AtomicU8,
    /// The slot of `parent` that leads here.
    pub offset: AtomicU8,
    /// INV-XA-3.
    pub count: AtomicU16,
}

const _: () = assert!(size_of::<Node>() <= 576);

static NODES: KmemCache = KmemCache::new_static(
    "xarray_node",
    size_of::<Node>(),
    align_of::<Node>(),
    CacheFlags::empty(),
);

/// Nodes allocated now, spare and retired ones included. For leak checks.
pub fn nr_nodes() -> usize {
    NODES.stats().active
}

impl Node {
    #[inline(always)]
    pub fn shift(&self) -> u32 {
        u32::from(self.shift.load(Relaxed))
    }

    /// The slot on the way to `index`.
    #[inline(always)]
    pub fn offset_of(&self, index: u64) -> usize {
        (index >> self.shift()) as usize & (SLOTS - 1)
    }

    /// The greatest index below a top node of this shift.
    #[inline(always)]
    pub fn max_index(&self) -> u64 {
        max_index(self.shift())
    }

    #[inline(always)]
    pub fn slot(&self, offset: usize) -> *mut () {
        // The mask is free (offsets are masked already) and removes the bounds check.
        self.slots[offset & (SLOTS - 1)].load(Acquire)
    }

    #[inline(always)]
    pub fn set_slot(&self, offset: usize, p: *mut ()) {
        self.slots[offset & (SLOTS - 1)].store(p, Release);
    }

    #[inline(always)]
    pub fn child(&self, offset: usize) -> *mut Node {
        debug_assert!(self.shift() > 0);
        self.slot(offset).cast()
    }

    #[inline(always)]
    pub fn free(&self) -> u64 {
        self.free.load(Relaxed)
    }

    #[inline(always)]
    pub fn parent(&self) -> *mut Node {
        self.parent.load(Relaxed)
    }

    #[inline(always)]
    pub fn count(&self) -> u16 {
        self.count.load(Relaxed)
    }

    #[inline(always)]
    pub fn set_count(&self, n: u16) {
        self.count.store(n, Relaxed);
    }

    /// Makes a spare node ready to be linked.
    #[inline(always)]
    pub fn reset(&self, shift: u32, parent: *mut Node, offset: usize) {
        self.shift.store(shift as u8, Relaxed);
        self.parent.store(parent, Relaxed);
        self.offset.store(offset as u8, Relaxed);
    }
}

/// The greatest index that fits below a top node with `shift`.
#[inline(always)]
pub(crate) fn max_index(shift: u32) -> u64 {
    if shift + SHIFT >= u64::BITS {
        u64::MAX
    } else {
        (1 << (shift + SHIFT)) - 1
    }
}

/// The shift of the lowest top node that can hold `index`.
#[inline]
pub(crate) fn shift_for(index: u64) -> u32 {
    let bits = u64::BITS - index.leading_zeros();
    bits.saturating_sub(1) / SHIFT * SHIFT
}

fn alloc_node() -> Result<NonNull<Node>, AllocError> {
    let node: NonNull<Node> = NODES.alloc(Gfp::empty())?.cast();
    // SAFETY: fresh memory of a node's size and alignment; every field is written here.
    unsafe {
        let p = node.as_ptr();
        (&raw mut (*p).slots).write_bytes(0, 1);
        (&raw mut (*p).free).write(AtomicU64::new(!0));
        (&raw mut (*p).parent).write(AtomicPtr::new(ptr::null_mut()));
        (&raw mut (*p).rcu).write(RcuHead::new());
        (&raw mut (*p).shift).write(AtomicU8::new(0));
        (&raw mut (*p).offset).write(AtomicU8::new(0));
        (&raw mut (*p).count).write(AtomicU16::new(0));
    }
    Ok(node)
}

/// Frees a node at once.
///
/// # Safety
/// The node is in no tree, and no reader can still see it.
pub(crate) unsafe fn free_node(node: NonNull<Node>) {
    // SAFETY: from `alloc_node`; the caller's promise.
    unsafe { NODES.free(node.cast()) };
}

/// Frees a node after a grace period (INV-XA-4).
///
/// # Safety
/// The node has just been unlinked from its tree and is the caller's.
pub(crate) unsafe fn free_node_rcu(node: NonNull<Node>) {
    // SAFETY: called back once, with the head of a node given away below.
    unsafe fn callback(head: NonNull<RcuHead>) {
        // SAFETY: `head` is the `rcu` field of a node, pointer made from the whole node.
        unsafe { free_node(head.byte_sub(offset_of!(Node, rcu)).cast()) };
    }
    // SAFETY: the node is ours until the callback runs; the head is part of it.
    unsafe {
        let head = node.byte_add(offset_of!(Node, rcu)).cast::<RcuHead>();
        rcu::call(head, callback);
    }
}

/// Spare nodes, allocated before a lock is taken and used under it. Dropping it frees the rest.
pub struct Preload {
    head: *mut Node,
    len: usize,
}

impl Preload {
    /// No nodes: free of cost.
    #[inline(always)]
    pub const fn new() -> Self {
        Preload {
            head: ptr::null_mut(),
            len: 0,
        }
    }

    /// Spare nodes at hand.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Allocates until `nr` nodes are at hand. What was allocated before a failure is kept.
    /// Context: wherever slab may be called; no lock that slab must not nest under.
    #[cold]
    pub fn fill(&mut self, nr: usize) -> Result<(), AllocError> {
        while self.len < nr {
            let node = alloc_node()?;
            // SAFETY: just allocated, ours alone.
            unsafe { node.as_ref() }.parent.store(self.head, Relaxed);
            self.head = node.as_ptr();
            self.len += 1;
        }
        Ok(())
    }

    /// A spare node, empty and ready for `Node::reset`.
    ///
    /// # Panics
    /// If there is none: the caller has counted.
    pub(crate) fn take(&mut self) -> NonNull<Node> {
        let node = NonNull::new(self.head).expect("preload was counted");
        // SAFETY: spare nodes are ours alone.
        self.head = unsafe { node.as_ref() }.parent();
        self.len -= 1;
        node
    }
}

impl Drop for Preload {
    #[inline]
    fn drop(&mut self) {
        while !self.head.is_null() {
            let node = self.take();
            // SAFETY: never linked anywhere.
            unsafe { free_node(node) };
        }
    }
}
