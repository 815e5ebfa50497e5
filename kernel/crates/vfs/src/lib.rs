//! vfs.
#![no_std]
