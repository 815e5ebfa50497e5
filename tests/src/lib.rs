//! Running the whole system in QEMU, and looking at what came of it.
//!
//! # Problem
//! Some things show only when the kernel runs on a machine: that it starts on odd topologies, that
//! programs get Linux's answers, that a failure is reported rather than suffered.
//!
//! # Mechanism
//! A [`Boot`] is one `cargo xtask qemu` with options; [`Boot::run`] gives an [`Outcome`]: exit code,
//! console, benchmark records. The scenarios themselves are in `tests/scenarios.rs`; each is a test
//! of its own. [`Slots`] keeps the number of QEMUs at once at what the host has CPUs for.
//!
//! # Invariants
//! * INV-TESTS-1: a scenario ends: every boot has a time limit, after which xtask ends QEMU.
//! * INV-TESTS-2: a scenario that expects success accepts no other exit code than 0, and no record
//!   with errors or leaks.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod elf;

use kbench::Record;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines of the console shown with a failure.
const TAIL: usize = 60;

/// What a scenario says when it is not content.
pub type Failure = String;

/// One run of the system.
#[derive(Clone, Debug)]
pub struct Boot {
    options: Vec<OsString>,
    append: Vec<String>,
    init: Vec<OsString>,
    timeout: Duration,
}

impl Boot {
    /// A boot of the named topology.
    pub fn on(topology: &str) -> Boot {
        Boot {
            options: vec!["--topology".into(), topology.into()],
            append: Vec::new(),
            init: Vec::new(),
            timeout: Duration::from_secs(60),
        }
    }

    /// Adds an option of `cargo xtask qemu`.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl Into<OsString>) -> Boot {
        self.options.extend([name.into(), value.into()]);
        self
    }

    /// Adds `--icount`.
    #[must_use]
    pub fn icount(mut self) -> Boot {
        self.options.push("--icount".into());
        self
    }

    /// Adds `--numasim`, and prints the lines of memory that CPUs conflict over.
    #[must_use]
    pub fn numasim(mut self) -> Boot {
        self.options
            .extend(["--numasim", "--conflicts"].map(Into::into));
        self
    }

    /// Adds words to the boot line.
    #[must_use]
    pub fn words(mut self, words: &str) -> Boot {
        self.append.push(words.into());
        self
    }

    /// Runs a program that is in the initramfs as process 1.
    #[must_use]
    pub fn program(self, path: &str) -> Boot {
        self.words(&format!("init={path}"))
    }

    /// Runs a program of the host as process 1.
    #[must_use]
    pub fn host_program(mut self, path: &Path, args: &[&str]) -> Boot {
        self.init = vec![path.into()];
        self.init.extend(args.iter().map(|a| (*a).into()));
        self
    }

    /// Changes the time limit from a minute.
    #[must_use]
    pub fn limit(mut self, seconds: u64) -> Boot {
        self.timeout = Duration::from_secs(seconds);
        self
    }

    /// The options after `qemu`, records going to `records`.
    fn arguments(&self, records: &Path) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--no-install".into(), "qemu".into()];
        args.extend(self.options.iter().cloned());
        args.extend([
            "--timeout".into(),
            self.timeout.as_secs().to_string().into(),
        ]);
        args.extend(["--records".into(), records.into()]);
        if !self.append.is_empty() {
            args.extend(["--append".into(), self.append.join(" ").into()]);
        }
        if !self.init.is_empty() {
            args.push("--init".into());
            args.extend(self.init.iter().cloned());
        }
        args
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// xtask could not be started, or a record line is no record.
    pub fn run(&self) -> Result<Outcome, Failure> {
        let dir = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
        let records = dir.path().join("records");
        let (program, first) = xtask();
        let mut command = Command::new(&program);
        command
            .args(first)
            .args(self.arguments(&records))
            .stdin(Stdio::null());
        let start = Instant::now();
        let output = command
            .output()
            .map_err(|e| format!("cannot run {program:?}: {e}"))?;
        let console = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = std::fs::read_to_string(&records).unwrap_or_default();
        let mut outcome = Outcome {
            line: format!("{command:?}"),
            code: output.status.code(),
            console: console.replace('\r', ""),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
            records: Vec::new(),
            record_lines: lines.clone(),
            took: start.elapsed(),
        };
        for line in lines.lines().filter(|l| !l.trim().is_empty()) {
            let record =
                Record::parse(line).map_err(|e| outcome.failure(&format!("{e}: {line}")))?;
            outcome.records.push(record);
        }
        Ok(outcome)
    }

    /// Runs it and types: for each of `steps`, once the console has said the first (behind what the step before waited
    /// for), the second is typed. It must succeed. What limits it in time is the boot's own limit.
    ///
    /// # Errors
    /// xtask could not be started, the console ended before it had said everything, or the boot failed.
    pub fn converse(&self, steps: &[(&str, &str)]) -> Result<Outcome, Failure> {
        let dir = tempfile::tempdir().map_err(|e| format!("no temporary directory: {e}"))?;
        let (program, first) = xtask();
        let mut command = Command::new(&program);
        command
            .args(first)
            .args(self.arguments(&dir.path().join("records")));
        let start = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot run {program:?}: {e}"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let typist = stdin.zip(stdout).ok_or("no pipes")?;
        let (missing, console) = talk(typist.0, typist.1, steps);
        let ended = child
            .wait_with_output()
            .map_err(|e| format!("cannot wait for {program:?}: {e}"))?;
        let outcome = Outcome {
            line: format!("{command:?}"),
            code: ended.status.code(),
            console: console.replace('\r', ""),
            errors: String::from_utf8_lossy(&ended.stderr).into_owned(),
            records: Vec::new(),
            record_lines: String::new(),
            took: start.elapsed(),
        };
        if let Some(missing) = missing {
            return Err(outcome.failure(&format!("the console never said {missing:?}")));
        }
        outcome.check(outcome.code == Some(0), "it should have succeeded")?;
        Ok(outcome)
    }

    /// Runs it; it must succeed (INV-TESTS-2).
    ///
    /// # Errors
    /// It did not.
    pub fn succeed(&self) -> Result<Outcome, Failure> {
        let outcome = self.run()?;
        outcome.check(outcome.code == Some(0), "it should have succeeded")?;
        outcome.check(
            outcome.records.iter().all(Record::is_clean),
            "errors or leaks in a record",
        )?;
        Ok(outcome)
    }

    /// Runs it; it must fail, and not by a crash of xtask itself.
    ///
    /// # Errors
    /// It succeeded.
    pub fn fail(&self) -> Result<Outcome, Failure> {
        let outcome = self.run()?;
        outcome.check(
            outcome.code == Some(1),
            "it should have failed with exit code 1",
        )?;
        Ok(outcome)
    }
}

