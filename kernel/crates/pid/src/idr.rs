//! The `idr` and `multi-xarray` maps: a radix tree per namespace, one lock for all.
//!
//! Mechanism. `pidmap_lock` is taken once per allocation and once per free, whatever the depth. Under
//! it: reserve a number at each level from the leaf up, check that no level is stopped, show the
//! pid at each level. Look-ups are lockless. The two differ in when tree nodes are allocated:
//!
//! - `idr` (Linux since 7.0): before the lock, when the cursor says that one is due (every 64th
//!   number). If the guess was wrong the lock is dropped, nodes are allocated, and that level is tried
//!   again.
//! - `multi-xarray` (Wilcox, 2025, a sketch): never before. The arrays know the lock that they share, and
//!   drop it when one of them needs a node; [`nr_dropped`] counts how often.
//!
//! Numbers rise cyclically: one is reused only after all others up to `pid_max` had their turn.
//!
//! Lock order: `pidmap_lock` is a leaf, except for the wait queue of a namespace that drains.

use crate::map::{PidMap, PidMaps, Plan, other_kind};
use crate::namespace::{PIDNS_ADDING, PidNamespace};
use crate::object::Pid;
use crate::{Member, PidError};
use ::xarray::{AllocRange, Idr, IdrError, IdrGuard, IdrLock, Preload, Reserved};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering::*};
use ksync::lock_class;
use slab::{AllocError, KArc};

/// On a cache line of its own: every clone and exit writes it.
#[repr(align(64))]
struct Padded(IdrLock);

static PIDMAP_LOCK: Padded = Padded(IdrLock::new(lock_class!("pidmap_lock")));

/// When tree nodes are allocated.
pub trait Refill: Sized + 'static {
    /// The word on the boot line.
    const NAME: &'static str;
    /// Before the lock, if one is due.
    const PRELOAD: bool;
    /// The map inside, if it is of this kind.
    fn pick<T: Member>(maps: &PidMaps<T>) -> Option<&IdrMap<T, Self>>;
}

/// Before the lock, if one is due: `idr`.
pub struct Preloaded;
/// When one is missing: `multi-xarray`.
pub struct Lazy;

impl Refill for Preloaded {
    const NAME: &'static str = "idr";
    const PRELOAD: bool = true;
    #[inline(always)]
    fn pick<T: Member>(maps: &PidMaps<T>) -> Option<&IdrMap<T, Self>> {
        if let PidMaps::Idr(map) = maps {
            Some(map)
        } else {
            None
        }
    }
}

impl Refill for Lazy {
    const NAME: &'static str = "multi-xarray";
    const PRELOAD: bool = false;
    #[inline(always)]
    fn pick<T: Member>(maps: &PidMaps<T>) -> Option<&IdrMap<T, Self>> {
        if let PidMaps::MultiXarray(map) = maps {
            Some(map)
        } else {
            None
        }
    }
}

/// How often a lock was dropped because a tree needed nodes under it; see [`nr_dropped`].
static NR_DROPPED: AtomicU64 = AtomicU64::new(0);

/// How often, since boot, an allocation of any map found no node at hand under its lock and dropped it to allocate one.
pub fn nr_dropped() -> u64 {
    NR_DROPPED.load(Relaxed)
}

/// An allocation drops its lock for nodes.
#[inline]
pub(crate) fn note_dropped() {
    NR_DROPPED.fetch_add(1, Relaxed);
}

/// The numbers of one namespace.
pub struct IdrMap<T: Member, R: Refill> {
    idr: Idr<Pid<T>>,
    refill: PhantomData<fn() -> R>,
}

/// What one allocation carries along: the lock, which may be dropped for a while, and spare nodes.
struct Hold {
    guard: IdrGuard<'static>,
    spare: Preload,
}

impl Hold {
    /// Drops the lock, gets `nr` spare nodes, takes the lock again.
    #[cold]
    fn refill(self, nr: usize) -> (Self, Result<(), AllocError>) {
        let Hold { guard, mut spare } = self;
        drop(guard);
        note_dropped();
        let filled = spare.fill(nr);
        let guard = PIDMAP_LOCK.0.lock();
        (Hold { guard, spare }, filled)
    }
}

type Taken<'a, T> = Reserved<'a, Pid<T>>;

/// Takes the number of one level.
#[inline(always)]
fn reserve<'a, T: Member, R: Refill, const N: usize>(
    plan: &Plan<'a, T, N>,
    at: usize,
    ns: &'a PidNamespace<T>,
    hold: &mut Hold,
) -> Result<Taken<'a, T>, IdrError> {
    let idr = &IdrMap::<T, R>::of(ns).idr;
    match plan.tids.get(at) {
        Some(&tid) => idr.reserve_at(&mut hold.guard, tid, &mut hold.spare),
        None => {
            let min = Plan::<T, N>::automatic_min(idr.cursor());
            let range = AllocRange {
                min,
                max: plan.limits[at] - 1,
            };
            idr.reserve_cyclic(&mut hold.guard, range, &mut hold.spare)
        }
    }
}

