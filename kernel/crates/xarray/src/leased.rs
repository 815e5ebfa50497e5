//! `LeaseMap<T>`: numbers to counted objects, given out without a write that CPUs share.
//!
//! Problem. One cursor and one lock per map are two cache lines that every CPU that takes a number
//! must own in turn. Yet a number must never be given out twice, must not come back soon, and the
//! map must say "full" only when it is.
//!
//! Mechanism. Each CPU *leases* a run of up to 64 numbers, one bottom node of the tree, and hands
//! them out in order; only the next lease moves the map's common cursor, under its lock.
//!
//! ```text
//!   CPU 0: lease 64..128, at 70 ──┐        CPU 1: lease 128..192, at 131 ──┐
//!   node 64..128   [####.#        ]        node 128..192  [###             ]   cursor: 192
//! ```
//!
//! A lease is a habit, not a right. The right to a number is its slot: null is free, and the one
//! compare-and-swap from null takes it. So whoever needs one certain number, or finds no unleased
//! one, takes it out of another CPU's lease, without asking.
//!
//! What a CPU gets from the cursor is a *run* of nodes, longer each time up to [`RUN_MAX`] numbers, made in one hold; it
//! goes from one to the next without the lock.
//!
//! An object that was shown keeps its slot as its [`Seat`](crate::Seat), by which it leaves and may come back.
//!
//! A node counts what keeps it: claims, seats, and numbers leased and not yet reached. One that nothing keeps stays
//! where it is for the next round, until [`trim`](LeaseMap::trim). A small map begins with one lease for all CPUs, used
//! under the lock, and gets one per CPU with its first further lease.
//!
//! Reuse. A number that is given back is given out again only after the cursor has gone round: after
//! every lease of the range has been offered once. A chosen number, or one taken by its seat, may come back at any time.
//!
//! Lock order: `lease_map` is a leaf; RCU callbacks may be queued under it.
//!
//! Invariants
//! - INV-LEASE-1 (one owner): a slot goes from null to not null by one compare-and-swap; whoever made
//!   it owns the number until it stores null. Hence no number is given out twice, whatever leases say.
//! - INV-LEASE-2 (kept nodes): `count` of a bottom node is the number of claims and seats in it plus the numbers that
//!   leases of it have not reached. A node is unlinked only under the lock, after its count
//!   went from 0 to [`DEAD`], from where it never rises. A [`Claim`], a [`Seat`](crate::Seat) or a lease so keeps its node.
//! - INV-LEASE-3 (own CPU): a CPU's lease is touched by that CPU with preemption off; the common
//!   one, used until `split`, under the lock.
//! - INV-LEASE-4 (references): a visible word is `KArc::into_raw` of a reference the map owns; the word
//!   is cleared before the reference is given up.

use crate::NeedNodes;
use crate::idr::IdrError;
use crate::node::{Node, Preload, SHIFT, SLOTS};
use crate::tree::{RESERVED, Retire, SlotRef, Tree};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, Ordering::*};
use ksync::rcu::{self, RcuGuard};
use ksync::{LockClass, SpinGuard, SpinLock};
use percpu::PerCpu;
use slab::{AllocError, KArc, Object};

/// A run of numbers that one CPU hands out. Atomics only for a shared view: see INV-LEASE-3.
struct Lease {
    node: AtomicPtr<Node>,
    at: AtomicU32,
    end: AtomicU32,
    /// What this CPU has counted.
    count: AtomicI32,
    /// Where this CPU's next leases begin and end, and how long its run was at first.
    run_at: AtomicU32,
    run_end: AtomicU32,
    run_len: AtomicU32,
}

impl Lease {
    const fn none() -> Self {
        Lease {
            node: AtomicPtr::new(ptr::null_mut()),
            at: AtomicU32::new(0),
            end: AtomicU32::new(0),
            count: AtomicI32::new(0),
            run_at: AtomicU32::new(0),
            run_end: AtomicU32::new(0),
            run_len: AtomicU32::new(0),
        }
    }
}

/// Where a number may lie, and where the search wraps to.
#[derive(Copy, Clone, Debug)]
pub struct LeaseRange {
    /// One more than the greatest number.
    pub limit: u32,
    /// Numbers below are given out only until the cursor has passed them; no lease spans it.
    pub reserved: u32,
}

/// What all CPUs write, once in a run.
#[repr(align(64))]
struct Shared {
    lock: SpinLock<()>,
    /// Where the next lease begins. Written under `lock`.
    cursor: AtomicU32,
}

