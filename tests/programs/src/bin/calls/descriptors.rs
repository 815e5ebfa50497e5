//! dup, dup2, dup3, fcntl, and what fork and CLONE_FILES share.

use crate::files::{close, open, read, scratch, write};
use rt::abi::*;
use rt::process::{self, End};
use rt::sys::{at, at_mut};
use rt::{Args, Errno, Suite, sys};

pub fn run(t: &mut Suite, _: &Args) {
    dup(t);
    dup_to(t);
    fcntl(t);
    across_fork(t);
    limits(t);
}

fn dup(t: &mut Suite) {
    let fd = scratch();
    let copy = sys!(DUP, fd);
    t.is("dup: lowest free descriptor", copy, fd + 1);
    write(fd, b"abc");
    t.is(
        "dup: one offset for both",
        sys!(LSEEK, copy, 0, SEEK_CUR),
        3,
    );
    t.is("close: the original", close(fd), 0);
    t.is("write: the copy still works", write(copy, b"d"), 1);
    t.err("dup: bad descriptor", sys!(DUP, fd), Errno::EBADF);
    t.err("dup: -1", sys!(DUP, -1isize), Errno::EBADF);
    close(copy);
}

fn dup_to(t: &mut Suite) {
    let fd = open(c"/dev/null", O_RDWR | O_CLOEXEC);
    t.is("dup2: to a chosen number", sys!(DUP2, fd, 77), 77);
    t.is("dup2: clears close-on-exec", sys!(FCNTL, 77, F_GETFD), 0);
    t.is("dup2: onto itself", sys!(DUP2, fd, fd), fd);
    t.is(
        "dup2: onto itself keeps close-on-exec",
        sys!(FCNTL, fd, F_GETFD),
        1,
    );
    t.err(
        "dup2: bad descriptor onto itself",
        sys!(DUP2, 500, 500),
        Errno::EBADF,
    );
    t.err("dup2: bad descriptor", sys!(DUP2, 500, 77), Errno::EBADF);
    t.is(
        "dup2: a failed one leaves the target open",
        sys!(FCNTL, 77, F_GETFD),
        0,
    );
    t.err(
        "dup2: negative target",
        sys!(DUP2, fd, -1isize),
        Errno::EBADF,
    );
    t.err(
        "dup2: target beyond the limit",
        sys!(DUP2, fd, 1 << 30),
        Errno::EBADF,
    );
    let file = scratch();
    write(file, b"xyz");
    t.is("dup2: replaces an open file", sys!(DUP2, file, 77), 77);
    t.is(
        "dup2: the target is the new file",
        sys!(LSEEK, 77, 0, SEEK_CUR),
        3,
    );
    t.is("dup3: O_CLOEXEC", sys!(DUP3, fd, 78, O_CLOEXEC), 78);
    t.is("dup3: sets close-on-exec", sys!(FCNTL, 78, F_GETFD), 1);
    t.err("dup3: onto itself", sys!(DUP3, fd, fd, 0), Errno::EINVAL);
    t.err(
        "dup3: unknown flag",
        sys!(DUP3, fd, 78, O_APPEND),
        Errno::EINVAL,
    );
    t.err("dup3: bad descriptor", sys!(DUP3, 500, 78, 0), Errno::EBADF);
    for fd in [fd, file, 77, 78] {
        close(fd);
    }
}

