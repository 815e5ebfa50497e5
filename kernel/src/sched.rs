//! The scheduler's mechanics: switching threads, parking and waking them, the tick, idling. Policy is in the `sched`
//! crate.
//!
//! Each CPU has a [`Cpu`] in memory of its node, reached through `CpuHead::slots`. The reference that keeps a thread
//! alive while it can run is owned by exactly one place: a run queue, "running here" (the current thread, as a raw
//! reference), or "parked" (raw too, taken up by the waker that wins [`Wake::Enqueue`]).
//!
//! # Lock order
//! `rq_lock` is taken with IRQs off and nothing is taken inside it.
//!
//! # Invariants
//! - INV-SWITCH-1: from the moment a thread is picked until its registers are saved, `on_cpu` is true, and only this
//!   CPU touches its stack.
//! - INV-SWITCH-2: a dead thread's stack is freed by the thread that runs next on that CPU, in [`finish_switch`].
//! - INV-SWITCH-3: a CPU is in an address space's mask exactly while CR3 holds that address space. Kernel threads and
//!   idle use the kernel's own page tables, so no CPU lingers in a dead address space.

use crate::arch::{self, apic, clock, paging, smp, thread};
use crate::timer;
use ::sched::{Entity, IdleMask, RunQueue, Schedulable, TIME_SLICE_NS, Wake};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering, Ordering::Relaxed, fence,
};
use ksync::arch::{cpu_head, local_irq_restore, local_irq_save, smp_processor_id, this_cpu_head};
use ksync::{NR_CPUS, rcu};
use slab::KArc;
use task::Task;

/// One CPU's scheduling state. Written by its CPU but for the queue and the flags that wakers set.
#[repr(C, align(64))]
pub struct Cpu {
    queue: RunQueue<Task>,
    /// The thread that was switched away from, for [`finish_switch`].
    prev: AtomicPtr<Task>,
    /// What [`finish_switch`] does with `prev`: an [`After`].
    prev_after: AtomicU32,
    idle: AtomicPtr<Task>,
    /// The timer will fire for the tick or for RCU.
    tick_armed: AtomicBool,
    slice_end_ns: AtomicU64,
    nr_switches: AtomicU64,
}

/// What becomes of a thread once its registers are saved.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum After {
    /// It is parked, or queued here.
    Nothing,
    /// It will never run again: free its stack and drop the scheduler's reference.
    Free,
    /// It may not run here any more: queue it where it may.
    Migrate,
}

/// Slot of `CpuHead::slots` that points to this CPU's [`Cpu`].
const SLOT: usize = 4;
/// A busy CPU looks at its queue at least this often, in nanoseconds.
const TICK_NS: u64 = 4_000_000;

static IDLE: IdleMask = IdleMask::new();
/// CPUs in order of node, and where each node's begin, for stealing.
static NEAR: spin::Once<Near> = spin::Once::new();

struct Near {
    order: [u16; NR_CPUS],
    nr: usize,
}

#[inline(always)]
fn this_cpu() -> &'static Cpu {
    // SAFETY: the slot was filled before this CPU's first thread ran and is never changed.
    unsafe { &*(this_cpu_head().slots[SLOT].load(Relaxed) as *const Cpu) }
}

#[inline]
fn cpu_of(cpu: usize) -> &'static Cpu {
    // SAFETY: as above; `cpu` is a possible CPU.
    unsafe { &*(cpu_head(cpu).slots[SLOT].load(Relaxed) as *const Cpu) }
}

/// The running thread, for as long as the caller runs as it.
#[inline(always)]
pub fn current_ref() -> &'static Task {
    // SAFETY: `current` is a live thread while it runs, and the caller is that thread.
    unsafe { &*ksync::arch::current().0.cast::<Task>() }
}

/// A reference to the running thread.
#[inline]
pub fn current() -> KArc<Task> {
    // SAFETY: the running thread is kept alive by the scheduler's reference.
    unsafe { KArc::clone_raw(NonNull::from(current_ref())) }
}

