//! Emulated CPUs with TLBs that never forget by themselves.
//!
//! Problem: on real hardware a forgotten flush shows once in a blue moon. Mechanism: each CPU keeps
//! every translation it has used until it is told to drop it or loads another root. Accesses use
//! them, and after each operation [`check`] compares all of them with the page tables.

use super::*;
use ksync::{CpuMask, MmId};
use std::sync::LazyLock;

pub(crate) const NR_CPUS: usize = 3;

#[derive(Default)]
struct Cpu {
    /// What CR3 holds.
    mm: Option<KArc<Mm>>,
    /// Page to entry.
    tlb: BTreeMap<usize, Pte>,
}

static CPUS: LazyLock<Mutex<[Cpu; NR_CPUS]>> = LazyLock::new(|| {
    ksync::arch::host::set_tlb_hook(flush);
    Mutex::default()
});

fn cpus() -> MutexGuard<'static, [Cpu; NR_CPUS]> {
    CPUS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The hook behind `flush_tlb_range`.
fn flush(mask: &CpuMask, mm: MmId, start: usize, end: usize) {
    for (i, cpu) in cpus().iter_mut().enumerate() {
        if mask.test(i) && cpu.mm.as_ref().is_some_and(|m| m.id() == mm) {
            cpu.tlb.retain(|&va, _| va < start || va >= end);
        }
    }
}

/// CPU `i` runs `mm` from now on (None: only the kernel).
pub(crate) fn run(i: usize, mm: Option<&MmUser>) {
    let cpu = &mut cpus()[i];
    if cpu.mm.as_ref().map(|m| m.id()) == mm.map(|m| m.id()) {
        return;
    }
    let old = cpu.mm.take();
    if let Some(mm) = mm {
        mm.activate(i);
        cpu.mm = Some(mm.mm());
    }
    cpu.tlb.clear();
    if let Some(old) = old {
        old.deactivate(i);
    }
}

/// All CPUs run only the kernel.
pub(crate) fn idle() {
    for i in 0..NR_CPUS {
        run(i, None);
    }
}

fn allows(pte: Pte, how: FaultFlags) -> bool {
    pte.is_present()
        && (!how.contains(FaultFlags::WRITE) || pte.is_writable())
        && (!how.contains(FaultFlags::EXEC) || pte.0 & pgtable::NX == 0)
}

/// Accesses `addr` as a program on CPU `i` would; returns where the word is.
pub(crate) fn access(
    i: usize,
    mm: &MmUser,
    addr: usize,
    how: FaultFlags,
) -> Result<*mut u64, FaultError> {
    run(i, Some(mm));
    let va = addr & !(PAGE - 1);
    for _ in 0..4 {
        let known = cpus()[i].tlb.get(&va).copied();
        let pte = known.unwrap_or_else(|| entry(mm, addr));
        if allows(pte, how) {
            cpus()[i].tlb.insert(va, pte);
            return Ok(pte.page().virt().wrapping_add(addr % PAGE).cast());
        }
        // A fault drops the translation that caused it.
        cpus()[i].tlb.remove(&va);
        mm.handle_fault(addr, how | FaultFlags::USER)?;
    }
    panic!("the fault at {addr:#x} never ends");
}

/// No CPU remembers more than the page tables say now.
pub(crate) fn check() {
    for (i, cpu) in cpus().iter().enumerate() {
        let Some(mm) = &cpu.mm else { continue };
        for (&va, &known) in &cpu.tlb {
            let now = entry(mm, va);
            let fine = now.is_present()
                && now.phys() == known.phys()
                && (now.is_writable() || !known.is_writable())
                && (now.0 & pgtable::NX == 0 || known.0 & pgtable::NX != 0);
            assert!(
                fine,
                "CPU {i} remembers {known:?} for {va:#x}, tables say {now:?}"
            );
        }
    }
}
