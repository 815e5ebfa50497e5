//! Random bytes for programs: xoshiro256** seeded from RDRAND where the CPU has it, from the clock else. Good enough
//! for hash seeds and stack cookies on a research machine; not a cryptographic source, and it does not claim to be one.

use ksync::{SpinLock, lock_class};

static STATE: SpinLock<[u64; 4]> = SpinLock::new([0; 4], lock_class!("random"));

fn splitmix(x: &mut u64) -> u64 {
    *x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *x;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Seeds the generator. With `fixed` the sequence is the same at every boot, so that runs repeat.
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
    *STATE.lock_irqsave() = core::array::from_fn(|_| splitmix(&mut seed));
}

/// Fills `buf`. Any context.
pub fn fill(buf: &mut [u8]) {
    let mut s = STATE.lock_irqsave();
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
}
