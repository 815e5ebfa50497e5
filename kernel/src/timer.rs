//! Timers: threads that sleep until a time. One ordered list per CPU.
//!
//! A sleeper is linked on the CPU it runs on before its thread parks, and unlinked there before the call returns.
//!
//! Lock order: `timer_queue` (IRQs off); `unpark` is called inside it, which takes only run-queue locks.

use crate::arch::clock;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use ksync::arch::{ThreadPtr, local_irq_restore, local_irq_save, smp_processor_id};
use ksync::{NR_CPUS, SpinLock, lock_class};
use slab::{KArc, List};

struct Sleeper {
    deadline_ns: u64,
    thread: ThreadPtr,
    fired: AtomicBool,
}
slab::object!(Sleeper, "timer", links = 1);

struct Queue {
    /// In order of deadline.
    sleepers: List<Sleeper, 0>,
}

#[repr(align(64))]
struct CpuTimers {
    queue: SpinLock<Queue>,
    /// Deadline of the first; `u64::MAX`: none.
    first_ns: AtomicU64,
}

static TIMERS: [CpuTimers; NR_CPUS] = [const {
    CpuTimers {
        queue: SpinLock::new(
            Queue {
                sleepers: List::new(),
            },
            lock_class!("timer_queue"),
        ),
        first_ns: AtomicU64::new(u64::MAX),
    }
}; NR_CPUS];

impl CpuTimers {
    fn refresh(&self, queue: &Queue) {
        self.first_ns.store(
            queue
                .sleepers
                .iter()
                .next()
                .map_or(u64::MAX, |s| s.deadline_ns),
            Ordering::Relaxed,
        );
    }
}

/// Nanoseconds from `now_ns` until this CPU's first timer; `u64::MAX`: none. Preemption off.
#[inline]
pub fn next_delay_ns(now_ns: u64) -> u64 {
    match TIMERS[smp_processor_id()].first_ns.load(Ordering::Relaxed) {
        u64::MAX => u64::MAX,
        first => first.saturating_sub(now_ns).max(1),
    }
}

/// Wakes the sleepers of this CPU whose time has come. Timer interrupt.
pub fn expire(now_ns: u64) {
    let timers = &TIMERS[smp_processor_id()];
    if timers.first_ns.load(Ordering::Relaxed) > now_ns {
        return;
    }
    let mut queue = timers.queue.lock_irqsave();
    while let Some(first) = queue
        .sleepers
        .iter()
        .next()
        .filter(|s| s.deadline_ns <= now_ns)
        .cloned()
    {
        drop(queue.sleepers.remove(&first));
        first.fired.store(true, Ordering::Release);
        ksync::arch::unpark(first.thread);
    }
    timers.refresh(&queue);
}

/// Parks the running thread until it is unparked or the clock reads `deadline_ns`; false when the time is up. Without
/// memory for the timer it returns at once, as a spurious wake-up does.
pub fn park_until(deadline_ns: u64) -> bool {
    if clock::now_ns() >= deadline_ns {
        return false;
    }
    let Ok(sleeper) = KArc::new(Sleeper {
        deadline_ns,
        thread: ksync::arch::current(),
        fired: AtomicBool::new(false),
    }) else {
        crate::sched::yield_now();
        return true;
    };
    let flags = local_irq_save();
    let cpu = smp_processor_id();
    {
        let mut queue = TIMERS[cpu].queue.lock_irqsave();
        insert(&mut queue, sleeper.clone());
        TIMERS[cpu].refresh(&queue);
    }
    crate::sched::timer_added();
    local_irq_restore(flags);
    ksync::arch::park();
    let mut queue = TIMERS[cpu].queue.lock_irqsave();
    drop(queue.sleepers.remove(&sleeper));
    TIMERS[cpu].refresh(&queue);
    !sleeper.fired.load(Ordering::Acquire) && clock::now_ns() < deadline_ns
}

/// Keeps the list in order: linear, but from the back, where a new timer usually belongs.
fn insert(queue: &mut Queue, sleeper: KArc<Sleeper>) {
    let mut later = List::new();
    while let Some(last) = queue.sleepers.pop_back() {
        if last.deadline_ns <= sleeper.deadline_ns {
            let _ = queue.sleepers.push_back(last);
            break;
        }
        let _ = later.push_front(last);
    }
    let linked = queue.sleepers.push_back(sleeper).is_ok();
    debug_assert!(linked, "a new sleeper is in no list");
    queue.sleepers.append(&mut later);
}

/// Whether any thread sleeps until a time: the machine is then waiting, not hanging.
pub fn any_armed() -> bool {
    TIMERS
        .iter()
        .any(|t| t.first_ns.load(Ordering::Relaxed) != u64::MAX)
}
