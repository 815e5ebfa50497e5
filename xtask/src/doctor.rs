//! `cargo xtask doctor`: what is there, what is missing, and the line that gets it.

use crate::{apt, emulator, toolchain};
use anyhow::{Result, bail};
use comfy_table::{Table, TableStyle};
use std::path::Path;

/// One thing that is needed, or useful.
struct Finding {
    what: &'static str,
    /// What is there, or how to get it.
    state: Result<String, String>,
    needed: bool,
}

/// `cargo xtask doctor`. Changes nothing.
pub fn command() -> Result<()> {
    let findings = [compiler(), bare_metal(), clippy(), qemu(), kvm(), gdb()];
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    for finding in &findings {
        let (mark, text) = match (&finding.state, finding.needed) {
            (Ok(text), _) => ("good", text),
            (Err(text), true) => ("MISSING", text),
            (Err(text), false) => ("absent", text),
        };
        table.add_row([mark, finding.what, text]);
    }
    table.lines().for_each(|l| println!("{}", l.trim()));
    let missing = findings
        .iter()
        .filter(|f| f.needed && f.state.is_err())
        .count();
    if missing > 0 {
        bail!(
            "{missing} needed things are missing; qemu, test and check install them by themselves"
        );
    }
    Ok(())
}

fn line_or(plan: Option<apt::Request>, otherwise: &str) -> String {
    plan.map_or(otherwise.to_string(), |p| p.line())
}

fn compiler() -> Finding {
    let (major, minor) = toolchain::MINIMUM;
    let state = match toolchain::own_version() {
        Some(version) if version >= toolchain::MINIMUM => {
            Ok(format!("{}.{}", version.0, version.1))
        }
        Some(version) => Err(format!(
            "rustc {}.{} is older than {major}.{minor}: rustup update",
            version.0, version.1
        )),
        None => Err("no rustc".into()),
    };
    Finding {
        what: "rustc for the host",
        state,
        needed: true,
    }
}

fn bare_metal() -> Finding {
    let state = if toolchain::own_has_target() {
        Ok("the same compiler has it".into())
    } else if toolchain::debian_is_complete() {
        Ok("Debian's compiler, with a sysroot of our own".into())
    } else {
        Err(line_or(
            toolchain::missing_packages(),
            &format!("rustup target add {}", toolchain::TARGET),
        ))
    };
    Finding {
        what: toolchain::TARGET,
        state,
        needed: true,
    }
}

fn clippy() -> Finding {
    let state = match (
        toolchain::own_has_target(),
        Path::new("/usr/bin/cargo-clippy").is_file(),
    ) {
        (true, _) => Ok("with the compiler".into()),
        (_, true) => Ok("Debian's".into()),
        _ => Err(apt::Request::packages(&["rust-web-clippy"]).line()),
    };
    Finding {
        what: "clippy for that target",
        state,
        needed: false,
    }
}

fn qemu() -> Finding {
    let (major, minor) = emulator::MINIMUM;
    let get = || {
        line_or(
            emulator::plan(),
            "apt's sources offer none that is new enough",
        )
    };
    let state = match emulator::find() {
        Some(found) if found.version >= emulator::MINIMUM => Ok(format!(
            "{}.{} ({})",
            found.version.0,
            found.version.1,
            found.program.display()
        )),
        Some(found) => Err(format!(
            "{:?} is older than {major}.{minor}: {}",
            found.version,
            get()
        )),
        None => Err(get()),
    };
    Finding {
        what: "qemu-system-x86_64",
        state,
        needed: true,
    }
}

fn kvm() -> Finding {
    let state = match Path::new("/dev/kvm").exists() {
        true => Ok("/dev/kvm is there; whether it runs guests only --accel kvm shows".into()),
        false => Err("only for --accel kvm; emulation works everywhere".into()),
    };
    Finding {
        what: "kvm",
        state,
        needed: false,
    }
}

fn gdb() -> Finding {
    let state = match apt::find_program("gdb") {
        Some(path) => Ok(path.display().to_string()),
        None => Err(format!(
            "only for --gdb: {}",
            apt::Request::packages(&["gdb"]).line()
        )),
    };
    Finding {
        what: "gdb",
        state,
        needed: false,
    }
}
