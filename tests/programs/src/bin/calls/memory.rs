//! mmap, munmap, mprotect, brk, faults, copy-on-write, stack growth.

use crate::files::{close, open};
use core::ptr::{read_volatile, write_volatile};
use rt::abi::*;
use rt::process::{self, in_child};
use rt::{Errno, Suite, sys};

pub fn run(t: &mut Suite) {
    anonymous(t);
    map_errors(t);
    unmap(t);
    fixed(t);
    protect(t);
    across_fork(t);
    brk(t);
    stack(t);
    many(t);
    extras(t);
}

/// Maps `pages` anonymous pages.
pub fn map(pages: usize, prot: usize) -> usize {
    sys!(MMAP, 0, pages * PAGE, prot, ANON, -1isize, 0) as usize
}

pub fn unmap_pages(address: usize, pages: usize) -> isize {
    sys!(MUNMAP, address, pages * PAGE)
}

/// Reads a byte that may be unmapped (then the process dies).
pub fn peek(address: usize) -> u8 {
    // SAFETY: INV-PROG-1; a wild address faults, which is what the test wants.
    unsafe { read_volatile(address as *const u8) }
}

/// Writes a byte that may be unmapped or read-only (then the process dies).
pub fn poke(address: usize, value: u8) {
    // SAFETY: as in `peek`; the callers own the mapping.
    unsafe { write_volatile(address as *mut u8, value) }
}

/// How a child ends that reads or writes at `address`.
pub fn end_of_read(address: usize) -> isize {
    in_child(|| i32::from(peek(address))).number()
}

pub fn end_of_write(address: usize) -> isize {
    in_child(|| {
        poke(address, 1);
        0
    })
    .number()
}

pub const SEGV: isize = 1000 + SIGSEGV as isize;
pub const BUS: isize = 1000 + SIGBUS as isize;

fn anonymous(t: &mut Suite) {
    let at = map(4, RW);
    t.ok(
        "mmap: anonymous",
        at.is_multiple_of(PAGE) && (at as isize) > 0,
    );
    let zero = (0..4 * PAGE).step_by(512).all(|i| peek(at + i) == 0);
    t.ok("mmap: anonymous memory is zero", zero);
    (0..4).for_each(|i| poke(at + i * PAGE, i as u8 + 1));
    t.ok(
        "mmap: anonymous memory keeps what is written",
        (0..4).all(|i| peek(at + i * PAGE) == i as u8 + 1),
    );
    t.is("munmap", unmap_pages(at, 4), 0);
    t.is("munmap: again, nothing there", unmap_pages(at, 4), 0);
    t.is("munmap: the memory is gone", end_of_read(at), SEGV);
    let odd = sys!(MMAP, 0, 1, RW, ANON, -1isize, 0) as usize;
    t.is(
        "mmap: one byte is one page",
        i32::from(peek(odd + PAGE - 1)) as isize,
        0,
    );
    t.is("munmap: one byte is one page", sys!(MUNMAP, odd, 1), 0);
    t.is("munmap: whole page gone", end_of_read(odd + PAGE - 1), SEGV);
}

