//! Names: the tree of dentries, and the hash table that finds a name in a directory.
//!
//! Problem: every open, stat and exec of every CPU walks the same few directories from the root.
//! A lock or a reference count per step would make those directories the machine's bottleneck.
//!
//! Mechanism: a walk is an RCU read section. It follows hash chains and parent pointers, takes no
//! lock, writes nothing, and ends with at most one count taken, on what it found.
//!
//! ```text
//!   HASH[(parent, name)] -> Dentry -> Dentry -> null        (singly linked, one table for all)
//!                            | inode    counted
//!                            | parent   counted, null at a root
//!                            | long     counted, null while the name fits inline
//! ```
//!
//! The tree owns one reference of every dentry in it; it is dropped when the name is removed, and
//! since `Dentry` is an RCU_FREE object, whoever found it in a read section may look at it until
//! the section ends, and may take a reference if the count has not reached zero.
//!
//! A rename changes `parent`, `long` and the chain a dentry is on. It bumps a sequence number
//! before and after; a walk that sees the number move is done again under the rename lock. So a
//! walk's answer is that of one tree, never of two halves.
//!
//! Lock order: rename lock, directory locks (see `tree`), a bucket's lock. All spin.
//!
//! Invariants:
//! INV-DENTRY-1: a dentry is on the chain of its hash, exactly once, iff its HASHED flag is set;
//!   chains and the flag change under the lock of that bucket.
//! INV-DENTRY-2: `parent` and `long` change only in a rename, with the sequence number odd; what
//!   they pointed to stays allocated until a grace period after.
//! INV-DENTRY-3: `hash_len` is the hash of (parent, name), and the name's length.
//! INV-DENTRY-4: the sequence number is odd exactly while its lock's holder changes the tree.

use crate::VfsError;
use crate::flags::NAME_MAX;
use crate::inode::Inode;
use crate::qstr::{Qstr, padded_eq};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};
use ksync::rcu::RcuGuard;
use ksync::{LockClass, SpinGuard, SpinLock};
use slab::KArc;

/// log2 of the number of hash chains. Few under test, so that chains are long.
const HASH_BITS: u32 = if cfg!(test) { 3 } else { 14 };
const NR_BUCKETS: usize = 1 << HASH_BITS;
/// Locks for the chains; a chain's is `bucket % NR_LOCKS`.
const NR_LOCKS: usize = if cfg!(test) { 4 } else { 128 };
/// Longest name kept inside the dentry, in bytes.
const INLINE: usize = 40;
const _: () = assert!(INLINE.is_multiple_of(8) && INLINE < NAME_MAX);

static BUCKET_CLASS: LockClass = LockClass::new("dentry_hash");
static RENAME_CLASS: LockClass = LockClass::new("rename_lock");

static HASH: [AtomicPtr<Dentry>; NR_BUCKETS] =
    [const { AtomicPtr::new(ptr::null_mut()) }; NR_BUCKETS];
static LOCKS: [SpinLock<()>; NR_LOCKS] = [const { SpinLock::new((), &BUCKET_CLASS) }; NR_LOCKS];

/// The dentry is on its hash chain, so in the tree (or it is a root).
const HASHED: u32 = 1;
/// The root of a tree.
const ROOT: u32 = 2;
/// A root that is never freed: FsStruct does not count its references to it.
const IMMORTAL: u32 = 4;
/// Made by a look-up in a synthetic directory: never hashed.
const SYNTH: u32 = 8;

/// A name in a directory.
pub struct Dentry {
    /// The rest of the hash chain (INV-DENTRY-1).
    next: AtomicPtr<Dentry>,
    /// The directory the name is in; owns a reference; null at a root (INV-DENTRY-2).
    parent: AtomicPtr<Dentry>,
    hash_len: AtomicU64,
    inode: KArc<Inode>,
    flags: AtomicU32,
    /// Place in the parent's listing. Under the parent's lock.
    cookie: AtomicU64,
    /// The name if it does not fit in `short`; owns a reference (INV-DENTRY-2).
    long: AtomicPtr<LongName>,
    /// The name it was made with, zero padded, if `long` is null.
    short: [u8; INLINE],
}
slab::object!(Dentry, "dentry", links = 0, rcu);

