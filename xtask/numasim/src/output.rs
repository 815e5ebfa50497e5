//! What is written down, as JSON lines: each window's account, then a line that says whether to believe it.

use crate::attribution::{Attribution, LineLoss, Loss};
use crate::coherence::LINE_SHIFT;
use std::collections::VecDeque;
use std::fmt::Write;

/// Lines of memory that an account names; the rest is summed.
const LINES: usize = 400;
/// Lines that the guest is asked about.
const QUESTIONS: usize = 4000;
/// Places in the code named for each line, and lines behind which it was spun on.
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
    /// The node of each CPU.
    pub node_of_cpu: &'a [u8],
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
        let behind = self.attribution.behind_line();
        for (line, entry) in self.chosen() {
            let _ = write!(
                out,
                "{{\"line\":{},\"address\":{},\"readers\":{},\"writers\":{},\"nodes\":{},\"conflict\":{},{},\"code\":[",
                line << LINE_SHIFT,
                entry.address,
                entry.readers.len(),
                entry.writers.len(),
                self.nodes(entry),
                entry.is_conflict(),
                loss(&entry.loss)
            );
            let codes = code.get(&line).into_iter().flatten().take(CODES);
            for (number, (address, l)) in codes.enumerate() {
                let comma = if number > 0 { "," } else { "" };
                let _ = write!(out, "{comma}{{\"at\":{address},{}}}", loss(l));
            }
            out.push_str("],\"behind\":[");
            let others = behind.get(&line).into_iter().flatten().take(CODES);
            for (number, (other, cycles)) in others.enumerate() {
                let comma = if number > 0 { "," } else { "" };
                let other = other << LINE_SHIFT;
                let _ = write!(out, "{comma}{{\"line\":{other},\"cycles\":{cycles}}}");
            }
            out.push_str("]}\n");
        }
    }

    /// The lines that the account names, in its order.
    fn chosen(&self) -> impl Iterator<Item = (u64, &LineLoss)> {
        let lines = self.attribution.lines().into_iter().enumerate();
        lines
            .filter(|(place, (_, entry))| *place < LINES || entry.is_conflict())
            .map(|(_, line)| line)
    }

    /// Nodes whose CPUs touched the line.
    fn nodes(&self, entry: &LineLoss) -> u32 {
        let node = |cpu: usize| self.node_of_cpu.get(cpu).map_or(0, |n| 1u64 << n);
        let all = entry.readers.iter().chain(entry.writers.iter());
        all.fold(0, |nodes, cpu| nodes | node(cpu)).count_ones()
    }

    /// What the guest is asked names for: physical address and a virtual one, the dearest lines and those in conflict.
    pub fn questions(&self) -> VecDeque<(u64, u64)> {
        let physical = |(line, entry): (u64, &LineLoss)| (line << LINE_SHIFT, entry.address);
        self.chosen().take(QUESTIONS).map(physical).collect()
    }
}

/// A name that the guest gave.
pub fn write_name(out: &mut String, line: u64, name: &str) {
    let _ = writeln!(out, "{{\"name\":\"{name}\",\"line\":{line}}}");
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
        a.spin(2, Some(1), 0x20, 0);
        let mut text = String::new();
        let window = Window {
            number: 3,
            cpus: 2,
            cycles: 500,
            breaks: 0,
            attribution: &a,
            node_of_cpu: &[0, 1],
        };
        window.write(&mut text);
        assert_eq!(window.questions(), [(128, 0x80), (64, 0x40)]);
        write_name(&mut text, 64, "task +0x40");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(
            lines[0].contains("\"conflicts\":1,\"misses\":2,\"fetching\":310,\"spinning\":0"),
            "{text}"
        );
        assert!(
            lines[1].starts_with("{\"line\":128,\"address\":128,")
                && lines[1].contains("\"at\":32")
                && lines[1].ends_with("\"behind\":[{\"line\":64,\"cycles\":0}]}")
        );
        assert!(lines[2].contains("\"readers\":1,\"writers\":1,\"nodes\":2,\"conflict\":true"));
        assert_eq!(lines[3], "{\"name\":\"task +0x40\",\"line\":64}");
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
