//! Job control: stopping and continuing processes, telling their parents, and groups that nobody could continue.
//!
//! # Problem
//! A shell stops and continues groups of processes and learns of it by wait. A group whose last member with a parent in
//! the same session but another group (a shell) is gone is *orphaned*: nobody would continue it, so terminal stops do not
//! stop it, and what was stopped when it became so gets SIGHUP and SIGCONT (POSIX, setpgid and exit).
//!
//! # Mechanism
//! A process is stopped by the first of its threads that takes the signal; the others see `stopped` on their way to user
//! mode. Whether a group is orphaned is computed when asked, from its members' parents: no count is kept that fork and
//! exit would have to keep up, and an exit asks only while some process is stopped ([`NR_STOPPED`]).
//!
//! # Lock order
//! Everything here is called without locks but where it says otherwise, and takes one `process_lock` at a time.
//!
//! # Invariants
//! - INV-JOB-1: `NR_STOPPED` is the number of processes whose `stopped` is true; both change under `process_lock`.

use crate::process::{Process, ProcessState};
use crate::signal::{self, SIGCHLD, SIGCONT, SIGHUP, SigInfo, Signo, sa};
use crate::task::flags;
use crate::{TaskPid, pids};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use slab::KArc;

/// `si_code` of a stopped child's SIGCHLD.
pub const CLD_STOPPED: i32 = 5;
/// `si_code` of a continued child's SIGCHLD.
pub const CLD_CONTINUED: i32 = 6;
/// Wait status of a continued child.
pub const CONTINUED_STATUS: i32 = 0xffff;

/// Processes that are stopped (INV-JOB-1).
static NR_STOPPED: AtomicUsize = AtomicUsize::new(0);

/// Wait status of a child that `signo` stopped.
pub const fn stopped_status(signo: Signo) -> i32 {
    (signo as i32) << 8 | 0x7f
}

/// Stops the process whose lock is held; its other threads follow. Then [`tell_parent`], without the lock.
pub(crate) fn stop(state: &mut ProcessState, signo: Signo) {
    if !state.stopped {
        state.stopped = true;
        NR_STOPPED.fetch_add(1, Relaxed);
    }
    state.stop_report = signo;
    state.continue_report = false;
    for thread in state.threads.iter() {
        thread.set_flag(flags::SIGPENDING);
        ksync::arch::unpark(thread.thread_ptr());
    }
}

/// Lets a process go on whose lock is held; whether it was stopped, which its parent is then to be told.
pub(crate) fn go_on(state: &mut ProcessState) -> bool {
    let was = end_stop(state);
    if was {
        state.stop_report = 0;
        state.continue_report = true;
    }
    was
}

/// A stopped process ends or goes on.
pub(crate) fn end_stop(state: &mut ProcessState) -> bool {
    let was = core::mem::take(&mut state.stopped);
    if was {
        NR_STOPPED.fetch_sub(1, Relaxed);
    }
    was
}

/// Tells the parent that its child was stopped or continued, by signal and to whoever waits. May wake; no locks held.
pub(crate) fn tell_parent(process: &Process, code: i32, signo: Signo) {
    let Some(parent) = process.parent() else {
        return;
    };
    let action = parent.sighand().action(SIGCHLD);
    if action.flags & sa::NOCLDSTOP == 0 && action.handler != signal::SIG_IGN {
        let info = SigInfo {
            signo: SIGCHLD,
            code,
            pid: pids::nr_in(&process.pid, &parent.pid),
            status: signo as i32,
            ..SigInfo::default()
        };
        signal::send_to_process(&parent, &info);
    }
    parent.wait_chldexit.wake_all();
}

/// Whether nobody outside the group, but in its session, is a parent of a member.
pub fn is_orphaned(pgrp: &TaskPid) -> bool {
    is_orphaned_without(pgrp, None)
}

fn is_orphaned_without(pgrp: &TaskPid, leaving: Option<&KArc<Process>>) -> bool {
    let leaves = |process: &KArc<Process>| leaving.is_some_and(|l| KArc::ptr_eq(l, process));
    let mut orphaned = true;
    pids::for_each_in_group(pgrp, |member| {
        if !orphaned || leaves(member) {
            return;
        }
        let Some(parent) = member.parent().filter(|parent| !leaves(parent)) else {
            return;
        };
        let session = {
            let state = member.lock.lock();
            if state.is_zombie() {
                return;
            }
            state.session.clone()
        };
        let is_first = parent.pid.level() == 0 && parent.is_namespace_init();
        let theirs = parent.lock.lock();
        let outside = !core::ptr::eq(&*theirs.pgrp, pgrp);
        orphaned = is_first || !outside || !KArc::ptr_eq(&theirs.session, &session);
    });
    orphaned
}

/// The last thread of `process` ends: groups that this leaves orphaned and that have stopped members are hung up and
/// continued. Context: no locks held, its children not yet given away.
#[inline]
pub(crate) fn leave(process: &KArc<Process>) {
    if NR_STOPPED.load(Relaxed) > 0 {
        orphan_groups(process);
    }
}

#[cold]
fn orphan_groups(process: &KArc<Process>) {
    let own = process.lock.lock().pgrp.clone();
    hang_up_if_orphaned(&own, process);
    let mut skipped = 0;
    loop {
        // Hung up, a group is stopped no more; only those that live on are passed over.
        let next = {
            let state = process.lock.lock();
            let stopped = state.children.iter().filter_map(|child| {
                ksync::lockdep::nested();
                let theirs = child.lock.lock();
                theirs.stopped.then(|| theirs.pgrp.clone())
            });
            stopped.into_iter().nth(skipped)
        };
        let Some(group) = next else { return };
        if !hang_up_if_orphaned(&group, process) {
            skipped += 1;
        }
    }
}

/// Whether the group was hung up.
fn hang_up_if_orphaned(pgrp: &TaskPid, leaving: &KArc<Process>) -> bool {
    let mut any_stopped = false;
    pids::for_each_in_group(pgrp, |member| any_stopped |= member.lock.lock().stopped);
    if !any_stopped || !is_orphaned_without(pgrp, Some(leaving)) {
        return false;
    }
    for signo in [SIGHUP, SIGCONT] {
        pids::for_each_in_group(pgrp, |member| {
            signal::send_to_process(member, &SigInfo::kernel(signo));
        });
    }
    true
}
