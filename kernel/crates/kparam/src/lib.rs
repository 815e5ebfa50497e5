//! Boot parameters: typed words on the command line.
//!
//! # Problem
//! Every variant, limit and scenario of the kernel is picked by a word at boot. A mistyped word
//! that is silently ignored means an afternoon of measuring the wrong thing. There is no allocator
//! yet when the line is read, and the list of words must not drift from its documentation.
//!
//! # Mechanism
//! [`params!`] declares a plain struct: each field is a word, its type is the grammar of the value,
//! its doc comment is the help text, and its initialiser the default. The macro writes only the
//! [`Params`] impl (a table of [`Row`]s and two dispatches by word); everything else here is
//! ordinary code over that table: [`parse`], [`help`], [`write_line`].
//!
//! ```
//! kparam::choices! {
//!     /// How pid numbers are found again.
//!     pub enum PidMap {
//!         /// One radix tree per namespace.
//!         Idr = "idr",
//!         /// Bitmap and hash, as before 4.15.
//!         Bitmap = "bitmap",
//!     }
//! }
//! kparam::params! {
//!     /// What the command line can say.
//!     pub struct BootParams {
//!         /// The map behind pid namespaces.
//!         pid_map: PidMap = PidMap::Idr,
//!         /// Start at most this many CPUs.
//!         maxcpus: usize = 512,
//!         /// Use no more memory than this.
//!         mem: Option<kparam::Bytes> = None,
//!         /// Print results only.
//!         quiet: bool = false,
//!     }
//! }
//! let p: BootParams = kparam::parse("quiet mem=2G pid-map=bitmap").unwrap();
//! assert!(p.quiet && p.pid_map == PidMap::Bitmap && p.maxcpus == 512);
//! assert_eq!(p.mem, Some(kparam::Bytes(2 << 30)));
//! let err = kparam::parse::<BootParams>("maxcpu=4").unwrap_err();
//! assert!(err.to_string().contains("did you mean `maxcpus`?"));
//! ```
//!
//! # Grammar
//! Words are separated by white space; `word` or `word=value`; double quotes keep white space in a
//! value together; `-` and `_` in a word are the same; of a word said twice the last counts (so
//! that scripts can append); `--` ends the words, what follows is for init ([`split_init_args`]).
//!
//! # Invariants
//! - INV-PARAM-1: every word is used or the parse fails; nothing is ignored.
//! - INV-PARAM-2: `parse(line)` of what [`write_line`] writes gives the same values.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod error;
mod nearest;
mod value;

use core::fmt;

pub use error::{ParamError, Reason};
pub use value::{Bytes, ChoiceRow, Kind, Text, Value, choice_name, choice_parse};

/// One word: the documentation of a field of a [`params!`] struct.
#[derive(Copy, Clone, Debug)]
pub struct Row {
    /// The word, as the field is called.
    pub word: &'static str,
    /// What its value may be.
    pub kind: Kind,
    /// Lines of the doc comment.
    pub doc: &'static [&'static str],
}

/// A set of boot parameters. Implemented by [`params!`].
pub trait Params: Sized {
    /// All words, in the order they were declared.
    const TABLE: &'static [Row];
    /// What holds for words that are not said.
    fn defaults() -> Self;
    /// Sets the field of a row of the table; None: the value is not one of its kind.
    fn set(&mut self, word: &str, value: Option<&str>) -> Option<()>;
    /// Writes the value of the field of a row as the command line would say it.
    fn show(&self, word: &str, out: &mut dyn fmt::Write) -> fmt::Result;
}

