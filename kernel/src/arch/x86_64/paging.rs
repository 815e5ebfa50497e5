//! The kernel's own page tables: the windows above the direct map, and the CPU's protection bits.
//!
//! ```text
//! ffff_8880_0000_0000  direct map of all RAM (made by the boot stage; 1 GiB or 2 MiB pages; W, NX)
//! ffff_c900_0000_0000  kernel stacks, each with an unmapped guard below it (W, NX)
//! ffff_e000_0000_0000  percpu windows, 1 GiB per CPU (W, NX)
//! ffff_ea00_0000_0000  vmemmap: one `Page` per frame (W, NX)
//! ffff_ffff_8000_0000  the kernel image: text X, rodata R, data W
//! ```
//!
//! # Invariants
//!
//! - INV-PAGING-1: each top-level entry of the kernel half is made before the first address space exists and never
//!   changes, so every address space shares every kernel mapping without copying or synchronising.
//! - INV-PAGING-2: no mapping is both writable and executable.
//! - INV-PAGING-3: a kernel page table, once linked, is never unlinked; `MAP_LOCK` serialises the linking.

use core::sync::atomic::{AtomicUsize, Ordering};
use ksync::arch::phys_to_virt;
use spin::Mutex;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr3, Cr4, Cr4Flags, Efer, EferFlags};

pub const STACKS_BASE: usize = 0xffff_c900_0000_0000;
pub const VMEMMAP_BASE: usize = 0xffff_ea00_0000_0000;
pub const PERCPU_BASE: usize = 0xffff_e000_0000_0000;
/// The kernel's image, up to the top.
pub const IMAGE_BASE: usize = 0xffff_ffff_8000_0000;
const PML4_SHIFT: u32 = 39;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const HUGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDR_MASK: u64 = 0x000f_ffff_ffff_f000;

static KERNEL_PGD: AtomicUsize = AtomicUsize::new(0);
static MAP_LOCK: Mutex<()> = Mutex::new(());

/// Physical address of the page-table root that maps the kernel and nothing else.
#[inline]
pub fn kernel_pgd() -> usize {
    KERNEL_PGD.load(Ordering::Relaxed)
}

fn table(pa: usize) -> *mut u64 {
    phys_to_virt(pa).cast()
}

/// Turns on what the CPU has of SMEP, SMAP, UMIP, FSGSBASE, global pages and write protection in ring 0. Each CPU.
pub fn enable_protection() {
    let f7 = core::arch::x86_64::__cpuid_count(7, 0);
    let mut cr4 = Cr4::read() | Cr4Flags::PAGE_GLOBAL;
    cr4.set(
        Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION,
        f7.ebx & (1 << 7) != 0,
    );
    cr4.set(
        Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION,
        f7.ebx & (1 << 20) != 0,
    );
    cr4.set(
        Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION,
        f7.ecx & (1 << 2) != 0,
    );
    cr4.set(Cr4Flags::FSGSBASE, f7.ebx & 1 != 0);
    assert!(f7.ebx & 1 != 0, "this kernel needs a CPU with FSGSBASE");
    // SAFETY: each bit is set only where CPUID announces it; write protection and NX only add checks.
    unsafe {
        Cr4::write(cr4);
        Cr0::update(|f| *f |= Cr0Flags::WRITE_PROTECT);
        Efer::update(|f| *f |= EferFlags::NO_EXECUTE_ENABLE | EferFlags::SYSTEM_CALL_EXTENSIONS);
    }
    HAS_SMAP.store((f7.ebx >> 20 & 1) as usize, Ordering::Relaxed);
}

/// 1 when `stac` and `clac` exist.
pub static HAS_SMAP: AtomicUsize = AtomicUsize::new(0);

/// Adopts the boot stage's tables and fixes the kernel half's top level (INV-PAGING-1).
///
/// `frame` gives zeroed frames. Boot CPU, before anything else runs.
pub fn init(mut frame: impl FnMut() -> usize) {
    let pgd = Cr3::read().0.start_address().as_u64() as usize;
    KERNEL_PGD.store(pgd, Ordering::Relaxed);
    for base in [STACKS_BASE, VMEMMAP_BASE, PERCPU_BASE] {
        let entry = table(pgd).wrapping_add(base >> PML4_SHIFT & 511);
        // SAFETY: the root is live and reached through the direct map; nothing else runs yet.
        unsafe {
            if *entry & PRESENT == 0 {
                *entry = frame() as u64 | PRESENT | WRITABLE;
            }
        }
    }
}

