//! `--sensitivity`: which conclusions hold when the model is wrong by a factor of two, or the code lies elsewhere?
//!
//! A simulation's costs are assumptions, and so is the order in which the linker puts functions and variables: who shares
//! a line with whom is its choice (T. Mytkowicz et al., Producing Wrong Data Without Doing Anything Obviously Wrong!,
//! ASPLOS 2009). A [`Conclusion`] compares two cells; it is worth saying if it holds with each cost halved and doubled and
//! with the image linked in the order of each of [`LAYOUTS`]. What flips on the way is an artefact, and is named.

use super::{
    compare,
    matrix::{Cell, Kind},
    results::Row,
    runner::Runner,
};
use crate::{apt::Installer, paths, profile::Profile, topology::Name};
use anyhow::{Result, bail};
use std::path::PathBuf;

/// Seeds of the linker's shuffling.
const LAYOUTS: &[u32] = &[1, 2, 3];

/// Something to say about two cells: the throughput of the first is more than `factor` times that of the second.
struct Conclusion {
    says: &'static str,
    more: Point,
    factor: f64,
    than: Point,
}

/// Benchmark, the variant's word and value, CPUs.
type Point = (&'static str, (&'static str, &'static str), u32);

const fn lock(name: &'static str, cpus: u32) -> Point {
    ("locks", ("lock", name), cpus)
}
const fn pid(name: &'static str, cpus: u32) -> Point {
    ("pid", ("pid", name), cpus)
}

/// What the book says about scaling. To add one is to add a row.
#[rustfmt::skip]
const CONCLUSIONS: &[Conclusion] = &[
    Conclusion { says: "an MCS lock beats a ticket lock at 64 CPUs",
                 more: lock("mcs", 64), factor: 1.0, than: lock("ticket", 64) },
    Conclusion { says: "a ticket lock does less than half at 64 CPUs of what it does at 8",
                 more: lock("ticket", 8), factor: 2.0, than: lock("ticket", 64) },
    Conclusion { says: "within a node an MCS lock keeps its throughput: 32 CPUs at least 0.9 times 8",
                 more: lock("mcs", 32), factor: 0.9, than: lock("mcs", 8) },
    Conclusion { says: "an atomic counter does more on one node of 32 than on two",
                 more: lock("atomic", 32), factor: 1.0, than: lock("atomic", 64) },
    Conclusion { says: "a counter per CPU scales: 64 CPUs at least 60 times one",
                 more: lock("per-cpu", 64), factor: 60.0, than: lock("per-cpu", 1) },
    Conclusion { says: "leased pids beat one locked tree five times at 32 CPUs",
                 more: pid("sharded", 32), factor: 5.0, than: pid("idr", 32) },
];

fn cell((benchmark, (word, value), cpus): Point) -> Cell {
    Cell {
        benchmark: benchmark.into(),
        variants: vec![(word.into(), value.into())],
        cpus,
        on: Name::Hygon,
        mode: Kind::Numasim,
        detail: false,
        repeat: 1,
        seconds: 2.0 + f64::from(cpus) / 30.0,
        stretch: 2,
    }
}

/// All cells that the conclusions need, once each.
fn cells() -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    for cell in CONCLUSIONS
        .iter()
        .flat_map(|c| [cell(c.more), cell(c.than)])
    {
        if !cells.contains(&cell) {
            cells.push(cell);
        }
    }
    cells
}

/// A way in which things could be, and what the cells came to.
struct Variation {
    name: String,
    rows: Vec<Row>,
}

impl Variation {
    /// How much more the first does than the second.
    fn ratio(&self, c: &Conclusion) -> Option<f64> {
        let rate = |point| {
            let key = cell(point).key();
            let row = self.rows.iter().find(|r| r.cell == key)?;
            row.good().map(|r| r.ops_per_mcycle()).filter(|r| *r > 0.0)
        };
        Some(rate(c.more)? / rate(c.than)?)
    }
}

