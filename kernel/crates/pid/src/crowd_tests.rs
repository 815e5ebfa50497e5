//! Members of groups and sessions: random histories against a set, walks beside forks, the last to leave.

use crate::crowd::{Bug, Place};
use crate::tests::alone;
use crate::*;
use ksync::arch::explore::{Body, explore, find_failure};
use ksync::arch::host;
use ksync::{SpinLock, lock_class};
use proptest::prelude::*;
use slab::KArc;
use std::boxed::Box;
use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

/// What is planted: a [`Bug`] and 1.
static PLANTED: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn is_planted(bug: Bug) -> bool {
    PLANTED.load(Relaxed) == bug as usize + 1
}

fn find_failure_with(bug: Bug, bodies: fn() -> Vec<Body>) -> bool {
    let _alone = alone();
    PLANTED.store(bug as usize + 1, SeqCst);
    let found = find_failure(0..300, bodies);
    PLANTED.store(0, SeqCst);
    found.is_some()
}

struct Member {
    group: Place,
    session: Place,
    /// Stands for a process's lock and the signal that it guards.
    signalled: SpinLock<bool>,
}
slab::object!(Member, "test_member", links = 2);

fn member() -> KArc<Member> {
    KArc::new(Member {
        group: Place::new(),
        session: Place::new(),
        signalled: SpinLock::new(false, lock_class!("test_member")),
    })
    .unwrap()
}

impl Member {
    fn place(&self, kind: PidType) -> &Place {
        match kind {
            PidType::Pgid => &self.group,
            _ => &self.session,
        }
    }
}

/// A process's pid with a crowd.
struct Group {
    ns: KArc<PidNamespace<Member>>,
    init: KArc<Pid<Member>>,
    pid: KArc<Pid<Member>>,
    leader: KArc<Member>,
}

fn group(crowded: bool) -> Group {
    page_alloc::host::init(&[8192, 8192]);
    let ns = PidNamespace::new_root(PidMapKind::Idr).unwrap();
    let init = alloc_pid(&ns).unwrap();
    ns.set_child_reaper(Some(member()));
    let (pid, leader) = (alloc_pid(&ns).unwrap(), member());
    pid.attach(PidType::Tgid, leader.clone()).unwrap();
    if crowded {
        pid.open_crowd();
        assert!(pid.crowd().is_some());
    }
    Group {
        ns,
        init,
        pid,
        leader,
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // with members still there
        }
        drop(self.ns.set_child_reaper(None));
        free_pid(&self.pid);
        free_pid(&self.init);
    }
}

#[derive(Debug, Clone)]
enum Op {
    /// On a CPU, of the group or of the session.
    Join(usize, bool),
    Leave(usize),
    Exec(usize),
    Open,
    Walk,
    LeaderEnds,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0..4usize, any::<bool>()).prop_map(|(cpu, group)| Op::Join(cpu, group)),
        5 => (0..16usize).prop_map(Op::Leave),
        1 => (0..16usize).prop_map(Op::Exec),
        1 => Just(Op::Open),
        2 => Just(Op::Walk),
        1 => Just(Op::LeaderEnds),
    ];
    proptest::collection::vec(op, 1..60)
}

fn run(ops: Vec<Op>) {
    let g = group(false);
    let (mut members, mut has_leader) = (Vec::<(KArc<Member>, PidType)>::new(), true);
    let mut is_dead = false;
    for op in ops {
        let mut last = false;
        match op {
            Op::Join(cpu, in_group) => {
                let (new, kind) = (
                    member(),
                    if in_group {
                        PidType::Pgid
                    } else {
                        PidType::Sid
                    },
                );
                let joined = host::run_on(cpu, || g.pid.join(kind, new.clone(), new.place(kind)));
                assert_eq!(joined.is_ok(), !is_dead, "INV-PID-7");
                if joined.is_ok() {
                    let again = g.pid.join(kind, new.clone(), &Place::new());
                    assert_eq!(again, Err(AttachError::Busy));
                    members.push((new, kind));
                }
            }
            Op::Leave(_) if members.is_empty() => {}
            Op::Leave(i) => {
                let (gone, kind) = members.swap_remove(i % members.len());
                last = g.pid.leave(kind, &gone, gone.place(kind));
                assert!(!g.pid.leave(kind, &gone, gone.place(kind)), "once");
                assert_eq!(last, members.is_empty() && !has_leader);
            }
            Op::Exec(_) if members.is_empty() => {}
            Op::Exec(i) => {
                let at = i % members.len();
                let (old, kind) = &mut members[at];
                // The place stays the process's: here each member is its own process, so the test carries it over.
                let done = g
                    .pid
                    .replace_member(*kind, old, old.clone(), old.place(*kind));
                assert!(!done, "it is in a list already");
            }
            Op::Open => g.pid.open_crowd(),
            Op::Walk => {
                let mut seen = Vec::new();
                let nr = g
                    .pid
                    .for_each_in_group(|m| &m.group, |m| seen.push(KArc::as_ptr(m)));
                let mut wanted: Vec<_> = members
                    .iter()
                    .filter(|m| m.1 == PidType::Pgid)
                    .map(|m| KArc::as_ptr(&m.0))
                    .collect();
                assert_eq!(nr, wanted.len());
                seen.sort();
                wanted.sort();
                assert_eq!(seen, wanted);
            }
            Op::LeaderEnds if has_leader => {
                has_leader = false;
                last = g.pid.detach(PidType::Tgid, &g.leader);
                assert_eq!(last, members.is_empty());
            }
            Op::LeaderEnds => {}
        }
        is_dead |= last;
        assert_eq!(g.pid.is_used(), !members.is_empty() || has_leader);
        for kind in [PidType::Pgid, PidType::Sid] {
            assert_eq!(g.pid.has_members(kind), members.iter().any(|m| m.1 == kind));
        }
    }
    for (gone, kind) in members {
        let _ = g.pid.leave(kind, &gone, gone.place(kind));
    }
    let _ = g.pid.detach(PidType::Tgid, &g.leader);
    assert!(!g.pid.is_used());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn histories(ops in ops()) {
        let _alone = alone();
        run(ops);
    }
}