/// A name that does not fit in a dentry, or one given by a rename.
pub(crate) struct LongName {
    bytes: [u8; NAME_MAX],
    len: u8,
}
slab::object!(LongName, "names_cache", links = 0, rcu);

impl LongName {
    pub fn new(name: &[u8]) -> Result<KArc<Self>, VfsError> {
        debug_assert!(name.len() <= NAME_MAX);
        let mut bytes = [0; NAME_MAX];
        bytes[..name.len()].copy_from_slice(name);
        Ok(KArc::new(LongName {
            bytes,
            len: name.len() as u8,
        })?)
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

impl Dentry {
    /// A name for `inode` below `parent`, not yet in the tree. ENOMEM, ENAMETOOLONG.
    pub(crate) fn new(
        parent: &KArc<Dentry>,
        name: &[u8],
        inode: KArc<Inode>,
    ) -> Result<KArc<Dentry>, VfsError> {
        if name.len() > NAME_MAX {
            return Err(VfsError::ENAMETOOLONG);
        }
        let long = if name.len() > INLINE {
            Some(LongName::new(name)?)
        } else {
            None
        };
        let room = KArc::<Dentry>::try_uninit()?;
        let q = Qstr::new(parent.salt(), name);
        let mut short = [0; INLINE];
        if long.is_none() {
            short[..name.len()].copy_from_slice(name);
        }
        Ok(room.write(Dentry {
            next: AtomicPtr::new(ptr::null_mut()),
            parent: AtomicPtr::new(KArc::into_raw(parent.clone()).as_ptr()),
            hash_len: AtomicU64::new(q.hash_len),
            inode,
            flags: AtomicU32::new(0),
            cookie: AtomicU64::new(0),
            long: AtomicPtr::new(long.map_or(ptr::null_mut(), |l| KArc::into_raw(l).as_ptr())),
            short,
        }))
    }

    /// A name that a look-up in a synthetic directory found; it is never in the tree. ENOMEM.
    pub(crate) fn new_synth(
        parent: &KArc<Dentry>,
        name: &[u8],
        inode: KArc<Inode>,
    ) -> Result<KArc<Dentry>, VfsError> {
        let dentry = Self::new(parent, name, inode)?;
        dentry.flags.store(SYNTH, Ordering::Relaxed);
        Ok(dentry)
    }

    /// The root of a new tree, or a nameless dentry for a file outside every tree.
    pub(crate) fn new_root(inode: KArc<Inode>, immortal: bool) -> Result<KArc<Dentry>, VfsError> {
        let flags = ROOT | if immortal { IMMORTAL } else { 0 };
        Ok(KArc::new(Dentry {
            next: AtomicPtr::new(ptr::null_mut()),
            parent: AtomicPtr::new(ptr::null_mut()),
            hash_len: AtomicU64::new(0),
            inode,
            flags: AtomicU32::new(flags),
            cookie: AtomicU64::new(0),
            long: AtomicPtr::new(ptr::null_mut()),
            short: [0; INLINE],
        })?)
    }

    /// What the name stands for.
    #[inline(always)]
    pub fn inode(&self) -> &KArc<Inode> {
        &self.inode
    }

    /// The name as a look-up in its parent takes it.
    pub(crate) fn qstr<'r>(&'r self, rcu: &'r RcuGuard) -> Qstr<'r> {
        Qstr {
            name: self.name(rcu),
            hash_len: self.hash_len.load(Ordering::Relaxed),
        }
    }

    /// Whether the name has been removed from the tree.
    #[inline]
    pub fn is_unlinked(&self) -> bool {
        self.flags.load(Ordering::Acquire) & (HASHED | ROOT | SYNTH) == 0
    }

    #[inline(always)]
    pub(crate) fn is_immortal(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & IMMORTAL != 0
    }

    /// What hashes in this directory start with.
    #[inline(always)]
    pub(crate) fn salt(&self) -> u64 {
        ptr::from_ref(self) as u64 >> 6
    }

    pub(crate) fn cookie(&self) -> u64 {
        self.cookie.load(Ordering::Relaxed)
    }

    pub(crate) fn set_cookie(&self, cookie: u64) {
        self.cookie.store(cookie, Ordering::Relaxed);
    }

    /// The directory it is in; itself at a root.
    #[inline]
    pub(crate) fn parent<'r>(&'r self, _rcu: &'r RcuGuard) -> &'r Dentry {
        // SAFETY: null, or a dentry that outlives the read section (INV-DENTRY-2).
        unsafe { self.parent.load(Ordering::Acquire).as_ref() }.unwrap_or(self)
    }

    /// The name's bytes; empty at a root.
    #[inline]
    pub(crate) fn name<'r>(&'r self, _rcu: &'r RcuGuard) -> &'r [u8] {
        // SAFETY: null, or a name that outlives the read section (INV-DENTRY-2).
        match unsafe { self.long.load(Ordering::Acquire).as_ref() } {
            Some(long) => long.as_bytes(),
            // Between the halves of a rename the length may be another name's: hence `min`.
            None => {
                &self.short[..(self.hash_len.load(Ordering::Relaxed) as u32 as usize).min(INLINE)]
            }
        }
    }

    /// Whether the name, whose hash and length have been compared, is `name`.
    #[inline]
    fn name_is(&self, name: &[u8]) -> bool {
        // SAFETY: the caller is in a read section; as in `name`.
        match unsafe { self.long.load(Ordering::Acquire).as_ref() } {
            None => padded_eq(&self.short, name),
            Some(long) => long.as_bytes() == name,
        }
    }
}

impl Drop for Dentry {
    fn drop(&mut self) {
        debug_assert!(*self.flags.get_mut() & HASHED == 0);
        // SAFETY: both own a reference, and nobody else looks at a dentry that is dropped.
        unsafe {
            drop(NonNull::new(*self.parent.get_mut()).map(|p| KArc::from_raw(p)));
            drop(NonNull::new(*self.long.get_mut()).map(|p| KArc::from_raw(p)));
        }
    }
}

#[inline(always)]
fn bucket_of(hash_len: u64) -> usize {
    (hash_len >> (64 - HASH_BITS)) as usize
}

/// Finds `q` in `parent`. A hit stands if the rename sequence has not moved; so does a miss.
#[inline]
pub(crate) fn d_lookup<'r>(
    parent: &'r Dentry,
    q: &Qstr<'_>,
    _rcu: &'r RcuGuard,
) -> Option<&'r Dentry> {
    let mut at: *const Dentry = HASH[bucket_of(q.hash_len)].load(Ordering::Acquire);
    // SAFETY: what a chain reaches in a read section stays until the section ends: the tree's
    // reference is dropped after the unlinking (INV-DENTRY-1), and Dentry is RCU_FREE.
    while let Some(d) = unsafe { at.as_ref() } {
        if d.hash_len.load(Ordering::Relaxed) == q.hash_len
            && ptr::eq(d.parent.load(Ordering::Relaxed), parent)
            && d.name_is(q.name)
        {
            return Some(d);
        }
        at = d.next.load(Ordering::Acquire);
    }
    None
}

/// Puts a new dentry in the tree, which takes the reference. The parent's lock is held and the
/// name is free.
pub(crate) fn d_add(dentry: KArc<Dentry>) {
    debug_assert!(dentry.is_unlinked());
    chain(KArc::into_raw(dentry));
}

/// Takes a dentry out of the tree and returns the tree's reference. The parent's lock is held.
pub(crate) fn d_drop(dentry: &Dentry) -> KArc<Dentry> {
    // SAFETY: the tree owned a reference (INV-DENTRY-1), given back here once.
    unsafe { KArc::from_raw(unchain(dentry)) }
}

/// Links `d` at the head of the chain of its hash.
fn chain(d: NonNull<Dentry>) {
    // SAFETY: the tree's reference keeps it.
    let dentry = unsafe { d.as_ref() };
    let b = bucket_of(dentry.hash_len.load(Ordering::Relaxed));
    let _lock = LOCKS[b % NR_LOCKS].lock();
    dentry
        .next
        .store(HASH[b].load(Ordering::Relaxed), Ordering::Relaxed);
    dentry.flags.fetch_or(HASHED, Ordering::Release);
    HASH[b].store(d.as_ptr(), Ordering::Release);
}

/// Unlinks `dentry` from its chain. Its own `next` stays, for readers who stand on it.
fn unchain(dentry: &Dentry) -> NonNull<Dentry> {
    let b = bucket_of(dentry.hash_len.load(Ordering::Relaxed));
    let _lock = LOCKS[b % NR_LOCKS].lock();
    let mut link = &HASH[b];
    loop {
        let at =
            NonNull::new(link.load(Ordering::Relaxed)).expect("a hashed dentry is on its chain");
        // SAFETY: on the chain, whose lock is held (INV-DENTRY-1).
        let d = unsafe { at.as_ref() };
        if ptr::eq(d, dentry) {
            link.store(d.next.load(Ordering::Relaxed), Ordering::Release);
            d.flags.fetch_and(!HASHED, Ordering::Release);
            return at;
        }
        link = &d.next;
    }
}

