//! What can be wrong at boot, in words for the person in front of the console.

use bundle::BundleError;
use core::fmt;

/// Why the kernel cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// Neither the multiboot2 magic in a register nor the PVH magic in memory.
    UnknownLoader(u32),
    /// A structure of the loader does not lie within the low 4 GiB, or is cut short; says which one.
    BadStructure(&'static str),
    /// PVH version 0 has no memory map.
    OldPvh,
    /// More of something than there is room for; says what.
    TooMany(&'static str),
    /// No module is a kernel.
    NoKernel,
    /// A module starts like a bundle but is none.
    Bundle(BundleError),
    /// The kernel's ELF is unusable; says why.
    Kernel(&'static str),
    /// The kernel's `BootloaderConfig` asks for something this loader does not do.
    Config(&'static str),
    /// No free memory of this many bytes in one piece below 4 GiB.
    OutOfMemory(u64),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownLoader(m) => {
                write!(f, "entered neither by PVH nor by multiboot2 (magic {m:#x})")
            }
            Self::BadStructure(which) => {
                write!(f, "the loader's {which} is cut short or above 4 GiB")
            }
            Self::OldPvh => write!(f, "the PVH loader passes no memory map (version 0)"),
            Self::TooMany(what) => write!(f, "more {what} than this loader has room for"),
            Self::NoKernel => write!(
                f,
                "no module holds a kernel (QEMU: -initrd BUNDLE, GRUB: module2 KERNEL.ELF)"
            ),
            Self::Bundle(e) => write!(f, "the boot module: {e}"),
            Self::Kernel(why) => write!(f, "the kernel's ELF: {why}"),
            Self::Config(what) => write!(
                f,
                "the kernel's BootloaderConfig asks for {what}, which this loader lacks"
            ),
            Self::OutOfMemory(n) => {
                write!(f, "no {} KiB of memory in one piece below 4 GiB", n >> 10)
            }
        }
    }
}

impl From<BundleError> for BootError {
    fn from(e: BundleError) -> Self {
        Self::Bundle(e)
    }
}
