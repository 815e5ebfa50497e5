//! Processes: clone, exec, exit, wait, ids, limits.

use super::{Args, SysResult};
use crate::arch::PtRegs;
use crate::arch::thread::{self, GsBase};
use crate::arch::uaccess::{self, Plain, TASK_SIZE, get_user, put_user, strncpy_from_user};
use crate::errno::Errno;
use crate::process::{self, CloneRegs};
use crate::sched::{self, current, current_ref};
use core::sync::atomic::Ordering::Relaxed;
use ksync::{CpuMask, NR_CPUS};
use slab::{KArc, KBox};
use task::cred::cap;
use task::exec::{ARG_STRLEN_MAX, ExecArgs};
use task::fork::{CloneArgs, clone as flag};
use task::wait::{Which, options};
use task::{Task, pids, signal};

const PATH_MAX: usize = 4096;

fn clone_args(flags: u64, exit_signal: u32, child_tid: usize) -> CloneArgs<'static> {
    CloneArgs {
        flags,
        exit_signal,
        set_tid: &[],
        child_tid,
        kthread: false,
        cpu: sched::likely_cpu(),
    }
}

/// As [`process::kernel_clone`]; if memory ran out, and pages can be had again, gives these back and tries once more.
fn clone_with_memory(args: &CloneArgs, regs: &PtRegs, at: &CloneRegs) -> SysResult {
    let tid = match process::kernel_clone(args, regs, at) {
        Err(Errno::ENOMEM) if mm::reclaim_for_retry() => process::kernel_clone(args, regs, at)?,
        result => result?,
    };
    Ok(tid as usize)
}

pub fn fork(regs: &mut PtRegs) -> SysResult {
    let args = clone_args(0, signal::SIGCHLD, 0);
    clone_with_memory(&args, regs, &CloneRegs::default())
}

pub fn vfork(regs: &mut PtRegs) -> SysResult {
    let args = clone_args(flag::VFORK | flag::VM, signal::SIGCHLD, 0);
    clone_with_memory(&args, regs, &CloneRegs::default())
}

pub fn clone(regs: &mut PtRegs) -> SysResult {
    let word = regs.arg::<0>() as u64 & 0xffff_ffff;
    if word & (flag::PIDFD | flag::PARENT_SETTID) == flag::PIDFD | flag::PARENT_SETTID {
        return Err(Errno::EINVAL);
    }
    let args = clone_args(
        word & !flag::CSIGNAL,
        (word & flag::CSIGNAL) as u32,
        regs.arg::<3>(),
    );
    let at = CloneRegs {
        stack: regs.arg::<1>(),
        tls: regs.arg::<4>(),
        parent_tid: regs.arg::<2>(),
        pidfd: regs.arg::<2>(),
    };
    clone_with_memory(&args, regs, &at)
}

/// `struct clone_args`, as far as version 2.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Clone3 {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}
// SAFETY: eleven words.
unsafe impl Plain for Clone3 {}
const CLONE3_SIZE_V0: usize = 64;

pub fn clone3(regs: &mut PtRegs) -> SysResult {
    let (at, size) = (regs.arg::<0>(), regs.arg::<1>());
    if size < CLONE3_SIZE_V0 {
        return Err(Errno::EINVAL);
    }
    if size > 4096 {
        return Err(Errno::E2BIG);
    }
    let mut words = [0u64; size_of::<Clone3>() / 8];
    let known = size.min(size_of::<Clone3>());
    for (i, word) in words.iter_mut().enumerate().take(known / 8) {
        *word = get_user(at + i * 8)?;
    }
    for offset in (known..size).step_by(8) {
        if get_user::<u64>(at + offset)? != 0 {
            return Err(Errno::E2BIG);
        }
    }
    let [
        flags,
        pidfd,
        child_tid,
        parent_tid,
        exit_signal,
        stack,
        stack_size,
        tls,
        set_tid,
        set_tid_size,
        _,
    ] = words;
    let invalid = flags & (flag::CSIGNAL | flag::DETACHED) != 0
        || exit_signal > signal::NSIG as u64
        || flags & (flag::THREAD | flag::PARENT) != 0 && exit_signal != 0
        || (stack == 0) != (stack_size == 0)
        || set_tid_size > 32
        || (set_tid == 0) != (set_tid_size == 0)
        || flags & (flag::PIDFD | flag::PARENT_SETTID) == flag::PIDFD | flag::PARENT_SETTID
            && pidfd == parent_tid;
    if invalid {
        return Err(Errno::EINVAL);
    }
    let mut tids = [0i32; 32];
    for (i, tid) in tids.iter_mut().enumerate().take(set_tid_size as usize) {
        *tid = get_user(set_tid as usize + i * 4)?;
    }
    let mut args = clone_args(flags, exit_signal as u32, child_tid as usize);
    args.set_tid = &tids[..set_tid_size as usize];
    let at = CloneRegs {
        stack: (stack + stack_size) as usize,
        tls: tls as usize,
        parent_tid: parent_tid as usize,
        pidfd: pidfd as usize,
    };
    clone_with_memory(&args, regs, &at)
}

