//! Names and attributes: rename, link, symlink, chmod, statx, statfs, truncate, copying, extended attributes.

use crate::SCRATCH;
use crate::files::{close, open, read, scratch, write};
use core::ffi::CStr;
use rt::abi::*;
use rt::sys::{at, at_mut};
use rt::{Errno, Suite, sys};

const A: &CStr = c"/tmp/tine-calls-a";
const B: &CStr = c"/tmp/tine-calls-b";
const DIR: &CStr = c"/tmp/tine-calls-dir";
const IN_DIR: &CStr = c"/tmp/tine-calls-dir/x";

pub fn run(t: &mut Suite) {
    renaming(t);
    linking(t);
    symlinks(t);
    modes(t);
    times(t);
    statx(t);
    lengths(t);
    copying(t);
    file_systems(t);
    attributes(t);
    memory_files(t);
    refused(t);
    for path in [A, B, IN_DIR] {
        unlink(path);
    }
    sys!(RMDIR, DIR.as_ptr());
}

fn unlink(path: &CStr) -> isize {
    sys!(UNLINK, path.as_ptr())
}

fn make(path: &CStr, text: &[u8]) {
    let fd = open(path, O_WRONLY | O_CREAT | O_TRUNC);
    write(fd, text);
    close(fd);
}

fn rename(old: &CStr, new: &CStr) -> isize {
    sys!(RENAME, old.as_ptr(), new.as_ptr())
}

fn stat(path: &CStr) -> Stat {
    let mut st = Stat::default();
    if sys!(STAT, path.as_ptr(), at_mut(&mut st)) != 0 {
        st.ino = 0;
    }
    st
}

fn renaming(t: &mut Suite) {
    make(A, b"a");
    unlink(B);
    let ino = stat(A).ino;
    t.is("rename: to a free name", rename(A, B), 0);
    t.ok(
        "rename: the file moved",
        stat(A).ino == 0 && stat(B).ino == ino,
    );
    make(A, b"other");
    t.is("rename: over a file", rename(A, B), 0);
    t.is("rename: replaced", stat(B).size as isize, 5);
    t.is("rename: to itself", rename(B, B), 0);
    t.err("rename: missing", rename(A, B), Errno::ENOENT);
    t.is("mkdir", sys!(MKDIR, DIR.as_ptr(), 0o700), 0);
    t.err(
        "rename: a file over a directory",
        rename(B, DIR),
        Errno::EISDIR,
    );
    t.err(
        "rename: a directory over a file",
        rename(DIR, B),
        Errno::ENOTDIR,
    );
    t.err(
        "rename: a directory into itself",
        rename(DIR, IN_DIR),
        Errno::EINVAL,
    );
    t.is("rename: into a directory", rename(B, IN_DIR), 0);
    t.is("rename: and back", rename(IN_DIR, B), 0);
    make(A, b"a");
    let noreplace = sys!(RENAMEAT2, AT_FDCWD, A.as_ptr(), AT_FDCWD, B.as_ptr(), 1);
    t.err("renameat2: RENAME_NOREPLACE", noreplace, Errno::EEXIST);
    let unknown = sys!(RENAMEAT2, AT_FDCWD, A.as_ptr(), AT_FDCWD, B.as_ptr(), 0x100);
    t.err("renameat2: unknown flag", unknown, Errno::EINVAL);
    t.err("rename: the root", rename(c"/", A), Errno::EBUSY);
    t.err(
        "rename: a bad pointer",
        sys!(RENAME, 1, A.as_ptr()),
        Errno::EFAULT,
    );
}

fn linking(t: &mut Suite) {
    make(A, b"a");
    unlink(B);
    let link = |old: &CStr, new: &CStr| sys!(LINK, old.as_ptr(), new.as_ptr());
    t.is("link", link(A, B), 0);
    t.is("link: two names", stat(A).nlink as isize, 2);
    t.ok("link: of one file", stat(A).ino == stat(B).ino);
    t.err("link: the name is taken", link(A, B), Errno::EEXIST);
    t.err("link: a directory", link(DIR, IN_DIR), Errno::EPERM);
    t.err(
        "link: missing",
        link(c"/tmp/tine-none", IN_DIR),
        Errno::ENOENT,
    );
    unlink(B);
    t.is("link: one name is left", stat(A).nlink as isize, 1);
    let dir = open(DIR, O_RDONLY | O_DIRECTORY);
    t.is(
        "linkat",
        sys!(LINKAT, AT_FDCWD, A.as_ptr(), dir, c"x".as_ptr(), 0),
        0,
    );
    t.ok("linkat: there", stat(IN_DIR).ino == stat(A).ino);
    let unknown = sys!(LINKAT, AT_FDCWD, A.as_ptr(), dir, c"y".as_ptr(), 1);
    t.err("linkat: unknown flag", unknown, Errno::EINVAL);
    close(dir);
    unlink(IN_DIR);
}

