//! Files: the tree of names, inodes, the ram file system, open files, descriptors, pipes.
//!
//! Problem: everything a program does passes here (exec opens, fork copies descriptors, exit
//! closes them), and on a large machine all CPUs do it to the same few directories and files.
//!
//! Mechanism: names are found without locks or counts, under RCU (`dentry`, `namei`); contents are
//! page caches (`regular`); an open file is a closed enum (`file`); a process holds a table of
//! them (`files`) and a place in the tree (`fs_struct`). Operations are plain functions over these,
//! with Linux's rules and Linux's order of errors; user memory comes in as [`BufOut`] and
//! [`BufIn`].
//!
//! Lock order (outer to inner): a file's position, an inode's `sem` or a pipe's ring (these three
//! sleep, and user memory may fault under them: mm's mmap_lock comes inside); the rename lock;
//! directories, an ancestor first; a hash bucket; the table of descriptors and a FIFO's hub are
//! leaves.
//!
//! Invariants: INV-DENTRY in `dentry`, INV-WALK in `namei`, INV-TREE in `tree`, INV-INODE and
//! INV-DIR in `inode`, INV-REG in `regular`, INV-PIPE in `pipe`, INV-FILE in `file`, INV-FD in
//! `files`, INV-FS in `fs_struct`, INV-UIO in `uio`, INV-ANON in `anon`, INV-SYNTH in `synth`, INV-MOUNT in `mount`.
#![no_std]

#[cfg(test)]
extern crate std;

mod anon;
mod dentry;
mod dev;
mod error;
mod file;
mod files;
mod flags;
mod fs_struct;
pub mod hooks;
mod initramfs;
mod inode;
mod mount;
mod namei;
mod open;
mod ops;
mod pipe;
mod poll;
mod qstr;
mod readdir;
mod regular;
mod stat;
mod synth;
mod tree;
pub mod tty;
mod uio;

#[cfg(test)]
mod tests;

pub use anon::{AnonFile, AnonHandle};
pub use dentry::Dentry;
pub use dev::populate as populate_dev;
pub use error::VfsError;
pub use file::{File, Mappable, Whence};
pub use files::{DEFAULT_NOFILE, FdSlot, Files, NR_OPEN_MAX};
pub use flags::*;
pub use fs_struct::FsStruct;
pub use hooks::{ConsoleName, ConsoleOps, Hooks};
pub use initramfs::{InitramfsError, Unpacked, unpack as unpack_initramfs};
pub use inode::{Inode, InodeKind, RAMFS_DEV};
pub use mount::{Mount, mount, nth_mount, umount};
pub use namei::At;
pub use open::{memfd, open, open_exec, pipe, reopen_exec};
pub use ops::*;
pub use pipe::{PIPE_BUF, PIPE_CAPACITY, Pipe};
pub use poll::PollMask;
pub use regular::Regular;
pub use stat::*;
pub use synth::{Listing, SynthAttr, SynthHandle, SynthNode, SynthTarget, Text, decimal};
pub use tree::{RenameFlags, name_of, rename, rmdir, unlink};
pub use uio::{BufIn, BufOut, Efault};
