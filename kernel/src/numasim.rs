//! Simulated time (`mode=numasim`): when it begins and ends, and what the kernel does differently in it.
//!
//! The simulation begins with the first process, when all other CPUs are idle, so that everything from then on happens
//! in an order that the host has no part in. Nothing of the host's time may enter: the clock is this CPU's simulated
//! one, the time of day a constant, and the timer never fires. So there is no tick and no preemption; sleepers wake
//! when an idle CPU looks at its clock.

use crate::arch::smp;
use crate::params::{self, ModeWord};
use crate::sched::current;
use ksync::CpuMask;
use ksync::arch::sim;

/// The rate of simulated clocks, in kHz: what a nanosecond is to programs. Figures are in cycles.
pub const CLOCK_KHZ: u64 = 2_500_000;

/// Whether the boot line says so.
#[inline]
pub fn is_on() -> bool {
    params::get().mode == ModeWord::Numasim
}

/// Begins the simulation, on the boot CPU. First process, with all other CPUs idle. May sleep.
pub fn begin() {
    if !is_on() {
        return;
    }
    for cpu in 0..smp::nr_online() {
        sim::name_cpu(cpu, smp::apic_id_of(cpu));
    }
    // Where the first process has come to run is the host's doing.
    let (here, everywhere) = (CpuMask::new(), CpuMask::new());
    here.set(0);
    (0..smp::nr_online()).for_each(|cpu| everywhere.set(cpu));
    crate::syscall::set_affinity(&current(), &here);
    sim::begin();
    if !sim::is_active() {
        println!("mode=numasim: no simulator is there (cargo xtask qemu --numasim)");
        crate::arch::exit_machine(0x23);
    }
    crate::syscall::set_affinity(&current(), &everywhere);
}
