//! clone, fork, vfork: a new thread or process, in three steps that the kernel strings together.
//!
//! 1. [`copy_process`] allocates and fills everything; nothing is visible yet, and dropping the [`NewTask`] gives it
//!    all back. This is the only step that can run out of memory.
//! 2. The machine layer gives the thread its stack and registers.
//! 3. [`NewTask::publish`] links it into its process, its parent and its pid, under the parent's lock. From then on it
//!    can be found, signalled and waited for; the kernel makes it runnable.
//!
//! # Lock order
//! `publish` holds the parent process's lock, and inside it the new process's lock and the pid lists.

use crate::cred::cap;
use crate::pids::{self, PidHandle};
use crate::process::Process;
use crate::task::{Task, VforkDone, flags};
use crate::{NsRef, TaskError};
use core::sync::atomic::Ordering;
use ksync::Completion;
use mm::MmUser;
use slab::KArc;

/// `clone` flags, as Linux numbers them.
pub mod clone {
    #![allow(missing_docs)]
    pub const CSIGNAL: u64 = 0xff;
    pub const VM: u64 = 0x100;
    pub const FS: u64 = 0x200;
    pub const FILES: u64 = 0x400;
    pub const SIGHAND: u64 = 0x800;
    pub const PIDFD: u64 = 0x1000;
    pub const PTRACE: u64 = 0x2000;
    pub const VFORK: u64 = 0x4000;
    pub const PARENT: u64 = 0x8000;
    pub const THREAD: u64 = 0x1_0000;
    pub const NEWNS: u64 = 0x2_0000;
    pub const SYSVSEM: u64 = 0x4_0000;
    pub const SETTLS: u64 = 0x8_0000;
    pub const PARENT_SETTID: u64 = 0x10_0000;
    pub const CHILD_CLEARTID: u64 = 0x20_0000;
    pub const DETACHED: u64 = 0x40_0000;
    pub const UNTRACED: u64 = 0x80_0000;
    pub const CHILD_SETTID: u64 = 0x100_0000;
    pub const NEWCGROUP: u64 = 0x200_0000;
    pub const NEWUTS: u64 = 0x400_0000;
    pub const NEWIPC: u64 = 0x800_0000;
    pub const NEWUSER: u64 = 0x1000_0000;
    pub const NEWPID: u64 = 0x2000_0000;
    pub const NEWNET: u64 = 0x4000_0000;
    pub const IO: u64 = 0x8000_0000;
}

/// Namespaces that this kernel does not have.
const UNSUPPORTED: u64 = clone::NEWNS
    | clone::NEWCGROUP
    | clone::NEWUTS
    | clone::NEWIPC
    | clone::NEWUSER
    | clone::NEWNET;

/// What clone was asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct CloneArgs<'a> {
    /// [`clone`] bits without the exit signal.
    pub flags: u64,
    /// Sent to the parent at the end.
    pub exit_signal: u32,
    /// Wanted ids, innermost namespace first.
    pub set_tid: &'a [i32],
    /// For CLONE_CHILD_SETTID and CLONE_CHILD_CLEARTID.
    pub child_tid: usize,
    /// A thread of the kernel: shares nothing of a program's.
    pub kthread: bool,
    /// Where it will run first.
    pub cpu: usize,
}

/// A thread that exists but that nobody can find. Dropping it undoes everything.
pub struct NewTask {
    task: Unpublished,
    /// Frees the pid unless published.
    pid: PidHandle,
    is_new_process: bool,
    parent: KArc<Process>,
    vfork: Option<KArc<VforkDone>>,
}

/// A thread that may come to nothing. Its memory and files are then given up here, where one may sleep: the thread itself
/// goes in an RCU callback, where nobody may.
struct Unpublished(Option<KArc<Task>>);

impl Unpublished {
    #[inline]
    fn task(&self) -> &KArc<Task> {
        self.0.as_ref().expect("present until published")
    }

    #[inline]
    fn into_task(mut self) -> KArc<Task> {
        self.0.take().expect("present until published")
    }
}

impl Drop for Unpublished {
    #[inline]
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            give_up(&task);
        }
    }
}

#[cold]
fn give_up(task: &Task) {
    let mm = task.mm.lock().take();
    drop(mm);
    let files = task.files.lock().take();
    drop(files);
    let fs = task.fs.lock().take();
    drop(fs);
}

