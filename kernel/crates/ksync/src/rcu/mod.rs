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
//! [`tree`] tracks who must still be quiescent, [`cblist`] holds the callbacks of a CPU, this file joins them. A CPU
//! does its work when the scheduler says so ([`note_context_switch`]): if neither the grace period has moved nor a
//! enough callbacks been queued since it last looked, that is three loads and a compare.
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
//! - INV-RCU-1 to 4: see [`tree`]. INV-CBL-1, 2: see [`cblist`].
//! - INV-RCU-5: a CPU's list is touched only by that CPU with IRQs off.
//! - INV-RCU-6: `seen` is never ahead of the leaf's `seq`, so making it smaller makes them differ for good.
mod cblist;
mod seq;
mod tree;

use crate::arch;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
use crate::sync::{const_unless_loom, planted};
use crate::{Completion, CpuMask, LockClass, Mutex, NR_CPUS};
use cblist::{CbList, Segment};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU16, AtomicU32};
use tree::{LEAF_CPUS, Leaf, MAX_LEAVES, Place, Tree};

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

/// A CPU's part: in its [`CpuHead`], so in its node's memory. All zero bytes, then [`place`](Self::place), are valid.
#[repr(C, align(64))]
pub(crate) struct RcuCpu {
    /// This CPU's leaf; its first field is the sequence number compared below.
    leaf: AtomicPtr<Leaf>,
    /// The leaf's `seq` at the last check, or less if a callback was queued since.
    seen: core::sync::atomic::AtomicU64,
    place_leaf: AtomicU16,
    place_bit: AtomicU16,
    /// The BUSY bit is set. Zero, idle, at first.
    busy: AtomicBool,
    /// DONE is not empty.
    ready: AtomicBool,
    /// [`barrier`] wants a callback of its own behind those that are queued.
    barrier_wanted: AtomicBool,
    barrier_head: RcuHead,
    /// Callbacks queued and not yet run. Written by this CPU, read by `barrier`.
    nr_callbacks: AtomicUsize,
    list: UnsafeCell<CbList>,
}

// SAFETY: INV-RCU-5; everything else is atomic.
unsafe impl Sync for RcuCpu {}
// SAFETY: as above.
unsafe impl Send for RcuCpu {}

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

/// Where each CPU reports, as `init` laid it out: leaf * LEAF_CPUS + bit; UNPLACED: by its number.
static PLACES: [AtomicU16; NR_CPUS] = [const { AtomicU16::new(UNPLACED) }; NR_CPUS];
const UNPLACED: u16 = u16::MAX;
const _: () = assert!(MAX_LEAVES * LEAF_CPUS < UNPLACED as usize);

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
    let rc = &arch::this_cpu_head().rcu;
    // SAFETY: INV-RCU-5: this CPU, IRQs off; the head is ours by the caller's promise.
    unsafe { (*rc.list.get()).push(head, f) };
    let nr = rc.nr_callbacks.load(Relaxed) + 1;
    rc.nr_callbacks.store(nr, Relaxed);
    if nr.is_multiple_of(LAZY) {
        rc.look_again();
    }
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
        if rc.nr_callbacks.load(Acquire) != 0 {
            GLOBAL.barrier_count.fetch_add(1, Relaxed);
            // SAFETY: the head is free: the barrier that used it before has waited for it.
            unsafe { *rc.barrier_head.func.get() = Some(done) };
            rc.barrier_wanted.store(true, Release);
        }
    }
    // Every CPU looks when a grace period starts; those asleep with callbacks are kicked when it ends.
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
    lay_out(
        arch::nr_cpu_ids(),
        arch::nr_node_ids(),
        arch::cpu_to_node,
        |cpu, place| {
            PLACES[cpu].store((place.leaf * LEAF_CPUS) as u16 + place.bit as u16, Relaxed);
        },
    );
}

