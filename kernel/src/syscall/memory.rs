//! mmap and its kin.

use super::{Args, SysResult};
use crate::arch::PtRegs;
use crate::arch::uaccess::{get_user, put_user};
use crate::errno::Errno;
use crate::sched::current_ref;
use mm::{MapArgs, MapFlags, Mm, PageNode, Prot};
use vfs::Mappable;

const MAP_ANONYMOUS: usize = 0x20;
const MAP_TYPE: usize = 0xf;
const MAP_SHARED_VALIDATE: usize = 3;
const MADV_DONTNEED: usize = 4;
const MADV_FREE: usize = 8;

/// The running program's address space.
pub fn current_mm() -> &'static Mm {
    let mm = current_ref()
        .active_mm
        .load(core::sync::atomic::Ordering::Relaxed) as *const Mm;
    // SAFETY: a system call comes from a program, which has an address space that only it replaces.
    unsafe { &*mm }
}

fn prot(bits: usize) -> Prot {
    Prot::from_bits_truncate(bits as u32)
}

pub fn mmap(regs: &mut PtRegs) -> SysResult {
    let (addr, len, flags, fd) = (
        regs.arg::<0>(),
        regs.arg::<1>(),
        regs.arg::<3>(),
        regs.arg::<4>() as i32,
    );
    let offset = regs.arg::<5>();
    if offset % 4096 != 0 {
        return Err(Errno::EINVAL);
    }
    let mut map_flags = MapFlags::from_bits_truncate(flags as u32);
    if flags & MAP_TYPE == MAP_SHARED_VALIDATE {
        map_flags.remove(MapFlags::PRIVATE);
    }
    let prot = prot(regs.arg::<2>());
    let mut max_prot = Prot::all();
    let open;
    let file = if flags & MAP_ANONYMOUS != 0 {
        None
    } else {
        open = super::file::get(fd)?;
        if !open.readable() {
            return Err(Errno::EACCES);
        }
        if map_flags.contains(MapFlags::SHARED) && !open.writable() {
            max_prot.remove(Prot::WRITE);
        }
        match open.mappable()? {
            Mappable::Cache(space) => Some((space, (offset / 4096) as u64)),
            Mappable::Anonymous => None, // /dev/zero
        }
    };
    Ok(current_mm().mmap(&MapArgs {
        addr,
        len,
        prot,
        flags: map_flags,
        file,
        max_prot,
    })?)
}

pub fn munmap(regs: &mut PtRegs) -> SysResult {
    current_mm().munmap(regs.arg::<0>(), regs.arg::<1>())?;
    Ok(0)
}

pub fn mprotect(regs: &mut PtRegs) -> SysResult {
    const KNOWN: usize = 0xf | 0x300_0000; // read, write, execute, SEM; GROWSDOWN, GROWSUP
    if regs.arg::<2>() & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    current_mm().mprotect(regs.arg::<0>(), regs.arg::<1>(), prot(regs.arg::<2>()))?;
    Ok(0)
}

pub fn brk(regs: &mut PtRegs) -> SysResult {
    Ok(current_mm().brk(regs.arg::<0>()))
}

pub fn mremap(regs: &mut PtRegs) -> SysResult {
    let flags = mm::RemapFlags::from_bits(regs.arg::<3>() as u32).ok_or(Errno::EINVAL)?;
    Ok(current_mm().mremap(
        regs.arg::<0>(),
        regs.arg::<1>(),
        regs.arg::<2>(),
        flags,
        regs.arg::<4>(),
    )?)
}

pub fn madvise(regs: &mut PtRegs) -> SysResult {
    match regs.arg::<2>() {
        MADV_DONTNEED | MADV_FREE => {
            current_mm().madvise_dontneed(regs.arg::<0>(), regs.arg::<1>())?;
            Ok(0)
        }
        // Hints without a promise.
        0..=25 => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// move_pages: where pages of the caller are, or moves them there. Other processes: EPERM.
pub fn move_pages(regs: &mut PtRegs) -> SysResult {
    const MPOL_MF_MOVE: usize = 2;
    const MPOL_MF_MOVE_ALL: usize = 4;
    let (pid, count, pages) = (regs.arg::<0>() as i32, regs.arg::<1>(), regs.arg::<2>());
    let (nodes, status) = (regs.arg::<3>(), regs.arg::<4>());
    if regs.arg::<5>() & !(MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) != 0 {
        return Err(Errno::EINVAL);
    }
    if pid != 0 && pid != current_ref().process.tgid() {
        return Err(Errno::EPERM);
    }
    let mm = current_mm();
    for i in 0..count {
        let addr = get_user::<usize>(pages.wrapping_add(8 * i))?;
        let at = if nodes == 0 {
            mm.node_of(addr)
        } else {
            let node = get_user::<i32>(nodes.wrapping_add(4 * i))? as usize;
            if node >= ksync::arch::nr_node_ids() {
                return Err(Errno::ENODEV);
            }
            mm.move_page(addr, node)
        };
        let word = match at {
            PageNode::On(node) => node as i32,
            PageNode::Absent => -i32::from(Errno::ENOENT.0),
            PageNode::Unmapped => -i32::from(Errno::EFAULT.0),
            PageNode::Busy => -i32::from(Errno::EBUSY.0),
            PageNode::Shared => -i32::from(Errno::EACCES.0),
            PageNode::Oom => -i32::from(Errno::ENOMEM.0),
        };
        put_user(status.wrapping_add(4 * i), &word)?;
    }
    Ok(0)
}
