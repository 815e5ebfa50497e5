//! Regular files: bytes in a page cache.
//!
//! Mechanism: the file is its `AddressSpace`. A read goes page by page, looks each up without a
//! lock, and copies straight from the page; where no page is cached the file reads as zeroes, and
//! nothing is allocated, unless the archive that the file came from has bytes there. A write makes
//! the pages it touches, copies, and only then moves the size.
//!
//! Concurrency: writers and truncation exclude each other by `sem`; readers take no lock. A read
//! beside a write may see part of it, page by page, as on Linux.
//!
//! Lock order: `sem` (sleeps; user memory may fault under it), then the mapping's locks.
//!
//! INV-REG-1: `size` changes under `sem` only. INV-REG-2: no page at or past the size stays
//! cached once the writer that made it has returned.

use crate::VfsError;
use crate::flags::MAX_LFS_FILESIZE;
use crate::hooks::hooks;
use crate::uio::{BufIn, BufOut};
use core::slice;
use ksync::{LockClass, Mutex, PAGE_SHIFT, PAGE_SIZE};
use page_alloc::PageRef;
use rmap::{AddressSpace, FillError, Filler, MAX_FILE_SIZE, SpaceOwner};
use slab::KArc;

static SEM_CLASS: LockClass = LockClass::new("i_rwsem");

const PAGE: u64 = PAGE_SIZE as u64;

/// A regular file's own part of its inode.
pub struct Regular {
    mapping: SpaceOwner,
    /// Bytes below here may come from the archive though no page is cached.
    archived: u64,
    sem: Mutex<()>,
}

impl From<FillError> for VfsError {
    fn from(e: FillError) -> Self {
        match e {
            FillError::Oom => VfsError::ENOMEM,
            FillError::PastEof => VfsError::EFBIG,
        }
    }
}

impl Regular {
    /// A file that holds `bytes`, or nothing; `name` is for /proc/PID/maps. ENOMEM.
    pub(crate) fn new(bytes: &'static [u8], name: &[u8]) -> Result<Self, VfsError> {
        let len = bytes.len() as u64;
        let filler = if bytes.is_empty() {
            Filler::Zero
        } else {
            Filler::Static(bytes)
        };
        let mapping = SpaceOwner::new(AddressSpace::new(filler, len, name)?);
        Ok(Regular {
            mapping,
            archived: len,
            sem: Mutex::new((), &SEM_CLASS),
        })
    }

    /// The page cache, for mmap.
    #[inline(always)]
    pub fn mapping(&self) -> &KArc<AddressSpace> {
        &self.mapping
    }

    /// Length in bytes.
    #[inline(always)]
    pub fn size(&self) -> u64 {
        self.mapping.size()
    }

    /// Pages in memory.
    pub fn nr_pages(&self) -> u64 {
        self.mapping.nr_pages() as u64
    }

    /// Copies bytes from `pos` on to `buf`; returns how many. Fewer than asked for: end of file,
    /// or an error after the first byte. EFAULT, ENOMEM. May sleep.
    pub fn read_at(&self, pos: u64, buf: &mut impl BufOut) -> Result<usize, VfsError> {
        let wanted = buf.remaining();
        let size = self.size();
        let mut at = pos;
        while buf.remaining() > 0 && at < size {
            let off = at & (PAGE - 1);
            let n = (PAGE - off).min(size - at).min(buf.remaining() as u64) as usize;
            if let Err(e) = self.read_page(at >> PAGE_SHIFT, off as usize, n, buf) {
                let done = wanted - buf.remaining();
                return if done > 0 { Ok(done) } else { Err(e) };
            }
            at += n as u64;
        }
        Ok(wanted - buf.remaining())
    }

    /// Copies `n` bytes at `off` of page `pgoff`.
    #[inline]
    fn read_page(
        &self,
        pgoff: u64,
        off: usize,
        n: usize,
        buf: &mut impl BufOut,
    ) -> Result<(), VfsError> {
        if buf.is_atomic() {
            // Many programs start from the same page: its count would move from CPU to CPU.
            let done = self.mapping.with_page(pgoff, |page| {
                // SAFETY: `with_page` keeps the page; else as below.
                buf.put(unsafe { slice::from_raw_parts(page.virt().add(off), n) })
            });
            if let Some(copied) = done {
                return Ok(copied?);
            }
        }
        let page = match self.mapping.find_page(pgoff) {
            Some(page) => page,
            None if pgoff << PAGE_SHIFT >= self.archived => return Ok(buf.put_zeroes(n)?),
            None => match again(|| self.mapping.find_or_create_page(pgoff)) {
                Ok(page) => page,
                // Cut meanwhile: what was asked for lies past the end, which reads zero.
                Err(FillError::PastEof) => return Ok(buf.put_zeroes(n)?),
                Err(e) => return Err(e.into()),
            },
        };
        // SAFETY: our reference keeps the page; `off + n` is within it. File contents are shared
        // memory: a writer beside us may be seen half done, byte by byte.
        let bytes = unsafe { slice::from_raw_parts(page.virt().add(off), n) };
        let copied = buf.put(bytes);
        page.put();
        Ok(copied?)
    }

