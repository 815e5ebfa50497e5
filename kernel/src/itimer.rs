//! Timers that send signals: alarm, setitimer, timer_create.
//!
//! Problem: a signal takes locks that interrupt handlers may not take. Mechanism: one thread of the kernel sleeps until
//! the first deadline and sends what is due; who arms a timer unparks it. It lives in the idle threads' pid namespace,
//! where no program sees it. All timers are in one list: they are few, and a look at each is cheap beside a signal.
//!
//! Lock order: `itimers` is a leaf spinlock; signals are sent with it released.
//!
//! INV-ITIMER-1: a process's timers leave the list before its last thread is gone.

use crate::arch::clock;
use crate::errno::Errno;
use crate::process;
use crate::sched::{self, current_ref};
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::Relaxed};
use ksync::arch::ThreadPtr;
use ksync::{SpinLock, lock_class};
use slab::{KArc, List};
use task::signal::{self, SigInfo, Signo};
use task::{Process, Task};

/// The id of the timer that alarm and setitimer share; timer_create's count from 0.
const ITIMER_REAL: i32 = -1;
/// Timers of one process, at most.
const NR_MAX: i32 = 1024;
const NEVER: u64 = u64::MAX;
/// `si_code` of timer_create's timers.
const SI_TIMER: i32 = -2;

/// Whom a timer tells.
#[derive(Clone)]
pub enum Notify {
    /// Nobody.
    Nobody,
    /// The process.
    Process(Signo),
    /// One thread.
    Thread(Signo, KArc<Task>),
}

struct Timer {
    process: KArc<Process>,
    id: i32,
    notify: Notify,
    /// What goes with the signal.
    value: u64,
    /// The clock of timer_settime's absolute times: wall time, or time since boot.
    wall: bool,
    /// Under the list's lock.
    deadline_ns: AtomicU64,
    interval_ns: AtomicU64,
}
slab::object!(Timer, "posix_timers", links = 1);

static TIMERS: SpinLock<List<Timer, 0>> = SpinLock::new(List::new(), lock_class!("itimers"));
/// Timers in the list. Written under its lock.
static NR_TIMERS: AtomicUsize = AtomicUsize::new(0);
static THREAD: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Time left, and the period; both 0 where there is none.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Setting {
    /// Nanoseconds until it goes off; 0: disarmed.
    pub value_ns: u64,
    /// Nanoseconds from one time to the next; 0: once.
    pub interval_ns: u64,
}

/// Starts the thread. Boot, by the first idle thread, after the first process.
pub fn start() {
    let thread = process::hidden_thread("ktimerd", run, 0);
    THREAD.store(thread.thread_ptr().0, Relaxed);
}

extern "C" fn run(_: usize) {
    loop {
        while let Some(timer) = take_due(clock::now_ns()) {
            send(&timer);
        }
        let next = {
            let timers = TIMERS.lock();
            timers.iter().map(|t| t.deadline_ns.load(Relaxed)).min()
        };
        sched::park_until(next.filter(|&ns| ns != NEVER));
    }
}

/// A timer whose time has come, set to its next time.
fn take_due(now: u64) -> Option<KArc<Timer>> {
    let timers = TIMERS.lock();
    let due = timers
        .iter()
        .find(|t| t.deadline_ns.load(Relaxed) <= now)?
        .clone();
    let interval = due.interval_ns.load(Relaxed);
    let next = match interval {
        0 => NEVER,
        // Periods that were missed are not made up for.
        n => due.deadline_ns.load(Relaxed).saturating_add(n).max(now + 1),
    };
    due.deadline_ns.store(next, Relaxed);
    Some(due)
}

fn send(timer: &Timer) {
    let code = if timer.id == ITIMER_REAL {
        signal::SI_KERNEL
    } else {
        SI_TIMER
    };
    let info = |signo| SigInfo {
        code,
        value: timer.value,
        ..SigInfo::kernel(signo)
    };
    match &timer.notify {
        Notify::Nobody => {}
        Notify::Process(signo) => signal::send_to_process(&timer.process, &info(*signo)),
        Notify::Thread(signo, thread) => signal::send_to_task(thread, &info(*signo)),
    }
}

fn find(timers: &List<Timer, 0>, process: &KArc<Process>, id: i32) -> Option<KArc<Timer>> {
    let mine = |t: &&KArc<Timer>| t.id == id && KArc::ptr_eq(&t.process, process);
    timers.iter().find(mine).cloned()
}

fn left(timer: &Timer) -> Setting {
    let deadline = timer.deadline_ns.load(Relaxed);
    Setting {
        value_ns: match deadline {
            NEVER => 0,
            ns => ns.saturating_sub(clock::now_ns()).max(1),
        },
        interval_ns: timer.interval_ns.load(Relaxed),
    }
}

