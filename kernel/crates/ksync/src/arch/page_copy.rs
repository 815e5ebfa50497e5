//! Clearing and copying pages with vector registers that belong to somebody else.
//!
//! The kernel is compiled for soft float, so while it runs the vector registers still hold the user's values.
//! Each function borrows one register: it saves it to its stack, uses it, and puts it back. An interrupt in between
//! finds a register with a kernel value in it, which is fine: handlers that come here borrow in the same way, and a
//! context switch saves and restores the registers as they are. So nothing needs to be disabled.
//!
//! Why not `rep stosq`: an instruction counter charges it 512 instructions, one per word; these are 140 (AVX) and
//! 280 (SSE2). On hardware with fast strings `rep stosb` is as good; a machine with real cycles may want it back.
//!
//! `vzeroupper` must not be used: it would clear the upper halves of all sixteen registers.
use core::arch::asm;
use core::mem::MaybeUninit;

#[repr(C, align(32))]
struct Saved(MaybeUninit<[u8; 32]>);

/// Expands to 16 stores of one register at `$step`-byte distance from rdi.
macro_rules! stores16 {
    ($op:literal, $reg:literal, $step:literal) => {
        concat!(
            stores16!(@ $op, $reg, 0, $step), stores16!(@ $op, $reg, 1, $step),
            stores16!(@ $op, $reg, 2, $step), stores16!(@ $op, $reg, 3, $step),
            stores16!(@ $op, $reg, 4, $step), stores16!(@ $op, $reg, 5, $step),
            stores16!(@ $op, $reg, 6, $step), stores16!(@ $op, $reg, 7, $step),
            stores16!(@ $op, $reg, 8, $step), stores16!(@ $op, $reg, 9, $step),
            stores16!(@ $op, $reg, 10, $step), stores16!(@ $op, $reg, 11, $step),
            stores16!(@ $op, $reg, 12, $step), stores16!(@ $op, $reg, 13, $step),
            stores16!(@ $op, $reg, 14, $step), stores16!(@ $op, $reg, 15, $step),
        )
    };
    (@ $op:literal, $reg:literal, $n:literal, $step:literal) => {
        concat!($op, " [rdi + ", $n, "*", $step, "], ", $reg, "\n")
    };
}

/// Expands to 8 load-store pairs at `$step`-byte distance from rsi and rdi.
macro_rules! moves8 {
    ($op:literal, $reg:literal, $step:literal) => {
        concat!(
            moves8!(@ $op, $reg, 0, $step), moves8!(@ $op, $reg, 1, $step),
            moves8!(@ $op, $reg, 2, $step), moves8!(@ $op, $reg, 3, $step),
            moves8!(@ $op, $reg, 4, $step), moves8!(@ $op, $reg, 5, $step),
            moves8!(@ $op, $reg, 6, $step), moves8!(@ $op, $reg, 7, $step),
        )
    };
    (@ $op:literal, $reg:literal, $n:literal, $step:literal) => {
        concat!(
            $op, " ", $reg, ", [rsi + ", $n, "*", $step, "]\n",
            $op, " [rdi + ", $n, "*", $step, "], ", $reg, "\n"
        )
    };
}

/// Defines a pair of functions for one register width.
macro_rules! page_ops {
    ($clear:ident, $copy:ident, $reg:literal, $zero:literal, $aligned:literal, $unaligned:literal, $step:literal) => {
        /// Clears the page at `p`.
        ///
        /// # Safety
        /// `p` is page aligned and the caller's; the CPU has the instructions and their state is enabled.
        pub(super) unsafe fn $clear(p: *mut u8) {
            debug_assert!(p as usize % crate::PAGE_SIZE == 0);
            let mut saved = Saved(MaybeUninit::uninit());
            // SAFETY: writes the caller's page and `saved`; the register is restored.
            unsafe {
                asm!(
                    concat!($unaligned, " [{saved}], ", $reg),
                    $zero,
                    "2:",
                    stores16!($aligned, $reg, $step),
                    concat!("add rdi, 16*", $step),
                    "cmp rdi, {end}",
                    "jne 2b",
                    concat!($unaligned, " ", $reg, ", [{saved}]"),
                    saved = in(reg) &raw mut saved, end = in(reg) p.wrapping_add(crate::PAGE_SIZE),
                    inout("rdi") p => _, options(nostack)
                )
            }
        }

        /// Copies the page at `src` to `dst`.
        ///
        /// # Safety
        /// As for clearing; `src` is page aligned and mapped.
        pub(super) unsafe fn $copy(dst: *mut u8, src: *const u8) {
            debug_assert!(dst as usize % crate::PAGE_SIZE == 0 && src as usize % crate::PAGE_SIZE == 0);
            let mut saved = Saved(MaybeUninit::uninit());
            // SAFETY: writes the caller's page and `saved`; the register is restored.
            unsafe {
                asm!(
                    concat!($unaligned, " [{saved}], ", $reg),
                    "2:",
                    moves8!($aligned, $reg, $step),
                    concat!("add rsi, 8*", $step),
                    concat!("add rdi, 8*", $step),
                    "cmp rdi, {end}",
                    "jne 2b",
                    concat!($unaligned, " ", $reg, ", [{saved}]"),
                    saved = in(reg) &raw mut saved, end = in(reg) dst.wrapping_add(crate::PAGE_SIZE),
                    inout("rdi") dst => _, inout("rsi") src => _, options(nostack)
                )
            }
        }
    };
}

page_ops!(clear_sse2, copy_sse2, "xmm0", "pxor xmm0, xmm0", "movdqa", "movdqu", 16);
page_ops!(clear_avx, copy_avx, "ymm0", "vpxor xmm0, xmm0, xmm0", "vmovdqa", "vmovdqu", 32);

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
