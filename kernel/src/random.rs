//! Random bytes for programs: a xoshiro256** per CPU, seeded from RDRAND where the CPU has it, from the clock else. Good
//! enough for hash seeds and stack cookies on a research machine; not a cryptographic source, and it does not claim to
//! be one.
//!
//! Every exec draws sixteen bytes for its stack canary, so one generator for all would be a lock that all CPUs share.
//! Linux keeps one per CPU for the same reason (commit 186873c549df, 2022).

use core::cell::Cell;
use ksync::PreemptGuard;
use percpu::PerCpu;

static STATES: spin::Once<PerCpu<Cell<[u64; 4]>>> = spin::Once::new();

fn splitmix(x: &mut u64) -> u64 {
    *x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *x;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Seeds the generators, once per-CPU memory can be had. With `fixed` the sequences are the same at every boot, so that
/// runs repeat.
pub fn init(fixed: bool) {
    let mut seed = 0x7469_6e65;
    if !fixed {
        seed ^= ksync::arch::get_cycles();
        if core::arch::x86_64::__cpuid(1).ecx & (1 << 30) != 0 {
            let word: u64;
            // SAFETY: CPUID announces RDRAND; a failure leaves zero, which the clock makes up for.
            unsafe { core::arch::asm!("rdrand {}", out(reg) word, options(nomem, nostack)) };
            seed ^= word;
        }
    }
    let state = |_| Cell::new(core::array::from_fn(|_| splitmix(&mut seed)));
    let states = PerCpu::new(state).expect("memory for random numbers");
    STATES.call_once(|| states);
}

/// Fills `buf`. Thread context: an interrupt in the midst would draw the same numbers.
pub fn fill(buf: &mut [u8]) {
    let here = PreemptGuard::new();
    let state = STATES
        .get()
        .expect("seeded before anything is run")
        .this_cpu(&here);
    let mut s = state.get();
    for chunk in buf.chunks_mut(8) {
        let word = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
    state.set(s);
}
