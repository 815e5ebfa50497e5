//! What the guest says, and how: NOPs with a meaning, and a few instructions that have one anyway.
//!
//! A marker is `0F 1F /op disp32(%rip)`, seven bytes that every x86-64 ignores. Its operand is the array of [`Slot`]s,
//! through which guest and plugin exchange words: a plugin cannot write registers.
//!
//! | op | meaning |
//! |---|---|
//! | 1 | begin: this CPU runs, all others are halted; from here on one CPU runs at a time |
//! | 2 | this CPU's clock, please |
//! | 3 | the `pause` that follows ends a turn of a loop that only waits |
//! | 4 | end: everybody runs as the host likes |
//! | 5 | meet: wait until as many CPUs as the slot's argument says are here; its phase says what begins then |
//! | 6 | an interrupt handler begins |
//! | 7 | the slot's question is answered by the text behind the slots; the next one, please |
//!
//! Who is interrupted while it waits at 5 comes out early, its argument still there, and asks again.

/// Most CPUs of a guest, and slots.
pub const MAX_SLOTS: usize = 512;

/// A CPU's words, on a line of their own.
#[repr(C, align(64))]
pub struct Slot {
    /// This CPU's clock, after marker 2. Written by the plugin.
    pub clock: u64,
    /// Not 0 while a simulation is on. Written by the plugin.
    pub active: u64,
    /// For marker 5: CPUs that meet, and in the upper half a [`Phase`]. The plugin clears it when they have met.
    pub argument: u64,
    /// This CPU's APIC id plus one; 0: no CPU. Written by the guest before marker 1.
    pub apic_plus_1: u64,
    /// For marker 7: a line of memory that the plugin wants a name for, by its physical address; 0: no more. Written by
    /// the plugin, as is the next.
    pub line: u64,
    /// A virtual address through which it was touched.
    pub address: u64,
    /// For marker 7: length of the name at [`names`]. Written by the guest.
    pub name_len: u64,
    unused: u64,
}

/// Bytes of a name.
pub const NAME_LEN: usize = 128;

/// Where the guest writes names: behind the last slot.
pub fn names(slots: *mut Slot) -> *const u8 {
    slots.wrapping_add(MAX_SLOTS).cast()
}

/// The name in `bytes`, as far as it can stand between quotation marks.
pub fn name(bytes: &[u8]) -> String {
    let plain = |b: &&u8| matches!(b, b' '..=b'~') && !matches!(b, b'"' | b'\\');
    bytes.iter().filter(plain).map(|b| char::from(*b)).collect()
}

/// What begins when CPUs have met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The model of memory, so that caches warm up.
    Ramp,
    /// A measured window.
    Window,
    /// Work that is not looked at: instructions count, memory is free.
    Setup,
}

impl Phase {
    /// The phase with that number.
    pub fn of(argument: u64) -> Option<Phase> {
        match argument >> 32 {
            0 => Some(Phase::Ramp),
            1 => Some(Phase::Window),
            2 => Some(Phase::Setup),
            _ => None,
        }
    }
}

/// An instruction that means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// A marker's op, and where its operand is from the instruction's first byte.
    Marker(u8, isize),
    /// `pause`.
    Pause,
    /// `wrmsr`.
    Wrmsr,
    /// Whatever touches memory in one indivisible step.
    Locked,
    /// Any other.
    Plain,
}

/// What `bytes` are.
pub fn decode(bytes: &[u8]) -> Instruction {
    match bytes {
        [0x0f, 0x1f, modrm, a, b, c, d] if modrm & 0xc7 == 5 && *modrm != 5 => {
            let displacement = i32::from_le_bytes([*a, *b, *c, *d]);
            Instruction::Marker(modrm >> 3 & 7, 7 + displacement as isize)
        }
        [0xf3, 0x90] => Instruction::Pause,
        [0x0f, 0x30] => Instruction::Wrmsr,
        _ if is_locked(bytes) => Instruction::Locked,
        _ => Instruction::Plain,
    }
}

/// A lock prefix, or `xchg` with memory, which needs none.
fn is_locked(bytes: &[u8]) -> bool {
    let prefix = |b: &u8| {
        matches!(
            b,
            0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 | 0x40
                ..=0x4f
        )
    };
    let prefixes = bytes.iter().take_while(|b| prefix(b)).count();
    match &bytes[prefixes..] {
        [0x86 | 0x87, modrm, ..] => modrm & 0xc0 != 0xc0,
        _ => bytes[..prefixes].contains(&0xf0),
    }
}

