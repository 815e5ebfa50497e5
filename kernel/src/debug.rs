//! Bugs in the use of memory and locks, found by what the boot line turns on: `lockdep=on`, `slab_debug=CACHES`.
//!
//! The crates below find them and have no console; here is what they print with, and the verdict at the machine's end.
//! Also here: the thread that `slab_reclaim=worker` gives the slab.

use crate::params::{BootParams, ReclaimWord};
use crate::process;
use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use ksync::lockdep::{self, Stack};
use ksync::{LockClass, SpinLock, WaitQueue};
use slab::{CacheFlags, CtorError, KmemCache, Reclaim};

/// Threads that hold locks at once, at most, for lockdep.
const NR_STACKS: usize = 1024;

/// Bugs were planted, so reports are no failure.
static EXPECTED: AtomicBool = AtomicBool::new(false);
static RECLAIM_WANTED: AtomicBool = AtomicBool::new(false);
static RECLAIM_QUEUE: WaitQueue = WaitQueue::new();

fn print(what: fmt::Arguments<'_>) {
    println!("{what}");
}

/// Chooses what is debugged. After the boot words are known, before any cache is used.
pub fn init(params: &'static BootParams) {
    slab::set_reporter(print);
    if let Some(names) = &params.slab_debug {
        slab::set_debug(names.as_str());
    }
    slab::set_reclaim(match params.slab_reclaim {
        ReclaimWord::Inline => Reclaim::Inline,
        ReclaimWord::Worker => Reclaim::Worker,
    });
}

/// Turns lockdep on. Boot, while static keys can be patched.
pub fn enable_lockdep() {
    let stacks: Vec<Stack> = core::iter::repeat_with(Stack::new)
        .take(NR_STACKS)
        .collect();
    lockdep::enable(stacks.leak(), print);
}

/// Lets the slab give memory back when there is no other; with `slab_reclaim=worker` starts the thread for it.
pub fn start_reclaim(params: &BootParams) {
    slab::start_reclaim(|| {
        RECLAIM_WANTED.store(true, Relaxed);
        RECLAIM_QUEUE.wake_one();
    });
    if params.slab_reclaim == ReclaimWord::Worker {
        process::kernel_thread("slab_reclaim", 0, reclaim_worker, 0)
            .expect("memory for the reclaim thread");
    }
}

extern "C" fn reclaim_worker(_: usize) {
    loop {
        RECLAIM_QUEUE.wait_until(|| RECLAIM_WANTED.swap(false, Relaxed));
        slab::run_worker();
    }
}

/// Says what was checked, and whether nothing was found that was not planted.
pub fn is_clean() -> bool {
    if lockdep::is_enabled() {
        println!(
            "lockdep: {} orders, {} reports",
            lockdep::nr_edges(),
            lockdep::nr_reports()
        );
    }
    if slab::nr_reports() > 0 {
        println!(
            "slab: {} reports, {} objects kept out of use",
            slab::nr_reports(),
            slab::nr_quarantined()
        );
    }
    EXPECTED.load(Relaxed) || (lockdep::nr_reports() == 0 && slab::nr_reports() == 0)
}

static A: LockClass = LockClass::new("planted_a");
static B: LockClass = LockClass::new("planted_b");
static IN_DTOR: SpinLock<()> = SpinLock::new((), &A);

fn no_ctor(_: NonNull<u8>) -> Result<(), CtorError> {
    Ok(())
}

fn bad_dtor(_: NonNull<u8>) {
    drop(IN_DTOR.lock());
}

