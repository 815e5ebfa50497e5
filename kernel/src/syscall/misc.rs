//! Calls that have one answer here (about users, scheduling classes, memory policy), and prctl.

use super::process::process_by_id;
use super::{Args, SysResult};
use crate::arch::PtRegs;
use crate::arch::uaccess::{self, get_user, put_user, strncpy_from_user};
use crate::errno::Errno;
use crate::sched::current_ref;
use core::sync::atomic::Ordering::Relaxed;
use task::cred::cap;
use task::pids;
use task::signal::NSIG;

/// setuid and its kin: there is one user. EPERM for another one.
pub fn set_id(regs: &mut PtRegs) -> SysResult {
    own_id(regs.arg::<0>())
}

/// setreuid, setregid.
pub fn set_two_ids(regs: &mut PtRegs) -> SysResult {
    own_id(regs.arg::<0>())?;
    own_id(regs.arg::<1>())
}

/// setresuid, setresgid.
pub fn set_three_ids(regs: &mut PtRegs) -> SysResult {
    own_id(regs.arg::<0>())?;
    own_id(regs.arg::<1>())?;
    own_id(regs.arg::<2>())
}

fn own_id(id: usize) -> SysResult {
    match id as u32 {
        0 | u32::MAX => Ok(0),
        _ => Err(Errno::EPERM),
    }
}

/// getresuid, getresgid.
pub fn get_three_ids(regs: &mut PtRegs) -> SysResult {
    for at in [regs.arg::<0>(), regs.arg::<1>(), regs.arg::<2>()] {
        put_user(at, &0u32)?;
    }
    Ok(0)
}

/// setgroups.
pub fn setgroups(regs: &mut PtRegs) -> SysResult {
    for i in 0..regs.arg::<0>().min(65536) {
        own_id(get_user::<u32>(regs.arg::<1>() + i * 4)? as usize)?;
    }
    Ok(0)
}

/// PRIO_PROCESS, PRIO_PGRP and PRIO_USER: is there such a one?
fn priority_target(regs: &PtRegs) -> Result<(), Errno> {
    let who = regs.arg::<1>() as i32;
    match regs.arg::<0>() {
        0 => process_by_id(who).map(drop),
        1 if who == 0 => Ok(()),
        1 => pids::find_pid(who as u32, crate::sched::current_ref().pid())
            .map(drop)
            .ok_or(Errno::ESRCH),
        2 if who == 0 => Ok(()),
        2 => Err(Errno::ESRCH),
        _ => Err(Errno::EINVAL),
    }
}

/// All run at nice 0; the call's answer is 20 less that.
pub fn getpriority(regs: &mut PtRegs) -> SysResult {
    priority_target(regs).map(|()| 20)
}

pub fn setpriority(regs: &mut PtRegs) -> SysResult {
    priority_target(regs).map(|()| 0)
}

/// sched_getscheduler: all are SCHED_OTHER, which is 0.
pub fn sched_getscheduler(regs: &mut PtRegs) -> SysResult {
    super::process::task_by_tid(regs.arg::<0>() as i32).map(|_| 0)
}

pub fn sched_getparam(regs: &mut PtRegs) -> SysResult {
    super::process::task_by_tid(regs.arg::<0>() as i32)?;
    put_user(regs.arg::<1>(), &0u32)?;
    Ok(0)
}

