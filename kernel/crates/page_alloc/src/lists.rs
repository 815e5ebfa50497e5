//! Page lists per CPU.
//!
//! Problem. A fork or an exit moves dozens of single pages; with the zone lock taken for each,
//! that lock is the machine's bottleneck and most of the path length.
//!
//! Mechanism. Each CPU keeps a stack of free pages of its own memory node, filled and emptied in
//! batches, plus short stacks of order 1 to 3 blocks (slabs and kernel stacks). The CPU alone
//! touches them, with preemption off: no lock, no atomic instruction, interrupts stay on. Single
//! pages of other nodes wait in a *stash* and go home in one lock hold per node when it is full.
//!
//! ```text
//!  alloc_page ----pop----+          +---pop/push--- order 1..=3, 8 each
//!                        |          |
//!  CpuHead.slots[0] --> [CpuLists] -+--- stash: 32 pages of other nodes
//!                        |  ^                |
//!        put -----push---+  | batch          | full: one hold per node
//!                           v                v
//!                        own node's Buddy   their nodes' Buddies
//! ```
//!
//! A stack is a ring: the newest page is popped (it is warm in the cache), the oldest are drained.
//! The high-water mark follows the node's size, so that 512 CPUs cannot sit on a small memory.
//!
//! Taking a CPU's lists away from outside ([`drain_all`]): clear its slot, wait for a grace period
//! (a section with preemption off is an RCU reader), drain, put the slot back. Meanwhile that CPU
//! goes to the buddies directly. So the fast path pays nothing for being drained by others.
//!
//! Lock order: `drain_mutex` (sleeps) before `zone_lock`.
//!
//! # Invariants
//! - INV-LIST-1: a CPU's lists are touched only by a thread that runs on that CPU with preemption
//!   off and found them in slot 0, or by the holder of `drain_mutex` that cleared slot 0 and then
//!   waited for a grace period. Hard interrupts never allocate or free pages.
//! - INV-LIST-2: a block on ring k has state ON_LIST, order k, the lists' node; in the stash order
//!   0 and another node. Its refcount and mapcount are 0.
//! - INV-LIST-3: `bottom <= top <= limit <= bottom + N` on every ring (modulo 2^32).

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering::*};

use ksync::{CpuMask, LockClass, Mutex, NR_CPUS, PAGE_SIZE, PreemptGuard, arch, rcu};

use crate::page::{KIND_MASK, PageRef, PageState, tag};
use crate::{Gfp, OutOfMemory, bad_page, zone};

/// This crate's word of `CpuHead.slots`.
const SLOT: usize = 0;
/// Single pages a CPU may hold.
const CAP_PAGES: usize = 128;
/// Blocks per order 1..=MAX_LIST_ORDER a CPU may hold.
const CAP_BLOCKS: usize = 8;
/// Largest order kept per CPU: kernel stacks (2) and slabs (up to 3).
const MAX_LIST_ORDER: u32 = 3;
/// Pages of other nodes a CPU may hold.
const CAP_STASH: usize = 32;
/// A node's CPUs together hold at most 1/HOARD of it in single pages.
const HOARD: usize = 8;

/// A bounded stack whose bottom can be drained. `top` and `bottom` run freely; a power of two N
/// makes their low bits the index.
#[repr(C)]
struct Ring<const N: usize> {
    top: AtomicU32,
    /// `bottom` + the high-water mark (1..=N): `top` stops here.
    limit: AtomicU32,
    bottom: AtomicU32,
    slots: [AtomicUsize; N],
}

impl<const N: usize> Ring<N> {
    const MASK: u32 = {
        assert!(N.is_power_of_two());
        N as u32 - 1
    };

    /// Where a ring's counters begin: in debug builds just before they wrap, so that every run of
    /// the tests sees them wrap.
    const START: u32 = if cfg!(debug_assertions) {
        u32::MAX - 2
    } else {
        0
    };

    /// Makes an empty ring that holds up to `high`.
    fn open(&self, high: u32) {
        self.top.store(Self::START, Relaxed);
        self.bottom.store(Self::START, Relaxed);
        self.limit.store(Self::START.wrapping_add(high), Relaxed);
    }

    #[inline(always)]
    fn slot(&self, at: u32) -> &AtomicUsize {
        &self.slots[(at & Self::MASK) as usize]
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        self.top
            .load(Relaxed)
            .wrapping_sub(self.bottom.load(Relaxed))
    }

