//! The designs: where the copies of the counters are, and what making and ending them costs.

use super::{BATCH, CHECK, MmKind, NR_COUNTERS, SetUp, Shell, Slot, running};
use crate::MmError;
use crate::planted;
use core::alloc::Layout;
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicIsize, AtomicU32, Ordering::*};
use ksync::{PreemptGuard, arch};
use page_alloc::Gfp;
use percpu::Zero;
use slab::{KmemCache, class_cache};

const AREA: Layout = Layout::new::<Slot>();
/// `separate`: the counters' area and the ids'.
const RSS_AREA: Layout = Layout::new::<[AtomicI32; NR_COUNTERS]>();
const CID_AREA: Layout = Layout::new::<[AtomicU32; 2]>();

/// Adds to a copy that nobody else writes.
#[inline(always)]
fn plain_add(to: &AtomicIsize, n: isize) {
    to.store(to.load(Relaxed) + n, Relaxed);
}

impl Shell {
    /// A CPU's copy, where there is an area. The counters are at its start in every design.
    #[inline(always)]
    fn slot(&self, cpu: usize) -> &Slot {
        // SAFETY: the area lives as long as the shell has it; all fields are atomics. With `separate` only `rss` is
        // looked at.
        unsafe { &*((arch::percpu_base(cpu) + self.area.load(Acquire)) as *const Slot) }
    }

    #[inline(always)]
    fn this_slot(&self, _preempt_off: &PreemptGuard) -> &Slot {
        // SAFETY: as above.
        unsafe { &*((arch::this_cpu_base() + self.area.load(Acquire)) as *const Slot) }
    }

    /// Adds to this CPU's copy; a full batch moves to the shared count.
    #[inline(always)]
    fn add_slot(&self, slot: &Slot, kind: usize, n: isize) {
        let delta = &slot.rss[kind];
        let new = delta.load(Relaxed) as isize + n;
        if new.unsigned_abs() < BATCH as usize {
            delta.store(new as i32, Relaxed);
        } else {
            self.shared[kind].fetch_add(new, Relaxed);
            delta.store(0, Relaxed);
        }
    }

    /// The sum over the copies of `cpus`, and what is shared.
    fn sum_slots(&self, kind: usize, cpus: impl Iterator<Item = usize>) -> isize {
        let deltas: isize = cpus
            .map(|cpu| self.slot(cpu).rss[kind].load(Relaxed) as isize)
            .sum();
        self.shared[kind].load(Relaxed) + deltas
    }

    /// All counters in one pass over the copies of `cpus`; true if each sum is zero.
    fn all_zero(&self, cpus: impl Iterator<Item = usize>) -> bool {
        let mut sums: [isize; NR_COUNTERS] = core::array::from_fn(|k| self.shared[k].load(Relaxed));
        for cpu in cpus {
            let slot = self.slot(cpu);
            for (sum, delta) in sums.iter_mut().zip(&slot.rss) {
                *sum += delta.load(Relaxed) as isize;
            }
        }
        sums == [0; NR_COUNTERS]
    }

    fn free_area(&self, layout: Layout) {
        let area = self.area.swap(0, Relaxed);
        if area != 0 {
            // SAFETY: allocated with this layout, and nobody uses the address space any more.
            unsafe { percpu::free(area, layout.size()) };
        }
    }

    fn recent(&self) -> &AtomicU32 {
        &self.this_slot(&PreemptGuard::new()).recent_cid
    }
}

fn all_cpus() -> core::ops::Range<usize> {
    0..arch::nr_cpu_ids()
}

/// The four sums of `separate` and `merged`, a loop each.
fn four_sums(shell: &Shell) -> bool {
    (0..NR_COUNTERS).all(|kind| shell.sum_slots(kind, all_cpus()) == 0)
}

/// Ids that this CPU had last, kept in the slot.
macro_rules! recent_in_slot {
    () => {
        #[inline(always)]
        fn recent_cid(shell: &Shell) -> Option<usize> {
            (shell.recent().load(Relaxed) as usize).checked_sub(1)
        }
        #[inline(always)]
        fn note_cid(shell: &Shell, cid: usize) {
            shell.recent().store(cid as u32 + 1, Relaxed);
        }
    };
}

/// Counting by CPU, where every copy is written from the start.
macro_rules! by_cpu {
    () => {
        #[inline(always)]
        fn add(shell: &Shell, kind: usize, n: isize) {
            let guard = PreemptGuard::new();
            shell.add_slot(shell.this_slot(&guard), kind, n);
        }
        fn sum(shell: &Shell, kind: usize) -> isize {
            shell.sum_slots(kind, all_cpus())
        }
    };
}

/// As Linux does.
pub(super) struct Separate;

