//! Every structure against a vector.

use super::*;
use crate::*;
use ksync::arch::host;
use proptest::prelude::*;
use std::cell::Cell;
use std::vec::Vec;

type Node = NodePtr;

fn first(n: Node) -> u64 {
    // SAFETY: the tests look only at nodes they have not freed.
    unsafe { n.as_ref() }.first()
}

fn last(n: Node) -> u64 {
    // SAFETY: as above.
    unsafe { n.as_ref() }.last()
}

fn walk(map: &IMmap, a: u64, b: u64) -> Vec<Node> {
    let mut seen = Vec::new();
    map.for_each_overlap(a, b, |n| seen.push(NodePtr::from(n)));
    seen
}

/// Whether the structure keeps a child behind its parent (the others keep walks out of forks).
fn by_order(kind: IMmapKind) -> bool {
    !matches!(kind, IMmapKind::Inverted | IMmapKind::Best)
}

/// What the contract says: all linked nodes, and pairs (parent, child) not adjusted since fork.
#[derive(Default)]
struct Model {
    linked: Vec<Node>,
    forks: Vec<(Node, Node)>,
}

impl Model {
    fn forget(&mut self, n: Node) {
        self.forks.retain(|&(p, c)| p != n && c != n);
    }

    fn check_walk(&self, map: &IMmap, seen: &[Node], a: u64, b: u64) {
        let mut got: Vec<Node> = seen.to_vec();
        let mut want: Vec<Node> = self
            .linked
            .iter()
            .copied()
            .filter(|&n| first(n) <= b && last(n) >= a)
            .collect();
        got.sort();
        want.sort();
        assert_eq!(got, want, "INV-RMAP-3");
        for (parent, child) in self.forks.iter().filter(|_| by_order(map.kind())) {
            let at = |n| seen.iter().position(|s| s == n);
            if let (Some(p), Some(c)) = (at(parent), at(child)) {
                assert!(p < c, "INV-RMAP-4");
            }
        }
    }
}

/// What, first page, length, on which node, on which CPU.
type Op = (u8, u64, u64, usize, usize);

fn apply(map: &IMmap, model: &mut Model, op: Op) {
    let (what, a, len, pick, cpu) = op;
    host::set_cpu(cpu);
    let picked = (!model.linked.is_empty()).then(|| model.linked[pick % model.linked.len().max(1)]);
    // SAFETY (all blocks): nodes are leaked boxes, freed only after they were unlinked;
    // `model.linked` are exactly the linked ones.
    match (what, picked) {
        (0, _) | (_, None) => {
            let n = new_node(a, a + len);
            // SAFETY: above.
            unsafe { map.insert(n) };
            model.linked.push(n);
        }
        (1 | 2, Some(parent)) => {
            // mremap's may begin later.
            let later = if what == 2 {
                len.min(last(parent) - first(parent))
            } else {
                0
            };
            let child = new_node(first(parent) + later, last(parent));
            let called = Cell::new(false);
            // SAFETY: above.
            unsafe { map.fork(parent, child, || called.set(true)) };
            assert!(called.get());
            model.linked.push(child);
            model.forks.push((parent, child));
        }
        (7, Some(parent)) => {
            let other = model.linked[(pick / 7) % model.linked.len()];
            let copy = |n: Node| (n, new_node(first(n), last(n)));
            let pairs = [copy(parent), copy(other), copy(parent)];
            // SAFETY: above.
            unsafe { map.insert_copies(&pairs) };
            // What has no entries may be anywhere: no pair to keep an eye on.
            model.linked.extend(pairs.map(|(_, child)| child));
        }
        (3, Some(n)) => {
            let mut gone: Vec<Node> = [n].to_vec();
            model.linked.retain(|&m| m != n);
            if let Some(other) = model.linked.pop() {
                gone.push(other);
            }
            // SAFETY: above.
            unsafe { map.remove(&gone) };
            gone.iter().for_each(|&n| model.forget(n));
            gone.into_iter().for_each(free_node);
        }
        (4, Some(n)) if first(n) < last(n) => {
            // A split in the middle.
            let middle = first(n) + (last(n) - first(n)) / 2;
            let tail = new_node(middle + 1, last(n));
            let resize = [Resize {
                node: n,
                first: first(n),
                last: middle,
            }];
            let called = Cell::new(false);
            // SAFETY: above.
            unsafe {
                let insert = &[tail];
                map.adjust(
                    Adjust {
                        resize: &resize,
                        insert,
                        remove: &[],
                    },
                    || called.set(true),
                );
            }
            assert!(called.get());
            model.linked.push(tail);
            model.forget(n);
        }
        (5, Some(n)) if model.linked.len() > 1 => {
            // A merge of two, wherever they are.
            let other = *model.linked.iter().find(|&&m| m != n).unwrap();
            let (from, to) = (first(n).min(first(other)), last(n).max(last(other)));
            let resize = [Resize {
                node: n,
                first: from,
                last: to,
            }];
            // SAFETY: above.
            unsafe {
                let adjust = Adjust {
                    remove: &[other],
                    resize: &resize,
                    insert: &[],
                };
                map.adjust(adjust, || {});
            }
            model.linked.retain(|&m| m != other);
            model.forget(n);
            model.forget(other);
            free_node(other);
        }
        (_, Some(n)) => {
            // A move of the start.
            let resize = [Resize {
                node: n,
                first: a,
                last: a + len,
            }];
            // SAFETY: above.
            unsafe {
                map.adjust(
                    Adjust {
                        resize: &resize,
                        ..Adjust::default()
                    },
                    || {},
                )
            };
            model.forget(n);
        }
    }
}

