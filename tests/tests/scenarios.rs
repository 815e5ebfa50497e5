//! The scenarios: the whole system in QEMU, one test each.
//!
//! `cargo xtask test [FILTER]` runs them after the tests on the host; `cargo test -p tests --test
//! scenarios -- FILTER` runs them alone. At most [`SLOTS`] slots of QEMUs run at once; a machine with
//! many CPUs takes all of them.

use kbench::Record;
use libtest_mimic::{Arguments, Failed, Trial};
use tests::{Boot, Failure, Outcome, Slots, acpi, elf};

#[path = "scenarios/debian.rs"]
mod debian;
#[path = "scenarios/measuring.rs"]
mod measuring;
#[path = "scenarios/memory.rs"]
mod memory;

/// Boot words and other strings that kernel, xtask and these tests agree on.
mod word {
    pub const FORK: &str = "bench=fork";
    pub const STORM: &str = "bench=storm";
    pub const PANIC: &str = "test=panic";
    pub const STACK_OVERFLOW: &str = "test=stack-overflow";
    pub const HANG: &str = "test=hang";
    pub const LOCKUP: &str = "test=lockup";
    pub const NULL_READ: &str = "test=null-read";
    pub const FAULT_INJECT: &str = "test=fault-inject";

    /// How the kernel begins a report.
    pub const PANICKED: &str = "panic: ";
    pub const HANGS: &str = "hang: ";
    /// How a return address in a backtrace begins; xtask adds the function.
    pub const BACKTRACE: &str = "  bt: 0x";
    /// How a warning about firmware tables begins.
    pub const WARNING: &str = "warning: ";
}

/// How many small QEMUs at once.
const SLOTS: usize = 2;
/// Slots that a machine with many virtual CPUs takes.
const MANY: usize = SLOTS;

type Body = fn() -> Result<(), Failure>;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(SLOTS);
    static FREE: Slots = Slots::new(SLOTS);
    let trial = |&(name, slots, body): &(&'static str, usize, Body)| {
        Trial::test(name, move || {
            let _held = FREE.take(slots);
            body().map_err(Failed::from)
        })
    };
    let groups = [
        MACHINES,
        PROGRAMS,
        debian::BUSYBOX,
        debian::DYNAMIC,
        debian::TERMINAL,
        FAILURES,
        measuring::MEASURING,
        memory::MEMORY,
    ];
    let trials: Vec<Trial> = groups.iter().copied().flatten().map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit();
}

// ---------------------------------------------------------------------------------------- machines

