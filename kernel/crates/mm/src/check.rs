//! Checks of an address space against its invariants, for tests and for a debug system call.

use crate::mm::Mm;
use crate::pgtable::{
    ACCESSED, DIRTY, L1_SHIFT, L2_SHIFT, L3_SHIFT, L4_SHIFT, NR_ENTRIES, Pte, Table, for_slots,
};
use crate::rss::{NR_RSS, RssKind};
use crate::tree::MmTree;
use crate::vma::VmFlags;
use crate::zap::rss_kind;
use core::convert::Infallible;

/// What a walk over the page tables found.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct MmReport {
    /// Entries by kind: file, anon, shmem.
    pub rss: [isize; NR_RSS],
    /// Entries of the zero page.
    pub zero_pages: usize,
    /// Tables below the root.
    pub tables: usize,
}

impl Mm {
    /// Counts what the page tables hold and compares with the counters; panics on a difference.
    /// Takes `mmap_lock` for write.
    pub fn check_rss(&self) -> MmReport {
        let tree = self.mmap_lock().write();
        self.compare(&tree)
    }

    /// All invariants of areas, entries, tables and counters; panics on a violation. Takes
    /// `mmap_lock` for write.
    pub fn check_invariants(&self) -> MmReport {
        let tree = self.mmap_lock().write();
        tree.check_invariants();
        self.compare(&tree)
    }

    fn compare(&self, tree: &MmTree) -> MmReport {
        let mut report = MmReport::default();
        let root = self.pgd();
        let end = 1 << 47;
        each(for_slots::<L4_SHIFT, Infallible>(
            root,
            0,
            end,
            |s4, a, b| {
                let Some(t3) = count(s4.table(), tree, a, L4_SHIFT, &mut report) else {
                    return Ok(());
                };
                for_slots::<L3_SHIFT, Infallible>(t3, a, b, |s3, a, b| {
                    let Some(t2) = count(s3.table(), tree, a, L3_SHIFT, &mut report) else {
                        return Ok(());
                    };
                    for_slots::<L2_SHIFT, Infallible>(t2, a, b, |s2, a, _| {
                        if let Some(t1) = count(s2.table(), tree, a, L2_SHIFT, &mut report) {
                            for i in 0..NR_ENTRIES {
                                check_entry(
                                    tree,
                                    t1.slot(i).load(),
                                    a + (i << L1_SHIFT),
                                    &mut report,
                                );
                            }
                        }
                        Ok(())
                    })
                })
            },
        ));
        for kind in [RssKind::File, RssKind::Anon, RssKind::Shmem] {
            assert_eq!(
                report.rss[kind as usize],
                self.rss().get(kind),
                "rss of {kind:?}"
            );
        }
        assert_eq!(report.tables, self.nr_tables(), "page-table pages");
        report
    }
}

fn each(r: Result<(), Infallible>) {
    match r {
        Ok(()) => {}
        Err(e) => match e {},
    }
}

/// Counts a table and checks INV-ZAP-2: some area lies in part in what it covers.
fn count(
    table: Option<Table>,
    tree: &MmTree,
    va: usize,
    shift: u32,
    report: &mut MmReport,
) -> Option<Table> {
    let table = table?;
    report.tables += 1;
    let base = va >> shift << shift;
    assert!(
        tree.overlaps(base, base + (1 << shift)),
        "INV-ZAP-2: table without area at {va:#x}"
    );
    Some(table)
}

fn check_entry(tree: &MmTree, pte: Pte, va: usize, report: &mut MmReport) {
    if pte.is_none() {
        return;
    }
    let v = tree
        .find_exact(va)
        .unwrap_or_else(|| panic!("entry outside areas at {va:#x}"));
    let flags = v.flags();
    assert_eq!(
        pte.is_present(),
        flags.intersects(VmFlags::ACCESS),
        "PROT_NONE at {va:#x}"
    );
    assert!(
        pte.0 & ACCESSED != 0 && (!pte.is_writable() || pte.0 & DIRTY != 0),
        "INV-PT-2"
    );
    assert!(
        !pte.is_writable() || flags.contains(VmFlags::WRITE),
        "writable at {va:#x}"
    );
    assert!(
        !pte.is_writable() || pte.is_anon() || v.is_shared(),
        "private file at {va:#x}"
    );
    if pte.is_special() {
        assert!(
            v.file.is_none() && !pte.is_writable() && !pte.is_anon(),
            "zero page at {va:#x}"
        );
        report.zero_pages += 1;
        return;
    }
    assert!(pte.page().ref_count() >= 1, "INV-PT-4 at {va:#x}");
    if pte.is_anon() {
        assert!(v.has_anon() && !v.is_shared(), "anon page at {va:#x}");
        assert!(
            !pte.is_writable() || pte.page().ref_count() == 1,
            "writable and shared: {va:#x}"
        );
    } else {
        let file = v
            .file
            .as_ref()
            .unwrap_or_else(|| panic!("file page at {va:#x}"));
        assert!(
            file.still_cached(pte.page()),
            "stale page of a file at {va:#x}"
        );
        assert_eq!(
            pte.page().index() as u64,
            v.pgoff_of(va),
            "wrong page at {va:#x}"
        );
    }
    report.rss[rss_kind(pte) as usize] += 1;
}
