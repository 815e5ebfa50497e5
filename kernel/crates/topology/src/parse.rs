//! From entries to CPUs, domains, ranges and distances. Offsets are those of ACPI 6.5, section 5.2.

use ksync::{MAX_NUMNODES, NR_CPUS};

use crate::table::{Checked, check, read};
use crate::warning::{Table, Warnings, What};
use crate::{CpuDesc, LOCAL_DISTANCE, MemRange, NR_RANGES_MAX, Topology};

const MADT_FIXED: usize = 44;
const MADT_LAPIC: u8 = 0;
const MADT_X2APIC: u8 = 9;
const MADT_ENABLED: u64 = 1;
const MADT_ONLINE_CAPABLE: u64 = 2;

const SRAT_FIXED: usize = 48;
const SRAT_LAPIC: u8 = 0;
const SRAT_MEMORY: u8 = 1;
const SRAT_X2APIC: u8 = 2;
const SRAT_ENABLED: u64 = 1;

const SLIT_FIXED: usize = 44;

/// While SRAT is read, a node id field holds a proximity domain, or this.
const NO_DOMAIN: usize = usize::MAX;

fn madt_len_min(kind: u8) -> usize {
    match kind {
        MADT_LAPIC => 8,
        MADT_X2APIC => 16,
        _ => 2,
    }
}

fn srat_len_min(kind: u8) -> usize {
    match kind {
        SRAT_LAPIC => 16,
        SRAT_MEMORY => 40,
        SRAT_X2APIC => 24,
        _ => 2,
    }
}

/// What one SRAT entry says.
enum Affinity {
    Cpu {
        apic_id: u32,
        domain: u32,
    },
    Memory {
        start: u64,
        length: u64,
        domain: u32,
    },
    /// Disabled, or a kind that is of no use here.
    Nothing,
}

impl Topology {
    /// Fills `cpus`.
    pub(crate) fn parse_madt(&mut self, bytes: &[u8], warnings: &mut Warnings) {
        if let Some(madt) = check(bytes, Table::Madt, b"APIC", MADT_FIXED, warnings) {
            // Two passes: enabled CPUs come first (INV-TOPO-2).
            for enabled in [true, false] {
                for entry in madt.entries(MADT_FIXED, madt_len_min) {
                    match entry {
                        Ok(e) => self.parse_madt_entry(e, enabled, warnings),
                        Err((what, at)) if enabled => warnings.add(Table::Madt, what, at),
                        Err(_) => {}
                    }
                }
            }
        }
        if self.nr_cpus == 0 {
            warnings.add(Table::Madt, What::NoCpus, 0);
        }
    }

    /// Adds the CPU of an entry if it is enabled, or only online-capable, as asked for.
    fn parse_madt_entry(&mut self, e: &[u8], enabled: bool, warnings: &mut Warnings) {
        let (id, flags, broadcast) = match e[0] {
            MADT_LAPIC => (read::<1>(e, 3), read::<4>(e, 4), 0xff),
            MADT_X2APIC => (read::<4>(e, 4), read::<4>(e, 8), 0xffff_ffff),
            _ => return,
        };
        let (Some(id), Some(flags)) = (id, flags) else {
            return;
        };
        let usable = flags & (MADT_ENABLED | MADT_ONLINE_CAPABLE) != 0;
        if !usable || (flags & MADT_ENABLED != 0) != enabled {
            return;
        }
        let apic_id = id as u32;
        if id == broadcast {
            warnings.add(Table::Madt, What::BroadcastId, id);
        } else if self.cpu_by_apic_id(apic_id).is_some() {
            warnings.add(Table::Madt, What::DuplicateCpu, id);
        } else if self.nr_cpus == NR_CPUS {
            warnings.add(Table::Madt, What::TooManyCpus, id);
        } else {
            self.cpus[self.nr_cpus] = CpuDesc {
                apic_id,
                node: 0,
                enabled,
            };
            self.nr_cpus += 1;
        }
    }