fn fcntl(t: &mut Suite) {
    let fd = open(c"/dev/null", O_WRONLY);
    let fcntl = |command: usize, argument: usize| sys!(FCNTL, fd, command, argument);
    let copy = fcntl(F_DUPFD, 100);
    t.is("fcntl: F_DUPFD from 100", copy, 100);
    t.is("fcntl: F_DUPFD, 100 taken", fcntl(F_DUPFD, 100), 101);
    t.is("fcntl: F_DUPFD_CLOEXEC", fcntl(F_DUPFD_CLOEXEC, 102), 102);
    t.is(
        "fcntl: F_DUPFD_CLOEXEC sets the flag",
        sys!(FCNTL, 102, F_GETFD),
        1,
    );
    t.err(
        "fcntl: F_DUPFD beyond the limit",
        fcntl(F_DUPFD, 1 << 30),
        Errno::EINVAL,
    );
    t.err(
        "fcntl: F_DUPFD negative",
        fcntl(F_DUPFD, usize::MAX),
        Errno::EINVAL,
    );
    t.is("fcntl: F_SETFD", fcntl(F_SETFD, FD_CLOEXEC), 0);
    t.is("fcntl: F_GETFD", fcntl(F_GETFD, 0), 1);
    t.is(
        "fcntl: the copy has its own flag",
        sys!(FCNTL, copy, F_GETFD),
        0,
    );
    t.is(
        "fcntl: F_GETFL access mode",
        fcntl(F_GETFL, 0) & 3,
        O_WRONLY as isize,
    );
    t.is(
        "fcntl: F_SETFL",
        fcntl(F_SETFL, O_NONBLOCK | O_APPEND | O_RDWR),
        0,
    );
    let flags = fcntl(F_GETFL, 0) as usize & (O_ACCMODE | O_NONBLOCK | O_APPEND);
    t.is(
        "fcntl: F_SETFL cannot change the access mode",
        flags as isize,
        (O_NONBLOCK | O_APPEND | O_WRONLY) as isize,
    );
    let shared = sys!(FCNTL, copy, F_GETFL) as usize & O_NONBLOCK;
    t.is(
        "fcntl: status flags belong to the open file",
        shared as isize,
        O_NONBLOCK as isize,
    );
    t.err("fcntl: unknown command", fcntl(9999, 0), Errno::EINVAL);
    t.err(
        "fcntl: bad descriptor",
        sys!(FCNTL, 999, F_GETFD),
        Errno::EBADF,
    );
    for fd in [fd, 100, 101, 102] {
        close(fd);
    }
}

fn across_fork(t: &mut Suite) {
    let fd = scratch();
    write(fd, b"0123456789");
    sys!(LSEEK, fd, 2, SEEK_SET);
    let end = process::in_child(|| {
        let mut byte = [0u8; 1];
        let got = read(fd, &mut byte);
        i32::from(!(got == 1 && byte[0] == b'2' && close(fd) == 0))
    });
    t.is(
        "fork: the child reads at the shared offset",
        end.number(),
        0,
    );
    t.is(
        "fork: the child moved the parent's offset",
        sys!(LSEEK, fd, 0, SEEK_CUR),
        3,
    );
    t.is(
        "fork: the child's close is its own",
        sys!(FCNTL, fd, F_GETFD),
        0,
    );
    close(fd);
    let shared = clone_files_close();
    t.is(
        "clone: CLONE_FILES shares the table",
        shared,
        Errno::EBADF.raw(),
    );
}

/// A CLONE_FILES child closes a descriptor; what a look at it then gives.
fn clone_files_close() -> isize {
    let fd = open(c"/dev/null", O_RDWR);
    let pid = sys!(CLONE, CLONE_FILES | SIGCHLD as usize, 0, 0, 0, 0);
    if pid == 0 {
        process::exit_group(close(fd) as i32);
    }
    if process::wait(pid) != End::Exit(0) {
        return pid;
    }
    sys!(FCNTL, fd, F_GETFD)
}

fn limits(t: &mut Suite) {
    let end = process::in_child(|| {
        let mut last = 0;
        for _ in 0..300 {
            let fd = open(c"/dev/null", O_RDONLY);
            if fd <= last {
                return 1;
            }
            last = fd;
        }
        0
    });
    t.is("open: 300 descriptors, rising", end.number(), 0);
    let end = process::in_child(|| {
        // 64 descriptors, so that the table's edge comes into reach.
        let limit = [64usize, 64];
        let mut got = [0usize; 2];
        if sys!(PRLIMIT64, 0, 7, at(&limit), at_mut(&mut got)) == Errno::ENOSYS.raw() {
            return 77;
        }
        loop {
            let fd = open(c"/dev/null", O_RDONLY);
            if !(0..64).contains(&fd) {
                return i32::from(fd != Errno::EMFILE.raw());
            }
        }
    });
    let number = if end == End::Exit(77) {
        Errno::ENOSYS.raw()
    } else {
        end.number()
    };
    t.extra("open: EMFILE at the limit", number, 0);
}
