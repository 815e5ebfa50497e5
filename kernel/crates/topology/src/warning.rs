//! What was wrong with firmware's tables: values to print later, when there is a console.

use core::fmt;

/// The table a warning is about.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Table {
    /// Multiple APIC description: CPUs.
    Madt,
    /// System resource affinity: domains.
    Srat,
    /// System locality: distances.
    Slit,
}

/// What was wrong, and what was done about it.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// Not this table's signature; ignored.
    Signature,
    /// Its length is more than the bytes at hand or less than its header; ignored.
    Length,
    /// Bytes do not sum to zero; ignored.
    Checksum,
    /// An entry's length is 0 or runs past the end; the rest is ignored.
    EntryLength,
    /// An entry is shorter than its type; skipped.
    EntryShort,
    /// An APIC id is listed twice (the value); the first counts.
    DuplicateCpu,
    /// An APIC id (the value) is the broadcast address; skipped.
    BroadcastId,
    /// More CPUs than supported; this one (APIC id: the value) is dropped.
    TooManyCpus,
    /// No CPU at all.
    NoCpus,
    /// A memory range wraps around (the value is its base); skipped.
    RangeWraps,
    /// More memory ranges than supported; the rest is dropped.
    TooManyRanges,
    /// Two nodes claim one address (the value); the table is ignored.
    RangesOverlap,
    /// More domains than supported; the table is ignored.
    TooManyNodes,
    /// No memory in any domain; the table is ignored.
    NoMemory,
    /// A CPU (APIC id: the value) has no domain; it goes to node 0.
    CpuWithoutDomain,
    /// A CPU (APIC id: the value) has two domains; the first counts.
    CpuInTwoDomains,
    /// The number of localities does not fit the length; ignored.
    Localities,
    /// A distance to itself is not 10, or one elsewhere is not above 10 (the value); ignored.
    Distance,
    /// Distances there and back differ (the value is one domain); kept as they are.
    Asymmetric,
    /// A domain (the value) has no row; default distances.
    NoRow,
}

/// One thing that was wrong.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// Where.
    pub table: Table,
    /// What.
    pub what: What,
    /// A number that goes with it; see [`What`]. Else the offset in the table.
    pub value: u64,
    /// How often this was wrong in this table; `value` is that of the first.
    pub count: usize,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = match self.table {
            Table::Madt => "MADT",
            Table::Srat => "SRAT",
            Table::Slit => "SLIT",
        };
        let v = self.value;
        write!(f, "ACPI {table}: ")?;
        match self.what {
            What::Signature => write!(f, "wrong signature, table ignored"),
            What::Length => write!(f, "length {v} does not fit, table ignored"),
            What::Checksum => write!(f, "checksum is {v:#x}, table ignored"),
            What::EntryLength => write!(f, "bad entry length at offset {v}, rest ignored"),
            What::EntryShort => write!(f, "short entry at offset {v} skipped"),
            What::DuplicateCpu => write!(f, "APIC id {v} listed twice"),
            What::BroadcastId => write!(f, "APIC id {v:#x} is the broadcast address, skipped"),
            What::TooManyCpus => {
                write!(f, "more than {} CPUs, APIC id {v} dropped", ksync::NR_CPUS)
            }
            What::NoCpus => write!(f, "no usable CPU"),
            What::RangeWraps => write!(f, "memory range at {v:#x} wraps around, skipped"),
            What::TooManyRanges => write!(
                f,
                "more than {} memory ranges, rest dropped",
                crate::NR_RANGES_MAX
            ),
            What::RangesOverlap => write!(f, "two nodes claim address {v:#x}, table ignored"),
            What::TooManyNodes => {
                write!(f, "more than {} nodes, table ignored", ksync::MAX_NUMNODES)
            }
            What::NoMemory => write!(f, "no memory in any domain, table ignored"),
            What::CpuWithoutDomain => write!(f, "APIC id {v} has no domain, using node 0"),
            What::CpuInTwoDomains => write!(f, "APIC id {v} is in two domains"),
            What::Localities => write!(f, "{v} localities do not fit the table, ignored"),
            What::Distance => write!(f, "impossible distance {v}, table ignored"),
            What::Asymmetric => write!(f, "distances from and to domain {v} differ"),
            What::NoRow => write!(f, "no distances for domain {v}"),
        }?;
        if self.count > 1 {
            write!(f, " (and {} more)", self.count - 1)
        } else {
            Ok(())
        }
    }
}

/// Kinds of warnings kept.
const NR_KEPT: usize = 16;

/// What was wrong, in order: one warning of each kind per table.
#[derive(Copy, Clone, Debug)]
pub struct Warnings {
    kept: [Option<Warning>; NR_KEPT],
}

impl Warnings {
    /// Nothing wrong.
    pub const NONE: Warnings = Warnings {
        kept: [None; NR_KEPT],
    };

    /// The warnings.
    pub fn iter(&self) -> impl Iterator<Item = Warning> {
        self.kept.into_iter().flatten()
    }

    /// Whether all was well.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// The warning of a kind about a table.
    pub fn find(&self, table: Table, what: What) -> Option<Warning> {
        self.iter().find(|w| w.table == table && w.what == what)
    }

    pub(crate) fn add(&mut self, table: Table, what: What, value: u64) {
        let fits = |w: &Warning| w.table == table && w.what == what;
        if let Some(slot) = self.kept.iter_mut().find(|k| k.as_ref().is_none_or(fits)) {
            slot.get_or_insert(Warning {
                table,
                what,
                value,
                count: 0,
            })
            .count += 1;
        }
    }
}
