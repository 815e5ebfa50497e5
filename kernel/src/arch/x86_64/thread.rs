//! What a thread is to the machine: a kernel stack, saved registers, vector state, segment bases.
//!
//! The words live in `task::ArchThread`, opaque to the task crate; this file is the only one that gives them meaning.
//!
//! # Invariants
//!
//! - INV-THREAD-1: `stack_top` is 0 or the top of a kernel stack that the thread owns; the scheduler gives it back
//!   after the last switch away from the thread, never earlier.
//! - INV-THREAD-2: `sp` is meaningful only while the thread is not running; its stack then holds what
//!   `switch_context` pushed.
//! - INV-THREAD-3: `fpu_area` is 0 (a kernel thread) or owned memory of `fpu::area_size` bytes, 64-byte aligned.

use super::entry::{PT_REGS_SIZE, PtRegs, ret_from_fork};
use super::kstack::KernelStack;
use super::{fpu, gdt};
use core::alloc::Layout;
use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;
use slab::{AllocError, Gfp};
use task::ArchThread;

fn fpu_layout() -> Layout {
    Layout::from_size_align(fpu::area_size().next_multiple_of(64), 64)
        .expect("a save area is a few kilobytes")
}

/// A kernel stack and a save area that no thread owns yet: what fork must allocate before it can no longer fail.
pub struct Frames {
    stack: KernelStack,
    fpu: Option<FpuArea>,
}

struct FpuArea(NonNull<u8>);

impl FpuArea {
    fn new() -> Result<FpuArea, AllocError> {
        slab::kmalloc(fpu_layout(), Gfp::empty()).map(FpuArea)
    }

    fn into_raw(self) -> usize {
        let p = self.0.as_ptr() as usize;
        core::mem::forget(self);
        p
    }
}

impl Drop for FpuArea {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout and owned by this value.
        unsafe { slab::kfree(self.0, fpu_layout()) };
    }
}

impl Frames {
    /// Allocates for a thread that will first run on `node`; `user` asks for vector state.
    pub fn alloc(node: usize, user: bool) -> Result<Frames, AllocError> {
        let stack = KernelStack::alloc(node).map_err(|_| AllocError)?;
        Ok(Frames {
            stack,
            fpu: if user { Some(FpuArea::new()?) } else { None },
        })
    }

    /// Gives the frames to `thread`, whose first return will load `regs` in user mode.
    pub fn install_user(self, thread: &ArchThread, regs: &PtRegs, parent: &ArchThread) {
        let area = self
            .fpu
            .expect("a user thread's frames have a save area")
            .into_raw();
        // SAFETY: the area is ours. A forked thread starts with the vector state of its creator, which is in the
        // registers of this CPU now; the XSAVE header must be clean before the first save.
        unsafe {
            core::ptr::write_bytes(
                (area as *mut u8).add(512),
                0,
                fpu::area_size().min(576).saturating_sub(512),
            );
            fpu::save(area as *mut u8);
        }
        thread.fpu_area.store(area, Relaxed);
        thread.fs_base.store(read_fs_base(), Relaxed);
        thread.gs_base.store(parent.gs_base_now(), Relaxed);
        let top = self.stack.into_top();
        // SAFETY: the stack is ours and large enough.
        unsafe { ((top - PT_REGS_SIZE) as *mut PtRegs).write(*regs) };
        set_start(thread, top, 0, 0);
    }

    /// Gives the frames to `thread`, which will call `function(argument)` in the kernel; when that returns, the thread
    /// goes to user mode with the registers that an exec put at the top of its stack.
    pub fn install_kernel(
        self,
        thread: &ArchThread,
        function: extern "C" fn(usize),
        argument: usize,
    ) {
        if let Some(area) = self.fpu {
            let area = area.into_raw();
            // SAFETY: the area is ours.
            unsafe { fpu::init_area(area as *mut u8) };
            thread.fpu_area.store(area, Relaxed);
        }
        let top = self.stack.into_top();
        // SAFETY: the stack is ours and large enough.
        unsafe { ((top - PT_REGS_SIZE) as *mut PtRegs).write(PtRegs::default()) };
        set_start(thread, top, function as *const () as usize, argument);
    }
}

/// Lays out what `switch_context` will pop: six callee-saved registers and the address of `ret_from_fork`.
fn set_start(thread: &ArchThread, top: usize, rbx: usize, r12: usize) {
    let frame = [0, 0, 0, r12, rbx, 0, ret_from_fork as *const () as usize];
    let sp = top - PT_REGS_SIZE - size_of_val(&frame);
    // SAFETY: below the registers at the top of a stack that the caller owns.
    unsafe { (sp as *mut [usize; 7]).write(frame) };
    thread.stack_top.store(top, Relaxed);
    thread.sp.store(sp, Relaxed);
}

