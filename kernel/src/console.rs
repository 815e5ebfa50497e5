//! The serial console on COM1 and the record stream on COM2.
//!
//! Lock order: `console_lock` is a leaf, taken with IRQs off. A panic breaks it.

use core::fmt::{self, Write};
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::{FifoTriggerLevel, IER};
use uart_16550::{Config, Uart16550};

/// Writes a line to the console.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($arg)*))) };
}

/// Writes a line to the console unless `quiet` was on the boot line.
#[macro_export]
macro_rules! info {
    ($($arg:tt)*) => { if !$crate::console::is_quiet() { $crate::println!($($arg)*) } };
}

struct Port {
    uart: Option<Uart16550<PioBackend>>,
}

static CONSOLE: Mutex<Port> = Mutex::new(Port { uart: None });
static RECORDS: Mutex<Port> = Mutex::new(Port { uart: None });
static QUIET: core::sync::atomic::AtomicBool = core::sync::atomic::AtomicBool::new(false);

const COM1: u16 = 0x3f8;
const COM2: u16 = 0x2f8;

impl Write for Port {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.write_bytes(s.as_bytes());
        Ok(())
    }
}

impl Port {
    fn write_bytes(&mut self, bytes: &[u8]) {
        let Some(uart) = &mut self.uart else { return };
        for line in bytes.split_inclusive(|&b| b == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(text) => {
                    uart.send_bytes_exact(text);
                    uart.send_bytes_exact(b"\r\n");
                }
                None => uart.send_bytes_exact(line),
            }
        }
    }
}

fn open(base: u16) -> Option<Uart16550<PioBackend>> {
    // SAFETY: COM1 and COM2 are where PCs have them; a missing port fails the driver's own test.
    let mut uart = unsafe { Uart16550::new_port(base) }.ok()?;
    // An interrupt for every byte: people type slowly, and who pastes must not wait for a full queue.
    let config = Config {
        fifo_trigger_level: Some(FifoTriggerLevel::One),
        ..Config::default()
    };
    uart.init(config).ok()?;
    Some(uart)
}

/// Opens both ports. First thing at boot.
pub fn init() {
    CONSOLE.lock().uart = open(COM1);
    RECORDS.lock().uart = open(COM2);
}

/// No informational lines from now on.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, core::sync::atomic::Ordering::Relaxed);
}

/// Whether informational lines are off.
pub fn is_quiet() -> bool {
    QUIET.load(core::sync::atomic::Ordering::Relaxed)
}

fn with<R>(port: &Mutex<Port>, f: impl FnOnce(&mut Port) -> R) -> R {
    let flags = ksync::arch::local_irq_save();
    let r = f(&mut port.lock());
    ksync::arch::local_irq_restore(flags);
    r
}

/// Formats to the console. Any context.
pub fn print(args: fmt::Arguments) {
    with(&CONSOLE, |port| _ = port.write_fmt(args));
}

/// Raw bytes to the console: what programs write to it.
pub fn write_bytes(bytes: &[u8]) {
    with(&CONSOLE, |port| port.write_bytes(bytes));
}

/// The same without a carriage return before each newline.
pub fn write_raw(bytes: &[u8]) {
    with(&CONSOLE, |port| {
        if let Some(uart) = &mut port.uart {
            uart.send_bytes_exact(bytes);
        }
    });
}

/// Has the port interrupt when something was typed. Boot.
pub fn enable_interrupt() {
    with(&CONSOLE, |port| {
        if let Some(uart) = &mut port.uart {
            uart.enable_interrupts(IER::DATA_READY);
        }
    });
}

/// One JSON line to the record stream.
pub fn record(line: &str) {
    with(&RECORDS, |port| {
        port.write_bytes(line.as_bytes());
        port.write_bytes(b"\n");
    });
}

/// A byte that was typed, if any.
pub fn read_byte() -> Option<u8> {
    with(&CONSOLE, |port| port.uart.as_mut()?.try_receive_byte().ok())
}

/// Takes the console from whoever holds it: for a panic, when the other CPUs are stopped.
pub fn break_lock() {
    // SAFETY: the holder, if any, is stopped or is this CPU in a panic; nothing runs after the report.
    unsafe { CONSOLE.force_unlock() };
}
