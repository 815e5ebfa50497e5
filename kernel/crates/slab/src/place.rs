//! What lies at an address: for tools that have an address and want a name.
//!
//! Mechanism: a slab's pages say which cache they are of, and a cache knows its geometry. Per-CPU memory says nothing,
//! so the caches are asked whose it is. For reports: it walks the list of caches, and its answer is true while nobody
//! allocates or frees.

use crate::cache::KmemCache;
use crate::page::Slab;
use crate::registry;
use crate::sheaf::CpuCache;
use core::sync::atomic::Ordering::Relaxed;
use page_alloc::{PageKind, PageRef};

/// A place in memory of a cache.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The cache's name.
    pub cache: &'static str,
    /// Bytes from the object's beginning.
    pub offset: usize,
}

/// What lies at `at`, an address of the direct map with a page descriptor; `None` if it is no slab's. Context as
/// [`KmemCache::shrink`](crate::KmemCache::shrink)'s, but sleeps not.
pub fn place_of(at: *const u8) -> Option<Place> {
    let page = PageRef::from_virt(at).head();
    if !page.is_allocated() || page.kind() != PageKind::Slab {
        return None;
    }
    let slab = Slab::from_page(page);
    let cache = find(|cache| core::ptr::eq(cache, slab.cache()))?;
    let geometry = cache.geometry();
    let within = (at as usize - page.virt() as usize).wrapping_sub(geometry.start as usize);
    Some(Place {
        cache: cache.name(),
        offset: within % geometry.stride.max(1) as usize,
    })
}

/// The cache whose sheaves are at `offset` of every CPU's window.
pub fn owner_of_percpu(offset: usize) -> Option<&'static str> {
    let owns = |cache: &KmemCache| {
        let own = cache.own_offset.load(Relaxed);
        own != 0 && (own..own + size_of::<CpuCache>()).contains(&offset)
    };
    find(owns).map(KmemCache::name)
}

fn find(wanted: impl Fn(&KmemCache) -> bool) -> Option<&'static KmemCache> {
    let mut found = None;
    registry::walk(|cache| {
        if wanted(cache) {
            found = Some(cache);
        }
    });
    found
}
