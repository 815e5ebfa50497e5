//! What `stat` and `statfs` answer, before the edge lays it out.

use crate::flags::DevId;

/// A time: nanoseconds since 1970, which lasts until 2554.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timespec {
    /// Nanoseconds since 1970.
    pub ns: u64,
}

impl Timespec {
    /// Whole seconds.
    pub fn sec(self) -> u64 {
        self.ns / 1_000_000_000
    }
    /// Nanoseconds within the second.
    pub fn nsec(self) -> u64 {
        self.ns % 1_000_000_000
    }
}

/// Attributes of a file.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Kstat {
    /// The file system's device number.
    pub dev: DevId,
    /// Inode number.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The device that the inode stands for; 0:0 unless it is one.
    pub rdev: DevId,
    /// Length in bytes.
    pub size: u64,
    /// Preferred length of a transfer, in bytes.
    pub blksize: u32,
    /// Memory in use, in units of 512 bytes.
    pub blocks: u64,
    /// Last read.
    pub atime: Timespec,
    /// Last write.
    pub mtime: Timespec,
    /// Last change of the inode.
    pub ctime: Timespec,
    /// Creation.
    pub btime: Timespec,
}

/// Attributes of a file system.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Kstatfs {
    /// Magic number of its kind.
    pub f_type: u64,
    /// Unit of the next three, in bytes.
    pub bsize: u64,
    /// Size, in blocks; 0: no limit of its own.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for users.
    pub bavail: u64,
    /// Greatest number of inodes; 0: no limit of its own.
    pub files: u64,
    /// Of these, free.
    pub ffree: u64,
    /// Greatest length of a name.
    pub namelen: u64,
}

/// `f_type` of the ram file system.
pub const TMPFS_MAGIC: u64 = 0x0102_1994;
/// `f_type` of synthetic files.
pub const PROC_SUPER_MAGIC: u64 = 0x9fa0;
/// `f_type` of pipes.
pub const PIPEFS_MAGIC: u64 = 0x5049_5045;
/// `f_type` of anonymous files.
pub const ANON_INODE_FS_MAGIC: u64 = 0x0904_1934;
