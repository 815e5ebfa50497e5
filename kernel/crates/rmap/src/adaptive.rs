//! `i_mmap=adaptive`: one tree until its lock is fought for; then shards; and back.
//!
//! Problem. Most files are mapped by few, and for them one tree and one lock are the best there is.
//!
//! Mechanism. Two modes, told apart by the value under the outer lock.
//!
//! ```text
//!   central   mutators hold `outer` for writing, walkers for reading: the base line
//!      | ^    many holds had to wait, lately             | a walk finds that since the walk before it there
//!      v |                                               | were fewer changes than there are shards
//!   split     mutators hold `outer` for reading and one shard's spinlock, walkers hold `outer` for writing: `inverted`
//! ```
//!
//! Going over moves nothing: the central tree stays as one shard more, `HOME`. Going back moves all nodes into it, which the
//! walk that decides on it pays (it was about to visit them anyway). The table of shards is made when it is first
//! needed and kept; if there is no memory for it, everything stays central.
//!
//! Fork (INV-RMAP-4), by order: the child goes into its parent's tree, behind it. Going back keeps the order of two nodes
//! of the same tree: it moves tree after tree, in order. (Exclusion, as in `inverted`, would do in split mode only: a central
//! mutator would hold everybody off during the copy.)
//!
//! Lock order: `i_mmap_rwsem`; `i_mmap_shard`, or what `visit` takes.
//!
//! Invariants
//! - INV-ADAPT-1: INV-SHARD-1, where the outer lock is `outer`. In central mode nobody who shares `outer` changes a tree, and
//!   all nodes are in `home`.
//! - INV-ADAPT-2: a node's `shard` is HOME or the index of its shard plus one; a holder of `outer` may rely on it.
//! - INV-ADAPT-3: in split mode `table` is not null; once set it does not change.

use crate::contract::{Adjust, FileRmap, MapNode, NodePtr};
use crate::tree::{Padded, SpinShard, Table, Tree, apply, nr_cpu_shards, this_cpu_shard};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering::*};
use ksync::{RwSem, RwSemReadGuard, RwSemWriteGuard, lock_class};
use slab::{AllocError, KBox};

const HOME: u32 = 0;

/// What a hold that had to wait adds to the score; one that had not takes 1 away.
const WAITED: u32 = 32;
/// The score at which the set splits: about 3 % of the holds wait, and have done so for a while.
const SPLIT_AT: u32 = if cfg!(test) { 64 } else { 1024 };

#[derive(Copy, Clone, PartialEq, Eq)]
enum Mode {
    Central,
    Split,
}

/// Central until contended.
pub struct Adaptive {
    outer: RwSem<Mode>,
    /// Repeats the mode for those who must choose how to lock; looked at again under the lock.
    split: AtomicBool,
    /// How contended `outer` has been. Written by holders for writing.
    score: AtomicU32,
    home: SpinShard,
    table: AtomicPtr<Table<Padded<SpinShard>>>,
}

/// How a mutator got in.
enum Entered<'a> {
    /// Alone.
    Central { _held: RwSemWriteGuard<'a, Mode> },
    /// With others.
    Split { _held: RwSemReadGuard<'a, Mode> },
}

impl Adaptive {
    /// The shards. In split mode, with `outer` held.
    #[inline(always)]
    fn shards(&self) -> &[Padded<SpinShard>] {
        // SAFETY: null, or a table that lives as long as we (INV-ADAPT-3).
        match unsafe { self.table.load(Acquire).as_ref() } {
            Some(table) => table,
            None => &[],
        }
    }

    #[inline(always)]
    fn shard(&self, i: u32) -> &SpinShard {
        match i {
            HOME => &self.home,
            i => &self.shards()[i as usize - 1].0,
        }
    }

    #[inline]
    fn enter(&self) -> Entered<'_> {
        loop {
            if self.split.load(Relaxed) {
                let held = self.outer.read();
                if *held == Mode::Split {
                    return Entered::Split { _held: held };
                }
            } else {
                let held = match self.outer.try_write() {
                    Some(held) => {
                        let score = self.score.load(Relaxed);
                        self.score.store(score.saturating_sub(1), Relaxed);
                        held
                    }
                    None => self.enter_late(),
                };
                if *held == Mode::Central {
                    return Entered::Central { _held: held };
                }
            }
        }
    }

    #[cold]
    fn enter_late(&self) -> RwSemWriteGuard<'_, Mode> {
        let mut held = self.outer.write();
        let score = self.score.load(Relaxed).saturating_add(WAITED);
        self.score.store(score, Relaxed);
        if score >= SPLIT_AT && *held == Mode::Central {
            self.score.store(0, Relaxed);
            self.go_split(&mut held);
        }
        held
    }

    /// `outer` is held for writing.
    fn go_split(&self, mode: &mut Mode) {
        if self.table.load(Relaxed).is_null() {
            let made =
                Table::new(nr_cpu_shards(), |_| Padded(SpinShard::new())).and_then(KBox::new);
            // No memory: later perhaps.
            let Ok(table) = made else { return };
            self.table.store(KBox::into_raw(table).as_ptr(), Release);
        }
        *mode = Mode::Split;
        self.split.store(true, Relaxed);
    }

    /// `outer` is held for writing, in split mode, by a walker: returns to the central tree if few have changed anything.
    fn maybe_go_back(&self, mode: &mut Mode) {
        let all = || self.shards().iter().map(|s| &s.0).chain([&self.home]);
        let changes: u64 = all().map(|s| u64::from(s.take_changes())).sum();
        if changes >= self.shards().len() as u64 {
            return;
        }
        for shard in self.shards() {
            // SAFETY: `outer` is held for writing (INV-ADAPT-1). INVARIANT: INV-ADAPT-2.
            unsafe {
                let home = self.home.tree().as_mut();
                shard.0.tree().as_mut().drain_into(home, HOME);
            }
        }
        *mode = Mode::Central;
        self.split.store(false, Relaxed);
    }

    /// Runs `f` on the tree of shard `i`.
    #[inline(always)]
    fn with<R>(&self, entered: &Entered<'_>, i: u32, f: impl FnOnce(&mut Tree) -> R) -> R {
        let shard = self.shard(i);
        let _held = matches!(entered, Entered::Split { .. }).then(|| shard.lock());
        // SAFETY: INV-ADAPT-1: we are alone, or share `outer` in split mode and hold the shard's lock.
        f(unsafe { shard.tree().as_mut() })
    }

    /// Calls `f` with every tree and its name. `outer` is held: for writing, or for reading in central mode.
    fn for_each_tree(&self, mut f: impl FnMut(u32, &Tree)) {
        let shards = [&self.home]
            .into_iter()
            .chain(self.shards().iter().map(|s| &s.0));
        for (i, shard) in (0..).zip(shards) {
            // SAFETY: nobody changes trees (INV-ADAPT-1).
            f(i, unsafe { shard.tree().as_ref() });
        }
    }

    /// Calls `f` with all trees standing still.
    fn stabilised<R>(&self, f: impl FnOnce() -> R) -> R {
        if !self.split.load(Relaxed) {
            let held = self.outer.read();
            if *held == Mode::Central {
                return f();
            }
        }
        let mut held = self.outer.write();
        if *held == Mode::Split {
            self.maybe_go_back(&mut held);
        }
        f()
    }
}

