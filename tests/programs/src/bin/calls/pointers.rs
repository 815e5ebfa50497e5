//! Every pointer a program can pass, wrong: the answer is EFAULT, never worse.

use crate::files::{close, open, scratch, write};
use crate::memory::{map, unmap_pages};
use core::ffi::CStr;
use rt::abi::*;
use rt::sys::{at, at_mut};
use rt::{Args, Errno, Suite, sys};

/// Addresses that no program may use, with words for the report.
fn wild(inaccessible: usize, unmapped: usize) -> [(&'static str, usize); 9] {
    [
        ("low", 8),
        ("unmapped", unmapped),
        ("PROT_NONE", inaccessible),
        ("end of user space", 0x7fff_ffff_f000),
        ("first non-canonical", 0x8000_0000_0000),
        ("non-canonical", 0x1234_5678_9abc_def0),
        ("first kernel address", 0xffff_8000_0000_0000),
        ("kernel image", 0xffff_ffff_8010_0000),
        ("last words", usize::MAX - 15),
    ]
}

/// A call with the pointer under test put in.
type Call<'a> = (&'static str, &'a dyn Fn(usize) -> isize);

pub fn run(t: &mut Suite, args: &Args) {
    let pages = map(2, PROT_NONE);
    unmap_pages(pages + PAGE, 1);
    let file = scratch();
    write(file, &[7; 64]);
    let (r, w) = crate::pipes::pipe(O_NONBLOCK);
    write(w, &[7; 64]);
    let zero = open(c"/dev/zero", O_RDONLY);
    let dir = open(c"/dev", O_RDONLY);
    let fds = Fds {
        file,
        r,
        w,
        zero,
        dir,
    };
    for (word, address) in wild(pages, pages + PAGE) {
        outputs(t, word, address, &fds);
        inputs(t, word, address, &fds, args);
    }
    t.ok(
        "pointers: the pipe kept its bytes",
        sys!(READ, r, at_mut(&mut [0u8; 64]), 64) == 64,
    );
    crossing(t, &fds);
    for fd in [file, r, w, zero, dir] {
        close(fd);
    }
    unmap_pages(pages, 1);
}

struct Fds {
    file: isize,
    r: isize,
    w: isize,
    zero: isize,
    dir: isize,
}

fn check(t: &mut Suite, word: &str, calls: &[Call<'_>], address: usize) {
    for (name, call) in calls {
        let mut text = [0u8; 80];
        let mut len = 0;
        for byte in name.bytes().chain(*b": ").chain(word.bytes()) {
            if let Some(slot) = text.get_mut(len) {
                *slot = byte;
                len += 1;
            }
        }
        let name = core::str::from_utf8(text.get(..len).unwrap_or(&[])).unwrap_or("?");
        t.err(name, call(address), Errno::EFAULT);
    }
}

/// Calls that write to the pointer.
fn outputs(t: &mut Suite, word: &str, address: usize, fds: &Fds) {
    sys!(LSEEK, fds.file, 0, SEEK_SET);
    sys!(LSEEK, fds.dir, 0, SEEK_SET);
    let calls: [Call<'_>; 17] = [
        ("read file", &|p| sys!(READ, fds.file, p, 16)),
        ("read pipe", &|p| sys!(READ, fds.r, p, 16)),
        ("read zero", &|p| sys!(READ, fds.zero, p, 16)),
        ("pread64", &|p| sys!(PREAD64, fds.file, p, 16, 0)),
        ("readv base", &|p| {
            sys!(READV, fds.file, at(&[Iovec { base: p, len: 16 }]), 1)
        }),
        ("stat buffer", &|p| sys!(STAT, c"/dev/null".as_ptr(), p)),
        ("fstat buffer", &|p| sys!(FSTAT, fds.file, p)),
        ("newfstatat buffer", &|p| {
            sys!(NEWFSTATAT, AT_FDCWD, c"/dev".as_ptr(), p, 0)
        }),
        ("getdents64", &|p| sys!(GETDENTS64, fds.dir, p, 1024)),
        ("pipe", &|p| sys!(PIPE, p)),
        ("pipe2", &|p| sys!(PIPE2, p, 0)),
        ("uname", &|p| sys!(UNAME, p)),
        ("clock_gettime", &|p| {
            sys!(CLOCK_GETTIME, CLOCK_MONOTONIC, p)
        }),
        ("getrandom", &|p| sys!(GETRANDOM, p, 16, 0)),
        ("sched_getaffinity", &|p| {
            sys!(SCHED_GETAFFINITY, 0, 1024, p)
        }),
        ("arch_prctl get", &|p| sys!(ARCH_PRCTL, ARCH_GET_FS, p)),
        ("rt_sigprocmask old", &|p| {
            sys!(RT_SIGPROCMASK, SIG_BLOCK, 0, p, 8)
        }),
    ];
    check(t, word, &calls, address);
    let actions: [Call<'_>; 1] = [("rt_sigaction old", &|p| {
        sys!(RT_SIGACTION, SIGUSR1, 0, p, 8)
    })];
    check(t, word, &actions, address);
}

