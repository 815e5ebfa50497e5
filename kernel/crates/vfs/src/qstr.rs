//! Names on their way through a walk: split, hash and compare by words.
//!
//! Problem: a path is read once by every system call that takes one; a loop over its bytes costs
//! more than all the look-ups it leads to. Mechanism: eight bytes at a time. The word that holds
//! the slash is found with the carry trick, masked, and mixed into the hash; the same words, zero
//! padded, are what a [`Dentry`](crate::dentry::Dentry) stores, so comparing is by words too.

/// Bytes of a word.
const WORD: usize = 8;
const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;
const SLASHES: u64 = ONES * b'/' as u64;

/// A name with its hash in one directory.
#[derive(Copy, Clone)]
pub(crate) struct Qstr<'a> {
    pub name: &'a [u8],
    /// Hash in the upper half, length in bytes in the lower.
    pub hash_len: u64,
}

impl<'a> Qstr<'a> {
    /// A whole name (no slash in it), in the directory whose salt is `salt`.
    pub fn new(salt: u64, name: &'a [u8]) -> Self {
        let mut h = salt;
        for i in (0..name.len()).step_by(WORD) {
            h = mix(h, word_at(name, i));
        }
        Qstr {
            name,
            hash_len: fold(h, name.len()),
        }
    }

    /// Splits the first component off `path`, which does not start with a slash and is not empty.
    /// Returns it and what follows, which is empty or starts with a slash.
    #[inline]
    pub fn split(salt: u64, path: &'a [u8]) -> (Self, &'a [u8]) {
        let mut h = salt;
        let mut i = 0;
        let len = loop {
            let word = word_at(path, i);
            let slash = zero_bytes(word ^ SLASHES);
            if slash != 0 {
                let n = slash.trailing_zeros() as usize / 8;
                if n != 0 {
                    h = mix(h, word & ((1 << (n * 8)) - 1));
                }
                break i + n;
            }
            h = mix(h, word);
            i += WORD;
            if i >= path.len() {
                break path.len();
            }
        };
        // `len` is at most the path's length: a slash is found only in bytes that exist.
        let (name, rest) = path.split_at(len);
        (
            Qstr {
                name,
                hash_len: fold(h, len),
            },
            rest,
        )
    }
}

#[inline(always)]
fn mix(h: u64, word: u64) -> u64 {
    (h.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
}

#[inline(always)]
fn fold(h: u64, len: usize) -> u64 {
    (h & !0xffff_ffff) | len as u64
}

/// The high bit of each byte of `w` that is zero; bits above the first such byte may be wrong.
#[inline(always)]
fn zero_bytes(w: u64) -> u64 {
    w.wrapping_sub(ONES) & !w & HIGHS
}

/// The eight bytes at `i`, little endian, zero padded past the end.
#[inline(always)]
pub(crate) fn word_at(s: &[u8], i: usize) -> u64 {
    if let Some(bytes) = s.get(i..i + WORD) {
        return u64::from_le_bytes(bytes.try_into().unwrap());
    }
    if s.len() >= WORD {
        // The last word of `s` ends with the bytes wanted; at least one of them exists or none.
        let missing = (i + WORD - s.len()).min(WORD);
        let last: [u8; WORD] = s[s.len() - WORD..].try_into().unwrap();
        return u64::from_le_bytes(last)
            .checked_shr(missing as u32 * 8)
            .unwrap_or(0);
    }
    short_word(s, i)
}

/// As [`word_at`] for a string shorter than a word.
#[inline]
fn short_word(s: &[u8], i: usize) -> u64 {
    let mut w = 0;
    for &b in s[i.min(s.len())..].iter().rev() {
        w = w << 8 | b as u64;
    }
    w
}

/// Whether the zero-padded bytes in `stored` spell `name`, whose length has been compared.
#[inline]
pub(crate) fn padded_eq(stored: &[u8], name: &[u8]) -> bool {
    let mut i = 0;
    for word in stored.chunks_exact(WORD) {
        if i >= name.len() {
            break;
        }
        if u64::from_le_bytes(word.try_into().unwrap()) != word_at(name, i) {
            return false;
        }
        i += WORD;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn split_is_what_a_byte_loop_says(path in proptest::collection::vec(
            prop_oneof![Just(b'/'), Just(0u8), Just(0x80), Just(0x2e), Just(0x30), any::<u8>()], 1..40)) {
            prop_assume!(path[0] != b'/');
            let (q, rest) = Qstr::split(7, &path);
            let n = path.iter().position(|&b| b == b'/').unwrap_or(path.len());
            prop_assert_eq!(q.name, &path[..n]);
            prop_assert_eq!(rest, &path[n..]);
            prop_assert_eq!(q.hash_len, Qstr::new(7, &path[..n]).hash_len);
        }

        #[test]
        fn words_compare_like_bytes(a in proptest::collection::vec(0u8..3, 0..20),
                                    b in proptest::collection::vec(0u8..3, 0..20)) {
            let mut stored: Vec<u8> = a.clone();
            stored.resize(24, 0);
            prop_assert_eq!(a.len() == b.len() && padded_eq(&stored, &b), a == b);
        }
    }
}
