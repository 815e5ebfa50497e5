//! Who lost cycles to which line, by which code, within a window.

use crate::config::MAX_CPUS;
use std::collections::{BTreeMap, HashMap};

const WORDS: usize = MAX_CPUS / 64;

/// A set of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuSet([u64; WORDS]);

impl CpuSet {
    /// Nobody.
    pub const EMPTY: CpuSet = CpuSet([0; WORDS]);

    /// Adds `cpu`.
    #[inline]
    pub fn insert(&mut self, cpu: usize) {
        self.0[cpu / 64] |= 1 << (cpu % 64);
    }

    /// Takes `cpu` out.
    #[inline]
    pub fn remove(&mut self, cpu: usize) {
        self.0[cpu / 64] &= !(1 << (cpu % 64));
    }

    /// Whether `cpu` is in it.
    #[inline]
    pub fn contains(&self, cpu: usize) -> bool {
        self.0[cpu / 64] & 1 << (cpu % 64) != 0
    }

    /// How many are in it.
    #[inline]
    pub fn len(&self) -> u64 {
        self.0.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Those in it, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + use<> {
        let words = self.0;
        (0..WORDS).flat_map(move |w| {
            let mut bits = words[w];
            core::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
                bits &= bits - 1;
                Some(w * 64 + bit)
            })
        })
    }

    fn union(&self, other: &CpuSet) -> CpuSet {
        CpuSet(core::array::from_fn(|w| self.0[w] | other.0[w]))
    }
}

/// Cycles lost, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Times the line had to be fetched.
    pub misses: u64,
    /// Cycles waited for it to come.
    pub fetching: u64,
    /// Cycles spun until it changed.
    pub spinning: u64,
}

impl Loss {
    /// All cycles.
    pub fn cycles(&self) -> u64 {
        self.fetching + self.spinning
    }
}

/// What one line saw.
#[derive(Clone, Debug)]
pub struct LineLoss {
    /// CPUs that read it.
    pub readers: CpuSet,
    /// CPUs that wrote it.
    pub writers: CpuSet,
    /// A virtual address through which it was touched.
    pub address: u64,
    /// In all.
    pub loss: Loss,
}

impl LineLoss {
    /// Touched by two CPUs, and written by one at least.
    pub fn is_conflict(&self) -> bool {
        self.writers.len() > 0 && self.readers.union(&self.writers).len() > 1
    }
}

/// A window's account.
#[derive(Default)]
pub struct Attribution {
    lines: HashMap<u64, LineLoss>,
    by_code: HashMap<(u64, u64), Loss>,
    /// Cycles spun on a line by CPUs whose last locked access was to another one: to the word of a lock, say, on
    /// whose queue they then wait.
    behind: HashMap<(u64, u64), u64>,
}