/// A group that is signalled while two of its members fork, and all that were born.
struct Signalled {
    group: Group,
    born: Mutex<Vec<KArc<Member>>>,
    running: AtomicUsize,
}

impl Signalled {
    /// As `publish` does: the child joins under its parent's lock, unless the parent has a signal.
    fn forks(&self, cpu: usize) {
        host::set_cpu(cpu);
        let mut parent = self.born.lock().unwrap()[cpu - 1].clone();
        for moved in 1..4 {
            let child = member();
            // A thread that moves: its child joins another list than it is in.
            host::set_cpu((cpu + moved) % 4);
            let signalled = parent.signalled.lock();
            if *signalled {
                break;
            }
            let pid = &self.group.pid;
            pid.join(PidType::Pgid, child.clone(), &child.group)
                .unwrap();
            drop(signalled);
            self.born.lock().unwrap().push(child.clone());
            parent = child;
        }
        self.end();
    }

    fn signals(&self) {
        host::set_cpu(3);
        let pid = &self.group.pid;
        pid.for_each_in_group(|m| &m.group, |m| *m.signalled.lock() = true);
        self.end();
    }

    /// The last one checks. A parent that outlived the walk without the signal would be one who joined behind its back.
    fn end(&self) {
        if self.running.fetch_sub(1, AcqRel) > 1 {
            return;
        }
        let born = self.born.lock().unwrap();
        for member in born.iter() {
            assert!(*member.signalled.lock(), "INV-CROWD-4");
        }
        for member in born.iter() {
            assert!(!self.group.pid.leave(PidType::Pgid, member, &member.group));
        }
        assert!(self.group.pid.detach(PidType::Tgid, &self.group.leader));
    }
}

fn signal_bodies() -> Vec<Body> {
    let group = group(true);
    let first: Vec<_> = (1..3)
        .map(|cpu| {
            let m = member();
            host::run_on(cpu, || group.pid.join(PidType::Pgid, m.clone(), &m.group)).unwrap();
            m
        })
        .collect();
    let all = Arc::new(Signalled {
        group,
        born: Mutex::new(first),
        running: AtomicUsize::new(3),
    });
    let (a, b, c) = (all.clone(), all.clone(), all);
    std::vec![
        Box::new(move || a.forks(1)),
        Box::new(move || b.forks(2)),
        Box::new(move || c.signals()),
    ]
}

#[test]
fn a_signal_reaches_who_is_born_meanwhile() {
    let _alone = alone();
    explore(0..200, signal_bodies);
}

#[test]
fn a_birth_behind_a_walk_is_caught() {
    assert!(find_failure_with(Bug::JoinsBehindAWalk, signal_bodies));
}

/// Who leaves a group, and how many were told to free it.
struct Leaving {
    group: Group,
    begun: AtomicUsize,
    told: AtomicUsize,
    ended: AtomicUsize,
}

impl Leaving {
    fn leave(&self, leave: impl FnOnce(&Pid<Member>) -> bool) {
        self.begun.fetch_add(1, AcqRel);
        if leave(&self.group.pid) {
            assert_eq!(self.begun.load(Acquire), 4, "somebody is still there");
            self.told.fetch_add(1, AcqRel);
        }
        if self.ended.fetch_add(1, AcqRel) == 3 {
            assert_eq!(self.told.load(Acquire), 1, "one frees it");
            assert!(!self.group.pid.is_used(), "INV-CROWD-2");
        }
    }
}

/// Three members leave, on CPUs of their own, while the leader ends.
fn leave_bodies() -> Vec<Body> {
    let leaving = Arc::new(Leaving {
        group: group(true),
        begun: AtomicUsize::new(0),
        told: AtomicUsize::new(0),
        ended: AtomicUsize::new(0),
    });
    let mut bodies: Vec<Body> = (1..4)
        .map(|cpu| {
            let (leaving, m) = (leaving.clone(), member());
            let pid = &leaving.group.pid;
            host::run_on(cpu, || pid.join(PidType::Sid, m.clone(), &m.session)).unwrap();
            let body: Body = Box::new(move || {
                host::set_cpu(cpu);
                leaving.leave(|pid| pid.leave(PidType::Sid, &m, &m.session));
            });
            body
        })
        .collect();
    bodies.push(Box::new(move || {
        host::set_cpu(0);
        leaving.leave(|pid| pid.detach(PidType::Tgid, &leaving.group.leader));
    }));
    bodies
}

#[test]
fn one_is_the_last() {
    let _alone = alone();
    explore(0..200, leave_bodies);
}

#[test]
fn a_list_that_is_not_counted_is_caught() {
    assert!(find_failure_with(Bug::ClosesUncounted, leave_bodies));
}
