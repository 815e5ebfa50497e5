//! A terminal's line discipline: what becomes of bytes that are typed before a program reads them.
//!
//! # Problem
//! A person types a line, mends it, interrupts or stops what runs; a program wants whole lines, or every byte as it
//! comes. Both are the same terminal in two settings (`termios`), between which programs switch at any time.
//!
//! # Mechanism
//! One buffer holds what was typed and not read. In line mode its first part, up to `committed`, is complete lines and
//! can be read; the rest is the line being edited. A line's end has a mark beside its byte, so that end of file (typed as
//! Ctrl-D, a mark on a byte that is not handed out) needs no value of its own. In raw mode everything is committed at
//! once. Nothing here knows of UARTs, threads or signals: [`Discipline::input`] returns the signal to send and hands what
//! is to be echoed to its caller. The settings and their effects are those of termios(3) and Linux's `n_tty.c` (6.1).
//!
//! # Lock order
//! None: the caller keeps the discipline under a lock of its own.
//!
//! # Invariants
//! - INV-TTY-1: `committed <= len <= SIZE`; marks are set only below `committed`.
//! - INV-TTY-2: in line mode the last committed byte has a mark: a read never ends in the middle of what it could have.

/// `struct termios` of the system calls: Linux's kernel layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Termios {
    /// Input: [`ICRNL`] and others.
    pub iflag: u32,
    /// Output: [`OPOST`], [`ONLCR`].
    pub oflag: u32,
    /// Line speed and format: kept, without effect.
    pub cflag: u32,
    /// Local: [`ICANON`] and others.
    pub lflag: u32,
    /// The discipline's number; always 0.
    pub line: u8,
    /// Special characters, by the indices in [`cc`].
    pub cc: [u8; 19],
}

macro_rules! bits { ($($name:ident = $bit:literal, $what:literal;)*) => { $(
    #[doc = $what]
    pub const $name: u32 = $bit;
)* } }
bits! {
    ISTRIP = 0o40, "Input: only seven bits.";
    INLCR = 0o100, "Input: newline becomes carriage return.";
    IGNCR = 0o200, "Input: carriage returns are dropped.";
    ICRNL = 0o400, "Input: carriage return becomes newline.";
    IXON = 0o2000, "Input: START and STOP are no input.";
    IUTF8 = 0o40000, "Input: characters may have several bytes.";
    OPOST = 1, "Output: the next takes effect.";
    ONLCR = 4, "Output: newline becomes carriage return and newline.";
    ISIG = 1, "Characters send signals.";
    ICANON = 2, "Line mode.";
    ECHO = 8, "What is typed is shown.";
    ECHOE = 0o20, "Erased characters vanish.";
    ECHOK = 0o40, "A killed line is followed by a newline, or vanishes.";
    ECHONL = 0o100, "Newlines are shown even without ECHO.";
    NOFLSH = 0o200, "Signals leave the input alone.";
    TOSTOP = 0o400, "Background processes may not write.";
    ECHOCTL = 0o1000, "Control characters are shown as ^X.";
    ECHOKE = 0o4000, "A killed line vanishes.";
    IEXTEN = 0o100000, "WERASE, REPRINT and LNEXT work.";
}

/// Indices into [`Termios::cc`].
#[allow(missing_docs, reason = "the names of termios(3)")]
pub mod cc {
    pub const INTR: usize = 0;
    pub const QUIT: usize = 1;
    pub const ERASE: usize = 2;
    pub const KILL: usize = 3;
    pub const EOF: usize = 4;
    pub const TIME: usize = 5;
    pub const MIN: usize = 6;
    pub const START: usize = 8;
    pub const STOP: usize = 9;
    pub const SUSP: usize = 10;
    pub const EOL: usize = 11;
    pub const REPRINT: usize = 12;
    pub const WERASE: usize = 14;
    pub const LNEXT: usize = 15;
    pub const EOL2: usize = 16;
}

impl Termios {
    /// What a Linux terminal begins with: line mode with echo, signals, 38400 baud.
    pub const fn new() -> Self {
        Termios {
            iflag: ICRNL | IXON,
            oflag: OPOST | ONLCR,
            cflag: 0o277,
            lflag: ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN,
            line: 0,
            // ^C ^\ DEL ^U ^D, TIME, MIN, SWTC, ^Q ^S ^Z, EOL, ^R ^O ^W ^V
            cc: [
                3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0,
            ],
        }
    }