    /// Fills nodes, ranges and the CPUs' nodes, or leaves one node with everything.
    pub(crate) fn parse_srat(&mut self, bytes: &[u8], warnings: &mut Warnings) {
        let Some(srat) = check(bytes, Table::Srat, b"SRAT", SRAT_FIXED, warnings) else {
            return;
        };
        if let Err((what, value)) = self.read_srat(srat, warnings) {
            warnings.add(Table::Srat, what, value);
            self.make_one_node();
        }
    }

    fn make_one_node(&mut self) {
        self.nr_nodes = 1;
        self.domains[0] = 0;
        self.nr_ranges = 1;
        self.ranges[0] = Topology::ALL_MEMORY;
        self.cpus[..self.nr_cpus]
            .iter_mut()
            .for_each(|c| c.node = 0);
    }

    /// On error nodes, ranges and CPUs are in disorder.
    fn read_srat(&mut self, srat: Checked<'_>, warnings: &mut Warnings) -> Result<(), (What, u64)> {
        self.nr_ranges = 0;
        self.cpus[..self.nr_cpus]
            .iter_mut()
            .for_each(|c| c.node = NO_DOMAIN);
        for entry in srat.entries(SRAT_FIXED, srat_len_min) {
            match entry.map(|e| affinity(e, srat.revision())) {
                Ok(Affinity::Cpu { apic_id, domain }) => {
                    self.add_cpu_domain(apic_id, domain, warnings)
                }
                Ok(Affinity::Memory {
                    start,
                    length,
                    domain,
                }) => self.add_range(start, length, domain, warnings),
                Ok(Affinity::Nothing) => {}
                Err((what, at)) => warnings.add(Table::Srat, what, at),
            }
        }
        self.merge_ranges()?;
        self.number_domains(warnings)
    }

    fn add_cpu_domain(&mut self, apic_id: u32, domain: u32, warnings: &mut Warnings) {
        // Firmware lists CPUs that are not there (empty sockets): no word about those.
        let Some(cpu) = self.cpu_by_apic_id(apic_id) else {
            return;
        };
        match self.cpus[cpu].node {
            NO_DOMAIN => self.cpus[cpu].node = domain as usize,
            first if first == domain as usize => {}
            _ => warnings.add(Table::Srat, What::CpuInTwoDomains, apic_id.into()),
        }
    }

    /// Inserts a range in ascending order of its start.
    fn add_range(&mut self, start: u64, length: u64, domain: u32, warnings: &mut Warnings) {
        if length == 0 {
            return;
        }
        let Some(end) = start.checked_add(length) else {
            return warnings.add(Table::Srat, What::RangeWraps, start);
        };
        if self.nr_ranges == NR_RANGES_MAX {
            return warnings.add(Table::Srat, What::TooManyRanges, start);
        }
        let at = self.ranges().partition_point(|r| r.start <= start);
        self.nr_ranges += 1;
        self.ranges[at..self.nr_ranges].rotate_right(1);
        self.ranges[at] = MemRange {
            start,
            end,
            node: domain as usize,
        };
    }

    /// Joins ranges of one domain that touch or overlap. Domains that overlap are an error.
    fn merge_ranges(&mut self) -> Result<(), (What, u64)> {
        if self.nr_ranges == 0 {
            return Err((What::NoMemory, 0));
        }
        let mut last = 0;
        for i in 1..self.nr_ranges {
            let next = self.ranges[i];
            let before = &mut self.ranges[last];
            if next.start <= before.end && next.node == before.node {
                before.end = before.end.max(next.end);
            } else if next.start < before.end {
                return Err((What::RangesOverlap, next.start));
            } else {
                last += 1;
                self.ranges[last] = next;
            }
        }
        self.nr_ranges = last + 1;
        Ok(())
    }

    /// Collects the domains, sorted, and replaces domains by node ids everywhere.
    fn number_domains(&mut self, warnings: &mut Warnings) -> Result<(), (What, u64)> {
        self.nr_nodes = 0;
        for i in 0..self.nr_ranges {
            self.add_domain(self.ranges[i].node)?;
        }
        for i in 0..self.nr_cpus {
            match self.cpus[i].node {
                NO_DOMAIN => {}
                domain => self.add_domain(domain)?,
            }
        }
        let domains = self.domains;
        let domains = &domains[..self.nr_nodes];
        let node_of = |domain: usize| domains.iter().position(|&d| d as usize == domain);
        for r in &mut self.ranges[..self.nr_ranges] {
            r.node = node_of(r.node).unwrap_or(0);
        }
        for c in &mut self.cpus[..self.nr_cpus] {
            c.node = node_of(c.node).unwrap_or_else(|| {
                warnings.add(Table::Srat, What::CpuWithoutDomain, c.apic_id.into());
                0
            });
        }
        Ok(())
    }

