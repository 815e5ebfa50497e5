//! Clocks and sleeps.

use super::{Args, SysResult};
use crate::arch::uaccess::{get_user, put_user};
use crate::arch::{PtRegs, clock};
use crate::errno::Errno;
use crate::sched::{self, current_ref};
use core::sync::atomic::Ordering::Relaxed;

const CLOCK_REALTIME: usize = 0;
const CLOCK_PROCESS_CPUTIME: usize = 2;
const CLOCK_THREAD_CPUTIME: usize = 3;
const TIMER_ABSTIME: usize = 1;
const NS: u64 = 1_000_000_000;

/// A `struct timespec` as nanoseconds.
pub fn read_timespec(at: usize) -> Result<u64, Errno> {
    let [sec, nsec]: [i64; 2] = get_user(at)?;
    if sec < 0 || !(0..NS as i64).contains(&nsec) {
        return Err(Errno::EINVAL);
    }
    Ok((sec as u64).saturating_mul(NS).saturating_add(nsec as u64))
}

fn write_timespec(at: usize, ns: u64) -> Result<(), Errno> {
    Ok(put_user(at, &[ns / NS, ns % NS])?)
}

fn read_clock(id: usize) -> Result<u64, Errno> {
    Ok(match id {
        CLOCK_REALTIME | 5 | 11 => clock::realtime_ns(),
        1 | 4 | 6 | 7 => clock::now_ns(),
        CLOCK_PROCESS_CPUTIME | CLOCK_THREAD_CPUTIME => {
            let entity = &current_ref().entity;
            entity.runtime_ns.load(Relaxed) + clock::now_ns() - entity.stint_start_ns.load(Relaxed)
        }
        _ => return Err(Errno::EINVAL),
    })
}

pub fn clock_gettime(regs: &mut PtRegs) -> SysResult {
    write_timespec(regs.arg::<1>(), read_clock(regs.arg::<0>())?)?;
    Ok(0)
}

pub fn clock_getres(regs: &mut PtRegs) -> SysResult {
    read_clock(regs.arg::<0>())?;
    if regs.arg::<1>() != 0 {
        write_timespec(regs.arg::<1>(), 1)?;
    }
    Ok(0)
}

pub fn gettimeofday(regs: &mut PtRegs) -> SysResult {
    let us = clock::realtime_ns() / 1000;
    if regs.arg::<0>() != 0 {
        put_user(regs.arg::<0>(), &[us / 1_000_000, us % 1_000_000])?;
    }
    if regs.arg::<1>() != 0 {
        put_user(regs.arg::<1>(), &[0u32; 2])?;
    }
    Ok(0)
}

pub fn time(regs: &mut PtRegs) -> SysResult {
    let seconds = clock::realtime_ns() / NS;
    if regs.arg::<0>() != 0 {
        put_user(regs.arg::<0>(), &seconds)?;
    }
    Ok(seconds as usize)
}

/// Sleeps until the clock reads `deadline`. `remaining_at`: where the rest goes if a handler interrupts.
fn sleep_until(deadline: u64, remaining_at: usize, absolute: bool) -> SysResult {
    loop {
        if clock::now_ns() >= deadline {
            return Ok(0);
        }
        if ksync::arch::signal_pending() {
            let left = deadline.saturating_sub(clock::now_ns());
            if absolute {
                return Err(Errno::ERESTARTNOHAND);
            }
            if remaining_at != 0 {
                write_timespec(remaining_at, left)?;
            }
            current_ref().restart_deadline_ns.store(deadline, Relaxed);
            current_ref()
                .restart_remaining_at
                .store(remaining_at, Relaxed);
            return Err(Errno::ERESTART_RESTARTBLOCK);
        }
        sched::park_until(Some(deadline));
    }
}

/// Continues a sleep that a signal without a handler interrupted.
pub fn restart_sleep(_regs: &mut PtRegs) -> SysResult {
    let task = current_ref();
    sleep_until(
        task.restart_deadline_ns.load(Relaxed),
        task.restart_remaining_at.load(Relaxed),
        false,
    )
}

pub fn nanosleep(regs: &mut PtRegs) -> SysResult {
    let ns = read_timespec(regs.arg::<0>())?;
    sleep_until(clock::now_ns().saturating_add(ns), regs.arg::<1>(), false)
}

pub fn clock_nanosleep(regs: &mut PtRegs) -> SysResult {
    let (id, flags) = (regs.arg::<0>(), regs.arg::<1>());
    let now = read_clock(id)?;
    let ns = read_timespec(regs.arg::<2>())?;
    if flags & TIMER_ABSTIME == 0 {
        return sleep_until(clock::now_ns().saturating_add(ns), regs.arg::<3>(), false);
    }
    let left = ns.saturating_sub(now);
    sleep_until(clock::now_ns().saturating_add(left), 0, true)
}
