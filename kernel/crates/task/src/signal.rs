//! Signals: sets, actions, sending and choosing what to deliver. The user stack frame is the kernel's business.
//!
//! # Mechanism
//! A signal to a process goes to its shared pending set and wakes one thread that does not block it; a signal to a
//! thread goes to that thread's set. The flag `SIGPENDING` in the thread is a hint that the way back to user mode reads
//! with one load; `recalc` makes it exact. Actions live in a table that fork shares until someone changes it, so that
//! a fork does not copy two kilobytes that nobody reads; a process whose actions are all default has no table at all.
//!
//! # Lock order
//! `process_lock` -> `task_pending` -> `sighand`. All with IRQs on: no signal is sent from an interrupt handler.
//!
//! # Invariants
//! - INV-SIG-1: a signal bit set in a pending set that some live thread does not block implies SIGPENDING on at least
//!   one such thread (set under `process_lock` after the bit).
//! - INV-SIG-2: SIGKILL and SIGSTOP are never blocked, ignored or caught.

use crate::jobs;
use crate::process::{Process, ProcessState};
use crate::task::{Task, flags};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use ksync::{SpinLock, lock_class};
use slab::{AllocError, KArc};

/// Signal numbers are 1 to 64.
pub type Signo = u32;
macro_rules! signals { ($($name:ident = $n:literal),* $(,)?) => { $(
    #[doc = concat!("Signal ", $n, ".")]
    pub const $name: Signo = $n;
)* } }
signals! {
    SIGHUP = 1, SIGINT = 2, SIGQUIT = 3, SIGILL = 4, SIGTRAP = 5, SIGABRT = 6, SIGBUS = 7, SIGFPE = 8, SIGKILL = 9,
    SIGUSR1 = 10, SIGSEGV = 11, SIGUSR2 = 12, SIGPIPE = 13, SIGALRM = 14, SIGTERM = 15, SIGCHLD = 17, SIGCONT = 18,
    SIGSTOP = 19, SIGTSTP = 20, SIGTTIN = 21, SIGTTOU = 22, SIGURG = 23, SIGXCPU = 24, SIGXFSZ = 25, SIGWINCH = 28,
    SIGSYS = 31,
}
/// Number of signals.
pub const NSIG: u32 = 64;

/// A set of signals; bit n - 1 is signal n.
pub type SigSet = u64;

/// The set with one member.
#[inline]
pub const fn bit(signo: Signo) -> SigSet {
    1 << (signo - 1)
}

/// Signals that nothing stops.
pub const UNBLOCKABLE: SigSet = bit(SIGKILL) | bit(SIGSTOP);
const DEFAULT_IGNORE: SigSet = bit(SIGCHLD) | bit(SIGCONT) | bit(SIGURG) | bit(SIGWINCH);
const DEFAULT_STOP: SigSet = bit(SIGSTOP) | bit(SIGTSTP) | bit(SIGTTIN) | bit(SIGTTOU);
/// Stops that an orphaned group does not heed.
const TERMINAL_STOP: SigSet = DEFAULT_STOP & !bit(SIGSTOP);
const DEFAULT_CORE: SigSet = bit(SIGQUIT)
    | bit(SIGILL)
    | bit(SIGTRAP)
    | bit(SIGABRT)
    | bit(SIGBUS)
    | bit(SIGFPE)
    | bit(SIGSEGV)
    | bit(SIGXCPU)
    | bit(SIGXFSZ)
    | bit(SIGSYS);
/// Signals that an instruction raises: delivered before others.
const SYNCHRONOUS: SigSet =
    bit(SIGSEGV) | bit(SIGBUS) | bit(SIGILL) | bit(SIGTRAP) | bit(SIGFPE) | bit(SIGSYS);

/// `sa_handler` values.
pub const SIG_DFL: usize = 0;
/// Ignore.
pub const SIG_IGN: usize = 1;
/// `sa_flags` bits.
pub mod sa {
    #![allow(missing_docs)]
    pub const NOCLDSTOP: u64 = 1;
    pub const NOCLDWAIT: u64 = 2;
    pub const SIGINFO: u64 = 4;
    pub const RESTORER: u64 = 0x0400_0000;
    pub const ONSTACK: u64 = 0x0800_0000;
    pub const RESTART: u64 = 0x1000_0000;
    pub const NODEFER: u64 = 0x4000_0000;
    pub const RESETHAND: u64 = 0x8000_0000;
}

