//! What a new address space costs beside its areas: counters, concurrency ids, the root, places on global lists.
//!
//! # Problem
//! A counter per possible CPU is cheap to change and dear to make: a fork writes every CPU's copy, an exit reads every
//! copy, and an exec does both once more, however few CPUs the program ever runs on. Everybody has proposed something.
//!
//! # Mechanism
//! Each address space has a [`Shell`]: its root, its counters, its ids, its list places. The boot word `mm=` chooses a
//! [`SetUp`], which says how a shell comes to be and what becomes of it. All of them count the same way from outside:
//!
//! | word | per fork | per exit |
//! |---|---|---|
//! | `separate` | two areas, zeroed; a loop that sets the ids | four sums, a loop each |
//! | `merged` | one area, zeroed | four sums |
//! | `uninit` | one area, one loop that sets counters and ids | one loop |
//! | `ctor` | nothing: the slab object keeps area, root and place | nothing (a loop where checks are on) |
//! | `lazy` | one area, not written; a CPU writes its copy at first use | the copies of CPUs that used it |
//! | `grouped` | one lock: a pool of constructed shells per `mm_group` CPUs | one lock |
//! | `single` | nothing: plain counters until a second thread comes | nothing, or as `merged` |
//! | `best` | nothing that depends on the number of CPUs | the copies of threads that ran at once |
//!
//! `best` keeps the counters by *concurrency id*, not by CPU: a thread that runs has an id that no other running thread
//! of the address space has, the lowest that was free. So a program with one thread uses one copy, inside the shell,
//! wherever it runs; copies for further ids come when such an id first counts something. Shells stay constructed in
//! their slab: the counters sum up to zero when an address space ends, which is what they start from.
//!
//! # Who counts where
//! A thread that runs the address space changes its own copy by plain loads and stores, preemption off. Whoever does not
//! run it (a fork that fills the child, truncation, /proc) changes a copy that is no thread's: its CPU's where copies
//! are by CPU, the shared atomics elsewhere. [`Running`], a word per CPU, tells the two apart.
//!
//! # Lock order
//! `pgd_lock` and `lru_gen_lock` (see [`place`]) and `mm_group` are leaves.
//!
//! # Invariants
//! - INV-SETUP-1: the number of pages of a kind is the sum of all copies and the shared count, when nobody is adding.
//! - INV-SETUP-2: a copy by CPU is written by that CPU with preemption off; a copy by id, by the thread that has the id.
//! - INV-SETUP-3: `Running::shell` names a shell exactly between `enter` and `leave` on that CPU; no two CPUs have the
//!   same id of one shell.
//! - INV-SETUP-4: a free shell has all sums zero, no id taken, and an empty root.

pub(crate) mod place;
mod pools;
mod variants;

use crate::MmError;
use crate::pgtable::{Table, alloc_pgd, free_pgd};
use crate::rss::{RssKind, RssStat};
use core::alloc::Layout;
use core::ptr::{self, NonNull};
use core::sync::atomic::{
    AtomicBool, AtomicIsize, AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering::*,
};
use ksync::{CpuMask, PreemptGuard, arch};
use percpu::Zero;
use place::Place;
use slab::{CacheFlags, CtorError, Gfp, KmemCache};

/// Counters of an address space: file, anonymous, shared memory, swap (which there is not, and is summed all the same).
pub(crate) const NR_COUNTERS: usize = 4;
/// A CPU's delta moves to the shared count when it gets here.
const BATCH: i32 = 64;

/// The designs, by the words of the boot line.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum MmKind {
    /// Counters and ids in areas of their own, zeroed.
    Separate,
    /// One zeroed area.
    Merged,
    /// One area, written in one loop.
    Uninit,
    /// Constructed shells in a slab.
    Ctor,
    /// Copies written by the first use on each CPU.
    Lazy,
    /// Constructed shells in a pool per group of CPUs.
    Grouped,
    /// Plain counters until there is a second thread.
    Single,
    /// Copies by concurrency id, in constructed shells.
    Best,
}

impl MmKind {
    /// All of them.
    pub const ALL: [MmKind; 8] = [
        MmKind::Separate,
        MmKind::Merged,
        MmKind::Uninit,
        MmKind::Ctor,
        MmKind::Lazy,
        MmKind::Grouped,
        MmKind::Single,
        MmKind::Best,
    ];

