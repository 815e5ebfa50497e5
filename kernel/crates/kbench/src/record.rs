//! A benchmark's result: one JSON line on the record port, one table on the console.
//!
//! Problem: a figure without its variants, topology and mode can't be compared with anything.
//!
//! Mechanism: [`Record`] holds all of it. The kernel writes [`Record::to_json_line`] to the second
//! serial port; host tools read it back with [`Record::parse`], which refuses another schema
//! version. Fields may be added within a version (readers ignore what they don't know); a field
//! whose meaning changes raises [`SCHEMA_VERSION`].
//!
//! This is reporting code: it allocates infallibly and runs outside timed regions only.

use crate::table::{Align, Table, grouped};
use crate::{Histogram, Phases};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

/// Version of the record's layout; see the module text for when it changes.
pub const SCHEMA_VERSION: u32 = 1;

/// One benchmark run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema: u32,
    /// What was measured: the word after `bench=`.
    pub benchmark: String,
    /// Every selected variant of every subject, as on the boot line (`pidmap=idr`).
    pub variants: Vec<Setting>,
    /// Other boot words that shape the run (`placement=pinned`).
    #[serde(default)]
    pub params: Vec<Setting>,
    /// The machine.
    pub topology: TopologyInfo,
    /// What a cycle means in this record.
    pub mode: Mode,
    /// Operations measured, over all workers.
    pub ops: u64,
    /// Operations that failed (not measured).
    #[serde(default)]
    pub errors: u64,
    /// Workers that ran them.
    pub workers: u32,
    /// Cycles from the first operation's start to the last one's end, over all workers.
    #[serde(default)]
    pub elapsed_cycles: u64,
    /// The window of time that was measured. Absent when operations were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Cycles per operation.
    pub cycles: Cycles,
    /// Where they went. Empty when phases were off.
    pub phases: Vec<PhaseCycles>,
    /// Lock statistics by class. Empty when they were off.
    pub locks: Vec<LockStats>,
    /// What was not given back. Absent when the run did not check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaks: Option<Vec<Leak>>,
}

/// A window of time: operations count that end inside it, on whatever CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Cycles from the start of all workers to the window.
    pub ramp: u64,
    /// Cycles of the window.
    pub cycles: u64,
    /// Operations of the worker that did the fewest.
    pub ops_least: u64,
    /// Operations of the worker that did the most.
    pub ops_most: u64,
}

/// One `name=value` of the boot line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The word.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl Setting {
    /// `name=value`.
    pub fn new(name: &str, value: impl fmt::Display) -> Setting {
        Setting {
            name: name.to_string(),
            value: value.to_string(),
        }
    }
}

/// The machine a record was made on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopologyInfo {
    /// CPUs that were up.
    pub cpus: u32,
    /// NUMA nodes.
    pub nodes: u32,
    /// The topology's name (`default`, `hygon`, ...), or empty.
    pub name: String,
}

/// How the machine counted cycles: what a figure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// `-icount shift=0`: guest instructions, repeatable to the digit.
    Icount,
    /// The coherence model's simulated cycles, deterministic.
    Numasim,
    /// Plain emulation: for smoke and stress only.
    Tcg,
    /// A virtual machine on real hardware: real cycles.
    Kvm,
    /// A real machine.
    Metal,
    /// A host micro-benchmark: nanoseconds.
    Host,
}

impl Mode {
    /// All modes with their words.
    pub const ALL: &[(&str, Mode)] = &[
        ("icount", Mode::Icount),
        ("numasim", Mode::Numasim),
        ("tcg", Mode::Tcg),
        ("kvm", Mode::Kvm),
        ("metal", Mode::Metal),
        ("host", Mode::Host),
    ];

    /// The mode's word.
    pub fn name(self) -> &'static str {
        Mode::ALL
            .iter()
            .find(|(_, mode)| *mode == self)
            .map_or("?", |(name, _)| name)
    }

    /// The mode of a word.
    pub fn from_name(name: &str) -> Option<Mode> {
        Mode::ALL
            .iter()
            .find(|(word, _)| *word == name)
            .map(|(_, mode)| *mode)
    }

    /// The unit of this mode's figures, for table headings.
    pub const fn unit(self) -> &'static str {
        match self {
            Mode::Icount => "instructions",
            Mode::Numasim => "simulated cycles",
            Mode::Tcg => "emulated ticks (smoke only, not a measurement)",
            Mode::Kvm | Mode::Metal => "cycles",
            Mode::Host => "ns",
        }
    }
}

