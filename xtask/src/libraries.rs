//! What a program of the host needs beside itself: its interpreter and its libraries, found by reading ELF files, not
//! by running them.
//!
//! The search is ld.so's without its cache and without paths that a file names for itself: Debian's directories for
//! libraries, in order. In the guest a library lies where ld.so looks first.

use anyhow::{Context, Result, bail};
use elf::{ElfBytes, abi, endian::LittleEndian};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Where libraries are, on the host and for ld.so in the guest.
const DIRECTORIES: &[&str] = &[
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];

/// Files to pack with `program`: names in the guest and paths on the host. Empty for a static program, and for a file
/// that is no ELF file at all: that is the kernel's to refuse.
///
/// # Errors
/// An interpreter or a library that this machine does not have, by name.
pub fn needed(program: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let Some(wants) = Wants::read(program)? else {
        return Ok(found);
    };
    if let Some(interpreter) = &wants.interpreter {
        let path = PathBuf::from(interpreter);
        if !path.is_file() {
            bail!(
                "{}: its interpreter {interpreter} is not on this machine",
                program.display()
            );
        }
        found.insert(interpreter.trim_start_matches('/').into(), path);
    }
    let mut open = wants.libraries;
    // musl's interpreter is its library too; Debian's file of this name is a linker's script.
    if wants
        .interpreter
        .is_some_and(|name| name.contains("/ld-musl-"))
    {
        open.retain(|name| name != "libc.so");
    }
    while let Some(name) = open.pop() {
        let guest = format!("{}/{name}", &DIRECTORIES[0][1..]);
        if found.contains_key(&guest) {
            continue;
        }
        let path = DIRECTORIES
            .iter()
            .map(|d| Path::new(d).join(&name))
            .find(|p| p.is_file())
            .with_context(|| {
                format!(
                    "{}: its library {name} is not on this machine",
                    program.display()
                )
            })?;
        if let Some(more) = Wants::read(&path)? {
            open.extend(more.libraries);
        }
        found.insert(guest, path);
    }
    Ok(found)
}

/// What one ELF file asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wants {
    interpreter: Option<String>,
    libraries: Vec<String>,
}

impl Wants {
    /// `None`: not an ELF file that can be read.
    fn read(path: &Path) -> Result<Option<Wants>> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Wants::parse(&bytes))
    }

    fn parse(bytes: &[u8]) -> Option<Wants> {
        let file = ElfBytes::<LittleEndian>::minimal_parse(bytes).ok()?;
        let segments = file.segments()?;
        let text = |offset: u64| {
            let from = bytes.get(usize::try_from(offset).ok()?..)?;
            let len = from.iter().position(|&b| b == 0)?;
            String::from_utf8(from[..len].to_vec()).ok()
        };
        let interpreter = segments
            .iter()
            .find(|s| s.p_type == abi::PT_INTERP)
            .and_then(|s| text(s.p_offset));
        let Ok(Some(dynamic)) = file.dynamic() else {
            return Some(Wants {
                interpreter,
                libraries: vec![],
            });
        };
        let offset_of = |address: u64| {
            let inside = |s: &elf::segment::ProgramHeader| {
                s.p_type == abi::PT_LOAD
                    && (s.p_vaddr..s.p_vaddr.saturating_add(s.p_filesz)).contains(&address)
            };
            let segment = segments.iter().find(inside)?;
            (address - segment.p_vaddr).checked_add(segment.p_offset)
        };
        let strings = dynamic
            .iter()
            .find(|d| d.d_tag == abi::DT_STRTAB)
            .and_then(|d| offset_of(d.d_ptr()));
        let libraries = dynamic
            .iter()
            .filter(|d| d.d_tag == abi::DT_NEEDED)
            .filter_map(|d| text(strings?.checked_add(d.d_val())?))
            .collect();
        Some(Wants {
            interpreter,
            libraries,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_program_needs_nothing() {
        assert_eq!(Wants::parse(b"#!/bin/sh\n"), None);
        assert_eq!(Wants::parse(b"\x7fELF"), None);
    }

    /// This test itself is a dynamic program wherever the host's libc is.
    #[test]
    fn a_dynamic_program_needs_its_loader_and_libc() {
        let me = std::env::current_exe().unwrap();
        let wants = Wants::read(&me).unwrap().unwrap();
        let Some(interpreter) = wants.interpreter else {
            return assert!(wants.libraries.is_empty());
        };
        let files = needed(&me).unwrap();
        assert!(files.contains_key(interpreter.trim_start_matches('/')));
        for library in wants.libraries {
            assert!(files.keys().any(|k| k.ends_with(&library)), "{library}");
        }
    }

    #[test]
    fn damaged_programs_are_read_without_harm() {
        let mut bytes = fs::read(std::env::current_exe().unwrap()).unwrap();
        bytes.truncate(64 << 10);
        for at in 0..1024 {
            let old = std::mem::replace(&mut bytes[at], 0xff);
            let _ = Wants::parse(&bytes);
            bytes[at] = old;
        }
    }
}
