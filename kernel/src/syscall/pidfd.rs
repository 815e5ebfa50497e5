//! Calls about a process by descriptor, waitid, setns and capabilities.

use super::{Args, SysResult, file, sig};
use crate::arch::PtRegs;
use crate::arch::uaccess::{get_user, put_user};
use crate::errno::Errno;
use crate::pidfd::{self, PidFd};
use crate::sched::current_ref;
use slab::KArc;
use task::cred::{CapSets, cap};
use task::fork::clone as flag;
use task::pids;
use task::wait::{Which, options};
use vfs::{File, OpenFlags};

/// The pidfd behind a descriptor, or what is open there instead. EBADF.
fn open_pidfd(fd: i32) -> Result<(KArc<File>, Option<KArc<PidFd>>), Errno> {
    let file = file::get(fd)?;
    let pidfd = file.anon_arc::<PidFd>();
    Ok((file, pidfd))
}

pub fn pidfd_open(regs: &mut PtRegs) -> SysResult {
    let (pid, flags) = (regs.arg::<0>() as i32, regs.arg::<1>());
    if flags & !(OpenFlags::NONBLOCK.bits() as usize) != 0 || pid <= 0 {
        return Err(Errno::EINVAL);
    }
    let cur = current_ref();
    let found = pids::find_pid(pid as u32, cur.pid()).ok_or(Errno::ESRCH)?;
    let Some(leader) = found.task(::pid::PidType::Tgid) else {
        // A thread's id, or nobody's any more.
        return Err(if found.is_used() {
            Errno::ENOENT
        } else {
            Errno::ESRCH
        });
    };
    let files = cur.files.lock().clone().ok_or(Errno::EBADF)?;
    let slot = files.reserve(true)?;
    let flags = OpenFlags::from_bits_truncate(flags as u32);
    Ok(slot.install(pidfd::file(leader.process.clone(), flags)?) as usize)
}

pub fn pidfd_send_signal(regs: &mut PtRegs) -> SysResult {
    if regs.arg::<3>() != 0 {
        return Err(Errno::EINVAL);
    }
    let pidfd = open_pidfd(regs.arg::<0>() as i32)?.1.ok_or(Errno::EBADF)?;
    let cur = current_ref();
    // Only downwards: the target must have a number here.
    if ::pid::pid_nr_ns(pidfd.pid(), cur.pid().ns()) == 0 && !pidfd.is_reaped() {
        return Err(Errno::EINVAL);
    }
    let signo = regs.arg::<1>() as u32;
    let info_at = regs.arg::<2>();
    let own = KArc::ptr_eq(pidfd.process(), &cur.process);
    let code = if info_at != 0 {
        let [given, _, code]: [i32; 3] = get_user(info_at)?;
        if given != signo as i32 {
            return Err(Errno::EINVAL);
        }
        if !own && (code >= 0 || code == task::signal::SI_TKILL) {
            return Err(Errno::EPERM);
        }
        code
    } else {
        task::signal::SI_USER
    };
    let signo = sig::check_signo(signo)?;
    if pidfd.is_reaped() {
        return Err(Errno::ESRCH);
    }
    if signo != 0 {
        let info = sig::user_info(signo, code, pidfd.process());
        task::signal::send_to_process(pidfd.process(), &info);
    }
    Ok(0)
}

