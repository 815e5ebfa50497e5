//! What single operations promise.

use super::*;
use crate::sheaf::BARN_FULL_MAX;
use core::alloc::{GlobalAlloc, Layout};
use page_alloc::fault_inject;

#[test]
fn a_static_cache_comes_and_goes() {
    let _machine = machine();
    static CACHE: KmemCache = KmemCache::new_static("static", 100, 8, CacheFlags::empty());
    let before = free_pages();
    assert_eq!(CACHE.stats().total, 0);
    for _ in 0..2 {
        let object = take(&CACHE).unwrap();
        assert_eq!(CACHE.active(), 1);
        let mut found = 0;
        slabinfo(|stats| found += (stats.name == "static" && stats.active == 1) as usize);
        assert_eq!(found, 1);
        assert_eq!(destroy(&CACHE), Err(DestroyError::Busy(1)));
        give_back(&CACHE, object);
        assert_eq!(destroy(&CACHE), Ok(()));
        slabinfo(|stats| assert!(stats.name != "static"));
    }
    assert_eq!(free_pages(), before);
}

#[test]
fn objects_stay_on_their_node() {
    let _machine = machine();
    let cache = test_cache("local", 1024, 8, CacheFlags::empty());
    let take_many = |cpu| {
        on(cpu, || {
            (0..50).map(|_| take(cache).unwrap()).collect::<Vec<_>>()
        })
    };
    let (first, last) = (take_many(0), take_many(NR_CPUS - 1));
    assert!(first.iter().all(|&o| node_of(o) == 0));
    assert!(last.iter().all(|&o| node_of(o) == 1));
    // Each frees the other's; what it allocates next is its own all the same.
    on(0, || last.into_iter().for_each(|o| give_back(cache, o)));
    on(NR_CPUS - 1, || {
        first.into_iter().for_each(|o| give_back(cache, o))
    });
    assert_eq!(cache.active(), 0);
    let (first, last) = (take_many(0), take_many(NR_CPUS - 1));
    assert!(first.iter().all(|&o| node_of(o) == 0));
    assert!(last.iter().all(|&o| node_of(o) == 1));
    on(0, || {
        first
            .into_iter()
            .chain(last)
            .for_each(|o| give_back(cache, o))
    });
    destroy(cache).unwrap();
}

#[test]
fn sheaves_bound_what_is_cached() {
    let _machine = machine();
    let cache = test_cache("bound", 4096, 8, CacheFlags::empty());
    let objects: Vec<_> = (0..200).map(|_| on(0, || take(cache).unwrap())).collect();
    objects
        .into_iter()
        .for_each(|o| on(0, || give_back(cache, o)));
    // Spare and the barn, of 4 objects each, and some in main.
    let cached = cache.stats().cached;
    assert!(
        cached > 4 * (1 + BARN_FULL_MAX) && cached <= 4 * (2 + BARN_FULL_MAX),
        "{cached}"
    );
    assert_eq!(cache.active(), 0);
    assert!(cache.shrink() > 0);
    assert_eq!((cache.stats().cached, cache.stats().total), (0, 0));
    destroy(cache).unwrap();
}

#[test]
fn the_last_freed_is_the_next_allocated() {
    let _machine = machine();
    let cache = test_cache("lifo", 64, 8, CacheFlags::empty());
    on(1, || {
        let object = take(cache).unwrap();
        give_back(cache, object);
        let again = take(cache).unwrap();
        assert_eq!(object, again);
        give_back(cache, again);
    });
    destroy(cache).unwrap();
}

#[test]
fn memory_of_another_node_is_used_when_there_is_no_other() {
    let _machine = machine();
    let cache = test_cache("far", 512, 8, CacheFlags::empty());
    let hog = Hog::node(0);
    let (here, far) = on(0, || (cache.alloc(Gfp::THISNODE), take(cache).unwrap()));
    assert_eq!((here, node_of(far)), (Err(AllocError), 1));
    // The far slab's other objects serve the next allocations: no page each.
    let more: Vec<_> = on(0, || (0..3).map(|_| take(cache).unwrap()).collect());
    assert!(cache.stats().total < 20);
    on(0, || {
        more.into_iter()
            .chain([far])
            .for_each(|o| give_back(cache, o))
    });
    drop(hog);
    destroy(cache).unwrap();
}

