//! `bench=pressure`: forks and execs while there is hardly any memory and the slab gives back what it keeps; afterwards
//! nothing may be missing and no counter off.
//!
//! Mechanism. Worker 0 takes all memory but [`FLOOR`] pages. Every worker then takes what is left now and then, keeps it
//! for some operations, and gives it back: so allocations fail everywhere, and the pressure hook and the reclaim thread
//! run all the time. What fails for lack of memory (ENOMEM, a child that exec or a page fault could not serve) is
//! counted; whoever fails gives his pages back and goes on. With `mm_check=on` every address space is added up at its
//! end, and a worker compares its own counters with its page tables.

use super::{Benchmark, tiny};
use crate::errno::Errno;
use crate::kstats::Stat;
use crate::sched::{current, current_ref};
use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use kstat::Counters;
use page_alloc::{Gfp, PageRef};
use task::wait::{self, Which, options};

/// Pages that worker 0 leaves.
const FLOOR: usize = 1_500;
/// A worker takes what is left every so many operations, and gives it back after so many.
const SQUEEZE: u64 = 16;
const HOLD: u64 = 5;
/// It compares its counters with its page tables every so many.
const COMPARE: u64 = 64;

/// The benchmark.
pub struct Pressure {
    refused: AtomicU64,
    children_lost: AtomicU64,
}

/// Pages held, chained through their first words.
struct Hog {
    head: Option<PageRef>,
}

impl Hog {
    /// Takes pages while `more` says so and there are any.
    fn take(&mut self, more: impl Fn() -> bool) {
        while more() {
            let Ok(page) = page_alloc::alloc_page(Gfp::empty()) else {
                return;
            };
            // SAFETY: the page is ours, and an Option<PageRef> fits at its start.
            unsafe { page.virt().cast::<Option<PageRef>>().write(self.head) };
            self.head = Some(page);
        }
    }

    fn release(&mut self) {
        while let Some(page) = self.head {
            // SAFETY: written by `take`.
            self.head = unsafe { page.virt().cast::<Option<PageRef>>().read() };
            page_alloc::free_pages(page);
        }
    }
}

/// A worker, and what it keeps from the others.
pub struct Worker {
    tiny: tiny::Tiny,
    index: usize,
    nr: u64,
    most: Hog,
    rest: Hog,
}

fn nr_free() -> usize {
    (0..ksync::arch::nr_node_ids())
        .map(|node| page_alloc::nr_free(node).free)
        .sum()
}

impl Pressure {
    /// Waits for a child; one that ended badly was short of memory.
    fn reap(&self) {
        let mut left = 8;
        while let Ok(Some(reaped)) = wait::wait(&current(), &Which::Any, options::WALL) {
            if reaped.status != 0 {
                self.children_lost.fetch_add(1, Relaxed);
            }
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
}

impl Benchmark for Pressure {
    type Worker = Worker;
    const OPS: u64 = 50_000;
    const LEAK_CHECK: bool = true;

    fn new(_workers: usize) -> Self {
        Pressure {
            refused: AtomicU64::new(0),
            children_lost: AtomicU64::new(0),
        }
    }

    fn worker(&self, index: usize) -> Worker {
        Worker {
            tiny: tiny::Tiny::new(),
            index,
            nr: 0,
            most: Hog { head: None },
            rest: Hog { head: None },
        }
    }

    /// A fork, or a fork and an exec, or both in turns.
    fn operation(&self, w: &mut Worker) -> Result<(), Errno> {
        w.nr += 1;
        if w.nr == 1 && w.index == 0 {
            w.most.take(|| nr_free() > FLOOR);
        }
        match (w.nr + w.index as u64) % SQUEEZE {
            0 => w.rest.take(|| true),
            HOLD => w.rest.release(),
            _ => {}
        }
        let result = match w.nr % 4 {
            0 => w.tiny.spawn_fork(),
            1 => w.tiny.spawn_exec().and_then(|()| w.tiny.spawn_exec()),
            2 => w.tiny.spawn_exec().and_then(|()| w.tiny.exec()),
            _ => w.tiny.spawn_threaded(),
        };
        self.reap();
        if w.nr.is_multiple_of(COMPARE) {
            current_ref()
                .mm_user()
                .expect("a program")
                .check_invariants();
        }
        match result {
            Err(Errno::ENOMEM | Errno::EFAULT) => {
                self.refused.fetch_add(1, Relaxed);
                w.rest.release();
                Ok(())
            }
            other => other,
        }
    }

    fn finish(&self, mut worker: Worker) {
        worker.most.release();
        worker.rest.release();
    }

    /// Says what happened; nobody may have got off without a refusal, or the test tests nothing.
    fn verify(&self) -> Result<(), String> {
        let (refused, lost) = (self.refused.load(Relaxed), self.children_lost.load(Relaxed));
        let (calls, pages) = slab::pressure_counts();
        let clean = rmap::reclaim::nr_reclaimed();
        println!(
            "pressure: {} forks, {} execs, {refused} operations refused, {lost} children lost, {pages} pages reclaimed by {calls} calls, {clean} clean pages of files given back",
            Stat::nr_forks.sum(),
            Stat::nr_execs.sum()
        );
        if refused + lost == 0 || calls == 0 {
            return Err(String::from("there was memory enough"));
        }
        Ok(())
    }
}