fn arm(timer: &Timer, deadline: u64, interval: u64) {
    timer.deadline_ns.store(deadline, Relaxed);
    timer.interval_ns.store(interval, Relaxed);
}

fn wake() {
    let thread = THREAD.load(Relaxed);
    // None at a benchmark (`start`).
    if !thread.is_null() {
        ksync::arch::unpark(ThreadPtr(thread));
    }
}

/// Sets the running process's ITIMER_REAL; returns what it was. ENOMEM.
pub fn set_real(new: Setting) -> Result<Setting, Errno> {
    let process = &current_ref().process;
    let deadline = match new.value_ns {
        0 => NEVER,
        ns => clock::now_ns().saturating_add(ns),
    };
    let fresh = KArc::new(Timer {
        process: process.clone(),
        id: ITIMER_REAL,
        notify: Notify::Process(signal::SIGALRM),
        value: 0,
        wall: false,
        deadline_ns: AtomicU64::new(deadline),
        interval_ns: AtomicU64::new(new.interval_ns),
    })?;
    let mut timers = TIMERS.lock();
    let old = find(&timers, process, ITIMER_REAL);
    let was = old.as_ref().map(|t| left(t)).unwrap_or_default();
    let removed = old.and_then(|old| timers.remove(&old));
    if deadline != NEVER {
        let linked = timers.push_back(fresh);
        debug_assert!(linked.is_ok(), "a new timer is in no list");
    }
    NR_TIMERS.store(timers.len(), Relaxed);
    drop(timers);
    drop(removed);
    wake();
    Ok(was)
}

/// What ITIMER_REAL is set to.
pub fn real() -> Setting {
    let timers = TIMERS.lock();
    let timer = find(&timers, &current_ref().process, ITIMER_REAL);
    timer.map(|t| left(&t)).unwrap_or_default()
}

/// A disarmed timer of the running process; its id. EAGAIN: too many; ENOMEM.
pub fn create(notify: Notify, value: Option<u64>, wall: bool) -> Result<i32, Errno> {
    let process = &current_ref().process;
    let room = KArc::<Timer>::try_uninit()?;
    let mut timers = TIMERS.lock();
    let id = (0..NR_MAX)
        .find(|&id| find(&timers, process, id).is_none())
        .ok_or(Errno::EAGAIN)?;
    let timer = room.write(Timer {
        process: process.clone(),
        id,
        notify,
        value: value.unwrap_or(id as u64),
        wall,
        deadline_ns: AtomicU64::new(NEVER),
        interval_ns: AtomicU64::new(0),
    });
    let linked = timers.push_back(timer);
    debug_assert!(linked.is_ok(), "a new timer is in no list");
    NR_TIMERS.store(timers.len(), Relaxed);
    Ok(id)
}

/// Arms a timer, at a time of its clock if `absolute`; returns what it was. EINVAL: no such timer.
pub fn set(id: i32, new: Setting, absolute: bool) -> Result<Setting, Errno> {
    let timers = TIMERS.lock();
    let timer = find_posix(&timers, id)?;
    let was = left(&timer);
    let now = clock::now_ns();
    let offset = if timer.wall {
        clock::realtime_ns() - now
    } else {
        0
    };
    let deadline = match new.value_ns {
        0 => NEVER,
        ns if absolute => ns.saturating_sub(offset),
        ns => now.saturating_add(ns),
    };
    arm(&timer, deadline, new.interval_ns);
    drop(timers);
    wake();
    Ok(was)
}

fn find_posix(timers: &List<Timer, 0>, id: i32) -> Result<KArc<Timer>, Errno> {
    let timer = find(timers, &current_ref().process, id).filter(|t| t.id >= 0);
    timer.ok_or(Errno::EINVAL)
}

/// What a timer is set to. EINVAL: no such timer.
pub fn get(id: i32) -> Result<Setting, Errno> {
    Ok(left(&*find_posix(&TIMERS.lock(), id)?))
}

/// Takes a timer away. EINVAL: no such timer.
pub fn delete(id: i32) -> Result<(), Errno> {
    let mut timers = TIMERS.lock();
    let timer = find_posix(&timers, id)?;
    let removed = timers.remove(&timer);
    NR_TIMERS.store(timers.len(), Relaxed);
    drop(timers);
    drop(removed);
    Ok(())
}

/// Takes a process's timers away; exec keeps ITIMER_REAL.
pub fn forget(process: &KArc<Process>, exec: bool) {
    if NR_TIMERS.load(Relaxed) == 0 {
        return; // as nearly always: no lock that all exits share
    }
    loop {
        let mut timers = TIMERS.lock();
        let gone = timers
            .remove_first(|t| KArc::ptr_eq(&t.process, process) && !(exec && t.id == ITIMER_REAL));
        NR_TIMERS.store(timers.len(), Relaxed);
        drop(timers);
        if gone.is_none() {
            return;
        }
    }
}
