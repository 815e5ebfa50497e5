//! The contract of a pid map, and the closed set of maps.
//!
//! Every map guarantees INV-PID-1..6 and the order of errors of [`PidError`]. It may choose: the
//! order of numbers and how soon one is reused (every map: not while a later one is free in cyclic
//! order, unless it says otherwise in its own file), what is locked, for how long, and what a
//! look-up costs.

use crate::idr::IdrMap;
use crate::namespace::PidNamespace;
use crate::object::Pid;
use crate::{Member, PidError, RESERVED_PIDS};
use slab::{AllocError, KArc};

/// What `alloc` has to do, checked as far as it can be without the map.
pub struct Plan<'a, T: Member, const N: usize> {
    /// The pid to be numbered and shown; nobody else knows it.
    pub pid: &'a KArc<Pid<T>>,
    /// Its namespace, of a level below `N`.
    pub ns: &'a PidNamespace<T>,
    /// One snapshot of `pid_max` per level, leaf first.
    pub limits: &'a [u32; N],
    /// Numbers asked for, leaf first; levels beyond get the next free one. Each is at least 1 and
    /// below its limit.
    pub tids: &'a [u32],
}

impl<T: Member, const N: usize> Plan<'_, T, N> {
    /// The smallest number of an automatic choice: low ones stay out of reach once the cursor has
    /// passed them.
    #[inline(always)]
    pub fn automatic_min(cursor: u32) -> u32 {
        if cursor > RESERVED_PIDS {
            RESERVED_PIDS
        } else {
            1
        }
    }

    /// The first pid of a namespace is 1, or it is none: checked for each number taken.
    #[inline(always)]
    pub fn check_first(ns: &PidNamespace<T>, nr: u32) -> Result<(), PidError> {
        if nr != 1 && !ns.has_child_reaper() {
            return Err(PidError::Invalid);
        }
        Ok(())
    }
}

/// A map from numbers to pids, one per namespace; operations span the chain of namespaces.
pub trait PidMap<T: Member>: Sized {
    /// The word that selects it on the boot command line.
    const NAME: &'static str;

    /// An empty map.
    fn new() -> Result<Self, AllocError>;

    /// The map of a namespace whose tree uses this kind (INV-PID-8).
    fn of(ns: &PidNamespace<T>) -> &Self;

    /// Takes a number at every level, sets the pid's numbers, and shows it at every level; or changes
    /// nothing but cursors. Context: may not be called with spinlocks held.
    fn alloc<const N: usize>(plan: &Plan<'_, T, N>) -> Result<(), PidError>;

    /// Removes the pid from every level; a second call does nothing. Wakes who waits for a level to
    /// drain. Context: not in hard IRQs; spinlocks may be held.
    fn free(pid: &KArc<Pid<T>>);

    /// The pid under `nr`.
    fn find(&self, nr: u32) -> Option<KArc<Pid<T>>>;

    /// The first pid at or above `nr`, with its number.
    fn find_ge(&self, nr: u32) -> Option<(u32, KArc<Pid<T>>)>;

    /// Clears [`PIDNS_ADDING`](crate::PIDNS_ADDING) so that INV-PID-6 holds.
    fn disable(&self, ns: &PidNamespace<T>);

    /// Panics on a broken invariant. For tests, with nobody else around.
    fn check_invariants(&self, ns: &PidNamespace<T>);
}

/// The closed set of maps.
pub enum PidMaps<T: Member> {
    /// [`IdrMap`].
    Idr(IdrMap<T>),
}

/// Names a map of [`PidMaps`].
#[derive(Copy, Clone, Debug, PartialEq, Eq, Default)]
pub enum PidMapKind {
    /// [`IdrMap`].
    #[default]
    Idr,
}

/// Work for whichever concrete map a kind names.
pub trait MapVisitor<T: Member> {
    /// What the work returns.
    type Out;
    /// The work.
    fn visit<M: PidMap<T>>(self) -> Self::Out;
}

impl PidMapKind {
    /// All kinds.
    pub const ALL: &'static [PidMapKind] = &[PidMapKind::Idr];

    /// The word that selects this kind.
    pub const fn name(self) -> &'static str {
        match self {
            PidMapKind::Idr => "idr",
        }
    }

    /// The kind that `word` selects.
    pub fn from_name(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == word)
    }

    /// Runs `visitor` with the concrete map, for micro-benchmarks.
    pub fn visit<T: Member, V: MapVisitor<T>>(self, visitor: V) -> V::Out {
        match self {
            PidMapKind::Idr => visitor.visit::<IdrMap<T>>(),
        }
    }
}

/// Runs `$body` with `$map` bound to the map inside and `$M` to its type.
macro_rules! dispatch {
    ($maps:expr, $map:ident, $M:ident => $body:expr) => {
        match $maps {
            PidMaps::Idr($map) => {
                #[allow(dead_code)]
                type $M<T> = IdrMap<T>;
                $body
            }
        }
    };
}

impl<T: Member> PidMaps<T> {
    /// An empty map of a kind.
    pub fn of_kind(kind: PidMapKind) -> Result<Self, AllocError> {
        match kind {
            PidMapKind::Idr => IdrMap::new().map(PidMaps::Idr),
        }
    }

    /// This map's kind.
    pub fn kind(&self) -> PidMapKind {
        match self {
            PidMaps::Idr(_) => PidMapKind::Idr,
        }
    }

    /// See [`PidMap::alloc`].
    #[inline(always)]
    pub(crate) fn alloc<const N: usize>(plan: &Plan<'_, T, N>) -> Result<(), PidError> {
        dispatch!(plan.ns.map(), _map, M => M::alloc(plan))
    }

    /// See [`PidMap::free`].
    #[inline(always)]
    pub(crate) fn free(pid: &KArc<Pid<T>>) {
        dispatch!(pid.ns().map(), _map, M => M::free(pid))
    }

    /// See [`PidMap::find`].
    #[inline(always)]
    pub(crate) fn find(&self, nr: u32) -> Option<KArc<Pid<T>>> {
        dispatch!(self, map, M => map.find(nr))
    }

    /// See [`PidMap::find_ge`].
    #[inline(always)]
    pub(crate) fn find_ge(&self, nr: u32) -> Option<(u32, KArc<Pid<T>>)> {
        dispatch!(self, map, M => map.find_ge(nr))
    }

    /// See [`PidMap::disable`].
    pub(crate) fn disable(&self, ns: &PidNamespace<T>) {
        dispatch!(self, map, M => map.disable(ns))
    }

    /// See [`PidMap::check_invariants`].
    pub fn check_invariants(&self, ns: &PidNamespace<T>) {
        dispatch!(self, map, M => map.check_invariants(ns))
    }
}
