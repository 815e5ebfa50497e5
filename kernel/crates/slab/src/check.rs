//! Debug mode of a cache: red zones, poison, and who allocated and freed, in any build.
//!
//! Problem: a bug in the use of memory shows far from where it was made. Mechanism: the boot word `slab_debug=on` or
//! `slab_debug=CACHE,CACHE` names caches whose objects get a wider place:
//!
//! ```text
//! | red zone | value ........ | red zone | allocated by | freed by | free pointer |
//!   bb free                     bb free    Track          Track
//!   cc live                     cc live
//! ```
//!
//! A cache in this mode never opens its fast paths (its `cpu_offset` stays at the zeroes), so the mode costs nothing
//! where it is off, not even a test. Each object goes straight from its slab to the client and back. At a free the
//! page, the cache, the place in the page and the red zones are looked at; at an allocation the red zones and the
//! poison, 0x6b and a last 0xa5, which a free leaves in the value (not where a constructor or a reader under RCU
//! relies on it). What is wrong is reported with both tracks, and the memory is left alone: a wrong free does
//! nothing, a damaged object is kept out of use for ever.
//!
//! Lock order: `slab_check` is a leaf. Reports are made without it.
//!
//! INV-CHECK-1: under `slab_check`, the red zones of an object of a debugged cache are all FREE or all LIVE, unless
//! somebody wrote there.

use crate::cache::{CacheFlags, KmemCache};
use crate::page::Slab;
use crate::report::report;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::*};
use ksync::{LockClass, SpinLock, arch};
use page_alloc::PageKind;

const FREE: u8 = 0xbb;
const LIVE: u8 = 0xcc;
const POISON: u8 = 0x6b;
const POISON_END: u8 = 0xa5;
/// Return addresses that a track keeps.
const SITES: usize = 6;

/// Who did something to an object, and when.
#[repr(C)]
#[derive(Copy, Clone, Debug, Default)]
pub struct Track {
    /// Return addresses, nearest first; 0: none.
    pub sites: [usize; SITES],
    /// On which CPU.
    pub cpu: usize,
    /// At what time stamp; 0: never.
    pub cycles: u64,
}

impl Track {
    /// The caller, now.
    pub(crate) fn here() -> Track {
        let mut track = Track {
            sites: [0; SITES],
            cpu: arch::smp_processor_id(),
            cycles: arch::get_cycles().max(1),
        };
        arch::call_sites(&mut track.sites);
        track
    }
}

/// Bytes of both tracks.
pub(crate) const TRACKS: usize = 2 * size_of::<Track>();

/// Offset of the tracks behind an object's value: the red zone between is 8 to 15 bytes.
pub(crate) const fn trailer(size: usize) -> usize {
    (size + 8).next_multiple_of(8)
}

impl fmt::Display for Track {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cycles == 0 {
            return f.write_str("never");
        }
        write!(f, "on CPU {} at {}", self.cpu, self.cycles)?;
        for site in self.sites.iter().filter(|&&s| s != 0) {
            write!(f, "\n  bt: {site:#018x}")?;
        }
        Ok(())
    }
}

static CLASS: LockClass = LockClass::new_leaf("slab_check");
static CHECK: SpinLock<()> = SpinLock::new((), &CLASS);

/// The names of the debugged caches, separated by commas; "on": all.
static NAMES: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static NAMES_LEN: AtomicUsize = AtomicUsize::new(0);
static NR_QUARANTINED: AtomicUsize = AtomicUsize::new(0);

/// Chooses the caches that are debugged: "on" for all, or names separated by commas. A cache looks once, when it is
/// first used: call this at boot, before any is.
pub fn set_debug(names: &'static str) {
    NAMES_LEN.store(0, Release);
    NAMES.store(names.as_ptr().cast_mut(), Release);
    NAMES_LEN.store(names.len(), Release);
}

/// Objects that were found damaged and are kept out of use.
pub fn nr_quarantined() -> usize {
    NR_QUARANTINED.load(Relaxed)
}

