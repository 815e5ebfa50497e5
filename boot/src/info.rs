//! What any loader tells, in one form; and how its bytes are reached.
//!
//! # Invariants
//! * INV-BOOTINFO-1: a [`LoaderInfo`] refers to loader memory only through `cmdline` and `modules`, and
//!   `memory::Frames` stays clear of both and of the low 1 MiB. So frames can be handed out while it is in use.

use crate::error::BootError;
use arrayvec::ArrayVec;
use bundle::Loader;

/// The most memory regions taken from the firmware. QEMU has about 10, large servers some 200.
pub const MAX_REGIONS: usize = 512;
/// The most modules.
pub const MAX_MODULES: usize = 4;

/// Reads physical memory: address and length in bytes, to the bytes, or `None` when they are out of reach.
pub type Memory<'a> = dyn Fn(u64, u64) -> Option<&'a [u8]> + 'a;

/// A range of physical memory, end excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Range {
    /// From an address and a length, `None` when the end is not a number.
    pub fn sized(start: u64, len: u64) -> Option<Self> {
        Some(Self {
            start,
            end: start.checked_add(len)?,
        })
    }
}

/// One entry of the firmware's memory map. `kind` is E820's: 1 is RAM, 3 and 4 are ACPI's, others are not to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where.
    pub range: Range,
    /// What, in E820's numbers.
    pub kind: u32,
}

/// E820's number for RAM that anyone may use.
pub const KIND_RAM: u32 = 1;
/// E820's number for ACPI tables (RAM that can be reclaimed).
pub const KIND_ACPI: u32 = 3;
/// E820's number for ACPI's non-volatile storage.
pub const KIND_NVS: u32 = 4;

/// Where the ACPI root pointer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rsdp {
    /// The loader does not say.
    Unknown,
    /// At this physical address.
    At(u64),
    /// The loader made a copy, which must be moved to memory that stays.
    Copied(ArrayVec<u8, 64>),
}

/// Everything the loader said (INV-BOOTINFO-1).
pub struct LoaderInfo<'a> {
    /// Who.
    pub loader: Loader,
    /// The words for the kernel, without a terminating zero.
    pub cmdline: &'a [u8],
    /// Files loaded beside boot.
    pub modules: ArrayVec<Range, MAX_MODULES>,
    /// The firmware's map, in its order.
    pub memory: ArrayVec<Region, MAX_REGIONS>,
    /// ACPI's root.
    pub rsdp: Rsdp,
}

impl<'a> LoaderInfo<'a> {
    /// Nothing known yet.
    pub fn new(loader: Loader) -> Self {
        Self {
            loader,
            cmdline: &[],
            modules: ArrayVec::new(),
            memory: ArrayVec::new(),
            rsdp: Rsdp::Unknown,
        }
    }

    /// Adds a region; empty ones and those whose end is not a number are dropped.
    pub fn push_region(&mut self, start: u64, len: u64, kind: u32) -> Result<(), BootError> {
        match Range::sized(start, len) {
            Some(range) if len > 0 => self
                .memory
                .try_push(Region { range, kind })
                .map_err(|_| BootError::TooMany("memory regions")),
            _ => Ok(()),
        }
    }

    /// Adds a module.
    pub fn push_module(&mut self, start: u64, len: u64) -> Result<(), BootError> {
        let range = Range::sized(start, len).ok_or(BootError::BadStructure("module list"))?;
        self.modules
            .try_push(range)
            .map_err(|_| BootError::TooMany("modules"))
    }
}

/// The identity-mapped low 4 GiB, as a [`Memory`].
#[cfg(target_os = "none")]
pub fn low_memory(addr: u64, len: u64) -> Option<&'static [u8]> {
    let end = addr.checked_add(len)?;
    if addr == 0 || end > 1 << 32 {
        return None;
    }
    // SAFETY: entry.s maps the low 4 GiB one to one, and nothing there changes while boot reads it (INV-BOOTINFO-1).
    Some(unsafe { core::slice::from_raw_parts(addr as *const u8, len as usize) })
}

/// The bytes of a zero-terminated string at `addr`, empty when `addr` is 0.
pub fn c_string<'a>(
    memory: &Memory<'a>,
    addr: u64,
    what: &'static str,
) -> Result<&'a [u8], BootError> {
    /// Longer than any loader passes on.
    const MAX: u64 = 64 << 10;
    if addr == 0 {
        return Ok(&[]);
    }
    let mut len = 0;
    while len < MAX {
        match memory(addr + len, 1).ok_or(BootError::BadStructure(what))? {
            [0] => return memory(addr, len).ok_or(BootError::BadStructure(what)),
            _ => len += 1,
        }
    }
    Err(BootError::TooMany("bytes of command line"))
}

/// The little-endian number at `at`, or an error naming the structure it belongs to.
pub fn u32_at(bytes: &[u8], at: usize, what: &'static str) -> Result<u32, BootError> {
    match bytes.get(at..).and_then(|b| b.first_chunk()) {
        Some(chunk) => Ok(u32::from_le_bytes(*chunk)),
        None => Err(BootError::BadStructure(what)),
    }
}

/// As [`u32_at`], of 8 bytes.
pub fn u64_at(bytes: &[u8], at: usize, what: &'static str) -> Result<u64, BootError> {
    match bytes.get(at..).and_then(|b| b.first_chunk()) {
        Some(chunk) => Ok(u64::from_le_bytes(*chunk)),
        None => Err(BootError::BadStructure(what)),
    }
}
