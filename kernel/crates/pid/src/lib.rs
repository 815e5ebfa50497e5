//! pid.
#![no_std]