fn map_errors(t: &mut Suite) {
    let mmap = |address: usize, len: usize, prot: usize, flags: usize| {
        sys!(MMAP, address, len, prot, flags, -1isize, 0)
    };
    t.err("mmap: length 0", mmap(0, 0, RW, ANON), Errno::EINVAL);
    t.err(
        "mmap: neither private nor shared",
        mmap(0, PAGE, RW, MAP_ANONYMOUS),
        Errno::EINVAL,
    );
    t.err(
        "mmap: fixed, not aligned",
        mmap(0x1000_0001, PAGE, RW, ANON | MAP_FIXED),
        Errno::EINVAL,
    );
    t.err(
        "mmap: larger than the address space",
        mmap(0, 1 << 48, RW, ANON),
        Errno::ENOMEM,
    );
    t.err(
        "mmap: length that wraps",
        mmap(0, usize::MAX - 100, RW, ANON),
        Errno::ENOMEM,
    );
    t.err(
        "mmap: fixed at a kernel address",
        mmap(0xffff_8000_0000_0000, PAGE, RW, ANON | MAP_FIXED),
        Errno::ENOMEM,
    );
    t.err(
        "mmap: fixed across the end",
        mmap(0x7fff_ffff_e000, 4 * PAGE, RW, ANON | MAP_FIXED),
        Errno::ENOMEM,
    );
    t.err(
        "mmap: bad descriptor",
        sys!(MMAP, 0, PAGE, RW, MAP_PRIVATE, 999, 0),
        Errno::EBADF,
    );
    t.err(
        "mmap: offset not aligned",
        sys!(MMAP, 0, PAGE, RW, ANON, -1isize, 1),
        Errno::EINVAL,
    );
    t.ok("mmap: a hint that is taken elsewhere", {
        let first = map(1, RW);
        let second = mmap(first, PAGE, RW, ANON) as usize;
        let fine = second != first && second.is_multiple_of(PAGE) && peek(second) == 0;
        unmap_pages(first, 1);
        unmap_pages(second, 1);
        fine
    });
    t.ok("mmap: a free hint is taken", {
        let hint = map(8, RW);
        unmap_pages(hint, 8);
        let got = mmap(hint + PAGE, PAGE, RW, ANON) as usize;
        unmap_pages(got, 1);
        got == hint + PAGE
    });
}

fn unmap(t: &mut Suite) {
    let at = map(5, RW);
    (0..5).for_each(|i| poke(at + i * PAGE, 9));
    t.is("munmap: from the middle", unmap_pages(at + 2 * PAGE, 1), 0);
    t.ok(
        "munmap: the neighbours stay",
        peek(at + PAGE) == 9 && peek(at + 3 * PAGE) == 9,
    );
    t.is(
        "munmap: the middle is gone",
        end_of_read(at + 2 * PAGE),
        SEGV,
    );
    t.is("munmap: over a hole", unmap_pages(at, 5), 0);
    t.is("munmap: all gone", end_of_read(at + 4 * PAGE), SEGV);
    t.err(
        "munmap: not aligned",
        sys!(MUNMAP, at + 1, PAGE),
        Errno::EINVAL,
    );
    t.err("munmap: length 0", sys!(MUNMAP, at, 0), Errno::EINVAL);
    t.err(
        "munmap: kernel address",
        sys!(MUNMAP, 0xffff_8000_0000_0000usize, PAGE),
        Errno::EINVAL,
    );
    t.err(
        "munmap: length that wraps",
        sys!(MUNMAP, at, usize::MAX - 100),
        Errno::EINVAL,
    );
}

fn fixed(t: &mut Suite) {
    let at = map(3, RW);
    poke(at + PAGE, 5);
    let over = sys!(MMAP, at + PAGE, PAGE, RW, ANON | MAP_FIXED, -1isize, 0);
    t.is("mmap: MAP_FIXED over a mapping", over, (at + PAGE) as isize);
    t.is("mmap: MAP_FIXED replaces", peek(at + PAGE) as isize, 0);
    let refused = sys!(
        MMAP,
        at + PAGE,
        PAGE,
        RW,
        ANON | MAP_FIXED_NOREPLACE,
        -1isize,
        0
    );
    t.err(
        "mmap: MAP_FIXED_NOREPLACE over a mapping",
        refused,
        Errno::EEXIST,
    );
    unmap_pages(at + PAGE, 1);
    let taken = sys!(
        MMAP,
        at + PAGE,
        PAGE,
        RW,
        ANON | MAP_FIXED_NOREPLACE,
        -1isize,
        0
    );
    t.is(
        "mmap: MAP_FIXED_NOREPLACE in a hole",
        taken,
        (at + PAGE) as isize,
    );
    unmap_pages(at, 3);
}

