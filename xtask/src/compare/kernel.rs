//! Linux kernels from Debian's packages, without installing them.
//!
//! # Problem
//! A comparison needs a Linux kernel that everyone can get again. Debian has one for its own release, and newer ones in
//! a suite that the machine does not use; installing either would change the machine.
//!
//! # Mechanism
//! The kernel's package is found through the one that always depends on the newest ([`METAPACKAGE`]), downloaded by apt,
//! unpacked by dpkg-deb, and only its image is kept, under the user's cache directory. For the newer suite apt gets a
//! source file derived from the configured ones and directories of its own for its lists.

use crate::{
    apt::{self, Installer},
    ask::ask,
    progress::Step,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use xshell::cmd;

/// Depends on Debian's newest kernel for PCs.
const METAPACKAGE: &str = "linux-image-amd64";
/// The suite that has the newest kernels.
const NEWEST: &str = "sid";

/// A kernel that can be booted.
pub struct Kernel {
    /// Its release, such as `6.1.0-56-amd64`.
    pub release: String,
    /// The image, for QEMU's `-kernel`.
    pub image: PathBuf,
}

/// Where a package comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// What the machine itself would install.
    Own,
    /// [`NEWEST`].
    Newest,
}

impl Kernel {
    /// A file of the reader's own.
    pub fn file(path: &Path) -> Result<Self> {
        ensure!(path.is_file(), "--kernel {}: no such file", path.display());
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("linux");
        let release = name.strip_prefix("vmlinuz-").unwrap_or(name).to_string();
        Ok(Self {
            release,
            image: path.to_path_buf(),
        })
    }

    /// The newest kernel of `suite`: from the cache, else from apt.
    pub fn of(suite: Suite, installer: &Installer) -> Result<Self> {
        let cache = cache()?.join(match suite {
            Suite::Own => "own",
            Suite::Newest => NEWEST,
        });
        if let Some(found) = cached(&cache) {
            return Ok(found);
        }
        ensure!(
            apt::have_apt() && apt::find_program("dpkg-deb").is_some(),
            "no kernel in {}, and no apt and dpkg-deb to get one: name a vmlinuz with --kernel",
            cache.display()
        );
        ensure!(
            installer.may_fetch(),
            "no kernel in {}; with --no-install none is fetched. Name a vmlinuz with --kernel",
            cache.display()
        );
        fs::create_dir_all(&cache)?;
        let apt = Apt::new(suite, &cache, installer)?;
        let package = apt.package_with_image()?;
        apt.download(&package)?;
        let image = unpacked_image(&cache, &package)?;
        let release = release_of(&package);
        let kept = cache.join(format!("vmlinuz-{release}"));
        fs::rename(&image, &kept)?;
        let _ = fs::remove_dir_all(cache.join(UNPACKED));
        cached(&cache).with_context(|| format!("{} is gone", kept.display()))
    }
}

/// Where a package is unpacked, in the cache.
const UNPACKED: &str = "unpacked";

/// Our part of the user's cache directory.
fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = base
        .or_else(home)
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(base.join("tine/linux"))
}

fn cached(directory: &Path) -> Option<Kernel> {
    let mut names: Vec<PathBuf> = fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz-"))
        })
        .collect();
    names.sort();
    names.pop().and_then(|path| Kernel::file(&path).ok())
}

/// `linux-binary-7.2.13+deb14-amd64` and `linux-image-6.1.0-56-amd64` without what they begin with.
fn release_of(package: &str) -> String {
    let rest = package.strip_prefix("linux-image-");
    let rest = rest.or_else(|| package.strip_prefix("linux-binary-"));
    rest.unwrap_or(package).to_string()
}

/// apt, perhaps with a suite and lists of its own.
struct Apt {
    options: Vec<String>,
    cache: PathBuf,
}

impl Apt {
    fn new(suite: Suite, cache: &Path, installer: &Installer) -> Result<Self> {
        let mut apt = Self {
            options: vec![],
            cache: cache.to_path_buf(),
        };
        if suite == Suite::Own {
            if apt.dependency(METAPACKAGE, "linux-image-").is_none() {
                installer.refresh()?;
            }
            return Ok(apt);
        }
        let codename = apt::codename();
        let source = apt::sources()
            .iter()
            .find_map(|text| apt::derived(text, &codename, NEWEST));
        let (name, text) =
            source.context("no configured source to derive one for newer kernels from")?;
        let file = cache.join(name);
        fs::write(&file, text)?;
        let lists = cache.join("lists");
        fs::create_dir_all(lists.join("partial"))?;
        fs::create_dir_all(cache.join("archives/partial"))?;
        let settings = [
            ("Dir::Etc::sourcelist", file.display().to_string()),
            ("Dir::Etc::sourceparts", "-".into()),
            ("Dir::State::lists", lists.display().to_string()),
            ("Dir::Cache", cache.display().to_string()),
            (
                "Dir::Cache::archives",
                cache.join("archives").display().to_string(),
            ),
            ("Debug::NoLocking", "1".into()),
            ("APT::Sandbox::User", "root".into()),
        ];
        apt.options = settings
            .iter()
            .flat_map(|(key, value)| ["-o".into(), format!("{key}={value}")])
            .collect();
        let mut update = Command::new("apt-get");
        update.args(&apt.options).arg("update");
        Step::new(format!("reading the lists of Debian {NEWEST}")).run(update)?;
        Ok(apt)
    }

    /// The first package whose name begins with `prefix` among what `package` depends on.
    fn dependency(&self, package: &str, prefix: &str) -> Option<String> {
        let options = &self.options;
        let text = ask(|sh| cmd!(sh, "apt-cache {options...} depends {package}"))?;
        let mut lines = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "));
        lines
            .find(|name| name.starts_with(prefix))
            .map(str::to_string)
    }

    /// The package that has the kernel's image: the one that the metapackage names, or one that that names.
    fn package_with_image(&self) -> Result<String> {
        let image = self.dependency(METAPACKAGE, "linux-image-");
        let image = image.with_context(|| format!("apt knows no {METAPACKAGE}: apt-get update"))?;
        Ok(self.dependency(&image, "linux-binary-").unwrap_or(image))
    }

    fn download(&self, package: &str) -> Result<()> {
        let mut download = Command::new("apt-get");
        download.current_dir(&self.cache);
        download.args(&self.options).args(["download", package]);
        Step::new(format!("downloading {package}"))
            .run(download)
            .map(drop)
    }
}

/// Unpacks the package in `cache` and finds the image in it.
fn unpacked_image(cache: &Path, package: &str) -> Result<PathBuf> {
    let prefix = format!("{package}_");
    let archive = fs::read_dir(cache)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with(&prefix))
        })
        .with_context(|| format!("apt downloaded no {package}"))?;
    let into = cache.join(UNPACKED);
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("-x").arg(&archive).arg(&into);
    Step::new(format!("unpacking {package}")).run(unpack)?;
    fs::remove_file(&archive)?;
    let release = release_of(package);
    let places = [
        format!("boot/vmlinuz-{release}"),
        format!("usr/lib/modules/{release}/vmlinuz"),
    ];
    for place in places {
        let path = into.join(place);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!("{package} has no vmlinuz where Debian's packages have it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(release_of("linux-image-6.1.0-56-amd64"), "6.1.0-56-amd64");
        assert_eq!(
            release_of("linux-binary-7.2.13+deb14-amd64"),
            "7.2.13+deb14-amd64"
        );
        assert!(Kernel::file(Path::new("/no/such")).is_err());
    }

    #[test]
    fn the_last_in_the_cache_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert!(cached(dir.path()).is_none());
        for name in ["vmlinuz-6.1.0-9-amd64", "other"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        assert_eq!(cached(dir.path()).unwrap().release, "6.1.0-9-amd64");
    }
}
