//! Host threads hammer every primitive; run counts are small, for the model tests do the thorough work.
#![cfg(not(loom))]
#![allow(missing_docs, clippy::undocumented_unsafe_blocks)]

use ksync::{
    Backend, Completion, Interrupted, Lock, LockClass, Mutex, RwLock, RwSem, SpinLock, WaitEntry,
    WaitQueue, arch, lock_class, lockstat,
};
use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::thread;

static CLASS: LockClass = LockClass::new("test");
const THREADS: usize = 4;
const ROUNDS: usize = 2_000;

/// Runs `f(thread number)` on `n` threads, each on a CPU of its own.
fn on_threads(n: usize, f: impl Fn(usize) + Sync) {
    thread::scope(|s| {
        for i in 0..n {
            let f = &f;
            s.spawn(move || {
                arch::host::set_cpu(i);
                f(i)
            });
        }
    });
}

fn excludes<B: Backend + Send + Sync>()
where
    Lock<(usize, usize), B>: Sync,
{
    let lock: Lock<(usize, usize), B> = Lock::new((0, 0), &CLASS);
    let tried = AtomicUsize::new(0);
    on_threads(THREADS, |i| {
        for round in 0..ROUNDS {
            match (round + i) % 4 {
                0 => {
                    let mut g = lock.lock_irqsave();
                    assert!(arch::irqs_disabled());
                    g.0 += 1;
                    g.1 += 1;
                }
                1 => {
                    if let Some(mut g) = lock.try_lock() {
                        g.0 += 1;
                        g.1 += 1;
                    } else {
                        tried.fetch_add(1, Relaxed);
                    }
                }
                _ => {
                    let mut g = lock.lock();
                    assert_eq!(g.0, g.1);
                    g.0 += 1;
                    assert_eq!(arch::preempt_count(), 1);
                    g.1 += 1;
                }
            }
            assert!(arch::preempt_count() == 0 && !arch::irqs_disabled());
        }
    });
    let total = THREADS * ROUNDS - tried.load(Relaxed);
    assert!(!lock.is_locked());
    assert_eq!(lock.into_inner(), (total, total));
}

#[test]
fn every_spinning_lock_excludes() {
    excludes::<ksync::Tas>();
    excludes::<ksync::Ticket>();
    excludes::<ksync::Mcs>();
    excludes::<ksync::Queued>();
}

#[test]
fn several_threads_may_share_a_cpu() {
    let lock = SpinLock::new(0, &CLASS);
    thread::scope(|s| {
        for _ in 0..THREADS {
            s.spawn(|| {
                arch::host::set_cpu(1);
                for _ in 0..ROUNDS {
                    *lock.lock() += 1;
                }
            });
        }
    });
    assert_eq!(lock.into_inner(), THREADS * ROUNDS);
}

#[test]
fn mcs_guards_drop_in_any_order() {
    let a = ksync::McsLock::new((), &CLASS);
    let b = ksync::McsLock::new((), &CLASS);
    let c = ksync::McsLock::new((), &CLASS);
    for _ in 0..100 {
        let (ga, gb) = (a.lock(), b.lock());
        drop(ga);
        let gc = c.lock();
        drop(gb);
        let ga = a.lock();
        drop(gc);
        drop(ga);
    }
}

#[test]
fn rwlock_readers_share_and_writers_exclude() {
    let lock = RwLock::new((0_usize, 0_usize), &CLASS);
    {
        let first = lock.read();
        let second = lock.try_read().expect("readers share");
        assert!(lock.try_write().is_none());
        drop((first, second));
    }
    on_threads(THREADS, |i| {
        for round in 0..ROUNDS {
            if (round + i) % 3 == 0 {
                let mut g = lock.write();
                g.0 += 1;
                g.1 += 1;
            } else {
                let g = lock.read_irqsave();
                assert_eq!(g.0, g.1);
            }
        }
    });
    let expected = (0..THREADS)
        .map(|i| (0..ROUNDS).filter(|r| (r + i) % 3 == 0).count())
        .sum();
    assert_eq!(lock.into_inner(), (expected, expected));
}

#[test]
fn mutex_excludes_and_hands_off() {
    let mutex = Mutex::new(0, &CLASS);
    on_threads(THREADS, |i| {
        for round in 0..ROUNDS {
            let mut g = mutex.lock();
            let before = *g;
            if (round + i) % 64 == 0 {
                thread::yield_now();
            }
            *g = before + 1;
        }
    });
    assert_eq!(mutex.into_inner(), THREADS * ROUNDS);
}

