//! The checks of debug builds: double frees, frees into the wrong cache, pointers into an object, use
//! in an interrupt handler.
//!
//! Mechanism: a bit per object at the end of its slab says whether a client has it. Freed memory
//! (of caches without constructor) is filled with a pattern that no pointer looks like. In release
//! builds all of this is nothing.
//!
//! What a boot word can turn on in a release build is in check.rs.
//!
//! INV-DEBUG-1: the bit is set exactly while a client has the object.

use crate::cache::{CacheFlags, KmemCache};
use crate::geometry::{DEBUG, bits_bytes};
use crate::page::Slab;
use crate::sheaf::CpuCache;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use page_alloc::PageKind;

/// Byte that freed memory is filled with, up to [`POISON_MAX`] bytes of it.
const POISON: u8 = 0x6b;
const POISON_MAX: usize = 256;

/// Work on this CPU's part begins. Panics if it had begun already: only an interrupt handler on top
/// of it can get here. The part is not ZERO_AREA.
///
/// # Safety
/// INV-SHEAF-1: the caller may touch `cpu`.
#[inline(always)]
pub(crate) unsafe fn enter(cpu: *mut CpuCache) {
    if DEBUG {
        // SAFETY: the caller's promise.
        let was_busy = unsafe { core::mem::replace(&mut (*cpu).busy, 1) };
        assert!(was_busy == 0, "slab used in an interrupt handler");
    }
}

/// Work on this CPU's part ends.
///
/// # Safety
/// As [`enter`].
#[inline(always)]
pub(crate) unsafe fn leave(cpu: *mut CpuCache) {
    if DEBUG {
        // SAFETY: the caller's promise.
        unsafe { (*cpu).busy = 0 };
    }
}

/// Clears the bits of a new slab.
pub(crate) fn init_slab(slab: Slab) {
    if DEBUG {
        for i in 0..slab.objects().div_ceil(64) {
            word(slab, i).store(0, Relaxed);
        }
    }
}

/// A client gets the object.
#[inline(always)]
pub(crate) fn hand_out(cache: &KmemCache, object: *mut u8) {
    if DEBUG && !cache.is_debugged() {
        let (word, mask) = bit(cache, object);
        assert!(
            word.fetch_or(mask, Relaxed) & mask == 0,
            "slab {}: object {object:p} given twice",
            cache.name()
        );
    }
}

/// A client gives the object back.
#[inline(always)]
pub(crate) fn take_back(cache: &KmemCache, object: *mut u8) {
    if DEBUG && !cache.is_debugged() {
        let (word, mask) = bit(cache, object);
        assert!(
            word.fetch_and(!mask, Relaxed) & mask != 0,
            "slab {}: double free of {object:p}",
            cache.name()
        );
        if cache.ctor().is_none() && !cache.flags().contains(CacheFlags::TYPESAFE_BY_RCU) {
            // SAFETY: the client gave the object up.
            unsafe { object.write_bytes(POISON, cache.object_size().min(POISON_MAX)) };
        }
    }
}

/// The object's bit. Panics unless it is an object of this cache.
#[inline(never)]
fn bit(cache: &KmemCache, object: *mut u8) -> (&'static AtomicU64, u64) {
    let slab = Slab::of(object);
    assert!(
        slab.page().kind() == PageKind::Slab && core::ptr::eq(slab.cache(), cache),
        "slab {}: {object:p} is not of this cache",
        cache.name()
    );
    let start = cache.geometry().start as usize;
    let offset = (object as usize).wrapping_sub(slab.page().virt() as usize + start);
    let stride = cache.geometry().stride as usize;
    let index = offset / stride;
    assert!(
        offset.is_multiple_of(stride) && index < slab.objects(),
        "slab {}: {object:p} points into an object",
        cache.name()
    );
    (word(slab, index / 64), 1 << (index % 64))
}

fn word(slab: Slab, i: usize) -> &'static AtomicU64 {
    let bytes = ksync::PAGE_SIZE << slab.page().order();
    let at = slab
        .page()
        .virt()
        .wrapping_add(bytes - bits_bytes(slab.objects()) + 8 * i);
    // SAFETY: inside the slab's last bytes, which the geometry keeps free of objects; aligned to 8.
    unsafe { &*at.cast::<AtomicU64>() }
}
