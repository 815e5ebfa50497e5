//! Which module is what: told by its first bytes, not by its place.

use crate::{
    error::BootError,
    info::{LoaderInfo, Memory, Range},
};
use bundle::Bundle;

/// The two files that booting takes, in place.
pub struct Modules<'a> {
    /// The kernel's ELF file.
    pub kernel: &'a [u8],
    /// The initramfs, empty when there is none.
    pub initramfs: &'a [u8],
}

/// Finds kernel and initramfs: a bundle has both; else an ELF file is the kernel and anything else the initramfs.
/// The first of each kind counts.
pub fn find<'a>(info: &LoaderInfo<'a>, memory: &Memory<'a>) -> Result<Modules<'a>, BootError> {
    let (mut kernel, mut initramfs): (&[u8], &[u8]) = (&[], &[]);
    for &Range { start, end } in &info.modules {
        let bytes = memory(start, end - start).ok_or(BootError::BadStructure("module"))?;
        let (as_kernel, as_initramfs): (&[u8], &[u8]) = if Bundle::is_bundle(bytes) {
            let bundle = Bundle::parse(bytes)?;
            (bundle.kernel, bundle.initramfs)
        } else if bytes.starts_with(&elf::abi::ELFMAGIC) {
            (bytes, &[])
        } else {
            (&[], bytes)
        };
        kernel = if kernel.is_empty() { as_kernel } else { kernel };
        initramfs = if initramfs.is_empty() {
            as_initramfs
        } else {
            initramfs
        };
    }
    if kernel.is_empty() {
        return Err(BootError::NoKernel);
    }
    Ok(Modules { kernel, initramfs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::{Layout, Loader};

    fn find_in(modules: &[&[u8]]) -> Result<(Vec<u8>, Vec<u8>), BootError> {
        let (mut memory, mut info) = (vec![0u8; 4096], LoaderInfo::new(Loader::Pvh));
        for module in modules {
            info.push_module(memory.len() as u64, module.len() as u64)
                .unwrap();
            memory.extend(*module);
        }
        let reader = |addr: u64, len: u64| memory.get(addr as usize..(addr + len) as usize);
        find(&info, &reader).map(|m| (m.kernel.to_vec(), m.initramfs.to_vec()))
    }

    #[test]
    fn bundle_or_two_modules_in_any_order() {
        let layout = Layout::new(5, 3);
        let mut bundle = vec![0; layout.len as usize];
        bundle[..4096].copy_from_slice(&layout.header());
        bundle[4096..4101].copy_from_slice(b"\x7fELFk");
        bundle[8192..8195].copy_from_slice(b"ram");
        let expected = Ok((b"\x7fELFk".to_vec(), b"ram".to_vec()));
        assert_eq!(find_in(&[&bundle]), expected);
        assert_eq!(find_in(&[b"\x7fELFk", b"ram"]), expected);
        assert_eq!(find_in(&[b"ram", b"\x7fELFk"]), expected);
        assert_eq!(find_in(&[b"ram"]), Err(BootError::NoKernel));
        assert_eq!(find_in(&[]), Err(BootError::NoKernel));
        assert!(matches!(
            find_in(&[&bundle[..4097]]),
            Err(BootError::Bundle(_))
        ));
    }
}