const MACHINES: &[(&str, usize, Body)] = &[
    ("machine::default_stress", 1, || {
        let outcome = Boot::on("default").succeed()?;
        shape(&outcome, outcome.record("forkexec")?, 8, 4)
    }),
    ("machine::laptop", 1, || storm(Boot::on("laptop"), 4, 1)),
    ("machine::one_node", 1, || storm(Boot::on("one-node"), 8, 1)),
    ("machine::two_nodes", 1, || {
        storm(
            Boot::on("default")
                .option("--nodes", "2")
                .option("--cpus", "4"),
            4,
            2,
        )
    }),
    ("machine::four_nodes", 1, || {
        storm(Boot::on("default"), 8, 4)
    }),
    ("machine::eight_nodes", 1, || {
        storm(
            Boot::on("default")
                .option("--nodes", "8")
                .option("--cpus", "8")
                .option("--memory", "64M"),
            8,
            8,
        )
    }),
    ("machine::twelve_nodes", 1, || {
        storm(
            Boot::on("default")
                .option("--nodes", "12")
                .option("--cpus", "12")
                .option("--memory", "64M"),
            12,
            12,
        )
    }),
    ("machine::sparse_apic_ids", 1, || {
        storm(Boot::on("sparse-apic"), 12, 4)
    }),
    ("machine::memory_only_node", 1, || {
        storm(Boot::on("memory-only-node"), 4, 3)
    }),
    ("machine::two_memory_only_nodes", 1, || {
        storm(
            Boot::on("default")
                .option("--nodes", "5")
                .option("--cpus", "3")
                .option("--memory", "64M"),
            3,
            5,
        )
    }),
    ("machine::one_cpu", 1, || {
        storm(
            Boot::on("default")
                .option("--nodes", "1")
                .option("--cpus", "1")
                .option("--memory", "64M"),
            1,
            1,
        )
    }),
    ("machine::node_without_memory", 1, || {
        let entries =
            [(0, 0), (1, 0), (2, 1), (3, 1)].map(|(apic, node)| acpi::cpu_affinity(apic, node));
        let memory = acpi::memory_affinity(0, 1 << 40, 0);
        let table = acpi::srat(&[entries.to_vec(), vec![memory]].concat());
        with_table(&table, |boot| storm(boot, 4, 2))
    }),
    ("machine::distances_of_ones_own", 1, || {
        let file = file_with(b"10 21 31\n21 10 41\n31 41 10\n")?;
        storm(
            Boot::on("default")
                .option("--nodes", "3")
                .option("--cpus", "3")
                .option("--distances", file.path()),
            3,
            3,
        )
    }),
    ("machine::srat_malformed", 1, || {
        // An entry of length 0, one that runs over the end, one of an unknown kind, a table that is no more than its
        // header: a warning, one node, and the machine runs.
        let good = acpi::cpu_affinity(0, 1);
        let tables = [
            acpi::srat(&[good.clone(), vec![0, 0, 0, 0]]),
            acpi::srat(&[good.clone(), vec![1, 200, 3, 4]]),
            acpi::table(b"SRAT", &[]),
        ];
        for table in &tables {
            with_table(table, |boot| {
                let outcome = boot.words(word::FORK).words("ops=8").succeed()?;
                outcome.says(word::WARNING)?;
                shape(&outcome, outcome.record("fork")?, 4, 1)
            })?;
        }
        Ok(())
    }),
    ("machine::slit_malformed", 1, || {
        with_table(
            &acpi::table(b"SLIT", &[9, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]),
            |boot| {
                let outcome = boot.words(word::FORK).words("ops=8").succeed()?;
                outcome.says(word::WARNING)?;
                shape(&outcome, outcome.record("fork")?, 4, 1)
            },
        )
    }),
    ("machine::384_cpus", MANY, || {
        // Every CPU is started and idles; two dozen storm. More would only measure the host.
        let boot = Boot::on("hygon")
            .words("bench=storm ops=96 workers=24")
            .limit(240);
        let outcome = boot.succeed()?;
        shape(&outcome, outcome.record("storm")?, 384, 12)
    }),
    ("machine::what_cannot_be_built", 1, || {
        for (option, value, reason) in [
            ("--cpus", "513", "512 CPUs at most"),
            ("--cpus", "0", "needs a CPU"),
            ("--nodes", "65", "64 nodes at most"),
            ("--memory", "16M", "64M on each node"),
            ("--distances", "/no-such-file", "no-such-file"),
        ] {
            Boot::on("default")
                .option(option, value)
                .fail()?
                .says(reason)?;
        }
        Ok(())
    }),
];

/// A small storm, after which nothing may be missing, on a machine of `cpus` and `nodes`.
fn storm(boot: Boot, cpus: u32, nodes: u32) -> Result<(), Failure> {
    let outcome = boot.words(word::STORM).words("ops=300").succeed()?;
    let record = outcome.record("storm")?;
    outcome.check(
        record.leaks.as_ref().is_some_and(Vec::is_empty),
        "no leak check, or leaks",
    )?;
    outcome.never_says(word::PANICKED)?;
    shape(&outcome, record, cpus, nodes)
}

/// The record is of a machine of this shape.
fn shape(outcome: &Outcome, record: &Record, cpus: u32, nodes: u32) -> Result<(), Failure> {
    let got = (record.topology.cpus, record.topology.nodes);
    outcome.check(
        got == (cpus, nodes),
        &format!("CPUs and nodes are {got:?}, not {:?}", (cpus, nodes)),
    )?;
    outcome.check(
        record.ops > 0 && record.errors == 0,
        "no operations, or errors",
    )
}

