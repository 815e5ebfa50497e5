//! A CPU's callbacks, in the order they were queued, in four segments.
//!
//! ```text
//!   DONE ──────► WAIT ──────► READY ──────► NEXT ◄── call() appends here
//!   may run      run when     run when      no grace period
//!                gp >= stamp  gp >= stamp   assigned yet
//! ```
//!
//! Two stamped segments are always enough: a stamp is at most two grace periods ahead, so whatever is not done yet
//! waits for the current one or for the next.
//!
//! # Invariants
//! - INV-CBL-1: `call` order is list order: segments are concatenated, never permuted.
//! - INV-CBL-2: WAIT's stamp is before READY's; a segment without callbacks has no meaningful stamp.
use super::{RcuCallback, RcuHead, seq};
use crate::sync::planted;
use core::ptr::NonNull;

/// A singly linked FIFO. All zero bytes are an empty one.
pub(super) struct Segment {
    first: Option<NonNull<RcuHead>>,
    last: Option<NonNull<RcuHead>>,
}

impl Segment {
    pub(super) const fn new() -> Self {
        Segment {
            first: None,
            last: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn push(&mut self, head: NonNull<RcuHead>) {
        match self.last {
            // SAFETY: queued heads are valid and the list's (the contract of `call`).
            Some(last) => unsafe { *last.as_ref().next.get() = Some(head) },
            None => self.first = Some(head),
        }
        self.last = Some(head);
    }

    /// Takes the first callback off.
    pub(super) fn pop(&mut self) -> Option<(NonNull<RcuHead>, RcuCallback)> {
        let head = self.first?;
        // SAFETY: as in `push`; `CbList::push` stored the function.
        unsafe {
            self.first = *head.as_ref().next.get();
            if self.first.is_none() {
                self.last = None;
            }
            Some((head, (*head.as_ref().func.get()).unwrap_unchecked()))
        }
    }

    /// Moves everything in `other` behind what is here.
    pub(super) fn append(&mut self, other: &mut Segment) {
        let Some(first) = other.first else { return };
        match self.last {
            // SAFETY: as in `push`.
            Some(last) => unsafe { *last.as_ref().next.get() = Some(first) },
            None => self.first = Some(first),
        }
        self.last = other.last;
        *other = Segment::new();
    }

    /// Moves everything here, and puts it before what is in `other`.
    pub(super) fn prepend_to(&mut self, other: &mut Segment) {
        self.append(other);
        core::mem::swap(self, other);
    }
}

/// The segmented list. Touched only by its CPU with IRQs off.
pub(super) struct CbList {
    pub(super) done: Segment,
    wait: Segment,
    ready: Segment,
    next: Segment,
    wait_stamp: u64,
    ready_stamp: u64,
}

impl CbList {
    pub(super) const fn new() -> Self {
        CbList {
            done: Segment::new(),
            wait: Segment::new(),
            ready: Segment::new(),
            next: Segment::new(),
            wait_stamp: 0,
            ready_stamp: 0,
        }
    }

    /// Appends a callback.
    ///
    /// # Safety
    /// `head` is valid and the list's until it is popped.
    #[inline]
    pub(super) unsafe fn push(&mut self, head: NonNull<RcuHead>, func: RcuCallback) {
        // SAFETY: the caller's promise.
        unsafe {
            *head.as_ref().next.get() = None;
            *head.as_ref().func.get() = Some(func);
        }
        self.next.push(head);
    }

    /// Moves on what grace period `gp` (the current sequence number) allows, and stamps what has no stamp.
    /// Returns the latest stamp waited for, if any.
    pub(super) fn advance(&mut self, gp: u64) -> Option<u64> {
        if !self.wait.is_empty() && seq::reached(gp, self.wait_stamp) {
            self.done.append(&mut self.wait);
        }
        if self.wait.is_empty() && !self.ready.is_empty() {
            core::mem::swap(&mut self.wait, &mut self.ready);
            self.wait_stamp = self.ready_stamp;
            if seq::reached(gp, self.wait_stamp) {
                self.done.append(&mut self.wait);
            }
        }
        if !self.next.is_empty() {
            let stamp = seq::snap(gp);
            self.stamp_next(if planted!(RcuCurrentIsEnough) {
                (gp | 1).wrapping_add(1)
            } else {
                stamp
            });
        }
        match (self.wait.is_empty(), self.ready.is_empty()) {
            (_, false) => Some(self.ready_stamp),
            (false, true) => Some(self.wait_stamp),
            (true, true) => None,
        }
    }

    /// The stamp at which the first waiting callback may run. Everything is stamped (after `advance`).
    pub(super) fn earliest(&self) -> Option<u64> {
        (!self.wait.is_empty()).then_some(self.wait_stamp)
    }

    fn stamp_next(&mut self, stamp: u64) {
        if self.wait.is_empty() {
            self.wait_stamp = stamp;
        }
        if self.wait_stamp == stamp {
            self.wait.append(&mut self.next);
        } else {
            debug_assert!(self.ready.is_empty() || self.ready_stamp == stamp);
            self.ready_stamp = stamp;
            self.ready.append(&mut self.next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    unsafe fn nop(_: NonNull<RcuHead>) {}

    fn drain(list: &mut CbList) -> Vec<NonNull<RcuHead>> {
        core::iter::from_fn(|| list.done.pop().map(|(h, _)| h)).collect()
    }

    #[test]
    fn order_is_kept_over_every_schedule_of_pushes_and_grace_periods() {
        // Each bit of `schedule`: push a callback, or let the grace-period counter take a step and look.
        for start in [0_u64, u64::MAX - 3] {
            for schedule in 0..1_u32 << 12 {
                let heads: Vec<RcuHead> = (0..12).map(|_| RcuHead::new()).collect();
                let (mut list, mut gp, mut pushed, mut popped) =
                    (CbList::new(), start, 0, Vec::new());
                let mut earliest = Vec::new();
                for step in 0..12 {
                    if schedule >> step & 1 == 1 {
                        // SAFETY: the heads outlive the list's use of them.
                        unsafe { list.push(NonNull::from(&heads[pushed]), nop) };
                        earliest.push(seq::snap(gp));
                        pushed += 1;
                    } else {
                        gp = gp.wrapping_add(1);
                        list.advance(gp);
                        popped.extend(drain(&mut list));
                        for (i, _) in popped.iter().enumerate() {
                            assert!(
                                seq::reached(gp, earliest[i]),
                                "callback {i} ran before its grace period"
                            );
                        }
                    }
                }
                for _ in 0..6 {
                    gp = gp.wrapping_add(1);
                    list.advance(gp);
                }
                popped.extend(drain(&mut list));
                assert!(list.advance(gp).is_none());
                let expected: Vec<_> = heads[..pushed].iter().map(NonNull::from).collect();
                assert_eq!(popped, expected);
            }
        }
    }

    #[test]
    fn what_is_put_back_comes_first() {
        let heads = [const { RcuHead::new() }; 4];
        let (mut a, mut b) = (Segment::new(), Segment::new());
        a.push(NonNull::from(&heads[0]));
        a.push(NonNull::from(&heads[1]));
        b.push(NonNull::from(&heads[2]));
        b.push(NonNull::from(&heads[3]));
        a.prepend_to(&mut b);
        assert!(a.is_empty());
        for head in &heads {
            // SAFETY: the heads live; the function pointer is set so that pop may read it.
            unsafe { *head.func.get() = Some(nop) };
        }
        for head in &heads {
            assert_eq!(b.pop().map(|(h, _)| h), Some(NonNull::from(head)));
        }
        assert!(b.pop().is_none());
    }
}
