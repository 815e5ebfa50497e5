//! The memory map: what is free for boot's own pages, and what the kernel is told.
//!
//! # Problem
//! Firmware maps come unsorted, with holes and sometimes with overlaps, and loaders leave our image and their modules
//! in RAM that the map calls free.
//!
//! # Mechanism
//! [`Map`] is one sweep over all borders of the firmware's regions and of what is in use: between two borders memory is
//! of one [`Class`], and the most restrictive claim wins. [`Frames`] hands out pages in ascending order from the largest
//! free piece below 4 GiB; [`regions`] makes a second map afterwards, with those frames in use, for the kernel.
//!
//! # Invariants
//! * INV-MAP-1: the pieces of a [`Map`] are sorted, do not overlap, and neighbours that touch differ in class.
//! * INV-FRAMES-1: a frame is handed out once, lies in RAM, and overlaps neither boot, nor a module, nor the command
//!   line, nor the low 1 MiB.

use crate::{
    error::BootError,
    info::{KIND_ACPI, KIND_NVS, KIND_RAM, LoaderInfo, MAX_MODULES, MAX_REGIONS, Range},
};
use arrayvec::ArrayVec;
use bootloader_api::info::{MemoryRegion, MemoryRegionKind};

/// Bytes per page.
pub const PAGE: u64 = 4096;
/// Boot takes no frames from low memory: real-mode data, and room for the start-up code of other CPUs.
pub const LOW_END: u64 = 1 << 20;
/// What entry.s maps one to one.
const IDENTITY_END: u64 = 1 << 32;

/// Modules, boot, and two more.
const MAX_IN_USE: usize = MAX_MODULES + 4;
/// Each region and each range in use has two borders.
const MAX_BORDERS: usize = 2 * (MAX_REGIONS + MAX_IN_USE);

/// Ranges that hold something, in whole pages.
type InUse = ArrayVec<Range, MAX_IN_USE>;

/// What a piece of memory is. A later one wins where claims overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// RAM that anyone may use.
    Free,
    /// RAM that boot, a module or a frame occupies.
    Used,
    /// Of this kind in the firmware's map, which is not RAM.
    Other(u32),
}

impl Class {
    /// Whether there is memory behind it (RAM, or ACPI tables in RAM).
    fn is_memory(self) -> bool {
        matches!(
            self,
            Self::Free | Self::Used | Self::Other(KIND_ACPI | KIND_NVS)
        )
    }
}

/// All of physical memory that anyone has said anything about (INV-MAP-1).
pub struct Map {
    pieces: ArrayVec<(Range, Class), MAX_BORDERS>,
}

impl Map {
    /// The firmware's regions with `in_use` cut out of RAM.
    fn new(info: &LoaderInfo<'_>, in_use: &[Range]) -> Self {
        let mut borders: ArrayVec<u64, MAX_BORDERS> = ArrayVec::new();
        let regions = info.memory.iter().map(|r| r.range);
        borders.extend(
            regions
                .chain(in_use.iter().copied())
                .flat_map(|r| [r.start, r.end]),
        );
        borders.sort_unstable();
        let mut map = Self {
            pieces: ArrayVec::new(),
        };
        for pair in borders.windows(2) {
            let range = Range {
                start: pair[0],
                end: pair[1],
            };
            if let (true, Some(class)) = (range.start < range.end, classify(info, in_use, range)) {
                map.push(range, class);
            }
        }
        map
    }

    /// Appends a piece, joining it with the last where they touch and agree.
    fn push(&mut self, range: Range, class: Class) {
        // INVARIANT: INV-MAP-1: borders ascend, so `range` starts at or after the end of the last piece.
        match self.pieces.last_mut() {
            Some((last, same)) if last.end == range.start && *same == class => last.end = range.end,
            _ => self.pieces.push((range, class)),
        }
    }

    /// What lies in `range`, for the choice of page size and caching in the direct map.
    pub fn coverage(&self, range: Range) -> Coverage {
        let mut covered = Coverage {
            memory: 0,
            listed: false,
        };
        for (piece, class) in &self.pieces {
            let (start, end) = (piece.start.max(range.start), piece.end.min(range.end));
            if start < end {
                covered.listed = true;
                covered.memory += if class.is_memory() { end - start } else { 0 };
            }
        }
        covered
    }

    /// One past the highest byte of memory.
    pub fn memory_end(&self) -> u64 {
        self.pieces
            .iter()
            .filter(|(_, class)| class.is_memory())
            .map(|(r, _)| r.end)
            .max()
            .unwrap_or(0)
    }
}

/// What [`Map::coverage`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// Bytes of memory.
    pub memory: u64,
    /// Whether the firmware mentions any byte at all.
    pub listed: bool,
}

