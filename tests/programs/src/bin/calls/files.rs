//! open, read, write, lseek, pread64, readv, writev, stat, getdents64 and the devices.

use crate::SCRATCH;
use core::ffi::CStr;
use rt::abi::*;
use rt::sys::{at, at_mut};
use rt::{Args, Errno, Suite, sys};

pub fn run(t: &mut Suite, args: &Args) {
    open_errors(t, args);
    open_flags(t);
    openat(t, args);
    read_write(t);
    seek(t);
    vectors(t);
    append(t);
    stat(t, args);
    directories(t, args);
    devices(t);
    paths(t);
}

/// Opens with mode 0600.
pub fn open(path: &CStr, flags: usize) -> isize {
    sys!(OPEN, path.as_ptr(), flags, 0o600)
}

/// The scratch file, empty, open for reading and writing.
pub fn scratch() -> isize {
    open(SCRATCH, O_RDWR | O_CREAT | O_TRUNC)
}

pub fn write(fd: isize, bytes: &[u8]) -> isize {
    sys!(WRITE, fd, bytes.as_ptr(), bytes.len())
}

pub fn read(fd: isize, bytes: &mut [u8]) -> isize {
    sys!(READ, fd, bytes.as_mut_ptr(), bytes.len())
}

pub fn close(fd: isize) -> isize {
    sys!(CLOSE, fd)
}

fn open_errors(t: &mut Suite, args: &Args) {
    t.err(
        "open: missing file",
        open(c"/no-such-file", O_RDONLY),
        Errno::ENOENT,
    );
    t.err(
        "open: missing directory",
        open(c"/no-such-dir/x", O_RDONLY),
        Errno::ENOENT,
    );
    t.err(
        "open: create in a missing directory",
        open(c"/no-such-dir/x", O_RDWR | O_CREAT),
        Errno::ENOENT,
    );
    t.err("open: empty path", open(c"", O_RDONLY), Errno::ENOENT);
    t.err(
        "open: directory for writing",
        open(c"/dev", O_WRONLY),
        Errno::EISDIR,
    );
    t.err(
        "open: directory read-write",
        open(c"/", O_RDWR),
        Errno::EISDIR,
    );
    t.err(
        "open: O_CREAT on a directory",
        open(c"/dev", O_RDWR | O_CREAT),
        Errno::EISDIR,
    );
    t.err(
        "open: path through a device",
        open(c"/dev/null/x", O_RDONLY),
        Errno::ENOTDIR,
    );
    t.err(
        "open: trailing slash on a file",
        open(c"/dev/null/", O_RDONLY),
        Errno::ENOTDIR,
    );
    t.err(
        "open: O_DIRECTORY on a file",
        open(c"/dev/null", O_DIRECTORY),
        Errno::ENOTDIR,
    );
    t.err(
        "open: O_CREAT with a trailing slash",
        open(c"/tmp/tine-calls-new/", O_RDWR | O_CREAT),
        Errno::EISDIR,
    );
    let mut long = [b'a'; 5000];
    long[0] = b'/';
    long[4999] = 0;
    t.err(
        "open: path of 4998 bytes",
        sys!(OPEN, long.as_ptr(), O_RDONLY, 0),
        Errno::ENAMETOOLONG,
    );
    long[257] = 0;
    t.err(
        "open: name of 256 bytes",
        sys!(OPEN, long.as_ptr(), O_RDONLY, 0),
        Errno::ENAMETOOLONG,
    );
    long[256] = 0;
    t.err(
        "open: name of 255 bytes",
        sys!(OPEN, long.as_ptr(), O_RDONLY, 0),
        Errno::ENOENT,
    );
    let itself = sys!(OPEN, args.execfn().as_ptr(), O_RDONLY, 0);
    t.ok("open: own executable", itself >= 0);
    t.is("close: own executable", close(itself), 0);
    t.err("close: twice", close(itself), Errno::EBADF);
    t.err("close: -1", close(-1), Errno::EBADF);
    t.err("close: huge descriptor", close(1 << 30), Errno::EBADF);
}

