//! `cargo xtask bench`: many boots, one results file, and what it says beside another.
//!
//! [`matrix`] says what to boot, [`runner`] boots it, [`results`] is the file, [`compare`] finds what became worse,
//! [`sensitivity`] asks which conclusions hold when the model or the code's layout is changed a little.

mod cell;
pub mod compare;
mod matrix;
pub mod results;
mod runner;
mod sensitivity;

use crate::{apt::Installer, paths, profile::Profile, topology::Name};
use anyhow::{Result, bail};
use clap::Args;
use matrix::{BASELINE, FULL, Kind, QUICK, Selection};
use runner::Runner;
use std::path::PathBuf;

/// The options of `cargo xtask bench`.
#[derive(Args)]
pub struct Options {
    /// Benchmarks; none: all of the sweep. `--list` says which there are.
    names: Vec<String>,
    /// Say what there is, and boot nothing.
    #[arg(long)]
    list: bool,
    /// The short sweeps: five minutes on two CPUs. The default.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// The long sweeps: a night.
    #[arg(long)]
    full: bool,
    /// Only these modes.
    #[arg(long, value_enum, value_delimiter = ',')]
    mode: Vec<Kind>,
    /// Only these variants, such as lock=ticket,mcs.
    #[arg(long, value_name = "WORD=VALUE")]
    variant: Vec<String>,
    /// These CPU counts in place of the sweeps' own.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    cpus: Vec<u32>,
    /// This machine in place of the sweeps' own.
    #[arg(long, value_name = "NAME", value_enum)]
    topology: Option<Name>,
    /// Only cells that count by phase and lock class.
    #[arg(long)]
    detail: bool,
    /// Boots of each cell whose figures vary from boot to boot.
    #[arg(long, value_name = "N", default_value = "1")]
    repeat: u32,
    /// The costs of a simulation: a file of profiles/.
    #[arg(long, value_name = "NAME", default_value = "default")]
    profile: String,
    /// Boots at the same time; default: one per CPU of the host, but those whose figures it would spoil run alone.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// The results file. One that lacks some of the cells, by the same build, is completed.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Make all cells anew, whatever the results file has.
    #[arg(long)]
    fresh: bool,
    /// Print the cells and boot nothing.
    #[arg(long)]
    dry_run: bool,
    /// Compare two results files, or a file with docs/results by the name `baseline`: what became slower?
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["full", "names"])]
    compare: Vec<PathBuf>,
    /// With --compare: the per cent that a cell may be slower.
    #[arg(long, value_name = "PERCENT", default_value = "3")]
    threshold: f64,
    /// With --compare: the records must be equal to the digit, where the mode repeats.
    #[arg(long, requires = "compare")]
    exact: bool,
    /// Further words for every boot, such as a variant of another subject; the cells keep their names, to compare.
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// Halve and double each cost of the simulation, move code and data, and say which conclusions hold throughout.
    #[arg(long, conflicts_with_all = ["full", "names", "compare"])]
    sensitivity: bool,
    /// Boot what the committed baselines have, and fail if a cell is slower by 1 %.
    #[arg(long, conflicts_with_all = ["full", "names", "compare"])]
    check_baseline: bool,
    /// Boot what the committed baselines have, and write them anew.
    #[arg(long, conflicts_with_all = ["full", "names", "compare", "check_baseline"])]
    save_baseline: bool,
}

/// The committed baselines: instructions, so that they hold on any host.
fn baseline() -> PathBuf {
    paths::root().join("docs/results/baseline-icount.jsonl")
}

/// `cargo xtask bench`.
pub fn command(options: &Options, installer: &Installer) -> Result<()> {
    if options.list {
        print!("{}", matrix::list());
        return Ok(());
    }
    if let [a, b] = &options.compare[..] {
        let (a, b) = (results::read(a)?, results::read(b)?);
        if options.exact {
            return compare::exact(&a, &b);
        }
        return compare::print(&a, &b, options.threshold);
    }
    if options.sensitivity {
        let profile = Profile::load(&options.profile)?;
        return sensitivity::command(installer, options.jobs, &profile, options.fresh);
    }
    if options.check_baseline || options.save_baseline {
        return with_baseline(options, installer);
    }
    let (name, sweeps) = if options.full {
        ("full", FULL)
    } else {
        ("quick", QUICK)
    };
    let selection = options.selection();
    let cells = match selection.cells(sweeps) {
        // Asked for by name: the long sweeps may have it where the short ones do not.
        Err(_) if !options.quick && !options.full => selection.cells(FULL)?,
        other => other?,
    };
    if options.dry_run {
        cells
            .iter()
            .for_each(|c| println!("{}  # {}", c.command(), c.words()));
        return Ok(());
    }
    let profile = Profile::load(&options.profile)?;
    for cell in &cells {
        runner::check(cell, &profile)?;
    }
    let whole = options.names.is_empty()
        && options.variant.is_empty()
        && options.mode.is_empty()
        && options.append.is_empty();
    let name = if whole { name } else { "custom" };
    let out = match &options.out {
        Some(path) => path.clone(),
        None => paths::target().join("bench").join(format!("{name}.jsonl")),
    };
    let runner =
        Runner::new(installer, options.jobs, &cells, profile, None)?.append(&options.append);
    let rows = runner.run_to(&cells, &out, options.fresh)?;
    compare::table(&rows);
    println!("{} results in {}", rows.len(), paths::shown(&out));
    match rows.iter().filter(|r| r.error.is_some()).count() {
        0 => Ok(()),
        failed => bail!("{failed} cells failed"),
    }
}

/// `--check-baseline` and `--save-baseline`.
fn with_baseline(options: &Options, installer: &Installer) -> Result<()> {
    let path = baseline();
    let old = if options.save_baseline {
        vec![]
    } else {
        results::read(&path)?
    };
    if options.save_baseline && !options.append.is_empty() {
        bail!(
            "--append {}: a baseline has no further words",
            options.append
        );
    }
    if options.save_baseline && Runner::is_changed_build() {
        bail!("a baseline is of the profile in Cargo.toml: unset CARGO_PROFILE_RELEASE_*");
    }
    let cells = Selection::default().cells(BASELINE)?;
    let profile = Profile::load(&options.profile)?;
    let runner =
        Runner::new(installer, options.jobs, &cells, profile, None)?.append(&options.append);
    let rows = runner.run(&cells, |_| Ok(()))?;
    if let Some(failed) = rows.iter().find(|r| r.error.is_some()) {
        bail!(
            "{}: {}",
            failed.cell,
            failed.error.as_deref().unwrap_or_default()
        );
    }
    if options.save_baseline {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        results::write(&path, &rows)?;
        compare::table(&rows);
        println!("{} results in {}", rows.len(), paths::shown(&path));
        return Ok(());
    }
    compare::with_baseline(&old, &rows)
}

impl Options {
    fn selection(&self) -> Selection<'_> {
        Selection {
            names: &self.names,
            variants: &self.variant,
            cpus: &self.cpus,
            modes: &self.mode,
            detail: self.detail,
            on: self.topology,
            repeat: self.repeat,
        }
    }
}