/// A temporary file that holds `bytes`.
fn file_with(bytes: &[u8]) -> Result<tempfile::NamedTempFile, Failure> {
    let file = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    std::fs::write(file.path(), bytes).map_err(|e| e.to_string())?;
    Ok(file)
}

/// A machine without NUMA tables of its own that gets `table`.
fn with_table(table: &[u8], run: impl FnOnce(Boot) -> Result<(), Failure>) -> Result<(), Failure> {
    let file = file_with(table)?;
    run(Boot::on("laptop").option("--acpi-table", file.path()))
}

// ---------------------------------------------------------------------------------------- programs

/// Values of `pid=` beside the default.
const PID_MAPS: &[&str] = &[
    "idr-relock",
    "xarray",
    "multi-xarray",
    "bitmap-hash",
    "sharded",
];

const PROGRAMS: &[(&str, usize, Body)] = &[
    ("program::tiny", 1, || {
        Boot::on("default").program("/bin/tiny").succeed().map(drop)
    }),
    ("program::init_runs_them_all", 1, || {
        let outcome = Boot::on("default")
            .program("/bin/init")
            .limit(120)
            .succeed()?;
        outcome.says("init: 5 programs, 0 failed")?;
        // Its own text says what runs; these say that they ran on this kernel.
        outcome.suite("pie", 15)?;
        outcome.suite("fpu", 15)?;
        outcome.suite("sigtest", 150)?;
        outcome.suite("calls", 850)
    }),
    ("program::calls", 1, || suite("calls", "default", 850)),
    ("program::calls_with_every_pid_map", 1, || {
        for map in PID_MAPS {
            let boot = Boot::on("default")
                .words(&format!("pid={map}"))
                .program("/bin/calls")
                .limit(120);
            let outcome = boot.succeed().map_err(|e| format!("pid={map}: {e}"))?;
            outcome.suite("calls", 1000)?;
        }
        Ok(())
    }),
    ("program::storm_in_nested_namespaces", 1, || {
        for map in PID_MAPS.iter().chain(&["idr"]) {
            let boot = Boot::on("default").words(&format!("pid={map} depth=6"));
            let why = |failure: Failure| format!("pid={map}: {failure}");
            storm(boot, 8, 4).map_err(why)?;
        }
        Ok(())
    }),
    ("program::calls_on_one_cpu", 1, || {
        let boot = Boot::on("default")
            .option("--nodes", "1")
            .option("--cpus", "1")
            .option("--memory", "64M");
        boot.program("/bin/calls")
            .limit(120)
            .succeed()?
            .suite("calls", 850)
    }),
    ("program::calls_under_icount", 1, || {
        let boot = Boot::on("laptop").option("--cpus", "1").icount();
        boot.program("/bin/calls")
            .limit(120)
            .succeed()?
            .suite("calls", 850)
    }),
    ("program::sigtest", 1, || suite("sigtest", "default", 150)),
    ("program::sigtest_on_a_laptop", 1, || {
        suite("sigtest", "laptop", 150)
    }),
    ("program::fpu", 1, || suite("fpu", "default", 15)),
    ("program::fpu_on_one_cpu", 1, || {
        let boot = Boot::on("laptop").option("--cpus", "1");
        boot.program("/bin/fpu").succeed()?.suite("fpu", 15)
    }),
    ("program::pie", 1, || suite("pie", "one-node", 15)),
    ("program::ubench", 1, || {
        let outcome = Boot::on("default")
            .program("/bin/ubench")
            .limit(180)
            .succeed()?;
        outcome.never_says("FAILED")?;
        outcome.says(" measured, 0 failed")
    }),
    ("program::in_64_mib", 1, || {
        let boot = Boot::on("default")
            .option("--memory", "64M")
            .program("/bin/calls")
            .limit(120);
        boot.succeed()?.suite("calls", 850)
    }),
    ("program::exit_code_counts", 1, || {
        // A program of ours that exits with 33 is a failed first process.
        let file = file_with(&elf::good())?;
        Boot::on("laptop")
            .host_program(file.path(), &[])
            .fail()?
            .says("status 33")
    }),
    ("program::missing", 1, || {
        let outcome = Boot::on("laptop").program("/bin/no-such-program").fail()?;
        outcome.says("/bin/no-such-program")?;
        outcome.says("ENOENT")
    }),
    ("program::not_executable", 1, || {
        Boot::on("laptop").program("/bin").fail()?.says("EACCES")
    }),
    ("program::corrupt_elf", 1, || {
        for (name, bytes) in elf::spoiled() {
            let file = file_with(&bytes)?;
            let outcome = Boot::on("laptop").host_program(file.path(), &[]).fail()?;
            let why = |failure: Failure| format!("{name}: {failure}");
            outcome.never_says(word::PANICKED).map_err(why)?;
            outcome.check(outcome.code == Some(1), name)?;
        }
        Ok(())
    }),
];

