//! `i_mmap=node-trees` and `i_mmap=node-locks`: a tree per memory node, after the patches posted in 2026.
//!
//! Problem. Thousands of mappings in one tree are a deep tree whose lines come from all nodes.
//!
//! Mechanism. A mapping goes into the tree of the node it is made on, and remembers which.
//! - [`NodeTrees`]: one lock over all trees. Only the work under the lock becomes cheaper.
//! - [`NodeLocks`]: a lock per tree. Mutators take one; walkers take them all, in order, and hold them together.
//!
//! On a machine with one node both are the base line with one step more.
//!
//! Fork (INV-RMAP-4), by order: the child goes into its *parent's* tree, behind it, whichever node fork runs on. Were it
//! put into the tree of its own node, then walkers that hold every lock would still meet it before its parent if its
//! node comes first, and fork copies when it holds no lock at all (the planted bug `child-in-its-own-tree` of the tests).
//! The price: a family that never calls exec stays on its first ancestor's node.
//!
//! Lock order: NodeTrees: `i_mmap_rwsem`. NodeLocks: `i_mmap_node` in ascending order of nodes.
//!
//! Invariants
//! - INV-NODE-1: a node's `shard` is the index of its tree, from its link to its removal.
//! - INV-NODE-2 (NodeLocks): whoever changes several trees holds all their locks at once: walkers, who hold all, see all
//!   of it or nothing.

use crate::contract::{Adjust, FileRmap, MapNode, NodePtr};
use crate::tree::{Padded, Table, Tree, apply};
use ksync::{LockClass, MAX_NUMNODES, RwSem, RwSemWriteGuard, arch, lock_class};
use slab::AllocError;

/// The tree of the node this thread runs on, for the moment.
#[inline(always)]
fn here() -> u32 {
    arch::numa_node_id() as u32
}

/// A tree per node, one lock.
pub struct NodeTrees {
    trees: RwSem<Table<Tree>>,
}

impl FileRmap for NodeTrees {
    const NAME: &'static str = "node-trees";

    fn new() -> Result<Self, AllocError> {
        let trees = Table::new(arch::nr_node_ids(), |_| Tree::new())?;
        Ok(NodeTrees {
            trees: RwSem::new(trees, lock_class!("i_mmap_rwsem")),
        })
    }

    unsafe fn insert(&self, node: NodePtr) {
        let at = here();
        // SAFETY: the caller's promise.
        unsafe { self.trees.write().get(at).as_mut().link(node, at) };
    }

    unsafe fn fork<R>(&self, parent: NodePtr, child: NodePtr, copy: impl FnOnce() -> R) -> R {
        // SAFETY: the caller's promise. INVARIANT: INV-RMAP-4 by order, in the parent's tree.
        unsafe {
            let at = parent.as_ref().shard();
            let trees = self.trees.write();
            trees.get(at).as_mut().link_after(parent, child, at);
        }
        copy()
    }

    unsafe fn insert_copies(&self, pairs: &[(NodePtr, NodePtr)]) {
        let trees = self.trees.write();
        for &(parent, child) in pairs {
            // SAFETY: the caller's promise; the tree the parent names (INV-NODE-1).
            unsafe {
                let at = parent.as_ref().shard();
                trees.get(at).as_mut().link_after(parent, child, at);
            }
        }
    }

    unsafe fn remove(&self, nodes: &[NodePtr]) {
        let trees = self.trees.write();
        for node in nodes {
            // SAFETY: linked here, in the tree it names (INV-NODE-1).
            unsafe { trees.get(node.as_ref().shard()).as_mut().unlink(*node) };
        }
    }

    unsafe fn adjust(&self, adjust: Adjust<'_>, meanwhile: impl FnOnce()) {
        let trees = self.trees.write();
        // SAFETY: the caller's promises; all trees are held for writing.
        unsafe {
            let home = adjust.linked().next().map(|n| n.as_ref().shard());
            apply(&adjust, meanwhile, home.unwrap_or_else(here), |i| {
                trees.get(i)
            });
        }
    }

