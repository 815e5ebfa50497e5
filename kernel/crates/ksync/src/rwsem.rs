//! Sleeping locks: a reader-writer semaphore, and a mutex that is its writing half.
//!
//! # Problem
//! Locks held across page faults and I/O must let their waiters sleep. Fast path: one atomic. Fair: first come, first
//! served, readers that came together go together. No wake-up is lost.
//!
//! # Mechanism
//! One word, and a FIFO of waiters (on their stacks) under a spinlock:
//!
//! ```text
//!   63                      3       2         1         0
//!  ┌─────────────────────────┬────────┬───────────┬──────────┐
//!  │ readers                 │ FAIR   │ WAITERS   │ WRITER   │
//!  └─────────────────────────┴────────┴───────────┴──────────┘
//! ```
//!
//! Fast paths: write is cmpxchg 0 to WRITER; read adds READER and is in if neither flag was set; releases subtract.
//! WAITERS closes the fast paths: from then on the lock is handed out, by [`RawRwSem::grant`], only under the
//! spinlock and in order of arrival. Grants happen at two moments: when a waiter has queued (the lock may have become
//! free before its WAITERS was visible), and when a release finds WAITERS with nobody left inside. A reader that
//! added itself and must take that back is for that moment like a reader leaving, and looks in the same way.
//!
//! A writer that finds the lock held spins for a while before it sleeps, and may take a lock that was just released
//! although others sleep: waking one of those takes longer than most holds, and a lock that is only handed to sleepers
//! is idle meanwhile. After [`STEALS`] such thefts FAIR forbids them until a sleeper got its turn. Those that spin queue,
//! and only the first of them looks at the word: a release that many CPUs watch costs a transfer to each. Who spun in
//! vain says so to the next, which then looks once, so that a queue behind a holder that sleeps is gone soon.
//!
//! A waiter sleeps until `granted`, then passes the spinlock once, so that the thread that granted has left.
//!
//! # Lock order
//! The spinlocks of the waiters and of the spinners are leaves (IRQs stay on; under the former only `arch::unpark`).
//!
//! # Invariants
//! - INV-RWSEM-1: WRITER excludes readers: WRITER is set only in a word with neither WRITER nor readers; a reader is
//!   in only if it counted itself while WRITER was clear.
//! - INV-RWSEM-2: the list is not empty implies WAITERS (outside the spinlock: if and only if).
//! - INV-RWSEM-3: with WAITERS set only `grant` and a spinning writer let anyone in; with FAIR set only `grant`.
use crate::arch::{self, ThreadPtr};
use crate::lock::SpinLock;
use crate::lockdep::How;
use crate::lockstat::{self, HoldStart, LockClass};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use crate::sync::{const_unless_loom, planted};
use core::cell::{Cell, UnsafeCell};
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr;

const WRITER: usize = 1;
const WAITERS: usize = 2;
const FAIR: usize = 4;
const READER: usize = 8;
const READERS: usize = !(WRITER | WAITERS | FAIR);

/// Looks at a held lock before a writer sleeps.
const SPINS: usize = if cfg!(loom) { 1 } else { 2000 };
/// Attempts to grant that found a thief inside, after which there are no more thefts.
const STEALS: usize = if cfg!(loom) { 1 } else { 64 };

static WAIT_CLASS: LockClass = LockClass::new("rwsem_waiters");
static SPIN_CLASS: LockClass = LockClass::new("rwsem_spinners");

/// A sleeping thread. On its stack; `next` is guarded by the list's spinlock.
struct Waiter {
    thread: ThreadPtr,
    writes: bool,
    granted: AtomicBool,
    next: Cell<*const Waiter>,
}

struct Waiters {
    first: *const Waiter,
    last: *const Waiter,
    /// Grants in vain since the last one that succeeded.
    in_vain: usize,
}

// SAFETY: listed waiters are touched only under the spinlock, and live until granted.
unsafe impl Send for Waiters {}

impl Waiters {
    fn push(&mut self, waiter: &Waiter) {
        // SAFETY: listed waiters live.
        match unsafe { self.last.as_ref() } {
            Some(last) => last.next.set(waiter),
            None => self.first = waiter,
        }
        self.last = waiter;
    }