/// A map from numbers to `T`s that CPUs take numbers from without meeting.
///
/// # Invariants
/// INV-LEASE-1..4.
pub struct LeaseMap<T: Object> {
    tree: Tree,
    /// Set once, when `leases` has been filled in.
    split: AtomicBool,
    /// Initialised when `split` is set, and only then.
    leases: UnsafeCell<MaybeUninit<PerCpu<Lease>>>,
    common: Lease,
    /// On a line of their own: the other fields are read all the time.
    shared: Shared,
    owns: PhantomData<KArc<T>>,
}

// SAFETY: a set of KArc<T> (INV-LEASE-4) and a tree whose shape changes under its lock only.
unsafe impl<T: Object + Send + Sync> Send for LeaseMap<T> {}
// SAFETY: as above; `leases` is written once, under the lock, before `split` is set with Release.
unsafe impl<T: Object + Send + Sync> Sync for LeaseMap<T> {}

/// The count of a node that is unlinked.
const DEAD: u16 = u16::MAX;
/// Numbers of the longest run.
const RUN_MAX: u32 = 1024;
/// Nodes that one pass of a trim unlinks.
const TRIM_BATCH: usize = 32;

/// The smallest number of an automatic choice: 0 is nobody's.
const FIRST: u32 = 1;

/// INV-LEASE-1: the one way from null.
#[inline(always)]
pub(crate) fn try_take(word: &AtomicPtr<()>) -> bool {
    ksync::arch::interleave();
    #[cfg(test)]
    if crate::tests::is_planted() {
        let free = word.load(Acquire).is_null();
        ksync::arch::interleave();
        if free {
            word.store(RESERVED, Release);
        }
        return free;
    }
    word.compare_exchange(ptr::null_mut(), RESERVED, Acquire, Relaxed)
        .is_ok()
}

impl<T: Object> LeaseMap<T> {
    const READERS_ARE_SAFE: () = assert!(T::RCU_FREE, "objects in a LeaseMap must be RCU_FREE");

    /// An empty map; no memory.
    pub const fn new(class: &'static LockClass) -> Self {
        let () = Self::READERS_ARE_SAFE;
        LeaseMap {
            tree: Tree::new(),
            split: AtomicBool::new(false),
            leases: UnsafeCell::new(MaybeUninit::uninit()),
            common: Lease::none(),
            shared: Shared {
                lock: SpinLock::new((), class),
                cursor: AtomicU32::new(FIRST),
            },
            owns: PhantomData,
        }
    }

    /// Gives every CPU a lease of its own from now on. Not in hard IRQs.
    pub fn split(&self) -> Result<(), AllocError> {
        let fresh = PerCpu::new(|_| Lease::none()).map_err(|_| AllocError)?;
        let held = self.shared.lock.lock();
        if self.split.load(Relaxed) {
            drop(held);
            drop(fresh);
            return Ok(());
        }
        // SAFETY: not yet set, so nobody reads it; the lock keeps other writers out.
        unsafe { (*self.leases.get()).write(fresh) };
        self.end_lease(&self.common);
        self.split.store(true, Release);
        Ok(())
    }

    #[inline(always)]
    fn leases(&self) -> Option<&PerCpu<Lease>> {
        if !self.split.load(Acquire) {
            return None;
        }
        // SAFETY: written before `split` was set, never since.
        Some(unsafe { (*self.leases.get()).assume_init_ref() })
    }

    /// Whether each CPU has a lease of its own.
    pub fn is_split(&self) -> bool {
        self.split.load(Relaxed)
    }

