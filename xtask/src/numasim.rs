//! The simulation of NUMA time: building QEMU's plugin, QEMU's words for it, and what it wrote.

use crate::{
    emulator::Emulator,
    paths,
    profile::Profile,
    progress::Step,
    toolchain::{self, own_cargo},
    topology::Topology,
};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The oldest QEMU that speaks the plugin's version of the interface.
const MINIMUM: (u32, u32) = (10, 0);
/// How the plugin asks for its configuration.
const ASKS: &str = "config=FILE is missing";

/// The plugin, built.
pub struct Plugin {
    library: PathBuf,
}

impl Plugin {
    /// Builds it for `emulator`.
    ///
    /// # Errors
    /// That QEMU is too old, or the build failed.
    pub fn build(emulator: &Emulator) -> Result<Self> {
        new_enough(emulator)?;
        let mut cargo = Command::new(own_cargo());
        toolchain::clean_environment(&mut cargo);
        cargo.current_dir(paths::root());
        cargo.args([
            "build",
            "--release",
            "-p",
            "numasim",
            "--message-format=json-render-diagnostics",
        ]);
        let output = Step::new("building the simulator").run(cargo)?;
        let artifacts = output.lines().filter_map(|l| serde_json::from_str(l).ok());
        let files = artifacts.flat_map(|m: serde_json::Value| {
            m["filenames"].as_array().cloned().unwrap_or_default()
        });
        let library = files
            .filter_map(|f| f.as_str().map(PathBuf::from))
            .find(|f| f.extension().is_some_and(|e| e == "so" || e == "dylib"));
        let library = library.context("cargo built no plugin")?;
        accepts(emulator, &library)?;
        Ok(Self { library })
    }

    /// Itself and what it would be told, for a fingerprint.
    ///
    /// # Errors
    /// The profile does not cover the topology; its file cannot be read.
    pub fn bytes(&self, profile: &Profile, topology: &Topology) -> Result<Vec<u8>> {
        let mut bytes = fs::read(&self.library)
            .with_context(|| format!("cannot read {}", self.library.display()))?;
        bytes.extend(profile.configuration(topology)?.into_bytes());
        Ok(bytes)
    }

    /// QEMU's words for a simulation of `topology` under `profile`. The plugin writes to `out`, which [`Simulation::read`]
    /// reads; what it is told is put in a file beside it.
    ///
    /// # Errors
    /// The profile does not cover the topology.
    pub fn words(&self, profile: &Profile, topology: &Topology, out: &Path) -> Result<Vec<String>> {
        let text = profile.configuration(topology)?;
        let config = out.with_extension("config");
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let library = self.library.display();
        let word = format!(
            "{library},config={},out={}",
            config.display(),
            out.display()
        );
        for path in [&self.library, &config, &out.to_path_buf()] {
            ensure!(
                !path.to_string_lossy().contains(','),
                "{}: QEMU cannot take a comma in a path",
                path.display()
            );
        }
        Ok(vec!["-plugin".into(), word])
    }
}

/// Refuses a QEMU that has not the plugin's version of the interface yet.
fn new_enough(emulator: &Emulator) -> Result<()> {
    ensure!(
        emulator.version >= MINIMUM,
        "the simulation needs QEMU {}.{} or later, whose plugin interface it speaks; {} is {}.{}",
        MINIMUM.0,
        MINIMUM.1,
        emulator.program.display(),
        emulator.version.0,
        emulator.version.1
    );
    Ok(())
}

/// Whether QEMU takes the plugin, before anything boots: on a machine of nothing, the plugin is loaded, told nothing, and
/// asks for its configuration. If QEMU does not get that far, for it no longer speaks that version, say, it says why.
fn accepts(emulator: &Emulator, library: &Path) -> Result<()> {
    let output = Command::new(&emulator.program)
        .args(["-machine", "none", "-nodefaults", "-display", "none"])
        .arg("-plugin")
        .arg(library)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", emulator.program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        said.contains(ASKS),
        "QEMU {}.{} does not take the simulator: {}",
        emulator.version.0,
        emulator.version.1,
        said.trim()
    );
    Ok(())
}