    fn len(&self) -> usize {
        // SAFETY: listed waiters live.
        let next = |w: *const Waiter| unsafe { w.as_ref() }.map(|w| w.next.get());
        core::iter::successors(next(self.first), |&w| next(w)).count()
    }

    /// The run of waiters that may go together: a writer alone, or the readers before the first writer.
    /// Returns its length and the waiter after it.
    fn first_run(&self) -> (usize, *const Waiter) {
        // SAFETY: listed waiters live.
        let Some(first) = (unsafe { self.first.as_ref() }) else {
            return (0, ptr::null());
        };
        let mut nr = 1;
        let mut next = first.next.get();
        // SAFETY: listed waiters live.
        while let Some(w) = unsafe { next.as_ref() }.filter(|w| !first.writes && !w.writes) {
            nr += 1;
            next = w.next.get();
        }
        (nr, next)
    }
}

/// The lock without data.
pub(crate) struct RawRwSem {
    word: AtomicUsize,
    waiters: SpinLock<Waiters>,
    /// Writers that spin: the first of them was in vain.
    spinners: SpinLock<bool>,
}

impl RawRwSem {
    const_unless_loom! {
        pub(crate) fn new() -> Self {
            let waiters = Waiters { first: ptr::null(), last: ptr::null(), in_vain: 0 };
            RawRwSem {
                word: AtomicUsize::new(0),
                waiters: SpinLock::new(waiters, &WAIT_CLASS),
                spinners: SpinLock::new(false, &SPIN_CLASS),
            }
        }
    }

    #[inline(always)]
    pub(crate) fn try_write(&self) -> Option<()> {
        self.word
            .compare_exchange(0, WRITER, Acquire, Relaxed)
            .ok()
            .map(drop)
    }

    #[inline(always)]
    pub(crate) fn write(&self) {
        if self.try_write().is_none() && !self.spin_write() {
            self.wait(true);
        }
    }

    /// Waits awake for a while; true if the lock was taken. Pointless where the holder cannot be running.
    #[cold]
    fn spin_write(&self) -> bool {
        if arch::nr_cpu_ids() == 1 {
            return false;
        }
        // A queue of CPUs that the host may have taken off is worse than none. It decides who spins, not who gets in,
        // so that loom's few steps are spent better.
        if cfg!(loom) || crate::static_branch!(crate::VIRT_SPIN) {
            return self.spin_first(SPINS);
        }
        let (mut in_vain, looks) = match self.spinners.try_lock() {
            Some(first) => (first, SPINS),
            None => {
                let next = self.spinners.lock();
                let looks = if *next { 1 } else { SPINS };
                (next, looks)
            }
        };
        let taken = self.spin_first(looks);
        *in_vain = !taken;
        taken
    }

    /// The first of those that spin looks at most so many times.
    fn spin_first(&self, looks: usize) -> bool {
        for look in 0..looks {
            if look != 0 {
                arch::cpu_relax();
            }
            let word = self.word.load(Relaxed);
            if word & FAIR != 0 {
                return false;
            }
            if word & (WRITER | READERS) == 0
                && self
                    .word
                    .compare_exchange(word, word | WRITER, Acquire, Relaxed)
                    .is_ok()
            {
                return true;
            }
        }
        false
    }

    #[inline(always)]
    fn try_read(&self) -> Option<()> {
        let mut word = self.word.load(Relaxed);
        while word & (WRITER | WAITERS) == 0 {
            match self
                .word
                .compare_exchange_weak(word, word + READER, Acquire, Relaxed)
            {
                Ok(_) => return Some(()),
                Err(now) => word = now,
            }
        }
        None
    }

    #[inline(always)]
    fn read(&self) {
        if self.word.fetch_add(READER, Acquire) & (WRITER | WAITERS) != 0 {
            self.wait(false);
        }
    }

    #[inline(always)]
    pub(crate) fn unlock_write(&self) {
        let before = self.word.fetch_sub(WRITER, Release);
        debug_assert!(before & WRITER != 0);
        if before & WAITERS != 0 && !planted!(RwSemForgetWaiters) {
            self.grant_waiters();
        }
    }

