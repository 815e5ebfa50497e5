//! /proc: what programs read there, links without a path, a process that ends while it is read, namespaces.

use crate::files::{close, open, read};
use crate::process::as_namespace_init;
use core::ffi::CStr;
use rt::abi::*;
use rt::process::{exit_group, fork, getpid, wait};
use rt::signal::kill;
use rt::sys::{at, at_mut};
use rt::{Args, Errno, Suite, sys};

const O_PATH: usize = 0o10000000;

pub fn run(t: &mut Suite, args: &Args) {
    own_files(t, args);
    links(t, args);
    seeking(t);
    errors(t);
    a_process_that_ends(t);
    listing(t);
    system_files(t);
    namespaces(t);
}

/// A path built from parts.
pub struct PathBuf {
    bytes: [u8; 128],
    len: usize,
}

impl PathBuf {
    pub fn new(start: &str) -> PathBuf {
        PathBuf {
            bytes: [0; 128],
            len: 0,
        }
        .text(start)
    }

    pub fn text(mut self, text: &str) -> PathBuf {
        for &byte in text.as_bytes() {
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        self
    }

    pub fn dec(self, number: isize) -> PathBuf {
        let (mut digits, mut nr, mut rest) = ([0u8; 20], 0, number as usize);
        loop {
            digits[nr] = b'0' + (rest % 10) as u8;
            nr += 1;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        digits[..nr].reverse();
        match core::str::from_utf8(&digits[..nr]) {
            Ok(text) => self.text(text),
            Err(_) => self,
        }
    }

    pub fn c(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

/// /proc/PID/FILE.
fn of(pid: isize, file: &str) -> PathBuf {
    PathBuf::new("/proc/").dec(pid).text("/").text(file)
}

/// Reads a file from its start; the bytes that are there, or the raw error as a length of 0.
pub fn slurp<'b>(path: &CStr, buf: &'b mut [u8]) -> &'b [u8] {
    let fd = open(path, O_RDONLY);
    let mut len = 0;
    loop {
        match read(fd, &mut buf[len..]) {
            n if n > 0 => len += n as usize,
            _ => break, // the end, or nothing was opened
        }
    }
    close(fd);
    &buf[..len]
}

pub fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|w| w == wanted)
}

/// Field `nr` of a stat line, counted from 1 behind the name in parentheses, which is field 2.
fn field(stat: &[u8], nr: usize) -> isize {
    let Some(end) = stat.iter().rposition(|&b| b == b')') else {
        return -1;
    };
    let mut fields = stat[end + 1..]
        .split(|&b| b == b' ' || b == b'\n')
        .filter(|f| !f.is_empty());
    match fields.nth(nr - 3) {
        Some(digits) if digits.iter().all(u8::is_ascii_digit) => digits
            .iter()
            .fold(0, |n, &b| n * 10 + isize::from(b - b'0')),
        Some([letter, ..]) => isize::from(*letter),
        _ => -1,
    }
}

/// The number on the line of `status` that begins with `name`.
fn status_number(status: &[u8], name: &[u8]) -> isize {
    let line = status
        .split(|&b| b == b'\n')
        .find(|l| l.starts_with(name))
        .unwrap_or_default();
    line.iter()
        .skip(name.len())
        .skip_while(|b| !b.is_ascii_digit())
        .take_while(|b| b.is_ascii_digit())
        .fold(0, |n, &b| n * 10 + isize::from(b - b'0'))
}

