//! procfs: processes as files.
//!
//! Problem: ps, top, pstree, kill by name and libc itself learn of processes by reading /proc, where 10,000 of them
//! must be listed without 10,000 inodes, and any of them may end between two steps of a reader.
//!
//! Mechanism: a node is a few words made by a look-up (`vfs::SynthNode`): what it is, the pid namespace of its mount,
//! and the pid, not the task. The pid is what a number stood for when it was looked up: however often the number is
//! given out again, the node never shows another process. Each read finds the pid's task anew; when there is none any
//! more the answer is ESRCH (of an open file) or ENOENT (of a name), as on Linux.
//!
//! ```text
//!   /proc             Root            pids from the namespace's map, in order; position 256 + number
//!     self            Link            text made at the look-up, for the caller
//!     meminfo, sys    Static          tables in `system` and `sysctl`
//!     123             Process         `process`
//!       stat, maps
//!       rmap          who maps the files that this process maps
//!       task/124      Process (of a thread)
//!       fd/5          Fd              leads to the open file itself
//! ```
//!
//! Numbers are those of the mount's namespace, so a process outside of it is not there at all.
//!
//! Lock order: look-ups run under RCU and take leaf spinlocks one at a time (a pid's lists, a task's fields). Reads hold
//! one lock at a time while they make text, and none while it is copied to the user; `maps` holds `mmap_lock` for read.

mod process;
mod rmap;
mod sysctl;
mod system;

use crate::sched::current_ref;
pub use system::{OS_RELEASE, VERSION};

use core::sync::atomic::Ordering::Relaxed;
use pid::{PidType, find_ge_pid, find_pid_ns, pid_nr_ns, visit_pids};
use process::ProcessFile;
use slab::KArc;
use task::{PidNamespace, Process, Task, TaskPid};
use vfs::{
    At, FsStruct, Listing, S_IFDIR, S_IFLNK, S_IFREG, SynthAttr, SynthHandle, SynthNode,
    SynthTarget, Text, VfsError, decimal,
};

/// Where the numbers of processes begin among the positions of the root's listing.
const FIRST_PID: u64 = 256;
const ROOT_INO: u64 = 1;

/// One file, directory or link.
pub struct ProcNode {
    /// Of the mount.
    ns: KArc<PidNamespace>,
    kind: Kind,
}
slab::object!(ProcNode, "proc_inode", links = 0);

