//! Mappings against a vector, the fork order at every interleaving, the cache against the file's
//! bytes.

use crate::*;
use core::ptr::NonNull;
use ksync::{PAGE_SIZE, rcu};
use page_alloc::PageRef;
use proptest::prelude::*;
use std::boxed::Box;
use std::cell::Cell;
use std::sync::{Mutex, OnceLock};
use std::vec::Vec;

/// Tests that count free pages run alone.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    page_alloc::host::init(&[8192]);
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

type Node = NonNull<MapNode>;

fn new_node(first: u64, last: u64) -> Node {
    NonNull::from(Box::leak(Box::new(MapNode::new(first, last))))
}

fn free_node(n: Node) {
    // SAFETY: made by `new_node`; the tests free each node once, when it is unlinked.
    drop(unsafe { Box::from_raw(n.as_ptr()) });
}

fn first(n: Node) -> u64 {
    // SAFETY: the tests look only at nodes they have not freed.
    unsafe { n.as_ref() }.first()
}

fn last(n: Node) -> u64 {
    // SAFETY: as above.
    unsafe { n.as_ref() }.last()
}

fn walk<M: FileRmap>(map: &M, a: u64, b: u64) -> Vec<Node> {
    let mut seen = Vec::new();
    map.for_each_overlap(a, b, |n| seen.push(NonNull::from(n)));
    seen
}

/// What the contract says: all linked nodes, and pairs (parent, child) not adjusted since fork.
#[derive(Default)]
struct Model {
    linked: Vec<Node>,
    forks: Vec<(Node, Node)>,
}

impl Model {
    fn forget(&mut self, n: Node) {
        self.forks.retain(|&(p, c)| p != n && c != n);
    }

    fn check_walk(&self, seen: &[Node], a: u64, b: u64) {
        let mut got: Vec<Node> = seen.to_vec();
        let mut want: Vec<Node> = self
            .linked
            .iter()
            .copied()
            .filter(|&n| first(n) <= b && last(n) >= a)
            .collect();
        got.sort();
        want.sort();
        assert_eq!(got, want, "INV-RMAP-3");
        for (parent, child) in &self.forks {
            let at = |n| seen.iter().position(|s| s == n);
            if let (Some(p), Some(c)) = (at(parent), at(child)) {
                assert!(p < c, "INV-RMAP-4");
            }
        }
    }
}

fn apply<M: FileRmap>(map: &M, model: &mut Model, op: (u8, u64, u64, usize)) {
    let (what, a, len, pick) = op;
    let picked = (!model.linked.is_empty()).then(|| model.linked[pick % model.linked.len().max(1)]);
    // SAFETY (all blocks): nodes are leaked boxes, freed only after they were unlinked;
    // `model.linked` are exactly the linked ones.
    match (what, picked) {
        (0, _) | (_, None) => {
            let n = new_node(a, a + len);
            // SAFETY: above.
            unsafe { map.insert(n) };
            model.linked.push(n);
        }
        (1 | 2, Some(parent)) => {
            let child = new_node(first(parent), last(parent));
            // SAFETY: above.
            unsafe { map.insert_after(parent, child) };
            model.linked.push(child);
            model.forks.push((parent, child));
        }
        (3, Some(n)) => {
            let mut gone: Vec<Node> = [n].to_vec();
            model.linked.retain(|&m| m != n);
            if let Some(other) = model.linked.pop() {
                gone.push(other);
            }
            // SAFETY: above.
            unsafe { map.remove(&gone) };
            gone.iter().for_each(|&n| model.forget(n));
            gone.into_iter().for_each(free_node);
        }
        (4, Some(n)) if first(n) < last(n) => {
            // A split in the middle.
            let middle = first(n) + (last(n) - first(n)) / 2;
            let tail = new_node(middle + 1, last(n));
            let resize = [Resize {
                node: n,
                first: first(n),
                last: middle,
            }];
            let called = Cell::new(false);
            // SAFETY: above.
            unsafe {
                let insert = &[tail];
                map.adjust(
                    Adjust {
                        resize: &resize,
                        insert,
                        remove: &[],
                    },
                    || called.set(true),
                );
            }
            assert!(called.get());
            model.linked.push(tail);
            model.forget(n);
        }
        (_, Some(n)) => {
            // A move of the start.
            let resize = [Resize {
                node: n,
                first: a,
                last: a + len,
            }];
            // SAFETY: above.
            unsafe {
                map.adjust(
                    Adjust {
                        resize: &resize,
                        ..Adjust::default()
                    },
                    || {},
                )
            };
            model.forget(n);
        }
    }
}

