//! What the benchmarks of file mappings share: mapping a file, processes that hold mappings, and walks at a stated rate.
//!
//! A [`Walker`] belongs to the first worker. Once per `period=` cycles it does what `walk=` names with all mappings of
//! the file, and times that (of a migration the walk alone, not the grace period before it, which does not end in a
//! simulation, where no clock ticks: there the page is unmapped everywhere and stays); so it shows both how long a walk
//! waits for mutators, and, in the figures of the others, how long they wait for it. In `bench=mmap` it
//! interrupts that worker's operations; in `bench=execl`, whose operations can take longer than a period, it is all
//! that the first worker does.

use crate::errno::Errno;
use crate::params::{self, ModeWord};
use crate::process;
use crate::syscall::memory::current_mm;
use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, Ordering};
use kbench::Histogram;
use kbench::record::{Record, Setting};
use ksync::arch::get_cycles;
use ksync::{PAGE_SIZE, WaitQueue};
use mm::{MapArgs, MapFlags, Prot};
use rmap::{AddressSpace, Filler, SpaceOwner};
use slab::KArc;

use super::tiny;

kparam::choices! {
    /// What walks over a benchmark's file beside the mappers.
    pub enum WalkWord {
        /// Nothing.
        None = "none",
        /// The file is cut by its last page, and grows again.
        Truncate = "truncate",
        /// A page in the middle moves on to the next node, or within the only one.
        Migrate = "migrate",
    }
}

/// A file of zeroes without a name.
pub fn new_file(pages: u64) -> SpaceOwner {
    let bytes = pages * PAGE_SIZE as u64;
    SpaceOwner::new(AddressSpace::new(Filler::Zero, bytes, b"bench").expect("memory for a file"))
}

/// Maps `nr` pages of `file` from `pgoff` on: anywhere, or at `at`. Returns where.
pub fn map(
    file: &KArc<AddressSpace>,
    pgoff: u64,
    nr: usize,
    prot: Prot,
    at: usize,
) -> Result<usize, Errno> {
    let fixed = if at == 0 {
        MapFlags::empty()
    } else {
        MapFlags::FIXED
    };
    Ok(current_mm().mmap(&MapArgs {
        addr: at,
        len: nr * PAGE_SIZE,
        prot,
        flags: MapFlags::PRIVATE | fixed,
        file: Some((file, pgoff)),
        max_prot: Prot::all(),
    })?)
}

/// Makes the running worker's share of `all` mappings, each of one page of `file`, whose pages are all used alike.
pub fn map_share(file: &KArc<AddressSpace>, pages: u64, all: u64, index: usize, workers: usize) {
    let mine = (all + (workers - 1 - index) as u64) / workers as u64;
    for i in 0..mine {
        map(file, i % pages, 1, Prot::READ, 0).expect("memory for other mappings");
    }
}

/// A child of the running worker that does nothing but keep a copy of the mappings that it found.
pub struct Holder(Box<Hold>);

struct Hold {
    released: AtomicBool,
    queue: WaitQueue,
}

impl Holder {
    /// Forks it.
    pub fn new() -> Result<Holder, Errno> {
        let hold = Box::new(Hold {
            released: AtomicBool::new(false),
            queue: WaitQueue::new(),
        });
        let address = core::ptr::from_ref(&*hold) as usize;
        process::clone_into_kernel(&tiny::clone_args(0), hold_on, address)?;
        Ok(Holder(hold))
    }

    /// Ends it.
    pub fn release(self) -> Result<(), Errno> {
        self.0.released.store(true, Ordering::Release);
        self.0.queue.wake_all();
        tiny::reap_one()
    }
}

extern "C" fn hold_on(address: usize) {
    // SAFETY: the parent keeps it until it has reaped us.
    let hold = unsafe { &*(address as *const Hold) };
    hold.queue
        .wait_until(|| hold.released.load(Ordering::Acquire));
    process::do_group_exit(0)
}

/// Walks of one file, and how long they took.
pub struct Walks(spin::Mutex<Walked>);

struct Walked {
    took: Histogram,
    moved: u64,
}

impl Walks {
    /// None yet.
    pub fn new() -> Walks {
        Walks(spin::Mutex::new(Walked {
            took: Histogram::try_new().expect("memory for a histogram"),
            moved: 0,
        }))
    }

    /// Takes over what a worker's walker found.
    pub fn add(&self, walker: Option<Walker>) {
        if let Some(walker) = walker {
            let mut all = self.0.lock();
            all.took.merge(&walker.took);
            all.moved += walker.moved;
        }
    }

    /// Adds the walks to the record.
    pub fn describe(&self, record: &mut Record) {
        let word = params::get().walk;
        record.params.push(Setting::new("walk", word.name()));
        if word == WalkWord::None {
            return;
        }
        let all = self.0.lock();
        let took = &all.took;
        let mut push = |name: &str, value: u64| record.params.push(Setting::new(name, value));
        push("period", params::get().period);
        if word == WalkWord::Migrate {
            push("moved", all.moved);
        }
        push("walks", took.count());
        push("walk_p50", took.p50());
        push("walk_p99", took.p99());
        push("walk_max", took.max());
    }
}

/// The first worker's second task.
pub struct Walker {
    next: u64,
    moved: u64,
    took: Histogram,
}

impl Walker {
    /// One for the first worker, if the boot line wants walks.
    pub fn new(index: usize) -> Option<Walker> {
        let wanted = index == 0 && params::get().walk != WalkWord::None;
        wanted.then(|| Walker {
            next: 0,
            moved: 0,
            took: Histogram::try_new().expect("memory for a histogram"),
        })
    }

    /// Walks over the mappings of `file`, of that many pages, if it is time.
    #[inline]
    pub fn tick(walker: &mut Option<Walker>, file: &KArc<AddressSpace>, pages: u64) {
        if let Some(walker) = walker
            && get_cycles() >= walker.next
        {
            walker.walk(file, pages);
        }
    }

    /// A walk, and then nothing until it is time for the next.
    pub fn walk_and_wait(&mut self, file: &AddressSpace, pages: u64) {
        self.walk(file, pages);
        while get_cycles() < self.next {
            crate::sched::yield_now();
        }
    }

    fn walk(&mut self, file: &AddressSpace, pages: u64) {
        let start = get_cycles();
        match params::get().walk {
            WalkWord::None => {}
            WalkWord::Truncate => {
                let end = pages * PAGE_SIZE as u64;
                file.truncate(end - PAGE_SIZE as u64);
                mm::unmap_mapping_range(file, pages - 1, u64::MAX, true);
                file.extend(end);
                self.took.record(get_cycles() - start);
            }
            WalkWord::Migrate => self.migrate(file, pages / 2),
        }
        self.next = start + params::get().period;
    }

    fn migrate(&mut self, file: &AddressSpace, pgoff: u64) {
        let Ok(page) = file.find_or_create_page(pgoff) else {
            return;
        };
        let node = (page.node() + 1) % ksync::arch::nr_node_ids();
        page.put();
        let mut unmap = || {
            let start = get_cycles();
            mm::unmap_mapping_range(file, pgoff, pgoff, false);
            self.took.record(get_cycles() - start);
        };
        if params::get().mode == ModeWord::Numasim {
            return unmap();
        }
        // One that somebody holds for the moment has been walked for too.
        let moved = file.replace_page(pgoff, node, unmap).is_ok();
        self.moved += u64::from(moved);
    }
}
