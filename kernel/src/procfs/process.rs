//! /proc/PID: what is known of one process, or of one thread.
//!
//! Formats are those that proc_pid_stat(5) and its neighbours describe; what this kernel does not count is 0. A process
//! that has ended and was not reaped has numbers and a name, and no memory, files or links.

use super::{ProcNode, process_of, runtime_of, start_time, task_of, ticks};
use crate::sched::runtime_ns;
use ::task::signal::SigSet;
use ::task::{Process, Task, TaskPid};
use core::sync::atomic::Ordering::Relaxed;
use ksync::{CpuMask, PAGE_SIZE};
use mm::{MmUser, RssKind, VmFlags, VmaInfo};
use slab::KArc;
use vfs::{Dentry, File, Listing, S_IFDIR, S_IFLNK, S_IFREG, SynthTarget, Text, VfsError};

/// What is in a process's directory.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum ProcessFile {
    /// The directory itself.
    Dir,
    Task,
    Fd,
    Stat,
    Statm,
    Status,
    Comm,
    Cmdline,
    Environ,
    Maps,
    Rmap,
    Mounts,
    MountInfo,
    Limits,
    Wchan,
    OomScore,
    OomScoreAdj,
    Cgroup,
    Children,
    Exe,
    Cwd,
    Root,
}

/// Name, file, type and permissions.
const FILES: &[(&str, ProcessFile, u32)] = &[
    ("task", ProcessFile::Task, S_IFDIR | 0o555),
    ("fd", ProcessFile::Fd, S_IFDIR | 0o500),
    ("environ", ProcessFile::Environ, S_IFREG | 0o400),
    ("status", ProcessFile::Status, S_IFREG | 0o444),
    ("comm", ProcessFile::Comm, S_IFREG | 0o644),
    ("cmdline", ProcessFile::Cmdline, S_IFREG | 0o444),
    ("stat", ProcessFile::Stat, S_IFREG | 0o444),
    ("statm", ProcessFile::Statm, S_IFREG | 0o444),
    ("maps", ProcessFile::Maps, S_IFREG | 0o444),
    ("rmap", ProcessFile::Rmap, S_IFREG | 0o444),
    ("cwd", ProcessFile::Cwd, S_IFLNK | 0o777),
    ("root", ProcessFile::Root, S_IFLNK | 0o777),
    ("exe", ProcessFile::Exe, S_IFLNK | 0o777),
    ("mounts", ProcessFile::Mounts, S_IFREG | 0o444),
    ("mountinfo", ProcessFile::MountInfo, S_IFREG | 0o444),
    ("limits", ProcessFile::Limits, S_IFREG | 0o444),
    ("wchan", ProcessFile::Wchan, S_IFREG | 0o444),
    ("oom_score", ProcessFile::OomScore, S_IFREG | 0o444),
    ("oom_score_adj", ProcessFile::OomScoreAdj, S_IFREG | 0o644),
    ("cgroup", ProcessFile::Cgroup, S_IFREG | 0o444),
    ("children", ProcessFile::Children, S_IFREG | 0o444),
];

impl ProcessFile {
    /// The file of that name; a thread has no threads.
    pub fn by_name(name: &[u8], thread: bool) -> Option<Self> {
        let (_, file, _) = FILES.iter().find(|f| f.0.as_bytes() == name)?;
        Some(*file).filter(|f| f.is_in(thread))
    }

    /// Whether a process's directory has it, or a thread's.
    fn is_in(self, thread: bool) -> bool {
        match self {
            ProcessFile::Task => !thread,
            ProcessFile::Children => thread,
            _ => true,
        }
    }

    /// Type and permission bits.
    pub fn mode(self) -> u32 {
        let found = FILES.iter().find(|f| f.1 == self);
        found.map_or(S_IFDIR | 0o555, |f| f.2)
    }
}

