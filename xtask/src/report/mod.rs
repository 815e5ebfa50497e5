//! `cargo xtask report`: results as tables in the terminal and as one page with plots.
//!
//! The page needs nothing beside itself: style and plots are in it, in the colours of the reader's choice, light or dark.
//! Below every figure stands the line that makes its data.

mod growth;
mod page;
mod svg;

use crate::{
    bench::compare,
    bench::results::{self, Row},
    paths,
};
use anyhow::{Context, Result, ensure};
use clap::Args;
use kbench::{Record, record::Mode};
use std::{
    fs,
    path::{Path, PathBuf},
};
use svg::Series;

/// The options of `cargo xtask report`.
#[derive(Args)]
pub struct Options {
    /// Results files; none: all that `cargo xtask bench` left in target/bench.
    files: Vec<PathBuf>,
    /// Where the page goes.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Each plot also as a file of its own in this directory.
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
}

/// `cargo xtask report`.
pub fn command(options: &Options) -> Result<()> {
    let files = if options.files.is_empty() {
        left_over()?
    } else {
        options.files.clone()
    };
    ensure!(
        !files.is_empty(),
        "no results: run cargo xtask bench, or name a file"
    );
    let mut rows: Vec<Row> = Vec::new();
    for file in &files {
        for row in results::read(file)? {
            // A cell in several files: the last one counts.
            rows.retain(|r| (&r.cell, &r.append) != (&row.cell, &row.append));
            rows.push(row);
        }
    }
    ensure!(
        rows.iter().any(|r| r.good().is_some()),
        "no results in {}",
        list(&files)
    );
    compare::table(&rows);
    throughput_tables(&rows);
    groups(&rows).iter().for_each(growth::tables);
    let html = options
        .html
        .clone()
        .unwrap_or_else(|| paths::target().join("bench/report.html"));
    let page = page::page(&rows);
    fs::write(&html, &page).with_context(|| format!("cannot write {}", html.display()))?;
    println!("\nplots: {}", paths::shown(&html));
    if let Some(dir) = &options.svg {
        fs::create_dir_all(dir)?;
        for (name, text) in svg::files(&page) {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            println!("       {}", paths::shown(&path));
        }
    }
    Ok(())
}

fn list(files: &[PathBuf]) -> String {
    files
        .iter()
        .map(|f| paths::shown(f))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The results files in target/bench, oldest first.
fn left_over() -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(paths::target().join("bench")) else {
        return Ok(vec![]);
    };
    let is_results = |p: &Path| p.extension().is_some_and(|e| e == "jsonl");
    let mut files: Vec<(std::time::SystemTime, PathBuf)> = entries
        .filter_map(|e| {
            let path = e.ok()?.path();
            let age = path.metadata().ok()?.modified().ok()?;
            is_results(&path).then_some((age, path))
        })
        .collect();
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// Rows of one mode on one machine: one plot.
#[derive(Clone)]
struct Group<'a> {
    benchmarks: Vec<String>,
    mode: Mode,
    machine: String,
    detail: bool,
    rows: Vec<(&'a Row, &'a Record)>,
}

impl Group<'_> {
    fn title(&self) -> String {
        let what = match &self.benchmarks[..] {
            [one] => one.clone(),
            _ => "operations".into(),
        };
        format!("{what}, {} on {}", self.mode.name(), self.machine)
    }

    /// Takes in the rows of another benchmark.
    fn join(&mut self, other: &Self) {
        self.benchmarks.extend_from_slice(&other.benchmarks);
        self.rows.extend_from_slice(&other.rows);
    }

    /// The line that makes all of it.
    fn command(&self) -> String {
        let mut counts: Vec<u32> = self.rows.iter().map(|(_, r)| r.topology.cpus).collect();
        counts.sort_unstable();
        counts.dedup();
        let counts: Vec<String> = counts.iter().map(u32::to_string).collect();
        let detail = if self.detail { " --detail" } else { "" };
        format!(
            "cargo xtask bench {} --mode {} --topology {} --cpus {}{detail}",
            self.benchmarks.join(" "),
            self.mode.name(),
            self.machine,
            counts.join(",")
        )
    }
}

fn groups(rows: &[Row]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for row in rows {
        let Some(record) = row.good() else { continue };
        let detail = row.cell.contains(" detail");
        let same = |g: &&mut Group<'_>| {
            g.benchmarks[0] == record.benchmark
                && g.mode == record.mode
                && g.machine == record.topology.name
                && g.detail == detail
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.rows.push((row, record)),
            None => groups.push(Group {
                benchmarks: vec![record.benchmark.clone()],
                mode: record.mode,
                machine: record.topology.name.clone(),
                detail,
                rows: vec![(row, record)],
            }),
        }
    }
    for group in &mut groups {
        group.rows.sort_by_key(|(_, r)| r.topology.cpus);
    }
    groups
}

/// `groups` of the same mode and machine as one.
fn joined<'a>(groups: impl Iterator<Item = Group<'a>>) -> Vec<Group<'a>> {
    let mut all: Vec<Group<'a>> = Vec::new();
    for group in groups {
        let same = |g: &&mut Group<'_>| g.mode == group.mode && g.machine == group.machine;
        match all.iter_mut().find(same) {
            Some(first) => first.join(&group),
            None => all.push(group),
        }
    }
    all
}