    #[inline(always)]
    fn unlock_read(&self) {
        let before = self.word.fetch_sub(READER, Release);
        debug_assert!(before & READERS != 0);
        // The last one out; a writer cannot be in.
        if before & (READERS | WAITERS) == READER | WAITERS {
            self.grant_waiters();
        }
    }

    #[inline(always)]
    fn downgrade(&self) {
        if self.word.fetch_add(READER - WRITER, Release) & WAITERS != 0 {
            self.grant_waiters();
        }
    }

    /// Queues and sleeps until granted. A reader comes with its READER added.
    #[cold]
    #[inline(never)]
    fn wait(&self, writes: bool) {
        let waiter = Waiter {
            thread: arch::current(),
            writes,
            granted: AtomicBool::new(false),
            next: Cell::new(ptr::null()),
        };
        {
            let mut list = self.waiters.lock();
            list.push(&waiter);
            self.word.fetch_or(WAITERS, Relaxed);
            if !writes {
                self.word.fetch_sub(READER, Relaxed);
            }
            if !planted!(RwSemNoRecheck) {
                self.grant(&mut list);
            }
        }
        while !waiter.granted.load(Acquire) {
            arch::park();
        }
        // Whoever granted may still be about to unpark us, inside the spinlock; let that be over before we go on.
        drop(self.waiters.lock());
    }

    #[cold]
    #[inline(never)]
    fn grant_waiters(&self) {
        self.grant(&mut self.waiters.lock());
    }

    /// Lets the first run of waiters in if it may go now. Under the spinlock.
    fn grant(&self, list: &mut Waiters) {
        let (nr, rest) = list.first_run();
        // SAFETY: listed waiters live.
        let Some(first) = (unsafe { list.first.as_ref() }) else {
            return;
        };
        let (blockers, added) = if first.writes {
            (WRITER | READERS, WRITER)
        } else {
            (WRITER, nr * READER)
        };
        let emptied = if rest.is_null() { WAITERS } else { 0 };
        let mut word = self.word.load(Relaxed);
        loop {
            if word & blockers != 0 {
                // Who is in, or a reader about to step back, will come here when it leaves.
                list.in_vain += 1;
                if list.in_vain == STEALS {
                    self.word.fetch_or(FAIR, Relaxed);
                }
                return;
            }
            match self.word.compare_exchange(
                word,
                (word & !FAIR) + added - emptied,
                Acquire,
                Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        list.in_vain = 0;
        let mut at = list.first;
        list.first = rest;
        if rest.is_null() {
            list.last = ptr::null();
        }
        while !ptr::eq(at, rest) {
            // SAFETY: it lives until it sees `granted` and has passed the spinlock we hold.
            let waiter = unsafe { &*at };
            at = waiter.next.get();
            waiter.granted.store(true, Release);
            arch::unpark(waiter.thread);
        }
    }
}

/// A sleeping reader-writer lock around a `T`.
pub struct RwSem<T: ?Sized> {
    raw: RawRwSem,
    class: &'static LockClass,
    data: UnsafeCell<T>,
}

// SAFETY: the lock owns its value.
unsafe impl<T: ?Sized + Send> Send for RwSem<T> {}
// SAFETY: INV-RWSEM-1: readers share the value, or one writer has it.
unsafe impl<T: ?Sized + Send + Sync> Sync for RwSem<T> {}

impl<T> RwSem<T> {
    const_unless_loom! {
        /// An unlocked lock counted under `class`.
        pub fn new(value: T, class: &'static LockClass) -> Self {
            RwSem { raw: RawRwSem::new(), class, data: UnsafeCell::new(value) }
        }
    }

    /// Takes the value out.
    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }
}

impl<T: ?Sized> RwSem<T> {
    /// Acquires for reading. Sleeps: thread context, preemption and IRQs on. A thread must not take it for reading
    /// twice: a writer that queued in between would make it wait for itself.
    #[inline]
    pub fn read(&self) -> RwSemReadGuard<'_, T> {
        let ((), since) = lockstat::acquire(
            || self.class,
            How::Sleep,
            || self.raw.try_read(),
            || self.raw.read(),
        );
        RwSemReadGuard {
            lock: self,
            since,
            _not_send: PhantomData,
        }
    }