/// The inode number of a file of the process with number `nr`.
pub fn ino(nr: u32, file: ProcessFile, thread: bool) -> u64 {
    (nr as u64) << 8 | (thread as u64) << 7 | 64 | file as u64
}

/// Lists a process's directory.
pub fn list_dir(
    node: &ProcNode,
    pid: &TaskPid,
    thread: bool,
    from: u64,
    out: &mut Listing<'_>,
) -> Result<(), VfsError> {
    task_of(pid).map_err(|_| VfsError::ENOENT)?;
    let nr = node.number(pid);
    for (&(name, file, mode), at) in FILES.iter().zip(2..).skip(from as usize - 2) {
        if file.is_in(thread) && !out.put(ino(nr, file, thread), at + 1, mode, name.as_bytes()) {
            break;
        }
    }
    Ok(())
}

/// Lists the threads of a process in the order of their numbers; the position is the number and 2.
pub fn list_threads(
    node: &ProcNode,
    pid: &TaskPid,
    from: u64,
    out: &mut Listing<'_>,
) -> Result<(), VfsError> {
    let process = process_of(pid).ok_or(VfsError::ENOENT)?;
    let mut at = from as u32 - 2;
    loop {
        // Threads are in no order: a batch of the lowest numbers, a look at all of them for each.
        let (mut batch, mut nr) = ([u32::MAX; 32], 0);
        for thread in process.lock.lock().threads.iter() {
            let tid = node.number(thread.pid());
            if tid < at || tid == 0 || tid >= batch[31] {
                continue;
            }
            let place = batch[..nr].partition_point(|&t| t < tid);
            batch.copy_within(place..31, place + 1);
            batch[place] = tid;
            nr = (nr + 1).min(32);
        }
        for &tid in &batch[..nr] {
            let mut digits = [0; 20];
            let from = vfs::decimal(tid as u64, &mut digits);
            let ino = ino(tid, ProcessFile::Dir, true);
            if !out.put(ino, tid as u64 + 3, S_IFDIR, &digits[from..]) {
                return Ok(());
            }
            at = tid + 1;
        }
        if nr < 32 {
            return Ok(());
        }
    }
}

/// Lists the open descriptors of a process; the position is the number and 2.
pub fn list_fds(
    node: &ProcNode,
    pid: &TaskPid,
    from: u64,
    out: &mut Listing<'_>,
) -> Result<(), VfsError> {
    let files = task_of(pid)
        .map_err(|_| VfsError::ENOENT)?
        .files
        .lock()
        .clone();
    let Some(files) = files else { return Ok(()) };
    let mut fd = from as u32 - 2;
    while let Some((found, _)) = files.next_open(fd) {
        let mut digits = [0; 20];
        let from = vfs::decimal(found as u64, &mut digits);
        let ino = 1 << 59 | (node.number(pid) as u64) << 24 | found as u64;
        if !out.put(ino, found as u64 + 3, S_IFLNK, &digits[from..]) {
            break;
        }
        fd = found + 1;
    }
    Ok(())
}

/// The open file behind a descriptor. ENOENT.
pub fn file_at(pid: &TaskPid, fd: u32) -> Result<KArc<File>, VfsError> {
    let files = task_of(pid)
        .map_err(|_| VfsError::ENOENT)?
        .files
        .lock()
        .clone();
    let files = files.ok_or(VfsError::ENOENT)?;
    files.get_raw(fd as i32).map_err(|_| VfsError::ENOENT)
}

/// Where a process's links lead. ENOENT: it has ended, or its program's file has no name any more.
pub fn target(pid: &TaskPid, file: ProcessFile) -> Result<SynthTarget, VfsError> {
    let task = task_of(pid).map_err(|_| VfsError::ENOENT)?;
    let dentry: Option<KArc<Dentry>> = match file {
        ProcessFile::Exe => {
            let exe = task.mm.lock().as_ref().and_then(|mm| mm.exe());
            exe.and_then(|space| vfs::name_of(&space))
        }
        ProcessFile::Cwd => task.fs.lock().as_ref().map(|fs| fs.get_cwd()),
        ProcessFile::Root => task.fs.lock().as_ref().map(|fs| fs.get_root()),
        _ => None,
    };
    dentry.map(SynthTarget::Dentry).ok_or(VfsError::ENOENT)
}

