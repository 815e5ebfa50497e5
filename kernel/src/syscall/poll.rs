//! poll, ppoll, select, pselect6: waiting for several files at once; eventfd.
//!
//! Mechanism: an entry on each queue of each file, all queued before the first look, so that no wake-up between look and
//! sleep is lost (`ksync::wait`). A file that has no queue (the console) is looked at again every few milliseconds.
//! Queues of pipes wake one waiter at a time; who leaves without use for a wake-up that chose him passes it on.
//!
//! Invariants:
//! INV-POLL-1: `entries` is allocated once, never grows beyond that, and is dropped before the files whose queues it is
//!   on: so an entry does not move while it is linked (INV-WAIT-2).

use super::file::get;
use super::time::read_timespec;
use super::{Args, SysResult};
use crate::arch::uaccess::{Plain, get_user, put_user};
use crate::arch::{PtRegs, clock};
use crate::errno::Errno;
use crate::sched::{self, current_ref};
use alloc::vec::Vec;
use core::pin::Pin;
use core::sync::atomic::{AtomicU64, Ordering};
use ksync::{WaitEntry, WaitQueue};
use slab::KArc;
use vfs::{AnonFile, BufIn, BufOut, File, OpenFlags, PollMask, VfsError};

/// How often files without a queue are looked at.
const LOOK_AGAIN_NS: u64 = 10_000_000;
/// Files of one call: Linux's limit is that of open files.
const NR_MAX: usize = vfs::DEFAULT_NOFILE as usize * 4;

/// `struct pollfd`.
#[repr(C)]
#[derive(Clone, Copy)]
struct PollFd {
    fd: i32,
    events: u16,
    revents: u16,
}
// SAFETY: repr(C) integers without padding.
unsafe impl Plain for PollFd {}

/// One file and what is wanted of it.
struct Polled {
    file: Option<KArc<File>>,
    wanted: u16,
    found: u16,
}

const ALWAYS_REPORTED: u16 = (PollMask::ERR.bits() | PollMask::HUP.bits()) as u16;

impl Polled {
    /// EBADF is an event, not an error, of poll.
    fn new(fd: i32, events: u16) -> Polled {
        match fd {
            ..0 => Polled {
                file: None,
                wanted: 0,
                found: 0,
            },
            _ => match get(fd) {
                Ok(file) => Polled {
                    file: Some(file),
                    wanted: events | ALWAYS_REPORTED,
                    found: 0,
                },
                Err(_) => Polled {
                    file: None,
                    wanted: 0,
                    found: PollMask::NVAL.bits() as u16,
                },
            },
        }
    }

    fn look(&mut self) -> bool {
        if let Some(file) = &self.file {
            self.found = file.poll().bits() as u16 & self.wanted;
        }
        self.found != 0
    }
}

/// Looks at all files; how many have something to report.
fn look(polled: &mut [Polled]) -> usize {
    polled.iter_mut().map(|p| p.look() as usize).sum()
}

/// Waits until a file has something to report or the clock reads `deadline`. ENOMEM, ERESTARTNOHAND. May sleep.
fn wait(polled: &mut [Polled], deadline: Option<u64>) -> Result<usize, Errno> {
    let ready = look(polled);
    if ready > 0 || deadline.is_some_and(|d| clock::now_ns() >= d) {
        return Ok(ready);
    }
    let mut files = Vec::new();
    files
        .try_reserve_exact(polled.len())
        .map_err(|_| Errno::ENOMEM)?;
    files.extend(polled.iter().filter_map(|p| p.file.clone()));
    let mut queues: Vec<&WaitQueue> = Vec::new();
    queues
        .try_reserve_exact(2 * files.len())
        .map_err(|_| Errno::ENOMEM)?;
    let mut blind = false;
    for file in &files {
        let before = queues.len();
        queues.extend(file.poll_queues().into_iter().flatten());
        blind |= queues.len() == before && !file.poll().contains(PollMask::ALWAYS);
    }
    let mut entries: Vec<WaitEntry<'_>> = Vec::new();
    entries
        .try_reserve_exact(queues.len())
        .map_err(|_| Errno::ENOMEM)?;
    entries.extend(queues.iter().map(|_| WaitEntry::new()));
    let result = loop {
        for (entry, &queue) in entries.iter().zip(&queues) {
            entry.was_woken();
            // SAFETY: INV-POLL-1.
            unsafe { Pin::new_unchecked(entry) }.prepare(queue);
        }
        let ready = look(polled);
        let now = clock::now_ns();
        if ready > 0 || deadline.is_some_and(|d| now >= d) {
            break Ok(ready);
        }
        if ksync::arch::signal_pending() {
            break Err(Errno::ERESTARTNOHAND);
        }
        let again = blind.then(|| now + LOOK_AGAIN_NS);
        sched::park_until(again.into_iter().chain(deadline).min());
    };
    for (entry, queue) in entries.iter().zip(&queues) {
        if entry.finish() {
            queue.wake_one();
        }
    }
    result
}