enum Kind {
    Root,
    /// Machine-wide.
    Static(&'static Entry),
    /// "self" and its kin.
    Link(&'static Entry, LinkText),
    /// Something of a process, or of a thread below its process's "task".
    Process {
        pid: KArc<TaskPid>,
        thread: bool,
        file: ProcessFile,
    },
    /// An open file.
    Fd {
        pid: KArc<TaskPid>,
        fd: u32,
    },
}

/// A file of a table.
pub struct Entry {
    name: &'static str,
    body: Body,
}

type Reader = fn(&ProcNode, &mut Text<'_>);

enum Body {
    Dir(&'static [Entry]),
    File(Reader),
    Writable(Reader, fn(&ProcNode, &[u8]) -> Result<(), VfsError>),
    Link(fn(&PidNamespace, &mut LinkText) -> Option<()>),
}

/// The path in a link, which is never long.
pub struct LinkText {
    bytes: [u8; 40],
    len: usize,
}

impl LinkText {
    fn str(&mut self, text: &[u8]) -> &mut Self {
        let room = &mut self.bytes[self.len..];
        let n = text.len().min(room.len());
        room[..n].copy_from_slice(&text[..n]);
        self.len += n;
        self
    }

    fn dec(&mut self, value: u32) -> &mut Self {
        let mut digits = [0; 20];
        let from = decimal(value as u64, &mut digits);
        self.str(&digits[from..])
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What the root shows besides processes and `system::FILES`.
static ROOT: &[Entry] = &[
    Entry {
        name: "self",
        body: Body::Link(self_text),
    },
    Entry {
        name: "thread-self",
        body: Body::Link(thread_self_text),
    },
    Entry {
        name: "mounts",
        body: Body::Link(mounts_text),
    },
    Entry {
        name: "sys",
        body: Body::Dir(sysctl::SYS),
    },
];

fn self_text(ns: &PidNamespace, text: &mut LinkText) -> Option<()> {
    let nr = visible(&current_ref().process.pid, ns)?;
    text.dec(nr);
    Some(())
}

fn thread_self_text(ns: &PidNamespace, text: &mut LinkText) -> Option<()> {
    let task = current_ref();
    let (process, thread) = (visible(&task.process.pid, ns)?, visible(task.pid(), ns)?);
    text.dec(process).str(b"/task/").dec(thread);
    Some(())
}

fn mounts_text(_: &PidNamespace, text: &mut LinkText) -> Option<()> {
    text.str(b"self/mounts");
    Some(())
}

/// A pid's number in `ns`, if it has one there.
fn visible(pid: &TaskPid, ns: &PidNamespace) -> Option<u32> {
    Some(pid_nr_ns(pid, ns)).filter(|&nr| nr != 0)
}

/// Mounts procfs at `path`: it shows the namespace that the caller's children belong to. As `vfs::mount`.
pub fn mount(fs: &FsStruct, path: &[u8]) -> Result<(), VfsError> {
    let ns = KArc::clone(&current_ref().pid_ns_for_children.lock());
    let root = ProcNode::make(&ns, Kind::Root)?;
    vfs::mount(At::cwd(fs), path, root, "proc")
}

impl ProcNode {
    fn make(ns: &KArc<PidNamespace>, kind: Kind) -> Result<SynthHandle, VfsError> {
        let node = KArc::new(ProcNode {
            ns: ns.clone(),
            kind,
        })?;
        Ok(SynthHandle::new(node))
    }

    fn number(&self, pid: &TaskPid) -> u32 {
        pid_nr_ns(pid, &self.ns)
    }

    fn static_entry(&self, entry: &'static Entry) -> Result<SynthHandle, VfsError> {
        let Body::Link(make) = entry.body else {
            return Self::make(&self.ns, Kind::Static(entry));
        };
        let mut text = LinkText {
            bytes: [0; 40],
            len: 0,
        };
        make(&self.ns, &mut text).ok_or(VfsError::ENOENT)?;
        Self::make(&self.ns, Kind::Link(entry, text))
    }

    fn lookup_root(&self, name: &[u8]) -> Result<SynthHandle, VfsError> {
        if let Some(nr) = number_of(name) {
            let pid = find_pid_ns(nr, &self.ns).ok_or(VfsError::ENOENT)?;
            if !pid.has_task(PidType::Pid) {
                return Err(VfsError::ENOENT);
            }
            return self.process_file(pid, false, ProcessFile::Dir);
        }
        let entry = find(ROOT, name).or_else(|_| find(system::FILES, name))?;
        self.static_entry(entry)
    }

    fn process_file(
        &self,
        pid: KArc<TaskPid>,
        thread: bool,
        file: ProcessFile,
    ) -> Result<SynthHandle, VfsError> {
        Self::make(&self.ns, Kind::Process { pid, thread, file })
    }

    /// A thread of the process with id `pid`.
    fn lookup_thread(&self, pid: &TaskPid, name: &[u8]) -> Result<SynthHandle, VfsError> {
        let nr = number_of(name).ok_or(VfsError::ENOENT)?;
        let process = process_of(pid).ok_or(VfsError::ENOENT)?;
        let found = find_pid_ns(nr, &self.ns).ok_or(VfsError::ENOENT)?;
        match found.task(PidType::Pid) {
            Some(task) if KArc::ptr_eq(&task.process, &process) => {
                self.process_file(found, true, ProcessFile::Dir)
            }
            _ => Err(VfsError::ENOENT),
        }
    }

    fn list_root(&self, from: u64, out: &mut Listing<'_>) {
        let mut at = from;
        while let Some(entry) = ROOT.iter().chain(system::FILES).nth(at as usize - 2) {
            if !out.put(entry.ino(), at + 1, entry.mode(), entry.name.as_bytes()) {
                return;
            }
            at += 1;
        }
        let mut nr = (at.max(FIRST_PID) - FIRST_PID) as u32;
        // A node of the map's tree at a time; after one that was empty, on to the next that is not.
        let mut full = false;
        while !full {
            let (last, mut any) = (nr | NODE_MASK, false);
            visit_pids(&self.ns, nr, last, |found, pid| {
                any = true;
                full = full || pid.is_process() && !put_process(found, out);
            });
            nr = match last.checked_add(1) {
                Some(next) if any => next,
                Some(next) => match find_ge_pid(next, &self.ns) {
                    Some((found, _)) => found,
                    None => return,
                },
                None => return,
            };
        }
    }
}

/// Numbers of one node of the maps' trees, less one.
const NODE_MASK: u32 = 63;

/// A process's line in the root's listing; false if there was no room.
#[inline]
fn put_process(nr: u32, out: &mut Listing<'_>) -> bool {
    let mut digits = [0; 20];
    let from = decimal(nr as u64, &mut digits);
    let ino = process::ino(nr, ProcessFile::Dir, false);
    out.put(ino, FIRST_PID + nr as u64 + 1, S_IFDIR, &digits[from..])
}

impl Entry {
    fn mode(&self) -> u32 {
        match self.body {
            Body::Dir(_) => S_IFDIR | 0o555,
            Body::File(_) => S_IFREG | 0o444,
            Body::Writable(..) => S_IFREG | 0o644,
            Body::Link(_) => S_IFLNK | 0o777,
        }
    }

    /// By its place in the image, which no two share.
    fn ino(&self) -> u64 {
        1 << 60 | core::ptr::from_ref(self) as u64 & 0xfff_ffff
    }
}

fn find(entries: &'static [Entry], name: &[u8]) -> Result<&'static Entry, VfsError> {
    let found = entries.iter().find(|e| e.name.as_bytes() == name);
    found.ok_or(VfsError::ENOENT)
}

/// A number as a file's name: no sign, no zero in front.
fn number_of(name: &[u8]) -> Option<u32> {
    if name.is_empty() || name.len() > 9 || name[0] == b'0' {
        return None;
    }
    name.iter().try_fold(0, |n, &b| {
        b.is_ascii_digit().then(|| n * 10 + (b - b'0') as u32)
    })
}

/// The process whose id, or one of whose threads' ids, `pid` is.
fn process_of(pid: &TaskPid) -> Option<KArc<Process>> {
    Some(pid.task(PidType::Pid)?.process.clone())
}

/// The thread that a process's files describe: itself, or the process's first.
fn task_of(pid: &TaskPid) -> Result<KArc<Task>, VfsError> {
    pid.task(PidType::Pid).ok_or(VfsError::ESRCH)
}

impl SynthNode for ProcNode {
    fn attr(&self) -> SynthAttr {
        let (mode, ino) = match &self.kind {
            Kind::Root => (S_IFDIR | 0o555, ROOT_INO),
            Kind::Static(entry) | Kind::Link(entry, _) => (entry.mode(), entry.ino()),
            Kind::Process { pid, thread, file } => {
                (file.mode(), process::ino(self.number(pid), *file, *thread))
            }
            Kind::Fd { pid, fd } => (
                S_IFLNK | 0o700,
                1 << 59 | (self.number(pid) as u64) << 24 | *fd as u64,
            ),
        };
        let nlink = match &self.kind {
            Kind::Root => 2 + self.ns.nr_pids(),
            _ if mode & S_IFDIR == S_IFDIR => 2,
            _ => 1,
        };
        SynthAttr { mode, ino, nlink }
    }

    fn lookup(&self, name: &[u8]) -> Result<SynthHandle, VfsError> {
        match &self.kind {
            Kind::Root => self.lookup_root(name),
            Kind::Static(Entry {
                body: Body::Dir(entries),
                ..
            }) => self.static_entry(find(entries, name)?),
            Kind::Process { pid, thread, file } => match file {
                ProcessFile::Dir => {
                    if !pid.has_task(PidType::Pid) {
                        return Err(VfsError::ESRCH);
                    }
                    let file = ProcessFile::by_name(name, *thread).ok_or(VfsError::ENOENT)?;
                    self.process_file(pid.clone(), *thread, file)
                }
                ProcessFile::Task => self.lookup_thread(pid, name),
                ProcessFile::Fd => {
                    let fd = match name {
                        b"0" => 0,
                        _ => number_of(name).ok_or(VfsError::ENOENT)?,
                    };
                    process::file_at(pid, fd)?;
                    Self::make(
                        &self.ns,
                        Kind::Fd {
                            pid: pid.clone(),
                            fd,
                        },
                    )
                }
                _ => Err(VfsError::ENOENT),
            },
            _ => Err(VfsError::ENOENT),
        }
    }

    fn list(&self, from: u64, out: &mut Listing<'_>) -> Result<(), VfsError> {
        match &self.kind {
            Kind::Root => self.list_root(from, out),
            Kind::Static(Entry {
                body: Body::Dir(entries),
                ..
            }) => {
                for (entry, at) in entries.iter().zip(2..).skip(from as usize - 2) {
                    if !out.put(entry.ino(), at + 1, entry.mode(), entry.name.as_bytes()) {
                        break;
                    }
                }
            }
            Kind::Process { pid, thread, file } => match file {
                ProcessFile::Dir => process::list_dir(self, pid, *thread, from, out)?,
                ProcessFile::Task => process::list_threads(self, pid, from, out)?,
                ProcessFile::Fd => process::list_fds(self, pid, from, out)?,
                _ => return Err(VfsError::ENOTDIR),
            },
            _ => return Err(VfsError::ENOTDIR),
        }
        Ok(())
    }

    fn read(&self, text: &mut Text<'_>) -> Result<(), VfsError> {
        match &self.kind {
            Kind::Static(entry) => match entry.body {
                Body::File(read) | Body::Writable(read, _) => read(self, text),
                _ => return Err(VfsError::EISDIR),
            },
            Kind::Process { pid, thread, file } => {
                return process::read(self, pid, *thread, *file, text);
            }
            _ => return Err(VfsError::EINVAL),
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> Result<(), VfsError> {
        match &self.kind {
            Kind::Static(Entry {
                body: Body::Writable(_, write),
                ..
            }) => write(self, bytes),
            Kind::Process {
                pid,
                file: ProcessFile::Comm,
                ..
            } => {
                let name = bytes.strip_suffix(b"\n").unwrap_or(bytes);
                task_of(pid)?.set_comm(name);
                Ok(())
            }
            Kind::Process {
                file: ProcessFile::OomScoreAdj,
                ..
            } => Ok(()), // nothing is ever killed for want of memory
            _ => Err(VfsError::EIO),
        }
    }

    fn text(&self) -> Option<&[u8]> {
        match &self.kind {
            Kind::Link(_, text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    fn target(&self) -> Result<SynthTarget, VfsError> {
        match &self.kind {
            Kind::Process { pid, file, .. } => process::target(pid, *file),
            Kind::Fd { pid, fd } => Ok(SynthTarget::File(process::file_at(pid, *fd)?)),
            _ => Err(VfsError::ENOENT),
        }
    }
}

/// Threads that can run now, for loadavg and stat.
fn nr_running(ns: &PidNamespace) -> (u32, u32, u32) {
    let (mut running, mut threads, mut last, mut nr) = (0, 0, 0, 1);
    while let Some((found, pid)) = find_ge_pid(nr, ns) {
        if let Some(task) = pid.task(PidType::Pid) {
            running += !task.entity.is_parked() as u32;
            threads += 1;
            last = last.max(found);
        }
        nr = found + 1;
    }
    (running.max(1), threads, last)
}

/// Nanoseconds in Linux's clock ticks (AT_CLKTCK: 100 per second).
fn ticks(ns: u64) -> u64 {
    ns / 10_000_000
}

/// CPU time of a process, in nanoseconds.
fn runtime_of(process: &Process) -> u64 {
    let state = process.lock.lock();
    let living = state.threads.iter().map(|t| crate::sched::runtime_ns(t));
    living.sum::<u64>() + state.dead_threads_ns
}

/// When a process began, in nanoseconds since boot.
fn start_time(process: &Process) -> u64 {
    process.start_time_ns.load(Relaxed)
}