    /// The word on the boot line.
    pub const fn name(self) -> &'static str {
        [
            "separate", "merged", "uninit", "ctor", "lazy", "grouped", "single", "best",
        ][self as usize]
    }

    /// The design of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }

    /// Whether shells wait in constructed state for their next use.
    const fn is_cached(self) -> bool {
        matches!(self, MmKind::Ctor | MmKind::Grouped | MmKind::Best)
    }

    #[inline(always)]
    fn current() -> MmKind {
        Self::ALL[KIND.load(Relaxed) as usize % Self::ALL.len()]
    }
}

static KIND: AtomicU8 = AtomicU8::new(MmKind::Best as u8);
static CHECK: AtomicBool = AtomicBool::new(cfg!(debug_assertions));

/// Chooses the design. Boot, before the first address space (host tests: while there is none, with caches drained).
pub fn set_kind(kind: MmKind) {
    KIND.store(kind as u8, Relaxed);
}

/// Whether every end of an address space adds all copies up, also where the design needs no loop.
pub fn set_check(on: bool) {
    CHECK.store(on, Relaxed);
}

/// What a CPU has of an address space where copies are by CPU.
#[repr(C)]
pub(crate) struct Slot {
    rss: [core::sync::atomic::AtomicI32; NR_COUNTERS],
    /// The id that this CPU had last, plus one: worth trying again.
    recent_cid: AtomicU32,
    /// Keeps the layout of `mm_cid`: the time of its last use.
    time: AtomicU32,
}

/// What is made, or kept, for each address space.
#[repr(C, align(64))]
pub(crate) struct Shell {
    pub pgd: Table,
    /// Shared counts: what folded deltas and those who do not run it add up to.
    shared: [AtomicIsize; NR_COUNTERS],
    /// `single`: before the second thread. `best`: of id 0.
    local: [AtomicIsize; NR_COUNTERS],
    kind: MmKind,
    /// Somebody's address space, not waiting.
    pub live: AtomicBool,
    /// Offset of the Slots in all windows; 0: none.
    area: AtomicUsize,
    /// `separate`: offset of the area of ids.
    cid_area: usize,
    /// `best`: copies for further ids, by size: 7, 56, 448.
    chunks: [AtomicPtr<variants::Copies>; variants::NR_CHUNKS],
    pub place: Place,
    /// Ids of threads that run now.
    cids: CpuMask,
    /// `lazy`: CPUs whose Slot is written.
    present: CpuMask,
}

/// The contract of a design. What all guarantee is INV-SETUP-1; where copies are is theirs.
pub(crate) trait SetUp {
    /// Makes what an address space needs and the shell does not keep. Nothing is left on an error.
    fn make(shell: &mut Shell) -> Result<(), MmError>;
    /// Takes it away. The sums are zero.
    fn unmake(shell: &mut Shell);
    /// Adds `n` pages of a kind. Any context but hard IRQ.
    fn add(shell: &Shell, kind: usize, n: isize);
    /// Pages of a kind: exact when nobody adds.
    fn sum(shell: &Shell, kind: usize) -> isize;
    /// Adds all copies up at the end of an address space, as the design does it; true if all are zero.
    fn retire(shell: &Shell) -> bool;
    /// The id to try first on this CPU. Preemption is off.
    fn recent_cid(_shell: &Shell) -> Option<usize> {
        None
    }
    /// This CPU has that id. Preemption is off.
    fn note_cid(_shell: &Shell, _cid: usize) {}
}

/// Calls a function of the design of a shell, by a match that inlines.
macro_rules! by_kind {
    ($kind:expr, $v:ident => $e:expr) => {
        match $kind {
            MmKind::Separate => {
                type $v = variants::Separate;
                $e
            }
            MmKind::Merged => {
                type $v = variants::Merged;
                $e
            }
            MmKind::Uninit => {
                type $v = variants::Uninit;
                $e
            }
            MmKind::Ctor => {
                type $v = variants::Ctor;
                $e
            }
            MmKind::Lazy => {
                type $v = variants::Lazy;
                $e
            }
            MmKind::Grouped => {
                type $v = variants::Ctor;
                $e
            }
            MmKind::Single => {
                type $v = variants::Single;
                $e
            }
            MmKind::Best => {
                type $v = variants::Best;
                $e
            }
        }
    };
}

