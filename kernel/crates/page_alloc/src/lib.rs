//! Physical memory: a buddy allocator per node, page lists per CPU.
//!
//! # Problem
//! Everything a kernel owns ends up in frames of 4 KiB. Fork, exec and exit take and return them by
//! the dozen on every CPU at once; memory near the CPU is faster than memory far away; a page lost
//! or freed twice is a bug that shows up somewhere else, much later.
//!
//! # Mechanism
//! Three layers, each in a file with its own theory:
//!
//! ```text
//!   alloc_page, PageRef::put            this file, page.rs: the handle, references, checks
//!        |  two dozen instructions, no lock
//!   CPU lists (lists.rs)                order 0..=3 of the CPU's own node, stash for others
//!        |  batches
//!   zones (zone.rs)                     one lock per node; fallback by distance
//!        |
//!   Buddy (buddy.rs)                    free blocks of order 0..=10, coalescing
//! ```
//!
//! # Contexts
//! Nothing here sleeps except [`drain_all`]. Every call may be made with spinlocks held, IRQs off,
//! or from an RCU callback, but **never from a hard interrupt handler**: the CPU lists are guarded
//! by preemption alone, which keeps `cli`/`sti` out of the fast path (INV-LIST-1).
//!
//! # Lock order
//! `drain_mutex` before `zone_lock`; `zone_lock` is a leaf.
//!
//! # Boot order
//! 1. The kernel maps the vmemmap (see [`init_node`]) and tells ksync CPUs and nodes.
//! 2. [`set_fallback_order`] for each node, [`init_node`] for each node with memory. From here
//!    allocation works on the boot CPU, straight from the buddies.
//! 3. The per-CPU windows exist; [`init_percpu`] for each possible CPU.
//!
//! # Invariants
//! INV-PAGE (page.rs), INV-BUDDY (buddy.rs), INV-LIST (lists.rs), and
//! - INV-FREE-1: for each node, frames in its buddy + in CPU lists + in the hands of callers equals
//!   the frames given by `init_node`; a failed allocation changes none of the three.

#![no_std]

#[cfg(not(target_os = "none"))]
extern crate std;

mod buddy;
pub mod fault_inject;
#[cfg(not(target_os = "none"))]
pub mod host;
mod lists;
mod page;
mod zone;

use core::ops::Range;

pub use buddy::{Buddy, InitError};
pub use page::{NR_WORDS, Page, PageKind, PageRef, PageState};

use core::sync::atomic::{AtomicPtr, Ordering};
use ksync::{PAGE_SHIFT, PreemptGuard, arch};

/// Largest block: 2^10 frames, 4 MiB.
pub const MAX_ORDER: u32 = 10;
/// One above the largest frame number the descriptors can name (46 bits of physical address).
pub const MAX_PFN: usize = 1 << (46 - PAGE_SHIFT);

bitflags::bitflags! {
    /// How to allocate. `Gfp::empty()` is the usual choice.
    #[derive(Copy, Clone, PartialEq, Eq, Debug)]
    pub struct Gfp: u32 {
        /// Fill with zeroes.
        const ZERO = 1;
        /// The caller cannot sleep. Today no allocation sleeps.
        const ATOMIC = 2;
        /// Only the node asked for, no fallback.
        const THISNODE = 4;
        /// Exempt from fault injection (boot, reporting).
        const NOFAULT_INJECT = 8;
    }
}

/// Keeps a word that every allocation reads off the cache lines of words that are written.
#[repr(align(64))]
pub(crate) struct ReadMostly<T>(pub(crate) T);

/// No free block was found, or fault injection said so. Nothing changed.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct OutOfMemory;

impl core::fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("out of memory")
    }
}

impl core::error::Error for OutOfMemory {}

/// A node's memory, in frames.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeStat {
    /// Frames given to the allocator.
    pub total: usize,
    /// Free frames, those in CPU lists included.
    pub free: usize,
    /// Of these, in CPU lists.
    pub on_lists: usize,
    /// Free blocks per order in the buddy (CPU lists not included).
    pub blocks: [usize; MAX_ORDER as usize + 1],
}

/// Gives ranges of page frame numbers to the allocator as free memory of `node`. Boot (or memory
/// hot-add); may be called again with more ranges. On error the ranges before the bad one stay.
///
/// # Safety
/// The vmemmap contract. For each range, rounded out to 4 MiB (1024 frames), the descriptors at
/// `arch::vmemmap_base() + pfn * 64` are mapped for ever and read zero before the first call;
/// frames nobody manages may share one zero page of descriptors. The frames themselves are in the
/// direct map and nobody uses them.
pub unsafe fn init_node(node: usize, ranges: &[Range<usize>]) -> Result<(), InitError> {
    // SAFETY: passed on.
    unsafe { zone::add_memory(node, ranges) }
}

/// Sets up the page lists of `cpu`, in its window's slot 0. After [`init_node`] and
/// [`set_fallback_order`] (the lists belong to the nearest node with memory) and once the window
/// of `cpu` is mapped; from any CPU. Calling it again does nothing.
pub fn init_percpu(cpu: usize) -> Result<(), OutOfMemory> {
    lists::init_cpu(cpu)
}

/// Nodes to try for an allocation meant for `node`, nearest first; `node` itself may be left out,
/// it is always tried first; nodes without memory may be named. Boot only. Until set: ascending.
pub fn set_fallback_order(node: usize, order: &[usize]) {
    zone::set_fallback(node, order)
}