    /// The newest block.
    #[inline(always)]
    fn pop(&self) -> Option<PageRef> {
        let top = self.top.load(Relaxed);
        if top == self.bottom.load(Relaxed) {
            return None;
        }
        let top = top.wrapping_sub(1);
        self.top.store(top, Relaxed);
        Some(from_word(self.slot(top)))
    }

    /// False if the ring is at its high-water mark.
    #[inline(always)]
    fn push(&self, page: PageRef) -> bool {
        let top = self.top.load(Relaxed);
        if top == self.limit.load(Relaxed) {
            return false;
        }
        self.slot(top)
            .store(page.as_ptr().as_ptr() as usize, Relaxed);
        self.top.store(top.wrapping_add(1), Relaxed);
        true
    }

    /// The oldest block.
    fn pop_oldest(&self) -> Option<PageRef> {
        let bottom = self.bottom.load(Relaxed);
        if bottom == self.top.load(Relaxed) {
            return None;
        }
        self.bottom.store(bottom.wrapping_add(1), Relaxed);
        self.limit
            .store(self.limit.load(Relaxed).wrapping_add(1), Relaxed);
        Some(from_word(self.slot(bottom)))
    }

    /// Gives the `n` oldest blocks back to the buddy of `node` under one lock hold.
    fn drain(&self, node: usize, order: u32, n: u32) {
        if self.len() > 0 {
            zone::free_all(
                node,
                order,
                core::iter::from_fn(|| self.pop_oldest()).take(n as usize),
            );
        }
    }
}

#[inline(always)]
fn from_word(word: &AtomicUsize) -> PageRef {
    // SAFETY: INV-LIST-2: a slot that was ever filled holds a pointer that `push` stored.
    unsafe {
        PageRef::from_ptr(core::ptr::NonNull::new_unchecked(
            word.load(Relaxed) as *mut _
        ))
    }
}

/// What one CPU holds. Fields are atomics only so that [`counts`] may look from outside.
#[repr(C, align(64))]
struct CpuLists {
    /// Tag of an allocated order-0 page of `node`.
    tag: u32,
    node: u32,
    /// Pages moved per lock hold; at most half of `pages.high`.
    batch: u32,
    pages: Ring<CAP_PAGES>,
    blocks: [Ring<CAP_BLOCKS>; MAX_LIST_ORDER as usize],
    stash: Ring<CAP_STASH>,
}

const _: () = assert!(size_of::<CpuLists>() <= PAGE_SIZE);

/// Every CPU's lists, whether its slot is set or cleared for a drain. Written once per CPU.
static LISTS: [AtomicPtr<CpuLists>; NR_CPUS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; NR_CPUS];
static DRAIN_CLASS: LockClass = LockClass::new("drain_mutex");
static DRAIN: Mutex<()> = Mutex::new((), &DRAIN_CLASS);

fn registered(cpu: usize) -> Option<&'static CpuLists> {
    // SAFETY: `init_cpu` stored a pointer to lists that are never freed.
    unsafe { LISTS[cpu].load(Acquire).as_ref() }
}

/// This CPU's lists; the guard is the evidence for INV-LIST-1. None before `init_cpu` and during
/// a drain.
#[inline(always)]
fn mine(_preempt_off: &PreemptGuard) -> Option<&CpuLists> {
    // SAFETY: slot 0 is null or points to lists that are never freed.
    unsafe { (arch::this_cpu_head().slots[SLOT].load(Acquire) as *const CpuLists).as_ref() }
}

/// See [`crate::init_percpu`].
pub(crate) fn init_cpu(cpu: usize) -> Result<(), OutOfMemory> {
    if registered(cpu).is_some() {
        return Ok(());
    }
    let near = arch::cpu_to_node(cpu);
    let node = zone::nearest(near).next().ok_or(OutOfMemory)?;
    let page = zone::alloc(node, 0, Gfp::empty()).ok_or(OutOfMemory)?;
    let nr_cpus_here = arch::nr_cpu_ids().div_ceil(zone::nr_with_memory());
    let share = zone::lock(node).nr_managed() / (HOARD * nr_cpus_here);
    let high = share.clamp(4, CAP_PAGES) as u32;
    let lists = page.virt() as *mut CpuLists;
    // SAFETY: a page of our own, large enough and aligned; all-zero bytes are atomics that hold zero.
    unsafe {
        lists.write_bytes(0, 1);
        (*lists).tag = tag(PageState::Allocated, 0, node);
        (*lists).node = node as u32;
        (*lists).batch = (high / 4).max(1);
        (*lists).pages.open(high);
        (*lists).stash.open(high.min(CAP_STASH as u32));
        for ring in &(*lists).blocks {
            ring.open((high / 4).min(CAP_BLOCKS as u32));
        }
    }
    LISTS[cpu].store(lists, Release);
    arch::cpu_head(cpu).slots[SLOT].store(lists as usize, Release);
    Ok(())
}

