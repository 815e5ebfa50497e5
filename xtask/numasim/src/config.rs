//! What the plugin is told: the machine, and what things cost. A text of `key numbers...` lines.
//!
//! `cargo xtask` writes it from a profile and a topology, so that the distances here are those that the guest reads in
//! its SLIT. Every key must be there: nothing is guessed.

use std::collections::BTreeMap;

/// Most CPUs.
pub const MAX_CPUS: usize = 512;
/// Most nodes: a set of them is one word.
pub const MAX_NODES: usize = 64;

/// Costs in cycles, unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Costs {
    /// A locked instruction, beyond what its line costs.
    pub locked: u64,
    /// `pause`.
    pub pause: u64,
    /// A line from the L3 of the CPU's own node.
    pub l3: u64,
    /// A line from the memory of the own node.
    pub dram: u64,
    /// A line that follows the one before it in memory, which a prefetcher has already asked for.
    pub stream: u64,
    /// From a shared copy to the only one, when nobody else has one.
    pub upgrade: u64,
    /// How long a read keeps a shared line busy.
    pub occupancy: u64,
    /// Each copy that a write takes away.
    pub invalidate: u64,
    /// From the write to the interrupt command register to the handler.
    pub ipi: u64,
    /// Stores that may wait (a count).
    pub store_buffer: u64,
    /// Lines in a CPU's private cache (a count, a power of two).
    pub cache_lines: u64,
    /// How far a CPU may run ahead of the one furthest behind.
    pub slack: u64,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Costs.
    pub costs: Costs,
    /// The node of each CPU.
    pub node_of_cpu: Vec<u8>,
    /// The APIC id of each CPU.
    pub apic_of_cpu: Vec<u32>,
    /// `transfer[from][to]`: cycles for a line from a cache in one node to another CPU in the same or another.
    pub transfer: Vec<Vec<u64>>,
    /// Physical ranges: start, end, node.
    pub memory: Vec<(u64, u64, u8)>,
}

impl Config {
    /// Reads the text.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn parse(text: &str) -> Result<Config, String> {
        let mut lines: BTreeMap<&str, Vec<Vec<u64>>> = BTreeMap::new();
        for line in text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.starts_with('#'))
        {
            let mut words = line.split_whitespace();
            let key = words.next().unwrap_or_default();
            let numbers = words.map(|w| {
                w.parse::<u64>()
                    .map_err(|_| format!("{key}: {w:?} is no number"))
            });
            lines
                .entry(key)
                .or_default()
                .push(numbers.collect::<Result<_, _>>()?);
        }
        let mut rows = |key: &str| lines.remove(key).ok_or_else(|| format!("{key} is missing"));
        let costs = Costs {
            locked: single(&rows("locked")?, "locked")?,
            pause: single(&rows("pause")?, "pause")?,
            l3: single(&rows("l3")?, "l3")?,
            dram: single(&rows("dram")?, "dram")?,
            stream: single(&rows("stream")?, "stream")?,
            upgrade: single(&rows("upgrade")?, "upgrade")?,
            occupancy: single(&rows("occupancy")?, "occupancy")?,
            invalidate: single(&rows("invalidate")?, "invalidate")?,
            ipi: single(&rows("ipi")?, "ipi")?,
            store_buffer: single(&rows("store_buffer")?, "store_buffer")?,
            cache_lines: single(&rows("cache_lines")?, "cache_lines")?,
            slack: single(&rows("slack")?, "slack")?,
        };
        let nodes = rows("nodes")?.concat();
        let apic = rows("apic")?.concat();
        let transfer = rows("transfer")?;
        let memory = rows("memory")?;
        if let Some(key) = lines.keys().next() {
            return Err(format!("{key} is unknown"));
        }
        Config::new(costs, &nodes, &apic, transfer, &memory)
    }

    fn new(
        costs: Costs,
        nodes: &[u64],
        apic: &[u64],
        transfer: Vec<Vec<u64>>,
        memory: &[Vec<u64>],
    ) -> Result<Config, String> {
        let nr_nodes = transfer.len();
        check(!nodes.is_empty() && nodes.len() <= MAX_CPUS, || {
            format!("{} CPUs: 1 to {MAX_CPUS}", nodes.len())
        })?;
        check(apic.len() == nodes.len(), || {
            format!("{} APIC ids for {} CPUs", apic.len(), nodes.len())
        })?;
        check((1..=MAX_NODES).contains(&nr_nodes), || {
            format!("{nr_nodes} nodes: 1 to {MAX_NODES}")
        })?;
        check(
            costs.cache_lines.is_power_of_two() && costs.cache_lines <= 1 << 20,
            || "cache_lines is no power of two up to 1048576".into(),
        )?;
        check((1..=1024).contains(&costs.store_buffer), || {
            "store_buffer is not 1 to 1024".into()
        })?;
        let square = transfer.iter().all(|row| row.len() == nr_nodes);
        check(square, || "transfer is no square".into())?;
        let least = transfer.iter().flatten().copied().min().unwrap_or(0);
        check(costs.slack <= least, || {
            format!(
                "slack {} is more than the least cost between two CPUs, {least}",
                costs.slack
            )
        })?;
        let local_is_least = transfer
            .iter()
            .enumerate()
            .all(|(n, row)| row.iter().all(|c| *c >= row[n]));
        check(local_is_least, || {
            "a transfer within a node costs more than one from another".into()
        })?;
        let known = |n: u64| (n as usize) < nr_nodes;
        check(nodes.iter().all(|&n| known(n)), || {
            "a CPU is on a node that does not exist".into()
        })?;
        let mut ranges = Vec::new();
        for row in memory {
            let &[start, end, node] = row.as_slice() else {
                return Err("memory takes start, end and node".into());
            };
            check(start < end && known(node), || {
                format!("memory {start} {end} {node} makes no sense")
            })?;
            ranges.push((start, end, node as u8));
        }
        Ok(Config {
            costs,
            node_of_cpu: nodes.iter().map(|&n| n as u8).collect(),
            apic_of_cpu: apic.iter().map(|&a| a as u32).collect(),
            transfer,
            memory: ranges,
        })
    }

    /// The node whose memory `physical` is; 0 for what no range names.
    pub fn home(&self, physical: u64) -> usize {
        let range = self
            .memory
            .iter()
            .find(|(start, end, _)| (*start..*end).contains(&physical));
        range.map_or(0, |r| usize::from(r.2))
    }

    /// Whether `physical` is memory that the model knows.
    pub fn is_memory(&self, physical: u64) -> bool {
        self.memory
            .iter()
            .any(|(start, end, _)| (*start..*end).contains(&physical))
    }

    /// End of the highest range.
    pub fn memory_end(&self) -> u64 {
        self.memory.iter().map(|r| r.1).max().unwrap_or(0)
    }

    /// The CPU with that APIC id.
    pub fn cpu_of_apic(&self, apic: u32) -> Option<usize> {
        self.apic_of_cpu.iter().position(|&a| a == apic)
    }
}

