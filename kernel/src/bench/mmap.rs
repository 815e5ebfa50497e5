//! `bench=mmap`: a page of a file mapped and unmapped, while `mappings=` others of the same file exist.
//!
//! With `mmap_of=shared` all workers map one file: they meet in its set of mappings. With `own` each has a file of its
//! own, and they should not meet at all. With `mmap_touch=on` the page is written to, which makes a private copy. With
//! `mmap_op=fork` nothing is mapped, but the process with its share of the other mappings forks a child that exits; with
//! `mmap_op=hold` nothing is done at all, so that walks (`walk=`) meet nobody.

use super::mapped::{self, Walker, Walks};
use super::{Benchmark, tiny::Tiny};
use crate::errno::Errno;
use crate::params::{self, Switch};
use crate::syscall::memory::current_mm;
use alloc::vec::Vec;
use kbench::record::{Record, Setting};
use ksync::PAGE_SIZE;
use mm::{FaultFlags, Prot};
use rmap::{AddressSpace, SpaceOwner};
use slab::KArc;

kparam::choices! {
    /// Whose file `bench=mmap` maps.
    pub enum MmapOf {
        /// One file for all.
        Shared = "shared",
        /// Each worker its own.
        Own = "own",
    }
}

kparam::choices! {
    /// What `bench=mmap` does.
    pub enum MmapOp {
        /// mmap and munmap of a page.
        Map = "map",
        /// Fork, exit, wait.
        Fork = "fork",
        /// Nothing: the mappings stay as they are, and walks are alone.
        Hold = "hold",
    }
}

/// Pages of a file.
const PAGES: u64 = 16;

/// The benchmark: the files, one or one for each worker.
pub struct Mmap {
    files: Vec<SpaceOwner>,
    workers: usize,
    touch: bool,
    walks: Walks,
}

/// A worker's address space, file and next page.
pub struct Worker {
    tiny: Tiny,
    file: KArc<AddressSpace>,
    at: u64,
    walker: Option<Walker>,
}

impl Benchmark for Mmap {
    type Worker = Worker;
    const OPS: u64 = 2_000;

    fn new(workers: usize) -> Self {
        let files = match params::get().mmap_of {
            MmapOf::Shared => 1,
            MmapOf::Own => workers,
        };
        Mmap {
            files: (0..files).map(|_| mapped::new_file(PAGES)).collect(),
            workers,
            touch: params::get().mmap_touch == Switch::On,
            walks: Walks::new(),
        }
    }

    fn worker(&self, index: usize) -> Worker {
        let tiny = Tiny::new();
        let all = params::get().mappings.unwrap_or(0);
        let file = self.files[index % self.files.len()].clone();
        mapped::map_share(&file, PAGES, all, index, self.workers);
        Worker { tiny, file, at: 0, walker: Walker::new(index) }
    }

    fn operation(&self, worker: &mut Worker) -> Result<(), Errno> {
        Walker::tick(&mut worker.walker, &worker.file, PAGES);
        match params::get().mmap_op {
            MmapOp::Map => {}
            MmapOp::Fork => return worker.tiny.fork(),
            MmapOp::Hold => return Ok(()),
        }
        worker.at = (worker.at + 1) % PAGES;
        let at = mapped::map(&worker.file, worker.at, 1, Prot::READ | Prot::WRITE, 0)?;
        if self.touch {
            current_mm().handle_fault(at, FaultFlags::WRITE).map_err(|_| Errno::EFAULT)?;
        }
        current_mm().munmap(at, PAGE_SIZE)?;
        Ok(())
    }

    fn finish(&self, worker: Worker) {
        self.walks.add(worker.walker);
    }

    fn describe(&self, record: &mut Record) {
        let params = params::get();
        record.params.push(Setting::new("op", params.mmap_op.name()));
        record.params.push(Setting::new("of", params.mmap_of.name()));
        record.params.push(Setting::new("touch", params.mmap_touch.name()));
        record.params.push(Setting::new("mappings", params.mappings.unwrap_or(0)));
        self.walks.describe(record);
    }
}
