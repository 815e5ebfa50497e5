//! Real table bytes (read out of guest memory under QEMU 10.0, `tests/tables/README.md`), the same
//! bytes mutated, and tables built here for what QEMU cannot be asked for.

use std::ops::Range;

use proptest::prelude::*;
use topology::{Table, Topology, Warnings, What};

macro_rules! table {
    ($name:literal) => {
        include_bytes!(concat!("tables/", $name))
    };
}

/// Name, MADT, SRAT, SLIT of every machine on file.
type Machine = (
    &'static str,
    &'static [u8],
    Option<&'static [u8]>,
    Option<&'static [u8]>,
);
const MACHINES: &[Machine] = &[
    (
        "four_nodes",
        table!("four_nodes.madt"),
        Some(table!("four_nodes.srat")),
        Some(table!("four_nodes.slit")),
    ),
    (
        "sparse_ids",
        table!("sparse_ids.madt"),
        Some(table!("sparse_ids.srat")),
        None,
    ),
    (
        "odd_nodes",
        table!("odd_nodes.madt"),
        Some(table!("odd_nodes.srat")),
        Some(table!("odd_nodes.slit")),
    ),
    (
        "hotplug",
        table!("hotplug.madt"),
        Some(table!("hotplug.srat")),
        None,
    ),
    (
        "x2apic",
        table!("x2apic.madt"),
        Some(table!("x2apic.srat")),
        None,
    ),
    ("one_node", table!("one_node.madt"), None, None),
];

fn parse(madt: &[u8], srat: Option<&[u8]>, slit: Option<&[u8]>) -> (Box<Topology>, Warnings) {
    let mut t = Box::new(Topology::EMPTY);
    let w = t.parse_into(madt, srat, slit);
    t.check_invariants();
    (t, w)
}

fn real(name: &str) -> Box<Topology> {
    let &(_, madt, srat, slit) = MACHINES.iter().find(|m| m.0 == name).unwrap();
    let (t, w) = parse(madt, srat, slit);
    assert!(w.is_empty(), "{name}: {:?}", w.iter().collect::<Vec<_>>());
    t
}

fn cpus(t: &Topology) -> Vec<(u32, usize)> {
    t.cpus().iter().map(|c| (c.apic_id, c.node)).collect()
}

fn ranges(t: &Topology) -> Vec<(Range<u64>, usize)> {
    t.ranges()
        .iter()
        .map(|r| (r.start..r.end, r.node))
        .collect()
}

const M: u64 = 1 << 20;

#[test]
fn eight_cpus_four_nodes() {
    let t = real("four_nodes");
    assert_eq!(
        cpus(&t),
        (0..8).map(|i| (i, i as usize / 2)).collect::<Vec<_>>()
    );
    // Node 0 has the hole between 640 KiB and 1 MiB.
    let expect = [
        (0..640 << 10, 0),
        (M..64 * M, 0),
        (64 * M..128 * M, 1),
        (128 * M..192 * M, 2),
        (192 * M..256 * M, 3),
    ];
    assert_eq!(ranges(&t), expect);
    assert_eq!(
        (t.distance(0, 0), t.distance(0, 1), t.distance(3, 0)),
        (10, 21, 31)
    );
    assert_eq!(
        *t.nearest(1),
        [1, 2, 0, 3],
        "0 and 2 are equally near: on from 1 in a circle"
    );
    assert_eq!(
        (t.node_of_phys(64 * M), t.node_of_phys(64 * M - 1)),
        (Some(1), Some(0))
    );
    assert_eq!(
        (t.node_of_phys(700 << 10), t.node_of_phys(256 * M)),
        (None, None)
    );
}

#[test]
fn sparse_apic_ids() {
    let t = real("sparse_ids");
    assert_eq!(cpus(&t), [(0, 0), (1, 0), (2, 0), (4, 1), (5, 1), (6, 1)]);
    assert_eq!((t.distance(0, 1), t.distance(1, 1)), (20, 10), "no SLIT");
}

#[test]
fn a_node_without_memory_and_one_without_cpus() {
    let t = real("odd_nodes");
    assert_eq!(cpus(&t), [(0, 0), (1, 0), (2, 1), (3, 1)]);
    assert_eq!(
        (0..3).map(|n| t.has_cpus(n)).collect::<Vec<_>>(),
        [true, true, false]
    );
    assert_eq!(
        (0..3).map(|n| t.node_ranges(n).count()).collect::<Vec<_>>(),
        [2, 0, 1]
    );
    assert_eq!(*t.nearest(1), [1, 0, 2]);
    assert_eq!(*t.nearest(2), [2, 1, 0]);
}

