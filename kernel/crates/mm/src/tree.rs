//! The areas of one address space, ordered by address, and the search for free room.
//!
//! Problem: a fault asks "which area is here?", mmap asks "where is the highest gap of n bytes?",
//! with thousands of areas.
//!
//! Mechanism: an intrusive red-black tree. Each area knows where its predecessor ends, so its gap
//! needs no walk; each node knows the greatest gap in its subtree, so the search for room descends
//! only where there is some. The last area found is remembered.
//!
//! Invariants
//! - INV-TREE-1: areas do not overlap and are ordered.
//! - INV-TREE-2: `prev_end` is the end of the area before, 0 for the first.
//! - INV-TREE-3: `subtree_gap` is the greatest gap below MMAP_BASE before any area of the subtree.
//! - INV-TREE-4: `map_count` and `total_vm` count the areas and their pages.
//! - INV-TREE-5: `cache` is null or an area of this tree.

use crate::layout::Layout;
use crate::vma::{Vma, VmaPtr};
use crate::{MMAP_BASE, MMAP_MIN_ADDR, STACK_LIMIT_DEFAULT, TASK_SIZE};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use interval_tree::{Augment, RbNode, RbTree};

/// Everything under `mmap_lock`.
pub(crate) struct MmTree {
    rb: RbTree,
    cache: AtomicPtr<Vma>,
    pub(crate) map_count: usize,
    /// Pages of all areas.
    pub(crate) total_vm: usize,
    /// Heap: where it starts and where it ends now (not aligned).
    pub(crate) start_brk: usize,
    pub(crate) brk: usize,
    /// Bytes the stack may grow to.
    pub(crate) stack_limit: usize,
    /// Greatest `total_vm`, in pages.
    pub(crate) as_limit: usize,
    /// Greatest size of the heap, in bytes.
    pub(crate) data_limit: usize,
    pub(crate) layout: Layout,
}

/// Keeps `subtree_gap`.
pub(crate) struct MaxGap;

#[inline(always)]
unsafe fn of<'a>(n: NonNull<RbNode>) -> &'a Vma {
    // SAFETY: every node of an MmTree is the first field of a live area (INV-VMA-1).
    unsafe { n.cast::<Vma>().as_ref() }
}

/// Free bytes before `v`, below `MMAP_BASE`: the room above is not where mmap looks.
#[inline(always)]
fn gap(v: &Vma) -> usize {
    v.guarded_start()
        .min(MMAP_BASE)
        .saturating_sub(v.prev_end.get())
}

// SAFETY: reads nodes and children, writes only `subtree_gap`.
unsafe impl Augment for MaxGap {
    #[inline(always)]
    unsafe fn update(node: NonNull<RbNode>) -> bool {
        // SAFETY: nodes of this tree are areas.
        unsafe {
            let v = of(node);
            let mut max = gap(v);
            if let Some(c) = v.rb.left() {
                max = max.max(of(c).subtree_gap.get());
            }
            if let Some(c) = v.rb.right() {
                max = max.max(of(c).subtree_gap.get());
            }
            v.subtree_gap.replace(max) != max
        }
    }

    #[inline(always)]
    unsafe fn copy(from: NonNull<RbNode>, to: NonNull<RbNode>) {
        // SAFETY: as in `update`.
        unsafe { of(to).subtree_gap.set(of(from).subtree_gap.get()) };
    }
}

impl MmTree {
    pub(crate) const fn new() -> Self {
        MmTree {
            rb: RbTree::new(),
            cache: AtomicPtr::new(null_mut()),
            map_count: 0,
            total_vm: 0,
            start_brk: 0,
            brk: 0,
            stack_limit: STACK_LIMIT_DEFAULT,
            as_limit: usize::MAX,
            data_limit: usize::MAX,
            layout: Layout {
                start_code: 0,
                end_code: 0,
                start_stack: 0,
                arg_start: 0,
                arg_end: 0,
                env_end: 0,
            },
        }
    }

    /// Takes limits and bounds, not areas, from the parent.
    pub(crate) fn inherit(&mut self, parent: &MmTree) {
        self.start_brk = parent.start_brk;
        self.brk = parent.brk;
        self.stack_limit = parent.stack_limit;
        self.as_limit = parent.as_limit;
        self.data_limit = parent.data_limit;
        self.layout = parent.layout;
    }

    /// The first area that ends after `addr` (which may start after it too).
    #[inline]
    pub(crate) fn find(&self, addr: usize) -> Option<VmaPtr> {
        if let Some(v) = VmaPtr::from_raw(self.cache.load(Relaxed))
            && v.start() <= addr
            && addr < v.end()
        {
            return Some(v);
        }
        self.find_slow(addr)
    }

    fn find_slow(&self, addr: usize) -> Option<VmaPtr> {
        // SAFETY: nodes of this tree are areas, and the lock is held for `&self` to exist.
        let found = unsafe { VmaPtr::from_rb(self.rb.lower_bound(|n| of(n).end() <= addr)?) };
        if found.start() <= addr {
            self.cache.store(found.as_raw(), Relaxed);
        }
        Some(found)
    }