fn symlinks(t: &mut Suite) {
    unlink(B);
    let symlink = |to: &CStr, at: &CStr| sys!(SYMLINK, to.as_ptr(), at.as_ptr());
    t.is("symlink", symlink(A, B), 0);
    t.err("symlink: the name is taken", symlink(A, B), Errno::EEXIST);
    t.err("symlink: to nothing", symlink(c"", IN_DIR), Errno::ENOENT);
    t.ok("symlink: followed", stat(B).ino == stat(A).ino);
    let mut buf = [0; 8];
    let n = sys!(READLINK, B.as_ptr(), buf.as_mut_ptr(), 4);
    t.ok("readlink: cut", n == 4 && &buf[..5] == b"/tmp\0");
    t.err(
        "readlink: of a file",
        sys!(READLINK, A.as_ptr(), buf.as_mut_ptr(), 4),
        Errno::EINVAL,
    );
    unlink(B);
    t.is(
        "symlinkat",
        sys!(SYMLINKAT, c"tine-calls-b".as_ptr(), AT_FDCWD, B.as_ptr()),
        0,
    );
    t.err("open: a link to itself", open(B, O_RDONLY), Errno::ELOOP);
    unlink(B);
}

fn modes(t: &mut Suite) {
    make(A, b"a");
    t.is("chmod", sys!(CHMOD, A.as_ptr(), 0o751), 0);
    t.is("chmod: seen", stat(A).mode as isize, 0o100751);
    t.err(
        "chmod: missing",
        sys!(CHMOD, c"/tmp/tine-none".as_ptr(), 0),
        Errno::ENOENT,
    );
    let fd = open(A, O_RDONLY);
    t.is("fchmod", sys!(FCHMOD, fd, 0o600), 0);
    t.is("fchmod: seen", stat(A).mode as isize, 0o100600);
    close(fd);
    t.err("fchmod: closed", sys!(FCHMOD, fd, 0o600), Errno::EBADF);
    t.is("chown", sys!(CHOWN, A.as_ptr(), 5, usize::MAX), 0);
    t.ok("chown: one of two", (stat(A).uid, stat(A).gid) == (5, 0));
    sys!(CHOWN, A.as_ptr(), 0, 0);
}

fn times(t: &mut Suite) {
    let set = [1_000_000i64, 5, 2_000_000, 7];
    let utimensat =
        |times: usize, flags: usize| sys!(UTIMENSAT, AT_FDCWD, A.as_ptr(), times, flags);
    t.is("utimensat", utimensat(at(&set), 0), 0);
    let mut st = Statx::default();
    sys!(STATX, AT_FDCWD, A.as_ptr(), 0, 0xfff, at_mut(&mut st));
    t.ok("utimensat: atime", st.times[0] == [1_000_000, 5]);
    t.ok("utimensat: mtime", st.times[3] == [2_000_000, 7]);
    let omit = [0i64, 0x3fff_fffe, 3_000_000, 0];
    t.is("utimensat: UTIME_OMIT", utimensat(at(&omit), 0), 0);
    sys!(STATX, AT_FDCWD, A.as_ptr(), 0, 0xfff, at_mut(&mut st));
    t.ok(
        "utimensat: one of two",
        st.times[0] == [1_000_000, 5] && st.times[3] == [3_000_000, 0],
    );
    t.err(
        "utimensat: a bad time",
        utimensat(at(&[0i64, -1, 0, 0]), 0),
        Errno::EINVAL,
    );
    t.err("utimensat: unknown flag", utimensat(0, 1), Errno::EINVAL);
    t.is("utimensat: now", utimensat(0, 0), 0);
}

/// `struct statx`.
#[repr(C)]
#[derive(Default)]
struct Statx {
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
    times: [[u64; 2]; 4],
    devices: [u32; 4],
    spare: [u64; 14],
}

