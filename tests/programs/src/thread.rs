//! Threads: `clone` with a stack, join by the futex that the kernel clears.

use crate::abi::*;
use crate::sys;
use core::arch::naked_asm;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// The flags that a C library uses for a thread, without TLS.
pub const FLAGS: usize = CLONE_VM
    | CLONE_FS
    | CLONE_FILES
    | CLONE_SIGHAND
    | CLONE_THREAD
    | CLONE_SYSVSEM
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID;

/// Bytes of stack of a thread.
pub const STACK: usize = 64 * 1024;

/// A thread's stack and the word that the kernel clears when the thread has ended.
pub struct Thread {
    stack: usize,
    /// The thread's id while it lives, then 0.
    pub tid: AtomicU32,
}

/// clone(flags, stack, parent_tid, child_tid, tls); the child takes its function and argument from
/// the new stack. An ordinary C function for the caller.
#[unsafe(naked)]
unsafe extern "C" fn clone_raw(
    flags: usize,
    stack: usize,
    ptid: usize,
    ctid: usize,
    tls: usize,
) -> isize {
    naked_asm!(
        "mov r10, rcx",
        "mov eax, 56",
        "syscall",
        "test rax, rax",
        "jz 2f",
        "ret",
        "2:",
        "xor ebp, ebp",
        "pop rax",
        "pop rdi",
        "call rax",
        "mov edi, eax",
        "mov eax, 60",
        "syscall",
        "ud2",
    )
}

/// Clones with `flags` onto the stack that ends at `top`; the child runs `body(argument)` there and
/// ends its thread with the result. Returns the raw result.
///
/// # Safety
/// `top` is 16-byte aligned, enough memory below it belongs to the child alone, `tids` outlive the
/// child, and with CLONE_VM `body` is fit to run beside the caller.
pub unsafe fn clone(
    flags: usize,
    top: usize,
    body: extern "C" fn(usize) -> i32,
    argument: usize,
    tids: [usize; 2],
    tls: usize,
) -> isize {
    let frame = (top - 16) as *mut usize;
    // SAFETY: the caller gives the stack away.
    unsafe {
        frame.write(body as usize);
        frame.add(1).write(argument);
        clone_raw(flags, frame as usize, tids[0], tids[1], tls)
    }
}

impl Thread {
    /// A thread slot with a mapped stack, not running.
    pub fn new() -> Thread {
        Thread {
            stack: map_stack(),
            tid: AtomicU32::new(0),
        }
    }

    /// The lowest address of the stack.
    pub fn stack(&self) -> usize {
        self.stack
    }

    /// Starts `body(argument)`. The slot must stay where it is until [`Thread::join`]. Returns the tid
    /// or the raw error.
    pub fn start(&self, body: extern "C" fn(usize) -> i32, argument: usize) -> isize {
        self.start_with(FLAGS, body, argument, 0)
    }

    /// The same with chosen flags and TLS base.
    pub fn start_with(
        &self,
        flags: usize,
        body: extern "C" fn(usize) -> i32,
        argument: usize,
        tls: usize,
    ) -> isize {
        let tid = self.tid.as_ptr() as usize;
        // SAFETY: the stack belongs to this slot, whose last thread has ended (tid 0).
        unsafe { clone(flags, self.stack + STACK, body, argument, [tid, tid], tls) }
    }

    /// Waits until the kernel has cleared the tid: the thread is off its stack.
    pub fn join(&self) {
        loop {
            let tid = self.tid.load(SeqCst);
            if tid == 0 {
                return;
            }
            sys!(FUTEX, self.tid.as_ptr(), FUTEX_WAIT, tid, 0);
        }
    }

    /// Unmaps the stack of an ended thread.
    pub fn free(self) {
        sys!(MUNMAP, self.stack, STACK);
    }
}

impl Default for Thread {
    fn default() -> Thread {
        Thread::new()
    }
}

/// Maps a stack; 0-page failure shows as a fault of the thread.
pub fn map_stack() -> usize {
    sys!(MMAP, 0, STACK, RW, ANON, -1isize, 0) as usize
}

/// Sleeps while `word` holds `value`.
pub fn futex_wait(word: &AtomicU32, value: u32) -> isize {
    sys!(FUTEX, word.as_ptr(), FUTEX_WAIT | FUTEX_PRIVATE, value, 0)
}

/// Wakes up to `nr` sleepers.
pub fn futex_wake(word: &AtomicU32, nr: u32) -> isize {
    sys!(FUTEX, word.as_ptr(), FUTEX_WAKE | FUTEX_PRIVATE, nr)
}
