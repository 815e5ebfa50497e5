//! The report: one page of Markdown, and the same figures as JSON lines.

use super::{
    Bench,
    rows::{self, Results},
};
use crate::paths;
use anyhow::{Context, Result};
use std::{fmt::Write, fs, path::Path};

/// Writes both and says where; `command` made them.
pub fn write(
    results: &Results,
    bench: &Bench,
    command: &str,
    page: &Path,
    lines: &Path,
) -> Result<()> {
    let text = markdown(results, bench, command);
    for (path, text) in [(page, text), (lines, json(results))] {
        save(path, &text)?;
    }
    Ok(())
}

/// Writes a file, making its directory, and says where.
pub fn save(path: &Path, text: &str) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", paths::shown(path));
    Ok(())
}

/// One object per system and operation.
fn json(results: &Results) -> String {
    let mut text = String::new();
    for (name, _, row) in results.rows() {
        for (system, figure) in results.systems.iter().zip(&row) {
            if let Some(figure) = figure {
                let object = serde_json::json!({
                    "schema": 1, "system": system, "mode": "icount", "operation": name, "instructions": figure,
                });
                let _ = writeln!(text, "{object}");
            }
        }
    }
    text
}

fn markdown(results: &Results, bench: &Bench, command: &str) -> String {
    let linux = results.systems.len() - 1;
    let mut text = String::from("# Beside Linux\n\n");
    let _ = writeln!(
        text,
        "Instructions per operation of one program (`tests/programs`, `ubench`) on Debian's Linux kernels and on Tine: the\n\
         same QEMU ({}.{}), machine ({}), initramfs and words, counting instructions (`--icount`). Linux boots with\n\
         `{}`.\n\n    {command}\n\n\
         makes this page again, and `docs/results/linux.jsonl`; the figures repeat to the digit.\n",
        bench.system.emulator.version.0,
        bench.system.emulator.version.1,
        bench.topology.describe(),
        bench.line
    );
    for index in 0..linux {
        if let Some((mean, nr)) = results.mean(index) {
            let above = results
                .rows()
                .filter(|(.., row)| Results::share(row, index).is_some_and(|s| s > 1.0))
                .count();
            let half = results
                .rows()
                .filter(|(.., row)| Results::share(row, index).is_some_and(|s| s > 0.5))
                .count();
            let _ = writeln!(
                text,
                "Of {}: {mean:.3} as the geometric mean of {nr} rows; {half} rows take more than half of Linux's \
                 instructions, {above} more than all.\n",
                results.systems[index]
            );
        }
    }
    text += "| operation |";
    results
        .systems
        .iter()
        .for_each(|system| text += &format!(" {system} |"));
    (0..linux).for_each(|i| text += &format!(" of {} |", rows::short(&results.systems[i])));
    text += "\n|---|";
    (0..2 * linux + 1).for_each(|_| text += "---:|");
    text.push('\n');
    for (_, what, row) in results.rows() {
        text += &format!("| {what} |");
        row.iter()
            .for_each(|f| text += &format!(" {} |", f.map_or("-".into(), kbench::table::grouped)));
        let shares = (0..linux).map(|i| Results::share(&row, i));
        shares.for_each(|s| text += &s.map_or(" - |".into(), |s| format!(" {s:.2} |")));
        text.push('\n');
    }
    text
}
