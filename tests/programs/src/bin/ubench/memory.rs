//! mmap, munmap, faults, brk.

use crate::{Bench, Context, FAILED, bench, heavy, map, time, touch, unmap};
use rt::abi::*;
use rt::sys;

pub const BENCHES: &[Bench] = &[
    bench("mmap_anon", 200, 10, |_, n| {
        time(n, |_| {
            let at = map(1);
            unmap(at, 1);
        })
    }),
    bench("mmap_anon_touched", 200, 10, |_, n| {
        time(n, |_| {
            let at = map(1);
            touch(at, 1);
            unmap(at, 1);
        })
    }),
    bench("fault", 256, 10, |_, n| {
        let at = map(n as usize);
        if at == 0 {
            return FAILED;
        }
        touch(at, 1);
        let cycles = time(n - 1, |i| touch(at + (i as usize + 1) * PAGE, 1));
        unmap(at, n as usize);
        cycles + cycles / u64::from(n - 1)
    }),
    bench("brk", 200, 10, |_, n| {
        let start = sys!(BRK, 0) as usize;
        time(n, |_| {
            sys!(BRK, start + PAGE);
            sys!(BRK, start);
        })
    }),
    bench("mprotect", 200, 10, |_, n| {
        let at = map(4);
        touch(at, 4);
        let cycles = time(n, |_| {
            sys!(MPROTECT, at + PAGE, PAGE, PROT_READ);
            sys!(MPROTECT, at + PAGE, PAGE, RW);
        });
        unmap(at, 4);
        cycles
    }),
    bench("mmap_shared_0", 100, 10, |c, n| with_others(c, n, 0, false)),
    bench("mmap_shared_100", 100, 10, |c, n| {
        with_others(c, n, 100, false)
    }),
    bench("mmap_shared_1000", 100, 5, |c, n| {
        with_others(c, n, 1000, false)
    }),
    heavy("mmap_shared_6000", 100, 5, |c, n| {
        with_others(c, n, 6000, false)
    }),
    bench("mmap_private_touched_0", 100, 10, |c, n| {
        with_others(c, n, 0, true)
    }),
    heavy("mmap_private_touched_6000", 100, 5, |c, n| {
        with_others(c, n, 6000, true)
    }),
];

/// Maps a page of a file; with `touched` privately and writing to it.
fn map_file(fd: isize, touched: bool) -> usize {
    let flags = if touched { MAP_PRIVATE } else { MAP_SHARED };
    let prot = if touched { RW } else { PROT_READ };
    let at = sys!(MMAP, 0, PAGE, prot, flags, fd, 0);
    if at < 0 {
        return 0;
    }
    if touched {
        touch(at as usize, 1);
    }
    at as usize
}

/// mmap and munmap of a file's page while `others` other mappings of it exist. A guard page keeps
/// neighbours from becoming one mapping.
pub fn with_others(context: &Context, n: u32, others: usize, touched: bool) -> u64 {
    let fd = sys!(OPEN, context.tiny.as_ptr(), O_RDONLY, 0);
    let area = sys!(
        MMAP,
        0,
        (2 * others + 1) * PAGE,
        PROT_NONE,
        ANON | MAP_NORESERVE,
        -1isize,
        0
    );
    if fd < 0 || area < 0 {
        return FAILED;
    }
    for i in 0..others {
        let at = area as usize + 2 * i * PAGE;
        if sys!(MMAP, at, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) < 0 {
            return FAILED;
        }
    }
    if map_file(fd, touched) == 0 {
        return FAILED;
    }
    let cycles = time(n, |_| {
        let at = map_file(fd, touched);
        unmap(at, 1);
    });
    unmap(area as usize, 2 * others + 1);
    sys!(CLOSE, fd);
    cycles
}
