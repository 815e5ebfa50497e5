//! The global lists that every address space is on: of roots, for changes of the kernel's half, and of candidates for
//! aging (`lru_gen`), for reclaim.
//!
//! Problem: both are joined at every fork and exec and left at every exit, each under one lock of the whole machine.
//!
//! Mechanism: the boot word `mm_lists` chooses.
//!
//! | word | list | joined and left |
//! |---|---|---|
//! | `global` | one each | with the address space |
//! | `percpu` | one each per CPU, walked one after the other | with the address space, on its CPU's list |
//! | `cached` | one each per CPU | with the *shell*: an address space from a constructed shell finds itself on the lists |
//!
//! Walkers skip shells that are not `live`. Where the design (`mm=`) constructs nothing, `cached` is `percpu`.
//!
//! Lock order: `pgd_lock` and `lru_gen_lock` are leaves, never held together.
//!
//! INV-PLACE-1: a node's links are valid, and change, under the lock of the list that its `list` names; `list` is 0
//! while the node is in none.

use super::{MmKind, Shell};
use core::cell::Cell;
use core::mem::offset_of;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};
use ksync::{LockClass, NR_CPUS, SpinLock, arch};

/// Where address spaces are listed.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum MmLists {
    /// One list for all.
    Global,
    /// A list per CPU.
    PerCpu,
    /// A list per CPU, left only when the shell is taken apart.
    Cached,
}

impl MmLists {
    /// The words of the boot line, in order.
    pub const NAMES: [&'static str; 3] = ["global", "percpu", "cached"];

    /// The choice of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        let all = [MmLists::Global, MmLists::PerCpu, MmLists::Cached];
        Self::NAMES.iter().position(|n| *n == name).map(|i| all[i])
    }

    #[inline(always)]
    fn current() -> MmLists {
        match LISTS.load(Relaxed) {
            0 => MmLists::Global,
            1 => MmLists::PerCpu,
            _ => MmLists::Cached,
        }
    }
}

static LISTS: AtomicU8 = AtomicU8::new(MmLists::Cached as u8);

/// Chooses the lists. Boot, as [`set_kind`](super::set_kind).
pub fn set_lists(lists: MmLists) {
    LISTS.store(lists as u8, Relaxed);
}

/// A place in a list.
struct Node {
    next: Cell<*const Node>,
    prev: Cell<*const Node>,
    /// Number of the list plus one; 0: none.
    list: Cell<u16>,
}

/// The places of a shell.
pub(crate) struct Place {
    pgd: Node,
    lru: Node,
}

impl Node {
    const fn new() -> Node {
        Node {
            next: Cell::new(ptr::null()),
            prev: Cell::new(ptr::null()),
            list: Cell::new(0),
        }
    }
}

impl Place {
    pub const fn new() -> Place {
        Place {
            pgd: Node::new(),
            lru: Node::new(),
        }
    }
}

struct Head(*const Node);
// SAFETY: nodes of shells that leave before they go; reached under the lock.
unsafe impl Send for Head {}

#[repr(align(128))]
struct List(SpinLock<Head>);

static PGD_LOCK: LockClass = LockClass::new_leaf("pgd_lock");
static LRU_LOCK: LockClass = LockClass::new_leaf("lru_gen_lock");
static PGDS: [List; NR_CPUS] =
    [const { List(SpinLock::new(Head(ptr::null()), &PGD_LOCK)) }; NR_CPUS];
static LRUS: [List; NR_CPUS] =
    [const { List(SpinLock::new(Head(ptr::null()), &LRU_LOCK)) }; NR_CPUS];

fn join(lists: &[List; NR_CPUS], node: &Node, number: usize) {
    let mut head = lists[number].0.lock_irqsave();
    node.list.set(number as u16 + 1);
    node.prev.set(ptr::null());
    node.next.set(head.0);
    // SAFETY: INV-PLACE-1: nodes in the list are live, and the list is locked.
    if let Some(first) = unsafe { head.0.as_ref() } {
        first.prev.set(node);
    }
    head.0 = node;
}

fn part(lists: &[List; NR_CPUS], node: &Node) {
    // Set by our own `join`; nobody else changes it.
    let Some(number) = (node.list.get() as usize).checked_sub(1) else {
        return;
    };
    let mut head = lists[number].0.lock_irqsave();
    // SAFETY: as above.
    unsafe {
        match node.prev.get().as_ref() {
            Some(prev) => prev.next.set(node.next.get()),
            None => head.0 = node.next.get(),
        }
        if let Some(next) = node.next.get().as_ref() {
            next.prev.set(node.prev.get());
        }
    }
    node.list.set(0);
}

fn number() -> usize {
    match MmLists::current() {
        MmLists::Global => 0,
        _ => arch::smp_processor_id(),
    }
}

fn is_kept(kind: MmKind) -> bool {
    kind.is_cached() && MmLists::current() == MmLists::Cached
}

/// A shell was constructed, and will not move.
pub(super) fn built(shell: &Shell) {
    if is_kept(shell.kind) {
        join(&PGDS, &shell.place.pgd, number());
        join(&LRUS, &shell.place.lru, number());
    }
}

/// A constructed shell is taken apart.
pub(super) fn unbuilt(shell: &Shell) {
    part(&PGDS, &shell.place.pgd);
    part(&LRUS, &shell.place.lru);
}

/// A shell becomes an address space.
#[inline]
pub(super) fn enter(shell: &Shell) {
    if !is_kept(shell.kind) {
        join(&PGDS, &shell.place.pgd, number());
        join(&LRUS, &shell.place.lru, number());
    }
}

/// An address space has ended.
#[inline]
pub(super) fn leave(shell: &Shell) {
    if !is_kept(shell.kind) {
        part(&PGDS, &shell.place.pgd);
        part(&LRUS, &shell.place.lru);
    }
}

fn walk(lists: &[List; NR_CPUS], field: usize, mut f: impl FnMut(&Shell)) {
    for list in lists {
        let head = list.0.lock_irqsave();
        let mut at = head.0;
        while let Some(node) = NonNull::new(at.cast_mut()) {
            // SAFETY: INV-PLACE-1; the node is a field of a shell, at that offset.
            let shell = unsafe { node.byte_sub(field).cast::<Shell>().as_ref() };
            if shell.live.load(Relaxed) {
                f(shell);
            }
            // SAFETY: as above.
            at = unsafe { node.as_ref() }.next.get();
        }
    }
}

/// Calls `f` with the physical address of every address space's root, under `pgd_lock`: `f` takes no lock.
pub fn for_each_pgd(mut f: impl FnMut(usize)) {
    walk(
        &PGDS,
        offset_of!(Shell, place) + offset_of!(Place, pgd),
        |shell| f(shell.pgd.phys()),
    );
}

/// Calls `f` with the resident pages of every address space, under `lru_gen_lock`: `f` takes no lock.
pub fn for_each_rss(mut f: impl FnMut([isize; 3])) {
    walk(
        &LRUS,
        offset_of!(Shell, place) + offset_of!(Place, lru),
        |shell| {
            f(core::array::from_fn(|kind| shell.sum(kind)));
        },
    );
}
