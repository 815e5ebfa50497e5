//! exec: an ELF file becomes an address space with a stack that Linux programs expect.
//!
//! Everything is built in a new address space; only when nothing can fail any more does the kernel switch to it, so a
//! bad file or a lack of memory leaves the caller as it was.
//!
//! ```text
//!   STACK_TOP   +---------------------------------+
//!               | file name, environment, argument|
//!               | strings; platform; random bytes |
//!               +---------------------------------+
//!               | auxiliary vector, AT_NULL last  |
//!               | envp[] NULL                     |
//!               | argv[] NULL                     |
//!   sp -------> | argc                            |  16-byte aligned
//!               +---------------------------------+
//! ```
//!
//! # Invariants
//! - INV-EXEC-1: no number from the file reaches an address or a length unchecked: segments lie in user space, do not
//!   overlap, ascend, and map no file bytes past the file's end.

use crate::TaskError;
use alloc::vec::Vec;
use elf::abi;
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::segment::{ProgramHeader, SegmentTable};
use ksync::PAGE_SIZE;
use mm::{MapArgs, MapFlags, MmUser, Prot};
use rmap::AddressSpace;
use slab::KArc;
use vfs::VfsError;

/// Where a program's stack ends.
pub const STACK_TOP: usize = mm::TASK_SIZE - PAGE_SIZE;
/// Where position-independent programs and interpreters go without a wish of their own.
const PIE_BASE: usize = 0x5555_5555_4000;
/// Linux's limit for arguments and environment together: a quarter of the stack limit.
pub const ARG_MAX: usize = 2 << 20;
/// Linux's limit for one string.
pub const ARG_STRLEN_MAX: usize = 32 * PAGE_SIZE;
/// Bytes of the stack that are mapped (not allocated) from the start, beyond the strings.
const STACK_INITIAL: usize = 128 << 10;
/// Program headers take at most this many bytes.
const PHDRS_MAX: usize = 4096;
const EHDR_SIZE: usize = 64;
const PHDR_SIZE: usize = 56;

/// Arguments and environment, copied from the caller: strings with their NULs, one after another.
#[derive(Default)]
pub struct ExecArgs {
    strings: Vec<u8>,
    argc: usize,
    envc: usize,
    /// Bytes of the arguments; those of the environment follow.
    arg_bytes: usize,
}

impl ExecArgs {
    /// Nothing yet.
    pub const fn new() -> Self {
        ExecArgs {
            strings: Vec::new(),
            argc: 0,
            envc: 0,
            arg_bytes: 0,
        }
    }

    fn push(&mut self, string: &[u8]) -> Result<(), TaskError> {
        let pointers = (self.argc + self.envc + 3) * 8;
        if string.len() >= ARG_STRLEN_MAX || self.strings.len() + string.len() + pointers > ARG_MAX
        {
            return Err(TaskError::TooBig);
        }
        self.strings
            .try_reserve(string.len() + 1)
            .map_err(|_| TaskError::NoMemory)?;
        self.strings.extend_from_slice(string);
        self.strings.push(0);
        Ok(())
    }

    /// Appends an argument (without its NUL). All arguments come before the environment.
    pub fn push_arg(&mut self, string: &[u8]) -> Result<(), TaskError> {
        debug_assert_eq!(self.envc, 0);
        self.push(string)?;
        self.arg_bytes = self.strings.len();
        self.argc += 1;
        Ok(())
    }

    /// Appends an environment string.
    pub fn push_env(&mut self, string: &[u8]) -> Result<(), TaskError> {
        self.push(string)?;
        self.envc += 1;
        Ok(())
    }

    /// Number of arguments.
    pub fn argc(&self) -> usize {
        self.argc
    }
}

/// A file that may be a program.
pub trait Image {
    /// Reads at `offset`; short only at the end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, VfsError>;
    /// Its pages.
    fn space(&self) -> &KArc<AddressSpace>;
}

/// Bytes of `struct rseq` that the kernel fills: as far as `mm_cid`.
pub const RSEQ_FEATURE_SIZE: u64 = 28;

/// What the auxiliary vector says of the machine and the moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct AuxInfo {
    /// AT_HWCAP: CPUID leaf 1 EDX.
    pub hwcap: u64,
    /// AT_HWCAP2.
    pub hwcap2: u64,
    /// AT_RANDOM's 16 bytes.
    pub random: [u8; 16],
    /// AT_SYSINFO_EHDR; 0: none.
    pub vdso: usize,
    /// AT_MINSIGSTKSZ.
    pub min_signal_stack: u64,
}

/// A program ready to run.
pub struct Loaded {
    /// Its memory.
    pub mm: MmUser,
    /// First instruction.
    pub entry: usize,
    /// Stack pointer.
    pub sp: usize,
}

