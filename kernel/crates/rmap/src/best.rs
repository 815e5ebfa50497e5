//! `i_mmap=best`: a tree and a lock per CPU for files that several CPUs map; walkers go from tree to tree.
//!
//! Problem. With a lock word that all mutators write, shared or not, 384 CPUs queue for its line. With a lock per shard and
//! walkers who take them all, a walk stops the whole machine. And per-CPU anything is too dear for the many files that
//! nobody maps twice.
//!
//! Mechanism. A file begins as the base line does: one tree, one lock, `home`. When changes have come from alternating CPUs
//! [`MOVES`] times it gets a [`Split`]: a shard per CPU. From then on a mapping goes into the shard of the CPU that makes it,
//! and nothing that a mutator writes is written by another CPU's, as long as processes stay where they are:
//!
//! ```text
//!   Best       home: lock, tree        nodes from before the split, until they go
//!    |
//!    v
//!   Split      outer, walking          written by walkers only
//!              shard 0   shard 1  ...  each: lock, tree, copies       written by its CPU
//! ```
//!
//! A walk holds one shard's lock at a time, so a mutator waits for at most its own CPU's part of a walk. Such a walk is
//! complete (INV-RMAP-3) because a node never changes shards; what must not be missed while it passes from node to node
//! (an adjust across shards) excludes walks instead.
//!
//! Fork (INV-RMAP-4). By order if the parent is in the shard of the CPU that forks: the child goes behind it, and a walk
//! meets both under one hold of the lock, or met the parent before the child was linked and left nothing to copy. By
//! exclusion otherwise: the child goes into this CPU's shard, and [`Split::keep_walks_out`] holds from the link to the
//! end of the copy. Thus families that fork and never call exec spread over the CPUs too.
//!
//! ```text
//!   fork:   copies[cpu] += 1;  walking?  no: link, copy, copies[cpu] -= 1      yes: take that back, share `outer`
//!   walk:   hold `outer`;  walking = true;  wait until all copies are 0;  visit shard after shard;  walking = false
//! ```
//!
//! Each says what it does before it looks (both sequentially consistent), so one of them sees the other.
//!
//! Cost. An idle file: the base line's and two words. A split file: 128 bytes per CPU. A walk of a split file looks at each
//! CPU's shard twice, however few mappings there are.
//!
//! Lock order: `i_mmap_outer`; one `i_mmap_rwsem` (home or a shard); what `visit` takes.
//!
//! Invariants
//! - INV-BEST-1: while `split` is null all nodes are in `home`. It is set once, under `home` held for writing.
//! - INV-BEST-2: a node's `shard` is HOME or its shard's index plus one, from its link to its removal.
//! - INV-BEST-3: while `walking` (set and cleared under `outer` held for writing) and all `copies` have been seen 0, no `copy`
//!   to another shard runs and no adjust across shards.

use crate::contract::{Adjust, FileRmap, MapNode, NodePtr};
use crate::tree::{Table, Tree, apply};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering::*};
use ksync::{LockClass, RwSem, RwSemReadGuard, RwSemWriteGuard, WaitQueue, arch, lock_class};
use slab::{AllocError, KBox};

const HOME: u32 = 0;

/// Changes by another CPU than the one before after which a file splits.
const MOVES: u32 = if cfg!(test) { 3 } else { 64 };

static SHARD_CLASS: LockClass = LockClass::new("i_mmap_rwsem");

/// One tree, then one per CPU.
pub struct Best {
    home: RwSem<Home>,
    split: AtomicPtr<Split>,
}

struct Home {
    tree: Tree,
    /// The CPU of the last change.
    last_cpu: u32,
    /// How often that was another one than before.
    moves: u32,
}

struct Split {
    /// Walkers hold it; whoever finds `walking` shares it.
    outer: RwSem<()>,
    walking: AtomicBool,
    /// A walker waits here for `copies` to become 0.
    quiet: WaitQueue,
    shards: Table<Shard>,
}

#[repr(align(64))]
struct Shard {
    tree: RwSem<Tree>,
    /// Threads that want no walk now, and came from this CPU.
    copies: AtomicU32,
}

/// No walk is under way.
enum NoWalk<'a> {
    Counted(&'a Split, &'a AtomicU32),
    Shared { _outer: RwSemReadGuard<'a, ()> },
}

impl Drop for NoWalk<'_> {
    #[inline]
    fn drop(&mut self) {
        if let NoWalk::Counted(split, copies) = self {
            split.uncount(copies);
        }
    }
}

impl Split {
    fn new() -> Result<KBox<Self>, AllocError> {
        let shards = Table::new(arch::nr_cpu_ids(), |_| Shard {
            tree: RwSem::new(Tree::new(), &SHARD_CLASS),
            copies: AtomicU32::new(0),
        })?;
        KBox::new(Split {
            outer: RwSem::new((), lock_class!("i_mmap_outer")),
            walking: AtomicBool::new(false),
            quiet: WaitQueue::new(),
            shards,
        })
    }

