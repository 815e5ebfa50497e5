//! kbench.
#![no_std]
