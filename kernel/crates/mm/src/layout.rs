//! Where exec put things: what /proc says of a program.
//!
//! Problem: `ps` reads a program's arguments from its stack, and /proc/PID/exe leads to its file. Mechanism: exec notes
//! addresses and file once; fork copies them. They are facts of the past: a program may have changed what is there.
//!
//! Lock order: `mmap_lock`; `mm_exe` is a leaf spinlock.

use crate::mm::Mm;
use rmap::{AddressSpace, SpaceRef};
use slab::KArc;

/// Addresses of a program's parts.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// First address of its code.
    pub start_code: usize,
    /// End of its code.
    pub end_code: usize,
    /// Stack pointer at the first instruction.
    pub start_stack: usize,
    /// Where the argument strings begin.
    pub arg_start: usize,
    /// Where they end and those of the environment begin.
    pub arg_end: usize,
    /// Where these end.
    pub env_end: usize,
}

impl Mm {
    /// The addresses. May sleep.
    pub fn layout(&self) -> Layout {
        self.mmap_lock().read().layout
    }

    /// The addresses, the pages of all areas, and where the heap starts. May sleep.
    pub fn summary(&self) -> (Layout, usize, usize) {
        let tree = self.mmap_lock().read();
        (tree.layout, tree.total_vm, tree.start_brk)
    }

    /// Heap: where it starts. May sleep.
    pub fn start_brk(&self) -> usize {
        self.mmap_lock().read().start_brk
    }

    /// Notes addresses and the program's file. exec, before the program runs. May sleep.
    pub fn set_layout(&self, layout: Layout, exe: &KArc<AddressSpace>) {
        self.mmap_lock().write().layout = layout;
        *self.exe_slot().lock() = Some(SpaceRef::of(exe));
    }

    /// The pages of the program's file. Any context but hard IRQ.
    pub fn exe(&self) -> Option<SpaceRef> {
        self.exe_slot().lock().clone()
    }
}