#[test]
fn empty_sockets_and_hot_pluggable_memory() {
    let t = real("hotplug");
    assert_eq!(cpus(&t), [(0, 0), (1, 1)], "two sockets are empty");
    assert_eq!(
        ranges(&t).last(),
        Some(&(4096 * M..4096 * M + 0xb000_0000, 1)),
        "a claim on address space"
    );
}

#[test]
fn apic_ids_above_255() {
    let t = real("x2apic");
    assert_eq!(t.cpus().len(), 288);
    let ids: Vec<u32> = (0..144).chain(256..400).collect();
    assert_eq!(
        cpus(&t),
        ids.iter()
            .map(|&id| (id, (id >> 8) as usize))
            .collect::<Vec<_>>()
    );
}

#[test]
fn no_srat_is_one_node() {
    let t = real("one_node");
    assert_eq!((t.nr_nodes(), cpus(&t)), (1, vec![(0, 0), (1, 0)]));
    assert_eq!(t.node_of_phys(123 << 40), Some(0));
    assert_eq!(*t.nearest(0), [0]);
}

#[test]
fn the_boot_cpu_becomes_number_0() {
    let mut t = real("sparse_ids");
    assert!(t.set_boot_cpu(4));
    assert_eq!(cpus(&t), [(4, 1), (0, 0), (1, 0), (2, 0), (5, 1), (6, 1)]);
    assert!(!t.set_boot_cpu(77), "not in the tables, yet it runs");
    assert_eq!(cpus(&t)[..2], [(77, 0), (4, 1)]);
    t.check_invariants();
    let mut none = Topology::EMPTY;
    assert!(!none.set_boot_cpu(3));
    assert_eq!(cpus(&none), [(3, 0)]);
    none.check_invariants();
}

// Tables built by hand, with the layout that the real ones above prove.

fn built(signature: &[u8; 4], revision: u8, fixed: &[u8], entries: &[Vec<u8>]) -> Vec<u8> {
    let mut t = signature.to_vec();
    t.extend([0; 4]);
    t.extend([revision, 0]);
    t.extend(*b"BOCHS BXPC    \x01\0\0\0BXPC\x01\0\0\0");
    assert_eq!(t.len(), 36);
    t.extend(fixed);
    t.extend(entries.iter().flatten());
    let len = t.len() as u32;
    t[4..8].copy_from_slice(&len.to_le_bytes());
    reseal(&mut t);
    t
}

/// Makes the checksum right again.
fn reseal(t: &mut [u8]) {
    if t.len() > 9 {
        t[9] = 0;
        t[9] = t.iter().fold(0u8, |s, b| s.wrapping_sub(*b));
    }
}

fn le(fields: &[(u64, usize)]) -> Vec<u8> {
    fields
        .iter()
        .flat_map(|&(v, n)| v.to_le_bytes()[..n].to_vec())
        .collect()
}

fn madt(entries: &[Vec<u8>]) -> Vec<u8> {
    built(b"APIC", 3, &le(&[(0xfee0_0000, 4), (1, 4)]), entries)
}

fn lapic(id: u8, flags: u32) -> Vec<u8> {
    le(&[
        (0, 1),
        (8, 1),
        (id.into(), 1),
        (id.into(), 1),
        (flags.into(), 4),
    ])
}

fn x2apic(id: u32, flags: u32) -> Vec<u8> {
    le(&[
        (9, 1),
        (16, 1),
        (0, 2),
        (id.into(), 4),
        (flags.into(), 4),
        (id.into(), 4),
    ])
}

fn srat(revision: u8, entries: &[Vec<u8>]) -> Vec<u8> {
    built(b"SRAT", revision, &le(&[(1, 4), (0, 8)]), entries)
}

fn srat_lapic(id: u8, domain: u32) -> Vec<u8> {
    let d: u64 = domain.into();
    le(&[
        (0, 1),
        (16, 1),
        (d & 0xff, 1),
        (id.into(), 1),
        (1, 4),
        (0, 1),
        (d >> 8, 3),
        (0, 4),
    ])
}