/// Whether the boot line names this cache.
pub(crate) fn is_wanted(name: &str) -> bool {
    let len = NAMES_LEN.load(Acquire);
    if len == 0 {
        return false;
    }
    // SAFETY: `set_debug` stored the parts of one static str.
    let names = unsafe {
        core::str::from_utf8_unchecked(core::slice::from_raw_parts(NAMES.load(Acquire), len))
    };
    names == "on" || names.split(',').any(|n| n == name)
}

/// An object of a debugged cache, by its parts.
#[derive(Copy, Clone)]
struct Parts<'a> {
    cache: &'a KmemCache,
    object: *mut u8,
}

impl Parts<'_> {
    /// # Safety
    /// `object` is an object of `cache`, here and below; `slab_check` is held or the object is the caller's.
    unsafe fn red_zones_are(self, byte: u8) -> bool {
        let (start, size) = (
            self.cache.geometry().start as usize,
            self.cache.object_size(),
        );
        // SAFETY: both zones lie in the object's stride.
        unsafe {
            all(self.object.sub(start), start, byte)
                && all(self.object.add(size), trailer(size) - size, byte)
        }
    }

    /// # Safety
    /// As above.
    unsafe fn set_red_zones(self, byte: u8) {
        let (start, size) = (
            self.cache.geometry().start as usize,
            self.cache.object_size(),
        );
        // SAFETY: as above.
        unsafe {
            self.object.sub(start).write_bytes(byte, start);
            self.object
                .add(size)
                .write_bytes(byte, trailer(size) - size);
        }
    }

    fn is_poisoned(self) -> bool {
        self.cache.ctor().is_none() && !self.cache.flags().contains(CacheFlags::TYPESAFE_BY_RCU)
    }

    /// # Safety
    /// As above; the object is free.
    unsafe fn poison(self) {
        let size = self.cache.object_size();
        if self.is_poisoned() && size > 0 {
            // SAFETY: the value's bytes.
            unsafe {
                self.object.write_bytes(POISON, size);
                self.object.add(size - 1).write(POISON_END);
            }
        }
    }

    /// The first byte of the value that is not poison any more.
    ///
    /// # Safety
    /// As above.
    unsafe fn first_unpoisoned(self) -> Option<(usize, u8)> {
        let size = self.cache.object_size();
        let wanted = |i| if i == size - 1 { POISON_END } else { POISON };
        // SAFETY: the value's bytes.
        let byte = |i| unsafe { self.object.add(i).read() };
        let bad = self
            .is_poisoned()
            .then(|| (0..size).find(|&i| byte(i) != wanted(i)))?;
        bad.map(|i| (i, byte(i)))
    }

    /// # Safety
    /// As above.
    unsafe fn track(self, freed: bool) -> NonNull<Track> {
        let at = trailer(self.cache.object_size()) + freed as usize * size_of::<Track>();
        // SAFETY: inside the object's stride, 8-aligned as every part of it.
        unsafe { NonNull::new_unchecked(self.object.add(at).cast()) }
    }

    /// # Safety
    /// As above.
    unsafe fn note(self, freed: bool) {
        // SAFETY: as above.
        unsafe { self.track(freed).write(Track::here()) };
    }

    fn tracks(self) -> (Track, Track) {
        // SAFETY: as above: reading a track of an object is always possible.
        unsafe { (self.track(false).read(), self.track(true).read()) }
    }
}

/// Whether `n` bytes from `at` have one value.
///
/// # Safety
/// They are readable.
unsafe fn all(at: *const u8, n: usize, byte: u8) -> bool {
    // SAFETY: the caller's promise.
    (0..n).all(|i| unsafe { at.add(i).read() } == byte)
}

/// Prepares the objects of a new slab, before constructors run.
pub(crate) fn init_slab(cache: &KmemCache, slab: Slab) {
    for i in 0..slab.objects() {
        let parts = Parts {
            cache,
            object: slab.object(cache, i),
        };
        // SAFETY: a fresh slab is the caller's.
        unsafe {
            parts.set_red_zones(FREE);
            parts.poison();
            parts.track(false).write(Track::default());
            parts.track(true).write(Track::default());
        }
    }
}

