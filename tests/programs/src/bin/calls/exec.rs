//! execve: the initial stack, what survives, what is refused.

use crate::SCRATCH;
use crate::files::{close, open, write};
use core::ffi::CStr;
use rt::abi::*;
use rt::process::{self, in_child};
use rt::signal;
use rt::start::at as aux;
use rt::sys::at;
use rt::{Args, Errno, Suite, sys};

const FINE: i32 = 42;

/// What the program does when it was executed by a test of its own.
pub fn role(args: &Args, role: &[u8]) -> i32 {
    let fine = match role {
        b"@args" => {
            let last = args.get(3).map(CStr::to_bytes);
            args.nr() == 4
                && args.get(2) == Some(c"")
                && last == Some(b"three \xff")
                && args.nr_env() == 2
                && args.env(0) == Some(c"A=1")
                && args.env(1) == Some(c"B=")
        }
        b"@files" => {
            sys!(FCNTL, 100, F_GETFD) == Errno::EBADF.raw() && sys!(FCNTL, 101, F_GETFD) == 0
        }
        b"@signals" => {
            let reset = signal::get_action(SIGUSR1).handler == SIG_DFL;
            let ignored = signal::get_action(SIGUSR2).handler == SIG_IGN;
            reset && ignored && signal::mask() == bit(SIGTERM)
        }
        b"@pid" => args
            .get(2)
            .is_some_and(|pid| number(pid) == process::getpid()),
        b"@group" => sys!(GETPGID, 0) == process::getpid(),
        b"@sleep" => loop {
            sys!(PAUSE);
        },
        b"@big" => {
            args.nr() == 34
                && (2..34).all(|i| args.get(i).is_some_and(|a| a.to_bytes().len() == 4000))
        }
        _ => false,
    };
    if fine { FINE } else { 1 }
}

fn number(text: &CStr) -> isize {
    text.to_bytes()
        .iter()
        .fold(0, |sum, digit| sum * 10 + (digit - b'0') as isize)
}

/// The text of a pid for an argument vector.
fn digits(mut number: isize) -> [u8; 12] {
    let mut text = [0u8; 12];
    let mut reversed = [0u8; 12];
    let mut nr = 0;
    while number > 0 {
        reversed[nr] = b'0' + (number % 10) as u8;
        number /= 10;
        nr += 1;
    }
    (0..nr).for_each(|i| text[i] = reversed[nr - 1 - i]);
    text
}

/// What the kernel left on the stack of this very process.
pub fn initial_stack(t: &mut Suite, args: &Args) {
    t.ok(
        "start: stack aligned to 16",
        args.stack_pointer().is_multiple_of(16),
    );
    t.ok("start: argc is 1 or more", args.nr() >= 1);
    t.ok("start: argv ends", args.get(args.nr()).is_none());
    let aux_is = |kind: usize| args.aux(kind).map_or(-1, |v| v as isize);
    t.is("auxv: AT_PAGESZ", aux_is(aux::PAGESZ), 4096);
    t.is("auxv: AT_PHENT", aux_is(aux::PHENT), 56);
    t.ok("auxv: AT_PHNUM", (1..20).contains(&aux_is(aux::PHNUM)));
    let phdr = aux_is(aux::PHDR);
    t.is("auxv: AT_PHDR", phdr, 0x400040);
    t.ok(
        "auxv: AT_ENTRY in the image",
        aux_is(aux::ENTRY) > 0x400000 && aux_is(aux::ENTRY) < 0x500000,
    );
    t.is("auxv: AT_BASE of a static program", aux_is(aux::BASE), 0);
    t.is("auxv: AT_FLAGS", aux_is(aux::FLAGS), 0);
    t.is("auxv: AT_SECURE", aux_is(aux::SECURE), 0);
    t.is("auxv: AT_CLKTCK", aux_is(aux::CLKTCK), 100);
    for kind in [aux::UID, aux::EUID, aux::GID, aux::EGID] {
        t.ok("auxv: AT_UID and its kin", aux_is(kind) >= 0);
    }
    let random = aux_is(aux::RANDOM) as usize;
    t.ok(
        "auxv: AT_RANDOM points above the vectors",
        random > args.stack_pointer(),
    );
    // SAFETY: AT_RANDOM points to 16 bytes.
    let bytes = unsafe { *(random as *const [u8; 16]) };
    t.ok("auxv: AT_RANDOM is not zero", bytes != [0; 16]);
    t.ok("auxv: AT_EXECFN", !args.execfn().is_empty());
}

