//! Random histories against the model, every failing allocation, users, stopping, threads.

use crate::model::{Model, Order};
use crate::*;
use ksync::rcu;
use page_alloc::fault_inject;
use proptest::prelude::*;
use slab::KArc;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::vec::Vec;

pub(crate) struct Task(u32);
slab::object!(Task, "test_task", links = 2);

pub(crate) type Ns = KArc<PidNamespace<Task>>;
pub(crate) type P = KArc<Pid<Task>>;

/// A test has planted its bug: a level is shown before the others have numbers.
pub(crate) static PLANTED: AtomicBool = AtomicBool::new(false);

/// Another: a resting pid is woken in a namespace that has stopped.
pub(crate) static PLANTED_WAKE: AtomicBool = AtomicBool::new(false);

pub(crate) fn is_planted() -> bool {
    PLANTED.load(Relaxed)
}

/// Tests share CPUs, and one plants a bug: one at a time.
pub(crate) fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

/// `pid_max` of the root depends on the number of CPUs: all tests boot the same machine.
pub(crate) fn boot() {
    page_alloc::host::init(&[8192, 8192]);
}

fn order_of(kind: PidMapKind) -> Order {
    match kind {
        PidMapKind::Sharded => Order::Any,
        _ => Order::Cyclic,
    }
}

pub(crate) fn task(n: u32) -> KArc<Task> {
    KArc::new(Task(n)).unwrap()
}

/// The pid's numbers, leaf first.
pub(crate) fn numbers(pid: &Pid<Task>) -> Vec<u32> {
    (0..=pid.level())
        .rev()
        .map(|level| pid.nr_at(level))
        .collect()
}

/// A root with pid 1 and a child reaper.
pub(crate) fn root_with_init(kind: PidMapKind) -> (Ns, P) {
    boot();
    let ns = PidNamespace::new_root(kind).unwrap();
    let init = alloc_pid(&ns).unwrap();
    ns.set_child_reaper(Some(task(1)));
    (ns, init)
}

#[derive(Debug, Clone)]
enum Op {
    /// A namespace below one of the existing.
    Nest(usize),
    Alloc(usize),
    /// The operations that follow run on another CPU.
    Cpu(usize),
    /// Where, what numbers, and the level at which the caller lacks the capability.
    SetTid(usize, Vec<i32>, u32),
    Free(usize),
    /// Its first task exists from now on.
    Reaper(usize),
    /// Its init dies.
    Stop(usize),
    Max(usize, u32),
    Find(usize, u32),
    List(usize, u32),
}

fn op() -> impl Strategy<Value = Op> {
    let tid = prop_oneof![8 => 1i32..20, 2 => 55i32..80, 1 => -2i32..1, 1 => Just(i32::MAX)];
    prop_oneof![
        2 => any::<usize>().prop_map(Op::Nest),
        16 => any::<usize>().prop_map(Op::Alloc),
        2 => (0usize..4).prop_map(Op::Cpu),
        4 => (any::<usize>(), prop::collection::vec(tid, 0..4), 0u32..12)
            .prop_map(|(ns, tids, level)| Op::SetTid(ns, tids, level)),
        10 => any::<usize>().prop_map(Op::Free),
        5 => any::<usize>().prop_map(Op::Reaper),
        1 => any::<usize>().prop_map(Op::Stop),
        1 => (any::<usize>(), 0u32..40).prop_map(|(ns, max)| Op::Max(ns, max)),
        2 => (any::<usize>(), 0u32..80).prop_map(|(ns, nr)| Op::Find(ns, nr)),
        2 => (any::<usize>(), 0u32..80).prop_map(|(ns, nr)| Op::List(ns, nr)),
    ]
}

/// A tree of namespaces and its model, indices in step.
struct Pair {
    model: Model,
    ns: Vec<Ns>,
    /// None: freed and let go, so that it may rest.
    pids: Vec<Option<P>>,
}

impl Pair {
    fn new(kind: PidMapKind) -> Self {
        boot();
        let root = PidNamespace::new_root(kind).unwrap();
        Pair {
            model: Model::new(order_of(kind), root.pid_max()),
            ns: std::vec![root],
            pids: Vec::new(),
        }
    }

    fn alloc(&mut self, ns: usize, tids: &[i32], incapable: u32) {
        let got = if tids.is_empty() {
            alloc_pid(&self.ns[ns])
        } else {
            alloc_pid_with(&self.ns[ns], tids, |ns| ns.level() != incapable)
        };
        let seen = got.as_ref().map(|pid| numbers(pid)).map_err(|e| *e);
        self.model
            .alloc(ns, tids, |level| level != incapable, &seen);
        if let Ok(pid) = got {
            self.pids.push(Some(pid));
        }
    }

