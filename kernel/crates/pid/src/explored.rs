//! Interleavings of whole operations, in orders that seeds decide, on every kind; with a planted bug that must show.
//!
//! The kinds built on locks are explored at each lock; the lock-free parts name further points themselves.

use crate::rest_tests::lay_to_rest;
use crate::tests::{Ns, P, PLANTED, PLANTED_WAKE, alone, numbers, root_with_init, task};
use crate::*;
use ksync::arch::explore::{Body, explore, find_failure};
use ksync::arch::{host, interleave};
use ksync::rcu;
use slab::KArc;
use std::boxed::Box;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

/// A root and a namespace in it, each with its first pid; who holds which numbers of the root.
struct Tree {
    root: Ns,
    leaf: Ns,
    _inits: [P; 2],
    held: Mutex<Vec<u32>>,
    /// Numbers in the root of pids that rest.
    resting: Vec<u32>,
}

fn tree(kind: PidMapKind) -> Tree {
    let (root, init) = root_with_init(kind);
    let leaf = PidNamespace::new_child(&root).unwrap();
    let inner = alloc_pid(&leaf).unwrap();
    drop(leaf.set_child_reaper(Some(task(1))));
    Tree {
        root,
        leaf,
        _inits: [init, inner],
        held: Mutex::default(),
        resting: Vec::new(),
    }
}

/// The same, where pids rest on CPUs 1 and 2 (if they can), of both namespaces.
fn rested_tree(kind: PidMapKind) -> Tree {
    let mut tree = tree(kind);
    tree.root.set_pid_max(PID_MAX_LIMIT).unwrap();
    for cpu in 1..3 {
        for ns in [&tree.leaf, &tree.root] {
            let numbers = host::run_on(cpu, || lay_to_rest(ns));
            tree.resting.extend(numbers);
        }
    }
    tree
}

impl Drop for Tree {
    fn drop(&mut self) {
        for pid in &self._inits {
            free_pid(pid);
        }
        for ns in [&self.leaf, &self.root] {
            drop(ns.set_child_reaper(None));
            // Resting pids keep their namespace.
            ns.disable_allocation();
            if !std::thread::panicking() {
                assert_eq!(ns.nr_pids(), 0);
                ns.map().check_invariants(ns);
            }
        }
    }
}

fn allocate_and_free(tree: &Tree, cpu: usize, ns: &Ns) {
    host::set_cpu(cpu);
    for _ in 0..2 {
        let pid = match alloc_pid(ns) {
            Ok(pid) => pid,
            Err(e) => {
                assert_eq!(e, PidError::NoMemory);
                continue;
            }
        };
        {
            let mut held = tree.held.lock().unwrap();
            assert!(!held.contains(&pid.nr()), "INV-PID-1");
            held.push(pid.nr());
        }
        let found = find_pid_ns(pid.nr(), &tree.root);
        assert!(found.is_some_and(|p| KArc::ptr_eq(&p, &pid)), "INV-PID-2");
        interleave();
        tree.held.lock().unwrap().retain(|&nr| nr != pid.nr());
        free_pid(&pid);
    }
}

/// Whatever is found or listed is complete.
fn look(tree: &Tree, cpu: usize) {
    host::set_cpu(cpu);
    for nr in 1..6 {
        for ns in [&tree.leaf, &tree.root] {
            if let Some(pid) = find_pid_ns(nr, ns) {
                assert_eq!(pid_nr_ns(&pid, ns), nr, "INV-PID-3");
                assert!(numbers(&pid).iter().all(|&nr| nr > 0), "INV-PID-3");
            }
        }
        interleave();
    }
    let mut at = 0;
    while let Some((nr, pid)) = find_ge_pid(at, &tree.root) {
        assert!(nr >= at && pid.nr() == nr && numbers(&pid).iter().all(|&nr| nr > 0));
        at = nr + 1;
    }
}

fn bodies(kind: PidMapKind) -> Vec<Body> {
    let tree = Arc::new(tree(kind));
    let (a, b, c) = (tree.clone(), tree.clone(), tree);
    std::vec![
        Box::new(move || allocate_and_free(&a, 1, &a.leaf)),
        Box::new(move || allocate_and_free(&b, 2, &b.root)),
        Box::new(move || look(&c, 3)),
    ]
}

