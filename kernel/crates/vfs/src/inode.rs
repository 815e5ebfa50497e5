//! Inodes: what a name stands for.
//!
//! Mechanism: one object with the attributes every file has, and a closed enum with what its kind
//! needs. Attributes are atomics: `stat` reads them without a lock, and may see two changes half
//! done, as on Linux. A kind of file is a variant of [`InodeKind`], so that a look-up stays a `match`; only synthetic
//! files (procfs) are reached through a table.
//!
//! Lock order: a regular file's `sem` (sleeps; user memory may fault under it), then the mapping's
//! own locks. A directory's `state` spins: see `tree`.
//!
//! Invariants:
//! INV-INODE-1: the type bits of `mode` never change and agree with `kind`.
//! INV-INODE-2: `nlink` is the number of dentries in the tree that point here, plus for a
//!   directory one for itself and one per subdirectory.
//! INV-INODE-3: `write_count` is the number of executions, and times 2^32 the number of writers. At most one of the two is
//!   not 0, but for those who have just added themselves, found the other, and are about to leave.

use crate::VfsError;
use crate::dentry::Dentry;
use crate::flags::*;
use crate::hooks::now;
use crate::pipe::{FifoHub, Pipe};
use crate::regular::Regular;
use crate::stat::{Kstat, Timespec};
use crate::synth::SynthHandle;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use ksync::{LockClass, SpinLock};
use slab::KArc;
use xarray::XArray;

extern crate alloc;
use alloc::vec::Vec;

pub(crate) static DIR_CLASS: LockClass = LockClass::new("dir_lock");

/// The device number of the ram file system.
pub const RAMFS_DEV: DevId = DevId::new(0, 1);
/// That of pipes.
pub(crate) const PIPE_DEV: DevId = DevId::new(0, 2);
/// One writer in `write_count`.
const WRITER: u64 = 1 << 32;
/// One execution there.
const DENIAL: u64 = 1;
/// That of synthetic files.
const PROC_DEV: DevId = DevId::new(0, 4);

/// A file, whatever its names.
pub struct Inode {
    /// What its kind needs.
    pub kind: InodeKind,
    ino: u64,
    /// INV-INODE-1.
    mode: AtomicU32,
    nlink: AtomicU32,
    uid: AtomicU32,
    gid: AtomicU32,
    /// INV-INODE-3.
    write_count: AtomicU64,
    atime: AtomicU64,
    mtime: AtomicU64,
    ctime: AtomicU64,
    btime: u64,
}
slab::object!(Inode, "inode_cache", links = 0);

/// The kinds of file.
pub enum InodeKind {
    /// A directory.
    Dir(Dir),
    /// Bytes in a page cache.
    Regular(Regular),
    /// Another path.
    Symlink(Target),
    /// A character device.
    CharDev(DevId),
    /// A block device: only a node, it cannot be opened.
    BlockDev(DevId),
    /// A named pipe.
    Fifo(FifoHub),
    /// A socket's name: it cannot be opened.
    Socket,
    /// A pipe that /proc/PID/fd leads to.
    Pipe(KArc<Pipe>),
    /// Made when looked at; of any type (see `mode`).
    Synth(SynthHandle),
}

/// Where a symbolic link points.
pub struct Target(Vec<u8>);

impl Target {
    /// Copies the path. ENOMEM.
    pub(crate) fn new(path: &[u8]) -> Result<Self, VfsError> {
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(path.len())
            .map_err(|_| VfsError::ENOMEM)?;
        bytes.extend_from_slice(path);
        Ok(Target(bytes))
    }

