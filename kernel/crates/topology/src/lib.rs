//! CPUs, nodes, memory ranges and distances, from the bytes of MADT, SRAT and SLIT.
//!
//! # Problem
//! What is near what decides where memory is taken and where threads run. Firmware says it in
//! three ACPI tables, and firmware is not to be trusted: lengths lie, entries overlap, distances
//! are filled with tens. A kernel that panics here cannot even say so. No allocator exists yet.
//! (Ours because the common crate reads SRAT and SLIT at wrong offsets.)
//!
//! # Mechanism
//! [`Topology`] is a plain value of fixed arrays, meant for a static. [`Topology::parse_into`]
//! reads the raw tables, header included:
//!
//! ```text
//!   MADT  types 0, 9     -> cpus[]     enabled first, then online-capable; else not ours
//!   SRAT  types 0, 1, 2  -> domains of those CPUs and of memory, sorted: node n = n-th domain
//!                           cpus[].node, ranges[] sorted, touching ranges of a node merged
//!   SLIT                 -> distance[][] between nodes, through their domains
//! ```
//!
//! A table with a bad signature, length or checksum is ignored; a bad entry is skipped. Each such
//! thing is a [`Warning`]. Without a usable SRAT there is one node that owns all memory; without
//! a usable SLIT the distance is 10 at home and 20 elsewhere. A SRAT that gives one byte of memory
//! to two nodes is not usable.
//!
//! Ranges are claims on address space, hot-pluggable space included: intersect them with the
//! memory map.
//!
//! # Invariants
//! - INV-TOPO-1: node ids are dense, ordered by proximity domain, and at least one exists; every
//!   `cpu.node` and `range.node` is below `nr_nodes`.
//! - INV-TOPO-2: no two CPUs have the same APIC id; enabled CPUs come first.
//! - INV-TOPO-3: ranges are not empty, sorted, disjoint.
//! - INV-TOPO-4: `distance(a, a)` is 10, `distance(a, b)` above 10.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod parse;
mod table;
mod warning;

use core::ops::Deref;

use ksync::{MAX_NUMNODES, NR_CPUS};

pub use warning::{Table, Warning, Warnings, What};

/// A dense node number, 0 to `nr_nodes` - 1.
pub type NodeId = usize;

/// Distance from a node to itself (fixed by ACPI).
pub const LOCAL_DISTANCE: u8 = 10;
/// Distance between two nodes when firmware does not say.
pub const REMOTE_DISTANCE: u8 = 20;
/// Memory ranges kept; more are dropped with a warning.
pub const NR_RANGES_MAX: usize = 256;

/// A CPU that exists or may come.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct CpuDesc {
    /// Local APIC id (x2APIC ids above 254 included).
    pub apic_id: u32,
    /// Its node.
    pub node: NodeId,
    /// It can be started now. False: firmware may bring it online later.
    pub enabled: bool,
}

/// Address space of a node, in bytes, end exclusive.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct MemRange {
    /// First physical address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Whose it is.
    pub node: NodeId,
}

/// The machine. See the crate's head.
#[derive(Clone)]
pub struct Topology {
    cpus: [CpuDesc; NR_CPUS],
    nr_cpus: usize,
    /// Proximity domain of each node, ascending.
    domains: [u32; MAX_NUMNODES],
    nr_nodes: usize,
    ranges: [MemRange; NR_RANGES_MAX],
    nr_ranges: usize,
    distance: [[u8; MAX_NUMNODES]; MAX_NUMNODES],
}

/// Nodes in order of distance; a slice of ids.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct NodeList {
    ids: [NodeId; MAX_NUMNODES],
    len: usize,
}

impl Deref for NodeList {
    type Target = [NodeId];

    fn deref(&self) -> &[NodeId] {
        &self.ids[..self.len]
    }
}

impl Topology {
    /// One node, no CPU: what to put into a static.
    pub const EMPTY: Topology = Topology {
        cpus: [CpuDesc {
            apic_id: 0,
            node: 0,
            enabled: false,
        }; NR_CPUS],
        nr_cpus: 0,
        domains: [0; MAX_NUMNODES],
        nr_nodes: 1,
        ranges: [Self::ALL_MEMORY; NR_RANGES_MAX],
        nr_ranges: 1,
        distance: Self::DEFAULT_DISTANCE,
    };

    /// All memory, on the only node.
    const ALL_MEMORY: MemRange = MemRange {
        start: 0,
        end: u64::MAX,
        node: 0,
    };

    const DEFAULT_DISTANCE: [[u8; MAX_NUMNODES]; MAX_NUMNODES] = {
        let mut d = [[REMOTE_DISTANCE; MAX_NUMNODES]; MAX_NUMNODES];
        let mut n = 0;
        while n < MAX_NUMNODES {
            d[n][n] = LOCAL_DISTANCE;
            n += 1;
        }
        d
    };

    /// Reads the tables, each from its signature on; bytes after a table's own length are ignored.
    /// Never fails: what cannot be used is left out and warned about. Call [`Topology::set_boot_cpu`]
    /// next.
    pub fn parse_into(
        &mut self,
        madt: &[u8],
        srat: Option<&[u8]>,
        slit: Option<&[u8]>,
    ) -> Warnings {
        let mut warnings = Warnings::NONE;
        *self = Topology::EMPTY;
        self.parse_madt(madt, &mut warnings);
        if let Some(srat) = srat {
            self.parse_srat(srat, &mut warnings);
        }
        if let Some(slit) = slit {
            self.parse_slit(slit, &mut warnings);
        }
        warnings
    }