/// Makes every CPU's [`Cpu`] and idle thread. Boot CPU, before any thread but the boot thread exists.
pub fn init(nr_cpus: usize, mut idle_task: impl FnMut(usize) -> KArc<Task>) {
    const { assert!(size_of::<Cpu>() <= 4096) };
    for cpu in 0..nr_cpus {
        let node = ksync::arch::cpu_to_node(cpu);
        let page = page_alloc::alloc_pages_node(node, 0, page_alloc::Gfp::ZERO)
            .expect("memory for run queues");
        let at = page.virt().cast::<Cpu>();
        let idle = KArc::into_raw(idle_task(cpu)).as_ptr();
        // SAFETY: the page is ours and never freed.
        unsafe {
            (*idle).entity().set_on_cpu(true);
            at.write(Cpu {
                queue: RunQueue::new(),
                prev: AtomicPtr::new(core::ptr::null_mut()),
                prev_after: AtomicU32::new(After::Nothing as u32),
                idle: AtomicPtr::new(idle),
                tick_armed: AtomicBool::new(false),
                slice_end_ns: AtomicU64::new(0),
                nr_switches: AtomicU64::new(0),
            });
        }
        let head = cpu_head(cpu);
        head.slots[SLOT].store(at as usize, Relaxed);
        head.current.store(idle as usize, Relaxed);
    }
    NEAR.call_once(|| {
        let mut near = Near {
            order: [0; NR_CPUS],
            nr: nr_cpus,
        };
        let mut cpus: alloc::vec::Vec<usize> = (0..nr_cpus).collect();
        cpus.sort_by_key(|&c| ksync::arch::cpu_to_node(c));
        for (slot, cpu) in near.order.iter_mut().zip(cpus) {
            *slot = cpu as u16;
        }
        near
    });
}

/// Blocks the running thread until [`unpark`]; see `ksync::arch::hooks::Machine::park`.
#[inline]
pub fn park() {
    let me = current_ref();
    if me.entity.take_token() {
        return;
    }
    let flags = local_irq_save();
    if me.entity.try_park() {
        // The reference that ran us stays raw until a waker takes it up.
        switch_away(me, None, After::Nothing);
    }
    local_irq_restore(flags);
    run_callbacks();
}

/// RCU callbacks that became ready meanwhile. Thread context, nothing held.
#[inline(always)]
pub fn run_callbacks() {
    if rcu::callbacks_ready() && !ksync::arch::irqs_disabled() && ksync::arch::preempt_count() == 0
    {
        rcu::process_callbacks();
    }
}

/// Wakes a thread by its handle, a `&Task`; see `ksync::arch::hooks::Machine::unpark`.
#[inline]
pub fn unpark(thread: *mut ()) {
    // SAFETY: the caller guarantees that the thread is not freed yet (it waits, or an RCU section is held).
    let task = unsafe { &*thread.cast::<Task>() };
    if task.entity.wake() == Wake::Enqueue {
        wake_parked(task);
    }
}

#[inline]
fn wake_parked(task: &Task) {
    // INV-SCHED-3: the sleeper may still be on its way out.
    while task.entity.on_cpu() {
        ksync::arch::cpu_relax();
    }
    task.entity.spend_token();
    // SAFETY: Wake::Enqueue made the parked reference ours.
    let task = unsafe { KArc::from_raw(NonNull::from(task)) };
    let cpu = place_woken(&task.entity);
    enqueue_on(cpu, task);
}

/// Where a woken thread goes: where it was if that CPU idles, else an idle CPU near, else where it was.
#[inline]
fn place_woken(entity: &Entity) -> usize {
    let prev = entity.cpu();
    if smp::nr_online() == 1 {
        return prev;
    }
    if entity.may_run_on(prev) {
        return IDLE
            .claim_near(prev, |c| entity.may_run_on(c))
            .unwrap_or(prev);
    }
    allowed_cpu(entity, prev)
}

