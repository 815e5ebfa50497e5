//! The radix tree over raw words: walking, growing, shrinking, finding what is free.
//!
//! Mechanism. A writer that inserts first finds the deepest existing node on the way, counts the
//! missing ones, and gives up with [`NeedNodes`] before it has changed anything. New nodes are
//! linked when complete, so a reader sees the old tree or the new one. The tree loses its top while
//! all indices fit below it, and nodes as they become empty.
//!
//! Invariants
//! - INV-XA-5 (one writer): functions that change the tree are called by one thread at a time; those
//!   marked "reader" inside an RCU section or by the writer.
//! - INV-XA-6 (words): a stored word is neither null nor [`RESERVED`], except that RESERVED marks
//!   an index that is taken and not yet visible; no reader function returns it.

mod whole;

use crate::NeedNodes;
use crate::node::{Node, Preload, SHIFT, SLOTS, free_node, free_node_rcu, shift_for};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering::*};

/// The word of an index that is taken but shows nothing yet. No pointer: entries are aligned to 4
/// or odd.
pub(crate) const RESERVED: *mut () = ptr::without_provenance_mut(2);

/// How unlinked nodes go.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) enum Retire {
    /// Readers may be around: after a grace period.
    Rcu,
    /// The caller has the tree for itself.
    Now,
}

/// A slot of a bottom node.
#[derive(Copy, Clone)]
pub(crate) struct SlotRef {
    pub node: NonNull<Node>,
    pub offset: usize,
}

/// The place of a free index: the deepest node on its way (null: the tree is too low).
#[derive(Copy, Clone)]
pub(crate) struct Place {
    pub index: u64,
    node: *mut Node,
}

impl Place {
    /// An index beyond the top.
    #[inline(always)]
    fn above(index: u64) -> Self {
        Place {
            index,
            node: ptr::null_mut(),
        }
    }
}

pub(crate) struct Tree {
    root: AtomicPtr<Node>,
}

/// # Safety
/// `n` is a node of the tree that the caller may look at (INV-XA-5).
#[inline(always)]
unsafe fn r<'a>(n: NonNull<Node>) -> &'a Node {
    // SAFETY: the caller's promise; all fields are atomics.
    unsafe { n.as_ref() }
}

/// The first index right of all that a node of `shift` over `index` can hold; None past the end.
#[inline]
fn right_of(index: u64, shift: u32) -> Option<u64> {
    let above = shift + SHIFT;
    if above >= u64::BITS {
        return None;
    }
    ((index >> above) + 1).checked_mul(1 << above)
}

/// The nearest ancestor that can hold `index`, the first index right of `node`.
///
/// # Safety
/// As for [`r`]; the writer.
unsafe fn ancestor_over(mut node: NonNull<Node>, index: u64) -> Option<NonNull<Node>> {
    // SAFETY: parents of the writer's nodes are nodes.
    unsafe {
        loop {
            node = NonNull::new(r(node).parent())?;
            // The first slot of an ancestor would mean that we have left that one, too.
            if r(node).offset_of(index) != 0 {
                return Some(node);
            }
        }
    }
}

impl Tree {
    pub const fn new() -> Self {
        Tree {
            root: AtomicPtr::new(ptr::null_mut()),
        }
    }

    #[inline(always)]
    fn root(&self) -> Option<NonNull<Node>> {
        NonNull::new(self.root.load(Acquire))
    }

    pub fn is_empty(&self) -> bool {
        self.root().is_none()
    }

    /// Reader. The visible word at `index`, null if none.
    ///
    /// # Safety
    /// INV-XA-5.
    #[inline]
    pub unsafe fn load(&self, index: u64) -> *mut () {
        // SAFETY: the caller's promise.
        match unsafe { self.slot(index) } {
            Some(s) => {
                // SAFETY: as above.
                let p = unsafe { r(s.node) }.slot(s.offset);
                if p == RESERVED { ptr::null_mut() } else { p }
            }
            None => ptr::null_mut(),
        }
    }

    /// Reader. The bottom slot of `index`, if its node exists.
    ///
    /// # Safety
    /// INV-XA-5.
    #[inline]
    pub unsafe fn slot(&self, index: u64) -> Option<SlotRef> {
        let mut node = self.root()?;
        // SAFETY: reached from the root inside the caller's section; nodes stay until it ends
        // (INV-XA-4).
        unsafe {
            if index > r(node).max_index() {
                return None;
            }
            loop {
                let offset = r(node).offset_of(index);
                if r(node).shift() == 0 {
                    return Some(SlotRef { node, offset });
                }
                node = NonNull::new(r(node).child(offset))?;
            }
        }
    }

