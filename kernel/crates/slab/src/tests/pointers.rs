//! KArc, KBox and List.

use super::*;
use proptest::prelude::*;
use std::sync::Arc;

struct Node {
    value: u32,
    /// Counts drops.
    token: Arc<()>,
}
object!(Node, "test_node", links = 2);

struct Shared(Arc<()>);
object!(Shared, "test_shared", links = 1, rcu);

struct Pair<T>(T, T);
object!(impl[T: Send + Sync + 'static] Pair<T>, links = 0);

fn node(value: u32) -> KArc<Node> {
    KArc::new(Node {
        value,
        token: Arc::new(()),
    })
    .unwrap()
}

#[test]
fn the_last_reference_drops() {
    let _machine = machine();
    let token = Arc::new(());
    let a = KArc::new(Node {
        value: 7,
        token: token.clone(),
    })
    .unwrap();
    let b = a.clone();
    assert!(KArc::ptr_eq(&a, &b) && KArc::refcount(&a) == 2 && a.value == 7);
    assert_eq!(Node::cache().active(), 1);
    let raw = KArc::into_raw(a);
    // SAFETY: from into_raw; `b` holds the object.
    let (a, c) = unsafe { (KArc::from_raw(raw), KArc::<Node>::clone_raw(raw)) };
    assert_eq!(KArc::refcount(&a), 3);
    drop((b, a));
    assert_eq!(Arc::strong_count(&token), 2);
    let mut c = c;
    KArc::get_mut(&mut c).unwrap().value = 8;
    assert_eq!(c.value, 8);
    drop(c);
    assert_eq!((Arc::strong_count(&token), Node::cache().active()), (1, 0));
    drop(KArc::<Node>::try_uninit().unwrap());
    assert_eq!(Node::cache().active(), 0);
}

#[test]
fn rcu_types_wait_for_readers() {
    let _machine = machine();
    let token = Arc::new(());
    let a = KArc::new(Shared(token.clone())).unwrap();
    let raw = KArc::as_ptr(&a);
    let raw = NonNull::new(raw.cast_mut()).unwrap();
    // SAFETY: `a` holds the object; Shared is an rcu type.
    let b = unsafe { KArc::<Shared>::try_get_rcu(raw) }.unwrap();
    assert!(KArc::get_mut(&mut KArc::clone(&a)).is_none());
    drop(b);
    let guard = rcu::read_lock();
    drop(a);
    // A reader that still sees the object does not get it, but may look.
    // SAFETY: inside the read-side section the object is not freed.
    assert!(unsafe { KArc::<Shared>::try_get_rcu(raw) }.is_none());
    assert_eq!(Arc::strong_count(&token), 2);
    // SAFETY: as above.
    assert_eq!(Arc::strong_count(&unsafe { raw.as_ref() }.0), 2);
    drop(guard);
    rcu::barrier();
    assert_eq!(
        (Arc::strong_count(&token), Shared::cache().active()),
        (1, 0)
    );
}

#[test]
fn drop_rcu_defers_other_types_too() {
    let _machine = machine();
    let token = Arc::new(());
    let a = KArc::new(Node {
        value: 1,
        token: token.clone(),
    })
    .unwrap();
    let b = a.clone();
    KArc::drop_rcu(a);
    rcu::barrier();
    assert_eq!(Arc::strong_count(&token), 2);
    let guard = rcu::read_lock();
    KArc::drop_rcu(b);
    assert_eq!(Arc::strong_count(&token), 2);
    drop(guard);
    rcu::barrier();
    assert_eq!(Arc::strong_count(&token), 1);
}

#[test]
fn generic_objects_use_the_classes() {
    let _machine = machine();
    let a = KArc::new(Pair([1u8; 40], [2; 40])).unwrap();
    let b = KArc::new(Pair(1u128, 2)).unwrap();
    assert_eq!((a.0[39], a.1[39], b.0, b.1), (1, 2, 1, 2));
    assert!(Pair::<[u8; 40]>::cache().name().starts_with("kmalloc-"));
}

#[test]
fn boxes() {
    let _machine = machine();
    let token = Arc::new(());
    let mut b = KBox::new((5u32, token.clone())).unwrap();
    b.0 += 1;
    // SAFETY: from into_raw.
    let b = unsafe { KBox::from_raw(KBox::into_raw(b)) };
    assert_eq!(b.0, 6);
    assert_eq!(KBox::into_inner(b).0, 6);
    assert_eq!(Arc::strong_count(&token), 1);
    drop(KBox::new(()).unwrap());
    let large = KBox::<[u8; 20_000]>::try_uninit()
        .unwrap()
        .write([3; 20_000]);
    assert_eq!(large[19_999], 3);
    drop(large);
    drop(KBox::new(token.clone()).unwrap());
    assert_eq!(Arc::strong_count(&token), 1);
}

#[test]
fn threads_share_and_count() {
    let _machine = machine();
    let token = Arc::new(());
    let a = KArc::new(Node {
        value: 1,
        token: token.clone(),
    })
    .unwrap();
    std::thread::scope(|s| {
        for t in 0..4 {
            let a = a.clone();
            s.spawn(move || {
                arch::host::set_cpu(t);
                for _ in 0..2000 {
                    drop(a.clone());
                }
            });
        }
    });
    assert_eq!(KArc::refcount(&a), 1);
    drop(a);
    assert_eq!(Arc::strong_count(&token), 1);
}

const NR_LISTS: usize = 3;
const NR_ITEMS: usize = 8;

#[derive(Clone, Debug)]
enum Op {
    PushBack(usize, usize),
    PushFront(usize, usize),
    InsertBefore(usize, usize, usize),
    PopFront(usize),
    PopBack(usize),
    Remove(usize, usize),
    RemoveFirst(usize, u32),
    Retain(usize, u32),
    Append(usize, usize),
    Clear(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let (l, i) = (0..NR_LISTS, 0..NR_ITEMS);
    prop_oneof![
        4 => (l.clone(), i.clone()).prop_map(|(l, i)| Op::PushBack(l, i)),
        4 => (l.clone(), i.clone()).prop_map(|(l, i)| Op::PushFront(l, i)),
        3 => (l.clone(), i.clone(), i.clone()).prop_map(|(l, i, at)| Op::InsertBefore(l, i, at)),
        1 => l.clone().prop_map(Op::PopFront),
        1 => l.clone().prop_map(Op::PopBack),
        4 => (l.clone(), i.clone()).prop_map(|(l, i)| Op::Remove(l, i)),
        1 => (l.clone(), 0..4u32).prop_map(|(l, m)| Op::RemoveFirst(l, m)),
        1 => (l.clone(), 0..4u32).prop_map(|(l, m)| Op::Retain(l, m)),
        2 => (l.clone(), l.clone()).prop_map(|(a, b)| Op::Append(a, b)),
        1 => l.prop_map(Op::Clear),
    ]
}

struct Lists {
    items: Vec<KArc<Node>>,
    lists: Vec<List<Node, 1>>,
    model: Vec<Vec<u32>>,
}

impl Lists {
    fn is_linked(&self, i: usize) -> bool {
        self.model.iter().flatten().any(|&v| v == i as u32)
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::PushBack(l, i) => {
                let linked = self.is_linked(i);
                assert_eq!(
                    self.lists[l].push_back(self.items[i].clone()).is_err(),
                    linked
                );
                if !linked {
                    self.model[l].push(i as u32);
                }
            }
            Op::PushFront(l, i) => {
                let linked = self.is_linked(i);
                assert_eq!(
                    self.lists[l].push_front(self.items[i].clone()).is_err(),
                    linked
                );
                if !linked {
                    self.model[l].insert(0, i as u32);
                }
            }
            Op::InsertBefore(l, i, at) => {
                let place = self.model[l].iter().position(|&v| v == at as u32);
                let wanted = place.filter(|_| !self.is_linked(i));
                let (at, item) = (self.items[at].clone(), self.items[i].clone());
                let got = self.lists[l].insert_before(&at, item);
                assert_eq!(got.is_ok(), wanted.is_some());
                if let Some(place) = wanted {
                    self.model[l].insert(place, i as u32);
                }
            }
            Op::PopFront(l) => {
                let wanted = (!self.model[l].is_empty()).then(|| self.model[l].remove(0));
                assert_eq!(self.lists[l].pop_front().map(|n| n.value), wanted);
            }
            Op::PopBack(l) => {
                assert_eq!(
                    self.lists[l].pop_back().map(|n| n.value),
                    self.model[l].pop()
                );
            }
            Op::Remove(l, i) => {
                let place = self.model[l].iter().position(|&v| v == i as u32);
                let wanted = place.map(|p| self.model[l].remove(p));
                assert_eq!(
                    self.lists[l].remove(&self.items[i]).map(|n| n.value),
                    wanted
                );
            }
            Op::RemoveFirst(l, m) => {
                let place = self.model[l].iter().position(|v| v % 4 == m);
                let wanted = place.map(|p| self.model[l].remove(p));
                assert_eq!(
                    self.lists[l]
                        .remove_first(|n| n.value % 4 == m)
                        .map(|n| n.value),
                    wanted
                );
            }
            Op::Retain(l, m) => {
                self.lists[l].retain(|n| n.value % 4 != m);
                self.model[l].retain(|v| v % 4 != m);
            }
            Op::Append(a, b) if a != b => {
                let mut other = std::mem::take(&mut self.model[b]);
                self.model[a].append(&mut other);
                let mut other = std::mem::replace(&mut self.lists[b], List::new());
                self.lists[a].append(&mut other);
                assert!(other.is_empty());
                self.lists[b] = other;
            }
            Op::Append(..) => (),
            Op::Clear(l) => {
                self.lists[l] = List::new();
                self.model[l].clear();
            }
        }
    }

    fn check(&self) {
        for (list, model) in self.lists.iter().zip(&self.model) {
            list.check_invariants();
            assert!(list.iter().map(|n| n.value).eq(model.iter().copied()));
            assert_eq!(
                (list.len(), list.is_empty()),
                (model.len(), model.is_empty())
            );
            assert_eq!(list.front().map(|n| n.value), model.first().copied());
            assert_eq!(list.back().map(|n| n.value), model.last().copied());
            for item in &self.items {
                assert_eq!(list.contains(item), model.contains(&item.value));
            }
        }
        for (i, item) in self.items.iter().enumerate() {
            assert_eq!(KArc::refcount(item), 1 + self.is_linked(i) as u32);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn lists_are_vectors(ops in prop::collection::vec(op(), 1..100)) {
        let _machine = machine();
        let mut lists = Lists {
            items: (0..NR_ITEMS as u32).map(node).collect(),
            lists: (0..NR_LISTS).map(|_| List::new()).collect(),
            model: std::vec![Vec::new(); NR_LISTS],
        };
        let tokens: Vec<_> = lists.items.iter().map(|n| n.token.clone()).collect();
        for op in ops {
            lists.apply(op);
            lists.check();
        }
        drop(lists);
        prop_assert!(tokens.iter().all(|t| Arc::strong_count(t) == 1));
        prop_assert_eq!(Node::cache().active(), 0);
    }
}

#[test]
fn threads_fight_over_membership() {
    let _machine = machine();
    let items: Vec<_> = (0..16).map(node).collect();
    std::thread::scope(|s| {
        for t in 0..4usize {
            let items = &items;
            s.spawn(move || {
                arch::host::set_cpu(t);
                let mut mine = List::<Node, 0>::new();
                for round in 0..3000 {
                    let item = &items[(round * 5 + t * 3) % items.len()];
                    if mine.contains(item) {
                        assert!(KArc::ptr_eq(&mine.remove(item).unwrap(), item));
                    } else {
                        // Another thread's list may have it.
                        let _ = mine.push_back(item.clone());
                    }
                    if round % 100 == 0 {
                        mine.check_invariants();
                    }
                }
            });
        }
    });
    assert!(items.iter().all(|i| KArc::refcount(i) == 1));
}

/// What has been offered for rest.
struct Sleeper {
    value: AtomicUsize,
    /// Counts the living.
    _token: Arc<()>,
}
object!(impl[] Sleeper, links = 1, rcu, rest = Sleeper::at_rest);

static BEDS: RestPool<Sleeper> = RestPool::new();
const BEDS_MAX: u32 = 3;

impl Sleeper {
    fn at_rest(idle: Idle<Self>, section: &RcuGuard) {
        drop(RestPool::push(idle, |_| &BEDS, BEDS_MAX, section));
    }
}

/// Objects rest in order, as they were; a stale pointer finds the dead, then the next life; what is refused or
/// drained is freed after a grace period.
#[test]
fn objects_at_rest_live_again() {
    let _machine = machine();
    let token = Arc::new(());
    let sleeper = |value: usize| {
        KArc::new(Sleeper {
            value: AtomicUsize::new(value),
            _token: token.clone(),
        })
        .unwrap()
    };
    drop(sleeper(0));
    rcu::barrier();
    assert_eq!(Arc::strong_count(&token), 1, "closed: nothing rests");
    BEDS.open().unwrap();
    let all: Vec<_> = (1..=5).map(sleeper).collect();
    let raw = KArc::into_raw(all[0].clone());
    // SAFETY: from into_raw, once.
    drop(unsafe { KArc::from_raw(raw) });
    on(0, || drop(all));
    rcu::barrier();
    assert_eq!(
        (BEDS.len(), Arc::strong_count(&token)),
        (3, 4),
        "two found no bed"
    );
    on(1, || {
        assert!(BEDS.pop(0, &rcu::read_lock()).is_none(), "another CPU's")
    });
    on(0, || {
        let here = rcu::read_lock();
        assert!(BEDS.pop(3, &here).is_none(), "at least three stay");
        // SAFETY: memory that only a grace period frees, and it lies in the pool.
        let found = unsafe { KArc::<Sleeper>::try_get_rcu(raw) };
        assert!(found.is_none(), "dead");
        let idle = BEDS.pop(2, &here).unwrap();
        assert_eq!(idle.value.load(Relaxed), 1, "the oldest first");
        let again = idle.revive();
        assert_eq!(
            (KArc::refcount(&again), KArc::as_ptr(&again)),
            (1, raw.as_ptr().cast_const())
        );
        // SAFETY: as above.
        let other = unsafe { KArc::try_get_rcu(raw) }.expect("another life");
        let mut list = List::<Sleeper, 0>::new();
        assert!(list.push_back(other).is_ok(), "links are as new");
        drop(list);
        KArc::drop_beside(again.clone(), &again);
        drop(again);
        let order = core::iter::from_fn(|| BEDS.pop(0, &here));
        let order: Vec<_> = order.map(|idle| idle.value.load(Relaxed)).collect();
        assert_eq!(order, [2, 3, 1]);
    });
    rcu::barrier();
    assert_eq!(Arc::strong_count(&token), 1);
    let last = sleeper(9);
    drop(last.clone());
    on(0, || drop(last));
    BEDS.close();
    drop(sleeper(10));
    rcu::barrier();
    assert_eq!(Arc::strong_count(&token), 2, "one rests, closed to others");
    BEDS.drain(drop);
    rcu::barrier();
    assert_eq!((BEDS.len(), Arc::strong_count(&token)), (0, 1));
}
