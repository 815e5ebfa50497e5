//! The descriptor table of a process (files_struct).
//!
//! Problem: every system call on a file starts with a look-up here, and every fork copies the
//! table of a process that has three or four descriptors open. Mechanism: blocks of 64
//! descriptors, the first inside the object, the others made when needed and never moved. A block
//! has a bitmap of the descriptors in use and one of those to be closed by exec; its slots are not
//! initialised until used, so a new table costs two words, and a copy costs what is open.
//!
//! ```text
//!   Files | table { next_fd, first: { open, cloexec, slots } , more: [ block, block, ... ] } |
//!         |                                            |                 fd 64 to 127, ...
//!         | first_slots [64] <-------------------------+
//! ```
//!
//! A look-up takes the table's spinlock for three loads and a count. (A process that shares its
//! table with nobody could do without both, as Linux's fdget does: the place for it is
//! [`Files::get`], and the proof that the borrow ends before the same thread closes the
//! descriptor.)
//!
//! Lock order: the table's spinlock; nothing under it. Files are dropped after it is released.
//!
//! Invariants:
//! INV-FD-1: the slot of a set bit in `open` is initialised: `None` while reserved, then the file.
//! INV-FD-2: a bit in `cloexec` is set only where `open` is. INV-FD-3: every descriptor below
//!   `next_fd` is in use.
//! INV-FD-4: a block's `slots` are its alone: the first block's are a field of the `Files` that
//!   holds it, the others' are on the heap. Who borrows a block of a table holds the table's lock,
//!   or the `Files` exclusively.

use crate::VfsError;
use crate::file::File;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use ksync::{LockClass, SpinGuard, SpinLock};
use slab::{KArc, KBox};

extern crate alloc;
use alloc::vec::Vec;

static TABLE_CLASS: LockClass = LockClass::new("files_lock");

/// Descriptors of a block.
const BLOCK: u32 = 64;
/// The limit a process starts with (RLIMIT_NOFILE, soft).
pub const DEFAULT_NOFILE: u32 = 1024;
/// No limit can be higher.
pub const NR_OPEN_MAX: u32 = 1 << 20;

/// A process's descriptors. Shared with CLONE_FILES, else copied by fork.
pub struct Files {
    table: SpinLock<Table>,
    /// Descriptors are below this number.
    limit: AtomicU32,
    /// The first block's slots, written and read through that block only (INV-FD-4).
    first_slots: UnsafeCell<Slots>,
}
slab::object!(Files, "files_struct", links = 0);

// SAFETY: `first_slots` is reached through the table only, whose lock is held (INV-FD-4).
unsafe impl Sync for Files {}

struct Table {
    next_fd: u32,
    first: Block,
    more: Vec<Option<HeapBlock>>,
}

type Slot = Option<KArc<File>>;
type Slots = [MaybeUninit<Slot>; BLOCK as usize];

struct Block {
    open: u64,
    cloexec: u64,
    /// INV-FD-4.
    slots: NonNull<Slots>,
}

// SAFETY: a block owns what its slots hold, which are KArcs of a Send and Sync type (INV-FD-4).
unsafe impl Send for Block {}

impl Block {
    /// No descriptor in use. Nobody else uses these slots as long as the block lives (INV-FD-4).
    #[inline(always)]
    fn new(slots: NonNull<Slots>) -> Self {
        Block {
            open: 0,
            cloexec: 0,
            slots,
        }
    }

    #[inline(always)]
    fn slots(&self) -> &Slots {
        // SAFETY: INV-FD-4; shared like the borrow of `self`.
        unsafe { self.slots.as_ref() }
    }

    #[inline(always)]
    fn slots_mut(&mut self) -> &mut Slots {
        // SAFETY: INV-FD-4; exclusive like the borrow of `self`.
        unsafe { self.slots.as_mut() }
    }

    #[inline(always)]
    fn is_open(&self, bit: u32) -> bool {
        self.open >> bit & 1 != 0
    }

    /// The file at `bit`, unless it is closed or only reserved.
    #[inline(always)]
    fn get(&self, bit: u32) -> Option<&KArc<File>> {
        if !self.is_open(bit) {
            return None;
        }
        // SAFETY: INV-FD-1.
        unsafe { self.slots()[bit as usize].assume_init_ref() }.as_ref()
    }

