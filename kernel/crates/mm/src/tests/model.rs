//! Random programs against a model that knows pages and contents, and nothing of areas or tables.

use super::*;
use crate::{MMAP_BASE, MmError, RemapFlags, unmap_mapping_range};
use page_alloc::fault_inject::{fail_nth, set_fail_nth};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec;

/// The window of fixed mappings straddles the boundary of two L3 tables, hence of L2 and L1.
const WINDOW: usize = (1 << 39) - 24 * PAGE;
const WINDOW_PAGES: usize = 48;
/// And these pages below `MMAP_BASE` are where mmap puts things by itself.
const TOP_PAGES: usize = 32;
const NR_MMS: usize = 3;
const FILE_PAGES: usize = 20;

/// What a page is made of.
#[derive(Clone)]
enum Source {
    Anon(u64),
    Shm(Rc<RefCell<Vec<u64>>>, usize),
    File {
        file: usize,
        pgoff: usize,
        shared: bool,
        copy: Option<u64>,
    },
}

#[derive(Clone)]
struct Page {
    prot: Prot,
    max: Prot,
    source: Source,
}

type Pages = BTreeMap<usize, Page>;

#[derive(Clone, Debug)]
enum Op {
    Map {
        at: usize,
        pages: usize,
        prot: u32,
        fixed: bool,
        noreplace: bool,
        populate: bool,
        kind: Kind,
    },
    Unmap {
        at: usize,
        pages: usize,
    },
    Protect {
        at: usize,
        pages: usize,
        prot: u32,
    },
    Remap {
        at: usize,
        old: usize,
        new: usize,
        to: Option<usize>,
        may_move: bool,
    },
    Discard {
        at: usize,
        pages: usize,
    },
    Read {
        at: usize,
    },
    Write {
        at: usize,
        value: u64,
    },
    Exec {
        at: usize,
    },
    /// Read everything: fills the CPU's TLB.
    Scan,
    Remote {
        at: usize,
        value: u64,
    },
    Fork {
        to: usize,
    },
    Truncate {
        file: usize,
        pages: usize,
    },
    Extend {
        file: usize,
        pages: usize,
    },
}

#[derive(Clone, Debug)]
enum Kind {
    Anon,
    SharedAnon,
    File {
        file: usize,
        pgoff: usize,
        shared: bool,
        read_only: bool,
    },
}

/// An operation, who does it on which CPU, and which of its allocations fails (0: none).
type Step = (usize, usize, Op, u32);

fn ops() -> impl Strategy<Value = Step> {
    let at = || 0..WINDOW_PAGES + TOP_PAGES;
    let kind = prop_oneof![
        3 => Just(Kind::Anon),
        1 => Just(Kind::SharedAnon),
        3 => (0..2usize, 0..FILE_PAGES, any::<bool>(), any::<bool>()).prop_map(
            |(file, pgoff, shared, read_only)| Kind::File { file, pgoff, shared, read_only }
        ),
    ];
    let prot = || prop_oneof![4 => Just(3u32), 2 => 0..8u32];
    let op = prop_oneof![
        6 => (at(), 1..12usize, prot(), any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.1), kind)
            .prop_map(|(at, pages, prot, fixed, noreplace, populate, kind)| {
                Op::Map { at, pages, prot, fixed, noreplace, populate, kind }
            }),
        3 => (at(), 1..9usize).prop_map(|(at, pages)| Op::Unmap { at, pages }),
        3 => (at(), 1..9usize, prot()).prop_map(|(at, pages, prot)| Op::Protect { at, pages, prot }),
        2 => (at(), 1..6usize, 1..9usize, prop::option::of(at()), any::<bool>())
            .prop_map(|(at, old, new, to, may_move)| Op::Remap { at, old, new, to, may_move }),
        1 => (at(), 1..5usize).prop_map(|(at, pages)| Op::Discard { at, pages }),
        5 => at().prop_map(|at| Op::Read { at }),
        12 => (at(), any::<u64>()).prop_map(|(at, value)| Op::Write { at, value }),
        1 => at().prop_map(|at| Op::Exec { at }),
        3 => Just(Op::Scan),
        2 => (at(), any::<u64>()).prop_map(|(at, value)| Op::Remote { at, value }),
        3 => (0..NR_MMS).prop_map(|to| Op::Fork { to }),
        1 => (0..2usize, 0..FILE_PAGES).prop_map(|(file, pages)| Op::Truncate { file, pages }),
        1 => (0..2usize, 0..FILE_PAGES).prop_map(|(file, pages)| Op::Extend { file, pages }),
    ];
    (
        0..NR_MMS,
        0..tlb::NR_CPUS,
        op,
        prop_oneof![4 => Just(0u32), 1 => 1..6u32],
    )
}

