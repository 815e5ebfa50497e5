//! What the scheduler keeps in each thread.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use ksync::CpuMask;
use slab::Object;

/// The scheduler's part of a thread. Link slot [`RQ_SLOT`](crate::RQ_SLOT) of the thread belongs to the run
/// queues.
pub struct Entity {
    wake: AtomicU32,
    /// The CPU it runs on, or is queued on, or ran on last.
    cpu: AtomicU32,
    /// True from being picked until its registers are saved.
    on_cpu: AtomicBool,
    /// Nanoseconds of CPU time used before the present stint.
    pub runtime_ns: AtomicU64,
    /// When the present stint began.
    pub stint_start_ns: AtomicU64,
    /// CPUs it may run on.
    pub allowed: CpuMask,
    /// Fast test for "any CPU".
    pub restricted: AtomicBool,
}

/// Values of `Entity::wake`.
const RUNNING: u32 = 0;
const TOKEN: u32 = 1;
const PARKED: u32 = 2;

/// What a waker has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The thread sleeps and is now the caller's to enqueue.
    Enqueue,
    /// It runs, or someone else wakes it; the token is saved.
    Nothing,
}

/// A type that run queues can hold.
pub trait Schedulable: Object + Send + Sync {
    /// Its scheduler part.
    fn entity(&self) -> &Entity;
}

impl Entity {
    /// A thread that may run anywhere and last ran on `cpu`.
    pub fn new(cpu: usize) -> Self {
        Entity {
            wake: AtomicU32::new(RUNNING),
            cpu: AtomicU32::new(cpu as u32),
            on_cpu: AtomicBool::new(false),
            runtime_ns: AtomicU64::new(0),
            stint_start_ns: AtomicU64::new(0),
            allowed: CpuMask::new(),
            restricted: AtomicBool::new(false),
        }
    }

    /// The CPU it is on or was on last.
    #[inline]
    pub fn cpu(&self) -> usize {
        self.cpu.load(Ordering::Relaxed) as usize
    }

    /// Says where it is queued. By whoever owns the right to enqueue it.
    #[inline]
    pub fn set_cpu(&self, cpu: usize) {
        self.cpu.store(cpu as u32, Ordering::Relaxed);
    }

    /// Whether it may run on `cpu`.
    #[inline]
    pub fn may_run_on(&self, cpu: usize) -> bool {
        !self.restricted.load(Ordering::Relaxed) || self.allowed.test(cpu)
    }

    /// Whether some CPU still uses its stack.
    #[inline]
    pub fn on_cpu(&self) -> bool {
        self.on_cpu.load(Ordering::Acquire)
    }

    /// Set when picked (under the queue's lock), cleared when its registers are saved (INV-SCHED-3).
    #[inline]
    pub fn set_on_cpu(&self, on: bool) {
        self.on_cpu.store(on, Ordering::Release);
    }

    /// Consumes a saved token; true if there was one and `park` may return at once.
    #[inline]
    pub fn take_token(&self) -> bool {
        self.wake.load(Ordering::Relaxed) == TOKEN
            && self.wake.swap(RUNNING, Ordering::Acquire) == TOKEN
    }

    /// Goes to sleep unless a token arrived. Only by the thread itself, IRQs off until it is switched away
    /// from (INV-SCHED-2).
    #[inline]
    pub fn try_park(&self) -> bool {
        match self
            .wake
            .compare_exchange(RUNNING, PARKED, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => true,
            Err(_) => {
                self.wake.store(RUNNING, Ordering::Relaxed);
                false
            }
        }
    }

    /// A waker's half of the protocol. After [`Wake::Enqueue`] the caller waits for `!on_cpu()` and enqueues.
    #[inline]
    pub fn wake(&self) -> Wake {
        match self.wake.swap(TOKEN, Ordering::AcqRel) {
            PARKED => Wake::Enqueue,
            _ => Wake::Nothing,
        }
    }

    /// The woken thread is about to be enqueued: the token that woke it is spent. A second waker's token that arrived
    /// in between is spent with it; the swap acquires that waker's stores, and the thread looks at its condition again.
    #[inline]
    pub fn spend_token(&self) {
        self.wake.swap(RUNNING, Ordering::AcqRel);
    }

    /// Whether it sleeps.
    pub fn is_parked(&self) -> bool {
        self.wake.load(Ordering::Relaxed) == PARKED
    }
}
