//! The contract of a pid map, and the closed set of maps.
//!
//! Every map guarantees INV-PID-1..6 and the order of errors of [`PidError`]. It may choose: the
//! order of numbers and how soon one is reused (every map: not while a later one is free in cyclic
//! order, unless it says otherwise in its own file), what is locked, for how long, and what a
//! look-up costs.

use crate::bitmap_hash::BitmapHashMap;
use crate::idr::{IdrMap, Lazy, Preloaded};
use crate::namespace::PidNamespace;
use crate::object::{Extra, Pid};
use crate::relock::RelockMap;
use crate::sharded::ShardedMap;
use crate::xarray::XarrayMap;
use crate::{Member, PidError, RESERVED_PIDS};
use core::sync::atomic::Ordering::*;
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

    /// An empty map. `parent`: the map of the namespace above.
    fn new(parent: Option<&Self>) -> Result<Self, AllocError>;

    /// The map of a namespace whose tree uses this kind (INV-PID-8).
    fn of(ns: &PidNamespace<T>) -> &Self;

    /// What a pid in `nr` levels must bring.
    #[inline(always)]
    fn extra(_nr: usize) -> Result<Extra<T>, AllocError> {
        Ok(Extra::None)
    }

    /// A pid of `ns` that the map has kept, with its numbers, visible again at every level. None: there is none that can
    /// be had. Context: as `alloc`.
    #[inline(always)]
    fn reuse<const N: usize>(_ns: &KArc<PidNamespace<T>>) -> Option<KArc<Pid<T>>> {
        None
    }

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

    /// Gives each pid from `first` to `last` to `f`, in order, in one RCU section.
    fn visit(&self, first: u32, last: u32, f: &mut dyn FnMut(u32, &Pid<T>)) {
        let _rcu = ksync::rcu::read_lock();
        let mut nr = first;
        while let Some((found, pid)) = self.find_ge(nr).filter(|&(found, _)| found <= last) {
            f(found, &pid);
            nr = found + 1;
        }
    }

    /// Clears [`PIDNS_ADDING`](crate::PIDNS_ADDING). An `alloc` that saw it set shows its pid before the RCU section
    /// ends in which it looked.
    fn disable(&self, ns: &PidNamespace<T>) {
        ns.pid_allocated.fetch_and(!crate::PIDNS_ADDING, AcqRel);
    }

    /// A grace period has passed since [`disable`](Self::disable).
    fn disabled(&self, _ns: &PidNamespace<T>) {}

    /// Gives back memory that this CPU keeps for its next allocation.
    fn trim(&self) {}

    /// Pids visible in `ns`, which this is the map of: exact while nobody allocates or frees.
    fn nr_pids(&self, ns: &PidNamespace<T>) -> u32 {
        ns.pid_allocated.load(Acquire) & !crate::PIDNS_ADDING
    }

    /// A reference to a namespace, for a pid.
    #[inline(always)]
    fn get_ns(ns: &KArc<PidNamespace<T>>) -> KArc<PidNamespace<T>> {
        ns.clone()
    }

    /// Gives one back.
    #[inline(always)]
    fn put_ns(ns: KArc<PidNamespace<T>>) {
        drop(ns);
    }

    /// Panics on a broken invariant. For tests, with nobody else around.
    fn check_invariants(&self, ns: &PidNamespace<T>);
}

/// Work for whichever concrete map a kind names.
pub trait MapVisitor<T: Member> {
    /// What the work returns.
    type Out;
    /// The work.
    fn visit<M: PidMap<T>>(self) -> Self::Out;
}

