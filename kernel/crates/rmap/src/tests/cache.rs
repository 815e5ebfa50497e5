//! The cache against the file's bytes.

use super::alone;
use crate::*;
use ksync::{PAGE_SIZE, rcu};
use page_alloc::PageRef;
use proptest::prelude::*;
use std::boxed::Box;
use std::sync::OnceLock;
use std::vec::Vec;

fn bytes(page: PageRef) -> Vec<u8> {
    let mut v = std::vec![0; PAGE_SIZE];
    // SAFETY: a page we hold a reference to; nobody writes it now.
    unsafe {
        v.as_mut_ptr()
            .copy_from_nonoverlapping(page.virt(), PAGE_SIZE)
    };
    v
}

fn write(page: PageRef, at: usize, byte: u8) {
    // SAFETY: as above; `at` is below PAGE_SIZE.
    unsafe { page.virt().add(at).write(byte) };
}

/// Pages free once every callback has run.
fn free_pages_now() -> usize {
    rcu::barrier();
    (0..3).map(|node| page_alloc::nr_free(node).free).sum()
}

fn archive(len: usize) -> &'static [u8] {
    Box::leak(
        (0..len)
            .map(|i| (i % 251 + 1) as u8)
            .collect::<Vec<u8>>()
            .into_boxed_slice(),
    )
}

