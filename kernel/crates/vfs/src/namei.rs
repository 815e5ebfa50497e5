//! The walk: from a path to a dentry.
//!
//! Problem: a path is a small program (names, "..", symbolic links, trailing slashes) that the
//! kernel runs on every open, stat and exec. Mechanism: [`Walk`] consumes it component by component
//! inside one RCU section and always stops before the last one, which means something different to
//! each caller: open looks it up, mkdir wants it free, rename wants the directory around it. What
//! remains of a path that was interrupted by a symbolic link waits on a small stack.
//!
//! Context: nothing here sleeps; a walk never allocates. Callers get their answer inside the RCU
//! section, by [`walk`], or as counted references, by [`lookup`] and [`lookup_parent`].
//!
//! INV-WALK-1: an answer is given only if no rename began since the walk's start, or under the
//! rename lock: it is the answer of a tree that existed as a whole.
//! INV-WALK-2: `cur` is a directory, but for a walk that a link without a path has ended.
//! INV-WALK-3: the first `depth` entries of `stack` are initialised.

use crate::VfsError;
use crate::dentry::{Dentry, d_get, d_lookup, lock_tree, read_seq_begin, read_seq_retry};
use crate::file::File;
use crate::flags::{MAXSYMLINKS, NAME_MAX, PATH_MAX};
use crate::fs_struct::FsStruct;
use crate::inode::{Inode, InodeKind};
use crate::qstr::Qstr;
use crate::synth::{SynthHandle, SynthTarget};
use core::mem::MaybeUninit;
use core::ptr;
use ksync::rcu::{self, RcuGuard};
use slab::KArc;

/// Where a relative path starts, and what "/" and umask are: the first argument of every `*at`.
#[derive(Copy, Clone)]
pub struct At<'a> {
    /// The process's root, working directory and umask.
    pub fs: &'a FsStruct,
    /// The directory; `None`: the working directory (AT_FDCWD). Only relative paths look at it.
    pub base: Option<&'a File>,
}

impl<'a> At<'a> {
    /// Relative to the working directory.
    #[inline(always)]
    pub fn cwd(fs: &'a FsStruct) -> Self {
        At { fs, base: None }
    }

    /// Relative to an open directory.
    #[inline(always)]
    pub fn dir(fs: &'a FsStruct, base: &'a File) -> Self {
        At {
            fs,
            base: Some(base),
        }
    }
}

/// What kind of thing the last component is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Last {
    /// A name.
    Norm,
    /// "."
    Dot,
    /// ".."
    DotDot,
    /// The path was "/".
    Root,
}

/// A walk in progress, in one RCU section.
pub(crate) struct Walk<'r> {
    rcu: &'r RcuGuard,
    root: &'r Dentry,
    /// Where the walk is (INV-WALK-2).
    pub cur: &'r Dentry,
    /// The path not walked yet; its lifetime is the caller's path or a link's target.
    rest: &'r [u8],
    /// The last component, once `walk_to_last` has returned, hashed in `cur`.
    last: Qstr<'r>,
    pub last_kind: Last,
    /// A slash follows the last component, or did in a link that led here: it must be a directory.
    pub must_be_dir: bool,
    /// Holds the synthetic dentry that the walk came to last (see `synth`).
    keep: Option<KArc<Dentry>>,
    nr_links: usize,
    depth: usize,
    stack: [MaybeUninit<&'r [u8]>; MAXSYMLINKS],
}

impl<'r> Walk<'r> {
    /// At the start of `path`. ENOENT (empty), ENAMETOOLONG, ENOTDIR (the base is none).
    #[inline]
    fn new(at: At<'r>, path: &'r [u8], rcu: &'r RcuGuard) -> Result<Self, VfsError> {
        let root = at.fs.root(rcu);
        let cur = match (path, at.base) {
            ([], _) => return Err(VfsError::ENOENT),
            ([b'/', ..], _) => root,
            (_, None) => at.fs.cwd(rcu),
            (_, Some(file)) => file.dentry().ok_or(VfsError::ENOTDIR)?,
        };
        if path.len() >= PATH_MAX {
            return Err(VfsError::ENAMETOOLONG);
        }
        if !cur.inode().is_dir() {
            return Err(VfsError::ENOTDIR);
        }
        Ok(Walk {
            rcu,
            root,
            cur,
            rest: path,
            last: Qstr {
                name: &[],
                hash_len: 0,
            },
            last_kind: Last::Root,
            must_be_dir: false,
            keep: None,
            nr_links: 0,
            depth: 0,
            stack: [const { MaybeUninit::uninit() }; MAXSYMLINKS],
        })
    }

    /// Walks until only the last component is left. ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG.
    #[inline]
    pub fn walk_to_last(&mut self) -> Result<(), VfsError> {
        loop {
            while let [b'/', tail @ ..] = self.rest {
                self.rest = tail;
            }
            if self.rest.is_empty() {
                if self.depth == 0 {
                    (self.last.name, self.last_kind) = (&[], Last::Root);
                    return Ok(());
                }
                self.pop();
                continue;
            }
            let (q, rest) = Qstr::split(self.cur.salt(), self.rest);
            let slash = !rest.is_empty();
            let more = slash && rest.iter().any(|&b| b != b'/');
            let kind = match q.name {
                b"." => Last::Dot,
                b".." => Last::DotDot,
                _ => Last::Norm,
            };
            if !more && self.depth == 0 {
                (self.last, self.last_kind) = (q, kind);
                self.must_be_dir |= slash;
                return Ok(());
            }
            self.rest = rest;
            match kind {
                Last::Norm => self.step(&q, more)?,
                Last::DotDot => self.dotdot(),
                Last::Dot | Last::Root => {}
            }
        }
    }

    /// Goes through a component that is not the last: a directory or a link to one.
    #[inline]
    fn step(&mut self, q: &Qstr<'_>, more: bool) -> Result<(), VfsError> {
        let next = self.lookup(q)?.ok_or(VfsError::ENOENT)?;
        match next.inode().kind {
            InodeKind::Dir(_) => self.cur = next,
            InodeKind::Symlink(_) => {
                // A link that ends another link's target needs no place to come back to.
                if more {
                    self.push()?;
                }
                self.enter_link(next.inode())?;
            }
            InodeKind::Synth(_) if next.inode().is_dir() => self.cur = next,
            InodeKind::Synth(_) if next.inode().is_link() => {
                if more {
                    self.push()?;
                }
                self.enter_link(next.inode())?;
                // Something follows, here or on the stack, and only a directory has names.
                if !self.cur.inode().is_dir() {
                    return Err(VfsError::ENOTDIR);
                }
            }
            _ => return Err(VfsError::ENOTDIR),
        }
        Ok(())
    }

    /// To the parent; the walk's root is its own.
    #[inline]
    pub fn dotdot(&mut self) {
        if !ptr::eq(self.cur, self.root) {
            self.cur = self.cur.parent(self.rcu);
        }
    }

    /// Looks `q` up in the current directory. ENAMETOOLONG.
    #[inline]
    fn lookup(&mut self, q: &Qstr<'_>) -> Result<Option<&'r Dentry>, VfsError> {
        if q.name.len() > NAME_MAX {
            return Err(VfsError::ENAMETOOLONG);
        }
        match d_lookup(self.cur, q, self.rcu) {
            Some(found) => Ok(Some(found)),
            None => self.lookup_synth(q),
        }
    }

    /// Asks a synthetic directory. ENOMEM.
    #[cold]
    fn lookup_synth(&mut self, q: &Qstr<'_>) -> Result<Option<&'r Dentry>, VfsError> {
        let InodeKind::Synth(node) = &self.cur.inode().kind else {
            return Ok(None);
        };
        let parent = d_get(self.cur, self.rcu).ok_or(VfsError::ENOENT)?;
        let node = match node.lookup(q.name) {
            Err(VfsError::ENOENT) => return Ok(None),
            other => other?,
        };
        let dentry = Dentry::new_synth(&parent, q.name, Inode::new_synth(node)?)?;
        Ok(Some(self.hold(dentry)))
    }

    /// A dentry that nothing but the walk holds, good for as long as the section lasts.
    fn hold(&mut self, dentry: KArc<Dentry>) -> &'r Dentry {
        // SAFETY: counted now, and Dentry is RCU_FREE: when the last reference goes it stays, with all it holds, for
        // the read section 'r.
        let found = unsafe { &*KArc::as_ptr(&dentry) };
        self.keep = Some(dentry);
        found
    }

    /// Goes to what a link without a path stands for. ENOENT, ENXIO, ENOMEM.
    fn jump(&mut self, node: &SynthHandle) -> Result<(), VfsError> {
        let dentry = match node.target()? {
            SynthTarget::Dentry(dentry) => dentry,
            SynthTarget::File(file) => file.dentry_or_pipe()?,
        };
        self.cur = self.hold(dentry);
        self.rest = &[];
        Ok(())
    }

    /// The last component's bytes.
    #[inline]
    pub fn last_name(&self) -> &'r [u8] {
        self.last.name
    }

    /// Looks the last component up, where it is a name. ENAMETOOLONG.
    #[inline]
    pub fn lookup_last(&mut self) -> Result<Option<&'r Dentry>, VfsError> {
        debug_assert!(self.last_kind == Last::Norm);
        let last = self.last;
        self.lookup(&last)
    }

    /// Continues at a link's target, which need not be a directory if the link has no path. ELOOP, ENOENT, ENXIO.
    #[cold]
    pub fn enter_link(&mut self, link: &'r Inode) -> Result<(), VfsError> {
        self.nr_links += 1;
        if self.nr_links > MAXSYMLINKS {
            return Err(VfsError::ELOOP);
        }
        self.rest = match &link.kind {
            InodeKind::Symlink(target) => target.as_bytes(),
            InodeKind::Synth(node) => match node.text() {
                Some(text) => text,
                None => return self.jump(node),
            },
            _ => return Err(VfsError::EINVAL),
        };
        if let [b'/', ..] = self.rest {
            self.cur = self.root;
        }
        link.touch_atime();
        Ok(())
    }

    /// Saves the rest of the path behind a link. ELOOP.
    #[cold]
    fn push(&mut self) -> Result<(), VfsError> {
        let slot = self.stack.get_mut(self.depth).ok_or(VfsError::ELOOP)?;
        slot.write(self.rest);
        self.depth += 1;
        Ok(())
    }

    #[cold]
    fn pop(&mut self) {
        self.depth -= 1;
        // SAFETY: INV-WALK-3.
        self.rest = unsafe { self.stack[self.depth].assume_init() };
    }

    /// Finishes the walk: what the path names. With `follow` a link at the end is followed (with a
    /// trailing slash always). ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG.
    #[inline]
    pub fn finish(&mut self, follow: bool) -> Result<&'r Dentry, VfsError> {
        loop {
            self.walk_to_last()?;
            match self.last_kind {
                Last::Norm => {}
                Last::DotDot => {
                    self.dotdot();
                    return Ok(self.cur);
                }
                Last::Root if self.must_be_dir && !self.cur.inode().is_dir() => {
                    return Err(VfsError::ENOTDIR);
                }
                Last::Dot | Last::Root => return Ok(self.cur),
            }
            let found = self.lookup_last()?.ok_or(VfsError::ENOENT)?;
            match found.inode().kind {
                InodeKind::Synth(_) if found.inode().is_dir() => return Ok(found),
                InodeKind::Synth(_) if found.inode().is_link() && (follow || self.must_be_dir) => {
                    self.enter_link(found.inode())?;
                }
                InodeKind::Dir(_) => return Ok(found),
                InodeKind::Symlink(_) if follow || self.must_be_dir => {
                    self.enter_link(found.inode())?;
                }
                _ if self.must_be_dir => return Err(VfsError::ENOTDIR),
                _ => return Ok(found),
            }
        }
    }
}

/// Walks `path` as `f` says and returns its answer, which is `f`'s on a tree that stood still
/// (INV-WALK-1): `f` may run twice and must have no effects. `f` runs in an RCU section.
#[inline]
pub(crate) fn walk<T>(
    at: At<'_>,
    path: &[u8],
    mut f: impl for<'r> FnMut(&mut Walk<'r>, &'r RcuGuard) -> Result<T, VfsError>,
) -> Result<T, VfsError> {
    let rcu = rcu::read_lock();
    let seq = read_seq_begin();
    let answer = Walk::new(at, path, &rcu).and_then(|mut w| f(&mut w, &rcu));
    if !read_seq_retry(seq) {
        return answer;
    }
    drop(answer);
    walk_locked(at, path, &rcu, f)
}

/// The walk again, with renames kept out.
#[cold]
#[inline(never)]
fn walk_locked<T>(
    at: At<'_>,
    path: &[u8],
    rcu: &RcuGuard,
    mut f: impl for<'r> FnMut(&mut Walk<'r>, &'r RcuGuard) -> Result<T, VfsError>,
) -> Result<T, VfsError> {
    let _tree = lock_tree();
    Walk::new(at, path, rcu).and_then(|mut w| f(&mut w, rcu))
}

/// What `path` names, counted. ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG. Any context that may spin.
#[inline]
pub(crate) fn lookup(at: At<'_>, path: &[u8], follow: bool) -> Result<KArc<Dentry>, VfsError> {
    walk(at, path, |w, rcu| {
        let found = w.finish(follow)?;
        d_get(found, rcu).ok_or(VfsError::ENOENT)
    })
}

/// The directory around a path's last component, counted.
pub(crate) struct Parent<'p> {
    pub dir: KArc<Dentry>,
    /// The last component; a part of the path (links at the end are not followed).
    pub last: &'p [u8],
    pub kind: Last,
    /// A slash follows it.
    pub slash: bool,
}

/// Walks to the last component of `path` and returns the directory it is in.
pub(crate) fn lookup_parent<'p>(at: At<'_>, path: &'p [u8]) -> Result<Parent<'p>, VfsError> {
    let (dir, kind, len) = walk(at, path, |w, rcu| {
        w.walk_to_last()?;
        Ok((
            d_get(w.cur, rcu).ok_or(VfsError::ENOENT)?,
            w.last_kind,
            w.last_name().len(),
        ))
    })?;
    // The last component is the path's own: nothing of a link is left on the stack at the end.
    let end = path.iter().rposition(|&b| b != b'/').map_or(0, |i| i + 1);
    let last = &path[end - len.min(end)..end];
    Ok(Parent {
        dir,
        last,
        kind,
        slash: end < path.len() && kind != Last::Root,
    })
}
