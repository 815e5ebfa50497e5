//! sched.
#![no_std]
