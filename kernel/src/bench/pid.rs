//! `bench=pid`: a pid is taken and given back, nothing else; `depth=` namespaces below the first one.
//!
//! All workers take numbers in the same leaf, so they meet at every level. What RCU still owes (the freed pids)
//! is paid inside: once per batch a worker lets the scheduler run, and then the callbacks that are ready, as the way back from
//! system calls does.
//!
//! Each worker keeps its last `live=` pids and gives back the oldest: numbers in use are neighbours of those that are
//! handed out, as on a machine that does something. With `live=0` the one number is given back at once, and a radix
//! tree allocates and frees its nodes every time.

use super::Benchmark;
use crate::errno::Errno;
use crate::sched::{self, current};
use alloc::vec::Vec;
use kbench::Record;
use kbench::record::Setting;
use pid::PidMapKind;
use slab::KArc;
use task::{PidNamespace, TaskError, TaskPid};

/// Operations per reading of the clock: few, because only a batch that ends within a window counts.
const TIMED: u64 = 8;
/// Operations per visit of the scheduler.
const BATCH: u64 = 32;

/// Operations of a worker before anything else, with a map that keeps pids: until its CPU has some that rest, as on a
/// machine that has been up for a while. The others have no such state.
const AGE: u64 = 1200;

/// The benchmark: the namespaces, outermost first, and the first pid of each that it made.
pub struct PidAlloc {
    leaf: KArc<PidNamespace>,
    _inits: Vec<KArc<TaskPid>>,
}

/// A worker's pids that are in use, oldest at `at`.
pub struct Worker {
    done: u64,
    at: usize,
    ring: Vec<Option<KArc<TaskPid>>>,
}

/// `depth` namespaces below the running thread's, each with a first pid and somebody to reap.
pub fn nest(depth: u64) -> Result<(KArc<PidNamespace>, Vec<KArc<TaskPid>>), TaskError> {
    let mut leaf = current().pid().ns().clone();
    let mut inits = Vec::new();
    for _ in 0..depth {
        leaf = PidNamespace::new_child(&leaf)?;
        inits.push(pid::alloc_pid(&leaf)?);
        drop(leaf.set_child_reaper(Some(current())));
    }
    Ok((leaf, inits))
}

impl Benchmark for PidAlloc {
    type Worker = Worker;
    const OPS: u64 = 20_000;
    const WINDOW: Option<u64> = Some(1_000_000);

    fn new(_workers: usize) -> Self {
        let (leaf, _inits) = nest(crate::params::get().depth).expect("nested pid namespaces");
        PidAlloc { leaf, _inits }
    }
    fn worker(&self, _index: usize) -> Worker {
        let live = crate::params::get().live as usize;
        let mut worker = Worker { done: 0, at: 0, ring: (0..live).map(|_| None).collect() };
        let keeps = self.leaf.map().kind() == PidMapKind::Sharded;
        let age = if keeps { AGE } else { 0 };
        for _ in 0..age {
            self.operation(&mut worker).expect("a pid");
        }
        worker
    }
    fn operation(&self, worker: &mut Worker) -> Result<(), Errno> {
        let pid = pid::alloc_pid(&self.leaf).map_err(TaskError::from)?;
        let oldest = match worker.ring.get_mut(worker.at) {
            Some(slot) => slot.replace(pid),
            None => Some(pid),
        };
        worker.at = if worker.at + 1 < worker.ring.len() { worker.at + 1 } else { 0 };
        if let Some(pid) = oldest {
            pid::free_pid(&pid);
        }
        worker.done += 1;
        if worker.done.is_multiple_of(BATCH) {
            sched::yield_now();
            sched::run_callbacks();
        }
        Ok(())
    }
    fn finish(&self, worker: Worker) {
        worker.ring.iter().flatten().for_each(pid::free_pid);
    }
    fn batch(&self) -> u64 {
        TIMED
    }
    fn describe(&self, record: &mut Record) {
        record.params.push(Setting::new("depth", crate::params::get().depth));
        record.params.push(Setting::new("live", crate::params::get().live));
    }
}