fn protect(t: &mut Suite) {
    let at = map(3, RW);
    poke(at + PAGE, 7);
    let mprotect = |address: usize, len: usize, prot: usize| sys!(MPROTECT, address, len, prot);
    t.is(
        "mprotect: middle read-only",
        mprotect(at + PAGE, PAGE, PROT_READ),
        0,
    );
    t.is("mprotect: still readable", peek(at + PAGE) as isize, 7);
    t.is("mprotect: write dies", end_of_write(at + PAGE), SEGV);
    t.is(
        "mprotect: the kernel may not write either",
        zero_into(at + PAGE),
        Errno::EFAULT.raw(),
    );
    poke(at, 1);
    poke(at + 2 * PAGE, 1);
    t.is("mprotect: none", mprotect(at + PAGE, PAGE, PROT_NONE), 0);
    t.is("mprotect: read dies", end_of_read(at + PAGE), SEGV);
    t.is("mprotect: writable again", mprotect(at, 3 * PAGE, RW), 0);
    t.is("mprotect: content kept", peek(at + PAGE) as isize, 7);
    poke(at + PAGE, 8);
    t.is("mprotect: length 0", mprotect(at, 0, PROT_NONE), 0);
    t.err(
        "mprotect: not aligned",
        mprotect(at + 1, PAGE, PROT_READ),
        Errno::EINVAL,
    );
    t.err(
        "mprotect: unknown bits",
        mprotect(at, PAGE, 0x100),
        Errno::EINVAL,
    );
    unmap_pages(at + 2 * PAGE, 1);
    t.err(
        "mprotect: beyond the mapping",
        mprotect(at, 3 * PAGE, PROT_READ),
        Errno::ENOMEM,
    );
    unmap_pages(at, 3);
    t.err(
        "mprotect: nothing mapped",
        mprotect(at, PAGE, PROT_READ),
        Errno::ENOMEM,
    );
    let code = map(1, RW);
    poke(code, 0xc3); // ret
    t.is(
        "mprotect: no execution without PROT_EXEC",
        in_child(|| call(code)).number(),
        SEGV,
    );
    t.is(
        "mprotect: executable",
        mprotect(code, PAGE, PROT_READ | PROT_EXEC),
        0,
    );
    t.is("mprotect: runs", in_child(|| call(code)).number(), 0);
    unmap_pages(code, 1);
}

/// Calls the code at `address`.
fn call(address: usize) -> i32 {
    // SAFETY: the page holds `ret`, or may not be executed and the process dies.
    let code: extern "C" fn() = unsafe { core::mem::transmute(address) };
    code();
    0
}

/// Makes the kernel write a byte to `address`.
pub fn zero_into(address: usize) -> isize {
    let zero = open(c"/dev/zero", O_RDONLY);
    let got = sys!(READ, zero, address, 1);
    close(zero);
    got
}

fn across_fork(t: &mut Suite) {
    let private = map(2, RW);
    let shared = sys!(MMAP, 0, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1isize, 0) as usize;
    poke(private, 1);
    let end = in_child(|| {
        let fine = peek(private) == 1 && peek(shared) == 0 && peek(private + PAGE) == 0;
        poke(private, 2);
        poke(private + PAGE, 2);
        poke(shared, 2);
        let nested = in_child(|| {
            poke(private, 3);
            poke(shared, 3);
            0
        });
        i32::from(!(fine && nested.number() == 0 && peek(private) == 2 && peek(shared) == 3))
    });
    t.is("fork: copies within copies", end.number(), 0);
    t.is(
        "fork: private memory is the parent's own",
        peek(private) as isize,
        1,
    );
    t.is(
        "fork: untouched private memory too",
        peek(private + PAGE) as isize,
        0,
    );
    t.is("fork: shared memory is shared", peek(shared) as isize, 3);
    poke(private, 4);
    t.is(
        "fork: the parent writes after the child's end",
        peek(private) as isize,
        4,
    );
    unmap_pages(private, 2);
    unmap_pages(shared, 1);
}

