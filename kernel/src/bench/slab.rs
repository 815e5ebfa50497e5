//! `bench=slab`: objects allocated and freed, by one CPU, across CPUs, across nodes, with a constructor that costs.
//!
//! `slab_pattern` says who frees what. `slab_cached` is how many objects a worker holds at its peak: with it and the size
//! fixed, two designs cache the same number of objects per CPU, and what differs is the design.
//!
//! ```text
//! same         allocate n, free n, on one CPU
//! cross-cpu    worker i allocates, worker i ^ 1 frees: neighbours in number
//! cross-node   worker i frees what worker i + 1 allocated: the next one is on another node (see `pin`)
//! ctor         as same, from a cache whose constructor writes the whole object; slabs come and go
//! ```

use super::Benchmark;
use crate::errno::Errno;
use crate::params;
use ::slab::{AllocError, CacheFlags, CtorError, Gfp, KmemCache};
use alloc::string::String;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, Ordering::*};
use kbench::record::{Record, Setting};

kparam::choices! {
    /// Who frees what in `bench=slab`.
    pub enum SlabPattern {
        /// The worker that allocated it.
        Same = "same",
        /// The worker next door.
        CrossCpu = "cross-cpu",
        /// A worker of another node.
        CrossNode = "cross-node",
        /// The worker that allocated it, after an expensive constructor.
        Ctor = "ctor",
    }
}

/// Bytes of an object.
const SIZE: usize = 192;

fn fill(object: NonNull<u8>) -> Result<(), CtorError> {
    // SAFETY: a fresh object of SIZE bytes.
    unsafe { object.write_bytes(0x11, SIZE) };
    Ok(())
}

fn empty(_: NonNull<u8>) {}

static PLAIN: KmemCache = KmemCache::new_static("bench", SIZE, 64, CacheFlags::empty());
static BUILT: KmemCache =
    KmemCache::new_static_ctor("bench_ctor", SIZE, 64, CacheFlags::empty(), Some(fill), Some(empty));

/// Where a worker leaves an object for another.
#[repr(align(128))]
struct Mailbox(AtomicPtr<u8>);

/// The benchmark.
pub struct Slab {
    pattern: SlabPattern,
    cached: usize,
    cache: &'static KmemCache,
    mail: Vec<Mailbox>,
}

/// A worker and the objects it holds.
pub struct Worker {
    index: usize,
    held: Vec<*mut u8>,
}

impl Slab {
    fn take(&self) -> Result<NonNull<u8>, AllocError> {
        self.cache.alloc(Gfp::empty())
    }

    /// Frees what lies in a mailbox, if anything.
    fn empty(&self, mailbox: &Mailbox) {
        if let Some(object) = NonNull::new(mailbox.0.swap(core::ptr::null_mut(), AcqRel)) {
            // SAFETY: whoever takes it out of the mailbox owns it.
            unsafe { self.cache.free(object) };
        }
    }

    /// Leaves an object in this worker's mailbox and frees what another worker left in its own.
    fn exchange(&self, worker: &Worker) -> Result<(), Errno> {
        let nr = self.mail.len();
        let from = if self.pattern == SlabPattern::CrossCpu { worker.index ^ 1 } else { worker.index + 1 };
        let object = self.take().map_err(|_| Errno::ENOMEM)?;
        if let Some(old) = NonNull::new(self.mail[worker.index].0.swap(object.as_ptr(), AcqRel)) {
            // Not fetched yet: ours again. SAFETY: whoever takes it out of the mailbox owns it.
            unsafe { self.cache.free(old) };
        }
        self.empty(&self.mail[from % nr]);
        Ok(())
    }

    /// Allocates and frees `cached` objects one by one.
    #[inline]
    fn round(&self, worker: &mut Worker) -> Result<(), Errno> {
        for slot in &mut worker.held {
            *slot = self.take().map_err(|_| Errno::ENOMEM)?.as_ptr();
        }
        for &object in &worker.held {
            // SAFETY: allocated above.
            unsafe { self.cache.free(NonNull::new_unchecked(object)) };
        }
        Ok(())
    }
}

impl Benchmark for Slab {
    type Worker = Worker;
    const OPS: u64 = 200_000;
    const WINDOW: Option<u64> = Some(20_000_000);

    fn new(workers: usize) -> Self {
        let params = params::get();
        Slab {
            pattern: params.slab_pattern,
            cached: params.slab_cached.clamp(1, 4096) as usize,
            cache: if params.slab_pattern == SlabPattern::Ctor { &BUILT } else { &PLAIN },
            mail: (0..workers).map(|_| Mailbox(AtomicPtr::new(core::ptr::null_mut()))).collect(),
        }
    }

    fn worker(&self, index: usize) -> Worker {
        Worker { index, held: alloc::vec![core::ptr::null_mut(); self.cached] }
    }

    fn operation(&self, worker: &mut Worker) -> Result<(), Errno> {
        match self.pattern {
            SlabPattern::Same | SlabPattern::Ctor => self.round(worker),
            SlabPattern::CrossCpu | SlabPattern::CrossNode => {
                (0..self.cached).try_for_each(|_| self.exchange(worker))
            }
        }
    }

    fn batch(&self) -> u64 {
        self.cached as u64
    }

    fn verify(&self) -> Result<(), String> {
        self.mail.iter().for_each(|mailbox| self.empty(mailbox));
        match self.cache.active() {
            0 => Ok(()),
            n => Err(alloc::format!("{n} objects were lost")),
        }
    }

    fn describe(&self, record: &mut Record) {
        record.params.push(Setting::new("pattern", self.pattern.name()));
        record.params.push(Setting::new("cached", alloc::format!("{}", self.cached)));
    }
}
