//! The kernel's console on its way to the terminal: backtraces get names.
//!
//! The kernel prints an address inside a function as a line `  bt: 0xffffffff80012345` (of a call, an address within
//! the call's own bytes: the one after it may be another line's). Such a line is held back until it is whole, and gets
//! function, file and line; everything else passes as it comes.

use addr2line::Loader;
use std::{
    fs::{self, File},
    io::{self, Write},
    ops::Range,
    path::{Path, PathBuf},
};

/// What an address line starts with.
const MARK: &[u8] = b"  bt: 0x";

/// The kernel's symbols, read when they are first needed.
pub struct Symbols {
    file: PathBuf,
    loader: Option<Option<Loader>>,
    objects: Option<Vec<Object>>,
}

impl Symbols {
    /// Of this ELF file.
    pub fn of(file: &Path) -> Self {
        Self {
            file: file.to_path_buf(),
            loader: None,
            objects: None,
        }
    }

    /// The functions at an address, innermost first, each as `name at file:line`.
    pub fn frames(&mut self, address: u64) -> Vec<String> {
        let loader = self
            .loader
            .get_or_insert_with(|| Loader::new(&self.file).ok());
        let Some(loader) = loader else { return vec![] };
        let mut found = vec![];
        let mut frames = loader.find_frames(address).ok();
        while let Some(frame) = frames.as_mut().and_then(|f| f.next().ok().flatten()) {
            let name = frame
                .function
                .as_ref()
                .and_then(|f| f.demangle().ok().map(|n| n.into_owned()));
            let place = frame.location.and_then(|l| Some((short(l.file?), l.line?)));
            found.push(describe(name.as_deref().unwrap_or("?"), place));
        }
        if found.is_empty() {
            found.extend(loader.find_symbol(address).map(|name| describe(name, None)));
        }
        found
    }

    /// The object of the image at an address.
    pub fn object(&mut self, address: u64) -> Option<String> {
        if self.objects.is_none() {
            self.objects = Some(objects(&self.file).unwrap_or_default());
        }
        let objects = self.objects.as_ref()?;
        let after = objects.partition_point(|(start, ..)| *start <= address);
        let (start, size, name) = objects.get(after.checked_sub(1)?)?;
        (address < start + size).then(|| name.clone())
    }

    /// The objects of the image that reach into a range, by address.
    pub fn objects_in(&mut self, range: Range<u64>) -> Vec<String> {
        let objects = self
            .objects
            .get_or_insert_with(|| objects(&self.file).unwrap_or_default());
        let inside = |o: &&Object| o.0 < range.end && o.0 + o.1 > range.start;
        objects.iter().filter(inside).map(|o| o.2.clone()).collect()
    }
}

/// An object of an ELF file: address, size, name.
type Object = (u64, u64, String);

/// The variables of an ELF file, by address.
fn objects(file: &Path) -> Option<Vec<Object>> {
    let bytes = fs::read(file).ok()?;
    let elf = elf::ElfBytes::<elf::endian::LittleEndian>::minimal_parse(&bytes).ok()?;
    let (symbols, names) = elf.symbol_table().ok()??;
    let objects = symbols
        .iter()
        .filter(|s| s.st_symtype() == elf::abi::STT_OBJECT);
    let mut all: Vec<Object> = objects
        .filter_map(|s| {
            let name = names.get(s.st_name as usize).ok()?;
            let name = addr2line::demangle_auto(name.into(), None);
            // What a macro expands to comes last and says nothing.
            let name = crate::c2c::without_hash(&name).to_string();
            Some((s.st_value, s.st_size, name))
        })
        .collect();
    all.sort();
    Some(all)
}

fn describe(name: &str, place: Option<(&str, u32)>) -> String {
    match place {
        Some((file, line)) => format!("{name} at {file}:{line}"),
        None => name.to_string(),
    }
}

/// A path without what is the same for all of this repository's files.
fn short(path: &str) -> &str {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let root = root.strip_suffix("xtask/").unwrap_or(root);
    // A crate from a registry: its own folder will do.
    let registry = path
        .split_once("/registry/src/")
        .and_then(|(_, rest)| rest.split_once('/'));
    registry
        .map(|(_, rest)| rest)
        .or(path.strip_prefix(root))
        .unwrap_or(path)
}

/// A filter for the console's bytes.
pub struct Console {
    symbols: Symbols,
    log: Option<File>,
    /// The current line as far as it is held back.
    held: Vec<u8>,
    /// Whether the current line can no longer be an address line.
    passing: bool,
}

