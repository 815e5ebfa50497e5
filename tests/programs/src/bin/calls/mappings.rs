//! Mappings of files: private and shared, cut, with holes, moved.

use crate::files::{close, open, read, scratch, write};
use crate::memory::{
    BUS, SEGV, end_of_read, end_of_write, map, peek, poke, unmap_pages, zero_into,
};
use rt::abi::*;
use rt::process::in_child;
use rt::{Args, Errno, Suite, sys};

pub fn run(t: &mut Suite, args: &Args) {
    private_file(t, args);
    shared_file(t);
    cut_and_holes(t);
    moved_file(t);
    moved_pages(t);
    file_errors(t, args);
}

fn private_file(t: &mut Suite, args: &Args) {
    let fd = open(args.execfn(), O_RDONLY);
    let at = sys!(MMAP, 0, PAGE, RW, MAP_PRIVATE, fd, 0) as usize;
    t.ok("mmap: private file", at.is_multiple_of(PAGE));
    t.ok(
        "mmap: the file's bytes",
        (0..4).map(|i| peek(at + i)).eq(*b"\x7fELF"),
    );
    poke(at, b'X');
    let mut first = [0u8; 1];
    read(fd, &mut first);
    t.is(
        "mmap: a private write stays private",
        first[0] as isize,
        0x7f,
    );
    t.is("mmap: and is seen", peek(at) as isize, b'X' as isize);
    close(fd);
    t.is(
        "mmap: the mapping outlives the descriptor",
        peek(at + 1) as isize,
        b'E' as isize,
    );
    unmap_pages(at, 1);
}

fn shared_file(t: &mut Suite) {
    let fd = scratch();
    write(fd, b"0123456789");
    let at = sys!(MMAP, 0, 3 * PAGE, RW, MAP_SHARED, fd, 0) as usize;
    t.is("mmap: shared file", peek(at + 3) as isize, b'3' as isize);
    t.is(
        "mmap: zero behind the end of the file",
        peek(at + 10) as isize,
        0,
    );
    poke(at + 3, b'!');
    let mut byte = [0u8; 1];
    sys!(PREAD64, fd, byte.as_mut_ptr(), 1, 3);
    t.is(
        "mmap: read sees a shared write",
        byte[0] as isize,
        b'!' as isize,
    );
    sys!(LSEEK, fd, 4, SEEK_SET);
    write(fd, b"?");
    t.is(
        "mmap: the mapping sees write",
        peek(at + 4) as isize,
        b'?' as isize,
    );
    in_child(|| {
        poke(at + 5, b'c');
        0
    });
    t.is(
        "mmap: shared with a child",
        peek(at + 5) as isize,
        b'c' as isize,
    );
    t.is(
        "mmap: read beyond the last page is SIGBUS",
        end_of_read(at + PAGE),
        BUS,
    );
    t.is(
        "mmap: write beyond the last page is SIGBUS",
        end_of_write(at + 2 * PAGE),
        BUS,
    );
    t.is(
        "mmap: the kernel gets EFAULT there",
        zero_into(at + PAGE),
        Errno::EFAULT.raw(),
    );
    sys!(LSEEK, fd, PAGE, SEEK_SET);
    write(fd, b"grown");
    t.is(
        "mmap: a grown file fills the mapping",
        peek(at + PAGE) as isize,
        b'g' as isize,
    );
    unmap_pages(at, 3);
    let second = sys!(MMAP, 0, PAGE, PROT_READ, MAP_SHARED, fd, PAGE) as usize;
    t.is(
        "mmap: file offset",
        peek(second + 1) as isize,
        b'r' as isize,
    );
    unmap_pages(second, 1);
    close(fd);
}

/// A file of `pages` pages, each filled with its number from 1 on, and a shared mapping of it.
fn numbered(pages: usize) -> (isize, usize) {
    let fd = scratch();
    sys!(FTRUNCATE, fd, pages * PAGE);
    let at = sys!(MMAP, 0, pages * PAGE, RW, MAP_SHARED, fd, 0) as usize;
    (0..pages * PAGE)
        .step_by(256)
        .for_each(|i| poke(at + i, (i / PAGE) as u8 + 1));
    (fd, at)
}

