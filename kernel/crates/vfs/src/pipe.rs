//! Pipes and FIFOs: a ring of bytes between processes.
//!
//! Problem: a pipe is the yardstick of every scheduler (two processes that hand one byte back and
//! forth), so a transfer must be short; and it is a small protocol with hard rules: writes of up
//! to PIPE_BUF bytes are atomic, readers without writers see the end, writers without readers fail.
//!
//! Mechanism: a ring of 16 pages, each allocated when its first byte is written and given back
//! when its last is read, but for one that is kept in hand. When the ring runs empty it starts
//! again at its first page, so small messages never leave it.
//!
//! ```text
//!   pages    [ 0 ][ 1 ][ 2 ] ... [15]        CAPACITY = 64 KiB
//!                tail -> ~~~~~~ -> head      byte counters, modulo CAPACITY in the ring
//! ```
//!
//! Waking: a writer wakes a reader when the ring was empty before it, a reader wakes a writer when
//! fewer than PIPE_BUF bytes were free before it and no longer are. One waiter is woken, and a
//! waiter that leaves something to do for the next wakes that one. The last close wakes all. Who
//! waits on a queue for another reason (poll) must pass a wake-up on when it leaves.
//!
//! Lock order: `ring` (sleeps; user memory may fault under it), then the wait queues' own locks.
//! A FIFO's hub spins and comes before nothing.
//!
//! Invariants:
//! INV-PIPE-1: `len` is head - tail, at most CAPACITY; it changes under `ring` only.
//! INV-PIPE-2: the pages that hold bytes of [tail, head) are allocated.
//! INV-PIPE-3: a write of at most PIPE_BUF bytes moves `head` once, or not at all.
//! INV-PIPE-4: `readers` and `writers` are the open files of each direction.

use crate::VfsError;
use crate::hooks::now;
use crate::inode::next_ino;
use crate::poll::PollMask;
use crate::regular::copy_to_page;
use crate::uio::{BufIn, BufOut};
use core::slice;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use ksync::{LockClass, Mutex, MutexGuard, PAGE_SIZE, SpinLock, WaitQueue};
use page_alloc::{Gfp, PageRef, alloc_page, free_pages};
use slab::KArc;

/// Writes of at most this many bytes are atomic.
pub const PIPE_BUF: usize = if cfg!(test) { 512 } else { 4096 };
/// Pages of the ring. Few under test, so that pipes fill up.
const NR_PAGES: usize = if cfg!(test) { 2 } else { 16 };
/// Bytes a pipe holds.
pub const PIPE_CAPACITY: usize = NR_PAGES * PAGE_SIZE;
const CAPACITY: u32 = PIPE_CAPACITY as u32;
const _: () = assert!(PIPE_CAPACITY.is_power_of_two() && PIPE_BUF <= PIPE_CAPACITY);

static RING_CLASS: LockClass = LockClass::new("pipe_ring");
static HUB_CLASS: LockClass = LockClass::new("fifo_hub");

/// A pipe. Its two ends are files.
pub struct Pipe {
    ring: Mutex<Ring>,
    /// INV-PIPE-1; read without the lock by those who wait.
    len: AtomicU32,
    /// INV-PIPE-4.
    readers: AtomicU32,
    writers: AtomicU32,
    /// How often each direction was opened: what a FIFO's open waits for.
    reader_opens: AtomicU32,
    writer_opens: AtomicU32,
    read_wait: WaitQueue,
    write_wait: WaitQueue,
    /// Inode number, and the time of creation, of a pipe without a name.
    pub(crate) ino: u64,
    pub(crate) btime: u64,
    pub(crate) mtime: AtomicU64,
}
slab::object!(Pipe, "pipe_inode", links = 0);

/// INV-PIPE-2.
struct Ring {
    head: u32,
    tail: u32,
    pages: [Option<PageRef>; NR_PAGES],
    spare: Option<PageRef>,
}

/// Which ends a file is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ends {
    pub read: bool,
    pub write: bool,
}

