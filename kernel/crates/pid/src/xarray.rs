//! The `xarray` map: an array per namespace, each with a lock of its own, which it drops to allocate.
//!
//! Problem. Preloading allocates before the lock what is mostly not needed, and guesses when it is. Wilcox's
//! XArray allocates when a node is missing and only then (1.6 % of allocations, he says); for that it
//! must know its lock, so each array has its own, `xa_lock`.
//!
//! Mechanism. Level by level from the leaf: take that array's lock, take a number, release it. When all
//! levels have a number: level by level, take the lock again and show the pid. At depth 0 both
//! happen in one hold. A missing node: drop the lock, allocate, try that level again; [`nr_dropped`](crate::nr_dropped)
//! counts these. Namespaces that share no ancestor but the root meet only there; the root's lock is taken by
//! all. Free takes each level's lock in turn.
//!
//! The pid is shown level by level inside one RCU section that began before the look at
//! `is_adding`: INV-PID-6 by way of `disable`'s grace period. Numbers rise cyclically, as in `idr`.
//!
//! Lock order: `xa_lock` is a leaf, one at a time, except for the wait queue of a namespace that drains.

use crate::idr::{check_listing, note_dropped};
use crate::map::{PidMap, PidMaps, Plan, other_kind};
use crate::namespace::{PIDNS_ADDING, PidNamespace};
use crate::object::Pid;
use crate::{Member, PidError};
use ::xarray::{AllocRange, Idr, IdrError, IdrGuard, Preload, Reserved};
use core::sync::atomic::Ordering::*;
use ksync::{lock_class, rcu};
use slab::{AllocError, KArc};

/// The numbers of one namespace.
pub struct XarrayMap<T: Member> {
    idr: Idr<Pid<T>>,
}

type Taken<'a, T> = Reserved<'a, Pid<T>>;

/// Takes the number of one level; returns with that array's lock held.
#[inline(always)]
fn reserve<'a, T: Member, const N: usize>(
    plan: &Plan<'a, T, N>,
    at: usize,
    ns: &'a PidNamespace<T>,
) -> Result<(Taken<'a, T>, IdrGuard<'a>), PidError> {
    let idr = &XarrayMap::of(ns).idr;
    let mut spare = Preload::new();
    loop {
        let mut guard = idr.lock().lock();
        if at == 0 && ns.pid_allocated.load(Relaxed) == PIDNS_ADDING {
            idr.set_cursor(&mut guard, 0);
        }
        let got = match plan.tids.get(at) {
            Some(&tid) => idr.reserve_at(&mut guard, tid, &mut spare),
            None => {
                let min = Plan::<T, N>::automatic_min(idr.cursor());
                let max = plan.limits[at] - 1;
                idr.reserve_cyclic(&mut guard, AllocRange { min, max }, &mut spare)
            }
        };
        let need = match got {
            Ok(reserved) => return Ok((reserved, guard)),
            Err(IdrError::Exists) => return Err(PidError::Exists),
            Err(IdrError::Full) => return Err(PidError::Exhausted),
            Err(IdrError::NeedNodes(nr)) => nr,
        };
        drop(guard);
        note_dropped();
        spare.fill(need)?;
    }
}

/// Shows the pid at one level, whose lock is held.
#[inline(always)]
fn show<T: Member, const N: usize>(
    plan: &Plan<'_, T, N>,
    ns: &PidNamespace<T>,
    reserved: Taken<'_, T>,
    guard: &mut IdrGuard<'_>,
) {
    reserved.publish(guard, plan.pid.clone());
    let n = &ns.pid_allocated;
    n.store(n.load(Relaxed) + 1, Relaxed);
}

fn cancel_all<T: Member, const N: usize>(plan: &Plan<'_, T, N>, taken: [Option<Taken<'_, T>>; N]) {
    for (reserved, ns) in taken.into_iter().zip(plan.ns.chain()) {
        if let Some(reserved) = reserved {
            let mut guard = XarrayMap::of(ns).idr.lock().lock();
            reserved.cancel(&mut guard);
        }
    }
}

