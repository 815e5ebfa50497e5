//! Races played out step by step: a test names a place in the code and what others do right there.

use super::*;
use crate::unmap_mapping_range;
use std::boxed::Box;
use std::cell::RefCell;
use std::thread;
use std::time::Duration;

type Action = Box<dyn FnOnce()>;

std::thread_local! {
    static PLAN: RefCell<Option<(&'static str, Action)>> = const { RefCell::new(None) };
}

/// Called by the code under test.
pub(crate) fn reached(point: &'static str) {
    let action = PLAN.with_borrow_mut(|plan| plan.take_if(|(at, _)| *at == point));
    if let Some((_, action)) = action {
        action();
    }
}

/// When this thread next reaches `point`, `action` happens there, once.
pub(crate) fn at(point: &'static str, action: impl FnOnce() + 'static) {
    PLAN.set(Some((point, Box::new(action))));
}

pub(crate) fn nothing_left_to_do() -> bool {
    PLAN.with_borrow(|plan| plan.is_none())
}

fn cut(f: &AddressSpace, pages: u64) {
    f.truncate(pages * PAGE as u64);
    unmap_mapping_range(f, pages, u64::MAX, true);
}

/// INV-FAULT-2: the file is cut after the fault has found the page and before it enters it.
#[test]
fn truncation_in_the_middle_of_a_fault() {
    let _m = Machine::new();
    for (shared, how) in [
        (true, FaultFlags::WRITE),
        (true, FaultFlags::empty()),
        (false, FaultFlags::WRITE),
        (false, FaultFlags::empty()),
    ] {
        let (mm, f) = (Mm::new().unwrap(), file(4));
        let a = mm.mmap(&of_file(&f, 0, 4, shared)).unwrap();
        let file = f.clone();
        at("file page found", move || cut(&file, 1));
        assert_eq!(
            access(&mm, a + 2 * PAGE, how).err(),
            Some(FaultError::Sigbus)
        );
        assert!(nothing_left_to_do() && entry(&mm, a + 2 * PAGE).is_none());
        mm.check_invariants();
    }
    // A read has mapped the page; the write copies it.
    let (mm, f) = (Mm::new().unwrap(), file(4));
    let a = mm.mmap(&of_file(&f, 0, 4, false)).unwrap();
    read(&mm, a).unwrap();
    let file = f.clone();
    at("file page found", move || cut(&file, 0));
    assert_eq!(write(&mm, a, 1), Err(FaultError::Sigbus));
    mm.check_invariants();
    // The file grows again at once: the new page is another one.
    f.extend(PAGE as u64);
    assert_eq!(read(&mm, a), Ok(0));
}

/// Another thread writes the page while this one copies it: the copy does not count.
#[test]
fn two_writers_of_one_shared_page() {
    let _m = Machine::new();
    let mm = mm_with(0x40_0000, 1);
    write(&mm, 0x40_0000, 1).unwrap();
    let child = mm.dup().unwrap();
    let other = mm.clone();
    at("private page found", move || {
        write(&other, 0x40_0000, 2).unwrap();
        write(&other, 0x40_0008, 3).unwrap();
    });
    write(&mm, 0x40_0008, 4).unwrap();
    assert_eq!((read(&mm, 0x40_0000), read(&mm, 0x40_0008)), (Ok(2), Ok(4)));
    assert_eq!(
        (read(&child, 0x40_0000), read(&child, 0x40_0008)),
        (Ok(1), Ok(0))
    );
    mm.check_invariants();
    child.check_invariants();
}

/// INV-FAULT-3: the count was one, but then truncation took the page: it does not come back.
#[test]
fn reuse_is_decided_by_the_entry() {
    let _m = Machine::new();
    let (mm, f) = (Mm::new().unwrap(), file(1));
    let a = mm.mmap(&of_file(&f, 0, 1, false)).unwrap();
    write(&mm, a, 1).unwrap();
    drop(mm.dup().unwrap());
    let file = f.clone();
    at("count is one", move || cut(&file, 0));
    assert_eq!(write(&mm, a, 2), Err(FaultError::Sigbus));
    assert!(nothing_left_to_do() && entry(&mm, a).is_none());
    mm.check_invariants();
}

/// The child that shared the page exits while the parent copies it.
#[test]
fn sharer_exits_during_the_copy() {
    let _m = Machine::new();
    let mm = mm_with(0x40_0000, 1);
    write(&mm, 0x40_0000, 1).unwrap();
    let child = mm.dup().unwrap();
    at("private page found", move || drop(child));
    write(&mm, 0x40_0008, 8).unwrap();
    assert_eq!((read(&mm, 0x40_0000), read(&mm, 0x40_0008)), (Ok(1), Ok(8)));
    mm.check_invariants();
}

/// INV-FORK-2: truncation cannot come between fork's look at an entry and its copy.
#[test]
fn truncation_in_the_middle_of_a_fork() {
    let _m = Machine::new();
    let (mm, f) = (Mm::new().unwrap(), file(4));
    let a = mm.mmap(&of_file(&f, 0, 4, false)).unwrap();
    for i in 0..4 {
        write(&mm, a + i * PAGE, 5).unwrap();
    }
    let file = f.clone();
    let (done, finished) = std::sync::mpsc::channel();
    at("entry read", move || {
        thread::spawn(move || {
            cut(&file, 0);
            drop(file);
            done.send(()).unwrap();
        });
        // Long enough for the truncation to finish, if nothing held it up.
        thread::sleep(Duration::from_millis(50));
    });
    let child = mm.dup().unwrap();
    finished.recv().unwrap();
    assert_eq!(
        child.check_invariants().rss,
        [0, 0, 0],
        "copies of what is gone"
    );
    assert_eq!(mm.check_invariants().rss, [0, 0, 0]);
    assert_eq!(read(&child, a), Err(FaultError::Sigbus));
}
