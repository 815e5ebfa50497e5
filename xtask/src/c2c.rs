//! From lines of memory and addresses of code to names: what CPUs wait for each other at.
//!
//! The simulator counts by address. What the kernel's image holds has a symbol; what it allocated, the guest named when
//! the window was over; code has a function and a line of source.

use crate::{
    bench::results::Contended,
    console::Symbols,
    numasim::{Line, Loss, Simulation, Window},
};
use comfy_table::{CellAlignment, Table, TableStyle};
use kbench::table::grouped;
use std::collections::BTreeMap;

/// Lines kept with a result.
const KEPT: usize = 24;
/// Rows of a printed table.
const SHOWN: usize = 16;
/// Where the kernel sees all memory.
const DIRECT_MAP: std::ops::Range<u64> = 0xffff_8880_0000_0000..0xffff_c880_0000_0000;
/// Where its image is.
const IMAGE: u64 = 0xffff_ffff_8000_0000;
/// Bytes of a line.
const LINE: u64 = 64;
/// How the kernel names a place in a lock's queue.
const QUEUE_NODE: &str = "queue node of";
/// Code of these files says how, not who: the first caller outside them counts.
const HELPERS: &[&str] = &["kernel/crates/ksync/", "/rustlib/src/", "/rustc/", "spin-"];

/// A window's lines, with what was spun on the nodes of a lock's queue counted where the lock is: who waits in the queue
/// has put itself there by a locked access to the lock's word, its last.
fn without_queues(window: &Window) -> Vec<Line> {
    let mut lines = window.lines.clone();
    let places: BTreeMap<u64, usize> = lines.iter().enumerate().map(|(i, l)| (l.line, i)).collect();
    for (node, line) in window.lines.iter().enumerate() {
        if !line.name.as_ref().is_some_and(|n| n.contains(QUEUE_NODE)) {
            continue;
        }
        for behind in &line.behind {
            if let Some(&word) = places.get(&behind.line) {
                lines[node].loss.spinning -= behind.cycles;
                lines[word].loss.spinning += behind.cycles;
            }
        }
    }
    lines
}

/// The dearest lines of all windows, those of one object of the image or of one function's objects together.
pub fn contended(simulation: &Simulation, symbols: &mut Symbols) -> Vec<Contended> {
    let lines: Vec<Line> = simulation.windows.iter().flat_map(without_queues).collect();
    let mut lines = merged(&lines, symbols, |line| line.loss.cycles() > 0);
    lines.truncate(KEPT);
    lines
}

/// Every line that two CPUs touched and one wrote, by name and by the code that lost most to it.
pub fn conflicts(simulation: &Simulation, symbols: &mut Symbols) -> Vec<Contended> {
    let lines = simulation.windows.iter().flat_map(|w| &w.lines);
    merged(lines, symbols, |_| true)
}

/// Lines in conflict by what they are and the function that lost most to them, dearest first.
fn merged<'a>(
    lines: impl IntoIterator<Item = &'a Line>,
    symbols: &mut Symbols,
    wanted: impl Fn(&Line) -> bool,
) -> Vec<Contended> {
    let mut all: BTreeMap<(String, String), (u64, Contended)> = BTreeMap::new();
    for line in lines {
        if !line.conflict || !wanted(line) {
            continue;
        }
        let (function, place) = who(symbols, line);
        let (what, cycles) = (what(symbols, line), line.loss.cycles());
        let new = || {
            (
                0,
                Contended {
                    what: what.clone(),
                    ..Contended::default()
                },
            )
        };
        let (dearest, entry) = all
            .entry((what.clone(), function.clone()))
            .or_insert_with(new);
        if cycles >= *dearest {
            *dearest = cycles;
            entry.code = spelled(&function, &place);
        }
        entry.readers = entry.readers.max(line.readers);
        entry.writers = entry.writers.max(line.writers);
        entry.nodes = entry.nodes.max(line.nodes);
        entry.misses += line.loss.misses;
        entry.cycles += cycles;
    }
    let mut lines: Vec<Contended> = all.into_values().map(|(_, line)| line).collect();
    lines.sort_by(|a, b| {
        b.cycles
            .cmp(&a.cycles)
            .then_with(|| (&a.what, &a.code).cmp(&(&b.what, &b.code)))
    });
    lines
}

/// The code that lost most to a line. Of a lock the code that waits in it is always the same: the dearest that is not.
fn who(symbols: &mut Symbols, line: &Line) -> (String, String) {
    let places: Vec<_> = line.code.iter().map(|c| place(symbols, c.at)).collect();
    let chosen = places.iter().find(|(_, file)| !is_helper(file));
    chosen.or(places.first()).cloned().unwrap_or_default()
}

/// A function and where it is, for people.
fn spelled(function: &str, place: &str) -> String {
    match place.is_empty() {
        true => function.to_string(),
        false => format!("{function} ({place})"),
    }
}

/// Prints which lines of memory cost most in each window, and which code waited.
pub fn print(simulation: &Simulation, symbols: &mut Symbols) {
    for window in &simulation.windows {
        print_window(window, symbols);
    }
}

