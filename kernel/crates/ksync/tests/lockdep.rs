//! What lockdep reports, and what it does not. A process of its own: it is on throughout.
#![cfg(not(loom))]

use ksync::arch::{self, host};
use ksync::lockdep::{self, Stack};
use ksync::{LockClass, Mutex, RwSem, SpinLock};
use std::sync::{Mutex as StdMutex, MutexGuard, OnceLock, PoisonError};

static REPORTS: StdMutex<Vec<String>> = StdMutex::new(Vec::new());

fn reporter(what: core::fmt::Arguments<'_>) {
    REPORTS.lock().unwrap().push(what.to_string());
}

/// One test at a time, with no report yet.
fn start() -> MutexGuard<'static, ()> {
    static ALONE: StdMutex<()> = StdMutex::new(());
    static ONCE: OnceLock<()> = OnceLock::new();
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    ONCE.get_or_init(|| {
        let stacks: Vec<Stack> = (0..64).map(|_| Stack::new()).collect();
        lockdep::enable(stacks.leak(), reporter);
    });
    REPORTS.lock().unwrap().clear();
    guard
}

fn reports() -> Vec<String> {
    core::mem::take(&mut REPORTS.lock().unwrap())
}

/// Runs `f` as code at `site`.
fn at<R>(site: usize, f: impl FnOnce() -> R) -> R {
    host::set_call_site(site);
    let r = f();
    host::set_call_site(0);
    r
}

#[test]
fn ab_ba_is_reported_with_both_chains_before_it_deadlocks() {
    let _alone = start();
    static A: LockClass = LockClass::new("A");
    static B: LockClass = LockClass::new("B");
    let (a, b) = (SpinLock::new((), &A), SpinLock::new((), &B));
    {
        let _a = at(0xa1, || a.lock());
        let _b = at(0xb1, || b.lock());
    }
    assert!(reports().is_empty());
    std::thread::scope(|s| {
        s.spawn(|| {
            let _b = at(0xb2, || b.lock());
            let _a = at(0xa2, || a.lock());
        });
    });
    let all = reports().join("\n");
    assert!(
        all.contains("cycle: A is taken under B, but B has been taken under A"),
        "{all}"
    );
    for chain in ["0xa1", "0xb1", "0xa2", "0xb2"] {
        assert!(
            all.contains(&format!(
                "bt: {:#018x}",
                usize::from_str_radix(&chain[2..], 16).unwrap()
            )),
            "{all}"
        );
    }
    // Once is enough.
    let _b = b.lock();
    let _a = a.lock();
    assert!(reports().is_empty());
}

#[test]
fn a_cycle_of_three_through_sleeping_locks() {
    let _alone = start();
    static A: LockClass = LockClass::new("sem");
    static B: LockClass = LockClass::new("mutex");
    static C: LockClass = LockClass::new("spin");
    let (a, b, c) = (
        RwSem::new((), &A),
        Mutex::new((), &B),
        SpinLock::new((), &C),
    );
    drop((a.read(), b.lock()));
    drop((b.lock(), c.lock()));
    assert!(reports().is_empty());
    // Not what one does (it sleeps under a spinlock), but without sleeping: trying is no order.
    {
        let _c = c.lock();
        assert!(a.try_write().is_some());
    }
    assert!(reports().is_empty());
    {
        let _c = c.lock();
        drop(a.write());
    }
    let all = reports().join("\n");
    assert!(
        all.contains("sleeping in atomic context: sem, preempt count 1"),
        "{all}"
    );
    assert!(all.contains("cycle: sem is taken under spin"), "{all}");
    assert!(
        all.contains("before: sem taken") && all.contains("before: mutex taken"),
        "{all}"
    );
}

#[test]
fn nesting_needs_a_word() {
    let _alone = start();
    static A: LockClass = LockClass::new("parent and child");
    let (parent, child) = (SpinLock::new((), &A), SpinLock::new((), &A));
    {
        let _p = parent.lock();
        lockdep::nested();
        let _c = child.lock();
    }
    assert!(reports().is_empty());
    {
        let _p = parent.lock();
        let _c = child.lock();
    }
    assert!(
        reports()[0]
            .contains("parent and child is taken by a thread that holds a lock of that class")
    );
}

#[test]
fn nothing_under_a_leaf_and_a_leaf_with_interrupts_off() {
    let _alone = start();
    static LEAF: LockClass = LockClass::new_leaf("leaf");
    static OTHER: LockClass = LockClass::new("other");
    let (leaf, other) = (SpinLock::new((), &LEAF), SpinLock::new((), &OTHER));
    drop((other.lock(), leaf.lock_irqsave()));
    assert!(reports().is_empty());
    drop(leaf.lock());
    assert!(reports()[0].contains("leaf leaf is taken with interrupts on"));
    {
        let _l = leaf.lock_irqsave();
        drop(other.lock());
    }
    assert!(
        reports()
            .iter()
            .any(|r| r.contains("other is taken under the leaf leaf"))
    );
}

#[test]
fn a_destructor_takes_leaves_only() {
    let _alone = start();
    static LEAF: LockClass = LockClass::new_leaf("dtor leaf");
    static PLAIN: LockClass = LockClass::new("dtor plain");
    let (leaf, plain) = (SpinLock::new((), &LEAF), SpinLock::new((), &PLAIN));
    {
        let _dtor = lockdep::dtor_section();
        drop(leaf.lock_irqsave());
        assert!(reports().is_empty());
        at(0xd70, || drop(plain.lock_irqsave()));
    }
    let report = reports().remove(0);
    assert!(
        report.contains("dtor plain, which is no leaf, is taken in a destructor")
            && report.contains("0d70")
    );
    drop(plain.lock());
    assert!(reports().is_empty());
}

#[test]
fn interrupts_and_their_locks() {
    let _alone = start();
    static SAFE: LockClass = LockClass::new("taken in irq");
    static INNER: LockClass = LockClass::new("under it");
    let (safe, inner) = (SpinLock::new((), &SAFE), SpinLock::new((), &INNER));
    let in_irq = |f: &dyn Fn()| {
        let flags = arch::local_irq_save();
        lockdep::irq_enter();
        f();
        lockdep::irq_exit();
        arch::local_irq_restore(flags);
    };
    in_irq(&|| drop(safe.lock()));
    drop(safe.lock_irqsave());
    {
        let _s = safe.lock_irqsave();
        drop(inner.lock());
    }
    assert!(reports().is_empty());
    // An interrupt on top of a holder of `inner` waits for `safe`, whose holder waits for `inner`.
    drop(inner.lock());
    assert!(reports()[0].contains("taken in irq, taken in interrupts, is held when under it"));
    drop(safe.lock());
    assert!(reports()[0].contains("taken in irq is taken in interrupts, and with interrupts on"));
}

#[test]
fn releases_in_any_order() {
    let _alone = start();
    static CLASSES: [LockClass; 3] = [
        LockClass::new("r0"),
        LockClass::new("r1"),
        LockClass::new("r2"),
    ];
    let locks: Vec<_> = CLASSES.iter().map(|c| SpinLock::new((), c)).collect();
    let before = lockdep::nr_edges();
    let (a, b) = (locks[0].lock(), locks[1].lock());
    drop(a);
    let c = locks[2].lock();
    drop(b);
    drop(c);
    // r0 -> r1 and r1 -> r2; r0 was not held when r2 was taken.
    assert_eq!(lockdep::nr_edges() - before, 2);
    assert!(reports().is_empty());
}
