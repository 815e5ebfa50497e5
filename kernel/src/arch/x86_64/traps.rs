//! Exceptions and interrupts after the entry stubs: who gets to see them.

use super::entry::PtRegs;
use super::{apic, kstack, tlb, uaccess};
use crate::kstats::Stat;
use crate::{mem, sched, signal};
use core::sync::atomic::Ordering::Relaxed;
use kstat::Counters;
use ksync::arch::{irqs_disabled, this_cpu_head};
use mm::{FaultError, FaultFlags};
use task::signal::{SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP};

const PAGE_FAULT: u64 = 14;
const NMI: u64 = 2;
const DOUBLE_FAULT: u64 = 8;

/// Error-code bits of a page fault.
mod pf {
    pub const PRESENT: u64 = 1;
    pub const WRITE: u64 = 2;
    pub const USER: u64 = 4;
    pub const RESERVED: u64 = 8;
    pub const FETCH: u64 = 16;
}

/// Names of the exceptions, by vector.
const NAMES: [&str; 22] = [
    "divide error",
    "debug",
    "NMI",
    "breakpoint",
    "overflow",
    "bound range",
    "invalid opcode",
    "no FPU",
    "double fault",
    "FPU overrun",
    "invalid TSS",
    "segment not present",
    "stack segment",
    "general protection",
    "page fault",
    "reserved",
    "x87 error",
    "alignment check",
    "machine check",
    "SIMD error",
    "virtualization",
    "control protection",
];

/// Every exception and interrupt. IRQs are off.
pub extern "C" fn do_trap(regs: &mut PtRegs) {
    let vector = regs.orig_rax >> 32;
    let error = regs.orig_rax & 0xffff_ffff;
    regs.orig_rax = super::entry::NO_SYSCALL;
    match vector {
        PAGE_FAULT => page_fault(regs, error),
        32.. => {
            ksync::lockdep::irq_enter();
            interrupt(vector as u8, regs);
            ksync::lockdep::irq_exit();
        }
        NMI => crate::panic::nmi(regs),
        DOUBLE_FAULT => double_fault(regs),
        _ if regs.user_mode() => user_exception(vector, error, regs),
        _ => kernel_exception(vector, error, regs),
    }
}

fn interrupt(vector: u8, regs: &PtRegs) {
    ksync::arch::sim::interrupted();
    ksync::rcu::irq_enter();
    match vector {
        apic::vector::RESCHEDULE => {
            apic::end_of_interrupt();
            sched::reschedule_ipi();
        }
        apic::vector::TLB_FLUSH => {
            apic::end_of_interrupt();
            tlb::serve_inbox();
        }
        apic::vector::TIMER => {
            apic::end_of_interrupt();
            sched::timer_interrupt(regs.user_mode() || ksync::arch::preempt_count() == 0);
        }
        apic::vector::SERIAL => {
            apic::end_of_interrupt();
            crate::tty::interrupt();
        }
        apic::vector::SPURIOUS => {}
        _ => {
            apic::end_of_interrupt();
            Stat::nr_unexpected_interrupts.inc();
        }
    }
}

#[inline]
fn page_fault(regs: &mut PtRegs, error: u64) {
    let address = x86_64::registers::control::Cr2::read_raw() as usize;
    if address >= uaccess::TASK_SIZE || error & pf::RESERVED != 0 {
        if regs.user_mode() {
            remember(
                PAGE_FAULT,
                error | (pf::PRESENT * (address >= uaccess::TASK_SIZE) as u64),
                address,
            );
            return signal::force(SIGSEGV, signal::SEGV_MAPERR, address);
        }
        return bad_kernel_access(regs, address, error);
    }
    if !regs.user_mode() && uaccess::fixup_of(regs.rip).is_none() {
        return bad_kernel_access(regs, address, error);
    }
    // In a user copy with IRQs or preemption off the fault may not sleep: the copy fails instead.
    if !regs.user_mode() && (regs.rflags & (1 << 9) == 0 || ksync::arch::preempt_count() > 0) {
        return fix_up(regs);
    }
    x86_64::instructions::interrupts::enable();
    let mut flags = FaultFlags::empty();
    flags.set(FaultFlags::WRITE, error & pf::WRITE != 0);
    flags.set(FaultFlags::EXEC, error & pf::FETCH != 0);
    flags.set(FaultFlags::USER, error & pf::USER != 0);
    let result = mem::handle_user_fault(address, flags, regs.rsp as usize);
    x86_64::instructions::interrupts::disable();
    let Err(e) = result else { return };
    if !regs.user_mode() {
        return fix_up(regs);
    }
    remember(PAGE_FAULT, error, address);
    match e {
        FaultError::SegvMaperr => signal::force(SIGSEGV, signal::SEGV_MAPERR, address),
        FaultError::SegvAccerr => signal::force(SIGSEGV, signal::SEGV_ACCERR, address),
        FaultError::Sigbus => signal::force(SIGBUS, signal::BUS_ADRERR, address),
        FaultError::Oom => signal::kill_current_oom(),
    }
}

