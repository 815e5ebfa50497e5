//! clone, exec and exit where they meet the machine: registers, stacks, user memory.

use crate::arch::thread::{self, Frames, GsBase};
use crate::arch::uaccess::{self, TASK_SIZE};
use crate::arch::{PtRegs, clock, fpu, gdt};
use crate::errno::Errno;
use crate::kstats::Stat;
use crate::phases::{self, Phase};
use crate::pidfd;
use crate::sched::{self, current, current_ref};
use core::sync::atomic::Ordering::Relaxed;
use kstat::Counters;
use ksync::arch::{preempt_disable, preempt_enable, smp_processor_id};
use rmap::{AddressSpace, SpaceRef};
use slab::KArc;
use task::exec::{AuxInfo, ExecArgs, Image, Loaded};
use task::fork::{CloneArgs, clone};
use task::{Task, TaskError};
use vfs::{At, File, FsStruct, OpenFlags, VfsError};

/// What the machine needs to know of a clone besides [`CloneArgs`].
#[derive(Default, Clone, Copy)]
pub struct CloneRegs {
    /// The child's stack pointer; 0: the parent's.
    pub stack: usize,
    /// CLONE_SETTLS.
    pub tls: usize,
    /// CLONE_PARENT_SETTID.
    pub parent_tid: usize,
    /// CLONE_PIDFD.
    pub pidfd: usize,
}

/// Makes a thread that returns to user mode with `regs` and 0 in RAX. Returns its id as the caller sees it.
pub fn kernel_clone(args: &CloneArgs, regs: &PtRegs, at: &CloneRegs) -> Result<i32, Errno> {
    let cur = current();
    if args.flags & clone::SETTLS != 0 && at.tls >= TASK_SIZE {
        return Err(Errno::EPERM);
    }
    crate::syscall::may_fork()?;
    let new = task::fork::copy_process(&cur, args)?;
    let files = if args.flags & clone::PIDFD != 0 {
        cur.files.lock().clone()
    } else {
        None
    };
    // Before the child has frames: what fails here is undone by dropping `new`.
    let descriptor = if args.flags & clone::PIDFD != 0 {
        let slot = files.as_ref().ok_or(Errno::EBADF)?.reserve(true)?;
        let file = pidfd::file(new.process().clone(), OpenFlags::empty())?;
        uaccess::put_user(at.pidfd, &slot.fd())?;
        Some((slot, file))
    } else {
        None
    };
    let timer = phases::start();
    let frames = Frames::alloc(ksync::arch::cpu_to_node(args.cpu), true)?;
    let child = new.task();
    let mut child_regs = *regs;
    child_regs.rax = 0;
    if at.stack != 0 {
        child_regs.rsp = at.stack as u64;
    }
    frames.install_user(&child.arch, &child_regs, &cur.arch);
    if args.flags & clone::SETTLS != 0 {
        child.arch.fs_base.store(at.tls, Relaxed);
    }
    phases::end(Phase::TaskSetup, timer);
    let tid = task::pids::nr_in(child.pid(), cur.pid());
    if args.flags & clone::PARENT_SETTID != 0 {
        // Linux ignores a bad address here too.
        let _ = uaccess::put_user(at.parent_tid, &(tid as u32));
    }
    let vfork = new.vfork_done();
    finish_clone(new, &cur)?;
    if let Some((slot, file)) = descriptor {
        slot.install(file);
    }
    if let Some(done) = vfork {
        // A fatal signal ends the wait; the child then goes on alone.
        while done.0.wait_interruptible().is_err() {
            if cur.process.lock.lock().group_exit.is_some() {
                break;
            }
            if !done.0.is_done() {
                done.0.wait();
                break;
            }
        }
    }
    Ok(tid)
}

/// Makes a process like [`kernel_clone`] does, which first runs `function(argument)` in the kernel and goes to user
/// mode when that returns.
pub fn clone_into_kernel(
    args: &CloneArgs,
    function: extern "C" fn(usize),
    argument: usize,
) -> Result<(), Errno> {
    let cur = current();
    let new = task::fork::copy_process(&cur, args)?;
    let frames = Frames::alloc(ksync::arch::cpu_to_node(args.cpu), true)?;
    frames.install_kernel(&new.task().arch, function, argument);
    finish_clone(new, &cur)?;
    Ok(())
}

