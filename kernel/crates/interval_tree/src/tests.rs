//! Every tree operation against a sorted `Vec`, with the invariants checked after each step.

use crate::*;
use core::cell::Cell;
use core::ptr::NonNull;
use proptest::prelude::*;
use std::boxed::Box;
use std::vec::Vec;

/// A member of a plain tree: the links are not first, so that wrong arithmetic shows.
#[repr(C)]
struct Item {
    key: u64,
    rb: RbNode,
}

const RB_OFFSET: usize = core::mem::offset_of!(Item, rb);

fn new_item(key: u64) -> NonNull<RbNode> {
    let item = NonNull::from(Box::leak(Box::new(Item {
        key,
        rb: RbNode::new(),
    })));
    // SAFETY: stays within the allocation.
    unsafe { item.byte_add(RB_OFFSET).cast() }
}

fn item(n: NonNull<RbNode>) -> NonNull<Item> {
    // SAFETY: all nodes of these tests are `rb` of an `Item`, pointer made from the whole item.
    unsafe { n.byte_sub(RB_OFFSET).cast() }
}

fn key(n: NonNull<RbNode>) -> u64 {
    // SAFETY: see `item`.
    unsafe { item(n).as_ref().key }
}

fn free_item(n: NonNull<RbNode>) {
    // SAFETY: made by `Box::leak`; the tests free each item once, when it is unlinked.
    unsafe { drop(Box::from_raw(item(n).as_ptr())) };
}

fn order(t: &RbTree) -> Vec<NonNull<RbNode>> {
    let mut v = Vec::new();
    let mut at = t.first();
    while let Some(n) = at {
        v.push(n);
        // SAFETY: a member; the tests are single-threaded.
        at = unsafe { RbTree::next(n) };
    }
    v
}

/// Keys in pre-order with a mark for "no child": equal for trees of equal shape.
fn shape(link: Option<NonNull<RbNode>>, out: &mut Vec<Option<u64>>) {
    out.push(link.map(key));
    if let Some(n) = link {
        // SAFETY: a member; the tests are single-threaded.
        let n = unsafe { n.as_ref() };
        shape(n.left(), out);
        shape(n.right(), out);
    }
}

/// Copies of trees of all sizes, also with the k-th copy failing.
#[test]
fn copies_have_the_shape_of_the_original() {
    for size in 0..40u64 {
        let mut tree = RbTree::new();
        for k in 0..size {
            let node = new_item(k * 7 % size);
            let pos = tree.insert_pos(|n| key(n) <= k * 7 % size);
            // SAFETY: a fresh node, a fresh position.
            unsafe { tree.insert_at::<NoAugment>(node, pos) };
        }
        for fail in 0..=size {
            let mut made = 0;
            // SAFETY: fresh nodes, which stay until they are freed below.
            let (copy, result) = unsafe {
                tree.copy_shape(|n| {
                    made += 1;
                    if made == fail {
                        Err(made)
                    } else {
                        Ok(new_item(key(n)))
                    }
                })
            };
            let nodes = order(&copy);
            assert_eq!(nodes, reversed(&copy), "both ends, both ways");
            assert!(nodes.is_sorted_by_key(|&n| key(n)));
            if fail == 0 {
                assert_eq!(result, Ok(()));
                assert_eq!(copy.check_invariants() as u64, size);
                let (mut a, mut b) = (Vec::new(), Vec::new());
                shape(tree.root(), &mut a);
                shape(copy.root(), &mut b);
                assert_eq!(a, b);
            } else {
                assert_eq!((result, nodes.len() as u64), (Err(fail), fail - 1));
            }
            nodes.into_iter().for_each(free_item);
        }
        order(&tree).into_iter().for_each(free_item);
    }
}

fn reversed(t: &RbTree) -> Vec<NonNull<RbNode>> {
    let mut v = Vec::new();
    let mut at = t.last();
    while let Some(n) = at {
        v.push(n);
        // SAFETY: as above.
        at = unsafe { RbTree::prev(n) };
    }
    v.reverse();
    v
}

#[derive(Debug, Clone)]
enum Op {
    Insert(u64),
    InsertAfter(usize),
    PushBack,
    Erase(usize),
    Replace(usize),
    LowerBound(u64),
    Search(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u64..40).prop_map(Op::Insert),
        2 => any::<usize>().prop_map(Op::InsertAfter),
        2 => Just(Op::PushBack),
        4 => any::<usize>().prop_map(Op::Erase),
        1 => any::<usize>().prop_map(Op::Replace),
        1 => (0u64..45).prop_map(Op::LowerBound),
        1 => (0u64..45).prop_map(Op::Search),
    ]
}

