//! What an access to memory costs: who has the line, how far away, and who else wants it at the same time.
//!
//! # Mechanism
//! A directory entry per 64-byte line of physical memory says which CPU owns it (has the only copy, perhaps changed)
//! or which CPUs share it, and which nodes' L3 hold it. Each CPU has a direct-mapped cache whose entries mirror that,
//! so that a hit looks at one word. Transfers of one line queue: each begins when the one before has ended. That is
//! all that contention is.
//!
//! | access | the line is | cost |
//! |---|---|---|
//! | read | owned by another CPU | transfer from its node; both share it then |
//! | read | in the node's L3 | `l3` |
//! | read | only in other nodes' caches | transfer from its home node |
//! | read | nowhere | `dram` and the way to the home node |
//! | write | owned by another CPU | transfer from its node |
//! | write | shared with others | the farthest copy's transfer, `invalidate` for each |
//! | write | shared by this CPU alone | `upgrade` |
//! | write | nowhere else | as a read |
//!
//! A line after one that a CPU missed recently costs `stream` at most where no other CPU owns it: hardware would have
//! prefetched it. Left out: the capacity of an L3, bandwidth of links and memory, page-table walks, instruction
//! fetches, speculation. Plain stores wait in a [`StoreBuffer`].
//!
//! # Invariants
//! - INV-SIM-3, by [`Model::check_invariants`], with: a CPU's cache has a line exactly if the directory says so.

use crate::attribution::{Attribution, CpuSet};
use crate::config::Config;
use crate::store_buffer::StoreBuffer;

/// Bytes of a line, as a shift.
pub const LINE_SHIFT: u32 = 6;
/// Lines of a page.
const PAGE_LINES: u64 = 64;
/// Streams that a CPU's prefetcher follows.
const STREAMS: usize = 4;
const NOBODY: u16 = u16::MAX;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A load.
    Read,
    /// A store.
    Write,
    /// A locked read-modify-write.
    Locked,
}

/// What an access means for whoever made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// Cycles that pass before the next instruction.
    pub cycles: u64,
    /// The line had to be fetched.
    pub miss: bool,
    /// CPUs that wait for this line must look again.
    pub wakes: bool,
}

/// A line's directory entry.
#[derive(Clone)]
struct Line {
    sharers: CpuSet,
    /// Nodes with a copy in their L3.
    l3: u64,
    /// Until when transfers of it are under way.
    busy: u64,
    owner: u16,
    waiters: bool,
}

impl Line {
    const EMPTY: Line = Line {
        sharers: CpuSet::EMPTY,
        l3: 0,
        busy: 0,
        owner: NOBODY,
        waiters: false,
    };
}

/// A cache's entry: the line above the index, and these bits; 0: empty.
mod tag {
    pub const VALID: u32 = 1;
    pub const OWNED: u32 = 2;
    /// This window's attribution knows that this CPU read, or wrote, the line.
    pub const READ: u32 = 4;
    pub const WRITTEN: u32 = 8;
    pub const SHIFT: u32 = 4;
}

struct Cpu {
    tags: Box<[u32]>,
    store_buffer: StoreBuffer,
    /// The lines missed last, one per stream.
    streams: [u64; STREAMS],
    next_stream: usize,
    /// The line of the last locked access.
    last_locked: Option<u64>,
}

/// All caches and the directory.
pub struct Model {
    config: Config,
    cpus: Vec<Cpu>,
    pages: Vec<Option<Box<[Line]>>>,
    index_bits: u32,
    /// Who lost what; filled while [`Model::measure`] is on.
    pub attribution: Attribution,
    measuring: bool,
}

