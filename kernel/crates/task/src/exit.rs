//! The end of a thread, and of a process with its last thread.
//!
//! What runs where, in order: the kernel drops the thread's memory, files and working directory (each may sleep), then
//! calls [`exit_notify`], after which the thread only switches away. The parent may reap the process before that
//! switch: the thread's stack lives on until the scheduler has left it.

use crate::TaskError;
use crate::jobs;
use crate::pids;
use crate::process::{Process, ProcessState};
use crate::signal::{self, SigInfo, Signo};
use crate::task::{Task, flags};
use core::sync::atomic::Ordering;
use slab::{KArc, List};

/// `si_code` values of SIGCHLD.
const CLD_EXITED: i32 = 1;
const CLD_KILLED: i32 = 2;
const CLD_DUMPED: i32 = 3;

/// Marks the thread as leaving, with the wait status it gave; the first thing of an exit. True if no other thread of
/// its process is left that has not begun to exit.
pub fn begin(task: &Task, status: i32) -> bool {
    task.exit_code.store(status as u32, Ordering::Relaxed);
    task.set_flag(flags::EXITING);
    task.process.thread_exits()
}

/// Ends every other thread of the running thread's process and waits until they are gone: for exec. May sleep.
///
/// # Errors
/// `Interrupted` when the process is being ended itself.
pub fn end_other_threads(task: &KArc<Task>) -> Result<(), TaskError> {
    let process = &task.process;
    {
        let state = process.lock.lock();
        if state.group_exit.is_some() {
            return Err(TaskError::Interrupted);
        }
        for other in state.threads.iter().filter(|t| !KArc::ptr_eq(t, task)) {
            other.set_flag(flags::KILLED | flags::SIGPENDING);
            ksync::arch::unpark(other.thread_ptr());
        }
    }
    process
        .wait_chldexit
        .wait_until(|| process.lock.lock().threads.len() == 1);
    process.set_multithreaded(false);
    if !task.is_leader() {
        pids::take_over_leader(task);
    }
    Ok(())
}

/// Lets a vfork parent go on: the thread no longer uses its memory.
pub fn mm_released(task: &Task) {
    if let Some(done) = task.vfork_done.lock().take() {
        done.0.complete();
    }
}

/// Takes the thread out of its process; with the last thread ends the process and tells its parent.
///
/// The thread holds nothing but its stack any more. Context: process context, no locks held.
pub fn exit_notify(task: &KArc<Task>, runtime_ns: u64) {
    let process = &task.process;
    let last = {
        let mut state = process.lock.lock();
        state.dead_threads_ns += runtime_ns;
        drop(state.threads.remove(task));
        if state.threads.len() == 1 && process.is_multithreaded() {
            process.wait_chldexit.wake_all(); // an exec may wait to be alone
        }
        if state.threads.is_empty() {
            jobs::end_stop(&mut state);
            state.exit_status = state
                .group_exit
                .unwrap_or(task.exit_code.load(Ordering::Relaxed) as i32);
        }
        state.threads.is_empty()
    };
    if !task.is_leader() {
        pids::release_thread(task);
    }
    if !last {
        return;
    }
    jobs::leave(process);
    reparent_children(process);
    finish_process(process);
}

/// Gives the dying process's children, living and dead, to whoever reaps orphans in its namespace.
fn reparent_children(process: &KArc<Process>) {
    let res = {
        let state = process.lock.lock();
        state.children.is_empty() && state.zombies.is_empty()
    };
    if res {
        return; // nobody can add one: the process has no thread left that could fork
    }
    send_pdeath_signals(process);
    let Some(reaper) = pids::reaper_of(process) else {
        return;
    };
    let mut reaper_state = reaper.lock.lock();
    ksync::lockdep::nested();
    let mut state = process.lock.lock();
    for child in state.children.iter() {
        *child.parent.lock() = Some(reaper.clone());
    }
    for child in state.zombies.iter() {
        *child.parent.lock() = Some(reaper.clone());
        child.exit_signal.store(signal::SIGCHLD, Ordering::Relaxed);
    }
    let mut dead = List::new();
    dead.append(&mut state.zombies);
    reaper_state.children.append(&mut state.children);
    let any_dead = !dead.is_empty();
    let ignored = signal::parent_ignores_child(&reaper);
    if !ignored {
        reaper_state.zombies.append(&mut dead);
    }
    drop(state);
    drop(reaper_state);
    while let Some(child) = dead.pop_front() {
        release(&child);
    }
    if any_dead && !ignored {
        signal::send_to_process(&reaper, &SigInfo::kernel(signal::SIGCHLD));
        reaper.wait_chldexit.wake_all();
    }
}

