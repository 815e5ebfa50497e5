//! What a word's value may be: flags, numbers, sizes, choices, short texts.
//!
//! Each type is its own grammar. `show` writes what `parse` reads back (INV-PARAM-2). Values own
//! their bytes, so a parsed struct outlives the command line.

use core::fmt;

/// What kind of value a word takes; printed after the word in help texts.
#[derive(Copy, Clone, Debug)]
pub enum Kind {
    /// `word`, `word=on`, `word=off`.
    Flag,
    /// A whole number from 0 to `max`; decimal or 0x.
    Number {
        /// Largest allowed.
        max: u64,
    },
    /// Bytes with a unit K, M, G or T.
    Size,
    /// One of these words.
    Choice(&'static [ChoiceRow]),
    /// Up to `max` bytes of text.
    Text {
        /// Longest allowed, in bytes.
        max: usize,
    },
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Flag => Ok(()),
            Kind::Number { .. } => f.write_str("=N"),
            Kind::Size => f.write_str("=SIZE[K|M|G|T]"),
            Kind::Text { .. } => f.write_str("=TEXT"),
            Kind::Choice(rows) => {
                for (i, r) in rows.iter().enumerate() {
                    write!(f, "{}{}", if i == 0 { '=' } else { '|' }, r.word)?;
                }
                Ok(())
            }
        }
    }
}

/// One choice: its word and the lines of its doc comment.
#[derive(Copy, Clone, Debug)]
pub struct ChoiceRow {
    /// The word on the command line.
    pub word: &'static str,
    /// Lines of the doc comment.
    pub doc: &'static [&'static str],
}

/// A type that a boot parameter may have.
pub trait Value: Sized {
    /// Its grammar.
    const KIND: Kind;
    /// Reads a value; `None` as text is a word without `=`. None: not a value of this kind.
    fn parse(text: Option<&str>) -> Option<Self>;
    /// Writes what `parse` reads.
    fn show(&self, out: &mut dyn fmt::Write) -> fmt::Result;
}

/// [`Value::parse`] of an enum: the element of `all` whose row has this word. For enums that
/// cannot be made by `choices!`.
pub fn choice_parse<T: Copy>(rows: &[ChoiceRow], all: &[T], text: Option<&str>) -> Option<T> {
    let at = rows.iter().position(|r| Some(r.word) == text)?;
    all.get(at).copied()
}

/// The word of the `at`-th choice; for enums that cannot be made by `choices!`.
pub fn choice_name(rows: &[ChoiceRow], at: usize) -> &'static str {
    rows.get(at).map_or("", |r| r.word)
}

impl Value for bool {
    const KIND: Kind = Kind::Flag;

    fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("on" | "yes" | "y" | "1" | "true") => Some(true),
            Some("off" | "no" | "n" | "0" | "false") => Some(false),
            _ => None,
        }
    }

    fn show(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str(if *self { "on" } else { "off" })
    }
}

/// Decimal, or hexadecimal after 0x; `_` may separate digits.
fn number(text: &str) -> Option<u64> {
    let hex = text.strip_prefix("0x");
    let (digits, radix) = (hex.unwrap_or(text), if hex.is_some() { 16 } else { 10 });
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    digits.chars().filter(|&c| c != '_').try_fold(0u64, |n, c| {
        n.checked_mul(radix.into())?
            .checked_add(c.to_digit(radix)?.into())
    })
}

macro_rules! numbers {
    ($($t:ty),*) => {$(
        impl Value for $t {
            const KIND: Kind = Kind::Number { max: <$t>::MAX as u64 };

            fn parse(text: Option<&str>) -> Option<Self> {
                number(text?)?.try_into().ok()
            }

            fn show(&self, out: &mut dyn fmt::Write) -> fmt::Result {
                write!(out, "{self}")
            }
        }
    )*};
}
numbers!(u8, u16, u32, u64, usize);

/// A number of bytes. Units are powers of 1024: K, M, G, T.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Bytes(pub u64);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl Value for Bytes {
    const KIND: Kind = Kind::Size;

    fn parse(text: Option<&str>) -> Option<Self> {
        let text = text?;
        for (unit, shift) in UNITS {
            if let Some(n) = text.strip_suffix([unit, unit.to_ascii_lowercase()]) {
                return number(n)?.checked_mul(1 << shift).map(Bytes);
            }
        }
        number(text).map(Bytes)
    }

    fn show(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let fits = |&&(_, shift): &&(char, u32)| self.0 != 0 && self.0.trailing_zeros() >= shift;
        match UNITS.iter().find(fits) {
            Some((unit, shift)) => write!(out, "{}{unit}", self.0 >> shift),
            None => write!(out, "{}", self.0),
        }
    }
}

/// A text of up to N bytes, kept inline.
#[derive(Copy, Clone, PartialEq, Eq)]
pub struct Text<const N: usize = 64> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// No text.
    pub const EMPTY: Self = Text {
        bytes: [0; N],
        len: 0,
    };

    /// A text known at compile time. Longer than N does not compile (in a const).
    pub const fn new(text: &'static str) -> Self {
        assert!(text.len() <= N);
        let mut t = Text {
            bytes: [0; N],
            len: text.len(),
        };
        let mut i = 0;
        while i < text.len() {
            t.bytes[i] = text.as_bytes()[i];
            i += 1;
        }
        t
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // Copied whole from a &str, so it is UTF-8; an empty text stands for the impossible.
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("")
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl<const N: usize> Value for Text<N> {
    const KIND: Kind = Kind::Text { max: N };

    fn parse(text: Option<&str>) -> Option<Self> {
        let text = text?;
        let mut t = Text {
            bytes: [0; N],
            len: text.len(),
        };
        t.bytes
            .get_mut(..text.len())?
            .copy_from_slice(text.as_bytes());
        // A quote inside could not be written again.
        (!text.contains('"')).then_some(t)
    }

    fn show(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        if self.as_str().contains(char::is_whitespace) {
            write!(out, "\"{}\"", self.as_str())
        } else {
            out.write_str(self.as_str())
        }
    }
}

/// A word that may be left unsaid; `word=unset` says so.
impl<T: Value> Value for Option<T> {
    const KIND: Kind = T::KIND;

    fn parse(text: Option<&str>) -> Option<Self> {
        if text == Some("unset") {
            Some(None)
        } else {
            T::parse(text).map(Some)
        }
    }

    fn show(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        match self {
            Some(v) => v.show(out),
            None => out.write_str("unset"),
        }
    }
}