fn own_files(t: &mut Suite, args: &Args) {
    let mut buf = [0; 8192];
    let stat = slurp(c"/proc/self/stat", &mut buf);
    t.ok("proc: stat has a name", contains(stat, b" (calls) R "));
    t.is("proc: stat: ppid", field(stat, 4), sys!(GETPPID));
    t.is("proc: stat: pgrp", field(stat, 5), sys!(GETPGID, 0));
    t.is("proc: stat: session", field(stat, 6), sys!(GETSID, 0));
    t.is("proc: stat: threads", field(stat, 20), 1);
    t.ok("proc: stat: vsize", field(stat, 23) > 4096);
    t.ok("proc: stat: rss", field(stat, 24) > 0);
    let fields = stat.split(|&b| b == b' ').count();
    t.is("proc: stat: 52 fields", fields as isize, 52);
    let mut buf = [0; 8192];
    let status = slurp(c"/proc/self/status", &mut buf);
    t.ok("proc: status: name", status.starts_with(b"Name:\tcalls\n"));
    t.is(
        "proc: status: Pid",
        status_number(status, b"Pid:"),
        getpid(),
    );
    t.is(
        "proc: status: Tgid",
        status_number(status, b"Tgid:"),
        getpid(),
    );
    t.is(
        "proc: status: PPid",
        status_number(status, b"PPid:"),
        sys!(GETPPID),
    );
    t.is(
        "proc: status: Threads",
        status_number(status, b"Threads:"),
        1,
    );
    t.ok("proc: status: VmRSS", status_number(status, b"VmRSS:") > 0);
    let mut buf = [0; 256];
    t.ok(
        "proc: comm",
        slurp(c"/proc/self/comm", &mut buf) == b"calls\n",
    );
    let mut buf = [0; 4096];
    let cmdline = slurp(c"/proc/self/cmdline", &mut buf);
    let first = args.get(0).map(CStr::to_bytes_with_nul);
    t.ok(
        "proc: cmdline begins with argv[0]",
        first.is_some_and(|f| cmdline.starts_with(f)),
    );
    t.ok("proc: cmdline ends with a NUL", cmdline.last() == Some(&0));
    let mut buf = [0; 8192];
    let maps = slurp(c"/proc/self/maps", &mut buf);
    t.ok("proc: maps: the stack", contains(maps, b"[stack]\n"));
    t.ok("proc: maps: code", contains(maps, b" r-xp "));
    t.ok("proc: maps: the program", contains(maps, b"/calls\n"));
    let mut buf = [0; 256];
    let statm = slurp(c"/proc/self/statm", &mut buf);
    let fields = statm.split(|&b| b == b' ').count();
    t.is("proc: statm: 7 fields", fields as isize, 7);
}

/// What readlink says, without a NUL.
fn readlink<'b>(path: &CStr, buf: &'b mut [u8]) -> &'b [u8] {
    let n = sys!(READLINK, path.as_ptr(), buf.as_mut_ptr(), buf.len());
    &buf[..n.max(0) as usize]
}

fn stat_of(path: &CStr) -> (isize, Stat) {
    let mut st = Stat::default();
    (sys!(STAT, path.as_ptr(), at_mut(&mut st)), st)
}

fn links(t: &mut Suite, args: &Args) {
    let mut buf = [0; 256];
    let own = PathBuf::new("").dec(getpid());
    t.ok(
        "proc: self is the own number",
        readlink(c"/proc/self", &mut buf) == own.c().to_bytes(),
    );
    let mut buf = [0; 256];
    let thread = PathBuf::new("")
        .dec(getpid())
        .text("/task/")
        .dec(sys!(GETTID));
    t.ok(
        "proc: thread-self",
        readlink(c"/proc/thread-self", &mut buf) == thread.c().to_bytes(),
    );
    let mut buf = [0; 256];
    t.ok(
        "proc: exe is the program",
        readlink(c"/proc/self/exe", &mut buf).ends_with(b"/calls"),
    );
    let mut program = Stat::default();
    sys!(STAT, args.execfn().as_ptr(), at_mut(&mut program));
    let (got, exe) = stat_of(c"/proc/self/exe");
    t.is("proc: stat of exe", got, 0);
    t.ok(
        "proc: exe is the same file",
        (exe.dev, exe.ino) == (program.dev, program.ino),
    );
    t.err(
        "proc: exe is no directory",
        open(c"/proc/self/exe/x", O_RDONLY),
        Errno::ENOTDIR,
    );
    t.err(
        "proc: exe with a slash",
        open(c"/proc/self/exe/", O_RDONLY),
        Errno::ENOTDIR,
    );
    t.err(
        "proc: exe without following",
        open(c"/proc/self/exe", O_NOFOLLOW),
        Errno::ELOOP,
    );
    t.is("proc: chdir to /tmp", sys!(CHDIR, c"/tmp".as_ptr()), 0);
    let mut buf = [0; 256];
    t.ok(
        "proc: cwd",
        readlink(c"/proc/self/cwd", &mut buf) == b"/tmp",
    );
    let through = open(c"/proc/self/cwd/../dev/null", O_RDONLY);
    t.ok("proc: through cwd", through >= 0);
    close(through);
    sys!(CHDIR, c"/".as_ptr());
    let mut buf = [0; 256];
    t.ok("proc: root", readlink(c"/proc/self/root", &mut buf) == b"/");
    descriptors(t);
}

