//! Faults as signals, and frames that a program has tampered with.

use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use rt::abi::*;
use rt::process::in_child;
use rt::signal::{self, handle, raise, set_mask};
use rt::sys::{at, at_mut};
use rt::{Errno, Suite, sys};

/// What the last fault handler saw: signal, code, address, trap number, error code, cr2.
static SAW: [AtomicUsize; 6] = [const { AtomicUsize::new(0) }; 6];
/// Where [`skip`] continues.
static RESUME: AtomicUsize = AtomicUsize::new(0);

fn saw(index: usize) -> isize {
    SAW[index].load(SeqCst) as isize
}

fn write_down(signal: i32, info: &Siginfo, context: &Ucontext) {
    let seen = [
        signal as usize,
        info.code as usize,
        info.addr(),
        context.regs[reg::TRAPNO] as usize,
        context.regs[reg::ERR] as usize,
        context.regs[reg::CR2] as usize,
    ];
    SAW.iter()
        .zip(seen)
        .for_each(|(slot, value)| slot.store(value, SeqCst));
}

/// Continues at the address that the faulting code left in [`RESUME`].
extern "C" fn skip(signal: i32, info: &mut Siginfo, context: &mut Ucontext) {
    write_down(signal, info, context);
    context.regs[reg::RIP] = RESUME.load(SeqCst) as u64;
}

/// Makes the page of the address readable and writable and tries again.
extern "C" fn repair(signal: i32, info: &mut Siginfo, context: &mut Ucontext) {
    write_down(signal, info, context);
    let page = info.addr() & !(PAGE - 1);
    sys!(MMAP, page, PAGE, RW, ANON | MAP_FIXED, -1isize, 0);
}

/// Runs instructions that fault, with rax = `$rax`; the handler [`skip`] continues behind them.
macro_rules! skipping {
    ($rax:expr, $($instruction:literal),+) => {
        // SAFETY: the handler continues at label 2; declared registers are all that change.
        unsafe {
            core::arch::asm!(
                "lea rdx, [rip + 2f]", "mov [{resume}], rdx",
                $($instruction),+,
                "2:",
                resume = in(reg) RESUME.as_ptr(),
                inlateout("rax") $rax => _, out("rdx") _, out("rcx") _,
            )
        }
    };
}

pub fn run(t: &mut Suite) {
    for signal in [SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP] {
        handle(signal, skip, 0, 0);
    }
    codes(t);
    arithmetic(t);
    repairs(t);
    fatal(t);
    alternate_stack(t);
    for signal in [SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP] {
        signal::action(signal, SIG_DFL, 0, 0);
    }
}

fn expect(t: &mut Suite, name: &str, signal: i32, code: isize, address: usize) {
    t.is(name, saw(0), signal as isize);
    t.is(name, saw(1), code);
    t.is(name, saw(2), address as isize);
}

fn codes(t: &mut Suite) {
    skipping!(64usize, "mov ecx, [rax]");
    expect(
        t,
        "read of an unmapped address: SIGSEGV, MAPERR, address",
        SIGSEGV,
        1,
        64,
    );
    t.is("read fault: trap 14", saw(3), 14);
    t.is("read fault: error code, user", saw(4), 4);
    t.is("read fault: cr2", saw(5), 64);
    skipping!(72usize, "mov [rax], ecx");
    expect(t, "write to an unmapped address", SIGSEGV, 1, 72);
    t.is("write fault: error code, user and write", saw(4), 6);
    let page = sys!(MMAP, 0, PAGE, PROT_READ, ANON, -1isize, 0) as usize;
    skipping!(page + 5, "mov byte ptr [rax], 1");
    expect(t, "write to a read-only page: ACCERR", SIGSEGV, 2, page + 5);
    skipping!(page, "jmp rax");
    expect(t, "jump into data: ACCERR", SIGSEGV, 2, page);
    sys!(MPROTECT, page, PAGE, PROT_NONE);
    skipping!(page + 8, "mov cl, [rax]");
    expect(t, "read of a PROT_NONE page: ACCERR", SIGSEGV, 2, page + 8);
    sys!(MUNMAP, page, PAGE);
    // Linux tells nothing about kernel addresses but that they are not the program's.
    skipping!(0xffff_ffff_8000_0000usize, "mov cl, [rax]");
    expect(
        t,
        "read of a kernel address",
        SIGSEGV,
        1,
        0xffff_ffff_8000_0000,
    );
    skipping!(0x8000_0000_0000_0000usize, "mov cl, [rax]");
    expect(t, "not canonical: SI_KERNEL, no address", SIGSEGV, 128, 0);
    skipping!(0usize, "hlt");
    expect(t, "privileged instruction: SI_KERNEL", SIGSEGV, 128, 0);
    t.is("privileged instruction: trap 13", saw(3), 13);
    let file = sys!(
        OPEN,
        c"/tmp/tine-sigtest".as_ptr(),
        O_RDWR | O_CREAT | O_TRUNC,
        0o600
    );
    let beyond = sys!(MMAP, 0, PAGE, PROT_READ, MAP_SHARED, file, 0) as usize;
    skipping!(beyond + 16, "mov cl, [rax]");
    expect(
        t,
        "beyond the end of a file: SIGBUS, ADRERR",
        SIGBUS,
        2,
        beyond + 16,
    );
    sys!(MUNMAP, beyond, PAGE);
    sys!(CLOSE, file);
    sys!(UNLINK, c"/tmp/tine-sigtest".as_ptr());
}

