//! Which CPU reports to which leaf: leaves hold CPUs of one node, so that a leaf's lines stay in that node.
use super::tree::{LEAF_CPUS, MAX_LEAVES, Place};
use crate::{NR_CPUS, arch};
use core::sync::atomic::{AtomicU16, Ordering::Relaxed};

/// Where each CPU reports, as `init` laid it out: leaf * LEAF_CPUS + bit; UNPLACED: by its number.
static PLACES: [AtomicU16; NR_CPUS] = [const { AtomicU16::new(UNPLACED) }; NR_CPUS];
const UNPLACED: u16 = u16::MAX;
const _: () = assert!(MAX_LEAVES * LEAF_CPUS < UNPLACED as usize);

/// Lays out the CPUs that topology has found. Boot.
pub(super) fn init() {
    lay_out(
        arch::nr_cpu_ids(),
        arch::nr_node_ids(),
        arch::cpu_to_node,
        |cpu, place| {
            PLACES[cpu].store((place.leaf * LEAF_CPUS) as u16 + place.bit as u16, Relaxed);
        },
    );
}

/// Where `cpu` reports.
pub(super) fn place_of(cpu: usize) -> Place {
    let at = match PLACES[cpu].load(Relaxed) {
        UNPLACED => cpu,
        at => at as usize,
    };
    Place {
        leaf: at / LEAF_CPUS,
        bit: (at % LEAF_CPUS) as u32,
    }
}

/// Calls `f` with a place for every CPU: leaves by node if there are enough of them, else by number.
fn lay_out(
    nr_cpus: usize,
    nr_nodes: usize,
    node_of: impl Fn(usize) -> usize,
    mut f: impl FnMut(usize, Place),
) {
    let per_leaf = if cfg!(loom) {
        nr_cpus.div_ceil(MAX_LEAVES)
    } else {
        LEAF_CPUS
    };
    let nodes = 0..nr_nodes;
    let nr_leaves: usize = nodes
        .clone()
        .map(|node| {
            (0..nr_cpus)
                .filter(|&cpu| node_of(cpu) == node)
                .count()
                .div_ceil(per_leaf)
        })
        .sum();
    if nr_leaves > MAX_LEAVES {
        for cpu in 0..nr_cpus {
            f(
                cpu,
                Place {
                    leaf: cpu / per_leaf,
                    bit: (cpu % per_leaf) as u32,
                },
            );
        }
        return;
    }
    let mut first_leaf = 0;
    for node in nodes {
        let mut nr = 0;
        for cpu in (0..nr_cpus).filter(|&cpu| node_of(cpu) == node) {
            f(
                cpu,
                Place {
                    leaf: first_leaf + nr / per_leaf,
                    bit: (nr % per_leaf) as u32,
                },
            );
            nr += 1;
        }
        first_leaf += nr.div_ceil(per_leaf);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn check_layout(
        nr_cpus: usize,
        nr_nodes: usize,
        node_of: impl Fn(usize) -> usize,
        by_node: bool,
    ) {
        let (mut places, mut node_of_leaf) = (BTreeSet::new(), BTreeMap::new());
        let mut cpus = BTreeSet::new();
        lay_out(nr_cpus, nr_nodes, &node_of, |cpu, place| {
            assert!(place.leaf < MAX_LEAVES && (place.bit as usize) < LEAF_CPUS);
            assert!(
                places.insert((place.leaf, place.bit)),
                "two CPUs in one place"
            );
            assert!(cpus.insert(cpu), "two places for one CPU");
            let node = *node_of_leaf.entry(place.leaf).or_insert(node_of(cpu));
            assert!(!by_node || node == node_of(cpu), "a leaf of two nodes");
        });
        assert!(cpus.into_iter().eq(0..nr_cpus));
    }

    #[test]
    fn every_cpu_has_a_place_and_leaves_do_not_mix_nodes() {
        check_layout(1, 1, |_| 0, true);
        check_layout(384, 1, |_| 0, true);
        check_layout(384, 12, |cpu| cpu / 32, true);
        check_layout(384, 12, |cpu| cpu % 12, true);
        check_layout(512, 64, |cpu| cpu / 8, true);
        // A node without CPUs.
        check_layout(32, 3, |cpu| cpu / 16 * 2, true);
        // 63 nodes of one CPU and one of 449 would want 92 leaves.
        check_layout(512, 64, |cpu| cpu.min(63), false);
    }
}
