//! What `xtask`, `boot` and the kernel agree on: the one boot file, and the hand-over of words and ramdisk.
//!
//! # Problem
//! A PVH loader passes exactly one module, but booting takes two files: the kernel's ELF and the initramfs. And
//! `bootloader_api::BootInfo` has no field for the command line.
//!
//! # Mechanism
//! * [`archive`]: a *bundle* is a header page followed by the parts, each starting on a page. `xtask` writes it with
//!   [`Layout`], `boot` reads it with [`Bundle::parse`], which never panics and never reads outside its bytes.
//! * [`words`]: the program to start and its arguments, on the boot line.
//! * [`handover`]: `boot` writes one [`BundleInfo`] and lets `BootInfo::ramdisk_addr` point at it. The kernel reads it
//!   with [`BundleInfo::from_boot`].
//!
//! # Lock order
//! None: everything here is read-only once written.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod archive;
pub mod handover;
pub mod words;

pub use archive::{Bundle, BundleError, Layout, PAGE};
pub use handover::{BundleInfo, HandoverError, Loader};