fn mappings_follow_the_contract(kind: IMmapKind, ops: &[Op]) {
    let map = IMmap::of(kind).unwrap();
    let mut model = Model::default();
    for (i, &op) in ops.iter().enumerate() {
        if let IMmap::Adaptive(map) = &map
            && i % 16 == 8
        {
            map.split_now();
        }
        apply(&map, &mut model, op);
        assert_eq!(map.check_invariants(), model.linked.len());
        assert_eq!(map.is_empty(), model.linked.is_empty());
        let (a, b) = (op.1, op.1 + op.2);
        model.check_walk(&map, &walk(&map, a, b), a, b);
    }
    model.check_walk(&map, &walk(&map, 0, u64::MAX), 0, u64::MAX);
    // SAFETY: `linked` are the linked ones.
    unsafe { map.remove(&model.linked) };
    assert!(map.is_empty());
    model.linked.into_iter().for_each(free_node);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn mappings(
        ops in prop::collection::vec((0u8..8, 0u64..40, 0u64..20, any::<usize>(), 0usize..8), 0..80)
    ) {
        let _alone = alone();
        kinds().for_each(|kind| mappings_follow_the_contract(kind, &ops));
    }
}

#[test]
fn words() {
    let _alone = alone();
    assert_eq!(IMmapKind::from_name("global"), Some(IMmapKind::Global));
    assert_eq!(IMmapKind::from_name("globl"), None);
    for &(name, kind) in IMmapKind::ALL {
        assert_eq!(IMmapKind::from_name(name), Some(kind));
        assert_eq!(IMmap::of(kind).unwrap().name(), name);
    }
}

