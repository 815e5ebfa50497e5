//! Lines for people at the end of a run.

use crate::kstats;

/// Calls that programs made in vain.
pub fn missing_syscalls() {
    for (nr, count) in kstats::missing() {
        let name = crate::syscall::name_of(nr);
        info!("missing system call {name} ({nr}): {count} times, answered ENOSYS");
    }
}