/// Headers of a checked ELF file.
struct Headers {
    pie: bool,
    entry: usize,
    phoff: u64,
    phnum: usize,
    /// On the heap: a kernel stack has no room for them.
    phdrs: Vec<u8>,
}

impl Headers {
    fn read(image: &dyn Image) -> Result<Headers, TaskError> {
        let mut ehdr = [0u8; EHDR_SIZE];
        if image.read_at(0, &mut ehdr)? < EHDR_SIZE {
            return Err(TaskError::BadProgram);
        }
        let ident = parse_ident::<LittleEndian>(&ehdr).map_err(|_| TaskError::BadProgram)?;
        if ident.1 != Class::ELF64 {
            return Err(TaskError::BadProgram);
        }
        let header =
            FileHeader::parse_tail(ident, &ehdr[16..]).map_err(|_| TaskError::BadProgram)?;
        let size = header.e_phnum as usize * PHDR_SIZE;
        let known = header.e_machine == abi::EM_X86_64
            && (header.e_type == abi::ET_EXEC || header.e_type == abi::ET_DYN)
            && header.e_phentsize as usize == PHDR_SIZE
            && (1..=PHDRS_MAX).contains(&size);
        if !known {
            return Err(TaskError::BadProgram);
        }
        let mut phdrs = Vec::new();
        phdrs
            .try_reserve_exact(size)
            .map_err(|_| TaskError::NoMemory)?;
        phdrs.resize(size, 0);
        if image.read_at(header.e_phoff, &mut phdrs)? < size {
            return Err(TaskError::BadProgram);
        }
        Ok(Headers {
            pie: header.e_type == abi::ET_DYN,
            entry: header.e_entry as usize,
            phoff: header.e_phoff,
            phnum: header.e_phnum as usize,
            phdrs,
        })
    }

    fn segments(&self) -> impl Iterator<Item = ProgramHeader> + '_ {
        SegmentTable::new(LittleEndian, Class::ELF64, &self.phdrs).iter()
    }

    fn loads(&self) -> impl Iterator<Item = ProgramHeader> + '_ {
        self.segments()
            .filter(|p| p.p_type == abi::PT_LOAD && p.p_memsz > 0)
    }

    /// Checks every PT_LOAD (INV-EXEC-1); returns the lowest and the highest address.
    fn check(&self, file_size: u64) -> Result<(usize, usize), TaskError> {
        let (mut low, mut high) = (usize::MAX, 0usize);
        for p in self.loads() {
            let (start, size) = (p.p_vaddr as usize, p.p_memsz as usize);
            let end = start.checked_add(size).ok_or(TaskError::NoMemory)?;
            let file_end = p
                .p_offset
                .checked_add(p.p_filesz)
                .ok_or(TaskError::BadProgram)?;
            if p.p_filesz > p.p_memsz
                || file_end > file_size
                || p.p_vaddr % 4096 != p.p_offset % 4096
            {
                return Err(TaskError::BadProgram);
            }
            if start < high {
                return Err(TaskError::BadProgram); // not ascending, or overlapping
            }
            if end > STACK_TOP - ARG_MAX - (16 << 20) {
                return Err(TaskError::NoMemory);
            }
            (low, high) = (low.min(start), end);
        }
        if high == 0 {
            return Err(TaskError::BadProgram);
        }
        Ok((low & !(PAGE_SIZE - 1), high))
    }
}

/// Where a file was mapped.
struct Mapped {
    bias: usize,
    entry: usize,
    phdr_address: usize,
    start: usize,
    end: usize,
}

fn prot_of(p: &ProgramHeader) -> Prot {
    let mut prot = Prot::empty();
    prot.set(Prot::READ, p.p_flags & abi::PF_R != 0);
    prot.set(Prot::WRITE, p.p_flags & abi::PF_W != 0);
    prot.set(Prot::EXEC, p.p_flags & abi::PF_X != 0);
    prot
}