/// Applies `op` to tree and model. The model is the vector of members in order.
fn apply(t: &mut RbTree, model: &mut Vec<NonNull<RbNode>>, op: Op) {
    // SAFETY (all blocks): nodes are leaked boxes, freed only after they were erased; positions
    // are used at once; members are of this tree, as the model says.
    match op {
        Op::Insert(k) => {
            let node = new_item(k);
            let pos = t.insert_pos(|n| key(n) <= k);
            // SAFETY: above.
            unsafe { t.insert_at::<NoAugment>(node, pos) };
            let at = model.partition_point(|&n| key(n) <= k);
            model.insert(at, node);
        }
        Op::InsertAfter(i) if !model.is_empty() => {
            let i = i % model.len();
            let node = new_item(key(model[i]));
            // SAFETY: above.
            unsafe { t.insert_after::<NoAugment>(model[i], node) };
            model.insert(i + 1, node);
        }
        Op::PushBack => {
            let node = new_item(model.last().map_or(0, |&n| key(n)));
            // SAFETY: above.
            unsafe { t.push_back::<NoAugment>(node) };
            model.push(node);
        }
        Op::Erase(i) if !model.is_empty() => {
            let node = model.remove(i % model.len());
            // SAFETY: above.
            unsafe {
                t.erase::<NoAugment>(node);
                assert!(!node.as_ref().is_linked());
            }
            free_item(node);
        }
        Op::Replace(i) if !model.is_empty() => {
            let i = i % model.len();
            let node = new_item(key(model[i]));
            // SAFETY: above.
            unsafe { t.replace::<NoAugment>(model[i], node) };
            free_item(core::mem::replace(&mut model[i], node));
        }
        Op::LowerBound(k) => {
            let want = model.iter().copied().find(|&n| key(n) >= k);
            assert_eq!(t.lower_bound(|n| key(n) < k), want);
        }
        Op::Search(k) => match t.search(|n| k.cmp(&key(n))) {
            Ok(n) => assert_eq!(key(n), k),
            Err(_) => assert!(model.iter().all(|&n| key(n) != k)),
        },
        _ => {}
    }
}

fn start_of(n: &NonNull<IntervalNode>) -> u64 {
    // SAFETY: the tests look only at nodes they have not freed.
    unsafe { n.as_ref().start() }
}

fn last_of(n: &NonNull<IntervalNode>) -> u64 {
    // SAFETY: as above.
    unsafe { n.as_ref().last() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]

    #[test]
    fn rbtree_is_a_sorted_vec(ops in prop::collection::vec(op(), 0..160)) {
        let (mut t, mut model) = (RbTree::new(), Vec::new());
        for op in ops {
            apply(&mut t, &mut model, op);
            prop_assert_eq!(t.check_invariants(), model.len());
            prop_assert_eq!(&order(&t), &model);
            prop_assert_eq!(&reversed(&t), &model);
        }
        for node in model {
            // SAFETY: the remaining members.
            unsafe { t.erase::<NoAugment>(node) };
            t.check_invariants();
            free_item(node);
        }
        prop_assert!(t.is_empty());
    }

    #[test]
    fn interval_tree_is_a_sorted_vec(
        ops in prop::collection::vec((0u8..7, 0u64..50, 0u64..20, any::<usize>()), 0..120)
    ) {
        let mut t = IntervalTree::new();
        let mut model: Vec<NonNull<IntervalNode>> = Vec::new();
        let new = |s, l| NonNull::from(Box::leak(Box::new(IntervalNode::new(s, l))));
        for (what, start, len, pick) in ops {
            let last = start + len;
            match what {
                0 | 1 => {
                    let n = new(start, last);
                    // SAFETY: above.
                    unsafe { t.insert(n) };
                    model.insert(model.partition_point(|m| start_of(m) <= start), n);
                }
                2 if !model.is_empty() => {
                    let i = pick % model.len();
                    let n = new(start_of(&model[i]), start_of(&model[i]) + len);
                    // SAFETY: above.
                    unsafe { t.insert_after(model[i], n) };
                    model.insert(i + 1, n);
                }
                3 if !model.is_empty() => {
                    let n = model.remove(pick % model.len());
                    // SAFETY: above; the box is freed once, when unlinked.
                    unsafe { t.remove(n); drop(Box::from_raw(n.as_ptr())) };
                }
                4 if !model.is_empty() => {
                    let n = model[pick % model.len()];
                    // SAFETY: above.
                    unsafe { t.set_last(n, start_of(&n) + len) };
                }
                _ => {}
            }
            prop_assert_eq!(t.check_invariants(), model.len());
            let want: Vec<_> = model.iter().copied()
                .filter(|n| start_of(n) <= last && last_of(n) >= start).collect();
            prop_assert_eq!(t.overlaps(start, last).collect::<Vec<_>>(), want);
        }
        for n in model {
            // SAFETY: above.
            unsafe { t.remove(n); drop(Box::from_raw(n.as_ptr())) };
            t.check_invariants();
        }
    }
}

