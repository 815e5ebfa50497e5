//! Resource limits of a process: a table that fork shares until somebody changes it.
//!
//! Problem: 16 pairs of numbers that nearly nobody changes, and that every fork would copy. Mechanism: no table means
//! the defaults; a change makes a new one. Lock order: `limits` is a leaf spinlock.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use ksync::{SpinLock, lock_class};
use slab::{AllocError, KArc};

/// Number of resources.
pub const NR_LIMITS: usize = 16;
/// No limit.
pub const INFINITY: u64 = u64::MAX;

/// Linux's numbers of the resources that something here looks at.
pub mod resource {
    #![allow(missing_docs)]
    pub const DATA: usize = 2;
    pub const STACK: usize = 3;
    pub const CORE: usize = 4;
    pub const NPROC: usize = 6;
    pub const NOFILE: usize = 7;
    pub const MEMLOCK: usize = 8;
    pub const AS: usize = 9;
}

/// What is in force, and what that may be raised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// In force.
    pub soft: u64,
    /// Greatest `soft`.
    pub hard: u64,
}

struct Table([Limit; NR_LIMITS]);
slab::object!(Table, "rlimits", links = 0);

const DEFAULT: [Limit; NR_LIMITS] = {
    let none = Limit {
        soft: INFINITY,
        hard: INFINITY,
    };
    let mut limits = [none; NR_LIMITS];
    limits[resource::STACK].soft = mm::STACK_LIMIT_DEFAULT as u64;
    limits[resource::CORE].soft = 0;
    limits[resource::NPROC] = Limit {
        soft: 4 << 20,
        hard: 4 << 20,
    };
    limits[resource::NOFILE] = Limit {
        soft: vfs::DEFAULT_NOFILE as u64,
        hard: vfs::NR_OPEN_MAX as u64,
    };
    limits[resource::MEMLOCK] = Limit {
        soft: 8 << 20,
        hard: 8 << 20,
    };
    limits
};

/// The limits of one process.
pub struct Limits {
    table: SpinLock<Option<KArc<Table>>>,
    /// There is a table: for a look without the lock.
    changed: AtomicBool,
}

impl Limits {
    /// The defaults.
    pub const fn new() -> Self {
        Limits {
            table: SpinLock::new(None, lock_class!("limits")),
            changed: AtomicBool::new(false),
        }
    }

    /// Takes the parent's. For a process that nobody can find yet.
    #[inline]
    pub(crate) fn inherit(&self, parent: &Limits) {
        if !parent.are_default() {
            let table = parent.table.lock().clone();
            *self.table.lock() = table;
            self.changed.store(true, Relaxed);
        }
    }

    /// Whether none was ever changed.
    #[inline]
    pub fn are_default(&self) -> bool {
        !self.changed.load(Relaxed)
    }

    /// The limit of resource `which`, below [`NR_LIMITS`].
    pub fn get(&self, which: usize) -> Limit {
        match &*self.table.lock() {
            Some(table) => table.0[which],
            None => DEFAULT[which],
        }
    }

    /// Changes one. Two changes at once: one of them may be lost, unless it is the later.
    pub fn set(&self, which: usize, limit: Limit) -> Result<(), AllocError> {
        let room = KArc::<Table>::try_uninit()?;
        let mut slot = self.table.lock();
        let mut limits = slot.as_ref().map_or(DEFAULT, |table| table.0);
        limits[which] = limit;
        let old = slot.replace(room.write(Table(limits)));
        self.changed.store(true, Relaxed);
        drop(slot);
        drop(old);
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_until_changed() {
        page_alloc::host::init(&[4096]);
        let (parent, child) = (Limits::new(), Limits::new());
        assert!(parent.are_default());
        assert_eq!(parent.get(resource::NOFILE).soft, 1024);
        let low = Limit { soft: 5, hard: 9 };
        parent.set(resource::NPROC, low).unwrap();
        child.inherit(&parent);
        assert_eq!(child.get(resource::NPROC), low);
        child.set(resource::CORE, low).unwrap();
        assert_eq!(child.get(resource::NPROC), low);
        assert_eq!(parent.get(resource::CORE).soft, 0);
    }
}
