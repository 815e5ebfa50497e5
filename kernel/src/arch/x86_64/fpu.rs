//! The program's vector state across context switches: XSAVE where the CPU has it, FXSAVE else.
//!
//! The kernel itself is built without vector registers, so a program's state stays in them while the kernel runs and is
//! saved only when another task gets the CPU. (`ksync::arch::clear_page` and `copy_page` borrow a few registers and put
//! them back.) A task's save area is allocated with the task, on its node.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};

static AREA_SIZE: AtomicUsize = AtomicUsize::new(512);
static XSAVE: AtomicBool = AtomicBool::new(false);
static FEATURES: AtomicU64 = AtomicU64::new(3);

const XCR0_X87: u64 = 1;
const XCR0_SSE: u64 = 2;
const XCR0_AVX: u64 = 4;
const XCR0_AVX512: u64 = 0xe0;

/// Bytes of a save area; its alignment is 64.
#[inline]
pub fn area_size() -> usize {
    AREA_SIZE.load(Ordering::Relaxed)
}

/// XCR0 bits in use.
pub fn features() -> u64 {
    FEATURES.load(Ordering::Relaxed)
}

/// Whether [`save`] writes the XSAVE format.
pub fn has_xsave() -> bool {
    XSAVE.load(Ordering::Relaxed)
}

/// Turns the vector unit on. Each CPU; the first one decides the format.
pub fn init_cpu() {
    // SAFETY: the CPU has FPU and SSE, as every x86-64 does.
    unsafe {
        Cr0::update(|f| {
            f.remove(Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED);
            f.insert(Cr0Flags::MONITOR_COPROCESSOR | Cr0Flags::NUMERIC_ERROR);
        });
        Cr4::update(|f| f.insert(Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE));
    }
    let cpuid1 = core::arch::x86_64::__cpuid(1);
    if cpuid1.ecx & (1 << 26) != 0 {
        let leaf = core::arch::x86_64::__cpuid_count(0xd, 0);
        let supported = leaf.eax as u64 | (leaf.edx as u64) << 32;
        let mut features = XCR0_X87 | XCR0_SSE | (supported & XCR0_AVX);
        if supported & XCR0_AVX512 == XCR0_AVX512 {
            features |= XCR0_AVX512;
        }
        // SAFETY: CPUID announces XSAVE and each feature asked for.
        unsafe {
            Cr4::update(|f| f.insert(Cr4Flags::OSXSAVE));
            asm!("xsetbv", in("ecx") 0, in("eax") features as u32, in("edx") (features >> 32) as u32, options(nomem, nostack));
        }
        FEATURES.store(features, Ordering::Relaxed);
        AREA_SIZE.store(
            core::arch::x86_64::__cpuid_count(0xd, 0).ebx as usize,
            Ordering::Relaxed,
        );
        XSAVE.store(true, Ordering::Relaxed);
        if features & XCR0_AVX != 0 {
            ksync::arch::enable_avx_copy();
        }
    }
    // SAFETY: resets the x87 and SSE control state to what a new program finds.
    unsafe {
        let mxcsr = 0x1f80u32;
        asm!("fninit", "ldmxcsr [{}]", in(reg) &mxcsr, options(nostack));
    }
}

/// Writes the running CPU's vector state to `area`.
///
/// # Safety
/// `area` is 64-byte aligned and [`area_size`] bytes long; its XSAVE header was zeroed once.
#[inline]
pub unsafe fn save(area: *mut u8) {
    // SAFETY: by the caller.
    unsafe {
        if XSAVE.load(Ordering::Relaxed) {
            asm!("xsave64 [{}]", in(reg) area, in("eax") -1, in("edx") -1, options(nostack));
        } else {
            asm!("fxsave64 [{}]", in(reg) area, options(nostack));
        }
    }
}

/// Loads the running CPU's vector state from `area`.
///
/// # Safety
/// As [`save`]; the area was written by it, or checked by [`sanitize`].
#[inline]
pub unsafe fn restore(area: *const u8) {
    // SAFETY: by the caller.
    unsafe {
        if XSAVE.load(Ordering::Relaxed) {
            asm!("xrstor64 [{}]", in(reg) area, in("eax") -1, in("edx") -1, options(nostack));
        } else {
            asm!("fxrstor64 [{}]", in(reg) area, options(nostack));
        }
    }
}

/// Makes `area` the state of a fresh program.
///
/// # Safety
/// `area` is ours, 64-byte aligned and [`area_size`] bytes long.
pub unsafe fn init_area(area: *mut u8) {
    // SAFETY: by the caller. 512 bytes legacy region and 64 bytes header; the rest is not read while XSTATE_BV is 0.
    unsafe {
        core::ptr::write_bytes(area, 0, area_size().min(576));
        area.cast::<u16>().write(0x37f); // FCW
        area.add(24).cast::<u32>().write(0x1f80); // MXCSR
    }
}

/// Makes a user-supplied area safe to [`restore`]: reserved MXCSR and header bits cleared.
///
/// # Safety
/// `area` is ours, 64-byte aligned and [`area_size`] bytes long.
pub unsafe fn sanitize(area: *mut u8) {
    // SAFETY: by the caller.
    unsafe {
        let mxcsr = area.add(24).cast::<u32>();
        *mxcsr &= 0xffff;
        if XSAVE.load(Ordering::Relaxed) {
            let header = area.add(512).cast::<u64>();
            *header &= features();
            for i in 1..8 {
                header.add(i).write(0);
            }
        }
    }
}
