//! A process: what its threads share. Linux keeps this in `signal_struct` and in the leader's task.
//!
//! # Mechanism
//! Linux guards the tree of processes with one lock for the whole machine, `tasklist_lock`, taken for write by every
//! clone and twice by every exit. Here each process guards its own children: a fork takes its own process's lock, an
//! exit its parent's, a wait its own. Dead children move to a list of their own, so that a wait finds them without
//! looking at the living.
//!
//! # Lock order
//! `process_lock` of a parent -> `process_lock` of its child (reparenting only: the reaper's, then the dying
//! process's) -> `process_parent` -> `task_pending` -> `sighand`.
//!
//! # Invariants
//! - INV-PROC-1: a process is in exactly one of its parent's lists, `children` (alive) or `zombies`, from the end of its
//!   fork to its reaping; `parent` names that parent and changes only under the old parent's lock.
//! - INV-PROC-2: a zombie has no threads; its pid's number stays taken until it is reaped.
//! - INV-PROC-3: `group_exit` is set once and never changes.

use crate::TaskPid;
use crate::limits::Limits;
use crate::signal::{Pending, SigHand, Signo};
use crate::task::{Task, flags, slot};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use ksync::{SpinGuard, SpinLock, WaitQueue, lock_class};
use pid::Place;
use slab::{KArc, List};

/// What the threads of a process share. Link slot 0: its parent's list.
pub struct Process {
    /// The process id (TGID).
    pub pid: KArc<TaskPid>,
    /// Who waits for it. Read under this lock; see INV-PROC-1 for changes.
    pub parent: SpinLock<Option<KArc<Process>>>,
    /// Everything that changes together.
    pub lock: SpinLock<ProcessState>,
    /// Its threads sleep here for their children.
    pub wait_chldexit: WaitQueue,
    /// Who polls a pidfd of it sleeps here for its end.
    pub wait_pidfd: WaitQueue,
    sighand: SpinLock<KArc<SigHand>>,
    /// Threads that have not begun to exit.
    live: AtomicU32,
    /// More than one thread now.
    multithreaded: AtomicBool,
    /// The first process of its pid namespace.
    namespace_init: AtomicBool,
    /// Sent to it when its parent ends (prctl); 0: none.
    pub pdeath_signal: AtomicU32,
    /// Its resource limits.
    pub limits: Limits,
    /// Sent to the parent at the end; 0: none.
    pub exit_signal: AtomicU32,
    /// It has called exec since its fork (setpgid refuses then).
    pub did_exec: AtomicBool,
    /// When it began, in nanoseconds since boot.
    pub start_time_ns: AtomicU64,
    /// Where its leader is in its group's and in its session's lists.
    pub(crate) group_place: Place,
    pub(crate) session_place: Place,
}
slab::object!(Process, "signal_struct", links = 1, rcu);

/// The part of a process under its lock.
pub struct ProcessState {
    /// Threads that have not exited.
    pub threads: List<Task, { slot::THREADS }>,
    /// Living children.
    pub children: List<Process, 0>,
    /// Dead children, in the order of their deaths.
    pub zombies: List<Process, 0>,
    /// Signals to the process.
    pub pending: Pending,
    /// Wait status with which every thread is to end (INV-PROC-3).
    pub group_exit: Option<i32>,
    /// Wait status once it is a zombie.
    pub exit_status: i32,
    /// No thread is left.
    pub zombie: bool,
    /// A stop signal holds every thread. Changes by [`crate::jobs`] only, which counts.
    pub stopped: bool,
    /// The signal that stopped it, until a wait has told of it; 0: none.
    pub stop_report: Signo,
    /// It was continued, and no wait has told of it.
    pub continue_report: bool,
    /// Process group.
    pub pgrp: KArc<TaskPid>,
    /// Session.
    pub session: KArc<TaskPid>,
    /// CPU time of threads that are gone, nanoseconds.
    pub dead_threads_ns: u64,
    /// CPU time of children that were waited for, nanoseconds.
    pub reaped_children_ns: u64,
}

