//! One system call.
//!
//! [`sys!`](crate::sys!) takes a name of [`crate::nr`] and up to six arguments of any integer or
//! pointer type, and gives the raw result: negative values down to -4095 are error numbers.

use core::arch::asm;

/// Does the system call `nr`. Registers: number in rax; arguments in rdi, rsi, rdx, r10, r8, r9;
/// the `syscall` instruction itself overwrites rcx and r11.
///
/// # Safety
/// INV-PROG-1 must hold for the arguments, as far as call `nr` reads them.
#[inline(always)]
pub unsafe fn raw(nr: usize, a: [usize; 6]) -> isize {
    let result;
    // SAFETY: the instruction changes only the named registers and, by INV-PROG-1, memory that the
    // caller gave away for the call.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr as isize => result,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// A system call by name: `sys!(READ, fd, buffer.as_mut_ptr(), len)`.
#[macro_export]
macro_rules! sys {
    ($name:ident) => { $crate::sys!(@ $name, 0usize, 0usize, 0usize, 0usize, 0usize, 0usize) };
    ($name:ident, $a:expr) => { $crate::sys!(@ $name, $a, 0usize, 0usize, 0usize, 0usize, 0usize) };
    ($name:ident, $a:expr, $b:expr) => { $crate::sys!(@ $name, $a, $b, 0usize, 0usize, 0usize, 0usize) };
    ($name:ident, $a:expr, $b:expr, $c:expr) => { $crate::sys!(@ $name, $a, $b, $c, 0usize, 0usize, 0usize) };
    ($name:ident, $a:expr, $b:expr, $c:expr, $d:expr) => {
        $crate::sys!(@ $name, $a, $b, $c, $d, 0usize, 0usize)
    };
    ($name:ident, $a:expr, $b:expr, $c:expr, $d:expr, $e:expr) => {
        $crate::sys!(@ $name, $a, $b, $c, $d, $e, 0usize)
    };
    ($name:ident, $a:expr, $b:expr, $c:expr, $d:expr, $e:expr, $f:expr) => {
        $crate::sys!(@ $name, $a, $b, $c, $d, $e, $f)
    };
    (@ $name:ident, $a:expr, $b:expr, $c:expr, $d:expr, $e:expr, $f:expr) => {{
        // A match, so that temporaries in the arguments live until the call is over.
        match [$a as usize, $b as usize, $c as usize, $d as usize, $e as usize, $f as usize] {
            // SAFETY: INV-PROG-1, which every program of this package keeps.
            arguments => unsafe { $crate::sys::raw($crate::nr::$name, arguments) },
        }
    }};
}

/// The address of a value, for [`sys!`](crate::sys!).
#[inline(always)]
pub fn at<T: ?Sized>(value: &T) -> usize {
    core::ptr::from_ref(value).cast::<u8>() as usize
}

/// The address of a value that the kernel will fill.
#[inline(always)]
pub fn at_mut<T: ?Sized>(value: &mut T) -> usize {
    core::ptr::from_mut(value).cast::<u8>() as usize
}
