//! Simulated time (`mode=numasim`): when it begins and ends, and what the kernel does differently in it.
//!
//! The simulation begins with the first process, when all other CPUs are idle, so that everything from then on happens
//! in an order that the host has no part in. Nothing of the host's time may enter: the clock is this CPU's simulated
//! one, the time of day a constant, and the timer never fires. So there is no tick and no preemption; sleepers wake
//! when an idle CPU looks at its clock.
//!
//! The simulator knows lines of memory by address. After a window it asks what lies there ([`answer`]); what the image
//! holds, the host knows by its symbols.

use crate::arch::{paging, smp};
use crate::params::{self, ModeWord};
use crate::sched::current;
use core::fmt::{self, Write};
use ksync::arch::{CpuHead, sim};
use ksync::{CpuMask, PAGE_SHIFT, PreemptGuard};
use page_alloc::{Page, PageKind, PageRef, PageState};

/// The rate of simulated clocks, in kHz: what a nanosecond is to programs. Figures are in cycles.
pub const CLOCK_KHZ: u64 = 2_500_000;

/// Whether the boot line says so.
#[inline]
pub fn is_on() -> bool {
    params::get().mode == ModeWord::Numasim
}

/// Begins the simulation, on the boot CPU. First process, with all other CPUs idle. May sleep.
pub fn begin() {
    if !is_on() {
        return;
    }
    for cpu in 0..smp::nr_online() {
        sim::name_cpu(cpu, smp::apic_id_of(cpu));
    }
    // Where the first process has come to run is the host's doing.
    let (here, everywhere) = (CpuMask::new(), CpuMask::new());
    here.set(0);
    (0..smp::nr_online()).for_each(|cpu| everywhere.set(cpu));
    crate::syscall::set_affinity(&current(), &here);
    sim::begin();
    if !sim::is_active() {
        println!("mode=numasim: no simulator is there (cargo xtask qemu --numasim)");
        crate::arch::exit_machine(0x23);
    }
    crate::syscall::set_affinity(&current(), &everywhere);
}

/// Tells the simulator what lies at the lines that cost most. One CPU, while nobody else allocates or frees. May sleep
/// before it begins.
pub fn answer() {
    let _stay = PreemptGuard::new();
    sim::answer(|line, address, text| {
        let mut name = Name { text, len: 0 };
        // What does not fit is cut off.
        let _ = describe(&mut name, line, address);
        name.len
    });
}

struct Name<'a> {
    text: &'a mut [u8],
    len: usize,
}

impl Write for Name<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = &mut self.text[self.len..];
        let len = s.len().min(room.len());
        room[..len].copy_from_slice(&s.as_bytes()[..len]);
        self.len += len;
        if len == s.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

/// What lies at a line, reached by `address`. Nothing for what is in the image.
fn describe(out: &mut Name, line: usize, address: usize) -> fmt::Result {
    let windows = ksync::arch::nr_cpu_ids() << ksync::arch::PERCPU_WINDOW_SIZE.trailing_zeros();
    if (paging::PERCPU_BASE..paging::PERCPU_BASE + windows).contains(&address) {
        let offset = (address - paging::PERCPU_BASE) % ksync::arch::PERCPU_WINDOW_SIZE;
        return match (CpuHead::part(offset), slab::owner_of_percpu(offset)) {
            (Some(part), _) => write!(out, "per-CPU: {part}"),
            (_, Some(cache)) => write!(out, "per-CPU: sheaves of {cache}"),
            _ => write!(out, "per-CPU: offset {:#x}", offset & !63),
        };
    }
    if (paging::VMEMMAP_BASE..paging::IMAGE_BASE).contains(&address) {
        let pfn = (address - paging::VMEMMAP_BASE) / size_of::<Page>();
        out.write_str("page descriptor: ")?;
        let page = PageRef::from_pfn(pfn);
        return describe_page(out, page.head(), ksync::arch::phys_to_virt(page.phys()));
    }
    if (paging::STACKS_BASE..paging::PERCPU_BASE).contains(&address) {
        return out.write_str("kernel stack");
    }
    if address >= paging::IMAGE_BASE {
        return Ok(());
    }
    let page = PageRef::from_pfn(line >> PAGE_SHIFT);
    if !paging::is_mapped(page.as_ptr().as_ptr() as usize) {
        return out.write_str("firmware or boot memory");
    }
    describe_page(
        out,
        page.head(),
        ksync::arch::phys_to_virt(line + (address & 63)),
    )
}

/// What lies at `at`, in the block that begins with `page`.
fn describe_page(out: &mut Name, page: PageRef, at: *const u8) -> fmt::Result {
    if let Some(place) = slab::place_of(at) {
        return write!(out, "{} +{:#x}", place.cache, place.offset & !63);
    }
    let owner = match (page.state(), page.kind()) {
        (PageState::Reserved, _) => "boot memory",
        (PageState::Allocated | PageState::Tail, PageKind::Slab) => "slab",
        (PageState::Allocated | PageState::Tail, PageKind::Anon) => "anonymous page",
        (PageState::Allocated | PageState::Tail, PageKind::File) => "page of a file",
        (PageState::Allocated | PageState::Tail, PageKind::PageTable) => "page table",
        (PageState::Allocated | PageState::Tail, PageKind::Percpu) => "per-CPU chunk",
        (PageState::Allocated | PageState::Tail, PageKind::Stack) => "kernel stack",
        (PageState::Allocated | PageState::Tail, PageKind::Kernel) => "page",
        _ => "free page",
    };
    out.write_str(owner)
}