impl Pipe {
    /// An empty pipe with this many files open at each end. ENOMEM.
    pub(crate) fn new(nr_each: u32) -> Result<KArc<Self>, VfsError> {
        let room = KArc::<Pipe>::try_uninit()?;
        let now = now().ns;
        let ring = Ring {
            head: 0,
            tail: 0,
            pages: [None; NR_PAGES],
            spare: None,
        };
        Ok(room.write(Pipe {
            ring: Mutex::new(ring, &RING_CLASS),
            len: AtomicU32::new(0),
            readers: AtomicU32::new(nr_each),
            writers: AtomicU32::new(nr_each),
            reader_opens: AtomicU32::new(nr_each),
            writer_opens: AtomicU32::new(nr_each),
            read_wait: WaitQueue::new(),
            write_wait: WaitQueue::new(),
            ino: next_ino(),
            btime: now,
            mtime: AtomicU64::new(now),
        }))
    }

    /// Bytes in the pipe (FIONREAD).
    #[inline]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Acquire) as usize
    }

    fn free(&self) -> usize {
        PIPE_CAPACITY - self.len()
    }

    fn has_readers(&self) -> bool {
        self.readers.load(Ordering::Acquire) != 0
    }

    fn has_writers(&self) -> bool {
        self.writers.load(Ordering::Acquire) != 0
    }

    /// Takes what is there, waiting for the first byte unless `nonblock`. 0: no writer is left.
    /// EAGAIN, EFAULT, ERESTARTSYS. May sleep.
    pub(crate) fn read(&self, buf: &mut impl BufOut, nonblock: bool) -> Result<usize, VfsError> {
        if buf.remaining() == 0 {
            return Ok(0);
        }
        let mut waited = false;
        let result = loop {
            let mut ring = self.ring.lock();
            let before = ring.len();
            if before != 0 {
                let result = ring.copy_out(buf);
                let after = ring.len();
                self.len.store(after, Ordering::Release);
                drop(ring);
                if is_full(before) && !is_full(after) {
                    self.write_wait.wake_one();
                }
                break result;
            }
            // With the ring locked and empty, no writer means that none will write again.
            if !self.has_writers() {
                break Ok(0);
            }
            drop(ring);
            if nonblock {
                break Err(VfsError::EAGAIN);
            }
            waited = true;
            let ready = || self.len() != 0 || !self.has_writers();
            if let Err(e) = self.read_wait.wait_until_interruptible(ready) {
                break Err(e.into());
            }
        };
        if waited && self.len() != 0 {
            self.read_wait.wake_one();
        }
        result
    }

    /// Puts all of `buf` in, waiting for room unless `nonblock`. EPIPE: no reader is left (the
    /// caller raises SIGPIPE). After the first byte an error gives the count so far; up to
    /// PIPE_BUF bytes go in whole or not at all. EAGAIN, EFAULT, ENOMEM, ERESTARTSYS. May sleep.
    pub(crate) fn write(&self, buf: &mut impl BufIn, nonblock: bool) -> Result<usize, VfsError> {
        let total = buf.remaining();
        if total == 0 {
            return Ok(0);
        }
        let need = if total <= PIPE_BUF { total } else { 1 };
        let mut waited = false;
        let failed = loop {
            let ring = self.ring.lock();
            if !self.has_readers() {
                break Some(VfsError::EPIPE);
            }
            if PIPE_CAPACITY - ring.len() as usize >= need {
                match self.write_some(ring, buf, total <= PIPE_BUF) {
                    Err(e) => break Some(e),
                    Ok(()) if buf.remaining() == 0 => break None,
                    Ok(()) => continue,
                }
            }
            drop(ring);
            if nonblock {
                break Some(VfsError::EAGAIN);
            }
            waited = true;
            let ready = || self.free() >= need || !self.has_readers();
            if let Err(e) = self.write_wait.wait_until_interruptible(ready) {
                break Some(e.into());
            }
        };
        if waited && self.free() >= PIPE_BUF {
            self.write_wait.wake_one();
        }
        match failed {
            // An atomic write that failed may have taken bytes from `buf`, but moved nothing.
            Some(e) if total <= PIPE_BUF || buf.remaining() == total => Err(e),
            _ => Ok(total - buf.remaining()),
        }
    }

    /// Copies what fits, and wakes a reader if the ring was empty.
    fn write_some(
        &self,
        mut ring: MutexGuard<'_, Ring>,
        buf: &mut impl BufIn,
        whole: bool,
    ) -> Result<(), VfsError> {
        let before = ring.len();
        let result = ring.copy_in(buf, whole);
        let after = ring.len();
        self.len.store(after, Ordering::Release);
        drop(ring);
        if before == 0 && after != 0 {
            self.read_wait.wake_one();
        }
        if after != before {
            self.mtime.store(now().ns, Ordering::Relaxed);
        }
        result
    }

    /// What would not block at these ends.
    pub(crate) fn poll(&self, ends: Ends) -> PollMask {
        let mut mask = PollMask::empty();
        if ends.read {
            if self.len() != 0 {
                mask |= PollMask::IN | PollMask::RDNORM;
            }
            if !self.has_writers() && self.writer_opens.load(Ordering::Relaxed) != 0 {
                mask |= PollMask::HUP;
            }
        }
        if ends.write {
            if self.free() >= PIPE_BUF {
                mask |= PollMask::OUT | PollMask::WRNORM;
            }
            if !self.has_readers() {
                mask |= PollMask::ERR;
            }
        }
        mask
    }

    /// Where `poll` waits for reading and for writing.
    pub(crate) fn poll_queues(&self, ends: Ends) -> [Option<&WaitQueue>; 2] {
        [
            ends.read.then_some(&self.read_wait),
            ends.write.then_some(&self.write_wait),
        ]
    }

    /// One file more at these ends.
    pub(crate) fn open(&self, ends: Ends) {
        if ends.read {
            self.reader_opens.fetch_add(1, Ordering::Relaxed);
            if self.readers.fetch_add(1, Ordering::AcqRel) == 0 {
                self.write_wait.wake_all();
            }
        }
        if ends.write {
            self.writer_opens.fetch_add(1, Ordering::Relaxed);
            if self.writers.fetch_add(1, Ordering::AcqRel) == 0 {
                self.read_wait.wake_all();
            }
        }
    }

    /// One file fewer at these ends.
    pub(crate) fn release(&self, ends: Ends) {
        if ends.read && self.readers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.write_wait.wake_all();
        }
        if ends.write && self.writers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.read_wait.wake_all();
        }
    }
}

