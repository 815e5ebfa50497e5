//! Chunks: which offsets are taken, which pages exist, and the lists that find room.
//!
//! Problem, mechanism, lock order: see the crate. This file holds the one allocator of the system.
//!
//! States of a chunk's page, per bit of the two masks:
//!
//! ```text
//! partial 0, populated 0   no window has it
//! partial 1, populated 0   some windows may have it: populate was begun and failed
//! partial 1, populated 1   every window has it
//! ```
//!
//! INV-CHUNK-1: the pages of a taken range become populated before `alloc` returns it; a page goes
//! back only while `shrink` has taken all of it in the map.
//! INV-CHUNK-2: a chunk in the table is in exactly the list `slot_of(hint)`.
//! INV-CHUNK-3: `populated` and `partial` change only under both locks, so that either suffices to
//! read them.

use crate::map::Map;
use crate::{Gfp, OutOfMemory, RESERVED, Zero};
use core::alloc::Layout;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};
use ksync::{LockClass, PAGE_SIZE, SpinLock, arch};
use page_alloc::{PageKind, PageRef, fault_inject};

/// Bytes per granule, the unit of allocation.
const GRANULE: usize = 8;
/// Pages of a chunk that can be populated. With 63, header and map fill one page exactly.
const CHUNK_PAGES: usize = 63;
/// Distance of chunks in bytes: the pages and the guard page.
const CHUNK_STRIDE: usize = (CHUNK_PAGES + 1) * PAGE_SIZE;
const CHUNK_BYTES: usize = CHUNK_PAGES * PAGE_SIZE;
/// Granules of a page.
const PAGE_GRANULES: usize = PAGE_SIZE / GRANULE;
const MAP_WORDS: usize = CHUNK_BYTES / GRANULE / 64;
/// Chunks that the table has room for.
const NR_CHUNKS: usize = {
    let fit = arch::PERCPU_WINDOW_SIZE / CHUNK_STRIDE;
    if fit < 1024 { fit } else { 1024 }
};
/// Lists by the logarithm of the hint; list 0 is of full chunks.
const NR_SLOTS: usize = 17;

/// Pages for the windows, from the kernel's page tables (or a test's arena).
///
/// # Safety
/// After `populate` returns Ok the range is readable and writable memory on every CPU, used by
/// nobody else, until `depopulate` is called for it.
pub unsafe trait PercpuMemory: Sync {
    /// Puts writable memory of `cpu`'s node at `offset..offset + len` (whole pages) of its window.
    /// Pages that are there already stay. Called with preemption off, perhaps with IRQs off; may
    /// not sleep. Fault injection has been consulted: allocate with NOFAULT_INJECT.
    fn populate(&self, cpu: usize, offset: usize, len: usize) -> Result<(), OutOfMemory>;
    /// Takes the range out of every window, tells all CPUs to forget the translations, then frees
    /// the pages. Tolerates holes. Called with no lock held, in the context of `shrink`'s caller.
    fn depopulate(&self, offset: usize, len: usize);
}

/// What boot made before this crate runs.
#[derive(Copy, Clone, Debug)]
pub struct FirstChunk {
    /// Bytes at the start of every possible CPU's window that are mapped already (whole pages).
    /// They are never depopulated.
    pub populated: usize,
    /// Bytes at the start that are not to be allocated; at least [`RESERVED`].
    pub reserved: usize,
}

/// Figures of the allocator.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Chunks that exist.
    pub nr_chunks: usize,
    /// Pages populated, per CPU.
    pub nr_pages: usize,
    /// Bytes allocated, per CPU.
    pub used: usize,
}

#[repr(C, align(4096))]
struct Chunk {
    next: *mut Chunk,
    prev: *mut Chunk,
    base: usize,
    slot: usize,
    populated: u64,
    partial: u64,
    map: Map<MAP_WORDS>,
}

const _: () = assert!(size_of::<Chunk>() == PAGE_SIZE);

impl Chunk {
    const fn new(base: usize) -> Self {
        Chunk {
            next: ptr::null_mut(),
            prev: ptr::null_mut(),
            base,
            slot: usize::MAX,
            populated: 0,
            partial: 0,
            map: Map::new(),
        }
    }

