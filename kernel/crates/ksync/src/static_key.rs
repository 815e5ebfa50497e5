//! Switches that cost at most a NOP while off.

/// A switch, declared by [`static_key!`](crate::static_key!).
pub struct StaticKey {
    enabled: core::sync::atomic::AtomicBool,
}

impl StaticKey {
    /// A key that is off.
    pub const fn new() -> Self {
        StaticKey {
            enabled: core::sync::atomic::AtomicBool::new(false),
        }
    }
    /// Turns the key on. On bare metal it takes effect at `patch_all`.
    pub fn enable(&self) {
        self.enabled
            .store(true, core::sync::atomic::Ordering::Relaxed);
    }
    /// Whether the key is on.
    #[inline(always)]
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(core::sync::atomic::Ordering::Relaxed)
    }
}

/// Declares switches: `static_key!(pub static TRACE_FORK);`, tested by `static_branch!(TRACE_FORK)`.
#[macro_export]
macro_rules! static_key {
    ($($(#[$m:meta])* $v:vis static $name:ident;)*) => {
        $($(#[$m])* $v static $name: $crate::static_key::StaticKey = $crate::static_key::StaticKey::new();)*
    };
}

/// Whether a static key is on; the off path costs at most a NOP.
#[macro_export]
macro_rules! static_branch {
    ($key:path) => {
        $key.is_enabled()
    };
}
