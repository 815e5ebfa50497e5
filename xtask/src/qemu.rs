//! `cargo xtask qemu`: from options to a boot, and from its end to a verdict.

use crate::{
    apt::Installer,
    bench::results::Contended,
    boot::{Mode, Spec, System},
    build::Artifacts,
    c2c,
    console::Symbols,
    emulator,
    numasim::{Plugin, Simulation},
    paths,
    profile::Profile,
    programs, records,
    topology::{Changes, Name, Topology, parse_memory},
};
use anyhow::{Context, Result, ensure};
use clap::{Args, FromArgMatches, ValueEnum};
use elf::abi;
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

/// More CPUs need an interrupt-remapping IOMMU, which we do not give the machine.
const KVM_MAX_CPUS: u32 = 255;

/// How instructions are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// Software emulation: works everywhere
    Tcg,
    /// Hardware virtualisation: where the machine has it
    Kvm,
}

/// The options of `cargo xtask qemu`.
#[derive(Args)]
pub struct Options {
    /// CPUs in all; they are spread evenly over the nodes.
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// NUMA nodes; with fewer CPUs than nodes, the last ones have memory only.
    #[arg(long, value_name = "N")]
    nodes: Option<u32>,
    /// Memory of each node, such as 64M or 2G.
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory: Option<u64>,
    /// A file with the matrix of distances between nodes (SLIT): a row per line, 10 on the diagonal.
    #[arg(long, value_name = "FILE")]
    distances: Option<PathBuf>,
    /// A machine by name; the options above change it.
    #[arg(long, value_name = "NAME", value_enum, default_value = "default")]
    topology: Name,
    /// An ACPI table, header included, that the firmware adds to its own: for machines that no option describes.
    #[arg(long, value_name = "FILE")]
    acpi_table: Vec<PathBuf>,
    /// Files for the initramfs: everything below this directory.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// A program of this machine for /bin, with its interpreter and libraries: a path, or a name, whose Debian package is
    /// installed if need be.
    #[arg(long, value_name = "PROGRAM")]
    with: Vec<PathBuf>,
    /// Words for the kernel's boot line, in place of its stress. An unknown word makes it print all there are.
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    append: Option<String>,
    /// Count instructions: one virtual nanosecond each, figures that repeat to the digit. All CPUs share a host thread.
    #[arg(long)]
    icount: bool,
    /// Simulate NUMA time with the costs of this profile (profiles/, or a path ending in .toml): cycles with caches
    /// and distances, the same in every run.
    #[arg(long, value_name = "PROFILE", num_args = 0..=1, require_equals = true, default_missing_value = "default",
        conflicts_with_all = ["icount", "gdb"])]
    numasim: Option<String>,
    /// With --numasim: print which lines of memory cost most, and which code waited for them.
    #[arg(long, requires = "numasim")]
    c2c: bool,
    /// With --numasim: print every line of memory that two CPUs touched in a window and one of them wrote.
    #[arg(long, requires = "numasim")]
    conflicts: bool,
    /// With --numasim: keep what the simulator wrote (JSON lines) in this file.
    #[arg(long, value_name = "FILE", requires = "numasim")]
    simulation: Option<PathBuf>,
    /// How instructions are run.
    #[arg(long, value_enum, default_value = "tcg")]
    accel: Accel,
    /// Wait for a debugger before the first instruction, and print the line that attaches it.
    #[arg(long)]
    gdb: bool,
    /// Give up after this many seconds, with a report of what every CPU does. 0: never.
    #[arg(long, value_name = "SECONDS", default_value = "300")]
    timeout: u64,
    /// Write the console to this file too.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Keep the benchmark records (JSON lines) in this file.
    #[arg(long, value_name = "FILE")]
    records: Option<PathBuf>,
    /// Run this program (an x86-64 Linux ELF) as the first process, with these arguments. Its interpreter and libraries
    /// come along. Last on the line.
    #[arg(long, value_name = "PROGRAM [ARGS]...", num_args = 1.., allow_hyphen_values = true)]
    init: Vec<String>,
}

/// The options of `cargo xtask shell`.
#[derive(Args)]
pub struct Shell {
    /// More programs for /bin, by path or by name.
    #[arg(long, value_name = "PROGRAM")]
    with: Vec<String>,
}

/// `cargo xtask shell`.
pub fn shell(shell: &Shell, installer: &Installer) -> Result<()> {
    let with = shell.with.iter().flat_map(|name| ["--with", name]);
    let words = ["qemu", "--topology", "laptop", "--timeout", "0"];
    // Not the first process itself: whose parent is the first process cannot be stopped from a terminal.
    let script = "cat /etc/motd; PS1='tine# ' busybox setsid -c busybox sh -i; exit";
    let init = ["--init", "busybox", "sh", "-c", script];
    let line = words.into_iter().chain(with).chain(init);
    command(&Options::from_words(line)?, installer)
}