    /// Takes every page that somebody populated, not boot, and that holds no allocation, and marks
    /// it as not populated. Returns the pages. Both locks are held.
    fn take_free_pages(&mut self, boot: usize) -> u64 {
        let mut pages = 0;
        for page in bits(self.partial) {
            let start = page * PAGE_GRANULES;
            if self.base + page * PAGE_SIZE >= boot && self.map.is_free(start, PAGE_GRANULES) {
                self.map.take(start, PAGE_GRANULES);
                pages |= 1 << page;
            }
        }
        self.populated &= !pages;
        self.partial &= !pages;
        pages
    }
}

struct Allocator {
    chunks: [*mut Chunk; NR_CHUNKS],
    lists: [*mut Chunk; NR_SLOTS],
    used: usize,
}

// SAFETY: the chunks are reached only through the allocator, under its lock.
unsafe impl Send for Allocator {}

/// Guarded by `pcpu_populate`: who populates, and with what.
struct Populate {
    memory: Option<&'static dyn PercpuMemory>,
    /// Bytes that boot populated.
    boot: usize,
}

static MAP_CLASS: LockClass = LockClass::new_leaf("pcpu_map");
static POPULATE_CLASS: LockClass = LockClass::new("pcpu_populate");

static ALLOCATOR: SpinLock<Allocator> = SpinLock::new(
    Allocator {
        chunks: [ptr::null_mut(); NR_CHUNKS],
        lists: [ptr::null_mut(); NR_SLOTS],
        used: 0,
    },
    &MAP_CLASS,
);
static POPULATE: SpinLock<Populate> = SpinLock::new(
    Populate {
        memory: None,
        boot: 0,
    },
    &POPULATE_CLASS,
);
static READY: AtomicBool = AtomicBool::new(false);
static SHRINKING: AtomicBool = AtomicBool::new(false);

/// Starts the allocator. Boot only, once, after page_alloc works and `first.populated` bytes of
/// every possible CPU's window are mapped and zero. `arch::set_nr_cpu_ids` comes before.
///
/// # Safety
/// `first` tells the truth: those bytes are mapped on every possible CPU for ever, and beyond
/// `first.reserved` nobody uses them.
pub unsafe fn init(
    memory: &'static dyn PercpuMemory,
    first: FirstChunk,
) -> Result<(), OutOfMemory> {
    assert!(first.reserved >= RESERVED && first.reserved <= first.populated);
    assert!(first.populated.is_multiple_of(PAGE_SIZE) && first.reserved <= CHUNK_BYTES);
    let mut populate = POPULATE.lock();
    assert!(populate.memory.is_none(), "percpu::init called twice");
    let chunk = new_chunk(0, first.populated)?;
    populate.memory = Some(memory);
    populate.boot = first.populated;
    let mut a = ALLOCATOR.lock_irqsave();
    // SAFETY: a fresh chunk, ours until it is in the table.
    unsafe { (*chunk).map.take(0, first.reserved.div_ceil(GRANULE)) };
    a.insert(chunk);
    READY.store(true, Ordering::Release);
    Ok(())
}

/// Whether [`init`] has run.
fn is_ready() -> bool {
    READY.load(Ordering::Acquire)
}

/// Err before [`init`]. On the host it brings up the emulated machine, so that a test need not.
#[inline]
pub fn ensure_ready() -> Result<(), OutOfMemory> {
    if is_ready() { Ok(()) } else { make_ready() }
}

/// Allocates `layout` on every possible CPU and returns its offset. Consults fault injection.
/// Any context but hard IRQ. Cost: a few hundred instructions, plus a pass over all CPUs for
/// [`Zero::Yes`], plus a page per CPU when a new page is reached.
pub fn alloc(layout: Layout, zero: Zero) -> Result<usize, OutOfMemory> {
    alloc_gfp(layout, zero, Gfp::empty())
}

/// [`alloc`] with flags; of these only NOFAULT_INJECT matters here.
pub fn alloc_gfp(layout: Layout, zero: Zero, gfp: Gfp) -> Result<usize, OutOfMemory> {
    if !gfp.contains(Gfp::NOFAULT_INJECT) && fault_inject::should_fail() {
        return Err(OutOfMemory);
    }
    let (n, align) = (
        granules(layout.size()),
        layout.align().max(GRANULE) / GRANULE,
    );
    if layout.size() > CHUNK_BYTES || layout.align() > PAGE_SIZE {
        return Err(OutOfMemory);
    }
    ensure_ready()?;
    let (offset, populated) = reserve(n, align)?;
    if !populated && let Err(e) = populate(offset, n * GRANULE) {
        release(offset, n);
        return Err(e);
    }
    if zero == Zero::Yes {
        for cpu in 0..arch::nr_cpu_ids() {
            let copy = (arch::percpu_base(cpu) + offset) as *mut u64;
            // SAFETY: populated and ours alone (INV-PCPU-2); granules are 8 bytes, 8-aligned.
            unsafe { ptr::write_bytes(copy, 0, n) };
        }
    }
    Ok(offset)
}

