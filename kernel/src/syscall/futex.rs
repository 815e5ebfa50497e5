//! futex(2) and robust lists, over the `task::futex` table.

use super::time::read_timespec;
use super::{Args, SysResult};
use crate::arch::uaccess::{self, cmpxchg_user_u32, get_user, put_user};
use crate::arch::{PtRegs, clock};
use crate::errno::Errno;
use crate::sched::{self, current_ref};
use core::sync::atomic::Ordering::Relaxed;
use task::futex::{self, BITSET_ANY, FutexKey, Look};
use task::{Task, TaskError};

const WAIT: usize = 0;
const WAKE: usize = 1;
const REQUEUE: usize = 3;
const CMP_REQUEUE: usize = 4;
const WAKE_OP: usize = 5;
const WAIT_BITSET: usize = 9;
const WAKE_BITSET: usize = 10;
const PRIVATE: usize = 128;
const CLOCK_REALTIME: usize = 256;

const OWNER_DIED: u32 = 0x4000_0000;
const WAITERS: u32 = 0x8000_0000;
const TID_MASK: u32 = 0x3fff_ffff;
/// A list longer than this is taken for a loop.
const ROBUST_LIST_LIMIT: usize = 2048;

/// Private keys name the address space; shared ones the page's object, so that two mappings meet.
fn key(at: usize, private: bool) -> Result<FutexKey, Errno> {
    if !at.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    if at >= uaccess::TASK_SIZE {
        return Err(Errno::EFAULT);
    }
    let mm = current_ref().active_mm.load(Relaxed);
    if !private {
        // SAFETY: the running program's address space.
        if let Some((space, offset)) = unsafe { &*(mm as *const mm::Mm) }.shared_object_at(at) {
            return Ok(FutexKey { space, offset });
        }
    }
    Ok(FutexKey {
        space: mm,
        offset: at,
    })
}

/// Wakes waiters on a word of this program's memory.
pub fn wake_private(at: usize, max: usize) {
    if let Ok(key) = key(at, true) {
        futex::wake(key, max, BITSET_ANY);
    }
    if let Ok(key) = key(at, false)
        && key.offset != at
    {
        futex::wake(key, max, BITSET_ANY);
    }
}

pub fn futex(regs: &mut PtRegs) -> SysResult {
    let (at, op, val) = (regs.arg::<0>(), regs.arg::<1>(), regs.arg::<2>() as u32);
    let private = op & PRIVATE != 0;
    match op & !(PRIVATE | CLOCK_REALTIME) {
        WAIT => wait(regs, at, val, BITSET_ANY, private, false),
        WAIT_BITSET => wait(regs, at, val, regs.arg::<5>() as u32, private, true),
        WAKE => Ok(futex::wake(
            key(at, private)?,
            (val as i32).max(1) as usize,
            BITSET_ANY,
        )),
        WAKE_BITSET if regs.arg::<5>() as u32 == 0 => Err(Errno::EINVAL),
        WAKE_BITSET => Ok(futex::wake(
            key(at, private)?,
            (val as i32).max(1) as usize,
            regs.arg::<5>() as u32,
        )),
        REQUEUE => requeue(regs, private, None),
        CMP_REQUEUE => requeue(regs, private, Some(regs.arg::<5>() as u32)),
        WAKE_OP => wake_op(regs, private),
        _ => Err(Errno::ENOSYS),
    }
}

fn wait(
    regs: &PtRegs,
    at: usize,
    expected: u32,
    bitset: u32,
    private: bool,
    absolute: bool,
) -> SysResult {
    let key = key(at, private)?;
    let deadline = match regs.arg::<3>() {
        0 => None,
        timeout_at => {
            let ns = read_timespec(timeout_at)?;
            let base = match (absolute, regs.arg::<1>() & CLOCK_REALTIME != 0) {
                (false, _) => clock::now_ns(),
                (true, false) => 0,
                (true, true) => 0u64.wrapping_sub(clock::realtime_ns() - clock::now_ns()),
            };
            Some(if absolute {
                base.wrapping_add(ns)
            } else {
                base.saturating_add(ns)
            })
        }
    };
    loop {
        let _: u32 = get_user(at)?; // brings the page in; a bad address ends here
        // Under the bucket's lock preemption is off, so a page that is not there fails the read instead of sleeping.
        let load = || get_user::<u32>(at).map_or(Look::Absent, Look::Value);
        match futex::wait(key, expected, bitset, load, || sched::park_until(deadline)) {
            Err(TaskError::Fault) => continue,
            Err(TaskError::Interrupted) if deadline.is_some() && !absolute => {
                return Err(Errno::ERESTARTNOHAND);
            }
            Err(e) => return Err(e.into()),
            Ok(()) => return Ok(0),
        }
    }
}

