//! mmap, munmap, fork, truncate and migrate together, in orders that seeds decide; and structures with planted bugs.
//!
//! A process is a node, a page table lock and one entry: the number of the page it maps, 0 for none. The file has one
//! page, whose number changes when it migrates and is 0 when it is cut off. Faults, copies and walks follow the rules of
//! `mm`: enter and look again; copy under the parent's lock; change the page, then walk.

use super::*;
use crate::*;
use ksync::arch::explore::{Body, explore, find_failure};
use ksync::arch::{cpu_relax, host, interleave};
use ksync::{SpinLock, lock_class};
use slab::AllocError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
use std::vec::Vec;

/// The page is on its way: faults wait.
const BUSY: u64 = u64::MAX;

#[repr(C)]
struct Process {
    node: MapNode,
    table: SpinLock<()>,
    pte: AtomicU64,
}

/// A process that lives as long as the test.
type Proc = &'static Process;

struct World<M> {
    map: M,
    page: AtomicU64,
    procs: Mutex<Vec<Proc>>,
    running: AtomicUsize,
}

impl<M: FileRmap> World<M> {
    fn new_proc(&self) -> Proc {
        let p: Proc = Box::leak(Box::new(Process {
            node: MapNode::new(0, 9),
            table: SpinLock::new((), lock_class!("page_table_lock")),
            pte: AtomicU64::new(0),
        }));
        self.procs.lock().unwrap().push(p);
        p
    }

    fn mmap(&self) -> Proc {
        let p = self.new_proc();
        // SAFETY: leaked, unlinked.
        unsafe { self.map.insert(node(p)) };
        p
    }

    fn fault(&self, p: Proc) {
        loop {
            let page = self.page.load(SeqCst);
            if page == BUSY {
                cpu_relax();
                continue;
            }
            interleave();
            if page == 0 || p.pte.compare_exchange(0, page, SeqCst, SeqCst).is_err() {
                return;
            }
            interleave();
            if self.page.load(SeqCst) == page {
                return;
            }
            let _ = p.pte.compare_exchange(page, 0, SeqCst, SeqCst);
        }
    }

    fn fork(&self, parent: Proc) -> Proc {
        let child = self.new_proc();
        // SAFETY: leaked; the parent is linked.
        unsafe {
            self.map.fork(node(parent), node(child), || {
                interleave();
                let _held = parent.table.lock();
                child.pte.store(parent.pte.load(SeqCst), SeqCst);
            });
        }
        child
    }

    fn munmap(&self, p: Proc) {
        // SAFETY: linked.
        unsafe { self.map.remove(&[node(p)]) };
        interleave();
        p.pte.store(0, SeqCst);
    }

    fn zap(&self) {
        self.map.for_each_overlap(3, 3, |n| {
            // SAFETY: the node is the first field of a leaked Process.
            let p = unsafe { NodePtr::from(n).cast::<Process>().as_ref() };
            interleave();
            let _held = p.table.lock();
            p.pte.store(0, SeqCst);
        });
    }

    fn truncate(&self) {
        self.page.store(0, SeqCst);
        self.zap();
    }

    fn migrate(&self, to: u64) {
        let from = self.page.load(SeqCst);
        if from == 0 || from == BUSY {
            return;
        }
        if self
            .page
            .compare_exchange(from, BUSY, SeqCst, SeqCst)
            .is_ok()
        {
            self.zap();
            let _ = self.page.compare_exchange(BUSY, to, SeqCst, SeqCst);
        }
    }

    /// Called by every thread at its end: the last one looks.
    fn leave(&self) {
        if self.running.fetch_sub(1, SeqCst) != 1 {
            return;
        }
        let page = self.page.load(SeqCst);
        let procs = self.procs.lock().unwrap();
        for p in procs.iter() {
            let pte = p.pte.load(SeqCst);
            assert!(
                pte == 0 || pte == page,
                "maps page {pte}, the file has {page}"
            );
        }
        let linked: Vec<_> = procs.iter().filter(|p| p.node.is_linked()).collect();
        assert_eq!(self.map.check_invariants(), linked.len());
        for p in linked {
            // SAFETY: linked.
            unsafe { self.map.remove(&[node(p)]) };
        }
        assert!(self.map.is_empty());
    }
}