fn arithmetic(t: &mut Suite) {
    skipping!(1usize, "xor ecx, ecx", "xor edx, edx", "3: div ecx");
    t.is("division by zero: SIGFPE", saw(0), SIGFPE as isize);
    t.is("division by zero: INTDIV", saw(1), 1);
    t.ok(
        "division by zero: address of the instruction",
        saw(2) as usize + 2 == RESUME.load(SeqCst),
    );
    skipping!(1usize, "ud2");
    t.is("ud2: SIGILL", saw(0), SIGILL as isize);
    t.is("ud2: ILLOPN", saw(1), 2);
    t.is("ud2: address", saw(2), RESUME.load(SeqCst) as isize - 2);
    skipping!(1usize, "int3", "nop");
    t.is("int3: SIGTRAP", saw(0), SIGTRAP as isize);
    t.is("int3: SI_KERNEL", saw(1), 128);
}

fn repairs(t: &mut Suite) {
    handle(SIGSEGV, repair, 0, 0);
    let pages = sys!(MMAP, 0, 16 * PAGE, PROT_NONE, ANON, -1isize, 0) as usize;
    sys!(MUNMAP, pages + 8 * PAGE, 8 * PAGE);
    let mut fine = true;
    for i in 0..16 {
        let byte = (pages + i * PAGE + 7) as *mut u8;
        // SAFETY: the handler maps the page, then the access is made again.
        unsafe {
            byte.write_volatile(i as u8);
            fine &= byte.read_volatile() == i as u8;
        }
    }
    t.ok(
        "repair: a handler maps the page and the access succeeds",
        fine,
    );
    t.is(
        "repair: the last address",
        saw(2),
        (pages + 15 * PAGE + 7) as isize,
    );
    sys!(MUNMAP, pages, 16 * PAGE);
    handle(SIGSEGV, skip, 0, 0);
}

fn fault() {
    crate::faults::read_null();
}

#[inline(never)]
fn read_null() {
    // SAFETY: faults on purpose.
    unsafe { core::arch::asm!("mov ecx, [0]", out("rcx") _) };
}

extern "C" fn fault_again(_: i32, _: &mut Siginfo, _: &mut Ucontext) {
    fault();
}

fn fatal(t: &mut Suite) {
    let segv = 1000 + SIGSEGV as isize;
    let blocked = in_child(|| {
        set_mask(bit(SIGSEGV));
        fault();
        0
    });
    t.is(
        "fault: with its signal blocked kills",
        blocked.number(),
        segv,
    );
    let ignored = in_child(|| {
        signal::action(SIGSEGV, SIG_IGN, 0, 0);
        fault();
        0
    });
    t.is(
        "fault: with its signal ignored kills",
        ignored.number(),
        segv,
    );
    let twice = in_child(|| {
        handle(SIGSEGV, fault_again, 0, 0);
        fault();
        0
    });
    t.is("fault: in its own handler kills", twice.number(), segv);
    let no_stack = in_child(|| {
        handle(SIGUSR1, fault_again, 0, 0);
        signal::action(SIGSEGV, SIG_DFL, 0, 0);
        let me = rt::process::getpid();
        // SAFETY: the process dies: there is no stack for the frame.
        unsafe {
            core::arch::asm!("xor esp, esp", "mov eax, 62", "syscall", "ud2", in("rdi") me, in("rsi") SIGUSR1 as usize);
        }
        0
    });
    t.is(
        "handler: no stack for its frame kills",
        no_stack.number(),
        segv,
    );
    let wild = in_child(|| {
        signal::action(SIGSEGV, SIG_DFL, 0, 0);
        signal::action(SIGUSR1, 0xffff_8000_0000_0000, 0, 0);
        raise(SIGUSR1);
        0
    });
    t.is("handler: at a kernel address kills", wild.number(), segv);
}

static DUG: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_other_stack(signal: i32, _: &mut Siginfo, _: &mut Ucontext) {
    let local = 0u8;
    DUG.store(at(&local), SeqCst);
    if signal == SIGSEGV {
        rt::process::exit_group(55);
    }
}

/// Uses up the stack.
#[inline(never)]
fn dig(depth: usize) -> usize {
    let frame = [depth; 512];
    // SAFETY: a local, read so that the frame stays.
    let here = unsafe { core::ptr::read_volatile(&frame[depth % 512]) };
    if here == usize::MAX {
        0
    } else {
        here + dig(depth + 1)
    }
}

