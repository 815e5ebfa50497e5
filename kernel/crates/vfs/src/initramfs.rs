//! The initramfs: a cpio archive (newc) becomes the first file system.
//!
//! Mechanism: `cpio_reader` splits the archive; this file gives each entry its place. Regular files
//! are not copied: their pages are filled from the archive's bytes when first needed. The reader
//! ends silently at the first thing it does not understand, so the position after the last entry
//! is computed here, and anything there but the trailer is an error that says where.
//!
//! Names are taken relative to the root. ".." in a name is refused, not resolved. A parent that the
//! archive does not mention is made. A later entry replaces an earlier one of the same name.

use crate::VfsError;
use crate::dentry::Dentry;
use crate::flags::*;
use crate::fs_struct::FsStruct;
use crate::inode::{Inode, InodeKind};
use crate::namei::{At, lookup};
use crate::ops;
use crate::regular::Regular;
use crate::stat::Timespec;
use crate::tree::{Naming, insert, prepare, unlink};
use core::fmt;
use slab::KArc;

extern crate alloc;
use alloc::vec::Vec;

/// Why an archive was not unpacked to its end. What came before it stays.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum InitramfsError {
    /// At this offset there is neither an entry nor the trailer.
    Malformed {
        /// Bytes from the archive's start.
        offset: usize,
    },
    /// The entry at this offset has a name that leads out of the tree, or none.
    BadName {
        /// Bytes from the archive's start to the name.
        offset: usize,
    },
    /// The entry at this offset could not be made.
    Failed {
        /// Bytes from the archive's start to the name.
        offset: usize,
        /// Why not.
        error: VfsError,
    },
}

impl fmt::Display for InitramfsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { offset } => {
                write!(
                    f,
                    "initramfs: no cpio entry (newc) and no trailer at byte {offset}"
                )
            }
            Self::BadName { offset } => {
                write!(
                    f,
                    "initramfs: the name at byte {offset} is empty or leads out of the tree"
                )
            }
            Self::Failed { offset, error } => {
                write!(
                    f,
                    "initramfs: the entry whose name is at byte {offset}: {error}"
                )
            }
        }
    }
}

impl core::error::Error for InitramfsError {}

/// What was unpacked.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Directories.
    pub dirs: usize,
    /// Regular files, further names of one file included.
    pub files: usize,
    /// Symbolic links.
    pub symlinks: usize,
    /// Devices, FIFOs, sockets.
    pub nodes: usize,
    /// Bytes of regular files.
    pub bytes: u64,
}

const MAGIC: &[u8] = b"070701";
const MAGIC_CRC: &[u8] = b"070702";
const TRAILER: &[u8] = b"TRAILER!!!\0";
const HEADER: usize = 110;

/// Unpacks `archive` below `root`. Several archives may follow each other, with zeroes between
/// them. Boot; allocates; may sleep.
pub fn unpack(root: &KArc<Dentry>, archive: &'static [u8]) -> Result<Unpacked, InitramfsError> {
    let fs = FsStruct::new(root).map_err(|error| InitramfsError::Failed { offset: 0, error })?;
    fs.set_umask(0);
    let mut unpacker = Unpacker {
        fs,
        archive,
        done: Unpacked::default(),
        inodes: Vec::new(),
    };
    let mut at = 0;
    while let Some(next) = next_archive(archive, at) {
        at = unpacker.one_archive(next)?;
    }
    Ok(unpacker.done)
}

/// Skips the zeroes between archives; `None` at the end.
fn next_archive(bytes: &[u8], at: usize) -> Option<usize> {
    bytes
        .get(at..)?
        .iter()
        .position(|&b| b != 0)
        .map(|i| at + i)
}

struct Unpacker {
    fs: KArc<FsStruct>,
    archive: &'static [u8],
    done: Unpacked,
    /// Files with several names in this archive: (major, minor, ino), and the file.
    inodes: Vec<((u32, u32, u32), KArc<Inode>)>,
}

type Entry = cpio_reader::Entry<'static>;

impl Unpacker {
    /// Unpacks the archive at `start` and returns the offset behind its trailer.
    fn one_archive(&mut self, start: usize) -> Result<usize, InitramfsError> {
        self.inodes.clear();
        let mut at = start;
        // The reader knows older formats too, and takes them for an entry: only newc is read here.
        while self.is_entry(at) {
            let bytes = &self.archive[at..];
            let Some(entry) = cpio_reader::iter_files(bytes).next() else {
                break;
            };
            let offset = at + HEADER;
            self.entry(&entry, offset)?;
            let data = (HEADER + entry.name().len() + 1).next_multiple_of(4);
            at = (at + data + entry.file().len())
                .next_multiple_of(4)
                .min(self.archive.len());
        }
        let name = self.archive.get(at + HEADER..at + HEADER + TRAILER.len());
        if self.is_entry(at) && name == Some(TRAILER) {
            return Ok((at + HEADER + TRAILER.len()).next_multiple_of(4));
        }
        Err(InitramfsError::Malformed { offset: at })
    }