    /// Opens `bit`, which is closed.
    #[inline]
    fn set(&mut self, bit: u32, file: Slot, cloexec: bool) {
        debug_assert!(!self.is_open(bit));
        self.slots_mut()[bit as usize].write(file);
        self.open |= 1 << bit;
        self.cloexec |= (cloexec as u64) << bit;
    }

    /// The slot of an open `bit`.
    #[inline]
    fn slot(&mut self, bit: u32) -> Option<&mut Slot> {
        // SAFETY: INV-FD-1.
        self.is_open(bit)
            .then(|| unsafe { self.slots_mut()[bit as usize].assume_init_mut() })
    }

    /// Closes an open `bit` and returns what was there.
    #[inline]
    fn clear(&mut self, bit: u32) -> Slot {
        let file = self.slot(bit)?.take();
        self.open &= !(1 << bit);
        self.cloexec &= !(1 << bit);
        file
    }

    fn close_all(&mut self) {
        while self.open != 0 {
            drop(self.clear(self.open.trailing_zeros()));
        }
    }

    /// Copies the files (not the reservations) of `from` into this empty block.
    #[inline]
    fn copy_from(&mut self, from: &Block) {
        let mut left = from.open;
        while left != 0 {
            let bit = left.trailing_zeros();
            left &= left - 1;
            if let Some(file) = from.get(bit) {
                self.set(bit, Some(file.clone()), from.cloexec >> bit & 1 != 0);
            }
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // The slots are a field of this object: they go after this.
        self.table.get_mut().first.close_all();
    }
}

/// A block with slots of its own.
struct HeapBlock(Block);

impl HeapBlock {
    fn new() -> Result<Self, VfsError> {
        let mut room = KBox::<Slots>::try_uninit()?;
        room.value_mut()
            .write([const { MaybeUninit::uninit() }; BLOCK as usize]);
        // SAFETY: just written (no byte of it: uninitialised slots are valid).
        let slots = unsafe { room.assume_init() };
        Ok(HeapBlock(Block::new(KBox::into_raw(slots))))
    }
}

impl Drop for HeapBlock {
    fn drop(&mut self) {
        self.0.close_all();
        // SAFETY: from `into_raw` in `new`; the block has no open slot left.
        drop(unsafe { KBox::from_raw(self.0.slots) });
    }
}

impl Table {
    #[inline(always)]
    fn block(&self, fd: u32) -> Option<&Block> {
        match fd / BLOCK {
            0 => Some(&self.first),
            n => self.more.get(n as usize - 1)?.as_ref().map(|b| &b.0),
        }
    }

    #[inline(always)]
    fn block_mut(&mut self, fd: u32) -> Option<&mut Block> {
        match fd / BLOCK {
            0 => Some(&mut self.first),
            n => self
                .more
                .get_mut(n as usize - 1)?
                .as_mut()
                .map(|b| &mut b.0),
        }
    }

    /// The block of `fd`, made if need be. ENOMEM.
    #[inline]
    fn make_block(&mut self, fd: u32) -> Result<&mut Block, VfsError> {
        match fd / BLOCK {
            0 => Ok(&mut self.first),
            n => self.make_more(n as usize - 1),
        }
    }

    #[cold]
    fn make_more(&mut self, index: usize) -> Result<&mut Block, VfsError> {
        if self.more.len() <= index {
            let missing = index + 1 - self.more.len();
            self.more
                .try_reserve(missing)
                .map_err(|_| VfsError::ENOMEM)?;
            self.more.resize_with(index + 1, || None);
        }
        let slot = &mut self.more[index];
        if slot.is_none() {
            *slot = Some(HeapBlock::new()?);
        }
        Ok(&mut slot.as_mut().expect("just made").0)
    }

    #[inline(always)]
    fn file(&self, fd: u32) -> Option<&KArc<File>> {
        self.block(fd)?.get(fd % BLOCK)
    }