/// Maps one segment: file pages, the zeroed rest of the last of them, and anonymous pages behind it.
fn map_segment(
    mm: &MmUser,
    image: &dyn Image,
    p: &ProgramHeader,
    bias: usize,
) -> Result<(), TaskError> {
    let prot = prot_of(p);
    let vaddr = bias + p.p_vaddr as usize;
    let page_offset = vaddr % PAGE_SIZE;
    let start = vaddr - page_offset;
    let file_end = vaddr + p.p_filesz as usize;
    let mem_end = vaddr + p.p_memsz as usize;
    let file_pages_end = if p.p_filesz == 0 {
        start
    } else {
        file_end.next_multiple_of(PAGE_SIZE)
    };
    if file_pages_end > start {
        mm.mmap(&MapArgs {
            addr: start,
            len: file_pages_end - start,
            prot,
            flags: MapFlags::PRIVATE | MapFlags::FIXED,
            file: Some((
                image.space(),
                (p.p_offset - page_offset as u64) / PAGE_SIZE as u64,
            )),
            max_prot: Prot::all(),
        })?;
    }
    let anon_end = mem_end.next_multiple_of(PAGE_SIZE);
    if anon_end > file_pages_end {
        mm.mmap(&MapArgs::anon(anon_end - file_pages_end, prot).fixed(file_pages_end))?;
    }
    if mem_end > file_end && file_end < file_pages_end {
        static ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
        // To the end of the page, as Linux does: ld.so takes its first memory from behind its own .bss.
        let len = file_pages_end - file_end;
        // A read-only segment with a zeroed tail is odd but legal: its tail then reads what the file has there.
        if prot.contains(Prot::WRITE) {
            mm.write_remote(file_end, &ZEROS[..len])?;
        }
    }
    Ok(())
}

/// Maps a whole program or interpreter.
fn map_image(
    mm: &MmUser,
    image: &dyn Image,
    headers: &Headers,
    base: usize,
) -> Result<Mapped, TaskError> {
    let (low, high) = headers.check(image.space().size())?;
    let bias = if headers.pie {
        base.checked_sub(low).ok_or(TaskError::BadProgram)?
    } else {
        0
    };
    if !headers.pie && low < mm::MMAP_MIN_ADDR
        || high
            .checked_add(bias)
            .is_none_or(|end| end > STACK_TOP - (32 << 20))
    {
        return Err(TaskError::NoMemory);
    }
    let mut phdr_address = 0;
    for p in headers.loads() {
        map_segment(mm, image, &p, bias)?;
        if (p.p_offset..p.p_offset + p.p_filesz).contains(&headers.phoff) {
            phdr_address = bias + (headers.phoff - p.p_offset + p.p_vaddr) as usize;
        }
    }
    let entry = headers.entry.wrapping_add(bias);
    Ok(Mapped {
        bias,
        entry,
        phdr_address,
        start: bias + low,
        end: bias + high,
    })
}

/// The interpreter's path that a program asks for, without its NUL, if any.
pub fn interpreter_path(
    image: &dyn Image,
    buf: &mut [u8; 256],
) -> Result<Option<usize>, TaskError> {
    let headers = Headers::read(image)?;
    let Some(p) = headers.segments().find(|p| p.p_type == abi::PT_INTERP) else {
        return Ok(None);
    };
    let len = p.p_filesz as usize;
    if !(2..=buf.len()).contains(&len)
        || image.read_at(p.p_offset, &mut buf[..len])? < len
        || buf[len - 1] != 0
    {
        return Err(TaskError::BadProgram);
    }
    Ok(buf[..len].iter().position(|&b| b == 0))
}

/// Where an interpreter of `len` bytes goes: as high as mmap would put it, and not over the program, of which alone
/// there are areas by now.
fn interpreter_address(mm: &MmUser, program: &Mapped, len: usize) -> Result<usize, TaskError> {
    let top = mm::MMAP_BASE.checked_sub(len).ok_or(TaskError::NoMemory)?;
    if program.end <= top || mm::MMAP_BASE <= program.start {
        return Ok(top);
    }
    find_room(mm, len)
}

/// The highest room of `len` bytes.
#[cold]
#[inline(never)]
fn find_room(mm: &MmUser, len: usize) -> Result<usize, TaskError> {
    let free = mm.mmap(&MapArgs::anon(len, Prot::empty()))?;
    mm.munmap(free, len)?;
    Ok(free)
}

/// Loads a program and, if given, its interpreter. `name` is what AT_EXECFN shows. May sleep.
///
/// # Errors
/// `BadProgram` (ENOEXEC), `NoMemory`, `TooBig`, file errors. Nothing is left behind.
pub fn load(
    image: &dyn Image,
    interpreter: Option<&dyn Image>,
    args: &ExecArgs,
    name: &[u8],
    aux: &AuxInfo,
) -> Result<Loaded, TaskError> {
    let headers = Headers::read(image)?;
    let mm = mm::Mm::new()?;
    let program = map_image(&mm, image, &headers, PIE_BASE)?;
    let mut entry = program.entry;
    let mut interpreter_base = 0;
    if let Some(interpreter) = interpreter {
        let headers = Headers::read(interpreter)?;
        if !headers.pie {
            return Err(TaskError::BadProgram);
        }
        let (low, high) = headers.check(interpreter.space().size())?;
        let base = interpreter_address(&mm, &program, (high - low).next_multiple_of(PAGE_SIZE))?;
        let mapped = map_image(&mm, interpreter, &headers, base)?;
        entry = mapped.entry;
        interpreter_base = mapped.bias;
    }
    // Linux lets a program that begins outside of user space start, and fault. The first address beyond user space does
    // so too, and is one that a return to user mode can load.
    let entry = entry.min(mm::TASK_SIZE);
    mm.set_brk_start(program.end.next_multiple_of(PAGE_SIZE));
    let size = (args.strings.len() + (args.argc + args.envc) * 8 + STACK_INITIAL)
        .next_multiple_of(PAGE_SIZE);
    mm.map_stack(STACK_TOP, size)?;
    let sp = build_stack(&mm, args, name, aux, &headers, &program, interpreter_base)?;
    let arg_start = strings_at(args, name);
    let layout = mm::Layout {
        start_code: program.start,
        end_code: program.end,
        start_stack: sp,
        arg_start,
        arg_end: arg_start + args.arg_bytes,
        env_end: arg_start + args.strings.len(),
    };
    mm.set_layout(layout, image.space());
    Ok(Loaded { mm, entry, sp })
}