fn suite(name: &str, topology: &str, least: u64) -> Result<(), Failure> {
    Boot::on(topology)
        .program(&format!("/bin/{name}"))
        .limit(120)
        .succeed()?
        .suite(name, least)
}

// ---------------------------------------------------------------------------------------- failures

const FAILURES: &[(&str, usize, Body)] = &[
    ("failure::panic", 1, || {
        let outcome = reported(Boot::on("default").words(word::PANIC), word::PANICKED)?;
        outcome.says("on CPU ")?;
        outcome.says("the kernel panicked")
    }),
    ("failure::stack_overflow", 1, || {
        let outcome = reported(
            Boot::on("default").words(word::STACK_OVERFLOW),
            word::PANICKED,
        )?;
        outcome.says("stack")
    }),
    ("failure::null_read", 1, || {
        reported(Boot::on("default").words(word::NULL_READ), word::PANICKED).map(drop)
    }),
    ("failure::hang", 1, || {
        let outcome = Boot::on("default")
            .words(word::HANG)
            .words("watchdog=2")
            .fail()?;
        outcome.says(word::HANGS)?;
        outcome.says("on CPU ")?;
        outcome.says("the kernel hangs")
    }),
    ("failure::lockup", 1, || {
        reported(
            Boot::on("default").words(word::LOCKUP).words("watchdog=2"),
            word::HANGS,
        )
        .map(drop)
    }),
    ("failure::the_hosts_patience", 1, || {
        let outcome = Boot::on("default")
            .words(word::HANG)
            .words("watchdog=0")
            .limit(5)
            .fail()?;
        outcome.says("no verdict within 5 s")?;
        outcome.says(word::HANGS)
    }),
    ("failure::unknown_word", 1, || {
        let outcome = Boot::on("laptop").words("bench=frok").fail()?;
        // The list of what exists, and the nearest.
        for known in ["frok", "forkexec", "storm", "thread"] {
            outcome.says(known)?;
        }
        let outcome = Boot::on("laptop").words("benhc=fork").fail()?;
        for known in ["benhc", "bench", "workers", "watchdog"] {
            outcome.says(known)?;
        }
        Boot::on("laptop")
            .words("bench=fork ops=many")
            .fail()?
            .says("ops")?;
        Ok(())
    }),
];

/// The boot fails with a report that begins with `first` and a backtrace with names.
fn reported(boot: Boot, first: &str) -> Result<Outcome, Failure> {
    let outcome = boot.fail()?;
    outcome.says(first)?;
    // A line with the address and the innermost function, then one for each function it was inlined into.
    let report = outcome.console.lines();
    let mut trace = report.skip_while(|line| !line.starts_with(word::BACKTRACE));
    let named = trace.any(|line| line.contains(" at kernel/src/"));
    outcome.check(named, "no backtrace with names")?;
    Ok(outcome)
}