    /// Acquires for writing. Sleeps: thread context, preemption and IRQs on.
    #[inline]
    pub fn write(&self) -> RwSemWriteGuard<'_, T> {
        let ((), since) = lockstat::acquire(
            || self.class,
            How::Sleep,
            || self.raw.try_write(),
            || self.raw.write(),
        );
        RwSemWriteGuard {
            lock: self,
            since,
            _not_send: PhantomData,
        }
    }

    /// Acquires for reading if that needs no wait. Does not sleep, but is released in thread context.
    #[inline]
    pub fn try_read(&self) -> Option<RwSemReadGuard<'_, T>> {
        self.raw.try_read()?;
        Some(RwSemReadGuard {
            lock: self,
            since: lockstat::try_acquired(|| self.class, How::Sleep),
            _not_send: PhantomData,
        })
    }

    /// Acquires for writing if that needs no wait. Does not sleep, but is released in thread context.
    #[inline]
    pub fn try_write(&self) -> Option<RwSemWriteGuard<'_, T>> {
        self.raw.try_write()?;
        Some(RwSemWriteGuard {
            lock: self,
            since: lockstat::try_acquired(|| self.class, How::Sleep),
            _not_send: PhantomData,
        })
    }

    /// The address of the value, for who holds the lock and has put the guard away.
    pub fn data_ptr(&self) -> core::ptr::NonNull<T> {
        // SAFETY: the address of a field.
        unsafe { core::ptr::NonNull::new_unchecked(self.data.get()) }
    }

    /// The value, without locking: the borrow proves that nobody holds it.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }

    /// How many threads sleep for it, at this moment; for reports and tests. Walks their list.
    pub fn nr_waiters(&self) -> usize {
        self.raw.waiters.lock().len()
    }

    /// Whether somebody holds it; a hint, for assertions.
    pub fn is_locked(&self) -> bool {
        self.raw.word.load(Relaxed) & (WRITER | READERS) != 0
    }

    /// The class it is counted under.
    pub fn class(&self) -> &'static LockClass {
        self.class
    }
}

/// Holds an [`RwSem`] for reading.
#[must_use]
pub struct RwSemReadGuard<'a, T: ?Sized> {
    lock: &'a RwSem<T>,
    since: HoldStart,
    _not_send: PhantomData<*mut ()>,
}

/// Holds an [`RwSem`] for writing.
#[must_use]
pub struct RwSemWriteGuard<'a, T: ?Sized> {
    lock: &'a RwSem<T>,
    since: HoldStart,
    _not_send: PhantomData<*mut ()>,
}

impl<'a, T: ?Sized> RwSemWriteGuard<'a, T> {
    /// Turns a write hold into a read hold without letting a writer in between. Does not sleep.
    pub fn downgrade(self) -> RwSemReadGuard<'a, T> {
        let this = core::mem::ManuallyDrop::new(self);
        let lock = this.lock;
        lockstat::released(|| lock.class, this.since);
        let since = lockstat::try_acquired(|| lock.class, How::Sleep);
        lock.raw.downgrade();
        RwSemReadGuard {
            lock,
            since,
            _not_send: PhantomData,
        }
    }
}

impl<T: ?Sized> Drop for RwSemReadGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        lockstat::released(|| self.lock.class, self.since);
        self.lock.raw.unlock_read();
    }
}

impl<T: ?Sized> Drop for RwSemWriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        lockstat::released(|| self.lock.class, self.since);
        self.lock.raw.unlock_write();
    }
}

impl<T: ?Sized> Deref for RwSemReadGuard<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock (INV-RWSEM-1).
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized> Deref for RwSemWriteGuard<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock (INV-RWSEM-1).
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized> DerefMut for RwSemWriteGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock for writing (INV-RWSEM-1).
        unsafe { &mut *self.lock.data.get() }
    }
}