impl Model {
    /// Empty caches.
    pub fn new(config: Config) -> Self {
        let lines = config.costs.cache_lines as usize;
        let cpus = config.node_of_cpu.iter().map(|_| Cpu {
            tags: vec![0; lines].into(),
            store_buffer: StoreBuffer::new(config.costs.store_buffer as usize),
            streams: [u64::MAX - 1; STREAMS],
            next_stream: 0,
            last_locked: None,
        });
        let cpus = cpus.collect();
        let pages = vec![None; (config.memory_end() >> 12) as usize];
        Self {
            index_bits: lines.trailing_zeros(),
            cpus,
            pages,
            config,
            attribution: Attribution::new(),
            measuring: false,
        }
    }

    /// What it was made with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Begins or ends attribution; a beginning forgets what was there.
    pub fn measure(&mut self, on: bool) {
        self.measuring = on;
        if on {
            self.attribution.clear();
            for entry in self.cpus.iter_mut().flat_map(|c| c.tags.iter_mut()) {
                *entry &= !(tag::READ | tag::WRITTEN);
            }
        }
    }

    /// Whether a window is open.
    pub fn is_measuring(&self) -> bool {
        self.measuring
    }

    /// Whether `line` is memory of the machine.
    #[inline]
    pub fn knows(&self, line: u64) -> bool {
        ((line / PAGE_LINES) as usize) < self.pages.len()
    }

    /// `cpu` spun for `cycles` on `line`, in `code`.
    pub fn spun(&mut self, cpu: usize, line: u64, code: u64, cycles: u64) {
        if self.measuring {
            let after = self.cpus[cpu].last_locked;
            self.attribution.spin(line, after, code, cycles);
        }
    }

    /// Lets `cpu` touch `line` (a physical address over 64) at `now`, by the code `pc` at the virtual address `va`.
    #[inline]
    pub fn access(
        &mut self,
        cpu: usize,
        line: u64,
        kind: Kind,
        now: u64,
        pc: u64,
        va: u64,
    ) -> Charge {
        let (index, wanted) = self.place(line);
        let entry = self.cpus[cpu].tags[index];
        let needed = match kind {
            Kind::Read => tag::VALID | tag::READ,
            Kind::Write | Kind::Locked => tag::VALID | tag::OWNED | tag::WRITTEN,
        };
        if entry & needed == needed && entry >> tag::SHIFT == wanted {
            if kind == Kind::Locked {
                self.cpus[cpu].last_locked = Some(line);
                return self.locked_hit(cpu, now);
            }
            return Charge::default();
        }
        self.look_closer(cpu, line, kind, now, (pc, va))
    }

    #[inline]
    fn place(&self, line: u64) -> (usize, u32) {
        (
            (line & ((1 << self.index_bits) - 1)) as usize,
            (line >> self.index_bits) as u32,
        )
    }

    fn locked_hit(&self, cpu: usize, now: u64) -> Charge {
        let cycles = self.cpus[cpu].store_buffer.drain(now) + self.config.costs.locked;
        Charge {
            cycles,
            ..Charge::default()
        }
    }

    /// Not a hit that was seen before in this window.
    fn look_closer(
        &mut self,
        cpu: usize,
        line: u64,
        kind: Kind,
        now: u64,
        by: (u64, u64),
    ) -> Charge {
        let (index, wanted) = self.place(line);
        let entry = self.cpus[cpu].tags[index];
        let have = entry & tag::VALID != 0 && entry >> tag::SHIFT == wanted;
        let writes = kind != Kind::Read;
        if kind == Kind::Locked {
            self.cpus[cpu].last_locked = Some(line);
        }
        let seen = if writes { tag::WRITTEN } else { tag::READ };
        if self.measuring {
            self.attribution.touch(line, cpu, writes, by.1);
        }
        if have && (!writes || entry & tag::OWNED != 0) {
            self.cpus[cpu].tags[index] |= seen;
            return if kind == Kind::Locked {
                self.locked_hit(cpu, now)
            } else {
                Charge::default()
            };
        }
        let mut charge = match kind {
            Kind::Read => Charge {
                cycles: self.fetch_shared(cpu, line, now),
                ..Charge::default()
            },
            Kind::Write => self.store(cpu, line, now, have),
            Kind::Locked => {
                let before = self.locked_hit(cpu, now).cycles;
                let (latency, wakes) = self.fetch_owned(cpu, line, now + before, have);
                Charge {
                    cycles: before + latency,
                    wakes,
                    miss: true,
                }
            }
        };
        charge.miss = true;
        let kept = if have {
            entry & (tag::READ | tag::WRITTEN)
        } else {
            0
        };
        self.fill(
            cpu,
            line,
            kept | seen | tag::VALID | if writes { tag::OWNED } else { 0 },
        );
        if self.measuring {
            self.attribution.miss(line, by.0, charge.cycles);
        }
        charge
    }