pub fn waitid(regs: &mut PtRegs) -> SysResult {
    let (kind, id, info_at) = (regs.arg::<0>(), regs.arg::<1>() as i32, regs.arg::<2>());
    let mut opts = regs.arg::<3>() as u32;
    const EVENTS: u32 = options::WEXITED | options::WUNTRACED | options::WCONTINUED;
    const KNOWN: u32 = EVENTS
        | options::WNOHANG
        | options::WNOWAIT
        | options::WNOTHREAD
        | options::WALL
        | options::WCLONE;
    if opts & !KNOWN != 0 || opts & EVENTS == 0 {
        return Err(Errno::EINVAL);
    }
    if opts & options::WEXITED == 0 {
        opts |= options::NO_EXITED;
    }
    let cur = current_ref();
    let named = |nr: i32| pids::find_pid(nr as u32, cur.pid());
    let mut would_block = false;
    let which = match (kind, id) {
        (0, _) => Which::Any,
        (1, 1..) => named(id).map_or(Which::Nobody, Which::Pid),
        (2, 0) => Which::Group(cur.process.lock.lock().pgrp.clone()),
        (2, 1..) => named(id).map_or(Which::Nobody, Which::Group),
        (3, 0..) => {
            let (file, pidfd) = open_pidfd(id)?;
            let pidfd = pidfd.ok_or(Errno::EBADF)?;
            if file.flags().contains(OpenFlags::NONBLOCK) && opts & options::WNOHANG == 0 {
                opts |= options::WNOHANG;
                would_block = true;
            }
            Which::Pid(pidfd.pid().clone())
        }
        _ => return Err(Errno::EINVAL),
    };
    let reaped = task::wait::wait(cur, &which, opts)?;
    if reaped.is_none() && would_block {
        return Err(Errno::EAGAIN);
    }
    if info_at != 0 {
        let (signo, code, pid, status) = match reaped {
            None => (0, 0, 0, 0),
            Some(r) => {
                let (code, status) = task::exit::decode_status(r.status);
                (task::signal::SIGCHLD as i32, code, r.pid, status)
            }
        };
        put_user(info_at, &[signo, 0, code])?;
        put_user(info_at + 16, &[pid, 0, status])?;
    }
    if let Some(r) = reaped
        && regs.arg::<4>() != 0
    {
        put_user(regs.arg::<4>(), &super::process::rusage(r.runtime_ns))?;
    }
    Ok(0)
}

/// Only pid namespaces, only by a pidfd of a process in one.
pub fn setns(regs: &mut PtRegs) -> SysResult {
    let kind = regs.arg::<1>() as u64;
    let pidfd = open_pidfd(regs.arg::<0>() as i32)?.1.ok_or(Errno::EINVAL)?;
    if kind != flag::NEWPID {
        return Err(Errno::EINVAL);
    }
    if pidfd.is_reaped() {
        return Err(Errno::ESRCH);
    }
    let cur = current_ref();
    if !cur.cred.capable(cap::SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let target = pidfd.pid().ns();
    if !target.is_inside(cur.pid().ns()) {
        return Err(Errno::EINVAL);
    }
    let new = task::NsRef::new(target);
    let old = core::mem::replace(&mut *cur.pid_ns_for_children.lock(), new);
    drop(old);
    Ok(0)
}

const CAP_V1: u32 = 0x1998_0330;
const CAP_V2: u32 = 0x2007_1026;
const CAP_V3: u32 = 0x2008_0522;

/// Reads a capability header: halves of a set, and the thread. An unknown version is answered with ours.
fn cap_header(at: usize) -> Result<(usize, i32), Errno> {
    let version: u32 = get_user(at)?;
    let halves = match version {
        CAP_V1 => 1,
        CAP_V2 | CAP_V3 => 2,
        _ => {
            put_user(at, &CAP_V3)?;
            return Err(Errno::EINVAL);
        }
    };
    Ok((halves, get_user(at + 4)?))
}

pub fn capget(regs: &mut PtRegs) -> SysResult {
    let (header, data) = (regs.arg::<0>(), regs.arg::<1>());
    let (halves, tid) = match cap_header(header) {
        Err(Errno::EINVAL) if data == 0 => return Ok(0),
        other => other?,
    };
    if tid < 0 {
        return Err(Errno::EINVAL);
    }
    let sets = super::process::task_by_tid(tid)?.cred.get();
    if data == 0 {
        return Ok(0);
    }
    for half in 0..halves {
        let part = |set: u64| (set >> (32 * half)) as u32;
        let words = [
            part(sets.effective),
            part(sets.permitted),
            part(sets.inheritable),
        ];
        put_user(data + half * 12, &words)?;
    }
    Ok(0)
}

pub fn capset(regs: &mut PtRegs) -> SysResult {
    let (header, data) = (regs.arg::<0>(), regs.arg::<1>());
    let (halves, tid) = cap_header(header)?;
    let cur = current_ref();
    if tid != 0 && tid != cur.tid() {
        return Err(Errno::EPERM);
    }
    let mut sets = CapSets {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    };
    for half in 0..halves {
        let words: [u32; 3] = get_user(data + half * 12)?;
        let [effective, permitted, inheritable] = words.map(|w| u64::from(w) << (32 * half));
        sets.effective |= effective;
        sets.permitted |= permitted;
        sets.inheritable |= inheritable;
    }
    cur.cred.set(sets)?;
    Ok(0)
}
