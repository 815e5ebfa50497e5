//! The words of the boot line.

use crate::bench::{
    BenchWord, LockWord, MmOp, MmapOf, MmapOp, Peer, PercpuOp, SlabPattern, WalkWord,
};
use kparam::Text;

kparam::choices! {
    /// Switches that are off unless asked for.
    pub enum Switch {
        /// Off.
        Off = "off",
        /// On.
        On = "on",
    }
}

kparam::choices! {
    /// Where a benchmark's workers run.
    pub enum Place {
        /// Each worker stays on a CPU of its own, spread over the nodes.
        Pinned = "pinned",
        /// The scheduler decides.
        Spread = "spread",
    }
}

kparam::choices! {
    /// What a cycle means, as whoever started the machine knows.
    pub enum ModeWord {
        /// Guest instructions.
        Icount = "icount",
        /// Simulated cycles of the coherence model.
        Numasim = "numasim",
        /// Plain emulation: smoke only.
        Tcg = "tcg",
        /// A virtual machine on real hardware.
        Kvm = "kvm",
        /// A real machine.
        Metal = "metal",
    }
}

kparam::choices! {
    /// Deliberate failures, to see that they are reported.
    pub enum TestWord {
        /// A panic.
        Panic = "panic",
        /// A kernel stack that overflows.
        StackOverflow = "stack-overflow",
        /// A thread that waits for ever.
        Hang = "hang",
        /// A CPU that spins with interrupts off while others wait for it.
        Lockup = "lockup",
        /// A read of an address that is not mapped.
        NullRead = "null-read",
        /// Two locks in both orders, and a destructor that takes a lock: lockdep reports both.
        Lockdep = "lockdep",
        /// Frees what it should not, uses what it freed: the slab's debug mode reports each.
        Slab = "slab",
        /// Every allocation of fork, exec, clone and mmap fails once; nothing may be lost.
        FaultInject = "fault-inject",
    }
}

kparam::choices! {
    /// Faults of benchmarks, to see that whoever compares results finds them.
    pub enum PlantWord {
        /// A fork that takes about 5 % more instructions.
        SlowFork = "slow-fork",
        /// A counter that all workers add to (bench=apart).
        SharedCounter = "shared-counter",
    }
}

kparam::choices! {
    /// How pids are kept.
    pub enum PidWord {
        /// One radix tree per namespace, one lock for all, taken once per allocation: Linux since 7.0.
        Idr = "idr",
        /// The same with the lock taken once per level and once more: Linux 4.15 to 6.19.
        IdrRelock = "idr-relock",
        /// An array with a lock of its own per namespace, dropped to allocate.
        Xarray = "xarray",
        /// Arrays that share one lock, dropped to allocate.
        MultiXarray = "multi-xarray",
        /// Bitmaps and one hash: Linux before 4.15.
        BitmapHash = "bitmap-hash",
        /// Numbers leased by each CPU.
        Sharded = "sharded",
    }
}

kparam::choices! {
    /// How a file finds its mappings.
    pub enum IMmapWord {
        /// One tree under one lock per file: Linux to 7.3.
        Global = "global",
        /// A tree per memory node under one lock.
        NodeTrees = "node-trees",
        /// A tree and a lock per memory node; walkers take all.
        NodeLocks = "node-locks",
        /// Shards by the number of CPUs under a lock that mutators share.
        Inverted = "inverted",
        /// One tree until its lock is fought for, then shards, and back.
        Adaptive = "adaptive",
        /// A tree and a lock per CPU for files that several CPUs map.
        Best = "best",
    }
}

kparam::choices! {
    /// Where slabs with destructors are reclaimed.
    pub enum ReclaimWord {
        /// Where memory runs out, or the last object is freed.
        Inline = "inline",
        /// In a thread of their own.
        Worker = "worker",
    }
}

kparam::choices! {
    /// How the counters and ids of an address space are kept.
    pub enum MmWord {
        /// In two zeroed per-CPU areas.
        Separate = "separate",
        /// In one zeroed per-CPU area.
        Merged = "merged",
        /// In one per-CPU area, written in one loop.
        Uninit = "uninit",
        /// In constructed slab objects.
        Ctor = "ctor",
        /// In one per-CPU area, written where it is used.
        Lazy = "lazy",
        /// In constructed objects, a pool for each mm_group CPUs.
        Grouped = "grouped",
        /// Plain until there is a second thread.
        Single = "single",
        /// By concurrency id, in constructed slab objects.
        Best = "best",
    }
}

kparam::choices! {
    /// On which lists address spaces are.
    pub enum MmListsWord {
        /// One for all.
        Global = "global",
        /// One per CPU.
        PerCpu = "percpu",
        /// One per CPU, kept with constructed objects.
        Cached = "cached",
    }
}

