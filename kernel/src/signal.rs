//! Delivering signals: the frame on the program's stack, and the way back through rt_sigreturn.
//!
//! ```text
//!   old rsp - 128 (red zone), or the top of the alternate stack
//!      | XSAVE image, 64-byte aligned, magic word behind it |
//!      | siginfo (128 bytes)                                |
//!      | ucontext: flags, link, stack, registers, mask      |
//!      | return address: the restorer                       |  <- rsp at the handler, 16n + 8
//! ```

use crate::arch::entry::NO_SYSCALL;
use crate::arch::uaccess::{self, Efault, Plain};
use crate::arch::{PtRegs, fpu, gdt};
use crate::sched::current_ref;
use crate::syscall::restart;
use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;
use slab::Gfp;
use task::signal::{self, Delivery, SigAction, SigInfo, Signo, sa};
use task::task::{AltStack, flags};

pub use task::signal::SI_KERNEL;
pub const SEGV_MAPERR: i32 = 1;
pub const SEGV_ACCERR: i32 = 2;
pub const BUS_ADRALN: i32 = 1;
pub const BUS_ADRERR: i32 = 2;
pub const FPE_INTDIV: i32 = 1;
pub const FPE_FLTINV: i32 = 7;
pub const ILL_ILLOPN: i32 = 2;
pub const TRAP_TRACE: i32 = 2;

const SS_ONSTACK: i32 = 1;
const SS_DISABLE: i32 = 2;

/// Raises a signal by an instruction of the running program.
pub fn force(signo: Signo, code: i32, address: usize) {
    let info = SigInfo {
        signo,
        code,
        value: address as u64,
        ..Default::default()
    };
    signal::force_on_current(current_ref(), &info);
}

/// The program needs a page that cannot be had.
pub fn kill_current_oom() {
    info!("out of memory: killing {}", crate::sched::CurrentName);
    signal::force_on_current(current_ref(), &SigInfo::kernel(signal::SIGKILL));
    current_ref()
        .process
        .lock
        .lock()
        .start_group_exit(signal::SIGKILL as i32);
}

/// `struct sigcontext`, `ucontext` and the rest of the frame, as Linux lays them out.
#[repr(C)]
#[derive(Clone, Copy)]
struct Frame {
    restorer: u64,
    uc_flags: u64,
    uc_link: u64,
    stack_base: u64,
    stack_flags: i32,
    stack_pad: i32,
    stack_size: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rax: u64,
    rcx: u64,
    rsp: u64,
    rip: u64,
    rflags: u64,
    cs: u16,
    gs: u16,
    fs: u16,
    ss: u16,
    err: u64,
    trapno: u64,
    oldmask: u64,
    cr2: u64,
    fpstate: u64,
    reserved: [u64; 8],
    mask: u64,
    info: [u64; 16],
}
// SAFETY: repr(C), integers only, and the sizes below show that there is no padding.
unsafe impl Plain for Frame {}
const _: () = assert!(size_of::<Frame>() == 8 + 40 + 256 + 8 + 128);

/// `UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS`.
const UC_FLAGS: u64 = 7;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Where the software bytes are in the legacy area.
const SW_BYTES: usize = 464;
/// Flags that a program may set by rt_sigreturn: AC, OF, DF, TF, SF, ZF, AF, PF, CF, RF.
const USER_RFLAGS: u64 = 0x5_0dd5;
const RED_ZONE: u64 = 128;

/// A buffer for an XSAVE image.
struct Image(NonNull<u8>);

impl Image {
    fn layout() -> Layout {
        Layout::from_size_align(fpu::area_size().next_multiple_of(64), 64).expect("a few kilobytes")
    }

    fn alloc() -> Option<Image> {
        let image = Image(slab::kmalloc(Self::layout(), Gfp::empty()).ok()?);
        // SAFETY: ours; the XSAVE header must be clean before a save.
        unsafe {
            image
                .0
                .add(512)
                .write_bytes(0, fpu::area_size().min(576) - 512)
        };
        Some(image)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: ours, and only read after a save or a copy has filled it.
        unsafe { core::slice::from_raw_parts_mut(self.0.as_ptr(), fpu::area_size()) }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: from `alloc`, with the same layout.
        unsafe { slab::kfree(self.0, Self::layout()) };
    }
}

