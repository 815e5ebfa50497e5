//! Lock classes and their statistics.
//!
//! # Problem
//! A scaling study must say which lock is waited for, and for how long, without changing what it measures.
//!
//! # Mechanism
//! Every lock belongs to a [`LockClass`]. While the static key [`LOCK_HOOKS`] is off an acquisition passes one NOP and
//! a release another. While it is on each goes out of line: it tries the lock first, so that an acquisition that
//! has to wait is known as contended, and adds to counters of this CPU and class. Counters are private to their CPU
//! and merged when read. A class gets its number, its column in the storage, at its first counted acquisition.
//!
//! Storage is the kernel's to give: [`enable`] takes `nr_cpu_ids() * MAX_CLASSES` zeroed [`Counters`].
//!
//! # Invariants
//! - INV-STAT-1: counters of a CPU are written only by that CPU with preemption off, by plain loads and stores. A
//!   class is used either with IRQs off or never in interrupts, so no interrupt comes between the two.
//! - INV-STAT-2: [`LOCK_HOOKS`] changes only while no lock is held: a hold that began uncounted has no start.
use crate::arch;
use crate::lockdep::{self, How};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering::*};

/// Greatest number of classes that are counted; locks of further classes are not.
pub const MAX_CLASSES: usize = 128;

crate::static_key! {
    /// Locks tell statistics and [`lockdep`](crate::lockdep) what happens to them. Turned on by either's `enable`.
    pub static LOCK_HOOKS;
}

/// The name under which all locks of a kind are counted.
pub struct LockClass {
    name: &'static str,
    /// 0: no number yet. Else the column plus one; above MAX_CLASSES: not counted.
    number: AtomicU32,
    /// Nothing is taken under it.
    leaf: bool,
}

/// `lock_class!("pidmap_lock")`: a `&'static LockClass`, usable in constants.
#[macro_export]
macro_rules! lock_class {
    ($name:literal) => {{
        static CLASS: $crate::LockClass = $crate::LockClass::new($name);
        &CLASS
    }};
}

/// What one CPU counted for one class. Times are in [`arch::get_cycles`]'s unit.
#[repr(C)]
#[derive(Debug)]
pub struct Counters {
    acquisitions: AtomicU64,
    contended: AtomicU64,
    wait_cycles: AtomicU64,
    hold_cycles: AtomicU64,
}

impl Counters {
    /// All zero.
    pub const fn new() -> Self {
        Counters {
            acquisitions: AtomicU64::new(0),
            contended: AtomicU64::new(0),
            wait_cycles: AtomicU64::new(0),
            hold_cycles: AtomicU64::new(0),
        }
    }
}

/// A class's counts over all CPUs.
#[derive(Copy, Clone, Default, PartialEq, Eq, Debug)]
pub struct LockStats {
    /// How often it was acquired.
    pub acquisitions: u64,
    /// How often of these the lock was not free at once.
    pub contended: u64,
    /// Cycles spent waiting.
    pub wait_cycles: u64,
    /// Cycles it was held, summed over holders (readers each count).
    pub hold_cycles: u64,
}

static STORAGE: AtomicPtr<Counters> = AtomicPtr::new(core::ptr::null_mut());
static STORAGE_LEN: AtomicU32 = AtomicU32::new(0);
static CLASSES: [AtomicPtr<LockClass>; MAX_CLASSES] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CLASSES];
static NR_CLASSES: AtomicU32 = AtomicU32::new(0);
static REGISTERING: AtomicBool = AtomicBool::new(false);

/// When a counted hold began. On the machine it has no value while [`LOCK_HOOKS`] is off, so that it costs nothing;
/// elsewhere 0 says so, because the key may change under a hold.
#[derive(Copy, Clone)]
pub(crate) struct HoldStart(
    #[cfg(target_os = "none")] core::mem::MaybeUninit<u64>,
    #[cfg(not(target_os = "none"))] u64,
);

impl HoldStart {
    #[inline(always)]
    fn uncounted() -> Self {
        #[cfg(target_os = "none")]
        return HoldStart(core::mem::MaybeUninit::uninit());
        #[cfg(not(target_os = "none"))]
        HoldStart(0)
    }

