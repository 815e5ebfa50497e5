//! Every interleaving, up to a bound on preemptions, and every value a relaxed load may return.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ksync --test loom --release`
//!
//! Each subject has a test that must pass and at least one with a planted bug that must fail, in the same model.
#![cfg(loom)]
#![allow(missing_docs, clippy::undocumented_unsafe_blocks)]

use ksync::planted::{Bug, plant};
use ksync::rcu::{self, RcuHead};
use ksync::{Backend, Completion, Lock, LockClass, Mutex, RwLock, RwSem, WaitQueue, arch};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use loom::thread;
use std::ptr::NonNull;

static CLASS: LockClass = LockClass::new("loom");

/// Explores `f` with at most `preemptions` involuntary switches.
fn explore(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 4_000;
    let executions = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = executions.clone();
    builder.check(move || {
        count.fetch_add(1, Relaxed);
        f()
    });
    println!("{} executions", executions.load(Relaxed));
}

/// A test that a planted bug is noticed: name, bug, what loom must say, model.
macro_rules! catches {
    ($name:ident, $bug:ident, $how:expr, $model:expr) => {
        #[test]
        fn $name() {
            must_fail(
                concat!(module_path!(), "::", stringify!($name)),
                Bug::$bug,
                $how,
                || $model,
            );
        }
    };
}

/// Runs `model` with `bug` planted, in a process of its own because loom aborts on some failures, and checks that it
/// fails, saying `how`. `name` is the calling test's.
fn must_fail(name: &str, bug: Bug, how: &str, model: impl Fn()) {
    const CHILD: &str = "KSYNC_LOOM_CHILD";
    // libtest's names lack the crate's.
    let name = name.split_once("::").unwrap().1;
    if std::env::var_os(CHILD).is_some() {
        plant(bug);
        return model();
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("running 1 test"), "{name} names no test");
    assert!(!output.status.success(), "{bug:?} went unnoticed:\n{said}");
    assert!(
        said.contains(how),
        "{bug:?} went wrong in another way than \"{how}\":\n{said}"
    );
}

/// What loom says when memory was accessed without synchronisation.
const RACE: &str = "Causality violation";
/// What it says when everybody sleeps.
const DEADLOCK: &str = "deadlock";
/// What it says when somebody spins for ever.
const LIVELOCK: &str = "exceeded maximum number of branches";

/// Runs `f(cpu)` on CPUs 1.. as threads and on CPU 0 here, and joins them.
fn on_cpus(n: usize, f: impl Fn(usize) + Send + Sync + 'static) {
    let f = Arc::new(f);
    let threads: Vec<_> = (1..n)
        .map(|cpu| {
            let f = f.clone();
            thread::spawn(move || {
                arch::loom::set_cpu(cpu);
                f(cpu);
            })
        })
        .collect();
    f(0);
    for t in threads {
        t.join().unwrap();
    }
}

/// A counter that loom checks for unsynchronised access.
struct Shared(UnsafeCell<usize>);
// SAFETY: only reached under the lock that the test is about; loom reports it if not.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

impl Shared {
    fn new() -> Self {
        Shared(UnsafeCell::new(0))
    }
    fn add(&self) {
        // SAFETY: loom gives the pointer and checks that access to it is exclusive.
        self.0.with_mut(|p| unsafe { *p += 1 });
    }
    fn get(&self) -> usize {
        // SAFETY: loom gives the pointer and checks that access to it is exclusive.
        self.0.with(|p| unsafe { *p })
    }
}

mod spinning {
    use super::*;

    fn excludes<B: Backend + Send + Sync + 'static>(cpus: usize, rounds: usize, preemptions: usize)
    where
        Lock<Shared, B>: Sync + Send,
    {
        explore(preemptions, move || {
            let lock: Arc<Lock<Shared, B>> = Arc::new(Lock::new(Shared::new(), &CLASS));
            let inner = lock.clone();
            on_cpus(cpus, move |_| {
                for _ in 0..rounds {
                    inner.lock().add();
                }
            });
            assert_eq!(lock.lock().get(), cpus * rounds);
        });
    }

    #[test]
    fn tas() {
        excludes::<ksync::Tas>(2, 2, 4);
    }

    #[test]
    fn ticket() {
        excludes::<ksync::Ticket>(2, 2, 4);
        excludes::<ksync::Ticket>(3, 1, 3);
    }