/// Fills `offsets` with allocations of one layout, or with none: one hold of the lock, one pass over the CPUs. They lie
/// side by side, and are freed one by one. Contexts and fault injection as [`alloc`].
pub fn alloc_batch(layout: Layout, zero: Zero, offsets: &mut [usize]) -> Result<(), OutOfMemory> {
    let step = granules(layout.size()) * GRANULE;
    let step = step.next_multiple_of(layout.align().max(GRANULE));
    let whole = step.checked_mul(offsets.len()).ok_or(OutOfMemory)?;
    if offsets.is_empty() {
        return Ok(());
    }
    let whole = Layout::from_size_align(whole, layout.align()).map_err(|_| OutOfMemory)?;
    let first = alloc(whole, zero)?;
    let used = granules(layout.size()) * GRANULE;
    for (i, offset) in offsets.iter_mut().enumerate() {
        *offset = first + i * step;
        if step > used {
            // Padding that no single free would give back.
            release(*offset + used, (step - used) / GRANULE);
        }
    }
    Ok(())
}

/// Frees what [`alloc`] returned. `size` is the layout's. Any context but hard IRQ. Panics if the
/// range is not allocated.
///
/// # Safety
/// The allocation is not used any more on any CPU.
pub unsafe fn free(offset: usize, size: usize) {
    release(offset, granules(size));
}

/// Gives pages without allocations back; returns how many per CPU. Interrupts all CPUs, so IRQs
/// are on and no lock is held that a CPU with IRQs off might wait for.
pub fn shrink() -> usize {
    if SHRINKING.swap(true, Ordering::Acquire) {
        return 0;
    }
    let nr_pages = (0..NR_CHUNKS).map(shrink_chunk).sum();
    SHRINKING.store(false, Ordering::Release);
    nr_pages
}

/// [`shrink`] for one chunk. Free pages are first taken in the map like an allocation, so that
/// nobody can reach them while no lock is held over the interrupts (INV-CHUNK-1).
fn shrink_chunk(index: usize) -> usize {
    let (chunk, pages, memory) = {
        let populate = POPULATE.lock();
        let mut a = ALLOCATOR.lock_irqsave();
        let chunk = a.chunks[index];
        let Some(memory) = populate.memory else {
            return 0;
        };
        if chunk.is_null() {
            return 0;
        }
        // SAFETY: under both locks; chunks in the table exist.
        let pages = unsafe { (*chunk).take_free_pages(populate.boot) };
        a.relist(chunk);
        (chunk, pages, memory)
    };
    for page in bits(pages) {
        memory.depopulate(index * CHUNK_STRIDE + page * PAGE_SIZE, PAGE_SIZE);
    }
    let populate = POPULATE.lock();
    let mut a = ALLOCATOR.lock_irqsave();
    // SAFETY: only shrink removes chunks, and there is one shrink at a time.
    let live = unsafe { &mut *chunk };
    for page in bits(pages) {
        live.map.free(page * PAGE_GRANULES, PAGE_GRANULES);
    }
    a.relist(chunk);
    if live.map.nr_free() == Map::<MAP_WORDS>::LEN && live.base >= populate.boot {
        // Nothing taken, so nothing populated: a page populated since has a taken granule.
        a.unlink(chunk);
        a.chunks[index] = ptr::null_mut();
        PageRef::from_virt(chunk.cast()).put();
    }
    pages.count_ones() as usize
}

/// The numbers of the bits that are set.
fn bits(mask: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |i| mask >> i & 1 == 1)
}

