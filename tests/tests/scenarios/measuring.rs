//! Measuring: that figures repeat, that a regression is found, that what cannot be measured is refused.

use super::{Body, MANY, word};
use std::ffi::OsString;
use tests::{Boot, Failure, bench};

/// Upper bounds, in guest instructions under `--icount` on one CPU.
const CEILINGS: &[(&str, u64)] = &[
    ("getpid", 160),
    ("fork_exit_wait", 94_000),
    ("vfork_exec_wait", 120_000),
    ("thread", 32_000),
];

/// What forkers of different namespaces may share in many operations: what lies there, whose code, and why. A few
/// operations share nothing at all.
const SHARED: &[(&str, &str, &str)] = &[
    (
        "ksync::rcu::GLOBAL",
        "",
        "a grace period is the whole machine's; hundreds of objects wait for one",
    ),
    (
        "",
        "crates/xarray/src/",
        "every process has a number in the root namespace; a CPU takes 64 at a time, in turn with the others",
    ),
    (
        "xarray_node",
        "",
        "the same numbers' nodes, which one CPU makes and another fills",
    ),
    (
        "",
        "crates/pid/src/sharded.rs",
        "the root namespace's map, which says where the next 64 numbers are",
    ),
    (
        "",
        "crates/percpu/src/",
        "a namespace gets leases of numbers, one per CPU, with its 65th process, once",
    ),
    ("per-CPU chunk", "", "the same: the map of per-CPU memory"),
    (
        "per-CPU: ",
        "crates/slab/src/refpool.rs",
        "a CPU's stock of references to a file; the leases beside it on the line were written once by whoever made them",
    ),
    (
        "per-CPU: ",
        "crates/slab/src/rest.rs",
        "a CPU's resting pids of a namespace; the queue was written once, empty, by whoever made those of all CPUs",
    ),
];