    /// A plain store: the CPU goes on unless the store buffer is full.
    fn store(&mut self, cpu: usize, line: u64, now: u64, have: bool) -> Charge {
        let (latency, wakes) = self.fetch_owned(cpu, line, now, have);
        let cycles = self.cpus[cpu].store_buffer.push(now, now + latency);
        Charge {
            cycles,
            miss: true,
            wakes,
        }
    }

    /// Brings `line` to `cpu` for reading; cycles until it is there.
    fn fetch_shared(&mut self, cpu: usize, line: u64, now: u64) -> u64 {
        let me = usize::from(self.config.node_of_cpu[cpu]);
        let streamed = self.follow_stream(cpu, line);
        let home = self.config.home(line << LINE_SHIFT);
        let owner = self.line(line).owner;
        let costs = &self.config.costs;
        let (mut latency, mut occupied) = (costs.l3, costs.occupancy);
        let from_owner = owner != NOBODY;
        if from_owner {
            let there = usize::from(self.config.node_of_cpu[usize::from(owner)]);
            latency = self.config.transfer[there][me];
            occupied = latency;
            let (index, _) = self.place(line);
            self.cpus[usize::from(owner)].tags[index] &= !tag::OWNED;
            let entry = self.line(line);
            entry.owner = NOBODY;
            entry.l3 |= 1 << there;
            entry.sharers.insert(usize::from(owner));
        } else {
            let nodes = self.nodes_with(line);
            if nodes & 1 << me == 0 {
                latency = self.config.transfer[home][me];
                if nodes == 0 {
                    latency = latency - self.config.transfer[me][me] + self.config.costs.dram;
                }
            }
            if streamed {
                latency = latency.min(self.config.costs.stream);
            }
        }
        let entry = self.line(line);
        let start = now.max(entry.busy);
        entry.busy = start + occupied.min(latency);
        entry.l3 |= 1 << me;
        entry.sharers.insert(cpu);
        start + latency - now
    }

    /// Makes `cpu` the only one with `line`; cycles until it is there, and whether somebody waits for it.
    fn fetch_owned(&mut self, cpu: usize, line: u64, now: u64, have: bool) -> (u64, bool) {
        let me = usize::from(self.config.node_of_cpu[cpu]);
        let streamed = !have && self.follow_stream(cpu, line);
        let home = self.config.home(line << LINE_SHIFT);
        let (index, _) = self.place(line);
        let owner = self.line(line).owner;
        let latency;
        if owner != NOBODY {
            let owner = usize::from(owner);
            latency = self.config.transfer[usize::from(self.config.node_of_cpu[owner])][me];
            self.cpus[owner].tags[index] = 0;
        } else {
            let mut others = self.line(line).sharers;
            others.remove(cpu);
            let elsewhere = self.nodes_with(line) & !(1 << me);
            latency =
                self.latency_of_write(me, home, others.len(), elsewhere, (have, streamed, line));
            for other in others.iter() {
                self.cpus[other].tags[index] = 0;
            }
        }
        let entry = self.line(line);
        let start = now.max(entry.busy);
        entry.busy = start + latency;
        entry.sharers = CpuSet::EMPTY;
        entry.owner = cpu as u16;
        entry.l3 = 1 << me;
        (start + latency - now, core::mem::take(&mut entry.waiters))
    }

