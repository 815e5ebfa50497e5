//! The kernel's ELF file: checked before a byte of it is used.
//!
//! # Invariants
//! * INV-IMAGE-1: in an [`Image`], segments lie in [`IMAGE_START`, `IMAGE_END`), share no page, keep their file bytes
//!   inside the file, and none is both writable and executable; the entry point is in an executable one.

use crate::{error::BootError, info::Range, memory::PAGE};
use arrayvec::ArrayVec;
use bootloader_api::{BootloaderConfig, config::Mapping};
use elf::{ElfBytes, abi, endian::LittleEndian, segment::ProgramHeader};

/// Where the kernel's code model puts it.
const IMAGE_START: u64 = 0xffff_ffff_8000_0000;
/// Half of the last 2 GiB are the image's, the other half is for the stack and the kernel's own use.
const IMAGE_END: u64 = 0xffff_ffff_c000_0000;
/// Where the boot stack's guard page is, unless the configuration says otherwise.
const STACK_DEFAULT: u64 = 0xffff_ffff_f000_0000;
/// Where all memory appears; the kernel's crates have it as a constant.
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
const MAX_SEGMENTS: usize = 16;

/// One part of the image.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Its pages, as virtual addresses.
    pub pages: Range,
    /// Virtual address of its first byte.
    pub start: u64,
    /// What the file has for it; the rest is zero.
    pub bytes: &'a [u8],
    /// May be written.
    pub write: bool,
    /// May be executed.
    pub execute: bool,
}

/// A kernel that can be loaded (INV-IMAGE-1).
pub struct Image<'a> {
    /// The whole file.
    pub file: &'a [u8],
    /// Its parts in ascending order.
    pub segments: ArrayVec<Segment<'a>, MAX_SEGMENTS>,
    /// The address of `entry_point!`.
    pub entry: u64,
    /// Where the direct map goes.
    pub direct_map: u64,
    /// Virtual address of the boot CPU's stack; the page below stays unmapped.
    pub stack_bottom: u64,
    /// Its length in bytes, whole pages.
    pub stack_len: u64,
}

impl<'a> Image<'a> {
    /// Checks `file` and its `BootloaderConfig`. Never panics, whatever it holds.
    pub fn parse(file: &'a [u8]) -> Result<Self, BootError> {
        let bad = BootError::Kernel;
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file)
            .map_err(|_| bad("not an ELF file, or truncated"))?;
        if elf.ehdr.class != elf::file::Class::ELF64 || elf.ehdr.e_machine != abi::EM_X86_64 {
            return Err(bad("not for x86-64"));
        }
        if elf.ehdr.e_type != abi::ET_EXEC {
            return Err(bad(
                "not linked to a fixed address (relocation-model=static)",
            ));
        }
        let headers = elf.segments().ok_or(bad("it has no program headers"))?;
        let mut segments: ArrayVec<Segment<'a>, MAX_SEGMENTS> = ArrayVec::new();
        for header in headers
            .iter()
            .filter(|h| h.p_type == abi::PT_LOAD && h.p_memsz > 0)
        {
            segments
                .try_push(segment(file, &header)?)
                .map_err(|_| BootError::TooMany("kernel segments"))?;
        }
        segments.sort_unstable_by_key(|s| s.start);
        if segments
            .windows(2)
            .any(|w| w[0].pages.end > w[1].pages.start)
        {
            return Err(bad("segments share a page"));
        }
        let entry = elf.ehdr.e_entry;
        if !segments
            .iter()
            .any(|s| s.execute && s.pages.start <= entry && entry < s.pages.end)
        {
            return Err(bad("the entry point is not in an executable segment"));
        }
        let (direct_map, stack_bottom, stack_len) = layout(&config(&elf)?)?;
        // INVARIANT: INV-IMAGE-1: `segment` checked each one, the lines above what they have in common.
        Ok(Self {
            file,
            segments,
            entry,
            direct_map,
            stack_bottom,
            stack_len,
        })
    }

    /// The pages from the first segment's to the last one's, as virtual addresses.
    pub fn span(&self) -> Range {
        let start = self.segments.first().map_or(0, |s| s.pages.start);
        Range {
            start,
            end: self.segments.last().map_or(0, |s| s.pages.end),
        }
    }
}

