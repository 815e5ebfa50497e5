//! The model checker: one loom thread per CPU, no preemption, no interrupts.
//!
//! A thread must say which CPU it is by [`set_cpu`] before it takes a lock; two threads may not be the same CPU.
use super::{CpuHead, CpuMask, IrqFlags, MmId, ThreadPtr, cpu_to_node};
use loom::sync::{Condvar, Mutex};
use std::cell::Cell;
use std::vec::Vec;

pub use super::arena::{
    PERCPU_WINDOW_SHIFT, clear_page, copy_page, init_arena, page_desc_of, percpu_base,
    phys_to_virt, virt_to_phys, vmemmap_base,
};

/// How often a thread may spin in one execution before its further course is not explored.
const MAX_SPINS: usize = 6;
/// CPUs a model may use.
pub const NR_LOOM_CPUS: usize = 4;

#[derive(Default)]
struct Parker {
    token: Mutex<bool>,
    unparked: Condvar,
}

loom::lazy_static! {
    static ref HEADS: Vec<CpuHead> = (0..NR_LOOM_CPUS)
        .map(|cpu| {
            let head = CpuHead::new();
            head.init(cpu, 0);
            head
        })
        .collect();
    static ref PARKERS: Vec<Parker> = (0..NR_LOOM_CPUS).map(|_| Parker::default()).collect();
}

loom::thread_local! {
    static CPU: Cell<usize> = Cell::new(0);
    static SIGNAL: Cell<bool> = Cell::new(false);
    static PREEMPT_COUNT: Cell<u32> = Cell::new(0);
    static SPINS: Cell<usize> = Cell::new(0);
    static IRQS_OFF: Cell<bool> = Cell::new(false);
}

/// Makes this thread CPU `cpu`.
pub fn set_cpu(cpu: usize) {
    assert!(cpu < NR_LOOM_CPUS);
    CPU.with(|c| c.set(cpu));
}

/// This CPU's id.
pub fn smp_processor_id() -> usize {
    CPU.with(|c| c.get())
}

/// This CPU's node.
pub fn numa_node_id() -> usize {
    cpu_to_node(smp_processor_id())
}

/// Start of this CPU's window.
pub fn this_cpu_base() -> usize {
    percpu_base(smp_processor_id())
}

pub(super) fn cpu_head(cpu: usize) -> &'static CpuHead {
    &HEADS[cpu]
}

pub(super) fn this_cpu_head() -> &'static CpuHead {
    cpu_head(smp_processor_id())
}

/// Lets the model run another thread. Two threads that spin could do so in turn for ever while the one they wait
/// for is not chosen; loom would explore that without end. So when a thread has spun for long the rest of the
/// execution is run, fairly, but not varied.
pub fn cpu_relax() {
    let spins = SPINS.with(|s| {
        s.set(s.get() + 1);
        s.get()
    });
    if spins > MAX_SPINS {
        loom::skip_branch();
    }
    loom::thread::yield_now();
}

/// No time passes in a model.
pub fn get_cycles() -> u64 {
    0
}

/// Forbids preemption: counted only.
pub fn preempt_disable() {
    PREEMPT_COUNT.with(|c| c.set(c.get() + 1));
}

/// Undoes one [`preempt_disable`].
pub fn preempt_enable() {
    PREEMPT_COUNT.with(|c| {
        c.set(
            c.get()
                .checked_sub(1)
                .expect("preempt_enable without preempt_disable"),
        )
    });
}

/// The same as [`preempt_enable`] here.
pub fn preempt_enable_no_resched() {
    preempt_enable();
}

/// How many [`preempt_disable`] are in force in this thread.
pub fn preempt_count() -> u32 {
    PREEMPT_COUNT.with(|c| c.get())
}

/// Whether emulated interrupts are off.
pub fn irqs_disabled() -> bool {
    IRQS_OFF.with(|c| c.get())
}

/// Disables emulated interrupts.
pub fn local_irq_save() -> IrqFlags {
    IrqFlags(IRQS_OFF.with(|c| c.replace(true)) as usize)
}

/// Restores the state `local_irq_save` returned.
pub fn local_irq_restore(flags: IrqFlags) {
    IRQS_OFF.with(|c| c.set(flags.0 != 0));
}

/// The running thread: its CPU's number plus one.
pub fn current() -> ThreadPtr {
    ThreadPtr((smp_processor_id() + 1) as *mut ())
}

/// Blocks until unparked.
pub fn park() {
    assert!(
        preempt_count() == 0 && !irqs_disabled(),
        "park with preemption or IRQs off"
    );
    let parker = &PARKERS[smp_processor_id()];
    let mut token = parker.token.lock().unwrap();
    while !*token {
        token = parker.unparked.wait(token).unwrap();
    }
    *token = false;
}

/// Wakes `t` or saves its token.
pub fn unpark(t: ThreadPtr) {
    let parker = &PARKERS[t.0 as usize - 1];
    *parker.token.lock().unwrap() = true;
    parker.unparked.notify_one();
}

/// This thread's emulated pending signal.
pub fn signal_pending() -> bool {
    SIGNAL.with(|c| c.get())
}

/// Sets this thread's emulated pending signal.
pub fn set_signal_pending(on: bool) {
    SIGNAL.with(|c| c.set(on));
}

pub(super) fn flush_tlb_range(_: &CpuMask, _: MmId, _: usize, _: usize) {}

/// Does nothing here.
pub fn flush_tlb_local_page(_va: usize) {}

/// A halt is a park here, and an interrupt ends it.
pub(super) fn kick_cpu(cpu: usize) {
    unpark(ThreadPtr((cpu + 1) as *mut ()));
}

/// The model has no stacks to walk.
pub fn call_sites(sites: &mut [usize]) {
    sites.fill(0);
}

/// Loom finds its own places.
pub fn interleave() {}
