//! Random histories on an emulated machine of 8 CPUs and 4 nodes, one at a time, against a naive
//! model: who holds which frame. After every step, frame by frame and node by node, free + held is
//! what there was.

use std::collections::HashMap;
use std::sync::Mutex;

use ksync::arch;
use page_alloc::{Gfp, MAX_ORDER, OutOfMemory, PageRef, PageState};
use page_alloc::{alloc_page, alloc_pages, alloc_pages_node, fault_inject, free_pages, nr_free};
use proptest::prelude::*;

const NODES: usize = 4;
/// Small, so that histories run out of memory; node 1 has none.
const PAGES: [usize; NODES] = [200, 0, 137, 64];

#[derive(Clone, Debug)]
enum Op {
    Page {
        cpu: usize,
        gfp: u32,
    },
    Local {
        cpu: usize,
        order: u32,
    },
    Node {
        cpu: usize,
        node: usize,
        order: u32,
        gfp: u32,
    },
    /// Take all single pages that a CPU can get.
    All {
        cpu: usize,
    },
    Get {
        which: usize,
    },
    Put {
        cpu: usize,
        which: usize,
    },
    Free {
        cpu: usize,
        which: usize,
    },
    /// Put this many at once.
    PutMany {
        cpu: usize,
        n: usize,
    },
    FailNext {
        cpu: usize,
    },
    DrainLocal {
        cpu: usize,
    },
    DrainAll,
}

fn op() -> impl Strategy<Value = Op> {
    let (cpu, node, which) = (|| 0..8usize, || 0..NODES + 1, any::<usize>);
    let order = || prop_oneof![6 => 0..4u32, 1 => 4..MAX_ORDER + 2];
    let gfp =
        || prop_oneof![4 => Just(0), 1 => Just(Gfp::THISNODE.bits()), 1 => Just(Gfp::ZERO.bits())];
    prop_oneof![
        6 => (cpu(), gfp()).prop_map(|(cpu, gfp)| Op::Page { cpu, gfp }),
        4 => (cpu(), order()).prop_map(|(cpu, order)| Op::Local { cpu, order }),
        4 => (cpu(), node(), order(), gfp()).prop_map(|(cpu, node, order, gfp)| Op::Node { cpu, node, order, gfp }),
        1 => cpu().prop_map(|cpu| Op::All { cpu }),
        2 => which().prop_map(|which| Op::Get { which }),
        8 => (cpu(), which()).prop_map(|(cpu, which)| Op::Put { cpu, which }),
        4 => (cpu(), which()).prop_map(|(cpu, which)| Op::Free { cpu, which }),
        2 => (cpu(), 0..150usize).prop_map(|(cpu, n)| Op::PutMany { cpu, n }),
        1 => cpu().prop_map(|cpu| Op::FailNext { cpu }),
        1 => cpu().prop_map(|cpu| Op::DrainLocal { cpu }),
        1 => Just(Op::DrainAll),
    ]
}

#[derive(Default)]
struct Model {
    /// Blocks held: head and references.
    held: Vec<(PageRef, u32)>,
    /// Every frame of them.
    frames: HashMap<usize, PageRef>,
}

impl Model {
    /// Checks a block that was handed out and notes it.
    fn take(&mut self, p: PageRef, order: u32, gfp: Gfp) {
        assert_eq!(
            (p.order(), p.ref_count(), p.state()),
            (order, 1, PageState::Allocated)
        );
        assert_eq!(p.pfn() % (1 << order), 0, "natural alignment");
        for pfn in p.pfn()..p.pfn() + (1 << order) {
            assert_eq!(
                self.frames.insert(pfn, p),
                None,
                "frame {pfn:#x} handed out twice"
            );
            assert_eq!(PageRef::from_pfn(pfn).head(), p);
            assert_eq!(PageRef::from_pfn(pfn).node(), p.node());
        }
        // SAFETY: a block of our own.
        let bytes = unsafe { std::slice::from_raw_parts_mut(p.virt(), 4096 << order) };
        assert!(!gfp.contains(Gfp::ZERO) || bytes.iter().all(|&b| b == 0));
        (bytes[0], bytes[4095]) = (0xaa, 0xaa);
        self.held.push((p, 1));
    }

