//! The machine: one so far.

mod x86_64;
pub use x86_64::*;
