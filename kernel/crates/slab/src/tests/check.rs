//! Debug mode finds what it should, names it, and the machine lives on.

use super::*;
use std::string::{String, ToString};

static REPORTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn reporter(what: core::fmt::Arguments<'_>) {
    REPORTS
        .lock()
        .unwrap_or_else(|e| e.into_inner())
        .push(what.to_string());
}

fn reports() -> String {
    core::mem::take(&mut *REPORTS.lock().unwrap_or_else(|e| e.into_inner())).join("\n")
}

/// A debugged cache on a machine of its own.
fn debugged(
    size: usize,
    align: usize,
    with_ctor: bool,
) -> (MutexGuard<'static, ()>, &'static KmemCache) {
    let machine = machine();
    set_debug("other,checked");
    set_reporter(reporter);
    reports();
    let (c, d): (Option<Ctor>, Option<Dtor>) = if with_ctor {
        (Some(ctor), Some(dtor))
    } else {
        (None, None)
    };
    let cache = KmemCache::create("checked", size, align, c, d, CacheFlags::empty()).unwrap();
    set_debug("");
    assert!(cache.is_debugged());
    (machine, cache)
}

fn take_at(site: usize, cache: &'static KmemCache) -> NonNull<u8> {
    arch::host::set_call_site(site);
    let object = take(cache).unwrap();
    arch::host::set_call_site(0);
    object
}

fn give_back_at(site: usize, cache: &'static KmemCache, object: NonNull<u8>) {
    arch::host::set_call_site(site);
    give_back(cache, object);
    arch::host::set_call_site(0);
}

/// Writes a byte at an offset from an object.
fn poke(object: NonNull<u8>, at: isize) {
    // SAFETY: inside the object's stride: that is the bug under test.
    unsafe { object.as_ptr().offset(at).write(1) };
}

#[test]
fn a_double_free_names_three_places() {
    let (_machine, cache) = debugged(100, 8, false);
    let object = take_at(0xa110c, cache);
    give_back_at(0xf4ee1, cache, object);
    assert_eq!(reports(), "");
    give_back_at(0xf4ee2, cache, object);
    let r = reports();
    assert!(r.contains("slab checked: double free"), "{r}");
    assert!(
        r.contains("a110c") && r.contains("f4ee1") && r.contains("f4ee2"),
        "{r}"
    );
    // It was ignored: the object is given out once.
    let (a, b) = (take(cache).unwrap(), take(cache).unwrap());
    assert_ne!(a, b);
    give_back(cache, a);
    give_back(cache, b);
    assert_eq!((cache.active(), destroy(cache)), (0, Ok(())));
}

#[test]
fn the_wrong_cache_and_the_wrong_place() {
    let (_machine, cache) = debugged(100, 8, true);
    let other = test_cache("innocent", 100, 8, CacheFlags::empty());
    let (mine, theirs) = (take(cache).unwrap(), take(other).unwrap());
    give_back_at(0xbad, cache, theirs);
    let r = reports();
    assert!(
        r.contains("slab checked: free of")
            && r.contains("which is of cache innocent")
            && r.contains("0bad"),
        "{r}"
    );
    // SAFETY: inside the object.
    give_back(cache, unsafe { mine.add(8) });
    assert!(reports().contains("points into an object"));
    let page = page_alloc::alloc_page(Gfp::empty()).unwrap();
    give_back(cache, NonNull::new(page.virt()).unwrap());
    assert!(reports().contains("no slab memory"));
    page.put();
    give_back(cache, mine);
    give_back(other, theirs);
    assert_eq!(
        (destroy(cache), destroy(other), reports().as_str()),
        (Ok(()), Ok(()), "")
    );
}

#[test]
fn a_write_beyond_the_end_or_before_the_start() {
    for at in [-1, 100, 107] {
        let (_machine, cache) = debugged(100, 8, false);
        let object = take_at(0xa110c, cache);
        poke(object, at);
        give_back_at(0xf4ee, cache, object);
        let r = reports();
        assert!(
            r.contains("red zone of") && r.contains("a110c") && r.contains("f4ee"),
            "{r}"
        );
        assert_eq!(cache.active(), 1, "it is kept");
        assert_eq!(destroy(cache), Err(DestroyError::Busy(1)));
        let r = reports();
        assert!(
            r.contains("destroyed with 1 live objects") && r.contains("a110c"),
            "{r}"
        );
    }
}

#[test]
fn a_write_after_the_free() {
    for (at, what) in [
        (0, "use after free"),
        (99, "use after free"),
        (-4, "red zone of free"),
        (103, "red zone of free"),
    ] {
        let (_machine, cache) = debugged(100, 64, false);
        let kept = nr_quarantined();
        let object = take_at(0xa110c, cache);
        give_back_at(0xf4ee, cache, object);
        poke(object, at);
        let mut held = Vec::new();
        for _ in 0..40 {
            held.push(take(cache).unwrap());
        }
        let r = reports();
        assert!(
            r.contains(what) && r.contains("a110c") && r.contains("f4ee"),
            "{r}"
        );
        assert!(!held.contains(&object) && nr_quarantined() == kept + 1);
        held.into_iter().for_each(|o| give_back(cache, o));
        assert_eq!(cache.active(), 0);
    }
}

#[test]
fn constructed_objects_and_all_alignments_are_left_alone() {
    for (size, align) in [(1, 1), (8, 8), (24, 16), (65, 64), (200, 256), (1000, 8)] {
        for with_ctor in [false, true] {
            if with_ctor && size < 8 {
                continue;
            }
            let (_machine, cache) = debugged(size, align, with_ctor);
            let objects: Vec<_> = (0..50).map(|_| take(cache).unwrap()).collect();
            for o in &objects {
                assert!((o.as_ptr() as usize).is_multiple_of(align));
                if with_ctor {
                    // SAFETY: a live object of 8 bytes or more.
                    assert_eq!(unsafe { o.cast::<u64>().read() }, MAGIC);
                } else {
                    // SAFETY: a live object.
                    unsafe { o.as_ptr().write_bytes(1, size) };
                }
            }
            objects.into_iter().for_each(|o| give_back(cache, o));
            assert_eq!((reports().as_str(), cache.active()), ("", 0));
            assert_eq!((destroy(cache), nr_built()), (Ok(()), 0));
        }
    }
}

#[test]
fn only_what_is_named_is_debugged() {
    let _machine = machine();
    set_reporter(reporter);
    reports();
    set_debug("a,checked");
    let c = test_cache("checkedx", 64, 8, CacheFlags::empty());
    assert!(!c.is_debugged());
    set_debug("on");
    let d = test_cache("any", 64, 8, CacheFlags::empty());
    let large = test_cache("large", 16 << 10, 8, CacheFlags::empty());
    set_debug("");
    assert!(d.is_debugged() && !large.is_debugged());
    let create =
        |size, align| KmemCache::create("absurd", size, align, None, None, CacheFlags::empty());
    for (size, align) in [
        (usize::MAX, 8),
        (isize::MAX as usize, 8),
        (16385, 8),
        (8, 8192),
        (8, 3),
        (8, 0),
    ] {
        arch::host::set_call_site(0xab5d);
        assert!(create(size, align).is_err(), "{size} {align}");
        arch::host::set_call_site(0);
        let r = reports();
        assert!(
            r.contains("slab absurd: no objects of") && r.contains("ab5d"),
            "{r}"
        );
    }
    for c in [c, d, large] {
        destroy(c).unwrap();
    }
}
