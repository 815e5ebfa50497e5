//! The word that was probably meant: edit distance.

/// Longest word compared; longer ones have no neighbours.
const LEN_MAX: usize = 32;

/// The candidate nearest to `word`, if it is near enough to be what was meant: at most one edit,
/// plus one per three bytes.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let (edits, best) = candidates
        .filter_map(|c| Some((distance(word, c)?, c)))
        .min_by_key(|&(d, _)| d)?;
    (edits <= 1 + word.len() / 3 && edits < word.len().max(best.len())).then_some(best)
}

/// Optimal string alignment distance: insertions, deletions, substitutions and swaps of
/// neighbours. Bytes, not characters. None for words longer than LEN_MAX.
pub(crate) fn distance(a: &str, b: &str) -> Option<usize> {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() > LEN_MAX || b.len() > LEN_MAX {
        return None;
    }
    // Rows i - 2, i - 1 and i of the classic table.
    let mut before = [0; LEN_MAX + 1];
    let mut last: [usize; LEN_MAX + 1] = core::array::from_fn(|j| j);
    for i in 1..=a.len() {
        let mut row = [0; LEN_MAX + 1];
        row[0] = i;
        for j in 1..=b.len() {
            let differ = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + differ);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        (before, last) = (last, row);
    }
    Some(last[b.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, word for word.
    fn naive(a: &[u8], b: &[u8]) -> usize {
        let (Some((x, a1)), Some((y, b1))) = (a.split_last(), b.split_last()) else {
            return a.len() + b.len();
        };
        let mut d = (naive(a1, b) + 1)
            .min(naive(a, b1) + 1)
            .min(naive(a1, b1) + usize::from(x != y));
        if let (Some((x2, a2)), Some((y2, b2))) = (a1.split_last(), b1.split_last())
            && x == y2
            && x2 == y
        {
            d = d.min(naive(a2, b2) + 1);
        }
        d
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(128))]
        #[test]
        fn distance_is_its_definition(a in "[abc]{0,6}", b in "[abc]{0,6}") {
            proptest::prop_assert_eq!(distance(&a, &b), Some(naive(a.as_bytes(), b.as_bytes())));
        }
    }

    #[test]
    fn near_enough_or_nothing() {
        let words = ["pid_map", "maxcpus", "mem", "quiet"];
        let near = |w| nearest(w, words.into_iter());
        assert_eq!(near("pidmap"), Some("pid_map"));
        assert_eq!(near("maxcpsu"), Some("maxcpus"));
        assert_eq!(near("meme"), Some("mem"));
        assert_eq!(near("zzzzzz"), None);
        assert_eq!(near(""), None);
        assert_eq!(near(&"m".repeat(99)), None);
    }
}