/// Cycles per operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cycles {
    /// Fastest, exact.
    pub min: u64,
    /// Median, within 1 %.
    pub p50: u64,
    /// 99th percentile, within 1 %.
    pub p99: u64,
    /// Slowest, exact.
    pub max: u64,
    /// Mean, exact to a hundredth.
    pub mean: f64,
}

impl Cycles {
    /// The summary of a histogram.
    pub fn of(histogram: &Histogram) -> Cycles {
        Cycles {
            min: histogram.min(),
            p50: histogram.p50(),
            p99: histogram.p99(),
            max: histogram.max(),
            mean: centi(histogram.mean_centi()),
        }
    }
}

/// One phase's share of an operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseCycles {
    /// [`crate::Phase::name`].
    pub name: String,
    /// Mean cycles per operation, to a hundredth.
    pub cycles_per_op: f64,
}

/// One lock class over the timed region, all CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockStats {
    /// The class's name.
    pub class: String,
    /// Times taken.
    pub acquisitions: u64,
    /// Times someone had to wait.
    pub contended: u64,
    /// Cycles waited.
    pub wait_cycles: u64,
    /// Cycles held.
    pub hold_cycles: u64,
}

/// A resource that had another count after the run than before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leak {
    /// What: `pages.node0`, `slab.task_struct`, `pids`.
    pub what: String,
    /// In use before.
    pub before: u64,
    /// In use after.
    pub after: u64,
}

/// Why a line is no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// Not JSON, or a field is missing or of another type; the parser's words.
    Malformed(String),
    /// A record of another schema version.
    Schema(u32),
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParseError::Malformed(why) => write!(f, "malformed record: {why}"),
            ParseError::Schema(got) => {
                write!(
                    f,
                    "record of schema version {got}, this tool reads version {SCHEMA_VERSION}"
                )
            }
        }
    }
}

impl core::error::Error for ParseError {}

impl Record {
    /// A record of `histogram` with neither phases, locks nor a leak check.
    pub fn new(
        benchmark: &str,
        mode: Mode,
        topology: TopologyInfo,
        histogram: &Histogram,
    ) -> Record {
        Record {
            schema: SCHEMA_VERSION,
            benchmark: benchmark.to_string(),
            variants: Vec::new(),
            params: Vec::new(),
            topology,
            mode,
            ops: histogram.count(),
            errors: 0,
            workers: 1,
            elapsed_cycles: 0,
            window: None,
            cycles: Cycles::of(histogram),
            phases: Vec::new(),
            locks: Vec::new(),
            leaks: None,
        }
    }

    /// Fills `phases` from the workers' merged sums, divided by `ops`.
    pub fn set_phases(&mut self, sums: &Phases) {
        let ops = u128::from(self.ops.max(1));
        let per_op = |cycles: u64| (u128::from(cycles) * 100 + ops / 2) / ops;
        self.phases = sums
            .iter()
            .map(|(phase, cycles)| PhaseCycles {
                name: phase.name().to_string(),
                cycles_per_op: centi(u64::try_from(per_op(cycles)).unwrap_or(u64::MAX)),
            })
            .collect();
    }

    /// The variant selected for `name`.
    pub fn variant(&self, name: &str) -> Option<&str> {
        self.variants
            .iter()
            .find(|s| s.name == name)
            .map(|s| s.value.as_str())
    }

    /// Mean cycles per operation spent in the phase `name`; 0 if it took none.
    pub fn phase(&self, name: &str) -> f64 {
        self.phases
            .iter()
            .find(|p| p.name == name)
            .map_or(0.0, |p| p.cycles_per_op)
    }

    /// Operations of all workers per million cycles; 0 when no time passed.
    pub fn ops_per_mcycle(&self) -> f64 {
        match self.elapsed_cycles {
            0 => 0.0,
            cycles => self.ops as f64 * 1e6 / cycles as f64,
        }
    }

