//! `IMmap`: the closed set of structures for a file's mappings, and the words that select them.
//!
//! Problem. Designs shall be compared in one kernel, at no cost for being chosen. Mechanism. One enum, one inlined match per
//! method. A file carries its structure.
//!
//! | word | trees | a mutator | a walker | fork order by |
//! |---|---|---|---|---|
//! | `global` | 1 | writes one lock | shares it | order in the tree |
//! | `node-trees` | 1 per node | writes one lock | shares it | order in the parent's tree |
//! | `node-locks` | 1 per node | writes its tree's lock | shares all, held together | order in the parent's tree |
//! | `inverted` | 1 per 8 CPUs | shares one, a shard's spinlock | writes the one | exclusion |
//! | `adaptive` | `global`, or as `inverted` | as there | as there | order in the parent's tree |
//! | `best` | 1, then 1 per CPU | writes its CPU's lock | shares them in turn | order, else exclusion |
//!
//! Invariants and lock order: [`crate::contract`] and each structure's file.

pub use crate::adaptive::Adaptive;
pub use crate::best::Best;
pub use crate::by_node::{NodeLocks, NodeTrees};
use crate::contract::{Adjust, FileRmap, MapNode, NodePtr};
pub use crate::global::Global;
pub use crate::inverted::Inverted;
use slab::AllocError;

/// Makes the enum, its kinds and its dispatch from the list of structures.
macro_rules! structures {
    ($($kind:ident),+) => {
        /// The closed set of i_mmap structures. An AddressSpace owns one, chosen when it is made.
        pub enum IMmap {
            $(
                #[doc = concat!("[`", stringify!($kind), "`].")]
                $kind($kind),
            )+
        }

        /// Names a structure of [`IMmap`].
        #[derive(Copy, Clone, Debug, PartialEq, Eq, Default)]
        pub enum IMmapKind {
            #[default]
            $(
                #[doc = concat!("[`", stringify!($kind), "`].")]
                $kind,
            )+
        }

        impl IMmapKind {
            /// All kinds, with the words that select them.
            pub const ALL: &'static [(&'static str, IMmapKind)] =
                &[$(($kind::NAME, IMmapKind::$kind)),+];
        }

        /// Runs `$body` with `$map` bound to the structure inside.
        macro_rules! visit {
            ($self:expr, $map:ident => $body:expr) => {
                match $self { $(IMmap::$kind($map) => $body,)+ }
            };
        }

        impl IMmap {
            /// An empty set of this kind.
            pub fn of(kind: IMmapKind) -> Result<Self, AllocError> {
                Ok(match kind { $(IMmapKind::$kind => IMmap::$kind($kind::new()?),)+ })
            }

            /// The kind of this structure.
            pub fn kind(&self) -> IMmapKind {
                match self { $(IMmap::$kind(_) => IMmapKind::$kind,)+ }
            }
        }
    };
}

structures!(Global, NodeTrees, NodeLocks, Inverted, Adaptive, Best);

// An idle file pays for the largest: at most 64 bytes more than for the base line.
const _: () = assert!(size_of::<IMmap>() <= size_of::<Global>() + 64);

impl IMmapKind {
    /// The kind that `word` selects.
    pub fn from_name(word: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(name, _)| *name == word)
            .map(|&(_, kind)| kind)
    }

    /// The word that selects it.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

impl IMmap {
    /// The word that selects this structure.
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }
}

impl FileRmap for IMmap {
    const NAME: &'static str = "i_mmap";

    fn new() -> Result<Self, AllocError> {
        Self::of(IMmapKind::default())
    }
    #[inline]
    unsafe fn insert(&self, node: NodePtr) {
        // SAFETY: passed on.
        visit!(self, map => unsafe { map.insert(node) })
    }
    #[inline]
    unsafe fn fork<R>(&self, parent: NodePtr, child: NodePtr, copy: impl FnOnce() -> R) -> R {
        // SAFETY: passed on.
        visit!(self, map => unsafe { map.fork(parent, child, copy) })
    }
    #[inline]
    unsafe fn insert_copies(&self, pairs: &[(NodePtr, NodePtr)]) {
        // SAFETY: passed on.
        visit!(self, map => unsafe { map.insert_copies(pairs) })
    }
    #[inline]
    unsafe fn remove(&self, nodes: &[NodePtr]) {
        // SAFETY: passed on.
        visit!(self, map => unsafe { map.remove(nodes) })
    }
    #[inline]
    unsafe fn adjust(&self, adjust: Adjust<'_>, meanwhile: impl FnOnce()) {
        // SAFETY: passed on.
        visit!(self, map => unsafe { map.adjust(adjust, meanwhile) })
    }
    #[inline]
    fn for_each_overlap(&self, first: u64, last: u64, f: impl FnMut(&MapNode)) {
        visit!(self, map => map.for_each_overlap(first, last, f))
    }
    fn is_empty(&self) -> bool {
        visit!(self, map => map.is_empty())
    }
    fn check_invariants(&self) -> usize {
        visit!(self, map => map.check_invariants())
    }
}
