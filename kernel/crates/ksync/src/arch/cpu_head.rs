//! The start of every CPU's per-CPU window, reached through gs on the machine.
//!
//! ```text
//!   gs:0 ──► ┌──────────────────────────────────────────────────────────────┐ 0
//!            │ self_ptr │ cpu node │ preempt need_resched │ current         │
//!            │ kernel_sp │ user_sp │ lock_depth mcs_used  │ (free)          │
//!            ├──────────────────────────────────────────────────────────────┤ 64
//!            │ slots[8]: words for crates below percpu                      │
//!            ├──────────────────────────────────────────────────────────────┤ 128
//!            │ queue nodes of the locks this CPU waits for                  │
//!            ├──────────────────────────────────────────────────────────────┤
//!            │ RCU state of this CPU                                        │
//!            └──────────────────────────────────────────────────────────────┘ size_of::<CpuHead>(), under a page
//! ```
//!
//! The kernel's entry code uses the offsets below 64; they are asserted here. percpu's first chunk begins after
//! `size_of::<CpuHead>()`.
use crate::lock::{McsNode, QueuedNode};
use crate::rcu::RcuCpu;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

/// Number of words at the head for crates below percpu. Slot 0 belongs to page_alloc.
pub const NR_SLOTS: usize = 8;
/// Contexts that may wait for a queued lock at once on one CPU: thread, soft and hard interrupt, NMI.
pub(crate) const NR_QUEUED_NODES: usize = 4;
/// MCS locks one CPU may hold or wait for at once.
pub(crate) const NR_MCS_NODES: usize = if cfg!(loom) { 2 } else { 8 };

/// What a CPU knows about itself. All zero bytes are valid; [`init`](Self::init) fills in who it is.
#[repr(C, align(64))]
pub struct CpuHead {
    /// Address of this head in its window: what `gs:[0]` loads.
    pub self_ptr: AtomicUsize,
    /// This CPU's id.
    pub cpu: AtomicU32,
    /// Its node.
    pub node: AtomicU32,
    /// Not 0: the running thread may not be preempted. Written by this CPU only.
    pub preempt_count: AtomicU32,
    /// Not 0: the scheduler wants to run here. Any CPU may set it; the scheduler clears it.
    pub need_resched: AtomicU32,
    /// The running thread, written by the context switch.
    pub current: AtomicUsize,
    /// Kernel stack pointer for entries from user mode.
    pub kernel_sp: AtomicUsize,
    /// User stack pointer saved by the system call entry.
    pub user_sp: AtomicUsize,
    /// How many queued-lock nodes are in use.
    pub(crate) lock_depth: AtomicU32,
    /// Bit i: MCS node i is in use.
    pub(crate) mcs_used: AtomicU32,
    /// Free for the kernel.
    pub reserved: AtomicUsize,
    /// Words for crates below percpu.
    pub slots: [AtomicUsize; NR_SLOTS],
    pub(crate) queued_nodes: [QueuedNode; NR_QUEUED_NODES],
    pub(crate) mcs_nodes: [McsNode; NR_MCS_NODES],
    pub(crate) rcu: RcuCpu,
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
    /// Fills in the identity of a zeroed head. Boot only, before that CPU runs on it.
    pub fn init(&self, cpu: usize, node: usize) {
        self.self_ptr.store(self as *const _ as usize, Relaxed);
        self.cpu.store(cpu as u32, Relaxed);
        self.node.store(node as u32, Relaxed);
        if cfg!(not(target_os = "none")) {
            // There `cpu_online` does it.
            self.rcu.place(cpu);
        }
    }

    /// The name of what lies `offset` bytes into a head; `None` beyond it. For reports.
    pub fn part(offset: usize) -> Option<&'static str> {
        let parts = [
            (offset_of!(CpuHead, slots), "CPU head"),
            (offset_of!(CpuHead, queued_nodes), "CPU head's slots"),
            (offset_of!(CpuHead, mcs_nodes), "queue node of a spin lock"),
            (offset_of!(CpuHead, rcu), "queue node of an MCS lock"),
            (size_of::<CpuHead>(), "RCU state"),
        ];
        parts.iter().find(|(end, _)| offset < *end).map(|p| p.1)
    }

    crate::sync::const_unless_loom! {
        /// An all-zero head: what the boot CPU runs on before its window is mapped.
        pub fn new() -> Self {
            CpuHead {
                self_ptr: AtomicUsize::new(0),
                cpu: AtomicU32::new(0),
                node: AtomicU32::new(0),
                preempt_count: AtomicU32::new(0),
                need_resched: AtomicU32::new(0),
                current: AtomicUsize::new(0),
                kernel_sp: AtomicUsize::new(0),
                user_sp: AtomicUsize::new(0),
                lock_depth: AtomicU32::new(0),
                mcs_used: AtomicU32::new(0),
                reserved: AtomicUsize::new(0),
                slots: array!(AtomicUsize::new(0)),
                queued_nodes: array!(QueuedNode::new()),
                mcs_nodes: array!(McsNode::new()),
                rcu: RcuCpu::new(),
            }
        }
    }
}

use crate::sync::array;
