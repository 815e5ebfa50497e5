//! Every allocation of every operation fails once: nothing changes, nothing leaks.

use super::*;
use crate::{MmError, RemapFlags};
use page_alloc::fault_inject::{fail_nth, set_fail_nth};

const A: usize = 0x40_0000;
/// The last four pages that an L1 table covers.
const B: usize = A + (6 << 20) - 4 * PAGE;
/// An address whose tables nobody has: another 512 GiB.
const FAR: usize = 1 << 40;

/// A parent with some of everything.
struct State {
    mm: MmUser,
    _file: KArc<AddressSpace>,
}

fn state() -> State {
    let mm = mm_with(A, 8);
    let file = file(8);
    for i in 0..8 {
        file.find_or_create_page(i).unwrap().put();
    }
    mm.mmap(&of_file(&file, 0, 8, false).fixed(A + 8 * PAGE))
        .unwrap();
    mm.mmap(&of_file(&file, 0, 8, true).fixed(A + 16 * PAGE))
        .unwrap();
    mm.mmap(&shared_anon(4).fixed(A + 24 * PAGE)).unwrap();
    for i in (0..26).step_by(2) {
        write(&mm, A + i * PAGE, 100 + i as u64).unwrap();
    }
    mm.mmap(&MapArgs::anon(4 * PAGE, RW).fixed(B)).unwrap();
    write(&mm, B, 500).unwrap();
    State { mm, _file: file }
}

fn areas(mm: &Mm) -> Vec<(usize, usize, u32)> {
    let mut all = Vec::new();
    mm.for_each_vma(|v| all.push((v.start, v.end, v.flags.bits())));
    all
}

fn words(mm: &Mm) -> Vec<u64> {
    (0..26)
        .step_by(2)
        .map(|i| read(mm, A + i * PAGE).unwrap())
        .collect()
}

/// Runs `op` with its n-th allocation failing, for all n; returns how many allocations it makes.
/// `tables_may_stay`: a fault may leave tables behind in its area.
fn sweep<R, E: core::fmt::Debug + PartialEq + Copy>(
    oom: E,
    tables_may_stay: bool,
    op: impl Fn(&State) -> Result<R, E>,
) -> u32 {
    for n in 1..100 {
        let s = state();
        let (before, areas_before, tables_before) = (census(), areas(&s.mm), s.mm.nr_tables());
        assert!(set_fail_nth(n));
        let result = op(&s);
        let fired = fail_nth() == 0;
        set_fail_nth(0);
        if !fired {
            assert!(
                result.is_ok(),
                "failed without a failing allocation: {:?}",
                result.err()
            );
            s.mm.check_invariants();
            return n - 1;
        }
        assert_eq!(result.err(), Some(oom), "allocation {n} failed");
        let mut after = census();
        if tables_may_stay {
            after.pages += s.mm.nr_tables() - tables_before;
        }
        assert_eq!(after, before, "allocation {n} failed");
        assert_eq!(areas(&s.mm), areas_before, "allocation {n} failed");
        s.mm.check_invariants();
        assert_eq!(
            words(&s.mm),
            (0..26).step_by(2).map(|i| 100 + i).collect::<Vec<u64>>()
        );
    }
    panic!("more allocations than anybody expects");
}

fn sweep_mm<R>(at_least: u32, op: impl Fn(&Mm) -> Result<R, MmError>) {
    let nr = sweep(MmError::NoMemory, false, |s| op(&s.mm));
    assert!(
        nr >= at_least,
        "{nr} allocations, expected {at_least} or more"
    );
}

#[test]
fn mmap_fails_cleanly() {
    let _m = Machine::new();
    sweep_mm(1, |mm| mm.mmap(&MapArgs::anon(PAGE, Prot::READ)));
    sweep_mm(2, |mm| mm.mmap(&shared_anon(1)));
    // A fixed mapping in the middle of an area: its own memory and the split's.
    sweep_mm(2, |mm| {
        mm.mmap(&MapArgs::anon(PAGE, Prot::READ).fixed(A + 2 * PAGE))
    });
    sweep_mm(2, |mm| mm.mmap(&shared_anon(1).fixed(A + 10 * PAGE)));
    sweep_mm(1, |mm| mm.map_stack(FAR, PAGE));
}