fn finish_clone(new: task::fork::NewTask, cur: &KArc<Task>) -> Result<KArc<Task>, TaskError> {
    let unpublished = new.task().clone();
    let timer = phases::start();
    let published = new.publish(cur, clock::now_ns());
    phases::end(Phase::ExitNotify, timer);
    match published {
        Ok(task) => {
            let timer = phases::start();
            // The run queue's reference.
            sched::wake_up_new(task.clone());
            phases::end(Phase::RunQueue, timer);
            Stat::nr_forks.inc();
            Ok(task)
        }
        Err(e) => {
            // SAFETY: nobody could find it, so it never ran.
            unsafe { thread::free(&unpublished.arch) };
            Err(e)
        }
    }
}

/// A thread of the kernel, in a process of its own that is a child of the caller's. `flags` as for clone.
pub fn kernel_thread(
    name: &str,
    flags: u64,
    function: extern "C" fn(usize),
    argument: usize,
) -> Result<KArc<Task>, TaskError> {
    let cur = current();
    let args = CloneArgs {
        flags,
        exit_signal: task::signal::SIGCHLD,
        kthread: true,
        cpu: sched::likely_cpu(),
        ..Default::default()
    };
    let new = task::fork::copy_process(&cur, &args)?;
    let frames = Frames::alloc(ksync::arch::numa_node_id(), false)?;
    frames.install_kernel(&new.task().arch, function, argument);
    new.task().set_comm(name.as_bytes());
    finish_clone(new, &cur)
}

/// A thread of the kernel in the idle threads' pid namespace, where no program sees it. Boot, by the first idle thread.
pub fn hidden_thread(name: &str, function: extern "C" fn(usize), argument: usize) -> KArc<Task> {
    let idle = current_ref();
    let hidden = idle.process.pid.ns().clone();
    drop(hidden.set_child_reaper(Some(current())));
    let programs = core::mem::replace(
        &mut *idle.pid_ns_for_children.lock(),
        task::NsRef::new(&hidden),
    );
    let thread = kernel_thread(name, 0, function, argument).expect("memory for a kernel thread");
    *idle.pid_ns_for_children.lock() = programs;
    thread
}

/// The first thing a new thread does, before its first instruction in user mode.
pub fn new_thread_start(task: &Task) {
    let at = task.set_child_tid.load(Relaxed);
    if at != 0 {
        let tid = task.tid() as u32;
        let _ = uaccess::put_user(at, &tid);
    }
}

/// Gives the running thread another address space, or none, and returns the old one.
fn replace_mm(task: &Task, new: Option<mm::MmUser>) -> Option<mm::MmUser> {
    let address = new.as_ref().map_or(0, |mm| &raw const **mm as usize);
    preempt_disable();
    let old = core::mem::replace(&mut *task.mm.lock(), new);
    let old_address = task.active_mm.swap(address, Relaxed);
    sched::load_mm(smp_processor_id(), old_address, address);
    preempt_enable();
    old
}

/// A program's file as exec reads it: open, so that nobody writes to it meanwhile.
struct FileImage {
    file: KArc<File>,
    space: SpaceRef,
}

impl FileImage {
    fn open(fs: &FsStruct, path: &[u8]) -> Result<FileImage, Errno> {
        let file = vfs::open_exec(At::cwd(fs), path, true)?;
        let space = crate::syscall::mapping_of(&file)?;
        Ok(FileImage { file, space })
    }
}

impl Image for FileImage {
    fn read_at(&self, offset: u64, mut buf: &mut [u8]) -> Result<usize, VfsError> {
        self.file.pread(&mut buf, offset as i64)
    }
    fn space(&self) -> &KArc<AddressSpace> {
        &self.space
    }
}

fn aux_info() -> AuxInfo {
    let mut random = [0u8; 16];
    crate::random::fill(&mut random);
    AuxInfo {
        hwcap: core::arch::x86_64::__cpuid(1).edx as u64,
        hwcap2: 2, // FSGSBASE may be used by programs
        random,
        vdso: 0,
        min_signal_stack: fpu::area_size() as u64 + 1024,
    }
}

