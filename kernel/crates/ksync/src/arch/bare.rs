//! The bare machine: gs-relative instructions, the flags register, hooks into the kernel.
//!
//! Each `asm!` is one instruction where it touches [`CpuHead`], so that no interrupt can split it, and none claims
//! `nomem` where the compiler must not move memory accesses across: preemption and IRQ switches are compiler
//! barriers.
use super::{CpuHead, IrqFlags, MmId, ThreadPtr, hooks, page_copy};
use crate::CpuMask;
use core::arch::asm;
use core::mem::offset_of;

/// Virtual address of physical address 0 in the direct map.
pub const DIRECT_MAP_BASE: usize = 0xffff_8880_0000_0000;
/// Address of the page descriptor of frame 0.
pub const VMEMMAP_BASE: usize = 0xffff_ea00_0000_0000;
/// CPU 0's per-CPU window.
pub const PERCPU_BASE: usize = 0xffff_e000_0000_0000;
/// log2 of the size of a window.
pub const PERCPU_WINDOW_SHIFT: u32 = 30;
/// The interrupt flag in the flags register.
const FLAGS_IF: usize = 1 << 9;

crate::static_key! {
    /// Page clearing and copying use AVX.
    static AVX_COPY;
}

/// Loads a field of this CPU's head.
macro_rules! gs_load {
    ($reg:literal, $field:ident, $t:ty) => {{
        let v: $t;
        // SAFETY: gs points at this CPU's head (INV-ARCH-1); a load within it has no effect.
        unsafe {
            asm!(concat!("mov {0:", $reg, "}, gs:[{1}]"), out(reg) v, const offset_of!(CpuHead, $field),
                options(nostack, preserves_flags, readonly))
        };
        v
    }};
}

/// This CPU's id. Stable only with preemption off.
#[inline(always)]
pub fn smp_processor_id() -> usize {
    gs_load!("e", cpu, u32) as usize
}

/// This CPU's node. Stable only with preemption off.
#[inline(always)]
pub fn numa_node_id() -> usize {
    gs_load!("e", node, u32) as usize
}

/// Start of this CPU's window. Stable only with preemption off.
#[inline(always)]
pub fn this_cpu_base() -> usize {
    gs_load!("r", self_ptr, usize)
}

/// Start of `cpu`'s window.
#[inline(always)]
pub fn percpu_base(cpu: usize) -> usize {
    PERCPU_BASE + (cpu << PERCPU_WINDOW_SHIFT)
}

#[inline(always)]
pub(super) fn cpu_head(cpu: usize) -> &'static CpuHead {
    // SAFETY: INV-ARCH-1.
    unsafe { &*(percpu_base(cpu) as *const CpuHead) }
}

#[inline(always)]
pub(super) fn this_cpu_head() -> &'static CpuHead {
    // SAFETY: INV-ARCH-1.
    unsafe { &*(this_cpu_base() as *const CpuHead) }
}

/// The running thread.
#[inline(always)]
pub fn current() -> ThreadPtr {
    ThreadPtr(gs_load!("r", current, *mut ()))
}

/// The pause of a loop that waits for another CPU's store and changes nothing itself. The NOP before it tells a
/// simulator so (see `sim`).
#[inline(always)]
pub fn cpu_relax() {
    // SAFETY: a NOP, and a hint.
    unsafe {
        asm!(
            ".byte 0x0f, 0x1f, 0x1d, 0, 0, 0, 0",
            "pause",
            options(nostack, preserves_flags)
        )
    };
    if crate::static_branch!(crate::VIRT_SPIN) {
        yield_to_host();
    }
}

/// Lets the host run another of its threads, perhaps the one we wait for: a write to the port that PCs keep for delays
/// leaves the emulator's loop, and blocks where other CPUs do the same.
#[cold]
#[inline(never)]
fn yield_to_host() {
    // SAFETY: port 0x80 shows diagnostic codes on some boards and does nothing else.
    unsafe { asm!("out 0x80, al", in("al") 0u8, options(nomem, nostack, preserves_flags)) };
}

/// The time stamp counter, in cycles (under `-icount`, instructions; in a simulation, this CPU's clock).
#[inline(always)]
pub fn get_cycles() -> u64 {
    if crate::static_branch!(super::sim::SIMULATED) {
        return super::sim::get_cycles();
    }
    time_stamp()
}