/// The options of `cargo xtask strace`.
#[derive(Args)]
pub struct Traced {
    /// More programs for /bin.
    #[arg(long, value_name = "PROGRAM")]
    with: Vec<String>,
    /// The program, by path or by name, and its arguments.
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<String>,
}

/// `cargo xtask strace`.
pub fn strace(traced: &Traced, installer: &Installer) -> Result<()> {
    let with = traced.with.iter().flat_map(|name| ["--with", name]);
    let words = ["qemu", "--topology", "laptop", "--append", "strace=on"];
    let program = traced.program.iter().map(String::as_str);
    let line = words
        .into_iter()
        .chain(with)
        .chain(["--init"])
        .chain(program);
    command(&Options::from_words(line)?, installer)
}

/// `cargo xtask qemu`.
pub fn command(options: &Options, installer: &Installer) -> Result<()> {
    let changes = Changes {
        cpus: options.cpus,
        nodes: options.nodes,
        memory_mib: options.memory,
        distances: options.distances.as_deref(),
    };
    let topology = Topology::named(options.topology).changed(&changes)?;
    options.check(&topology)?;
    let profile = options.numasim.as_deref().map(Profile::load).transpose()?;
    if let Some(profile) = &profile {
        profile.configuration(&topology)?;
    }
    let (emulator, toolchain) = emulator::ensure_all(installer)?;
    let plugin = profile
        .as_ref()
        .map(|_| Plugin::build(&emulator))
        .transpose()?;
    let artifacts = Artifacts::build(&toolchain)?;

    let mut archive = artifacts.initramfs()?;
    if let Some(root) = &options.root {
        archive.add_tree(root)?;
    }
    for program in &options.with {
        let program = programs::resolve(program, installer)?;
        archive.add_host_program(&guest_name(&program)?, &program)?;
    }
    let mut init = None;
    if let Some((program, args)) = options.init.split_first() {
        let program = programs::resolve(Path::new(program), installer)?;
        warn_unless_program(&program)?;
        let name = guest_name(&program)?;
        archive.add_host_program(&name, &program)?;
        init = Some((format!("/{name}"), args.to_vec()));
    }
    let initramfs = archive.finish()?;
    let scratch = tempfile::Builder::new().prefix("tine-").tempdir()?;
    let written = scratch.path().join("simulation");
    let mode = match plugin.as_ref().zip(profile.as_ref()) {
        Some((plugin, profile)) => Mode::Numasim(plugin.words(profile, &topology, &written)?),
        None => options.mode(),
    };
    let mut spec = Spec::new(&topology, mode, &initramfs);
    spec.line.append = options.append.clone();
    spec.line.init = init;
    spec.acpi_tables = &options.acpi_table;
    spec.timeout =
        (options.timeout > 0 && !options.gdb).then(|| Duration::from_secs(options.timeout));
    spec.log = options.log.as_deref();
    spec.interactive = !options.init.is_empty();
    if options.gdb {
        let port = free_port()?;
        spec.gdb = Some(port);
        eprintln!("waiting for a debugger; in another terminal:");
        eprintln!(
            "  gdb {} -ex 'target remote 127.0.0.1:{port}' -ex 'hbreak _start' -ex continue",
            paths::shown(&artifacts.kernel)
        );
    }

    eprintln!("{}, {}", topology.describe(), spec.mode.name());
    let system = System {
        emulator,
        artifacts,
    };
    let outcome = system.boot(&spec)?;
    if let Some(path) = &options.records {
        fs::write(path, &outcome.records)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let clean = records::print(&outcome.records);
    if profile.is_some()
        && let Some(path) = &options.simulation
    {
        fs::copy(&written, path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    outcome.verdict()?;
    if profile.is_some() {
        let simulation = Simulation::read(&written)?;
        println!("{}", simulation.describe());
        simulation.check()?;
        let mut symbols = Symbols::of(&system.artifacts.kernel);
        if options.c2c {
            c2c::print(&simulation, &mut symbols);
        }
        if options.conflicts {
            for line in c2c::conflicts(&simulation, &mut symbols) {
                let Contended {
                    what,
                    code,
                    readers,
                    writers,
                    ..
                } = line;
                println!("conflict: {what} | read by {readers}, written by {writers} | {code}");
            }
        }
    }
    ensure!(clean, "a benchmark record tells of errors or leaks");
    Ok(())
}

impl Options {
    /// As if `words`, the first of which is the command's name, stood on the command line.
    fn from_words<'w>(words: impl Iterator<Item = &'w str>) -> Result<Self> {
        let line = Self::augment_args(clap::Command::new("qemu"));
        let words: Vec<String> = words.map(String::from).collect();
        Ok(Self::from_arg_matches(&line.try_get_matches_from(words)?)?)
    }

    /// Refuses combinations that cannot work, with the reason.
    fn check(&self, topology: &Topology) -> Result<()> {
        let kvm = self.accel == Accel::Kvm;
        ensure!(
            !(kvm && self.icount),
            "--icount counts emulated instructions: it needs --accel tcg"
        );
        ensure!(
            !(kvm && self.numasim.is_some()),
            "--numasim simulates emulated CPUs: it needs --accel tcg"
        );
        ensure!(
            !kvm || Path::new("/dev/kvm").exists(),
            "--accel kvm: this machine has no /dev/kvm"
        );
        let cpus = topology.cpus();
        if self.numasim.is_some() {
            check_simulated(self.append.as_deref().unwrap_or_default(), cpus)?;
        }
        ensure!(
            !kvm || cpus <= KVM_MAX_CPUS,
            "--accel kvm: {cpus} CPUs are more than the {KVM_MAX_CPUS} that QEMU can build without an interrupt-remapping IOMMU"
        );
        Ok(())
    }

    /// How it runs.
    fn mode(&self) -> Mode {
        match (self.accel, self.icount) {
            (_, true) => Mode::Icount,
            (Accel::Tcg, _) => Mode::Tcg,
            (Accel::Kvm, _) => Mode::Kvm,
        }
    }
}

/// Refuses boot words that a simulation, which has no preemption, cannot give a meaning.
fn check_simulated(words: &str, cpus: u32) -> Result<()> {
    let value = |name: &str| {
        let mut values = words.split_whitespace().filter_map(|w| w.split_once('='));
        values.rfind(|(n, _)| *n == name).map(|(_, v)| v)
    };
    let number = |name| value(name).and_then(|v| v.parse::<u64>().ok());
    let cpus = number("maxcpus").unwrap_or(u64::MAX).min(cpus.into());
    let workers = number("workers").unwrap_or(cpus);
    ensure!(
        workers <= cpus,
        "workers={workers} on {cpus} CPUs: a simulation has no preemption, so that two workers of one CPU would wait for each other"
    );
    ensure!(
        value("place") != Some("spread"),
        "place=spread: a simulation has no preemption, so that each worker needs a CPU of its own (place=pinned)"
    );
    Ok(())
}

/// Where a program of the host goes in the initramfs: its own name, in /bin.
fn guest_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|n| n.to_str());
    Ok(format!(
        "bin/{}",
        name.with_context(|| format!("--init {}: no file name", path.display()))?
    ))
}

