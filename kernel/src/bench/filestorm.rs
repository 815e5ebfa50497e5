//! `bench=filestorm`: a file is cut, punched, cleaned, given back page by page and moved between nodes, under processes that
//! map it, fork and exit; what anybody reads must be what the file holds there, and nobody may keep a page that the file
//! no longer owns.
//!
//! The file is one of the archive. Page `n` holds bytes `n + 1`; the upper half of the pages, which are cut and punched,
//! zeroes after that until they are written again, always with the byte that belongs there. One worker in four
//! disturbs; the others map the file, read and write it through a shared and a private mapping, and fork children that
//! inherit it all. Others of their children stay to the end and keep what they inherited.
//!
//! Between disturbances each worker checks its page tables, now and then those of all processes; at the end a checksum
//! of what each process sees in the lower half is compared with that of what the file must hold.

use super::mapped::{self, Holder};
use super::{Benchmark, tiny::Tiny};
use crate::arch::uaccess::{get_user, put_user};
use crate::errno::Errno;
use crate::kstats::Stat;
use crate::sched::current_ref;
use crate::syscall::memory::current_mm;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use kbench::record::{Record, Setting};
use kstat::Counters;
use ksync::{Mutex, PAGE_SIZE, RwSem, arch, lock_class};
use mm::{MapArgs, MapFlags, MmUser, Prot};
use pid::{PidType, find_ge_pid};
use rmap::{AddressSpace, Filler, SpaceOwner};
use slab::KArc;

/// Pages of the file.
const PAGES: u64 = 32;
/// Of these, pages that always hold their bytes.
const KEPT: u64 = PAGES / 2;
/// Children that a worker keeps.
const HOLDERS: usize = 4;
/// A worker looks at all processes every so many operations.
const LOOK_AROUND: u64 = 64;
/// The benchmark.
pub struct FileStorm {
    file: SpaceOwner,
    /// Serialises changes of the file's size, as an inode would.
    sem: Mutex<()>,
    /// Shared by those who disturb: while it is held for writing no page is on its way out.
    gate: RwSem<()>,
    moves: AtomicU64,
    cuts: AtomicU64,
    cleaned: AtomicU64,
    reclaimed: AtomicU64,
    /// Address spaces looked at.
    checked: AtomicU64,
    /// Mappings whose checksum was right.
    sums: AtomicU64,
    stale: AtomicU64,
    wrong: AtomicU64,
}

/// A worker.
pub struct Worker {
    tiny: Tiny,
    index: usize,
    random: u64,
    nr: u64,
    at: [usize; 2],
    holders: Vec<Holder>,
}

impl Worker {
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

impl FileStorm {
    /// Cuts, punches, cleans, gives back or moves.
    fn disturb(&self, random: u64) {
        let _walking = self.gate.read();
        let (file, any) = (&self.file, random / 8 % PAGES);
        let pgoff = KEPT + any % (PAGES - KEPT);
        match random % 8 {
            0 => {
                let _sem = self.sem.lock();
                file.truncate(pgoff * PAGE_SIZE as u64);
                mm::unmap_mapping_range(file, pgoff, u64::MAX, true);
                file.extend(PAGES * PAGE_SIZE as u64);
                self.cuts.fetch_add(1, Relaxed);
            }
            1 => {
                let _sem = self.sem.lock();
                let start = pgoff * PAGE_SIZE as u64 + random / 512 % 4096;
                if let Ok(Some((first, last))) = file.punch(start, start + 2 * PAGE_SIZE as u64) {
                    mm::unmap_mapping_range(file, first, last, false);
                }
                self.cuts.fetch_add(1, Relaxed);
            }
            2 => {
                mm::clean_mapping_range(file, 0, u64::MAX);
                self.cleaned.fetch_add(1, Relaxed);
            }
            3 => {
                let gone = file.reclaim(any as usize + 1, random & 512 == 0, mm::unmap_leaving);
                self.reclaimed.fetch_add(gone as u64, Relaxed);
            }
            _ => {
                let node = (random / 512) as usize % arch::nr_node_ids();
                let unmap = || mm::unmap_mapping_range(file, any, any, false);
                let moved = file.migrate_page(any, node, unmap).is_ok();
                self.moves.fetch_add(u64::from(moved), Relaxed);
            }
        }
    }

    /// Reads or writes a page through a mapping.
    fn touch(&self, base: usize, random: u64) {
        let page = random as usize / 4 % PAGES as usize;
        let (address, byte) = (base + page * PAGE_SIZE + random as usize / 256 % 4000, page as u8 + 1);
        if random.is_multiple_of(4) {
            // EFAULT: past the end for the moment.
            let _ = put_user(address, &byte);
        } else if let Ok(found) = get_user::<u8>(address)
            && found != byte
            && (found != 0 || page < KEPT as usize)
        {
            self.wrong.fetch_add(1, Relaxed);
        }
    }

    /// Counts stale entries of the running process while nobody walks: there are none.
    fn check(&self) {
        let _still = self.gate.write();
        let stale = current_mm().nr_stale_entries();
        self.stale.fetch_add(stale as u64, Relaxed);
        self.checked.fetch_add(1, Relaxed);
    }

    /// The same for all processes, and with `sums` what they see.
    fn check_all(&self, sums: bool) {
        let _still = self.gate.write();
        for_each_mm(|mm| {
            let stale = mm.nr_stale_entries();
            self.stale.fetch_add(stale as u64, Relaxed);
            self.checked.fetch_add(1, Relaxed);
            if sums {
                self.check_sums(mm);
            }
        });
    }

