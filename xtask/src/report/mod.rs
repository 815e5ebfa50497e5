//! `cargo xtask report`: results as tables in the terminal and as one page with plots.
//!
//! The page needs nothing beside itself: style and plots are in it, in the colours of the reader's choice, light or dark.
//! Below every figure stands the line that makes its data.

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
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};
use svg::{Bar, Series, escape};

/// Phases and classes shown by name; the rest is one part.
const NAMED: usize = svg::COLOURS;
/// Rows of tables of contended lines and of lock classes.
const SHOWN: usize = 12;

/// The options of `cargo xtask report`.
#[derive(Args)]
pub struct Options {
    /// Results files; none: all that `cargo xtask bench` left in target/bench.
    files: Vec<PathBuf>,
    /// Where the page goes.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
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
            rows.retain(|r| r.cell != row.cell);
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
    let html = options
        .html
        .clone()
        .unwrap_or_else(|| paths::target().join("bench/report.html"));
    fs::write(&html, page(&rows)).with_context(|| format!("cannot write {}", html.display()))?;
    println!("\nplots: {}", paths::shown(&html));
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

/// Rows of one benchmark in one mode on one machine: one plot.
struct Group<'a> {
    benchmark: String,
    mode: Mode,
    machine: String,
    detail: bool,
    rows: Vec<(&'a Row, &'a Record)>,
}

