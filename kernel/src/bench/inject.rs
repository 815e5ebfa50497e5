//! Every allocation of an operation fails once: the caller gets the right errno and nothing is lost.
//!
//! # Mechanism
//! An operation runs with its 1st, 2nd, ... allocation failing, until it succeeds without reaching the failure: so each of
//! its allocation sites has failed. After each run the address space is checked against its page tables; after all of
//! them, what is in use is compared with before. Operations are system calls of a small program (see [`Tiny`]), and put
//! things back as they were with injection off.

use super::leak;
use super::tiny::{Tiny, reap_one};
use crate::arch::uaccess::put_user;
use crate::errno::Errno;
use crate::sched::{current, current_ref};
use page_alloc::fault_inject;
use task::fork::clone;

/// Sites per operation beyond which something is wrong with the test itself.
const MAX_SITES: u32 = 2_000;
/// Pid namespaces below the first: deep enough that numbers need an allocation of their own.
const DEPTH: usize = 6;
const PAGE: usize = 4096;

/// Numbers of system calls.
mod nr {
    pub const MMAP: usize = 9;
    pub const MPROTECT: usize = 10;
    pub const MUNMAP: usize = 11;
    pub const BRK: usize = 12;
    pub const MREMAP: usize = 25;
    pub const VFORK: usize = 58;
    pub const KILL: usize = 62;
    pub const OPEN: usize = 2;
    pub const CLOSE: usize = 3;
    pub const UNSHARE: usize = 272;
    pub const CLONE3: usize = 435;
}

const RW: usize = 3;
const PRIVATE: usize = 0x22;
const SHARED: usize = 0x21;
const FIXED: usize = 0x10;
/// Where the program has no page tables.
const FAR: usize = 0x20_0000_0000;

/// An operation, what it is called, and what it answers when memory is short.
struct Operation {
    name: &'static str,
    run: fn(&Tiny) -> Result<(), Errno>,
    errnos: &'static [Errno],
    /// It must allocate nothing at all.
    needs_none: bool,
}

const fn op(name: &'static str, run: fn(&Tiny) -> Result<(), Errno>) -> Operation {
    Operation {
        name,
        run,
        errnos: &[Errno::ENOMEM],
        needs_none: false,
    }
}

/// One whose failure may also be the kernel's copy to the program's memory, which is EFAULT as on Linux.
const fn copying(name: &'static str, run: fn(&Tiny) -> Result<(), Errno>) -> Operation {
    Operation {
        errnos: &[Errno::ENOMEM, Errno::EFAULT],
        ..op(name, run)
    }
}

const OPERATIONS: [Operation; 21] = [
    op("fork", Tiny::fork),
    op("vfork", |t| child(t.call(nr::VFORK, [0; 6]))),
    op("exec", Tiny::exec),
    op("exec_long_path", exec_long_path),
    op("thread", Tiny::thread),
    copying("clone_pidfd", |t| {
        let at = t.scratch() + 256;
        child(clone3(t, clone::PIDFD, at, 0))?;
        let fd = crate::arch::uaccess::get_user::<u32>(at)? as usize;
        unarmed(|| t.call(nr::CLOSE, [fd, 0, 0, 0, 0, 0])).map(drop)
    }),
    op("clone_newpid", |t| child(clone3(t, clone::NEWPID, 0, 0))),
    op("clone_set_tid", |t| child(clone3(t, clone::NEWPID, 0, 1))),
    op("clone_deep", clone_deep),
    op("unshare", unshare),
    op("mmap_anonymous", |t| {
        map(t, 0, PRIVATE, 0).map(|at| unmap(t, at, 8))
    }),
    op("mmap_shared", |t| {
        map(t, 0, SHARED, 0).map(|at| unmap(t, at, 8))
    }),
    op("mmap_file", mmap_file),
    op("mmap_into_the_middle", |t| {
        in_eight_pages(t, |at| {
            t.call(
                nr::MMAP,
                [at + 2 * PAGE, 2 * PAGE, 1, PRIVATE | FIXED, 0, 0],
            )
        })
    }),
    op("munmap_the_middle", |t| {
        in_eight_pages(t, |at| {
            t.call(nr::MUNMAP, [at + 2 * PAGE, 2 * PAGE, 0, 0, 0, 0])
        })
    }),
    op("mprotect_the_middle", |t| {
        in_eight_pages(t, |at| {
            t.call(nr::MPROTECT, [at + 2 * PAGE, 2 * PAGE, 1, 0, 0, 0])
        })
    }),
    op("mremap", mremap),
    op("brk", brk),
    // Touched for the first time by a copy of the kernel's: a program would be killed.
    copying("page_fault", |t| {
        in_eight_pages(t, |at| Ok(put_user(at + 5 * PAGE, &1u64)?).map(|()| 0))
    }),
    copying("page_tables", |t| {
        let at = unarmed(|| map(t, FAR, PRIVATE, 0))?;
        let touched = put_user(at, &1u64);
        unmap(t, at, 8);
        Ok(touched?)
    }),
    Operation {
        needs_none: true,
        ..op("kill_group", |t| t.call(nr::KILL, [0; 6]).map(drop))
    },
];

