//! System calls: the table, and how one is run. Numbers, arguments and errors are Linux's.
//!
//! A handler takes the saved registers and returns a value or an [`Errno`]. What is not in the table answers ENOSYS and
//! is counted by number.

mod file;
pub use file::mapping_of;
pub use process::{limits_text, set_affinity};
pub mod futex;
pub mod memory;
mod pidfd;
mod process;
pub mod restart;
mod sig;
mod time;
mod uio;

use crate::arch::PtRegs;
use crate::arch::traps::exit_to_user;
use crate::errno::Errno;
use crate::kstats::Stat;
use crate::sched::current_ref;
use core::sync::atomic::Ordering::Relaxed;
use kstat::Counters;

/// What a system call returns.
pub type SysResult = Result<usize, Errno>;
type Handler = fn(&mut PtRegs) -> isize;

/// Arguments in the order of the system-call convention.
pub trait Args {
    /// Argument `N`, 0 to 5.
    fn arg<const N: usize>(&self) -> usize;
}

impl Args for PtRegs {
    #[inline(always)]
    fn arg<const N: usize>(&self) -> usize {
        (match N {
            0 => self.rdi,
            1 => self.rsi,
            2 => self.rdx,
            3 => self.r10,
            4 => self.r8,
            _ => self.r9,
        }) as usize
    }
}

/// Size of the table: one more than the highest number known to Linux 7.
pub const NR_SYSCALLS: usize = 472;

macro_rules! syscalls {
    ($($nr:literal $name:literal => $handler:path,)*) => {
        static TABLE: [Handler; NR_SYSCALLS] = {
            let mut table: [Handler; NR_SYSCALLS] = [missing; NR_SYSCALLS];
            $( table[$nr] = {
                fn thunk(regs: &mut PtRegs) -> isize {
                    match $handler(regs) {
                        Ok(value) => value as isize,
                        Err(e) => -(e.0 as isize),
                    }
                }
                thunk
            }; )*
            table
        };
    };
}

