//! Vector and floating-point state: kept across switches, calls, faults and signals, copied by fork,
//! fresh after exec.
//!
//! The programs are compiled without vector instructions, so a value loaded into a vector register
//! stays there until this file's own code or a mistake of the kernel changes it. AVX is tested where
//! the processor and the kernel offer it.
#![no_std]
#![no_main]

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::ffi::CStr;
use rt::abi::*;
use rt::process::{self, fork, in_child, wait};
use rt::signal;
use rt::sys::at;
use rt::thread::Thread;
use rt::{Args, Suite, sys};

rt::entry!(main);

const WORKERS: usize = 8;
const ROUNDS: u32 = 60;

/// Sixteen registers of 32 bytes, MXCSR and the x87 control word.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
struct State {
    vectors: [[u64; 4]; 16],
    mxcsr: u32,
    control: u16,
    x87: u16,
}

impl State {
    const fn zero() -> State {
        State {
            vectors: [[0; 4]; 16],
            mxcsr: 0,
            control: 0,
            x87: 0,
        }
    }

    /// A state like no other; the upper halves only where they exist.
    fn pattern(seed: u64, avx: bool) -> State {
        let mut state = State::zero();
        let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for vector in &mut state.vectors {
            let nr = if avx { 4 } else { 2 };
            for slot in vector.iter_mut().take(nr) {
                word = word
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(seed | 1);
                *slot = word;
            }
        }
        // Rounding mode in bits 13 and 14 of MXCSR, 10 and 11 of the control word.
        state.mxcsr = 0x1f80 | (seed as u32 & 3) << 13;
        state.control = 0x037f | (seed as u16 & 3) << 10;
        state.x87 = seed as u16;
        state
    }

    fn load(&self, avx: bool) {
        // SAFETY: reads `self`; vector and x87 registers belong to this file alone, and the assembler
        // code pushes one x87 value that `store` pops.
        unsafe {
            if avx {
                asm!(
                    "vmovups ymm0, [{p}]", "vmovups ymm1, [{p}+32]", "vmovups ymm2, [{p}+64]",
                    "vmovups ymm3, [{p}+96]", "vmovups ymm4, [{p}+128]", "vmovups ymm5, [{p}+160]",
                    "vmovups ymm6, [{p}+192]", "vmovups ymm7, [{p}+224]", "vmovups ymm8, [{p}+256]",
                    "vmovups ymm9, [{p}+288]", "vmovups ymm10, [{p}+320]", "vmovups ymm11, [{p}+352]",
                    "vmovups ymm12, [{p}+384]", "vmovups ymm13, [{p}+416]", "vmovups ymm14, [{p}+448]",
                    "vmovups ymm15, [{p}+480]",
                    p = in(reg) self.vectors.as_ptr(),
                );
            } else {
                asm!(
                    "movups xmm0, [{p}]", "movups xmm1, [{p}+32]", "movups xmm2, [{p}+64]",
                    "movups xmm3, [{p}+96]", "movups xmm4, [{p}+128]", "movups xmm5, [{p}+160]",
                    "movups xmm6, [{p}+192]", "movups xmm7, [{p}+224]", "movups xmm8, [{p}+256]",
                    "movups xmm9, [{p}+288]", "movups xmm10, [{p}+320]", "movups xmm11, [{p}+352]",
                    "movups xmm12, [{p}+384]", "movups xmm13, [{p}+416]", "movups xmm14, [{p}+448]",
                    "movups xmm15, [{p}+480]",
                    p = in(reg) self.vectors.as_ptr(),
                );
            }
            asm!(
                "ldmxcsr [{m}]", "fldcw [{c}]", "fild word ptr [{x}]",
                m = in(reg) &raw const self.mxcsr, c = in(reg) &raw const self.control, x = in(reg) &raw const self.x87,
            );
        }
    }

