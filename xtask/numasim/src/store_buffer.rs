//! Stores that wait for their line while the CPU goes on, in order: x86's TSO.

/// One CPU's store buffer: when each waiting store is done.
#[derive(Clone, Debug)]
pub struct StoreBuffer {
    done: Box<[u64]>,
    next: usize,
    last: u64,
}

impl StoreBuffer {
    /// A buffer of `entries`, at least one.
    pub fn new(entries: usize) -> Self {
        Self {
            done: vec![0; entries.max(1)].into(),
            next: 0,
            last: 0,
        }
    }

    /// A store at `now` whose line is there at `ready`. Returns how long the CPU waits for a free entry.
    #[inline]
    pub fn push(&mut self, now: u64, ready: u64) -> u64 {
        let entry = &mut self.done[self.next];
        let stall = entry.saturating_sub(now);
        self.last = self.last.max(ready);
        *entry = self.last;
        self.next = if self.next + 1 == self.done.len() {
            0
        } else {
            self.next + 1
        };
        stall
    }

    /// How long a locked instruction at `now` waits until all stores are done.
    #[inline]
    pub fn drain(&self, now: u64) -> u64 {
        self.last.saturating_sub(now)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.done.fill(0);
        (self.next, self.last) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_buffer_stalls_and_a_lock_drains() {
        let mut b = StoreBuffer::new(2);
        assert_eq!(b.push(0, 100), 0);
        assert_eq!(b.push(1, 50), 0, "done in order: at 100, not 50");
        assert_eq!(b.drain(1), 99);
        assert_eq!(b.push(2, 300), 98, "the first entry is free at 100");
        assert_eq!(b.push(100, 400), 0);
        assert_eq!((b.drain(350), b.drain(401)), (50, 0));
        b.clear();
        assert_eq!(b.drain(0), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]
        /// Never more than `n` stores wait, and they end in the order in which they began.
        #[test]
        fn in_order_and_bounded(stores in prop::collection::vec((0u64..50, 0u64..400), 1..80), n in 1usize..6) {
            let (mut buffer, mut now, mut ends) = (StoreBuffer::new(n), 0, Vec::<u64>::new());
            for (gap, latency) in stores {
                now += gap;
                now += buffer.push(now, now + latency);
                prop_assert!(ends.iter().filter(|e| **e > now).count() < n);
                let end = now + buffer.drain(now);
                prop_assert!(ends.last().is_none_or(|l| *l <= end));
                ends.push(end);
            }
        }
    }
}
