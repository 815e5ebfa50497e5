//! Page faults of programs, and the physical memory of the machine at boot.

use crate::phases::{self, Phase};
use crate::sched::current_ref;
use mm::{FaultError, FaultFlags};

/// A fault at a user address, by the program or by a copy on its behalf. IRQs on; may sleep.
#[inline]
pub fn handle_user_fault(address: usize, flags: FaultFlags, _sp: usize) -> Result<(), FaultError> {
    let mm = current_ref()
        .active_mm
        .load(core::sync::atomic::Ordering::Relaxed) as *const mm::Mm;
    if mm.is_null() {
        return Err(FaultError::SegvMaperr);
    }
    // SAFETY: the running thread's `mm` keeps it alive, and only the thread itself replaces it.
    let mm = unsafe { &*mm };
    let timer = phases::start();
    let result = mm.handle_fault(address, flags);
    phases::end(Phase::Fault, timer);
    result
}
