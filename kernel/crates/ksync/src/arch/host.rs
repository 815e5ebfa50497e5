//! The host: std threads stand for tasks, a token per emulated CPU stands for "preemption off".
//!
//! Problem: per-CPU code is correct because at most one thread runs with preemption off on a CPU. Mechanism:
//! the outermost `preempt_disable` (or IRQ disable) takes the token of the thread's CPU, the last enable gives
//! it back. So several test threads may share a CPU id, as tasks do.

pub use imp::{init_arena, nr_tlb_flushes, reset_signal, run_on, set_cpu, set_signal_pending};

pub(crate) mod imp {
    use super::super::*;
    use std::boxed::Box;
    use std::cell::Cell;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering::*};

    /// log2 of the size of a window.
    pub const PERCPU_WINDOW_SHIFT: u32 = 24;
    /// Size of a window in bytes (16 MiB on the host).
    pub const PERCPU_WINDOW_SIZE: usize = 1 << PERCPU_WINDOW_SHIFT;

    struct HostThread {
        thread: std::thread::Thread,
    }

    static NEXT_SEQ: AtomicUsize = AtomicUsize::new(0);
    static TOKENS: [AtomicBool; NR_CPUS] = [const { AtomicBool::new(false) }; NR_CPUS];
    static NR_TLB_FLUSHES: AtomicUsize = AtomicUsize::new(0);

    std::thread_local! {
        static SEQ: usize = NEXT_SEQ.fetch_add(1, Relaxed);
        static CPU: Cell<usize> = const { Cell::new(usize::MAX) };
        static PREEMPT: Cell<u32> = const { Cell::new(0) };
        static IRQS_OFF: Cell<bool> = const { Cell::new(false) };
        static SIGNAL: Cell<bool> = const { Cell::new(false) };
        static SELF: &'static HostThread = Box::leak(Box::new(HostThread { thread: std::thread::current() }));
    }

    /// The CPU this thread runs on: set by [`set_cpu`], else assigned round robin.
    #[inline]
    pub fn smp_processor_id() -> usize {
        let cpu = CPU.get();
        if cpu != usize::MAX {
            cpu
        } else {
            SEQ.with(|s| *s) % nr_cpu_ids()
        }
    }

    /// This CPU's node.
    #[inline]
    pub fn numa_node_id() -> usize {
        cpu_to_node(smp_processor_id())
    }

    /// Moves this thread to `cpu`. Preemption must be on.
    pub fn set_cpu(cpu: usize) {
        assert!(cpu < NR_CPUS && !exclusive());
        CPU.set(cpu);
    }

    /// Runs `f` on `cpu`, then comes back. Preemption must be on.
    pub fn run_on<R>(cpu: usize, f: impl FnOnce() -> R) -> R {
        let before = CPU.get();
        set_cpu(cpu);
        let r = f();
        assert!(!exclusive());
        CPU.set(before);
        r
    }

    fn exclusive() -> bool {
        PREEMPT.get() != 0 || IRQS_OFF.get()
    }

    fn take_token() {
        // A round-robin CPU is frozen here so that it cannot change while the token is held.
        let cpu = smp_processor_id();
        CPU.set(cpu);
        while TOKENS[cpu]
            .compare_exchange_weak(false, true, Acquire, Relaxed)
            .is_err()
        {
            std::thread::yield_now();
        }
    }

    fn give_token() {
        TOKENS[CPU.get()].store(false, Release);
    }

    /// Forbids preemption: takes the CPU's token. Nests.
    pub fn preempt_disable() {
        if !exclusive() {
            take_token();
        }
        PREEMPT.set(PREEMPT.get() + 1);
    }

    /// Undoes one [`preempt_disable`].
    pub fn preempt_enable() {
        let n = PREEMPT.get();
        assert!(n > 0, "preempt_enable without preempt_disable");
        PREEMPT.set(n - 1);
        if !exclusive() {
            give_token();
        }
    }

    /// Same as [`preempt_enable`] on the host.
    pub fn preempt_enable_no_resched() {
        preempt_enable();
    }

    /// How many [`preempt_disable`] are in force in this thread.
    pub fn preempt_count() -> u32 {
        PREEMPT.get()
    }

    /// Whether this thread's emulated interrupt flag is off.
    pub fn irqs_disabled() -> bool {
        IRQS_OFF.get()
    }

    /// Disables emulated interrupts; returns the state before.
    pub fn local_irq_save() -> IrqFlags {
        let off = IRQS_OFF.get();
        if !exclusive() {
            take_token();
        }
        IRQS_OFF.set(true);
        IrqFlags(off as usize)
    }

    /// Restores the state `local_irq_save` returned.
    pub fn local_irq_restore(flags: IrqFlags) {
        assert!(IRQS_OFF.get());
        IRQS_OFF.set(flags.0 != 0);
        if !exclusive() {
            give_token();
        }
    }

    /// A spin loop's pause; lets another host thread run.
    pub fn cpu_relax() {
        std::thread::yield_now();
    }

    /// Monotonic nanoseconds.
    pub fn get_cycles() -> u64 {
        static START: OnceLock<std::time::Instant> = OnceLock::new();
        START
            .get_or_init(std::time::Instant::now)
            .elapsed()
            .as_nanos() as u64
    }

    /// The running thread.
    pub fn current() -> ThreadPtr {
        SELF.with(|s| ThreadPtr(*s as *const HostThread as *mut ()))
    }

    /// Blocks until unparked. Panics with preemption off: that would be a deadlock on the machine.
    pub fn park() {
        assert!(!exclusive(), "park with preemption or IRQs off");
        std::thread::park();
    }

    /// Wakes `t` or saves its token. Any context.
    pub fn unpark(t: ThreadPtr) {
        // SAFETY: made by `current`, from a leaked box.
        unsafe { &*(t.0 as *const HostThread) }.thread.unpark();
    }

    /// This thread's emulated pending signal.
    pub fn signal_pending() -> bool {
        SIGNAL.get()
    }

    /// Sets this thread's emulated pending signal.
    pub fn set_signal_pending(on: bool) {
        SIGNAL.set(on);
    }

    /// Clears this thread's emulated pending signal.
    pub fn reset_signal() {
        SIGNAL.set(false);
    }

    pub(in super::super) fn flush_tlb_range_imp(_: &CpuMask, _: MmId, _: usize, _: usize) {
        NR_TLB_FLUSHES.fetch_add(1, Relaxed);
    }

    /// How often a TLB flush was asked for.
    pub fn nr_tlb_flushes() -> usize {
        NR_TLB_FLUSHES.load(Relaxed)
    }

    /// Counts as a flush.
    pub fn flush_tlb_local_page(_va: usize) {}

    /// Clears the page at `p`.
    ///
    /// # Safety
    /// `p` is page aligned and the page is the caller's.
    pub unsafe fn clear_page(p: *mut u8) {
        debug_assert!(p as usize % 4096 == 0);
        // SAFETY: the caller's.
        unsafe { core::ptr::write_bytes(p, 0, 4096) }
    }

    /// Copies a page.
    ///
    /// # Safety
    /// Both are page aligned, `dst` is the caller's, and `src` is not written meanwhile.
    pub unsafe fn copy_page(dst: *mut u8, src: *const u8) {
        // SAFETY: the caller's.
        unsafe { core::ptr::copy_nonoverlapping(src, dst, 4096) }
    }

    unsafe extern "C" {
        fn mmap(addr: *mut u8, len: usize, prot: i32, flags: i32, fd: i32, off: i64) -> *mut u8;
    }

    /// Reserves zeroed memory that costs nothing until touched.
    fn reserve(bytes: usize) -> usize {
        const PROT_READ_WRITE: i32 = 3;
        const PRIVATE_ANON_NORESERVE: i32 = 0x2 | 0x20 | 0x4000;
        // SAFETY: a fresh private mapping.
        let p = unsafe {
            mmap(
                core::ptr::null_mut(),
                bytes,
                PROT_READ_WRITE,
                PRIVATE_ANON_NORESERVE,
                -1,
                0,
            )
        };
        assert!(p as isize != -1, "mmap of {bytes} bytes failed");
        p as usize
    }

    struct Arena {
        bytes: usize,
        direct: usize,
        vmemmap: usize,
    }
    static ARENA: OnceLock<Arena> = OnceLock::new();
    static WINDOWS: OnceLock<usize> = OnceLock::new();

    /// Makes the arena that stands for physical memory `0..bytes`; later calls keep the first one.
    /// Returns its size in bytes.
    pub fn init_arena(bytes: usize) -> usize {
        let bytes = bytes.next_multiple_of(4096);
        ARENA
            .get_or_init(|| Arena {
                bytes,
                direct: reserve(bytes),
                vmemmap: reserve(bytes / 4096 * 64),
            })
            .bytes
    }

    fn arena() -> &'static Arena {
        ARENA.get().expect("arch::host::init_arena was not called")
    }

    /// Address of physical address `pa` in the arena.
    #[inline]
    pub fn phys_to_virt(pa: usize) -> *mut u8 {
        (arena().direct + pa) as *mut u8
    }

    /// Physical address of an arena address.
    #[inline]
    pub fn virt_to_phys(va: *const u8) -> usize {
        va as usize - arena().direct
    }

    /// Address of the page descriptor of frame 0.
    #[inline]
    pub fn vmemmap_base() -> usize {
        arena().vmemmap
    }

    /// Start of `cpu`'s window.
    #[inline]
    pub fn percpu_base(cpu: usize) -> usize {
        let base = *WINDOWS.get_or_init(|| {
            let base = reserve(NR_CPUS << PERCPU_WINDOW_SHIFT);
            for cpu in 0..NR_CPUS {
                // SAFETY: inside the mapping, zeroed, and a zeroed head is valid.
                let head = unsafe { &*((base + (cpu << PERCPU_WINDOW_SHIFT)) as *const CpuHead) };
                head.init(cpu, cpu_to_node(cpu));
            }
            base
        });
        base + (cpu << PERCPU_WINDOW_SHIFT)
    }

    /// Start of this CPU's window.
    #[inline]
    pub fn this_cpu_base() -> usize {
        percpu_base(smp_processor_id())
    }

    pub(crate) fn token_held(cpu: usize) -> bool {
        TOKENS[cpu].load(SeqCst)
    }
}
