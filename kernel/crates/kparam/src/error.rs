//! What was wrong with a command line, in words for the person who typed it.

use core::fmt;

use crate::nearest::nearest;
use crate::{Kind, Row};

/// Why a word was refused.
#[derive(Copy, Clone, Debug)]
pub enum Reason {
    /// No row has this word.
    UnknownWord,
    /// The row has the word; its kind does not have the value.
    BadValue(&'static Row),
}

/// The first word at fault.
#[derive(Copy, Clone, Debug)]
pub struct ParamError<'a> {
    /// As typed, before `=`.
    pub word: &'a str,
    /// As typed, after `=`; None without `=`.
    pub value: Option<&'a str>,
    /// What there is.
    pub table: &'static [Row],
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for ParamError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            Reason::UnknownWord => {
                write!(f, "unknown boot parameter `{}`", self.word)?;
                did_you_mean(f, self.word, self.table.iter().map(|r| r.word))?;
                f.write_str("\nboot parameters:")?;
                self.table
                    .iter()
                    .try_for_each(|r| write!(f, "\n  {}{}", r.word, r.kind))
            }
            Reason::BadValue(row) => {
                match self.value {
                    Some(v) => write!(
                        f,
                        "boot parameter `{}`: `{v}` is not {}",
                        row.word,
                        Wanted(row.kind)
                    )?,
                    None => write!(
                        f,
                        "boot parameter `{}` needs a value: {}",
                        row.word,
                        Wanted(row.kind)
                    )?,
                }
                if let (Kind::Choice(rows), Some(v)) = (row.kind, self.value) {
                    did_you_mean(f, v, rows.iter().map(|r| r.word))?;
                }
                if let Kind::Choice(rows) = row.kind {
                    for r in rows {
                        let first = r.doc.first().map_or("", |d| d.trim());
                        write!(f, "\n  {}={}  {first}", row.word, r.word)?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl core::error::Error for ParamError<'_> {}

fn did_you_mean<'a>(
    f: &mut fmt::Formatter<'_>,
    word: &str,
    all: impl Iterator<Item = &'a str>,
) -> fmt::Result {
    match nearest(word, all) {
        Some(n) => write!(f, "; did you mean `{n}`?"),
        None => Ok(()),
    }
}

struct Wanted(Kind);

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Kind::Flag => f.write_str("on or off"),
            Kind::Number { max } => write!(f, "a number from 0 to {max}"),
            Kind::Size => f.write_str("a number of bytes such as 4096, 64K, 512M, 2G or 1T"),
            Kind::Choice(_) => f.write_str("one of the choices"),
            Kind::Text { max } => write!(f, "a text of at most {max} bytes without quotes"),
        }
    }
}
