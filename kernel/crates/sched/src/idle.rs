//! Which CPUs idle: a hint that placement reads and each CPU keeps for itself.

use ksync::{CpuMask, NR_CPUS};

/// The CPUs that idle. Setting and clearing touches one word; so does finding one among 64.
pub struct IdleMask {
    idle: CpuMask,
}

impl IdleMask {
    /// No CPU idles.
    pub const fn new() -> Self {
        IdleMask {
            idle: CpuMask::new(),
        }
    }

    /// `cpu` has nothing to do.
    #[inline]
    pub fn set(&self, cpu: usize) {
        self.idle.set(cpu);
    }

    /// `cpu` has something to do. Returns whether it was idle, so that of two wakers one claims it.
    #[inline]
    pub fn claim(&self, cpu: usize) -> bool {
        self.idle.test(cpu) && self.idle.test_and_clear(cpu)
    }

    /// Whether `cpu` idles.
    #[inline]
    pub fn test(&self, cpu: usize) -> bool {
        self.idle.test(cpu)
    }

    /// Claims an idle CPU for which `allowed` holds: `near` first, then upwards from it and around, so that CPUs of
    /// the same node, which are numbered together, are asked before far ones.
    #[inline]
    pub fn claim_near(&self, near: usize, allowed: impl Fn(usize) -> bool) -> Option<usize> {
        if allowed(near) && self.claim(near) {
            return Some(near);
        }
        let node = ksync::arch::cpu_to_node(near);
        self.claim_where(|cpu| ksync::arch::cpu_to_node(cpu) == node && allowed(cpu))
            .or_else(|| self.claim_where(&allowed))
    }

    #[inline]
    fn claim_where(&self, allowed: impl Fn(usize) -> bool) -> Option<usize> {
        self.idle
            .iter()
            .take(NR_CPUS)
            .find(|&cpu| allowed(cpu) && self.claim(cpu))
    }
}