/// Signals, stops and the end, on the way to user mode. IRQs on.
pub fn do_work(regs: &mut PtRegs) {
    let task = current_ref();
    match signal::dequeue(task) {
        Delivery::Exit(status) => {
            if crate::params::get().print_fatal_signals == crate::params::Switch::On
                && status & 0x7f != 0
            {
                print_end(status & 0x7f, regs);
            }
            crate::process::do_exit(status)
        }
        Delivery::Stop(_) => {
            ksync::arch::park();
        }
        Delivery::None => {
            restart::without_handler(regs);
            if task.has_flag(flags::RESTORE_SIGMASK) {
                task.clear_flag(flags::RESTORE_SIGMASK);
                signal::set_blocked(task, task.saved_blocked.load(Relaxed));
            }
        }
        Delivery::Handle(info, action) => {
            restart::before_handler(regs, &action);
            if handle(regs, &info, &action).is_err() {
                // No room for the frame: the program ends as by a segmentation fault.
                task.process
                    .lock
                    .lock()
                    .start_group_exit(signal::SIGSEGV as i32 | 0x80);
            }
        }
    }
}

fn on_altstack(alt: &AltStack, sp: u64) -> bool {
    alt.size > 0 && (sp as usize).wrapping_sub(alt.base + 1) < alt.size
}

fn handle(regs: &mut PtRegs, info: &SigInfo, action: &SigAction) -> Result<(), Efault> {
    let task = current_ref();
    crate::rseq::before_handler(regs)?;
    let alt = *task.altstack.lock();
    let mut sp = regs.rsp - RED_ZONE.min(regs.rsp);
    if action.flags & sa::ONSTACK != 0 && alt.size > 0 && !on_altstack(&alt, regs.rsp) {
        sp = (alt.base + alt.size) as u64;
    }
    let fpstate = (sp.checked_sub(fpu::area_size() as u64 + 4).ok_or(Efault)?) & !63;
    let frame_at = (fpstate
        .checked_sub(size_of::<Frame>() as u64)
        .ok_or(Efault)?
        & !15)
        - 8;
    save_fpu(fpstate as usize)?;
    let suspended = task.has_flag(flags::RESTORE_SIGMASK);
    let mask = if suspended {
        task.saved_blocked.load(Relaxed)
    } else {
        task.blocked.load(Relaxed)
    };
    let stack_flags = match (alt.size, on_altstack(&alt, regs.rsp)) {
        (0, _) => SS_DISABLE,
        (_, true) => SS_ONSTACK,
        _ => 0,
    };
    let frame = Frame {
        restorer: action.restorer as u64,
        uc_flags: if fpu::has_xsave() {
            UC_FLAGS
        } else {
            UC_FLAGS & !1
        },
        uc_link: 0,
        stack_base: alt.base as u64,
        stack_flags,
        stack_pad: 0,
        stack_size: alt.size as u64,
        r8: regs.r8,
        r9: regs.r9,
        r10: regs.r10,
        r11: regs.r11,
        r12: regs.r12,
        r13: regs.r13,
        r14: regs.r14,
        r15: regs.r15,
        rdi: regs.rdi,
        rsi: regs.rsi,
        rbp: regs.rbp,
        rbx: regs.rbx,
        rdx: regs.rdx,
        rax: regs.rax,
        rcx: regs.rcx,
        rsp: regs.rsp,
        rip: regs.rip,
        rflags: regs.rflags,
        cs: gdt::USER_CS,
        gs: 0,
        fs: 0,
        ss: gdt::USER_SS,
        err: task.arch.trap_error.load(Relaxed) as u64,
        trapno: task.arch.trap_nr.load(Relaxed) as u64,
        oldmask: mask,
        cr2: task.arch.trap_address.load(Relaxed) as u64,
        fpstate,
        reserved: [0; 8],
        mask,
        info: siginfo_words(info),
    };
    uaccess::put_user(frame_at as usize, &frame)?;
    task.clear_flag(flags::RESTORE_SIGMASK);
    let own = if action.flags & sa::NODEFER == 0 {
        signal::bit(info.signo)
    } else {
        0
    };
    signal::set_blocked(task, task.blocked.load(Relaxed) | action.mask | own);
    regs.rsp = frame_at;
    regs.rip = action.handler.min(uaccess::TASK_SIZE) as u64; // INV-ENTRY-4
    regs.rdi = info.signo as u64;
    regs.rsi = frame_at + core::mem::offset_of!(Frame, info) as u64;
    regs.rdx = frame_at + core::mem::offset_of!(Frame, uc_flags) as u64;
    regs.rax = 0;
    regs.rflags &= !0x1_0500; // RF, DF, TF
    regs.cs = gdt::USER_CS as u64;
    regs.ss = gdt::USER_SS as u64;
    regs.orig_rax = NO_SYSCALL;
    Ok(())
}

