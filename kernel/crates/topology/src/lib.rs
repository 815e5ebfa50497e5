//! topology.
#![no_std]
