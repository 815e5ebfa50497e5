//! Archives: good ones, hostile ones, and good ones with bytes changed.

use super::*;
use proptest::prelude::*;

/// An entry of a newc archive.
#[derive(Clone)]
pub(crate) struct Entry<'a> {
    pub ino: u32,
    pub mode: u32,
    pub nlink: u32,
    pub rdev: (u32, u32),
    pub name: &'a [u8],
    pub data: &'a [u8],
}

impl<'a> Entry<'a> {
    pub fn new(mode: u32, name: &'a [u8], data: &'a [u8]) -> Self {
        Entry {
            ino: 1,
            mode,
            nlink: 1,
            rdev: (0, 0),
            name,
            data,
        }
    }
}

fn append(out: &mut Vec<u8>, e: &Entry<'_>) {
    use std::io::Write;
    out.extend(b"070701");
    let fields = [
        e.ino,
        e.mode,
        0,
        0,
        e.nlink,
        1234,
        e.data.len() as u32,
        0,
        0,
        e.rdev.0,
        e.rdev.1,
        e.name.len() as u32 + 1,
        0,
    ];
    for field in fields {
        write!(out, "{field:08X}").unwrap();
    }
    out.extend(e.name);
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(e.data);
    out.resize(out.len().next_multiple_of(4), 0);
}

pub(crate) fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for e in entries {
        append(&mut out, e);
    }
    append(&mut out, &Entry::new(0, b"TRAILER!!!", b""));
    out
}

pub(crate) fn one_file(name: &[u8], data: &[u8]) -> &'static [u8] {
    archive(&[Entry::new(S_IFREG | 0o644, name, data)]).leak()
}

fn read_all(m: &Machine, path: &[u8]) -> Vec<u8> {
    let file = m.open(path, OpenFlags::empty()).unwrap();
    let mut buf = std::vec![0; file.stat().size as usize];
    assert_eq!(file.read(&mut &mut buf[..]), Ok(buf.len()));
    buf
}

fn sample() -> Vec<u8> {
    let second = Entry {
        ino: 7,
        nlink: 2,
        ..Entry::new(S_IFREG | 0o755, b"bin/two", b"two names")
    };
    let tty = Entry {
        rdev: (5, 0),
        ..Entry::new(S_IFCHR | 0o620, b"dev/tty", b"")
    };
    archive(&[
        Entry::new(S_IFDIR | 0o700, b".", b""),
        Entry::new(S_IFDIR | 0o755, b"bin", b""),
        Entry::new(S_IFREG | 0o4755, b"bin/sh", &[7; 5000]),
        Entry::new(S_IFLNK | 0o777, b"sbin", b"bin"),
        Entry {
            data: b"",
            name: b"bin/one",
            ..second.clone()
        },
        second,
        Entry::new(S_IFREG | 0o600, b"deep/er/file", b"no parents"),
        tty,
        Entry::new(S_IFIFO | 0o600, b"/fifo", b""),
        Entry::new(S_IFREG | 0o644, b"sbin/last", b"through a link"),
    ])
}

