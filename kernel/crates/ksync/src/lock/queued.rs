//! The default lock: a word that is a test-and-set lock for one CPU, and the tail of an MCS queue for many.
//!
//! # Problem
//! MCS needs a node for as long as the lock is held and two atomics when nobody contends; a lock in every page table
//! and every list wants four bytes, one atomic and a byte store, and MCS's behaviour only when it is contended.
//!
//! # Mechanism
//! The design of Linux's qspinlock:
//!
//! ```text
//!   31            18 17 16 15       9    8       7        0
//!  ┌────────────────┬─────┬──────────┬─────────┬───────────┐
//!  │ tail: CPU + 1  │ node│  (zero)  │ pending │  locked   │
//!  └────────────────┴─────┴──────────┴─────────┴───────────┘
//!   free                 0
//!   held                 locked
//!   one waiter           locked + pending: it spins on the word itself, and needs no node
//!   more                 tail names the last node; the first in the queue spins on the word, the rest on their nodes
//! ```
//!
//! A node is needed only while waiting, so one per context that can interrupt another is enough: four per CPU, used
//! as a stack. If ever a fifth is needed its owner spins without queueing.
//!
//! # Invariants
//! - INV-QL-1: `locked` goes 0 to 1 only by: cmpxchg of a word that is all zero; the pending waiter, who is unique;
//!   the head of the queue, who is unique, when `pending` is 0.
//! - INV-QL-2: a CPU's nodes below `lock_depth` are in use, the others free.
use super::Backend;
use crate::arch;
use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering::*};
use crate::sync::const_unless_loom;
use core::ptr;

crate::static_key! {
    /// Spin without a queue: for a machine whose CPUs are threads of a host with fewer CPUs. There the next in line is
    /// often not running, and a queue makes everybody wait for it (Linux's virt_spin_lock). Boot only.
    pub static VIRT_SPIN;
}

const LOCKED: u32 = 1;
const LOCKED_MASK: u32 = 0xff;
const PENDING: u32 = 1 << 8;
const INDEX_SHIFT: u32 = 16;
const CPU_SHIFT: u32 = 18;
const TAIL_MASK: u32 = !0 << INDEX_SHIFT;
const _: () = assert!(crate::NR_CPUS < 1 << (32 - CPU_SHIFT));
const _: () = assert!(arch::NR_QUEUED_NODES <= 1 << (CPU_SHIFT - INDEX_SHIFT));

/// How often a CPU looks again when it sees the moment between "pending" and "locked". Where hundreds look, each look
/// takes the line from the one who is to turn "pending" into "locked": few.
const PENDING_LOOPS: usize = if cfg!(loom) { 1 } else { 16 };

/// One waiter's place in the queue.
pub(crate) struct QueuedNode {
    next: AtomicPtr<QueuedNode>,
    /// It is the head of the queue.
    is_head: AtomicBool,
}

impl QueuedNode {
    const_unless_loom! {
        pub(crate) fn new() -> Self {
            QueuedNode { next: AtomicPtr::new(ptr::null_mut()), is_head: AtomicBool::new(false) }
        }
    }
}

/// A queued spinlock.
pub struct Queued(AtomicU32);

#[inline]
fn encode_tail(cpu: usize, index: u32) -> u32 {
    (cpu as u32 + 1) << CPU_SHIFT | index << INDEX_SHIFT
}

#[inline]
fn node_of(tail: u32) -> &'static QueuedNode {
    let cpu = (tail >> CPU_SHIFT) as usize - 1;
    let index = (tail >> INDEX_SHIFT) & ((1 << (CPU_SHIFT - INDEX_SHIFT)) - 1);
    &arch::cpu_head(cpu).queued_nodes[index as usize]
}

// SAFETY: INV-QL-1 makes the holder unique (INV-LOCK-1); every transition of `locked` to 1 acquires a word that the
// release, or a read-modify-write after it, has written (INV-LOCK-2).
unsafe impl Backend for Queued {
    type State = ();
    const NAME: &'static str = "queued";

