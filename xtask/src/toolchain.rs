//! A compiler for the bare-metal target, whatever the machine has.
//!
//! # Problem
//! The kernel is built for `x86_64-unknown-none` with stable Rust. With rustup that is one line in
//! `rust-toolchain.toml`. But where rustup may not download, a missing target goes unnoticed until `can't find crate
//! for core`; and code for this target must not be linked with the host's libcore, which uses SSE and the red zone.
//!
//! # Mechanism
//! The first that applies:
//! 1. The cargo that runs us has the target: use it.
//! 2. Debian's compiler with its library's sources: a private sysroot is built from them once, under `target/`, keyed
//!    by the compiler's version and our flags. Missing packages are installed.
//! 3. Say what to install, and stop. rustup is never called: it would download.
//!
//! Compilers can't be mixed, so each has its own target directory.

use crate::{
    apt::{self, Installer, Request},
    ask::ask,
    paths,
    progress::Step,
};
use anyhow::{Context, Result, bail};
use std::{
    ffi::OsString,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};
use xshell::cmd;

/// The target's name.
pub const TARGET: &str = "x86_64-unknown-none";
/// The oldest compiler that will do.
pub const MINIMUM: (u32, u32) = (1, 91);

/// Kernel and boot: at fixed addresses (the image lies in the last 2 GiB, boot in the first), with frame pointers for
/// backtraces.
pub const KERNEL_FLAGS: &[&str] = &[
    "-Crelocation-model=static",
    "-Ccode-model=kernel",
    "-Cforce-frame-pointers=yes",
];
/// User programs: position-independent, for the usual places in the low half.
pub const USER_FLAGS: &[&str] = &["-Crelocation-model=pic", "-Ccode-model=small"];
/// The private sysroot: link-time optimisation needs its bitcode, backtraces its frame pointers.
const SYSROOT_FLAGS: &str = "-Cembed-bitcode=yes -Cforce-frame-pointers=yes";
/// Where Debian's compilers are, and nothing of rustup.
const DEBIAN_PATH: &str = "/usr/bin:/bin";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// The sources of Debian's library.
const LIBRARY: &str = "/usr/lib/rustlib/src/rust/library";

/// A compiler that can build for [`TARGET`].
pub enum Toolchain {
    /// The one that runs us, which has the target.
    Own,
    /// Debian's, with a sysroot made by us.
    Debian {
        /// Holds core, alloc and compiler_builtins.
        sysroot: PathBuf,
        /// Some lld.
        linker: PathBuf,
    },
}

impl Toolchain {
    /// Installs what is missing. Quick when nothing is.
    pub fn install(installer: &Installer) -> Result<()> {
        if own_has_target() {
            return Ok(());
        }
        let Some(plan) = debian_plan(installer)? else {
            return Ok(());
        };
        let hint = match apt::find_program("rustup") {
            Some(_) => format!(" (or, where rustup may download: rustup target add {TARGET})"),
            None => String::new(),
        };
        installer.install(&format!("a compiler for {TARGET}{hint}"), &plan)
    }

    /// The one to use, after [`Toolchain::install`].
    pub fn prepare() -> Result<Self> {
        if own_has_target() {
            return Ok(Self::Own);
        }
        let version = debian_version().context("Debian's rustc does not run")?;
        let linker = linker().context("no lld was found; apt-get install lld")?;
        Ok(Self::Debian {
            sysroot: sysroot(&version)?,
            linker,
        })
    }

    /// Both of the above.
    pub fn ensure(installer: &Installer) -> Result<Self> {
        Self::install(installer)?;
        Self::prepare()
    }

    /// `cargo VERB` for the target, with `flags`, building in a directory of its own; the caller adds packages.
    pub fn cargo(&self, verb: &str, flags: &[&str]) -> Command {
        self.command(&self.cargo_program(), verb, flags)
    }

    /// The same with clippy, for which each compiler needs its own.
    pub fn clippy(&self, flags: &[&str]) -> Command {
        match self {
            Self::Own => self.command(&self.cargo_program(), "clippy", flags),
            Self::Debian { .. } => {
                self.command(Path::new("/usr/bin/cargo-clippy"), "clippy", flags)
            }
        }
    }

    /// What is missing for [`Toolchain::clippy`].
    pub fn clippy_plan(&self) -> Option<Request> {
        match self {
            Self::Debian { .. } if !Path::new("/usr/bin/cargo-clippy").is_file() => {
                Some(Request::packages(&[if installed_is_web() {
                    "rust-web-clippy"
                } else {
                    "rust-clippy"
                }]))
            }
            _ => None,
        }
    }

    /// Its version: figures that count instructions are a compiler's as well.
    pub fn version(&self) -> String {
        let version = match self {
            Self::Own => ask(|sh| cmd!(sh, "rustc -vV")),
            Self::Debian { .. } => debian_version(),
        };
        let line = version.and_then(|text| text.lines().next().map(str::to_string));
        line.unwrap_or_default()
    }