/// A single page for this CPU: its list, its memory node, then the others by distance.
/// Two dozen instructions when the list has one.
#[inline]
pub(crate) fn alloc_page() -> Option<PageRef> {
    let guard = PreemptGuard::new();
    if let Some(lists) = mine(&guard)
        && let Some(page) = lists.pages.pop()
    {
        debug_assert!(page.state() == PageState::OnList, "INV-LIST-2: {page:?}");
        page.desc().make_allocated(lists.tag);
        return Some(page);
    }
    alloc_page_slow(&guard)
}

#[cold]
#[inline(never)]
fn alloc_page_slow(guard: &PreemptGuard) -> Option<PageRef> {
    if let Some(lists) = mine(guard)
        && let Some(page) = lists.pop(0)
    {
        return Some(page);
    }
    alloc_from_zones(guard, arch::numa_node_id(), 0, Gfp::empty())
}

/// A block of any order for this CPU, as [`alloc_page`].
pub(crate) fn alloc_local(order: u32, gfp: Gfp) -> Option<PageRef> {
    let guard = PreemptGuard::new();
    if let Some(lists) = mine(&guard)
        && let Some(block) = lists.pop(order)
    {
        return Some(block);
    }
    alloc_from_zones(&guard, arch::numa_node_id(), order, gfp)
}

/// A block meant for `node`, of any order.
pub(crate) fn alloc_block(node: usize, order: u32, gfp: Gfp) -> Option<PageRef> {
    let guard = PreemptGuard::new();
    if let Some(lists) = mine(&guard)
        && lists.node as usize == node
        && let Some(block) = lists.pop(order)
    {
        return Some(block);
    }
    alloc_from_zones(&guard, node, order, gfp)
}

/// The buddies by distance; if none has a block, this CPU gives back what it holds and looks once
/// more (its stash, and its pages that complete a larger block, count too).
#[cold]
fn alloc_from_zones(guard: &PreemptGuard, node: usize, order: u32, gfp: Gfp) -> Option<PageRef> {
    if let Some(block) = zone::alloc(node, order, gfp) {
        return Some(block);
    }
    let lists = mine(guard)?;
    if gfp.contains(Gfp::THISNODE) && lists.node as usize != node {
        lists.send_home();
    } else {
        lists.drain();
    }
    zone::alloc(node, order, gfp)
}

/// Takes back a block whose last reference is gone. Anything that is not an allocated, unmapped
/// head stops the kernel here.
#[inline]
pub(crate) fn free_block(head: PageRef) {
    free_block_under(&PreemptGuard::new(), head);
}

/// [`free_block`] under a guard that the caller holds over several.
#[inline(always)]
pub(crate) fn free_block_under(guard: &PreemptGuard, head: PageRef) {
    let tag = head.desc().raw_tag() & !KIND_MASK;
    if let Some(lists) = mine(guard)
        && tag == lists.tag
        && (cfg!(not(debug_assertions)) || head.map_count() == 0)
        && lists.pages.push(head)
    {
        mark_on_list(head, tag);
        return;
    }
    free_block_slow(guard, head, tag);
}

#[cold]
#[inline(never)]
fn free_block_slow(guard: &PreemptGuard, head: PageRef, tag: u32) {
    if !head.is_allocated() || head.map_count() != 0 {
        bad_page(head, "free of a page that is free already or still mapped");
    }
    let (order, node) = (head.order(), head.node());
    let Some(lists) = mine(guard) else {
        return zone::free_all(node, order, core::iter::once(head));
    };
    let local = lists.node as usize == node;
    match order {
        0 if local => {
            lists.pages.drain(node, 0, lists.batch);
            lists.pages.push(head);
        }
        0 => {
            if !lists.stash.push(head) {
                lists.send_home();
                lists.stash.push(head);
            }
        }
        1..=MAX_LIST_ORDER if local => {
            let ring = &lists.blocks[order as usize - 1];
            if !ring.push(head) {
                ring.drain(node, order, CAP_BLOCKS as u32 / 2);
                ring.push(head);
            }
        }
        _ => return zone::free_all(node, order, core::iter::once(head)),
    }
    mark_on_list(head, tag);
}

