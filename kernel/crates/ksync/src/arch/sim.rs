//! Talking with a simulator that gives each CPU a clock of its own: NOPs that it knows, and words in memory.
//!
//! The simulator is a plugin of the emulator (`xtask/numasim`, whose chapter has the protocol). It sees a marker, `0F 1F
//! /op` with a rip-relative operand, when a CPU executes it; everywhere else it is a NOP. What it answers it writes to
//! this CPU's [`Slot`], which the operand names, since a plugin cannot write registers.
use super::smp_processor_id;
use crate::NR_CPUS;
use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

crate::static_key! {
    /// The boot line says that the simulator is there.
    pub static SIMULATED;
}

/// Added to simulated clocks, so that time does not go back when a simulation begins: more than any boot takes.
pub const CLOCK_BASE: u64 = 1 << 40;

/// Bytes of a name that the simulator reads.
pub const NAME_LEN: usize = 128;

/// One CPU's words. The layout is the simulator's.
#[repr(C, align(64))]
struct Slot {
    clock: AtomicU64,
    active: AtomicU64,
    argument: AtomicU64,
    apic_plus_1: AtomicU64,
    /// What the simulator wants a name for: a physical address, 0 for nothing, and a virtual one.
    line: AtomicU64,
    address: AtomicU64,
    /// Length of the answer in [`Words::name`].
    name_len: AtomicU64,
}

/// All that is shared with the simulator.
#[repr(C, align(64))]
struct Words {
    slots: [Slot; NR_CPUS],
    name: [AtomicU8; NAME_LEN],
}

static WORDS: Words = Words {
    slots: [const {
        Slot {
            clock: AtomicU64::new(0),
            active: AtomicU64::new(0),
            argument: AtomicU64::new(0),
            apic_plus_1: AtomicU64::new(0),
            line: AtomicU64::new(0),
            address: AtomicU64::new(0),
            name_len: AtomicU64::new(0),
        }
    }; NR_CPUS],
    name: [const { AtomicU8::new(0) }; NAME_LEN],
};

/// Executes a marker, given by its ModRM byte.
macro_rules! mark {
    ($modrm:literal) => {
        // SAFETY: a NOP; a simulator writes to the slots alone, which are atomics.
        unsafe {
            asm!(concat!(".byte 0x0f, 0x1f, ", $modrm), ".long {slots} - (. + 4)", slots = sym WORDS,
                options(nostack, preserves_flags))
        }
    };
}

/// What begins when all CPUs have met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Phase {
    /// Memory costs, so that caches warm up; nothing is written down.
    Ramp = 0,
    /// A window: what is lost, and to whom, is written down until the next meeting.
    Window = 1,
    /// Instructions count, memory is free.
    Setup = 2,
}

/// Names a CPU to the simulator. Boot, before [`begin`].
pub fn name_cpu(cpu: usize, apic_id: u32) {
    WORDS.slots[cpu]
        .apic_plus_1
        .store(apic_id as u64 + 1, Relaxed);
}

/// From here on one CPU runs at a time, in the order of their clocks. All other CPUs are idle, or soon will be.
pub fn begin() {
    mark!("0x0d");
}

/// The simulation is over.
pub fn end() {
    mark!("0x25");
}

/// An interrupt handler begins.
#[inline(always)]
pub fn interrupted() {
    mark!("0x35");
}

/// Whether a simulation is on.
pub fn is_active() -> bool {
    WORDS.slots[smp_processor_id()].active.load(Relaxed) != 0
}

/// Waits until `cpus` CPUs are here; all leave at the same time, and `phase` begins. IRQs on, preemption off.
pub fn meet(cpus: usize, phase: Phase) {
    let slot = &WORDS.slots[smp_processor_id()];
    slot.argument
        .store(cpus as u64 | (phase as u64) << 32, Relaxed);
    // An interrupt lets a CPU out early, its argument still there.
    while slot.active.load(Relaxed) != 0 && slot.argument.load(Relaxed) != 0 {
        mark!("0x2d");
    }
}

/// Names what lies at each line of memory that the simulator wants to know of: `name` gets a physical address on the
/// line and a virtual one, by which it was reached, writes a text and returns its length. One CPU at a time; it stays
/// on this CPU. Returns when there are no more questions.
pub fn answer(mut name: impl FnMut(usize, usize, &mut [u8; NAME_LEN]) -> usize) {
    let slot = &WORDS.slots[smp_processor_id()];
    let mut text = [0; NAME_LEN];
    slot.name_len.store(0, Relaxed);
    loop {
        mark!("0x3d");
        let line = slot.line.load(Relaxed) as usize;
        if line == 0 {
            return;
        }
        let len = name(line, slot.address.load(Relaxed) as usize, &mut text).min(NAME_LEN);
        for (to, byte) in WORDS.name.iter().zip(&text[..len]) {
            to.store(*byte, Relaxed);
        }
        slot.name_len.store(len as u64, Relaxed);
    }
}

/// This CPU's clock; the time stamp counter where no simulation is on.
#[cold]
#[inline(never)]
pub(super) fn get_cycles() -> u64 {
    let flags = super::local_irq_save();
    let slot = &WORDS.slots[smp_processor_id()];
    let now = if slot.active.load(Relaxed) != 0 {
        mark!("0x15");
        CLOCK_BASE + slot.clock.load(Relaxed)
    } else {
        super::bare::time_stamp()
    };
    super::local_irq_restore(flags);
    now
}
