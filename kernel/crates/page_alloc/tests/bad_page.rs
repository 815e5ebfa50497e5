//! Freeing what is not the caller's to free stops the kernel. A process of its own: each case
//! leaves a page behind in the state that was caught.

use page_alloc::{Gfp, alloc_page, alloc_pages, free_pages};

/// Runs `f`, which must panic in the allocator, and returns the message.
fn caught(f: impl FnOnce() + Send + 'static) -> String {
    let r = std::thread::spawn(f).join().expect_err("must be caught");
    r.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn double_frees_and_mapped_pages_are_caught() {
    page_alloc::host::init(&[2048, 2048]);
    // 0 and 2 are kept in CPU lists when freed, 5 goes to the buddy.
    for order in [0, 2, 5] {
        let p = alloc_pages(order, Gfp::empty()).unwrap();
        free_pages(p);
        assert!(
            caught(move || free_pages(p)).contains("bad page"),
            "free_pages, order {order}"
        );
        assert!(
            caught(move || p.put()).contains("put of a free page"),
            "put, order {order}"
        );
        assert_eq!(p.ref_count(), 0, "the count is as it was");
    }
    let shared = alloc_page(Gfp::empty()).unwrap();
    shared.get();
    assert!(caught(move || free_pages(shared)).contains("shared"));
    shared.put();
    shared.map_inc();
    assert!(caught(move || shared.put()).contains("still mapped"));
    let never_managed = page_alloc::PageRef::from_pfn(1);
    assert!(caught(move || never_managed.put()).contains("Reserved"));
}

#[test]
fn a_stale_tail_does_not_reach_the_next_owner() {
    page_alloc::host::init(&[2048, 2048]);
    let p = alloc_pages(5, Gfp::THISNODE).unwrap();
    let stale = page_alloc::PageRef::from_pfn(p.pfn() + 31);
    free_pages(p);
    let again = alloc_pages(3, Gfp::THISNODE).unwrap();
    assert!(caught(move || stale.put()).contains("put of a free page"));
    assert_eq!(again.ref_count(), 1);
}
