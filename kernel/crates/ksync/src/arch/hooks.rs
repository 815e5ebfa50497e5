//! The list of what a kernel must provide: the symbols this crate calls on the machine.
//!
//! Nothing else of a kernel is named below it. The kernel implements [`Machine`] on a unit type and says
//! `ksync::provide_machine!(ThatType);`, which defines the symbols with the right types. The calls resolve at link
//! time and inline under LTO: no table, no registration, no cost.
use crate::CpuMask;

unsafe extern "Rust" {
    /// See [`Machine::park`].
    pub fn tine_park();
    /// See [`Machine::unpark`].
    pub fn tine_unpark(thread: *mut ());
    /// See [`Machine::preempt_schedule`].
    pub fn tine_preempt_schedule();
    /// See [`Machine::signal_pending`].
    pub fn tine_signal_pending() -> bool;
    /// See [`Machine::flush_tlb_range`].
    pub fn tine_flush_tlb_range(cpus: &CpuMask, mm: u64, start: usize, end: usize);
    /// See [`Machine::kick_cpu`].
    pub fn tine_kick_cpu(cpu: usize);
}

/// What a kernel must provide.
///
/// # Safety
/// The implementation keeps the contract of each function: locks above rely on them.
pub unsafe trait Machine {
    /// Blocks the current thread until [`unpark`](Self::unpark) was called for it since its last `park` returned: one
    /// token is saved, further ones are lost. It may return for no reason. Everything the unparking CPU did before
    /// is visible after. Called with preemption and IRQs on, with no lock held.
    fn park();
    /// Wakes `thread`, or saves its token. Any context, IRQs off and spinlocks held; may take only run-queue locks.
    fn unpark(thread: *mut ());
    /// Runs the scheduler on behalf of the last `preempt_enable`. `need_resched` was seen set, `preempt_count` is 0,
    /// IRQs are on.
    fn preempt_schedule();
    /// Whether the current thread has a signal to handle.
    fn signal_pending() -> bool;
    /// Drops `start..end` of address space `mm` (0: the kernel's) from the TLBs of `cpus` and of this CPU, and waits.
    fn flush_tlb_range(cpus: &CpuMask, mm: u64, start: usize, end: usize);
    /// Interrupts `cpu` so that it leaves its halt and goes once around its idle loop. Any context, IRQs off.
    fn kick_cpu(cpu: usize);
}

/// Defines the symbols of [`hooks`](crate::arch::hooks) by a type that implements
/// [`Machine`](crate::arch::hooks::Machine). Once, in the kernel.
#[macro_export]
macro_rules! provide_machine {
    ($t:ty) => {
        const _: () = {
            use $crate::arch::hooks::Machine;
            // SAFETY (of the names): no other crate defines symbols that start with tine_.
            #[unsafe(no_mangle)]
            extern "Rust" fn tine_park() {
                <$t as Machine>::park()
            }
            #[unsafe(no_mangle)]
            extern "Rust" fn tine_unpark(thread: *mut ()) {
                <$t as Machine>::unpark(thread)
            }
            #[unsafe(no_mangle)]
            extern "Rust" fn tine_preempt_schedule() {
                <$t as Machine>::preempt_schedule()
            }
            #[unsafe(no_mangle)]
            extern "Rust" fn tine_signal_pending() -> bool {
                <$t as Machine>::signal_pending()
            }
            #[unsafe(no_mangle)]
            extern "Rust" fn tine_flush_tlb_range(
                cpus: &$crate::CpuMask,
                mm: u64,
                start: usize,
                end: usize,
            ) {
                <$t as Machine>::flush_tlb_range(cpus, mm, start, end)
            }
            #[unsafe(no_mangle)]
            extern "Rust" fn tine_kick_cpu(cpu: usize) {
                <$t as Machine>::kick_cpu(cpu)
            }
        };
    };
}