/// Words that say for how many and how long, and no design.
const NO_DESIGN: &[&str] = &["cpus", "ops", "window", "ramp"];

/// What chooses the designs of a row: words of its cell, and further ones.
fn chosen(row: &Row) -> Vec<(&str, &str)> {
    let words = row.cell.split(' ').chain(row.append.split(' '));
    let pairs = words.filter_map(|w| w.split_once('='));
    pairs
        .filter(|(name, _)| !NO_DESIGN.contains(name))
        .collect()
}

/// The words that differ within `group`, for a line's name.
fn name_in(group: &Group<'_>, row: &Row) -> String {
    let differs = |pair: &(&str, &str)| group.rows.iter().any(|(r, _)| !chosen(r).contains(pair));
    let (mine, mut name) = (chosen(row), Vec::new());
    if group.benchmarks.len() > 1 {
        name.push(row.cell.split(' ').next().unwrap_or_default());
    }
    let own = mine.iter().filter(|p| differs(p) || p.0 == "lock");
    name.extend(own.map(|(_, value)| *value));
    if name.is_empty() {
        group.benchmarks[0].clone()
    } else {
        name.join(" ")
    }
}

/// Throughput by CPUs of each variant, in the order of the rows.
fn series(group: &Group<'_>) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for (row, record) in &group.rows {
        let rate = record.ops_per_mcycle();
        if rate <= 0.0 {
            continue;
        }
        let (name, point) = (name_in(group, row), (f64::from(record.topology.cpus), rate));
        match all.iter_mut().find(|s| s.name == name) {
            Some(s) if s.points.iter().any(|p| p.0 == point.0) => {}
            Some(s) => s.points.push(point),
            None => all.push(Series {
                name,
                points: vec![point],
            }),
        }
    }
    all
}

/// The x of all points, once each, in order.
fn counts(lines: &[Series]) -> Vec<u32> {
    let mut counts: Vec<u32> = lines
        .iter()
        .flat_map(|s| &s.points)
        .map(|p| p.0 as u32)
        .collect();
    counts.sort_unstable();
    counts.dedup();
    counts
}

/// In the terminal: a row per variant, a column per CPU count.
fn throughput_tables(rows: &[Row]) {
    for group in groups(rows) {
        if group.detail || matches!(group.mode, Mode::Icount | Mode::Tcg) {
            continue;
        }
        let lines = series(&group);
        let counts = counts(&lines);
        if counts.len() < 2 {
            continue;
        }
        println!("\n{}: operations per Mcycle by CPUs", group.title());
        let heads: Vec<String> = std::iter::once(String::new())
            .chain(counts.iter().map(u32::to_string))
            .collect();
        let mut table = compare::new_table(&heads.iter().map(String::as_str).collect::<Vec<_>>());
        for s in &lines {
            let at = |count: &u32| s.points.iter().find(|p| p.0 as u32 == *count);
            let cells = counts
                .iter()
                .map(|c| at(c).map_or(String::new(), |p| format!("{:.1}", p.1)));
            table.add_row(std::iter::once(s.name.clone()).chain(cells));
        }
        compare::show(table, 1..=counts.len());
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::bench::results::tests::row;
    use kbench::record::Setting;

    /// A row of the lock laboratory.
    pub fn locks_row(lock: &str, cpus: u32, ops: u64) -> Row {
        let mut row = row(
            &format!("locks numasim lock={lock} hygon cpus={cpus}"),
            Mode::Numasim,
            100,
        );
        let record = row.record.as_mut().unwrap();
        (record.topology.cpus, record.ops, record.elapsed_cycles) = (cpus, ops, 1_000_000);
        record.variants = vec![Setting::new("pid", "idr"), Setting::new("lock", lock)];
        row
    }

    #[test]
    fn a_line_per_variant() {
        let rows = [
            locks_row("mcs", 64, 700),
            locks_row("ticket", 1, 5000),
            locks_row("mcs", 1, 5000),
        ];
        let groups = groups(&rows);
        assert_eq!(groups.len(), 1);
        let lines = series(&groups[0]);
        let points = |name: &str| {
            lines
                .iter()
                .find(|s| s.name == name)
                .unwrap()
                .points
                .clone()
        };
        assert_eq!(points("mcs"), [(1.0, 5000.0), (64.0, 700.0)]);
        assert_eq!(points("ticket"), [(1.0, 5000.0)]);
        assert_eq!(
            groups[0].command(),
            "cargo xtask bench locks --mode numasim --topology default --cpus 1,64"
        );
    }

    #[test]
    fn a_word_that_is_no_variant_of_the_record_names_a_row_too() {
        let cell = |op: &str| {
            row(
                &format!("percpu icount percpu_op={op} default cpus=1"),
                Mode::Icount,
                9,
            )
        };
        let rows = [cell("add"), cell("sum")];
        let groups = groups(&rows);
        assert_eq!(name_in(&groups[0], &rows[0]), "add");
        let mut other = cell("add");
        other.append = "mm=best".into();
        let rows = [cell("add"), other];
        let groups = super::groups(&rows);
        assert_eq!(
            name_in(&groups[0], &rows[1]),
            "mm=best".split('=').nth(1).unwrap()
        );
        assert_eq!(joined(groups.clone().into_iter().chain(groups)).len(), 1);
    }
}