    fn has(&self, lflag: u32) -> bool {
        self.lflag & lflag == lflag
    }
}

/// What a special character asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// INTR.
    Interrupt,
    /// QUIT.
    Quit,
    /// SUSP.
    Stop,
}

/// Bytes that may wait to be read; Linux's number.
pub const SIZE: usize = 4096;

/// See the top of the file.
pub struct Discipline {
    termios: Termios,
    bytes: [u8; SIZE],
    marks: [u64; SIZE / 64],
    len: usize,
    committed: usize,
    /// The next byte is taken as it is (LNEXT).
    literal: bool,
}

impl Discipline {
    /// An empty one.
    pub const fn new() -> Self {
        Discipline {
            termios: Termios::new(),
            bytes: [0; SIZE],
            marks: [0; SIZE / 64],
            len: 0,
            committed: 0,
            literal: false,
        }
    }

    /// The settings.
    pub fn termios(&self) -> &Termios {
        &self.termios
    }

    /// New settings. Input that waits can be read in either mode: leaving line mode commits the line being edited,
    /// entering it makes one line of all there is.
    pub fn set_termios(&mut self, termios: Termios) {
        let was = self.termios.has(ICANON);
        self.termios = Termios { line: 0, ..termios };
        let is = self.termios.has(ICANON);
        if was != is {
            self.committed = self.len;
            self.marks = [0; SIZE / 64];
            if is && self.len > 0 {
                self.mark(self.len - 1);
            }
            self.literal = false;
        }
    }

    /// Forgets what was typed and not read.
    pub fn flush(&mut self) {
        self.len = 0;
        self.committed = 0;
        self.marks = [0; SIZE / 64];
        self.literal = false;
    }

    /// Bytes that a read would not wait for.
    pub fn nr_readable(&self) -> usize {
        self.committed
    }

    /// Whether a read would not wait for more; in raw mode, for MIN bytes.
    pub fn is_readable(&self) -> bool {
        let least = match self.termios.has(ICANON) {
            true => 1,
            false if self.termios.cc[cc::TIME] != 0 => 1,
            false => usize::from(self.termios.cc[cc::MIN]).max(1),
        };
        self.committed >= least
    }

    /// Whether a read returns 0 instead of waiting: raw mode with MIN 0. After how many tenths of a second (TIME).
    pub fn gives_up_after(&self) -> Option<u8> {
        let raw = !self.termios.has(ICANON) && self.termios.cc[cc::MIN] == 0;
        raw.then_some(self.termios.cc[cc::TIME])
    }

    /// Takes what a read gets: in line mode up to one line, else what is there. 0 is end of file.
    pub fn read(&mut self, buf: &mut [u8]) -> usize {
        let (mut taken, mut given) = (0, 0);
        while given < buf.len() && taken < self.committed {
            let (byte, ends) = (self.bytes[taken], self.is_marked(taken));
            taken += 1;
            // End of file: Linux too marks a byte that it does not hand out.
            if !(ends && byte == 0) {
                buf[given] = byte;
                given += 1;
            }
            if ends {
                break;
            }
        }
        // A full buffer must not leave an end of file behind, which the next read would take for its own.
        if given > 0
            && given == buf.len()
            && taken < self.committed
            && self.bytes[taken] == 0
            && self.is_marked(taken)
            && !self.is_marked(taken - 1)
        {
            taken += 1;
        }
        self.remove_front(taken);
        given
    }

    fn remove_front(&mut self, nr: usize) {
        if nr == 0 {
            return;
        }
        self.bytes.copy_within(nr..self.len, 0);
        for i in 0..self.committed - nr {
            match self.is_marked(i + nr) {
                true => self.mark(i),
                false => self.unmark(i),
            }
        }
        (self.committed - nr..self.committed).for_each(|i| self.unmark(i));
        self.len -= nr;
        self.committed -= nr;
    }

    fn is_marked(&self, at: usize) -> bool {
        self.marks[at / 64] >> (at % 64) & 1 != 0
    }

    fn mark(&mut self, at: usize) {
        self.marks[at / 64] |= 1 << (at % 64);
    }

    fn unmark(&mut self, at: usize) {
        self.marks[at / 64] &= !(1 << (at % 64));
    }

