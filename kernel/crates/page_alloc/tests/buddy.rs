//! A Buddy alone against a naive model: the set of free frames.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::ptr::NonNull;

use page_alloc::{Buddy, InitError, MAX_ORDER, Page};
use proptest::prelude::*;

/// Descriptors of four largest blocks: merging across all of them is possible and bounded.
const FRAMES: usize = 4 << MAX_ORDER;

struct Machine {
    buddy: Buddy,
    descs: Box<[Page]>,
}

impl Machine {
    fn new(ranges: impl IntoIterator<Item = Range<usize>>) -> Self {
        let descs: Box<[Page]> = (0..FRAMES).map(|_| Page::new()).collect();
        let mut m = Machine {
            buddy: Buddy::new(),
            descs,
        };
        for r in ranges {
            m.add(r).unwrap();
        }
        m
    }

    fn add(&mut self, r: Range<usize>) -> Result<(), InitError> {
        // SAFETY: zeroed descriptors for all frames of the 4 MiB hull of any range below FRAMES.
        unsafe { self.buddy.add_range(self.descs.as_mut_ptr(), 3, r) }
    }

    fn pfn(&self, p: NonNull<Page>) -> usize {
        (p.as_ptr() as usize - self.descs.as_ptr() as usize) / size_of::<Page>()
    }

    fn page(&self, pfn: usize) -> NonNull<Page> {
        NonNull::from(&self.descs[pfn])
    }

    fn blocks(&self) -> Vec<usize> {
        (0..=MAX_ORDER).map(|o| self.buddy.nr_blocks(o)).collect()
    }
}

/// What a buddy system must say, from the set of free frames alone: a block of `order` exists iff
/// an aligned run of free frames does.
fn model_has(free: &BTreeSet<usize>, order: u32) -> bool {
    free.iter()
        .any(|&f| f % (1 << order) == 0 && (f..f + (1 << order)).all(|g| free.contains(&g)))
}

#[derive(Clone, Debug)]
enum Op {
    Alloc(u32),
    Bulk(usize),
    /// Free the i-th block held (modulo their number).
    Free(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (0..=4u32).prop_map(Op::Alloc),
        1 => (5..=MAX_ORDER + 1).prop_map(Op::Alloc),
        1 => (0..70usize).prop_map(Op::Bulk),
        5 => any::<usize>().prop_map(Op::Free),
    ];
    prop::collection::vec(op, 1..120)
}

/// One to three disjoint ranges of up to 300 frames with odd edges, some touching.
fn ranges() -> impl Strategy<Value = Vec<Range<usize>>> {
    prop::collection::vec((0..200usize, 1..300usize), 1..4).prop_map(|v| {
        let mut at = 900;
        v.into_iter()
            .map(|(gap, len)| {
                let r = at + gap..at + gap + len;
                at = r.end;
                r
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn agrees_with_the_set_of_free_frames(ranges in ranges(), ops in ops()) {
        let mut m = Machine::new(ranges.clone());
        let mut free: BTreeSet<usize> = ranges.iter().cloned().flatten().collect();
        let mut held: BTreeMap<usize, u32> = BTreeMap::new();
        let before = m.blocks();
        m.buddy.check_invariants();
        for op in ops {
            match op {
                Op::Alloc(order) => match m.buddy.alloc(order) {
                    Some(p) => {
                        let pfn = m.pfn(p);
                        prop_assert_eq!(pfn % (1 << order), 0, "natural alignment");
                        for f in pfn..pfn + (1 << order) {
                            prop_assert!(free.remove(&f), "frame {} was not free", f);
                        }
                        held.insert(pfn, order);
                    }
                    None => prop_assert!(order > MAX_ORDER || !model_has(&free, order), "order {} exists", order),
                },
                Op::Bulk(want) => {
                    let expect = want.min(free.len());
                    let mut got = vec![];
                    let n = m.buddy.alloc_bulk(want, |p| got.push(p));
                    prop_assert_eq!(n, expect);
                    prop_assert_eq!(got.len(), n);
                    for p in got {
                        let pfn = m.pfn(p);
                        prop_assert!(free.remove(&pfn));
                        held.insert(pfn, 0);
                    }
                }
                Op::Free(i) if !held.is_empty() => {
                    let (&pfn, &order) = held.iter().nth(i % held.len()).unwrap();
                    held.remove(&pfn);
                    free.extend(pfn..pfn + (1 << order));
                    m.buddy.free(m.page(pfn), order);
                }
                Op::Free(_) => {}
            }
            prop_assert_eq!(m.buddy.nr_free(), free.len());
            m.buddy.check_invariants();
        }
        for (pfn, order) in held {
            m.buddy.free(m.page(pfn), order);
        }
        m.buddy.check_invariants();
        prop_assert_eq!(m.blocks(), before, "everything coalesced again");
    }
}

#[test]
fn exhaustion_gives_every_frame_once_and_takes_all_back() {
    let mut m = Machine::new(Some(1024..3072));
    assert_eq!(m.blocks()[MAX_ORDER as usize], 2);
    let mut seen = BTreeSet::new();
    while let Some(p) = m.buddy.alloc(0) {
        assert!(seen.insert(m.pfn(p)));
    }
    assert_eq!(seen, (1024..3072).collect());
    assert_eq!(m.buddy.nr_free(), 0);
    // Odd frames first: nothing can merge; then everything does.
    for odd in [1, 0] {
        for &f in seen.iter().filter(|f| *f % 2 == odd) {
            m.buddy.free(m.page(f), 0);
        }
        assert_eq!(
            m.buddy.alloc(1).is_some(),
            odd == 0,
            "no order 1 among odd frames only"
        );
    }
}

#[test]
fn blocks_never_merge_over_a_hole_or_into_another_node() {
    let mut a = Machine::new(Some(1024..1536));
    let mut b = Buddy::new();
    // SAFETY: the same zeroed descriptors; another node's half of the same 4 MiB.
    unsafe { b.add_range(a.descs.as_mut_ptr(), 4, 1536..2048).unwrap() };
    assert_eq!((a.blocks()[9], a.blocks()[10]), (1, 0));
    assert_eq!((b.nr_blocks(9), b.nr_blocks(10)), (1, 0));
    a.add(2048..2049).unwrap();
    a.add(2050..2051).unwrap();
    assert_eq!(a.blocks()[0], 2, "frame 2049 is a hole");
}

#[test]
fn bad_ranges_change_nothing() {
    let mut m = Machine::new(Some(1024..1100));
    let before = m.blocks();
    assert_eq!(m.add(1099..1200), Err(InitError::Overlap));
    #[allow(clippy::reversed_empty_ranges)]
    let backwards = 1300..1200;
    assert_eq!(m.add(backwards), Err(InitError::BadRange));
    assert_eq!(m.add(0..usize::MAX), Err(InitError::BadRange));
    assert_eq!(m.blocks(), before);
    assert_eq!(m.add(1100..1200), Ok(()));
    assert_eq!(m.buddy.nr_free(), 176);
}