/// Runs `f` with injection off, and puts the countdown back.
fn unarmed<R>(f: impl FnOnce() -> R) -> R {
    let left = fault_inject::fail_nth();
    fault_inject::set_fail_nth(0);
    let result = f();
    fault_inject::set_fail_nth(left);
    result
}

/// Waits for the child that a clone has made.
fn child(made: Result<usize, Errno>) -> Result<(), Errno> {
    made?;
    unarmed(reap_one)
}

fn clone3(t: &Tiny, flags: u64, pidfd: usize, set_tid: usize) -> Result<usize, Errno> {
    let (at, tids) = (t.scratch(), t.scratch() + 512);
    let mut words = [0u64; 11];
    (words[0], words[1], words[4]) = (flags, pidfd as u64, task::signal::SIGCHLD as u64);
    if set_tid != 0 {
        (words[8], words[9]) = (tids as u64, 1);
        put_user(tids, &(set_tid as u32))?;
    }
    for (i, word) in words.iter().enumerate() {
        put_user(at + 8 * i, word)?;
    }
    t.call(nr::CLONE3, [at, 88, 0, 0, 0, 0])
}

/// A child at the bottom of a chain of new pid namespaces.
fn clone_deep(t: &Tiny) -> Result<(), Errno> {
    let own = current_ref().pid_ns_for_children.lock().clone();
    let made = (0..DEPTH).try_for_each(|_| {
        let parent = current_ref().pid_ns_for_children.lock().clone();
        let new = task::NsRef::new(&task::pids::new_namespace(&parent)?);
        let old = core::mem::replace(&mut *current_ref().pid_ns_for_children.lock(), new);
        drop(old);
        Ok::<_, Errno>(())
    });
    let result = made.and_then(|()| t.fork());
    let deep = core::mem::replace(&mut *current_ref().pid_ns_for_children.lock(), own);
    drop(deep);
    result
}

fn unshare(t: &Tiny) -> Result<(), Errno> {
    let own = current_ref().pid_ns_for_children.lock().clone();
    let result = t
        .call(
            nr::UNSHARE,
            [(clone::FILES | clone::FS) as usize, 0, 0, 0, 0, 0],
        )
        .and_then(|_| t.call(nr::UNSHARE, [clone::NEWPID as usize, 0, 0, 0, 0, 0]));
    let new = core::mem::replace(&mut *current_ref().pid_ns_for_children.lock(), own);
    drop(new);
    result.map(drop)
}

/// A path that does not fit on the stack.
fn exec_long_path(_: &Tiny) -> Result<(), Errno> {
    let mut args = task::exec::ExecArgs::new();
    for _ in 0..40 {
        args.push_arg(&[b'x'; 200])?;
    }
    crate::process::kernel_execve(
        b"/bin/./././././././././././././././././././././././././././tiny",
        args,
    )
}

fn map(t: &Tiny, at: usize, flags: usize, fd: usize) -> Result<usize, Errno> {
    t.call(nr::MMAP, [at, 8 * PAGE, RW, flags, fd, 0])
}

fn unmap(t: &Tiny, at: usize, pages: usize) {
    unarmed(|| t.call(nr::MUNMAP, [at, pages * PAGE, 0, 0, 0, 0])).expect("munmap of a whole area");
}

fn mmap_file(t: &Tiny) -> Result<(), Errno> {
    put_user(t.scratch(), b"/bin/tin")?;
    put_user(t.scratch() + 8, &(b'y' as u64))?;
    let fd = t.call(nr::OPEN, [t.scratch(), 0, 0, 0, 0, 0])?;
    let mapped = t.call(nr::MMAP, [0, PAGE, 1, 2, fd, 0]);
    unarmed(|| t.call(nr::CLOSE, [fd, 0, 0, 0, 0, 0]))?;
    unmap(t, mapped?, 1);
    Ok(())
}