    /// Makes the CPU with this APIC id number 0; the others keep their order. A boot CPU that
    /// firmware forgot is added (on node 0): it evidently exists. False if it had to be.
    pub fn set_boot_cpu(&mut self, apic_id: u32) -> bool {
        let found = self.cpu_by_apic_id(apic_id);
        let at = found.unwrap_or_else(|| {
            if self.nr_cpus < NR_CPUS {
                self.nr_cpus += 1;
            }
            let at = self.nr_cpus - 1;
            self.cpus[at] = CpuDesc {
                apic_id,
                node: 0,
                enabled: true,
            };
            at
        });
        self.cpus[at].enabled = true;
        self.cpus[..=at].rotate_right(1);
        found.is_some()
    }

    /// All CPUs that exist or may come: enabled ones first.
    pub fn cpus(&self) -> &[CpuDesc] {
        &self.cpus[..self.nr_cpus]
    }

    /// The CPUs to start.
    pub fn enabled_cpus(&self) -> &[CpuDesc] {
        &self.cpus[..self.cpus().partition_point(|c| c.enabled)]
    }

    /// Number of the CPU with an APIC id.
    pub fn cpu_by_apic_id(&self, apic_id: u32) -> Option<usize> {
        self.cpus().iter().position(|c| c.apic_id == apic_id)
    }

    /// How many nodes there are: at least 1.
    pub fn nr_nodes(&self) -> usize {
        self.nr_nodes
    }

    /// The proximity domain of each node.
    pub fn domains(&self) -> &[u32] {
        &self.domains[..self.nr_nodes]
    }

    /// The node of a proximity domain.
    pub fn node_of_domain(&self, domain: u32) -> Option<NodeId> {
        self.domains().binary_search(&domain).ok()
    }

    /// All ranges, ascending.
    pub fn ranges(&self) -> &[MemRange] {
        &self.ranges[..self.nr_ranges]
    }

    /// The ranges of one node.
    pub fn node_ranges(&self, node: NodeId) -> impl Iterator<Item = MemRange> {
        self.ranges()
            .iter()
            .copied()
            .filter(move |r| r.node == node)
    }

    /// The node that owns a physical address, if firmware gave it to one.
    pub fn node_of_phys(&self, pa: u64) -> Option<NodeId> {
        let at = self.ranges().partition_point(|r| r.end <= pa);
        self.ranges()
            .get(at)
            .filter(|r| r.start <= pa)
            .map(|r| r.node)
    }

    /// Whether an enabled CPU belongs to `node`.
    pub fn has_cpus(&self, node: NodeId) -> bool {
        self.enabled_cpus().iter().any(|c| c.node == node)
    }

    /// How far `b` is from `a`, in units of a tenth of local latency. 255: not reachable.
    pub fn distance(&self, a: NodeId, b: NodeId) -> u8 {
        self.distance[a][b]
    }

    /// All nodes, nearest to `node` first, `node` itself at the head. Equally near ones follow in
    /// a circle from `node`, so that not everybody's second choice is node 0.
    pub fn nearest(&self, node: NodeId) -> NodeList {
        let n = self.nr_nodes;
        let mut list = NodeList {
            ids: core::array::from_fn(|i| (node + i) % n),
            len: n,
        };
        // Insertion sort: stable, and n is at most 64.
        for i in 1..n {
            let mut j = i;
            while j > 1 && self.distance(node, list.ids[j - 1]) > self.distance(node, list.ids[j]) {
                list.ids.swap(j - 1, j);
                j -= 1;
            }
        }
        list
    }

    /// Stops at the first broken invariant.
    pub fn check_invariants(&self) {
        assert!((1..=MAX_NUMNODES).contains(&self.nr_nodes), "INV-TOPO-1");
        assert!(self.domains().is_sorted_by(|a, b| a < b), "INV-TOPO-1");
        assert!(
            self.cpus().iter().all(|c| c.node < self.nr_nodes),
            "INV-TOPO-1"
        );
        assert!(
            self.ranges().iter().all(|r| r.node < self.nr_nodes),
            "INV-TOPO-1"
        );
        assert!(
            self.cpus().is_sorted_by(|a, b| a.enabled >= b.enabled),
            "INV-TOPO-2"
        );
        for (i, c) in self.cpus().iter().enumerate() {
            assert_eq!(self.cpu_by_apic_id(c.apic_id), Some(i), "INV-TOPO-2");
        }
        assert!(self.ranges().iter().all(|r| r.start < r.end), "INV-TOPO-3");
        assert!(
            self.ranges().is_sorted_by(|a, b| a.end <= b.start),
            "INV-TOPO-3"
        );
        for (a, b) in (0..self.nr_nodes).flat_map(|a| (0..self.nr_nodes).map(move |b| (a, b))) {
            assert_eq!(self.distance(a, b) == LOCAL_DISTANCE, a == b, "INV-TOPO-4");
            assert!(self.distance(a, b) >= LOCAL_DISTANCE, "INV-TOPO-4");
        }
    }
}
