//! Process 1: runs programs, reaps what is left, ends the machine with the verdict.
//!
//! `init PROGRAM [ARGS]...` runs that program; `init` alone runs the test programs in /bin, each of
//! which prints its own checks. The machine ends well (power off) if every program exited with 0;
//! otherwise init exits with the first failure's code, which ends the machine badly. Where it is not
//! process 1 it only exits, and looks for programs beside itself.
//!
//! As process 1 it says at which tick of the time-stamp counter it began, and mounts /proc and /dev where the kernel has
//! not: Linux leaves that to its first process.
#![no_std]
#![no_main]

use core::ffi::CStr;
use rt::process::{self, End, getpid};
use rt::sys::{at, at_mut};
use rt::{Args, Errno, Line, sys};

rt::entry!(main);

/// What `init` alone runs.
const PROGRAMS: [&CStr; 5] = [c"tiny", c"pie", c"fpu", c"sigtest", c"calls"];

/// The environment of every program.
const ENVIRONMENT: [&CStr; 2] = [c"PATH=/bin:/usr/bin:/sbin:/usr/sbin", c"HOME=/"];

/// A path under construction.
struct Path([u8; 256]);

impl Path {
    fn new(dir: &[u8], name: &[u8]) -> Path {
        let mut path = Path([0; 256]);
        let bytes = dir.iter().chain(name).take(255);
        path.0
            .iter_mut()
            .zip(bytes)
            .for_each(|(slot, byte)| *slot = *byte);
        path
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

/// Where the test programs are, with a slash at the end.
fn directory(args: &Args) -> &'static [u8] {
    if getpid() == 1 {
        return b"/bin/";
    }
    let path = args.execfn().to_bytes();
    let end = path
        .iter()
        .rposition(|byte| *byte == b'/')
        .map_or(0, |i| i + 1);
    path.get(..end).unwrap_or(b"")
}

/// Runs one program to its end, reaping orphans meanwhile; its exit code, 128 + signal if it was
/// killed, 127 if it could not be executed.
fn run(path: &CStr, argv: *const usize) -> i32 {
    let envp = [
        ENVIRONMENT[0].as_ptr() as usize,
        ENVIRONMENT[1].as_ptr() as usize,
        0,
    ];
    let child = process::fork(|| {
        let error = process::exec(path, argv, envp.as_ptr());
        let name = Errno::of(error).map_or("?", Errno::name);
        Line::new()
            .text("init: ")
            .bytes(path.to_bytes())
            .text(": ")
            .text(name)
            .end();
        127
    });
    if child < 0 {
        let name = Errno::of(child).map_or("?", Errno::name);
        Line::new().text("init: fork: ").text(name).end();
        return 126;
    }
    loop {
        let mut status = 0u32;
        let pid = sys!(WAIT4, -1isize, at_mut(&mut status), 0, 0);
        if pid == child {
            return report(path, process::decode(status));
        }
        if pid < 0 && pid != Errno::EINTR.raw() {
            Line::new().text("init: lost its child").end();
            return 125;
        }
    }
}

fn report(path: &CStr, end: End) -> i32 {
    let line = Line::new().text("init: ").bytes(path.to_bytes());
    match end {
        End::Signal(signal) => {
            line.text(": killed by signal ").dec(signal.into()).end();
            128 + signal
        }
        End::Exit(code) => {
            line.text(": exit ").dec(code.into()).end();
            code
        }
        End::Wait(_) => {
            line.text(": stopped").end();
            124
        }
    }
}

/// Runs everything asked for; the first failure's code, or 0.
fn programs(args: &Args) -> i32 {
    if let Some(path) = args.get(1) {
        return run(path, args.argv_from(1));
    }
    let dir = directory(args);
    let (mut failures, mut first) = (0, 0);
    for name in PROGRAMS {
        let path = Path::new(dir, name.to_bytes());
        let argv = [path.as_c_str().as_ptr() as usize, 0];
        let code = run(path.as_c_str(), argv.as_ptr());
        failures += i64::from(code != 0);
        first = if first == 0 { code } else { first };
    }
    let line = Line::new()
        .text("init: ")
        .dec(PROGRAMS.len() as i64)
        .text(" programs, ");
    line.dec(failures).text(" failed").end();
    first
}

/// What Linux leaves to its first process; here it is there already.
fn mount_what_is_missing() {
    let begun = rt::time::cycles();
    Line::new().text("init: begins at ").dec(begun as i64).end();
    let present = |path: &CStr| sys!(ACCESS, path.as_ptr(), 0) == 0;
    let mounts = [
        (c"/proc", c"/proc/self", c"proc"),
        (c"/dev", c"/dev/null", c"devtmpfs"),
    ];
    for (directory, member, kind) in mounts {
        if !present(member) {
            sys!(MKDIR, directory.as_ptr(), 0o755);
            let what = kind.as_ptr();
            sys!(MOUNT, what, directory.as_ptr(), what, 0, 0);
        }
    }
}

fn main(args: &Args) -> i32 {
    if getpid() == 1 {
        mount_what_is_missing();
    }
    let code = programs(args);
    // Orphans that have ended already; the others end with the machine.
    while sys!(WAIT4, -1isize, 0, rt::abi::WNOHANG, 0) > 0 {}
    if code == 0 && getpid() == 1 {
        const POWER_OFF: usize = 0x4321_fedc;
        let unused = 0usize;
        sys!(REBOOT, 0xfee1_dead_u32, 672_274_793, POWER_OFF, at(&unused));
    }
    code
}
