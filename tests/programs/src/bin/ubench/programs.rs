//! Executing programs that others built: vfork, exec, their whole run, wait. Those that are not in /bin are absent.

use crate::{ABSENT, Bench, FAILED, heavy, time};
use core::ffi::CStr;
use rt::abi::*;
use rt::process::{End, vfork_exec, wait};
use rt::{Args, Line, sys};

pub const BENCHES: &[Bench] = &[
    heavy("exec_true_musl_static", 10, 5, |_, n| {
        runs(n, &[c"/bin/true-musl-static"])
    }),
    heavy("exec_true_glibc_static", 10, 5, |_, n| {
        runs(n, &[c"/bin/true-glibc-static"])
    }),
    heavy("exec_true_musl", 10, 5, |_, n| {
        runs(n, &[c"/bin/true-musl"])
    }),
    heavy("exec_true", 10, 5, |_, n| runs(n, &[c"/bin/true"])),
    heavy("exec_busybox_true", 10, 5, |_, n| {
        runs(n, &[c"/bin/busybox", c"true"])
    }),
    heavy("exec_busybox_sh", 10, 5, |_, n| {
        runs(n, &[c"/bin/busybox", c"sh", c"-c", c":"])
    }),
    heavy("exec_dash", 10, 5, |_, n| {
        runs(n, &[c"/bin/dash", c"-c", c":"])
    }),
];

/// `n` runs of a program with up to five words.
pub fn runs(n: u32, words: &[&CStr]) -> u64 {
    let mut argv = [0usize; 6];
    for (slot, word) in argv.iter_mut().zip(words.iter().take(5)) {
        *slot = word.as_ptr() as usize;
    }
    let Some(path) = words.first() else {
        return FAILED;
    };
    run_vector(n, path, argv.as_ptr())
}

/// Without environment.
fn run_vector(n: u32, path: &CStr, argv: *const usize) -> u64 {
    if sys!(ACCESS, path.as_ptr(), 1) != 0 {
        return ABSENT;
    }
    let no_environment = [0usize];
    let mut fine = true;
    let cycles = time(n, |_| {
        fine &= wait(vfork_exec(path, argv, no_environment.as_ptr())) == End::Exit(0);
    });
    if fine { cycles } else { FAILED }
}

/// Does `body` while what programs write goes nowhere.
pub fn silently(body: impl FnOnce() -> u64) -> u64 {
    let kept = sys!(DUP, 1);
    let nowhere = sys!(OPEN, c"/dev/null".as_ptr(), O_RDWR, 0);
    if kept < 0 || nowhere < 0 {
        return FAILED;
    }
    sys!(DUP2, nowhere, 1);
    let cycles = body();
    sys!(DUP2, kept, 1);
    sys!(CLOSE, kept);
    sys!(CLOSE, nowhere);
    cycles
}

/// `ubench run PROGRAM [ARGS]...`: once to be seen, then the cheapest of three.
pub fn run(args: &Args) -> i32 {
    let Some(path) = args.get(2) else { return 2 };
    let first = run_vector(1, path, args.argv_from(2));
    let cheapest = silently(|| {
        let again = (0..3).map(|_| run_vector(1, path, args.argv_from(2)));
        again.min().unwrap_or(FAILED)
    });
    let line = Line::new().text("ubench run ");
    if first == FAILED || first == ABSENT || cheapest >= ABSENT {
        line.text("FAILED").end();
        return 1;
    }
    line.dec(cheapest as i64).end();
    0
}
