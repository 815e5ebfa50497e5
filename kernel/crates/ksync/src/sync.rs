//! The atomics every lock here is written with: core's, or loom's under the model checker.
#[cfg(not(loom))]
pub(crate) use core::sync::atomic;
#[cfg(loom)]
pub(crate) use loom::sync::atomic;

/// Declares a function `const` except under loom, whose atomics cannot be built in a constant.
macro_rules! const_unless_loom {
    ($(#[$m:meta])* $v:vis fn $($rest:tt)*) => {
        #[cfg(not(loom))]
        $(#[$m])* $v const fn $($rest)*
        #[cfg(loom)]
        $(#[$m])* $v fn $($rest)*
    };
}
pub(crate) use const_unless_loom;

/// `[$e; N]` of a value that is not `Copy`.
#[cfg(not(loom))]
macro_rules! array {
    ($e:expr) => {
        [const { $e }; _]
    };
}
#[cfg(loom)]
macro_rules! array {
    ($e:expr) => {
        core::array::from_fn(|_| $e)
    };
}
pub(crate) use array;

/// A place where a loom test may plant a bug that it must then catch; `false`, and no code, elsewhere.
macro_rules! planted {
    ($bug:ident) => {{
        #[cfg(loom)]
        {
            $crate::planted::is($crate::planted::Bug::$bug)
        }
        #[cfg(not(loom))]
        {
            false
        }
    }};
}
pub(crate) use planted;

/// One value on cache lines of its own. Two lines, for the prefetcher that fetches pairs.
#[repr(align(128))]
pub(crate) struct Padded<T>(pub T);

impl<T> core::ops::Deref for Padded<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        &self.0
    }
}