    #[cfg(not(loom))]
    const INIT: Self = Queued(AtomicU32::new(0));
    #[cfg(loom)]
    fn init() -> Self {
        Queued(AtomicU32::new(0))
    }

    #[inline(always)]
    fn lock(&self) {
        if self
            .0
            .compare_exchange(0, LOCKED, Acquire, Relaxed)
            .is_err()
        {
            self.lock_slow();
        }
    }

    #[inline(always)]
    fn try_lock(&self) -> Option<()> {
        if self.0.load(Relaxed) != 0 {
            return None;
        }
        self.0
            .compare_exchange(0, LOCKED, Acquire, Relaxed)
            .ok()
            .map(drop)
    }

    /// Stores 0 in the low byte. Rust's memory model has no atomic of a part of an atomic, so this is assembly that
    /// does what it models: `fetch_and(!0xff, Release)`. A plain store is enough because only the holder changes
    /// that byte, and x86 stores release.
    #[inline(always)]
    unsafe fn unlock(&self, _: &()) {
        #[cfg(all(target_arch = "x86_64", not(loom), not(miri)))]
        // SAFETY: writes one byte of this lock's word; the caller holds the lock. No `nomem`: nothing may sink below.
        unsafe {
            core::arch::asm!("mov byte ptr [{}], 0", in(reg) self.0.as_ptr(), options(nostack, preserves_flags))
        };
        #[cfg(not(all(target_arch = "x86_64", not(loom), not(miri))))]
        self.0.fetch_and(
            !LOCKED_MASK,
            if crate::sync::planted!(QueuedRelaxedUnlock) {
                Relaxed
            } else {
                Release
            },
        );
    }

    fn is_locked(&self) -> bool {
        self.0.load(Relaxed) != 0
    }
}

impl Queued {
    /// The word was not free.
    #[cold]
    #[inline(never)]
    fn lock_slow(&self) {
        if crate::static_branch!(VIRT_SPIN) {
            return self.spin_unfairly();
        }
        let mut seen = self.0.load(Relaxed);
        if seen == PENDING {
            // The lock is passing from a holder to the pending waiter; that takes no time.
            for _ in 0..PENDING_LOOPS {
                arch::cpu_relax();
                seen = self.0.load(Relaxed);
                if seen != PENDING {
                    break;
                }
            }
        }
        if seen & !LOCKED_MASK == 0 {
            seen = self.set_pending();
            if seen & !LOCKED_MASK == 0 {
                return self.wait_as_pending(seen);
            }
            if seen & PENDING == 0 {
                // There is a queue: the bit we set is nobody's, give it back.
                self.0.fetch_and(!PENDING, Relaxed);
            }
        }
        self.wait_in_queue();
    }

    /// Takes the lock whenever it is free, whoever came first.
    fn spin_unfairly(&self) {
        loop {
            while self.0.load(Relaxed) != 0 {
                arch::cpu_relax();
            }
            if self.0.compare_exchange(0, LOCKED, Acquire, Relaxed).is_ok() {
                return;
            }
        }
    }

    /// Sets the pending bit; the word as it was, though its other bits may be those of a moment later. To have the whole
    /// word of one moment would be a loop of compare-and-exchange, which takes everybody the square of their number;
    /// to have one bit is one instruction. A tail that was there is still there then, for its owner leaves only a word
    /// without the bit; one that came meanwhile sends us into the queue, where we may go at any time.
    #[inline(always)]
    fn set_pending(&self) -> u32 {
        let had = self.0.fetch_or(PENDING, Acquire) & PENDING;
        had | self.0.load(Acquire) & !PENDING
    }

    /// We own the pending bit: wait for the holder, then turn pending into locked.
    fn wait_as_pending(&self, mut seen: u32) {
        while seen & LOCKED_MASK != 0 {
            arch::cpu_relax();
            seen = self.0.load(Acquire);
        }
        // INV-QL-1: the bit is ours and `locked` is 0, so nobody else may take it.
        self.0.fetch_add(LOCKED.wrapping_sub(PENDING), Acquire);
    }

