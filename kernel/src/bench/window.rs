//! Where measuring begins and ends, for whoever counts the time.
//!
//! Every worker calls [`begin`] when all of them are ready and [`end`] after its last operation; nothing but operations
//! and readings of the clock happens in between. A simulator that gives each CPU a clock of its own starts the clocks at
//! `begin`.

/// All workers are at the gate: from here on time counts.
#[inline]
pub fn begin() {}

/// This worker's last operation is over.
#[inline]
pub fn end() {}