/// The address of page number `at`.
fn addr_of(at: usize) -> usize {
    if at < WINDOW_PAGES {
        WINDOW + at * PAGE
    } else {
        MMAP_BASE - (at + 1 - WINDOW_PAGES) * PAGE
    }
}

struct World {
    cpu: usize,
    mms: Vec<(MmUser, Pages)>,
    files: Vec<(KArc<AddressSpace>, Vec<u64>)>,
}

/// Whether the operation failed for want of memory, as it was made to.
fn starved<T>(result: &Result<T, MmError>, fired: bool) -> bool {
    fired && matches!(result, Err(MmError::NoMemory))
}

impl World {
    fn new() -> Self {
        let words: Vec<u64> = (0..FILE_PAGES as u64).map(file_word).collect();
        World {
            cpu: 0,
            mms: (0..NR_MMS)
                .map(|_| (Mm::new().unwrap(), Pages::new()))
                .collect(),
            files: (0..2).map(|_| (file(FILE_PAGES), words.clone())).collect(),
        }
    }

    fn step(&mut self, (who, cpu, op, fail): Step) {
        self.cpu = cpu;
        let armed = fail != 0;
        if armed {
            assert!(set_fail_nth(fail));
        }
        let fired = || armed && fail_nth() == 0;
        match op {
            Op::Map { .. } => self.map(who, &op, fired),
            Op::Unmap { at, pages } => {
                let (mm, model) = &mut self.mms[who];
                let start = addr_of(at);
                let r = mm.munmap(start, pages * PAGE);
                if !starved(&r, fired()) {
                    assert_eq!(r, Ok(()));
                    model.retain(|&va, _| va < start || va >= start + pages * PAGE);
                }
            }
            Op::Protect { at, pages, prot } => self.protect(who, at, pages, prot, fired),
            Op::Remap { .. } => self.remap(who, &op, fired),
            Op::Discard { at, pages } => self.discard(who, at, pages),
            Op::Read { at } => self.check_read(who, addr_of(at), fired),
            Op::Write { at, value } => self.write(who, addr_of(at), value, fired),
            Op::Exec { at } => {
                let (mm, model) = &self.mms[who];
                let r = tlb::access(cpu, mm, addr_of(at), FaultFlags::EXEC);
                let may = model
                    .get(&addr_of(at))
                    .is_some_and(|p| p.prot.contains(Prot::EXEC));
                assert!(may || r.is_err());
            }
            Op::Scan => {
                for va in self.mms[who].1.keys().copied().collect::<Vec<_>>() {
                    self.check_read(who, va, fired);
                }
            }
            Op::Remote { at, value } => self.remote(who, addr_of(at), value, fired),
            Op::Fork { to } => {
                if to != who {
                    let r = self.mms[who].0.dup();
                    let lost = fired();
                    set_fail_nth(0);
                    match r {
                        Ok(child) => self.mms[to] = (child, self.mms[who].1.clone()),
                        Err(e) => assert!(lost && e == MmError::NoMemory),
                    }
                }
            }
            Op::Truncate { file, pages } => self.truncate(file, pages),
            Op::Extend { file, pages } => {
                let (f, words) = &mut self.files[file];
                if pages > words.len() {
                    f.extend((pages * PAGE) as u64);
                    words.resize(pages, 0);
                }
            }
        }
        set_fail_nth(0);
        tlb::check();
        self.check(who);
    }

    fn map(&mut self, who: usize, op: &Op, fired: impl Fn() -> bool) {
        let Op::Map {
            at,
            pages,
            prot,
            fixed,
            noreplace,
            populate,
            kind,
        } = op
        else {
            return;
        };
        let (mm, model) = &mut self.mms[who];
        let prot = Prot::from_bits_truncate(*prot);
        let mut args = MapArgs {
            addr: addr_of(*at),
            ..MapArgs::anon(pages * PAGE - 5, prot)
        };
        match kind {
            Kind::Anon => {}
            Kind::SharedAnon => args.flags = MapFlags::SHARED | MapFlags::ANONYMOUS,
            Kind::File {
                file,
                pgoff,
                shared,
                read_only,
            } => {
                args.file = Some((&self.files[*file].0, *pgoff as u64));
                args.flags = if *shared {
                    MapFlags::SHARED
                } else {
                    MapFlags::PRIVATE
                };
                if *read_only {
                    args.max_prot = Prot::READ | Prot::EXEC;
                }
            }
        }
        args.flags.set(MapFlags::FIXED, *fixed);
        args.flags.set(MapFlags::FIXED_NOREPLACE, *noreplace);
        // Populating makes private copies of a file's pages at a time the model does not know of.
        let copies = matches!(kind, Kind::File { shared: false, .. });
        args.flags.set(MapFlags::POPULATE, *populate && !copies);
        let range = |start: usize| (start..start + pages * PAGE).step_by(PAGE);
        let busy = range(args.addr).any(|va| model.contains_key(&va));
        let r = mm.mmap(&args);
        if starved(&r, fired()) {
            return;
        }
        if !args.max_prot.contains(prot) {
            return assert_eq!(r, Err(MmError::Access));
        }
        if *noreplace && busy {
            return assert_eq!(r, Err(MmError::Exists));
        }
        let start = r.expect("nothing is wrong with it");
        if *fixed || *noreplace || !busy {
            assert_eq!(start, args.addr);
        } else {
            assert_eq!(start, highest_gap(model, *pages));
        }
        let shm = Rc::new(RefCell::new(vec![0; *pages]));
        for (i, va) in range(start).enumerate() {
            let source = match kind {
                Kind::Anon => Source::Anon(0),
                Kind::SharedAnon => Source::Shm(shm.clone(), i),
                Kind::File {
                    file,
                    pgoff,
                    shared,
                    ..
                } => Source::File {
                    file: *file,
                    pgoff: pgoff + i,
                    shared: *shared,
                    copy: None,
                },
            };
            model.insert(
                va,
                Page {
                    prot,
                    max: args.max_prot,
                    source,
                },
            );
        }
    }

