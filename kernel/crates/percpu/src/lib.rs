//! percpu.
#![no_std]