#[test]
fn munmap_fails_cleanly() {
    let _m = Machine::new();
    sweep_mm(1, |mm| mm.munmap(A + 2 * PAGE, PAGE));
    sweep_mm(1, |mm| mm.munmap(A + 10 * PAGE, PAGE));
    sweep_mm(0, |mm| mm.munmap(A + 2 * PAGE, 10 * PAGE));
}

#[test]
fn mprotect_fails_cleanly() {
    let _m = Machine::new();
    sweep_mm(2, |mm| mm.mprotect(A + 2 * PAGE, PAGE, Prot::READ));
    sweep_mm(2, |mm| mm.mprotect(A + 10 * PAGE, PAGE, Prot::empty()));
    sweep_mm(2, |mm| mm.mprotect(A + 2 * PAGE, 10 * PAGE, Prot::READ));
    sweep_mm(1, |mm| mm.mprotect(A, 2 * PAGE, Prot::READ));
}

#[test]
fn mremap_fails_cleanly() {
    let _m = Machine::new();
    let fixed = RemapFlags::MAYMOVE | RemapFlags::FIXED;
    sweep_mm(5, |mm| mm.mremap(A, 8 * PAGE, 8 * PAGE, fixed, FAR));
    sweep_mm(5, |mm| {
        mm.mremap(A + 9 * PAGE, 4 * PAGE, 6 * PAGE, fixed, FAR - PAGE)
    });
    // Onto the end of an area, with a table missing only behind it.
    sweep_mm(4, |mm| {
        mm.mremap(A, 8 * PAGE, 2000 * PAGE, fixed, B + 2 * PAGE)
    });
    sweep_mm(1, |mm| {
        mm.mremap(A + PAGE, 6 * PAGE, PAGE, RemapFlags::empty(), 0)
    });
}

#[test]
fn fork_fails_cleanly() {
    let _m = Machine::new();
    let nr = sweep(MmError::NoMemory, false, |s| {
        for i in (0..8).step_by(2) {
            tlb::access(0, &s.mm, A + i * PAGE, FaultFlags::WRITE).unwrap();
        }
        let result = s.mm.dup().map(drop);
        // INV-FORK-3: what was write-protected before the failure has been flushed.
        tlb::check();
        tlb::idle();
        result
    });
    // Object, root, 5 areas, two paths of tables that share their upper levels.
    assert_eq!(nr, 1 + 1 + 5 + 4);
}

#[test]
fn faults_fail_cleanly() {
    let _m = Machine::new();
    let fault = |nr: u32, addr: usize, how: FaultFlags| {
        let n = sweep(FaultError::Oom, true, |s| {
            let far = MapArgs::anon(PAGE, RW).fixed(FAR);
            // The area is not what is being tested.
            let armed = fail_nth();
            set_fail_nth(0);
            if addr == FAR {
                s.mm.mmap(&far).unwrap();
            }
            set_fail_nth(armed);
            let r = s.mm.handle_fault(addr, how);
            if addr == FAR && r.is_err() {
                s.mm.munmap(FAR, PAGE).unwrap();
            }
            r
        });
        assert_eq!(n, nr, "allocations of a fault at {addr:#x}");
    };
    fault(4, FAR, FaultFlags::WRITE);
    fault(3, FAR, FaultFlags::empty());
    fault(1, A + PAGE, FaultFlags::WRITE);
    fault(1, A + 9 * PAGE, FaultFlags::WRITE);
    fault(0, A + 17 * PAGE, FaultFlags::WRITE);
    fault(0, A + 9 * PAGE, FaultFlags::empty());
}

#[test]
fn new_fails_cleanly() {
    let _m = Machine::new();
    assert_eq!(sweep(MmError::NoMemory, false, |_| Mm::new().map(drop)), 2);
}
