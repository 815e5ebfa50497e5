//! COM1, for errors only: a boot that goes well prints nothing here, and the way out of QEMU.

use core::{arch::asm, fmt, fmt::Write};

const COM1: u16 = 0x3f8;
/// QEMU's isa-debug-exit device, when there is one.
const DEBUG_EXIT: u16 = 0xf4;
/// QEMU then ends with 2 * this + 1; the kernel's verdicts use other values.
const BOOT_FAILED: u8 = 0x7f;

struct Com1;

impl Write for Com1 {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                send(b'\r');
            }
            send(byte);
        }
        Ok(())
    }
}

/// Sends one byte as soon as the transmitter is free; gives up waiting where there is no UART.
fn send(byte: u8) {
    const TRANSMITTER_FREE: u8 = 1 << 5;
    for _ in 0..100_000 {
        if inb(COM1 + 5) & TRANSMITTER_FREE != 0 {
            break;
        }
    }
    outb(COM1, byte);
}

/// Prints a line and ends: QEMU exits with a failing code, a real machine stops. Any context.
pub fn fail(text: fmt::Arguments<'_>) -> ! {
    // 115200 baud, 8 bits, no parity, FIFO on: the loader may have left anything.
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7)] {
        outb(COM1 + register, value);
    }
    // Writing to Com1 does not fail.
    let _ = Com1.write_fmt(text);
    let _ = Com1.write_str("\n");
    outb(DEBUG_EXIT, BOOT_FAILED);
    loop {
        // SAFETY: boot has no interrupt handler and needs none: the CPU stops for good.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

fn outb(port: u16, value: u8) {
    // SAFETY: only called with the ports above; writes there touch no memory.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
    };
}

fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: as in outb.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    };
    value
}
