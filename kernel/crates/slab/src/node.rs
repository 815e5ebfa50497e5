//! What a cache has on a node: its slabs and its barn, and the way of objects back to slabs.
//!
//! Lock order: `slab_barn` and `slab_list` are leaves: nothing is taken under them, and they are not
//! held together. Slabs are made and discarded with neither held.
//!
//! INV-NODE-1: every slab whose memory is of this node is in one of this node's lists, unless
//! private; `in_use`, `objects` and `pages` are the sums over the slabs in the lists.

use crate::cache::{CacheFlags, KmemCache};
use crate::page::{Slab, SlabList};
use crate::reclaim::{self, Reclaim};
use crate::sheaf::Barn;
use core::ptr::NonNull;
use ksync::rcu::{self, RcuHead};
use ksync::{LockClass, SpinLock};
use page_alloc::PageRef;

/// Slabs without a used object that a node keeps, as long as it has no more partial ones.
const PARTIAL_MIN: usize = if cfg!(test) { 1 } else { 5 };

static BARN_CLASS: LockClass = LockClass::new("slab_barn");
static LIST_CLASS: LockClass = LockClass::new("slab_list");

/// A cache's part on one node.
#[repr(C, align(64))]
pub(crate) struct Node {
    pub barn: SpinLock<Barn>,
    pub lists: SpinLock<Lists>,
}

/// The slabs of a node, and what they add up to.
pub(crate) struct Lists {
    partial: SlabList,
    full: SlabList,
    /// Objects handed out to clients and sheaves.
    pub in_use: usize,
    /// Objects on slabs.
    pub objects: usize,
    /// Pages in slabs.
    pub pages: usize,
}

impl Node {
    /// A node without slabs.
    pub const fn new() -> Self {
        let lists = Lists {
            partial: SlabList::new(),
            full: SlabList::new(),
            in_use: 0,
            objects: 0,
            pages: 0,
        };
        Node {
            barn: SpinLock::new(Barn::new(), &BARN_CLASS),
            lists: SpinLock::new(lists, &LIST_CLASS),
        }
    }
}

impl Lists {
    /// Hands out up to `want` objects of partial slabs; returns how many.
    pub fn take(&mut self, cache: &KmemCache, want: usize, mut out: impl FnMut(*mut u8)) -> usize {
        let mut left = want;
        while left > 0 {
            let Some(slab) = self.partial.front() else {
                break;
            };
            left -= slab.take(cache, left, &mut out);
            if slab.is_full() {
                self.partial.remove(slab);
                self.full.push_front(slab);
            }
        }
        self.in_use += want - left;
        want - left
    }

    /// Takes over a private slab.
    pub fn add(&mut self, slab: Slab) {
        self.in_use += slab.in_use();
        self.objects += slab.objects();
        self.pages += 1 << slab.page().order();
        if slab.is_full() {
            self.full.push_front(slab);
        } else {
            self.partial.push_front(slab);
        }
    }

    /// Takes back an object of a slab of this node. A slab that became free and is not worth
    /// keeping goes to `discard`.
    ///
    /// # Safety
    /// As [`Slab::put`].
    unsafe fn put(&mut self, cache: &KmemCache, slab: Slab, object: *mut u8, discard: &mut Chain) {
        let was_full = slab.is_full();
        // SAFETY: the caller's promise, and the list lock.
        let left = unsafe { slab.put(cache, object) };
        self.in_use -= 1;
        if was_full {
            self.full.remove(slab);
            self.partial.push_front(slab);
        }
        if left == 0 {
            if self.partial.len() > PARTIAL_MIN {
                self.detach(slab, discard);
            } else {
                // Last to be used, so that fuller slabs fill up first.
                self.partial.remove(slab);
                self.partial.push_back(slab);
            }
        }
    }

    fn detach(&mut self, slab: Slab, discard: &mut Chain) {
        self.partial.remove(slab);
        self.objects -= slab.objects();
        self.pages -= 1 << slab.page().order();
        discard.push(slab);
    }

    /// For a planted bug: a slab without a used object, now.
    pub fn first_free(&self) -> Option<Slab> {
        self.partial.iter().find(|slab| slab.in_use() == 0)
    }

    /// For a planted bug: takes that slab, whatever has become of it.
    pub fn detach_seen(&mut self, seen: Option<Slab>) -> Chain {
        let mut chain = Chain::new();
        if let Some(slab) = seen
            && self.partial.iter().any(|s| s == slab)
        {
            self.detach(slab, &mut chain);
        }
        chain
    }