    /// The lowest descriptor from `from` to below `limit` that is not in use.
    fn find_free(&self, from: u32, limit: u32) -> Option<u32> {
        let mut fd = from.max(self.next_fd);
        while fd < limit {
            let used = self.block(fd).map_or(0, |b| b.open) >> (fd % BLOCK);
            let skip = used.trailing_ones();
            if skip < BLOCK - fd % BLOCK {
                fd += skip;
                return (fd < limit).then_some(fd);
            }
            fd += BLOCK - fd % BLOCK;
        }
        None
    }

    /// Opens the lowest free descriptor from `from` on. EMFILE, ENOMEM.
    #[inline]
    fn open(&mut self, from: u32, limit: u32, file: Slot, cloexec: bool) -> Result<u32, VfsError> {
        let fd = self.find_free(from, limit).ok_or(VfsError::EMFILE)?;
        self.make_block(fd)?.set(fd % BLOCK, file, cloexec);
        // INV-FD-3: a search from above next_fd says nothing about what it skipped.
        if from <= self.next_fd {
            self.next_fd = fd + 1;
        }
        Ok(fd)
    }

    /// Closes `fd` and returns its slot: `None` if it was not in use.
    #[inline]
    fn close(&mut self, fd: u32) -> Slot {
        let file = self.block_mut(fd)?.clear(fd % BLOCK);
        self.next_fd = self.next_fd.min(fd);
        file
    }

    /// One past the greatest descriptor that has a block.
    fn end(&self) -> u32 {
        (self.more.len() as u32 + 1) * BLOCK
    }
}

impl Files {
    /// An empty table. ENOMEM.
    pub fn new() -> Result<KArc<Self>, VfsError> {
        Ok(Self::empty(DEFAULT_NOFILE)?)
    }

    /// An empty table, built in place: its slots are never moved, nor written before they are used.
    #[inline]
    fn empty(limit: u32) -> Result<KArc<Self>, slab::AllocError> {
        let mut room = KArc::<Files>::try_uninit()?;
        let files = room.value_mut().as_mut_ptr();
        // SAFETY: the room is ours and large enough. All fields but the slots are written, and
        // slots are valid uninitialised. The object does not move (it is never taken out of its
        // KArc), so the block may point into it (INV-FD-4).
        unsafe {
            let slots = NonNull::new_unchecked((&raw mut (*files).first_slots).cast::<Slots>());
            let table = Table {
                next_fd: 0,
                first: Block::new(slots),
                more: Vec::new(),
            };
            (&raw mut (*files).table).write(SpinLock::new(table, &TABLE_CLASS));
            (&raw mut (*files).limit).write(AtomicU32::new(limit));
            Ok(room.assume_init())
        }
    }

    #[inline(always)]
    fn lock(&self) -> SpinGuard<'_, Table> {
        self.table.lock()
    }

