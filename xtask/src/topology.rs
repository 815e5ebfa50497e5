//! Machines: CPUs, nodes, memory and distances, and whether QEMU can build them.

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use std::{fmt::Write, fs, path::Path};

/// The kernel's arrays have this many CPUs.
const MAX_CPUS: u32 = 512;
/// The kernel's arrays have this many nodes.
const MAX_NODES: u32 = 64;
/// Node memory that the kernel can boot in, in MiB.
const MIN_MEMORY_MIB: u64 = 64;
/// QEMU's `-cpu max` has 40 physical address bits; some are for devices.
const MAX_TOTAL_MIB: u64 = 1000 << 10;
/// What SLIT says about a node and itself.
const LOCAL: u8 = 10;

/// Machines with names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// 4 CPUs, 512 MiB, no NUMA tables at all
    Laptop,
    /// 8 CPUs on 4 nodes in 2 packages, 256 MiB each
    Default,
    /// 12 CPUs on 4 nodes of 3 cores: APIC ids with gaps
    SparseApic,
    /// 4 CPUs on 2 nodes, and a third node with memory only
    MemoryOnlyNode,
    /// 8 CPUs on one node that the tables name
    OneNode,
    /// 128 CPUs on one node, 4 GiB
    BigNode,
    /// 384 CPUs on 12 nodes in 2 packages, 512 MiB each
    Hygon,
}

/// A machine to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// For the kernel's records.
    pub name: String,
    /// CPUs on each node; 0 for a node with memory only.
    pub nodes: Vec<u32>,
    /// Memory of each node, in MiB.
    pub memory_mib: u64,
    /// `distances[from][to]`, 10 to itself.
    pub distances: Vec<Vec<u8>>,
    /// Whether firmware tables tell of nodes at all.
    pub numa: bool,
}

/// What the command line changes.
#[derive(Default)]
pub struct Changes<'a> {
    /// `--cpus`.
    pub cpus: Option<u32>,
    /// `--nodes`.
    pub nodes: Option<u32>,
    /// `--memory`, in MiB per node.
    pub memory_mib: Option<u64>,
    /// `--distances`.
    pub distances: Option<&'a Path>,
}

impl Topology {
    /// The machine of that name.
    pub fn named(name: Name) -> Self {
        let (nodes, memory_mib, distances): (Vec<u32>, u64, Vec<Vec<u8>>) = match name {
            Name::Laptop => (vec![4], 512, packages(1, 1)),
            Name::Default => (vec![2; 4], 256, packages(4, 2)),
            Name::SparseApic => (vec![3; 4], 256, packages(4, 2)),
            Name::MemoryOnlyNode => (
                vec![2, 2, 0],
                256,
                vec![vec![10, 20, 40], vec![20, 10, 30], vec![40, 30, 10]],
            ),
            Name::OneNode => (vec![8], 1024, packages(1, 1)),
            Name::BigNode => (vec![128], 4096, packages(1, 1)),
            Name::Hygon => (vec![32; 12], 512, packages(12, 2)),
        };
        let word = name.to_possible_value().map(|v| v.get_name().to_string());
        Self {
            name: word.unwrap_or_default(),
            nodes,
            memory_mib,
            distances,
            numa: name != Name::Laptop,
        }
    }

    /// The same with what the command line changes, and checked.
    pub fn changed(mut self, changes: &Changes<'_>) -> Result<Self> {
        let spread = |cpus: u32, nodes: u32| {
            (0..nodes)
                .map(|n| cpus / nodes + u32::from(n < cpus % nodes))
                .collect()
        };
        if changes.cpus.is_some() || changes.nodes.is_some() {
            let nodes = changes.nodes.unwrap_or(self.nodes.len() as u32);
            let cpus = changes.cpus.unwrap_or_else(|| self.nodes.iter().sum());
            ensure!(cpus > 0, "--cpus 0: a machine needs a CPU");
            ensure!(nodes > 0, "--nodes 0: a machine needs a node");
            ensure!(
                cpus <= MAX_CPUS,
                "--cpus {cpus}: the kernel is built for {MAX_CPUS} CPUs at most"
            );
            ensure!(
                nodes <= MAX_NODES,
                "--nodes {nodes}: the kernel is built for {MAX_NODES} nodes at most"
            );
            if nodes as usize != self.nodes.len() {
                self.distances =
                    packages(nodes as usize, if nodes.is_multiple_of(2) { 2 } else { 1 });
            }
            self.numa |= nodes > 1;
            self.nodes = spread(cpus, nodes);
            self.name = "custom".into();
        }
        if let Some(memory) = changes.memory_mib {
            self.memory_mib = memory;
        }
        if let Some(path) = changes.distances {
            let text = fs::read_to_string(path)
                .with_context(|| format!("--distances {}", path.display()))?;
            self.distances = parse_distances(&text)
                .with_context(|| format!("--distances {}", path.display()))?;
            self.numa = true;
            self.name = "custom".into();
        }
        self.check()?;
        Ok(self)
    }

