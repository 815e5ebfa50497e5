//! Open files: a position, flags, and what is behind them.
//!
//! Mechanism: a closed enum over the kinds of file; `read` and `write` are a `match` to a generic
//! function. A file knows the dentry it was opened by (for `*at` calls and for /proc), except for
//! pipes and anonymous files, which have none.
//!
//! Lock order: `pos` (sleeps; user memory may fault under it), then the inode's or pipe's lock.
//!
//! Invariants:
//! INV-FILE-1: `Regular`, `Dir` and `Path` files have a dentry, whose inode is of that kind.
//! INV-FILE-2: while a file lives it holds what its open took: a pipe's ends, write access, or the
//!   denial of write access; its drop gives each back once.

use crate::VfsError;
use crate::anon::{AnonFile, AnonHandle};
use crate::dentry::Dentry;
use crate::dev::{self, Dev};
use crate::flags::*;
use crate::inode::{Inode, InodeKind};
use crate::pipe::{Ends, Pipe};
use crate::poll::PollMask;
use crate::readdir;
use crate::regular::Regular;
use crate::stat::*;
use crate::synth::{Cursor, SynthHandle, TEXT_PAGE, Text, TextPage};
use crate::uio::{BufIn, BufOut};
use core::sync::atomic::{AtomicU32, Ordering};
use ksync::{LockClass, Mutex, SpinLock, WaitQueue};
use rmap::AddressSpace;
use slab::KArc;

static POS_CLASS: LockClass = LockClass::new("f_pos_lock");

bitflags::bitflags! {
    /// What may be done with an open file.
    #[derive(Copy, Clone, Debug, PartialEq, Eq)]
    pub(crate) struct FMode: u32 {
        const READ = 1;
        const WRITE = 2;
        /// Has a position: lseek, pread and pwrite make sense.
        const SEEK = 4;
        /// Holds write access to the inode.
        const WRITER = 8;
        /// Keeps writers out: opened for execution.
        const DENY_WRITE = 16;
    }
}

/// Flags that F_SETFL can change.
const SETFL: OpenFlags = OpenFlags::APPEND
    .union(OpenFlags::NONBLOCK)
    .union(OpenFlags::DIRECT)
    .union(OpenFlags::NOATIME);

/// An open file, shared by all descriptors that dup and fork made of it.
pub struct File {
    kind: FileKind,
    mode: FMode,
    /// `OpenFlags` as F_GETFL shows them.
    flags: AtomicU32,
    dentry: Option<KArc<Dentry>>,
    pos: Mutex<u64>,
}
slab::object!(File, "filp", links = 0);

/// What is behind an open file.
pub(crate) enum FileKind {
    Regular,
    Dir,
    /// Opened with O_PATH: only a name.
    Path,
    Pipe(KArc<Pipe>),
    Dev(Dev),
    Anon(AnonHandle),
    /// A file of procfs; where its last read came to.
    Synth(SpinLock<Cursor>),
}

/// What mmap makes of a file.
pub enum Mappable<'a> {
    /// Pages of this cache.
    Cache(&'a KArc<AddressSpace>),
    /// Anonymous memory (/dev/zero).
    Anonymous,
}

/// Where lseek counts from.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Whence {
    /// The start.
    Set,
    /// The position.
    Cur,
    /// The end.
    End,
    /// The next data at or after the offset.
    Data,
    /// The next hole at or after the offset.
    Hole,
}

impl Whence {
    /// From lseek's argument. EINVAL.
    pub fn from_raw(whence: u32) -> Result<Self, VfsError> {
        Ok(match whence {
            0 => Whence::Set,
            1 => Whence::Cur,
            2 => Whence::End,
            3 => Whence::Data,
            4 => Whence::Hole,
            _ => return Err(VfsError::EINVAL),
        })
    }
}

impl File {
    /// An open file around what the caller has taken for it (INV-FILE-2). ENOMEM: then `kind`'s
    /// ends and the access that `mode` speaks of are the caller's to give back.
    pub(crate) fn try_new(
        kind: FileKind,
        mode: FMode,
        flags: OpenFlags,
        dentry: Option<KArc<Dentry>>,
    ) -> Result<KArc<File>, VfsError> {
        let room = KArc::<File>::try_uninit()?;
        Ok(Self::fill(room, kind, mode, flags, dentry))
    }