#[test]
fn rwsem_readers_share_and_writers_exclude() {
    let sem = RwSem::new((0_usize, 0_usize), &CLASS);
    let (readers, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    on_threads(THREADS, |i| {
        for round in 0..ROUNDS {
            match (round * 7 + i) % 5 {
                0 => {
                    let mut g = sem.write();
                    assert_eq!(readers.load(SeqCst), 0);
                    g.0 += 1;
                    thread::yield_now();
                    g.1 += 1;
                }
                1 => {
                    let mut g = sem.write();
                    g.0 += 1;
                    g.1 += 1;
                    let g = g.downgrade();
                    assert_eq!(g.0, g.1);
                }
                _ => {
                    let g = sem.read();
                    most.fetch_max(readers.fetch_add(1, SeqCst) + 1, Relaxed);
                    assert_eq!(g.0, g.1);
                    thread::yield_now();
                    readers.fetch_sub(1, SeqCst);
                }
            }
        }
    });
    assert!(!sem.is_locked());
    assert!(most.load(Relaxed) > 1, "readers never ran together");
}

#[test]
fn rwsem_serves_in_order_of_arrival() {
    let sem = Arc::new(RwSem::new(Vec::new(), &CLASS));
    let order = |n: usize, writes: bool, sem: &Arc<RwSem<Vec<usize>>>| {
        let sem = sem.clone();
        let queued = sem.nr_waiters();
        let handle = {
            let sem = sem.clone();
            thread::spawn(move || {
                arch::host::set_cpu(n);
                if writes {
                    sem.write().push(n);
                } else {
                    drop(sem.read());
                }
            })
        };
        while sem.nr_waiters() == queued {
            thread::yield_now();
        }
        handle
    };
    let g = sem.write();
    let handles = [
        order(1, true, &sem),
        order(2, false, &sem),
        order(3, true, &sem),
        order(4, true, &sem),
    ];
    assert!(sem.try_read().is_none() && sem.try_write().is_none());
    drop(g);
    for h in handles {
        h.join().unwrap();
    }
    assert_eq!(*sem.read(), [1, 3, 4]);
}

#[test]
fn wait_queue_passes_every_item() {
    let queue: SpinLock<VecDeque<usize>> = SpinLock::new(VecDeque::new(), &CLASS);
    let (items, space) = (WaitQueue::new(), WaitQueue::new());
    let sum = AtomicUsize::new(0);
    on_threads(THREADS, |i| {
        for n in 0..ROUNDS {
            if i % 2 == 0 {
                space.wait_until(|| {
                    let mut q = queue.lock();
                    let fits = q.len() < 3;
                    if fits {
                        q.push_back(n);
                    }
                    fits
                });
                items.wake_one();
            } else {
                let mut got = None;
                items.wait_until(|| {
                    got = queue.lock().pop_front();
                    got.is_some()
                });
                sum.fetch_add(got.unwrap(), Relaxed);
                space.wake_one();
            }
        }
    });
    assert_eq!(sum.load(Relaxed), THREADS / 2 * (ROUNDS * (ROUNDS - 1) / 2));
}

#[test]
fn a_signal_ends_an_interruptible_wait() {
    let queue = WaitQueue::new();
    arch::host::set_signal_pending(true);
    assert_eq!(queue.wait_until_interruptible(|| false), Err(Interrupted));
    assert_eq!(queue.wait_until_interruptible(|| true), Ok(()));
    assert_eq!(Completion::new().wait_interruptible(), Err(Interrupted));
    arch::host::set_signal_pending(false);
    assert!(!queue.anybody());
}

#[test]
fn one_thread_waits_on_two_queues() {
    let (a, b) = (WaitQueue::new(), WaitQueue::new());
    let (flag_a, flag_b) = (AtomicBool::new(false), AtomicBool::new(false));
    on_threads(3, |i| match i {
        0 => {
            let (on_a, on_b) = (pin!(WaitEntry::new()), pin!(WaitEntry::new()));
            loop {
                on_a.as_ref().prepare(&a);
                on_b.as_ref().prepare(&b);
                if flag_a.load(SeqCst) && flag_b.load(SeqCst) {
                    break;
                }
                arch::park();
            }
        }
        1 => {
            flag_a.store(true, SeqCst);
            a.wake_all();
        }
        _ => {
            flag_b.store(true, SeqCst);
            b.wake_all();
        }
    });
    assert!(!a.anybody() && !b.anybody());
}

#[test]
fn completion_lets_one_go_for_each_complete() {
    let done = Completion::new();
    let gone = AtomicUsize::new(0);
    on_threads(4, |i| {
        if i == 0 {
            for _ in 0..3 {
                done.complete();
            }
        } else {
            done.wait();
            gone.fetch_add(1, SeqCst);
        }
    });
    assert_eq!(gone.load(SeqCst), 3);
    assert!(!done.try_wait());
    done.complete_all();
    assert!(done.try_wait() && done.try_wait());
    done.reinit();
    assert!(!done.is_done());
}

/// The waiter's stack holds the completion: nothing may touch it after `wait` has returned.
#[test]
fn completion_on_the_stack() {
    on_threads(2, |i| {
        static SLOT: AtomicUsize = AtomicUsize::new(0);
        for _ in 0..ROUNDS {
            if i == 0 {
                let done = Completion::new();
                SLOT.store(&raw const done as usize, SeqCst);
                done.wait();
            } else {
                let done = loop {
                    match SLOT.swap(0, SeqCst) {
                        0 => thread::yield_now(),
                        p => break p as *const Completion,
                    }
                };
                // SAFETY: valid for the length of the test.
                unsafe { &*done }.complete();
            }
        }
    });
}

#[test]
fn lockstat_counts_exactly() {
    let storage: &'static [lockstat::Counters] = Vec::leak(
        (0..lockstat::storage_len())
            .map(|_| lockstat::Counters::new())
            .collect(),
    );
    lockstat::enable(storage);
    let spin = SpinLock::new((), lock_class!("counted_spin"));
    let sem = RwSem::new((), lock_class!("counted_sem"));
    on_threads(THREADS, |_| {
        for _ in 0..ROUNDS {
            drop(spin.lock());
            drop(sem.read());
            drop(sem.write());
        }
    });
    let mut found = 0;
    lockstat::for_each(|name, stats| {
        let expected = match name {
            "counted_spin" => THREADS * ROUNDS,
            "counted_sem" => 2 * THREADS * ROUNDS,
            _ => return,
        };
        found += 1;
        assert_eq!(stats.acquisitions, expected as u64, "{name}");
        assert!(stats.contended <= stats.acquisitions && stats.hold_cycles > 0);
        assert_eq!(
            stats.contended == 0,
            stats.wait_cycles == 0,
            "{name}: {stats:?}"
        );
    });
    assert_eq!(found, 2);
}