fn node(p: Proc) -> NodePtr {
    core::ptr::NonNull::from(p).cast()
}

/// Threads on CPUs 0, 1, 4 and 6 fork, map and unmap; one of CPU 5 truncates or migrates. The first process belongs to CPU 7.
fn storm<M: FileRmap + Send + Sync + 'static>(map: M, truncates: bool) -> Vec<Body> {
    let world = Arc::new(World {
        map,
        page: AtomicU64::new(1),
        procs: Mutex::default(),
        running: AtomicUsize::new(5),
    });
    let mut first = None;
    // CPUs take turns often enough for `best` to split.
    for cpu in [7, 2, 7, 2, 7] {
        host::set_cpu(cpu);
        if let Some(p) = first.replace(world.mmap()) {
            world.munmap(p);
        }
    }
    let first = first.unwrap();
    world.fault(first);
    let mut bodies: Vec<Body> = Vec::new();
    let mut body = |cpu, f: fn(&World<M>, Proc, bool)| {
        let world = world.clone();
        bodies.push(Box::new(move || {
            host::set_cpu(cpu);
            f(&world, first, truncates);
            world.leave();
        }));
    };
    body(0, |w, first, _| {
        let child = w.fork(first);
        w.fault(first);
        host::set_cpu(1);
        let grandchild = w.fork(child);
        w.fault(grandchild);
        w.munmap(child);
        host::set_cpu(4);
        w.fork(grandchild);
    });
    body(4, |w, _, _| {
        let own = w.mmap();
        w.fault(own);
        host::set_cpu(3);
        let child = w.fork(own);
        w.munmap(own);
        w.fault(child);
    });
    body(6, |w, _, _| {
        for _ in 0..3 {
            let own = w.mmap();
            w.fault(own);
            w.munmap(own);
        }
    });
    body(5, |w, _, truncates| {
        if truncates {
            w.truncate();
        } else {
            w.migrate(2);
        }
    });
    body(2, |w, _, truncates| {
        if !truncates {
            w.migrate(3);
        }
    });
    bodies
}

fn fresh(kind: IMmapKind) -> IMmap {
    let map = IMmap::of(kind).unwrap();
    if let IMmap::Adaptive(map) = &map {
        map.split_now();
    }
    map
}

#[test]
fn explored_storm() {
    let _alone = alone();
    for kind in kinds() {
        for truncates in [false, true] {
            std::println!("{} {truncates}", kind.name());
            explore(0..150, || storm(fresh(kind), truncates));
        }
    }
}

/// The planted bug: the child is linked before its parent.
struct ChildFirst(Global);
/// The planted bug: the child goes where its CPU's mappings go, and nothing keeps walks out of the copy.
struct ChildInItsOwnTree(IMmap);

/// Passes everything but fork on.
macro_rules! planted {
    ($name:ident, $new:expr, |$map:ident, $parent:ident, $child:ident| $link:block) => {
        impl FileRmap for $name {
            const NAME: &'static str = stringify!($name);
            fn new() -> Result<Self, AllocError> {
                Ok($new)
            }
            unsafe fn insert(&self, node: NodePtr) {
                // SAFETY: passed on.
                unsafe { self.0.insert(node) }
            }
            unsafe fn fork<R>(&self, $parent: NodePtr, $child: NodePtr, f: impl FnOnce() -> R) -> R {
                let $map = &self.0;
                $link
                f()
            }
            unsafe fn remove(&self, nodes: &[NodePtr]) {
                // SAFETY: passed on.
                unsafe { self.0.remove(nodes) }
            }
            unsafe fn adjust(&self, adjust: Adjust<'_>, meanwhile: impl FnOnce()) {
                // SAFETY: passed on.
                unsafe { self.0.adjust(adjust, meanwhile) }
            }
            fn for_each_overlap(&self, a: u64, b: u64, visit: impl FnMut(&MapNode)) {
                self.0.for_each_overlap(a, b, visit)
            }
            fn is_empty(&self) -> bool {
                self.0.is_empty()
            }
            fn check_invariants(&self) -> usize {
                self.0.check_invariants()
            }
        }
    };
}

