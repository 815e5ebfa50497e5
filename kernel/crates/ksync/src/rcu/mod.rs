//! Read-copy-update: readers cost nothing, and memory is freed when no reader can still see it.
//!
//! # Problem
//! Look-ups (a pid, a file descriptor, a page-cache slot) far outnumber changes, and on a large machine even a shared
//! lock's atomic is too much for them. So readers take nothing; then whoever unlinks an object must wait until every
//! reader that may have found it is gone, without ever asking the readers.
//!
//! # Mechanism
//! A reader is a section with preemption off. So a CPU that switches threads, runs user code, or idles has no reader:
//! it is *quiescent*. When every CPU has been quiescent once since an object was unlinked, the object can be freed:
//! that span is a grace period.
//!
//! ```text
//!   CPU 0   unlink, call(free) ── switch ─────────────── switch: all done, free runs
//!   CPU 1   [reader]  ────────────────── switch
//!   CPU 2   idle ......................................... (counts as quiescent, is not woken)
//!                     └─ grace period ────────┘
//! ```
//!
//! `tree` tracks who must still be quiescent, `layout` says who reports where, `cblist` holds the callbacks of a CPU, and
//! `cpu` is what a CPU does with both. A CPU
//! does its work when the scheduler says so ([`note_context_switch`]): if neither the grace period has moved nor
//! enough callbacks have been queued since it last looked, that is three loads and a compare.
//!
//! What the kernel must call, on the CPU concerned:
//!
//! | when | call |
//! |---|---|
//! | once, when topology is known, on the boot CPU | [`init`] |
//! | each CPU, on its final `CpuHead`, before it takes an RCU reader | [`cpu_online`] |
//! | in the scheduler, preemption off, outside readers | [`note_context_switch`] |
//! | timer interrupt | [`tick`] |
//! | idle loop, around the halt, IRQs off | [`idle_enter`] (and do not halt if it says no), [`idle_exit`] |
//! | interrupt entry, if handlers read | [`irq_enter`] |
//! | idle loop and after switches, when [`callbacks_ready`] | [`process_callbacks`] |
//!
//! # Lock order
//! None: the machinery is atomics, so `call` may be used under any lock, in any context.
//!
//! # Invariants
//! - INV-RCU-1 to 4: see `tree`. INV-CBL-1, 2: see `cblist`.
//! - INV-RCU-5: a CPU's list is touched only by that CPU with IRQs off.
//! - INV-RCU-6: `seen` is never ahead of the leaf's `seq`, so making it smaller makes them differ for good.
mod cblist;
mod cpu;
mod layout;
mod seq;
mod tree;

pub(crate) use cpu::RcuCpu;

use crate::arch;
use crate::sync::atomic::{AtomicUsize, Ordering::*};
use crate::sync::{const_unless_loom, planted};
use crate::{Completion, CpuMask, LockClass, Mutex};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;
use tree::Tree;

/// Callbacks run in one go with preemption off.
const BATCH: usize = 32;
/// A CPU looks at its callbacks at the next context switch when it has queued this many since it last did. Fewer wait
/// for the tick, for idle, or for somebody who waits.
const LAZY: usize = 16;

/// A function run after a grace period. It must not sleep.
pub type RcuCallback = unsafe fn(NonNull<RcuHead>);

/// Embedded in an object that is freed after a grace period. Two words.
#[repr(C)]
pub struct RcuHead {
    next: UnsafeCell<Option<NonNull<RcuHead>>>,
    func: UnsafeCell<Option<RcuCallback>>,
}

// SAFETY: touched only by `call` and the list it is on, which own it in turn.
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

/// What all CPUs share.
struct Global {
    tree: Tree,
    barrier: Mutex<()>,
    /// Barrier callbacks still to run, plus one for the barrier itself.
    barrier_count: AtomicUsize,
    barrier_done: Completion,
}

static BARRIER_CLASS: LockClass = LockClass::new("rcu_barrier");

impl Global {
    const_unless_loom! {
        fn new() -> Self {
            Global {
                tree: Tree::new(),
                barrier: Mutex::new((), &BARRIER_CLASS),
                barrier_count: AtomicUsize::new(0),
                barrier_done: Completion::new(),
            }
        }
    }
}

#[cfg(not(loom))]
static GLOBAL: Global = Global::new();
#[cfg(loom)]
loom::lazy_static! {
    static ref GLOBAL: Global = Global::new();
}

/// CPUs that called `cpu_online`.
static ONLINE: CpuMask = CpuMask::new();
static NR_ONLINE: AtomicU32 = AtomicU32::new(0);

