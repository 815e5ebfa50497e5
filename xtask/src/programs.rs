//! Programs of the host by name: where they are, and the Debian package that has them.

use crate::apt::{self, Installer, Request};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Programs whose package has another name.
const PACKAGES: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("free", "procps"),
    ("killall", "psmisc"),
    ("pgrep", "procps"),
    ("pkill", "procps"),
    ("ps", "procps"),
    ("pstree", "psmisc"),
    ("setsid", "util-linux"),
    ("top", "procps"),
    ("unshare", "util-linux"),
    ("uptime", "procps"),
];

/// What the scenarios run.
pub const OF_SCENARIOS: &[&str] = &[
    "busybox", "bash", "dash", "ps", "pstree", "setsid", "unshare",
];

/// The package that has `program`; coreutils and a shell are on every Debian machine.
fn package_of(program: &str) -> &str {
    let known = PACKAGES.iter().find(|(name, _)| *name == program);
    known.map_or(program, |(_, package)| package)
}

/// The file of a program: a path as it is, a bare name as a shell would find it, installing its package if need be.
pub fn resolve(program: &Path, installer: &Installer) -> Result<PathBuf> {
    let Some(name) = program.to_str().filter(|name| !name.contains('/')) else {
        return Ok(program.to_path_buf());
    };
    if let Some(path) = apt::find_program(name) {
        return Ok(path);
    }
    installer.install(name, &Request::packages(&[package_of(name)]))?;
    apt::find_program(name).with_context(|| format!("{name} is not in its package"))
}

/// Gets what the scenarios run.
pub fn ensure_all(installer: &Installer) -> Result<()> {
    let missing = |name: &&&str| apt::find_program(name).is_none();
    let missing: Vec<&str> = OF_SCENARIOS.iter().filter(missing).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|name| package_of(name)).collect();
    installer.install(&missing.join(", "), &Request::packages(&packages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_and_names_are_found() {
        let installer = Installer::new(false);
        let resolve = |name: &str| resolve(Path::new(name), &installer);
        assert_eq!(resolve("/no/such").unwrap(), Path::new("/no/such"));
        assert!(resolve("sh").unwrap().is_absolute());
        let error = format!("{:#}", resolve("no-such-program").unwrap_err());
        assert!(error.contains("no-such-program"), "{error}");
        assert_eq!((package_of("ps"), package_of("mksh")), ("procps", "mksh"));
    }
}