fn statx(t: &mut Suite) {
    make(A, b"12345");
    let old = stat(A);
    let mut st = Statx::default();
    let get = |st: &mut Statx, path: &CStr, flags: usize, mask: usize| {
        sys!(STATX, AT_FDCWD, path.as_ptr(), flags, mask, at_mut(st))
    };
    t.is("statx", get(&mut st, A, 0, 0x7ff), 0);
    t.ok("statx: basic fields", st.mask & 0x7ff == 0x7ff);
    t.ok(
        "statx: as stat",
        (st.ino, st.size, u32::from(st.mode)) == (old.ino, 5, old.mode),
    );
    t.is("statx: one name", st.nlink as isize, 1);
    t.err(
        "statx: missing",
        get(&mut st, c"/tmp/tine-none", 0, 0x7ff),
        Errno::ENOENT,
    );
    t.err(
        "statx: empty path",
        get(&mut st, c"", 0, 0x7ff),
        Errno::ENOENT,
    );
    t.err(
        "statx: unknown flag",
        get(&mut st, A, 1, 0x7ff),
        Errno::EINVAL,
    );
    t.err(
        "statx: reserved mask",
        get(&mut st, A, 0, 0x8000_0000),
        Errno::EINVAL,
    );
    t.err(
        "statx: both ways of syncing",
        get(&mut st, A, 0x6000, 0x7ff),
        Errno::EINVAL,
    );
    let fd = open(A, O_RDONLY);
    let by_fd = sys!(
        STATX,
        fd,
        c"".as_ptr(),
        AT_EMPTY_PATH,
        0x7ff,
        at_mut(&mut st)
    );
    t.ok("statx: of a descriptor", by_fd == 0 && st.ino == old.ino);
    close(fd);
    let null = c"/dev/null";
    get(&mut st, null, 0, 0x7ff);
    t.ok("statx: device numbers", st.devices[..2] == [1, 3]);
    t.err(
        "statx: nowhere to put it",
        sys!(STATX, AT_FDCWD, A.as_ptr(), 0, 0x7ff, 1),
        Errno::EFAULT,
    );
}

fn lengths(t: &mut Suite) {
    make(A, b"12345");
    let truncate = |path: &CStr, len: isize| sys!(TRUNCATE, path.as_ptr(), len);
    t.is("truncate", truncate(A, 2), 0);
    t.is("truncate: seen", stat(A).size as isize, 2);
    t.err("truncate: negative", truncate(A, -1), Errno::EINVAL);
    t.err("truncate: a directory", truncate(DIR, 0), Errno::EISDIR);
    t.err(
        "truncate: a device",
        truncate(c"/dev/null", 0),
        Errno::EINVAL,
    );
    let fd = open(A, O_RDONLY);
    let advise = |fd: isize, len: isize, advice: usize| sys!(FADVISE64, fd, 0, len, advice);
    t.is("fadvise64", advise(fd, 0, 2), 0);
    t.err("fadvise64: unknown advice", advise(fd, 0, 6), Errno::EINVAL);
    t.err(
        "fadvise64: negative length",
        advise(fd, -1, 2),
        Errno::EINVAL,
    );
    close(fd);
    t.err("fadvise64: closed", advise(fd, 0, 2), Errno::EBADF);
    let mut ends = [0i32; 2];
    sys!(PIPE, at_mut(&mut ends));
    t.err(
        "fadvise64: a pipe",
        advise(ends[0] as isize, 0, 2),
        Errno::ESPIPE,
    );
    close(ends[0] as isize);
    close(ends[1] as isize);
}

fn copying(t: &mut Suite) {
    make(A, b"0123456789");
    let (from, to) = (open(A, O_RDONLY), scratch());
    let mut in_at = 2i64;
    let n = sys!(COPY_FILE_RANGE, from, at_mut(&mut in_at), to, 0, 5, 0);
    t.is("copy_file_range", n, 5);
    t.is("copy_file_range: moves the offset", in_at as isize, 7);
    let mut buf = [0; 8];
    sys!(LSEEK, to, 0, SEEK_SET);
    t.ok(
        "copy_file_range: the bytes",
        read(to, &mut buf) == 5 && &buf[..5] == b"23456",
    );
    t.err(
        "copy_file_range: flags",
        sys!(COPY_FILE_RANGE, from, 0, to, 0, 5, 1),
        Errno::EINVAL,
    );
    close(from);
    close(to);
    unlink(SCRATCH);
}

