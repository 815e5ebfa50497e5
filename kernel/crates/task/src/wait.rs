//! wait4 and waitid: sleeping for a child's end, or for its stopping and going on, and taking its account.

use crate::exit;
use crate::jobs;
use crate::process::{Process, ProcessState};
use crate::task::Task;
use crate::{TaskError, TaskPid};
use core::sync::atomic::Ordering;
use kbench::Phase;
use ksync::trace;
use slab::KArc;

/// Which children a wait is for.
#[derive(Clone)]
pub enum Which {
    /// Any child.
    Any,
    /// The child with this id.
    Pid(KArc<TaskPid>),
    /// Children in this process group.
    Group(KArc<TaskPid>),
    /// An id that does not exist: no child can match.
    Nobody,
}

/// `options` bits of wait4.
pub mod options {
    #![allow(missing_docs)]
    pub const WNOHANG: u32 = 1;
    pub const WUNTRACED: u32 = 2;
    pub const WEXITED: u32 = 4;
    pub const WCONTINUED: u32 = 8;
    pub const WNOWAIT: u32 = 0x0100_0000;
    /// Not Linux's: ends of children do not count (waitid without WEXITED).
    pub const NO_EXITED: u32 = 0x0010_0000;
    pub const WNOTHREAD: u32 = 0x2000_0000;
    pub const WALL: u32 = 0x4000_0000;
    pub const WCLONE: u32 = 0x8000_0000;
}

/// A child whose end was collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaped {
    /// Its id in the waiter's namespace.
    pub pid: i32,
    /// Wait status.
    pub status: i32,
    /// CPU time it and its reaped children used, nanoseconds.
    pub runtime_ns: u64,
}

fn matches(child: &Process, which: &Which) -> bool {
    match which {
        Which::Any => true,
        Which::Pid(pid) => KArc::ptr_eq(&child.pid, pid),
        Which::Group(pgrp) => {
            ksync::lockdep::nested(); // under its parent's
            KArc::ptr_eq(&child.lock.lock().pgrp, pgrp)
        }
        Which::Nobody => false,
    }
}

fn exit_signal_matches(child: &Process, options: u32) -> bool {
    let is_clone = child.exit_signal.load(Ordering::Relaxed) != crate::signal::SIGCHLD;
    options & options::WALL != 0 || is_clone == (options & options::WCLONE != 0)
}

/// An ended child: what its parent learns, and the process to let go unless it stays a zombie.
type Found = (Reaped, Option<KArc<Process>>);

/// Looks once. `Ok(None)`: children match but none has ended.
fn try_reap(
    state: &mut ProcessState,
    cur: &Task,
    which: &Which,
    options: u32,
) -> Result<Option<Found>, TaskError> {
    let wanted = |c: &KArc<Process>| matches(c, which) && exit_signal_matches(c, options);
    let ended = state.zombies.iter().find(|c| wanted(c));
    if let Some(child) = ended
        && options & options::NO_EXITED == 0
    {
        let reaped = {
            ksync::lockdep::nested();
            let dead = child.lock.lock();
            Reaped {
                pid: crate::pids::nr_in(&child.pid, cur.pid()),
                status: dead.exit_status,
                runtime_ns: dead.dead_threads_ns + dead.reaped_children_ns,
            }
        };
        if options & options::WNOWAIT != 0 {
            return Ok(Some((reaped, None)));
        }
        let child = child.clone();
        drop(state.zombies.remove(&child));
        exit::account(state, &child);
        return Ok(Some((reaped, Some(child))));
    }
    if options & (options::WUNTRACED | options::WCONTINUED) != 0
        && let Some(reaped) = stopped_or_continued(state, cur, wanted, options)
    {
        return Ok(Some((reaped, None)));
    }
    let waits_for_dead = state.zombies.iter().any(wanted);
    match waits_for_dead || state.children.iter().any(wanted) {
        true => Ok(None),
        false => Err(TaskError::NoChild),
    }
}

/// The first child that was stopped or continued and of which no wait has told yet; with WNOWAIT it stays so.
fn stopped_or_continued(
    state: &ProcessState,
    cur: &Task,
    wanted: impl Fn(&KArc<Process>) -> bool,
    options: u32,
) -> Option<Reaped> {
    state
        .children
        .iter()
        .filter(|c| wanted(c))
        .find_map(|child| {
            ksync::lockdep::nested();
            let mut theirs = child.lock.lock();
            let stopped = options & options::WUNTRACED != 0 && theirs.stop_report != 0;
            let continued = options & options::WCONTINUED != 0 && theirs.continue_report;
            let status = match (stopped, continued) {
                (true, _) => jobs::stopped_status(theirs.stop_report),
                (_, true) => jobs::CONTINUED_STATUS,
                _ => return None,
            };
            if options & options::WNOWAIT == 0 {
                theirs.stop_report = 0;
                theirs.continue_report &= !continued;
            }
            Some(Reaped {
                pid: crate::pids::nr_in(&child.pid, cur.pid()),
                status,
                runtime_ns: theirs.dead_threads_ns + theirs.reaped_children_ns,
            })
        })
}

/// Waits for a child's end, or with WUNTRACED and WCONTINUED for its stopping and going on. May sleep.
///
/// # Errors
/// `NoChild`; `Interrupted` by a signal. `Ok(None)` only with WNOHANG.
pub fn wait(cur: &Task, which: &Which, options: u32) -> Result<Option<Reaped>, TaskError> {
    let process = &cur.process;
    let mut outcome = Ok(None);
    let mut look = || {
        let timer = trace::begin();
        outcome = try_reap(&mut process.lock.lock(), cur, which, options);
        trace::end(Phase::Wait as usize, timer);
        !matches!(outcome, Ok(None))
    };
    if !look() && options & options::WNOHANG == 0 {
        process
            .wait_chldexit
            .wait_until_interruptible(&mut look)
            .map_err(|_| TaskError::Interrupted)?;
    }
    let Some((reaped, child)) = outcome? else {
        return Ok(None);
    };
    if let Some(child) = child {
        let timer = trace::begin();
        exit::release(&child);
        trace::end(Phase::Wait as usize, timer);
    }
    Ok(Some(reaped))
}
