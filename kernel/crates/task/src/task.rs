//! `task_struct`: one thread.

use crate::cred::Cred;
use crate::process::Process;
use crate::signal::Pending;
use crate::{NsRef, TaskPid};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use ksync::arch::ThreadPtr;
use ksync::{Completion, SpinLock, lock_class};
use mm::MmUser;
use sched::{Entity, Schedulable};
use slab::KArc;
use vfs::{Files, FsStruct};

/// Bits of [`Task::flags`]. Those in `WORK` send the way back to user mode through its slow path.
pub mod flags {
    /// A signal may have to be delivered.
    pub const SIGPENDING: u32 = 1;
    /// A saved signal mask is to be put back (rt_sigsuspend).
    pub const RESTORE_SIGMASK: u32 = 2;
    /// It has been off the CPU since its `rseq` area was written.
    pub const RSEQ: u32 = 4;
    /// What signals leave to do before user mode.
    pub const SIGNAL_WORK: u32 = SIGPENDING | RESTORE_SIGMASK;
    /// What the way back to user mode looks at.
    pub const WORK: u32 = SIGNAL_WORK | RSEQ;
    /// A thread of the kernel: no address space of its own, no signals.
    pub const KTHREAD: u32 = 1 << 8;
    /// On its way out.
    pub const EXITING: u32 = 1 << 9;
    /// To end alone: another thread of its process execs.
    pub const KILLED: u32 = 1 << 10;
}

/// Words that only the machine layer understands: stack, saved registers, segment bases.
#[derive(Debug, Default)]
pub struct ArchThread {
    /// Stack pointer while not running.
    pub sp: AtomicUsize,
    /// Top of the kernel stack; 0: none.
    pub stack_top: AtomicUsize,
    /// Save area of the vector registers; 0: a kernel thread.
    pub fpu_area: AtomicUsize,
    /// FS base while not running.
    pub fs_base: AtomicUsize,
    /// GS base while not running.
    pub gs_base: AtomicUsize,
    /// Vector of the last exception that became a signal.
    pub trap_nr: AtomicUsize,
    /// Its error code.
    pub trap_error: AtomicUsize,
    /// Address of the last page fault that became a signal.
    pub trap_address: AtomicUsize,
}

/// What a thread has registered by rseq(2). Written by the thread itself, or before it runs.
#[derive(Debug, Default)]
pub struct Rseq {
    /// Address of its `struct rseq`; 0: none.
    pub at: AtomicUsize,
    /// Bytes of it.
    pub len: AtomicU32,
    /// What must stand before an abort handler.
    pub signature: AtomicU32,
}