/// The cache behaves as a plain vector of bytes, whatever is written, cut and grown.
fn check_file(filler: &'static [u8], ops: &[(u8, u64, usize, u8)]) {
    let file = AddressSpace::new(Filler::Static(filler), filler.len() as u64, b"/f").unwrap();
    let mut model: Vec<u8> = filler.to_vec();
    for &(what, pgoff, at, byte) in ops {
        match what {
            0 => {
                let size = pgoff * PAGE_SIZE as u64 + at as u64;
                if size < file.size() {
                    file.truncate(size);
                } else {
                    file.extend(size);
                }
                model.resize(size as usize, 0);
            }
            1 if pgoff < model.len().div_ceil(PAGE_SIZE) as u64 => {
                let page = file.find_or_create_page(pgoff).unwrap();
                let pos = pgoff as usize * PAGE_SIZE + at;
                if pos < model.len() {
                    write(page, at, byte);
                    model[pos] = byte;
                }
                page.put();
            }
            2 => {
                // A hole of up to two pages and a bit, anywhere.
                let start = pgoff as usize * PAGE_SIZE + at;
                let end = start + at * 2 + byte as usize;
                file.punch(start as u64, end as u64).unwrap();
                let len = model.len();
                model[start.min(len)..end.min(len)].fill(0);
            }
            3 => {
                let cached = file.find_page(pgoff).map(PageRef::put).is_some();
                match file.migrate_page(pgoff, at % 3, || ()) {
                    Ok(()) => {
                        let page = file.find_page(pgoff).unwrap();
                        assert_eq!(page.node(), at % 3);
                        page.put();
                    }
                    Err(e) => assert!(!cached && e == MoveError::NotCached),
                }
            }
            _ => match file.find_or_create_page(pgoff) {
                Ok(page) => {
                    let mut want = model[pgoff as usize * PAGE_SIZE..].to_vec();
                    want.resize(PAGE_SIZE, 0);
                    assert!(bytes(page) == want, "INV-PCACHE-3: page {pgoff}");
                    page.put();
                }
                Err(e) => {
                    assert_eq!(e, FillError::PastEof);
                    assert!(pgoff as usize * PAGE_SIZE >= model.len());
                }
            },
        }
        assert_eq!(file.size(), model.len() as u64);
        file.check_invariants();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn cache_is_the_file(
        len in 0usize..5 * PAGE_SIZE,
        ops in prop::collection::vec((0u8..5, 0u64..6, 0usize..PAGE_SIZE, 1u8..255), 0..40)
    ) {
        let _alone = alone();
        static ARCHIVE: OnceLock<&'static [u8]> = OnceLock::new();
        check_file(&ARCHIVE.get_or_init(|| archive(5 * PAGE_SIZE))[..len], &ops);
    }
}

/// Somebody who does not let go keeps the page where it is, with what it holds.
#[test]
fn a_held_page_stays() {
    let _alone = alone();
    let file = AddressSpace::new(Filler::Zero, PAGE_SIZE as u64, b"").unwrap();
    let held = file.find_or_create_page(0).unwrap();
    write(held, 5, 77);
    let to = (held.node() + 1) % 3;
    assert_eq!(file.migrate_page(0, to, || ()), Err(MoveError::Busy));
    assert!(file.still_cached(held));
    held.put();
    assert_eq!(file.migrate_page(0, to, || ()), Ok(()));
    let moved = file.find_page(0).unwrap();
    assert_eq!((moved.node(), bytes(moved)[5]), (to, 77));
    // Cut in the middle of a move: the new page is nobody's.
    moved.put();
    let cut = || {
        file.truncate(0);
    };
    assert_eq!(file.migrate_page(0, (to + 1) % 3, cut), Ok(()));
    assert_eq!(file.nr_pages(), 0);
    file.check_invariants();
}

#[test]
fn memory_comes_back() {
    let _alone = alone();
    // The first rounds warm the caches of the allocators.
    let free: Vec<usize> = (0..4).map(|_| fill_cut_and_drop()).collect();
    assert_eq!(free[2], free[3]);
}

/// Returns the pages that are free afterwards.
fn fill_cut_and_drop() -> usize {
    let file = AddressSpace::new(Filler::Zero, 1 << 30, b"").unwrap();
    let held = file.find_or_create_page(3).unwrap();
    assert_eq!(held.ref_count(), 2);
    for pgoff in 0..200 {
        file.find_or_create_page(pgoff * 7).unwrap().put();
    }
    assert_eq!(file.nr_pages(), 201);
    let mut seen = Vec::new();
    file.for_each_cached(0, 21, |pgoff, page| {
        seen.push(pgoff);
        page.put();
    });
    assert_eq!(seen, [0, 3, 7, 14, 21]);
    let full = free_pages_now();
    assert_eq!(file.truncate(5 * PAGE_SIZE as u64 + 1), 199);
    assert_eq!(file.nr_pages(), 2);
    assert!(free_pages_now() >= full + 199);
    assert!(file.still_cached(held));
    assert_eq!(file.truncate(0), 2);
    assert!(!file.still_cached(held));
    rcu::barrier();
    assert_eq!(held.ref_count(), 1, "INV-PCACHE-1");
    held.put();
    assert_eq!(file.find_or_create_page(0), Err(FillError::PastEof));
    file.find_or_create_page_for_write(9).unwrap().put();
    drop(file);
    free_pages_now()
}

#[test]
fn names_are_cut_to_fit() {
    let _alone = alone();
    let long = [b'x'; 100];
    assert_eq!(
        AddressSpace::new(Filler::Zero, 0, &long)
            .unwrap()
            .name()
            .len(),
        space::NAME_LEN
    );
    assert_eq!(
        AddressSpace::new(Filler::Zero, 0, b"/bin/sh")
            .unwrap()
            .name(),
        b"/bin/sh"
    );
}

/// Every allocation of a fill fails in turn: Oom, and nothing has changed.
#[test]
fn a_failed_fill_changes_nothing() {
    let _alone = alone();
    let file = AddressSpace::new(Filler::Zero, u64::MAX, b"").unwrap();
    let far = (1u64 << 40) - 1;
    let mut failures = 0;
    for nth in 1.. {
        assert!(page_alloc::fault_inject::set_fail_nth(nth));
        let got = file.find_or_create_page(far);
        let left = page_alloc::fault_inject::fail_nth();
        page_alloc::fault_inject::set_fail_nth(0);
        match got {
            Ok(page) => {
                page.put();
                assert_ne!(left, 0, "a failure that nobody noticed");
                break;
            }
            Err(e) => {
                assert_eq!(e, FillError::Oom);
                failures += 1;
                assert_eq!(file.nr_pages(), 0);
                file.check_invariants();
            }
        }
    }
    assert!(failures >= 1);
}

/// Threads fill the same pages while another cuts the file: each page is made once at a time, and
/// all memory comes back.
#[test]
fn fill_against_truncate() {
    let _alone = alone();
    let before = free_pages_now();
    let data = archive(64 * PAGE_SIZE);
    let file = AddressSpace::new(Filler::Static(data), data.len() as u64, b"").unwrap();
    std::thread::scope(|s| {
        for cpu in 0..3 {
            let file = &file;
            s.spawn(move || {
                ksync::arch::host::set_cpu(cpu);
                for i in 0..3000u64 {
                    let pgoff = (i * (5 + cpu as u64)) % 64;
                    if let Ok(page) = file.find_or_create_page(pgoff) {
                        let first = bytes(page)[0];
                        let at = pgoff as usize * PAGE_SIZE;
                        assert!(
                            first == data[at] || first == 0,
                            "page {pgoff} shows {first}"
                        );
                        page.put();
                    }
                }
            });
        }
        for size in (0..64u64).rev() {
            file.truncate(size * PAGE_SIZE as u64 + 17);
            rcu::process_callbacks();
            std::thread::yield_now();
            assert!(file.find_page(size + 1).is_none(), "INV-PCACHE-4");
        }
    });
    file.check_invariants();
    drop(file);
    let warm = free_pages_now();
    assert!(
        before - warm < 16,
        "{before} pages free before, {warm} after"
    );
}

/// Threads ask for the same missing page at the same time: all get the same one, and the losers'
/// pages go back.
#[test]
fn one_page_per_offset() {
    const PAGES: u64 = 1000;
    let _alone = alone();
    let before = free_pages_now();
    let data = archive(PAGE_SIZE);
    let file = AddressSpace::new(Filler::Static(data), PAGES * PAGE_SIZE as u64, b"").unwrap();
    let start = std::sync::Barrier::new(3);
    std::thread::scope(|s| {
        for cpu in 0..3 {
            let (file, start) = (&file, &start);
            s.spawn(move || {
                ksync::arch::host::set_cpu(cpu);
                for pgoff in 0..PAGES {
                    start.wait();
                    let page = file.find_or_create_page(pgoff).unwrap();
                    let again = file.find_page(pgoff).unwrap();
                    assert!(page == again && page.index() as u64 == pgoff);
                    again.put();
                    page.put();
                }
            });
        }
    });
    assert_eq!(file.nr_pages() as u64, PAGES);
    file.check_invariants();
    drop(file);
    let after = free_pages_now();
    assert!(
        before - after < 16,
        "{before} pages free before, {after} after"
    );
}
