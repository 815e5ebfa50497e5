//! QEMU's threads as coroutines of the simulation: callbacks, clocks, the hand-over of the token.
//!
//! # Clocks
//! QEMU adds each block's number of instructions to a word per CPU, inline, and calls us when the word has reached
//! [`TRAP`]: the only comparison it offers. So a CPU's clock is that word plus an offset, chosen such that the word
//! reaches `TRAP` when the clock reaches the CPU's limit. The word and the offset are touched by their CPU's thread
//! alone; others leave a clock and a limit in [`Vcpu`] with the token.
//!
//! # Threads
//! A CPU's thread without the token sleeps in [`turns::block`], called at the start of a block of code or after an access,
//! or is halted in QEMU. Callbacks about halting run with QEMU's big lock held and never sleep. QEMU sometimes wants
//! all its threads at once (to flush its translations, to shut down); they sleep here and do not come. A watchdog
//! notices that nothing moves and lets each go for one block. That changes what the simulation says, so it is counted,
//! and a window in which it happened is not valid.
//!
//! # Invariants
//! - INV-PLUGIN-1: `Own` is touched by its CPU's thread; by the thread with the token too, for a CPU that has not got
//!   it; and by the thread that begins the simulation, when all others are halted.
//! - INV-PLUGIN-2: the model and what else [`World::model`] guards is touched with the token only (INV-SIM-1).

mod interrupts;
mod markers;
mod memory;
mod turns;

use crate::coherence::Model;
use crate::config::{Config, MAX_CPUS};
use crate::ffi::*;
use crate::output::End;
use crate::protocol::{self, Instruction, Slot};
use crate::spin::Detector;
use crate::token::Token;
use std::cell::{Cell, UnsafeCell};
use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs::File;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering::*};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Where a CPU's word makes QEMU call.
const TRAP: u64 = 1 << 62;
/// How far a CPU may run ahead while memory is free, in cycles.
const SETUP_SLACK: u64 = 20_000;
/// A turn of a waiting loop while memory is free, in cycles: it might as well wait longer.
const SETUP_TURN: u64 = 4_000;
/// How long all CPUs must be halted before a simulation begins.
const QUIET: Duration = Duration::from_millis(30);
/// How long that may take.
const QUIET_PATIENCE: Duration = Duration::from_secs(120);
/// How long a thread that was woken may take.
const LOOK_FOR_ARRIVAL: Duration = Duration::from_secs(30);
/// The watchdog's look, and how many looks without a change it bears.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: u32 = 50;

/// What the simulation does now.
mod mode {
    pub const OFF: u8 = 0;
    /// One CPU at a time, memory is free.
    pub const SETUP: u8 = 1;
    /// Memory costs.
    pub const MODEL: u8 = 2;
}

/// Registers that are read.
const REGISTERS: [&[u8]; 4] = [b"rcx", b"rax", b"rdx", b"eflags"];
const RCX: usize = 0;
const RAX: usize = 1;
const RDX: usize = 2;
const EFLAGS: usize = 3;

/// What a CPU's thread keeps (INV-PLUGIN-1).
struct Own {
    word: Cell<*mut u64>,
    offset: Cell<i64>,
    /// Has the token.
    running: Cell<bool>,
    detector: UnsafeCell<Detector>,
    /// When an interrupt that was sent gets here; 0: none.
    interrupt_at: Cell<u64>,
    registers: Cell<[*mut c_void; 4]>,
}

#[repr(align(128))]
struct Vcpu {
    /// 1: the token is here, with the two words below.
    go: AtomicU32,
    clock: AtomicU64,
    limit: AtomicU64,
    /// 0: its thread runs; 1: halted; 2: halted with interrupts off.
    halted: AtomicU8,
    own: Own,
}

// SAFETY: INV-PLUGIN-1; the rest is atomic.
unsafe impl Sync for Vcpu {}
// SAFETY: as above.
unsafe impl Send for Vcpu {}