fn srat_memory(domain: u32, start: u64, length: u64, flags: u64) -> Vec<u8> {
    le(&[
        (1, 1),
        (40, 1),
        (domain.into(), 4),
        (0, 2),
        (start, 8),
        (length, 8),
        (0, 4),
        (flags, 4),
        (0, 8),
    ])
}

fn slit(n: u64, cells: &[u8]) -> Vec<u8> {
    built(b"SLIT", 1, &le(&[(n, 8)]), &[cells.to_vec()])
}

#[test]
fn hand_built_tables_are_what_qemu_builds() {
    let mut mine = slit(3, &[10, 15, 30, 15, 10, 25, 30, 25, 10]);
    assert_eq!(mine, table!("odd_nodes.slit"));
    mine[9] ^= 1;
    assert_ne!(mine, table!("odd_nodes.slit"));
    let cpus: Vec<_> = (0..4).map(|i| srat_lapic(i, u32::from(i) / 2)).collect();
    let memory = [
        srat_memory(0, 0, 640 << 10, 1),
        srat_memory(0, M, 127 * M, 1),
        srat_memory(2, 128 * M, 128 * M, 1),
        srat_memory(0, 0, 0, 0),
        srat_memory(0, 0, 0, 0),
    ];
    assert_eq!(
        srat(1, &[&cpus[..], &memory[..]].concat()),
        table!("odd_nodes.srat")
    );
    assert!(
        table!("hotplug.madt")[44..]
            .starts_with(&[lapic(0, 1), lapic(1, 1), lapic(2, 0), lapic(3, 0)].concat())
    );
}

#[test]
fn enabled_first_and_what_is_not_a_cpu() {
    let m = madt(&[
        lapic(0, 2),
        lapic(1, 1),
        lapic(2, 0),
        lapic(255, 1),
        x2apic(1, 1),
        x2apic(u32::MAX, 1),
        le(&[(1, 1), (12, 1), (0, 2), (0xfec0_0000, 4), (0, 4)]),
        x2apic(300, 1),
    ]);
    let (t, w) = parse(&m, None, None);
    let seen: Vec<_> = t.cpus().iter().map(|c| (c.apic_id, c.enabled)).collect();
    assert_eq!(seen, [(1, true), (300, true), (0, false)]);
    assert_eq!(t.enabled_cpus().len(), 2);
    assert_eq!(w.find(Table::Madt, What::BroadcastId).unwrap().count, 2);
    assert_eq!(w.find(Table::Madt, What::DuplicateCpu).unwrap().value, 1);
    assert_eq!(w.iter().count(), 2);
}

#[test]
fn too_many_cpus_are_dropped() {
    let m = madt(&(0..520).map(|i| x2apic(i, 1)).collect::<Vec<_>>());
    let (t, w) = parse(&m, None, None);
    assert_eq!(t.cpus().len(), ksync::NR_CPUS);
    let dropped = w.find(Table::Madt, What::TooManyCpus).unwrap();
    assert_eq!((dropped.value, dropped.count), (512, 8));
    assert!(
        dropped.to_string().ends_with("dropped (and 7 more)"),
        "{dropped}"
    );
}

#[test]
fn domains_have_8_bits_before_revision_2() {
    let m = madt(&[lapic(0, 1), lapic(1, 1)]);
    let entries = [
        srat_lapic(0, 0xabcd_ef05),
        srat_lapic(1, 0x07),
        srat_memory(0x1234_0005, 0, M, 1),
    ];
    let (t, w) = parse(&m, Some(&srat(1, &entries)), None);
    assert_eq!((t.domains(), w.is_empty()), (&[5, 7][..], true));
    let (t, _) = parse(&m, Some(&srat(3, &entries)), None);
    assert_eq!(t.domains(), [7, 0x1234_0005, 0xabcd_ef05]);
    assert_eq!((t.node_of_domain(7), t.node_of_domain(5)), (Some(0), None));
}

