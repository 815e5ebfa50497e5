//! The calls that take a path and return no file: stat, mkdir, link, chmod and their kin.
//!
//! Those that only look run inside the walk's RCU section and count nothing.

use crate::VfsError;
use crate::dentry::{Dentry, lock_tree};
use crate::file::File;
use crate::flags::*;
use crate::fs_struct::FsStruct;
use crate::inode::{Dir, Inode, InodeKind, Target};
use crate::namei::{At, lookup, walk};
use crate::pipe::FifoHub;
use crate::regular::Regular;
use crate::stat::*;
use crate::synth::{SynthTarget, decimal};
use crate::tree::{Naming, insert, prepare};
use crate::uio::BufOut;
use core::ptr;
use ksync::rcu;
use slab::{KArc, KBox};

/// Attributes of what `path` names; `follow`: of a link's target. Any context that may spin.
#[inline]
pub fn stat(at: At<'_>, path: &[u8], follow: bool) -> Result<Kstat, VfsError> {
    walk(at, path, |w, _| Ok(w.finish(follow)?.inode().stat()))
}

bitflags::bitflags! {
    /// What `access` asks.
    #[derive(Copy, Clone, Debug, PartialEq, Eq)]
    pub struct AccessMode: u32 {
        /// Execute (or search).
        const EXEC = 1;
        /// Write.
        const WRITE = 2;
        /// Read.
        const READ = 4;
    }
}

/// Whether the superuser may: EACCES only for executing what has no execute bit.
pub fn access(at: At<'_>, path: &[u8], mode: AccessMode, follow: bool) -> Result<(), VfsError> {
    walk(at, path, |w, _| {
        w.finish(follow)?
            .inode()
            .permission(mode.contains(AccessMode::EXEC))
    })
}

/// Attributes of the file system that `path` is on.
pub fn statfs(at: At<'_>, path: &[u8]) -> Result<Kstatfs, VfsError> {
    walk(at, path, |w, _| Ok(statfs_of(w.finish(true)?.inode())))
}

fn statfs_of(inode: &Inode) -> Kstatfs {
    let mut stat = ramfs_statfs();
    if matches!(inode.kind, InodeKind::Synth(_)) {
        stat.f_type = PROC_SUPER_MAGIC;
        (stat.blocks, stat.bfree, stat.bavail) = (0, 0, 0);
    }
    stat
}

/// Attributes of the file system that `file` is on.
pub fn fstatfs(file: &File) -> Kstatfs {
    let mut stat = file.inode().map_or_else(ramfs_statfs, |i| statfs_of(i));
    if file.dentry().is_none() {
        stat.f_type = if file.pipe().is_some() {
            PIPEFS_MAGIC
        } else {
            ANON_INODE_FS_MAGIC
        };
        (stat.blocks, stat.bfree, stat.bavail) = (0, 0, 0);
    }
    stat
}

fn ramfs_statfs() -> Kstatfs {
    let (mut total, mut free) = (0, 0);
    for node in 0..ksync::arch::nr_node_ids() {
        let stat = page_alloc::nr_free(node);
        total += stat.total as u64;
        free += stat.free as u64;
    }
    Kstatfs {
        f_type: TMPFS_MAGIC,
        bsize: 4096,
        blocks: total,
        bfree: free,
        bavail: free,
        files: 0,
        ffree: 0,
        namelen: NAME_MAX as u64,
    }
}

/// Copies a symbolic link's target to `buf`, cut where it ends; returns the bytes copied. EINVAL
/// (not a link), EFAULT. May sleep (the copy).
pub fn readlink(at: At<'_>, path: &[u8], buf: &mut impl BufOut) -> Result<usize, VfsError> {
    let dentry = lookup(at, path, false)?;
    read_target(at.fs, dentry.inode(), buf)
}

/// As [`readlink`], of a link that is open (O_PATH | O_NOFOLLOW). ENOENT if it is no link.
pub fn freadlink(fs: &FsStruct, file: &File, buf: &mut impl BufOut) -> Result<usize, VfsError> {
    let inode = file.inode().ok_or(VfsError::ENOENT)?;
    if !inode.is_link() {
        return Err(VfsError::ENOENT);
    }
    read_target(fs, inode, buf)
}