syscalls! {
    0 "read" => file::read,
    1 "write" => file::write,
    2 "open" => file::open,
    3 "close" => file::close,
    4 "stat" => file::stat,
    5 "fstat" => file::fstat,
    6 "lstat" => file::lstat,
    7 "poll" => file::poll,
    8 "lseek" => file::lseek,
    9 "mmap" => memory::mmap,
    10 "mprotect" => memory::mprotect,
    11 "munmap" => memory::munmap,
    12 "brk" => memory::brk,
    13 "rt_sigaction" => sig::rt_sigaction,
    14 "rt_sigprocmask" => sig::rt_sigprocmask,
    15 "rt_sigreturn" => sig::rt_sigreturn,
    16 "ioctl" => file::ioctl,
    17 "pread64" => file::pread64,
    18 "pwrite64" => file::pwrite64,
    19 "readv" => file::readv,
    20 "writev" => file::writev,
    21 "access" => file::access,
    22 "pipe" => file::pipe,
    24 "sched_yield" => process::sched_yield,
    25 "mremap" => memory::mremap,
    28 "madvise" => memory::madvise,
    32 "dup" => file::dup,
    33 "dup2" => file::dup2,
    34 "pause" => sig::pause,
    35 "nanosleep" => time::nanosleep,
    39 "getpid" => process::getpid,
    40 "sendfile" => file::sendfile,
    56 "clone" => process::clone,
    57 "fork" => process::fork,
    58 "vfork" => process::vfork,
    59 "execve" => process::execve,
    60 "exit" => process::exit,
    61 "wait4" => process::wait4,
    62 "kill" => sig::kill,
    63 "uname" => process::uname,
    72 "fcntl" => file::fcntl,
    77 "ftruncate" => file::ftruncate,
    79 "getcwd" => file::getcwd,
    80 "chdir" => file::chdir,
    83 "mkdir" => file::mkdir,
    84 "rmdir" => file::rmdir,
    87 "unlink" => file::unlink,
    89 "readlink" => file::readlink,
    95 "umask" => file::umask,
    96 "gettimeofday" => time::gettimeofday,
    97 "getrlimit" => process::getrlimit,
    98 "getrusage" => process::getrusage,
    99 "sysinfo" => process::sysinfo,
    102 "getuid" => process::zero,
    104 "getgid" => process::zero,
    107 "geteuid" => process::zero,
    108 "getegid" => process::zero,
    109 "setpgid" => process::setpgid,
    110 "getppid" => process::getppid,
    111 "getpgrp" => process::getpgrp,
    112 "setsid" => process::setsid,
    115 "getgroups" => process::zero,
    121 "getpgid" => process::getpgid,
    124 "getsid" => process::getsid,
    127 "rt_sigpending" => sig::rt_sigpending,
    130 "rt_sigsuspend" => sig::rt_sigsuspend,
    131 "sigaltstack" => sig::sigaltstack,
    125 "capget" => pidfd::capget,
    126 "capset" => pidfd::capset,
    157 "prctl" => process::prctl,
    158 "arch_prctl" => process::arch_prctl,
    169 "reboot" => process::reboot,
    186 "gettid" => process::gettid,
    200 "tkill" => sig::tkill,
    201 "time" => time::time,
    202 "futex" => futex::futex,
    203 "sched_setaffinity" => process::sched_setaffinity,
    204 "sched_getaffinity" => process::sched_getaffinity,
    217 "getdents64" => file::getdents64,
    218 "set_tid_address" => process::set_tid_address,
    219 "restart_syscall" => restart::restart_syscall,
    228 "clock_gettime" => time::clock_gettime,
    229 "clock_getres" => time::clock_getres,
    230 "clock_nanosleep" => time::clock_nanosleep,
    231 "exit_group" => process::exit_group,
    234 "tgkill" => sig::tgkill,
    247 "waitid" => pidfd::waitid,
    257 "openat" => file::openat,
    258 "mkdirat" => file::mkdirat,
    262 "newfstatat" => file::newfstatat,
    263 "unlinkat" => file::unlinkat,
    267 "readlinkat" => file::readlinkat,
    269 "faccessat" => file::faccessat,
    272 "unshare" => process::unshare,
    273 "set_robust_list" => futex::set_robust_list,
    274 "get_robust_list" => futex::get_robust_list,
    292 "dup3" => file::dup3,
    293 "pipe2" => file::pipe2,
    302 "prlimit64" => process::prlimit64,
    308 "setns" => pidfd::setns,
    309 "getcpu" => process::getcpu,
    318 "getrandom" => process::getrandom,
    334 "rseq" => crate::rseq::rseq,
    424 "pidfd_send_signal" => pidfd::pidfd_send_signal,
    434 "pidfd_open" => pidfd::pidfd_open,
    435 "clone3" => process::clone3,
    439 "faccessat2" => file::faccessat,
}

/// Runs a system call from inside the kernel, as the running program.
pub fn call(nr: usize, regs: &mut PtRegs) -> SysResult {
    match TABLE
        .get(nr)
        .map_or(-(Errno::ENOSYS.0 as isize), |f| f(regs))
    {
        error @ -4095..0 => Err(Errno(-error as u16)),
        value => Ok(value as usize),
    }
}

fn missing(regs: &mut PtRegs) -> isize {
    crate::kstats::missing_syscall(regs.orig_rax as usize);
    -(Errno::ENOSYS.0 as isize)
}

/// Runs a system call and whatever stands before the return to user mode. Returns with IRQs off.
pub extern "C" fn do_syscall(regs: &mut PtRegs, nr: usize) {
    Stat::nr_syscalls.inc();
    regs.rax = match TABLE.get(nr) {
        Some(handler) => handler(regs),
        None => missing(regs),
    } as u64;
    x86_64::instructions::interrupts::disable();
    if ksync::arch::this_cpu_head().need_resched.load(Relaxed) != 0 || current_ref().has_work() {
        exit_to_user(regs);
    }
}
