//! Signal handlers and masks.

use crate::abi::{SA_RESTORER, SA_SIGINFO, SIG_SETMASK, Sigaction, Siginfo, Ucontext};
use crate::sys;
use crate::sys::{at, at_mut};

/// A handler as the kernel calls it with `SA_SIGINFO`.
pub type Handler = extern "C" fn(i32, &mut Siginfo, &mut Ucontext);

/// Where a handler returns to: `rt_sigreturn` with the stack as the kernel left it.
#[unsafe(naked)]
extern "C" fn restorer() {
    core::arch::naked_asm!("mov eax, 15", "syscall", "ud2")
}

/// Installs `handler` for `signal` with `flags` (SA_SIGINFO and the restorer are added) and the
/// signals in `mask` blocked while it runs. Returns the raw result.
pub fn handle(signal: i32, handler: Handler, flags: usize, mask: u64) -> isize {
    action(signal, handler as usize, flags | SA_SIGINFO, mask)
}

/// `rt_sigaction` with a handler's address, or SIG_DFL or SIG_IGN.
pub fn action(signal: i32, handler: usize, flags: usize, mask: u64) -> isize {
    let new = Sigaction {
        handler,
        flags: flags | SA_RESTORER,
        restorer: restorer as *const () as usize,
        mask,
    };
    sys!(RT_SIGACTION, signal, at(&new), 0, 8)
}

/// The current action of `signal`.
pub fn get_action(signal: i32) -> Sigaction {
    let mut old = Sigaction {
        handler: usize::MAX,
        ..Default::default()
    };
    sys!(RT_SIGACTION, signal, 0, at_mut(&mut old), 8);
    old
}

/// Changes the mask as `how` says; returns the mask before.
pub fn change_mask(how: usize, mask: u64) -> u64 {
    let mut old = 0u64;
    sys!(RT_SIGPROCMASK, how, at(&mask), at_mut(&mut old), 8);
    old
}

/// Replaces the mask; returns the one before.
pub fn set_mask(mask: u64) -> u64 {
    change_mask(SIG_SETMASK, mask)
}

/// The current mask.
pub fn mask() -> u64 {
    let mut old = 0u64;
    sys!(RT_SIGPROCMASK, SIG_SETMASK, 0, at_mut(&mut old), 8);
    old
}

/// Sends `signal` to `pid`.
pub fn kill(pid: isize, signal: i32) -> isize {
    sys!(KILL, pid, signal)
}

/// Sends `signal` to the own process.
pub fn raise(signal: i32) -> isize {
    kill(crate::process::getpid(), signal)
}
