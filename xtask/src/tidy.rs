//! The rules of this repository that no compiler checks, as one test.
//!
//! * A crate imports only from floors below its own, and nothing imports the kernel.
//! * Kernel crates are `no_std` always; policy crates forbid unsafe code; packages take the workspace's lints.
//! * Unsafe blocks and impls have a SAFETY comment within the five lines above.
//! * A Rust file begins by saying what it is, and ends before line 700.
//! * No work is left lying about, and no file knows the paths of one machine.
//! * Every package has a README.

use crate::paths;
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
};
use xshell::{Shell, cmd};

/// Crates and their floors; each imports only from below.
const FLOORS: &[(u32, &[&str])] = &[
    (1, &["ksync", "kparam", "kstat", "kbench", "bundle"]),
    (2, &["topology", "page_alloc"]),
    (3, &["percpu"]),
    (4, &["slab"]),
    (5, &["xarray", "interval_tree"]),
    (6, &["pid", "rmap"]),
    (7, &["mm", "vfs", "sched"]),
    (8, &["task"]),
    (9, &["kernel", "boot"]),
    // On the host, and above everything; nothing may depend on these.
    (10, &["xtask", "tests"]),
    (11, &["programs", "numasim"]),
];
/// Crates without a line of unsafe code.
const POLICY: &[&str] = &["pid", "task", "sched", "kparam", "kstat", "kbench"];
/// Longest file, in lines.
const MAX_LINES: usize = 700;
/// How far above an unsafe block its comment may be, in lines.
const SAFETY_DISTANCE: usize = 5;

/// `cargo xtask tidy`.
pub fn command() -> Result<()> {
    let found = check(&paths::root())?;
    if found.is_empty() {
        println!("tidy: good");
        return Ok(());
    }
    found.iter().for_each(|f| println!("{f}"));
    bail!("{} untidy places", found.len());
}

/// Everything that breaks a rule, as `file:line: what`.
fn check(root: &Path) -> Result<Vec<String>> {
    let shell = Shell::new()?;
    shell.change_dir(root);
    let files = cmd!(shell, "git ls-files")
        .quiet()
        .read()
        .context("git ls-files")?;
    let mut found = vec![];
    for name in files.lines() {
        // A tracked file may be gone, or be no text.
        let Ok(text) = fs::read_to_string(root.join(name)) else {
            continue;
        };
        found.extend(
            machine_paths(&text).map(|line| format!("{name}:{line}: a path of one machine")),
        );
        if name.ends_with(".rs") {
            rust_file(&text, |line, what| {
                found.push(format!("{name}:{line}: {what}"))
            });
        }
    }
    for package in packages(root)? {
        package_rules(&package, &mut found)?;
    }
    Ok(found)
}

/// One Rust file.
fn rust_file(text: &str, mut report: impl FnMut(usize, String)) {
    if !text.starts_with("//!") {
        report(1, "does not begin with //! and what it is".into());
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        report(lines, format!("{lines} lines, more than {MAX_LINES}"));
    }
    let mut safety: Option<usize> = None;
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(word) = UNFINISHED.iter().find(|w| line.contains(**w)) {
            report(number, format!("unfinished: {word}"));
        }
        if line.contains("SAFETY:") || line.contains("# Safety") {
            safety = Some(number);
        }
        let code = line.split("//").next().unwrap_or_default();
        let begins_unsafe = ["unsafe {", "unsafe impl"].iter().any(|w| code.contains(w));
        if begins_unsafe && safety.is_none_or(|at| number - at > SAFETY_DISTANCE) {
            report(number, "unsafe without a SAFETY comment above".into());
        }
    }
}

/// Traces of unfinished work, written so that this file does not hold them.
const UNFINISHED: &[&str] = &[
    concat!("to", "do!("),
    concat!("unimpl", "emented!("),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("#[ign", "ore"),
];

/// Numbers of the lines that hold an absolute path of a developer's machine.
fn machine_paths(text: &str) -> impl Iterator<Item = usize> {
    const HOMES: &[&str] = &["root", "work", "farm", "home"];
    let is_path = |line: &str, at: usize| {
        let rest = &line[at + 1..];
        let named = HOMES
            .iter()
            .any(|h| rest.strip_prefix(h).is_some_and(|r| r.starts_with('/')));
        let before = line[..at].chars().next_back();
        named && !before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
    };
    let bad = move |line: &str| line.match_indices('/').any(|(at, _)| is_path(line, at));
    (1..)
        .zip(text.lines())
        .filter(move |(_, line)| bad(line))
        .map(|(number, _)| number)
}

/// A workspace member.
struct Package {
    name: String,
    directory: PathBuf,
    manifest: PathBuf,
    /// Names of the workspace members it uses outside of its tests.
    uses: Vec<String>,
}

