//! Timed regions by the name of a phase: `kbench` names them, `ksync::trace` counts them.

pub use kbench::Phase;
use ksync::trace;

/// Begins a region.
#[inline(always)]
pub fn start() -> trace::Start {
    trace::begin()
}

/// Ends a region of `phase`.
#[inline(always)]
pub fn end(phase: Phase, start: trace::Start) {
    trace::end(phase as usize, start);
}

const _: () = assert!(kbench::phase::NR_PHASES <= trace::NR_SLOTS);

/// The sums of all phases since the last reset.
pub fn sums() -> kbench::Phases {
    let mut sums = kbench::Phases::new();
    for &phase in Phase::ALL {
        sums.add(phase, trace::sum(phase as usize));
    }
    sums
}