fn descriptors(t: &mut Suite) {
    let mut ends = [0i32; 2];
    sys!(PIPE, at_mut(&mut ends));
    let fd = |n: i32| PathBuf::new("/proc/self/fd/").dec(n as isize);
    let mut buf = [0; 256];
    let name = readlink(fd(ends[0]).c(), &mut buf);
    t.ok(
        "proc: fd of a pipe",
        name.starts_with(b"pipe:[") && name.ends_with(b"]"),
    );
    let (got, st) = stat_of(fd(ends[0]).c());
    t.ok(
        "proc: stat of that",
        got == 0 && st.mode & S_IFMT == S_IFIFO,
    );
    let writer = open(fd(ends[1]).c(), O_WRONLY);
    t.ok("proc: a pipe opened again", writer >= 0);
    t.is(
        "proc: write to it",
        sys!(WRITE, writer, c"x".as_ptr(), 1),
        1,
    );
    let mut byte = [0];
    t.is("proc: arrives", read(ends[0] as isize, &mut byte), 1);
    close(writer);
    close(ends[0] as isize);
    close(ends[1] as isize);
    t.err(
        "proc: a closed descriptor",
        open(fd(ends[0]).c(), O_RDONLY),
        Errno::ENOENT,
    );
    let file = open(crate::SCRATCH, O_RDWR | O_CREAT | O_TRUNC);
    sys!(WRITE, file, c"contents".as_ptr(), 8);
    let again = open(fd(file as i32).c(), O_RDONLY);
    let mut bytes = [0; 8];
    t.is(
        "proc: a file opened again, from its start",
        read(again, &mut bytes),
        8,
    );
    close(again);
    sys!(UNLINK, crate::SCRATCH.as_ptr());
    let mut buf = [0; 256];
    t.ok(
        "proc: the name of an unlinked file",
        readlink(fd(file as i32).c(), &mut buf).ends_with(b" (deleted)"),
    );
    let again = open(fd(file as i32).c(), O_RDONLY);
    let mut bytes = [0; 8];
    t.is(
        "proc: an unlinked file opened again",
        read(again, &mut bytes),
        8,
    );
    close(again);
    close(file);
}

fn seeking(t: &mut Suite) {
    let (mut whole, mut bytes) = ([0; 4096], [0; 4096]);
    let fd = open(c"/proc/filesystems", O_RDONLY);
    let len = read(fd, &mut whole);
    t.ok("proc: one read is all", len > 0);
    t.is("proc: then the end", read(fd, &mut bytes), 0);
    t.is("proc: seek to 3", sys!(LSEEK, fd, 3, SEEK_SET), 3);
    t.is("proc: the rest", read(fd, &mut bytes), len - 3);
    t.ok(
        "proc: the same rest",
        bytes[..len.max(3) as usize - 3] == whole[3..len.max(3) as usize],
    );
    t.is(
        "proc: pread",
        sys!(PREAD64, fd, bytes.as_mut_ptr(), 2, 1),
        2,
    );
    t.ok("proc: from there", bytes[..2] == whole[1..3]);
    t.err(
        "proc: no room in the buffer's address",
        sys!(PREAD64, fd, usize::MAX - 100, 16, 0),
        Errno::EFAULT,
    );
    close(fd);
}

