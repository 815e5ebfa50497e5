//! Boots cells: several at a time, each result kept as soon as it is there.

use super::{
    matrix::{Cell, Kind},
    results::{self, Contended, Origin, Row},
};
use crate::{
    apt::Installer,
    boot::{Mode, Outcome, Spec, System},
    build::Artifacts,
    c2c,
    console::Symbols,
    emulator,
    numasim::{Plugin, Simulation},
    profile::Profile,
    topology::Topology,
};
use anyhow::{Context, Result, anyhow, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use kbench::Record;
use std::{
    fs,
    io::IsTerminal,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// A boot is given up after this many times what it should take.
const PATIENCE: f64 = 30.0;
/// But not before.
const LEAST: Duration = Duration::from_secs(120);
/// Lines of the console kept with a failure.
const TAIL: usize = 12;

/// What boots.
pub struct Runner {
    system: System,
    initramfs: Vec<u8>,
    origin: Origin,
    jobs: usize,
    /// The simulator, if a cell needs it, and what things cost there.
    plugin: Option<Plugin>,
    profile: Profile,
    /// Further words for the boot line of every cell.
    append: String,
}

/// The machine of a cell.
///
/// # Errors
/// It has fewer CPUs.
pub fn machine(cell: &Cell) -> Result<Topology> {
    Topology::named(cell.on).first(cell.cpus)
}

/// Refuses what cannot be booted.
///
/// # Errors
/// The machine has fewer CPUs, or the profile does not cover it.
pub fn check(cell: &Cell, profile: &Profile) -> Result<()> {
    let topology = machine(cell)?;
    if cell.mode == Kind::Numasim {
        profile.configuration(&topology)?;
    }
    Ok(())
}

impl Runner {
    /// Builds the system, its code and data in an order by `layout`, and the simulator if one of `cells` needs it.
    ///
    /// # Errors
    /// What is missing, or does not compile.
    pub fn new(
        installer: &Installer,
        jobs: Option<usize>,
        cells: &[Cell],
        profile: Profile,
        layout: Option<u32>,
    ) -> Result<Runner> {
        let (emulator, toolchain) = emulator::ensure_all(installer)?;
        let simulated = cells.iter().any(|c| c.mode == Kind::Numasim);
        let plugin = simulated.then(|| Plugin::build(&emulator)).transpose()?;
        let artifacts = Artifacts::build_shuffled(&toolchain, layout)?;
        let initramfs = artifacts.initramfs()?.finish()?;
        let mut all = fs::read(&artifacts.kernel)?;
        all.extend(fs::read(&artifacts.boot)?);
        all.extend(&initramfs);
        let compiler = format!("{}{}", toolchain.version(), profile_changes());
        let origin = Origin::of(&emulator, &compiler, &all);
        let host = thread::available_parallelism().map_or(1, usize::from);
        Ok(Runner {
            system: System {
                emulator,
                artifacts,
            },
            initramfs,
            origin,
            jobs: jobs.unwrap_or(host).max(1),
            plugin,
            profile,
            append: String::new(),
        })
    }

    /// Boots with further words.
    pub fn append(mut self, words: &str) -> Runner {
        self.append = words.trim().into();
        self
    }

    /// Whether words of the environment changed how the kernel was compiled.
    pub fn is_changed_build() -> bool {
        !profile_changes().is_empty()
    }

    /// What things cost from now on.
    pub fn set_profile(&mut self, profile: Profile) {
        self.profile = profile;
    }

    /// Boots what `out` does not have yet. A file that has all of it is begun anew, and kept beside as `.old`.
    ///
    /// # Errors
    /// The file system's; cells that fail are rows.
    pub fn run_to(&self, cells: &[Cell], out: &Path, fresh: bool) -> Result<Vec<Row>> {
        let again = fresh || self.kept(cells, out)?.len() == cells.len();
        self.complete(cells, out, again)
    }

    /// The same, but a file that has all of it is the result, unless `fresh`.
    ///
    /// # Errors
    /// The same.
    pub fn complete(&self, cells: &[Cell], out: &Path, fresh: bool) -> Result<Vec<Row>> {
        if let Some(parent) = out.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut kept = if fresh {
            vec![]
        } else {
            self.kept(cells, out)?
        };
        if kept.is_empty() && out.exists() {
            fs::rename(out, out.with_extension("jsonl.old"))?;
        }
        if !kept.is_empty() {
            eprintln!(
                "{} of {} cells are there from an earlier run (--fresh makes them anew)",
                kept.len(),
                cells.len()
            );
        }
        results::write(out, &kept)?;
        let there = |c: &&Cell| !kept.iter().any(|r| r.cell == c.key());
        let missing: Vec<Cell> = cells.iter().filter(there).cloned().collect();
        kept.extend(self.run(&missing, |row| results::append(out, row))?);
        let place = |row: &Row| cells.iter().position(|c| c.key() == row.cell);
        kept.sort_by_key(place);
        results::write(out, &kept)?;
        Ok(kept)
    }

    /// The rows of `out` that are results of `cells`, by this build.
    fn kept(&self, cells: &[Cell], out: &Path) -> Result<Vec<Row>> {
        let mut rows = if out.exists() {
            results::read(out)?
        } else {
            vec![]
        };
        rows.retain(|row| {
            let Some(cell) = cells.iter().find(|c| c.key() == row.cell) else {
                return false;
            };
            row.append == self.append
                && is_result_of(row, &self.origin)
                && row.model == self.model(cell).unwrap_or_default()
        });
        Ok(rows)
    }

    /// Boots `cells`; `keep` gets each result when it is there.
    ///
    /// # Errors
    /// `keep`'s first.
    pub fn run(
        &self,
        cells: &[Cell],
        keep: impl FnMut(&Row) -> Result<()> + Send,
    ) -> Result<Vec<Row>> {
        let progress = Progress::new(cells);
        let done = Mutex::new((Vec::new(), keep, Ok(())));
        let work = |cell: &Cell| {
            let row = self.cell(cell);
            progress.done(cell, &row);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            let (rows, keep, first) = &mut *done;
            if first.is_ok() {
                *first = keep(&row);
            }
            rows.push(row);
            first.is_ok()
        };
        // Those that take host time for guest time run alone, after the others.
        let (together, alone): (Vec<&Cell>, Vec<&Cell>) =
            cells.iter().partition(|c| c.mode != Kind::Tcg);
        let queue = Mutex::new(together.into_iter());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        thread::scope(|scope| {
            for _ in 0..self.jobs {
                scope.spawn(|| while next().is_some_and(work) {});
            }
        });
        let _ = alone.into_iter().all(work);
        progress.end();
        let (mut rows, _, first) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        first?;
        rows.sort_by_key(|row: &Row| cells.iter().position(|c| c.key() == row.cell));
        Ok(rows)
    }

    /// One boot. Whatever goes wrong is in the row.
    fn cell(&self, cell: &Cell) -> Row {
        let start = Instant::now();
        let mut result = self.boot(cell);
        if cell.mode == Kind::Numasim && matches!(result, Err(Failure::Broken(_))) {
            // The host held a CPU up for too long.
            result = self.boot(cell);
        }
        let mut row = Row {
            cell: cell.key(),
            command: self.command(cell),
            seconds: (start.elapsed().as_secs_f64() * 10.0).round() / 10.0,
            append: self.append.clone(),
            profile: (cell.mode == Kind::Numasim).then(|| self.profile.name.clone()),
            model: self.model(cell).unwrap_or_default(),
            origin: self.origin.clone(),
            record: None,
            c2c: vec![],
            error: None,
        };
        match result {
            Ok((record, c2c)) => (row.record, row.c2c) = (Some(record), c2c),
            Err(Failure::Broken(error) | Failure::Other(error)) => {
                row.error = Some(format!("{error:#}"));
            }
        }
        row
    }

    /// The line that makes a cell.
    fn command(&self, cell: &Cell) -> String {
        let mut line = cell.command();
        if cell.mode == Kind::Numasim && self.profile.name != "default" {
            line += &format!(" --profile {}", self.profile.name);
        }
        if !self.append.is_empty() {
            line += &format!(" --append \"{}\"", self.append);
        }
        line
    }

    /// The fingerprint of what simulates a cell, if anything does.
    fn model(&self, cell: &Cell) -> Result<Option<String>> {
        let (Kind::Numasim, Some(plugin)) = (cell.mode, &self.plugin) else {
            return Ok(None);
        };
        let bytes = plugin.bytes(&self.profile, &machine(cell)?)?;
        Ok(Some(results::fingerprint(&bytes)))
    }

    fn boot(&self, cell: &Cell) -> Result<(Record, Vec<Contended>), Failure> {
        let topology = machine(cell)?;
        let scratch = tempfile::Builder::new()
            .prefix("tine-")
            .tempdir()
            .context("temporary directory")?;
        let written = scratch.path().join("simulation");
        let mode = match (cell.mode, &self.plugin) {
            (Kind::Icount, _) => Mode::Icount,
            (Kind::Tcg, _) => Mode::Tcg,
            (Kind::Numasim, None) => return Err(anyhow!("the simulator was not built").into()),
            (Kind::Numasim, Some(plugin)) => {
                Mode::Numasim(plugin.words(&self.profile, &topology, &written)?)
            }
        };
        let mut spec = Spec::new(&topology, mode, &self.initramfs);
        spec.line.append = Some(format!("{} {}", cell.words(), self.append));
        spec.timeout = Some(Duration::from_secs_f64(cell.seconds * PATIENCE).max(LEAST));
        spec.quiet = true;
        let outcome = self.system.boot(&spec)?;
        outcome.verdict().with_context(|| tail(&outcome))?;
        let record = only_record(&outcome)?;
        if cell.mode != Kind::Numasim {
            return Ok((record, vec![]));
        }
        let simulation = Simulation::read(&written)?;
        simulation.check().map_err(Failure::Broken)?;
        let mut symbols = Symbols::of(&self.system.artifacts.kernel);
        Ok((record, c2c::contended(&simulation, &mut symbols)))
    }
}

/// Whether `row` is by this build and QEMU.
fn is_result_of(row: &Row, origin: &Origin) -> bool {
    let same = row.origin.build == origin.build && row.origin.qemu == origin.qemu;
    same && row.error.is_none()
}

/// Why a cell has no record.
enum Failure {
    /// The simulation does not count, which may be the host's fault.
    Broken(anyhow::Error),
    /// Anything else.
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Other(error)
    }
}

/// The record of a boot that made one.
fn only_record(outcome: &Outcome) -> Result<Record> {
    let lines: Vec<&str> = outcome
        .records
        .lines()
        .filter(|l| !l.trim().is_empty())
        .collect();
    ensure!(lines.len() == 1, "{} records, not one", lines.len());
    let record = Record::parse(lines[0].trim())?;
    ensure!(record.is_clean(), "errors or leaks");
    Ok(record)
}

/// Words of the environment that change how the kernel is compiled, for whoever compares.
fn profile_changes() -> String {
    let mut changes: Vec<String> = std::env::vars()
        .filter(|(name, _)| name.starts_with("CARGO_PROFILE_RELEASE_"))
        .map(|(name, value)| {
            format!(
                " {}={value}",
                name.trim_start_matches("CARGO_PROFILE_RELEASE_")
            )
        })
        .collect();
    changes.sort();
    changes.concat()
}

/// The console's last lines.
fn tail(outcome: &Outcome) -> String {
    let lines: Vec<&str> = outcome
        .console
        .lines()
        .filter(|l| !l.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

/// Cells done and time left: a bar on a terminal, else a line per cell.
struct Progress {
    bar: ProgressBar,
    cells: usize,
    finished: Mutex<usize>,
    start: Instant,
}

impl Progress {
    fn new(cells: &[Cell]) -> Progress {
        let total: f64 = cells.iter().map(|c| c.seconds).sum();
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new((total * 1000.0) as u64)
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template("{bar:30} {msg} [{elapsed}, {eta} left]");
        bar.set_length((total * 1000.0) as u64);
        bar.set_style(style.expect("a valid template"));
        bar.enable_steady_tick(Duration::from_millis(500));
        Progress {
            bar,
            cells: cells.len(),
            finished: Mutex::new(0),
            start: Instant::now(),
        }
    }

    fn done(&self, cell: &Cell, row: &Row) {
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        *finished += 1;
        self.bar.inc((cell.seconds * 1000.0) as u64);
        let (done, total) = (
            self.bar.position() as f64,
            self.bar.length().unwrap_or(0) as f64,
        );
        let left = self.start.elapsed().as_secs_f64() * (total - done).max(0.0) / done.max(1.0);
        let what = row
            .error
            .as_deref()
            .map_or_else(String::new, |e| format!(" FAILED: {e}"));
        let line = format!(
            "{}/{} {}: {:.1} s{what}",
            finished, self.cells, row.cell, row.seconds
        );
        if self.bar.is_hidden() {
            eprintln!("{line}; {} left", duration(left));
        } else {
            if row.error.is_some() {
                self.bar.suspend(|| eprintln!("{line}"));
            }
            self.bar
                .set_message(format!("{}/{} {}", finished, self.cells, row.cell));
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn duration(seconds: f64) -> String {
    if seconds < 100.0 {
        format!("{seconds:.0} s")
    } else {
        format!("{:.0} min", seconds / 60.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{
        matrix::{QUICK, Selection},
        results::tests::row,
    };
    use kbench::record::Mode;

    #[test]
    fn what_is_there_need_not_be_made_again() {
        let cells = Selection::default().cells(QUICK).unwrap();
        let mut there = row(&cells[0].key(), Mode::Icount, 5);
        let origin = Origin {
            build: "b".into(),
            qemu: "10.0".into(),
            ..Origin::default()
        };
        there.origin = origin.clone();
        let counts = |row: &Row| is_result_of(row, &origin);
        assert!(counts(&there));
        let with = |change: fn(&mut Row)| {
            let mut other = there.clone();
            change(&mut other);
            counts(&other)
        };
        assert!(!with(|r| r.origin.build = "c".into()), "another build");
        assert!(!with(|r| r.origin.qemu = "9.0".into()), "another QEMU");
        assert!(!with(|r| r.error = Some("panic".into())), "it failed");
        assert!(
            with(|r| r.origin.commit = "x".into()),
            "the same build by another commit"
        );
    }
}