#[test]
fn quarrels_in_srat() {
    let m = madt(&[lapic(0, 1), lapic(1, 1)]);
    let ok = srat_memory(0, 0, M, 1);
    // Overlap between domains: nobody can be believed.
    let (t, w) = parse(
        &m,
        Some(&srat(1, &[ok.clone(), srat_memory(1, M - 1, M, 1)])),
        None,
    );
    assert_eq!((t.nr_nodes(), t.node_of_phys(u64::MAX - 1)), (1, Some(0)));
    assert_eq!(
        w.find(Table::Srat, What::RangesOverlap).unwrap().value,
        M - 1
    );
    // Overlap within one: joined.
    let (t, w) = parse(
        &m,
        Some(&srat(
            1,
            &[
                srat_memory(0, M / 2, M, 1),
                ok.clone(),
                srat_memory(0, 3 * M / 2, M, 1),
            ],
        )),
        None,
    );
    assert_eq!(ranges(&t), [(0..5 * M / 2, 0)]);
    assert_eq!(
        w.find(Table::Srat, What::CpuWithoutDomain).unwrap().count,
        2
    );
    let (t, w) = parse(
        &m,
        Some(&srat(
            1,
            &[
                ok.clone(),
                srat_lapic(0, 1),
                srat_lapic(0, 2),
                srat_lapic(9, 5),
            ],
        )),
        None,
    );
    assert_eq!(
        (t.domains(), t.cpus()[0].node),
        (&[0, 1][..], 1),
        "domain 5 has only a CPU that is not there"
    );
    assert!(w.find(Table::Srat, What::CpuInTwoDomains).is_some());
    let (t, w) = parse(
        &m,
        Some(&srat(1, &[ok.clone(), srat_memory(1, u64::MAX, 2, 1)])),
        None,
    );
    assert_eq!(
        (
            ranges(&t),
            w.find(Table::Srat, What::RangeWraps).unwrap().value
        ),
        (vec![(0..M, 0)], u64::MAX)
    );
    let (t, w) = parse(&m, Some(&srat(1, &[srat_lapic(0, 3)])), None);
    assert_eq!(
        (t.domains(), w.find(Table::Srat, What::NoMemory).is_some()),
        (&[0][..], true)
    );
    let many: Vec<_> = (0..65)
        .map(|d| srat_memory(d, u64::from(d) * M, M, 1))
        .collect();
    let (t, w) = parse(&m, Some(&srat(1, &many)), None);
    assert_eq!(
        (
            t.nr_nodes(),
            w.find(Table::Srat, What::TooManyNodes).is_some()
        ),
        (1, true)
    );
    let (t, _) = parse(&m, Some(&srat(1, &many[..64])), None);
    assert_eq!(t.nr_nodes(), 64);
    let many: Vec<_> = (0..300).map(|i| srat_memory(0, 2 * i * M, M, 1)).collect();
    let (t, w) = parse(&m, Some(&srat(1, &many)), None);
    assert_eq!(
        (
            t.ranges().len(),
            w.find(Table::Srat, What::TooManyRanges).unwrap().count
        ),
        (256, 44)
    );
}

#[test]
fn distances_are_checked() {
    let &(_, m, s, _) = &MACHINES[1];
    let with = |cells: &[u8], n| parse(m, s, Some(&slit(n, cells)));
    let (t, w) = with(&[10, 30, 40, 10], 2);
    assert_eq!(
        (t.distance(0, 1), t.distance(1, 0)),
        (30, 40),
        "kept as they are"
    );
    assert!(w.find(Table::Slit, What::Asymmetric).is_some());
    for (cells, n, what) in [
        (&[10, 20, 20, 11][..], 2, What::Distance),
        (&[10, 10, 10, 10], 2, What::Distance),
        (&[10, 9, 9, 10], 2, What::Distance),
        (&[10, 30, 30], 2, What::Localities),
        (&[], 0, What::Localities),
        (&[10], u64::MAX, What::Localities),
        (&[10], 1 << 32, What::Localities),
        (&[10], 1, What::NoRow),
    ] {
        let (t, w) = with(cells, n);
        assert!(w.find(Table::Slit, what).is_some(), "{cells:?}");
        assert_eq!(
            (t.distance(0, 1), t.distance(1, 1)),
            (20, 10),
            "{cells:?}: the default"
        );
    }
    assert_eq!(with(&[10, 255, 255, 10], 2).0.distance(0, 1), 255);
}

#[test]
fn broken_headers() {
    let &(_, m, Some(s), _) = &MACHINES[0] else {
        unreachable!()
    };
    let (t, w) = parse(s, Some(m), Some(&[]));
    assert_eq!((t.cpus().len(), t.nr_nodes()), (0, 1));
    for table in [Table::Madt, Table::Srat, Table::Slit] {
        assert!(w.find(table, What::Signature).is_some());
    }
    let mut bad = s.to_vec();
    bad[60] ^= 1;
    let (t, w) = parse(m, Some(&bad), None);
    assert_eq!(
        (t.nr_nodes(), w.find(Table::Srat, What::Checksum).is_some()),
        (1, true)
    );
    let (t, w) = parse(m, Some(&s[..s.len() - 1]), None);
    assert_eq!(
        (t.nr_nodes(), w.find(Table::Srat, What::Length).is_some()),
        (1, true)
    );
    let longer = [s, &[0xff; 9]].concat();
    assert_eq!(
        parse(m, Some(&longer), None).0.nr_nodes(),
        4,
        "bytes behind a table are not its own"
    );
}

