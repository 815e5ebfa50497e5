//! Files whose contents are made when somebody looks: the contract of procfs.
//!
//! Problem: /proc shows processes, of which this crate knows nothing, and there are more of them than anybody wants
//! inodes for. Mechanism: [`SynthNode`] is what a floor above implements; [`SynthHandle`] erases the node's type, as
//! `AnonHandle` does for open files. A look-up makes node, inode and dentry for the length of a walk, or for as long as
//! the file is open; nothing of it is hashed or listed.
//!
//! ```text
//!   walk:  d_lookup misses, the directory is synthetic -> node.lookup(name) -> handle -> Inode -> Dentry
//!          Walk::keep holds the dentry; it holds its parent; Dentry is RCU_FREE, so `&'r Dentry` stays good when
//!          the walk goes on to a child or through a link
//! ```
//!
//! Contents are made by each read anew, into a page of memory that no lock protects, and copied to the user after it.
//! A generator writes the whole text; [`Text`] drops what lies before the position and says when the page is full. One
//! whose text may be long calls [`Text::record`] between records: the next read of the same open file starts there.
//!
//! Context: `attr` and `lookup` run inside an RCU section, and perhaps under the rename lock: they may spin and
//! allocate, not sleep. `list`, `read`, `write` may sleep, and no lock of this crate is held but the file's position.
//!
//! Invariants:
//! INV-SYNTH-1: `ptr` came from `KArc::<T>::into_raw`, and `vtable` is `T`'s.
//! INV-SYNTH-2: the first `used` bytes of a [`Text`]'s buffer are initialised.

use crate::VfsError;
use crate::dentry::Dentry;
use crate::file::File;
use crate::readdir::Packer;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use ksync::{SpinLock, lock_class};
use page_alloc::{Gfp, PageRef};
use slab::{KArc, Object};

/// What stat shows of a node; the rest is zero or the time of the look-up.
#[derive(Copy, Clone, Debug)]
pub struct SynthAttr {
    /// Type and permission bits.
    pub mode: u32,
    /// Inode number.
    pub ino: u64,
    /// Number of names.
    pub nlink: u32,
}

/// Where a link leads that is no text: straight to an object.
pub enum SynthTarget {
    /// A name (cwd, root, exe).
    Dentry(KArc<Dentry>),
    /// An open file (fd/N), which may have no name.
    File(KArc<File>),
}

/// A file, directory or link of a synthetic file system. See the file's head for contexts.
pub trait SynthNode: Object {
    /// Attributes. The type never changes.
    fn attr(&self) -> SynthAttr;
    /// What `name` is in this directory. ENOENT, ENOMEM.
    fn lookup(&self, _name: &[u8]) -> Result<SynthHandle, VfsError> {
        Err(VfsError::ENOENT)
    }
    /// Puts this directory's names from position `from` (2 is the first) into the listing, until it says stop.
    fn list(&self, _from: u64, _out: &mut Listing<'_>) -> Result<(), VfsError> {
        Err(VfsError::ENOTDIR)
    }
    /// Writes the file's contents.
    fn read(&self, _text: &mut Text<'_>) -> Result<(), VfsError> {
        Err(VfsError::EINVAL)
    }
    /// Takes what a program wrote, cut to a few hundred bytes.
    fn write(&self, _bytes: &[u8]) -> Result<(), VfsError> {
        Err(VfsError::EINVAL)
    }
    /// A symbolic link's path, fixed when it was looked up; None: see `target`.
    fn text(&self) -> Option<&[u8]> {
        None
    }
    /// Where a link leads that has no text. ENOENT.
    fn target(&self) -> Result<SynthTarget, VfsError> {
        Err(VfsError::ENOENT)
    }
}

/// A counted pointer to some [`SynthNode`].
pub struct SynthHandle {
    ptr: NonNull<()>,
    vtable: &'static Vtable,
}

// SAFETY: it stands for a KArc<T> of a `T: Send + Sync` (INV-SYNTH-1).
unsafe impl Send for SynthHandle {}
// SAFETY: as above.
unsafe impl Sync for SynthHandle {}

