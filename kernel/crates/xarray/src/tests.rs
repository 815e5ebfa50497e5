//! The array against a `BTreeMap`, numbers against a set, readers against a writer.

use crate::*;
use ksync::{lock_class, rcu};
use proptest::prelude::*;
use slab::KArc;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::vec::Vec;

/// Tests that count nodes run alone.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    setup();
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

/// Indices near each other, near powers of 64, and near the ends.
fn index() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0u64..200,
        2 => (0u32..64, 0u64..4).prop_map(|(bit, d)| (1u64 << bit).wrapping_add(d).wrapping_sub(2)),
        1 => (0u64..70).prop_map(|d| u64::MAX - d),
        1 => 4000u64..4200,
    ]
}

#[derive(Debug, Clone)]
enum Op {
    Store(u64, usize),
    Erase(u64),
    ErasePresent(usize),
    Load(u64),
    Next(u64, u64),
    Alloc(u64, u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (index(), 0usize..1000).prop_map(|(i, v)| Op::Store(i, v)),
        1 => index().prop_map(Op::Erase),
        4 => any::<usize>().prop_map(Op::ErasePresent),
        2 => index().prop_map(Op::Load),
        2 => (index(), index()).prop_map(|(a, b)| Op::Next(a, b)),
        4 => (index(), index()).prop_map(|(a, b)| Op::Alloc(a, b)),
    ]
}

/// What the naive model says is the first free index in [start, max].
fn first_free(model: &BTreeMap<u64, usize>, start: u64, max: u64) -> Option<u64> {
    let mut at = start;
    if start > max {
        return None;
    }
    for (&taken, _) in model.range(start..=max) {
        if taken != at {
            break;
        }
        at = at.checked_add(1)?;
    }
    (at <= max).then_some(at)
}

fn apply(array: &mut XArray<Value>, model: &mut BTreeMap<u64, usize>, op: Op) {
    match op {
        Op::Store(i, v) => {
            assert_eq!(array.store(i, Value(v)), Ok(model.insert(i, v).map(Value)));
        }
        Op::Erase(i) => assert_eq!(array.erase(i), model.remove(&i).map(Value)),
        Op::ErasePresent(pick) if !model.is_empty() => {
            let i = *model.keys().nth(pick % model.len()).unwrap();
            assert_eq!(array.erase(i), model.remove(&i).map(Value));
        }
        Op::Load(i) => assert_eq!(
            array.load(&rcu::read_lock(), i),
            model.get(&i).copied().map(Value)
        ),
        Op::Next(a, b) => {
            let want = if a <= b {
                model.range(a..=b).next()
            } else {
                None
            };
            let got = array.next(&rcu::read_lock(), a, b);
            assert_eq!(got, want.map(|(&i, &v)| (i, Value(v))));
            let mut seen = Vec::new();
            array.for_each(&rcu::read_lock(), a, b, |i, Value(v)| seen.push((i, v)));
            let want = if a <= b {
                model.range(a..=b).map(|(&i, &v)| (i, v)).collect()
            } else {
                Vec::new()
            };
            assert_eq!(seen, want);
        }
        Op::Alloc(a, b) => {
            let mut spare = Preload::new();
            let got = loop {
                match array.exclusive().alloc(a, b, Value(7), &mut spare) {
                    Err(IdrError::NeedNodes(n)) => {
                        assert!(n > spare.len());
                        spare.fill(n).unwrap();
                    }
                    other => break other.ok(),
                }
            };
            assert_eq!(got, first_free(model, a, b));
            if let Some(i) = got {
                model.insert(i, 7);
            }
            assert_eq!(spare.len(), 0, "asked for more nodes than needed");
        }
        Op::ErasePresent(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn array_is_a_map(ops in prop::collection::vec(op(), 0..120)) {
        let _alone = alone();
        let before = nr_nodes();
        let (mut array, mut model) = (XArray::new(), BTreeMap::new());
        for op in ops {
            apply(&mut array, &mut model, op);
            let (words, nodes) = array.check_invariants();
            prop_assert_eq!(words, model.len());
            prop_assert_eq!(nr_nodes() - before, nodes);
        }
        let mut drained = BTreeMap::new();
        array.drain(|i, Value(v)| { drained.insert(i, v); });
        prop_assert_eq!(drained, model);
        prop_assert_eq!(nr_nodes(), before);
    }

    /// Dense runs make full nodes, whose marks must travel up and down again.
    #[test]
    fn dense_numbers(holes in prop::collection::vec(0u64..9000, 0..40), start in 0u64..9000) {
        let _alone = alone();
        let mut array = XArray::new();
        let mut model = BTreeMap::new();
        for i in 0..8500 {
            array.store(i, Value(i as usize)).unwrap();
            model.insert(i, i as usize);
        }
        array.check_invariants();
        for hole in holes {
            prop_assert_eq!(array.erase(hole), model.remove(&hole).map(Value));
            array.check_invariants();
            apply(&mut array, &mut model, Op::Alloc(start, 8600));
            apply(&mut array, &mut model, Op::Alloc(start, 8400));
        }
        array.check_invariants();
    }
}

struct Thing(u64);
slab::object!(Thing, "test_thing", links = 0, rcu);

static LOCK: IdrLock = IdrLock::new(lock_class!("test_idr"));

fn reserve<'a>(idr: &'a Idr<Thing>, range: AllocRange) -> Result<Reserved<'a, Thing>, IdrError> {
    let mut spare = Preload::new();
    loop {
        let got = idr.reserve_cyclic(&mut LOCK.lock(), range, &mut spare);
        match got {
            Err(IdrError::NeedNodes(n)) => spare.fill(n).unwrap(),
            got => return got,
        }
    }
}

