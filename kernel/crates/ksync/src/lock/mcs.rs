//! MCS lock (Mellor-Crummey and Scott, 1991): a queue of waiters, each spinning on its own line.
//!
//! ```text
//!   tail ───────────────────────────┐
//!   holder's node ──next──► node ──next──► node (last)
//!                          granted?       granted?     each waits for its own word
//! ```
//!
//! A node must live from lock to unlock and must not move, so nodes come from a small pool in the
//! [`CpuHead`](crate::CpuHead), NUMA-local to the waiter. The pool is a bit mask and not a stack because guards may
//! be dropped in any order. An interrupt may take and return nodes between the instructions that update the mask:
//! it leaves the mask as it found it (INV-ARCH-3).
use super::Backend;
use crate::arch::{self, CpuHead};
use crate::sync::atomic::{AtomicBool, AtomicPtr, Ordering::*};
use crate::sync::{const_unless_loom, planted};
use core::ptr;

/// One place in an MCS queue.
pub(crate) struct McsNode {
    next: AtomicPtr<McsNode>,
    granted: AtomicBool,
}

impl McsNode {
    const_unless_loom! {
        pub(crate) fn new() -> Self {
            McsNode { next: AtomicPtr::new(ptr::null_mut()), granted: AtomicBool::new(false) }
        }
    }
}

/// An MCS lock: the last node of the queue, null when free.
pub struct Mcs {
    tail: AtomicPtr<McsNode>,
}

/// Takes a node of this CPU's pool; preemption is off. Returns its index.
#[inline(always)]
fn take_node(head: &'static CpuHead) -> u32 {
    let used = head.mcs_used.load(Relaxed);
    let index = used.trailing_ones();
    assert!(
        (index as usize) < head.mcs_nodes.len(),
        "too many MCS locks held at once on one CPU"
    );
    head.mcs_used.store(used | 1 << index, Relaxed);
    index
}

#[inline(always)]
fn return_node(head: &'static CpuHead, index: u32) {
    let used = head.mcs_used.load(Relaxed);
    debug_assert!(used >> index & 1 == 1);
    head.mcs_used.store(used & !(1 << index), Relaxed);
}

impl Mcs {
    /// Waits behind `prev` until its owner hands over.
    #[cold]
    #[inline(never)]
    fn wait_behind(prev: *mut McsNode, node: &'static McsNode) {
        // SAFETY: nodes are in CpuHeads, which live for ever; `prev` is not reused before it has handed over to us.
        unsafe { &*prev }
            .next
            .store(ptr::from_ref(node).cast_mut(), Release);
        while !node.granted.load(Acquire) {
            arch::cpu_relax();
        }
    }
}

// SAFETY: the xchg of `tail` orders the waiters; each is released by the one before it, once, and the first by
// finding the queue empty (INV-LOCK-1); `granted` and `tail` carry Release to Acquire (INV-LOCK-2).
unsafe impl Backend for Mcs {
    /// Index of the node in this CPU's pool.
    type State = u32;
    const NAME: &'static str = "mcs";

    #[cfg(not(loom))]
    const INIT: Self = Mcs {
        tail: AtomicPtr::new(ptr::null_mut()),
    };
    #[cfg(loom)]
    fn init() -> Self {
        Mcs {
            tail: AtomicPtr::new(ptr::null_mut()),
        }
    }

    #[inline(always)]
    fn lock(&self) -> u32 {
        let head = arch::this_cpu_head();
        let index = take_node(head);
        let node = &head.mcs_nodes[index as usize];
        node.next.store(ptr::null_mut(), Relaxed);
        node.granted.store(false, Relaxed);
        let prev = self.tail.swap(ptr::from_ref(node).cast_mut(), AcqRel);
        if !prev.is_null() {
            Self::wait_behind(prev, node);
        }
        index
    }

    #[inline(always)]
    fn try_lock(&self) -> Option<u32> {
        if !self.tail.load(Relaxed).is_null() {
            return None;
        }
        let head = arch::this_cpu_head();
        let index = take_node(head);
        let node = &head.mcs_nodes[index as usize];
        node.next.store(ptr::null_mut(), Relaxed);
        node.granted.store(false, Relaxed);
        let mine = ptr::from_ref(node).cast_mut();
        if self
            .tail
            .compare_exchange(ptr::null_mut(), mine, AcqRel, Relaxed)
            .is_err()
        {
            return_node(head, index);
            return None;
        }
        Some(index)
    }

    #[inline(always)]
    unsafe fn unlock(&self, state: &u32) {
        let head = arch::this_cpu_head();
        let node = &head.mcs_nodes[*state as usize];
        let mine = ptr::from_ref(node).cast_mut();
        let mut next = node.next.load(Acquire);
        if next.is_null()
            && self
                .tail
                .compare_exchange(mine, ptr::null_mut(), Release, Relaxed)
                .is_err()
            && !planted!(McsForgetLinking)
        {
            // Somebody swapped the tail and is about to link itself.
            loop {
                next = node.next.load(Acquire);
                if !next.is_null() {
                    break;
                }
                arch::cpu_relax();
            }
        }
        if !next.is_null() {
            // SAFETY: nodes live for ever; this waiter cannot leave before it is granted.
            unsafe { &*next }.granted.store(true, Release);
        }
        return_node(head, *state);
    }

    fn is_locked(&self) -> bool {
        !self.tail.load(Relaxed).is_null()
    }
}