fn segment<'a>(file: &'a [u8], header: &ProgramHeader) -> Result<Segment<'a>, BootError> {
    let bad = BootError::Kernel;
    let start = header.p_vaddr;
    let end = start
        .checked_add(header.p_memsz)
        .ok_or(bad("a segment's end is not an address"))?;
    if start < IMAGE_START || end > IMAGE_END {
        return Err(bad(
            "a segment lies outside ffffffff80000000..ffffffffc0000000",
        ));
    }
    if header.p_filesz > header.p_memsz {
        return Err(bad("a segment is longer in the file than in memory"));
    }
    let file_end = header
        .p_offset
        .checked_add(header.p_filesz)
        .ok_or(bad("a segment's file range is no range"))?;
    let bytes = usize::try_from(header.p_offset)
        .ok()
        .zip(usize::try_from(file_end).ok());
    let bytes = bytes
        .and_then(|(from, to)| file.get(from..to))
        .ok_or(bad("truncated: a segment is missing"))?;
    let (write, execute) = (
        header.p_flags & abi::PF_W != 0,
        header.p_flags & abi::PF_X != 0,
    );
    if write && execute {
        return Err(bad("a segment is writable and executable"));
    }
    let pages = Range {
        start: start & !(PAGE - 1),
        end: end.next_multiple_of(PAGE),
    };
    Ok(Segment {
        pages,
        start,
        bytes,
        write,
        execute,
    })
}

fn config(elf: &ElfBytes<'_, LittleEndian>) -> Result<BootloaderConfig, BootError> {
    let missing =
        BootError::Kernel("it has no .bootloader-config section (entry_point! with a config)");
    let header = elf
        .section_header_by_name(".bootloader-config")
        .ok()
        .flatten()
        .ok_or(missing)?;
    let (raw, _) = elf.section_data(&header).map_err(|_| missing)?;
    // Its parser expects the exact length.
    let raw = raw.get(..BootloaderConfig::SERIALIZED_LEN).ok_or(missing)?;
    BootloaderConfig::deserialize(raw).map_err(BootError::Kernel)
}

