//! A worker that is a process: a thread of the kernel that has taken on the address space of `/bin/tiny`, so that its
//! forks copy what a small program's do. The operations on it are what several benchmarks are made of.

use crate::arch::PtRegs;
use crate::errno::Errno;
use crate::process::{self, CloneRegs};
use crate::sched::{self, current, current_ref};
use task::exec::ExecArgs;
use task::fork::{CloneArgs, clone};
use task::signal::SIGCHLD;
use task::wait::{self, Which, options};
use vfs::{At, Mappable};

const TINY: &[u8] = b"/bin/tiny";

/// The running thread as a process.
pub struct Tiny {
    /// Registers with which a child starts in user mode: the program's entry.
    regs: PtRegs,
}

impl Tiny {
    /// Turns the running kernel thread into a process with the program's address space.
    pub fn new() -> Tiny {
        exec_tiny().expect("/bin/tiny in the initramfs");
        Tiny::running()
    }

    /// The running thread, which has just taken on a program's address space.
    pub fn running() -> Tiny {
        // SAFETY: the running thread's own registers, which the exec just wrote.
        let regs = unsafe { *crate::arch::thread::pt_regs(&current_ref().arch) };
        Tiny { regs }
    }

    /// A child that starts the program, which exits.
    pub fn spawn_fork(&self) -> Result<(), Errno> {
        process::kernel_clone(&clone_args(0), &self.regs, &CloneRegs::default())?;
        Ok(())
    }

    /// A child that execs the program, which exits.
    pub fn spawn_exec(&self) -> Result<(), Errno> {
        process::clone_into_kernel(&clone_args(0), child_execs, 0)?;
        Ok(())
    }

    /// Fork, exit, wait.
    pub fn fork(&self) -> Result<(), Errno> {
        self.spawn_fork()?;
        reap_one()
    }

    /// Fork, exec, exit, wait.
    pub fn fork_exec(&self) -> Result<(), Errno> {
        self.spawn_exec()?;
        reap_one()
    }

    /// A child that makes a second thread, joins it and exits. The caller reaps it before this value moves.
    pub fn spawn_threaded(&self) -> Result<(), Errno> {
        let me = core::ptr::from_ref(self) as usize;
        process::clone_into_kernel(&clone_args(0), child_threads, me)
    }

    /// Fork a child that makes a second thread, joins it and exits; wait.
    pub fn fork_thread(&self) -> Result<(), Errno> {
        self.spawn_threaded()?;
        reap_one()
    }

    /// A system call by the program.
    pub fn call(&self, nr: usize, args: [usize; 6]) -> Result<usize, Errno> {
        let mut regs = PtRegs {
            rdi: args[0] as u64,
            rsi: args[1] as u64,
            rdx: args[2] as u64,
            r10: args[3] as u64,
            r8: args[4] as u64,
            r9: args[5] as u64,
            ..self.regs
        };
        crate::syscall::call(nr, &mut regs)
    }

    /// Memory of the program below its stack pointer, for arguments.
    pub fn scratch(&self) -> usize {
        (self.regs.rsp as usize - 2048) & !15
    }

    /// A child that is the first process of a namespace, with `depth` further namespaces below it, of a few processes each;
    /// it ends at once, while they are being made, and takes all of them along.
    pub fn nest(&self, depth: usize) -> Result<(), Errno> {
        process::clone_into_kernel(&clone_args(clone::NEWPID), child_nests, depth)?;
        reap_one()
    }

    /// exec in place.
    pub fn exec(&self) -> Result<(), Errno> {
        exec_tiny()
    }

    /// A thread whose only instruction is exit; it is joined when it has left the process.
    pub fn thread(&self) -> Result<(), Errno> {
        let flags =
            clone::VM | clone::FS | clone::FILES | clone::SIGHAND | clone::THREAD | clone::SYSVSEM;
        let mut args = clone_args(flags);
        args.exit_signal = 0;
        let stack = self.regs.rsp as usize - 4096;
        process::kernel_clone(
            &args,
            &self.regs,
            &CloneRegs {
                stack,
                ..Default::default()
            },
        )?;
        let process = &current_ref().process;
        process
            .wait_chldexit
            .wait_until(|| process.lock.lock().threads.len() == 1);
        Ok(())
    }
}

/// What fork passes, plus `flags`.
pub fn clone_args(flags: u64) -> CloneArgs<'static> {
    CloneArgs {
        flags,
        exit_signal: SIGCHLD,
        cpu: sched::likely_cpu(),
        ..Default::default()
    }
}

/// Waits for any child; it must have exited with 0.
pub fn reap_one() -> Result<(), Errno> {
    let reaped = wait::wait(&current(), &Which::Any, options::WALL)?;
    match reaped {
        Some(r) if r.status == 0 => Ok(()),
        Some(r) => {
            println!("child {} ended with wait status {:#x}", r.pid, r.status);
            Err(Errno::EIO)
        }
        None => Err(Errno::ECHILD),
    }
}

fn exec_tiny() -> Result<(), Errno> {
    exec(TINY)
}

/// Gives the program's file what it keeps once many have mapped it at the same time, and our group and session what they
/// have once many have joined at the same time. Whether they have by the time that counts begins would be chance.
pub fn settle() {
    let (pgrp, session) = {
        let me = current();
        let state = me.process.lock.lock();
        (state.pgrp.clone(), state.session.clone())
    };
    pgrp.open_crowd();
    session.open_crowd();
    let fs = current().fs.lock().clone().expect("process 1 has a root");
    let file = vfs::open_exec(At::cwd(&fs), TINY, true).expect("/bin/tiny in the initramfs");
    if let Ok(Mappable::Cache(space)) = file.mappable() {
        rmap::SpaceRef::expect_many(space);
    }
}

/// The running thread becomes the program at `path`, which it does not run before it goes to user mode.
pub fn exec(path: &[u8]) -> Result<(), Errno> {
    let mut args = ExecArgs::new();
    args.push_arg(path)?;
    process::kernel_execve(path, args)
}

/// A child that is not to be alone.
extern "C" fn child_threads(parents: usize) {
    // SAFETY: the parent waits for this child, and keeps its Tiny meanwhile.
    let tiny = unsafe { &*(parents as *const Tiny) };
    let status = tiny.thread().map_or(1 << 8, |()| 0);
    process::do_group_exit(status)
}

/// The first process of a namespace: its children are killed by its end, wherever they are.
extern "C" fn child_nests(depth: usize) {
    let mut status = 0;
    let mut spawn = |flags, body, argument| {
        if process::clone_into_kernel(&clone_args(flags), body, argument).is_err() {
            status = 1 << 8;
        }
    };
    spawn(0, child_execs, 0);
    if depth > 0 {
        spawn(clone::NEWPID, child_nests, depth - 1);
    }
    spawn(0, child_execs, 0);
    // Killed meanwhile, it may have been refused children; then its status is nobody's.
    process::do_group_exit(status)
}

/// A child's first and only act in the kernel; it then runs the program from its start, which exits.
extern "C" fn child_execs(_: usize) {
    if let Err(e) = exec_tiny() {
        process::do_group_exit((e.0 as i32 & 0xff) << 8);
    }
}
