//! The smallest program: exit(0), about 350 bytes of ELF. What exec costs with nothing to load.
#![no_std]
#![no_main]

use rt as _;

/// Process entry.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.tiny")]
extern "C" fn _start() -> ! {
    core::arch::naked_asm!("xor edi, edi", "push 60", "pop rax", "syscall")
}