    /// The shard of the CPU this thread is on (for the moment: another one is as good, and dearer), and its name.
    #[inline(always)]
    fn here(&self) -> (u32, &Shard) {
        let cpu = arch::smp_processor_id();
        (cpu as u32 + 1, &self.shards[cpu])
    }

    /// Until the guard drops no walk is under way. May sleep.
    #[inline]
    fn keep_walks_out<'a>(&'a self, shard: &'a Shard) -> NoWalk<'a> {
        shard.copies.fetch_add(1, SeqCst);
        if !self.walking.load(SeqCst) {
            return NoWalk::Counted(self, &shard.copies);
        }
        self.wait_for_walk(shard)
    }

    #[cold]
    fn wait_for_walk(&self, shard: &Shard) -> NoWalk<'_> {
        self.uncount(&shard.copies);
        NoWalk::Shared {
            _outer: self.outer.read(),
        }
    }

    #[inline(always)]
    fn uncount(&self, copies: &AtomicU32) {
        copies.fetch_sub(1, SeqCst);
        if self.walking.load(SeqCst) {
            self.quiet.wake_all();
        }
    }

    /// Runs `f` while nobody keeps walks out (INV-BEST-3). May sleep.
    fn walk<R>(&self, f: impl FnOnce() -> R) -> R {
        let _outer = self.outer.write();
        self.walking.store(true, SeqCst);
        self.quiet.wait_until(|| {
            let mut shards = self.shards.iter();
            shards.all(|s| s.copies.load(SeqCst) == 0)
        });
        let result = f();
        self.walking.store(false, SeqCst);
        result
    }
}

impl Best {
    #[inline(always)]
    fn split(&self) -> Option<&Split> {
        // SAFETY: null, or a Split that lives as long as we (INV-BEST-1).
        unsafe { self.split.load(Acquire).as_ref() }
    }

    /// Home, held for writing, if the file is not split. Counts a change.
    #[inline(always)]
    fn unsplit(&self) -> Result<RwSemWriteGuard<'_, Home>, &Split> {
        if let Some(split) = self.split() {
            return Err(split);
        }
        let mut home = self.home.write();
        if let Some(split) = self.split() {
            return Err(split);
        }
        let cpu = arch::smp_processor_id() as u32;
        if home.last_cpu != cpu {
            self.moved(&mut home, cpu);
        }
        Ok(home)
    }

    #[cold]
    fn moved(&self, home: &mut Home, cpu: u32) {
        home.last_cpu = cpu;
        home.moves += 1;
        if home.moves >= MOVES {
            home.moves = 0;
            // Without memory it stays as it is, and may try again later. INVARIANT: INV-BEST-1: `home` is held, and
            // who got it before it is split works in `home`.
            if let Ok(split) = Split::new() {
                self.split.store(KBox::into_raw(split).as_ptr(), Release);
            }
        }
    }

    /// Runs `f` on the tree `i` of a file that is split.
    #[inline(always)]
    fn with<R>(&self, split: &Split, i: u32, f: impl FnOnce(&mut Tree) -> R) -> R {
        match i {
            HOME => f(&mut self.home.write().tree),
            i => f(&mut split.shards[i as usize - 1].tree.write()),
        }
    }

    /// Calls `f` with each tree and its name, held for reading one after the other.
    fn for_each_tree(&self, split: &Split, mut f: impl FnMut(u32, &Tree)) {
        f(HOME, &self.home.read().tree);
        for (i, shard) in (1..).zip(split.shards.iter()) {
            f(i, &shard.tree.read());
        }
    }

    /// # Safety
    /// As for [`FileRmap::remove`].
    #[inline]
    unsafe fn remove_split(&self, split: &Split, nodes: &[NodePtr]) {
        let mut rest = nodes;
        while let Some(first) = rest.first() {
            // SAFETY: linked here, in the trees they name (INV-BEST-2).
            unsafe {
                let at = first.as_ref().shard();
                self.with(split, at, |tree| {
                    while let Some((node, others)) = rest.split_first()
                        && node.as_ref().shard() == at
                    {
                        tree.unlink(*node);
                        rest = others;
                    }
                });
            }
        }
    }

    /// An adjust whose nodes are in several trees, or in none.
    ///
    /// # Safety
    /// As for [`FileRmap::adjust`].
    #[cold]
    unsafe fn adjust_across(&self, split: &Split, adjust: Adjust<'_>, meanwhile: impl FnOnce()) {
        let (at, shard) = split.here();
        // What is in one tree no more and in the other not yet must not be missed.
        let _no_walk = split.keep_walks_out(shard);
        // SAFETY: the caller's promises; each node is in the tree it names (INV-BEST-2).
        unsafe {
            for node in adjust.remove {
                let at = node.as_ref().shard();
                self.with(split, at, |tree| tree.unlink(*node));
            }
            for r in adjust.resize {
                let at = r.node.as_ref().shard();
                self.with(split, at, |tree| tree.resize(r));
            }
            meanwhile();
            for node in adjust.insert {
                self.with(split, at, |tree| tree.link(*node, at));
            }
        }
    }
}

