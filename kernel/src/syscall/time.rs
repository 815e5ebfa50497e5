//! Clocks and sleeps.

use super::{Args, SysResult};
use crate::arch::uaccess::{get_user, put_user};
use crate::arch::{PtRegs, clock};
use crate::errno::Errno;
use crate::itimer;
use crate::sched::{self, current_ref};
use core::sync::atomic::Ordering::Relaxed;
use slab::KArc;

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

// ------------------------------------------------------------------------------------------ timers

/// A `struct timeval` as nanoseconds.
fn read_timeval(at: usize) -> Result<u64, Errno> {
    let [sec, usec]: [i64; 2] = get_user(at)?;
    if sec < 0 || !(0..1_000_000).contains(&usec) {
        return Err(Errno::EINVAL);
    }
    Ok((sec as u64)
        .saturating_mul(NS)
        .saturating_add(usec as u64 * 1000))
}

fn write_timevals(at: usize, s: itimer::Setting) -> Result<(), Errno> {
    let us = |ns: u64| ns.div_ceil(1000);
    let (interval, value) = (us(s.interval_ns), us(s.value_ns));
    let (i, v) = (interval / 1_000_000, value / 1_000_000);
    Ok(put_user(
        at,
        &[i, interval % 1_000_000, v, value % 1_000_000],
    )?)
}

/// Only ITIMER_REAL: CPU time is not watched.
fn check_itimer(which: usize) -> Result<(), Errno> {
    match which {
        0 => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

pub fn getitimer(regs: &mut PtRegs) -> SysResult {
    check_itimer(regs.arg::<0>())?;
    write_timevals(regs.arg::<1>(), itimer::real())?;
    Ok(0)
}

pub fn setitimer(regs: &mut PtRegs) -> SysResult {
    let new = match regs.arg::<1>() {
        0 => itimer::Setting::default(),
        at => itimer::Setting {
            interval_ns: read_timeval(at)?,
            value_ns: read_timeval(at + 16)?,
        },
    };
    check_itimer(regs.arg::<0>())?;
    let old = itimer::set_real(new)?;
    if regs.arg::<2>() != 0 {
        write_timevals(regs.arg::<2>(), old)?;
    }
    Ok(0)
}

pub fn alarm(regs: &mut PtRegs) -> SysResult {
    let old = itimer::set_real(itimer::Setting {
        value_ns: regs.arg::<0>() as u32 as u64 * NS,
        interval_ns: 0,
    })?;
    // Rounded, but never to 0 while it runs.
    let seconds = (old.value_ns + NS / 2) / NS;
    Ok(seconds.max((old.value_ns != 0) as u64) as usize)
}

pub fn timer_create(regs: &mut PtRegs) -> SysResult {
    const SIGEV_SIGNAL: i32 = 0;
    const SIGEV_NONE: i32 = 1;
    const SIGEV_THREAD_ID: i32 = 4;
    let clock = regs.arg::<0>();
    if !matches!(clock, 0 | 1 | 7) {
        read_clock(clock)?;
        return Err(Errno::ENOTSUP);
    }
    let (notify, value) = match regs.arg::<1>() {
        0 => (itimer::Notify::Process(task::signal::SIGALRM), None),
        at => {
            let value: u64 = get_user(at)?;
            let [signo, how, tid]: [i32; 3] = get_user(at + 8)?;
            let known = (1..=task::signal::NSIG as i32).contains(&signo);
            let notify = match how {
                SIGEV_NONE => itimer::Notify::Nobody,
                SIGEV_SIGNAL if known => itimer::Notify::Process(signo as u32),
                SIGEV_THREAD_ID if known => {
                    let thread = task::pids::find_task(tid as u32, current_ref().pid());
                    let own = thread
                        .filter(|t| KArc::ptr_eq(&t.process, &current_ref().process))
                        .ok_or(Errno::EINVAL)?;
                    itimer::Notify::Thread(signo as u32, own)
                }
                _ => return Err(Errno::EINVAL),
            };
            (notify, Some(value))
        }
    };
    let id = itimer::create(notify, value, clock == CLOCK_REALTIME)?;
    if let Err(e) = put_user(regs.arg::<2>(), &id) {
        itimer::delete(id)?;
        return Err(e.into());
    }
    Ok(0)
}

fn write_timespecs(at: usize, s: itimer::Setting) -> Result<(), Errno> {
    write_timespec(at, s.interval_ns)?;
    write_timespec(at + 16, s.value_ns)
}

pub fn timer_settime(regs: &mut PtRegs) -> SysResult {
    let (at, old_at) = (regs.arg::<2>(), regs.arg::<3>());
    let new = itimer::Setting {
        interval_ns: read_timespec(at)?,
        value_ns: read_timespec(at + 16)?,
    };
    let absolute = regs.arg::<1>() & TIMER_ABSTIME != 0;
    let old = itimer::set(regs.arg::<0>() as i32, new, absolute)?;
    if old_at != 0 {
        write_timespecs(old_at, old)?;
    }
    Ok(0)
}

pub fn timer_gettime(regs: &mut PtRegs) -> SysResult {
    write_timespecs(regs.arg::<1>(), itimer::get(regs.arg::<0>() as i32)?)?;
    Ok(0)
}

/// Times that were missed are not counted.
pub fn timer_getoverrun(regs: &mut PtRegs) -> SysResult {
    itimer::get(regs.arg::<0>() as i32).map(|_| 0)
}

pub fn timer_delete(regs: &mut PtRegs) -> SysResult {
    itimer::delete(regs.arg::<0>() as i32)?;
    Ok(0)
}