#[test]
fn reserved_numbers_are_taken_but_not_seen() {
    let _alone = alone();
    let idr = Idr::new(&LOCK);
    let range = AllocRange { min: 1, max: 3 };
    let one = reserve(&idr, range).unwrap();
    assert_eq!(one.id(), 1);
    assert!(idr.get(1).is_none() && idr.next(0).is_none());
    assert!(
        idr.remove(&mut LOCK.lock(), 1).is_none(),
        "a reserved number is its holder's"
    );
    let mut spare = Preload::new();
    assert_eq!(
        idr.reserve_at(&mut LOCK.lock(), 1, &mut spare).err(),
        Some(IdrError::Exists)
    );
    one.publish(&mut LOCK.lock(), KArc::new(Thing(10)).unwrap());
    assert_eq!(idr.get(1).unwrap().0, 10);
    let two = reserve(&idr, range).unwrap();
    let three = reserve(&idr, range).unwrap();
    assert_eq!((two.id(), three.id()), (2, 3));
    assert_eq!(reserve(&idr, range).err(), Some(IdrError::Full));
    two.cancel(&mut LOCK.lock());
    let again = reserve(&idr, range).unwrap();
    assert_eq!(again.id(), 2, "wraps to the only free one");
    again.cancel(&mut LOCK.lock());
    three.cancel(&mut LOCK.lock());
    assert_eq!(idr.remove(&mut LOCK.lock(), 1).unwrap().0, 10);
    idr.let_go(&mut LOCK.lock());
    assert!(idr.is_empty());
}

/// INV-XA-4: nodes outlive the sections of readers who may be in them.
#[test]
fn nodes_wait_for_readers() {
    let _alone = alone();
    rcu::barrier();
    let before = nr_nodes();
    let idr = Idr::new(&LOCK);
    for id in [1, 70, 5000] {
        let mut spare = Preload::new();
        spare.fill(8).unwrap();
        let mut guard = LOCK.lock();
        let r = idr.reserve_at(&mut guard, id, &mut spare).unwrap();
        r.publish(&mut guard, KArc::new(Thing(u64::from(id))).unwrap());
    }
    let full = nr_nodes();
    assert_eq!(full - before, 6, "three bottoms, two middles, a top");
    let reader = rcu::read_lock();
    let seen = idr.peek(&reader, 5000).unwrap();
    for id in [1, 70, 5000] {
        drop(idr.remove(&mut LOCK.lock(), id));
    }
    assert!(idr.peek(&reader, 5000).is_none());
    assert_eq!(seen.0, 5000);
    assert_eq!(nr_nodes(), full);
    drop(reader);
    rcu::barrier();
    assert_eq!(nr_nodes(), before);
}

