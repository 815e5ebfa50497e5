//! Error numbers, and the one table that maps every crate's errors to them.

use crate::arch::uaccess;
use mm::MmError;
use task::TaskError;

/// A Linux error number, positive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub u16);

macro_rules! errnos { ($($name:ident = $n:literal),* $(,)?) => {
    #[allow(missing_docs)]
    impl Errno { $(pub const $name: Errno = Errno($n);)* }
} }
errnos! {
    EPERM = 1, ENOENT = 2, ESRCH = 3, EINTR = 4, EIO = 5, E2BIG = 7, ENOEXEC = 8, EBADF = 9, ECHILD = 10, EAGAIN = 11,
    ENOMEM = 12, EACCES = 13, EFAULT = 14, EBUSY = 16, EEXIST = 17, ENODEV = 19, ENOTDIR = 20, EISDIR = 21, EINVAL = 22, ENOTTY = 25,
    ENOSPC = 28, ERANGE = 34, ENAMETOOLONG = 36, ENOSYS = 38, EOVERFLOW = 75, ETIMEDOUT = 110,
    ENOTSUP = 95, ESPIPE = 29, ENODATA = 61, ENOTSOCK = 88, EAFNOSUPPORT = 97,
    // Never seen by programs: what an interrupted call leaves for the way out.
    ERESTARTSYS = 512, ERESTARTNOINTR = 513, ERESTARTNOHAND = 514, ERESTART_RESTARTBLOCK = 516,
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter) -> core::fmt::Result {
        let name = match *self {
            Errno::ENOENT => "ENOENT",
            Errno::ENOEXEC => "ENOEXEC",
            Errno::ENOMEM => "ENOMEM",
            Errno::EACCES => "EACCES",
            Errno::EISDIR => "EISDIR",
            Errno::ENOTDIR => "ENOTDIR",
            Errno::E2BIG => "E2BIG",
            Errno::EINVAL => "EINVAL",
            Errno::EFAULT => "EFAULT",
            Errno::EAGAIN => "EAGAIN",
            Errno::ECHILD => "ECHILD",
            Errno(n) => return write!(f, "errno {n}"),
        };
        f.write_str(name)
    }
}

impl From<uaccess::Efault> for Errno {
    fn from(_: uaccess::Efault) -> Self {
        Errno::EFAULT
    }
}

impl From<slab::AllocError> for Errno {
    fn from(_: slab::AllocError) -> Self {
        Errno::ENOMEM
    }
}

impl From<page_alloc::OutOfMemory> for Errno {
    fn from(_: page_alloc::OutOfMemory) -> Self {
        Errno::ENOMEM
    }
}

impl From<MmError> for Errno {
    fn from(e: MmError) -> Self {
        match e {
            MmError::NoMemory => Errno::ENOMEM,
            MmError::Invalid => Errno::EINVAL,
            MmError::Exists => Errno::EEXIST,
            MmError::Access => Errno::EACCES,
            MmError::Fault => Errno::EFAULT,
            MmError::Perm => Errno::EPERM,
            MmError::Overflow => Errno::EOVERFLOW,
        }
    }
}

impl From<vfs::VfsError> for Errno {
    fn from(e: vfs::VfsError) -> Self {
        match e.errno() {
            4 => Errno::ERESTARTSYS, // an interrupted wait of the file layer
            n => Errno(n as u16),
        }
    }
}

impl From<TaskError> for Errno {
    fn from(e: TaskError) -> Self {
        match e {
            TaskError::Invalid => Errno::EINVAL,
            TaskError::NoMemory => Errno::ENOMEM,
            TaskError::Again => Errno::EAGAIN,
            TaskError::NotPermitted => Errno::EPERM,
            TaskError::Exists => Errno::EEXIST,
            TaskError::NoSuchProcess => Errno::ESRCH,
            TaskError::NoChild => Errno::ECHILD,
            TaskError::Interrupted => Errno::ERESTARTSYS,
            TaskError::Restart => Errno::ERESTARTNOINTR,
            TaskError::TooDeep => Errno::ENOSPC,
            TaskError::BadProgram => Errno::ENOEXEC,
            TaskError::TooBig => Errno::E2BIG,
            TaskError::Fault => Errno::EFAULT,
            TaskError::TimedOut => Errno::ETIMEDOUT,
            TaskError::File(e) => e.into(),
        }
    }
}
