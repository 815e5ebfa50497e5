//! Placeholder of the cache: the final interface over one heap allocation per object.

use crate::AllocError;
pub use page_alloc::Gfp;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

bitflags::bitflags! {
    /// Properties of a cache.
    #[derive(Copy, Clone, Debug, PartialEq, Eq)]
    pub struct CacheFlags: u32 {
        /// Objects start on a cache line.
        const HWCACHE_ALIGN = 1;
        /// Slab pages are freed after an RCU grace period.
        const TYPESAFE_BY_RCU = 2;
    }
}

/// A constructor failed; it has undone what it did to this object.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct CtorError;

/// Why a cache was not destroyed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum DestroyError {
    /// This many objects are still allocated. The cache stays.
    Busy(usize),
}

/// A cache's figures at some moment.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// The cache's name.
    pub name: &'static str,
    /// Bytes per object, padding included.
    pub object_size: usize,
    /// Objects held by clients.
    pub active: usize,
    /// Objects on slab pages, free or not.
    pub total: usize,
    /// Pages in slabs.
    pub pages: usize,
}

/// Constructor.
pub type Ctor = fn(NonNull<u8>) -> Result<(), CtorError>;
/// Destructor.
pub type Dtor = fn(NonNull<u8>);

/// A cache of objects of one size.
pub struct KmemCache {
    name: &'static str,
    size: usize,
    align: usize,
    ctor: Option<Ctor>,
    dtor: Option<Dtor>,
    active: AtomicUsize,
}

impl KmemCache {
    /// A cache to be placed in a static; its per-CPU part is made at the first allocation.
    pub const fn new_static(
        name: &'static str,
        size: usize,
        align: usize,
        _flags: CacheFlags,
    ) -> Self {
        KmemCache { name, size, align, ctor: None, dtor: None, active: AtomicUsize::new(0) }
    }

    /// A cache made at run time.
    pub fn create(
        _name: &'static str,
        _size: usize,
        _align: usize,
        _ctor: Option<Ctor>,
        _dtor: Option<Dtor>,
        _flags: CacheFlags,
    ) -> Result<&'static KmemCache, AllocError> {
        Err(AllocError)
    }

    /// An object, in constructed state if there is a constructor.
    pub fn alloc(&'static self, _gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        let p = backing::alloc(self.size, self.align).ok_or(AllocError)?;
        if let Some(ctor) = self.ctor {
            ctor(p).map_err(|_| AllocError)?;
        }
        self.active.fetch_add(1, Ordering::Relaxed);
        Ok(p)
    }

    /// Gives an object back.
    ///
    /// # Safety
    /// `object` came from this cache's `alloc`, is freed once, and nobody uses it any more.
    pub unsafe fn free(&'static self, object: NonNull<u8>) {
        if let Some(dtor) = self.dtor {
            dtor(object);
        }
        self.active.fetch_sub(1, Ordering::Relaxed);
        backing::free(object, self.size, self.align);
    }

    /// Gives free pages back; returns how many.
    pub fn shrink(&'static self) -> usize {
        0
    }

    /// The cache's figures.
    pub fn stats(&self) -> CacheStats {
        let active = self.active.load(Ordering::Relaxed);
        CacheStats { name: self.name, object_size: self.size, active, total: active, pages: 0 }
    }

    /// Gives everything back if no object is allocated.
    pub fn destroy(&'static self) -> Result<(), DestroyError> {
        match self.stats().active {
            0 => Ok(()),
            n => Err(DestroyError::Busy(n)),
        }
    }
}

/// Calls `f` with the figures of each cache.
pub fn slabinfo(_f: impl FnMut(CacheStats)) {}

pub(crate) fn alloc_large(layout: core::alloc::Layout, _gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
    backing::alloc(layout.size(), layout.align()).ok_or(AllocError)
}

pub(crate) unsafe fn free_large(ptr: NonNull<u8>, layout: core::alloc::Layout) {
    backing::free(ptr, layout.size(), layout.align());
}

#[cfg(not(target_os = "none"))]
mod backing {
    extern crate alloc;
    use core::alloc::Layout;
    use core::ptr::NonNull;
    pub fn alloc(size: usize, align: usize) -> Option<NonNull<u8>> {
        let layout = Layout::from_size_align(size, align).ok()?;
        // SAFETY: size is not 0.
        NonNull::new(unsafe { alloc::alloc::alloc(layout) })
    }
    pub fn free(p: NonNull<u8>, size: usize, align: usize) {
        // SAFETY: placeholder: from alloc of the same layout.
        unsafe { alloc::alloc::dealloc(p.as_ptr(), Layout::from_size_align_unchecked(size, align)) }
    }
}

#[cfg(target_os = "none")]
mod backing {
    use core::ptr::NonNull;
    pub fn alloc(_size: usize, _align: usize) -> Option<NonNull<u8>> {
        None
    }
    pub fn free(_p: NonNull<u8>, _size: usize, _align: usize) {}
}