fn mappings_follow_the_contract<M: FileRmap>(ops: Vec<(u8, u64, u64, usize)>) {
    let map = M::new();
    let mut model = Model::default();
    for op in ops {
        apply(&map, &mut model, op);
        assert_eq!(map.check_invariants(), model.linked.len());
        assert_eq!(map.is_empty(), model.linked.is_empty());
        model.check_walk(&walk(&map, op.1, op.1 + op.2), op.1, op.1 + op.2);
    }
    model.check_walk(&walk(&map, 0, u64::MAX), 0, u64::MAX);
    // SAFETY: `linked` are the linked ones.
    unsafe { map.remove(&model.linked) };
    assert!(map.is_empty());
    model.linked.into_iter().for_each(free_node);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn mappings_global(
        ops in prop::collection::vec((0u8..6, 0u64..40, 0u64..20, any::<usize>()), 0..80)
    ) {
        mappings_follow_the_contract::<IMmap>(ops);
    }
}

/// Fork against truncate: with the child linked, the copy of the parent's PTE may fall at any point
/// of the walk. Whether a PTE to the dead page is left in some case.
fn fork_leaves_a_stale_pte<M: FileRmap>(others: usize) -> bool {
    let mut stale = false;
    for copy_at in 0..others + 3 {
        let map = M::new();
        let (parent, child) = (new_node(5, 9), new_node(5, 9));
        let unrelated: Vec<Node> = (0..others).map(|_| new_node(5, 9)).collect();
        // SAFETY: leaked boxes; freed below after removal.
        unsafe {
            map.insert(parent);
            unrelated.iter().for_each(|&n| map.insert(n));
            map.insert_after(parent, child);
        }
        let (parent_pte, child_pte) = (Cell::new(true), Cell::new(false));
        let (mut step, mut copied) = (0, false);
        let mut maybe_copy = |step| {
            if step >= copy_at && !copied {
                copied = true;
                child_pte.set(parent_pte.get());
            }
        };
        map.for_each_overlap(7, 7, |n| {
            maybe_copy(step);
            step += 1;
            if NonNull::from(n) == parent {
                parent_pte.set(false);
            } else if NonNull::from(n) == child {
                child_pte.set(false);
            }
        });
        maybe_copy(usize::MAX);
        stale |= parent_pte.get() || child_pte.get();
        // SAFETY: all are linked.
        unsafe {
            map.remove(&unrelated);
            map.remove(&[parent, child]);
        }
        unrelated
            .into_iter()
            .chain([parent, child])
            .for_each(free_node);
    }
    stale
}

/// The planted bug: the child is linked before its parent.
struct ChildFirst(Global);

impl FileRmap for ChildFirst {
    const NAME: &'static str = "child-first";
    fn new() -> Self {
        ChildFirst(Global::new())
    }
    unsafe fn insert(&self, node: Node) {
        // SAFETY: passed on.
        unsafe { self.0.insert(node) }
    }
    unsafe fn insert_after(&self, parent: Node, child: Node) {
        // SAFETY: passed on; the parent is put behind the child.
        unsafe {
            self.0.remove(&[parent]);
            self.0.insert(child);
            self.0.insert_after(child, parent);
        }
    }
    unsafe fn remove(&self, nodes: &[Node]) {
        // SAFETY: passed on.
        unsafe { self.0.remove(nodes) }
    }
    unsafe fn adjust(&self, adjust: Adjust<'_>, meanwhile: impl FnOnce()) {
        // SAFETY: passed on.
        unsafe { self.0.adjust(adjust, meanwhile) }
    }
    fn for_each_overlap(&self, a: u64, b: u64, visit: impl FnMut(&MapNode)) {
        self.0.for_each_overlap(a, b, visit)
    }
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    fn check_invariants(&self) -> usize {
        self.0.check_invariants()
    }
}

#[test]
fn fork_order() {
    for others in 0..4 {
        assert!(!fork_leaves_a_stale_pte::<Global>(others));
        assert!(
            fork_leaves_a_stale_pte::<ChildFirst>(others),
            "the test must be able to fail"
        );
    }
}