/// Removes the identity map of low memory that the start of the other CPUs needed.
pub fn drop_identity_map() {
    let entry = table(kernel_pgd());
    // SAFETY: every CPU runs at kernel addresses by now; nothing uses the lower half of the kernel's own root.
    unsafe { entry.write_volatile(0) };
    x86_64::instructions::tlb::flush_all();
}

/// Maps the 4 KiB page at `va` to `pa`, writable, not executable. Fails when `frame` has no memory for a table.
pub fn map_page(
    va: usize,
    pa: usize,
    frame: &mut dyn FnMut() -> Option<usize>,
) -> Result<(), page_alloc::OutOfMemory> {
    map(
        va,
        pa as u64 | PRESENT | WRITABLE | NO_EXECUTE | GLOBAL,
        1,
        frame,
    )
}

fn map(
    va: usize,
    entry: u64,
    level: u32,
    frame: &mut dyn FnMut() -> Option<usize>,
) -> Result<(), page_alloc::OutOfMemory> {
    let _guard = MAP_LOCK.lock();
    let mut pa = kernel_pgd();
    for depth in (level..4).rev() {
        let slot = table(pa).wrapping_add(va >> (12 + 9 * depth) & 511);
        // SAFETY: `pa` is a live table of the kernel half (INV-PAGING-3); the lock serialises writers.
        unsafe {
            if *slot & PRESENT == 0 {
                let new = frame().ok_or(page_alloc::OutOfMemory)?;
                slot.write_volatile(new as u64 | PRESENT | WRITABLE);
            }
            assert!(*slot & HUGE == 0, "mapping {va:#x} under a huge page");
            pa = (*slot & ADDR_MASK) as usize;
        }
    }
    let slot = table(pa).wrapping_add(va >> (12 + 9 * (level - 1)) & 511);
    // SAFETY: as above.
    unsafe {
        assert!(*slot & PRESENT == 0, "{va:#x} is mapped already");
        slot.write_volatile(entry);
    }
    Ok(())
}

/// Pages taken out of the kernel's tables that some TLB may still know. Freed together after one flush, since a flush
/// interrupts every CPU.
pub struct Unmapped {
    pages: [usize; Unmapped::ROOM],
    nr: usize,
    low: usize,
    high: usize,
}

impl Unmapped {
    const ROOM: usize = 256;

    /// Nothing yet.
    pub fn new() -> Unmapped {
        Unmapped {
            pages: [0; Self::ROOM],
            nr: 0,
            low: usize::MAX,
            high: 0,
        }
    }

    /// Unmaps the 4 KiB page at `va`, if there is one. IRQs and preemption on.
    pub fn unmap(&mut self, va: usize) {
        if self.nr == Self::ROOM {
            self.flush();
        }
        let guard = MAP_LOCK.lock();
        let Some(slot) = leaf(va) else { return };
        // SAFETY: a live entry of a 4 KiB page; the lock serialises writers.
        let entry = unsafe { slot.replace(0) };
        drop(guard);
        self.pages[self.nr] = (entry & ADDR_MASK) as usize;
        self.nr += 1;
        (self.low, self.high) = (self.low.min(va), self.high.max(va + 4096));
    }

    /// Makes every CPU forget the pages, then frees them.
    pub fn flush(&mut self) {
        if self.nr == 0 {
            return;
        }
        let all = ksync::CpuMask::new();
        (0..super::smp::nr_online()).for_each(|cpu| all.set(cpu));
        super::tlb::flush_range(&all, 0, self.low, self.high);
        self.pages[..self.nr]
            .iter()
            .for_each(|&pa| page_alloc::PageRef::from_phys(pa).put());
        (self.nr, self.low, self.high) = (0, usize::MAX, 0);
    }
}