/// Gives `dentry` a new place and name. Returns what it let go: its old parent and long name, to
/// be dropped when no spinlock is held. Directory locks of both parents held.
pub(crate) fn d_move(
    _rename: &RenameGuard<'_>,
    dentry: &Dentry,
    new_parent: &KArc<Dentry>,
    new_name: &KArc<LongName>,
) -> (Option<KArc<Dentry>>, Option<KArc<LongName>>) {
    let d = unchain(dentry);
    let q = Qstr::new(new_parent.salt(), new_name.as_bytes());
    let parent = KArc::into_raw(new_parent.clone()).as_ptr();
    let long = KArc::into_raw(new_name.clone()).as_ptr();
    dentry.hash_len.store(q.hash_len, Ordering::Relaxed);
    let parent = dentry.parent.swap(parent, Ordering::AcqRel);
    let long = dentry.long.swap(long, Ordering::AcqRel);
    chain(d);
    // SAFETY: both fields owned a reference each (INV-DENTRY-2).
    unsafe {
        (
            NonNull::new(parent).map(|p| KArc::from_raw(p)),
            NonNull::new(long).map(|p| KArc::from_raw(p)),
        )
    }
}

/// A counted reference to what a walk found; None if the last one is gone (then it is unlinked).
#[inline]
pub(crate) fn d_get(dentry: &Dentry, _rcu: &RcuGuard) -> Option<KArc<Dentry>> {
    // SAFETY: `&Dentry` is to the value of a KArc: all are made by `new` and `new_root`; it was
    // found in this read section or is held by a reference.
    unsafe { KArc::try_get_rcu(NonNull::from(dentry)) }
}

/// Renames take turns here, and walks notice them.
struct RenameLock {
    lock: SpinLock<()>,
    seq: AtomicU64,
}

static RENAME: RenameLock = RenameLock {
    lock: SpinLock::new((), &RENAME_CLASS),
    seq: AtomicU64::new(0),
};

/// No rename is in progress while this lives.
pub(crate) struct TreeGuard<'a> {
    _lock: SpinGuard<'a, ()>,
}

/// The holder is the one who renames; the sequence number is odd (INV-DENTRY-4).
pub(crate) struct RenameGuard<'a> {
    _lock: SpinGuard<'a, ()>,
}

/// Keeps renames out. Spins; preemption off while held.
#[cold]
pub(crate) fn lock_tree<'a>() -> TreeGuard<'a> {
    TreeGuard {
        _lock: RENAME.lock.lock(),
    }
}

impl<'a> TreeGuard<'a> {
    /// Starts changing the tree.
    pub fn begin_rename(self) -> RenameGuard<'a> {
        RENAME.seq.fetch_add(1, Ordering::Relaxed);
        // What follows is not seen before the odd number.
        fence(Ordering::Release);
        RenameGuard { _lock: self._lock }
    }
}

impl Drop for RenameGuard<'_> {
    fn drop(&mut self) {
        RENAME.seq.fetch_add(1, Ordering::Release);
    }
}

/// The sequence number before a walk. Odd: a rename is in progress, and the walk will be done again.
#[inline(always)]
pub(crate) fn read_seq_begin() -> u64 {
    RENAME.seq.load(Ordering::Acquire)
}

/// Whether a walk that began at `seq` may have met a rename.
#[inline(always)]
pub(crate) fn read_seq_retry(seq: u64) -> bool {
    fence(Ordering::Acquire);
    seq & 1 != 0 || RENAME.seq.load(Ordering::Relaxed) != seq
}
