//! Signals: actions, masks, sending.

use super::{Args, SysResult};
use crate::arch::uaccess::{Plain, get_user, put_user};
use crate::arch::{PtRegs, clock};
use crate::errno::Errno;
use crate::sched::{current, current_ref};
use core::sync::atomic::Ordering::Relaxed;
use slab::KArc;
use task::pids;
use task::signal::{self, NSIG, SI_TKILL, SI_USER, SIG_IGN, SigAction, SigInfo, UNBLOCKABLE};
use task::task::{AltStack, flags};
use task::{Process, Task};

/// The kernel's `struct sigaction`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UserAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}
// SAFETY: four words, no padding.
unsafe impl Plain for UserAction {}

#[repr(C)]
#[derive(Clone, Copy)]
struct UserStack {
    base: usize,
    flags: i32,
    pad: i32,
    size: usize,
}
// SAFETY: the padding is a field.
unsafe impl Plain for UserStack {}

const SS_ONSTACK: i32 = 1;
const SS_DISABLE: i32 = 2;
const SS_AUTODISARM: i32 = 1 << 31;
const MIN_STACK: usize = 2048;

pub fn rt_sigaction(regs: &mut PtRegs) -> SysResult {
    let (signo, new_at, old_at) = (regs.arg::<0>() as u32, regs.arg::<1>(), regs.arg::<2>());
    if regs.arg::<3>() != 8 || !(1..=NSIG).contains(&signo) {
        return Err(Errno::EINVAL);
    }
    let new: Option<UserAction> = if new_at != 0 {
        Some(get_user(new_at)?)
    } else {
        None
    };
    if new.is_some() && UNBLOCKABLE & signal::bit(signo) != 0 {
        return Err(Errno::EINVAL);
    }
    let task = current_ref();
    let sighand = task.process.sighand().clone();
    let old = sighand.action(signo);
    if let Some(a) = new {
        let action = SigAction {
            handler: a.handler,
            flags: a.flags,
            restorer: a.restorer,
            mask: a.mask & !UNBLOCKABLE,
        };
        sighand.set_action(signo, action)?;
        if a.handler <= SIG_IGN {
            signal::discard_if_ignored(task, signo);
        }
    }
    if old_at != 0 {
        let a = UserAction {
            handler: old.handler,
            flags: old.flags,
            restorer: old.restorer,
            mask: old.mask,
        };
        put_user(old_at, &a)?;
    }
    Ok(0)
}

pub fn rt_sigprocmask(regs: &mut PtRegs) -> SysResult {
    let (how, new_at, old_at) = (regs.arg::<0>(), regs.arg::<1>(), regs.arg::<2>());
    if regs.arg::<3>() != 8 {
        return Err(Errno::EINVAL);
    }
    let task = current_ref();
    let old = task.blocked.load(Relaxed);
    if new_at != 0 {
        let set: u64 = get_user(new_at)?;
        let new = match how {
            0 => old | set,
            1 => old & !set,
            2 => set,
            _ => return Err(Errno::EINVAL),
        };
        signal::set_blocked(task, new);
    }
    if old_at != 0 {
        put_user(old_at, &old)?;
    }
    Ok(0)
}

pub fn rt_sigreturn(regs: &mut PtRegs) -> SysResult {
    if crate::signal::sigreturn(regs).is_err() {
        crate::signal::force(signal::SIGSEGV, crate::signal::SI_KERNEL, 0);
    }
    Ok(regs.rax as usize)
}

pub fn rt_sigpending(regs: &mut PtRegs) -> SysResult {
    if regs.arg::<1>() > 8 {
        return Err(Errno::EINVAL);
    }
    let task = current_ref();
    put_user(
        regs.arg::<0>(),
        &(signal::pending_set(task) & task.blocked.load(Relaxed)),
    )?;
    Ok(0)
}

