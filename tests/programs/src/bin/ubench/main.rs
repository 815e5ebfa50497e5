//! Micro-benchmarks of system calls: `ubench NAME CYCLES_PER_OP`, one line each.
//!
//! `ubench` runs everything but the heavy ones, `ubench NAME...` what is named (`all`: everything,
//! `list`: only names), `ubench run PROGRAM [ARGS]...` one run of a program, from vfork to wait. Timing is `lfence; rdtsc; lfence` around a batch; the figure is the cheapest
//! batch divided by its operations. Under `-icount` a cycle is an instruction and figures repeat to
//! the digit. Each row runs in a process that begins with it (one for all rows of the crowd), so that no row pays for
//! what others left in their address space. Needs `tiny` beside itself; a row whose program is not in /bin says `absent`.
#![no_std]
#![no_main]

mod crowd;
mod memory;
mod processes;
mod programs;
mod simple;

use core::ffi::CStr;
use rt::process::{End, vfork_exec, wait};
use rt::{Args, Line, sys};

rt::entry!(main);

/// What a benchmark may need to know.
pub struct Context {
    /// Path of `tiny`.
    pub tiny: &'static CStr,
    /// Path of this program.
    pub itself: &'static CStr,
}

/// One row: `run(context, ops)` does `ops` operations and returns their cycles, or `FAILED`.
pub struct Bench {
    /// What it is called on the line and in the output.
    pub name: &'static str,
    /// Operations in a batch.
    pub ops: u32,
    /// Batches; the cheapest counts. The first also warms up.
    pub batches: u32,
    /// Only when named: takes seconds under emulation.
    pub heavy: bool,
    /// Does a batch.
    pub run: fn(&Context, u32) -> u64,
}

/// A run that could not be measured.
pub const FAILED: u64 = u64::MAX;

/// A row that needs a program which is not there.
pub const ABSENT: u64 = u64::MAX - 1;

/// A row that runs always.
pub const fn bench(
    name: &'static str,
    ops: u32,
    batches: u32,
    run: fn(&Context, u32) -> u64,
) -> Bench {
    Bench {
        name,
        ops,
        batches,
        heavy: false,
        run,
    }
}

/// A row that runs when named.
pub const fn heavy(
    name: &'static str,
    ops: u32,
    batches: u32,
    run: fn(&Context, u32) -> u64,
) -> Bench {
    Bench {
        name,
        ops,
        batches,
        heavy: true,
        run,
    }
}

/// Times `op`, called `ops` times.
#[inline(always)]
pub fn time(ops: u32, mut op: impl FnMut(u32)) -> u64 {
    let start = rt::time::cycles();
    for i in 0..ops {
        op(i);
    }
    rt::time::cycles() - start
}

/// The path of `tiny`, built once.
static mut TINY: [u8; 256] = [0; 256];

fn tiny_path(itself: &CStr) -> &'static CStr {
    let path = itself.to_bytes();
    let dir = path.iter().rposition(|b| *b == b'/').map_or(0, |i| i + 1);
    let tiny: *mut [u8; 256] = &raw mut TINY;
    // SAFETY: called once, before any thread.
    let tiny = unsafe { &mut *tiny };
    let bytes = path.iter().take(dir).chain(b"tiny").take(255);
    tiny.iter_mut()
        .zip(bytes)
        .for_each(|(slot, byte)| *slot = *byte);
    CStr::from_bytes_until_nul(tiny).unwrap_or(c"")
}

fn main(args: &Args) -> i32 {
    if args.get(1) == Some(c"@self") {
        return processes::exec_again(args);
    }
    let context = Context {
        tiny: tiny_path(args.execfn()),
        itself: args.execfn(),
    };
    if args.get(1) == Some(c"run") {
        return rt::process::outside_init(|| programs::run(args));
    }
    rt::process::outside_init(|| run_all(args, &context))
}

fn named(args: &Args, name: &str) -> bool {
    (1..args.nr()).any(|i| args.get(i).is_some_and(|a| a.to_bytes() == name.as_bytes()))
}

/// The word before the name of the row that this process measures.
const ROW: &CStr = c"@row";

fn run_all(args: &Args, context: &Context) -> i32 {
    let every = [
        simple::BENCHES,
        memory::BENCHES,
        processes::BENCHES,
        programs::BENCHES,
        crowd::BENCHES,
    ];
    let benches = every.iter().copied().flatten();
    let (all, list) = (named(args, "all"), named(args, "list"));
    let is_row = args.get(1) == Some(ROW);
    let (mut ran, mut failed) = (0, 0);
    for bench in benches {
        let chosen = all || list || named(args, bench.name) || (args.nr() == 1 && !bench.heavy);
        if !chosen {
            continue;
        }
        ran += 1;
        if list {
            let kind = if bench.heavy { " (heavy)" } else { "" };
            Line::new()
                .text("ubench ")
                .text(bench.name)
                .text(kind)
                .end();
        } else if is_row || crowd::has(bench) {
            failed += i64::from(!measure(bench, context));
        } else {
            failed += i64::from(!in_a_process_of_its_own(bench, context));
        }
    }
    if !is_row {
        let line = Line::new().text("ubench: ").dec(ran).text(" measured, ");
        line.dec(failed).text(" failed").end();
    }
    i32::from(failed != 0 || ran == 0)
}

/// Measures a row here and prints its line; whether it went well.
fn measure(bench: &Bench, context: &Context) -> bool {
    let best = (0..bench.batches)
        .map(|_| (bench.run)(context, bench.ops))
        .min()
        .unwrap_or(FAILED);
    let line = Line::new().text("ubench ").text(bench.name).text(" ");
    match best {
        ABSENT => line.text("absent").end(),
        FAILED => line.text("FAILED").end(),
        cycles => line.dec((cycles / u64::from(bench.ops)) as i64).end(),
    }
    best != FAILED
}

/// Executes this program anew for one row.
fn in_a_process_of_its_own(bench: &Bench, context: &Context) -> bool {
    let mut name = [0u8; 64];
    let bytes = bench.name.bytes().take(63);
    name.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    let argv = [
        context.itself.as_ptr() as usize,
        ROW.as_ptr() as usize,
        rt::sys::at(&name),
        0,
    ];
    let child = vfork_exec(context.itself, argv.as_ptr(), argv.as_ptr().wrapping_add(3));
    wait(child) == End::Exit(0)
}

/// Maps `pages` anonymous pages; 0 on failure.
pub fn map(pages: usize) -> usize {
    let at = sys!(
        MMAP,
        0,
        pages * rt::abi::PAGE,
        rt::abi::RW,
        rt::abi::ANON,
        -1isize,
        0
    );
    if at < 0 { 0 } else { at as usize }
}

/// Unmaps `pages` pages at `at`.
pub fn unmap(at: usize, pages: usize) {
    sys!(MUNMAP, at, pages * rt::abi::PAGE);
}

/// Writes a byte to each of `pages` pages.
#[inline(always)]
pub fn touch(at: usize, pages: usize) {
    for i in 0..pages {
        // SAFETY: the caller mapped these pages.
        unsafe { ((at + i * rt::abi::PAGE) as *mut u8).write_volatile(1) };
    }
}
