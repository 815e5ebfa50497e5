//! Many orders of the steps of a few threads, and bugs that they must find.

use super::*;
use ksync::arch::explore::{Body, explore, find_failure};
use std::boxed::Box;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize as Count;
use std::sync::atomic::{AtomicPtr, Ordering::AcqRel, Ordering::Acquire};

const SEEDS: u64 = 60;

/// A thread of CPU `cpu`.
fn body(cpu: usize, f: impl FnOnce() + Send + 'static) -> Body {
    Box::new(move || {
        arch::host::set_cpu(cpu);
        f();
    })
}

fn stamp(object: NonNull<u8>, value: u64) {
    // SAFETY: a live object of this thread with at least 16 bytes.
    unsafe { object.cast::<u64>().add(1).write(value) };
    arch::interleave();
    // SAFETY: as above.
    let found = unsafe { object.cast::<u64>().add(1).read() };
    assert_eq!(found, value, "another client has this object too");
}

/// What all executions of a test share: the last thread to end checks and destroys the cache.
struct Rig {
    cache: &'static KmemCache,
    left: Count,
}

impl Rig {
    fn new(threads: usize, size: usize, with_ctor: bool, flags: CacheFlags) -> Arc<Rig> {
        reset_ctor(usize::MAX);
        let (c, d): (Option<Ctor>, Option<Dtor>) = if with_ctor {
            (Some(ctor), Some(dtor))
        } else {
            (None, None)
        };
        let cache = KmemCache::create("explored", size, 8, c, d, flags).unwrap();
        Arc::new(Rig {
            cache,
            left: Count::new(threads),
        })
    }

    fn done(&self) {
        if self.left.fetch_sub(1, Relaxed) == 1 {
            assert_eq!(self.cache.active(), 0);
            self.cache.shrink();
            let stats = self.cache.stats();
            assert_eq!(
                (stats.total, stats.cached, nr_built()),
                (0, 0, 0),
                "something was lost"
            );
            destroy(self.cache).unwrap();
        }
    }
}

/// Takes and gives back `n` objects, `rounds` times.
fn churn(rig: Arc<Rig>, rounds: u64, n: usize, mark: u64) {
    for round in 0..rounds {
        let objects: Vec<_> = (0..n).map(|_| take(rig.cache).unwrap()).collect();
        objects.iter().for_each(|&o| stamp(o, mark << 32 | round));
        objects.into_iter().for_each(|o| give_back(rig.cache, o));
    }
    rig.done();
}

fn fast_paths_and_shrink() -> Vec<Body> {
    let rig = Rig::new(3, 4096, false, CacheFlags::empty());
    let (a, b, c) = (rig.clone(), rig.clone(), rig);
    std::vec![
        body(0, move || churn(a, 4, 2, 1)),
        body(1, move || churn(b, 4, 2, 2)),
        body(2, move || {
            c.cache.shrink();
            c.cache.shrink();
            c.done();
        }),
    ]
}

#[test]
fn shrink_against_fast_paths() {
    let _machine = machine();
    explore(0..SEEDS, fast_paths_and_shrink);
    let found = with_bug("shrink does not wait for fast paths", || {
        find_failure(0..500, fast_paths_and_shrink)
    });
    assert!(found.is_some());
}

/// Slow paths, one after the other, while the cache closes and opens.
fn slow_paths_and_shrink() -> Vec<Body> {
    let rig = Rig::new(3, 4096, false, CacheFlags::empty());
    let (a, b, c) = (rig.clone(), rig.clone(), rig);
    std::vec![
        body(0, move || churn(a, 2, 6, 1)),
        body(1, move || churn(b, 2, 6, 2)),
        body(2, move || {
            c.cache.shrink();
            c.cache.shrink();
            zeroes();
            c.done();
        }),
    ]
}

/// The area of zeroes is what it is called, on every CPU (INV-PCPU-3); if not, it is made so again, for the next test.
fn zeroes() {
    let mut written = false;
    for cpu in 0..NR_CPUS {
        let area = (arch::percpu_base(cpu) + percpu::ZERO_AREA) as *mut [u64; 8];
        // SAFETY: 64 bytes of every window; whoever writes there is what the test looks for, and is stopped by it.
        unsafe {
            written |= area.read_volatile() != [0; 8];
            area.write_volatile([0; 8]);
        }
    }
    assert!(!written, "somebody wrote into the area of zeroes");
}