#[test]
fn words() {
    assert_eq!(IMmapKind::from_name("global"), Some(IMmapKind::Global));
    assert_eq!(IMmapKind::from_name("globl"), None);
    for &(name, kind) in IMmapKind::ALL {
        assert_eq!(IMmap::of(kind).name(), name);
    }
}

fn bytes(page: PageRef) -> Vec<u8> {
    let mut v = std::vec![0; PAGE_SIZE];
    // SAFETY: a page we hold a reference to; nobody writes it now.
    unsafe {
        v.as_mut_ptr()
            .copy_from_nonoverlapping(page.virt(), PAGE_SIZE)
    };
    v
}

fn write(page: PageRef, at: usize, byte: u8) {
    // SAFETY: as above; `at` is below PAGE_SIZE.
    unsafe { page.virt().add(at).write(byte) };
}

/// Pages free once every callback has run.
fn free_pages_now() -> usize {
    rcu::barrier();
    page_alloc::nr_free(0).free
}

fn archive(len: usize) -> &'static [u8] {
    Box::leak(
        (0..len)
            .map(|i| (i % 251 + 1) as u8)
            .collect::<Vec<u8>>()
            .into_boxed_slice(),
    )
}

/// The cache behaves as a plain vector of bytes, whatever is written, cut and grown.
fn check_file(filler: &'static [u8], ops: &[(u8, u64, usize, u8)]) {
    let file = AddressSpace::new(Filler::Static(filler), filler.len() as u64, b"/f").unwrap();
    let mut model: Vec<u8> = filler.to_vec();
    for &(what, pgoff, at, byte) in ops {
        match what {
            0 => {
                let size = pgoff * PAGE_SIZE as u64 + at as u64;
                if size < file.size() {
                    file.truncate(size);
                } else {
                    file.extend(size);
                }
                model.resize(size as usize, 0);
            }
            1 if pgoff < model.len().div_ceil(PAGE_SIZE) as u64 => {
                let page = file.find_or_create_page(pgoff).unwrap();
                let pos = pgoff as usize * PAGE_SIZE + at;
                if pos < model.len() {
                    write(page, at, byte);
                    model[pos] = byte;
                }
                page.put();
            }
            _ => match file.find_or_create_page(pgoff) {
                Ok(page) => {
                    let mut want = model[pgoff as usize * PAGE_SIZE..].to_vec();
                    want.resize(PAGE_SIZE, 0);
                    assert!(bytes(page) == want, "INV-PCACHE-3: page {pgoff}");
                    page.put();
                }
                Err(e) => {
                    assert_eq!(e, FillError::PastEof);
                    assert!(pgoff as usize * PAGE_SIZE >= model.len());
                }
            },
        }
        assert_eq!(file.size(), model.len() as u64);
        file.check_invariants();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn cache_is_the_file(
        len in 0usize..5 * PAGE_SIZE,
        ops in prop::collection::vec((0u8..3, 0u64..6, 0usize..PAGE_SIZE, 1u8..255), 0..40)
    ) {
        let _alone = alone();
        static ARCHIVE: OnceLock<&'static [u8]> = OnceLock::new();
        check_file(&ARCHIVE.get_or_init(|| archive(5 * PAGE_SIZE))[..len], &ops);
    }
}

#[test]
fn memory_comes_back() {
    let _alone = alone();
    // The first rounds warm the caches of the allocators.
    let free: Vec<usize> = (0..4).map(|_| fill_cut_and_drop()).collect();
    assert_eq!(free[2], free[3]);
}

/// Returns the pages that are free afterwards.
fn fill_cut_and_drop() -> usize {
    let file = AddressSpace::new(Filler::Zero, 1 << 30, b"").unwrap();
    let held = file.find_or_create_page(3).unwrap();
    assert_eq!(held.ref_count(), 2);
    for pgoff in 0..200 {
        file.find_or_create_page(pgoff * 7).unwrap().put();
    }
    assert_eq!(file.nr_pages(), 201);
    let mut seen = Vec::new();
    file.for_each_cached(0, 21, |pgoff, page| {
        seen.push(pgoff);
        page.put();
    });
    assert_eq!(seen, [0, 3, 7, 14, 21]);
    let full = free_pages_now();
    assert_eq!(file.truncate(5 * PAGE_SIZE as u64 + 1), 199);
    assert_eq!(file.nr_pages(), 2);
    assert!(free_pages_now() >= full + 199);
    assert!(file.still_cached(held));
    assert_eq!(file.truncate(0), 2);
    assert!(!file.still_cached(held));
    rcu::barrier();
    assert_eq!(held.ref_count(), 1, "INV-PCACHE-1");
    held.put();
    assert_eq!(file.find_or_create_page(0), Err(FillError::PastEof));
    file.find_or_create_page_for_write(9).unwrap().put();
    drop(file);
    free_pages_now()
}

#[test]
fn names_are_cut_to_fit() {
    let _alone = alone();
    let long = [b'x'; 100];
    assert_eq!(
        AddressSpace::new(Filler::Zero, 0, &long)
            .unwrap()
            .name()
            .len(),
        space::NAME_LEN
    );
    assert_eq!(
        AddressSpace::new(Filler::Zero, 0, b"/bin/sh")
            .unwrap()
            .name(),
        b"/bin/sh"
    );
}

/// Every allocation of a fill fails in turn: Oom, and nothing has changed.
#[test]
fn a_failed_fill_changes_nothing() {
    let _alone = alone();
    let file = AddressSpace::new(Filler::Zero, u64::MAX, b"").unwrap();
    let far = (1u64 << 40) - 1;
    let mut failures = 0;
    for nth in 1.. {
        assert!(page_alloc::fault_inject::set_fail_nth(nth));
        let got = file.find_or_create_page(far);
        let left = page_alloc::fault_inject::fail_nth();
        page_alloc::fault_inject::set_fail_nth(0);
        match got {
            Ok(page) => {
                page.put();
                assert_ne!(left, 0, "a failure that nobody noticed");
                break;
            }
            Err(e) => {
                assert_eq!(e, FillError::Oom);
                failures += 1;
                assert_eq!(file.nr_pages(), 0);
                file.check_invariants();
            }
        }
    }
    assert!(failures >= 1);
}

/// Threads fill the same pages while another cuts the file: each page is made once at a time, and
/// all memory comes back.
#[test]
fn fill_against_truncate() {
    let _alone = alone();
    let before = free_pages_now();
    let data = archive(64 * PAGE_SIZE);
    let file = AddressSpace::new(Filler::Static(data), data.len() as u64, b"").unwrap();
    std::thread::scope(|s| {
        for cpu in 0..3 {
            let file = &file;
            s.spawn(move || {
                ksync::arch::host::set_cpu(cpu);
                for i in 0..3000u64 {
                    let pgoff = (i * (5 + cpu as u64)) % 64;
                    if let Ok(page) = file.find_or_create_page(pgoff) {
                        let first = bytes(page)[0];
                        let at = pgoff as usize * PAGE_SIZE;
                        assert!(
                            first == data[at] || first == 0,
                            "page {pgoff} shows {first}"
                        );
                        page.put();
                    }
                }
            });
        }
        for size in (0..64u64).rev() {
            file.truncate(size * PAGE_SIZE as u64 + 17);
            rcu::process_callbacks();
            std::thread::yield_now();
            assert!(file.find_page(size + 1).is_none(), "INV-PCACHE-4");
        }
    });
    file.check_invariants();
    drop(file);
    let warm = free_pages_now();
    assert!(
        before - warm < 16,
        "{before} pages free before, {warm} after"
    );
}

/// Called between making a page and adding it.
pub(crate) fn lose_the_race_often() {
    std::thread::yield_now();
}

/// Threads ask for the same missing page at the same time: all get the same one, and the losers'
/// pages go back.
#[test]
fn one_page_per_offset() {
    const PAGES: u64 = 1000;
    let _alone = alone();
    let before = free_pages_now();
    let data = archive(PAGE_SIZE);
    let file = AddressSpace::new(Filler::Static(data), PAGES * PAGE_SIZE as u64, b"").unwrap();
    let start = std::sync::Barrier::new(3);
    std::thread::scope(|s| {
        for cpu in 0..3 {
            let (file, start) = (&file, &start);
            s.spawn(move || {
                ksync::arch::host::set_cpu(cpu);
                for pgoff in 0..PAGES {
                    start.wait();
                    let page = file.find_or_create_page(pgoff).unwrap();
                    let again = file.find_page(pgoff).unwrap();
                    assert!(page == again && page.index() as u64 == pgoff);
                    again.put();
                    page.put();
                }
            });
        }
    });
    assert_eq!(file.nr_pages() as u64, PAGES);
    file.check_invariants();
    drop(file);
    let after = free_pages_now();
    assert!(
        before - after < 16,
        "{before} pages free before, {after} after"
    );
}
