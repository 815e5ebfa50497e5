//! Names and attributes: what `file` leaves out. Thin layers over the vfs crate.

use super::file::{at_dir, files, fs, get};
use super::process::read_path;
use super::{Args, SysResult};
use crate::arch::PtRegs;
use crate::arch::uaccess::{Plain, get_user, put_user, strncpy_from_user};
use crate::errno::Errno;
use slab::KArc;
use vfs::{At, DevId, File, FsStruct, Kstat, Kstatfs, OpenFlags, RenameFlags, Timespec};

pub const AT_FDCWD: i32 = -100;
const AT_SYMLINK_NOFOLLOW: usize = 0x100;
const AT_SYMLINK_FOLLOW: usize = 0x400;
const AT_EMPTY_PATH: usize = 0x1000;

/// Where a path starts, held.
struct Base {
    fs: KArc<FsStruct>,
    file: Option<KArc<File>>,
}

impl Base {
    fn new(dirfd: i32, path: &[u8]) -> Result<Base, Errno> {
        let relative = dirfd != AT_FDCWD && path.first() != Some(&b'/');
        let file = match relative {
            true => Some(files()?.get_raw(dirfd)?),
            false => None,
        };
        Ok(Base { fs: fs()?, file })
    }

    fn at(&self) -> At<'_> {
        match &self.file {
            Some(file) => At::dir(&self.fs, file),
            None => At::cwd(&self.fs),
        }
    }
}

fn done<E>(result: Result<(), E>) -> SysResult
where
    Errno: From<E>,
{
    result?;
    Ok(0)
}

// ------------------------------------------------------------------------------------------- names

fn do_rename(old_fd: i32, old_at: usize, new_fd: i32, new_at: usize, flags: u32) -> SysResult {
    let (old, new) = (read_path(old_at)?, read_path(new_at)?);
    let (from, to) = (Base::new(old_fd, &old)?, Base::new(new_fd, &new)?);
    let flags = RenameFlags::from_bits_retain(flags);
    done(vfs::rename(from.at(), &old, to.at(), &new, flags))
}

pub fn rename(regs: &mut PtRegs) -> SysResult {
    do_rename(AT_FDCWD, regs.arg::<0>(), AT_FDCWD, regs.arg::<1>(), 0)
}

/// renameat too, which has no flags.
pub fn renameat(regs: &mut PtRegs) -> SysResult {
    let (old, new) = (regs.arg::<0>() as i32, regs.arg::<2>() as i32);
    do_rename(old, regs.arg::<1>(), new, regs.arg::<3>(), 0)
}

pub fn renameat2(regs: &mut PtRegs) -> SysResult {
    let (old, new) = (regs.arg::<0>() as i32, regs.arg::<2>() as i32);
    let flags = regs.arg::<4>() as u32;
    do_rename(old, regs.arg::<1>(), new, regs.arg::<3>(), flags)
}