/// Where the strings of a new stack begin; the file's name is above them.
fn strings_at(args: &ExecArgs, name: &[u8]) -> usize {
    STACK_TOP - 8 - (name.len() + 1) - args.strings.len()
}

/// Strings and vectors of the new stack; returns the stack pointer.
fn build_stack(
    mm: &MmUser,
    args: &ExecArgs,
    name: &[u8],
    aux: &AuxInfo,
    headers: &Headers,
    program: &Mapped,
    interpreter_base: usize,
) -> Result<usize, TaskError> {
    const PLATFORM: &[u8] = b"x86_64\0";
    let name_at = STACK_TOP - 8 - (name.len() + 1);
    let strings_at = strings_at(args, name);
    let platform_at = strings_at - PLATFORM.len();
    let random_at = (platform_at - aux.random.len()) & !15;
    let vector: [(u64, u64); 22] = [
        (33, aux.vdso as u64),            // AT_SYSINFO_EHDR
        (16, aux.hwcap),                  // AT_HWCAP
        (6, PAGE_SIZE as u64),            // AT_PAGESZ
        (17, 100),                        // AT_CLKTCK
        (3, program.phdr_address as u64), // AT_PHDR
        (4, PHDR_SIZE as u64),            // AT_PHENT
        (5, headers.phnum as u64),        // AT_PHNUM
        (7, interpreter_base as u64),     // AT_BASE
        (8, 0),                           // AT_FLAGS
        (9, program.entry as u64),        // AT_ENTRY
        (11, 0),                          // AT_UID
        (12, 0),                          // AT_EUID
        (13, 0),                          // AT_GID
        (14, 0),                          // AT_EGID
        (23, 0),                          // AT_SECURE
        (25, random_at as u64),           // AT_RANDOM
        (26, aux.hwcap2),                 // AT_HWCAP2
        (27, RSEQ_FEATURE_SIZE),          // AT_RSEQ_FEATURE_SIZE
        (28, 32),                         // AT_RSEQ_ALIGN
        (31, name_at as u64),             // AT_EXECFN
        (15, platform_at as u64),         // AT_PLATFORM
        (51, aux.min_signal_stack),       // AT_MINSIGSTKSZ
    ];
    let vector = if aux.vdso == 0 {
        &vector[1..]
    } else {
        &vector[..]
    };
    let words = 1 + args.argc + 1 + args.envc + 1 + 2 * (vector.len() + 1);
    let sp = (random_at - words * 8) & !15;
    let mut block: Vec<u8> = Vec::new();
    block
        .try_reserve_exact(STACK_TOP - sp)
        .map_err(|_| TaskError::NoMemory)?;
    let word = |block: &mut Vec<u8>, w: u64| block.extend_from_slice(&w.to_le_bytes());
    word(&mut block, args.argc as u64);
    let mut at = 0;
    for i in 0..args.argc + args.envc {
        if i == args.argc {
            word(&mut block, 0);
        }
        word(&mut block, (strings_at + at) as u64);
        at += args.strings[at..]
            .iter()
            .position(|&b| b == 0)
            .map_or(0, |n| n + 1);
    }
    if args.envc == 0 {
        word(&mut block, 0);
    }
    word(&mut block, 0);
    for &(key, value) in vector {
        word(&mut block, key);
        word(&mut block, value);
    }
    word(&mut block, 0);
    word(&mut block, 0);
    block.resize(random_at - sp, 0);
    block.extend_from_slice(&aux.random);
    block.resize(platform_at - sp, 0);
    block.extend_from_slice(PLATFORM);
    block.extend_from_slice(&args.strings);
    block.extend_from_slice(name);
    block.push(0);
    mm.write_remote(sp, &block)?;
    Ok(sp)
}