fn do_poll(at: usize, count: usize, deadline: Option<u64>) -> SysResult {
    if count > NR_MAX {
        return Err(Errno::EINVAL);
    }
    let mut polled = Vec::new();
    polled.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    for i in 0..count {
        let p: PollFd = get_user(at + i * 8)?;
        polled.push(Polled::new(p.fd, p.events));
    }
    let ready = wait(&mut polled, deadline)?;
    for (i, p) in polled.iter().enumerate() {
        put_user(at + i * 8 + 6, &p.found)?;
    }
    Ok(ready)
}

fn deadline_in(ns: u64) -> u64 {
    clock::now_ns().saturating_add(ns)
}

pub fn poll(regs: &mut PtRegs) -> SysResult {
    let timeout_ms = regs.arg::<2>() as i32;
    let deadline = (timeout_ms >= 0).then(|| deadline_in(timeout_ms as u64 * 1_000_000));
    do_poll(regs.arg::<0>(), regs.arg::<1>(), deadline)
}

/// Runs `f` with another signal mask, as sigsuspend does: a handler that interrupts the wait runs under that mask, and
/// the old one comes back after it.
fn with_mask(mask_at: usize, size: usize, f: impl FnOnce() -> SysResult) -> SysResult {
    if mask_at == 0 {
        return f();
    }
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    let mask: u64 = get_user(mask_at)?;
    let task = current_ref();
    let old = task.blocked.load(Ordering::Relaxed);
    task::signal::set_blocked(task, mask);
    let result = f();
    if result == Err(Errno::ERESTARTNOHAND) {
        task.saved_blocked.store(old, Ordering::Relaxed);
        task.set_flag(task::task::flags::RESTORE_SIGMASK);
    } else {
        task::signal::set_blocked(task, old);
    }
    result
}

pub fn ppoll(regs: &mut PtRegs) -> SysResult {
    let deadline = match regs.arg::<2>() {
        0 => None,
        at => Some(deadline_in(read_timespec(at)?)),
    };
    let (at, count) = (regs.arg::<0>(), regs.arg::<1>());
    with_mask(regs.arg::<3>(), regs.arg::<4>(), || {
        do_poll(at, count, deadline)
    })
}

/// The three sets of select, and what each means.
const SETS: [u16; 3] = [
    (PollMask::IN.bits() | PollMask::RDNORM.bits() | PollMask::HUP.bits() | PollMask::ERR.bits())
        as u16,
    (PollMask::OUT.bits() | PollMask::WRNORM.bits() | PollMask::ERR.bits()) as u16,
    PollMask::PRI.bits() as u16,
];

