//! The bundle file: kernel ELF and initramfs in one module.
//!
//! ```text
//! 0      magic "TINEBNDL"
//! 8      u32 version (1)          12  u32 header length (4096)
//! 16     u64 kernel offset        24  u64 kernel length
//! 32     u64 initramfs offset     40  u64 initramfs length (0: none)
//! 48     zeros up to 4096
//! 4096   the kernel's ELF, padded to a page
//! ...    the initramfs (a newc cpio archive), padded to a page
//! ```
//! Numbers are little endian, offsets count from the start of the file.
//!
//! # Invariants
//! * INV-BUNDLE-1: in a parsed [`Bundle`] both parts lie inside the file, start on a page and do not overlap.

/// Alignment of every part, and the length of the header, in bytes.
pub const PAGE: u64 = 4096;
/// The first eight bytes of a bundle.
pub const MAGIC: [u8; 8] = *b"TINEBNDL";
/// The version this crate reads and writes.
pub const VERSION: u32 = 1;

/// Bytes of the header that are in use.
const HEADER_USED: usize = 48;
const _: () = assert!(HEADER_USED as u64 <= PAGE && PAGE.is_power_of_two());

/// Why some bytes are no bundle. Any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleError {
    /// The magic is missing: some other kind of file.
    NotABundle,
    /// A bundle, but of a version this build does not read.
    Version(u32),
    /// Shorter than its header or than the parts that the header names.
    Truncated,
    /// A part is not page-aligned, overlaps the header or the other part, or its end is not a number.
    BadPart,
    /// There is no kernel in it.
    NoKernel,
}

impl core::fmt::Display for BundleError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotABundle => write!(f, "not a bundle"),
            Self::Version(v) => write!(
                f,
                "a bundle of version {v}, this build reads version {VERSION}"
            ),
            Self::Truncated => write!(f, "the bundle is truncated"),
            Self::BadPart => write!(f, "a part of the bundle is misplaced"),
            Self::NoKernel => write!(f, "the bundle holds no kernel"),
        }
    }
}

impl core::error::Error for BundleError {}

/// A bundle read in place.
///
/// # Invariants
/// INV-BUNDLE-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bundle<'a> {
    /// The kernel's ELF file.
    pub kernel: &'a [u8],
    /// The initramfs, empty when there is none.
    pub initramfs: &'a [u8],
}

impl<'a> Bundle<'a> {
    /// Whether `bytes` start like a bundle (which [`Bundle::parse`] may still refuse).
    pub fn is_bundle(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// Reads the header and finds the parts. Never panics, whatever `bytes` are. Any context.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BundleError> {
        if !Self::is_bundle(bytes) {
            return Err(BundleError::NotABundle);
        }
        if (bytes.len() as u64) < PAGE {
            return Err(BundleError::Truncated);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(BundleError::Version(version));
        }
        if u64::from(u32_at(bytes, 12)) != PAGE {
            return Err(BundleError::BadPart);
        }
        let kernel = Part::read(bytes, 16)?;
        let initramfs = Part::read(bytes, 32)?;
        if kernel.len() == 0 {
            return Err(BundleError::NoKernel);
        }
        if initramfs.len() > 0 && kernel.start < initramfs.end && initramfs.start < kernel.end {
            return Err(BundleError::BadPart);
        }
        // INVARIANT: INV-BUNDLE-1: Part::read checked bounds and alignment, and the line above the overlap.
        Ok(Self {
            kernel: kernel.of(bytes),
            initramfs: initramfs.of(bytes),
        })
    }
}

/// A range of the file, checked against its length.
#[derive(Clone, Copy)]
struct Part {
    start: u64,
    end: u64,
}

impl Part {
    fn read(bytes: &[u8], at: usize) -> Result<Self, BundleError> {
        let (start, len) = (u64_at(bytes, at), u64_at(bytes, at + 8));
        if len == 0 {
            return Ok(Self { start: 0, end: 0 });
        }
        let end = start.checked_add(len).ok_or(BundleError::BadPart)?;
        if start < PAGE || !start.is_multiple_of(PAGE) {
            return Err(BundleError::BadPart);
        }
        if end > bytes.len() as u64 {
            return Err(BundleError::Truncated);
        }
        Ok(Self { start, end })
    }

    fn len(self) -> u64 {
        self.end - self.start
    }

    fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.end as usize]
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Where the parts of a bundle to be written go. The writer emits [`Layout::header`], then each part at its offset.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Offset and length of the kernel, in bytes.
    pub kernel: (u64, u64),
    /// Offset and length of the initramfs, in bytes.
    pub initramfs: (u64, u64),
    /// Length of the whole file, a multiple of [`PAGE`].
    pub len: u64,
}

