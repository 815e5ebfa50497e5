//! One boot of a sweep: its name, its words for the kernel, the line that makes it; and which boots are wanted.

use super::matrix::{BENCHMARKS, BOOT, COMMON_AXES, DETAIL, Kind, Sweep, benchmark, list, takes};
use crate::topology::Name;
use anyhow::{Result, bail};
use clap::ValueEnum;
use std::fmt::Write;

/// One boot.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Of [`BENCHMARKS`].
    pub benchmark: String,
    /// Values of axes.
    pub variants: Vec<(String, String)>,
    /// CPUs and workers.
    pub cpus: u32,
    /// The machine these are the first CPUs of.
    pub on: Name,
    /// What counts.
    pub mode: Kind,
    /// Whether phases and lock classes are counted.
    pub detail: bool,
    /// The n-th boot of the same, from 1: only where figures vary.
    pub repeat: u32,
    /// Seconds it may take on one host CPU.
    pub seconds: f64,
    /// Windows are so many times as long as usual: for slower machines.
    pub stretch: u64,
}

impl Cell {
    /// What it is known by in results files.
    pub fn key(&self) -> String {
        let mut key = format!("{} {}", self.benchmark, self.mode.name());
        for (word, value) in &self.variants {
            // Writing to a String does not fail.
            let _ = write!(key, " {word}={value}");
        }
        let _ = write!(key, " {} cpus={}", machine(self.on), self.cpus);
        if self.detail {
            key.push_str(" detail");
        }
        if self.repeat > 1 {
            let _ = write!(key, " #{}", self.repeat);
        }
        key
    }

    /// The words for the kernel's boot line.
    pub fn words(&self) -> String {
        let mut words = format!("quiet bench={}", self.benchmark);
        for (word, value) in &self.variants {
            let _ = write!(words, " {word}={value}");
        }
        let Some(benchmark) = benchmark(&self.benchmark) else {
            return words;
        };
        match (self.mode, benchmark.ops[self.mode as usize]) {
            (_, 0) => {
                let _ = write!(words, " window={}", self.window(benchmark.window));
            }
            (_, each) => {
                let _ = write!(words, " ops={}", each * u64::from(self.cpus));
            }
        }
        if self.detail {
            words.push_str(DETAIL);
        }
        words
    }

    /// Cycles enough for every CPU to have its turn several times, and no more than it takes to see that: a lock on
    /// which all spin takes longer per turn the more there are, a counter per CPU hardly any time.
    fn window(&self, (least, per_cpu): (u64, u64)) -> u64 {
        let cpus = u64::from(self.cpus);
        let lock = self.variants.iter().find(|(word, _)| word == "lock");
        let (least, per_cpu) = match lock.map(|(_, value)| value.as_str()) {
            Some("tas" | "ticket" | "rw") => (least, 7 * (300 + 32 * cpus)),
            Some("spin" | "atomic" | "per-node") => (least, 10_000),
            Some("per-cpu") => (100_000, 0),
            _ if self.benchmark == "execl" => self.execl_window(),
            _ if self.benchmark == "pid" && self.has("pid", "sharded") => (400_000, 0),
            _ if self.loops_over_cpus() => (10_000_000, 100_000),
            _ if self.passes_objects() => (4_000_000, 0),
            _ => (least, per_cpu),
        };
        (cpus * per_cpu).max(least) * self.stretch
    }

    /// Whether the cell has this variant.
    fn has(&self, word: &str, value: &str) -> bool {
        self.variants.iter().any(|(w, v)| w == word && v == value)
    }

    /// Whether each new address space writes a word or more of every possible CPU's.
    fn loops_over_cpus(&self) -> bool {
        let loops = |(word, value): &(String, String)| {
            word == "mm" && ["separate", "merged", "uninit"].contains(&value.as_str())
        };
        self.benchmark == "mm" && self.variants.iter().any(loops)
    }

    /// Whether objects go from CPU to CPU, a line at a time.
    fn passes_objects(&self) -> bool {
        let passes =
            |(word, value): &(String, String)| word == "slab_pattern" && value.starts_with("cross");
        self.variants.iter().any(passes)
    }

    /// An exec under a lock that all share takes a hundred times as long as one without.
    fn execl_window(&self) -> (u64, u64) {
        let i_mmap = self.variants.iter().find(|(word, _)| word == "i_mmap");
        match i_mmap.map(|(_, value)| value.as_str()) {
            Some("best") => (8_000_000, 20_000),
            Some("inverted" | "adaptive") => (10_000_000, 100_000),
            Some("node-locks") if self.on != Name::BigNode => (10_000_000, 50_000),
            _ => (10_000_000, 600_000),
        }
    }

    /// The line that makes it.
    pub fn command(&self) -> String {
        let mut line = format!(
            "cargo xtask bench {} --mode {}",
            self.benchmark,
            self.mode.name()
        );
        for (word, value) in &self.variants {
            let _ = write!(line, " --variant {word}={value}");
        }
        let _ = write!(
            line,
            " --topology {} --cpus {}",
            machine(self.on),
            self.cpus
        );
        if self.detail {
            line.push_str(" --detail");
        }
        line
    }
}