fn read_target(fs: &FsStruct, inode: &Inode, buf: &mut impl BufOut) -> Result<usize, VfsError> {
    match &inode.kind {
        InodeKind::Symlink(target) => put_target(inode, target.as_bytes(), buf),
        InodeKind::Synth(node) if inode.is_link() => match node.text() {
            Some(text) => put_target(inode, text, buf),
            None => {
                let mut path = KBox::new([0u8; PATH_MAX])?;
                put_target(inode, target_path(fs, node.target()?, &mut *path)?, buf)
            }
        },
        _ => Err(VfsError::EINVAL),
    }
}

/// What readlink shows of a link without a path: the object's name, or what kind of thing it is.
fn target_path<'b>(
    fs: &FsStruct,
    target: SynthTarget,
    path: &'b mut [u8],
) -> Result<&'b [u8], VfsError> {
    let file = match target {
        SynthTarget::Dentry(dentry) => return d_path(&dentry, &fs.get_root(), path),
        SynthTarget::File(file) => file,
    };
    let Some((name, nr)) = file.anon_name() else {
        return file_path(fs, &file, path);
    };
    let mut digits = [0; 20];
    let from = decimal(nr, &mut digits);
    let parts: [&[u8]; 3] = if file.pipe().is_some() {
        [b"pipe:[", &digits[from..], b"]"]
    } else {
        [b"anon_inode:", name.as_bytes(), b""]
    };
    let mut at = 0;
    for part in parts {
        path[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    Ok(&path[..at])
}

fn put_target(inode: &Inode, target: &[u8], buf: &mut impl BufOut) -> Result<usize, VfsError> {
    let n = target.len().min(buf.remaining());
    if n == 0 {
        return Err(VfsError::EINVAL);
    }
    buf.put(&target[..n])?;
    inode.touch_atime();
    Ok(n)
}

/// Makes a directory. EEXIST, ENOENT, ENOMEM.
pub fn mkdir(at: At<'_>, path: &[u8], perm: u32) -> Result<(), VfsError> {
    let perm = perm & 0o1777 & !at.fs.umask();
    let fresh = prepare(at, path, true, |_| {
        Inode::new(InodeKind::Dir(Dir::new()), perm)
    })?;
    insert(&fresh, Naming::First)
}

/// Makes a node of the type in `mode`: regular file, device, FIFO, socket. EEXIST, EINVAL (type),
/// EPERM (a directory), ENOENT, ENOMEM.
pub fn mknod(at: At<'_>, path: &[u8], mode: u32, dev: DevId) -> Result<(), VfsError> {
    match mode & S_IFMT {
        0 | S_IFREG | S_IFCHR | S_IFBLK | S_IFIFO | S_IFSOCK => {}
        S_IFDIR => return Err(VfsError::EPERM),
        _ => return Err(VfsError::EINVAL),
    }
    let perm = mode & S_IALLUGO & !at.fs.umask();
    let fresh = prepare(at, path, false, |name| {
        let kind = match mode & S_IFMT {
            S_IFCHR => InodeKind::CharDev(dev),
            S_IFBLK => InodeKind::BlockDev(dev),
            S_IFIFO => InodeKind::Fifo(FifoHub::new()),
            S_IFSOCK => InodeKind::Socket,
            _ => InodeKind::Regular(Regular::new(&[], name)?),
        };
        Inode::new(kind, perm)
    })?;
    insert(&fresh, Naming::First)
}

/// Makes a symbolic link to `target`. ENOENT (empty target), ENAMETOOLONG, EEXIST, ENOMEM.
pub fn symlink(target: &[u8], at: At<'_>, path: &[u8]) -> Result<(), VfsError> {
    if target.is_empty() {
        return Err(VfsError::ENOENT);
    }
    if target.len() >= PATH_MAX {
        return Err(VfsError::ENAMETOOLONG);
    }
    let fresh = prepare(at, path, false, |_| {
        Inode::new(InodeKind::Symlink(Target::new(target)?), 0o777)
    })?;
    insert(&fresh, Naming::First)
}

/// Gives the file at `old` another name. EEXIST, EPERM (a directory), EMLINK, ENOENT, ENOMEM.
pub fn link(
    old_at: At<'_>,
    old: &[u8],
    follow: bool,
    new_at: At<'_>,
    new: &[u8],
) -> Result<(), VfsError> {
    let source = lookup(old_at, old, follow)?;
    link_inode(source.inode(), new_at, new)
}

/// Gives the open file `old` another name (AT_EMPTY_PATH). As [`link`].
pub fn flink(old: &File, new_at: At<'_>, new: &[u8]) -> Result<(), VfsError> {
    link_inode(old.inode().ok_or(VfsError::ENOENT)?, new_at, new)
}

fn link_inode(inode: &KArc<Inode>, at: At<'_>, path: &[u8]) -> Result<(), VfsError> {
    let fresh = prepare(at, path, false, |_| Ok(inode.clone()))?;
    if matches!(inode.kind, InodeKind::Synth(_) | InodeKind::Pipe(_)) {
        return Err(VfsError::EXDEV);
    }
    if inode.is_dir() {
        return Err(VfsError::EPERM);
    }
    insert(&fresh, Naming::Another)
}

/// Changes permission bits. Links at the end are followed unless `follow` is false: EOPNOTSUPP
/// on a link then.
pub fn chmod(at: At<'_>, path: &[u8], perm: u32, follow: bool) -> Result<(), VfsError> {
    fchmod_inode(lookup(at, path, follow)?.inode(), perm)
}

/// Changes permission bits of an open file. EBADF (O_PATH).
pub fn fchmod(file: &File, perm: u32) -> Result<(), VfsError> {
    if file.is_path() {
        return Err(VfsError::EBADF);
    }
    file.inode()
        .map_or(Ok(()), |inode| fchmod_inode(inode, perm))
}

fn fchmod_inode(inode: &Inode, perm: u32) -> Result<(), VfsError> {
    if inode.is_link() {
        return Err(VfsError::EOPNOTSUPP);
    }
    inode.chmod(perm);
    Ok(())
}

/// Changes owner and group; `None` leaves one as it is.
pub fn chown(
    at: At<'_>,
    path: &[u8],
    uid: Option<u32>,
    gid: Option<u32>,
    follow: bool,
) -> Result<(), VfsError> {
    lookup(at, path, follow)?.inode().chown(uid, gid);
    Ok(())
}

/// Changes owner and group of an open file. EBADF (O_PATH).
pub fn fchown(file: &File, uid: Option<u32>, gid: Option<u32>) -> Result<(), VfsError> {
    if file.is_path() {
        return Err(VfsError::EBADF);
    }
    if let Some(inode) = file.inode() {
        inode.chown(uid, gid);
    }
    Ok(())
}

/// Sets times; `None` leaves one as it is.
pub fn utimens(
    at: At<'_>,
    path: &[u8],
    atime: Option<Timespec>,
    mtime: Option<Timespec>,
    follow: bool,
) -> Result<(), VfsError> {
    lookup(at, path, follow)?.inode().set_times(atime, mtime);
    Ok(())
}

/// Sets times of an open file. EBADF (O_PATH).
pub fn futimens(
    file: &File,
    atime: Option<Timespec>,
    mtime: Option<Timespec>,
) -> Result<(), VfsError> {
    if file.is_path() {
        return Err(VfsError::EBADF);
    }
    if let Some(inode) = file.inode() {
        inode.set_times(atime, mtime);
    }
    Ok(())
}

/// Sets the length of the regular file at `path`. EINVAL, EISDIR, ETXTBSY, EFBIG. May sleep.
pub fn truncate(at: At<'_>, path: &[u8], len: i64) -> Result<(), VfsError> {
    let len = u64::try_from(len).map_err(|_| VfsError::EINVAL)?;
    let dentry = lookup(at, path, true)?;
    let inode = dentry.inode();
    let regular = match &inode.kind {
        InodeKind::Regular(regular) => regular,
        InodeKind::Dir(_) => return Err(VfsError::EISDIR),
        _ => return Err(VfsError::EINVAL),
    };
    inode.get_write_access()?;
    let result = regular.truncate(len);
    inode.put_write_access();
    result?;
    inode.touch_mtime();
    Ok(())
}

/// Changes the working directory. ENOENT, ENOTDIR.
pub fn chdir(at: At<'_>, path: &[u8]) -> Result<(), VfsError> {
    let dir = lookup(at, path, true)?;
    if !dir.inode().is_dir() {
        return Err(VfsError::ENOTDIR);
    }
    at.fs.set_cwd(dir);
    Ok(())
}

/// Changes the working directory to an open one. ENOTDIR.
pub fn fchdir(fs: &FsStruct, file: &File) -> Result<(), VfsError> {
    let dir = file.dentry().ok_or(VfsError::ENOTDIR)?;
    if !dir.inode().is_dir() {
        return Err(VfsError::ENOTDIR);
    }
    fs.set_cwd(dir.clone());
    Ok(())
}

/// Changes the root. ENOENT, ENOTDIR.
pub fn chroot(at: At<'_>, path: &[u8]) -> Result<(), VfsError> {
    let dir = lookup(at, path, true)?;
    if !dir.inode().is_dir() {
        return Err(VfsError::ENOTDIR);
    }
    at.fs.set_root(dir);
    Ok(())
}

/// The working directory's path, written to the end of `buf`, without a terminating zero. ERANGE
/// (no room), ENOENT (the directory has been removed).
pub fn getcwd<'b>(fs: &FsStruct, buf: &'b mut [u8]) -> Result<&'b [u8], VfsError> {
    let (cwd, root) = (fs.get_cwd(), fs.get_root());
    if cwd.is_unlinked() {
        return Err(VfsError::ENOENT);
    }
    d_path(&cwd, &root, buf)
}

