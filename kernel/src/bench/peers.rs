//! `bench=peers`: the slab beside allocators that others wrote: `peer=slab`, `talc`, `linked-list`, `buddy`.
//!
//! All do the same: each worker takes `slab_cached` objects of `peer_size` bytes and gives them back, oldest first. The
//! others are general allocators of one heap, here 4 MiB that nobody else uses, each behind the same spinlock, as their
//! own documentation has it. What they can do beyond fixed sizes is not measured.

use super::Benchmark;
use crate::errno::Errno;
use crate::params;
use alloc::vec::Vec;
use buddy_system_allocator::Heap as Buddy;
use core::alloc::Layout;
use core::ptr::NonNull;
use kbench::record::{Record, Setting};
use ksync::{SpinLock, lock_class};
use linked_list_allocator::Heap as LinkedList;
use page_alloc::Gfp;
use slab::{CacheFlags, KmemCache};
use talc::{ErrOnOom, Span, Talc};

kparam::choices! {
    /// Allocators of `bench=peers`.
    pub enum Peer {
        /// A cache of the slab.
        Slab = "slab",
        /// talc.
        Talc = "talc",
        /// linked_list_allocator.
        LinkedList = "linked-list",
        /// buddy_system_allocator.
        Buddy = "buddy",
    }
}

/// Order of the peers' heap: 4 MiB.
const ORDER: u32 = 10;
const HEAP: usize = 4096 << ORDER;

/// There is one.
#[allow(clippy::large_enum_variant)]
enum Heap {
    Slab(&'static KmemCache),
    Talc(SpinLock<Talc<ErrOnOom>>),
    LinkedList(SpinLock<LinkedList>),
    Buddy(SpinLock<Buddy<32>>),
}

/// The benchmark.
pub struct Peers {
    heap: Heap,
    layout: Layout,
    held: usize,
}

impl Peers {
    #[inline(always)]
    fn alloc(&self) -> Option<NonNull<u8>> {
        match &self.heap {
            Heap::Slab(cache) => cache.alloc(Gfp::empty()).ok(),
            // SAFETY: the layout is not empty.
            Heap::Talc(heap) => unsafe { heap.lock().malloc(self.layout).ok() },
            Heap::LinkedList(heap) => heap.lock().allocate_first_fit(self.layout).ok(),
            Heap::Buddy(heap) => heap.lock().alloc(self.layout).ok(),
        }
    }

    /// # Safety
    /// `object` came from `alloc` and is given back once.
    #[inline(always)]
    unsafe fn free(&self, object: NonNull<u8>) {
        // SAFETY: the caller's promise, for each.
        unsafe {
            match &self.heap {
                Heap::Slab(cache) => cache.free(object),
                Heap::Talc(heap) => heap.lock().free(object, self.layout),
                Heap::LinkedList(heap) => heap.lock().deallocate(object, self.layout),
                Heap::Buddy(heap) => heap.lock().dealloc(object, self.layout),
            }
        }
    }
}

/// Memory that stays the peer's to the machine's end.
fn memory() -> *mut u8 {
    page_alloc::alloc_pages(ORDER, Gfp::empty())
        .expect("4 MiB in one piece")
        .virt()
}

impl Benchmark for Peers {
    type Worker = Vec<NonNull<u8>>;
    const OPS: u64 = 200_000;
    const WINDOW: Option<u64> = Some(20_000_000);

    fn new(_workers: usize) -> Self {
        let params = params::get();
        let size = params.peer_size.clamp(8, 4096) as usize;
        let layout = Layout::from_size_align(size, 8).expect("a small layout");
        let heap = match params.peer {
            Peer::Slab => Heap::Slab(
                KmemCache::create("peer", size, 8, None, None, CacheFlags::empty())
                    .expect("memory for a cache"),
            ),
            Peer::Talc => {
                let (mut heap, at) = (Talc::new(ErrOnOom), memory());
                // SAFETY: the memory is this heap's alone.
                unsafe { heap.claim(Span::new(at, at.add(HEAP))) }.expect("room for its bookkeeping");
                Heap::Talc(SpinLock::new(heap, lock_class!("peer")))
            }
            Peer::LinkedList => {
                let mut heap = LinkedList::empty();
                // SAFETY: as above.
                unsafe { heap.init(memory(), HEAP) };
                Heap::LinkedList(SpinLock::new(heap, lock_class!("peer")))
            }
            Peer::Buddy => {
                let mut heap = Buddy::empty();
                // SAFETY: as above.
                unsafe { heap.init(memory() as usize, HEAP) };
                Heap::Buddy(SpinLock::new(heap, lock_class!("peer")))
            }
        };
        Peers {
            heap,
            layout,
            held: params.slab_cached.clamp(1, 1024) as usize,
        }
    }

    fn worker(&self, _index: usize) -> Vec<NonNull<u8>> {
        Vec::with_capacity(self.held)
    }

    #[inline]
    fn operation(&self, held: &mut Vec<NonNull<u8>>) -> Result<(), Errno> {
        for _ in 0..self.held {
            held.push(self.alloc().ok_or(Errno::ENOMEM)?);
        }
        for object in held.drain(..) {
            // SAFETY: allocated above.
            unsafe { self.free(object) };
        }
        Ok(())
    }

    fn batch(&self) -> u64 {
        self.held as u64
    }

    fn describe(&self, record: &mut Record) {
        let params = params::get();
        record.params.push(Setting::new("peer", params.peer.name()));
        record.params.push(Setting::new("peer_size", alloc::format!("{}", self.layout.size())));
        record.params.push(Setting::new("cached", alloc::format!("{}", self.held)));
    }
}