fn do_link(old_fd: i32, old_at: usize, new_fd: i32, new_at: usize, flags: usize) -> SysResult {
    if flags & !(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let empty = flags & AT_EMPTY_PATH != 0 && get_user::<u8>(old_at)? == 0;
    if empty {
        let old = files()?.get_raw(old_fd)?;
        let new = read_path(new_at)?;
        return done(vfs::flink(&old, Base::new(new_fd, &new)?.at(), &new));
    }
    let (old, new) = (read_path(old_at)?, read_path(new_at)?);
    let (from, to) = (Base::new(old_fd, &old)?, Base::new(new_fd, &new)?);
    let follow = flags & AT_SYMLINK_FOLLOW != 0;
    done(vfs::link(from.at(), &old, follow, to.at(), &new))
}

pub fn link(regs: &mut PtRegs) -> SysResult {
    do_link(AT_FDCWD, regs.arg::<0>(), AT_FDCWD, regs.arg::<1>(), 0)
}

pub fn linkat(regs: &mut PtRegs) -> SysResult {
    let (old, new) = (regs.arg::<0>() as i32, regs.arg::<2>() as i32);
    do_link(old, regs.arg::<1>(), new, regs.arg::<3>(), regs.arg::<4>())
}

fn do_symlink(target_at: usize, dirfd: i32, path_at: usize) -> SysResult {
    let (target, path) = (read_path(target_at)?, read_path(path_at)?);
    done(at_dir(dirfd, &path, |at| vfs::symlink(&target, at, &path)))
}

pub fn symlink(regs: &mut PtRegs) -> SysResult {
    do_symlink(regs.arg::<0>(), AT_FDCWD, regs.arg::<1>())
}

pub fn symlinkat(regs: &mut PtRegs) -> SysResult {
    do_symlink(regs.arg::<0>(), regs.arg::<1>() as i32, regs.arg::<2>())
}

fn do_mknod(dirfd: i32, path_at: usize, mode: usize, dev: usize) -> SysResult {
    let path = read_path(path_at)?;
    let dev = DevId::decode(dev as u32);
    done(at_dir(dirfd, &path, |at| {
        vfs::mknod(at, &path, mode as u32, dev)
    }))
}

pub fn mknod(regs: &mut PtRegs) -> SysResult {
    do_mknod(AT_FDCWD, regs.arg::<0>(), regs.arg::<1>(), regs.arg::<2>())
}

pub fn mknodat(regs: &mut PtRegs) -> SysResult {
    do_mknod(
        regs.arg::<0>() as i32,
        regs.arg::<1>(),
        regs.arg::<2>(),
        regs.arg::<3>(),
    )
}

pub fn creat(regs: &mut PtRegs) -> SysResult {
    let flags = OpenFlags::CREAT | OpenFlags::WRONLY | OpenFlags::TRUNC;
    super::file::do_open(
        AT_FDCWD,
        regs.arg::<0>(),
        flags.bits() as usize,
        regs.arg::<1>(),
    )
}

pub fn fchdir(regs: &mut PtRegs) -> SysResult {
    let file = files()?.get_raw(regs.arg::<0>() as i32)?;
    done(vfs::fchdir(&*fs()?, &file))
}

pub fn chroot(regs: &mut PtRegs) -> SysResult {
    let path = read_path(regs.arg::<0>())?;
    done(at_dir(AT_FDCWD, &path, |at| vfs::chroot(at, &path)))
}

// -------------------------------------------------------------------------------------- attributes

fn do_chmod(dirfd: i32, path_at: usize, mode: usize, follow: bool) -> SysResult {
    let path = read_path(path_at)?;
    let mode = mode as u32 & 0o7777;
    done(at_dir(dirfd, &path, |at| {
        vfs::chmod(at, &path, mode, follow)
    }))
}

pub fn chmod(regs: &mut PtRegs) -> SysResult {
    do_chmod(AT_FDCWD, regs.arg::<0>(), regs.arg::<1>(), true)
}

pub fn fchmodat(regs: &mut PtRegs) -> SysResult {
    do_chmod(
        regs.arg::<0>() as i32,
        regs.arg::<1>(),
        regs.arg::<2>(),
        true,
    )
}

pub fn fchmodat2(regs: &mut PtRegs) -> SysResult {
    let (dirfd, flags) = (regs.arg::<0>() as i32, regs.arg::<3>());
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & AT_EMPTY_PATH != 0 && get_user::<u8>(regs.arg::<1>())? == 0 {
        let file = files()?.get_raw(dirfd)?;
        return done(vfs::fchmod(&file, regs.arg::<2>() as u32 & 0o7777));
    }
    let follow = flags & AT_SYMLINK_NOFOLLOW == 0;
    do_chmod(dirfd, regs.arg::<1>(), regs.arg::<2>(), follow)
}

pub fn fchmod(regs: &mut PtRegs) -> SysResult {
    let file = files()?.get_raw(regs.arg::<0>() as i32)?;
    done(vfs::fchmod(&file, regs.arg::<1>() as u32 & 0o7777))
}

/// An id as chown takes it: -1 leaves it as it is.
fn id(word: usize) -> Option<u32> {
    Some(word as u32).filter(|&id| id != u32::MAX)
}

fn do_chown(dirfd: i32, path_at: usize, ids: [usize; 2], follow: bool) -> SysResult {
    let path = read_path(path_at)?;
    done(at_dir(dirfd, &path, |at| {
        vfs::chown(at, &path, id(ids[0]), id(ids[1]), follow)
    }))
}

pub fn chown(regs: &mut PtRegs) -> SysResult {
    let ids = [regs.arg::<1>(), regs.arg::<2>()];
    do_chown(AT_FDCWD, regs.arg::<0>(), ids, true)
}

pub fn lchown(regs: &mut PtRegs) -> SysResult {
    let ids = [regs.arg::<1>(), regs.arg::<2>()];
    do_chown(AT_FDCWD, regs.arg::<0>(), ids, false)
}

pub fn fchown(regs: &mut PtRegs) -> SysResult {
    let file = files()?.get_raw(regs.arg::<0>() as i32)?;
    done(vfs::fchown(&file, id(regs.arg::<1>()), id(regs.arg::<2>())))
}

pub fn fchownat(regs: &mut PtRegs) -> SysResult {
    let (dirfd, path_at, flags) = (regs.arg::<0>() as i32, regs.arg::<1>(), regs.arg::<4>());
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let ids = [regs.arg::<2>(), regs.arg::<3>()];
    if flags & AT_EMPTY_PATH != 0 && get_user::<u8>(path_at)? == 0 {
        let file = files()?.get_raw(dirfd)?;
        return done(vfs::fchown(&file, id(ids[0]), id(ids[1])));
    }
    do_chown(dirfd, path_at, ids, flags & AT_SYMLINK_NOFOLLOW == 0)
}

/// One of utimensat's times: None leaves it as it is.
fn file_time(at: usize) -> Result<Option<Timespec>, Errno> {
    const UTIME_NOW: i64 = 0x3fff_ffff;
    const UTIME_OMIT: i64 = 0x3fff_fffe;
    let [sec, nsec]: [i64; 2] = get_user(at)?;
    match nsec {
        UTIME_NOW => Ok(Some(vfs::hooks::now())),
        UTIME_OMIT => Ok(None),
        0..1_000_000_000 => Ok(Some(Timespec {
            ns: (sec.max(0) as u64)
                .saturating_mul(1_000_000_000)
                .saturating_add(nsec as u64),
        })),
        _ => Err(Errno::EINVAL),
    }
}

pub fn utimensat(regs: &mut PtRegs) -> SysResult {
    let (dirfd, path_at, times_at) = (regs.arg::<0>() as i32, regs.arg::<1>(), regs.arg::<2>());
    let flags = regs.arg::<3>();
    let (atime, mtime) = match times_at {
        0 => (Some(vfs::hooks::now()), Some(vfs::hooks::now())),
        at => (file_time(at)?, file_time(at + 16)?),
    };
    if times_at != 0 && atime.is_none() && mtime.is_none() {
        return Ok(0); // nothing to do, whatever the path
    }
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    if path_at == 0 && dirfd != AT_FDCWD {
        let file = get(dirfd)?;
        return done(vfs::futimens(&file, atime, mtime));
    }
    let path = read_path(path_at)?;
    let follow = flags & AT_SYMLINK_NOFOLLOW == 0;
    done(at_dir(dirfd, &path, |at| {
        vfs::utimens(at, &path, atime, mtime, follow)
    }))
}

pub fn truncate(regs: &mut PtRegs) -> SysResult {
    let len = regs.arg::<1>() as i64;
    if len < 0 {
        return Err(Errno::EINVAL);
    }
    let path = read_path(regs.arg::<0>())?;
    done(at_dir(AT_FDCWD, &path, |at| vfs::truncate(at, &path, len)))
}

pub fn fallocate(regs: &mut PtRegs) -> SysResult {
    let file = get(regs.arg::<0>() as i32)?;
    done(file.fallocate(
        regs.arg::<1>() as u32,
        regs.arg::<2>() as i64,
        regs.arg::<3>() as i64,
    ))
}

/// fsync, fdatasync: there is nothing to write back. EBADF.
pub fn fsync(regs: &mut PtRegs) -> SysResult {
    match get(regs.arg::<0>() as i32)?.inode() {
        Some(_) => Ok(0),
        None => Err(Errno::EINVAL),
    }
}

pub fn flock(regs: &mut PtRegs) -> SysResult {
    const LOCK_NB: usize = 4;
    // One lock holder at a time is not kept: locks are advice, and here nobody takes it.
    match regs.arg::<1>() & !LOCK_NB {
        1 | 2 | 8 => get(regs.arg::<0>() as i32).map(|_| 0),
        _ => Err(Errno::EINVAL),
    }
}

pub fn fadvise64(regs: &mut PtRegs) -> SysResult {
    const POSIX_FADV_NOREUSE: usize = 5;
    let file = get(regs.arg::<0>() as i32)?;
    if file.pipe().is_some() {
        return Err(Errno::ESPIPE);
    }
    if (regs.arg::<2>() as i64) < 0 || regs.arg::<3>() > POSIX_FADV_NOREUSE {
        return Err(Errno::EINVAL);
    }
    Ok(0)
}

pub fn memfd_create(regs: &mut PtRegs) -> SysResult {
    const MFD_CLOEXEC: usize = 1;
    const MFD_ALLOW_SEALING: usize = 2;
    const MFD_NOEXEC_SEAL: usize = 8;
    const MFD_EXEC: usize = 16;
    let flags = regs.arg::<1>();
    if flags & !(MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | MFD_EXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    let mut name = [0; 250];
    let len = strncpy_from_user(&mut name, regs.arg::<0>())?.ok_or(Errno::EINVAL)?;
    let files = files()?;
    let slot = files.reserve(flags & MFD_CLOEXEC != 0)?;
    let mut shown = [0; 256];
    shown[..6].copy_from_slice(b"memfd:");
    shown[6..6 + len].copy_from_slice(&name[..len]);
    Ok(slot.install(vfs::memfd(&shown[..6 + len], OpenFlags::empty())?) as usize)
}

pub fn close_range(regs: &mut PtRegs) -> SysResult {
    const UNSHARE: usize = 2;
    const CLOEXEC: usize = 4;
    let (first, last, flags) = (
        regs.arg::<0>() as u32,
        regs.arg::<1>() as u32,
        regs.arg::<2>(),
    );
    if flags & !(UNSHARE | CLOEXEC) != 0 || first > last {
        return Err(Errno::EINVAL);
    }
    if flags & UNSHARE != 0 {
        let copy = files()?.dup_for_fork()?;
        *crate::sched::current_ref().files.lock() = Some(copy);
    }
    done(files()?.close_range(first, last, flags & CLOEXEC != 0))
}

/// As read and write, a page at a time.
pub fn copy_file_range(regs: &mut PtRegs) -> SysResult {
    let (from, to) = (get(regs.arg::<0>() as i32)?, get(regs.arg::<2>() as i32)?);
    let (in_at, out_at) = (regs.arg::<1>(), regs.arg::<3>());
    if regs.arg::<5>() != 0 {
        return Err(Errno::EINVAL);
    }
    let regular = |file: &File| file.inode().is_some_and(|i| i.as_regular().is_some());
    if !regular(&from) || !regular(&to) {
        return Err(Errno::EINVAL);
    }
    let offset = |at: usize| match at {
        0 => Ok(None),
        at => get_user::<i64>(at).map(Some),
    };
    let (mut in_pos, mut out_pos) = (offset(in_at)?, offset(out_at)?);
    let count = regs.arg::<4>().min(super::uio::MAX_RW_COUNT);
    let mut buf = slab::KBox::new([0u8; 4096])?;
    let mut copied = 0;
    while copied < count {
        let want = (count - copied).min(buf.len());
        let mut room: &mut [u8] = &mut buf[..want];
        let n = match &mut in_pos {
            Some(pos) => from.pread(&mut room, *pos).inspect(|&n| *pos += n as i64)?,
            None => from.read(&mut room)?,
        };
        if n == 0 {
            break;
        }
        let mut bytes: &[u8] = &buf[..n];
        match &mut out_pos {
            Some(pos) => to.pwrite(&mut bytes, *pos).inspect(|&n| *pos += n as i64)?,
            None => to.write(&mut bytes)?,
        };
        copied += n;
    }
    if let Some(pos) = in_pos {
        put_user(in_at, &pos)?;
    }
    if let Some(pos) = out_pos {
        put_user(out_at, &pos)?;
    }
    Ok(copied)
}

// --------------------------------------------------------------------------------- statx and statfs

/// `struct statx`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UserStatx {
    mask: u32,
    blksize: u32,
    attributes: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    pad: u16,
    ino: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    /// atime, btime, ctime, mtime: seconds, and nanoseconds in 32 bits.
    times: [[u64; 2]; 4],
    /// Major and minor number of the device the inode stands for, then of the one it is on.
    devices: [u32; 4],
    spare: [u64; 14],
}
// SAFETY: repr(C) integers; the padding is a field.
unsafe impl Plain for UserStatx {}
const _: () = assert!(size_of::<UserStatx>() == 256);

pub fn statx(regs: &mut PtRegs) -> SysResult {
    const SYNC_TYPE: usize = 0x6000;
    const NO_AUTOMOUNT: usize = 0x800;
    const RESERVED: usize = 0x8000_0000;
    let (dirfd, path_at, flags) = (regs.arg::<0>() as i32, regs.arg::<1>(), regs.arg::<2>());
    if regs.arg::<3>() & RESERVED != 0 || flags & SYNC_TYPE == SYNC_TYPE {
        return Err(Errno::EINVAL);
    }
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | NO_AUTOMOUNT | SYNC_TYPE) != 0 {
        return Err(Errno::EINVAL);
    }
    let stat = super::file::stat_at(dirfd, path_at, flags)?;
    put_statx(regs.arg::<4>(), &stat)
}