/// Cycles lost, and how.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Loss {
    /// Times the line had to be fetched.
    pub misses: u64,
    /// Cycles waited for it to come.
    pub fetching: u64,
    /// Cycles spun until it changed.
    pub spinning: u64,
}

impl Loss {
    /// All cycles.
    pub fn cycles(&self) -> u64 {
        self.fetching + self.spinning
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Loss) {
        self.misses += other.misses;
        self.fetching += other.fetching;
        self.spinning += other.spinning;
    }
}

/// A place in the code and what it lost to a line.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Code {
    /// Its virtual address.
    pub at: u64,
    /// What it lost.
    #[serde(flatten)]
    pub loss: Loss,
}

/// A line that CPUs had touched last by a locked access when they spun on another.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Behind {
    /// Its physical address.
    pub line: u64,
    /// For how many cycles they spun.
    pub cycles: u64,
}

/// A line of memory in a window.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Line {
    /// Its physical address.
    pub line: u64,
    /// A virtual address through which it was touched.
    pub address: u64,
    /// CPUs that read it.
    pub readers: u64,
    /// CPUs that wrote it.
    pub writers: u64,
    /// Nodes of all these.
    pub nodes: u64,
    /// Two CPUs touched it, and one wrote.
    pub conflict: bool,
    /// What was lost to it.
    #[serde(flatten)]
    pub loss: Loss,
    /// By which code, most first.
    pub code: Vec<Code>,
    /// Of the cycles spun, those by CPUs whose last locked access was to another line.
    pub behind: Vec<Behind>,
    /// What lies there, if the guest said.
    #[serde(skip)]
    pub name: Option<String>,
}

/// A measured window.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Window {
    /// Counted from 0.
    #[serde(rename = "window")]
    pub number: u64,
    /// CPUs that took part.
    pub cpus: u64,
    /// Simulated cycles.
    pub cycles: u64,
    /// Not 0: not valid.
    pub breaks: u64,
    /// Lines of memory that were touched.
    #[serde(rename = "lines")]
    pub nr_lines: u64,
    /// Lines that two CPUs touched and one wrote.
    pub conflicts: u64,
    /// What was lost in all.
    #[serde(flatten)]
    pub loss: Loss,
    /// All conflicting lines and the dearest of the others.
    #[serde(skip)]
    pub lines: Vec<Line>,
}

#[derive(Deserialize)]
struct Name {
    name: String,
    line: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
struct End {
    end: bool,
    windows: u64,
    #[allow(dead_code, reason = "for people who read the file")]
    cycles: u64,
    switches: u64,
    breaks: u64,
    intruders: u64,
    quiet: bool,
}

/// What a simulation wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Simulation {
    /// Its windows, in order.
    pub windows: Vec<Window>,
    end: Option<End>,
}

