//! Listing a directory.
//!
//! Mechanism: every name has a cookie, given once and in order; the position in an open directory
//! is the next cookie to look at. So names that come and go never make a listing skip or repeat
//! another. Records are packed in a small buffer under the directory's spinlock and copied to the
//! user after it.
//!
//! ```text
//!   linux_dirent64:  0 ino: u64   8 off: i64   16 reclen: u16   18 type: u8   19 name, 0, padding
//! ```

use crate::VfsError;
use crate::dentry::Dentry;
use crate::flags::{NAME_MAX, S_IFMT};
use crate::inode::{DirState, FIRST_COOKIE, InodeKind};
use crate::synth::{Listing, SynthHandle};
use crate::uio::BufOut;
use ksync::rcu::{self, RcuGuard};
use slab::KArc;

/// Bytes packed under one hold of the lock.
const BATCH: usize = if cfg!(test) { 320 } else { 1024 };
const HEADER: usize = 19;
const _: () = assert!(BATCH >= (HEADER + NAME_MAX + 1).next_multiple_of(8));

/// Records on their way to the user.
pub(crate) struct Packer {
    bytes: [u8; BATCH],
    used: usize,
    /// The user's room.
    room: usize,
    /// The position behind the last record.
    next: u64,
}

impl Packer {
    /// Appends a record; false if it does not fit. `next`: the position behind it.
    pub(crate) fn put(&mut self, ino: u64, next: u64, mode: u32, name: &[u8]) -> bool {
        let len = (HEADER + name.len() + 1).next_multiple_of(8);
        if self.used + len > self.room.min(BATCH) {
            return false;
        }
        let record = &mut self.bytes[self.used..self.used + len];
        record[0..8].copy_from_slice(&ino.to_le_bytes());
        record[8..16].copy_from_slice(&next.to_le_bytes());
        record[16..18].copy_from_slice(&(len as u16).to_le_bytes());
        record[18] = ((mode & S_IFMT) >> 12) as u8;
        record[HEADER..HEADER + name.len()].copy_from_slice(name);
        record[HEADER + name.len()..].fill(0);
        self.used += len;
        self.next = next;
        true
    }
}

/// Copies records from position `pos` on, and moves it. 0: the end. EINVAL (no room for one),
/// EFAULT, ENOENT (the directory has been removed). May sleep.
pub(crate) fn getdents64(
    dir: &KArc<Dentry>,
    pos: &mut u64,
    buf: &mut impl BufOut,
) -> Result<usize, VfsError> {
    let wanted = buf.remaining();
    loop {
        let mut packer = Packer {
            bytes: [0; BATCH],
            used: 0,
            room: buf.remaining(),
            next: *pos,
        };
        let at_end = pack(dir, *pos, &mut packer)?;
        let done = wanted - buf.remaining();
        if packer.used == 0 {
            return if done == 0 && !at_end {
                Err(VfsError::EINVAL)
            } else {
                Ok(done)
            };
        }
        if let Err(e) = buf.put(&packer.bytes[..packer.used]) {
            // A batch whose copy faults will be given again.
            return if done > 0 { Ok(done) } else { Err(e.into()) };
        }
        *pos = packer.next;
        if at_end {
            return Ok(wanted - buf.remaining());
        }
    }
}

/// Packs what fits from `pos` on; whether that was all.
fn pack(dir: &KArc<Dentry>, pos: u64, packer: &mut Packer) -> Result<bool, VfsError> {
    let inode = dir.inode();
    if let InodeKind::Synth(node) = &inode.kind {
        return pack_synth(dir, node, pos, packer);
    }
    let rcu = rcu::read_lock();
    let mut state = inode.as_dir()?.state.lock();
    if state.dead {
        return Err(VfsError::ENOENT);
    }
    if !pack_dots(dir, pos, packer, &rcu) {
        return Ok(false);
    }
    Ok(pack_names(&mut state, pos.max(FIRST_COOKIE), packer, &rcu))
}

/// The two names that every directory has.
fn pack_dots(dir: &Dentry, pos: u64, packer: &mut Packer, rcu: &RcuGuard) -> bool {
    let inode = dir.inode();
    (pos..FIRST_COOKIE).all(|at| {
        let (name, ino) = match at {
            0 => (&b"."[..], inode.ino()),
            _ => (&b".."[..], dir.parent(rcu).inode().ino()),
        };
        packer.put(ino, at + 1, inode.mode(), name)
    })
}

/// As [`pack`] in a synthetic directory.
fn pack_synth(
    dir: &Dentry,
    node: &SynthHandle,
    pos: u64,
    packer: &mut Packer,
) -> Result<bool, VfsError> {
    if !pack_dots(dir, pos, packer, &rcu::read_lock()) {
        return Ok(false);
    }
    let mut out = Listing {
        packer,
        full: false,
    };
    node.list(pos.max(FIRST_COOKIE), &mut out)?;
    Ok(!out.full)
}

fn pack_names(state: &mut DirState, from: u64, packer: &mut Packer, rcu: &RcuGuard) -> bool {
    let mut at = from;
    while let Some((cookie, entry)) = state.entries.exclusive().next(at, u64::MAX - 1) {
        // SAFETY: listed, so in the tree, which owns a reference (INV-DIR-1); the lock is held.
        let dentry = unsafe { entry.0.as_ref() };
        let inode = dentry.inode();
        if !packer.put(inode.ino(), cookie + 1, inode.mode(), dentry.name(rcu)) {
            return false;
        }
        at = cookie + 1;
    }
    true
}