    /// One line about it, for people.
    pub fn describe(&self) -> String {
        match self {
            Self::Own => format!("the {TARGET} target of the cargo in use"),
            Self::Debian { linker, .. } => {
                format!("Debian's rustc, linked by {}", linker.display())
            }
        }
    }

    fn cargo_program(&self) -> PathBuf {
        match self {
            Self::Own => own_cargo().into(),
            Self::Debian { .. } => DEBIAN_CARGO.into(),
        }
    }

    fn command(&self, program: &Path, verb: &str, flags: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.current_dir(paths::root());
        clean_environment(&mut command);
        let mut all: Vec<String> = flags.iter().map(|f| f.to_string()).collect();
        let mut dir = "bare";
        if let Self::Debian { sysroot, linker } = self {
            debian_environment(&mut command);
            command.env("CARGO_TARGET_X86_64_UNKNOWN_NONE_LINKER", linker);
            all.push(format!("--sysroot={}", sysroot.display()));
            dir = "bare-debian";
        }
        // This replaces the flags of .cargo/config.toml.
        command.env("CARGO_TARGET_X86_64_UNKNOWN_NONE_RUSTFLAGS", all.join(" "));
        command.env(
            "CARGO_TARGET_X86_64_UNKNOWN_NONE_RUSTDOCFLAGS",
            all.join(" "),
        );
        command
            .arg(verb)
            .args(["--target", TARGET, "--target-dir"])
            .arg(paths::target().join(dir));
        command
    }
}

/// The cargo that runs us.
pub fn own_cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Whether the compiler that built us has the target's libcore, and is new enough.
pub fn own_has_target() -> bool {
    let dir = ask(|sh| cmd!(sh, "rustc --print target-libdir --target {TARGET}"));
    let has_core = |dir: &str| {
        let names = fs::read_dir(dir.trim())
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.file_name());
        names
            .into_iter()
            .any(|name| name.to_string_lossy().starts_with("libcore-"))
    };
    dir.is_some_and(|dir| has_core(&dir)) && own_version().is_some_and(|v| v >= MINIMUM)
}

/// The version of the compiler on the PATH.
pub fn own_version() -> Option<(u32, u32)> {
    parse_version(&ask(|sh| cmd!(sh, "rustc -vV"))?)
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let release = text.lines().find_map(|l| l.strip_prefix("release: "))?;
    let mut numbers = release.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What `rustc -vV` of Debian's compiler says, if it is new enough.
fn debian_version() -> Option<String> {
    let mut command = Command::new(DEBIAN_RUSTC);
    command.arg("-vV");
    clean_environment(&mut command);
    debian_environment(&mut command);
    let output = command.output().ok().filter(|o| o.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    (parse_version(&text)? >= MINIMUM).then_some(text)
}

/// The sources of the standard library that belong to Debian's compiler.
fn debian_sources() -> bool {
    Path::new(LIBRARY).join("core/src/lib.rs").is_file()
}

/// Whether Debian's compiler is here as a whole.
pub fn debian_is_complete() -> bool {
    debian_version().is_some()
        && debian_sources()
        && Path::new(DEBIAN_CARGO).is_file()
        && linker().is_some()
}

/// The packages that Debian's compiler still takes, `None` when nothing is missing.
fn debian_plan(installer: &Installer) -> Result<Option<Request>> {
    if debian_is_complete() {
        return Ok(None);
    }
    if apt::available("rustc").is_empty() && apt::available("rustc-web").is_empty() {
        installer.refresh()?;
    }
    missing_packages().map(Some).with_context(|| {
        format!(
            "no compiler for {TARGET}: neither this cargo has that target, nor does apt offer rustc {}.{} or later; \
             where rustup may download: rustup target add {TARGET}",
            MINIMUM.0, MINIMUM.1
        )
    })
}

/// The packages to install for Debian's compiler, `None` when apt has no version that is new enough.
pub fn missing_packages() -> Option<Request> {
    let new_enough = |package| apt::available(package).iter().any(|a| a.version >= MINIMUM);
    let names: &[&str] = if new_enough("rustc-web") {
        &["rustc-web", "cargo-web", "rust-web-src"]
    } else if new_enough("rustc") {
        &["rustc", "cargo", "rust-src"]
    } else if apt::have_apt() && apt::available("apt").is_empty() {
        // No lists at all: this is what they will offer.
        &["rustc-web", "cargo-web", "rust-web-src"]
    } else {
        return None;
    };
    let mut plan = Request::packages(names);
    if linker().is_none() {
        plan.packages.push("lld".into());
    }
    Some(plan)
}

fn installed_is_web() -> bool {
    apt::available("rust-web-clippy")
        .iter()
        .any(|a| a.version >= MINIMUM)
}

/// An lld: rustup's, else Debian's.
fn linker() -> Option<PathBuf> {
    let rustup = ask(|sh| cmd!(sh, "rustc --print sysroot"));
    let rustup = rustup
        .map(|s| Path::new(s.trim()).join("lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld"));
    if let Some(found) = rustup.filter(|p| p.is_file()) {
        return Some(found);
    }
    let newest_first = (14..40).rev().map(|n| format!("ld.lld-{n}"));
    ["rust-lld".to_string(), "ld.lld".to_string()]
        .into_iter()
        .chain(newest_first)
        .find_map(|n| apt::find_program(&n))
}

/// Removes what cargo and rustup set for the program they run (us), so that the next cargo starts afresh.
pub fn clean_environment(command: &mut Command) {
    let ours = [
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
    ];
    for name in ours {
        command.env_remove(name);
    }
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let about_us = text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST");
        if about_us
            || text == "CARGO_ENCODED_RUSTFLAGS"
            || text == "CARGO_BUILD_TARGET"
            || text == "LD_LIBRARY_PATH"
        {
            command.env_remove(&name);
        }
    }
}

fn debian_environment(command: &mut Command) {
    command
        .env("PATH", DEBIAN_PATH)
        .env("RUSTC", DEBIAN_RUSTC)
        .env("CARGO", DEBIAN_CARGO)
        .env_remove("RUSTUP_TOOLCHAIN");
}

/// The private sysroot for the compiler that describes itself as `version`, built if need be.
fn sysroot(version: &str) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    (version, SYSROOT_FLAGS).hash(&mut hasher);
    let dir = paths::target().join("sysroot");
    let done = dir.join(format!("{:016x}", hasher.finish()));
    fs::create_dir_all(&dir)?;
    // Two xtasks may get here at once; the second one waits and finds it done.
    let lock = fs::File::create(dir.join("lock"))?;
    lock.lock()?;
    if !done.is_dir() {
        build_sysroot(&dir.join("stub"), &done)
            .context("the private sysroot could not be built")?;
    }
    Ok(done)
}