fn open_flags(t: &mut Suite) {
    let fd = scratch();
    t.ok("open: O_CREAT", fd >= 0);
    t.err(
        "open: O_CREAT|O_EXCL on an existing file",
        open(SCRATCH, O_RDWR | O_CREAT | O_EXCL),
        Errno::EEXIST,
    );
    t.is("write: 5 bytes", write(fd, b"hello"), 5);
    let second = open(SCRATCH, O_RDONLY);
    t.is("open: next free descriptor", second, fd + 1);
    let mut bytes = [0u8; 8];
    t.is(
        "read: through another descriptor",
        read(second, &mut bytes),
        5,
    );
    t.ok("read: what was written", bytes == *b"hello\0\0\0");
    t.is("read: end of file", read(second, &mut bytes), 0);
    let third = open(SCRATCH, O_WRONLY | O_TRUNC);
    t.is(
        "lseek: size after O_TRUNC",
        sys!(LSEEK, second, 0, SEEK_END),
        0,
    );
    t.err(
        "read: write-only descriptor",
        read(third, &mut bytes),
        Errno::EBADF,
    );
    t.err(
        "write: read-only descriptor",
        write(second, b"x"),
        Errno::EBADF,
    );
    t.is("close: lowest", close(fd), 0);
    t.is(
        "open: reuses the lowest free descriptor",
        open(SCRATCH, O_RDONLY | O_CLOEXEC),
        fd,
    );
    t.is(
        "fcntl: O_CLOEXEC sets the flag",
        sys!(FCNTL, fd, F_GETFD),
        1,
    );
    t.is("fcntl: not set otherwise", sys!(FCNTL, second, F_GETFD), 0);
    for fd in [fd, second, third] {
        close(fd);
    }
}

fn openat(t: &mut Suite, args: &Args) {
    let openat = |dir: isize, path: &CStr, flags: usize| sys!(OPENAT, dir, path.as_ptr(), flags, 0);
    let dev = open(c"/dev", O_RDONLY | O_DIRECTORY);
    t.ok("open: O_DIRECTORY", dev >= 0);
    let null = openat(dev, c"null", O_RDWR);
    t.ok("openat: relative to a directory", null >= 0);
    t.is("openat: it is the null device", write(null, b"gone"), 4);
    t.err(
        "openat: missing entry",
        openat(dev, c"no-such", O_RDONLY),
        Errno::ENOENT,
    );
    t.err(
        "openat: relative to a file",
        openat(null, c"null", O_RDONLY),
        Errno::ENOTDIR,
    );
    t.err(
        "openat: bad descriptor",
        openat(999, c"null", O_RDONLY),
        Errno::EBADF,
    );
    let absolute = openat(999, c"/dev/null", O_RDONLY);
    t.ok(
        "openat: absolute path ignores the descriptor",
        absolute >= 0,
    );
    let itself = openat(AT_FDCWD, args.execfn(), O_RDONLY);
    t.ok("openat: AT_FDCWD", itself >= 0);
    for fd in [dev, null, absolute, itself] {
        close(fd);
    }
}

fn read_write(t: &mut Suite) {
    let fd = scratch();
    let mut bytes = [0u8; 16];
    t.err("read: bad descriptor", read(999, &mut bytes), Errno::EBADF);
    t.err("write: bad descriptor", write(999, b"x"), Errno::EBADF);
    t.is("read: zero bytes", sys!(READ, fd, bytes.as_ptr(), 0), 0);
    t.is("write: zero bytes", sys!(WRITE, fd, bytes.as_ptr(), 0), 0);
    let dir = open(c"/dev", O_RDONLY);
    t.err("read: directory", read(dir, &mut bytes), Errno::EISDIR);
    close(dir);
    t.is("write: first", write(fd, b"0123456789"), 10);
    t.is(
        "pread64: middle",
        sys!(PREAD64, fd, bytes.as_mut_ptr(), 4, 3),
        4,
    );
    t.ok("pread64: bytes", bytes.starts_with(b"3456"));
    t.is(
        "pread64: leaves the offset",
        sys!(LSEEK, fd, 0, SEEK_CUR),
        10,
    );
    t.is(
        "pread64: end of file",
        sys!(PREAD64, fd, bytes.as_mut_ptr(), 4, 10),
        0,
    );
    t.is(
        "pread64: far beyond",
        sys!(PREAD64, fd, bytes.as_mut_ptr(), 4, 1u64 << 40),
        0,
    );
    t.is(
        "pread64: short",
        sys!(PREAD64, fd, bytes.as_mut_ptr(), 16, 8),
        2,
    );
    t.err(
        "pread64: negative offset",
        sys!(PREAD64, fd, bytes.as_mut_ptr(), 4, -1isize),
        Errno::EINVAL,
    );
    t.err(
        "pread64: bad descriptor",
        sys!(PREAD64, 999, bytes.as_mut_ptr(), 4, 0),
        Errno::EBADF,
    );
    t.extra(
        "pwrite64: middle",
        sys!(PWRITE64, fd, b"AB".as_ptr(), 2, 4),
        2,
    );
    // Larger than a page, read back across page boundaries.
    let mut page = [0u8; 3000];
    let mut total = 0;
    sys!(LSEEK, fd, 0, SEEK_SET);
    for round in 0..5u8 {
        page.fill(b'a' + round);
        total += write(fd, &page);
    }
    t.is("write: 5 times 3000 bytes", total, 15000);
    let got = sys!(PREAD64, fd, page.as_mut_ptr(), 3000, 7500);
    let halves = page[..1500].iter().all(|b| *b == b'c') && page[1500..].iter().all(|b| *b == b'd');
    t.is("pread64: across pages", got, 3000);
    t.ok("pread64: across pages, bytes", halves);
    close(fd);
}