fn errors(t: &mut Suite) {
    for (name, path, want) in [
        (
            "proc: no such process",
            c"/proc/999999999/stat",
            Errno::ENOENT,
        ),
        (
            "proc: no such file",
            c"/proc/self/no-such-file",
            Errno::ENOENT,
        ),
        ("proc: a zero in front", c"/proc/01", Errno::ENOENT),
        ("proc: a sign", c"/proc/-1", Errno::ENOENT),
        (
            "proc: more below a file",
            c"/proc/self/stat/x",
            Errno::ENOTDIR,
        ),
        (
            "proc: a file with a slash",
            c"/proc/version/",
            Errno::ENOTDIR,
        ),
        (
            "proc: no such thread",
            c"/proc/self/task/1/stat",
            Errno::ENOENT,
        ),
        (
            "proc: no such descriptor",
            c"/proc/self/fd/77777",
            Errno::ENOENT,
        ),
        (
            "proc: no number of a descriptor",
            c"/proc/self/fd/x",
            Errno::ENOENT,
        ),
    ] {
        t.err(name, open(path, O_RDONLY), want);
    }
    t.err(
        "proc: nothing is made there",
        open(c"/proc/new", O_RDWR | O_CREAT),
        Errno::ENOENT,
    );
    t.err(
        "proc: no directory either",
        sys!(MKDIR, c"/proc/new".as_ptr(), 0o755),
        Errno::ENOENT,
    );
    t.err(
        "proc: nothing is removed",
        sys!(UNLINK, c"/proc/version".as_ptr()),
        Errno::EPERM,
    );
    t.err(
        "proc: a directory for writing",
        open(c"/proc/self", O_RDWR),
        Errno::EISDIR,
    );
    t.err(
        "proc: truncate",
        sys!(RENAME, c"/proc/version".as_ptr(), c"/tmp/v".as_ptr()),
        Errno::EXDEV,
    );
    let path = open(c"/proc/self/stat", O_PATH);
    t.err(
        "proc: O_PATH cannot be read",
        read(path, &mut [0]),
        Errno::EBADF,
    );
    close(path);
    let dir = open(c"/proc/self", O_RDONLY | O_DIRECTORY);
    t.err(
        "proc: a directory cannot be read",
        read(dir, &mut [0]),
        Errno::EISDIR,
    );
    let stat = sys!(OPENAT, dir, c"stat".as_ptr(), O_RDONLY, 0);
    t.ok("proc: openat", stat >= 0);
    close(stat);
    close(dir);
    let pid_max = open(c"/proc/sys/kernel/pid_max", O_WRONLY | O_TRUNC | O_CREAT);
    t.ok("proc: pid_max can be opened for writing", pid_max >= 0);
    t.err(
        "proc: pid_max takes no nonsense",
        sys!(WRITE, pid_max, c"x".as_ptr(), 1),
        Errno::EINVAL,
    );
    t.err(
        "proc: pid_max takes no 0",
        sys!(WRITE, pid_max, c"0".as_ptr(), 1),
        Errno::EINVAL,
    );
    close(pid_max);
}