    catches!(
        ticket_that_publishes_nothing,
        TicketRelaxedUnlock,
        RACE,
        excludes::<ksync::Ticket>(2, 1, 2)
    );

    #[test]
    fn mcs() {
        excludes::<ksync::Mcs>(2, 2, 4);
        excludes::<ksync::Mcs>(3, 1, 3);
    }

    catches!(
        mcs_that_forgets_who_is_linking,
        McsForgetLinking,
        LIVELOCK,
        excludes::<ksync::Mcs>(2, 1, 2)
    );

    #[test]
    fn queued_with_a_pending_waiter() {
        excludes::<ksync::Queued>(2, 2, 4);
    }

    #[test]
    fn queued_with_a_queue() {
        excludes::<ksync::Queued>(3, 1, 3);
    }

    #[test]
    fn queued_with_two_in_the_queue() {
        excludes::<ksync::Queued>(4, 1, 1);
    }

    catches!(
        queued_that_publishes_nothing,
        QueuedRelaxedUnlock,
        RACE,
        excludes::<ksync::Queued>(2, 1, 2)
    );

    fn rwlock(preemptions: usize) {
        explore(preemptions, || {
            let lock = Arc::new(RwLock::new(Shared::new(), &CLASS));
            let inner = lock.clone();
            on_cpus(3, move |cpu| match cpu {
                0 => drop(inner.read().get()),
                _ => inner.write().add(),
            });
            assert_eq!(lock.read().get(), 2);
        });
    }

    #[test]
    fn rwlock_excludes() {
        rwlock(3);
    }

    catches!(
        rwlock_that_ignores_a_writer,
        RwLockIgnoreWriter,
        RACE,
        rwlock(2)
    );
}

mod sleeping {
    use super::*;

    fn mutex(cpus: usize, rounds: usize, preemptions: usize) {
        explore(preemptions, move || {
            let mutex = Arc::new(Mutex::new(Shared::new(), &CLASS));
            let inner = mutex.clone();
            on_cpus(cpus, move |_| {
                for _ in 0..rounds {
                    inner.lock().add();
                }
            });
            assert_eq!(mutex.lock().get(), cpus * rounds);
        });
    }

    #[test]
    fn mutex_excludes() {
        mutex(2, 2, 4);
        mutex(3, 1, 2);
    }

    catches!(
        mutex_that_forgets_its_waiters,
        RwSemForgetWaiters,
        DEADLOCK,
        mutex(2, 1, 3)
    );

    catches!(
        mutex_whose_waiter_does_not_look_again,
        RwSemNoRecheck,
        DEADLOCK,
        mutex(2, 1, 3)
    );

    fn rwsem(readers: usize, writers: usize, preemptions: usize) {
        explore(preemptions, move || {
            let sem = Arc::new(RwSem::new(Shared::new(), &CLASS));
            let inner = sem.clone();
            on_cpus(readers + writers, move |cpu| {
                if cpu < readers {
                    assert!(inner.read().get() <= writers);
                } else {
                    inner.write().add();
                }
            });
            assert_eq!(sem.read().get(), writers);
        });
    }

    #[test]
    fn rwsem_excludes() {
        rwsem(1, 1, 4);
        rwsem(2, 1, 3);
        rwsem(1, 2, 2);
        rwsem(2, 2, 2);
    }

    catches!(
        rwsem_whose_waiter_does_not_look_again,
        RwSemNoRecheck,
        DEADLOCK,
        rwsem(1, 1, 3)
    );

    #[test]
    fn rwsem_downgrade_lets_readers_in_and_no_writer() {
        explore(2, || {
            let sem = Arc::new(RwSem::new(Shared::new(), &CLASS));
            let inner = sem.clone();
            on_cpus(3, move |cpu| match cpu {
                0 => {
                    let guard = inner.write();
                    guard.add();
                    let seen = guard.get();
                    let guard = guard.downgrade();
                    assert_eq!(guard.get(), seen, "a writer came in between");
                }
                1 => inner.write().add(),
                _ => assert!(inner.read().get() <= 2),
            });
            assert_eq!(sem.read().get(), 2);
        });
    }
}

mod waiting {
    use super::*;

    fn flag(preemptions: usize) {
        explore(preemptions, || {
            let shared = Arc::new((AtomicBool::new(false), WaitQueue::new(), Shared::new()));
            let inner = shared.clone();
            on_cpus(2, move |cpu| {
                let (flag, queue, data) = &*inner;
                if cpu == 0 {
                    queue.wait_until(|| flag.load(Acquire));
                    assert_eq!(data.get(), 1);
                } else {
                    data.add();
                    flag.store(true, Release);
                    queue.wake_one();
                }
            });
            assert!(!shared.1.anybody());
        });
    }