/// Declares a struct of boot parameters; see the crate's head for an example. Fields are public;
/// each type is a [`Value`].
#[macro_export]
macro_rules! params {
    ($(#[$attr:meta])* $vis:vis struct $name:ident {
        $($(#[doc = $doc:literal])+ $field:ident : $ty:ty = $default:expr,)+
    }) => {
        $(#[$attr])*
        #[derive(Clone, Debug)]
        $vis struct $name { $($(#[doc = $doc])+ pub $field: $ty,)+ }

        impl $crate::Params for $name {
            const TABLE: &'static [$crate::Row] = &[$($crate::Row {
                word: stringify!($field),
                kind: <$ty as $crate::Value>::KIND,
                doc: &[$($doc),+],
            }),+];
            fn defaults() -> Self {
                $name { $($field: $default,)+ }
            }
            fn set(&mut self, word: &str, value: Option<&str>) -> Option<()> {
                match word {
                    $(stringify!($field) => self.$field = $crate::Value::parse(value)?,)+
                    _ => return None,
                }
                Some(())
            }
            fn show(&self, word: &str, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
                match word {
                    $(stringify!($field) => $crate::Value::show(&self.$field, out),)+
                    _ => Ok(()),
                }
            }
        }
    };
}

/// Declares an enum whose variants are words: a [`Value`] with `ALL`, `name()` and docs.
#[macro_export]
macro_rules! choices {
    ($(#[$attr:meta])* $vis:vis enum $name:ident {
        $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+
    }) => {
        $(#[$attr])*
        #[derive(Copy, Clone, PartialEq, Eq, Debug)]
        $vis enum $name { $($(#[doc = $doc])+ $variant,)+ }

        #[allow(dead_code)]
        impl $name {
            /// Every choice, in the order declared.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            const ROWS: &'static [$crate::ChoiceRow] =
                &[$($crate::ChoiceRow { word: $word, doc: &[$($doc),+] }),+];
            /// The word on the command line.
            pub const fn name(self) -> &'static str {
                Self::ROWS[self as usize].word
            }
        }

        impl $crate::Value for $name {
            const KIND: $crate::Kind = $crate::Kind::Choice(Self::ROWS);
            fn parse(text: Option<&str>) -> Option<Self> {
                $crate::choice_parse(Self::ROWS, Self::ALL, text)
            }
            fn show(&self, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
                out.write_str(self.name())
            }
        }
    };
}

/// Reads a command line. The error names the word at fault and what there is instead; it prints
/// itself for a person.
pub fn parse<P: Params>(line: &str) -> Result<P, ParamError<'_>> {
    let mut params = P::defaults();
    for token in Tokens(split_init_args(line).0) {
        let (word, value) = match token.split_once('=') {
            Some((w, v)) => (w, Some(unquoted(v))),
            None => (token, None),
        };
        let fail = |reason| ParamError {
            word,
            value,
            table: P::TABLE,
            reason,
        };
        let row = P::TABLE
            .iter()
            .find(|r| same_word(r.word, word))
            .ok_or(fail(Reason::UnknownWord))?;
        params
            .set(row.word, value)
            .ok_or(fail(Reason::BadValue(row)))?;
    }
    Ok(params)
}

/// Splits a line at the word `--`: the kernel's words, and what is for init.
pub fn split_init_args(line: &str) -> (&str, &str) {
    let start = line.as_ptr() as usize;
    match Tokens(line).find(|&t| t == "--") {
        Some(t) => {
            let at = t.as_ptr() as usize - start;
            (&line[..at], line[at + 2..].trim())
        }
        None => (line, ""),
    }
}

/// Words of a line; white space inside double quotes does not separate.
struct Tokens<'a>(&'a str);

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        if text.is_empty() {
            return None;
        }
        let mut quoted = false;
        let end = text
            .find(|c: char| {
                quoted ^= c == '"';
                c.is_whitespace() && !quoted
            })
            .unwrap_or(text.len());
        let (token, rest) = text.split_at(end);
        self.0 = rest;
        Some(token)
    }
}

fn unquoted(v: &str) -> &str {
    v.strip_prefix('"')
        .and_then(|v| v.strip_suffix('"'))
        .unwrap_or(v)
}

/// Equal but for `-` and `_`.
fn same_word(a: &str, b: &str) -> bool {
    let plain = |c: u8| if c == b'-' { b'_' } else { c };
    a.len() == b.len() && a.bytes().zip(b.bytes()).all(|(a, b)| plain(a) == plain(b))
}

/// Writes all words with their kinds, defaults and docs, for a person.
pub fn help<P: Params>(out: &mut dyn fmt::Write) -> fmt::Result {
    let defaults = P::defaults();
    for row in P::TABLE {
        write!(out, "{}{}", row.word, row.kind)?;
        if !matches!(row.kind, Kind::Flag) {
            out.write_str("  (default ")?;
            defaults.show(row.word, out)?;
            out.write_str(")")?;
        }
        out.write_str("\n")?;
        write_doc(out, 4, row.doc)?;
        if let Kind::Choice(choices) = row.kind {
            let width = choices.iter().map(|c| c.word.len()).max().unwrap_or(0);
            for c in choices {
                write!(out, "    {:width$}  ", c.word)?;
                let (first, rest) = c.doc.split_first().unwrap_or((&"", &[]));
                writeln!(out, "{}", first.trim())?;
                write_doc(out, width + 6, rest)?;
            }
        }
    }
    Ok(())
}

fn write_doc(out: &mut dyn fmt::Write, indent: usize, lines: &[&str]) -> fmt::Result {
    for line in lines {
        writeln!(out, "{:indent$}{}", "", line.trim())?;
    }
    Ok(())
}

/// Writes every parameter with its value on one line, as a command line: for the boot line and the
/// head of measurements. Parsed again it gives the same values.
pub fn write_line<P: Params>(params: &P, out: &mut dyn fmt::Write) -> fmt::Result {
    for (i, row) in P::TABLE.iter().enumerate() {
        write!(out, "{}{}=", if i == 0 { "" } else { " " }, row.word)?;
        params.show(row.word, out)?;
    }
    Ok(())
}
