//! Which CPUs only wait: a loop whose turns read one line, and nothing else, until somebody writes it.
//!
//! The guest marks the `pause` of such a loop. On the second turn in a row that saw the same line the CPU may sleep on
//! the host; it is woken at the turn in which it would have noticed the write.

/// Cycles of a turn before one was seen.
const FIRST_GUESS: u64 = 50;

/// One CPU's recent past.
#[derive(Clone, Debug)]
pub struct Detector {
    /// Line read last.
    last_read: u64,
    /// Line of the turn before; `NONE` when the turn did more than look at it.
    candidate: u64,
    /// When that turn ended.
    turned: u64,
    /// Cycles of a turn.
    period: u64,
}

const NONE: u64 = u64::MAX;

impl Detector {
    /// Nothing seen.
    pub const fn new() -> Self {
        Self {
            last_read: NONE,
            candidate: NONE,
            turned: 0,
            period: FIRST_GUESS,
        }
    }

    /// A read of `line`.
    #[inline(always)]
    pub fn read(&mut self, line: u64) {
        self.last_read = line;
        if line != self.candidate {
            self.candidate = NONE;
        }
    }

    /// A write, a miss, or an interrupt: the turn changed something.
    #[inline(always)]
    pub fn disturb(&mut self) {
        self.candidate = NONE;
    }

    /// The end of a turn at `now`. The line to wait for, if the last two turns looked at it alone.
    #[inline]
    pub fn turn(&mut self, now: u64) -> Option<u64> {
        let again = self.candidate == self.last_read && self.last_read != NONE;
        if again && now > self.turned {
            self.period = now - self.turned;
        }
        self.candidate = self.last_read;
        self.turned = now;
        again.then_some(self.last_read)
    }

    /// It slept, its line was written and is here again: the turn that begins at `now` is as good as the second one.
    #[inline]
    pub fn wake(&mut self, now: u64) {
        self.turned = now;
    }

    /// Cycles of a turn.
    #[inline]
    pub fn period(&self) -> u64 {
        self.period
    }

    /// When the turn before ended.
    #[inline]
    pub fn turned(&self) -> u64 {
        self.turned
    }
}

/// A loop that has turned every `period` cycles since `slept` looks again at the end of the first turn at or after
/// `written`.
#[inline]
pub fn wakes_at(slept: u64, written: u64, period: u64) -> u64 {
    slept + written.saturating_sub(slept).div_ceil(period.max(1)) * period.max(1)
}

impl Default for Detector {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_equal_turns_are_a_spin() {
        let mut d = Detector::new();
        assert_eq!(d.turn(10), None, "no line seen");
        d.read(7);
        assert_eq!(d.turn(70), None);
        d.read(7);
        assert_eq!(d.turn(130), Some(7));
        assert_eq!((d.period(), d.turned()), (60, 130));
        d.wake(1000);
        d.read(7);
        assert_eq!(
            (d.turn(1050), d.period()),
            (Some(7), 50),
            "one turn will do"
        );
        assert_eq!(wakes_at(130, 131, 60), 190);
        assert_eq!(wakes_at(130, 190, 60), 190);
        assert_eq!(wakes_at(130, 100, 60), 130, "written before we slept");
    }

    #[test]
    fn anything_else_is_work() {
        for disturb in [|d: &mut Detector| d.read(8), Detector::disturb] {
            let mut d = Detector::new();
            d.read(7);
            assert_eq!(d.turn(1), None);
            disturb(&mut d);
            d.read(7);
            assert_eq!(d.turn(2), None);
            d.read(7);
            assert_eq!(d.turn(3), Some(7));
        }
    }
}