fn put_statx(at: usize, s: &Kstat) -> SysResult {
    const BASIC_STATS_AND_BTIME: u32 = 0xfff;
    let time = |t: Timespec| [t.sec(), t.nsec()];
    put_user(
        at,
        &UserStatx {
            mask: BASIC_STATS_AND_BTIME,
            blksize: s.blksize,
            attributes: 0,
            nlink: s.nlink,
            uid: s.uid,
            gid: s.gid,
            mode: s.mode as u16,
            pad: 0,
            ino: s.ino,
            size: s.size,
            blocks: s.blocks,
            attributes_mask: 0,
            times: [time(s.atime), time(s.btime), time(s.ctime), time(s.mtime)],
            devices: [s.rdev.major, s.rdev.minor, s.dev.major, s.dev.minor],
            spare: [0; 14],
        },
    )?;
    Ok(0)
}

fn put_statfs(at: usize, s: &Kstatfs) -> SysResult {
    let mut words = [0u64; 15];
    words[..7].copy_from_slice(&[
        s.f_type, s.bsize, s.blocks, s.bfree, s.bavail, s.files, s.ffree,
    ]);
    (words[8], words[9]) = (s.namelen, s.bsize);
    put_user(at, &words)?;
    Ok(0)
}

pub fn statfs(regs: &mut PtRegs) -> SysResult {
    let path = read_path(regs.arg::<0>())?;
    let stat = at_dir(AT_FDCWD, &path, |at| vfs::statfs(at, &path))?;
    put_statfs(regs.arg::<1>(), &stat)
}

