//! User address spaces: areas (VMAs), page tables, page faults, fork and exit of memory.
//!
//! Problem. A process sees 128 TiB of which it uses some hundred KiB in a few dozen areas. Making
//! a copy of that (fork), throwing it away (exit, exec) and filling it in on demand (faults) is
//! most of what process creation costs.
//!
//! Mechanism. One [`Mm`] per address space: a red-black tree of areas ([`vma`], [`tree`]) under a
//! sleeping reader-writer lock, and x86 page tables ([`pgtable`]) whose entries are changed by
//! compare-and-swap, so that faults of many threads meet on no lock but the shared `mmap_lock`.
//!
//! ```text
//!   0x7fff_ffff_f000  TASK_SIZE
//!                     stack, grows down to its limit      [VM_GROWSDOWN]
//!                     ...
//!   0x7fff_f7ff_f000  mmap_base; mmap places areas top-down from here
//!                     ...
//!                     brk heap, grows up
//!                     data, text of the program (0x400000)
//!   0x1000            MMAP_MIN_ADDR
//! ```
//!
//! Lock order: `mmap_lock` (parent's before child's in fork), `i_mmap` of a file, `page_table_lock`
//! of one mm. Page allocation is called with any of them held and never sleeps. Reading a file's
//! page (its filler) is done with `mmap_lock` held for read.
//!
//! Invariants: INV-PT-* ([`pgtable`]), INV-VMA-* ([`vma`]), INV-TREE-* ([`tree`]), INV-MM-*
//! ([`mm`]), INV-FAULT-* ([`fault`]), INV-FORK-* ([`fork`]), INV-ZAP-* ([`zap`]).
#![no_std]

#[cfg(test)]
extern crate std;

mod brk;
mod check;
mod fault;
mod file;
mod fork;
mod layout;
mod migrate;
mod mm;
mod mmap;
mod mprotect;
mod mremap;
pub mod pgtable;
mod remote;
mod rss;
mod setup;
mod tree;
mod vma;
mod zap;

#[cfg(test)]
mod tests;

pub use check::MmReport;
pub use fault::{FaultError, FaultFlags};
pub use file::{
    Mapping, clean_mapping_range, for_each_mapping_of, reclaim_for_retry, reclaim_pages,
    unmap_leaving, unmap_mapping_range,
};
pub use layout::Layout;
pub use migrate::PageNode;
pub use mm::switch_mm;
pub use mm::{Mm, MmUser, init};
pub use mmap::{MapArgs, MapFlags, Prot};
pub use mremap::RemapFlags;
pub use pgtable::set_kernel_pgd;
pub use rss::{RssKind, RssStat};
pub use setup::place::{MmLists, for_each_pgd, for_each_rss, set_lists};
pub use setup::{MmKind, current_cid, drain_shells, set_check, set_group, set_kind};
pub use vma::{VmFlags, VmaInfo};

/// End of the user half: one guard page below the canonical hole.
pub const TASK_SIZE: usize = 0x7fff_ffff_f000;
/// Lowest address a mapping may have: page 0 stays unmapped so that null pointers fault.
pub const MMAP_MIN_ADDR: usize = 0x1000;
/// mmap places areas top-down from here: room for a stack of up to 128 MiB above.
pub const MMAP_BASE: usize = TASK_SIZE - (128 << 20);
/// Unmapped room kept below an area that grows down, in bytes.
pub const STACK_GUARD_GAP: usize = 256 * ksync::PAGE_SIZE;
/// Default limit of the stack, in bytes.
pub const STACK_LIMIT_DEFAULT: usize = 8 << 20;
/// Greatest number of areas of one address space.
pub const MAX_MAP_COUNT: usize = 65530;

/// Why a call on an address space failed. Nothing has changed then.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum MmError {
    /// No memory, no room in the address space, too many areas, or a hole in the range (ENOMEM).
    NoMemory,
    /// An argument makes no sense (EINVAL).
    Invalid,
    /// MAP_FIXED_NOREPLACE met an existing mapping (EEXIST).
    Exists,
    /// The file was not opened for this kind of access (EACCES).
    Access,
    /// An address in the range is not mapped (EFAULT; for mremap and remote accesses).
    Fault,
    /// Below the lowest address that may be mapped (EPERM).
    Perm,
    /// Page offsets in the file overflow (EOVERFLOW).
    Overflow,
}

impl From<slab::AllocError> for MmError {
    fn from(_: slab::AllocError) -> Self {
        MmError::NoMemory
    }
}

impl From<page_alloc::OutOfMemory> for MmError {
    fn from(_: page_alloc::OutOfMemory) -> Self {
        MmError::NoMemory
    }
}

/// A place between two steps where tests let others run.
#[inline(always)]
pub(crate) fn interleave(_point: &'static str) {
    #[cfg(test)]
    tests::interleave::reached(_point);
}

/// Whether a test has planted this bug. Never outside of tests.
#[inline(always)]
pub(crate) fn planted(_bug: &str) -> bool {
    #[cfg(test)]
    return tests::setup::is_planted(_bug);
    #[cfg(not(test))]
    false
}

/// Rounds up to whole pages; None on overflow.
#[inline]
pub(crate) fn page_align(len: usize) -> Option<usize> {
    Some(len.checked_add(ksync::PAGE_SIZE - 1)? & !(ksync::PAGE_SIZE - 1))
}