impl ProcessState {
    /// Whether nothing of it runs any more.
    #[inline]
    pub fn is_zombie(&self) -> bool {
        self.zombie
    }

    /// Ends every thread with wait status `status`; the first caller's stays.
    pub fn start_group_exit(&mut self, status: i32) {
        if self.group_exit.is_none() {
            self.group_exit = Some(status);
        }
        for thread in self.threads.iter() {
            thread.set_flag(flags::SIGPENDING);
            ksync::arch::unpark(thread.thread_ptr());
        }
    }
}

impl Process {
    /// A process without threads or parent.
    pub fn new(
        pid: KArc<TaskPid>,
        pgrp: KArc<TaskPid>,
        session: KArc<TaskPid>,
        sighand: KArc<SigHand>,
    ) -> Process {
        Process {
            pid,
            parent: SpinLock::new(None, lock_class!("process_parent")),
            lock: SpinLock::new(
                ProcessState {
                    threads: List::new(),
                    children: List::new(),
                    zombies: List::new(),
                    pending: Pending::new(),
                    group_exit: None,
                    exit_status: 0,
                    zombie: false,
                    stopped: false,
                    stop_report: 0,
                    continue_report: false,
                    pgrp,
                    session,
                    dead_threads_ns: 0,
                    reaped_children_ns: 0,
                },
                lock_class!("process_lock"),
            ),
            wait_chldexit: WaitQueue::new(),
            wait_pidfd: WaitQueue::new(),
            sighand: SpinLock::new(sighand, lock_class!("process_sighand")),
            live: AtomicU32::new(0),
            multithreaded: AtomicBool::new(false),
            namespace_init: AtomicBool::new(false),
            pdeath_signal: AtomicU32::new(0),
            limits: Limits::new(),
            exit_signal: AtomicU32::new(crate::signal::SIGCHLD),
            did_exec: AtomicBool::new(false),
            start_time_ns: AtomicU64::new(0),
            group_place: Place::new(),
            session_place: Place::new(),
        }
    }

    /// Its handlers.
    #[inline]
    pub fn sighand(&self) -> SpinGuard<'_, KArc<SigHand>> {
        self.sighand.lock()
    }

    /// Whether it has or had a second thread since its last exec.
    #[inline]
    pub fn is_multithreaded(&self) -> bool {
        self.multithreaded.load(Ordering::Relaxed)
    }

    /// A thread was linked. Under the process's lock.
    pub(crate) fn thread_linked(&self) {
        self.live.fetch_add(1, Ordering::Relaxed);
    }

    /// A thread begins to exit; true for the last one.
    pub(crate) fn thread_exits(&self) -> bool {
        self.live.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Threads that have not begun to exit.
    pub fn nr_live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    pub(crate) fn set_multithreaded(&self, many: bool) {
        self.multithreaded.store(many, Ordering::Relaxed);
    }

    /// Whether it is process 1 of its namespace.
    #[inline]
    pub fn is_namespace_init(&self) -> bool {
        self.namespace_init.load(Ordering::Relaxed)
    }

    pub(crate) fn set_namespace_init(&self) {
        self.namespace_init.store(true, Ordering::Relaxed);
    }

    /// Its parent, or None for the first process and after the end.
    pub fn parent(&self) -> Option<KArc<Process>> {
        self.parent.lock().clone()
    }

    /// Process id in the namespace it was created in.
    pub fn tgid(&self) -> i32 {
        self.pid.vnr() as i32
    }

    /// Runs `f` with the parent and its locked state, if there is a parent; the parent stays the parent meanwhile.
    pub fn with_parent_locked<R>(
        &self,
        f: impl FnOnce(&KArc<Process>, &mut ProcessState) -> R,
    ) -> Option<R> {
        loop {
            let parent = self.parent()?;
            let mut state = parent.lock.lock();
            // INV-PROC-1: it changes only under the lock that we now hold.
            let still = self
                .parent
                .lock()
                .as_ref()
                .is_some_and(|p| KArc::ptr_eq(p, &parent));
            if still {
                return Some(f(&parent, &mut state));
            }
        }
    }
}
