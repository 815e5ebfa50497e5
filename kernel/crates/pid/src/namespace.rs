//! `PidNamespace`: a level of the tree of numbers.
//!
//! Mechanism. A namespace owns its map, whose kind is its parent's, and holds its parent. Allocation
//! is open while bit 31 of `pid_allocated` is set; clearing it stops the namespace for good. The
//! task that kills a namespace sleeps until the count says that only it is left.
//!
//! Lock order: `child_reaper` is a leaf spinlock.
//!
//! Invariants: INV-PID-4, INV-PID-6, and
//! - INV-PID-8 (one kind): a namespace and its parent have the same kind of map.

use crate::map::{PidMap, PidMapKind, PidMaps};
use crate::{MAX_PID_NS_LEVEL, Member, PID_MAX_DEFAULT, PID_MAX_LIMIT, RESERVED_PIDS};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};
use ksync::{SpinLock, WaitQueue, arch, lock_class};
use slab::{AllocError, KArc};

/// The bit of `pid_allocated` that says: allocation is open.
pub const PIDNS_ADDING: u32 = 1 << 31;

/// `pid_max` of the root allows for at least this many ids per CPU by default.
const PIDS_PER_CPU_DEFAULT: u32 = if cfg!(test) { 1 } else { 1024 };
/// and may not be set below this many.
const PIDS_PER_CPU_MIN: u32 = if cfg!(test) { 1 } else { 8 };

/// Why a namespace could not be made.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum NsError {
    /// ENOSPC: nested too deeply.
    TooDeep,
    /// ENOMEM.
    NoMemory,
}

impl From<AllocError> for NsError {
    fn from(_: AllocError) -> Self {
        NsError::NoMemory
    }
}

/// EINVAL: `pid_max` outside of what the machine allows.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct PidMaxError;

/// A level of numbers.
pub struct PidNamespace<T: Member> {
    map: PidMaps<T>,
    /// Visible pids | [`PIDNS_ADDING`]. How it is written is the map's business.
    pub(crate) pid_allocated: AtomicU32,
    /// Numbers are below this.
    pid_max: AtomicU32,
    level: u32,
    parent: Option<KArc<PidNamespace<T>>>,
    /// There is or was a child reaper; for a look without the lock.
    has_reaper: AtomicBool,
    child_reaper: SpinLock<Option<KArc<T>>>,
    /// Where the dying init waits for the count to fall.
    drained: WaitQueue,
}

slab::object!(impl[T: Member] PidNamespace<T>, links = 0);

impl<T: Member> PidNamespace<T> {
    /// The root of a tree whose namespaces use maps of `kind`.
    pub fn new_root(kind: PidMapKind) -> Result<KArc<Self>, NsError> {
        let cpus = arch::nr_cpu_ids() as u32;
        let default = PID_MAX_LIMIT.min(PID_MAX_DEFAULT.max(PIDS_PER_CPU_DEFAULT * cpus));
        Self::make(kind, None, default.max(Self::pid_max_min()))
    }

    /// A namespace below `parent`.
    pub fn new_child(parent: &KArc<Self>) -> Result<KArc<Self>, NsError> {
        if parent.level >= MAX_PID_NS_LEVEL {
            return Err(NsError::TooDeep);
        }
        Self::make(parent.map.kind(), Some(parent.clone()), PID_MAX_LIMIT)
    }

    fn make(kind: PidMapKind, parent: Option<KArc<Self>>, max: u32) -> Result<KArc<Self>, NsError> {
        let ns = KArc::try_uninit()?;
        // INVARIANT: INV-PID-8: `kind` is the parent's.
        Ok(ns.write(PidNamespace {
            map: PidMaps::of_kind(kind, parent.as_ref().map(|p| p.map()))?,
            pid_allocated: AtomicU32::new(PIDNS_ADDING),
            pid_max: AtomicU32::new(max),
            level: parent.as_ref().map_or(0, |p| p.level + 1),
            parent,
            has_reaper: AtomicBool::new(false),
            child_reaper: SpinLock::new(None, lock_class!("child_reaper")),
            drained: WaitQueue::new(),
        }))
    }

    /// The map of this namespace.
    #[inline(always)]
    pub fn map(&self) -> &PidMaps<T> {
        &self.map
    }

    /// The depth; 0 is the root.
    #[inline(always)]
    pub fn level(&self) -> u32 {
        self.level
    }

    /// The namespace above.
    #[inline(always)]
    pub fn parent(&self) -> Option<&KArc<Self>> {
        self.parent.as_ref()
    }

    /// The ancestor (or self) at `level`; None if that is deeper than this.
    #[inline]
    pub fn ancestor(&self, level: u32) -> Option<&Self> {
        self.chain()
            .find(|ns| ns.level <= level)
            .filter(|ns| ns.level == level)
    }

    /// This namespace and its ancestors, leaf first.
    #[inline(always)]
    pub fn chain(&self) -> impl Iterator<Item = &Self> {
        core::iter::successors(Some(self), |ns| ns.parent.as_deref())
    }

