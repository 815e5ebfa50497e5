//! Signals: delivery, masks, return, faults, children, interrupted calls.
//!
//! Runs on Linux unchanged, which is where its expectations come from. `sigtest [FILTER]` runs the
//! groups whose name contains FILTER.
#![no_std]
#![no_main]

mod faults;
mod sleeping;

use core::ffi::CStr;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use rt::abi::*;
use rt::process::{self, getpid, in_child};
use rt::signal::{self, change_mask, handle, kill, raise, set_mask};
use rt::sys::{at, at_mut};
use rt::{Args, Errno, Suite, sys};

rt::entry!(main);

fn main(args: &Args) -> i32 {
    let filter = args.get(1).map_or(&b""[..], CStr::to_bytes);
    process::outside_init(|| {
        let mut suite = Suite::new("sigtest", filter);
        let t = &mut suite;
        t.group("actions", actions);
        t.group("delivery", delivery);
        t.group("masks", masks);
        t.group("nesting", nesting);
        t.group("registers", registers);
        t.group("inheritance", inheritance);
        t.group("queue", queue);
        t.group("busy", busy);
        t.group("faults", faults::run);
        t.group("sigreturn", faults::sigreturn);
        t.group("children", sleeping::children);
        t.group("interrupted", sleeping::interrupted);
        t.group("threads", sleeping::threads);
        t.close()
    })
}

/// How often [`note`] ran.
pub static RUNS: AtomicUsize = AtomicUsize::new(0);
/// The last signal number, code, sender and mask that [`note`] saw.
pub static LAST: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
static LAST_MASK: AtomicU64 = AtomicU64::new(0);
/// The order of signals: eight bits each, the last one lowest.
static ORDER: AtomicUsize = AtomicUsize::new(0);

/// The ordinary handler: writes down what it was told.
pub extern "C" fn note(signal: i32, info: &mut Siginfo, _: &mut Ucontext) {
    RUNS.fetch_add(1, SeqCst);
    LAST[0].store(signal as usize, SeqCst);
    LAST[1].store(info.code as isize as usize, SeqCst);
    LAST[2].store(info.pid() as usize, SeqCst);
    LAST_MASK.store(signal::mask(), SeqCst);
    ORDER.store(ORDER.load(SeqCst) << 8 | signal as usize, SeqCst);
}

/// Runs of [`note`] since the last look.
pub fn runs() -> isize {
    RUNS.swap(0, SeqCst) as isize
}

fn default(signal: i32) {
    signal::action(signal, SIG_DFL, 0, 0);
}

fn actions(t: &mut Suite) {
    t.is(
        "rt_sigaction: set",
        handle(SIGUSR1, note, SA_RESTART, bit(SIGUSR2)),
        0,
    );
    let now = signal::get_action(SIGUSR1);
    t.is(
        "rt_sigaction: get the handler",
        now.handler as isize,
        note as *const () as isize,
    );
    t.is(
        "rt_sigaction: get the flags",
        now.flags as isize,
        (SA_RESTART | SA_SIGINFO | SA_RESTORER) as isize,
    );
    t.is(
        "rt_sigaction: get the mask",
        now.mask as isize,
        bit(SIGUSR2) as isize,
    );
    let mut old = Sigaction::default();
    let new = Sigaction {
        handler: SIG_IGN,
        ..Default::default()
    };
    t.is(
        "rt_sigaction: set and get",
        sys!(RT_SIGACTION, SIGUSR1, at(&new), at_mut(&mut old), 8),
        0,
    );
    t.is(
        "rt_sigaction: the old one",
        old.handler as isize,
        note as *const () as isize,
    );
    for signal in [SIGKILL, SIGSTOP] {
        t.err(
            "rt_sigaction: SIGKILL and SIGSTOP",
            signal::action(signal, SIG_IGN, 0, 0),
            Errno::EINVAL,
        );
        t.is(
            "rt_sigaction: looking at them",
            signal::get_action(signal).handler as isize,
            0,
        );
    }
    for signal in [0, 65, -1, 1000] {
        t.err(
            "rt_sigaction: no such signal",
            signal::action(signal, SIG_IGN, 0, 0),
            Errno::EINVAL,
        );
    }
    t.err(
        "rt_sigaction: mask size",
        sys!(RT_SIGACTION, SIGUSR1, 0, 0, 4),
        Errno::EINVAL,
    );
    t.err(
        "rt_sigprocmask: mask size",
        sys!(RT_SIGPROCMASK, SIG_BLOCK, 0, 0, 4),
        Errno::EINVAL,
    );
    t.err(
        "rt_sigprocmask: unknown change",
        sys!(RT_SIGPROCMASK, 9, at(&0u64), 0, 8),
        Errno::EINVAL,
    );
    t.is(
        "rt_sigprocmask: unknown change of nothing",
        sys!(RT_SIGPROCMASK, 9, 0, 0, 8),
        0,
    );
    let blocked = Sigaction {
        handler: SIG_IGN,
        mask: u64::MAX,
        ..Default::default()
    };
    sys!(RT_SIGACTION, SIGUSR1, at(&blocked), 0, 8);
    let kept = !(bit(SIGKILL) | bit(SIGSTOP));
    t.is(
        "rt_sigaction: SIGKILL and SIGSTOP leave the mask",
        signal::get_action(SIGUSR1).mask as isize,
        kept as isize,
    );
    default(SIGUSR1);
}

