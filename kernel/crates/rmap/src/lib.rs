//! rmap.
#![no_std]
