//! Tests of the whole crate: against models, with failing allocations, with threads.

mod archive;
mod content;
mod faults;
mod fds;
mod names;
mod pipes;
mod rules;
mod synth;
mod threads;

use crate::*;
use ksync::rcu;
use slab::KArc;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

/// What is allocated: objects by cache, and free pages with those that caches keep.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct Census {
    objects: BTreeMap<&'static str, usize>,
    pages: usize,
}

pub(crate) fn census() -> Census {
    // A dropped dentry lets its parent go a grace period later, and so on upwards.
    let live = || <Dentry as slab::Object>::cache().stats().active;
    let mut before = usize::MAX;
    while live() < before {
        before = live();
        rcu::barrier();
        rcu::barrier();
    }
    page_alloc::drain_all();
    let mut objects = BTreeMap::new();
    let mut pages = page_alloc::nr_free(0).free;
    slab::slabinfo(|cache| {
        pages += cache.pages;
        // What slab itself needs comes and goes with what it caches.
        if !cache.name.starts_with("slab_")
            && !cache.name.starts_with("kmem_cache")
            && cache.active > 0
        {
            objects.insert(cache.name, cache.active);
        }
    });
    Census { objects, pages }
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The emulated machine with an empty file system, held by one test at a time. Checks at its end
/// that nothing is left.
pub(crate) struct Machine {
    pub fs: KArc<FsStruct>,
    before: Census,
    _alone: MutexGuard<'static, ()>,
}

impl Machine {
    pub fn new() -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        page_alloc::host::init(&[16384]);
        // Caches that are made at their first use.
        let root = new_ramfs(false).unwrap();
        let fs = FsStruct::new(&root).unwrap();
        warm_up(&fs);
        destroy(&root);
        drop((fs, root));
        let before = census();
        let root = new_ramfs(false).unwrap();
        Machine {
            fs: FsStruct::new(&root).unwrap(),
            before,
            _alone: alone,
        }
    }

    pub fn at(&self) -> At<'_> {
        At::cwd(&self.fs)
    }

    pub fn root(&self) -> KArc<Dentry> {
        self.fs.get_root()
    }

    pub fn open(&self, path: &[u8], flags: OpenFlags) -> Result<KArc<File>, VfsError> {
        open(self.at(), path, flags, 0o666)
    }

    /// Makes a file with these bytes.
    pub fn file(&self, path: &[u8], bytes: &[u8]) -> KArc<File> {
        let file = self.open(path, OpenFlags::CREAT | OpenFlags::RDWR).unwrap();
        assert_eq!(file.write(&mut &*bytes), Ok(bytes.len()));
        file.lseek(0, Whence::Set).unwrap();
        file
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let root = self.root();
        self.fs.set_cwd(root.clone());
        check_tree(&root);
        destroy(&root);
        let other = new_ramfs(false).unwrap();
        self.fs.set_root(other.clone());
        self.fs.set_cwd(other);
        drop(root);
        let mut before = self.before.clone();
        // The FsStruct itself, and the root it now has.
        for name in ["fs_struct", "dentry", "inode_cache"] {
            *before.objects.entry(name).or_insert(0) += 1;
        }
        let after = census();
        assert_eq!(
            after.objects, before.objects,
            "something leaked, or was freed twice"
        );
        assert_eq!(
            after.pages, before.pages,
            "pages leaked, or were freed twice"
        );
    }
}

fn warm_up(fs: &FsStruct) {
    let at = At::cwd(fs);
    let file = open(at, b"warm", OpenFlags::CREAT | OpenFlags::RDWR, 0o666).unwrap();
    file.write(&mut &b"x"[..]).unwrap();
    rename(at, b"warm", at, b"warmer", RenameFlags::empty()).unwrap();
    let files = Files::new().unwrap();
    for _ in 0..65 {
        files.install(file.clone(), false).unwrap();
    }
    drop(files.dup_for_fork().unwrap());
    drop(fs.dup_for_fork().unwrap());
    drop(pipe(OpenFlags::empty()).unwrap());
}

/// Everything below `dir`, by listing: (name, dentry).
pub(crate) fn children(dir: &Dentry) -> Vec<(Vec<u8>, KArc<Dentry>)> {
    let mut found = Vec::new();
    let rcu = rcu::read_lock();
    let Ok(part) = dir.inode().as_dir() else {
        return found;
    };
    let mut state = part.state.lock();
    let mut at = 0;
    while let Some((cookie, entry)) = state.entries.exclusive().next(at, u64::MAX - 1) {
        // SAFETY: listed, and the lock is held (INV-DIR-1).
        let dentry = unsafe { entry.0.as_ref() };
        found.push((
            dentry.name(&rcu).to_vec(),
            crate::dentry::d_get(dentry, &rcu).unwrap(),
        ));
        at = cookie + 1;
    }
    assert_eq!(found.len(), state.nr_entries, "INV-DIR-1");
    found
}

