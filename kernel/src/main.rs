//! The kernel's image: hardware and composition. What can live without ring 0 is in `crates/`.
//!
//! Order of boot, each step needing the ones before:
//!
//! 1. console, early descriptor tables, boot words
//! 2. ACPI tables, topology
//! 3. memory: vmemmap, page allocator, percpu windows, slab
//! 4. static keys patched into the text; final descriptor tables, APIC, clock
//! 5. scheduler, RCU, other CPUs
//! 6. files; process 1, which runs a benchmark or becomes init
#![no_std]
#![no_main]

extern crate alloc;

#[macro_use]
mod console;
mod acpi_tables;
mod arch;
mod bench;
mod boot_mem;
mod debug;
mod errno;
mod files;
mod itimer;
mod kstats;
mod ktest;
mod machine;
mod mem;
mod numasim;
mod panic;
mod params;
mod phases;
mod pidfd;
mod power;
mod process;
mod procfs;
mod random;
mod report;
mod rseq;
mod sched;
mod signal;
mod start;
mod syscall;
mod timer;
mod tty;
mod watchdog;

use bootloader_api::config::Mapping;
use bootloader_api::{BootInfo, BootloaderConfig, entry_point};

/// What the boot stage is asked for.
pub static CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.mappings.physical_memory = Some(Mapping::FixedAddress(0xffff_8880_0000_0000));
    config.kernel_stack_size = 256 * 1024;
    config
};
entry_point!(kernel_main, config = &CONFIG);

fn kernel_main(boot: &'static mut BootInfo) -> ! {
    start::run(boot)
}