/// `f` with the address of eight pages of memory, of which every other has been touched; afterwards they are gone.
fn in_eight_pages(t: &Tiny, f: impl FnOnce(usize) -> Result<usize, Errno>) -> Result<(), Errno> {
    let at = unarmed(|| {
        let at = map(t, 0, PRIVATE, 0)?;
        (0..8)
            .step_by(2)
            .try_for_each(|i| put_user(at + i * PAGE, &i))?;
        Ok::<_, Errno>(at)
    })?;
    let result = f(at);
    unmap(t, at, 8);
    result.map(drop)
}

fn mremap(t: &Tiny) -> Result<(), Errno> {
    const MAYMOVE: usize = 1;
    let at = unarmed(|| map(t, 0, PRIVATE, 0))?;
    unarmed(|| put_user(at, &1u64))?;
    // The middle of an area, made larger: it must move, and leaves two pieces.
    let moved = t.call(
        nr::MREMAP,
        [at + 2 * PAGE, 2 * PAGE, 16 * PAGE, MAYMOVE, 0, 0],
    );
    if let Ok(to) = moved {
        unmap(t, to, 16);
    }
    unmap(t, at, 8);
    moved.map(drop)
}

fn brk(t: &Tiny) -> Result<(), Errno> {
    let call = |to| t.call(nr::BRK, [to, 0, 0, 0, 0, 0]);
    let now = call(0)?;
    if call(now + 4 * PAGE)? == now {
        return Err(Errno::ENOMEM); // its way of saying so
    }
    unarmed(|| call(now)).map(drop)
}

/// What the address space says must be what its page tables hold.
fn check_mm() {
    current_ref()
        .mm_user()
        .expect("a program")
        .check_invariants();
}

/// Fails each allocation of `operation` in turn. Returns the number of sites, and whether all was well.
fn sweep(operation: &Operation, tiny: &Tiny) -> (u32, bool) {
    let name = operation.name;
    let (mut sites, mut good) = (0, true);
    for nth in 1..MAX_SITES {
        fault_inject::set_fail_nth(nth);
        let result = (operation.run)(tiny);
        let reached = fault_inject::fail_nth() == 0;
        fault_inject::set_fail_nth(0);
        check_mm();
        match result {
            Ok(()) if !reached => return (sites, good),
            Ok(()) => {} // an allocation whose failure is absorbed
            Err(e) if reached && operation.errnos.contains(&e) => {}
            Err(e) => {
                println!("fault-inject {name}: allocation {nth} failed with {e}");
                good = false;
            }
        }
        sites = nth;
    }
    println!("fault-inject {name}: no end of allocations");
    (sites, false)
}

/// Runs every operation with each of its allocations failing in turn. Ends the machine.
pub fn run() -> ! {
    // All on one CPU, children too: what moves with a thread from node to node would look like a leak.
    let here = ksync::CpuMask::new();
    here.set(0);
    crate::syscall::set_affinity(&current(), &here);
    let (mut failed, mut total) = (false, 0);
    let (mut before, mut after) = (leak::Snapshot::new(), leak::Snapshot::new());
    for operation in &OPERATIONS {
        let name = operation.name;
        let tiny = Tiny::new();
        // Twice: what is made once, and stays, is no leak.
        for _ in 0..2 {
            (operation.run)(&tiny).unwrap_or_else(|e| panic!("{name} without injection: {e}"));
        }
        before.take();
        let (sites, good) = sweep(operation, &tiny);
        after.take();
        let leaks = before.compare(&after);
        for l in &leaks {
            println!(
                "fault-inject {name}: {}: {} before, {} after",
                l.what, l.before, l.after
            );
        }
        failed |= !good || !leaks.is_empty() || (sites == 0) != operation.needs_none;
        total += sites;
        println!("fault-inject {name}: {sites} allocations failed in turn");
    }
    println!(
        "fault-inject: {total} allocations in {} operations, {}",
        OPERATIONS.len(),
        if failed {
            "FAILED"
        } else {
            "the right errno each time, nothing lost"
        }
    );
    crate::power::off(failed as i32)
}
