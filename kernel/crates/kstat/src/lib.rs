//! kstat.
#![no_std]
