//! Ticket lock: fair, and all waiters watch one line.
//!
//! `next` is the ticket machine, `owner` the display. Taking a ticket is one atomic, so the order is arrival; each
//! release invalidates the line in every waiter's cache, so handing over costs in proportion to the waiters.
use super::Backend;
use crate::arch;
use crate::sync::atomic::{AtomicU32, Ordering::*};
use crate::sync::planted;

/// A ticket lock. Held while `owner != next`.
pub struct Ticket {
    next: AtomicU32,
    owner: AtomicU32,
}

// SAFETY: tickets are handed out once each and `owner` counts up only in unlock, so one ticket at a time is shown
// (INV-LOCK-1); unlock's Release pairs with the waiter's Acquire of `owner` (INV-LOCK-2). Both wrap together.
unsafe impl Backend for Ticket {
    type State = ();
    const NAME: &'static str = "ticket";

    #[cfg(not(loom))]
    const INIT: Self = Ticket {
        next: AtomicU32::new(0),
        owner: AtomicU32::new(0),
    };
    #[cfg(loom)]
    fn init() -> Self {
        Ticket {
            next: AtomicU32::new(0),
            owner: AtomicU32::new(0),
        }
    }

    #[inline(always)]
    fn lock(&self) {
        let mine = self.next.fetch_add(1, Relaxed);
        while self.owner.load(Acquire) != mine {
            arch::cpu_relax();
        }
    }

    #[inline(always)]
    fn try_lock(&self) -> Option<()> {
        let shown = self.owner.load(Acquire);
        self.next
            .compare_exchange(shown, shown.wrapping_add(1), Relaxed, Relaxed)
            .ok()
            .map(drop)
    }

    #[inline(always)]
    unsafe fn unlock(&self, _: &()) {
        // Only the holder writes `owner`.
        let shown = self.owner.load(Relaxed);
        self.owner.store(
            shown.wrapping_add(1),
            if planted!(TicketRelaxedUnlock) {
                Relaxed
            } else {
                Release
            },
        );
    }

    fn is_locked(&self) -> bool {
        self.owner.load(Relaxed) != self.next.load(Relaxed)
    }
}
