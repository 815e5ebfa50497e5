//! A run: workers, gate, clock.
//!
//! Process 1 starts the workers, lets them warm up, opens the gate and waits for all of them. Nothing is allocated,
//! printed or merged inside the timed region; a worker owns everything it writes there.
//!
//! # Two ways to end
//! After a number of operations each, or at the end of a window:
//!
//! ```text
//!  gate                                                              last CPU
//!   |-- begin -- ramp (left out) --|-- window: operations that end here count --|
//! ```
//!
//! A window measures throughput: all workers contend from its first cycle to its last. Workers that count operations
//! end at different times, so that the last ones meet less contention than the first.

use super::{Benchmark, leak, report, tiny, window};
use crate::arch::smp;
use crate::errno::Errno;
use crate::params::{self, ModeWord, Place};
use crate::process;
use crate::sched::current;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use kbench::record::Leak;
use kbench::{Histogram, Overhead};
use ksync::arch::{cpu_relax, get_cycles};
use ksync::{CpuMask, WaitQueue, lockstat, trace};

/// When a worker has done enough.
#[derive(Clone, Copy)]
pub enum Until {
    /// Operations per worker.
    Ops(u64),
    /// Cycles left out, then cycles that count.
    Window { ramp: u64, cycles: u64 },
}

/// What one worker found.
pub struct Outcome {
    /// A sample per batch of operations: cycles per operation.
    pub histogram: Histogram,
    /// Operations in the timed region.
    pub ops: u64,
    pub errors: u64,
    pub first_error: Option<Errno>,
    pub first_cycle: u64,
    pub last_cycle: u64,
}

impl Outcome {
    fn new() -> Outcome {
        Outcome {
            histogram: Histogram::try_new().expect("memory for a histogram"),
            ops: 0,
            errors: 0,
            first_error: None,
            first_cycle: 0,
            last_cycle: 0,
        }
    }

    #[inline]
    fn note(&mut self, result: Result<(), Errno>) {
        if let Err(e) = result {
            self.errors += 1;
            self.first_error.get_or_insert(e);
        }
    }
}

/// Shared by the workers of one run.
pub struct Run<B> {
    pub benchmark: B,
    pub until: Until,
    /// A worker holds its own while it runs.
    pub results: Vec<spin::Mutex<Outcome>>,
    ready: AtomicUsize,
    gate: AtomicBool,
    gate_queue: WaitQueue,
    /// Where process 1 waits for the last worker to be ready.
    ready_queue: WaitQueue,
    next_worker: AtomicUsize,
    /// Workers past the gate; the last of them says when the window starts.
    arrived: AtomicUsize,
    window_start: AtomicU64,
}

/// Operations that fill a simulation's caches.
const SIMULATED_WARMUP_OPS: u64 = 2;

/// Operations that run before the gate opens: at least two per worker, up to twenty.
fn warmup_ops(workers: usize) -> u64 {
    (160 / workers as u64).clamp(2, 20)
}

/// Runs benchmark `B`, called `name`, and ends the machine with its verdict.
pub fn run<B: Benchmark>(name: &str) -> ! {
    let params = params::get();
    let workers = params
        .workers
        .unwrap_or(smp::nr_online() as u64)
        .clamp(1, 4096) as usize;
    let mut benchmark = B::new(workers);
    let mut clean = true;
    loop {
        let until = until(&benchmark, workers);
        let run = Run::new(benchmark, until, workers);
        let leaks = measure(&run);
        clean &= report::print(name, &run, leaks);
        match run.benchmark.next() {
            Some(next) => benchmark = next,
            None => crate::power::off(if clean { 0 } else { 1 }),
        }
    }
}

/// When the workers have done enough, from the boot words or else the benchmark.
fn until<B: Benchmark>(benchmark: &B, workers: usize) -> Until {
    let params = params::get();
    // Where CPUs take turns on the host, a window shows who had his turn.
    let turns = matches!(params.mode, ModeWord::Tcg | ModeWord::Icount);
    let own_window = benchmark.window(workers).filter(|_| !turns);
    match (params.window.or(own_window), params.ops) {
        (Some(cycles), None) => Until::Window {
            ramp: params
                .ramp
                .unwrap_or_else(|| benchmark.ramp(workers, cycles)),
            cycles,
        },
        (_, ops) => Until::Ops(ops.unwrap_or(B::OPS).div_ceil(workers as u64)),
    }
}

/// Runs the workers; what leaked, if the benchmark wants to know.
fn measure<B: Benchmark>(run: &Run<B>) -> Option<Vec<Leak>> {
    if run.results.len() > 1 {
        tiny::settle();
    }
    if !B::LEAK_CHECK {
        run_workers(run);
        return None;
    }
    // One round beforehand fills caches (slab, page lists, stacks), so that the second shows only what leaks.
    let workers = run.results.len();
    let ops = Until::Ops(warmup_ops(workers));
    run_workers(&Run::new(B::new(workers), ops, workers));
    let (mut before, mut after) = (leak::Snapshot::new(), leak::Snapshot::new());
    before.take();
    run_workers(run);
    after.take();
    Some(before.compare(&after))
}

impl<B> Run<B> {
    fn new(benchmark: B, until: Until, workers: usize) -> Run<B> {
        Run {
            benchmark,
            until,
            results: (0..workers)
                .map(|_| spin::Mutex::new(Outcome::new()))
                .collect(),
            ready: AtomicUsize::new(0),
            gate: AtomicBool::new(false),
            gate_queue: WaitQueue::new(),
            ready_queue: WaitQueue::new(),
            next_worker: AtomicUsize::new(0),
            arrived: AtomicUsize::new(0),
            window_start: AtomicU64::new(0),
        }
    }