    /// The number that descriptors stay below.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Sets that number (RLIMIT_NOFILE). Open descriptors above it stay.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit.min(NR_OPEN_MAX), Ordering::Relaxed);
    }

    /// The file at `fd`, not one opened with O_PATH. EBADF. Any context that may spin.
    #[inline]
    pub fn get(&self, fd: i32) -> Result<KArc<File>, VfsError> {
        let file = self.get_raw(fd)?;
        if file.is_path() {
            return Err(VfsError::EBADF);
        }
        Ok(file)
    }

    /// The file at `fd`, also one opened with O_PATH: for `*at` calls, fstat, dup, fcntl. EBADF.
    #[inline]
    pub fn get_raw(&self, fd: i32) -> Result<KArc<File>, VfsError> {
        // A negative number becomes one that has no block.
        self.lock().file(fd as u32).cloned().ok_or(VfsError::EBADF)
    }

    /// Reserves the lowest free descriptor. EMFILE, ENOMEM.
    #[inline]
    pub fn reserve(&self, cloexec: bool) -> Result<FdSlot<'_>, VfsError> {
        let fd = self.lock().open(0, self.limit(), None, cloexec)?;
        Ok(FdSlot { files: self, fd })
    }

    /// Puts `file` at the lowest free descriptor. EMFILE, ENOMEM: then `file` is dropped.
    pub fn install(&self, file: KArc<File>, cloexec: bool) -> Result<i32, VfsError> {
        Ok(self.reserve(cloexec)?.install(file))
    }

    /// Closes `fd` and returns its file, whose drop may be its last. EBADF.
    #[inline]
    pub fn close(&self, fd: i32) -> Result<KArc<File>, VfsError> {
        let mut table = self.lock();
        // A reservation is not the caller's to close.
        if table.file(fd as u32).is_none() {
            return Err(VfsError::EBADF);
        }
        table.close(fd as u32).ok_or(VfsError::EBADF)
    }

    /// Closes all descriptors of [first, last], or with `cloexec` marks them to be closed by exec.
    /// EINVAL (first above last). May sleep (files are dropped).
    pub fn close_range(&self, first: u32, last: u32, cloexec: bool) -> Result<(), VfsError> {
        if first > last {
            return Err(VfsError::EINVAL);
        }
        let mut fd = first;
        loop {
            let closed = {
                let mut table = self.lock();
                let end = table.end();
                while fd < end && fd <= last && table.file(fd).is_none() {
                    fd += 1;
                }
                if fd >= end || fd > last {
                    return Ok(());
                }
                match table.block_mut(fd) {
                    Some(block) if cloexec => {
                        block.cloexec |= 1 << (fd % BLOCK);
                        None
                    }
                    _ => table.close(fd),
                }
            };
            drop(closed);
            fd += 1;
        }
    }

    /// Another descriptor, the lowest free one from `min` on, for the file at `fd`. EBADF, EINVAL
    /// (min at or above the limit), EMFILE, ENOMEM.
    pub fn dup_from(&self, fd: i32, min: u32, cloexec: bool) -> Result<i32, VfsError> {
        let mut table = self.lock();
        let file = table.file(fd as u32).cloned().ok_or(VfsError::EBADF)?;
        let limit = self.limit();
        if min >= limit {
            return Err(VfsError::EINVAL);
        }
        Ok(table.open(min, limit, Some(file), cloexec)? as i32)
    }

    /// dup: the lowest free descriptor for the file at `fd`. EBADF, EMFILE, ENOMEM.
    pub fn dup(&self, fd: i32) -> Result<i32, VfsError> {
        let file = self.get_raw(fd)?;
        self.install(file, false)
    }

    /// dup2: makes `new` stand for the file at `old`, closing what it stood for, whose file is
    /// dropped. The same number twice: nothing is done. EBADF, EBUSY (reserved), ENOMEM.
    pub fn dup2(&self, old: i32, new: i32) -> Result<i32, VfsError> {
        if old == new {
            return self.get_raw(old).map(|_| new);
        }
        self.dup3(old, new, false)
    }

    /// dup3: as `dup2`, with close-on-exec; the same number twice is EINVAL.
    pub fn dup3(&self, old: i32, new: i32, cloexec: bool) -> Result<i32, VfsError> {
        if old == new {
            return Err(VfsError::EINVAL);
        }
        let replaced = {
            let mut table = self.lock();
            if new as u32 >= self.limit() {
                return Err(VfsError::EBADF);
            }
            let file = table.file(old as u32).cloned().ok_or(VfsError::EBADF)?;
            let (fd, bit) = (new as u32, new as u32 % BLOCK);
            let block = table.make_block(fd)?;
            if block.is_open(bit) && block.get(bit).is_none() {
                return Err(VfsError::EBUSY);
            }
            let replaced = block.clear(bit);
            block.set(bit, Some(file), cloexec);
            // INV-FD-3 holds: `new` is in use before and after, or is not below next_fd.
            replaced
        };
        drop(replaced);
        Ok(new)
    }

    /// F_GETFD: close-on-exec. EBADF.
    pub fn cloexec(&self, fd: i32) -> Result<bool, VfsError> {
        let table = self.lock();
        table.file(fd as u32).ok_or(VfsError::EBADF)?;
        let block = table.block(fd as u32).ok_or(VfsError::EBADF)?;
        Ok(block.cloexec >> (fd as u32 % BLOCK) & 1 != 0)
    }

    /// F_SETFD: close-on-exec. EBADF.
    pub fn set_cloexec(&self, fd: i32, on: bool) -> Result<(), VfsError> {
        let mut table = self.lock();
        table.file(fd as u32).ok_or(VfsError::EBADF)?;
        let block = table.block_mut(fd as u32).ok_or(VfsError::EBADF)?;
        let bit = 1 << (fd as u32 % BLOCK);
        block.cloexec = block.cloexec & !bit | if on { bit } else { 0 };
        Ok(())
    }

    /// The copy that fork makes: every open descriptor, no reservation. Costs what is open. ENOMEM.
    pub fn dup_for_fork(&self) -> Result<KArc<Self>, VfsError> {
        let copy = Self::empty(self.limit())?;
        {
            // Two tables of one class at once; nobody else can lock the new one.
            let from = self.lock();
            ksync::lockdep::nested();
            let mut to = copy.lock();
            to.first.copy_from(&from.first);
            to.next_fd = from.next_fd.min((!to.first.open).trailing_zeros());
            for (i, block) in from.more.iter().enumerate() {
                if let Some(HeapBlock(block)) = block.as_ref().filter(|b| b.0.open != 0) {
                    to.make_more(i)?.copy_from(block);
                }
            }
        }
        Ok(copy)
    }

    /// Closes what exec closes. The table is no longer shared. May sleep (files are dropped).
    pub fn close_on_exec(&self) {
        let mut start = 0;
        loop {
            let closed = {
                let mut table = self.lock();
                let Some(fd) = next_cloexec(&table, start) else {
                    return;
                };
                start = fd + 1;
                table.close(fd)
            };
            drop(closed);
        }
    }

    /// The lowest open descriptor at or after `from`, with its file: for /proc/PID/fd.
    pub fn next_open(&self, from: u32) -> Option<(u32, KArc<File>)> {
        let table = self.lock();
        (from..table.end()).find_map(|fd| table.file(fd).map(|file| (fd, file.clone())))
    }

    /// How many descriptors are in use.
    pub fn nr_open(&self) -> u32 {
        let table = self.lock();
        let more = table.more.iter().flatten().map(|b| b.0.open.count_ones());
        table.first.open.count_ones() + more.sum::<u32>()
    }

    /// Panics unless the table is as its invariants say. For tests.
    pub fn check_invariants(&self) {
        let table = self.lock();
        for block in core::iter::once(&table.first).chain(table.more.iter().flatten().map(|b| &b.0))
        {
            assert!(block.cloexec & !block.open == 0, "INV-FD-2");
        }
        for fd in 0..table.next_fd {
            assert!(
                table.block(fd).is_some_and(|b| b.is_open(fd % BLOCK)),
                "INV-FD-3"
            );
        }
    }
}