/// What a CPU runs: in every window, all zero while it runs no program.
#[repr(C, align(64))]
struct Running {
    shell: AtomicPtr<Shell>,
    cid: AtomicU32,
}

/// Offset of [`Running`]; the area of zeroes before `init`.
static RUNNING: AtomicUsize = AtomicUsize::new(percpu::ZERO_AREA);

/// Once at boot.
pub(crate) fn init() -> Result<(), MmError> {
    if RUNNING.load(Acquire) == percpu::ZERO_AREA {
        let offset = percpu::alloc_gfp(Layout::new::<Running>(), Zero::Yes, Gfp::NOFAULT_INJECT)?;
        RUNNING.store(offset, Release);
    }
    Ok(())
}

#[inline(always)]
fn running(_preempt_off: &PreemptGuard) -> &Running {
    // SAFETY: both values of RUNNING are 64 bytes of every window that read as a Running.
    unsafe { &*((arch::this_cpu_base() + RUNNING.load(Relaxed)) as *const Running) }
}

/// The concurrency id of the running thread: below the number of CPUs, and of no other thread that runs in the same
/// address space now. 0 for a thread without one.
pub fn current_cid() -> u32 {
    let guard = PreemptGuard::new();
    running(&guard).cid.load(Relaxed)
}

static SHELLS: KmemCache =
    KmemCache::new_static("mm_shell", size_of::<Shell>(), 64, CacheFlags::empty());
static BUILT: KmemCache = KmemCache::new_static_ctor(
    "mm_built",
    size_of::<Shell>(),
    64,
    CacheFlags::empty(),
    Some(construct),
    Some(destruct),
);

fn construct(at: NonNull<u8>) -> Result<(), CtorError> {
    // SAFETY: fresh memory of a shell's size; on an error nothing is left.
    unsafe { Shell::build(at.cast(), MmKind::current()) }.map_err(|_| CtorError)
}

fn destruct(at: NonNull<u8>) {
    // SAFETY: a constructed shell that nobody has.
    unsafe { Shell::unbuild(at.cast()) }
}

impl Shell {
    /// # Safety
    /// `at` is memory of a shell, the caller's. On an error nothing has been made.
    unsafe fn build(at: NonNull<Shell>, kind: MmKind) -> Result<(), MmError> {
        let mut shell = Shell {
            pgd: alloc_pgd()?,
            shared: [const { AtomicIsize::new(0) }; NR_COUNTERS],
            local: [const { AtomicIsize::new(0) }; NR_COUNTERS],
            kind,
            live: AtomicBool::new(false),
            area: AtomicUsize::new(0),
            cid_area: 0,
            chunks: [const { AtomicPtr::new(ptr::null_mut()) }; variants::NR_CHUNKS],
            place: Place::new(),
            cids: CpuMask::new(),
            present: CpuMask::new(),
        };
        if let Err(e) = by_kind!(kind, V => V::make(&mut shell)) {
            // SAFETY: made above, never used.
            unsafe { free_pgd(shell.pgd) };
            return Err(e);
        }
        // SAFETY: the caller's memory.
        unsafe { at.write(shell) };
        if kind.is_cached() {
            // SAFETY: written just now; the shell does not move until it is unbuilt.
            place::built(unsafe { at.as_ref() });
        }
        Ok(())
    }

    /// # Safety
    /// A built shell that nobody uses.
    unsafe fn unbuild(mut at: NonNull<Shell>) {
        // SAFETY: the caller's promise.
        let shell = unsafe { at.as_mut() };
        if shell.kind.is_cached() {
            place::unbuilt(shell);
        }
        by_kind!(shell.kind, V => V::unmake(shell));
        // SAFETY: no CPU runs it, and it is empty (INV-SETUP-4).
        unsafe { free_pgd(shell.pgd) };
    }

    /// A shell for a new address space, in its place on the lists.
    pub fn take() -> Result<NonNull<Shell>, MmError> {
        let kind = MmKind::current();
        let at = match kind {
            MmKind::Grouped => pools::take()?,
            MmKind::Ctor | MmKind::Best => BUILT.alloc(Gfp::empty())?.cast(),
            _ => {
                let at = SHELLS.alloc(Gfp::empty())?.cast();
                // SAFETY: fresh memory of a shell's size.
                if let Err(e) = unsafe { Shell::build(at, kind) } {
                    // SAFETY: allocated above.
                    unsafe { SHELLS.free(at.cast()) };
                    return Err(e);
                }
                at
            }
        };
        // SAFETY: a built shell, ours.
        let shell = unsafe { at.as_ref() };
        shell.live.store(true, Relaxed);
        place::enter(shell);
        Ok(at)
    }