impl Group<'_> {
    fn title(&self) -> String {
        format!(
            "{}, {} on {}",
            self.benchmark,
            self.mode.name(),
            self.machine
        )
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
            self.benchmark,
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
            g.benchmark == record.benchmark
                && g.mode == record.mode
                && g.machine == record.topology.name
                && g.detail == detail
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.rows.push((row, record)),
            None => groups.push(Group {
                benchmark: record.benchmark.clone(),
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

/// The settings that differ within `group`, for a line's name.
fn name_in(group: &Group<'_>, record: &Record) -> String {
    let varies = |name: &str| {
        group
            .rows
            .iter()
            .any(|(_, r)| r.variant(name) != record.variant(name))
    };
    let own = record
        .variants
        .iter()
        .filter(|s| varies(&s.name) || s.name == "lock");
    let name: Vec<&str> = own.map(|s| s.value.as_str()).collect();
    if name.is_empty() {
        record.benchmark.clone()
    } else {
        name.join(" ")
    }
}

/// Throughput by CPUs of each variant, in the order of the rows.
fn series(group: &Group<'_>) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for (_, record) in &group.rows {
        let rate = record.ops_per_mcycle();
        if rate <= 0.0 {
            continue;
        }
        let (name, point) = (
            name_in(group, record),
            (f64::from(record.topology.cpus), rate),
        );
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

/// In the terminal: a row per variant, a column per CPU count.
fn throughput_tables(rows: &[Row]) {
    for group in groups(rows) {
        if group.detail || matches!(group.mode, Mode::Icount | Mode::Tcg) {
            continue;
        }
        let lines = series(&group);
        let mut counts: Vec<u32> = lines
            .iter()
            .flat_map(|s| &s.points)
            .map(|p| p.0 as u32)
            .collect();
        counts.sort_unstable();
        counts.dedup();
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

/// The whole page.
fn page(rows: &[Row]) -> String {
    let mut html = String::from(HEAD);
    let origin = rows.iter().find(|r| r.good().is_some()).map(|r| &r.origin);
    if let Some(o) = origin {
        let dirty = if o.dirty { " with changes" } else { "" };
        // Writing to a String does not fail.
        let _ = writeln!(
            html,
            "<p class=\"origin\">commit {}{dirty} · build {} · {} · QEMU {} · {}</p>",
            escape(&o.commit),
            escape(&o.build),
            escape(&o.compiler),
            escape(&o.qemu),
            escape(&o.machine)
        );
    }
    let groups = groups(rows);
    for group in &groups {
        throughput(&mut html, group);
    }
    for group in groups.iter().filter(|g| g.detail) {
        phases(&mut html, group);
        locks(&mut html, group);
    }
    rows.iter()
        .filter(|r| !r.c2c.is_empty())
        .for_each(|r| contended(&mut html, r));
    all_cells(&mut html, rows);
    html.push_str("</main></body></html>\n");
    html
}

/// What may be said of a mode's figures.
fn caution(mode: Mode) -> &'static str {
    match mode {
        Mode::Icount => {
            "Instructions. All CPUs share one counter and take turns, so that more CPUs do not make it faster: the figure is path length."
        }
        Mode::Numasim => {
            "Simulated cycles of a coherence model: shapes and crossing points, no machine's rates; differences below 10 % mean nothing."
        }
        Mode::Tcg => "Plain emulation: smoke only, not a measurement.",
        _ => "Cycles.",
    }
}

fn figure(html: &mut String, title: &str, plot: &str, text: &str, command: &str) {
    let _ = writeln!(
        html,
        "<figure><h2>{}</h2>\n{plot}<figcaption>{}<br><code>{}</code></figcaption></figure>",
        escape(title),
        escape(text),
        escape(command)
    );
}

fn throughput(html: &mut String, group: &Group<'_>) {
    let lines = series(group);
    if group.detail || group.mode == Mode::Tcg {
        return;
    }
    if group.mode == Mode::Icount {
        return path_length(html, group);
    }
    if lines.iter().all(|s| s.points.len() < 2) {
        return;
    }
    let title = format!("Throughput of {}", group.title());
    let plot = svg::lines(
        &title,
        "CPUs, a worker on each",
        "operations per Mcycle",
        &lines,
    );
    figure(html, &title, &plot, caution(group.mode), &group.command());
}

/// What one CPU executes for an operation: where CPUs take turns, throughput says nothing else.
fn path_length(html: &mut String, group: &Group<'_>) {
    let rows = group
        .rows
        .iter()
        .map(|(_, r)| *r)
        .filter(|r| tells(group, r));
    let bar = |r: &Record| Bar {
        name: name_in(group, r),
        parts: vec![compare::cycles_per_op(r)],
    };
    let bars: Vec<Bar> = rows.map(bar).collect();
    if bars.is_empty() {
        return;
    }
    let title = format!("Path length of {}", group.title());
    let plot = svg::bars(&title, "instructions per operation", &[], &bars);
    figure(
        html,
        &title,
        &plot,
        "Instructions from beginning to end of one operation, on one CPU.",
        &group.command(),
    );
}

/// A row's name among others of its group.
fn row_name(group: &Group<'_>, record: &Record) -> String {
    let cpus = record.topology.cpus;
    let plural = if cpus == 1 { "" } else { "s" };
    match name_in(group, record) {
        name if name == record.benchmark => format!("{cpus} CPU{plural}"),
        name => format!("{name}, {cpus} CPU{plural}"),
    }
}

/// Names by their sum over all rows, largest first.
fn by_size<'a>(parts: impl Iterator<Item = (&'a str, f64)>) -> Vec<String> {
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    parts.for_each(|(name, value)| *sums.entry(name).or_default() += value);
    let mut order: Vec<(&str, f64)> = sums.into_iter().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
    order
        .into_iter()
        .map(|(name, _)| name.to_string())
        .collect()
}

/// `values` under the first names, the rest as one part.
fn parts(names: &[String], values: &[(&str, f64)]) -> Vec<f64> {
    let value = |name: &String| {
        values
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| *v)
            .sum::<f64>()
    };
    let mut parts: Vec<f64> = names.iter().take(NAMED).map(value).collect();
    if names.len() > NAMED {
        parts.push(names[NAMED..].iter().map(value).sum());
    }
    parts
}

fn legend(names: &[String]) -> Vec<String> {
    let mut legend: Vec<String> = names.iter().take(NAMED).cloned().collect();
    if names.len() > NAMED {
        legend.push(format!("{} more", names.len() - NAMED));
    }
    legend
}

/// Under icount a phase of one CPU contains the others' instructions: only one CPU alone tells.
fn tells(group: &Group<'_>, record: &Record) -> bool {
    group.mode != Mode::Icount || record.workers == 1
}

fn phases(html: &mut String, group: &Group<'_>) {
    let rows: Vec<&Record> = group
        .rows
        .iter()
        .map(|(_, r)| *r)
        .filter(|r| tells(group, r) && !r.phases.is_empty())
        .collect();
    if rows.is_empty() {
        return;
    }
    let of = |r: &Record| -> Vec<(String, f64)> {
        r.phases
            .iter()
            .map(|p| (p.name.clone(), p.cycles_per_op))
            .collect()
    };
    let all: Vec<Vec<(String, f64)>> = rows.iter().map(|r| of(r)).collect();
    let names = by_size(all.iter().flatten().map(|(n, v)| (n.as_str(), *v)));
    let bar = |(r, values): (&&Record, &Vec<(String, f64)>)| {
        let values: Vec<(&str, f64)> = values.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        Bar {
            name: row_name(group, r),
            parts: parts(&names, &values),
        }
    };
    let bars: Vec<Bar> = rows.iter().zip(&all).map(bar).collect();
    let title = format!("Where {} spends its time, by phase", group.title());
    let axis = format!("{} per operation", group.mode.unit());
    figure(
        html,
        &title,
        &svg::bars(&title, &axis, &legend(&names), &bars),
        caution(group.mode),
        &group.command(),
    );
}

fn locks(html: &mut String, group: &Group<'_>) {
    let waits = |r: &Record| tells(group, r) && r.locks.iter().any(|l| l.wait_cycles > 0);
    let rows: Vec<&Record> = group
        .rows
        .iter()
        .map(|(_, r)| *r)
        .filter(|r| waits(r))
        .collect();
    if rows.is_empty() {
        return;
    }
    let per_op = |r: &Record, cycles: u64| cycles as f64 / r.ops.max(1) as f64;
    let of = |r: &'_ Record| -> Vec<(String, f64)> {
        r.locks
            .iter()
            .map(|l| (l.class.clone(), per_op(r, l.wait_cycles)))
            .collect()
    };
    let all: Vec<Vec<(String, f64)>> = rows.iter().map(|r| of(r)).collect();
    let names: Vec<String> = by_size(all.iter().flatten().map(|(n, v)| (n.as_str(), *v)));
    let names: Vec<String> = names
        .into_iter()
        .filter(|n| all.iter().flatten().any(|(m, v)| m == n && *v > 0.0))
        .collect();
    let bar = |(r, values): (&&Record, &Vec<(String, f64)>)| {
        let values: Vec<(&str, f64)> = values.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        Bar {
            name: row_name(group, r),
            parts: parts(&names, &values),
        }
    };
    let bars: Vec<Bar> = rows.iter().zip(&all).map(bar).collect();
    let title = format!("Waiting for locks in {}, by class", group.title());
    let axis = format!("{} waited per operation", group.mode.unit());
    figure(
        html,
        &title,
        &svg::bars(&title, &axis, &legend(&names), &bars),
        caution(group.mode),
        &group.command(),
    );
}

/// The lines of memory that CPUs lost most to.
fn contended(html: &mut String, row: &Row) {
    let all: u64 = row.c2c.iter().map(|c| c.cycles).sum();
    let mut table = String::from(
        "<table><thead><tr><th>line of memory</th><th>share</th><th></th><th>misses</th><th>cycles lost</th><th>readers</th><th>writers</th><th>code</th></tr></thead><tbody>\n",
    );
    for c in row.c2c.iter().take(SHOWN) {
        let share = c.cycles as f64 / all.max(1) as f64 * 100.0;
        let grouped = |n| kbench::table::grouped(n);
        let _ = writeln!(
            table,
            "<tr><td>{}</td><td class=\"n\">{share:.1} %</td><td class=\"share\"><i style=\"width:{share:.1}%\"></i></td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
            escape(&c.what),
            grouped(c.misses),
            grouped(c.cycles),
            grouped(c.readers),
            grouped(c.writers),
            escape(&c.code)
        );
    }
    table.push_str("</tbody></table>\n");
    let title = format!("What CPUs wait for each other at: {}", row.cell);
    figure(html, &title, &table, caution(Mode::Numasim), &row.command);
}

/// Every cell, for reading exact figures.
fn all_cells(html: &mut String, rows: &[Row]) {
    html.push_str("<details><summary>All cells</summary><table><thead><tr><th>cell</th><th>operations</th><th>min</th><th>p50</th><th>p99</th><th>max</th><th>cycles per operation</th><th>operations per Mcycle</th></tr></thead><tbody>\n");
    for row in rows {
        let Some(r) = row.good() else {
            let why = row.error.as_deref().unwrap_or("no record");
            let _ = writeln!(
                html,
                "<tr><td>{}</td><td colspan=\"7\">failed: {}</td></tr>",
                escape(&row.cell),
                escape(why)
            );
            continue;
        };
        let numbers = [
            r.ops,
            r.cycles.min,
            r.cycles.p50,
            r.cycles.p99,
            r.cycles.max,
        ]
        .map(kbench::table::grouped);
        let cells: String = numbers
            .iter()
            .map(|n| format!("<td class=\"n\">{n}</td>"))
            .collect();
        let _ = writeln!(
            html,
            "<tr><td title=\"{}\">{}</td>{cells}<td class=\"n\">{:.1}</td><td class=\"n\">{:.1}</td></tr>",
            escape(&row.command),
            escape(&row.cell),
            compare::cycles_per_op(r),
            r.ops_per_mcycle()
        );
    }
    html.push_str("</tbody></table></details>\n");
}

/// Up to the first figure.
const HEAD: &str = concat!(
    "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n",
    "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n",
    "<meta name=\"color-scheme\" content=\"light dark\"><title>Tine: results</title>\n<style>\n",
    include_str!("style.css"),
    "</style></head><body><main>\n<h1>Results</h1>\n"
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::{Contended, tests::row};
    use kbench::record::{LockStats, PhaseCycles, Setting};

    fn locks_row(lock: &str, cpus: u32, ops: u64) -> Row {
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
    fn the_page_is_self_contained_and_has_every_view() {
        let mut fork = row("fork numasim hygon cpus=64 detail", Mode::Numasim, 900);
        let record = fork.record.as_mut().unwrap();
        record.phases = vec![PhaseCycles {
            name: "pgtable_copy".into(),
            cycles_per_op: 500.0,
        }];
        record.locks = vec![LockStats {
            class: "pidmap_lock".into(),
            acquisitions: 9,
            contended: 5,
            wait_cycles: 77,
            hold_cycles: 1,
        }];
        fork.c2c = vec![Contended {
            what: "pidmap<lock>".into(),
            readers: 1,
            writers: 64,
            nodes: 4,
            misses: 5,
            cycles: 61,
            code: "alloc_pid".into(),
        }];
        let html = page(&[locks_row("mcs", 1, 5000), locks_row("mcs", 64, 700), fork]);
        for part in [
            "Throughput of locks",
            "by phase",
            "Waiting for locks",
            "pidmap_lock",
            "pidmap&lt;lock&gt;",
            "prefers-color-scheme",
            "All cells",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert_eq!(
            html.matches("<figure>").count(),
            html.matches("<code>cargo xtask bench").count()
        );
        for outside in ["http://", "https://", "src=", "@import"] {
            let found = html.replace("http://www.w3.org/2000/svg", "");
            assert!(!found.contains(outside), "{outside}");
        }
    }

    #[test]
    fn small_parts_are_summed() {
        let names: Vec<String> = (0..NAMED + 3).map(|i| format!("p{i}")).collect();
        let values: Vec<(&str, f64)> = names.iter().map(|n| (n.as_str(), 1.0)).collect();
        let got = parts(&names, &values);
        assert_eq!(
            (got.len(), got[NAMED], got.iter().sum::<f64>()),
            (NAMED + 1, 3.0, (NAMED + 3) as f64)
        );
        assert_eq!(legend(&names)[NAMED], "3 more");
    }
}
