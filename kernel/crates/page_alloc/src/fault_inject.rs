//! Make the n-th allocation of this thread fail.
//!
//! Problem. Error paths that never run are broken. A test wants: "this fork, with its 1st, 2nd,
//! 3rd ... allocation failing, returns ENOMEM and leaks nothing", on one thread, while the rest of
//! the system allocates undisturbed.
//!
//! Mechanism. A table of [`NR_SLOTS`] countdowns keyed by `arch::current()`, so that nothing has
//! to be done at context switch. `should_fail` costs one load and a predicted branch while no
//! thread is armed. The countdown disarms itself when it fires, like Linux's
//! /proc/self/fail-nth. A thread that exits armed must be forgotten ([`forget`]).
//!
//! Protocol for a test: `set_fail_nth(n)`, run, read `fail_nth()`: 0 means the n-th allocation
//! was reached and failed; more means there were fewer than n, and the sweep is over.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::*};
use ksync::arch;

use crate::ReadMostly;

/// Threads that can be armed at the same time.
pub const NR_SLOTS: usize = 64;

struct Slot {
    /// `arch::current()` of the armed thread; 0: free.
    owner: AtomicUsize,
    remaining: AtomicU32,
}

/// Number of slots in use. Read by every allocation, written by tests only.
static NR_ARMED: ReadMostly<AtomicU32> = ReadMostly(AtomicU32::new(0));
static SLOTS: [Slot; NR_SLOTS] = [const {
    Slot {
        owner: AtomicUsize::new(0),
        remaining: AtomicU32::new(0),
    }
}; NR_SLOTS];

fn me() -> usize {
    arch::current().0 as usize
}

fn slot_of(owner: usize) -> Option<&'static Slot> {
    SLOTS.iter().find(|s| s.owner.load(Relaxed) == owner)
}

/// Makes the `n`-th allocation from now of the current thread fail (1: the next); 0 disarms.
/// False if all slots are taken. Any thread context.
pub fn set_fail_nth(n: u32) -> bool {
    let me = me();
    if n == 0 {
        disarm(me);
        return true;
    }
    if let Some(s) = slot_of(me) {
        s.remaining.store(n, Relaxed);
        return true;
    }
    for s in &SLOTS {
        if s.owner.compare_exchange(0, me, Relaxed, Relaxed).is_ok() {
            s.remaining.store(n, Relaxed);
            NR_ARMED.0.fetch_add(1, Relaxed);
            return true;
        }
    }
    false
}

/// How many allocations of the current thread are left until one fails; 0: not armed, or fired.
pub fn fail_nth() -> u32 {
    slot_of(me()).map_or(0, |s| s.remaining.load(Relaxed))
}

/// Disarms a thread that exits. Any context.
pub fn forget(thread: arch::ThreadPtr) {
    if NR_ARMED.0.load(Relaxed) != 0 {
        disarm(thread.0 as usize);
    }
}

fn disarm(owner: usize) {
    if let Some(s) = slot_of(owner) {
        s.remaining.store(0, Relaxed);
        s.owner.store(0, Relaxed);
        NR_ARMED.0.fetch_sub(1, Relaxed);
    }
}

/// Every allocator asks this once per allocation, before touching any state, and fails if true.
#[inline(always)]
pub fn should_fail() -> bool {
    #[cfg(target_os = "none")]
    {
        // One comparison with memory, which no atomic load is made into.
        // SAFETY: reads a static word.
        unsafe {
            core::arch::asm!("cmp dword ptr [rip + {armed}], 0", "jne {slow}", armed = sym NR_ARMED,
                slow = label { return count_down() }, options(nostack, readonly));
        }
        false
    }
    #[cfg(not(target_os = "none"))]
    {
        NR_ARMED.0.load(Relaxed) != 0 && count_down()
    }
}

#[cold]
fn count_down() -> bool {
    let me = me();
    let Some(s) = slot_of(me) else { return false };
    let left = s.remaining.load(Relaxed);
    if left > 1 {
        s.remaining.store(left - 1, Relaxed);
        return false;
    }
    disarm(me);
    true
}
