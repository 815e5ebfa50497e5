//! x86-64: everything that needs to know the machine.

pub mod apic;
pub mod clock;
pub mod entry;
pub mod fpu;
pub mod gdt;
pub mod ioapic;
pub mod kstack;
pub mod paging;
pub mod smp;
pub mod thread;
pub mod tlb;
pub mod traps;
pub mod uaccess;

pub use entry::PtRegs;

use x86_64::VirtAddr;
use x86_64::registers::model_specific::{LStar, SFMask};
use x86_64::registers::rflags::RFlags;

/// Points `syscall` at [`entry::syscall_entry`]. Each CPU.
pub fn syscall_init() {
    let star = (gdt::SYSRET_BASE as u64) << 48 | (gdt::KERNEL_CS as u64) << 32;
    // SAFETY: the selectors are those of the GDT that this CPU just loaded.
    unsafe { x86_64::registers::model_specific::Msr::new(0xc000_0081).write(star) };
    LStar::write(VirtAddr::new(entry::syscall_entry as *const () as u64));
    SFMask::write(
        RFlags::INTERRUPT_FLAG
            | RFlags::TRAP_FLAG
            | RFlags::DIRECTION_FLAG
            | RFlags::ALIGNMENT_CHECK
            | RFlags::NESTED_TASK
            | RFlags::IOPL_LOW
            | RFlags::IOPL_HIGH,
    );
}

/// Ends QEMU through its debug-exit device with `code` (QEMU's own exit status is `code * 2 + 1`), or halts for good.
pub fn exit_machine(code: u8) -> ! {
    ksync::arch::sim::end();
    // SAFETY: port 0xf4 is isa-debug-exit under QEMU and unused elsewhere.
    unsafe { x86_64::instructions::port::Port::<u32>::new(0xf4).write(code as u32) };
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
