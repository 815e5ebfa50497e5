//! What the guest says: begin, clock, meet, end.

use super::turns::hand_over;
use super::{QUIET, QUIET_PATIENCE, SETUP_SLACK, Shared, TRAP, World, mode, world};
use crate::ffi::{futex_wake, qemu_plugin_scoreboard_find};
use crate::output::{self, Window};
use crate::protocol::{self, Phase, Slot};
use crate::token::Token;
use std::ffi::c_void;
use std::io::Write;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};

/// The slots of the guest whose array is at `slots`.
pub(super) fn slot<'a>(w: &World, slots: *mut Slot, cpu: u32) -> Option<&'a mut Slot> {
    if slots.is_null() {
        return None;
    }
    let number = w.guest_cpu[cpu as usize].load(Relaxed) as usize;
    // SAFETY: the guest's array has MAX_SLOTS entries in one piece of its memory, which QEMU keeps mapped; this CPU's
    // slot is touched by this CPU's code and by us on its behalf.
    Some(unsafe { &mut *slots.add(number) })
}

pub(super) extern "C" fn read_clock(cpu: u32, slots: *mut c_void) {
    let w = world();
    let own = w.own(cpu);
    if w.mode.load(Relaxed) == mode::OFF || !own.running.get() {
        return;
    }
    if let Some(slot) = slot(w, slots.cast(), cpu) {
        // SAFETY: a live reference; volatile since the guest reads it behind the compiler's back.
        unsafe { (&raw mut slot.clock).write_volatile(own.clock()) };
    }
}

pub(super) extern "C" fn begin(cpu: u32, slots: *mut c_void) {
    let w = world();
    let slots: *mut Slot = slots.cast();
    if w.mode.load(Acquire) != mode::OFF || slots.is_null() || w.finished.load(Relaxed) {
        return;
    }
    // SAFETY: nobody has the token yet; all other CPUs will be halted.
    let nr = unsafe { w.model() }.config().apic_of_cpu.len();
    if let Err(why) = find_cpus(w, slots, nr) {
        eprintln!("numasim: {why}");
        std::process::exit(1);
    }
    let quiet = wait_until_quiet(w, cpu as usize, nr);
    if !quiet {
        eprintln!("numasim: not all CPUs are halted at the begin; this run will not repeat");
    }
    let mut shared = w.lock();
    let wakeable: Vec<bool> = w.vcpus[..nr]
        .iter()
        .map(|v| v.halted.load(Acquire) != 2)
        .collect();
    let token = Token::new(cpu as usize, &wakeable, SETUP_SLACK);
    for (number, vcpu) in w.vcpus[..nr].iter().enumerate() {
        // Scoreboards move when they grow: fetch the words again.
        // SAFETY: the scoreboard has a word for every CPU that was initialised.
        vcpu.own
            .word
            .set(unsafe { qemu_plugin_scoreboard_find(w.entry.score, number as u32) }.cast());
        vcpu.own.set_word(TRAP);
        vcpu.go.store(0, Relaxed);
        // SAFETY: the guest's array; see `slot`.
        unsafe {
            (&raw mut (*slots.add(w.guest_cpu[number].load(Relaxed) as usize)).active)
                .write_volatile(1)
        };
    }
    w.slots.store(slots, Relaxed);
    w.own(cpu).running.set(true);
    w.own(cpu).set(0, token.limit());
    shared.token = Some(token);
    shared.end.quiet = quiet;
    w.mode.store(mode::SETUP, Release);
}

/// Matches the guest's numbers of its CPUs with QEMU's, by APIC id.
pub(super) fn find_cpus(w: &World, slots: *mut Slot, nr: usize) -> Result<(), String> {
    // SAFETY: nobody has the token yet.
    let config = unsafe { w.model() }.config();
    let mut found = 0;
    for number in 0..protocol::MAX_SLOTS {
        // SAFETY: the guest's array; see `slot`.
        let apic = unsafe { (&raw const (*slots.add(number)).apic_plus_1).read_volatile() };
        if apic == 0 {
            continue;
        }
        let apic = (apic - 1) as u32;
        let cpu = config.cpu_of_apic(apic).ok_or_else(|| {
            format!("the guest has a CPU with APIC id {apic}, the profile's machine has not")
        })?;
        w.guest_cpu[cpu].store(number as u32, Relaxed);
        found += 1;
    }
    if found == nr {
        Ok(())
    } else {
        Err(format!(
            "the guest names {found} CPUs, the machine has {nr}"
        ))
    }
}