fn a_process_that_ends(t: &mut Suite) {
    let child = fork(|| {
        loop {
            sys!(PAUSE);
        }
    });
    let stat = open(of(child, "stat").c(), O_RDONLY);
    let maps = open(of(child, "maps").c(), O_RDONLY);
    let dir = open(of(child, "").c(), O_RDONLY | O_DIRECTORY);
    let mut buf = [0; 1024];
    t.ok("proc: a child's stat", read(stat, &mut buf) > 0);
    kill(child, SIGKILL);
    // Dead, and not reaped: it waits for us with P_PID | WEXITED | WNOWAIT.
    sys!(WAITID, 1, child, 0, 4 | 0x0100_0000, 0);
    let mut buf = [0; 1024];
    let text = slurp(of(child, "stat").c(), &mut buf);
    t.is("proc: a zombie's state", field(text, 3), isize::from(b'Z'));
    t.is("proc: its ppid", field(text, 4), getpid());
    t.is("proc: it has no memory", field(text, 23), 0);
    let mut buf = [0; 1024];
    t.ok(
        "proc: nor arguments",
        slurp(of(child, "cmdline").c(), &mut buf).is_empty(),
    );
    let mut buf = [0; 64];
    t.err(
        "proc: nor a program",
        sys!(
            READLINK,
            of(child, "exe").c().as_ptr(),
            buf.as_mut_ptr(),
            64
        ),
        Errno::ENOENT,
    );
    wait(child);
    t.err(
        "proc: gone: its name",
        open(of(child, "stat").c(), O_RDONLY),
        Errno::ENOENT,
    );
    sys!(LSEEK, stat, 0, SEEK_SET);
    t.err(
        "proc: gone: an open stat",
        read(stat, &mut [0; 64]),
        Errno::ESRCH,
    );
    t.err(
        "proc: gone: open maps",
        read(maps, &mut [0; 64]).min(-3),
        Errno::ESRCH,
    );
    t.err(
        "proc: gone: below its directory",
        sys!(OPENAT, dir, c"stat".as_ptr(), O_RDONLY, 0),
        Errno::ESRCH,
    );
    for fd in [stat, maps, dir] {
        close(fd);
    }
}

/// The numbers in a listing of `path`, in order; false if they are not ascending.
fn numbers(path: &CStr, room: usize, mut each: impl FnMut(isize)) -> bool {
    let dir = open(path, O_RDONLY | O_DIRECTORY);
    let (mut buf, mut last, mut ordered) = ([0u8; 4096], 0, true);
    loop {
        let n = sys!(GETDENTS64, dir, buf.as_mut_ptr(), room);
        if n <= 0 {
            close(dir);
            return ordered && n == 0;
        }
        let mut at = 0;
        while at < n as usize {
            let len = usize::from(u16::from_le_bytes([buf[at + 16], buf[at + 17]]));
            let name = buf[at + 19..at + len]
                .split(|&b| b == 0)
                .next()
                .unwrap_or_default();
            if !name.is_empty() && name.iter().all(u8::is_ascii_digit) {
                let nr = name.iter().fold(0, |n, &b| n * 10 + isize::from(b - b'0'));
                ordered &= nr > last;
                last = nr;
                each(nr);
            }
            at += len;
        }
    }
}

fn listing(t: &mut Suite) {
    let mut children = [0; 20];
    for child in &mut children {
        *child = fork(|| {
            loop {
                sys!(PAUSE);
            }
        });
    }
    for (name, room) in [
        ("proc: every child is listed, in order", 4096),
        ("proc: also record by record", 64),
    ] {
        let mut found = 0;
        let ordered = numbers(c"/proc", room, |nr| {
            found += children.contains(&nr) as isize
        });
        t.ok(name, ordered && found == 20);
    }
    for child in children {
        kill(child, SIGKILL);
        wait(child);
    }
    let mut found = 0;
    numbers(c"/proc", 4096, |nr| {
        found += children.contains(&nr) as isize
    });
    t.is("proc: none is listed any more", found, 0);
    let mut threads = 0;
    numbers(c"/proc/self/task", 4096, |nr| {
        threads += (nr == sys!(GETTID)) as isize
    });
    t.is("proc: task lists the thread", threads, 1);
    let (got, st) = stat_of(c"/proc/self/task");
    t.ok(
        "proc: task is a directory",
        got == 0 && st.mode & S_IFMT == S_IFDIR,
    );
}

