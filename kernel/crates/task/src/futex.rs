//! futex: sleeping on a word of a program's memory.
//!
//! # Mechanism
//! A hash table of buckets, each a lock and a list of waiters in arrival order. A waiter takes its bucket's lock, looks
//! at the word under it, links itself and sleeps; a waker takes the same lock, so a change of the word and the wake-up
//! that follows cannot fall between look and link. The number of buckets grows with the CPUs, and waiters of different
//! words that share a bucket are told apart by their key.
//!
//! # Lock order
//! `futex_bucket` is taken with no other lock held but for a requeue's second bucket (in address order); the look at
//! the word must not sleep under it: the caller's `load` fails instead, brings the page in, and tries again.
//!
//! # Invariants
//! - INV-FUTEX-1: a waiter is linked exactly while its `woken` is false; whoever unlinks it sets `woken` first.

use crate::TaskError;
use core::sync::atomic::{AtomicBool, Ordering};
use ksync::arch::ThreadPtr;
use ksync::{SpinLock, lock_class};
use slab::{AllocError, KArc, List};

/// Which word: an address in an address space, or an offset in a file that processes share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FutexKey {
    /// Identity of the address space (private) or of the mapped object (shared).
    pub space: usize,
    /// Address or offset, a multiple of 4.
    pub offset: usize,
}

/// Waits for any bit.
pub const BITSET_ANY: u32 = u32::MAX;

struct Waiter {
    key: SpinLock<FutexKey>,
    bitset: u32,
    thread: ThreadPtr,
    woken: AtomicBool,
}
slab::object!(Waiter, "futex_waiter", links = 1);

struct Bucket(SpinLock<List<Waiter, 0>>);

const NR_BUCKETS: usize = 1024;
static BUCKETS: [Bucket; NR_BUCKETS] =
    [const { Bucket(SpinLock::new(List::new(), lock_class!("futex_bucket"))) }; NR_BUCKETS];

fn bucket_index(key: &FutexKey) -> usize {
    let mixed = (key.space ^ key.offset.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed >> (usize::BITS - NR_BUCKETS.trailing_zeros())
}

/// Result of a look at the word under the bucket's lock.
pub enum Look {
    /// The word has this value.
    Value(u32),
    /// The page is not there: bring it in without the lock and call again.
    Absent,
}

/// Sleeps until woken if the word still holds `expected`. `load` reads the word without sleeping; `sleep` blocks until
/// the thread is unparked and returns false when time is up.
///
/// # Errors
/// `Again`: the word differs (EAGAIN) — also after `Absent`, with `Fault` for the caller to resolve; `Interrupted`;
/// `TimedOut`; `NoMemory`.
pub fn wait(
    key: FutexKey,
    expected: u32,
    bitset: u32,
    mut load: impl FnMut() -> Look,
    mut sleep: impl FnMut() -> bool,
) -> Result<(), TaskError> {
    if bitset == 0 {
        return Err(TaskError::Invalid);
    }
    let waiter = KArc::new(Waiter {
        key: SpinLock::new(key, lock_class!("futex_key")),
        bitset,
        thread: ksync::arch::current(),
        woken: AtomicBool::new(false),
    })
    .map_err(|AllocError| TaskError::NoMemory)?;
    {
        let mut bucket = BUCKETS[bucket_index(&key)].0.lock();
        match load() {
            Look::Absent => return Err(TaskError::Fault),
            Look::Value(value) if value != expected => return Err(TaskError::Again),
            Look::Value(_) => {}
        }
        bucket
            .push_back(waiter.clone())
            .unwrap_or_else(|_| unreachable!("a new waiter is in no list"));
    }
    loop {
        if waiter.woken.load(Ordering::Acquire) {
            return Ok(());
        }
        let in_time = sleep();
        if waiter.woken.load(Ordering::Acquire) {
            return Ok(());
        }
        let interrupted = ksync::arch::signal_pending();
        if in_time && !interrupted {
            continue;
        }
        return match unlink(&waiter) {
            true if !in_time => Err(TaskError::TimedOut),
            true => Err(TaskError::Interrupted),
            false => Ok(()), // a waker was first
        };
    }
}

/// Takes a waiter off its bucket; false when a waker did already.
fn unlink(waiter: &KArc<Waiter>) -> bool {
    loop {
        let index = bucket_index(&waiter.key.lock());
        let mut bucket = BUCKETS[index].0.lock();
        if waiter.woken.load(Ordering::Relaxed) {
            return false;
        }
        // A requeue may have moved it between the two locks: then it is not in this list.
        if bucket.remove(waiter).is_some() {
            return true;
        }
    }
}

/// Wakes up to `max` waiters whose bits meet `bitset`; returns how many.
pub fn wake(key: FutexKey, max: usize, bitset: u32) -> usize {
    let mut bucket = BUCKETS[bucket_index(&key)].0.lock();
    if bucket.is_empty() {
        return 0;
    }
    let mut woken = 0;
    while woken < max {
        let found = bucket
            .iter()
            .find(|w| w.bitset & bitset != 0 && *w.key.lock() == key);
        let Some(waiter) = found.cloned() else {
            break;
        };
        wake_waiter(&mut bucket, &waiter);
        woken += 1;
    }
    woken
}

fn wake_waiter(bucket: &mut List<Waiter, 0>, waiter: &KArc<Waiter>) {
    let thread = waiter.thread;
    let reference = bucket.remove(waiter);
    debug_assert!(reference.is_some(), "INV-FUTEX-1");
    // The thread stays valid until it sees `woken`, which it cannot leave without: unpark before, look after, would
    // be wrong; so store, then unpark while our reference and the bucket's lock keep `unlink` out.
    waiter.woken.store(true, Ordering::Release);
    ksync::arch::unpark(thread);
}

/// Wakes up to `max_wake` waiters of `from` and moves up to `max_move` others to `to`. With `expected`, only if `load`
/// still reads it. Returns woken plus moved, or `Again`.
pub fn requeue(
    from: FutexKey,
    to: FutexKey,
    max_wake: usize,
    max_move: usize,
    check: impl FnOnce() -> Result<(), TaskError>,
) -> Result<usize, TaskError> {
    let (a, b) = (bucket_index(&from), bucket_index(&to));
    let mut first = BUCKETS[a.min(b)].0.lock();
    let mut second = if a == b {
        None
    } else {
        Some(BUCKETS[a.max(b)].0.lock())
    };
    check()?;
    let (source, mut target) = match &mut second {
        None => (&mut *first, None),
        Some(second) if a < b => (&mut *first, Some(&mut **second)),
        Some(second) => (&mut **second, Some(&mut *first)),
    };
    let mut done = 0;
    while done < max_wake.saturating_add(max_move) {
        let found = source.iter().find(|w| *w.key.lock() == from).cloned();
        let Some(waiter) = found else { break };
        if done < max_wake {
            wake_waiter(source, &waiter);
        } else {
            *waiter.key.lock() = to;
            if let Some(target) = &mut target
                && let Some(moved) = source.remove(&waiter)
            {
                target
                    .push_back(moved)
                    .unwrap_or_else(|_| unreachable!("just removed"));
            }
        }
        done += 1;
    }
    Ok(done)
}
