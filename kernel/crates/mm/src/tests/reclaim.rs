//! Clean pages: what makes them dirty, what makes them clean again, and that only clean ones are given back.

use super::interleave::{at, nothing_left_to_do};
use super::setup::with_bug;
use super::*;
use crate::{clean_mapping_range, reclaim_pages, unmap_leaving};
use rmap::SpaceOwner;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::thread;

const ALL: usize = 1000;

fn reclaim(f: &AddressSpace) -> usize {
    f.reclaim(ALL, true, unmap_leaving)
}

/// Two processes that show all of a file of eight pages, and where.
fn two_readers(f: &KArc<AddressSpace>, shared: bool) -> [(MmUser, usize); 2] {
    [(); 2].map(|()| {
        let mm = Mm::new().unwrap();
        let a = mm.mmap(&of_file(f, 0, 8, shared)).unwrap();
        (0..8).for_each(|i| assert_eq!(read(&mm, a + i * PAGE), Ok(file_word(i as u64))));
        (mm, a)
    })
}

#[test]
fn clean_pages_go_and_come_back() {
    let _m = Machine::new();
    for shared in [false, true] {
        let f = file(8);
        let readers = two_readers(&f, shared);
        assert_eq!(f.reclaim(ALL, false, unmap_leaving), 0, "they are mapped");
        assert_eq!(f.reclaim(3, true, unmap_leaving), 3);
        assert_eq!(reclaim(&f), 5);
        assert_eq!(f.nr_pages(), 0);
        for (mm, a) in &readers {
            assert_eq!(mm.check_invariants().rss, [0, 0, 0]);
            (0..8).for_each(|i| assert_eq!(read(mm, a + i * PAGE), Ok(file_word(i as u64))));
        }
        drop(readers);
        assert_eq!(f.reclaim(ALL, false, unmap_leaving), 8, "nobody maps them");
        f.check_invariants();
    }
}

#[test]
fn written_pages_stay() {
    let _m = Machine::new();
    let f = file(8);
    let [(one, a), (two, b)] = two_readers(&f, true);
    assert!(
        !entry(&one, a + 3 * PAGE).is_writable(),
        "no write would be noticed"
    );
    write(&one, a + 3 * PAGE, 33).unwrap();
    two.write_remote(b + 4 * PAGE, &[4; 8]).unwrap();
    // A private copy is not the file's.
    let private = Mm::new().unwrap();
    let c = private.mmap(&of_file(&f, 0, 8, false)).unwrap();
    write(&private, c + 5 * PAGE, 55).unwrap();
    assert_eq!(reclaim(&f), 6);
    assert!(entry(&one, a + 3 * PAGE).is_present(), "why take it away?");
    assert_eq!(read(&two, b + 3 * PAGE), Ok(33));
    assert_eq!(read(&one, a + 4 * PAGE), Ok(0x0404_0404_0404_0404));
    assert_eq!(read(&private, c + 5 * PAGE), Ok(55));
    assert_eq!(read(&one, a + 5 * PAGE), Ok(file_word(5)));
    // What was punched out of the archive's bytes is written, too.
    assert!(f.punch(0, PAGE as u64).unwrap().is_none());
    reclaim(&f);
    assert_eq!(read(&one, a), Ok(0));
    for mm in [&one, &two, &private] {
        mm.check_invariants();
    }
}

#[test]
fn a_page_in_use_stays() {
    let _m = Machine::new();
    let f = file(8);
    let page = f.find_or_create_page(2).unwrap();
    assert_eq!(f.reclaim(ALL, false, unmap_leaving) + reclaim(&f), 0);
    page.put();
    assert_eq!(reclaim(&f), 1);
}

/// msync: the next write is noticed again, and what is as in the archive is clean.
#[test]
fn cleaning() {
    let _m = Machine::new();
    let f = file(8);
    let [(one, a), (two, b)] = two_readers(&f, true);
    write(&one, a + 3 * PAGE, 33).unwrap();
    write(&two, b + 3 * PAGE + 8, 34).unwrap();
    assert_eq!(
        clean_mapping_range(&f, 0, u64::MAX),
        1,
        "the archive cannot take it"
    );
    let both = [(&one, a), (&two, b)];
    for (mm, at) in both {
        assert!(!entry(mm, at + 3 * PAGE).is_writable());
    }
    assert_eq!(reclaim(&f), 7);
    write(&one, a + 3 * PAGE, file_word(3)).unwrap();
    one.sync_range(a, 3 * PAGE);
    assert!(entry(&one, a + 3 * PAGE).is_writable(), "not in the range");
    two.write_remote(b + 3 * PAGE + 8, &[0; 8]).unwrap();
    one.sync_range(a + 3 * PAGE, 1);
    for (mm, at) in both {
        assert!(!entry(mm, at + 3 * PAGE).is_writable());
    }
    assert_eq!(f.next_dirty(0, 7), None);
    write(&two, b + 3 * PAGE, 35).unwrap();
    assert_eq!((f.next_dirty(0, 7), reclaim(&f)), (Some(3), 0));
    // mprotect gives no write permission that the fault would have to notice.
    one.sync_range(a, 8 * PAGE);
    for rights in [Prot::READ, RW] {
        one.mprotect(a, 8 * PAGE, rights).unwrap();
        assert!(!entry(&one, a + 3 * PAGE).is_writable());
    }
    for mm in [&one, &two] {
        mm.check_invariants();
    }
}