#[test]
fn the_node_at_the_cursor_is_kept() {
    let _alone = alone();
    let idr = Idr::new(&LOCK);
    let range = AllocRange { min: 1, max: 1000 };
    for nr in 1..=300 {
        let reserved = reserve(&idr, range).unwrap();
        assert_eq!(reserved.id(), nr);
        reserved.publish(&mut LOCK.lock(), KArc::new(Thing(u64::from(nr))).unwrap());
        drop(idr.remove(&mut LOCK.lock(), nr));
        // The one that is kept, and what leads to it.
        let (taken, nodes) = idr.check_invariants(&mut LOCK.lock());
        assert!(taken == 0 && nodes <= 2, "{nodes} nodes");
        assert!(idr.next(0).is_none() && idr.get(nr).is_none());
    }
    idr.let_go(&mut LOCK.lock());
    assert_eq!(idr.check_invariants(&mut LOCK.lock()), (0, 0));
    // The cursor goes on where it was, past what somebody chose.
    let mut spare = Preload::new();
    spare.fill(4).unwrap();
    let chosen = idr.reserve_at(&mut LOCK.lock(), 302, &mut spare).unwrap();
    for want in [301, 303, 304] {
        let got = reserve(&idr, range).unwrap();
        assert_eq!(got.id(), want);
        got.cancel(&mut LOCK.lock());
    }
    chosen.cancel(&mut LOCK.lock());
    idr.set_cursor(&mut LOCK.lock(), 0);
    assert_eq!(idr.check_invariants(&mut LOCK.lock()), (0, 0));
    rcu::barrier();
}

#[test]
#[should_panic(expected = "guard of another lock")]
fn the_guard_must_be_the_maps_own() {
    setup();
    static OTHER: IdrLock = IdrLock::new(lock_class!("test_idr_other"));
    let idr = Idr::<Thing>::new(&LOCK);
    idr.set_cursor(&mut OTHER.lock(), 5);
}

/// One writer, two readers: a reader sees a number's object or nothing, never another's, and never
/// freed memory (the value is poisoned on drop).
#[test]
fn readers_beside_a_writer() {
    struct Checked(u64);
    slab::object!(Checked, "test_checked", links = 0, rcu);
    impl Drop for Checked {
        fn drop(&mut self) {
            self.0 = u64::MAX;
        }
    }
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    let _alone = alone();
    let idr = Idr::<Checked>::new(&LOCK);
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        for cpu in 1..3 {
            let (idr, stop) = (&idr, &stop);
            s.spawn(move || {
                ksync::arch::host::set_cpu(cpu);
                let mut x = 1u32;
                while !stop.load(Relaxed) {
                    x = x.wrapping_mul(1664525).wrapping_add(1013904223);
                    let id = x >> 18;
                    if let Some(c) = idr.get(id) {
                        assert_eq!(c.0, u64::from(id));
                    }
                    let guard = rcu::read_lock();
                    if let Some(c) = idr.peek(&guard, id) {
                        assert_eq!(c.0, u64::from(id));
                    }
                    drop(guard);
                    if let Some((id, c)) = idr.next(id) {
                        assert_eq!(c.0, u64::from(id));
                    }
                }
            });
        }
        ksync::arch::host::set_cpu(0);
        for round in 0..3 {
            let ids: Vec<u32> = (0..400u32).map(|i| i * (round * 17 + 1) % 16384).collect();
            for &id in &ids {
                let mut spare = Preload::new();
                spare.fill(8).unwrap();
                let mut guard = LOCK.lock();
                if let Ok(r) = idr.reserve_at(&mut guard, id, &mut spare) {
                    let object = KArc::new(Checked(u64::from(id))).unwrap();
                    r.publish(&mut guard, object);
                }
            }
            for &id in &ids {
                let gone = idr.remove(&mut LOCK.lock(), id);
                drop(gone);
            }
            rcu::process_callbacks();
        }
        stop.store(true, Relaxed);
    });
    idr.let_go(&mut LOCK.lock());
    assert!(idr.is_empty());
}

/// Makes memory work on the host.
fn setup() {
    page_alloc::host::init(&[8192, 8192]);
}

// --- LeaseMap ----------------------------------------------------------------------------------

use std::sync::atomic::{AtomicBool, Ordering};

static PLANTED: AtomicBool = AtomicBool::new(false);