    fn store(avx: bool) -> State {
        let mut state = State::zero();
        // SAFETY: writes `state`; see `load`.
        unsafe {
            if avx {
                asm!(
                    "vmovups [{p}], ymm0", "vmovups [{p}+32], ymm1", "vmovups [{p}+64], ymm2",
                    "vmovups [{p}+96], ymm3", "vmovups [{p}+128], ymm4", "vmovups [{p}+160], ymm5",
                    "vmovups [{p}+192], ymm6", "vmovups [{p}+224], ymm7", "vmovups [{p}+256], ymm8",
                    "vmovups [{p}+288], ymm9", "vmovups [{p}+320], ymm10", "vmovups [{p}+352], ymm11",
                    "vmovups [{p}+384], ymm12", "vmovups [{p}+416], ymm13", "vmovups [{p}+448], ymm14",
                    "vmovups [{p}+480], ymm15",
                    p = in(reg) state.vectors.as_mut_ptr(),
                );
            } else {
                asm!(
                    "movups [{p}], xmm0", "movups [{p}+32], xmm1", "movups [{p}+64], xmm2",
                    "movups [{p}+96], xmm3", "movups [{p}+128], xmm4", "movups [{p}+160], xmm5",
                    "movups [{p}+192], xmm6", "movups [{p}+224], xmm7", "movups [{p}+256], xmm8",
                    "movups [{p}+288], xmm9", "movups [{p}+320], xmm10", "movups [{p}+352], xmm11",
                    "movups [{p}+384], xmm12", "movups [{p}+416], xmm13", "movups [{p}+448], xmm14",
                    "movups [{p}+480], xmm15",
                    p = in(reg) state.vectors.as_mut_ptr(),
                );
            }
            asm!(
                "stmxcsr [{m}]", "fnstcw [{c}]", "fistp word ptr [{x}]",
                m = in(reg) &raw mut state.mxcsr, c = in(reg) &raw mut state.control, x = in(reg) &raw mut state.x87,
            );
        }
        // The seed may have its top bit set; both sides are words then.
        state
    }
}

/// Whether AVX may be used: the processor has it and the kernel saves it.
fn has_avx() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const AVX: u32 = 1 << 28;
    if __cpuid(1).ecx & (OSXSAVE | AVX) != OSXSAVE | AVX {
        return false;
    }
    let enabled: u32;
    // SAFETY: OSXSAVE says that xgetbv exists.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _) };
    enabled & 6 == 6 && __cpuid_count(0xd, 0).ebx >= 512
}

fn spin(rounds: u32) {
    for _ in 0..rounds {
        core::hint::spin_loop();
    }
}

/// Loads patterns, lets other processes run in every way there is, and compares. The number of
/// differences, at most 100.
fn worker(seed: u64, rounds: u32, avx: bool) -> i32 {
    let mut wrong = 0;
    for round in 0..rounds {
        let state = State::pattern(seed * 1000 + u64::from(round), avx);
        state.load(avx);
        match round % 6 {
            0 => drop_result(sys!(SCHED_YIELD)),
            1 => spin(30_000),
            2 => rt::time::sleep_ns(200_000),
            3 => {
                let page = sys!(MMAP, 0, 4 * PAGE, RW, ANON, -1isize, 0) as usize;
                // SAFETY: freshly mapped; the write faults a page in.
                unsafe { ((page + PAGE) as *mut u8).write_volatile(1) };
                sys!(MUNMAP, page, 4 * PAGE);
            }
            4 => (0..20).for_each(|_| drop_result(sys!(SCHED_YIELD))),
            _ => drop_result(sys!(GETPID)),
        }
        wrong += i32::from(State::store(avx) != state);
    }
    wrong.min(100)
}

fn drop_result(_: isize) {}

extern "C" fn thread_worker(seed: usize) -> i32 {
    let wrong = worker(seed as u64, ROUNDS, has_avx());
    if wrong != 0 {
        process::exit_group(60);
    }
    0
}

extern "C" fn clobber(_: i32, _: &mut Siginfo, _: &mut Ucontext) {
    let avx = has_avx();
    State::pattern(0xbad, avx).load(avx);
    State::store(avx);
    State::pattern(0xbad, avx).load(avx);
}

