//! Multiboot2: the list of tags that GRUB leaves.
//!
//! ```text
//! 0 total size  4 reserved  8 tags: 0 type  4 size  8 payload, each on 8 bytes, ended by type 0
//! ```

use crate::{
    error::BootError,
    info::{LoaderInfo, Memory, Rsdp, u32_at, u64_at},
};
use arrayvec::ArrayVec;
use bundle::Loader;

/// What a multiboot2 loader leaves in eax.
pub const MAGIC: u32 = 0x36d7_6289;

const WHAT: &str = "multiboot2 information";
const TAG_CMDLINE: u32 = 1;
const TAG_MODULE: u32 = 3;
const TAG_MEMORY_MAP: u32 = 6;
const TAG_RSDP_OLD: u32 = 14;
const TAG_RSDP_NEW: u32 = 15;

/// Reads the tags at `at`.
pub fn parse<'a>(memory: &Memory<'a>, at: u64) -> Result<LoaderInfo<'a>, BootError> {
    let bad = BootError::BadStructure(WHAT);
    let total = u32_at(memory(at, 8).ok_or(bad)?, 0, WHAT)?;
    let tags = memory(at, u64::from(total)).ok_or(bad)?;
    let mut info = LoaderInfo::new(Loader::Multiboot2);
    let mut offset = 8;
    while offset < tags.len() {
        let (kind, size) = (
            u32_at(tags, offset, WHAT)?,
            u32_at(tags, offset + 4, WHAT)? as usize,
        );
        if kind == 0 {
            break;
        }
        let end = offset.checked_add(size).ok_or(bad)?;
        let payload = tags.get(offset + 8..end).ok_or(bad)?;
        tag(&mut info, kind, payload)?;
        offset = end.next_multiple_of(8);
    }
    Ok(info)
}

fn tag<'a>(info: &mut LoaderInfo<'a>, kind: u32, payload: &'a [u8]) -> Result<(), BootError> {
    match kind {
        TAG_CMDLINE => info.cmdline = payload.split(|b| *b == 0).next().unwrap_or(&[]),
        TAG_MODULE => {
            let (start, end) = (u32_at(payload, 0, WHAT)?, u32_at(payload, 4, WHAT)?);
            info.push_module(u64::from(start), u64::from(end.saturating_sub(start)))?;
        }
        TAG_MEMORY_MAP => {
            let entry_len = u32_at(payload, 0, WHAT)? as usize;
            if entry_len < 24 {
                return Err(BootError::BadStructure("memory map"));
            }
            for entry in payload.get(8..).unwrap_or(&[]).chunks_exact(entry_len) {
                info.push_region(
                    u64_at(entry, 0, WHAT)?,
                    u64_at(entry, 8, WHAT)?,
                    u32_at(entry, 16, WHAT)?,
                )?;
            }
        }
        // The new one (XSDT) wins over the old one (RSDT), in whatever order they come.
        TAG_RSDP_OLD if info.rsdp != Rsdp::Unknown => {}
        TAG_RSDP_OLD | TAG_RSDP_NEW => {
            let copy =
                ArrayVec::try_from(payload).map_err(|_| BootError::BadStructure("RSDP copy"))?;
            info.rsdp = Rsdp::Copied(copy);
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::info::Range;

    fn push(out: &mut Vec<u8>, kind: u32, payload: &[u8]) {
        out.extend(kind.to_le_bytes());
        out.extend((payload.len() as u32 + 8).to_le_bytes());
        out.extend(payload);
        out.resize(out.len().next_multiple_of(8), 0);
    }

    fn sample() -> Vec<u8> {
        let mut out = vec![0; 8];
        push(&mut out, 1, b"ops=5\0");
        push(&mut out, 15, b"RSD PTR new");
        push(&mut out, 14, b"RSD PTR old");
        push(&mut out, 3, &[0, 0, 0x20, 0, 0, 0x50, 0x20, 0, b'k', 0]);
        let mut map = vec![24, 0, 0, 0, 0, 0, 0, 0];
        for n in [0x10_0000u64, 0x70_0000, 1] {
            map.extend(n.to_le_bytes());
        }
        push(&mut out, 6, &map);
        push(&mut out, 99, b"what is this");
        push(&mut out, 0, b"");
        let len = out.len() as u32;
        out[..4].copy_from_slice(&len.to_le_bytes());
        out
    }

    fn parse_bytes(m: &[u8]) -> Result<LoaderInfo<'_>, BootError> {
        let reader = move |addr: u64, len: u64| {
            m.get(addr as usize..(addr as usize).checked_add(len as usize)?)
        };
        parse(&reader, 0)
    }

    #[test]
    fn reads_what_grub_passes() {
        let m = sample();
        let info = parse_bytes(&m).unwrap();
        assert_eq!(info.cmdline, b"ops=5");
        assert_eq!(
            info.modules[..],
            [Range {
                start: 0x20_0000,
                end: 0x20_5000
            }]
        );
        assert_eq!(
            info.memory[0].range,
            Range {
                start: 0x10_0000,
                end: 0x80_0000
            }
        );
        let Rsdp::Copied(copy) = info.rsdp else {
            panic!("the RSDP was not copied")
        };
        assert_eq!(&copy[..], b"RSD PTR new");
    }

    #[test]
    fn every_cut_and_every_wrong_byte_is_survived() {
        let m = sample();
        for len in 0..m.len() {
            let mut cut = m[..len].to_vec();
            if len >= 4 {
                cut[..4].copy_from_slice(&(len as u32).to_le_bytes());
            }
            let _ = parse_bytes(&cut);
        }
        for at in 0..m.len() {
            for value in [0, 1, 7, 0x7f, 0xff] {
                let mut bad = m.clone();
                bad[at] = value;
                let _ = parse_bytes(&bad);
            }
        }
    }
}