/// Whether a test has planted its bug: a number is taken by a load and a store.
pub(crate) fn is_planted() -> bool {
    PLANTED.load(Ordering::Relaxed)
}

const RANGE: LeaseRange = LeaseRange {
    limit: 200,
    reserved: 10,
};

fn claim<'m>(map: &'m LeaseMap<Thing>, range: LeaseRange) -> Result<Claim<'m, Thing>, SlowError> {
    let here = rcu::read_lock();
    if let Some(claim) = map.claim(range.limit, &here) {
        return Ok(claim);
    }
    drop(here);
    map.claim_slow(range)
}

/// Random steps on four CPUs against a set; at the end everything goes.
#[test]
fn leases_against_a_set() {
    let _alone = alone();
    let step = (0usize..4, 0u32..8, 0u32..220);
    proptest!(ProptestConfig::with_cases(64), |(steps in prop::collection::vec(step, 0..600), split: bool)| {
        let map = LeaseMap::<Thing>::new(lock_class!("test_lease"));
        if split {
            map.split().unwrap();
        }
        let mut model: BTreeMap<u32, (KArc<Thing>, Seat<Thing>)> = BTreeMap::new();
        // Objects that are away, with seats that others may have taken meanwhile.
        let mut away: Vec<(KArc<Thing>, Seat<Thing>)> = Vec::new();
        for (cpu, what, nr) in steps {
            ksync::arch::host::run_on(cpu, || match what {
                0..4 => match claim(&map, RANGE) {
                    Ok(claim) => {
                        let id = claim.id();
                        assert!((1..RANGE.limit).contains(&id) && !model.contains_key(&id), "INV-LEASE-1");
                        assert!(map.get(id).is_none(), "not before it is published");
                        let (thing, seat) = (KArc::new(Thing(u64::from(id))).unwrap(), Seat::none());
                        claim.publish(thing.clone(), &seat);
                        model.insert(id, (thing, seat));
                    }
                    Err(e) => {
                        assert_eq!(e, SlowError::Full);
                        assert!((RANGE.reserved..RANGE.limit).all(|id| model.contains_key(&id)));
                    }
                },
                4 => {
                    if away.is_empty() {
                        return;
                    }
                    let (thing, seat) = away.swap_remove(nr as usize % away.len());
                    let (id, here) = (thing.0 as u32, rcu::read_lock());
                    if !seat.take(&here) {
                        assert!(model.contains_key(&id), "INV-LEASE-1");
                    } else if nr % 3 == 0 {
                        seat.cancel(&here);
                    } else {
                        assert!(map.get(id).is_none(), "not before it is shown");
                        seat.show(thing.clone(), &here);
                        assert!(model.insert(id, (thing, seat)).is_none(), "INV-LEASE-1");
                    }
                }
                5 => match map.claim_at(nr) {
                    Ok(claim) => {
                        assert!(!model.contains_key(&nr));
                        claim.cancel();
                    }
                    Err(e) => assert!(e == SlowError::Taken && model.contains_key(&nr)),
                },
                _ => {
                    let next = model.range(nr..).next().map(|(&id, _)| id);
                    assert_eq!(map.next(nr).map(|(id, _)| id), next);
                    if let Some((thing, seat)) = next.and_then(|id| model.remove(&id)) {
                        let here = rcu::read_lock();
                        assert!(seat.leave(&thing, &here).is_some());
                        assert!(seat.leave(&thing, &here).is_none());
                        away.push((thing, seat));
                    }
                }
            });
            let (taken, _, seats) = map.check_invariants();
            assert_eq!((taken, seats), (model.len(), away.len()));
        }
        away.clear();
        model.values().for_each(|(_, seat)| seat.give_up());
        drop(map);
        for (thing, _) in model.values() {
            assert_eq!(KArc::refcount(thing), 1);
        }
    });
    rcu::barrier();
}

