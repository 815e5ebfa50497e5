//! One test thread at a time, in an order that a seed decides: races of whole subsystems, found again at will.
//!
//! # Problem
//! A stress test finds a race once in a while and never twice. A model checker wants its own atomics in every crate,
//! and its own idea of memory; the allocators have theirs.
//!
//! # Mechanism
//! [`explore`] runs a few threads under a baton. A thread that has it runs real code until it comes to a *point*: the
//! start of a section with preemption off (so: every lock, every fast path), a spin, a park, or a place that the code
//! names by [`interleave`](super::interleave). There the seed decides who goes on. Between points nobody else runs, so
//! an execution is a function of the seed, and a failure names it. Memory is sequentially consistent here: what
//! reordering does to the locks themselves is for loom.
//!
//! # Invariants
//! - INV-EXPLORE-1: of the threads of one exploration, the one named by `turn` runs, and no other.
use std::boxed::Box;
use std::cell::RefCell;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::vec::Vec;

/// Points after which an execution counts as hanging.
const MAX_STEPS: u64 = 200_000;

struct Round {
    turn: usize,
    live: Vec<bool>,
    random: u64,
    /// At a point that does not wait, the thread goes on in so many of so many cases plus one: some bugs need threads
    /// that take turns, others one that is held up for long.
    patience: u64,
    steps: u64,
    failed: bool,
}

struct Baton {
    round: Mutex<Round>,
    changed: Vec<Condvar>,
}

std::thread_local! {
    static ME: RefCell<Option<(Arc<Baton>, usize)>> = const { RefCell::new(None) };
}

/// What a thread of an exploration does.
pub type Body = Box<dyn FnOnce() + Send>;

/// Runs `threads()` together once per seed. Panics with the seed of the first execution in which a thread panics or
/// which does not end.
pub fn explore(seeds: core::ops::Range<u64>, mut threads: impl FnMut() -> Vec<Body>) {
    for seed in seeds {
        assert!(run(seed, threads()), "a thread failed with seed {seed}");
    }
}

/// The first seed under which some thread panics, if there is one: for planted bugs.
pub fn find_failure(
    seeds: core::ops::Range<u64>,
    mut threads: impl FnMut() -> Vec<Body>,
) -> Option<u64> {
    let mut seeds = seeds;
    seeds.find(|&seed| !run(seed, threads()))
}

/// Whether every thread came to its end.
fn run(seed: u64, bodies: Vec<Body>) -> bool {
    let nr = bodies.len();
    let mut round = Round {
        turn: 0,
        live: std::vec![true; nr],
        random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d,
        patience: [0, 3, 15, 63][seed as usize % 4],
        steps: 0,
        failed: false,
    };
    round.pass_on(None);
    let baton = Arc::new(Baton {
        round: Mutex::new(round),
        changed: (0..nr).map(|_| Condvar::new()).collect(),
    });
    let threads: Vec<_> = bodies
        .into_iter()
        .enumerate()
        .map(|(id, body)| {
            let baton = baton.clone();
            std::thread::spawn(move || thread(baton, id, body))
        })
        .collect();
    let ended = threads
        .into_iter()
        .map(|t| t.join())
        .filter(Result::is_ok)
        .count();
    let round = baton.round.lock().unwrap_or_else(PoisonError::into_inner);
    ended == nr && !round.failed
}

/// Gives the baton away when the thread ends, however it ends.
struct Leave(Arc<Baton>, usize);

impl Drop for Leave {
    fn drop(&mut self) {
        ME.set(None);
        super::host::abandon();
        let mut round = self.0.round.lock().unwrap_or_else(PoisonError::into_inner);
        round.live[self.1] = false;
        round.failed |= std::thread::panicking();
        if round.live.contains(&true) {
            round.pass_on(Some(self.1));
            self.0.changed[round.turn].notify_one();
        }
    }
}

fn thread(baton: Arc<Baton>, id: usize, body: Body) {
    ME.set(Some((baton.clone(), id)));
    let leave = Leave(baton, id);
    leave.0.wait(id);
    body();
}

impl Round {
    fn stir(&mut self) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
    }

    /// Chooses who runs next: anyone alive but `not`, if there is another.
    fn pass_on(&mut self, not: Option<usize>) {
        self.stir();
        let others = self
            .live
            .iter()
            .enumerate()
            .filter(|&(i, &live)| live && Some(i) != not);
        let nr = others.clone().count() as u64;
        if nr > 0 {
            let mut others = others;
            self.turn = others
                .nth((self.random >> 11) as usize % nr as usize)
                .map_or(self.turn, |(i, _)| i);
        }
    }
}

impl Baton {
    fn wait(&self, me: usize) {
        let mut round = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        while round.turn != me {
            round = self.changed[me]
                .wait(round)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn step(&self, me: usize, give_way: bool) {
        let mut round = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        round.steps += 1;
        if round.steps > MAX_STEPS {
            round.failed = true;
            drop(round);
            panic!("an explored execution does not end");
        }
        if give_way || (round.random >> 20).is_multiple_of(round.patience + 1) {
            round.pass_on(give_way.then_some(me));
        } else {
            round.stir();
        }
        if round.turn != me {
            self.changed[round.turn].notify_one();
            drop(round);
            self.wait(me);
        }
    }
}

fn step(give_way: bool) -> bool {
    if std::thread::panicking() {
        return false;
    }
    let Some((baton, me)) = ME.with_borrow(Clone::clone) else {
        return false;
    };
    baton.step(me, give_way);
    true
}

/// Whether this thread is explored.
pub fn is_explored() -> bool {
    ME.with_borrow(Option::is_some)
}

/// Somebody else may go on here.
#[inline]
pub(super) fn point() {
    if is_explored() {
        step(false);
    }
}

/// Somebody else has to go on here, if there is anybody. False: this thread is not explored.
#[inline]
pub(super) fn give_way() -> bool {
    is_explored() && step(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch;
    use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

    fn lost_update(with_lock: bool) -> Option<u64> {
        find_failure(0..64, || {
            let shared = Arc::new((
                crate::SpinLock::new((), crate::lock_class!("test")),
                AtomicU32::new(0),
            ));
            let done = Arc::new(AtomicU32::new(0));
            let body = |cpu: usize| -> Body {
                let (shared, done) = (shared.clone(), done.clone());
                Box::new(move || {
                    arch::host::set_cpu(cpu);
                    let held = with_lock.then(|| shared.0.lock());
                    let seen = shared.1.load(SeqCst);
                    arch::interleave();
                    shared.1.store(seen + 1, SeqCst);
                    drop(held);
                    if done.fetch_add(1, SeqCst) == 1 {
                        assert_eq!(shared.1.load(SeqCst), 2);
                    }
                })
            };
            std::vec![body(0), body(1)]
        })
    }

    #[test]
    fn a_lost_update_is_found_and_a_lock_prevents_it() {
        assert!(lost_update(false).is_some());
        assert_eq!(lost_update(true), None);
    }

    #[test]
    fn who_waits_for_nobody_is_found() {
        let stuck = find_failure(0..1, || {
            let never = AtomicU32::new(0);
            let body = move || {
                while never.load(SeqCst) == 0 {
                    arch::cpu_relax();
                }
            };
            std::vec![Box::new(body) as Body]
        });
        assert_eq!(stuck, Some(0));
    }
}