#[test]
fn failures_are_injected_once_per_allocation() {
    let _machine = machine();
    let cache = test_cache("inject", 64, 8, CacheFlags::empty());
    assert!(fault_inject::set_fail_nth(2));
    let first = take(cache).unwrap();
    assert_eq!(take(cache), Err(AllocError));
    assert!(fault_inject::set_fail_nth(1));
    let exempt = cache.alloc(Gfp::NOFAULT_INJECT).unwrap();
    assert_eq!(fault_inject::fail_nth(), 1);
    assert!(KBox::new(1u64).is_err() && KBox::new(1u64).is_ok());
    give_back(cache, first);
    give_back(cache, exempt);
    destroy(cache).unwrap();
}

#[test]
fn registering_fails_cleanly() {
    let _machine = machine();
    static MANY: [KmemCache; 80] =
        [const { KmemCache::new_static("unlucky", 100, 8, CacheFlags::empty()) }; 80];
    let create =
        |size, align| KmemCache::create("no", size, align, None, None, CacheFlags::empty());
    let (before, used) = (free_pages(), percpu::stats().used);
    let mut made = Vec::new();
    {
        let _hog = Hog::new();
        // Some fit into slabs that the internal caches have.
        made.extend(core::iter::from_fn(|| create(8, 8).ok()));
        for cache in &MANY {
            let used = percpu::stats().used;
            assert_eq!(take(cache), Err(AllocError));
            assert!(cache.is_registered() || percpu::stats().used == used);
        }
    }
    assert!(made.len() < 100 && MANY.iter().any(|cache| !cache.is_registered()));
    made.into_iter()
        .chain(&MANY)
        .for_each(|cache| destroy(cache).unwrap());
    assert_eq!((free_pages(), percpu::stats().used), (before, used));
    assert!(create(1 << 20, 8).is_err() && create(8, 8192).is_err());
}

#[test]
fn typesafe_slabs_wait_for_readers() {
    let _machine = machine();
    let cache = test_cache("typesafe", 4096, 8, CacheFlags::TYPESAFE_BY_RCU);
    let objects: Vec<_> = (0..40).map(|_| take(cache).unwrap()).collect();
    let nr_slabs = || {
        let is_slab = |o: &&NonNull<u8>| PageRef::from_virt(o.as_ptr()).head().is_allocated();
        objects.iter().filter(is_slab).count()
    };
    let guard = rcu::read_lock();
    objects.iter().for_each(|&o| give_back(cache, o));
    assert_eq!(nr_slabs(), objects.len());
    drop(guard);
    rcu::barrier();
    assert!(nr_slabs() < objects.len());
    destroy(cache).unwrap();
}

#[test]
fn the_heap_serves_all_sizes() {
    let _machine = machine();
    let before = free_pages();
    let mut held = Vec::new();
    for size in [
        1, 8, 9, 64, 65, 96, 100, 192, 200, 4096, 5000, 8192, 8193, 100_000,
    ] {
        for align in [1, 8, 64, 256, 4096] {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: the layout is not empty; the memory is of that size.
            let memory = unsafe { KernelHeap.alloc(layout) };
            assert!(!memory.is_null() && (memory as usize).is_multiple_of(align));
            // SAFETY: as above.
            unsafe { memory.write_bytes(size as u8, size) };
            held.push((memory, layout));
        }
    }
    for (mut memory, mut layout) in held {
        for new_size in [layout.size() + 3, 10_000, layout.size()] {
            let value = layout.size().min(new_size);
            // SAFETY: allocated above, of that layout.
            memory = unsafe { KernelHeap.realloc(memory, layout, new_size) };
            layout = Layout::from_size_align(new_size, layout.align()).unwrap();
            // SAFETY: as above.
            let kept = unsafe { std::slice::from_raw_parts_mut(memory, new_size) };
            assert!(kept[..value].windows(2).all(|w| w[0] == w[1]));
            kept.fill(new_size as u8);
        }
        // SAFETY: allocated above.
        unsafe {
            let bytes = std::slice::from_raw_parts(memory, layout.size());
            assert!(bytes.iter().all(|&b| b == layout.size() as u8));
            KernelHeap.dealloc(memory, layout);
        }
    }
    free_pages();
    // The classes are registered now, which costs a few pages once.
    assert!(before - free_pages() <= 4);
    // SAFETY: the layout is not empty.
    assert!(unsafe { KernelHeap.alloc(Layout::from_size_align(1 << 30, 8).unwrap()) }.is_null());
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "double free")]
fn a_double_free_is_found() {
    let _machine = machine();
    let cache = test_cache("double", 64, 8, CacheFlags::empty());
    let object = take(cache).unwrap();
    give_back(cache, object);
    give_back(cache, object);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "not of this cache")]
