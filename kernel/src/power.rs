//! The end of the machine: by reboot(2), by the end of the first process, by a benchmark's verdict.

use crate::arch::{self};
use task::Task;

/// What `xtask` takes for success: QEMU's exit status is 2 * 0x10 + 1.
const EXIT_SUCCESS: u8 = 0x10;
/// The first process, or a benchmark, failed.
const EXIT_FAILURE: u8 = 0x20;

/// Ends the machine; `status` 0 is success.
pub fn off(status: i32) -> ! {
    crate::report::missing_syscalls();
    let status = if crate::debug::is_clean() {
        status
    } else {
        status.max(1)
    };
    info!("power off, status {status}");
    arch::exit_machine(if status == 0 {
        EXIT_SUCCESS
    } else {
        EXIT_FAILURE
    })
}

/// The init of some pid namespace ends; the machine's own takes everything with it.
pub fn init_died(task: &Task, status: i32) {
    if task.pid().level() == 0 && task.process.tgid() == 1 {
        let code = if status & 0x7f == 0 {
            status >> 8 & 0xff
        } else {
            128 + (status & 0x7f)
        };
        if status & 0x7f != 0 {
            println!("init was killed by signal {}", status & 0x7f);
        }
        off(code)
    }
}