    /// Whether `self` is `other` or below it.
    pub fn is_inside(&self, other: &Self) -> bool {
        self.ancestor(other.level)
            .is_some_and(|ns| ptr::eq(ns, other))
    }

    // --- limits --------------------------------------------------------------------------------

    /// Numbers of this namespace are below this (and below the limits of the ancestors there).
    #[inline(always)]
    pub fn pid_max(&self) -> u32 {
        self.pid_max.load(Relaxed)
    }

    fn pid_max_min() -> u32 {
        (RESERVED_PIDS + 1).max(PIDS_PER_CPU_MIN * arch::nr_cpu_ids() as u32)
    }

    /// Changes the limit. Numbers already given out stay.
    pub fn set_pid_max(&self, max: u32) -> Result<(), PidMaxError> {
        if !(Self::pid_max_min()..=PID_MAX_LIMIT).contains(&max) {
            return Err(PidMaxError);
        }
        self.pid_max.store(max, Relaxed);
        Ok(())
    }

    // --- the count -----------------------------------------------------------------------------

    /// Pids visible in this namespace.
    #[inline]
    pub fn nr_pids(&self) -> u32 {
        self.map.nr_pids(self)
    }

    /// Whether allocation is open.
    #[inline(always)]
    pub fn is_adding(&self) -> bool {
        self.pid_allocated.load(Relaxed) & PIDNS_ADDING != 0
    }

    /// Stops allocation for good: its init is dying. When this returns, no more pids appear here
    /// (INV-PID-6), and whoever looked at [`is_adding`](Self::is_adding) before, under a spinlock, has released it. May
    /// sleep: waits for an RCU grace period.
    pub fn disable_allocation(&self) {
        self.map.disable(self);
        ksync::rcu::synchronize();
        self.map.disabled(self);
    }

    /// Sleeps until at most `nr` pids are left. After [`PidNamespace::disable_allocation`]; `nr` is
    /// 1, or 2 if the caller is not its process's leader. May sleep, not interruptible.
    pub fn wait_drained(&self, nr: u32) {
        debug_assert!(!self.is_adding() && (1..=2).contains(&nr));
        self.drained.wait_until(|| self.nr_pids() <= nr);
    }

    /// To be called by a map after it has lowered the count to `allocated`.
    #[inline(always)]
    pub(crate) fn note_freed(&self, allocated: u32) {
        if allocated == 1 || allocated == 2 {
            self.drained.wake_all();
        }
    }

    // --- the reaper ----------------------------------------------------------------------------

    /// The task that inherits orphans; None before the first task and after the last.
    pub fn child_reaper(&self) -> Option<KArc<T>> {
        self.child_reaper.lock().clone()
    }

    /// Whether there is a child reaper.
    #[inline(always)]
    pub fn has_child_reaper(&self) -> bool {
        self.has_reaper.load(Acquire)
    }

    /// Takes the dead reaper out, so that it can be freed. The namespace still counts as one that has had its init:
    /// what is tried there now fails as for a namespace that stopped, not as for one that has not begun.
    pub fn retire_child_reaper(&self) -> Option<KArc<T>> {
        self.child_reaper.lock().take()
    }

    /// Sets the task that inherits orphans, and returns the one before. The reference makes a
    /// cycle (task, pid, namespace): the last task must be taken out.
    pub fn set_child_reaper(&self, task: Option<KArc<T>>) -> Option<KArc<T>> {
        let mut slot = self.child_reaper.lock();
        self.has_reaper.store(task.is_some(), Release);
        core::mem::replace(&mut slot, task)
    }
}

/// A counted reference to a namespace, taken and given back as the namespace's map likes it best: for what comes and goes
/// with every process.
pub struct NsRef<T: Member>(Option<KArc<PidNamespace<T>>>);

impl<T: Member> NsRef<T> {
    /// One more reference. Any context but hard IRQ.
    #[inline(always)]
    pub fn new(ns: &KArc<PidNamespace<T>>) -> Self {
        NsRef(Some(PidMaps::get_ns(ns)))
    }

    /// [`new`](Self::new) where the kind of map is known.
    #[inline(always)]
    pub(crate) fn of_map<M: PidMap<T>>(ns: &KArc<PidNamespace<T>>) -> Self {
        NsRef(Some(M::get_ns(ns)))
    }
}

impl<T: Member> core::ops::Deref for NsRef<T> {
    type Target = KArc<PidNamespace<T>>;
    #[inline(always)]
    fn deref(&self) -> &KArc<PidNamespace<T>> {
        match &self.0 {
            Some(ns) => ns,
            None => unreachable!("only drop takes it"),
        }
    }
}

impl<T: Member> Clone for NsRef<T> {
    #[inline]
    fn clone(&self) -> Self {
        NsRef::new(self)
    }
}

impl<T: Member> Drop for NsRef<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(ns) = self.0.take() {
            PidMaps::put_ns(ns);
        }
    }
}
