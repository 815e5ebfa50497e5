//! Resource limits: getrlimit, setrlimit, prlimit64.
//!
//! Mechanism: a process that has changed a limit has a table, which its children share until one changes it; all others
//! have the defaults and no table. The limit of open files is kept with the descriptors, those of stack, heap and address
//! space with the address space, where they are looked at; the table has what can be asked for.
//!
//! RLIMIT_NPROC is the machine's: there is one user. Linux exempts root from it; here a process is exempt while it has the
//! capability to go beyond limits (CAP_SYS_RESOURCE or CAP_SYS_ADMIN), so a program that gives these up can be held.

use super::{Args, SysResult};
use crate::arch::PtRegs;
use crate::arch::uaccess::{get_user, put_user};
use crate::errno::Errno;
use crate::sched::current_ref;
use core::fmt::Write;
use task::Process;
use task::cred::cap;
use task::limits::{INFINITY, Limit, NR_LIMITS, resource};
use vfs::Text;

/// Name and unit, as /proc/PID/limits shows them.
const NAMES: [(&str, &str); NR_LIMITS] = [
    ("Max cpu time", "seconds"),
    ("Max file size", "bytes"),
    ("Max data size", "bytes"),
    ("Max stack size", "bytes"),
    ("Max core file size", "bytes"),
    ("Max resident set", "bytes"),
    ("Max processes", "processes"),
    ("Max open files", "files"),
    ("Max locked memory", "bytes"),
    ("Max address space", "bytes"),
    ("Max file locks", "locks"),
    ("Max pending signals", "signals"),
    ("Max msgqueue size", "bytes"),
    ("Max nice priority", ""),
    ("Max realtime priority", ""),
    ("Max realtime timeout", "us"),
];

/// /proc/PID/limits.
pub fn limits_text(process: &Process, text: &mut Text<'_>) {
    text.str("Limit                     Soft Limit           Hard Limit           Units     \n");
    for (i, (name, unit)) in NAMES.into_iter().enumerate() {
        let limit = process.limits.get(i);
        let _ = write!(text, "{name:<25} ");
        for value in [limit.soft, limit.hard] {
            let _ = match value {
                INFINITY => write!(text, "{:<20} ", "unlimited"),
                value => write!(text, "{value:<20} "),
            };
        }
        let _ = writeln!(text, "{unit:<10}");
    }
}

pub fn getrlimit(regs: &mut PtRegs) -> SysResult {
    if regs.arg::<0>() >= NR_LIMITS {
        return Err(Errno::EINVAL);
    }
    let limit = current_ref().process.limits.get(regs.arg::<0>());
    put_user(regs.arg::<1>(), &[limit.soft, limit.hard])?;
    Ok(0)
}

pub fn setrlimit(regs: &mut PtRegs) -> SysResult {
    let new: [u64; 2] = get_user(regs.arg::<1>())?;
    change(&current_ref().process, regs.arg::<0>(), new)?;
    Ok(0)
}

pub fn prlimit64(regs: &mut PtRegs) -> SysResult {
    let (pid, which) = (regs.arg::<0>() as i32, regs.arg::<1>());
    let (new_at, old_at) = (regs.arg::<2>(), regs.arg::<3>());
    let new: Option<[u64; 2]> = match new_at {
        0 => None,
        at => Some(get_user(at)?),
    };
    let process = super::process::process_by_id(pid)?;
    if which >= NR_LIMITS {
        return Err(Errno::EINVAL);
    }
    let old = process.limits.get(which);
    if let Some(new) = new {
        change(&process, which, new)?;
    }
    if old_at != 0 {
        put_user(old_at, &[old.soft, old.hard])?;
    }
    Ok(0)
}

fn change(process: &Process, which: usize, [soft, hard]: [u64; 2]) -> Result<(), Errno> {
    if which >= NR_LIMITS || soft > hard {
        return Err(Errno::EINVAL);
    }
    if which == resource::NOFILE && hard > vfs::NR_OPEN_MAX as u64 {
        return Err(Errno::EPERM);
    }
    if hard > process.limits.get(which).hard && !current_ref().cred.capable(cap::SYS_RESOURCE) {
        return Err(Errno::EPERM);
    }
    process.limits.set(which, Limit { soft, hard })?;
    // Where it is looked at.
    let threads = process.lock.lock();
    let Some(thread) = threads.threads.front().cloned() else {
        return Ok(());
    };
    drop(threads);
    match which {
        resource::NOFILE => {
            if let Some(files) = &*thread.files.lock() {
                files.set_limit(soft as u32);
            }
        }
        resource::STACK | resource::AS | resource::DATA => {
            if let Some(mm) = thread.mm_user() {
                apply_to(process, &mm);
            }
        }
        _ => {}
    }
    Ok(())
}

/// Gives an address space the limits that it looks at. May sleep.
pub fn apply_to(process: &Process, mm: &mm::Mm) {
    if process.limits.are_default() {
        return;
    }
    let bytes = |which| usize::try_from(process.limits.get(which).soft).unwrap_or(usize::MAX);
    mm.set_limits(
        bytes(resource::STACK),
        bytes(resource::AS),
        bytes(resource::DATA),
    );
}

/// EAGAIN if the running process may not have another one.
#[inline]
pub fn may_fork() -> Result<(), Errno> {
    let cur = current_ref();
    if cur.process.limits.are_default() {
        return Ok(());
    }
    over_limit(cur)
}

#[cold]
fn over_limit(cur: &task::Task) -> Result<(), Errno> {
    let limit = cur.process.limits.get(resource::NPROC).soft;
    let root = cur.pid().ns().chain().last();
    let count = root.map_or(0, |root| root.nr_pids() as u64);
    if count >= limit && !cur.cred.capable(cap::SYS_RESOURCE) && !cur.cred.capable(cap::SYS_ADMIN) {
        return Err(Errno::EAGAIN);
    }
    Ok(())
}