/// Forks and executes this program again with `argv` (NULL-terminated) and an empty environment.
fn again(args: &Args, argv: &[usize], envp: &[usize]) -> isize {
    in_child(|| process::exec(args.execfn(), argv.as_ptr(), envp.as_ptr()) as i32).number()
}

pub fn run(t: &mut Suite, args: &Args) {
    passed_on(t, args);
    refused(t, args);
    bad_files(t);
    too_big(t, args);
    vfork_exec(t, args);
}

fn passed_on(t: &mut Suite, args: &Args) {
    let name = c"calls".as_ptr() as usize;
    let argv = [name, at(b"@args\0"), at(b"\0"), at(b"three \xff\0"), 0];
    let envp = [at(b"A=1\0"), at(b"B=\0"), 0];
    t.is(
        "execve: arguments and environment",
        again(args, &argv, &envp),
        FINE as isize,
    );
    let null = open(c"/dev/null", O_RDWR);
    sys!(DUP3, null, 100, O_CLOEXEC);
    sys!(DUP3, null, 101, 0);
    t.is(
        "execve: close-on-exec",
        again(args, &[name, at(b"@files\0"), 0], &[0]),
        FINE as isize,
    );
    t.is("execve: only in the child", sys!(FCNTL, 100, F_GETFD), 1);
    for fd in [null, 100, 101] {
        close(fd);
    }
    let end = in_child(|| {
        signal::handle(SIGUSR1, nothing, 0, 0);
        signal::action(SIGUSR2, SIG_IGN, 0, 0);
        signal::set_mask(bit(SIGTERM));
        process::exec(
            args.execfn(),
            [name, at(b"@signals\0"), 0].as_ptr(),
            [0usize].as_ptr(),
        ) as i32
    });
    t.is(
        "execve: handlers reset, ignored and mask kept",
        end.number(),
        FINE as isize,
    );
    let end = in_child(|| {
        let pid = digits(process::getpid());
        process::exec(
            args.execfn(),
            [name, at(b"@pid\0"), at(&pid), 0].as_ptr(),
            [0usize].as_ptr(),
        ) as i32
    });
    t.is("execve: the pid stays", end.number(), FINE as isize);
    let end = in_child(|| {
        sys!(SETPGID, 0, 0);
        process::exec(
            args.execfn(),
            [name, at(b"@group\0"), 0].as_ptr(),
            [0usize].as_ptr(),
        ) as i32
    });
    t.is("execve: the group stays", end.number(), FINE as isize);
    let child = process::fork(|| {
        process::exec(
            args.execfn(),
            [name, at(b"@sleep\0"), 0].as_ptr(),
            [0usize].as_ptr(),
        ) as i32
    });
    let mut moved = 0;
    for _ in 0..2000 {
        moved = sys!(SETPGID, child, child);
        if moved == Errno::EACCES.raw() {
            break;
        }
        rt::time::sleep_ns(1_000_000);
    }
    t.err("setpgid: of a child after its exec", moved, Errno::EACCES);
    signal::kill(child, SIGKILL);
    t.is(
        "execve: a sleeping program dies",
        process::wait(child).number(),
        1000 + SIGKILL as isize,
    );
}

extern "C" fn nothing(_: i32, _: &mut Siginfo, _: &mut Ucontext) {}

