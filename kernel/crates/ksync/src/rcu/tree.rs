//! Grace periods: who must still pass a quiescent state.
//!
//! # Problem
//! A grace period must hear from every CPU that may be reading, from 384 of them without all writing one line, and
//! not at all from those that idle.
//!
//! # Mechanism
//! A tree of two levels. A leaf serves up to [`LEAF_CPUS`] CPUs of one node with one atomic word:
//!
//! ```text
//!   63        48 47            32 31            16 15             0
//!  ┌────────────┬────────────────┬────────────────┬────────────────┐
//!  │            │ SLEEP: kick at │ NEED: this GP  │ BUSY: not idle │   one bit per CPU each
//!  │            │ the end of GP  │ waits for it   │                │
//!  └────────────┴────────────────┴────────────────┴────────────────┘
//! ```
//!
//! and the root's `need` has a bit per leaf. A grace period starts by copying BUSY to NEED in every leaf, in one
//! atomic each, so a CPU is either seen idle, and then its later readers see everything the updaters did before, or
//! must report. Reporting clears the CPU's NEED bit; the last in a leaf clears the leaf's bit in the root; the last
//! there ends the grace period. Going idle clears BUSY and NEED in one atomic. (The bits say what a per-CPU dynticks
//! counter would: but there starting must visit every CPU's line to see who idles, and here only the leaves.)
//!
//! Each leaf repeats the sequence number on a line of its own that changes only twice per grace period, so looking
//! whether there is anything to do is a load that usually hits.
//!
//! ```text
//!   gp even ──── request(stamp > gp) wins the CAS ────► gp odd: NEED := BUSY, leaf by leaf
//!     ▲                                                   │ report, idle_enter
//!     └───────── last bit of the root cleared ◄───────────┘
//! ```
//!
//! There is no grace-period thread: whoever requests first starts, whoever reports last ends, and starts the next
//! one if somebody has asked for it.
//!
//! # Invariants
//! - INV-RCU-1: a CPU that may be in a reader has its BUSY bit set.
//! - INV-RCU-2: NEED bits are set only by who made `gp` odd, before the leaf's `seq` says so, and cleared only by
//!   their CPU; the root's bit of a leaf is cleared only after all its NEED bits.
//! - INV-RCU-3: `gp` goes odd to even once per grace period, by who cleared the last bit of the root's `need`.
//! - INV-RCU-4: a leaf's `seq` never goes back.
use super::seq;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering::*, fence};
use crate::sync::{Padded, array, const_unless_loom, planted};
use crate::{NR_CPUS, arch};

/// CPUs of a leaf.
pub(super) const LEAF_CPUS: usize = 16;
/// Leaves: one bit each in the root.
pub(super) const MAX_LEAVES: usize = if cfg!(loom) { 2 } else { 64 };
const _: () = assert!(cfg!(loom) || NR_CPUS / LEAF_CPUS <= MAX_LEAVES);

const NEED_SHIFT: u32 = 16;
const SLEEP_SHIFT: u32 = 32;
const BUSY: u64 = 0xffff;
const NEED: u64 = BUSY << NEED_SHIFT;
const SLEEP: u64 = BUSY << SLEEP_SHIFT;

#[repr(C)]
pub(super) struct Leaf {
    /// What this leaf's CPUs know of `gp`.
    pub(super) seq: Padded<AtomicU64>,
    word: Padded<AtomicU64>,
    /// Which CPU each bit is. Written at boot.
    cpus: [core::sync::atomic::AtomicU32; LEAF_CPUS],
}

impl Leaf {
    const_unless_loom! {
        fn new() -> Self {
            Leaf {
                seq: Padded(AtomicU64::new(seq::START)),
                word: Padded(AtomicU64::new(0)),
                cpus: [const { core::sync::atomic::AtomicU32::new(0) }; LEAF_CPUS],
            }
        }
    }
}

/// A CPU's place in the tree.
#[derive(Copy, Clone)]
pub(super) struct Place {
    pub(super) leaf: usize,
    pub(super) bit: u32,
}

pub(super) struct Tree {
    gp: Padded<AtomicU64>,
    /// The latest stamp anybody waits for.
    requested: Padded<AtomicU64>,
    /// Leaves the current grace period waits for.
    need: Padded<AtomicU64>,
    nr_leaves: AtomicU32,
    leaves: [Leaf; MAX_LEAVES],
}

