//! Deliberate failures, chosen by `test=`: they show that the kernel reports what goes wrong.

use crate::params::TestWord;

/// Runs one; those that are meant to end the machine do not return.
pub fn run(test: TestWord) {
    match test {
        TestWord::Panic => panic!("asked for by test=panic"),
        TestWord::StackOverflow => overflow(0),
        TestWord::Hang => loop {
            ksync::arch::park();
        },
        TestWord::Lockup => loop {
            x86_64::instructions::interrupts::disable();
            ksync::arch::cpu_relax();
        },
        TestWord::NullRead => {
            // SAFETY: none: the access is the test, and it ends the machine.
            let value =
                unsafe { core::ptr::without_provenance::<u64>(0xdead_f000).read_volatile() };
            println!("read {value} from nowhere");
        }
        TestWord::Lockdep => crate::debug::plant_lock_bugs(),
        TestWord::Slab => crate::debug::plant_slab_bugs(),
        TestWord::FaultInject => crate::bench::inject::run(),
    }
}

/// Uses up the kernel stack.
#[inline(never)]
fn overflow(depth: usize) {
    let ballast = core::hint::black_box([depth as u8; 512]);
    if depth < usize::MAX {
        overflow(depth + 1);
    }
    core::hint::black_box(&ballast);
}
