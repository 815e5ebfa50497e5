//! Two results files side by side: what differs, by how much, and whether that means anything.
//!
//! # What is compared
//! Of a cell that filled a window, and where all CPUs share one counter of instructions, cycles from begin to end per
//! operation; of others the mean cycles of an operation. Less is better in both.
//!
//! # When a difference means something
//! Each figure has a band. A figure of a mode that repeats to the digit has none of its own; simulated cycles have that
//! of the code's layout, which alone moves them. Otherwise it is the 95 % interval of the mean of repeated boots
//! (Student's t): what varies most is from boot to boot, so that the samples of a single boot tell nothing, and there is
//! no verdict on it. A cell is worse if it is slower by more than the threshold and the bands do not meet.

use super::results::Row;
use anyhow::{Result, bail, ensure};
use comfy_table::{CellAlignment, Table, TableStyle};
use kbench::{Record, record::Mode, table::grouped};

/// Moving code alone moves simulated figures of short windows by up to this part.
const LAYOUT: f64 = 0.07;
/// Two-sided 95 % of Student's t for 1, 2, ... degrees of freedom; beyond, [`T95_MORE`].
const T95: &[f64] = &[
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
];
const T95_MORE: f64 = 2.08;
/// Per cent by which a cell may be slower than its baseline, by the same compiler.
const BASELINE_THRESHOLD: f64 = 1.0;
/// And by another: it lays out and inlines in its own way, most of all where an operation is forty instructions.
const OTHER_COMPILER: f64 = 10.0;

/// A figure and how far to either side the true one may be; infinitely far where nobody knows.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Figure {
    value: f64,
    band: f64,
}

/// What a cell did between two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Same,
    Better,
    Worse,
}

/// A cell in both files.
#[derive(Debug)]
struct Pair {
    cell: String,
    a: Figure,
    b: Figure,
    percent: f64,
    change: Change,
}

/// Cycles per operation.
pub fn cycles_per_op(record: &Record) -> f64 {
    let shared = record.mode == Mode::Icount && record.workers > 1;
    if record.window.is_some() || shared {
        1e6 / record.ops_per_mcycle().max(f64::MIN_POSITIVE)
    } else {
        record.cycles.mean
    }
}

/// The figure of one cell's boots.
fn figure(records: &[&Record]) -> Option<Figure> {
    let values: Vec<f64> = records.iter().map(|r| cycles_per_op(r)).collect();
    let n = values.len() as f64;
    let first = *records.first()?;
    let value = values.iter().sum::<f64>() / n;
    let band = match first.mode {
        Mode::Icount => 0.0,
        Mode::Numasim => value * LAYOUT / 2.0,
        _ if values.len() > 1 => {
            let variance = values.iter().map(|v| (v - value).powi(2)).sum::<f64>() / (n - 1.0);
            T95.get(values.len() - 2).unwrap_or(&T95_MORE) * (variance / n).sqrt()
        }
        _ => f64::INFINITY,
    };
    Some(Figure { value, band })
}

/// A cell's name without the number of the boot.
fn without_repeat(cell: &str) -> &str {
    cell.split(" #").next().unwrap_or(cell)
}

/// The cells of `rows` in order, each with the records of its boots.
fn cells(rows: &[Row]) -> Vec<(&str, Vec<&Record>)> {
    let mut cells: Vec<(&str, Vec<&Record>)> = Vec::new();
    for row in rows {
        let (name, Some(record)) = (without_repeat(&row.cell), row.good()) else {
            continue;
        };
        match cells.iter_mut().find(|(n, _)| *n == name) {
            Some((_, records)) => records.push(record),
            None => cells.push((name, vec![record])),
        }
    }
    cells
}

fn pair(cell: &str, a: Figure, b: Figure, threshold: f64) -> Pair {
    let percent = if a.value == b.value {
        0.0
    } else {
        (b.value - a.value) / a.value.max(f64::MIN_POSITIVE) * 100.0
    };
    let apart = (b.value - a.value).abs() > a.band + b.band;
    let change = match apart && percent.abs() > threshold {
        false => Change::Same,
        true if percent > 0.0 => Change::Worse,
        true => Change::Better,
    };
    Pair {
        cell: cell.into(),
        a,
        b,
        percent,
        change,
    }
}

