//! Building what is booted: boot, kernel, user programs, and the bundle that QEMU is handed.

use crate::{
    apt::Installer,
    initramfs::Initramfs,
    paths,
    progress::Step,
    toolchain::{KERNEL_FLAGS, TARGET, Toolchain, USER_FLAGS},
};
use anyhow::{Context, Result, bail};
use elf::{ElfBytes, abi, endian::LittleEndian};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

/// The programs that were built.
pub struct Artifacts {
    /// The loader stage, for QEMU's `-kernel`.
    pub boot: PathBuf,
    /// The kernel, with its symbols.
    pub kernel: PathBuf,
    /// User programs: name and file.
    pub programs: Vec<(String, PathBuf)>,
}

impl Artifacts {
    /// Builds everything.
    pub fn build(toolchain: &Toolchain) -> Result<Self> {
        Self::build_shuffled(toolchain, None)
    }

    /// The same, the kernel's functions and variables in another order for each `seed`.
    pub fn build_shuffled(toolchain: &Toolchain, seed: Option<u32>) -> Result<Self> {
        let mut system = toolchain.cargo("build", KERNEL_FLAGS);
        if let Some(seed) = seed {
            system.env("TINE_LAYOUT", seed.to_string());
        }
        system.args(["--release", "-p", "boot", "-p", "kernel"]);
        let system = executables("building boot and kernel", system)?;
        let mut users = toolchain.cargo("build", USER_FLAGS);
        users.args(["--profile", "user", "-p", "programs"]);
        let programs = executables("building the user programs", users)?;
        let named = |name: &str| {
            let found = system
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, path)| path.clone());
            found.with_context(|| format!("cargo built no {name}"))
        };
        Ok(Self {
            boot: named("boot")?,
            kernel: named("kernel")?,
            programs,
        })
    }

    /// An initramfs with the user programs in /bin, and `init` also where the kernel looks for it.
    pub fn initramfs(&self) -> Result<Initramfs> {
        let mut archive = Initramfs::new();
        for (name, path) in &self.programs {
            archive.add_program(&format!("bin/{name}"), path)?;
            if name == "init" {
                archive.add_program("init", path)?;
            }
        }
        Ok(archive)
    }

    /// Writes kernel and `initramfs` as one file at `path`.
    pub fn write_bundle(&self, initramfs: &[u8], path: &Path) -> Result<()> {
        let file = fs::read(&self.kernel)
            .with_context(|| format!("cannot read {}", self.kernel.display()))?;
        let kernel =
            stripped(&file).with_context(|| format!("cannot use {}", self.kernel.display()))?;
        let layout = bundle::Layout::new(kernel.len() as u64, initramfs.len() as u64);
        let mut out = fs::File::create(path)?;
        out.write_all(&layout.header())?;
        for part in [&kernel[..], initramfs] {
            out.write_all(part)?;
            out.write_all(&vec![
                0;
                part.len().next_multiple_of(bundle::PAGE as usize)
                    - part.len()
            ])?;
        }
        Ok(())
    }
}

/// Runs a `cargo build` and returns the executables it made, or already had, by name.
fn executables(title: &str, mut cargo: Command) -> Result<Vec<(String, PathBuf)>> {
    cargo.arg("--message-format=json-render-diagnostics");
    let output = Step::new(title).run(cargo)?;
    let mut found = Vec::new();
    for line in output.lines() {
        let message: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        if let (Some(path), Some(name)) = (
            message["executable"].as_str(),
            message["target"]["name"].as_str(),
        ) {
            found.push((name.to_string(), PathBuf::from(path)));
        }
    }
    found.sort();
    Ok(found)
}

