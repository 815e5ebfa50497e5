//! A slab: the pages of some objects, and the list it is in.
//!
//! Problem: for each slab, which objects are free. Mechanism: free objects form a chain through
//! their free pointers; objects that were never handed out need no link, they are counted (`fresh`),
//! so that a new slab's memory is not touched before it is used. The slab's data is in the
//! descriptor of its first page, which `PageRef::head` finds from any object.
//!
//! ```text
//! words of the page descriptor
//! 0 next   1 prev   2 cache   3 free chain   4 in_use | objects << 16 | fresh << 32   5 list
//! ```
//!
//! Lock: everything but word 2 (constant for the slab's life) is guarded by the list lock of the
//! slab's node, except while the slab is private: just made, or taken off its list to be discarded.
//!
//! INV-SLAB-1: an object of the slab is either handed out (counted in `in_use`: it is a client's or
//! in a sheaf), or in the chain, or has an index >= `fresh`; and in one of these once.
//! INV-SLAB-2: a slab with `in_use == objects` is in its node's full list, any other in the partial
//! list, unless private.

use crate::cache::KmemCache;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use page_alloc::PageRef;

/// The first page of a slab.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) struct Slab(PageRef);

const NEXT: usize = 0;
const PREV: usize = 1;
const CACHE: usize = 2;
const CHAIN: usize = 3;
const COUNTS: usize = 4;

/// in_use, objects, fresh.
#[derive(Copy, Clone, Debug)]
struct Counts {
    in_use: usize,
    objects: usize,
    fresh: usize,
}

impl Slab {
    /// Makes a slab without links of fresh pages.
    pub fn new(page: PageRef, cache: &'static KmemCache, objects: usize) -> Self {
        let slab = Slab(page);
        page.set_ptr(CACHE, cache);
        page.set_ptr::<u8>(CHAIN, core::ptr::null());
        slab.set_counts(Counts {
            in_use: 0,
            objects,
            fresh: 0,
        });
        slab
    }

    /// The slab that an object is on.
    #[inline]
    pub fn of(object: *mut u8) -> Self {
        Slab(PageRef::from_virt(object).head())
    }

    /// The slab that starts with `page`.
    pub fn from_page(page: PageRef) -> Self {
        Slab(page)
    }

    /// The first page.
    pub fn page(self) -> PageRef {
        self.0
    }

    /// The node of the memory, which is the node whose lists the slab is in.
    #[inline]
    pub fn node(self) -> usize {
        self.0.node()
    }

    /// The cache.
    pub fn cache(self) -> *const KmemCache {
        self.0.ptr(CACHE)
    }

    /// Objects on the slab.
    pub fn objects(self) -> usize {
        self.counts().objects
    }

    /// Objects handed out to clients and sheaves.
    pub fn in_use(self) -> usize {
        self.counts().in_use
    }

    /// Whether all objects are handed out.
    pub fn is_full(self) -> bool {
        let c = self.counts();
        c.in_use == c.objects
    }

    /// The object with index `i`.
    pub fn object(self, cache: &KmemCache, i: usize) -> *mut u8 {
        let g = cache.geometry();
        self.0
            .virt()
            .wrapping_add(g.start as usize + i * g.stride as usize)
    }

    /// Hands out up to `want` objects; returns how many.
    pub fn take(self, cache: &KmemCache, want: usize, mut out: impl FnMut(*mut u8)) -> usize {
        let mut c = self.counts();
        let n = want.min(c.objects - c.in_use);
        let free_ptr = cache.geometry().free_ptr as usize;
        let mut chain: *mut u8 = self.0.ptr(CHAIN);
        for _ in 0..n {
            if chain.is_null() {
                // INV-SLAB-1: not in use and not in the chain, so fresh.
                out(self.object(cache, c.fresh));
                c.fresh += 1;
            } else {
                out(chain);
                // SAFETY: a free object of this slab, ours under the lock (INV-SLAB-1).
                chain = unsafe { chain.add(free_ptr).cast::<*mut u8>().read() };
            }
        }
        c.in_use += n;
        self.0.set_ptr(CHAIN, chain);
        self.set_counts(c);
        n
    }

    /// Takes back an object that was handed out. Returns how many are still out.
    ///
    /// # Safety
    /// `object` is on this slab, handed out, and not used any more.
    pub unsafe fn put(self, cache: &KmemCache, object: *mut u8) -> usize {
        let mut c = self.counts();
        debug_assert!(c.in_use > 0);
        let free_ptr = cache.geometry().free_ptr as usize;
        // SAFETY: the object is ours now; the free pointer lies inside its stride.
        unsafe {
            object
                .add(free_ptr)
                .cast::<*mut u8>()
                .write(self.0.ptr(CHAIN))
        };
        self.0.set_ptr(CHAIN, object);
        c.in_use -= 1;
        self.set_counts(c);
        c.in_use
    }

