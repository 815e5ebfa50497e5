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
    /// The ticket lock's release publishes nothing.
    TicketRelaxedUnlock,
    /// The MCS lock's release forgets a waiter that has not linked itself yet.
    McsForgetLinking,
    /// The spinning reader-writer lock lets a reader in while a writer holds it.
    RwLockIgnoreWriter,
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
    /// A callback is satisfied with the end of the grace period that was running when it was queued.
    RcuCurrentIsEnough,
    /// Who ends a grace period tells nobody.
    RcuForgetPublish,
    /// A CPU that has said it sleeps with callbacks does not look again whether their grace period has ended.
    RcuSleepUnseen,
    /// A barrier leaves a CPU asleep that had callbacks when it looked.
    RcuBarrierUnheard,
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
