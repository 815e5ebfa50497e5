//! The console as a terminal: what is typed, who gets it, and whom Ctrl-C ends.
//!
//! # Problem
//! Bytes come from the UART at any time; what they mean is the line discipline's business (`vfs::tty`); some of them are
//! signals, which interrupt handlers may not send; and only the terminal's foreground group may read.
//!
//! # Mechanism
//! The serial interrupt moves bytes into a ring and unparks a thread of the kernel, `kttyd`, which lives in the idle
//! threads' namespace. It feeds the discipline, echoes, sends signals to the foreground group and wakes readers. Who is
//! in the foreground, and whose terminal it is, are pids, set by TIOCSCTTY and TIOCSPGRP. The rules are POSIX's
//! (General Terminal Interface, 11.1) as Linux 6.1 has them in `tty_jobctrl.c`, but for the hang-up of open files when a
//! session ends: nobody could log in again.
//!
//! # Lock order
//! `tty_owner` -> `process_lock`; `tty_line` -> `console_lock`; `tty_ring` is a leaf with IRQs off. Signals are sent
//! without them.
//!
//! # Invariants
//! - INV-CTTY-1: `SESSION` is the address of `Owner::session`, or null; it is compared, never followed.

use crate::arch::{apic, clock, ioapic};
use crate::sched::{self, current_ref};
use crate::{console, process};
use core::pin::pin;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use ksync::arch::ThreadPtr;
use ksync::{SpinLock, WaitEntry, WaitQueue, lock_class};
use slab::KArc;
use task::signal::{
    self, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTSTP, SIGTTIN, SIGTTOU, SigInfo, Signo,
};
use task::{Process, TaskPid, jobs, pids};
use vfs::tty::{self, Discipline, Signal, Termios};
use vfs::{ConsoleName, ConsoleOps, PollMask, VfsError};

/// Bytes that interrupts may bring before `kttyd` runs.
const RING: usize = 1024;
/// How often `kttyd` looks at a port that cannot interrupt, in nanoseconds.
const LOOK_AGAIN_NS: u64 = 10_000_000;
/// A tenth of a second, the unit of termios' TIME.
const TENTH_NS: u64 = 100_000_000;

struct Ring {
    bytes: [u8; RING],
    first: usize,
    len: usize,
}

/// Whose terminal it is.
struct Owner {
    session: Option<KArc<TaskPid>>,
    foreground: Option<KArc<TaskPid>>,
    window: [u16; 4],
}

static INPUT: SpinLock<Ring> = SpinLock::new(
    Ring {
        bytes: [0; RING],
        first: 0,
        len: 0,
    },
    lock_class!("tty_ring"),
);
static LINE: SpinLock<Discipline> = SpinLock::new(Discipline::new(), lock_class!("tty_line"));
static OWNER: SpinLock<Owner> = SpinLock::new(
    Owner {
        session: None,
        foreground: None,
        window: [24, 80, 0, 0],
    },
    lock_class!("tty_owner"),
);
static READERS: WaitQueue = WaitQueue::new();
static SESSION: AtomicPtr<TaskPid> = AtomicPtr::new(core::ptr::null_mut());
static THREAD: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// The terminal behind /dev/console.
pub struct Console;

/// Starts `kttyd` and lets the port interrupt. Boot, by the first idle thread, after the first process.
pub fn start() {
    let interrupts = ioapic::route_com1(apic::vector::SERIAL);
    let thread = process::hidden_thread("kttyd", run, interrupts.into());
    THREAD.store(thread.thread_ptr().0, Relaxed);
    if interrupts {
        console::enable_interrupt();
    }
}

/// The serial interrupt. IRQs off.
pub fn interrupt() {
    let mut ring = INPUT.lock_irqsave();
    // The line is edge-triggered: all must be taken, or no further edge comes.
    while let Some(byte) = console::read_byte() {
        if ring.len < RING {
            let at = (ring.first + ring.len) % RING;
            ring.bytes[at] = byte;
            ring.len += 1;
        }
    }
    drop(ring);
    ksync::arch::unpark(ThreadPtr(THREAD.load(Relaxed)));
}

fn next_byte() -> Option<u8> {
    let mut ring = INPUT.lock_irqsave();
    let byte = (ring.len > 0).then(|| ring.bytes[ring.first])?;
    ring.first = (ring.first + 1) % RING;
    ring.len -= 1;
    Some(byte)
}

extern "C" fn run(interrupts: usize) {
    loop {
        while let Some(byte) = next_byte() {
            receive(byte);
        }
        if interrupts != 0 {
            ksync::arch::park();
        } else {
            sched::park_until(Some(clock::now_ns() + LOOK_AGAIN_NS));
            interrupt();
        }
    }
}

