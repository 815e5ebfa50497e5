//! `cargo xtask test`: every test there is, and one line of counts.
//!
//! Three suites, each a `cargo test`: the crates on the host, ksync's interleavings under loom, and the scenarios in
//! QEMU. What passes is counted; what fails is shown. The last line is `N passed, N failed`.

use crate::{
    apt::Installer, build::Artifacts, emulator, paths, programs, progress::Step, toolchain,
};
use anyhow::{Context, Result, bail};
use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    thread,
};

/// Not on the host: two are built for the bare-metal target only, and the third is the scenarios.
const NOT_ON_HOST: &[&str] = &["kernel", "programs", "tests"];

/// The options of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Options {
    /// Run only the tests whose names contain this.
    filter: Option<String>,
}

/// What a suite came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
}

/// `cargo xtask test`.
pub fn command(options: &Options, installer: &Installer) -> Result<()> {
    // First what the scenarios need: a machine without it should say so now, not in ten minutes.
    let (_, toolchain) = emulator::ensure_all(installer)?;
    programs::ensure_all(installer)?;

    let mut host = cargo_test();
    host.arg("--workspace");
    for name in NOT_ON_HOST {
        host.args(["--exclude", name]);
    }
    let mut loom = cargo_test();
    loom.args(["-p", "ksync", "--release", "--target-dir"])
        .arg(paths::target().join("loom"));
    loom.env("RUSTFLAGS", "--cfg loom");
    let mut scenarios = cargo_test();
    scenarios.args(["-p", "tests"]);
    scenarios.env(
        "TINE_XTASK",
        std::env::current_exe().context("where am I?")?,
    );

    let mut sum = Counts::default();
    for (title, command) in [("tests on the host", host), ("interleavings (loom)", loom)] {
        sum.add(run(title, command, options.filter.as_deref()));
    }
    match Artifacts::build(&toolchain) {
        Ok(_) => sum.add(run(
            "scenarios in QEMU",
            scenarios,
            options.filter.as_deref(),
        )),
        Err(error) => {
            eprintln!("the kernel cannot be built: {error:#}");
            sum.failed += 1;
        }
    }
    println!("{} passed, {} failed", sum.passed, sum.failed);
    if sum.failed > 0 {
        bail!("tests failed");
    }
    if sum.passed == 0 {
        bail!("no test has such a name");
    }
    Ok(())
}

fn cargo_test() -> Command {
    let mut command = Command::new(toolchain::own_cargo());
    toolchain::clean_environment(&mut command);
    command
        .current_dir(paths::root())
        .args(["test", "--no-fail-fast"]);
    command
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs one suite; a suite that cannot run counts as one failure.
fn run(title: &str, command: Command, filter: Option<&str>) -> Counts {
    match try_run(title, command, filter) {
        Ok(counts) => {
            eprintln!(
                "{title}: {} passed, {} failed",
                counts.passed, counts.failed
            );
            counts
        }
        Err(error) => {
            eprintln!("{title}: {error:#}");
            Counts {
                passed: 0,
                failed: 1,
            }
        }
    }
}

fn try_run(title: &str, mut command: Command, filter: Option<&str>) -> Result<Counts> {
    command.arg("--").args(filter);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stderr = child.stderr.take().expect("piped");
    let errors = thread::spawn(move || {
        let mut text = Vec::new();
        stderr
            .read_to_end(&mut text)
            .map(|_| String::from_utf8_lossy(&text).into_owned())
    });
    let step = Step::new(title);
    step.detail("building");
    let (mut report, mut raw) = (Report::default(), Vec::new());
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    while stdout.read_until(b'\n', &mut raw)? > 0 {
        let line = String::from_utf8_lossy(&raw).trim_end().to_string();
        step.detail(&line);
        report.line(&line);
        raw.clear();
    }
    let status = child.wait()?;
    let errors = errors.join().expect("the reader does not panic")?;
    step.done();
    report.shown.iter().for_each(|line| println!("{line}"));
    if !status.success() && report.counts.failed == 0 {
        // Nothing ran, or a test took the whole program with it.
        report.unfinished.iter().for_each(|line| println!("{line}"));
        let lines: Vec<&str> = errors
            .lines()
            .filter(|l| !l.trim_start().starts_with("Compiling "))
            .collect();
        lines[lines.len().saturating_sub(80)..]
            .iter()
            .for_each(|line| println!("{line}"));
        report.counts.failed = 1;
    }
    Ok(report.counts)
}

/// Reads the output of test programs.
#[derive(Default)]
struct Report {
    counts: Counts,
    /// What failed tests said.
    shown: Vec<String>,
    /// The output of the program that is running.
    unfinished: Vec<String>,
}

impl Report {
    fn line(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            let counts = parse_result(result);
            self.counts.add(counts);
            let output = std::mem::take(&mut self.unfinished);
            if counts.failed > 0 {
                // From the first "failures:" on; the lines above only name the tests that passed.
                let from = output.iter().position(|l| l == "failures:").unwrap_or(0);
                self.shown.extend_from_slice(&output[from..]);
            }
        } else {
            self.unfinished.push(line.to_string());
        }
    }
}

/// `ok. 5 passed; 0 failed; 0 ignored; ...`
fn parse_result(text: &str) -> Counts {
    let number = |name: &str| {
        let parts = text.split(['.', ';']).map(str::trim);
        let mut found = parts.filter_map(|p| p.strip_suffix(name)?.trim().parse().ok());
        found.next().unwrap_or(0)
    };
    Counts {
        passed: number("passed"),
        failed: number("failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_failures() {
        let output = "\nrunning 2 tests\ntest a ... ok\ntest b ... ok\n\n\
            test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            running 2 tests\ntest c ... FAILED\ntest d ... ok\n\nfailures:\n\n---- c stdout ----\noh\n\n\
            test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
        let mut report = Report::default();
        output.lines().for_each(|l| report.line(l));
        assert_eq!(
            report.counts,
            Counts {
                passed: 3,
                failed: 1
            }
        );
        let shown = report.shown.join("\n");
        assert!(shown.contains("oh") && !shown.contains("test a"), "{shown}");
    }

    #[test]
    fn a_crash_is_a_failure() {
        let crash = Command::new("false");
        assert_eq!(
            run("a crash", crash, None),
            Counts {
                passed: 0,
                failed: 1
            }
        );
        let missing = Command::new("/no/such/program");
        assert_eq!(
            run("no program", missing, None),
            Counts {
                passed: 0,
                failed: 1
            }
        );
    }
}