/// One page: this CPU's node first, then by distance. Any context but hard IRQ; never sleeps.
#[inline]
pub fn alloc_page(gfp: Gfp) -> Result<PageRef, OutOfMemory> {
    if injected(gfp) {
        return Err(OutOfMemory);
    }
    let page = if gfp.contains(Gfp::THISNODE) {
        lists::alloc_block(arch::numa_node_id(), 0, gfp)
    } else {
        lists::alloc_page()
    };
    finish(page, 0, gfp)
}

/// A block of 2^order pages: this CPU's node first, then by distance. Contexts as `alloc_page`.
#[inline]
pub fn alloc_pages(order: u32, gfp: Gfp) -> Result<PageRef, OutOfMemory> {
    if injected(gfp) {
        return Err(OutOfMemory);
    }
    let block = if gfp.contains(Gfp::THISNODE) {
        lists::alloc_block(arch::numa_node_id(), order, gfp)
    } else {
        lists::alloc_local(order, gfp)
    };
    finish(block, order, gfp)
}

/// A block of 2^order pages, naturally aligned: `node` first, then by distance unless THISNODE.
/// An order above MAX_ORDER or a node without memory and THISNODE is out of memory.
/// Contexts as `alloc_page`.
#[inline]
pub fn alloc_pages_node(node: usize, order: u32, gfp: Gfp) -> Result<PageRef, OutOfMemory> {
    if injected(gfp) {
        return Err(OutOfMemory);
    }
    finish(lists::alloc_block(node, order, gfp), order, gfp)
}

#[inline(always)]
fn injected(gfp: Gfp) -> bool {
    !gfp.contains(Gfp::NOFAULT_INJECT) && fault_inject::should_fail()
}

#[inline(always)]
fn finish(block: Option<PageRef>, order: u32, gfp: Gfp) -> Result<PageRef, OutOfMemory> {
    let block = match block {
        Some(block) => block,
        None => pressed(order, gfp)?,
    };
    if gfp.contains(Gfp::ZERO) {
        for i in 0..1usize << order {
            // SAFETY: the block is ours alone, 2^order frames long, in the direct map.
            unsafe { arch::clear_page(block.virt().add(i << PAGE_SHIFT)) };
        }
    }
    Ok(block)
}

static PRESSURE_HOOK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Sets what is called when there is no block left: it frees what it can, in the context of the allocation, and returns
/// the number of pages. It allocates nothing. Boot only.
pub fn set_pressure_hook(hook: fn() -> usize) {
    PRESSURE_HOOK.store(hook as *mut (), Ordering::Release);
}

/// Asks the hook for memory and looks once more, for an allocation that would take a block of any node.
#[cold]
#[inline(never)]
fn pressed(order: u32, gfp: Gfp) -> Result<PageRef, OutOfMemory> {
    let hook = PRESSURE_HOOK.load(Ordering::Acquire);
    if hook.is_null() || gfp.contains(Gfp::THISNODE) {
        return Err(OutOfMemory);
    }
    // SAFETY: only `set_pressure_hook` stores here, and what it stores is such a function.
    let hook = unsafe { core::mem::transmute::<*mut (), fn() -> usize>(hook) };
    if hook() == 0 {
        return Err(OutOfMemory);
    }
    lists::alloc_local(order, gfp).ok_or(OutOfMemory)
}

/// Frees a block whose only reference is the caller's and that no speculative look-up
/// ([`PageRef::try_get`]) can reach: saves the atomic decrement of [`PageRef::put`]. Page tables,
/// slabs, stacks. Other references or a second free stop the kernel. Contexts as `put`.
#[inline]
pub fn free_pages(page: PageRef) {
    let head = page.head();
    if head.ref_count() != 1 {
        bad_page(head, "free_pages of a page that is free already or shared");
    }
    head.desc().set_refcount_zero();
    lists::free_block(head);
}

/// [`PageRef::put`] of each: one section with preemption off for all. For batches of some dozens,
/// as page-table teardown collects them. Contexts as `put`.
pub fn put_pages(pages: &[PageRef]) {
    let guard = PreemptGuard::new();
    for page in pages {
        let head = page.head();
        if head.drop_ref() {
            lists::free_block_under(&guard, head);
        }
    }
}

/// A page is freed twice or while mapped: memory is corrupt already, stop here.
#[cold]
#[inline(never)]
pub(crate) fn bad_page(page: PageRef, what: &str) -> ! {
    panic!(
        "bad page: {what}: {page:?} {:?} node {} order {} refs {} maps {} kind {:?}",
        page.state(),
        page.node(),
        page.order(),
        page.ref_count(),
        page.map_count(),
        page.kind()
    )
}

/// A node's counts: exact while nobody allocates or frees, else a snapshot. Takes the zone lock
/// and walks lists: for reports and tests.
pub fn nr_free(node: usize) -> NodeStat {
    let buddy = zone::lock(node);
    let (total, in_buddy) = (buddy.nr_managed(), buddy.nr_free());
    let blocks = core::array::from_fn(|order| buddy.nr_blocks(order as u32));
    drop(buddy);
    let on_lists = lists::counts(node);
    NodeStat {
        total,
        free: in_buddy + on_lists,
        on_lists,
        blocks,
    }
}

/// Returns this CPU's lists to the buddies. Any context but hard IRQ. For a CPU that goes idle for
/// long or offline.
pub fn drain_local() {
    lists::drain_local()
}

/// Returns every CPU's lists to the buddies. May sleep (a grace period); needs the scheduler.
/// A caller that may sleep and got [`OutOfMemory`] may drain and try once more.
pub fn drain_all() {
    lists::drain_all()
}

/// Stops the kernel if a node's free lists are not what the invariants say. O(free blocks).
pub fn check_invariants(node: usize) {
    zone::lock(node).check_invariants()
}