fn receive(byte: u8) {
    let signal = LINE.lock().input(byte, &mut console::write_bytes);
    if let Some(signal) = signal {
        let foreground = OWNER.lock().foreground.clone();
        if let Some(group) = foreground {
            let signo = match signal {
                Signal::Interrupt => SIGINT,
                Signal::Quit => SIGQUIT,
                Signal::Stop => SIGTSTP,
            };
            send_to_group(&group, signo);
        }
    }
    if LINE.lock().is_readable() {
        READERS.wake_all();
    }
}

fn send_to_group(group: &TaskPid, signo: Signo) {
    pids::for_each_in_group(group, |member| {
        signal::send_to_process(member, &SigInfo::kernel(signo));
    });
}

/// The running process's session and group.
fn own_ids() -> (KArc<TaskPid>, KArc<TaskPid>) {
    let state = current_ref().process.lock.lock();
    (state.session.clone(), state.pgrp.clone())
}

fn is(a: &Option<KArc<TaskPid>>, b: &KArc<TaskPid>) -> bool {
    a.as_ref().is_some_and(|a| KArc::ptr_eq(a, b))
}

/// Whether the terminal is that of the running process's session.
fn is_own() -> bool {
    let (session, _) = own_ids();
    is(&OWNER.lock().session, &session)
}

/// What a process in the background may not do with its terminal: it gets `signo`. EIO where that would be in vain.
fn check_foreground(signo: Signo) -> Result<(), VfsError> {
    if SESSION.load(Relaxed).is_null() {
        return Ok(());
    }
    let (session, group) = own_ids();
    {
        let owner = OWNER.lock();
        if !is(&owner.session, &session)
            || owner.foreground.is_none()
            || is(&owner.foreground, &group)
        {
            return Ok(());
        }
    }
    let task = current_ref();
    let blocked = task.blocked.load(Relaxed) & signal::bit(signo) != 0;
    let ignored = task.process.sighand().action(signo).handler == signal::SIG_IGN;
    match signo {
        SIGTTOU if blocked || ignored => return Ok(()),
        _ if blocked || ignored || jobs::is_orphaned(&group) => return Err(VfsError::EIO),
        _ => {}
    }
    send_to_group(&group, signo);
    // A signal that is pending makes the caller leave; where it is not, because it was continued at once, try again.
    Err(VfsError::ERESTARTSYS)
}