fn packages(root: &Path) -> Result<Vec<Package>> {
    let (shell, cargo) = (Shell::new()?, crate::toolchain::own_cargo());
    shell.change_dir(root);
    let text = cmd!(
        shell,
        "{cargo} metadata --no-deps --offline --format-version 1"
    )
    .quiet()
    .read()?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    let string = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_string();
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let packages = list(&metadata["packages"]).into_iter().map(|package| {
        let manifest = PathBuf::from(string(&package["manifest_path"]));
        let used = list(&package["dependencies"]);
        let used = used
            .iter()
            .filter(|d| d["path"].is_string() && d["kind"] != "dev");
        Package {
            name: string(&package["name"]),
            directory: manifest.parent().unwrap_or(root).to_path_buf(),
            uses: used.map(|d| string(&d["name"])).collect(),
            manifest,
        }
    });
    Ok(packages.collect())
}

fn floor(name: &str) -> Option<u32> {
    FLOORS
        .iter()
        .find(|(_, names)| names.contains(&name))
        .map(|(floor, _)| *floor)
}

fn package_rules(package: &Package, found: &mut Vec<String>) -> Result<()> {
    let Package {
        name,
        directory,
        manifest,
        uses,
    } = package;
    let mut report = |what: String| found.push(format!("{name}: {what}"));
    match floor(name) {
        None => report("stands on no floor (xtask/src/tidy.rs)".into()),
        Some(own) => {
            let above = uses
                .iter()
                .filter(|used| floor(used).is_none_or(|f| f >= own));
            above
                .for_each(|used| report(format!("floor {own} imports {used}, which is not below")));
        }
    }
    if !directory.join("README.md").is_file() {
        report("has no README.md".into());
    }
    let text = fs::read_to_string(manifest)?;
    if !text.contains("[lints]\nworkspace = true") {
        report("does not take the workspace's lints".into());
    }
    let library = fs::read_to_string(directory.join("src/lib.rs")).unwrap_or_default();
    if directory.parent().is_some_and(|p| p.ends_with("crates"))
        && !library.lines().any(|l| l == "#![no_std]")
    {
        report("is not unconditionally no_std".into());
    }
    if POLICY.contains(&name.as_str()) && !library.contains("#![forbid(unsafe_code)]") {
        report("is policy, and does not forbid unsafe code".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        let found = check(&paths::root()).unwrap();
        assert!(found.is_empty(), "\n{}", found.join("\n"));
    }

    fn reports(text: &str) -> Vec<(usize, String)> {
        let mut all = vec![];
        rust_file(text, |line, what| all.push((line, what)));
        all
    }

    #[test]
    fn finds_what_it_looks_for() {
        assert_eq!(
            reports("//! Good.\n// SAFETY: as above.\nunsafe { f() }\n"),
            []
        );
        assert_eq!(reports("fn f() {}\n")[0].0, 1);
        let far = format!(
            "//! x\n// SAFETY: far.\n{}unsafe impl Send for X {{}}\n",
            "\n".repeat(SAFETY_DISTANCE)
        );
        assert_eq!(reports(&far)[0].0, SAFETY_DISTANCE + 3);
        assert_eq!(reports("//! x\n// in a comment: unsafe { }\n"), []);
        assert_eq!(
            reports(&format!("//! x\n{}", "\n".repeat(MAX_LINES))).len(),
            1
        );
        for word in UNFINISHED {
            assert_eq!(reports(&format!("//! x\n{word}\n")).len(), 1, "{word}");
        }
    }

    #[test]
    fn finds_paths_of_machines() {
        let path = |home: &str| format!("see /{home}/me/x\nor target/{home}/x, a.{home}/x\n");
        for home in ["root", "home"] {
            assert_eq!(
                machine_paths(&path(home)).collect::<Vec<_>>(),
                [1],
                "{home}"
            );
        }
    }

    #[test]
    fn finds_packages_out_of_place() {
        let directory = tempfile::tempdir().unwrap();
        let manifest = directory.path().join("Cargo.toml");
        fs::write(&manifest, "[package]\n").unwrap();
        let package = |name: &str, uses: &[&str]| Package {
            name: name.into(),
            directory: directory.path().into(),
            manifest: manifest.clone(),
            uses: uses.iter().map(|u| u.to_string()).collect(),
        };
        let found = |p: Package| {
            let mut found = vec![];
            package_rules(&p, &mut found).unwrap();
            found.join("\n")
        };
        let upward = found(package("pid", &["ksync", "mm", "rmap"]));
        assert!(
            upward.contains("imports mm")
                && upward.contains("imports rmap")
                && !upward.contains("imports ksync")
        );
        assert!(
            upward.contains("README")
                && upward.contains("lints")
                && upward.contains("forbid unsafe")
        );
        assert!(found(package("stranger", &[])).contains("no floor"));
        assert!(found(package("xtask", &["kernel"])).contains("README"));
        assert!(found(package("tests", &["xtask"])).contains("not below"));
    }
}
