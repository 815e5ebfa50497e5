//! Copies between the kernel and a program's memory.
//!
//! Every access to a user address is one of the three instruction sequences below. A page that is merely not there yet
//! is brought in by the page-fault handler and the copy goes on; an address that no fault can mend makes the handler
//! jump to the fix-up that `__ex_table` names for the faulting instruction, and the copy returns [`Efault`].
//!
//! Context: process context, IRQs on, no spinlock held (a fault may sleep).

use core::arch::asm;
use core::mem::MaybeUninit;

/// A user address was not accessible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Efault;

/// Programs' addresses are below this.
pub const TASK_SIZE: usize = 0x7fff_ffff_f000;

#[inline]
fn range_ok(address: usize, len: usize) -> bool {
    address < TASK_SIZE && len <= TASK_SIZE - address
}

/// Copies `len` bytes; returns how many were not copied.
///
/// # Safety
/// One side is kernel memory valid for `len` bytes, the other lies below [`TASK_SIZE`].
#[inline]
unsafe fn raw_copy(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let mut left: usize;
    // SAFETY: kernel side by the caller; a fault on the user side continues at label 3 with the bytes left in rcx.
    unsafe {
        asm!(
            "7: stac",
            // whole words first: under -icount each iteration of rep counts
            "mov {tail}, rcx",
            "and {tail}, 7",
            "shr rcx, 3",
            "2: rep movsq",
            "mov rcx, {tail}",
            "4: rep movsb",
            "jmp 6f",
            "3: lea rcx, [rcx*8 + {tail}]",
            "5:",
            "6: clac",
            ".pushsection __smap_sites, \"a\"",
            ".balign 4",
            ".long 7b - ., 6b - .",
            ".popsection",
            ".pushsection __ex_table, \"a\"",
            ".balign 4",
            ".long 2b - ., 3b - .",
            ".long 4b - ., 5b - .",
            ".popsection",
            tail = out(reg) _,
            inout("rcx") len => left,
            inout("rdi") dst => _,
            inout("rsi") src => _,
            options(nostack),
        );
    }
    left
}

/// Copies from user memory into `dst`; fails when any byte cannot be read (`dst` may then be partly written).
pub fn copy_from_user(dst: &mut [u8], address: usize) -> Result<(), Efault> {
    if !range_ok(address, dst.len()) {
        return Err(Efault);
    }
    // SAFETY: `dst` is ours, the range is below TASK_SIZE.
    match unsafe { raw_copy(dst.as_mut_ptr(), address as *const u8, dst.len()) } {
        0 => Ok(()),
        _ => Err(Efault),
    }
}

/// Copies `src` to user memory; returns how many bytes arrived when not all did.
pub fn copy_to_user_partial(address: usize, src: &[u8]) -> Result<(), usize> {
    if !range_ok(address, src.len()) {
        return Err(0);
    }
    // SAFETY: `src` is ours, the range is below TASK_SIZE.
    match unsafe { raw_copy(address as *mut u8, src.as_ptr(), src.len()) } {
        0 => Ok(()),
        left => Err(src.len() - left),
    }
}

/// Copies `src` to user memory; fails when any byte cannot be written.
pub fn copy_to_user(address: usize, src: &[u8]) -> Result<(), Efault> {
    copy_to_user_partial(address, src).map_err(|_| Efault)
}

/// Types that are nothing but their bytes: any bit pattern is valid and there is no padding.
///
/// # Safety
/// The implementor is `repr(C)` or a primitive, without padding, and every bit pattern is a valid value.
pub unsafe trait Plain: Copy {}
macro_rules! plain { ($($t:ty),* $(,)?) => { $(
    // SAFETY: integers and arrays of them.
    unsafe impl Plain for $t {}
)* } }
plain!(u8, u16, u32, u64, usize, i8, i16, i32, i64, isize);
// SAFETY: arrays of plain values have no padding of their own.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Reads one value from user memory.
pub fn get_user<T: Plain>(address: usize) -> Result<T, Efault> {
    let mut value = MaybeUninit::<T>::uninit();
    if !range_ok(address, size_of::<T>()) {
        return Err(Efault);
    }
    // SAFETY: the destination is ours; once all bytes are copied the value is valid because T is Plain.
    unsafe {
        match raw_copy(
            value.as_mut_ptr().cast(),
            address as *const u8,
            size_of::<T>(),
        ) {
            0 => Ok(value.assume_init()),
            _ => Err(Efault),
        }
    }
}

