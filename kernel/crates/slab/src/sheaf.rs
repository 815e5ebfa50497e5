//! Sheaves: arrays of free objects, per CPU and in a barn per node.
//!
//! Problem: the slab lists of a node are behind a lock; an allocation should not take it.
//!
//! Mechanism: each CPU owns a *main* and a *spare* sheaf. Allocation pops main, free pushes it, with
//! preemption off and no atomic instruction. The spare damps a pattern that alternates around the
//! edge of main. When both fail, a whole sheaf is exchanged with the node's *barn*, 60 objects for
//! one lock; when the barn fails, a sheaf is refilled from slabs or flushed to them. Objects of
//! other nodes never enter main: they collect in the *remote* sheaf, which is flushed to their
//! nodes when full, one lock per node and flush.
//!
//! ```text
//! CpuCache of each CPU (in its window)         barn of each node
//! size capacity main -> sheaf                  full  -> sheaf -> sheaf (at most 10)
//! allocs frees spare -> sheaf                  empty -> sheaf -> sheaf (at most 10)
//!              remote -> sheaf
//! ```
//!
//! INV-SHEAF-1: a CpuCache is touched only by its CPU with preemption off, or by the drainer of a
//! frozen cache (see drain.rs). All zero is a valid, empty CpuCache: it makes every fast path slow.
//! INV-SHEAF-2: main's count is `CpuCache::size`, other sheaves' is in the sheaf; objects below the
//! count are free objects of the cache, handed out by their slabs; those of main, spare and the
//! barn belong to this node.

use core::ptr;
use core::sync::atomic::AtomicU64;

/// Sheaves that a barn keeps of each kind.
pub(crate) const BARN_FULL_MAX: usize = if cfg!(test) { 2 } else { 10 };
const BARN_EMPTY_MAX: usize = if cfg!(test) { 2 } else { 10 };

/// An array of objects. The array of `capacity` pointers follows the header.
#[repr(C)]
pub(crate) struct Sheaf {
    /// Number of objects, unless this is some CPU's main.
    pub size: u32,
    pub capacity: u32,
    /// In a barn: the next one.
    next: *mut Sheaf,
    objects: [*mut u8; 0],
}

impl Sheaf {
    /// Bytes of a sheaf for `capacity` objects.
    pub const fn bytes(capacity: usize) -> usize {
        size_of::<Sheaf>() + capacity * size_of::<*mut u8>()
    }

    /// Makes an empty sheaf.
    ///
    /// # Safety
    /// `this` has room for `bytes(capacity)`.
    pub unsafe fn init(this: *mut Sheaf, capacity: usize) {
        let header = Sheaf {
            size: 0,
            capacity: capacity as u32,
            next: ptr::null_mut(),
            objects: [],
        };
        // SAFETY: the caller's promise.
        unsafe { this.write(header) };
    }

    /// The array.
    ///
    /// # Safety
    /// `this` is a live sheaf.
    #[inline(always)]
    pub unsafe fn objects(this: *mut Sheaf) -> *mut *mut u8 {
        // SAFETY: the caller's promise; the array starts at the header's end.
        unsafe { (&raw mut (*this).objects).cast() }
    }
}

/// What a cache has on each CPU. One cache line.
#[repr(C, align(64))]
pub(crate) struct CpuCache {
    /// Objects in main.
    pub size: u32,
    /// Main's capacity; 0 without a main.
    pub capacity: u32,
    pub main: *mut Sheaf,
    /// Allocations ever made on this CPU. Written by this CPU, read by anyone.
    pub allocs: AtomicU64,
    /// Frees ever made on this CPU.
    pub frees: AtomicU64,
    pub spare: *mut Sheaf,
    /// Objects of other nodes on their way home.
    pub remote: *mut Sheaf,
    /// Debug builds: not 0 while somebody is at work on this part. Finds interrupt handlers that
    /// use the slab.
    pub busy: u32,
}

const _: () = assert!(size_of::<CpuCache>() == 64);

