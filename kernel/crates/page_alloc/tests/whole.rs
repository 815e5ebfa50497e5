//! The whole allocator on an emulated machine: 8 CPUs, 4 nodes, one of them without memory.

use std::collections::HashSet;
use std::sync::Mutex;

use ksync::arch;
use page_alloc::{Gfp, NodeStat, OutOfMemory, PageKind, PageRef, PageState};
use page_alloc::{alloc_page, alloc_pages, alloc_pages_node, fault_inject, free_pages, nr_free};

const NODES: usize = 4;
/// Node 2 has CPUs and no memory.
const PAGES: [usize; NODES] = [1500, 1024, 0, 777];

/// The tests count all free pages, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

fn machine() -> std::sync::MutexGuard<'static, ()> {
    let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    page_alloc::host::init(&PAGES);
    turn
}

fn all_free() -> [usize; NODES] {
    std::array::from_fn(|n| nr_free(n).free)
}

fn cpu_of(node: usize) -> usize {
    (0..8).find(|&c| arch::cpu_to_node(c) == node).unwrap()
}

/// After a drain nothing is in the lists and the buddies are what their invariants say.
fn drain_and_check(expect_free: [usize; NODES]) {
    page_alloc::drain_all();
    for (n, expect) in expect_free.into_iter().enumerate() {
        let NodeStat {
            free,
            on_lists,
            blocks,
            ..
        } = nr_free(n);
        assert_eq!((free, on_lists), (expect, 0), "node {n}");
        assert_eq!(
            blocks.iter().zip(0..).map(|(b, o)| b << o).sum::<usize>(),
            free
        );
        page_alloc::check_invariants(n);
    }
}

#[test]
fn local_first_then_by_distance() {
    let _turn = machine();
    let free = all_free();
    for (node, expect) in [(0, 0), (1, 1), (2, 1), (3, 3)] {
        // Node 2 has no memory: its neighbours 1 and 3 are equally near, 1 comes first.
        let p = arch::host::run_on(cpu_of(node), || alloc_page(Gfp::empty()).unwrap());
        assert_eq!(p.node(), expect, "a CPU of node {node}");
        let q = alloc_pages_node(node, 0, Gfp::empty()).unwrap();
        assert_eq!(q.node(), expect, "asked for node {node}");
        assert_eq!(
            all_free().iter().sum::<usize>(),
            free.iter().sum::<usize>() - 2
        );
        p.put();
        q.put();
        assert_eq!(all_free(), free, "exact, lists included");
    }
    assert_eq!(alloc_pages_node(2, 0, Gfp::THISNODE), Err(OutOfMemory));
    let on_2 = || alloc_page(Gfp::THISNODE);
    assert_eq!(arch::host::run_on(cpu_of(2), on_2), Err(OutOfMemory));
    assert_eq!(
        alloc_pages(page_alloc::MAX_ORDER + 1, Gfp::empty()),
        Err(OutOfMemory)
    );
    assert_eq!(alloc_pages_node(99, 0, Gfp::empty()), Err(OutOfMemory));
    drain_and_check(free);
}

#[test]
fn exhaustion_and_return_to_the_same_count() {
    let _turn = machine();
    page_alloc::drain_all();
    let free = all_free();
    for order in [0u32, 1, 2, 3, 7] {
        let mut held: Vec<PageRef> = vec![];
        let mut frames = HashSet::new();
        while let Ok(p) = alloc_pages(order, Gfp::empty()) {
            assert_eq!(
                (p.pfn() % (1 << order), p.order(), p.ref_count()),
                (0, order, 1)
            );
            for i in 0..1 << order {
                assert!(frames.insert(p.pfn() + i), "frame given twice");
                assert_eq!(PageRef::from_pfn(p.pfn() + i).head(), p);
            }
            held.push(p);
        }
        if order == 0 {
            assert_eq!(frames.len(), free.iter().sum(), "every page of every node");
            assert_eq!(all_free(), [0; NODES]);
        }
        assert_eq!(alloc_pages(order, Gfp::ZERO), Err(OutOfMemory));
        // Freed from every CPU in turn: most are remote.
        for (i, some) in held.chunks(5).enumerate() {
            arch::host::run_on(i % 8, || page_alloc::put_pages(some));
        }
        assert_eq!(all_free(), free, "order {order}");
    }
    drain_and_check(free);
}

#[test]
fn pages_in_lists_do_not_hide_a_large_block() {
    let _turn = machine();
    page_alloc::drain_all();
    let free = all_free();
    let take_all = |order| -> Vec<PageRef> {
        std::iter::from_fn(|| alloc_pages(order, Gfp::empty()).ok()).collect()
    };
    let large = take_all(9);
    let rest = take_all(0);
    page_alloc::put_pages(&large);
    // Only order 9 is left in the buddies: this breaks one and keeps its pieces in the list.
    alloc_page(Gfp::empty()).unwrap().put();
    assert_ne!((0..NODES).map(|n| nr_free(n).on_lists).sum::<usize>(), 0);
    let again = take_all(9);
    assert_eq!(
        again.len(),
        large.len(),
        "a failing allocation drains its CPU's lists first"
    );
    page_alloc::put_pages(&again);
    page_alloc::put_pages(&rest);
    drain_and_check(free);
}

