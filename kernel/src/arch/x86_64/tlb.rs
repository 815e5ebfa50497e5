//! TLB shoot-down: the CPUs that run an address space drop what another CPU unmapped, and it waits for them.
//!
//! Each CPU owns one request. It fills it in, sets its bit in the inbox of each target, interrupts them and spins until
//! the count is zero, serving its own inbox meanwhile, so two CPUs that flush each other with IRQs on or off both end.
//!
//! # Invariants
//!
//! - INV-TLB-1: a CPU that is not in an address space's mask has no entry of it in its TLB: the scheduler loads CR3
//!   (which flushes, no PCIDs) whenever it enters an address space, after setting the CPU's bit.
//! - INV-TLB-2: a request is written only by its CPU and only while `pending` is 0.

use super::apic;
use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use ksync::{CpuMask, NR_CPUS};

/// Above this many pages it is cheaper to drop everything.
const FLUSH_ALL_PAGES: usize = 32;

#[repr(align(64))]
struct Request {
    start: AtomicUsize,
    end: AtomicUsize,
    pending: AtomicU32,
}

#[repr(align(64))]
struct Inbox([AtomicU64; NR_CPUS / 64]);

static REQUESTS: [Request; NR_CPUS] = [const {
    Request {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        pending: AtomicU32::new(0),
    }
}; NR_CPUS];
static INBOXES: [Inbox; NR_CPUS] =
    [const { Inbox([const { AtomicU64::new(0) }; NR_CPUS / 64]) }; NR_CPUS];

fn flush_local(start: usize, end: usize) {
    if (end - start) / 4096 <= FLUSH_ALL_PAGES {
        for page in (start..end).step_by(4096) {
            ksync::arch::flush_tlb_local_page(page);
        }
    } else if start >= 1 << 63 {
        flush_global();
    } else {
        flush_local_all();
    }
}

/// Drops this CPU's TLB with the entries that all address spaces share.
fn flush_global() {
    use x86_64::registers::control::{Cr4, Cr4Flags};
    let cr4 = Cr4::read();
    // SAFETY: global pages are off for a moment, which only costs time.
    unsafe {
        Cr4::write(cr4 - Cr4Flags::PAGE_GLOBAL);
        Cr4::write(cr4);
    }
}

/// Drops every non-global entry of this CPU's TLB.
pub fn flush_local_all() {
    // SAFETY: reloading CR3 with itself only costs time.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags)) };
}

/// Serves what other CPUs ask of this one. IPI handler, and spinning requesters.
pub fn serve_inbox() {
    let cpu = ksync::arch::smp_processor_id();
    for (word, bits) in INBOXES[cpu].0.iter().enumerate() {
        if bits.load(Ordering::Relaxed) == 0 {
            continue;
        }
        let mut taken = bits.swap(0, Ordering::Acquire);
        while taken != 0 {
            let from = word * 64 + taken.trailing_zeros() as usize;
            taken &= taken - 1;
            let request = &REQUESTS[from];
            flush_local(
                request.start.load(Ordering::Relaxed),
                request.end.load(Ordering::Relaxed),
            );
            request.pending.fetch_sub(1, Ordering::Release);
        }
    }
}

/// See `ksync::arch::hooks::Machine::flush_tlb_range`.
pub fn flush_range(cpus: &CpuMask, mm: u64, start: usize, end: usize) {
    ksync::arch::preempt_disable();
    let me = ksync::arch::smp_processor_id();
    // Page-table stores before the look at the mask; pairs with the fence after the scheduler sets its bit.
    fence(Ordering::SeqCst);
    let request = &REQUESTS[me];
    debug_assert_eq!(request.pending.load(Ordering::Relaxed), 0);
    request.start.store(start, Ordering::Relaxed);
    request.end.store(end, Ordering::Relaxed);
    let mut sent = 0;
    for cpu in cpus.iter().filter(|&cpu| cpu != me) {
        request.pending.fetch_add(1, Ordering::Relaxed);
        INBOXES[cpu].0[me / 64].fetch_or(1 << (me % 64), Ordering::Release);
        apic::send_ipi(super::smp::apic_id_of(cpu), apic::vector::TLB_FLUSH);
        sent += 1;
    }
    if mm == 0 || cpus.test(me) {
        flush_local(start, end);
    }
    if sent > 0 {
        while request.pending.load(Ordering::Acquire) != 0 {
            serve_inbox();
            ksync::arch::cpu_relax();
        }
    }
    ksync::arch::preempt_enable();
}
