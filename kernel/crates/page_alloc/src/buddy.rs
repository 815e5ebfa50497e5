//! The buddy allocator of one node.
//!
//! Problem. Hand out naturally aligned blocks of 2^order frames, take them back in any order, and
//! never let free memory decay into pieces: after everything is returned the free lists must be
//! what they were.
//!
//! Mechanism. Knuth's buddy system. A free list per order, 0 to [`MAX_ORDER`]; a bitmap of the
//! non-empty ones, so the smallest fitting order is one `tzcnt`. To allocate, take the first block
//! of the smallest order that fits and put back the upper halves. To free, look at the buddy
//! (`pfn ^ 1 << order`): if its descriptor says "first frame of a free block of this order on this
//! node", unlink it and go on one order higher. Lists run through the descriptors (words 0 and 1),
//! so the allocator needs no memory of its own.
//!
//! The structure knows nothing about locks, CPUs or where descriptors are mapped: it is given the
//! address of the descriptor of frame 0. Host tests drive it alone.
//!
//! # Invariants
//! - INV-BUDDY-1: a block on list k has state FREE, order k, this node; a block is on a list iff
//!   its first frame is FREE (INV-PAGE-2).
//! - INV-BUDDY-2: no two free buddies of the same order below MAX_ORDER coexist.
//! - INV-BUDDY-3: `nr_free` is the number of frames on the lists; bit k of `nonempty` is set iff
//!   list k has a block.
//! - INV-BUDDY-4: every frame of a range given to `add_range` is, at each moment, in exactly one
//!   of: one free block, the hands of a caller.

use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;

use crate::page::{Page, PageState, tag};
use crate::{MAX_ORDER, MAX_PFN};

/// Index of the next and previous links among a free block's words.
const NEXT: usize = 0;
const PREV: usize = 1;

/// Frame 0's descriptor: from it every other is reached. An address, so that the struct can be
/// built in a const.
#[derive(Copy, Clone)]
struct MemMap(usize);

impl MemMap {
    #[inline(always)]
    fn page(self, pfn: usize) -> NonNull<Page> {
        let p = (self.0 + pfn * size_of::<Page>()) as *mut Page;
        // SAFETY: `Buddy::add_range`'s caller vouches for a mapped, non-null array.
        unsafe { NonNull::new_unchecked(p) }
    }

    #[inline(always)]
    fn pfn(self, page: NonNull<Page>) -> usize {
        (page.as_ptr() as usize - self.0) / size_of::<Page>()
    }
}

#[inline(always)]
fn desc<'a>(p: NonNull<Page>) -> &'a Page {
    // SAFETY: INV-PAGE-1, with the array that `Buddy::add_range`'s caller vouched for.
    unsafe { p.as_ref() }
}

#[inline(always)]
fn link(p: NonNull<Page>, which: usize) -> Option<NonNull<Page>> {
    NonNull::new(desc(p).words()[which].load(Relaxed) as *mut Page)
}

#[inline(always)]
fn set_link(p: NonNull<Page>, which: usize, to: Option<NonNull<Page>>) {
    desc(p).words()[which].store(to.map_or(0, |t| t.as_ptr() as usize), Relaxed);
}

/// Why memory could not be given to the allocator.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum InitError {
    /// The node id is not below MAX_NUMNODES.
    BadNode,
    /// start > end, or the end is beyond any frame the descriptors can name.
    BadRange,
    /// A frame of the range is managed already.
    Overlap,
}

/// The free memory of one node. All methods are the caller's to serialise.
pub struct Buddy {
    mem_map: MemMap,
    node: usize,
    nonempty: u32,
    nr_free: usize,
    nr_managed: usize,
    lists: [Option<NonNull<Page>>; MAX_ORDER as usize + 1],
}

// SAFETY: a Buddy is the only user of the links of its free blocks, whichever CPU runs it.
unsafe impl Send for Buddy {}

