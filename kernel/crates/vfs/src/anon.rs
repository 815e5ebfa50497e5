//! Files that other crates make: pidfds, eventfds, timers, procfs nodes.
//!
//! Problem: a file descriptor may stand for an object of a floor above, whose type cannot be named
//! here, and `File` must stay one type without a generic. Mechanism: a trait, and a handle that
//! erases the object's type: its counted pointer and a table of functions made for the type.
//! Regular files, pipes and devices do not pay for this: they are variants of their own.
//!
//! INV-ANON-1: `ptr` came from `KArc::<T>::into_raw`, and `vtable` is `T`'s.

use crate::VfsError;
use crate::poll::PollMask;
use crate::uio::{BufIn, BufOut};
use core::any::TypeId;
use core::marker::PhantomData;
use core::ptr::NonNull;
use ksync::WaitQueue;
use slab::{KArc, Object};

/// What a file made elsewhere can do. Methods may sleep.
pub trait AnonFile: Object + Send + Sync {
    /// Shown by readlink of /proc/PID/fd/N, as `anon_inode:NAME`.
    const NAME: &'static str;

    /// Reads at `pos`, and moves it if the file has a position. EINVAL if it cannot be read.
    fn read(
        &self,
        _pos: &mut u64,
        _buf: &mut dyn BufOut,
        _nonblock: bool,
    ) -> Result<usize, VfsError> {
        Err(VfsError::EINVAL)
    }
    /// Writes. EINVAL if it cannot be written.
    fn write(
        &self,
        _pos: &mut u64,
        _buf: &mut dyn BufIn,
        _nonblock: bool,
    ) -> Result<usize, VfsError> {
        Err(VfsError::EINVAL)
    }
    /// Whether lseek and pread make sense.
    fn seekable(&self) -> bool {
        false
    }
    /// What would not block.
    fn poll(&self) -> PollMask {
        PollMask::ALWAYS
    }
    /// Woken when that changes.
    fn wait_queue(&self) -> Option<&WaitQueue> {
        None
    }
}

/// A counted pointer to some [`AnonFile`].
pub struct AnonHandle {
    ptr: NonNull<()>,
    vtable: &'static Vtable,
}

// SAFETY: it stands for a KArc<T> of a `T: Send + Sync` (INV-ANON-1).
unsafe impl Send for AnonHandle {}
// SAFETY: as above.
unsafe impl Sync for AnonHandle {}

/// [`AnonFile::read`] of the object behind the pointer.
///
/// # Safety
/// The pointer is to an object of the table's type, held meanwhile.
type Read = unsafe fn(NonNull<()>, &mut u64, &mut dyn BufOut, bool) -> Result<usize, VfsError>;
/// [`AnonFile::write`] of the object behind the pointer.
///
/// # Safety
/// As for [`Read`].
type Write = unsafe fn(NonNull<()>, &mut u64, &mut dyn BufIn, bool) -> Result<usize, VfsError>;

struct Vtable {
    type_id: fn() -> TypeId,
    name: &'static str,
    read: Read,
    write: Write,
    poll: unsafe fn(NonNull<()>) -> PollMask,
    wait_queue: for<'a> unsafe fn(&'a NonNull<()>) -> Option<&'a WaitQueue>,
    release: unsafe fn(NonNull<()>),
}

struct TableOf<T>(PhantomData<T>);

impl<T: AnonFile> TableOf<T> {
    const TABLE: Vtable = Vtable {
        type_id: TypeId::of::<T>,
        name: T::NAME,
        // SAFETY: INV-ANON-1: the pointer is to a T that the handle holds.
        read: |p, pos, buf, nonblock| unsafe { p.cast::<T>().as_ref() }.read(pos, buf, nonblock),
        // SAFETY: as above.
        write: |p, pos, buf, nonblock| unsafe { p.cast::<T>().as_ref() }.write(pos, buf, nonblock),
        // SAFETY: as above.
        poll: |p| unsafe { p.cast::<T>().as_ref() }.poll(),
        // SAFETY: as above; the handle is borrowed for as long as the queue.
        wait_queue: |p| unsafe { p.cast::<T>().as_ref() }.wait_queue(),
        // SAFETY: as above; called once, when the handle is dropped.
        release: |p| drop(unsafe { KArc::<T>::from_raw(p.cast()) }),
    };
}

impl AnonHandle {
    /// Erases the type.
    pub fn new<T: AnonFile>(object: KArc<T>) -> Self {
        // INV-ANON-1 is established here.
        AnonHandle {
            ptr: KArc::into_raw(object).cast(),
            vtable: &TableOf::<T>::TABLE,
        }
    }

    /// The object, if it is a `T`.
    pub fn downcast<T: AnonFile>(&self) -> Option<&T> {
        // SAFETY: INV-ANON-1: the types agree, and the handle holds the object.
        ((self.vtable.type_id)() == TypeId::of::<T>()).then(|| unsafe { self.ptr.cast().as_ref() })
    }

    /// A counted pointer to the object, if it is a `T`.
    pub fn downcast_arc<T: AnonFile>(&self) -> Option<KArc<T>> {
        // SAFETY: as above; the handle's reference is held meanwhile.
        self.downcast::<T>()
            .map(|_| unsafe { KArc::clone_raw(self.ptr.cast::<T>()) })
    }

    /// The type's name.
    pub fn name(&self) -> &'static str {
        self.vtable.name
    }

    pub(crate) fn read(
        &self,
        pos: &mut u64,
        buf: &mut dyn BufOut,
        nonblock: bool,
    ) -> Result<usize, VfsError> {
        // SAFETY: INV-ANON-1.
        unsafe { (self.vtable.read)(self.ptr, pos, buf, nonblock) }
    }

    pub(crate) fn write(
        &self,
        pos: &mut u64,
        buf: &mut dyn BufIn,
        nonblock: bool,
    ) -> Result<usize, VfsError> {
        // SAFETY: INV-ANON-1.
        unsafe { (self.vtable.write)(self.ptr, pos, buf, nonblock) }
    }

    pub(crate) fn poll(&self) -> PollMask {
        // SAFETY: INV-ANON-1.
        unsafe { (self.vtable.poll)(self.ptr) }
    }

    pub(crate) fn wait_queue(&self) -> Option<&WaitQueue> {
        // SAFETY: INV-ANON-1.
        unsafe { (self.vtable.wait_queue)(&self.ptr) }
    }
}

impl Drop for AnonHandle {
    fn drop(&mut self) {
        // SAFETY: INV-ANON-1; the handle is not used again.
        unsafe { (self.vtable.release)(self.ptr) }
    }
}