#[cold]
fn allowed_cpu(entity: &Entity, near: usize) -> usize {
    let near = IDLE.claim_near(near, |c| entity.may_run_on(c));
    near.unwrap_or_else(|| {
        entity
            .allowed
            .iter()
            .find(|&c| c < smp::nr_online())
            .unwrap_or(0)
    })
}

/// Queues a thread on `cpu` and makes that CPU look.
#[inline]
fn enqueue_on(cpu: usize, task: KArc<Task>) {
    task.entity.set_cpu(cpu);
    let there = cpu_of(cpu);
    there.queue.enqueue(task);
    let me = smp_processor_id();
    if cpu == me {
        if is_idle() {
            this_cpu_head().need_resched.store(1, Relaxed);
        }
        return;
    }
    // The queue's count before the look at the idle mark; pairs with the idle loop, which marks and then looks.
    fence(Ordering::SeqCst);
    if cpu_head(cpu).current.load(Relaxed) == there.idle.load(Relaxed) as usize {
        IDLE.claim(cpu);
        apic::send_ipi(smp::apic_id_of(cpu), apic::vector::RESCHEDULE);
    }
}

/// Makes a new thread runnable: on an idle CPU of this node, else here, else where it may run.
pub fn wake_up_new(task: KArc<Task>) {
    let flags = local_irq_save();
    let me = smp_processor_id();
    let entity = &task.entity;
    let cpu = if smp::nr_online() == 1 {
        0
    } else if entity.may_run_on(me) {
        IDLE.claim_near(me, |c| entity.may_run_on(c)).unwrap_or(me)
    } else {
        allowed_cpu(entity, me)
    };
    enqueue_on(cpu, task);
    local_irq_restore(flags);
}

/// The CPU on which a new thread's memory should be.
pub fn likely_cpu() -> usize {
    smp_processor_id()
}

/// Lets others run if any wait; the running thread stays runnable. Preemption on; IRQs on or off.
pub fn schedule() {
    let flags = local_irq_save();
    let me = current_ref();
    this_cpu_head().need_resched.store(0, Relaxed);
    // SAFETY: the running thread's raw reference is this CPU's; it goes to the queue or stays with us.
    let mine = unsafe { KArc::from_raw(NonNull::from(me)) };
    if is_idle() {
        core::mem::forget(mine);
        IDLE.claim(smp_processor_id());
        if this_cpu().queue.nr_waiting() > 0 {
            switch_away(me, None, After::Nothing);
        }
    } else if me.entity.may_run_on(smp_processor_id()) {
        switch_away(me, Some(mine), After::Nothing);
    } else {
        core::mem::forget(mine);
        switch_away(me, None, After::Migrate);
    }
    local_irq_restore(flags);
}

/// `schedule` from a point where preemption was allowed all along.
pub fn preempt() {
    schedule();
}

/// Ends the running thread: never returns. Its stack is freed by whoever runs next.
pub fn exit_current() -> ! {
    let _ = local_irq_save();
    switch_away(current_ref(), None, After::Free);
    unreachable!("a dead thread ran again")
}

