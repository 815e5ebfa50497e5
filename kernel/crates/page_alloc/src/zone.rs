//! The nodes' buddies behind their locks, and the order in which nodes are tried.
//!
//! Problem. Memory is near or far. A request wants the nearest free block; a freed block must go
//! back to the node it came from; some nodes have no memory, some no CPU.
//!
//! Mechanism. A static array of zones, one per node, each a [`Buddy`] behind a spinlock on cache
//! lines of its own; a bitmap of the nodes that have memory, so that memory-less nodes cost one
//! bit test; a fallback list per node, written once at boot from the distance table.
//!
//! Lock order. `zone_lock` is a leaf: never two at a time, nothing is called under it.

use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::*};

use ksync::{LockClass, MAX_NUMNODES, SpinIrqGuard, SpinLock, arch};

use crate::buddy::{Buddy, InitError};
use crate::page::{Page, PageRef, PageState, tag};
use crate::{Gfp, MAX_ORDER, ReadMostly};

static ZONE_LOCK: LockClass = LockClass::new_leaf("zone_lock");

#[repr(align(128))]
struct Zone {
    buddy: SpinLock<Buddy>,
}

static ZONES: [Zone; MAX_NUMNODES] = [const {
    Zone {
        buddy: SpinLock::new(Buddy::new(), &ZONE_LOCK),
    }
}; MAX_NUMNODES];

/// Bit n: node n has memory. Set at boot, read by all: on a cache line of its own.
static HAS_MEMORY: ReadMostly<AtomicU64> = ReadMostly(AtomicU64::new(0));
const _: () = assert!(MAX_NUMNODES <= 64 && MAX_NUMNODES <= END as usize);

/// Ends a fallback list.
const END: u8 = 0xff;
/// Per node, the nodes to try in order. An empty list stands for ascending order.
static FALLBACK: [[AtomicU8; MAX_NUMNODES]; MAX_NUMNODES] =
    [const { [const { AtomicU8::new(END) }; MAX_NUMNODES] }; MAX_NUMNODES];

/// The buddy of `node`, locked.
#[inline]
pub(crate) fn lock(node: usize) -> SpinIrqGuard<'static, Buddy> {
    ZONES[node].buddy.lock_irqsave()
}

#[inline]
fn has_memory(node: usize) -> bool {
    HAS_MEMORY.0.load(Acquire) >> node & 1 != 0
}

/// How many nodes have memory; at least 1.
pub(crate) fn nr_with_memory() -> usize {
    HAS_MEMORY.0.load(Acquire).count_ones().max(1) as usize
}

/// See [`crate::init_node`].
///
/// # Safety
/// As there.
pub(crate) unsafe fn add_memory(node: usize, ranges: &[Range<usize>]) -> Result<(), InitError> {
    if node >= MAX_NUMNODES {
        return Err(InitError::BadNode);
    }
    for r in ranges.iter().filter(|r| !r.is_empty() || r.start > r.end) {
        // SAFETY: our caller's contract is add_range's.
        unsafe { lock(node).add_range(arch::vmemmap_base() as *mut Page, node, r.clone())? };
        HAS_MEMORY.0.fetch_or(1 << node, Release);
    }
    Ok(())
}

/// See [`crate::set_fallback_order`].
pub(crate) fn set_fallback(node: usize, order: &[usize]) {
    for (i, slot) in FALLBACK[node].iter().enumerate() {
        slot.store(order.get(i).map_or(END, |&n| n as u8), Relaxed);
    }
}

/// Nodes with memory, nearest to `node` first; `node` itself first of all if it has any.
pub(crate) fn nearest(node: usize) -> impl Iterator<Item = usize> {
    let list = &FALLBACK[node];
    let set = list[0].load(Relaxed) != END;
    let others = (0..MAX_NUMNODES)
        .map(move |i| {
            if set {
                list[i].load(Relaxed) as usize
            } else {
                i
            }
        })
        .take_while(|&n| n != END as usize)
        .filter(move |&n| n != node);
    core::iter::once(node)
        .chain(others)
        .filter(|&n| has_memory(n))
}

/// A block from `node` only.
fn alloc_from(node: usize, order: u32) -> Option<PageRef> {
    let head = lock(node).alloc(order)?;
    Some(hand_out(head, node, order))
}

/// Names the frames of a block that a buddy gave: ALLOCATED, then TAILs.
fn hand_out(head: NonNull<Page>, node: usize, order: u32) -> PageRef {
    for i in 1..1usize << order {
        // SAFETY: frame i of the block; descriptors are contiguous.
        unsafe { head.add(i).as_ref() }.set_tag(tag(PageState::Tail, order, node));
    }
    let page = PageRef::from_desc(head);
    page.desc()
        .make_allocated(tag(PageState::Allocated, order, node));
    page
}

/// A block from `node`, else from the others by distance unless THISNODE. Takes one zone lock at
/// a time. None: no such block anywhere (per-CPU lists not looked at).
pub(crate) fn alloc(node: usize, order: u32, gfp: Gfp) -> Option<PageRef> {
    if order > MAX_ORDER || node >= MAX_NUMNODES {
        return None;
    }
    if gfp.contains(Gfp::THISNODE) {
        return if has_memory(node) {
            alloc_from(node, order)
        } else {
            None
        };
    }
    nearest(node).find_map(|n| alloc_from(n, order))
}

/// Gives blocks of one node back under one lock hold.
pub(crate) fn free_all(node: usize, order: u32, blocks: impl Iterator<Item = PageRef>) {
    let mut buddy = lock(node);
    for b in blocks {
        debug_assert!(b.node() == node && b.order() == order);
        buddy.free(b.as_ptr(), order);
    }
}
