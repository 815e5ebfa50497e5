//! `Crowd`: the members of a group or session that many CPUs join and leave at once.
//!
//! Problem. All that a shell starts are members of its session, and what a job forks is in its group: each fork joins
//! two lists and each exit leaves them. Under one lock per list, forks of one session take turns, whatever else is
//! independent.
//!
//! Mechanism. A list per CPU, opened when a lock was found taken. Joins go to the list of the CPU they happen on; a
//! member's [`Place`] says where it is. Two questions were easy with one list:
//!
//! *Who is the last to leave, and frees the number?* The process whose id the number is uses it too, so that nobody asks
//! while that lives, and a crowd is open no longer than it: its reaper closes all lists, after which nobody joins them,
//! and counts those that have members. Whoever empties one counts it off; the last of these, if nobody else uses the
//! number either, is the last to leave.
//!
//! *Does a signal to the group reach the child of a member that forks meanwhile?* The child joins before its parent
//! receives the signal, or is not born. While a walk is under way all join the central list, which is walked last and to
//! its end: so who joins behind the walk's back is met there.
//!
//! Lock order: `pid_crowd` and `pid_lists` are never held together; what nests inside one nests inside the other.
//!
//! Invariants
//! - INV-CROWD-1: `crowd` of a pid is set under `pid_lists`, when the pid is a process's, no walk is under way and there
//!   was none, and lives as long as that life of the pid.
//! - INV-CROWD-2: `Users::crowded` is true from the opening until, after the closing, the last list is empty: one thread
//!   clears it.
//! - INV-CROWD-3: a member is in the list that its place names, from the end of `join` until `leave`.
//! - INV-CROWD-4: who joins a list of the crowd after a walk has been there finds `walkers` above 0, under that list's lock,
//!   and goes to the central list instead.

use crate::Member;
use crate::object::{AttachError, PGID_SLOT, Pid, PidType, SID_SLOT};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};
use ksync::{PreemptGuard, SpinLock, lock_class};
use percpu::PerCpu;
use slab::{AllocError, KArc, List};

/// Members of a group that are looked up under one hold of a list.
const BATCH: usize = 32;
type Batch<T> = [Option<KArc<T>>; BATCH];
/// In [`Place`]: the list in the pid itself.
const CENTRAL: u32 = 0;

/// Where a member is in the lists of a group or session. Of the member, which joins and leaves one at a time.
#[derive(Default)]
pub struct Place {
    /// How many had joined that list, itself included. Written under the list's lock.
    joined: AtomicU64,
    /// [`CENTRAL`], or a CPU's number and 1.
    list: AtomicU32,
}

impl Place {
    /// Nowhere.
    pub const fn new() -> Self {
        Place {
            joined: AtomicU64::new(0),
            list: AtomicU32::new(CENTRAL),
        }
    }
}

/// Members, in the order in which they joined.
pub(crate) struct Lists<T: Member> {
    pgid: List<T, PGID_SLOT>,
    sid: List<T, SID_SLOT>,
    joins: u64,
}

impl<T: Member> Lists<T> {
    pub(crate) const fn new() -> Self {
        Lists {
            pgid: List::new(),
            sid: List::new(),
            joins: 0,
        }
    }

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.pgid.is_empty() && self.sid.is_empty()
    }

    #[inline(always)]
    fn join(
        &mut self,
        kind: PidType,
        task: KArc<T>,
        place: &Place,
        list: u32,
    ) -> Result<(), AttachError> {
        let joined = match kind {
            PidType::Pgid => self.pgid.push_back(task),
            PidType::Sid => self.sid.push_back(task),
            PidType::Pid | PidType::Tgid => Err(task),
        };
        joined.map_err(|_| AttachError::Busy)?;
        self.joins += 1;
        place.joined.store(self.joins, Relaxed);
        place.list.store(list, Relaxed);
        Ok(())
    }

    #[inline(always)]
    fn leave(&mut self, kind: PidType, task: &KArc<T>) -> Option<KArc<T>> {
        match kind {
            PidType::Pgid => self.pgid.remove(task),
            PidType::Sid => self.sid.remove(task),
            PidType::Pid | PidType::Tgid => None,
        }
    }

    fn replace(&mut self, kind: PidType, old: &KArc<T>, new: KArc<T>) -> bool {
        let inserted = match kind {
            PidType::Pgid => self.pgid.insert_before(old, new).is_ok(),
            PidType::Sid => self.sid.insert_before(old, new).is_ok(),
            PidType::Pid | PidType::Tgid => false,
        };
        inserted && self.leave(kind, old).is_some()
    }

    pub(crate) fn front(&self, kind: PidType) -> Option<&KArc<T>> {
        match kind {
            PidType::Pgid => self.pgid.front(),
            PidType::Sid => self.sid.front(),
            PidType::Pid | PidType::Tgid => None,
        }
    }

    /// The next members of the group behind the one that joined as number `last`.
    fn next_batch(
        &self,
        last: &mut u64,
        place_of: &impl Fn(&T) -> &Place,
        batch: &mut Batch<T>,
    ) -> usize {
        let mut len = 0;
        for task in self.pgid.iter() {
            let joined = place_of(task).joined.load(Relaxed);
            if joined > *last {
                *last = joined;
                batch[len] = Some(task.clone());
                len += 1;
            }
            if len == BATCH {
                break;
            }
        }
        len
    }
}

