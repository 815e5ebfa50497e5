//! `Pid<T>`: the object behind a process's numbers, and the tasks that use it.
//!
//! Problem. Signals, wait and /proc start from a number and need tasks; a number may serve at once as
//! a thread's id, a process's, a group's and a session's, and must stay reserved until the last of
//! these uses is gone.
//!
//! Mechanism. Numbers of the first four levels are inline, so that common pids need one
//! allocation; deeper ones have a box. Which namespace a number belongs to need not be stored: it
//! is the leaf's ancestor at that level, and the Pid keeps the leaf. At most one task uses a pid
//! as PID and one as TGID: two slots; groups and sessions are lists through the task's links, here or, when many join and
//! leave at once, in a [`crowd`](crate::crowd).
//!
//! Another life. With a map that keeps pids ([`Extra::One`] and so on) the object whose last reference is gone may
//! rest, and come back with the same numbers. Whoever holds a reference holds one life of it.
//!
//! Lock order: `pid_lists` is a leaf; `visit`ors run under it and may take locks that nest inside.
//!
//! Invariants: INV-PID-3, INV-PID-5, and
//! - INV-PID-7 (no return): once the last member has left, nobody joins.

use crate::crowd::{Crowd, Lists};
use crate::namespace::{NsRef, PidNamespace};
use crate::sharded::ShardedMap;
use crate::{MAX_NUMBERS, Member};
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering::Relaxed};
use ksync::rcu::RcuGuard;
use ksync::{SpinLock, arch, lock_class};
use slab::{AllocError, Idle, KArc, KBox};
use spin::Once;
use xarray::{Chain, Seat};

/// What a task uses a pid as.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum PidType {
    /// A thread's id.
    Pid,
    /// A process's id: that of its leading thread.
    Tgid,
    /// A process group's.
    Pgid,
    /// A session's.
    Sid,
}

/// Link slot of tasks for process groups.
pub const PGID_SLOT: usize = 0;
/// Link slot of tasks for sessions.
pub const SID_SLOT: usize = 1;

/// Levels whose numbers are inline.
const INLINE: usize = 4;
/// Numbers beyond [`INLINE`].
type Deep = [AtomicU32; MAX_NUMBERS - INLINE];

/// Why a task could not join.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// The last user has left: the number is being freed (ESRCH).
    Dead,
    /// The task is in a group or session already, or another task is PID or TGID. A caller's bug.
    Busy,
}

/// The object behind a number in a namespace and in its ancestors.
pub struct Pid<T: Member> {
    /// `numbers[i]`: the number at level i. Written before the pid is visible (INV-PID-3).
    inline: [AtomicU32; INLINE],
    deep: Option<KBox<Deep>>,
    /// What the map had it bring.
    extra: Extra<T>,
    /// Some task uses it as TGID. Written under the lists' lock; for a look without.
    is_process: AtomicBool,
    /// Set by the first `free`. Written under the map's lock, or by who took it out.
    freed: AtomicBool,
    /// INV-PID-7. Written under the lists' lock, and before another life.
    dead: AtomicBool,
    /// Its numbers may be had again together. Written before the pid is visible; false for good once there is a crowd.
    may_rest: AtomicBool,
    /// Somebody found the lists' lock taken who wanted to join.
    contended: AtomicBool,
    /// INV-CROWD-1.
    crowd: Once<KBox<Crowd<T>>>,
    /// The node that it is in memory of.
    home: AtomicU16,
    lists: SpinLock<Users<T>>,
    /// The leaf; keeps its ancestors. Dropped last: seats are in their maps.
    ns: NsRef<T>,
}

slab::object!(impl[T: Member] Pid<T>, links = 0, rcu, rest = Pid::at_rest);

/// What a map wants each pid to bring.
pub enum Extra<T: Member> {
    /// Nothing.
    None,
    /// For maps that hash: its nodes. Touched under the map's lock.
    Chain(Chain),
    /// For maps to which pids come back: the seat in the root's map.
    One(Seat<Pid<T>>),
    /// The seats at up to four levels, root first.
    Few(KBox<[Seat<Pid<T>>; INLINE]>),
    /// The seats at all levels there may be.
    Most(KBox<[Seat<Pid<T>>; MAX_NUMBERS]>),
}

impl<T: Member> Extra<T> {
    /// Seats for `nr` levels.
    #[inline(always)]
    pub(crate) fn seats(nr: usize) -> Result<Self, AllocError> {
        Ok(match nr {
            0..=1 => Extra::One(Seat::none()),
            2..=INLINE => Extra::Few(KBox::new([const { Seat::none() }; INLINE])?),
            _ => Extra::Most(KBox::new([const { Seat::none() }; MAX_NUMBERS])?),
        })
    }
}

/// Who uses a pid. Each entry owns a reference to the task.
pub(crate) struct Users<T: Member> {
    pid: Option<KArc<T>>,
    tgid: Option<KArc<T>>,
    pub(crate) lists: Lists<T>,
    /// INV-CROWD-2.
    pub(crate) crowded: bool,
    /// Walks under way.
    pub(crate) walks: u32,
}