/// What a process does about one signal: Linux's kernel `struct sigaction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SigAction {
    /// Address, [`SIG_DFL`] or [`SIG_IGN`].
    pub handler: usize,
    /// [`sa`] bits.
    pub flags: u64,
    /// Where the handler returns to.
    pub restorer: usize,
    /// Blocked while the handler runs.
    pub mask: SigSet,
}

/// What a signal says besides its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SigInfo {
    /// The signal.
    pub signo: Signo,
    /// `si_code`.
    pub code: i32,
    /// `si_errno`.
    pub errno: i32,
    /// Sender's pid as the receiver sees it, or 0.
    pub pid: i32,
    /// Sender's uid.
    pub uid: u32,
    /// Exit status for SIGCHLD.
    pub status: i32,
    /// Faulting address, or the value sent with the signal.
    pub value: u64,
}

/// `si_code` of kill(2).
pub const SI_USER: i32 = 0;
/// `si_code` of a signal from the kernel.
pub const SI_KERNEL: i32 = 0x80;
/// `si_code` of tgkill(2).
pub const SI_TKILL: i32 = -6;

impl SigInfo {
    /// From the kernel, for no reason a program could ask about.
    pub const fn kernel(signo: Signo) -> Self {
        SigInfo {
            signo,
            code: SI_KERNEL,
            errno: 0,
            pid: 0,
            uid: 0,
            status: 0,
            value: 0,
        }
    }
}

/// How many infos a pending set keeps; further signals stay pending without one, as when Linux is out of memory.
const NR_INFOS: usize = 4;

/// The first signal that is queued as often as it is sent.
pub const SIGRTMIN: Signo = 32;

/// Signals that wait for delivery.
#[derive(Default)]
pub struct Pending {
    set: SigSet,
    nr_infos: u8,
    infos: [SigInfo; NR_INFOS],
    /// Real-time signals in the order they came. Grows without a promise: without memory one stays without its info.
    queue: Vec<SigInfo>,
}

impl Pending {
    /// Nothing.
    pub const fn new() -> Self {
        let none = SigInfo {
            signo: 0,
            code: 0,
            errno: 0,
            pid: 0,
            uid: 0,
            status: 0,
            value: 0,
        };
        Pending {
            set: 0,
            nr_infos: 0,
            infos: [none; NR_INFOS],
            queue: Vec::new(),
        }
    }

    /// The signals in it.
    #[inline]
    pub fn set(&self) -> SigSet {
        self.set
    }

    fn add(&mut self, info: &SigInfo) {
        if info.signo >= SIGRTMIN {
            self.set |= bit(info.signo);
            if self.queue.try_reserve(1).is_ok() {
                self.queue.push(*info);
            }
            return;
        }
        if self.set & bit(info.signo) != 0 {
            return; // one of each kind is kept
        }
        self.set |= bit(info.signo);
        if (self.nr_infos as usize) < NR_INFOS {
            self.infos[self.nr_infos as usize] = *info;
            self.nr_infos += 1;
        }
    }

    fn remove(&mut self, set: SigSet) {
        self.set &= !set;
        self.queue.retain(|i| set & bit(i.signo) == 0);
        let mut kept = 0;
        for i in 0..self.nr_infos as usize {
            if set & bit(self.infos[i].signo) == 0 {
                self.infos[kept] = self.infos[i];
                kept += 1;
            }
        }
        self.nr_infos = kept as u8;
    }

    fn take(&mut self, blocked: SigSet) -> Option<SigInfo> {
        let ready = self.set & !blocked;
        if ready == 0 {
            return None;
        }
        let first = if ready & SYNCHRONOUS != 0 {
            ready & SYNCHRONOUS
        } else {
            ready
        };
        let signo = first.trailing_zeros() + 1;
        if let Some(at) = self.queue.iter().position(|i| i.signo == signo) {
            let info = self.queue.remove(at);
            if self.queue.iter().all(|i| i.signo != signo) {
                self.set &= !bit(signo);
            }
            return Some(info);
        }
        let info = self.infos[..self.nr_infos as usize]
            .iter()
            .find(|i| i.signo == signo)
            .copied();
        self.remove(bit(signo));
        Some(info.unwrap_or(SigInfo {
            signo,
            ..Default::default()
        }))
    }
}

/// The actions of a process for all signals.
struct Table {
    actions: [SigAction; NSIG as usize],
}
slab::object!(TableObject, "sigtable", links = 0);
/// A table that processes share until one changes it.
struct TableObject(SpinLock<Table>);

