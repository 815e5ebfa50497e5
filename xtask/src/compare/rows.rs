//! What each operation of `ubench` is, and the table of figures.

use super::Printed;
use anyhow::{Result, ensure};
use comfy_table::{CellAlignment, Table, TableStyle};
use std::collections::BTreeMap;

/// The operations in the order of the table: ubench's name and what is done, once.
pub const OPERATIONS: &[(&str, &str)] = &[
    ("getpid", "getpid"),
    ("enosys", "a call that does not exist"),
    ("kill0", "kill(self, 0)"),
    ("signal", "a signal to oneself, its handler, return"),
    ("open_close", "open + close"),
    ("stat", "stat"),
    ("pread1", "pread of 1 byte"),
    ("sched_yield", "sched_yield between two processes"),
    ("pipe_pingpong", "pipe ping-pong, round trip"),
    ("futex_pingpong", "futex ping-pong, round trip"),
    ("pidfd_open", "pidfd_open + close"),
    ("mmap_anon", "mmap + munmap, anonymous"),
    ("mmap_anon_touched", "the same, touched"),
    ("fault", "anonymous page fault"),
    ("brk", "brk: grow and shrink"),
    ("mprotect", "mprotect twice"),
    ("mmap_shared_0", "mmap + munmap of a shared file page"),
    ("mmap_shared_100", "the same, 100 other mappings of it"),
    ("mmap_shared_1000", "the same, 1,000 others"),
    ("mmap_shared_6000", "the same, 6,000 others"),
    (
        "mmap_private_touched_0",
        "mmap + munmap of a private file page, touched",
    ),
    ("mmap_private_touched_6000", "the same, 6,000 others"),
    ("fork_exit_wait", "fork + exit + wait"),
    ("fork_16_pages", "the same, 16 touched pages"),
    ("fork_256_pages", "the same, 256 pages"),
    ("fork_1024_pages", "the same, 1,024 pages"),
    ("fork_4096_pages", "the same, 4,096 pages"),
    ("fork_512_vmas", "the same, 512 more VMAs"),
    (
        "fork_6000_file_maps",
        "the same, 6,000 mappings of one file",
    ),
    ("vfork_exit_wait", "vfork + exit + wait"),
    ("fork_only_64", "fork only, of 64"),
    ("reap_only_64", "exit and reap only, of 64"),
    (
        "vfork_exec_wait",
        "vfork + exec + wait, an ELF of 344 bytes",
    ),
    ("fork_exec_wait", "fork + exec + wait, the same"),
    ("exec_self", "a program that executes itself"),
    (
        "exec_true_musl_static",
        "vfork + exec + wait, true: musl, static",
    ),
    ("exec_true_glibc_static", "the same, glibc, static"),
    ("exec_true_musl", "the same, musl, dynamic"),
    (
        "exec_true",
        "the same, Debian's /usr/bin/true (glibc, dynamic)",
    ),
    ("exec_busybox_true", "the same, busybox true"),
    ("exec_busybox_sh", "the same, busybox sh -c :"),
    ("exec_dash", "the same, dash -c :"),
    ("thread", "thread: create, exit, join"),
    ("thread_mmap", "the same with mmap and munmap of its stack"),
    (
        "fork_64_threads_exit_group",
        "fork, 64 threads, exit_group, wait",
    ),
    ("newpid_exit_wait", "clone(CLONE_NEWPID) + exit + wait"),
    ("fork_depth_1", "fork + exit + wait at depth 1"),
    ("fork_depth_8", "the same at depth 8"),
    ("fork_depth_16", "the same at depth 16"),
    ("fork_depth_31", "the same at depth 31"),
    ("thread_depth_0", "thread at depth 0"),
    ("thread_depth_8", "the same at depth 8"),
    ("thread_depth_31", "the same at depth 31"),
    ("kill_init_of_100", "kill the init of a namespace of 100"),
    ("set_tid", "clone3 with set_tid + exit + wait"),
    ("readdir_proc", "readdir of /proc, 500 processes, per entry"),
    (
        "read_proc_stat",
        "open, read, close /proc/PID/stat, 200 processes",
    ),
    (
        "readdir_proc_10000",
        "readdir of /proc, 10,000 processes, per entry",
    ),
    ("readdir_proc_10000_whole", "the same, the whole of it"),
    (
        "read_proc_stat_10000",
        "open, read, close /proc/PID/stat, 10,000 processes",
    ),
    ("busybox_ps_10000", "busybox ps, 10,000 processes"),
    ("ps_10000", "procps ps -e, 10,000 processes"),
    ("pstree_10000", "psmisc pstree, 10,000 processes"),
    ("fork_beside_10000", "fork + exit + wait beside 10,000"),
    ("kill_10000", "kill -9 of 10,000, each"),
    ("reap_10000", "reap of 10,000, each"),
    (BEGINS, "until the first process begins"),
];

/// Not ubench's, but its first process's.
const BEGINS: &str = "first_process";
/// The loop alone: its cost is in every figure.
const LOOP: &str = "nothing";

/// Figures by system and operation.
pub struct Results {
    /// The systems, Tine last.
    pub systems: Vec<String>,
    figures: Vec<BTreeMap<String, u64>>,
    strange: Vec<String>,
}

impl Results {
    /// From what the systems printed.
    pub fn read(printed: &[Printed]) -> Result<Self> {
        let mut results = Self {
            systems: printed.iter().map(|p| p.system.clone()).collect(),
            figures: vec![],
            strange: vec![],
        };
        for Printed { system, console } in printed {
            let (figures, strange) = figures(console);
            ensure!(!figures.is_empty(), "{system} measured nothing:\n{console}");
            results
                .strange
                .extend(strange.iter().map(|line| format!("{system}: {line}")));
            results.figures.push(figures);
        }
        Ok(results)
    }

