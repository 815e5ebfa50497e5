//! QEMU: which one there is, and getting one that will do.

use crate::{
    apt::{self, Installer, Request},
    ask::ask,
    toolchain::Toolchain,
};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use xshell::cmd;

/// Older ones have no x2APIC under TCG (so at most 255 CPUs) and no plugins that read registers.
pub const MINIMUM: (u32, u32) = (9, 0);
const PACKAGE: &str = "qemu-system-x86";

/// A QEMU that was found.
pub struct Emulator {
    /// The program.
    pub program: PathBuf,
    /// Its version, major and minor.
    pub version: (u32, u32),
}

/// The QEMU on the PATH, whatever its version.
pub fn find() -> Option<Emulator> {
    let program = apt::find_program("qemu-system-x86_64")?;
    let text = ask(|sh| cmd!(sh, "{program} --version"))?;
    Some(Emulator {
        program,
        version: parse_version(&text)?,
    })
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let rest = text.split("version ").nth(1)?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// A QEMU of at least [`MINIMUM`], installed if need be.
pub fn ensure(installer: &Installer) -> Result<Emulator> {
    if let Some(found) = find().filter(|q| q.version >= MINIMUM) {
        return Ok(found);
    }
    let why = format!("QEMU {}.{} or later for x86-64", MINIMUM.0, MINIMUM.1);
    if apt::available(PACKAGE).is_empty() {
        installer.refresh()?;
    }
    let plan = plan().with_context(|| format!("{why} is missing, and apt's sources offer none"))?;
    installer.install(&why, &plan)?;
    match find() {
        Some(found) if found.version >= MINIMUM => Ok(found),
        Some(found) => bail!(
            "{why} is needed; {} is {:?}",
            found.program.display(),
            found.version
        ),
        None => bail!("{why} is still missing after the installation"),
    }
}

/// Everything that building and running take. What is missing is said in one go.
pub fn ensure_all(installer: &Installer) -> Result<(Emulator, Toolchain)> {
    let (emulator, compiler) = (ensure(installer), Toolchain::install(installer));
    match (emulator, compiler) {
        (Ok(emulator), Ok(())) => Ok((emulator, Toolchain::prepare()?)),
        (Err(one), Err(other)) => bail!("{one:#}\n{other:#}"),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

/// What would have to be installed.
pub fn plan() -> Option<Request> {
    apt::plan(
        PACKAGE,
        MINIMUM,
        &apt::codename(),
        &apt::available(PACKAGE),
        &apt::sources(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(
            parse_version("QEMU emulator version 10.0.2 (Debian 1:10)"),
            Some((10, 0))
        );
        assert_eq!(parse_version("QEMU emulator version 7.2"), Some((7, 2)));
        assert_eq!(parse_version("something else"), None);
    }
}
