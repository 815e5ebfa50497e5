//! The `idr-relock` map: a radix tree per namespace, one lock for all, taken again and again. Linux 4.15 to 6.19.
//!
//! Mechanism. As `idr`, but `pidmap_lock` is taken once per level to take a number, each time with nodes
//! allocated before, and once more to show the pid at all levels, by a walk of each tree. So a clone in
//! the root takes it twice, one four levels down six times; free takes it once. Between the holds other
//! CPUs get in: each hand-over moves the lock's line and the trees' to another CPU and back.
//!
//! As Linux does it, a number is found by a walk from the top of its tree and shown by a second one, and a tree node is
//! freed as soon as no number in it is taken.
//!
//! Numbers rise cyclically, as in `idr`.
//!
//! Lock order: `pidmap_lock` is a leaf, except for the wait queue of a namespace that drains.

use crate::idr::{check_listing, note_dropped};
use crate::map::{PidMap, PidMaps, Plan, other_kind};
use crate::namespace::{PIDNS_ADDING, PidNamespace};
use crate::object::Pid;
use crate::{Member, PidError};
use ::xarray::{AllocRange, Idr, IdrError, IdrGuard, IdrLock, Preload, Reserved};
use core::sync::atomic::Ordering::*;
use ksync::lock_class;
use slab::{AllocError, KArc};

/// On a cache line of its own: every clone and exit writes it.
#[repr(align(64))]
struct Padded(IdrLock);

static PIDMAP_LOCK: Padded = Padded(IdrLock::new(lock_class!("pidmap_lock")));

/// The numbers of one namespace.
pub struct RelockMap<T: Member> {
    idr: Idr<Pid<T>>,
}

type Taken<'a, T> = Reserved<'a, Pid<T>>;

/// Takes the number of one level, in a hold of its own.
#[inline(always)]
fn reserve<'a, T: Member, const N: usize>(
    plan: &Plan<'a, T, N>,
    at: usize,
    ns: &'a PidNamespace<T>,
) -> Result<Taken<'a, T>, PidError> {
    let idr = &RelockMap::of(ns).idr;
    let mut spare = Preload::new();
    let hint = idr.spare_hint(AllocRange { min: 1, max: 0 });
    if hint != 0 {
        // A failure shows under the lock, if the nodes are needed at all.
        let _ = spare.fill(hint);
    }
    loop {
        let need = {
            let mut guard = PIDMAP_LOCK.0.lock();
            if at == 0 && ns.pid_allocated.load(Relaxed) == PIDNS_ADDING {
                idr.set_cursor(&mut guard, 0);
            }
            let got = match plan.tids.get(at) {
                Some(&tid) => idr.reserve_at(&mut guard, tid, &mut spare),
                None => {
                    let min = Plan::<T, N>::automatic_min(idr.cursor());
                    let max = plan.limits[at] - 1;
                    idr.reserve_by_walk(&mut guard, AllocRange { min, max }, &mut spare)
                }
            };
            match got {
                Ok(reserved) => return Ok(reserved),
                Err(IdrError::Exists) => return Err(PidError::Exists),
                Err(IdrError::Full) => return Err(PidError::Exhausted),
                Err(IdrError::NeedNodes(nr)) => nr,
            }
        };
        note_dropped();
        spare.fill(need)?;
    }
}

/// Shows the pid at every level, unless one has stopped. Under the lock.
#[inline(always)]
fn publish<T: Member, const N: usize>(
    plan: &Plan<'_, T, N>,
    taken: &mut [Option<Taken<'_, T>>; N],
    guard: &mut IdrGuard<'_>,
) -> Result<(), PidError> {
    if !plan.ns.chain().take(N).all(|ns| ns.is_adding()) {
        return Err(PidError::NoMemory);
    }
    for (reserved, ns) in taken.iter_mut().zip(plan.ns.chain()) {
        if let Some(reserved) = reserved.take() {
            reserved.publish_by_walk(guard, plan.pid.clone());
            let n = &ns.pid_allocated;
            n.store(n.load(Relaxed) + 1, Relaxed);
        }
    }
    Ok(())
}

impl<T: Member> PidMap<T> for RelockMap<T> {
    const NAME: &'static str = "idr-relock";

    fn new(_: Option<&Self>) -> Result<Self, AllocError> {
        Ok(RelockMap {
            idr: Idr::new(&PIDMAP_LOCK.0),
        })
    }

    #[inline(always)]
    fn of(ns: &PidNamespace<T>) -> &Self {
        match ns.map() {
            PidMaps::IdrRelock(map) => map,
            _ => other_kind(),
        }
    }

    #[inline]
    fn alloc<const N: usize>(plan: &Plan<'_, T, N>) -> Result<(), PidError> {
        let mut taken = [const { None }; N];
        let mut result = Ok(());
        for (at, ns) in plan.ns.chain().take(N).enumerate() {
            match reserve(plan, at, ns) {
                Ok(reserved) => {
                    let nr = reserved.id();
                    plan.pid.set_nr(ns.level(), nr);
                    taken[at] = Some(reserved);
                    result = Plan::<T, N>::check_first(ns, nr);
                }
                Err(e) => result = Err(e),
            }
            if result.is_err() {
                break;
            }
        }
        let mut guard = PIDMAP_LOCK.0.lock();
        if result.is_ok() {
            result = publish(plan, &mut taken, &mut guard);
        }
        if result.is_err() {
            taken
                .into_iter()
                .flatten()
                .for_each(|reserved| reserved.cancel(&mut guard));
        }
        result
    }

    #[inline]
    fn free(pid: &KArc<Pid<T>>) {
        let mut guard = PIDMAP_LOCK.0.lock();
        if !pid.mark_freed() {
            return;
        }
        for ns in pid.ns().chain() {
            // Not the last reference: the caller has one.
            let removed = Self::of(ns).idr.remove(&mut guard, pid.nr_at(ns.level()));
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
        let _guard = PIDMAP_LOCK.0.lock();
        let n = &ns.pid_allocated;
        n.store(n.load(Relaxed) & !PIDNS_ADDING, Release);
    }

    fn check_invariants(&self, ns: &PidNamespace<T>) {
        let (taken, _) = self.idr.check_invariants(&mut PIDMAP_LOCK.0.lock());
        check_listing(self, ns, taken);
    }
}
