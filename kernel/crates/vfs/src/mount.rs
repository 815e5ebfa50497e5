//! Mounts: a synthetic file system in place of a directory.
//!
//! Problem: /proc must be somewhere, and a new pid namespace wants one of its own, without a test for mount points in
//! every step of every walk. Mechanism: a mount takes the directory's place. The root's dentry has the directory's name
//! and parent, is hashed and listed in its stead, and the covered dentry is off the tree, held by the mount, until
//! umount puts it back. Mounts stack. There is one table for all processes (no mount namespaces).
//!
//! Lock order: the table's mutex (sleeps), then the parent directory's lock.
//!
//! INV-MOUNT-1: the mounts in the table are those whose root is in the tree or covered by a later mount's.

use crate::VfsError;
use crate::dentry::{Dentry, d_add, d_drop, d_lookup};
use crate::flags::NAME_MAX;
use crate::inode::{DentryPtr, Inode, InodeKind};
use crate::namei::{At, lookup};
use crate::synth::SynthHandle;
use core::ptr::{self, NonNull};
use ksync::rcu;
use ksync::{Mutex, lock_class};
use slab::{KArc, List};

/// Levels of names below a synthetic root.
const DEPTH_MAX: usize = 5;

/// One mount.
pub struct Mount {
    root: KArc<Dentry>,
    covered: KArc<Dentry>,
    /// The file system's name ("proc").
    pub fs_type: &'static str,
}
slab::object!(Mount, "mnt_cache", links = 1);

static MOUNTS: Mutex<List<Mount, 0>> = Mutex::new(List::new(), lock_class!("mounts"));

impl Mount {
    /// Its root.
    pub fn root(&self) -> &KArc<Dentry> {
        &self.root
    }
}

/// Mounts the file system whose root is `node` on the directory at `path`. ENOTDIR, EBUSY (the root of the tree),
/// EINVAL (inside a synthetic directory), ENOENT, ENOMEM. May sleep.
pub fn mount(
    at: At<'_>,
    path: &[u8],
    node: SynthHandle,
    fs_type: &'static str,
) -> Result<(), VfsError> {
    let covered = lookup(at, path, true)?;
    if !covered.inode().is_dir() {
        return Err(VfsError::ENOTDIR);
    }
    let parent = parent_of(&covered)?;
    let (mut name, len) = ([0; NAME_MAX], {
        let rcu = rcu::read_lock();
        covered.name(&rcu).len()
    });
    name[..len].copy_from_slice(covered.name(&rcu::read_lock()));
    let root = Dentry::new(&parent, &name[..len], Inode::new_synth(node)?)?;
    let mount = KArc::new(Mount {
        root,
        covered,
        fs_type,
    })?;
    let mut mounts = MOUNTS.lock();
    let uncovered = swap(&parent, &mount.covered, &mount.root)?;
    if mounts.push_front(mount).is_err() {
        unreachable!("a new mount is in no list");
    }
    drop(mounts);
    drop(uncovered);
    Ok(())
}

/// Takes the last mount at `path` away. EINVAL: nothing is mounted there; EBUSY: somebody uses it (not if `detach`).
/// May sleep.
pub fn umount(at: At<'_>, path: &[u8], detach: bool) -> Result<(), VfsError> {
    let root = lookup(at, path, true)?;
    // The tree's reference, the mount's, and ours. Names that walks made let go of their parents a grace period later.
    let busy = || KArc::refcount(&root) > 3;
    for _ in 0..DEPTH_MAX {
        if busy() {
            rcu::barrier();
        }
    }
    let mut mounts = MOUNTS.lock();
    let Some(mount) = mounts
        .iter()
        .find(|m| KArc::ptr_eq(&m.root, &root))
        .cloned()
    else {
        return Err(VfsError::EINVAL);
    };
    if !detach && busy() {
        return Err(VfsError::EBUSY);
    }
    let parent = parent_of(&root)?;
    let removed = swap(&parent, &root, &mount.covered)?;
    drop(mounts.remove(&mount));
    drop(mounts);
    drop(removed);
    Ok(())
}

/// The mount after the first `nr`, newest first: for /proc/mounts. May sleep.
pub fn nth_mount(nr: usize) -> Option<KArc<Mount>> {
    MOUNTS.lock().iter().nth(nr).cloned()
}

/// The directory that a name is in. EBUSY: it is the root.
fn parent_of(dentry: &Dentry) -> Result<KArc<Dentry>, VfsError> {
    let rcu = rcu::read_lock();
    let parent = dentry.parent(&rcu);
    if ptr::eq(parent, dentry) {
        return Err(VfsError::EBUSY);
    }
    crate::dentry::d_get(parent, &rcu).ok_or(VfsError::ENOENT)
}

/// Puts `new` where `old` is in `parent`: hash and listing. Returns the tree's reference to `old`.
fn swap(
    parent: &KArc<Dentry>,
    old: &KArc<Dentry>,
    new: &KArc<Dentry>,
) -> Result<KArc<Dentry>, VfsError> {
    let InodeKind::Dir(dir) = &parent.inode().kind else {
        return Err(VfsError::EINVAL);
    };
    let mut state = dir.state.lock();
    let rcu = rcu::read_lock();
    // Since the look-up it may have been removed, renamed, or covered.
    let same = |d: &Dentry| ptr::eq(d, &**old);
    if !d_lookup(parent, &old.qstr(&rcu), &rcu).is_some_and(same)
        || old.name(&rcu) != new.name(&rcu)
    {
        return Err(VfsError::ENOENT);
    }
    let listed = state
        .entries
        .store(old.cookie(), DentryPtr(NonNull::from(&**new)));
    debug_assert!(matches!(listed, Ok(Some(_))), "replacing needs no memory");
    new.set_cookie(old.cookie());
    // First the new one: a walk finds one of them at any time.
    d_add(new.clone());
    Ok(d_drop(old))
}
