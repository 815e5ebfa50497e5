//! Where the kernel runs: CPU identity, memory constants, preemption, IRQs, scheduling hooks.
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

#[cfg(target_os = "none")]
mod bare;
#[cfg(target_os = "none")]
pub mod hooks;
#[cfg(target_os = "none")]
pub use bare::*;

#[cfg(not(target_os = "none"))]
pub mod host;
#[cfg(not(target_os = "none"))]
pub use host::imp::*;

mod cpu_head;
pub use cpu_head::{CpuHead, NR_SLOTS};

use crate::{CpuMask, MAX_NUMNODES, NR_CPUS};

/// A running or sleeping thread; opaque to this crate, valid as long as the kernel says it is.
#[repr(transparent)]
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct ThreadPtr(pub *mut ());

impl ThreadPtr {
    /// No thread.
    pub const NULL: ThreadPtr = ThreadPtr(core::ptr::null_mut());
}

// SAFETY: a handle; only `unpark` gives it meaning, and that may be called anywhere.
unsafe impl Send for ThreadPtr {}
// SAFETY: as above.
unsafe impl Sync for ThreadPtr {}

/// Names an address space in TLB shoot-downs; opaque to this crate. 0 is the kernel's.
#[repr(transparent)]
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct MmId(pub u64);

/// Saved interrupt state, for [`local_irq_restore`].
#[must_use]
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct IrqFlags(pub(crate) usize);

static NR_CPU_IDS: AtomicUsize = AtomicUsize::new(if cfg!(target_os = "none") { 1 } else { 8 });
static NR_NODE_IDS: AtomicUsize = AtomicUsize::new(1);
static CPU_NODE: [AtomicU8; NR_CPUS] = [const { AtomicU8::new(0) }; NR_CPUS];
const _: () = assert!(MAX_NUMNODES <= 256);

/// Number of possible CPUs; ids are `0..nr_cpu_ids()`. On the host 8 until set.
#[inline]
pub fn nr_cpu_ids() -> usize {
    NR_CPU_IDS.load(Relaxed)
}

/// Sets the number of possible CPUs. Boot only, before any CPU but the first runs.
pub fn set_nr_cpu_ids(n: usize) {
    assert!((1..=NR_CPUS).contains(&n));
    NR_CPU_IDS.store(n, Relaxed);
}

/// Number of nodes; ids are `0..nr_node_ids()`.
#[inline]
pub fn nr_node_ids() -> usize {
    NR_NODE_IDS.load(Relaxed)
}

/// Sets the number of nodes. Boot only.
pub fn set_nr_node_ids(n: usize) {
    assert!((1..=MAX_NUMNODES).contains(&n));
    NR_NODE_IDS.store(n, Relaxed);
}

/// The node `cpu` belongs to.
#[inline]
pub fn cpu_to_node(cpu: usize) -> usize {
    CPU_NODE[cpu].load(Relaxed) as usize
}

/// Says which node `cpu` belongs to. Boot only, before that CPU runs.
pub fn set_cpu_node(cpu: usize, node: usize) {
    assert!(node < MAX_NUMNODES);
    CPU_NODE[cpu].store(node as u8, Relaxed);
}

/// The head of `cpu`'s window. The window must be mapped.
#[inline]
pub fn cpu_head(cpu: usize) -> &'static CpuHead {
    debug_assert!(cpu < NR_CPUS);
    // SAFETY: INV-ARCH-1: every possible CPU's window starts with an initialised CpuHead that is never unmapped.
    unsafe { &*(percpu_base(cpu) as *const CpuHead) }
}

/// This CPU's head. Stable only with preemption off.
#[inline]
pub fn this_cpu_head() -> &'static CpuHead {
    // SAFETY: INV-ARCH-1.
    unsafe { &*(this_cpu_base() as *const CpuHead) }
}

/// Tells the CPUs in `cpus` to drop `start..end` of `mm` from their TLBs, and drops it here. Waits for them.
/// May not be called with IRQs off.
#[inline]
pub fn flush_tlb_range(cpus: &CpuMask, mm: MmId, start: usize, end: usize) {
    flush_tlb_range_imp(cpus, mm, start, end);
}