    /// Adds up what `mm` sees in the kept half of each mapping of the file.
    fn check_sums(&self, mm: &MmUser) {
        let mut at = Vec::new();
        mm.for_each_vma(|vma| {
            let ours = |(file, pgoff): &(KArc<AddressSpace>, u64)| {
                KArc::ptr_eq(file, &self.file) && *pgoff == 0
            };
            if vma.file.as_ref().is_some_and(ours) {
                at.push(vma.start);
            }
        });
        let mut bytes = alloc::vec![0; PAGE_SIZE];
        for start in at {
            let mut sum = Checksum::new();
            for page in 0..KEPT as usize {
                // It may have ended, or be about to.
                if mm.read_remote(start + page * PAGE_SIZE, &mut bytes).is_err() {
                    return;
                }
                sum.add(&bytes);
            }
            let right = sum == Checksum::expected();
            let count = if right { &self.sums } else { &self.wrong };
            count.fetch_add(1, Relaxed);
        }
    }
}

/// FNV-1a.
#[derive(PartialEq)]
struct Checksum(u64);

impl Checksum {
    fn new() -> Self {
        Checksum(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    /// Of what the kept half of the file must hold.
    fn expected() -> Self {
        let mut sum = Checksum::new();
        (0..KEPT).for_each(|page| sum.add(&[page as u8 + 1; PAGE_SIZE]));
        sum
    }
}

/// Calls `f` with the address space of each process there is.
fn for_each_mm(mut f: impl FnMut(&MmUser)) {
    let ns = KArc::clone(&current_ref().pid_ns_for_children.lock());
    let mut next = 1;
    while let Some((nr, pid)) = find_ge_pid(next, &ns) {
        next = nr + 1;
        if let Some(mm) = pid.task(PidType::Pid).and_then(|task| task.mm_user()) {
            f(&mm);
        }
    }
}

/// An archived file; its bytes are there for ever.
fn archived() -> SpaceOwner {
    let mut bytes = alloc::vec![0; PAGES as usize * PAGE_SIZE];
    for (page, chunk) in (1..).zip(bytes.chunks_mut(PAGE_SIZE)) {
        chunk.fill(page);
    }
    let bytes: &'static [u8] = bytes.leak();
    let file = AddressSpace::new(Filler::Static(bytes), bytes.len() as u64, b"bench");
    SpaceOwner::new(file.expect("memory for a file"))
}

fn map_both(file: &SpaceOwner) -> Result<[usize; 2], Errno> {
    let shared = current_mm().mmap(&MapArgs {
        addr: 0,
        len: PAGES as usize * PAGE_SIZE,
        prot: Prot::READ | Prot::WRITE,
        flags: MapFlags::SHARED,
        file: Some((file, 0)),
        max_prot: Prot::all(),
    })?;
    let private = mapped::map(file, 0, PAGES as usize, Prot::READ | Prot::WRITE, 0)?;
    Ok([shared, private])
}

impl Benchmark for FileStorm {
    type Worker = Worker;
    const OPS: u64 = 10_000;

    fn new(_workers: usize) -> Self {
        let zero = || AtomicU64::new(0);
        FileStorm {
            file: archived(),
            sem: Mutex::new((), lock_class!("i_rwsem")),
            gate: RwSem::new((), lock_class!("storm_gate")),
            moves: zero(),
            cuts: zero(),
            cleaned: zero(),
            reclaimed: zero(),
            checked: zero(),
            sums: zero(),
            stale: zero(),
            wrong: zero(),
        }
    }

    fn worker(&self, index: usize) -> Worker {
        let tiny = Tiny::new();
        let at = map_both(&self.file).expect("memory for mappings");
        let random = (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Worker { tiny, index, random, nr: 0, at, holders: Vec::with_capacity(HOLDERS) }
    }

    fn operation(&self, worker: &mut Worker) -> Result<(), Errno> {
        let random = worker.next();
        if worker.index % 4 == 1 {
            self.disturb(random);
        } else {
            for base in worker.at {
                for _ in 0..8 {
                    let random = worker.next();
                    self.touch(base, random);
                }
            }
            match random % 8 {
                0 if worker.holders.len() < HOLDERS => worker.holders.push(Holder::new()?),
                0 | 1 => {
                    for base in worker.at {
                        current_mm().munmap(base, PAGES as usize * PAGE_SIZE)?;
                    }
                    worker.at = map_both(&self.file)?;
                }
                _ => worker.tiny.fork()?,
            }
        }
        worker.nr += 1;
        if worker.nr.is_multiple_of(LOOK_AROUND) {
            self.check_all(false);
        } else {
            self.check();
        }
        Ok(())
    }

    fn finish(&self, worker: Worker) {
        self.check_all(true);
        for holder in worker.holders {
            holder.release().expect("the holder ends well");
        }
    }

    fn verify(&self) -> Result<(), String> {
        let (stale, wrong) = (self.stale.load(Relaxed), self.wrong.load(Relaxed));
        if stale + wrong > 0 {
            return Err(alloc::format!("{stale} stale entries, {wrong} wrong bytes"));
        }
        self.file.check_invariants();
        Ok(())
    }

    fn describe(&self, record: &mut Record) {
        let mut push = |name: &str, n: &AtomicU64| record.params.push(Setting::new(name, n.load(Relaxed)));
        push("moves", &self.moves);
        push("cuts", &self.cuts);
        push("cleaned", &self.cleaned);
        push("reclaimed", &self.reclaimed);
        push("checked", &self.checked);
        push("sums", &self.sums);
        record.params.push(Setting::new("forks", Stat::nr_forks.sum()));
    }
}