planted!(
    ChildFirst,
    ChildFirst(Global::new()?),
    |map, parent, child| {
        // SAFETY: passed on; the parent is put behind the child.
        unsafe {
            map.remove(&[parent]);
            map.insert(child);
            map.insert(parent);
        }
    }
);
planted!(
    ChildInItsOwnTree,
    ChildInItsOwnTree(IMmap::new()?),
    |map, _parent, child| {
        // SAFETY: passed on.
        unsafe { map.insert(child) };
    }
);

#[test]
fn a_child_before_its_parent_is_caught() {
    let _alone = alone();
    let found = find_failure(0..300, || storm(ChildFirst::new().unwrap(), true));
    assert!(found.is_some(), "the stale entry went unnoticed");
}

/// Also where walkers hold all locks at once (node-locks).
#[test]
fn a_child_in_its_own_tree_is_caught() {
    let _alone = alone();
    for kind in kinds().filter(|&k| k != IMmapKind::Global) {
        let found = find_failure(0..300, || storm(ChildInItsOwnTree(fresh(kind)), true));
        assert!(
            found.is_some(),
            "{}: the stale entry went unnoticed",
            kind.name()
        );
    }
}

/// A node that threads hand around.
#[derive(Copy, Clone)]
struct Shared(NodePtr);
// SAFETY: MapNode is Send and Sync.
unsafe impl Send for Shared {}

impl Shared {
    fn get(self) -> NodePtr {
        self.0
    }
}

/// One thread joins two areas that other CPUs have made; a walk of a page of the second must meet one or the other.
fn merge(kind: IMmapKind, at_once: bool) -> Vec<Body> {
    let map = Arc::new(fresh(kind));
    let (a, b) = (new_node(0, 4), new_node(5, 9));
    // `best` splits; then one node is in the first shard, one in the last.
    for cpu in [0, 7, 0, 7, 0] {
        host::set_cpu(cpu);
        // SAFETY: leaked; never freed.
        unsafe {
            map.insert(a);
            map.remove(&[a]);
        }
    }
    for (cpu, n) in [(0, a), (7, b)] {
        host::set_cpu(cpu);
        // SAFETY: as above.
        unsafe { map.insert(n) };
    }
    let (walker, a, b) = (map.clone(), Shared(a), Shared(b));
    std::vec![
        Box::new(move || {
            host::set_cpu(2);
            let (a, b) = (a.get(), b.get());
            let resize = [Resize {
                node: a,
                first: 0,
                last: 9,
            }];
            let (remove, rest): (&[_], _) = if at_once {
                (&[b], Adjust::default())
            } else {
                (
                    &[],
                    Adjust {
                        remove: &[b],
                        ..Adjust::default()
                    },
                )
            };
            // SAFETY: both are linked.
            unsafe {
                map.adjust(rest, || ());
                interleave();
                let adjust = Adjust {
                    remove,
                    resize: &resize,
                    insert: &[],
                };
                map.adjust(adjust, || ());
            }
        }) as Body,
        Box::new(move || {
            host::set_cpu(3);
            for _ in 0..2 {
                let mut met = 0;
                walker.for_each_overlap(7, 7, |_| met += 1);
                assert_eq!(met, 1, "INV-RMAP-3");
                interleave();
            }
        }) as Body,
    ]
}

#[test]
fn explored_merge() {
    let _alone = alone();
    for kind in kinds() {
        explore(0..40, || merge(kind, true));
        let found = find_failure(0..100, || merge(kind, false));
        assert!(found.is_some(), "{}: a gap went unnoticed", kind.name());
    }
}
