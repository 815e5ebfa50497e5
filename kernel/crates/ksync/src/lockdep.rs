//! Finds lock orders that could deadlock, before they do: by class, from orders that were seen once.
//!
//! # Problem
//! A deadlock needs two CPUs at the wrong moment; a test rarely has them. But the two orders that make it have each
//! been taken, at some time, by somebody.
//!
//! # Mechanism
//! Each thread has a stack of the locks it holds. Taking B while holding A adds the edge A -> B between their
//! *classes*, with the call chains of both. A new edge that closes a cycle is reported, with every edge of the cycle,
//! before the lock is taken. Also reported:
//!
//! - a class taken twice by one thread without a word that the second is further in ([`nested`]);
//! - a class that interrupts take, and that is also taken with interrupts on, or from which such a one is reached;
//! - a sleeping lock or a wait with preemption or interrupts off;
//! - anything taken under a **leaf** class ([`LockClass::new_leaf`]), or a leaf taken with interrupts on: so a leaf is
//!   never waited for by its holder's CPU, and whoever takes one needs to know nothing about the locks around;
//! - in a destructor ([`dtor_section`]), any lock that is not a leaf: it runs wherever memory runs out.
//!
//! The locks come here through the key that lock statistics use, [`LOCK_HOOKS`](crate::lockstat::LOCK_HOOKS): while
//! both are off there is one NOP at an acquisition and one at a release.
//!
//! ```text
//!   thread A: mmap_lock -> i_mmap      edge  mmap_lock -> i_mmap        [chain, chain]
//!   thread B: i_mmap -> mmap_lock      edge  i_mmap -> mmap_lock: a path back exists: report
//! ```
//!
//! # Lock order
//! `GRAPH`, a bare test-and-set lock, IRQs off, nothing under it. Reports are made without it.
//!
//! # Invariants
//! - INV-DEP-1: a [`Stack`] is used by the thread that owns it, with IRQs off; interrupts on top of the thread leave it
//!   as they found it.
//! - INV-DEP-2: `EDGES` has a bit for every order that was taken while lockdep was on, and `CHAINS` the chains of the
//!   first [`MAX_CHAINS`].
use crate::lockstat::{LOCK_HOOKS, LockClass, MAX_CLASSES};
use crate::{NR_CPUS, arch};
use core::fmt;
use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::*,
};

/// Locks that a thread may hold at once.
const MAX_HELD: usize = 32;
/// Return addresses kept per acquisition.
const SITES: usize = 8;
/// How far in a nested acquisition may be.
const SUBCLASSES: usize = 2;
const NODES: usize = MAX_CLASSES * SUBCLASSES;
const WORDS: usize = NODES / 64;
/// Orders whose call chains are kept.
const MAX_CHAINS: usize = 1024;
/// Reports after which there are no more.
const MAX_REPORTS: u32 = 16;

type Sites = [usize; SITES];

/// How a lock is taken.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum How {
    /// It spins.
    Spin,
    /// It may sleep.
    Sleep,
}

#[derive(Copy, Clone)]
struct Held {
    node: u16,
    leaf: bool,
    sites: Sites,
}

const NONE: Held = Held {
    node: 0,
    leaf: false,
    sites: [0; SITES],
};

/// What one thread holds.
pub struct Stack {
    /// The thread; 0: free.
    owner: AtomicUsize,
    state: core::cell::UnsafeCell<State>,
}

struct State {
    depth: usize,
    /// Acquisitions beyond MAX_HELD.
    lost: usize,
    /// The subclass of the next acquisition.
    nest: usize,
    /// Destructors that run.
    dtors: usize,
    /// A report is being made: its own locks do not count.
    busy: bool,
    held: [Held; MAX_HELD],
}

// SAFETY: the state is used by the owner alone (INV-DEP-1).
unsafe impl Sync for Stack {}

impl Stack {
    /// A stack that nobody owns.
    pub const fn new() -> Self {
        Stack {
            owner: AtomicUsize::new(0),
            state: core::cell::UnsafeCell::new(State {
                depth: 0,
                lost: 0,
                nest: 0,
                dtors: 0,
                busy: false,
                held: [NONE; MAX_HELD],
            }),
        }
    }
}

#[derive(Copy, Clone)]
struct Chain {
    from: u16,
    to: u16,
    held_at: Sites,
    taken_at: Sites,
}

struct Chains {
    nr: usize,
    chains: [Chain; MAX_CHAINS],
}