impl Layout {
    /// Lays out parts of these lengths in bytes.
    pub fn new(kernel_len: u64, initramfs_len: u64) -> Self {
        let initramfs_at = PAGE + kernel_len.next_multiple_of(PAGE);
        Self {
            kernel: (PAGE, kernel_len),
            initramfs: (initramfs_at, initramfs_len),
            len: initramfs_at + initramfs_len.next_multiple_of(PAGE),
        }
    }

    /// The header page of this layout.
    pub fn header(&self) -> [u8; PAGE as usize] {
        let mut page = [0; PAGE as usize];
        page[..8].copy_from_slice(&MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        page[12..16].copy_from_slice(&(PAGE as u32).to_le_bytes());
        let numbers = [
            self.kernel.0,
            self.kernel.1,
            self.initramfs.0,
            self.initramfs.1,
        ];
        for (i, n) in numbers.iter().enumerate() {
            page[16 + 8 * i..24 + 8 * i].copy_from_slice(&n.to_le_bytes());
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    fn write(kernel: &[u8], initramfs: &[u8]) -> Vec<u8> {
        let layout = Layout::new(kernel.len() as u64, initramfs.len() as u64);
        let mut file = vec![0; layout.len as usize];
        file[..PAGE as usize].copy_from_slice(&layout.header());
        for ((at, _), part) in [(layout.kernel, kernel), (layout.initramfs, initramfs)] {
            file[at as usize..at as usize + part.len()].copy_from_slice(part);
        }
        file
    }

    #[test]
    fn refuses_what_it_should() {
        let good = write(b"kernel", b"ramdisk");
        let with = |at: usize, bytes: &[u8]| {
            let mut file = good.clone();
            file[at..at + bytes.len()].copy_from_slice(bytes);
            file
        };
        assert_eq!(Bundle::parse(b""), Err(BundleError::NotABundle));
        assert_eq!(Bundle::parse(b"\x7fELF"), Err(BundleError::NotABundle));
        assert_eq!(Bundle::parse(&good[..4095]), Err(BundleError::Truncated));
        assert_eq!(Bundle::parse(&good[..4098]), Err(BundleError::Truncated));
        assert_eq!(Bundle::parse(&with(8, &[9])), Err(BundleError::Version(9)));
        assert_eq!(
            Bundle::parse(&with(16, &[1])),
            Err(BundleError::BadPart),
            "kernel off its page"
        );
        assert_eq!(
            Bundle::parse(&with(16, &[0; 8])),
            Err(BundleError::BadPart),
            "kernel on the header"
        );
        assert_eq!(
            Bundle::parse(&with(16, &[0xff; 16])),
            Err(BundleError::BadPart),
            "end beyond 2^64"
        );
        assert_eq!(
            Bundle::parse(&with(24, &[0; 8])),
            Err(BundleError::NoKernel)
        );
        assert_eq!(
            Bundle::parse(&with(32, &PAGE.to_le_bytes())),
            Err(BundleError::BadPart),
            "parts overlap"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn reads_what_was_written(kernel in prop::collection::vec(any::<u8>(), 1..9000),
                                  initramfs in prop::collection::vec(any::<u8>(), 0..9000)) {
            let file = write(&kernel, &initramfs);
            prop_assert_eq!(file.len() as u64 % PAGE, 0);
            let expected = Bundle { kernel: &kernel[..], initramfs: &initramfs[..] };
            prop_assert_eq!(Bundle::parse(&file), Ok(expected));
        }

        #[test]
        fn hostile_headers_never_panic(words in prop::collection::vec(any::<u64>(), 4), bits in 0u32..64,
                                       len in 0usize..20000) {
            let mut file = vec![0u8; len.max(64)];
            file[..8].copy_from_slice(&MAGIC);
            file[8..12].copy_from_slice(&VERSION.to_le_bytes());
            file[12..16].copy_from_slice(&(PAGE as u32).to_le_bytes());
            for (i, w) in words.iter().enumerate() {
                // Small and page-aligned numbers are the ones that get past the first checks.
                let w = if bits > 40 { w >> bits & !(PAGE - 1) } else { *w };
                file[16 + 8 * i..24 + 8 * i].copy_from_slice(&w.to_le_bytes());
            }
            file.truncate(len);
            if let Ok(bundle) = Bundle::parse(&file) {
                prop_assert!(!bundle.kernel.is_empty());
                prop_assert!(bundle.kernel.len() + bundle.initramfs.len() + PAGE as usize <= file.len());
            }
        }
    }
}
