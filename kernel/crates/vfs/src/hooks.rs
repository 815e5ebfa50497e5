//! What the floors above lend to this one: the console, random bytes, unmapping, the clock.
//!
//! Problem: a console write ends in a UART driver, a truncate must take pages out of page tables,
//! and both live where this crate may not look. Mechanism: one table of functions, installed once
//! at boot; until then (and in tests) a table that does nothing stands in. The clock is not a call
//! but a number that the timer tick stores, since every write stamps an inode.

use crate::VfsError;
use crate::poll::PollMask;
use crate::stat::Timespec;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use rmap::AddressSpace;
use slab::KArc;

/// The machine's console, as a terminal sees it (line discipline included).
pub trait ConsoleOps: Sync {
    /// The terminal is opened: as /dev/tty, which needs it to be the process's own (ENXIO), or by a name that makes it so
    /// for the leader of a session without one.
    fn open(&self, name: ConsoleName) -> Result<(), VfsError> {
        let _ = name;
        Ok(())
    }
    /// Writes all of `bytes`. May sleep.
    fn write(&self, bytes: &[u8]) -> Result<(), VfsError>;
    /// Reads what a terminal's read gives: a line, or what is there; 0 is end of file. Waits
    /// unless `nonblock` (EAGAIN); ERESTARTSYS on a signal.
    fn read(&self, buf: &mut [u8], nonblock: bool) -> Result<usize, VfsError>;
    /// What would not block now.
    fn poll(&self) -> PollMask;
    /// Woken when that changes.
    fn wait_queue(&self) -> Option<&ksync::WaitQueue> {
        None
    }
}

/// By which of its names the console is opened.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum ConsoleName {
    /// /dev/tty: the process's own terminal.
    Own,
    /// /dev/console, or with O_NOCTTY.
    Plain,
    /// /dev/ttyS0.
    Serial,
}

/// What the kernel lends. Installed once by [`install`].
pub struct Hooks {
    /// Removes from every page table the mappings of pages `first..=last` (page offsets) of the file.
    /// With `even_cow` private copies go too (truncate). Called with the inode's lock held, no
    /// spinlock; may sleep.
    pub unmap_mapping: fn(mapping: &KArc<AddressSpace>, first: u64, last: u64, even_cow: bool),
    /// Gives back memory after an allocation of somebody who may sleep has failed; whether it is worth trying again.
    /// Called with inodes' locks held, no spinlock; may sleep.
    pub reclaim: fn() -> bool,
    /// Behind /dev/console and /dev/tty.
    pub console: &'static dyn ConsoleOps,
    /// Fills the buffer with random bytes. Any context.
    pub fill_random: fn(&mut [u8]),
}

struct NoConsole;

impl ConsoleOps for NoConsole {
    fn write(&self, _bytes: &[u8]) -> Result<(), VfsError> {
        Ok(())
    }
    fn read(&self, _buf: &mut [u8], _nonblock: bool) -> Result<usize, VfsError> {
        Ok(0)
    }
    fn poll(&self) -> PollMask {
        PollMask::IN | PollMask::OUT
    }
}

/// The stand-in's random numbers: a counter through splitmix64. Not secret, and not for programs.
fn counter_random(buf: &mut [u8]) {
    static STATE: AtomicU64 = AtomicU64::new(1);
    for chunk in buf.chunks_mut(8) {
        let mut z = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
    }
}

static STAND_IN: Hooks = Hooks {
    unmap_mapping: |_, _, _, _| {},
    reclaim: || false,
    console: &NoConsole,
    fill_random: counter_random,
};

/// Null until [`install`]: the stand-in.
static HOOKS: AtomicPtr<Hooks> = AtomicPtr::new(core::ptr::null_mut());
/// Nanoseconds since 1970 at the last tick.
static NOW_NS: AtomicU64 = AtomicU64::new(0);

/// Installs the kernel's table. Once, at boot, before the first program runs.
pub fn install(hooks: &'static Hooks) {
    HOOKS.store((hooks as *const Hooks).cast_mut(), Ordering::Release);
}

#[inline]
pub(crate) fn hooks() -> &'static Hooks {
    // SAFETY: null, or the address of a `&'static Hooks` given to `install`.
    unsafe { HOOKS.load(Ordering::Acquire).as_ref() }.unwrap_or(&STAND_IN)
}

/// Sets the coarse clock: nanoseconds since 1970. The timer tick calls it; any context.
#[inline]
pub fn set_now(ns: u64) {
    NOW_NS.store(ns, Ordering::Relaxed);
}

/// The coarse clock.
#[inline(always)]
pub fn now() -> Timespec {
    Timespec {
        ns: NOW_NS.load(Ordering::Relaxed),
    }
}
