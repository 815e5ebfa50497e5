//! Asking a program something: its answer, or nothing.

use xshell::{Cmd, Shell};

/// What the command prints, if it is there and succeeds; its complaints are not shown.
pub fn ask(command: impl FnOnce(&Shell) -> Cmd<'_>) -> Option<String> {
    let shell = Shell::new().ok()?;
    command(&shell).quiet().ignore_stderr().read().ok()
}
