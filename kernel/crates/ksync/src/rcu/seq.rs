//! Grace-period sequence numbers.
//!
//! One counter: even while no grace period runs, odd while one does. Compared modulo 2^64, and started so close to
//! the wrap that every boot passes it within its first grace periods.

/// The first number: 16 grace periods before the wrap.
pub(super) const START: u64 = 0_u64.wrapping_sub(32);

/// Whether a grace period runs at `gp`.
#[inline]
pub(super) const fn in_progress(gp: u64) -> bool {
    gp & 1 == 1
}

/// Whether the counter, now at `gp`, has reached `stamp`.
#[inline]
pub(super) const fn reached(gp: u64, stamp: u64) -> bool {
    gp.wrapping_sub(stamp) as i64 >= 0
}

/// The number at which a full grace period that starts after `gp` will have ended: the end of the next one if none
/// runs, else of the one after the current.
#[inline]
pub(super) const fn snap(gp: u64) -> u64 {
    gp.wrapping_add(3) & !1
}

const _: () = {
    assert!(!in_progress(START));
    assert!(snap(4) == 6 && snap(5) == 8);
    assert!(reached(6, 6) && !reached(5, 6) && reached(0, u64::MAX) && !reached(u64::MAX, 0));
};