/// The cells in both, and those in one only.
fn pairs(a: &[Row], b: &[Row], threshold: f64) -> (Vec<Pair>, Vec<String>) {
    let (left, right) = (cells(a), cells(b));
    let (mut both, mut alone) = (vec![], vec![]);
    for (name, records) in &left {
        let other = right
            .iter()
            .find(|(n, _)| n == name)
            .and_then(|(_, r)| figure(r));
        match (figure(records), other) {
            (Some(a), Some(b)) => both.push(pair(name, a, b, threshold)),
            _ => alone.push(format!("{name}: only in the first")),
        }
    }
    let new = right
        .iter()
        .filter(|(n, _)| !left.iter().any(|(l, _)| l == n));
    alone.extend(new.map(|(n, _)| format!("{n}: only in the second")));
    (both, alone)
}

/// `--compare A B`: the table, and an error if a cell is worse, or failed in `b`.
///
/// # Errors
/// Something is worse, or nothing can be compared.
pub fn print(a: &[Row], b: &[Row], threshold: f64) -> Result<()> {
    if let (Some(x), Some(y)) = (a.first(), b.first()) {
        differ("by", &x.origin.compiler, &y.origin.compiler);
        differ("with the words", &x.append, &y.append);
    }
    ensure!(threshold >= 0.0, "--threshold {threshold}: not below 0");
    let (both, alone) = pairs(a, b, threshold);
    alone.iter().for_each(|line| eprintln!("note: {line}"));
    ensure!(!both.is_empty(), "the two have no cell in common");
    let mut table = new_table(&["cell", "first", "", "second", "", "difference", ""]);
    for p in &both {
        let verdict = match p.change {
            Change::Same if p.a.band.is_infinite() || p.b.band.is_infinite() => "one boot",
            Change::Same => "",
            Change::Better => "better",
            Change::Worse => "WORSE",
        };
        let band = |f: Figure| {
            if f.band.is_infinite() {
                "?".into()
            } else if f.band > 0.0 {
                format!("±{:.1}", f.band)
            } else {
                String::new()
            }
        };
        table.add_row([
            p.cell.clone(),
            format!("{:.1}", p.a.value),
            band(p.a),
            format!("{:.1}", p.b.value),
            band(p.b),
            format!("{:+.2} %", p.percent),
            verdict.into(),
        ]);
    }
    show(table, 1..=5);
    println!("cycles per operation: less is better; threshold {threshold} %");
    let count = |change| both.iter().filter(|p| p.change == change).count();
    let (worse, better) = (count(Change::Worse), count(Change::Better));
    println!("{} cells: {worse} worse, {better} better", both.len());
    let failed: Vec<&str> = b
        .iter()
        .filter(|r| r.error.is_some())
        .map(|r| r.cell.as_str())
        .collect();
    ensure!(
        failed.is_empty(),
        "failed in the second: {}",
        failed.join(", ")
    );
    if worse > 0 {
        bail!("{worse} cells are worse by more than {threshold} %");
    }
    Ok(())
}

/// Says what differs between two files as a whole.
fn differ(what: &str, a: &str, b: &str) {
    let name = |text: &str| match text {
        "" => "none".to_string(),
        text => text.to_string(),
    };
    if a != b {
        eprintln!(
            "note: the first is {what} {}, the second {}",
            name(a),
            name(b)
        );
    }
}

/// `--compare A B --exact`: the same to the digit, where the mode repeats.
///
/// # Errors
/// A record differs, is missing or failed, or nothing repeats.
pub fn exact(a: &[Row], b: &[Row]) -> Result<()> {
    let repeats = |r: &&Row| {
        let mode = r.record.as_ref().map(|r| r.mode);
        r.error.is_some() || matches!(mode, Some(Mode::Icount | Mode::Numasim))
    };
    let (left, right): (Vec<&Row>, Vec<&Row>) = (
        a.iter().filter(repeats).collect(),
        b.iter().filter(repeats).collect(),
    );
    let mut wrong = Vec::new();
    for x in &left {
        match right.iter().find(|y| y.cell == x.cell) {
            _ if x.good().is_none() => wrong.push(format!("{}: failed in the first", x.cell)),
            None => wrong.push(format!("{}: only in the first", x.cell)),
            Some(y) if y.good().is_none() => {
                wrong.push(format!("{}: failed in the second", x.cell));
            }
            Some(y) if x.record != y.record => wrong.push(format!("{}: other figures", x.cell)),
            Some(y) if x.c2c != y.c2c => wrong.push(format!("{}: other lost cycles", x.cell)),
            Some(_) => {}
        }
    }
    let new = right
        .iter()
        .filter(|y| !left.iter().any(|x| x.cell == y.cell));
    wrong.extend(new.map(|y| format!("{}: only in the second", y.cell)));
    let skipped = a.len() - left.len();
    if skipped > 0 {
        println!("{skipped} cells of modes that do not repeat are left out");
    }
    wrong.iter().for_each(|line| println!("{line}"));
    ensure!(!left.is_empty(), "nothing that repeats");
    ensure!(
        wrong.is_empty(),
        "{} of {} records differ",
        wrong.len(),
        left.len()
    );
    println!("{} records, equal to the digit", left.len());
    Ok(())
}

