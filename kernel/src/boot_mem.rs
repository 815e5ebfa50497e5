//! Memory from the boot stage's regions to a working page allocator, percpu windows and heap.
//!
//! Until the page allocator stands, frames come from [`Early`], which bumps through the free ranges of each node; the
//! heap is a small static buffer under `linked_list_allocator`. What they gave out is never taken back.
//!
//! # Invariants
//! - INV-BOOTMEM-1: a frame is in at most one of: a boot-stage region, handed out by `Early`, given to `page_alloc`.

use crate::arch::paging;
use bootloader_api::BootInfo;
use bootloader_api::info::MemoryRegionKind;
use core::alloc::{GlobalAlloc, Layout};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use ksync::arch::{CpuHead, phys_to_virt};
use page_alloc::{Gfp, OutOfMemory};
use percpu::{FirstChunk, PercpuMemory};
use topology::Topology;

const PAGE: usize = 4096;
/// The heap of the first moments.
const EARLY_HEAP_SIZE: usize = 256 << 10;
/// Mapped at the start of every window before percpu runs.
const FIRST_CHUNK: usize = 32 << 10;
const MAX_RANGES: usize = 128;
/// Below this the firmware and the trampoline live.
const LOW_MEMORY: usize = 1 << 20;

#[repr(align(4096))]
struct EarlyHeapMemory(core::cell::UnsafeCell<[u8; EARLY_HEAP_SIZE]>);
// SAFETY: touched only through the allocator that is given it once.
unsafe impl Sync for EarlyHeapMemory {}
static EARLY_HEAP_MEMORY: EarlyHeapMemory =
    EarlyHeapMemory(core::cell::UnsafeCell::new([0; EARLY_HEAP_SIZE]));
static EARLY_HEAP: linked_list_allocator::LockedHeap = linked_list_allocator::LockedHeap::empty();
static SLAB_READY: AtomicBool = AtomicBool::new(false);

/// The kernel's heap: the early buffer until the slab stands, the slab afterwards.
struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

fn is_early(p: *const u8) -> bool {
    let start = EARLY_HEAP_MEMORY.0.get() as usize;
    (start..start + EARLY_HEAP_SIZE).contains(&(p as usize))
}

// SAFETY: each pointer goes back to the allocator it came from, told apart by its address.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        unsafe {
            if SLAB_READY.load(Ordering::Acquire) {
                slab::KernelHeap.alloc(layout)
            } else {
                EARLY_HEAP.alloc(layout)
            }
        }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe {
            if is_early(p) {
                EARLY_HEAP.dealloc(p, layout)
            } else {
                slab::KernelHeap.dealloc(p, layout)
            }
        }
    }
}

/// Opens the early heap. Once, before anything allocates.
pub fn init_early_heap() {
    // SAFETY: the buffer is static and nobody else touches it.
    unsafe {
        EARLY_HEAP
            .lock()
            .init(EARLY_HEAP_MEMORY.0.get().cast(), EARLY_HEAP_SIZE)
    };
}

/// Free ranges of physical memory by node, consumed from their starts.
struct Early {
    ranges: [(usize, Range<usize>); MAX_RANGES],
    nr: usize,
}

impl Early {
    fn new(boot: &BootInfo, topology: &Topology) -> Early {
        let mut early = Early {
            ranges: [const { (0, 0..0) }; MAX_RANGES],
            nr: 0,
        };
        for region in boot
            .memory_regions
            .iter()
            .filter(|r| r.kind == MemoryRegionKind::Usable)
        {
            let start = (region.start as usize)
                .max(LOW_MEMORY)
                .next_multiple_of(PAGE);
            let end = region.end as usize & !(PAGE - 1);
            early.add_by_node(topology, start, end);
        }
        early
    }

    /// Cuts a range where the node changes; memory that the SRAT does not mention belongs to node 0.
    fn add_by_node(&mut self, topology: &Topology, start: usize, end: usize) {
        let mut at = start;
        while at < end {
            let node = topology.node_of_phys(at as u64);
            let mut stop = end;
            for range in topology.ranges() {
                for border in [range.start as usize, range.end as usize] {
                    if border > at && border < stop {
                        stop = border;
                    }
                }
            }
            if self.nr < MAX_RANGES && stop - at >= PAGE {
                self.ranges[self.nr] = (node.unwrap_or(0), at..stop & !(PAGE - 1));
                self.nr += 1;
            }
            at = stop;
        }
    }

    /// A zeroed frame of `node`, or of any node when that has none left.
    fn frame(&mut self, node: usize) -> usize {
        let ranges = &mut self.ranges[..self.nr];
        let index = ranges.iter().position(|(n, r)| *n == node && !r.is_empty());
        let index = index.or_else(|| ranges.iter().position(|(_, r)| !r.is_empty()));
        let (_, range) = &mut ranges[index.expect("memory for the first page tables")];
        let pa = range.start;
        range.start += PAGE;
        // SAFETY: INV-BOOTMEM-1: the frame is ours alone, and in the direct map.
        unsafe { phys_to_virt(pa).write_bytes(0, PAGE) };
        pa
    }
}

