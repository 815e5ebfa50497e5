//! What is written down, as JSON lines: each window's account, then a line that says whether to believe it.

use crate::attribution::{Attribution, Loss};
use std::fmt::Write;

/// Lines of memory that an account names; the rest is summed.
const LINES: usize = 400;
/// Places in the code named for each line.
const CODES: usize = 6;

/// A window that is over.
pub struct Window<'a> {
    /// Counted from 0.
    pub number: u64,
    /// CPUs that took part.
    pub cpus: usize,
    /// Simulated cycles.
    pub cycles: u64,
    /// Times the simulation had to be broken open within it; not 0: not valid.
    pub breaks: u64,
    /// Who lost what.
    pub attribution: &'a Attribution,
}

impl Window<'_> {
    /// The account. Conflicting lines come first, then the dearest ones; both up to a limit, both in a fixed order.
    pub fn write(&self, out: &mut String) {
        let lines = self.attribution.lines();
        let conflicts = self.attribution.conflicts();
        let total = self.attribution.total();
        // Writing to a String does not fail.
        let _ = writeln!(
            out,
            "{{\"window\":{},\"cpus\":{},\"cycles\":{},\"breaks\":{},\"lines\":{},\"conflicts\":{conflicts},{}}}",
            self.number,
            self.cpus,
            self.cycles,
            self.breaks,
            lines.len(),
            loss(&total)
        );
        let code = self.attribution.code_by_line();
        let mut named = 0;
        for (line, entry) in lines {
            named += 1;
            if named > LINES && !entry.is_conflict() {
                continue;
            }
            let _ = write!(
                out,
                "{{\"line\":{},\"address\":{},\"readers\":{},\"writers\":{},\"conflict\":{},{},\"code\":[",
                line << 6,
                entry.address,
                entry.readers.len(),
                entry.writers.len(),
                entry.is_conflict(),
                loss(&entry.loss)
            );
            let codes = code.get(&line).into_iter().flatten().take(CODES);
            for (number, (address, l)) in codes.enumerate() {
                let comma = if number > 0 { "," } else { "" };
                let _ = write!(out, "{comma}{{\"at\":{address},{}}}", loss(l));
            }
            out.push_str("]}\n");
        }
    }
}

fn loss(l: &Loss) -> String {
    format!(
        "\"misses\":{},\"fetching\":{},\"spinning\":{}",
        l.misses, l.fetching, l.spinning
    )
}

/// The last line.
#[derive(Clone, Copy, Debug, Default)]
pub struct End {
    /// Windows that were closed.
    pub windows: u64,
    /// Simulated cycles from begin to end.
    pub cycles: u64,
    /// Times that the token went from one CPU to another.
    pub switches: u64,
    /// Times the simulation was broken open, wherever.
    pub breaks: u64,
    /// Interrupts that no CPU sent: a device's, or a timer's, in the host's time.
    pub intruders: u64,
    /// All other CPUs were halted when it began.
    pub quiet: bool,
    /// It ended by the guest's word.
    pub ended: bool,
}

impl End {
    /// The line.
    pub fn write(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "{{\"end\":{},\"windows\":{},\"cycles\":{},\"switches\":{},\"breaks\":{},\"intruders\":{},\"quiet\":{}}}",
            self.ended,
            self.windows,
            self.cycles,
            self.switches,
            self.breaks,
            self.intruders,
            self.quiet
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts() {
        let mut a = Attribution::new();
        a.touch(1, 0, true, 0x40);
        a.touch(1, 1, false, 0x48);
        a.miss(1, 0x10, 110);
        a.touch(2, 1, true, 0x80);
        a.miss(2, 0x20, 200);
        let mut text = String::new();
        Window {
            number: 3,
            cpus: 2,
            cycles: 500,
            breaks: 0,
            attribution: &a,
        }
        .write(&mut text);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines[0].contains("\"conflicts\":1,\"misses\":2,\"fetching\":310,\"spinning\":0"),
            "{text}"
        );
        assert!(
            lines[1].starts_with("{\"line\":128,\"address\":128,")
                && lines[1].contains("\"at\":32")
        );
        assert!(lines[2].contains("\"readers\":1,\"writers\":1,\"conflict\":true"));
        let mut end = String::new();
        End {
            windows: 1,
            quiet: true,
            ended: true,
            ..End::default()
        }
        .write(&mut end);
        assert!(end.contains("\"end\":true") && end.ends_with("\"quiet\":true}\n"));
    }
}