struct Graph(core::cell::UnsafeCell<Chains>);
// SAFETY: reached with `GRAPH_LOCK` held.
unsafe impl Sync for Graph {}

static CHAINS: Graph = Graph(core::cell::UnsafeCell::new(Chains {
    nr: 0,
    chains: [Chain {
        from: 0,
        to: 0,
        held_at: [0; SITES],
        taken_at: [0; SITES],
    }; MAX_CHAINS],
}));
static GRAPH_LOCK: AtomicBool = AtomicBool::new(false);
static EDGES: [[AtomicU64; WORDS]; NODES] = [const { [const { AtomicU64::new(0) }; WORDS] }; NODES];
/// Bits of a class: how it is taken, what was reported.
static USAGE: [AtomicU8; NODES] = [const { AtomicU8::new(0) }; NODES];
const IN_IRQ: u8 = 1;
const IRQS_ON: u8 = 2;
/// Reported: each once per class.
const IN_DTOR: u8 = 4;
const LEAF_IRQS_ON: u8 = 8;
static NR_EDGES: AtomicU32 = AtomicU32::new(0);
static NR_REPORTS: AtomicU32 = AtomicU32::new(0);
static IRQ_DEPTH: [AtomicU32; NR_CPUS] = [const { AtomicU32::new(0) }; NR_CPUS];

static STACKS: AtomicPtr<Stack> = AtomicPtr::new(core::ptr::null_mut());
static NR_STACKS: AtomicUsize = AtomicUsize::new(0);

/// What prints a report.
pub type Reporter = fn(fmt::Arguments<'_>);
static REPORTER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Starts checking. `stacks` is for as many threads as hold locks at once; more are not checked. Boot, no lock held; on
/// the machine it takes effect at `static_key::patch_all`.
pub fn enable(stacks: &'static [Stack], reporter: Reporter) {
    REPORTER.store(reporter as *mut (), Relaxed);
    STACKS.store(stacks.as_ptr().cast_mut(), Relaxed);
    NR_STACKS.store(stacks.len(), Release);
    LOCK_HOOKS.enable();
}

/// Whether [`enable`] was called.
pub fn is_enabled() -> bool {
    NR_STACKS.load(Acquire) != 0
}

/// Bugs reported so far.
pub fn nr_reports() -> u32 {
    NR_REPORTS.load(Relaxed)
}

/// Orders seen so far.
pub fn nr_edges() -> u32 {
    NR_EDGES.load(Relaxed)
}

/// The next lock that this thread takes is further in than the one of its class that it holds: a child's under its
/// parent's, say. Nothing while lockdep is off.
#[inline(always)]
pub fn nested() {
    if crate::static_branch!(LOCK_HOOKS) {
        with_state(|s| s.nest = (s.depth > 0) as usize);
    }
}

/// A destructor runs until the guard drops: only leaf locks may be taken.
#[inline]
pub fn dtor_section() -> DtorSection {
    if crate::static_branch!(LOCK_HOOKS) {
        with_state(|s| s.dtors += 1);
    }
    DtorSection(())
}

/// See [`dtor_section`].
#[must_use]
pub struct DtorSection(());

impl Drop for DtorSection {
    #[inline]
    fn drop(&mut self) {
        if crate::static_branch!(LOCK_HOOKS) {
            with_state(|s| s.dtors = s.dtors.saturating_sub(1));
        }
    }
}

/// An interrupt handler begins on this CPU.
#[inline(always)]
pub fn irq_enter() {
    if crate::static_branch!(LOCK_HOOKS) {
        IRQ_DEPTH[arch::smp_processor_id()].fetch_add(1, Relaxed);
    }
}

/// An interrupt handler ends.
#[inline(always)]
pub fn irq_exit() {
    if crate::static_branch!(LOCK_HOOKS) {
        IRQ_DEPTH[arch::smp_processor_id()].fetch_sub(1, Relaxed);
    }
}

/// The caller may sleep now. Reports if it may not.
#[inline(always)]
pub fn might_sleep() {
    if crate::static_branch!(LOCK_HOOKS) {
        check_sleep(None);
    }
}

/// The stack of the running thread; claimed if it has none. None: lockdep is off, or there are too many threads.
fn my_stack() -> Option<&'static Stack> {
    let nr = NR_STACKS.load(Acquire);
    if nr == 0 {
        return None;
    }
    // SAFETY: what `enable` was given.
    let stacks = unsafe { core::slice::from_raw_parts(STACKS.load(Relaxed), nr) };
    let me = match arch::current().0 as usize {
        // Before there are threads.
        0 => 1 + arch::smp_processor_id(),
        thread => thread,
    };
    let start = (me >> 6).wrapping_mul(0x9e37_79b9) % nr;
    // An owner never moves, and gives its stack up when it holds nothing: look everywhere before claiming.
    let places = || (0..nr.min(64)).map(|i| &stacks[(start + i) % nr]);
    places()
        .find(|s| s.owner.load(Relaxed) == me)
        .or_else(|| places().find(|s| s.owner.compare_exchange(0, me, Acquire, Relaxed).is_ok()))
}

