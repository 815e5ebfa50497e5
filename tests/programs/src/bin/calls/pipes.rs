//! pipe, pipe2: data, end of file, EPIPE, EAGAIN, atomic writes, blocking.

use crate::files::{close, read, write};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use rt::abi::*;
use rt::process;
use rt::signal;
use rt::sys::{at, at_mut};
use rt::{Errno, Suite, sys};

pub fn run(t: &mut Suite) {
    basics(t);
    broken(t);
    nonblocking(t);
    blocking(t);
    transfer(t);
}

/// A pipe: (read end, write end).
pub fn pipe(flags: usize) -> (isize, isize) {
    let mut fds = [-1i32; 2];
    let got = sys!(PIPE2, at_mut(&mut fds), flags);
    if got < 0 {
        (got, got)
    } else {
        (fds[0] as isize, fds[1] as isize)
    }
}

fn close_both(ends: (isize, isize)) {
    close(ends.0);
    close(ends.1);
}

fn basics(t: &mut Suite) {
    let mut fds = [-1i32; 2];
    t.is("pipe", sys!(PIPE, at_mut(&mut fds)), 0);
    let (r, w) = (fds[0] as isize, fds[1] as isize);
    t.is("pipe: adjacent descriptors", w, r + 1);
    t.is("pipe: write", write(w, b"hello"), 5);
    let mut bytes = [0u8; 16];
    t.is("pipe: short read", sys!(READ, r, at_mut(&mut bytes), 2), 2);
    t.is("pipe: the rest", read(r, &mut bytes[2..]), 3);
    t.ok("pipe: bytes", bytes.starts_with(b"hello\0"));
    t.is(
        "pipe: zero-byte read does not block",
        sys!(READ, r, at_mut(&mut bytes), 0),
        0,
    );
    t.err("pipe: write to the read end", write(r, b"x"), Errno::EBADF);
    t.err(
        "pipe: read from the write end",
        read(w, &mut bytes),
        Errno::EBADF,
    );
    t.err("lseek: pipe", sys!(LSEEK, r, 0, SEEK_CUR), Errno::ESPIPE);
    t.err(
        "pread64: pipe",
        sys!(PREAD64, r, at_mut(&mut bytes), 1, 0),
        Errno::ESPIPE,
    );
    let mut st = Stat::default();
    sys!(FSTAT, r, at_mut(&mut st));
    t.is("fstat: pipe", (st.mode & S_IFMT) as isize, S_IFIFO as isize);
    t.is(
        "fcntl: read end's mode",
        sys!(FCNTL, r, F_GETFL) & 3,
        O_RDONLY as isize,
    );
    t.is(
        "fcntl: write end's mode",
        sys!(FCNTL, w, F_GETFL) & 3,
        O_WRONLY as isize,
    );
    write(w, b"last");
    close(w);
    t.is("pipe: data after the writer closed", read(r, &mut bytes), 4);
    t.is("pipe: end of file", read(r, &mut bytes), 0);
    t.is("pipe: end of file again", read(r, &mut bytes), 0);
    close(r);
    let (r, w) = pipe(O_CLOEXEC | O_NONBLOCK);
    t.is(
        "pipe2: close-on-exec, both ends",
        sys!(FCNTL, r, F_GETFD) + sys!(FCNTL, w, F_GETFD),
        2,
    );
    let flags = sys!(FCNTL, r, F_GETFL) & sys!(FCNTL, w, F_GETFL) & O_NONBLOCK as isize;
    t.is("pipe2: nonblocking, both ends", flags, O_NONBLOCK as isize);
    close_both((r, w));
    t.err("pipe2: unknown flag", pipe(0x4000_0000).0, Errno::EINVAL);
}

static SEEN: AtomicU32 = AtomicU32::new(0);

extern "C" fn note(signal: i32, _: &mut Siginfo, _: &mut Ucontext) {
    SEEN.fetch_add(signal as u32, SeqCst);
}

