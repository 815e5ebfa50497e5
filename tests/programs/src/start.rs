//! From the initial stack to `main`.
//!
//! ```text
//! rsp -> argc | argv[0] .. argv[argc-1] | 0 | envp.. | 0 | auxv: (type, value).. (0, 0) | strings
//! ```

use core::ffi::CStr;

/// Auxiliary vector types.
#[allow(missing_docs, reason = "the names of the ABI")]
pub mod at {
    pub const PHDR: usize = 3;
    pub const PHENT: usize = 4;
    pub const PHNUM: usize = 5;
    pub const PAGESZ: usize = 6;
    pub const BASE: usize = 7;
    pub const FLAGS: usize = 8;
    pub const ENTRY: usize = 9;
    pub const UID: usize = 11;
    pub const EUID: usize = 12;
    pub const GID: usize = 13;
    pub const EGID: usize = 14;
    pub const HWCAP: usize = 16;
    pub const CLKTCK: usize = 17;
    pub const SECURE: usize = 23;
    pub const RANDOM: usize = 25;
    pub const EXECFN: usize = 31;
}

/// The initial stack of a process.
#[derive(Clone, Copy)]
pub struct Args {
    sp: *const usize,
}

impl Args {
    /// Views the initial stack.
    ///
    /// # Safety
    /// `sp` is the stack pointer at process entry, and nobody has written above it.
    pub const unsafe fn new(sp: *const usize) -> Args {
        Args { sp }
    }

    fn word(&self, index: usize) -> usize {
        // SAFETY: `new`'s contract; callers stop at the terminating zeros.
        unsafe { *self.sp.add(index) }
    }

    /// The stack pointer at entry.
    pub fn stack_pointer(&self) -> usize {
        self.sp as usize
    }

    /// Number of arguments.
    pub fn nr(&self) -> usize {
        self.word(0)
    }

    /// Argument `index`, the program's name being 0.
    pub fn get(&self, index: usize) -> Option<&'static CStr> {
        if index < self.nr() {
            string(self.word(1 + index))
        } else {
            None
        }
    }

    /// The argument vector from `index` on, for `execve`.
    pub fn argv_from(&self, index: usize) -> *const usize {
        self.sp.wrapping_add(1 + index.min(self.nr()))
    }

    /// The environment vector, for `execve`.
    pub fn envp(&self) -> *const usize {
        self.sp.wrapping_add(2 + self.nr())
    }

    /// Environment string `index`.
    pub fn env(&self, index: usize) -> Option<&'static CStr> {
        if index < self.nr_env() {
            string(self.word(2 + self.nr() + index))
        } else {
            None
        }
    }

    /// Number of environment strings.
    pub fn nr_env(&self) -> usize {
        let first = 2 + self.nr();
        (0..).take_while(|i| self.word(first + i) != 0).count()
    }

    /// The value of auxiliary vector entry `kind`.
    pub fn aux(&self, kind: usize) -> Option<usize> {
        let mut index = 3 + self.nr() + self.nr_env();
        while self.word(index) != 0 {
            if self.word(index) == kind {
                return Some(self.word(index + 1));
            }
            index += 2;
        }
        None
    }

    /// The path that was executed.
    pub fn execfn(&self) -> &'static CStr {
        self.aux(at::EXECFN).and_then(string).unwrap_or(c"")
    }
}

fn string(address: usize) -> Option<&'static CStr> {
    if address == 0 {
        return None;
    }
    // SAFETY: the kernel put NUL-terminated strings there that live as long as the process.
    Some(unsafe { CStr::from_ptr(address as *const core::ffi::c_char) })
}

/// Makes `_start`, which calls `$main(&Args) -> i32` and exits with its result.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        /// Process entry: rsp points at argc, everything else is unspecified.
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        extern "C" fn _start() -> ! {
            core::arch::naked_asm!(
                "xor ebp, ebp",
                "mov rdi, rsp",
                "and rsp, -16",
                "call {start}",
                "ud2",
                start = sym start,
            )
        }

        extern "C" fn start(sp: *const usize) -> ! {
            // SAFETY: `_start` passes the stack pointer the process began with.
            let args = unsafe { $crate::Args::new(sp) };
            let main: fn(&$crate::Args) -> i32 = $main;
            $crate::process::exit_group(main(&args))
        }
    };
}
