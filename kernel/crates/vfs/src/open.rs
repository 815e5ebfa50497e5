//! Opening files: by name, for execution, and pipes that have no name.
//!
//! Mechanism: one walk decides between "it is there" and "it is to be made"; for the second it
//! brings back the new dentry, ready, and only the insertion is left. Two programs that create the
//! same name meet in the insertion: the loser opens what the winner made, or fails with O_EXCL.
//! The memory for the file is had before a file is made, so that ENOMEM leaves nothing behind.

use crate::VfsError;
use crate::dentry::{Dentry, d_get};
use crate::dev::Dev;
use crate::file::{FMode, File, FileKind, access_mode, status};
use crate::flags::*;
use crate::inode::{Inode, InodeKind};
use crate::namei::{At, Last, Walk, walk};
use crate::pipe::{Ends, Pipe};
use crate::regular::Regular;
use crate::synth::Cursor;
use crate::tree::{Fresh, Naming, insert};
use ksync::rcu::RcuGuard;
use slab::{KArc, KArcUninit};

/// Opens `path`. `perm`: permission bits for a new file, before the umask. EACCES, EEXIST, EINVAL,
/// EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOMEM, ENOTDIR, ENXIO, EOPNOTSUPP, ERESTARTSYS (a FIFO),
/// ETXTBSY. May sleep.
pub fn open(at: At<'_>, path: &[u8], flags: OpenFlags, perm: u32) -> Result<KArc<File>, VfsError> {
    let flags = check_flags(flags)?;
    let room = KArc::<File>::try_uninit()?;
    if !flags.contains(OpenFlags::CREAT) {
        let follow = !flags.contains(OpenFlags::NOFOLLOW);
        let dentry = walk(at, path, |w, rcu| {
            let found = w.finish(follow)?;
            d_get(found, rcu).ok_or(VfsError::ENOENT)
        })?;
        return open_dentry(room, dentry, flags, false);
    }
    loop {
        let fresh = match walk(at, path, |w, rcu| find_or_prepare(w, rcu, at, flags, perm))? {
            Found::There(dentry) => return open_dentry(room, dentry, flags, false),
            Found::Fresh(fresh) => fresh,
        };
        match insert(&fresh, Naming::First) {
            Ok(()) => return open_dentry(room, fresh.dentry, flags, true),
            Err(VfsError::EEXIST) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Opens a program or its interpreter: a regular file with an execute bit, which nobody may write
/// while it is open. EACCES, ETXTBSY, and as a look-up. May sleep.
pub fn open_exec(at: At<'_>, path: &[u8], follow: bool) -> Result<KArc<File>, VfsError> {
    let room = KArc::<File>::try_uninit()?;
    let dentry = walk(at, path, |w, rcu| {
        let found = w.finish(follow)?;
        match found.inode().kind {
            InodeKind::Regular(_) => found.inode().permission(true)?,
            _ if found.inode().is_link() => return Err(VfsError::ELOOP),
            _ => return Err(VfsError::EACCES),
        }
        d_get(found, rcu).ok_or(VfsError::ENOENT)
    })?;
    exec_file(room, dentry)
}

/// As [`open_exec`] for a file that is open already (fexecve). EACCES, ETXTBSY, ENOMEM.
pub fn reopen_exec(file: &File) -> Result<KArc<File>, VfsError> {
    let room = KArc::<File>::try_uninit()?;
    let dentry = file.dentry().ok_or(VfsError::EACCES)?.clone();
    if dentry.inode().as_regular().is_none() {
        return Err(VfsError::EACCES);
    }
    dentry.inode().permission(true)?;
    exec_file(room, dentry)
}

fn exec_file(room: KArcUninit<File>, dentry: KArc<Dentry>) -> Result<KArc<File>, VfsError> {
    dentry.inode().deny_write_access()?;
    let mode = FMode::READ | FMode::SEEK | FMode::DENY_WRITE;
    let flags = OpenFlags::LARGEFILE;
    Ok(File::fill(
        room,
        FileKind::Regular,
        mode,
        flags,
        Some(dentry),
    ))
}

/// A pipe: the file to read from and the file to write to. `flags`: O_NONBLOCK, O_CLOEXEC (the
/// caller's), O_DIRECT (accepted). EINVAL, ENOMEM.
pub fn pipe(flags: OpenFlags) -> Result<(KArc<File>, KArc<File>), VfsError> {
    let known = OpenFlags::NONBLOCK | OpenFlags::CLOEXEC | OpenFlags::DIRECT;
    if !known.contains(flags) {
        return Err(VfsError::EINVAL);
    }
    let (reader, writer) = (KArc::<File>::try_uninit()?, KArc::<File>::try_uninit()?);
    let pipe = Pipe::new(1)?;
    let flags = flags & OpenFlags::NONBLOCK;
    let end = |room, pipe, mode, flags| File::fill(room, FileKind::Pipe(pipe), mode, flags, None);
    Ok((
        end(reader, pipe.clone(), FMode::READ, flags),
        end(writer, pipe, FMode::WRITE, flags | OpenFlags::WRONLY),
    ))
}

/// A regular file without a name in any directory (memfd_create). ENOMEM.
pub fn memfd(name: &[u8], flags: OpenFlags) -> Result<KArc<File>, VfsError> {
    let room = KArc::<File>::try_uninit()?;
    let inode = Inode::new(InodeKind::Regular(Regular::new(&[], name)?), 0o777)?;
    let dentry = Dentry::new_root(inode, false)?;
    dentry.inode().get_write_access()?;
    let mode = FMode::READ | FMode::WRITE | FMode::SEEK | FMode::WRITER;
    let flags = status(flags) | OpenFlags::RDWR | OpenFlags::LARGEFILE;
    Ok(File::fill(
        room,
        FileKind::Regular,
        mode,
        flags,
        Some(dentry),
    ))
}

/// Linux's build_open_flags: what makes no sense, and what implies what.
#[inline]
fn check_flags(flags: OpenFlags) -> Result<OpenFlags, VfsError> {
    if flags.contains(OpenFlags::PATH) {
        let kept = OpenFlags::DIRECTORY | OpenFlags::NOFOLLOW | OpenFlags::PATH;
        return Ok(flags & kept);
    }
    if flags.contains(OpenFlags::TMPFILE) {
        return Err(VfsError::EOPNOTSUPP);
    }
    if flags.contains(OpenFlags::CREAT | OpenFlags::DIRECTORY) {
        return Err(VfsError::EINVAL);
    }
    if flags.contains(OpenFlags::CREAT | OpenFlags::EXCL) {
        return Ok(flags | OpenFlags::NOFOLLOW);
    }
    Ok(flags)
}

enum Found {
    There(KArc<Dentry>),
    Fresh(Fresh),
}

/// The end of a walk with O_CREAT.
fn find_or_prepare<'r>(
    w: &mut Walk<'r>,
    rcu: &'r RcuGuard,
    at: At<'_>,
    flags: OpenFlags,
    perm: u32,
) -> Result<Found, VfsError> {
    loop {
        w.walk_to_last()?;
        let found = match w.last_kind {
            Last::Norm if w.must_be_dir => return Err(VfsError::EISDIR),
            Last::Norm => w.lookup_last()?,
            Last::DotDot => {
                w.dotdot();
                Some(w.cur)
            }
            Last::Dot | Last::Root => Some(w.cur),
        };
        let Some(found) = found else {
            if matches!(w.cur.inode().kind, InodeKind::Synth(_)) {
                return Err(VfsError::ENOENT);
            }
            let dir = d_get(w.cur, rcu).ok_or(VfsError::ENOENT)?;
            let regular = Regular::new(&[], w.last_name())?;
            let inode = Inode::new(InodeKind::Regular(regular), perm & !at.fs.umask())?;
            let dentry = Dentry::new(&dir, w.last_name(), inode)?;
            return Ok(Found::Fresh(Fresh { dir, dentry }));
        };
        if found.inode().is_link() && !flags.contains(OpenFlags::NOFOLLOW) {
            w.enter_link(found.inode())?;
            continue;
        }
        return Ok(Found::There(d_get(found, rcu).ok_or(VfsError::ENOENT)?));
    }
}

/// Opens what the walk found or made: Linux's do_open and may_open.
#[inline]
fn open_dentry(
    room: KArcUninit<File>,
    dentry: KArc<Dentry>,
    flags: OpenFlags,
    created: bool,
) -> Result<KArc<File>, VfsError> {
    let inode = dentry.inode();
    if flags.contains(OpenFlags::CREAT) && !created {
        if flags.contains(OpenFlags::EXCL) {
            return Err(VfsError::EEXIST);
        }
        if inode.is_dir() {
            return Err(VfsError::EISDIR);
        }
    }
    if flags.contains(OpenFlags::DIRECTORY) && !inode.is_dir() {
        return Err(VfsError::ENOTDIR);
    }
    if flags.contains(OpenFlags::PATH) {
        return Ok(File::fill(
            room,
            FileKind::Path,
            FMode::empty(),
            flags,
            Some(dentry),
        ));
    }
    let mut mode = access_mode(flags);
    let status = status(flags) | OpenFlags::LARGEFILE;
    let kind = match &inode.kind {
        InodeKind::Regular(regular) => {
            mode |= FMode::SEEK;
            open_regular(inode, regular, &mut mode, flags, created)?;
            FileKind::Regular
        }
        InodeKind::Synth(_) if inode.is_link() => return Err(VfsError::ELOOP),
        InodeKind::Synth(_) if !inode.is_dir() => {
            mode |= FMode::SEEK;
            FileKind::Synth(Cursor::lock())
        }
        InodeKind::Dir(_) | InodeKind::Synth(_) => {
            if mode.contains(FMode::WRITE) || flags.contains(OpenFlags::TRUNC) {
                return Err(VfsError::EISDIR);
            }
            mode |= FMode::SEEK;
            FileKind::Dir
        }
        InodeKind::Symlink(_) => return Err(VfsError::ELOOP),
        InodeKind::CharDev(id) => {
            let dev = Dev::open(*id, flags)?;
            if dev.seekable() {
                mode |= FMode::SEEK;
            }
            FileKind::Dev(dev)
        }
        InodeKind::Fifo(_) | InodeKind::Pipe(_) => {
            let ends = Ends {
                read: mode.contains(FMode::READ),
                write: mode.contains(FMode::WRITE),
            };
            if !ends.read && !ends.write {
                return Err(VfsError::EINVAL);
            }
            FileKind::Pipe(match &inode.kind {
                InodeKind::Fifo(hub) => hub.open(ends, flags.contains(OpenFlags::NONBLOCK))?,
                InodeKind::Pipe(pipe) => {
                    pipe.open(ends);
                    pipe.clone()
                }
                _ => return Err(VfsError::ENXIO),
            })
        }
        InodeKind::BlockDev(_) | InodeKind::Socket => return Err(VfsError::ENXIO),
    };
    Ok(File::fill(room, kind, mode, status, Some(dentry)))
}

/// Takes write access and cuts the file, as the flags say.
#[inline]
fn open_regular(
    inode: &Inode,
    regular: &Regular,
    mode: &mut FMode,
    flags: OpenFlags,
    created: bool,
) -> Result<(), VfsError> {
    if mode.contains(FMode::WRITE) {
        inode.get_write_access()?;
        *mode |= FMode::WRITER;
    }
    if flags.contains(OpenFlags::TRUNC) && !created {
        // Without write access too, as Linux has it: O_RDONLY | O_TRUNC cuts the file.
        if !mode.contains(FMode::WRITE) {
            inode.get_write_access()?;
        }
        let result = regular.truncate(0);
        if result.is_err() || !mode.contains(FMode::WRITE) {
            inode.put_write_access();
        }
        result?;
        inode.touch_mtime();
    }
    Ok(())
}