/// Checks INV-DIR-1, INV-TREE-1, INV-DENTRY-1, INV-DENTRY-3 and INV-INODE-2 below `root`.
pub(crate) fn check_tree(root: &KArc<Dentry>) {
    let mut names_of: BTreeMap<u64, (u32, u32)> = BTreeMap::new();
    let mut todo = std::vec![root.clone()];
    names_of.insert(root.inode().ino(), (1, root.inode().nlink()));
    while let Some(dir) = todo.pop() {
        let listed = children(&dir);
        let rcu = rcu::read_lock();
        let state = dir.inode().as_dir().unwrap().state.lock();
        assert!(!state.dead);
        drop(state);
        for (name, dentry) in listed {
            assert!(!dentry.is_unlinked(), "INV-TREE-1");
            let q = crate::qstr::Qstr::new(dir.salt(), &name);
            assert_eq!(dentry.qstr(&rcu).hash_len, q.hash_len, "INV-DENTRY-3");
            let found = crate::dentry::d_lookup(&dir, &q, &rcu).expect("INV-DENTRY-1");
            assert!(core::ptr::eq(found, &*dentry));
            assert!(core::ptr::eq(dentry.parent(&rcu), &*dir));
            let inode = dentry.inode();
            names_of.entry(inode.ino()).or_insert((0, inode.nlink())).0 += 1;
            if inode.is_dir() {
                names_of.get_mut(&inode.ino()).unwrap().0 += 1;
                names_of.get_mut(&dir.inode().ino()).unwrap().0 += 1;
                todo.push(dentry);
            }
        }
    }
    for (ino, (found, nlink)) in names_of {
        // The root's name is itself.
        let found = found + if ino == root.inode().ino() { 1 } else { 0 };
        assert_eq!(found, nlink, "INV-INODE-2 of inode {ino}");
    }
}

/// Removes everything below `root`.
pub(crate) fn destroy(root: &KArc<Dentry>) {
    fn empty(dir: &KArc<Dentry>, fs: &FsStruct) {
        for (name, dentry) in children(dir) {
            fs.set_cwd(dir.clone());
            if dentry.inode().is_dir() {
                empty(&dentry, fs);
                fs.set_cwd(dir.clone());
                rmdir(At::cwd(fs), &name).unwrap();
            } else {
                unlink(At::cwd(fs), &name).unwrap();
            }
        }
    }
    let fs = FsStruct::new(root).unwrap();
    empty(root, &fs);
}

/// A record of getdents64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dirent {
    pub ino: u64,
    pub off: u64,
    pub kind: u8,
    pub name: Vec<u8>,
}

pub(crate) fn parse_dirents(mut bytes: &[u8]) -> Vec<Dirent> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let len = u16::from_le_bytes(bytes[16..18].try_into().unwrap()) as usize;
        assert!(len.is_multiple_of(8) && len <= bytes.len());
        let end = bytes[19..len].iter().position(|&b| b == 0).unwrap();
        assert_eq!(len, (19 + end + 1).next_multiple_of(8));
        out.push(Dirent {
            ino: u64::from_le_bytes(bytes[0..8].try_into().unwrap()),
            off: u64::from_le_bytes(bytes[8..16].try_into().unwrap()),
            kind: bytes[18],
            name: bytes[19..19 + end].to_vec(),
        });
        bytes = &bytes[len..];
    }
    out
}

/// Lists a directory with a buffer of `room` bytes.
pub(crate) fn list(file: &File, room: usize) -> Vec<Dirent> {
    let mut all = Vec::new();
    let mut buf = std::vec![0xaa; room];
    loop {
        let n = file.getdents64(&mut &mut buf[..]).unwrap();
        if n == 0 {
            return all;
        }
        all.extend(parse_dirents(&buf[..n]));
    }
}

/// A destination or source that faults after `good` bytes of `bytes`.
pub(crate) struct Faulty<'a> {
    pub bytes: &'a mut [u8],
    pub at: usize,
    pub good: usize,
}

impl BufOut for Faulty<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Efault> {
        let n = bytes.len().min(self.good - self.at);
        self.bytes[self.at..self.at + n].copy_from_slice(&bytes[..n]);
        self.at += n;
        if n < bytes.len() { Err(Efault) } else { Ok(()) }
    }
    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }
}

impl BufIn for Faulty<'_> {
    fn get(&mut self, dst: &mut [u8]) -> Result<usize, Efault> {
        let n = dst.len().min(self.good - self.at);
        dst[..n].copy_from_slice(&self.bytes[self.at..self.at + n]);
        self.at += n;
        if n == 0 && !dst.is_empty() {
            Err(Efault)
        } else {
            Ok(n)
        }
    }
    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }
}