/// The methods of one type. Each may be called with a pointer to a live object of it only.
struct Vtable {
    attr: unsafe fn(NonNull<()>) -> SynthAttr,
    lookup: unsafe fn(NonNull<()>, &[u8]) -> Result<SynthHandle, VfsError>,
    list: unsafe fn(NonNull<()>, u64, &mut Listing<'_>) -> Result<(), VfsError>,
    read: unsafe fn(NonNull<()>, &mut Text<'_>) -> Result<(), VfsError>,
    write: unsafe fn(NonNull<()>, &[u8]) -> Result<(), VfsError>,
    text: for<'a> unsafe fn(&'a NonNull<()>) -> Option<&'a [u8]>,
    target: unsafe fn(NonNull<()>) -> Result<SynthTarget, VfsError>,
    release: unsafe fn(NonNull<()>),
}

struct TableOf<T>(PhantomData<T>);

impl<T: SynthNode> TableOf<T> {
    const TABLE: Vtable = Vtable {
        // SAFETY: INV-SYNTH-1: the pointer is to a T that the handle holds. So for all of these.
        attr: |p| unsafe { p.cast::<T>().as_ref() }.attr(),
        // SAFETY: as above.
        lookup: |p, name| unsafe { p.cast::<T>().as_ref() }.lookup(name),
        // SAFETY: as above.
        list: |p, from, out| unsafe { p.cast::<T>().as_ref() }.list(from, out),
        // SAFETY: as above.
        read: |p, text| unsafe { p.cast::<T>().as_ref() }.read(text),
        // SAFETY: as above.
        write: |p, bytes| unsafe { p.cast::<T>().as_ref() }.write(bytes),
        // SAFETY: as above; the handle is borrowed for as long as the text.
        text: |p| unsafe { p.cast::<T>().as_ref() }.text(),
        // SAFETY: as above.
        target: |p| unsafe { p.cast::<T>().as_ref() }.target(),
        // SAFETY: as above; called once, when the handle is dropped.
        release: |p| drop(unsafe { KArc::<T>::from_raw(p.cast()) }),
    };
}

impl SynthHandle {
    /// Erases the type.
    pub fn new<T: SynthNode>(node: KArc<T>) -> Self {
        // INV-SYNTH-1 is established here.
        SynthHandle {
            ptr: KArc::into_raw(node).cast(),
            vtable: &TableOf::<T>::TABLE,
        }
    }

    pub(crate) fn attr(&self) -> SynthAttr {
        // SAFETY: INV-SYNTH-1.
        unsafe { (self.vtable.attr)(self.ptr) }
    }

    pub(crate) fn lookup(&self, name: &[u8]) -> Result<SynthHandle, VfsError> {
        // SAFETY: INV-SYNTH-1.
        unsafe { (self.vtable.lookup)(self.ptr, name) }
    }

    pub(crate) fn list(&self, from: u64, out: &mut Listing<'_>) -> Result<(), VfsError> {
        // SAFETY: INV-SYNTH-1.
        unsafe { (self.vtable.list)(self.ptr, from, out) }
    }

    pub(crate) fn read(&self, text: &mut Text<'_>) -> Result<(), VfsError> {
        // SAFETY: INV-SYNTH-1.
        unsafe { (self.vtable.read)(self.ptr, text) }
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> Result<(), VfsError> {
        // SAFETY: INV-SYNTH-1.
        unsafe { (self.vtable.write)(self.ptr, bytes) }
    }

    pub(crate) fn text(&self) -> Option<&[u8]> {
        // SAFETY: INV-SYNTH-1.
        unsafe { (self.vtable.text)(&self.ptr) }
    }

    pub(crate) fn target(&self) -> Result<SynthTarget, VfsError> {
        // SAFETY: INV-SYNTH-1.
        unsafe { (self.vtable.target)(self.ptr) }
    }
}

impl Drop for SynthHandle {
    fn drop(&mut self) {
        // SAFETY: INV-SYNTH-1; the handle is not used again.
        unsafe { (self.vtable.release)(self.ptr) }
    }
}

/// Names on their way to getdents64.
pub struct Listing<'a> {
    pub(crate) packer: &'a mut Packer,
    pub(crate) full: bool,
}

impl Listing<'_> {
    /// Adds a name. `next`: the position behind it; `mode`: its type bits. False: there was no room; stop.
    #[inline]
    pub fn put(&mut self, ino: u64, next: u64, mode: u32, name: &[u8]) -> bool {
        self.full = !self.packer.put(ino, next, mode, name);
        !self.full
    }
}

/// Where the next read of an open file goes on.
#[derive(Copy, Clone, Default)]
pub(crate) struct Cursor {
    /// A record, by the key its generator gave it, and the byte of the text at which it begins.
    key: u64,
    at: u64,
}

impl Cursor {
    /// At the start, for a new open file.
    pub fn lock() -> SpinLock<Cursor> {
        SpinLock::new(Cursor::default(), lock_class!("synth_cursor"))
    }
}

/// Bytes that one generation keeps.
pub(crate) const TEXT_PAGE: usize = if cfg!(test) { 64 } else { 4096 };

/// Memory for a window, not zeroed.
pub(crate) struct TextPage(PageRef);

impl TextPage {
    /// ENOMEM.
    pub fn new() -> Result<Self, VfsError> {
        Ok(TextPage(page_alloc::alloc_page(Gfp::empty())?))
    }

