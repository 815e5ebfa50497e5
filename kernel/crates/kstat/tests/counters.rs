//! Sums are exact across CPUs, threads and migrations; lists are the doc comments.

use kstat::Counters;

/// Four CPUs; a thread says which it is on.
mod machine {
    pub const NR_CPUS: usize = 4;

    pub mod arch {
        std::thread_local! {
            pub static CPU: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
        }

        pub fn smp_processor_id() -> usize {
            CPU.get()
        }

        pub fn nr_cpu_ids() -> usize {
            super::NR_CPUS
        }
    }
}

kstat::counters! {
    /// For the storm.
    enum Storm on machine {
        /// Ones.
        nr_ones,
        /// Threes.
        nr_threes,
        /// Never.
        nr_never,
    }
}

kstat::counters! {
    /// For the list.
    enum List on machine {
        /// First.
        /// Second line.
        short,
        /// Other.
        rather_long,
    }
}

#[test]
fn no_count_is_lost_when_cpus_are_shared() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 1_500_000;
    let start = std::sync::Arc::new(std::sync::Barrier::new(THREADS as usize));
    let workers: Vec<_> = (0..THREADS as usize)
        .map(|_| {
            let start = start.clone();
            std::thread::spawn(move || {
                start.wait();
                for i in 0..ROUNDS as usize {
                    // All threads on one CPU at once: worse than any preemption.
                    machine::arch::CPU.set((i / 10_000) % machine::NR_CPUS);
                    Storm::nr_ones.inc();
                    Storm::nr_threes.add(3);
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|w| w.join().unwrap());
    assert_eq!(Storm::nr_ones.sum(), THREADS * ROUNDS);
    assert_eq!(Storm::nr_threes.sum(), 3 * THREADS * ROUNDS);
    assert_eq!(Storm::nr_never.sum(), 0);
    for cpu in 0..machine::NR_CPUS {
        assert_ne!(
            Storm::nr_ones
                .word(cpu)
                .load(std::sync::atomic::Ordering::Relaxed),
            0,
            "each CPU counts for itself"
        );
    }
}

#[test]
fn words_of_two_cpus_share_no_cache_line() {
    let at = |c: Storm, cpu| c.word(cpu) as *const _ as usize;
    for cpu in 1..machine::NR_CPUS {
        assert_ne!(
            at(Storm::nr_ones, cpu) / 64,
            at(Storm::nr_never, cpu - 1) / 64
        );
    }
}

#[test]
fn lists_are_the_doc_comments() {
    let list = |all| {
        let mut s = String::new();
        kstat::write_list::<List>(all, &mut s).unwrap();
        s
    };
    List::rather_long.add(41);
    List::rather_long.inc();
    assert_eq!(list(false), "rather_long           42  Other.\n");
    assert_eq!(
        list(true),
        format!("short       {:>12}  First.\n{}", 0, list(false))
    );
    assert_eq!(List::short.row().doc, [" First.", " Second line."]);
    assert_eq!(List::ALL, [List::short, List::rather_long]);
}