mod rcu {
    use super::*;
    use ksync::rcu::{self, RcuHead};
    use std::ptr::{NonNull, null_mut};
    use std::sync::atomic::AtomicPtr;

    const ALIVE: u64 = 0xa11e;

    #[repr(C)]
    struct Object {
        head: RcuHead,
        alive: AtomicU64,
        freed: &'static AtomicUsize,
    }

    unsafe fn free(head: NonNull<RcuHead>) {
        // SAFETY: made by `Box::into_raw` and given back once.
        let object = unsafe { Box::from_raw(head.cast::<Object>().as_ptr()) };
        assert_eq!(object.alive.swap(0, SeqCst), ALIVE, "freed twice");
        object.freed.fetch_add(1, SeqCst);
    }

    fn publish(slot: &AtomicPtr<Object>, freed: &'static AtomicUsize) -> bool {
        let new = Box::new(Object {
            head: RcuHead::new(),
            alive: AtomicU64::new(ALIVE),
            freed,
        });
        let old = slot.swap(Box::into_raw(new), SeqCst);
        if !old.is_null() {
            // SAFETY: the head is used by nothing else until the callback has run.
            unsafe { rcu::call(NonNull::new_unchecked(old).cast(), free) };
        }
        !old.is_null()
    }

    #[test]
    fn readers_never_see_freed_memory_and_everything_is_freed() {
        static FREED: AtomicUsize = AtomicUsize::new(0);
        let slot = AtomicPtr::<Object>::new(null_mut());
        let called = AtomicUsize::new(0);
        on_threads(THREADS, |i| {
            for round in 0..ROUNDS {
                if i == 0 {
                    called.fetch_add(publish(&slot, &FREED) as usize, SeqCst);
                    if round % 50 == 0 {
                        rcu::process_callbacks();
                    }
                    if round % 500 == 0 {
                        rcu::synchronize();
                    }
                } else {
                    let guard = rcu::read_lock();
                    // SAFETY: inside a read-side section, which is what keeps the object.
                    if let Some(object) = unsafe { slot.load(SeqCst).as_ref() } {
                        for _ in 0..3 {
                            assert_eq!(object.alive.load(SeqCst), ALIVE);
                            thread::yield_now();
                        }
                    }
                    drop(guard);
                }
            }
        });
        rcu::barrier();
        assert_eq!(FREED.load(SeqCst), called.load(SeqCst));
        assert_eq!(called.load(SeqCst), ROUNDS - 1);
        // SAFETY: made by `Box::into_raw` and given back once.
        drop(unsafe { Box::from_raw(slot.load(SeqCst)) });
    }

