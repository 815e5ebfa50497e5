//! Where things are, relative to the repository's root.

use std::path::{Path, PathBuf};

/// The repository's root: the folder above this package's.
pub fn root() -> PathBuf {
    // Set by cargo at run time; the compile-time value serves when the binary is started by hand.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let here = here
        .filter(|p| p.ends_with("xtask"))
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    here.parent().map(Path::to_path_buf).unwrap_or(here)
}

/// Cargo's target directory, for builds of ours and what we keep beside them.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// `path` relative to the current directory where that is shorter, for messages.
pub fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here)
        .unwrap_or(path)
        .display()
        .to_string()
}
