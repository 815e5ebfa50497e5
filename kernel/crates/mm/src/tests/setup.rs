//! Every design against plain numbers, and explored interleavings with planted bugs.

use super::*;
use crate::setup::{NR_COUNTERS, Shell, switch};
use crate::{
    MmKind, MmLists, RssKind, current_cid, for_each_pgd, for_each_rss, set_kind, set_lists,
};
use core::ptr::NonNull;
use ksync::arch::explore::{Body, explore, find_failure};
use ksync::arch::{self, host::run_on};
use proptest::prelude::*;
use std::boxed::Box;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

static PLANTED: Mutex<&'static str> = Mutex::new("");

pub(crate) fn is_planted(bug: &str) -> bool {
    *PLANTED.lock().unwrap_or_else(PoisonError::into_inner) == bug
}

pub(crate) fn with_bug<R>(bug: &'static str, f: impl FnOnce() -> R) -> R {
    *PLANTED.lock().unwrap() = bug;
    let r = f();
    *PLANTED.lock().unwrap() = "";
    r
}

/// The machine with another design; as it was at the end.
struct With(Machine);

impl With {
    fn new(kind: MmKind, lists: MmLists) -> With {
        let machine = Machine::new();
        choose(kind, lists);
        With(machine)
    }
}

impl Drop for With {
    fn drop(&mut self) {
        choose(MmKind::Best, MmLists::Cached);
    }
}

fn choose(kind: MmKind, lists: MmLists) {
    census(); // takes cached shells apart
    set_kind(kind);
    set_lists(lists);
}

fn everything() -> impl Iterator<Item = (MmKind, MmLists)> {
    let lists = [MmLists::Global, MmLists::PerCpu, MmLists::Cached];
    MmKind::ALL
        .into_iter()
        .flat_map(move |kind| lists.map(|l| (kind, l)))
}

const CPUS: usize = 8;

#[derive(Clone, Debug)]
enum Op {
    New,
    /// A CPU runs address space `mm`, or none.
    Run {
        cpu: usize,
        mm: Option<usize>,
    },
    /// Whoever is on the CPU counts pages of any address space.
    Add {
        cpu: usize,
        mm: usize,
        kind: usize,
        n: isize,
    },
    Share {
        mm: usize,
    },
    End {
        mm: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let (cpu, mm) = (0..CPUS, any::<usize>());
    prop_oneof![
        2 => Just(Op::New),
        6 => (cpu.clone(), prop::option::weighted(0.8, mm)).prop_map(|(cpu, mm)| Op::Run { cpu, mm }),
        12 => (cpu, any::<usize>(), 0..3usize, prop_oneof![-3..4isize, -200..200isize])
            .prop_map(|(cpu, mm, kind, n)| Op::Add { cpu, mm, kind, n }),
        2 => any::<usize>().prop_map(|mm| Op::Share { mm }),
        1 => any::<usize>().prop_map(|mm| Op::End { mm }),
    ]
}

struct One {
    shell: NonNull<Shell>,
    counts: [isize; NR_COUNTERS],
    shared: bool,
}

impl One {
    fn shell(&self) -> &Shell {
        // SAFETY: taken by the test, given back by `end`.
        unsafe { self.shell.as_ref() }
    }
}

#[derive(Default)]
struct World {
    /// Roots and pages that a planted bug left on the lists before.
    strange: (BTreeSet<usize>, isize),
    all: Vec<One>,
    runs: [Option<NonNull<Shell>>; CPUS],
}

/// Roots of all address spaces, and their pages.
fn listed() -> (BTreeSet<usize>, isize) {
    let (mut roots, mut total) = (BTreeSet::new(), 0);
    for_each_pgd(|pgd| assert!(roots.insert(pgd)));
    for_each_rss(|rss| total += rss.iter().sum::<isize>());
    (roots, total)
}

impl World {
    fn run(&mut self, cpu: usize, to: Option<NonNull<Shell>>) {
        // SAFETY: shells in the world are live.
        let get = |s: Option<NonNull<Shell>>| s.map(|s| unsafe { &*s.as_ptr() });
        let from = core::mem::replace(&mut self.runs[cpu], to);
        if from != to {
            run_on(cpu, || switch(get(from), get(to)));
        }
    }

    fn end(&mut self, mm: usize) {
        let one = self.all.swap_remove(mm);
        for cpu in 0..CPUS {
            if self.runs[cpu] == Some(one.shell) {
                self.run(cpu, None);
            }
        }
        for (kind, &n) in one.counts.iter().enumerate() {
            run_on(kind % CPUS, || one.shell().add(kind, -n));
        }
        // SAFETY: nobody runs it, and its sums are zero.
        run_on(3, || unsafe { Shell::give(one.shell) });
    }

