//! ksync.
#![no_std]
