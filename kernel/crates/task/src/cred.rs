//! Capabilities: the parts of the superuser's power that a thread may give up.
//!
//! # Problem
//! All users are 0 here (see "absent on purpose"), so no call would ever be refused. What depends on a refusal (the order
//! of a pid allocation's errors, a container's tool that drops what it does not need) wants at least that.
//!
//! # Mechanism
//! Each thread has Linux's four sets, as bits. Clone copies them; exec gives a superuser back what the bounding set
//! leaves. Only the thread itself writes its sets, so they are plain words.
//!
//! # Invariants
//! - INV-CRED-1: `effective` is a subset of `permitted`.

use crate::TaskError;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Capabilities that something here asks for; numbers as Linux has them.
pub mod cap {
    #![allow(missing_docs)]
    pub const SETPCAP: u32 = 8;
    pub const SYS_ADMIN: u32 = 21;
    pub const SYS_RESOURCE: u32 = 24;
    pub const CHECKPOINT_RESTORE: u32 = 40;
    /// The last one that exists.
    pub const LAST: u32 = 40;
}

/// All capabilities.
const ALL: u64 = (1 << (cap::LAST + 1)) - 1;

/// A thread's capability sets.
pub struct Cred {
    effective: AtomicU64,
    permitted: AtomicU64,
    inheritable: AtomicU64,
    bounding: AtomicU64,
}

/// What capget shows and capset takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapSets {
    /// What the thread may do now.
    pub effective: u64,
    /// What it may put into `effective`.
    pub permitted: u64,
    /// What exec keeps.
    pub inheritable: u64,
}

impl Cred {
    /// The superuser's.
    pub const fn full() -> Self {
        Cred {
            effective: AtomicU64::new(ALL),
            permitted: AtomicU64::new(ALL),
            inheritable: AtomicU64::new(0),
            bounding: AtomicU64::new(ALL),
        }
    }

    /// Makes this a copy of `other`. For a thread that nobody can find yet.
    #[inline]
    pub fn copy_from(&self, other: &Cred) {
        let copy = |to: &AtomicU64, from: &AtomicU64| to.store(from.load(Relaxed), Relaxed);
        copy(&self.effective, &other.effective);
        copy(&self.permitted, &other.permitted);
        copy(&self.inheritable, &other.inheritable);
        copy(&self.bounding, &other.bounding);
    }

    /// Whether the thread may do now what `cap` is about.
    #[inline]
    pub fn capable(&self, cap: u32) -> bool {
        self.effective.load(Relaxed) >> cap & 1 != 0
    }

    /// Whether it may choose process ids in a namespace.
    #[inline]
    pub fn may_choose_pids(&self) -> bool {
        self.capable(cap::CHECKPOINT_RESTORE) || self.capable(cap::SYS_ADMIN)
    }

    /// The sets.
    pub fn get(&self) -> CapSets {
        CapSets {
            effective: self.effective.load(Relaxed),
            permitted: self.permitted.load(Relaxed),
            inheritable: self.inheritable.load(Relaxed),
        }
    }

    /// Replaces the sets. By the thread itself.
    ///
    /// # Errors
    /// `NotPermitted`: more than there was to give.
    pub fn set(&self, new: CapSets) -> Result<(), TaskError> {
        let old = self.get();
        let inheritable_max = old.inheritable
            | match self.capable(cap::SETPCAP) {
                true => self.bounding.load(Relaxed),
                false => old.permitted,
            };
        let new = CapSets {
            effective: new.effective & ALL,
            permitted: new.permitted & ALL,
            inheritable: new.inheritable & ALL,
        };
        if new.inheritable & !inheritable_max != 0
            || new.permitted & !old.permitted != 0
            || new.effective & !new.permitted != 0
        {
            return Err(TaskError::NotPermitted);
        }
        self.effective.store(new.effective, Relaxed);
        self.permitted.store(new.permitted, Relaxed);
        self.inheritable.store(new.inheritable, Relaxed);
        Ok(())
    }

    /// Whether `cap` is in the bounding set.
    pub fn is_bounding(&self, cap: u32) -> bool {
        self.bounding.load(Relaxed) >> cap & 1 != 0
    }

    /// Takes `cap` out of the bounding set. By the thread itself.
    ///
    /// # Errors
    /// `NotPermitted` without CAP_SETPCAP.
    pub fn drop_bounding(&self, cap: u32) -> Result<(), TaskError> {
        if !self.capable(cap::SETPCAP) {
            return Err(TaskError::NotPermitted);
        }
        self.bounding.fetch_and(!(1 << cap), Relaxed);
        Ok(())
    }

    /// The thread execs, as user 0. By the thread itself.
    pub fn exec(&self) {
        let all = self.inheritable.load(Relaxed) | self.bounding.load(Relaxed);
        self.permitted.store(all, Relaxed);
        self.effective.store(all, Relaxed);
    }
}