/// What callbacks of several threads touch at once.
struct Shared {
    token: Option<Token>,
    end: End,
    out: File,
    /// Lines of the last window that the guest has not been asked about.
    questions: VecDeque<(u64, u64)>,
    /// The open window's begin and breaks before it.
    window: (u64, u64),
}

struct World {
    vcpus: Vec<Vcpu>,
    model: UnsafeCell<Model>,
    shared: Mutex<Shared>,
    /// A thread that was woken is there.
    arrival: Condvar,
    mode: AtomicU8,
    /// Moves when the watchdog breaks the simulation open.
    generation: AtomicU32,
    breaks: AtomicU64,
    /// Moves with the token.
    switches: AtomicU64,
    /// Moves while threads of CPUs that were woken are on the way; the host's doing.
    waits: AtomicU64,
    finished: AtomicBool,
    entry: Entry,
    slots: AtomicPtr<Slot>,
    /// The guest's number of each CPU.
    guest_cpu: Vec<AtomicU32>,
}

// SAFETY: INV-PLUGIN-2 for the model; the entry is a handle.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

static WORLD: OnceLock<World> = OnceLock::new();

#[inline(always)]
fn world() -> &'static World {
    // SAFETY: set before the first callback is registered.
    unsafe { WORLD.get().unwrap_unchecked() }
}

impl World {
    #[inline(always)]
    fn own(&self, cpu: u32) -> &Own {
        &self.vcpus[cpu as usize].own
    }

    /// The model.
    ///
    /// # Safety
    /// The caller has the token, and no other reference from here.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    unsafe fn model(&self) -> &mut Model {
        // SAFETY: INV-PLUGIN-2 by the caller's promise.
        unsafe { &mut *self.model.get() }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Own {
    #[inline(always)]
    fn word(&self) -> u64 {
        // SAFETY: the scoreboard's word of this CPU, fetched anew when the simulation began.
        unsafe { *self.word.get() }
    }

    #[inline(always)]
    fn set_word(&self, value: u64) {
        // SAFETY: as above.
        unsafe { *self.word.get() = value }
    }

    #[inline(always)]
    fn clock(&self) -> u64 {
        (self.word() as i64).wrapping_add(self.offset.get()) as u64
    }

    #[inline(always)]
    fn pass(&self, cycles: u64) {
        self.set_word(self.word() + cycles);
    }

    /// Runs from `clock` until `limit`.
    #[inline]
    fn set(&self, clock: u64, limit: u64) {
        self.offset.set(limit.wrapping_sub(TRAP) as i64);
        self.set_word(clock.wrapping_sub(self.offset.get() as u64));
    }

    #[inline(always)]
    fn is_due(&self) -> bool {
        self.word() >= TRAP
    }

    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    fn detector(&self) -> &mut Detector {
        // SAFETY: INV-PLUGIN-1, and nobody keeps the reference.
        unsafe { &mut *self.detector.get() }
    }

    /// A register's value; `None` if QEMU does not tell.
    fn register(&self, which: usize) -> Option<u64> {
        let handle = self.registers.get()[which];
        if handle.is_null() {
            return None;
        }
        // SAFETY: the handle came from QEMU on this thread; the array is QEMU's allocator's, and freed once.
        unsafe {
            let array = g_byte_array_new();
            let len = qemu_plugin_read_register(handle, array).clamp(0, 8) as usize;
            let mut bytes = [0; 8];
            bytes[..len].copy_from_slice(std::slice::from_raw_parts((*array).data, len));
            g_byte_array_free(array, 1);
            (len > 0).then(|| u64::from_le_bytes(bytes))
        }
    }
}

extern "C" fn translate(_: Id, block: *mut c_void) {
    let w = world();
    // SAFETY: the block and its instructions are QEMU's for the time of this call.
    unsafe {
        let nr = qemu_plugin_tb_n_insns(block);
        qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block, ADD, w.entry, nr as u64);
        qemu_plugin_register_vcpu_tb_exec_cond_cb(
            block,
            turns::block_is_due,
            NO_REGISTERS,
            GREATER_OR_EQUAL,
            w.entry,
            TRAP,
            null_mut(),
        );
        let mut spins = false;
        for number in 0..nr {
            let instruction = qemu_plugin_tb_get_insn(block, number);
            let mut bytes = [0u8; 16];
            let len = qemu_plugin_insn_data(instruction, bytes.as_mut_ptr().cast(), 15);
            let code = qemu_plugin_insn_vaddr(instruction) as *mut c_void;
            let on_execution = |callback, flags, data| {
                qemu_plugin_register_vcpu_insn_exec_cb(instruction, callback, flags, data)
            };
            match protocol::decode(&bytes[..len.min(15)]) {
                Instruction::Marker(3, _) => {
                    spins = true;
                    continue;
                }
                Instruction::Marker(op, operand) => {
                    let host = qemu_plugin_insn_haddr(instruction);
                    let slots = if host.is_null() {
                        null_mut()
                    } else {
                        host.wrapping_offset(operand).cast()
                    };
                    let callback: Option<CodeCallback> = match op {
                        1 => Some(markers::begin),
                        2 => Some(markers::read_clock),
                        4 => Some(markers::end),
                        5 => Some(markers::meet),
                        6 => Some(interrupts::interrupted),
                        7 => Some(markers::name),
                        _ => None,
                    };
                    if let Some(callback) = callback {
                        on_execution(callback, NO_REGISTERS, slots);
                    }
                }
                Instruction::Pause if spins => on_execution(memory::spin_pause, NO_REGISTERS, code),
                Instruction::Pause => on_execution(memory::pause, NO_REGISTERS, code),
                Instruction::Wrmsr => {
                    on_execution(interrupts::write_msr, READ_REGISTERS, null_mut())
                }
                what => {
                    let callback = if what == Instruction::Locked {
                        memory::locked_access
                    } else {
                        memory::plain_access
                    };
                    qemu_plugin_register_vcpu_mem_cb(
                        instruction,
                        callback,
                        NO_REGISTERS,
                        READ_WRITE,
                        code,
                    );
                }
            }
            spins = false;
        }
    }
}