/// Too little room for an atomic write: writers may be waiting.
fn is_full(len: u32) -> bool {
    CAPACITY - len < PIPE_BUF as u32
}

impl Ring {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.head.wrapping_sub(self.tail)
    }

    /// Page and offset of a byte counter.
    #[inline(always)]
    fn place(at: u32) -> (usize, usize) {
        let at = at as usize % PIPE_CAPACITY;
        (at / PAGE_SIZE, at % PAGE_SIZE)
    }

    /// The page for byte counter `at`, allocated if need be.
    fn page_at(&mut self, index: usize) -> Result<PageRef, VfsError> {
        if let Some(page) = self.pages[index] {
            return Ok(page);
        }
        let page = match self.spare.take() {
            Some(page) => page,
            None => alloc_page(Gfp::empty())?,
        };
        self.pages[index] = Some(page);
        Ok(page)
    }

    /// Copies from `buf` until it or the room ends. `whole`: all of `buf`, which fits, or nothing.
    /// After an error what was copied before stands, unless `whole`.
    fn copy_in(&mut self, buf: &mut impl BufIn, whole: bool) -> Result<(), VfsError> {
        let (start, room) = (self.head, (CAPACITY - self.len()) as usize);
        let mut head = start;
        let mut left = room.min(buf.remaining());
        let mut result = Ok(());
        while left > 0 && result.is_ok() {
            let (index, off) = Self::place(head);
            let n = (PAGE_SIZE - off).min(left);
            match self.page_at(index) {
                Ok(page) => {
                    let copied = copy_to_page(page, off, n, buf);
                    head = head.wrapping_add(copied as u32);
                    left -= copied;
                    if copied < n {
                        result = Err(VfsError::EFAULT);
                    }
                }
                Err(e) => result = Err(e),
            }
        }
        if result.is_ok() || !whole {
            self.head = head;
        }
        self.trim();
        result
    }

    /// Copies to `buf` until it or the bytes end; returns how many. EFAULT if not one.
    fn copy_out(&mut self, buf: &mut impl BufOut) -> Result<usize, VfsError> {
        let wanted = buf.remaining();
        let mut left = wanted.min(self.len() as usize);
        let mut result = Ok(());
        while left > 0 && result.is_ok() {
            let (index, off) = Self::place(self.tail);
            let n = (PAGE_SIZE - off).min(left);
            let page = self.pages[index].expect("INV-PIPE-2");
            // SAFETY: the ring owns the page and is locked; the bytes were written (INV-PIPE-2).
            let bytes = unsafe { slice::from_raw_parts(page.virt().add(off), n) };
            let before = buf.remaining();
            result = buf.put(bytes).map_err(VfsError::from);
            let copied = before - buf.remaining();
            self.tail = self.tail.wrapping_add(copied as u32);
            left -= copied;
            // A full ring may have wrapped into the page that has just been left.
            if off + copied == PAGE_SIZE && self.len() <= CAPACITY - PAGE_SIZE as u32 {
                self.let_go(index);
            }
        }
        self.trim();
        let done = wanted - buf.remaining();
        if done > 0 {
            Ok(done)
        } else {
            result.map(|()| 0)
        }
    }

    /// Takes a page out of the ring, into the hand or back to the allocator.
    fn let_go(&mut self, index: usize) {
        let Some(page) = self.pages[index].take() else {
            return;
        };
        if self.spare.is_none() {
            self.spare = Some(page);
        } else {
            free_pages(page);
        }
    }

    /// An empty ring starts again at its first page, and keeps at most that one and the spare.
    #[inline]
    fn trim(&mut self) {
        if self.head != self.tail || self.head == 0 {
            return;
        }
        let (index, _) = Self::place(self.head);
        (self.head, self.tail) = (0, 0);
        if index != 0 {
            self.trim_pages();
        }
    }

    #[cold]
    fn trim_pages(&mut self) {
        for index in 1..NR_PAGES {
            self.let_go(index);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for page in self
            .pages
            .iter_mut()
            .chain([&mut self.spare])
            .filter_map(Option::take)
        {
            free_pages(page);
        }
    }
}