/// Calls `f` with the running thread's state, IRQs off.
fn with_state<R>(f: impl FnOnce(&mut State) -> R) -> Option<R> {
    let flags = arch::local_irq_save();
    let r = my_stack().map(|stack| {
        // SAFETY: INV-DEP-1: ours, and nothing interrupts.
        let state = unsafe { &mut *stack.state.get() };
        let r = f(state);
        if state.depth == 0 && state.nest == 0 && state.dtors == 0 && state.lost == 0 && !state.busy
        {
            stack.owner.store(0, Release);
        }
        r
    });
    arch::local_irq_restore(flags);
    r
}

struct GraphGuard;

fn lock_graph() -> GraphGuard {
    while GRAPH_LOCK.swap(true, Acquire) {
        core::hint::spin_loop();
    }
    GraphGuard
}

impl Drop for GraphGuard {
    fn drop(&mut self) {
        GRAPH_LOCK.store(false, Release);
    }
}

fn has_edge(from: usize, to: usize) -> bool {
    EDGES[from][to / 64].load(Relaxed) >> (to % 64) & 1 != 0
}

fn name_of(node: usize) -> &'static str {
    crate::lockstat::class_of_column(node / SUBCLASSES).map_or("?", LockClass::name)
}

/// Node, printed.
struct Name(usize);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(self.0))?;
        if !self.0.is_multiple_of(SUBCLASSES) {
            f.write_str("/nested")
        } else {
            Ok(())
        }
    }
}

/// A call chain, printed as the console's reader expects them.
struct At<'a>(&'a Sites);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for site in self.0.iter().filter(|&&s| s != 0) {
            write!(f, "\n  bt: {site:#018x}")?;
        }
        Ok(())
    }
}

fn sites() -> Sites {
    let mut sites = [0; SITES];
    arch::call_sites(&mut sites);
    sites
}

#[cold]
fn report(what: fmt::Arguments<'_>) {
    if NR_REPORTS.fetch_add(1, Relaxed) >= MAX_REPORTS {
        return;
    }
    let reporter = REPORTER.load(Relaxed);
    if reporter.is_null() {
        return;
    }
    with_state(|s| s.busy = true);
    // SAFETY: only `enable` stores here, and what it stores is a Reporter.
    unsafe { core::mem::transmute::<*mut (), Reporter>(reporter)(what) };
    with_state(|s| s.busy = false);
}

fn check_sleep(class: Option<&LockClass>) {
    // Before there are threads nothing can preempt, and what could sleep does not.
    if arch::current().0.is_null() || (arch::preempt_count() == 0 && !arch::irqs_disabled()) {
        return;
    }
    if with_state(|s| s.busy) == Some(true) {
        return;
    }
    let what = class.map_or("a wait", LockClass::name);
    let (count, off) = (arch::preempt_count(), arch::irqs_disabled());
    report(format_args!(
        "lockdep: sleeping in atomic context: {what}, preempt count {count}, interrupts {}{}",
        if off { "off" } else { "on" },
        At(&sites())
    ));
}

/// What is wrong with an acquisition.
enum Wrong {
    Recursive(Held),
    Cycle,
    UnderLeaf(Held),
    LeafIrqsOn,
    Dtor,
    IrqUnsafe,
    IrqReach(usize, usize),
}