#[cfg(test)]
impl Adaptive {
    pub(crate) fn split_now(&self) {
        self.go_split(&mut self.outer.write());
    }

    pub(crate) fn is_split(&self) -> bool {
        *self.outer.read() == Mode::Split
    }
}

impl FileRmap for Adaptive {
    const NAME: &'static str = "adaptive";

    fn new() -> Result<Self, AllocError> {
        Ok(Adaptive {
            outer: RwSem::new(Mode::Central, lock_class!("i_mmap_rwsem")),
            split: AtomicBool::new(false),
            score: AtomicU32::new(0),
            home: SpinShard::new(),
            table: AtomicPtr::new(null_mut()),
        })
    }

    unsafe fn insert(&self, node: NodePtr) {
        let entered = self.enter();
        let at = match entered {
            Entered::Central { .. } => HOME,
            Entered::Split { .. } => this_cpu_shard() as u32 + 1,
        };
        // SAFETY: the caller's promise.
        self.with(&entered, at, |tree| unsafe { tree.link(node, at) });
    }

    unsafe fn fork<R>(&self, parent: NodePtr, child: NodePtr, copy: impl FnOnce() -> R) -> R {
        {
            let entered = self.enter();
            // SAFETY: linked, by the caller's promise.
            let at = unsafe { parent.as_ref() }.shard();
            // SAFETY: the caller's promise. INVARIANT: INV-RMAP-4 by order, in the parent's tree.
            self.with(&entered, at, |tree| unsafe {
                tree.link_after(parent, child, at)
            });
        }
        copy()
    }

    unsafe fn insert_copies(&self, pairs: &[(NodePtr, NodePtr)]) {
        let entered = self.enter();
        for &(parent, child) in pairs {
            // SAFETY: linked, by the caller's promise, in the tree it names (INV-ADAPT-2).
            unsafe {
                let at = parent.as_ref().shard();
                self.with(&entered, at, |tree| tree.link_after(parent, child, at));
            }
        }
    }

    unsafe fn remove(&self, nodes: &[NodePtr]) {
        let entered = self.enter();
        for node in nodes {
            // SAFETY: linked here, in the tree it names (INV-ADAPT-2).
            unsafe {
                let at = node.as_ref().shard();
                self.with(&entered, at, |tree| tree.unlink(*node));
            }
        }
    }

    unsafe fn adjust(&self, adjust: Adjust<'_>, meanwhile: impl FnOnce()) {
        // SAFETY: the caller's promises; INV-ADAPT-1, INV-ADAPT-2.
        unsafe {
            let entered = self.enter();
            if let Some(one) = adjust.one_shard() {
                return self.with(&entered, one, |tree| {
                    let tree = NonNull::from(tree);
                    apply(&adjust, meanwhile, one, |_| tree)
                });
            }
            drop(entered);
            let _alone = self.outer.write();
            apply(&adjust, meanwhile, HOME, |i| self.shard(i).tree());
        }
    }

    fn for_each_overlap(&self, first: u64, last: u64, mut visit: impl FnMut(&MapNode)) {
        self.stabilised(|| self.for_each_tree(|_, tree| tree.visit(first, last, &mut visit)));
    }

    fn is_empty(&self) -> bool {
        let _held = self.outer.write();
        let mut empty = true;
        self.for_each_tree(|_, tree| empty &= tree.is_empty());
        empty
    }

    fn check_invariants(&self) -> usize {
        let mode = self.outer.write();
        let (mut all, mut home) = (0, 0);
        self.for_each_tree(|i, tree| {
            let nr = tree.check(i);
            all += nr;
            home += if i == HOME { nr } else { 0 };
        });
        assert!(*mode == Mode::Split || all == home, "INV-ADAPT-1");
        all
    }
}

impl Drop for Adaptive {
    fn drop(&mut self) {
        if let Some(table) = NonNull::new(*self.table.get_mut()) {
            // SAFETY: from `go_split`; nobody else is left.
            drop(unsafe { KBox::from_raw(table) });
        }
    }
}
