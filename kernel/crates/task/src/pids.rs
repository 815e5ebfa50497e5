//! Processes and their numbers: taking a pid for a new thread, giving it back, finding processes by number, and the
//! end of a pid namespace.
//!
//! # Invariants
//! - INV-PIDS-1: a process's leader is a member of its pid as PID and TGID, and of its group's and session's pids, from
//!   `publish` until the process is reaped; a further thread is a member of its own pid as PID until it exits.

use crate::cred::Cred;
use crate::process::{Process, ProcessState};
use crate::signal::{self, SigInfo};
use crate::task::Task;
use crate::wait::{self, Which, options};
use crate::{PidNamespace, TaskError, TaskPid};
use kbench::Phase;
use ksync::trace;
use pid::{AttachError, PidType, Place, find_ge_pid, find_pid_ns, free_pid, pid_nr_ns};
use slab::KArc;

/// A pid that was taken and not yet published; dropping it gives the number back.
pub struct PidHandle {
    pid: Option<KArc<TaskPid>>,
}

impl PidHandle {
    /// The pid.
    #[inline]
    pub fn pid(&self) -> &KArc<TaskPid> {
        self.pid.as_ref().expect("present until published")
    }

    /// Makes the new task a member where INV-PIDS-1 says; the pid is its members' from now on.
    pub(crate) fn attach(mut self, task: &KArc<Task>, is_new_process: bool) {
        let Some(pid) = self.pid.take() else { return };
        let joined = |kind: PidType, joined: Result<(), AttachError>| {
            assert!(
                joined.is_ok(),
                "INV-PIDS-1: a new task joins as {kind:?}: {joined:?}"
            );
        };
        joined(PidType::Pid, pid.attach(PidType::Pid, task.clone()));
        if is_new_process {
            joined(PidType::Tgid, pid.attach(PidType::Tgid, task.clone()));
            ksync::lockdep::nested();
            let process = &task.process;
            let state = process.lock.lock();
            for (pid, kind, place) in memberships(process, &state) {
                joined(kind, pid.join(kind, task.clone(), place));
            }
        }
    }
}

/// The group and the session of a process, and its places there.
fn memberships<'a>(
    process: &'a Process,
    state: &'a ProcessState,
) -> [(&'a KArc<TaskPid>, PidType, &'a Place); 2] {
    [
        (&state.pgrp, PidType::Pgid, &process.group_place),
        (&state.session, PidType::Sid, &process.session_place),
    ]
}

impl Drop for PidHandle {
    fn drop(&mut self) {
        if let Some(pid) = self.pid.take() {
            free_pid(&pid);
        }
    }
}

/// Takes a number in `namespace` and in each of its ancestors. `set_tid`: wanted numbers, innermost first.
///
/// # Errors
/// In the order of `pid::PidError`; `NotPermitted` if `cred` may not choose.
pub fn alloc(
    namespace: &KArc<PidNamespace>,
    set_tid: &[i32],
    cred: &Cred,
) -> Result<PidHandle, TaskError> {
    let timer = trace::begin();
    let pid = match set_tid {
        [] => pid::alloc_pid(namespace),
        wanted => pid::alloc_pid_with(namespace, wanted, |_| cred.may_choose_pids()),
    };
    trace::end(Phase::AllocPid as usize, timer);
    Ok(PidHandle { pid: Some(pid?) })
}

/// A namespace below `parent`.
pub fn new_namespace(parent: &KArc<PidNamespace>) -> Result<KArc<PidNamespace>, TaskError> {
    Ok(PidNamespace::new_child(parent)?)
}

/// `pid`'s number as the owner of `viewer` sees it; 0: not visible there.
#[inline]
pub fn nr_in(pid: &TaskPid, viewer: &TaskPid) -> i32 {
    if core::ptr::eq(&**pid.ns(), &**viewer.ns()) {
        pid.vnr() as i32
    } else {
        pid_nr_ns(pid, viewer.ns()) as i32
    }
}

fn leave(pid: &KArc<TaskPid>, kind: PidType, task: &KArc<Task>) {
    let timer = trace::begin();
    if pid.detach(kind, task) {
        free_pid(pid);
    }
    trace::end(Phase::FreePid as usize, timer);
}

/// Leaves a group or session.
fn part(pid: &KArc<TaskPid>, kind: PidType, task: &KArc<Task>, place: &Place) {
    if pid.leave(kind, task, place) {
        free_pid(pid);
    }
}

/// Gives back the id of a thread that is not its process's leader.
pub(crate) fn release_thread(task: &KArc<Task>) {
    leave(&task.own_pid, PidType::Pid, task);
}

/// Gives back what a dead process's leader was a member of.
pub(crate) fn release_process(process: &KArc<Process>) {
    let Some(leader) = process.pid.task(PidType::Tgid) else {
        return;
    };
    let timer = trace::begin();
    let state = process.lock.lock();
    let last = memberships(process, &state)
        .map(|(pid, kind, place)| pid.leave(kind, &leader, place).then(|| pid.clone()));
    drop(state);
    last.iter().flatten().for_each(free_pid);
    trace::end(Phase::FreePid as usize, timer);
    leave(&process.pid, PidType::Tgid, &leader);
    leave(&process.pid, PidType::Pid, &leader);
}

