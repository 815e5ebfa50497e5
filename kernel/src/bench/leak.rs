//! What is in use before and after: pages per node, objects per cache, pids, stacks.
//!
//! A snapshot must not show up in the next one: it is allocated first and filled later.

use crate::arch::{kstack, paging, smp};
use crate::{sched, start, syscall};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use kbench::record::Leak;
use ksync::CpuMask;

/// Room for every cache there may be.
const MAX_CACHES: usize = 128;

/// A count of everything that is given out and must come back.
pub struct Snapshot {
    pages: Vec<u64>,
    caches: Vec<(&'static str, u64)>,
    stacks: u64,
    pids: u64,
    /// The time stamp of the count.
    taken: u64,
}

impl Snapshot {
    /// Room for a snapshot.
    pub fn new() -> Snapshot {
        Snapshot {
            pages: Vec::with_capacity(start::topology().nr_nodes()),
            caches: Vec::with_capacity(MAX_CACHES),
            stacks: 0,
            pids: 0,
            taken: 0,
        }
    }

    /// Waits until deferred frees have run, gives back what caches keep, then counts. May sleep.
    pub fn take(&mut self) {
        // A thread that was reaped may not have left its CPU yet, nor the next one there freed its stack: the first grace
        // period waits for the one, the second for the other.
        ksync::rcu::synchronize();
        ksync::rcu::synchronize();
        // Pages that can be had again come back with the next fault: how many there are is chance.
        ::mm::reclaim_pages(usize::MAX);
        // The first drop may queue the next (a task's pid, the pid's namespace): a few rounds reach the chain's end.
        for _ in 0..4 {
            ksync::rcu::barrier();
        }
        trim_pids();
        kstack::shrink();
        ::mm::drain_shells();
        ::slab::shrink_all();
        ::mm::pgtable::drain_tables();
        ::percpu::shrink();
        // Callbacks free objects too, and objects are what sheaves are filled with: sheaves go last.
        ksync::rcu::barrier();
        ::slab::shrink_all();
        page_alloc::drain_all();
        self.pages.clear();
        for node in 0..start::topology().nr_nodes() {
            let stat = page_alloc::nr_free(node);
            self.pages
                .push((stat.total - stat.free - paging::nr_tables(node)) as u64);
        }
        self.caches.clear();
        ::slab::slabinfo(|stats| {
            if self.caches.len() < MAX_CACHES {
                self.caches.push((stats.name, stats.active as u64));
            }
        });
        self.stacks = kstack::counts().0 as u64;
        self.pids = sched::current_ref().pid().ns().nr_pids() as u64;
        self.taken = ksync::arch::get_cycles();
    }

    /// What differs in `after`.
    pub fn compare(&self, after: &Snapshot) -> Vec<Leak> {
        let mut leaks = Vec::new();
        let mut note = |what: String, before: u64, after: u64| {
            if before != after {
                leaks.push(Leak {
                    what,
                    before,
                    after,
                });
            }
        };
        // A page that is now another node's is none lost: whoever execs after a move takes its pages from elsewhere.
        let total = |pages: &[u64]| pages.iter().sum::<u64>();
        if total(&self.pages) != total(&after.pages) {
            for (node, (old, new)) in self.pages.iter().zip(&after.pages).enumerate() {
                note(alloc::format!("pages.node{node}"), *old, *new);
            }
        }
        for (name, new) in &after.caches {
            let old = self
                .caches
                .iter()
                .find(|(n, _)| n == name)
                .map_or(0, |(_, count)| *count);
            note(alloc::format!("slab.{name}"), old, *new);
        }
        note("stacks".to_string(), self.stacks, after.stacks);
        note("pids".to_string(), self.pids, after.pids);
        if !leaks.is_empty() {
            // With `slab_debug=` the holders are named.
            ::slab::report_live(self.taken);
        }
        leaks
    }
}

/// Gives back what each CPU keeps for the next pid. Visits them all.
fn trim_pids() {
    let me = sched::current();
    let before = CpuMask::new();
    (0..smp::nr_online())
        .filter(|&cpu| me.entity.may_run_on(cpu))
        .for_each(|cpu| before.set(cpu));
    for cpu in 0..smp::nr_online() {
        let one = CpuMask::new();
        one.set(cpu);
        syscall::set_affinity(&me, &one);
        me.pid().ns().map().trim();
    }
    syscall::set_affinity(&me, &before);
}
