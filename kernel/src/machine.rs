//! What `ksync` asks of a kernel.

use crate::arch::{apic, smp, tlb};
use crate::sched;
use ksync::CpuMask;
use ksync::arch::hooks::Machine;

struct ThisMachine;

// SAFETY: each function keeps its contract; see the modules it calls.
unsafe impl Machine for ThisMachine {
    #[inline]
    fn park() {
        sched::park();
    }
    #[inline]
    fn unpark(thread: *mut ()) {
        sched::unpark(thread);
    }
    fn preempt_schedule() {
        sched::preempt();
    }
    #[inline]
    fn signal_pending() -> bool {
        sched::current_ref().has_signal_work()
    }
    fn flush_tlb_range(cpus: &CpuMask, mm: u64, start: usize, end: usize) {
        tlb::flush_range(cpus, mm, start, end);
    }
    fn kick_cpu(cpu: usize) {
        apic::send_ipi(smp::apic_id_of(cpu), apic::vector::RESCHEDULE);
    }
}

ksync::provide_machine!(ThisMachine);
