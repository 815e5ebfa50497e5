//! The `sharded` map: every CPU has numbers of its own, at every level. This project's.
//!
//! Problem. Whatever the structure under it, one lock for all namespaces makes each clone and each exit wait for
//! every other one's; and a lock per namespace does not help, for every pid has a number in the root.
//!
//! Mechanism. A [`LeaseMap`] per namespace: a CPU leases 64 numbers at a time and takes them one by one, each with one
//! compare-and-swap on a slot that no other CPU wants. What else every allocation wrote is per CPU, too, or gone:
//!
//! - the count of pids is a sum of per-CPU differences (a small namespace, whose map is not split, counts in one word);
//! - "open" is a flag that is only read; closing it waits a grace period, so that the look at it and the
//!   showing of the pid, which share an RCU section, need no lock;
//! - references from pids to their namespace come from a stock per CPU ([`RefPool`]);
//! - the pid is freed by whoever takes it out of its leaf slot first.
//!
//! So the common path writes this CPU's leases and counts, slots of leased nodes and the pid itself, at any depth.
//! A dying namespace counts centrally from its grace period on, for its init waits for the count.
//!
//! Uniqueness, sketched: a number is taken by the step of its slot from null, a single compare-and-swap
//! (INV-LEASE-1); the slot is set to null only by who took it (cancel) or by the one `free` that exchanges
//! the pid for null; between the two the number is that pid's. So two pids never have it at once, whatever
//! leases, CPUs and chosen numbers do; leases are for speed alone.
//!
//! `pid_max` is exact: a lease ends at the limit of its time, each claim compares with the limit of now, and EAGAIN
//! comes only after every slot below the limit was seen taken. Reuse distance: a freed number comes back only after
//! the leases of the whole range have gone round, so after at least `pid_max - used - 64 * CPUs` others, unless it
//! is asked for by name. Order: listing is by number; numbers of one CPU rise, those of two interleave in
//! runs of 64.
//!
//! Lock order: `lease_map` is a leaf.

use crate::idr::check_listing;
use crate::map::{PidMap, PidMaps, Plan, other_kind};
use crate::namespace::{PIDNS_ADDING, PidNamespace};
use crate::object::Pid;
use crate::{Member, PidError, RESERVED_PIDS};
use ::xarray::{Claim, LeaseMap, LeaseRange, SlowError};
use core::sync::atomic::{AtomicI32, Ordering::*};
use ksync::lock_class;
use ksync::rcu::{self, RcuGuard};
use slab::{AllocError, KArc, RefPool};

/// The numbers of one namespace.
pub struct ShardedMap<T: Member> {
    map: LeaseMap<Pid<T>>,
    /// What the CPUs' own counts leave out: pids shown or freed while the map was not split or the namespace closed.
    central: AtomicI32,
    /// References to the namespace, for its pids.
    refs: RefPool<PidNamespace<T>>,
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
        if self.map.is_split() && at == 0 {
            // Without memory references are counted one by one.
            let _ = self.refs.open(plan.pid.ns());
        }
        let range = LeaseRange {
            limit: plan.limits[at],
            reserved: RESERVED_PIDS,
        };
        Ok(self.map.claim_slow(range)?)
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
            claim.publish(plan.pid.clone());
            continue;
        }
        taken[at] = Some(claim);
        Plan::<T, N>::check_first(ns, nr)?;
    }
    Ok(section)
}

impl<T: Member> PidMap<T> for ShardedMap<T> {
    const NAME: &'static str = "sharded";

    fn new(parent: Option<&Self>) -> Result<Self, AllocError> {
        let map = LeaseMap::new(lock_class!("lease_map"));
        if parent.is_none() {
            map.split()?;
        }
        Ok(ShardedMap {
            map,
            central: AtomicI32::new(0),
            refs: RefPool::new(),
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
                    for (claim, ns) in taken.into_iter().zip(plan.ns.chain()) {
                        if let Some(claim) = claim {
                            claim.publish(plan.pid.clone());
                        }
                        Self::of(ns).count_up(&section);
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
        for ns in pid.ns().chain() {
            let map = Self::of(ns);
            // Not the last reference: the caller has one. The leaf's slot decides who is first.
            if map
                .map
                .remove(pid.nr_at(ns.level()), pid, &section)
                .is_none()
            {
                debug_assert!(core::ptr::eq(ns, &**pid.ns()), "INV-PID-2");
                return;
            }
            map.count_down(ns, &section);
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
    }

    fn disabled(&self, ns: &PidNamespace<T>) {
        self.refs.drain(ns);
        // Everybody sees it closed: the CPUs' counts stay as they are.
        self.central.fetch_add(self.map.take_counts(), AcqRel);
    }

    fn nr_pids(&self, _ns: &PidNamespace<T>) -> u32 {
        (self.central.load(Acquire) + self.map.sum_counts()).max(0) as u32
    }

    fn trim(&self) {
        self.map.trim();
    }

    fn check_invariants(&self, ns: &PidNamespace<T>) {
        assert!(ns.pid_allocated.load(Relaxed) & !PIDNS_ADDING == 0);
        check_listing(self, ns, self.map.check_invariants().0);
    }
}