/// Switches from `me` to the best thread. `requeue` is `me`'s reference when it stays runnable. IRQs off.
fn switch_away(me: &Task, requeue: Option<KArc<Task>>, after: After) {
    let cpu = this_cpu();
    let keep = requeue.is_some();
    let next = match cpu.queue.rotate(requeue) {
        Some(next) => NonNull::as_ptr(KArc::into_raw(next)),
        None => {
            debug_assert!(!keep);
            cpu.idle.load(Relaxed)
        }
    };
    rcu::note_context_switch();
    if core::ptr::eq(next, me) {
        return;
    }
    let id = smp_processor_id();
    // SAFETY: `next` is a live thread whose reference is now this CPU's.
    let to = unsafe { &*next };
    to.entity.set_on_cpu(true);
    to.entity.set_cpu(id);
    account(cpu, me, to, next == cpu.idle.load(Relaxed));
    switch_mm(id, me, to);
    thread::switch_state(id, &me.arch, &to.arch);
    this_cpu_head().current.store(next as usize, Relaxed);
    cpu.prev.store((me as *const Task).cast_mut(), Relaxed);
    cpu.prev_after.store(after as u32, Relaxed);
    // SAFETY: INV-SWITCH-1; both stack pointers belong to their threads.
    unsafe { arch::entry::switch_context(me.arch.sp.as_ptr(), to.arch.sp.load(Relaxed)) };
    finish_switch();
    me.note_switched();
}

/// CPU time of the thread that stops, and the slice and tick of the one that starts.
#[inline]
fn account(cpu: &Cpu, from: &Task, to: &Task, to_idle: bool) {
    let now = clock::now_ns();
    from.entity.runtime_ns.store(
        from.entity.runtime_ns.load(Relaxed)
            + now.wrapping_sub(from.entity.stint_start_ns.load(Relaxed)),
        Relaxed,
    );
    to.entity.stint_start_ns.store(now, Relaxed);
    cpu.nr_switches
        .store(cpu.nr_switches.load(Relaxed) + 1, Relaxed);
    if !to_idle {
        cpu.slice_end_ns.store(now + TIME_SLICE_NS, Relaxed);
        if !cpu.tick_armed.load(Relaxed) {
            cpu.tick_armed.store(true, Relaxed);
            apic::timer_arm(timer::next_delay_ns(now).min(TICK_NS));
        }
    }
}

/// INV-SWITCH-3.
#[inline]
fn switch_mm(cpu: usize, from: &Task, to: &Task) {
    let (old, new) = (from.active_mm.load(Relaxed), to.active_mm.load(Relaxed));
    if old != new {
        load_mm(cpu, old, new);
    }
}