impl Rseq {
    /// Takes on another's registration: a copy of the memory keeps its area.
    pub(crate) fn copy_from(&self, other: &Rseq) {
        self.len
            .store(other.len.load(Ordering::Relaxed), Ordering::Relaxed);
        self.signature
            .store(other.signature.load(Ordering::Relaxed), Ordering::Relaxed);
        self.at
            .store(other.at.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// One thread. Link slots: 0 and 1 process group and session (pid), 2 run queue, 3 its process's threads.
pub struct Task {
    /// The machine's words.
    pub arch: ArchThread,
    /// The scheduler's part.
    pub entity: Entity,
    /// [`flags`].
    pub flags: AtomicU32,
    /// Signals it blocks; written only by the thread itself.
    pub blocked: AtomicU64,
    /// What it blocks but for what it waits for just now (rt_sigtimedwait); 0: it does not.
    pub real_blocked: AtomicU64,
    /// Mask to put back when RESTORE_SIGMASK is set.
    pub saved_blocked: AtomicU64,
    /// Address of its `Mm`, for the scheduler; 0: none. Changes with `mm`, by the thread itself, preemption off.
    pub active_mm: AtomicUsize,
    /// The process it belongs to.
    pub process: KArc<Process>,
    /// The id it was made with; see [`Task::pid`].
    pub(crate) own_pid: KArc<TaskPid>,
    /// By exec it has taken the place of its process's first thread, and with it that thread's id.
    promoted: AtomicBool,
    /// Signals sent to this thread alone.
    pub pending: SpinLock<Pending>,
    /// Address space; None in kernel threads and after exit.
    pub mm: SpinLock<Option<MmUser>>,
    /// Open files.
    pub files: SpinLock<Option<KArc<Files>>>,
    /// Root, working directory, umask.
    pub fs: SpinLock<Option<KArc<FsStruct>>>,
    /// Where its children's pids come from.
    pub pid_ns_for_children: SpinLock<NsRef>,
    /// Set for a vfork child: completed when it no longer uses its parent's memory.
    pub vfork_done: SpinLock<Option<KArc<VforkDone>>>,
    /// `set_tid_address`, CLONE_CHILD_CLEARTID.
    pub clear_child_tid: AtomicUsize,
    /// CLONE_CHILD_SETTID: written by the child before its first instruction.
    pub set_child_tid: AtomicUsize,
    /// `set_robust_list`.
    pub robust_list: AtomicUsize,
    /// rseq(2).
    pub rseq: Rseq,
    /// Where an interrupted sleep was to end, for restart_syscall.
    pub restart_deadline_ns: AtomicU64,
    /// Where its remaining time was to go.
    pub restart_remaining_at: AtomicUsize,
    /// Alternate signal stack: address, size, flags.
    pub altstack: SpinLock<AltStack>,
    /// Wait status given to `exit`, for the process when this is its last or first thread.
    pub exit_code: AtomicU32,
    /// What it may do.
    pub cred: Cred,
    /// What `ps` shows.
    pub comm: SpinLock<[u8; 16]>,
}
slab::object!(Task, "task_struct", links = 4, rcu);

/// Which link slots a task uses for what.
pub mod slot {
    /// Threads of a process; 0 and 1 are the pid lists', 2 the run queues'.
    pub const THREADS: usize = 3;
    const _: () =
        assert!(THREADS != sched::RQ_SLOT && THREADS != pid::PGID_SLOT && THREADS != pid::SID_SLOT);
}

/// `sigaltstack` state.
#[derive(Debug, Clone, Copy, Default)]
pub struct AltStack {
    /// Lowest address.
    pub base: usize,
    /// Bytes; 0: none.
    pub size: usize,
    /// SS_ flags.
    pub flags: i32,
}

/// A parent waits here for its vfork child.
pub struct VforkDone(pub Completion);
slab::object!(VforkDone, "vfork_done", links = 0);

impl Schedulable for Task {
    #[inline(always)]
    fn entity(&self) -> &Entity {
        &self.entity
    }
}

impl Task {
    /// A thread that nobody can find yet.
    pub fn new(
        process: KArc<Process>,
        pid: KArc<TaskPid>,
        ns_for_children: NsRef,
        cpu: usize,
    ) -> Task {
        Task {
            arch: ArchThread::default(),
            entity: Entity::new(cpu),
            flags: AtomicU32::new(0),
            blocked: AtomicU64::new(0),
            real_blocked: AtomicU64::new(0),
            saved_blocked: AtomicU64::new(0),
            active_mm: AtomicUsize::new(0),
            process,
            own_pid: pid,
            promoted: AtomicBool::new(false),
            pending: SpinLock::new(Pending::new(), lock_class!("task_pending")),
            mm: SpinLock::new(None, lock_class!("task_mm")),
            files: SpinLock::new(None, lock_class!("task_files")),
            fs: SpinLock::new(None, lock_class!("task_fs")),
            pid_ns_for_children: SpinLock::new(ns_for_children, lock_class!("task_nsproxy")),
            vfork_done: SpinLock::new(None, lock_class!("task_vfork")),
            clear_child_tid: AtomicUsize::new(0),
            set_child_tid: AtomicUsize::new(0),
            robust_list: AtomicUsize::new(0),
            rseq: Rseq::default(),
            restart_deadline_ns: AtomicU64::new(0),
            restart_remaining_at: AtomicUsize::new(0),
            altstack: SpinLock::new(AltStack::default(), lock_class!("task_altstack")),
            exit_code: AtomicU32::new(0),
            cred: Cred::full(),
            comm: SpinLock::new([0; 16], lock_class!("task_comm")),
        }
    }

    /// The handle that wakes it.
    #[inline]
    pub fn thread_ptr(&self) -> ThreadPtr {
        ThreadPtr((self as *const Task).cast_mut().cast())
    }

    /// Sets a flag. Any thread.
    #[inline]
    pub fn set_flag(&self, flag: u32) {
        self.flags.fetch_or(flag, Ordering::Release);
    }

    /// Clears a flag.
    #[inline]
    pub fn clear_flag(&self, flag: u32) {
        if self.flags.load(Ordering::Relaxed) & flag != 0 {
            self.flags.fetch_and(!flag, Ordering::Release);
        }
    }

    /// Whether a flag is set.
    #[inline]
    pub fn has_flag(&self, flag: u32) -> bool {
        self.flags.load(Ordering::Acquire) & flag != 0
    }

    /// Whether the way back to user mode has something to do.
    #[inline(always)]
    pub fn has_work(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & flags::WORK != 0
    }

    /// Whether signals want something done before user mode: what ends an interruptible sleep.
    #[inline(always)]
    pub fn has_signal_work(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & flags::SIGNAL_WORK != 0
    }

    /// The thread has been off the CPU: another may have its number, and its concurrency id.
    #[inline(always)]
    pub fn note_switched(&self) {
        if self.rseq.at.load(Ordering::Relaxed) != 0 {
            self.set_flag(flags::RSEQ);
        }
    }

    /// Its id.
    #[inline]
    pub fn pid(&self) -> &KArc<TaskPid> {
        if self.promoted.load(Ordering::Relaxed) {
            &self.process.pid
        } else {
            &self.own_pid
        }
    }

    pub(crate) fn promote(&self) {
        self.promoted.store(true, Ordering::Relaxed);
    }

    /// Thread id in the namespace it was created in.
    #[inline]
    pub fn tid(&self) -> i32 {
        self.pid().vnr() as i32
    }

    /// Whether this thread's id is its process's.
    #[inline]
    pub fn is_leader(&self) -> bool {
        KArc::ptr_eq(self.pid(), &self.process.pid)
    }

    /// The name, without the zeros behind it.
    pub fn comm_bytes(&self) -> ([u8; 16], usize) {
        let comm = *self.comm.lock();
        let len = comm.iter().position(|&b| b == 0).unwrap_or(comm.len());
        (comm, len)
    }

    /// Sets the name, cut to 15 bytes.
    pub fn set_comm(&self, name: &[u8]) {
        let mut comm = [0; 16];
        let len = name.len().min(15);
        comm[..len].copy_from_slice(&name[..len]);
        *self.comm.lock() = comm;
    }

    /// A reference to its address space.
    pub fn mm_user(&self) -> Option<MmUser> {
        self.mm.lock().clone()
    }
}