/// Types what `steps` say and reads to the end; the first text that did not come, and all that was read.
fn talk(
    mut to: impl Write,
    mut from: impl Read,
    steps: &[(&str, &str)],
) -> (Option<String>, String) {
    let (mut said, mut seen) = (Vec::new(), 0);
    let mut buffer = [0; 4096];
    let mut steps = steps.iter();
    let mut next = steps.next();
    loop {
        while let Some((text, typed)) = next {
            let at = said[seen..]
                .windows(text.len())
                .position(|w| w == text.as_bytes());
            let Some(at) = at else { break };
            seen += at + text.len();
            // Who no longer listens is found out by what is not said.
            let _ = to.write_all(typed.as_bytes()).and_then(|()| to.flush());
            next = steps.next();
        }
        match from.read(&mut buffer) {
            Ok(len) if len > 0 => said.extend(&buffer[..len]),
            _ => break,
        }
    }
    let console = String::from_utf8_lossy(&said).into_owned();
    (next.map(|(text, _)| text.to_string()), console)
}

/// What `cargo xtask bench` came to.
pub struct Benched {
    /// Whether it was content.
    pub good: bool,
    /// What it printed.
    pub said: String,
    line: String,
}

/// `cargo xtask bench` with these words.
///
/// # Errors
/// xtask could not be started.
pub fn bench<S: AsRef<std::ffi::OsStr>>(words: &[S]) -> Result<Benched, Failure> {
    let (program, first) = xtask();
    let mut command = Command::new(&program);
    command.args(first).args(["--no-install", "bench"]);
    command.args(words).stdin(Stdio::null());
    let output = command
        .output()
        .map_err(|e| format!("cannot run {program:?}: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Benched {
        good: output.status.success(),
        said: text(&output.stdout) + &text(&output.stderr),
        line: format!("{command:?}"),
    })
}

impl Benched {
    /// It was content, or it was not; and it says `text`.
    ///
    /// # Errors
    /// Otherwise.
    pub fn check(self, good: bool, text: &str) -> Result<Self, Failure> {
        if self.good == good && self.said.contains(text) {
            return Ok(self);
        }
        let (is, should) = (self.good, if good { "succeed" } else { "fail" });
        Err(format!(
            "it should {should} and say {text:?}\n  {}\n  success: {is}\n{}",
            self.line, self.said
        ))
    }
}

