//! strace=on: every call of every program as a line on the console, in strace's format.
//!
//! Mechanism: a static key; while it is off `do_syscall` has a NOP more. A line is made in two halves: what a program
//! passes is read before the call (exec replaces it, and a path may be overwritten), what it gets back after. One
//! `println` writes the line, so lines of several CPUs do not mix. Each call has a signature, a letter per argument:
//!
//! ```text
//!   d number   u unsigned   x address   h hexadecimal   o octal   s path   v strings   b bytes (as many as the next says)
//!   B bytes that come back (as many as the result says)   a directory   f open's flags   p protection   m map's flags
//!   g signal
//! ```

use super::{Args, name_of};
use crate::arch::PtRegs;
use crate::arch::uaccess::{copy_from_user, get_user, strncpy_from_user};
use crate::sched::current_ref;
use core::fmt::{self, Write};

ksync::static_key! {
    /// Calls are traced.
    pub static STRACE;
}

/// Bytes of a line that are kept.
const LINE: usize = 400;
/// Bytes shown of a buffer or a string, as strace has it.
const SHOWN: usize = 32;

/// Signatures of the calls that programs make most; others show three arguments.
fn signature(name: &str) -> &'static str {
    match name {
        "read" => "dBu",
        "write" => "dbu",
        "pread64" => "dBud",
        "pwrite64" => "dbud",
        "open" | "creat" => "sfo",
        "openat" => "asfo",
        "close" | "dup" | "fsync" | "fchdir" | "epoll_create1" | "umask" | "exit"
        | "exit_group" | "setpgrp" | "getpgid" | "getsid" => "d",
        "stat" | "lstat" | "statfs" | "truncate" | "access" | "chmod" | "mkdir" => "so",
        "fstat" | "fstatfs" | "ftruncate" | "dup2" | "flock" | "setpgid" => "dx",
        "newfstatat" => "asxx",
        "statx" => "asxxx",
        "faccessat" | "faccessat2" | "fchmodat" | "mkdirat" => "aso",
        "unlinkat" => "asx",
        "readlink" => "sxu",
        "readlinkat" => "asxu",
        "chdir" | "rmdir" | "unlink" | "chroot" | "umount2" => "s",
        "rename" | "link" | "symlink" => "ss",
        "renameat" | "renameat2" | "linkat" => "asasx",
        "symlinkat" => "sas",
        "mount" => "ssssx",
        "mmap" => "xupmdh",
        "mprotect" => "xup",
        "munmap" | "madvise" | "msync" => "xud",
        "mremap" => "xuuxx",
        "brk" => "x",
        "rt_sigaction" => "gxxu",
        "rt_sigprocmask" => "dxxu",
        "kill" => "dg",
        "tkill" => "dg",
        "tgkill" => "ddg",
        "ioctl" | "fcntl" | "prctl" | "arch_prctl" => "dxx",
        "lseek" => "ddd",
        "pipe" | "set_tid_address" | "uname" | "sysinfo" | "time" | "times" => "x",
        "pipe2" | "set_robust_list" | "nanosleep" | "clock_gettime" | "getrandom" => "xx",
        "getdents64" | "getcwd" => "dxu",
        "execve" => "svx",
        "wait4" => "dxxx",
        "waitid" => "ddxxx",
        "clone" => "xxxxx",
        "clone3" => "xu",
        "futex" => "xddxxd",
        "poll" => "xud",
        "ppoll" => "xuxxu",
        "select" => "dxxxx",
        "prlimit64" => "ddxx",
        "getrlimit" | "setrlimit" => "dx",
        "dup3" => "ddf",
        "sched_setaffinity" | "sched_getaffinity" => "dux",
        "rseq" => "xuxx",
        "getxattr" | "lgetxattr" => "ssxu",
        "getpid" | "getppid" | "gettid" | "getuid" | "geteuid" | "getgid" | "getegid" | "fork"
        | "vfork" | "pause" | "sched_yield" | "setsid" | "getpgrp" | "sync" | "rt_sigreturn" => "",
        _ => "xxx",
    }
}