/// Calls that read from the pointer.
fn inputs(t: &mut Suite, word: &str, address: usize, fds: &Fds, args: &Args) {
    let itself: &CStr = args.execfn();
    let end = sys!(LSEEK, fds.file, 0, SEEK_END);
    let calls: [Call<'_>; 16] = [
        ("write file", &|p| sys!(WRITE, fds.file, p, 16)),
        ("write pipe", &|p| sys!(WRITE, fds.w, p, 16)),
        ("writev vector", &|p| sys!(WRITEV, fds.file, p, 1)),
        ("writev base", &|p| {
            sys!(WRITEV, fds.file, at(&[Iovec { base: p, len: 16 }]), 1)
        }),
        ("readv vector", &|p| sys!(READV, fds.file, p, 1)),
        ("open path", &|p| sys!(OPEN, p, O_RDONLY, 0)),
        ("openat path", &|p| sys!(OPENAT, AT_FDCWD, p, O_RDONLY, 0)),
        ("stat path", &|p| {
            sys!(STAT, p, at_mut(&mut Stat::default()))
        }),
        ("newfstatat path", &|p| {
            sys!(NEWFSTATAT, AT_FDCWD, p, at_mut(&mut Stat::default()), 0)
        }),
        ("execve path", &|p| sys!(EXECVE, p, 0, 0)),
        ("execve argv", &|p| sys!(EXECVE, itself.as_ptr(), p, 0)),
        ("execve envp", &|p| {
            sys!(EXECVE, itself.as_ptr(), [at(b"x\0"), 0].as_ptr(), p)
        }),
        ("nanosleep", &|p| sys!(NANOSLEEP, p, 0)),
        ("sched_setaffinity", &|p| sys!(SCHED_SETAFFINITY, 0, 128, p)),
        ("rt_sigprocmask new", &|p| {
            sys!(RT_SIGPROCMASK, SIG_BLOCK, p, 0, 8)
        }),
        ("rt_sigaction new", &|p| {
            sys!(RT_SIGACTION, SIGUSR1, p, 0, 8)
        }),
    ];
    check(t, word, &calls, address);
    t.is(
        "pointers: nothing was written",
        sys!(LSEEK, fds.file, 0, SEEK_END),
        end,
    );
    // An unaligned futex word is EINVAL before it is looked at; the addresses here are aligned or not.
    if address.is_multiple_of(4) {
        check(
            t,
            word,
            &[("futex", &|p| sys!(FUTEX, p, FUTEX_WAIT, 0, 0))],
            address,
        );
    }
}

/// Buffers that begin in good memory and run into bad memory.
fn crossing(t: &mut Suite, fds: &Fds) {
    let pages = map(2, RW);
    unmap_pages(pages + PAGE, 1);
    let edge = pages + PAGE - 8;
    t.is(
        "crossing: a short string at the edge",
        sys!(OPEN, copy(edge, b"/no-suc\0"), O_RDONLY, 0),
        Errno::ENOENT.raw(),
    );
    t.is(
        "crossing: a string over the edge",
        sys!(OPEN, copy(edge, b"/no-such"), O_RDONLY, 0),
        Errno::EFAULT.raw(),
    );
    t.is(
        "crossing: a structure over the edge",
        sys!(FSTAT, fds.file, edge),
        Errno::EFAULT.raw(),
    );
    t.is(
        "crossing: uname over the edge",
        sys!(UNAME, edge),
        Errno::EFAULT.raw(),
    );
    let part = sys!(READ, fds.zero, edge, 16);
    t.ok(
        "crossing: read, the part that fits or EFAULT",
        part == 8 || part == Errno::EFAULT.raw(),
    );
    let part = sys!(WRITE, fds.w, edge, 16);
    t.ok(
        "crossing: write, the part that fits or EFAULT",
        part == 8 || part == Errno::EFAULT.raw(),
    );
    let huge = sys!(READ, fds.zero, pages, 1usize << 62);
    t.ok(
        "crossing: read of a huge length",
        huge == PAGE as isize || huge == Errno::EFAULT.raw(),
    );
    t.is(
        "crossing: read into all of memory",
        sys!(READ, fds.zero, 0x1000, isize::MAX),
        Errno::EFAULT.raw(),
    );
    unmap_pages(pages, 1);
}

/// Puts up to 8 bytes at `address`; the address.
fn copy(address: usize, bytes: &[u8]) -> usize {
    for (i, byte) in bytes.iter().enumerate() {
        crate::memory::poke(address + i, *byte);
    }
    address
}
