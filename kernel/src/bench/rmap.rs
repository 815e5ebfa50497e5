//! `bench=rmap`: a mapping put into a file's set and taken out, nothing else; `mappings=` others are in it.
//!
//! The others begin where the pieces of a library begin, so that most have many equals. One operation is both halves;
//! the record tells them apart (`insert`, `remove`: cycles, means).

use super::Benchmark;
use crate::errno::Errno;
use crate::params;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use kbench::Overhead;
use kbench::record::{Record, Setting};
use ksync::arch::get_cycles;
use rmap::{SpaceOwner, FileRmap, MapNode};

/// First and last pages of a library's mappings.
const PIECES: [(u64, u64); 5] = [(0, 39), (40, 400), (401, 490), (491, 494), (495, 496)];

/// The benchmark: the file, and time spent on either half.
pub struct Rmap {
    file: SpaceOwner,
    workers: usize,
    insert: AtomicU64,
    remove: AtomicU64,
    ops: AtomicU64,
}

/// A worker's share of the other mappings, the one it moves, and its times. What is linked may not move, hence the boxes.
#[allow(clippy::vec_box)]
pub struct Worker {
    others: Vec<Box<MapNode>>,
    mine: Vec<Box<MapNode>>,
    at: usize,
    overhead: Overhead,
    insert: u64,
    remove: u64,
    ops: u64,
}

fn node(i: usize) -> Box<MapNode> {
    let (first, last) = PIECES[i % PIECES.len()];
    Box::new(MapNode::new(first, last))
}

impl Benchmark for Rmap {
    type Worker = Worker;
    const OPS: u64 = 2_000;

    fn new(workers: usize) -> Self {
        let zero = || AtomicU64::new(0);
        Rmap { file: super::mapped::new_file(497), workers, insert: zero(), remove: zero(), ops: zero() }
    }

    fn worker(&self, index: usize) -> Worker {
        let all = params::get().mappings.unwrap_or(0) as usize;
        let others: Vec<_> = (0..(all + self.workers - 1 - index) / self.workers).map(node).collect();
        for other in &others {
            // SAFETY: unlinked; `finish` removes it before the box goes.
            unsafe { self.file.i_mmap().insert(NonNull::from(&**other)) };
        }
        let mine = (0..PIECES.len()).map(node).collect();
        let overhead = Overhead::of(get_cycles);
        Worker { others, mine, at: 0, overhead, insert: 0, remove: 0, ops: 0 }
    }

    fn operation(&self, worker: &mut Worker) -> Result<(), Errno> {
        worker.at = (worker.at + 1) % PIECES.len();
        let node = NonNull::from(&*worker.mine[worker.at]);
        let start = get_cycles();
        // SAFETY: unlinked, and in its box until it is removed below.
        unsafe { self.file.i_mmap().insert(node) };
        let middle = get_cycles();
        // SAFETY: linked just now.
        unsafe { self.file.i_mmap().remove(&[node]) };
        let end = get_cycles();
        worker.insert += worker.overhead.between(start, middle);
        worker.remove += worker.overhead.between(middle, end);
        worker.ops += 1;
        Ok(())
    }

    fn finish(&self, worker: Worker) {
        for other in &worker.others {
            // SAFETY: linked by `worker`.
            unsafe { self.file.i_mmap().remove(&[NonNull::from(&**other)]) };
        }
        self.insert.fetch_add(worker.insert, Relaxed);
        self.remove.fetch_add(worker.remove, Relaxed);
        self.ops.fetch_add(worker.ops, Relaxed);
    }

    fn verify(&self) -> Result<(), alloc::string::String> {
        match self.file.i_mmap().check_invariants() {
            0 => Ok(()),
            left => Err(alloc::format!("{left} mappings are left")),
        }
    }

    fn describe(&self, record: &mut Record) {
        let ops = self.ops.load(Relaxed).max(1);
        record.params.push(Setting::new("mappings", params::get().mappings.unwrap_or(0)));
        record.params.push(Setting::new("insert", self.insert.load(Relaxed) / ops));
        record.params.push(Setting::new("remove", self.remove.load(Relaxed) / ops));
    }
}