/// Looks at an object that is about to be given to a client. False: it was damaged while free; the caller forgets it.
#[cold]
pub(crate) fn on_alloc(cache: &KmemCache, object: *mut u8) -> bool {
    let parts = Parts { cache, object };
    let damage = {
        let _held = CHECK.lock_irqsave();
        // SAFETY: an object of the cache, ours.
        unsafe {
            let red = !parts.red_zones_are(FREE);
            let bad = parts.first_unpoisoned();
            if !red && bad.is_none() {
                parts.set_red_zones(LIVE);
                parts.note(false);
                return true;
            }
            // Live, so that a late free of it is no double free.
            parts.set_red_zones(LIVE);
            (red, bad)
        }
    };
    NR_QUARANTINED.fetch_add(1, Relaxed);
    let (allocated, freed) = parts.tracks();
    match damage {
        (_, Some((at, byte))) => report(format_args!(
            "slab {}: use after free of {object:p}: byte {at} became {byte:#04x}\nallocated {allocated}\nfreed {freed}",
            cache.name()
        )),
        _ => report(format_args!(
            "slab {}: red zone of free object {object:p} overwritten\nallocated {allocated}\nfreed {freed}",
            cache.name()
        )),
    }
    false
}

/// What is wrong with a free.
enum Wrong {
    NotSlab,
    Cache(&'static str),
    Inside,
    Double,
    RedZone,
}

/// Looks at an object that a client gives back. False: the caller does nothing with it.
#[cold]
pub(crate) fn on_free(cache: &KmemCache, object: *mut u8) -> bool {
    let parts = Parts { cache, object };
    let Err(wrong) = check_free(parts) else {
        return true;
    };
    let here = Track::here();
    let name = cache.name();
    match wrong {
        Wrong::NotSlab => report(format_args!(
            "slab {name}: free of {object:p}, which is no slab memory\nfreed {here}"
        )),
        Wrong::Cache(other) => report(format_args!(
            "slab {name}: free of {object:p}, which is of cache {other}\nfreed {here}"
        )),
        Wrong::Inside => report(format_args!(
            "slab {name}: free of {object:p}, which points into an object\nfreed {here}"
        )),
        Wrong::Double => {
            let (allocated, freed) = parts.tracks();
            report(format_args!(
                "slab {name}: double free of {object:p}\nallocated {allocated}\nfreed {freed}\nfreed again {here}"
            ));
        }
        Wrong::RedZone => {
            NR_QUARANTINED.fetch_add(1, Relaxed);
            let (allocated, _) = parts.tracks();
            report(format_args!(
                "slab {name}: red zone of {object:p} overwritten\nallocated {allocated}\nfreed {here}"
            ));
        }
    }
    false
}

fn check_free(parts: Parts<'_>) -> Result<(), Wrong> {
    let Parts { cache, object } = parts;
    let slab = Slab::of(object);
    if slab.page().kind() != PageKind::Slab {
        return Err(Wrong::NotSlab);
    }
    if !core::ptr::eq(slab.cache(), cache) {
        // SAFETY: slab pages name a live cache.
        return Err(Wrong::Cache(unsafe { &*slab.cache() }.name()));
    }
    let g = cache.geometry();
    let offset = (object as usize).wrapping_sub(slab.page().virt() as usize + g.start as usize);
    let stride = g.stride as usize;
    if !offset.is_multiple_of(stride) || offset / stride >= slab.objects() {
        return Err(Wrong::Inside);
    }
    let _held = CHECK.lock_irqsave();
    // SAFETY: an object of this cache; under the lock.
    unsafe {
        if parts.red_zones_are(FREE) {
            return Err(Wrong::Double);
        }
        if !parts.red_zones_are(LIVE) {
            return Err(Wrong::RedZone);
        }
        parts.set_red_zones(FREE);
        parts.note(true);
        parts.poison();
    }
    Ok(())
}

/// Who allocated a live object of a debugged cache.
pub(crate) fn allocated_by(cache: &KmemCache, object: *mut u8) -> Option<Track> {
    cache
        .is_debugged()
        .then(|| Parts { cache, object }.tracks().0)
}
