//! `cargo xtask compare`: the same programs on Linux and here, in the same QEMU.
//!
//! # Problem
//! A figure without another system's beside it says little, and a figure of Linux from somewhere else says nothing: it
//! must come from the same emulator, the same machine, the same files, the same program.
//!
//! # Mechanism
//! Both kernels get the words of [`Spec::machine`] and one initramfs, whose first process (`tests/programs`, `init`)
//! runs the program, says how it ended, and turns the machine off. [`kernel`] gets a Linux, [`rows`] names the
//! operations, [`calls`] compares what the test programs print instead of figures, [`page`] writes results.

pub mod calls;
mod kernel;
mod page;
mod rows;

use crate::{
    apt::{self, Installer},
    boot::{Mode, Spec, System},
    build::Artifacts,
    console::Symbols,
    emulator,
    initramfs::Initramfs,
    paths, programs,
    run::{self, Ending, Limits, Machine, Watch},
    topology::{Changes, Name, Topology, parse_memory},
};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use kernel::{Kernel, Suite};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Linux's boot line but for the program: as quiet as it can be, nothing left to chance, no mitigations of processors
/// that nobody emulates.
const LINUX_LINE: &str =
    "quiet console=ttyS0 nokaslr norandmaps mitigations=off nohz=off panic=-1 rdinit=/init";

/// The options of `cargo xtask compare`.
#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Instructions per operation (ubench), or of one program's run, on Linux and on Tine.
    ///
    /// Linux is Debian's: the kernel of this machine's release, and the newest there is. They are fetched by apt, not
    /// installed, and kept in the user's cache directory.
    Linux(Figures),
    /// What the test programs of the system calls print on Linux and on Tine: it must be the same.
    Calls(Machinery),
}

/// What both commands take.
#[derive(Args)]
pub struct Machinery {
    /// A vmlinuz to boot instead of Debian's; may be given several times.
    #[arg(long, value_name = "FILE")]
    kernel: Vec<PathBuf>,
    /// CPUs.
    #[arg(long, value_name = "N", default_value = "1")]
    cpus: u32,
    /// Memory.
    #[arg(long, value_name = "SIZE", value_parser = parse_memory, default_value = "3G")]
    memory: u64,
    /// Give up a boot after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value = "1800")]
    timeout: u64,
    /// Write the results to docs/ instead of target/.
    #[arg(long)]
    save: bool,
}

#[derive(Args)]
struct Figures {
    #[command(flatten)]
    machinery: Machinery,
    /// Only operations that take seconds under emulation at most.
    #[arg(long)]
    quick: bool,
    /// Words for Tine's boot line, such as a design's name.
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    append: Option<String>,
    /// A program, by path or name, and its arguments, instead of the operations. Its first run is shown.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<String>,
}

/// `cargo xtask compare`.
pub fn command(options: &Options, installer: &Installer) -> Result<()> {
    match &options.what {
        What::Linux(figures) => figures.command(installer),
        What::Calls(machinery) => calls::command(machinery, installer),
    }
}

/// One machine and everything that boots on it.
pub struct Bench {
    kernels: Vec<Kernel>,
    system: System,
    topology: Topology,
    timeout: Duration,
    /// Linux's boot line but for the program.
    line: String,
}

/// What one system printed.
pub struct Printed {
    /// `Tine`, or `Linux` and its release.
    pub system: String,
    /// The console, without carriage returns.
    pub console: String,
}

impl Bench {
    /// Fetches and builds what is needed.
    pub fn prepare(machinery: &Machinery, installer: &Installer) -> Result<Self> {
        let kernels = kernels(machinery, installer)?;
        let changes = Changes {
            cpus: Some(machinery.cpus),
            memory_mib: Some(machinery.memory),
            ..Changes::default()
        };
        let topology = Topology::named(Name::Laptop).changed(&changes)?;
        let (emulator, toolchain) = emulator::ensure_all(installer)?;
        let artifacts = Artifacts::build(&toolchain)?;
        Ok(Self {
            kernels,
            system: System {
                emulator,
                artifacts,
            },
            topology,
            timeout: Duration::from_secs(machinery.timeout),
            line: LINUX_LINE.into(),
        })
    }

