//! slab.
#![no_std]
