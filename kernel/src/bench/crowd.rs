//! Processes that are there and sleep: for benchmarks of what looks at processes.

use crate::process;
use alloc::vec::Vec;
use ksync::WaitQueue;
use slab::KArc;
use task::Task;

static ASLEEP: WaitQueue = WaitQueue::new();

extern "C" fn sleeper(_: usize) {
    ASLEEP.wait_until(|| false);
}

/// `nr` processes that sleep until the machine is switched off, children of the caller.
pub fn gather(nr: u64) -> Vec<KArc<Task>> {
    let start = |i: u64| process::kernel_thread(&alloc::format!("sleeper/{i}"), 0, sleeper, 0);
    (0..nr)
        .map(|i| start(i).expect("memory for the sleepers"))
        .collect()
}
