//! `cargo xtask qemu`: from options to QEMU's words, and from its end to a verdict.

use crate::{
    apt::Installer,
    build::Artifacts,
    console::Symbols,
    emulator, paths, records,
    run::{self, Ending, Limits, Machine},
    topology::{Changes, Name, Topology, parse_memory},
    words::BootLine,
};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use elf::abi;
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// KVM that shows no life for this long is taken for dead.
const KVM_SILENCE: Duration = Duration::from_secs(10);
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
    /// Words for the kernel's boot line, in place of its stress. An unknown word makes it print all there are.
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    append: Option<String>,
    /// Count instructions: one virtual nanosecond each, figures that repeat to the digit. All CPUs share a host thread.
    #[arg(long)]
    icount: bool,
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
    /// Run this program (a static x86-64 Linux ELF) as the first process, with these arguments. Last on the line.
    #[arg(long, value_name = "PROGRAM [ARGS]...", num_args = 1.., allow_hyphen_values = true)]
    init: Vec<String>,
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
    let (emulator, toolchain) = emulator::ensure_all(installer)?;
    let artifacts = Artifacts::build(&toolchain)?;

    let mut archive = artifacts.initramfs()?;
    if let Some(root) = &options.root {
        archive.add_tree(root)?;
    }
    let mut line = BootLine {
        append: options.append.clone(),
        machine: (topology.name.clone(), options.mode()),
        ..BootLine::default()
    };
    if let Some((program, args)) = options.init.split_first() {
        let name = guest_name(Path::new(program))?;
        archive.add_program(&name, Path::new(program))?;
        line.init = Some((format!("/{name}"), args.to_vec()));
    }

    let scratch = tempfile::Builder::new()
        .prefix("tine-")
        .tempdir()
        .context("cannot make a temporary directory")?;
    let bundle = scratch.path().join("bundle");
    artifacts.write_bundle(&archive.finish()?, &bundle)?;
    let machine = Machine {
        qmp: scratch.path().join("qmp"),
        records: scratch.path().join("records"),
    };
    let mut qemu = Command::new(&emulator.program);
    qemu.args(options.machine(&topology))
        .args(machine.arguments());
    qemu.arg("-kernel")
        .arg(&artifacts.boot)
        .arg("-initrd")
        .arg(&bundle)
        .arg("-append")
        .arg(line.line()?);
    if options.gdb {
        let port = free_port()?;
        qemu.args(["-S", "-gdb", &format!("tcp:127.0.0.1:{port}")]);
        eprintln!("waiting for a debugger; in another terminal:");
        eprintln!(
            "  gdb {} -ex 'target remote 127.0.0.1:{port}' -ex 'hbreak _start' -ex continue",
            paths::shown(&artifacts.kernel)
        );
    }

    eprintln!("{}, {}", topology.describe(), options.mode());
    let limits = Limits {
        total: (options.timeout > 0 && !options.gdb).then(|| Duration::from_secs(options.timeout)),
        silence: (options.accel == Accel::Kvm && !options.gdb).then_some(KVM_SILENCE),
        report: Duration::from_secs(5 + u64::from(topology.cpus()) / 20),
    };
    let symbols = Symbols::of(&artifacts.kernel);
    let ending = run::watch(
        qemu,
        &machine,
        &limits,
        symbols,
        options.log.as_deref(),
        !options.init.is_empty(),
    )?;
    let lines = fs::read_to_string(&machine.records).unwrap_or_default();
    if let Some(path) = &options.records {
        fs::write(path, &lines).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let clean = records::print(&lines);
    verdict(ending, options)?;
    ensure!(clean, "a benchmark record tells of errors or leaks");
    Ok(())
}

impl Options {
    /// Refuses combinations that cannot work, with the reason.
    fn check(&self, topology: &Topology) -> Result<()> {
        let kvm = self.accel == Accel::Kvm;
        ensure!(
            !(kvm && self.icount),
            "--icount counts emulated instructions: it needs --accel tcg"
        );
        ensure!(
            !kvm || Path::new("/dev/kvm").exists(),
            "--accel kvm: this machine has no /dev/kvm"
        );
        let cpus = topology.cpus();
        ensure!(
            !kvm || cpus <= KVM_MAX_CPUS,
            "--accel kvm: {cpus} CPUs are more than the {KVM_MAX_CPUS} that QEMU can build without an interrupt-remapping IOMMU"
        );
        if let Some(program) = self.init.first() {
            warn_unless_program(Path::new(program))?;
        }
        Ok(())
    }