/// The extremes of u64 do not wrap.
#[test]
fn whole_range() {
    let mut t = IntervalTree::new();
    let whole = NonNull::from(Box::leak(Box::new(IntervalNode::new(0, u64::MAX))));
    let end = NonNull::from(Box::leak(Box::new(IntervalNode::new(u64::MAX, u64::MAX))));
    // SAFETY: leaked boxes, freed below after removal.
    unsafe {
        t.insert(end);
        t.insert(whole);
    }
    assert_eq!(
        t.overlaps(u64::MAX, u64::MAX).collect::<Vec<_>>(),
        [whole, end]
    );
    assert_eq!(t.overlaps(0, 7).collect::<Vec<_>>(), [whole]);
    // SAFETY: as above.
    unsafe {
        t.remove(whole);
        t.remove(end);
        drop(Box::from_raw(whole.as_ptr()));
        drop(Box::from_raw(end.as_ptr()));
    }
}

/// The check itself can fail: a key changed behind the tree's back is noticed.
#[test]
fn check_notices_a_broken_summary() {
    let mut t = IntervalTree::new();
    let n = Box::leak(Box::new(IntervalNode::new(5, 6)));
    let p = NonNull::from(&mut *n);
    // SAFETY: a leaked box, never freed.
    unsafe { t.insert(p) };
    let broken = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| {
        // SAFETY: the pointer is live; the write goes to a cell.
        unsafe { p.as_ref().break_summary() };
        t.check_invariants()
    }));
    assert!(broken.is_err());
}

/// A member whose summary depends on its predecessor: the gap between their keys.
#[repr(C)]
struct Gapped {
    rb: RbNode,
    key: u64,
    gap: Cell<u64>,
    max: Cell<u64>,
}

struct MaxGap;

fn gapped<'a>(n: NonNull<RbNode>) -> &'a Gapped {
    // SAFETY: all nodes of the test below are the first field of a leaked `Gapped`.
    unsafe { n.cast::<Gapped>().as_ref() }
}

fn greatest_gap(n: NonNull<RbNode>) -> u64 {
    let v = gapped(n);
    let below = |c: Option<NonNull<RbNode>>| c.map_or(0, |c| gapped(c).max.get());
    v.gap.get().max(below(v.rb.left())).max(below(v.rb.right()))
}

// SAFETY: reads nodes and children, writes only `max`.
unsafe impl Augment for MaxGap {
    unsafe fn update(node: NonNull<RbNode>) -> bool {
        let max = greatest_gap(node);
        gapped(node).max.replace(max) != max
    }
    unsafe fn copy(from: NonNull<RbNode>, to: NonNull<RbNode>) {
        gapped(to).max.set(gapped(from).max.get());
    }
}

proptest! {
    /// Insertions and removals that change the successor's contribution too.
    #[test]
    fn successors_are_summarised_in_the_same_pass(
        keys in prop::collection::vec((0u64..60, any::<bool>()), 1..120)
    ) {
        let mut tree = RbTree::new();
        for (key, insert) in keys {
            let at = order(&tree).partition_point(|&n| gapped(n).key < key);
            let nodes = order(&tree);
            let prev = at.checked_sub(1).map_or(0, |i| gapped(nodes[i]).key);
            let there = nodes.get(at).copied().filter(|&n| gapped(n).key == key);
            match there {
                None if insert => {
                    let next = nodes.get(at).copied();
                    let (gap, max) = (Cell::new(key - prev), Cell::new(7777));
                    let new = Box::leak(Box::new(Gapped { rb: RbNode::new(), key, gap, max }));
                    // SAFETY: a member, or none.
                    let pos = unsafe { tree.pos_before(next) };
                    let empty = tree.is_empty();
                    prop_assert!(empty || pos == tree.insert_pos(|n| gapped(n).key < key));
                    next.inspect(|&n| gapped(n).gap.set(gapped(n).key - key));
                    // SAFETY: a fresh node, a fresh position, its successor.
                    unsafe { tree.insert_before::<MaxGap>(NonNull::from(new).cast(), pos, next) };
                }
                Some(old) if !insert => {
                    let next = nodes.get(at + 1).copied();
                    next.inspect(|&n| gapped(n).gap.set(gapped(n).key - prev));
                    // SAFETY: a member and its successor; freed once, unlinked.
                    unsafe {
                        tree.erase_before::<MaxGap>(old, next);
                        drop(Box::from_raw(old.cast::<Gapped>().as_ptr()));
                    }
                }
                _ => {}
            }
            tree.check_invariants();
            for n in order(&tree) {
                prop_assert_eq!(gapped(n).max.get(), greatest_gap(n));
            }
        }
        for n in order(&tree) {
            // SAFETY: leaked above, and the tree is not used again.
            unsafe { drop(Box::from_raw(n.cast::<Gapped>().as_ptr())) };
        }
    }
}