/// Calls `f` with a place for every CPU: leaves by node if there are enough of them, else by number.
fn lay_out(
    nr_cpus: usize,
    nr_nodes: usize,
    node_of: impl Fn(usize) -> usize,
    f: impl Fn(usize, Place),
) {
    let per_leaf = if cfg!(loom) {
        nr_cpus.div_ceil(MAX_LEAVES)
    } else {
        LEAF_CPUS
    };
    let nodes = 0..nr_nodes;
    let nr_leaves: usize = nodes
        .clone()
        .map(|node| {
            (0..nr_cpus)
                .filter(|&cpu| node_of(cpu) == node)
                .count()
                .div_ceil(per_leaf)
        })
        .sum();
    if nr_leaves > MAX_LEAVES {
        for cpu in 0..nr_cpus {
            f(
                cpu,
                Place {
                    leaf: cpu / per_leaf,
                    bit: (cpu % per_leaf) as u32,
                },
            );
        }
        return;
    }
    let mut first_leaf = 0;
    for node in nodes {
        let mut nr = 0;
        for cpu in (0..nr_cpus).filter(|&cpu| node_of(cpu) == node) {
            f(
                cpu,
                Place {
                    leaf: first_leaf + nr / per_leaf,
                    bit: (nr % per_leaf) as u32,
                },
            );
            nr += 1;
        }
        first_leaf += nr.div_ceil(per_leaf);
    }
}

/// This CPU starts to take readers and callbacks. On its own final head, preemption off.
pub fn cpu_online() {
    let cpu = arch::smp_processor_id();
    let rc = &arch::this_cpu_head().rcu;
    rc.place(cpu);
    debug_assert!(!rc.busy.load(Relaxed), "cpu_online twice");
    rc.leave_idle();
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
    let rc = &arch::this_cpu_head().rcu;
    if rc.has_work_or_callbacks() {
        rc.check();
    }
    if rc.ready.load(Relaxed) {
        return false;
    }
    let flags = arch::local_irq_save();
    // SAFETY: INV-RCU-5.
    let earliest = unsafe { (*rc.list.get()).earliest() };
    arch::local_irq_restore(flags);
    rc.enter_idle(earliest.is_some());
    // Either who ends the grace period sees our SLEEP bit, or we see here that it has ended.
    if earliest.is_some_and(|stamp| seq::reached(GLOBAL.tree.snapshot(), stamp))
        && !planted!(RcuSleepUnseen)
    {
        rc.leave_idle();
        rc.check();
        return false;
    }
    true
}

/// This CPU is not idle any more; does nothing if it is not. Preemption off.
#[inline]
pub fn idle_exit() {
    let rc = &arch::this_cpu_head().rcu;
    if !rc.busy.load(Relaxed) {
        rc.leave_idle();
    }
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
    arch::this_cpu_head().rcu.nr_callbacks.load(Relaxed) != 0
}

