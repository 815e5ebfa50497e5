//! `bench=forkexec`: a process forks a child that execs a program that exits, and waits for it.

use super::{Benchmark, tiny::Tiny};
use crate::errno::Errno;

/// The benchmark.
pub struct ForkExec;

impl Benchmark for ForkExec {
    type Worker = Tiny;

    fn new(_workers: usize) -> Self {
        ForkExec
    }
    fn worker(&self, _index: usize) -> Tiny {
        Tiny::new()
    }
    fn operation(&self, worker: &mut Tiny) -> Result<(), Errno> {
        worker.fork_exec()
    }
}