impl Separate {
    fn cid_slot(shell: &Shell, cpu: usize) -> &[AtomicU32; 2] {
        // SAFETY: the area of ids lives as long as the shell.
        unsafe { &*((arch::percpu_base(cpu) + shell.cid_area) as *const [AtomicU32; 2]) }
    }
}

impl SetUp for Separate {
    fn make(shell: &mut Shell) -> Result<(), MmError> {
        let rss = percpu::alloc(RSS_AREA, Zero::Yes)?;
        let cids = percpu::alloc(CID_AREA, Zero::Yes);
        let Ok(cids) = cids else {
            // SAFETY: allocated above.
            unsafe { percpu::free(rss, RSS_AREA.size()) };
            return Err(MmError::NoMemory);
        };
        shell.area.store(rss, Relaxed);
        shell.cid_area = cids;
        for cpu in all_cpus() {
            // No id yet.
            Self::cid_slot(shell, cpu)
                .iter()
                .for_each(|word| word.store(0, Relaxed));
        }
        Ok(())
    }
    fn unmake(shell: &mut Shell) {
        shell.free_area(RSS_AREA);
        // SAFETY: allocated by `make`; nobody uses it.
        unsafe { percpu::free(shell.cid_area, CID_AREA.size()) };
    }
    by_cpu!();
    fn retire(shell: &Shell) -> bool {
        four_sums(shell)
    }
    #[inline(always)]
    fn recent_cid(shell: &Shell) -> Option<usize> {
        (Self::cid_slot(shell, arch::smp_processor_id())[0].load(Relaxed) as usize).checked_sub(1)
    }
    #[inline(always)]
    fn note_cid(shell: &Shell, cid: usize) {
        Self::cid_slot(shell, arch::smp_processor_id())[0].store(cid as u32 + 1, Relaxed);
    }
}

/// One zeroed area.
pub(super) struct Merged;

impl SetUp for Merged {
    fn make(shell: &mut Shell) -> Result<(), MmError> {
        shell.area.store(percpu::alloc(AREA, Zero::Yes)?, Relaxed);
        Ok(())
    }
    fn unmake(shell: &mut Shell) {
        shell.free_area(AREA);
    }
    by_cpu!();
    fn retire(shell: &Shell) -> bool {
        four_sums(shell)
    }
    recent_in_slot!();
}

/// One area, one loop at either end.
pub(super) struct Uninit;

impl Slot {
    /// All zero, in three stores: atomic ones would be six. Nobody else may use the slot.
    fn reset(&self) {
        const _: () = assert!(size_of::<Slot>() == 24);
        let words = core::ptr::from_ref(self).cast_mut().cast::<[u64; 3]>();
        // SAFETY: all of the slot is atomics, which may be written through a shared reference, and by the caller nobody
        // else reads or writes them now. Its area is aligned for no more than a slot.
        unsafe { words.write_unaligned([0; 3]) };
    }
}

impl SetUp for Uninit {
    fn make(shell: &mut Shell) -> Result<(), MmError> {
        shell.area.store(percpu::alloc(AREA, Zero::No)?, Relaxed);
        all_cpus().for_each(|cpu| shell.slot(cpu).reset());
        Ok(())
    }
    fn unmake(shell: &mut Shell) {
        shell.free_area(AREA);
    }
    by_cpu!();
    fn retire(shell: &Shell) -> bool {
        shell.all_zero(all_cpus())
    }
    recent_in_slot!();
}

/// What `ctor` and `grouped` have in common: the area is made with the shell, and kept with it. The sums of a free shell
/// are zero, so it needs no new start; single copies may be anything.
pub(super) struct Ctor;

impl SetUp for Ctor {
    fn make(shell: &mut Shell) -> Result<(), MmError> {
        Merged::make(shell)
    }
    fn unmake(shell: &mut Shell) {
        shell.free_area(AREA);
    }
    by_cpu!();
    fn retire(shell: &Shell) -> bool {
        !CHECK.load(Relaxed) || shell.all_zero(all_cpus())
    }
    recent_in_slot!();
}

/// A copy is written when its CPU first uses it.
pub(super) struct Lazy;

impl Lazy {
    /// This CPU's copy, written at first use. Others look at it only once they see its bit.
    #[inline(always)]
    fn slot<'a>(shell: &'a Shell, guard: &'a PreemptGuard) -> &'a Slot {
        let slot = shell.this_slot(guard);
        if !shell.present.test(arch::smp_processor_id()) {
            Self::first_use(shell, slot);
        }
        slot
    }

    #[cold]
    fn first_use(shell: &Shell, slot: &Slot) {
        let cpu = arch::smp_processor_id();
        if planted("present before it is written") {
            shell.present.set(cpu);
            arch::interleave();
        }
        slot.reset();
        // A full barrier: whoever sees the bit sees the zeroes.
        shell.present.set(cpu);
    }
}