    fn wait_in_queue(&self) {
        let head = arch::this_cpu_head();
        let index = head.lock_depth.load(Relaxed);
        // An interrupt between load and store leaves the depth as it found it.
        head.lock_depth.store(index + 1, Relaxed);
        match head.queued_nodes.get(index as usize) {
            Some(node) => self.queue_with(node, encode_tail(arch::smp_processor_id(), index)),
            None => {
                while self.try_lock().is_none() {
                    arch::cpu_relax();
                }
            }
        }
        head.lock_depth.store(index, Relaxed);
    }

    fn queue_with(&self, node: &'static QueuedNode, tail: u32) {
        node.is_head.store(false, Relaxed);
        node.next.store(ptr::null_mut(), Relaxed);
        let before = self.swap_tail(tail);
        if before & TAIL_MASK != 0 {
            let prev = node_of(before);
            prev.next.store(ptr::from_ref(node).cast_mut(), Release);
            while !node.is_head.load(Acquire) {
                arch::cpu_relax();
            }
        }
        self.take_as_head(tail, node);
    }

    /// We are the head of the queue: wait for the holder and the pending waiter, take the lock, hand on the head.
    fn take_as_head(&self, tail: u32, node: &'static QueuedNode) {
        loop {
            let seen = self.0.load(Acquire);
            if seen & !TAIL_MASK != 0 {
                arch::cpu_relax();
                continue;
            }
            if seen & TAIL_MASK != tail {
                // INV-QL-1: the queue is not empty, so that nobody becomes pending, and we are its head.
                self.set_locked();
                break;
            }
            // Alone: take the lock and empty the queue in one step, unless somebody comes.
            if self
                .0
                .compare_exchange(seen, LOCKED, Acquire, Relaxed)
                .is_ok()
            {
                return;
            }
        }
        loop {
            let next = node.next.load(Acquire);
            if !next.is_null() {
                // SAFETY: nodes are in CpuHeads, which live for ever; this waiter is still in the queue.
                unsafe { &*next }.is_head.store(true, Release);
                return;
            }
            arch::cpu_relax();
        }
    }

    /// Stores 1 in the low byte, whatever becomes of the others meanwhile: `fetch_or(LOCKED)`, as a store.
    #[inline]
    fn set_locked(&self) {
        #[cfg(all(target_arch = "x86_64", not(loom), not(miri)))]
        // SAFETY: writes one byte of this lock's word, which only we may change (INV-QL-1). No `nomem`: nothing may rise
        // above.
        unsafe {
            core::arch::asm!("mov byte ptr [{}], 1", in(reg) self.0.as_ptr(), options(nostack, preserves_flags))
        };
        #[cfg(not(all(target_arch = "x86_64", not(loom), not(miri))))]
        self.0.fetch_or(LOCKED, Acquire);
    }

    /// Makes `tail` the last in the queue; returns the tail before. One exchange of half the word, because a loop over
    /// the whole word is a storm where hundreds arrive at once: each attempt fails that another's passes. The assembly
    /// does what the loop models.
    #[cfg(all(target_arch = "x86_64", not(loom), not(miri)))]
    fn swap_tail(&self, tail: u32) -> u32 {
        const _: () = assert!(INDEX_SHIFT == u16::BITS);
        let mut half = (tail >> INDEX_SHIFT) as u16;
        // SAFETY: the upper half of this lock's word, which is aligned; `xchg` is atomic and a full barrier. No `nomem`:
        // nothing may move across it.
        unsafe {
            core::arch::asm!(
                "xchg word ptr [{} + 2], {:x}", in(reg) self.0.as_ptr(), inout(reg) half,
                options(nostack, preserves_flags)
            );
        }
        u32::from(half) << INDEX_SHIFT
    }

    /// The same, as a loop.
    #[cfg(not(all(target_arch = "x86_64", not(loom), not(miri))))]
    fn swap_tail(&self, tail: u32) -> u32 {
        let mut seen = self.0.load(Relaxed);
        loop {
            let new = seen & !TAIL_MASK | tail;
            match self.0.compare_exchange(seen, new, AcqRel, Relaxed) {
                Ok(before) => return before,
                Err(now) => seen = now,
            }
        }
    }
}
