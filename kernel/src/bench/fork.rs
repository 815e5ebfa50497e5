//! `bench=fork`: a process forks a child that exits at once, and waits for it.

use super::{Benchmark, tiny::Tiny};
use crate::errno::Errno;
use crate::params::{self, PlantWord};
use core::hint::black_box;

/// Turns of an idle loop that `plant=slow-fork` adds: about 5 % of a fork on one CPU.
const PLANTED: u32 = 135;

/// The benchmark.
pub struct Fork {
    planted: bool,
}

impl Benchmark for Fork {
    type Worker = Tiny;

    fn new(_workers: usize) -> Self {
        let planted = params::get().plant == Some(PlantWord::SlowFork);
        Fork { planted }
    }
    fn worker(&self, _index: usize) -> Tiny {
        Tiny::new()
    }
    fn operation(&self, worker: &mut Tiny) -> Result<(), Errno> {
        if self.planted {
            for turn in 0..PLANTED {
                black_box(turn);
            }
        }
        worker.fork()
    }
}