/// Panics unless the lists and masks are as INV-CHUNK-1 to 3 say.
#[cfg(test)]
pub(crate) fn check_invariants() {
    let a = ALLOCATOR.lock_irqsave();
    let (mut listed, mut used) = (0, 0);
    for slot in 0..NR_SLOTS {
        let (mut at, mut prev) = (a.lists[slot], ptr::null_mut());
        while !at.is_null() {
            // SAFETY: under the lock; listed chunks exist.
            let chunk = unsafe { &*at };
            chunk.map.check_invariants();
            assert!(chunk.slot == slot && slot == slot_of(chunk.map.hint()) && chunk.prev == prev);
            assert!(a.chunks[chunk.base / CHUNK_STRIDE] == at);
            assert!(chunk.populated & !chunk.partial == 0);
            used += Map::<MAP_WORDS>::LEN - chunk.map.nr_free();
            listed += 1;
            (prev, at) = (at, chunk.next);
        }
    }
    assert_eq!(listed, a.nr_chunks());
    // The reserved start of the first chunk is taken but not counted.
    assert_eq!(used, a.used + RESERVED / GRANULE);
}

/// The allocator's figures.
pub fn stats() -> Stats {
    let a = ALLOCATOR.lock_irqsave();
    let mut stats = Stats {
        used: a.used * GRANULE,
        ..Stats::default()
    };
    for &chunk in a.chunks.iter().filter(|c| !c.is_null()) {
        stats.nr_chunks += 1;
        // SAFETY: under the lock; chunks in the table exist.
        stats.nr_pages += unsafe { (*chunk).populated.count_ones() } as usize;
    }
    stats
}

/// Granules of an allocation; one without size gets one, so that offsets are unique.
fn granules(size: usize) -> usize {
    size.div_ceil(GRANULE).max(1)
}

/// The first allocation came before `init`: a bug on the machine, the rule in host tests.
#[cold]
fn make_ready() -> Result<(), OutOfMemory> {
    #[cfg(not(target_os = "none"))]
    crate::host::init_once();
    if is_ready() { Ok(()) } else { Err(OutOfMemory) }
}

/// Takes `n` granules in some chunk, making chunks until one fits. Returns their offset, and
/// whether their pages are populated.
fn reserve(n: usize, align: usize) -> Result<(usize, bool), OutOfMemory> {
    loop {
        let nr_chunks = {
            let mut a = ALLOCATOR.lock_irqsave();
            if let Some(found) = a.find(n, align) {
                a.used += n;
                return Ok(found);
            }
            a.nr_chunks()
        };
        grow(nr_chunks)?;
    }
}

/// Adds a chunk, unless somebody else did since `seen` chunks were counted.
#[cold]
fn grow(seen: usize) -> Result<(), OutOfMemory> {
    let populate = POPULATE.lock();
    let index = {
        let a = ALLOCATOR.lock_irqsave();
        if a.nr_chunks() != seen {
            return Ok(());
        }
        a.chunks
            .iter()
            .position(|c| c.is_null())
            .ok_or(OutOfMemory)?
    };
    let chunk = new_chunk(index * CHUNK_STRIDE, populate.boot)?;
    ALLOCATOR.lock_irqsave().insert(chunk);
    Ok(())
}

/// Gives a range back to its chunk.
fn release(offset: usize, n: usize) {
    let mut a = ALLOCATOR.lock_irqsave();
    let chunk = a.chunks[offset / CHUNK_STRIDE];
    assert!(!chunk.is_null(), "percpu free: no chunk at {offset:#x}");
    // SAFETY: under the lock; chunks in the table exist.
    unsafe { (*chunk).map.free((offset % CHUNK_STRIDE) / GRANULE, n) };
    a.used -= n;
    a.relist(chunk);
}

/// Puts the pages of a reserved range into every window (INV-PCPU-2).
#[cold]
fn populate(offset: usize, len: usize) -> Result<(), OutOfMemory> {
    let index = offset / CHUNK_STRIDE;
    let start = offset % CHUNK_STRIDE;
    let populate = POPULATE.lock();
    let memory = populate.memory.ok_or(OutOfMemory)?;
    for page in start / PAGE_SIZE..(start + len).div_ceil(PAGE_SIZE) {
        {
            let a = ALLOCATOR.lock_irqsave();
            let chunk = a.chunks[index];
            // SAFETY: under the lock; the chunk holds our reservation, so shrink leaves it alone.
            let chunk = unsafe { &mut *chunk };
            if chunk.populated >> page & 1 == 1 {
                continue;
            }
            chunk.partial |= 1 << page;
        }
        for cpu in 0..arch::nr_cpu_ids() {
            memory.populate(cpu, index * CHUNK_STRIDE + page * PAGE_SIZE, PAGE_SIZE)?;
        }
        let a = ALLOCATOR.lock_irqsave();
        let chunk = a.chunks[index];
        // SAFETY: as above.
        unsafe { (*chunk).populated |= 1 << page };
    }
    Ok(())
}