    /// Takes the next number below `limit` of this CPU's lease. None: the lease is used up, or another has taken that
    /// number meanwhile: [`LeaseMap::claim_slow`]. No lock, no memory, no shared write.
    #[inline(always)]
    pub fn claim<'m>(&'m self, limit: u32, here: &RcuGuard) -> Option<Claim<'m, T>> {
        let lease = self.leases()?.this_cpu(here);
        let at = lease.at.load(Relaxed);
        if at >= lease.end.load(Relaxed) || at >= limit {
            return None;
        }
        match self.take_next(lease, at) {
            Ok(claim) => Some(claim),
            Err(node) => {
                self.let_go(node);
                None
            }
        }
    }

    /// Takes `at`, the next number of a lease that has one. Err: somebody has it; the lease no longer keeps the node for
    /// it, and the caller sees to that.
    #[inline(always)]
    fn take_next(&self, lease: &Lease, at: u32) -> Result<Claim<'_, T>, NonNull<Node>> {
        // SAFETY: the lease has numbers left, so it keeps its node (INV-LEASE-2).
        let node = unsafe { NonNull::new_unchecked(lease.node.load(Relaxed)) };
        lease.at.store(at + 1, Relaxed);
        let slot = SlotRef {
            node,
            offset: at as usize % SLOTS,
        };
        // INVARIANT: INV-LEASE-2: what counted as leased counts as taken.
        if self.try_take(slot) {
            return Ok(Claim {
                map: self,
                id: at,
                slot,
            });
        }
        Err(node)
    }

    /// [`take_next`](Self::take_next) until it has one or the lease is used up.
    fn take_any(&self, lease: &Lease, limit: u32) -> Option<Claim<'_, T>> {
        loop {
            let at = lease.at.load(Relaxed);
            if at >= lease.end.load(Relaxed) || at >= limit {
                return None;
            }
            match self.take_next(lease, at) {
                Ok(claim) => return Some(claim),
                Err(node) => {
                    self.let_go(node);
                }
            }
        }
    }

    #[inline(always)]
    fn try_take(&self, slot: SlotRef) -> bool {
        // SAFETY: the caller keeps the node.
        try_take(unsafe { &slot.node.as_ref().slots[slot.offset % SLOTS] })
    }

    /// Takes a number when [`LeaseMap::claim`] could not: from the next lease, or, with every lease of the range
    /// seen, from whoever's it is. `Full`: each number in the range was taken at some moment of the call.
    /// Preemption on: may allocate, without the lock.
    #[cold]
    #[inline(never)]
    pub fn claim_slow(&self, range: LeaseRange) -> Result<Claim<'_, T>, SlowError> {
        let mut spare = Preload::new();
        if !self.split.load(Relaxed) && self.shared.cursor.load(Relaxed) as usize > SLOTS {
            // More than one lease's worth of users: worth a lease per CPU. Without memory it stays as it is.
            let _ = self.split();
        }
        if let Some(claim) = self.next_of_run(range) {
            return Ok(claim);
        }
        // Without memory for all the run is shorter.
        let _ = spare.fill(self.nodes_of_run(range));
        loop {
            let found = {
                let held = self.shared.lock.lock();
                match self.leases() {
                    None => self.renew(&self.common, range, &mut spare),
                    Some(leases) => self.renew(leases.this_cpu(&held), range, &mut spare),
                }
            };
            match found {
                Ok(claim) => return Ok(claim),
                Err(IdrError::NeedNodes(nr)) => spare.fill(nr).map_err(|_| SlowError::NoMemory)?,
                Err(_) => return Err(SlowError::Full),
            }
        }
    }

    /// Takes a number of `lease`, which begins anew if it must. The lock is held.
    fn renew(
        &self,
        lease: &Lease,
        range: LeaseRange,
        spare: &mut Preload,
    ) -> Result<Claim<'_, T>, IdrError> {
        if let Some(claim) = self.take_any(lease, range.limit) {
            return Ok(claim);
        }
        self.end_lease(lease);
        lease.run_end.store(0, Relaxed);
        let cursor = self.shared.cursor.load(Relaxed);
        let min = if cursor > range.reserved {
            range.reserved
        } else {
            FIRST
        };
        // From the cursor to the end, then once all over from the minimum.
        let mut start = cursor.max(min);
        let mut wrapped = false;
        loop {
            if start >= range.limit {
                if wrapped {
                    return Err(IdrError::Full);
                }
                wrapped = true;
                start = min;
                continue;
            }
            let mut end = (start | (SLOTS as u32 - 1))
                .saturating_add(1)
                .min(range.limit);
            if start < range.reserved {
                end = end.min(range.reserved);
            }
            let node = self.node_for(start, spare)?;
            // SAFETY: a node of the tree; the lock is held, so it stays.
            if let Some(claim) = self.begin_lease(lease, start, end, unsafe { node.as_ref() }) {
                self.shared.cursor.store(end, Relaxed);
                self.begin_run(lease, end, range, spare);
                return Ok(claim);
            }
            start = end;
        }
    }

    /// Leases what is free of `start..end`, numbers of `node`, to `lease`, and takes the first. None: nothing is free. The
    /// lock is held, or an RCU section has lasted since the node was found; the lease has no numbers left.
    fn begin_lease(
        &self,
        lease: &Lease,
        start: u32,
        end: u32,
        node: &Node,
    ) -> Option<Claim<'_, T>> {
        let first = (start..end).find(|&nr| node.slot(nr as usize % SLOTS).is_null())?;
        // INVARIANT: INV-LEASE-2: unless it is dead.
        let keep = |count| (count != DEAD).then(|| count + (end - first) as u16);
        node.count.fetch_update(AcqRel, Relaxed, keep).ok()?;
        lease.node.store(ptr::from_ref(node).cast_mut(), Relaxed);
        lease.at.store(first, Relaxed);
        lease.end.store(end, Relaxed);
        // Another CPU whose lease this was may be quicker: then the next ones.
        self.take_any(lease, end)
    }

    /// A number of this CPU's next node, without the lock. None: the run is used up, or not all in place.
    fn next_of_run(&self, range: LeaseRange) -> Option<Claim<'_, T>> {
        let here = rcu::read_lock();
        let lease = self.leases()?.this_cpu(&here);
        if lease.at.load(Relaxed) < lease.end.load(Relaxed) {
            return None;
        }
        loop {
            let start = lease.run_at.load(Relaxed);
            let run_end = lease.run_end.load(Relaxed).min(range.limit);
            if start >= run_end {
                return None;
            }
            let end = (start | (SLOTS as u32 - 1)).saturating_add(1).min(run_end);
            lease.run_at.store(end, Relaxed);
            // SAFETY: inside an RCU section, which outlasts the use of the node.
            let node = unsafe { self.tree.slot(u64::from(start))?.node.as_ref() };
            if let Some(claim) = self.begin_lease(lease, start, end, node) {
                return Some(claim);
            }
        }
    }

    /// How long this CPU's next run is to be: twice the last one's, as far as all CPUs' runs are but half of the range.
    fn run_len(lease: &Lease, range: LeaseRange) -> u32 {
        let share = range.limit / (2 * ksync::arch::nr_cpu_ids() as u32);
        (lease.run_len.load(Relaxed) * 2).clamp(SLOTS as u32, share.clamp(SLOTS as u32, RUN_MAX))
    }

    /// How many spare nodes this CPU's next run is likely to need.
    fn nodes_of_run(&self, range: LeaseRange) -> usize {
        let here = rcu::read_lock();
        let Some(leases) = self.leases() else {
            return 0;
        };
        let len = Self::run_len(leases.this_cpu(&here), range);
        let last = u64::from(self.shared.cursor.load(Relaxed) + len);
        // SAFETY: inside an RCU section.
        match unsafe { self.tree.slot(last) } {
            Some(_) => 0, // it has been here before
            None => len as usize / SLOTS,
        }
    }

    /// Makes `start..` the rest of this CPU's run, with nodes from `spare`, as far as they go. The lock is held.
    fn begin_run(&self, lease: &Lease, start: u32, range: LeaseRange, spare: &mut Preload) {
        if !self.split.load(Relaxed) || start < range.reserved {
            return;
        }
        let len = Self::run_len(lease, range);
        lease.run_len.store(len, Relaxed);
        let limit = range.limit.min(start.saturating_add(len - SLOTS as u32));
        let mut end = start;
        while end < limit && self.node_for(end, spare).is_ok() {
            end = (end | (SLOTS as u32 - 1)).saturating_add(1).min(limit);
        }
        lease.run_at.store(start, Relaxed);
        lease.run_end.store(end, Relaxed);
        self.shared.cursor.store(end, Relaxed);
    }

    /// Gives back what a lease has not reached. The lease is the caller's.
    fn end_lease(&self, lease: &Lease) {
        let (at, end) = (lease.at.load(Relaxed), lease.end.load(Relaxed));
        if at < end {
            lease.end.store(at, Relaxed);
            // SAFETY: the lease has numbers left, so it keeps its node (INV-LEASE-2).
            let node = unsafe { &*lease.node.load(Relaxed) };
            node.count.fetch_sub((end - at) as u16, AcqRel);
        }
    }

    /// The bottom node of `id`, made if need be. The lock is held.
    fn node_for(&self, id: u32, spare: &mut Preload) -> Result<NonNull<Node>, NeedNodes> {
        // SAFETY: the lock is held: the only one to change the shape. A new node is kept by the caller or reaped.
        unsafe {
            let place = self.tree.place(u64::from(id));
            Ok(self.tree.open(place, spare)?.node)
        }
    }

    /// One reason less to keep `node`.
    #[inline(always)]
    fn let_go(&self, node: NonNull<Node>) {
        // SAFETY: the caller's reason, which it gives up here, keeps the node until now (INV-LEASE-2).
        unsafe { node.as_ref() }.count.fetch_sub(1, AcqRel);
    }

    /// Gives back this CPU's lease and run, and all nodes that nothing keeps, of whomever's run they are: for who wants
    /// the memory back. Its numbers are leased again when the cursor comes round. O(nodes).
    pub fn trim(&self) {
        let held = self.shared.lock.lock();
        self.end_own(&held);
        loop {
            let mut dead = [ptr::null_mut(); TRIM_BATCH];
            let mut nr = 0;
            // SAFETY: the lock is held: the shape is ours, and nodes are unlinked after the walk. INV-LEASE-2: what is dead
            // can be kept no more.
            unsafe {
                self.tree.for_each_bottom(|node| {
                    let count = &node.as_ref().count;
                    if nr < TRIM_BATCH && count.compare_exchange(0, DEAD, AcqRel, Relaxed).is_ok() {
                        dead[nr] = node.as_ptr();
                        nr += 1;
                    }
                });
                for &node in &dead[..nr] {
                    self.tree
                        .unlink_bottom(NonNull::new_unchecked(node), Retire::Rcu);
                }
            }
            if nr < TRIM_BATCH {
                return;
            }
        }
    }

    fn end_own(&self, held: &SpinGuard<'_, ()>) {
        let lease = match self.leases() {
            None => &self.common,
            Some(leases) => leases.this_cpu(held),
        };
        self.end_lease(lease);
        lease.run_end.store(0, Relaxed);
        lease.run_len.store(0, Relaxed);
    }

    /// Takes exactly `id`, whoever's lease it is in. The cursor stays. Preemption on: may allocate, without the lock.
    #[cold]
    pub fn claim_at(&self, id: u32) -> Result<Claim<'_, T>, SlowError> {
        let mut spare = Preload::new();
        loop {
            let need = {
                let _held = self.shared.lock.lock();
                match self.node_for(id, &mut spare) {
                    Ok(node) => {
                        let slot = SlotRef {
                            node,
                            offset: id as usize % SLOTS,
                        };
                        // SAFETY: in the tree, and the lock is held. INV-LEASE-2: the claim's share, in advance.
                        unsafe { node.as_ref() }.count.fetch_add(1, Relaxed);
                        if self.try_take(slot) {
                            return Ok(Claim {
                                map: self,
                                id,
                                slot,
                            });
                        }
                        self.let_go(node);
                        return Err(SlowError::Taken);
                    }
                    Err(NeedNodes(nr)) => nr,
                }
            };
            spare.fill(need).map_err(|_| SlowError::NoMemory)?;
        }
    }

    /// Adds `n` to this CPU's part of a count that the map keeps for its user, next to the lease. False: the map is not
    /// split, nothing was added.
    #[inline(always)]
    pub fn count(&self, n: i32, here: &RcuGuard) -> bool {
        let Some(leases) = self.leases() else {
            return false;
        };
        let count = &leases.this_cpu(here).count;
        count.store(count.load(Relaxed) + n, Relaxed);
        true
    }

    /// The sum of what [`count`](Self::count) added; exact while nobody adds.
    pub fn sum_counts(&self) -> i32 {
        let sum = |leases: &PerCpu<Lease>| leases.iter().map(|l| l.count.load(Relaxed)).sum();
        self.leases().map_or(0, sum)
    }

    /// The sum, which is 0 afterwards. While nobody adds.
    pub fn take_counts(&self) -> i32 {
        let take = |leases: &PerCpu<Lease>| leases.iter().map(|l| l.count.swap(0, Relaxed)).sum();
        self.leases().map_or(0, take)
    }

    /// Starts over: the next number is the first free one from 1 up. For a map that nobody uses yet.
    #[cold]
    pub fn restart(&self) {
        let held = self.shared.lock.lock();
        self.end_own(&held);
        self.shared.cursor.store(FIRST, Relaxed);
    }

    /// A reference to the object at `id`. Lockless.
    #[inline]
    pub fn get(&self, id: u32) -> Option<KArc<T>> {
        let _rcu = rcu::read_lock();
        ksync::arch::interleave();
        // SAFETY: inside an RCU section; the word came from `KArc::into_raw` and is cleared
        // before its reference is given up (INV-LEASE-4); T is RCU_FREE.
        unsafe {
            let value = NonNull::new(self.tree.load(u64::from(id)))?;
            KArc::try_get_rcu(value.cast())
        }
    }

    /// The first object at or after `from`, with its number. Lockless; what comes and goes meanwhile
    /// may or may not be seen.
    pub fn next(&self, mut from: u32) -> Option<(u32, KArc<T>)> {
        let _rcu = rcu::read_lock();
        loop {
            ksync::arch::interleave();
            // SAFETY: as in `get`.
            unsafe {
                let (id, word) = self.tree.next(u64::from(from), u64::from(u32::MAX))?;
                if let Some(object) = KArc::try_get_rcu(NonNull::new_unchecked(word.cast())) {
                    return Some((id as u32, object));
                }
                from = (id as u32).checked_add(1)?;
            }
        }
    }

    /// Panics on a broken invariant; returns (numbers taken, nodes, seats whose objects are away). For tests, with nobody else
    /// around.
    pub fn check_invariants(&self) -> (usize, usize, usize) {
        let _held = self.shared.lock.lock();
        // SAFETY: the lock is held and nobody else is around.
        let (nodes, shown, claimed, kept) = unsafe { self.reckon() };
        assert!(kept >= shown + claimed, "INV-LEASE-2");
        (shown + claimed, nodes, kept - shown - claimed)
    }

    /// Nodes, objects shown, numbers only claimed, and reasons to keep nodes, but for leases.
    ///
    /// # Safety
    /// As for [`Tree::for_each_bottom`]. Nobody else is around.
    unsafe fn reckon(&self) -> (usize, usize, usize, usize) {
        let mut leased = unreached(&self.common);
        if let Some(leases) = self.leases() {
            leased += leases.iter().map(unreached).sum::<usize>();
        }
        let (mut shown, mut claimed, mut kept) = (0, 0, 0);
        // SAFETY: the caller's promise.
        let nodes = unsafe {
            self.tree.for_each_bottom(|node| {
                let n = node.as_ref();
                for word in (0..SLOTS).map(|o| n.slot(o)).filter(|w| !w.is_null()) {
                    *if word == RESERVED {
                        &mut claimed
                    } else {
                        &mut shown
                    } += 1;
                }
                kept += usize::from(n.count());
            })
        };
        (nodes, shown, claimed, kept - leased)
    }
}