/// Signal handlers: shared by the threads of a process, and by processes cloned with CLONE_SIGHAND.
pub struct SigHand {
    table: SpinLock<Option<KArc<TableObject>>>,
}
slab::object!(SigHand, "sighand", links = 0);

impl SigHand {
    /// All default.
    pub fn new() -> Self {
        SigHand {
            table: SpinLock::new(None, lock_class!("sighand")),
        }
    }

    /// A copy for a forked process: the same actions until either changes one.
    pub fn fork(&self) -> Self {
        SigHand {
            table: SpinLock::new(self.table.lock().clone(), lock_class!("sighand")),
        }
    }

    /// The action for `signo`.
    #[inline]
    pub fn action(&self, signo: Signo) -> SigAction {
        match &*self.table.lock() {
            None => SigAction::default(),
            Some(table) => table.0.lock().actions[signo as usize - 1],
        }
    }

    /// The signals that are ignored and those that are caught.
    pub fn dispositions(&self) -> (SigSet, SigSet) {
        let (mut ignored, mut caught) = (0, 0);
        if let Some(table) = &*self.table.lock() {
            for (action, signo) in table.0.lock().actions.iter().zip(1..) {
                match action.handler {
                    SIG_DFL => {}
                    SIG_IGN => ignored |= bit(signo),
                    _ => caught |= bit(signo),
                }
            }
        }
        (ignored, caught)
    }

    /// Replaces the action for `signo`. Fails without memory for a table of its own, and then changes nothing.
    pub fn set_action(&self, signo: Signo, action: SigAction) -> Result<(), AllocError> {
        // Allocated before the lock; thrown away when the table turns out to be ours already.
        let fresh = KArc::<TableObject>::try_uninit()?;
        let mut slot = self.table.lock();
        let private = match &*slot {
            Some(table) if KArc::refcount(table) == 1 => true,
            None if action == SigAction::default() => return Ok(()),
            _ => false,
        };
        if !private {
            let actions = match &*slot {
                Some(shared) => shared.0.lock().actions,
                None => [SigAction::default(); NSIG as usize],
            };
            *slot = Some(fresh.write(TableObject(SpinLock::new(
                Table { actions },
                lock_class!("sigtable"),
            ))));
        }
        if let Some(table) = &*slot {
            table.0.lock().actions[signo as usize - 1] = action;
        }
        Ok(())
    }

    /// What exec keeps: ignored stays ignored, handlers become default. Fails without memory, changing nothing.
    pub fn reset_handlers(&self) -> Result<(), AllocError> {
        let mut kept = [SigAction::default(); NSIG as usize];
        let mut any = false;
        match &*self.table.lock() {
            None => return Ok(()),
            Some(table) => {
                for (kept, action) in kept.iter_mut().zip(&table.0.lock().actions) {
                    if action.handler == SIG_IGN {
                        kept.handler = SIG_IGN;
                        any = true;
                    }
                }
            }
        }
        let table = if any {
            Some(KArc::new(TableObject(SpinLock::new(
                Table { actions: kept },
                lock_class!("sigtable"),
            )))?)
        } else {
            None
        };
        *self.table.lock() = table;
        Ok(())
    }
}

/// Whether `signo` with `action` would have no effect, so that sending it need not wake anybody.
fn is_ignored(signo: Signo, action: &SigAction) -> bool {
    action.handler == SIG_IGN
        || action.handler == SIG_DFL && DEFAULT_IGNORE & bit(signo) != 0 && signo != SIGCONT
}

/// Sends a signal to a process. Context: no spinlock but outer ones of the lock order held, and for SIGCONT none.
pub fn send_to_process(process: &Process, info: &SigInfo) {
    let mut continued = false;
    {
        let mut state = process.lock.lock();
        if state.is_zombie() {
            return;
        }
        if info.signo == SIGCONT {
            state.pending.remove(DEFAULT_STOP);
            for thread in state.threads.iter() {
                thread.pending.lock().remove(DEFAULT_STOP);
            }
            continued = jobs::go_on(&mut state);
            state.threads.iter().for_each(|t| wake_for_signal(t));
        } else if DEFAULT_STOP & bit(info.signo) != 0 {
            state.pending.remove(bit(SIGCONT));
        }
        queue(process, &mut state, info);
    }
    if continued {
        jobs::tell_parent(process, jobs::CLD_CONTINUED, SIGCONT);
    }
}