/// Room for the numbers of a new pid.
pub(crate) struct Numbers(Option<KBox<Deep>>);

impl Numbers {
    /// Room for `N` numbers.
    #[inline(always)]
    pub fn new<const N: usize>() -> Result<Self, AllocError> {
        if N <= INLINE {
            return Ok(Numbers(None));
        }
        Ok(Numbers(Some(KBox::new(
            [const { AtomicU32::new(0) }; MAX_NUMBERS - INLINE],
        )?)))
    }
}

impl<T: Member> Pid<T> {
    #[inline(always)]
    pub(crate) fn new(ns: NsRef<T>, numbers: Numbers, extra: Extra<T>) -> Self {
        Pid {
            ns,
            inline: [const { AtomicU32::new(0) }; INLINE],
            deep: numbers.0,
            extra,
            is_process: AtomicBool::new(false),
            freed: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            may_rest: AtomicBool::new(false),
            contended: AtomicBool::new(false),
            crowd: Once::new(),
            home: AtomicU16::new(0),
            lists: SpinLock::new(
                Users {
                    pid: None,
                    tgid: None,
                    lists: Lists::new(),
                    crowded: false,
                    walks: 0,
                },
                lock_class!("pid_lists"),
            ),
        }
    }

    /// The namespace the pid was made in.
    #[inline(always)]
    pub fn ns(&self) -> &KArc<PidNamespace<T>> {
        &self.ns
    }

    /// The depth of that namespace.
    #[inline(always)]
    pub fn level(&self) -> u32 {
        self.ns.level()
    }

    #[inline(always)]
    fn number(&self, level: u32) -> &AtomicU32 {
        let level = level as usize;
        if level < INLINE {
            return &self.inline[level];
        }
        &self.deep.as_ref().expect("as deep as its namespace")[level - INLINE]
    }

    /// The number at `level`, at most the pid's own.
    #[inline(always)]
    pub fn nr_at(&self, level: u32) -> u32 {
        self.number(level).load(Relaxed)
    }

    #[inline(always)]
    pub(crate) fn set_nr(&self, level: u32, nr: u32) {
        self.number(level).store(nr, Relaxed);
    }

    /// The number in the root namespace.
    #[inline(always)]
    pub fn nr(&self) -> u32 {
        self.inline[0].load(Relaxed)
    }

    /// The number in the pid's own namespace.
    #[inline(always)]
    pub fn vnr(&self) -> u32 {
        self.nr_at(self.level())
    }

    /// Whether this is the first process of its namespace.
    #[inline]
    pub fn is_child_reaper(&self) -> bool {
        self.vnr() == 1
    }

    /// The nodes of a map that hashes.
    #[inline]
    pub(crate) fn chain(&self) -> Option<&Chain> {
        match &self.extra {
            Extra::Chain(chain) => Some(chain),
            _ => None,
        }
    }

    /// The seats of a map to which pids come back, root first; at least one per level.
    #[inline(always)]
    pub(crate) fn seats(&self) -> &[Seat<Self>] {
        match &self.extra {
            Extra::One(seat) => core::slice::from_ref(seat),
            Extra::Few(seats) => &seats[..],
            Extra::Most(seats) => &seats[..],
            _ => &[],
        }
    }

    /// Its numbers may be had again together, when it comes back on this node.
    #[inline(always)]
    pub(crate) fn set_may_rest(&self) {
        self.home.store(arch::numa_node_id() as u16, Relaxed);
        self.may_rest.store(true, Relaxed);
    }

    /// The last reference is gone.
    #[inline(always)]
    fn at_rest(idle: Idle<Self>, here: &RcuGuard) {
        if idle.may_rest.load(Relaxed)
            && usize::from(idle.home.load(Relaxed)) == arch::numa_node_id()
        {
            ShardedMap::keep(idle, here);
        }
    }

    /// As new, but for its numbers: before its first reference.
    #[inline(always)]
    pub(crate) fn renew(&self) {
        self.freed.store(false, Relaxed);
        self.dead.store(false, Relaxed);
        self.contended.store(false, Relaxed);
    }

    /// True for the first caller only. Context: the map's lock held.
    #[inline]
    pub(crate) fn mark_freed(&self) -> bool {
        !self.freed.load(Relaxed) && {
            self.freed.store(true, Relaxed);
            true
        }
    }

    /// For the caller that took it out of its map.
    #[inline(always)]
    pub(crate) fn set_freed(&self) {
        self.freed.store(true, Relaxed);
    }

    /// Whether `free_pid` has been called.
    pub fn is_freed(&self) -> bool {
        self.freed.load(Relaxed)
    }

    // --- users ---------------------------------------------------------------------------------

    #[inline(always)]
    pub(crate) fn users(&self) -> &SpinLock<Users<T>> {
        &self.lists
    }

