//! Descriptor tables of each CPU: GDT, TSS, interrupt stacks; one shared IDT.
//!
//! The selectors are in the order that `syscall` and `sysret` demand: kernel code, kernel data, (32-bit user code),
//! user data, user code. Double fault, NMI and machine check run on stacks of their own (IST 1 to 3), so that an
//! overflowed kernel stack ends in a report and not in a triple fault.

use super::kstack;
use core::mem::size_of;
use ksync::NR_CPUS;
use x86_64::VirtAddr;
use x86_64::instructions::tables::{lgdt, lidt, load_tss};
use x86_64::registers::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::SegmentSelector;
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;
use x86_64::{PrivilegeLevel, structures::gdt::Descriptor};

pub const KERNEL_CS: u16 = 0x08;
pub const KERNEL_SS: u16 = 0x10;
/// `sysret` loads SS from this base + 8 and CS from this base + 16, both with privilege level 3.
pub const SYSRET_BASE: u16 = 0x18 | 3;
pub const USER_SS: u16 = 0x20 | 3;
pub const USER_CS: u16 = 0x28 | 3;
const TSS_SELECTOR: u16 = 0x30;

const IST_DOUBLE_FAULT: u16 = 0;
const IST_NMI: u16 = 1;
const IST_MACHINE_CHECK: u16 = 2;

/// The tables of one CPU; lives in memory of the CPU's node.
#[repr(C, align(64))]
pub struct CpuTables {
    gdt: [u64; 8],
    tss: TaskStateSegment,
}

const NULL: u64 = 0;
const KCODE: u64 = 0x00af_9b00_0000_ffff;
const KDATA: u64 = 0x00cf_9300_0000_ffff;
const UCODE32: u64 = 0x00cf_fb00_0000_ffff;
const UDATA: u64 = 0x00cf_f300_0000_ffff;
const UCODE: u64 = 0x00af_fb00_0000_ffff;

static IDT: spin::Once<InterruptDescriptorTable> = spin::Once::new();

/// Where each CPU's tables are: 0 until [`CpuTables::install`].
static TABLES: [core::sync::atomic::AtomicUsize; NR_CPUS] =
    [const { core::sync::atomic::AtomicUsize::new(0) }; NR_CPUS];

/// The boot CPU's tables before its node's memory can be used: no interrupt stacks, only segments.
static EARLY_GDT: [u64; 6] = [NULL, KCODE, KDATA, UCODE32, UDATA, UCODE];

fn load_segments(gdt: *const u64, bytes: usize) {
    let pointer = DescriptorTablePointer {
        limit: (bytes - 1) as u16,
        base: VirtAddr::new(gdt as u64),
    };
    // SAFETY: the table is static or never freed, and holds the selectors loaded here.
    unsafe {
        lgdt(&pointer);
        CS::set_reg(SegmentSelector(KERNEL_CS));
        SS::set_reg(SegmentSelector(KERNEL_SS));
        DS::set_reg(SegmentSelector(0));
        ES::set_reg(SegmentSelector(0));
        let gs_base = x86_64::registers::model_specific::GsBase::read();
        FS::set_reg(SegmentSelector(0));
        GS::set_reg(SegmentSelector(0));
        x86_64::registers::model_specific::GsBase::write(gs_base);
    }
}

/// Segments and exception vectors of the boot CPU, good enough to report an early exception.
pub fn early_init() {
    load_segments(EARLY_GDT.as_ptr(), size_of::<[u64; 6]>());
    load_idt(false);
}

/// Loads the shared IDT. With `ist`, the vectors that need stacks of their own get them.
fn load_idt(ist: bool) {
    static EARLY: spin::Once<InterruptDescriptorTable> = spin::Once::new();
    let idt = if ist {
        IDT.call_once(|| build_idt(true))
    } else {
        EARLY.call_once(|| build_idt(false))
    };
    let pointer = DescriptorTablePointer {
        limit: (size_of::<InterruptDescriptorTable>() - 1) as u16,
        base: VirtAddr::new(idt as *const _ as u64),
    };
    // SAFETY: both tables are static and complete.
    unsafe { lidt(&pointer) };
}

