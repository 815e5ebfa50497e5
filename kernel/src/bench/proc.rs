//! `bench=proc`: the list of processes, in the order of their numbers, as a readdir of /proc reads it. An operation is an
//! entry, not the whole list.
//!
//! There are `procs=` processes that sleep, and, with `churn=`, as many that fork and reap all the time, on the CPUs
//! that the workers leave free: then numbers come and go while the list is read, and none of the sleepers may be missing
//! from it.

use super::tiny::Tiny;
use super::{Benchmark, crowd};
use crate::errno::Errno;
use crate::sched::{current, current_ref};
use crate::{params, process};
use alloc::string::String;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use kbench::Record;
use kbench::record::Setting;
use task::pids;

/// Processes when the boot line names no number.
const PROCS: u64 = 10_000;
/// Entries per reading of the clock.
const BATCH: u64 = 64;

/// The benchmark.
pub struct Proc {
    procs: u64,
    /// Lists read to their end, and how many entries the shortest had.
    lists: AtomicU64,
    shortest: AtomicU64,
}

/// Where a worker is in its list.
pub struct Worker {
    next: u32,
    seen: u64,
    churners: u64,
}

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn churn(_: usize) {
    let tiny = Tiny::new();
    while !STOP.load(Relaxed) {
        tiny.fork().expect("a child and its end");
    }
}

impl Benchmark for Proc {
    type Worker = Worker;
    const OPS: u64 = 40_000;
    const WINDOW: Option<u64> = Some(4_000_000);

    fn new(_workers: usize) -> Self {
        let procs = params::get().procs.unwrap_or(PROCS);
        drop(crowd::gather(procs));
        Proc {
            procs,
            lists: AtomicU64::new(0),
            shortest: AtomicU64::new(u64::MAX),
        }
    }
    fn worker(&self, index: usize) -> Worker {
        let churners = if index == 0 { params::get().churn } else { 0 };
        for _ in 0..churners {
            process::kernel_thread("churn", 0, churn, 0).expect("memory for the churners");
        }
        Worker {
            next: 1,
            seen: 0,
            churners,
        }
    }
    fn operation(&self, worker: &mut Worker) -> Result<(), Errno> {
        match pids::next_process(worker.next, current_ref().pid().ns()) {
            Some((nr, _process)) => {
                worker.next = nr + 1;
                worker.seen += 1;
            }
            None => {
                self.lists.fetch_add(1, Relaxed);
                self.shortest.fetch_min(worker.seen, Relaxed);
                (worker.next, worker.seen) = (1, 0);
            }
        }
        Ok(())
    }
    fn batch(&self) -> u64 {
        BATCH
    }
    fn finish(&self, worker: Worker) {
        if worker.churners > 0 {
            STOP.store(true, Relaxed);
            for _ in 0..worker.churners {
                let any = task::wait::Which::Any;
                task::wait::wait(&current(), &any, task::wait::options::WALL)
                    .expect("a churner to reap");
            }
        }
    }
    fn verify(&self) -> Result<(), String> {
        let shortest = self.shortest.load(Relaxed);
        if self.lists.load(Relaxed) > 0 && shortest < self.procs {
            return Err(alloc::format!(
                "a list has {shortest} entries of {}",
                self.procs
            ));
        }
        Ok(())
    }
    fn describe(&self, record: &mut Record) {
        let number = |n: u64| alloc::format!("{n}");
        record
            .params
            .push(Setting::new("procs", number(self.procs)));
        record
            .params
            .push(Setting::new("churn", number(params::get().churn)));
    }
}
