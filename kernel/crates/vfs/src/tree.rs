//! Changing the tree: names appear, disappear and move.
//!
//! Mechanism: a directory's spinlock (`Dir::state`) guards its set of names; walks do not take it.
//! Everything that can fail (memory, mostly) is done before the first change, so an error leaves
//! nothing behind.
//!
//! Lock order: rename lock; a directory before its descendants; two unrelated directories only
//! under the rename lock; then a hash bucket's lock. All spin, nothing here sleeps.
//!
//! INV-TREE-1: a name is in a directory's listing iff its dentry is hashed with that parent; both
//! change under the directory's lock.
//! INV-TREE-2: a directory is removed only while empty and is dead from then on.

use crate::VfsError;
use crate::dentry::{Dentry, LongName, d_add, d_drop, d_get, d_lookup, d_move, lock_tree};
use crate::flags::{MAXSYMLINKS, NAME_MAX};
use crate::inode::{DentryPtr, Dir, DirState, Inode, InodeKind};
use crate::namei::{At, Last, Parent, lookup_parent, walk};
use crate::qstr::Qstr;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use ksync::SpinGuard;
use ksync::rcu::{self, RcuGuard};
use rmap::AddressSpace;
use slab::KArc;

const _: () = assert!(MAXSYMLINKS < 64);

/// A name that is ready to be put into its directory.
pub(crate) struct Fresh {
    pub dir: KArc<Dentry>,
    pub dentry: KArc<Dentry>,
}

/// How an inode gets its next name.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) enum Naming {
    /// Its first.
    First,
    /// Another one: not if it has none any more, or too many.
    Another,
}

/// Makes the dentry for the last component of `path`, which must be free, around the inode that
/// `make` gives for its name. EEXIST, ENOENT (a trailing slash where no directory is made).
pub(crate) fn prepare(
    at: At<'_>,
    path: &[u8],
    makes_dir: bool,
    mut make: impl FnMut(&[u8]) -> Result<KArc<Inode>, VfsError>,
) -> Result<Fresh, VfsError> {
    walk(at, path, |w, rcu| {
        w.walk_to_last()?;
        if w.last_kind != Last::Norm || w.lookup_last()?.is_some() {
            return Err(VfsError::EEXIST);
        }
        if matches!(w.cur.inode().kind, InodeKind::Synth(_)) {
            return Err(VfsError::ENOENT);
        }
        if w.must_be_dir && !makes_dir {
            return Err(VfsError::ENOENT);
        }
        let dir = d_get(w.cur, rcu).ok_or(VfsError::ENOENT)?;
        let dentry = Dentry::new(&dir, w.last_name(), make(w.last_name())?)?;
        Ok(Fresh { dir, dentry })
    })
}

/// Puts a prepared name into its directory. EEXIST, ENOENT (the directory is gone), ENOMEM, and
/// of an inode that has a name: ENOENT, EMLINK.
pub(crate) fn insert(fresh: &Fresh, naming: Naming) -> Result<(), VfsError> {
    let (dir, dentry) = (&fresh.dir, &fresh.dentry);
    let mut state = dir.inode().as_dir()?.state.lock();
    if state.dead {
        return Err(VfsError::ENOENT);
    }
    let rcu = rcu::read_lock();
    if d_lookup(dir, &dentry.qstr(&rcu), &rcu).is_some() {
        return Err(VfsError::EEXIST);
    }
    let inode = dentry.inode();
    if naming == Naming::Another {
        inode.try_link()?;
    }
    if let Err(e) = list(&mut state, dentry) {
        if naming == Naming::Another {
            inode.dec_nlink();
        }
        return Err(e);
    }
    if naming == Naming::First {
        inode.inc_nlink();
        if inode.is_dir() {
            dir.inode().inc_nlink();
        }
    } else {
        inode.touch_ctime();
    }
    dir.inode().touch_mtime();
    d_add(dentry.clone());
    if let Some(regular) = inode.as_regular().filter(|_| naming == Naming::First) {
        let name = ptr::from_ref::<Dentry>(dentry).cast_mut();
        regular.mapping().owner().store(name.cast(), Release);
    }
    Ok(())
}

