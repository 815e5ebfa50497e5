//! The measuring loop, shared by the kernel and the host tools.
//!
//! # Problem
//! A figure is worth something only when the code that measures costs little, never allocates or
//! prints inside the timed region, and when the same arithmetic makes every figure, whether the
//! kernel, a host micro-benchmark or a report computes it.
//!
//! # Mechanism
//! Each worker owns one [`Histogram`] and one [`Phases`]; both are allocated before the timed
//! region, recording into them is a few instructions, and [`measure()`] is the loop that does it.
//! After the region the workers' results are merged (in any order, with the same result) into a
//! [`record::Record`], which becomes one JSON line for programs and a [`table::Table`] for people.
//!
//! # Locks
//! None. A histogram belongs to one worker until the merge.
//!
//! # Invariants
//! * INV-KBENCH-1: `count` is the sum of all buckets; `min <= every quantile <= max`.
//! * INV-KBENCH-2: a quantile differs from the true sample of that rank by less than 1 %, for
//!   samples below [`histogram::LIMIT`].
//! * INV-KBENCH-3: merging is commutative and equals recording everything into one histogram.
//! * INV-KBENCH-4: a [`phase::Timer`] attributes each cycle between its start and its end to
//!   exactly one phase.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod histogram;
pub mod measure;
pub mod phase;
pub mod record;
pub mod table;

pub use histogram::Histogram;
pub use measure::{Overhead, measure};
pub use phase::{Phase, Phases};
pub use record::Record;
pub use table::Table;
