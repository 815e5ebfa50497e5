//! Who runs where: run queues per CPU, placement, stealing. Policy only; the switch itself is the kernel's.
//!
//! # Problem
//! A fork puts a new thread on some CPU, an exit takes one away, a wait sleeps and wakes. On a large machine none of
//! these may look at every CPU or take a lock that all share, and under `-icount` each instruction of a switch counts.
//!
//! # Mechanism
//! One FIFO per CPU under that CPU's lock, round robin with a time slice. Placement first asks for an idle CPU: the
//! CPU itself, then its own node's word of the idle mask, then the other nodes' by distance. The mask is a hint kept
//! by each CPU for itself: one word per 64 CPUs of a node, so that finding an idle CPU reads a handful of words. A CPU
//! about to idle first tries to steal a waiting thread, nearest node first.
//!
//! A thread is in one of these states, in its [`Entity`]:
//!
//! ```text
//!            enqueue                pick_next
//!  PARKED ------------> QUEUED ------------------> RUNNING --.
//!    ^  unpark wins the swap        put_prev (preempted)     | park: CAS RUNNING -> PARKED, IRQs off,
//!    |                    ^---------------------- RUNNING    | refused when a token waits
//!    '-------------------------------------------------------'
//! ```
//!
//! # Lock order
//! `rq_lock` (IRQs off) is innermost but for nothing; two run queues are never locked together: a stolen thread is
//! taken from one, the lock dropped, and put on the other.
//!
//! # Invariants
//! - INV-SCHED-1: a thread is in at most one run queue; the queue owns one reference to it.
//! - INV-SCHED-2: `wake` goes to PARKED only by the thread itself with IRQs off until the
//!   switch is over, and from PARKED only by
//!   one waker, who then owns the right to enqueue it.
//! - INV-SCHED-3: a waker enqueues only after `on_cpu` reads false, so no stack is ever run by two CPUs.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod entity;
mod idle;
mod runqueue;

pub use entity::{Entity, Schedulable, Wake};
pub use idle::IdleMask;
pub use runqueue::{RunQueue, TIME_SLICE_NS};

/// The link slot of threads that run queues use. Slots 0 and 1 belong to the pid lists.
pub const RQ_SLOT: usize = 2;

/// The CPUs that `from` should ask for work, or offer work to, nearest first: its own node's, then the others by
/// `distance_order`, at most `limit` of them. A CPU starts with its successor, so that thieves spread.
pub fn neighbours(from: usize, cpus_of_node: &[usize]) -> impl Iterator<Item = usize> + '_ {
    let start = cpus_of_node
        .iter()
        .position(|&c| c == from)
        .map_or(0, |i| i + 1);
    (0..cpus_of_node.len())
        .map(move |i| cpus_of_node[(start + i) % cpus_of_node.len()])
        .filter(move |&c| c != from)
}

#[cfg(test)]
mod tests;
