//! What there is to measure, and the sweeps of `--quick` and `--full`: the tables to read, and to add to.
//!
//! A [`Benchmark`] names the words that shape it; a [`Sweep`] crosses one benchmark with values, CPU counts and a mode;
//! each combination is a [`Cell`], a boot of its own. A new benchmark of the kernel is a row of [`BENCHMARKS`] and a row
//! of the sweeps that are to have it.

pub use super::cell::{Cell, Selection, machine};
use crate::topology::Name;
use clap::ValueEnum;
use std::fmt::Write;

/// What a cycle is. `kvm` is `cargo xtask qemu`'s alone: where it works, wall clocks do too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Instructions, the same to the digit everywhere
    Icount,
    /// Simulated cycles of a coherence model, the same to the digit everywhere
    Numasim,
    /// Plain emulation: smoke only
    Tcg,
}

impl Kind {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Icount => "icount",
            Kind::Numasim => "numasim",
            Kind::Tcg => "tcg",
        }
    }

    /// Whether two boots give the same figures.
    pub fn repeats(self) -> bool {
        self != Kind::Tcg
    }
}

/// A boot word and the values it is swept over.
pub type Axis = (&'static str, &'static [&'static str]);

/// A benchmark of the kernel.
pub struct Benchmark {
    /// The word after `bench=`.
    pub name: &'static str,
    /// One line for `--list`.
    pub doc: &'static str,
    /// Words of its own whose values are variants.
    pub axes: &'static [Axis],
    /// Operations of each worker under icount, numasim and tcg. Under numasim 0: a window of time.
    pub ops: [u64; 3],
    /// Cycles of such a window: at least, and per CPU. The locks have their own way.
    pub window: (u64, u64),
}

/// Subjects of the lock laboratory.
const LOCKS: &[&str] = &[
    "spin", "tas", "ticket", "mcs", "rw", "atomic", "per-node", "per-cpu",
];
/// Pid namespaces below the first.
const DEPTHS: &[&str] = &["0", "1", "4", "31"];
/// Who frees what another allocated.
const PATTERNS: &[&str] = &["same", "cross-cpu", "cross-node", "ctor"];
/// Whose allocator.
const PEERS: &[&str] = &["slab", "talc", "linked-list", "buddy"];
/// What is done with an address space, and how its per-CPU state is kept.
const MM_OPS: &[&str] = &["fork", "exec", "forkexec", "threads"];
const MMS: &[&str] = &[
    "separate", "merged", "uninit", "ctor", "lazy", "grouped", "single", "best",
];
/// CPUs that a machine might have; fewer are there.
const POSSIBLE: &[&str] = &["1", "8", "64", "256", "384"];
/// Per-CPU memory and counters.
const PERCPU: &[&str] = &["zeroed", "uninit", "add", "tree", "atomic", "sum"];
/// Other mappings of a file.
const SIZES: &[&str] = &["0", "100", "1000", "6000", "50000"];
/// Words that any benchmark takes: the variants of the kernel's subjects.
pub const COMMON_AXES: &[Axis] = &[
    ("pid", PIDS),
    ("i_mmap", I_MMAPS),
    ("slab_reclaim", &["inline", "worker"]),
];
/// How a file finds its mappings.
const I_MMAPS: &[&str] = &[
    "global",
    "node-trees",
    "node-locks",
    "inverted",
    "adaptive",
    "best",
];
/// How pids are kept.
const PIDS: &[&str] = &[
    "idr",
    "idr-relock",
    "xarray",
    "multi-xarray",
    "bitmap-hash",
    "sharded",
];
/// Words that say where cycles went, and cost some themselves.
pub(super) const DETAIL: &str = " phases=on lockstat=on";

/// No window.
const OPS_ONLY: (u64, u64) = (0, 0);

/// All benchmarks.
#[rustfmt::skip]
pub const BENCHMARKS: &[Benchmark] = &[
    Benchmark { name: "fork",     doc: "fork, exit, wait",              axes: &[], ops: [50, 10, 200], window: OPS_ONLY },
    Benchmark { name: "apart",    doc: "fork, exit, wait, with nothing shared", axes: &[], ops: [50, 10, 200], window: OPS_ONLY },
    Benchmark { name: "exec",     doc: "exec in place",                 axes: &[], ops: [50, 10, 200], window: OPS_ONLY },
    Benchmark { name: "forkexec", doc: "fork, exec, exit, wait",        axes: &[], ops: [50, 10, 200], window: OPS_ONLY },
    Benchmark { name: "thread",   doc: "thread create, exit, join",     axes: &[], ops: [50, 10, 200], window: OPS_ONLY },
    Benchmark { name: "storm",    doc: "all of these, and a leak check", axes: &[], ops: [50, 10, 500], window: OPS_ONLY },
    Benchmark { name: "pressure", doc: "forks and execs without memory to spare", axes: &[], ops: [0, 0, 0], window: OPS_ONLY },
    Benchmark { name: "pid",      doc: "take a pid and give it back",   axes: &[("depth", DEPTHS)], ops: [640, 0, 2000], window: (2_000_000, 300_000) },
    Benchmark { name: "clone",    doc: "fork, exit, wait in nested pid namespaces", axes: &[("depth", DEPTHS)], ops: [50, 10, 200], window: OPS_ONLY },
    Benchmark { name: "lookup",   doc: "kill(pid, 0)", axes: &[("procs", &["1", "512"])], ops: [640, 0, 2000], window: (200_000, 2_000) },
    Benchmark { name: "proc",     doc: "the list of processes, an entry", axes: &[], ops: [20_480, 0, 40_000], window: (8_000_000, 20_000) },
    Benchmark { name: "slab",     doc: "objects allocated and freed",
                axes: &[("slab_pattern", PATTERNS)], ops: [640, 0, 2000], window: (400_000, 0) },
    Benchmark { name: "peers",    doc: "the slab beside others' allocators",
                axes: &[("peer", PEERS)], ops: [640, 0, 2000], window: (30_000_000, 0) },
    Benchmark { name: "percpu",   doc: "per-CPU memory, and counters",
                axes: &[("percpu_op", PERCPU)], ops: [640, 0, 2000], window: (20_000_000, 1_000_000) },
    Benchmark { name: "mm",       doc: "address spaces made and ended",
                axes: &[("mm_op", MM_OPS), ("mm", MMS), ("possible", POSSIBLE)], ops: [160, 0, 640], window: (1_000_000, 20_000) },
    Benchmark { name: "rmap",     doc: "a mapping into a file's set and out",
                axes: &[("mappings", SIZES)], ops: [640, 0, 2000], window: (2_000_000, 100_000) },
    Benchmark { name: "mmap",     doc: "mmap and munmap of a page of a file",
                axes: &[("mmap_of", &["shared", "own"]), ("mappings", SIZES)], ops: [320, 0, 2000], window: (4_000_000, 200_000) },
    Benchmark { name: "execl",    doc: "exec with an interpreter and a library, by all",
                axes: &[("walk", &["none", "truncate", "migrate"])], ops: [50, 0, 200], window: (4_000_000, 20_000) },
    Benchmark { name: "filestorm", doc: "files cut and moved under processes",
                axes: &[], ops: [50, 10, 500], window: OPS_ONLY },
    Benchmark { name: "locks",    doc: "one critical section or counter for all",
                axes: &[("lock", LOCKS)], ops: [200, 0, 500], window: (1_000_000, 12_000) },
];

/// One benchmark over everything named here.
pub struct Sweep {
    /// Of [`BENCHMARKS`].
    pub benchmark: &'static str,
    /// Values for some of its axes; an axis not named keeps the kernel's default.
    pub axes: &'static [Axis],
    /// CPUs, each with a worker.
    pub cpus: &'static [u32],
    /// The machine these are the first CPUs of.
    pub on: Name,
    /// What counts.
    pub mode: Kind,
    /// Count by phase and lock class, which takes instructions of its own.
    pub detail: bool,
    /// What a cell takes on one host CPU, about: seconds, and milliseconds more per CPU.
    pub cost: (f64, f64),
}

use Kind::{Icount, Numasim, Tcg};
use Name::{BigNode, Default as Small, Hygon, Laptop};

/// A sweep's cost when it only boots and runs a moment.
pub(super) const BOOT: (f64, f64) = (1.0, 15.0);

/// `--quick`: five minutes on two host CPUs. Only modes whose figures repeat: two runs must agree to the digit.
#[rustfmt::skip]
pub const QUICK: &[Sweep] = &[
    Sweep { benchmark: "fork",     axes: &[], cpus: &[1, 4], on: Laptop, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "exec",     axes: &[], cpus: &[1],    on: Laptop, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "forkexec", axes: &[], cpus: &[1],    on: Laptop, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "thread",   axes: &[], cpus: &[1],    on: Laptop, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "fork",     axes: &[], cpus: &[1, 8], on: Small,  mode: Icount, detail: true,  cost: BOOT },
    Sweep { benchmark: "exec",     axes: &[], cpus: &[1, 8], on: Small,  mode: Icount, detail: true,  cost: BOOT },
    Sweep { benchmark: "forkexec", axes: &[], cpus: &[1, 8], on: Small,  mode: Icount, detail: true,  cost: BOOT },
    Sweep { benchmark: "thread",   axes: &[], cpus: &[1, 8], on: Small,  mode: Icount, detail: true,  cost: BOOT },
    Sweep { benchmark: "pid",      axes: &[("pid", PIDS)],   cpus: &[1],    on: Small, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "slab",     axes: &[("slab_pattern", PATTERNS)], cpus: &[8], on: Small, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "percpu",   axes: &[("percpu_op", PERCPU)], cpus: &[1], on: Small, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "locks",    axes: &[("lock", LOCKS)], cpus: &[1, 8], on: Small, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "locks",    axes: &[("lock", LOCKS)], cpus: &[1, 2, 8, 32], on: Hygon, mode: Numasim, detail: false, cost: (1.0, 30.0) },
    Sweep { benchmark: "pid",      axes: &[("pid", PIDS)],   cpus: &[1, 8], on: Hygon, mode: Numasim, detail: false, cost: (1.0, 30.0) },
    Sweep { benchmark: "fork",     axes: &[], cpus: &[1, 8], on: Hygon, mode: Numasim, detail: true, cost: (3.0, 300.0) },
];

/// `--full`: a night.
#[rustfmt::skip]
pub const FULL: &[Sweep] = &[
    Sweep { benchmark: "fork",     axes: &[], cpus: FEW,  on: Laptop, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "exec",     axes: &[], cpus: FEW,  on: Laptop, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "forkexec", axes: &[], cpus: FEW,  on: Laptop, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "thread",   axes: &[], cpus: FEW,  on: Laptop, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "fork",     axes: &[], cpus: MANY, on: Hygon,  mode: Icount, detail: false, cost: (2.0, 100.0) },
    Sweep { benchmark: "locks",    axes: &[("lock", LOCKS)], cpus: MANY, on: Hygon, mode: Icount, detail: false, cost: (2.0, 60.0) },
    Sweep { benchmark: "locks",    axes: &[("lock", LOCKS)], cpus: SCALE, on: Hygon, mode: Numasim, detail: false, cost: (2.0, 100.0) },
    Sweep { benchmark: "pid",      axes: &[("pid", PIDS)], cpus: SCALE, on: Hygon, mode: Numasim, detail: false, cost: (2.0, 100.0) },
    Sweep { benchmark: "fork",     axes: &[("pid", PIDS)], cpus: SCALE, on: Hygon, mode: Numasim, detail: false, cost: (10.0, 1500.0) },
    Sweep { benchmark: "slab",     axes: &[("slab_pattern", PATTERNS)], cpus: PAIRS, on: Hygon, mode: Numasim, detail: false, cost: (2.0, 100.0) },
    Sweep { benchmark: "percpu",   axes: &[("percpu_op", PERCPU)], cpus: SCALE, on: Hygon, mode: Numasim, detail: false, cost: (2.0, 100.0) },
    Sweep { benchmark: "mm",       axes: &[("mm_op", &["fork", "exec", "threads"]), ("mm", MMS), ("possible", POSSIBLE)], cpus: &[1], on: Laptop, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "mm",       axes: &[("mm_op", &["exec"]), ("mm", MMS)], cpus: SCALE, on: Hygon, mode: Numasim, detail: false, cost: (10.0, 1500.0) },
    Sweep { benchmark: "rmap",     axes: &[("i_mmap", I_MMAPS), ("mappings", SIZES)], cpus: &[1], on: Laptop, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "rmap",     axes: &[("i_mmap", I_MMAPS), ("mappings", &["6000"])], cpus: SCALE, on: Hygon, mode: Numasim, detail: false, cost: (10.0, 500.0) },
    Sweep { benchmark: "mmap",     axes: &[("i_mmap", I_MMAPS), ("mappings", &["6000"])], cpus: SCALE, on: Hygon, mode: Numasim, detail: false, cost: (10.0, 500.0) },
    Sweep { benchmark: "execl",    axes: &[("i_mmap", I_MMAPS)], cpus: SCALE, on: Hygon, mode: Numasim, detail: false, cost: (10.0, 2000.0) },
    Sweep { benchmark: "execl",    axes: &[("i_mmap", I_MMAPS)], cpus: &[1, 8, 32, 64, 128], on: BigNode, mode: Numasim, detail: false, cost: (10.0, 2000.0) },
    Sweep { benchmark: "execl",    axes: &[("i_mmap", I_MMAPS), ("walk", &["truncate", "migrate"])], cpus: &[64], on: Hygon, mode: Numasim, detail: false, cost: (10.0, 2000.0) },
    Sweep { benchmark: "fork",     axes: &[], cpus: SCALE, on: Hygon, mode: Numasim, detail: true, cost: (10.0, 1500.0) },
    Sweep { benchmark: "exec",     axes: &[], cpus: SCALE, on: Hygon, mode: Numasim, detail: true, cost: (10.0, 1500.0) },
    Sweep { benchmark: "forkexec", axes: &[], cpus: SCALE, on: Hygon, mode: Numasim, detail: true, cost: (10.0, 2500.0) },
    Sweep { benchmark: "thread",   axes: &[], cpus: SCALE, on: Hygon, mode: Numasim, detail: true, cost: (10.0, 1000.0) },
    Sweep { benchmark: "storm",    axes: &[], cpus: &[8], on: Small, mode: Tcg, detail: false, cost: (4.0, 15.0) },
    Sweep { benchmark: "locks",    axes: &[("lock", &["ticket", "mcs"])], cpus: &[8], on: Small, mode: Tcg, detail: false, cost: BOOT },
];
const FEW: &[u32] = &[1, 2, 4];
const MANY: &[u32] = &[1, 8, 32, 64];
/// Where workers come in pairs.
const PAIRS: &[u32] = &[2, 8, 32, 64, 128, 256, 384];
/// One node holds 32.
const SCALE: &[u32] = &[1, 2, 8, 32, 64, 128, 256, 384];

/// What CI compares with the committed baselines: seconds.
#[rustfmt::skip]
pub const BASELINE: &[Sweep] = &[
    Sweep { benchmark: "fork",     axes: &[], cpus: &[1], on: Laptop, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "exec",     axes: &[], cpus: &[1], on: Laptop, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "forkexec", axes: &[], cpus: &[1], on: Laptop, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "thread",   axes: &[], cpus: &[1], on: Laptop, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "fork",     axes: &[], cpus: &[8], on: Small,  mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "pid",      axes: &[("pid", PIDS)], cpus: &[1], on: Small, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "slab",     axes: &[("slab_pattern", PATTERNS)], cpus: &[8], on: Small, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "percpu",   axes: &[("percpu_op", PERCPU)], cpus: &[1], on: Small, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "mmap",     axes: &[("i_mmap", I_MMAPS), ("mappings", &["0", "6000"])], cpus: &[1], on: Small, mode: Icount, detail: false, cost: BOOT },
    Sweep { benchmark: "locks",    axes: &[("lock", LOCKS)], cpus: &[1], on: Small, mode: Icount, detail: false, cost: BOOT },
];

/// The benchmark of that name.
pub fn benchmark(name: &str) -> Option<&'static Benchmark> {
    BENCHMARKS.iter().find(|b| b.name == name)
}

/// Whether `benchmark` has an axis of that word.
pub(super) fn takes(name: &str, word: &str) -> bool {
    let own = benchmark(name).map_or(&[][..], |b| b.axes);
    own.iter().chain(COMMON_AXES).any(|(w, _)| *w == word)
}

/// What there is, for people.
pub fn list() -> String {
    let mut text = String::from("benchmarks:\n");
    for b in BENCHMARKS {
        let _ = writeln!(text, "  {:10} {}", b.name, b.doc);
        for (word, values) in b.axes {
            let _ = writeln!(text, "             {word}={}", values.join("|"));
        }
    }
    text.push_str("variants of any:\n");
    for (word, values) in COMMON_AXES {
        let _ = writeln!(text, "  {word}={}", values.join("|"));
    }
    for (title, sweeps) in [("--quick", QUICK), ("--full", FULL)] {
        let cells = Selection::default().cells(sweeps).unwrap_or_default();
        let seconds: f64 = cells.iter().map(|c| c.seconds).sum();
        let _ = writeln!(
            text,
            "{title}: {} cells, about {:.0} min of one host CPU",
            cells.len(),
            (seconds / 60.0).ceil()
        );
        for s in sweeps {
            let axes: Vec<String> = s
                .axes
                .iter()
                .map(|(w, v)| format!("{w}={}", v.join("|")))
                .collect();
            let cpus: Vec<String> = s.cpus.iter().map(u32::to_string).collect();
            let _ = writeln!(
                text,
                "  {:9} {:8} {:7} {:8} CPUs {} {}",
                s.benchmark,
                s.mode.name(),
                if s.detail { "detail" } else { "" },
                machine(s.on),
                cpus.join(" "),
                axes.join(" ")
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{paths, topology::Topology};
    use anyhow::Result;
    use std::collections::BTreeSet;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|w| w.to_string()).collect()
    }

    #[test]
    fn the_tables_are_sound() {
        for sweeps in [QUICK, FULL, BASELINE] {
            let cells = Selection::default().cells(sweeps).unwrap();
            let keys: BTreeSet<String> = cells.iter().map(Cell::key).collect();
            assert_eq!(keys.len(), cells.len(), "no cell twice");
            for cell in &cells {
                let words = cell.words();
                assert!(!words.contains("window=0"), "{words}");
                assert!(benchmark(&cell.benchmark).is_some(), "{}", cell.key());
                assert!(
                    cell.cpus <= Topology::named(cell.on).cpus(),
                    "{}",
                    cell.key()
                );
                assert!(cell.variants.iter().all(|(w, _)| takes(&cell.benchmark, w)));
            }
        }
        let quick = Selection::default().cells(QUICK).unwrap();
        let seconds: f64 = quick.iter().map(|c| c.seconds).sum();
        assert!(
            seconds / 2.0 < 300.0,
            "--quick takes {seconds} s of one CPU"
        );
        assert!(quick.iter().all(|c| c.mode.repeats()));
        assert!(
            [Icount, Numasim]
                .iter()
                .all(|m| quick.iter().any(|c| c.mode == *m))
        );
        assert!(
            Selection::default()
                .cells(BASELINE)
                .unwrap()
                .iter()
                .all(|c| c.mode == Icount)
        );
    }

    /// The words of the kernel's list called `list` in `file`.
    fn words_of(file: &str, list: &str) -> Vec<String> {
        let text = std::fs::read_to_string(paths::root().join("kernel/src").join(file)).unwrap();
        let rest = text
            .split_once(&format!("\n{list} {{\n"))
            .or(text.split_once(&format!("    pub enum {list} {{\n")))
            .unwrap()
            .1;
        let rows = rest.split('}').next().unwrap().lines();
        rows.filter_map(|l| Some(l.split_once(" = \"")?.1.split('"').next()?.to_string()))
            .collect()
    }

    #[test]
    fn the_kernel_knows_these_words_and_no_others() {
        let names: BTreeSet<String> = BENCHMARKS.iter().map(|b| b.name.to_string()).collect();
        assert_eq!(
            names,
            words_of("bench/mod.rs", "benchmarks!")
                .into_iter()
                .collect()
        );
        // `all` is for people: one boot with a record for each.
        let locks = [&["all"], LOCKS].concat();
        assert_eq!(words(&locks), words_of("bench/locks.rs", "LockWord"));
        assert_eq!(words(PATTERNS), words_of("bench/slab.rs", "SlabPattern"));
        assert_eq!(words(PERCPU), words_of("bench/percpu.rs", "PercpuOp"));
        assert_eq!(words(MM_OPS), words_of("bench/mm.rs", "MmOp"));
        assert_eq!(words(MMS), words_of("params.rs", "MmWord"));
        for (word, list) in [
            ("pid", "PidWord"),
            ("i_mmap", "IMmapWord"),
            ("slab_reclaim", "ReclaimWord"),
        ] {
            let (_, known) = COMMON_AXES.iter().find(|(w, _)| *w == word).unwrap();
            assert_eq!(words(known), words_of("params.rs", list), "{word}");
        }
    }

    #[test]
    fn selections() {
        let select = |names: &[&str], variants: &[&str], cpus: &[u32], modes: &[Kind]| {
            let (names, variants) = (words(names), words(variants));
            let selection = Selection {
                names: &names,
                variants: &variants,
                cpus,
                modes,
                ..Selection::default()
            };
            selection.cells(QUICK)
        };
        let keys = |cells: Result<Vec<Cell>>| -> Vec<String> {
            cells.unwrap().iter().map(Cell::key).collect()
        };
        assert_eq!(
            keys(select(&["locks"], &["lock=mcs,ticket"], &[2, 4], &[Icount])),
            [
                "locks icount lock=mcs default cpus=2",
                "locks icount lock=mcs default cpus=4",
                "locks icount lock=ticket default cpus=2",
                "locks icount lock=ticket default cpus=4"
            ]
        );
        let variant = keys(select(&[], &["lock=mcs"], &[], &[]));
        assert!(
            variant.iter().all(|k| k.starts_with("locks ")) && !variant.is_empty(),
            "{variant:?}"
        );
        assert_eq!(
            keys(select(&["exec"], &[], &[3], &[Tcg])),
            ["exec tcg default cpus=3"]
        );
        let says = |result: Result<Vec<Cell>>, word: &str| {
            let text = result.unwrap_err().to_string();
            assert!(
                text.contains(word) && text.contains("benchmarks:"),
                "{text}"
            );
        };
        says(select(&["frok"], &[], &[], &[]), "frok");
        says(select(&[], &["lock=mc"], &[], &[]), "\"mc\"");
        says(select(&[], &["lok=mcs"], &[], &[]), "\"lok\"");
        says(select(&[], &["mcs"], &[], &[]), "word=value");
    }

    #[test]
    fn repeats_where_figures_vary() {
        let selection = Selection {
            repeat: 3,
            ..Selection::default()
        };
        let cells = selection.cells(FULL).unwrap();
        assert!(
            cells
                .iter()
                .any(|c| c.mode == Tcg && c.key().ends_with("#3"))
        );
        assert!(cells.iter().all(|c| c.mode == Tcg || c.repeat == 1));
    }

    #[test]
    fn lines() {
        let names = words(&["locks"]);
        let variants = words(&["lock=ticket"]);
        let selection = Selection {
            names: &names,
            variants: &variants,
            modes: &[Numasim],
            cpus: &[384],
            ..Selection::default()
        };
        let cells = selection.cells(FULL).unwrap();
        assert_eq!(
            cells[0].command(),
            "cargo xtask bench locks --mode numasim --variant lock=ticket --topology hygon --cpus 384"
        );
        assert!(
            cells[0]
                .words()
                .starts_with("quiet bench=locks lock=ticket window=")
        );
    }
}
