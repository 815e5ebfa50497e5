//! From lines of memory and addresses of code to names: what CPUs wait for each other at.

use super::results::Contended;
use crate::{console::Symbols, numasim::Simulation};
use std::collections::BTreeMap;

/// Lines kept with a result.
const KEPT: usize = 24;
/// Where the kernel sees all memory.
const DIRECT_MAP: std::ops::Range<u64> = 0xffff_8880_0000_0000..0xffff_c880_0000_0000;
/// Where its image is.
const IMAGE: u64 = 0xffff_ffff_8000_0000;
/// Code of these says how, not who: the first caller outside them counts.
const HELPERS: &[&str] = &["ksync", "core", "alloc", "spin"];

/// The dearest lines of all windows, those of one object of the image or of one function's objects together.
pub fn contended(simulation: &Simulation, symbols: &mut Symbols) -> Vec<Contended> {
    let mut all: BTreeMap<(String, String), Contended> = BTreeMap::new();
    for line in simulation.windows.iter().flat_map(|w| &w.lines) {
        if !line.conflict || line.loss.cycles() == 0 {
            continue;
        }
        let code = line
            .code
            .first()
            .map_or(String::new(), |c| caller(symbols, c.at));
        let what = what(symbols, line.address);
        let entry = all
            .entry((what.clone(), code.clone()))
            .or_insert(Contended {
                what,
                readers: 0,
                writers: 0,
                misses: 0,
                cycles: 0,
                code,
            });
        entry.readers = entry.readers.max(line.readers);
        entry.writers = entry.writers.max(line.writers);
        entry.misses += line.loss.misses;
        entry.cycles += line.loss.cycles();
    }
    let mut lines: Vec<Contended> = all.into_values().collect();
    lines.sort_by(|a, b| {
        b.cycles
            .cmp(&a.cycles)
            .then_with(|| (&a.what, &a.code).cmp(&(&b.what, &b.code)))
    });
    lines.truncate(KEPT);
    lines
}

/// What lies at a virtual address.
fn what(symbols: &mut Symbols, address: u64) -> String {
    match address {
        a if a >= IMAGE => symbols
            .object(a)
            .unwrap_or_else(|| format!("static {a:#x}")),
        a if DIRECT_MAP.contains(&a) => "allocated memory".into(),
        a if a >= 1 << 63 => "per-CPU or stack memory".into(),
        _ => "a program's memory".into(),
    }
}

/// The function at `address` that is no helper.
fn caller(symbols: &mut Symbols, address: u64) -> String {
    let frames = symbols.functions(address);
    let helper = |name: &String| {
        let path = name.trim_start_matches(['<', '&']);
        HELPERS.iter().any(|h| {
            path.strip_prefix(h)
                .is_some_and(|rest| rest.starts_with("::"))
        })
    };
    let chosen = frames.iter().find(|f| !helper(f)).or(frames.last());
    chosen.map_or_else(
        || format!("{address:#x}"),
        |name| without_hash(name).to_string(),
    )
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
        assert_eq!(
            what(&mut none, 0xffff_ffff_8012_3440),
            "static 0xffffffff80123440"
        );
        assert_eq!(what(&mut none, 0xffff_8880_0000_1000), "allocated memory");
        assert_eq!(what(&mut none, 0x40_0000), "a program's memory");
        assert_eq!(caller(&mut none, 0x1234), "0x1234");
    }
}
