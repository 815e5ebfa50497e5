//! User memory as the source and the destination of file operations: one range, or the ranges of an iovec.
//!
//! An iovec is one transfer, as on Linux: what `writev` gives a pipe arrives in one piece if it is at most PIPE_BUF
//! bytes. The ranges are copied in first, so that a program cannot change them while they are in use.

use crate::arch::uaccess::{self, copy_from_user, copy_to_user_partial, get_user};
use crate::errno::Errno;
use alloc::vec::Vec;
use vfs::{BufIn, BufOut, Efault};

/// Linux's limit for one transfer, in bytes.
pub const MAX_RW_COUNT: usize = 0x7fff_f000;
/// Ranges of one iovec.
pub const IOV_MAX: usize = 1024;

/// A range of user memory of which `left` bytes from `at` on are not used yet. It lies below TASK_SIZE.
#[derive(Clone, Copy)]
pub struct UserRange {
    at: usize,
    left: usize,
}

impl UserRange {
    /// # Errors
    /// EFAULT for a range that leaves user space.
    pub fn new(at: usize, len: usize) -> Result<Self, Errno> {
        if len > uaccess::TASK_SIZE || at > uaccess::TASK_SIZE - len {
            return Err(Errno::EFAULT);
        }
        let left = len.min(MAX_RW_COUNT);
        Ok(UserRange { at, left })
    }

    fn used(&mut self, n: usize) {
        self.at += n;
        self.left -= n;
    }
}

impl BufOut for UserRange {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Efault> {
        let (done, result) = match copy_to_user_partial(self.at, bytes) {
            Ok(()) => (bytes.len(), Ok(())),
            Err(done) => (done, Err(Efault)),
        };
        self.used(done);
        result
    }

    fn remaining(&self) -> usize {
        self.left
    }
}

impl BufIn for UserRange {
    fn get(&mut self, dst: &mut [u8]) -> Result<usize, Efault> {
        let n = dst.len().min(self.left);
        copy_from_user(&mut dst[..n], self.at).map_err(|_| Efault)?;
        self.used(n);
        Ok(n)
    }

    fn remaining(&self) -> usize {
        self.left
    }
}

/// An iovec, used from its front.
pub struct UserRanges {
    ranges: Vec<UserRange>,
    /// The first range that may have bytes left.
    next: usize,
    left: usize,
}

impl UserRanges {
    /// Copies in the `count` ranges at user address `at`. May sleep.
    ///
    /// # Errors
    /// EINVAL for more than [`IOV_MAX`] ranges or more bytes than a signed length can hold, EFAULT, ENOMEM.
    pub fn read(at: usize, count: usize) -> Result<Self, Errno> {
        if count > IOV_MAX {
            return Err(Errno::EINVAL);
        }
        let mut ranges = Vec::new();
        ranges.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
        let mut left = 0usize;
        for i in 0..count {
            let [base, len]: [usize; 2] = get_user(at.wrapping_add(i * 16))?;
            if len > isize::MAX as usize {
                return Err(Errno::EINVAL);
            }
            let mut range = UserRange::new(base, len)?;
            range.left = range.left.min(MAX_RW_COUNT - left);
            left += range.left;
            ranges.push(range);
        }
        Ok(UserRanges {
            ranges,
            next: 0,
            left,
        })
    }

    /// The range to go on with. Only while bytes are left.
    fn front(&mut self) -> &mut UserRange {
        while self.ranges[self.next].left == 0 {
            self.next += 1;
        }
        &mut self.ranges[self.next]
    }
}

impl BufOut for UserRanges {
    fn put(&mut self, mut bytes: &[u8]) -> Result<(), Efault> {
        while !bytes.is_empty() {
            let range = self.front();
            let before = range.left;
            let (head, tail) = bytes.split_at(bytes.len().min(before));
            let result = range.put(head);
            let used = before - range.left;
            self.left -= used;
            result?;
            bytes = tail;
        }
        Ok(())
    }

    fn remaining(&self) -> usize {
        self.left
    }
}

impl BufIn for UserRanges {
    fn get(&mut self, dst: &mut [u8]) -> Result<usize, Efault> {
        let mut done = 0;
        while done < dst.len() && self.left > 0 {
            match self.front().get(&mut dst[done..]) {
                Ok(n) => {
                    done += n;
                    self.left -= n;
                }
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn remaining(&self) -> usize {
        self.left
    }
}
