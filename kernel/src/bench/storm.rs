//! `bench=storm`: all CPUs fork, exec, exit and wait in a random mix, and with `depth=` make and end
//! towers of pid namespaces; afterwards nothing may be missing.

use super::{Benchmark, tiny};
use crate::errno::Errno;

/// The benchmark.
pub struct Storm {
    /// Namespaces below each other, at most; 0: none are made.
    depth: usize,
}

/// A worker and the state of its random numbers (xorshift).
pub struct Worker {
    tiny: tiny::Tiny,
    random: u64,
}

impl Benchmark for Storm {
    type Worker = Worker;
    const OPS: u64 = 10_000;
    const LEAK_CHECK: bool = true;

    fn new(_workers: usize) -> Self {
        Storm {
            depth: crate::params::get().depth as usize,
        }
    }
    fn worker(&self, index: usize) -> Worker {
        Worker { tiny: tiny::Tiny::new(), random: (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// One to four children that exit or exec, a burst that is reaped late, a thread, an exec of one's own, a tower of namespaces.
    fn operation(&self, worker: &mut Worker) -> Result<(), Errno> {
        let Worker { tiny, random } = worker;
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        match *random % 16 {
            0..6 => tiny.fork(),
            6..10 => tiny.fork_exec(),
            10..13 => tiny.thread(),
            13 => tiny.exec(),
            14 if self.depth > 0 => tiny.nest(*random as usize / 16 % self.depth),
            _ => {
                let children = *random / 16 % 4 + 1;
                for i in 0..children {
                    if i % 2 == 0 { tiny.spawn_fork()? } else { tiny.spawn_exec()? }
                }
                (0..children).try_for_each(|_| tiny::reap_one())
            }
        }
    }
}
