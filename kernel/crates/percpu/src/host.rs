//! The host: windows in a reserved mapping, memory from the emulated nodes.
//!
//! Problem: host tests of everything above want per-CPU memory without a line of set-up. Mechanism:
//! the first allocation calls [`init_once`]. The windows are readable from the start, so populating
//! is a matter of book-keeping: it fills fresh pages with a pattern, so that code which forgets to
//! initialise Zero::No memory is seen, and can be told to fail.

use crate::{FirstChunk, OutOfMemory, PercpuMemory, RESERVED};
use ksync::{NR_CPUS, PAGE_SIZE, arch};
use std::collections::BTreeSet;
use std::sync::{Mutex, Once};

/// Byte that fresh pages are filled with.
pub const FRESH: u8 = 0xa5;
/// Byte that depopulated pages are filled with.
pub const GONE: u8 = 0xdd;
/// Bytes of each window that are there from the start.
const FIRST: usize = 8 * PAGE_SIZE;

/// The windows of [`ksync::arch::host`].
pub struct HostMemory {
    state: Mutex<State>,
}

struct State {
    /// (cpu, page) pairs that are populated.
    pages: BTreeSet<(usize, usize)>,
    /// Populate calls left until they fail; None: never.
    fail_after: Option<usize>,
}

static MEMORY: HostMemory = HostMemory {
    state: Mutex::new(State {
        pages: BTreeSet::new(),
        fail_after: None,
    }),
};

// SAFETY: the windows are mapped for the life of the process, and only percpu uses them.
unsafe impl PercpuMemory for HostMemory {
    fn populate(&self, cpu: usize, offset: usize, len: usize) -> Result<(), OutOfMemory> {
        let mut state = self.state.lock().unwrap();
        for page in offset / PAGE_SIZE..(offset + len) / PAGE_SIZE {
            if state.pages.contains(&(cpu, page)) {
                continue;
            }
            match &mut state.fail_after {
                Some(0) => return Err(OutOfMemory),
                Some(n) => *n -= 1,
                None => (),
            }
            state.pages.insert((cpu, page));
            fill(cpu, page, FRESH);
        }
        Ok(())
    }

    fn depopulate(&self, offset: usize, len: usize) {
        let mut state = self.state.lock().unwrap();
        for page in offset / PAGE_SIZE..(offset + len) / PAGE_SIZE {
            for cpu in 0..NR_CPUS {
                if state.pages.remove(&(cpu, page)) {
                    fill(cpu, page, GONE);
                }
            }
        }
    }
}

fn fill(cpu: usize, page: usize, byte: u8) {
    let start = (arch::percpu_base(cpu) + page * PAGE_SIZE) as *mut u8;
    // SAFETY: inside the window, and nobody uses the page at this moment.
    unsafe { start.write_bytes(byte, PAGE_SIZE) };
}

/// How many pages of all windows are populated beyond the first ones.
pub fn nr_populated() -> usize {
    MEMORY.state.lock().unwrap().pages.len()
}

/// Makes populating fail after `n` more fresh pages; None: never again.
pub fn fail_after(n: Option<usize>) {
    MEMORY.state.lock().unwrap().fail_after = n;
}

/// Frames of the one node that [`init_once`] makes.
const DEFAULT_PAGES: usize = 1 << 16;
/// Frames that page_alloc's emulated machine leaves out at the start, and its unit.
const RESERVED_PAGES: usize = 1 << page_alloc::MAX_ORDER;

/// Emulated physical memory, page_alloc and this crate, ready to use. Idempotent; called by the
/// first allocation. A test that wants more CPUs or nodes calls `arch::set_nr_cpu_ids` and
/// [`page_alloc::host::init`] before.
pub fn init_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // A test may have made a smaller arena.
        let frames =
            arch::host::init_arena((DEFAULT_PAGES + RESERVED_PAGES) * PAGE_SIZE) / PAGE_SIZE;
        page_alloc::host::init(&[(frames - RESERVED_PAGES) & !(RESERVED_PAGES - 1)]);
        let first = FirstChunk {
            populated: FIRST,
            reserved: RESERVED,
        };
        // SAFETY: the windows are mapped and zero beyond the heads.
        unsafe { crate::init(&MEMORY, first) }.expect("host memory");
    });
}