fn refused(t: &mut Suite, args: &Args) {
    let argv = [at(b"x\0"), 0usize];
    let exec = |path: &CStr| process::exec(path, argv.as_ptr(), argv.as_ptr().wrapping_add(1));
    t.err("execve: missing", exec(c"/no-such"), Errno::ENOENT);
    t.err("execve: empty path", exec(c""), Errno::ENOENT);
    t.err("execve: directory", exec(c"/dev"), Errno::EACCES);
    t.err("execve: device", exec(c"/dev/null"), Errno::EACCES);
    t.err(
        "execve: through a file",
        exec(c"/dev/null/x"),
        Errno::ENOTDIR,
    );
    let itself = args.execfn().as_ptr();
    let wild = 0xffff_8000_0000_0000usize;
    t.err(
        "execve: argv at a kernel address",
        sys!(EXECVE, itself, wild, 0),
        Errno::EFAULT,
    );
    t.err(
        "execve: envp at a kernel address",
        sys!(EXECVE, itself, argv.as_ptr(), wild),
        Errno::EFAULT,
    );
    t.err(
        "execve: argv[0] unmapped",
        sys!(EXECVE, itself, [8usize, 0].as_ptr(), 0),
        Errno::EFAULT,
    );
    t.err(
        "execve: path unmapped",
        sys!(EXECVE, 8, argv.as_ptr(), 0),
        Errno::EFAULT,
    );
}

/// Writes `parts` to the scratch file, makes it executable, executes it in a child; the end.
fn exec_bytes(parts: &[&[u8]], mode: usize) -> isize {
    sys!(UNLINK, SCRATCH.as_ptr());
    let fd = sys!(OPEN, SCRATCH.as_ptr(), O_RDWR | O_CREAT | O_TRUNC, mode);
    for part in parts {
        write(fd, part);
    }
    close(fd);
    in_child(|| -process::exec(SCRATCH, [at(b"x\0"), 0].as_ptr(), [0usize].as_ptr()) as i32)
        .number()
}

/// The headers of a program that exits with 33, at 0x10000, before a test spoils them.
#[derive(Clone, Copy)]
#[repr(C)]
struct Image {
    magic: [u8; 16],
    kind_machine: [u16; 2],
    version: u32,
    entry: u64,
    phoff: u64,
    shoff: u64,
    flags: u32,
    sizes: [u16; 6],
    p_type_flags: [u32; 2],
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
    code: [u8; 16],
}
const _: () = assert!(size_of::<Image>() == 136);

const IMAGE: Image = Image {
    magic: *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0",
    kind_machine: [2, 62],
    version: 1,
    entry: 0x10000 + 120,
    phoff: 64,
    shoff: 0,
    flags: 0,
    sizes: [64, 56, 1, 0, 0, 0],
    p_type_flags: [1, 5],
    offset: 0,
    vaddr: 0x10000,
    paddr: 0,
    filesz: 136,
    memsz: 136,
    align: 0x1000,
    // mov edi, 33; mov eax, 60; syscall
    code: *b"\xbf\x21\0\0\0\xb8\x3c\0\0\0\x0f\x05\0\0\0\0",
};

fn image_bytes(image: &Image) -> &[u8; 136] {
    // SAFETY: plain integers without padding (the assertion above).
    unsafe { &*core::ptr::from_ref(image).cast() }
}