fn check(good: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if good { Ok(()) } else { Err(why()) }
}

fn single(rows: &[Vec<u64>], key: &str) -> Result<u64, String> {
    match rows {
        [row] if row.len() == 1 => Ok(row[0]),
        _ => Err(format!("{key} takes one number, once")),
    }
}

/// A machine for tests: `nodes` nodes of `per_node` CPUs and 1 GiB each.
#[cfg(test)]
pub fn sample(nodes: usize, per_node: usize) -> Config {
    let mut text = String::from(
        "locked 18\npause 44\nl3 44\ndram 200\nstream 30\nupgrade 20\noccupancy 16\n\
         invalidate 2\nipi 1200\nstore_buffer 32\ncache_lines 1024\nslack 100\n",
    );
    let list = |f: &dyn Fn(usize) -> usize| {
        (0..nodes * per_node)
            .map(|c| f(c).to_string())
            .collect::<Vec<_>>()
            .join(" ")
    };
    text += &format!(
        "nodes {}\napic {}\n",
        list(&|c| c / per_node),
        list(&|c| c * 2)
    );
    for a in 0..nodes {
        let row: Vec<_> = (0..nodes)
            .map(|b| if a == b { "110" } else { "270" })
            .collect();
        text += &format!("transfer {}\n", row.join(" "));
        text += &format!("memory {} {} {a}\n", a << 30, (a + 1) << 30);
    }
    Config::parse(&text).expect("a sound machine")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine() {
        let c = sample(2, 4);
        assert_eq!(c.node_of_cpu, [0, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(c.transfer, [[110, 270], [270, 110]]);
        assert_eq!((c.home(5), c.home(1 << 30), c.home(9 << 30)), (0, 1, 0));
        assert!(c.is_memory(5) && !c.is_memory(2 << 30));
        assert_eq!((c.cpu_of_apic(6), c.cpu_of_apic(7)), (Some(3), None));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let says = |text: &str, word: &str| {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(word), "{error}");
        };
        says("", "locked is missing");
        says("locked x", "no number");
        says("locked 1\nlocked 2", "once");
        let whole = "locked 18\npause 44\nl3 44\ndram 200\nstream 30\nupgrade 20\n\
             occupancy 16\ninvalidate 2\nipi 1200\nstore_buffer 32\ncache_lines 1024\nslack 100\nnodes 0 1\n\
             apic 0 1\ntransfer 110 270\ntransfer 270 110\nmemory 0 4096 0\nmemory 4096 8192 1\n";
        assert!(Config::parse(whole).is_ok());
        says(&whole.replace("slack 100", "slack 111"), "slack 111");
        says(&whole.replace("apic 0 1", "apic 0"), "1 APIC ids for 2");
        says(&whole.replace("nodes 0 1", "nodes 0 2"), "does not exist");
        says(&whole.replace("transfer 110 270", "transfer 110"), "square");
        says(
            &whole.replace("transfer 110 270", "transfer 300 270"),
            "from another",
        );
        says(
            &whole.replace("memory 0 4096 0", "memory 4096 0 0"),
            "no sense",
        );
        says(&(whole.to_string() + "colour 3"), "colour is unknown");
    }
}
