//! Wait queues: sleep until a condition holds, without losing a wake-up.
//!
//! # Problem
//! A thread looks at a condition, finds it false, and goes to sleep; between the two somebody makes it true and
//! wakes nobody. And a wake-up meant for one of several waiters must not end with one that no longer needs it.
//!
//! # Mechanism
//! The waiter's entry is on its own stack. It queues first, looks second, sleeps third; the waker makes the condition
//! true first and looks at the queue second:
//!
//! ```text
//!   waiter                          waker
//!   queue entry                     make the condition true
//!   full barrier                    full barrier
//!   look at the condition           look whether anybody is queued
//! ```
//!
//! So at least one sees the other. A waker takes the entry off the queue under the queue's lock, its last touch of the
//! entry being the store that says so, and unparks the thread before it lets the lock go. A waiter that reads that
//! store leaves at once: a crowd woken together does not queue for the lock again. The waker may thus unpark a thread
//! that has left and even ended; the lock is held with IRQs off, which is an RCU section, and threads are freed after
//! a grace period.
//! A waiter that was chosen by [`wake_one`](WaitQueue::wake_one) but found its condition true by itself, or is leaving
//! because of a signal, wakes the next one instead.
//!
//! # Lock order
//! The queue's lock is taken with IRQs off; under it only `arch::unpark` (run-queue locks).
//!
//! # Invariants
//! - INV-WAIT-1: an entry is linked if and only if its `queued` is true; both change under the queue's lock. Who reads
//!   false (Acquire) has the entry to itself: clearing it (Release) is the last a waker does with an entry.
//! - INV-WAIT-2: an entry is not moved or dropped while linked (pinned; `Drop` unlinks).
//! - INV-WAIT-3: `waiting` is true if the queue is not empty.
use crate::arch::{self, ThreadPtr};
use crate::sync::atomic::{AtomicBool, Ordering::*, fence};
use crate::sync::{const_unless_loom, planted};
use crate::{LockClass, SpinLock};
use core::cell::{Cell, UnsafeCell};
use core::marker::PhantomPinned;
use core::pin::{Pin, pin};
use core::ptr;

static CLASS: LockClass = LockClass::new("wait_queue");

/// The wait ended because a signal is pending.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Interrupted;

/// A queue of sleeping threads.
pub struct WaitQueue {
    waiting: AtomicBool,
    list: SpinLock<List>,
}

/// Doubly linked list of the entries' nodes, first come first.
pub(crate) struct List {
    first: *const Node,
    last: *const Node,
}

// SAFETY: the nodes are touched only under the lock the list is in.
unsafe impl Send for List {}

/// One waiter. Everything is guarded by the lock of the queue it is on; `queued` may be read without.
pub(crate) struct Node {
    thread: Cell<ThreadPtr>,
    next: Cell<*const Node>,
    prev: Cell<*const Node>,
    queued: AtomicBool,
}

impl Node {
    const_unless_loom! {
        fn new() -> Self {
            Node {
                thread: Cell::new(ThreadPtr::NULL),
                next: Cell::new(ptr::null()),
                prev: Cell::new(ptr::null()),
                queued: AtomicBool::new(false),
            }
        }
    }

    fn is_queued(&self) -> bool {
        self.queued.load(Acquire)
    }
}

impl List {
    const fn new() -> Self {
        List {
            first: ptr::null(),
            last: ptr::null(),
        }
    }

    fn push_back(&mut self, node: &Node) {
        debug_assert!(!node.is_queued());
        node.prev.set(self.last);
        node.next.set(ptr::null());
        // SAFETY: INV-WAIT-2: linked nodes live.
        match unsafe { self.last.as_ref() } {
            Some(last) => last.next.set(node),
            None => self.first = node,
        }
        self.last = node;
        node.queued.store(true, Relaxed);
    }

    fn remove(&mut self, node: &Node) {
        debug_assert!(node.is_queued());
        let (prev, next) = (node.prev.get(), node.next.get());
        // SAFETY: INV-WAIT-2: linked nodes live.
        match unsafe { prev.as_ref() } {
            Some(prev) => prev.next.set(next),
            None => self.first = next,
        }
        // SAFETY: as above.
        match unsafe { next.as_ref() } {
            Some(next) => next.prev.set(prev),
            None => self.last = prev,
        }
        node.queued.store(false, Release);
    }

    /// Takes the first off and unparks its thread. Under the queue's lock.
    fn wake_first(&mut self) -> bool {
        // SAFETY: INV-WAIT-2: linked nodes live.
        let Some(first) = (unsafe { self.first.as_ref() }) else {
            return false;
        };
        let thread = first.thread.get();
        self.remove(first);
        arch::unpark(thread);
        true
    }
}

/// A place in a queue, for a thread that waits on several queues at once or between other work:
///
/// ```ignore
/// let entry = pin!(WaitEntry::new());
/// loop {
///     entry.as_ref().prepare(&queue);      // queued from here on
///     if condition() { break; }            // look after queueing
///     arch::park();
/// }                                        // dropping leaves the queue
/// ```
pub struct WaitEntry<'q> {
    queue: Cell<Option<&'q WaitQueue>>,
    // In an UnsafeCell because wakers reach it while the owner holds references to the entry.
    node: UnsafeCell<Node>,
    _pin: PhantomPinned,
}