#[test]
fn shrink_against_slow_paths() {
    let _machine = machine();
    explore(0..SEEDS, slow_paths_and_shrink);
    let found = with_bug("a second look at the offset", || {
        find_failure(0..500, slow_paths_and_shrink)
    });
    for cpu in 0..NR_CPUS {
        let area = (arch::percpu_base(cpu) + percpu::ZERO_AREA) as *mut [u64; 8];
        // SAFETY: nobody is at work, and zeroes are what has to be there.
        unsafe { area.write([0; 8]) };
    }
    assert!(found.is_some());
}

fn one_barn() -> Vec<Body> {
    // Sheaves of 4, a barn of 2: two CPUs of one node fill it at the same time.
    let rig = Rig::new(2, 4096, false, CacheFlags::empty());
    let (a, b) = (rig.clone(), rig);
    std::vec![
        body(0, move || churn(a, 1, 22, 1)),
        body(1, move || churn(b, 1, 22, 2))
    ]
}

#[test]
fn two_cpus_at_one_barn() {
    let _machine = machine();
    explore(0..SEEDS / 2, one_barn);
    assert!(
        with_bug("a full barn drops a sheaf", || find_failure(
            0..500,
            one_barn
        ))
        .is_some()
    );
}

fn pass_on() -> Vec<Body> {
    // CPU 0 allocates, CPU 3 (of the other node) frees, while both allocate for themselves.
    let rig = Rig::new(2, 4096, false, CacheFlags::empty());
    let parcels: Arc<Mutex<Vec<usize>>> = Arc::default();
    let (a, b, to, from) = (rig.clone(), rig, parcels.clone(), parcels);
    std::vec![
        body(0, move || {
            for _ in 0..6 {
                let object = take(a.cache).unwrap();
                assert_eq!(
                    node_of(object),
                    0,
                    "an object of another node came out of a sheaf"
                );
                to.lock().unwrap().push(object.as_ptr() as usize);
            }
            a.done();
        }),
        body(NR_CPUS - 1, move || {
            for _ in 0..6 {
                let parcel = loop {
                    let parcel = from.lock().unwrap().pop();
                    match parcel {
                        Some(p) => break NonNull::new(p as *mut u8).unwrap(),
                        None => arch::cpu_relax(),
                    }
                };
                stamp(parcel, 7);
                give_back(b.cache, parcel);
                let object = take(b.cache).unwrap();
                assert_eq!(
                    node_of(object),
                    1,
                    "an object of another node came out of a sheaf"
                );
                give_back(b.cache, object);
            }
            b.done();
        }),
    ]
}

#[test]
fn remote_frees() {
    let _machine = machine();
    explore(0..SEEDS, pass_on);
    assert!(with_bug("remote objects stay", || find_failure(0..100, pass_on)).is_some());
}

fn pressure() -> Vec<Body> {
    let rig = Rig::new(3, 4096, true, CacheFlags::NO_SHEAVES);
    let (a, b, c) = (rig.clone(), rig.clone(), rig);
    std::vec![
        body(0, move || churn(a, 3, 2, 1)),
        body(1, move || churn(b, 3, 2, 2)),
        body(2, move || {
            for _ in 0..3 {
                under_pressure();
            }
            c.done();
        }),
    ]
}

#[test]
fn reclaim_against_alloc() {
    let _machine = machine();
    explore(0..SEEDS / 2, pressure);
    assert!(
        with_bug("reclaim looks before it locks", || find_failure(
            0..500,
            pressure
        ))
        .is_some()
    );
}

/// A static cache: what a planted bug does to it after its end is seen, and no crash.
const fn stays(flags: CacheFlags) -> KmemCache {
    KmemCache::new_static_ctor("explored", 4096, 8, flags, Some(ctor), Some(dtor))
}