#[inline(always)]
pub(super) fn time_stamp() -> u64 {
    // SAFETY: every x86-64 has it, and the kernel does not forbid it to itself.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Direct-map address of physical address `pa`.
#[inline(always)]
pub fn phys_to_virt(pa: usize) -> *mut u8 {
    (DIRECT_MAP_BASE + pa) as *mut u8
}

/// Physical address behind a direct-map address.
#[inline(always)]
pub fn virt_to_phys(va: *const u8) -> usize {
    debug_assert!(va as usize >= DIRECT_MAP_BASE);
    va as usize - DIRECT_MAP_BASE
}

/// Address of the page descriptor of frame 0.
#[inline(always)]
pub fn vmemmap_base() -> usize {
    VMEMMAP_BASE
}

/// Address of the descriptor of the page that holds direct-map address `va`: four instructions, one constant.
#[inline(always)]
pub fn page_desc_of(va: *const u8) -> usize {
    const _: () = assert!(DIRECT_MAP_BASE.is_multiple_of(1 << 18));
    let mut at = va as usize;
    // Two shifts, which the compiler would turn into a shift and a mask of ten bytes.
    // SAFETY: arithmetic.
    unsafe {
        asm!("shr {at}, 12", "shl {at}, 6", at = inout(reg) at, options(pure, nomem, nostack))
    };
    at.wrapping_add(VMEMMAP_BASE.wrapping_sub(DIRECT_MAP_BASE >> 6))
}

#[inline(always)]
fn save_flags() -> usize {
    let f: usize;
    // SAFETY: reads the flags register through the stack; there is no red zone.
    unsafe { asm!("pushfq", "pop {}", out(reg) f, options(preserves_flags)) };
    f
}

/// Whether this CPU takes no interrupts.
#[inline(always)]
pub fn irqs_disabled() -> bool {
    save_flags() & FLAGS_IF == 0
}

/// Disables interrupts; returns the state before.
#[inline(always)]
pub fn local_irq_save() -> IrqFlags {
    let f = save_flags();
    // SAFETY: ring 0; the caller restores.
    unsafe { asm!("cli", options(nostack, preserves_flags)) };
    IrqFlags(f)
}

/// Restores the state `local_irq_save` returned.
#[inline(always)]
pub fn local_irq_restore(flags: IrqFlags) {
    if flags.0 & FLAGS_IF != 0 {
        // SAFETY: ring 0; interrupts were on before the matching save.
        unsafe { asm!("sti", options(nostack, preserves_flags)) };
    }
}

/// Forbids preemption until the matching [`preempt_enable`]. Nests. One instruction.
#[inline(always)]
pub fn preempt_disable() {
    // SAFETY: INV-ARCH-1.
    unsafe {
        asm!("inc dword ptr gs:[{}]", const offset_of!(CpuHead, preempt_count), options(nostack))
    };
}

/// Undoes one [`preempt_disable`] without looking whether the scheduler waits. For the scheduler itself.
#[inline(always)]
pub fn preempt_enable_no_resched() {
    // SAFETY: INV-ARCH-1.
    unsafe {
        asm!("dec dword ptr gs:[{}]", const offset_of!(CpuHead, preempt_count), options(nostack))
    };
}

/// Undoes one [`preempt_disable`]; if it was the last and the scheduler waits, runs it. Four instructions.
#[inline(always)]
pub fn preempt_enable() {
    // SAFETY: INV-ARCH-1. Between `dec` and `cmp` an interrupt may schedule on its way out; then need_resched is
    // clear, or set again and seen.
    unsafe {
        asm!("dec dword ptr gs:[{count}]", "jnz 2f", "cmp dword ptr gs:[{resched}], 0", "jne {slow}", "2:",
            count = const offset_of!(CpuHead, preempt_count), resched = const offset_of!(CpuHead, need_resched),
            slow = label { preempt_slow() }, options(nostack))
    };
}

#[cold]
#[inline(never)]
fn preempt_slow() {
    if preempt_count() == 0 && !irqs_disabled() {
        // SAFETY: the hook's contract was checked just now.
        unsafe { hooks::tine_preempt_schedule() };
    }
}

/// How many [`preempt_disable`] are in force on this CPU.
#[inline(always)]
pub fn preempt_count() -> u32 {
    gs_load!("e", preempt_count, u32)
}

/// Blocks until unparked (one saved token; may return for no reason). Sleeps: no lock held, IRQs on.
#[inline]
pub fn park() {
    debug_assert!(preempt_count() == 0 && !irqs_disabled());
    crate::lockdep::might_sleep();
    // SAFETY: the hook's contract is the caller's.
    unsafe { hooks::tine_park() }
}

/// Wakes `t` or saves its token. Any context, IRQs off allowed.
#[inline]
pub fn unpark(t: ThreadPtr) {
    // SAFETY: the hook may be called anywhere; the thread exists (see `ThreadPtr`).
    unsafe { hooks::tine_unpark(t.0) }
}

/// Whether the current thread has a signal to handle.
#[inline]
pub fn signal_pending() -> bool {
    // SAFETY: the hook has no conditions.
    unsafe { hooks::tine_signal_pending() }
}

#[inline]
pub(super) fn flush_tlb_range(cpus: &CpuMask, mm: MmId, start: usize, end: usize) {
    debug_assert!(!irqs_disabled());
    // SAFETY: the caller has IRQs on.
    unsafe { hooks::tine_flush_tlb_range(cpus, mm.0, start, end) }
}

/// Drops the page at `va` of the current address space from this CPU's TLB.
#[inline(always)]
pub fn flush_tlb_local_page(va: usize) {
    // SAFETY: ring 0; costs at most a reload.
    unsafe { asm!("invlpg [{}]", in(reg) va, options(nostack, preserves_flags)) };
}

pub(super) fn kick_cpu(cpu: usize) {
    // SAFETY: the hook may be called anywhere.
    unsafe { hooks::tine_kick_cpu(cpu) }
}

/// Lets page clearing and copying use AVX: half the instructions. Boot only, before
/// `static_key::patch_all`, with CR4.OSXSAVE and XCR0's AVX bits set. Returns whether
/// it will: not if XCR0 enables AVX-512, since a VEX instruction clears the upper half of a zmm register and only
/// the lower half is saved here.
pub fn enable_avx_copy() -> bool {
    const SSE_AVX: u32 = 0b110;
    const AVX512: u32 = 0b1110_0000;
    let xcr0: u32;
    // SAFETY: the caller has set CR4.OSXSAVE.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") xcr0, out("edx") _, options(nomem, nostack, preserves_flags))
    };
    let usable = xcr0 & SSE_AVX == SSE_AVX && xcr0 & AVX512 == 0;
    if usable {
        AVX_COPY.enable();
    }
    usable
}