    /// The area that contains `addr`.
    #[inline]
    pub(crate) fn find_exact(&self, addr: usize) -> Option<VmaPtr> {
        self.find(addr).filter(|v| v.start() <= addr)
    }

    /// Whether any area lies in part in `start..end`.
    pub(crate) fn overlaps(&self, start: usize, end: usize) -> bool {
        self.find(start).is_some_and(|v| v.start() < end)
    }

    pub(crate) fn first(&self) -> Option<VmaPtr> {
        // SAFETY: a node of this tree.
        self.rb.first().map(|n| unsafe { VmaPtr::from_rb(n) })
    }

    pub(crate) fn last(&self) -> Option<VmaPtr> {
        // SAFETY: a node of this tree.
        self.rb.last().map(|n| unsafe { VmaPtr::from_rb(n) })
    }

    /// Where the last area ends; 0 without areas.
    pub(crate) fn last_end(&self) -> usize {
        self.last().map_or(0, |l| l.end())
    }

    /// The area after `v` of this tree.
    #[inline]
    pub(crate) fn next(&self, v: VmaPtr) -> Option<VmaPtr> {
        // SAFETY: `v` is in this tree, whose lock is held.
        unsafe { RbTree::next(v.rb()).map(|n| VmaPtr::from_rb(n)) }
    }

    /// The area before `v` of this tree.
    pub(crate) fn prev(&self, v: VmaPtr) -> Option<VmaPtr> {
        // SAFETY: `v` is in this tree, whose lock is held.
        unsafe { RbTree::prev(v.rb()).map(|n| VmaPtr::from_rb(n)) }
    }

    /// Links an area into free room; `next` is the first area behind it.
    pub(crate) fn insert_before(&mut self, next: Option<VmaPtr>, v: VmaPtr) {
        let prev_end = match next {
            Some(n) => n.prev_end.replace(v.end()),
            None => self.last_end(),
        };
        debug_assert!(prev_end <= v.start() && next.is_none_or(|n| v.end() <= n.start()));
        v.prev_end.set(prev_end);
        // SAFETY: `next` is in this tree and follows `v`, which is live and in no tree; all nodes
        // use MaxGap.
        unsafe {
            let next = next.map(VmaPtr::rb);
            let pos = self.rb.pos_before(next);
            self.rb.insert_before::<MaxGap>(v.rb(), pos, next);
        }
        *self.cache.get_mut() = v.as_raw();
        self.map_count += 1;
        self.total_vm += v.pages();
    }

    /// Cuts `v` at `upper.start()` and links `upper`, which gets the rest. No gap changes.
    pub(crate) fn split(&mut self, v: VmaPtr, upper: VmaPtr) {
        debug_assert!(v.start() < upper.start() && upper.start() < v.end());
        v.end.set(upper.start());
        upper.prev_end.set(upper.start());
        // SAFETY: `v` is in this tree, `upper` is live and in no tree; all nodes use MaxGap.
        unsafe { self.rb.insert_after::<MaxGap>(v.rb(), upper.rb()) };
        self.map_count += 1;
    }

    /// Fills this empty tree with `copy(v)` for each area of `other`, parents in the tree first. The
    /// copies have the bounds and the gaps of the originals. If `copy` fails, what was copied
    /// before is in the tree, good for exit only.
    pub(crate) fn copy_areas<E>(
        &mut self,
        other: &MmTree,
        mut copy: impl FnMut(VmaPtr) -> Result<VmaPtr, E>,
    ) -> Result<(), E> {
        debug_assert!(self.rb.is_empty());
        // SAFETY: nodes are areas; the copies are live, in no tree, and ours (INV-VMA-1). Equal
        // bounds in the same order give equal summaries.
        let (rb, result) = unsafe {
            other
                .rb
                .copy_shape(|n| copy(VmaPtr::from_rb(n)).map(VmaPtr::rb))
        };
        self.rb = rb;
        self.map_count = other.map_count;
        self.total_vm = other.total_vm;
        result
    }

    /// Unlinks an area.
    pub(crate) fn erase(&mut self, v: VmaPtr) {
        self.forget_cached(v);
        let next = self.next(v);
        if let Some(n) = next {
            n.prev_end.set(v.prev_end.get());
        }
        // SAFETY: `v` is in this tree, and `next` follows it; all nodes use MaxGap.
        unsafe { self.rb.erase_before::<MaxGap>(v.rb(), next.map(VmaPtr::rb)) };
        self.map_count -= 1;
        self.total_vm -= v.pages();
    }