#[test]
fn everything_gets_its_place() {
    let m = Machine::new();
    let mut twice = sample();
    twice.extend([0; 100]);
    twice.extend(archive(&[Entry::new(
        S_IFREG | 0o644,
        b"deep/er/file",
        b"replaced",
    )]));
    let done = unpack_initramfs(&m.root(), twice.leak()).unwrap();
    assert_eq!(
        (done.dirs, done.files, done.symlinks, done.nodes),
        (2, 6, 1, 2)
    );
    assert_eq!(read_all(&m, b"/sbin/sh"), [7; 5000]);
    assert_eq!(read_all(&m, b"/bin/one"), b"two names");
    assert_eq!(read_all(&m, b"/bin/last"), b"through a link");
    assert_eq!(read_all(&m, b"/deep/er/file"), b"replaced");
    let at = m.at();
    let attributes = |p: &[u8]| stat(at, p, false).unwrap();
    assert_eq!(attributes(b"/").mode, S_IFDIR | 0o700);
    assert_eq!(attributes(b"/bin/sh").mode, S_IFREG | 0o4755);
    assert_eq!(attributes(b"/bin/sh").mtime.sec(), 1234);
    assert_eq!(attributes(b"/bin/one").ino, attributes(b"/bin/two").ino);
    assert_eq!(attributes(b"/bin/one").nlink, 2);
    assert_eq!(attributes(b"/dev/tty").rdev, DevId::new(5, 0));
    assert_eq!(attributes(b"/fifo").mode & S_IFMT, S_IFIFO);
    populate_dev(&m.root()).unwrap();
    assert_eq!(attributes(b"/dev/tty").mode, S_IFCHR | 0o620);
    assert_eq!(attributes(b"/dev/null").mode, S_IFCHR | 0o666);
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in [
        &b"../x"[..],
        b"a/../../x",
        b"..",
        b"",
        b"/",
        b"a/..",
        b"x\0y",
    ] {
        let m = Machine::new();
        let bytes = archive(&[Entry::new(S_IFREG | 0o644, name, b"x")]).leak();
        let result = unpack_initramfs(&m.root(), bytes);
        assert_eq!(
            result,
            Err(InitramfsError::BadName { offset: 110 }),
            "{name:?}"
        );
        assert!(children(&m.root()).is_empty());
    }
}

#[test]
fn what_cannot_be_made_is_reported() {
    let m = Machine::new();
    let twice = |a: u32, b: u32| {
        archive(&[
            Entry::new(a | 0o644, b"x", b"y"),
            Entry::new(b | 0o644, b"x", b"y"),
        ])
        .leak()
    };
    let failed = |error| Err(InitramfsError::Failed { offset: 226, error });
    assert_eq!(
        unpack_initramfs(&m.root(), twice(S_IFDIR, S_IFREG)),
        failed(VfsError::EISDIR)
    );
    rmdir(m.at(), b"x").unwrap();
    assert_eq!(
        unpack_initramfs(&m.root(), twice(S_IFREG, S_IFDIR)),
        failed(VfsError::ENOTDIR)
    );
    let long = std::vec![b'n'; 300];
    let bytes = archive(&[Entry::new(S_IFREG, &long, b"")]).leak();
    let error = VfsError::ENAMETOOLONG;
    assert_eq!(
        unpack_initramfs(&m.root(), bytes),
        Err(InitramfsError::Failed { offset: 110, error })
    );
}

#[test]
fn every_cut_is_noticed() {
    let whole = sample().leak();
    // Up to the end of the trailer's name; padding behind it may be missing.
    for len in 1..whole.len() - 3 {
        let m = Machine::new();
        let result = unpack_initramfs(&m.root(), &whole[..len]);
        assert!(
            matches!(result, Err(InitramfsError::Malformed { offset }) if offset <= len),
            "{len}"
        );
    }
    let m = Machine::new();
    assert_eq!(unpack_initramfs(&m.root(), b"").map(|u| u.files), Ok(0));
    assert_eq!(
        unpack_initramfs(&m.root(), &[0; 512]).map(|u| u.files),
        Ok(0)
    );
    let gzip = unpack_initramfs(&m.root(), b"\x1f\x8b\x08 not cpio");
    assert_eq!(gzip, Err(InitramfsError::Malformed { offset: 0 }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
                                 digits in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(&b"0123456789ABCDEFf+-"[..])), 0..6)) {
        let m = Machine::new();
        let mut bytes = sample();
        for (at, byte) in changes.iter().chain(&digits) {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        let _ = unpack_initramfs(&m.root(), bytes.leak());
        check_tree(&m.root());
        // Nothing is above the root, whatever the archive said.
        let mut buf = [0; 64];
        chdir(m.at(), b"..").unwrap();
        prop_assert_eq!(getcwd(&m.fs, &mut buf), Ok(&b"/"[..]));
    }
}