    /// Reader. The first visible word at or after `index` and up to `max`, with its index.
    ///
    /// # Safety
    /// INV-XA-5.
    pub unsafe fn next(&self, mut index: u64, max: u64) -> Option<(u64, *mut ())> {
        // SAFETY: as in `slot`. Parents are never followed: a reader may hold a node that has
        // since lost its place.
        unsafe {
            'from_top: while index <= max {
                let mut node = self.root()?;
                if index > r(node).max_index() {
                    return None;
                }
                loop {
                    let n = r(node);
                    let first = n.offset_of(index);
                    let shift = n.shift();
                    // A bottom node that nothing is in or wanted of is not searched.
                    let last = if shift == 0 && n.count() == 0 {
                        first
                    } else {
                        SLOTS
                    };
                    let found = (first..last).find_map(|o| {
                        let p = n.slot(o);
                        (!p.is_null() && p != RESERVED).then_some((o, p))
                    });
                    let Some((offset, p)) = found else {
                        // Nothing left here: on to the first index right of this node.
                        index = right_of(index, shift)?;
                        continue 'from_top;
                    };
                    if offset != first {
                        let low = index >> shift;
                        index = (low - (low & (SLOTS as u64 - 1)) + offset as u64) << shift;
                        if index > max {
                            return None;
                        }
                    }
                    if shift == 0 {
                        return Some((index, p));
                    }
                    node = NonNull::new_unchecked(p.cast());
                }
            }
            None
        }
    }

    /// Reader. Gives each visible word of [index, max] to `f`, in order. Words of one bottom node cost
    /// no walk.
    ///
    /// # Safety
    /// INV-XA-5.
    #[inline]
    pub unsafe fn for_each(&self, mut index: u64, max: u64, mut f: impl FnMut(u64, *mut ())) {
        while index <= max {
            // SAFETY: as in `slot`.
            let Some(SlotRef { node, offset }) = (unsafe { self.slot(index) }) else {
                // SAFETY: as above.
                match unsafe { self.next(index, max) } {
                    Some((next, _)) => index = next,
                    None => return,
                }
                continue;
            };
            for o in offset..SLOTS {
                // SAFETY: as above.
                let p = unsafe { r(node) }.slot(o);
                if !p.is_null() && p != RESERVED {
                    f(index, p);
                }
                if index == max {
                    return;
                }
                index += 1;
            }
        }
    }

    /// Writer. The place of `index`, whether or not it is taken.
    ///
    /// # Safety
    /// INV-XA-5.
    #[inline]
    pub unsafe fn place(&self, index: u64) -> Place {
        let mut place = Place::above(index);
        let Some(mut node) = self.root() else {
            return place;
        };
        // SAFETY: the writer sees a stable tree.
        unsafe {
            if index > r(node).max_index() {
                return place;
            }
            loop {
                place.node = node.as_ptr();
                if r(node).shift() == 0 {
                    return place;
                }
                match NonNull::new(r(node).child(r(node).offset_of(index))) {
                    Some(child) => node = child,
                    None => return place,
                }
            }
        }
    }

    /// Writer. The first free index in [start, max]. One walk down, at most one up: O(height).
    ///
    /// # Safety
    /// INV-XA-5.
    #[inline]
    pub unsafe fn find_free(&self, start: u64, max: u64) -> Option<Place> {
        if start > max {
            return None;
        }
        let mut index = start;
        let Some(mut node) = self.root() else {
            return Some(Place::above(index));
        };
        // SAFETY: the writer sees a stable tree; a set bit of an interior node leads to an empty
        // slot or to a node with a set bit (INV-XA-2).
        unsafe {
            if index > r(node).max_index() {
                return Some(Place::above(index));
            }
            loop {
                let n = r(node);
                let shift = n.shift();
                let first = n.offset_of(index);
                let free = n.free() >> first << first;
                if free == 0 {
                    // Full from here on: over to the right, by way of an ancestor.
                    index = right_of(index, shift).filter(|&i| i <= max)?;
                    match ancestor_over(node, index) {
                        Some(ancestor) => node = ancestor,
                        None => {
                            return Some(Place::above(index));
                        }
                    }
                    continue;
                }
                let offset = free.trailing_zeros() as usize;
                if offset != first {
                    let low = index >> shift;
                    index = (low - first as u64 + offset as u64) << shift;
                    if index > max {
                        return None;
                    }
                }
                if shift == 0 {
                    return Some(Place {
                        index,
                        node: node.as_ptr(),
                    });
                }
                match NonNull::new(n.child(offset)) {
                    Some(child) => node = child,
                    None => {
                        return Some(Place {
                            index,
                            node: node.as_ptr(),
                        });
                    }
                }
            }
        }
    }

    /// Writer. The bottom slot of a place, made from `spare` as needed. The slot must be given a
    /// word next (INV-XA-3 does not hold meanwhile).
    ///
    /// # Safety
    /// INV-XA-5; the tree has not changed since `place` was found.
    #[inline]
    pub unsafe fn open(&self, place: Place, spare: &mut Preload) -> Result<SlotRef, NeedNodes> {
        if let Some(node) = NonNull::new(place.node) {
            // SAFETY: a node of this tree.
            let n = unsafe { r(node) };
            if n.shift() == 0 {
                return Ok(SlotRef {
                    node,
                    offset: n.offset_of(place.index),
                });
            }
        }
        // SAFETY: passed on.
        unsafe { self.open_slow(place, spare) }
    }

    #[cold]
    unsafe fn open_slow(&self, place: Place, spare: &mut Preload) -> Result<SlotRef, NeedNodes> {
        let index = place.index;
        // SAFETY: the writer's view of its own tree; new nodes are not visible before they are
        // linked.
        unsafe {
            let need = self.missing(place);
            if spare.len() < need {
                return Err(NeedNodes(need));
            }
            let mut node = match NonNull::new(place.node) {
                Some(node) => node,
                None => self.grow(index, spare),
            };
            while r(node).shift() > 0 {
                let (n, offset) = (r(node), r(node).offset_of(index));
                let child = spare.take();
                r(child).reset(n.shift() - SHIFT, node.as_ptr(), offset);
                n.set_slot(offset, child.as_ptr().cast());
                n.set_count(n.count() + 1);
                node = child;
            }
            Ok(SlotRef {
                node,
                offset: r(node).offset_of(index),
            })
        }
    }

    /// Nodes that [`Tree::open`] will take.
    unsafe fn missing(&self, place: Place) -> usize {
        let levels = |shift: u32| (shift / SHIFT) as usize;
        // SAFETY: the writer's view of its own tree.
        unsafe {
            match (NonNull::new(place.node), self.root()) {
                (Some(node), _) => levels(r(node).shift()),
                (None, None) => levels(shift_for(place.index)) + 1,
                (None, Some(root)) => {
                    // A higher top; below it the way to `index` is all new, for the index does
                    // not fit below the old top.
                    let top = shift_for(place.index);
                    levels(top - r(root).shift()) + levels(top)
                }
            }
        }
    }

    /// Puts nodes on top until `index` fits. Returns the new top.
    unsafe fn grow(&self, index: u64, spare: &mut Preload) -> NonNull<Node> {
        let top_shift = shift_for(index);
        // SAFETY: the writer's view of its own tree.
        unsafe {
            let mut top = match self.root() {
                Some(root) => root,
                None => {
                    let node = spare.take();
                    r(node).reset(top_shift, ptr::null_mut(), 0);
                    self.root.store(node.as_ptr(), Release);
                    return node;
                }
            };
            while r(top).shift() < top_shift {
                let node = spare.take();
                r(node).reset(r(top).shift() + SHIFT, ptr::null_mut(), 0);
                if r(top).free() == 0 {
                    r(node).free.store(!1, Relaxed);
                }
                r(node).set_slot(0, top.as_ptr().cast());
                r(node).set_count(1);
                r(top).parent.store(node.as_ptr(), Relaxed);
                r(top).offset.store(0, Relaxed);
                self.root.store(node.as_ptr(), Release);
                top = node;
            }
            top
        }
    }

    /// Writer. Fills an empty slot from [`Tree::open`].
    ///
    /// # Safety
    /// INV-XA-5, INV-XA-6; the slot is empty and of this tree.
    #[inline]
    pub unsafe fn fill(&self, slot: SlotRef, word: *mut ()) {
        // SAFETY: a node of this tree.
        let n = unsafe { r(slot.node) };
        debug_assert!(n.slot(slot.offset).is_null() && !word.is_null());
        n.set_slot(slot.offset, word);
        n.set_count(n.count() + 1);
        let free = n.free() & !(1 << slot.offset);
        n.free.store(free, Relaxed);
        if free == 0 {
            // SAFETY: as above.
            unsafe { self.note_full(slot.node) };
        }
    }

    /// `node` has become full: says so upwards (INV-XA-2).
    #[cold]
    unsafe fn note_full(&self, mut node: NonNull<Node>) {
        // SAFETY: parents of the writer's nodes are nodes.
        unsafe {
            while let Some(parent) = NonNull::new(r(node).parent()) {
                let free = r(parent).free() & !(1 << r(node).offset.load(Relaxed));
                r(parent).free.store(free, Relaxed);
                if free != 0 {
                    break;
                }
                node = parent;
            }
        }
    }

    /// Writer. Empties a slot that holds a word, frees what became empty, lowers the tree.
    ///
    /// # Safety
    /// INV-XA-5; the slot is of this tree and not empty. `Retire::Now` only without readers.
    #[inline]
    pub unsafe fn clear(&self, slot: SlotRef, retire: Retire) {
        // SAFETY: a node of this tree.
        let n = unsafe { r(slot.node) };
        debug_assert!(!n.slot(slot.offset).is_null());
        n.set_slot(slot.offset, ptr::null_mut());
        let free = n.free();
        n.free.store(free | 1 << slot.offset, Relaxed);
        let count = n.count() - 1;
        n.set_count(count);
        // SAFETY: as above.
        unsafe {
            if free == 0 {
                self.note_not_full(slot.node);
            }
            if count == 0 {
                self.remove_empty(slot.node, retire);
            }
        }
    }

    /// `node` has a free slot again: says so upwards (INV-XA-2).
    #[cold]
    unsafe fn note_not_full(&self, mut node: NonNull<Node>) {
        // SAFETY: parents of the writer's nodes are nodes.
        unsafe {
            while let Some(parent) = NonNull::new(r(node).parent()) {
                let free = r(parent).free();
                r(parent)
                    .free
                    .store(free | 1 << r(node).offset.load(Relaxed), Relaxed);
                if free != 0 {
                    break;
                }
                node = parent;
            }
        }
    }

    /// Writer. Takes a bottom node out, whatever its slots, with the ancestors that become empty.
    ///
    /// # Safety
    /// INV-XA-5; the node is in this tree. `Retire::Now` only without readers.
    pub unsafe fn unlink_bottom(&self, node: NonNull<Node>, retire: Retire) {
        // SAFETY: passed on.
        unsafe { self.remove_empty(node, retire) }
    }

    #[cold]
    unsafe fn remove_empty(&self, mut node: NonNull<Node>, retire: Retire) {
        // SAFETY: the writer's nodes; each is unlinked before it is retired.
        unsafe {
            loop {
                let n = r(node);
                let Some(parent) = NonNull::new(n.parent()) else {
                    self.root.store(ptr::null_mut(), Release);
                    retire_node(node, retire);
                    return;
                };
                let p = r(parent);
                p.set_slot(usize::from(n.offset.load(Relaxed)), ptr::null_mut());
                p.set_count(p.count() - 1);
                retire_node(node, retire);
                if p.count() != 0 {
                    break;
                }
                node = parent;
            }
            self.shrink(retire);
        }
    }

    /// Takes tops away while only their first slot is used.
    unsafe fn shrink(&self, retire: Retire) {
        // SAFETY: the writer's nodes. A reader on the old top still finds the same child in it.
        unsafe {
            while let Some(top) = self.root() {
                let t = r(top);
                if t.shift() == 0 || t.count() != 1 {
                    return;
                }
                let Some(child) = NonNull::new(t.child(0)) else {
                    return;
                };
                r(child).parent.store(ptr::null_mut(), Relaxed);
                self.root.store(child.as_ptr(), Release);
                retire_node(top, retire);
            }
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.drain(Retire::Now, |_, _| {});
    }
}

/// # Safety
/// As for [`free_node`] or [`free_node_rcu`].
unsafe fn retire_node(node: NonNull<Node>, retire: Retire) {
    // SAFETY: the caller's promise.
    unsafe {
        match retire {
            Retire::Rcu => free_node_rcu(node),
            Retire::Now => free_node(node),
        }
    }
}