    /// Gives an area other bounds, within the free room around it.
    pub(crate) fn set_range(&mut self, v: VmaPtr, start: usize, end: usize) {
        debug_assert!(start < end && v.prev_end.get() <= start);
        self.total_vm = self.total_vm + ((end - start) >> ksync::PAGE_SHIFT) - v.pages();
        let old_end = v.end.replace(end);
        v.start.set(start);
        // SAFETY: `v` and its successor are in this tree, all nodes use MaxGap.
        unsafe {
            self.rb.update_path::<MaxGap>(v.rb());
            if old_end != end
                && let Some(n) = self.next(v)
            {
                debug_assert!(end <= n.start(), "INV-TREE-1");
                n.prev_end.set(end);
                self.rb.update_path::<MaxGap>(n.rb());
            }
        }
    }

    /// Forgets all areas at once (exit); the caller frees them.
    pub(crate) fn clear(&mut self) {
        self.rb = RbTree::new();
        self.cache.store(null_mut(), Relaxed);
        self.map_count = 0;
        self.total_vm = 0;
    }

    fn forget_cached(&mut self, v: VmaPtr) {
        if *self.cache.get_mut() == v.as_raw() {
            *self.cache.get_mut() = null_mut();
        }
    }

    /// The highest free room of `len` bytes below `MMAP_BASE`, O(log n); failing that, the highest
    /// there is, O(n). Returns its start and the first area behind it.
    pub(crate) fn find_gap(&self, len: usize) -> Option<(usize, Option<VmaPtr>)> {
        let above = self.last_end();
        if len <= MMAP_BASE - MMAP_MIN_ADDR {
            if above <= MMAP_BASE - len {
                return Some((MMAP_BASE - len, None));
            }
            if let Some((at, next)) = self.rb.root().and_then(|root| gap_in(root, len)) {
                return Some((at, Some(next)));
            }
        }
        self.find_gap_anywhere(len)
    }

    #[cold]
    fn find_gap_anywhere(&self, len: usize) -> Option<(usize, Option<VmaPtr>)> {
        let (mut top, mut next, mut at) = (TASK_SIZE, None, self.last());
        while let Some(v) = at {
            if top.saturating_sub(v.end()) >= len {
                break;
            }
            top = v.guarded_start();
            next = at;
            at = self.prev(v);
        }
        let bottom = at.map_or(MMAP_MIN_ADDR, |v| v.end());
        (top.saturating_sub(bottom) >= len).then(|| (top - len, next))
    }

    /// Checks INV-TREE-1..5 and INV-VMA-4; panics on a violation. O(n), for tests.
    pub(crate) fn check_invariants(&self) {
        assert_eq!(self.rb.check_invariants(), self.map_count, "INV-TREE-4");
        let (mut at, mut prev_end, mut pages, mut cached) = (self.first(), 0, 0, false);
        while let Some(v) = at {
            assert!(v.start() < v.end() && (v.start() | v.end()) % ksync::PAGE_SIZE == 0);
            assert!(
                v.start() >= MMAP_MIN_ADDR && v.end() <= TASK_SIZE,
                "INV-VMA-4"
            );
            assert!(prev_end <= v.start(), "INV-TREE-1");
            assert_eq!(v.prev_end.get(), prev_end, "INV-TREE-2");
            let below = [v.rb.left(), v.rb.right()]
                .into_iter()
                .flatten()
                // SAFETY: nodes of this tree.
                .map(|c| unsafe { of(c) }.subtree_gap.get())
                .fold(gap(&v), usize::max);
            assert_eq!(v.subtree_gap.get(), below, "INV-TREE-3");
            prev_end = v.end();
            pages += v.pages();
            cached |= self.cache.load(Relaxed) == v.as_raw();
            at = self.next(v);
        }
        assert_eq!(pages, self.total_vm, "INV-TREE-4");
        assert!(cached || self.cache.load(Relaxed).is_null(), "INV-TREE-5");
    }
}

/// The highest room of `len` bytes before some area of the subtree at `n`, between MMAP_MIN_ADDR
/// and MMAP_BASE, and that area. The depth is at most twice the logarithm of MAX_MAP_COUNT: 34.
fn gap_in(mut n: NonNull<RbNode>, len: usize) -> Option<(usize, VmaPtr)> {
    loop {
        // SAFETY: nodes of a tree whose lock the caller holds.
        let v = unsafe { of(n) };
        if let Some(found) = promising(v.rb.right(), len).and_then(|right| gap_in(right, len)) {
            return Some(found);
        }
        let (from, to) = (
            v.prev_end.get().max(MMAP_MIN_ADDR),
            v.guarded_start().min(MMAP_BASE),
        );
        if to >= from && to - from >= len {
            // SAFETY: as above.
            return Some((to - len, unsafe { VmaPtr::from_rb(n) }));
        }
        n = promising(v.rb.left(), len)?;
    }
}

/// A subtree that has a gap of `len` bytes.
#[inline(always)]
fn promising(n: Option<NonNull<RbNode>>, len: usize) -> Option<NonNull<RbNode>> {
    // SAFETY: a node of a tree whose lock the caller holds.
    n.filter(|&n| unsafe { of(n) }.subtree_gap.get() >= len)
}