/// Whether this CPU has callbacks to run now.
#[inline(always)]
pub fn callbacks_ready() -> bool {
    arch::this_cpu_head().rcu.ready.load(Relaxed)
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

/// Asserts what must hold while nothing is under way. For tests.
#[doc(hidden)]
pub fn check_quiet() {
    GLOBAL.tree.check_quiet();
}

/// Takes the part of every CPU in turn: off the machine there is no scheduler to do it. Preemption on.
#[cfg(all(not(target_os = "none"), not(loom)))]
pub fn host_poll() {
    for cpu in cpus() {
        if arch::cpu_head(cpu).rcu.nr_callbacks.load(Acquire) != 0 {
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
    return 0..NR_CPUS;
}

impl RcuCpu {
    const_unless_loom! {
        pub(crate) fn new() -> Self {
            RcuCpu {
                leaf: AtomicPtr::new(ptr::null_mut()),
                seen: core::sync::atomic::AtomicU64::new(0),
                place_leaf: AtomicU16::new(0),
                place_bit: AtomicU16::new(0),
                busy: AtomicBool::new(false),
                ready: AtomicBool::new(false),
                barrier_wanted: AtomicBool::new(false),
                barrier_head: RcuHead::new(),
                nr_callbacks: AtomicUsize::new(0),
                list: UnsafeCell::new(CbList::new()),
            }
        }
    }

    /// Gives this CPU its place in the tree.
    pub(crate) fn place(&self, cpu: usize) {
        let at = match PLACES[cpu].load(Relaxed) {
            UNPLACED => cpu,
            at => at as usize,
        };
        let place = Place {
            leaf: at / LEAF_CPUS,
            bit: (at % LEAF_CPUS) as u32,
        };
        GLOBAL.tree.assign(cpu, place);
        let leaf = GLOBAL.tree.leaf(place);
        self.place_leaf.store(place.leaf as u16, Relaxed);
        self.place_bit.store(place.bit as u16, Relaxed);
        self.seen
            .store(leaf.seq.load(Relaxed).wrapping_sub(1), Relaxed);
        self.leaf.store(ptr::from_ref(leaf).cast_mut(), Release);
    }

    fn my_place(&self) -> Place {
        Place {
            leaf: self.place_leaf.load(Relaxed) as usize,
            bit: self.place_bit.load(Relaxed) as u32,
        }
    }

    #[inline(always)]
    fn leaf_seq(&self) -> &'static AtomicU64 {
        let leaf = self.leaf.load(Relaxed);
        debug_assert!(!leaf.is_null(), "RCU used before cpu_online");
        // SAFETY: `place` stored a leaf of the global tree.
        unsafe { &(*leaf).seq }
    }

    /// Whether the grace period moved or a callback was queued since the last check.
    #[inline(always)]
    fn has_work(&self) -> bool {
        self.leaf_seq().load(Acquire) != self.seen.load(Relaxed)
    }

    /// As `has_work`, for whoever need not be lazy.
    #[inline(always)]
    fn has_work_or_callbacks(&self) -> bool {
        self.nr_callbacks.load(Relaxed) != 0 || self.has_work()
    }

    /// Makes the next `has_work` true (INV-RCU-6).
    #[inline(always)]
    fn look_again(&self) {
        self.seen
            .store(self.seen.load(Relaxed).wrapping_sub(1), Relaxed);
    }

    fn leave_idle(&self) {
        if self.leaf.load(Relaxed).is_null() {
            // An interrupt before `cpu_online`: nobody relies on readers here yet.
            return;
        }
        GLOBAL.tree.idle_exit(self.my_place());
        self.busy.store(true, Relaxed);
    }

    fn enter_idle(&self, sleeps: bool) {
        self.busy.store(false, Relaxed);
        GLOBAL.tree.idle_enter(self.my_place(), sleeps);
    }

    /// This CPU is quiescent: reports that, moves callbacks on, asks for grace periods. Preemption off.
    #[cold]
    #[inline(never)]
    fn check(&self) {
        let flags = arch::local_irq_save();
        // What we ask for may start, and end, at once: then look again. More rounds are the next check's.
        for _ in 0..3 {
            let seq = self.leaf_seq().load(Acquire);
            GLOBAL.tree.report(self.my_place());
            // SAFETY: INV-RCU-5: this CPU, IRQs off.
            let list = unsafe { &mut *self.list.get() };
            if self.barrier_wanted.load(Relaxed) && self.barrier_wanted.swap(false, Acquire) {
                self.queue_barrier(list);
            }
            let waits_for = list.advance(GLOBAL.tree.snapshot());
            self.ready.store(!list.done.is_empty(), Relaxed);
            self.seen.store(seq, Relaxed);
            if let Some(stamp) = waits_for {
                GLOBAL.tree.request(stamp);
            }
            if !self.has_work() {
                break;
            }
        }
        arch::local_irq_restore(flags);
    }

    fn queue_barrier(&self, list: &mut CbList) {
        // SAFETY: `barrier` set the function, and leaves the head alone until it has run.
        unsafe {
            list.push(
                NonNull::from(&self.barrier_head),
                (*self.barrier_head.func.get()).unwrap_unchecked(),
            )
        };
        self.nr_callbacks
            .store(self.nr_callbacks.load(Relaxed) + 1, Relaxed);
    }

    /// Runs up to BATCH callbacks. Preemption off, IRQs on.
    fn run_batch(&self) -> usize {
        let flags = arch::local_irq_save();
        // SAFETY: INV-RCU-5.
        let mut batch = unsafe { core::mem::replace(&mut (*self.list.get()).done, Segment::new()) };
        arch::local_irq_restore(flags);
        let mut nr = 0;
        while nr < BATCH
            && let Some((head, f)) = batch.pop()
        {
            // SAFETY: the contract of `call`; the grace period is over.
            unsafe { f(head) };
            nr += 1;
        }
        let flags = arch::local_irq_save();
        // SAFETY: INV-RCU-5.
        let list = unsafe { &mut *self.list.get() };
        batch.prepend_to(&mut list.done);
        self.ready.store(!list.done.is_empty(), Relaxed);
        self.nr_callbacks
            .store(self.nr_callbacks.load(Relaxed) - nr, Release);
        arch::local_irq_restore(flags);
        nr
    }
}
