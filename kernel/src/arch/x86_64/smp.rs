//! Starting the other CPUs: INIT and SIPI to all of them at once, each finds its place by its APIC id.
//!
//! The trampoline is copied to one page of low memory. A CPU goes from real mode to long mode on the kernel's page
//! tables, looks its APIC id up in [`APIC_IDS`] and takes the stack that waits for that index, so any number of CPUs
//! can run through it at the same time without a lock.
//!
//! # Invariants
//!
//! - INV-SMP-1: `APIC_IDS`, `NR_IDS` and `BOOT_STACKS` are complete before the first SIPI and constant afterwards.

use super::{apic, clock, fpu, gdt, kstack::KernelStack, paging};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use ksync::NR_CPUS;

/// APIC id of each CPU.
static APIC_IDS: [AtomicU32; NR_CPUS] = [const { AtomicU32::new(u32::MAX) }; NR_CPUS];
static NR_IDS: AtomicU32 = AtomicU32::new(0);
/// Top of each CPU's idle stack.
static BOOT_STACKS: [AtomicUsize; NR_CPUS] = [const { AtomicUsize::new(0) }; NR_CPUS];
static NR_ONLINE: AtomicUsize = AtomicUsize::new(1);

/// Physical address of the trampoline page; below 1 MiB, never given to the allocator.
const TRAMPOLINE: usize = 0x8000;
/// How long the other CPUs may take, in nanoseconds: a loaded host starts 512 emulated ones slowly.
const START_TIMEOUT_NS: u64 = 120_000_000_000;

global_asm!(
    r#"
.section .ap_trampoline, "a"
.balign 16
.global ap_trampoline
.global ap_trampoline_end
.global ap_trampoline_cr3
.code16
ap_trampoline:
    cli
    cld
    xor ax, ax
    mov ds, ax
    lgdt [{base} + AP_GDTR]
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, [{base} + AP_CR3]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x901
    wrmsr
    mov eax, cr0
    and eax, 0x9fffffff
    or eax, 0x80010001
    mov cr0, eax
    /* ljmp 8:long_mode, assembled by hand so that any assembler takes it */
    .byte 0x66, 0xea
    .long {base} + AP_LONG
    .word 8
.code64
ap_long_mode:
    mov ax, 16
    mov ss, ax
    xor eax, eax
    mov ds, ax
    mov es, ax
    mov fs, ax
    mov gs, ax
    mov rax, [rip + ap_entry_address]
    jmp rax
.balign 8
ap_entry_address: .quad ap_entry
ap_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
ap_gdtr:
    .word 23
    .long {base} + AP_GDT
.balign 4
ap_trampoline_cr3: .long 0
ap_trampoline_end:
/* Offsets in the page: differences of labels are constants only once both are behind us. */
.set AP_GDTR, ap_gdtr - ap_trampoline
.set AP_GDT, ap_gdt - ap_trampoline
.set AP_CR3, ap_trampoline_cr3 - ap_trampoline
.set AP_LONG, ap_long_mode - ap_trampoline

.section .text.ap_entry, "ax"
ap_entry:
    /* x2APIC id: leaf 0xb where the CPU has it, else the initial APIC id */
    xor eax, eax
    cpuid
    cmp eax, 0xb
    jb 2f
    mov eax, 0xb
    xor ecx, ecx
    cpuid
    test ebx, ebx
    jz 2f
    mov edi, edx
    jmp 3f
2:  mov eax, 1
    cpuid
    mov edi, ebx
    shr edi, 24
3:  lea rsi, [rip + {apic_ids}]
    mov ecx, [rip + {nr_ids}]
    xor eax, eax
4:  cmp eax, ecx
    jae 6f
    cmp [rsi + rax*4], edi
    je 5f
    inc eax
    jmp 4b
5:  lea rsi, [rip + {stacks}]
    mov rsp, [rsi + rax*8]
    xor ebp, ebp
    mov edi, eax
    push 0
    jmp {ap_main}
6:  /* not in the MADT: stay out of the way */
    cli
    hlt
    jmp 6b
"#,
    base = const TRAMPOLINE,
    apic_ids = sym APIC_IDS,
    nr_ids = sym NR_IDS,
    stacks = sym BOOT_STACKS,
    ap_main = sym ap_main,
);

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static ap_trampoline_cr3: u8;
}