/// A lock of `class` is about to be taken; with `tried`, has been, without waiting. Spinning locks come with preemption
/// off already.
pub(crate) fn acquire(class: &'static LockClass, how: How, tried: bool) {
    if !is_enabled() {
        return;
    }
    if how == How::Sleep && !tried {
        check_sleep(Some(class));
    }
    let column = class.column();
    if column >= MAX_CLASSES {
        return;
    }
    let irqs_off = arch::irqs_disabled();
    let mut here = Held {
        node: 0,
        leaf: class.is_leaf(),
        sites: sites(),
    };
    let mut wrong: [Option<Wrong>; 3] = [const { None }; 3];
    let mut nr = 0;
    with_state(|s| {
        if s.busy {
            return;
        }
        // The word is for the class that is held; what the scheduler or an interrupt takes in between is not meant.
        let is_held = s.held[..s.depth]
            .iter()
            .any(|h| h.node as usize / SUBCLASSES == column);
        let subclass = if is_held {
            core::mem::take(&mut s.nest)
        } else {
            0
        };
        here.node = (column * SUBCLASSES + subclass.min(SUBCLASSES - 1)) as u16;
        let mut note = |w: Wrong| {
            if nr < wrong.len() {
                wrong[nr] = Some(w);
                nr += 1;
            }
        };
        let first = |bit: u8| USAGE[here.node as usize].fetch_or(bit, Relaxed) & bit == 0;
        // An interrupt's locks are not the destructor's.
        let in_irq = IRQ_DEPTH[arch::smp_processor_id()].load(Relaxed) > 0;
        if s.dtors > 0 && !in_irq && !here.leaf && first(IN_DTOR) {
            note(Wrong::Dtor);
        }
        if here.leaf && !irqs_off && first(LEAF_IRQS_ON) {
            note(Wrong::LeafIrqsOn);
        }
        let held = &s.held[..s.depth];
        if let Some(leaf) = held.iter().find(|h| h.leaf) {
            note(Wrong::UnderLeaf(*leaf));
        }
        if !tried {
            for h in held {
                if h.node == here.node {
                    let bit = 1 << (here.node % 64);
                    if EDGES[h.node as usize][here.node as usize / 64].fetch_or(bit, Relaxed) & bit
                        == 0
                    {
                        note(Wrong::Recursive(*h));
                    }
                } else if !has_edge(h.node as usize, here.node as usize) && add_edge(h, &here) {
                    note(Wrong::Cycle);
                }
            }
        }
        if how == How::Spin
            && let Some(w) = note_usage(here.node as usize, irqs_off)
        {
            note(w);
        }
        if s.depth < MAX_HELD {
            s.held[s.depth] = here;
            s.depth += 1;
        } else {
            s.lost += 1;
        }
    });
    for w in wrong.into_iter().flatten() {
        explain(&here, w);
    }
}

/// Adds an edge; true if it closes a cycle.
fn add_edge(held: &Held, taken: &Held) -> bool {
    let (from, to) = (held.node as usize, taken.node as usize);
    let _graph = lock_graph();
    let before = EDGES[from][to / 64].fetch_or(1 << (to % 64), Relaxed);
    if before >> (to % 64) & 1 != 0 {
        return false;
    }
    NR_EDGES.fetch_add(1, Relaxed);
    // SAFETY: the graph is locked.
    let chains = unsafe { &mut *CHAINS.0.get() };
    if let Some(chain) = chains.chains.get_mut(chains.nr) {
        *chain = Chain {
            from: held.node,
            to: taken.node,
            held_at: held.sites,
            taken_at: taken.sites,
        };
        chains.nr += 1;
    }
    path(to, |n| n == from).is_some()
}

/// The nodes from which the search came, if `end` is reached from `start`: `came[node]` leads back to `start`.
fn path(start: usize, end: impl Fn(usize) -> bool) -> Option<(usize, [u16; NODES])> {
    let mut came = [u16::MAX; NODES];
    let mut queue = [0u16; NODES];
    (queue[0], came[start]) = (start as u16, start as u16);
    let (mut first, mut last) = (0, 1);
    while first < last {
        let at = queue[first] as usize;
        first += 1;
        if end(at) {
            return Some((at, came));
        }
        for next in (0..NODES).filter(|&n| has_edge(at, n)) {
            if came[next] == u16::MAX {
                came[next] = at as u16;
                queue[last] = next as u16;
                last += 1;
            }
        }
    }
    None
}