/// Makes a file's text. ESRCH: the process is gone.
pub fn read(
    node: &ProcNode,
    pid: &TaskPid,
    thread: bool,
    file: ProcessFile,
    text: &mut Text<'_>,
) -> Result<(), VfsError> {
    let task = task_of(pid)?;
    match file {
        ProcessFile::Stat => stat(node, pid, &task, thread, text),
        ProcessFile::Statm => statm(&task, text),
        ProcessFile::Status => status(node, pid, &task, text),
        ProcessFile::Comm => {
            let (comm, len) = task.comm_bytes();
            text.put(&comm[..len]).str("\n");
        }
        ProcessFile::Cmdline => strings(&task, false, text),
        ProcessFile::Environ => strings(&task, true, text),
        ProcessFile::Maps => maps(&task, text),
        ProcessFile::Rmap => super::rmap::rmap(node, &task, text)?,
        ProcessFile::Mounts => super::system::mounts(text)?,
        ProcessFile::MountInfo => super::system::mountinfo(text)?,
        ProcessFile::Limits => crate::syscall::limits_text(&task.process, text),
        ProcessFile::Wchan => _ = text.str("0"),
        ProcessFile::OomScore | ProcessFile::OomScoreAdj => _ = text.str("0\n"),
        ProcessFile::Cgroup => _ = text.str("0::/\n"),
        ProcessFile::Children => children(node, &task.process, text),
        ProcessFile::Dir | ProcessFile::Task | ProcessFile::Fd => return Err(VfsError::EISDIR),
        ProcessFile::Exe | ProcessFile::Cwd | ProcessFile::Root => return Err(VfsError::EINVAL),
    }
    Ok(())
}

/// The letter and the word for what a thread does.
fn state_of(task: &Task) -> (u8, &'static str) {
    let (zombie, stopped) = {
        let state = task.process.lock.lock();
        (state.is_zombie(), state.stopped)
    };
    if zombie || task.has_flag(::task::task::flags::EXITING) && task.mm.lock().is_none() {
        (b'Z', "zombie")
    } else if stopped {
        (b'T', "stopped")
    } else if task.entity.is_parked() {
        (b'S', "sleeping")
    } else {
        (b'R', "running")
    }
}

/// What of a process is under its lock.
struct Numbers {
    parent: u32,
    pgrp: u32,
    session: u32,
    /// Of its terminal, if it has one: the foreground group.
    foreground: Option<u32>,
    nr_threads: usize,
    reaped_ns: u64,
    shared_pending: SigSet,
}

fn numbers(node: &ProcNode, process: &Process) -> Numbers {
    let parent = process.parent().map_or(0, |p| node.number(&p.pid));
    let session = process.lock.lock().session.clone();
    let foreground = crate::tty::owner_of(&session).map(|g| g.map_or(0, |g| node.number(&g)));
    let state = process.lock.lock();
    Numbers {
        parent,
        foreground,
        pgrp: node.number(&state.pgrp),
        session: node.number(&state.session),
        nr_threads: state.threads.len().max(1),
        reaped_ns: state.reaped_children_ns,
        shared_pending: state.pending.set(),
    }
}

/// Ignored and caught signals.
fn dispositions(process: &Process) -> (SigSet, SigSet) {
    let sighand = process.sighand().clone();
    sighand.dispositions()
}