fn system_files(t: &mut Suite) {
    for (name, path, text) in [
        ("proc: meminfo", c"/proc/meminfo", &b"MemTotal:"[..]),
        ("proc: stat", c"/proc/stat", b"cpu  "),
        ("proc: stat: per CPU", c"/proc/stat", b"\ncpu0 "),
        ("proc: stat: btime", c"/proc/stat", b"\nbtime "),
        ("proc: loadavg", c"/proc/loadavg", b"/"),
        ("proc: uptime", c"/proc/uptime", b"."),
        ("proc: version", c"/proc/version", b"Linux version "),
        ("proc: cpuinfo", c"/proc/cpuinfo", b"processor\t: 0\n"),
        ("proc: filesystems", c"/proc/filesystems", b"nodev\tproc\n"),
        ("proc: mounts", c"/proc/mounts", b" /proc proc "),
        ("proc: mountinfo", c"/proc/self/mountinfo", b" /proc "),
        ("proc: ostype", c"/proc/sys/kernel/ostype", b"Linux\n"),
        ("proc: limits", c"/proc/self/limits", b"Max open files"),
    ] {
        let mut buf = [0; 8192];
        t.ok(name, contains(slurp(path, &mut buf), text));
    }
    let mut name = Utsname {
        fields: [[0; 65]; 6],
    };
    sys!(UNAME, at_mut(&mut name));
    let mut buf = [0; 128];
    let release = slurp(c"/proc/sys/kernel/osrelease", &mut buf);
    let end = release.len().saturating_sub(1);
    t.ok(
        "proc: osrelease is uname's",
        end > 0 && name.fields[2].starts_with(&release[..end]) && name.fields[2][end] == 0,
    );
    let mut buf = [0; 64];
    let uuid = slurp(c"/proc/sys/kernel/random/uuid", &mut buf);
    t.ok(
        "proc: a UUID of version 4",
        uuid.len() == 37 && uuid[14] == b'4',
    );
}

fn namespaces(t: &mut Suite) {
    // What the outer /proc says of a process in a namespace below: both numbers.
    let end = as_namespace_init(|| {
        let mut buf = [0; 4096];
        // The mount shows the outer namespace, where we have another number than 1.
        let own = readlink(c"/proc/self", &mut buf);
        let outer = own.len() > 1 || own.first().is_some_and(|&b| b != b'1');
        let mut buf = [0; 4096];
        let status = slurp(c"/proc/self/status", &mut buf);
        let ns_pid = status
            .split(|&b| b == b'\n')
            .find(|l| l.starts_with(b"NSpid:"))
            .unwrap_or_default();
        let inner = ns_pid.ends_with(b"\t1");
        i32::from(outer) + i32::from(inner) * 2
    });
    t.is(
        "proc: self in a namespace, as an outer mount sees it",
        end.number(),
        3,
    );
    let end = as_namespace_init(|| {
        let dir = c"/tmp/tine-calls-proc";
        sys!(MKDIR, dir.as_ptr(), 0o755);
        let kind = c"proc".as_ptr();
        if sys!(MOUNT, kind, dir.as_ptr(), kind, 0, 0) != 0 {
            return 1;
        }
        let mut buf = [0; 64];
        let own = readlink(c"/tmp/tine-calls-proc/self", &mut buf) == b"1";
        let mut nr = 0;
        let ordered = numbers(dir, 4096, |_| nr += 1);
        let child = fork(|| exit_group(0));
        wait(child);
        let gone = sys!(UMOUNT2, dir.as_ptr(), 0);
        let removed = sys!(RMDIR, dir.as_ptr());
        match (own, ordered, nr, gone, removed) {
            (true, true, 1, 0, 0) => 0,
            (false, ..) => 2,
            (_, _, _, 0, 0) => 3,
            _ => 4,
        }
    });
    t.is("proc: a mount of the namespace's own", end.number(), 0);
    t.err(
        "umount: nothing is mounted there",
        sys!(UMOUNT2, c"/tmp".as_ptr(), 0),
        Errno::EINVAL,
    );
    t.err(
        "mount: no such kind",
        sys!(
            MOUNT,
            at(c"x".to_bytes_with_nul()),
            c"/tmp".as_ptr(),
            c"no-such-fs".as_ptr(),
            0,
            0
        ),
        Errno::ENODEV,
    );
}