/// Takes the numbers of all levels, leaf first. Those in `taken` are the caller's, also on error.
#[inline(always)]
fn reserve_all<'a, T: Member, R: Refill, const N: usize>(
    plan: &Plan<'a, T, N>,
    mut hold: Hold,
    taken: &mut [Option<Taken<'a, T>>; N],
) -> (Hold, Result<(), PidError>) {
    for (at, ns) in plan.ns.chain().take(N).enumerate() {
        let mut got = reserve::<T, R, N>(plan, at, ns, &mut hold);
        // Usually once; again when, while the lock was dropped, others moved the cursor to where more nodes are
        // missing. Each round has more spare nodes than the one before, and a path needs no more than the height.
        while let Err(IdrError::NeedNodes(nr)) = got {
            let filled;
            (hold, filled) = hold.refill(nr);
            if filled.is_err() {
                return (hold, Err(PidError::NoMemory));
            }
            got = reserve::<T, R, N>(plan, at, ns, &mut hold);
        }
        let reserved = match got {
            Ok(reserved) => reserved,
            Err(IdrError::Exists) => return (hold, Err(PidError::Exists)),
            Err(IdrError::Full) => return (hold, Err(PidError::Exhausted)),
            Err(IdrError::NeedNodes(_)) => unreachable!("the loop above ends with another result"),
        };
        let nr = reserved.id();
        taken[at] = Some(reserved);
        plan.pid.set_nr(ns.level(), nr);
        if let Err(e) = Plan::<T, N>::check_first(ns, nr) {
            return (hold, Err(e));
        }
    }
    // Last, so that the other errors have precedence.
    let open = plan.ns.chain().take(N).all(|ns| ns.is_adding());
    (
        hold,
        if open {
            Ok(())
        } else {
            Err(PidError::NoMemory)
        },
    )
}

impl<T: Member, R: Refill> PidMap<T> for IdrMap<T, R> {
    const NAME: &'static str = R::NAME;

    fn new(_: Option<&Self>) -> Result<Self, AllocError> {
        Ok(IdrMap {
            idr: Idr::new(&PIDMAP_LOCK.0),
            refill: PhantomData,
        })
    }

    #[inline(always)]
    fn of(ns: &PidNamespace<T>) -> &Self {
        match R::pick(ns.map()) {
            Some(map) => map,
            None => other_kind(),
        }
    }

    #[inline]
    fn alloc<const N: usize>(plan: &Plan<'_, T, N>) -> Result<(), PidError> {
        let mut spare = Preload::new();
        let leaf = &Self::of(plan.ns).idr;
        if R::PRELOAD {
            let hint = leaf.spare_hint(AllocRange { min: 1, max: 0 });
            if hint != 0 {
                // A failure shows under the lock, if the nodes are needed at all.
                let _ = spare.fill(hint);
            }
        }
        let mut hold = Hold {
            guard: PIDMAP_LOCK.0.lock(),
            spare,
        };
        if plan.ns.pid_allocated.load(Relaxed) == PIDNS_ADDING {
            // An init that failed on its way may be tried again, and still be 1.
            leaf.set_cursor(&mut hold.guard, 0);
        }
        let mut taken = [const { None }; N];
        let (mut hold, result) = reserve_all::<T, R, N>(plan, hold, &mut taken);
        for (reserved, ns) in taken.into_iter().zip(plan.ns.chain()) {
            let Some(reserved) = reserved else { break };
            if result.is_ok() {
                reserved.publish(&mut hold.guard, plan.pid.clone());
                let n = &ns.pid_allocated;
                n.store(n.load(Relaxed) + 1, Relaxed);
            } else {
                reserved.cancel(&mut hold.guard);
            }
        }
        let Hold { guard, spare } = hold;
        drop(guard);
        drop(spare);
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

    fn trim(&self) {
        self.idr.let_go(&mut PIDMAP_LOCK.0.lock());
    }

    fn check_invariants(&self, ns: &PidNamespace<T>) {
        let (taken, _) = self.idr.check_invariants(&mut PIDMAP_LOCK.0.lock());
        check_listing(self, ns, taken);
    }
}

/// What `find_ge` lists is what is taken and counted, under its own numbers.
pub(crate) fn check_listing<T: Member, M: PidMap<T>>(map: &M, ns: &PidNamespace<T>, taken: usize) {
    assert_eq!(taken, ns.nr_pids() as usize, "INV-PID-4");
    let (mut at, mut listed) = (0, 0);
    while let Some((nr, pid)) = map.find_ge(at) {
        assert!(nr >= at && pid.nr_at(ns.level()) == nr, "INV-PID-3");
        assert!(map.find(nr).is_some_and(|found| KArc::ptr_eq(&found, &pid)));
        at = nr + 1;
        listed += 1;
    }
    assert_eq!(listed, taken, "INV-PID-2");
}
