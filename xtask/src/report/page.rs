//! The page: figures under each other, each with the line that makes it.

use super::{Group, groups, growth, joined, name_in, series, svg};
use crate::{bench::compare, bench::results::Row};
use kbench::{Record, record::Mode};
use std::{collections::BTreeMap, fmt::Write};
use svg::{Bar, escape};

/// Phases and classes shown by name; the rest is one part.
const NAMED: usize = svg::COLOURS;
/// Rows of tables of contended lines and of lock classes.
const SHOWN: usize = 12;
/// And no line of memory with less than this per cent.
const LEAST: f64 = 0.1;

/// The whole page.
pub fn page(rows: &[Row]) -> String {
    let mut html = String::from(HEAD);
    let origin = rows.iter().find(|r| r.good().is_some()).map(|r| &r.origin);
    if let Some(o) = origin {
        let dirty = if o.dirty { " with changes" } else { "" };
        // Writing to a String does not fail.
        let _ = writeln!(
            html,
            "<p class=\"origin\">{} · commit {}{dirty} · build {} · {} · QEMU {} · {}</p>",
            escape(&o.date),
            escape(&o.commit),
            escape(&o.build),
            escape(&o.compiler),
            escape(&o.qemu),
            escape(&o.machine)
        );
    }
    let groups = groups(rows);
    groups.iter().for_each(|g| throughput(&mut html, g));
    groups.iter().for_each(|g| by_possible_cpus(&mut html, g));
    for group in joined(groups.iter().filter(|g| g.detail).cloned()) {
        phases(&mut html, &group);
        locks(&mut html, &group);
    }
    path_lengths(&mut html, &groups);
    let largest = rows.iter().filter(|r| is_largest(rows, r));
    largest.for_each(|r| contended(&mut html, r));
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
    if group.detail || matches!(group.mode, Mode::Icount | Mode::Tcg) {
        return;
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

/// What CPUs cost that there might be.
fn by_possible_cpus(html: &mut String, group: &Group<'_>) {
    for growth in growth::of(group) {
        let title = format!("Path length of {}", growth.title);
        let axis = "instructions per operation, median";
        let plot = svg::lines(&title, "possible CPUs", axis, &growth.series);
        figure(html, &title, &plot, caution(group.mode), &growth.command);
    }
}

/// What one CPU executes for an operation: where CPUs take turns, throughput says nothing else. Benchmarks that have
/// one figure each share a plot.
fn path_lengths(html: &mut String, groups: &[Group<'_>]) {
    let (mut single, mut several) = (vec![], vec![]);
    for group in groups
        .iter()
        .filter(|g| g.mode == Mode::Icount && !g.detail)
    {
        let mut alone = group.clone();
        alone
            .rows
            .retain(|(row, r)| r.workers == 1 && !growth::is_about(row));
        match alone.rows.len() {
            0 => {}
            1 => single.push(alone),
            _ => several.push(alone),
        }
    }
    for group in joined(single.into_iter()).iter().chain(&several) {
        let bar = |(row, r): &(&Row, &Record)| Bar {
            name: name_in(group, row),
            parts: vec![compare::cycles_per_op(r)],
        };
        let bars: Vec<Bar> = group.rows.iter().map(bar).collect();
        let title = format!("Path length of {}", group.title());
        let plot = svg::bars(&title, "instructions per operation", &[], &bars);
        let text = "Instructions from beginning to end of one operation, on one CPU.";
        figure(html, &title, &plot, text, &group.command());
    }
}

/// A row's name among others of its group.
fn row_name(group: &Group<'_>, (row, record): (&Row, &Record)) -> String {
    let cpus = record.topology.cpus;
    let plural = if cpus == 1 { "" } else { "s" };
    match name_in(group, row) {
        name if group.benchmarks.len() == 1 && name == record.benchmark => {
            format!("{cpus} CPU{plural}")
        }
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

/// What is too small for a name of its own, and what the kernel gives none.
const REST: &str = "other";

/// `values` under the first names, and the rest.
fn parts(names: &[String], values: &[(String, f64)]) -> Vec<f64> {
    let sum = |wanted: &dyn Fn(&str) -> bool| -> f64 {
        let found = values.iter().filter(|(n, _)| wanted(n));
        found.map(|(_, v)| *v).sum()
    };
    let named = &names[..names.len().min(NAMED)];
    let mut parts: Vec<f64> = named.iter().map(|name| sum(&|n| n == name)).collect();
    parts.resize(NAMED, 0.0);
    parts.push(sum(&|n| !named.iter().any(|name| name == n)));
    parts
}

/// Names by place; those of no colour are empty.
fn legend(names: &[String], bars: &[Bar]) -> Vec<String> {
    let mut legend: Vec<String> = names.iter().take(NAMED).cloned().collect();
    legend.resize(NAMED, String::new());
    if bars.iter().any(|b| b.parts[NAMED] > 0.0) {
        legend.push(REST.into());
    }
    legend
}

/// Under icount a phase of one CPU contains the others' instructions: only one CPU alone tells.
fn tells(group: &Group<'_>, record: &Record) -> bool {
    group.mode != Mode::Icount || record.workers == 1
}

/// A bar for each row of `group` that has some of `values`, in parts.
fn stacked(
    html: &mut String,
    group: &Group<'_>,
    (title, axis): (&str, &str),
    values: impl Fn(&Record) -> Vec<(String, f64)>,
) {
    let some = |(_, values): &(_, Vec<(String, f64)>)| values.iter().any(|(_, v)| *v > 0.0);
    let rows = group.rows.iter().filter(|(_, r)| tells(group, r));
    let rows: Vec<_> = rows.map(|row| (row, values(row.1))).filter(some).collect();
    if rows.is_empty() {
        return;
    }
    let all = rows.iter().flat_map(|(_, values)| values);
    let mut names = by_size(all.map(|(n, v)| (n.as_str(), *v)).filter(|p| p.1 > 0.0));
    names.retain(|n| n != REST);
    let bar = |(row, values): &(&(&Row, &Record), Vec<(String, f64)>)| Bar {
        name: row_name(group, **row),
        parts: parts(&names, values),
    };
    let bars: Vec<Bar> = rows.iter().map(bar).collect();
    let plot = svg::bars(title, axis, &legend(&names, &bars), &bars);
    figure(html, title, &plot, caution(group.mode), &group.command());
}

fn phases(html: &mut String, group: &Group<'_>) {
    let title = format!("Where cycles go in {}, by phase", group.title());
    let axis = format!("{} per operation", group.mode.unit());
    stacked(html, group, (&title, &axis), |r| {
        let phases = r.phases.iter();
        phases.map(|p| (p.name.clone(), p.cycles_per_op)).collect()
    });
}

fn locks(html: &mut String, group: &Group<'_>) {
    let title = format!("Waiting for locks in {}, by class", group.title());
    let axis = format!("{} waited per operation", group.mode.unit());
    stacked(html, group, (&title, &axis), |r| {
        let per_op = |cycles: u64| cycles as f64 / r.ops.max(1) as f64;
        let locks = r.locks.iter();
        locks
            .map(|l| (l.class.clone(), per_op(l.wait_cycles)))
            .collect()
    });
}

/// Whether `row` has lost cycles to show, and no other row of its designs has more CPUs.
fn is_largest(rows: &[Row], row: &Row) -> bool {
    let cpus = |r: &Row| r.good().map_or(0, |r| r.topology.cpus);
    let kind = |r: &Row| {
        let words = r.cell.split(' ').filter(|w| !w.starts_with("cpus="));
        (words.collect::<Vec<_>>().join(" "), r.append.clone())
    };
    let more = |other: &&Row| cpus(other) > cpus(row) && kind(other) == kind(row);
    !row.c2c.is_empty() && !rows.iter().any(|other| more(&other))
}

/// The lines of memory that CPUs lost most to.
fn contended(html: &mut String, row: &Row) {
    let all: u64 = row.c2c.iter().map(|c| c.cycles).sum();
    let mut table = String::from(
        "<table><thead><tr><th>line of memory</th><th>share</th><th></th><th>misses</th><th>cycles lost</th><th>readers</th><th>writers</th><th>code</th></tr></thead><tbody>\n",
    );
    let share = |cycles: u64| cycles as f64 / all.max(1) as f64 * 100.0;
    let some = row.c2c.iter().filter(|c| share(c.cycles) >= LEAST);
    for c in some.take(SHOWN) {
        let share = share(c.cycles);
        let grouped = |n| kbench::table::grouped(n);
        let _ = writeln!(
            table,
            "<tr><td>{}</td><td class=\"n\">{share:.1} %</td><td class=\"share\"><i style=\"width:{share:.1}%\"></i></td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"code\">{}</td></tr>",
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
    use crate::report::tests::locks_row;
    use kbench::record::{LockStats, PhaseCycles};

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
            "alloc_pid",
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
        let mut names: Vec<String> = (0..NAMED + 3).map(|i| format!("p{i}")).collect();
        let mut values: Vec<(String, f64)> = names.iter().map(|n| (n.clone(), 1.0)).collect();
        values.push((REST.into(), 2.0));
        let got = parts(&names, &values);
        assert_eq!(
            (got.len(), got[NAMED], got.iter().sum::<f64>()),
            (NAMED + 1, 5.0, (NAMED + 5) as f64)
        );
        let bar = |parts| {
            [Bar {
                name: "a".into(),
                parts,
            }]
        };
        assert_eq!(legend(&names, &bar(got))[NAMED], REST);
        // The rest is grey even where there are few names, and is not named where there is none.
        names.truncate(1);
        let got = parts(&names, &values[..1]);
        assert_eq!((got.len(), got[0], got[NAMED]), (NAMED + 1, 1.0, 0.0));
        assert_eq!(
            legend(&names, &bar(got))
                .iter()
                .filter(|n| !n.is_empty())
                .count(),
            1
        );
    }
}
