//! Aligned columns of text for the console.
//!
//! Problem: a table on a serial line has no terminal library under it.
//!
//! Mechanism: rows are kept until the widths are known, then written through `core::fmt`. The first
//! column is aligned left, the others right. Reporting code: allocates infallibly.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

/// Which side a column's cells touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table being filled; written by `Display`.
#[derive(Clone, Debug)]
pub struct Table {
    heads: Vec<String>,
    aligns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads: the first aligned left, the others right.
    pub fn new(heads: &[&str]) -> Table {
        let align = |i| if i == 0 { Align::Left } else { Align::Right };
        Table {
            heads: heads.iter().map(|h| h.to_string()).collect(),
            aligns: (0..heads.len()).map(align).collect(),
            rows: Vec::new(),
        }
    }

    /// Aligns `column` (counted from 0; one that doesn't exist is ignored).
    #[must_use]
    pub fn align(mut self, column: usize, align: Align) -> Table {
        if let Some(slot) = self.aligns.get_mut(column) {
            *slot = align;
        }
        self
    }

    /// Adds a row. Missing cells are empty; cells beyond the heads are dropped.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        let mut row: Vec<String> = cells
            .into_iter()
            .map(Into::into)
            .take(self.heads.len())
            .collect();
        row.resize(self.heads.len(), String::new());
        self.rows.push(row);
    }

    /// Whether no row was added.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| &row[column]);
        cells
            .chain([&self.heads[column]])
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    }

    fn line(&self, f: &mut fmt::Formatter<'_>, cells: &[String], widths: &[usize]) -> fmt::Result {
        let last = cells.len().saturating_sub(1);
        for (i, cell) in cells.iter().enumerate() {
            match self.aligns[i] {
                Align::Left if i == last => write!(f, "{cell}")?,
                Align::Left => write!(f, "{cell:<0$}", widths[i])?,
                Align::Right => write!(f, "{cell:>0$}", widths[i])?,
            }
            f.write_str(if i == last { "\n" } else { "  " })?;
        }
        Ok(())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: Vec<usize> = (0..self.heads.len()).map(|i| self.width(i)).collect();
        let rules: Vec<String> = widths.iter().map(|w| "-".repeat(*w)).collect();
        self.line(f, &self.heads, &widths)?;
        self.line(f, &rules, &widths)?;
        self.rows
            .iter()
            .try_for_each(|row| self.line(f, row, &widths))
    }
}

/// A number with its digits in groups of three: `189,260`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i != 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["name", "n", "note"])
            .align(2, Align::Left)
            .align(9, Align::Left);
        assert!(table.is_empty());
        table.row(["alpha", "1", "x"]);
        table.row(["be", "1,000"]);
        table.row(["\u{e9}\u{e9}", "", "y", "dropped"]);
        let expected = "name       n  note\n-----  -----  ----\nalpha      1  x\nbe     1,000  \n\u{e9}\u{e9}            y\n";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn digits_in_groups() {
        let of = [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (189_260, "189,260"),
            (1_234_567, "1,234,567"),
        ];
        of.iter()
            .for_each(|(n, text)| assert_eq!(grouped(*n), *text));
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
    }
}