/// truncate and hole punching reach all mappings, also those of another process, but not private copies, which only
/// truncation takes.
fn cut_and_holes(t: &mut Suite) {
    let (fd, at) = numbered(4);
    t.is("msync: shared", sys!(MSYNC, at, 4 * PAGE, 4), 0);
    let private = sys!(MMAP, 0, 4 * PAGE, RW, MAP_PRIVATE, fd, 0) as usize;
    poke(private + PAGE, 77);
    const PUNCH: usize = 3; // PUNCH_HOLE, KEEP_SIZE
    let (go, done) = (crate::pipes::pipe(0), crate::pipes::pipe(0));
    let child = sys!(FORK);
    if child == 0 {
        let mut byte = [peek(at + 2 * PAGE)];
        write(done.1, &byte);
        read(go.0, &mut byte);
        let seen = [peek(at + PAGE), peek(at + 2 * PAGE), peek(private + PAGE)];
        sys!(EXIT_GROUP, i32::from(seen != [0, 3, 77]));
    }
    let mut byte = [0];
    read(done.0, &mut byte);
    t.is(
        "fallocate: punch a hole",
        sys!(FALLOCATE, fd, PUNCH, PAGE, PAGE),
        0,
    );
    t.is(
        "fallocate: the hole reads zero",
        peek(at + PAGE + 256) as isize,
        0,
    );
    t.is("fallocate: what is before it stays", peek(at) as isize, 1);
    t.is(
        "fallocate: what is behind it stays",
        peek(at + 2 * PAGE) as isize,
        3,
    );
    t.is(
        "fallocate: a private copy stays",
        peek(private + PAGE) as isize,
        77,
    );
    sys!(PREAD64, fd, byte.as_mut_ptr(), 1, PAGE + 5);
    t.is("fallocate: read sees the hole", byte[0] as isize, 0);
    t.is(
        "fallocate: parts of pages",
        sys!(FALLOCATE, fd, PUNCH, 2 * PAGE + 256, 512),
        0,
    );
    let around = [
        peek(at + 2 * PAGE),
        peek(at + 2 * PAGE + 256),
        peek(at + 2 * PAGE + 768),
    ];
    t.ok("fallocate: only those bytes", around == [3, 0, 3]);
    write(go.1, &byte);
    let mut status = -1;
    sys!(WAIT4, child, &raw mut status, 0, 0);
    t.is(
        "fallocate: another process sees the hole",
        status as isize,
        0,
    );
    t.err(
        "fallocate: a hole without KEEP_SIZE",
        sys!(FALLOCATE, fd, 2, 0, PAGE),
        Errno::EOPNOTSUPP,
    );
    poke(private + 3 * PAGE, 78);
    t.is("ftruncate: mapped", sys!(FTRUNCATE, fd, 2 * PAGE), 0);
    t.is(
        "ftruncate: SIGBUS past the new end",
        end_of_read(at + 2 * PAGE),
        BUS,
    );
    t.is(
        "ftruncate: a private copy past it goes too",
        end_of_read(private + 3 * PAGE),
        BUS,
    );
    t.is("ftruncate: grown again", sys!(FTRUNCATE, fd, 4 * PAGE), 0);
    t.is(
        "ftruncate: zero where it was cut",
        peek(at + 2 * PAGE) as isize,
        0,
    );
    unmap_pages(at, 4);
    unmap_pages(private, 4);
    [go.0, go.1, done.0, done.1, fd].into_iter().for_each(|fd| {
        close(fd);
    });
}

/// mremap and holes in a file's mapping.
fn moved_file(t: &mut Suite) {
    let (fd, at) = numbered(4);
    let room = map(8, PROT_NONE);
    const MAYMOVE_FIXED: usize = 3;
    let moved = sys!(MREMAP, at, 2 * PAGE, 3 * PAGE, MAYMOVE_FIXED, room);
    t.is(
        "mremap: a file's mapping moves and grows",
        moved,
        room as isize,
    );
    t.is(
        "mremap: it shows the file",
        peek(room + 2 * PAGE) as isize,
        3,
    );
    t.is("mremap: the old place is gone", end_of_read(at), SEGV);
    t.is(
        "mremap: what was not moved stays",
        peek(at + 3 * PAGE) as isize,
        4,
    );
    poke(room + PAGE, 55);
    t.is(
        "munmap: the middle of a file's mapping",
        unmap_pages(room + PAGE, 1),
        0,
    );
    t.is("munmap: behind the hole", peek(room + 2 * PAGE) as isize, 3);
    t.is("munmap: the hole", end_of_read(room + PAGE), SEGV);
    let mut byte = [0u8];
    sys!(PREAD64, fd, byte.as_mut_ptr(), 1, PAGE);
    t.is(
        "munmap: what was written is in the file",
        byte[0] as isize,
        55,
    );
    let over = sys!(
        MMAP,
        room + 2 * PAGE,
        PAGE,
        RW,
        MAP_SHARED | MAP_FIXED,
        fd,
        0
    );
    t.is(
        "mmap: fixed, over a file's mapping",
        over,
        (room + 2 * PAGE) as isize,
    );
    t.is(
        "mmap: fixed, shows the new pages",
        peek(room + 2 * PAGE) as isize,
        1,
    );
    unmap_pages(at, 4);
    unmap_pages(room, 8);
    close(fd);
}

