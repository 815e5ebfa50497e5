//! The last steps: image and structures into frames, the page table, the jump.
//!
//! # Invariants
//! * INV-HANDOFF-1: everything the kernel is handed lies in frames (so it is marked `Bootloader`) or in modules, and is
//!   named by its address in the direct map.

use crate::{
    error::BootError,
    image::Image,
    info::{LoaderInfo, Range, Rsdp},
    memory::{self, Frames, PAGE},
    modules::Modules,
    paging::{NO_EXECUTE, Tables, WRITE},
};
use bootloader_api::{
    BootInfo,
    info::{MemoryRegion, MemoryRegionKind, MemoryRegions, Optional},
};
use bundle::{BundleInfo, handover};
use core::{arch, convert::Infallible, mem, ptr, slice};

unsafe extern "C" {
    static __boot_start: u8;
    static __boot_text_end: u8;
    static __boot_end: u8;
}

/// Where boot itself lies.
pub fn boot_range() -> Range {
    Range {
        start: &raw const __boot_start as u64,
        end: &raw const __boot_end as u64,
    }
}

/// Builds everything and jumps to the kernel.
pub fn enter(
    info: &LoaderInfo<'_>,
    modules: &Modules<'_>,
    image: &Image<'_>,
    frames: &mut Frames,
    entry_tsc: u64,
) -> Result<Infallible, BootError> {
    let direct = |phys: u64| image.direct_map + phys;
    let image_phys = load(image, frames)?;
    let stack_phys = frames.take(image.stack_len / PAGE)?;
    let cmdline = copy(frames, info.cmdline)?;
    let rsdp = match &info.rsdp {
        Rsdp::Unknown => Optional::None,
        Rsdp::At(phys) => Optional::Some(*phys),
        Rsdp::Copied(bytes) => Optional::Some(copy(frames, bytes)?),
    };

    let span = image.span();
    let mut tables = Tables::new(frames)?;
    for s in &image.segments {
        let flags = if s.write { WRITE } else { 0 } | if s.execute { 0 } else { NO_EXECUTE };
        tables.map(s.pages, image_phys + (s.pages.start - span.start), flags)?;
    }
    let stack = Range {
        start: image.stack_bottom,
        end: image.stack_bottom + image.stack_len,
    };
    tables.map(stack, stack_phys, WRITE | NO_EXECUTE)?;
    let boot_code = Range {
        start: boot_range().start,
        end: &raw const __boot_text_end as u64,
    };
    tables.map_identity(boot_code)?;
    let unfinished = tables.frames().map(info);
    tables.map_direct(image.direct_map, &unfinished, has_1g_pages())?;
    let pml4 = tables.pml4;

    let bundle_info = place(
        frames,
        BundleInfo {
            magic: handover::MAGIC,
            version: handover::VERSION,
            loader: info.loader as u32,
            cmdline: [direct(cmdline), info.cmdline.len() as u64],
            initramfs: [
                direct(modules.initramfs.as_ptr() as u64),
                modules.initramfs.len() as u64,
            ],
            image_phys,
            image_virt: span.start,
            image_len: span.end - span.start,
            pml4_phys: pml4,
            entry_tsc,
        },
    )?;
    let boot_info_at = frames.take(1)?;
    let mut boot_info = BootInfo::new(told_regions(info, frames, image.direct_map)?);
    boot_info.physical_memory_offset = Optional::Some(image.direct_map);
    boot_info.rsdp_addr = rsdp;
    boot_info.ramdisk_addr = Optional::Some(direct(bundle_info));
    boot_info.ramdisk_len = mem::size_of::<BundleInfo>() as u64;
    boot_info.kernel_addr = image.file.as_ptr() as u64;
    boot_info.kernel_len = image.file.len() as u64;
    boot_info.kernel_image_offset = 0;
    boot_info.kernel_stack_bottom = stack.start;
    boot_info.kernel_stack_len = image.stack_len;
    const { assert!(mem::size_of::<BootInfo>() <= PAGE as usize) };
    // SAFETY: a page of our own, mapped one to one, large enough (above).
    unsafe { ptr::write(boot_info_at as *mut BootInfo, boot_info) };

    // SAFETY: the table maps this code (map_identity), the stack and the entry point, which is an `entry_point!`: it
    // takes the address of the BootInfo in rdi and a stack as after a call, and never returns.
    unsafe {
        arch::asm!(
            "mov cr3, {table}", "mov rsp, {stack}", "xor ebp, ebp", "push 0", "jmp {entry}",
            table = in(reg) pml4, stack = in(reg) stack.end, entry = in(reg) image.entry,
            in("rdi") direct(boot_info_at), options(noreturn)
        )
    }
}

/// Copies the segments into fresh frames in one piece and returns their physical address.
fn load(image: &Image<'_>, frames: &mut Frames) -> Result<u64, BootError> {
    let span = image.span();
    let len = span.end - span.start;
    let phys = frames.take(len / PAGE)?;
    // SAFETY: frames of our own (INV-FRAMES-1), mapped one to one.
    let memory = unsafe { slice::from_raw_parts_mut(phys as *mut u8, len as usize) };
    memory.fill(0);
    for s in &image.segments {
        let at = (s.start - span.start) as usize;
        memory[at..at + s.bytes.len()].copy_from_slice(s.bytes);
    }
    Ok(phys)
}

/// Copies `bytes` into frames and returns their physical address.
fn copy(frames: &mut Frames, bytes: &[u8]) -> Result<u64, BootError> {
    let at = frames.take((bytes.len() as u64).div_ceil(PAGE))?;
    // SAFETY: frames of our own, as many as it takes; the source is none of them (INV-FRAMES-1).
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
    Ok(at)
}

/// Moves `value` into a frame and returns its physical address.
fn place<T>(frames: &mut Frames, value: T) -> Result<u64, BootError> {
    const { assert!(mem::size_of::<T>() <= PAGE as usize && mem::align_of::<T>() <= PAGE as usize) };
    let at = frames.take(1)?;
    // SAFETY: a frame of our own, large enough and aligned.
    unsafe { ptr::write(at as *mut T, value) };
    Ok(at)
}

/// The memory map for the kernel. The last to take frames: what is taken later would be missing from it.
fn told_regions(
    info: &LoaderInfo<'_>,
    frames: &mut Frames,
    direct_map: u64,
) -> Result<MemoryRegions, BootError> {
    const BYTES: usize = memory::MAX_TOLD * mem::size_of::<MemoryRegion>();
    let at = frames.take((BYTES as u64).div_ceil(PAGE))?;
    let none = MemoryRegion {
        start: 0,
        end: 0,
        kind: MemoryRegionKind::Usable,
    };
    // SAFETY: frames of our own, large enough; written before they are referred to.
    let out = unsafe {
        let first = at as *mut MemoryRegion;
        for i in 0..memory::MAX_TOLD {
            first.add(i).write(none);
        }
        slice::from_raw_parts_mut(first, memory::MAX_TOLD)
    };
    let count = memory::regions(&frames.map(info), out)?;
    let seen_by_kernel = (direct_map + at) as *mut MemoryRegion;
    // SAFETY: nobody follows this reference before the kernel does, in whose table the address is valid.
    Ok(MemoryRegions::from(unsafe {
        slice::from_raw_parts_mut(seen_by_kernel, count)
    }))
}

fn has_1g_pages() -> bool {
    const PDPE1GB: u32 = 1 << 26;
    arch::x86_64::__cpuid(0x8000_0001).edx & PDPE1GB != 0
}
