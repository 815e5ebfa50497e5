//! What touches the whole tree: emptying it, checking it. O(n).
//!
//! Invariants: checks INV-XA-2 and INV-XA-3; relies on INV-XA-5.

use super::{Retire, Tree, r, retire_node};
use crate::node::{Node, SHIFT, SLOTS};
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::*;

impl Tree {
    /// Empties the tree and gives each word (visible or RESERVED) to `f`.
    pub fn drain(&mut self, retire: Retire, mut f: impl FnMut(u64, *mut ())) {
        fn walk(node: NonNull<Node>, base: u64, retire: Retire, f: &mut impl FnMut(u64, *mut ())) {
            // SAFETY: `&mut` of the tree: no readers, no writers.
            let n = unsafe { r(node) };
            for offset in 0..SLOTS {
                let p = n.slot(offset);
                let index = base | (offset as u64) << n.shift();
                match NonNull::new(p.cast::<Node>()) {
                    Some(child) if n.shift() > 0 => walk(child, index, retire, f),
                    Some(_) => f(index, p),
                    None => {}
                }
            }
            // SAFETY: as above; the node is not reached again.
            unsafe { retire_node(node, retire) };
        }
        if let Some(root) = self.root() {
            self.root.store(ptr::null_mut(), Relaxed);
            walk(root, 0, retire, &mut f);
        }
    }

    /// Leaves all nodes to themselves.
    #[cold]
    pub fn forget(&mut self) {
        self.root.store(ptr::null_mut(), Relaxed);
    }

    /// Gives each bottom node to `f`; returns how many nodes there are in all. The writer.
    ///
    /// # Safety
    /// INV-XA-5.
    pub unsafe fn for_each_bottom(&self, mut f: impl FnMut(NonNull<Node>)) -> usize {
        unsafe fn walk(node: NonNull<Node>, f: &mut impl FnMut(NonNull<Node>)) -> usize {
            // SAFETY: the writer's nodes.
            let n = unsafe { r(node) };
            if n.shift() == 0 {
                f(node);
                return 1;
            }
            let children = (0..SLOTS).filter_map(|o| NonNull::new(n.child(o)));
            // SAFETY: as above.
            1 + children
                .map(|child| unsafe { walk(child, f) })
                .sum::<usize>()
        }
        // SAFETY: as above.
        self.root().map_or(0, |root| unsafe { walk(root, &mut f) })
    }

    /// Panics unless INV-XA-2 and INV-XA-3 hold; the count of `kept`, a bottom node or null, is one too high. Returns (words,
    /// nodes). For tests; the writer.
    ///
    /// # Safety
    /// INV-XA-5.
    pub unsafe fn check(&self, kept: *mut Node) -> (usize, usize) {
        unsafe fn walk(
            node: NonNull<Node>,
            parent: *mut Node,
            at: usize,
            kept: *mut Node,
        ) -> (usize, usize) {
            // SAFETY: the writer's nodes.
            let n = unsafe { r(node) };
            assert!(n.parent() == parent);
            assert!(parent.is_null() || usize::from(n.offset.load(Relaxed)) == at);
            let (mut words, mut nodes) = (0, 1);
            let mut count = u16::from(node.as_ptr() == kept);
            for o in 0..SLOTS {
                let p = n.slot(o);
                let mut free = p.is_null();
                count += u16::from(!free);
                if n.shift() == 0 {
                    words += usize::from(!free);
                } else if let Some(child) = NonNull::new(p.cast::<Node>()) {
                    // SAFETY: as above.
                    unsafe {
                        assert_eq!(r(child).shift() + SHIFT, n.shift());
                        free = r(child).free() != 0;
                        let (w, k) = walk(child, node.as_ptr(), o, kept);
                        words += w;
                        nodes += k;
                    }
                }
                assert_eq!(n.free() >> o & 1 == 1, free, "INV-XA-2");
            }
            assert!(count == n.count() && count > 0, "INV-XA-3");
            (words, nodes)
        }
        match self.root() {
            None => (0, 0),
            Some(root) => {
                // SAFETY: as above.
                unsafe {
                    let only_first = r(root).count() == 1 && !r(root).slot(0).is_null();
                    assert!(r(root).shift() == 0 || !only_first, "not shrunk");
                    walk(root, ptr::null_mut(), 0, kept)
                }
            }
        }
    }
}
