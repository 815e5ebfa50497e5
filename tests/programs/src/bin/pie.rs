//! A static position-independent executable with thread-local data: what the kernel must load
//! anywhere, and what its auxiliary vector must say for the program to find itself.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm, naked_asm};
use core::ffi::CStr;
use rt::abi::*;
use rt::start::at as aux;
use rt::{Args, Suite, sys};

/// Process entry; hands over the initial stack and the address of the dynamic section.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    naked_asm!(
        ".hidden _DYNAMIC",
        ".weak _DYNAMIC",
        ".hidden __ehdr_start",
        "xor ebp, ebp",
        "mov rdi, rsp",
        "lea rsi, [rip + _DYNAMIC]",
        "lea rdx, [rip + __ehdr_start]",
        "and rsp, -16",
        "call {start}",
        "ud2",
        start = sym start,
    )
}

// Thread-local data: eight bytes with a value, eight zero bytes behind them.
global_asm!(
    ".section .tdata,\"awT\",@progbits",
    ".balign 8",
    ".globl tine_tls_value",
    "tine_tls_value: .quad 0x123456789abcdef",
    ".section .tbss,\"awT\",@nobits",
    ".balign 8",
    ".globl tine_tls_zero",
    "tine_tls_zero: .zero 8",
    ".text",
);

/// Pointers in data: each needs a relocation.
static WORDS: [&CStr; 3] = [c"relative", c"relocations", c"work"];
static mut ZEROS: [u64; 1024] = [0; 1024];

extern "C" fn start(sp: *const usize, dynamic: *const [usize; 2], base: usize) -> ! {
    // SAFETY: `_start` passes this program's own dynamic section and load address, and nothing that
    // needs relocation has been used yet.
    let relocations = unsafe { relocate(dynamic, base) };
    // SAFETY: `_start` passes the stack pointer the process began with.
    let args = unsafe { Args::new(sp) };
    rt::process::exit_group(rt::process::outside_init(|| main(&args, base, relocations)))
}

/// Applies the R_X86_64_RELATIVE relocations; how many, or 1000 if there was another kind.
///
/// # Safety
/// `dynamic` and `base` are the program's own, once.
unsafe fn relocate(mut dynamic: *const [usize; 2], base: usize) -> usize {
    const RELA: usize = 7;
    const RELASZ: usize = 8;
    const RELATIVE: usize = 8;
    let (mut table, mut size, mut done) = (0, 0, 0);
    // SAFETY: the section ends with tag 0; its addresses are relative to `base`.
    unsafe {
        while (*dynamic)[0] != 0 {
            match (*dynamic)[0] {
                RELA => table = base + (*dynamic)[1],
                RELASZ => size = (*dynamic)[1],
                _ => {}
            }
            dynamic = dynamic.add(1);
        }
        for i in 0..size / 24 {
            let [offset, info, addend] = *(table as *const [usize; 3]).add(i);
            if info != RELATIVE {
                return 1000;
            }
            *((base + offset) as *mut usize) = base + addend;
            done += 1;
        }
    }
    done
}

/// The program header of type `kind`: [type and flags, offset, vaddr, paddr, filesz, memsz, align].
fn program_header(args: &Args, kind: u32) -> Option<[u64; 7]> {
    let (at, nr) = (args.aux(aux::PHDR)?, args.aux(aux::PHNUM)?);
    let headers = at as *const [u64; 7];
    // SAFETY: AT_PHDR and AT_PHNUM describe the program's own headers.
    (0..nr)
        .map(|i| unsafe { *headers.add(i) })
        .find(|h| h[0] as u32 == kind)
}

fn main(args: &Args, base: usize, relocations: usize) -> i32 {
    let mut suite = Suite::new("pie", b"");
    let t = &mut suite;
    let aux_is = |kind: usize| args.aux(kind).map_or(-1, |v| v as isize);
    t.ok(
        "loaded away from 0, page aligned",
        base >= 0x10000 && base.is_multiple_of(PAGE),
    );
    t.ok("loaded in the lower half", base < 1 << 47);
    t.ok("relocations applied", (3..1000).contains(&relocations));
    let words = WORDS.map(|word| word.to_bytes().len());
    t.ok("pointers in data", words == [8, 11, 4]);
    t.is("AT_PHDR", aux_is(aux::PHDR), base as isize + 64);
    t.is("AT_ENTRY", aux_is(aux::ENTRY), _start as *const () as isize);
    t.is("AT_BASE: no interpreter", aux_is(aux::BASE), 0);
    let first = (&raw mut ZEROS).cast::<u64>();
    // SAFETY: nobody else uses the array.
    let sum = (0..1024).fold(0, |sum, i| sum | unsafe { first.add(i).read_volatile() });
    t.ok("bss is zero", sum == 0);
    // SAFETY: as above.
    (0..1024).for_each(|i| unsafe { first.add(i).write_volatile(i as u64) });
    // SAFETY: as above.
    t.is(
        "bss can be written",
        unsafe { first.add(1023).read_volatile() } as isize,
        1023,
    );
    let heap = sys!(BRK, 0) as usize;
    t.is("brk: grows", sys!(BRK, heap + PAGE), (heap + PAGE) as isize);
    t.ok(
        "brk: apart from the image",
        heap > base || heap + PAGE < base,
    );
    thread_local(t, args, base);
    t.is(
        "fork: of a PIE",
        rt::process::in_child(|| words[0] as i32).number(),
        8,
    );
    t.close()
}

/// Builds a TLS block from PT_TLS as a C library does, and reads it through FS.
fn thread_local(t: &mut Suite, args: &Args, base: usize) {
    const PT_TLS: u32 = 7;
    let Some([_, _, vaddr, _, filesz, memsz, _]) = program_header(args, PT_TLS) else {
        t.ok("PT_TLS", false);
        return;
    };
    t.is(
        "PT_TLS: 8 bytes in the file, 16 in memory",
        (filesz * 100 + memsz) as isize,
        816,
    );
    let page = sys!(MMAP, 0, PAGE, RW, ANON, -1isize, 0) as usize;
    let pointer = page + 2048;
    // SAFETY: a fresh page; the template is part of the image.
    unsafe {
        let block = (pointer - memsz as usize) as *mut u8;
        block.copy_from_nonoverlapping((base + vaddr as usize) as *const u8, filesz as usize);
        *(pointer as *mut usize) = pointer;
    }
    t.is(
        "arch_prctl: FS to the block",
        sys!(ARCH_PRCTL, ARCH_SET_FS, pointer),
        0,
    );
    let (value, zero, itself): (usize, usize, usize);
    // SAFETY: FS points to the block.
    unsafe {
        asm!(
            "mov {value}, fs:[tine_tls_value@TPOFF]",
            "mov {zero}, fs:[tine_tls_zero@TPOFF]",
            "mov {itself}, fs:[0]",
            value = out(reg) value, zero = out(reg) zero, itself = out(reg) itself,
            options(readonly, nostack),
        );
    }
    t.is(
        "TLS: initialised variable",
        value as isize,
        0x123_4567_89ab_cdef,
    );
    t.is("TLS: zero variable", zero as isize, 0);
    t.is("TLS: self pointer", itself as isize, pointer as isize);
}