/// Replaces the running program. On success the thread's saved registers are the new program's.
pub fn kernel_execve(path: &[u8], args: ExecArgs) -> Result<(), Errno> {
    let task = current_ref();
    let (loaded, name) = load_program(task, path, args)?;
    // The point of no return: nothing below fails.
    kill_other_threads(task)?;
    thread::ensure_fpu(&task.arch)?;
    task.process.sighand().clone().reset_handlers()?;
    let files = task.files.lock().clone();
    if let Some(files) = files {
        files.close_on_exec();
    }
    crate::itimer::forget(&task.process, true);
    clear_child_tid(task);
    let timer = phases::start();
    let Loaded { mm, entry, sp } = loaded;
    crate::syscall::apply_limits_to(&task.process, &mm);
    let old = replace_mm(task, Some(mm));
    task::exit::mm_released(task);
    drop(old);
    phases::end(Phase::ExitMm, timer);
    task.set_comm(&name);
    *task.altstack.lock() = Default::default();
    task.robust_list.store(0, Relaxed);
    task.rseq.at.store(0, Relaxed);
    task.set_child_tid.store(0, Relaxed);
    task.process.did_exec.store(true, Relaxed);
    task.cred.exec();
    task.clear_flag(task::task::flags::KTHREAD);
    thread::reset_user_state(&task.arch);
    task.arch.set_gs_base_now(0);
    // SAFETY: the thread is the running one; its user registers are dead since the exec cannot fail any more.
    unsafe {
        *thread::pt_regs(&task.arch) = PtRegs {
            rip: entry as u64,
            cs: gdt::USER_CS as u64,
            rflags: 1 << 9,
            rsp: sp as u64,
            ss: gdt::USER_SS as u64,
            orig_rax: crate::arch::entry::NO_SYSCALL,
            ..PtRegs::default()
        };
    }
    Stat::nr_execs.inc();
    Ok(())
}

/// Finds and loads the file, following `#!` lines, with its interpreter.
fn load_program(task: &Task, path: &[u8], args: ExecArgs) -> Result<(Loaded, [u8; 16]), Errno> {
    let timer = phases::start();
    let fs = task.fs.lock().clone().ok_or(Errno::ENOENT)?;
    let image = FileImage::open(&fs, path)?;
    let mut interpreter_path = [0u8; 256];
    let interpreter = match task::exec::interpreter_path(&image, &mut interpreter_path)? {
        Some(len) => Some(FileImage::open(&fs, &interpreter_path[..len])?),
        None => None,
    };
    let interpreter = interpreter.as_ref().map(|i| i as &dyn Image);
    let loaded = task::exec::load(&image, interpreter, &args, path, &aux_info())?;
    let base = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
    let mut name = [0u8; 16];
    let len = base.len().min(15);
    name[..len].copy_from_slice(&base[..len]);
    phases::end(Phase::ExecLoad, timer);
    Ok((loaded, name))
}

/// exec in a process with several threads: the others end first; the caller becomes the leader in all but number.
fn kill_other_threads(task: &Task) -> Result<(), Errno> {
    if !task.process.is_multithreaded() {
        return Ok(());
    }
    task::exit::end_other_threads(&current()).map_err(Errno::from)
}

fn clear_child_tid(task: &Task) {
    let at = task.clear_child_tid.swap(0, Relaxed);
    // Only somebody who shares the memory could be waiting.
    let shared = task.mm.lock().as_ref().is_some_and(|mm| mm.nr_users() > 1);
    if at != 0 && shared && uaccess::put_user(at, &0u32).is_ok() {
        crate::syscall::futex::wake_private(at, 1);
    }
}

/// Ends the running thread with wait status `status`. Never returns.
pub fn do_exit(status: i32) -> ! {
    let task = current_ref();
    let is_last = task::exit::begin(task, status);
    crate::syscall::futex::exit_robust_list(task);
    clear_child_tid(task);
    let timer = phases::start();
    let old = replace_mm(task, None);
    task::exit::mm_released(task);
    drop(old);
    phases::end(Phase::ExitMm, timer);
    let timer = phases::start();
    let files = task.files.lock().take();
    drop(files);
    let fs = task.fs.lock().take();
    drop(fs);
    phases::end(Phase::Files, timer);
    if is_last {
        crate::itimer::forget(&task.process, false);
        crate::tty::leader_leaves(&task.process);
    }
    if is_last && task.process.is_namespace_init() {
        crate::power::init_died(task, status);
        task::pids::zap_namespace(task);
    }
    let timer = phases::start();
    task::exit::exit_notify(&current(), task.entity.runtime_ns.load(Relaxed));
    phases::end(Phase::ExitNotify, timer);
    Stat::nr_exits.inc();
    sched::exit_current()
}

/// exit_group: every thread of the process ends with `status`.
pub fn do_group_exit(status: i32) -> ! {
    let task = current_ref();
    let status = {
        let mut state = task.process.lock.lock();
        if task.process.is_multithreaded() {
            state.start_group_exit(status);
        }
        state.group_exit.unwrap_or(status)
    };
    do_exit(status)
}