#[test]
fn a_page_in_the_stash_does_not_hide_from_its_node() {
    let _turn = machine();
    page_alloc::drain_all();
    let free = all_free();
    arch::host::run_on(cpu_of(0), || {
        alloc_pages_node(3, 0, Gfp::THISNODE).unwrap().put();
        assert_eq!(nr_free(3).on_lists, 1);
        let held: Vec<_> =
            std::iter::from_fn(|| alloc_pages_node(3, 0, Gfp::THISNODE).ok()).collect();
        assert_eq!(
            nr_free(3).free,
            0,
            "its own stash was sent home before it failed"
        );
        held.into_iter().for_each(free_pages);
    });
    drain_and_check(free);
}

/// INV-LIST-1: a drain from outside waits for whoever may be inside the lists.
#[test]
fn drain_all_waits_for_a_section_with_preemption_off() {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    let _turn = machine();
    static INSIDE: AtomicBool = AtomicBool::new(false);
    static DRAINED: AtomicBool = AtomicBool::new(false);
    let inside = std::thread::spawn(|| {
        arch::host::set_cpu(5);
        arch::preempt_disable();
        INSIDE.store(true, SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(50));
        let drained = DRAINED.load(SeqCst);
        arch::preempt_enable();
        drained
    });
    while !INSIDE.load(SeqCst) {
        std::thread::yield_now();
    }
    arch::host::run_on(0, page_alloc::drain_all);
    DRAINED.store(true, SeqCst);
    assert!(!inside.join().unwrap(), "drained under a CPU's feet");
}

#[test]
fn thisnode_fails_while_others_have_memory() {
    let _turn = machine();
    let free = all_free();
    let mut held = vec![];
    while let Ok(p) = alloc_pages_node(1, 0, Gfp::THISNODE) {
        assert_eq!(p.node(), 1);
        held.push(p);
    }
    // CPU lists of node 1's other CPUs may still hold some of its pages; no more than their mark.
    assert!(nr_free(1).free <= 3 * 128);
    assert_ne!(
        alloc_pages_node(1, 2, Gfp::empty())
            .map(|p| (p.node(), free_pages(p)))
            .unwrap()
            .0,
        1
    );
    held.into_iter().for_each(free_pages);
    drain_and_check(free);
}

#[test]
fn zeroed_when_asked() {
    let _turn = machine();
    let p = alloc_pages(2, Gfp::empty()).unwrap();
    // SAFETY: four pages of our own.
    unsafe { p.virt().write_bytes(0xa5, 4 * 4096) };
    free_pages(p);
    let q = alloc_pages(2, Gfp::ZERO).unwrap();
    assert_eq!(p, q, "the newest block comes first");
    // SAFETY: as above.
    let bytes = unsafe { std::slice::from_raw_parts(q.virt(), 4 * 4096) };
    assert!(bytes.iter().all(|&b| b == 0));
    free_pages(q);
}

#[test]
fn references_kinds_and_words() {
    let _turn = machine();
    let free = all_free();
    let p = alloc_pages(1, Gfp::empty()).unwrap();
    let tail = PageRef::from_pfn(p.pfn() + 1);
    assert_eq!(
        (tail.state(), tail.head(), tail.order()),
        (PageState::Tail, p, 1)
    );
    p.set_kind(PageKind::Slab);
    p.flags().store(7, std::sync::atomic::Ordering::Relaxed);
    p.set_mapping(&raw const *"x" as *const u8);
    p.set_index(42);
    p.set_private(1, 43);
    assert_eq!(
        (p.kind(), p.index(), p.private(1), p.order()),
        (PageKind::Slab, 42, 43, 1)
    );
    assert_eq!(PageRef::from_virt(p.virt().wrapping_add(5000)), tail);
    tail.get();
    assert!(p.try_get());
    p.put();
    tail.put();
    assert_eq!(p.ref_count(), 1);
    p.map_inc();
    p.map_inc();
    assert!(!p.map_dec());
    assert!(p.map_dec());
    p.put();
    assert!(!p.try_get(), "free pages give no references");
    assert_eq!(all_free(), free);
    let q = alloc_pages(1, Gfp::empty()).unwrap();
    assert_eq!((q, q.kind()), (p, PageKind::Kernel), "the kind is reset");
    assert_eq!(q.flags().load(std::sync::atomic::Ordering::Relaxed), 0);
    free_pages(q);
}