pub fn sched_setparam(regs: &mut PtRegs) -> SysResult {
    super::process::task_by_tid(regs.arg::<0>() as i32)?;
    match get_user::<i32>(regs.arg::<1>())? {
        0 => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

pub fn sched_setscheduler(regs: &mut PtRegs) -> SysResult {
    const RESET_ON_FORK: usize = 0x4000_0000;
    super::process::task_by_tid(regs.arg::<0>() as i32)?;
    let priority: i32 = get_user(regs.arg::<2>())?;
    match (regs.arg::<1>() & !RESET_ON_FORK, priority) {
        (0 | 3 | 5, 0) => Ok(0),              // OTHER, BATCH, IDLE
        (1 | 2, 1..=99) => Err(Errno::EPERM), // FIFO and RR are nobody's
        _ => Err(Errno::EINVAL),
    }
}

fn priority_of(policy: usize, real_time: usize) -> SysResult {
    match policy {
        1 | 2 => Ok(real_time),
        0 | 3 | 5 | 6 => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

pub fn sched_get_priority_max(regs: &mut PtRegs) -> SysResult {
    priority_of(regs.arg::<0>(), 99)
}

pub fn sched_get_priority_min(regs: &mut PtRegs) -> SysResult {
    priority_of(regs.arg::<0>(), 1)
}

pub fn sched_rr_get_interval(regs: &mut PtRegs) -> SysResult {
    super::process::task_by_tid(regs.arg::<0>() as i32)?;
    put_user(regs.arg::<1>(), &[0, ::sched::TIME_SLICE_NS])?;
    Ok(0)
}

/// set_mempolicy, mbind: a hint that is not taken. Pages come from the node of the CPU that first touches them.
pub fn set_mempolicy(regs: &mut PtRegs) -> SysResult {
    policy(regs.arg::<0>())
}

pub fn mbind(regs: &mut PtRegs) -> SysResult {
    if regs.arg::<0>() % 4096 != 0 {
        return Err(Errno::EINVAL);
    }
    policy(regs.arg::<2>())
}

fn policy(mode: usize) -> SysResult {
    const MODE_FLAGS: usize = 0xe000;
    match mode & !MODE_FLAGS {
        0..=6 => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

pub fn get_mempolicy(regs: &mut PtRegs) -> SysResult {
    if regs.arg::<4>() > 7 {
        return Err(Errno::EINVAL);
    }
    if regs.arg::<0>() != 0 {
        put_user(regs.arg::<0>(), &0u32)?;
    }
    if regs.arg::<1>() != 0 {
        put_user(regs.arg::<1>(), &1u64)?;
    }
    Ok(0)
}

/// mlock and munlock: the pages of files of the archive may go, and come back; all other memory is resident.
pub fn resident(regs: &mut PtRegs) -> SysResult {
    let (start, len) = (regs.arg::<0>() & !4095, regs.arg::<1>());
    let end = start.checked_add(len).ok_or(Errno::EINVAL)?;
    let mm = crate::sched::current_ref().mm_user().ok_or(Errno::ENOMEM)?;
    let mut at = start;
    while at < end {
        at = mm.vma_at(at).ok_or(Errno::ENOMEM)?.end;
    }
    Ok(0)
}

pub fn msync(regs: &mut PtRegs) -> SysResult {
    const MS_ASYNC: usize = 1;
    const MS_INVALIDATE: usize = 2;
    const MS_SYNC: usize = 4;
    let flags = regs.arg::<2>();
    if flags & !(MS_ASYNC | MS_INVALIDATE | MS_SYNC) != 0
        || regs.arg::<0>() % 4096 != 0
        || flags & (MS_ASYNC | MS_SYNC) == MS_ASYNC | MS_SYNC
    {
        return Err(Errno::EINVAL);
    }
    resident(regs)?;
    if flags & MS_SYNC != 0 {
        let mm = crate::sched::current_ref().mm_user().ok_or(Errno::ENOMEM)?;
        mm.sync_range(regs.arg::<0>(), regs.arg::<1>());
    }
    Ok(0)
}

/// times: clock ticks since boot, and CPU time.
pub fn times(regs: &mut PtRegs) -> SysResult {
    let cur = crate::sched::current_ref();
    let tick = |ns: u64| ns / 10_000_000;
    if regs.arg::<0>() != 0 {
        let (dead, reaped) = {
            let state = cur.process.lock.lock();
            (state.dead_threads_ns, state.reaped_children_ns)
        };
        let own = crate::sched::runtime_ns(cur) + dead;
        put_user(regs.arg::<0>(), &[tick(own), 0, tick(reaped), 0])?;
    }
    Ok(tick(crate::arch::clock::now_ns()) as usize)
}

/// membarrier: no command is offered.
pub fn membarrier(regs: &mut PtRegs) -> SysResult {
    match regs.arg::<0>() {
        0 => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

pub fn personality(regs: &mut PtRegs) -> SysResult {
    match regs.arg::<0>() as u32 {
        // PER_LINUX, with or without ADDR_NO_RANDOMIZE, which is how things are; or a question.
        0 | 0x4_0000 | u32::MAX => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

pub fn prctl(regs: &mut PtRegs) -> SysResult {
    const PR_SET_PDEATHSIG: usize = 1;
    const PR_GET_PDEATHSIG: usize = 2;
    const PR_GET_DUMPABLE: usize = 3;
    const PR_SET_DUMPABLE: usize = 4;
    const PR_GET_KEEPCAPS: usize = 7;
    const PR_SET_NAME: usize = 15;
    const PR_GET_SECCOMP: usize = 21;
    const PR_SET_NO_NEW_PRIVS: usize = 38;
    const PR_GET_NO_NEW_PRIVS: usize = 39;
    const PR_GET_NAME: usize = 16;
    const PR_CAPBSET_READ: usize = 23;
    const PR_CAPBSET_DROP: usize = 24;
    let task = current_ref();
    match regs.arg::<0>() {
        PR_SET_PDEATHSIG if regs.arg::<1>() > NSIG as usize => Err(Errno::EINVAL),
        PR_SET_PDEATHSIG => {
            let signal = &task.process.pdeath_signal;
            signal.store(regs.arg::<1>() as u32, Relaxed);
            Ok(0)
        }
        PR_GET_PDEATHSIG => {
            let signal = task.process.pdeath_signal.load(Relaxed);
            put_user(regs.arg::<1>(), &signal)?;
            Ok(0)
        }
        PR_GET_DUMPABLE => Ok(1),
        PR_SET_DUMPABLE if regs.arg::<1>() > 1 => Err(Errno::EINVAL),
        PR_SET_DUMPABLE | PR_GET_KEEPCAPS | PR_GET_SECCOMP | PR_GET_NO_NEW_PRIVS => Ok(0),
        // There are no set-id programs to keep from new privileges.
        PR_SET_NO_NEW_PRIVS if regs.arg::<1>() == 1 && regs.arg::<2>() == 0 => Ok(0),
        PR_SET_NAME => {
            let mut name = [0u8; 16];
            let len = strncpy_from_user(&mut name, regs.arg::<1>())?.unwrap_or(15);
            task.set_comm(&name[..len.min(15)]);
            Ok(0)
        }
        PR_GET_NAME => {
            let name = task.comm_bytes().0;
            uaccess::copy_to_user(regs.arg::<1>(), &name)?;
            Ok(0)
        }
        PR_CAPBSET_READ | PR_CAPBSET_DROP if regs.arg::<1>() > cap::LAST as usize => {
            Err(Errno::EINVAL)
        }
        PR_CAPBSET_READ => Ok(task.cred.is_bounding(regs.arg::<1>() as u32) as usize),
        PR_CAPBSET_DROP => {
            task.cred.drop_bounding(regs.arg::<1>() as u32)?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}