    /// The first `cpus` CPUs of this machine and the nodes they are on, under the same name.
    pub fn first(mut self, cpus: u32) -> Result<Self> {
        ensure!(cpus > 0, "--cpus 0: a machine needs a CPU");
        let all = self.cpus();
        ensure!(
            cpus <= all,
            "--cpus {cpus}: the machine {} has {all}",
            self.name
        );
        let mut left = cpus;
        for node in &mut self.nodes {
            *node = left.min(*node);
            left -= *node;
        }
        while self.nodes.len() > 1 && self.nodes.last() == Some(&0) {
            self.nodes.pop();
        }
        let nodes = self.nodes.len();
        self.distances.truncate(nodes);
        self.distances
            .iter_mut()
            .for_each(|row| row.truncate(nodes));
        Ok(self)
    }

    /// All CPUs.
    pub fn cpus(&self) -> u32 {
        self.nodes.iter().sum()
    }

    /// Refuses what QEMU or the kernel cannot do, with the reason.
    fn check(&self) -> Result<()> {
        let nodes = self.nodes.len();
        let (memory, total) = (self.memory_mib, self.memory_mib * nodes as u64);
        ensure!(
            memory >= MIN_MEMORY_MIB,
            "--memory {memory}M: the kernel needs {MIN_MEMORY_MIB}M on each node"
        );
        ensure!(
            total <= MAX_TOTAL_MIB,
            "{nodes} nodes of {memory}M are {total}M: QEMU's CPU addresses no more than {MAX_TOTAL_MIB}M"
        );
        ensure!(
            self.distances.len() == nodes,
            "distances are for {} nodes, the machine has {nodes}",
            self.distances.len()
        );
        for (from, row) in self.distances.iter().enumerate() {
            ensure!(
                row.len() == nodes,
                "row {from} of the distances has {} numbers, not {nodes}",
                row.len()
            );
            for (to, &distance) in row.iter().enumerate() {
                if from == to {
                    ensure!(
                        distance == LOCAL,
                        "distance {from} to {to} is {distance}: QEMU takes only {LOCAL} there"
                    );
                } else {
                    let fits = (LOCAL + 1..=254).contains(&distance);
                    ensure!(
                        fits,
                        "distance {from} to {to} is {distance}: between nodes it is 11 to 254"
                    );
                }
            }
        }
        Ok(())
    }

    fn cpus_per_socket(&self) -> u32 {
        let with_cpus: Vec<u32> = self.nodes.iter().copied().filter(|n| *n > 0).collect();
        if with_cpus.iter().all(|n| *n == with_cpus[0]) {
            with_cpus[0]
        } else {
            1
        }
    }

    /// The APIC id that QEMU gives each CPU: socket and core, the core in as many bits as all of a socket need.
    pub fn apic_ids(&self) -> Vec<u32> {
        let per_socket = self.cpus_per_socket();
        let bits = per_socket.next_power_of_two().trailing_zeros();
        let id = |cpu: u32| ((cpu / per_socket) << bits) | (cpu % per_socket);
        (0..self.cpus()).map(id).collect()
    }

    /// Where each node's memory is: start and end of physical ranges. QEMU's q35 keeps the last part of the first
    /// 4 GiB for devices and goes on above.
    pub fn memory_ranges(&self) -> Vec<(usize, u64, u64)> {
        const ABOVE: u64 = 4 << 30;
        let size = self.memory_mib << 20;
        let nodes = if self.numa { self.nodes.len() } else { 1 };
        let total = (self.memory_mib * self.nodes.len() as u64) << 20;
        let below = if total >= 0xb000_0000 {
            2 << 30
        } else {
            0xb000_0000
        };
        let size = if self.numa { size } else { total };
        let mut ranges = Vec::new();
        for node in 0..nodes {
            let (start, end) = (node as u64 * size, (node as u64 + 1) * size);
            if start < below {
                ranges.push((node, start, end.min(below)));
            }
            if end > below {
                ranges.push((node, start.max(below) - below + ABOVE, end - below + ABOVE));
            }
        }
        ranges
    }