    fn latency_of_write(
        &mut self,
        me: usize,
        home: usize,
        others: u64,
        elsewhere: u64,
        (have, streamed, line): (bool, bool, u64),
    ) -> u64 {
        let in_l3 = self.line(line).l3 != 0;
        let costs = &self.config.costs;
        let way_home = self.config.transfer[home][me];
        if others > 0 || elsewhere != 0 {
            let nodes = (0..self.config.transfer.len()).filter(|n| elsewhere & 1 << n != 0);
            let farthest = nodes
                .map(|n| self.config.transfer[n][me])
                .max()
                .unwrap_or(0);
            return way_home.max(farthest) + costs.invalidate * others;
        }
        let latency = match (have, in_l3) {
            (true, _) => costs.upgrade,
            (false, true) => costs.l3,
            (false, false) => way_home - self.config.transfer[me][me] + costs.dram,
        };
        if streamed {
            latency.min(costs.stream)
        } else {
            latency
        }
    }

    /// Nodes in which some cache has the line, which nobody owns.
    fn nodes_with(&mut self, line: u64) -> u64 {
        // Each sharer's node got its bit when the sharer got the line.
        self.line(line).l3
    }

    /// Whether `line` follows one that `cpu` missed lately. Remembers it.
    fn follow_stream(&mut self, cpu: usize, line: u64) -> bool {
        let cpu = &mut self.cpus[cpu];
        if let Some(stream) = cpu.streams.iter_mut().find(|s| **s + 1 == line) {
            *stream = line;
            return line & (PAGE_LINES - 1) != 0;
        }
        cpu.streams[cpu.next_stream] = line;
        cpu.next_stream = (cpu.next_stream + 1) % STREAMS;
        false
    }

    fn line(&mut self, line: u64) -> &mut Line {
        let page = (line / PAGE_LINES) as usize;
        let lines =
            self.pages[page].get_or_insert_with(|| vec![Line::EMPTY; PAGE_LINES as usize].into());
        &mut lines[(line % PAGE_LINES) as usize]
    }

    /// Puts the line in the CPU's cache in place of whatever is there.
    fn fill(&mut self, cpu: usize, line: u64, bits: u32) {
        let (index, wanted) = self.place(line);
        let old = self.cpus[cpu].tags[index];
        if old & tag::VALID != 0 && old >> tag::SHIFT != wanted {
            let victim = u64::from(old >> tag::SHIFT) << self.index_bits | index as u64;
            let entry = self.line(victim);
            entry.sharers.remove(cpu);
            if usize::from(entry.owner) == cpu {
                entry.owner = NOBODY;
            }
        }
        self.cpus[cpu].tags[index] = wanted << tag::SHIFT | bits;
    }

    /// `cpu` waits for a write to `line`: says so at the next one. False if it has no copy, so that it must look first.
    pub fn wait_for(&mut self, cpu: usize, line: u64) -> bool {
        let (index, wanted) = self.place(line);
        let entry = self.cpus[cpu].tags[index];
        let valid =
            entry & tag::VALID != 0 && entry >> tag::SHIFT == wanted && entry & tag::OWNED == 0;
        if valid {
            self.line(line).waiters = true;
        }
        valid
    }

    /// Lets time pass until no transfer or store is under way.
    #[cfg(test)]
    fn settle(&mut self) {
        self.cpus.iter_mut().for_each(|c| c.store_buffer.clear());
        self.pages
            .iter_mut()
            .flatten()
            .flat_map(|p| p.iter_mut())
            .for_each(|l| l.busy = 0);
    }

