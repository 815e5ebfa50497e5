//! Files: thin layers over the vfs crate, and the layouts of what they return.

use super::process::read_path;
use super::uio::{MAX_RW_COUNT, UserRange, UserRanges};
use super::{Args, SysResult};
use crate::arch::PtRegs;
use crate::arch::uaccess::{self, Plain, get_user, put_user};
use crate::errno::Errno;
use crate::sched::current_ref;
use rmap::SpaceRef;
use slab::KArc;
use task::signal::{self, SIGPIPE, SigInfo};
use vfs::{AccessMode, At, File, Files, FsStruct, Kstat, Mappable, OpenFlags, Whence};

const AT_FDCWD: i32 = -100;
const AT_SYMLINK_NOFOLLOW: usize = 0x100;
const AT_REMOVEDIR: usize = 0x200;
const AT_EMPTY_PATH: usize = 0x1000;
pub fn files() -> Result<KArc<Files>, Errno> {
    current_ref().files.lock().clone().ok_or(Errno::EBADF)
}

pub fn fs() -> Result<KArc<FsStruct>, Errno> {
    current_ref().fs.lock().clone().ok_or(Errno::ENOENT)
}

/// The open file behind a descriptor.
#[inline]
pub fn get(fd: i32) -> Result<KArc<File>, Errno> {
    match &*current_ref().files.lock() {
        Some(files) => Ok(files.get(fd)?),
        None => Err(Errno::EBADF),
    }
}

/// The page cache behind an open regular file.
pub fn mapping_of(file: &File) -> Result<SpaceRef, Errno> {
    match file.mappable()? {
        Mappable::Cache(space) => Ok(SpaceRef::of(space)),
        Mappable::Anonymous => Err(Errno::ENODEV),
    }
}

/// A write to a pipe nobody reads also raises SIGPIPE.
fn written(result: Result<usize, vfs::VfsError>) -> SysResult {
    result.map_err(|e| {
        if e == vfs::VfsError::EPIPE {
            signal::send_to_task(
                current_ref(),
                &SigInfo {
                    signo: SIGPIPE,
                    ..SigInfo::kernel(SIGPIPE)
                },
            );
        }
        e.into()
    })
}

pub fn read(regs: &mut PtRegs) -> SysResult {
    let file = get(regs.arg::<0>() as i32)?;
    Ok(file.read(&mut UserRange::new(regs.arg::<1>(), regs.arg::<2>())?)?)
}

pub fn write(regs: &mut PtRegs) -> SysResult {
    let file = get(regs.arg::<0>() as i32)?;
    written(file.write(&mut UserRange::new(regs.arg::<1>(), regs.arg::<2>())?))
}

pub fn pread64(regs: &mut PtRegs) -> SysResult {
    let file = get(regs.arg::<0>() as i32)?;
    Ok(file.pread(
        &mut UserRange::new(regs.arg::<1>(), regs.arg::<2>())?,
        regs.arg::<3>() as i64,
    )?)
}

pub fn pwrite64(regs: &mut PtRegs) -> SysResult {
    let file = get(regs.arg::<0>() as i32)?;
    written(file.pwrite(
        &mut UserRange::new(regs.arg::<1>(), regs.arg::<2>())?,
        regs.arg::<3>() as i64,
    ))
}

pub fn readv(regs: &mut PtRegs) -> SysResult {
    let file = get(regs.arg::<0>() as i32)?;
    if !file.readable() {
        return Err(Errno::EBADF);
    }
    Ok(file.read(&mut UserRanges::read(regs.arg::<1>(), regs.arg::<2>())?)?)
}

pub fn writev(regs: &mut PtRegs) -> SysResult {
    let file = get(regs.arg::<0>() as i32)?;
    if !file.writable() {
        return Err(Errno::EBADF);
    }
    written(file.write(&mut UserRanges::read(regs.arg::<1>(), regs.arg::<2>())?))
}

/// Runs `f` with the directory that `dirfd` names.
pub fn at_dir<R>(
    dirfd: i32,
    path: &[u8],
    f: impl FnOnce(At) -> Result<R, vfs::VfsError>,
) -> Result<R, Errno> {
    let fs = fs()?;
    if dirfd == AT_FDCWD || path.first() == Some(&b'/') {
        return Ok(f(At::cwd(&fs))?);
    }
    let base = files()?.get_raw(dirfd)?;
    Ok(f(At::dir(&fs, &base))?)
}