impl Drop for Unmapped {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Unmaps `len` bytes of 4 KiB pages at `va`, tells every CPU, and frees the pages. Holes are skipped.
pub fn unmap_pages(va: usize, len: usize) {
    let mut unmapped = Unmapped::new();
    (va..va + len)
        .step_by(4096)
        .for_each(|at| unmapped.unmap(at));
}

/// The present last-level entry for `va`.
fn leaf(va: usize) -> Option<*mut u64> {
    let mut pa = kernel_pgd();
    for depth in (0..4).rev() {
        let slot = table(pa).wrapping_add(va >> (12 + 9 * depth) & 511);
        // SAFETY: live tables of the kernel half (INV-PAGING-3).
        let entry = unsafe { *slot };
        if entry & PRESENT == 0 {
            return None;
        }
        if depth == 0 {
            return Some(slot);
        }
        pa = (entry & ADDR_MASK) as usize;
    }
    None
}

/// Whether a kernel virtual address is mapped, for the fault report.
pub fn is_mapped(va: usize) -> bool {
    let mut pa = kernel_pgd();
    for depth in (0..4).rev() {
        // SAFETY: reads live tables; racing with a writer only makes the answer old.
        let entry = unsafe {
            table(pa)
                .wrapping_add(va >> (12 + 9 * depth) & 511)
                .read_volatile()
        };
        if entry & PRESENT == 0 {
            return false;
        }
        if entry & HUGE != 0 {
            return true;
        }
        pa = (entry & ADDR_MASK) as usize;
    }
    true
}

/// Checks INV-PAGING-2 over the whole kernel half; returns the number of leaf entries seen.
pub fn check_w_xor_x() -> usize {
    fn walk(pa: usize, level: u32, writable: bool, no_execute: bool, seen: &mut usize) {
        for i in 0..512 {
            // SAFETY: live table, read only.
            let e = unsafe { table(pa).wrapping_add(i).read_volatile() };
            if e & PRESENT == 0 {
                continue;
            }
            let (w, nx) = (
                writable && e & WRITABLE != 0,
                no_execute || e & NO_EXECUTE != 0,
            );
            if level == 1 || e & HUGE != 0 {
                assert!(
                    !w || nx,
                    "a kernel page is writable and executable: level {level} entry {e:#x}"
                );
                *seen += 1;
            } else {
                walk((e & ADDR_MASK) as usize, level - 1, w, nx, seen);
            }
        }
    }
    let mut seen = 0;
    for i in 256..512 {
        // SAFETY: the live root, read only.
        let e = unsafe { table(kernel_pgd()).wrapping_add(i).read_volatile() };
        if e & PRESENT != 0 {
            walk(
                (e & ADDR_MASK) as usize,
                3,
                e & WRITABLE != 0,
                e & NO_EXECUTE != 0,
                &mut seen,
            );
        }
    }
    seen
}

/// Calls `patch` with the kernel text reachable for writing through the direct map.
///
/// `patch` is handed a function that copies bytes over an address of kernel text. Boot time, one CPU.
pub fn with_writable_text(patch: impl FnOnce(&mut dyn FnMut(*const u8, &[u8]))) {
    patch(&mut |site, bytes| {
        for (i, b) in bytes.iter().enumerate() {
            let alias = phys_to_virt(image_to_phys(site as usize + i));
            // SAFETY: the alias in the direct map is writable, and no other CPU runs yet.
            unsafe { alias.write_volatile(*b) };
        }
    });
}

/// Physical address behind an address of the kernel image.
fn image_to_phys(va: usize) -> usize {
    let mut pa = kernel_pgd();
    for depth in (0..4).rev() {
        // SAFETY: live tables, read only.
        let e = unsafe { *table(pa).wrapping_add(va >> (12 + 9 * depth) & 511) };
        assert!(e & PRESENT != 0, "{va:#x} is not kernel image");
        if e & HUGE != 0 {
            let mask = (1usize << (12 + 9 * depth)) - 1;
            return (e & ADDR_MASK) as usize & !mask | va & mask;
        }
        pa = (e & ADDR_MASK) as usize;
    }
    pa | va & 0xfff
}

/// Kernel page tables by the node of their memory; they are kept for good (INV-PAGING-3).
static NR_TABLES: [AtomicUsize; ksync::MAX_NUMNODES] =
    [const { AtomicUsize::new(0) }; ksync::MAX_NUMNODES];

/// A zeroed frame from the page allocator for a page table.
pub fn table_frame() -> Option<usize> {
    let page =
        page_alloc::alloc_page(page_alloc::Gfp::ZERO | page_alloc::Gfp::NOFAULT_INJECT).ok()?;
    NR_TABLES[page.node()].fetch_add(1, Ordering::Relaxed);
    Some(page.phys())
}

/// Pages of `node` that hold the kernel's own page tables.
pub fn nr_tables(node: usize) -> usize {
    NR_TABLES[node].load(Ordering::Relaxed)
}