    /// QEMU's words for this machine.
    pub fn arguments(&self) -> Vec<String> {
        let (nodes, cpus) = (self.nodes.len(), self.cpus());
        let mut args = vec![
            "-m".to_string(),
            format!("{}M", self.memory_mib * nodes as u64),
            "-smp".into(),
        ];
        // One socket per node where that comes out even, else one per CPU: QEMU wants a full product. No two
        // threads to a core: QEMU's `max` CPU cannot have them under TCG.
        let per_socket = self.cpus_per_socket();
        let sockets = cpus / per_socket;
        args.push(format!(
            "cpus={cpus},sockets={sockets},cores={per_socket},threads=1"
        ));
        if !self.numa {
            return args;
        }
        let mut first = 0;
        for (node, &count) in self.nodes.iter().enumerate() {
            let memory = self.memory_mib;
            args.push("-object".into());
            args.push(format!(
                "memory-backend-ram,id=mem{node},size={memory}M,reserve=off"
            ));
            let mut numa = format!("node,nodeid={node},memdev=mem{node}");
            if count > 0 {
                // Writing to a String does not fail.
                let _ = write!(numa, ",cpus={first}-{}", first + count - 1);
            }
            first += count;
            args.extend(["-numa".into(), numa]);
        }
        for (from, row) in self.distances.iter().enumerate() {
            for (to, distance) in row.iter().enumerate().filter(|(to, _)| *to != from) {
                args.extend([
                    "-numa".into(),
                    format!("dist,src={from},dst={to},val={distance}"),
                ]);
            }
        }
        args
    }

    /// The machine in one line, for people.
    pub fn describe(&self) -> String {
        let (cpus, nodes) = (self.cpus(), self.nodes.len());
        format!(
            "{}: {cpus} CPUs, {nodes} nodes of {} MiB",
            self.name, self.memory_mib
        )
    }
}

/// Distances of `nodes` nodes in `packages` equal packages: 12 within a package, 32 between two.
fn packages(nodes: usize, packages: usize) -> Vec<Vec<u8>> {
    let per_package = nodes.div_ceil(packages);
    let distance = |a: usize, b: usize| match (a == b, a / per_package == b / per_package) {
        (true, _) => LOCAL,
        (_, true) => 12,
        _ => 32,
    };
    (0..nodes)
        .map(|a| (0..nodes).map(|b| distance(a, b)).collect())
        .collect()
}

/// Reads a matrix: a row per line, numbers between spaces or commas, `#` begins a comment.
fn parse_distances(text: &str) -> Result<Vec<Vec<u8>>> {
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let words = line.split('#').next().unwrap_or_default();
        let words = words
            .split(|c: char| c.is_whitespace() || c == ',')
            .filter(|w| !w.is_empty());
        let row = words.map(|w| {
            w.parse::<u8>()
                .with_context(|| format!("line {}: {w:?} is no distance", number + 1))
        });
        let row = row.collect::<Result<Vec<u8>>>()?;
        if !row.is_empty() {
            rows.push(row);
        }
    }
    if rows.is_empty() {
        bail!("no numbers in it");
    }
    Ok(rows)
}