impl Tree {
    const_unless_loom! {
        pub(super) fn new() -> Self {
            Tree {
                gp: Padded(AtomicU64::new(seq::START)),
                requested: Padded(AtomicU64::new(seq::START)),
                need: Padded(AtomicU64::new(0)),
                nr_leaves: AtomicU32::new(0),
                leaves: array!(Leaf::new()),
            }
        }
    }

    /// Makes `place` the place of `cpu`. Boot, before that CPU runs readers.
    pub(super) fn assign(&self, cpu: usize, place: Place) {
        self.leaves[place.leaf].cpus[place.bit as usize].store(cpu as u32, Relaxed);
        self.nr_leaves.fetch_max(place.leaf as u32 + 1, AcqRel);
    }

    pub(super) fn leaf(&self, place: Place) -> &Leaf {
        &self.leaves[place.leaf]
    }

    fn leaves(&self) -> &[Leaf] {
        &self.leaves[..self.nr_leaves.load(Acquire) as usize]
    }

    /// The sequence number, for stamps: nothing the caller did before is later than it.
    pub(super) fn snapshot(&self) -> u64 {
        fence(SeqCst);
        self.gp.load(Acquire)
    }

    /// The CPU stops being idle: from now on grace periods wait for it.
    pub(super) fn idle_exit(&self, place: Place) {
        let before = self.leaf(place).word.fetch_or(1 << place.bit, AcqRel);
        debug_assert!(before >> place.bit & 1 == 0);
    }

    /// The CPU is quiescent and will be until `idle_exit`. With `sleeps` it is kicked when a grace period ends.
    pub(super) fn idle_enter(&self, place: Place, sleeps: bool) {
        let leaf = self.leaf(place);
        let mine = (1 << place.bit) | (1 << (place.bit + NEED_SHIFT));
        let sleep = (sleeps as u64) << (place.bit + SLEEP_SHIFT);
        let mut before = leaf.word.load(Relaxed);
        while let Err(now) =
            leaf.word
                .compare_exchange(before, before & !mine | sleep, AcqRel, Relaxed)
        {
            before = now;
        }
        self.after_report(place, before);
    }

    /// The CPU is quiescent now: clears its NEED bit if it is set.
    pub(super) fn report(&self, place: Place) {
        let mine = 1 << (place.bit + NEED_SHIFT);
        let leaf = self.leaf(place);
        if leaf.word.load(Relaxed) & mine != 0 {
            let before = leaf.word.fetch_and(!mine, AcqRel);
            self.after_report(place, before);
        }
    }

    /// `before` is the leaf's word before this CPU's NEED bit was cleared.
    fn after_report(&self, place: Place, before: u64) {
        let mine = 1 << (place.bit + NEED_SHIFT);
        if before & NEED == mine && self.leaves_done(1 << place.leaf) {
            let ended = self.finish();
            self.start_while_requested(Some(ended));
        }
    }

    /// Clears leaves in the root; returns whether they were the last the grace period waited for.
    fn leaves_done(&self, leaves: u64) -> bool {
        self.need.fetch_and(!leaves, AcqRel) & !leaves == 0
    }

    /// Asks for the grace period that ends at `stamp`.
    pub(super) fn request(&self, stamp: u64) {
        let mut requested = self.requested.load(Relaxed);
        while !seq::reached(requested, stamp) {
            match self
                .requested
                .compare_exchange(requested, stamp, AcqRel, Relaxed)
            {
                Ok(_) => break,
                Err(now) => requested = now,
            }
        }
        // Pairs with the fence in `finish`: either we see that the grace period is over, or who ends it sees the request.
        fence(SeqCst);
        self.start_while_requested(None);
    }

    /// Starts grace periods until one has to wait for somebody or none is asked for; tells the leaves.
    fn start_while_requested(&self, mut ended: Option<u64>) {
        while self.start_if_requested() {
            ended = Some(self.finish());
        }
        if let Some(ended) = ended
            && !planted!(RcuForgetPublish)
        {
            self.publish(ended);
        }
    }

    /// All have reported: ends the grace period (INV-RCU-3). Returns its number.
    fn finish(&self) -> u64 {
        let ended = self.gp.load(Relaxed).wrapping_add(1);
        debug_assert!(!seq::in_progress(ended));
        self.gp.store(ended, Release);
        fence(SeqCst);
        ended
    }

