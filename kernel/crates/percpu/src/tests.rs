//! The allocator as a whole: a model of what is allocated, failures, threads.

use crate::chunk::check_invariants;
use crate::*;
use core::alloc::Layout;
use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering};
use ksync::{PreemptGuard, arch};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::vec::Vec;

/// One allocator for all tests of the process, and tests that count what it holds: one at a time.
pub fn serial() -> MutexGuard<'static, ()> {
    static SERIAL: Mutex<()> = Mutex::new(());
    let guard = SERIAL.lock().unwrap_or_else(|e| e.into_inner());
    host::init_once();
    guard
}

fn bytes(cpu: usize, offset: usize, size: usize) -> &'static mut [u8] {
    // SAFETY: the tests use it only for allocations they hold.
    unsafe { std::slice::from_raw_parts_mut((arch::percpu_base(cpu) + offset) as *mut u8, size) }
}

fn release(offset: usize, size: usize) {
    // SAFETY: the tests free what they allocated (and once, to see the panic, twice).
    unsafe { free(offset, size) };
}

fn pattern(cpu: usize, offset: usize) -> u8 {
    (cpu * 31 + offset / 8 * 7 + 1) as u8
}

#[derive(Clone, Debug)]
enum Op {
    Alloc {
        size: usize,
        align: usize,
        zero: bool,
    },
    Free(usize),
    /// Populating fails after so many pages; the next allocations may fail.
    Failing(usize),
    Shrink,
}

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![8 => 0..100usize, 2 => 0..9000usize, 1 => 0..70_000usize];
    prop_oneof![
        12 => (size, 0..8u32, any::<bool>())
            .prop_map(|(size, a, zero)| Op::Alloc { size, align: 1 << a, zero }),
        10 => any::<usize>().prop_map(Op::Free),
        1 => (0..20usize).prop_map(Op::Failing),
        1 => Just(Op::Shrink),
    ]
}