/// Bytes of a path that need no allocation.
const PATH_SHORT: usize = 64;

/// A path from user memory: on the stack if short, else on the heap.
pub struct UserPath {
    short: [u8; PATH_SHORT],
    long: Option<KBox<[u8; PATH_MAX]>>,
    len: usize,
}

impl core::ops::Deref for UserPath {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.long {
            None => &self.short[..self.len],
            Some(long) => &long[..self.len],
        }
    }
}

/// A path from user memory. EFAULT, ENAMETOOLONG, ENOENT (empty), ENOMEM.
pub fn read_path(at: usize) -> Result<UserPath, Errno> {
    let mut path = UserPath {
        short: [0; PATH_SHORT],
        long: None,
        len: 0,
    };
    path.len = match strncpy_from_user(&mut path.short, at)? {
        Some(0) => return Err(Errno::ENOENT),
        Some(len) => len,
        None => {
            let long = path.long.insert(KBox::new([0u8; PATH_MAX])?);
            strncpy_from_user(&mut **long, at)?.ok_or(Errno::ENAMETOOLONG)?
        }
    };
    Ok(path)
}

/// One vector of strings; `push` gets each.
fn read_strings(
    at: usize,
    args: &mut ExecArgs,
    push: fn(&mut ExecArgs, &[u8]) -> Result<(), task::TaskError>,
) -> Result<(), Errno> {
    if at == 0 {
        return Ok(());
    }
    let mut small = [0u8; 256];
    for i in 0.. {
        let string: usize = get_user(at + i * 8)?;
        if string == 0 {
            return Ok(());
        }
        match strncpy_from_user(&mut small, string)? {
            Some(len) => push(args, &small[..len])?,
            None => {
                let mut buf = KBox::new([0u8; ARG_STRLEN_MAX / 4])?;
                let len = strncpy_from_user(&mut *buf, string)?.ok_or(Errno::E2BIG)?;
                push(args, &buf[..len])?;
            }
        }
    }
    Ok(())
}

pub fn execve(regs: &mut PtRegs) -> SysResult {
    let path = read_path(regs.arg::<0>())?;
    let mut args = ExecArgs::new();
    read_strings(regs.arg::<1>(), &mut args, ExecArgs::push_arg)?;
    if args.argc() == 0 {
        args.push_arg(b"")?; // Linux gives a program without arguments an empty one
    }
    read_strings(regs.arg::<2>(), &mut args, ExecArgs::push_env)?;
    process::kernel_execve(&path, args)?;
    Ok(regs.rax as usize)
}

pub fn exit(regs: &mut PtRegs) -> SysResult {
    process::do_exit((regs.arg::<0>() as i32 & 0xff) << 8)
}

pub fn exit_group(regs: &mut PtRegs) -> SysResult {
    process::do_group_exit((regs.arg::<0>() as i32 & 0xff) << 8)
}

