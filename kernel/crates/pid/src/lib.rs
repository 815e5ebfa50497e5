//! Process ids: numbers in nested namespaces, what they stand for, and who uses them.
//!
//! Problem. A process created in a namespace has a number there and in every ancestor; all of them
//! must appear at once or not at all, be unique, not be reused too soon, and be looked up all the
//! time, without locks. Allocation is one of the few points at which every clone and every
//! exit of the machine meet.
//!
//! Mechanism.
//!
//! ```text
//!   Pid { level 2, ns ----------> PidNamespace level 2 { map: nr -> Pid }
//!         numbers [107, 12, 1] }        | parent          ^ 1
//!                                       v                 |
//!                                 PidNamespace level 1 { map: 12 -> Pid }
//!                                       v
//!                                 PidNamespace level 0 { map: 107 -> Pid }   (the root)
//! ```
//!
//! - [`Pid`]: the object behind the numbers; it lists the tasks that use it, by [`PidType`].
//! - [`PidNamespace`]: owns a map, counts what it gave out, can be stopped.
//! - [`PidMap`]: the contract of a map; [`PidMaps`]: the closed set of maps. All namespaces of a tree
//!   use the same one. `model` (under test) is the naive one that tests compare with.
//!
//! Lock order (outer to inner): the lock of a pid's lists, never held with any other of this crate;
//! `pidmap_lock`, a leaf but for the wait queue of a namespace that drains.
//!
//! Invariants
//! - INV-PID-1 (unique): at most one Pid is visible under a number in a namespace.
//! - INV-PID-2 (all levels): a Pid is visible in its namespace and in all ancestors, or, before
//!   `alloc_pid` publishes and after `free_pid`, in none. Each level shows it in one step; the
//!   levels may show it one after the other.
//! - INV-PID-3 (complete before visible): the numbers of a visible Pid are final.
//! - INV-PID-4 (count): `pid_allocated` of a namespace is the number of Pids visible in it.
//! - INV-PID-5 (reserved while used): a number is not given out again while a task list of its Pid
//!   has members, for `free_pid` is called when the last one leaves.
//! - INV-PID-6 (stopped): no Pid becomes visible in a namespace after `disable_allocation` returned.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod alloc;
mod bitmap_hash;
mod crowd;
mod idr;
mod map;
mod namespace;
mod object;
mod relock;
mod sharded;
mod xarray;

#[cfg(test)]
mod crowd_tests;
#[cfg(test)]
mod explored;
#[cfg(test)]
mod model;
#[cfg(test)]
mod rest_tests;
#[cfg(test)]
mod tests;

pub use alloc::{alloc_pid, alloc_pid_with, find_ge_pid, find_pid_ns, free_pid, visit_pids};
pub use bitmap_hash::BitmapHashMap;
pub use crowd::Place;
pub use idr::{IdrMap, Lazy, Preloaded, Refill, nr_dropped};
pub use map::{MapVisitor, PidMap, PidMapKind, PidMaps, Plan};
pub use namespace::{NsError, NsRef, PIDNS_ADDING, PidMaxError, PidNamespace};
pub use object::{AttachError, Extra, PGID_SLOT, Pid, PidType, SID_SLOT, pid_nr_ns};
pub use relock::RelockMap;
pub use sharded::ShardedMap;
pub use xarray::XarrayMap;

/// What a pid's lists hold: the kernel's task. Link slots [`PGID_SLOT`] and [`SID_SLOT`] of its
/// [`slab::Object`] belong to this crate.
///
/// Not `Send + Sync` by bound: a task holds its pid and a pid its tasks, and the compiler finds the cycle's
/// answer only when these traits are left for it to derive.
pub trait Member: slab::Object {}
impl<T: slab::Object> Member for T {}

/// The deepest namespace; the root is 0.
pub const MAX_PID_NS_LEVEL: u32 = 32;
/// Numbers of the deepest pid.
pub const MAX_NUMBERS: usize = MAX_PID_NS_LEVEL as usize + 1;
/// Once the cursor is past this, the search wraps to here: low numbers stay for early processes.
pub const RESERVED_PIDS: u32 = if cfg!(test) { 4 } else { 300 };
/// No number reaches this.
pub const PID_MAX_LIMIT: u32 = if cfg!(test) { 1 << 10 } else { 4 << 20 };
/// The least `pid_max` of the root on a machine with few CPUs.
pub const PID_MAX_DEFAULT: u32 = if cfg!(test) { 64 } else { 0x8000 };

/// Why there is no pid. The order of checks is Linux's: with several reasons, the first of
/// these applies: too many tids; no memory for the object; a tid out of range, then a missing
/// capability, level by level; then, level by level from the leaf, taken or exhausted, no memory,
/// no reaper; last a stopped namespace.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum PidError {
    /// EINVAL: more tids than levels, a tid out of range, or a first process that is not 1.
    Invalid,
    /// EPERM: the caller may not choose tids in that namespace.
    Perm,
    /// EEXIST: the tid asked for is taken.
    Exists,
    /// EAGAIN: all numbers below `pid_max` are taken.
    Exhausted,
    /// ENOMEM: no memory, or the namespace's init has died (an ABI quirk).
    NoMemory,
}

impl From<slab::AllocError> for PidError {
    fn from(_: slab::AllocError) -> Self {
        PidError::NoMemory
    }
}