fn build_sysroot(stub: &Path, done: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(stub);
    fs::create_dir_all(stub.join("src"))?;
    let manifest = "[package]\nname = \"stub\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[lib]\n\n[workspace]\n\n\
        [profile.release]\npanic = \"abort\"\ndebug = \"line-tables-only\"\n";
    fs::write(stub.join("Cargo.toml"), manifest)?;
    fs::write(stub.join("src/lib.rs"), "#![no_std]\n")?;
    // The library's lock file names crates of std and test. Debian's sources bring them; a machine's own registry may be
    // empty, or newer than the lock.
    let vendored = Path::new(LIBRARY).join("vendor");
    let brought = vendored.is_dir();
    if brought {
        let config = format!(
            "[source.crates-io]\nreplace-with = \"vendored\"\n\n[source.vendored]\ndirectory = {vendored:?}\n"
        );
        fs::create_dir_all(stub.join(".cargo"))?;
        fs::write(stub.join(".cargo/config.toml"), config)?;
    }

    let mut cargo = Command::new(DEBIAN_CARGO);
    clean_environment(&mut cargo);
    debian_environment(&mut cargo);
    cargo
        .current_dir(stub)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", SYSROOT_FLAGS);
    cargo.args([
        "rustc",
        "--release",
        "--target",
        TARGET,
        "--target-dir",
        "target",
    ]);
    cargo.args([
        "-Zbuild-std=core,alloc,compiler_builtins",
        "-Zbuild-std-features=compiler-builtins-mem",
    ]);
    if brought {
        cargo.arg("--offline");
    }
    Step::new("building core and alloc for the bare-metal target (once)").run(cargo)?;

    let new = stub.join("new");
    let lib = new.join("lib/rustlib").join(TARGET).join("lib");
    fs::create_dir_all(&lib)?;
    let built = stub.join("target").join(TARGET).join("release/deps");
    for entry in fs::read_dir(&built)?.flatten() {
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let wanted = ["libcore-", "liballoc-", "libcompiler_builtins-"]
            .iter()
            .any(|p| text.starts_with(p));
        if wanted && text.ends_with(".rlib") {
            fs::copy(entry.path(), lib.join(&name))?;
        }
    }
    if fs::read_dir(&lib)?.count() != 3 {
        bail!(
            "expected core, alloc and compiler_builtins in {}",
            built.display()
        );
    }
    // Build scripts and procedural macros are for the host: its libraries are Debian's own.
    let host = "x86_64-unknown-linux-gnu";
    std::os::unix::fs::symlink(
        Path::new("/usr/lib/rustlib").join(host),
        new.join("lib/rustlib").join(host),
    )?;
    fs::rename(&new, done)?;
    fs::remove_dir_all(stub)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(
            parse_version("rustc 1.96.0\nhost: x\nrelease: 1.96.0\n"),
            Some((1, 96))
        );
        assert_eq!(parse_version("rustc 1.96.0-nightly\n"), None);
    }

    /// An editor's cargo builds with the flags of the configuration file, xtask with its own: they must be the same.
    #[test]
    fn flags_agree_with_the_configuration_file() {
        let text = fs::read_to_string(paths::root().join(".cargo/config.toml")).unwrap();
        let listed: Vec<String> = KERNEL_FLAGS.iter().map(|f| format!("\"{f}\"")).collect();
        assert!(
            text.contains(&format!("rustflags = [{}]", listed.join(", "))),
            "{text}"
        );
    }
}