/// The path of an open file as seen from `fs`'s root, written to the end of `buf`: what /proc
/// shows. A removed name has " (deleted)" behind it. ENOENT (it has no name), ERANGE.
pub fn file_path<'b>(fs: &FsStruct, file: &File, buf: &'b mut [u8]) -> Result<&'b [u8], VfsError> {
    let dentry = file.dentry().ok_or(VfsError::ENOENT)?;
    d_path(dentry, &fs.get_root(), buf)
}

/// The path from `root` to `dentry`, written to the end of `buf`. Outside of `root` it starts with
/// "(unreachable)". ERANGE.
pub fn d_path<'b>(dentry: &Dentry, root: &Dentry, buf: &'b mut [u8]) -> Result<&'b [u8], VfsError> {
    let mut at = buf.len();
    let mut prepend = |bytes: &[u8]| -> Result<(), VfsError> {
        let start = at.checked_sub(bytes.len()).ok_or(VfsError::ERANGE)?;
        buf[start..at].copy_from_slice(bytes);
        at = start;
        Ok(())
    };
    if dentry.is_unlinked() {
        prepend(b" (deleted)")?;
    }
    {
        let rcu = rcu::read_lock();
        let _tree = lock_tree();
        let mut d = dentry;
        if ptr::eq(d, root) {
            prepend(b"/")?;
        }
        while !ptr::eq(d, root) {
            let up = d.parent(&rcu);
            if ptr::eq(up, d) {
                prepend(b"(unreachable)/")?;
                break;
            }
            prepend(d.name(&rcu))?;
            prepend(b"/")?;
            d = up;
        }
    }
    Ok(&buf[at..])
}

/// A new ram file system: its root. With `immortal` it is never freed, and processes whose root
/// or working directory it is do not count it. Boot; ENOMEM.
pub fn new_ramfs(immortal: bool) -> Result<KArc<Dentry>, VfsError> {
    let inode = Inode::new(InodeKind::Dir(Dir::new()), 0o755)?;
    inode.inc_nlink();
    let root = Dentry::new_root(inode, immortal)?;
    if immortal {
        // Never given back: what INV-FS-1 rests on.
        core::mem::forget(root.clone());
    }
    Ok(root)
}