fn do_select(nr: usize, sets_at: [usize; 3], deadline: Option<u64>) -> SysResult {
    if nr as i32 > NR_MAX as i32 || (nr as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    let mut polled = Vec::new();
    polled.try_reserve_exact(nr).map_err(|_| Errno::ENOMEM)?;
    for fd in 0..nr {
        let mut wanted = 0;
        for (at, mask) in sets_at.into_iter().zip(SETS) {
            if at != 0 && get_user::<u8>(at + fd / 8)? >> (fd % 8) & 1 != 0 {
                wanted |= mask;
            }
        }
        if wanted == 0 {
            polled.push(Polled::new(-1, 0));
            continue;
        }
        get(fd as i32)?; // unlike poll, EBADF
        polled.push(Polled::new(fd as i32, wanted));
    }
    wait(&mut polled, deadline)?;
    let mut ready = 0;
    for (at, mask) in sets_at.into_iter().zip(SETS) {
        if at == 0 {
            continue;
        }
        for byte in 0..nr.div_ceil(64) * 8 {
            let old: u8 = get_user(at + byte)?;
            let mut new = 0;
            for bit in 0..8 {
                let hit = polled
                    .get(byte * 8 + bit)
                    .is_some_and(|p| p.found & mask != 0);
                new |= (hit as u8) << bit & old;
            }
            ready += new.count_ones() as usize;
            put_user(at + byte, &new)?;
        }
    }
    Ok(ready)
}

pub fn select(regs: &mut PtRegs) -> SysResult {
    let deadline = match regs.arg::<4>() {
        0 => None,
        at => {
            let [sec, usec]: [i64; 2] = get_user(at)?;
            if sec < 0 || usec < 0 {
                return Err(Errno::EINVAL);
            }
            let ns = (sec as u64).saturating_mul(1_000_000_000);
            Some(deadline_in(ns.saturating_add(usec as u64 * 1000)))
        }
    };
    let sets = [regs.arg::<1>(), regs.arg::<2>(), regs.arg::<3>()];
    do_select(regs.arg::<0>(), sets, deadline)
}

pub fn pselect6(regs: &mut PtRegs) -> SysResult {
    let deadline = match regs.arg::<4>() {
        0 => None,
        at => Some(deadline_in(read_timespec(at)?)),
    };
    let [mask_at, size] = match regs.arg::<5>() {
        0 => [0, 0],
        at => get_user::<[usize; 2]>(at)?,
    };
    let sets = [regs.arg::<1>(), regs.arg::<2>(), regs.arg::<3>()];
    let nr = regs.arg::<0>();
    with_mask(mask_at, size, || do_select(nr, sets, deadline))
}

// ----------------------------------------------------------------------------------------- eventfd

/// A counter that can be waited for.
struct EventFd {
    count: AtomicU64,
    semaphore: bool,
    changed: WaitQueue,
}
slab::object!(EventFd, "eventfd_ctx", links = 0);

const COUNT_MAX: u64 = u64::MAX - 1;

impl EventFd {
    fn take(&self) -> Option<u64> {
        let rest = |n: u64| match n {
            0 => None,
            n if self.semaphore => Some(n - 1),
            _ => Some(0),
        };
        let taken = self
            .count
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, rest);
        taken.ok().map(|n| if self.semaphore { 1 } else { n })
    }

    fn add(&self, more: u64) -> bool {
        let sum = |n: u64| n.checked_add(more).filter(|&n| n <= COUNT_MAX);
        self.count
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, sum)
            .is_ok()
    }
}

impl AnonFile for EventFd {
    const NAME: &'static str = "[eventfd]";

    fn read(&self, _: &mut u64, buf: &mut dyn BufOut, nonblock: bool) -> Result<usize, VfsError> {
        if buf.remaining() < 8 {
            return Err(VfsError::EINVAL);
        }
        let mut taken = self.take();
        if taken.is_none() && nonblock {
            return Err(VfsError::EAGAIN);
        }
        if taken.is_none() {
            self.changed.wait_until_interruptible(|| {
                taken = self.take();
                taken.is_some()
            })?;
        }
        self.changed.wake_all();
        buf.put(&taken.unwrap_or(0).to_le_bytes())?;
        Ok(8)
    }

    fn write(&self, _: &mut u64, buf: &mut dyn BufIn, nonblock: bool) -> Result<usize, VfsError> {
        let mut bytes = [0; 8];
        if buf.remaining() < 8 {
            return Err(VfsError::EINVAL);
        }
        buf.get(&mut bytes)?;
        let more = u64::from_le_bytes(bytes);
        if more == u64::MAX {
            return Err(VfsError::EINVAL);
        }
        if !self.add(more) {
            if nonblock {
                return Err(VfsError::EAGAIN);
            }
            self.changed.wait_until_interruptible(|| self.add(more))?;
        }
        self.changed.wake_all();
        Ok(8)
    }

    fn poll(&self) -> PollMask {
        let count = self.count.load(Ordering::Acquire);
        let mut mask = PollMask::empty();
        if count > 0 {
            mask |= PollMask::IN | PollMask::RDNORM;
        }
        if count < COUNT_MAX {
            mask |= PollMask::OUT | PollMask::WRNORM;
        }
        mask
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.changed)
    }
}

fn do_eventfd(count: usize, flags: usize) -> SysResult {
    const EFD_SEMAPHORE: usize = 1;
    let open = OpenFlags::NONBLOCK | OpenFlags::CLOEXEC;
    if flags & !(EFD_SEMAPHORE | open.bits() as usize) != 0 {
        return Err(Errno::EINVAL);
    }
    let open = OpenFlags::from_bits_retain(flags as u32) & open;
    let files = super::file::files()?;
    let slot = files.reserve(open.contains(OpenFlags::CLOEXEC))?;
    let event = KArc::new(EventFd {
        count: AtomicU64::new(count as u32 as u64),
        semaphore: flags & EFD_SEMAPHORE != 0,
        changed: WaitQueue::new(),
    })?;
    Ok(slot.install(File::new_anon(event, open | OpenFlags::RDWR)?) as usize)
}

pub fn eventfd(regs: &mut PtRegs) -> SysResult {
    do_eventfd(regs.arg::<0>(), 0)
}

pub fn eventfd2(regs: &mut PtRegs) -> SysResult {
    do_eventfd(regs.arg::<0>(), regs.arg::<1>())
}