    /// As `try_new` in memory had before.
    pub(crate) fn fill(
        room: slab::KArcUninit<File>,
        kind: FileKind,
        mode: FMode,
        flags: OpenFlags,
        dentry: Option<KArc<Dentry>>,
    ) -> KArc<File> {
        let flags = AtomicU32::new(flags.bits());
        room.write(File {
            kind,
            mode,
            flags,
            dentry,
            pos: Mutex::new(0, &POS_CLASS),
        })
    }

    /// A file around an object of another crate, open for reading and writing as `flags` say.
    /// ENOMEM.
    pub fn new_anon<T: AnonFile>(
        object: KArc<T>,
        flags: OpenFlags,
    ) -> Result<KArc<File>, VfsError> {
        let mut mode = access_mode(flags);
        if object.seekable() {
            mode |= FMode::SEEK;
        }
        Self::try_new(
            FileKind::Anon(AnonHandle::new(object)),
            mode,
            status(flags),
            None,
        )
    }

    /// The object behind a file made by `new_anon`, if it is a `T`.
    pub fn anon<T: AnonFile>(&self) -> Option<&T> {
        match &self.kind {
            FileKind::Anon(handle) => handle.downcast(),
            _ => None,
        }
    }

    /// As [`File::anon`], counted.
    pub fn anon_arc<T: AnonFile>(&self) -> Option<KArc<T>> {
        match &self.kind {
            FileKind::Anon(handle) => handle.downcast_arc(),
            _ => None,
        }
    }

    /// The name it was opened by, if it has one.
    #[inline]
    pub fn dentry(&self) -> Option<&KArc<Dentry>> {
        self.dentry.as_ref()
    }

    /// Its inode, if it has one.
    #[inline]
    pub fn inode(&self) -> Option<&KArc<Inode>> {
        self.dentry.as_deref().map(Dentry::inode)
    }

    #[inline(always)]
    fn regular(&self) -> Option<&Regular> {
        self.dentry.as_ref()?.inode().as_regular()
    }

    /// The flags as F_GETFL gives them (access mode included).
    #[inline]
    pub fn flags(&self) -> OpenFlags {
        OpenFlags::from_bits_retain(self.flags.load(Ordering::Relaxed))
    }