pub fn do_open(dirfd: i32, path_at: usize, flags: usize, mode: usize) -> SysResult {
    let flags = OpenFlags::from_bits_retain(flags as u32);
    let path = read_path(path_at)?;
    let files = files()?;
    let slot = files.reserve(flags.contains(OpenFlags::CLOEXEC))?;
    let file = at_dir(dirfd, &path, |at| {
        vfs::open(at, &path, flags, mode as u32 & 0o7777)
    })?;
    Ok(slot.install(file) as usize)
}

pub fn open(regs: &mut PtRegs) -> SysResult {
    do_open(AT_FDCWD, regs.arg::<0>(), regs.arg::<1>(), regs.arg::<2>())
}

pub fn openat(regs: &mut PtRegs) -> SysResult {
    do_open(
        regs.arg::<0>() as i32,
        regs.arg::<1>(),
        regs.arg::<2>(),
        regs.arg::<3>(),
    )
}

pub fn close(regs: &mut PtRegs) -> SysResult {
    drop(files()?.close(regs.arg::<0>() as i32)?);
    Ok(0)
}

/// `struct stat`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UserStat {
    dev: u64,
    ino: u64,
    nlink: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    pad: u32,
    rdev: u64,
    size: i64,
    blksize: i64,
    blocks: i64,
    times: [u64; 6],
    unused: [i64; 3],
}
// SAFETY: repr(C) integers; the padding is a field.
unsafe impl Plain for UserStat {}
const _: () = assert!(size_of::<UserStat>() == 144);

fn put_stat(at: usize, s: &Kstat) -> SysResult {
    put_user(
        at,
        &UserStat {
            dev: s.dev.encode(),
            ino: s.ino,
            nlink: s.nlink as u64,
            mode: s.mode,
            uid: s.uid,
            gid: s.gid,
            pad: 0,
            rdev: s.rdev.encode(),
            size: s.size as i64,
            blksize: s.blksize as i64,
            blocks: s.blocks as i64,
            times: [
                s.atime.sec(),
                s.atime.nsec(),
                s.mtime.sec(),
                s.mtime.nsec(),
                s.ctime.sec(),
                s.ctime.nsec(),
            ],
            unused: [0; 3],
        },
    )?;
    Ok(0)
}

fn stat_path(dirfd: i32, path_at: usize, follow: bool) -> Result<Kstat, Errno> {
    let path = read_path(path_at)?;
    at_dir(dirfd, &path, |at| vfs::stat(at, &path, follow))
}

pub fn stat(regs: &mut PtRegs) -> SysResult {
    put_stat(
        regs.arg::<1>(),
        &stat_path(AT_FDCWD, regs.arg::<0>(), true)?,
    )
}

pub fn lstat(regs: &mut PtRegs) -> SysResult {
    put_stat(
        regs.arg::<1>(),
        &stat_path(AT_FDCWD, regs.arg::<0>(), false)?,
    )
}

pub fn fstat(regs: &mut PtRegs) -> SysResult {
    put_stat(
        regs.arg::<1>(),
        &files()?.get_raw(regs.arg::<0>() as i32)?.stat(),
    )
}

pub fn newfstatat(regs: &mut PtRegs) -> SysResult {
    let flags = regs.arg::<3>();
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | 0x800) != 0 {
        return Err(Errno::EINVAL);
    }
    let stat = stat_at(regs.arg::<0>() as i32, regs.arg::<1>(), flags)?;
    put_stat(regs.arg::<2>(), &stat)
}

/// Attributes of what a directory, a path and AT_ flags name.
pub fn stat_at(dirfd: i32, path_at: usize, flags: usize) -> Result<Kstat, Errno> {
    let empty = flags & AT_EMPTY_PATH != 0 && (path_at == 0 || get_user::<u8>(path_at)? == 0);
    if empty && dirfd != AT_FDCWD {
        Ok(files()?.get_raw(dirfd)?.stat())
    } else if empty {
        at_dir(AT_FDCWD, b".", |at| vfs::stat(at, b".", true))
    } else {
        stat_path(dirfd, path_at, flags & AT_SYMLINK_NOFOLLOW == 0)
    }
}

pub fn lseek(regs: &mut PtRegs) -> SysResult {
    let file = get(regs.arg::<0>() as i32)?;
    Ok(file.lseek(
        regs.arg::<1>() as i64,
        Whence::from_raw(regs.arg::<2>() as u32)?,
    )? as usize)
}

pub fn getdents64(regs: &mut PtRegs) -> SysResult {
    let file = get(regs.arg::<0>() as i32)?;
    Ok(file.getdents64(&mut UserRange::new(
        regs.arg::<1>(),
        regs.arg::<2>() & 0xffff_ffff,
    )?)?)
}