    /// Panics where an invariant does not hold. For tests; slow.
    pub fn check_invariants(&self) {
        let lines = self
            .pages
            .iter()
            .enumerate()
            .filter_map(|(n, p)| Some((n as u64 * PAGE_LINES, p.as_ref()?)));
        let lines = lines.flat_map(|(first, page)| (first..).zip(page.iter()));
        for (number, line) in lines {
            let (index, wanted) = self.place(number);
            assert!(
                line.owner == NOBODY || line.sharers.len() == 0,
                "line {number}: an owner and sharers"
            );
            for (cpu, state) in self.cpus.iter().enumerate() {
                let entry = state.tags[index];
                let has = entry & tag::VALID != 0 && entry >> tag::SHIFT == wanted;
                let owns = usize::from(line.owner) == cpu;
                assert_eq!(
                    has,
                    owns || line.sharers.contains(cpu),
                    "line {number}, CPU {cpu}: cache and directory"
                );
                assert_eq!(
                    has && entry & tag::OWNED != 0,
                    owns,
                    "line {number}, CPU {cpu}: owner"
                );
                let node = self.config.node_of_cpu[cpu];
                assert!(
                    !has || line.l3 & 1 << node != 0,
                    "line {number}, CPU {cpu}: L3"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sample;
    use proptest::prelude::*;

    fn model() -> Model {
        Model::new(sample(2, 2))
    }

    /// The cost of one access long after everything before it.
    fn cost(m: &mut Model, cpu: usize, line: u64, kind: Kind) -> u64 {
        m.settle();
        let cycles = m.access(cpu, line, kind, 1_000_000, 0, 0).cycles;
        m.check_invariants();
        cycles
    }

    #[test]
    fn reads_by_distance() {
        use Kind::*;
        let mut m = model();
        assert_eq!(cost(&mut m, 0, 5, Read), 200, "memory of its own node");
        assert_eq!(cost(&mut m, 0, 5, Read), 0);
        assert_eq!(cost(&mut m, 1, 5, Read), 44, "its node's L3");
        assert_eq!(cost(&mut m, 2, 5, Read), 270, "the other node");
        assert_eq!(cost(&mut m, 3, 5, Read), 44);
        assert_eq!(cost(&mut m, 3, 9, Read), 360, "the other node's memory");
        assert_eq!(cost(&mut m, 3, (1 << 24) + 70, Read), 200);
    }

    #[test]
    fn ownership_moves() {
        use Kind::*;
        let mut m = model();
        assert_eq!(cost(&mut m, 0, 5, Locked), 18 + 200);
        assert_eq!(cost(&mut m, 0, 5, Locked), 18);
        assert_eq!(cost(&mut m, 1, 5, Locked), 18 + 110, "from the core beside");
        assert_eq!(cost(&mut m, 2, 5, Locked), 18 + 270, "from the other node");
        assert_eq!(cost(&mut m, 0, 5, Read), 270);
        assert_eq!(cost(&mut m, 2, 5, Read), 0, "the owner keeps a copy");
        assert_eq!(
            cost(&mut m, 0, 5, Locked),
            18 + 270 + 2,
            "one copy taken away, in the other node"
        );
        assert_eq!(cost(&mut m, 0, 9, Read), 200);
        assert_eq!(cost(&mut m, 0, 9, Locked), 18 + 20, "nobody else has it");
    }

    #[test]
    fn transfers_of_a_line_queue() {
        let mut m = model();
        m.access(0, 5, Kind::Locked, 0, 0, 0);
        m.settle();
        assert_eq!(m.access(1, 5, Kind::Locked, 1000, 0, 0).cycles, 18 + 110);
        assert_eq!(
            m.access(2, 5, Kind::Locked, 1000, 0, 0).cycles,
            18 + 110 + 270,
            "after the one before"
        );
        assert_eq!(
            m.access(3, 6, Kind::Locked, 1000, 0, 0).cycles,
            18 + 360,
            "another line does not wait"
        );
        let mut m = model();
        for cpu in 0..4 {
            m.access(cpu, 5, Kind::Read, 0, 0, 0);
        }
        m.settle();
        assert_eq!(
            m.access(0, 5, Kind::Read, 5000, 0, 0),
            Charge::default(),
            "readers of copies do not"
        );
    }

    #[test]
    fn stores_wait_in_the_buffer_until_a_lock_drains_it() {
        let mut m = model();
        assert_eq!(
            m.access(0, 5, Kind::Write, 0, 0, 0),
            Charge {
                cycles: 0,
                miss: true,
                wakes: false
            }
        );
        assert_eq!(m.access(0, 5, Kind::Write, 1, 0, 0), Charge::default());
        assert_eq!(m.access(0, 5, Kind::Locked, 50, 0, 0).cycles, 150 + 18);
    }

    #[test]
    fn a_stream_is_prefetched_within_its_page() {
        let mut m = model();
        assert_eq!(cost(&mut m, 0, 62, Kind::Read), 200);
        assert_eq!(cost(&mut m, 0, 63, Kind::Read), 30);
        assert_eq!(cost(&mut m, 0, 64, Kind::Read), 200);
        assert_eq!(cost(&mut m, 0, 65, Kind::Read), 30);
    }

    #[test]
    fn evicted_lines_come_back_from_l3() {
        let mut m = model();
        cost(&mut m, 0, 5, Kind::Locked);
        cost(&mut m, 0, 5 + 1024, Kind::Read);
        assert_eq!(cost(&mut m, 0, 5, Kind::Read), 44);
    }

    #[test]
    fn a_write_tells_of_waiters() {
        let mut m = model();
        assert!(!m.wait_for(1, 5), "no copy, nothing to wait on");
        m.access(1, 5, Kind::Read, 0, 0, 0);
        assert!(m.wait_for(1, 5));
        assert!(!m.access(2, 5, Kind::Read, 0, 0, 0).wakes);
        assert!(m.access(2, 5, Kind::Write, 0, 0, 0).wakes);
        assert!(!m.access(3, 5, Kind::Write, 0, 0, 0).wakes, "told once");
    }

    #[test]
    fn windows_know_who_touched_what() {
        let mut m = model();
        m.access(0, 5, Kind::Write, 0, 0, 0);
        m.measure(true);
        m.access(0, 5, Kind::Write, 0, 0x10, 0x99);
        m.access(1, 6, Kind::Read, 0, 0x20, 0x77);
        assert_eq!(
            m.attribution.conflicts(),
            0,
            "hits count as touches, and nobody else came"
        );
        m.access(1, 5, Kind::Read, 0, 0x20, 0x98);
        assert_eq!(m.attribution.conflicts(), 1);
    }

    fn accesses() -> impl Strategy<Value = Vec<(usize, u64, u8, u64)>> {
        // Few lines, three of which share a place in the caches.
        let line = prop_oneof![0u64..6, Just(1024u64), Just(2048u64), Just((1 << 24) + 1)];
        prop::collection::vec((0usize..4, line, 0u8..3, 0u64..300), 1..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

        /// One owner; owner and sharers exclude each other; caches and directory agree; a hit has no cost but the
        /// lock's; clocks never go back (a charge is no wrap-around).
        #[test]
        fn the_directory_is_sound(accesses in accesses()) {
            let mut m = model();
            let mut clocks = [0u64; 4];
            for (cpu, line, kind, think) in accesses {
                let kind = [Kind::Read, Kind::Write, Kind::Locked][usize::from(kind)];
                clocks[cpu] += think;
                let charge = m.access(cpu, line, kind, clocks[cpu], 1, 2);
                prop_assert!(charge.cycles < 1_000_000);
                clocks[cpu] += charge.cycles;
                m.check_invariants();
                let again = m.access(cpu, line, kind, clocks[cpu], 1, 2);
                prop_assert!(!again.miss && !again.wakes);
                clocks[cpu] += again.cycles;
            }
        }

        /// Two models fed the same give the same.
        #[test]
        fn it_repeats(accesses in accesses()) {
            let (mut a, mut b) = (model(), model());
            for (cpu, line, kind, now) in accesses {
                let kind = [Kind::Read, Kind::Write, Kind::Locked][usize::from(kind)];
                prop_assert_eq!(a.access(cpu, line, kind, now, 1, 2), b.access(cpu, line, kind, now, 1, 2));
            }
        }
    }
}