fn alternate_stack(t: &mut Suite) {
    let memory = sys!(MMAP, 0, 8 * PAGE, RW, ANON, -1isize, 0) as usize;
    let stack = Stack {
        sp: memory,
        flags: 0,
        size: 8 * PAGE,
    };
    let got = sys!(SIGALTSTACK, at(&stack), 0);
    t.extra("sigaltstack", got, 0);
    if got == Errno::ENOSYS.raw() {
        return;
    }
    handle(SIGUSR1, on_other_stack, SA_ONSTACK, 0);
    raise(SIGUSR1);
    t.ok(
        "SA_ONSTACK: the handler ran there",
        (memory..memory + 8 * PAGE).contains(&DUG.load(SeqCst)),
    );
    let overflow = in_child(|| {
        handle(SIGSEGV, on_other_stack, SA_ONSTACK, 0);
        dig(0) as i32
    });
    t.is(
        "SA_ONSTACK: stack overflow is caught",
        overflow.number(),
        55,
    );
    let mut old = Stack {
        sp: 0,
        flags: -1,
        size: 0,
    };
    sys!(SIGALTSTACK, 0, at_mut(&mut old));
    t.is("sigaltstack: look", old.sp as isize, memory as isize);
    let off = Stack {
        sp: 0,
        flags: 2,
        size: 0,
    };
    sys!(SIGALTSTACK, at(&off), 0);
    signal::action(SIGUSR1, SIG_DFL, 0, 0);
    sys!(MUNMAP, memory, 8 * PAGE);
}

/// What [`tamper`] writes to the frame: index of the register and value.
static TAMPER: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

extern "C" fn tamper(_: i32, _: &mut Siginfo, context: &mut Ucontext) {
    let index = TAMPER[0].load(SeqCst);
    if let Some(slot) = context.regs.get_mut(index) {
        *slot = TAMPER[1].load(SeqCst) as u64;
    }
}

/// How a child ends whose handler sets register `index` of its frame to `value`.
fn tampered(index: usize, value: usize) -> isize {
    in_child(|| {
        TAMPER[0].store(index, SeqCst);
        TAMPER[1].store(value, SeqCst);
        handle(SIGUSR1, tamper, 0, 0);
        raise(SIGUSR1);
        let flags: usize;
        // SAFETY: reads the flags.
        unsafe { core::arch::asm!("pushfq", "pop {}", out(reg) flags) };
        // IOPL and the interrupt flag are not the program's to change.
        i32::from(flags & 0x3000 != 0 || flags & 0x200 == 0)
    })
    .number()
}

pub fn sigreturn(t: &mut Suite) {
    let segv = 1000 + SIGSEGV as isize;
    t.is("frame: untouched", tampered(99, 0), 0);
    t.is(
        "frame: rip in the kernel half",
        tampered(reg::RIP, 0xffff_ffff_8000_0000),
        segv,
    );
    t.is(
        "frame: rip not canonical",
        tampered(reg::RIP, 0x8000_0000_0000),
        segv,
    );
    t.is("frame: rip unmapped", tampered(reg::RIP, 0), segv);
    // A stack fault where the machine has that exception (SIGBUS), a general protection fault else.
    let stack = tampered(reg::RSP, 0x8000_0000_0000_0000);
    t.ok(
        "frame: rsp not canonical",
        stack == segv || stack == 1000 + SIGBUS as isize,
    );
    t.is(
        "frame: flags with IOPL 3, interrupts off",
        tampered(reg::EFLAGS, 0x3002),
        0,
    );
    t.is(
        "frame: flags with NT and AC",
        tampered(reg::EFLAGS, 0x0004_4202),
        0,
    );
    let no_frame = in_child(|| {
        // SAFETY: the process dies: rsp points to no frame.
        unsafe { core::arch::asm!("mov rsp, 0x1000", "mov eax, 15", "syscall", "ud2") };
        0
    });
    t.is("rt_sigreturn: without a frame", no_frame.number(), segv);
    let kernel_frame = in_child(|| {
        // SAFETY: as above.
        unsafe { core::arch::asm!("mov rsp, -65536", "mov eax, 15", "syscall", "ud2") };
        0
    });
    t.is(
        "rt_sigreturn: frame in the kernel half",
        kernel_frame.number(),
        segv,
    );
    let end = in_child(|| {
        handle(SIGUSR1, tamper_fpstate, 0, 0);
        raise(SIGUSR1);
        0
    });
    t.is(
        "frame: vector state at a kernel address",
        end.number(),
        segv,
    );
    let end = in_child(|| {
        handle(SIGUSR1, no_fpstate, 0, 0);
        raise(SIGUSR1);
        0
    });
    t.is("frame: no vector state", end.number(), 0);
}

extern "C" fn tamper_fpstate(_: i32, _: &mut Siginfo, context: &mut Ucontext) {
    context.fpstate = 0xffff_8000_0000_0000;
}

extern "C" fn no_fpstate(_: i32, _: &mut Siginfo, context: &mut Ucontext) {
    context.fpstate = 0;
}