fn do_pipe(at: usize, flags: OpenFlags) -> SysResult {
    let allowed = OpenFlags::CLOEXEC | OpenFlags::NONBLOCK | OpenFlags::DIRECT;
    if flags.bits() & !allowed.bits() != 0 {
        return Err(Errno::EINVAL);
    }
    let cloexec = flags.contains(OpenFlags::CLOEXEC);
    let files = files()?;
    let (read, write) = vfs::pipe(flags)?;
    let first = files.reserve(cloexec)?;
    let second = files.reserve(cloexec)?;
    put_user(at, &[first.fd(), second.fd()])?;
    first.install(read);
    second.install(write);
    Ok(0)
}

pub fn pipe(regs: &mut PtRegs) -> SysResult {
    do_pipe(regs.arg::<0>(), OpenFlags::empty())
}

pub fn pipe2(regs: &mut PtRegs) -> SysResult {
    do_pipe(
        regs.arg::<0>(),
        OpenFlags::from_bits_retain(regs.arg::<1>() as u32),
    )
}

pub fn dup(regs: &mut PtRegs) -> SysResult {
    Ok(files()?.dup(regs.arg::<0>() as i32)? as usize)
}

pub fn dup2(regs: &mut PtRegs) -> SysResult {
    Ok(files()?.dup2(regs.arg::<0>() as i32, regs.arg::<1>() as i32)? as usize)
}

pub fn dup3(regs: &mut PtRegs) -> SysResult {
    let flags = OpenFlags::from_bits_retain(regs.arg::<2>() as u32);
    if flags.bits() & !OpenFlags::CLOEXEC.bits() != 0 {
        return Err(Errno::EINVAL);
    }
    let cloexec = flags.contains(OpenFlags::CLOEXEC);
    Ok(files()?.dup3(regs.arg::<0>() as i32, regs.arg::<1>() as i32, cloexec)? as usize)
}

