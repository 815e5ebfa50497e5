//! When things go wrong: one report, every other CPU stopped, QEMU ended with a failing code.
//!
//! The first CPU that panics wins [`PANIC_CPU`]; it sends the others an NMI, which each answers by printing where it
//! was and halting. An NMI that comes without a panic (the host's time limit ran out) makes CPU 0 report a hang the
//! same way. Backtraces follow frame pointers and print addresses; `xtask` adds the symbols.

use crate::arch::{self, PtRegs, apic, paging, smp};
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};
use ksync::arch::{cpu_relax, smp_processor_id};

/// Exit code for a panic; QEMU's status becomes 2 * code + 1.
const EXIT_PANIC: u8 = 0x21;
/// Exit code for a hang.
const EXIT_HANG: u8 = 0x22;
const NOBODY: usize = usize::MAX;
const MAX_FRAMES: usize = 32;

static PANIC_CPU: AtomicUsize = AtomicUsize::new(NOBODY);
static NR_REPORTED: AtomicUsize = AtomicUsize::new(0);
static REPORT_TURN: spin::Mutex<()> = spin::Mutex::new(());

/// Prints return addresses from `rbp` on. Reads only mapped memory.
fn backtrace(rip: u64, mut rbp: u64) {
    println!("  bt: {rip:#018x}");
    for _ in 0..MAX_FRAMES {
        let frame = rbp as usize;
        if frame < 0xffff_8000_0000_0000
            || !frame.is_multiple_of(8)
            || !paging::is_mapped(frame)
            || !paging::is_mapped(frame + 8)
        {
            return;
        }
        // SAFETY: both words are mapped kernel memory.
        let [next, ret] = unsafe { *(frame as *const [u64; 2]) };
        if ret < crate::arch::paging::IMAGE_BASE as u64 {
            return;
        }
        println!("  bt: {:#018x}", ret - 1);
        if next <= rbp {
            return;
        }
        rbp = next;
    }
}

fn registers(regs: &PtRegs) {
    println!(
        "  rip {:04x}:{:016x} rsp {:04x}:{:016x} rflags {:08x}",
        regs.cs, regs.rip, regs.ss, regs.rsp, regs.rflags
    );
    println!(
        "  rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}",
        regs.rax, regs.rbx, regs.rcx, regs.rdx
    );
    println!(
        "  rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}",
        regs.rsi, regs.rdi, regs.rbp, regs.r8
    );
    println!(
        "  r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}",
        regs.r9, regs.r10, regs.r11, regs.r12
    );
    println!(
        "  r13 {:016x} r14 {:016x} r15 {:016x}",
        regs.r13, regs.r14, regs.r15
    );
}

fn describe_task() -> impl fmt::Display {
    crate::sched::CurrentName
}

/// Claims the right to report. Does not return when another CPU has it.
fn claim(what: &str) {
    x86_64::instructions::interrupts::disable();
    let me = smp_processor_id();
    match PANIC_CPU.compare_exchange(NOBODY, me, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => crate::console::break_lock(),
        Err(owner) if owner == me => {
            crate::console::break_lock();
            println!("{what} within a panic");
            arch::exit_machine(EXIT_PANIC);
        }
        Err(_) => halt(),
    }
}

fn halt() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

/// Stops the other CPUs and lets each say where it was; then ends the machine.
fn stop_others_and_exit(code: u8) -> ! {
    let others = smp::nr_online() - 1;
    if others > 0 {
        apic::send_nmi_to_others();
        let deadline = arch::clock::now_ns() + 2_000_000_000;
        while NR_REPORTED.load(Ordering::Acquire) < others && arch::clock::now_ns() < deadline {
            cpu_relax();
        }
    }
    arch::exit_machine(code)
}

/// Ends the machine over an exception in the kernel.
pub fn die(regs: &PtRegs, what: fmt::Arguments) -> ! {
    claim("exception");
    println!("\npanic: {what}");
    println!("  on CPU {}, {}", smp_processor_id(), describe_task());
    registers(regs);
    backtrace(regs.rip, regs.rbp);
    stop_others_and_exit(EXIT_PANIC)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    claim("panic");
    match info.location() {
        Some(at) => println!("\npanic: {} ({}:{})", info.message(), at.file(), at.line()),
        None => println!("\npanic: {}", info.message()),
    }
    println!("  on CPU {}, {}", smp_processor_id(), describe_task());
    let (rip, rbp): (u64, u64);
    // SAFETY: reads two registers.
    unsafe {
        core::arch::asm!("lea {}, [rip]", "mov {}, rbp", out(reg) rip, out(reg) rbp, options(nomem, nostack))
    };
    backtrace(rip, rbp);
    stop_others_and_exit(EXIT_PANIC)
}

/// A hang was found: reports every CPU and ends the machine.
pub fn hang(what: fmt::Arguments) -> ! {
    claim("hang");
    println!("\nhang: {what}");
    println!("  on CPU {}, {}", smp_processor_id(), describe_task());
    crate::sched::print_run_queues();
    stop_others_and_exit(EXIT_HANG)
}

/// A non-maskable interrupt: another CPU panicked, or the host's patience is over.
pub fn nmi(regs: &PtRegs) {
    if PANIC_CPU.load(Ordering::Acquire) == NOBODY {
        // QEMU's `inject-nmi` reaches every CPU; the first to arrive reports.
        claim("NMI");
        println!("\nhang: the host sent an NMI: time limit reached");
        println!("  CPU {}: {}", smp_processor_id(), describe_task());
        backtrace(regs.rip, regs.rbp);
        crate::sched::print_run_queues();
        stop_others_and_exit(EXIT_HANG)
    }
    if PANIC_CPU.load(Ordering::Acquire) == smp_processor_id() {
        return;
    }
    let turn = REPORT_TURN.lock();
    if crate::sched::is_idle() {
        println!("  CPU {}: idle", smp_processor_id());
    } else {
        println!("  CPU {}: {}", smp_processor_id(), describe_task());
        backtrace(regs.rip, if regs.user_mode() { 0 } else { regs.rbp });
    }
    drop(turn);
    NR_REPORTED.fetch_add(1, Ordering::AcqRel);
    halt()
}
