//! Bugs that a loom test plants, to see that it would notice.
//!
//! Only under `cfg(loom)`: elsewhere `planted!(..)` is the constant `false`. A model runs its threads as coroutines
//! on the host thread that started it, so the choice is per host thread and tests do not disturb each other.
use std::cell::Cell;

/// What can be planted.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Bug {
    /// The queued lock's release publishes nothing.
    QueuedRelaxedUnlock,
    /// A waiter looks at its condition before it queues, and not after.
    WaitLookBeforeQueueing,
    /// A waker looks whether anybody waits without a barrier before.
    WaitNoBarrier,
    /// A waiter that was chosen but needs no wake-up keeps it.
    WaitSwallowWake,
    /// A writer's release does not look for waiters.
    RwSemForgetWaiters,
    /// A thread that has queued does not look whether the lock became free before.
    RwSemNoRecheck,
    /// A grace period takes every CPU for idle.
    RcuIgnoreBusy,
}

std::thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Plants `bug` for models run from this host thread.
pub fn plant(bug: Bug) {
    PLANTED.set(Some(bug));
}

pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
