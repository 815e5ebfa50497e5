//! The `sharded` map: every CPU has numbers of its own, at every level, and pids that have them already. This project's.
//!
//! Problem. Whatever the structure under it, one lock for all namespaces makes each clone and each exit wait for
//! every other one's; and a lock per namespace does not help, for every pid has a number in the root. And a pid costs
//! more than its numbers: the object comes from the slab, goes to RCU, and is filled in anew each time.
//!
//! Mechanism. Two things, the second on top of the first.
//!
//! *Leases.* A [`LeaseMap`] per namespace: a CPU leases 64 numbers at a time and takes them one by one, each with one
//! compare-and-swap on a slot that no other CPU wants. What else every allocation wrote is per CPU, too, or gone:
//!
//! - the count of pids is a sum of per-CPU differences (a small namespace, whose map is not split, counts in one word);
//! - "open" is a flag that is only read; closing it waits a grace period, so that the look at it and the
//!   showing of the pid, which share an RCU section, need no lock;
//! - references from pids to their namespace come from a stock per CPU ([`RefPool`]);
//! - the pid is freed by whoever takes it out of its leaf slot first.
//!
//! *Rest.* A pid whose last reference is gone stays as it is, with its numbers at all levels and its [`Seat`]s in their
//! maps, in a FIFO of its CPU and namespace ([`RestPool`]). The next allocation there wakes the oldest: it takes the seats
//! again, one compare-and-swap each, and shows the pid. No slab, no RCU, no walk, no count of references to the
//! namespace, at any depth. A resting pid has no right to its numbers: their slots are null, and whoever takes one (a lease
//! that comes by, a chosen tid) has it; then the pid is dropped when its turn comes.
//!
//! So the common path writes this CPU's counts and queue, slots of its nodes and the pid itself, at any depth.
//! A dying namespace counts centrally from its grace period on, for its init waits for the count; then its resting pids
//! go, which keep it as all pids do.
//!
//! Uniqueness, sketched: a number is taken by the step of its slot from null, a single compare-and-swap
//! (INV-LEASE-1); the slot is set to null only by who took it (cancel) or by the one `free` that exchanges
//! the pid for null; between the two the number is that pid's. So two pids never have it at once, whatever
//! leases, seats, CPUs and chosen numbers do; these are for speed alone.
//!
//! Two lives of one object: who holds a reference holds one life, for a pid rests only when nobody has any. A look-up that
//! read the slot in one life and takes its reference in the next has a pid of the same number, as if it had come later.
//!
//! `pid_max` is exact: a lease ends at the limit of its time, each claim and each waking compares with the limit of now, and
//! EAGAIN comes only after every slot below the limit was seen taken. Order: listing is by number; those that a CPU gives out
//! rise while they come from leases, and are those of its own past afterwards.
//!
//! Reuse distance: a number that was freed comes back by waking, after at least [`REST`] others have been freed after it
//! and [`REST`] given out on that CPU; or by a lease, after the leases of the whole range have gone round, so after at
//! least `pid_max - used - 64 * CPUs` others; or when it is asked for by name. Numbers up to [`RESERVED_PIDS`], chosen ones,
//! and those that were freed on another node than they were made on do not rest.
//!
//! Lock order: `lease_map` is a leaf.

use crate::idr::check_listing;
use crate::map::{PidMap, PidMaps, Plan, other_kind};
use crate::namespace::{PIDNS_ADDING, PidNamespace};
use crate::object::{Extra, Pid};
use crate::{Member, PidError, RESERVED_PIDS};
use ::xarray::{Claim, LeaseMap, LeaseRange, Seat, SlowError};
use core::sync::atomic::{AtomicI32, Ordering::*};
use ksync::lock_class;
use ksync::rcu::{self, RcuGuard};
use slab::{AllocError, Idle, KArc, RefPool, RestPool};

/// Pids that rest on a CPU before the oldest is woken: the reuse distance.
pub(crate) const REST: u32 = if cfg!(test) { 2 } else { 256 };
/// The most that rest on a CPU, per namespace.
const REST_MAX: u32 = 2 * REST;

/// The numbers of one namespace.
pub struct ShardedMap<T: Member> {
    map: LeaseMap<Pid<T>>,
    /// What the CPUs' own counts leave out: pids shown or freed while the map was not split or the namespace closed.
    central: AtomicI32,
    /// References to the namespace, for its pids.
    refs: RefPool<PidNamespace<T>>,
    /// Pids of this namespace that may be had again.
    resting: RestPool<Pid<T>>,
}

impl From<SlowError> for PidError {
    fn from(e: SlowError) -> Self {
        match e {
            SlowError::Full => PidError::Exhausted,
            SlowError::Taken => PidError::Exists,
            SlowError::NoMemory => PidError::NoMemory,
        }
    }
}

type Taken<'a, T> = Claim<'a, Pid<T>>;