    /// Whether the run is a success: no failed operation, nothing leaked.
    pub fn is_clean(&self) -> bool {
        self.errors == 0 && self.leaks.as_ref().is_none_or(Vec::is_empty)
    }

    /// The record as one line of JSON, without the newline.
    pub fn to_json_line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads one line.
    ///
    /// # Errors
    /// [`ParseError`]; never panics, whatever the line holds.
    pub fn parse(line: &str) -> Result<Record, ParseError> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let malformed = |e: serde_json::Error| ParseError::Malformed(e.to_string());
        let version: Version = serde_json::from_str(line).map_err(malformed)?;
        if version.schema != SCHEMA_VERSION {
            return Err(ParseError::Schema(version.schema));
        }
        serde_json::from_str(line).map_err(malformed)
    }
}

/// Hundredths as a float.
fn centi(hundredths: u64) -> f64 {
    hundredths as f64 / 100.0
}

/// The record as tables for people.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record {
            benchmark,
            topology,
            mode,
            ops,
            workers,
            cycles,
            ..
        } = self;
        write!(f, "{benchmark}: {} operations", grouped(*ops))?;
        write!(
            f,
            ", {workers} workers, {} CPUs, {} nodes",
            topology.cpus, topology.nodes
        )?;
        writeln!(f, ", mode {} ({})", mode.name(), mode.unit())?;
        for (title, settings) in [("variants", &self.variants), ("parameters", &self.params)] {
            if !settings.is_empty() {
                write!(f, "{title}:")?;
                settings
                    .iter()
                    .try_for_each(|s| write!(f, " {}={}", s.name, s.value))?;
                writeln!(f)?;
            }
        }
        let mut per_op = Table::new(&["per operation", "min", "p50", "p99", "max", "mean"]);
        per_op.row([
            benchmark.clone(),
            grouped(cycles.min),
            grouped(cycles.p50),
            grouped(cycles.p99),
            grouped(cycles.max),
            grouped(cycles.mean as u64),
        ]);
        write!(f, "{per_op}")?;
        if let Some(w) = self.window {
            let rate = self.ops_per_mcycle() as u64;
            write!(
                f,
                "window: {} cycles after a ramp of {}",
                grouped(w.cycles),
                grouped(w.ramp)
            )?;
            write!(f, "; {} operations per Mcycle", grouped(rate))?;
            writeln!(
                f,
                "; {} to {} per worker",
                grouped(w.ops_least),
                grouped(w.ops_most)
            )?;
        }
        self.fmt_phases(f)?;
        self.fmt_locks(f)?;
        self.fmt_leaks(f)
    }
}

impl Record {
    fn fmt_phases(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.phases.is_empty() {
            return Ok(());
        }
        let sum: f64 = self.phases.iter().map(|p| p.cycles_per_op).sum();
        let mut table = Table::new(&["phase", "per operation", "share"]);
        for phase in &self.phases {
            let permille = if sum > 0.0 {
                (phase.cycles_per_op * 1000.0 / sum) as u64
            } else {
                0
            };
            table.row([
                phase.name.clone(),
                grouped(phase.cycles_per_op as u64),
                alloc::format!("{}.{} %", permille / 10, permille % 10),
            ]);
        }
        write!(f, "\n{table}")
    }