/// ALLOCATED becomes ON_LIST; order and node stay.
#[inline(always)]
fn mark_on_list(head: PageRef, tag: u32) {
    const FLIP: u32 = PageState::Allocated as u32 ^ PageState::OnList as u32;
    head.desc().set_tag(tag ^ FLIP);
}

impl CpuLists {
    /// A block of the own node from the lists; single pages are refilled. None: try the zones.
    #[inline]
    fn pop(&self, order: u32) -> Option<PageRef> {
        let block = match order {
            0 => self.pages.pop().or_else(|| {
                self.refill();
                self.pages.pop()
            }),
            1..=MAX_LIST_ORDER => self.blocks[order as usize - 1].pop(),
            _ => None,
        }?;
        debug_assert!(block.state() == PageState::OnList, "INV-LIST-2: {block:?}");
        block.desc().make_allocated(self.tag | order << 8);
        Some(block)
    }

    /// Takes a batch of single pages from the own node's buddy.
    fn refill(&self) {
        let on_list = tag(PageState::OnList, 0, self.node as usize);
        zone::lock(self.node as usize).alloc_bulk(self.batch as usize, |p| {
            let page = PageRef::from_desc(p);
            page.desc().set_tag(on_list);
            let room = self.pages.push(page);
            debug_assert!(room, "INV-LIST-3: the ring was empty, a batch fits");
        });
    }

    /// Sends the stash to the nodes it came from: one lock hold per node.
    fn send_home(&self) {
        while let Some(first) = self.stash.pop_oldest() {
            let node = first.node();
            // One turn of the ring: pages of other nodes go back in at the top.
            let rest = (0..self.stash.len()).filter_map(|_| {
                let page = self.stash.pop_oldest()?;
                if page.node() == node {
                    return Some(page);
                }
                self.stash.push(page);
                None
            });
            zone::free_all(node, 0, core::iter::once(first).chain(rest));
        }
    }

    /// Gives everything back.
    fn drain(&self) {
        let node = self.node as usize;
        self.pages.drain(node, 0, u32::MAX);
        for (ring, order) in self.blocks.iter().zip(1..) {
            ring.drain(node, order, u32::MAX);
        }
        self.send_home();
    }

    /// Frames held here that belong to `node`. From outside a snapshot.
    fn count(&self, node: usize) -> usize {
        if self.node as usize == node {
            let blocks: usize = self
                .blocks
                .iter()
                .zip(1..)
                .map(|(r, order)| (r.len() as usize) << order)
                .sum();
            return self.pages.len() as usize + blocks;
        }
        let bottom = self.stash.bottom.load(Relaxed);
        (0..self.stash.len().min(CAP_STASH as u32))
            .map(|i| self.stash.slot(bottom.wrapping_add(i)))
            // Seen from outside a slot may be one that was never filled, or stale.
            .filter(|slot| slot.load(Relaxed) != 0 && from_word(slot).node() == node)
            .count()
    }
}

/// Frames of `node` in all CPUs' lists: exact while nobody allocates or frees.
pub(crate) fn counts(node: usize) -> usize {
    (0..arch::nr_cpu_ids())
        .filter_map(registered)
        .map(|l| l.count(node))
        .sum()
}

/// Gives back what this CPU holds. Any context but hard IRQ.
pub(crate) fn drain_local() {
    let guard = PreemptGuard::new();
    if let Some(lists) = mine(&guard) {
        lists.drain();
    }
}

/// Gives back what every CPU holds. May sleep (one grace period).
pub(crate) fn drain_all() {
    let _one_at_a_time = DRAIN.lock();
    let taken = CpuMask::new();
    for cpu in 0..arch::nr_cpu_ids() {
        if registered(cpu).is_some() {
            arch::cpu_head(cpu).slots[SLOT].store(0, Relaxed);
            taken.set(cpu);
        }
    }
    rcu::synchronize();
    for cpu in taken.iter() {
        // INV-LIST-1: the slot was clear for a grace period; nobody else is in there.
        let Some(lists) = registered(cpu) else {
            continue;
        };
        lists.drain();
        arch::cpu_head(cpu).slots[SLOT].store(lists as *const CpuLists as usize, Release);
    }
}