/// Numbers that a lease has not reached.
fn unreached(lease: &Lease) -> usize {
    (lease
        .end
        .load(Relaxed)
        .saturating_sub(lease.at.load(Relaxed))) as usize
}

impl<T: Object> Drop for LeaseMap<T> {
    fn drop(&mut self) {
        // SAFETY: `&mut`.
        let (_, _, claimed, kept) = unsafe { self.reckon() };
        if kept != claimed {
            // Somebody has a seat in it yet, a bug: the nodes stay, and a leak check finds them.
            self.tree.forget();
            #[cfg(test)]
            assert!(
                std::thread::panicking(),
                "INV-SEAT-1: a seat outlives its map"
            );
        }
        if *self.split.get_mut() {
            // SAFETY: initialised (`split`), and not used again.
            unsafe { self.leases.get_mut().assume_init_drop() };
        }
        self.tree.drain(Retire::Rcu, |_, word| {
            if let Some(value) = NonNull::new(word).filter(|w| w.as_ptr() != RESERVED) {
                // SAFETY: a reference of the map (INV-LEASE-4).
                drop(unsafe { KArc::<T>::from_raw(value.cast()) });
            }
        });
    }
}

/// Why the slow way found no number.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum SlowError {
    /// Every number of the range is taken.
    Full,
    /// The number asked for is taken.
    Taken,
    /// No memory for nodes.
    NoMemory,
}

/// A number that is taken and shows nothing. Publish it or cancel it: dropped, it stays taken.
#[must_use]
pub struct Claim<'m, T: Object> {
    map: &'m LeaseMap<T>,
    id: u32,
    pub(crate) slot: SlotRef,
}

impl<T: Object> Claim<'_, T> {
    /// The number.
    #[inline(always)]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Frees the number.
    pub fn cancel(self) {
        let _rcu = rcu::read_lock();
        // SAFETY: the claim keeps the node (INV-LEASE-2).
        unsafe { self.slot.node.as_ref() }.set_slot(self.slot.offset, ptr::null_mut());
        self.map.let_go(self.slot.node);
    }
}

const _: () = assert!(1 << SHIFT == SLOTS);