    #[inline(always)]
    fn at(cycles: u64) -> Self {
        #[cfg(target_os = "none")]
        return HoldStart(core::mem::MaybeUninit::new(cycles));
        #[cfg(not(target_os = "none"))]
        HoldStart(cycles.max(1))
    }

    /// Called only where [`LOCK_HOOKS`] is on.
    fn since(self) -> Option<u64> {
        #[cfg(target_os = "none")]
        // SAFETY: INV-STAT-2: the key was on when the hold began, so `at` made this.
        return Some(unsafe { self.0.assume_init() });
        #[cfg(not(target_os = "none"))]
        (self.0 != 0).then_some(self.0)
    }
}

impl LockClass {
    /// A class called `name`.
    pub const fn new(name: &'static str) -> Self {
        LockClass {
            name,
            number: AtomicU32::new(0),
            leaf: false,
        }
    }

    /// A class whose locks are taken with IRQs off, and under which no other lock is taken: it can be taken anywhere,
    /// by a destructor for one. [`lockdep`](crate::lockdep) checks it.
    pub const fn new_leaf(name: &'static str) -> Self {
        LockClass {
            name,
            number: AtomicU32::new(0),
            leaf: true,
        }
    }

    /// Whether it is a leaf.
    pub fn is_leaf(&self) -> bool {
        self.leaf
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    #[cold]
    #[inline(never)]
    fn count_acquired(&'static self, waiting_since: Option<u64>) -> HoldStart {
        let now = arch::get_cycles();
        self.with_counters(|c| {
            add(&c.acquisitions, 1);
            if let Some(start) = waiting_since {
                add(&c.contended, 1);
                add(&c.wait_cycles, now.saturating_sub(start));
            }
        });
        HoldStart::at(now)
    }

    #[cold]
    #[inline(never)]
    fn count_released(&'static self, since: HoldStart) {
        if let Some(start) = since.since() {
            let held = arch::get_cycles().saturating_sub(start);
            self.with_counters(|c| add(&c.hold_cycles, held));
        }
    }

    fn with_counters(&'static self, f: impl FnOnce(&Counters)) {
        let column = self.column();
        arch::preempt_disable();
        let at = arch::smp_processor_id() * MAX_CLASSES + column;
        if column < MAX_CLASSES && at < STORAGE_LEN.load(Acquire) as usize {
            // SAFETY: `at` is inside the storage, which `enable` was given for ever.
            f(unsafe { &*STORAGE.load(Relaxed).add(at) });
        }
        arch::preempt_enable_no_resched();
    }

    /// This class's column, assigned now if it has none; `MAX_CLASSES` if there are none left.
    pub(crate) fn column(&'static self) -> usize {
        let number = self.number.load(Relaxed);
        if number != 0 {
            number as usize - 1
        } else {
            self.register()
        }
    }

    #[cold]
    fn register(&'static self) -> usize {
        let flags = arch::local_irq_save();
        while REGISTERING.swap(true, Acquire) {
            arch::cpu_relax();
        }
        if self.number.load(Relaxed) == 0 {
            let column = NR_CLASSES.load(Relaxed) as usize;
            if let Some(slot) = CLASSES.get(column) {
                slot.store(core::ptr::from_ref(self).cast_mut(), Release);
                NR_CLASSES.store(column as u32 + 1, Release);
            }
            self.number.store(column as u32 + 1, Relaxed);
        }
        let column = self.number.load(Relaxed) as usize - 1;
        REGISTERING.store(false, Release);
        arch::local_irq_restore(flags);
        column
    }
}

/// Acquires by `lock`; counts, and then asks `try_lock` first, if statistics are on. The class comes as a closure, here
/// and below, so that it is not even loaded while they are off.
#[inline(always)]
pub(crate) fn acquire<S>(
    class: impl FnOnce() -> &'static LockClass,
    how: How,
    try_lock: impl FnOnce() -> Option<S>,
    lock: impl FnOnce() -> S,
) -> (S, HoldStart) {
    if crate::static_branch!(LOCK_HOOKS) {
        return acquire_counted(class(), how, try_lock, lock);
    }
    (lock(), HoldStart::uncounted())
}

#[cold]
#[inline(never)]
fn acquire_counted<S>(
    class: &'static LockClass,
    how: How,
    try_lock: impl FnOnce() -> Option<S>,
    lock: impl FnOnce() -> S,
) -> (S, HoldStart) {
    lockdep::acquire(class, how, false);
    if let Some(state) = try_lock() {
        return (state, class.count_acquired(None));
    }
    let waiting_since = arch::get_cycles();
    let state = lock();
    (state, class.count_acquired(Some(waiting_since)))
}

/// Counts an acquisition that did not wait.
#[inline(always)]
pub(crate) fn try_acquired(class: impl FnOnce() -> &'static LockClass, how: How) -> HoldStart {
    if crate::static_branch!(LOCK_HOOKS) {
        let class = class();
        lockdep::acquire(class, how, true);
        return class.count_acquired(None);
    }
    HoldStart::uncounted()
}

/// Counts the end of a hold. Called before the release.
#[inline(always)]
pub(crate) fn released(class: impl FnOnce() -> &'static LockClass, since: HoldStart) {
    if crate::static_branch!(LOCK_HOOKS) {
        let class = class();
        lockdep::release(class);
        class.count_released(since);
    }
}

/// INV-STAT-1: a plain add, not a locked one.
#[inline]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

/// How many [`Counters`] [`enable`] wants, for `nr_cpu_ids()` CPUs.
pub fn storage_len() -> usize {
    arch::nr_cpu_ids() * MAX_CLASSES
}

/// Starts counting into `storage`, CPU by CPU. Boot, no lock held; on the machine it takes effect at
/// `static_key::patch_all`. CPUs beyond a shorter storage are not counted.
pub fn enable(storage: &'static [Counters]) {
    STORAGE.store(storage.as_ptr().cast_mut(), Relaxed);
    STORAGE_LEN.store(storage.len() as u32, Release);
    LOCK_HOOKS.enable();
}

/// Whether [`enable`] was called.
pub fn is_enabled() -> bool {
    STORAGE_LEN.load(Acquire) != 0
}

/// The class that has this number.
pub(crate) fn class_of_column(column: usize) -> Option<&'static LockClass> {
    // SAFETY: registered classes are static.
    unsafe { CLASSES.get(column)?.load(Acquire).as_ref() }
}