fn delivery(t: &mut Suite) {
    handle(SIGUSR1, note, 0, 0);
    t.is("kill: itself", raise(SIGUSR1), 0);
    t.is("handler: ran before kill returned", runs(), 1);
    t.is(
        "handler: signal number",
        LAST[0].load(SeqCst) as isize,
        SIGUSR1 as isize,
    );
    t.is("handler: SI_USER", LAST[1].load(SeqCst) as isize, 0);
    t.is("handler: sender", LAST[2].load(SeqCst) as isize, getpid());
    for _ in 0..1000 {
        raise(SIGUSR1);
    }
    t.is("handler: 1000 times", runs(), 1000);
    let parent = getpid();
    let child = process::fork(|| kill(parent, SIGUSR1) as i32);
    t.is("kill: by a child", process::wait(child).number(), 0);
    t.is("handler: ran once", runs(), 1);
    t.is(
        "handler: the child is the sender",
        LAST[2].load(SeqCst) as isize,
        child,
    );
    handle(SIGUSR1, note, SA_RESETHAND, 0);
    raise(SIGUSR1);
    t.is("SA_RESETHAND: ran once", runs(), 1);
    t.is(
        "SA_RESETHAND: default afterwards",
        signal::get_action(SIGUSR1).handler as isize,
        0,
    );
    signal::action(SIGUSR1, SIG_IGN, 0, 0);
    raise(SIGUSR1);
    t.is("SIG_IGN: nothing happens", runs(), 0);
    default(SIGUSR1);
    t.is(
        "SIG_DFL: SIGUSR1 kills",
        in_child(|| raise(SIGUSR1) as i32).number(),
        1000 + SIGUSR1 as isize,
    );
    let caught = in_child(|| {
        handle(SIGTERM, note, 0, 0);
        raise(SIGTERM);
        let survived = runs();
        raise(SIGKILL);
        survived as i32
    });
    t.is(
        "SIGKILL: cannot be caught",
        caught.number(),
        1000 + SIGKILL as isize,
    );
}

fn pending() -> isize {
    let mut set = 0u64;
    let got = sys!(RT_SIGPENDING, at_mut(&mut set), 8);
    if got < 0 { got } else { set as isize }
}

fn masks(t: &mut Suite) {
    handle(SIGUSR1, note, 0, 0);
    handle(SIGUSR2, note, 0, 0);
    set_mask(0);
    t.is(
        "rt_sigprocmask: block",
        change_mask(SIG_BLOCK, bit(SIGUSR1)) as isize,
        0,
    );
    raise(SIGUSR1);
    t.is("blocked: not delivered", runs(), 0);
    t.extra("rt_sigpending", pending(), bit(SIGUSR1) as isize);
    raise(SIGUSR1);
    raise(SIGUSR2);
    t.is("blocked: others are delivered", runs(), 1);
    change_mask(SIG_UNBLOCK, bit(SIGUSR1));
    t.is("unblocked: delivered once", runs(), 1);
    t.is(
        "unblocked: the right one",
        LAST[0].load(SeqCst) as isize,
        SIGUSR1 as isize,
    );
    t.extra("rt_sigpending: nothing", pending(), 0);
    set_mask(u64::MAX);
    t.is(
        "mask: SIGKILL and SIGSTOP cannot be blocked",
        signal::mask() as isize,
        !(bit(SIGKILL) | bit(SIGSTOP)) as isize,
    );
    let killed = in_child(|| raise(SIGKILL) as i32);
    t.is(
        "SIGKILL: with everything blocked",
        killed.number(),
        1000 + SIGKILL as isize,
    );
    raise(SIGUSR1);
    signal::action(SIGUSR1, SIG_IGN, 0, 0);
    handle(SIGUSR1, note, 0, 0);
    set_mask(0);
    t.is("ignoring discards what is pending", runs(), 0);
    set_mask(bit(SIGUSR1));
    default(SIGUSR1);
    let pending_kill = in_child(|| {
        raise(SIGUSR1);
        set_mask(0);
        1
    });
    t.is(
        "pending: the default action on unblocking",
        pending_kill.number(),
        1000 + SIGUSR1 as isize,
    );
    set_mask(0);
    default(SIGUSR2);
}