pub fn fstatfs(regs: &mut PtRegs) -> SysResult {
    let file = files()?.get_raw(regs.arg::<0>() as i32)?;
    put_statfs(regs.arg::<1>(), &vfs::fstatfs(&file))
}

// ------------------------------------------------------------------------------ extended attributes

/// No file has any: what Linux says where a file system keeps them and this one is not there, or where it keeps none.
fn no_xattr(name_at: usize) -> SysResult {
    let mut name = [0; 256];
    let len = strncpy_from_user(&mut name, name_at)?.ok_or(Errno::ERANGE)?;
    if len == 0 {
        return Err(Errno::ERANGE);
    }
    let kept = [&b"security."[..], b"trusted.", b"user."];
    if kept.iter().any(|prefix| name[..len].starts_with(prefix)) {
        return Err(Errno::ENODATA);
    }
    Err(Errno::ENOTSUP)
}

fn exists(path_at: usize, follow: bool) -> Result<(), Errno> {
    let path = read_path(path_at)?;
    at_dir(AT_FDCWD, &path, |at| vfs::stat(at, &path, follow)).map(drop)
}

/// getxattr, removexattr.
pub fn getxattr(regs: &mut PtRegs) -> SysResult {
    exists(regs.arg::<0>(), true)?;
    no_xattr(regs.arg::<1>())
}