/// The registers that a thread entered the kernel with.
///
/// # Safety
/// The caller is the thread itself, or the thread does not run.
pub unsafe fn pt_regs(thread: &ArchThread) -> *mut PtRegs {
    (thread.stack_top.load(Relaxed) - PT_REGS_SIZE) as *mut PtRegs
}

/// Gives a program's thread its own vector state: for a kernel thread that execs.
pub fn ensure_fpu(thread: &ArchThread) -> Result<(), AllocError> {
    if thread.fpu_area.load(Relaxed) == 0 {
        thread.fpu_area.store(FpuArea::new()?.into_raw(), Relaxed);
        reset_user_state(thread);
    }
    Ok(())
}

/// The state a program starts with: fresh vector registers, no thread pointer. The caller is the thread.
pub fn reset_user_state(thread: &ArchThread) {
    let area = thread.fpu_area.load(Relaxed) as *mut u8;
    // SAFETY: INV-THREAD-3, and the thread runs here, so nobody else uses its area.
    unsafe {
        fpu::init_area(area);
        fpu::restore(area);
    }
    write_fs_base(0);
    thread.set_gs_base_now(0);
}

/// Saves and loads what is not on the stack. IRQs off; `prev` runs here.
#[inline]
pub fn switch_state(cpu: usize, prev: &ArchThread, next: &ArchThread) {
    let area = prev.fpu_area.load(Relaxed);
    if area != 0 {
        // SAFETY: INV-THREAD-3.
        unsafe { fpu::save(area as *mut u8) };
        prev.fs_base.store(read_fs_base(), Relaxed);
        prev.gs_base.store(read_user_gs_base(), Relaxed);
    }
    let area = next.fpu_area.load(Relaxed);
    if area != 0 {
        // SAFETY: INV-THREAD-3; written by `save` or `init_area`.
        unsafe { fpu::restore(area as *const u8) };
        write_fs_base(next.fs_base.load(Relaxed));
        write_user_gs_base(next.gs_base.load(Relaxed));
    }
    let top = next.stack_top.load(Relaxed);
    gdt::set_rsp0(cpu, top);
    ksync::arch::this_cpu_head().kernel_sp.store(top, Relaxed);
}

/// Frees a dead thread's stack and save area.
///
/// # Safety
/// The thread has been switched away from for the last time.
pub unsafe fn free(thread: &ArchThread) {
    let area = thread.fpu_area.swap(0, Relaxed);
    if area != 0 {
        // SAFETY: INV-THREAD-3; not null.
        drop(FpuArea(unsafe { NonNull::new_unchecked(area as *mut u8) }));
    }
    let top = thread.stack_top.swap(0, Relaxed);
    if top != 0 {
        // SAFETY: INV-THREAD-1, and by the caller nobody runs on it.
        drop(unsafe { KernelStack::from_top(top) });
    }
}

/// The running program's FS base.
#[inline]
pub fn read_fs_base() -> usize {
    let base: usize;
    // SAFETY: FSGSBASE is required and on.
    unsafe { asm!("rdfsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    base
}

/// Sets the running program's FS base; the kernel uses none.
#[inline]
pub fn write_fs_base(base: usize) {
    // SAFETY: as above; the caller checked that the base is canonical.
    unsafe { asm!("wrfsbase {}", in(reg) base, options(nomem, nostack, preserves_flags)) };
}

/// The running program's GS base, which `swapgs` has put aside.
fn read_user_gs_base() -> usize {
    x86_64::registers::model_specific::KernelGsBase::read().as_u64() as usize
}

fn write_user_gs_base(base: usize) {
    x86_64::registers::model_specific::KernelGsBase::write(x86_64::VirtAddr::new_truncate(
        base as u64,
    ));
}

/// GS base of the running thread, as programs set and read it.
pub trait GsBase {
    /// The running thread's GS base.
    fn gs_base_now(&self) -> usize;
    /// Sets it.
    fn set_gs_base_now(&self, base: usize);
}

impl GsBase for ArchThread {
    fn gs_base_now(&self) -> usize {
        read_user_gs_base()
    }
    fn set_gs_base_now(&self, base: usize) {
        self.gs_base.store(base, Relaxed);
        write_user_gs_base(base);
    }
}
