//! Halts, interrupts that CPUs send, and their arrival.

use super::memory::note_spin;
use super::turns::{deliver, due, settle};
use super::{EFLAGS, RAX, RCX, RDX, TRAP, mode, world};
use crate::ffi::Id;
use crate::protocol::{self, Destination};
use crate::token::State;
use std::ffi::c_void;
use std::sync::atomic::Ordering::*;

pub(super) extern "C" fn write_msr(cpu: u32, _: *mut c_void) {
    let w = world();
    let own = w.own(cpu);
    if w.mode.load(Relaxed) == mode::OFF || !own.running.get() {
        return;
    }
    let msr = own.register(RCX).unwrap_or(0) as u32;
    if msr != protocol::msr::ICR && msr != protocol::msr::SELF {
        return;
    }
    let (low, high) = (
        own.register(RAX).unwrap_or(0) as u32,
        own.register(RDX).unwrap_or(0) as u32,
    );
    let Some(sent) = protocol::interrupt(msr, low, high) else {
        return;
    };
    // SAFETY: we have the token.
    let config = unsafe { w.model() }.config();
    let (nr, me) = (config.apic_of_cpu.len(), cpu as usize);
    let targets = match sent.to {
        Destination::Apic(apic) => config.cpu_of_apic(apic).map_or(0..0, |c| c..c + 1),
        Destination::Myself => me..me + 1,
        Destination::All | Destination::Others => 0..nr,
    };
    let arrives = own.clock() + config.costs.ipi;
    let mut shared = w.lock();
    let Some(token) = shared.token.as_mut() else {
        return;
    };
    for target in targets {
        if target == me && sent.to == Destination::Others {
            continue;
        }
        let at = &w.vcpus[target].own.interrupt_at;
        at.set(if at.get() == 0 {
            arrives
        } else {
            at.get().min(arrives)
        });
        if target != me {
            let (_, woken) = token.interrupt(target, arrives, sent.nmi);
            woken.into_iter().for_each(|wk| note_spin(w, wk));
        }
    }
    // At the next block: wait for those who were woken, see who is next.
    own.set(own.clock(), own.clock());
}

pub(super) extern "C" fn interrupted(cpu: u32, _: *mut c_void) {
    let w = world();
    let own = w.own(cpu);
    if w.mode.load(Relaxed) == mode::OFF || !own.running.get() {
        return;
    }
    own.pass(own.interrupt_at.replace(0).saturating_sub(own.clock()));
    own.detector().disturb();
    if own.is_due() {
        due(cpu);
    }
}

/// The CPU halts. QEMU's big lock is held.
pub(super) extern "C" fn halts(_: Id, cpu: u32) {
    let w = world();
    let me = &w.vcpus[cpu as usize];
    let wakeable = me.own.register(EFLAGS).is_none_or(|f| f & 1 << 9 != 0);
    if w.mode.load(Acquire) != mode::OFF {
        let mut shared = w.lock();
        let Some(token) = shared.token.as_mut() else {
            return;
        };
        if me.own.running.get() {
            let next = token.halt(me.own.clock(), wakeable);
            let next = settle(w, token, next);
            me.own.running.set(false);
            me.own.set_word(TRAP);
            w.switches.fetch_add(1, Relaxed);
            drop(shared);
            if let Some(grant) = next {
                deliver(w, grant);
            }
        } else if token.state(cpu as usize) == State::Waking {
            token.overslept(cpu as usize, wakeable);
            w.arrival.notify_all();
        }
    }
    me.halted.store(if wakeable { 1 } else { 2 }, Release);
}

/// The CPU goes on. QEMU's big lock is held.
pub(super) extern "C" fn resumes(_: Id, cpu: u32) {
    world().vcpus[cpu as usize].halted.store(0, Release);
}