fn brk(t: &mut Suite) {
    let brk = |address: usize| sys!(BRK, address) as usize;
    let start = brk(0);
    t.ok("brk: where it is", start > 0x400000);
    t.is(
        "brk: grow",
        brk(start + 3 * PAGE) as isize,
        (start + 3 * PAGE) as isize,
    );
    let fresh = start.next_multiple_of(PAGE);
    t.is("brk: zero", peek(fresh + PAGE) as isize, 0);
    poke(fresh + PAGE, 6);
    t.is("brk: shrink", brk(start) as isize, start as isize);
    t.is("brk: the page is gone", end_of_read(fresh + PAGE), SEGV);
    brk(start + 3 * PAGE);
    t.is("brk: zero when grown again", peek(fresh + PAGE) as isize, 0);
    t.is(
        "brk: too low is refused",
        brk(PAGE) as isize,
        (start + 3 * PAGE) as isize,
    );
    t.is(
        "brk: absurdly high is refused",
        brk(1 << 50) as isize,
        (start + 3 * PAGE) as isize,
    );
    t.is(
        "brk: not page aligned",
        brk(start + 100) as isize,
        (start + 100) as isize,
    );
    brk(start);
}

/// Recurses through `depth` frames of a page each.
#[inline(never)]
fn dig(depth: u32) -> u32 {
    let mut frame = [0u8; PAGE];
    // SAFETY: the frame is a local.
    unsafe { write_volatile(frame.as_mut_ptr(), depth as u8) };
    if depth == 0 {
        return 0;
    }
    // SAFETY: as above; the read keeps the frame alive across the call.
    dig(depth - 1) + u32::from(unsafe { read_volatile(frame.as_ptr()) } == depth as u8)
}

fn stack(t: &mut Suite) {
    t.is("stack: grows by a mebibyte", dig(256) as isize, 256);
    t.is(
        "stack: overflow is SIGSEGV",
        in_child(|| dig(1 << 20) as i32).number(),
        SEGV,
    );
    let process = process::getpid();
    t.ok("stack: the parent lives", process > 0);
}

/// Many mappings, made and removed in an order that splits and merges.
fn many(t: &mut Suite) {
    let base = map(256, RW);
    let mut fine = true;
    for i in (0..256).step_by(2) {
        fine &= sys!(MPROTECT, base + i * PAGE, PAGE, PROT_READ) == 0;
    }
    for i in (1..256).step_by(2) {
        poke(base + i * PAGE, i as u8);
    }
    fine &= (0..256).all(|i| peek(base + i * PAGE) == if i % 2 == 1 { i as u8 } else { 0 });
    t.ok("mprotect: every second of 256 pages", fine);
    for i in (0..256).step_by(4) {
        fine &= unmap_pages(base + i * PAGE, 1) == 0;
    }
    t.ok(
        "munmap: every fourth of them",
        fine && peek(base + PAGE) == 1 && peek(base + 255 * PAGE) == 255,
    );
    t.is(
        "mprotect: over the holes",
        sys!(MPROTECT, base, 256 * PAGE, RW),
        Errno::ENOMEM.raw(),
    );
    t.is("munmap: the rest", unmap_pages(base, 256), 0);
}

fn extras(t: &mut Suite) {
    let at = map(4, RW);
    poke(at, 1);
    const DONTNEED: usize = 4;
    let got = sys!(MADVISE, at, PAGE, DONTNEED);
    t.extra("madvise: MADV_DONTNEED", got, 0);
    if got == 0 {
        t.is("madvise: zero afterwards", peek(at) as isize, 0);
    }
    poke(at, 2);
    let moved = sys!(MREMAP, at, 4 * PAGE, 2 * PAGE, 0);
    t.extra("mremap: shrink in place", moved, at as isize);
    unmap_pages(at, 4);
}
