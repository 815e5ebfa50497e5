//! What would not block: the bits of `poll`.

bitflags::bitflags! {
    /// Readiness (Linux's POLL* bits).
    #[derive(Copy, Clone, Debug, PartialEq, Eq)]
    pub struct PollMask: u32 {
        /// A read would not wait.
        const IN = 0x1;
        /// Exceptional condition.
        const PRI = 0x2;
        /// A write would not wait.
        const OUT = 0x4;
        /// An error is pending (a pipe without readers).
        const ERR = 0x8;
        /// The other side is gone.
        const HUP = 0x10;
        /// Not open.
        const NVAL = 0x20;
        /// As IN.
        const RDNORM = 0x40;
        /// As OUT.
        const WRNORM = 0x100;
    }
}

impl PollMask {
    /// Ready for everything: files and most devices.
    pub const ALWAYS: PollMask = PollMask::IN
        .union(PollMask::OUT)
        .union(PollMask::RDNORM)
        .union(PollMask::WRNORM);
}
