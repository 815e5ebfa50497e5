//! Benchmarks that run inside the kernel: workers that fork, exec and wait without a program in between.
//!
//! Process 1 starts the workers, lets them warm up, opens the gate, waits for all of them, merges their histograms and
//! prints one table and one record. Nothing is allocated, printed or merged inside the timed region; a worker owns
//! everything it writes.
//!
//! A worker is a process of its own: a thread of the kernel that has taken on the address space of `/bin/tiny`, so
//! that its forks copy what a small program's do.

pub mod inject;
mod leak;
mod ops;

use crate::arch::smp;
use crate::errno::Errno;
use crate::params::{self, BenchWord, ModeWord, Place, Switch};
use crate::sched::current;
use crate::{phases, process, start};
use alloc::string::ToString;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use kbench::record::{Leak, LockStats, Mode, Record, Setting, TopologyInfo};
use kbench::{Histogram, Overhead, Phase, Phases};
use ksync::arch::get_cycles;
use ksync::{CpuMask, WaitQueue, lockstat, trace};

/// Operations when the boot line names none: enough for stable quantiles, few enough for a quick look.
const DEFAULT_OPS: u64 = 2_000;
/// Operations that run before the gate opens: at least two per worker, up to twenty.
fn warmup_ops(workers: usize) -> u64 {
    (160 / workers as u64).clamp(2, 20)
}

/// What one worker found.
struct Outcome {
    histogram: Histogram,
    errors: u64,
    first_error: Option<Errno>,
    first_cycle: u64,
    last_cycle: u64,
}

impl Outcome {
    fn new() -> Outcome {
        Outcome {
            histogram: Histogram::try_new().expect("memory for a histogram"),
            errors: 0,
            first_error: None,
            first_cycle: 0,
            last_cycle: 0,
        }
    }
}

impl Outcome {
    fn note(&mut self, result: Result<(), Errno>) {
        if let Err(e) = result {
            self.errors += 1;
            self.first_error.get_or_insert(e);
        }
    }
}

/// Shared by the workers of one run.
struct Run {
    word: BenchWord,
    ops_per_worker: u64,
    ready: AtomicUsize,
    gate: AtomicBool,
    gate_queue: WaitQueue,
    /// Where process 1 waits for the last worker to be ready.
    ready_queue: WaitQueue,
    /// A worker holds its own while it runs.
    results: Vec<spin::Mutex<Outcome>>,
    next_cpu: AtomicUsize,
}

fn mode() -> Mode {
    match params::get().mode {
        ModeWord::Icount => Mode::Icount,
        ModeWord::Numasim => Mode::Numasim,
        ModeWord::Tcg => Mode::Tcg,
        ModeWord::Kvm => Mode::Kvm,
        ModeWord::Metal => Mode::Metal,
    }
}

/// Runs the benchmark that the boot line names and ends the machine with its verdict.
pub fn run(word: BenchWord) -> ! {
    let params = params::get();
    let workers = params.workers.unwrap_or(smp::nr_online() as u64).clamp(1, 4096) as usize;
    let ops = params.ops.unwrap_or(DEFAULT_OPS * if word == BenchWord::Storm { 5 } else { 1 });
    let run = Run::new(word, workers, ops.div_ceil(workers as u64));
    // One round beforehand fills caches (slab, page lists, stacks), so that the second shows only what leaks.
    let mut leaks = None;
    if word == BenchWord::Storm {
        run_workers(&Run::new(word, workers, warmup_ops(workers)), workers);
        let (mut before, mut after) = (leak::Snapshot::new(), leak::Snapshot::new());
        before.take();
        run_workers(&run, workers);
        after.take();
        leaks = Some(before.compare(&after));
    } else {
        run_workers(&run, workers);
    }
    let clean = report(&run, workers, leaks);
    crate::power::off(if clean { 0 } else { 1 })
}

impl Run {
    fn new(word: BenchWord, workers: usize, ops_per_worker: u64) -> Run {
        Run {
            word,
            ops_per_worker,
            ready: AtomicUsize::new(0),
            gate: AtomicBool::new(false),
            gate_queue: WaitQueue::new(),
            ready_queue: WaitQueue::new(),
            results: (0..workers).map(|_| spin::Mutex::new(Outcome::new())).collect(),
            next_cpu: AtomicUsize::new(0),
        }
    }
}

