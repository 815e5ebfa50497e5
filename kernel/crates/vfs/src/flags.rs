//! The numbers of Linux's file interface: open flags, modes, device numbers.

bitflags::bitflags! {
    /// Flags of `open` and of an open file (x86-64 values). Unknown bits are kept and ignored.
    #[derive(Copy, Clone, Debug, PartialEq, Eq)]
    pub struct OpenFlags: u32 {
        /// Write only (the two lowest bits are a number: 0 read, 1 write, 2 both, 3 neither).
        const WRONLY = 0o1;
        /// Read and write.
        const RDWR = 0o2;
        /// Make the file if the name is free.
        const CREAT = 0o100;
        /// With CREAT: the name must be free.
        const EXCL = 0o200;
        /// A terminal does not become the controlling one.
        const NOCTTY = 0o400;
        /// Cut to length 0.
        const TRUNC = 0o1000;
        /// Every write goes to the end.
        const APPEND = 0o2000;
        /// Do not wait.
        const NONBLOCK = 0o4000;
        /// Accepted, without effect here.
        const DSYNC = 0o10000;
        /// Accepted, without effect here.
        const ASYNC = 0o20000;
        /// Accepted, without effect here.
        const DIRECT = 0o40000;
        /// Accepted, always so on x86-64.
        const LARGEFILE = 0o100000;
        /// Only a directory.
        const DIRECTORY = 0o200000;
        /// Not through a symbolic link at the end of the path.
        const NOFOLLOW = 0o400000;
        /// Do not touch the access time.
        const NOATIME = 0o1000000;
        /// The descriptor is closed by exec.
        const CLOEXEC = 0o2000000;
        /// Accepted, without effect here (includes DSYNC).
        const SYNC = 0o4010000;
        /// Only a name for the object: no reading, no writing.
        const PATH = 0o10000000;
        /// A file without a name: not supported.
        const TMPFILE = 0o20200000;
        const _ = !0;
    }
}

/// The two lowest bits of [`OpenFlags`].
pub const O_ACCMODE: u32 = 3;

/// Type bits of a mode.
pub const S_IFMT: u32 = 0o170000;
/// Socket.
pub const S_IFSOCK: u32 = 0o140000;
/// Symbolic link.
pub const S_IFLNK: u32 = 0o120000;
/// Regular file.
pub const S_IFREG: u32 = 0o100000;
/// Block device.
pub const S_IFBLK: u32 = 0o060000;
/// Directory.
pub const S_IFDIR: u32 = 0o040000;
/// Character device.
pub const S_IFCHR: u32 = 0o020000;
/// FIFO.
pub const S_IFIFO: u32 = 0o010000;
/// What chmod can change.
pub const S_IALLUGO: u32 = 0o7777;
/// Any execute bit.
pub const S_IXUGO: u32 = 0o111;

/// Greatest length of a name, in bytes.
pub const NAME_MAX: usize = 255;
/// Greatest length of a path, in bytes, its terminating zero included.
pub const PATH_MAX: usize = 4096;
/// Greatest number of symbolic links in one walk.
pub const MAXSYMLINKS: usize = 40;
/// Greatest number of links of one file.
pub const LINK_MAX: u32 = 65000;
/// Greatest size of a file, in bytes.
pub const MAX_LFS_FILESIZE: u64 = i64::MAX as u64;

/// A device number.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct DevId {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl DevId {
    /// From the two numbers.
    pub const fn new(major: u32, minor: u32) -> Self {
        DevId { major, minor }
    }

    /// As `st_rdev` holds it: `(minor & 0xff) | major << 8 | (minor & !0xff) << 12`, major above
    /// 12 bits in the upper word.
    pub const fn encode(self) -> u64 {
        let (ma, mi) = (self.major as u64, self.minor as u64);
        (mi & 0xff) | (ma & 0xfff) << 8 | (mi & !0xff) << 12 | (ma & !0xfff) << 32
    }

    /// From `mknod`'s argument (32 bits).
    pub const fn decode(dev: u32) -> Self {
        DevId {
            major: dev >> 8 & 0xfff,
            minor: (dev & 0xff) | (dev >> 12 & 0xfff00),
        }
    }
}