/// The most restrictive claim on `range`, which no border divides.
fn classify(info: &LoaderInfo<'_>, in_use: &[Range], range: Range) -> Option<Class> {
    let covers = |r: &Range| r.start <= range.start && range.end <= r.end;
    let region = info
        .memory
        .iter()
        .filter(|r| covers(&r.range))
        .map(|r| match r.kind {
            KIND_RAM => Class::Free,
            other => Class::Other(other),
        });
    match region.max()? {
        Class::Free if in_use.iter().any(covers) => Some(Class::Used),
        class => Some(class),
    }
}

/// Allocates pages that are never freed (INV-FRAMES-1).
pub struct Frames {
    start: u64,
    next: u64,
    end: u64,
    boot: Range,
}

impl Frames {
    /// Finds the largest piece of unused RAM below 4 GiB; `boot` is where boot itself lies.
    pub fn largest_gap(info: &LoaderInfo<'_>, boot: Range) -> Result<Self, BootError> {
        let cmdline = info.cmdline.as_ptr() as u64;
        let mut in_use = occupied(info, boot);
        in_use.push(Range {
            start: 0,
            end: LOW_END,
        });
        in_use.push(widen(Range {
            start: cmdline,
            end: cmdline + info.cmdline.len() as u64,
        }));
        let free = Map::new(info, &in_use)
            .pieces
            .into_iter()
            .filter(|(_, class)| *class == Class::Free);
        let below = free.map(|(r, _)| {
            whole_pages(Range {
                start: r.start,
                end: r.end.min(IDENTITY_END),
            })
        });
        match below.max_by_key(|r| r.end.saturating_sub(r.start)) {
            // INVARIANT: INV-FRAMES-1: free in a map where all the others are in use; `take` only moves up.
            Some(Range { start, end }) if start < end => Ok(Self {
                start,
                next: start,
                end,
                boot,
            }),
            _ => Err(BootError::OutOfMemory(PAGE)),
        }
    }

    /// The address of `count` new pages in one piece. They hold whatever was left there.
    pub fn take(&mut self, count: u64) -> Result<u64, BootError> {
        let len = count
            .checked_mul(PAGE)
            .ok_or(BootError::OutOfMemory(u64::MAX))?;
        if len > self.end - self.next {
            return Err(BootError::OutOfMemory(len));
        }
        let at = self.next;
        self.next += len;
        Ok(at)
    }

    /// The map with everything handed out so far in use. Page 0 counts as used: its address is null.
    pub fn map(&self, info: &LoaderInfo<'_>) -> Map {
        let mut in_use = occupied(info, self.boot);
        in_use.push(Range {
            start: 0,
            end: PAGE,
        });
        in_use.push(Range {
            start: self.start,
            end: self.next,
        });
        Map::new(info, &in_use)
    }
}

/// Fills `out` with the map as the kernel is told it, and returns how many regions that are.
pub fn regions(map: &Map, out: &mut [MemoryRegion]) -> Result<usize, BootError> {
    let told = map.pieces.iter().map(|(range, class)| match class {
        Class::Free => (whole_pages(*range), MemoryRegionKind::Usable),
        Class::Used => (*range, MemoryRegionKind::Bootloader),
        Class::Other(kind) => (*range, MemoryRegionKind::UnknownBios(*kind)),
    });
    let mut count = 0;
    for (Range { start, end }, kind) in told.filter(|(r, _)| r.start < r.end) {
        *out.get_mut(count)
            .ok_or(BootError::TooMany("memory regions"))? = MemoryRegion { start, end, kind };
        count += 1;
    }
    Ok(count)
}

/// The most regions [`regions`] can fill in.
pub const MAX_TOLD: usize = MAX_BORDERS;

/// Boot and the modules, in whole pages.
fn occupied(info: &LoaderInfo<'_>, boot: Range) -> InUse {
    info.modules
        .iter()
        .chain([&boot])
        .map(|r| widen(*r))
        .collect()
}

/// The pages that `range` touches.
fn widen(range: Range) -> Range {
    Range {
        start: range.start & !(PAGE - 1),
        end: range
            .end
            .checked_next_multiple_of(PAGE)
            .unwrap_or(range.end),
    }
}