fn build_idt(ist: bool) -> InterruptDescriptorTable {
    let mut idt = InterruptDescriptorTable::new();
    let base = &raw const super::entry::trap_stubs as u64;
    let bytes = (&raw mut idt).cast::<[u64; 2]>();
    for vector in 0..256u64 {
        let handler = base + vector * 16;
        let stack = match vector {
            8 if ist => IST_DOUBLE_FAULT + 1,
            2 if ist => IST_NMI + 1,
            18 if ist => IST_MACHINE_CHECK + 1,
            _ => 0,
        };
        // int3 and into may be raised by programs
        let dpl: u64 = if vector == 3 || vector == 4 { 3 } else { 0 };
        let low = handler & 0xffff
            | (KERNEL_CS as u64) << 16
            | (stack as u64) << 32
            | (0x8e | dpl << 5) << 40
            | (handler >> 16 & 0xffff) << 48;
        // SAFETY: the table is 256 gates of 16 bytes; `vector` is below 256.
        unsafe { bytes.add(vector as usize).write([low, handler >> 32]) };
    }
    idt
}

impl CpuTables {
    /// Makes the tables of `cpu` on its node. Boot time; panics when the node has no memory.
    pub fn prepare(cpu: usize) {
        let node = ksync::arch::cpu_to_node(cpu);
        let page = page_alloc::alloc_pages_node(node, 0, page_alloc::Gfp::ZERO)
            .expect("memory for descriptor tables");
        const { assert!(size_of::<CpuTables>() <= 4096) };
        let tables = page.virt().cast::<CpuTables>();
        let mut tss = TaskStateSegment::new();
        for ist in [IST_DOUBLE_FAULT, IST_NMI, IST_MACHINE_CHECK] {
            let stack = kstack::KernelStack::alloc(node).expect("memory for interrupt stacks");
            tss.interrupt_stack_table[ist as usize] = VirtAddr::new(stack.into_top() as u64);
        }
        // SAFETY: the page is ours, zeroed, and large enough; it is never freed.
        unsafe {
            tables.write(CpuTables {
                gdt: [NULL, KCODE, KDATA, UCODE32, UDATA, UCODE, 0, 0],
                tss,
            });
            let Descriptor::SystemSegment(low, high) =
                Descriptor::tss_segment_unchecked(&raw const (*tables).tss)
            else {
                unreachable!("a TSS descriptor is a system segment")
            };
            (*tables).gdt[6] = low;
            (*tables).gdt[7] = high;
        }
        TABLES[cpu].store(tables as usize, core::sync::atomic::Ordering::Release);
    }

    /// Loads the tables that [`prepare`](Self::prepare) made, on the CPU they are for. IRQs off.
    pub fn install(cpu: usize) {
        let tables = TABLES[cpu].load(core::sync::atomic::Ordering::Acquire) as *const CpuTables;
        assert!(
            !tables.is_null(),
            "descriptor tables of CPU {cpu} are not prepared"
        );
        // SAFETY: prepared and never freed.
        load_segments(
            unsafe { &raw const (*tables).gdt }.cast(),
            size_of::<[u64; 8]>(),
        );
        load_idt(true);
        // SAFETY: selector 0x30 is this CPU's own TSS, loaded once.
        unsafe { load_tss(SegmentSelector(TSS_SELECTOR)) };
        debug_assert_eq!(SegmentSelector(USER_CS).rpl(), PrivilegeLevel::Ring3);
    }
}

/// Where the CPU goes when user mode is interrupted: the top of the current task's kernel stack.
#[inline]
pub fn set_rsp0(cpu: usize, top: usize) {
    let tables = TABLES[cpu].load(core::sync::atomic::Ordering::Relaxed) as *mut CpuTables;
    // SAFETY: only this CPU writes its TSS, and the CPU reads it only when it leaves user mode.
    unsafe { (*tables).tss.privilege_stack_table[0] = VirtAddr::new_truncate(top as u64) };
}
