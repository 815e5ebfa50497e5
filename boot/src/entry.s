/* The two ways in, and the way from 32-bit protected mode to 64-bit long mode.
 *
 * PVH and multiboot2 both enter at boot_entry32 with paging off, flat segments, and ebx pointing at the loader's
 * structure; eax holds the multiboot2 magic or nothing in particular. We identity-map the low 4 GiB with 2 MiB pages
 * (every CPU with long mode has those), switch, and call boot_main(magic, info).
 */

.section .multiboot2, "a"
.balign 8
multiboot2_start:
    .long 0xe85250d6                                    /* magic */
    .long 0                                             /* i386 protected mode */
    .long multiboot2_end - multiboot2_start
    .long -(0xe85250d6 + 0 + (multiboot2_end - multiboot2_start))
    .balign 8
    .short 6, 0                                         /* tag: modules start on pages */
    .long 8
    .balign 8
    .short 1, 1                                         /* tag: we would like (optional) these: */
    .long 20
    .long 6, 14, 15                                     /* memory map, old and new RSDP */
    .balign 8
    .short 0, 0                                         /* end */
    .long 8
multiboot2_end:

.section .note.Xen, "a", @note
.balign 4
    .long 4                                             /* name length */
    .long 4                                             /* descriptor length */
    .long 18                                            /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long boot_entry32

.section .text.boot32, "ax"
.code32
.global boot_entry32
boot_entry32:
    cli
    cld
    lea esp, [boot_stack_top]
    push eax                                            /* magic */
    push ebx                                            /* info */

    /* Long mode (edx bit 29) and NX (bit 20) must be there. */
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb boot_no_long_mode
    mov eax, 0x80000001
    cpuid
    and edx, (1 << 29) | (1 << 20)
    cmp edx, (1 << 29) | (1 << 20)
    jne boot_no_long_mode

    /* Page tables: one PML4, one PDPT, four page directories, in .bss that the loader has zeroed. */
    lea eax, [boot_tables + 0x1000 + 3]
    mov [boot_tables], eax
    lea eax, [boot_tables + 0x2000 + 3]
    xor ecx, ecx
1:  mov [boot_tables + 0x1000 + ecx * 8], eax
    add eax, 0x1000
    inc ecx
    cmp ecx, 4
    jne 1b
    mov eax, 0x83                                       /* present, writable, 2 MiB */
    xor ecx, ecx
2:  mov [boot_tables + 0x2000 + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jne 2b

    mov eax, cr4
    or eax, 0x20                                        /* PAE */
    mov cr4, eax
    lea eax, [boot_tables]
    mov cr3, eax
    mov ecx, 0xc0000080                                 /* EFER */
    rdmsr
    or eax, 0x900                                       /* LME, NXE */
    wrmsr
    pop esi                                             /* info */
    pop edi                                             /* magic */
    mov eax, cr0
    or eax, 0x80010001                                  /* PG, WP, PE */
    mov cr0, eax
    lgdt [boot_gdtr]
    push 8
    lea eax, [boot_entry64]
    push eax
    retf

boot_no_long_mode:
    lea esi, [boot_no_long_mode_text]
    mov edx, 0x3f8
3:  lodsb
    test al, al
    jz 4f
    out dx, al
    jmp 3b
4:  mov eax, 0x7f
    mov edx, 0xf4                                       /* isa-debug-exit */
    out dx, eax
5:  hlt
    jmp 5b

.code64
boot_entry64:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    mov edi, edi                                        /* clear the upper halves */
    mov esi, esi
    lea rsp, [rip + boot_stack_top]
    xor ebp, ebp
    call boot_main
    ud2

.section .rodata.boot, "a"
boot_no_long_mode_text:
    .asciz "boot: error: this CPU has no 64-bit mode or no NX bit\r\n"
.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                            /* 8: 64-bit code */
    .quad 0x00cf93000000ffff                            /* 16: data */
boot_gdtr:
    .short 23
    .quad boot_gdt

.section .bss.boot, "aw", @nobits
.balign 4096
boot_tables:
    .skip 6 * 4096
boot_stack:
    .skip 256 * 1024
boot_stack_top:
