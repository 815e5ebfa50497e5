//! A process's view of the tree: root, working directory, umask.
//!
//! Problem: every walk starts here and every fork copies it. Counting the same root dentry up and
//! down from every CPU would make its cache line the hottest of the machine. Mechanism: a walk
//! reads the pointer in its RCU section and counts nothing; and a root that lives for ever
//! (`Dentry::is_immortal`) is not counted by those who point to it, so a fork in "/" touches no
//! shared line at all.
//!
//! INV-FS-1: `root` and `cwd` point to directories; each owns a reference, unless the dentry is
//! immortal.

use crate::VfsError;
use crate::dentry::{Dentry, d_get};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use ksync::rcu::{self, RcuGuard};
use slab::KArc;

/// Root, working directory and umask of a process. Shared with CLONE_FS, else copied by fork.
pub struct FsStruct {
    root: DirRef,
    cwd: DirRef,
    umask: AtomicU32,
}
slab::object!(FsStruct, "fs_struct", links = 0);

impl FsStruct {
    /// Both at `root`, umask 022. ENOMEM.
    pub fn new(root: &KArc<Dentry>) -> Result<KArc<Self>, VfsError> {
        if !root.inode().is_dir() {
            return Err(VfsError::ENOTDIR);
        }
        Ok(KArc::new(FsStruct {
            root: DirRef::new(root.clone()),
            cwd: DirRef::new(root.clone()),
            umask: AtomicU32::new(0o022),
        })?)
    }

    /// The copy that fork makes. ENOMEM.
    pub fn dup_for_fork(&self) -> Result<KArc<Self>, VfsError> {
        let room = KArc::<FsStruct>::try_uninit()?;
        Ok(room.write(FsStruct {
            root: self.root.dup(),
            cwd: self.cwd.dup(),
            umask: AtomicU32::new(self.umask()),
        }))
    }

    /// The root, for the length of an RCU section.
    #[inline(always)]
    pub(crate) fn root<'r>(&self, rcu: &'r RcuGuard) -> &'r Dentry {
        self.root.get(rcu)
    }

    /// The working directory, for the length of an RCU section.
    #[inline(always)]
    pub(crate) fn cwd<'r>(&self, rcu: &'r RcuGuard) -> &'r Dentry {
        self.cwd.get(rcu)
    }

    /// The root, counted.
    pub fn get_root(&self) -> KArc<Dentry> {
        self.root.counted()
    }

    /// The working directory, counted.
    pub fn get_cwd(&self) -> KArc<Dentry> {
        self.cwd.counted()
    }

    pub(crate) fn set_root(&self, dir: KArc<Dentry>) {
        self.root.set(dir);
    }

    pub(crate) fn set_cwd(&self, dir: KArc<Dentry>) {
        self.cwd.set(dir);
    }

    /// The permission bits that new files do not get.
    #[inline]
    pub fn umask(&self) -> u32 {
        self.umask.load(Ordering::Relaxed)
    }

    /// Sets the umask and returns the old one.
    pub fn set_umask(&self, mask: u32) -> u32 {
        self.umask.swap(mask & 0o777, Ordering::Relaxed)
    }
}

/// A reference to a directory that others may replace (INV-FS-1).
struct DirRef(AtomicPtr<Dentry>);

impl DirRef {
    fn new(dir: KArc<Dentry>) -> Self {
        DirRef(AtomicPtr::new(Self::give(dir)))
    }

    /// Turns a counted reference into what is stored.
    fn give(dir: KArc<Dentry>) -> *mut Dentry {
        if dir.is_immortal() {
            // Not counted: its maker never drops his reference.
            return KArc::as_ptr(&dir).cast_mut();
        }
        KArc::into_raw(dir).as_ptr()
    }

    #[inline(always)]
    fn get<'r>(&self, _rcu: &'r RcuGuard) -> &'r Dentry {
        // SAFETY: INV-FS-1; whoever replaces it drops the reference afterwards, and Dentry is
        // RCU_FREE, so it stays for the read section.
        unsafe { &*self.0.load(Ordering::Acquire) }
    }

    fn counted(&self) -> KArc<Dentry> {
        loop {
            let rcu = rcu::read_lock();
            // None: replaced, and the last reference dropped, since the load.
            if let Some(dir) = d_get(self.get(&rcu), &rcu) {
                return dir;
            }
        }
    }

    fn dup(&self) -> Self {
        let rcu = rcu::read_lock();
        let dir = self.get(&rcu);
        if dir.is_immortal() {
            return DirRef(AtomicPtr::new(core::ptr::from_ref(dir).cast_mut()));
        }
        drop(rcu);
        Self::new(self.counted())
    }

    fn set(&self, dir: KArc<Dentry>) {
        let old = self.0.swap(Self::give(dir), Ordering::AcqRel);
        Self::release(old);
    }

    fn release(old: *mut Dentry) {
        // SAFETY: what was stored is not null, and stays: immortal, or by its reference.
        unsafe {
            let old = NonNull::new_unchecked(old);
            if !old.as_ref().is_immortal() {
                drop(KArc::from_raw(old));
            }
        }
    }
}

impl Drop for DirRef {
    fn drop(&mut self) {
        Self::release(*self.0.get_mut());
    }
}