/// APIC id of `cpu`.
#[inline]
pub fn apic_id_of(cpu: usize) -> u32 {
    APIC_IDS[cpu].load(Ordering::Relaxed)
}

/// CPUs that run.
pub fn nr_online() -> usize {
    NR_ONLINE.load(Ordering::Acquire)
}

/// Records `cpu`'s APIC id. Boot, before [`start_others`].
pub fn set_apic_id(cpu: usize, apic_id: u32) {
    APIC_IDS[cpu].store(apic_id, Ordering::Relaxed);
    NR_IDS.fetch_max(cpu as u32 + 1, Ordering::Relaxed);
}

/// What every CPU does first, in this order; IRQs stay off.
pub fn init_this_cpu(cpu: usize) {
    paging::enable_protection();
    fpu::init_cpu();
    gdt::CpuTables::install(cpu);
    super::syscall_init();
    apic::init_cpu();
}

extern "C" fn ap_main(cpu: usize) -> ! {
    // The window is mapped and its head filled in; from here on the crates below know where they are.
    x86_64::registers::model_specific::GsBase::write(x86_64::VirtAddr::new(
        ksync::arch::percpu_base(cpu) as u64,
    ));
    init_this_cpu(cpu);
    assert_eq!(
        apic::id(),
        apic_id_of(cpu),
        "CPU {cpu} found the wrong place"
    );
    ksync::rcu::cpu_online();
    NR_ONLINE.fetch_add(1, Ordering::AcqRel);
    crate::sched::run_idle_loop(cpu)
}

/// Starts CPUs `1..n` and waits until they run. Fails with the CPUs that did not come up.
pub fn start_others(n: usize) -> Result<(), usize> {
    for (cpu, top) in BOOT_STACKS.iter().enumerate().take(n).skip(1) {
        gdt::CpuTables::prepare(cpu);
        let stack =
            KernelStack::alloc(ksync::arch::cpu_to_node(cpu)).expect("memory for idle stacks");
        top.store(stack.into_top(), Ordering::Relaxed);
    }
    // SAFETY: the page at TRAMPOLINE is below 1 MiB and nobody's; the bounds are the linker's.
    unsafe {
        let (start, end) = (&raw const ap_trampoline, &raw const ap_trampoline_end);
        let len = end as usize - start as usize;
        assert!(len <= 4096);
        let page = ksync::arch::phys_to_virt(TRAMPOLINE);
        page.copy_from_nonoverlapping(start, len);
        let cr3 = page
            .add(&raw const ap_trampoline_cr3 as usize - start as usize)
            .cast::<u32>();
        cr3.write_unaligned(
            u32::try_from(paging::kernel_pgd()).expect("the page-table root lies below 4 GiB"),
        );
    }
    core::sync::atomic::fence(Ordering::SeqCst);
    for cpu in 1..n {
        apic::send_init(apic_id_of(cpu));
    }
    spin_ns(200_000);
    for _ in 0..2 {
        for cpu in 1..n {
            apic::send_startup(apic_id_of(cpu), (TRAMPOLINE >> 12) as u8);
        }
        spin_ns(200_000);
        if nr_online() == n {
            return Ok(());
        }
    }
    let deadline = clock::now_ns() + START_TIMEOUT_NS;
    while nr_online() < n {
        if clock::now_ns() > deadline {
            return Err(nr_online());
        }
        ksync::arch::cpu_relax();
    }
    Ok(())
}

fn spin_ns(ns: u64) {
    let end = clock::now_ns() + ns;
    while clock::now_ns() < end {
        ksync::arch::cpu_relax();
    }
}