impl Buddy {
    /// No memory yet.
    pub const fn new() -> Self {
        Buddy {
            mem_map: MemMap(0),
            node: 0,
            nonempty: 0,
            nr_free: 0,
            nr_managed: 0,
            lists: [None; MAX_ORDER as usize + 1],
        }
    }

    /// Frames on the free lists.
    #[inline]
    pub fn nr_free(&self) -> usize {
        self.nr_free
    }

    /// Frames ever given to this buddy.
    pub fn nr_managed(&self) -> usize {
        self.nr_managed
    }

    /// Free blocks of one order. Walks the list: for reports.
    pub fn nr_blocks(&self, order: u32) -> usize {
        let mut n = 0;
        let mut cur = self.lists[order as usize];
        while let Some(p) = cur {
            n += 1;
            cur = link(p, NEXT);
        }
        n
    }

    /// Gives frames `range` (page frame numbers) to the allocator as free memory of `node`.
    /// `mem_map` is the address of frame 0's descriptor. On error nothing is changed.
    ///
    /// # Safety
    /// The descriptors of the range, and of every frame of each 4 MiB block it touches, are mapped
    /// for ever and were zero before the first call; the frames are memory nobody uses.
    /// Later calls for the same Buddy pass the same `mem_map` and `node`.
    pub unsafe fn add_range(
        &mut self,
        mem_map: *mut Page,
        node: usize,
        range: Range<usize>,
    ) -> Result<(), InitError> {
        if range.start > range.end || range.end > MAX_PFN {
            return Err(InitError::BadRange);
        }
        self.mem_map = MemMap(mem_map as usize);
        self.node = node;
        for pfn in range.clone() {
            if !desc(self.mem_map.page(pfn)).state_is(PageState::Reserved) {
                return Err(InitError::Overlap);
            }
        }
        for pfn in range.clone() {
            desc(self.mem_map.page(pfn)).set_tag(tag(PageState::Inner, 0, node));
        }
        self.nr_managed += range.len();
        let mut pfn = range.start;
        while pfn < range.end {
            let fits = (range.end - pfn).ilog2();
            let order = pfn.trailing_zeros().min(fits).min(MAX_ORDER);
            self.free(self.mem_map.page(pfn), order);
            pfn += 1 << order;
        }
        Ok(())
    }

    /// Takes a block of 2^order frames. Its first frame is left INNER: the caller names its state.
    pub fn alloc(&mut self, order: u32) -> Option<NonNull<Page>> {
        if order > MAX_ORDER {
            return None;
        }
        let fitting = self.nonempty & (!0 << order);
        if fitting == 0 {
            return None;
        }
        let found = fitting.trailing_zeros();
        let page = self.pop(found);
        self.split(page, found, order);
        self.nr_free -= 1 << order;
        Some(page)
    }

    /// Takes up to `want` single frames, from the smallest blocks there are (this keeps the large
    /// ones whole), and hands each to `take`. Returns how many.
    pub fn alloc_bulk(&mut self, want: usize, mut take: impl FnMut(NonNull<Page>)) -> usize {
        let mut got = 0;
        while got < want && self.nonempty != 0 {
            let found = self.nonempty.trailing_zeros();
            let page = self.pop(found);
            let order = found.min((want - got).ilog2());
            self.split(page, found, order);
            // Highest first: a stack that receives them pops in ascending order.
            for i in (0..1usize << order).rev() {
                // SAFETY: frame i of a block of 2^order frames; descriptors are contiguous.
                take(unsafe { page.add(i) });
            }
            got += 1 << order;
        }
        self.nr_free -= got;
        got
    }