    /// Calls `f` with each object that is not handed out.
    pub fn for_each_free(self, cache: &KmemCache, mut f: impl FnMut(*mut u8)) {
        let c = self.counts();
        let mut chain: *mut u8 = self.0.ptr(CHAIN);
        let mut left = c.objects;
        while !chain.is_null() {
            f(chain);
            assert!(left > 0, "slab: free chain with a loop");
            left -= 1;
            // SAFETY: a free object of this slab, ours under the lock (INV-SLAB-1).
            chain = unsafe {
                chain
                    .add(cache.geometry().free_ptr as usize)
                    .cast::<*mut u8>()
                    .read()
            };
        }
        (c.fresh..c.objects).for_each(|i| f(self.object(cache, i)));
    }

    /// Words 0 and 1, for an RcuHead while the slab is in no list.
    pub fn list_words(self) -> NonNull<AtomicUsize> {
        NonNull::from(&self.0.words()[NEXT])
    }

    /// Links this private slab before `next` in a chain of discarded slabs.
    pub fn set_next(self, next: Option<Slab>) {
        self.0.words()[NEXT].store(raw(next), Relaxed);
    }

    /// The next slab in a list or in a chain.
    pub fn next(self) -> Option<Slab> {
        slab(self.0.words()[NEXT].load(Relaxed))
    }

    fn counts(self) -> Counts {
        let w = self.0.words()[COUNTS].load(Relaxed);
        Counts {
            in_use: w & 0xffff,
            objects: w >> 16 & 0xffff,
            fresh: w >> 32,
        }
    }

    fn set_counts(self, c: Counts) {
        self.0.words()[COUNTS].store(c.in_use | c.objects << 16 | c.fresh << 32, Relaxed);
    }
}

fn raw(slab: Option<Slab>) -> usize {
    slab.map_or(0, |s| s.0.as_ptr().as_ptr() as usize)
}

fn slab(raw: usize) -> Option<Slab> {
    // SAFETY: stored by `raw`.
    NonNull::new(raw as *mut _).map(|p| Slab(unsafe { PageRef::from_ptr(p) }))
}

/// A doubly linked list of slabs. Guarded by the node's list lock.
pub(crate) struct SlabList {
    head: Option<Slab>,
    tail: Option<Slab>,
    len: usize,
}

impl SlabList {
    /// An empty list.
    pub const fn new() -> Self {
        SlabList {
            head: None,
            tail: None,
            len: 0,
        }
    }

    /// The first slab.
    pub fn front(&self) -> Option<Slab> {
        self.head
    }

    /// Number of slabs.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Adds a private slab at the front.
    pub fn push_front(&mut self, slab: Slab) {
        self.link(slab, None, self.head);
    }

    /// Adds a private slab at the back.
    pub fn push_back(&mut self, slab: Slab) {
        self.link(slab, self.tail, None);
    }

    fn link(&mut self, slab: Slab, prev: Option<Slab>, next: Option<Slab>) {
        slab.0.words()[PREV].store(raw(prev), Relaxed);
        slab.0.words()[NEXT].store(raw(next), Relaxed);
        self.set_next_of(prev, Some(slab));
        self.set_prev_of(next, Some(slab));
        self.len += 1;
    }

    /// Takes a slab of this list out.
    pub fn remove(&mut self, slab_: Slab) {
        let (prev, next) = (slab(slab_.0.words()[PREV].load(Relaxed)), slab_.next());
        self.set_next_of(prev, next);
        self.set_prev_of(next, prev);
        self.len -= 1;
    }

    /// The slabs, from the front. The list is not changed meanwhile, except that the slab last
    /// returned may be removed.
    pub fn iter(&self) -> impl Iterator<Item = Slab> + use<> {
        let mut at = self.head;
        core::iter::from_fn(move || {
            let slab = at?;
            at = slab.next();
            Some(slab)
        })
    }

    fn set_next_of(&mut self, of: Option<Slab>, next: Option<Slab>) {
        match of {
            Some(s) => s.0.words()[NEXT].store(raw(next), Relaxed),
            None => self.head = next,
        }
    }

    fn set_prev_of(&mut self, of: Option<Slab>, prev: Option<Slab>) {
        match of {
            Some(s) => s.0.words()[PREV].store(raw(prev), Relaxed),
            None => self.tail = prev,
        }
    }
}