struct Line {
    bytes: [u8; LINE],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let n = text.len().min(room.len());
        room[..n].copy_from_slice(&text.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

impl Line {
    fn as_str(&self) -> &str {
        let valid = match core::str::from_utf8(&self.bytes[..self.len]) {
            Ok(_) => self.len,
            Err(e) => e.valid_up_to(), // cut within a character
        };
        core::str::from_utf8(&self.bytes[..valid]).unwrap_or("")
    }

    fn quoted(&mut self, bytes: &[u8], more: bool) -> fmt::Result {
        self.write_str("\"")?;
        for &byte in bytes {
            match byte {
                b'\n' => self.write_str("\\n")?,
                b'\t' => self.write_str("\\t")?,
                b'\r' => self.write_str("\\r")?,
                b'"' | b'\\' => write!(self, "\\{}", byte as char)?,
                0x20..0x7f => self.write_char(byte as char)?,
                _ => write!(self, "\\{byte:o}")?,
            }
        }
        self.write_str(if more { "\"..." } else { "\"" })
    }

    fn pointer(&mut self, at: usize) -> fmt::Result {
        match at {
            0 => self.write_str("NULL"),
            at => write!(self, "{at:#x}"),
        }
    }

    fn string(&mut self, at: usize) -> fmt::Result {
        let mut text = [0; 128];
        match strncpy_from_user(&mut text, at) {
            _ if at == 0 => self.pointer(0),
            Ok(Some(len)) => self.quoted(&text[..len], false),
            Ok(None) => self.quoted(&text[..SHOWN], true),
            Err(_) => self.pointer(at),
        }
    }

    fn buffer(&mut self, at: usize, len: usize) -> fmt::Result {
        let mut bytes = [0; SHOWN];
        let n = len.min(SHOWN);
        match copy_from_user(&mut bytes[..n], at) {
            Ok(()) => self.quoted(&bytes[..n], len > SHOWN),
            Err(_) => self.pointer(at),
        }
    }

    fn strings(&mut self, at: usize) -> fmt::Result {
        self.write_str("[")?;
        for i in 0..8 {
            match get_user::<usize>(at + i * 8) {
                Ok(string) if string != 0 => {
                    self.write_str(if i > 0 { ", " } else { "" })?;
                    self.string(string)?;
                }
                _ => return self.write_str("]"),
            }
        }
        self.write_str(", ...]")
    }

    /// The names of the bits that are set, the rest as a number.
    fn flags(&mut self, value: usize, zero: &str, names: &[(usize, &str)]) -> fmt::Result {
        let (mut rest, mut first) = (value, true);
        if !zero.is_empty() {
            self.write_str(zero)?;
            first = false;
        }
        for &(bits, name) in names {
            if rest & bits == bits && bits != 0 {
                self.write_str(if first { "" } else { "|" })?;
                self.write_str(name)?;
                (rest, first) = (rest & !bits, false);
            }
        }
        if rest != 0 || first {
            self.write_str(if first { "" } else { "|" })?;
            write!(self, "{rest:#x}")?;
        }
        Ok(())
    }

    fn argument(&mut self, kind: u8, args: &[usize; 6], i: usize, result: usize) -> fmt::Result {
        let value = args[i];
        match kind {
            b'd' => write!(self, "{}", value as i32),
            b'u' => write!(self, "{value}"),
            b'h' => write!(self, "{value:#x}"),
            b'o' => write!(self, "{:#o}", value as u32),
            b's' => self.string(value),
            b'v' => self.strings(value),
            b'b' => self.buffer(value, args[(i + 1).min(5)]),
            b'B' if (result as isize) < 0 => self.pointer(value),
            b'B' => self.buffer(value, result),
            b'a' if value as i32 == -100 => self.write_str("AT_FDCWD"),
            b'a' => write!(self, "{}", value as i32),
            b'f' => self.flags(
                value & !3,
                ["O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"][value & 3],
                OPEN,
            ),
            b'p' => self.flags(value, if value == 0 { "PROT_NONE" } else { "" }, PROT),
            b'm' => self.flags(value, "", MAP),
            b'g' => match SIGNALS.get(value) {
                Some(name) => self.write_str(name),
                None => write!(self, "{value}"),
            },
            _ => self.pointer(value),
        }
    }
}

const OPEN: &[(usize, &str)] = &[
    (0o20200000, "O_TMPFILE"),
    (0o100, "O_CREAT"),
    (0o200, "O_EXCL"),
    (0o400, "O_NOCTTY"),
    (0o1000, "O_TRUNC"),
    (0o2000, "O_APPEND"),
    (0o4000, "O_NONBLOCK"),
    (0o100000, "O_LARGEFILE"),
    (0o200000, "O_DIRECTORY"),
    (0o400000, "O_NOFOLLOW"),
    (0o2000000, "O_CLOEXEC"),
    (0o10000000, "O_PATH"),
];
const PROT: &[(usize, &str)] = &[(1, "PROT_READ"), (2, "PROT_WRITE"), (4, "PROT_EXEC")];
const MAP: &[(usize, &str)] = &[
    (1, "MAP_SHARED"),
    (2, "MAP_PRIVATE"),
    (0x10, "MAP_FIXED"),
    (0x20, "MAP_ANONYMOUS"),
    (0x800, "MAP_DENYWRITE"),
    (0x4000, "MAP_NORESERVE"),
    (0x20000, "MAP_STACK"),
];
const SIGNALS: [&str; 32] = [
    "0",
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

/// Name and meaning of an error.
fn errno_text(errno: usize) -> (&'static str, &'static str) {
    match errno {
        1 => ("EPERM", "Operation not permitted"),
        2 => ("ENOENT", "No such file or directory"),
        3 => ("ESRCH", "No such process"),
        4 => ("EINTR", "Interrupted system call"),
        7 => ("E2BIG", "Argument list too long"),
        8 => ("ENOEXEC", "Exec format error"),
        9 => ("EBADF", "Bad file descriptor"),
        10 => ("ECHILD", "No child processes"),
        11 => ("EAGAIN", "Resource temporarily unavailable"),
        12 => ("ENOMEM", "Cannot allocate memory"),
        13 => ("EACCES", "Permission denied"),
        14 => ("EFAULT", "Bad address"),
        16 => ("EBUSY", "Device or resource busy"),
        17 => ("EEXIST", "File exists"),
        20 => ("ENOTDIR", "Not a directory"),
        21 => ("EISDIR", "Is a directory"),
        22 => ("EINVAL", "Invalid argument"),
        24 => ("EMFILE", "Too many open files"),
        25 => ("ENOTTY", "Inappropriate ioctl for device"),
        29 => ("ESPIPE", "Illegal seek"),
        32 => ("EPIPE", "Broken pipe"),
        34 => ("ERANGE", "Numerical result out of range"),
        36 => ("ENAMETOOLONG", "File name too long"),
        38 => ("ENOSYS", "Function not implemented"),
        39 => ("ENOTEMPTY", "Directory not empty"),
        40 => ("ELOOP", "Too many levels of symbolic links"),
        61 => ("ENODATA", "No data available"),
        95 => ("EOPNOTSUPP", "Operation not supported"),
        97 => ("EAFNOSUPPORT", "Address family not supported by protocol"),
        110 => ("ETIMEDOUT", "Connection timed out"),
        512 => ("ERESTARTSYS", "To be restarted if SA_RESTART is set"),
        513 => ("ERESTARTNOINTR", "To be restarted"),
        514 => ("ERESTARTNOHAND", "To be restarted if no handler"),
        516 => ("ERESTART_RESTARTBLOCK", "Interrupted by signal"),
        _ => ("E?", "Unknown error"),
    }
}

/// A traced call in progress.
pub struct Traced {
    line: Line,
    args: [usize; 6],
    rest: &'static str,
    returns: bool,
}

/// The first half of the line: what the program passes. What does not return is printed at once.
pub fn enter(regs: &PtRegs, nr: usize) -> Traced {
    let name = name_of(nr);
    let args = [
        regs.arg::<0>(),
        regs.arg::<1>(),
        regs.arg::<2>(),
        regs.arg::<3>(),
        regs.arg::<4>(),
        regs.arg::<5>(),
    ];
    let mut line = Line {
        bytes: [0; LINE],
        len: 0,
    };
    let _ = write!(line, "[pid {:5}] {name}(", current_ref().tid());
    let signature = signature(name);
    let known = signature.find('B').unwrap_or(signature.len());
    for (i, kind) in signature.bytes().enumerate().take(known) {
        // open's mode means something only where a file is made.
        if kind == b'o' && i > 0 && signature.as_bytes()[i - 1] == b'f' && args[i - 1] & 0o100 == 0
        {
            break;
        }
        let _ = line.write_str(if i > 0 { ", " } else { "" });
        let _ = line.argument(kind, &args, i, 0);
    }
    let returns = !matches!(name, "exit" | "exit_group");
    if !returns {
        println!("{}) = ?", line.as_str());
    }
    Traced {
        line,
        args,
        rest: signature,
        returns,
    }
}

impl Traced {
    /// The second half: what it gets.
    pub fn leave(mut self, result: usize) {
        if !self.returns {
            return;
        }
        let known = self.rest.find('B').unwrap_or(self.rest.len());
        for (i, kind) in self.rest.bytes().enumerate().skip(known) {
            let _ = self.line.write_str(if i > 0 { ", " } else { "" });
            let _ = self.line.argument(kind, &self.args, i, result);
        }
        match result as isize {
            error @ -4095..0 => {
                let (name, meaning) = errno_text(error.unsigned_abs());
                println!("{}) = -1 {name} ({meaning})", self.line.as_str());
            }
            value if !(-1..1 << 30).contains(&value) => {
                println!("{}) = {value:#x}", self.line.as_str());
            }
            value => println!("{}) = {value}", self.line.as_str()),
        }
    }
}
