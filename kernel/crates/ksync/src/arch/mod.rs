//! Where the kernel runs: CPU identity, memory layout, preemption, interrupts, scheduling hooks.
//!
//! # Problem
//! Per-CPU code must be a few instructions on the machine, testable under std threads, and explorable by a model
//! checker, from one source.
//!
//! # Mechanism
//! Three backends with the same functions, chosen by the target and `cfg(loom)`: `bare` (gs-relative loads, see
//! [`CpuHead`]; what it needs from the kernel is listed in [`hooks`]), [`host`] (std threads as tasks, a token per
//! emulated CPU) and `loom`. Crates above never ask which one they run on.
//!
//! # Invariants
//! - INV-ARCH-1: every CPU that runs code of this crate has its window mapped at [`percpu_base`], starting with a
//!   [`CpuHead`] that was zeroed, then initialised by [`CpuHead::init`], and stays mapped for ever. (The boot CPU may
//!   run on a static head before the windows exist, as long as no other CPU runs and it calls no `cpu_head`.)
//! - INV-ARCH-2: with preemption or IRQs off, `smp_processor_id` does not change and no other thread runs with
//!   preemption off on this CPU.
//! - INV-ARCH-3: an interrupt handler leaves `preempt_count` and every per-CPU structure of this crate as it found it.
use crate::{CpuMask, MAX_NUMNODES, NR_CPUS};
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

#[cfg(not(target_os = "none"))]
mod arena;
#[cfg(target_os = "none")]
mod bare;
mod cpu_head;
#[cfg(all(not(target_os = "none"), not(loom)))]
pub mod explore;
pub mod hooks;
#[cfg(all(not(target_os = "none"), not(loom)))]
pub mod host;
#[cfg(loom)]
pub mod loom;
#[cfg(all(target_arch = "x86_64", any(target_os = "none", test)))]
mod page_copy;
#[cfg(target_os = "none")]
pub mod sim;

#[cfg(loom)]
use self::loom as imp;
#[cfg(target_os = "none")]
use bare as imp;
#[cfg(all(not(target_os = "none"), not(loom)))]
use host as imp;

pub(crate) use cpu_head::NR_QUEUED_NODES;
pub use cpu_head::{CpuHead, NR_SLOTS};
#[cfg(target_os = "none")]
pub use imp::{DIRECT_MAP_BASE, PERCPU_BASE, VMEMMAP_BASE, enable_avx_copy};
pub use imp::{
    PERCPU_WINDOW_SHIFT, call_sites, clear_page, copy_page, cpu_relax, current,
    flush_tlb_local_page, get_cycles, interleave, irqs_disabled, local_irq_restore, local_irq_save,
    numa_node_id, page_desc_of, park, percpu_base, phys_to_virt, preempt_count, preempt_disable,
    preempt_enable, preempt_enable_no_resched, signal_pending, smp_processor_id, this_cpu_base,
    unpark, virt_to_phys, vmemmap_base,
};

/// Size of one CPU's per-CPU window in bytes: 1 GiB on the machine, 16 MiB on the host.
pub const PERCPU_WINDOW_SIZE: usize = 1 << PERCPU_WINDOW_SHIFT;
const _: () = assert!(core::mem::size_of::<CpuHead>() <= crate::PAGE_SIZE);

/// A thread, opaque to this crate: whatever the kernel keeps in [`CpuHead::current`]. A copy may be given to
/// [`unpark`] as long as the kernel keeps the thread's memory: until a grace period after the thread ended. The waits
/// of this crate may unpark a thread that has just returned from them, with IRQs off since before it did.
#[repr(transparent)]
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct ThreadPtr(pub *mut ());

impl ThreadPtr {
    /// No thread.
    pub const NULL: ThreadPtr = ThreadPtr(core::ptr::null_mut());
}

// SAFETY: a handle; only the kernel's `tine_unpark` looks behind it, and that may be called anywhere.
unsafe impl Send for ThreadPtr {}
// SAFETY: as above.
unsafe impl Sync for ThreadPtr {}

/// Names an address space in TLB shoot-downs; opaque to this crate. 0 is the kernel's.
#[repr(transparent)]
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct MmId(pub u64);

/// Interrupt state before a [`local_irq_save`], for [`local_irq_restore`].
#[must_use]
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct IrqFlags(pub(crate) usize);

// Read-mostly after boot. The host starts with 8 CPUs so that tests need no set-up.
static NR_CPU_IDS: AtomicUsize = AtomicUsize::new(if cfg!(target_os = "none") { 1 } else { 8 });
static NR_NODE_IDS: AtomicUsize = AtomicUsize::new(1);
static CPU_NODE: [AtomicU8; NR_CPUS] = [const { AtomicU8::new(0) }; NR_CPUS];
const _: () = assert!(MAX_NUMNODES <= 256);

/// Number of possible CPUs; their ids are `0..nr_cpu_ids()`. 1 (host: 8) until set.
#[inline]
pub fn nr_cpu_ids() -> usize {
    NR_CPU_IDS.load(Relaxed)
}

/// Sets the number of possible CPUs, `1..=NR_CPUS`. Boot only, before a second CPU runs.
pub fn set_nr_cpu_ids(n: usize) {
    assert!((1..=NR_CPUS).contains(&n));
    NR_CPU_IDS.store(n, Relaxed);
}

/// Number of nodes; their ids are `0..nr_node_ids()`. 1 until set.
#[inline]
pub fn nr_node_ids() -> usize {
    NR_NODE_IDS.load(Relaxed)
}

/// Sets the number of nodes, `1..=MAX_NUMNODES`. Boot only.
pub fn set_nr_node_ids(n: usize) {
    assert!((1..=MAX_NUMNODES).contains(&n));
    NR_NODE_IDS.store(n, Relaxed);
}

/// The node `cpu` belongs to; 0 until set.
#[inline]
pub fn cpu_to_node(cpu: usize) -> usize {
    CPU_NODE[cpu].load(Relaxed) as usize
}

/// Says which node `cpu` belongs to. Boot only, before that CPU runs.
pub fn set_cpu_node(cpu: usize, node: usize) {
    assert!(node < MAX_NUMNODES);
    CPU_NODE[cpu].store(node as u8, Relaxed);
}

/// The head of `cpu`'s window. `cpu` has been brought up, or its window at least mapped (INV-ARCH-1).
#[inline]
pub fn cpu_head(cpu: usize) -> &'static CpuHead {
    debug_assert!(cpu < NR_CPUS);
    imp::cpu_head(cpu)
}

/// This CPU's head. It stays this CPU's only with preemption off.
#[inline]
pub fn this_cpu_head() -> &'static CpuHead {
    imp::this_cpu_head()
}

/// Drops `start..end` of `mm` from the TLBs of the CPUs in `cpus` and of this CPU, and waits until it is done.
/// Not with IRQs off, for the other CPUs may be asking the same of this one.
#[inline]
pub fn flush_tlb_range(cpus: &CpuMask, mm: MmId, start: usize, end: usize) {
    imp::flush_tlb_range(cpus, mm, start, end);
}

/// Makes an idle `cpu` leave its halt; RCU has something for it. Any context.
#[inline]
pub(crate) fn kick_cpu(cpu: usize) {
    imp::kick_cpu(cpu);
}
