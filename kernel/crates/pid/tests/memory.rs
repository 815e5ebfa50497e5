//! What a pid and a namespace take in memory, with each map: `cargo test -p pid --test memory -- --nocapture`.
//!
//! Counted are objects, by the room that their caches give each, and per-CPU memory on all CPUs, here [`CPUS`]. What is
//! counted must be back when all is gone.

use page_alloc::host;
use pid::*;
use slab::KArc;

struct Task;
slab::object!(Task, "test_task", links = 2);

type Ns = KArc<PidNamespace<Task>>;

const CPUS: usize = 4;
/// So many at once, to see the share of what they have in common.
const MANY: usize = 4096;

/// Bytes that clients hold.
fn held() -> usize {
    for _ in 0..3 {
        ksync::rcu::barrier();
    }
    let mut bytes = percpu::stats().used * CPUS;
    slab::slabinfo(|cache| bytes += cache.active * cache.stride);
    bytes
}

fn root(kind: PidMapKind) -> Ns {
    let root = PidNamespace::new_root(kind).unwrap();
    root.set_pid_max(PID_MAX_LIMIT).unwrap();
    first(&root);
    root
}

/// The first pid is made and goes, but is somebody to reap.
fn first(ns: &Ns) {
    free_pid(&alloc_pid(ns).unwrap());
    drop(ns.set_child_reaper(Some(KArc::new(Task).unwrap())));
}

/// Bytes by which `make` has raised what is held, while its result is there.
fn cost<R>(make: impl FnOnce() -> R) -> (usize, R) {
    let before = held();
    let made = make();
    (held() - before, made)
}

fn end(ns: &Ns) {
    drop(ns.set_child_reaper(None));
    ns.disable_allocation();
    ns.map().trim();
}

fn many(ns: &Ns, nr: usize) -> Vec<KArc<Pid<Task>>> {
    (0..nr).map(|_| alloc_pid(ns).unwrap()).collect()
}

/// Per pid in the root, in a namespace, and 31 deep; an empty namespace; one pid near 4 Mi; and what stays when many were
/// freed, until `trim`.
fn row(kind: PidMapKind) -> [usize; 6] {
    let root = root(kind);
    // What the map makes once.
    let some = many(&root, 300);
    let before = held();
    let (flat, pids) = cost(|| many(&root, MANY));
    pids.iter().for_each(free_pid);
    drop(pids);
    let stays = held().saturating_sub(before);
    root.map().trim();
    let (empty, spaces) = cost(|| {
        (0..64)
            .map(|_| PidNamespace::new_child(&root).unwrap())
            .collect::<Vec<_>>()
    });
    drop(spaces);
    let (far, pid) = cost(|| alloc_pid_with(&root, &[PID_MAX_LIMIT as i32 - 1], |_| true).unwrap());
    free_pid(&pid);
    drop(pid);
    let mut chain = vec![root.clone()];
    let mut deep = [0; 2];
    for level in 1..=31 {
        chain.push(PidNamespace::new_child(chain.last().unwrap()).unwrap());
        first(&chain[level]);
        if let Some(at) = [1, 31].iter().position(|&l| l == level) {
            let leaf = &chain[level];
            let warm = many(leaf, 300);
            let (bytes, pids) = cost(|| many(leaf, MANY));
            deep[at] = bytes / MANY;
            pids.iter().chain(&warm).for_each(free_pid);
        }
    }
    some.iter().for_each(free_pid);
    drop(some);
    chain.iter().rev().for_each(end);
    [flat / MANY, deep[0], deep[1], empty / 64, far, stays]
}

#[test]
fn bytes_of_a_pid_and_of_a_namespace() {
    ksync::arch::set_nr_cpu_ids(CPUS);
    host::init(&[65536]);
    ksync::arch::host::set_cpu(0);
    println!(
        "| map | a pid | one level deep | 31 deep | empty namespace | one pid near 4 Mi | after {MANY} freed |"
    );
    for &kind in PidMapKind::ALL {
        // Once to warm up: caches, and what a kind shares.
        row(kind);
        let before = held();
        let [flat, one, deep, empty, far, stays] = row(kind);
        println!(
            "| `{}` | {flat} | {one} | {deep} | {empty} | {far} | {stays} |",
            kind.name()
        );
        assert_eq!(held(), before, "{}: something stays", kind.name());
        assert!(
            (190..450).contains(&flat),
            "{}: a pid of {flat} bytes",
            kind.name()
        );
        assert!(far < 8192 && stays < 1 << 20);
    }
}
