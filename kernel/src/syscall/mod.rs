//! System calls: the table, and how one is run. Numbers, arguments and errors are Linux's.
//!
//! A handler takes the saved registers and returns a value or an [`Errno`]. What is not in the table answers ENOSYS and
//! is counted by number.

mod file;
mod fs;
pub use file::mapping_of;
pub use limits::{apply_to as apply_limits_to, limits_text, may_fork};
pub use names::name_of;
pub use process::set_affinity;
pub use sig::kill_process;
pub mod futex;
mod limits;
pub mod memory;
mod misc;
mod names;
mod pidfd;
mod poll;
mod process;
pub mod restart;
mod sig;
pub mod strace;
mod time;
mod tty;
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
    7 "poll" => poll::poll,
    8 "lseek" => file::lseek,
    9 "mmap" => memory::mmap,
    10 "mprotect" => memory::mprotect,
    11 "munmap" => memory::munmap,
    12 "brk" => memory::brk,
    13 "rt_sigaction" => sig::rt_sigaction,
    14 "rt_sigprocmask" => sig::rt_sigprocmask,
    15 "rt_sigreturn" => sig::rt_sigreturn,
    16 "ioctl" => tty::ioctl,
    17 "pread64" => file::pread64,
    18 "pwrite64" => file::pwrite64,
    19 "readv" => file::readv,
    20 "writev" => file::writev,
    21 "access" => file::access,
    22 "pipe" => file::pipe,
    23 "select" => poll::select,
    24 "sched_yield" => process::sched_yield,
    25 "mremap" => memory::mremap,
    26 "msync" => misc::msync,
    28 "madvise" => memory::madvise,
    32 "dup" => file::dup,
    33 "dup2" => file::dup2,
    34 "pause" => sig::pause,
    35 "nanosleep" => time::nanosleep,
    36 "getitimer" => time::getitimer,
    37 "alarm" => time::alarm,
    38 "setitimer" => time::setitimer,
    39 "getpid" => process::getpid,
    40 "sendfile" => file::sendfile,
    41 "socket" => fs::socket,
    42 "connect" => fs::on_socket,
    43 "accept" => fs::on_socket,
    44 "sendto" => fs::on_socket,
    45 "recvfrom" => fs::on_socket,
    46 "sendmsg" => fs::on_socket,
    47 "recvmsg" => fs::on_socket,
    48 "shutdown" => fs::on_socket,
    49 "bind" => fs::on_socket,
    50 "listen" => fs::on_socket,
    51 "getsockname" => fs::on_socket,
    52 "getpeername" => fs::on_socket,
    53 "socketpair" => fs::socket,
    54 "setsockopt" => fs::on_socket,
    55 "getsockopt" => fs::on_socket,
    56 "clone" => process::clone,
    57 "fork" => process::fork,
    58 "vfork" => process::vfork,
    59 "execve" => process::execve,
    60 "exit" => process::exit,
    61 "wait4" => process::wait4,
    62 "kill" => sig::kill,
    63 "uname" => process::uname,
    72 "fcntl" => file::fcntl,
    73 "flock" => fs::flock,
    74 "fsync" => fs::fsync,
    75 "fdatasync" => fs::fsync,
    76 "truncate" => fs::truncate,
    77 "ftruncate" => file::ftruncate,
    79 "getcwd" => file::getcwd,
    80 "chdir" => file::chdir,
    81 "fchdir" => fs::fchdir,
    82 "rename" => fs::rename,
    83 "mkdir" => file::mkdir,
    84 "rmdir" => file::rmdir,
    85 "creat" => fs::creat,
    86 "link" => fs::link,
    87 "unlink" => file::unlink,
    88 "symlink" => fs::symlink,
    89 "readlink" => file::readlink,
    90 "chmod" => fs::chmod,
    91 "fchmod" => fs::fchmod,
    92 "chown" => fs::chown,
    93 "fchown" => fs::fchown,
    94 "lchown" => fs::lchown,
    95 "umask" => file::umask,
    96 "gettimeofday" => time::gettimeofday,
    97 "getrlimit" => limits::getrlimit,
    98 "getrusage" => process::getrusage,
    99 "sysinfo" => process::sysinfo,
    100 "times" => misc::times,
    102 "getuid" => process::zero,
    104 "getgid" => process::zero,
    105 "setuid" => misc::set_id,
    106 "setgid" => misc::set_id,
    107 "geteuid" => process::zero,
    108 "getegid" => process::zero,
    109 "setpgid" => process::setpgid,
    110 "getppid" => process::getppid,
    111 "getpgrp" => process::getpgrp,
    112 "setsid" => process::setsid,
    113 "setreuid" => misc::set_two_ids,
    114 "setregid" => misc::set_two_ids,
    115 "getgroups" => process::zero,
    116 "setgroups" => misc::setgroups,
    117 "setresuid" => misc::set_three_ids,
    118 "getresuid" => misc::get_three_ids,
    119 "setresgid" => misc::set_three_ids,
    120 "getresgid" => misc::get_three_ids,
    121 "getpgid" => process::getpgid,
    122 "setfsuid" => process::zero,
    123 "setfsgid" => process::zero,
    124 "getsid" => process::getsid,
    125 "capget" => pidfd::capget,
    126 "capset" => pidfd::capset,
    127 "rt_sigpending" => sig::rt_sigpending,
    128 "rt_sigtimedwait" => sig::rt_sigtimedwait,
    130 "rt_sigsuspend" => sig::rt_sigsuspend,
    131 "sigaltstack" => sig::sigaltstack,
    133 "mknod" => fs::mknod,
    135 "personality" => misc::personality,
    137 "statfs" => fs::statfs,
    138 "fstatfs" => fs::fstatfs,
    140 "getpriority" => misc::getpriority,
    141 "setpriority" => misc::setpriority,
    142 "sched_setparam" => misc::sched_setparam,
    143 "sched_getparam" => misc::sched_getparam,
    144 "sched_setscheduler" => misc::sched_setscheduler,
    145 "sched_getscheduler" => misc::sched_getscheduler,
    146 "sched_get_priority_max" => misc::sched_get_priority_max,
    147 "sched_get_priority_min" => misc::sched_get_priority_min,
    148 "sched_rr_get_interval" => misc::sched_rr_get_interval,
    149 "mlock" => misc::resident,
    150 "munlock" => misc::resident,
    151 "mlockall" => process::zero,
    152 "munlockall" => process::zero,
    157 "prctl" => misc::prctl,
    158 "arch_prctl" => process::arch_prctl,
    160 "setrlimit" => limits::setrlimit,
    161 "chroot" => fs::chroot,
    162 "sync" => process::zero,
    165 "mount" => fs::mount,
    166 "umount2" => fs::umount2,
    169 "reboot" => process::reboot,
    186 "gettid" => process::gettid,
    188 "setxattr" => fs::setxattr,
    189 "lsetxattr" => fs::setxattr,
    190 "fsetxattr" => fs::fsetxattr,
    191 "getxattr" => fs::getxattr,
    192 "lgetxattr" => fs::lgetxattr,
    193 "fgetxattr" => fs::fgetxattr,
    194 "listxattr" => fs::listxattr,
    195 "llistxattr" => fs::llistxattr,
    196 "flistxattr" => fs::flistxattr,
    197 "removexattr" => fs::getxattr,
    198 "lremovexattr" => fs::lgetxattr,
    199 "fremovexattr" => fs::fgetxattr,
    200 "tkill" => sig::tkill,
    201 "time" => time::time,
    202 "futex" => futex::futex,
    203 "sched_setaffinity" => process::sched_setaffinity,
    204 "sched_getaffinity" => process::sched_getaffinity,
    217 "getdents64" => file::getdents64,
    218 "set_tid_address" => process::set_tid_address,
    219 "restart_syscall" => restart::restart_syscall,
    221 "fadvise64" => fs::fadvise64,
    222 "timer_create" => time::timer_create,
    223 "timer_settime" => time::timer_settime,
    224 "timer_gettime" => time::timer_gettime,
    225 "timer_getoverrun" => time::timer_getoverrun,
    226 "timer_delete" => time::timer_delete,
    228 "clock_gettime" => time::clock_gettime,
    229 "clock_getres" => time::clock_getres,
    230 "clock_nanosleep" => time::clock_nanosleep,
    231 "exit_group" => process::exit_group,
    234 "tgkill" => sig::tgkill,
    237 "mbind" => misc::mbind,
    238 "set_mempolicy" => misc::set_mempolicy,
    239 "get_mempolicy" => misc::get_mempolicy,
    247 "waitid" => pidfd::waitid,
    257 "openat" => file::openat,
    258 "mkdirat" => file::mkdirat,
    259 "mknodat" => fs::mknodat,
    260 "fchownat" => fs::fchownat,
    262 "newfstatat" => file::newfstatat,
    263 "unlinkat" => file::unlinkat,
    264 "renameat" => fs::renameat,
    265 "linkat" => fs::linkat,
    266 "symlinkat" => fs::symlinkat,
    267 "readlinkat" => file::readlinkat,
    268 "fchmodat" => fs::fchmodat,
    269 "faccessat" => file::faccessat,
    270 "pselect6" => poll::pselect6,
    271 "ppoll" => poll::ppoll,
    272 "unshare" => process::unshare,
    273 "set_robust_list" => futex::set_robust_list,
    274 "get_robust_list" => futex::get_robust_list,
    279 "move_pages" => memory::move_pages,
    280 "utimensat" => fs::utimensat,
    284 "eventfd" => poll::eventfd,
    285 "fallocate" => fs::fallocate,
    288 "accept4" => fs::on_socket,
    290 "eventfd2" => poll::eventfd2,
    292 "dup3" => file::dup3,
    293 "pipe2" => file::pipe2,
    295 "preadv" => fs::preadv,
    296 "pwritev" => fs::pwritev,
    302 "prlimit64" => limits::prlimit64,
    308 "setns" => pidfd::setns,
    309 "getcpu" => process::getcpu,
    316 "renameat2" => fs::renameat2,
    318 "getrandom" => process::getrandom,
    319 "memfd_create" => fs::memfd_create,
    324 "membarrier" => misc::membarrier,
    325 "mlock2" => misc::resident,
    326 "copy_file_range" => fs::copy_file_range,
    332 "statx" => fs::statx,
    334 "rseq" => crate::rseq::rseq,
    424 "pidfd_send_signal" => pidfd::pidfd_send_signal,
    434 "pidfd_open" => pidfd::pidfd_open,
    435 "clone3" => process::clone3,
    436 "close_range" => fs::close_range,
    439 "faccessat2" => file::faccessat,
    452 "fchmodat2" => fs::fchmodat2,
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

#[inline(always)]
fn dispatch(regs: &mut PtRegs, nr: usize) -> isize {
    match TABLE.get(nr) {
        Some(handler) => handler(regs),
        None => missing(regs),
    }
}

#[cold]
#[inline(never)]
fn traced(regs: &mut PtRegs, nr: usize) {
    let line = strace::enter(regs, nr);
    let result = dispatch(regs, nr);
    regs.rax = result as u64;
    line.leave(result as usize);
}

/// Runs a system call and whatever stands before the return to user mode. Returns with IRQs off.
pub extern "C" fn do_syscall(regs: &mut PtRegs, nr: usize) {
    Stat::nr_syscalls.inc();
    if ksync::static_branch!(strace::STRACE) {
        traced(regs, nr);
    } else {
        regs.rax = dispatch(regs, nr) as u64;
    }
    x86_64::instructions::interrupts::disable();
    if ksync::arch::this_cpu_head().need_resched.load(Relaxed) != 0 || current_ref().has_work() {
        exit_to_user(regs);
    }
}
