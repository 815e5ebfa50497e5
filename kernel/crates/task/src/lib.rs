//! task.
#![no_std]