impl Attribution {
    /// An empty account.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.lines.clear();
        self.by_code.clear();
        self.behind.clear();
    }

    /// `cpu` read or wrote `line`, for the first time since it lost it.
    pub fn touch(&mut self, line: u64, cpu: usize, writes: bool, address: u64) {
        let entry = self.entry(line, address);
        if writes {
            entry.writers.insert(cpu);
        } else {
            entry.readers.insert(cpu);
        }
    }

    fn entry(&mut self, line: u64, address: u64) -> &mut LineLoss {
        self.lines.entry(line).or_insert_with(|| LineLoss {
            readers: CpuSet::EMPTY,
            writers: CpuSet::EMPTY,
            address,
            loss: Loss::default(),
        })
    }

    /// `code` waited `cycles` for `line`.
    pub fn miss(&mut self, line: u64, code: u64, cycles: u64) {
        self.add(
            line,
            code,
            Loss {
                misses: 1,
                fetching: cycles,
                spinning: 0,
            },
        );
    }

    /// `code` spun for `cycles` on `line`, after a locked access to the line `after`.
    pub fn spin(&mut self, line: u64, after: Option<u64>, code: u64, cycles: u64) {
        if let Some(other) = after.filter(|other| *other != line) {
            *self.behind.entry((line, other)).or_default() += cycles;
        }
        self.add(
            line,
            code,
            Loss {
                misses: 0,
                fetching: 0,
                spinning: cycles,
            },
        );
    }

    fn add(&mut self, line: u64, code: u64, loss: Loss) {
        let by_code = self.by_code.entry((line, code)).or_default();
        for sum in [
            by_code,
            &mut self
                .lines
                .entry(line)
                .or_insert_with(|| LineLoss {
                    readers: CpuSet::EMPTY,
                    writers: CpuSet::EMPTY,
                    address: 0,
                    loss: Loss::default(),
                })
                .loss,
        ] {
            sum.misses += loss.misses;
            sum.fetching += loss.fetching;
            sum.spinning += loss.spinning;
        }
    }

    /// Number of lines that two CPUs touched and one wrote.
    pub fn conflicts(&self) -> usize {
        self.lines.values().filter(|l| l.is_conflict()).count()
    }

    /// All lines, most cycles lost first.
    pub fn lines(&self) -> Vec<(u64, &LineLoss)> {
        let mut lines: Vec<_> = self.lines.iter().map(|(n, l)| (*n, l)).collect();
        lines.sort_by_key(|(n, l)| (core::cmp::Reverse(l.loss.cycles()), *n));
        lines
    }

    /// Who lost cycles to each line: code address and loss, most first.
    pub fn code_by_line(&self) -> BTreeMap<u64, Vec<(u64, Loss)>> {
        let mut all: BTreeMap<u64, Vec<(u64, Loss)>> = BTreeMap::new();
        for ((line, code), loss) in &self.by_code {
            all.entry(*line).or_default().push((*code, *loss));
        }
        for codes in all.values_mut() {
            codes.sort_by_key(|(code, loss)| (core::cmp::Reverse(loss.cycles()), *code));
        }
        all
    }

    /// The lines behind which each was spun on, and for how many cycles, most first.
    pub fn behind_line(&self) -> BTreeMap<u64, Vec<(u64, u64)>> {
        let mut all: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
        for ((line, other), cycles) in &self.behind {
            all.entry(*line).or_default().push((*other, *cycles));
        }
        for others in all.values_mut() {
            others.sort_by_key(|(other, cycles)| (core::cmp::Reverse(*cycles), *other));
        }
        all
    }

    /// Everything lost.
    pub fn total(&self) -> Loss {
        let sum = |f: fn(&Loss) -> u64| self.lines.values().map(|l| f(&l.loss)).sum();
        Loss {
            misses: sum(|l| l.misses),
            fetching: sum(|l| l.fetching),
            spinning: sum(|l| l.spinning),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets() {
        let mut set = CpuSet::EMPTY;
        [0, 63, 64, 511].iter().for_each(|c| set.insert(*c));
        set.remove(63);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 64, 511]);
        assert!(set.len() == 3 && set.contains(511) && !set.contains(63));
    }

    #[test]
    fn the_account_adds_up() {
        let mut a = Attribution::new();
        a.touch(7, 1, false, 0x70);
        a.touch(7, 2, true, 0x71);
        a.touch(8, 1, true, 0x80);
        a.touch(9, 1, false, 0x90);
        a.touch(9, 2, false, 0x90);
        assert_eq!(a.conflicts(), 1, "8 has one CPU, 9 no writer");
        a.miss(7, 0x10, 100);
        a.spin(7, Some(8), 0x20, 800);
        a.spin(7, Some(7), 0x20, 60);
        a.spin(7, None, 0x20, 40);
        a.miss(8, 0x10, 5);
        assert_eq!(a.behind_line()[&7], [(8, 800)], "its own line is no other");
        let lines = a.lines();
        assert_eq!((lines[0].0, lines[0].1.address), (7, 0x70));
        assert_eq!(
            lines[0].1.loss,
            Loss {
                misses: 1,
                fetching: 100,
                spinning: 900
            }
        );
        assert_eq!(
            a.code_by_line()[&7].iter().map(|c| c.0).collect::<Vec<_>>(),
            [0x20, 0x10]
        );
        assert_eq!(a.total().cycles(), 1005);
        a.clear();
        assert_eq!((a.lines().len(), a.total()), (0, Loss::default()));
        assert!(a.behind_line().is_empty());
    }
}