/// Direct map, stack bottom and stack length of a configuration. What this loader does not do is an error, not ignored.
fn layout(config: &BootloaderConfig) -> Result<(u64, u64, u64), BootError> {
    let cannot = |what| Err(BootError::Config(what));
    if !matches!(
        config.mappings.physical_memory,
        Some(Mapping::FixedAddress(DIRECT_MAP))
    ) {
        return cannot("a direct map elsewhere than at FixedAddress(0xffff_8880_0000_0000)");
    }
    if config.mappings.page_table_recursive.is_some() {
        return cannot("a recursive page table");
    }
    if !matches!(
        (config.mappings.boot_info, config.mappings.ramdisk_memory),
        (Mapping::Dynamic, Mapping::Dynamic)
    ) {
        return cannot("boot info or ramdisk at a fixed address");
    }
    let guard = match config.mappings.kernel_stack {
        Mapping::Dynamic => STACK_DEFAULT,
        Mapping::FixedAddress(at) if at >= IMAGE_END && at.is_multiple_of(PAGE) => at,
        Mapping::FixedAddress(_) => {
            return cannot("a stack below ffffffffc0000000 or off its page");
        }
    };
    let (bottom, len) = (
        guard + PAGE,
        config
            .kernel_stack_size
            .max(PAGE)
            .checked_next_multiple_of(PAGE),
    );
    match len {
        // The last page stays free: the stack's top must be an address.
        Some(len) if bottom.checked_add(len).is_some() => Ok((DIRECT_MAP, bottom, len)),
        _ => cannot("a stack that does not fit below the end of the address space"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bootloader_api::config::Mappings;

    /// A small kernel: two segments and the configuration section.
    fn kernel(change: impl FnOnce(&mut BootloaderConfig)) -> Vec<u8> {
        let mut config = BootloaderConfig::new_default();
        config.mappings.physical_memory = Some(Mapping::FixedAddress(DIRECT_MAP));
        config.kernel_stack_size = 9000;
        change(&mut config);
        let mut f = vec![0u8; 0x3000];
        let mut put = |at: usize, n: u64, len: usize| {
            f[at..at + len].copy_from_slice(&n.to_le_bytes()[..len])
        };
        put(0, 0x464c_457f, 4);
        put(4, 0x0001_0102, 4); // 64-bit, little endian, version 1
        for (at, n, len) in [
            (16, 2, 2),
            (18, 62, 2),
            (20, 1, 4),
            (24, IMAGE_START + 0x10, 8),
            (32, 64, 8),
        ] {
            put(at, n, len);
        }
        for (at, n) in [(52, 64), (54, 56), (56, 2), (58, 64), (60, 3), (62, 2)] {
            put(at, n, 2);
        }
        put(40, 0x2000, 8); // section headers
        for (i, (flags, offset, vaddr, filesz, memsz)) in [
            (5, 0x1000, IMAGE_START, 0x800, 0x800),
            (6, 0x1800, IMAGE_START + 0x1000, 0x100, 0x5000),
        ]
        .iter()
        .enumerate()
        {
            let at = 64 + 56 * i;
            for (field, n) in [
                (8, *offset),
                (16, *vaddr),
                (24, *vaddr),
                (32, *filesz),
                (40, *memsz),
                (48, 4096),
            ] {
                put(at + field, n, 8);
            }
            put(at, 1, 4);
            put(at + 4, *flags, 4);
        }
        // Section 1: the configuration; section 2: names.
        for (i, (name, kind, offset, len)) in [
            (1, 1, 0x2200, BootloaderConfig::SERIALIZED_LEN as u64),
            (20, 3, 0x2800, 32),
        ]
        .iter()
        .enumerate()
        {
            let at = 0x2000 + 64 * (i + 1);
            for (field, n, size) in [
                (0, *name, 4),
                (4, *kind, 4),
                (24, *offset, 8),
                (32, *len, 8),
            ] {
                put(at + field, n, size);
            }
        }
        let raw = config.serialize();
        f[0x2200..0x2200 + raw.len()].copy_from_slice(&raw);
        f[0x2801..0x2801 + 19].copy_from_slice(b".bootloader-config\0");
        f
    }

    fn error(file: &[u8]) -> BootError {
        Image::parse(file)
            .err()
            .expect("this kernel must be refused")
    }

    #[test]
    fn takes_a_good_kernel() {
        let file = kernel(|_| ());
        let image = Image::parse(&file).unwrap();
        assert_eq!(
            image.span(),
            Range {
                start: IMAGE_START,
                end: IMAGE_START + 0x6000
            }
        );
        assert_eq!(
            (image.stack_bottom, image.stack_len),
            (STACK_DEFAULT + PAGE, 3 * PAGE)
        );
        assert!(image.segments[0].execute && !image.segments[0].write && image.segments[1].write);
        assert_eq!(image.segments[1].bytes.len(), 0x100);
    }

    #[test]
    fn refuses_a_bad_one() {
        let good = kernel(|_| ());
        let with = |at: usize, n: u64, len: usize| {
            let mut f = good.clone();
            f[at..at + len].copy_from_slice(&n.to_le_bytes()[..len]);
            error(&f)
        };
        let says = |e: BootError, word: &str| assert!(e.to_string().contains(word), "{e}");
        says(error(b""), "not an ELF");
        says(with(18, 40, 2), "x86-64");
        says(with(16, 3, 2), "fixed address");
        says(with(24, IMAGE_START + 0x1010, 8), "entry point");
        says(with(68, 7, 4), "writable and executable");
        says(with(64 + 16, 0x10_0000, 8), "outside");
        says(with(64 + 40, 0x1001, 8), "share a page");
        says(with(64 + 40, u64::MAX, 8), "not an address");
        says(with(64 + 32, 0x801, 8), "longer in the file");
        says(with(64 + 8, u64::MAX, 8), "no range");
        says(with(64 + 8, 0x2fff, 8), "truncated");
        says(with(0x2200, 0, 8), "UUID");
        says(with(0x2801, 0, 1), ".bootloader-config");
    }

    #[test]
    fn refuses_settings_it_lacks() {
        let refused = |change: fn(&mut Mappings)| match error(&kernel(|c| change(&mut c.mappings)))
        {
            BootError::Config(_) => {}
            other => panic!("{other}"),
        };
        refused(|m| m.physical_memory = None);
        refused(|m| m.physical_memory = Some(Mapping::FixedAddress(0xffff_8000_0000_0000)));
        refused(|m| m.page_table_recursive = Some(Mapping::Dynamic));
        refused(|m| m.boot_info = Mapping::FixedAddress(0xffff_9000_0000_0000));
        refused(|m| m.kernel_stack = Mapping::FixedAddress(0xffff_ffff_8000_0000));
        assert!(matches!(
            error(&kernel(|c| c.kernel_stack_size = 1 << 40)),
            BootError::Config(_)
        ));
        assert!(matches!(
            error(&kernel(|c| c.kernel_stack_size = u64::MAX)),
            BootError::Config(_)
        ));
    }

    #[test]
    fn every_cut_and_wrong_byte_is_survived() {
        let good = kernel(|_| ());
        for len in (0..good.len()).step_by(7) {
            let _ = Image::parse(&good[..len]);
        }
        let used = (0..256).chain(0x2000..0x2300).chain(0x2800..0x2820);
        for at in used {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut f = good.clone();
                f[at] = value;
                let _ = Image::parse(&f);
            }
        }
    }
}
