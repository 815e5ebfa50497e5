//! Calls that a signal interrupted: started again, or ended with EINTR, as the handler's flags say; or always started
//! again (fork).

use super::SysResult;
use crate::arch::PtRegs;
use crate::arch::entry::NO_SYSCALL;
use crate::errno::Errno;
use task::signal::{SigAction, sa};

/// Length of the `syscall` instruction.
const SYSCALL_LEN: u64 = 2;
const NR_RESTART_SYSCALL: u64 = 219;

fn interrupted(regs: &PtRegs) -> Option<Errno> {
    if regs.orig_rax == NO_SYSCALL {
        return None;
    }
    let code = -(regs.rax as i64);
    [
        Errno::ERESTARTSYS,
        Errno::ERESTARTNOINTR,
        Errno::ERESTARTNOHAND,
        Errno::ERESTART_RESTARTBLOCK,
    ]
    .into_iter()
    .find(|e| e.0 as i64 == code)
}

/// A handler is about to run.
pub fn before_handler(regs: &mut PtRegs, action: &SigAction) {
    let Some(code) = interrupted(regs) else {
        return;
    };
    let restarts = match code {
        Errno::ERESTARTNOINTR => true,
        Errno::ERESTARTSYS => action.flags & sa::RESTART != 0,
        _ => false,
    };
    if restarts {
        regs.rax = regs.orig_rax;
        regs.rip -= SYSCALL_LEN;
    } else {
        regs.rax = -(Errno::EINTR.0 as i64) as u64;
    }
    regs.orig_rax = NO_SYSCALL;
}

/// The signal needed no handler after all: the program must not notice.
pub fn without_handler(regs: &mut PtRegs) {
    let Some(code) = interrupted(regs) else {
        return;
    };
    regs.rax = if code == Errno::ERESTART_RESTARTBLOCK {
        NR_RESTART_SYSCALL
    } else {
        regs.orig_rax
    };
    regs.rip -= SYSCALL_LEN;
    regs.orig_rax = NO_SYSCALL;
}

/// restart_syscall: only sleeps restart this way.
pub fn restart_syscall(regs: &mut PtRegs) -> SysResult {
    super::time::restart_sleep(regs)
}
