//! The loader stage: entered by PVH or multiboot2, it loads the kernel's ELF and calls its `entry_point!`.
//!
//! # Problem
//! The kernel wants to start in 64-bit mode, at its linked address, with its segments protected and with
//! `bootloader_api::BootInfo`; QEMU's `-kernel` and GRUB start an ELF in 32-bit mode without paging.
//!
//! # Mechanism
//! 1. `entry.s` brings the boot CPU to long mode on an identity map of the low 4 GiB.
//! 2. [`pvh`] or [`multiboot2`] turns the loader's structure into one [`info::LoaderInfo`].
//! 3. [`modules`] finds kernel and initramfs: in a bundle, or as two modules.
//! 4. [`memory`] finds room in RAM that nobody uses; [`image`] checks the kernel and says where its pages go.
//! 5. [`paging`] and [`handoff`] build the page tables and the hand-over and jump.
//!
//! # The kernel's address space at entry
//! ```text
//! 0000_0000_0000_1000  the low 1 MiB and boot's code, identity-mapped, readable and executable, never writable: for
//!                      the start-up code of other CPUs. The kernel drops PML4 entry 0 when it no longer needs it
//! ffff_8880_0000_0000  the direct map: all RAM and, below 4 GiB, everything else (uncached where no firmware
//!                      region is listed); 1 GiB pages where they fit, else 2 MiB; writable, never executable
//! ffff_ffff_8000_0000  the kernel's segments in 4 KiB pages, each with its ELF flags, none writable and executable;
//!                      physically in one piece
//! ffff_ffff_f000_0000  an unmapped page, then the boot CPU's stack of `BootloaderConfig::kernel_stack_size` bytes
//! ```
//! Interrupts are off, CR0.WP and EFER.NXE are on, GDT and IDT are to be set by the kernel.
//!
//! # Errors
//! Whatever is wrong is said on COM1, and QEMU ends with a failing code through isa-debug-exit.
//!
//! # Lock order
//! None: one CPU, interrupts off.
//!
//! On the host only the parts without hardware are compiled, for their tests.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(not(target_os = "none"), allow(dead_code))]

mod error;
#[cfg(target_os = "none")]
mod handoff;
mod image;
mod info;
mod memory;
mod modules;
mod multiboot2;
#[cfg(target_os = "none")]
mod paging;
mod pvh;
#[cfg(target_os = "none")]
mod serial;

#[cfg(target_os = "none")]
mod entry {
    use super::*;
    use core::{arch::global_asm, panic::PanicInfo};
    use error::BootError;

    global_asm!(include_str!("entry.s"));

    /// The first Rust code, called by `entry.s` on its stack with the loader's two registers.
    #[unsafe(no_mangle)]
    extern "C" fn boot_main(magic: u32, info: u32) -> ! {
        // SAFETY: RDTSC is in every CPU with long mode.
        let entry_tsc = unsafe { core::arch::x86_64::_rdtsc() };
        match start(magic, u64::from(info), entry_tsc) {
            Err(error) => serial::fail(format_args!("boot: error: {error}")),
            Ok(never) => match never {},
        }
    }

    fn start(magic: u32, at: u64, entry_tsc: u64) -> Result<core::convert::Infallible, BootError> {
        let low: &info::Memory<'static> = &info::low_memory;
        let info = if magic == multiboot2::MAGIC {
            multiboot2::parse(low, at)?
        } else {
            pvh::parse(low, at)?
        };
        let modules = modules::find(&info, low)?;
        let kernel = image::Image::parse(modules.kernel)?;
        let mut frames = memory::Frames::largest_gap(&info, handoff::boot_range())?;
        handoff::enter(&info, &modules, &kernel, &mut frames, entry_tsc)
    }

    #[panic_handler]
    fn panic(info: &PanicInfo<'_>) -> ! {
        serial::fail(format_args!("boot: panic: {info}"))
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