/// `--check-baseline`.
///
/// # Errors
/// A cell is slower than its baseline, or has none.
pub fn with_baseline(old: &[Row], new: &[Row]) -> Result<()> {
    let compiler = |rows: &[Row]| {
        rows.first()
            .map(|r| r.origin.compiler.clone())
            .unwrap_or_default()
    };
    let (then, now) = (compiler(old), compiler(new));
    let origin = old.first().map(|r| &r.origin);
    if let Some(o) = origin {
        println!(
            "baseline of {}, commit {}, by {}",
            o.date, o.commit, o.compiler
        );
    }
    let changed = |c: &str| c.split_once('=').is_some();
    ensure!(
        !changed(&then),
        "the baseline is of a build whose profile was changed ({then}): make it anew by cargo xtask bench --save-baseline"
    );
    if changed(&now) {
        table(new);
        println!("not compared: this build's profile was changed ({now})");
        return Ok(());
    }
    let threshold = if then == now {
        BASELINE_THRESHOLD
    } else {
        OTHER_COMPILER
    };
    if then != now {
        println!("the baseline is by {then}, this is by {now}: {threshold} % are allowed");
    }
    let (_, alone) = pairs(old, new, threshold);
    print(old, new, threshold)?;
    ensure!(
        alone.is_empty(),
        "baseline and sweep have different cells (cargo xtask bench --save-baseline)"
    );
    Ok(())
}

/// The rows as a table.
pub fn table(rows: &[Row]) {
    let mut table = new_table(&[
        "cell",
        "ops",
        "p50",
        "p99",
        "cycles/op",
        "ops/Mcycle",
        "seconds",
    ]);
    for row in rows {
        let Some(r) = row.good() else {
            table.add_row([row.cell.as_str(), "FAILED"]);
            continue;
        };
        table.add_row([
            row.cell.clone(),
            grouped(r.ops),
            grouped(r.cycles.p50),
            grouped(r.cycles.p99),
            format!("{:.1}", cycles_per_op(r)),
            format!("{:.1}", r.ops_per_mcycle()),
            format!("{:.1}", row.seconds),
        ]);
    }
    show(table, 1..=6);
}

/// A table with these heads, in the style of all.
pub fn new_table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header(heads.iter().copied());
    table
}

