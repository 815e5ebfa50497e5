//! The ground floor: CPU identity, preemption, IRQ guards, locks, wait queues, lock statistics, RCU.
//!
//! Problem: everything above wants to run unchanged on the bare machine, in host tests, and under a model
//! checker. Mechanism: this crate alone knows where it runs. [`arch`] has three backends (`target_os = "none"`,
//! `cfg(loom)`, host), and the locks are written once on top of it.
//!
//! Lock order: every spinning lock is a leaf with respect to this crate; sleeping locks take one internal
//! spinlock (their wait list) with IRQs off and nothing under it.
#![no_std]

#[cfg(not(target_os = "none"))]
extern crate std;

pub mod arch;
mod completion;
mod cpumask;
mod lock;
pub mod lockdep;
pub mod lockstat;
mod mutex;
#[cfg(loom)]
pub mod planted;
pub mod rcu;
mod rwlock;
mod rwsem;
pub mod static_key;
mod sync;
#[cfg(not(loom))]
pub mod trace;
mod wait;

pub use arch::{CpuHead, IrqFlags, MmId, ThreadPtr};
pub use completion::Completion;
pub use cpumask::CpuMask;
pub use lock::{
    Backend, Guard, IrqGuard, IrqOffGuard, Lock, Mcs, McsLock, PreemptGuard, Queued, SpinGuard,
    SpinIrqGuard, SpinLock, Tas, TasLock, Ticket, TicketLock, VIRT_SPIN,
};
pub use lockstat::LockClass;
pub use mutex::{Mutex, MutexGuard};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use rwsem::{RwSem, RwSemReadGuard, RwSemWriteGuard};
pub use wait::{Interrupted, WaitEntry, WaitQueue};

/// Greatest number of possible CPUs.
pub const NR_CPUS: usize = 512;
/// Greatest number of NUMA nodes.
pub const MAX_NUMNODES: usize = 64;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes of a page.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