/// Adds a signal to what is pending for a process, whose lock is held, and wakes who is to take it.
fn queue(process: &Process, state: &mut ProcessState, info: &SigInfo) {
    let action = process.sighand().action(info.signo);
    if process.is_namespace_init() && action.handler == SIG_DFL && !may_end_init(info) {
        return;
    }
    if info.signo == SIGKILL {
        let status = SIGKILL as i32;
        return state.start_group_exit(status);
    }
    let blocked_by_all = state.threads.iter().all(|t| blocks(t, info.signo));
    if is_ignored(info.signo, &action) && !blocked_by_all {
        return;
    }
    state.pending.add(info);
    let chosen = state
        .threads
        .iter()
        .find(|t| t.blocked.load(Ordering::Relaxed) & bit(info.signo) == 0);
    if let Some(thread) = chosen {
        wake_for_signal(thread);
    }
}

/// The first process of a namespace is ended or stopped only from outside (where its sender has no number), and only by
/// the two signals that nothing stops.
fn may_end_init(info: &SigInfo) -> bool {
    (info.pid == 0 || info.code == SI_KERNEL) && UNBLOCKABLE & bit(info.signo) != 0
}

/// Sends a signal to one thread.
pub fn send_to_task(task: &Task, info: &SigInfo) {
    if info.signo == SIGKILL || info.signo == SIGCONT {
        return send_to_process(&task.process, info);
    }
    let state = task.process.lock.lock();
    if state.is_zombie() {
        return;
    }
    let blocked = task.blocked.load(Ordering::Relaxed) & bit(info.signo) != 0;
    let ignored = is_ignored(info.signo, &task.process.sighand().action(info.signo));
    if ignored && !blocks(task, info.signo) {
        return;
    }
    task.pending.lock().add(info);
    if !blocked {
        wake_for_signal(task);
    }
}

/// A signal that the running thread raised by an instruction: it cannot be blocked or ignored away.
pub fn force_on_current(task: &Task, info: &SigInfo) {
    let action = task.process.sighand().action(info.signo);
    let blocked = task.blocked.load(Ordering::Relaxed) & bit(info.signo) != 0;
    if blocked || action.handler == SIG_IGN || action.handler == SIG_DFL {
        // Nobody would handle it: the default action ends the process, which needs no memory.
        let core = if DEFAULT_CORE & bit(info.signo) != 0 {
            0x80
        } else {
            0
        };
        return task
            .process
            .lock
            .lock()
            .start_group_exit(info.signo as i32 | core);
    }
    let _state = task.process.lock.lock();
    task.pending.lock().add(info);
    task.set_flag(flags::SIGPENDING);
}

/// Whether a thread blocks a signal, or waits for it: either way one that is ignored is kept.
fn blocks(task: &Task, signo: Signo) -> bool {
    let sets = [&task.blocked, &task.real_blocked];
    sets.iter()
        .any(|set| set.load(Ordering::Relaxed) & bit(signo) != 0)
}

/// Takes a signal of `set` that is pending for the running thread, blocked or not.
pub fn take_of(task: &Task, set: SigSet) -> Option<SigInfo> {
    let taken = {
        let mut state = task.process.lock.lock();
        let own = task.pending.lock().take(!set);
        own.or_else(|| state.pending.take(!set))
    };
    if taken.is_some() {
        recalc(task);
    }
    taken
}

/// From now on signals of `set` wake the running thread although it blocks them; until [`end_wait`].
pub fn begin_wait(task: &Task, set: SigSet) {
    let blocked = task.blocked.load(Ordering::Relaxed);
    task.real_blocked.store(blocked, Ordering::Relaxed);
    task.blocked.store(blocked & !set, Ordering::Relaxed);
}

/// The mask is what it was before [`begin_wait`].
pub fn end_wait(task: &Task) {
    let blocked = task.real_blocked.swap(0, Ordering::Relaxed);
    set_blocked(task, blocked);
}

fn wake_for_signal(task: &Task) {
    task.set_flag(flags::SIGPENDING);
    ksync::arch::unpark(task.thread_ptr());
}

/// Makes the running thread's SIGPENDING say what is true now.
pub fn recalc(task: &Task) {
    let state = task.process.lock.lock();
    let blocked = task.blocked.load(Ordering::Relaxed);
    let pending = state.pending.set | task.pending.lock().set;
    if pending & !blocked != 0 || state.group_exit.is_some() || state.stopped {
        task.set_flag(flags::SIGPENDING);
    } else {
        task.clear_flag(flags::SIGPENDING);
    }
}