/// One CPU's list.
#[repr(align(64))]
struct Shard<T: Member>(SpinLock<ShardState<T>>);

struct ShardState<T: Member> {
    lists: Lists<T>,
    closed: bool,
}

/// The lists of all CPUs.
pub(crate) struct Crowd<T: Member> {
    shards: PerCpu<Shard<T>>,
    /// Walks under way (INV-CROWD-4).
    walkers: AtomicU32,
    is_closed: AtomicBool,
    /// After closing: lists with members, and 1 more while they are being closed.
    occupied: AtomicU32,
}

impl<T: Member> Crowd<T> {
    fn new() -> Result<Self, AllocError> {
        let shard = |_| {
            let state = ShardState {
                lists: Lists::new(),
                closed: false,
            };
            Shard(SpinLock::new(state, lock_class!("pid_crowd")))
        };
        Ok(Crowd {
            shards: PerCpu::new(shard).map_err(|_| AllocError)?,
            walkers: AtomicU32::new(0),
            is_closed: AtomicBool::new(false),
            occupied: AtomicU32::new(1),
        })
    }

    /// Gives `task` back if it has to go to the central list.
    #[inline]
    fn join(&self, kind: PidType, task: KArc<T>, place: &Place) -> Result<Joined, KArc<T>> {
        let here = PreemptGuard::new();
        let cpu = ksync::arch::smp_processor_id();
        let mut state = self.shards.this_cpu(&here).0.lock();
        let walked = self.walkers.load(Relaxed) > 0 && !planted(Bug::JoinsBehindAWalk);
        if state.closed || walked {
            return Err(task);
        }
        Ok(state.lists.join(kind, task, place, cpu as u32 + 1))
    }

    /// True: the crowd was closed, and this was its last member.
    #[inline]
    fn leave(&self, cpu: u32, kind: PidType, task: &KArc<T>) -> bool {
        let mut state = self.shards.on(cpu as usize).0.lock();
        let gone = state.lists.leave(kind, task);
        let emptied = gone.is_some() && state.closed && state.lists.is_empty();
        drop(state);
        emptied && self.occupied.fetch_sub(1, AcqRel) == 1
        // `gone` is dropped here, and is not the last reference: the caller holds one.
    }

    /// True for the thread that closed it, if it has no members.
    fn close(&self) -> bool {
        if self.is_closed.swap(true, AcqRel) {
            return false;
        }
        for shard in self.shards.iter() {
            let mut state = shard.0.lock();
            state.closed = true;
            if !state.lists.is_empty() && !planted(Bug::ClosesUncounted) {
                self.occupied.fetch_add(1, Relaxed);
            }
        }
        self.occupied.fetch_sub(1, AcqRel) == 1
    }

    fn first(&self, kind: PidType) -> Option<KArc<T>> {
        let front = |shard: &Shard<T>| shard.0.lock().lists.front(kind).cloned();
        self.shards.iter().find_map(front)
    }
}

/// A bug that a test plants.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) enum Bug {
    JoinsBehindAWalk,
    ClosesUncounted,
}

/// Never outside of tests.
#[inline(always)]
fn planted(_bug: Bug) -> bool {
    #[cfg(test)]
    return crate::crowd_tests::is_planted(_bug);
    #[cfg(not(test))]
    false
}

type Joined = Result<(), AttachError>;

impl<T: Member> Pid<T> {
    /// Makes `task` a member of the group or session, at `place`. Context: any but hard IRQ, spinlocks of outer order may
    /// be held.
    #[inline]
    pub fn join(&self, kind: PidType, task: KArc<T>, place: &Place) -> Result<(), AttachError> {
        let mut task = task;
        if let Some(crowd) = self.crowd() {
            match crowd.join(kind, task, place) {
                Ok(joined) => return joined,
                Err(back) => task = back,
            }
        }
        let mut users = match self.users().try_lock() {
            Some(users) => users,
            None => {
                self.note_contention();
                self.users().lock()
            }
        };
        if self.is_dead() {
            return Err(AttachError::Dead);
        }
        users.lists.join(kind, task, place, CENTRAL)
    }

