//! Completion: wait for something that happens once, possibly on the waiter's stack.
//!
//! # Problem
//! The waiter of a completion often owns its memory and frees it on waking. So the one who completes must not touch
//! it after the waiter can know.
//!
//! # Mechanism
//! The count and the list of waiters are under one spinlock. Both sides hold it, the completer for its whole visit,
//! so a waiter that sees the count has the completer's last access, the unlock, behind it.
//!
//! # Invariants
//! - INV-COMP-1: nothing of a completion is read or written outside its lock, except by `is_done`, a hint.
use crate::arch::{self, ThreadPtr};
use crate::sync::const_unless_loom;
use crate::{Interrupted, LockClass, SpinLock};
use core::cell::Cell;
use core::ptr;

static CLASS: LockClass = LockClass::new("completion");
/// The count of a completion that stays complete.
const ALWAYS: u32 = u32::MAX;

struct Waiter {
    thread: ThreadPtr,
    next: Cell<*const Waiter>,
    /// Off the list: the completion is this waiter's. Changes under the lock.
    granted: Cell<bool>,
}

struct State {
    /// Completions that nobody has waited for yet.
    done: u32,
    first: *const Waiter,
    last: *const Waiter,
}

// SAFETY: the waiters are touched only under the lock.
unsafe impl Send for State {}

/// An event that one or more threads wait for. Each [`complete`](Self::complete) lets one waiter go.
pub struct Completion {
    state: SpinLock<State>,
}

impl State {
    fn grant_first(&mut self) -> bool {
        // SAFETY: a listed waiter is on the stack of a thread that leaves only when granted, under this lock.
        let Some(waiter) = (unsafe { self.first.as_ref() }) else {
            return false;
        };
        self.first = waiter.next.get();
        if self.first.is_null() {
            self.last = ptr::null();
        }
        waiter.granted.set(true);
        arch::unpark(waiter.thread);
        true
    }

    fn push(&mut self, waiter: &Waiter) {
        // SAFETY: as above.
        match unsafe { self.last.as_ref() } {
            Some(last) => last.next.set(waiter),
            None => self.first = waiter,
        }
        self.last = waiter;
    }

    fn remove(&mut self, waiter: &Waiter) {
        let mut prev: *const Waiter = ptr::null();
        let mut at = self.first;
        while !ptr::eq(at, waiter) {
            prev = at;
            // SAFETY: listed waiters live, and `waiter` is listed.
            at = unsafe { &*at }.next.get();
        }
        // SAFETY: as above.
        match unsafe { prev.as_ref() } {
            Some(prev) => prev.next.set(waiter.next.get()),
            None => self.first = waiter.next.get(),
        }
        if ptr::eq(self.last, waiter) {
            self.last = prev;
        }
    }

    fn consume(&mut self) -> bool {
        match self.done {
            0 => return false,
            ALWAYS => {}
            _ => self.done -= 1,
        }
        true
    }
}

impl Completion {
    const_unless_loom! {
        /// Not complete.
        pub fn new() -> Self {
            let state = State { done: 0, first: ptr::null(), last: ptr::null() };
            Completion { state: SpinLock::new(state, &CLASS) }
        }
    }

    /// Lets one waiter go, the first to come. Any context.
    pub fn complete(&self) {
        let mut state = self.state.lock_irqsave();
        if !state.grant_first() && state.done < ALWAYS - 1 {
            state.done += 1;
        }
    }

    /// Lets every waiter go, now and later. Any context.
    pub fn complete_all(&self) {
        let mut state = self.state.lock_irqsave();
        state.done = ALWAYS;
        while state.grant_first() {}
    }

    /// Waits for a completion and consumes it. Thread context; sleeps.
    pub fn wait(&self) {
        let _ = self.wait_or(|| false);
    }

    /// As [`wait`](Self::wait), but ends with an error, consuming nothing, when a signal is pending.
    pub fn wait_interruptible(&self) -> Result<(), Interrupted> {
        self.wait_or(arch::signal_pending)
    }

    fn wait_or(&self, give_up: impl Fn() -> bool) -> Result<(), Interrupted> {
        let waiter = Waiter {
            thread: arch::current(),
            next: Cell::new(ptr::null()),
            granted: Cell::new(false),
        };
        {
            let mut state = self.state.lock_irqsave();
            if state.consume() {
                return Ok(());
            }
            state.push(&waiter);
        }
        loop {
            {
                let mut state = self.state.lock_irqsave();
                if waiter.granted.get() {
                    return Ok(());
                }
                if give_up() {
                    state.remove(&waiter);
                    return Err(Interrupted);
                }
            }
            arch::park();
        }
    }

    /// Consumes a completion if there is one. Any context.
    pub fn try_wait(&self) -> bool {
        self.state.lock_irqsave().consume()
    }

    /// Whether [`wait`](Self::wait) would return at once; a hint. Any context.
    pub fn is_done(&self) -> bool {
        self.state.lock_irqsave().done != 0
    }

    /// Makes it not complete again. Nobody may be waiting.
    pub fn reinit(&self) {
        let mut state = self.state.lock_irqsave();
        debug_assert!(state.first.is_null());
        state.done = 0;
    }
}
