//! One boot of the system under QEMU: what to start, and what came of it.
//!
//! `cargo xtask qemu` makes one boot from its options, `cargo xtask bench` hundreds from a matrix. Both describe it as a
//! [`Spec`] and get an [`Outcome`]; only this file knows QEMU's words for a mode.

use crate::{
    build::Artifacts,
    console::Symbols,
    emulator::Emulator,
    run::{self, Ending, Limits, Machine, Watch},
    topology::Topology,
    words::BootLine,
};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// KVM that shows no life for this long is taken for dead.
const KVM_SILENCE: Duration = Duration::from_secs(10);

/// How instructions are run and what a cycle is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Emulation that counts instructions.
    Icount,
    /// Emulation with a simulator's plugin, whose words for QEMU these are.
    Numasim(Vec<String>),
    /// Plain emulation.
    Tcg,
    /// Hardware virtualisation.
    Kvm,
}

impl Mode {
    /// The word after `mode=` on the boot line.
    pub fn name(&self) -> &'static str {
        match self {
            Mode::Icount => "icount",
            Mode::Numasim(_) => "numasim",
            Mode::Tcg => "tcg",
            Mode::Kvm => "kvm",
        }
    }

    /// QEMU's words.
    fn arguments(&self) -> Vec<String> {
        let words = |words: &[&str]| words.iter().map(|w| w.to_string()).collect();
        // Nothing the guest can see may differ between two runs.
        let fixed = ["-rtc", "base=2026-01-01T00:00:00,clock=vm", "-seed", "1"];
        match self {
            Mode::Icount => {
                let count = [
                    "-cpu",
                    "max",
                    "-accel",
                    "tcg,thread=single",
                    "-icount",
                    "shift=0,sleep=off",
                ];
                words(&[&count[..], &fixed].concat())
            }
            Mode::Numasim(plugin) => {
                // Room for translations is divided among all CPUs before anything is translated: little of it is little
                // for the one that boots. When it is full QEMU stops all CPUs.
                let emulate = ["-cpu", "max", "-accel", "tcg,thread=multi,tb-size=2047"];
                let mut all: Vec<String> = words(&[&emulate[..], &fixed].concat());
                all.extend_from_slice(plugin);
                all
            }
            Mode::Tcg => words(&["-cpu", "max", "-accel", "tcg,thread=multi"]),
            Mode::Kvm => words(&["-cpu", "host", "-accel", "kvm"]),
        }
    }
}

/// A boot to make.
pub struct Spec<'a> {
    /// The machine.
    pub topology: &'a Topology,
    /// How it runs.
    pub mode: Mode,
    /// The kernel's words, but for machine and mode, which are added here.
    pub line: BootLine,
    /// A finished archive.
    pub initramfs: &'a [u8],
    /// ACPI tables beside the firmware's own.
    pub acpi_tables: &'a [PathBuf],
    /// A TCP port at which QEMU waits for a debugger.
    pub gdb: Option<u16>,
    /// When to lose patience.
    pub timeout: Option<Duration>,
    /// The console goes to [`Outcome::console`] instead of the terminal.
    pub quiet: bool,
    /// A file for the console.
    pub log: Option<&'a Path>,
    /// What is typed goes to the guest.
    pub interactive: bool,
}

impl<'a> Spec<'a> {
    /// A boot of `topology` in `mode` without time limit, whose console is shown.
    pub fn new(topology: &'a Topology, mode: Mode, initramfs: &'a [u8]) -> Self {
        Self {
            topology,
            mode,
            line: BootLine::default(),
            initramfs,
            acpi_tables: &[],
            gdb: None,
            timeout: None,
            quiet: false,
            log: None,
            interactive: false,
        }
    }

    /// QEMU's words for the machine.
    pub fn machine(&self) -> Vec<String> {
        // The firmware looks at every device: leave out what the kernel has no use for.
        let common = "-no-user-config -nodefaults -display none -no-reboot \
            -machine q35,sata=off,smbus=off,usb=off,vmport=off \
            -device isa-debug-exit,iobase=0xf4,iosize=4";
        let mut args: Vec<String> = common.split_whitespace().map(str::to_string).collect();
        args.extend(self.mode.arguments());
        args.extend(self.topology.arguments());
        for table in self.acpi_tables {
            args.extend(["-acpitable".into(), format!("file={}", table.display())]);
        }
        args
    }
}