fn bad_files(t: &mut Suite) {
    let with = |spoil: fn(&mut Image)| {
        let mut image = IMAGE;
        spoil(&mut image);
        exec_bytes(&[image_bytes(&image)], 0o755)
    };
    let noexec = Errno::ENOEXEC.0 as isize;
    t.is("execve: a hand-made image", with(|_| ()), 33);
    t.is(
        "execve: mode without x",
        exec_bytes(&[image_bytes(&IMAGE)], 0o644),
        Errno::EACCES.0 as isize,
    );
    t.is("execve: empty file", exec_bytes(&[], 0o755), noexec);
    t.is(
        "execve: garbage",
        exec_bytes(&[b"garbage garbage garbage garbage"], 0o755),
        noexec,
    );
    t.is(
        "execve: magic only",
        exec_bytes(&[b"\x7fELF"], 0o755),
        noexec,
    );
    t.is(
        "execve: header cut short",
        exec_bytes(&[&image_bytes(&IMAGE)[..63]], 0o755),
        noexec,
    );
    let cut = exec_bytes(&[&image_bytes(&IMAGE)[..100]], 0o755);
    t.ok(
        "execve: program headers cut short",
        cut == noexec || cut == Errno::EIO.0 as isize,
    );
    t.is(
        "execve: another machine",
        with(|i| i.kind_machine[1] = 183),
        noexec,
    );
    t.is(
        "execve: object file",
        with(|i| i.kind_machine[0] = 1),
        noexec,
    );
    t.is("execve: core file", with(|i| i.kind_machine[0] = 4), noexec);
    t.is(
        "execve: program header size",
        with(|i| i.sizes[1] = 55),
        noexec,
    );
    t.is(
        "execve: no program headers",
        with(|i| i.sizes[2] = 0),
        noexec,
    );
    t.is(
        "execve: too many program headers",
        with(|i| i.sizes[2] = 0xffff),
        noexec,
    );
    let far = with(|i| i.phoff = 1 << 40);
    t.ok(
        "execve: program headers beyond the file",
        far == noexec || far == Errno::EIO.0 as isize,
    );
    // From here on Linux has passed its point of no return and kills the process.
    let fatal = [SIGSEGV, SIGBUS, SIGKILL].map(|signal| 1000 + signal as isize);
    let dead = |end: isize| fatal.contains(&end) || (1..32).contains(&end);
    t.ok(
        "execve: segment in the kernel half",
        dead(with(|i| i.vaddr = 0xffff_8000_0000_0000)),
    );
    t.ok(
        "execve: segment larger than the address space",
        dead(with(|i| i.memsz = 1 << 60)),
    );
    t.ok(
        "execve: file size above memory size",
        dead(with(|i| i.filesz = 1 << 20)),
    );
    t.ok(
        "execve: offset and address disagree",
        dead(with(|i| i.offset = 8)),
    );
    t.ok(
        "execve: segment beyond the file",
        dead(with(|i| i.offset = 0x10_0000)),
    );
    t.ok(
        "execve: entry outside",
        with(|i| i.entry = 0xdead_0000) == 1000 + SIGSEGV as isize,
    );
    let kernel_entry = with(|i| i.entry = 0xffff_8000_0000_0000);
    t.ok("execve: entry in the kernel half", dead(kernel_entry));
    t.ok(
        "execve: not executable segment",
        with(|i| i.p_type_flags[1] = 4) == 1000 + SIGSEGV as isize,
    );
    t.is("execve: a good one afterwards", with(|_| ()), 33);
    sys!(UNLINK, SCRATCH.as_ptr());
}

fn too_big(t: &mut Suite, args: &Args) {
    // One argument of more than 128 KiB; then 32 arguments of 4000 bytes, which are fine.
    let len = 33 * PAGE;
    let text = crate::memory::map(34, RW);
    for i in 0..len {
        crate::memory::poke(text + i, b'a');
    }
    let argv = [at(b"x\0"), text, 0];
    let got = sys!(EXECVE, args.execfn().as_ptr(), argv.as_ptr(), 0);
    t.err("execve: one argument of 132 KiB", got, Errno::E2BIG);
    crate::memory::poke(text + 4000, 0);
    let mut argv = [text; 35];
    argv[1] = at(b"@big\0");
    argv[34] = 0;
    t.is(
        "execve: 128 KB of arguments",
        again(args, &argv, &[0]),
        FINE as isize,
    );
    crate::memory::unmap_pages(text, 34);
}

fn vfork_exec(t: &mut Suite, args: &Args) {
    let name = c"calls".as_ptr() as usize;
    let argv = [name, at(b"@group\0"), 0];
    let child = process::vfork_exec(args.execfn(), argv.as_ptr(), [0usize].as_ptr());
    t.ok("vfork and execve: a pid", child > 0);
    t.is(
        "vfork and execve: the program ran",
        process::wait(child).number(),
        1,
    );
    let child = process::vfork_exec(c"/no-such", argv.as_ptr(), [0usize].as_ptr());
    t.is(
        "vfork and a failed execve",
        process::wait(child).number(),
        127,
    );
    let mut tiny = [0u8; 256];
    let path = args.execfn().to_bytes();
    let dir = path.iter().rposition(|b| *b == b'/').map_or(0, |i| i + 1);
    if dir + 5 < tiny.len() {
        tiny[..dir].copy_from_slice(&path[..dir]);
        tiny[dir..dir + 4].copy_from_slice(b"tiny");
    }
    let tiny = CStr::from_bytes_until_nul(&tiny).unwrap_or(c"");
    let mut clean = true;
    for _ in 0..50 {
        let child = process::vfork_exec(tiny, argv.as_ptr(), [0usize].as_ptr());
        clean &= process::wait(child).number() == 0;
    }
    t.ok("vfork and execve: tiny, 50 times", clean);
}