impl Console {
    /// `log` gets what the terminal gets.
    pub fn new(symbols: Symbols, log: Option<File>) -> Self {
        Self {
            symbols,
            log,
            held: vec![],
            passing: false,
        }
    }

    /// Takes bytes from QEMU and writes to `out` what can be shown.
    pub fn feed(&mut self, bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
        let mut shown = Vec::with_capacity(bytes.len());
        for &byte in bytes.iter().filter(|b| **b != b'\r') {
            if self.passing {
                shown.push(byte);
            } else {
                self.held.push(byte);
                let common = self.held.len().min(MARK.len());
                if byte == b'\n' || self.held[..common] != MARK[..common] {
                    self.release(&mut shown);
                    self.passing = true;
                }
            }
            self.passing &= byte != b'\n';
        }
        self.write(&shown, out)
    }

    /// The console is closed: shows what was held back.
    pub fn end(&mut self, out: &mut impl Write) -> io::Result<()> {
        let mut shown = vec![];
        self.release(&mut shown);
        self.write(&shown, out)
    }

    /// Moves the held line to `shown`, with names if it is an address line.
    fn release(&mut self, shown: &mut Vec<u8>) {
        let held = std::mem::take(&mut self.held);
        let digits = held
            .strip_prefix(MARK)
            .and_then(|rest| std::str::from_utf8(rest).ok());
        let digits = digits.map(|rest| {
            rest.trim_end()
                .trim_end_matches(|c: char| !c.is_ascii_hexdigit())
        });
        let frames = match digits.and_then(|d| u64::from_str_radix(d, 16).ok()) {
            Some(address) => self.symbols.frames(address),
            None => vec![],
        };
        shown.extend(held.strip_suffix(b"\n").unwrap_or(&held));
        for (i, frame) in frames.iter().enumerate() {
            let indent = if i == 0 {
                "  "
            } else {
                "\n      inlined into  "
            };
            shown.extend(format!("{indent}{frame}").as_bytes());
        }
        if held.ends_with(b"\n") {
            shown.push(b'\n');
        }
    }

    fn write(&mut self, bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
        if let Some(log) = &mut self.log {
            log.write_all(bytes)?;
        }
        out.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `pieces` and returns what was shown after each, and at the end.
    fn feed(file: &Path, pieces: &[&str]) -> Vec<String> {
        let mut console = Console::new(Symbols::of(file), None);
        let mut results = vec![];
        for piece in pieces {
            let mut out = vec![];
            console.feed(piece.as_bytes(), &mut out).unwrap();
            results.push(String::from_utf8(out).unwrap());
        }
        let mut out = vec![];
        console.end(&mut out).unwrap();
        results.push(String::from_utf8(out).unwrap());
        results
    }

    #[test]
    fn other_text_passes_at_once() {
        let nowhere = Path::new("nowhere");
        assert_eq!(
            feed(nowhere, &["login: ", "x\r\n", "  b", "t", "\n"]),
            ["login: ", "x\n", "", "", "  bt\n", ""]
        );
        assert_eq!(
            feed(nowhere, &["  bt: 0xzz\n  bt: 0x1"]),
            ["  bt: 0xzz\n", "  bt: 0x1"]
        );
        assert_eq!(feed(nowhere, &["  bt: 0x12\n"]), ["  bt: 0x12\n", ""]);
    }

    #[test]
    fn addresses_get_names() {
        // Our own program has symbols; its functions are where they are because it is position-independent: ask the
        // symbol table rather than the running process.
        let me = std::env::current_exe().unwrap();
        let bytes = std::fs::read(&me).unwrap();
        let elf = elf::ElfBytes::<elf::endian::LittleEndian>::minimal_parse(&bytes).unwrap();
        let (symbols, names) = elf.symbol_table().unwrap().unwrap();
        let wanted = |s: &elf::symbol::Symbol| {
            names
                .get(s.st_name as usize)
                .is_ok_and(|n| n.contains("landmark"))
        };
        let symbol = symbols
            .iter()
            .find(wanted)
            .expect("a function named landmark");
        assert_eq!(landmark(1), 2);
        let line = format!("  bt: {:#x}\n", symbol.st_value + 2);
        let shown = feed(&me, &[&line]).concat();
        assert!(
            shown.contains("landmark") && shown.contains("console.rs:"),
            "{shown}"
        );
    }

    #[inline(never)]
    fn landmark(n: u32) -> u32 {
        std::hint::black_box(n) + 1
    }
}
