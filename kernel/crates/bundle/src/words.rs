//! Arguments for a program, on the boot line.
//!
//! # Problem
//! The boot line is words between spaces; a program's arguments may hold spaces, be empty, or be any bytes.
//!
//! # Mechanism
//! The words of the kernel come first, then the word `--`, then one word per argument in which `%XX` is the byte with
//! that hexadecimal number. Bytes up to space, `%` and those from 127 on are written that way; `%` alone is an empty
//! argument. So `init=/bin/sh -- -c echo%20hello` runs `/bin/sh` with the arguments `-c` and `echo hello`.

/// Ends the kernel's words.
pub const SEPARATOR: &str = "--";

/// The arguments in what follows [`SEPARATOR`] (`kparam::split_init_args`), each still escaped. Any context.
pub fn arguments(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| *b == b' ').filter(|word| !word.is_empty())
}

/// The bytes that write `arg` on the boot line.
pub fn escape(arg: &[u8]) -> impl Iterator<Item = u8> {
    let empty = arg.is_empty().then_some(b'%');
    arg.iter().flat_map(|&byte| escaped(byte)).chain(empty)
}

fn escaped(byte: u8) -> impl Iterator<Item = u8> {
    const DIGITS: [u8; 16] = *b"0123456789ABCDEF";
    let plain = (b'!'..127).contains(&byte) && byte != b'%';
    let written = [
        b'%',
        DIGITS[usize::from(byte >> 4)],
        DIGITS[usize::from(byte & 15)],
    ];
    let (bytes, len) = if plain {
        ([byte, 0, 0], 1)
    } else {
        (written, 3)
    };
    bytes.into_iter().take(len)
}

/// The bytes that an escaped argument stands for. A `%` without two digits stands for nothing, so no input is an error.
pub fn unescape(word: &[u8]) -> impl Iterator<Item = u8> {
    let mut rest = word;
    core::iter::from_fn(move || {
        loop {
            let (&first, after) = rest.split_first()?;
            rest = after;
            if first != b'%' {
                return Some(first);
            }
            let digit = |i: usize| rest.get(i).and_then(|b| char::from(*b).to_digit(16));
            if let (Some(high), Some(low)) = (digit(0), digit(1)) {
                rest = &rest[2..];
                return Some((high << 4 | low) as u8);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn odd_escapes() {
        let un = |w: &[u8]| unescape(w).collect::<Vec<u8>>();
        assert_eq!(un(b"%"), b"");
        assert_eq!(un(b"a%2"), b"a2");
        assert_eq!(un(b"%zz%41%4a"), b"zzAJ");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_arguments_survive(args in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..6)) {
            let mut line = Vec::new();
            for arg in &args {
                line.extend(escape(arg));
                line.push(b' ');
            }
            prop_assert!(line.iter().all(|b| b.is_ascii_graphic() || *b == b' '));
            let got: Vec<Vec<u8>> = arguments(&line).map(|w| unescape(w).collect()).collect();
            prop_assert_eq!(got, args);
        }

        #[test]
        fn no_line_panics(line in prop::collection::vec(any::<u8>(), 0..60)) {
            prop_assert!(arguments(&line).map(|w| unescape(w).count()).sum::<usize>() <= line.len());
        }
    }
}
