//! Restartable sequences: what a thread in user mode may know of the CPU it runs on, and be told when that changes.
//!
//! # Problem
//! A program that keeps data per CPU, or per thread that runs at once, must not be moved between reading the number and
//! using it; and a system call to learn the number costs more than a lock.
//!
//! # Mechanism
//! A thread registers an area of its memory by rseq(2), as glibc does for every thread. When it has been off the CPU it
//! has [`flags::RSEQ`], and before it returns to user mode the area is written: CPU, node, and `mm_cid`, the id that no
//! other running thread of its address space has (see `mm::current_cid`). If the area names a critical section and the
//! thread stands in it, it goes on at the section's abort handler instead. A signal's handler aborts it too.
//!
//! ```text
//!   0 cpu_id_start   4 cpu_id   8 rseq_cs -> | version flags | start_ip | post_commit_offset | abort_ip |
//!  16 flags         20 node_id 24 mm_cid                                       signature, 4 bytes, before it
//! ```
//!
//! # Invariants
//! - INV-RSEQ-1: in user mode, without RSEQ in the thread's flags, the area says where the thread runs. The flag is
//!   cleared before the area is written: who is moved meanwhile has it again, and writes again.

use crate::arch::PtRegs;
use crate::arch::uaccess::{Efault, TASK_SIZE, get_user, put_user};
use crate::errno::Errno;
use crate::sched::current_ref;
use crate::signal;
use crate::syscall::{Args, SysResult};
use core::sync::atomic::Ordering::Relaxed;
use ksync::arch::{cpu_to_node, smp_processor_id};
use task::signal::SIGSEGV;
use task::task::flags;

/// Bytes of the first version of `struct rseq`, and its alignment.
const SIZE: u32 = 32;
const FLAG_UNREGISTER: usize = 1;
/// What `cpu_id` says when nobody keeps it up to date.
const UNINITIALIZED: u32 = u32::MAX;

mod offset {
    pub const CPU_ID_START: usize = 0;
    pub const CPU_ID: usize = 4;
    pub const CS: usize = 8;
    pub const NODE_ID: usize = 20;
    pub const MM_CID: usize = 24;
}

/// rseq(area, length, flags, signature). EINVAL, EPERM (another signature), EBUSY (registered), EFAULT.
pub fn rseq(regs: &mut PtRegs) -> SysResult {
    let (at, len) = (regs.arg::<0>(), regs.arg::<1>() as u32);
    let (flags, signature) = (regs.arg::<2>(), regs.arg::<3>() as u32);
    let task = current_ref();
    let own = &task.rseq;
    let registered = own.at.load(Relaxed);
    let is_same = at == registered && len == own.len.load(Relaxed);
    match flags {
        FLAG_UNREGISTER => {
            if registered == 0 || !is_same {
                return Err(Errno::EINVAL);
            }
            if signature != own.signature.load(Relaxed) {
                return Err(Errno::EPERM);
            }
            write(at, 0, UNINITIALIZED, 0, 0)?;
            own.at.store(0, Relaxed);
            task.clear_flag(flags::RSEQ);
            return Ok(0);
        }
        0 if registered == 0 => {}
        0 if !is_same => return Err(Errno::EINVAL),
        0 if signature != own.signature.load(Relaxed) => return Err(Errno::EPERM),
        0 => return Err(Errno::EBUSY),
        _ => return Err(Errno::EINVAL),
    }
    if len < SIZE || !at.is_multiple_of(SIZE as usize) || at == 0 {
        return Err(Errno::EINVAL);
    }
    if at
        .checked_add(len as usize)
        .is_none_or(|end| end > TASK_SIZE)
    {
        return Err(Errno::EFAULT);
    }
    // A section named by whoever had the memory before is nobody's.
    put_user(at + offset::CS, &0u64)?;
    own.len.store(len, Relaxed);
    own.signature.store(signature, Relaxed);
    own.at.store(at, Relaxed);
    task.set_flag(flags::RSEQ);
    Ok(0)
}

fn write(at: usize, start: u32, cpu: u32, node: u32, cid: u32) -> Result<(), Efault> {
    put_user(at + offset::NODE_ID, &node)?;
    put_user(at + offset::MM_CID, &cid)?;
    put_user(at + offset::CPU_ID_START, &start)?;
    put_user(at + offset::CPU_ID, &cpu)
}

/// Brings the area up to date if the thread has been off the CPU. On the way to user mode, IRQs on; may sleep.
pub fn before_user_mode(regs: &mut PtRegs) {
    let task = current_ref();
    if !task.has_flag(flags::RSEQ) {
        return;
    }
    task.clear_flag(flags::RSEQ);
    let at = task.rseq.at.load(Relaxed);
    if at == 0 {
        return;
    }
    // The thread may be moved between these: INV-RSEQ-1.
    let cpu = smp_processor_id();
    let node = cpu_to_node(cpu) as u32;
    let written = leave_section(regs, at)
        .and_then(|()| write(at, cpu as u32, cpu as u32, node, mm::current_cid()));
    if written.is_err() {
        signal::force(SIGSEGV, signal::SI_KERNEL, 0);
    }
}

/// A handler is about to run on top of what the thread did. Err: its area or section is broken.
pub fn before_handler(regs: &mut PtRegs) -> Result<(), Efault> {
    match current_ref().rseq.at.load(Relaxed) {
        0 => Ok(()),
        at => leave_section(regs, at),
    }
}

/// Sends a thread that stands in a critical section to its abort handler, and forgets the section.
fn leave_section(regs: &mut PtRegs, at: usize) -> Result<(), Efault> {
    let section: usize = get_user(at + offset::CS)?;
    if section == 0 {
        return Ok(());
    }
    if section >= TASK_SIZE {
        return Err(Efault);
    }
    let [version_flags, start, length, abort]: [u64; 4] = get_user(section)?;
    let end = start.checked_add(length).ok_or(Efault)?;
    let bound = TASK_SIZE as u64;
    if version_flags != 0 || start >= bound || end >= bound || abort >= bound || abort < 4 {
        return Err(Efault);
    }
    // An abort handler inside of its own section would abort for ever; without the signature anybody who can write
    // to the area could send the thread anywhere.
    let signature: u32 = get_user(abort as usize - 4)?;
    if abort.wrapping_sub(start) < length || signature != current_ref().rseq.signature.load(Relaxed)
    {
        return Err(Efault);
    }
    put_user(at + offset::CS, &0u64)?;
    if regs.rip.wrapping_sub(start) < length {
        regs.rip = abort;
    }
    Ok(())
}