/// A machine's word.
pub fn machine(name: Name) -> String {
    let value = name.to_possible_value();
    value.map(|v| v.get_name().to_string()).unwrap_or_default()
}

/// Which cells are wanted.
#[derive(Default)]
pub struct Selection<'a> {
    /// Benchmarks; none: all.
    pub names: &'a [String],
    /// `word=value`; several values of one word are swept over.
    pub variants: &'a [String],
    /// CPU counts; none: those of the sweeps.
    pub cpus: &'a [u32],
    /// Modes; none: those of the sweeps.
    pub modes: &'a [Kind],
    /// Only cells with phases and lock classes.
    pub detail: bool,
    /// The machine; none: those of the sweeps.
    pub on: Option<Name>,
    /// Boots of each cell whose figures vary.
    pub repeat: u32,
}

impl Selection<'_> {
    /// The cells of `sweeps` that are wanted, changed by what was asked for.
    ///
    /// # Errors
    /// A name that is not there, with what there is; or nothing left.
    pub fn cells(&self, sweeps: &[Sweep]) -> Result<Vec<Cell>> {
        let asked = self.check()?;
        let mut cells: Vec<Cell> = Vec::new();
        let wanted = |s: &&Sweep| {
            (self.names.is_empty() || self.names.iter().any(|n| n == s.benchmark))
                && (self.modes.is_empty() || self.modes.contains(&s.mode))
                && (!self.detail || s.detail)
                && asked.iter().all(|(word, _)| takes(s.benchmark, word))
        };
        for sweep in sweeps.iter().filter(wanted) {
            self.cross(sweep, &asked, &mut cells);
        }
        if cells.is_empty() {
            // Asked for something that no sweep has: made as asked.
            for name in self.names {
                for &mode in self.modes {
                    let sweep = Sweep {
                        benchmark: benchmark(name).map_or("", |b| b.name),
                        axes: &[],
                        cpus: &[1, 8],
                        on: Name::Default,
                        mode,
                        detail: self.detail,
                        cost: BOOT,
                    };
                    self.cross(&sweep, &asked, &mut cells);
                }
            }
        }
        if cells.is_empty() {
            bail!("no sweep has that combination; with a benchmark and --mode it is made as asked");
        }
        Ok(cells)
    }

    /// The values asked for, by word; or what is wrong with them.
    fn check(&self) -> Result<Vec<(String, Vec<String>)>> {
        if let Some(name) = self.names.iter().find(|n| benchmark(n).is_none()) {
            bail!("no benchmark is called {name:?}\n{}", list());
        }
        let mut asked: Vec<(String, Vec<String>)> = Vec::new();
        for text in self.variants {
            let Some((word, values)) = text.split_once('=') else {
                bail!("--variant {text}: write word=value\n{}", list());
            };
            let axes = BENCHMARKS.iter().flat_map(|b| b.axes).chain(COMMON_AXES);
            let Some((_, known)) = axes.into_iter().find(|(w, _)| *w == word) else {
                bail!("no variants are called {word:?}\n{}", list());
            };
            for value in values.split(',') {
                if !known.contains(&value) {
                    bail!("{word} has no variant {value:?}\n{}", list());
                }
                match asked.iter_mut().find(|(w, _)| w == word) {
                    Some((_, values)) => values.push(value.to_string()),
                    None => asked.push((word.to_string(), vec![value.to_string()])),
                }
            }
        }
        Ok(asked)
    }

    fn cross(&self, sweep: &Sweep, asked: &[(String, Vec<String>)], cells: &mut Vec<Cell>) {
        let mut axes: Vec<(String, Vec<String>)> = asked.to_vec();
        for (word, values) in sweep.axes {
            if !asked.iter().any(|(w, _)| w == word) {
                axes.push((
                    word.to_string(),
                    values.iter().map(|v| v.to_string()).collect(),
                ));
            }
        }
        let mut combinations: Vec<Vec<(String, String)>> = vec![vec![]];
        for (word, values) in &axes {
            let longer = |c: &Vec<(String, String)>| {
                let with = |v: &String| [&c[..], &[(word.clone(), v.clone())]].concat();
                values.iter().map(with).collect::<Vec<_>>()
            };
            combinations = combinations.iter().flat_map(longer).collect();
        }
        let counts = if self.cpus.is_empty() {
            sweep.cpus
        } else {
            self.cpus
        };
        let repeats = if sweep.mode.repeats() {
            1
        } else {
            self.repeat.max(1)
        };
        for variants in combinations {
            for &cpus in counts {
                for repeat in 1..=repeats {
                    let cell = Cell {
                        benchmark: sweep.benchmark.to_string(),
                        variants: variants.clone(),
                        cpus,
                        on: self.on.unwrap_or(sweep.on),
                        mode: sweep.mode,
                        detail: sweep.detail,
                        repeat,
                        seconds: sweep.cost.0 + f64::from(cpus) * sweep.cost.1 / 1000.0,
                        stretch: 1,
                    };
                    if !cells.iter().any(|c| c.key() == cell.key()) {
                        cells.push(cell);
                    }
                }
            }
        }
    }
}
