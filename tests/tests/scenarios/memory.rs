//! Scenarios of memory and locks: lockdep, the slab's debug mode, allocations that fail, memory that runs short.

use super::{Body, word};
use tests::{Boot, Failure};

/// The rows.
pub const MEMORY: &[(&str, usize, Body)] = &[
    ("memory::lockdep_planted_bugs", 1, || {
        let outcome = Boot::on("default")
            .words("test=lockdep lockdep=on")
            .succeed()?;
        outcome.says("planted lock bugs: both found")?;
        // The cycle with its two chains, and the destructor; each with a place in the source.
        outcome.says("cycle: planted_a is taken under planted_b, but planted_b has been taken under planted_a")?;
        outcome.says("now: planted_b taken")?;
        outcome.says("before: then planted_b")?;
        outcome.says("planted_a, which is no leaf, is taken in a destructor")?;
        outcome.says("one_order at kernel/src/debug.rs")?;
        outcome.says("bad_dtor at kernel/src/debug.rs")
    }),
    ("memory::lockdep_off_finds_nothing", 1, || {
        // The same bugs without lockdep: the test can fail.
        Boot::on("default")
            .words("test=lockdep")
            .fail()?
            .says("planted lock bugs: not found")
    }),
    ("memory::lockdep_stress_best", 1, || clean_stress("best")),
    ("memory::lockdep_stress_separate", 1, || {
        clean_stress("separate")
    }),
    ("memory::lockdep_stress_grouped", 1, || {
        clean_stress("grouped mm_lists=global")
    }),
    ("memory::lockdep_stress_ctor_worker", 1, || {
        clean_stress("ctor mm_lists=percpu slab_reclaim=worker")
    }),
    ("memory::lockdep_calls_best", 1, || clean_calls("best")),
    ("memory::lockdep_calls_single", 1, || clean_calls("single")),
    ("memory::lockdep_calls_lazy", 1, || clean_calls("lazy")),
    ("memory::lockdep_sigtest", 1, || {
        clean(Boot::on("default").program("/bin/sigtest").limit(120))?.suite("sigtest", 150)
    }),
    ("memory::slab_planted_bugs", 1, || {
        let outcome = Boot::on("laptop")
            .words("test=slab slab_debug=planted,neighbour lockdep=on")
            .succeed()?;
        outcome.says("planted slab bugs: all found")?;
        for report in [
            "slab planted: free of ",
            "which is of cache neighbour",
            "which points into an object",
            "slab planted: double free of ",
            "freed again on CPU ",
            "slab planted: use after free of ",
            "byte 40 became 0x07",
            "slab neighbour: destroyed with 1 live objects",
            "is live, allocated on CPU ",
            "slab absurd: no objects of 1099511627776 bytes",
            "at kernel/src/debug.rs",
            "0 reports\nslab: 7 reports, 1 objects kept out of use",
        ] {
            outcome.says(report)?;
        }
        Ok(())
    }),
    ("memory::slab_debug_runs_the_suite", 1, || {
        // Red zones, poison and tracks around every object, while programs run.
        let boot = Boot::on("default").words("slab_debug=on lockdep=on");
        boot.program("/bin/calls")
            .limit(120)
            .succeed()?
            .suite("calls", 850)
    }),
    ("memory::every_allocation_fails", 1, || injected("best")),
    ("memory::every_allocation_fails_separate", 1, || {
        injected("separate")
    }),
    ("memory::every_allocation_fails_single", 1, || {
        injected("single")
    }),
    ("memory::every_allocation_fails_under_lockdep", 1, || {
        injected("best lockdep=on")
    }),
    ("memory::hardly_any", 1, || {
        // The long run, of 100,000 forks and execs, is in docs/results/pressure-tcg.jsonl.
        for reclaim in ["inline", "worker"] {
            let words = format!("bench=pressure ops=600 mm_check=on quiet slab_reclaim={reclaim}");
            let boot = Boot::on("default").words(&words).words("lockdep=on");
            let boot = boot
                .option("--nodes", "2")
                .option("--cpus", "2")
                .option("--memory", "64M");
            let outcome = boot.limit(300).succeed()?;
            let record = outcome.record("pressure")?;
            outcome.check(
                record.leaks.as_ref().is_some_and(Vec::is_empty),
                "no leak check, or leaks",
            )?;
            outcome.says(" orders, 0 reports")?;
        }
        Ok(())
    }),
    ("memory::file_storm_one_lock", 1, || {
        file_storm(&["global", "node-trees", "inverted"])
    }),
    ("memory::file_storm_many_locks", 1, || {
        file_storm(&["node-locks", "adaptive", "best"])
    }),
];

/// A file is cut, punched, cleaned, given back and moved under forking processes; a checker walks all page tables and
/// adds up what they show. The benchmark fails if anything is stale or wrong; here: whether it did all that.
fn file_storm(structures: &[&str]) -> Result<(), Failure> {
    for i_mmap in structures {
        let words = format!("bench=filestorm ops=600 i_mmap={i_mmap} quiet");
        let outcome = clean(Boot::on("default").words(&words).limit(200))?;
        let record = outcome.record("filestorm")?;
        for what in ["moves", "cuts", "cleaned", "reclaimed", "checked", "sums"] {
            let count = record.params.iter().find(|p| p.name == what);
            let some = count.is_some_and(|p| p.value != "0");
            outcome.check(some, &format!("{i_mmap}: no {what}"))?;
        }
    }
    Ok(())
}

fn clean(boot: Boot) -> Result<tests::Outcome, Failure> {
    let outcome = boot.words("lockdep=on").succeed()?;
    outcome.never_says("lockdep: cycle")?;
    outcome.says(" orders, 0 reports")?;
    Ok(outcome)
}

fn clean_stress(mm: &str) -> Result<(), Failure> {
    let words = format!("{} ops=800 mm={mm}", word::STORM);
    clean(Boot::on("default").words(&words).limit(120)).map(drop)
}

fn clean_calls(mm: &str) -> Result<(), Failure> {
    let boot = Boot::on("default").words(&format!("mm={mm}"));
    clean(boot.program("/bin/calls").limit(120))?.suite("calls", 850)
}

/// Every allocation of fork, exec, clone, mmap and their kin fails once.
fn injected(mm: &str) -> Result<(), Failure> {
    let words = format!("{} mm={mm} mm_check=on", word::FAULT_INJECT);
    let outcome = Boot::on("default").words(&words).limit(120).succeed()?;
    outcome.never_says(word::PANICKED)?;
    outcome.says("in 21 operations, the right errno each time, nothing lost")
}