    /// Copies `buf` into the file at `pos` (`None`: at its end); returns the position after the
    /// last byte, and how many were written. Fewer than given only after an error. EFAULT, ENOMEM,
    /// EFBIG. May sleep.
    pub fn write_at(
        &self,
        pos: Option<u64>,
        buf: &mut impl BufIn,
    ) -> Result<(u64, usize), VfsError> {
        let _sem = self.sem.lock();
        let start = pos.unwrap_or_else(|| self.size());
        let room = MAX_FILE_SIZE.saturating_sub(start);
        let wanted = (buf.remaining() as u64).min(room) as usize;
        if wanted == 0 {
            return if buf.remaining() == 0 {
                Ok((start, 0))
            } else {
                Err(VfsError::EFBIG)
            };
        }
        let mut done = 0;
        let mut failed = None;
        while done < wanted && failed.is_none() {
            let at = start + done as u64;
            let off = (at & (PAGE - 1)) as usize;
            let n = (PAGE_SIZE - off).min(wanted - done);
            match self.write_page(at >> PAGE_SHIFT, off, n, buf) {
                Ok(copied) => {
                    done += copied;
                    if copied < n {
                        failed = Some(VfsError::EFAULT);
                    }
                }
                Err(e) => failed = Some(e),
            }
        }
        let end = start + done as u64;
        if done > 0 {
            self.mapping.extend(end);
        }
        if let Some(e) = failed {
            // INV-REG-2: the page that was to take the next byte may be past the end.
            self.mapping.truncate_pages(self.size().div_ceil(PAGE));
            if done == 0 {
                return Err(e);
            }
        }
        Ok((end, done))
    }

    /// Copies up to `n` bytes to `off` of page `pgoff`; fewer if the source faults.
    fn write_page(
        &self,
        pgoff: u64,
        off: usize,
        n: usize,
        buf: &mut impl BufIn,
    ) -> Result<usize, VfsError> {
        let page = again(|| self.mapping.find_or_create_page_for_write(pgoff))?;
        self.mapping.mark_dirty(page);
        let copied = copy_to_page(page, off, n, buf);
        page.put();
        Ok(copied)
    }

    /// Sets the length. Shrinking also takes the pages out of every mapping. EFBIG. May sleep.
    pub fn truncate(&self, len: u64) -> Result<(), VfsError> {
        if len > MAX_LFS_FILESIZE.min(MAX_FILE_SIZE) {
            return Err(VfsError::EFBIG);
        }
        let _sem = self.sem.lock();
        let shrinks = len < self.size();
        self.mapping.truncate(len);
        if shrinks {
            (hooks().unmap_mapping)(&self.mapping, len.div_ceil(PAGE), u64::MAX, true);
        }
        Ok(())
    }

    /// Takes the bytes `start..end` away: they read zero, in every mapping too, but for private copies. The length stays.
    /// ENOMEM. May sleep.
    pub fn punch_hole(&self, start: u64, end: u64) -> Result<(), VfsError> {
        let _sem = self.sem.lock();
        if let Some((first, last)) = self.mapping.punch(start, end)? {
            (hooks().unmap_mapping)(&self.mapping, first, last, false);
        }
        Ok(())
    }

    /// Makes the file at least `len` bytes long. EFBIG. May sleep.
    pub fn extend(&self, len: u64) -> Result<(), VfsError> {
        if len > MAX_FILE_SIZE {
            return Err(VfsError::EFBIG);
        }
        let _sem = self.sem.lock();
        self.mapping.extend(len);
        Ok(())
    }
}

/// Runs `f`, and while it has no memory and others' pages can be had, again.
#[inline]
fn again(mut f: impl FnMut() -> Result<PageRef, FillError>) -> Result<PageRef, FillError> {
    loop {
        match f() {
            Err(FillError::Oom) if (hooks().reclaim)() => {}
            result => return result,
        }
    }
}

/// Copies up to `n` bytes from `buf` to `off` of a page that the caller holds; fewer on a fault.
pub(crate) fn copy_to_page(page: PageRef, off: usize, n: usize, buf: &mut impl BufIn) -> usize {
    debug_assert!(off + n <= PAGE_SIZE);
    // SAFETY: the caller's reference keeps the page; `off + n` is within it; a page's bytes are
    // initialised as far as the abstract machine knows (they come from outside it). Others may
    // look at the same bytes, which is the nature of shared file contents.
    let room = unsafe { slice::from_raw_parts_mut(page.virt().add(off), n) };
    let mut copied = 0;
    while copied < n {
        match buf.get(&mut room[copied..]) {
            Ok(0) | Err(_) => break,
            Ok(more) => copied += more,
        }
    }
    copied
}
