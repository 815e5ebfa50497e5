//! What is in use before and after: pages per node, objects per cache, pids, stacks.

use crate::arch::kstack;
use crate::{sched, start};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use kbench::record::Leak;

/// A count of everything that is given out and must come back.
pub struct Snapshot {
    counts: Vec<(String, u64)>,
}

/// Waits until deferred frees have run, then counts.
pub fn snapshot() -> Snapshot {
    // The first drop may queue the next (a task's pid, the pid's namespace): a few rounds reach the end of the chain.
    for _ in 0..4 {
        ksync::rcu::barrier();
    }
    slab::shrink_all();
    mm::pgtable::drain_tables();
    ksync::rcu::barrier();
    page_alloc::drain_all();
    let mut counts = Vec::new();
    for node in 0..start::topology().nr_nodes() {
        let stat = page_alloc::nr_free(node);
        counts.push((alloc::format!("pages in use on node {node}"), (stat.total - stat.free) as u64));
    }
    slab::slabinfo(|stats| counts.push((alloc::format!("objects of {}", stats.name), stats.active as u64)));
    counts.push(("kernel stacks".to_string(), kstack::counts().0 as u64));
    let pids = sched::current_ref().pid.ns().nr_pids();
    counts.push(("pids".to_string(), pids as u64));
    Snapshot { counts }
}

/// What is in use after and was not before.
pub fn compare(before: &Snapshot, after: &Snapshot) -> Vec<Leak> {
    let mut leaks = Vec::new();
    for (name, count) in &after.counts {
        let old = before.counts.iter().find(|(n, _)| n == name).map_or(0, |(_, c)| *c);
        if *count != old {
            leaks.push(Leak { what: name.clone(), before: old, after: *count });
        }
    }
    leaks
}