fn seek(t: &mut Suite) {
    let fd = scratch();
    write(fd, b"abc");
    let lseek = |offset: isize, whence: usize| sys!(LSEEK, fd, offset, whence);
    t.is("lseek: SEEK_CUR", lseek(0, SEEK_CUR), 3);
    t.is("lseek: SEEK_SET", lseek(1, SEEK_SET), 1);
    t.is("lseek: SEEK_END", lseek(-1, SEEK_END), 2);
    t.is("lseek: relative", lseek(-2, SEEK_CUR), 0);
    t.err(
        "lseek: before the start",
        lseek(-1, SEEK_SET),
        Errno::EINVAL,
    );
    t.err(
        "lseek: before the start, relative",
        lseek(-4, SEEK_CUR),
        Errno::EINVAL,
    );
    t.err("lseek: unknown whence", lseek(0, 99), Errno::EINVAL);
    t.err(
        "lseek: bad descriptor",
        sys!(LSEEK, 999, 0, SEEK_SET),
        Errno::EBADF,
    );
    t.is("lseek: beyond the end", lseek(10000, SEEK_SET), 10000);
    t.is("lseek: does not grow the file", lseek(0, SEEK_END), 3);
    lseek(10000, SEEK_SET);
    t.is("write: behind a hole", write(fd, b"z"), 1);
    t.is("lseek: size with the hole", lseek(0, SEEK_END), 10001);
    let mut bytes = [1u8; 4];
    t.is(
        "pread64: in the hole",
        sys!(PREAD64, fd, bytes.as_mut_ptr(), 4, 5000),
        4,
    );
    t.ok("pread64: a hole is zeros", bytes == [0; 4]);
    close(fd);
}

fn vectors(t: &mut Suite) {
    let fd = scratch();
    let parts = [
        Iovec {
            base: at(b"ab"),
            len: 2,
        },
        Iovec { base: 0, len: 0 },
        Iovec {
            base: at(b"cdefg"),
            len: 5,
        },
    ];
    t.is(
        "writev: three parts, one empty",
        sys!(WRITEV, fd, at(&parts), 3),
        7,
    );
    t.is("writev: no parts", sys!(WRITEV, fd, at(&parts), 0), 0);
    t.err(
        "writev: 1025 parts",
        sys!(WRITEV, fd, at(&parts), 1025),
        Errno::EINVAL,
    );
    t.err(
        "writev: -1 parts",
        sys!(WRITEV, fd, at(&parts), -1isize),
        Errno::EINVAL,
    );
    t.err(
        "writev: bad descriptor",
        sys!(WRITEV, 999, at(&parts), 3),
        Errno::EBADF,
    );
    let negative = [Iovec {
        base: at(b"ab"),
        len: usize::MAX,
    }];
    t.err(
        "writev: negative length",
        sys!(WRITEV, fd, at(&negative), 1),
        Errno::EINVAL,
    );
    sys!(LSEEK, fd, 0, SEEK_SET);
    let (mut first, mut second) = ([0u8; 3], [0u8; 10]);
    let into = [
        Iovec {
            base: at_mut(&mut first),
            len: 3,
        },
        Iovec {
            base: at_mut(&mut second),
            len: 10,
        },
    ];
    t.is("readv: two parts", sys!(READV, fd, at(&into), 2), 7);
    t.ok(
        "readv: bytes",
        first == *b"abc" && second == *b"defg\0\0\0\0\0\0",
    );
    t.is("readv: end of file", sys!(READV, fd, at(&into), 2), 0);
    t.err(
        "readv: bad descriptor",
        sys!(READV, 999, at(&into), 2),
        Errno::EBADF,
    );
    close(fd);
}