/// Sleeps until a signal that is handled or ends the process.
fn sleep_for_signal() -> SysResult {
    while !ksync::arch::signal_pending() {
        ksync::arch::park();
    }
    Err(Errno::ERESTARTNOHAND)
}

pub fn pause(_: &mut PtRegs) -> SysResult {
    sleep_for_signal()
}

pub fn rt_sigsuspend(regs: &mut PtRegs) -> SysResult {
    if regs.arg::<1>() != 8 {
        return Err(Errno::EINVAL);
    }
    let mask: u64 = get_user(regs.arg::<0>())?;
    let task = current_ref();
    task.saved_blocked
        .store(task.blocked.load(Relaxed), Relaxed);
    signal::set_blocked(task, mask);
    // RESTORE_SIGMASK is also work for the way out, so it is set only after the sleep.
    while !task.has_flag(flags::SIGPENDING) {
        ksync::arch::park();
    }
    task.set_flag(flags::RESTORE_SIGMASK);
    Err(Errno::ERESTARTNOHAND)
}

pub fn sigaltstack(regs: &mut PtRegs) -> SysResult {
    let task = current_ref();
    let old = *task.altstack.lock();
    let on_it = old.size > 0 && (regs.rsp as usize).wrapping_sub(old.base + 1) < old.size;
    let new_at = regs.arg::<0>();
    if new_at != 0 {
        let new: UserStack = get_user(new_at)?;
        if on_it {
            return Err(Errno::EPERM);
        }
        let mode = new.flags & !SS_AUTODISARM;
        let stack = match mode {
            SS_DISABLE => AltStack::default(),
            0 | SS_ONSTACK if new.size < MIN_STACK => return Err(Errno::ENOMEM),
            0 | SS_ONSTACK => AltStack {
                base: new.base,
                size: new.size,
                flags: new.flags & SS_AUTODISARM,
            },
            _ => return Err(Errno::EINVAL),
        };
        *task.altstack.lock() = stack;
    }
    if regs.arg::<1>() != 0 {
        let flags = if old.size == 0 {
            SS_DISABLE
        } else if on_it {
            SS_ONSTACK
        } else {
            0
        };
        put_user(
            regs.arg::<1>(),
            &UserStack {
                base: old.base,
                flags: flags | old.flags,
                pad: 0,
                size: old.size,
            },
        )?;
    }
    Ok(0)
}

pub fn check_signo(signo: u32) -> Result<u32, Errno> {
    if signo > NSIG {
        Err(Errno::EINVAL)
    } else {
        Ok(signo)
    }
}

/// The sender as the receiver sees it.
pub fn user_info(signo: u32, code: i32, receiver: &Process) -> SigInfo {
    let pid = pids::nr_in(&current_ref().process.pid, &receiver.pid);
    SigInfo {
        signo,
        code,
        pid,
        ..SigInfo::default()
    }
}

fn send(process: &Process, signo: u32) {
    if signo != 0 {
        signal::send_to_process(process, &user_info(signo, SI_USER, process));
    }
}

pub fn kill(regs: &mut PtRegs) -> SysResult {
    kill_process(regs.arg::<0>() as i32, check_signo(regs.arg::<1>() as u32)?)
}

/// kill, for whoever `pid` stands for.
pub fn kill_process(pid: i32, signo: u32) -> SysResult {
    let me = current_ref();
    match pid {
        1.. => {
            let target = if pid == me.process.tgid() {
                None
            } else {
                Some(find(pid)?)
            };
            send(target.as_ref().map_or(&me.process, |t| t), signo);
            Ok(0)
        }
        0 => {
            let pgrp = me.process.lock.lock().pgrp.clone();
            kill_group(&pgrp, signo)
        }
        -1 => kill_all(signo),
        i32::MIN => Err(Errno::ESRCH),
        _ => {
            let pgrp = pids::find_pid(pid.unsigned_abs(), me.pid()).ok_or(Errno::ESRCH)?;
            kill_group(&pgrp, signo)
        }
    }
}