extern "C" fn starts(_: Id, cpu: u32) {
    let own = world().own(cpu);
    // SAFETY: this is the CPU's own thread, where QEMU wants the registers asked for.
    unsafe {
        own.word
            .set(qemu_plugin_scoreboard_find(world().entry.score, cpu).cast());
        let array = qemu_plugin_get_registers();
        let all =
            std::slice::from_raw_parts((*array).data.cast::<Register>(), (*array).len as usize);
        own.registers.set(REGISTERS.map(|name| {
            all.iter()
                .find(|r| CStr::from_ptr(r.name).to_bytes() == name)
                .map_or(null_mut(), |r| r.handle)
        }));
    }
}

extern "C" fn exits(_: Id, _: *mut c_void) {
    let w = world();
    let mut shared = w.lock();
    markers::finish(w, &mut shared);
}

/// Notices that nothing moves, and lets everybody go for one block.
fn watch() {
    let w = world();
    let (mut before, mut same) = ((0, 0), 0u32);
    loop {
        std::thread::sleep(LOOK);
        if w.mode.load(Acquire) == mode::OFF {
            continue;
        }
        let running = w.lock().token.as_ref().and_then(Token::running);
        // SAFETY: a look at a word that its CPU may change meanwhile: any value will do.
        let word = running.map_or(0, |r| unsafe { w.vcpus[r].own.word.get().read_volatile() });
        let now = (w.switches.load(Relaxed) + w.waits.load(Relaxed), word);
        same = if now == before { same + 1 } else { 0 };
        before = now;
        if same > 0 && same.is_multiple_of(LOOKS) {
            w.breaks.fetch_add(1, Relaxed);
            if same == LOOKS {
                let shared = w.lock();
                eprintln!(
                    "numasim: nothing moves: {}",
                    shared
                        .token
                        .as_ref()
                        .map(Token::describe)
                        .unwrap_or_default()
                );
            }
            w.generation.fetch_add(1, Release);
            w.vcpus.iter().for_each(|v| futex_wake(&v.go));
        }
    }
}