fn stat(node: &ProcNode, pid: &TaskPid, task: &Task, thread: bool, text: &mut Text<'_>) {
    let process = &task.process;
    let n = numbers(node, process);
    let used = if thread {
        runtime_ns(task)
    } else {
        runtime_of(process)
    };
    let (ignored, caught) = dispositions(process);
    let mm = task.mm_user();
    let (layout, total_vm, start_brk) = mm.as_ref().map(|mm| mm.summary()).unwrap_or_default();
    let vsize = total_vm * PAGE_SIZE;
    let rss = mm.as_ref().map_or(0, |mm| mm.rss().total().max(0));
    let kthread = task.has_flag(::task::task::flags::KTHREAD);
    let (comm, len) = task.comm_bytes();
    text.dec(node.number(pid) as u64).str(" (");
    text.put(&comm[..len]).str(") ").put(&[state_of(task).0]);
    let mut field = |value: u64| _ = text.field(value);
    field(n.parent as u64);
    field(n.pgrp as u64);
    field(n.session as u64);
    match n.foreground {
        None => text.str(" 0 -1"),
        Some(foreground) => text.str(" 1088 ").dec(foreground as u64), // /dev/ttyS0
    };
    let mut field = |value: u64| _ = text.field(value);
    field(if kthread { 0x20_0000 } else { 0x40_0000 }); // flags: PF_KTHREAD, PF_RANDOMIZE
    (0..4).for_each(|_| field(0)); // faults
    field(ticks(used));
    field(0); // stime
    field(ticks(n.reaped_ns));
    field(0); // cstime
    field(20); // priority
    field(0); // nice
    field(n.nr_threads as u64);
    field(0); // itrealvalue
    field(ticks(start_time(process)));
    field(vsize as u64);
    field(rss as u64);
    field(u64::MAX); // rsslim
    field(layout.start_code as u64);
    field(layout.end_code as u64);
    field(layout.start_stack as u64);
    (0..2).for_each(|_| field(0)); // kstkesp, kstkeip
    field(task.pending.lock().set());
    field(task.blocked.load(Relaxed));
    field(ignored);
    field(caught);
    (0..3).for_each(|_| field(0)); // wchan, nswap, cnswap
    field(process.exit_signal.load(Relaxed) as u64);
    field(task.entity.cpu() as u64);
    (0..5).for_each(|_| field(0)); // rt_priority, policy, delayacct_blkio_ticks, guest times
    field(layout.end_code as u64); // start_data
    field(start_brk as u64); // end_data
    field(start_brk as u64);
    field(layout.arg_start as u64);
    field(layout.arg_end as u64);
    field(layout.arg_end as u64);
    field(layout.env_end as u64);
    field(process.lock.lock().exit_status as u64);
    text.str("\n");
}

/// Bytes mapped, pages resident.
fn sizes(mm: &MmUser) -> (usize, usize) {
    (mm.total_vm() * PAGE_SIZE, mm.rss().total().max(0) as usize)
}

fn statm(task: &Task, text: &mut Text<'_>) {
    let Some(mm) = task.mm_user() else {
        text.str("0 0 0 0 0 0 0\n");
        return;
    };
    let (vsize, rss) = sizes(&mm);
    let layout = mm.layout();
    let shared = mm.rss().of_kind(RssKind::File) + mm.rss().of_kind(RssKind::Shmem);
    text.dec((vsize / PAGE_SIZE) as u64)
        .str(" ")
        .dec(rss as u64)
        .str(" ");
    text.dec(shared.max(0) as u64).str(" ");
    text.dec(((layout.end_code - layout.start_code) / PAGE_SIZE) as u64);
    text.str(" 0 ").dec((vsize / PAGE_SIZE) as u64).str(" 0\n");
}