    fn fmt_locks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.locks.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(&[
            "lock class",
            "acquisitions",
            "contended",
            "wait/op",
            "hold/op",
            "rest/op",
        ]);
        let per_op = |cycles: u64| cycles / self.ops.max(1);
        for lock in &self.locks {
            let (wait, hold) = (per_op(lock.wait_cycles), per_op(lock.hold_cycles));
            let numbers = [
                lock.acquisitions,
                lock.contended,
                wait,
                hold,
                (self.cycles.mean as u64).saturating_sub(wait + hold),
            ];
            table.row(core::iter::once(lock.class.clone()).chain(numbers.map(grouped)));
        }
        write!(f, "\n{table}")
    }

    fn fmt_leaks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(leaks) = &self.leaks else {
            return Ok(());
        };
        if leaks.is_empty() {
            return writeln!(f, "leak check: everything is back");
        }
        let mut table = Table::new(&["LEAKED", "before", "after"]).align(0, Align::Left);
        for leak in leaks {
            table.row([leak.what.clone(), grouped(leak.before), grouped(leak.after)]);
        }
        write!(f, "\n{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Phase;
    use proptest::prelude::*;
    use std::format;

    fn sample() -> Record {
        let mut histogram = Histogram::try_new().unwrap();
        [100, 120, 201].iter().for_each(|v| histogram.record(*v));
        let topology = TopologyInfo {
            cpus: 8,
            nodes: 4,
            name: "default".into(),
        };
        let mut record = Record::new("fork", Mode::Icount, topology, &histogram);
        record.variants.push(Setting::new("pidmap", "idr"));
        record.params.push(Setting::new("ops", 3));
        let mut sums = Phases::new();
        sums.add(Phase::AllocPid, 100);
        sums.add(Phase::PgtableCopy, 300_001);
        record.set_phases(&sums);
        record.locks.push(LockStats {
            class: "pidmap_lock".into(),
            acquisitions: 6,
            ..Default::default()
        });
        record.leaks = Some(Vec::new());
        record
    }

    #[test]
    fn line_and_back() {
        let record = sample();
        let line = record.to_json_line();
        assert!(!line.contains('\n'));
        assert_eq!(Record::parse(&line), Ok(record));
        assert!(
            line.contains(r#""cycles":{"min":100,"p50":120,"p99":201,"max":201,"mean":140.33}"#),
            "{line}"
        );
        assert!(
            line.contains(r#"{"name":"alloc_pid","cycles_per_op":33.33}"#),
            "{line}"
        );
        assert!(line.contains(r#""mode":"icount""#));
    }

    #[test]
    fn other_versions_and_garbage_are_refused() {
        let line = sample().to_json_line();
        let newer = line.replace(r#""schema":1"#, r#""schema":2,"what":[]"#);
        assert_eq!(Record::parse(&newer), Err(ParseError::Schema(2)));
        let unknown_field = line.replace(r#""schema":1"#, r#""schema":1,"later":true"#);
        assert_eq!(Record::parse(&unknown_field), Ok(sample()));
        for end in 0..line.len() {
            assert!(matches!(
                Record::parse(&line[..end]),
                Err(ParseError::Malformed(_))
            ));
        }
    }

    #[test]
    fn names_of_modes() {
        for (name, mode) in Mode::ALL {
            assert_eq!((mode.name(), Mode::from_name(name)), (*name, Some(*mode)));
            assert_eq!(serde_json::to_string(mode).unwrap(), format!("\"{name}\""));
        }
        assert_eq!(Mode::from_name("fast"), None);
    }

    #[test]
    fn clean_and_leaking() {
        let mut record = sample();
        assert!(record.is_clean());
        assert!(record.to_string().contains("everything is back"));
        record.leaks = Some(std::vec![Leak {
            what: "pids".into(),
            before: 3,
            after: 4
        }]);
        assert!(!record.is_clean());
        assert!(record.to_string().contains("LEAKED"));
        assert_eq!(Record::parse(&record.to_json_line()), Ok(record));
    }

    #[test]
    fn table_for_people() {
        let text = sample().to_string();
        let expected = "\
fork: 3 operations, 1 workers, 8 CPUs, 4 nodes, mode icount (instructions)
variants: pidmap=idr
parameters: ops=3
per operation  min  p50  p99  max  mean
-------------  ---  ---  ---  ---  ----
fork           100  120  201  201   140

phase         per operation   share
------------  -------------  ------
alloc_pid                33   0.0 %
pgtable_copy        100,000  99.9 %

lock class   acquisitions  contended  wait/op  hold/op  rest/op
-----------  ------------  ---------  -------  -------  -------
pidmap_lock             6          0        0        0      140
leak check: everything is back
";
        assert_eq!(text, expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

        #[test]
        fn parse_never_panics(line in ".{0,200}") {
            let _ = Record::parse(&line);
        }

        #[test]
        fn strings_survive(name in ".{0,40}", value in ".{0,40}") {
            let mut record = sample();
            record.variants.push(Setting::new(&name, &value));
            let line = record.to_json_line();
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(Record::parse(&line), Ok(record));
        }
    }
}