impl Simulation {
    /// Reads what the plugin wrote to `path`.
    ///
    /// # Errors
    /// A line is not what the plugin writes.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let (mut windows, mut end): (Vec<Window>, _) = (vec![], None);
        for (number, line) in (1..).zip(text.lines()) {
            let bad = || format!("line {number} of the simulator's output");
            if line.starts_with("{\"window\"") {
                windows.push(serde_json::from_str(line).with_context(bad)?);
            } else if line.starts_with("{\"end\"") {
                end = Some(serde_json::from_str(line).with_context(bad)?);
            } else if line.starts_with("{\"name\"") {
                let Name { name, line } = serde_json::from_str(line).with_context(bad)?;
                let mut lines = windows.iter_mut().rev().flat_map(|w| &mut w.lines);
                let named = lines.find(|l| l.line == line).with_context(bad)?;
                named.name = Some(name);
            } else {
                let line = serde_json::from_str(line).with_context(bad)?;
                windows.last_mut().with_context(bad)?.lines.push(line);
            }
        }
        Ok(Self { windows, end })
    }

    /// Whether what was simulated is what would be simulated the next time.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<()> {
        let end = self
            .end
            .as_ref()
            .context("the simulator wrote no last line")?;
        for window in &self.windows {
            ensure!(
                window.breaks == 0,
                "window {} is not valid: the simulation was broken open {} times in it ({} in all, {} foreign interrupts)",
                window.number,
                window.breaks,
                end.breaks,
                end.intruders
            );
        }
        if !end.quiet {
            bail!("the simulation began before all CPUs were idle: it will not repeat");
        }
        Ok(())
    }

    /// A line for people.
    pub fn describe(&self) -> String {
        let windows = self.windows.len();
        let switches = self.end.as_ref().map_or(0, |e| e.switches);
        let breaks = self.end.as_ref().map_or(0, |e| e.breaks);
        format!("simulated: {windows} windows, {switches} switches between CPUs, {breaks} breaks")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: &str = "{\"window\":0,\"cpus\":2,\"cycles\":500,\"breaks\":0,\"lines\":1,\"conflicts\":1,\"misses\":2,\
        \"fetching\":310,\"spinning\":5}\n\
        {\"line\":128,\"address\":64,\"readers\":1,\"writers\":2,\"nodes\":1,\"conflict\":true,\"misses\":2,\"fetching\":310,\
        \"spinning\":5,\"code\":[{\"at\":16,\"misses\":2,\"fetching\":310,\"spinning\":5}],\"behind\":[{\"line\":128,\"cycles\":5}]}\n\
        {\"name\":\"task +0x40\",\"line\":128}\n";
    const END: &str = "{\"end\":true,\"windows\":1,\"cycles\":9,\"switches\":7,\"breaks\":0,\"intruders\":0,\"quiet\":true}\n";

    #[test]
    fn reads_what_the_plugin_writes() {
        let sim = Simulation::parse(&format!("{WINDOW}{END}")).unwrap();
        sim.check().unwrap();
        let window = &sim.windows[0];
        assert_eq!(
            (window.loss.cycles(), window.lines[0].code[0].at),
            (315, 16)
        );
        assert_eq!(window.lines[0].name.as_deref(), Some("task +0x40"));
        assert!(sim.describe().contains("7 switches"));
    }

    #[test]
    fn an_old_qemu_is_refused() {
        let of = |version| Emulator {
            program: "/opt/qemu".into(),
            version,
        };
        let error = new_enough(&of((9, 2))).unwrap_err().to_string();
        assert!(error.contains("/opt/qemu is 9.2"), "{error}");
        assert!(new_enough(&of((10, 0))).is_ok() && new_enough(&of((11, 1))).is_ok());
    }

    /// A plugin of another version, made here; with no QEMU there is nobody to refuse it.
    #[test]
    fn a_plugin_of_another_version_is_refused() {
        let Some(emulator) = crate::emulator::find() else {
            eprintln!("no QEMU: not tested");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let (source, library) = (dir.path().join("p.rs"), dir.path().join("libp.so"));
        let text = "#[unsafe(no_mangle)] pub static qemu_plugin_version: i32 = 99;\n\
            #[unsafe(no_mangle)] pub extern \"C\" fn qemu_plugin_install() -> i32 { -1 }\n";
        fs::write(&source, text).unwrap();
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let built = Command::new(rustc)
            .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
            .args([&library, &source])
            .status();
        assert!(built.unwrap().success());
        let error = accepts(&emulator, &library).unwrap_err().to_string();
        assert!(
            error.contains("does not take") && error.contains("99"),
            "{error}"
        );
    }

    #[test]
    fn what_is_not_valid_is_refused() {
        let says = |text: String, word: &str| {
            let error = Simulation::parse(&text)
                .and_then(|s| s.check())
                .unwrap_err();
            assert!(format!("{error:#}").contains(word), "{error:#}");
        };
        says(WINDOW.into(), "no last line");
        says(
            format!("{}{END}", WINDOW.replace("\"breaks\":0", "\"breaks\":3")),
            "broken open 3 times",
        );
        says(
            format!(
                "{WINDOW}{}",
                END.replace("\"quiet\":true", "\"quiet\":false")
            ),
            "idle",
        );
        says("{\"window\":0}".into(), "line 1");
        says(WINDOW.lines().nth(1).unwrap().into(), "line 1");
    }
}