pub fn wait4(regs: &mut PtRegs) -> SysResult {
    let (pid, status_at, opts) = (
        regs.arg::<0>() as i32,
        regs.arg::<1>(),
        regs.arg::<2>() as u32,
    );
    const KNOWN: u32 = options::WNOHANG
        | options::WUNTRACED
        | options::WCONTINUED
        | options::WNOTHREAD
        | options::WALL
        | options::WCLONE;
    if opts & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    let cur = current_ref();
    let which = match pid {
        -1 => Which::Any,
        i32::MIN => return Err(Errno::ESRCH),
        0 => Which::Group(cur.process.lock.lock().pgrp.clone()),
        1.. => pids::find_pid(pid as u32, cur.pid()).map_or(Which::Nobody, Which::Pid),
        _ => pids::find_pid(pid.unsigned_abs(), cur.pid()).map_or(Which::Nobody, Which::Group),
    };
    let Some(reaped) = task::wait::wait(cur, &which, opts)? else {
        return Ok(0);
    };
    if status_at != 0 {
        put_user(status_at, &reaped.status)?;
    }
    if regs.arg::<3>() != 0 {
        put_user(regs.arg::<3>(), &rusage(reaped.runtime_ns))?;
    }
    Ok(reaped.pid as usize)
}

/// `struct rusage` with CPU time only.
pub fn rusage(ns: u64) -> [u64; 18] {
    let mut words = [0; 18];
    words[0] = ns / 1_000_000_000;
    words[1] = ns / 1000 % 1_000_000;
    words
}

pub fn getrusage(regs: &mut PtRegs) -> SysResult {
    let cur = current_ref();
    let ns = match regs.arg::<0>() as i32 {
        0 => cur.entity.runtime_ns.load(Relaxed) + cur.process.lock.lock().dead_threads_ns,
        1 => cur.entity.runtime_ns.load(Relaxed),
        -1 => cur.process.lock.lock().reaped_children_ns,
        _ => return Err(Errno::EINVAL),
    };
    put_user(regs.arg::<1>(), &rusage(ns))?;
    Ok(0)
}

pub fn sched_yield(_: &mut PtRegs) -> SysResult {
    sched::yield_now();
    Ok(0)
}

#[inline]
pub fn getpid(_: &mut PtRegs) -> SysResult {
    Ok(current_ref().process.tgid() as usize)
}

pub fn gettid(_: &mut PtRegs) -> SysResult {
    Ok(current_ref().tid() as usize)
}

pub fn getppid(_: &mut PtRegs) -> SysResult {
    let cur = current_ref();
    Ok(cur
        .process
        .parent()
        .map_or(0, |p| pids::nr_in(&p.pid, cur.pid())) as usize)
}

pub fn zero(_: &mut PtRegs) -> SysResult {
    Ok(0)
}

/// The process `pid` names; 0 is the caller's.
pub fn process_by_id(pid: i32) -> Result<KArc<task::Process>, Errno> {
    match pid {
        0 => Ok(current_ref().process.clone()),
        1.. => pids::find_process(pid as u32, current_ref().pid()).ok_or(Errno::ESRCH),
        _ => Err(Errno::ESRCH),
    }
}

pub fn getpgid(regs: &mut PtRegs) -> SysResult {
    let process = process_by_id(regs.arg::<0>() as i32)?;
    let pgrp = process.lock.lock().pgrp.clone();
    Ok(pids::nr_in(&pgrp, current_ref().pid()) as usize)
}

pub fn getpgrp(_: &mut PtRegs) -> SysResult {
    let pgrp = current_ref().process.lock.lock().pgrp.clone();
    Ok(pids::nr_in(&pgrp, current_ref().pid()) as usize)
}

pub fn getsid(regs: &mut PtRegs) -> SysResult {
    let process = process_by_id(regs.arg::<0>() as i32)?;
    let session = process.lock.lock().session.clone();
    Ok(pids::nr_in(&session, current_ref().pid()) as usize)
}

pub fn setsid(_: &mut PtRegs) -> SysResult {
    Ok(pids::new_session(&current_ref().process)? as usize)
}