/// A read-side critical section: preemption is off while it lives.
#[must_use]
pub struct RcuGuard(PhantomData<*mut ()>);

/// Enters a read-side critical section; nests. Any context but an idle CPU's.
#[inline(always)]
pub fn read_lock() -> RcuGuard {
    arch::preempt_disable();
    RcuGuard(PhantomData)
}

impl Drop for RcuGuard {
    #[inline(always)]
    fn drop(&mut self) {
        arch::preempt_enable();
    }
}

/// Runs `f(head)` after a grace period: on this CPU, with preemption off, IRQs on and no lock held. Any context;
/// allocates nothing. Nobody hurries: a few callbacks of a busy CPU wait for more, or for the next tick.
///
/// # Safety
/// `head` stays valid and untouched until `f` is called, and `f` is sound to call with it once from any thread.
#[inline]
pub unsafe fn call(head: NonNull<RcuHead>, f: RcuCallback) {
    let flags = arch::local_irq_save();
    // SAFETY: this CPU, IRQs off; the head is ours by the caller's promise.
    unsafe { arch::this_cpu_head().rcu.push(head, f) };
    arch::local_irq_restore(flags);
}

/// Waits until every reader that is running now has ended. Thread context; sleeps; not inside a reader.
pub fn synchronize() {
    debug_assert!(arch::preempt_count() == 0 && !arch::irqs_disabled());
    #[cfg(target_os = "none")]
    if NR_ONLINE.load(Relaxed) == 1 {
        // We run with preemption on, so the only CPU has no reader.
        core::sync::atomic::fence(SeqCst);
        return;
    }
    #[repr(C)]
    struct Wait {
        head: RcuHead,
        done: Completion,
    }
    unsafe fn wake(head: NonNull<RcuHead>) {
        // SAFETY: `head` is the first field of a `Wait` that its thread keeps until it is complete.
        unsafe { head.cast::<Wait>().as_ref() }.done.complete();
    }
    let wait = Wait {
        head: RcuHead::new(),
        done: Completion::new(),
    };
    // SAFETY: `wait` stays until `wake` has run. The pointer covers the whole struct.
    unsafe { call(NonNull::from(&wait).cast(), wake) };
    look_soon();
    sleep_until_complete(&wait.done);
}

/// This CPU will look at its callbacks at its next context switch, which is near.
fn look_soon() {
    let flags = arch::local_irq_save();
    arch::this_cpu_head().rcu.look_again();
    arch::local_irq_restore(flags);
}

/// Waits until every callback queued before has run, on every CPU. Thread context; sleeps; not from a callback.
pub fn barrier() {
    unsafe fn done(_: NonNull<RcuHead>) {
        barrier_part_done();
    }
    let _one_at_a_time = GLOBAL.barrier.lock();
    GLOBAL.barrier_count.store(1, Relaxed);
    for cpu in cpus() {
        let rc = &arch::cpu_head(cpu).rcu;
        if rc.nr_callbacks() != 0 {
            GLOBAL.barrier_count.fetch_add(1, Relaxed);
            // SAFETY: one barrier at a time, and the one before has waited for its callbacks.
            unsafe { rc.want_barrier(done) };
            // Its callbacks may have run since we looked, and it may have gone to sleep without any.
            if !planted!(RcuBarrierUnheard) {
                arch::kick_cpu(cpu);
            }
        }
    }
    // Every CPU that is awake looks when a grace period starts; those asleep with callbacks are kicked when it ends.
    GLOBAL.tree.request(seq::snap(GLOBAL.tree.snapshot()));
    barrier_part_done();
    sleep_until_complete(&GLOBAL.barrier_done);
}

fn barrier_part_done() {
    if GLOBAL.barrier_count.fetch_sub(1, AcqRel) == 1 {
        GLOBAL.barrier_done.complete();
    }
}

/// Lays out the tree: leaves hold CPUs of one node. Boot CPU, once, after `set_nr_cpu_ids`, `set_nr_node_ids` and
/// `set_cpu_node`, before any `cpu_online`.
pub fn init() {
    layout::init();
}

/// This CPU starts to take readers and callbacks. On its own final head, preemption off.
pub fn cpu_online() {
    let cpu = arch::smp_processor_id();
    arch::this_cpu_head().rcu.online(cpu);
    ONLINE.set(cpu);
    NR_ONLINE.fetch_add(1, Relaxed);
}

