//! Taking, returning and finding numbers: what is the same for every map.

use crate::map::{PidMap, PidMaps, Plan};
use crate::namespace::{NsRef, PidNamespace};
use crate::object::{Numbers, Pid};
use crate::{MAX_NUMBERS, Member, PidError};
use slab::KArc;

/// A new pid in `ns` and its ancestors, visible when this returns. May not be called with spinlocks
/// held. The caller attaches tasks, or returns it with [`free_pid`].
#[inline]
pub fn alloc_pid<T: Member>(ns: &KArc<PidNamespace<T>>) -> Result<KArc<Pid<T>>, PidError> {
    if ns.level() == 0 {
        PidMaps::alloc_in::<1>(ns)
    } else {
        alloc_nested(ns)
    }
}

/// Arrays as long as the class of depth needs, in frames of their own.
#[inline(never)]
fn alloc_nested<T: Member>(ns: &KArc<PidNamespace<T>>) -> Result<KArc<Pid<T>>, PidError> {
    match ns.level() {
        0..=3 => PidMaps::alloc_in::<4>(ns),
        _ => alloc_deep(ns),
    }
}

#[inline(never)]
fn alloc_deep<T: Member>(ns: &KArc<PidNamespace<T>>) -> Result<KArc<Pid<T>>, PidError> {
    PidMaps::alloc_in::<MAX_NUMBERS>(ns)
}

/// [`alloc_pid`] with chosen numbers, as clone3's set_tid: `tids[0]` for `ns` itself, `tids[1]` for
/// its parent and so on; levels beyond choose by themselves. `capable` says whether the caller may
/// choose in a namespace.
#[cold]
pub fn alloc_pid_with<T: Member>(
    ns: &KArc<PidNamespace<T>>,
    tids: &[i32],
    capable: impl Fn(&PidNamespace<T>) -> bool,
) -> Result<KArc<Pid<T>>, PidError> {
    if tids.len() > ns.level() as usize + 1 {
        return Err(PidError::Invalid);
    }
    let pid = KArc::try_uninit()?;
    let numbers = Numbers::new::<MAX_NUMBERS>()?;
    let extra = ns.map().extra(ns.level() as usize + 1)?;
    let limits: [u32; MAX_NUMBERS] = snapshot(ns);
    let mut chosen = [0; MAX_NUMBERS];
    for (i, (&tid, ns)) in tids.iter().zip(ns.chain()).enumerate() {
        chosen[i] = u32::try_from(tid).unwrap_or(0);
        if chosen[i] == 0 || chosen[i] >= limits[i] {
            return Err(PidError::Invalid);
        }
        if !capable(ns) {
            return Err(PidError::Perm);
        }
    }
    let pid = pid.write(Pid::new(NsRef::new(ns), numbers, extra));
    PidMaps::alloc(&Plan {
        pid: &pid,
        ns,
        limits: &limits,
        tids: &chosen[..tids.len()],
    })?;
    Ok(pid)
}

/// [`alloc_pid`] with map `M`, in a namespace of a level below `N`.
#[inline(always)]
pub(crate) fn alloc_in<T: Member, M: PidMap<T>, const N: usize>(
    ns: &KArc<PidNamespace<T>>,
) -> Result<KArc<Pid<T>>, PidError> {
    if let Some(pid) = M::reuse::<N>(ns) {
        return Ok(pid);
    }
    let pid = KArc::try_uninit()?;
    let numbers = Numbers::new::<N>()?;
    let extra = M::extra(N)?;
    let pid = pid.write(Pid::new(NsRef::of_map::<M>(ns), numbers, extra));
    M::alloc(&Plan {
        pid: &pid,
        ns,
        limits: &snapshot::<T, N>(ns),
        tids: &[],
    })?;
    Ok(pid)
}

/// One look at every level's `pid_max`.
#[inline(always)]
fn snapshot<T: Member, const N: usize>(ns: &PidNamespace<T>) -> [u32; N] {
    let mut limits = [0; N];
    for (limit, ns) in limits.iter_mut().zip(ns.chain()) {
        *limit = ns.pid_max();
    }
    limits
}

/// Takes the pid out of sight at every level; its numbers are free when this returns. The object goes
/// with its last reference, a grace period later. Call it when [`Pid::detach`] says so, or for a
/// pid that got no task. A second call does nothing. Not from hard IRQs.
#[inline]
pub fn free_pid<T: Member>(pid: &KArc<Pid<T>>) {
    debug_assert!(!pid.is_used(), "INV-PID-5");
    PidMaps::free(pid);
}

/// The pid that `nr` names in `ns`. Lockless, any context but hard IRQ.
#[inline]
pub fn find_pid_ns<T: Member>(nr: u32, ns: &PidNamespace<T>) -> Option<KArc<Pid<T>>> {
    ns.map().find(nr)
}

/// The first pid of `ns` at or above `nr`, with its number there: for listing. Lockless.
#[inline]
pub fn find_ge_pid<T: Member>(nr: u32, ns: &PidNamespace<T>) -> Option<(u32, KArc<Pid<T>>)> {
    ns.map().find_ge(nr)
}

/// Gives each pid of `ns` from `first` to `last` to `f`, in order, with its number there: for listing. Lockless; `f` runs
/// in an RCU section.
pub fn visit_pids<T: Member>(
    ns: &PidNamespace<T>,
    first: u32,
    last: u32,
    mut f: impl FnMut(u32, &Pid<T>),
) {
    ns.map().visit(first, last, &mut f);
}