/// Where a FIFO's inode keeps its pipe while it is open anywhere.
pub struct FifoHub(SpinLock<Option<KArc<Pipe>>>);

impl FifoHub {
    pub(crate) const fn new() -> Self {
        FifoHub(SpinLock::new(None, &HUB_CLASS))
    }

    /// Opens these ends. A reader waits for a writer, a writer for a reader, unless `nonblock`:
    /// then a writer alone is ENXIO. ENOMEM, ERESTARTSYS. May sleep.
    pub(crate) fn open(&self, ends: Ends, nonblock: bool) -> Result<KArc<Pipe>, VfsError> {
        let fresh = Pipe::new(0)?;
        let (pipe, readers, writers) = {
            let mut hub = self.0.lock();
            let pipe = hub.get_or_insert(fresh).clone();
            if ends
                == (Ends {
                    read: false,
                    write: true,
                })
                && nonblock
                && !pipe.has_readers()
            {
                if !pipe.has_writers() {
                    *hub = None;
                }
                return Err(VfsError::ENXIO);
            }
            let opens = |n: &AtomicU32| n.load(Ordering::Relaxed);
            let seen = (opens(&pipe.reader_opens), opens(&pipe.writer_opens));
            pipe.open(ends);
            (pipe, seen.0, seen.1)
        };
        let partner = match ends {
            Ends {
                read: true,
                write: false,
            } => pipe.read_wait.wait_until_interruptible(|| {
                nonblock
                    || pipe.has_writers()
                    || pipe.writer_opens.load(Ordering::Relaxed) != writers
            }),
            Ends {
                read: false,
                write: true,
            } => pipe.write_wait.wait_until_interruptible(|| {
                pipe.has_readers() || pipe.reader_opens.load(Ordering::Relaxed) != readers
            }),
            _ => Ok(()),
        };
        if let Err(e) = partner {
            self.release(&pipe, ends);
            return Err(e.into());
        }
        Ok(pipe)
    }

    /// Closes these ends. With the last one the bytes are gone.
    pub(crate) fn release(&self, pipe: &KArc<Pipe>, ends: Ends) {
        let mut hub = self.0.lock();
        pipe.release(ends);
        let last = if pipe.has_readers() || pipe.has_writers() {
            None
        } else {
            hub.take()
        };
        drop(hub);
        drop(last);
    }
}
