//! /proc/sys: what can be asked, and a little that can be set.

use super::system::{OS_RELEASE, VERSION};
use super::{Body, Entry, ProcNode};
use vfs::{Text, VfsError};

const fn dir(name: &'static str, entries: &'static [Entry]) -> Entry {
    Entry {
        name,
        body: Body::Dir(entries),
    }
}

const fn file(name: &'static str, read: fn(&ProcNode, &mut Text<'_>)) -> Entry {
    Entry {
        name,
        body: Body::File(read),
    }
}

fn line(text: &mut Text<'_>, value: u64) {
    text.dec(value).str("\n");
}

/// The directory's contents.
pub static SYS: &[Entry] = &[dir("fs", FS), dir("kernel", KERNEL), dir("vm", VM)];

static KERNEL: &[Entry] = &[
    file("cap_last_cap", |_, text| line(text, 40)),
    file("hostname", |_, text| _ = text.str("tine\n")),
    file("domainname", |_, text| _ = text.str("(none)\n")),
    file("ngroups_max", |_, text| line(text, 65536)),
    file("osrelease", |_, text| _ = text.str(OS_RELEASE).str("\n")),
    file("ostype", |_, text| _ = text.str("Linux\n")),
    file("overflowgid", |_, text| line(text, 65534)),
    file("overflowuid", |_, text| line(text, 65534)),
    Entry {
        name: "pid_max",
        body: Body::Writable(
            |node, text| line(text, node.ns.pid_max() as u64),
            set_pid_max,
        ),
    },
    dir("random", RANDOM),
    file("threads-max", |node, text| {
        line(text, node.ns.pid_max() as u64)
    }),
    file("version", |_, text| _ = text.str(VERSION).str("\n")),
];

static RANDOM: &[Entry] = &[
    file("boot_id", |_, text| {
        static BOOT_ID: spin::Once<[u8; 16]> = spin::Once::new();
        uuid(BOOT_ID.call_once(random_bytes), text);
    }),
    file("entropy_avail", |_, text| line(text, 256)),
    file("poolsize", |_, text| line(text, 256)),
    file("uuid", |_, text| uuid(&random_bytes(), text)),
];

static VM: &[Entry] = &[
    file("max_map_count", |_, text| {
        line(text, mm::MAX_MAP_COUNT as u64)
    }),
    file("mmap_min_addr", |_, text| {
        line(text, mm::MMAP_MIN_ADDR as u64)
    }),
    file("overcommit_memory", |_, text| line(text, 1)),
];

static FS: &[Entry] = &[
    file("file-max", |_, text| line(text, i64::MAX as u64)),
    file("nr_open", |_, text| line(text, vfs::NR_OPEN_MAX as u64)),
    file("pipe-max-size", |_, text| {
        line(text, vfs::PIPE_CAPACITY as u64)
    }),
];

fn random_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    crate::random::fill(&mut bytes);
    bytes
}

/// A random UUID (version 4).
fn uuid(bytes: &[u8; 16], text: &mut Text<'_>) {
    let mut bytes = *bytes;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    for (i, &byte) in bytes.iter().enumerate() {
        text.str(if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" });
        text.hex(byte as u64, 2);
    }
    text.str("\n");
}

/// A decimal number, alone but for white space.
fn number(bytes: &[u8]) -> Result<u32, VfsError> {
    let text = core::str::from_utf8(bytes).map_err(|_| VfsError::EINVAL)?;
    text.trim().parse().map_err(|_| VfsError::EINVAL)
}

fn set_pid_max(node: &ProcNode, bytes: &[u8]) -> Result<(), VfsError> {
    let max = number(bytes)?;
    node.ns.set_pid_max(max).map_err(|_| VfsError::EINVAL)
}
