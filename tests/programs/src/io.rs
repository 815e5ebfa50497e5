//! Lines of text on standard output: built in a buffer, written by one call.

use crate::sys;

/// A line under construction. What does not fit is cut.
pub struct Line {
    bytes: [u8; 240],
    len: usize,
}

impl Line {
    /// An empty line.
    #[inline(never)]
    pub fn new() -> Line {
        Line {
            bytes: [0; 240],
            len: 0,
        }
    }

    fn byte(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.len) {
            *slot = byte;
            self.len += 1;
        }
    }

    /// Appends text.
    #[inline(never)]
    pub fn text(mut self, text: &str) -> Line {
        text.bytes().for_each(|b| self.byte(b));
        self
    }

    /// Appends raw bytes.
    #[inline(never)]
    pub fn bytes(mut self, text: &[u8]) -> Line {
        text.iter().for_each(|b| self.byte(*b));
        self
    }

    /// Appends a number in decimal.
    #[inline(never)]
    pub fn dec(mut self, number: i64) -> Line {
        let mut digits = [0u8; 20];
        let (mut rest, mut nr) = (number.unsigned_abs(), 0);
        for digit in &mut digits {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            nr += 1;
            if rest == 0 {
                break;
            }
        }
        if number < 0 {
            self.byte(b'-');
        }
        digits.iter().take(nr).rev().for_each(|d| self.byte(*d));
        self
    }

    /// Appends a number in hexadecimal with 0x.
    #[inline(never)]
    pub fn hex(mut self, number: usize) -> Line {
        self = self.text("0x");
        let nibbles = (64 - number.leading_zeros()).div_ceil(4).max(1);
        for i in (0..nibbles).rev() {
            let nibble = (number >> (4 * i)) as u8 & 15;
            self.byte(if nibble < 10 {
                b'0' + nibble
            } else {
                b'a' + nibble - 10
            });
        }
        self
    }

    /// Ends the line and writes it to standard output.
    #[inline(never)]
    pub fn end(mut self) {
        self.len = self.len.min(self.bytes.len() - 1);
        self.byte(b'\n');
        let mut done = 0;
        while done < self.len {
            let wrote = sys!(
                WRITE,
                1,
                self.bytes.as_ptr().wrapping_add(done),
                self.len - done
            );
            if wrote <= 0 {
                return;
            }
            done += wrote as usize;
        }
    }
}

impl Default for Line {
    fn default() -> Line {
        Line::new()
    }
}