fn the_wrong_cache_is_found() {
    let _machine = machine();
    let a = test_cache("right", 64, 8, CacheFlags::empty());
    let b = test_cache("wrong", 64, 8, CacheFlags::empty());
    give_back(b, take(a).unwrap());
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "points into an object")]
fn a_pointer_into_an_object_is_found() {
    let _machine = machine();
    let cache = test_cache("inner", 64, 8, CacheFlags::empty());
    let object = take(cache).unwrap();
    // SAFETY: inside the object.
    give_back(cache, unsafe { object.add(8) });
}

#[test]
#[cfg(debug_assertions)]
fn use_in_an_interrupt_handler_is_found() {
    let _machine = machine();
    let cache = test_cache("irq", 64, 8, CacheFlags::empty());
    on(0, || give_back(cache, take(cache).unwrap()));
    let set_busy = |busy| {
        // SAFETY: nobody uses the cache.
        unsafe { (*cache.own_part(0)).busy = busy }
    };
    on(0, || {
        // As if an interrupt had come in the middle of an operation.
        set_busy(1);
        assert!(std::panic::catch_unwind(|| take(cache)).is_err());
        // It stopped with preemption off.
        arch::preempt_enable();
        set_busy(0);
    });
    assert_eq!(cache.active(), 0);
    destroy(cache).unwrap();
}

#[test]
fn bulk_is_all_or_nothing() {
    let _machine = machine();
    let before = free_pages();
    let cache = test_cache("bulk", 512, 8, CacheFlags::empty());
    let mut out = [core::ptr::null_mut(); 150];
    on(0, || {
        for n in [0, 1, 27, 28, 29, 150] {
            cache.alloc_bulk(Gfp::empty(), &mut out[..n]).unwrap();
            assert_eq!(cache.active(), n);
            let mut sorted = out[..n].to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), n);
            // SAFETY: just taken.
            unsafe { cache.free_bulk(&out[..n]) };
            assert_eq!(cache.active(), 0);
        }
        // Objects of both nodes at once.
        cache.alloc_bulk(Gfp::empty(), &mut out[..40]).unwrap();
    });
    on(NR_CPUS - 1, || {
        cache.alloc_bulk(Gfp::empty(), &mut out[40..80]).unwrap()
    });
    out[..80].rotate_left(20);
    // SAFETY: just taken.
    on(0, || unsafe { cache.free_bulk(&out[..80]) });
    assert_eq!(cache.active(), 0);
    let hog = Hog::new();
    let mut many = std::vec![core::ptr::null_mut(); 5000];
    assert_eq!(cache.alloc_bulk(Gfp::empty(), &mut many), Err(AllocError));
    assert_eq!(cache.active(), 0);
    drop(hog);
    assert!(fault_inject::set_fail_nth(1));
    assert_eq!(cache.alloc_bulk(Gfp::empty(), &mut out), Err(AllocError));
    destroy(cache).unwrap();
    assert_eq!(free_pages(), before);
}