pub fn setpgid(regs: &mut PtRegs) -> SysResult {
    let (pid, pgid) = (regs.arg::<0>() as i32, regs.arg::<1>() as i32);
    if pgid < 0 {
        return Err(Errno::EINVAL);
    }
    let cur = current_ref();
    let process = process_by_id(pid)?;
    let own = KArc::ptr_eq(&process, &cur.process);
    if !own {
        if process
            .parent()
            .is_none_or(|p| !KArc::ptr_eq(&p, &cur.process))
        {
            return Err(Errno::ESRCH);
        }
        if process.did_exec.load(Relaxed) {
            return Err(Errno::EACCES);
        }
    }
    let session = process.lock.lock().session.clone();
    if !KArc::ptr_eq(&session, &cur.process.lock.lock().session)
        || KArc::ptr_eq(&session, &process.pid)
    {
        return Err(Errno::EPERM);
    }
    let group = if pgid == 0 || pgid == pids::nr_in(&process.pid, cur.pid()) {
        process.pid.clone()
    } else {
        let group = pids::find_pid(pgid as u32, cur.pid()).ok_or(Errno::EPERM)?;
        let mut same_session = false;
        pids::for_each_in_group(&group, |member| {
            same_session |= KArc::ptr_eq(&member.lock.lock().session, &session);
        });
        if !same_session {
            return Err(Errno::EPERM);
        }
        group
    };
    pids::set_group(&process, &group)?;
    Ok(0)
}

pub fn uname(regs: &mut PtRegs) -> SysResult {
    const FIELDS: [&str; 6] = [
        "Linux",
        "tine",
        crate::procfs::OS_RELEASE,
        crate::procfs::VERSION,
        "x86_64",
        "(none)",
    ];
    let mut buf = [0u8; 65 * 6];
    for (field, text) in buf.chunks_mut(65).zip(FIELDS) {
        field[..text.len()].copy_from_slice(text.as_bytes());
    }
    uaccess::copy_to_user(regs.arg::<0>(), &buf)?;
    Ok(0)
}

pub fn sysinfo(regs: &mut PtRegs) -> SysResult {
    let (mut total, mut free) = (0u64, 0u64);
    for node in 0..ksync::arch::nr_node_ids() {
        let stat = page_alloc::nr_free(node);
        total += stat.total as u64;
        free += stat.free as u64;
    }
    let mut words = [0u64; 14];
    words[0] = crate::arch::clock::now_ns() / 1_000_000_000;
    (words[4], words[5]) = (total * 4096, free * 4096);
    words[10] = pids::next_process(1, current_ref().pid().ns())
        .map_or(0, |_| current_ref().pid().ns().nr_pids()) as u64;
    words[13] = 1; // mem_unit
    uaccess::put_user(regs.arg::<0>(), &words)?;
    Ok(0)
}