/// Refuses combinations that Linux refuses, in its order.
fn check_flags(cur: &Task, args: &CloneArgs) -> Result<(), TaskError> {
    let f = args.flags;
    let invalid = f & clone::THREAD != 0 && f & clone::SIGHAND == 0
        || f & clone::SIGHAND != 0 && f & clone::VM == 0
        || f & clone::PARENT != 0 && cur.process.is_namespace_init()
        || f & clone::THREAD != 0 && f & clone::NEWPID != 0
        || f & clone::THREAD != 0 && !KArc::ptr_eq(&cur.pid_ns_for_children.lock(), cur.pid().ns())
        || f & (clone::NEWPID | clone::PARENT) == clone::NEWPID | clone::PARENT
        || f & UNSUPPORTED != 0;
    if invalid {
        Err(TaskError::Invalid)
    } else {
        Ok(())
    }
}

fn copy_mm(cur: &Task, args: &CloneArgs) -> Result<Option<MmUser>, TaskError> {
    if args.kthread {
        return Ok(None);
    }
    let Some(mm) = cur.mm_user() else {
        return Ok(None);
    };
    if args.flags & clone::VM != 0 {
        return Ok(Some(mm.share()?));
    }
    Ok(Some(mm.dup()?))
}

/// Allocates and fills a new thread. May sleep.
///
/// # Errors
/// Invalid flags, no memory, no free pid, a wanted pid that is taken.
pub fn copy_process(cur: &KArc<Task>, args: &CloneArgs) -> Result<NewTask, TaskError> {
    check_flags(cur, args)?;
    let shell = KArc::<Task>::try_uninit()?;
    if args.flags & clone::NEWPID != 0 && !cur.cred.capable(cap::SYS_ADMIN) {
        return Err(TaskError::NotPermitted);
    }
    let namespace: NsRef = if args.flags & clone::NEWPID != 0 {
        let parent = cur.pid_ns_for_children.lock().clone();
        if !KArc::ptr_eq(&parent, cur.pid().ns()) {
            return Err(TaskError::Invalid); // it has unshared, or joined another
        }
        NsRef::new(&pids::new_namespace(&parent)?)
    } else {
        cur.pid_ns_for_children.lock().clone()
    };
    let files = match &*cur.files.lock() {
        Some(files) if args.flags & clone::FILES != 0 => Some(files.clone()),
        Some(files) => Some(files.dup_for_fork()?),
        None => None,
    };
    let fs = match &*cur.fs.lock() {
        Some(fs) if args.flags & clone::FS != 0 => Some(fs.clone()),
        Some(fs) => Some(fs.dup_for_fork()?),
        None => None,
    };
    let mm = copy_mm(cur, args)?;
    let vfork = if args.flags & clone::VFORK != 0 {
        Some(KArc::new(VforkDone(Completion::new()))?)
    } else {
        None
    };
    let pid = pids::alloc(&namespace, args.set_tid, &cur.cred)?;
    let is_new_process = args.flags & clone::THREAD == 0;
    let process = if is_new_process {
        new_process(cur, args, &pid)?
    } else {
        cur.process.clone()
    };
    let parent = if args.flags & clone::PARENT != 0 {
        cur.process.parent().ok_or(TaskError::Invalid)?
    } else {
        cur.process.clone()
    };
    let task = shell.write(Task::new(process, pid.pid().clone(), namespace, args.cpu));
    fill(&task, cur, args, mm);
    *task.files.lock() = files;
    *task.fs.lock() = fs;
    *task.vfork_done.lock() = vfork.clone();
    Ok(NewTask {
        task: Unpublished(Some(task)),
        pid,
        is_new_process,
        parent,
        vfork,
    })
}

fn new_process(cur: &Task, args: &CloneArgs, pid: &PidHandle) -> Result<KArc<Process>, TaskError> {
    let sighand = if args.flags & clone::SIGHAND != 0 {
        cur.process.sighand().clone()
    } else {
        let copy = cur.process.sighand().fork();
        KArc::new(copy)?
    };
    let (pgrp, session) = {
        let state = cur.process.lock.lock();
        (state.pgrp.clone(), state.session.clone())
    };
    pgrp.make_room();
    session.make_room();
    let process = KArc::new(Process::new(pid.pid().clone(), pgrp, session, sighand))?;
    process.limits.inherit(&cur.process.limits);
    process
        .exit_signal
        .store(args.exit_signal, Ordering::Relaxed);
    Ok(process)
}

