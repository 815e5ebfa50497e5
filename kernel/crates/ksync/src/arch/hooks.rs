//! The list of what a kernel must provide: the symbols this crate calls on bare metal.
//!
//! A kernel defines each as `#[unsafe(no_mangle)] extern "Rust" fn`.
use crate::CpuMask;

unsafe extern "Rust" {
    /// Blocks the current thread until [`tine_unpark`]; one saved token; may return spuriously.
    /// Called with preemption and IRQs on.
    pub fn tine_park();
    /// Wakes `thread`, or saves its token. Any context, IRQs off allowed; takes only run-queue locks.
    pub fn tine_unpark(thread: *mut ());
    /// Runs the scheduler: preempt_count is 0, need_resched was seen set, IRQs are on.
    pub fn tine_preempt_schedule();
    /// Whether the current thread has a signal to handle.
    pub fn tine_signal_pending() -> bool;
    /// Drops `start..end` of address space `mm` from the TLBs of `cpus` and this CPU, and waits.
    pub fn tine_flush_tlb_range(cpus: &CpuMask, mm: u64, start: usize, end: usize);
}
