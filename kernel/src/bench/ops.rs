//! One operation of each benchmark, as a worker runs it.

use crate::arch::PtRegs;
use crate::errno::Errno;
use crate::params::BenchWord;
use crate::process::{self, CloneRegs};
use crate::sched::{self, current, current_ref};
use task::exec::ExecArgs;
use task::fork::{CloneArgs, clone};
use task::signal::SIGCHLD;
use task::wait::{self, Which, options};

const TINY: &[u8] = b"/bin/tiny";

/// A worker's operation and what it needs.
pub struct Op {
    word: BenchWord,
    /// Registers with which a child starts in user mode: the program's entry.
    regs: PtRegs,
    random: u64,
}

impl Op {
    /// Turns the running kernel thread into a process with the program's address space.
    pub fn new(word: BenchWord, seed: u64) -> Op {
        exec_tiny().expect("/bin/tiny in the initramfs");
        // SAFETY: the running thread's own registers, which the exec just wrote.
        let regs = unsafe { *crate::arch::thread::pt_regs(&current_ref().arch) };
        Op { word, regs, random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// Runs one operation.
    pub fn run(&mut self, _nr: u64) -> Result<(), Errno> {
        match self.word {
            BenchWord::Fork => self.fork(),
            BenchWord::Exec => exec_tiny(),
            BenchWord::ForkExec => self.fork_exec(),
            BenchWord::Thread => self.thread(),
            BenchWord::Storm => self.storm(),
        }
    }

    fn clone_args(flags: u64) -> CloneArgs<'static> {
        CloneArgs { flags, exit_signal: SIGCHLD, cpu: sched::likely_cpu(), ..Default::default() }
    }

    fn fork(&self) -> Result<(), Errno> {
        process::kernel_clone(&Self::clone_args(0), &self.regs, &CloneRegs::default())?;
        reap_one()
    }

    fn fork_exec(&self) -> Result<(), Errno> {
        process::clone_into_kernel(&Self::clone_args(0), child_execs, 0)?;
        reap_one()
    }

    /// A thread whose only instruction is exit; it is joined when it has left the process.
    fn thread(&self) -> Result<(), Errno> {
        let flags = clone::VM | clone::FS | clone::FILES | clone::SIGHAND | clone::THREAD | clone::SYSVSEM;
        let mut args = Self::clone_args(flags);
        args.exit_signal = 0;
        process::kernel_clone(&args, &self.regs, &CloneRegs { stack: self.regs.rsp as usize - 4096, ..Default::default() })?;
        let process = &current_ref().process;
        process.wait_chldexit.wait_until(|| process.lock.lock().threads.len() == 1);
        Ok(())
    }

    /// A random mix: one to four children that exit or exec, a burst that is reaped late, a thread, an exec of one's own.
    fn storm(&mut self) -> Result<(), Errno> {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        match self.random % 16 {
            0..6 => self.fork(),
            6..10 => self.fork_exec(),
            10..13 => self.thread(),
            13 => exec_tiny(),
            _ => {
                let children = self.random / 16 % 4 + 1;
                for i in 0..children {
                    if i % 2 == 0 {
                        process::kernel_clone(&Self::clone_args(0), &self.regs, &CloneRegs::default())?;
                    } else {
                        process::clone_into_kernel(&Self::clone_args(0), child_execs, 0)?;
                    }
                }
                (0..children).try_for_each(|_| reap_one())
            }
        }
    }
}

fn reap_one() -> Result<(), Errno> {
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
    let mut args = ExecArgs::new();
    args.push_arg(TINY)?;
    process::kernel_execve(TINY, args)
}

/// A child's first and only act in the kernel; it then runs the program from its start, which exits.
extern "C" fn child_execs(_: usize) {
    if let Err(e) = exec_tiny() {
        process::do_group_exit((e.0 as i32 & 0xff) << 8);
    }
}
