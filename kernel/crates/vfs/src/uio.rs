//! User buffers: where bytes go to and come from.
//!
//! Problem: `read` copies into user memory, where any access may fault, and this crate knows
//! nothing of address spaces. Mechanism: two traits. The kernel implements them over user ranges
//! (an iovec is one buffer), tests over vectors; the copy is a generic, so it is a direct call.
//!
//! INV-UIO-1: an implementation never transfers more than `remaining()` bytes, and after an error
//! `remaining()` has fallen by exactly the bytes that were transferred.

/// A user address is bad. What was transferred before stays transferred.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Efault;

impl From<Efault> for crate::VfsError {
    fn from(_: Efault) -> Self {
        crate::VfsError::EFAULT
    }
}

/// Where `read` puts bytes. Calls may fault and sleep: no spinlock and no RCU section is held.
pub trait BufOut {
    /// Appends `bytes`, at most `remaining()` of them. On a fault the part before it has been
    /// transferred, and `remaining()` says how much that was.
    fn put(&mut self, bytes: &[u8]) -> Result<(), Efault>;

    /// Bytes of room left.
    fn remaining(&self) -> usize;

    /// Whether `put` neither faults nor sleeps, so that it may be called inside an RCU section.
    #[inline(always)]
    fn is_atomic(&self) -> bool {
        false
    }

    /// Appends `len` zero bytes.
    fn put_zeroes(&mut self, mut len: usize) -> Result<(), Efault> {
        static ZEROES: [u8; 512] = [0; 512];
        while len > 0 {
            let n = len.min(ZEROES.len());
            self.put(&ZEROES[..n])?;
            len -= n;
        }
        Ok(())
    }
}

/// Where `write` takes bytes from. Calls may fault and sleep.
pub trait BufIn {
    /// Moves the next bytes to `dst`: `dst.len()` or `remaining()`, the smaller. A fault after
    /// some bytes gives that shorter count; the next call then fails.
    fn get(&mut self, dst: &mut [u8]) -> Result<usize, Efault>;

    /// Bytes left to take.
    fn remaining(&self) -> usize;
}

/// A kernel buffer as a destination.
impl BufOut for &mut [u8] {
    #[inline(always)]
    fn is_atomic(&self) -> bool {
        true
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Efault> {
        let (head, tail) = core::mem::take(self)
            .split_at_mut_checked(bytes.len())
            .ok_or(Efault)?;
        head.copy_from_slice(bytes);
        *self = tail;
        Ok(())
    }

    fn remaining(&self) -> usize {
        self.len()
    }
}

/// A kernel buffer as a source.
impl BufIn for &[u8] {
    fn get(&mut self, dst: &mut [u8]) -> Result<usize, Efault> {
        let n = dst.len().min(self.len());
        let (head, tail) = self.split_at(n);
        dst[..n].copy_from_slice(head);
        *self = tail;
        Ok(n)
    }

    fn remaining(&self) -> usize {
        self.len()
    }
}

impl<B: BufOut + ?Sized> BufOut for &mut B {
    #[inline(always)]
    fn is_atomic(&self) -> bool {
        (**self).is_atomic()
    }
    fn put(&mut self, bytes: &[u8]) -> Result<(), Efault> {
        (**self).put(bytes)
    }
    fn remaining(&self) -> usize {
        (**self).remaining()
    }
    fn put_zeroes(&mut self, len: usize) -> Result<(), Efault> {
        (**self).put_zeroes(len)
    }
}

impl<B: BufIn + ?Sized> BufIn for &mut B {
    fn get(&mut self, dst: &mut [u8]) -> Result<usize, Efault> {
        (**self).get(dst)
    }
    fn remaining(&self) -> usize {
        (**self).remaining()
    }
}