fn status(node: &ProcNode, pid: &TaskPid, task: &Task, text: &mut Text<'_>) {
    let process = &task.process;
    let n = numbers(node, process);
    let (letter, word) = state_of(task);
    let (comm, len) = task.comm_bytes();
    text.str("Name:\t").put(&comm[..len]);
    if let Some(fs) = &*task.fs.lock() {
        let mask = fs.umask();
        text.str("\nUmask:\t0");
        for shift in [6, 3, 0] {
            text.dec((mask >> shift & 7) as u64);
        }
    }
    text.str("\nState:\t")
        .put(&[letter])
        .str(" (")
        .str(word)
        .str(")\nTgid:\t")
        .dec(node.number(&process.pid) as u64);
    text.str("\nNgid:\t0\nPid:\t")
        .dec(node.number(pid) as u64)
        .str("\nPPid:\t")
        .dec(n.parent as u64);
    text.str("\nTracerPid:\t0\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nFDSize:\t64\nGroups:\t0 ");
    let (pgrp, session) = {
        let state = process.lock.lock();
        (state.pgrp.clone(), state.session.clone())
    };
    for (name, of) in [
        ("\nNStgid:", &*process.pid),
        ("\nNSpid:", pid),
        ("\nNSpgid:", &*pgrp),
        ("\nNSsid:", &*session),
    ] {
        text.str(name);
        // From the mount's namespace inward.
        for level in node.ns.level()..=of.level() {
            text.str("\t").dec(of.nr_at(level) as u64);
        }
    }
    if let Some(mm) = task.mm_user() {
        memory_status(&mm, text);
    }
    let (ignored, caught) = dispositions(process);
    text.str("\nThreads:\t").dec(n.nr_threads as u64);
    text.str("\nSigQ:\t0/0");
    for (name, set) in [
        ("\nSigPnd:\t", task.pending.lock().set()),
        ("\nShdPnd:\t", n.shared_pending),
        ("\nSigBlk:\t", task.blocked.load(Relaxed)),
        ("\nSigIgn:\t", ignored),
        ("\nSigCgt:\t", caught),
        ("\nCapInh:\t", 0),
        ("\nCapPrm:\t", (1 << 41) - 1),
        ("\nCapEff:\t", (1 << 41) - 1),
        ("\nCapBnd:\t", (1 << 41) - 1),
        ("\nCapAmb:\t", 0),
    ] {
        text.str(name).hex(set, 16);
    }
    text.str("\nNoNewPrivs:\t0\nSeccomp:\t0\nCpus_allowed_list:\t");
    cpu_list(task, text);
    text.str("\nvoluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n");
}

fn memory_status(mm: &MmUser, text: &mut Text<'_>) {
    let (vsize, rss) = sizes(mm);
    let kib = |pages: isize| (pages.max(0) as usize * PAGE_SIZE / 1024) as u64;
    let layout = mm.layout();
    for (name, value) in [
        ("\nVmPeak:\t", vsize as u64 / 1024),
        ("\nVmSize:\t", vsize as u64 / 1024),
        ("\nVmLck:\t", 0),
        ("\nVmPin:\t", 0),
        ("\nVmHWM:\t", kib(rss as isize)),
        ("\nVmRSS:\t", kib(rss as isize)),
        ("\nRssAnon:\t", kib(mm.rss().of_kind(RssKind::Anon))),
        ("\nRssFile:\t", kib(mm.rss().of_kind(RssKind::File))),
        ("\nRssShmem:\t", kib(mm.rss().of_kind(RssKind::Shmem))),
        ("\nVmData:\t", vsize as u64 / 1024),
        ("\nVmStk:\t", 132),
        (
            "\nVmExe:\t",
            (layout.end_code - layout.start_code) as u64 / 1024,
        ),
        ("\nVmLib:\t", 0),
        ("\nVmPTE:\t", kib(mm.nr_tables() as isize)),
        ("\nVmSwap:\t", 0),
    ] {
        text.str(name).dec_wide(value, 8).str(" kB");
    }
}

