//! Threads against each other in one address space.

use super::*;
use crate::unmap_mapping_range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

const A: usize = 0x40_0000;
const ROUNDS: usize = 300;

/// A thread that counts in words of its own, through whatever the others do to the pages.
fn count(mm: &Mm, base: usize, lane: usize) {
    for round in 1..=ROUNDS as u64 {
        for page in 0..4 {
            let at = base + page * PAGE + lane * 8;
            let mut word = [0; 8];
            mm.read_remote(at, &mut word).unwrap();
            assert_eq!(u64::from_ne_bytes(word), round - 1, "a write was lost");
            mm.write_remote(at, &round.to_ne_bytes()).unwrap();
        }
    }
}

/// Faults of one mm run against fork, truncation and changes of rights.
#[test]
fn faults_fork_truncate_protect() {
    let _m = Machine::new();
    let mm = mm_with(A, 4);
    let f = file(16);
    let shared = mm.mmap(&of_file(&f, 0, 16, true)).unwrap();
    let private = mm.mmap(&of_file(&f, 0, 16, false)).unwrap();
    mm.activate(0);
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        let counters: Vec<_> = (0..3)
            .map(|lane| {
                s.spawn({
                    let mm = mm.clone();
                    move || count(&mm, A, lane)
                })
            })
            .collect();
        for base in [shared, private] {
            let (mm, stop) = (mm.clone(), &stop);
            s.spawn(move || {
                let mut i = 0;
                while !stop.load(Relaxed) {
                    i += 5;
                    let how = if i % 3 == 0 {
                        FaultFlags::WRITE
                    } else {
                        FaultFlags::empty()
                    };
                    let _ = mm.handle_fault(base + (i % 16) * PAGE, how);
                }
            });
        }
        let (file, stopped) = (&f, &stop);
        s.spawn(move || {
            while !stopped.load(Relaxed) {
                file.truncate(3 * PAGE as u64);
                unmap_mapping_range(file, 3, u64::MAX, true);
                file.extend(16 * PAGE as u64);
            }
        });
        let (parent, stopped) = (mm.clone(), &stop);
        s.spawn(move || {
            while !stopped.load(Relaxed) {
                let child = parent.dup().unwrap();
                parent.mprotect(private, 16 * PAGE, Prot::READ).unwrap();
                child.check_invariants();
                parent.mprotect(private, 16 * PAGE, RW).unwrap();
            }
        });
        for c in counters {
            c.join().unwrap();
        }
        stop.store(true, Relaxed);
    });
    mm.check_invariants();
    f.truncate(0);
    unmap_mapping_range(&f, 0, u64::MAX, true);
    let report = mm.check_invariants();
    assert_eq!(report.rss[0], 0, "nothing of the file is left");
    mm.deactivate(0);
}

/// Many threads fault the same pages: each is made once.
#[test]
fn one_page_per_fault_of_many() {
    let _m = Machine::new();
    let mm = mm_with(A, 64);
    thread::scope(|s| {
        for lane in 0..4usize {
            let mm = mm.clone();
            s.spawn(move || {
                for i in 0..64 {
                    let page = (i * 7 + lane * 16) % 64;
                    mm.write_remote(A + page * PAGE + lane * 8, &1u64.to_ne_bytes())
                        .unwrap();
                }
            });
        }
    });
    assert_eq!(mm.check_invariants().rss, [0, 64, 0]);
    for page in 0..64 {
        for lane in 0..4 {
            assert_eq!(read(&mm, A + page * PAGE + lane * 8), Ok(1));
        }
    }
}

/// Two processes count in a file that both map, and in private pages, while their pages move from node to node.
#[test]
fn pages_move_under_writers() {
    let _m = Machine::new();
    let mm = mm_with(A, 4);
    let f = AddressSpace::new(Filler::Zero, 4 * PAGE as u64, b"").unwrap();
    let shared = mm.mmap(&of_file(&f, 0, 4, true)).unwrap();
    let other = Mm::new().unwrap();
    let mapped = other.mmap(&of_file(&f, 0, 4, true)).unwrap();
    let stop = AtomicBool::new(false);
    let moved = std::sync::atomic::AtomicUsize::new(0);
    thread::scope(|s| {
        let (mm, other, moved, stop) = (&mm, &other, &moved, &stop);
        let counters = [
            s.spawn(move || count(mm, shared, 0)),
            s.spawn(move || count(other, mapped, 1)),
            s.spawn(move || count(mm, A, 2)),
        ];
        s.spawn(move || {
            for i in 0.. {
                // On a host with little to do the writers may be done before the first move.
                if stop.load(Relaxed) && (moved.load(Relaxed) > 4 || i > 10_000) {
                    break;
                }
                let base = [shared, A][i % 2];
                let at = base + i / 2 % 4 * PAGE;
                if mm.move_page(at, i / 8 % 2) == crate::PageNode::On(i / 8 % 2) {
                    moved.fetch_add(1, Relaxed);
                }
                mm.check_invariants();
            }
        });
        let ends = counters.map(|c| c.join());
        stop.store(true, Relaxed);
        assert!(ends.iter().all(Result::is_ok));
    });
    assert!(moved.load(Relaxed) > 4, "pages have moved");
    mm.check_invariants();
    other.check_invariants();
}