/// The kernel without symbols and debug information, which only xtask needs: the file up to the end of the last loaded
/// segment, and a section table with the one section that boot reads.
fn stripped(file: &[u8]) -> Result<Vec<u8>> {
    const WANTED: &str = ".bootloader-config";
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file)?;
    let segments = elf.segments().context("no program headers")?;
    let loaded = segments.iter().filter(|s| s.p_type == abi::PT_LOAD);
    let end = loaded
        .map(|s| s.p_offset + s.p_filesz)
        .max()
        .context("no loaded segment")?;
    let section = elf
        .section_header_by_name(WANTED)?
        .context("no .bootloader-config: is entry_point! used?")?;
    if section.sh_offset + section.sh_size > end {
        bail!("{WANTED} lies outside the loaded segments (kernel.ld)");
    }
    let mut out = file.get(..end as usize).context("truncated")?.to_vec();
    let names = format!("\0{WANTED}\0.shstrtab\0");
    let names_at = out.len();
    out.extend(names.as_bytes());
    out.resize(out.len().next_multiple_of(8), 0);
    let headers_at = out.len() as u64;
    let name_of_names = 2 + WANTED.len() as u32;
    let rows = [
        (0, abi::SHT_NULL, 0, 0),
        (1, abi::SHT_PROGBITS, section.sh_offset, section.sh_size),
        (
            name_of_names,
            abi::SHT_STRTAB,
            names_at as u64,
            names.len() as u64,
        ),
    ];
    for (name, kind, offset, size) in rows {
        out.extend(name.to_le_bytes());
        out.extend(kind.to_le_bytes());
        // flags, address, offset, size, link and info, alignment, entry size
        [0u64, 0, offset, size, 0, 1, 0]
            .iter()
            .for_each(|n| out.extend(n.to_le_bytes()));
    }
    out[40..48].copy_from_slice(&headers_at.to_le_bytes());
    out[60..62].copy_from_slice(&(rows.len() as u16).to_le_bytes());
    out[62..64].copy_from_slice(&(rows.len() as u16 - 1).to_le_bytes());
    Ok(out)
}

/// `cargo xtask build`.
pub fn command(installer: &Installer) -> Result<()> {
    let toolchain = Toolchain::ensure(installer)?;
    let artifacts = Artifacts::build(&toolchain)?;
    let bundle = paths::target().join("bundle");
    let initramfs = artifacts.initramfs()?.finish()?;
    artifacts.write_bundle(&initramfs, &bundle)?;
    println!("built for {TARGET} with {}:", toolchain.describe());
    for (what, path) in [
        ("boot", &artifacts.boot),
        ("kernel", &artifacts.kernel),
        ("bundle", &bundle),
    ] {
        let len = fs::metadata(path)?.len();
        println!(
            "  {what:8} {} ({} KiB)",
            paths::shown(path),
            len.div_ceil(1024)
        );
    }
    println!(
        "  programs {}",
        artifacts
            .programs
            .iter()
            .map(|(n, _)| n.as_str())
            .collect::<Vec<_>>()
            .join(" ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any ELF will do: our own, with a section renamed in the string table is too much work, so a tiny one.
    fn sample() -> Vec<u8> {
        let mut f = vec![0u8; 0x400];
        let mut put = |at: usize, bytes: &[u8]| f[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
        put(32, &64u64.to_le_bytes());
        put(40, &0x200u64.to_le_bytes());
        put(52, &[64, 0, 56, 0, 1, 0, 64, 0, 3, 0, 2, 0]);
        put(64, &[1, 0, 0, 0, 5, 0, 0, 0]);
        put(64 + 32, &0x100u64.to_le_bytes()); // file size of the segment
        put(0x80, b"configuration");
        put(
            0x180,
            b"\0.bootloader-config\0.shstrtab\0symbols and much more",
        );
        for (i, (name, kind, offset, size)) in [(1u32, 1u32, 0x80u64, 13u64), (20, 3, 0x180, 30)]
            .iter()
            .enumerate()
        {
            let at = 0x200 + 64 * (i + 1);
            put(at, &name.to_le_bytes());
            put(at + 4, &kind.to_le_bytes());
            put(at + 24, &offset.to_le_bytes());
            put(at + 32, &size.to_le_bytes());
        }
        f
    }

    #[test]
    fn strips_all_but_what_boot_reads() {
        let out = stripped(&sample()).unwrap();
        let elf = ElfBytes::<LittleEndian>::minimal_parse(&out).unwrap();
        let section = elf
            .section_header_by_name(".bootloader-config")
            .unwrap()
            .unwrap();
        assert_eq!(elf.section_data(&section).unwrap().0, b"configuration");
        assert_eq!(elf.segments().unwrap().len(), 1);
        assert!(!out.windows(7).any(|w| w == b"symbols"));
    }

    #[test]
    fn refuses_a_kernel_without_configuration() {
        let mut file = sample();
        file[0x182] = b'X';
        assert!(
            stripped(&file)
                .unwrap_err()
                .to_string()
                .contains("entry_point!")
        );
        assert!(stripped(b"\x7fELF").is_err());
    }
}
