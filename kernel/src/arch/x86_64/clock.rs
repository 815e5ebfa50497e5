//! Time: the TSC as the clock, calibrated once against the ACPI timer or the PIT; wall time from the CMOS clock.

use super::apic;
use core::sync::atomic::{AtomicU64, Ordering};
use x86_64::instructions::port::Port;

/// Nanoseconds per 2^32 TSC ticks.
static NS_PER_4G: AtomicU64 = AtomicU64::new(1 << 32);
static TSC_AT_BOOT: AtomicU64 = AtomicU64::new(0);
static TSC_KHZ: AtomicU64 = AtomicU64::new(0);
/// Seconds since 1970 when the TSC read `TSC_AT_BOOT`.
static BOOT_EPOCH: AtomicU64 = AtomicU64::new(0);

const PM_TIMER_HZ: u64 = 3_579_545;
const PIT_HZ: u64 = 1_193_182;
/// How long the calibration watches, in nanoseconds.
const WINDOW_NS: u64 = 2_000_000;

/// Nanoseconds since the clock was calibrated. Any context.
#[inline]
pub fn now_ns() -> u64 {
    let ticks = ksync::arch::get_cycles().wrapping_sub(TSC_AT_BOOT.load(Ordering::Relaxed));
    ((ticks as u128 * NS_PER_4G.load(Ordering::Relaxed) as u128) >> 32) as u64
}

/// Nanoseconds since 1970.
pub fn realtime_ns() -> u64 {
    BOOT_EPOCH.load(Ordering::Relaxed) * 1_000_000_000 + now_ns()
}

/// TSC frequency in kHz.
pub fn tsc_khz() -> u64 {
    TSC_KHZ.load(Ordering::Relaxed)
}

/// Calibrates TSC and APIC timer. `pm_timer` is the I/O port of the ACPI timer, where there is one. Boot CPU.
pub fn init(pm_timer: Option<u16>) {
    if crate::numasim::is_on() {
        // Nothing of the host's time: a cycle is what the simulation says it is.
        NS_PER_4G.store(
            (1 << 32) * 1_000_000 / crate::numasim::CLOCK_KHZ,
            Ordering::Relaxed,
        );
        TSC_KHZ.store(crate::numasim::CLOCK_KHZ, Ordering::Relaxed);
        BOOT_EPOCH.store(days_from_civil(2026, 1, 1) * 86_400, Ordering::Relaxed);
        return;
    }
    // A host that takes the CPU away between two reads spoils a window; the one with the fewest ticks was spoilt least.
    let (tsc, ticks, ns) = (0..3)
        .map(|_| watch(pm_timer))
        .min_by_key(|w| w.0 * 1000 / w.2)
        .unwrap_or((1, 1, 1));
    apic::set_timer_rate(ticks as u64, ns);
    NS_PER_4G.store(
        (((ns as u128) << 32) / tsc as u128) as u64,
        Ordering::Relaxed,
    );
    TSC_KHZ.store(
        (tsc as u128 * 1_000_000 / ns as u128) as u64,
        Ordering::Relaxed,
    );
    BOOT_EPOCH.store(read_cmos_epoch(), Ordering::Relaxed);
    TSC_AT_BOOT.store(ksync::arch::get_cycles(), Ordering::Relaxed);
}

/// One window: TSC ticks, APIC timer ticks, nanoseconds.
fn watch(pm_timer: Option<u16>) -> (u64, u32, u64) {
    apic::timer_start_max();
    let (tsc, ticks) = (ksync::arch::get_cycles(), apic::timer_elapsed());
    let ns = match pm_timer {
        Some(port) => wait_pm_timer(port),
        None => wait_pit(),
    };
    (
        ksync::arch::get_cycles() - tsc,
        apic::timer_elapsed() - ticks,
        ns,
    )
}

fn wait_pm_timer(port: u16) -> u64 {
    let mut port = Port::<u32>::new(port);
    // SAFETY: the FADT says that this is the ACPI timer; reading has no effect.
    let mut read = || unsafe { port.read() } & 0xff_ffff;
    let wanted = WINDOW_NS * PM_TIMER_HZ / 1_000_000_000;
    let start = read();
    loop {
        let passed = (read().wrapping_sub(start) & 0xff_ffff) as u64;
        if passed >= wanted {
            return passed * 1_000_000_000 / PM_TIMER_HZ;
        }
    }
}

fn wait_pit() -> u64 {
    let (mut gate, mut command, mut data) = (
        Port::<u8>::new(0x61),
        Port::<u8>::new(0x43),
        Port::<u8>::new(0x42),
    );
    let count = (WINDOW_NS * PIT_HZ / 1_000_000_000) as u16;
    // SAFETY: channel 2 of the PIT drives nothing but the speaker, which stays off.
    unsafe {
        let old = gate.read() & !0x03;
        gate.write(old | 0x01);
        command.write(0xb0); // channel 2, both bytes, one-shot
        data.write(count as u8);
        data.write((count >> 8) as u8);
        while gate.read() & 0x20 == 0 {}
        gate.write(old);
    }
    count as u64 * 1_000_000_000 / PIT_HZ
}

fn read_cmos_epoch() -> u64 {
    let (mut index, mut data) = (Port::<u8>::new(0x70), Port::<u8>::new(0x71));
    // SAFETY: reading CMOS registers has no effect but on the index port.
    let mut read = |register: u8| unsafe {
        index.write(register);
        data.read()
    };
    while read(0x0a) & 0x80 != 0 {}
    let binary = read(0x0b) & 4 != 0;
    let mut field = |register| {
        let v = read(register);
        (if binary { v } else { (v >> 4) * 10 + (v & 15) }) as u64
    };
    let (second, minute, hour) = (field(0), field(2), field(4));
    let (day, month, year) = (field(7), field(8), 2000 + field(9));
    days_from_civil(year, month.clamp(1, 12), day.clamp(1, 31)) * 86_400
        + hour * 3600
        + minute * 60
        + second
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, year 1970 or later.
const fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let y = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    y / 400 * 146_097 + (y % 400) * 365 + (y % 400) / 4 - (y % 400) / 100 + day_of_year - 719_468
}
const _: () = assert!(days_from_civil(1970, 1, 1) == 0 && days_from_civil(2026, 1, 1) == 20_454);