/// The lowest descriptor from `start` on that exec closes: marked, and not only reserved.
fn next_cloexec(table: &Table, start: u32) -> Option<u32> {
    let mut fd = start;
    while fd < table.end() {
        let marked = table.block(fd).map_or(0, |b| b.cloexec) >> (fd % BLOCK);
        if marked == 0 {
            fd = (fd / BLOCK + 1) * BLOCK;
            continue;
        }
        fd += marked.trailing_zeros();
        if table.file(fd).is_some() {
            return Some(fd);
        }
        fd += 1;
    }
    None
}

/// A reserved descriptor: nobody else gets its number, and nobody finds a file there. Dropping it
/// gives the number back.
#[must_use]
pub struct FdSlot<'a> {
    files: &'a Files,
    fd: u32,
}

impl FdSlot<'_> {
    /// The number.
    pub fn fd(&self) -> i32 {
        self.fd as i32
    }

    /// Puts the file there. Cannot fail.
    #[inline]
    pub fn install(self, file: KArc<File>) -> i32 {
        let fd = self.fd;
        if let Some(slot) = self
            .files
            .lock()
            .block_mut(fd)
            .and_then(|b| b.slot(fd % BLOCK))
        {
            debug_assert!(slot.is_none());
            *slot = Some(file);
        }
        core::mem::forget(self);
        fd as i32
    }
}

impl Drop for FdSlot<'_> {
    fn drop(&mut self) {
        self.files.lock().close(self.fd);
    }
}