    fn apply(&mut self, op: Op) {
        let n = self.ns.len();
        match op {
            Op::Nest(at) => {
                let parent = at % n;
                match PidNamespace::new_child(&self.ns[parent]) {
                    Ok(ns) => {
                        assert!(self.model.new_child(parent));
                        self.ns.push(ns);
                    }
                    Err(e) => {
                        assert_eq!(e, NsError::TooDeep);
                        assert!(!self.model.new_child(parent));
                    }
                }
            }
            Op::Cpu(cpu) => ksync::arch::host::set_cpu(cpu),
            Op::Alloc(ns) => self.alloc(ns % n, &[], u32::MAX),
            Op::SetTid(ns, tids, level) => self.alloc(ns % n, &tids, level),
            Op::Free(pick) => {
                let alive: Vec<usize> = (0..self.pids.len())
                    .filter(|&i| self.model.pids[i].alive)
                    .collect();
                if !alive.is_empty() {
                    let pid = alive[pick % alive.len()];
                    self.model.free(pid);
                    let object = self.pids[pid].as_ref().unwrap();
                    free_pid(object);
                    // The second time is free of effects.
                    free_pid(object);
                    if pick % 4 > 0 {
                        self.pids[pid] = None;
                    }
                }
            }
            Op::Reaper(ns) => {
                let _ = self.ns[ns % n].set_child_reaper(Some(task(1)));
                self.model.namespaces[ns % n].has_reaper = true;
            }
            Op::Stop(ns) => {
                self.ns[ns % n].disable_allocation();
                ksync::arch::host::set_cpu(0);
                self.model.namespaces[ns % n].adding = false;
            }
            Op::Max(ns, max) => {
                if self.ns[ns % n].set_pid_max(max).is_ok() {
                    self.model.namespaces[ns % n].pid_max = max;
                }
            }
            Op::Find(ns, nr) => {
                let want = self.model.namespaces[ns % n].taken.get(&nr);
                let got = find_pid_ns(nr, &self.ns[ns % n]);
                self.same(got, want.copied());
            }
            Op::List(ns, from) => {
                let want = self.model.namespaces[ns % n].taken.range(from..).next();
                let got = find_ge_pid(from, &self.ns[ns % n]);
                assert_eq!(got.as_ref().map(|(nr, _)| *nr), want.map(|(&nr, _)| nr));
                self.same(got.map(|(_, pid)| pid), want.map(|(_, &pid)| pid));
            }
        }
    }

    fn same(&self, got: Option<P>, want: Option<usize>) {
        match (got, want) {
            (Some(got), Some(want)) => {
                assert!(KArc::ptr_eq(&got, self.pids[want].as_ref().unwrap()));
            }
            (None, None) => {}
            (got, want) => panic!("found {}, the model {want:?}", got.is_some()),
        }
    }

    fn check(&self) {
        for (i, ns) in self.ns.iter().enumerate() {
            let model = &self.model.namespaces[i];
            assert_eq!(ns.nr_pids() as usize, model.taken.len(), "INV-PID-4");
            assert_eq!((ns.is_adding(), ns.level()), (model.adding, model.level));
            ns.map().check_invariants(ns);
        }
        for (pid, model) in self.pids.iter().zip(&self.model.pids) {
            let Some(pid) = pid else { continue };
            assert_eq!(pid.is_freed(), !model.alive);
            assert_eq!(numbers(pid), model.numbers);
            let chain = self.model.chain(model.ns);
            for (i, ns) in self.ns.iter().enumerate() {
                let want = chain
                    .iter()
                    .position(|&c| c == i)
                    .map_or(0, |at| model.numbers[at]);
                assert_eq!(pid_nr_ns(pid, ns), want);
            }
        }
    }