/// Loads address space `new` in place of `old`; 0 stands for the kernel's own tables. Preemption off.
pub fn load_mm(cpu: usize, old: usize, new: usize) {
    let root = if new == 0 {
        paging::kernel_pgd()
    } else {
        // SAFETY: a thread's `active_mm` is kept alive by its `mm`.
        let mm = unsafe { &*(new as *const mm::Mm) };
        mm.activate(cpu);
        mm.pgd_phys()
    };
    // SAFETY: as above, for both.
    let as_mm = |mm: usize| unsafe { (mm as *const mm::Mm).as_ref() };
    mm::switch_mm(as_mm(old), as_mm(new));
    // SAFETY: both roots map the kernel identically (INV-PAGING-1).
    unsafe { core::arch::asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
    if old != 0 {
        // SAFETY: as above; `from` has not dropped its reference yet.
        unsafe { &*(old as *const mm::Mm) }.deactivate(cpu);
    }
}

/// The first thing after a switch, on the new thread's stack. IRQs off.
#[inline]
fn finish_switch() {
    let cpu = this_cpu();
    let prev = cpu.prev.load(Relaxed);
    let after = cpu.prev_after.load(Relaxed);
    // SAFETY: `prev` is alive: parked, queued, or its reference is still ours to dispose of.
    let task = unsafe { &*prev };
    if after == After::Nothing as u32 {
        task.entity.set_on_cpu(false);
        return;
    }
    // SAFETY: its raw reference was left to us by the one `switch_away` that set `prev_after`.
    let reference = unsafe { KArc::from_raw(NonNull::from(task)) };
    if after == After::Free as u32 {
        // SAFETY: INV-SWITCH-2: it will never run again.
        unsafe { thread::free(&task.arch) };
        task.entity.set_on_cpu(false);
        drop(reference);
    } else {
        task.entity.set_on_cpu(false);
        let to = allowed_cpu(&task.entity, smp_processor_id());
        enqueue_on(to, reference);
    }
}

/// What a new thread runs first: the end of the switch that started it.
pub extern "C" fn schedule_tail() {
    finish_switch();
    x86_64::instructions::interrupts::enable();
    crate::process::new_thread_start(current_ref());
}

/// Whether this CPU runs its idle thread.
#[inline]
pub fn is_idle() -> bool {
    this_cpu_head().current.load(Relaxed) == this_cpu().idle.load(Relaxed) as usize
}

/// The reschedule interrupt: the work is done on the way out.
pub fn reschedule_ipi() {
    this_cpu_head().need_resched.store(1, Relaxed);
}

/// The timer interrupt: expired timers, the slice's end, RCU, and the next shot.
pub fn timer_interrupt(quiescent: bool) {
    let cpu = this_cpu();
    let now = clock::now_ns();
    timer::expire(now);
    rcu::tick(quiescent);
    cpu.tick_armed.store(false, Relaxed);
    if !is_idle() {
        if cpu.queue.nr_waiting() > 0 {
            if now >= cpu.slice_end_ns.load(Relaxed) {
                this_cpu_head().need_resched.store(1, Relaxed);
            }
            offer_work(cpu);
        }
        cpu.tick_armed.store(true, Relaxed);
        apic::timer_arm(timer::next_delay_ns(now).min(TICK_NS));
    } else {
        this_cpu_head().need_resched.store(1, Relaxed); // the idle loop decides
    }
    crate::watchdog::tick(now);
}

/// Wakes an idle CPU to steal what waits here.
#[cold]
fn offer_work(_cpu: &Cpu) {
    if let Some(idle) = IDLE.claim_near(smp_processor_id(), |_| true) {
        apic::send_ipi(smp::apic_id_of(idle), apic::vector::RESCHEDULE);
    }
}

/// Arms the timer for a timer of this CPU that was just added.
pub fn timer_added() {
    let flags = local_irq_save();
    let now = clock::now_ns();
    let delay = timer::next_delay_ns(now);
    let bound = if this_cpu().tick_armed.load(Relaxed) {
        TICK_NS
    } else {
        u64::MAX
    };
    apic::timer_arm(delay.min(bound));
    local_irq_restore(flags);
}

/// Takes a waiting thread from another CPU, near ones first.
fn steal(me: usize) -> bool {
    let near = NEAR.get().expect("the scheduler is set up");
    let start = near.order[..near.nr]
        .iter()
        .position(|&c| c as usize == me)
        .unwrap_or(0);
    for i in 1..near.nr {
        let victim = near.order[(start + i) % near.nr] as usize;
        if let Some(task) = cpu_of(victim).queue.steal(me) {
            task.entity.set_cpu(me);
            this_cpu().queue.enqueue(task);
            return true;
        }
    }
    false
}

/// What a CPU does when it has nothing to do. Entered once per CPU, as its idle thread; never returns.
pub fn run_idle_loop(cpu: usize) -> ! {
    let here = this_cpu();
    loop {
        x86_64::instructions::interrupts::enable();
        rcu::process_callbacks();
        x86_64::instructions::interrupts::disable();
        IDLE.set(cpu);
        fence(Ordering::SeqCst);
        if here.queue.nr_waiting() > 0 || steal(cpu) {
            IDLE.claim(cpu);
            schedule();
            continue;
        }
        this_cpu_head().need_resched.store(0, Relaxed);
        let bound = crate::watchdog::idle_bound_ns(cpu);
        let delay = timer::next_delay_ns(clock::now_ns());
        if crate::numasim::is_on() && delay != u64::MAX {
            wait_for_timer(cpu);
            continue;
        }
        match delay.min(bound) {
            u64::MAX => apic::timer_disarm(),
            delay => apic::timer_arm(delay),
        }
        here.tick_armed.store(false, Relaxed);
        if rcu::idle_enter() {
            x86_64::instructions::interrupts::enable_and_hlt();
            x86_64::instructions::interrupts::disable();
        }
        rcu::idle_exit();
        IDLE.claim(cpu);
    }
}

/// In a simulation no timer interrupts: a CPU with sleepers looks at its clock instead of halting. IRQs are off.
#[cold]
fn wait_for_timer(cpu: usize) {
    x86_64::instructions::interrupts::enable();
    ksync::arch::cpu_relax();
    x86_64::instructions::interrupts::disable();
    timer::expire(clock::now_ns());
    IDLE.claim(cpu);
}

/// Makes `task` leave a CPU it may no longer run on, wherever it is. Its `allowed` mask was just changed.
pub fn enforce_affinity(task: &KArc<Task>) {
    let cpu = task.entity.cpu();
    if task.entity.may_run_on(cpu) {
        return;
    }
    if let Some(queued) = cpu_of(cpu).queue.remove(task) {
        enqueue_on(allowed_cpu(&task.entity, cpu), queued);
    } else if core::ptr::eq(&**task, current_ref()) {
        schedule();
    } else if cpu_head(cpu).current.load(Relaxed) == KArc::as_ptr(task) as usize {
        apic::send_ipi(smp::apic_id_of(cpu), apic::vector::RESCHEDULE);
    }
}

/// Gives up the CPU if another thread waits for it.
pub fn yield_now() {
    schedule();
}

/// Sleeps until unparked or until `deadline_ns`; false when the time is up.
pub fn park_until(deadline_ns: Option<u64>) -> bool {
    match deadline_ns {
        None => {
            ksync::arch::park();
            true
        }
        Some(deadline) => timer::park_until(deadline),
    }
}

/// Time that a CPU has idled, in nanoseconds.
pub fn idle_ns(cpu: usize) -> u64 {
    // SAFETY: null, or the CPU's idle thread, which is never freed.
    unsafe { cpu_of(cpu).idle.load(Relaxed).as_ref() }.map_or(0, runtime_ns)
}

/// CPU time that a thread has used, its present stint included, in nanoseconds.
pub fn runtime_ns(task: &Task) -> u64 {
    let entity = &task.entity;
    let used = entity.runtime_ns.load(Relaxed);
    if !entity.on_cpu() {
        return used;
    }
    used + clock::now_ns().saturating_sub(entity.stint_start_ns.load(Relaxed))
}

/// Switches since boot on all CPUs.
pub fn nr_switches() -> u64 {
    (0..smp::nr_online())
        .map(|c| cpu_of(c).nr_switches.load(Relaxed))
        .sum()
}

/// One line per CPU for a hang report.
pub fn print_run_queues() {
    for cpu in 0..smp::nr_online() {
        let here = cpu_of(cpu);
        let idle = cpu_head(cpu).current.load(Relaxed) == here.idle.load(Relaxed) as usize;
        let waiting = here.queue.nr_waiting();
        if waiting > 0 || !idle {
            println!(
                "  CPU {cpu}: {} running, {waiting} waiting",
                if idle { "idle" } else { "a thread" }
            );
        }
    }
}

/// Shows the running thread.
pub struct CurrentName;

impl fmt::Display for CurrentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let current = this_cpu_head().current.load(Relaxed) as *const Task;
        if current.is_null() {
            return f.write_str("before the first task");
        }
        if is_idle() {
            return f.write_str("idle task");
        }
        // SAFETY: the running thread is alive.
        let task = unsafe { &*current };
        match task.comm.try_lock() {
            Some(comm) => {
                let len = comm.iter().position(|&b| b == 0).unwrap_or(comm.len());
                let name = core::str::from_utf8(&comm[..len]).unwrap_or("?");
                write!(
                    f,
                    "task {} (tgid {}) \"{name}\"",
                    task.tid(),
                    task.process.tgid()
                )
            }
            None => write!(f, "task {}", task.tid()),
        }
    }
}