    /// A byte came. `echo` gets what is to be shown. Returns the signal that the foreground is to get.
    pub fn input(&mut self, byte: u8, echo: &mut impl FnMut(&[u8])) -> Option<Signal> {
        let byte = self.translated(byte)?;
        if core::mem::take(&mut self.literal) {
            self.store(byte, echo);
            return None;
        }
        if let Some(signal) = self.signal_of(byte) {
            self.show(byte, echo);
            if !self.termios.has(NOFLSH) {
                self.flush();
            }
            return Some(signal);
        }
        let flow = [self.termios.cc[cc::START], self.termios.cc[cc::STOP]];
        if self.termios.iflag & IXON != 0 && flow.contains(&byte) {
            return None;
        }
        match self.termios.has(ICANON) {
            true => self.edit(byte, echo),
            false => self.store(byte, echo),
        }
        None
    }

    fn translated(&self, byte: u8) -> Option<u8> {
        let iflag = self.termios.iflag;
        let byte = if iflag & ISTRIP != 0 {
            byte & 0x7f
        } else {
            byte
        };
        match byte {
            b'\r' if iflag & IGNCR != 0 => None,
            b'\r' if iflag & ICRNL != 0 => Some(b'\n'),
            b'\n' if iflag & INLCR != 0 => Some(b'\r'),
            byte => Some(byte),
        }
    }

    fn signal_of(&self, byte: u8) -> Option<Signal> {
        let signals = [
            (cc::INTR, Signal::Interrupt),
            (cc::QUIT, Signal::Quit),
            (cc::SUSP, Signal::Stop),
        ];
        let found = signals.iter().find(|(at, _)| self.is_special(byte, *at));
        found
            .map(|(_, signal)| *signal)
            .filter(|_| self.termios.has(ISIG))
    }

    /// Whether `byte` is the special character at `at`; 0 switches one off.
    fn is_special(&self, byte: u8, at: usize) -> bool {
        byte != 0 && self.termios.cc[at] == byte
    }

    /// A byte in line mode.
    fn edit(&mut self, byte: u8, echo: &mut impl FnMut(&[u8])) {
        let extended = self.termios.has(IEXTEN);
        if self.is_special(byte, cc::ERASE) {
            self.erase(echo);
        } else if self.is_special(byte, cc::KILL) {
            self.kill(byte, echo);
        } else if extended && self.is_special(byte, cc::WERASE) {
            self.erase_word(echo);
        } else if extended && self.is_special(byte, cc::LNEXT) {
            self.literal = true;
            if self.termios.has(ECHO | ECHOCTL) {
                echo(b"^\x08");
            }
        } else if extended && self.is_special(byte, cc::REPRINT) && self.termios.has(ECHO) {
            echo(b"^R\n");
            (self.committed..self.len).for_each(|i| self.show(self.bytes[i], echo));
        } else if byte == b'\n' {
            if self.termios.has(ECHO) || self.termios.has(ECHONL) {
                echo(b"\n");
            }
            self.end_line(b'\n');
        } else if self.is_special(byte, cc::EOF) {
            self.end_line(0);
        } else if self.is_special(byte, cc::EOL) || self.is_special(byte, cc::EOL2) {
            self.show(byte, echo);
            self.end_line(byte);
        } else {
            self.store(byte, echo);
        }
    }

    /// One byte more; in line mode room is left for the line's end.
    fn store(&mut self, byte: u8, echo: &mut impl FnMut(&[u8])) {
        let line_mode = self.termios.has(ICANON);
        if self.len >= SIZE - usize::from(line_mode) {
            echo(b"\x07");
            return;
        }
        self.bytes[self.len] = byte;
        self.len += 1;
        if !line_mode {
            self.committed = self.len;
        }
        self.show(byte, echo);
    }

    fn end_line(&mut self, byte: u8) {
        if self.len == SIZE {
            return; // a full buffer of lines that nobody reads
        }
        self.bytes[self.len] = byte;
        self.len += 1;
        self.committed = self.len;
        self.mark(self.len - 1);
    }

    /// Echoes a byte as it appears on the line.
    fn show(&self, byte: u8, echo: &mut impl FnMut(&[u8])) {
        if !self.termios.has(ECHO) {
            return;
        }
        match byte {
            b'\n' | b'\t' => echo(&[byte]),
            0..32 | 127 if self.termios.has(ECHOCTL) => echo(&[b'^', byte ^ 0x40]),
            _ => echo(&[byte]),
        }
    }

