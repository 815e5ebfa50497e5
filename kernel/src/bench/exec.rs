//! `bench=exec`: a process replaces its program, over and over.

use super::{Benchmark, tiny::Tiny};
use crate::errno::Errno;

/// The benchmark.
pub struct Exec;

impl Benchmark for Exec {
    type Worker = Tiny;

    fn new(_workers: usize) -> Self {
        Exec
    }
    fn worker(&self, _index: usize) -> Tiny {
        Tiny::new()
    }
    fn operation(&self, worker: &mut Tiny) -> Result<(), Errno> {
        worker.exec()
    }
}
