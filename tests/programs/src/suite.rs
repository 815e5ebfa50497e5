//! Counted checks with one line each.

use crate::errno::Errno;
use crate::io::Line;

/// Counts of checks so far, under a name.
pub struct Suite {
    name: &'static str,
    filter: &'static [u8],
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Suite {
    /// An empty suite. Groups whose name does not contain `filter` don't run.
    pub const fn new(name: &'static str, filter: &'static [u8]) -> Suite {
        Suite {
            name,
            filter,
            passed: 0,
            failed: 0,
            skipped: 0,
        }
    }

    /// Runs `group` if the filter lets it.
    pub fn group(&mut self, name: &str, group: impl FnOnce(&mut Suite)) {
        let hit = self.filter.is_empty()
            || name
                .as_bytes()
                .windows(self.filter.len())
                .any(|w| w == self.filter);
        if hit {
            group(self);
        }
    }

    fn number(&self) -> i64 {
        i64::from(self.passed + self.failed + self.skipped)
    }

    /// A check: the raw result (or any number) must be `want`.
    #[inline(never)]
    pub fn is(&mut self, name: &str, got: isize, want: isize) {
        if got == want {
            self.passed += 1;
            Line::new()
                .text("ok ")
                .dec(self.number())
                .text(" ")
                .text(name)
                .end();
        } else {
            self.failed += 1;
            let line = Line::new().text("FAIL ").text(name).text(": got ");
            value(value(line, got).text(" want "), want).end();
        }
    }

    /// A check: the call must fail with `want`.
    pub fn err(&mut self, name: &str, got: isize, want: Errno) {
        self.is(name, got, want.raw());
    }

    /// A check: the condition must hold.
    pub fn ok(&mut self, name: &str, holds: bool) {
        self.is(name, isize::from(holds), 1);
    }

    /// A check of a call that a kernel may lack: ENOSYS is counted apart.
    pub fn extra(&mut self, name: &str, got: isize, want: isize) {
        if got == Errno::ENOSYS.raw() && want != got {
            self.skipped += 1;
            Line::new()
                .text("skip ")
                .dec(self.number())
                .text(" ")
                .text(name)
                .text(": no such call")
                .end();
        } else {
            self.is(name, got, want);
        }
    }

    /// Prints the closing line; the program's exit code: 0 if every check passed and at least one ran.
    pub fn close(&self) -> i32 {
        let line = Line::new()
            .text(self.name)
            .text(": ")
            .dec(i64::from(self.passed))
            .text(" passed, ");
        let line = line.dec(i64::from(self.failed)).text(" failed");
        let line = if self.skipped > 0 {
            line.text(", ")
                .dec(i64::from(self.skipped))
                .text(" skipped")
        } else {
            line
        };
        line.end();
        i32::from(self.failed != 0 || self.passed == 0)
    }
}

/// A number, with the error's name or as hexadecimal where that says more.
fn value(line: Line, number: isize) -> Line {
    let line = line.dec(number as i64);
    match Errno::of(number) {
        Some(errno) => line.text(" (").text(errno.name()).text(")"),
        None if number > 0xffff => line.text(" (").hex(number as usize).text(")"),
        None => line,
    }
}
