//! interval_tree.
#![no_std]