/// The name under which a regular file with these pages was made, if it still has that one: what a mapping's file is
/// called. Any context.
pub fn name_of(space: &AddressSpace) -> Option<KArc<Dentry>> {
    let rcu = rcu::read_lock();
    // SAFETY: null, or a dentry of this crate, which is RCU_FREE, and whose removal clears the word before the tree's
    // reference is dropped (`forget_name`).
    let dentry = unsafe { space.owner().load(Acquire).cast::<Dentry>().as_ref() }?;
    d_get(dentry, &rcu)
}

/// `dentry` is about to leave the tree.
fn forget_name(dentry: &Dentry) {
    if let Some(regular) = dentry.inode().as_regular() {
        let name = ptr::from_ref(dentry).cast_mut().cast();
        let none = ptr::null_mut();
        let _ = regular
            .mapping()
            .owner()
            .compare_exchange(name, none, AcqRel, Relaxed);
    }
}

/// Gives `dentry` the next place in a listing. ENOMEM.
fn list(state: &mut DirState, dentry: &Dentry) -> Result<(), VfsError> {
    let cookie = state.next_cookie;
    state
        .entries
        .store(cookie, DentryPtr(NonNull::from(dentry)))?;
    state.next_cookie = cookie + 1;
    state.nr_entries += 1;
    dentry.set_cookie(cookie);
    Ok(())
}

/// Takes `dentry`, which is in the directory, out of its listing and off the hash.
fn remove(state: &mut DirState, dentry: &Dentry) -> KArc<Dentry> {
    let listed = state.entries.erase(dentry.cookie());
    debug_assert!(
        listed.is_some_and(|p| ptr::eq(p.0.as_ptr(), dentry)),
        "INV-DIR-1"
    );
    state.nr_entries -= 1;
    forget_name(dentry);
    d_drop(dentry)
}

/// Looks a name up, counted. ENOENT, ENAMETOOLONG.
fn lookup_in(dir: &Dentry, name: &[u8]) -> Result<Option<KArc<Dentry>>, VfsError> {
    if name.len() > NAME_MAX {
        return Err(VfsError::ENAMETOOLONG);
    }
    let rcu = rcu::read_lock();
    Ok(d_lookup(dir, &Qstr::new(dir.salt(), name), &rcu).and_then(|d| d_get(d, &rcu)))
}

/// Removes a name of anything but a directory. ENOENT, EISDIR, ENOTDIR (trailing slash).
pub fn unlink(at: At<'_>, path: &[u8]) -> Result<(), VfsError> {
    let parent = lookup_parent(at, path)?;
    if parent.kind != Last::Norm {
        return Err(VfsError::EISDIR);
    }
    let dir = parent.dir.inode();
    let mut state = dir.as_dir()?.state.lock();
    let victim = lookup_in(&parent.dir, parent.last)?.ok_or(VfsError::ENOENT)?;
    let inode = victim.inode();
    if inode.is_dir() {
        return Err(VfsError::EISDIR);
    }
    if parent.slash {
        return Err(VfsError::ENOTDIR);
    }
    let removed = remove(&mut state, &victim);
    inode.dec_nlink();
    inode.touch_ctime();
    dir.touch_mtime();
    drop(state);
    drop(removed);
    Ok(())
}

/// Removes an empty directory. ENOENT, ENOTDIR, ENOTEMPTY, EINVAL ("."), EBUSY (the root).
pub fn rmdir(at: At<'_>, path: &[u8]) -> Result<(), VfsError> {
    let parent = lookup_parent(at, path)?;
    match parent.kind {
        Last::Norm => {}
        Last::Dot => return Err(VfsError::EINVAL),
        Last::DotDot => return Err(VfsError::ENOTEMPTY),
        Last::Root => return Err(VfsError::EBUSY),
    }
    let dir = parent.dir.inode();
    let mut state = dir.as_dir()?.state.lock();
    let victim = lookup_in(&parent.dir, parent.last)?.ok_or(VfsError::ENOENT)?;
    kill_dir(victim.inode())?;
    let removed = remove(&mut state, &victim);
    bury(dir, victim.inode());
    dir.touch_mtime();
    drop(state);
    drop(removed);
    Ok(())
}

/// Marks an empty directory dead (INV-TREE-2). ENOTDIR, ENOTEMPTY.
fn kill_dir(inode: &Inode) -> Result<(), VfsError> {
    if matches!(inode.kind, InodeKind::Synth(_)) {
        return Err(VfsError::EBUSY); // a mount's root
    }
    ksync::lockdep::nested(); // its parent's is held
    let mut state = inode.as_dir()?.state.lock();
    if state.nr_entries != 0 {
        return Err(VfsError::ENOTEMPTY);
    }
    state.dead = true;
    Ok(())
}