fn file_systems(t: &mut Suite) {
    let mut words = [0u64; 15];
    t.is(
        "statfs",
        sys!(STATFS, c"/tmp".as_ptr(), at_mut(&mut words)),
        0,
    );
    t.is("statfs: longest name", words[8] as isize, 255);
    t.err(
        "statfs: missing",
        sys!(STATFS, c"/tmp/tine-none".as_ptr(), at_mut(&mut words)),
        Errno::ENOENT,
    );
    t.is(
        "statfs: procfs",
        sys!(STATFS, c"/proc".as_ptr(), at_mut(&mut words)),
        0,
    );
    t.is("statfs: its magic number", words[0] as isize, 0x9fa0);
    t.err(
        "fstatfs: closed",
        sys!(FSTATFS, 77777, at_mut(&mut words)),
        Errno::EBADF,
    );
    t.err(
        "statfs: nowhere to put it",
        sys!(STATFS, c"/tmp".as_ptr(), 1),
        Errno::EFAULT,
    );
}

fn attributes(t: &mut Suite) {
    let get = |path: &CStr, name: &CStr| {
        let mut buf = [0u8; 16];
        sys!(GETXATTR, path.as_ptr(), name.as_ptr(), buf.as_mut_ptr(), 16)
    };
    t.err("getxattr: none", get(A, c"security.none"), Errno::ENODATA);
    t.err(
        "getxattr: no such class",
        get(A, c"nonsense.x"),
        Errno::EOPNOTSUPP,
    );
    t.err("getxattr: no name", get(A, c""), Errno::ERANGE);
    t.err(
        "getxattr: missing",
        get(c"/tmp/tine-none", c"user.x"),
        Errno::ENOENT,
    );
    t.err(
        "fgetxattr: closed",
        sys!(FGETXATTR, 77777, c"user.x".as_ptr(), 0, 0),
        Errno::EBADF,
    );
    t.err(
        "listxattr: missing",
        sys!(LISTXATTR, c"/tmp/tine-none".as_ptr(), 0, 0),
        Errno::ENOENT,
    );
}

fn memory_files(t: &mut Suite) {
    let fd = sys!(MEMFD_CREATE, c"x".as_ptr(), 1);
    t.ok("memfd_create", fd >= 0);
    t.is("memfd: write", write(fd, b"abc"), 3);
    t.is("memfd: close on exec", sys!(FCNTL, fd, F_GETFD), 1);
    t.err(
        "memfd_create: unknown flag",
        sys!(MEMFD_CREATE, c"x".as_ptr(), 0x100),
        Errno::EINVAL,
    );
    let second = sys!(DUP2, fd, 200);
    t.is("close_range: two", sys!(CLOSE_RANGE, fd, second, 0), 0);
    t.err(
        "close_range: closed both",
        sys!(FCNTL, second, F_GETFD),
        Errno::EBADF,
    );
    t.err(
        "close_range: backwards",
        sys!(CLOSE_RANGE, 9, 8, 0),
        Errno::EINVAL,
    );
    t.err(
        "close_range: unknown flag",
        sys!(CLOSE_RANGE, 200, 201, 1),
        Errno::EINVAL,
    );
}

fn refused(t: &mut Suite) {
    let mut ends = [0i32; 2];
    sys!(PIPE, at_mut(&mut ends));
    t.err(
        "connect: not a socket",
        sys!(CONNECT, ends[0], 0, 0),
        Errno::ENOTSOCK,
    );
    close(ends[0] as isize);
    close(ends[1] as isize);
    t.err("connect: closed", sys!(CONNECT, 77777, 0, 0), Errno::EBADF);
    t.err(
        "socket: no such family",
        sys!(SOCKET, 99, 1, 0),
        Errno::EAFNOSUPPORT,
    );
    let fd = open(c"/tmp", O_RDONLY | O_DIRECTORY);
    t.is("fchdir", sys!(FCHDIR, fd), 0);
    close(fd);
    let fd = open(c"/dev/null", O_RDONLY);
    t.err("fchdir: a device", sys!(FCHDIR, fd), Errno::ENOTDIR);
    close(fd);
    sys!(CHDIR, c"/".as_ptr());
    t.err(
        "chroot: missing",
        sys!(CHROOT, c"/tine-none".as_ptr()),
        Errno::ENOENT,
    );
    t.err(
        "chroot: a device",
        sys!(CHROOT, c"/dev/null".as_ptr()),
        Errno::ENOTDIR,
    );
}