/// Notes in which contexts a spinning class is taken; what is wrong with that, the first time.
fn note_usage(node: usize, irqs_off: bool) -> Option<Wrong> {
    let in_irq = IRQ_DEPTH[arch::smp_processor_id()].load(Relaxed) > 0;
    let bit = if in_irq {
        IN_IRQ
    } else if irqs_off {
        0
    } else {
        IRQS_ON
    };
    if bit == 0 || USAGE[node].fetch_or(bit, Relaxed) & bit != 0 {
        return None;
    }
    if USAGE[node].load(Relaxed) & (IN_IRQ | IRQS_ON) == IN_IRQ | IRQS_ON {
        return Some(Wrong::IrqUnsafe);
    }
    // A holder of an interrupt's lock that waits for one whose holder may be interrupted.
    let _graph = lock_graph();
    if bit == IN_IRQ {
        let found = path(node, |n| USAGE[n].load(Relaxed) & IRQS_ON != 0)?;
        return Some(Wrong::IrqReach(node, found.0));
    }
    let safe = (0..NODES)
        .filter(|&n| USAGE[n].load(Relaxed) & IN_IRQ != 0)
        .find(|&n| path(n, |m| m == node).is_some())?;
    Some(Wrong::IrqReach(safe, node))
}

#[cold]
fn explain(here: &Held, wrong: Wrong) {
    let name = Name(here.node as usize);
    let taken = At(&here.sites);
    match wrong {
        Wrong::Recursive(h) => report(format_args!(
            "lockdep: {name} is taken by a thread that holds a lock of that class\nheld since{}\ntaken again{taken}",
            At(&h.sites)
        )),
        Wrong::UnderLeaf(h) => report(format_args!(
            "lockdep: {name} is taken under the leaf {}\nleaf taken{}\ntaken{taken}",
            Name(h.node as usize),
            At(&h.sites)
        )),
        Wrong::LeafIrqsOn => report(format_args!(
            "lockdep: leaf {name} is taken with interrupts on{taken}"
        )),
        Wrong::Dtor => report(format_args!(
            "lockdep: {name}, which is no leaf, is taken in a destructor{taken}"
        )),
        Wrong::IrqUnsafe => report(format_args!(
            "lockdep: {name} is taken in interrupts, and with interrupts on{taken}"
        )),
        Wrong::IrqReach(safe, unsafe_) => report(format_args!(
            "lockdep: {}, taken in interrupts, is held when {}, taken with interrupts on, is waited for{taken}",
            Name(safe),
            Name(unsafe_)
        )),
        Wrong::Cycle => explain_cycle(here),
    }
}

/// Reports the cycle that the last edges to `here` closed: one line and two chains for each of its edges.
fn explain_cycle(here: &Held) {
    let held = with_state(|s| {
        let held = &s.held[..s.depth.saturating_sub(1)];
        let graph = lock_graph();
        let found = held.iter().find_map(|h| {
            let found = path(here.node as usize, |n| n == h.node as usize)?;
            Some((*h, found.1))
        });
        drop(graph);
        found
    });
    let Some(Some((held, came))) = held else {
        return;
    };
    let (from, to) = (Name(held.node as usize), Name(here.node as usize));
    report(format_args!(
        "lockdep: cycle: {to} is taken under {from}, but {from} has been taken under {to}\n\
         now: {from} taken{}\nnow: then {to}{}",
        At(&held.sites),
        At(&here.sites)
    ));
    let mut at = held.node as usize;
    while at != here.node as usize {
        let before = came[at] as usize;
        let chain = {
            let flags = arch::local_irq_save();
            let graph = lock_graph();
            // SAFETY: the graph is locked.
            let chains = unsafe { &*CHAINS.0.get() };
            let found = chains.chains[..chains.nr]
                .iter()
                .find(|c| (c.from as usize, c.to as usize) == (before, at))
                .copied();
            drop(graph);
            arch::local_irq_restore(flags);
            found
        };
        if let Some(c) = chain {
            NR_REPORTS.fetch_sub(1, Relaxed); // part of the same report
            report(format_args!(
                "lockdep: before: {} taken{}\nbefore: then {}{}",
                Name(before),
                At(&c.held_at),
                Name(at),
                At(&c.taken_at)
            ));
        }
        at = before;
    }
}

/// A lock of `class` is released.
pub(crate) fn release(class: &'static LockClass) {
    if !is_enabled() {
        return;
    }
    let column = class.column();
    with_state(|s| {
        if s.busy {
            return;
        }
        let at = s.held[..s.depth]
            .iter()
            .rposition(|h| h.node as usize / SUBCLASSES == column);
        if let Some(at) = at {
            s.held.copy_within(at + 1..s.depth, at);
            s.depth -= 1;
            if s.depth == 0 {
                s.nest = 0;
            }
        } else {
            s.lost = s.lost.saturating_sub(1);
        }
    });
}
