//! Processes and threads: fork, exec, exit, wait, signals.
//!
//! Policy only: this crate decides what is shared, copied, linked and told; stacks, registers and user memory are the
//! kernel's. Each file states its part of the theory and its locks; the order between them:
//!
//! ```text
//! process_lock (parent) -> process_lock (child) -> process_parent -> pid lists -> task_pending -> sighand
//! ```
//!
//! No lock here covers the machine: Linux's `tasklist_lock` has no counterpart (see `process`).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod cred;
mod error;
pub mod exec;
pub mod exit;
pub mod fork;
pub mod futex;
pub mod jobs;
pub mod limits;
pub mod pids;
pub mod process;
pub mod signal;
pub mod task;
pub mod wait;

pub use cred::Cred;
pub use error::TaskError;
pub use process::Process;
pub use task::{ArchThread, Task};

/// A pid whose lists hold tasks.
pub type TaskPid = pid::Pid<Task>;
/// A pid namespace whose reaper is a task.
pub type PidNamespace = pid::PidNamespace<Task>;
/// A counted reference to one, for what comes and goes with every thread.
pub type NsRef = pid::NsRef<Task>;