/// Raises the signal's partner while it runs.
extern "C" fn raise_other(signal: i32, info: &mut Siginfo, context: &mut Ucontext) {
    note(signal, info, context);
    raise(if signal == SIGUSR1 { SIGUSR2 } else { SIGUSR1 });
}

extern "C" fn raise_same(signal: i32, info: &mut Siginfo, context: &mut Ucontext) {
    note(signal, info, context);
    if RUNS.load(SeqCst) < 5 {
        raise(signal);
    }
}

extern "C" fn change_saved_mask(_: i32, _: &mut Siginfo, context: &mut Ucontext) {
    context.sigmask = bit(SIGHUP);
}

fn nesting(t: &mut Suite) {
    ORDER.store(0, SeqCst);
    handle(SIGUSR1, note, 0, bit(SIGUSR2));
    raise(SIGUSR1);
    let both = (bit(SIGUSR1) | bit(SIGUSR2)) as isize;
    t.is(
        "handler: its signal and its mask are blocked",
        LAST_MASK.load(SeqCst) as isize,
        both,
    );
    t.is("handler: the mask is restored", signal::mask() as isize, 0);
    handle(SIGUSR1, note, SA_NODEFER, 0);
    raise(SIGUSR1);
    t.is(
        "SA_NODEFER: its signal is not blocked",
        LAST_MASK.load(SeqCst) as isize,
        0,
    );
    runs();
    handle(SIGUSR1, raise_other, 0, 0);
    handle(SIGUSR2, note, 0, 0);
    raise(SIGUSR1);
    t.is("nested: both ran", runs(), 2);
    handle(SIGUSR1, raise_same, SA_NODEFER, 0);
    raise(SIGUSR1);
    t.is("nested: in itself with SA_NODEFER", runs(), 5);
    handle(SIGUSR1, raise_same, 0, 0);
    raise(SIGUSR1);
    t.is("nested: one after the other without", runs(), 5);
    handle(SIGUSR1, change_saved_mask, 0, 0);
    raise(SIGUSR1);
    t.is(
        "rt_sigreturn: takes the mask from the frame",
        set_mask(0) as isize,
        bit(SIGHUP) as isize,
    );
    default(SIGUSR1);
    default(SIGUSR2);
}

