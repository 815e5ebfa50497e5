//! Cycles by named phase: where an operation's time went.
//!
//! Problem: "fork costs 90,000 cycles" says nothing about which part to improve.
//!
//! Mechanism: [`Phase`] is a closed list with small indices. [`Phases`] is an array of cycle sums,
//! one per worker or CPU, added up after the timed region. A [`Timer`] is the stopwatch: at any
//! moment exactly one phase runs, and `switch` returns the one it interrupted, so that nested
//! phases count once (INV-KBENCH-4):
//!
//! ```text
//! start(Fork)      switch(PgtableCopy)      switch(Fork)     stop
//!    |---- Fork ------|---- PgtableCopy -------|---- Fork ----|
//! ```

macro_rules! phases {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// A part of clone, fork, exec, exit or wait. The names are those of the records.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Phase { $($(#[doc = $doc])+ $variant,)+ }

        impl Phase {
            /// Every phase, in the order of the tables.
            pub const ALL: &[Phase] = &[$(Phase::$variant,)+];
            /// The word used in records and tables.
            pub const fn name(self) -> &'static str {
                match self { $(Phase::$variant => $name,)+ }
            }
            /// One line on what belongs to the phase.
            pub const fn doc(self) -> &'static str {
                match self { $(Phase::$variant => concat!($($doc),+),)+ }
            }
        }
    };
}

phases! {
    /// Everything not named below: system call entry and exit, checks, user code.
    Other = "other",
    /// The task structure and its kernel stack: memory and initialisation.
    TaskSetup = "task_setup",
    /// A pid with its numbers in every namespace level.
    AllocPid = "alloc_pid",
    /// A new mm: structure, top page table, counters, copies of the VMAs.
    MmSetup = "mm_setup",
    /// Copying page-table entries and write-protecting the parent's.
    PgtableCopy = "pgtable_copy",
    /// Linking to and unlinking from the mapped files' interval trees.
    IMmap = "i_mmap",
    /// Descriptor table, root and working directory: copy and release.
    Files = "files",
    /// Signal handlers, masks, delivery.
    Signal = "signal",
    /// Placement, enqueueing, dequeueing, the switch itself, wake-ups.
    RunQueue = "run_queue",
    /// Page faults, copy-on-write breaks included.
    Fault = "fault",
    /// Reading an executable's headers, mapping its segments, building its stack.
    ExecLoad = "exec_load",
    /// Tearing an address space down: page tables, pages, VMAs, the mm itself.
    ExitMm = "exit_mm",
    /// Telling parent, children and tracers; reparenting.
    ExitNotify = "exit_notify",
    /// Finding and reaping a child.
    Wait = "wait",
    /// Releasing the pid's numbers.
    FreePid = "free_pid",
    /// Freeing the task structure and its kernel stack.
    TaskFree = "task_free",
}

/// Number of phases.
pub const NR_PHASES: usize = Phase::ALL.len();
const _: () = assert!(NR_PHASES < 64 && Phase::ALL[NR_PHASES - 1] as usize == NR_PHASES - 1);

/// Cycle sums by phase. Plain memory of one owner; merge after the timed region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phases {
    cycles: [u64; NR_PHASES],
}

impl Phases {
    /// All zero.
    pub const fn new() -> Phases {
        Phases {
            cycles: [0; NR_PHASES],
        }
    }

    /// Adds `cycles` to `phase`.
    #[inline]
    pub const fn add(&mut self, phase: Phase, cycles: u64) {
        let slot = &mut self.cycles[phase as usize];
        *slot = slot.wrapping_add(cycles);
    }

    /// Cycles attributed to `phase` so far.
    pub const fn get(&self, phase: Phase) -> u64 {
        self.cycles[phase as usize]
    }

    /// Adds another worker's sums.
    pub fn merge(&mut self, other: &Phases) {
        for (mine, theirs) in self.cycles.iter_mut().zip(&other.cycles) {
            *mine = mine.wrapping_add(*theirs);
        }
    }

    /// Sum over all phases (cycles).
    pub fn total(&self) -> u64 {
        self.cycles.iter().fold(0, |sum, c| sum.wrapping_add(*c))
    }

    /// The phases that took any time, in table order.
    pub fn iter(&self) -> impl Iterator<Item = (Phase, u64)> + '_ {
        Phase::ALL
            .iter()
            .map(|p| (*p, self.get(*p)))
            .filter(|(_, cycles)| *cycles != 0)
    }
}

/// A stopwatch that is always in exactly one phase (INV-KBENCH-4).
#[derive(Clone, Copy, Debug)]
pub struct Timer {
    current: Phase,
    since: u64,
}

impl Timer {
    /// Starts in `phase` at clock reading `now`.
    #[inline]
    pub const fn start(phase: Phase, now: u64) -> Timer {
        Timer {
            current: phase,
            since: now,
        }
    }

    /// Ends the current phase at `now`, begins `next`, and returns the phase that ended: hand it to
    /// the `switch` that ends a nested phase.
    #[inline]
    pub const fn switch(&mut self, into: &mut Phases, next: Phase, now: u64) -> Phase {
        let ended = self.current;
        into.add(ended, now.saturating_sub(self.since));
        (self.current, self.since) = (next, now);
        ended
    }

    /// Ends the last phase at `now`.
    #[inline]
    pub const fn stop(mut self, into: &mut Phases, now: u64) {
        self.switch(into, Phase::Other, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    #[test]
    fn names_are_unique_words() {
        let names: BTreeSet<&str> = Phase::ALL.iter().map(|p| p.name()).collect();
        assert_eq!(names.len(), NR_PHASES);
        assert!(
            names
                .iter()
                .all(|n| n.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        );
        assert!(Phase::ALL.iter().all(|p| p.doc().trim().ends_with('.')));
    }

    #[test]
    fn nested_phases_count_once() {
        let mut phases = Phases::new();
        let mut timer = Timer::start(Phase::Other, 100);
        let outer = timer.switch(&mut phases, Phase::MmSetup, 110);
        let inner = timer.switch(&mut phases, Phase::PgtableCopy, 130);
        assert_eq!((outer, inner), (Phase::Other, Phase::MmSetup));
        timer.switch(&mut phases, inner, 200);
        timer.switch(&mut phases, outer, 205);
        timer.stop(&mut phases, 206);
        let got: Vec<_> = phases.iter().collect();
        assert_eq!(
            got,
            [
                (Phase::Other, 11),
                (Phase::MmSetup, 25),
                (Phase::PgtableCopy, 70)
            ]
        );
        assert_eq!(phases.total(), 106);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

        #[test]
        fn every_cycle_is_in_exactly_one_phase(
            steps in prop::collection::vec((0..NR_PHASES, 0u64..1000), 1..100)
        ) {
            let mut naive = [0u64; NR_PHASES];
            let (mut phases, mut now, mut running) = (Phases::new(), 5u64, Phase::Other);
            let mut timer = Timer::start(running, now);
            for (index, length) in steps {
                now += length;
                naive[running as usize] += length;
                running = Phase::ALL[index];
                timer.switch(&mut phases, running, now);
            }
            timer.stop(&mut phases, now + 3);
            naive[running as usize] += 3;
            prop_assert_eq!(phases.total(), now + 3 - 5);
            for phase in Phase::ALL {
                prop_assert_eq!(phases.get(*phase), naive[*phase as usize]);
            }
            let mut twice = phases;
            twice.merge(&phases);
            prop_assert_eq!(twice.total(), 2 * phases.total());
        }
    }
}