/// The bits of the pages that `start..start + len` of a chunk touches.
fn page_mask(start: usize, len: usize) -> u64 {
    let (first, end) = (start / PAGE_SIZE, (start + len).div_ceil(PAGE_SIZE));
    (u64::MAX >> (64 - (end - first))) << first
}

/// A chunk without anything taken, in a page of its own.
fn new_chunk(base: usize, boot: usize) -> Result<*mut Chunk, OutOfMemory> {
    let page = page_alloc::alloc_page(Gfp::NOFAULT_INJECT)?;
    page.set_kind(PageKind::Percpu);
    let chunk: *mut Chunk = page.virt().cast();
    // SAFETY: a fresh page of exactly this size and alignment.
    unsafe {
        chunk.write(Chunk::new(base));
        let pages = (boot.saturating_sub(base) / PAGE_SIZE).min(CHUNK_PAGES);
        if pages > 0 {
            (*chunk).populated = u64::MAX >> (64 - pages);
            (*chunk).partial = (*chunk).populated;
        }
    }
    Ok(chunk)
}

/// The list for chunks whose longest free run is bounded by `hint` granules.
fn slot_of(hint: usize) -> usize {
    (usize::BITS - hint.leading_zeros()) as usize
}

const _: () = assert!(Map::<MAP_WORDS>::LEN < 1 << (NR_SLOTS - 1));

impl Allocator {
    fn nr_chunks(&self) -> usize {
        self.chunks.iter().filter(|c| !c.is_null()).count()
    }

    /// First fit in the fullest list that may have room: its offset, and whether it is populated.
    fn find(&mut self, n: usize, align: usize) -> Option<(usize, bool)> {
        for slot in slot_of(n)..NR_SLOTS {
            let mut chunk = self.lists[slot];
            while !chunk.is_null() {
                // SAFETY: under the lock; listed chunks exist (INV-CHUNK-2).
                let (next, got) = unsafe { ((*chunk).next, (*chunk).map.alloc(n, align)) };
                self.relist(chunk);
                if let Some(start) = got {
                    let wanted = page_mask(start * GRANULE, n * GRANULE);
                    // SAFETY: as above.
                    let (base, has) = unsafe { ((*chunk).base, (*chunk).populated) };
                    return Some((base + start * GRANULE, has & wanted == wanted));
                }
                chunk = next;
            }
        }
        None
    }

    /// Puts a fresh chunk into the table and its list.
    fn insert(&mut self, chunk: *mut Chunk) {
        // SAFETY: a live chunk that only we know.
        let base = unsafe { (*chunk).base };
        self.chunks[base / CHUNK_STRIDE] = chunk;
        self.link(chunk);
    }

    /// Moves a chunk to the list its hint asks for.
    fn relist(&mut self, chunk: *mut Chunk) {
        // SAFETY: under the lock; a live chunk.
        if unsafe { slot_of((*chunk).map.hint()) != (*chunk).slot } {
            self.unlink(chunk);
            self.link(chunk);
        }
    }

    fn link(&mut self, chunk: *mut Chunk) {
        // SAFETY: under the lock; a live chunk in no list, and a live head.
        unsafe {
            let slot = slot_of((*chunk).map.hint());
            let head = self.lists[slot];
            (*chunk).slot = slot;
            (*chunk).prev = ptr::null_mut();
            (*chunk).next = head;
            if !head.is_null() {
                (*head).prev = chunk;
            }
            self.lists[slot] = chunk;
        }
    }

    fn unlink(&mut self, chunk: *mut Chunk) {
        // SAFETY: under the lock; a live chunk in its list, with live neighbours.
        unsafe {
            let (prev, next) = ((*chunk).prev, (*chunk).next);
            if prev.is_null() {
                self.lists[(*chunk).slot] = next;
            } else {
                (*prev).next = next;
            }
            if !next.is_null() {
                (*next).prev = prev;
            }
        }
    }
}
