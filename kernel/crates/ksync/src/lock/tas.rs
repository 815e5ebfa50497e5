//! Test and set: the lock everyone writes first, kept to show why not.
//!
//! One flag; whoever swaps `false` for `true` has it. Waiters read until it looks free and then all swap at once, so
//! each release costs a storm of line transfers, and nothing says who wins.
use super::Backend;
use crate::arch;
use crate::sync::atomic::{AtomicBool, Ordering::*};

/// A test-and-set lock.
pub struct Tas(AtomicBool);

// SAFETY: only who swaps false for true returns (INV-LOCK-1); Release pairs with that swap's Acquire (INV-LOCK-2).
unsafe impl Backend for Tas {
    type State = ();
    const NAME: &'static str = "tas";

    #[cfg(not(loom))]
    const INIT: Self = Tas(AtomicBool::new(false));
    #[cfg(loom)]
    fn init() -> Self {
        Tas(AtomicBool::new(false))
    }

    #[inline(always)]
    fn lock(&self) {
        while self.0.swap(true, Acquire) {
            arch::cpu_relax();
            while self.0.load(Relaxed) {
                arch::cpu_relax();
            }
        }
    }

    #[inline(always)]
    fn try_lock(&self) -> Option<()> {
        (!self.0.load(Relaxed) && !self.0.swap(true, Acquire)).then_some(())
    }

    #[inline(always)]
    unsafe fn unlock(&self, _: &()) {
        #[cfg(not(loom))]
        self.0.store(false, Release);
        // loom does not order a plain store after a read-modify-write that it raced with.
        #[cfg(loom)]
        self.0.swap(false, Release);
    }

    fn is_locked(&self) -> bool {
        self.0.load(Relaxed)
    }
}