fn fill(task: &KArc<Task>, cur: &Task, args: &CloneArgs, mm: Option<MmUser>) {
    if args.kthread {
        task.set_flag(flags::KTHREAD);
    }
    task.active_mm.store(
        mm.as_ref().map_or(0, |mm| &raw const **mm as usize),
        Ordering::Relaxed,
    );
    *task.mm.lock() = mm;
    task.blocked
        .store(cur.blocked.load(Ordering::Relaxed), Ordering::Relaxed);
    task.cred.copy_from(&cur.cred);
    let comm = *cur.comm.lock();
    *task.comm.lock() = comm;
    if args.flags & clone::CHILD_SETTID != 0 {
        task.set_child_tid.store(args.child_tid, Ordering::Relaxed);
    }
    if args.flags & clone::CHILD_CLEARTID != 0 {
        task.clear_child_tid
            .store(args.child_tid, Ordering::Relaxed);
    }
    // A thread registers for itself; a copy of the memory has its parent's area.
    if args.flags & clone::VM == 0 {
        task.rseq.copy_from(&cur.rseq);
        task.note_switched();
    }
    // The alternate stack is kept only by a child that runs on a copy of the memory, or on the parent's while it waits.
    if args.flags & (clone::VM | clone::VFORK) != clone::VM {
        let altstack = *cur.altstack.lock();
        *task.altstack.lock() = altstack;
    }
    if cur.entity.restricted.load(Ordering::Relaxed) {
        task.entity.allowed.or_with(&cur.entity.allowed);
        task.entity.restricted.store(true, Ordering::Relaxed);
    }
}

impl NewTask {
    /// The thread, for the machine layer.
    pub fn task(&self) -> &KArc<Task> {
        self.task.task()
    }

    /// The process it belongs to, its own unless it is a further thread.
    pub fn process(&self) -> &KArc<Process> {
        &self.task.task().process
    }

    /// What a vfork parent waits for.
    pub fn vfork_done(&self) -> Option<KArc<VforkDone>> {
        self.vfork.clone()
    }

    /// Links the thread where it can be found. `cur` is the thread that clones.
    ///
    /// # Errors
    /// `Interrupted` when `cur` was killed meanwhile, `Restart` when it has a signal to take first: a signal to its group
    /// that was there before the child joins would not reach the child (INV-CROWD's walks rely on this). `NoMemory` when the namespace has stopped taking processes (its
    /// init died); the new thread is undone.
    pub fn publish(self, cur: &Task, now_ns: u64) -> Result<KArc<Task>, TaskError> {
        let NewTask {
            task,
            pid,
            is_new_process,
            parent,
            ..
        } = self;
        let mut parent = parent;
        loop {
            let mut state = parent.lock.lock();
            let is_own = KArc::ptr_eq(&parent, &cur.process);
            if !is_own
                && (state.is_zombie()
                    || cur
                        .process
                        .parent()
                        .is_none_or(|p| !KArc::ptr_eq(&p, &parent)))
            {
                // CLONE_PARENT and the parent changed: a reaper took its place.
                drop(state);
                let Some(reaper) = cur.process.parent() else {
                    return Err(undo(task, pid, TaskError::Interrupted));
                };
                parent = reaper;
                continue;
            }
            // With CLONE_PARENT the caller's own end is seen by its hint; it then ends right after.
            if is_own && state.group_exit.is_some() {
                drop(state);
                return Err(undo(task, pid, TaskError::Interrupted));
            }
            if cur.has_signal_work() {
                drop(state);
                return Err(undo(task, pid, TaskError::Restart));
            }
            if !pid.pid().ns().is_adding() {
                drop(state);
                return Err(undo(task, pid, TaskError::NoMemory));
            }
            if is_new_process {
                link_process(task.task(), &parent, &mut state, now_ns);
            } else {
                let task = task.task();
                state
                    .threads
                    .push_back(task.clone())
                    .unwrap_or_else(|_| linked_twice());
                task.process.thread_linked();
                task.process.set_multithreaded(true);
            }
            pid.attach(task.task(), is_new_process);
            drop(state);
            return Ok(task.into_task());
        }
    }
}

fn undo(task: Unpublished, pid: PidHandle, error: TaskError) -> TaskError {
    drop(task);
    drop(pid);
    error
}

/// The parent's side of a new process. The parent's lock is held.
fn link_process(
    task: &KArc<Task>,
    parent: &KArc<Process>,
    state: &mut crate::process::ProcessState,
    now_ns: u64,
) {
    let process = &task.process;
    process.start_time_ns.store(now_ns, Ordering::Relaxed);
    *process.parent.lock() = Some(parent.clone());
    ksync::lockdep::nested();
    process
        .lock
        .lock()
        .threads
        .push_back(task.clone())
        .unwrap_or_else(|_| linked_twice());
    process.thread_linked();
    state
        .children
        .push_back(process.clone())
        .unwrap_or_else(|_| linked_twice());
    if task.pid().is_child_reaper() {
        let before = task.pid().ns().set_child_reaper(Some(task.clone()));
        debug_assert!(before.is_none(), "a namespace has one first process");
        process.set_namespace_init();
    }
}

#[cold]
fn linked_twice<T>() -> T {
    panic!("INV-PROC-1: a new process or thread is linked already")
}
