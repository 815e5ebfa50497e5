//! The differential test: what the programs that test system calls print on Linux and here.
//!
//! Every check of `calls`, `sigtest`, `fpu` and `pie` prints a line with its name and whether it came out as expected; a
//! line that one system prints and another does not is a difference. Those that must be are in [`KNOWN`], with reasons.

use super::{Bench, Machinery, page};
use crate::{apt::Installer, paths};
use anyhow::{Result, ensure};
use std::{collections::BTreeMap, fmt::Write};

/// Checks that may differ: how the name begins, and why.
const KNOWN: &[(&str, &str)] = &[(
    "move_pages: not touched",
    "Of a page that was never touched Linux 6.1 says EFAULT; the manual says ENOENT, and so do later kernels, and we.",
)];

/// `cargo xtask compare calls`.
pub fn command(machinery: &Machinery, installer: &Installer) -> Result<()> {
    let mut bench = Bench::prepare(machinery, installer)?;
    // User space ends where it does on processors with four levels of page tables, as it does here.
    // First, since Linux forgets words that it does not know at the one that names the first process.
    bench.line.insert_str(0, "no5lvl ");
    let printed = bench.run(bench.initramfs()?, &[], None)?;
    let all: Vec<_> = printed
        .iter()
        .map(|p| (p.system.as_str(), checks(&p.console)))
        .collect();
    for (printed, (system, checks)) in printed.iter().zip(&all) {
        ensure!(
            !checks.is_empty(),
            "{system} checked nothing:\n{}",
            printed.console
        );
    }
    let Some(((_, tine), linux)) = all.split_last() else {
        return Ok(());
    };
    let mut text = header(&bench);
    let mut unknown = 0;
    for (system, checks) in linux {
        let found = differences(checks, tine);
        let _ = writeln!(
            text,
            "## {system}\n\n{} lines there, {} here, {} differences.\n",
            total(checks),
            total(tine),
            found.len()
        );
        for (line, there, here) in found {
            let reason = KNOWN
                .iter()
                .find(|(name, _)| line.contains(name))
                .map(|(_, reason)| *reason);
            unknown += usize::from(reason.is_none());
            let _ = writeln!(
                text,
                "- `{line}`: {there} there, {here} here. {}",
                reason.unwrap_or("**Unexplained.**")
            );
        }
    }
    println!("{text}");
    let directory = if machinery.save {
        paths::root().join("docs")
    } else {
        paths::target().join("compare")
    };
    page::save(&directory.join("linux-calls.md"), &text)?;
    ensure!(unknown == 0, "{unknown} differences that nobody explains");
    Ok(())
}

fn header(bench: &Bench) -> String {
    format!(
        "# The same calls on Linux\n\nThe programs of `tests/programs` that test system calls (`calls`, `sigtest`, `fpu`, `pie`) run on Debian's\n\
         kernels and on Tine, in the same QEMU on the same machine ({}); each check prints a line. A difference is a line\n\
         that one system prints more often than the other.\n\n    cargo xtask compare calls --save\n\n",
        bench.topology.describe()
    )
}

/// Lines of checks without their numbers, and how often each was printed.
fn checks(console: &str) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for line in console.lines() {
        let mut words = line.split(' ');
        let name: Option<String> = match words.next() {
            Some(verdict @ ("ok" | "skip"))
                if words.next().is_some_and(|n| n.parse::<u32>().is_ok()) =>
            {
                Some(format!("{verdict} {}", words.collect::<Vec<_>>().join(" ")))
            }
            Some("FAIL") => Some(line.to_string()),
            _ => None,
        };
        if let Some(name) = name {
            *all.entry(name).or_default() += 1;
        }
    }
    all
}

fn total(checks: &BTreeMap<String, usize>) -> usize {
    checks.values().sum()
}

/// Lines whose counts differ: the line, its count there and here.
fn differences<'a>(
    there: &'a BTreeMap<String, usize>,
    here: &'a BTreeMap<String, usize>,
) -> Vec<(&'a str, usize, usize)> {
    let lines: std::collections::BTreeSet<&String> = there.keys().chain(here.keys()).collect();
    let count = |of: &BTreeMap<String, usize>, line: &String| of.get(line).copied().unwrap_or(0);
    let rows = lines
        .into_iter()
        .map(|line| (line.as_str(), count(there, line), count(here, line)));
    rows.filter(|(_, there, here)| there != here).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_compared_without_numbers() {
        let there =
            checks("boot\nok 0 a\nok 1 b\nok 2 b\nskip 3 c: no such call\ncalls: 3 passed\n");
        let here = checks("ok 0 b\nok 1 a\nFAIL c: got 1 want 2\n");
        assert_eq!((total(&there), total(&here)), (4, 3));
        let found = differences(&there, &here);
        assert_eq!(
            found,
            [
                ("FAIL c: got 1 want 2", 0, 1),
                ("ok b", 2, 1),
                ("skip c: no such call", 1, 0)
            ]
        );
        assert!(differences(&there, &there).is_empty());
    }
}