fn requeue(regs: &PtRegs, private: bool, expected: Option<u32>) -> SysResult {
    let (at, max_wake, max_move, to) = (
        regs.arg::<0>(),
        regs.arg::<2>() as i32,
        regs.arg::<3>() as i32,
        regs.arg::<4>(),
    );
    if max_wake < 0 || max_move < 0 {
        return Err(Errno::EINVAL);
    }
    let (from, to) = (key(at, private)?, key(to, private)?);
    loop {
        let _: u32 = get_user(at)?;
        let check = || match expected {
            None => Ok(()),
            Some(expected) => match get_user::<u32>(at) {
                Ok(now) if now == expected => Ok(()),
                Ok(_) => Err(TaskError::Again),
                Err(_) => Err(TaskError::Fault),
            },
        };
        match futex::requeue(from, to, max_wake as usize, max_move as usize, check) {
            Err(TaskError::Fault) => continue,
            result => return Ok(result?),
        }
    }
}

/// FUTEX_WAKE_OP: changes the second word, wakes on the first, and on the second if its old value compares.
fn wake_op(regs: &PtRegs, private: bool) -> SysResult {
    let (at, second) = (regs.arg::<0>(), regs.arg::<4>());
    let (max1, max2, code) = (
        regs.arg::<2>() as i32,
        regs.arg::<3>() as i32,
        regs.arg::<5>() as u32,
    );
    let (key1, key2) = (key(at, private)?, key(second, private)?);
    let sign = |v: u32| ((v << 20) as i32) >> 20;
    let mut operand = sign(code >> 12 & 0xfff);
    if code >> 28 & 8 != 0 {
        operand = 1i32.wrapping_shl(operand as u32);
    }
    let old = loop {
        let old: u32 = get_user(second)?;
        let new = match code >> 28 & 7 {
            0 => operand as u32,
            1 => old.wrapping_add(operand as u32),
            2 => old | operand as u32,
            3 => old & !(operand as u32),
            4 => old ^ operand as u32,
            _ => return Err(Errno::ENOSYS),
        };
        if cmpxchg_user_u32(second, old, new)? == old {
            break old as i32;
        }
    };
    let limit = sign(code & 0xfff);
    let also = match code >> 24 & 0xf {
        0 => old == limit,
        1 => old != limit,
        2 => old < limit,
        3 => old <= limit,
        4 => old > limit,
        5 => old >= limit,
        _ => return Err(Errno::ENOSYS),
    };
    let mut woken = futex::wake(key1, max1.max(1) as usize, BITSET_ANY);
    if also {
        woken += futex::wake(key2, max2.max(1) as usize, BITSET_ANY);
    }
    Ok(woken)
}

pub fn set_robust_list(regs: &mut PtRegs) -> SysResult {
    if regs.arg::<1>() != 24 {
        return Err(Errno::EINVAL);
    }
    current_ref().robust_list.store(regs.arg::<0>(), Relaxed);
    Ok(0)
}

pub fn get_robust_list(regs: &mut PtRegs) -> SysResult {
    let head = match regs.arg::<0>() as u32 {
        0 => current_ref().robust_list.load(Relaxed),
        tid => task::pids::find_task(tid, current_ref().pid())
            .ok_or(Errno::ESRCH)?
            .robust_list
            .load(Relaxed),
    };
    put_user(regs.arg::<1>(), &head)?;
    put_user(regs.arg::<2>(), &24usize)?;
    Ok(0)
}

/// Marks the robust futexes that the dying thread holds, and wakes a waiter of each.
pub fn exit_robust_list(task: &Task) {
    let head = task.robust_list.swap(0, Relaxed);
    if head == 0 {
        return;
    }
    let Ok([first, offset, pending]) = get_user::<[usize; 3]>(head) else {
        return;
    };
    let mut entry = first;
    for _ in 0..ROBUST_LIST_LIMIT {
        if entry & !1 == head {
            break;
        }
        let Ok(next) = get_user::<usize>(entry & !1) else {
            return;
        };
        if entry != pending && handle_death(task, (entry & !1).wrapping_add(offset), false).is_err()
        {
            return;
        }
        entry = next;
    }
    if pending != 0 {
        let _ = handle_death(task, (pending & !1).wrapping_add(offset), true);
    }
}

fn handle_death(task: &Task, at: usize, pending: bool) -> Result<(), Errno> {
    loop {
        let word: u32 = get_user(at)?;
        if pending && word & TID_MASK == 0 {
            wake_private(at, 1);
            return Ok(());
        }
        if word & TID_MASK != task.tid() as u32 {
            return Ok(());
        }
        if cmpxchg_user_u32(at, word, word & WAITERS | OWNER_DIED)? == word {
            if word & WAITERS != 0 {
                wake_private(at, 1);
            }
            return Ok(());
        }
    }
}