/// Says what will probably not run; whether it does is the kernel's to decide.
fn warn_unless_program(path: &Path) -> Result<()> {
    let file = fs::read(path).with_context(|| format!("--init {}", path.display()))?;
    let elf = elf::ElfBytes::<elf::endian::AnyEndian>::minimal_parse(&file);
    match elf {
        Err(_) => eprintln!("note: {} is no ELF file, or a damaged one", path.display()),
        Ok(e) if e.ehdr.e_machine != abi::EM_X86_64 => {
            eprintln!("note: {} is not for x86-64", path.display())
        }
        Ok(_) => {}
    }
    Ok(())
}

/// A TCP port that nobody listens on just now.
fn free_port() -> Result<u16> {
    let listener =
        TcpListener::bind("127.0.0.1:1234").or_else(|_| TcpListener::bind("127.0.0.1:0"))?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(words: &[&str]) -> Options {
        Line::try_parse_from([&["qemu"], words].concat())
            .unwrap()
            .options
    }

    #[test]
    fn init_takes_the_rest_of_the_line() {
        let options = parse(&["--icount", "--init", "/bin/busybox", "ls", "-l", "--icount"]);
        assert_eq!(options.init, ["/bin/busybox", "ls", "-l", "--icount"]);
        assert_eq!(guest_name(Path::new("../some/prog")).unwrap(), "bin/prog");
        assert!(guest_name(Path::new("..")).is_err());
    }

    #[test]
    fn what_cannot_be_simulated_is_refused() {
        assert!(check_simulated("bench=fork workers=8 place=pinned", 8).is_ok());
        assert!(check_simulated("", 1).is_ok());
        for (words, reason) in [
            ("bench=fork workers=9", "workers=9 on 8"),
            ("bench=fork workers=3 maxcpus=2", "workers=3 on 2"),
            ("bench=fork place=spread", "place=spread"),
        ] {
            let error = check_simulated(words, 8).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn icount_is_emulation() {
        let topology = Topology::named(Name::Default);
        assert_eq!(parse(&["--icount"]).mode(), Mode::Icount);
        let both = parse(&["--icount", "--accel", "kvm"]);
        assert!(both.check(&topology).is_err());
    }
}