pub fn lgetxattr(regs: &mut PtRegs) -> SysResult {
    exists(regs.arg::<0>(), false)?;
    no_xattr(regs.arg::<1>())
}

pub fn fgetxattr(regs: &mut PtRegs) -> SysResult {
    get(regs.arg::<0>() as i32)?;
    no_xattr(regs.arg::<1>())
}

pub fn setxattr(regs: &mut PtRegs) -> SysResult {
    exists(regs.arg::<0>(), true)?;
    Err(Errno::ENOTSUP)
}

pub fn fsetxattr(regs: &mut PtRegs) -> SysResult {
    get(regs.arg::<0>() as i32)?;
    Err(Errno::ENOTSUP)
}

pub fn listxattr(regs: &mut PtRegs) -> SysResult {
    exists(regs.arg::<0>(), true)?;
    Ok(0)
}

pub fn llistxattr(regs: &mut PtRegs) -> SysResult {
    exists(regs.arg::<0>(), false)?;
    Ok(0)
}

pub fn flistxattr(regs: &mut PtRegs) -> SysResult {
    get(regs.arg::<0>() as i32)?;
    Ok(0)
}

// ------------------------------------------------------------------------------------------ mounts

pub fn mount(regs: &mut PtRegs) -> SysResult {
    const MS_REMOUNT: usize = 32;
    const MS_BIND: usize = 4096;
    const MS_MOVE: usize = 8192;
    const PROPAGATION: usize = 0xf << 17;
    let flags = regs.arg::<3>();
    let path = read_path(regs.arg::<1>())?;
    if flags & PROPAGATION != 0 {
        // There is one table of mounts for all: nothing is propagated, whatever is asked.
        return done(exists(regs.arg::<1>(), true));
    }
    if flags & (MS_REMOUNT | MS_BIND | MS_MOVE) != 0 {
        return Err(Errno::EINVAL);
    }
    let mut kind = [0; 32];
    let len = strncpy_from_user(&mut kind, regs.arg::<2>())?.ok_or(Errno::EINVAL)?;
    if &kind[..len] != b"proc" {
        return Err(Errno::ENODEV);
    }
    done(crate::procfs::mount(&*fs()?, &path))
}

