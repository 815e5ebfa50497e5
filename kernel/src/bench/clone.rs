//! `bench=clone`: fork, exit, wait, with children `depth=` pid namespaces down; the parent stays where it is.
//!
//! With `depth=0` this is `bench=fork`. What grows with the depth is what a pid costs at each level: a number to take,
//! to show and to free.

use super::{Benchmark, pid::nest, tiny::Tiny};
use crate::errno::Errno;
use crate::sched::current_ref;
use alloc::vec::Vec;
use kbench::Record;
use kbench::record::Setting;
use slab::KArc;
use task::{NsRef, PidNamespace, TaskPid};

/// The benchmark: the namespace of all children, and the first pids of those on the way.
pub struct Clone {
    leaf: KArc<PidNamespace>,
    _inits: Vec<KArc<TaskPid>>,
}

impl Benchmark for Clone {
    type Worker = Tiny;

    fn new(_workers: usize) -> Self {
        let (leaf, _inits) = nest(crate::params::get().depth).expect("nested pid namespaces");
        Clone { leaf, _inits }
    }
    fn worker(&self, _index: usize) -> Tiny {
        *current_ref().pid_ns_for_children.lock() = NsRef::new(&self.leaf);
        Tiny::new()
    }
    fn operation(&self, worker: &mut Tiny) -> Result<(), Errno> {
        worker.fork()
    }
    fn describe(&self, record: &mut Record) {
        record
            .params
            .push(Setting::new("depth", crate::params::get().depth));
    }
}
