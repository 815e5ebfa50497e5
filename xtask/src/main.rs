//! Everything one does with this repository, behind `cargo xtask`.
//!
//! # Problem
//! Building this system takes a compiler for a bare-metal target, an emulator of a certain age, three kinds of
//! programs, and two archives; running it takes some forty words for QEMU. Nobody should have to know them.
//!
//! # Mechanism
//! [`toolchain`] and [`emulator`] find what there is and install what is missing through [`apt`]; [`build`] makes the
//! kernel and [`initramfs`] the files; [`topology`] describes machines; [`boot`] writes QEMU's words, [`run`] watches
//! it, [`console`] names the functions in backtraces, [`records`] makes tables. [`compare`] boots Linux beside Tine. [`mod@test`], [`check`], [`tidy`] and
//! [`doctor`] are commands of their own.
#![forbid(unsafe_code)]

mod apt;
mod ask;
mod bench;
mod boot;
mod build;
mod c2c;
mod check;
mod compare;
mod console;
mod doctor;
mod emulator;
mod initramfs;
mod libraries;
mod numasim;
mod paths;
mod profile;
mod programs;
mod progress;
mod qemu;
mod qmp;
mod records;
mod report;
mod run;
mod test;
mod tidy;
mod toolchain;
mod topology;
mod words;

use apt::Installer;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Build, run, test and check Tine.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true
)]
struct Cli {
    /// Install nothing: print the line that would, and stop.
    #[arg(long, global = true)]
    no_install: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build, boot under QEMU, print the results, and exit with the kernel's verdict.
    ///
    /// Without --init and --append the kernel runs its stress.
    Qemu(Box<qemu::Options>),
    /// A shell on the console: Debian's busybox as the first process. Ctrl-D ends the machine.
    Shell(qemu::Shell),
    /// Run a program and print every system call it makes, as strace does; at the end, the calls that are missing.
    Strace(qemu::Traced),
    /// Boot a matrix of benchmarks, variants, CPU counts and modes, keep the results, and compare them.
    Bench(Box<bench::Options>),
    /// Show results: tables here, and plots on one page of HTML.
    Report(report::Options),
    /// Run the same programs on Debian's Linux and on Tine, in the same QEMU, and compare.
    Compare(compare::Options),
    /// Run the tests of every crate on the host, then the scenarios under QEMU.
    Test(test::Options),
    /// Say what is installed, what is missing, and the line that gets it.
    Doctor,
    /// Format, clippy on host and kernel target, rustdoc links, tidy: warnings are errors.
    Check,
    /// Check the rules of this repository that no compiler checks.
    Tidy,
    /// Build everything that `qemu` boots, and say where it is.
    Build,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let installer = Installer::new(!cli.no_install);
    let result = match &cli.command {
        Command::Qemu(options) => qemu::command(options, &installer),
        Command::Shell(shell) => qemu::shell(shell, &installer),
        Command::Strace(traced) => qemu::strace(traced, &installer),
        Command::Bench(options) => bench::command(options, &installer),
        Command::Report(options) => report::command(options),
        Command::Compare(options) => compare::command(options, &installer),
        Command::Test(options) => test::command(options, &installer),
        Command::Doctor => doctor::command(),
        Command::Check => check::command(&installer),
        Command::Tidy => tidy::command(),
        Command::Build => build::command(&installer),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
