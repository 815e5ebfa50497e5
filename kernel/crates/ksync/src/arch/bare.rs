//! The bare machine: gs-relative loads, the flags register, hooks into the kernel.
use super::{IrqFlags, MmId, ThreadPtr, hooks};
use crate::CpuMask;
use core::arch::asm;

/// Virtual address of physical address 0 in the direct map.
pub const DIRECT_MAP_BASE: usize = 0xffff_8880_0000_0000;
/// Address of the page descriptor of frame 0.
pub const VMEMMAP_BASE: usize = 0xffff_ea00_0000_0000;
/// CPU 0's per-CPU window.
pub const PERCPU_BASE: usize = 0xffff_e000_0000_0000;
/// log2 of the size of a window.
pub const PERCPU_WINDOW_SHIFT: u32 = 30;
/// Size of a window in bytes.
pub const PERCPU_WINDOW_SIZE: usize = 1 << PERCPU_WINDOW_SHIFT;

macro_rules! gs_load {
    ($reg:literal, $off:literal, $t:ty) => {{
        let v: $t;
        // SAFETY: gs points at this CPU's head (INV-ARCH-1); a load within it has no effect.
        unsafe { asm!(concat!("mov {0:", $reg, "}, gs:[", $off, "]"), out(reg) v, options(nostack, preserves_flags, readonly)) };
        v
    }};
}

/// This CPU's id. Stable only with preemption off.
#[inline(always)]
pub fn smp_processor_id() -> usize {
    gs_load!("e", "8", u32) as usize
}

/// This CPU's node.
#[inline(always)]
pub fn numa_node_id() -> usize {
    gs_load!("e", "12", u32) as usize
}

/// Start of this CPU's window.
#[inline(always)]
pub fn this_cpu_base() -> usize {
    gs_load!("r", "0", usize)
}

/// Start of `cpu`'s window.
#[inline(always)]
pub fn percpu_base(cpu: usize) -> usize {
    PERCPU_BASE + (cpu << PERCPU_WINDOW_SHIFT)
}

/// The running thread.
#[inline(always)]
pub fn current() -> ThreadPtr {
    ThreadPtr(gs_load!("r", "24", *mut ()))
}

/// A spin loop's pause.
#[inline(always)]
pub fn cpu_relax() {
    core::hint::spin_loop();
}

/// The time stamp counter.
#[inline(always)]
pub fn get_cycles() -> u64 {
    // SAFETY: every x86-64 has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Direct-map address of physical address `pa`.
#[inline(always)]
pub fn phys_to_virt(pa: usize) -> *mut u8 {
    (DIRECT_MAP_BASE + pa) as *mut u8
}

/// Physical address of a direct-map address.
#[inline(always)]
pub fn virt_to_phys(va: *const u8) -> usize {
    va as usize - DIRECT_MAP_BASE
}

/// Address of the page descriptor of frame 0.
#[inline(always)]
pub fn vmemmap_base() -> usize {
    VMEMMAP_BASE
}

/// Whether this CPU takes no interrupts.
#[inline(always)]
pub fn irqs_disabled() -> bool {
    save_flags() & 0x200 == 0
}

#[inline(always)]
fn save_flags() -> usize {
    let f: usize;
    // SAFETY: reads the flags register.
    unsafe { asm!("pushfq", "pop {}", out(reg) f, options(nomem, preserves_flags)) };
    f
}

/// Disables interrupts; returns the state before.
#[inline(always)]
pub fn local_irq_save() -> IrqFlags {
    let f = save_flags();
    // SAFETY: ring 0.
    unsafe { asm!("cli", options(nostack, preserves_flags)) };
    IrqFlags(f)
}

/// Restores the state `local_irq_save` returned.
#[inline(always)]
pub fn local_irq_restore(flags: IrqFlags) {
    if flags.0 & 0x200 != 0 {
        // SAFETY: ring 0; interrupts were on before the matching save.
        unsafe { asm!("sti", options(nostack, preserves_flags)) };
    }
}

/// Forbids preemption until the matching [`preempt_enable`]. Nests.
#[inline(always)]
pub fn preempt_disable() {
    // SAFETY: INV-ARCH-1; one instruction, so no interrupt splits it.
    unsafe { asm!("inc dword ptr gs:[16]", options(nostack)) };
}

/// Undoes one [`preempt_disable`], without looking whether the scheduler waits.
#[inline(always)]
pub fn preempt_enable_no_resched() {
    // SAFETY: INV-ARCH-1.
    unsafe { asm!("dec dword ptr gs:[16]", options(nostack)) };
}

/// Undoes one [`preempt_disable`]; runs the scheduler when it waits and this was the last.
#[inline(always)]
pub fn preempt_enable() {
    // SAFETY: INV-ARCH-1; the labels are in this function.
    unsafe {
        asm!("dec dword ptr gs:[16]", "jz {0}",
            label { if gs_load!("e", "20", u32) != 0 { preempt_slow(); } },
            options(nostack))
    };
}

#[cold]
#[inline(never)]
fn preempt_slow() {
    if preempt_count() == 0 && !irqs_disabled() {
        // SAFETY: the hook's contract holds: checked above.
        unsafe { hooks::tine_preempt_schedule() };
    }
}

/// How many [`preempt_disable`] are in force.
#[inline(always)]
pub fn preempt_count() -> u32 {
    gs_load!("e", "16", u32)
}

/// Blocks until unparked. May sleep.
pub fn park() {
    // SAFETY: the hook is safe with preemption on.
    unsafe { hooks::tine_park() }
}

/// Wakes `t` or saves its token. Any context.
pub fn unpark(t: ThreadPtr) {
    // SAFETY: any context.
    unsafe { hooks::tine_unpark(t.0) }
}

/// Whether the current thread has a signal to handle.
#[inline]
pub fn signal_pending() -> bool {
    // SAFETY: no conditions.
    unsafe { hooks::tine_signal_pending() }
}

#[inline]
pub(super) fn flush_tlb_range_imp(cpus: &CpuMask, mm: MmId, start: usize, end: usize) {
    // SAFETY: the caller has IRQs on.
    unsafe { hooks::tine_flush_tlb_range(cpus, mm.0, start, end) }
}

/// Drops one page of the current address space from this CPU's TLB.
#[inline(always)]
pub fn flush_tlb_local_page(va: usize) {
    // SAFETY: only costs a reload.
    unsafe { asm!("invlpg [{}]", in(reg) va, options(nostack, preserves_flags)) };
}

/// Clears the page at `p`.
///
/// # Safety
/// `p` is page aligned and the page is the caller's.
pub unsafe fn clear_page(p: *mut u8) {
    // SAFETY: the caller's.
    unsafe { core::ptr::write_bytes(p, 0, 4096) }
}

/// Copies a page.
///
/// # Safety
/// Both are page aligned, `dst` is the caller's, and `src` is not written meanwhile.
pub unsafe fn copy_page(dst: *mut u8, src: *const u8) {
    // SAFETY: the caller's.
    unsafe { core::ptr::copy_nonoverlapping(src, dst, 4096) }
}
