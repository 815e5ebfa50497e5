//! The I/O APIC: one device interrupt, that of the first serial port.
//!
//! PCs have it where [`BASE`] says, and the serial port on ISA's line 4, edge-triggered. The line goes to the boot CPU.

use super::apic;

/// Physical address; firmware may move it, and none for PCs does.
const BASE: usize = 0xfec0_0000;
/// ISA's line of COM1; QEMU and PCs do not move it.
const COM1_LINE: u32 = 4;
const VERSION: u32 = 1;
const REDIRECTION: u32 = 0x10;

fn register(offset: usize) -> *mut u32 {
    ksync::arch::phys_to_virt(BASE + offset).cast()
}

fn select(index: u32) -> *mut u32 {
    // SAFETY: the I/O APIC's page is in the direct map, and nobody allocates it: it is no RAM.
    unsafe { register(0).write_volatile(index) };
    register(0x10)
}

fn read(index: u32) -> u32 {
    // SAFETY: as in `select`.
    unsafe { select(index).read_volatile() }
}

fn write(index: u32, value: u32) {
    // SAFETY: as in `select`.
    unsafe { select(index).write_volatile(value) }
}

/// Lets the serial port interrupt the running CPU at `vector`; false where there is no I/O APIC. Boot.
pub fn route_com1(vector: u8) -> bool {
    let lines = read(VERSION) >> 16 & 0xff;
    if !(COM1_LINE..=239).contains(&lines) {
        return false;
    }
    // Physical destination, fixed delivery, edge, active high, not masked.
    write(REDIRECTION + 2 * COM1_LINE + 1, apic::id() << 24);
    write(REDIRECTION + 2 * COM1_LINE, vector.into());
    true
}
