//! Bytes of an ACPI table: the checked header, and the typed entries after it.
//!
//! All reads are bounds-checked; a read past the end is None, never a panic.

use crate::warning::{Table, Warnings, What};

/// Bytes of the header common to all tables.
const HEADER: usize = 36;

/// A table whose signature, length and checksum are right.
#[derive(Copy, Clone)]
pub(crate) struct Checked<'a> {
    pub bytes: &'a [u8],
}

/// The little-endian bytes at an offset.
pub(crate) fn read<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    const { assert!(N <= 8) };
    let field = bytes.get(at..)?.first_chunk::<N>()?;
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(field);
    Some(u64::from_le_bytes(wide))
}

/// Checks a table's header; `fixed` is the number of bytes before its first entry.
pub(crate) fn check<'a>(
    bytes: &'a [u8],
    table: Table,
    signature: &[u8; 4],
    fixed: usize,
    warnings: &mut Warnings,
) -> Option<Checked<'a>> {
    if bytes.first_chunk() != Some(signature) {
        warnings.add(table, What::Signature, 0);
        return None;
    }
    let length = read::<4>(bytes, 4).unwrap_or(0) as usize;
    let Some(bytes) = bytes.get(..length).filter(|_| length >= fixed.max(HEADER)) else {
        warnings.add(table, What::Length, length as u64);
        return None;
    };
    let sum = bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
    if sum != 0 {
        warnings.add(table, What::Checksum, sum.into());
        return None;
    }
    Some(Checked { bytes })
}

impl<'a> Checked<'a> {
    pub(crate) fn revision(&self) -> u8 {
        self.bytes[8]
    }

    /// The entries from offset `at` on, type and length included, or what is wrong with one and
    /// its offset. An entry shorter than `len_min` of its type is skipped; one whose length makes
    /// no sense is the last.
    pub(crate) fn entries(&self, at: usize, len_min: fn(u8) -> usize) -> Entries<'a> {
        Entries {
            bytes: self.bytes,
            at,
            len_min,
        }
    }
}

/// See [`Checked::entries`].
pub(crate) struct Entries<'a> {
    bytes: &'a [u8],
    at: usize,
    len_min: fn(u8) -> usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<&'a [u8], (What, u64)>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        let rest = self.bytes.get(at..).filter(|r| !r.is_empty())?;
        let length = rest.get(1).map_or(0, |&l| l as usize);
        let Some(entry) = rest.get(..length).filter(|_| length >= 2) else {
            self.at = self.bytes.len();
            return Some(Err((What::EntryLength, at as u64)));
        };
        self.at += length;
        let long_enough = length >= (self.len_min)(entry[0]);
        Some(if long_enough {
            Ok(entry)
        } else {
            Err((What::EntryShort, at as u64))
        })
    }
}
