//! Accesses to memory, and loops that only wait.

use super::turns::{due, hand_over};
use super::{Own, SETUP_TURN, World, mode, world};
use crate::coherence::{Kind, LINE_SHIFT};
use crate::ffi::*;
use crate::token::Woken;
use std::ffi::c_void;
use std::sync::atomic::Ordering::*;

#[inline(always)]
pub(super) fn memory(cpu: u32, info: u32, address: u64, code: u64, locked: bool) {
    let w = world();
    if w.mode.load(Relaxed) != mode::MODEL {
        return;
    }
    let own = w.own(cpu);
    if !own.running.get() {
        return;
    }
    // SAFETY: `info` and `address` are those of this callback.
    let (store, size, physical) = unsafe {
        let store = qemu_plugin_mem_is_store(info);
        if locked && store {
            return; // QEMU tells of the load and the store of a read-modify-write; the model charges one
        }
        let hardware = qemu_plugin_get_hwaddr(info, address);
        if hardware.is_null() || qemu_plugin_hwaddr_is_io(hardware) {
            return;
        }
        (
            store,
            1u64 << qemu_plugin_mem_size_shift(info),
            qemu_plugin_hwaddr_phys_addr(hardware),
        )
    };
    let kind = match (locked, store) {
        (true, _) => Kind::Locked,
        (_, true) => Kind::Write,
        _ => Kind::Read,
    };
    let line = physical >> LINE_SHIFT;
    touch(w, cpu, own, line, kind, code, address);
    let last = (physical + size - 1) >> LINE_SHIFT;
    if last != line && physical & 0xfff < 0x1000 - size {
        touch(w, cpu, own, last, kind, code, address);
    }
    if own.is_due() {
        due(cpu);
    }
}

#[inline(always)]
pub(super) fn touch(
    w: &World,
    cpu: u32,
    own: &Own,
    line: u64,
    kind: Kind,
    code: u64,
    address: u64,
) {
    // SAFETY: `running`: we have the token.
    let model = unsafe { w.model() };
    if !model.knows(line) {
        return;
    }
    let now = own.clock();
    let charge = model.access(cpu as usize, line, kind, now, code, address);
    if charge.miss || kind != Kind::Read {
        own.detector().disturb();
    }
    if kind == Kind::Read {
        own.detector().read(line);
    }
    if charge.cycles > 0 {
        own.pass(charge.cycles);
    }
    if charge.wakes {
        wake_line(w, own, line, now);
    }
}

#[cold]
pub(super) fn wake_line(w: &World, own: &Own, line: u64, now: u64) {
    let mut shared = w.lock();
    let Some(token) = shared.token.as_mut() else {
        return;
    };
    token.written(line, now, |woken| note_spin(w, woken));
    own.set(own.clock(), token.limit());
}

pub(super) fn note_spin(w: &World, woken: Woken) {
    // SAFETY: called with the token, and the caller keeps no reference to the model across it.
    unsafe { w.model() }.spun(woken.cpu, woken.line, woken.code, woken.cycles);
}

pub(super) extern "C" fn plain_access(cpu: u32, info: u32, address: u64, code: *mut c_void) {
    memory(cpu, info, address, code as u64, false);
}

pub(super) extern "C" fn locked_access(cpu: u32, info: u32, address: u64, code: *mut c_void) {
    memory(cpu, info, address, code as u64, true);
}

pub(super) extern "C" fn pause(cpu: u32, _: *mut c_void) {
    let w = world();
    let own = w.own(cpu);
    if w.mode.load(Relaxed) == mode::OFF || !own.running.get() {
        return;
    }
    // SAFETY: we have the token.
    own.pass(unsafe { w.model() }.config().costs.pause);
    if own.is_due() {
        due(cpu);
    }
}

pub(super) extern "C" fn spin_pause(cpu: u32, code: *mut c_void) {
    let w = world();
    let own = w.own(cpu);
    let mode = w.mode.load(Relaxed);
    if mode == mode::OFF || !own.running.get() {
        return;
    }
    if mode == mode::SETUP {
        own.pass(SETUP_TURN);
    } else {
        // SAFETY: we have the token.
        let model = unsafe { w.model() };
        own.pass(model.config().costs.pause);
        let (now, turned) = (own.clock(), own.detector().turned());
        if let Some(line) = own.detector().turn(now) {
            model.spun(cpu as usize, line, code as u64, now - turned);
            if model.wait_for(cpu as usize, line) {
                let period = own.detector().period();
                let mut shared = w.lock();
                let Some(token) = shared.token.as_mut() else {
                    return;
                };
                let next = token.park(now, line, code as u64, period);
                hand_over(w, cpu, shared, next);
                // Awake: `turns::settle` has looked at the line for us.
                own.detector().wake(own.clock());
                return;
            }
        }
    }
    if own.is_due() {
        due(cpu);
    }
}