/// Takes the numbers of all levels, then shows the pid. Those left in `taken` are the caller's.
#[inline(always)]
fn take_and_show<'a, T: Member, const N: usize>(
    plan: &Plan<'a, T, N>,
    taken: &mut [Option<Taken<'a, T>>; N],
) -> Result<(), PidError> {
    for (at, ns) in plan.ns.chain().take(N).enumerate() {
        let (reserved, mut guard) = reserve(plan, at, ns)?;
        let nr = reserved.id();
        plan.pid.set_nr(ns.level(), nr);
        let first = Plan::<T, N>::check_first(ns, nr);
        if N == 1 && first.is_ok() && ns.is_adding() {
            // The only level: one hold.
            show(plan, ns, reserved, &mut guard);
            return Ok(());
        }
        taken[at] = Some(reserved);
        first?;
    }
    let _section = rcu::read_lock();
    if !plan.ns.chain().all(|ns| ns.is_adding()) {
        return Err(PidError::NoMemory);
    }
    for (reserved, ns) in taken.iter_mut().zip(plan.ns.chain()) {
        if let Some(reserved) = reserved.take() {
            let mut guard = XarrayMap::of(ns).idr.lock().lock();
            show(plan, ns, reserved, &mut guard);
        }
    }
    Ok(())
}

impl<T: Member> PidMap<T> for XarrayMap<T> {
    const NAME: &'static str = "xarray";

    fn new(_: Option<&Self>) -> Result<Self, AllocError> {
        Ok(XarrayMap {
            idr: Idr::with_own_lock(lock_class!("xa_lock")),
        })
    }

    #[inline(always)]
    fn of(ns: &PidNamespace<T>) -> &Self {
        match ns.map() {
            PidMaps::Xarray(map) => map,
            _ => other_kind(),
        }
    }

    #[inline]
    fn alloc<const N: usize>(plan: &Plan<'_, T, N>) -> Result<(), PidError> {
        let mut taken = [const { None }; N];
        let result = take_and_show(plan, &mut taken);
        if result.is_err() {
            cancel_all(plan, taken);
        }
        result
    }

    #[inline]
    fn free(pid: &KArc<Pid<T>>) {
        for ns in pid.ns().chain() {
            let map = Self::of(ns);
            let mut guard = map.idr.lock().lock();
            // The leaf's lock decides who is first.
            if core::ptr::eq(ns, &**pid.ns()) && !pid.mark_freed() {
                return;
            }
            // Not the last reference: the caller has one.
            let removed = map.idr.remove(&mut guard, pid.nr_at(ns.level()));
            debug_assert!(removed.is_some_and(|p| KArc::ptr_eq(&p, pid)), "INV-PID-2");
            let n = ns.pid_allocated.load(Relaxed) - 1;
            ns.pid_allocated.store(n, Release);
            ns.note_freed(n);
        }
    }

    #[inline]
    fn find(&self, nr: u32) -> Option<KArc<Pid<T>>> {
        self.idr.get(nr)
    }

    fn find_ge(&self, nr: u32) -> Option<(u32, KArc<Pid<T>>)> {
        self.idr.next(nr)
    }

    fn visit(&self, first: u32, last: u32, f: &mut dyn FnMut(u32, &Pid<T>)) {
        self.idr.for_each(&ksync::rcu::read_lock(), first, last, f);
    }

    fn disable(&self, ns: &PidNamespace<T>) {
        let _guard = self.idr.lock().lock();
        let n = &ns.pid_allocated;
        n.store(n.load(Relaxed) & !PIDNS_ADDING, Release);
    }

    fn trim(&self) {
        self.idr.let_go(&mut self.idr.lock().lock());
    }

    fn check_invariants(&self, ns: &PidNamespace<T>) {
        let (taken, _) = self.idr.check_invariants(&mut self.idr.lock().lock());
        check_listing(self, ns, taken);
    }
}