    /// The rows: name, what is done, a figure for each system.
    pub fn rows(&self) -> impl Iterator<Item = (&str, &str, Vec<Option<u64>>)> {
        OPERATIONS.iter().filter_map(|(name, what)| {
            let row: Vec<_> = self.figures.iter().map(|f| f.get(*name).copied()).collect();
            row.iter()
                .any(Option::is_some)
                .then_some((*name, *what, row))
        })
    }

    /// Tine's share of what the system at `index` takes, for a row.
    pub fn share(row: &[Option<u64>], index: usize) -> Option<f64> {
        let (linux, tine) = (row[index]?, (*row.last()?)?);
        (linux > 0 && tine > 0).then(|| tine as f64 / linux as f64)
    }

    /// The geometric mean of Tine's shares of the system at `index`, and of how many rows.
    pub fn mean(&self, index: usize) -> Option<(f64, usize)> {
        // Until the first process begins there is waiting for devices too, which is no instruction.
        let operations = self.rows().filter(|(name, ..)| *name != BEGINS);
        let shares: Vec<f64> = operations
            .filter_map(|(.., row)| Self::share(&row, index))
            .collect();
        let logs: f64 = shares.iter().map(|share| share.ln()).sum();
        (!shares.is_empty()).then(|| ((logs / shares.len() as f64).exp(), shares.len()))
    }

    /// What could not be measured.
    pub fn complain(&self) {
        self.strange
            .iter()
            .for_each(|line| eprintln!("note: {line}"));
    }

    /// For the terminal.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(TableStyle::new());
        let linux = self.systems.len() - 1;
        let ratios = (0..linux).map(|i| format!("of {}", short(&self.systems[i])));
        let header = ["operation".to_string()].into_iter();
        table.set_header(header.chain(self.systems.iter().cloned()).chain(ratios));
        for (_, what, row) in self.rows() {
            let figures = row
                .iter()
                .map(|f| f.map_or("-".into(), kbench::table::grouped));
            let shares =
                (0..linux).map(|i| Self::share(&row, i).map_or("-".into(), |s| format!("{s:.2}")));
            table.add_row([what.to_string()].into_iter().chain(figures).chain(shares));
        }
        for column in 1..=linux + 1 + linux {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let mut text: String = table.lines().map(|l| format!("{}\n", l.trim())).collect();
        for index in 0..linux {
            if let Some((mean, rows)) = self.mean(index) {
                text += &format!(
                    "geometric mean of {rows} rows: {mean:.3} of {}\n",
                    self.systems[index]
                );
            }
        }
        text + "figures are instructions per operation"
    }
}

/// A system's name without what is the same for all Debian kernels.
pub fn short(system: &str) -> String {
    let release = system.strip_prefix("Linux ").unwrap_or(system);
    let numbers = release.split(['-', '+']).next().unwrap_or(release);
    let mut parts = numbers.split('.');
    let two: Vec<&str> = parts.by_ref().take(2).collect();
    two.join(".")
}

/// The figures on a console, and lines that tell of operations that failed or whose program is absent.
fn figures(console: &str) -> (BTreeMap<String, u64>, Vec<String>) {
    let (mut good, mut strange) = (BTreeMap::new(), vec![]);
    for line in console.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["ubench", LOOP, _] => {}
            ["ubench", name, figure] => match figure.parse() {
                Ok(figure) => drop(good.insert(name.to_string(), figure)),
                Err(_) => strange.push(line.to_string()),
            },
            ["init:", "begins", "at", ticks] => {
                ticks
                    .parse()
                    .ok()
                    .and_then(|ticks| good.insert(BEGINS.into(), ticks));
            }
            _ => {}
        }
    }
    (good, strange)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn printed(system: &str, console: &str) -> Printed {
        Printed {
            system: system.into(),
            console: console.into(),
        }
    }

    #[test]
    fn shares_and_their_mean() {
        let linux = printed(
            "Linux 6.1.0-56-amd64",
            "init: begins at 50\nubench getpid 300\nubench stat 800\nubench dash absent\n",
        );
        let tine = printed("Tine", "ubench getpid 75\nubench stat 800\n");
        let results = Results::read(&[linux, tine]).unwrap();
        let (mean, rows) = results.mean(0).unwrap();
        assert!((mean - 0.5).abs() < 1e-9 && rows == 2, "{mean} of {rows}");
        assert_eq!(
            results.strange,
            ["Linux 6.1.0-56-amd64: ubench dash absent"]
        );
        let table = results.table();
        assert!(
            table.contains("0.25") && table.contains("of 6.1"),
            "{table}"
        );
        assert!(Results::read(&[printed("Tine", "nothing")]).is_err());
    }

    #[test]
    fn every_operation_of_ubench_has_a_description() {
        let sources = crate::paths::root().join("tests/programs/src/bin/ubench");
        let mut names = vec![];
        for entry in fs::read_dir(sources).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            for call in ["bench(\"", "heavy(\""] {
                names.extend(
                    text.split(call)
                        .skip(1)
                        .filter_map(|rest| Some(rest.split_once('"')?.0.to_string())),
                );
            }
        }
        assert!(names.len() > 50);
        for name in names.iter().filter(|name| *name != LOOP) {
            assert!(OPERATIONS.iter().any(|(known, _)| known == name), "{name}");
        }
    }
}