    /// Everything goes; nothing may keep a namespace.
    fn finish(self) {
        for pid in self.pids.into_iter().flatten() {
            free_pid(&pid);
        }
        for ns in &self.ns {
            let _ = ns.set_child_reaper(None);
            // Maps may keep spare references to a namespace that is open.
            ns.disable_allocation();
            assert_eq!(ns.nr_pids(), 0);
            ns.map().check_invariants(ns);
        }
        rcu::barrier();
        let mut ns = self.ns;
        while let Some(leaf) = ns.pop() {
            assert_eq!(KArc::refcount(&leaf), 1, "somebody kept a namespace");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn histories(ops in prop::collection::vec(op(), 0..200)) {
        let _alone = alone();
        for &kind in PidMapKind::ALL {
            let mut pair = Pair::new(kind);
            for op in &ops {
                pair.apply(op.clone());
            }
            pair.check();
            pair.finish();
        }
    }
}

#[test]
fn every_kind_is_found_by_its_name() {
    struct Name;
    impl MapVisitor<Task> for Name {
        type Out = &'static str;
        fn visit<M: PidMap<Task>>(self) -> &'static str {
            M::NAME
        }
    }
    for &kind in PidMapKind::ALL {
        assert_eq!(PidMapKind::from_name(kind.name()), Some(kind));
        assert_eq!(kind.visit(Name), kind.name());
    }
    assert_eq!(PidMapKind::from_name("no such map"), None);
}

fn init_can_be_tried_again(kind: PidMapKind) {
    boot();
    let ns = PidNamespace::<Task>::new_root(kind).unwrap();
    for _ in 0..3 {
        let init = alloc_pid(&ns).unwrap();
        assert!(init.is_child_reaper());
        assert_eq!(
            alloc_pid(&ns).err(),
            Some(PidError::Invalid),
            "2 without a reaper"
        );
        free_pid(&init);
    }
}

fn numbers_wrap_behind_the_reserved_ones(kind: PidMapKind) {
    let (ns, _init) = root_with_init(kind);
    let max = ns.pid_max();
    let mut last = 1;
    // References: so that no map has them again before their turn.
    let mut freed = Vec::new();
    for _ in 2..max {
        let pid = alloc_pid(&ns).unwrap();
        assert_eq!(pid.nr(), last + 1);
        last = pid.nr();
        if last % 2 == 0 {
            free_pid(&pid);
            freed.push(pid);
        }
    }
    let next = alloc_pid(&ns).unwrap();
    assert_eq!(next.nr(), RESERVED_PIDS, "2 is free too, but reserved");
}

fn the_cursor_must_be_past_the_reserved_numbers(kind: PidMapKind) {
    let (ns, _init) = root_with_init(kind);
    for nr in RESERVED_PIDS..ns.pid_max() {
        alloc_pid_with(&ns, &[nr as i32], |_| true).unwrap();
    }
    let low: Vec<P> = (2..RESERVED_PIDS)
        .map(|_| alloc_pid(&ns).unwrap())
        .collect();
    assert_eq!(
        low.last().unwrap().nr(),
        RESERVED_PIDS - 1,
        "chosen tids leave the cursor"
    );
    free_pid(&low[0]);
    assert_eq!(
        alloc_pid(&ns).unwrap().nr(),
        low[0].nr(),
        "the cursor is at, not past, the limit"
    );
    assert_eq!(alloc_pid(&ns).err(), Some(PidError::Exhausted));
}

fn the_last_namespace_is_32_deep(kind: PidMapKind) {
    let mut pair = Pair::new(kind);
    for level in 0..MAX_PID_NS_LEVEL as usize {
        pair.apply(Op::Nest(level));
        assert_eq!(pair.ns.len(), level + 2);
    }
    let deepest = pair.ns.len() - 1;
    assert_eq!(
        PidNamespace::new_child(&pair.ns[deepest]).err(),
        Some(NsError::TooDeep)
    );
    for ns in 0..pair.ns.len() {
        pair.apply(Op::Alloc(ns));
        pair.apply(Op::Reaper(ns));
    }
    pair.apply(Op::Alloc(deepest));
    assert_eq!(
        pair.pids.last().unwrap().as_ref().unwrap().level(),
        MAX_PID_NS_LEVEL
    );
    pair.check();
    pair.finish();
}

/// Each allocation of an `alloc_pid` fails in turn, at depths with and without a box for numbers:
/// ENOMEM or success, and counts as before.
fn every_allocation_may_fail(kind: PidMapKind) {
    for depth in [0usize, 1, 3, 4, 7] {
        let mut failed = 0;
        for nth in 1u32.. {
            let mut pair = Pair::new(kind);
            for level in 0..depth {
                pair.apply(Op::Nest(level));
            }
            for ns in 0..=depth {
                pair.apply(Op::Reaper(ns));
            }
            // A far number needs several nodes at once.
            let tids: &[i32] = if nth % 2 == 0 { &[50] } else { &[] };
            assert!(fault_inject::set_fail_nth(nth.div_ceil(2)));
            let got = alloc_pid_with(&pair.ns[depth], tids, |_| true);
            let unused = fault_inject::fail_nth();
            fault_inject::set_fail_nth(0);
            match &got {
                Ok(pid) => {
                    assert!(pair.ns.iter().all(|ns| ns.nr_pids() == 1));
                    free_pid(pid);
                }
                Err(e) => {
                    failed += 1;
                    assert_eq!(*e, PidError::NoMemory);
                }
            }
            for ns in &pair.ns {
                assert_eq!(ns.nr_pids(), 0);
                ns.map().check_invariants(ns);
            }
            let done = unused != 0;
            drop(got);
            pair.finish();
            if done {
                break;
            }
        }
        assert!(failed > 0, "no allocation failed at depth {depth}");
    }
}

fn the_last_user_frees(kind: PidMapKind) {
    let (ns, _init) = root_with_init(kind);
    let pid = alloc_pid(&ns).unwrap();
    let (a, b) = (task(1), task(2));
    let [place, other] = [const { Place::new() }; 2];
    assert_eq!(pid.attach(PidType::Pid, a.clone()), Ok(()));
    assert_eq!(pid.attach(PidType::Pid, b.clone()), Err(AttachError::Busy));
    assert_eq!(pid.attach(PidType::Tgid, a.clone()), Ok(()));
    assert_eq!(pid.join(PidType::Pgid, a.clone(), &place), Ok(()));
    assert_eq!(pid.join(PidType::Pgid, b.clone(), &other), Ok(()));
    assert_eq!(
        pid.join(PidType::Pgid, b.clone(), &other),
        Err(AttachError::Busy)
    );
    assert!(!pid.leave(PidType::Sid, &a, &place), "not a member");
    assert!(!pid.detach(PidType::Pid, &b), "not the user");
    assert!(!pid.detach(PidType::Pid, &a));
    assert!(!pid.leave(PidType::Pgid, &a, &place));
    assert!(pid.replace(PidType::Tgid, &a, b.clone()));
    assert!(!pid.replace(PidType::Tgid, &a, b.clone()));
    assert_eq!(pid.task(PidType::Tgid).unwrap().0, 2);
    assert!(!pid.detach(PidType::Tgid, &b));
    assert!(pid.is_used() && pid.has_members(PidType::Pgid));
    assert!(pid.replace_member(PidType::Pgid, &b, a.clone(), &other));
    assert!(pid.leave(PidType::Pgid, &a, &other), "the last one");
    assert_eq!(
        pid.join(PidType::Sid, a.clone(), &place),
        Err(AttachError::Dead)
    );
    assert_eq!((KArc::refcount(&a), KArc::refcount(&b)), (1, 1));
    free_pid(&pid);
    assert!(find_pid_ns(pid.nr(), &ns).is_none());
}

fn a_dying_init_waits_for_the_others(kind: PidMapKind) {
    let (root, _init) = root_with_init(kind);
    let ns = PidNamespace::new_child(&root).unwrap();
    let init = alloc_pid(&ns).unwrap();
    ns.set_child_reaper(Some(task(1)));
    let others: Vec<P> = (0..10).map(|_| alloc_pid(&ns).unwrap()).collect();
    ns.disable_allocation();
    assert_eq!(alloc_pid(&ns).err(), Some(PidError::NoMemory));
    assert_eq!(
        alloc_pid_with(&ns, &[1], |_| true).err(),
        Some(PidError::Exists),
        "ENOMEM is last"
    );
    let drained = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            ns.wait_drained(1);
            drained.store(true, SeqCst);
        });
        for pid in &others {
            assert!(!drained.load(SeqCst));
            free_pid(pid);
        }
    });
    assert!(drained.load(SeqCst));
    assert_eq!((ns.nr_pids(), root.nr_pids()), (1, 2));
    free_pid(&init);
    assert_eq!(ns.nr_pids(), 0);
    let reaper = ns.set_child_reaper(None);
    assert!(reaper.is_some() && ns.child_reaper().is_none());
}