/// `--sensitivity`.
///
/// # Errors
/// A conclusion does not even hold with nothing varied, or a cell fails.
pub fn command(
    installer: &Installer,
    jobs: Option<usize>,
    profile: &Profile,
    fresh: bool,
) -> Result<()> {
    let cells = cells();
    let mut variations = Vec::new();
    let mut runner = Runner::new(installer, jobs, &cells, profile.clone(), None)?;
    let mut run = |runner: &Runner, name: &str| -> Result<()> {
        eprintln!("{name}:");
        let file: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let rows = runner.complete(&cells, &directory().join(format!("{file}.jsonl")), fresh)?;
        variations.push(Variation {
            name: name.into(),
            rows,
        });
        Ok(())
    };
    run(&runner, "as it is")?;
    for cost in profile.cost_names() {
        for (word, numerator, denominator) in [("halved", 1, 2), ("doubled", 2, 1)] {
            runner.set_profile(profile.scaled(cost, numerator, denominator)?);
            run(&runner, &format!("{cost} {word}"))?;
        }
    }
    for seed in LAYOUTS {
        let shuffled = Runner::new(installer, jobs, &cells, profile.clone(), Some(*seed))?;
        run(&shuffled, &format!("image in order {seed}"))?;
    }
    print(&variations)
}

/// Where results are kept, a file for each variation.
fn directory() -> PathBuf {
    paths::target().join("bench/sensitivity")
}

/// A line per conclusion; names what flips it.
fn print(variations: &[Variation]) -> Result<()> {
    let mut table = compare::new_table(&["conclusion", "needs", "as it is", "least", "most", ""]);
    let (mut broken, mut missing) = (0, 0);
    let mut flips = Vec::new();
    for c in CONCLUSIONS {
        let ratios: Vec<(&str, f64)> = variations
            .iter()
            .filter_map(|v| Some((v.name.as_str(), v.ratio(c)?)))
            .collect();
        missing += variations.len() - ratios.len();
        let least = ratios.iter().map(|r| r.1).fold(f64::MAX, f64::min);
        let most = ratios.iter().map(|r| r.1).fold(0.0, f64::max);
        let base = ratios.first().map_or(0.0, |r| r.1);
        let against: Vec<String> = ratios
            .iter()
            .filter(|r| r.1 <= c.factor)
            .map(|(name, r)| format!("{name} ({r:.2})"))
            .collect();
        broken += usize::from(base <= c.factor);
        let verdict = if against.is_empty() {
            format!("holds in all {}", ratios.len())
        } else {
            flips.push(format!("{}: not with {}", c.says, against.join(", ")));
            format!("FLIPS in {} of {}", against.len(), ratios.len())
        };
        let number = |v: f64| format!("{v:.2}");
        table.add_row([
            c.says.into(),
            format!("> {}", number(c.factor)),
            number(base),
            number(least),
            number(most),
            verdict,
        ]);
    }
    compare::show(table, 1..=4);
    flips.iter().for_each(|line| println!("{line}"));
    println!(
        "the first's throughput as a multiple of the second's, over {} variations",
        variations.len()
    );
    if missing > 0 {
        bail!("{missing} comparisons have no figures: cells failed");
    }
    if broken > 0 {
        bail!("{broken} conclusions do not hold");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{matrix, results::tests::row, runner};
    use kbench::record::Mode;

    fn variation(name: &str, slower: u64) -> Variation {
        let rows = cells().into_iter().map(|cell| {
            let mut row = row(&cell.key(), Mode::Numasim, 1);
            let record = row.record.as_mut().unwrap();
            // The second of each pair gets 1, the first a hundred times as much.
            let first = CONCLUSIONS
                .iter()
                .any(|c| super::cell(c.more) == cell && c.than.1 != c.more.1);
            (record.ops, record.elapsed_cycles) = (if first { 100 / slower } else { 1 }, 1_000);
            row
        });
        Variation {
            name: name.into(),
            rows: rows.collect(),
        }
    }

    #[test]
    fn a_conclusion_that_flips_is_found() {
        let c = &CONCLUSIONS[0];
        assert_eq!(variation("a", 1).ratio(c), Some(100.0));
        assert!(variation("b", 100).ratio(c).unwrap() <= c.factor);
        let mut failed = variation("c", 1);
        failed.rows.clear();
        assert_eq!(failed.ratio(c), None);
        assert!(
            print(&[failed])
                .unwrap_err()
                .to_string()
                .contains("no figures")
        );
    }

    #[test]
    fn the_cells_can_be_booted() {
        let profile = Profile::load("default").unwrap();
        for cell in cells() {
            runner::check(&cell, &profile).unwrap();
            let known = matrix::benchmark(&cell.benchmark)
                .unwrap()
                .axes
                .iter()
                .chain(matrix::COMMON_AXES);
            let (word, value) = &cell.variants[0];
            let mut known = known.filter(|(w, _)| w == word);
            assert!(
                known.any(|(_, values)| values.contains(&value.as_str())),
                "{}",
                cell.key()
            );
        }
    }
}
