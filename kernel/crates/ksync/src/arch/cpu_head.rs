//! The start of every CPU's per-CPU window, reached through gs on bare metal.
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

/// Number of words at the head for crates below percpu. Slot 0 belongs to page_alloc.
pub const NR_SLOTS: usize = 8;

/// What a CPU knows about itself. All zero bytes are a valid head of CPU 0.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct CpuHead {
    /// Address of this head in its window: `gs:0`.
    pub self_ptr: AtomicUsize,
    /// This CPU's id.
    pub cpu: AtomicU32,
    /// Its node.
    pub node: AtomicU32,
    /// Not 0: the running thread may not be preempted.
    pub preempt_count: AtomicU32,
    /// Not 0: the scheduler wants to run here.
    pub need_resched: AtomicU32,
    /// The running thread.
    pub current: AtomicUsize,
    /// Kernel stack pointer for entries from user mode.
    pub kernel_sp: AtomicUsize,
    /// User stack pointer saved by the system call entry.
    pub user_sp: AtomicUsize,
    /// Owned by ksync.
    pub(crate) reserved: [AtomicUsize; 2],
    /// Words for crates below percpu.
    pub slots: [AtomicUsize; NR_SLOTS],
}

const _: () = {
    assert!(offset_of!(CpuHead, self_ptr) == 0);
    assert!(offset_of!(CpuHead, cpu) == 8);
    assert!(offset_of!(CpuHead, node) == 12);
    assert!(offset_of!(CpuHead, preempt_count) == 16);
    assert!(offset_of!(CpuHead, need_resched) == 20);
    assert!(offset_of!(CpuHead, current) == 24);
    assert!(offset_of!(CpuHead, kernel_sp) == 32);
    assert!(offset_of!(CpuHead, user_sp) == 40);
    assert!(offset_of!(CpuHead, slots) == 64);
};

impl CpuHead {
    /// Fills in the identity of a zeroed head. Boot only, before that CPU runs.
    pub fn init(&self, cpu: usize, node: usize) {
        self.self_ptr.store(self as *const _ as usize, Relaxed);
        self.cpu.store(cpu as u32, Relaxed);
        self.node.store(node as u32, Relaxed);
    }
}