    /// Ends what [`join`](Self::join) began. True if it was the last use of the pid of any kind: nobody can join any more,
    /// and the caller calls [`free_pid`](crate::free_pid). Not a member: nothing, false. Context: as `join`.
    #[inline]
    #[must_use = "the last one out frees the pid"]
    pub fn leave(&self, kind: PidType, task: &KArc<T>, place: &Place) -> bool {
        let list = place.list.load(Relaxed);
        if list == CENTRAL {
            let mut users = self.users().lock();
            let gone = users.lists.leave(kind, task);
            let last = gone.is_some() && self.end_if_unused(&users);
            drop(users);
            return last;
        }
        // INV-CROWD-3.
        self.crowd()
            .is_some_and(|crowd| crowd.leave(list - 1, kind, task))
            && self.crowd_is_gone()
    }

    /// Puts `new` where `old` was (exec by a thread that is not the leader). False: `old` is no member.
    pub fn replace_member(
        &self,
        kind: PidType,
        old: &KArc<T>,
        new: KArc<T>,
        place: &Place,
    ) -> bool {
        match place.list.load(Relaxed) {
            CENTRAL => self.users().lock().lists.replace(kind, old, new),
            list => self.crowd().is_some_and(|crowd| {
                let mut state = crowd.shards.on(list as usize - 1).0.lock();
                state.lists.replace(kind, old, new)
            }),
        }
    }

    /// Whether the group or session has a member.
    pub fn has_members(&self, kind: PidType) -> bool {
        self.users().lock().lists.front(kind).is_some()
            || self
                .crowd()
                .is_some_and(|crowd| crowd.first(kind).is_some())
    }

    /// Calls `f` for each member of the group, those included that join while it runs; returns how many there were.
    /// Allocates nothing: a group can be killed when there is no memory. `f` is called without locks, for a batch at a time.
    pub fn for_each_in_group(
        &self,
        place_of: impl Fn(&T) -> &Place,
        mut f: impl FnMut(&KArc<T>),
    ) -> usize {
        let mut walk = |next: &mut dyn FnMut(&mut u64, &mut Batch<T>) -> usize| {
            let (mut nr, mut last) = (0, 0);
            loop {
                let mut batch = [const { None }; BATCH];
                let len = next(&mut last, &mut batch);
                if len == 0 {
                    return nr;
                }
                batch.iter().flatten().for_each(&mut f);
                nr += len;
            }
        };
        self.users().lock().walks += 1;
        // INV-CROWD-1: none is opened before the walk is over.
        let crowd = self.crowd();
        let mut nr = 0;
        if let Some(crowd) = crowd {
            crowd.walkers.fetch_add(1, SeqCst);
            for shard in crowd.shards.iter() {
                nr += walk(&mut |last, batch| {
                    shard.0.lock().lists.next_batch(last, &place_of, batch)
                });
            }
        }
        nr += walk(&mut |last, batch| self.users().lock().lists.next_batch(last, &place_of, batch));
        if let Some(crowd) = crowd {
            crowd.walkers.fetch_sub(1, SeqCst);
        }
        self.users().lock().walks -= 1;
        nr
    }

    /// Opens a crowd if members have been waiting for each other. Without memory things stay as they are. Before a
    /// [`join`](Self::join), with no lock held. May sleep.
    #[inline]
    pub fn make_room(&self) {
        if self.is_contended() {
            self.open_crowd();
        }
    }

    /// Opens a crowd if there is none and there may be one: the pid is a process's.
    #[cold]
    pub fn open_crowd(&self) {
        if self.crowd().is_some() {
            return;
        }
        let Ok(fresh) = slab::KBox::try_uninit() else {
            return;
        };
        let Ok(crowd) = Crowd::new() else { return };
        let fresh = fresh.write(crowd);
        let mut users = self.users().lock();
        if users.is_process() && users.walks == 0 && self.crowd().is_none() {
            // INVARIANT: INV-CROWD-1, INV-CROWD-2.
            users.crowded = true;
            self.set_crowd(fresh);
            return;
        }
        drop(users);
        drop(fresh);
    }

    /// Before the pid's process is gone: nobody joins the crowd any more.
    pub(crate) fn close_crowd(&self) {
        if self.crowd().is_some_and(Crowd::close) {
            self.users().lock().crowded = false;
        }
    }

    /// The crowd was closed and its last member has left. True if that was the last use of the pid.
    #[cold]
    fn crowd_is_gone(&self) -> bool {
        let mut users = self.users().lock();
        users.crowded = false;
        self.end_if_unused(&users)
    }
}