#[test]
fn node_policies() {
    let _machine = machine();
    let spread = test_cache("spread", 1024, 8, CacheFlags::INTERLEAVE);
    let objects: Vec<_> = on(0, || (0..20).map(|_| take(spread).unwrap()).collect());
    let far = objects.iter().filter(|&&o| node_of(o) == 1).count();
    assert_eq!(far, 10);
    objects.into_iter().for_each(|o| give_back(spread, o));
    let strict = test_cache("strict", 1024, 8, CacheFlags::THIS_NODE);
    let hog = Hog::node(0);
    assert_eq!(on(0, || take(strict)), Err(AllocError));
    let object = on(NR_CPUS - 1, || take(strict)).unwrap();
    assert_eq!(node_of(object), 1);
    give_back(strict, object);
    drop(hog);
    assert_eq!((destroy(spread), destroy(strict)), (Ok(()), Ok(())));
}

#[test]
fn pressure_takes_what_it_may() {
    let _machine = machine();
    let fill = |cache| {
        let objects: Vec<_> = (0..100).map(|_| on(0, || take(cache).unwrap())).collect();
        objects
            .into_iter()
            .for_each(|o| on(0, || give_back(cache, o)));
        cache.stats().pages
    };
    let plain = test_cache("plain", 4096, 8, CacheFlags::empty());
    let kept = test_cache("kept", 4096, 8, CacheFlags::NO_RECLAIM);
    let built = KmemCache::create(
        "built",
        4096,
        8,
        Some(ctor),
        Some(dtor),
        CacheFlags::empty(),
    )
    .unwrap();
    let (had, keeps, has_built) = (fill(plain), fill(kept), fill(built));
    set_reclaim(Reclaim::Worker);
    assert!(under_pressure() > 0);
    // What two sheaves of CPU 0 hold needs the worker.
    assert!(plain.stats().pages < had && plain.stats().pages <= 3 * 8);
    assert_eq!(
        (kept.stats().pages, built.stats().pages),
        (keeps, has_built)
    );
    set_reclaim(Reclaim::Inline);
    under_pressure();
    assert!(built.stats().pages < has_built && nr_built() < 40);
    assert_eq!(kept.stats().pages, keeps);
    for cache in [plain, kept, built] {
        destroy(cache).unwrap();
    }
    assert_eq!(nr_built(), 0);
}

#[test]
fn an_allocation_that_fails_takes_from_the_caches() {
    let _machine = machine();
    let cache = test_cache("hoard", 4096, 8, CacheFlags::empty());
    let objects: Vec<_> = (0..200).map(|_| on(0, || take(cache).unwrap())).collect();
    let hog = Hog::new();
    objects
        .into_iter()
        .for_each(|o| on(0, || give_back(cache, o)));
    page_alloc::set_pressure_hook(under_pressure);
    let mut got = Vec::new();
    while let Ok(page) = page_alloc::alloc_page(Gfp::NOFAULT_INJECT) {
        got.push(page);
    }
    page_alloc::set_pressure_hook(|| 0);
    assert!(got.len() >= 100, "{}", got.len());
    got.into_iter().for_each(PageRef::put);
    drop(hog);
    destroy(cache).unwrap();
}

#[test]
fn addresses_have_names() {
    let _machine = machine();
    let cache = test_cache("named", 200, 8, CacheFlags::empty());
    on(0, || {
        let objects: Vec<_> = (0..3).map(|_| take(cache).unwrap()).collect();
        for object in &objects {
            let at = object.as_ptr().wrapping_add(70);
            let place = Place {
                cache: "named",
                offset: 70,
            };
            assert_eq!(place_of(at), Some(place));
        }
        let offset = cache.own_offset.load(core::sync::atomic::Ordering::Relaxed);
        assert_eq!(owner_of_percpu(offset + 8), Some("named"));
        assert_eq!(owner_of_percpu(percpu::ZERO_AREA), None);
        let page = page_alloc::alloc_page(Gfp::empty()).unwrap();
        assert_eq!(place_of(page.virt()), None);
        page.put();
        objects.into_iter().for_each(|o| give_back(cache, o));
    });
    destroy(cache).unwrap();
}
