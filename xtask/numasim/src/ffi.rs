//! QEMU's plugin interface, version 4 (QEMU 10.0), as far as it is used here, and a futex.
//!
//! Declared by hand from the interface's documentation, so that building needs no header of QEMU. QEMU itself refuses
//! a plugin whose version it does not speak.

use std::ffi::{c_char, c_int, c_long, c_void};
use std::sync::atomic::AtomicU32;

/// The version of the interface.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 4;

/// The plugin's name for itself, from QEMU.
pub type Id = u64;
/// A callback about a CPU.
pub type CpuCallback = extern "C" fn(Id, u32);
/// A callback from translated code.
pub type CodeCallback = extern "C" fn(u32, *mut c_void);
/// A callback after an access to memory.
pub type MemoryCallback = extern "C" fn(u32, u32, u64, *mut c_void);

/// Registers are not touched.
pub const NO_REGISTERS: c_int = 0;
/// Registers are read.
pub const READ_REGISTERS: c_int = 1;
/// Loads and stores.
pub const READ_WRITE: c_int = 3;
/// Inline: add to a word.
pub const ADD: c_int = 0;
/// Condition: greater or equal.
pub const GREATER_OR_EQUAL: c_int = 7;

/// What QEMU says about itself.
#[repr(C)]
pub struct Info {
    pub target: *const c_char,
    pub version_min: c_int,
    pub version_now: c_int,
    pub system_emulation: bool,
    pub cpus: c_int,
    pub cpus_max: c_int,
}

/// A word per CPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entry {
    pub score: *mut c_void,
    pub offset: usize,
}

#[repr(C)]
pub struct ByteArray {
    pub data: *mut u8,
    pub len: u32,
}

#[repr(C)]
pub struct Array {
    pub data: *mut u8,
    pub len: u32,
}

/// A register's description.
#[repr(C)]
pub struct Register {
    pub handle: *mut c_void,
    pub name: *const c_char,
    pub feature: *const c_char,
}

unsafe extern "C" {
    pub fn qemu_plugin_register_vcpu_init_cb(id: Id, callback: CpuCallback);
    pub fn qemu_plugin_register_vcpu_idle_cb(id: Id, callback: CpuCallback);
    pub fn qemu_plugin_register_vcpu_resume_cb(id: Id, callback: CpuCallback);
    pub fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, callback: extern "C" fn(Id, *mut c_void));
    pub fn qemu_plugin_register_atexit_cb(
        id: Id,
        callback: extern "C" fn(Id, *mut c_void),
        data: *mut c_void,
    );
    pub fn qemu_plugin_register_vcpu_tb_exec_cond_cb(
        block: *mut c_void,
        callback: CodeCallback,
        flags: c_int,
        condition: c_int,
        entry: Entry,
        than: u64,
        data: *mut c_void,
    );
    pub fn qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(
        block: *mut c_void,
        what: c_int,
        entry: Entry,
        by: u64,
    );
    pub fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: *mut c_void,
        callback: CodeCallback,
        flags: c_int,
        data: *mut c_void,
    );
    pub fn qemu_plugin_register_vcpu_mem_cb(
        instruction: *mut c_void,
        callback: MemoryCallback,
        flags: c_int,
        accesses: c_int,
        data: *mut c_void,
    );
    pub fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize;
    pub fn qemu_plugin_tb_get_insn(block: *const c_void, number: usize) -> *mut c_void;
    pub fn qemu_plugin_insn_data(instruction: *const c_void, to: *mut c_void, len: usize) -> usize;
    pub fn qemu_plugin_insn_haddr(instruction: *const c_void) -> *mut u8;
    pub fn qemu_plugin_insn_vaddr(instruction: *const c_void) -> u64;
    pub fn qemu_plugin_mem_is_store(info: u32) -> bool;
    pub fn qemu_plugin_mem_size_shift(info: u32) -> u32;
    pub fn qemu_plugin_get_hwaddr(info: u32, address: u64) -> *mut c_void;
    pub fn qemu_plugin_hwaddr_is_io(address: *const c_void) -> bool;
    pub fn qemu_plugin_hwaddr_phys_addr(address: *const c_void) -> u64;
    pub fn qemu_plugin_scoreboard_new(size: usize) -> *mut c_void;
    pub fn qemu_plugin_scoreboard_find(board: *mut c_void, cpu: u32) -> *mut c_void;
    pub fn qemu_plugin_get_registers() -> *mut Array;
    pub fn qemu_plugin_read_register(handle: *mut c_void, to: *mut ByteArray) -> c_int;
    pub fn g_byte_array_new() -> *mut ByteArray;
    pub fn g_byte_array_free(array: *mut ByteArray, with_data: c_int) -> *mut u8;
    fn syscall(number: c_long, ...) -> c_long;
}

const SYS_FUTEX: c_long = 202;
const FUTEX_WAIT_PRIVATE: c_long = 128;
const FUTEX_WAKE_PRIVATE: c_long = 129;

/// Sleeps while `word` is `value`; may wake for no reason.
pub fn futex_wait(word: &AtomicU32, value: u32) {
    // SAFETY: the word lives while we wait, and no timeout is given.
    unsafe {
        syscall(
            SYS_FUTEX,
            word.as_ptr(),
            FUTEX_WAIT_PRIVATE,
            c_long::from(value),
            0usize,
            0usize,
            0usize,
        )
    };
}

/// Wakes who sleeps on `word`.
pub fn futex_wake(word: &AtomicU32) {
    // SAFETY: only the address counts.
    unsafe {
        syscall(
            SYS_FUTEX,
            word.as_ptr(),
            FUTEX_WAKE_PRIVATE,
            1 as c_long,
            0usize,
            0usize,
            0usize,
        )
    };
}