fn print_window(window: &Window, symbols: &mut Symbols) {
    let (all, lost) = (window.cycles * window.cpus, window.loss.cycles());
    println!();
    println!(
        "window {}: {} of {} cycles were waiting for memory and for each other ({})",
        window.number,
        grouped(lost),
        grouped(all),
        share(lost, all)
    );
    let lines = merged(&without_queues(window), symbols, |line| {
        line.loss.cycles() > 0
    });
    let head = [
        "waiting",
        "cycles",
        "misses",
        "read by",
        "written by",
        "nodes",
        "what",
        "by code",
    ];
    let rows = lines.iter().take(SHOWN).map(|c| {
        let numbers = [c.cycles, c.misses, c.readers, c.writers, c.nodes].map(grouped);
        let names = [c.what.clone(), c.code.clone()];
        [&[share(c.cycles, lost)][..], &numbers, &names].concat()
    });
    show(&head, 6, rows);
    let others: u64 = lines.iter().skip(SHOWN).map(|c| c.cycles).sum();
    let shared: u64 = lines.iter().map(|c| c.cycles).sum();
    println!(
        "other shared lines: {}; lines of one CPU, not shared: {}",
        share(others, lost),
        share(lost.saturating_sub(shared), lost)
    );
    println!();
    let rows = code(window, symbols);
    let rows = rows.iter().take(SHOWN).map(|(place, loss)| {
        let numbers = [loss.cycles(), loss.misses].map(grouped);
        [
            &[share(loss.cycles(), lost)][..],
            &numbers,
            std::slice::from_ref(place),
        ]
        .concat()
    });
    show(&["waiting", "cycles", "misses", "code"], 3, rows);
}

fn share(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

/// A table whose first columns are numbers.
fn show(head: &[&str], numbers: usize, rows: impl Iterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header(head);
    rows.for_each(|row| _ = table.add_row(row));
    for column in 0..numbers {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!();
    table.lines().for_each(|l| println!("{}", l.trim_end()));
}

/// Places in the source that lost cycles to any of the lines that the simulator named, most first.
fn code(window: &Window, symbols: &mut Symbols) -> Vec<(String, Loss)> {
    let mut all: BTreeMap<u64, Loss> = BTreeMap::new();
    for code in window.lines.iter().flat_map(|l| &l.code) {
        all.entry(code.at).or_default().add(&code.loss);
    }
    let mut places: BTreeMap<String, Loss> = BTreeMap::new();
    for (at, loss) in all {
        let (function, place) = place(symbols, at);
        places
            .entry(spelled(&function, &place))
            .or_default()
            .add(&loss);
    }
    let mut places: Vec<_> = places.into_iter().collect();
    places.sort_by_key(|(_, loss)| core::cmp::Reverse(loss.cycles()));
    places
}

/// What lies at a line: a symbol of the image, or what the guest said.
fn what(symbols: &mut Symbols, line: &Line) -> String {
    if line.address >= IMAGE {
        let start = line.address & !(LINE - 1);
        let mut names = symbols.objects_in(start..start + LINE);
        if let Some(touched) = symbols.object(line.address) {
            names.retain(|n| *n != touched);
            names.insert(0, touched);
        }
        return match names.as_slice() {
            [] => format!("static {:#x}", line.address),
            [name] => name.clone(),
            [name, others @ ..] => format!("{name} (on its line: {})", others.join(", ")),
        };
    }
    match (line.address, &line.name) {
        (_, Some(name)) => name.clone(),
        (a, _) if DIRECT_MAP.contains(&a) => "allocated memory".into(),
        (a, _) if a >= 1 << 63 => "per-CPU or stack memory".into(),
        _ => "a program's memory".into(),
    }
}

/// The function at `address` that is no helper, and the line of its source.
fn place(symbols: &mut Symbols, address: u64) -> (String, String) {
    let frames = symbols.frames(address);
    let split = |frame: &String| match frame.split_once(" at ") {
        Some((name, place)) => (plain(name).to_string(), place.to_string()),
        None => (plain(frame).to_string(), String::new()),
    };
    let places: Vec<_> = frames.iter().map(split).collect();
    let helper = |file: &str| HELPERS.iter().any(|h| file.contains(h));
    let chosen = places
        .iter()
        .find(|(_, file)| !helper(file))
        .or(places.last());
    chosen
        .cloned()
        .unwrap_or_else(|| (format!("{address:#x}"), String::new()))
}

fn is_helper(file: &str) -> bool {
    HELPERS.iter().any(|h| file.contains(h))
}

/// A function's name without its hash and what it is generic over.
fn plain(name: &str) -> &str {
    let name = without_hash(name);
    let end = name.find('<').filter(|at| *at > 0);
    end.map_or(name, |at| &name[..at])
}

/// `path::function` of `path::function::h0123456789abcdef`.
pub fn without_hash(name: &str) -> &str {
    match name.rsplit_once("::h") {
        Some((path, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            path
        }
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_no_names() {
        assert_eq!(without_hash("a::b::h0123456789abcdef"), "a::b");
        assert_eq!(without_hash("a::hello"), "a::hello");
        assert_eq!(without_hash("a::h0123"), "a::h0123");
    }

    #[test]
    fn addresses_without_symbols() {
        let mut none = Symbols::of(std::path::Path::new("/no/such/file"));
        let mut named = |address, name: Option<&str>| {
            let line = Line {
                line: 0,
                address,
                readers: 1,
                writers: 1,
                nodes: 1,
                conflict: true,
                loss: Loss::default(),
                code: vec![],
                behind: vec![],
                name: name.map(str::to_string),
            };
            what(&mut none, &line)
        };
        assert_eq!(
            named(0xffff_ffff_8012_3440, Some("ignored")),
            "static 0xffffffff80123440"
        );
        assert_eq!(named(0xffff_8880_0000_1000, None), "allocated memory");
        assert_eq!(
            named(0xffff_8880_0000_1000, Some("task +0x40")),
            "task +0x40"
        );
        assert_eq!(named(0x40_0000, None), "a program's memory");
        assert_eq!(place(&mut none, 0x1234), ("0x1234".into(), String::new()));
        assert_eq!(spelled("fork", "a.rs:3"), "fork (a.rs:3)");
        assert_eq!(
            (plain("a::f<u8>"), plain("<T as U>::f")),
            ("a::f", "<T as U>::f")
        );
    }
}