/// All of them.
pub const MEASURING: &[(&str, usize, Body)] = &[
    ("measuring::storm_leaks_nothing", 1, || {
        let outcome = Boot::on("default")
            .words(word::STORM)
            .words("ops=8000")
            .limit(180)
            .succeed()?;
        let record = outcome.record("storm")?;
        outcome.check(
            record.leaks.as_ref().is_some_and(Vec::is_empty),
            "no leak check, or leaks",
        )?;
        outcome.check(record.ops >= 8000, "fewer operations than asked for")
    }),
    ("measuring::every_benchmark", 1, || {
        for name in ["fork", "exec", "forkexec", "thread", "storm"] {
            for place in ["pinned", "spread"] {
                let words = format!("bench={name} ops=64 workers=4 place={place}");
                let outcome = Boot::on("default")
                    .words(&words)
                    .words("phases=on lockstat=on")
                    .succeed()?;
                let record = outcome.record(name)?;
                outcome.check(
                    record.workers == 4 && record.ops >= 64,
                    "workers or operations",
                )?;
                outcome.check(record.mode.name() == "tcg", "the mode")?;
                outcome.check(!record.variants.is_empty(), "no variants named")?;
                outcome.check(!record.locks.is_empty(), "no lock statistics")?;
                outcome.check(!record.phases.is_empty(), "no phases")?;
                let c = &record.cycles;
                let ordered = c.min > 0 && c.min <= c.p50 && c.p50 <= c.p99 && c.p99 <= c.max;
                outcome.check(ordered, "min, p50, p99, max are not in order")?;
            }
        }
        Ok(())
    }),
    ("measuring::icount_repeats_to_the_digit", 1, || {
        let boot = Boot::on("laptop").option("--cpus", "1").icount();
        let boot = boot.words("bench=forkexec ops=200 phases=on lockstat=on");
        let (first, second) = (boot.succeed()?, boot.succeed()?);
        first.record("forkexec")?;
        let same = first.record_lines == second.record_lines;
        first.check(
            same,
            &format!(
                "the second run's record differs:\n{}\n{}",
                first.record_lines, second.record_lines
            ),
        )
    }),
    ("measuring::icount_with_many_cpus_repeats", 1, || {
        let boot = Boot::on("default").icount().words("bench=fork ops=160");
        let (first, second) = (boot.succeed()?, boot.succeed()?);
        let same = first.record_lines == second.record_lines && !first.record_lines.is_empty();
        first.check(
            same,
            &format!(
                "the second run's record differs:\n{}\n{}",
                first.record_lines, second.record_lines
            ),
        )
    }),
    ("measuring::equal_to_the_digit", MANY, || {
        // Eight CPUs that wait for each other, counted and simulated.
        let dir = directory()?;
        let sweep = |file: &str, says: &str| {
            let out = dir.path().join(file);
            let words = "fork --mode icount,numasim --topology default --cpus 8 --out";
            let words = words.split(' ').map(OsString::from);
            bench(&[words.collect(), vec![out.clone().into()]].concat())?.check(true, says)?;
            Ok::<_, Failure>(out)
        };
        let (a, b) = (sweep("a", "3 results")?, sweep("b", "3 results")?);
        let exact = || {
            let words = [
                "--exact".as_ref(),
                "--compare".as_ref(),
                a.as_os_str(),
                b.as_os_str(),
            ];
            bench(&words)?.check(true, "3 records, equal to the digit")
        };
        exact()?;
        // As if the second run had died while it wrote its second result: it is completed, to the same end.
        let text = std::fs::read_to_string(&b).map_err(|e| e.to_string())?;
        let kept = text.lines().next().map_or(0, str::len) + 100;
        std::fs::write(&b, &text[..kept]).map_err(|e| e.to_string())?;
        sweep("b", "1 of 3 cells are there")?;
        exact().map(drop)
    }),
    ("measuring::bad_input", 1, || {
        let profile = |text: &str| {
            let file = tempfile::Builder::new().suffix(".toml").tempfile();
            let file = file.map_err(|e| e.to_string())?;
            std::fs::write(file.path(), text).map_err(|e| e.to_string())?;
            Ok::<_, Failure>(file)
        };
        let good = include_str!("../../../profiles/default.toml");
        let missing: String = good
            .lines()
            .filter(|l| !l.starts_with("dram"))
            .map(|l| format!("{l}\n"))
            .collect();
        let missing = profile(&missing)?;
        let negative = profile(&good.replace("cycles = 18,", "cycles = -18,"))?;
        let narrow = profile(&good.replace("\n40 = ", "\n20 = "))?;
        let with = |file: &tempfile::NamedTempFile| {
            format!(
                "locks --mode numasim --topology hygon --cpus 384 --profile {}",
                file.path().display()
            )
        };
        for (words, says) in [
            ("frok", "no benchmark is called \"frok\""),
            ("locks --variant lock=mc", "lock has no variant \"mc\""),
            ("locks --variant lok=mcs", "no variants are called \"lok\""),
            ("locks --mode icont", "icount"),
            ("locks --cpus 999", "999"),
            (
                "locks --mode numasim --profile nowhere",
                "profiles/ has default",
            ),
            (&with(&missing), "dram"),
            (&with(&negative), "cost.locked: -18"),
            (&with(&narrow), "the profile covers 10 to 20"),
            ("--compare /no/a /no/b", "/no/a"),
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            let benched = bench(&words)?.check(false, says)?;
            if benched.said.contains("building ") || benched.said.contains(" left") {
                return Err(format!("{words:?}: said too late\n{}", benched.said));
            }
        }
        Ok(())
    }),
    ("measuring::a_planted_regression_is_caught", MANY, || {
        let dir = directory()?;
        let sweep = |file: &str, append: &str| {
            let out = dir.path().join(file);
            let words = "fork --mode icount --topology laptop --cpus 1 --append";
            let words = words.split(' ').map(OsString::from);
            let more = vec![append.into(), "--out".into(), out.clone().into()];
            bench(&[words.collect(), more].concat())?.check(true, "results")?;
            Ok::<_, Failure>(out.into_os_string())
        };
        let (a, b) = (sweep("a", "")?, sweep("b", "")?);
        let slow = sweep("slow", "plant=slow-fork")?;
        let compare =
            |a: &OsString, b: &OsString| bench(&["--compare".into(), a.clone(), b.clone()]);
        compare(&a, &b)?.check(true, "0 worse")?;
        compare(&a, &slow)?.check(false, "WORSE")?;
        compare(&slow, &a)?.check(true, "1 better").map(drop)
    }),
    ("measuring::baseline", MANY, || {
        // Of this compiler and profile to 1 %; it says so where it cannot be compared.
        bench(&["--check-baseline"])?
            .check(true, "baseline of")
            .map(drop)
    }),
    ("measuring::ceilings", 1, || {
        let boot = Boot::on("laptop")
            .option("--cpus", "1")
            .icount()
            .program("/bin/ubench")
            .limit(180);
        let outcome = boot.succeed()?;
        let mut above = String::new();
        for (name, ceiling) in CEILINGS {
            let figure = outcome.figure(name)?;
            if figure > *ceiling {
                above += &format!("{name}: {figure} instructions, at most {ceiling} are allowed\n");
            }
        }
        outcome.check(above.is_empty(), &above)
    }),
    ("measuring::forkers_share_nothing", 1, || {
        apart("ops=20", &[])?;
        apart("ops=1000", SHARED)
    }),
    (
        "measuring::a_planted_shared_counter_is_found",
        1,
        || match apart("ops=20 plant=shared-counter", &[]) {
            Err(why) if why.contains("PLANTED_COUNTER") => Ok(()),
            Err(why) => Err(why),
            Ok(()) => Err("a counter that all forkers add to was not noticed".into()),
        },
    ),
];

/// Two forkers, pinned to CPUs of two nodes, in pid namespaces of their own, with the designs that share least: no line
/// of memory is written by one and touched by the other, but those allowed.
fn apart(words: &str, allowed: &[(&str, &str, &str)]) -> Result<(), Failure> {
    let boot = Boot::on("default").numasim().limit(180);
    let boot = boot.words("bench=apart workers=2 pid=sharded mm=best mm_lists=cached");
    let outcome = boot.words(words).succeed()?;
    let record = outcome.record("apart")?;
    outcome.check(record.workers == 2 && record.errors == 0, "two workers")?;
    outcome.says("simulated: 1 windows")?;
    let is_allowed = |(what, code): &(&str, &str)| {
        let mut rows = allowed.iter();
        rows.any(|(at, by, _)| what.starts_with(at) && code.contains(by))
    };
    let conflicts = outcome.conflicts();
    let shared: Vec<String> = conflicts
        .iter()
        .filter(|c| !is_allowed(c))
        .map(|(what, code)| format!("{what}, by {code}\n"))
        .collect();
    outcome.check(
        shared.is_empty(),
        &format!("forkers share:\n{}", shared.concat()),
    )
}

fn directory() -> Result<tempfile::TempDir, Failure> {
    tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))
}