fn main(args: &Args) -> i32 {
    if args.get(1) == Some(c"@fresh") {
        return fresh();
    }
    process::outside_init(|| suite(args))
}

/// After exec: default control words, empty vectors.
fn fresh() -> i32 {
    let avx = has_avx();
    let (mut mxcsr, mut control) = (0u32, 0u16);
    // SAFETY: writes two locals.
    unsafe {
        asm!("stmxcsr [{}]", "fnstcw [{}]", in(reg) &raw mut mxcsr, in(reg) &raw mut control)
    };
    State::zero().x87_push();
    let vectors = State::store(avx).vectors == [[0; 4]; 16];
    if mxcsr != 0x1f80 {
        return 61;
    }
    if control != 0x37f {
        return 62;
    }
    if vectors { 42 } else { 63 }
}

impl State {
    /// Gives `store` a value to pop.
    fn x87_push(&self) {
        // SAFETY: pushes one value.
        unsafe { asm!("fild word ptr [{}]", in(reg) &raw const self.x87) };
    }
}

fn suite(args: &Args) -> i32 {
    let avx = has_avx();
    let mut suite = Suite::new("fpu", b"");
    let t = &mut suite;
    rt::Line::new()
        .text(if avx {
            "fpu: SSE, x87 and AVX"
        } else {
            "fpu: SSE and x87, no AVX"
        })
        .end();
    t.is("one process", worker(1, ROUNDS, avx) as isize, 0);
    let children: [isize; WORKERS] =
        core::array::from_fn(|i| fork(|| worker(i as u64 + 2, ROUNDS, avx)));
    let own = worker(77, ROUNDS, avx);
    for child in children {
        t.is("processes beside each other", wait(child).number(), 0);
    }
    t.is("the parent beside its children", own as isize, 0);
    let threads: [Thread; 4] = core::array::from_fn(|_| Thread::new());
    for (i, thread) in threads.iter().enumerate() {
        thread.start(thread_worker, 100 + i);
    }
    t.is(
        "a thread beside threads",
        worker(99, ROUNDS, avx) as isize,
        0,
    );
    threads.iter().for_each(Thread::join);
    threads.into_iter().for_each(Thread::free);
    across_fork(t, avx);
    across_signal(t, avx);
    let argv = [at(b"fpu\0"), at(b"@fresh\0"), 0];
    let path: &CStr = args.execfn();
    let end = in_child(|| {
        State::pattern(5, avx).load(avx);
        process::exec(path, argv.as_ptr(), [0usize].as_ptr()) as i32
    });
    t.is("execve: a fresh state", end.number(), 42);
    t.close()
}

fn across_fork(t: &mut Suite, avx: bool) {
    let state = State::pattern(1234, avx);
    state.load(avx);
    let child = fork(|| i32::from(State::store(avx) != state));
    let kept = State::store(avx) == state;
    t.is(
        "fork: the child has the parent's state",
        wait(child).number(),
        0,
    );
    t.ok("fork: the parent keeps it", kept);
    state.load(avx);
    let end = in_child(|| {
        State::store(avx);
        State::pattern(4321, avx).load(avx);
        spin(10_000);
        0
    });
    t.ok(
        "fork: a child's change is its own",
        State::store(avx) == state && end.number() == 0,
    );
}

fn across_signal(t: &mut Suite, avx: bool) {
    signal::handle(SIGUSR1, clobber, 0, 0);
    let mut same = true;
    for round in 0..20 {
        let state = State::pattern(9000 + round, avx);
        state.load(avx);
        signal::raise(SIGUSR1);
        same &= State::store(avx) == state;
    }
    t.ok("signal: a handler's vectors are its own", same);
    let parent = process::getpid();
    let child = fork(|| {
        for _ in 0..10 {
            rt::time::sleep_ns(300_000);
            signal::kill(parent, SIGUSR1);
        }
        0
    });
    t.is(
        "signal: at any time",
        worker(55, ROUNDS * 4, avx) as isize,
        0,
    );
    t.is("signal: the sender", wait(child).number(), 0);
    signal::action(SIGUSR1, SIG_DFL, 0, 0);
}