kparam::params! {
    /// What the boot line can say.
    pub struct BootParams {
        /// The program to run as process 1; what follows `--` are its arguments.
        init: Option<Text<256>> = None,
        /// Run a benchmark and end with its verdict.
        bench: Option<BenchWord> = None,
        /// Operations of a benchmark, over all workers.
        ops: Option<u64> = None,
        /// Cycles for which a benchmark runs, in place of a number of operations.
        window: Option<u64> = None,
        /// Cycles before the window, which do not count; default: a quarter of it.
        ramp: Option<u64> = None,
        /// Workers of a benchmark; default: one per CPU.
        workers: Option<u64> = None,
        /// Where a benchmark's workers run.
        place: Place = Place::Pinned,
        /// Who frees what (bench=slab).
        slab_pattern: SlabPattern = SlabPattern::Same,
        /// Objects that a worker holds at its peak (bench=slab).
        slab_cached: u64 = 32,
        /// The allocator (bench=peers).
        peer: Peer = Peer::Slab,
        /// Bytes of an object (bench=peers): 8 to 4096.
        peer_size: u64 = 256,
        /// The operation (bench=mm).
        mm_op: MmOp = MmOp::Fork,
        /// What is done (bench=percpu).
        percpu_op: PercpuOp = PercpuOp::Zeroed,
        /// Mappings of the file beside those that are measured (bench=rmap, mmap: 0; execl: 6000).
        mappings: Option<u64> = None,
        /// What is done (bench=mmap).
        mmap_op: MmapOp = MmapOp::Map,
        /// Whose file is mapped (bench=mmap).
        mmap_of: MmapOf = MmapOf::Shared,
        /// Write to what is mapped (bench=mmap).
        mmap_touch: Switch = Switch::Off,
        /// What walks over the file beside the mappers (bench=mmap, execl).
        walk: WalkWord = WalkWord::None,
        /// Cycles from one walk's start to the next one's, at least.
        period: u64 = 1_000_000,
        /// Subject of the lock laboratory (bench=locks).
        lock: LockWord = LockWord::All,
        /// Of a hundred operations on a reader-writer lock, how many read.
        readers: u64 = 90,
        /// Count cycles by phase.
        phases: Switch = Switch::Off,
        /// Count acquisitions, waiting and holding by lock class.
        lockstat: Switch = Switch::Off,
        /// Check the order of locks, and where they are taken.
        lockdep: Switch = Switch::Off,
        /// Caches with red zones, poison and tracks: on, or names separated by commas.
        slab_debug: Option<Text<128>> = None,
        /// Where slabs with destructors are reclaimed.
        slab_reclaim: ReclaimWord = ReclaimWord::Inline,
        /// Make per-CPU areas for at least so many CPUs, whether they are there or not.
        possible: u64 = 0,
        /// How the counters and ids of an address space are kept.
        mm: MmWord = MmWord::Best,
        /// CPUs that share a pool (mm=grouped).
        mm_group: u64 = 8,
        /// On which lists address spaces are.
        mm_lists: MmListsWord = MmListsWord::Cached,
        /// Add all copies of the counters up at every end, also where the design needs no loop.
        mm_check: Switch = Switch::Off,
        /// Fail on purpose.
        test: Option<TestWord> = None,
        /// Be worse on purpose.
        plant: Option<PlantWord> = None,
        /// How pids are kept.
        pid: PidWord = PidWord::Idr,
        /// Pid namespaces that a benchmark nests below the first: 0 to 32.
        depth: u64 = 0,
        /// Pids that each worker of `bench=pid` keeps in use: 0 to 4096.
        live: u64 = 16,
        /// Processes that sleep while they are looked up or listed (bench=lookup, bench=proc).
        procs: Option<u64> = None,
        /// Processes that fork and reap while the others are listed (bench=proc).
        churn: u64 = 0,
        /// How a file finds its mappings.
        i_mmap: IMmapWord = IMmapWord::Global,
        /// Start at most this many CPUs.
        maxcpus: u64 = 512,
        /// Seconds without progress after which the machine is reported as hanging; 0: never.
        watchdog: u64 = 20,
        /// A line on the console for each program that a signal ends.
        print_fatal_signals: Switch = Switch::Off,
        /// Print every system call of every program, as strace does.
        strace: Switch = Switch::Off,
        /// Print results only.
        quiet: bool = false,
        /// Name of the machine, for the records.
        topology: Text<32> = Text::new(""),
        /// What a cycle means, for the records.
        mode: ModeWord = ModeWord::Metal,
    }
}

static PARAMS: spin::Once<BootParams> = spin::Once::new();

/// The words of this boot. After [`init`].
pub fn get() -> &'static BootParams {
    PARAMS.get().expect("the boot line is parsed")
}

/// Parses the boot line; on error prints what exists and ends the machine.
pub fn init(line: &str) {
    match kparam::parse::<BootParams>(line) {
        Ok(params) => {
            PARAMS.call_once(|| params);
        }
        Err(e) => {
            println!("boot line: {e}");
            crate::arch::exit_machine(0x23);
        }
    }
}
