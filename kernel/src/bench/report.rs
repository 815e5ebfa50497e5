//! What a run came to: one table for people, one record for programs.

use super::Benchmark;
use super::run::{Run, Until};
use crate::arch::smp;
use crate::params::{self, ModeWord, Switch};
use crate::{phases, start};
use alloc::string::ToString;
use kbench::record::{Leak, LockStats, Mode, Record, Setting, TopologyInfo, Window};
use kbench::{Histogram, Phase, Phases};
use ksync::lockstat;

use alloc::vec::Vec;

/// With fewer readings of the clock per worker a window has told nothing about contention. One worker may have none:
/// that a lock starves somebody is a result.
const LEAST_SAMPLES: u64 = 5;

/// Sums over all workers.
struct Totals {
    histogram: Histogram,
    ops: u64,
    /// Of the worker with the fewest, and with the most operations.
    least: u64,
    most: u64,
    errors: u64,
    first_cycle: u64,
    last_cycle: u64,
}

impl Totals {
    fn of<B>(run: &Run<B>) -> Totals {
        let histogram = Histogram::try_new().expect("memory for a histogram");
        let (least, first_cycle) = (u64::MAX, u64::MAX);
        let mut all = Totals {
            histogram,
            ops: 0,
            least,
            most: 0,
            errors: 0,
            first_cycle,
            last_cycle: 0,
        };
        for slot in &run.results {
            let outcome = slot.lock();
            all.histogram.merge(&outcome.histogram);
            all.ops += outcome.ops;
            all.least = all.least.min(outcome.ops);
            all.most = all.most.max(outcome.ops);
            all.errors += outcome.errors;
            if let Some(e) = outcome.first_error {
                println!("a worker failed {} times, first with {e}", outcome.errors);
            }
            all.first_cycle = all.first_cycle.min(outcome.first_cycle);
            all.last_cycle = all.last_cycle.max(outcome.last_cycle);
        }
        all
    }
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

/// Prints the table and the record; true when nothing failed and nothing leaked.
pub fn print<B: Benchmark>(name: &str, run: &Run<B>, leaks: Option<Vec<Leak>>) -> bool {
    let all = Totals::of(run);
    let params = params::get();
    let topology = TopologyInfo {
        cpus: smp::nr_online() as u32,
        nodes: start::topology().nr_nodes() as u32,
        name: params.topology.as_str().to_string(),
    };
    let mut record = Record::new(name, mode(), topology, &all.histogram);
    record.ops = all.ops;
    record.workers = run.results.len() as u32;
    record.variants = alloc::vec![
        Setting::new("pid", params.pid.name()),
        Setting::new("i_mmap", params.i_mmap.name()),
        Setting::new("mm", params.mm.name()),
        Setting::new("mm_lists", params.mm_lists.name()),
    ];
    record.params = alloc::vec![Setting::new("place", params.place.name())];
    record.errors = all.errors;
    record.elapsed_cycles = all.last_cycle.saturating_sub(all.first_cycle);
    run.benchmark.describe(&mut record);
    if let Until::Window { ramp, cycles } = run.until {
        record.window = Some(Window {
            ramp,
            cycles,
            ops_least: all.least,
            ops_most: all.most,
        });
        record.elapsed_cycles = cycles;
    }
    add_phases_and_locks(&mut record, &all.histogram);
    record.leaks = leaks;
    println!("{record}");
    crate::console::record(&record.to_json_line());
    record.is_clean() && holds(run, &all)
}

fn add_phases_and_locks(record: &mut Record, all: &Histogram) {
    let params = params::get();
    if params.phases == Switch::On {
        record.set_phases(&with_other(phases::sums(), all));
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
        record
            .locks
            .sort_by_key(|l| core::cmp::Reverse((l.wait_cycles, l.acquisitions)));
    }
}

/// What must hold beyond the record itself.
fn holds<B: Benchmark>(run: &Run<B>, all: &Totals) -> bool {
    if let Err(why) = run.benchmark.verify() {
        println!("benchmark: {why}");
        return false;
    }
    let taking_turns = matches!(mode(), Mode::Tcg | Mode::Icount);
    let enough = if taking_turns {
        all.ops > 0
    } else {
        all.histogram.count() >= LEAST_SAMPLES * run.results.len() as u64
    };
    if let Until::Window { cycles, .. } = run.until
        && !enough
    {
        println!(
            "benchmark: a window of {cycles} cycles is too short: {} samples of {} workers",
            all.histogram.count(),
            run.results.len()
        );
        return false;
    }
    true
}

/// Adds what no phase names, so that the phases add up to the operations.
fn with_other(mut sums: Phases, all: &Histogram) -> Phases {
    let named = sums.total();
    sums.add(Phase::Other, (all.sum() as u64).saturating_sub(named));
    sums
}
