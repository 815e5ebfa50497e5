//! The token's way from one CPU's thread to another's.

use super::{LOOK_FOR_ARRIVAL, Shared, TRAP, World, mode, world};
use crate::coherence::Kind;
use crate::ffi::{futex_wait, futex_wake};
use crate::token::{Grant, State, Token};
use std::ffi::c_void;
use std::sync::atomic::Ordering::*;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lets `grant`'s CPU run.
pub(super) fn deliver(w: &World, grant: Grant) {
    let to = &w.vcpus[grant.cpu];
    to.clock.store(grant.clock, Relaxed);
    to.limit.store(grant.limit, Relaxed);
    to.go.store(1, Release);
    futex_wake(&to.go);
}

/// Sleeps until the token is here, or the simulation ends, or is broken open.
pub(super) fn block(w: &World, cpu: u32) {
    let me = &w.vcpus[cpu as usize];
    let generation = w.generation.load(Acquire);
    loop {
        if me.go.swap(0, Acquire) == 1 {
            // What ran without the token (the block after a halt) counts.
            let since = me.own.word().saturating_sub(TRAP);
            me.own
                .set(me.clock.load(Relaxed) + since, me.limit.load(Relaxed));
            me.own.running.set(true);
            return;
        }
        if w.mode.load(Acquire) == mode::OFF {
            me.own.set_word(0);
            return;
        }
        if w.generation.load(Acquire) != generation {
            return;
        }
        futex_wait(&me.go, 0);
    }
}

/// Who really runs next: a CPU whose line was written first gets the line, and runs when that is there.
pub(super) fn settle(w: &World, token: &mut Token, next: Option<Grant>) -> Option<Grant> {
    let mut next = next?;
    while let Some((line, code)) = token.take_look(next.cpu) {
        if w.mode.load(Acquire) != mode::MODEL {
            break;
        }
        // SAFETY: nobody runs: the token is between two CPUs, and the caller keeps no reference to the model.
        let model = unsafe { w.model() };
        let charge = model.access(next.cpu, line, Kind::Read, next.clock, code, 0);
        next = token.give_up(next.clock + charge.cycles);
    }
    Some(next)
}

/// Hands the token on and sleeps. The caller had it and is no longer running in the token's eyes.
pub(super) fn hand_over(
    w: &World,
    cpu: u32,
    mut shared: MutexGuard<'_, Shared>,
    next: Option<Grant>,
) {
    let own = w.own(cpu);
    let next = shared.token.as_mut().and_then(|t| settle(w, t, next));
    w.switches.fetch_add(1, Relaxed);
    if let Some(grant) = next.filter(|g| g.cpu == cpu as usize) {
        own.set(grant.clock, grant.limit);
        return;
    }
    own.running.set(false);
    own.set_word(TRAP);
    drop(shared);
    if let Some(grant) = next {
        deliver(w, grant);
    }
    block(w, cpu);
}

/// A CPU's word has reached `TRAP`: at the start of a block, or after a miss.
#[cold]
#[inline(never)]
pub(super) fn due(cpu: u32) {
    let w = world();
    let own = w.own(cpu);
    if w.mode.load(Acquire) == mode::OFF {
        return own.set_word(0);
    }
    let mut shared = w.lock();
    if own.running.get() {
        shared = wait_for_arrivals(w, shared);
        let Some(token) = shared.token.as_mut() else {
            return;
        };
        let (clock, limit) = (own.clock(), token.limit());
        if clock < limit {
            return own.set(clock, limit);
        }
        let next = token.give_up(clock);
        return hand_over(w, cpu, shared, Some(next));
    }
    let Some(token) = shared.token.as_mut() else {
        return;
    };
    match token.state(cpu as usize) {
        State::Waking => {
            token.arrived(cpu as usize);
            w.arrival.notify_all();
        }
        State::Halted(_) => {
            token.intruder(cpu as usize);
            shared.end.intruders += 1;
        }
        _ => {}
    }
    let token = shared.token.as_mut();
    let next = token.and_then(|t| t.grant_if_idle().and_then(|g| settle(w, t, Some(g))));
    drop(shared);
    if let Some(grant) = next {
        deliver(w, grant);
    }
    block(w, cpu);
}

/// Until the threads of all CPUs that were woken are here.
pub(super) fn wait_for_arrivals<'a>(
    w: &'a World,
    mut shared: MutexGuard<'a, Shared>,
) -> MutexGuard<'a, Shared> {
    let start = Instant::now();
    while shared.token.as_ref().is_some_and(|t| t.waking() > 0)
        && start.elapsed() < LOOK_FOR_ARRIVAL
    {
        let waited = w.arrival.wait_timeout(shared, Duration::from_secs(1));
        shared = waited.unwrap_or_else(PoisonError::into_inner).0;
        w.waits.fetch_add(1, Relaxed);
    }
    if start.elapsed() >= LOOK_FOR_ARRIVAL {
        w.breaks.fetch_add(1, Relaxed);
    }
    shared
}

pub(super) extern "C" fn block_is_due(cpu: u32, _: *mut c_void) {
    due(cpu);
}
