//! PVH: the `hvm_start_info` structure of Xen, QEMU's `-kernel` and Firecracker.
//!
//! ```text
//! 0 magic  4 version  8 flags  12 nr_modules  16 modlist  24 cmdline  32 rsdp  40 memmap (version 1)  48 entries
//! module: 0 address  8 size  16 cmdline  24 reserved        memmap entry: 0 address  8 size  16 type  20 reserved
//! ```

use crate::{
    error::BootError,
    info::{LoaderInfo, Memory, Rsdp, c_string, u32_at, u64_at},
};
use bundle::Loader;

const MAGIC: u32 = 0x336e_c578;
const MODULE_LEN: usize = 32;
const MEMMAP_LEN: usize = 24;

/// Reads the structure at `at`.
pub fn parse<'a>(memory: &Memory<'a>, at: u64) -> Result<LoaderInfo<'a>, BootError> {
    const WHAT: &str = "PVH start info";
    let head = memory(at, 8).ok_or(BootError::UnknownLoader(0))?;
    if u32_at(head, 0, WHAT)? != MAGIC {
        return Err(BootError::UnknownLoader(u32_at(head, 0, WHAT)?));
    }
    if u32_at(head, 4, WHAT)? == 0 {
        return Err(BootError::OldPvh);
    }
    let start = memory(at, 56).ok_or(BootError::BadStructure(WHAT))?;
    let mut info = LoaderInfo::new(Loader::Pvh);
    info.cmdline = c_string(memory, u64_at(start, 24, WHAT)?, "command line")?;
    info.rsdp = match u64_at(start, 32, WHAT)? {
        0 => Rsdp::Unknown,
        addr => Rsdp::At(addr),
    };

    const MODULES: &str = "module list";
    for module in table(
        memory,
        u64_at(start, 16, WHAT)?,
        u32_at(start, 12, WHAT)?,
        MODULE_LEN,
        MODULES,
    )? {
        info.push_module(u64_at(module, 0, MODULES)?, u64_at(module, 8, MODULES)?)?;
    }
    const MAP: &str = "memory map";
    for entry in table(
        memory,
        u64_at(start, 40, WHAT)?,
        u32_at(start, 48, WHAT)?,
        MEMMAP_LEN,
        MAP,
    )? {
        info.push_region(
            u64_at(entry, 0, MAP)?,
            u64_at(entry, 8, MAP)?,
            u32_at(entry, 16, MAP)?,
        )?;
    }
    Ok(info)
}

/// The `count` entries of `size` bytes at `at`.
fn table<'a>(
    memory: &Memory<'a>,
    at: u64,
    count: u32,
    size: usize,
    what: &'static str,
) -> Result<core::slice::ChunksExact<'a, u8>, BootError> {
    if count == 0 {
        return Ok([].chunks_exact(size));
    }
    let bytes = memory(at, u64::from(count) * size as u64).ok_or(BootError::BadStructure(what))?;
    Ok(bytes.chunks_exact(size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::info::{Range, Region};

    /// A machine whose memory at `BASE` holds `bytes`.
    const BASE: u64 = 0x1000;

    fn machine() -> Vec<u8> {
        let mut m = vec![0u8; 512];
        let put = |m: &mut Vec<u8>, at: usize, n: u64, len: usize| {
            m[at..at + len].copy_from_slice(&n.to_le_bytes()[..len])
        };
        for (at, n, len) in [
            (0, u64::from(MAGIC), 4),
            (4, 1, 4),
            (12, 1, 4),
            (16, BASE + 64, 8),
            (24, BASE + 400, 8),
        ] {
            put(&mut m, at, n, len);
        }
        for (at, n, len) in [
            (32, 0xf5000, 8),
            (40, BASE + 128, 8),
            (48, 2, 4),
            (64, 0x20_0000, 8),
            (72, 0x5000, 8),
        ] {
            put(&mut m, at, n, len);
        }
        for (at, n) in [
            (128, 0),
            (136, 0x9_fc00),
            (144, 1),
            (152, 0xf_0000),
            (160, 0x1_0000),
            (168, 2),
        ] {
            put(&mut m, at, n, 8);
        }
        m[400..411].copy_from_slice(b"bench=fork\0");
        m
    }

    fn parse_at(m: &[u8], at: u64) -> Result<LoaderInfo<'_>, BootError> {
        let reader = move |addr: u64, len: u64| {
            let start = usize::try_from(addr.checked_sub(BASE)?).ok()?;
            m.get(start..start.checked_add(len as usize)?)
        };
        parse(&reader, at)
    }

    #[test]
    fn reads_what_qemu_passes() {
        let m = machine();
        let info = parse_at(&m, BASE).unwrap();
        assert_eq!(info.cmdline, b"bench=fork");
        assert_eq!(info.rsdp, Rsdp::At(0xf5000));
        assert_eq!(
            info.modules[..],
            [Range {
                start: 0x20_0000,
                end: 0x20_5000
            }]
        );
        let expected = [
            Region {
                range: Range {
                    start: 0,
                    end: 0x9_fc00,
                },
                kind: 1,
            },
            Region {
                range: Range {
                    start: 0xf_0000,
                    end: 0x10_0000,
                },
                kind: 2,
            },
        ];
        assert_eq!(info.memory[..], expected);
    }

    #[test]
    fn says_what_is_wrong() {
        let m = machine();
        assert_eq!(parse_at(&m, 0).err(), Some(BootError::UnknownLoader(0)));
        assert_eq!(
            parse_at(&m, BASE + 4).err(),
            Some(BootError::UnknownLoader(1))
        );
        assert_eq!(
            parse_at(&m[..40], BASE).err(),
            Some(BootError::BadStructure("PVH start info"))
        );
        assert_eq!(
            parse_at(&m[..408], BASE).err(),
            Some(BootError::BadStructure("command line"))
        );
        for (at, what) in [(12, "module list"), (48, "memory map")] {
            let mut bad = m.clone();
            bad[at..at + 4].fill(0xff);
            assert_eq!(
                parse_at(&bad, BASE).err(),
                Some(BootError::BadStructure(what))
            );
        }
        let mut old = m.clone();
        old[4] = 0;
        assert_eq!(parse_at(&old, BASE).err(), Some(BootError::OldPvh));
    }
}