/// The pages that lie in `range` as a whole.
fn whole_pages(range: Range) -> Range {
    Range {
        start: range
            .start
            .checked_next_multiple_of(PAGE)
            .unwrap_or(range.end),
        end: range.end & !(PAGE - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::Loader;

    const BOOT: Range = Range {
        start: 0x10_0000,
        end: 0x11_0000,
    };

    fn info(regions: &[(u64, u64, u32)], modules: &[(u64, u64)]) -> LoaderInfo<'static> {
        let mut info = LoaderInfo::new(Loader::Pvh);
        for &(start, end, kind) in regions {
            info.push_region(start, end - start, kind).unwrap();
        }
        for &(start, end) in modules {
            info.push_module(start, end - start).unwrap();
        }
        info
    }

    fn told(info: &LoaderInfo<'_>, frames: &Frames) -> Vec<(u64, u64, MemoryRegionKind)> {
        let mut out = [MemoryRegion {
            start: 0,
            end: 0,
            kind: MemoryRegionKind::Usable,
        }; MAX_TOLD];
        let count = regions(&frames.map(info), &mut out).unwrap();
        out[..count]
            .iter()
            .map(|r| (r.start, r.end, r.kind))
            .collect()
    }

    #[test]
    fn the_usual_machine() {
        use MemoryRegionKind::{Bootloader, UnknownBios, Usable};
        let info = info(
            &[
                (0x9_fc00, 0x10_0000, 2),
                (0, 0x9_fc00, 1),
                (0x10_0000, 0x800_0000, 1),
            ],
            &[(0x700_0000, 0x700_1234)],
        );
        let mut frames = Frames::largest_gap(&info, BOOT).unwrap();
        assert_eq!(frames.take(2), Ok(0x11_0000));
        assert_eq!(frames.take(1), Ok(0x11_2000));
        let expected = [
            (0, 0x1000, Bootloader),
            (0x1000, 0x9_f000, Usable),
            (0x9_fc00, 0x10_0000, UnknownBios(2)),
            (0x10_0000, 0x11_3000, Bootloader),
            (0x11_3000, 0x700_0000, Usable),
            (0x700_0000, 0x700_2000, Bootloader),
            (0x700_2000, 0x800_0000, Usable),
        ];
        assert_eq!(told(&info, &frames), expected);
    }

    #[test]
    fn frames_run_out_cleanly() {
        let info = info(&[(0x10_0000, 0x11_2000, 1), (1 << 32, 1 << 40, 1)], &[]);
        let mut frames = Frames::largest_gap(&info, BOOT).unwrap();
        assert_eq!(frames.take(3), Err(BootError::OutOfMemory(3 * PAGE)));
        assert_eq!(frames.take(u64::MAX), Err(BootError::OutOfMemory(u64::MAX)));
        assert!(frames.take(2).is_ok());
        let nothing = super::tests::info(&[(1 << 32, 1 << 40, 1)], &[]);
        assert!(Frames::largest_gap(&nothing, BOOT).is_err());
    }

    #[test]
    fn coverage_tells_memory_from_holes() {
        let info = info(
            &[
                (0, 0x20_0000, 1),
                (0x20_0000, 0x30_0000, 3),
                (0x50_0000, 0x60_0000, 2),
            ],
            &[],
        );
        let map = Frames {
            start: 0,
            next: 0,
            end: 0,
            boot: BOOT,
        }
        .map(&info);
        let at = |start, end| map.coverage(Range { start, end });
        assert_eq!(
            at(0, 0x30_0000),
            Coverage {
                memory: 0x30_0000,
                listed: true
            }
        );
        assert_eq!(
            at(0x30_0000, 0x40_0000),
            Coverage {
                memory: 0,
                listed: false
            }
        );
        assert_eq!(
            at(0x40_0000, 0x60_0000),
            Coverage {
                memory: 0,
                listed: true
            }
        );
        assert_eq!(map.memory_end(), 0x30_0000);
    }

    /// Every page against a page-by-page model, with overlapping regions and modules anywhere.
    #[test]
    fn matches_a_page_by_page_model() {
        let mut seed = 1u64;
        let mut random = move |below: u64| {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        const PAGES: u64 = 600; // the low 1 MiB is 256 of them
        for round in 0..300 {
            let mut regions = vec![];
            for _ in 0..random(8) {
                let start = random(PAGES) * PAGE;
                regions.push((
                    start,
                    start + (1 + random(200)) * PAGE,
                    1 + random(4) as u32,
                ));
            }
            let modules: Vec<_> = (0..random(4))
                .map(|_| random(PAGES) * PAGE)
                .map(|s| (s, s + 2 * PAGE))
                .collect();
            let info = info(&regions, &modules);
            let Ok(mut frames) = Frames::largest_gap(&info, BOOT) else {
                continue;
            };
            let taken = frames.take(1).unwrap();
            let told = told(&info, &frames);
            for pair in told.windows(2) {
                assert!(
                    pair[0].1 <= pair[1].0,
                    "round {round}: unsorted or overlapping"
                );
            }
            for page in (0..2 * PAGES).map(|n| n * PAGE) {
                let has = |(start, end): (u64, u64)| start <= page && page < end;
                let kinds = regions.iter().filter(|r| has((r.0, r.1))).map(|r| r.2);
                let used = page == 0
                    || page == taken
                    || has((BOOT.start, BOOT.end))
                    || modules.iter().any(|m| has(*m));
                let expected = kinds.max().map(|kind| match (kind, used) {
                    (1, true) => MemoryRegionKind::Bootloader,
                    (1, false) => MemoryRegionKind::Usable,
                    (kind, _) => MemoryRegionKind::UnknownBios(kind),
                });
                let got = told.iter().find(|r| has((r.0, r.1))).map(|r| r.2);
                assert_eq!(
                    got, expected,
                    "round {round}, page {page:#x} of {regions:x?} {modules:x?}"
                );
            }
        }
    }
}
