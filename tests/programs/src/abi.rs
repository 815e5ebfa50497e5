//! Structures and constants of the Linux x86-64 ABI.
#![allow(missing_docs, reason = "the names are those of the ABI")]

macro_rules! values {
    ($ty:ty: $($name:ident = $value:expr),+ $(,)?) => { $(pub const $name: $ty = $value;)+ };
}

values! { usize:
    O_RDONLY = 0, O_WRONLY = 1, O_RDWR = 2, O_CREAT = 0o100, O_EXCL = 0o200, O_TRUNC = 0o1000,
    O_APPEND = 0o2000, O_NONBLOCK = 0o4000, O_DIRECTORY = 0o200000, O_NOFOLLOW = 0o400000,
    O_CLOEXEC = 0o2000000, O_ACCMODE = 3,
    F_DUPFD = 0, F_GETFD = 1, F_SETFD = 2, F_GETFL = 3, F_SETFL = 4, F_DUPFD_CLOEXEC = 1030,
    FD_CLOEXEC = 1, AT_EMPTY_PATH = 0x1000, AT_SYMLINK_NOFOLLOW = 0x100, AT_REMOVEDIR = 0x200,
    SEEK_SET = 0, SEEK_CUR = 1, SEEK_END = 2,
    PROT_NONE = 0, PROT_READ = 1, PROT_WRITE = 2, PROT_EXEC = 4, RW = 3,
    MAP_SHARED = 1, MAP_PRIVATE = 2, MAP_FIXED = 0x10, MAP_ANONYMOUS = 0x20, MAP_GROWSDOWN = 0x100,
    MAP_NORESERVE = 0x4000, MAP_FIXED_NOREPLACE = 0x100000, ANON = 0x22,
    CLONE_VM = 0x100, CLONE_FS = 0x200, CLONE_FILES = 0x400, CLONE_SIGHAND = 0x800,
    CLONE_VFORK = 0x4000, CLONE_PARENT = 0x8000, CLONE_THREAD = 0x10000, CLONE_SYSVSEM = 0x40000,
    CLONE_SETTLS = 0x80000, CLONE_PARENT_SETTID = 0x100000, CLONE_CHILD_CLEARTID = 0x200000,
    CLONE_CHILD_SETTID = 0x1000000, CLONE_NEWPID = 0x20000000,
    WNOHANG = 1, WUNTRACED = 2, WCONTINUED = 8, WALL = 0x40000000, WCLONE = 0x80000000,
    FUTEX_WAIT = 0, FUTEX_WAKE = 1, FUTEX_PRIVATE = 128,
    CLOCK_REALTIME = 0, CLOCK_MONOTONIC = 1,
    ARCH_SET_GS = 0x1001, ARCH_SET_FS = 0x1002, ARCH_GET_FS = 0x1003, ARCH_GET_GS = 0x1004,
    GRND_NONBLOCK = 1,
    PAGE = 4096,
}

/// `openat`'s "relative to the working directory".
pub const AT_FDCWD: isize = -100;

values! { u32: S_IFMT = 0o170000, S_IFIFO = 0o10000, S_IFCHR = 0o20000, S_IFDIR = 0o40000, S_IFREG = 0o100000 }

values! { i32:
    SIGHUP = 1, SIGINT = 2, SIGQUIT = 3, SIGILL = 4, SIGTRAP = 5, SIGABRT = 6, SIGBUS = 7, SIGFPE = 8,
    SIGKILL = 9, SIGUSR1 = 10, SIGSEGV = 11, SIGUSR2 = 12, SIGPIPE = 13, SIGALRM = 14, SIGTERM = 15,
    SIGCHLD = 17, SIGCONT = 18, SIGSTOP = 19, SIGURG = 23, SIGWINCH = 28, SIGRTMIN = 34,
}

values! { usize:
    SIG_DFL = 0, SIG_IGN = 1, SIG_BLOCK = 0, SIG_UNBLOCK = 1, SIG_SETMASK = 2,
    SA_NOCLDSTOP = 1, SA_NOCLDWAIT = 2, SA_SIGINFO = 4, SA_RESTORER = 0x04000000, SA_ONSTACK = 0x08000000,
    SA_RESTART = 0x10000000, SA_NODEFER = 0x40000000, SA_RESETHAND = 0x80000000,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    pub nlink: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pad0: u32,
    pub rdev: u64,
    pub size: i64,
    pub blksize: i64,
    pub blocks: i64,
    pub atime: Timespec,
    pub mtime: Timespec,
    pub ctime: Timespec,
    unused: [i64; 3],
}
const _: () = assert!(size_of::<Stat>() == 144);

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Timespec {
    pub sec: i64,
    pub nsec: i64,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Iovec {
    pub base: usize,
    pub len: usize,
}

#[repr(C)]
pub struct Utsname {
    pub fields: [[u8; 65]; 6],
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Sigaction {
    pub handler: usize,
    pub flags: usize,
    pub restorer: usize,
    pub mask: u64,
}

/// The parts of `siginfo_t` that the programs read.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Siginfo {
    pub signo: i32,
    pub errno: i32,
    pub code: i32,
    pad: i32,
    /// `si_pid` and `si_uid`, or `si_addr`.
    pub first: u64,
    /// `si_status` (SIGCHLD), or `si_value`.
    pub second: u64,
    rest: [u64; 12],
}
const _: () = assert!(size_of::<Siginfo>() == 128);

impl Siginfo {
    pub fn pid(&self) -> i32 {
        self.first as i32
    }

    pub fn addr(&self) -> usize {
        self.first as usize
    }

    pub fn status(&self) -> i32 {
        self.second as i32
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Stack {
    pub sp: usize,
    pub flags: i32,
    pub size: usize,
}

/// `ucontext_t`: r8..r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags, segments, err, trapno,
/// oldmask, cr2, fpstate.
#[repr(C)]
pub struct Ucontext {
    pub flags: usize,
    pub link: usize,
    pub stack: Stack,
    pub regs: [u64; 23],
    pub fpstate: usize,
    reserved: [u64; 8],
    pub sigmask: u64,
}

/// Indices into [`Ucontext::regs`].
pub mod reg {
    pub const R8: usize = 0;
    pub const RBX: usize = 11;
    pub const RAX: usize = 13;
    pub const RSP: usize = 15;
    pub const RIP: usize = 16;
    pub const EFLAGS: usize = 17;
    pub const ERR: usize = 19;
    pub const TRAPNO: usize = 20;
    pub const CR2: usize = 22;
}

/// The bit of `signal` in a mask.
pub const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}