/// Windows for CPUs beyond the first chunk, from the page allocator.
struct Windows;

// SAFETY: maps fresh frames of the CPU's node into that CPU's window and nothing else.
unsafe impl PercpuMemory for Windows {
    fn populate(&self, cpu: usize, offset: usize, len: usize) -> Result<(), OutOfMemory> {
        let node = ksync::arch::cpu_to_node(cpu);
        for at in (offset..offset + len).step_by(PAGE) {
            let va = ksync::arch::percpu_base(cpu) + at;
            if paging::is_mapped(va) {
                continue;
            }
            let page = page_alloc::alloc_pages_node(node, 0, Gfp::NOFAULT_INJECT)?;
            if let Err(e) = paging::map_page(va, page.phys(), &mut paging::table_frame) {
                page.put();
                return Err(e);
            }
        }
        Ok(())
    }

    fn depopulate(&self, offset: usize, len: usize) {
        for cpu in 0..ksync::arch::nr_cpu_ids() {
            paging::unmap_pages(ksync::arch::percpu_base(cpu) + offset, len);
        }
    }
}

/// Brings memory up: vmemmap, page allocator, percpu windows, slab. Boot CPU on its early head, IRQs off.
pub fn init(boot: &BootInfo, topology: &Topology) {
    let mut early = Early::new(boot, topology);
    assert!(early.nr > 0, "the boot stage found no usable memory");
    paging::init(|| early.frame(0));
    for i in 0..early.nr {
        let (node, range) = early.ranges[i].clone();
        map_vmemmap(&mut early, node, range);
    }
    let nr_cpus = ksync::arch::nr_cpu_ids();
    for cpu in 0..nr_cpus {
        map_window(&mut early, cpu);
    }
    move_to_window();
    for node in 0..topology.nr_nodes() {
        page_alloc::set_fallback_order(node, &topology.nearest(node));
    }
    for (node, range) in &early.ranges[..early.nr] {
        let pfns = range.start / PAGE..range.end / PAGE;
        if pfns.is_empty() {
            continue;
        }
        // SAFETY: the descriptors are mapped and zero (map_vmemmap), the frames are nobody's (INV-BOOTMEM-1).
        unsafe { page_alloc::init_node(*node, core::slice::from_ref(&pfns)) }
            .expect("a node's memory");
    }
    for cpu in 0..nr_cpus {
        page_alloc::init_percpu(cpu).expect("memory for page lists");
    }
    let reserved = size_of::<CpuHead>()
        .next_multiple_of(64)
        .max(percpu::RESERVED);
    // SAFETY: `map_window` mapped and zeroed this much for every CPU; the head is all that is used of it.
    unsafe {
        percpu::init(
            &Windows,
            FirstChunk {
                populated: FIRST_CHUNK,
                reserved,
            },
        )
    }
    .expect("memory for percpu");
    slab::init_heap().expect("memory for the heap's caches");
    SLAB_READY.store(true, Ordering::Release);
}

/// Maps the page descriptors of a range, from memory of its node, rounded out to what `page_alloc` may look at.
fn map_vmemmap(early: &mut Early, node: usize, range: Range<usize>) {
    const ROUND: usize = 1024 * PAGE;
    let first = range.start / ROUND * ROUND / PAGE;
    let last = range.end.next_multiple_of(ROUND) / PAGE;
    let start = paging::VMEMMAP_BASE + first * size_of::<page_alloc::Page>();
    let end = paging::VMEMMAP_BASE + last * size_of::<page_alloc::Page>();
    for va in (start..end).step_by(PAGE) {
        if !paging::is_mapped(va) {
            let frame = early.frame(node);
            paging::map_page(va, frame, &mut || Some(early.frame(node)))
                .expect("memory for page tables");
        }
    }
}

fn map_window(early: &mut Early, cpu: usize) {
    let node = ksync::arch::cpu_to_node(cpu);
    let base = ksync::arch::percpu_base(cpu);
    for at in (0..FIRST_CHUNK).step_by(PAGE) {
        let frame = early.frame(node);
        paging::map_page(base + at, frame, &mut || Some(early.frame(node)))
            .expect("memory for page tables");
    }
    ksync::arch::cpu_head(cpu).init(cpu, node);
}

/// The boot CPU leaves its early head for its window.
fn move_to_window() {
    let early = ksync::arch::this_cpu_head();
    let head = ksync::arch::cpu_head(0);
    head.preempt_count.store(
        early.preempt_count.load(Ordering::Relaxed),
        Ordering::Relaxed,
    );
    let base = ksync::arch::percpu_base(0) as u64;
    x86_64::registers::model_specific::GsBase::write(x86_64::VirtAddr::new(base));
}