    #[test]
    fn no_wake_up_is_lost() {
        flag(5);
    }

    catches!(
        a_waiter_that_looks_before_it_queues,
        WaitLookBeforeQueueing,
        DEADLOCK,
        flag(2)
    );

    catches!(a_waker_without_a_barrier, WaitNoBarrier, DEADLOCK, flag(2));

    /// Two events, two waiters that take one each.
    fn events(preemptions: usize) {
        explore(preemptions, || {
            let shared = Arc::new((AtomicUsize::new(0), WaitQueue::new()));
            on_cpus(3, move |cpu| {
                let (events, queue) = &*shared;
                if cpu == 0 {
                    for _ in 0..2 {
                        events.fetch_add(1, Release);
                        queue.wake_one();
                    }
                } else {
                    queue.wait_until(|| {
                        events
                            .fetch_update(Acquire, Relaxed, |n| n.checked_sub(1))
                            .is_ok()
                    });
                }
            });
        });
    }

    #[test]
    fn every_event_finds_a_waiter() {
        events(2);
    }

    catches!(
        a_waiter_that_keeps_a_wake_up_it_does_not_need,
        WaitSwallowWake,
        DEADLOCK,
        events(2)
    );

    #[test]
    fn completion_on_the_waiters_stack() {
        explore(5, || {
            let done = Arc::new(Completion::new());
            let data = Arc::new(Shared::new());
            let (inner, written) = (done.clone(), data.clone());
            on_cpus(2, move |cpu| {
                if cpu == 0 {
                    inner.wait();
                    assert_eq!(written.get(), 1);
                } else {
                    written.add();
                    inner.complete();
                }
            });
            assert!(!done.is_done());
        });
    }
}

mod grace_periods {
    use super::*;

    /// Two versions of something; readers follow `current`. A version is "freed" by writing to it, which loom
    /// reports if a reader may be at it.
    struct World {
        current: AtomicUsize,
        versions: [Shared; 3],
    }

    impl World {
        fn new() -> Arc<Self> {
            Arc::new(World {
                current: AtomicUsize::new(0),
                versions: [Shared::new(), Shared::new(), Shared::new()],
            })
        }

        fn read(&self) {
            let guard = rcu::read_lock();
            let at = self.current.load(Acquire);
            assert_eq!(self.versions[at].get(), 0, "read after free");
            drop(guard);
        }

        fn free(&self, version: usize) {
            self.versions[version].add();
        }
    }

    fn online_all(cpus: usize) {
        arch::set_nr_cpu_ids(cpus);
        rcu::init();
        rcu::cpu_online();
    }

    /// CPU 0 replaces and waits; CPU 1, already known as busy, reads and switches.
    fn replace_under_a_reader(preemptions: usize) {
        explore(preemptions, || {
            online_all(2);
            let world = World::new();
            let reader = {
                let world = world.clone();
                let ready = Arc::new(AtomicBool::new(false));
                let on = ready.clone();
                let t = thread::spawn(move || {
                    arch::loom::set_cpu(1);
                    rcu::cpu_online();
                    on.store(true, Release);
                    world.read();
                    rcu::note_context_switch();
                    assert!(rcu::idle_enter());
                });
                (t, ready)
            };
            world.current.store(1, Release);
            rcu::synchronize();
            world.free(0);
            reader.0.join().unwrap();
        });
    }

    #[test]
    fn a_grace_period_waits_for_a_reader() {
        replace_under_a_reader(4);
    }

    catches!(
        a_grace_period_that_takes_everyone_for_idle,
        RcuIgnoreBusy,
        RACE,
        replace_under_a_reader(2)
    );

    /// A callback that frees version 0.
    #[repr(C)]
    struct Callback {
        head: RcuHead,
        world: Arc<World>,
    }

    unsafe fn run(head: NonNull<RcuHead>) {
        // SAFETY: made by `Box::into_raw` and given back once.
        let callback = unsafe { Box::from_raw(head.cast::<Callback>().as_ptr()) };
        callback.world.free(0);
    }