#[test]
fn fault_injection_fails_the_nth_of_this_thread_only() {
    let _turn = machine();
    let free = all_free();
    assert!(fault_inject::set_fail_nth(3));
    let a = alloc_page(Gfp::empty()).unwrap();
    let b = alloc_page(Gfp::NOFAULT_INJECT).unwrap();
    std::thread::spawn(|| (0..10).for_each(|_| alloc_page(Gfp::empty()).unwrap().put()))
        .join()
        .unwrap();
    let c = alloc_pages(2, Gfp::empty()).unwrap();
    assert_eq!(fault_inject::fail_nth(), 1);
    assert_eq!(alloc_pages_node(0, 0, Gfp::empty()), Err(OutOfMemory));
    assert_eq!(fault_inject::fail_nth(), 0, "disarmed by firing");
    let d = alloc_page(Gfp::empty()).unwrap();
    [a, b, c, d].into_iter().for_each(free_pages);
    assert!(fault_inject::set_fail_nth(1) && fault_inject::set_fail_nth(0));
    alloc_page(Gfp::empty()).unwrap().put();
    assert!(fault_inject::set_fail_nth(1));
    fault_inject::forget(arch::current());
    alloc_page(Gfp::empty()).unwrap().put();
    assert_eq!(all_free(), free);
}

#[test]
fn every_slot_taken_is_an_answer_not_a_lie() {
    let _turn = machine();
    let barrier = std::sync::Arc::new(std::sync::Barrier::new(fault_inject::NR_SLOTS + 2));
    let threads: Vec<_> = (0..fault_inject::NR_SLOTS + 1)
        .map(|_| {
            let barrier = barrier.clone();
            std::thread::spawn(move || {
                let armed = fault_inject::set_fail_nth(1);
                barrier.wait();
                let failed = alloc_page(Gfp::empty()).map(free_pages).is_err();
                fault_inject::set_fail_nth(0);
                assert_eq!(armed, failed);
                armed
            })
        })
        .collect();
    barrier.wait();
    let armed = threads
        .into_iter()
        .map(|t| t.join().unwrap())
        .filter(|&a| a)
        .count();
    assert_eq!(armed, fault_inject::NR_SLOTS);
}

/// Threads on all CPUs allocate, pass to each other, check ownership marks, and free, while
/// another drains all lists again and again.
#[test]
fn storm_loses_and_doubles_nothing() {
    let _turn = machine();
    page_alloc::drain_all();
    let free = all_free();
    let (send, receive) = std::sync::mpsc::channel::<PageRef>();
    let receive = std::sync::Arc::new(Mutex::new(receive));
    let running = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let workers: Vec<_> = (0..10)
        .map(|t| {
            let (send, receive) = (send.clone(), receive.clone());
            std::thread::spawn(move || {
                arch::host::set_cpu(t % 8);
                let mut held: Vec<PageRef> = vec![];
                let mut seed = t as u64 + 1;
                for _ in 0..6000 {
                    seed = seed
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    let r = (seed >> 33) as usize;
                    match r % 8 {
                        0..=3 => {
                            let order = if r & 0x300 == 0 {
                                (r >> 10) as u32 % 4
                            } else {
                                0
                            };
                            if let Ok(p) = alloc_pages(order, Gfp::empty()) {
                                stamp(p, t);
                                held.push(p);
                            }
                        }
                        4 if !held.is_empty() => {
                            let p = held.swap_remove(r % held.len());
                            check_stamp(p);
                            send.send(p).unwrap();
                        }
                        5 => {
                            if let Ok(p) = receive.lock().unwrap().try_recv() {
                                check_stamp(p);
                                p.put();
                            }
                        }
                        _ if !held.is_empty() => {
                            let p = held.swap_remove(r % held.len());
                            check_stamp(p);
                            p.put();
                        }
                        _ => {}
                    }
                }
                held.into_iter().for_each(|p| p.put());
            })
        })
        .collect();
    let drainer = {
        let running = running.clone();
        std::thread::spawn(move || {
            while running.load(std::sync::atomic::Ordering::Relaxed) {
                page_alloc::drain_all();
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        })
    };
    workers.into_iter().for_each(|w| w.join().unwrap());
    running.store(false, std::sync::atomic::Ordering::Relaxed);
    drainer.join().unwrap();
    for p in receive.lock().unwrap().try_iter() {
        check_stamp(p);
        p.put();
    }
    assert_eq!(all_free(), free);
    drain_and_check(free);
}

/// Writes owner and frame number at both ends of a block.
fn stamp(p: PageRef, owner: usize) {
    for at in [0, (4096 << p.order()) - 8] {
        // SAFETY: within a block that this test holds.
        unsafe { *(p.virt().add(at) as *mut usize) = p.pfn() << 8 | owner };
    }
}

fn check_stamp(p: PageRef) {
    let ends = [0, (4096 << p.order()) - 8].map(|at| {
        // SAFETY: within a block that this test holds.
        unsafe { *(p.virt().add(at) as *const usize) }
    });
    assert_eq!(ends[0] >> 8, p.pfn());
    assert_eq!(ends[0], ends[1], "somebody else wrote into a block we hold");
}
