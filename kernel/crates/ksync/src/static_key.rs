//! Switches that cost at most a NOP while off.
//!
//! # Problem
//! Lock statistics and tracing sit on the hottest paths. Even a flag that is never set costs a load, a compare and a
//! cache line.
//!
//! # Mechanism
//! On the machine [`static_branch!`](crate::static_branch) expands to a five-byte NOP and a record in the link
//! section `__jump_table`: where the NOP is, where to go when the key is on, and which key:
//!
//! ```text
//!   .text      ...  nop5  ...            __jump_table   { site, target, key }
//!                   │                                     { site, target, key }
//!                   └─ becomes `jmp target` when the key is on, by patch_all
//! ```
//!
//! Keys are turned on at boot from the command line; then, while text is still writable and one CPU runs, the kernel
//! calls `patch_all`. There is no patching later: a running machine would need every CPU stopped.
//! Off the machine a key is an atomic flag and may change at any time.
//!
//! # Invariants
//! - INV-KEY-1: every record's `site` is five bytes of text that hold the NOP, or what `patch_all` wrote there.
//! - INV-KEY-2: on the machine `static_branch!` gives the key's value at the last `patch_all`.
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A switch, declared by [`static_key!`](crate::static_key!), off at first.
#[repr(C)]
pub struct StaticKey {
    enabled: AtomicBool,
}

impl StaticKey {
    /// A key that is off.
    pub const fn new() -> Self {
        StaticKey {
            enabled: AtomicBool::new(false),
        }
    }

    /// Turns the key on. On the machine it takes effect at `patch_all`. Any context.
    pub fn enable(&self) {
        self.enabled.store(true, Relaxed);
    }

    /// Turns the key off, with effect as for [`enable`](Self::enable).
    pub fn disable(&self) {
        self.enabled.store(false, Relaxed);
    }

    /// Whether the key was turned on: a load, so not for hot paths.
    #[inline(always)]
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Relaxed)
    }
}

/// Declares switches: `static_key! { /// doc
/// pub static TRACE_FORK; }`, tested by `static_branch!(TRACE_FORK)`.
#[macro_export]
macro_rules! static_key {
    ($($(#[$m:meta])* $v:vis static $name:ident;)*) => {
        $($(#[$m])* $v static $name: $crate::static_key::StaticKey = $crate::static_key::StaticKey::new();)*
    };
}

/// Whether a static key is on: a NOP while off. `if static_branch!(KEY) { rare() }`.
#[cfg(target_os = "none")]
#[macro_export]
macro_rules! static_branch {
    ($key:path) => {
        'branch: {
            // SAFETY: a NOP that may be patched to jump to the label (INV-KEY-1).
            unsafe {
                ::core::arch::asm!(
                    "2: .byte 0x0f, 0x1f, 0x44, 0x00, 0x00",
                    ".pushsection __jump_table, \"aR\"",
                    ".balign 8",
                    ".quad 2b, {target}, {key}",
                    ".popsection",
                    key = sym $key,
                    target = label { break 'branch true },
                    options(nomem, nostack, preserves_flags)
                )
            };
            false
        }
    };
}

/// Whether a static key is on: here a load.
#[cfg(not(target_os = "none"))]
#[macro_export]
macro_rules! static_branch {
    ($key:path) => {
        $key.is_enabled()
    };
}

#[cfg(target_os = "none")]
pub use bare::{nr_sites, patch_all};

/// The patching, pure so that it is tested on the host.
#[cfg(any(target_os = "none", test))]
const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];

/// `jmp target` for an instruction at `site`.
#[cfg(any(target_os = "none", test))]
fn jmp_bytes(site: usize, target: usize) -> [u8; 5] {
    let displacement = target.wrapping_sub(site + 5) as isize;
    let displacement = i32::try_from(displacement).expect("static branch target beyond 2 GiB");
    let [a, b, c, d] = displacement.to_le_bytes();
    [0xe9, a, b, c, d]
}

#[cfg(target_os = "none")]
mod bare {
    use super::{NOP5, StaticKey, jmp_bytes};

    /// A record of `__jump_table`, as the assembly above lays it out.
    #[repr(C)]
    struct JumpEntry {
        site: usize,
        target: usize,
        key: &'static StaticKey,
    }

    unsafe extern "C" {
        // Defined by the linker for a section whose name is a C identifier.
        static __start___jump_table: JumpEntry;
        static __stop___jump_table: JumpEntry;
    }

    fn table() -> &'static [JumpEntry] {
        let start = &raw const __start___jump_table;
        let stop = &raw const __stop___jump_table;
        // SAFETY: the linker puts all records of the image, and nothing else, between the two.
        unsafe {
            core::slice::from_raw_parts(
                start,
                (stop as usize - start as usize) / size_of::<JumpEntry>(),
            )
        }
    }

    /// Number of static branches in the image.
    pub fn nr_sites() -> usize {
        table().len()
    }

    /// Calls `write(address, bytes)` for every static branch, with a jump where its key is on and a NOP where it is
    /// off. Boot, one CPU, IRQs off, no lock held; `write` must be able to write text (through another mapping, say),
    /// and the caller executes a serialising instruction afterwards.
    pub fn patch_all(mut write: impl FnMut(usize, [u8; 5])) {
        for entry in table() {
            let bytes = if entry.key.is_enabled() {
                jmp_bytes(entry.site, entry.target)
            } else {
                NOP5
            };
            write(entry.site, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static_key! {
        static OFF;
        static ON;
    }

    #[test]
    fn a_key_is_off_until_enabled() {
        assert!(!static_branch!(OFF));
        ON.enable();
        assert!(static_branch!(ON));
        ON.disable();
        assert!(!static_branch!(ON));
    }

    #[test]
    fn jump_bytes_are_relative_to_the_next_instruction() {
        assert_eq!(jmp_bytes(0x1000, 0x1005), [0xe9, 0, 0, 0, 0]);
        assert_eq!(
            jmp_bytes(0xffff_ffff_8000_1000, 0xffff_ffff_8000_0fff),
            [0xe9, 0xfa, 0xff, 0xff, 0xff]
        );
        assert_eq!(NOP5.len(), 5);
    }
}