/// The program to run, and the words before the options: the xtask that runs us, or cargo's.
fn xtask() -> (OsString, Vec<OsString>) {
    if let Some(program) = std::env::var_os("TINE_XTASK") {
        return (program, Vec::new());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    (
        cargo,
        ["run", "--quiet", "--package", "xtask", "--"]
            .map(OsString::from)
            .to_vec(),
    )
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    line: String,
    /// xtask's exit code.
    pub code: Option<i32>,
    /// The console, with xtask's tables at its end.
    pub console: String,
    /// What xtask said.
    pub errors: String,
    /// The benchmark records.
    pub records: Vec<Record>,
    /// Their text.
    pub record_lines: String,
    /// From the start of xtask to its end.
    pub took: Duration,
}

impl Outcome {
    /// A failure with what one needs to understand it.
    pub fn failure(&self, why: &str) -> Failure {
        let lines: Vec<&str> = self.console.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        let failed = self.failed_checks().join("\n");
        let Outcome {
            line,
            code,
            errors,
            took,
            ..
        } = self;
        format!(
            "{why}\n{failed}\n  {line}\n  exit code {code:?} after {took:.1?}\n--- console, last lines\n{tail}\n--- xtask\n{errors}"
        )
    }

    /// # Errors
    /// `holds` is false.
    pub fn check(&self, holds: bool, why: &str) -> Result<(), Failure> {
        if holds {
            Ok(())
        } else {
            Err(self.failure(why))
        }
    }

    /// The lines of memory that two CPUs touched in a window and one of them wrote: what is there, and whose code.
    pub fn conflicts(&self) -> Vec<(&str, &str)> {
        let lines = self.console.lines();
        let fields = lines.filter_map(|l| l.strip_prefix("conflict: ")?.rsplit_once(" | "));
        fields
            .map(|(what, code)| (what.split(" | ").next().unwrap_or(what), code))
            .collect()
    }

    /// The console or xtask says `text`.
    ///
    /// # Errors
    /// Neither does.
    pub fn says(&self, text: &str) -> Result<(), Failure> {
        let said = self.console.contains(text) || self.errors.contains(text);
        self.check(said, &format!("nobody says {text:?}"))
    }

    /// The console does not say `text`.
    ///
    /// # Errors
    /// It does.
    pub fn never_says(&self, text: &str) -> Result<(), Failure> {
        self.check(
            !self.console.contains(text),
            &format!("the console says {text:?}"),
        )
    }

    /// The only record, of `benchmark`.
    ///
    /// # Errors
    /// There is another number of records, or it is of another benchmark.
    pub fn record(&self, benchmark: &str) -> Result<&Record, Failure> {
        match &self.records[..] {
            [record] if record.benchmark == benchmark => Ok(record),
            records => Err(self.failure(&format!(
                "expected one record of {benchmark}, got {}",
                records.len()
            ))),
        }
    }

    /// A suite's closing line: `NAME: P passed, 0 failed` with at least `least` passed.
    ///
    /// # Errors
    /// There is none, or another one. Failed checks are named.
    pub fn suite(&self, name: &str, least: u64) -> Result<(), Failure> {
        let prefix = format!("{name}: ");
        let closing = self.console.lines().find_map(|l| {
            let (passed, rest) = l.strip_prefix(&prefix)?.split_once(" passed, ")?;
            let failed = rest.split(' ').next()?;
            Some((passed.parse::<u64>().ok()?, failed.parse::<u64>().ok()?))
        });
        match closing {
            Some((passed, 0)) if passed >= least && self.failed_checks().is_empty() => Ok(()),
            other => Err(self.failure(&format!("{name} ended with {other:?}"))),
        }
    }

    /// The lines of checks that failed in a program.
    fn failed_checks(&self) -> Vec<&str> {
        let lines = self.console.lines();
        lines.filter(|l| l.starts_with("FAIL ")).collect()
    }

    /// The figure of a `ubench NAME CYCLES` line.
    ///
    /// # Errors
    /// There is none.
    pub fn figure(&self, name: &str) -> Result<u64, Failure> {
        let prefix = format!("ubench {name} ");
        let line = self
            .console
            .lines()
            .find_map(|l| l.strip_prefix(&prefix)?.trim().parse().ok());
        line.ok_or_else(|| self.failure(&format!("no figure for {name}")))
    }
}

/// A counting semaphore: how many QEMUs may run at once.
pub struct Slots {
    free: Mutex<usize>,
    freed: Condvar,
    total: usize,
}

/// Slots in use, given back on drop.
pub struct Held<'a> {
    slots: &'a Slots,
    nr: usize,
}