fn fix_up(regs: &mut PtRegs) {
    match uaccess::fixup_of(regs.rip) {
        Some(fixup) => regs.rip = fixup,
        None => kernel_exception(PAGE_FAULT, 0, regs),
    }
}

#[cold]
fn bad_kernel_access(regs: &mut PtRegs, address: usize, error: u64) {
    if uaccess::fixup_of(regs.rip).is_some() && address < uaccess::TASK_SIZE {
        return fix_up(regs);
    }
    if let Some(bottom) = kstack::guard_of(address) {
        crate::panic::die(
            regs,
            format_args!("kernel stack overflow: stack at {bottom:#x}, access to {address:#x}"),
        );
    }
    let what = match (error & pf::FETCH != 0, error & pf::WRITE != 0) {
        (true, _) => "execution of",
        (false, true) => "write to",
        (false, false) => "read of",
    };
    let why = if error & pf::PRESENT != 0 {
        "protection"
    } else {
        "not mapped"
    };
    crate::panic::die(
        regs,
        format_args!("page fault: {what} {address:#x} ({why})"),
    );
}

fn double_fault(regs: &mut PtRegs) {
    let address = x86_64::registers::control::Cr2::read_raw() as usize;
    match kstack::guard_of(address).or_else(|| kstack::guard_of(regs.rsp as usize - 8)) {
        Some(bottom) => crate::panic::die(
            regs,
            format_args!("kernel stack overflow: stack at {bottom:#x}, access to {address:#x}"),
        ),
        None => crate::panic::die(
            regs,
            format_args!("double fault, last faulting address {address:#x}"),
        ),
    }
}

/// Keeps what a signal frame says of the exception behind it.
fn remember(vector: u64, error: u64, address: usize) {
    let arch = &sched::current_ref().arch;
    arch.trap_nr.store(vector as usize, Relaxed);
    arch.trap_error.store(error as usize, Relaxed);
    if vector == PAGE_FAULT {
        arch.trap_address.store(address, Relaxed);
    }
}

fn user_exception(vector: u64, error: u64, regs: &mut PtRegs) {
    remember(vector, error, 0);
    let (signo, code) = match vector {
        0 => (SIGFPE, signal::FPE_INTDIV),
        1 => (SIGTRAP, signal::TRAP_TRACE),
        3 => (SIGTRAP, signal::SI_KERNEL),
        16 | 19 => (SIGFPE, signal::FPE_FLTINV),
        6 => (SIGILL, signal::ILL_ILLOPN),
        17 => (SIGBUS, signal::BUS_ADRALN),
        _ => (SIGSEGV, signal::SI_KERNEL),
    };
    signal::force(
        signo,
        code,
        if code == signal::SI_KERNEL {
            0
        } else {
            regs.rip as usize
        },
    );
}

#[cold]
fn kernel_exception(vector: u64, error: u64, regs: &mut PtRegs) {
    if let Some(fixup) = uaccess::fixup_of(regs.rip) {
        regs.rip = fixup;
        return;
    }
    let name = NAMES.get(vector as usize).copied().unwrap_or("exception");
    crate::panic::die(
        regs,
        format_args!("{name} (vector {vector}, error code {error:#x})"),
    );
}

/// Everything that must happen before a return to user mode. Entered with IRQs on or off, returns with IRQs off.
pub extern "C" fn exit_to_user(regs: &mut PtRegs) {
    loop {
        x86_64::instructions::interrupts::disable();
        if this_cpu_head().need_resched.load(Relaxed) != 0 {
            sched::schedule();
            x86_64::instructions::interrupts::enable();
            sched::run_callbacks();
            continue;
        }
        if sched::current_ref().has_work() {
            x86_64::instructions::interrupts::enable();
            crate::rseq::before_user_mode(regs);
            if sched::current_ref().has_signal_work() {
                signal::do_work(regs);
            }
            continue;
        }
        return;
    }
}

/// Preempts the interrupted kernel code if the scheduler wants the CPU and the code allows it.
pub extern "C" fn exit_to_kernel(regs: &mut PtRegs) {
    let interrupts_were_on = regs.rflags & (1 << 9) != 0;
    let head = this_cpu_head();
    if interrupts_were_on
        && head.need_resched.load(Relaxed) != 0
        && head.preempt_count.load(Relaxed) == 0
    {
        debug_assert!(irqs_disabled());
        sched::preempt();
    }
}