pub fn fcntl(regs: &mut PtRegs) -> SysResult {
    const F_DUPFD: usize = 0;
    const F_GETFD: usize = 1;
    const F_SETFD: usize = 2;
    const F_GETFL: usize = 3;
    const F_SETFL: usize = 4;
    const F_DUPFD_CLOEXEC: usize = 1030;
    let (fd, arg) = (regs.arg::<0>() as i32, regs.arg::<2>());
    let files = files()?;
    let file = files.get_raw(fd)?;
    match regs.arg::<1>() {
        F_DUPFD => {
            Ok(files.dup_from(fd, u32::try_from(arg).map_err(|_| Errno::EINVAL)?, false)? as usize)
        }
        F_DUPFD_CLOEXEC => {
            Ok(files.dup_from(fd, u32::try_from(arg).map_err(|_| Errno::EINVAL)?, true)? as usize)
        }
        F_GETFD => Ok(files.cloexec(fd)? as usize),
        F_SETFD => {
            files.set_cloexec(fd, arg & 1 != 0)?;
            Ok(0)
        }
        F_GETFL => Ok(file.flags().bits() as usize),
        F_SETFL => {
            file.set_flags(OpenFlags::from_bits_retain(arg as u32));
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

pub fn ftruncate(regs: &mut PtRegs) -> SysResult {
    get(regs.arg::<0>() as i32)?.ftruncate(regs.arg::<1>() as i64)?;
    Ok(0)
}

pub fn access(regs: &mut PtRegs) -> SysResult {
    do_access(AT_FDCWD, regs.arg::<0>(), regs.arg::<1>())
}

pub fn faccessat(regs: &mut PtRegs) -> SysResult {
    do_access(regs.arg::<0>() as i32, regs.arg::<1>(), regs.arg::<2>())
}

fn do_access(dirfd: i32, path_at: usize, mode: usize) -> SysResult {
    let mode = AccessMode::from_bits(mode as u32).ok_or(Errno::EINVAL)?;
    let path = read_path(path_at)?;
    at_dir(dirfd, &path, |at| vfs::access(at, &path, mode, true))?;
    Ok(0)
}

pub fn getcwd(regs: &mut PtRegs) -> SysResult {
    let mut buf = slab::KBox::new([0u8; 4096])?;
    let fs = fs()?;
    let path = vfs::getcwd(&fs, &mut *buf)?;
    if path.len() + 1 > regs.arg::<1>() {
        return Err(Errno::ERANGE);
    }
    uaccess::copy_to_user(regs.arg::<0>(), path)?;
    put_user(regs.arg::<0>() + path.len(), &0u8)?;
    Ok(path.len() + 1)
}

pub fn chdir(regs: &mut PtRegs) -> SysResult {
    let path = read_path(regs.arg::<0>())?;
    at_dir(AT_FDCWD, &path, |at| vfs::chdir(at, &path))?;
    Ok(0)
}

fn do_mkdir(dirfd: i32, path_at: usize, mode: usize) -> SysResult {
    let path = read_path(path_at)?;
    at_dir(dirfd, &path, |at| {
        vfs::mkdir(at, &path, mode as u32 & 0o7777)
    })?;
    Ok(0)
}

pub fn mkdir(regs: &mut PtRegs) -> SysResult {
    do_mkdir(AT_FDCWD, regs.arg::<0>(), regs.arg::<1>())
}

pub fn mkdirat(regs: &mut PtRegs) -> SysResult {
    do_mkdir(regs.arg::<0>() as i32, regs.arg::<1>(), regs.arg::<2>())
}

fn do_unlink(dirfd: i32, path_at: usize, dir: bool) -> SysResult {
    let path = read_path(path_at)?;
    at_dir(dirfd, &path, |at| {
        if dir {
            vfs::rmdir(at, &path)
        } else {
            vfs::unlink(at, &path)
        }
    })?;
    Ok(0)
}

pub fn unlink(regs: &mut PtRegs) -> SysResult {
    do_unlink(AT_FDCWD, regs.arg::<0>(), false)
}

pub fn rmdir(regs: &mut PtRegs) -> SysResult {
    do_unlink(AT_FDCWD, regs.arg::<0>(), true)
}

pub fn unlinkat(regs: &mut PtRegs) -> SysResult {
    do_unlink(
        regs.arg::<0>() as i32,
        regs.arg::<1>(),
        regs.arg::<2>() & AT_REMOVEDIR != 0,
    )
}

fn do_readlink(dirfd: i32, path_at: usize, at: usize, len: usize) -> SysResult {
    if len as isize <= 0 {
        return Err(Errno::EINVAL);
    }
    let path = read_path(path_at)?;
    let mut out = UserRange::new(at, len)?;
    at_dir(dirfd, &path, |base| vfs::readlink(base, &path, &mut out))
}

pub fn readlink(regs: &mut PtRegs) -> SysResult {
    do_readlink(AT_FDCWD, regs.arg::<0>(), regs.arg::<1>(), regs.arg::<2>())
}

pub fn readlinkat(regs: &mut PtRegs) -> SysResult {
    let (dirfd, len) = (regs.arg::<0>() as i32, regs.arg::<3>());
    if len as isize > 0 && get_user::<u8>(regs.arg::<1>())? == 0 && dirfd != AT_FDCWD {
        let file = files()?.get_raw(dirfd)?;
        let mut out = UserRange::new(regs.arg::<2>(), len)?;
        return Ok(vfs::freadlink(&*fs()?, &file, &mut out)?);
    }
    do_readlink(
        regs.arg::<0>() as i32,
        regs.arg::<1>(),
        regs.arg::<2>(),
        regs.arg::<3>(),
    )
}

pub fn umask(regs: &mut PtRegs) -> SysResult {
    Ok(fs()?.set_umask(regs.arg::<0>() as u32 & 0o777) as usize)
}

pub fn sendfile(regs: &mut PtRegs) -> SysResult {
    let (to, from) = (get(regs.arg::<0>() as i32)?, get(regs.arg::<1>() as i32)?);
    let (offset_at, count) = (regs.arg::<2>(), regs.arg::<3>().min(MAX_RW_COUNT));
    // Without an offset the file's own position counts, and moves by what was written, not by what was read.
    let start = match offset_at {
        0 => from.lseek(0, Whence::Cur).map_err(|_| Errno::EINVAL)? as i64,
        at => get_user::<i64>(at)?,
    };
    let mut buf = slab::KBox::new([0u8; 4096])?;
    let mut done = 0;
    while done < count {
        let want = (count - done).min(buf.len());
        let mut out: &mut [u8] = &mut buf[..want];
        let got = match from.pread(&mut out, start + done as i64) {
            Err(vfs::VfsError::ESPIPE) => return Err(Errno::EINVAL),
            got => got?,
        };
        if got == 0 {
            break;
        }
        let mut input: &[u8] = &buf[..got];
        match written(to.write(&mut input)) {
            Ok(put) => done += put,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
        if !input.is_empty() {
            break;
        }
    }
    let end = start + done as i64;
    match offset_at {
        0 => drop(from.lseek(end, Whence::Set)?),
        at => put_user(at, &end)?,
    }
    Ok(done)
}
