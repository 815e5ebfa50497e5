//! Clearing and copying pages with vector registers that belong to somebody else.
//!
//! The kernel is compiled for soft float, so while it runs the vector registers still hold the user's values.
//! Each function borrows one register: it saves it to its stack, uses it, and puts it back. An interrupt in between
//! finds a register with a kernel value in it, which is fine: handlers that come here borrow in the same way, and a
//! context switch saves and restores the registers as they are. So nothing needs to be disabled.
//!
//! Why not `rep stosq`: an instruction counter charges it 512 instructions, one per word. A clear is 4 instructions
//! and, per 32 registers full, 34: 140 with AVX, 276 with SSE2; a copy 267 and 531. On hardware with fast strings
//! `rep stosb` is as good; a machine with real cycles may want it back.
//!
//! `vzeroupper` must not be used: it would clear the upper halves of all sixteen registers.
use crate::PAGE_SIZE;
use core::arch::asm;
use core::mem::MaybeUninit;

#[repr(C, align(32))]
struct Saved(MaybeUninit<[u8; 32]>);

/// Says `$body` for \n in 0..32.
macro_rules! repeat32 {
    ($($body:expr),+) => {
        concat!(
            ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n",
            $($body, "\n",)+
            ".endr"
        )
    };
}

/// Defines a pair of functions for one register width. Both index from the end of the pages, from -4096 up to 0.
macro_rules! page_ops {
    ($clear:ident, $copy:ident, $reg:literal, $zero:literal, $aligned:literal, $unaligned:literal, $step:literal) => {
        /// Clears the page at `p`.
        ///
        /// # Safety
        /// `p` is page aligned and the caller's; the CPU has the instructions and their state is enabled.
        pub(super) unsafe fn $clear(p: *mut u8) {
            debug_assert!((p as usize).is_multiple_of(PAGE_SIZE));
            let mut saved = Saved(MaybeUninit::uninit());
            // SAFETY: writes the caller's page and `saved`; the register is restored.
            unsafe {
                asm!(
                    concat!($unaligned, " [{saved}], ", $reg),
                    $zero,
                    "2:",
                    repeat32!(concat!($aligned, " [{end} + {at} + \\n * ", $step, "], ", $reg)),
                    concat!("add {at}, 32 * ", $step),
                    "jnz 2b",
                    concat!($unaligned, " ", $reg, ", [{saved}]"),
                    saved = in(reg) &raw mut saved,
                    end = in(reg) p.wrapping_add(PAGE_SIZE),
                    at = inout(reg) -(PAGE_SIZE as isize) => _,
                    options(nostack)
                )
            }
        }

        /// Copies the page at `src` to `dst`.
        ///
        /// # Safety
        /// As for clearing; `src` is page aligned and mapped.
        pub(super) unsafe fn $copy(dst: *mut u8, src: *const u8) {
            debug_assert!((dst as usize | src as usize).is_multiple_of(PAGE_SIZE));
            let mut saved = Saved(MaybeUninit::uninit());
            // SAFETY: writes the caller's page and `saved`; the register is restored.
            unsafe {
                asm!(
                    concat!($unaligned, " [{saved}], ", $reg),
                    "2:",
                    repeat32!(
                        concat!($aligned, " ", $reg, ", [{src_end} + {at} + \\n * ", $step, "]"),
                        concat!($aligned, " [{end} + {at} + \\n * ", $step, "], ", $reg)
                    ),
                    concat!("add {at}, 32 * ", $step),
                    "jnz 2b",
                    concat!($unaligned, " ", $reg, ", [{saved}]"),
                    saved = in(reg) &raw mut saved,
                    end = in(reg) dst.wrapping_add(PAGE_SIZE),
                    src_end = in(reg) src.wrapping_add(PAGE_SIZE),
                    at = inout(reg) -(PAGE_SIZE as isize) => _,
                    options(nostack)
                )
            }
        }
    };
}

page_ops!(
    clear_sse2,
    copy_sse2,
    "xmm0",
    "pxor xmm0, xmm0",
    "movdqa",
    "movdqu",
    16
);
page_ops!(
    clear_avx,
    copy_avx,
    "ymm0",
    "vpxor xmm0, xmm0, xmm0",
    "vmovdqa",
    "vmovdqu",
    32
);

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;

    #[repr(C, align(4096))]
    struct Page([u8; 4096]);

    type Ops = (unsafe fn(*mut u8), unsafe fn(*mut u8, *const u8));

    fn variants() -> std::vec::Vec<Ops> {
        let mut v: std::vec::Vec<Ops> = std::vec![(clear_sse2, copy_sse2)];
        if std::is_x86_feature_detected!("avx") {
            v.push((clear_avx, copy_avx));
        }
        v
    }

    #[test]
    fn clears_and_copies_exactly_one_page() {
        for (clear, copy) in variants() {
            let mut pages = Box::new([const { Page([0xa5; 4096]) }; 3]);
            let src = Box::new(Page(core::array::from_fn(|i| (i * 7 + i / 256) as u8)));
            // SAFETY: pages of this test.
            unsafe { copy(pages[1].0.as_mut_ptr(), src.0.as_ptr()) };
            assert!(pages[1].0 == src.0);
            // SAFETY: pages of this test.
            unsafe { clear(pages[1].0.as_mut_ptr()) };
            assert!(pages[1].0.iter().all(|&b| b == 0));
            assert!(pages[0].0.iter().chain(&pages[2].0).all(|&b| b == 0xa5));
        }
    }

    #[test]
    fn the_borrowed_register_comes_back() {
        if !std::is_x86_feature_detected!("avx") {
            return;
        }
        for (clear, _) in variants() {
            let mut page = Box::new(Page([1; 4096]));
            let before = [0x1234_5678_9abc_def0_u64, 2, 3, 4];
            let mut after = [0_u64; 4];
            // SAFETY: calls `clear` on this test's page between a load and a store of ymm0; all registers a call
            // may clobber are declared so.
            unsafe {
                asm!(
                    "vmovdqu ymm0, [r12]",
                    "call {f}",
                    "vmovdqu [r13], ymm0",
                    f = in(reg) clear, in("rdi") page.0.as_mut_ptr(),
                    in("r12") &raw const before, in("r13") &raw mut after,
                    clobber_abi("C")
                )
            };
            assert_eq!(before, after);
        }
    }
}