    /// How the kernel's clock is to be read.
    fn mode(&self) -> &'static str {
        match (self.accel, self.icount) {
            (_, true) => "icount",
            (Accel::Tcg, _) => "tcg",
            (Accel::Kvm, _) => "kvm",
        }
    }

    /// QEMU's words for the machine.
    fn machine(&self, topology: &Topology) -> Vec<String> {
        let mut args: Vec<String> = Vec::new();
        let mut push = |words: &[&str]| args.extend(words.iter().map(|w| w.to_string()));
        push(&[
            "-no-user-config",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ]);
        // The firmware looks at every device: leave out what the kernel has no use for.
        push(&[
            "-machine",
            "q35,sata=off,smbus=off,usb=off,vmport=off",
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=4",
        ]);
        match (self.accel, self.icount) {
            (_, true) => {
                push(&[
                    "-cpu",
                    "max",
                    "-accel",
                    "tcg,thread=single",
                    "-icount",
                    "shift=0,sleep=off",
                ]);
                // Nothing the guest can see may differ between two runs.
                push(&["-rtc", "base=2026-01-01T00:00:00,clock=vm", "-seed", "1"]);
            }
            (Accel::Tcg, _) => push(&["-cpu", "max", "-accel", "tcg,thread=multi"]),
            (Accel::Kvm, _) => push(&["-cpu", "host", "-accel", "kvm"]),
        }
        args.extend(topology.arguments());
        for table in &self.acpi_table {
            args.extend(["-acpitable".into(), format!("file={}", table.display())]);
        }
        args
    }
}

/// What the end of QEMU means.
fn verdict(ending: Ending, options: &Options) -> Result<()> {
    match ending {
        Ending::Exit(Some(33)) => Ok(()),
        Ending::Exit(Some(255)) => bail!("the loader stage could not start the kernel"),
        // With -no-reboot, a reset ends QEMU without a word: nothing but a triple fault resets here.
        Ending::Exit(Some(0)) => {
            bail!("the machine reset itself (a triple fault), or was told to quit")
        }
        Ending::Exit(Some(1)) => bail!("QEMU could not start the machine"),
        Ending::Exit(Some(status)) if status & 1 == 1 => match status >> 1 {
            0x20 => bail!("the first process, or a benchmark, failed"),
            0x21 => bail!("the kernel panicked"),
            0x22 => bail!("the kernel hangs"),
            0x23 => bail!("the kernel refused the boot line"),
            code => bail!("the kernel reports failure (code {code:#x})"),
        },
        Ending::Exit(code) => bail!("QEMU ended with {code:?}"),
        Ending::TimedOut => bail!("no verdict within {} s (--timeout)", options.timeout),
        Ending::Silent => bail!(
            "nothing on the console for {} s: KVM does not run this guest here; --accel tcg works everywhere",
            KVM_SILENCE.as_secs()
        ),
    }
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
    let interpreted = |e: &elf::ElfBytes<'_, _>| {
        e.segments()
            .is_some_and(|s| s.iter().any(|p| p.p_type == abi::PT_INTERP))
    };
    match elf {
        Err(_) => eprintln!("note: {} is no ELF file, or a damaged one", path.display()),
        Ok(e) if e.ehdr.e_machine != abi::EM_X86_64 => {
            eprintln!("note: {} is not for x86-64", path.display())
        }
        Ok(e) if interpreted(&e) => {
            eprintln!(
                "note: {} is dynamically linked; its loader and libraries come only with --root",
                path.display()
            );
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
    fn icount_leaves_nothing_to_chance() {
        let topology = Topology::named(Name::Default);
        let words = parse(&["--icount"]).machine(&topology).join(" ");
        for needed in ["thread=single", "shift=0,sleep=off", "clock=vm", "-seed 1"] {
            assert!(words.contains(needed), "{words}");
        }
        assert!(
            parse(&["--icount", "--accel", "kvm"])
                .check(&topology)
                .is_err()
        );
    }

    #[test]
    fn verdicts() {
        let of = |ending| verdict(ending, &parse(&[]));
        assert!(of(Ending::Exit(Some(33))).is_ok());
        for bad in [Some(0), Some(1), Some(3), Some(35), Some(255), None] {
            assert!(of(Ending::Exit(bad)).is_err(), "{bad:?}");
        }
        assert!(of(Ending::TimedOut).is_err() && of(Ending::Silent).is_err());
    }
}
