//! The address space: the object, who holds it, who runs it.
//!
//! Problem. Threads share an address space; a kernel thread may borrow its page tables; /proc and
//! truncation look at it from outside. Pages must go when the last *user* leaves, the root table
//! only when no CPU has it loaded.
//!
//! Mechanism. Two counts. [`MmUser`] is one of the *users*; the last one to go runs exit_mmap,
//! which empties the address space. All users together hold one reference of the object
//! (`KArc<Mm>`), and so does each CPU that borrows it: the last of these frees the root.
//!
//! Invariants
//! - INV-MM-1: `users` is the number of [`MmUser`]s; while it is not 0 they own one reference of
//!   the object. It never leaves 0 again.
//! - INV-MM-2: once `users` is 0 and exit_mmap has run there is no area, no table but the root,
//!   and all counters are 0.
//! - INV-MM-3: a CPU's bit in `cpumask` is set before it loads the root and cleared after it has
//!   loaded another. A CPU that loads a root flushes its TLB (no PCIDs).

use crate::fork;
use crate::pgtable::{Table, init_stash};
use crate::rss::RssStat;
use crate::setup::{self, Shell};
use crate::tree::MmTree;
use crate::vma::{VmaInfo, VmaPtr};
use crate::zap::{Gather, unmap_range};
use crate::{MmError, file};
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::*, fence};
use ksync::{CpuMask, MmId, RwSem, SpinLock, lock_class};
use page_alloc::{Gfp, PageRef};
use rmap::SpaceRef;
use slab::KArc;

/// Physical address of the zero page; 0 before `init`.
static ZERO_PAGE: AtomicUsize = AtomicUsize::new(0);

/// Sets the crate up: the zero page, the CPUs' stashes of tables. Once at boot, after page_alloc
/// and percpu and [`crate::set_kernel_pgd`]; more calls do nothing (host tests).
pub fn init() -> Result<(), MmError> {
    init_stash()?;
    setup::init()?;
    if ZERO_PAGE.load(Acquire) != 0 {
        return Ok(());
    }
    let page = page_alloc::alloc_page(Gfp::ZERO | Gfp::NOFAULT_INJECT)?;
    if ZERO_PAGE
        .compare_exchange(0, page.phys(), AcqRel, Relaxed)
        .is_err()
    {
        page.put();
    }
    Ok(())
}

/// The page of zeroes that read faults map. It has one reference for ever: mappings of it do not
/// count, so that its descriptor is no hot line.
#[inline(always)]
pub(crate) fn zero_page() -> PageRef {
    let pa = ZERO_PAGE.load(Relaxed);
    debug_assert!(pa != 0, "mm::init was not called");
    PageRef::from_phys(pa)
}

/// One address space.
pub struct Mm {
    mmap_lock: RwSem<MmTree>,
    /// Root, counters, ids and list places; made by `Shell::take`.
    shell: NonNull<Shell>,
    pgd: Table,
    users: AtomicU32,
    /// Excludes walkers of `i_mmap` from fork's copying of entries (INV-FORK-2). Faults do not
    /// take it.
    page_table_lock: SpinLock<()>,
    nr_tables: AtomicUsize,
    rss: RssStat,
    cpumask: CpuMask,
    /// The program's file.
    exe: SpinLock<Option<SpaceRef>>,
}

slab::object!(Mm, "mm_struct", links = 0);

// SAFETY: `pgd` is a pointer to a table of atomics owned by this object; the areas in the tree are
// reached only under `mmap_lock` or `i_mmap` (INV-VMA-2).
unsafe impl Send for Mm {}
// SAFETY: as above.
unsafe impl Sync for Mm {}
// SAFETY: the tree owns its areas, which are only memory (INV-VMA-1, INV-VMA-2).
unsafe impl Send for MmTree {}
// SAFETY: shared access reads cells that nobody writes meanwhile (INV-VMA-2).
unsafe impl Sync for MmTree {}

impl Mm {
    /// An empty address space with one user. May be called anywhere allocation is fine.
    #[allow(clippy::new_ret_no_self)]
    pub fn new() -> Result<MmUser, MmError> {
        let room = KArc::<Mm>::try_uninit()?;
        let shell = Shell::take()?;
        // SAFETY: taken just now.
        let pgd = unsafe { shell.as_ref() }.pgd;
        let mm = room.write(Mm {
            mmap_lock: RwSem::new(MmTree::new(), lock_class!("mmap_lock")),
            shell,
            pgd,
            users: AtomicU32::new(1),
            page_table_lock: SpinLock::new((), lock_class!("page_table_lock")),
            nr_tables: AtomicUsize::new(0),
            // SAFETY: the shell is given back when the address space is dropped.
            rss: unsafe { RssStat::of(shell) },
            cpumask: CpuMask::new(),
            exe: SpinLock::new(None, lock_class!("mm_exe")),
        });
        // INV-MM-1: the one user takes the object's one reference.
        Ok(MmUser(KArc::into_raw(mm)))
    }

    /// Names the address space in TLB flushes: the physical address of its root, unique while the
    /// object lives.
    #[inline(always)]
    pub fn id(&self) -> MmId {
        MmId(self.pgd.phys() as u64)
    }

    /// What CR3 must hold to run it.
    #[inline(always)]
    pub fn pgd_phys(&self) -> usize {
        self.pgd.phys()
    }

    /// CPUs that may hold translations of it.
    #[inline(always)]
    pub fn cpumask(&self) -> &CpuMask {
        &self.cpumask
    }

    /// Says that `cpu` is about to load the root; returns what to load. Any context; a full
    /// barrier. INV-MM-3.
    #[inline]
    pub fn activate(&self, cpu: usize) -> usize {
        self.cpumask.set(cpu);
        self.pgd.phys()
    }

    /// Says that `cpu` has loaded another root. Any context.
    #[inline]
    pub fn deactivate(&self, cpu: usize) {
        self.cpumask.clear(cpu);
    }

    /// Resident pages.
    #[inline(always)]
    pub fn rss(&self) -> &RssStat {
        &self.rss
    }

    /// Users now (a snapshot).
    pub fn nr_users(&self) -> u32 {
        self.users.load(Relaxed)
    }

    /// Page-table pages, without the root.
    pub fn nr_tables(&self) -> usize {
        self.nr_tables.load(Relaxed)
    }

    #[inline(always)]
    pub(crate) fn pgd(&self) -> Table {
        self.pgd
    }

    #[inline(always)]
    pub(crate) fn mmap_lock(&self) -> &RwSem<MmTree> {
        &self.mmap_lock
    }

    pub(crate) fn exe_slot(&self) -> &SpinLock<Option<SpaceRef>> {
        &self.exe
    }

    #[inline(always)]
    pub(crate) fn page_table_lock(&self) -> &SpinLock<()> {
        &self.page_table_lock
    }

    #[inline]
    pub(crate) fn tables_made(&self, n: usize) {
        if n != 0 {
            self.nr_tables.fetch_add(n, Relaxed);
        }
    }

    pub(crate) fn tables_freed(&self, n: usize) {
        self.nr_tables.fetch_sub(n, Relaxed);
    }

    /// Becomes a user, unless the last one has gone: for /proc and ptrace, which find the object
    /// through a task. Any context.
    pub fn try_get_user(this: &KArc<Mm>) -> Option<MmUser> {
        let n = this
            .users
            .fetch_update(Acquire, Relaxed, |n| (n != 0).then_some(n + 1));
        // The users' common reference is ours too now (INV-MM-1).
        n.ok().map(|_| MmUser(NonNull::from(&**this)))
    }

    /// Calls `f` for each area in order, under `mmap_lock`. May sleep.
    pub fn for_each_vma(&self, mut f: impl FnMut(&VmaInfo)) {
        let tree = self.mmap_lock.read();
        let mut at = tree.first();
        while let Some(v) = at {
            f(&VmaInfo {
                start: v.start(),
                end: v.end(),
                flags: v.flags(),
                file: v.file.as_deref().map(|f| (f.clone(), v.pgoff.get())),
            });
            at = tree.next(v);
        }
    }

    /// As [`Mm::for_each_vma`] from the area that contains `addr` or comes after it, until `f` says stop (false). `f`
    /// may not sleep.
    pub fn for_each_vma_from(&self, addr: usize, mut f: impl FnMut(&VmaInfo) -> bool) {
        let tree = self.mmap_lock.read();
        let mut at = tree.find(addr);
        while let Some(v) = at {
            let info = VmaInfo {
                start: v.start(),
                end: v.end(),
                flags: v.flags(),
                file: v.file.as_deref().map(|f| (f.clone(), v.pgoff.get())),
            };
            if !f(&info) {
                break;
            }
            at = tree.next(v);
        }
    }

    /// The area that contains `addr`. May sleep.
    pub fn vma_at(&self, addr: usize) -> Option<VmaInfo> {
        let tree = self.mmap_lock.read();
        let v = tree.find_exact(addr)?;
        Some(VmaInfo {
            start: v.start(),
            end: v.end(),
            flags: v.flags(),
            file: v.file.as_deref().map(|f| (f.clone(), v.pgoff.get())),
        })
    }

    /// Pages of all areas, resident or not. May sleep.
    pub fn total_vm(&self) -> usize {
        self.mmap_lock.read().total_vm
    }

    /// Sets the resource limits, in bytes: stack, address space, data. May sleep.
    pub fn set_limits(&self, stack: usize, address_space: usize, data: usize) {
        let mut tree = self.mmap_lock.write();
        tree.stack_limit = stack;
        tree.as_limit = address_space >> ksync::PAGE_SHIFT;
        tree.data_limit = data;
    }

    /// Empties the address space: the last user has gone. One pass in address order. May sleep.
    fn exit_mmap(&self) {
        let mut tree = self.mmap_lock.write();
        let mut gather = Gather::exiting(self);
        let mut at = tree.first();
        // Visited areas chained through `prev_end`, which nobody needs any more: the walk still
        // climbs through them.
        let mut done = 0usize;
        let mut unlinker = file::Unlinker::new();
        while let Some(first) = at {
            // Areas that touch are unmapped at one go.
            let (start, mut end) = (first.start(), first.start());
            while let Some(v) = at.filter(|v| v.start() == end) {
                end = v.end();
                if v.file.is_some() {
                    unlinker.add(v);
                }
                at = tree.next(v);
                v.prev_end.set(done);
                done = v.as_raw().expose_provenance();
            }
            unlinker.flush();
            let ceiling = at.map_or(1 << 47, |v| v.start());
            unmap_range(&mut gather, self.pgd, start, end, 0, ceiling);
        }
        tree.clear();
        drop(gather);
        while let Some(v) = VmaPtr::from_raw(core::ptr::with_exposed_provenance_mut(done)) {
            done = v.prev_end.get();
            // SAFETY: out of the tree and of i_mmap; the last user's pointer.
            unsafe { v.free() };
        }
        debug_assert_eq!(self.rss.total(), 0, "INV-MM-2");
        debug_assert_eq!(self.nr_tables(), 0, "INV-MM-2");
    }
}

impl Drop for Mm {
    fn drop(&mut self) {
        debug_assert!(
            self.cpumask.is_empty(),
            "INV-MM-3: a CPU runs on a root that is freed"
        );
        // SAFETY: no reference is left, so no CPU has the root loaded; empty since exit_mmap
        // (INV-MM-2).
        unsafe { Shell::give(self.shell) };
    }
}

/// Says that this CPU runs `to` instead of `from` (None: the kernel alone), which settles the concurrency ids. After
/// `to` was activated, before anything of it is counted. Preemption is off.
#[inline]
pub fn switch_mm(from: Option<&Mm>, to: Option<&Mm>) {
    setup::switch(from.map(|mm| mm.rss.shell()), to.map(|mm| mm.rss.shell()));
}

/// One user of an address space. Cloning is CLONE_VM. The last drop empties the address space and
/// may sleep; dropping with other users left is fine in any context.
pub struct MmUser(NonNull<Mm>);

// SAFETY: like KArc<Mm>: shared access to an Mm, which is Send and Sync.
unsafe impl Send for MmUser {}
// SAFETY: as above.
unsafe impl Sync for MmUser {}

impl MmUser {
    /// A copy of the address space for a child (fork): private pages shared until written. All
    /// or nothing: on an error the parent is as before. May sleep.
    pub fn dup(&self) -> Result<MmUser, MmError> {
        fork::dup_mm(self)
    }

    /// Another user for a new thread of the same program (CLONE_VM). Called by one of its threads. May sleep.
    pub fn share(&self) -> Result<MmUser, MmError> {
        self.rss.shell().share()?;
        Ok(self.clone())
    }

    /// A reference of the object, which keeps the root but not the pages (lazy TLB).
    pub fn mm(&self) -> KArc<Mm> {
        // SAFETY: from `into_raw`; the users' reference is held while we are one (INV-MM-1).
        unsafe { KArc::clone_raw(self.0) }
    }

    /// Whether both use the same address space.
    pub fn ptr_eq(a: &MmUser, b: &MmUser) -> bool {
        a.0 == b.0
    }

    pub(crate) fn as_ptr(&self) -> NonNull<Mm> {
        self.0
    }
}

impl Clone for MmUser {
    #[inline]
    fn clone(&self) -> Self {
        let old = self.users.fetch_add(1, Relaxed);
        assert!(old < u32::MAX / 2, "mm user count overflow");
        MmUser(self.0)
    }
}

impl Deref for MmUser {
    type Target = Mm;
    #[inline(always)]
    fn deref(&self) -> &Mm {
        // SAFETY: the users own a reference of the object (INV-MM-1).
        unsafe { self.0.as_ref() }
    }
}

impl Drop for MmUser {
    #[inline]
    fn drop(&mut self) {
        if self.users.fetch_sub(1, Release) == 1 {
            fence(Acquire);
            self.exit_mmap();
            // SAFETY: the users' reference, made in `Mm::new`, given back once (INV-MM-1).
            drop(unsafe { KArc::from_raw(ManuallyDrop::new(self).0) });
        }
    }
}
