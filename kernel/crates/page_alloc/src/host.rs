//! Emulated memory for host tests, of this crate and of all above it.
//!
//! `host::init(&[2048, 2048])` stands for a boot of a machine of two nodes with 2048 frames each:
//! it makes the arena, tells ksync the nodes, and runs this crate's boot order. The number of CPUs
//! is ksync's `set_nr_cpu_ids` (8 unless set before); CPUs are dealt to the nodes in blocks.

use std::sync::OnceLock;
use std::vec::Vec;

use ksync::arch;

use crate::{MAX_ORDER, init_node, init_percpu, set_fallback_order};

/// Frames of a largest block: nodes start at multiples of it; the first 4 MiB stay reserved.
const BLOCK: usize = 1 << MAX_ORDER;

/// Boots the emulated machine once per process; later calls (and losers of a race, which wait)
/// keep the first one. `node_pages[n]`: frames of node n; 0 makes a node without memory.
pub fn init(node_pages: &[usize]) {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        let nr_nodes = node_pages.len();
        let nr_cpus = arch::nr_cpu_ids();
        arch::set_nr_node_ids(nr_nodes);
        for cpu in 0..nr_cpus {
            arch::set_cpu_node(cpu, cpu * nr_nodes / nr_cpus);
        }
        let frames: usize = BLOCK
            + node_pages
                .iter()
                .map(|n| n.next_multiple_of(BLOCK))
                .sum::<usize>();
        let have = arch::host::init_arena(frames << ksync::PAGE_SHIFT);
        assert!(
            have >= frames << ksync::PAGE_SHIFT,
            "an arena too small was made before"
        );
        let mut start = BLOCK;
        for (node, &pages) in node_pages.iter().enumerate() {
            let mut order: Vec<usize> = (0..nr_nodes).collect();
            order.sort_by_key(|n| n.abs_diff(node));
            set_fallback_order(node, &order);
            let range = start..start + pages;
            // SAFETY: the arena is mapped for ever, zeroed, and its descriptors cover all frames.
            unsafe { init_node(node, core::slice::from_ref(&range)) }.expect("fresh arena");
            start += pages.next_multiple_of(BLOCK);
        }
        for cpu in 0..nr_cpus {
            init_percpu(cpu).expect("memory for the page lists");
        }
    });
}