    fn apply(&mut self, op: Op) {
        let nr = self.all.len().max(1);
        match op {
            Op::New if self.all.len() < 6 => {
                let shell = run_on(self.all.len(), || Shell::take().unwrap());
                self.all.push(One {
                    shell,
                    counts: [0; NR_COUNTERS],
                    shared: false,
                });
            }
            Op::Run { cpu, mm } => {
                let to = mm.and_then(|mm| self.all.get(mm % nr));
                // A program with one thread runs on one CPU at a time.
                if let Some(one) = to
                    && !one.shared
                    && self
                        .runs
                        .iter()
                        .enumerate()
                        .any(|(c, &s)| c != cpu && s == Some(one.shell))
                {
                    return;
                }
                self.run(cpu, to.map(|one| one.shell));
            }
            Op::Add { cpu, mm, kind, n } => {
                if let Some(one) = self.all.get_mut(mm % nr) {
                    run_on(cpu, || one.shell().add(kind, n));
                    one.counts[kind] += n;
                }
            }
            Op::Share { mm } => {
                if let Some(one) = self.all.get_mut(mm % nr) {
                    one.shell().share().unwrap();
                    one.shared = true;
                }
            }
            Op::End { mm } if !self.all.is_empty() => self.end(mm % nr),
            _ => {}
        }
    }

