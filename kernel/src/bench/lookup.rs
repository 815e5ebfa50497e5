//! `bench=lookup`: kill(pid, 0), from all CPUs, at `procs=` processes that sleep.
//!
//! A worker asks for one process after the other, each worker from a place of its own, so that with more processes than
//! workers they hardly ever meet at one: what they share is the map from numbers to pids, which all read and nobody
//! writes. With `procs=1` all meet at one process.

use super::{Benchmark, crowd};
use crate::errno::Errno;
use crate::syscall::kill_process;
use alloc::vec::Vec;
use kbench::Record;
use kbench::record::Setting;
use slab::KArc;
use task::Task;

/// Processes when the boot line names no number.
const PROCS: u64 = 512;
/// Look-ups per reading of the clock.
const BATCH: u64 = 32;

/// The benchmark.
pub struct Lookup {
    crowd: Vec<KArc<Task>>,
    workers: usize,
}

impl Benchmark for Lookup {
    type Worker = usize;
    const OPS: u64 = 20_000;
    const WINDOW: Option<u64> = Some(500_000);

    fn new(workers: usize) -> Self {
        let nr = crate::params::get().procs.unwrap_or(PROCS).max(1);
        Lookup {
            crowd: crowd::gather(nr),
            workers,
        }
    }
    fn worker(&self, index: usize) -> usize {
        index * self.crowd.len() / self.workers
    }
    fn operation(&self, at: &mut usize) -> Result<(), Errno> {
        *at = if *at + 1 < self.crowd.len() {
            *at + 1
        } else {
            0
        };
        kill_process(self.crowd[*at].tid(), 0).map(drop)
    }
    fn batch(&self) -> u64 {
        BATCH
    }
    fn describe(&self, record: &mut Record) {
        let procs = alloc::format!("{}", self.crowd.len());
        record.params.push(Setting::new("procs", &procs));
    }
}