/// The links of a directory that goes: its name, its own ".", and its ".." to the parent.
fn bury(parent: &Inode, dir: &Inode) {
    dir.dec_nlink();
    dir.dec_nlink();
    parent.dec_nlink();
    dir.touch_ctime();
}

bitflags::bitflags! {
    /// Flags of renameat2.
    #[derive(Copy, Clone, Debug, PartialEq, Eq)]
    pub struct RenameFlags: u32 {
        /// The new name must be free.
        const NOREPLACE = 1;
        /// Swap the two: not supported (EINVAL).
        const EXCHANGE = 2;
        /// Leave a whiteout: not supported (EINVAL).
        const WHITEOUT = 4;
        const _ = !0;
    }
}

/// Moves a name, replacing what has the new name. ENOENT, EEXIST, EBUSY, EINVAL (into itself),
/// ENOTDIR, EISDIR, ENOTEMPTY, ENOMEM.
pub fn rename(
    old_at: At<'_>,
    old_path: &[u8],
    new_at: At<'_>,
    new_path: &[u8],
    flags: RenameFlags,
) -> Result<(), VfsError> {
    if !RenameFlags::NOREPLACE.contains(flags) {
        return Err(VfsError::EINVAL);
    }
    let old = lookup_parent(old_at, old_path)?;
    let new = lookup_parent(new_at, new_path)?;
    let noreplace = flags.contains(RenameFlags::NOREPLACE);
    if old.kind != Last::Norm {
        return Err(VfsError::EBUSY);
    }
    if new.kind != Last::Norm {
        return Err(if noreplace {
            VfsError::EEXIST
        } else {
            VfsError::EBUSY
        });
    }
    let is_synth = |p: &Parent<'_>| matches!(p.dir.inode().kind, InodeKind::Synth(_));
    if is_synth(&old) != is_synth(&new) {
        return Err(VfsError::EXDEV);
    }
    if new.last.len() > NAME_MAX {
        // As the look-ups would say it, the old name's first.
        return Err(match lookup_in(&old.dir, old.last)? {
            None => VfsError::ENOENT,
            Some(_) => VfsError::ENAMETOOLONG,
        });
    }
    let name = LongName::new(new.last)?;
    let tree = lock_tree();
    let mut dirs = LockedDirs::lock(&old.dir, &new.dir)?;
    let rename = Rename::check(&old, &new, noreplace)?;
    if let Some(target) = &rename.target
        && ptr::eq(&**target.inode(), &**rename.source.inode())
    {
        return Ok(());
    }
    let place = rename.claim_place(&mut dirs)?;
    let guard = tree.begin_rename();
    let removed = rename.target.as_ref().map(|t| rename.replace(&mut dirs, t));
    rename.unlist(&mut dirs, place);
    let gone = d_move(&guard, &rename.source, &new.dir, &name);
    rename.account(removed.is_some());
    drop(guard);
    drop(dirs);
    drop((gone, removed));
    Ok(())
}

/// The locked listings of a rename's two directories, which may be one.
struct LockedDirs<'a> {
    old: Option<SpinGuard<'a, DirState>>,
    new: SpinGuard<'a, DirState>,
}

impl<'a> LockedDirs<'a> {
    /// Locks the ancestor first. The rename lock is held. ENOTDIR.
    fn lock(old: &'a KArc<Dentry>, new: &'a KArc<Dentry>) -> Result<Self, VfsError> {
        let (o, n): (&Dir, &Dir) = (old.inode().as_dir()?, new.inode().as_dir()?);
        if ptr::eq(o, n) {
            return Ok(LockedDirs {
                old: None,
                new: n.state.lock(),
            });
        }
        // Two of one class: the ancestor first, and unrelated ones only under the rename lock.
        if is_ancestor(new, old, &rcu::read_lock()) {
            let new = n.state.lock();
            ksync::lockdep::nested();
            let old = Some(o.state.lock());
            return Ok(LockedDirs { old, new });
        }
        let old = Some(o.state.lock());
        ksync::lockdep::nested();
        let new = n.state.lock();
        Ok(LockedDirs { old, new })
    }

    fn old(&mut self) -> &mut DirState {
        self.old.as_mut().unwrap_or(&mut self.new)
    }
}