impl ConsoleOps for Console {
    fn open(&self, name: ConsoleName) -> Result<(), VfsError> {
        match name {
            ConsoleName::Own if !is_own() => Err(VfsError::ENXIO),
            ConsoleName::Serial => {
                let _ = acquire();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn write(&self, bytes: &[u8]) -> Result<(), VfsError> {
        let (oflag, lflag) = {
            let line = LINE.lock();
            (line.termios().oflag, line.termios().lflag)
        };
        if lflag & tty::TOSTOP != 0 {
            check_foreground(SIGTTOU)?;
        }
        match oflag & (tty::OPOST | tty::ONLCR) {
            0 | tty::OPOST | tty::ONLCR => console::write_raw(bytes),
            _ => console::write_bytes(bytes),
        }
        Ok(())
    }

    fn read(&self, buf: &mut [u8], nonblock: bool) -> Result<usize, VfsError> {
        let started = clock::now_ns();
        loop {
            check_foreground(SIGTTIN)?;
            let gives_up = {
                let mut line = LINE.lock();
                if line.is_readable() {
                    return Ok(line.read(buf));
                }
                line.gives_up_after()
            };
            let deadline = gives_up.map(|tenths| started + u64::from(tenths) * TENTH_NS);
            if deadline.is_some_and(|at| clock::now_ns() >= at) {
                return Ok(0);
            }
            if nonblock {
                return Err(VfsError::EAGAIN);
            }
            wait_for_input(deadline)?;
        }
    }

    fn poll(&self) -> PollMask {
        let out = PollMask::OUT | PollMask::WRNORM;
        match LINE.lock().is_readable() {
            true => out | PollMask::IN | PollMask::RDNORM,
            false => out,
        }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&READERS)
    }
}

fn wait_for_input(deadline: Option<u64>) -> Result<(), VfsError> {
    let entry = pin!(WaitEntry::new());
    loop {
        entry.as_ref().prepare(&READERS);
        if LINE.lock().is_readable() || deadline.is_some_and(|at| clock::now_ns() >= at) {
            return Ok(());
        }
        if ksync::arch::signal_pending() {
            return Err(VfsError::ERESTARTSYS);
        }
        sched::park_until(deadline);
    }
}

/// Makes it the terminal of the running process's session, which must lead one that has none. EPERM.
pub fn acquire() -> Result<(), VfsError> {
    let (session, group) = own_ids();
    if !KArc::ptr_eq(&session, &current_ref().process.pid) {
        return Err(VfsError::EPERM);
    }
    let mut owner = OWNER.lock();
    if is(&owner.session, &session) {
        return Ok(());
    }
    if owner.session.is_some() {
        return Err(VfsError::EPERM);
    }
    SESSION.store((&raw const *session).cast_mut(), Relaxed);
    owner.session = Some(session);
    owner.foreground = Some(group);
    Ok(())
}

/// The leader of a session ends, or gives its terminal up: it is nobody's, and its foreground is hung up. To be called
/// for every process that ends; no locks held.
#[inline]
pub fn leader_leaves(process: &Process) {
    if core::ptr::eq(SESSION.load(Relaxed), &raw const *process.pid) {
        release();
    }
}

#[cold]
fn release() {
    let (session, foreground) = {
        let mut owner = OWNER.lock();
        SESSION.store(core::ptr::null_mut(), Relaxed);
        (owner.session.take(), owner.foreground.take())
    };
    *LINE.lock() = Discipline::new();
    if let Some(group) = foreground {
        send_to_group(&group, SIGHUP);
        send_to_group(&group, SIGCONT);
    }
    drop(session);
}

/// Whether somebody who types could end what the machine waits for.
pub fn is_in_use() -> bool {
    !SESSION.load(Relaxed).is_null() || READERS.anybody()
}

/// Session and foreground group, as /proc/PID/stat shows them of a process in `session`.
pub fn owner_of(session: &KArc<TaskPid>) -> Option<Option<KArc<TaskPid>>> {
    let owner = OWNER.lock();
    is(&owner.session, session).then(|| owner.foreground.clone())
}

/// TIOCGPGRP and TIOCGSID: the foreground group and the session of one's own terminal. ENOTTY.
pub fn ids() -> Result<(Option<KArc<TaskPid>>, KArc<TaskPid>), VfsError> {
    let (session, _) = own_ids();
    let foreground = owner_of(&session).ok_or(VfsError::ENOTTY)?;
    Ok((foreground, session))
}

/// TIOCSPGRP: `group` is in the foreground from now on. ENOTTY; EPERM: not of this session.
pub fn set_foreground(group: &KArc<TaskPid>) -> Result<(), VfsError> {
    check_foreground(SIGTTOU)?;
    let (session, _) = own_ids();
    let mut same_session = false;
    pids::for_each_in_group(group, |member| {
        same_session |= KArc::ptr_eq(&member.lock.lock().session, &session);
    });
    let mut owner = OWNER.lock();
    if !is(&owner.session, &session) {
        return Err(VfsError::ENOTTY);
    }
    if !same_session {
        return Err(VfsError::EPERM);
    }
    owner.foreground = Some(group.clone());
    Ok(())
}

/// TIOCNOTTY: the process gives its terminal up. ENOTTY.
pub fn give_up() -> Result<(), VfsError> {
    if !is_own() {
        return Err(VfsError::ENOTTY);
    }
    leader_leaves(&current_ref().process);
    Ok(())
}

/// The settings.
pub fn termios() -> Termios {
    *LINE.lock().termios()
}

/// Changes the settings; with `flush` what was typed and not read is forgotten.
pub fn set_termios(new: Termios, flush: bool) -> Result<(), VfsError> {
    check_foreground(SIGTTOU)?;
    let mut line = LINE.lock();
    if flush {
        line.flush();
    }
    line.set_termios(new);
    let readable = line.is_readable();
    drop(line);
    if readable {
        READERS.wake_all();
    }
    Ok(())
}

/// Forgets what was typed and not read.
pub fn flush() -> Result<(), VfsError> {
    check_foreground(SIGTTOU)?;
    LINE.lock().flush();
    Ok(())
}

/// Bytes that a read would get.
pub fn nr_readable() -> usize {
    LINE.lock().nr_readable()
}

/// Rows, columns, and pixels of both.
pub fn window() -> [u16; 4] {
    OWNER.lock().window
}

/// A new size: the foreground is told.
pub fn set_window(size: [u16; 4]) {
    let group = {
        let mut owner = OWNER.lock();
        let changed = core::mem::replace(&mut owner.window, size) != size;
        owner.foreground.clone().filter(|_| changed)
    };
    if let Some(group) = group {
        send_to_group(&group, signal::SIGWINCH);
    }
}
