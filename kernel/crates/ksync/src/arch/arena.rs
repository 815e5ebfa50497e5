//! Memory off the machine: an arena that stands for physical memory, and per-CPU windows.
use super::{CpuHead, cpu_to_node};
use crate::{NR_CPUS, PAGE_SIZE};
use std::sync::OnceLock;

/// log2 of the size of a window on the host: 16 MiB.
pub const PERCPU_WINDOW_SHIFT: u32 = 24;
/// Bytes of a page descriptor.
const PAGE_DESCRIPTOR_SIZE: usize = 64;

struct Arena {
    bytes: usize,
    direct: usize,
    vmemmap: usize,
}

static ARENA: OnceLock<Arena> = OnceLock::new();
static WINDOWS: OnceLock<usize> = OnceLock::new();

unsafe extern "C" {
    fn mmap(addr: *mut u8, len: usize, prot: i32, flags: i32, fd: i32, off: i64) -> *mut u8;
}

/// Reserves zeroed memory that costs nothing until touched.
fn reserve(bytes: usize) -> usize {
    const PROT_READ_WRITE: i32 = 0x1 | 0x2;
    const PRIVATE_ANON_NORESERVE: i32 = 0x2 | 0x20 | 0x4000;
    // SAFETY: a fresh private mapping disturbs nothing.
    let p = unsafe {
        mmap(
            core::ptr::null_mut(),
            bytes,
            PROT_READ_WRITE,
            PRIVATE_ANON_NORESERVE,
            -1,
            0,
        )
    };
    assert!(p as isize != -1, "mmap of {bytes} bytes failed");
    p as usize
}

/// Makes the arena that stands for physical memory `0..bytes`; later calls keep the first one.
/// Returns its size in bytes.
pub fn init_arena(bytes: usize) -> usize {
    let bytes = bytes.next_multiple_of(PAGE_SIZE);
    let vmemmap_bytes = bytes / PAGE_SIZE * PAGE_DESCRIPTOR_SIZE;
    ARENA
        .get_or_init(|| Arena {
            bytes,
            direct: reserve(bytes),
            vmemmap: reserve(vmemmap_bytes),
        })
        .bytes
}

fn arena() -> &'static Arena {
    ARENA.get().expect("arch::host::init_arena was not called")
}

/// Address of physical address `pa` in the arena.
#[inline]
pub fn phys_to_virt(pa: usize) -> *mut u8 {
    let arena = arena();
    debug_assert!(pa <= arena.bytes);
    (arena.direct + pa) as *mut u8
}

/// Address of the descriptor of the page that holds `va`.
#[inline]
pub fn page_desc_of(va: *const u8) -> usize {
    vmemmap_base() + (virt_to_phys(va) >> 12) * 64
}

/// Physical address behind an arena address.
#[inline]
pub fn virt_to_phys(va: *const u8) -> usize {
    let arena = arena();
    debug_assert!((arena.direct..=arena.direct + arena.bytes).contains(&(va as usize)));
    va as usize - arena.direct
}

/// Address of the page descriptor of frame 0.
#[inline]
pub fn vmemmap_base() -> usize {
    arena().vmemmap
}

/// Start of `cpu`'s window.
#[inline]
pub fn percpu_base(cpu: usize) -> usize {
    let base = *WINDOWS.get_or_init(|| {
        let base = reserve(NR_CPUS << PERCPU_WINDOW_SHIFT);
        if cfg!(not(loom)) {
            for cpu in 0..NR_CPUS {
                // SAFETY: inside the mapping; zeroed bytes are a valid head.
                let head = unsafe { &*((base + (cpu << PERCPU_WINDOW_SHIFT)) as *const CpuHead) };
                head.init(cpu, cpu_to_node(cpu));
            }
        }
        base
    });
    base + (cpu << PERCPU_WINDOW_SHIFT)
}

/// Clears the page at `p`.
///
/// # Safety
/// `p` is page aligned, mapped, and the page is the caller's alone.
pub unsafe fn clear_page(p: *mut u8) {
    debug_assert!((p as usize).is_multiple_of(PAGE_SIZE));
    // SAFETY: the caller's promise.
    unsafe { core::ptr::write_bytes(p, 0, PAGE_SIZE) }
}

/// Copies a page.
///
/// # Safety
/// Both are page aligned and mapped, `dst` is the caller's alone, and `src` is not written meanwhile.
pub unsafe fn copy_page(dst: *mut u8, src: *const u8) {
    debug_assert!(
        (dst as usize).is_multiple_of(PAGE_SIZE) && (src as usize).is_multiple_of(PAGE_SIZE)
    );
    // SAFETY: the caller's promise.
    unsafe { core::ptr::copy_nonoverlapping(src, dst, PAGE_SIZE) }
}