pub fn arch_prctl(regs: &mut PtRegs) -> SysResult {
    let (code, address) = (regs.arg::<0>(), regs.arg::<1>());
    let arch = &current_ref().arch;
    match code {
        0x1001 | 0x1002 if address >= TASK_SIZE => return Err(Errno::EPERM),
        0x1001 => arch.set_gs_base_now(address),
        0x1002 => thread::write_fs_base(address),
        0x1003 => put_user(address, &thread::read_fs_base())?,
        0x1004 => put_user(address, &arch.gs_base_now())?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

pub fn set_tid_address(regs: &mut PtRegs) -> SysResult {
    let task = current_ref();
    task.clear_child_tid.store(regs.arg::<0>(), Relaxed);
    Ok(task.tid() as usize)
}

pub fn task_by_tid(tid: i32) -> Result<KArc<Task>, Errno> {
    match tid {
        0 => Ok(current()),
        1.. => pids::find_task(tid as u32, current_ref().pid()).ok_or(Errno::ESRCH),
        _ => Err(Errno::EINVAL),
    }
}

pub fn sched_setaffinity(regs: &mut PtRegs) -> SysResult {
    let task = task_by_tid(regs.arg::<0>() as i32)?;
    let len = regs.arg::<1>().min(NR_CPUS / 8);
    let mut bits = [0u8; NR_CPUS / 8];
    uaccess::copy_from_user(&mut bits[..len], regs.arg::<2>())?;
    let mask = CpuMask::new();
    for cpu in (0..crate::arch::smp::nr_online()).filter(|c| bits[c / 8] >> (c % 8) & 1 != 0) {
        mask.set(cpu);
    }
    if mask.is_empty() {
        return Err(Errno::EINVAL);
    }
    set_affinity(&task, &mask);
    Ok(0)
}

/// Restricts a thread to `mask`, which holds an online CPU, and moves it if need be.
pub fn set_affinity(task: &KArc<Task>, mask: &CpuMask) {
    let entity = &task.entity;
    entity.restricted.store(false, Relaxed);
    entity.allowed.clear_all();
    entity.allowed.or_with(mask);
    entity.restricted.store(
        mask.weight() < crate::arch::smp::nr_online(),
        core::sync::atomic::Ordering::Release,
    );
    sched::enforce_affinity(task);
}

pub fn sched_getaffinity(regs: &mut PtRegs) -> SysResult {
    let task = task_by_tid(regs.arg::<0>() as i32)?;
    let nr = crate::arch::smp::nr_online();
    let (len, needed) = (regs.arg::<1>(), nr.div_ceil(64) * 8);
    if len < needed || len % 8 != 0 {
        return Err(Errno::EINVAL);
    }
    let mut bits = [0u8; NR_CPUS / 8];
    for cpu in (0..nr).filter(|&c| task.entity.may_run_on(c)) {
        bits[cpu / 8] |= 1 << (cpu % 8);
    }
    uaccess::copy_to_user(regs.arg::<2>(), &bits[..needed])?;
    Ok(needed)
}

pub fn getcpu(regs: &mut PtRegs) -> SysResult {
    let (cpu, node) = (
        ksync::arch::smp_processor_id() as u32,
        ksync::arch::numa_node_id() as u32,
    );
    if regs.arg::<0>() != 0 {
        put_user(regs.arg::<0>(), &cpu)?;
    }
    if regs.arg::<1>() != 0 {
        put_user(regs.arg::<1>(), &node)?;
    }
    Ok(0)
}

/// A namespace for the children of `task`.
fn unshared_namespace(task: &Task) -> Result<task::NsRef, Errno> {
    if !task.cred.capable(cap::SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let parent = task.pid_ns_for_children.lock().clone();
    if !KArc::ptr_eq(&parent, task.pid().ns()) {
        return Err(Errno::EINVAL); // a second unshare before the first child
    }
    Ok(task::NsRef::new(&pids::new_namespace(&parent)?))
}

pub fn unshare(regs: &mut PtRegs) -> SysResult {
    let flags = regs.arg::<0>() as u64;
    let task = current_ref();
    let namespace = match flags & !(flag::FS | flag::FILES | flag::SYSVSEM) {
        0 => None,
        flag::NEWPID => Some(unshared_namespace(task)?),
        _ => return Err(Errno::EINVAL),
    };
    let fs = match &*task.fs.lock() {
        Some(fs) if flags & flag::FS != 0 => Some(fs.dup_for_fork()?),
        _ => None,
    };
    let files = match &*task.files.lock() {
        Some(files) if flags & flag::FILES != 0 => Some(files.dup_for_fork()?),
        _ => None,
    };
    // Nothing fails from here on. What was there before is dropped without a lock held.
    let _old = (
        fs.map(|fs| task.fs.lock().replace(fs)),
        files.map(|files| task.files.lock().replace(files)),
        namespace.map(|ns| core::mem::replace(&mut *task.pid_ns_for_children.lock(), ns)),
    );
    Ok(0)
}

pub fn getrandom(regs: &mut PtRegs) -> SysResult {
    let (mut at, len) = (regs.arg::<0>(), regs.arg::<1>().min(0x1ff_ffff));
    if regs.arg::<2>() > 7 {
        return Err(Errno::EINVAL);
    }
    let mut left = len;
    while left > 0 {
        let mut chunk = [0u8; 64];
        let n = left.min(chunk.len());
        crate::random::fill(&mut chunk[..n]);
        uaccess::copy_to_user(at, &chunk[..n])?;
        at += n;
        left -= n;
    }
    Ok(len)
}

pub fn reboot(regs: &mut PtRegs) -> SysResult {
    let (magic1, magic2) = (regs.arg::<0>() as u32, regs.arg::<1>() as u32);
    if magic1 != 0xfee1_dead
        || ![0x2812_1969, 0x0512_1996, 0x1604_1998, 0x2011_2000].contains(&magic2)
    {
        return Err(Errno::EINVAL);
    }
    match regs.arg::<2>() as u32 {
        0x4321_fedc | 0xcdef_0123 | 0x0123_4567 => crate::power::off(0),
        0 | 0x89ab_cdef => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}