impl<T: Member> ShardedMap<T> {
    /// Takes the number of one level, the slow way.
    #[cold]
    #[inline(never)]
    fn take_slow<'a, const N: usize>(
        &'a self,
        plan: &Plan<'a, T, N>,
        at: usize,
    ) -> Result<Taken<'a, T>, PidError> {
        if let Some(&tid) = plan.tids.get(at) {
            return Ok(self.map.claim_at(tid)?);
        }
        let range = LeaseRange {
            limit: plan.limits[at],
            reserved: RESERVED_PIDS,
        };
        let claim = self.map.claim_slow(range)?;
        if self.map.is_split() && at == 0 {
            // Without memory references are counted one by one, and nothing rests.
            let _ = self.refs.open(plan.pid.ns());
            let _ = self.resting.open();
        }
        Ok(claim)
    }

    /// Counts one pid more. In the RCU section in which the namespace was seen open.
    #[inline(always)]
    fn count_up(&self, here: &RcuGuard) {
        if !self.map.count(1, here) {
            self.central.fetch_add(1, Relaxed);
        }
    }

    /// Counts one pid less and wakes who waits for that.
    #[inline(always)]
    fn count_down(&self, ns: &PidNamespace<T>, here: &RcuGuard) {
        if !(ns.is_adding() && self.map.count(-1, here)) {
            // Before the sum of the CPUs' counts has been added this may be anything, and wakes for nothing.
            let left = self.central.fetch_sub(1, AcqRel) - 1;
            ns.note_freed(left as u32);
        }
    }

    /// An init that failed on its way may be tried again, and still be 1.
    #[cold]
    fn restart_if_unused(&self, ns: &PidNamespace<T>) {
        if ns.is_adding() && self.nr_pids(ns) == 0 {
            self.map.restart();
        }
    }
}

/// Takes the numbers of all levels, leaf first. Those in `taken` are the caller's, also on error. Returns the RCU section
/// in which the last one was taken or began after.
#[inline(always)]
fn take_all<'a, T: Member, const N: usize>(
    plan: &Plan<'a, T, N>,
    taken: &mut [Option<Taken<'a, T>>; N],
) -> Result<RcuGuard, PidError> {
    let mut section = rcu::read_lock();
    for (at, ns) in plan.ns.chain().take(N).enumerate() {
        let map = ShardedMap::of(ns);
        let quick = if plan.tids.is_empty() {
            map.map.claim(plan.limits[at], &section)
        } else {
            None
        };
        let claim = match quick {
            Some(claim) => claim,
            None => {
                drop(section);
                let claim = map.take_slow(plan, at)?;
                section = rcu::read_lock();
                claim
            }
        };
        let nr = claim.id();
        plan.pid.set_nr(ns.level(), nr);
        #[cfg(test)]
        if crate::tests::is_planted() {
            claim.publish(plan.pid.clone(), &plan.pid.seats()[ns.level() as usize]);
            continue;
        }
        taken[at] = Some(claim);
        Plan::<T, N>::check_first(ns, nr)?;
    }
    Ok(section)
}

impl<T: Member> ShardedMap<T> {
    /// Lets a pid rest whose last reference is gone, if there is room.
    #[inline(always)]
    pub(crate) fn keep(idle: Idle<Pid<T>>, here: &RcuGuard) {
        if let Err(idle) = RestPool::push(idle, Self::bed_of, REST_MAX, here) {
            give_up(&idle);
        }
    }

    /// Where a pid rests.
    #[inline(always)]
    fn bed_of(pid: &Pid<T>) -> &RestPool<Pid<T>> {
        &Self::of(pid.ns()).resting
    }

    /// Takes the seats of a resting pid again and shows it. None: it cannot have them all.
    #[inline(always)]
    fn wake<const N: usize>(
        idle: Idle<Pid<T>>,
        ns: &PidNamespace<T>,
        here: &RcuGuard,
    ) -> Option<KArc<Pid<T>>> {
        let mut nr_taken = 0;
        for (ns, seat) in ns.chain().take(N).zip(seats_of(&idle, ns)) {
            let open = ns.is_adding();
            #[cfg(test)]
            let open = open || crate::tests::PLANTED_WAKE.load(Relaxed);
            let may = open && ns.has_child_reaper() && idle.nr_at(ns.level()) < ns.pid_max();
            if !(may && seat.take(here)) {
                break;
            }
            nr_taken += 1;
        }
        if nr_taken <= ns.level() {
            let taken = seats_of(&idle, ns).take(nr_taken as usize);
            taken.for_each(|seat| seat.cancel(here));
            give_up(&idle);
            return None;
        }
        idle.renew();
        let pid = idle.revive();
        for (ns, seat) in ns.chain().take(N).zip(seats_of(&pid, ns)) {
            seat.show(pid.clone(), here);
            Self::of(ns).count_up(here);
        }
        Some(pid)
    }
}

/// The seats of a pid of `ns`, leaf first.
#[inline(always)]
fn seats_of<'a, T: Member>(
    pid: &'a Pid<T>,
    ns: &PidNamespace<T>,
) -> impl Iterator<Item = &'a Seat<Pid<T>>> {
    pid.seats()[..=ns.level() as usize].iter().rev()
}