    fn check(&self) {
        for one in &self.all {
            let sums: [isize; NR_COUNTERS] = core::array::from_fn(|kind| one.shell().sum(kind));
            assert_eq!(sums, one.counts);
        }
        let mut ids = BTreeSet::new();
        for (cpu, shell) in self.runs.iter().enumerate() {
            let cid = run_on(cpu, current_cid);
            match shell {
                Some(shell) => assert!(ids.insert((*shell, cid)), "two threads have id {cid}"),
                None => assert_eq!(cid, 0),
            }
        }
        // Ids are low: as many as run at once would do, up to those that a CPU remembers.
        assert!(ids.iter().all(|&(_, cid)| (cid as usize) < CPUS));
        let (mut roots, total) = listed();
        roots.retain(|root| !self.strange.0.contains(root));
        assert_eq!(
            roots,
            self.all.iter().map(|one| one.shell().pgd.phys()).collect()
        );
        assert_eq!(
            total - self.strange.1,
            self.all.iter().flat_map(|one| one.counts).sum::<isize>()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn every_design_counts_like_a_number(
        which in 0..24usize, ops in prop::collection::vec(op(), 1..120)
    ) {
        let (kind, lists) = everything().nth(which).unwrap();
        let _with = With::new(kind, lists);
        let mut world = World { strange: listed(), ..World::default() };
        for op in ops {
            world.apply(op);
            world.check();
        }
        (0..CPUS).for_each(|cpu| world.run(cpu, None));
        while !world.all.is_empty() {
            world.end(0);
        }
        world.check();
    }
}

#[test]
fn every_design_forks_faults_and_ends() {
    for (kind, lists) in everything() {
        let _with = With::new(kind, lists);
        for _ in 0..3 {
            let mm = mm_with(0x40_0000, 8);
            run_on(1, || switch(None, Some(mm.rss().shell())));
            run_on(1, || {
                (0..5).for_each(|i| write(&mm, 0x40_0000 + i * PAGE, 1).unwrap())
            });
            let child = run_on(1, || mm.dup().unwrap());
            let thread = run_on(1, || mm.share().unwrap());
            run_on(2, || switch(None, Some(thread.rss().shell())));
            run_on(2, || {
                (3..8).for_each(|i| write(&thread, 0x40_0000 + i * PAGE, 2).unwrap())
            });
            assert_eq!(
                (mm.check_rss().rss, child.check_rss().rss),
                ([0, 8, 0], [0, 5, 0]),
                "{kind:?}"
            );
            assert_eq!(mm.rss().get(RssKind::Anon), 8);
            run_on(2, || switch(Some(thread.rss().shell()), None));
            drop((thread, child));
            run_on(1, || switch(Some(mm.rss().shell()), None));
        }
    }
}

#[test]
fn every_allocation_of_every_design_may_fail() {
    for (kind, lists) in everything() {
        let _with = With::new(kind, lists);
        let mut failed = 0;
        for nth in 1..50 {
            page_alloc::fault_inject::set_fail_nth(nth);
            let made = Mm::new();
            let reached = page_alloc::fault_inject::fail_nth() == 0;
            page_alloc::fault_inject::set_fail_nth(0);
            if !reached {
                made.unwrap();
                break;
            }
            failed += made.is_err() as usize;
            drop(made);
        }
        assert!(failed >= 2, "{kind:?}");
    }
}

/// A thread of CPU `cpu`.
fn body(cpu: usize, f: impl FnOnce() + Send + 'static) -> Body {
    Box::new(move || {
        arch::host::set_cpu(cpu);
        f();
    })
}

/// Shells of rigs whose last thread has not ended them: what a failed execution leaves.
static LEFT_BEHIND: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// Ends what a failed execution left. A slab that cannot go would keep its other shells constructed, on lists that the
/// next test chooses anew.
fn clean_up() {
    (0..CPUS).for_each(|cpu| run_on(cpu, || switch(None, None)));
    for shell in LEFT_BEHIND.lock().unwrap().drain(..) {
        let at = NonNull::new(shell as *mut Shell).unwrap();
        // SAFETY: taken by a rig and never given back; its threads are gone.
        let shell = unsafe { at.as_ref() };
        for kind in 0..NR_COUNTERS {
            shell.add(kind, -shell.sum(kind));
        }
        shell.forget_ids();
        // SAFETY: as above.
        unsafe { Shell::give(at) };
    }
}

struct Rig {
    shell: NonNull<Shell>,
    left: AtomicUsize,
    added: Mutex<isize>,
}
// SAFETY: a shell is shared between threads as in the kernel.
unsafe impl Send for Rig {}
// SAFETY: as above.
unsafe impl Sync for Rig {}

impl Rig {
    fn new(threads: usize) -> Arc<Rig> {
        let shell = run_on(7, || Shell::take().unwrap());
        LEFT_BEHIND.lock().unwrap().push(shell.as_ptr() as usize);
        Arc::new(Rig {
            shell,
            left: AtomicUsize::new(threads),
            added: Mutex::new(0),
        })
    }

    fn shell(&self) -> &Shell {
        // SAFETY: live until the last thread is done.
        unsafe { self.shell.as_ref() }
    }

    fn run(&self, n: isize) {
        switch(None, Some(self.shell()));
        self.add(n);
        switch(Some(self.shell()), None);
    }

    fn add(&self, n: isize) {
        for _ in 0..n {
            self.shell().add(1, 1);
        }
        *self.added.lock().unwrap() += n;
    }

    /// The last one compares, takes everything back and ends the address space.
    fn done(&self) {
        if self.left.fetch_sub(1, SeqCst) == 1 {
            let added = *self.added.lock().unwrap();
            let sum = self.shell().sum(1);
            // The shell is left as it should be, whatever the bug did.
            self.shell().add(1, -sum);
            assert_eq!(sum, added, "pages were lost or found");
            let me = self.shell.as_ptr() as usize;
            LEFT_BEHIND.lock().unwrap().retain(|&shell| shell != me);
            // SAFETY: nobody else is left.
            unsafe { Shell::give(self.shell) };
        }
    }
}

/// Two CPUs use a copy for the first time while a third sums up.
fn first_use_and_remote_read() -> Vec<Body> {
    let rig = Rig::new(3);
    rig.shell().share().unwrap();
    let (a, b, c) = (rig.clone(), rig.clone(), rig);
    std::vec![
        body(0, move || {
            a.run(3);
            a.done();
        }),
        body(1, move || {
            b.run(2);
            b.done();
        }),
        body(2, move || {
            for _ in 0..4 {
                let seen = c.shell().sum(1);
                assert!((0..=5).contains(&seen), "a reader saw {seen} pages");
                arch::interleave();
            }
            c.done();
        }),
    ]
}

/// The one thread counts and makes a second one; truncation takes pages away from outside.
fn conversion_and_remote_adds() -> Vec<Body> {
    let rig = Rig::new(2);
    let (a, b) = (rig.clone(), rig);
    std::vec![
        body(0, move || {
            switch(None, Some(a.shell()));
            a.add(2);
            a.shell().share().unwrap();
            a.add(2);
            switch(Some(a.shell()), None);
            a.done();
        }),
        body(1, move || {
            for _ in 0..3 {
                b.add(1);
                arch::interleave();
            }
            b.done();
        }),
    ]
}

/// Two threads of one program, and somebody outside.
fn two_threads_and_a_stranger() -> Vec<Body> {
    let rig = Rig::new(3);
    rig.shell().share().unwrap();
    let (a, b, c) = (rig.clone(), rig.clone(), rig);
    std::vec![
        body(0, move || {
            a.run(3);
            a.done();
        }),
        body(1, move || {
            b.run(3);
            b.run(2);
            b.done();
        }),
        body(2, move || {
            c.add(3);
            c.done();
        }),
    ]
}

#[test]
fn explored_orders_of_every_design() {
    for kind in MmKind::ALL {
        let _with = With::new(kind, MmLists::Cached);
        explore(0..24, first_use_and_remote_read);
        explore(0..24, conversion_and_remote_adds);
        explore(0..24, two_threads_and_a_stranger);
    }
}

#[test]
fn planted_bugs_are_found() {
    for (kind, bug, threads) in [
        (
            MmKind::Lazy,
            "present before it is written",
            first_use_and_remote_read as fn() -> Vec<Body>,
        ),
        (
            MmKind::Single,
            "conversion moves the counts",
            conversion_and_remote_adds,
        ),
        (
            MmKind::Single,
            "everybody is the one thread",
            conversion_and_remote_adds,
        ),
        (
            MmKind::Best,
            "everybody has the same id",
            two_threads_and_a_stranger,
        ),
    ] {
        let mut with = With::new(kind, MmLists::Cached);
        let found = with_bug(bug, || find_failure(0..400, threads));
        clean_up();
        assert!(found.is_some(), "{bug}");
        // What else the failed execution held is lost: the next census counts from there.
        with.0.before = None;
    }
}