    /// Runs `/init` with `words` on every system, Tine last.
    pub fn run(
        &self,
        archive: Initramfs,
        words: &[&str],
        append: Option<&str>,
    ) -> Result<Vec<Printed>> {
        let initramfs = archive.finish()?;
        let mut all = Vec::new();
        for kernel in &self.kernels {
            eprintln!("Linux {} on {}", kernel.release, self.topology.describe());
            all.push(self.linux(kernel, &initramfs, words)?);
        }
        eprintln!("Tine on {}", self.topology.describe());
        all.push(self.tine(&initramfs, words, append)?);
        Ok(all)
    }

    fn linux(&self, kernel: &Kernel, initramfs: &[u8], words: &[&str]) -> Result<Printed> {
        let scratch = tempfile::Builder::new().prefix("tine-").tempdir()?;
        let file = scratch.path().join("initramfs");
        fs::write(&file, initramfs)?;
        let machine = Machine {
            qmp: scratch.path().join("qmp"),
            records: scratch.path().join("records"),
        };
        let spec = Spec::new(&self.topology, Mode::Icount, initramfs);
        let mut qemu = Command::new(&self.system.emulator.program);
        qemu.args(spec.machine()).args(machine.arguments());
        qemu.arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&file);
        qemu.arg("-append")
            .arg(format!("{} -- {}", self.line, words.join(" ")));
        let limits = Limits {
            total: Some(self.timeout),
            silence: None,
            report: Duration::from_secs(1),
        };
        let watch = Watch {
            symbols: Symbols::of(&kernel.image),
            log: None,
            interactive: false,
            quiet: true,
        };
        let (ending, console) = run::watch(qemu, &machine, &limits, watch)?;
        let console = String::from_utf8_lossy(&console).replace('\r', "");
        let system = format!("Linux {}", kernel.release);
        ensure!(
            ending == Ending::Exit(Some(0)),
            "{system} ended with {ending:?}:\n{}",
            last_lines(&console)
        );
        Ok(Printed { system, console })
    }

    fn tine(&self, initramfs: &[u8], words: &[&str], append: Option<&str>) -> Result<Printed> {
        let mut spec = Spec::new(&self.topology, Mode::Icount, initramfs);
        spec.line.append = append.map(str::to_string);
        spec.line.init = Some((
            "/init".into(),
            words.iter().map(|w| w.to_string()).collect(),
        ));
        spec.timeout = Some(self.timeout);
        spec.quiet = true;
        let outcome = self.system.boot(&spec)?;
        let console = outcome.console.replace('\r', "");
        // A program that fails is told by its lines.
        if let Err(error) = outcome.verdict()
            && !console.lines().any(|line| line.starts_with("init: /"))
        {
            bail!("Tine: {error:#}:\n{}", last_lines(&console));
        }
        Ok(Printed {
            system: "Tine".into(),
            console,
        })
    }

    /// An archive with the programs of this repository.
    pub fn initramfs(&self) -> Result<Initramfs> {
        self.system.artifacts.initramfs()
    }
}