    fn protect(
        &mut self,
        who: usize,
        at: usize,
        pages: usize,
        prot: u32,
        fired: impl Fn() -> bool,
    ) {
        let (mm, model) = &mut self.mms[who];
        let (start, prot) = (addr_of(at), Prot::from_bits_truncate(prot));
        let r = mm.mprotect(start, pages * PAGE, prot);
        if starved(&r, fired()) {
            return;
        }
        let all = || (start..start + pages * PAGE).step_by(PAGE);
        for va in all() {
            match model.get(&va) {
                None => return assert_eq!(r, Err(MmError::NoMemory)),
                Some(p) if !p.max.contains(prot) => return assert_eq!(r, Err(MmError::Access)),
                Some(_) => {}
            }
        }
        assert_eq!(r, Ok(()));
        for va in all() {
            model.get_mut(&va).unwrap().prot = prot;
        }
    }

    fn remap(&mut self, who: usize, op: &Op, fired: impl Fn() -> bool) {
        let &Op::Remap {
            at,
            old,
            new,
            to,
            may_move,
        } = op
        else {
            return;
        };
        let (mm, model) = &mut self.mms[who];
        let start = addr_of(at);
        let mut flags = RemapFlags::empty();
        flags.set(RemapFlags::MAYMOVE, may_move);
        flags.set(RemapFlags::FIXED, to.is_some());
        let r = mm.mremap(start, old * PAGE, new * PAGE, flags, to.map_or(0, addr_of));
        let Ok(result) = r else {
            // Which areas there are decides; the model does not know. That nothing has changed
            // is what the comparison of all pages shows.
            let _ = fired();
            return;
        };
        let mut moved = Vec::new();
        for va in (start..start + old * PAGE).step_by(PAGE) {
            moved.push(model.remove(&va));
        }
        moved.truncate(new);
        let first = moved[0].clone().expect("remapped what was not there");
        for i in moved.len()..new {
            let source = match &first.source {
                Source::Anon(_) => Source::Anon(0),
                Source::Shm(shm, k) => Source::Shm(shm.clone(), k + i),
                Source::File {
                    file,
                    pgoff,
                    shared,
                    ..
                } => Source::File {
                    file: *file,
                    pgoff: pgoff + i,
                    shared: *shared,
                    copy: None,
                },
            };
            moved.push(Some(Page {
                source,
                ..first.clone()
            }));
        }
        if let Some(to) = to {
            assert_eq!(result, addr_of(to));
        }
        for (i, page) in moved.into_iter().enumerate() {
            let va = result + i * PAGE;
            if to.is_none() {
                assert!(!model.contains_key(&va), "moved onto something");
            }
            match page {
                Some(p) => model.insert(va, p),
                // Shrinking in place does not ask whether it is one mapping.
                None => model.remove(&va),
            };
        }
    }

    fn discard(&mut self, who: usize, at: usize, pages: usize) {
        let (mm, model) = &mut self.mms[who];
        let start = addr_of(at);
        let mut whole = true;
        for va in (start..start + pages * PAGE).step_by(PAGE) {
            match model.get_mut(&va).map(|p| &mut p.source) {
                Some(Source::Anon(word)) => *word = 0,
                Some(Source::File { copy, .. }) => *copy = None,
                Some(Source::Shm(..)) => {}
                None => whole = false,
            }
        }
        assert_eq!(mm.madvise_dontneed(start, pages * PAGE).is_ok(), whole);
    }

