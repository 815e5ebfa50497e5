//! How objects of a size lie on slab pages. All of it is computed at compile time for statics.
//!
//! ```text
//! slab of 2^order pages
//! | object | object | ... | object | rest | bits (debug builds: one per object) |
//!
//! object without constructor: the free pointer overlays the free object's first word
//! | value ........ |
//! object with a constructor (or TYPESAFE_BY_RCU): freed in constructed state, so it lies behind
//! | value ........ | free pointer |
//!
//! object of a cache that is debugged (see check.rs)
//! | red zone | value ........ | red zone | who allocated | who freed | free pointer |
//! ```

use crate::cache::CacheFlags;
use ksync::PAGE_SIZE;

/// Whether slabs carry the bits that find double frees.
pub(crate) const DEBUG: bool = cfg!(debug_assertions);
/// Largest slab: 2^3 pages.
const SLAB_ORDER_MAX: u32 = 3;
/// Largest object, padding included.
pub(crate) const OBJECT_SIZE_MAX: usize = PAGE_SIZE << SLAB_ORDER_MAX >> 1;
/// Objects that a slab should have, so that its cost is shared.
const SLAB_OBJECTS_MIN: usize = 4;

/// Pointers per sheaf, by class of object size.
pub(crate) const SHEAF_CAPACITIES: [usize; 4] = [4, 12, 28, 60];

/// The layout of a cache's slabs.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Geometry {
    /// Distance of objects in bytes.
    pub stride: u32,
    /// Bytes before the first object's value.
    pub start: u32,
    /// Where in an object the free pointer is.
    pub free_ptr: u32,
    /// Usual order of a slab.
    pub order: u32,
    /// Least order that holds an object: the fallback when memory is in pieces.
    pub order_min: u32,
    /// Index in [`SHEAF_CAPACITIES`].
    pub sheaf_class: u8,
}

impl Geometry {
    /// The geometry for objects of `size` bytes. None: too large, or aligned to more than a page.
    pub const fn new(size: usize, align: usize, flags: CacheFlags, outside: bool) -> Option<Self> {
        if align > PAGE_SIZE || !align.is_power_of_two() || size > OBJECT_SIZE_MAX {
            return None;
        }
        let align = alignment(size, align, flags);
        let free_ptr = if outside { size.next_multiple_of(8) } else { 0 };
        let end = if outside || size < 8 {
            free_ptr + 8
        } else {
            size
        };
        let stride = end.next_multiple_of(align);
        if stride > OBJECT_SIZE_MAX {
            return None;
        }
        Some(Geometry {
            stride: stride as u32,
            start: 0,
            free_ptr: free_ptr as u32,
            order: best_order(stride),
            order_min: least_order(stride),
            sheaf_class: sheaf_class(stride),
        })
    }

    /// The geometry of the same objects with red zones and tracks around them. None: too large.
    pub const fn debugged(size: usize, align: usize, flags: CacheFlags) -> Option<Self> {
        if align > PAGE_SIZE || !align.is_power_of_two() || size > OBJECT_SIZE_MAX {
            return None;
        }
        let align = alignment(size, align, flags);
        let start = if align > 16 { align } else { 16 };
        let free_ptr = crate::check::trailer(size) + crate::check::TRACKS;
        let stride = (start + free_ptr + 8).next_multiple_of(align);
        if stride > OBJECT_SIZE_MAX {
            return None;
        }
        Some(Geometry {
            stride: stride as u32,
            start: start as u32,
            free_ptr: free_ptr as u32,
            order: best_order(stride),
            order_min: least_order(stride),
            sheaf_class: sheaf_class(stride),
        })
    }

    /// Objects on a slab of `order`.
    pub const fn objects(&self, order: u32) -> usize {
        objects(self.stride as usize, order)
    }

    /// Pointers per sheaf.
    pub const fn capacity(&self) -> usize {
        SHEAF_CAPACITIES[self.sheaf_class as usize]
    }
}

/// At least a word; with HWCACHE_ALIGN the cache line, or for small objects the part of it that
/// keeps them from straddling a boundary.
const fn alignment(size: usize, align: usize, flags: CacheFlags) -> usize {
    let mut line = 8;
    if flags.contains(CacheFlags::HWCACHE_ALIGN) {
        line = 64;
        while line > 8 && size <= line / 2 {
            line /= 2;
        }
    }
    if align > line { align } else { line }
}

const fn objects(stride: usize, order: u32) -> usize {
    let bytes = PAGE_SIZE << order;
    if !DEBUG {
        return bytes / stride;
    }
    let mut n = bytes / stride;
    while n > 0 && n * stride + bits_bytes(n) > bytes {
        n -= 1;
    }
    n
}

/// Bytes of the debug bits for `n` objects.
pub(crate) const fn bits_bytes(n: usize) -> usize {
    n.div_ceil(64) * 8
}

const fn least_order(stride: usize) -> u32 {
    let mut order = 0;
    while objects(stride, order) == 0 {
        order += 1;
    }
    order
}

/// The least order with enough objects that wastes no more than an eighth; failing that, the
/// order that wastes least.
const fn best_order(stride: usize) -> u32 {
    let mut order = least_order(stride);
    let mut best = order;
    let mut least_waste = usize::MAX;
    while order <= SLAB_ORDER_MAX {
        let bytes = PAGE_SIZE << order;
        let waste = (bytes - objects(stride, order) * stride) * 64 / bytes;
        if objects(stride, order) >= SLAB_OBJECTS_MIN && waste <= 8 {
            return order;
        }
        if waste < least_waste {
            least_waste = waste;
            best = order;
        }
        order += 1;
    }
    best
}

const fn sheaf_class(stride: usize) -> u8 {
    match stride {
        4096.. => 0,
        1024.. => 1,
        256.. => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_fits() {
        for size in 1..=OBJECT_SIZE_MAX {
            for outside in [false, true] {
                for align in [1, 8, 16, 64, 4096] {
                    let Some(g) = Geometry::new(size, align, CacheFlags::empty(), outside) else {
                        assert!(size + 8 > OBJECT_SIZE_MAX - 4096);
                        continue;
                    };
                    let (stride, free_ptr) = (g.stride as usize, g.free_ptr as usize);
                    assert!(stride >= size && stride.is_multiple_of(align) && stride >= 8);
                    assert!(free_ptr + 8 <= stride && (!outside || free_ptr >= size));
                    assert!(g.order_min <= g.order && g.order <= SLAB_ORDER_MAX);
                    for order in [g.order_min, g.order] {
                        let n = g.objects(order);
                        let used = n * stride + if DEBUG { bits_bytes(n) } else { 0 };
                        assert!((1..=512).contains(&n) && used <= PAGE_SIZE << order);
                    }
                }
            }
        }
    }

    #[test]
    fn sheaves_by_size() {
        let capacity = |size| {
            Geometry::new(size, 8, CacheFlags::empty(), false)
                .unwrap()
                .capacity()
        };
        assert_eq!(
            [8, 248, 256, 1016, 1024, 4088, 4096].map(capacity),
            [60, 60, 28, 28, 12, 12, 4]
        );
    }

    #[test]
    fn cache_lines() {
        let stride = |size| {
            Geometry::new(size, 1, CacheFlags::HWCACHE_ALIGN, false)
                .unwrap()
                .stride
        };
        assert_eq!(
            [8, 9, 24, 33, 64, 65, 200].map(stride),
            [8, 16, 32, 64, 64, 128, 256]
        );
    }
}