/// The root's numbers that the storm's threads hold now.
static HELD: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Allocates and frees in `ns`, at most about 40 at a time, and checks that numbers are unique.
fn storm_worker(cpu: usize, ns: &Ns) {
    ksync::arch::host::set_cpu(cpu);
    let mut mine = Vec::new();
    for i in 0..2000 {
        match alloc_pid(ns) {
            Ok(pid) => {
                assert!(HELD.lock().unwrap().insert(pid.nr()), "INV-PID-1");
                mine.push(pid);
            }
            Err(e) => assert_eq!(e, PidError::Exhausted),
        }
        if mine.len() > 40 || (i % 3 == 0 && !mine.is_empty()) {
            let pid = mine.swap_remove(i % mine.len());
            assert!(HELD.lock().unwrap().remove(&pid.nr()));
            free_pid(&pid);
        }
        if i % 64 == 0 {
            rcu::process_callbacks();
        }
    }
    for pid in mine {
        HELD.lock().unwrap().remove(&pid.nr());
        free_pid(&pid);
    }
}

/// Lists `root` until told to stop: what is found is right, and pid 1 of `leaf` is always there.
fn storm_reader(cpu: usize, root: &Ns, leaf: &Ns, finished: &AtomicBool) {
    ksync::arch::host::set_cpu(cpu);
    let mut nr = 0;
    while !finished.load(SeqCst) {
        match find_ge_pid(nr, root) {
            Some((found, pid)) => {
                assert_eq!((pid.nr(), pid.nr_at(0)), (found, found));
                if let Some(same) = find_pid_ns(pid.vnr(), pid.ns()) {
                    assert_eq!(same.vnr(), pid.vnr());
                }
                nr = found + 1;
            }
            None => nr = 0,
        }
        assert!(find_pid_ns(1, leaf).is_some());
    }
}

