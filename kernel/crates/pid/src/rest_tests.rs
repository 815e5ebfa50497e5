//! Pids that rest and come back.

use crate::tests::{Ns, P, alone, boot, root_with_init, task};
use crate::*;
use ksync::rcu;
use slab::KArc;
use std::vec::Vec;

/// Allocates in `ns` until its map gives each CPU numbers; then as many pids as can rest on this CPU do, and pids
/// may rest from now on. Returns their numbers in the root.
pub(crate) fn lay_to_rest(ns: &Ns) -> Vec<u32> {
    let first: Vec<P> = (0..70).map(|_| alloc_pid(ns).unwrap()).collect();
    let resting: Vec<P> = (0..2 * sharded::REST)
        .map(|_| alloc_pid(ns).unwrap())
        .collect();
    first.iter().chain(&resting).for_each(free_pid);
    let numbers = resting.iter().map(|pid| pid.nr()).collect();
    // These first: then there is no more room.
    drop(resting);
    drop(first);
    numbers
}

/// `sharded`, at every class of depth: pids come back in order with all their numbers, while nobody has one of them, the
/// limits allow it and all levels are open; nothing of them stays afterwards.
#[test]
fn pids_come_back_as_they_were() {
    let _alone = alone();
    boot();
    rcu::barrier();
    let nodes = ::xarray::nr_nodes();
    for depth in [0, 1, 3, 4, 7] {
        let (root, init) = root_with_init(PidMapKind::Sharded);
        root.set_pid_max(PID_MAX_LIMIT).unwrap();
        let (mut chain, mut inits) = (std::vec![root.clone()], std::vec![init]);
        for _ in 0..depth {
            let ns = PidNamespace::new_child(chain.last().unwrap()).unwrap();
            inits.push(alloc_pid(&ns).unwrap());
            drop(ns.set_child_reaper(Some(task(1))));
            chain.push(ns);
        }
        let leaf = chain.last().unwrap();
        let resting = ksync::arch::host::run_on(0, || lay_to_rest(leaf));
        ksync::arch::host::run_on(0, || wake_some(&root, leaf, &resting));
        ksync::arch::host::run_on(1, || {
            let pid = alloc_pid(leaf).unwrap();
            assert!(!resting.contains(&pid.nr()), "another CPU's");
            free_pid(&pid);
        });
        leaf.disable_allocation();
        ksync::arch::host::set_cpu(0);
        assert_eq!(alloc_pid(leaf).err(), Some(PidError::NoMemory));
        inits.iter().for_each(free_pid);
        for ns in chain.iter().rev() {
            drop(ns.set_child_reaper(None));
            ns.disable_allocation();
        }
        rcu::barrier();
        while let Some(ns) = chain.pop() {
            assert_eq!(ns.nr_pids(), 0);
            ns.map().check_invariants(&ns);
            ns.map().trim();
            drop(ns);
        }
        drop(root);
        // The last to keep the namespaces.
        drop(inits);
        rcu::barrier();
    }
    rcu::barrier();
    assert_eq!(::xarray::nr_nodes(), nodes, "a node was left");
}

/// With `resting`, as many as can be, on this CPU.
fn wake_some(root: &Ns, leaf: &Ns, resting: &[u32]) {
    let alloc = || alloc_pid(leaf).unwrap();
    let (a, b) = (alloc(), alloc());
    assert_eq!([a.nr(), b.nr()], resting[..2], "the oldest first");
    assert!(!a.is_freed() && a.attach(PidType::Pid, task(7)).is_ok());
    for pid in [&a, &b] {
        for ns in leaf.chain() {
            let found = find_pid_ns(pid.nr_at(ns.level()), ns);
            assert!(
                found.is_some_and(|found| KArc::ptr_eq(&found, pid)),
                "INV-PID-2"
            );
        }
    }
    let fresh = alloc();
    assert!(
        !resting.contains(&fresh.nr()),
        "the last {} stay",
        sharded::REST
    );
    // Somebody asks for the number of the next by name.
    assert!(
        a.task(PidType::Pid)
            .is_some_and(|task| a.detach(PidType::Pid, &task))
    );
    free_pid(&a);
    assert_eq!(a.attach(PidType::Pid, task(7)), Err(AttachError::Dead));
    drop(a);
    let named = alloc_pid_with(root, &[resting[2] as i32], |_| true).unwrap();
    assert_eq!(named.nr(), resting[2]);
    let other = alloc();
    assert!(!resting.contains(&other.nr()), "its turn has passed");
    // The next is out of range, then not any more.
    let max = root.pid_max();
    root.set_pid_max(resting[3]).unwrap();
    free_pid(&b);
    drop(b);
    let low = alloc();
    assert!(low.nr() < resting[3]);
    root.set_pid_max(max).unwrap();
    for pid in [&fresh, &named, &other, &low] {
        free_pid(pid);
    }
}