    #[test]
    fn a_reader_holds_up_a_grace_period() {
        /// Lets the other thread go even if this one panics.
        struct SetOnDrop<'a>(&'a AtomicBool);
        impl Drop for SetOnDrop<'_> {
            fn drop(&mut self) {
                self.0.store(true, SeqCst);
            }
        }
        static FREED: AtomicUsize = AtomicUsize::new(0);
        let slot = AtomicPtr::new(null_mut());
        let (reading, release) = (AtomicBool::new(false), AtomicBool::new(false));
        on_threads(2, |i| {
            if i == 0 {
                let _guard = rcu::read_lock();
                reading.store(true, SeqCst);
                while !release.load(SeqCst) {
                    thread::yield_now();
                }
                assert_eq!(FREED.load(SeqCst), 0);
            } else {
                while !reading.load(SeqCst) {
                    thread::yield_now();
                }
                let releaser = SetOnDrop(&release);
                publish(&slot, &FREED);
                publish(&slot, &FREED);
                for _ in 0..100 {
                    rcu::process_callbacks();
                }
                assert_eq!(FREED.load(SeqCst), 0, "freed under a reader");
                assert!(rcu::needs_cpu());
                drop(releaser);
                rcu::barrier();
                assert_eq!(FREED.load(SeqCst), 1);
            }
        });
        // SAFETY: made by `Box::into_raw` and given back once.
        drop(unsafe { Box::from_raw(slot.load(SeqCst)) });
    }

    /// CPUs of different leaves, one CPU's callbacks seen from the others.
    #[test]
    fn grace_periods_span_leaves() {
        static FREED: AtomicUsize = AtomicUsize::new(0);
        let slots: Vec<AtomicPtr<Object>> =
            (0..THREADS).map(|_| AtomicPtr::new(null_mut())).collect();
        on_threads(THREADS, |i| {
            arch::host::set_cpu(100 + 37 * i);
            for round in 0..ROUNDS / 4 {
                publish(&slots[i], &FREED);
                for slot in &slots {
                    let _guard = rcu::read_lock();
                    // SAFETY: inside a read-side section, which is what keeps the object.
                    if let Some(object) = unsafe { slot.load(SeqCst).as_ref() } {
                        thread::yield_now();
                        assert_eq!(object.alive.load(SeqCst), ALIVE);
                    }
                }
                if round % 16 == i {
                    rcu::process_callbacks();
                }
            }
        });
        rcu::barrier();
        assert_eq!(FREED.load(SeqCst), THREADS * (ROUNDS / 4 - 1));
        for slot in slots {
            // SAFETY: made by `Box::into_raw` and given back once.
            drop(unsafe { Box::from_raw(slot.load(SeqCst)) });
        }
    }

    #[test]
    fn a_holdout_is_named() {
        static HEAD: RcuHead = RcuHead::new();
        unsafe fn nothing(_: NonNull<RcuHead>) {}
        let release = AtomicBool::new(false);
        on_threads(2, |i| {
            if i == 0 {
                arch::host::set_cpu(200);
                let _guard = rcu::read_lock();
                while !release.load(SeqCst) {
                    thread::yield_now();
                }
            } else {
                arch::host::set_cpu(201);
                // SAFETY: the head is used by nothing else until the callback has run.
                unsafe { rcu::call(NonNull::from(&HEAD), nothing) };
                let mut named = false;
                let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
                while !named && std::time::Instant::now() < deadline {
                    // Until the other thread is in its reader, and a grace period waits for it.
                    rcu::process_callbacks();
                    rcu::for_each_holdout(|cpu| named |= cpu == 200);
                    if !named && !rcu::needs_cpu() {
                        // SAFETY: the head is used by nothing else until the callback has run.
                        unsafe { rcu::call(NonNull::from(&HEAD), nothing) };
                    }
                }
                release.store(true, SeqCst);
                rcu::barrier();
                assert!(named, "the reader was never waited for");
            }
        });
    }

    #[test]
    fn synchronize_waits_for_readers_only() {
        let value = AtomicU64::new(0);
        on_threads(3, |i| {
            for _ in 0..200 {
                if i == 0 {
                    let before = value.load(SeqCst);
                    value.store(before + 1, SeqCst);
                    rcu::synchronize();
                } else {
                    let _guard = rcu::read_lock();
                    let seen = value.load(SeqCst);
                    thread::yield_now();
                    assert!(
                        value.load(SeqCst) <= seen + 1,
                        "two grace periods passed one reader"
                    );
                }
            }
        });
    }
}