    /// Gives a shell back. Panics if its counters do not sum up to zero.
    ///
    /// # Safety
    /// The shell came from `take`, its root is empty, no CPU runs it, and nobody uses it any more.
    pub unsafe fn give(at: NonNull<Shell>) {
        // SAFETY: the caller's promise.
        let shell = unsafe { at.as_ref() };
        by_kind!(shell.kind, V => assert!(V::retire(shell), "mm counters are not zero at the end: INV-SETUP-4"));
        debug_assert!(shell.cids.is_empty(), "INV-SETUP-4");
        place::leave(shell);
        shell.live.store(false, Relaxed);
        // SAFETY: by kind, as `take` made it.
        unsafe {
            match shell.kind {
                MmKind::Grouped => pools::give(at),
                MmKind::Ctor | MmKind::Best => BUILT.free(at.cast()),
                _ => {
                    Shell::unbuild(at);
                    SHELLS.free(at.cast());
                }
            }
        }
    }

    /// Adds pages.
    #[inline]
    pub fn add(&self, kind: usize, n: isize) {
        by_kind!(self.kind, V => V::add(self, kind, n));
    }

    /// Pages of a kind: exact when nobody adds.
    pub fn sum(&self, kind: usize) -> isize {
        by_kind!(self.kind, V => V::sum(self, kind))
    }

    /// The address space gets a second thread.
    pub fn share(&self) -> Result<(), MmError> {
        match self.kind {
            MmKind::Single => variants::Single::convert(self),
            _ => Ok(()),
        }
    }

    /// This CPU begins to run it. Preemption is off; no other shell of this CPU is between `enter` and `leave` after.
    #[inline]
    pub fn enter(&self) {
        let guard = PreemptGuard::new();
        let here = running(&guard);
        let cid = self.take_cid();
        here.cid.store(cid as u32, Relaxed);
        here.shell.store(ptr::from_ref(self).cast_mut(), Relaxed);
    }

    /// This CPU has begun to run something else: `next`, or the kernel alone.
    #[inline]
    pub fn leave(&self, cid: usize) {
        self.cids.clear(cid);
    }

    /// Nobody runs it: for tests that end threads by force.
    #[cfg(test)]
    pub(crate) fn forget_ids(&self) {
        self.cids.clear_all();
    }

    /// The lowest free id, or the one this CPU had last. The lowest of all is never left free for a higher one's sake:
    /// so a thread that is alone ends up with it, whatever its CPUs had when there were more.
    #[inline]
    fn take_cid(&self) -> usize {
        if let Some(cid) = by_kind!(self.kind, V => V::recent_cid(self))
            && (cid == 0 || self.cids.test(0))
            && !self.cids.test_and_set(cid)
        {
            return cid;
        }
        let mut cid = 0;
        while self.cids.test_and_set(cid) {
            cid += 1;
        }
        by_kind!(self.kind, V => V::note_cid(self, cid));
        cid
    }
}

/// This CPU switches from one address space to another, or to (from) none. Preemption is off.
#[inline]
pub(crate) fn switch(from: Option<&Shell>, to: Option<&Shell>) {
    let guard = PreemptGuard::new();
    let here = running(&guard);
    let old = here.cid.load(Relaxed) as usize;
    match to {
        Some(to) => to.enter(),
        None => {
            here.shell.store(ptr::null_mut(), Relaxed);
            here.cid.store(0, Relaxed);
        }
    }
    if let Some(from) = from {
        from.leave(old);
    }
}

/// Gives back the shells that wait in pools, for leak checks; those in slabs go by `slab::shrink_all`. May be called
/// anywhere allocation is fine.
pub fn drain_shells() {
    pools::drain();
}

/// CPUs that share a pool of shells (`mm=grouped`). Boot.
pub fn set_group(cpus: usize) {
    pools::set_group(cpus);
}

impl RssStat {
    /// Pages of `kind`, now.
    pub fn get(&self, kind: RssKind) -> isize {
        self.shell().sum(kind as usize)
    }
}