    /// Gives a block back. `page` is its first frame, not FREE, of this node, aligned to `order`.
    pub fn free(&mut self, page: NonNull<Page>, order: u32) {
        let mut pfn = self.mem_map.pfn(page);
        let mut page = page;
        let mut order = order;
        debug_assert!(pfn.trailing_zeros() >= order && order <= MAX_ORDER);
        debug_assert!(
            !desc(page).state_is(PageState::Free),
            "frame {pfn:#x} is free already"
        );
        for i in 1..1usize << order {
            // SAFETY: frame i of the block; descriptors are contiguous.
            desc(unsafe { page.add(i) }).set_tag(tag(PageState::Inner, 0, self.node));
        }
        self.nr_free += 1 << order;
        while order < MAX_ORDER {
            let buddy_pfn = pfn ^ (1 << order);
            let buddy = self.mem_map.page(buddy_pfn);
            if desc(buddy).raw_tag() != tag(PageState::Free, order, self.node) {
                break;
            }
            self.unlink(buddy, order);
            let upper = page.max(buddy);
            desc(upper).set_tag(tag(PageState::Inner, 0, self.node));
            page = page.min(buddy);
            pfn &= buddy_pfn;
            order += 1;
        }
        self.push(page, order);
    }

    /// Puts the upper halves of a block of order `from` back until order `to` is left.
    #[inline]
    fn split(&mut self, page: NonNull<Page>, from: u32, to: u32) {
        for order in (to..from).rev() {
            // SAFETY: the upper half of a block of order + 1; descriptors are contiguous.
            self.push(unsafe { page.add(1 << order) }, order);
        }
    }

    #[inline]
    fn push(&mut self, page: NonNull<Page>, order: u32) {
        let first = &mut self.lists[order as usize];
        set_link(page, NEXT, *first);
        set_link(page, PREV, None);
        if let Some(f) = *first {
            set_link(f, PREV, Some(page));
        }
        *first = Some(page);
        self.nonempty |= 1 << order;
        desc(page).set_tag(tag(PageState::Free, order, self.node));
    }

    /// First block of a list that `nonempty` says has one.
    #[inline]
    fn pop(&mut self, order: u32) -> NonNull<Page> {
        let page = self.lists[order as usize].expect("INV-BUDDY-3: nonempty bit without a block");
        self.unlink(page, order);
        desc(page).set_tag(tag(PageState::Inner, 0, self.node));
        page
    }

    #[inline]
    fn unlink(&mut self, page: NonNull<Page>, order: u32) {
        let (next, prev) = (link(page, NEXT), link(page, PREV));
        if let Some(n) = next {
            set_link(n, PREV, prev);
        }
        match prev {
            Some(p) => set_link(p, NEXT, next),
            None => {
                self.lists[order as usize] = next;
                if next.is_none() {
                    self.nonempty &= !(1 << order);
                }
            }
        }
    }

    /// Walks every list and stops at the first broken invariant. O(free blocks).
    pub fn check_invariants(&self) {
        let mut frames = 0;
        for order in 0..=MAX_ORDER {
            let mut prev = None;
            let mut cur = self.lists[order as usize];
            assert_eq!(
                cur.is_some(),
                self.nonempty & 1 << order != 0,
                "INV-BUDDY-3 bitmap, order {order}"
            );
            while let Some(p) = cur {
                let pfn = self.mem_map.pfn(p);
                assert_eq!(
                    desc(p).raw_tag(),
                    tag(PageState::Free, order, self.node),
                    "INV-BUDDY-1 pfn {pfn:#x}"
                );
                assert_eq!(link(p, PREV), prev, "links of pfn {pfn:#x}");
                for i in 1..1usize << order {
                    // SAFETY: frame i of the block; descriptors are contiguous.
                    let inner = desc(unsafe { p.add(i) });
                    assert_eq!(
                        inner.raw_tag(),
                        tag(PageState::Inner, 0, self.node),
                        "INV-PAGE-2 pfn {pfn:#x} + {i}"
                    );
                }
                if order < MAX_ORDER {
                    let b = desc(self.mem_map.page(pfn ^ (1 << order))).raw_tag();
                    assert_ne!(
                        b,
                        tag(PageState::Free, order, self.node),
                        "INV-BUDDY-2 pfn {pfn:#x}"
                    );
                }
                frames += 1 << order;
                prev = cur;
                cur = link(p, NEXT);
            }
        }
        assert_eq!(frames, self.nr_free, "INV-BUDDY-3 count");
    }
}
