//! Physical memory: a buddy allocator per node, page lists per CPU.
#![no_std]

#[cfg(not(target_os = "none"))]
extern crate std;

mod buddy;
pub mod fault_inject;
#[cfg(not(target_os = "none"))]
pub mod host;
mod page;

use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::*};

pub use buddy::{Buddy, InitError};
pub use page::{NR_WORDS, Page, PageKind, PageRef, PageState};

use ksync::{LockClass, MAX_NUMNODES, SpinLock, arch};
use page::tag;

/// Largest block: 2^10 frames, 4 MiB.
pub const MAX_ORDER: u32 = 10;
/// One above the largest frame number the descriptors can name (46 bits of physical address).
pub const MAX_PFN: usize = 1 << (46 - ksync::PAGE_SHIFT);

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

/// No free block was found, or fault injection said so.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct OutOfMemory;

/// A node's memory, in frames.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeStat {
    /// Frames given to the allocator.
    pub total: usize,
    /// Free frames, those in per-CPU lists included.
    pub free: usize,
    /// Of these, in per-CPU lists.
    pub on_lists: usize,
}

static ZONE_LOCK: LockClass = LockClass::new("zone_lock");

#[repr(align(128))]
struct Zone {
    buddy: SpinLock<Buddy>,
}

static ZONES: [Zone; MAX_NUMNODES] =
    [const { Zone { buddy: SpinLock::new(Buddy::new(), &ZONE_LOCK) } }; MAX_NUMNODES];
/// Bit n: node n has memory.
static HAS_MEMORY: AtomicU64 = AtomicU64::new(0);
const END: u8 = 0xff;
/// Per node, nodes in order of distance; END ends a list. An unset list is ascending order.
static FALLBACK: [[AtomicU8; MAX_NUMNODES]; MAX_NUMNODES] =
    [const { [const { AtomicU8::new(END) }; MAX_NUMNODES] }; MAX_NUMNODES];

/// Gives ranges of page frame numbers to the allocator as free memory of `node`.
///
/// # Safety
/// The vmemmap contract: for each range, rounded out to 4 MiB, the descriptors at
/// `arch::vmemmap_base() + pfn * 64` are mapped for ever and read zero before the first call; the
/// frames are in the direct map and nobody uses them.
pub unsafe fn init_node(node: usize, ranges: &[Range<usize>]) -> Result<(), InitError> {
    if node >= MAX_NUMNODES {
        return Err(InitError::BadNode);
    }
    let mem_map = arch::vmemmap_base() as *mut Page;
    for r in ranges {
        // SAFETY: our caller's contract.
        unsafe { ZONES[node].buddy.lock().add_range(mem_map, node, r.clone())? };
        HAS_MEMORY.fetch_or(1 << node, Release);
    }
    Ok(())
}

/// Sets up the page lists of a CPU. After `init_node`, before that CPU's first allocation.
pub fn init_percpu(_cpu: usize) -> Result<(), OutOfMemory> {
    Ok(())
}

/// Nodes to try for an allocation meant for `node`, nearest first (`node` itself included).
pub fn set_fallback_order(node: usize, order: &[usize]) {
    for (i, slot) in FALLBACK[node].iter().enumerate() {
        slot.store(order.get(i).map_or(END, |&n| n as u8), Relaxed);
    }
}

/// One page, local node first, then by distance. Any context but hard IRQ.
#[inline]
pub fn alloc_page(gfp: Gfp) -> Result<PageRef, OutOfMemory> {
    alloc_pages_node(arch::numa_node_id(), 0, gfp)
}

/// A block of 2^order pages, local node first, then by distance.
#[inline]
pub fn alloc_pages(order: u32, gfp: Gfp) -> Result<PageRef, OutOfMemory> {
    alloc_pages_node(arch::numa_node_id(), order, gfp)
}

/// A block of 2^order pages, `node` first, then by distance unless THISNODE.
pub fn alloc_pages_node(node: usize, order: u32, gfp: Gfp) -> Result<PageRef, OutOfMemory> {
    if !gfp.contains(Gfp::NOFAULT_INJECT) && fault_inject::should_fail() {
        return Err(OutOfMemory);
    }
    if let Some(p) = take_block(node, node, order, gfp) {
        return Ok(p);
    }
    if gfp.contains(Gfp::THISNODE) {
        return Err(OutOfMemory);
    }
    for i in 0..MAX_NUMNODES {
        let set = FALLBACK[node][0].load(Relaxed) != END;
        let n = if set { FALLBACK[node][i].load(Relaxed) } else { i as u8 };
        if n == END {
            break;
        }
        if n as usize != node && let Some(p) = take_block(n as usize, node, order, gfp) {
            return Ok(p);
        }
    }
    Err(OutOfMemory)
}

fn take_block(from: usize, _wanted: usize, order: u32, gfp: Gfp) -> Option<PageRef> {
    if HAS_MEMORY.load(Acquire) >> from & 1 == 0 {
        return None;
    }
    let head: NonNull<Page> = ZONES[from].buddy.lock().alloc(order)?;
    let page = PageRef::from_desc(head);
    for i in 1..1usize << order {
        PageRef::from_pfn(page.pfn() + i).desc().set_tag(tag(PageState::Tail, order, from));
    }
    page.desc().make_allocated(tag(PageState::Allocated, order, from));
    if gfp.contains(Gfp::ZERO) {
        for i in 0..1usize << order {
            // SAFETY: the block is ours alone, 2^order frames long, in the direct map.
            unsafe { arch::clear_page(page.virt().add(i << ksync::PAGE_SHIFT)) };
        }
    }
    Some(page)
}

/// Frees a block whose only reference is the caller's and that no speculative look-up
/// (`try_get`) can reach: no atomic operation. Else use [`PageRef::put`].
#[inline]
pub fn free_pages(page: PageRef) {
    let head = page.head();
    if head.ref_count() != 1 {
        bad_page(head, "free_pages of a page with other references");
    }
    head.desc().set_refcount_zero();
    free_block(head);
}

pub(crate) fn free_block(head: PageRef) {
    if !head.is_allocated() || head.map_count() != 0 {
        bad_page(head, "free of a page that is free or mapped");
    }
    ZONES[head.node()].buddy.lock().free(head.as_ptr(), head.order());
}

/// A page is freed twice or still mapped: memory is corrupt already, stop here.
#[cold]
#[inline(never)]
pub(crate) fn bad_page(page: PageRef, what: &str) -> ! {
    panic!("{what}: {page:?} node {} order {} refs {} maps {}", page.node(), page.order(), page.ref_count(), page.map_count())
}

/// A node's counts: exact when nobody allocates meanwhile.
pub fn nr_free(node: usize) -> NodeStat {
    let b = ZONES[node].buddy.lock();
    NodeStat { total: b.nr_managed(), free: b.nr_free(), on_lists: 0 }
}

/// Returns every per-CPU page to its buddy.
pub fn drain_all() {}
