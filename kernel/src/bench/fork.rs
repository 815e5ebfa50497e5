//! `bench=fork`: a process forks a child that exits at once, and waits for it.

use super::{Benchmark, tiny::Tiny};
use crate::errno::Errno;

/// The benchmark.
pub struct Fork;

impl Benchmark for Fork {
    type Worker = Tiny;

    fn new(_workers: usize) -> Self {
        Fork
    }
    fn worker(&self, _index: usize) -> Tiny {
        Tiny::new()
    }
    fn operation(&self, worker: &mut Tiny) -> Result<(), Errno> {
        worker.fork()
    }
}
