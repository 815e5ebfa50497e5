//! Where this crate says that something is wrong, and how often it has.
//!
//! Problem: a memory bug must be named with its cache and its place in the code, and the machine should live on. This
//! crate has no console. Mechanism: whoever has one gives a function; reports are made with no lock of this crate held.

use core::fmt;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::*};

/// What prints a report. Called in the context of the allocation or free that found the bug.
pub type Reporter = fn(fmt::Arguments<'_>);

static REPORTER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
static NR_REPORTS: AtomicUsize = AtomicUsize::new(0);

/// Sets what prints reports. Until then they are counted only.
pub fn set_reporter(reporter: Reporter) {
    REPORTER.store(reporter as *mut (), Release);
}

/// Bugs reported so far.
pub fn nr_reports() -> usize {
    NR_REPORTS.load(Relaxed)
}

/// Reports one bug.
#[cold]
#[inline(never)]
pub(crate) fn report(what: fmt::Arguments<'_>) {
    NR_REPORTS.fetch_add(1, Relaxed);
    let reporter = REPORTER.load(Acquire);
    if !reporter.is_null() {
        // SAFETY: only `set_reporter` stores here, and what it stores is a Reporter.
        let reporter = unsafe { core::mem::transmute::<*mut (), Reporter>(reporter) };
        reporter(what);
    }
}