    /// Waits for the other workers and returns when the window starts, the same for all.
    fn meet(&self) -> u64 {
        let start = &self.window_start;
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.results.len() {
            start.store(get_cycles().max(1), Ordering::Release);
        }
        while start.load(Ordering::Acquire) == 0 {
            cpu_relax();
        }
        start.load(Ordering::Relaxed)
    }
}

/// Starts the workers, opens the gate when all have warmed up, and reaps them.
fn run_workers<B: Benchmark>(run: &Run<B>) {
    let workers = run.results.len();
    for _ in 0..workers {
        let argument = core::ptr::from_ref(run) as usize;
        process::kernel_thread("bench", B::WORKER_FLAGS, worker::<B>, argument)
            .expect("memory for the workers");
    }
    run.ready_queue
        .wait_until(|| run.ready.load(Ordering::Acquire) == workers);
    trace::reset();
    if lockstat::is_enabled() {
        lockstat::reset();
    }
    run.gate.store(true, Ordering::Release);
    run.gate_queue.wake_all();
    let me = current();
    for _ in 0..workers {
        // Workers are our children; only they end now.
        task::wait::wait(&me, &task::wait::Which::Any, task::wait::options::WALL)
            .expect("a worker to reap");
    }
}

/// A worker's life.
extern "C" fn worker<B: Benchmark>(argument: usize) {
    // SAFETY: the run outlives its workers: `run_workers` reaps them before it returns.
    let run = unsafe { &*(argument as *const Run<B>) };
    let index = run.next_worker.fetch_add(1, Ordering::Relaxed);
    let mut outcome = run.results[index].lock();
    if params::get().place == Place::Pinned {
        pin(index % smp::nr_online());
    }
    let mut worker = run.benchmark.worker(index);
    for _ in 0..warmup_ops(run.results.len()) {
        outcome.note(run.benchmark.operation(&mut worker));
    }
    if run.ready.fetch_add(1, Ordering::AcqRel) + 1 == run.results.len() {
        run.ready_queue.wake_all();
    }
    run.gate_queue
        .wait_until(|| run.gate.load(Ordering::Acquire));
    if window::ramp(run.results.len()) {
        for _ in 0..SIMULATED_WARMUP_OPS {
            outcome.note(run.benchmark.operation(&mut worker));
        }
    }
    match run.until {
        Until::Ops(ops) => count_ops(run, (index, &mut worker), &mut outcome, ops),
        Until::Window { ramp, cycles } => {
            fill_window(run, (index, &mut worker), &mut outcome, ramp, cycles)
        }
    }
    run.benchmark.finish(worker);
    drop(outcome);
    process::do_group_exit(0)
}

/// Times `ops` operations.
fn count_ops<B: Benchmark>(
    run: &Run<B>,
    (index, worker): (usize, &mut B::Worker),
    outcome: &mut Outcome,
    ops: u64,
) {
    let batch = run.benchmark.batch();
    window::begin(run.results.len());
    let overhead = Overhead::of(get_cycles);
    outcome.first_cycle = get_cycles();
    for _ in 0..ops.div_ceil(batch) {
        let start = get_cycles();
        for _ in 0..batch {
            let result = run.benchmark.operation(worker);
            outcome.note(result);
        }
        let end = get_cycles();
        if !run.benchmark.counts(worker) {
            continue;
        }
        outcome
            .histogram
            .record(overhead.between(start, end) / batch);
        outcome.ops += batch;
    }
    outcome.last_cycle = get_cycles();
    window::end(run.results.len(), index);
}

/// Operates from the common start on; operations that end after the ramp and before the end count.
fn fill_window<B: Benchmark>(
    run: &Run<B>,
    (index, worker): (usize, &mut B::Worker),
    outcome: &mut Outcome,
    ramp: u64,
    cycles: u64,
) {
    let batch = run.benchmark.batch();
    let mut start = run.meet();
    window::begin(run.results.len());
    if params::get().mode == ModeWord::Numasim {
        start = get_cycles(); // the clocks of all CPUs have just been started together
    }
    let (from, to) = (start + ramp, start + ramp + cycles);
    (outcome.first_cycle, outcome.last_cycle) = (from, to);
    let mut last = get_cycles();
    while last < to {
        for _ in 0..batch {
            let result = run.benchmark.operation(worker);
            outcome.note(result);
        }
        let now = get_cycles();
        if now >= from && now < to && run.benchmark.counts(worker) {
            outcome.histogram.record((now - last) / batch);
            outcome.ops += batch;
        }
        last = now;
    }
    window::end(run.results.len(), index);
}

/// Binds the running thread to one CPU, counted so that neighbours in number are on different nodes.
fn pin(index: usize) {
    let (cpus, nodes) = (smp::nr_online(), ksync::arch::nr_node_ids());
    let mut order: Vec<usize> = (0..cpus).collect();
    order.sort_by_key(|&cpu| {
        let node = ksync::arch::cpu_to_node(cpu);
        let rank = (0..cpu)
            .filter(|&c| ksync::arch::cpu_to_node(c) == node)
            .count();
        rank * nodes + node
    });
    let mask = CpuMask::new();
    mask.set(order[index]);
    crate::syscall::set_affinity(&current(), &mask);
}