/// Takes two locks in both orders, one after the other, and destroys an object whose destructor takes a lock that is
/// no leaf: nothing hangs, and lockdep reports both. Ends the machine.
pub fn plant_lock_bugs() -> ! {
    EXPECTED.store(true, Relaxed);
    let (a, b) = (SpinLock::new((), &A), SpinLock::new((), &B));
    one_order(&a, &b);
    one_order(&b, &a);
    let before = lockdep::nr_reports();
    let cache = KmemCache::create(
        "planted",
        64,
        8,
        Some(no_ctor),
        Some(bad_dtor),
        CacheFlags::empty(),
    );
    let cache = cache.expect("memory for a cache");
    let object = cache
        .alloc(slab::Gfp::empty())
        .expect("memory for an object");
    // SAFETY: allocated just now.
    unsafe { cache.free(object) };
    cache.shrink();
    let found = before > 0 && lockdep::nr_reports() > before;
    println!(
        "planted lock bugs: {}",
        if found { "both found" } else { "not found" }
    );
    crate::power::off(if found { 0 } else { 1 })
}

/// Objects that a planted constructor still makes before it fails.
static CTOR_LEFT: AtomicUsize = AtomicUsize::new(0);
static BUILT: AtomicUsize = AtomicUsize::new(0);

fn failing_ctor(_: NonNull<u8>) -> Result<(), CtorError> {
    let made = |left: usize| left.checked_sub(1);
    CTOR_LEFT
        .fetch_update(Relaxed, Relaxed, made)
        .map_err(|_| CtorError)?;
    BUILT.fetch_add(1, Relaxed);
    Ok(())
}

fn counting_dtor(_: NonNull<u8>) {
    BUILT.fetch_sub(1, Relaxed);
}

/// Does to caches of its own what must not be done; each gets a report, and nothing else happens. Wants
/// `slab_debug=planted,neighbour`. Ends the machine.
pub fn plant_slab_bugs() -> ! {
    EXPECTED.store(true, Relaxed);
    let made = |name| KmemCache::create(name, 96, 8, None, None, CacheFlags::empty());
    let (cache, other) = (made("planted"), made("neighbour"));
    let (cache, other) = cache.and_then(|c| Ok((c, other?))).expect("memory");
    let take = |cache: &'static KmemCache| cache.alloc(slab::Gfp::empty()).expect("memory");
    let mut wanted = 0;
    let mut planted = |what: &str| {
        wanted += 1;
        let found = slab::nr_reports() >= wanted;
        println!(
            "planted {what}: {}",
            if found { "found" } else { "not found" }
        );
        wanted = wanted.max(slab::nr_reports());
        found
    };
    let (object, theirs) = (take(cache), take(other));
    let mut all = true;
    // SAFETY: none: these are the bugs; the debug mode of the caches keeps them from doing harm.
    unsafe {
        cache.free(theirs);
        all &= planted("free into the wrong cache");
        cache.free(object.add(8));
        all &= planted("free of a pointer into an object");
        cache.free(object);
        cache.free(object);
        all &= planted("double free");
        object.add(40).write(7);
        // Its slab gives it out again within a slab's worth of objects.
        let held: [NonNull<u8>; 64] = core::array::from_fn(|_| take(cache));
        all &= planted("use after free") && !held.contains(&object);
        held.into_iter().for_each(|o| cache.free(o));
        all &= other.destroy().is_err();
    }
    all &= planted("destroy with a live object");
    let absurd = |size| KmemCache::create("absurd", size, 8, None, None, CacheFlags::empty());
    all &= absurd(1 << 40).is_err() && planted("absurd object size");
    for k in 0..40 {
        CTOR_LEFT.store(k, Relaxed);
        let (c, d): (slab::Ctor, slab::Dtor) = (failing_ctor, counting_dtor);
        let flags = CacheFlags::empty();
        let cache = KmemCache::create("unbuilt", 512, 8, Some(c), Some(d), flags).expect("memory");
        if let Ok(object) = cache.alloc(slab::Gfp::empty()) {
            // SAFETY: allocated just now.
            unsafe { cache.free(object) };
        }
        // SAFETY: nobody uses it.
        all &= unsafe { cache.destroy() }.is_ok() && BUILT.load(Relaxed) == 0;
    }
    println!(
        "planted slab bugs: {}",
        if all { "all found" } else { "not all found" }
    );
    crate::power::off(if all { 0 } else { 1 })
}

#[inline(never)]
fn one_order(first: &SpinLock<()>, second: &SpinLock<()>) {
    let _first = first.lock();
    let _second = second.lock();
}