    /// Whether a newc header starts at `at`.
    fn is_entry(&self, at: usize) -> bool {
        let magic = self.archive.get(at..at.saturating_add(MAGIC.len()));
        magic == Some(MAGIC) || magic == Some(MAGIC_CRC)
    }

    fn entry(&mut self, entry: &Entry, offset: usize) -> Result<(), InitramfsError> {
        let name = entry.name().as_bytes();
        let path = name
            .iter()
            .position(|&b| b != b'/')
            .map_or(&name[..0], |i| &name[i..]);
        if path.is_empty() || path.contains(&0) || path.split(|&b| b == b'/').any(|c| c == b"..") {
            return Err(InitramfsError::BadName { offset });
        }
        self.place(entry, path)
            .map_err(|error| InitramfsError::Failed { offset, error })
    }

    /// Makes what the entry describes at `path`.
    fn place(&mut self, entry: &Entry, path: &[u8]) -> Result<(), VfsError> {
        let fs = self.fs.clone();
        let at = At::cwd(&fs);
        let mode = entry.mode().bits();
        make_parents(at, path)?;
        match mode & S_IFMT {
            S_IFDIR => {
                match ops::mkdir(at, path, mode) {
                    Err(VfsError::EEXIST) => {}
                    r => r?,
                }
                lookup(at, path, true)?.inode().as_dir()?;
                self.done.dirs += 1;
            }
            S_IFREG => {
                self.regular(entry, path)?;
                self.done.files += 1;
                self.done.bytes += entry.file().len() as u64;
            }
            S_IFLNK => {
                clear(at, path)?;
                ops::symlink(entry.file(), at, path)?;
                self.done.symlinks += 1;
            }
            _ => {
                clear(at, path)?;
                let number = |n: Option<u32>| n.unwrap_or(0);
                let dev = DevId::new(number(entry.rdevmajor()), number(entry.rdevminor()));
                ops::mknod(at, path, mode, dev)?;
                self.done.nodes += 1;
            }
        }
        stamp(at, path, entry)
    }

    /// A regular file, or another name of one: newc gives the bytes with one of the names only.
    fn regular(&mut self, entry: &Entry, path: &[u8]) -> Result<(), VfsError> {
        let fs = self.fs.clone();
        let at = At::cwd(&fs);
        let number = |n: Option<u32>| n.unwrap_or(0);
        let key = (
            number(entry.devmajor()),
            number(entry.devminor()),
            entry.ino(),
        );
        let known = self
            .inodes
            .iter()
            .position(|(k, _)| *k == key && entry.nlink() > 1);
        clear(at, path)?;
        if let Some(i) = known {
            if !entry.file().is_empty() {
                self.refill(i, at, entry)?;
            }
            let inode = self.inodes[i].1.clone();
            return insert(
                &prepare(at, path, false, |_| Ok(inode.clone()))?,
                Naming::Another,
            );
        }
        let bytes = entry.file();
        let fresh = prepare(at, path, false, |name| {
            Inode::new(
                InodeKind::Regular(Regular::new(bytes, name)?),
                entry.mode().bits(),
            )
        })?;
        insert(&fresh, Naming::First)?;
        if entry.nlink() > 1 {
            self.inodes.try_reserve(1).map_err(|_| VfsError::ENOMEM)?;
            self.inodes.push((key, fresh.dentry.inode().clone()));
        }
        Ok(())
    }

    /// The bytes of a file that was made without them.
    fn refill(&mut self, i: usize, _at: At<'_>, entry: &Entry) -> Result<(), VfsError> {
        let inode = &self.inodes[i].1;
        let regular = inode.as_regular().ok_or(VfsError::EINVAL)?;
        regular.truncate(0)?;
        regular.write_at(Some(0), &mut entry.file())?;
        Ok(())
    }
}

/// Makes the directories above the last component that are missing.
fn make_parents(at: At<'_>, path: &[u8]) -> Result<(), VfsError> {
    for (i, _) in path.iter().enumerate().filter(|&(_, &b)| b == b'/') {
        match ops::mkdir(at, &path[..i], 0o755) {
            Ok(()) | Err(VfsError::EEXIST) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Frees the name for an entry that is no directory.
fn clear(at: At<'_>, path: &[u8]) -> Result<(), VfsError> {
    match unlink(at, path) {
        Err(VfsError::ENOENT) => Ok(()),
        r => r,
    }
}

/// Permission bits, owner and time, as the archive has them.
fn stamp(at: At<'_>, path: &[u8], entry: &Entry) -> Result<(), VfsError> {
    let dentry = lookup(at, path, false)?;
    let inode = dentry.inode();
    inode.chown(Some(entry.uid()), Some(entry.gid()));
    inode.chmod(entry.mode().bits());
    let time = Timespec {
        ns: entry.mtime().saturating_mul(1_000_000_000),
    };
    inode.set_times(Some(time), Some(time));
    Ok(())
}