/// Changes by one CPU leave a file whole; changes by several split it.
#[test]
fn best_splits_when_cpus_alternate() {
    let _alone = alone();
    let map = Best::new().unwrap();
    host::set_cpu(3);
    let nodes: Vec<Node> = (0..20).map(|_| new_node(0, 1)).collect();
    // SAFETY: leaked boxes, freed below after removal.
    unsafe { nodes.iter().for_each(|&n| map.insert(n)) };
    assert!(!map.is_split());
    for (cpu, &n) in nodes.iter().enumerate() {
        host::set_cpu(cpu % 2);
        // SAFETY: linked, then not; as above.
        unsafe {
            map.remove(&[n]);
            map.insert(n);
        }
    }
    assert!(map.is_split());
    assert_eq!(map.check_invariants(), nodes.len());
    // SAFETY: all are linked.
    unsafe { map.remove(&nodes) };
    nodes.into_iter().for_each(free_node);
}

/// A walk after few changes brings everything home.
#[test]
fn adaptive_goes_back() {
    let _alone = alone();
    let map = Adaptive::new().unwrap();
    map.split_now();
    let nodes: Vec<Node> = (0..20).map(|i| new_node(i, i + 1)).collect();
    for (cpu, &n) in nodes.iter().enumerate() {
        host::set_cpu(cpu % 8);
        // SAFETY: leaked boxes, freed below after removal.
        unsafe { map.insert(n) };
    }
    let count = || {
        let mut nr = 0;
        map.for_each_overlap(0, 100, |_| nr += 1);
        nr
    };
    assert_eq!(count(), 20);
    assert!(map.is_split(), "twenty changes since it split");
    assert_eq!(count(), 20);
    assert!(!map.is_split(), "none since the last walk");
    assert_eq!(map.check_invariants(), 20);
    // SAFETY: all are linked.
    unsafe { map.remove(&nodes) };
    nodes.into_iter().for_each(free_node);
}

/// Without memory for shards a file stays as it is, and works.
#[test]
fn no_memory_for_shards() {
    let _alone = alone();
    let map = Best::new().unwrap();
    let nodes: Vec<Node> = (0..20).map(|_| new_node(0, 1)).collect();
    page_alloc::fault_inject::set_fail_nth(1);
    for (cpu, &n) in nodes.iter().enumerate() {
        host::set_cpu(cpu % 8);
        // SAFETY: leaked boxes, freed below after removal.
        unsafe { map.insert(n) };
    }
    page_alloc::fault_inject::set_fail_nth(0);
    assert_eq!(map.check_invariants(), 20);
    // SAFETY: all are linked.
    unsafe { map.remove(&nodes) };
    nodes.into_iter().for_each(free_node);
}

/// Bytes of live slab objects.
fn heap() -> usize {
    let mut bytes = 0;
    slab::slabinfo(|cache| bytes += cache.active * cache.stride);
    bytes
}

/// What an idle file costs, tables included, beyond what it costs under `global`: (structure, bytes).
fn idle_bytes(kind: IMmapKind, use_it: bool) -> usize {
    host::set_cpu(0);
    let before = heap();
    let map = IMmap::of(kind).unwrap();
    if use_it {
        // One program maps it at a time, always on one CPU.
        for _ in 0..200 {
            let n = new_node(0, 9);
            // SAFETY: leaked, freed after removal.
            unsafe {
                map.insert(n);
                map.remove(&[n]);
            }
            free_node(n);
        }
    }
    heap() - before
}

/// The many files that nobody maps twice pay for no shards; the enum's own size is asserted beside it.
#[test]
fn memory_of_idle_files() {
    let _alone = alone();
    kinds().for_each(|kind| drop(IMmap::of(kind).unwrap()));
    let inline = size_of::<IMmap>() - size_of::<Global>();
    for kind in kinds() {
        let more = [false, true].map(|used| inline + idle_bytes(kind, used));
        std::println!("{}: {more:?} bytes more than global alone", kind.name());
        match kind {
            IMmapKind::Global | IMmapKind::Adaptive | IMmapKind::Best => {
                assert!(more.iter().all(|&m| m <= 64), "{}: {more:?}", kind.name());
            }
            // A table from the start: per node, or per eight CPUs.
            _ => assert!(more[0] > inline && more[1] == more[0], "{}", kind.name()),
        }
    }
}