/// Starts the workers, opens the gate when all have warmed up, and reaps them.
fn run_workers(run: &Run, workers: usize) {
    for _ in 0..workers {
        process::kernel_thread("bench", worker, core::ptr::from_ref(run) as usize).expect("memory for the workers");
    }
    run.ready_queue.wait_until(|| run.ready.load(Ordering::Acquire) == workers);
    trace::reset();
    if lockstat::is_enabled() {
        lockstat::reset();
    }
    run.gate.store(true, Ordering::Release);
    run.gate_queue.wake_all();
    let me = current();
    for _ in 0..workers {
        // Workers are our children; only they end now.
        task::wait::wait(&me, &task::wait::Which::Any, task::wait::options::WALL).expect("a worker to reap");
    }
}

/// A worker's life.
extern "C" fn worker(argument: usize) {
    // SAFETY: the run outlives its workers: `run_workers` reaps them before it returns.
    let run = unsafe { &*(argument as *const Run) };
    let index = run.next_cpu.fetch_add(1, Ordering::Relaxed);
    let mut outcome = run.results[index].lock();
    if params::get().place == Place::Pinned {
        pin(index % smp::nr_online());
    }
    let mut op = ops::Op::new(run.word, index as u64);
    let warmup = warmup_ops(run.results.len());
    for i in 0..warmup {
        outcome.note(op.run(i));
    }
    if run.ready.fetch_add(1, Ordering::AcqRel) + 1 == run.results.len() {
        run.ready_queue.wake_all();
    }
    run.gate_queue.wait_until(|| run.gate.load(Ordering::Acquire));
    let overhead = Overhead::of(get_cycles);
    outcome.first_cycle = get_cycles();
    for i in 0..run.ops_per_worker {
        let start = get_cycles();
        let result = op.run(warmup + i);
        let end = get_cycles();
        outcome.note(result);
        outcome.histogram.record(overhead.between(start, end));
    }
    outcome.last_cycle = get_cycles();
    drop(outcome);
    process::do_group_exit(0)
}

/// Binds the running thread to one CPU, counted so that neighbours in number are on different nodes.
fn pin(index: usize) {
    let (cpus, nodes) = (smp::nr_online(), ksync::arch::nr_node_ids());
    let mut order: Vec<usize> = (0..cpus).collect();
    order.sort_by_key(|&cpu| {
        let node = ksync::arch::cpu_to_node(cpu);
        let rank = (0..cpu).filter(|&c| ksync::arch::cpu_to_node(c) == node).count();
        rank * nodes + node
    });
    let mask = CpuMask::new();
    mask.set(order[index]);
    crate::syscall::set_affinity(&current(), &mask);
}

/// Prints the table and the record; true when nothing failed and nothing leaked.
fn report(run: &Run, workers: usize, leaks: Option<Vec<Leak>>) -> bool {
    let mut all = Histogram::try_new().expect("memory for a histogram");
    let (mut errors, mut first, mut last) = (0, u64::MAX, 0);
    for slot in &run.results {
        let outcome = slot.lock();
        all.merge(&outcome.histogram);
        errors += outcome.errors;
        if let Some(e) = outcome.first_error {
            println!("a worker failed {} times, first with {e}", outcome.errors);
        }
        first = first.min(outcome.first_cycle);
        last = last.max(outcome.last_cycle);
    }
    let params = params::get();
    let topology = TopologyInfo {
        cpus: smp::nr_online() as u32,
        nodes: start::topology().nr_nodes() as u32,
        name: params.topology.as_str().to_string(),
    };
    let mut record = Record::new(run.word.name(), mode(), topology, &all);
    record.workers = workers as u32;
    record.variants = alloc::vec![
        Setting::new("pid", params.pid.name()),
        Setting::new("i_mmap", params.i_mmap.name()),
    ];
    record.params = alloc::vec![Setting::new("place", params.place.name())];
    record.errors = errors;
    record.elapsed_cycles = last.saturating_sub(first);
    if params.phases == Switch::On {
        record.set_phases(&with_other(phases::sums(), &all));
    }
    if params.lockstat == Switch::On {
        lockstat::for_each(|class, s| {
            if s.acquisitions > 0 {
                record.locks.push(LockStats {
                    class: class.to_string(),
                    acquisitions: s.acquisitions,
                    contended: s.contended,
                    wait_cycles: s.wait_cycles,
                    hold_cycles: s.hold_cycles,
                });
            }
        });
        record.locks.sort_by_key(|l| core::cmp::Reverse((l.wait_cycles, l.acquisitions)));
    }
    record.leaks = leaks;
    println!("{record}");
    crate::console::record(&record.to_json_line());
    record.is_clean() && errors == 0
}

/// Adds what no phase names, so that the phases add up to the operations.
fn with_other(mut sums: Phases, all: &Histogram) -> Phases {
    let named = sums.total();
    sums.add(Phase::Other, (all.sum() as u64).saturating_sub(named));
    sums
}
