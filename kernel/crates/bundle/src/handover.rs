//! The hand-over from `boot` to the kernel beyond `bootloader_api::BootInfo`: command line, initramfs, image address.
//!
//! `BootInfo::ramdisk_addr` holds the address of a [`BundleInfo`], and `ramdisk_len` its size. All addresses in it are
//! virtual ones inside the direct map, and all they name lies in regions marked `Bootloader`.
//!
//! # Invariants
//! * INV-HANDOVER-1: the ranges of a `BundleInfo` with the right magic stay mapped and unchanged for as long as the
//!   kernel does not free the `Bootloader` regions.

use core::{mem, slice};

/// "TINEINFO" in the bytes of [`BundleInfo::magic`].
pub const MAGIC: u64 = u64::from_le_bytes(*b"TINEINFO");
/// Grows when the layout changes.
pub const VERSION: u32 = 1;

/// How `boot` was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Loader {
    /// By the PVH note: QEMU's `-kernel`, Xen, Firecracker.
    Pvh = 1,
    /// By multiboot2: GRUB on a real machine.
    Multiboot2 = 2,
}

impl Loader {
    /// Its name, for the boot line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pvh => "pvh",
            Self::Multiboot2 => "multiboot2",
        }
    }
}

/// Why the kernel cannot use what it was handed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandoverError {
    /// Null, misaligned, or shorter than the structure.
    BadAddress,
    /// Some other loader's ramdisk.
    BadMagic,
    /// `boot` and kernel come from different versions.
    Version(u32),
}

/// What `boot` hands over beside `BootInfo`. Written once by `boot`, read by the kernel.
///
/// # Invariants
/// INV-HANDOVER-1.
#[derive(Debug)]
#[repr(C)]
pub struct BundleInfo {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// A [`Loader`].
    pub loader: u32,
    /// Address and length of the command line (no terminating zero), as the loader passed it.
    pub cmdline: [u64; 2],
    /// Address and length of the initramfs; length 0 when there is none. Page-aligned when it came in a bundle.
    pub initramfs: [u64; 2],
    /// Physical address at which the image lies in one piece: the virtual address `image_virt + x` is `image_phys + x`.
    pub image_phys: u64,
    /// Virtual address of the start of the image.
    pub image_virt: u64,
    /// Length of the image in bytes, a multiple of the page size.
    pub image_len: u64,
    /// Physical address of the page table that is active at entry.
    pub pml4_phys: u64,
    /// The time-stamp counter when `boot` was entered.
    pub entry_tsc: u64,
}

impl BundleInfo {
    /// Reads what `boot` left at `BootInfo::ramdisk_addr`, of `BootInfo::ramdisk_len` bytes. Any context.
    ///
    /// # Safety
    /// `addr` must be null or readable for `len` bytes that nobody writes, and if a structure with the right magic
    /// is there, INV-HANDOVER-1 must hold for it.
    pub unsafe fn from_boot(addr: u64, len: u64) -> Result<&'static Self, HandoverError> {
        let pointer = addr as *const Self;
        if pointer.is_null() || !pointer.is_aligned() || len < mem::size_of::<Self>() as u64 {
            return Err(HandoverError::BadAddress);
        }
        // SAFETY: not null, aligned, long enough (checked above) and readable (the caller's promise); every bit
        // pattern is a valid BundleInfo.
        let info = unsafe { &*pointer };
        match (info.magic, info.version) {
            (MAGIC, VERSION) => Ok(info),
            (MAGIC, version) => Err(HandoverError::Version(version)),
            _ => Err(HandoverError::BadMagic),
        }
    }

    /// The words on the boot line.
    pub fn cmdline(&self) -> &'static [u8] {
        // SAFETY: INV-HANDOVER-1.
        unsafe { bytes(self.cmdline) }
    }

    /// The initramfs, empty when there is none.
    pub fn initramfs(&self) -> &'static [u8] {
        // SAFETY: INV-HANDOVER-1.
        unsafe { bytes(self.initramfs) }
    }

    /// How `boot` was entered, if this version knows it.
    pub fn loader(&self) -> Option<Loader> {
        [Loader::Pvh, Loader::Multiboot2]
            .into_iter()
            .find(|l| *l as u32 == self.loader)
    }
}

/// The bytes of an [address, length] pair.
///
/// # Safety
/// They must be readable and unchanged for good, unless the length is 0.
unsafe fn bytes([addr, len]: [u64; 2]) -> &'static [u8] {
    if addr == 0 || len == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { slice::from_raw_parts(addr as *const u8, len as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(words: &'static [u8]) -> BundleInfo {
        BundleInfo {
            magic: MAGIC,
            version: VERSION,
            loader: Loader::Multiboot2 as u32,
            cmdline: [words.as_ptr() as u64, words.len() as u64],
            initramfs: [0, 0],
            image_phys: 0,
            image_virt: 0,
            image_len: 0,
            pml4_phys: 0,
            entry_tsc: 0,
        }
    }

    fn read(info: &BundleInfo, len: u64) -> Result<&'static BundleInfo, HandoverError> {
        // SAFETY: a live structure whose ranges are static; the tests drop the result before the structure.
        unsafe { BundleInfo::from_boot(info as *const BundleInfo as u64, len) }
    }

    #[test]
    fn round_trip() {
        let info = sample(b"bench=fork ops=10");
        let got = read(&info, mem::size_of::<BundleInfo>() as u64).unwrap();
        assert_eq!(got.cmdline(), b"bench=fork ops=10");
        assert_eq!(got.initramfs(), b"");
        assert_eq!(got.loader(), Some(Loader::Multiboot2));
    }

    #[test]
    fn refuses_strangers() {
        let size = mem::size_of::<BundleInfo>() as u64;
        // SAFETY: null is allowed.
        let null = unsafe { BundleInfo::from_boot(0, size) };
        assert_eq!(null.err(), Some(HandoverError::BadAddress));
        let mut info = sample(b"");
        assert_eq!(read(&info, size - 1).err(), Some(HandoverError::BadAddress));
        info.version = 7;
        assert_eq!(read(&info, size).err(), Some(HandoverError::Version(7)));
        info.magic = 0;
        assert_eq!(read(&info, size).err(), Some(HandoverError::BadMagic));
    }
}