fn append(t: &mut Suite) {
    close(scratch());
    let fd = open(SCRATCH, O_RDWR | O_APPEND);
    write(fd, b"12");
    sys!(LSEEK, fd, 0, SEEK_SET);
    t.is("write: O_APPEND", write(fd, b"34"), 2);
    t.is("lseek: after O_APPEND", sys!(LSEEK, fd, 0, SEEK_CUR), 4);
    let mut bytes = [0u8; 4];
    sys!(PREAD64, fd, at_mut(&mut bytes), 4, 0);
    t.ok("write: O_APPEND goes to the end", bytes == *b"1234");
    close(fd);
}

fn stat(t: &mut Suite, args: &Args) {
    let mut st = Stat::default();
    t.is(
        "stat: /dev/null",
        sys!(STAT, c"/dev/null".as_ptr(), at_mut(&mut st)),
        0,
    );
    t.is(
        "stat: /dev/null is a character device",
        (st.mode & S_IFMT) as isize,
        S_IFCHR as isize,
    );
    t.is("stat: /dev/null is 1,3", st.rdev as isize, 0x103);
    t.is("stat: /", sys!(STAT, c"/".as_ptr(), at_mut(&mut st)), 0);
    t.is(
        "stat: / is a directory",
        (st.mode & S_IFMT) as isize,
        S_IFDIR as isize,
    );
    t.ok("stat: / has two links or more", st.nlink >= 2);
    t.err(
        "stat: missing",
        sys!(STAT, c"/no-such".as_ptr(), at_mut(&mut st)),
        Errno::ENOENT,
    );
    t.err(
        "stat: through a file",
        sys!(STAT, c"/dev/null/x".as_ptr(), at_mut(&mut st)),
        Errno::ENOTDIR,
    );
    let fd = scratch();
    write(fd, b"four");
    t.is("fstat", sys!(FSTAT, fd, at_mut(&mut st)), 0);
    t.is("fstat: size", st.size as isize, 4);
    t.is(
        "fstat: regular file, mode 0600",
        st.mode as isize,
        (S_IFREG | 0o600) as isize,
    );
    t.is("fstat: one link", st.nlink as isize, 1);
    t.ok("fstat: block size", st.blksize >= 512);
    let mut other = Stat::default();
    let by_path = sys!(
        NEWFSTATAT,
        AT_FDCWD,
        SCRATCH.as_ptr(),
        at_mut(&mut other),
        0
    );
    t.is("newfstatat", by_path, 0);
    t.ok(
        "newfstatat: same inode",
        other.ino == st.ino && other.dev == st.dev && other.ino != 0,
    );
    let empty = sys!(
        NEWFSTATAT,
        fd,
        c"".as_ptr(),
        at_mut(&mut other),
        AT_EMPTY_PATH
    );
    t.is("newfstatat: AT_EMPTY_PATH", empty, 0);
    t.ok("newfstatat: AT_EMPTY_PATH, same inode", other.ino == st.ino);
    let no_flag = sys!(NEWFSTATAT, fd, c"".as_ptr(), at_mut(&mut other), 0);
    t.err(
        "newfstatat: empty path without the flag",
        no_flag,
        Errno::ENOENT,
    );
    let nofollow = sys!(
        NEWFSTATAT,
        AT_FDCWD,
        args.execfn().as_ptr(),
        at_mut(&mut other),
        AT_SYMLINK_NOFOLLOW
    );
    t.is("newfstatat: AT_SYMLINK_NOFOLLOW", nofollow, 0);
    let unknown = sys!(
        NEWFSTATAT,
        AT_FDCWD,
        SCRATCH.as_ptr(),
        at_mut(&mut other),
        0x4000_0000
    );
    t.err("newfstatat: unknown flag", unknown, Errno::EINVAL);
    t.err(
        "fstat: bad descriptor",
        sys!(FSTAT, 999, at_mut(&mut st)),
        Errno::EBADF,
    );
    t.extra("lstat", sys!(LSTAT, SCRATCH.as_ptr(), at_mut(&mut st)), 0);
    t.extra("ftruncate: shrink", sys!(FTRUNCATE, fd, 2), 0);
    close(fd);
}

