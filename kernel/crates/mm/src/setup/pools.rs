//! `mm=grouped`: constructed shells in a pool per group of CPUs, each under one lock.
//!
//! Lock order: `mm_group` is a leaf; shells are built and taken apart without it.

use super::{MmKind, SHELLS, Shell};
use crate::MmError;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use ksync::{LockClass, NR_CPUS, SpinLock, arch};
use slab::Gfp;

/// Shells that a pool keeps.
const POOL_MAX: usize = 32;

struct Pool {
    shells: [Option<NonNull<Shell>>; POOL_MAX],
    len: usize,
}

// SAFETY: an owner of shells.
unsafe impl Send for Pool {}

static CLASS: LockClass = LockClass::new_leaf("mm_group");
#[repr(align(128))]
struct Padded(SpinLock<Pool>);
static POOLS: [Padded; NR_CPUS] = [const {
    Padded(SpinLock::new(
        Pool {
            shells: [None; POOL_MAX],
            len: 0,
        },
        &CLASS,
    ))
}; NR_CPUS];
/// CPUs per pool.
static GROUP: AtomicUsize = AtomicUsize::new(8);

pub(super) fn set_group(cpus: usize) {
    GROUP.store(cpus.clamp(1, NR_CPUS), Relaxed);
}

fn mine() -> &'static SpinLock<Pool> {
    &POOLS[arch::smp_processor_id() / GROUP.load(Relaxed)].0
}

pub(super) fn take() -> Result<NonNull<Shell>, MmError> {
    if page_alloc::fault_inject::should_fail() {
        return Err(MmError::NoMemory);
    }
    {
        let mut pool = mine().lock_irqsave();
        if let Some(len) = pool.len.checked_sub(1) {
            pool.len = len;
            if let Some(shell) = pool.shells[len].take() {
                return Ok(shell);
            }
        }
    }
    let at = SHELLS.alloc(Gfp::empty())?.cast();
    // SAFETY: fresh memory of a shell's size.
    if let Err(e) = unsafe { Shell::build(at, MmKind::Grouped) } {
        // SAFETY: allocated above.
        unsafe { SHELLS.free(at.cast()) };
        return Err(e);
    }
    Ok(at)
}

/// # Safety
/// A built shell that nobody uses any more.
pub(super) unsafe fn give(at: NonNull<Shell>) {
    {
        let mut pool = mine().lock_irqsave();
        let len = pool.len;
        if len < POOL_MAX {
            pool.shells[len] = Some(at);
            pool.len = len + 1;
            return;
        }
    }
    // SAFETY: the caller's promise.
    unsafe { end(at) };
}

/// # Safety
/// As `give`.
unsafe fn end(at: NonNull<Shell>) {
    // SAFETY: the caller's promise; from SHELLS.
    unsafe {
        Shell::unbuild(at);
        SHELLS.free(at.cast());
    }
}

pub(super) fn drain() {
    for pool in &POOLS {
        loop {
            let shell = {
                let mut pool = pool.0.lock_irqsave();
                let Some(len) = pool.len.checked_sub(1) else {
                    break;
                };
                pool.len = len;
                pool.shells[len].take()
            };
            if let Some(at) = shell {
                // SAFETY: a free shell, taken from its pool.
                unsafe { end(at) };
            }
        }
    }
}