/// Reads a size such as `256M` or `2G`, in MiB.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size: write 256M or 2G");
    let (digits, unit) = text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    );
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let mib = match unit
        .to_ascii_uppercase()
        .trim_end_matches("IB")
        .trim_end_matches('B')
    {
        "M" => Some(number),
        "G" => number.checked_mul(1 << 10),
        "T" => number.checked_mul(1 << 20),
        _ => None,
    };
    mib.filter(|m| *m < 1 << 40).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(
        name: Name,
        cpus: Option<u32>,
        nodes: Option<u32>,
        memory_mib: Option<u64>,
    ) -> Result<Topology> {
        Topology::named(name).changed(&Changes {
            cpus,
            nodes,
            memory_mib,
            distances: None,
        })
    }

    #[test]
    fn every_named_machine_is_sound() {
        for name in Name::value_variants() {
            let machine = Topology::named(*name).changed(&Changes::default()).unwrap();
            assert_eq!(
                Topology::named(*name),
                machine,
                "a name stands for a machine as it is"
            );
            let args = machine.arguments();
            let smp = &args[args.iter().position(|a| a == "-smp").unwrap() + 1];
            let number = |key: &str| -> u32 {
                let (_, rest) = smp.split_once(key).unwrap();
                rest.split(',').next().unwrap().parse().unwrap()
            };
            assert_eq!(
                number("cpus="),
                number("sockets=") * number("cores=") * number("threads="),
                "{name:?}"
            );
        }
        assert_eq!(Topology::named(Name::Hygon).cpus(), 384);
        assert!(
            Topology::named(Name::Laptop)
                .arguments()
                .iter()
                .all(|a| a != "-numa")
        );
    }

    #[test]
    fn changes_spread_cpus() {
        let machine = change(Name::Default, Some(10), Some(4), None).unwrap();
        assert_eq!(machine.nodes, [3, 3, 2, 2]);
        assert!(
            machine
                .arguments()
                .contains(&"cpus=10,sockets=10,cores=1,threads=1".into())
        );
        assert!(
            machine
                .arguments()
                .contains(&"node,nodeid=1,memdev=mem1,cpus=3-5".into())
        );
        let machine = change(Name::Default, Some(2), Some(4), Some(64)).unwrap();
        assert_eq!(machine.nodes, [1, 1, 0, 0]);
        assert!(
            machine
                .arguments()
                .contains(&"node,nodeid=2,memdev=mem2".into())
        );
        assert!(change(Name::Laptop, None, Some(2), None).unwrap().numa);
    }

    #[test]
    fn the_first_cpus() {
        let hygon = Topology::named(Name::Hygon);
        assert_eq!(hygon.clone().first(384).unwrap(), hygon);
        let part = hygon.clone().first(70).unwrap();
        assert_eq!(
            (part.nodes.as_slice(), part.distances.len()),
            (&[32, 32, 6][..], 3)
        );
        assert_eq!(part.distances[2], [12, 12, 10]);
        assert_eq!(hygon.clone().first(1).unwrap().nodes, [1]);
        assert!(
            part.check().is_ok() && hygon.clone().first(0).is_err() && hygon.first(385).is_err()
        );
    }

    #[test]
    fn the_impossible_is_refused_with_a_reason() {
        let says = |result: Result<Topology>, word: &str| {
            let text = format!("{:#}", result.unwrap_err());
            assert!(text.contains(word), "{text}");
        };
        says(change(Name::Default, Some(0), None, None), "needs a CPU");
        says(change(Name::Default, Some(513), None, None), "512");
        says(change(Name::Default, None, Some(0), None), "needs a node");
        says(change(Name::Default, None, Some(65), None), "64 nodes");
        says(change(Name::Default, None, None, Some(63)), "64M");
        says(
            change(Name::Default, None, None, Some(1 << 20)),
            "addresses",
        );
        let with = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), text).unwrap();
            let changes = Changes {
                nodes: Some(2),
                distances: Some(file.path()),
                ..Changes::default()
            };
            Topology::named(Name::Default).changed(&changes)
        };
        assert_eq!(
            with("# two\n10 20\n30, 10\n").unwrap().distances,
            [[10, 20], [30, 10]]
        );
        says(with("10 20\n"), "for 1 nodes");
        says(with("10 20\n20\n"), "row 1");
        says(with("11 20\n20 10\n"), "only 10");
        says(with("10 255\n20 10\n"), "11 to 254");
        says(with("10 x\n"), "no distance");
        says(with("\n"), "no numbers");
        let missing = Changes {
            distances: Some(Path::new("nowhere")),
            ..Changes::default()
        };
        says(Topology::named(Name::Default).changed(&missing), "nowhere");
    }

    #[test]
    fn apic_ids_and_memory_as_in_qemu() {
        let sparse = Topology::named(Name::SparseApic);
        assert_eq!(sparse.apic_ids()[..7], [0, 1, 2, 4, 5, 6, 8]);
        assert_eq!(Topology::named(Name::Hygon).apic_ids()[383], 383);
        let hygon = Topology::named(Name::Hygon).memory_ranges();
        let (mib, gib) = (1u64 << 20, 1u64 << 30);
        assert_eq!(hygon[3], (3, 1536 * mib, 2 * gib));
        assert_eq!(hygon[4], (4, 4 * gib, 4 * gib + 512 * mib));
        let small = Topology::named(Name::Default).memory_ranges();
        assert_eq!(small.last(), Some(&(3, 768 * mib, 1024 * mib)));
        let split = change(Name::Default, None, Some(2), Some(3072)).unwrap();
        assert_eq!(
            split.memory_ranges(),
            [
                (0, 0, 2 * gib),
                (0, 4 * gib, 5 * gib),
                (1, 5 * gib, 8 * gib)
            ]
        );
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_memory("256M"), Ok(256));
        assert_eq!(parse_memory("2GiB"), Ok(2048));
        for bad in [
            "",
            "12",
            "M",
            "1K",
            "-1G",
            "99999999999999999999G",
            "18446744073709551615T",
        ] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }
}