impl SetUp for Lazy {
    fn make(shell: &mut Shell) -> Result<(), MmError> {
        shell.area.store(percpu::alloc(AREA, Zero::No)?, Relaxed);
        Ok(())
    }
    fn unmake(shell: &mut Shell) {
        shell.free_area(AREA);
    }
    #[inline(always)]
    fn add(shell: &Shell, kind: usize, n: isize) {
        let guard = PreemptGuard::new();
        shell.add_slot(Self::slot(shell, &guard), kind, n);
    }
    fn sum(shell: &Shell, kind: usize) -> isize {
        shell.sum_slots(kind, shell.present.iter())
    }
    fn retire(shell: &Shell) -> bool {
        shell.all_zero(shell.present.iter())
    }
    #[inline(always)]
    fn recent_cid(shell: &Shell) -> Option<usize> {
        let guard = PreemptGuard::new();
        (Self::slot(shell, &guard).recent_cid.load(Relaxed) as usize).checked_sub(1)
    }
    #[inline(always)]
    fn note_cid(shell: &Shell, cid: usize) {
        let guard = PreemptGuard::new();
        Self::slot(shell, &guard)
            .recent_cid
            .store(cid as u32 + 1, Relaxed);
    }
}

/// Whether this CPU runs the address space: whatever it counts is the running thread's.
#[inline(always)]
fn is_local(shell: &Shell, guard: &PreemptGuard) -> bool {
    ptr::eq(running(guard).shell.load(Relaxed), shell)
}

/// Plain counters of the one thread, and atomics for those that look in from outside. The second thread brings an area;
/// what was counted before stays where it is, and is part of the sum.
pub(super) struct Single;

impl Single {
    /// The one thread is about to make another.
    pub fn convert(shell: &Shell) -> Result<(), MmError> {
        if shell.area.load(Relaxed) != 0 {
            return Ok(());
        }
        let area = percpu::alloc(AREA, Zero::Yes)?;
        if planted("conversion moves the counts") {
            for kind in 0..NR_COUNTERS {
                let all = shell.shared[kind].load(Relaxed) + shell.local[kind].swap(0, Relaxed);
                arch::interleave();
                shell.shared[kind].store(all, Relaxed);
            }
        }
        // Only the one thread converts, so nobody else can have. Release: the zeroes come before.
        shell.area.store(area, Release);
        Ok(())
    }
}

impl SetUp for Single {
    fn make(_shell: &mut Shell) -> Result<(), MmError> {
        Ok(())
    }
    fn unmake(shell: &mut Shell) {
        shell.free_area(AREA);
    }
    #[inline(always)]
    fn add(shell: &Shell, kind: usize, n: isize) {
        let guard = PreemptGuard::new();
        if shell.area.load(Acquire) != 0 {
            shell.add_slot(shell.this_slot(&guard), kind, n);
        } else if is_local(shell, &guard) || planted("everybody is the one thread") {
            let old = shell.local[kind].load(Relaxed);
            arch::interleave();
            shell.local[kind].store(old + n, Relaxed);
        } else {
            shell.shared[kind].fetch_add(n, Relaxed);
        }
    }
    fn sum(shell: &Shell, kind: usize) -> isize {
        let cpus = if shell.area.load(Acquire) == 0 {
            0..0
        } else {
            all_cpus()
        };
        shell.local[kind].load(Relaxed) + shell.sum_slots(kind, cpus)
    }
    fn retire(shell: &Shell) -> bool {
        (0..NR_COUNTERS).all(|kind| Self::sum(shell, kind) == 0)
    }
}

/// A copy of the counters, on a line of its own.
#[repr(C, align(64))]
struct Copy([AtomicIsize; NR_COUNTERS]);

/// Copies for a run of ids; how many is given by the chunk's number.
pub(super) struct Copies(Copy);

/// Chunk 0 is for ids 1 to 7, chunk 1 to 63, chunk 2 to 511.
pub(super) const NR_CHUNKS: usize = 3;
const FIRST_ID: [usize; NR_CHUNKS + 1] = [1, 8, 64, 512];
const _: () = assert!(ksync::NR_CPUS <= FIRST_ID[NR_CHUNKS]);

/// Copies by concurrency id. Id 0's is in the shell; a chunk comes when one of its ids first counts something.
pub(super) struct Best;

impl Best {
    const fn chunk_of(cid: usize) -> usize {
        match cid {
            ..8 => 0,
            8..64 => 1,
            _ => 2,
        }
    }

    const fn layout(chunk: usize) -> Layout {
        match Layout::array::<Copy>(FIRST_ID[chunk + 1] - FIRST_ID[chunk]) {
            Ok(layout) => layout,
            Err(_) => unreachable!(),
        }
    }