#[test]
fn explored_alloc_free_find_list() {
    let _alone = alone();
    for &kind in PidMapKind::ALL {
        std::println!("{}", kind.name());
        explore(0..40, || bodies(kind));
        rcu::barrier();
    }
}

/// The leaf's number is shown before the root's is known.
#[test]
fn an_early_publish_is_caught() {
    let _alone = alone();
    PLANTED.store(true, SeqCst);
    let found = find_failure(0..100, || bodies(PidMapKind::Sharded));
    PLANTED.store(false, SeqCst);
    assert!(found.is_some(), "the early publish went unnoticed");
}

/// Two wake pids, one of whose numbers in the root a third takes by name.
fn wake_bodies(kind: PidMapKind) -> Vec<Body> {
    let tree = Arc::new(rested_tree(kind));
    let (a, b, c) = (tree.clone(), tree.clone(), tree);
    std::vec![
        Box::new(move || allocate_and_free(&a, 1, &a.leaf)),
        Box::new(move || allocate_and_free(&b, 2, &b.leaf)),
        Box::new(move || {
            host::set_cpu(3);
            for &nr in &c.resting {
                let Ok(pid) = alloc_pid_with(&c.root, &[nr as i32], |_| true) else {
                    continue;
                };
                {
                    let mut held = c.held.lock().unwrap();
                    assert!(!held.contains(&nr), "INV-PID-1");
                    held.push(nr);
                }
                interleave();
                c.held.lock().unwrap().retain(|&other| other != nr);
                free_pid(&pid);
            }
            look(&c, 3);
        }),
    ]
}

#[test]
fn explored_waking() {
    let _alone = alone();
    explore(0..60, || wake_bodies(PidMapKind::Sharded));
    rcu::barrier();
}

/// A pid is woken without a look at the namespace.
#[test]
fn waking_in_a_stopped_namespace_is_caught() {
    let _alone = alone();
    PLANTED_WAKE.store(true, SeqCst);
    let sharded = || rested_tree(PidMapKind::Sharded);
    let found = find_failure(0..100, || stop_bodies(sharded(), |tree| &tree.root, 2));
    PLANTED_WAKE.store(false, SeqCst);
    assert!(found.is_some(), "a late wake went unnoticed");
}

/// INV-PID-6: one stops the namespace while two allocate in it.
fn stop_bodies(tree: Tree, which: fn(&Tree) -> &Ns, inits: u32) -> Vec<Body> {
    let tree = Arc::new(tree);
    let (stopped, active) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(2)),
    );
    let mut bodies: Vec<Body> = Vec::new();
    for cpu in 1..3 {
        let (tree, stopped, active) = (tree.clone(), stopped.clone(), active.clone());
        bodies.push(Box::new(move || {
            host::set_cpu(cpu);
            for _ in 0..6 {
                let was_stopped = stopped.load(SeqCst);
                match alloc_pid(&tree.leaf) {
                    Ok(pid) => {
                        assert!(!was_stopped, "INV-PID-6");
                        interleave();
                        free_pid(&pid);
                    }
                    Err(e) => assert_eq!(e, PidError::NoMemory),
                }
            }
            active.fetch_sub(1, SeqCst);
        }));
    }
    bodies.push(Box::new(move || {
        host::set_cpu(3);
        let ns = which(&tree);
        ns.disable_allocation();
        stopped.store(true, SeqCst);
        let mut last = ns.nr_pids();
        while active.load(SeqCst) > 0 {
            let now = ns.nr_pids();
            assert!(now <= last, "INV-PID-6");
            last = now;
            ksync::arch::cpu_relax();
        }
        ns.wait_drained(inits);
        assert_eq!(ns.nr_pids(), inits);
    }));
    bodies
}

#[test]
fn explored_death_of_a_namespace() {
    let _alone = alone();
    for &kind in PidMapKind::ALL {
        std::println!("{}", kind.name());
        explore(0..40, || stop_bodies(tree(kind), |tree| &tree.leaf, 1));
    }
    // Pids that rest below the namespace that stops, and in it.
    let sharded = || rested_tree(PidMapKind::Sharded);
    explore(0..20, || stop_bodies(sharded(), |tree| &tree.root, 2));
    explore(0..20, || stop_bodies(sharded(), |tree| &tree.leaf, 1));
    rcu::barrier();
}
