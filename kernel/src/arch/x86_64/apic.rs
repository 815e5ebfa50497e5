//! The local APIC: identity, inter-processor interrupts, the one-shot timer. x2APIC where the CPU has it.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use x86_64::registers::model_specific::Msr;

/// Interrupt vectors of this kernel. Higher vectors have priority.
pub mod vector {
    pub const SERIAL: u8 = 0x34;
    pub const TIMER: u8 = 0xec;
    pub const RESCHEDULE: u8 = 0xf0;
    pub const TLB_FLUSH: u8 = 0xf1;
    pub const SPURIOUS: u8 = 0xff;
}

const APIC_BASE: u32 = 0x1b;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;

// Register numbers: the MMIO offset divided by 16, which is the x2APIC MSR less 0x800.
const ID: u32 = 0x02;
const TASK_PRIORITY: u32 = 0x08;
const EOI: u32 = 0x0b;
const SPURIOUS: u32 = 0x0f;
const ICR: u32 = 0x30;
const ICR_HIGH: u32 = 0x31;
const LVT_TIMER: u32 = 0x32;
const TIMER_INITIAL: u32 = 0x38;
const TIMER_CURRENT: u32 = 0x39;
const TIMER_DIVIDE: u32 = 0x3e;

const DELIVER_FIXED: u64 = 0;
const DELIVER_NMI: u64 = 4 << 8;
const DELIVER_INIT: u64 = 5 << 8;
const DELIVER_STARTUP: u64 = 6 << 8;
const LEVEL_ASSERT: u64 = 1 << 14;
const ALL_BUT_SELF: u64 = 3 << 18;

static X2APIC: AtomicBool = AtomicBool::new(false);
/// APIC timer ticks per 2^20 nanoseconds.
static TICKS_PER_MI_NS: AtomicU64 = AtomicU64::new(0);

fn mmio(register: u32) -> *mut u32 {
    ksync::arch::phys_to_virt(0xfee0_0000 + register as usize * 16).cast()
}

#[inline]
fn read(register: u32) -> u32 {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: x2APIC mode is on, the register exists.
        unsafe { Msr::new(0x800 + register).read() as u32 }
    } else {
        // SAFETY: the xAPIC page is in the direct map and nobody allocates it.
        unsafe { mmio(register).read_volatile() }
    }
}

#[inline]
fn write(register: u32, value: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: x2APIC mode is on; callers write values the register takes.
        unsafe { Msr::new(0x800 + register).write(value as u64) };
    } else {
        // SAFETY: as in `read`.
        unsafe { mmio(register).write_volatile(value) };
    }
}

/// Enables the APIC of the running CPU.
pub fn init_cpu() {
    // Under -icount QEMU can only count instructions up to a device access that goes through memory.
    let by_memory = crate::params::get().mode == crate::params::ModeWord::Icount;
    let has_x2apic = core::arch::x86_64::__cpuid(1).ecx & (1 << 21) != 0 && !by_memory;
    let mut base = Msr::new(APIC_BASE);
    // SAFETY: enabling the APIC, in x2APIC mode only where CPUID has it.
    unsafe {
        let mut value = base.read() | BASE_ENABLE;
        base.write(value);
        if has_x2apic {
            value |= BASE_X2APIC;
            base.write(value);
        }
    }
    X2APIC.store(has_x2apic, Ordering::Relaxed);
    write(TASK_PRIORITY, 0);
    write(SPURIOUS, 0x100 | vector::SPURIOUS as u32);
    write(TIMER_DIVIDE, 0b1011); // by 1
    write(LVT_TIMER, vector::TIMER as u32);
}

/// APIC id of the running CPU.
pub fn id() -> u32 {
    let id = read(ID);
    if X2APIC.load(Ordering::Relaxed) {
        id
    } else {
        id >> 24
    }
}

/// "x2apic" or "xapic".
pub fn mode() -> &'static str {
    if X2APIC.load(Ordering::Relaxed) {
        "x2apic"
    } else {
        "xapic"
    }
}

#[inline]
pub fn end_of_interrupt() {
    write(EOI, 0);
}

fn write_icr(apic_id: u32, command: u64) {
    if X2APIC.load(Ordering::Relaxed) {
        // The MSR write is not serialising: earlier stores must be visible before the interrupt is.
        core::sync::atomic::fence(Ordering::SeqCst);
        // SAFETY: a well-formed command.
        unsafe { Msr::new(0x800 + ICR).write((apic_id as u64) << 32 | command) };
    } else {
        let flags = ksync::arch::local_irq_save();
        while read(ICR) & (1 << 12) != 0 {
            ksync::arch::cpu_relax();
        }
        write(ICR_HIGH, apic_id << 24);
        write(ICR, command as u32);
        ksync::arch::local_irq_restore(flags);
    }
}

/// Interrupts one CPU at `vector`. Any context.
#[inline]
pub fn send_ipi(apic_id: u32, vector: u8) {
    write_icr(apic_id, DELIVER_FIXED | LEVEL_ASSERT | vector as u64);
}

/// Sends a non-maskable interrupt to every other CPU: it stops them for a report.
pub fn send_nmi_to_others() {
    write_icr(0, DELIVER_NMI | LEVEL_ASSERT | ALL_BUT_SELF);
}

pub fn send_init(apic_id: u32) {
    write_icr(apic_id, DELIVER_INIT | LEVEL_ASSERT);
}

/// Starts a CPU in real mode at physical `page << 12`.
pub fn send_startup(apic_id: u32, page: u8) {
    write_icr(apic_id, DELIVER_STARTUP | LEVEL_ASSERT | page as u64);
}

/// Starts counting down from the largest value, for calibration; returns a function's worth of ticks per call of
/// [`timer_elapsed`].
pub fn timer_start_max() {
    write(LVT_TIMER, 1 << 16 | vector::TIMER as u32);
    write(TIMER_INITIAL, u32::MAX);
}

/// Ticks since [`timer_start_max`].
pub fn timer_elapsed() -> u32 {
    u32::MAX - read(TIMER_CURRENT)
}

/// Records what the calibration found: `ticks` in `ns` nanoseconds.
pub fn set_timer_rate(ticks: u64, ns: u64) {
    assert!(ticks > 0, "the APIC timer stands still");
    TICKS_PER_MI_NS.store(
        ((ticks as u128) << 20).div_euclid(ns as u128) as u64,
        Ordering::Relaxed,
    );
    write(TIMER_INITIAL, 0);
    write(LVT_TIMER, vector::TIMER as u32);
}

/// Asks for one timer interrupt on this CPU after `ns` nanoseconds (at least one tick, at most the counter's range).
pub fn timer_arm(ns: u64) {
    if crate::numasim::is_on() {
        return; // the timer counts the host's time; idle CPUs look at their clocks instead
    }
    let ticks = ((ns as u128 * TICKS_PER_MI_NS.load(Ordering::Relaxed) as u128) >> 20)
        .clamp(1, u32::MAX as u128);
    write(TIMER_INITIAL, ticks as u32);
}

/// No timer interrupt on this CPU until the next [`timer_arm`].
pub fn timer_disarm() {
    write(TIMER_INITIAL, 0);
}
