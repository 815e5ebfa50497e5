//! Lines for people at the end of a run.

use crate::kstats;

/// Calls that programs made in vain.
pub fn missing_syscalls() {
    for (nr, count) in kstats::missing() {
        info!("missing system call {nr}: {count} times, answered ENOSYS");
    }
}
