//! The host: std threads stand for tasks, a token per emulated CPU stands for "preemption off".
//!
//! # Problem
//! Per-CPU code is correct because at most one thread at a time runs with preemption off on a CPU (INV-ARCH-2), and
//! host threads know nothing of that.
//!
//! # Mechanism
//! The outermost `preempt_disable` or `local_irq_save` takes the token of the thread's CPU and the last enable gives
//! it back. So any number of test threads may share a CPU id, as tasks do. A thread belongs to the CPU it chose by
//! [`set_cpu`], else to its number modulo `nr_cpu_ids()`. A CPU whose token nobody holds is idle for RCU: taking the
//! token is leaving idle, giving it back a quiescent state, so grace periods need no scheduler here.
//!
//! A test that blocks with the token held would deadlock on the machine; here `park` panics.
use super::explore;
use super::{CpuHead, CpuMask, IrqFlags, MmId, ThreadPtr, cpu_to_node, nr_cpu_ids};
use crate::{NR_CPUS, rcu};
use std::boxed::Box;
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};

pub use super::arena::{
    PERCPU_WINDOW_SHIFT, clear_page, copy_page, init_arena, page_desc_of, percpu_base,
    phys_to_virt, virt_to_phys, vmemmap_base,
};

struct HostThread {
    thread: std::thread::Thread,
    /// The park token while the thread is explored.
    token: AtomicBool,
}

const UNSET: usize = usize::MAX;

static NEXT_NUMBER: AtomicUsize = AtomicUsize::new(0);
static TOKENS: [AtomicBool; NR_CPUS] = [const { AtomicBool::new(false) }; NR_CPUS];
static NR_TLB_FLUSHES: AtomicUsize = AtomicUsize::new(0);

std::thread_local! {
    static NUMBER: usize = NEXT_NUMBER.fetch_add(1, Relaxed);
    /// The CPU set by `set_cpu`, or UNSET.
    static CHOSEN: Cell<usize> = const { Cell::new(UNSET) };
    /// The CPU whose token this thread holds, or UNSET.
    static HELD: Cell<usize> = const { Cell::new(UNSET) };
    static PREEMPT_COUNT: Cell<u32> = const { Cell::new(0) };
    static IRQS_OFF: Cell<bool> = const { Cell::new(false) };
    static CALL_SITE: Cell<usize> = const { Cell::new(0) };
    static SIGNAL: Cell<bool> = const { Cell::new(false) };
    // Leaked: a ThreadPtr may outlive its thread.
    static SELF: &'static HostThread = Box::leak(Box::new(HostThread { thread: std::thread::current(), token: AtomicBool::new(false) }));
}

/// The CPU this thread runs on.
#[inline]
pub fn smp_processor_id() -> usize {
    match (HELD.get(), CHOSEN.get()) {
        (UNSET, UNSET) => NUMBER.with(|n| *n) % nr_cpu_ids(),
        (UNSET, chosen) => chosen,
        (held, _) => held,
    }
}

/// This CPU's node.
#[inline]
pub fn numa_node_id() -> usize {
    cpu_to_node(smp_processor_id())
}

/// Moves this thread to `cpu` for good. Preemption and IRQs on.
pub fn set_cpu(cpu: usize) {
    assert!(
        cpu < NR_CPUS && HELD.get() == UNSET,
        "set_cpu with preemption off"
    );
    CHOSEN.set(cpu);
}

/// Runs `f` on `cpu`, then comes back. Preemption and IRQs on.
pub fn run_on<R>(cpu: usize, f: impl FnOnce() -> R) -> R {
    let before = CHOSEN.get();
    set_cpu(cpu);
    let r = f();
    assert!(HELD.get() == UNSET, "run_on returned with preemption off");
    CHOSEN.set(before);
    r
}

fn take_token() {
    let cpu = smp_processor_id();
    while TOKENS[cpu]
        .compare_exchange_weak(false, true, Acquire, Relaxed)
        .is_err()
    {
        cpu_relax();
    }
    HELD.set(cpu);
    rcu::host_token_taken(cpu_head(cpu));
}

fn give_token() {
    let cpu = HELD.get();
    rcu::host_token_given(cpu_head(cpu));
    HELD.set(UNSET);
    TOKENS[cpu].store(false, Release);
}

/// A thread ends, perhaps by a panic with preemption off: its CPU is free again.
pub(super) fn abandon() {
    PREEMPT_COUNT.set(0);
    IRQS_OFF.set(false);
    if HELD.get() != UNSET {
        give_token();
    }
}

fn give_token_if_last() {
    if PREEMPT_COUNT.get() == 0 && !IRQS_OFF.get() {
        give_token();
    }
}

/// Forbids preemption until the matching [`preempt_enable`]: takes the CPU's token. Nests.
pub fn preempt_disable() {
    if HELD.get() == UNSET {
        interleave();
        take_token();
    }
    PREEMPT_COUNT.set(PREEMPT_COUNT.get() + 1);
}

