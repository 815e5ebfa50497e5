//! `cargo xtask check`: format, clippy, documentation, tidy, with warnings as errors.

use crate::{
    apt::Installer,
    paths,
    progress::Step,
    tidy,
    toolchain::{self, KERNEL_FLAGS, Toolchain, USER_FLAGS},
};
use anyhow::{Result, bail};
use std::process::Command;

const DOC_FLAGS: &str =
    "-Drustdoc::broken_intra_doc_links -Drustdoc::invalid_html_tags -Drustdoc::bare_urls";
/// What is built for the host.
const HOST: &[&str] = &[
    "--workspace",
    "--exclude",
    "kernel",
    "--exclude",
    "programs",
];

/// `cargo xtask check`: runs everything even after a failure, then says how many there were.
pub fn command(installer: &Installer) -> Result<()> {
    let toolchain = Toolchain::ensure(installer)?;
    if let Some(plan) = toolchain.clippy_plan() {
        installer.install("clippy for the bare-metal compiler", &plan)?;
    }
    let mut failures = 0;
    for (title, command) in commands(&toolchain) {
        if let Err(error) = Step::new(title).run(command) {
            eprintln!("{error:#}");
            failures += 1;
        } else {
            println!("{title}: good");
        }
    }
    if let Err(error) = tidy::command() {
        eprintln!("{error:#}");
        failures += 1;
    }
    if failures > 0 {
        bail!("{failures} checks failed");
    }
    Ok(())
}

fn commands(toolchain: &Toolchain) -> Vec<(&'static str, Command)> {
    let own = |words: &[&str]| {
        let mut command = Command::new(toolchain::own_cargo());
        toolchain::clean_environment(&mut command);
        command.current_dir(paths::root()).args(words);
        command
    };
    let mut host_clippy = own(&["clippy", "--all-targets", "--keep-going"]);
    host_clippy.args(HOST).args(["--", "-Dwarnings"]);
    let mut host_doc = own(&["doc", "--no-deps", "--document-private-items"]);
    host_doc
        .args(HOST)
        .args(["--exclude", "boot"])
        .env("RUSTDOCFLAGS", DOC_FLAGS);

    let system = ["-p", "kernel", "-p", "boot"];
    let mut kernel_clippy = toolchain.clippy(KERNEL_FLAGS);
    kernel_clippy
        .arg("--keep-going")
        .args(system)
        .args(["--", "-Dwarnings"]);
    let mut user_clippy = toolchain.clippy(USER_FLAGS);
    user_clippy.args(["-p", "programs", "--", "-Dwarnings"]);
    let doc_flags: Vec<&str> = KERNEL_FLAGS
        .iter()
        .copied()
        .chain(DOC_FLAGS.split(' '))
        .collect();
    let mut kernel_doc = toolchain.cargo("doc", &doc_flags);
    kernel_doc
        .args(["--no-deps", "--document-private-items"])
        .args(system);
    vec![
        ("format", own(&["fmt", "--all", "--", "--check", "-l"])),
        ("clippy on the host", host_clippy),
        ("clippy on the kernel", kernel_clippy),
        ("clippy on the user programs", user_clippy),
        ("documentation of the crates", host_doc),
        ("documentation of kernel and boot", kernel_doc),
    ]
}