    fn for_each_overlap(&self, first: u64, last: u64, mut visit: impl FnMut(&MapNode)) {
        let trees = self.trees.read();
        trees
            .iter()
            .for_each(|tree| tree.visit(first, last, &mut visit));
    }

    fn is_empty(&self) -> bool {
        self.trees.read().iter().all(Tree::is_empty)
    }

    fn check_invariants(&self) -> usize {
        let trees = self.trees.read();
        (0..).zip(trees.iter()).map(|(i, t)| t.check(i)).sum()
    }
}

/// A tree and a lock per node.
pub struct NodeLocks {
    trees: Table<Padded<RwSem<Tree>>>,
}

/// Walkers hold many at once: a class per node, so that lockdep sees an order. Nodes beyond share.
static CLASSES: [LockClass; 16] = [const { LockClass::new("i_mmap_node") }; 16];

impl NodeLocks {
    /// Runs `f` while the trees that `which` names are held for writing.
    fn hold<R>(&self, which: impl Fn(u32) -> bool, f: impl FnOnce() -> R) -> R {
        let mut held = [const { None::<RwSemWriteGuard<'_, Tree>> }; MAX_NUMNODES];
        for (i, tree) in self.trees.iter().enumerate() {
            if which(i as u32) {
                held[i] = Some(tree.0.write());
            }
        }
        f()
    }
}

impl FileRmap for NodeLocks {
    const NAME: &'static str = "node-locks";

    fn new() -> Result<Self, AllocError> {
        let trees = Table::new(arch::nr_node_ids(), |i| {
            Padded(RwSem::new(Tree::new(), &CLASSES[i % CLASSES.len()]))
        })?;
        Ok(NodeLocks { trees })
    }

    unsafe fn insert(&self, node: NodePtr) {
        let at = here();
        // SAFETY: the caller's promise.
        unsafe { self.trees[at as usize].0.write().link(node, at) };
    }

    unsafe fn fork<R>(&self, parent: NodePtr, child: NodePtr, copy: impl FnOnce() -> R) -> R {
        // SAFETY: the caller's promise. INVARIANT: INV-RMAP-4 by order, in the parent's tree.
        unsafe {
            let at = parent.as_ref().shard();
            let mut tree = self.trees[at as usize].0.write();
            tree.link_after(parent, child, at);
        }
        copy()
    }

    unsafe fn remove(&self, nodes: &[NodePtr]) {
        let mut rest = nodes;
        while let Some(first) = rest.first() {
            // SAFETY: linked here, in the tree they name (INV-NODE-1).
            unsafe {
                let at = first.as_ref().shard();
                let mut tree = self.trees[at as usize].0.write();
                while let Some((node, others)) = rest.split_first()
                    && node.as_ref().shard() == at
                {
                    tree.unlink(*node);
                    rest = others;
                }
            }
        }
    }

    unsafe fn adjust(&self, adjust: Adjust<'_>, meanwhile: impl FnOnce()) {
        // SAFETY: the caller's promises.
        let shard = |n: NodePtr| unsafe { n.as_ref() }.shard();
        let home = adjust.linked().next().map_or_else(here, shard);
        let which = |i| i == home || adjust.linked().any(|n| shard(n) == i);
        // The trees lie inside locks that we hold: reach them without locking once more.
        self.hold(which, || {
            // SAFETY: the caller's promises; the trees of all named nodes and `home` are held (INV-NODE-2).
            unsafe {
                apply(&adjust, meanwhile, home, |i| {
                    self.trees[i as usize].0.data_ptr()
                })
            };
        });
    }

    fn for_each_overlap(&self, first: u64, last: u64, mut visit: impl FnMut(&MapNode)) {
        let mut held = [const { None }; MAX_NUMNODES];
        for (i, tree) in self.trees.iter().enumerate() {
            held[i] = Some(tree.0.read());
        }
        for tree in held.iter().flatten() {
            tree.visit(first, last, &mut visit);
        }
    }

    fn is_empty(&self) -> bool {
        self.trees.iter().all(|t| t.0.read().is_empty())
    }

    fn check_invariants(&self) -> usize {
        (0..)
            .zip(self.trees.iter())
            .map(|(i, t)| t.0.read().check(i))
            .sum()
    }
}