    /// CPU 0 queues a callback and halts until it may run; CPU 1 reads between two idle times.
    fn halt_with_a_callback(preemptions: usize) {
        explore(preemptions, || {
            online_all(2);
            let world = World::new();
            let reader = {
                let world = world.clone();
                thread::spawn(move || {
                    arch::loom::set_cpu(1);
                    rcu::cpu_online();
                    world.read();
                    assert!(rcu::idle_enter());
                    rcu::idle_exit();
                    world.read();
                    assert!(rcu::idle_enter());
                })
            };
            let callback = Box::new(Callback {
                head: RcuHead::new(),
                world: world.clone(),
            });
            world.current.store(1, Release);
            // SAFETY: the head is used by nothing else until the callback has run.
            unsafe { rcu::call(NonNull::new_unchecked(Box::into_raw(callback)).cast(), run) };
            while rcu::process_callbacks() == 0 {
                if rcu::idle_enter() {
                    arch::park();
                    rcu::idle_exit();
                }
            }
            assert!(!rcu::needs_cpu());
            reader.join().unwrap();
            assert!(rcu::idle_enter());
            rcu::check_quiet();
        });
    }

    #[test]
    fn a_halted_cpu_is_kicked_for_its_callbacks() {
        halt_with_a_callback(3);
    }

    catches!(
        a_cpu_that_halts_without_looking_again,
        RcuSleepUnseen,
        DEADLOCK,
        halt_with_a_callback(3)
    );

    unsafe fn nothing(_: NonNull<RcuHead>) {}

    /// CPU 1 has a grace period going, which CPU 0's must not take for its own: CPU 1 may have reported in it and read
    /// after that.
    fn replace_during_a_grace_period(preemptions: usize) {
        explore(preemptions, || {
            online_all(2);
            let world = World::new();
            let other = {
                let world = world.clone();
                thread::spawn(move || {
                    static HEAD: RcuHead = RcuHead::new();
                    arch::loom::set_cpu(1);
                    rcu::cpu_online();
                    // SAFETY: the head is used by nothing else until the callback has run.
                    unsafe { rcu::call(NonNull::from(&HEAD), nothing) };
                    rcu::process_callbacks();
                    world.read();
                    rcu::note_context_switch();
                    // Perhaps with the callback still waiting: who ends the grace period would kick us.
                    while !rcu::idle_enter() {
                        rcu::process_callbacks();
                    }
                })
            };
            world.current.store(1, Release);
            rcu::synchronize();
            world.free(0);
            other.join().unwrap();
        });
    }

    #[test]
    fn a_grace_period_that_runs_already_is_not_enough() {
        replace_during_a_grace_period(3);
    }

    catches!(
        a_stamp_that_takes_the_current_grace_period,
        RcuCurrentIsEnough,
        RACE,
        replace_during_a_grace_period(2)
    );

    /// CPU 1 runs its one callback and halts, while CPU 0 wants all callbacks to have run.
    fn barrier_against_idle(preemptions: usize) {
        explore(preemptions, || {
            online_all(2);
            let queued = Arc::new(AtomicBool::new(false));
            let stop = Arc::new(AtomicBool::new(false));
            let other = {
                let (queued, stop) = (queued.clone(), stop.clone());
                thread::spawn(move || {
                    static HEAD: RcuHead = RcuHead::new();
                    arch::loom::set_cpu(1);
                    rcu::cpu_online();
                    // SAFETY: the head is used by nothing else until the callback has run.
                    unsafe { rcu::call(NonNull::from(&HEAD), nothing) };
                    queued.store(true, Release);
                    while !stop.load(Acquire) {
                        rcu::process_callbacks();
                        if rcu::idle_enter() {
                            arch::park();
                            rcu::idle_exit();
                        }
                    }
                    assert!(rcu::idle_enter());
                })
            };
            while !queued.load(Acquire) {
                thread::yield_now();
            }
            // If the other has asked for a grace period, it ends here, and its callback may run.
            rcu::note_context_switch();
            rcu::barrier();
            stop.store(true, Release);
            arch::unpark(arch::ThreadPtr(2 as *mut ()));
            other.join().unwrap();
        });
    }

    #[test]
    fn a_barrier_is_heard_by_a_cpu_that_goes_to_sleep() {
        barrier_against_idle(2);
    }

    catches!(
        a_barrier_that_a_sleeping_cpu_does_not_hear,
        RcuBarrierUnheard,
        "exceeded maximum number of branches",
        barrier_against_idle(2)
    );

    catches!(
        an_end_that_nobody_hears_of,
        RcuForgetPublish,
        "a leaf was not told",
        halt_with_a_callback(3)
    );
}
