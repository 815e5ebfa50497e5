//! pidfd: a descriptor that stands for a process, whatever becomes of its number.
//!
//! Mechanism. An anonymous file that holds the process and its pid. It is readable once the process has no thread left,
//! and hung up once it has been reaped; who sleeps for that sleeps on a queue of the process. The pid's number is free
//! for others after the reaping: the object is not, so a signal through the descriptor never reaches a stranger.

use crate::errno::Errno;
use ksync::WaitQueue;
use slab::KArc;
use task::{Process, TaskPid};
use vfs::{AnonFile, File, OpenFlags, PollMask};

/// What is behind the descriptor.
pub struct PidFd {
    process: KArc<Process>,
}
slab::object!(PidFd, "pidfd", links = 0);

impl PidFd {
    /// The process.
    pub fn process(&self) -> &KArc<Process> {
        &self.process
    }

    /// Its pid.
    pub fn pid(&self) -> &KArc<TaskPid> {
        &self.process.pid
    }

    /// Whether it has been reaped.
    pub fn is_reaped(&self) -> bool {
        !self.process.pid.has_task(::pid::PidType::Tgid)
    }
}

impl AnonFile for PidFd {
    const NAME: &'static str = "[pidfd]";

    fn poll(&self) -> PollMask {
        let mut mask = PollMask::empty();
        if self.process.lock.lock().is_zombie() {
            mask |= PollMask::IN | PollMask::RDNORM;
        }
        if self.is_reaped() {
            mask |= PollMask::HUP;
        }
        mask
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.process.wait_pidfd)
    }
}

/// A file around `process`. ENOMEM.
pub fn file(process: KArc<Process>, flags: OpenFlags) -> Result<KArc<File>, Errno> {
    let object = KArc::new(PidFd { process })?;
    Ok(File::new_anon(object, flags | OpenFlags::RDWR)?)
}
