//! Processes: fork with a closure, vfork and exec, wait, exit.

use crate::sys;
use crate::sys::at_mut;
use core::arch::asm;
use core::ffi::CStr;

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// `exit(code)`.
    Exit(i32),
    /// Killed by a signal.
    Signal(i32),
    /// `wait4` failed with this raw result, or said something else.
    Wait(isize),
}

impl End {
    /// One number for a check: the exit code, 1000 + signal, or the raw error.
    pub const fn number(self) -> isize {
        match self {
            End::Exit(code) => code as isize,
            End::Signal(signal) => 1000 + signal as isize,
            End::Wait(raw) => raw,
        }
    }
}

/// Ends the process with all its threads.
pub fn exit_group(code: i32) -> ! {
    loop {
        sys!(EXIT_GROUP, code);
    }
}

/// Ends the calling thread only.
pub fn exit_thread(code: i32) -> ! {
    loop {
        sys!(EXIT, code);
    }
}

/// Own process id.
pub fn getpid() -> isize {
    sys!(GETPID)
}

/// Forks; the child runs `body` and exits with its result. Returns the child's pid or the raw error.
pub fn fork(body: impl FnOnce() -> i32) -> isize {
    let pid = sys!(FORK);
    if pid == 0 {
        exit_group(body());
    }
    pid
}

/// Waits for `pid` (or as `wait4` reads it) with `options`; EINTR is retried.
pub fn wait_options(pid: isize, options: usize) -> End {
    let mut status = 0u32;
    loop {
        let got = sys!(WAIT4, pid, at_mut(&mut status), options, 0);
        if got == crate::Errno::EINTR.raw() {
            continue;
        }
        if got <= 0 {
            return End::Wait(got);
        }
        return decode(status);
    }
}

/// Reads a wait status.
pub const fn decode(status: u32) -> End {
    match status & 0x7f {
        0 => End::Exit((status >> 8) as i32 & 0xff),
        0x7f => End::Wait(-9999),
        signal => End::Signal(signal as i32),
    }
}

/// Waits for `pid`.
pub fn wait(pid: isize) -> End {
    wait_options(pid, 0)
}

/// Forks, runs `body` in the child, waits.
pub fn in_child(body: impl FnOnce() -> i32) -> End {
    match fork(body) {
        pid if pid > 0 => wait(pid),
        error => End::Wait(error),
    }
}

/// Replaces the program; returns the raw error.
pub fn exec(path: &CStr, argv: *const usize, envp: *const usize) -> isize {
    sys!(EXECVE, path.as_ptr(), argv, envp)
}

/// vfork, then exec in the child; a failed exec makes the child exit with 127. Returns the child's
/// pid or the raw error.
pub fn vfork_exec(path: &CStr, argv: *const usize, envp: *const usize) -> isize {
    let pid: isize;
    // SAFETY: the child shares this stack frame until it execs or exits, and by INV-PROG-2 it runs
    // only the instructions here, which use no stack and change no register the parent needs: the
    // parent resumes with its own registers.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, {path}",
            "mov rsi, {argv}",
            "mov rdx, {envp}",
            "mov eax, 59",
            "syscall",
            "mov edi, 127",
            "mov eax, 60",
            "syscall",
            "ud2",
            "2:",
            path = in(reg) path.as_ptr(),
            argv = in(reg) argv,
            envp = in(reg) envp,
            inlateout("rax") crate::nr::VFORK => pid,
            out("rdi") _, out("rsi") _, out("rdx") _, out("rcx") _, out("r11") _,
            options(nostack),
        );
    }
    pid
}

/// vfork whose child stores `value` at `slot` and exits with `code`. Returns the child's pid.
pub fn vfork_store_exit(slot: &core::sync::atomic::AtomicUsize, value: usize, code: i32) -> isize {
    let pid: isize;
    // SAFETY: as in `vfork_exec`; the store goes to an atomic that both processes may write.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov [{slot}], {value}",
            "mov edi, {code:e}",
            "mov eax, 60",
            "syscall",
            "ud2",
            "2:",
            slot = in(reg) slot.as_ptr(),
            value = in(reg) value,
            code = in(reg) code,
            inlateout("rax") crate::nr::VFORK => pid,
            out("rdi") _, out("rcx") _, out("r11") _,
            options(nostack),
        );
    }
    pid
}

/// As process 1, hands the program's work to a child and reaps until that child has ended: default
/// signal actions don't apply to process 1, and tests are about ordinary processes. Elsewhere it
/// just runs `body`.
pub fn outside_init(body: impl FnOnce() -> i32) -> i32 {
    if getpid() != 1 {
        return body();
    }
    let worker = fork(body);
    if worker < 0 {
        return 100;
    }
    loop {
        let mut status = 0u32;
        let pid = sys!(WAIT4, -1isize, at_mut(&mut status), 0, 0);
        if pid == worker {
            return match decode(status) {
                End::Exit(code) => code,
                _ => 102,
            };
        }
        if pid < 0 && pid != crate::Errno::EINTR.raw() {
            return 103;
        }
    }
}
