//! Simulated NUMA time for QEMU's TCG: a clock per emulated CPU, moved by instructions and by a model of coherence.
//!
//! # Problem
//! An emulator has no caches, and hundreds of emulated CPUs share a few host cores: wall time says nothing about
//! contention. What a lock or a counter costs on a machine with hundreds of CPUs must still come out, and come out
//! the same on every host and in every run.
//!
//! # Mechanism
//! A discrete-event simulation whose coroutines are QEMU's own CPU threads. Exactly one runs, the one that is
//! furthest behind in simulated time ([`token`]). Each instruction takes a cycle; each access to memory is charged by
//! who else holds its line and how far away ([`coherence`], [`store_buffer`]); a spinning CPU sleeps on the host
//! until its line is written ([`spin`]). The guest says when by executing NOPs that mean something ([`protocol`]).
//! [`attribution`] keeps account of the lines and the code that lost cycles; [`output`] writes it down. Everything so
//! far is plain data and tested without QEMU; `plugin` joins it with QEMU's threads through `ffi`.
//!
//! # Invariants
//! - INV-SIM-1: while the simulation is on, what the model holds is touched only by the thread that has the token.
//! - INV-SIM-2: a CPU's clock never goes back.
//! - INV-SIM-3: a line has at most one owner, and then no other CPU has a copy of it.
//! - INV-SIM-4: nothing that enters the simulation depends on the host's time.

pub mod attribution;
pub mod coherence;
pub mod config;
#[cfg(not(test))]
mod ffi;
pub mod output;
#[cfg(not(test))]
mod plugin;
pub mod protocol;
pub mod spin;
pub mod store_buffer;
pub mod token;
