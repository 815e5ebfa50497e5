//! Why an operation on processes failed.

use mm::MmError;
use pid::{NsError, PidError};
use slab::AllocError;
use vfs::VfsError;

/// Errors of this crate; the system-call edge maps them to errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskError {
    /// EINVAL.
    Invalid,
    /// ENOMEM.
    NoMemory,
    /// EAGAIN: no free id, or too many processes.
    Again,
    /// EPERM.
    NotPermitted,
    /// EEXIST: a wanted id is taken.
    Exists,
    /// ESRCH.
    NoSuchProcess,
    /// ECHILD.
    NoChild,
    /// A signal ended the wait; ERESTARTSYS.
    Interrupted,
    /// A signal comes first, then the call is made again whatever its handler says; ERESTARTNOINTR.
    Restart,
    /// ENOSPC: namespaces nest too deep.
    TooDeep,
    /// ENOEXEC: not a program for this machine.
    BadProgram,
    /// E2BIG: arguments and environment are too long.
    TooBig,
    /// EFAULT.
    Fault,
    /// ETIMEDOUT.
    TimedOut,
    /// A file operation of exec failed.
    File(VfsError),
}

impl From<AllocError> for TaskError {
    fn from(_: AllocError) -> Self {
        TaskError::NoMemory
    }
}

impl From<MmError> for TaskError {
    fn from(e: MmError) -> Self {
        match e {
            MmError::NoMemory => TaskError::NoMemory,
            MmError::Fault => TaskError::Fault,
            _ => TaskError::Invalid,
        }
    }
}

impl From<VfsError> for TaskError {
    fn from(e: VfsError) -> Self {
        TaskError::File(e)
    }
}

impl From<PidError> for TaskError {
    fn from(e: PidError) -> Self {
        match e {
            PidError::Invalid => TaskError::Invalid,
            PidError::Perm => TaskError::NotPermitted,
            PidError::Exists => TaskError::Exists,
            PidError::Exhausted => TaskError::Again,
            PidError::NoMemory => TaskError::NoMemory,
        }
    }
}

impl From<NsError> for TaskError {
    fn from(e: NsError) -> Self {
        match e {
            NsError::TooDeep => TaskError::TooDeep,
            NsError::NoMemory => TaskError::NoMemory,
        }
    }
}
