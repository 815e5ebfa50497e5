//! The way into the kernel and out of it: system calls, exceptions, interrupts, the first return of a new thread.
//!
//! Every entry leaves the same picture on the kernel stack, [`PtRegs`], so that fork can copy it, signals can edit it
//! and a debugger can print it, whichever door was used.
//!
//! ```text
//!   kernel_sp (gs:32) -> +---------+  high
//!                        | ss      |  pushed by the CPU (exceptions)
//!                        | rsp     |  or by syscall_entry
//!                        | rflags  |
//!                        | cs      |
//!                        | rip     |
//!                        | orig_rax|  system call number, or error code / vector
//!                        | rdi ... |
//!                        | r15     |  <- &PtRegs
//! ```
//!
//! # Invariants
//!
//! - INV-ENTRY-1: in the kernel GS base is this CPU's percpu window; in user mode it is the program's. `swapgs` runs
//!   exactly when the privilege level changes; NMI and double fault, which may hit in between, look at the base itself.
//! - INV-ENTRY-2: a task that runs in user mode has an empty kernel stack, and `CpuHead::kernel_sp` is its top.
//! - INV-ENTRY-3: `sysret` is taken only when RCX and R11 already hold RIP and RFLAGS, so RIP is an address that a
//!   `syscall` instruction left behind and is canonical; anything else goes through `iret`.
//! - INV-ENTRY-4: the RIP of a user frame is at most `TASK_SIZE`, so that neither way out faults in the kernel. Who sets
//!   one from outside (exec, a handler's address, rt_sigreturn) sees to it.

use core::arch::global_asm;

/// Saved user (or interrupted kernel) registers, Linux's `struct pt_regs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PtRegs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// System call number on a system call; `vector << 32 | error code` on an exception or interrupt.
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl PtRegs {
    /// Whether these registers belong to user mode.
    #[inline]
    pub fn user_mode(&self) -> bool {
        self.cs & 3 == 3
    }
}

/// Bytes of [`PtRegs`] at the top of each kernel stack.
pub const PT_REGS_SIZE: usize = core::mem::size_of::<PtRegs>();
const _: () = assert!(PT_REGS_SIZE == 21 * 8);

/// `orig_rax` of a frame that no system call made: nothing to restart.
pub const NO_SYSCALL: u64 = u64::MAX;

global_asm!(
    r#"
.macro PUSH_REGS rax_value
    push rdi
    push rsi
    push rdx
    push rcx
    push \rax_value
    push r8
    push r9
    push r10
    push r11
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
.endm

.macro POP_REGS_BUT_RCX_R11
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
.endm

.section .text.entry, "ax"
.global syscall_entry
.balign 64
syscall_entry:
    swapgs
    mov gs:[{user_sp}], rsp
    mov rsp, gs:[{kernel_sp}]
    push 0x23
    push qword ptr gs:[{user_sp}]
    push r11
    push 0x2b
    push rcx
    push rax
    PUSH_REGS -38
    xor ebp, ebp
    mov rdi, rsp
    mov rsi, rax
    sti
    call {do_syscall}
    /* IRQs are off, all exit work is done */
    mov rcx, [rsp + 16*8]
    mov r11, [rsp + 18*8]
    cmp rcx, [rsp + 11*8]
    jne 2f
    cmp r11, [rsp + 6*8]
    jne 2f
    POP_REGS_BUT_RCX_R11
    pop rax
    pop r10
    pop r9
    pop r8
    pop rax
    pop rdx
    pop rdx
    pop rsi
    pop rdi
    mov rsp, [rsp + 4*8]
    swapgs
    sysretq
2:
return_to_user_iret:
    POP_REGS_BUT_RCX_R11
    pop r11
    pop r10
    pop r9
    pop r8
    pop rax
    pop rcx
    pop rdx
    pop rsi
    pop rdi
    add rsp, 8
    swapgs
    iretq

/* A new thread's first instruction: rbx = kernel function or 0, r12 = its argument; the scheduler lock is held. */
.global ret_from_fork
ret_from_fork:
    xor ebp, ebp
    call {schedule_tail}
    test rbx, rbx
    jz 3f
    mov rdi, r12
    call rbx
    /* a kernel thread that returns has become a user process (exec) */
3:
    mov rdi, rsp
    call {exit_to_user}
    jmp return_to_user_iret

/* switch_context(rdi = &prev.sp, rsi = next.sp) */
.global switch_context
switch_context:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov [rdi], rsp
    mov rsp, rsi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

/* Interrupt and exception stubs: 16 bytes each. vector << 32 | error code in the orig_rax slot. */
.balign 16
.global trap_stubs
trap_stubs:
.set vec, 0
.rept 256
    .balign 16
    .if (vec == 8) || (vec >= 10 && vec <= 14) || (vec == 17) || (vec == 21) || (vec == 29) || (vec == 30)
    .else
    push 0
    .endif
    mov dword ptr [rsp + 4], vec
    .if (vec == 2) || (vec == 8) || (vec == 18)
    jmp trap_paranoid
    .else
    jmp trap_common
    .endif
    .set vec, vec + 1
.endr

.balign 64
trap_common:
    test byte ptr [rsp + 16], 3
    jz 4f
    swapgs
    PUSH_REGS rax
    xor ebp, ebp
    cld
    mov rdi, rsp
    call {do_trap}
    mov rdi, rsp
    call {exit_to_user}
    jmp return_to_user_iret
4:
    PUSH_REGS rax
    cld
    lea rbp, [rsp + 16*8 - 8]
    mov rbp, [rsp + 4*8]
    mov rdi, rsp
    call {do_trap}
    mov rdi, rsp
    call {exit_to_kernel}
return_to_kernel:
    POP_REGS_BUT_RCX_R11
    pop r11
    pop r10
    pop r9
    pop r8
    pop rax
    pop rcx
    pop rdx
    pop rsi
    pop rdi
    add rsp, 8
    iretq

/* NMI, double fault, machine check: may hit between a privilege change and its swapgs. */
trap_paranoid:
    PUSH_REGS rax
    cld
    mov ecx, 0xc0000101
    rdmsr
    test edx, edx
    js 5f
    swapgs
    mov rdi, rsp
    call {do_trap}
    swapgs
    jmp return_to_kernel
5:
    mov rdi, rsp
    call {do_trap}
    jmp return_to_kernel
"#,
    user_sp = const core::mem::offset_of!(ksync::arch::CpuHead, user_sp),
    kernel_sp = const core::mem::offset_of!(ksync::arch::CpuHead, kernel_sp),
    do_syscall = sym crate::syscall::do_syscall,
    schedule_tail = sym crate::sched::schedule_tail,
    exit_to_user = sym crate::arch::traps::exit_to_user,
    exit_to_kernel = sym crate::arch::traps::exit_to_kernel,
    do_trap = sym crate::arch::traps::do_trap,
);

unsafe extern "C" {
    pub fn syscall_entry();
    pub fn ret_from_fork();
    /// Saves the callee-saved registers and stack of the running thread in `*prev_sp` and continues at `next_sp`.
    ///
    /// # Safety
    /// `next_sp` was made by this function or by `new_thread_stack`, and no other CPU continues there.
    pub fn switch_context(prev_sp: *mut usize, next_sp: usize);
    pub static trap_stubs: u8;
}