/// The CPUs that a thread may run on, as ranges.
fn cpu_list(task: &Task, text: &mut Text<'_>) {
    let nr = crate::arch::smp::nr_online();
    let allowed = CpuMask::new();
    (0..nr)
        .filter(|&cpu| task.entity.may_run_on(cpu))
        .for_each(|cpu| allowed.set(cpu));
    let (mut cpu, mut first) = (0, true);
    while cpu < nr {
        if !allowed.test(cpu) {
            cpu += 1;
            continue;
        }
        let start = cpu;
        while cpu < nr && allowed.test(cpu) {
            cpu += 1;
        }
        text.str(if first { "" } else { "," }).dec(start as u64);
        if cpu - start > 1 {
            text.str("-").dec(cpu as u64 - 1);
        }
        first = false;
    }
}

/// Arguments or environment, from where exec put them in the program's memory.
fn strings(task: &Task, environment: bool, text: &mut Text<'_>) {
    let Some(mm) = task.mm_user() else { return };
    let layout = mm.layout();
    let (start, end) = if environment {
        (layout.arg_end, layout.env_end)
    } else {
        (layout.arg_start, layout.arg_end)
    };
    let mut at = start + text.start_key() as usize;
    let mut chunk = [0; 256];
    while at < end && text.record((at - start) as u64) {
        let n = (end - at).min(chunk.len());
        // The program may have unmapped its stack: then there is nothing to show.
        if mm.read_remote(at, &mut chunk[..n]).is_err() {
            break;
        }
        text.put(&chunk[..n]);
        at += n;
    }
}

fn maps(task: &Task, text: &mut Text<'_>) {
    let Some(mm) = task.mm_user() else { return };
    let start_brk = mm.start_brk();
    let mut path = [0; 256];
    mm.for_each_vma_from(text.start_key() as usize, |vma| {
        let more = text.record(vma.start as u64);
        if more {
            map_line(vma, start_brk, &mut path, text);
        }
        more
    });
}

fn map_line(vma: &VmaInfo, start_brk: usize, path: &mut [u8], text: &mut Text<'_>) {
    let flag = |flag, letter| {
        if vma.flags.contains(flag) {
            letter
        } else {
            b'-'
        }
    };
    let shared = if vma.flags.contains(VmFlags::SHARED) {
        b's'
    } else {
        b'p'
    };
    text.hex(vma.start as u64, 8)
        .str("-")
        .hex(vma.end as u64, 8)
        .put(&[
            b' ',
            flag(VmFlags::READ, b'r'),
            flag(VmFlags::WRITE, b'w'),
            flag(VmFlags::EXEC, b'x'),
            shared,
            b' ',
        ]);
    let Some((space, page)) = &vma.file else {
        text.str("00000000 00:00 0 ");
        if vma.flags.contains(VmFlags::STACK) {
            text.str("                         [stack]");
        } else if vma.start <= start_brk && start_brk < vma.end {
            text.str("                         [heap]");
        }
        text.str("\n");
        return;
    };
    text.hex(page * PAGE_SIZE as u64, 8);
    let dentry = vfs::name_of(space);
    let ino = dentry.as_ref().map_or(0, |d| d.inode().ino());
    text.str(" 00:01 ").dec(ino).str(" ");
    // The name begins in column 74, as on Linux, where numbers have up to 20 digits.
    let digits = 20 - vfs::decimal(ino, &mut [0; 20]);
    text.str(&"                     "[digits..]);
    let named = dentry.and_then(|d| {
        let fs = crate::sched::current_ref().fs.lock().clone()?;
        vfs::d_path(&d, &fs.get_root(), path)
            .ok()
            .map(|p| _ = text.put(p))
    });
    if named.is_none() {
        text.str("/").put(space.name()).str(" (deleted)");
    }
    text.str("\n");
}

/// The numbers of a process's children, which its first thread has.
fn children(node: &ProcNode, process: &Process, text: &mut Text<'_>) {
    let state = process.lock.lock();
    for child in state.children.iter().chain(state.zombies.iter()) {
        text.dec(node.number(&child.pid) as u64).str(" ");
    }
}
