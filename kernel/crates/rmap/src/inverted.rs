//! `i_mmap=inverted`: shards by the number of CPUs, and an outer lock held the other way round.
//!
//! Problem. Walkers that take the lock of every shard are slow, and a split by memory node does nothing for a machine with
//! many CPUs on one.
//!
//! Mechanism. The proposal of the reviewers of 2026: mutators *share* an outer lock and take the spinlock of one shard;
//! walkers of the whole set take the outer lock for *writing*, and then need no other. A shard for every
//! [`CPUS_PER_SHARD`](crate::tree::CPUS_PER_SHARD) CPUs.
//!
//! Mutators exclude each other only within a shard, but all of them write the outer lock's word.
//!
//! Fork (INV-RMAP-4), by exclusion: it shares the outer lock from the link to the end of the copy, so that no walk is under
//! way meanwhile, and the child may go into the shard of the CPU that forks.
//!
//! Lock order: `i_mmap_rwsem`; `i_mmap_shard`, or what `visit` and fork's copy take.
//!
//! Invariants
//! - INV-INVERT-1: INV-SHARD-1, where the outer lock is `outer`.
//! - INV-INVERT-2: a node's `shard` is the index of its shard, from its link to its removal.

use crate::contract::{Adjust, FileRmap, MapNode, NodePtr};
use crate::tree::{Padded, SpinShard, Table, apply, nr_cpu_shards, this_cpu_shard};
use ksync::{RwSem, lock_class};
use slab::AllocError;

/// Shards under a lock that mutators share.
pub struct Inverted {
    outer: RwSem<()>,
    shards: Table<Padded<SpinShard>>,
}

impl Inverted {
    #[inline(always)]
    fn shard(&self, i: u32) -> &SpinShard {
        &self.shards[i as usize].0
    }

    /// Links into this CPU's shard. `outer` is held for reading.
    ///
    /// # Safety
    /// As for [`FileRmap::insert`].
    #[inline(always)]
    unsafe fn link_here(&self, node: NodePtr) {
        let at = this_cpu_shard();
        let shard = &self.shards[at].0;
        let _held = shard.lock();
        // SAFETY: the caller's promise; INV-INVERT-1.
        unsafe { shard.tree().as_mut().link(node, at as u32) };
    }
}

impl FileRmap for Inverted {
    const NAME: &'static str = "inverted";

    fn new() -> Result<Self, AllocError> {
        Ok(Inverted {
            outer: RwSem::new((), lock_class!("i_mmap_rwsem")),
            shards: Table::new(nr_cpu_shards(), |_| Padded(SpinShard::new()))?,
        })
    }

    unsafe fn insert(&self, node: NodePtr) {
        let _outer = self.outer.read();
        // SAFETY: the caller's promise.
        unsafe { self.link_here(node) };
    }

    unsafe fn fork<R>(&self, _parent: NodePtr, child: NodePtr, copy: impl FnOnce() -> R) -> R {
        let _outer = self.outer.read();
        // SAFETY: the caller's promise. INVARIANT: INV-RMAP-4 by exclusion: `outer` is held over the copy.
        unsafe { self.link_here(child) };
        copy()
    }

    unsafe fn insert_copies(&self, pairs: &[(NodePtr, NodePtr)]) {
        let _outer = self.outer.read();
        for &(_, child) in pairs {
            // SAFETY: the caller's promise.
            unsafe { self.link_here(child) };
        }
    }

    unsafe fn remove(&self, nodes: &[NodePtr]) {
        let _outer = self.outer.read();
        for node in nodes {
            // SAFETY: linked here, in the shard it names (INV-INVERT-2), which is locked.
            unsafe {
                let shard = self.shard(node.as_ref().shard());
                let _held = shard.lock();
                shard.tree().as_mut().unlink(*node);
            }
        }
    }

    unsafe fn adjust(&self, adjust: Adjust<'_>, meanwhile: impl FnOnce()) {
        // SAFETY: the caller's promises; the shard is locked, or `outer` held for writing (INV-INVERT-1).
        unsafe {
            if let Some(one) = adjust.one_shard() {
                let _outer = self.outer.read();
                let shard = self.shard(one);
                let _held = shard.lock();
                apply(&adjust, meanwhile, one, |_| shard.tree());
            } else {
                let _outer = self.outer.write();
                apply(&adjust, meanwhile, this_cpu_shard() as u32, |i| {
                    self.shard(i).tree()
                });
            }
        }
    }

    fn for_each_overlap(&self, first: u64, last: u64, mut visit: impl FnMut(&MapNode)) {
        let _outer = self.outer.write();
        for shard in self.shards.iter() {
            // SAFETY: `outer` is held for writing (INV-INVERT-1).
            unsafe { shard.0.tree().as_ref() }.visit(first, last, &mut visit);
        }
    }

    fn is_empty(&self) -> bool {
        let _outer = self.outer.write();
        // SAFETY: as above.
        self.shards
            .iter()
            .all(|s| unsafe { s.0.tree().as_ref() }.is_empty())
    }

    fn check_invariants(&self) -> usize {
        let _outer = self.outer.write();
        // SAFETY: as above.
        let check = |(i, s): (u32, &Padded<SpinShard>)| unsafe { s.0.tree().as_ref() }.check(i);
        (0..).zip(self.shards.iter()).map(check).sum()
    }
}
