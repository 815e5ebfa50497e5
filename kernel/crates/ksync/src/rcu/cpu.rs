//! One CPU's part of RCU: its callbacks, and what it last knew of the grace period.
//!
//! Invariants: INV-RCU-5, INV-RCU-6 (see the parent module).
use super::cblist::{CbList, Segment};
use super::tree::{Leaf, Place};
use super::{BATCH, GLOBAL, LAZY, RcuCallback, RcuHead, layout, seq};
use crate::arch;
use crate::sync::atomic::{AtomicBool as ExploredBool, AtomicU64, Ordering::*};
use crate::sync::{const_unless_loom, planted};
use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU16, AtomicUsize};

/// A CPU's part: in its [`CpuHead`](crate::CpuHead), so in its node's memory. All zero bytes, then [`place`](Self::place), are valid.
#[repr(C, align(64))]
pub(crate) struct RcuCpu {
    /// This CPU's leaf; its first field is the sequence number compared below.
    leaf: AtomicPtr<Leaf>,
    /// The leaf's `seq` at the last check, or less if a callback was queued since.
    seen: core::sync::atomic::AtomicU64,
    place_leaf: AtomicU16,
    place_bit: AtomicU16,
    /// The BUSY bit is set. Zero, idle, at first.
    busy: AtomicBool,
    /// DONE is not empty.
    ready: AtomicBool,
    /// [`barrier`](super::barrier) wants a callback of its own behind those that are queued.
    barrier_wanted: ExploredBool,
    barrier_head: RcuHead,
    /// Callbacks queued and not yet run. Written by this CPU, read by `barrier`.
    nr_callbacks: AtomicUsize,
    list: UnsafeCell<CbList>,
}

// SAFETY: INV-RCU-5; everything else is atomic.
unsafe impl Sync for RcuCpu {}
// SAFETY: as above.
unsafe impl Send for RcuCpu {}

impl RcuCpu {
    const_unless_loom! {
        pub(crate) fn new() -> Self {
            RcuCpu {
                leaf: AtomicPtr::new(ptr::null_mut()),
                seen: core::sync::atomic::AtomicU64::new(0),
                place_leaf: AtomicU16::new(0),
                place_bit: AtomicU16::new(0),
                busy: AtomicBool::new(false),
                ready: AtomicBool::new(false),
                barrier_wanted: ExploredBool::new(false),
                barrier_head: RcuHead::new(),
                nr_callbacks: AtomicUsize::new(0),
                list: UnsafeCell::new(CbList::new()),
            }
        }
    }

    /// Gives this CPU its place in the tree. Boot, or on the host before its first use.
    pub(crate) fn place(&self, cpu: usize) {
        let place = layout::place_of(cpu);
        GLOBAL.tree.assign(cpu, place);
        let leaf = GLOBAL.tree.leaf(place);
        self.place_leaf.store(place.leaf as u16, Relaxed);
        self.place_bit.store(place.bit as u16, Relaxed);
        self.seen
            .store(leaf.seq.load(Relaxed).wrapping_sub(1), Relaxed);
        self.leaf.store(ptr::from_ref(leaf).cast_mut(), Release);
    }

    fn my_place(&self) -> Place {
        Place {
            leaf: self.place_leaf.load(Relaxed) as usize,
            bit: self.place_bit.load(Relaxed) as u32,
        }
    }