/// Declares the closed set: the enum of maps, their names, and the two ways to reach the one inside.
macro_rules! maps {
    ($($(#[$doc:meta])* $kind:ident = $word:literal, $map:ty;)*) => {
        /// The closed set of maps. One per namespace, in its memory: a box would be a line more to read at each allocation.
        #[allow(clippy::large_enum_variant)]
        pub enum PidMaps<T: Member> {
            $($(#[$doc])* $kind($map),)*
        }

        /// Names a map of [`PidMaps`].
        #[derive(Copy, Clone, Debug, PartialEq, Eq)]
        pub enum PidMapKind {
            $($(#[$doc])* $kind,)*
        }

        impl PidMapKind {
            /// All kinds.
            pub const ALL: &'static [PidMapKind] = &[$(PidMapKind::$kind),*];

            /// The word that selects this kind.
            pub const fn name(self) -> &'static str {
                match self { $(PidMapKind::$kind => $word,)* }
            }

            /// Runs `visitor` with the concrete map, for micro-benchmarks.
            pub fn visit<T: Member, V: MapVisitor<T>>(self, visitor: V) -> V::Out {
                match self { $(PidMapKind::$kind => visitor.visit::<$map>(),)* }
            }
        }

        impl<T: Member> PidMaps<T> {
            /// An empty map of a kind. `parent`: the map above, of the same kind (INV-PID-8).
            pub fn of_kind(kind: PidMapKind, parent: Option<&Self>) -> Result<Self, AllocError> {
                match kind {
                    $(PidMapKind::$kind => {
                        let parent = match parent {
                            Some(PidMaps::$kind(map)) => Some(map),
                            _ => None,
                        };
                        <$map>::new(parent).map(PidMaps::$kind)
                    })*
                }
            }

            /// This map's kind.
            pub fn kind(&self) -> PidMapKind {
                match self { $(PidMaps::$kind(_) => PidMapKind::$kind,)* }
            }
        }

        /// Runs `$body` with `$m` bound to the map inside and `$M` to its type.
        macro_rules! dispatch {
            ($maps:expr, $m:ident, $M:ident => $body:expr) => {
                match $maps {
                    $(PidMaps::$kind($m) => {
                        #[allow(dead_code)]
                        type $M<T> = $map;
                        $body
                    })*
                }
            };
        }
    };
}

maps! {
    /// [`IdrMap`] as Linux has it since 7.0.
    Idr = "idr", IdrMap<T, Preloaded>;
    /// [`RelockMap`].
    IdrRelock = "idr-relock", RelockMap<T>;
    /// [`XarrayMap`].
    Xarray = "xarray", XarrayMap<T>;
    /// [`IdrMap`] without preloading.
    MultiXarray = "multi-xarray", IdrMap<T, Lazy>;
    /// [`BitmapHashMap`].
    BitmapHash = "bitmap-hash", BitmapHashMap<T>;
    /// [`ShardedMap`].
    Sharded = "sharded", ShardedMap<T>;
}

impl Default for PidMapKind {
    /// Linux's of today.
    fn default() -> Self {
        PidMapKind::Idr
    }
}

impl PidMapKind {
    /// The kind that `word` selects.
    pub fn from_name(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == word)
    }
}

impl<T: Member> PidMaps<T> {
    /// See [`PidMap::extra`].
    pub(crate) fn extra(&self, nr: usize) -> Result<Extra<T>, AllocError> {
        dispatch!(self, _map, M => <M<T> as PidMap<T>>::extra(nr))
    }

    /// [`alloc_in`](crate::alloc::alloc_in) with the concrete map.
    #[inline(always)]
    pub(crate) fn alloc_in<const N: usize>(
        ns: &KArc<PidNamespace<T>>,
    ) -> Result<KArc<Pid<T>>, PidError> {
        dispatch!(ns.map(), _map, M => crate::alloc::alloc_in::<T, M<T>, N>(ns))
    }

    /// See [`PidMap::get_ns`].
    #[inline(always)]
    pub(crate) fn get_ns(ns: &KArc<PidNamespace<T>>) -> KArc<PidNamespace<T>> {
        dispatch!(ns.map(), _map, M => <M<T> as PidMap<T>>::get_ns(ns))
    }

    /// See [`PidMap::put_ns`].
    #[inline(always)]
    pub(crate) fn put_ns(ns: KArc<PidNamespace<T>>) {
        dispatch!(ns.map(), _map, M => <M<T> as PidMap<T>>::put_ns(ns))
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

    /// See [`PidMap::visit`].
    pub(crate) fn visit(&self, first: u32, last: u32, f: &mut dyn FnMut(u32, &Pid<T>)) {
        dispatch!(self, map, M => map.visit(first, last, f))
    }

    /// See [`PidMap::disable`].
    pub(crate) fn disable(&self, ns: &PidNamespace<T>) {
        dispatch!(self, map, M => map.disable(ns))
    }

    /// See [`PidMap::disabled`].
    pub(crate) fn disabled(&self, ns: &PidNamespace<T>) {
        dispatch!(self, map, M => map.disabled(ns))
    }

    /// See [`PidMap::trim`].
    pub fn trim(&self) {
        dispatch!(self, map, M => map.trim())
    }

    /// See [`PidMap::nr_pids`].
    pub(crate) fn nr_pids(&self, ns: &PidNamespace<T>) -> u32 {
        dispatch!(self, map, M => map.nr_pids(ns))
    }

    /// See [`PidMap::check_invariants`].
    pub fn check_invariants(&self, ns: &PidNamespace<T>) {
        dispatch!(self, map, M => map.check_invariants(ns))
    }
}

/// INV-PID-8 is broken.
#[cold]
pub(crate) fn other_kind() -> ! {
    panic!("INV-PID-8: a namespace's map is of another kind")
}
