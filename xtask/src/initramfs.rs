//! The initramfs: a newc cpio archive, the same bytes for the same files.

use crate::libraries;
use anyhow::{Context, Result, bail};
use cpio::newc;
use std::{collections::BTreeMap, fs, io::Write, os::unix::fs::PermissionsExt, path::Path};

/// The bits of a mode that say what a file is.
const TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Directories that are always there.
const USUAL: &[&str] = &["bin", "dev", "etc", "proc", "tmp"];

/// Files that are always there: names for user and group 0, and what a shell begins with.
const FILES: &[(&str, &str)] = &[
    ("etc/group", "root:x:0:\n"),
    ("etc/motd", MOTD),
    ("etc/passwd", "root:x:0:0:root:/:/bin/sh\n"),
];

const MOTD: &str = "\
This is Tine, a research microkernel; what you type at is a Linux program. Try:
  ps                          processes; top, pstree, kill too
  ls /proc/self               what the kernel says of one of them
  cat /proc/slabinfo          its memory
  unshare -p -f sh            a shell in a pid namespace of its own
  time sh -c 'for i in $(seq 100); do true & done; wait'
Ctrl-C, Ctrl-Z, fg and bg do what they do elsewhere; Ctrl-D ends the machine.
";

struct Entry {
    mode: u32,
    data: Vec<u8>,
}

/// An archive being filled. A later entry of the same name replaces an earlier one.
pub struct Initramfs {
    /// Sorted, so that directories come before what is in them.
    entries: BTreeMap<String, Entry>,
}

impl Initramfs {
    /// The usual directories and files.
    pub fn new() -> Self {
        let directory = |name: &&str| {
            (
                name.to_string(),
                Entry {
                    mode: DIRECTORY | 0o755,
                    data: vec![],
                },
            )
        };
        let file = |(name, text): &(&str, &str)| {
            let entry = Entry {
                mode: REGULAR | 0o644,
                data: text.as_bytes().to_vec(),
            };
            (name.to_string(), entry)
        };
        let directories = USUAL.iter().map(directory);
        Self {
            entries: directories.chain(FILES.iter().map(file)).collect(),
        }
    }

    /// Adds an executable file.
    pub fn add_program(&mut self, name: &str, path: &Path) -> Result<()> {
        let data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.add(name, REGULAR | 0o755, data)
    }

    /// Adds a program of this machine with what it needs to run.
    pub fn add_host_program(&mut self, name: &str, path: &Path) -> Result<()> {
        for (name, path) in libraries::needed(path)? {
            if name.contains("libtinfo") {
                self.add_terminals()?;
            }
            self.add_program(&name, &path)?;
        }
        self.add_program(name, path)
    }

    /// Adds descriptions of terminals, where this machine has them.
    fn add_terminals(&mut self) -> Result<()> {
        for name in ["l/linux", "d/dumb", "v/vt100"] {
            let path = Path::new("/lib/terminfo").join(name);
            if let Ok(data) = fs::read(path) {
                self.add(&format!("lib/terminfo/{name}"), REGULAR | 0o644, data)?;
            }
        }
        Ok(())
    }

    /// Adds everything below the directory `path`, with its modes; symbolic links stay links.
    pub fn add_tree(&mut self, path: &Path) -> Result<()> {
        if !path.is_dir() {
            bail!("--root {}: no such directory", path.display());
        }
        self.add_below(path, "")
    }

    fn add_below(&mut self, directory: &Path, prefix: &str) -> Result<()> {
        let context = || format!("cannot read {}", directory.display());
        for entry in fs::read_dir(directory).with_context(context)? {
            let entry = entry.with_context(context)?;
            let Ok(name) = entry.file_name().into_string() else {
                bail!("{}: a name that is not UTF-8", entry.path().display());
            };
            let (name, path) = (format!("{prefix}{name}"), entry.path());
            let meta = fs::symlink_metadata(&path).with_context(context)?;
            let permissions = meta.permissions().mode() & 0o7777;
            if meta.is_dir() {
                self.add(&name, DIRECTORY | permissions, vec![])?;
                self.add_below(&path, &format!("{name}/"))?;
            } else if meta.is_symlink() {
                let target = fs::read_link(&path)?;
                self.add(
                    &name,
                    SYMLINK | 0o777,
                    target.into_os_string().into_encoded_bytes(),
                )?;
            } else if meta.is_file() {
                let data =
                    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                self.add(&name, REGULAR | permissions, data)?;
            } else {
                eprintln!(
                    "note: {} is neither file, directory nor link: left out",
                    path.display()
                );
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &str, mode: u32, data: Vec<u8>) -> Result<()> {
        if data.len() > u32::MAX as usize {
            bail!("{name}: a cpio archive has no room for files of 4 GiB and more");
        }
        self.entries.insert(name.to_string(), Entry { mode, data });
        Ok(())
    }

    /// The archive's bytes.
    pub fn finish(self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (number, (name, Entry { mode, data })) in self.entries.into_iter().enumerate() {
            let links = if mode & TYPE == DIRECTORY { 2 } else { 1 };
            let header = newc::Builder::new(&name)
                .ino(number as u32 + 1)
                .mode(mode)
                .nlink(links);
            let mut writer = header.write(out, data.len() as u32);
            writer.write_all(&data)?;
            out = writer.finish()?;
        }
        Ok(newc::trailer(out)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_tree_comes_out_as_it_went_in() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("etc/deep")).unwrap();
        fs::write(at("etc/deep/file"), "text").unwrap();
        fs::set_permissions(at("etc/deep/file"), fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("deep/file", at("etc/link")).unwrap();
        fs::write(at("prog"), "old").unwrap();
        let mut archive = Initramfs::new();
        archive.add_program("bin/a", &at("prog")).unwrap();
        fs::write(at("prog"), "new").unwrap();
        archive.add_program("bin/a", &at("prog")).unwrap();
        archive.add_tree(dir.path()).unwrap();
        let bytes = archive.finish().unwrap();

        let (mut got, mut rest) = (vec![], &bytes[..]);
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mode) = (reader.entry().name().to_string(), reader.entry().mode());
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            got.push((name, mode, text));
            rest = reader.finish().unwrap();
        }
        let find = |name: &str| {
            got.iter()
                .find(|(n, ..)| n == name)
                .map(|(_, mode, text)| (*mode, text.as_str()))
        };
        assert_eq!(find("bin/a"), Some((0o100_755, "new")));
        assert_eq!(find("etc/deep/file"), Some((0o100_640, "text")));
        assert_eq!(find("etc/link"), Some((0o120_777, "deep/file")));
        assert!(find("dev").is_some_and(|(mode, _)| mode & TYPE == DIRECTORY));
        let position = |name: &str| got.iter().position(|(n, ..)| n == name);
        assert!(
            position("etc") < position("etc/deep")
                && position("etc/deep") < position("etc/deep/file")
        );
        assert!(Initramfs::new().add_tree(&at("nowhere")).is_err());
    }
}