#[test]
fn a_zero_length_entry_ends_the_table() {
    let (t, w) = parse(&madt(&[lapic(0, 1), vec![0, 0], lapic(1, 1)]), None, None);
    assert_eq!(cpus(&t), [(0, 0)]);
    assert_eq!(w.find(Table::Madt, What::EntryLength).unwrap().value, 52);
    let (t, w) = parse(&madt(&[vec![0, 7, 0, 5, 1, 0, 0], lapic(1, 1)]), None, None);
    assert_eq!(
        (cpus(&t), w.find(Table::Madt, What::EntryShort).is_some()),
        (vec![(1, 0)], true)
    );
}

/// A real table with some bytes changed, cut or repeated; the checksum made right in most cases,
/// or every mutation would die at the door.
fn mutated(real: Option<&'static [u8]>) -> impl Strategy<Value = Option<Vec<u8>>> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    (edits, 0..4u8, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        move |(edits, cut, at, seal)| {
            let mut t = real?.to_vec();
            for (i, v) in edits {
                let i = i.index(t.len());
                t[i] = v;
            }
            match cut {
                0 => t.truncate(at.index(t.len())),
                1 => {
                    let i = at.index(t.len());
                    t.drain(i..(i + 5).min(real?.len()));
                }
                _ => {}
            }
            if seal && t.len() >= 8 {
                let len = t.len() as u32;
                t[..4].copy_from_slice(&real?[..4]);
                t[4..8].copy_from_slice(&len.to_le_bytes());
                reseal(&mut t);
            }
            Some(t)
        },
    )
}

type Mutated = (Option<Vec<u8>>, Option<Vec<u8>>, Option<Vec<u8>>);

fn mutated_machine() -> impl Strategy<Value = Mutated> {
    (0..MACHINES.len()).prop_flat_map(|i| {
        let (_, m, s, l) = MACHINES[i];
        (mutated(Some(m)), mutated(s), mutated(l))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// `parse` checks all invariants; here it must also not panic on use, whatever the bytes.
    #[test]
    fn hostile_tables_never_panic((m, s, l) in mutated_machine(), pa: u64, boot: u32) {
        let (mut t, w) = parse(&m.unwrap_or_default(), s.as_deref(), l.as_deref());
        for w in w.iter() {
            prop_assert!(!w.to_string().is_empty());
        }
        t.set_boot_cpu(boot % 512);
        t.check_invariants();
        t.node_of_phys(pa);
        for n in 0..t.nr_nodes() {
            let near = t.nearest(n);
            prop_assert_eq!(near[0], n);
            prop_assert!(near.is_sorted_by_key(|&m| t.distance(n, m)));
            let mut all = near.to_vec();
            all.sort();
            prop_assert!(all.into_iter().eq(0..t.nr_nodes()));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(m: Vec<u8>, s: Vec<u8>, l: Vec<u8>) {
        let (t, w) = parse(&m, Some(&s), Some(&l));
        prop_assert_eq!(t.nr_nodes(), 1);
        prop_assert_eq!(w.iter().count(), 4, "three bad tables, no CPU");
    }

    /// Ranges of one domain against a set of pages.
    #[test]
    fn merged_ranges_cover_what_was_given(pieces in prop::collection::vec((0..60u64, 0..20u64), 1..20)) {
        let entries: Vec<_> = pieces.iter().map(|&(s, n)| srat_memory(4, s << 12, n << 12, 1)).collect();
        let (t, w) = parse(&madt(&[lapic(0, 1)]), Some(&srat(1, &entries)), None);
        prop_assume!(w.find(Table::Srat, What::NoMemory).is_none());
        for page in 0..100 {
            let given = pieces.iter().any(|&(s, n)| (s..s + n).contains(&page));
            prop_assert_eq!(t.node_of_phys(page << 12).is_some(), given, "page {}", page);
        }
        prop_assert!(t.ranges().is_sorted_by(|a, b| a.end < b.start), "joined where they touch");
    }
}