/// Changes the running thread's mask.
pub fn set_blocked(task: &Task, mask: SigSet) {
    let mask = mask & !UNBLOCKABLE;
    let old = task.blocked.swap(mask, Ordering::Relaxed);
    if old == mask {
        return;
    }
    // A signal that only we let through may now need another thread.
    let newly = mask & !old;
    if newly != 0 && task.process.is_multithreaded() {
        let state = task.process.lock.lock();
        let orphaned = state.pending.set & newly;
        if orphaned != 0 {
            let other = state.threads.iter().find(|t| {
                !core::ptr::eq(&***t, task) && orphaned & !t.blocked.load(Ordering::Relaxed) != 0
            });
            if let Some(other) = other {
                wake_for_signal(other);
            }
        }
    }
    recalc(task);
}

/// Signals pending for the thread, blocked or not.
pub fn pending_set(task: &Task) -> SigSet {
    task.process.lock.lock().pending.set | task.pending.lock().set
}

/// What to do on the way to user mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Nothing (any more).
    None,
    /// Run a handler.
    Handle(SigInfo, SigAction),
    /// End the process with this wait status.
    Exit(i32),
    /// Sleep until continued.
    Stop(Signo),
}

/// Takes the next signal of the running thread that means something, and its action.
pub fn dequeue(task: &Task) -> Delivery {
    // Asked for without the lock, and only if a terminal's stop is pending.
    let mut orphaned = None;
    loop {
        let mut state = task.process.lock.lock();
        if let Some(status) = state.group_exit {
            return Delivery::Exit(status);
        }
        if task.has_flag(flags::KILLED) {
            return Delivery::Exit(0);
        }
        if state.stopped {
            return Delivery::Stop(SIGSTOP);
        }
        let blocked = task.blocked.load(Ordering::Relaxed);
        if orphaned.is_none() && state.pending.set & !blocked & TERMINAL_STOP != 0 {
            let pgrp = state.pgrp.clone();
            drop(state);
            orphaned = Some(jobs::is_orphaned(&pgrp));
            continue;
        }
        let own = task.pending.lock().take(blocked);
        let Some(info) = own.or_else(|| state.pending.take(blocked)) else {
            task.clear_flag(flags::SIGPENDING);
            return Delivery::None;
        };
        let sighand = task.process.sighand();
        let action = sighand.action(info.signo);
        let set = bit(info.signo);
        match action.handler {
            SIG_IGN => continue,
            SIG_DFL if DEFAULT_IGNORE & set != 0 => continue,
            SIG_DFL if task.process.is_namespace_init() && UNBLOCKABLE & set == 0 => continue,
            SIG_DFL if TERMINAL_STOP & set != 0 && orphaned == Some(true) => continue,
            SIG_DFL if DEFAULT_STOP & set != 0 => {
                jobs::stop(&mut state, info.signo);
                drop((sighand, state));
                jobs::tell_parent(&task.process, jobs::CLD_STOPPED, info.signo);
                return Delivery::Stop(info.signo);
            }
            SIG_DFL => {
                let core = if DEFAULT_CORE & set != 0 { 0x80 } else { 0 };
                state.start_group_exit(info.signo as i32 | core);
                continue;
            }
            _ => {
                drop(state);
                if action.flags & sa::RESETHAND != 0 {
                    // Cannot fail: the table that holds the handler is changed in place or, shared, copied; without
                    // memory for the copy the handler simply stays.
                    let _ = sighand.set_action(info.signo, SigAction::default());
                }
                return Delivery::Handle(info, action);
            }
        }
    }
}

/// Whether a child's end may go unreported because its parent ignores it.
pub fn parent_ignores_child(parent: &Process) -> bool {
    let action = parent.sighand().action(SIGCHLD);
    action.handler == SIG_IGN || action.flags & sa::NOCLDWAIT != 0
}

/// Discards pending signals that a new action ignores.
pub fn discard_if_ignored(task: &Task, signo: Signo) {
    if is_ignored(signo, &task.process.sighand().action(signo)) {
        let mut state = task.process.lock.lock();
        state.pending.remove(bit(signo));
        for thread in state.threads.iter() {
            thread.pending.lock().remove(bit(signo));
        }
    }
}