/// Prints a table, its columns of numbers to the right.
pub fn show(mut table: Table, numbers: std::ops::RangeInclusive<usize>) {
    for column in numbers {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().for_each(|l| println!("{}", l.trim_end()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::tests::row;

    fn change(a: &Row, b: &Row, threshold: f64) -> Change {
        let (both, alone) = pairs(std::slice::from_ref(a), std::slice::from_ref(b), threshold);
        assert!(alone.is_empty() && both.len() == 1);
        both[0].change
    }

    #[test]
    fn a_planted_regression_is_caught() {
        let old: Vec<Row> = ["fork", "exec", "thread"]
            .iter()
            .map(|n| row(n, Mode::Icount, 10_000))
            .collect();
        let mut new = old.clone();
        assert!(print(&old, &new, 3.0).is_ok());
        new[1] = row("exec", Mode::Icount, 10_500);
        let error = print(&old, &new, 3.0).unwrap_err().to_string();
        assert!(error.contains("1 cells are worse"), "{error}");
        assert!(print(&old, &new, 5.0).is_ok(), "5 % are 5 %");
        // The other way round it is an improvement.
        assert!(print(&new, &old, 3.0).is_ok());
        assert_eq!(change(&new[1], &old[1], 3.0), Change::Better);
    }

    #[test]
    fn instructions_have_no_band_and_simulation_has_one() {
        let of = |mode, cycles| row("fork", mode, cycles);
        assert_eq!(
            change(&of(Mode::Icount, 10_000), &of(Mode::Icount, 10_101), 1.0),
            Change::Worse
        );
        assert_eq!(
            change(&of(Mode::Icount, 10_000), &of(Mode::Icount, 10_099), 1.0),
            Change::Same
        );
        assert_eq!(
            change(&of(Mode::Numasim, 10_000), &of(Mode::Numasim, 10_500), 3.0),
            Change::Same
        );
        assert_eq!(
            change(&of(Mode::Numasim, 10_000), &of(Mode::Numasim, 10_900), 3.0),
            Change::Worse
        );
    }

    #[test]
    fn repeated_boots_make_the_band() {
        let boots = |values: [u64; 3]| -> Vec<Row> {
            let name = |i: usize| {
                if i == 0 {
                    "fork tcg".to_string()
                } else {
                    format!("fork tcg #{}", i + 1)
                }
            };
            values
                .iter()
                .enumerate()
                .map(|(i, v)| row(&name(i), Mode::Tcg, *v))
                .collect()
        };
        let (both, alone) = pairs(&boots([900, 1000, 1100]), &boots([950, 1050, 1150]), 3.0);
        assert!(
            alone.is_empty() && both.len() == 1,
            "three boots are one cell"
        );
        // A standard deviation of 100 over three boots: 4.303 * 100 / sqrt(3).
        assert!((both[0].a.band - 248.43).abs() < 0.01 && both[0].a.value == 1000.0);
        assert_eq!((both[0].percent, both[0].change), (5.0, Change::Same));
        let (both, _) = pairs(&boots([995, 1000, 1005]), &boots([1045, 1050, 1055]), 3.0);
        assert_eq!(both[0].change, Change::Worse);
    }

    #[test]
    fn one_boot_is_no_verdict() {
        let of = |mode, cycles| [row("fork", mode, cycles)];
        assert!(print(&of(Mode::Tcg, 1000), &of(Mode::Tcg, 3000), 3.0).is_ok());
        assert!(print(&of(Mode::Icount, 1000), &of(Mode::Icount, 3000), 3.0).is_err());
    }

    #[test]
    fn equal_to_the_digit() {
        let a = [
            row("fork", Mode::Icount, 10),
            row("exec", Mode::Numasim, 10),
        ];
        assert!(exact(&a, &a).is_ok());
        let says = |b: &[Row], word: &str| {
            let error = exact(&a, b).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        says(&a[..1], "1 of 2");
        let mut b = a.clone();
        b[1].record.as_mut().unwrap().cycles.max += 1;
        says(&b, "1 of 2");
        b[0].error = Some("panic".into());
        says(&b, "2 of 2");
        // What does not repeat does not count, in either.
        let tcg = |cycles| [a[0].clone(), row("storm", Mode::Tcg, cycles)];
        assert!(exact(&tcg(1), &tcg(2)).is_ok());
        assert!(exact(&tcg(1)[1..], &tcg(1)[1..]).is_err());
    }

    #[test]
    fn windows_compare_throughput() {
        let mut a = row("locks", Mode::Icount, 77);
        let record = a.record.as_mut().unwrap();
        let window = kbench::record::Window {
            ramp: 1,
            cycles: 1_000_000,
            ops_least: 1,
            ops_most: 1,
        };
        (record.window, record.elapsed_cycles, record.ops) = (Some(window), 1_000_000, 2_000);
        assert_eq!(cycles_per_op(record), 500.0);
    }

    #[test]
    fn cells_that_failed_or_are_missing() {
        let good = row("fork", Mode::Icount, 10);
        let mut bad = good.clone();
        bad.error = Some("panic".into());
        let both = [good.clone(), row("exec", Mode::Icount, 10)];
        let error = print(&both, &[bad, both[1].clone()], 3.0)
            .unwrap_err()
            .to_string();
        assert!(error.contains("failed in the second: fork"), "{error}");
        assert!(
            print(&[good], &[row("exec", Mode::Icount, 10)], 3.0).is_err(),
            "nothing in common"
        );
    }

    #[test]
    fn baselines() {
        let with = |compiler: &str, cycles| {
            let mut r = row("fork", Mode::Icount, cycles);
            r.origin.compiler = compiler.into();
            vec![r]
        };
        assert!(with_baseline(&with("1.91", 1000), &with("1.91", 1009)).is_ok());
        assert!(with_baseline(&with("1.91", 1000), &with("1.91", 1011)).is_err());
        assert!(
            with_baseline(&with("1.91", 1000), &with("1.92", 1011)).is_ok(),
            "another compiler"
        );
        assert!(with_baseline(&with("1.91", 1000), &with("1.92", 1101)).is_err());
        assert!(
            with_baseline(&with("1.91", 1000), &with("1.91 LTO=off", 2000)).is_ok(),
            "not comparable"
        );
        assert!(
            with_baseline(&with("1.91 LTO=off", 1000), &with("1.91", 1000)).is_err(),
            "no baseline"
        );
        let two = [with("1.91", 1000), vec![row("exec", Mode::Icount, 1)]].concat();
        assert!(
            with_baseline(&two, &with("1.91", 1000)).is_err(),
            "a cell is gone"
        );
    }
}
