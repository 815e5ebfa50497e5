//! The kernel's benchmark records, in a table for people.

use comfy_table::{CellAlignment, Table, TableStyle};
use kbench::Record;

/// Prints one row per record and says what lines are no records. Returns whether every record is clean: no errors, no
/// leaks, no line that is no record.
pub fn print(lines: &str) -> bool {
    let (records, bad) = read(lines);
    if !records.is_empty() {
        println!();
        table(&records)
            .lines()
            .for_each(|l| println!("{}", l.trim()));
        println!("figures per operation in {}", unit(&records));
    }
    bad.iter().for_each(|why| eprintln!("note: {why}"));
    bad.is_empty() && records.iter().all(Record::is_clean)
}

/// The records in `lines`, and what is wrong with the other lines.
fn read(lines: &str) -> (Vec<Record>, Vec<String>) {
    let (mut good, mut bad) = (vec![], vec![]);
    for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
        match Record::parse(line) {
            Ok(record) => good.push(record),
            Err(error) => bad.push(error.to_string()),
        }
    }
    (good, bad)
}

/// What the figures count; one machine has one mode.
fn unit(records: &[Record]) -> &'static str {
    records.first().map_or("", |r| r.mode.unit())
}

fn table(records: &[Record]) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header([
        "benchmark",
        "variants",
        "ops",
        "workers",
        "min",
        "p50",
        "p99",
        "max",
        "mean",
        "leaks",
    ]);
    for record in records {
        let variants: Vec<String> = record
            .variants
            .iter()
            .map(|s| format!("{}={}", s.name, s.value))
            .collect();
        let leaks = match (&record.leaks, record.errors) {
            (_, errors) if errors > 0 => format!("{errors} ERRORS"),
            (None, _) => "not checked".into(),
            (Some(leaks), _) if leaks.is_empty() => "none".into(),
            (Some(leaks), _) => format!("{} LEAKS", leaks.len()),
        };
        let c = &record.cycles;
        let numbers = [
            record.ops,
            record.workers.into(),
            c.min,
            c.p50,
            c.p99,
            c.max,
            c.mean as u64,
        ];
        let mut row = vec![record.benchmark.clone(), variants.join(" ")];
        row.extend(numbers.iter().map(|n| kbench::table::grouped(*n)));
        row.push(leaks);
        table.add_row(row);
    }
    for column in 2..=8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use kbench::{
        Histogram,
        record::{Leak, Mode, TopologyInfo},
    };

    fn record() -> Record {
        let mut histogram = Histogram::try_new().unwrap();
        histogram.record(12_345);
        let topology = TopologyInfo {
            cpus: 8,
            nodes: 4,
            name: "default".into(),
        };
        Record::new("fork", Mode::Icount, topology, &histogram)
    }

    #[test]
    fn a_row_per_record() {
        let lines = format!(
            "{}\r\n\n{}\n",
            record().to_json_line(),
            record().to_json_line()
        );
        let (records, bad) = read(&lines);
        assert_eq!((records.len(), bad.len()), (2, 0));
        let text = table(&records).to_string();
        assert!(text.contains("12,345"), "{text}");
        assert_eq!(unit(&records), "instructions");
        assert!(print(&lines));
    }

    #[test]
    fn leaks_errors_and_noise_are_failures() {
        let mut leaking = record();
        leaking.leaks = Some(vec![Leak {
            what: "pids".into(),
            before: 1,
            after: 2,
        }]);
        assert!(!print(&leaking.to_json_line()));
        let mut failing = record();
        failing.errors = 3;
        assert!(!print(&failing.to_json_line()));
        assert!(!print("{\"schema\":1,"));
        assert!(print(""));
    }
}
