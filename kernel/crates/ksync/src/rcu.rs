//! Read-copy-update: readers never wait, memory is freed when no reader can see it.
use crate::arch;
use crate::{LockClass, SpinLock};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ptr::NonNull;

/// A function run after a grace period.
pub type RcuCallback = unsafe fn(NonNull<RcuHead>);

/// Embedded in an object that is freed after a grace period. Two words.
#[repr(C)]
pub struct RcuHead {
    next: UnsafeCell<Option<NonNull<RcuHead>>>,
    func: UnsafeCell<Option<RcuCallback>>,
}

// SAFETY: touched only by `call` and the machinery, which own it in turn.
unsafe impl Send for RcuHead {}
// SAFETY: as above.
unsafe impl Sync for RcuHead {}

impl RcuHead {
    /// A head that is not queued.
    pub const fn new() -> Self {
        RcuHead {
            next: UnsafeCell::new(None),
            func: UnsafeCell::new(None),
        }
    }
}

/// A read-side critical section: preemption is off while it lives.
#[must_use]
pub struct RcuGuard(PhantomData<*mut ()>);

/// Enters a read-side critical section. Any context; nests.
#[inline]
pub fn read_lock() -> RcuGuard {
    arch::preempt_disable();
    RcuGuard(PhantomData)
}

impl Drop for RcuGuard {
    #[inline]
    fn drop(&mut self) {
        arch::preempt_enable();
    }
}

struct Pending(Option<NonNull<RcuHead>>);
// SAFETY: owned heads.
unsafe impl Send for Pending {}
static CLASS: LockClass = LockClass::new("rcu");
#[cfg(not(loom))]
static PENDING: SpinLock<Pending> = SpinLock::new(Pending(None), &CLASS);

/// Runs `f(head)` after a grace period, with preemption off, IRQs on and no locks held; it must not sleep.
/// Any context; never allocates.
///
/// # Safety
/// `head` stays valid and untouched until `f` runs; `f` is sound to call with it once.
#[cfg(not(loom))]
pub unsafe fn call(head: NonNull<RcuHead>, f: RcuCallback) {
    let mut p = PENDING.lock_irqsave();
    // SAFETY: the caller gave the head away.
    unsafe {
        *head.as_ref().func.get() = Some(f);
        *head.as_ref().next.get() = p.0;
    }
    p.0 = Some(head);
}

/// Waits until every reader that ran at the call has ended. May sleep.
#[cfg(not(loom))]
pub fn synchronize() {
    #[cfg(not(target_os = "none"))]
    for cpu in 0..crate::NR_CPUS {
        while arch::host::imp::token_held(cpu) {
            std::thread::yield_now();
        }
    }
}

/// Waits until every callback queued before has run. May sleep.
#[cfg(not(loom))]
pub fn barrier() {
    process_callbacks();
}

/// Runs callbacks whose grace period has ended.
#[cfg(not(loom))]
pub fn process_callbacks() {
    let mut next = PENDING.lock_irqsave().0.take();
    if next.is_some() {
        synchronize();
    }
    while let Some(head) = next {
        // SAFETY: `call`'s contract.
        unsafe {
            next = *head.as_ref().next.get();
            let f = (*head.as_ref().func.get()).unwrap_unchecked();
            f(head);
        }
    }
}

/// The scheduler switched threads on this CPU. Preemption off.
#[inline]
pub fn note_context_switch() {}
/// This CPU goes idle: it will run no reader until [`idle_exit`]. Preemption off.
#[inline]
pub fn idle_enter() {}
/// This CPU leaves idle.
#[inline]
pub fn idle_exit() {}
/// The timer tick; `from_user`: it interrupted user mode (or a preemptible section of the kernel).
#[inline]
pub fn tick(_from_user: bool) {}
/// Whether this CPU has callbacks, so that it may not sleep without a tick.
#[inline]
pub fn needs_cpu() -> bool {
    false
}
