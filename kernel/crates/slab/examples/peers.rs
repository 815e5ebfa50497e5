//! The slab beside allocators that others wrote, on the host: two threads, objects of one size.
//!
//! `cargo run --release -p slab --example peers`. Each thread takes some objects and gives them back, oldest first, over
//! and over. The others are general allocators of one heap, behind a spinlock as their own documentation has it. The
//! figure is the median of short rounds in which both threads ran at the same time and without a break, in nanoseconds
//! per object taken and given back; other rounds say what else the host had to do.

use buddy_system_allocator::Heap as Buddy;
use core::alloc::Layout;
use core::ptr::NonNull;
use linked_list_allocator::Heap as LinkedList;
use slab::{CacheFlags, Gfp, KmemCache};
use spin::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::time::{Duration, Instant};
use talc::{ErrOnOom, Span, Talc};

const THREADS: usize = 2;
/// Objects a thread holds.
const HELD: usize = 32;
/// Times that it takes and gives back all of them in a round.
const TURNS: usize = 10;
const ROUNDS: usize = 250;
/// Rounds that count, before the figure is their median; and how often the rounds are begun anew for that.
const ENOUGH: usize = 40;
const PATIENCE: usize = 200;
/// A turn that takes longer was interrupted.
const BREAK: Duration = Duration::from_micros(300);
const HEAP: usize = 4 << 20;

/// An allocator of objects of one layout.
trait Heap: Sync {
    fn alloc(&self) -> Option<NonNull<u8>>;
    /// # Safety
    /// `object` came from `alloc` and is given back once.
    unsafe fn free(&self, object: NonNull<u8>);
}

