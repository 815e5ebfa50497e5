//! `VfsError`: what a file operation can answer, named and numbered like Linux's errno.
//!
//! The system call edge turns a value into a register with [`VfsError::errno`]; nothing below the
//! edge does arithmetic on it.

use ksync::Interrupted;
use page_alloc::OutOfMemory;
use slab::AllocError;

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $nr:literal,)*) => {
        /// Why a file operation failed. Nothing has changed unless the operation says otherwise.
        #[derive(Copy, Clone, Debug, PartialEq, Eq)]
        #[repr(i32)]
        pub enum VfsError { $($(#[$doc])* $name = $nr,)* }

        impl VfsError {
            /// The errno's name.
            pub fn name(self) -> &'static str {
                match self { $(VfsError::$name => stringify!($name),)* }
            }
        }
    };
}

errors! {
    /// Not permitted on this kind of object.
    EPERM = 1,
    /// No such name.
    ENOENT = 2,
    /// The process is gone.
    ESRCH = 3,
    /// A device failed.
    EIO = 5,
    /// No such device, or a FIFO without a reader.
    ENXIO = 6,
    /// Not an open descriptor, or open for the other direction.
    EBADF = 9,
    /// It would block.
    EAGAIN = 11,
    /// Memory could not be had.
    ENOMEM = 12,
    /// The permission bits say no.
    EACCES = 13,
    /// A user address is bad.
    EFAULT = 14,
    /// In use: a mount point, the root.
    EBUSY = 16,
    /// The name exists.
    EEXIST = 17,
    /// Not on the same file system.
    EXDEV = 18,
    /// No such operation on this device.
    ENODEV = 19,
    /// A path goes through something that is no directory.
    ENOTDIR = 20,
    /// A directory where none may be.
    EISDIR = 21,
    /// An argument makes no sense.
    EINVAL = 22,
    /// No free descriptor below the limit.
    EMFILE = 24,
    /// Not a terminal.
    ENOTTY = 25,
    /// The program file is being executed, or is open for writing.
    ETXTBSY = 26,
    /// The file would become too large.
    EFBIG = 27,
    /// The device is full.
    ENOSPC = 28,
    /// No position to seek to.
    ESPIPE = 29,
    /// Too many links.
    EMLINK = 31,
    /// A pipe without a reader: the caller raises SIGPIPE.
    EPIPE = 32,
    /// The answer does not fit the buffer.
    ERANGE = 34,
    /// A name or path is too long.
    ENAMETOOLONG = 36,
    /// The directory has entries.
    ENOTEMPTY = 39,
    /// Too many symbolic links.
    ELOOP = 40,
    /// A number does not fit its field.
    EOVERFLOW = 75,
    /// Not supported here.
    EOPNOTSUPP = 95,
    /// A signal ended the wait before anything was done: the edge restarts the call or answers
    /// EINTR. (ERESTARTSYS; programs never see 512.)
    ERESTARTSYS = 512,
}

impl VfsError {
    /// Linux's number, positive.
    #[inline(always)]
    pub fn errno(self) -> i32 {
        self as i32
    }
}

impl core::fmt::Display for VfsError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

impl core::error::Error for VfsError {}

impl From<AllocError> for VfsError {
    fn from(_: AllocError) -> Self {
        VfsError::ENOMEM
    }
}

impl From<OutOfMemory> for VfsError {
    fn from(_: OutOfMemory) -> Self {
        VfsError::ENOMEM
    }
}

impl From<Interrupted> for VfsError {
    fn from(_: Interrupted) -> Self {
        VfsError::ERESTARTSYS
    }
}