/// Every held copy still has its pattern: no two allocations overlap, on any CPU.
fn check_patterns(held: &BTreeMap<usize, usize>) {
    for (&offset, &size) in held {
        for cpu in 0..arch::nr_cpu_ids() {
            assert!(
                bytes(cpu, offset, size)
                    .iter()
                    .all(|&b| b == pattern(cpu, offset))
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn allocations_are_disjoint_and_failures_undone(ops in prop::collection::vec(op(), 1..120)) {
        let _serial = serial();
        shrink();
        let before = stats();
        let mut held: BTreeMap<usize, usize> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Alloc { size, align, zero } => {
                    let used = stats().used;
                    let layout = Layout::from_size_align(size, align).unwrap();
                    match alloc(layout, if zero { Zero::Yes } else { Zero::No }) {
                        Ok(offset) => {
                            prop_assert!(offset % align == 0 && offset >= RESERVED);
                            for cpu in 0..arch::nr_cpu_ids() {
                                let copy = bytes(cpu, offset, size);
                                prop_assert!(!zero || copy.iter().all(|&b| b == 0));
                                copy.fill(pattern(cpu, offset));
                            }
                            prop_assert!(held.insert(offset, size).is_none());
                        }
                        Err(OutOfMemory) => {
                            prop_assert_eq!(stats().used, used);
                            host::fail_after(None);
                        }
                    }
                }
                Op::Free(pick) if !held.is_empty() => {
                    let (&offset, &size) = held.iter().nth(pick % held.len()).unwrap();
                    held.remove(&offset);
                    release(offset, size);
                }
                Op::Free(_) => (),
                Op::Failing(n) => host::fail_after(Some(n)),
                Op::Shrink => {
                    shrink();
                }
            }
            check_invariants();
        }
        host::fail_after(None);
        check_patterns(&held);
        for (offset, size) in held {
            release(offset, size);
        }
        shrink();
        prop_assert_eq!(stats(), before);
        prop_assert_eq!(host::nr_populated(), 0);
    }
}

#[test]
fn running_out_of_windows_is_an_error() {
    let _serial = serial();
    shrink();
    let before = stats();
    let layout = Layout::from_size_align(60 << 10, 8).unwrap();
    let mut held = Vec::new();
    host::fail_after(Some(3000));
    while let Ok(offset) = alloc(layout, Zero::No) {
        held.push(offset);
    }
    host::fail_after(None);
    assert!(held.len() > 10);
    let nr_populated = host::nr_populated();
    // What populating had begun is kept and used by the next attempt.
    let again = alloc(layout, Zero::No).unwrap();
    assert!(host::nr_populated() > nr_populated);
    held.push(again);
    for offset in held {
        release(offset, layout.size());
    }
    check_invariants();
    assert!(shrink() > 0);
    assert_eq!(stats(), before);
    assert_eq!(host::nr_populated(), 0);
}

#[test]
fn an_injected_failure_changes_nothing() {
    let _serial = serial();
    let before = stats();
    assert!(page_alloc::fault_inject::set_fail_nth(2));
    let first = PerCpu::<u64>::new_zeroed();
    assert!(first.is_ok() && PerCpu::<u64>::new_zeroed().is_err());
    assert!(PerCpu::<u64>::new_zeroed().is_ok());
    drop(first);
    assert_eq!(stats(), before);
}

#[test]
fn too_large_is_an_error() {
    let _serial = serial();
    assert!(alloc(Layout::from_size_align(1 << 20, 8).unwrap(), Zero::No).is_err());
    assert!(alloc(Layout::from_size_align(8, 8192).unwrap(), Zero::No).is_err());
}

#[test]
#[should_panic(expected = "freed twice")]
fn a_double_free_is_found() {
    let _serial = serial();
    let offset = alloc(Layout::new::<u64>(), Zero::No).unwrap();
    release(offset, 8);
    release(offset, 8);
}

#[test]
fn each_cpu_has_its_own() {
    let _serial = serial();
    static DROPS: AtomicUsize = AtomicUsize::new(0);
    struct Counted(Cell<usize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            DROPS.fetch_add(1, Ordering::Relaxed);
        }
    }
    let mut each = PerCpu::new(|cpu| Counted(Cell::new(cpu))).unwrap();
    for cpu in 0..arch::nr_cpu_ids() {
        arch::host::run_on(cpu, || {
            let guard = PreemptGuard::new();
            let mine = each.this_cpu(&guard);
            assert_eq!(mine.0.get(), cpu);
            mine.0.set(cpu + 100);
        });
        assert_eq!(each.get_mut(cpu).0.get(), cpu + 100);
    }
    drop(each);
    assert_eq!(DROPS.load(Ordering::Relaxed), arch::nr_cpu_ids());
}

#[test]
fn the_zero_area_stays_zero() {
    let _serial = serial();
    let all: Vec<_> = (0..500)
        .map(|_| PerCpu::<[u64; 8]>::new(|_| [!0; 8]).unwrap())
        .collect();
    for cpu in 0..arch::nr_cpu_ids() {
        assert!(bytes(cpu, ZERO_AREA, 128).iter().all(|&b| b == 0));
    }
    drop(all);
}

#[test]
fn threads_allocate_and_free() {
    let _serial = serial();
    let before = stats().used;
    std::thread::scope(|s| {
        for t in 0..4usize {
            s.spawn(move || {
                arch::host::set_cpu(t);
                let mut held: Vec<(usize, usize)> = Vec::new();
                let mut x = t * 7919 + 1;
                for _ in 0..3000 {
                    x = x
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    if held.len() < 20 || x >> 40 & 1 == 0 {
                        let size = (x >> 33) % 600 + 1;
                        let layout = Layout::from_size_align(size, 8).unwrap();
                        let offset = alloc(layout, Zero::No).unwrap();
                        bytes(t, offset, size).fill(t as u8);
                        held.push((offset, size));
                    } else {
                        let (offset, size) = held.swap_remove((x >> 20) % held.len());
                        assert!(bytes(t, offset, size).iter().all(|&b| b == t as u8));
                        release(offset, size);
                    }
                }
                for (offset, size) in held {
                    release(offset, size);
                }
            });
        }
    });
    check_invariants();
    assert_eq!(stats().used, before);
}
