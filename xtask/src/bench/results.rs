//! Results files: a line of JSON per cell, with everything needed to make it again.

use crate::{ask::ask, emulator::Emulator};
use anyhow::{Context, Result};
use kbench::Record;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
};
use xshell::cmd;

/// Where and with what a run was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The commit; empty where there is none.
    pub commit: String,
    /// Whether files differed from it.
    pub dirty: bool,
    /// A hash over boot, kernel and programs: what ran, whatever the commit.
    pub build: String,
    /// The compiler, and words that changed the build's profile.
    pub compiler: String,
    /// QEMU's version.
    pub qemu: String,
    /// The host.
    pub machine: String,
    /// The day, UTC.
    #[serde(default)]
    pub date: String,
}

/// A line of a results file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// [`super::matrix::Cell::key`].
    pub cell: String,
    /// The line that makes it again.
    pub command: String,
    /// Seconds it took.
    pub seconds: f64,
    /// Further words of the boot line: the same cell, otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub append: String,
    /// The simulator's profile, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// A hash over the simulator and what it was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Where and with what.
    pub origin: Origin,
    /// The kernel's record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<Record>,
    /// Lines of memory and what was lost to them, dearest first, where the mode can tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub c2c: Vec<Contended>,
    /// Why there is no record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What CPUs lost to one line of memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Contended {
    /// What is there: a symbol, a type of object, or an address.
    pub what: String,
    /// CPUs that read it.
    pub readers: u64,
    /// CPUs that wrote it.
    pub writers: u64,
    /// Nodes of all these; 0 in files from before they were counted.
    #[serde(default)]
    pub nodes: u64,
    /// Times it had to be fetched.
    pub misses: u64,
    /// Cycles lost to it.
    pub cycles: u64,
    /// The code that lost the most.
    pub code: String,
}

impl Row {
    /// The record, unless the cell failed.
    pub fn good(&self) -> Option<&Record> {
        self.record.as_ref().filter(|_| self.error.is_none())
    }
}

/// Reads a results file. A half-written last line is left out: whoever wrote it died.
///
/// # Errors
/// The file cannot be read, or a line before the last is no result.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let mut rows = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(row) => rows.push(row),
            Err(_) if number + 1 == lines.len() && !text.ends_with('\n') => break,
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("{}, line {}", path.display(), number + 1));
            }
        }
    }
    Ok(rows)
}

/// Writes a results file whole, by way of a file beside it: nobody sees half of it.
///
/// # Errors
/// The file system's.
pub fn write(path: &Path, rows: &[Row]) -> Result<()> {
    let mut text = String::new();
    for row in rows {
        text += &serde_json::to_string(row)?;
        text.push('\n');
    }
    let beside = path.with_extension("part");
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Adds one line.
///
/// # Errors
/// The file system's.
pub fn append(path: &Path, row: &Row) -> Result<()> {
    let line = serde_json::to_string(row)? + "\n";
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(line.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

impl Origin {
    /// Of what is about to run.
    pub fn of(emulator: &Emulator, compiler: &str, build: &[u8]) -> Origin {
        let git = |words: &str| ask(|sh| cmd!(sh, "git").args(words.split(' ')));
        let changed = git("status --porcelain --untracked-files=no");
        let (major, minor) = emulator.version;
        Origin {
            commit: git("rev-parse --short=12 HEAD")
                .unwrap_or_default()
                .trim()
                .into(),
            dirty: changed.is_some_and(|text| !text.trim().is_empty()),
            build: fingerprint(build),
            compiler: compiler.into(),
            qemu: format!("{major}.{minor}"),
            machine: machine(),
            date: ask(|sh| cmd!(sh, "date -u +%F"))
                .unwrap_or_default()
                .trim()
                .into(),
        }
    }
}

/// Tells builds apart, no more.
pub fn fingerprint(bytes: &[u8]) -> String {
    format!("{:016x}", hash(bytes))
}

/// FNV-1a, 64 bits.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The host in a line.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(": "));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let name = model.map_or(std::env::consts::ARCH, |(_, name)| name);
    format!("{cpus} CPUs of {name}")
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use kbench::{
        Histogram,
        record::{Mode, TopologyInfo},
    };

    /// A row of `cell` with one sample of `cycles` per operation.
    pub fn row(cell: &str, mode: Mode, cycles: u64) -> Row {
        let mut histogram = Histogram::try_new().unwrap();
        histogram.record(cycles);
        let topology = TopologyInfo {
            cpus: 8,
            nodes: 4,
            name: "default".into(),
        };
        Row {
            cell: cell.into(),
            command: format!("cargo xtask bench {cell}"),
            seconds: 1.5,
            append: String::new(),
            profile: None,
            model: None,
            origin: Origin::default(),
            record: Some(Record::new(
                cell.split(' ').next().unwrap(),
                mode,
                topology,
                &histogram,
            )),
            c2c: vec![],
            error: None,
        }
    }

    #[test]
    fn files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl");
        let rows = [
            row("fork a", Mode::Icount, 100),
            row("fork b", Mode::Icount, 200),
        ];
        rows.iter().for_each(|r| append(&path, r).unwrap());
        assert_eq!(read(&path).unwrap(), rows);
        write(&path, &rows[1..]).unwrap();
        assert_eq!(read(&path).unwrap(), rows[1..]);
        // Whoever wrote it died in the middle of a line.
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, whole.clone() + &whole[..40]).unwrap();
        assert_eq!(read(&path).unwrap(), rows[1..]);
        // But not in the middle of the file.
        fs::write(&path, format!("{}\n{whole}", &whole[..40])).unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("line 1"));
        assert!(read(&dir.path().join("none")).is_err());
    }

    #[test]
    fn builds_differ() {
        assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_ne!(hash(b"a"), hash(b"b"));
        assert!(machine().contains("CPUs of "));
    }
}