/// move_pages: pages keep their bytes wherever they go.
fn moved_pages(t: &mut Suite) {
    let (fd, shared) = numbered(1);
    let private = map(2, RW);
    poke(private, 9);
    let pages = [shared, private, private + PAGE, 0x1000];
    let mut status = [-99i32; 4];
    let at = |nodes: *const i32, status: &mut [i32; 4]| {
        sys!(
            MOVE_PAGES,
            0,
            4,
            pages.as_ptr(),
            nodes,
            status.as_mut_ptr(),
            2
        )
    };
    let got = at(core::ptr::null(), &mut status);
    t.extra("move_pages: where they are", got, 0);
    if got != 0 {
        return;
    }
    t.ok("move_pages: nodes", status[0] >= 0 && status[1] >= 0);
    t.is(
        "move_pages: not touched",
        status[2] as isize,
        Errno::ENOENT.raw(),
    );
    t.is(
        "move_pages: not mapped",
        status[3] as isize,
        Errno::EFAULT.raw(),
    );
    // Wherever a second node is, there and back again.
    for node in [1, 0] {
        let nodes = [node; 4];
        if at(nodes.as_ptr(), &mut status) == 0 {
            t.is(
                "move_pages: a page of a file",
                status[0] as isize,
                node as isize,
            );
            t.is(
                "move_pages: a private page",
                status[1] as isize,
                node as isize,
            );
        }
        t.is(
            "move_pages: the file's bytes stay",
            peek(shared + 256) as isize,
            1,
        );
        t.is("move_pages: private bytes stay", peek(private) as isize, 9);
    }
    let nodes = [1 << 20; 4];
    t.err(
        "move_pages: no such node",
        at(nodes.as_ptr(), &mut status),
        Errno::ENODEV,
    );
    unmap_pages(shared, 1);
    unmap_pages(private, 2);
    close(fd);
}

fn file_errors(t: &mut Suite, args: &Args) {
    let fd = open(args.execfn(), O_RDONLY);
    let mmap = |fd: isize, prot: usize, flags: usize, offset: usize| {
        sys!(MMAP, 0, PAGE, prot, flags, fd, offset)
    };
    t.err(
        "mmap: shared and writable, opened for reading",
        mmap(fd, RW, MAP_SHARED, 0),
        Errno::EACCES,
    );
    t.err(
        "mmap: file offset not aligned",
        mmap(fd, PROT_READ, MAP_PRIVATE, 100),
        Errno::EINVAL,
    );
    let at = mmap(fd, PROT_READ, MAP_SHARED, 0) as usize;
    t.ok("mmap: shared read-only", at.is_multiple_of(PAGE));
    t.err(
        "mprotect: cannot make it writable",
        sys!(MPROTECT, at, PAGE, RW),
        Errno::EACCES,
    );
    unmap_pages(at, 1);
    close(fd);
    close(scratch());
    let fd = open(crate::SCRATCH, O_WRONLY);
    t.err(
        "mmap: opened for writing only",
        mmap(fd, PROT_WRITE, MAP_PRIVATE, 0),
        Errno::EACCES,
    );
    close(fd);
    let (r, w) = crate::pipes::pipe(0);
    t.err(
        "mmap: pipe",
        mmap(r, PROT_READ, MAP_PRIVATE, 0),
        Errno::ENODEV,
    );
    close(r);
    close(w);
    let dir = open(c"/dev", O_RDONLY);
    t.err(
        "mmap: directory",
        mmap(dir, PROT_READ, MAP_PRIVATE, 0),
        Errno::ENODEV,
    );
    close(dir);
}