    pub fn bytes(&mut self) -> &mut [MaybeUninit<u8>; TEXT_PAGE] {
        const _: () = assert!(TEXT_PAGE <= ksync::PAGE_SIZE);
        // SAFETY: a page that is ours alone until it is put; bytes that may be uninitialised ask nothing of it.
        unsafe { &mut *self.0.virt().cast() }
    }
}

impl Drop for TextPage {
    fn drop(&mut self) {
        self.0.put();
    }
}

/// A text being made, of which a window is kept.
pub struct Text<'a> {
    buf: &'a mut [MaybeUninit<u8>],
    /// INV-SYNTH-2.
    used: usize,
    /// Bytes still to be dropped before the window.
    skip: u64,
    /// The byte of the text that comes next.
    at: u64,
    start: u64,
    mark: Cursor,
}

impl<'a> Text<'a> {
    /// A window of `buf.len()` bytes from byte `pos` on; `cursor`: where an earlier read of this file came to.
    pub(crate) fn new(buf: &'a mut [MaybeUninit<u8>], pos: u64, cursor: Cursor) -> Self {
        // A seek to before the record starts over.
        let mark = if cursor.at <= pos {
            cursor
        } else {
            Cursor::default()
        };
        Text {
            buf,
            used: 0,
            skip: pos - mark.at,
            at: mark.at,
            start: mark.key,
            mark,
        }
    }

    /// What is in the window, and where the next one may start.
    pub(crate) fn finish(&self) -> (&[u8], Cursor) {
        // SAFETY: INV-SYNTH-2.
        let bytes = unsafe { &*(&raw const self.buf[..self.used] as *const [u8]) };
        (bytes, self.mark)
    }

    /// The key of the record to start with; 0: the first.
    pub fn start_key(&self) -> u64 {
        self.start
    }

    /// Says that the record `key` begins here. False: the window is full; stop.
    pub fn record(&mut self, key: u64) -> bool {
        if !self.is_full() {
            self.mark = Cursor { key, at: self.at };
        }
        !self.is_full()
    }

    /// Nothing that follows will be kept.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.used == self.buf.len()
    }

    /// Appends bytes.
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.at += bytes.len() as u64;
        if self.skip == 0 && bytes.len() <= self.buf.len() - self.used {
            self.keep(bytes);
        } else {
            self.put_slow(bytes);
        }
        self
    }

    #[cold]
    fn put_slow(&mut self, bytes: &[u8]) {
        let dropped = self.skip.min(bytes.len() as u64);
        self.skip -= dropped;
        let bytes = &bytes[dropped as usize..];
        let room = bytes.len().min(self.buf.len() - self.used);
        self.keep(&bytes[..room]);
    }

    #[inline]
    fn keep(&mut self, bytes: &[u8]) {
        let room = &mut self.buf[self.used..][..bytes.len()];
        // SAFETY: as long as `bytes`, and apart from it: `room` is borrowed exclusively.
        unsafe {
            room.as_mut_ptr()
                .cast::<u8>()
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
        self.used += bytes.len();
    }

    /// Appends a string.
    #[inline]
    pub fn str(&mut self, text: &str) -> &mut Self {
        self.put(text.as_bytes())
    }

    /// Appends a number, decimal.
    pub fn dec(&mut self, value: u64) -> &mut Self {
        let mut digits = [0; 20];
        let from = decimal(value, &mut digits);
        self.put(&digits[from..])
    }

    /// Appends a space and a number, decimal.
    pub fn field(&mut self, value: u64) -> &mut Self {
        let mut field = [b' '; 21];
        let from = match field.last_chunk_mut() {
            Some(digits) => decimal(value, digits),
            None => unreachable!("20 of 21"),
        };
        self.put(&field[from..])
    }

    /// Appends a number with a sign if it is below zero.
    pub fn int(&mut self, value: i64) -> &mut Self {
        if value < 0 {
            self.put(b"-");
        }
        self.dec(value.unsigned_abs())
    }

    /// Appends a number, right-aligned in `width`.
    pub fn dec_wide(&mut self, value: u64, width: usize) -> &mut Self {
        let mut digits = [b' '; 20];
        let from = decimal(value, &mut digits);
        self.put(&digits[from.min(20 - width.min(20))..])
    }

    /// Appends a number, hexadecimal, with at least `width` digits.
    pub fn hex(&mut self, value: u64, width: usize) -> &mut Self {
        let needed = (67 - value.leading_zeros() as usize) / 4;
        let nr = needed.max(width).clamp(1, 16);
        let mut digits = [0; 16];
        for (i, digit) in digits[..nr].iter_mut().rev().enumerate() {
            *digit = b"0123456789abcdef"[(value >> (i * 4) & 15) as usize];
        }
        self.put(&digits[..nr])
    }
}

impl core::fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}

/// Writes `value` to the end of `digits`; returns where it begins.
#[inline]
pub fn decimal(mut value: u64, digits: &mut [u8; 20]) -> usize {
    let mut at = 20;
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return at;
        }
    }
}