    /// Forgets a reference of the `which`-th block; None if nothing is held.
    fn drop_ref(&mut self, which: usize) -> Option<PageRef> {
        let at = which.checked_rem(self.held.len())?;
        let p = self.held[at].0;
        self.held[at].1 -= 1;
        if self.held[at].1 == 0 {
            self.held.swap_remove(at);
            for pfn in p.pfn()..p.pfn() + (1 << p.order()) {
                self.frames.remove(&pfn);
            }
        }
        Some(p)
    }

    fn held_on(&self, node: usize) -> usize {
        self.frames.values().filter(|p| p.node() == node).count()
    }
}

fn step(m: &mut Model, op: Op) {
    let gfp = |bits| Gfp::from_bits(bits).unwrap();
    match op {
        Op::Page { cpu, gfp: bits } => {
            if let Ok(p) = arch::host::run_on(cpu, || alloc_page(gfp(bits))) {
                m.take(p, 0, gfp(bits));
                assert!(bits & Gfp::THISNODE.bits() == 0 || p.node() == arch::cpu_to_node(cpu));
            }
        }
        Op::Local { cpu, order } => {
            if let Ok(p) = arch::host::run_on(cpu, || alloc_pages(order, Gfp::empty())) {
                m.take(p, order, Gfp::empty());
            }
        }
        Op::Node {
            cpu,
            node,
            order,
            gfp: bits,
        } => {
            if let Ok(p) = arch::host::run_on(cpu, || alloc_pages_node(node, order, gfp(bits))) {
                m.take(p, order, gfp(bits));
                assert!(bits & Gfp::THISNODE.bits() == 0 || p.node() == node);
            }
        }
        Op::All { cpu } => {
            while let Ok(p) = arch::host::run_on(cpu, || alloc_page(Gfp::empty())) {
                m.take(p, 0, Gfp::empty());
            }
            for n in 0..NODES {
                assert_eq!(
                    nr_free(n).free,
                    nr_free(n).on_lists,
                    "failed while a buddy had pages"
                );
            }
        }
        Op::Get { which } => {
            if let Some(at) = which.checked_rem(m.held.len()) {
                let (p, refs) = &mut m.held[at];
                PageRef::from_pfn(p.pfn() + (1 << p.order()) - 1).get();
                *refs += 1;
                assert_eq!(p.ref_count(), *refs);
            }
        }
        Op::Put { cpu, which } => {
            if let Some(p) = m.drop_ref(which) {
                arch::host::run_on(cpu, || p.put());
            }
        }
        Op::Free { cpu, which } => {
            let at = which
                .checked_rem(m.held.len())
                .filter(|&at| m.held[at].1 == 1);
            if let Some(p) = at.and_then(|at| m.drop_ref(at)) {
                arch::host::run_on(cpu, || free_pages(p));
            }
        }
        Op::PutMany { cpu, n } => {
            let pages: Vec<PageRef> = (0..n).filter_map(|_| m.drop_ref(0)).collect();
            arch::host::run_on(cpu, || page_alloc::put_pages(&pages));
        }
        Op::FailNext { cpu } => {
            assert!(fault_inject::set_fail_nth(1));
            assert_eq!(
                arch::host::run_on(cpu, || alloc_pages(2, Gfp::ZERO)),
                Err(OutOfMemory)
            );
        }
        Op::DrainLocal { cpu } => arch::host::run_on(cpu, page_alloc::drain_local),
        Op::DrainAll => page_alloc::drain_all(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn free_and_held_is_all_there_was(history in prop::collection::vec(op(), 1..120)) {
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
        page_alloc::host::init(&PAGES);
        page_alloc::drain_all();
        let before: [_; NODES] = std::array::from_fn(nr_free);
        let mut m = Model::default();
        for op in history {
            step(&mut m, op);
            for (n, before) in before.iter().enumerate() {
                prop_assert_eq!(nr_free(n).free + m.held_on(n), before.free, "node {}", n);
                page_alloc::check_invariants(n);
            }
        }
        while let Some(p) = m.drop_ref(0) {
            p.put();
        }
        page_alloc::drain_all();
        // Coalesced to the very same blocks.
        let after: [_; NODES] = std::array::from_fn(nr_free);
        prop_assert_eq!(after, before);
    }
}