/// Spoils every register a function may spoil, and the flags.
extern "C" fn spoil(signal: i32, info: &mut Siginfo, context: &mut Ucontext) {
    note(signal, info, context);
    let flags: usize;
    // SAFETY: the registers are declared; the direction flag is cleared again.
    unsafe {
        core::arch::asm!(
            "pushfq", "pop {flags}",
            "mov rcx, -1", "mov rdx, -1", "mov rsi, -1", "mov rdi, -1",
            "mov r8, -1", "mov r9, -1", "mov r10, -1", "mov r11, -1",
            flags = out(reg) flags,
            out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    LAST[1].store(flags & 0x400, SeqCst);
}

/// Raises `signal` with known values in the registers and the direction flag set; the number of
/// registers that changed, plus 100 if the direction flag did.
fn registers_around(signal: i32) -> isize {
    let wrong: usize;
    let saved: [usize; 2] = [0; 2];
    // SAFETY: rbx and rbp are saved and restored by hand; everything else is declared. kill keeps all
    // registers but rax, rcx and r11.
    unsafe {
        core::arch::asm!(
            "mov [r12], rbx", "mov [r12 + 8], rbp",
            "mov rbx, 0x1111", "mov rbp, 0x2222", "mov rdx, 0x3333", "mov r8, 0x4444", "mov r9, 0x5555",
            "mov r10, 0x6666", "mov r13, 0x8888", "mov r14, 0x9999", "mov r15, 0xaaaa",
            "mov eax, 62", "std", "syscall",
            "pushfq", "pop rcx", "cld",
            "xor eax, eax",
            "cmp rbx, 0x1111", "setne r11b", "add al, r11b",
            "cmp rbp, 0x2222", "setne r11b", "add al, r11b",
            "cmp rdx, 0x3333", "setne r11b", "add al, r11b",
            "cmp r8, 0x4444", "setne r11b", "add al, r11b",
            "cmp r9, 0x5555", "setne r11b", "add al, r11b",
            "cmp r10, 0x6666", "setne r11b", "add al, r11b",
            "cmp r13, 0x8888", "setne r11b", "add al, r11b",
            "cmp r14, 0x9999", "setne r11b", "add al, r11b",
            "cmp r15, 0xaaaa", "setne r11b", "add al, r11b",
            "test ecx, 0x400", "setz r11b", "imul r11d, r11d, 100", "add al, r11b",
            "mov rbx, [r12]", "mov rbp, [r12 + 8]",
            in("r12") saved.as_ptr(),
            inlateout("rdi") getpid() => _,
            inlateout("rsi") signal as isize => _,
            out("rax") wrong, out("rcx") _, out("rdx") _, out("r8") _, out("r9") _, out("r10") _,
            out("r11") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    wrong as isize & 0xff
}

fn registers(t: &mut Suite) {
    handle(SIGUSR1, spoil, 0, 0);
    t.is(
        "registers: kept across a handler",
        registers_around(SIGUSR1),
        0,
    );
    t.is("registers: the handler ran", runs(), 1);
    t.is(
        "registers: the direction flag is clear in a handler",
        LAST[1].load(SeqCst) as isize,
        0,
    );
    t.is(
        "registers: kept across a call without a signal",
        registers_around(0),
        0,
    );
    default(SIGUSR1);
}

fn inheritance(t: &mut Suite) {
    handle(SIGUSR1, note, 0, 0);
    set_mask(bit(SIGUSR1) | bit(SIGTERM));
    raise(SIGUSR1);
    let end = in_child(|| {
        let mask = signal::mask() == bit(SIGUSR1) | bit(SIGTERM);
        set_mask(0);
        let pending = runs() != 0;
        raise(SIGUSR1);
        i32::from(!(mask && !pending && runs() == 1))
    });
    t.is(
        "fork: handler and mask are inherited, pending signals are not",
        end.number(),
        0,
    );
    set_mask(0);
    t.is("fork: the parent's signal is still pending", runs(), 1);
    default(SIGUSR1);
}

fn queue(t: &mut Suite) {
    handle(SIGUSR1, note, 0, u64::MAX);
    handle(SIGRTMIN, note, 0, u64::MAX);
    handle(SIGRTMIN + 1, note, 0, u64::MAX);
    set_mask(u64::MAX);
    for _ in 0..3 {
        raise(SIGRTMIN + 1);
        raise(SIGRTMIN);
        raise(SIGUSR1);
    }
    ORDER.store(0, SeqCst);
    set_mask(0);
    t.is("queue: real-time signals queue, others don't", runs(), 7);
    let order = ORDER.load(SeqCst) & 0x00ff_ffff_ffff_ffff;
    // The frames are built from the lowest number on, so the handler that runs first is the one
    // whose frame was built last, unless its mask holds the others back, as here.
    let low = SIGUSR1 as usize;
    let (rt, rt1) = (SIGRTMIN as usize, SIGRTMIN as usize + 1);
    let want = [low, rt, rt, rt, rt1, rt1, rt1]
        .iter()
        .fold(0, |sum, s| sum << 8 | s);
    t.is("queue: lowest number first", order as isize, want as isize);
    for signal in [SIGUSR1, SIGRTMIN, SIGRTMIN + 1] {
        default(signal);
    }
}

/// Signals reach a program that never calls the kernel.
fn busy(t: &mut Suite) {
    handle(SIGUSR1, note, 0, 0);
    let parent = getpid();
    for _ in 0..5 {
        let child = process::fork(|| {
            rt::time::sleep_ns(1_000_000);
            kill(parent, SIGUSR1) as i32
        });
        while RUNS.load(SeqCst) == 0 {
            core::hint::spin_loop();
        }
        t.is("busy: a spinning program gets its signal", runs(), 1);
        t.is("busy: the sender", process::wait(child).number(), 0);
    }
    default(SIGUSR1);
}