/// A thread that execs becomes its process's first: it takes that one's place and id, and gives its own id back. The
/// first thread has exited, and nobody else is left.
pub(crate) fn take_over_leader(task: &KArc<Task>) {
    let process = &task.process;
    let Some(old) = process.pid.task(PidType::Tgid) else {
        return;
    };
    let state = process.lock.lock();
    for kind in [PidType::Pid, PidType::Tgid] {
        let replaced = process.pid.replace(kind, &old, task.clone());
        debug_assert!(replaced, "INV-PIDS-1: the old leader is {kind:?}");
    }
    for (pid, kind, place) in memberships(process, &state) {
        let replaced = pid.replace_member(kind, &old, task.clone(), place);
        debug_assert!(replaced, "INV-PIDS-1: the old leader is in its {kind:?}");
    }
    drop(state);
    leave(&task.own_pid, PidType::Pid, task);
    task.promote();
    let namespace = process.pid.ns();
    if process.is_namespace_init() {
        drop(namespace.set_child_reaper(Some(task.clone())));
    }
}

/// The process with id `nr` as `viewer` counts. Zombies are found too.
pub fn find_process(nr: u32, viewer: &TaskPid) -> Option<KArc<Process>> {
    Some(
        find_pid_ns(nr, viewer.ns())?
            .task(PidType::Tgid)?
            .process
            .clone(),
    )
}

/// The thread with id `nr` as `viewer` counts.
pub fn find_task(nr: u32, viewer: &TaskPid) -> Option<KArc<Task>> {
    find_pid_ns(nr, viewer.ns())?.task(PidType::Pid)
}

/// The pid with number `nr` as `viewer` counts.
pub fn find_pid(nr: u32, viewer: &TaskPid) -> Option<KArc<TaskPid>> {
    find_pid_ns(nr, viewer.ns())
}

/// The next process at or above `nr` in `namespace`, with its number there.
pub fn next_process(nr: u32, namespace: &PidNamespace) -> Option<(u32, KArc<Process>)> {
    let mut nr = nr;
    loop {
        let (found, pid) = find_ge_pid(nr, namespace)?;
        if let Some(task) = pid.task(PidType::Tgid) {
            return Some((found, task.process.clone()));
        }
        nr = found + 1;
    }
}

/// Calls `f` for each process of a group, those included that join while it runs; returns how many there were. Allocates
/// nothing. `f` takes process locks, under which fork takes the lists': so it is called without.
pub fn for_each_in_group(pgrp: &TaskPid, mut f: impl FnMut(&KArc<Process>)) -> usize {
    pgrp.for_each_in_group(|task| &task.process.group_place, |task| f(&task.process))
}

/// Moves a process to group `pgrp`. Its parent's lock or its own situation keeps it from being reaped meanwhile.
pub fn set_group(process: &KArc<Process>, pgrp: &KArc<TaskPid>) -> Result<(), TaskError> {
    let Some(leader) = process.pid.task(PidType::Tgid) else {
        return Err(TaskError::NoSuchProcess);
    };
    let old = process.lock.lock().pgrp.clone();
    if KArc::ptr_eq(&old, pgrp) {
        return Ok(());
    }
    let place = &process.group_place;
    part(&old, PidType::Pgid, &leader, place);
    // A group that lives has a member; our own pid's group lives by our being its member as PID.
    pgrp.join(PidType::Pgid, leader, place)
        .map_err(|_| TaskError::NotPermitted)?;
    process.lock.lock().pgrp = pgrp.clone();
    Ok(())
}

/// Makes a process the leader of a new session and group. Fails if it leads a group.
pub fn new_session(process: &KArc<Process>) -> Result<i32, TaskError> {
    let Some(leader) = process.pid.task(PidType::Tgid) else {
        return Err(TaskError::NoSuchProcess);
    };
    if process.pid.has_members(PidType::Pgid) {
        return Err(TaskError::NotPermitted);
    }
    let session = process.lock.lock().session.clone();
    set_group(process, &process.pid)?;
    if !KArc::ptr_eq(&session, &process.pid) {
        let place = &process.session_place;
        part(&session, PidType::Sid, &leader, place);
        process
            .pid
            .join(PidType::Sid, leader, place)
            .map_err(|_| TaskError::NotPermitted)?;
        process.lock.lock().session = process.pid.clone();
    }
    Ok(process.tgid())
}

/// Who takes over the children of `process`: its namespace's init, or, when that is the one that dies, the next outer
/// namespace's.
pub(crate) fn reaper_of(process: &KArc<Process>) -> Option<KArc<Process>> {
    process
        .pid
        .ns()
        .chain()
        .filter_map(|ns| ns.child_reaper())
        .map(|task| task.process.clone())
        .find(|reaper| !KArc::ptr_eq(reaper, process))
}

/// The init of a pid namespace dies: nothing may be created there any more, everything in it is killed and reaped. Called
/// by the last thread of that init. May sleep, for as long as the members take to die.
pub fn zap_namespace(task: &Task) {
    let namespace = task.process.pid.ns();
    namespace.disable_allocation();
    let mut nr = 2;
    while let Some((found, process)) = next_process(nr, namespace) {
        if !KArc::ptr_eq(&process, &task.process) {
            signal::send_to_process(&process, &SigInfo::kernel(signal::SIGKILL));
        }
        nr = found + 1;
    }
    // Children that end, and orphans that become children meanwhile. Signals to us do not matter any more.
    let process = &task.process;
    loop {
        let mut none_left = false;
        process.wait_chldexit.wait_until(|| {
            loop {
                match wait::wait(task, &Which::Any, options::WNOHANG | options::WALL) {
                    Ok(Some(_)) => continue,
                    Ok(None) => return false,
                    Err(_) => {
                        none_left = true;
                        return true;
                    }
                }
            }
        });
        if none_left {
            break;
        }
    }
    namespace.wait_drained(if task.is_leader() { 1 } else { 2 });
    drop(namespace.retire_child_reaper());
}