    /// Moves every slab without a used object to a chain.
    pub fn detach_free(&mut self) -> Chain {
        let mut chain = Chain::new();
        for slab in self.partial.iter() {
            if slab.in_use() == 0 {
                self.detach(slab, &mut chain);
            }
        }
        chain
    }

    /// Calls `f` with each slab.
    pub fn for_each(&self, f: impl FnMut(Slab)) {
        self.partial.iter().chain(self.full.iter()).for_each(f);
    }
}

/// Private slabs, linked by their first word, on their way to be freed.
pub(crate) struct Chain(Option<Slab>);

impl Chain {
    const fn new() -> Self {
        Chain(None)
    }

    fn push(&mut self, slab: Slab) {
        slab.set_next(self.0);
        self.0 = Some(slab);
    }

    /// Frees the slabs; returns the number of pages. No slab lock is held.
    pub fn discard(self, cache: &'static KmemCache) -> usize {
        let mut pages = 0;
        let mut at = self.0;
        while let Some(slab) = at {
            at = slab.next();
            pages += 1 << slab.page().order();
            if cache.flags().contains(CacheFlags::TYPESAFE_BY_RCU) {
                let head = slab.list_words().cast::<RcuHead>();
                // SAFETY: the slab is in no list, so its link words are free for the head, until
                // the callback, which runs once.
                unsafe {
                    head.write(RcuHead::new());
                    rcu::call(head, discard_rcu);
                }
            } else {
                free_slab(slab);
            }
        }
        pages
    }
}

const _: () = assert!(size_of::<RcuHead>() <= 2 * size_of::<usize>());

/// # Safety
/// `head` lies in the descriptor of a private slab, and its grace period has ended.
unsafe fn discard_rcu(head: NonNull<RcuHead>) {
    let page = head
        .as_ptr()
        .map_addr(|a| a & !(size_of::<page_alloc::Page>() - 1))
        .cast();
    // SAFETY: descriptors are aligned to their size, and the head lies in one.
    free_slab(Slab::from_page(unsafe {
        PageRef::from_ptr(NonNull::new_unchecked(page))
    }));
}

/// Destroys the objects of a private slab and frees its pages; with `slab_reclaim=worker` a slab
/// with a destructor waits for the worker.
fn free_slab(slab: Slab) {
    // SAFETY: a cache outlives its slabs: destroy waits for callbacks and for the worker.
    let cache = unsafe { &*slab.cache() };
    if cache.dtor().is_some() && reclaim::policy() == Reclaim::Worker {
        reclaim::defer(slab);
    } else {
        destroy_slab(slab);
    }
}

/// Destroys the objects of a private slab and frees its pages, now.
pub(crate) fn destroy_slab(slab: Slab) {
    // SAFETY: as above.
    let cache = unsafe { &*slab.cache() };
    if let Some(dtor) = cache.dtor() {
        // As if memory had run out under a spinlock, which a destructor must be fit for; and what the scheduler takes is
        // not the destructor's.
        let _atomic = ksync::PreemptGuard::new();
        let _dtor = ksync::lockdep::dtor_section();
        for i in 0..slab.objects() {
            // SAFETY: an object is never at address zero.
            dtor(unsafe { NonNull::new_unchecked(slab.object(cache, i)) });
        }
    }
    page_alloc::free_pages(slab.page());
}

/// Returns objects to their slabs: one acquisition of each node's list lock. `objects` is scratch.
///
/// # Safety
/// The objects are of this cache, handed out by their slabs, and not used any more.
pub(crate) unsafe fn return_objects(cache: &'static KmemCache, objects: &mut [*mut u8]) {
    let mut left = objects.len();
    while left > 0 {
        let id = Slab::of(objects[0]).node();
        let mut discard = Chain::new();
        let mut others = 0;
        {
            let mut lists = cache.node(id).lists.lock();
            for i in 0..left {
                let slab = Slab::of(objects[i]);
                if slab.node() == id {
                    // SAFETY: the caller's promise.
                    unsafe { lists.put(cache, slab, objects[i], &mut discard) };
                } else {
                    objects[others] = objects[i];
                    others += 1;
                }
            }
        }
        left = others;
        discard.discard(cache);
    }
}