#[cfg(test)]
impl Best {
    pub(crate) fn is_split(&self) -> bool {
        self.split().is_some()
    }
}

impl FileRmap for Best {
    const NAME: &'static str = "best";

    fn new() -> Result<Self, AllocError> {
        let home = Home {
            tree: Tree::new(),
            last_cpu: 0,
            moves: 0,
        };
        Ok(Best {
            home: RwSem::new(home, &SHARD_CLASS),
            split: AtomicPtr::new(null_mut()),
        })
    }

    unsafe fn insert(&self, node: NodePtr) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.unsplit() {
                Ok(mut home) => home.tree.link(node, HOME),
                Err(split) => {
                    let (at, shard) = split.here();
                    shard.tree.write().link(node, at);
                }
            }
        }
    }

    unsafe fn fork<R>(&self, parent: NodePtr, child: NodePtr, copy: impl FnOnce() -> R) -> R {
        // SAFETY: the caller's promise. INVARIANT: INV-RMAP-4 by order in one tree, else by exclusion.
        unsafe {
            let split = match self.unsplit() {
                Ok(mut home) => {
                    home.tree.link_after(parent, child, HOME);
                    drop(home);
                    return copy();
                }
                Err(split) => split,
            };
            let (at, shard) = split.here();
            if parent.as_ref().shard() == at {
                shard.tree.write().link_after(parent, child, at);
                return copy();
            }
            let _no_walk = split.keep_walks_out(shard);
            shard.tree.write().link(child, at);
            copy()
        }
    }

    unsafe fn insert_copies(&self, pairs: &[(NodePtr, NodePtr)]) {
        // SAFETY: the caller's promise. Nothing is copied, so INV-RMAP-4 asks for nothing: any shard will do.
        unsafe {
            match self.unsplit() {
                Ok(mut home) => {
                    for &(parent, child) in pairs {
                        home.tree.link_after(parent, child, HOME);
                    }
                }
                Err(split) => {
                    let (at, shard) = split.here();
                    let mut tree = shard.tree.write();
                    for &(parent, child) in pairs {
                        match parent.as_ref().shard() == at {
                            true => tree.link_after(parent, child, at),
                            false => tree.link(child, at),
                        }
                    }
                }
            }
        }
    }

    unsafe fn remove(&self, nodes: &[NodePtr]) {
        match self.unsplit() {
            Ok(mut home) => {
                for node in nodes {
                    // SAFETY: linked here, by the caller's promise, and all in `home` (INV-BEST-1).
                    unsafe { home.tree.unlink(*node) };
                }
            }
            // SAFETY: the caller's promise.
            Err(split) => unsafe { self.remove_split(split, nodes) },
        }
    }

    unsafe fn adjust(&self, adjust: Adjust<'_>, meanwhile: impl FnOnce()) {
        // SAFETY: the caller's promises; the trees are held.
        unsafe {
            match (self.unsplit(), adjust.one_shard()) {
                (Ok(mut home), _) => {
                    let tree = NonNull::from(&mut home.tree);
                    apply(&adjust, meanwhile, HOME, |_| tree);
                }
                (Err(split), Some(one)) => self.with(split, one, |tree| {
                    let tree = NonNull::from(tree);
                    apply(&adjust, meanwhile, one, |_| tree);
                }),
                (Err(split), None) => self.adjust_across(split, adjust, meanwhile),
            }
        }
    }

    fn for_each_overlap(&self, first: u64, last: u64, mut visit: impl FnMut(&MapNode)) {
        {
            let home = self.home.read();
            // INV-BEST-1: it cannot split while we hold it.
            if self.split().is_none() {
                return home.tree.visit(first, last, &mut visit);
            }
        }
        if let Some(split) = self.split() {
            split.walk(|| {
                self.for_each_tree(split, |_, tree| tree.visit(first, last, &mut visit));
            });
        }
    }

    fn is_empty(&self) -> bool {
        let mut empty = self.home.read().tree.is_empty();
        if let Some(split) = self.split() {
            self.for_each_tree(split, |_, tree| empty &= tree.is_empty());
        }
        empty
    }

    fn check_invariants(&self) -> usize {
        let Some(split) = self.split() else {
            return self.home.read().tree.check(HOME);
        };
        let mut nr = 0;
        self.for_each_tree(split, |i, tree| nr += tree.check(i));
        assert!(split.shards.iter().all(|s| s.copies.load(Relaxed) == 0));
        nr
    }
}

impl Drop for Best {
    fn drop(&mut self) {
        if let Some(split) = NonNull::new(*self.split.get_mut()) {
            // SAFETY: from `moved`; nobody else is left.
            drop(unsafe { KBox::from_raw(split) });
        }
    }
}