fn broken(t: &mut Suite) {
    let end = process::in_child(|| {
        let (r, w) = pipe(0);
        close(r);
        write(w, b"x") as i32
    });
    t.is(
        "pipe: SIGPIPE kills by default",
        end.number(),
        1000 + SIGPIPE as isize,
    );
    signal::handle(SIGPIPE, note, 0, 0);
    let (r, w) = pipe(0);
    close(r);
    t.err("pipe: EPIPE", write(w, b"x"), Errno::EPIPE);
    t.is(
        "pipe: SIGPIPE handler ran",
        SEEN.swap(0, SeqCst) as isize,
        SIGPIPE as isize,
    );
    signal::action(SIGPIPE, SIG_IGN, 0, 0);
    t.err(
        "pipe: EPIPE with SIGPIPE ignored",
        write(w, b"x"),
        Errno::EPIPE,
    );
    t.is("pipe: zero bytes to a broken pipe", sys!(WRITE, w, 0, 0), 0);
    signal::action(SIGPIPE, SIG_DFL, 0, 0);
    close(w);
}

fn nonblocking(t: &mut Suite) {
    let (r, w) = pipe(O_NONBLOCK);
    let mut page = [3u8; 4096];
    t.err("pipe: EAGAIN when empty", read(r, &mut page), Errno::EAGAIN);
    let mut total = 0;
    let mut got = write(w, &page);
    while got > 0 && total < 1 << 20 {
        total += got;
        got = write(w, &page);
    }
    t.err("pipe: EAGAIN when full", got, Errno::EAGAIN);
    t.is("pipe: holds 64 KiB", total, 65536);
    t.is("pipe: read one page", read(r, &mut page), 4096);
    t.is("pipe: room for one page", write(w, &page), 4096);
    t.err(
        "pipe: no room for a byte",
        sys!(WRITE, w, page.as_ptr(), 1),
        Errno::EAGAIN,
    );
    // 2048 of 4096 bytes free at most: an atomic write may not be split.
    t.is(
        "pipe: read half a page",
        sys!(READ, r, at_mut(&mut page), 2048),
        2048,
    );
    t.err(
        "pipe: an atomic write is whole or nothing",
        write(w, &page),
        Errno::EAGAIN,
    );
    let half = Iovec {
        base: page.as_ptr() as usize,
        len: 2048,
    };
    t.err(
        "pipe: an atomic writev is whole or nothing",
        sys!(WRITEV, w, at(&[half, half]), 2),
        Errno::EAGAIN,
    );
    let mut drained = 2048;
    loop {
        let got = read(r, &mut page);
        if got <= 0 {
            t.err("pipe: EAGAIN when drained", got, Errno::EAGAIN);
            break;
        }
        drained += got;
    }
    t.is("pipe: nothing lost", drained, 65536);
    close_both((r, w));
}

fn blocking(t: &mut Suite) {
    let (r, w) = pipe(0);
    let child = process::fork(|| {
        rt::time::sleep_ns(5_000_000);
        i32::from(write(w, b"late") != 4)
    });
    let mut bytes = [0u8; 8];
    t.is("pipe: a read waits for data", read(r, &mut bytes), 4);
    t.is("pipe: the writer", process::wait(child).number(), 0);
    let child = process::fork(|| {
        close(w);
        let mut byte = [0u8; 1];
        read(r, &mut byte) as i32
    });
    rt::time::sleep_ns(2_000_000);
    close_both((r, w));
    t.is(
        "pipe: a waiting reader sees the end of file",
        process::wait(child).number(),
        0,
    );
}

/// 300,000 bytes through a pipe in odd sizes: order and count.
fn transfer(t: &mut Suite) {
    const TOTAL: usize = 300_000;
    let (r, w) = pipe(0);
    let child = process::fork(|| {
        close(r);
        let mut block = [0u8; 7001];
        let mut sent = 0;
        while sent < TOTAL {
            let nr = block.len().min(TOTAL - sent);
            for (i, byte) in block.iter_mut().enumerate() {
                *byte = ((sent + i) % 251) as u8;
            }
            if write(w, &block[..nr]) != nr as isize {
                return 1;
            }
            sent += nr;
        }
        0
    });
    close(w);
    let mut block = [0u8; 5003];
    let (mut received, mut wrong) = (0usize, 0isize);
    loop {
        let got = read(r, &mut block);
        if got <= 0 {
            break;
        }
        for byte in block.iter().take(got as usize) {
            wrong += isize::from(usize::from(*byte) != received % 251);
            received += 1;
        }
    }
    t.is("pipe: all bytes arrive", received as isize, TOTAL as isize);
    t.is("pipe: in order", wrong, 0);
    t.is("pipe: long writer", process::wait(child).number(), 0);
    close(r);
}
