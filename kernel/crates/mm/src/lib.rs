//! mm.
#![no_std]