    fn add_domain(&mut self, domain: usize) -> Result<(), (What, u64)> {
        let domain = domain as u32;
        let Err(at) = self.domains().binary_search(&domain) else {
            return Ok(());
        };
        if self.nr_nodes == MAX_NUMNODES {
            return Err((What::TooManyNodes, domain.into()));
        }
        self.nr_nodes += 1;
        self.domains[at..self.nr_nodes].rotate_right(1);
        self.domains[at] = domain;
        Ok(())
    }

    /// Fills `distance`, or leaves the default.
    pub(crate) fn parse_slit(&mut self, bytes: &[u8], warnings: &mut Warnings) {
        let Some(slit) = check(bytes, Table::Slit, b"SLIT", SLIT_FIXED, warnings) else {
            return;
        };
        let matrix = &slit.bytes[SLIT_FIXED..];
        let claimed = read::<8>(slit.bytes, 36).unwrap_or(0);
        let n = usize::try_from(claimed).unwrap_or(0);
        if n == 0 || n.checked_mul(n).is_none_or(|cells| cells > matrix.len()) {
            return warnings.add(Table::Slit, What::Localities, claimed);
        }
        let cells = || matrix[..n * n].iter().enumerate();
        if let Some((_, &bad)) =
            cells().find(|&(i, &d)| (i / n == i % n) != (d == LOCAL_DISTANCE) || d < LOCAL_DISTANCE)
        {
            return warnings.add(Table::Slit, What::Distance, bad.into());
        }
        for (a, &from) in self.domains[..self.nr_nodes].iter().enumerate() {
            if from as usize >= n {
                warnings.add(Table::Slit, What::NoRow, from.into());
                continue;
            }
            for (b, &to) in self.domains[..self.nr_nodes].iter().enumerate() {
                if (to as usize) < n {
                    let (from, to) = (from as usize, to as usize);
                    self.distance[a][b] = matrix[from * n + to];
                    if a < b && matrix[from * n + to] != matrix[to * n + from] {
                        warnings.add(Table::Slit, What::Asymmetric, from as u64);
                    }
                }
            }
        }
    }
}

/// Reads one SRAT entry, at least as long as its type. Before revision 2 a domain has 8 bits; the
/// bytes above are reserved and may hold anything.
fn affinity(e: &[u8], revision: u8) -> Affinity {
    let wide = revision >= 2;
    read_affinity(e, wide).unwrap_or(Affinity::Nothing)
}

fn read_affinity(e: &[u8], wide: bool) -> Option<Affinity> {
    let narrow = |domain: u64| {
        if wide {
            domain as u32
        } else {
            domain as u8 as u32
        }
    };
    let (flags, affinity) = match e[0] {
        SRAT_LAPIC => {
            let domain = read::<1>(e, 2)? | read::<3>(e, 9)? << 8;
            (
                read::<4>(e, 4)?,
                Affinity::Cpu {
                    apic_id: read::<1>(e, 3)? as u32,
                    domain: narrow(domain),
                },
            )
        }
        SRAT_X2APIC => (
            read::<4>(e, 12)?,
            Affinity::Cpu {
                apic_id: read::<4>(e, 8)? as u32,
                domain: read::<4>(e, 4)? as u32,
            },
        ),
        SRAT_MEMORY => {
            let (start, length) = (read::<8>(e, 8)?, read::<8>(e, 16)?);
            (
                read::<4>(e, 28)?,
                Affinity::Memory {
                    start,
                    length,
                    domain: narrow(read::<4>(e, 2)?),
                },
            )
        }
        _ => return None,
    };
    (flags & SRAT_ENABLED != 0).then_some(affinity)
}