/// The x2APIC's interrupt command register, and the one for interrupts to oneself.
pub mod msr {
    /// Interrupt command.
    pub const ICR: u32 = 0x830;
    /// Self interrupt.
    pub const SELF: u32 = 0x83f;
}

/// An interrupt that a CPU sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Whom it reaches.
    pub to: Destination,
    /// It cannot be masked.
    pub nmi: bool,
}

/// Whom an interrupt reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The CPU with this APIC id.
    Apic(u32),
    /// The sender.
    Myself,
    /// Everybody.
    All,
    /// Everybody but the sender.
    Others,
}

/// What writing `low` and `high` to `msr` sends. `None`: nothing that a running CPU notices, or a form that this
/// kernel does not use (logical destinations, other delivery modes).
pub fn interrupt(msr: u32, low: u32, high: u32) -> Option<Interrupt> {
    if msr == msr::SELF {
        return Some(Interrupt {
            to: Destination::Myself,
            nmi: false,
        });
    }
    let nmi = match (msr, low >> 8 & 7) {
        (msr::ICR, 0) => false,
        (msr::ICR, 4) => true,
        _ => return None,
    };
    let to = match low >> 18 & 3 {
        0 if high == u32::MAX => Destination::All,
        0 if low & 1 << 11 != 0 => return None,
        0 => Destination::Apic(high),
        1 => Destination::Myself,
        2 => Destination::All,
        _ => Destination::Others,
    };
    Some(Interrupt { to, nmi })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions() {
        let is = |bytes: &[u8], what| assert_eq!(decode(bytes), what, "{bytes:x?}");
        is(&[0x0f, 0x1f, 0x0d, 1, 0, 0, 0], Instruction::Marker(1, 8));
        is(
            &[0x0f, 0x1f, 0x35, 0xff, 0xff, 0xff, 0xff],
            Instruction::Marker(6, 6),
        );
        is(&[0x0f, 0x1f, 0x05, 1, 0, 0, 0], Instruction::Plain);
        is(&[0x0f, 0x1f, 0x80, 0, 0, 0, 0], Instruction::Plain);
        is(&[0xf3, 0x90], Instruction::Pause);
        is(&[0x0f, 0x30], Instruction::Wrmsr);
        is(&[0xf0, 0x48, 0x0f, 0xc1, 0x07], Instruction::Locked);
        is(&[0x65, 0xf0, 0xff, 0x00], Instruction::Locked);
        is(&[0x48, 0x87, 0x07], Instruction::Locked);
        is(&[0x48, 0x87, 0xc7], Instruction::Plain);
        is(&[0x89, 0xf0], Instruction::Plain);
        is(&[0x90], Instruction::Plain);
        is(&[], Instruction::Plain);
    }

    #[test]
    fn interrupts() {
        let to = |msr, low, high| interrupt(msr, low, high).map(|i| (i.to, i.nmi));
        assert_eq!(to(0x830, 0x40f0, 7), Some((Destination::Apic(7), false)));
        assert_eq!(to(0x830, 0xc4400, 0), Some((Destination::Others, true)));
        assert_eq!(to(0x830, 0x440f0, 0), Some((Destination::Myself, false)));
        assert_eq!(to(0x830, 0x840f0, 0), Some((Destination::All, false)));
        assert_eq!(to(0x830, 0x40f0, u32::MAX), Some((Destination::All, false)));
        assert_eq!(to(0x83f, 0xf0, 0), Some((Destination::Myself, false)));
        assert_eq!(to(0x830, 0x4500, 1), None, "INIT");
        assert_eq!(to(0x830, 0x4600, 1), None, "start-up");
        assert_eq!(to(0x80b, 0, 0), None, "end of interrupt");
    }

    #[test]
    fn slots_are_lines() {
        assert_eq!(size_of::<Slot>(), 64);
        assert_eq!(names(std::ptr::null_mut()).addr(), 64 * MAX_SLOTS);
        assert_eq!(name(b"task \"+0x40\\\n"), "task +0x40");
        assert_eq!(Phase::of(7 | 1 << 32), Some(Phase::Window));
        assert_eq!(Phase::of(9 << 32), None);
    }
}