impl CpuCache {
    /// Makes `sheaf` (or null) this CPU's main.
    ///
    /// # Safety
    /// INV-SHEAF-1: the caller may touch `this`; the old main has been taken. `sheaf` is live.
    pub unsafe fn set_main(this: *mut CpuCache, sheaf: *mut Sheaf) {
        // SAFETY: the caller's promise.
        unsafe {
            (*this).main = sheaf;
            (*this).size = if sheaf.is_null() { 0 } else { (*sheaf).size };
            (*this).capacity = if sheaf.is_null() {
                0
            } else {
                (*sheaf).capacity
            };
        }
    }

    /// Takes main away, its count in the sheaf; null if there is none.
    ///
    /// # Safety
    /// INV-SHEAF-1: the caller may touch `this`.
    pub unsafe fn take_main(this: *mut CpuCache) -> *mut Sheaf {
        // SAFETY: the caller's promise.
        unsafe {
            let main = (*this).main;
            if !main.is_null() {
                (*main).size = (*this).size;
            }
            CpuCache::set_main(this, ptr::null_mut());
            main
        }
    }

    /// Exchanges main and spare.
    ///
    /// # Safety
    /// INV-SHEAF-1: the caller may touch `this`.
    pub unsafe fn swap_spare(this: *mut CpuCache) {
        // SAFETY: the caller's promise.
        unsafe {
            let main = CpuCache::take_main(this);
            CpuCache::set_main(this, (*this).spare);
            (*this).spare = main;
        }
    }
}

/// A stack of sheaves.
struct Stack {
    head: *mut Sheaf,
    len: usize,
}

impl Stack {
    const fn new() -> Self {
        Stack {
            head: ptr::null_mut(),
            len: 0,
        }
    }

    fn push(&mut self, sheaf: *mut Sheaf) {
        // SAFETY: the caller gives the sheaf to the barn.
        unsafe { (*sheaf).next = self.head };
        self.head = sheaf;
        self.len += 1;
    }

    /// Null if empty.
    fn pop(&mut self) -> *mut Sheaf {
        let sheaf = self.head;
        if !sheaf.is_null() {
            // SAFETY: the barn owns its sheaves.
            self.head = unsafe { (*sheaf).next };
            self.len -= 1;
        }
        sheaf
    }
}

/// A node's store of sheaves, under its own lock.
pub(crate) struct Barn {
    full: Stack,
    empty: Stack,
}

// SAFETY: an owner of sheaves.
unsafe impl Send for Barn {}

impl Barn {
    pub const fn new() -> Self {
        Barn {
            full: Stack::new(),
            empty: Stack::new(),
        }
    }

    /// Takes a full sheaf for an empty one (or null). Returns the full one and what is left over of
    /// the empty one; nothing changes if there is no full one.
    pub fn exchange_empty(&mut self, empty: *mut Sheaf) -> Option<(*mut Sheaf, *mut Sheaf)> {
        let full = self.full.pop();
        (!full.is_null()).then(|| (full, self.put_empty(empty)))
    }

    /// Keeps a full sheaf; false if there are enough.
    pub fn put_full(&mut self, full: *mut Sheaf) -> bool {
        let room = self.has_room();
        if room {
            self.full.push(full);
        }
        room
    }

    /// Whether another full sheaf is welcome.
    pub fn has_room(&self) -> bool {
        self.full.len < BARN_FULL_MAX
    }

    /// Keeps an empty sheaf (or null); returns it if there are enough, else null.
    pub fn put_empty(&mut self, empty: *mut Sheaf) -> *mut Sheaf {
        if empty.is_null() || self.empty.len >= BARN_EMPTY_MAX {
            return empty;
        }
        self.empty.push(empty);
        ptr::null_mut()
    }

    /// An empty sheaf, or null.
    pub fn take_empty(&mut self) -> *mut Sheaf {
        self.empty.pop()
    }

    /// Any sheaf, or null: for draining.
    pub fn take_any(&mut self) -> *mut Sheaf {
        let full = self.full.pop();
        if full.is_null() {
            self.empty.pop()
        } else {
            full
        }
    }
}
