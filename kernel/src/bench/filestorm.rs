//! `bench=filestorm`: files are cut, punched and moved between nodes under processes that map them, fork and exit; what
//! anybody reads must be what the file holds there, and nobody may keep a page that its file no longer owns.
//!
//! Page `n` of the file holds bytes `n + 1`, or zeroes after it was cut or punched, until it is written again. One worker in
//! four cuts, punches or moves pages; the others map the file, read or write it through the mapping (always the byte that
//! belongs there), and fork children that inherit it all. Between
//! disturbances each worker checks its page tables.

use super::mapped;
use super::{Benchmark, tiny::Tiny};
use crate::arch::uaccess::{get_user, put_user};
use crate::errno::Errno;
use crate::syscall::memory::current_mm;
use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use kbench::record::{Record, Setting};
use ksync::{Mutex, PAGE_SIZE, RwSem, arch, lock_class};
use mm::{MapArgs, MapFlags, Prot};
use rmap::SpaceOwner;

/// Pages of the file.
const PAGES: u64 = 32;
/// The benchmark.
pub struct FileStorm {
    file: SpaceOwner,
    /// Serialises changes of the file's size, as an inode would.
    sem: Mutex<()>,
    /// Shared by those who disturb: while it is held for writing no page is on its way out.
    gate: RwSem<()>,
    moves: AtomicU64,
    cuts: AtomicU64,
    stale: AtomicU64,
    wrong: AtomicU64,
}

/// A worker.
pub struct Worker {
    tiny: Tiny,
    index: usize,
    random: u64,
    at: [usize; 2],
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
    /// Cuts, punches or moves.
    fn disturb(&self, random: u64) {
        let _walking = self.gate.read();
        let (file, pgoff) = (&self.file, random / 8 % PAGES);
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
                let start = pgoff * PAGE_SIZE as u64;
                if let Ok(Some((first, last))) = file.punch(start, start + 2 * PAGE_SIZE as u64) {
                    mm::unmap_mapping_range(file, first, last, false);
                }
                self.cuts.fetch_add(1, Relaxed);
            }
            _ => {
                let node = (random / 512) as usize % arch::nr_node_ids();
                let unmap = || mm::unmap_mapping_range(file, pgoff, pgoff, false);
                let moved = file.migrate_page(pgoff, node, unmap).is_ok();
                self.moves.fetch_add(u64::from(moved), Relaxed);
            }
        }
    }

    /// Reads or writes a page through a mapping.
    fn touch(&self, base: usize, random: u64) {
        let page = random as usize / 4 % PAGES as usize;
        let (address, byte) = (base + page * PAGE_SIZE + random as usize / 256 % 4000, page as u8 + 1);
        if random % 4 == 0 {
            // EFAULT: past the end for the moment.
            let _ = put_user(address, &byte);
        } else if let Ok(found) = get_user::<u8>(address)
            && found != 0
            && found != byte
        {
            self.wrong.fetch_add(1, Relaxed);
        }
    }

    /// Counts stale entries of the running process while nobody walks: there are none.
    fn check(&self) {
        let _still = self.gate.write();
        let stale = current_mm().nr_stale_entries();
        self.stale.fetch_add(stale as u64, Relaxed);
    }
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
            file: mapped::new_file(PAGES),
            sem: Mutex::new((), lock_class!("i_rwsem")),
            gate: RwSem::new((), lock_class!("storm_gate")),
            moves: zero(),
            cuts: zero(),
            stale: zero(),
            wrong: zero(),
        }
    }

    fn worker(&self, index: usize) -> Worker {
        let tiny = Tiny::new();
        let at = map_both(&self.file).expect("memory for mappings");
        let random = (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Worker { tiny, index, random, at }
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
            match random % 4 {
                0 => {
                    for base in worker.at {
                        current_mm().munmap(base, PAGES as usize * PAGE_SIZE)?;
                    }
                    worker.at = map_both(&self.file)?;
                }
                _ => worker.tiny.fork()?,
            }
        }
        self.check();
        Ok(())
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
        record.params.push(Setting::new("moves", self.moves.load(Relaxed)));
        record.params.push(Setting::new("cuts", self.cuts.load(Relaxed)));
    }
}
