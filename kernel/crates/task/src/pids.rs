//! Processes and their numbers: taking a pid for a new thread, giving it back, finding processes by number, and the
//! end of a pid namespace.
//!
//! # Invariants
//! - INV-PIDS-1: a process's leader is a member of its pid as PID and TGID, and of its group's and session's pids, from
//!   `publish` until the process is reaped; a further thread is a member of its own pid as PID until it exits.
//! - INV-PIDS-2: `group_joined` of a group's members grows along the list: it is set under the list's lock, by who appends.

use crate::cred::Cred;
use crate::process::Process;
use crate::signal::{self, SigInfo};
use crate::task::Task;
use crate::wait::{self, Which, options};
use crate::{PidNamespace, TaskError, TaskPid};
use core::sync::atomic::Ordering::Relaxed;
use kbench::Phase;
use ksync::trace;
use pid::{PidType, find_ge_pid, find_pid_ns, free_pid, pid_nr_ns};
use slab::KArc;

/// Members of a group that are looked up under one hold of its list.
const BATCH: usize = 32;

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
        let join = |pid: &TaskPid, kind| {
            let joined = pid.attach(kind, task.clone());
            assert!(
                joined.is_ok(),
                "INV-PIDS-1: a new task joins as {kind:?}: {joined:?}"
            );
        };
        join(&pid, PidType::Pid);
        if is_new_process {
            join(&pid, PidType::Tgid);
            let (pgrp, session) = {
                ksync::lockdep::nested();
                let state = task.process.lock.lock();
                (state.pgrp.clone(), state.session.clone())
            };
            let joined = pgrp.attach_to_group(task.clone(), &task.process.group_joined);
            assert!(
                joined.is_ok(),
                "INV-PIDS-1: a new task joins its group: {joined:?}"
            );
            join(&session, PidType::Sid);
        }
    }
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

/// Gives back the id of a thread that is not its process's leader.
pub(crate) fn release_thread(task: &KArc<Task>) {
    leave(&task.own_pid, PidType::Pid, task);
}

/// Gives back what a dead process's leader was a member of.
pub(crate) fn release_process(process: &KArc<Process>) {
    let Some(leader) = process.pid.task(PidType::Tgid) else {
        return;
    };
    let (pgrp, session) = {
        let state = process.lock.lock();
        (state.pgrp.clone(), state.session.clone())
    };
    leave(&pgrp, PidType::Pgid, &leader);
    leave(&session, PidType::Sid, &leader);
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
    let (pgrp, session) = {
        let state = process.lock.lock();
        (state.pgrp.clone(), state.session.clone())
    };
    for (pid, kind) in [
        (&process.pid, PidType::Pid),
        (&process.pid, PidType::Tgid),
        (&pgrp, PidType::Pgid),
        (&session, PidType::Sid),
    ] {
        let replaced = pid.replace(kind, &old, task.clone());
        debug_assert!(
            replaced,
            "INV-PIDS-1: the old leader is a member as {kind:?}"
        );
    }
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
/// nothing: a group can be killed when there is no memory. `f` takes process locks, under which fork takes the list's: so
/// it is called without, for a batch at a time, and the walk goes on behind the last that it saw (INV-PIDS-2).
pub fn for_each_in_group(pgrp: &TaskPid, mut f: impl FnMut(&KArc<Process>)) -> usize {
    let (mut nr, mut last) = (0, 0);
    loop {
        let mut batch: [Option<KArc<Process>>; BATCH] = [const { None }; BATCH];
        let mut len = 0;
        pgrp.for_each_task(PidType::Pgid, |task| {
            let joined = task.process.group_joined.load(Relaxed);
            if joined > last {
                last = joined;
                batch[len] = Some(task.process.clone());
                len += 1;
            }
            len < BATCH
        });
        if len == 0 {
            return nr;
        }
        batch[..len].iter().flatten().for_each(&mut f);
        nr += len;
    }
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
    leave(&old, PidType::Pgid, &leader);
    // A group that lives has a member; our own pid's group lives by our being its member as PID.
    pgrp.attach_to_group(leader, &process.group_joined)
        .map_err(|_| TaskError::NotPermitted)?;
    process.lock.lock().pgrp = pgrp.clone();
    Ok(())
}

/// Makes a process the leader of a new session and group. Fails if it leads a group.
pub fn new_session(process: &KArc<Process>) -> Result<i32, TaskError> {
    let Some(leader) = process.pid.task(PidType::Tgid) else {
        return Err(TaskError::NoSuchProcess);
    };
    if process.pid.has_task(PidType::Pgid) {
        return Err(TaskError::NotPermitted);
    }
    let session = process.lock.lock().session.clone();
    set_group(process, &process.pid)?;
    if !KArc::ptr_eq(&session, &process.pid) {
        leave(&session, PidType::Sid, &leader);
        process
            .pid
            .attach(PidType::Sid, leader)
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