struct Slab(&'static KmemCache);
struct Locked<H>(Mutex<H>, Layout);

impl Heap for Slab {
    fn alloc(&self) -> Option<NonNull<u8>> {
        self.0.alloc(Gfp::empty()).ok()
    }
    unsafe fn free(&self, object: NonNull<u8>) {
        // SAFETY: the caller's promise.
        unsafe { self.0.free(object) }
    }
}

impl Heap for Locked<LinkedList> {
    fn alloc(&self) -> Option<NonNull<u8>> {
        self.0.lock().allocate_first_fit(self.1).ok()
    }
    unsafe fn free(&self, object: NonNull<u8>) {
        // SAFETY: the caller's promise.
        unsafe { self.0.lock().deallocate(object, self.1) }
    }
}

impl Heap for Locked<Buddy<32>> {
    fn alloc(&self) -> Option<NonNull<u8>> {
        self.0.lock().alloc(self.1).ok()
    }
    unsafe fn free(&self, object: NonNull<u8>) {
        // SAFETY: the caller's promise.
        unsafe { self.0.lock().dealloc(object, self.1) }
    }
}

impl Heap for Locked<Talc<ErrOnOom>> {
    fn alloc(&self) -> Option<NonNull<u8>> {
        // SAFETY: the layout is not empty.
        unsafe { self.0.lock().malloc(self.1).ok() }
    }
    unsafe fn free(&self, object: NonNull<u8>) {
        // SAFETY: the caller's promise.
        unsafe { self.0.lock().free(object, self.1) }
    }
}

/// Memory that stays.
fn memory() -> *mut u8 {
    Box::leak(vec![0u64; HEAP / 8].into_boxed_slice())
        .as_mut_ptr()
        .cast()
}

fn turn(heap: &impl Heap, held: &mut Vec<NonNull<u8>>) {
    for _ in 0..HELD {
        held.push(heap.alloc().expect("4 MiB are enough"));
    }
    for object in held.drain(..) {
        // SAFETY: allocated above.
        unsafe { heap.free(object) };
    }
}

/// A round of one thread: when it began and ended, and the longest turn.
struct Round {
    start: Instant,
    end: Instant,
    longest: Duration,
}

/// The rounds of one thread, which meets the other before each.
fn rounds(heap: &impl Heap, index: usize, arrived: &AtomicUsize) -> Vec<Round> {
    // Of different nodes, so that the emulation itself shares nothing.
    ksync::arch::host::set_cpu(index * (CPUS - 1));
    let mut held = Vec::with_capacity(HELD);
    let round = |nr| {
        arrived.fetch_add(1, AcqRel);
        while arrived.load(Acquire) < THREADS * (nr + 1) {
            core::hint::spin_loop();
        }
        // The emulated CPU is ours for the round, and not taken and given back for each object.
        let _cpu = ksync::PreemptGuard::new();
        let start = Instant::now();
        let (mut end, mut longest) = (start, Duration::ZERO);
        for _ in 0..TURNS {
            turn(heap, &mut held);
            let now = Instant::now();
            (longest, end) = (longest.max(now - end), now);
        }
        Round {
            start,
            end,
            longest,
        }
    };
    (0..ROUNDS).map(round).collect()
}

/// Nanoseconds per object in each round in which both threads ran without a break and at the same time.
fn good_rounds(heap: &impl Heap) -> Vec<f64> {
    let arrived = AtomicUsize::new(0);
    let all: Vec<Vec<Round>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|i| {
                let arrived = &arrived;
                scope.spawn(move || rounds(heap, i, arrived))
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let figure = |(a, b): (&Round, &Round)| {
        let both = a
            .end
            .min(b.end)
            .saturating_duration_since(a.start.max(b.start));
        let whole = a.end.max(b.end) - a.start.min(b.start);
        let good = a.longest.max(b.longest) < BREAK && both * 10 > whole * 8;
        good.then(|| whole.as_nanos() as f64 / (TURNS * HELD) as f64)
    };
    all[0].iter().zip(&all[1]).filter_map(figure).collect()
}

/// The median of such rounds, and how many there were.
fn measure(heap: &impl Heap) -> (f64, usize) {
    let mut good = Vec::new();
    for _ in 0..PATIENCE {
        good.append(&mut good_rounds(heap));
        if good.len() >= ENOUGH {
            break;
        }
    }
    good.sort_by(f64::total_cmp);
    (
        good.get(good.len() / 2).copied().unwrap_or(f64::NAN),
        good.len(),
    )
}

const CPUS: usize = 4;

fn main() {
    ksync::arch::set_nr_cpu_ids(CPUS);
    page_alloc::host::init(&[2048, 2048]);
    println!("nanoseconds per object taken and given back, {THREADS} threads (rounds that count)");
    println!("bytes            slab     linked-list           buddy            talc   best / slab");
    for size in [64, 256, 1024] {
        let layout = Layout::from_size_align(size, 8).expect("a small layout");
        let cache = KmemCache::create("peer", size, 8, None, None, CacheFlags::empty());
        let slab = measure(&Slab(cache.expect("memory for a cache")));
        let mut list = LinkedList::empty();
        // SAFETY: the memory is this heap's alone, here and below.
        unsafe { list.init(memory(), HEAP) };
        let list = measure(&Locked(Mutex::new(list), layout));
        let mut buddy = Buddy::<32>::empty();
        // SAFETY: as above.
        unsafe { buddy.init(memory() as usize, HEAP) };
        let buddy = measure(&Locked(Mutex::new(buddy), layout));
        let (mut talc, at) = (Talc::new(ErrOnOom), memory());
        // SAFETY: as above.
        unsafe { talc.claim(Span::new(at, at.add(HEAP))) }.expect("room for its bookkeeping");
        let talc = measure(&Locked(Mutex::new(talc), layout));
        print!("{size:>5}");
        for (ns, rounds) in [slab, list, buddy, talc] {
            print!(" {ns:>8.1} ({rounds:>4})");
        }
        println!(" {:>13.1}", list.0.min(buddy.0).min(talc.0) / slab.0);
    }
}