/// Whether `a` is `d` or above it. Renames are kept out.
fn is_ancestor(a: &Dentry, d: &Dentry, rcu: &RcuGuard) -> bool {
    let mut at = d;
    loop {
        if ptr::eq(at, a) {
            return true;
        }
        let up = at.parent(rcu);
        if ptr::eq(up, at) {
            return false;
        }
        at = up;
    }
}

/// A rename that has passed all checks.
struct Rename<'a> {
    old: &'a Parent<'a>,
    new: &'a Parent<'a>,
    source: KArc<Dentry>,
    target: Option<KArc<Dentry>>,
}

impl<'a> Rename<'a> {
    /// Linux's checks in Linux's order. Both directories are locked.
    fn check(old: &'a Parent<'a>, new: &'a Parent<'a>, noreplace: bool) -> Result<Self, VfsError> {
        let source = lookup_in(&old.dir, old.last)?.ok_or(VfsError::ENOENT)?;
        let target = lookup_in(&new.dir, new.last)?;
        if matches!(source.inode().kind, InodeKind::Synth(_)) {
            return Err(VfsError::EBUSY); // a mount's root
        }
        if noreplace && target.is_some() {
            return Err(VfsError::EEXIST);
        }
        let moves_dir = source.inode().is_dir();
        if !moves_dir && (old.slash || new.slash) {
            return Err(VfsError::ENOTDIR);
        }
        let rcu = rcu::read_lock();
        if is_ancestor(&source, &new.dir, &rcu) {
            return Err(VfsError::EINVAL);
        }
        if let Some(target) = &target {
            if is_ancestor(target, &old.dir, &rcu) {
                return Err(VfsError::ENOTEMPTY);
            }
            match (moves_dir, target.inode().is_dir()) {
                (true, false) => return Err(VfsError::ENOTDIR),
                (false, true) if !ptr::eq(&**target.inode(), &**source.inode()) => {
                    return Err(VfsError::EISDIR);
                }
                _ => {}
            }
        }
        Ok(Rename {
            old,
            new,
            source,
            target,
        })
    }

    /// The source's place in the new listing: the target's, or a new one. What can fail is done
    /// here. ENOMEM, ENOENT, ENOTEMPTY.
    fn claim_place(&self, dirs: &mut LockedDirs<'_>) -> Result<u64, VfsError> {
        let new = &mut *dirs.new;
        if new.dead {
            return Err(VfsError::ENOENT);
        }
        let source = DentryPtr(NonNull::from(&*self.source));
        let Some(target) = &self.target else {
            let cookie = new.next_cookie;
            new.entries.store(cookie, source)?;
            new.next_cookie = cookie + 1;
            new.nr_entries += 1;
            return Ok(cookie);
        };
        if target.inode().is_dir() {
            kill_dir(target.inode())?;
        }
        Ok(target.cookie())
    }

    /// Takes the target out; the source gets its place in the listing.
    fn replace(&self, dirs: &mut LockedDirs<'_>, target: &Dentry) -> KArc<Dentry> {
        let source = DentryPtr(NonNull::from(&*self.source));
        let old = dirs.new.entries.store(target.cookie(), source);
        debug_assert!(matches!(old, Ok(Some(_))), "replacing needs no memory");
        forget_name(target);
        d_drop(target)
    }

    /// Takes the source out of the old listing and notes its new place.
    fn unlist(&self, dirs: &mut LockedDirs<'_>, place: u64) {
        let state = dirs.old();
        let listed = state.entries.erase(self.source.cookie());
        debug_assert!(listed.is_some(), "INV-DIR-1");
        state.nr_entries -= 1;
        self.source.set_cookie(place);
    }

    /// Link counts and times.
    fn account(&self, replaced: bool) {
        let (source, old, new) = (
            self.source.inode(),
            self.old.dir.inode(),
            self.new.dir.inode(),
        );
        if let Some(target) = self.target.as_ref().filter(|_| replaced) {
            if target.inode().is_dir() {
                bury(new, target.inode());
            } else {
                target.inode().dec_nlink();
                target.inode().touch_ctime();
            }
        }
        if source.is_dir() && !ptr::eq(&**old, &**new) {
            old.dec_nlink();
            new.inc_nlink();
        }
        source.touch_ctime();
        old.touch_mtime();
        new.touch_mtime();
    }
}
