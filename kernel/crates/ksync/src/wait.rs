//! Wait queues: sleep until a condition holds.
use crate::arch::{self, ThreadPtr};
use crate::sync::atomic::{AtomicU32, Ordering::*};
use crate::sync::const_unless_loom;
use crate::{LockClass, SpinLock};
use core::cell::{Cell, UnsafeCell};
use core::marker::PhantomPinned;
use core::pin::Pin;
use core::ptr;

static CLASS: LockClass = LockClass::new("wait_queue");

/// The wait ended because a signal is pending.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Interrupted;

struct Head {
    first: *const Node,
    last: *const Node,
}
// SAFETY: the pointers are used only under the queue's lock.
unsafe impl Send for Head {}

/// One waiter; on its stack.
struct Node {
    thread: Cell<ThreadPtr>,
    next: Cell<*const Node>,
    prev: Cell<*const Node>,
    queued: Cell<bool>,
}

/// A queue of sleeping threads.
pub struct WaitQueue {
    head: SpinLock<Head>,
}

impl Head {
    fn push(&mut self, n: &Node) {
        n.prev.set(self.last);
        n.next.set(ptr::null());
        if self.last.is_null() {
            self.first = n;
        } else {
            // SAFETY: queued nodes live.
            unsafe { (*self.last).next.set(n) };
        }
        self.last = n;
        n.queued.set(true);
    }
    fn remove(&mut self, n: &Node) {
        let (p, x) = (n.prev.get(), n.next.get());
        if p.is_null() {
            self.first = x;
        } else {
            // SAFETY: queued nodes live.
            unsafe { (*p).next.set(x) };
        }
        if x.is_null() {
            self.last = p;
        } else {
            // SAFETY: queued nodes live.
            unsafe { (*x).prev.set(p) };
        }
        n.queued.set(false);
    }
}

/// A place in one queue, for waits on several queues at once. Pin it, [`prepare`](Self::prepare) it on its
/// queue, check the conditions, `arch::park()`, and repeat; dropping leaves the queue.
pub struct WaitEntry<'q> {
    queue: Cell<Option<&'q WaitQueue>>,
    node: UnsafeCell<Node>,
    _pin: PhantomPinned,
}

impl<'q> WaitEntry<'q> {
    /// An entry on no queue.
    pub fn new() -> Self {
        WaitEntry {
            queue: Cell::new(None),
            node: UnsafeCell::new(Node {
                thread: Cell::new(ThreadPtr::NULL),
                next: Cell::new(ptr::null()),
                prev: Cell::new(ptr::null()),
                queued: Cell::new(false),
            }),
            _pin: PhantomPinned,
        }
    }

    /// Puts the entry on `queue` unless it is there. Check the condition after this, before parking.
    pub fn prepare(self: Pin<&Self>, queue: &'q WaitQueue) {
        if let Some(old) = self.queue.get()
            && !ptr::eq(old, queue)
        {
            self.finish();
        }
        self.queue.set(Some(queue));
        let mut head = queue.head.lock_irqsave();
        // SAFETY: under the queue's lock; pinned, and Drop dequeues.
        let node = unsafe { &*self.node.get() };
        if !node.queued.get() {
            node.thread.set(arch::current());
            head.push(node);
        }
    }

    /// Leaves the queue; returns whether a waker had taken the entry off.
    pub fn finish(&self) -> bool {
        let Some(queue) = self.queue.take() else {
            return false;
        };
        let mut head = queue.head.lock_irqsave();
        // SAFETY: under the queue's lock.
        let node = unsafe { &*self.node.get() };
        if node.queued.get() {
            head.remove(node);
            return false;
        }
        true
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
            WaitQueue { head: SpinLock::new(Head { first: ptr::null(), last: ptr::null() }, &CLASS) }
        }
    }

    /// Sleeps until `cond` holds. `cond` is called with no lock held and may consume what it waits for.
    pub fn wait_until(&self, mut cond: impl FnMut() -> bool) {
        if cond() {
            return;
        }
        let entry = core::pin::pin!(WaitEntry::new());
        loop {
            entry.as_ref().prepare(self);
            if cond() {
                break;
            }
            arch::park();
        }
        if entry.finish() {
            self.wake_one();
        }
    }

    /// As [`wait_until`](Self::wait_until), but a pending signal ends it.
    pub fn wait_until_interruptible(
        &self,
        mut cond: impl FnMut() -> bool,
    ) -> Result<(), Interrupted> {
        if cond() {
            return Ok(());
        }
        let entry = core::pin::pin!(WaitEntry::new());
        let result = loop {
            entry.as_ref().prepare(self);
            if cond() {
                break Ok(());
            }
            if arch::signal_pending() {
                break Err(Interrupted);
            }
            arch::park();
        };
        if entry.finish() {
            self.wake_one();
        }
        result
    }

    /// Wakes the longest waiting thread. Any context, spinlocks held, IRQs off.
    pub fn wake_one(&self) {
        let mut head = self.head.lock_irqsave();
        // SAFETY: queued nodes live.
        if let Some(n) = unsafe { head.first.as_ref() } {
            head.remove(n);
            arch::unpark(n.thread.get());
        }
    }

    /// Wakes every waiter. Any context.
    pub fn wake_all(&self) {
        let mut head = self.head.lock_irqsave();
        // SAFETY: queued nodes live.
        while let Some(n) = unsafe { head.first.as_ref() } {
            head.remove(n);
            arch::unpark(n.thread.get());
        }
    }

    /// Whether a thread waits; a hint.
    pub fn has_waiters(&self) -> bool {
        !self.head.lock_irqsave().first.is_null()
    }
}

/// An event that happens once (or is counted).
pub struct Completion {
    done: AtomicU32,
    queue: WaitQueue,
}

impl Completion {
    const_unless_loom! {
        /// Not complete.
        pub fn new() -> Self {
            Completion { done: AtomicU32::new(0), queue: WaitQueue::new() }
        }
    }

    /// Lets one waiter go. Any context.
    pub fn complete(&self) {
        let _ = self
            .done
            .fetch_update(Release, Relaxed, |d| d.checked_add(1));
        self.queue.wake_one();
    }

    /// Lets every waiter go, now and later. Any context.
    pub fn complete_all(&self) {
        self.done.store(u32::MAX, Release);
        self.queue.wake_all();
    }

    /// Waits for a completion and consumes it. May sleep.
    pub fn wait(&self) {
        self.queue.wait_until(|| self.try_wait());
    }

    /// As [`wait`](Self::wait); a pending signal ends it.
    pub fn wait_interruptible(&self) -> Result<(), Interrupted> {
        self.queue.wait_until_interruptible(|| self.try_wait())
    }

    /// Consumes a completion if there is one.
    pub fn try_wait(&self) -> bool {
        self.done
            .fetch_update(Acquire, Relaxed, |d| match d {
                0 => None,
                u32::MAX => Some(u32::MAX),
                n => Some(n - 1),
            })
            .is_ok()
    }

    /// Whether `wait` would return at once.
    pub fn is_done(&self) -> bool {
        self.done.load(Acquire) != 0
    }

    /// Makes it not complete again.
    pub fn reinit(&self) {
        self.done.store(0, Relaxed);
    }
}
