//! Kernel stacks: 16 KiB each, in a window of their own, with an unmapped guard below.
//!
//! A stack's virtual slot and its pages stay together for good: a free stack keeps its mapping, so that fork neither
//! edits the kernel's page tables nor flushes a TLB. Free stacks wait in a short cache of their CPU and then in a
//! list of their node, linked through their own memory. [`shrink`] unmaps the free ones.
//!
//! ```text
//! slot n:  | guard 16 KiB, never mapped | stack 16 KiB |  -> slot n+1
//! ```
//!
//! Lock order: `kstack_pool` is a leaf. Context: any, IRQs on or off.
//!
//! # Invariants
//!
//! - INV-KSTACK-1: a `KernelStack` value owns its slot; the guard below is never mapped.

use super::paging;
use core::sync::atomic::{AtomicUsize, Ordering};
use ksync::{MAX_NUMNODES, NR_CPUS, SpinLock, lock_class};
use page_alloc::{Gfp, OutOfMemory, PageRef};

pub const STACK_SIZE: usize = 16 * 1024;
const SLOT_SIZE: usize = 2 * STACK_SIZE;
const STACK_ORDER_PAGES: usize = STACK_SIZE / 4096;
/// Free stacks a CPU keeps for itself.
const CPU_CACHE: usize = 8;

/// One kernel stack.
#[derive(Debug)]
pub struct KernelStack {
    bottom: usize,
}

/// Slots whose stacks were unmapped, to be used before new ones.
static FREE_SLOTS: SpinLock<Slots> = SpinLock::new(
    Slots {
        slots: [0; MAX_FREE_SLOTS],
        len: 0,
    },
    lock_class!("kstack_slots"),
);
const MAX_FREE_SLOTS: usize = 1024;

struct Slots {
    slots: [usize; MAX_FREE_SLOTS],
    len: usize,
}

static NEXT_SLOT: AtomicUsize = AtomicUsize::new(0);
static NR_STACKS: AtomicUsize = AtomicUsize::new(0);
static NR_USED: [PerCpuCount; NR_CPUS] = [const { PerCpuCount(AtomicUsize::new(0)) }; NR_CPUS];

#[repr(align(64))]
struct PerCpuCount(AtomicUsize);

/// Free stacks, linked through the word at their bottom.
struct FreeList {
    head: usize,
    len: usize,
}

#[repr(align(64))]
struct Pool(SpinLock<FreeList>);

static CPU_POOLS: [Pool; NR_CPUS] = [const {
    Pool(SpinLock::new(
        FreeList { head: 0, len: 0 },
        lock_class!("kstack_cpu_pool"),
    ))
}; NR_CPUS];
static NODE_POOLS: [Pool; MAX_NUMNODES] = [const {
    Pool(SpinLock::new(
        FreeList { head: 0, len: 0 },
        lock_class!("kstack_node_pool"),
    ))
}; MAX_NUMNODES];

impl FreeList {
    fn pop(&mut self) -> Option<KernelStack> {
        if self.head == 0 {
            return None;
        }
        let bottom = self.head;
        // SAFETY: a free stack is mapped and its first word is the link; only its list knows it (INV-KSTACK-1).
        self.head = unsafe { *(bottom as *const usize) };
        self.len -= 1;
        Some(KernelStack { bottom })
    }

    /// Adds the stack that begins at `bottom`, whose owner gives it up.
    fn push(&mut self, bottom: usize) {
        // SAFETY: the caller's `KernelStack` owned it (INV-KSTACK-1) and it is mapped.
        unsafe { *(bottom as *mut usize) = self.head };
        self.head = bottom;
        self.len += 1;
    }
}

impl KernelStack {
    /// A stack on `node`, from the CPU's cache if `node` is the CPU's own, then the node's, else newly mapped.
    pub fn alloc(node: usize) -> Result<KernelStack, OutOfMemory> {
        if page_alloc::fault_inject::should_fail() {
            return Err(OutOfMemory);
        }
        let cpu = ksync::arch::smp_processor_id();
        let cached = if node == ksync::arch::numa_node_id() {
            CPU_POOLS[cpu].0.lock_irqsave().pop()
        } else {
            None
        };
        let stack = match cached.or_else(|| NODE_POOLS[node].0.lock_irqsave().pop()) {
            Some(stack) => stack,
            None => Self::map_new(node)?,
        };
        NR_USED[cpu].0.fetch_add(1, Ordering::Relaxed);
        Ok(stack)
    }