impl Slots {
    /// `total` slots.
    pub const fn new(total: usize) -> Slots {
        Slots {
            free: Mutex::new(total),
            freed: Condvar::new(),
            total,
        }
    }

    /// Waits for `nr` slots (at most all).
    pub fn take(&self, nr: usize) -> Held<'_> {
        let nr = nr.min(self.total);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free < nr {
            free = self
                .freed
                .wait(free)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *free -= nr;
        Held { slots: self, nr }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self
            .slots
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner) += self.nr;
        self.slots.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kbench::Histogram;
    use kbench::record::{Mode, TopologyInfo};

    fn outcome(console: &str) -> Outcome {
        Outcome {
            line: String::new(),
            code: Some(0),
            console: console.into(),
            errors: "the reason".into(),
            records: Vec::new(),
            record_lines: String::new(),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn closing_lines() {
        assert!(
            outcome("ok 0 a\ncalls: 2 passed, 0 failed\n")
                .suite("calls", 2)
                .is_ok()
        );
        assert!(
            outcome("calls: 2 passed, 0 failed, 3 skipped\n")
                .suite("calls", 2)
                .is_ok()
        );
        assert!(
            outcome("calls: 2 passed, 0 failed\n")
                .suite("calls", 3)
                .is_err()
        );
        assert!(
            outcome("calls: 2 passed, 1 failed\n")
                .suite("calls", 1)
                .is_err()
        );
        assert!(
            outcome("FAIL x: got 1 want 2\ncalls: 2 passed, 0 failed\n")
                .suite("calls", 1)
                .is_err()
        );
        assert!(outcome("ok 0 a\n").suite("calls", 0).is_err());
    }

    #[test]
    fn figures_and_words() {
        let it = outcome("ubench getpid 155\nubench fork FAILED\n");
        assert_eq!(it.figure("getpid"), Ok(155));
        assert!(it.figure("fork").is_err() && it.figure("get").is_err());
        assert!(
            it.says("getpid 155").is_ok()
                && it.says("the reason").is_ok()
                && it.says("else").is_err()
        );
        assert!(it.never_says("FAILED").is_err() && it.never_says("PANIC").is_ok());
    }

    #[test]
    fn talking() {
        let mut typed = Vec::new();
        let steps = [("$ ", "a\n"), ("$ ", "b\n"), ("end", "")];
        let (missing, said) = talk(&mut typed, &b"x$ y$ z$ "[..], &steps);
        assert_eq!(
            (missing.as_deref(), said.as_str()),
            (Some("end"), "x$ y$ z$ ")
        );
        assert_eq!(typed, b"a\nb\n");
        assert_eq!(talk(&mut typed, &b"$ $ end"[..], &steps).0, None);
    }

    #[test]
    fn the_only_record() {
        let mut it = outcome("");
        assert!(it.record("fork").is_err());
        let histogram = Histogram::try_new().unwrap();
        let topology = TopologyInfo {
            cpus: 1,
            nodes: 1,
            name: String::new(),
        };
        it.records
            .push(Record::new("fork", Mode::Tcg, topology, &histogram));
        assert!(it.record("fork").is_ok() && it.record("exec").is_err());
        it.records.push(it.records[0].clone());
        assert!(it.record("fork").is_err());
    }

    #[test]
    fn options_in_order() {
        let boot = Boot::on("laptop")
            .words("a=1")
            .program("/bin/x")
            .option("--cpus", "3");
        let args = boot.arguments(Path::new("r"));
        let text: Vec<_> = args.iter().map(|a| a.to_string_lossy()).collect();
        let line = "--no-install qemu --topology laptop --cpus 3 --timeout 60 --records r --append a=1 init=/bin/x";
        assert_eq!(text.join(" "), line);
        let boot = Boot::on("laptop").host_program(Path::new("/bin/true"), &["-x"]);
        assert!(boot.arguments(Path::new("r")).ends_with(&[
            "--init".into(),
            "/bin/true".into(),
            "-x".into()
        ]));
    }

    #[test]
    fn slots_are_given_back() {
        let slots = Slots::new(2);
        let all = slots.take(7);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| drop(slots.take(1)));
            drop(all);
            other.join().unwrap();
        });
        drop(slots.take(2));
    }
}