    #[inline(always)]
    fn leaf_seq(&self) -> &'static AtomicU64 {
        let leaf = self.leaf.load(Relaxed);
        debug_assert!(!leaf.is_null(), "RCU used before cpu_online");
        // SAFETY: `place` stored a leaf of the global tree.
        unsafe { &(*leaf).seq }
    }

    /// Whether the grace period moved or a callback was queued since the last check.
    #[inline(always)]
    pub(super) fn has_work(&self) -> bool {
        self.leaf_seq().load(Acquire) != self.seen.load(Relaxed)
    }

    /// As `has_work`, for whoever need not be lazy.
    #[inline(always)]
    pub(super) fn has_work_or_callbacks(&self) -> bool {
        self.has_callbacks() || self.has_work()
    }

    /// Whether there are callbacks, or there is to be one for a barrier, which came when the last had just run.
    #[inline(always)]
    pub(super) fn has_callbacks(&self) -> bool {
        self.nr_callbacks.load(Relaxed) != 0 || self.barrier_wanted.load(Relaxed)
    }

    /// Makes the next `has_work` true (INV-RCU-6).
    #[inline(always)]
    pub(super) fn look_again(&self) {
        self.seen
            .store(self.seen.load(Relaxed).wrapping_sub(1), Relaxed);
    }

    /// This CPU takes readers from now on. Preemption off.
    pub(super) fn online(&self, cpu: usize) {
        self.place(cpu);
        debug_assert!(!self.busy.load(Relaxed), "cpu_online twice");
        self.leave_idle();
    }

    /// Queues a callback, and asks for a look if there are many.
    ///
    /// # Safety
    /// This CPU, IRQs off. The contract of `call` holds for `head` and `f`.
    #[inline(always)]
    pub(super) unsafe fn push(&self, head: NonNull<RcuHead>, f: RcuCallback) {
        // SAFETY: INV-RCU-5 by the caller's promise.
        unsafe { (*self.list.get()).push(head, f) };
        let nr = self.nr_callbacks.load(Relaxed) + 1;
        self.nr_callbacks.store(nr, Relaxed);
        if nr.is_multiple_of(LAZY) {
            self.look_again();
        }
    }

    /// Makes this CPU queue a callback of its own behind those it has, when it next looks. It may be idle by now, with
    /// no callback and no reason to wake up: the caller kicks it.
    ///
    /// # Safety
    /// The callback of an earlier call has run.
    pub(super) unsafe fn want_barrier(&self, f: RcuCallback) {
        // SAFETY: the head is not queued, so nobody reads it before `barrier_wanted` is seen.
        unsafe { *self.barrier_head.func.get() = Some(f) };
        self.barrier_wanted.store(true, Release);
    }

    /// Callbacks queued and not yet run. From another CPU: none that was queued before is missed.
    #[inline(always)]
    pub(super) fn nr_callbacks(&self) -> usize {
        self.nr_callbacks.load(Acquire)
    }

    /// Whether callbacks may run.
    #[inline(always)]
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    /// Goes idle unless there are callbacks to run. Preemption off.
    pub(super) fn try_idle(&self) -> bool {
        if self.has_work_or_callbacks() {
            self.check();
        }
        if self.is_ready() {
            return false;
        }
        let flags = arch::local_irq_save();
        // SAFETY: INV-RCU-5.
        let earliest = unsafe { (*self.list.get()).earliest() };
        arch::local_irq_restore(flags);
        self.enter_idle(earliest.is_some());
        // Either who ends the grace period sees our SLEEP bit, or we see here that it has ended.
        let ended = earliest.is_some_and(|stamp| seq::reached(GLOBAL.tree.snapshot(), stamp));
        if ended && !planted!(RcuSleepUnseen) {
            self.leave_idle();
            self.check();
            return false;
        }
        true
    }

    #[inline(always)]
    pub(super) fn leave_idle_if_idle(&self) {
        if !self.busy.load(Relaxed) {
            self.leave_idle();
        }
    }

    /// Readers may run from now on. The CPU is idle.
    pub(super) fn leave_idle(&self) {
        if self.leaf.load(Relaxed).is_null() {
            // An interrupt before `cpu_online`: nobody relies on readers here yet.
            return;
        }
        GLOBAL.tree.idle_exit(self.my_place());
        self.busy.store(true, Relaxed);
    }

    pub(super) fn enter_idle(&self, sleeps: bool) {
        self.busy.store(false, Relaxed);
        GLOBAL.tree.idle_enter(self.my_place(), sleeps);
    }

    /// This CPU is quiescent: reports that, moves callbacks on, asks for grace periods. Preemption off.
    #[cold]
    #[inline(never)]
    pub(super) fn check(&self) {
        let flags = arch::local_irq_save();
        // What we ask for may start, and end, at once: then look again. More rounds are the next check's.
        for _ in 0..3 {
            let seq = self.leaf_seq().load(Acquire);
            GLOBAL.tree.report(self.my_place());
            // SAFETY: INV-RCU-5: this CPU, IRQs off.
            let list = unsafe { &mut *self.list.get() };
            if self.barrier_wanted.load(Relaxed) && self.barrier_wanted.swap(false, Acquire) {
                self.queue_barrier(list);
            }
            let waits_for = list.advance(GLOBAL.tree.snapshot());
            self.ready.store(!list.done.is_empty(), Relaxed);
            self.seen.store(seq, Relaxed);
            if let Some(stamp) = waits_for {
                GLOBAL.tree.request(stamp);
            }
            if !self.has_work() {
                break;
            }
        }
        arch::local_irq_restore(flags);
    }

    fn queue_barrier(&self, list: &mut CbList) {
        // SAFETY: `barrier` set the function, and leaves the head alone until it has run.
        unsafe {
            list.push(
                NonNull::from(&self.barrier_head),
                (*self.barrier_head.func.get()).unwrap_unchecked(),
            )
        };
        self.nr_callbacks
            .store(self.nr_callbacks.load(Relaxed) + 1, Relaxed);
    }

    /// Runs up to BATCH callbacks. Preemption off, IRQs on.
    pub(super) fn run_batch(&self) -> usize {
        let flags = arch::local_irq_save();
        // SAFETY: INV-RCU-5.
        let mut batch = unsafe { core::mem::replace(&mut (*self.list.get()).done, Segment::new()) };
        arch::local_irq_restore(flags);
        let mut nr = 0;
        while nr < BATCH
            && let Some((head, f)) = batch.pop()
        {
            // SAFETY: the contract of `call`; the grace period is over.
            unsafe { f(head) };
            nr += 1;
        }
        let flags = arch::local_irq_save();
        // SAFETY: INV-RCU-5.
        let list = unsafe { &mut *self.list.get() };
        batch.prepend_to(&mut list.done);
        self.ready.store(!list.done.is_empty(), Relaxed);
        self.nr_callbacks
            .store(self.nr_callbacks.load(Relaxed) - nr, Release);
        arch::local_irq_restore(flags);
        nr
    }
}
