//! `bench=mm`: what making and ending address spaces costs, by the design (`mm=`, `mm_lists=`) and by the number of
//! possible CPUs (`possible=N`, which need not be there).
//!
//! | `mm_op` | operation |
//! |---|---|
//! | `fork` | fork, exit, wait: one address space |
//! | `exec` | exec in place: one new, one old |
//! | `forkexec` | fork, exec, exit, wait: two |
//! | `threads` | fork; the child makes a second thread, joins it, exits; wait |

use super::Benchmark;
use super::tiny::Tiny;
use crate::errno::Errno;
use crate::params;
use alloc::format;
use kbench::record::{Record, Setting};

kparam::choices! {
    /// The operation of `bench=mm`.
    pub enum MmOp {
        /// Fork, exit, wait.
        Fork = "fork",
        /// Exec in place.
        Exec = "exec",
        /// Fork, exec, exit, wait.
        ForkExec = "forkexec",
        /// Fork, a second thread in the child, exit, wait.
        Threads = "threads",
    }
}

/// The benchmark.
pub struct MmBench(MmOp);

impl Benchmark for MmBench {
    type Worker = Tiny;
    const LEAK_CHECK: bool = true;

    fn new(_workers: usize) -> Self {
        MmBench(params::get().mm_op)
    }

    fn worker(&self, _index: usize) -> Tiny {
        Tiny::new()
    }

    fn operation(&self, worker: &mut Tiny) -> Result<(), Errno> {
        match self.0 {
            MmOp::Fork => worker.fork(),
            MmOp::Exec => worker.exec(),
            MmOp::ForkExec => worker.fork_exec(),
            MmOp::Threads => worker.fork_thread(),
        }
    }

    fn describe(&self, record: &mut Record) {
        record.params.push(Setting::new("op", self.0.name()));
        record.params.push(Setting::new("possible", format!("{}", ksync::arch::nr_cpu_ids())));
    }
}