    #[cold]
    fn map_new(node: usize) -> Result<KernelStack, OutOfMemory> {
        let mut pages = [None::<PageRef>; STACK_ORDER_PAGES];
        for i in 0..pages.len() {
            match page_alloc::alloc_pages_node(node, 0, Gfp::NOFAULT_INJECT) {
                Ok(page) => pages[i] = Some(page),
                Err(e) => {
                    pages.iter().flatten().for_each(|p| p.put());
                    return Err(e);
                }
            }
        }
        let slot = take_slot();
        let bottom = paging::STACKS_BASE + slot * SLOT_SIZE + STACK_SIZE;
        for (i, page) in pages.iter().flatten().enumerate() {
            if let Err(e) =
                paging::map_page(bottom + i * 4096, page.phys(), &mut paging::table_frame)
            {
                paging::unmap_pages(bottom, i * 4096);
                pages[i..].iter().flatten().for_each(|p| p.put());
                give_slot(slot);
                return Err(e);
            }
        }
        NR_STACKS.fetch_add(1, Ordering::Relaxed);
        Ok(KernelStack { bottom })
    }

    /// Highest address, 16-byte aligned.
    pub fn top(&self) -> usize {
        self.bottom + STACK_SIZE
    }

    /// Gives the stack up to whoever remembers its top.
    pub fn into_top(self) -> usize {
        let top = self.top();
        core::mem::forget(self);
        top
    }

    /// Takes back what [`into_top`](Self::into_top) gave.
    ///
    /// # Safety
    /// `top` came from `into_top`, no CPU runs on the stack, and this is called once for it.
    pub unsafe fn from_top(top: usize) -> KernelStack {
        KernelStack {
            bottom: top - STACK_SIZE,
        }
    }
}

impl Drop for KernelStack {
    fn drop(&mut self) {
        let cpu = ksync::arch::smp_processor_id();
        NR_USED[cpu].0.fetch_sub(1, Ordering::Relaxed);
        let mut pool = CPU_POOLS[cpu].0.lock_irqsave();
        if pool.len < CPU_CACHE {
            pool.push(self.bottom);
        } else {
            drop(pool);
            NODE_POOLS[ksync::arch::numa_node_id()]
                .0
                .lock_irqsave()
                .push(self.bottom);
        }
    }
}

fn take_slot() -> usize {
    let mut free = FREE_SLOTS.lock_irqsave();
    if free.len == 0 {
        return NEXT_SLOT.fetch_add(1, Ordering::Relaxed);
    }
    free.len -= 1;
    free.slots[free.len]
}

/// Makes a slot usable again. When there are too many its address range is forgotten: there is room for millions.
fn give_slot(slot: usize) {
    let mut free = FREE_SLOTS.lock_irqsave();
    if free.len < MAX_FREE_SLOTS {
        let len = free.len;
        free.slots[len] = slot;
        free.len += 1;
    }
}

/// Unmaps every free stack and gives its pages back. May sleep; IRQs and preemption on.
pub fn shrink() {
    for pool in CPU_POOLS.iter().chain(&NODE_POOLS) {
        while shrink_batch(pool) {}
    }
}

/// Unmaps up to a batch of a pool's stacks; false when there was none.
fn shrink_batch(pool: &Pool) -> bool {
    let mut bottoms = [0; 32];
    let mut nr = 0;
    while nr < bottoms.len() {
        let Some(stack) = pool.0.lock_irqsave().pop() else {
            break;
        };
        bottoms[nr] = stack.into_top() - STACK_SIZE;
        nr += 1;
    }
    let mut unmapped = paging::Unmapped::new();
    for bottom in &bottoms[..nr] {
        (*bottom..bottom + STACK_SIZE)
            .step_by(4096)
            .for_each(|page| unmapped.unmap(page));
    }
    // Only when no TLB knows the old pages may the addresses be mapped anew.
    unmapped.flush();
    NR_STACKS.fetch_sub(nr, Ordering::Relaxed);
    bottoms[..nr]
        .iter()
        .for_each(|bottom| give_slot((bottom - STACK_SIZE - paging::STACKS_BASE) / SLOT_SIZE));
    nr > 0
}

/// Stacks owned by threads now, and stacks that exist.
pub fn counts() -> (usize, usize) {
    let used = NR_USED
        .iter()
        .fold(0usize, |n, c| n.wrapping_add(c.0.load(Ordering::Relaxed)));
    (used, NR_STACKS.load(Ordering::Relaxed))
}

/// If `address` lies in a stack's guard, the bottom of the stack above it.
pub fn guard_of(address: usize) -> Option<usize> {
    let end = paging::STACKS_BASE + NEXT_SLOT.load(Ordering::Relaxed) * SLOT_SIZE;
    if !(paging::STACKS_BASE..end).contains(&address) {
        return None;
    }
    let offset = (address - paging::STACKS_BASE) % SLOT_SIZE;
    (offset < STACK_SIZE).then(|| address - offset + STACK_SIZE)
}