fn find(pid: i32) -> Result<KArc<Process>, Errno> {
    pids::find_process(pid as u32, current_ref().pid()).ok_or(Errno::ESRCH)
}

/// Members are collected under the pid's lock in batches and signalled without it.
fn kill_group(pgrp: &task::TaskPid, signo: u32) -> SysResult {
    let mut found = 0;
    pids::for_each_in_group(pgrp, |process| {
        found += 1;
        send(process, signo);
    });
    if found == 0 { Err(Errno::ESRCH) } else { Ok(0) }
}

fn kill_all(signo: u32) -> SysResult {
    let me = current();
    let (mut nr, mut found) = (2, 0);
    while let Some((at, process)) = pids::next_process(nr, me.pid().ns()) {
        // Not oneself, and (from 2 on) not the first process; those of inner namespaces decide for themselves.
        if !KArc::ptr_eq(&process, &me.process) {
            found += 1;
            send(&process, signo);
        }
        nr = at + 1;
    }
    if found == 0 { Err(Errno::ESRCH) } else { Ok(0) }
}

fn send_to_thread(tgid: Option<i32>, tid: i32, signo: u32) -> SysResult {
    if tid <= 0 || tgid.is_some_and(|t| t <= 0) {
        return Err(Errno::EINVAL);
    }
    let signo = check_signo(signo)?;
    let target: KArc<Task> =
        pids::find_task(tid as u32, current_ref().pid()).ok_or(Errno::ESRCH)?;
    if tgid.is_some_and(|t| pids::nr_in(&target.process.pid, current_ref().pid()) != t) {
        return Err(Errno::ESRCH);
    }
    if signo != 0 {
        signal::send_to_task(&target, &user_info(signo, SI_TKILL, &target.process));
    }
    Ok(0)
}

pub fn tgkill(regs: &mut PtRegs) -> SysResult {
    send_to_thread(
        Some(regs.arg::<0>() as i32),
        regs.arg::<1>() as i32,
        regs.arg::<2>() as u32,
    )
}

pub fn tkill(regs: &mut PtRegs) -> SysResult {
    send_to_thread(None, regs.arg::<0>() as i32, regs.arg::<1>() as u32)
}

/// Waits for one of a set of signals and takes it. EAGAIN: the time is up; EINTR: another came.
pub fn rt_sigtimedwait(regs: &mut PtRegs) -> SysResult {
    let (info_at, time_at) = (regs.arg::<1>(), regs.arg::<2>());
    if regs.arg::<3>() != 8 {
        return Err(Errno::EINVAL);
    }
    let set = get_user::<u64>(regs.arg::<0>())? & !signal::UNBLOCKABLE;
    let wait_ns = match time_at {
        0 => None,
        at => Some(super::time::read_timespec(at)?),
    };
    let task = current_ref();
    let taken = match signal::take_of(task, set) {
        None if wait_ns == Some(0) => Err(Errno::EAGAIN),
        None => {
            signal::begin_wait(task, set);
            let deadline = wait_ns.map(|ns| clock::now_ns().saturating_add(ns));
            let result = wait_for(task, set, deadline);
            signal::end_wait(task);
            result
        }
        Some(info) => Ok(info),
    }?;
    if info_at != 0 {
        put_user(info_at, &crate::signal::siginfo_words(&taken))?;
    }
    Ok(taken.signo as usize)
}

fn wait_for(task: &Task, set: u64, deadline: Option<u64>) -> Result<signal::SigInfo, Errno> {
    loop {
        if let Some(info) = signal::take_of(task, set) {
            return Ok(info);
        }
        signal::recalc(task);
        if ksync::arch::signal_pending() {
            return Err(Errno::EINTR);
        }
        if deadline.is_some_and(|at| clock::now_ns() >= at) {
            return Err(Errno::EAGAIN);
        }
        crate::sched::park_until(deadline);
    }
}