/// Reads a whole directory in pieces of `step` bytes; counts entries and those named `wanted`.
fn list(fd: isize, step: usize, wanted: &[u8]) -> (isize, usize, usize) {
    let mut buffer = [0u64; 128];
    let (mut entries, mut found) = (0, 0);
    loop {
        let got = sys!(GETDENTS64, fd, at_mut(&mut buffer), step);
        if got <= 0 {
            return (got, entries, found);
        }
        let mut offset = 0;
        while offset < got as usize {
            let entry = at(&buffer) + offset;
            // SAFETY: the kernel filled `got` bytes with records of at least 24 bytes, aligned to 8;
            // names end in NUL within their record.
            let (len, name) = unsafe {
                (
                    *((entry + 16) as *const u16),
                    CStr::from_ptr((entry + 19) as *const _),
                )
            };
            entries += 1;
            found += usize::from(name.to_bytes() == wanted);
            if len < 24 {
                return (-1, entries, found);
            }
            offset += len as usize;
        }
    }
}

fn directories(t: &mut Suite, args: &Args) {
    let dev = open(c"/dev", O_RDONLY | O_DIRECTORY);
    let whole = list(dev, 1024, b"null");
    t.is("getdents64: ends with 0", whole.0, 0);
    t.is("getdents64: finds null once", whole.2 as isize, 1);
    t.is(
        "getdents64: still at the end",
        list(dev, 1024, b"null").1 as isize,
        0,
    );
    t.is(
        "lseek: rewinds a directory",
        sys!(LSEEK, dev, 0, SEEK_SET),
        0,
    );
    let dot = list(dev, 1024, b".");
    t.is(
        "getdents64: after the rewind",
        dot.1 as isize,
        whole.1 as isize,
    );
    t.is("getdents64: has .", dot.2 as isize, 1);
    sys!(LSEEK, dev, 0, SEEK_SET);
    let small = list(dev, 280, b"..");
    t.is(
        "getdents64: small pieces, same entries",
        small.1 as isize,
        whole.1 as isize,
    );
    t.is("getdents64: has ..", small.2 as isize, 1);
    sys!(LSEEK, dev, 0, SEEK_SET);
    t.err(
        "getdents64: no room for one entry",
        list(dev, 8, b"").0,
        Errno::EINVAL,
    );
    close(dev);
    let file = open(args.execfn(), O_RDONLY);
    t.err("getdents64: file", list(file, 1024, b"").0, Errno::ENOTDIR);
    close(file);
    t.err(
        "getdents64: bad descriptor",
        list(999, 1024, b"").0,
        Errno::EBADF,
    );
}

fn devices(t: &mut Suite) {
    let mut bytes = [7u8; 64];
    let null = open(c"/dev/null", O_RDWR);
    t.is("null: read", read(null, &mut bytes), 0);
    t.is("null: write", write(null, &bytes), 64);
    close(null);
    let zero = open(c"/dev/zero", O_RDWR);
    t.is("zero: read", read(zero, &mut bytes), 64);
    t.ok("zero: zeros", bytes.iter().all(|b| *b == 0));
    t.is("zero: write", write(zero, &bytes), 64);
    close(zero);
    let full = open(c"/dev/full", O_RDWR);
    bytes.fill(7);
    t.is("full: read", read(full, &mut bytes), 64);
    t.ok("full: zeros", bytes.iter().all(|b| *b == 0));
    t.err("full: write", write(full, &bytes), Errno::ENOSPC);
    close(full);
    let random = open(c"/dev/urandom", O_RDONLY);
    t.is("urandom: read", read(random, &mut bytes), 64);
    t.ok("urandom: not all zero", bytes.iter().any(|b| *b != 0));
    close(random);
}

fn paths(t: &mut Suite) {
    for (name, path) in [
        ("path: doubled slashes", c"//dev///null"),
        ("path: dots", c"/./dev/././null"),
        ("path: above the root", c"/../../dev/../dev/null"),
    ] {
        let fd = open(path, O_RDONLY);
        t.ok(name, fd >= 0);
        close(fd);
    }
    t.err(
        "path: .. of a file",
        open(c"/dev/null/..", O_RDONLY),
        Errno::ENOTDIR,
    );
    let slash = open(c"/dev/", O_RDONLY);
    t.ok("path: trailing slash on a directory", slash >= 0);
    close(slash);
    t.extra(
        "access: existing",
        sys!(ACCESS, c"/dev/null".as_ptr(), 0),
        0,
    );
    t.extra(
        "access: missing",
        sys!(ACCESS, c"/no-such".as_ptr(), 0),
        Errno::ENOENT.raw(),
    );
    t.extra(
        "mkdir: existing",
        sys!(MKDIR, c"/dev".as_ptr(), 0o700),
        Errno::EEXIST.raw(),
    );
    t.extra(
        "unlink: missing",
        sys!(UNLINK, c"/no-such".as_ptr()),
        Errno::ENOENT.raw(),
    );
}