impl<'q> WaitEntry<'q> {
    const_unless_loom! {
        /// An entry on no queue.
        pub fn new() -> Self {
            WaitEntry { queue: Cell::new(None), node: UnsafeCell::new(Node::new()), _pin: PhantomPinned }
        }
    }

    fn node(&self) -> &Node {
        // SAFETY: all fields of a node are cells.
        unsafe { &*self.node.get() }
    }

    /// Puts the entry at the end of `queue` unless it is on it already (on another it leaves that first). Look at the
    /// condition after this, before parking. Thread context; does not sleep.
    pub fn prepare(self: Pin<&Self>, queue: &'q WaitQueue) {
        if self.queue.get().is_some_and(|old| !ptr::eq(old, queue)) {
            self.finish();
        }
        self.queue.set(Some(queue));
        {
            let mut list = queue.list.lock_irqsave();
            if !self.node().is_queued() {
                self.node().thread.set(arch::current());
                list.push_back(self.node());
                queue.waiting.store(true, Relaxed);
            }
        }
        // Pairs with the barrier in `WaitQueue::anybody`.
        fence(SeqCst);
    }

    /// Whether a waker took the entry off its queue since `prepare`. If so the entry is on no queue now.
    pub fn was_woken(&self) -> bool {
        let woken = self.queue.get().is_some() && !self.node().is_queued();
        if woken {
            self.queue.set(None);
        }
        woken
    }

    /// Leaves the queue. Returns whether a waker had taken the entry off: then, if the caller has no use for the
    /// wake-up, it should pass it on. Any number of times.
    pub fn finish(&self) -> bool {
        let Some(queue) = self.queue.take() else {
            return false;
        };
        if !self.node().is_queued() {
            return true;
        }
        let mut list = queue.list.lock_irqsave();
        if !self.node().is_queued() {
            return true;
        }
        list.remove(self.node());
        queue.waiting.store(!list.first.is_null(), Relaxed);
        false
    }
}

impl Drop for WaitEntry<'_> {
    fn drop(&mut self) {
        self.finish();
    }
}

impl WaitQueue {
    const_unless_loom! {
        /// An empty queue.
        pub fn new() -> Self {
            WaitQueue { waiting: AtomicBool::new(false), list: SpinLock::new(List::new(), &CLASS) }
        }
    }

    /// Sleeps until `cond` returns true. It is called with no lock held, maybe many times, and may consume what it
    /// waits for when it returns true. Thread context, preemption and IRQs on.
    #[inline]
    pub fn wait_until(&self, mut cond: impl FnMut() -> bool) {
        if !cond() {
            let _ = self.wait_slow(cond, || false);
        }
    }

    /// As [`wait_until`](Self::wait_until), but ends with an error when a signal is pending. (Whoever sends a signal
    /// unparks its thread.)
    #[inline]
    pub fn wait_until_interruptible(
        &self,
        mut cond: impl FnMut() -> bool,
    ) -> Result<(), Interrupted> {
        if cond() {
            Ok(())
        } else {
            self.wait_slow(cond, arch::signal_pending)
        }
    }

    #[cold]
    fn wait_slow(
        &self,
        mut cond: impl FnMut() -> bool,
        give_up: impl Fn() -> bool,
    ) -> Result<(), Interrupted> {
        let entry = pin!(WaitEntry::new());
        if planted!(WaitLookBeforeQueueing) && !cond() {
            entry.as_ref().prepare(self);
            arch::park();
        }
        loop {
            entry.as_ref().prepare(self);
            if cond() {
                break;
            }
            if give_up() {
                let woken = entry.finish();
                if cond() {
                    return Ok(());
                }
                if woken {
                    self.wake_one();
                }
                return Err(Interrupted);
            }
            arch::park();
            if entry.was_woken() && cond() {
                return Ok(());
            }
        }
        // The condition came true by itself; a wake-up that chose us since belongs to another waiter.
        if entry.finish() && !planted!(WaitSwallowWake) {
            self.wake_one();
        }
        Ok(())
    }

    /// Wakes the thread that waits longest. Make the condition true first. Any context: spinlocks held, IRQs off.
    #[inline]
    pub fn wake_one(&self) {
        if self.anybody() {
            self.wake_slow(1);
        }
    }

    /// Wakes every waiting thread. Make the condition true first. Any context.
    #[inline]
    pub fn wake_all(&self) {
        if self.anybody() {
            self.wake_slow(usize::MAX);
        }
    }

    /// Whether somebody may be waiting. A full barrier, so that what the caller wrote before is seen by those who
    /// queue from now on.
    #[inline]
    pub fn anybody(&self) -> bool {
        if !planted!(WaitNoBarrier) {
            fence(SeqCst);
        }
        self.waiting.load(Relaxed)
    }

    #[cold]
    #[inline(never)]
    fn wake_slow(&self, nr_max: usize) {
        let mut list = self.list.lock_irqsave();
        let mut nr = 0;
        while nr < nr_max && list.wake_first() {
            nr += 1;
        }
        self.waiting.store(!list.first.is_null(), Relaxed);
    }
}
