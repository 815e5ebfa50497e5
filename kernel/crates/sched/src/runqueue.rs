//! One CPU's queue of threads that could run.

use crate::{RQ_SLOT, Schedulable};
use core::sync::atomic::{AtomicUsize, Ordering};
use ksync::{SpinLock, lock_class};
use slab::{KArc, List};

/// How long a thread runs before others that wait get their turn, in nanoseconds.
pub const TIME_SLICE_NS: u64 = 3_000_000;

struct Queue<T: Schedulable> {
    waiting: List<T, RQ_SLOT>,
}

/// A CPU's run queue. The running thread is not in it.
#[repr(align(64))]
pub struct RunQueue<T: Schedulable> {
    queue: SpinLock<Queue<T>>,
    /// Threads waiting; a hint for others.
    nr_waiting: AtomicUsize,
}

impl<T: Schedulable> RunQueue<T> {
    /// An empty queue.
    pub const fn new() -> Self {
        RunQueue {
            queue: SpinLock::new(
                Queue {
                    waiting: List::new(),
                },
                lock_class!("rq_lock"),
            ),
            nr_waiting: AtomicUsize::new(0),
        }
    }

    /// Threads that wait here; a hint.
    #[inline]
    pub fn nr_waiting(&self) -> usize {
        self.nr_waiting.load(Ordering::Relaxed)
    }

    /// Appends a thread. The caller owns the right to enqueue it and the reference it hands over. IRQs may be on.
    #[inline]
    pub fn enqueue(&self, thread: KArc<T>) {
        let mut queue = self.queue.lock_irqsave();
        if queue.waiting.push_back(thread).is_err() {
            already_queued();
        }
        self.nr_waiting
            .store(queue.waiting.len(), Ordering::Relaxed);
    }

    /// The thread to run next: the one that has waited longest, `prev` going to the end of the queue; or `prev`
    /// itself, or nothing, when none waits. `prev` is the running thread's reference if it could go on. IRQs off.
    #[inline]
    pub fn rotate(&self, prev: Option<KArc<T>>) -> Option<KArc<T>> {
        if self.nr_waiting.load(Ordering::Relaxed) == 0 {
            return prev; // an enqueue that races with this look sends an interrupt or sets need_resched
        }
        let mut queue = self.queue.lock_irqsave();
        let Some(next) = queue.waiting.pop_front() else {
            return prev;
        };
        if let Some(prev) = prev
            && queue.waiting.push_back(prev).is_err()
        {
            already_queued();
        }
        self.nr_waiting
            .store(queue.waiting.len(), Ordering::Relaxed);
        Some(next)
    }

    /// Takes a waiting thread that may run on `cpu`, for `cpu` to run, and that no CPU is still saving.
    pub fn steal(&self, cpu: usize) -> Option<KArc<T>> {
        if self.nr_waiting() == 0 {
            return None;
        }
        let mut queue = self.queue.lock_irqsave();
        let victim = queue
            .waiting
            .iter()
            .find(|t| t.entity().may_run_on(cpu) && !t.entity().on_cpu())?
            .clone();
        let stolen = queue.waiting.remove(&victim);
        self.nr_waiting
            .store(queue.waiting.len(), Ordering::Relaxed);
        stolen
    }

    /// Takes `thread` out if it waits here.
    pub fn remove(&self, thread: &KArc<T>) -> Option<KArc<T>> {
        let mut queue = self.queue.lock_irqsave();
        let removed = queue.waiting.remove(thread);
        self.nr_waiting
            .store(queue.waiting.len(), Ordering::Relaxed);
        removed
    }
}

#[cold]
#[inline(never)]
fn already_queued() -> ! {
    panic!("INV-SCHED-1: a thread was enqueued twice")
}