pub(super) fn wait_until_quiet(w: &World, me: usize, nr: usize) -> bool {
    let start = Instant::now();
    let mut since = start;
    while start.elapsed() < QUIET_PATIENCE {
        if (0..nr).any(|c| c != me && w.vcpus[c].halted.load(Acquire) == 0) {
            since = Instant::now();
        } else if since.elapsed() >= QUIET {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

pub(super) extern "C" fn end(cpu: u32, _: *mut c_void) {
    let w = world();
    if w.mode.load(Acquire) == mode::OFF || !w.own(cpu).running.get() {
        return;
    }
    let mut shared = w.lock();
    shared.end.cycles = w.own(cpu).clock();
    shared.end.ended = true;
    finish(w, &mut shared);
    release(w);
}

/// Everybody runs as the host likes.
pub(super) fn release(w: &World) {
    let slots = w.slots.load(Relaxed);
    for number in 0..protocol::MAX_SLOTS {
        // SAFETY: the guest's array; see `slot`.
        unsafe { (&raw mut (*slots.add(number)).active).write_volatile(0) };
    }
    w.mode.store(mode::OFF, Release);
    w.vcpus.iter().for_each(|v| futex_wake(&v.go));
}

pub(super) fn finish(w: &World, shared: &mut Shared) {
    if w.finished.swap(true, Relaxed) {
        return;
    }
    shared.end.switches = w.switches.load(Relaxed);
    shared.end.breaks = w.breaks.load(Relaxed);
    let mut text = String::new();
    shared.end.write(&mut text);
    // A full disk shows as a missing line, which the reader does not accept.
    let _ = shared.out.write_all(text.as_bytes());
}

pub(super) extern "C" fn meet(cpu: u32, slots: *mut c_void) {
    let w = world();
    let own = w.own(cpu);
    if w.mode.load(Acquire) == mode::OFF || !own.running.get() {
        return;
    }
    let slots: *mut Slot = slots.cast();
    let Some(slot) = slot(w, slots, cpu) else {
        return;
    };
    let (wanted, phase) = (slot.argument as u32 as usize, Phase::of(slot.argument));
    let mut shared = w.lock();
    let Some(token) = shared.token.as_mut() else {
        return;
    };
    let (met, next) = token.meet(own.clock(), wanted);
    if let (Some((all, time)), Some(phase)) = (met, phase) {
        for member in &all {
            let number = w.guest_cpu[*member].load(Relaxed) as usize;
            // SAFETY: the guest's array; see `slot`.
            unsafe { (&raw mut (*slots.add(number)).argument).write_volatile(0) };
        }
        begin_phase(w, &mut shared, phase, all.len(), time);
    }
    hand_over(w, cpu, shared, next);
}

pub(super) fn begin_phase(w: &World, shared: &mut Shared, phase: Phase, cpus: usize, time: u64) {
    // SAFETY: the caller had the token and has not handed it on.
    let model = unsafe { w.model() };
    if model.is_measuring() {
        let breaks = w.breaks.load(Relaxed) + shared.end.intruders - shared.window.1;
        let window = Window {
            number: shared.end.windows,
            cpus,
            cycles: time - shared.window.0,
            breaks,
            attribution: &model.attribution,
            node_of_cpu: &model.config().node_of_cpu,
        };
        let mut text = String::new();
        window.write(&mut text);
        let _ = shared.out.write_all(text.as_bytes());
        shared.questions = window.questions();
        shared.end.windows += 1;
    }
    model.measure(phase == Phase::Window);
    shared.window = (time, w.breaks.load(Relaxed) + shared.end.intruders);
    let (slack, now) = match phase {
        Phase::Setup => (SETUP_SLACK, mode::SETUP),
        Phase::Ramp | Phase::Window => (model.config().costs.slack, mode::MODEL),
    };
    if let Some(token) = shared.token.as_mut() {
        token.slack = slack;
    }
    w.mode.store(now, Release);
}

/// Takes the guest's answer, and asks the next question.
pub(super) extern "C" fn name(cpu: u32, slots: *mut c_void) {
    let w = world();
    if w.mode.load(Acquire) == mode::OFF || !w.own(cpu).running.get() {
        return;
    }
    let slots: *mut Slot = slots.cast();
    let Some(slot) = slot(w, slots, cpu) else {
        return;
    };
    let mut shared = w.lock();
    let len = (slot.name_len as usize).min(protocol::NAME_LEN);
    if slot.line != 0 && len > 0 {
        // SAFETY: behind the guest's slots, in the same piece of memory; this CPU alone writes there now.
        let bytes = unsafe { std::slice::from_raw_parts(protocol::names(slots), len) };
        let mut text = String::new();
        output::write_name(&mut text, slot.line, &protocol::name(bytes));
        let _ = shared.out.write_all(text.as_bytes());
    }
    let (line, address) = shared.questions.pop_front().unwrap_or_default();
    // SAFETY: live references; volatile since the guest reads them behind the compiler's back.
    unsafe {
        (&raw mut slot.line).write_volatile(line);
        (&raw mut slot.address).write_volatile(address);
    }
}