    #[inline(always)]
    pub(crate) fn crowd(&self) -> Option<&Crowd<T>> {
        self.crowd.get().map(|crowd| &**crowd)
    }

    /// Context: under the lists' lock, once (INV-CROWD-1).
    pub(crate) fn set_crowd(&self, crowd: KBox<Crowd<T>>) {
        // The next life would find it closed.
        self.may_rest.store(false, Relaxed);
        self.crowd.call_once(|| crowd);
    }

    #[cold]
    pub(crate) fn note_contention(&self) {
        self.contended.store(true, Relaxed);
    }

    #[inline(always)]
    pub(crate) fn is_contended(&self) -> bool {
        self.contended.load(Relaxed)
    }

    #[inline(always)]
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Relaxed)
    }

    /// Context: under the lists' lock. True: nobody uses it, and nobody will.
    #[inline(always)]
    pub(crate) fn end_if_unused(&self, users: &Users<T>) -> bool {
        if users.is_empty() {
            self.dead.store(true, Relaxed);
        }
        users.is_empty()
    }

    /// Makes `task` the one that uses it as PID or as TGID; members of groups and sessions [`join`](Self::join). Context:
    /// any but hard IRQ, spinlocks of outer order may be held.
    #[inline]
    pub fn attach(&self, kind: PidType, task: KArc<T>) -> Result<(), AttachError> {
        let mut users = self.lists.lock();
        if self.is_dead() {
            return Err(AttachError::Dead);
        }
        let slot = users.slot(kind).ok_or(AttachError::Busy)?;
        if slot.is_some() {
            return Err(AttachError::Busy);
        }
        *slot = Some(task);
        if kind == PidType::Tgid {
            self.is_process.store(true, Relaxed);
        }
        Ok(())
    }

    /// Ends `task`'s use of the pid as PID or TGID. True if it was the last use of any kind: nobody can attach any
    /// more, and the caller calls [`free_pid`](crate::free_pid). Not a user: nothing, false.
    #[inline]
    #[must_use = "the last one out frees the pid"]
    pub fn detach(&self, kind: PidType, task: &KArc<T>) -> bool {
        if kind == PidType::Tgid {
            self.close_crowd();
        }
        let mut users = self.lists.lock();
        let is_task = |slot: &mut KArc<T>| KArc::ptr_eq(slot, task);
        let gone = users.slot(kind).and_then(|slot| slot.take_if(is_task));
        if kind == PidType::Tgid {
            self.is_process.store(users.tgid.is_some(), Relaxed);
        }
        gone.is_some() && self.end_if_unused(&users)
        // `gone` is dropped here, and is not the last reference: the caller holds one.
    }

    /// Puts `new` where `old` was (exec by a thread that is not the leader). False: `old` is no user.
    pub fn replace(&self, kind: PidType, old: &KArc<T>, new: KArc<T>) -> bool {
        let mut users = self.lists.lock();
        match users.slot(kind) {
            Some(Some(task)) if KArc::ptr_eq(task, old) => {
                *task = new;
                true
            }
            _ => false,
        }
    }

    /// The task that uses the pid as PID or TGID.
    #[inline]
    pub fn task(&self, kind: PidType) -> Option<KArc<T>> {
        self.lists.lock().slot(kind)?.clone()
    }

    /// Whether some task uses the pid as TGID: a glance, without the lock.
    #[inline(always)]
    pub fn is_process(&self) -> bool {
        self.is_process.load(Relaxed)
    }

    /// Whether some task uses the pid as PID or TGID.
    #[inline]
    pub fn has_task(&self, kind: PidType) -> bool {
        self.lists
            .lock()
            .slot(kind)
            .is_some_and(|slot| slot.is_some())
    }

    /// Whether some task uses the pid as anything.
    #[inline]
    pub fn is_used(&self) -> bool {
        !self.lists.lock().is_empty()
    }
}

impl<T: Member> Users<T> {
    #[inline(always)]
    fn is_empty(&self) -> bool {
        self.pid.is_none() && self.tgid.is_none() && self.lists.is_empty() && !self.crowded
    }

    #[inline(always)]
    fn slot(&mut self, kind: PidType) -> Option<&mut Option<KArc<T>>> {
        match kind {
            PidType::Pid => Some(&mut self.pid),
            PidType::Tgid => Some(&mut self.tgid),
            PidType::Pgid | PidType::Sid => None,
        }
    }

    #[inline(always)]
    pub(crate) fn is_process(&self) -> bool {
        self.tgid.is_some()
    }
}

/// The number of `pid` as seen from `ns`, 0 if it is not visible there. Any context.
#[inline]
pub fn pid_nr_ns<T: Member>(pid: &Pid<T>, ns: &PidNamespace<T>) -> u32 {
    let level = ns.level();
    match pid.ns.ancestor(level) {
        Some(own) if core::ptr::eq(own, ns) => pid.nr_at(level),
        _ => 0,
    }
}
