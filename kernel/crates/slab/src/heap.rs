//! The kernel heap: one cache per size class, whole pages above.
//!
//! Problem: what has no cache of its own still needs memory. Mechanism: the size is rounded up to
//! one of 13 classes; for a size known at compile time this folds to the address of a static.
//!
//! INV-HEAP-1: `class_cache(size, align)` returns a cache whose objects have at least that size and
//! alignment, and the same one each time.

use crate::cache::{CacheFlags, KmemCache};
use crate::{AllocError, Gfp, registry, slow};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};

/// The classes, in bytes. Powers of two are aligned to themselves.
const CLASSES: [usize; 13] = [
    8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192,
];
const NAMES: [&str; 13] = [
    "kmalloc-8",
    "kmalloc-16",
    "kmalloc-32",
    "kmalloc-64",
    "kmalloc-96",
    "kmalloc-128",
    "kmalloc-192",
    "kmalloc-256",
    "kmalloc-512",
    "kmalloc-1k",
    "kmalloc-2k",
    "kmalloc-4k",
    "kmalloc-8k",
];

static KMALLOC: [KmemCache; 13] = {
    let mut caches = [const { KmemCache::new_static("", 8, 8, CacheFlags::empty()) }; 13];
    let mut i = 0;
    while i < 13 {
        let align = class_align(CLASSES[i]);
        caches[i] = KmemCache::new_static(NAMES[i], CLASSES[i], align, CacheFlags::empty());
        i += 1;
    }
    caches
};

/// The greatest power of two that divides the class, at most a page.
const fn class_align(class: usize) -> usize {
    let align = class & class.wrapping_neg();
    if align > 4096 { 4096 } else { align }
}

/// Makes the caches of all classes ready, so that whichever size is asked for first need not pay for that, nor seem to
/// have leaked its cache. Boot, after percpu and `page_alloc`.
pub fn init_heap() -> Result<(), AllocError> {
    KMALLOC.iter().try_for_each(registry::register)
}

/// The size-class cache for objects of this size and alignment; None: too large, use pages.
#[inline(always)]
pub const fn class_cache(size: usize, align: usize) -> Option<&'static KmemCache> {
    let mut i = 0;
    while i < CLASSES.len() {
        if size <= CLASSES[i] && align <= class_align(CLASSES[i]) {
            return Some(&KMALLOC[i]);
        }
        i += 1;
    }
    None
}

/// Memory for `layout`. Size 0 gives a dangling pointer.
#[inline]
pub fn kmalloc(layout: Layout, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
    if layout.size() == 0 {
        return Ok(dangling(layout));
    }
    match class_cache(layout.size(), layout.align()) {
        Some(cache) => cache.alloc(gfp),
        None => slow::alloc_large(layout, gfp),
    }
}

fn dangling(layout: Layout) -> NonNull<u8> {
    // SAFETY: an alignment is never 0.
    unsafe { NonNull::new_unchecked(ptr::without_provenance_mut(layout.align())) }
}

/// Frees what [`kmalloc`] gave.
///
/// # Safety
/// `ptr` came from `kmalloc` of the same layout, and is freed once.
#[inline]
pub unsafe fn kfree(ptr: NonNull<u8>, layout: Layout) {
    if layout.size() == 0 {
        return;
    }
    // SAFETY: the caller's promise; INV-HEAP-1 leads to the same cache.
    unsafe {
        match class_cache(layout.size(), layout.align()) {
            Some(cache) => cache.free(ptr),
            None => slow::free_large(ptr),
        }
    }
}

/// The global allocator: `#[global_allocator] static HEAP: KernelHeap = KernelHeap;`.
pub struct KernelHeap;

// SAFETY: kmalloc returns memory of the layout, owned by the caller until kfree.
unsafe impl GlobalAlloc for KernelHeap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match kmalloc(layout, Gfp::empty()) {
            Ok(p) => p.as_ptr(),
            Err(AllocError) => ptr::null_mut(),
        }
    }

    #[inline]
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: GlobalAlloc's contract: ptr came from alloc of this layout, so is not null.
        unsafe { kfree(NonNull::new_unchecked(ptr), layout) }
    }

    #[inline]
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: GlobalAlloc's contract for the new size; the alignment is an old one.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        if same_class(layout, new) {
            return ptr;
        }
        // SAFETY: both blocks are at least as large as what is copied, and distinct; the old one is
        // given up.
        unsafe {
            let moved = self.alloc(new);
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(ptr, layout.size().min(new_size));
                self.dealloc(ptr, layout);
            }
            moved
        }
    }
}

/// Whether memory for `a` is memory for `b` as it stands.
fn same_class(a: Layout, b: Layout) -> bool {
    match (
        class_cache(a.size(), a.align()),
        class_cache(b.size(), b.align()),
    ) {
        (Some(a), Some(b)) => ptr::eq(a, b),
        (None, None) => slow::large_order(a.size()) == slow::large_order(b.size()),
        _ => false,
    }
}
