//! What a user program needs and `std` would bring: start, system calls, printing, threads.
//!
//! # Problem
//! The kernel's test subjects must be small, must do exactly the system calls they name, and must
//! run on Linux as they are, since Linux is the judge of what each call should answer.
//!
//! # Mechanism
//! [`entry!`] makes `_start`, which reads the initial stack into [`Args`]. The macro [`sys!`] is one
//! system call with its raw result; a negative result is an [`Errno`]. Output goes through a
//! fixed-size [`Line`], one `write` per line, so lines of several processes don't mix. No
//! allocator, no formatting machinery.
//!
//! # Invariants
//! * INV-PROG-1: a buffer named in a system call either belongs to the caller for the length of the
//!   call, or is one that the kernel must refuse; memory given to `munmap`, `mprotect` and `MAP_FIXED`
//!   is memory that the program mapped for that purpose.
//! * INV-PROG-2: between a `vfork` and the child's exec or exit no Rust code runs in the child.
#![no_std]

pub mod abi;
pub mod errno;
pub mod io;
pub mod nr;
pub mod process;
pub mod signal;
pub mod start;
pub mod suite;
pub mod sys;
pub mod thread;
pub mod time;

pub use errno::Errno;
pub use io::Line;
pub use start::Args;
pub use suite::Suite;

/// A panic is a failed program: it says so and exits with 101. Nothing is formatted.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    Line::new().text("panic in a test program").end();
    process::exit_group(101)
}
