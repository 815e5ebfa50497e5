//! xarray.
#![no_std]