/// Clears the 4 KiB page at `p`. Any context.
///
/// # Safety
/// `p` is page aligned, mapped, and the page is the caller's alone.
#[inline]
pub unsafe fn clear_page(p: *mut u8) {
    if crate::static_branch!(AVX_COPY) {
        // SAFETY: the caller's promise; AVX is usable, as `enable_avx_copy` found.
        return unsafe { page_copy::clear_avx(p) };
    }
    // SAFETY: the caller's promise; CR4.OSFXSR is set and CR0.TS clear on every CPU from bring-up on.
    unsafe { page_copy::clear_sse2(p) }
}

/// Copies a 4 KiB page. Any context.
///
/// # Safety
/// Both are page aligned and mapped, `dst` is the caller's alone, and `src` is not written meanwhile (or the caller
/// can live with a mix, as with a user page).
#[inline]
pub unsafe fn copy_page(dst: *mut u8, src: *const u8) {
    if crate::static_branch!(AVX_COPY) {
        // SAFETY: as for `clear_page`.
        return unsafe { page_copy::copy_avx(dst, src) };
    }
    // SAFETY: as for `clear_page`.
    unsafe { page_copy::copy_sse2(dst, src) }
}

/// The return addresses of the functions this one was called from, nearest first; zeroes where the stack ends.
/// Follows frame pointers, which the kernel is built with.
#[inline(never)]
pub fn call_sites(sites: &mut [usize]) {
    const KERNEL_TEXT: usize = 0xffff_ffff_8000_0000;
    const STACK_MAX: usize = 256 << 10;
    let mut frame: usize;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags)) };
    sites.fill(0);
    for site in sites {
        if frame < 0xffff_8000_0000_0000 || !frame.is_multiple_of(8) {
            return;
        }
        // SAFETY: a frame of this stack: the chain starts at our own and goes up in steps that a stack has.
        let [next, address] = unsafe { *(frame as *const [usize; 2]) };
        if address < KERNEL_TEXT {
            return;
        }
        *site = address - 1;
        if next <= frame || next - frame > STACK_MAX {
            return;
        }
        frame = next;
    }
}

/// A place where tests let others run: nothing here.
#[inline(always)]
pub fn interleave() {}