#[test]
fn files_with_owners_are_found() {
    let _m = Machine::new();
    let owners = [(); 3].map(|()| SpaceOwner::new(file(8)));
    let other = file(8);
    for f in owners
        .iter()
        .map(|o| -> &AddressSpace { o })
        .chain([&*other])
    {
        (0..8).for_each(|i| f.find_or_create_page(i).unwrap().put());
    }
    let before = rmap::reclaim::nr_reclaimed();
    assert_eq!(reclaim_pages(10), 10);
    assert_eq!(reclaim_pages(ALL), 14);
    assert_eq!(rmap::reclaim::nr_reclaimed() - before, 24);
    assert_eq!(other.nr_pages(), 8);
    drop(owners);
    assert_eq!(reclaim_pages(ALL), 0);
}

/// A write is on its way when the page is cleaned, and when memory runs short. What a later read sees.
fn written_meanwhile(point: &'static str) -> u64 {
    let f = file(1);
    let mm = Mm::new().unwrap();
    let a = mm.mmap(&of_file(&f, 0, 1, true)).unwrap();
    read(&mm, a).unwrap();
    let file = f.clone();
    at(point, move || {
        clean_mapping_range(&file, 0, 0);
        file.reclaim(ALL, true, unmap_leaving);
        clean_mapping_range(&file, 0, 0);
    });
    write(&mm, a, 99).unwrap();
    assert!(nothing_left_to_do());
    reclaim(&f);
    read(&mm, a).unwrap()
}

#[test]
fn no_write_is_lost() {
    let _m = Machine::new();
    for point in ["page held for writing", "entry made writable"] {
        assert_eq!(written_meanwhile(point), 99);
    }
}

#[test]
fn a_write_that_nobody_announces_is_lost() {
    let _m = Machine::new();
    let seen = with_bug("nobody says that he writes", || {
        let f = file(1);
        let mm = Mm::new().unwrap();
        let a = mm.mmap(&of_file(&f, 0, 1, true)).unwrap();
        read(&mm, a).unwrap();
        let file = f.clone();
        at("page held for writing", move || {
            clean_mapping_range(&file, 0, 0);
        });
        write(&mm, a, 99).unwrap();
        reclaim(&f);
        read(&mm, a).unwrap()
    });
    assert_eq!(seen, file_word(0), "the planted bug went unnoticed");
}

/// Everybody at once: each thread's word in each page never goes back.
#[test]
fn writers_cleaners_and_reclaim() {
    let _m = Machine::new();
    let f = file(4);
    let done = &AtomicBool::new(false);
    let f = &f;
    thread::scope(|s| {
        let writers = [1, 2].map(|word| {
            s.spawn(move || {
                let mm = Mm::new().unwrap();
                let a = mm.mmap(&of_file(f, 0, 4, true)).unwrap();
                for round in 1..=300u64 {
                    let at = a + (round as usize % 4) * PAGE + word * 8;
                    let mut seen = [0; 8];
                    mm.read_remote(at, &mut seen).unwrap();
                    let last = round.saturating_sub(4);
                    assert_eq!(u64::from_ne_bytes(seen), last, "a write was lost");
                    mm.write_remote(at, &round.to_ne_bytes()).unwrap();
                    if round % 8 == 0 {
                        mm.sync_range(a, 4 * PAGE);
                    }
                }
                mm.check_invariants();
            })
        });
        let reader = s.spawn(move || {
            while !done.load(Relaxed) {
                let mm = Mm::new().unwrap();
                let a = mm.mmap(&of_file(f, 0, 4, false)).unwrap();
                let mut word = [0; 8];
                mm.read_remote(a + 3 * PAGE, &mut word).unwrap();
                assert_eq!(u64::from_ne_bytes(word), file_word(3));
                thread::yield_now();
            }
        });
        let other = s.spawn(move || {
            while !done.load(Relaxed) {
                reclaim(f);
                thread::yield_now();
            }
        });
        for w in writers {
            w.join().unwrap();
        }
        done.store(true, Relaxed);
        reader.join().unwrap();
        other.join().unwrap();
    });
    f.check_invariants();
}