/// A resting pid is to go: what its seats keep need not wait for RCU.
#[cold]
fn give_up<T: Member>(pid: &Pid<T>) {
    pid.seats().iter().for_each(Seat::give_up);
}

impl<T: Member> PidMap<T> for ShardedMap<T> {
    const NAME: &'static str = "sharded";

    #[inline(always)]
    fn extra(nr: usize) -> Result<Extra<T>, AllocError> {
        Extra::seats(nr)
    }

    #[inline(always)]
    fn reuse<const N: usize>(ns: &KArc<PidNamespace<T>>) -> Option<KArc<Pid<T>>> {
        let here = rcu::read_lock();
        let idle = Self::of(ns).resting.pop(REST, &here)?;
        Self::wake::<N>(idle, ns, &here)
    }

    fn new(parent: Option<&Self>) -> Result<Self, AllocError> {
        let map = LeaseMap::new(lock_class!("lease_map"));
        if parent.is_none() {
            map.split()?;
        }
        Ok(ShardedMap {
            map,
            central: AtomicI32::new(0),
            refs: RefPool::new(),
            resting: RestPool::new(),
        })
    }

    #[inline(always)]
    fn of(ns: &PidNamespace<T>) -> &Self {
        match ns.map() {
            PidMaps::Sharded(map) => map,
            _ => other_kind(),
        }
    }

    #[inline]
    fn alloc<const N: usize>(plan: &Plan<'_, T, N>) -> Result<(), PidError> {
        if !plan.ns.has_child_reaper() {
            Self::of(plan.ns).restart_if_unused(plan.ns);
        }
        let mut taken = [const { None }; N];
        let mut result = Ok(());
        match take_all(plan, &mut taken) {
            Ok(section) => {
                if plan.ns.chain().take(N).all(|ns| ns.is_adding()) {
                    let mut may_rest = plan.tids.is_empty();
                    let levels = plan.ns.chain().zip(seats_of(plan.pid, plan.ns));
                    for (claim, (ns, seat)) in taken.into_iter().zip(levels) {
                        if let Some(claim) = claim {
                            may_rest &= claim.id() >= RESERVED_PIDS;
                            claim.publish(plan.pid.clone(), seat);
                        }
                        Self::of(ns).count_up(&section);
                    }
                    if may_rest {
                        plan.pid.set_may_rest();
                    }
                    return Ok(());
                }
                result = Err(PidError::NoMemory);
            }
            Err(e) => result = result.and(Err(e)),
        }
        taken.into_iter().flatten().for_each(Claim::cancel);
        result
    }

    #[inline]
    fn free(pid: &KArc<Pid<T>>) {
        let section = rcu::read_lock();
        for (ns, seat) in pid.ns().chain().zip(seats_of(pid, pid.ns())) {
            // The leaf's slot decides who is first.
            let Some(own) = seat.leave(pid, &section) else {
                debug_assert!(core::ptr::eq(ns, &**pid.ns()), "INV-PID-2");
                return;
            };
            KArc::drop_beside(own, pid);
            Self::of(ns).count_down(ns, &section);
        }
        pid.set_freed();
    }

    #[inline]
    fn find(&self, nr: u32) -> Option<KArc<Pid<T>>> {
        self.map.get(nr)
    }

    #[inline(always)]
    fn get_ns(ns: &KArc<PidNamespace<T>>) -> KArc<PidNamespace<T>> {
        Self::of(ns).refs.get(ns)
    }

    #[inline(always)]
    fn put_ns(ns: KArc<PidNamespace<T>>) {
        RefPool::put(ns, |ns| &Self::of(ns).refs);
    }

    fn find_ge(&self, nr: u32) -> Option<(u32, KArc<Pid<T>>)> {
        self.map.next(nr)
    }

    fn disable(&self, ns: &PidNamespace<T>) {
        ns.pid_allocated.fetch_and(!PIDNS_ADDING, AcqRel);
        self.refs.close();
        self.resting.close();
    }

    fn disabled(&self, ns: &PidNamespace<T>) {
        self.resting.drain(|idle| give_up(&idle));
        self.refs.drain(ns);
        // Everybody sees it closed: the CPUs' counts stay as they are.
        self.central.fetch_add(self.map.take_counts(), AcqRel);
    }

    fn nr_pids(&self, _ns: &PidNamespace<T>) -> u32 {
        (self.central.load(Acquire) + self.map.sum_counts()).max(0) as u32
    }

    fn trim(&self) {
        let here = rcu::read_lock();
        while let Some(idle) = self.resting.pop(0, &here) {
            give_up(&idle);
        }
        drop(here);
        self.map.trim();
    }

    fn check_invariants(&self, ns: &PidNamespace<T>) {
        assert!(ns.pid_allocated.load(Relaxed) & !PIDNS_ADDING == 0);
        check_listing(self, ns, self.map.check_invariants().0);
    }
}
