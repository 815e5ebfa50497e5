//! The kernel's first page table, built in frames below 4 GiB.
//!
//! # Mechanism
//! Tables are reached at their physical addresses (entry.s maps the low 4 GiB one to one) and made on demand. Leaf
//! entries carry the protection; entries above them allow everything.
//!
//! # Invariants
//! * INV-TABLES-1: every non-leaf entry written here points at a zeroed frame of `Frames` used for nothing else.

use crate::{
    error::BootError,
    info::Range,
    memory::{Frames, LOW_END, Map, PAGE},
};

const PRESENT: u64 = 1;
/// May be written.
pub const WRITE: u64 = 1 << 1;
const UNCACHED: u64 = 1 << 3 | 1 << 4;
const LARGE: u64 = 1 << 7;
/// May not be executed.
pub const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const SIZE_2M: u64 = 2 << 20;
const SIZE_1G: u64 = 1 << 30;
/// Below this, holes in the firmware's map are devices and are mapped too, uncached.
const DEVICES_END: u64 = 4 << 30;

/// A page table under construction.
pub struct Tables<'a> {
    frames: &'a mut Frames,
    /// Physical address of its root.
    pub pml4: u64,
}

impl<'a> Tables<'a> {
    /// An empty one.
    pub fn new(frames: &'a mut Frames) -> Result<Self, BootError> {
        let pml4 = zeroed(frames)?;
        Ok(Self { frames, pml4 })
    }

    /// The frames this table allocates from.
    pub fn frames(&mut self) -> &mut Frames {
        self.frames
    }

    /// Maps the pages of `virt`, in 4 KiB pages, to physical memory from `phys` on.
    pub fn map(&mut self, virt: Range, phys: u64, flags: u64) -> Result<(), BootError> {
        for offset in (0..virt.end - virt.start).step_by(PAGE as usize) {
            self.set(virt.start + offset, 0, (phys + offset) | flags)?;
        }
        Ok(())
    }

    /// The low 1 MiB without page 0, and boot's `code`, at their physical addresses.
    pub fn map_identity(&mut self, code: Range) -> Result<(), BootError> {
        let executable = 0;
        self.map(
            Range {
                start: PAGE,
                end: LOW_END,
            },
            PAGE,
            executable,
        )?;
        self.map(code, code.start, executable)
    }

    /// All memory at `base`, with the largest pages that fit; below 4 GiB what is no memory too.
    pub fn map_direct(&mut self, base: u64, memory: &Map, has_1g: bool) -> Result<(), BootError> {
        let end = memory.memory_end().max(DEVICES_END);
        for start in (0..end).step_by(SIZE_1G as usize) {
            let piece = Range {
                start,
                end: start + SIZE_1G,
            };
            let covered = memory.coverage(piece).memory;
            if has_1g && covered == SIZE_1G {
                self.set(base + start, 2, start | WRITE | NO_EXECUTE)?;
            } else if covered > 0 || start < DEVICES_END {
                self.map_direct_2m(base, memory, piece)?;
            }
        }
        Ok(())
    }

    fn map_direct_2m(&mut self, base: u64, memory: &Map, piece: Range) -> Result<(), BootError> {
        for start in (piece.start..piece.end).step_by(SIZE_2M as usize) {
            let covered = memory.coverage(Range {
                start,
                end: start + SIZE_2M,
            });
            let below = start < DEVICES_END;
            let caching = match (covered.memory > 0, covered.listed && below) {
                (true, _) | (_, true) => 0,
                (false, false) if below => UNCACHED,
                (false, false) => continue,
            };
            self.set(base + start, 1, start | caching | WRITE | NO_EXECUTE)?;
        }
        Ok(())
    }

    /// Writes the leaf entry for `virt` at `level` (0: 4 KiB, 1: 2 MiB, 2: 1 GiB).
    fn set(&mut self, virt: u64, level: u32, entry: u64) -> Result<(), BootError> {
        let mut table = self.pml4;
        for above in (level + 1..=3).rev() {
            let slot = slot(table, virt, above);
            // SAFETY: `slot` points into a table of ours (INV-TABLES-1).
            let value = unsafe { *slot };
            table = if value & PRESENT != 0 {
                value & ADDRESS
            } else {
                zeroed(self.frames)?
            };
            // SAFETY: as above. INVARIANT: INV-TABLES-1: `table` is new, or was there already.
            unsafe { *slot = table | WRITE | PRESENT };
        }
        let large = if level > 0 { LARGE } else { 0 };
        // SAFETY: as above.
        unsafe { *slot(table, virt, level) = entry | large | PRESENT };
        Ok(())
    }
}

/// The entry for `virt` in the table at `table`, which is of level `level`.
fn slot(table: u64, virt: u64, level: u32) -> *mut u64 {
    let index = virt >> (12 + 9 * level) & 511;
    (table + 8 * index) as *mut u64
}

fn zeroed(frames: &mut Frames) -> Result<u64, BootError> {
    let at = frames.take(1)?;
    // SAFETY: a frame of ours below 4 GiB, mapped one to one (INV-FRAMES-1).
    unsafe { core::ptr::write_bytes(at as *mut u8, 0, PAGE as usize) };
    Ok(at)
}
