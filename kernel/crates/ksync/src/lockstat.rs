//! Lock classes and their statistics.

/// The name under which all locks of a kind are counted.
pub struct LockClass {
    name: &'static str,
}

impl LockClass {
    /// A class called `name`.
    pub const fn new(name: &'static str) -> Self {
        LockClass { name }
    }
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

/// `lock_class!("pidmap_lock")`: a `&'static LockClass`, usable in constants.
#[macro_export]
macro_rules! lock_class {
    ($name:literal) => {{
        static CLASS: $crate::LockClass = $crate::LockClass::new($name);
        &CLASS
    }};
}
