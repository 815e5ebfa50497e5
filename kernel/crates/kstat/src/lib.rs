//! Counters: named, documented where they are declared, one word per CPU.
//!
//! # Problem
//! "How many forks, how many of them failed, how many page faults were minor?" must be answerable
//! in every run, for every variant, exactly (leak checks compare counts), at a cost that nobody
//! notices: no shared cache line, no lock, any context.
//!
//! # Mechanism
//! [`counters!`] declares an enum; each variant is a counter, its doc comment is its description.
//! Behind the enum stands a static array of one block of words per possible CPU, each block on
//! cache lines of its own:
//!
//! ```text
//!   Stat::nr_forks.inc()            CPU 0            CPU 1            CPU 2
//!      this CPU's id   ------->  | forks | execs |  | forks | execs |  | ...
//!      one atomic add               8 B each, blocks padded to 64 B
//! ```
//!
//! The add is atomic although the line is almost always this CPU's own: a thread that is preempted
//! and moved between reading the CPU's id and adding, or interrupted by a handler that counts the
//! same thing, loses nothing, and nobody has to turn off anything. An increment is about five
//! instructions. Reading sums over the CPUs.
//!
//! The arrays are static on purpose: counting works from the first instruction on with nothing to
//! set up, and an increment follows no pointer. The price is memory, 32 KiB at 512 CPUs for each
//! eight counters of a set; so a crate declares one set, not one per file.
//!
//! This crate does not know where it runs. The declaration names the module that does: it has
//! `NR_CPUS`, `arch::smp_processor_id()` and `arch::nr_cpu_ids()` (in the kernel: `ksync`).
//!
//! ```
//! # mod ksync { pub const NR_CPUS: usize = 4;
//! #     pub mod arch { pub fn smp_processor_id() -> usize { 1 } pub fn nr_cpu_ids() -> usize { 4 } } }
//! use kstat::Counters;
//! kstat::counters! {
//!     /// Life of processes.
//!     pub enum Stat on ksync {
//!         /// Children made by fork, vfork and clone.
//!         nr_forks,
//!         /// Programs started by exec.
//!         nr_execs,
//!     }
//! }
//! Stat::nr_forks.inc();
//! assert_eq!((Stat::nr_forks.sum(), Stat::nr_execs.sum()), (1, 0));
//! ```
//!
//! # Invariants
//! - INV-STAT-1: a sum taken while nobody counts is the number of increments since boot (modulo
//!   2^64), whatever was preempted, interrupted or migrated.

#![no_std]
#![forbid(unsafe_code)]

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter's documentation.
#[derive(Copy, Clone, Debug)]
pub struct Row {
    /// As declared.
    pub name: &'static str,
    /// Lines of its doc comment.
    pub doc: &'static [&'static str],
}

/// One CPU's words of a set, on cache lines of their own.
#[repr(align(64))]
pub struct Block<const N: usize>([AtomicU64; N]);

impl<const N: usize> Block<N> {
    /// All zero.
    #[allow(clippy::declare_interior_mutable_const)]
    pub const ZERO: Self = Block([const { AtomicU64::new(0) }; N]);

    /// The word of counter `i`, below N.
    #[inline(always)]
    pub fn word(&self, i: usize) -> &AtomicU64 {
        &self.0[i]
    }
}

/// A set of counters; implemented by [`counters!`] for the enum it declares.
pub trait Counters: Copy + 'static {
    /// Every counter, in the order declared.
    const ALL: &'static [Self];

    /// Name and doc of this counter.
    fn row(self) -> &'static Row;

    /// This counter's word on a CPU.
    fn word(self, cpu: usize) -> &'static AtomicU64;

    /// The CPU that asks.
    fn this_cpu() -> usize;

    /// CPUs whose words may not be zero.
    fn nr_cpus() -> usize;

    /// Counts one. Any context.
    #[inline(always)]
    fn inc(self) {
        self.add(1);
    }

    /// Counts `n`. Any context.
    #[inline(always)]
    fn add(self, n: u64) {
        self.word(Self::this_cpu()).fetch_add(n, Relaxed);
    }

    /// The count of all CPUs since boot. Reads one line per CPU: not for hot paths.
    fn sum(self) -> u64 {
        (0..Self::nr_cpus()).fold(0u64, |sum, cpu| {
            sum.wrapping_add(self.word(cpu).load(Relaxed))
        })
    }
}

/// Writes a line per counter: name, sum, first line of the doc. With `all` false only what was
/// counted at all.
pub fn write_list<S: Counters>(all: bool, out: &mut dyn fmt::Write) -> fmt::Result {
    let width = S::ALL.iter().map(|c| c.row().name.len()).max().unwrap_or(0);
    for counter in S::ALL {
        let (row, sum) = (counter.row(), counter.sum());
        if all || sum != 0 {
            let doc = row.doc.first().map_or("", |d| d.trim());
            writeln!(out, "{:width$} {sum:>12}  {doc}", row.name)?;
        }
    }
    Ok(())
}

/// Declares a set of counters; see the crate's head.
#[macro_export]
macro_rules! counters {
    ($(#[$attr:meta])* $vis:vis enum $name:ident on $machine:ident {
        $($(#[doc = $doc:literal])+ $counter:ident,)+
    }) => {
        $(#[$attr])*
        #[allow(non_camel_case_types, missing_docs)]
        #[derive(Copy, Clone, PartialEq, Eq, Debug)]
        $vis enum $name { $($(#[doc = $doc])+ $counter,)+ }

        impl $crate::Counters for $name {
            const ALL: &'static [Self] = &[$(Self::$counter),+];

            fn row(self) -> &'static $crate::Row {
                const ROWS: &[$crate::Row] =
                    &[$($crate::Row { name: stringify!($counter), doc: &[$($doc),+] }),+];
                &ROWS[self as usize]
            }

            #[inline(always)]
            fn word(self, cpu: usize) -> &'static core::sync::atomic::AtomicU64 {
                const NR: usize = <$name as $crate::Counters>::ALL.len();
                static BLOCKS: [$crate::Block<NR>; $machine::NR_CPUS] =
                    [const { $crate::Block::ZERO }; $machine::NR_CPUS];
                BLOCKS[cpu].word(self as usize)
            }

            #[inline(always)]
            fn this_cpu() -> usize {
                $machine::arch::smp_processor_id()
            }

            fn nr_cpus() -> usize {
                $machine::arch::nr_cpu_ids()
            }
        }
    };
}