    /// Starts a grace period if one is asked for and none runs. Returns whether it has to be ended right away,
    /// because every CPU idles.
    fn start_if_requested(&self) -> bool {
        let gp = self.gp.load(Acquire);
        if seq::in_progress(gp) || seq::reached(gp, self.requested.load(Acquire)) {
            return false;
        }
        if self
            .gp
            .compare_exchange(gp, gp.wrapping_add(1), AcqRel, Relaxed)
            .is_err()
        {
            return false;
        }
        self.start(gp.wrapping_add(1))
    }

    /// `gp` was just made odd by us. Returns whether nobody needs to report.
    fn start(&self, gp: u64) -> bool {
        // Whoever took a stamp that this grace period satisfies read `gp` before it was odd, after a fence; so what it
        // did before is visible to every CPU that finds our mark in its leaf.
        fence(SeqCst);
        let leaves = self.leaves();
        if leaves.is_empty() {
            return true;
        }
        let all = !0 >> (64 - leaves.len());
        self.need.store(all, Relaxed);
        let mut idle_leaves = 0;
        for (i, leaf) in leaves.iter().enumerate() {
            let mut before = leaf.word.load(Relaxed);
            let busy = loop {
                debug_assert!(before & NEED == 0);
                let busy = if planted!(RcuIgnoreBusy) {
                    0
                } else {
                    before & BUSY
                };
                match leaf.word.compare_exchange(
                    before,
                    before & BUSY | busy << NEED_SHIFT,
                    AcqRel,
                    Relaxed,
                ) {
                    Ok(_) => break busy,
                    Err(now) => before = now,
                }
            };
            if busy == 0 {
                idle_leaves |= 1 << i;
            }
            advance(&leaf.seq, gp);
            kick_sleepers(leaf, before);
        }
        idle_leaves != 0 && self.leaves_done(idle_leaves)
    }

    /// Calls `f` for every CPU the current grace period still waits for. A glimpse, for diagnosis.
    pub(super) fn for_each_holdout(&self, mut f: impl FnMut(usize)) {
        for leaf in self.leaves() {
            let need = (leaf.word.load(Relaxed) & NEED) >> NEED_SHIFT;
            for (bit, cpu) in leaf.cpus.iter().enumerate() {
                if need >> bit & 1 != 0 {
                    f(cpu.load(Relaxed) as usize);
                }
            }
        }
    }

    /// Nothing is under way and nobody is waited for. For tests, while no CPU is inside RCU.
    pub(super) fn check_quiet(&self) {
        let gp = self.gp.load(Acquire);
        assert!(!seq::in_progress(gp), "INV-RCU-3");
        assert!(
            seq::reached(gp, self.requested.load(Relaxed)),
            "a request was forgotten"
        );
        for leaf in self.leaves() {
            assert!(leaf.word.load(Relaxed) & NEED == 0, "INV-RCU-2");
            assert!(
                leaf.seq.load(Relaxed) == gp,
                "INV-RCU-4: a leaf was not told"
            );
        }
    }

    /// Tells the leaves that the grace period has ended (or one after it has started).
    fn publish(&self, ended: u64) {
        for leaf in self.leaves() {
            advance(&leaf.seq, ended);
            let word = leaf.word.load(Relaxed);
            if word & SLEEP != 0 {
                kick_sleepers(leaf, leaf.word.fetch_and(!SLEEP, AcqRel));
            }
        }
    }
}

/// INV-RCU-4: a late publisher must not hide a grace period that has started since.
fn advance(leaf_seq: &AtomicU64, to: u64) {
    let mut now = leaf_seq.load(Relaxed);
    while !seq::reached(now, to) {
        match leaf_seq.compare_exchange(now, to, Release, Relaxed) {
            Ok(_) => break,
            Err(newer) => now = newer,
        }
    }
}

fn kick_sleepers(leaf: &Leaf, word: u64) {
    let mut bits = (word & SLEEP) >> SLEEP_SHIFT;
    while bits != 0 {
        arch::kick_cpu(leaf.cpus[bits.trailing_zeros() as usize].load(Relaxed) as usize);
        bits &= bits - 1;
    }
}