    /// Takes the last character of the line being edited; whether there was one.
    fn erase(&mut self, echo: &mut impl FnMut(&[u8])) -> bool {
        let utf8 = self.termios.iflag & IUTF8 != 0;
        let continues = |byte: u8| byte & 0xc0 == 0x80;
        if self.len == self.committed {
            return false;
        }
        while utf8 && self.len - 1 > self.committed && continues(self.bytes[self.len - 1]) {
            self.len -= 1;
        }
        self.len -= 1;
        let byte = self.bytes[self.len];
        if !self.termios.has(ECHO) {
            return true;
        }
        if !self.termios.has(ECHOE) {
            self.show(self.termios.cc[cc::ERASE], echo);
            return true;
        }
        let columns = match byte {
            0..32 | 127 if self.termios.has(ECHOCTL) => 2,
            0..32 | 127 => 0,
            _ => 1,
        };
        (0..columns).for_each(|_| echo(b"\x08 \x08"));
        true
    }

    fn erase_word(&mut self, echo: &mut impl FnMut(&[u8])) {
        let last = |it: &Self| (it.len > it.committed).then(|| it.bytes[it.len - 1]);
        let in_word = |byte: u8| byte == b'_' || byte >= 0x80 || byte.is_ascii_alphanumeric();
        while last(self).is_some_and(|byte| !in_word(byte)) {
            self.erase(echo);
        }
        while last(self).is_some_and(in_word) {
            self.erase(echo);
        }
    }

    fn kill(&mut self, byte: u8, echo: &mut impl FnMut(&[u8])) {
        if self.termios.has(ECHO | ECHOKE | ECHOE) {
            while self.erase(echo) {}
            return;
        }
        self.len = self.committed;
        self.show(byte, echo);
        if self.termios.has(ECHO | ECHOK) {
            echo(b"\n");
        }
    }