    /// The path.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A directory's own part. Names are found through the dentry hash; this is the listing's order.
pub struct Dir {
    pub(crate) state: SpinLock<DirState>,
}

/// INV-DIR-1: `entries` holds exactly the dentries in the tree whose parent is this directory, each
/// at its cookie; cookies below `next_cookie` are used or will never be used again.
/// INV-DIR-2: once `dead`, there are no entries and will be none.
pub(crate) struct DirState {
    pub entries: XArray<DentryPtr>,
    pub nr_entries: usize,
    pub next_cookie: u64,
    /// Removed from the tree.
    pub dead: bool,
}

/// Listing positions 0 and 1 are "." and "..".
pub(crate) const FIRST_COOKIE: u64 = 2;

/// A dentry of the tree, whose reference the tree owns.
#[derive(Copy, Clone)]
pub(crate) struct DentryPtr(pub NonNull<Dentry>);

// SAFETY: a pointer; Dentry is Send and Sync, and its use is argued where it is followed.
unsafe impl Send for DentryPtr {}
// SAFETY: as above.
unsafe impl Sync for DentryPtr {}
// SAFETY: a cast there and back; a Dentry is aligned to 8.
unsafe impl xarray::Entry for DentryPtr {
    #[inline(always)]
    fn into_raw(self) -> NonNull<()> {
        self.0.cast()
    }
    #[inline(always)]
    unsafe fn from_raw(raw: NonNull<()>) -> Self {
        DentryPtr(raw.cast())
    }
}

impl Dir {
    pub(crate) const fn new() -> Self {
        let state = DirState {
            entries: XArray::new(),
            nr_entries: 0,
            next_cookie: FIRST_COOKIE,
            dead: false,
        };
        Dir {
            state: SpinLock::new(state, &DIR_CLASS),
        }
    }
}

/// The next inode number, from 1.
pub(crate) fn next_ino() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Inode {
    /// A new inode without a name (nlink 0; a directory 1, for itself). ENOMEM.
    pub(crate) fn new(kind: InodeKind, perm: u32) -> Result<KArc<Inode>, VfsError> {
        let (ifmt, nlink) = match &kind {
            InodeKind::Dir(_) => (S_IFDIR, 1),
            InodeKind::Regular(_) => (S_IFREG, 0),
            InodeKind::Symlink(_) => (S_IFLNK, 0),
            InodeKind::CharDev(_) => (S_IFCHR, 0),
            InodeKind::BlockDev(_) => (S_IFBLK, 0),
            InodeKind::Fifo(_) => (S_IFIFO, 0),
            InodeKind::Socket => (S_IFSOCK, 0),
            InodeKind::Pipe(_) => (S_IFIFO, 1),
            InodeKind::Synth(node) => (node.attr().mode & S_IFMT, node.attr().nlink),
        };
        Self::with(kind, next_ino(), ifmt | perm & S_IALLUGO, nlink)
    }

    /// The inode of a node that was looked up: its attributes are the node's. ENOMEM.
    pub(crate) fn new_synth(node: SynthHandle) -> Result<KArc<Inode>, VfsError> {
        let attr = node.attr();
        Self::with(InodeKind::Synth(node), attr.ino, attr.mode, attr.nlink)
    }

    /// The inode behind a pipe's open file. ENOMEM.
    pub(crate) fn of_pipe(pipe: KArc<Pipe>) -> Result<KArc<Inode>, VfsError> {
        let ino = pipe.ino;
        Self::with(InodeKind::Pipe(pipe), ino, S_IFIFO | 0o600, 1)
    }

    fn with(kind: InodeKind, ino: u64, mode: u32, nlink: u32) -> Result<KArc<Inode>, VfsError> {
        let room = KArc::<Inode>::try_uninit()?;
        let now = now().ns;
        Ok(room.write(Inode {
            kind,
            ino,
            mode: AtomicU32::new(mode),
            nlink: AtomicU32::new(nlink),
            uid: AtomicU32::new(0),
            gid: AtomicU32::new(0),
            write_count: AtomicU64::new(0),
            atime: AtomicU64::new(now),
            mtime: AtomicU64::new(now),
            ctime: AtomicU64::new(now),
            btime: now,
        }))
    }

    /// Inode number.
    pub fn ino(&self) -> u64 {
        self.ino
    }

    /// Type and permission bits.
    #[inline]
    pub fn mode(&self) -> u32 {
        self.mode.load(Ordering::Relaxed)
    }

    /// Whether this is a directory.
    #[inline(always)]
    pub fn is_dir(&self) -> bool {
        self.mode() & S_IFMT == S_IFDIR
    }

    /// Whether this is a symbolic link.
    #[inline]
    pub(crate) fn is_link(&self) -> bool {
        self.mode() & S_IFMT == S_IFLNK
    }

    /// The directory's part, for changing it; ENOTDIR, EPERM (its names are not ours to change).
    #[inline(always)]
    pub(crate) fn as_dir(&self) -> Result<&Dir, VfsError> {
        match &self.kind {
            InodeKind::Dir(dir) => Ok(dir),
            InodeKind::Synth(_) if self.is_dir() => Err(VfsError::EPERM),
            _ => Err(VfsError::ENOTDIR),
        }
    }

    /// The regular file's part; `None` for every other kind.
    #[inline(always)]
    pub fn as_regular(&self) -> Option<&Regular> {
        match &self.kind {
            InodeKind::Regular(regular) => Some(regular),
            _ => None,
        }
    }

    pub(crate) fn nlink(&self) -> u32 {
        self.nlink.load(Ordering::Relaxed)
    }

    /// One name more. The lock of the directory that gets it is held.
    pub(crate) fn inc_nlink(&self) {
        self.nlink.fetch_add(1, Ordering::Relaxed);
    }

    /// One name fewer. The lock of the directory that had it is held.
    pub(crate) fn dec_nlink(&self) {
        let old = self.nlink.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(old != 0, "nlink fell below zero");
    }

    /// A name more unless there are too many or none (then it is being deleted): EMLINK, ENOENT.
    pub(crate) fn try_link(&self) -> Result<(), VfsError> {
        self.nlink
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n != 0 && n < LINK_MAX).then_some(n + 1)
            })
            .map(|_| ())
            .map_err(|n| {
                if n == 0 {
                    VfsError::ENOENT
                } else {
                    VfsError::EMLINK
                }
            })
    }

    /// Changes the permission bits.
    pub(crate) fn chmod(&self, perm: u32) {
        let set = |m| Some(m & S_IFMT | perm & S_IALLUGO);
        let _ = self
            .mode
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, set);
        self.touch_ctime();
    }

    /// Changes owner and group where given. Like Linux, a change by anybody clears set-id bits of
    /// a file that can be executed.
    pub(crate) fn chown(&self, uid: Option<u32>, gid: Option<u32>) {
        if let Some(uid) = uid {
            self.uid.store(uid, Ordering::Relaxed);
        }
        if let Some(gid) = gid {
            self.gid.store(gid, Ordering::Relaxed);
        }
        if !self.is_dir() {
            let strip = |m| Some(m & !0o4000 & if m & 0o010 != 0 { !0o2000 } else { !0 });
            let _ = self
                .mode
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, strip);
        }
        self.touch_ctime();
    }

    /// Sets times where given.
    pub(crate) fn set_times(&self, atime: Option<Timespec>, mtime: Option<Timespec>) {
        if let Some(t) = atime {
            self.atime.store(t.ns, Ordering::Relaxed);
        }
        if let Some(t) = mtime {
            self.mtime.store(t.ns, Ordering::Relaxed);
        }
        self.touch_ctime();
    }

    pub(crate) fn touch_ctime(&self) {
        self.ctime.store(now().ns, Ordering::Relaxed);
    }

    /// The contents changed.
    #[inline]
    pub(crate) fn touch_mtime(&self) {
        let now = now().ns;
        self.mtime.store(now, Ordering::Relaxed);
        self.ctime.store(now, Ordering::Relaxed);
    }

    /// The contents were read. relatime: the stamp is written only if it is older than the last
    /// change or than a day, so that readers do not write to shared memory.
    #[inline]
    pub(crate) fn touch_atime(&self) {
        const DAY_NS: u64 = 86_400_000_000_000;
        let atime = self.atime.load(Ordering::Relaxed);
        let now = now().ns;
        if atime != now
            && (atime <= self.mtime.load(Ordering::Relaxed)
                || atime <= self.ctime.load(Ordering::Relaxed)
                || atime.saturating_add(DAY_NS) <= now)
        {
            self.atime.store(now, Ordering::Relaxed);
        }
    }

    /// A writer opens the file: ETXTBSY while it is executed. Undone by `put_write_access`.
    pub(crate) fn get_write_access(&self) -> Result<(), VfsError> {
        self.join(WRITER, |count| (count >> 32, count as u32 as u64))
    }

    pub(crate) fn put_write_access(&self) {
        self.write_count.fetch_sub(WRITER, Ordering::Relaxed);
    }

    /// The file is executed: ETXTBSY while a writer has it open. Undone by `allow_write_access`.
    pub(crate) fn deny_write_access(&self) -> Result<(), VfsError> {
        self.join(DENIAL, |count| (count as u32 as u64, count >> 32))
    }

    pub(crate) fn allow_write_access(&self) {
        self.write_count.fetch_sub(DENIAL, Ordering::Relaxed);
    }

    /// Adds to one side of `write_count` unless there is somebody on the other; `split`: (own side, other side). Where
    /// many exec one file this is one addition for each of them, which none has to repeat.
    fn join(&self, unit: u64, split: impl Fn(u64) -> (u64, u64)) -> Result<(), VfsError> {
        loop {
            let (own, other) = split(self.write_count.fetch_add(unit, Ordering::Relaxed));
            if other == 0 {
                return Ok(());
            }
            self.write_count.fetch_sub(unit, Ordering::Relaxed);
            if own == 0 {
                return Err(VfsError::ETXTBSY);
            }
            // On one of the sides is somebody who is about to leave it again.
            ksync::arch::cpu_relax();
        }
    }

    /// Length in bytes, as stat shows it.
    #[inline]
    pub fn size(&self) -> u64 {
        match &self.kind {
            InodeKind::Regular(r) => r.size(),
            InodeKind::Symlink(t) => t.as_bytes().len() as u64,
            _ => 0,
        }
    }

    /// Attributes. Any context.
    pub fn stat(&self) -> Kstat {
        let rdev = match self.kind {
            InodeKind::CharDev(dev) | InodeKind::BlockDev(dev) => dev,
            _ => DevId::new(0, 0),
        };
        let blocks = self.as_regular().map_or(0, |r| r.nr_pages() * 8);
        let time = |t: &AtomicU64| Timespec {
            ns: t.load(Ordering::Relaxed),
        };
        Kstat {
            dev: match self.kind {
                InodeKind::Synth(_) => PROC_DEV,
                InodeKind::Pipe(_) => PIPE_DEV,
                _ => RAMFS_DEV,
            },
            ino: self.ino,
            mode: self.mode(),
            nlink: self.nlink(),
            uid: self.uid.load(Ordering::Relaxed),
            gid: self.gid.load(Ordering::Relaxed),
            rdev,
            size: self.size(),
            blksize: 4096,
            blocks,
            atime: time(&self.atime),
            mtime: time(&self.mtime),
            ctime: time(&self.ctime),
            btime: Timespec { ns: self.btime },
        }
    }

    /// Whether the superuser may do this: reading and writing always; executing what has an
    /// execute bit, and searching directories. EACCES.
    pub(crate) fn permission(&self, exec: bool) -> Result<(), VfsError> {
        if exec && !self.is_dir() && self.mode() & S_IXUGO == 0 {
            return Err(VfsError::EACCES);
        }
        Ok(())
    }
}

const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Inode>();
    shared::<Dentry>();
};