/// What came of a boot.
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// The benchmark records, a line of JSON each.
    pub records: String,
    /// What the console said, if it was not shown.
    pub console: String,
    /// The time limit it had.
    timeout: Option<Duration>,
}

/// What is booted, and by which QEMU.
pub struct System {
    /// QEMU.
    pub emulator: Emulator,
    /// Boot, kernel and user programs.
    pub artifacts: Artifacts,
}

impl System {
    /// Boots it and waits for the end.
    ///
    /// # Errors
    /// QEMU could not be started; a boot that fails is an [`Outcome`].
    pub fn boot(&self, spec: &Spec<'_>) -> Result<Outcome> {
        let scratch = tempfile::Builder::new()
            .prefix("tine-")
            .tempdir()
            .context("cannot make a temporary directory")?;
        let bundle = scratch.path().join("bundle");
        self.artifacts.write_bundle(spec.initramfs, &bundle)?;
        let machine = Machine {
            qmp: scratch.path().join("qmp"),
            records: scratch.path().join("records"),
        };
        let mut qemu = Command::new(&self.emulator.program);
        qemu.args(spec.machine()).args(machine.arguments());
        qemu.arg("-kernel")
            .arg(&self.artifacts.boot)
            .arg("-initrd")
            .arg(&bundle)
            .arg("-append")
            .arg(spec.line.line(&spec.topology.name, spec.mode.name())?);
        if let Some(port) = spec.gdb {
            qemu.args(["-S", "-gdb", &format!("tcp:127.0.0.1:{port}")]);
        }
        let limits = Limits {
            total: spec.timeout,
            silence: (spec.mode == Mode::Kvm && spec.gdb.is_none()).then_some(KVM_SILENCE),
            report: Duration::from_secs(5 + u64::from(spec.topology.cpus()) / 20),
        };
        let watch = Watch {
            symbols: Symbols::of(&self.artifacts.kernel),
            log: spec.log,
            interactive: spec.interactive,
            quiet: spec.quiet,
        };
        let (ending, console) = run::watch(qemu, &machine, &limits, watch)?;
        Ok(Outcome {
            ending,
            records: fs::read_to_string(&machine.records).unwrap_or_default(),
            console: String::from_utf8_lossy(&console).into_owned(),
            timeout: spec.timeout,
        })
    }
}

impl Outcome {
    /// What the end of QEMU means.
    ///
    /// # Errors
    /// Anything but the kernel's own "all is well".
    pub fn verdict(&self) -> Result<()> {
        match self.ending {
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
            Ending::TimedOut => bail!(
                "no verdict within {} s (--timeout)",
                self.timeout.unwrap_or_default().as_secs()
            ),
            Ending::Silent => bail!(
                "nothing on the console for {} s: KVM does not run this guest here; --accel tcg works everywhere",
                KVM_SILENCE.as_secs()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Name;

    #[test]
    fn modes_that_repeat_leave_nothing_to_chance() {
        let topology = Topology::named(Name::Default);
        let words = |mode| Spec::new(&topology, mode, &[]).machine().join(" ");
        let icount = words(Mode::Icount);
        for needed in ["thread=single", "shift=0,sleep=off", "clock=vm", "-seed 1"] {
            assert!(icount.contains(needed), "{icount}");
        }
        let numasim = words(Mode::Numasim(vec!["-plugin".into(), "x.so".into()]));
        assert!(numasim.contains("-plugin x.so") && numasim.contains("thread=multi"));
        assert!(!words(Mode::Tcg).contains("icount"));
    }

    #[test]
    fn verdicts() {
        let of = |ending| {
            Outcome {
                ending,
                records: String::new(),
                console: String::new(),
                timeout: None,
            }
            .verdict()
        };
        assert!(of(Ending::Exit(Some(33))).is_ok());
        for bad in [Some(0), Some(1), Some(3), Some(35), Some(255), None] {
            assert!(of(Ending::Exit(bad)).is_err(), "{bad:?}");
        }
        assert!(of(Ending::TimedOut).is_err() && of(Ending::Silent).is_err());
    }
}
