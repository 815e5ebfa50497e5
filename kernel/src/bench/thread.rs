//! `bench=thread`: a process starts a thread that exits at once, and waits until it has left.

use super::{Benchmark, tiny::Tiny};
use crate::errno::Errno;

/// The benchmark.
pub struct Thread;

impl Benchmark for Thread {
    type Worker = Tiny;

    fn new(_workers: usize) -> Self {
        Thread
    }
    fn worker(&self, _index: usize) -> Tiny {
        Tiny::new()
    }
    fn operation(&self, worker: &mut Tiny) -> Result<(), Errno> {
        worker.thread()
    }
}