/// Three CPUs claim and give back in every order that a seed finds, in a map so small that leases overlap.
fn overlapping_leases() -> Vec<ksync::arch::explore::Body> {
    use std::sync::Arc;
    let map = Arc::new(LeaseMap::<Thing>::new(lock_class!("test_lease")));
    map.split().unwrap();
    let taken: Arc<Mutex<Vec<u32>>> = Arc::default();
    let body = |cpu: usize| -> ksync::arch::explore::Body {
        let (map, taken) = (map.clone(), taken.clone());
        std::boxed::Box::new(move || {
            ksync::arch::host::set_cpu(cpu);
            let range = LeaseRange {
                limit: 8,
                reserved: 1,
            };
            for _ in 0..3 {
                let Ok(claim) = claim(&map, range) else {
                    continue;
                };
                let id = claim.id();
                {
                    let mut taken = taken.lock().unwrap();
                    assert!(!taken.contains(&id), "INV-LEASE-1");
                    taken.push(id);
                }
                let (thing, seat) = (KArc::new(Thing(u64::from(id))).unwrap(), Seat::none());
                claim.publish(thing.clone(), &seat);
                for round in 0..3 {
                    ksync::arch::interleave();
                    taken.lock().unwrap().retain(|&other| other != id);
                    let here = rcu::read_lock();
                    assert!(seat.leave(&thing, &here).is_some());
                    if round == 2 || !seat.take(&here) {
                        break;
                    }
                    let mut taken = taken.lock().unwrap();
                    assert!(!taken.contains(&id), "INV-LEASE-1");
                    taken.push(id);
                    drop(taken);
                    seat.show(thing.clone(), &here);
                }
            }
        })
    };
    (1..4).map(body).collect()
}

#[test]
fn explored_claims() {
    let _alone = alone();
    ksync::arch::explore::explore(0..200, overlapping_leases);
    rcu::barrier();
}

#[test]
fn a_claim_that_is_a_load_and_a_store_is_caught() {
    let _alone = alone();
    PLANTED.store(true, Ordering::Relaxed);
    let found = ksync::arch::explore::find_failure(0..200, overlapping_leases);
    PLANTED.store(false, Ordering::Relaxed);
    assert!(found.is_some(), "the lost update went unnoticed");
}

// --- bitmap and hash ---------------------------------------------------------------------------

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bitmap_against_a_set(steps in prop::collection::vec((0u32..4, 0u32..256, 0u32..256), 0..300)) {
        setup();
        let bits = PagedBitmap::<4, 1>::new().unwrap();
        let mut model = std::collections::BTreeSet::new();
        for (what, a, b) in steps {
            match what {
                0 => {
                    let want = (a..b).find(|nr| !model.contains(nr));
                    assert_eq!(bits.take_from(a, b), Ok(want));
                    model.extend(want);
                }
                1 => assert_eq!(bits.take(a), Ok(model.insert(a))),
                2 if model.remove(&a) => bits.put(a),
                _ => assert_eq!(bits.next_set(a), model.range(a..).next().copied()),
            }
            assert_eq!(bits.check_invariants().0, model.len());
        }
    }
}

#[test]
fn hash_chains() {
    setup();
    let table = HashTable::<Thing>::new(lock_class!("test_hash")).unwrap();
    let things: Vec<_> = (0..5000u64).map(|n| KArc::new(Thing(n)).unwrap()).collect();
    let chains: Vec<_> = things.iter().map(|_| Chain::new(2).unwrap()).collect();
    for (thing, chain) in things.iter().zip(&chains) {
        let mut guard = table.lock();
        guard.insert(chain, 0, 64, thing.0 as u32, thing.clone());
        guard.insert(chain, 1, 128, 7 * thing.0 as u32, thing.clone());
    }
    for (at, thing) in things.iter().enumerate() {
        assert!(
            table
                .find(64, at as u32)
                .is_some_and(|t| KArc::ptr_eq(&t, thing))
        );
        assert!(
            table
                .find(128, 7 * at as u32)
                .is_some_and(|t| KArc::ptr_eq(&t, thing))
        );
    }
    assert!(table.find(64, 5000).is_none() && table.find(128, 1).is_none());
    for chain in &chains[..2500] {
        let mut guard = table.lock();
        assert!(guard.remove(chain, 0).is_some());
        assert!(guard.remove(chain, 0).is_none());
        drop(guard.remove(chain, 1));
    }
    assert!(table.find(64, 2499).is_none() && table.find(64, 2500).is_some());
    drop(table);
    assert!(things.iter().all(|thing| KArc::refcount(thing) == 1));
}