/// Threads allocate and free in two namespaces with a common parent, others look up.
fn storm(kind: PidMapKind) {
    let (root, init) = root_with_init(kind);
    root.set_pid_max(PID_MAX_LIMIT).unwrap();
    let leaves: Vec<Ns> = (0..2)
        .map(|_| PidNamespace::new_child(&root).unwrap())
        .collect();
    let inits: Vec<P> = leaves.iter().map(|ns| alloc_pid(ns).unwrap()).collect();
    leaves
        .iter()
        .for_each(|ns| drop(ns.set_child_reaper(Some(task(1)))));
    let finished = AtomicBool::new(false);
    std::thread::scope(|s| {
        let (leaves, root, finished) = (&leaves, &root, &finished);
        let workers: Vec<_> = (0..3)
            .map(|cpu| s.spawn(move || storm_worker(cpu, &leaves[cpu % 2])))
            .collect();
        s.spawn(move || storm_reader(3, root, &leaves[0], finished));
        workers.into_iter().for_each(|w| w.join().unwrap());
        finished.store(true, SeqCst);
    });
    assert_eq!(
        (root.nr_pids(), leaves[0].nr_pids(), leaves[1].nr_pids()),
        (3, 1, 1)
    );
    for pid in inits.iter().chain([&init]) {
        free_pid(pid);
    }
    for ns in leaves.iter().chain([&root]) {
        ns.map().check_invariants(ns);
        drop(ns.set_child_reaper(None));
    }
}

/// INV-PID-6: once `disable_allocation` has returned, the count only falls.
fn nothing_appears_after_a_stop(kind: PidMapKind) {
    let (root, _init) = root_with_init(kind);
    root.set_pid_max(PID_MAX_LIMIT).unwrap();
    for _ in 0..50 {
        let ns = PidNamespace::new_child(&root).unwrap();
        let init = alloc_pid(&ns).unwrap();
        ns.set_child_reaper(Some(task(1)));
        std::thread::scope(|s| {
            let ns = &ns;
            s.spawn(move || {
                ksync::arch::host::set_cpu(1);
                let mut mine = Vec::new();
                loop {
                    match alloc_pid(ns) {
                        Ok(pid) => mine.push(pid),
                        Err(PidError::Exhausted) => mine.drain(..).for_each(|pid| free_pid(&pid)),
                        Err(e) => break assert_eq!(e, PidError::NoMemory),
                    }
                }
                mine.iter().for_each(free_pid);
            });
            while ns.nr_pids() < 5 {
                std::thread::yield_now();
            }
            ns.disable_allocation();
            let mut last = ns.nr_pids();
            while last > 1 {
                let now = ns.nr_pids();
                assert!(now <= last);
                last = now;
            }
        });
        free_pid(&init);
        drop(ns.set_child_reaper(None));
        rcu::process_callbacks();
    }
}

/// One test per rule, which tries it on every kind.
macro_rules! for_every_kind {
    ($($rule:ident)*) => {
        mod every_kind {
            $(#[test]
            fn $rule() {
                let _alone = super::alone();
                for &kind in super::PidMapKind::ALL {
                    std::println!("{}", kind.name());
                    super::$rule(kind);
                }
            })*
        }
    };
}
for_every_kind! {
    init_can_be_tried_again
    numbers_wrap_behind_the_reserved_ones
    the_cursor_must_be_past_the_reserved_numbers
    the_last_namespace_is_32_deep
    every_allocation_may_fail
    the_last_user_frees
    a_dying_init_waits_for_the_others
    nothing_appears_after_a_stop
    storm
}