/// Writes one value to user memory.
pub fn put_user<T: Plain>(address: usize, value: &T) -> Result<(), Efault> {
    // SAFETY: T is Plain: no padding, so all its bytes are initialised.
    let bytes =
        unsafe { core::slice::from_raw_parts((value as *const T).cast::<u8>(), size_of::<T>()) };
    copy_to_user(address, bytes)
}

/// Atomically compares and exchanges a 32-bit word of user memory; returns the value it had.
pub fn cmpxchg_user_u32(address: usize, old: u32, new: u32) -> Result<u32, Efault> {
    if !range_ok(address, 4) || !address.is_multiple_of(4) {
        return Err(Efault);
    }
    let (mut failed, seen): (u32, u32);
    // SAFETY: the address is below TASK_SIZE; a fault continues at 3 with `failed` still 1.
    unsafe {
        asm!(
            "mov {failed:e}, 1",
            "7: stac",
            "2: lock cmpxchg dword ptr [{address}], {new:e}",
            "xor {failed:e}, {failed:e}",
            "3: clac",
            ".pushsection __smap_sites, \"a\"",
            ".balign 4",
            ".long 7b - ., 3b - .",
            ".popsection",
            ".pushsection __ex_table, \"a\"",
            ".balign 4",
            ".long 2b - ., 3b - .",
            ".popsection",
            failed = out(reg) failed,
            address = in(reg) address,
            new = in(reg) new,
            inout("eax") old => seen,
            options(nostack),
        );
    }
    if core::mem::replace(&mut failed, 0) == 0 {
        Ok(seen)
    } else {
        Err(Efault)
    }
}

/// A NUL-terminated string from user memory into `buf`; returns its length without the NUL.
/// `Ok(None)` when it does not fit.
pub fn strncpy_from_user(buf: &mut [u8], address: usize) -> Result<Option<usize>, Efault> {
    let mut done = 0;
    while done < buf.len() {
        let at = address.checked_add(done).ok_or(Efault)?;
        // up to the end of the page, so that a string at the end of mapped memory is readable
        let chunk = (4096 - at % 4096).min(buf.len() - done).min(64);
        copy_from_user(&mut buf[done..done + chunk], at)?;
        if let Some(i) = buf[done..done + chunk].iter().position(|&b| b == 0) {
            return Ok(Some(done + i));
        }
        done += chunk;
    }
    Ok(None)
}

unsafe extern "C" {
    static __start___ex_table: [i32; 2];
    static __stop___ex_table: [i32; 2];
}

unsafe extern "C" {
    static __start___smap_sites: i32;
    static __stop___smap_sites: i32;
}

/// Replaces each `stac` and `clac` by a NOP of the same length on a CPU without SMAP. Boot CPU, text still writable.
pub fn patch_out_smap(write: &mut dyn FnMut(*const u8, &[u8])) {
    const NOP3: [u8; 3] = [0x0f, 0x1f, 0x00];
    let (mut p, end) = (
        &raw const __start___smap_sites,
        &raw const __stop___smap_sites,
    );
    while p < end {
        // SAFETY: between the linker's bounds lie offsets relative to themselves.
        let offset = unsafe { *p };
        write(p.cast::<u8>().wrapping_offset(offset as isize), &NOP3);
        p = p.wrapping_add(1);
    }
}

/// The fix-up address for a faulting kernel instruction, if it is one of ours.
pub fn fixup_of(rip: u64) -> Option<u64> {
    let (mut p, end) = (&raw const __start___ex_table, &raw const __stop___ex_table);
    while p < end {
        // SAFETY: between the linker's bounds lie pairs of offsets relative to themselves.
        let [insn, fixup] = unsafe { *p };
        if (p as u64).wrapping_add_signed(insn as i64) == rip {
            return Some((p as u64 + 4).wrapping_add_signed(fixup as i64));
        }
        p = p.wrapping_add(1);
    }
    None
}
