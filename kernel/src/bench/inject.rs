//! Every allocation of an operation fails once: the caller gets ENOMEM and nothing is lost.

use super::leak;
use super::tiny::Tiny;
use crate::errno::Errno;
use page_alloc::fault_inject;

/// Sites per operation beyond which something is wrong with the test itself.
const MAX_SITES: u32 = 2_000;

/// Runs fork, exec, fork+exec and thread creation with their 1st, 2nd, ... allocation failing, until one succeeds
/// without reaching the failure; then compares what is in use. Ends the machine.
pub fn run() -> ! {
    let mut failed = false;
    let (mut before, mut after) = (leak::Snapshot::new(), leak::Snapshot::new());
    type Operation = fn(&Tiny) -> Result<(), Errno>;
    let operations: [(&str, Operation); 3] = [
        ("fork", Tiny::fork),
        ("exec", Tiny::exec),
        ("thread", Tiny::thread),
    ];
    for (name, operation) in operations {
        let tiny = Tiny::new();
        operation(&tiny).expect("an operation without injection");
        before.take();
        let mut sites = 0;
        for nth in 1..MAX_SITES {
            fault_inject::set_fail_nth(nth);
            let result = operation(&tiny);
            let reached = fault_inject::fail_nth() == 0;
            fault_inject::set_fail_nth(0);
            match result {
                Ok(()) if !reached => break,
                Ok(()) => {} // an allocation whose failure is absorbed
                Err(e) if e == Errno::ENOMEM => {}
                Err(e) => {
                    println!("fault-inject {name}: allocation {nth} failed with {e}, not ENOMEM");
                    failed = true;
                }
            }
            sites = nth;
        }
        after.take();
        let leaks = before.compare(&after);
        for l in &leaks {
            println!(
                "fault-inject {name}: {}: {} before, {} after",
                l.what, l.before, l.after
            );
        }
        failed |= !leaks.is_empty() || sites == 0;
        println!("fault-inject {name}: {sites} allocations failed in turn");
    }
    crate::power::off(failed as i32)
}