    /// F_SETFL: changes what can be changed.
    pub fn set_flags(&self, flags: OpenFlags) {
        let set = |old| Some((flags & SETFL).bits() | old & !SETFL.bits());
        let _ = self
            .flags
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, set);
    }

    /// FIONBIO: sets or clears O_NONBLOCK.
    pub fn set_nonblock(&self, on: bool) {
        if on {
            self.flags
                .fetch_or(OpenFlags::NONBLOCK.bits(), Ordering::Relaxed);
        } else {
            self.flags
                .fetch_and(!OpenFlags::NONBLOCK.bits(), Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn nonblock(&self) -> bool {
        self.flags().contains(OpenFlags::NONBLOCK)
    }

    /// Opened with O_PATH: most calls answer EBADF.
    #[inline(always)]
    pub fn is_path(&self) -> bool {
        matches!(self.kind, FileKind::Path)
    }

    /// Whether this is the console's terminal, for ioctl and isatty.
    pub fn is_console(&self) -> bool {
        matches!(self.kind, FileKind::Dev(Dev::Console))
    }

    /// The pipe behind it, if it is one.
    pub fn pipe(&self) -> Option<&KArc<Pipe>> {
        match &self.kind {
            FileKind::Pipe(pipe) => Some(pipe),
            _ => None,
        }
    }

    /// Open for reading?
    pub fn readable(&self) -> bool {
        self.mode.contains(FMode::READ)
    }

    /// Open for writing?
    pub fn writable(&self) -> bool {
        self.mode.contains(FMode::WRITE)
    }

    /// Reads at the position and moves it. EBADF, EISDIR, EAGAIN, EFAULT, EINVAL, ENOMEM,
    /// ERESTARTSYS. May sleep.
    pub fn read(&self, buf: &mut impl BufOut) -> Result<usize, VfsError> {
        if !self.mode.contains(FMode::READ) {
            return Err(VfsError::EBADF);
        }
        match &self.kind {
            FileKind::Regular => {
                let mut pos = self.pos.lock();
                let n = self.read_regular(*pos, buf)?;
                *pos += n as u64;
                Ok(n)
            }
            FileKind::Pipe(pipe) => pipe.read(buf, self.nonblock()),
            FileKind::Dev(dev) => dev::read(*dev, buf, self.nonblock()),
            FileKind::Anon(anon) if self.mode.contains(FMode::SEEK) => {
                anon.read(&mut self.pos.lock(), buf, self.nonblock())
            }
            // No position, no lock: a reader that waits must not keep the writer out that it waits for.
            FileKind::Anon(anon) => anon.read(&mut 0, buf, self.nonblock()),
            FileKind::Synth(cursor) => {
                let mut pos = self.pos.lock();
                let n = self.read_synth(cursor, *pos, buf)?;
                *pos += n as u64;
                Ok(n)
            }
            FileKind::Dir => Err(VfsError::EISDIR),
            FileKind::Path => Err(VfsError::EBADF),
        }
    }

    /// Writes at the position (with O_APPEND: at the end) and moves it. EBADF, EAGAIN, EFAULT,
    /// EFBIG, EINVAL, ENOMEM, ENOSPC, EPIPE, ERESTARTSYS. May sleep.
    pub fn write(&self, buf: &mut impl BufIn) -> Result<usize, VfsError> {
        if !self.mode.contains(FMode::WRITE) {
            return Err(VfsError::EBADF);
        }
        match &self.kind {
            FileKind::Regular => {
                let mut pos = self.pos.lock();
                let (end, n) = self.write_regular(*pos, buf)?;
                *pos = end;
                Ok(n)
            }
            FileKind::Pipe(pipe) => pipe.write(buf, self.nonblock()),
            FileKind::Dev(dev) => dev::write(*dev, buf),
            FileKind::Anon(anon) if self.mode.contains(FMode::SEEK) => {
                anon.write(&mut self.pos.lock(), buf, self.nonblock())
            }
            FileKind::Anon(anon) => anon.write(&mut 0, buf, self.nonblock()),
            FileKind::Synth(_) => self.write_synth(buf),
            FileKind::Dir | FileKind::Path => Err(VfsError::EBADF),
        }
    }

    /// Reads at `pos`, which stays. EINVAL (negative), ESPIPE, and as `read`.
    pub fn pread(&self, buf: &mut impl BufOut, pos: i64) -> Result<usize, VfsError> {
        let mut pos = u64::try_from(pos).map_err(|_| VfsError::EINVAL)?;
        if self.is_path() {
            return Err(VfsError::EBADF);
        }
        if !self.mode.contains(FMode::SEEK) {
            return Err(VfsError::ESPIPE);
        }
        if !self.mode.contains(FMode::READ) {
            return Err(VfsError::EBADF);
        }
        match &self.kind {
            FileKind::Regular => self.read_regular(pos, buf),
            FileKind::Anon(anon) => anon.read(&mut pos, buf, self.nonblock()),
            FileKind::Synth(cursor) => self.read_synth(cursor, pos, buf),
            _ => self.read(buf),
        }
    }

    /// Writes at `pos`; the position stays. With O_APPEND at the end all the same, as Linux does.
    /// EINVAL (negative), ESPIPE, and as `write`.
    pub fn pwrite(&self, buf: &mut impl BufIn, pos: i64) -> Result<usize, VfsError> {
        let mut pos = u64::try_from(pos).map_err(|_| VfsError::EINVAL)?;
        if self.is_path() {
            return Err(VfsError::EBADF);
        }
        if !self.mode.contains(FMode::SEEK) {
            return Err(VfsError::ESPIPE);
        }
        if !self.mode.contains(FMode::WRITE) {
            return Err(VfsError::EBADF);
        }
        match &self.kind {
            FileKind::Regular => Ok(self.write_regular(pos, buf)?.1),
            FileKind::Anon(anon) => anon.write(&mut pos, buf, self.nonblock()),
            _ => self.write(buf),
        }
    }

    #[inline]
    fn read_regular(&self, pos: u64, buf: &mut impl BufOut) -> Result<usize, VfsError> {
        let inode = self.inode().ok_or(VfsError::EBADF)?;
        let n = inode
            .as_regular()
            .ok_or(VfsError::EBADF)?
            .read_at(pos, buf)?;
        if !self.flags().contains(OpenFlags::NOATIME) {
            inode.touch_atime();
        }
        Ok(n)
    }

    fn synth(&self) -> Result<&SynthHandle, VfsError> {
        match self.inode().map(|inode| &inode.kind) {
            Some(InodeKind::Synth(node)) => Ok(node),
            _ => Err(VfsError::EBADF),
        }
    }

    /// Makes the contents from `pos` on, a page at a time, and copies them.
    fn read_synth(
        &self,
        cursor: &SpinLock<Cursor>,
        pos: u64,
        buf: &mut impl BufOut,
    ) -> Result<usize, VfsError> {
        let node = self.synth()?;
        let wanted = buf.remaining();
        let mut page = TextPage::new()?;
        loop {
            let (done, window) = (wanted - buf.remaining(), buf.remaining().min(TEXT_PAGE));
            let mut text = Text::new(
                &mut page.bytes()[..window],
                pos + done as u64,
                *cursor.lock(),
            );
            if let Err(e) = node.read(&mut text) {
                return if done > 0 { Ok(done) } else { Err(e) };
            }
            let (bytes, next) = text.finish();
            if let Err(e) = buf.put(bytes) {
                let done = wanted - buf.remaining();
                return if done > 0 { Ok(done) } else { Err(e.into()) };
            }
            *cursor.lock() = next;
            if bytes.len() < window || buf.remaining() == 0 {
                return Ok(wanted - buf.remaining());
            }
        }
    }

    fn write_synth(&self, buf: &mut impl BufIn) -> Result<usize, VfsError> {
        let total = buf.remaining();
        let mut bytes = [0; 256];
        let n = buf.get(&mut bytes[..total.min(256)])?;
        self.synth()?.write(&bytes[..n])?;
        Ok(total)
    }

    /// What a link to this open file leads to: its name, or the pipe behind it. ENXIO, ENOMEM.
    pub(crate) fn dentry_or_pipe(&self) -> Result<KArc<Dentry>, VfsError> {
        match (&self.dentry, &self.kind) {
            (Some(dentry), _) => Ok(dentry.clone()),
            (None, FileKind::Pipe(pipe)) => Dentry::new_root(Inode::of_pipe(pipe.clone())?, false),
            _ => Err(VfsError::ENXIO),
        }
    }

    fn write_regular(&self, pos: u64, buf: &mut impl BufIn) -> Result<(u64, usize), VfsError> {
        let inode = self.inode().ok_or(VfsError::EBADF)?;
        let regular = inode.as_regular().ok_or(VfsError::EBADF)?;
        let append = self.flags().contains(OpenFlags::APPEND);
        let (end, n) = regular.write_at((!append).then_some(pos), buf)?;
        if n == 0 {
            return Ok((pos, 0));
        }
        inode.touch_mtime();
        Ok((end, n))
    }

    /// Moves the position. EINVAL, ENXIO, ESPIPE, EBADF (O_PATH).
    pub fn lseek(&self, offset: i64, whence: Whence) -> Result<u64, VfsError> {
        match &self.kind {
            FileKind::Path => return Err(VfsError::EBADF),
            FileKind::Dev(dev) => return dev::lseek(*dev),
            _ if !self.mode.contains(FMode::SEEK) => return Err(VfsError::ESPIPE),
            _ => {}
        }
        let mut pos = self.pos.lock();
        let size = match (&self.kind, whence) {
            (FileKind::Dir, Whence::End | Whence::Data | Whence::Hole) => {
                return Err(VfsError::EINVAL);
            }
            (FileKind::Dir, _) => 0,
            _ => self.regular().map_or(0, Regular::size) as i64,
        };
        let target = match whence {
            Whence::Set => offset,
            Whence::Cur => (*pos as i64)
                .checked_add(offset)
                .ok_or(VfsError::EOVERFLOW)?,
            Whence::End => size.checked_add(offset).ok_or(VfsError::EOVERFLOW)?,
            Whence::Data | Whence::Hole if offset < 0 || offset >= size => {
                return Err(VfsError::ENXIO);
            }
            // All of a file counts as data, up to the hole at its end.
            Whence::Data => offset,
            Whence::Hole => size,
        };
        *pos = u64::try_from(target).map_err(|_| VfsError::EINVAL)?;
        Ok(*pos)
    }

    /// Lists a directory in `linux_dirent64` records. 0: the end. ENOTDIR, EINVAL (no room for
    /// one record), EFAULT, EBADF (O_PATH). May sleep.
    pub fn getdents64(&self, buf: &mut impl BufOut) -> Result<usize, VfsError> {
        if self.is_path() {
            return Err(VfsError::EBADF);
        }
        let dentry = self.dentry.as_ref().ok_or(VfsError::ENOTDIR)?;
        if !dentry.inode().is_dir() {
            return Err(VfsError::ENOTDIR);
        }
        readdir::getdents64(dentry, &mut self.pos.lock(), buf)
    }

    /// Attributes.
    pub fn stat(&self) -> Kstat {
        if let Some(dentry) = &self.dentry {
            return dentry.inode().stat();
        }
        let mut stat = Kstat {
            dev: DevId::new(0, 3),
            ino: 1,
            mode: 0o600,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: DevId::new(0, 0),
            size: 0,
            blksize: 4096,
            blocks: 0,
            atime: Timespec::default(),
            mtime: Timespec::default(),
            ctime: Timespec::default(),
            btime: Timespec::default(),
        };
        if let FileKind::Pipe(pipe) = &self.kind {
            stat.dev = DevId::new(0, 2);
            stat.ino = pipe.ino;
            stat.mode |= S_IFIFO;
            stat.btime = Timespec { ns: pipe.btime };
            stat.mtime = Timespec {
                ns: pipe.mtime.load(Ordering::Relaxed),
            };
            (stat.atime, stat.ctime) = (stat.mtime, stat.mtime);
        }
        stat
    }

    /// Sets a regular file's length. EINVAL (negative, not regular, not open for writing), EBADF
    /// (O_PATH), EFBIG. May sleep.
    pub fn ftruncate(&self, len: i64) -> Result<(), VfsError> {
        let len = u64::try_from(len).map_err(|_| VfsError::EINVAL)?;
        if self.is_path() {
            return Err(VfsError::EBADF);
        }
        let inode = self.inode().ok_or(VfsError::EINVAL)?;
        let regular = inode.as_regular().ok_or(VfsError::EINVAL)?;
        if !self.mode.contains(FMode::WRITE) {
            return Err(VfsError::EINVAL);
        }
        regular.truncate(len)?;
        inode.touch_mtime();
        Ok(())
    }

    /// posix_fallocate: makes a regular file at least `offset + len` long. EINVAL, EBADF, ESPIPE,
    /// ENODEV, EFBIG, EOPNOTSUPP (any mode but 0, KEEP_SIZE, and KEEP_SIZE with PUNCH_HOLE, which makes the range a hole).
    pub fn fallocate(&self, mode: u32, offset: i64, len: i64) -> Result<(), VfsError> {
        const KEEP_SIZE: u32 = 1;
        const PUNCH_HOLE: u32 = 2;
        if offset < 0 || len <= 0 {
            return Err(VfsError::EINVAL);
        }
        if mode & !KEEP_SIZE != 0 && mode != KEEP_SIZE | PUNCH_HOLE {
            return Err(VfsError::EOPNOTSUPP);
        }
        if !self.mode.contains(FMode::WRITE) {
            return Err(VfsError::EBADF);
        }
        let regular = match (&self.kind, self.regular()) {
            (FileKind::Regular, Some(regular)) => regular,
            (FileKind::Pipe(_), _) => return Err(VfsError::ESPIPE),
            _ => return Err(VfsError::ENODEV),
        };
        let end = offset.checked_add(len).ok_or(VfsError::EFBIG)?;
        if mode & PUNCH_HOLE != 0 {
            regular.punch_hole(offset as u64, end as u64)?;
        } else if mode & KEEP_SIZE == 0 {
            regular.extend(end as u64)?;
        }
        Ok(())
    }

    /// What mmap would map. ENODEV, EBADF (O_PATH), EACCES is the caller's (see `readable`).
    pub fn mappable(&self) -> Result<Mappable<'_>, VfsError> {
        match (&self.kind, self.regular()) {
            (FileKind::Path, _) => Err(VfsError::EBADF),
            (FileKind::Regular, Some(regular)) => Ok(Mappable::Cache(regular.mapping())),
            (FileKind::Dev(Dev::Zero), _) => Ok(Mappable::Anonymous),
            _ => Err(VfsError::ENODEV),
        }
    }

    /// What would not block now.
    pub fn poll(&self) -> PollMask {
        match &self.kind {
            FileKind::Regular | FileKind::Dir | FileKind::Synth(_) => PollMask::ALWAYS,
            FileKind::Path => PollMask::NVAL,
            FileKind::Pipe(pipe) => pipe.poll(self.ends()),
            FileKind::Dev(dev) => dev::poll(*dev),
            FileKind::Anon(anon) => anon.poll(),
        }
    }

    /// The queues that are woken when `poll`'s answer changes. Who waits here and was taken off a
    /// queue by a waker must, when it leaves, wake the next one there: pipes wake one at a time.
    pub fn poll_queues(&self) -> [Option<&WaitQueue>; 2] {
        match &self.kind {
            FileKind::Pipe(pipe) => pipe.poll_queues(self.ends()),
            FileKind::Dev(dev) => [dev::wait_queue(*dev), None],
            FileKind::Anon(anon) => [anon.wait_queue(), None],
            _ => [None, None],
        }
    }

    /// The directions a pipe's file is open for.
    fn ends(&self) -> Ends {
        Ends {
            read: self.mode.contains(FMode::READ),
            write: self.mode.contains(FMode::WRITE),
        }
    }

    /// For files without a name: what readlink of /proc/PID/fd/N shows, and a number.
    pub fn anon_name(&self) -> Option<(&'static str, u64)> {
        match &self.kind {
            FileKind::Pipe(pipe) if self.dentry.is_none() => Some(("pipe", pipe.ino)),
            FileKind::Anon(anon) => Some((anon.name(), 1)),
            _ => None,
        }
    }
}

/// The FMode of an access mode.
pub(crate) fn access_mode(flags: OpenFlags) -> FMode {
    match flags.bits() & O_ACCMODE {
        0 => FMode::READ,
        1 => FMode::WRITE,
        2 => FMode::READ | FMode::WRITE,
        _ => FMode::empty(),
    }
}

/// What of open's flags an open file keeps.
pub(crate) fn status(flags: OpenFlags) -> OpenFlags {
    flags
        & !(OpenFlags::CREAT
            | OpenFlags::EXCL
            | OpenFlags::NOCTTY
            | OpenFlags::TRUNC
            | OpenFlags::CLOEXEC)
}

impl Drop for File {
    fn drop(&mut self) {
        if let FileKind::Pipe(pipe) = &self.kind {
            match self.inode().map(|inode| &inode.kind) {
                Some(InodeKind::Fifo(hub)) => hub.release(pipe, self.ends()),
                _ => pipe.release(self.ends()),
            }
        }
        if let Some(inode) = self.inode() {
            if self.mode.contains(FMode::WRITER) {
                inode.put_write_access();
            }
            if self.mode.contains(FMode::DENY_WRITE) {
                inode.allow_write_access();
            }
        }
    }
}
