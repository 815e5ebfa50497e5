//! What 10,000 sleeping processes cost those who list, read, kill and reap them, and a fork beside them.
//!
//! The crowd is made once; the first row measures all of them.

use crate::processes::{fork_exit_wait, in_proc, list_proc, read_stats};
use crate::programs::{runs, silently};
use crate::{Bench, FAILED, heavy, time};
use core::ffi::CStr;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use rt::abi::*;
use rt::{signal, sys};

const CROWD: u32 = 10_000;

pub const BENCHES: &[Bench] = &[
    heavy("readdir_proc_10000", CROWD, 1, |_, _| row(0)),
    heavy("readdir_proc_10000_whole", 1, 1, |_, _| row(0)),
    heavy("read_proc_stat_10000", CROWD, 1, |_, _| row(1)),
    heavy("busybox_ps_10000", 1, 1, |_, _| row(2)),
    heavy("ps_10000", 1, 1, |_, _| row(3)),
    heavy("pstree_10000", 1, 1, |_, _| row(4)),
    heavy("fork_beside_10000", 20, 1, |_, _| row(5)),
    heavy("kill_10000", CROWD, 1, |_, _| row(6)),
    heavy("reap_10000", CROWD, 1, |_, _| row(7)),
];

/// Whether this row is of the crowd, whose rows share a process.
pub fn has(bench: &Bench) -> bool {
    BENCHES.iter().any(|one| one.name == bench.name)
}

const ROWS: usize = 8;
static FIGURES: [AtomicU64; ROWS] = [const { AtomicU64::new(0) }; ROWS];

/// The figure of a row, all of which are measured when the first is asked for.
fn row(index: usize) -> u64 {
    if FIGURES[0].load(SeqCst) == 0 {
        let made = in_proc(CROWD, |pids, n| {
            let figures = measure(pids, n);
            FIGURES
                .iter()
                .zip(figures)
                .for_each(|(slot, figure)| slot.store(figure, SeqCst));
            0
        });
        if made == FAILED {
            FIGURES.iter().for_each(|slot| slot.store(FAILED, SeqCst));
        }
    }
    FIGURES[index].load(SeqCst)
}

fn measure(pids: &[i32], n: u32) -> [u64; ROWS] {
    // All are asleep.
    (0..3 * n).for_each(|_| _ = sys!(SCHED_YIELD));
    let program = |words: &[&CStr]| silently(|| runs(1, words));
    [
        cheaper(|| list_proc(pids, n)),
        cheaper(|| read_stats(pids, n)),
        program(&[c"/bin/busybox", c"ps"]),
        program(&[c"/bin/ps", c"-e"]),
        program(&[c"/bin/pstree"]),
        cheaper(|| fork_exit_wait(20)),
        time(n, |i| {
            signal::kill(pids[i as usize] as isize, SIGKILL);
        }),
        time(n, |i| {
            sys!(WAIT4, pids[i as usize], 0, 0, 0);
        }),
    ]
}

/// The cheaper of two runs; the first warms up.
fn cheaper(mut body: impl FnMut() -> u64) -> u64 {
    body().min(body())
}