fn install(info: &Info, arguments: &[&str]) -> Result<(), String> {
    let (mut config, mut out) = (None, None);
    for argument in arguments {
        match argument.split_once('=') {
            Some(("config", path)) => {
                config = Some(std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?)
            }
            Some(("out", path)) => {
                out = Some(File::create(path).map_err(|e| format!("{path}: {e}"))?)
            }
            _ => return Err(format!("{argument:?} is unknown: config=FILE and out=FILE")),
        }
    }
    let config = Config::parse(&config.ok_or("config=FILE is missing")?)?;
    let out = out.ok_or("out=FILE is missing")?;
    if !info.system_emulation {
        return Err("this is for whole machines, not for programs".into());
    }
    if info.cpus as usize != config.apic_of_cpu.len() {
        return Err(format!(
            "the machine has {} CPUs, the configuration {}",
            info.cpus,
            config.apic_of_cpu.len()
        ));
    }
    let vcpu = || Vcpu {
        go: AtomicU32::new(0),
        clock: AtomicU64::new(0),
        limit: AtomicU64::new(0),
        halted: AtomicU8::new(0),
        own: Own {
            word: Cell::new(null_mut()),
            offset: Cell::new(0),
            running: Cell::new(false),
            detector: UnsafeCell::new(Detector::new()),
            interrupt_at: Cell::new(0),
            registers: Cell::new([null_mut(); 4]),
        },
    };
    // SAFETY: called from QEMU's installation, where scoreboards may be made.
    let score = unsafe { qemu_plugin_scoreboard_new(8) };
    let world = World {
        vcpus: (0..MAX_CPUS).map(|_| vcpu()).collect(),
        model: UnsafeCell::new(Model::new(config)),
        shared: Mutex::new(Shared {
            token: None,
            end: End::default(),
            out,
            questions: VecDeque::new(),
            window: (0, 0),
        }),
        arrival: Condvar::new(),
        mode: AtomicU8::new(mode::OFF),
        generation: AtomicU32::new(0),
        breaks: AtomicU64::new(0),
        switches: AtomicU64::new(0),
        waits: AtomicU64::new(0),
        finished: AtomicBool::new(false),
        entry: Entry { score, offset: 0 },
        slots: AtomicPtr::new(null_mut()),
        guest_cpu: (0..MAX_CPUS).map(|_| AtomicU32::new(0)).collect(),
    };
    WORLD.set(world).map_err(|_| "loaded twice".to_string())
}

/// What QEMU calls first.
///
/// # Safety
/// QEMU calls it, once, with what its interface says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    info: *const Info,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    // SAFETY: QEMU's arguments are `argc` strings.
    let arguments: Vec<_> = (0..argc as usize)
        .map(|i| unsafe { CStr::from_ptr(*argv.add(i)) }.to_string_lossy())
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    // SAFETY: QEMU's description lives during this call.
    if let Err(why) = install(unsafe { &*info }, &arguments) {
        eprintln!("numasim: {why}");
        return -1;
    }
    // SAFETY: the callbacks have the types that the interface wants.
    unsafe {
        qemu_plugin_register_vcpu_init_cb(id, starts);
        qemu_plugin_register_vcpu_idle_cb(id, interrupts::halts);
        qemu_plugin_register_vcpu_resume_cb(id, interrupts::resumes);
        qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
        qemu_plugin_register_atexit_cb(id, exits, null_mut());
    }
    std::thread::spawn(watch);
    0
}