pub fn umount2(regs: &mut PtRegs) -> SysResult {
    const MNT_FORCE: usize = 1;
    const MNT_DETACH: usize = 2;
    const UMOUNT_NOFOLLOW: usize = 8;
    let flags = regs.arg::<1>();
    if flags & !(MNT_FORCE | MNT_DETACH | UMOUNT_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    let path = read_path(regs.arg::<0>())?;
    let fs = fs()?;
    done(vfs::umount(At::cwd(&fs), &path, flags & MNT_DETACH != 0))
}

// ------------------------------------------------------------------------------------ nothing there

/// socket, socketpair: no family is known.
pub fn socket(_: &mut PtRegs) -> SysResult {
    Err(Errno::EAFNOSUPPORT)
}

/// connect, bind and their kin: no descriptor is a socket.
pub fn on_socket(regs: &mut PtRegs) -> SysResult {
    get(regs.arg::<0>() as i32)?;
    Err(Errno::ENOTSOCK)
}

/// preadv and pwritev: one transfer at a position that stays.
pub fn preadv(regs: &mut PtRegs) -> SysResult {
    let file = get(regs.arg::<0>() as i32)?;
    let mut ranges = super::uio::UserRanges::read(regs.arg::<1>(), regs.arg::<2>())?;
    Ok(file.pread(&mut ranges, regs.arg::<3>() as i64)?)
}

pub fn pwritev(regs: &mut PtRegs) -> SysResult {
    let file = get(regs.arg::<0>() as i32)?;
    let mut ranges = super::uio::UserRanges::read(regs.arg::<1>(), regs.arg::<2>())?;
    Ok(file.pwrite(&mut ranges, regs.arg::<3>() as i64)?)
}