    /// The cache that chunks of a number come from; the largest takes whole pages.
    const fn cache(chunk: usize) -> Option<&'static KmemCache> {
        class_cache(Self::layout(chunk).size(), 64)
    }

    /// The copy of an id that is not 0; None if it cannot be had.
    fn copy(shell: &Shell, cid: usize) -> Option<&Copy> {
        let chunk = Self::chunk_of(cid);
        let mut at = shell.chunks[chunk].load(Acquire);
        if at.is_null() {
            at = Self::make_chunk(shell, chunk)?;
        }
        // SAFETY: a chunk has a copy for each of its ids, and stays until the shell is retired.
        Some(unsafe { &(*at.add(cid - FIRST_ID[chunk])).0 })
    }

    #[cold]
    fn make_chunk(shell: &Shell, chunk: usize) -> Option<*mut Copies> {
        let gfp = Gfp::ZERO | Gfp::NOFAULT_INJECT;
        let fresh: *mut Copies = match Self::cache(chunk) {
            Some(cache) => cache.alloc(gfp).ok()?.as_ptr().cast(),
            None => page_alloc::alloc_pages(Self::order(chunk), gfp)
                .ok()?
                .virt()
                .cast(),
        };
        let before = shell.chunks[chunk].compare_exchange(ptr::null_mut(), fresh, AcqRel, Acquire);
        match before {
            Ok(_) => Some(fresh),
            Err(other) => {
                Self::free_chunk(chunk, fresh);
                Some(other)
            }
        }
    }

    const fn order(chunk: usize) -> u32 {
        Self::layout(chunk)
            .size()
            .div_ceil(ksync::PAGE_SIZE)
            .next_power_of_two()
            .trailing_zeros()
    }

    fn free_chunk(chunk: usize, at: *mut Copies) {
        match (Self::cache(chunk), ptr::NonNull::new(at)) {
            // SAFETY: `make_chunk` took it from there, and nobody uses it any more.
            (Some(cache), Some(at)) => unsafe { cache.free(at.cast()) },
            _ => page_alloc::free_pages(page_alloc::PageRef::from_virt(at.cast())),
        }
    }

    /// Calls `f` with every copy of the chunks that exist.
    fn for_each_copy(shell: &Shell, mut f: impl FnMut(&Copy)) {
        for (chunk, at) in shell.chunks.iter().enumerate() {
            let at = at.load(Acquire);
            if !at.is_null() {
                for i in 0..FIRST_ID[chunk + 1] - FIRST_ID[chunk] {
                    // SAFETY: as in `copy`.
                    f(unsafe { &(*at.add(i)).0 });
                }
            }
        }
    }
}

impl SetUp for Best {
    fn make(_shell: &mut Shell) -> Result<(), MmError> {
        Ok(())
    }
    fn unmake(_shell: &mut Shell) {}
    #[inline(always)]
    fn add(shell: &Shell, kind: usize, n: isize) {
        let guard = PreemptGuard::new();
        let cid = running(&guard).cid.load(Relaxed) as usize;
        if !is_local(shell, &guard) && !planted("everybody has the same id") {
            shell.shared[kind].fetch_add(n, Relaxed);
        } else if cid == 0 {
            let old = shell.local[kind].load(Relaxed);
            arch::interleave();
            shell.local[kind].store(old + n, Relaxed);
        } else {
            match Self::copy(shell, cid) {
                Some(copy) => plain_add(&copy.0[kind], n),
                None => _ = shell.shared[kind].fetch_add(n, Relaxed),
            }
        }
    }
    fn sum(shell: &Shell, kind: usize) -> isize {
        let mut sum = shell.shared[kind].load(Relaxed) + shell.local[kind].load(Relaxed);
        Self::for_each_copy(shell, |copy| sum += copy.0[kind].load(Relaxed));
        sum
    }
    /// Chunks go; what they counted moves to the shared counts, so that the next address space starts from zero sums.
    fn retire(shell: &Shell) -> bool {
        Self::for_each_copy(shell, |copy| {
            for (shared, count) in shell.shared.iter().zip(&copy.0) {
                plain_add(shared, count.load(Relaxed));
            }
        });
        for (chunk, at) in shell.chunks.iter().enumerate() {
            let at = at.load(Relaxed);
            if !at.is_null() {
                shell.chunks[chunk].store(ptr::null_mut(), Relaxed);
                Self::free_chunk(chunk, at);
            }
        }
        shell
            .shared
            .iter()
            .zip(&shell.local)
            .all(|(s, l)| s.load(Relaxed) + l.load(Relaxed) == 0)
    }
}

const _: () = assert!(MmKind::ALL.len() == 8);
