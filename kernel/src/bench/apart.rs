//! `bench=apart`: forkers that have nothing to do with each other: fork, exit, wait.
//!
//! Each worker is the first process of a pid namespace and of a session of its own, has a program file, a root and
//! descriptors of its own, and stays on its CPU. What two of them still share is the kernel's doing: under simulation
//! `cargo xtask qemu --conflicts` lists the lines of memory, and a scenario says which are allowed. `plant=` adds one
//! that is not, to see that it is found.

use super::{Benchmark, tiny, tiny::Tiny};
use crate::errno::Errno;
use crate::params::{self, PlantWord};
use crate::sched::{current, current_ref};
use alloc::format;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use task::fork::clone;
use task::pids;
use vfs::{At, Files, FsStruct, OpenFlags, VfsError};

/// What should not be: all forkers of the machine count here.
static PLANTED_COUNTER: AtomicU64 = AtomicU64::new(0);

/// The benchmark.
pub struct Apart {
    planted: bool,
    /// The program that each worker copies.
    program: Vec<u8>,
}

fn program() -> Result<Vec<u8>, VfsError> {
    let fs = current().fs.lock().clone().ok_or(VfsError::ENOENT)?;
    let file = vfs::open(At::cwd(&fs), b"/bin/tiny", OpenFlags::empty(), 0)?;
    let mut bytes = alloc::vec![0; file.stat().size as usize];
    file.read(&mut bytes.as_mut_slice())?;
    Ok(bytes)
}

/// A file system of one program, in which the running thread is from now on, with nothing open.
fn move_out(program: &[u8], path: &[u8]) -> Result<(), VfsError> {
    let fs = FsStruct::new(&vfs::new_ramfs(true)?)?;
    let file = vfs::open(At::cwd(&fs), path, OpenFlags::WRONLY | OpenFlags::CREAT, 0o755)?;
    file.write(&mut &*program)?;
    let me = current_ref();
    let old = (me.fs.lock().replace(fs), me.files.lock().replace(Files::new()?));
    drop(old);
    Ok(())
}

impl Benchmark for Apart {
    type Worker = Tiny;
    const WORKER_FLAGS: u64 = clone::NEWPID;

    fn new(_workers: usize) -> Self {
        let planted = params::get().plant == Some(PlantWord::SharedCounter);
        Apart { planted, program: program().expect("/bin/tiny in the initramfs") }
    }

    fn worker(&self, index: usize) -> Tiny {
        let path = format!("/tiny-{index}");
        move_out(&self.program, path.as_bytes()).expect("memory for a file system");
        pids::new_session(&current_ref().process).expect("a process that leads no group");
        tiny::exec(path.as_bytes()).expect("the program that was just written");
        Tiny::running()
    }

    fn operation(&self, worker: &mut Tiny) -> Result<(), Errno> {
        if self.planted {
            PLANTED_COUNTER.fetch_add(1, Relaxed);
        }
        worker.fork()
    }
}
