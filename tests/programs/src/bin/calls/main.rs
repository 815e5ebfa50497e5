//! The correctness suite: what each system call answers, right and wrong arguments alike.
//!
//! Every expectation is Linux's, and the program runs on Linux unchanged: a check that fails there is
//! a wrong check. `calls [FILTER]` runs the groups whose name contains FILTER. Needs a writable
//! /tmp, /dev/{null,zero,full}, and `tiny` beside itself. Calls that a small kernel may lack are
//! skipped when they answer ENOSYS.
#![no_std]
#![no_main]

mod descriptors;
mod exec;
mod files;
mod inits;
mod jobs;
mod mappings;
mod memory;
mod misc;
mod names;
mod pids;
mod pipes;
mod pointers;
mod proc;
mod process;
mod rseq;
mod threads;
mod waiting;

use core::ffi::CStr;
use rt::{Args, Suite};

rt::entry!(main);

/// The file that tests write, truncate and map.
const SCRATCH: &CStr = c"/tmp/tine-calls-scratch";

fn main(args: &Args) -> i32 {
    if let Some(role) = args.get(1).map(CStr::to_bytes)
        && role.first() == Some(&b'@')
    {
        return exec::role(args, role);
    }
    let filter = args.get(1).map_or(&b""[..], CStr::to_bytes);
    rt::process::outside_init(|| suite(args, filter))
}

fn suite(args: &Args, filter: &'static [u8]) -> i32 {
    let mut suite = Suite::new("calls", filter);
    let t = &mut suite;
    t.group("start", |t| exec::initial_stack(t, args));
    t.group("files", |t| files::run(t, args));
    t.group("descriptors", |t| descriptors::run(t, args));
    t.group("pipes", pipes::run);
    t.group("memory", memory::run);
    t.group("mappings", |t| mappings::run(t, args));
    t.group("process", process::run);
    t.group("pids", pids::run);
    t.group("inits", |t| inits::run(t, args));
    t.group("exec", |t| exec::run(t, args));
    t.group("jobs", jobs::run);
    t.group("threads", |t| threads::run(t, args));
    t.group("rseq", rseq::run);
    t.group("names", names::run);
    t.group("waiting", waiting::run);
    t.group("proc", |t| proc::run(t, args));
    t.group("misc", misc::run);
    t.group("pointers", |t| pointers::run(t, args));
    rt::sys!(UNLINK, SCRATCH.as_ptr());
    t.close()
}