    fn truncate(&mut self, file: usize, pages: usize) {
        let (f, words) = &mut self.files[file];
        if pages >= words.len() {
            return;
        }
        f.truncate((pages * PAGE) as u64);
        unmap_mapping_range(f, pages as u64, u64::MAX, true);
        words.truncate(pages);
        for (_, model) in &mut self.mms {
            for page in model.values_mut() {
                if let Source::File {
                    file: of,
                    pgoff,
                    copy,
                    ..
                } = &mut page.source
                    && *of == file
                    && *pgoff >= pages
                {
                    *copy = None;
                }
            }
        }
    }

    /// What reading `va` gives.
    fn expect(&self, who: usize, va: usize) -> Result<u64, FaultError> {
        let page = self.mms[who].1.get(&va).ok_or(FaultError::SegvMaperr)?;
        if page.prot.is_empty() {
            return Err(FaultError::SegvAccerr);
        }
        match &page.source {
            Source::Anon(word) => Ok(*word),
            Source::Shm(shm, i) => shm.borrow().get(*i).copied().ok_or(FaultError::Sigbus),
            Source::File {
                copy: Some(word), ..
            } => Ok(*word),
            Source::File { file, pgoff, .. } => self.files[*file]
                .1
                .get(*pgoff)
                .copied()
                .ok_or(FaultError::Sigbus),
        }
    }

    /// What writing `va` gives; does it.
    fn model_write(&mut self, who: usize, va: usize, value: u64) -> Result<(), FaultError> {
        let page = self.mms[who].1.get_mut(&va).ok_or(FaultError::SegvMaperr)?;
        if !page.prot.contains(Prot::WRITE) {
            return Err(FaultError::SegvAccerr);
        }
        match &mut page.source {
            Source::Anon(word) => *word = value,
            Source::Shm(shm, i) => {
                *shm.borrow_mut().get_mut(*i).ok_or(FaultError::Sigbus)? = value;
            }
            Source::File {
                file,
                pgoff,
                shared,
                copy,
            } => {
                let word = self.files[*file]
                    .1
                    .get_mut(*pgoff)
                    .ok_or(FaultError::Sigbus)?;
                if *shared {
                    *word = value
                } else {
                    *copy = Some(value)
                }
            }
        }
        Ok(())
    }

    fn check_read(&self, who: usize, va: usize, fired: impl Fn() -> bool) {
        let r = tlb::access(self.cpu, &self.mms[who].0, va, FaultFlags::empty());
        // SAFETY: a page of the arena.
        let r = r.map(|p| unsafe { p.read_volatile() });
        if !(fired() && r == Err(FaultError::Oom)) {
            assert_eq!(r, self.expect(who, va), "mm {who} at {va:#x}");
        }
    }

    fn write(&mut self, who: usize, va: usize, value: u64, fired: impl Fn() -> bool) {
        let r = tlb::access(self.cpu, &self.mms[who].0, va, FaultFlags::WRITE);
        // SAFETY: a page of the arena.
        let r = r.map(|p| unsafe { p.write_volatile(value) });
        if !(fired() && r == Err(FaultError::Oom)) {
            assert_eq!(r, self.model_write(who, va, value), "mm {who} at {va:#x}");
        }
    }

    fn remote(&mut self, who: usize, va: usize, value: u64, fired: impl Fn() -> bool) {
        let r = self.mms[who].0.write_remote(va, &value.to_ne_bytes());
        if !starved(&r, fired()) {
            let expected = self.model_write(who, va, value);
            assert_eq!(r.is_ok(), expected.is_ok(), "mm {who} at {va:#x}");
        }
    }

    /// The areas cover exactly the model's pages, with their rights; all invariants hold.
    fn check(&self, who: usize) {
        let (mm, model) = &self.mms[who];
        mm.check_invariants();
        let mut covered = 0;
        mm.for_each_vma(|v| {
            for va in (v.start..v.end).step_by(PAGE) {
                let page = model.get(&va).expect("an area where nothing should be");
                assert_eq!(v.flags.bits() & 7, page.prot.bits());
                covered += 1;
            }
        });
        assert_eq!(covered, model.len());
    }

    fn finish(&self) {
        for (who, (_, model)) in self.mms.iter().enumerate() {
            self.check(who);
            for &va in model.keys() {
                self.check_read(who, va, || false);
            }
            self.check(who);
        }
        for (f, _) in &self.files {
            f.check_invariants();
        }
    }
}

/// The highest free run of `pages` pages below `MMAP_BASE`.
fn highest_gap(model: &Pages, pages: usize) -> usize {
    let mut start = MMAP_BASE - pages * PAGE;
    while let Some((&va, _)) = model.range(start..start + pages * PAGE).next() {
        start = va - pages * PAGE;
    }
    start
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..Default::default() })]
    #[test]
    fn programs_see_what_the_model_sees(steps in prop::collection::vec(ops(), 1..120)) {
        let _machine = Machine::new();
        tlb::idle();
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.finish();
        drop(world);
        tlb::check();
        tlb::idle();
    }
}