/// Calls `f` for every class counted so far with its sums over all CPUs. Any context; not a snapshot while CPUs run.
pub fn for_each(mut f: impl FnMut(&'static str, LockStats)) {
    for (column, slot) in CLASSES
        .iter()
        .enumerate()
        .take(NR_CLASSES.load(Acquire) as usize)
    {
        // SAFETY: registered classes are static, and the slot was stored before NR_CLASSES.
        let class: &'static LockClass = unsafe { &*slot.load(Acquire) };
        f(class.name, sum(column));
    }
}

fn sum(column: usize) -> LockStats {
    let mut total = LockStats::default();
    for c in storage().iter().skip(column).step_by(MAX_CLASSES) {
        total.acquisitions += c.acquisitions.load(Relaxed);
        total.contended += c.contended.load(Relaxed);
        total.wait_cycles += c.wait_cycles.load(Relaxed);
        total.hold_cycles += c.hold_cycles.load(Relaxed);
    }
    total
}

/// Sets every counter to 0, for the start of a measurement. No CPU takes locks meanwhile, or what it counts at that
/// moment may survive.
pub fn reset() {
    for c in storage() {
        for word in [
            &c.acquisitions,
            &c.contended,
            &c.wait_cycles,
            &c.hold_cycles,
        ] {
            word.store(0, Relaxed);
        }
    }
}

fn storage() -> &'static [Counters] {
    let len = STORAGE_LEN.load(Acquire) as usize;
    if len == 0 {
        return &[];
    }
    // SAFETY: what `enable` was given.
    unsafe { core::slice::from_raw_parts(STORAGE.load(Relaxed), len) }
}
