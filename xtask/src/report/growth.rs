//! What an operation costs by the number of possible CPUs: a table and a plot for each operation.
//!
//! A machine may have more CPUs to come than it has (`possible=N`), and some designs pay for each of them. Cells with that
//! word differ by it as others do by their number of CPUs.

use super::{Group, chosen, svg::Series};
use crate::bench::{compare, results::Row};
use kbench::{Record, record::Mode};

/// The word, and the one that says which operation it is.
const POSSIBLE: &str = "possible";
const OPERATION: &str = "mm_op";

fn value<'a>(row: &'a Row, word: &str) -> Option<&'a str> {
    let mut pairs = chosen(row).into_iter();
    pairs.find(|(name, _)| *name == word).map(|(_, v)| v)
}

/// The possible CPUs of a row that is about them.
fn possible(row: &Row) -> Option<f64> {
    value(row, POSSIBLE)?.parse().ok()
}

/// Whether a row is shown here and nowhere else.
pub fn is_about(row: &Row) -> bool {
    possible(row).is_some()
}

/// One operation: a line per design, instructions by possible CPUs.
pub struct Growth {
    /// Of the operation.
    pub title: String,
    /// The line that makes it.
    pub command: String,
    pub series: Vec<Series>,
}

/// All operations of a group, in the order of its rows; none if it is not about possible CPUs.
pub fn of(group: &Group<'_>) -> Vec<Growth> {
    let mut all: Vec<Growth> = Vec::new();
    if group.mode != Mode::Icount || group.detail {
        return all;
    }
    for (row, record) in group.rows.iter().filter(|(_, r)| r.workers == 1) {
        let Some(x) = possible(row) else { continue };
        let operation = value(row, OPERATION).unwrap_or(&record.benchmark);
        let title = format!("{operation} by possible CPUs");
        let place = all.iter().position(|g| g.title == title);
        let place = place.unwrap_or_else(|| {
            all.push(Growth {
                command: command(group, operation),
                title,
                series: vec![],
            });
            all.len() - 1
        });
        add(&mut all[place].series, row, record, x);
    }
    for growth in &mut all {
        let by_x = |a: &(f64, f64), b: &(f64, f64)| a.0.total_cmp(&b.0);
        growth
            .series
            .iter_mut()
            .for_each(|s| s.points.sort_by(by_x));
        // The dearest first, as the table is read.
        let last = |s: &Series| s.points.last().map_or(0.0, |p| p.1);
        growth.series.sort_by(|a, b| last(b).total_cmp(&last(a)));
    }
    all.retain(|g| g.series.iter().any(|s| s.points.len() > 1));
    all
}

fn add(series: &mut Vec<Series>, row: &Row, record: &Record, x: f64) {
    let skip = [POSSIBLE, OPERATION];
    let words = chosen(row)
        .into_iter()
        .filter(|(word, _)| !skip.contains(word));
    let name: Vec<&str> = words.map(|(_, value)| value).collect();
    let (name, point) = (name.join(" "), (x, record.cycles.p50 as f64));
    match series.iter_mut().find(|s| s.name == name) {
        Some(s) => s.points.push(point),
        None => series.push(Series {
            name,
            points: vec![point],
        }),
    }
}

/// The line that makes the rows of an operation: every word with all of its values.
fn command(group: &Group<'_>, operation: &str) -> String {
    let mut words: Vec<(&str, Vec<&str>)> = Vec::new();
    let of_operation =
        |row: &&&(&Row, &Record)| value(row.0, OPERATION).is_none_or(|o| o == operation);
    for (row, _) in group.rows.iter().filter(|row| of_operation(&row)) {
        for (word, value) in chosen(row) {
            match words.iter_mut().find(|(w, _)| *w == word) {
                Some((_, values)) if values.contains(&value) => {}
                Some((_, values)) => values.push(value),
                None => words.push((word, vec![value])),
            }
        }
    }
    let variants = words
        .iter()
        .map(|(word, values)| format!(" --variant {word}={}", values.join(",")));
    group.command() + &variants.collect::<String>()
}

/// The tables of a group, in the terminal.
pub fn tables(group: &Group<'_>) {
    for growth in of(group) {
        let counts = super::counts(&growth.series);
        println!("\n{}: instructions, median", growth.title);
        let heads = std::iter::once(String::new()).chain(counts.iter().map(u32::to_string));
        let heads: Vec<String> = heads.chain([String::from("last : first")]).collect();
        let mut table = compare::new_table(&heads.iter().map(String::as_str).collect::<Vec<_>>());
        for s in &growth.series {
            let at = |count: &u32| s.points.iter().find(|p| p.0 as u32 == *count);
            let shown =
                |count| at(count).map_or(String::new(), |p| kbench::table::grouped(p.1 as u64));
            let ends = s.points.first().zip(s.points.last());
            let ratio = ends.map_or(String::new(), |(a, b)| format!("{:.2}", b.1 / a.1));
            let cells = counts.iter().map(shown).chain([ratio]);
            table.add_row(std::iter::once(s.name.clone()).chain(cells));
        }
        compare::show(table, 1..=counts.len() + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::super::groups;
    use super::*;
    use crate::bench::results::tests::row;

    fn cell(op: &str, mm: &str, possible: u32, p50: u64) -> Row {
        let words = format!("mm_op={op} mm={mm} possible={possible}");
        let mut row = row(
            &format!("mm icount {words} laptop cpus=1"),
            Mode::Icount,
            p50,
        );
        row.record.as_mut().unwrap().cycles.p50 = p50;
        row.record.as_mut().unwrap().workers = 1;
        row
    }

    #[test]
    fn a_line_per_design_for_each_operation() {
        let rows = [
            cell("fork", "best", 384, 100),
            cell("fork", "best", 1, 100),
            cell("fork", "separate", 1, 120),
            cell("fork", "separate", 384, 480),
            cell("exec", "best", 1, 80),
        ];
        assert!(rows.iter().all(is_about));
        let growths = of(&groups(&rows)[0]);
        let variants = " --variant mm_op=fork --variant mm=best,separate --variant possible=384,1";
        assert!(
            growths[0].command.ends_with(variants),
            "{}",
            growths[0].command
        );
        // exec has one point: nothing grows there.
        assert_eq!(growths.len(), 1);
        let lines: Vec<_> = growths[0]
            .series
            .iter()
            .map(|s| (s.name.as_str(), s.points.clone()))
            .collect();
        assert_eq!(
            lines,
            [
                ("separate", vec![(1.0, 120.0), (384.0, 480.0)]),
                ("best", vec![(1.0, 100.0), (384.0, 100.0)])
            ]
        );
    }
}