/// Frees on one CPU, a worker on another, destroy on the third. A slab that the worker finds after its cache is gone
/// has no constructed objects any more.
fn worker_and_destroy() -> Vec<Body> {
    reset_ctor(usize::MAX);
    static DESTROYED: KmemCache = stays(CacheFlags::NO_SHEAVES);
    let c = &DESTROYED;
    std::vec![
        body(0, move || {
            let objects: Vec<_> = (0..24).map(|_| take(c).unwrap()).collect();
            objects.into_iter().for_each(|o| give_back(c, o));
            destroy(c).unwrap();
            assert_eq!(
                nr_built(),
                0,
                "destroyed with slabs that wait for the worker"
            );
        }),
        body(1, || {
            for _ in 0..2 {
                run_worker();
            }
        }),
    ]
}

#[test]
fn the_worker_against_destroy() {
    let _machine = machine();
    set_reclaim(Reclaim::Worker);
    explore(0..SEEDS / 2, worker_and_destroy);
    let found = with_bug("destroy forgets the worker", || {
        find_failure(0..200, worker_and_destroy)
    });
    // What the bug left behind knows a cache that is gone: it is never run.
    set_reclaim(Reclaim::Inline);
    crate::reclaim::forget_pending();
    assert!(found.is_some());
}

fn walk_and_destroy() -> Vec<Body> {
    reset_ctor(usize::MAX);
    static DESTROYED: KmemCache = stays(CacheFlags::empty());
    let c = &DESTROYED;
    std::vec![
        body(0, move || {
            let objects: Vec<_> = (0..24).map(|_| take(c).unwrap()).collect();
            objects.into_iter().for_each(|o| give_back(c, o));
            destroy(c).unwrap();
            assert_eq!(
                nr_built(),
                0,
                "reclaim still has slabs of a cache that is gone"
            );
        }),
        body(1, || {
            under_pressure();
        }),
        body(2, || {
            under_pressure();
        }),
    ]
}

#[test]
fn reclaim_against_destroy() {
    let _machine = machine();
    explore(0..SEEDS, walk_and_destroy);
    assert!(
        with_bug("destroy does not wait for walks", || find_failure(
            0..1000,
            walk_and_destroy
        ))
        .is_some()
    );
}

struct Found(u64);
object!(Found, "test_found", links = 0, rcu);

/// Ends of objects of RCU types in this thread's execution.
static ENDS: Count = Count::new(0);

/// Called when the end of an object of an RCU type begins.
pub fn note_end(of: &str) {
    if !of.ends_with("Found") {
        return;
    }
    assert_eq!(ENDS.fetch_add(1, Relaxed), 0, "it ended twice");
}

/// An owner takes an object out of its place and drops it while readers find it.
fn the_last_owner_and_readers() -> Vec<Body> {
    ENDS.store(0, Relaxed);
    let object = KArc::into_raw(KArc::new(Found(77)).unwrap());
    let place = Arc::new(AtomicPtr::new(object.as_ptr()));
    let reader = |cpu, place: Arc<AtomicPtr<Found>>| {
        body(cpu, move || {
            let section = rcu::read_lock();
            arch::interleave();
            let found = NonNull::new(place.load(Acquire));
            // SAFETY: read in this section, from a place that is cleared before the reference goes.
            let held = found.and_then(|found| unsafe { KArc::try_get_rcu(found) });
            if let Some(held) = held {
                arch::interleave();
                assert_eq!((held.0, ENDS.load(Relaxed)), (77, 0), "ended under us");
            }
            drop(section);
        })
    };
    std::vec![
        reader(0, place.clone()),
        reader(1, place.clone()),
        body(2, move || {
            let mine = NonNull::new(place.swap(ptr::null_mut(), AcqRel)).unwrap();
            // SAFETY: the reference that stood for the place.
            drop(unsafe { KArc::from_raw(mine) });
        })
    ]
}

#[test]
fn a_reader_revives_or_finds_nothing() {
    let _machine = machine();
    explore(0..SEEDS, the_last_owner_and_readers);
    let found = with_bug("an end without the mark", || {
        find_failure(0..500, the_last_owner_and_readers)
    });
    assert!(found.is_some());
}
