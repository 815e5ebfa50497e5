//! Where measuring begins and ends, for whoever counts the time.
//!
//! Every worker calls [`ramp`] when all of them are past the gate, [`begin`] when it has warmed up and [`end`] after its
//! last operation; nothing but operations and readings of the clock happens between the latter two. In a simulation,
//! which gives each CPU a clock of its own, all workers leave each of the three at the same time.

use ksync::PreemptGuard;
use ksync::arch::sim::{self, Phase};

fn meet(workers: usize, phase: Phase) {
    if crate::numasim::is_on() {
        let _stay = PreemptGuard::new();
        sim::meet(workers, phase);
    }
}

/// All workers are past the gate: warm-up that a simulation takes part in, so that its caches fill. False: there is none.
pub fn ramp(workers: usize) -> bool {
    meet(workers, Phase::Ramp);
    crate::numasim::is_on()
}

/// From here on time counts.
pub fn begin(workers: usize) {
    meet(workers, Phase::Window);
}

/// This worker's last operation is over. The first one tells the simulator what it wants to know, while the others wait.
pub fn end(workers: usize, worker: usize) {
    meet(workers, Phase::Setup);
    if worker == 0 && crate::numasim::is_on() {
        crate::numasim::answer();
    }
    meet(workers, Phase::Setup);
}
