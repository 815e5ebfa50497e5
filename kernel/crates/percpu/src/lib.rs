//! Per-CPU memory: one offset, a private copy behind it on every CPU.
//!
//! # Problem
//! A counter that every CPU writes must not be one cache line that every CPU fights for, and an
//! array indexed by CPU puts neighbours' data on one line, and all of it on one node.
//!
//! # Mechanism
//! Each possible CPU has a *window* of the address space (`arch::percpu_base(cpu)`). An allocation
//! is an *offset*, valid in every window; `this CPU's copy` is one add: `gs:0 + offset`.
//!
//! ```text
//! window of CPU 0   | CpuHead | static | chunk 0 ......... |g| chunk 1 ......... |g| ...
//! window of CPU 1   | CpuHead | static | chunk 0 ......... |g| chunk 1 ......... |g| ...
//!                   0         128      256              252K 256K
//! ```
//!
//! A *chunk* is 63 pages at the same offset in all windows, and a guard page (`g`) that is never
//! mapped. Its map (one bit per 8 bytes) is one page. Pages are *populated* on first use, in all
//! windows at once and from each CPU's own node, through [`PercpuMemory`], which the kernel's
//! page tables implement. The first pages are there before this crate runs: boot makes them.
//! All possible CPUs are populated, so that a CPU brought up later finds its copies.
//!
//! Chunks are kept in lists by the logarithm of the longest free run they may have; an allocation
//! takes the first fit in the fullest list that can hold it, so that empty chunks stay empty and
//! [`shrink`] can give them back. `free` gives no page back: unmapping has to interrupt every CPU.
//!
//! # Lock order
//! `pcpu_populate` > `pcpu_map`; under `pcpu_populate` the kernel maps pages (its page-table lock,
//! `zone_lock`); under `pcpu_map` nothing. Both are spinlocks, so that allocation and free work in
//! any context but hard IRQ. Callers may hold any lock that is not one of these.
//!
//! # Invariants
//! - INV-PCPU-1: lines of different CPUs are never shared: windows start on page boundaries, and no
//!   byte outside a CPU's window belongs to an allocation.
//! - INV-PCPU-2: an allocated range is populated in the window of every possible CPU, and belongs
//!   to one allocation. A page is marked populated only after every window has it.
//! - INV-PCPU-3: bytes `ZERO_AREA..ZERO_AREA+64` of every window are zero for ever.
//! - INV-PCPU-4: a failed allocation leaves the map as it was. Pages that some windows got before
//!   memory ran out stay for the next attempt (`populate` is idempotent).
#![no_std]

#[cfg(any(test, not(target_os = "none")))]
extern crate std;

mod chunk;
mod counter;
#[cfg(not(target_os = "none"))]
pub mod host;
mod map;
mod ptr;
#[cfg(test)]
mod tests;
mod tree;

pub use chunk::{
    FirstChunk, PercpuMemory, Stats, alloc, alloc_batch, alloc_gfp, ensure_ready, free, init,
    shrink, stats,
};
pub use counter::PercpuCounter;
pub use ptr::{PerCpu, PreemptOff, Zeroable};
pub use tree::TreeCounter;

pub use page_alloc::{Gfp, OutOfMemory};

use ksync::CpuHead;

/// Contents of fresh per-CPU memory.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Zero {
    /// Zero in every window: one pass over all possible CPUs.
    Yes,
    /// Whatever was there: for callers that write every copy anyway.
    No,
}

/// Offset of 64 bytes that read zero on every CPU (INV-PCPU-3). A per-CPU structure for which all
/// zero means "empty" can point here until it is set up, and its fast path needs no extra test.
pub const ZERO_AREA: usize = size_of::<CpuHead>();
/// Offset of 64 bytes for the slab allocator's own use, zero at boot.
pub const SLAB_AREA: usize = ZERO_AREA + 64;
/// What this crate needs of the start of every window; boot may reserve more.
pub const RESERVED: usize = SLAB_AREA + 64;

const _: () = assert!(ZERO_AREA.is_multiple_of(64));