fn save_fpu(at: usize) -> Result<(), Efault> {
    let mut image = Image::alloc().ok_or(Efault)?;
    // SAFETY: a fresh image with a clean header.
    unsafe { fpu::save(image.0.as_ptr()) };
    let size = fpu::area_size() as u32;
    let bytes = image.bytes();
    if fpu::has_xsave() {
        bytes[SW_BYTES..SW_BYTES + 4].copy_from_slice(&FP_XSTATE_MAGIC1.to_le_bytes());
        bytes[SW_BYTES + 4..SW_BYTES + 8].copy_from_slice(&(size + 4).to_le_bytes());
        bytes[SW_BYTES + 8..SW_BYTES + 16].copy_from_slice(&fpu::features().to_le_bytes());
        bytes[SW_BYTES + 16..SW_BYTES + 20].copy_from_slice(&size.to_le_bytes());
        uaccess::put_user(at + size as usize, &FP_XSTATE_MAGIC2)?;
    }
    uaccess::copy_to_user(at, bytes)
}

fn restore_fpu(at: usize) -> Result<(), Efault> {
    let mut image = Image::alloc().ok_or(Efault)?;
    if at == 0 {
        // SAFETY: ours.
        unsafe { fpu::init_area(image.0.as_ptr()) };
    } else {
        uaccess::copy_from_user(image.bytes(), at)?;
    }
    // SAFETY: ours, and made acceptable before it is loaded.
    unsafe {
        fpu::sanitize(image.0.as_ptr());
        fpu::restore(image.0.as_ptr());
    }
    Ok(())
}

/// A line about a program that a signal ends.
#[cold]
fn print_end(signo: i32, regs: &PtRegs) {
    let arch = &current_ref().arch;
    println!(
        "{}: ended by signal {signo}, ip {:#x}, sp {:#x}; last fault at {:#x}, error {:#x}",
        crate::sched::CurrentName,
        regs.rip,
        regs.rsp,
        arch.trap_address.load(Relaxed),
        arch.trap_error.load(Relaxed),
    );
}

/// `siginfo_t` as the program reads it.
pub fn siginfo_words(info: &SigInfo) -> [u64; 16] {
    let mut words = [0u64; 16];
    words[0] = info.signo as u64 | (info.errno as u32 as u64) << 32;
    words[1] = info.code as u32 as u64;
    let by_fault = matches!(
        info.signo,
        signal::SIGSEGV | signal::SIGBUS | signal::SIGFPE | signal::SIGILL | signal::SIGTRAP
    ) && info.code > 0
        && info.code != SI_KERNEL;
    if by_fault {
        words[2] = info.value;
    } else {
        words[2] = info.pid as u32 as u64 | (info.uid as u64) << 32;
        words[3] = if info.signo == signal::SIGCHLD {
            info.status as u32 as u64
        } else {
            info.value
        };
    }
    words
}

/// rt_sigreturn: loads what the handler's frame saved.
pub fn sigreturn(regs: &mut PtRegs) -> Result<(), Efault> {
    let frame: Frame = uaccess::get_user((regs.rsp - 8) as usize)?;
    let task = current_ref();
    restore_fpu(frame.fpstate as usize)?;
    signal::set_blocked(task, frame.mask);
    *regs = PtRegs {
        r15: frame.r15,
        r14: frame.r14,
        r13: frame.r13,
        r12: frame.r12,
        rbp: frame.rbp,
        rbx: frame.rbx,
        r11: frame.r11,
        r10: frame.r10,
        r9: frame.r9,
        r8: frame.r8,
        rax: frame.rax,
        rcx: frame.rcx,
        rdx: frame.rdx,
        rsi: frame.rsi,
        rdi: frame.rdi,
        orig_rax: NO_SYSCALL,
        rip: frame.rip.min(uaccess::TASK_SIZE as u64), // INV-ENTRY-4
        cs: gdt::USER_CS as u64,
        rflags: regs.rflags & !USER_RFLAGS | frame.rflags & USER_RFLAGS | 1 << 9,
        rsp: frame.rsp,
        ss: gdt::USER_SS as u64,
    };
    Ok(())
}