/// Tells the children that asked to be told of their parent's end.
fn send_pdeath_signals(process: &Process) {
    loop {
        let next = {
            let state = process.lock.lock();
            state.children.iter().find_map(|child| {
                let signo = child.pdeath_signal.load(Ordering::Relaxed);
                (signo != 0).then(|| (child.clone(), signo))
            })
        };
        let Some((child, signo)) = next else { return };
        child.pdeath_signal.store(0, Ordering::Relaxed);
        signal::send_to_process(&child, &SigInfo::kernel(signo));
    }
}

/// `si_code` and `si_status` of a wait status.
pub fn decode_status(status: i32) -> (i32, i32) {
    match status & 0x7f {
        _ if status == jobs::CONTINUED_STATUS => (jobs::CLD_CONTINUED, signal::SIGCONT as i32),
        0x7f => (jobs::CLD_STOPPED, status >> 8 & 0xff),
        0 => (CLD_EXITED, status >> 8 & 0xff),
        n if status & 0x80 != 0 => (CLD_DUMPED, n),
        n => (CLD_KILLED, n),
    }
}

/// What the parent is told about a child's end.
fn child_info(process: &Process, parent: &Process, signo: Signo, status: i32) -> SigInfo {
    let (code, value) = decode_status(status);
    SigInfo {
        signo,
        code,
        pid: pids::nr_in(&process.pid, &parent.pid),
        status: value,
        ..SigInfo::default()
    }
}

/// Turns the process into a zombie, or ends it at once when its parent does not care.
fn finish_process(process: &KArc<Process>) {
    let outcome = process.with_parent_locked(|parent, parent_state| {
        let status = {
            ksync::lockdep::nested();
            let mut state = process.lock.lock();
            state.zombie = true;
            state.exit_status
        };
        let signo = process.exit_signal.load(Ordering::Relaxed);
        let ignored = signo == signal::SIGCHLD && signal::parent_ignores_child(parent);
        let removed = parent_state.children.remove(process);
        debug_assert!(
            removed.is_some(),
            "INV-PROC-1: a living process is among its parent's children"
        );
        if !ignored && let Some(child) = removed {
            parent_state
                .zombies
                .push_back(child)
                .unwrap_or_else(|_| unreachable!("just removed from its list"));
        }
        (parent.clone(), signo, status, ignored)
    });
    let Some((parent, signo, status, ignored)) = outcome else {
        process.lock.lock().zombie = true;
        process.wait_pidfd.wake_all();
        return;
    };
    if signo != 0 {
        signal::send_to_process(&parent, &child_info(process, &parent, signo, status));
    }
    process.wait_pidfd.wake_all();
    if ignored {
        release(process);
    }
    parent.wait_chldexit.wake_all();
}

/// Frees what a dead process still held: its id and its place in group and session.
pub fn release(process: &KArc<Process>) {
    process.parent.lock().take();
    pids::release_process(process);
}

/// Takes a zombie's account: its parent's lock is held, the zombie leaves the list.
pub(crate) fn account(parent: &mut ProcessState, child: &Process) {
    ksync::lockdep::nested();
    let state = child.lock.lock();
    parent.reaped_children_ns += state.dead_threads_ns + state.reaped_children_ns;
}