    /// Checks the invariants.
    #[cfg(test)]
    fn check_invariants(&self) {
        assert!(self.committed <= self.len && self.len <= SIZE, "INV-TTY-1");
        assert!(
            (self.committed..SIZE).all(|i| !self.is_marked(i)),
            "INV-TTY-1"
        );
        if self.termios.has(ICANON) && self.committed > 0 {
            assert!(self.is_marked(self.committed - 1), "INV-TTY-2");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{string::String, vec, vec::Vec};

    struct Terminal {
        discipline: Discipline,
        shown: Vec<u8>,
        signals: Vec<Signal>,
    }

    impl Terminal {
        fn new() -> Self {
            Terminal {
                discipline: Discipline::new(),
                shown: vec![],
                signals: vec![],
            }
        }

        fn typed(&mut self, text: &[u8]) -> &mut Self {
            for &byte in text {
                let signal = self
                    .discipline
                    .input(byte, &mut |bytes| self.shown.extend(bytes));
                self.signals.extend(signal);
                self.discipline.check_invariants();
            }
            self
        }

        fn read(&mut self, room: usize) -> String {
            let mut buf = vec![0; room];
            let n = self.discipline.read(&mut buf);
            self.discipline.check_invariants();
            String::from_utf8_lossy(&buf[..n]).into_owned()
        }

        fn change(&mut self, change: impl FnOnce(&mut Termios)) {
            let mut termios = *self.discipline.termios();
            change(&mut termios);
            self.discipline.set_termios(termios);
            self.discipline.check_invariants();
        }
    }

    #[test]
    fn lines_are_read_one_by_one() {
        let mut t = Terminal::new();
        t.typed(b"one");
        assert!(!t.discipline.is_readable());
        t.typed(b"\rtwo\n");
        assert_eq!(
            (t.read(100), t.read(2), t.read(100)),
            ("one\n".into(), "tw".into(), "o\n".into())
        );
        assert_eq!(t.shown, b"one\ntwo\n");
        assert!(!t.discipline.is_readable());
    }

    #[test]
    fn editing() {
        let mut t = Terminal::new();
        t.typed(b"ab\x7fc\x01\x7f\x7fd\n");
        assert_eq!(t.read(100), "ad\n");
        assert_eq!(t.shown, b"ab\x08 \x08c^A\x08 \x08\x08 \x08\x08 \x08d\n");
        t.typed(b"some words \x17x\x15y\n");
        assert_eq!(t.read(100), "y\n");
        t.typed(b"\x7f\x15\x17a\x16\x03\n");
        assert_eq!((t.read(100), t.signals.len()), ("a\x03\n".into(), 0));
        t.change(|termios| termios.iflag |= IUTF8);
        t.typed("aä\x7fb\n".as_bytes());
        assert_eq!(t.read(100), "ab\n");
    }

    #[test]
    fn end_of_file_is_an_empty_read_once() {
        let mut t = Terminal::new();
        t.typed(b"\x04");
        assert!(t.discipline.is_readable());
        assert_eq!(t.read(100), "");
        assert!(!t.discipline.is_readable());
        // After half a line it ends that read only, even one that it fills.
        t.typed(b"half\x04");
        assert_eq!(t.read(4), "half");
        assert!(!t.discipline.is_readable());
    }

    #[test]
    fn signals_flush_unless_told_not_to() {
        let mut t = Terminal::new();
        t.typed(b"lost\nlost too\x03\x1a\x1c");
        assert_eq!(t.signals, [Signal::Interrupt, Signal::Stop, Signal::Quit]);
        assert!(!t.discipline.is_readable() && t.shown.ends_with(b"lost too^C^Z^\\"));
        t.change(|termios| termios.lflag |= NOFLSH);
        t.typed(b"kept\n\x03");
        assert_eq!(t.read(100), "kept\n");
        t.change(|termios| termios.lflag &= !ISIG);
        t.typed(b"\x03\n");
        assert_eq!((t.read(100), t.signals.len()), ("\x03\n".into(), 4));
    }

    #[test]
    fn raw_mode_gives_bytes_as_they_come() {
        let mut t = Terminal::new();
        t.typed(b"begun");
        t.change(|termios| {
            termios.lflag &= !(ICANON | ECHO | ISIG);
            termios.iflag = 0;
        });
        assert_eq!(t.read(100), "begun");
        t.typed(b"\x03\r\x7f");
        assert_eq!((t.read(2), t.read(9)), ("\x03\r".into(), "\x7f".into()));
        t.change(|termios| termios.cc[cc::MIN] = 3);
        t.typed(b"ab");
        assert!(!t.discipline.is_readable());
        t.typed(b"c");
        assert!(t.discipline.is_readable() && t.discipline.gives_up_after().is_none());
        t.change(|termios| (termios.cc[cc::MIN], termios.cc[cc::TIME]) = (0, 2));
        assert_eq!(t.discipline.gives_up_after(), Some(2));
        // Back in line mode what is there is a line.
        t.change(|termios| termios.lflag |= ICANON);
        assert!(t.discipline.is_readable());
        assert_eq!(t.read(100), "abc");
    }

    #[test]
    fn a_full_buffer_takes_no_more_but_the_lines_end() {
        let mut t = Terminal::new();
        t.typed(&[b'x'; SIZE + 10]).typed(b"\n");
        assert!(t.shown.ends_with(b"\x07\n") && t.discipline.is_readable());
        let line = t.read(2 * SIZE);
        assert!(line.len() == SIZE && line.ends_with("x\n"));
        t.typed(b"\n".repeat(SIZE + 5).as_slice());
        assert_eq!((t.discipline.nr_readable(), t.read(5).len()), (SIZE, 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Whatever is typed, read and set: the invariants hold, and without special characters lines come out as typed.
        #[test]
        fn any_sequence(steps in prop::collection::vec((0u8..4, prop::collection::vec(any::<u8>(), 0..40), 1usize..64), 1..40)) {
            let mut t = Terminal::new();
            for (what, bytes, room) in steps {
                match what {
                    0 | 1 => { t.typed(&bytes); }
                    2 => { t.read(room); }
                    _ => t.change(|termios| termios.lflag = u32::from(room as u16) * 0x101),
                }
            }
        }

        #[test]
        fn plain_text_comes_out(lines in prop::collection::vec("[ -~]{0,30}", 1..20), room in 1usize..50) {
            let mut t = Terminal::new();
            let text: String = lines.iter().map(|l| std::format!("{l}\n")).collect();
            t.typed(text.as_bytes());
            let mut got = String::new();
            while t.discipline.is_readable() {
                got += &t.read(room);
            }
            prop_assert_eq!(got, text);
        }
    }
}