/// Undoes one [`preempt_disable`].
pub fn preempt_enable() {
    let n = PREEMPT_COUNT.get();
    assert!(n > 0, "preempt_enable without preempt_disable");
    PREEMPT_COUNT.set(n - 1);
    give_token_if_last();
}

/// The same as [`preempt_enable`] here.
pub fn preempt_enable_no_resched() {
    preempt_enable();
}

/// How many [`preempt_disable`] are in force in this thread.
pub fn preempt_count() -> u32 {
    PREEMPT_COUNT.get()
}

/// Whether this thread's emulated interrupt flag is off.
pub fn irqs_disabled() -> bool {
    IRQS_OFF.get()
}

/// Disables emulated interrupts; returns the state before.
pub fn local_irq_save() -> IrqFlags {
    if HELD.get() == UNSET {
        interleave();
        take_token();
    }
    IrqFlags(IRQS_OFF.replace(true) as usize)
}

/// Restores the state `local_irq_save` returned.
pub fn local_irq_restore(flags: IrqFlags) {
    assert!(IRQS_OFF.get(), "local_irq_restore without local_irq_save");
    IRQS_OFF.set(flags.0 != 0);
    give_token_if_last();
}

/// The pause of a spin loop; lets another host thread run, for there may be fewer host CPUs than emulated ones.
pub fn cpu_relax() {
    if !explore::give_way() {
        std::thread::yield_now();
    }
}

/// A place where an explored thread may be held up; see [`explore`].
#[inline]
pub fn interleave() {
    explore::point();
}

/// What [`call_sites`] reports for this thread.
pub fn set_call_site(site: usize) {
    CALL_SITE.set(site);
}

/// The one site that the test chose.
pub fn call_sites(sites: &mut [usize]) {
    sites.fill(0);
    if let Some(first) = sites.first_mut() {
        *first = CALL_SITE.get();
    }
}

/// Nanoseconds since the first call.
pub fn get_cycles() -> u64 {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    START
        .get_or_init(std::time::Instant::now)
        .elapsed()
        .as_nanos() as u64
}

/// The running thread.
pub fn current() -> ThreadPtr {
    SELF.with(|s| ThreadPtr(*s as *const HostThread as *mut ()))
}

/// Blocks until unparked. Panics with preemption or IRQs off: on the machine that would be a deadlock.
pub fn park() {
    assert!(HELD.get() == UNSET, "park with preemption or IRQs off");
    if explore::is_explored() {
        while !SELF.with(|s| s.token.swap(false, AcqRel)) {
            explore::give_way();
        }
        return;
    }
    std::thread::park();
}

/// Wakes `t` or saves its token. Any context.
pub fn unpark(t: ThreadPtr) {
    // SAFETY: handles come from `current`, which leaks what they point at.
    let thread = unsafe { &*(t.0 as *const HostThread) };
    thread.token.store(true, Release);
    thread.thread.unpark();
}

/// This thread's emulated pending signal.
pub fn signal_pending() -> bool {
    SIGNAL.get()
}

/// Sets this thread's emulated pending signal.
pub fn set_signal_pending(on: bool) {
    SIGNAL.set(on);
}

pub(super) fn flush_tlb_range(cpus: &CpuMask, mm: MmId, start: usize, end: usize) {
    NR_TLB_FLUSHES.fetch_add(1, Relaxed);
    if let Some(hook) = TLB_HOOK.get() {
        hook(cpus, mm, start, end);
    }
}

/// What an emulation of TLBs does on a flush: the arguments of [`flush_tlb_range`](super::flush_tlb_range).
pub type TlbHook = fn(&CpuMask, MmId, usize, usize);

static TLB_HOOK: OnceLock<TlbHook> = OnceLock::new();

/// Lets a test emulate TLBs; the first hook of the process stays.
pub fn set_tlb_hook(hook: TlbHook) {
    TLB_HOOK.get_or_init(|| hook);
}

/// How often [`flush_tlb_range`](super::flush_tlb_range) was called in this process.
pub fn nr_tlb_flushes() -> usize {
    NR_TLB_FLUSHES.load(Relaxed)
}

/// Does nothing here.
pub fn flush_tlb_local_page(_va: usize) {}

pub(super) fn kick_cpu(_cpu: usize) {}

/// Start of this CPU's window.
#[inline]
pub fn this_cpu_base() -> usize {
    percpu_base(smp_processor_id())
}

#[inline]
pub(super) fn cpu_head(cpu: usize) -> &'static CpuHead {
    // SAFETY: INV-ARCH-1: `percpu_base` initialised every head, and nothing unmaps the windows.
    unsafe { &*(percpu_base(cpu) as *const CpuHead) }
}

#[inline]
pub(super) fn this_cpu_head() -> &'static CpuHead {
    cpu_head(smp_processor_id())
}