/// The scheduler switches threads on this CPU: whatever reader ran has ended. Preemption off, outside readers.
#[inline(always)]
pub fn note_context_switch() {
    let rc = &arch::this_cpu_head().rcu;
    if rc.has_work() {
        rc.check();
    }
}

/// The timer tick, in its interrupt. `quiescent`: it interrupted user mode, or a section of the kernel that had
/// preemption and IRQs on. If not, and RCU waits for this CPU, asks for a context switch.
#[inline]
pub fn tick(quiescent: bool) {
    let head = arch::this_cpu_head();
    if head.rcu.has_work_or_callbacks() {
        if quiescent {
            head.rcu.check();
        } else {
            head.need_resched.store(1, Relaxed);
        }
    }
}

/// This CPU goes idle: it takes no reader until [`idle_exit`]. Preemption off, IRQs off until it halts. Returns
/// whether it may halt; if not it still counts as busy, and has callbacks to [process](process_callbacks).
/// A CPU that halts with callbacks waiting is kicked (`hooks::Machine::kick_cpu`) when a grace period ends, and
/// needs no tick.
#[must_use]
pub fn idle_enter() -> bool {
    arch::this_cpu_head().rcu.try_idle()
}

/// This CPU is not idle any more; does nothing if it is not. Preemption off.
#[inline]
pub fn idle_exit() {
    arch::this_cpu_head().rcu.leave_idle_if_idle();
}

/// An interrupt came, perhaps while idle; its handler may take readers. IRQs off. (The idle loop goes idle again by
/// itself, so there is nothing to undo.)
#[inline]
pub fn irq_enter() {
    idle_exit();
}

/// Whether this CPU has callbacks queued.
#[inline]
pub fn needs_cpu() -> bool {
    arch::this_cpu_head().rcu.nr_callbacks() != 0
}

/// Whether this CPU has callbacks to run now.
#[inline(always)]
pub fn callbacks_ready() -> bool {
    arch::this_cpu_head().rcu.is_ready()
}

/// Runs this CPU's callbacks whose grace period has ended, in batches with preemption off; between batches the
/// scheduler may run. Thread context (or the idle loop), IRQs on, outside readers, no lock held. Returns how many ran.
pub fn process_callbacks() -> usize {
    debug_assert!(!arch::irqs_disabled());
    let mut nr = 0;
    loop {
        arch::preempt_disable();
        let rc = &arch::this_cpu_head().rcu;
        if rc.has_work_or_callbacks() {
            rc.check();
        }
        let batch = rc.run_batch();
        arch::preempt_enable();
        nr += batch;
        if batch < BATCH {
            return nr;
        }
    }
}

/// Calls `f` for every CPU that the current grace period, if any, still waits for: for a watchdog. Any context.
pub fn for_each_holdout(f: impl FnMut(usize)) {
    GLOBAL.tree.for_each_holdout(f);
}

/// Asserts what must hold while nothing is under way. For tests.
#[doc(hidden)]
pub fn check_quiet() {
    GLOBAL.tree.check_quiet();
}

/// Takes the part of every CPU in turn: off the machine there is no scheduler to do it. Preemption on.
#[cfg(all(not(target_os = "none"), not(loom)))]
pub fn host_poll() {
    for cpu in cpus() {
        if arch::cpu_head(cpu).rcu.has_callbacks() {
            arch::host::run_on(cpu, process_callbacks);
        }
    }
}

/// The emulated CPU runs a thread with preemption off.
#[cfg(all(not(target_os = "none"), not(loom)))]
pub(crate) fn host_token_taken(head: &arch::CpuHead) {
    head.rcu.leave_idle();
}

/// The emulated CPU runs nothing with preemption off any more.
#[cfg(all(not(target_os = "none"), not(loom)))]
pub(crate) fn host_token_given(head: &arch::CpuHead) {
    head.rcu.enter_idle(false);
}

#[cfg(target_os = "none")]
fn sleep_until_complete(done: &Completion) {
    done.wait();
}

#[cfg(all(not(target_os = "none"), not(loom)))]
fn sleep_until_complete(done: &Completion) {
    while !done.try_wait() {
        host_poll();
        arch::cpu_relax();
    }
}

#[cfg(loom)]
fn sleep_until_complete(done: &Completion) {
    while !done.try_wait() {
        process_callbacks();
        arch::cpu_relax();
    }
}

/// CPUs that may have callbacks.
fn cpus() -> impl Iterator<Item = usize> {
    #[cfg(any(target_os = "none", loom))]
    return ONLINE.iter();
    #[cfg(not(any(target_os = "none", loom)))]
    return 0..crate::NR_CPUS;
}
