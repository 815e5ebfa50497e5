//! kparam.
#![no_std]
