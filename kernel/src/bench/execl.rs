//! `bench=execl`: every worker replaces its program by one that has an interpreter, and maps a library, over and over.
//!
//! The program, the interpreter and the library are the same files for all, each mapped in four or five pieces, as
//! dynamic loaders do it: 13 mappings of files are made and 13 removed per operation. Beside them `mappings=`
//! (6,000) other mappings of the library exist, spread over processes on all workers' CPUs.

use super::mapped::{self, Holder, Walker, Walks};
use super::{Benchmark, tiny};
use crate::errno::Errno;
use crate::params;
use crate::sched::current_ref;
use crate::syscall::memory::current_mm;
use alloc::vec::Vec;
use kbench::record::{Record, Setting};
use ksync::PAGE_SIZE;
use mm::{MapArgs, Prot};
use rmap::SpaceOwner;
use vfs::{At, OpenFlags};

const PROGRAM: &[u8] = b"/execl";
const INTERPRETER: &[u8] = b"/execl-ld";

const RX: Prot = Prot::READ.union(Prot::EXEC);
const RW: Prot = Prot::READ.union(Prot::WRITE);

/// A piece of a file: rights, first page, pages.
type Piece = (Prot, u64, usize);
const PROGRAM_PIECES: [Piece; 4] = [(Prot::READ, 0, 1), (RX, 1, 8), (Prot::READ, 9, 2), (RW, 11, 2)];
const LD_PIECES: [Piece; 4] = [(Prot::READ, 0, 1), (RX, 1, 38), (Prot::READ, 39, 10), (RW, 49, 3)];
/// Of the library, behind its first piece, which spans all of it before these are put over it.
const LIBC_PIECES: [Piece; 4] = [(RX, 40, 361), (Prot::READ, 401, 90), (Prot::READ, 491, 4), (RW, 495, 2)];
const LIBC_PAGES: u64 = 497;
/// Other mappings of the library when the boot line does not say.
const MAPPINGS: u64 = 6_000;

const EHDR: usize = 64;
const PHDR: usize = 56;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;

/// The benchmark.
pub struct Execl {
    libc: SpaceOwner,
    workers: usize,
    walks: Walks,
}

/// A worker's holder of other mappings, and perhaps its walks.
pub struct Worker {
    holder: Holder,
    walker: Option<Walker>,
}

/// An ELF file with those pieces, which asks for `interpreter` if it is not empty.
fn elf(pieces: &[Piece], interpreter: &[u8]) -> Vec<u8> {
    let path = EHDR + (pieces.len() + 1) * PHDR;
    let interp = !interpreter.is_empty();
    let pages = pieces.iter().map(|&(_, first, nr)| first as usize + nr).max().unwrap_or(0);
    let mut file = alloc::vec![0u8; pages * PAGE_SIZE];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[3, 0, 62, 0, 1]); // ET_DYN, x86-64, version 1
    put(24, &(PAGE_SIZE as u64).to_le_bytes());
    put(32, &(EHDR as u64).to_le_bytes());
    put(52, &(EHDR as u16).to_le_bytes());
    put(54, &(PHDR as u16).to_le_bytes());
    put(56, &((pieces.len() + usize::from(interp)) as u16).to_le_bytes());
    let mut header = |i: usize, kind: u32, flags: u32, offset: u64, size: u64| {
        let at = EHDR + i * PHDR;
        put(at, &kind.to_le_bytes());
        put(at + 4, &flags.to_le_bytes());
        let words = [offset, offset, offset, size, size, PAGE_SIZE as u64];
        (0..).zip(words).for_each(|(i, w): (usize, u64)| put(at + 8 + 8 * i, &w.to_le_bytes()));
    };
    for (i, &(prot, first, nr)) in pieces.iter().enumerate() {
        // ELF counts X, W, R from the lowest bit, mmap R, W, X.
        let flags = [Prot::EXEC, Prot::WRITE, Prot::READ];
        let flags = (0..).zip(flags).map(|(bit, p)| u32::from(prot.contains(p)) << bit).sum();
        header(i, PT_LOAD, flags, first * PAGE_SIZE as u64, (nr * PAGE_SIZE) as u64);
    }
    if interp {
        header(pieces.len(), PT_INTERP, 4, path as u64, interpreter.len() as u64 + 1);
        file[path..path + interpreter.len()].copy_from_slice(interpreter);
    }
    file
}

fn make_file(path: &[u8], bytes: &[u8]) -> Result<(), Errno> {
    let fs = current_ref().fs.lock().clone().ok_or(Errno::ENOENT)?;
    let flags = OpenFlags::WRONLY | OpenFlags::CREAT | OpenFlags::TRUNC;
    let file = vfs::open(At::cwd(&fs), path, flags, 0o755)?;
    let mut rest = bytes;
    file.write(&mut rest)?;
    Ok(())
}

impl Execl {
    /// What a loader does once it runs: the library in five pieces, and room for its variables.
    fn load_libc(&self) -> Result<(), Errno> {
        let at = mapped::map(&self.libc, 0, LIBC_PAGES as usize + 13, Prot::READ, 0)?;
        for (prot, first, nr) in LIBC_PIECES {
            mapped::map(&self.libc, first, nr, prot, at + first as usize * PAGE_SIZE)?;
        }
        let bss = at + LIBC_PAGES as usize * PAGE_SIZE;
        current_mm().mmap(&MapArgs::anon(13 * PAGE_SIZE, RW).fixed(bss))?;
        Ok(())
    }
}

impl Benchmark for Execl {
    type Worker = Worker;
    const OPS: u64 = 2_000;
    const WINDOW: Option<u64> = Some(10_000_000);

    fn new(workers: usize) -> Self {
        make_file(PROGRAM, &elf(&PROGRAM_PIECES, INTERPRETER)).expect("memory for a program");
        make_file(INTERPRETER, &elf(&LD_PIECES, b"")).expect("memory for an interpreter");
        Execl { libc: mapped::new_file(LIBC_PAGES), workers, walks: Walks::new() }
    }

    fn worker(&self, index: usize) -> Worker {
        let _program = tiny::Tiny::new();
        let all = params::get().mappings.unwrap_or(MAPPINGS);
        mapped::map_share(&self.libc, LIBC_PAGES, all, index, self.workers);
        let holder = Holder::new().expect("memory for a process");
        Worker { holder, walker: Walker::new(index) }
    }

    fn operation(&self, worker: &mut Worker) -> Result<(), Errno> {
        if let Some(walker) = &mut worker.walker {
            walker.walk_and_wait(&self.libc, LIBC_PAGES);
            return Ok(());
        }
        tiny::exec(PROGRAM)?;
        self.load_libc()
    }

    fn counts(&self, worker: &Worker) -> bool {
        worker.walker.is_none()
    }

    fn finish(&self, worker: Worker) {
        worker.holder.release().expect("the holder ends well");
        self.walks.add(worker.walker);
    }

    fn describe(&self, record: &mut Record) {
        let all = params::get().mappings.unwrap_or(MAPPINGS);
        record.params.push(Setting::new("mappings", all));
        self.walks.describe(record);
    }
}