fn last_lines(console: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// The kernels that were named, else Debian's two; one of these must be there, the other is only missed.
fn kernels(machinery: &Machinery, installer: &Installer) -> Result<Vec<Kernel>> {
    if !machinery.kernel.is_empty() {
        return machinery
            .kernel
            .iter()
            .map(|path| Kernel::file(path))
            .collect();
    }
    let mut found: Vec<Kernel> = Vec::new();
    let mut reasons = Vec::new();
    for suite in [Suite::Own, Suite::Newest] {
        match Kernel::of(suite, installer) {
            Ok(kernel) if found.iter().all(|k| k.release != kernel.release) => found.push(kernel),
            Ok(_) => {}
            Err(error) => reasons.push(format!("{error:#}")),
        }
    }
    ensure!(
        !found.is_empty(),
        "no Linux kernel:\n{}",
        reasons.join("\n")
    );
    reasons
        .iter()
        .for_each(|why| eprintln!("note: one kernel less: {why}"));
    Ok(found)
}

impl Figures {
    fn command(&self, installer: &Installer) -> Result<()> {
        let bench = Bench::prepare(&self.machinery, installer)?;
        if let Some((program, args)) = self.program.split_first() {
            return self.one_program(&bench, Path::new(program), args, installer);
        }
        let mut archive = bench.initramfs()?;
        let mut words = vec!["/bin/ubench"];
        if !self.quick {
            words.push("all");
            add_programs(&mut archive, installer)?;
        }
        let printed = bench.run(archive, &words, self.append.as_deref())?;
        let results = rows::Results::read(&printed)?;
        println!("{}", results.table());
        results.complain();
        let (page, lines) = if self.machinery.save {
            (
                paths::root().join("docs/linux.md"),
                paths::root().join("docs/results/linux.jsonl"),
            )
        } else {
            (
                paths::target().join("compare/linux.md"),
                paths::target().join("compare/linux.jsonl"),
            )
        };
        let quick = if self.quick { " --quick" } else { "" };
        let command = format!("cargo xtask compare linux{quick} --save");
        page::write(&results, &bench, &command, &page, &lines)
    }

    fn one_program(
        &self,
        bench: &Bench,
        program: &Path,
        args: &[String],
        installer: &Installer,
    ) -> Result<()> {
        let mut archive = bench.initramfs()?;
        let path = programs::resolve(program, installer)?;
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .context("no file name")?;
        archive.add_host_program(&format!("bin/{name}"), &path)?;
        let guest = format!("/bin/{name}");
        let mut words = vec!["/bin/ubench", "run", &guest];
        words.extend(args.iter().map(String::as_str));
        // Linux's boot line has no way to write a space within a word.
        ensure!(
            words.iter().all(|w| !w.contains(char::is_whitespace)),
            "an argument with a space in it"
        );
        for printed in bench.run(archive, &words, self.append.as_deref())? {
            println!("--- {}", printed.system);
            let lines = printed.console.lines().filter(|l| !l.starts_with("init: "));
            lines.for_each(|line| println!("{line}"));
        }
        Ok(())
    }
}

/// The programs of the rows that execute one, as far as this machine has them or can make them.
fn add_programs(archive: &mut Initramfs, installer: &Installer) -> Result<()> {
    for name in ["true", "busybox", "dash", "ps", "pstree"] {
        let path = programs::resolve(Path::new(name), installer)?;
        archive.add_host_program(&format!("bin/{name}"), &path)?;
    }
    let scratch = tempfile::tempdir()?;
    let source = scratch.path().join("true.c");
    fs::write(&source, "int main(void) { return 0; }\n")?;
    let made = [
        ("true-glibc-static", "cc", "-static"),
        ("true-musl-static", "musl-gcc", "-static"),
        ("true-musl", "musl-gcc", "-O2"),
    ];
    for (name, compiler, option) in made {
        let path = scratch.path().join(name);
        let Some(compiler) = apt::find_program(compiler) else {
            eprintln!("note: no {compiler}, so no {name} (packages gcc and musl-tools)");
            continue;
        };
        let mut compile = Command::new(compiler);
        compile
            .args(["-O2", "-s", option, "-o"])
            .arg(&path)
            .arg(&source);
        match compile.output() {
            Ok(output) if output.status.success() => {
                archive.add_host_program(&format!("bin/{name}"), &path)?
            }
            _ => eprintln!("note: {name} cannot be made here"),
        }
    }
    Ok(())
}
