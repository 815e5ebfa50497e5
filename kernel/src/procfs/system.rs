//! /proc's files about the machine.

use super::{Body, Entry, ProcNode, nr_running, ticks};
use crate::arch::{clock, smp};
use crate::kstats::Stat;
use crate::sched;
use core::fmt::Write;
use kstat::Counters;
use vfs::{Text, VfsError};

/// The kernel's name and version, as uname and /proc/version say it.
pub const OS_RELEASE: &str = "6.12.0-tine";
/// What `uname -v` shows.
pub const VERSION: &str = concat!("#1 SMP Tine ", env!("CARGO_PKG_VERSION"));

const fn file(name: &'static str, read: fn(&ProcNode, &mut Text<'_>)) -> Entry {
    Entry {
        name,
        body: Body::File(read),
    }
}

/// Names and contents.
pub static FILES: &[Entry] = &[
    file("cmdline", |_, text| {
        text.put(crate::start::cmdline()).str("\n");
    }),
    file("cpuinfo", |_, text| cpuinfo(text)),
    file("filesystems", |_, text| {
        text.str("nodev\ttmpfs\nnodev\tproc\nnodev\tpipefs\n");
    }),
    file("loadavg", loadavg),
    file("meminfo", |_, text| meminfo(text)),
    file("slabinfo", |_, text| slabinfo(text)),
    file("stat", stat),
    file("swaps", |_, text| {
        text.str("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n");
    }),
    file("uptime", |_, text| uptime(text)),
    file("version", |_, text| {
        text.str("Linux version ").str(OS_RELEASE);
        text.str(" (tine) (rustc) ").str(VERSION).str("\n");
    }),
    file("vmstat", |_, text| {
        let (_, free) = memory();
        text.str("nr_free_pages ").dec(free);
        text.str("\npgpgin 0\npgpgout 0\npswpin 0\npswpout 0\n");
    }),
];

/// Pages in all, and free.
fn memory() -> (u64, u64) {
    (0..ksync::arch::nr_node_ids()).fold((0, 0), |(total, free), node| {
        let stat = page_alloc::nr_free(node);
        (total + stat.total as u64, free + stat.free as u64)
    })
}

fn meminfo(text: &mut Text<'_>) {
    let (total, free) = memory();
    let slab = slab_pages();
    let cached = 0;
    for (name, pages) in [
        ("MemTotal:       ", total),
        ("MemFree:        ", free),
        ("MemAvailable:   ", free),
        ("Buffers:        ", 0),
        ("Cached:         ", cached),
        ("SwapCached:     ", 0),
        ("Active:         ", total.saturating_sub(free + slab)),
        ("Inactive:       ", 0),
        ("SwapTotal:      ", 0),
        ("SwapFree:       ", 0),
        ("Dirty:          ", 0),
        ("Writeback:      ", 0),
        ("AnonPages:      ", total.saturating_sub(free + slab)),
        ("Mapped:         ", 0),
        ("Shmem:          ", 0),
        ("Slab:           ", slab),
        ("SReclaimable:   ", 0),
        ("SUnreclaim:     ", slab),
        ("CommitLimit:    ", total),
        ("Committed_AS:   ", total.saturating_sub(free)),
        ("HugePages_Total: ", 0),
    ] {
        text.str(name).dec_wide(pages * 4, 8).str(" kB\n");
    }
}

fn slab_pages() -> u64 {
    let mut pages = 0;
    slab::slabinfo(|cache| pages += cache.pages as u64);
    pages
}

fn slabinfo(text: &mut Text<'_>) {
    text.str("slabinfo - version: 2.1\n# name            <active_objs> <num_objs> <objsize> ");
    text.str("<objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> ");
    text.str(": slabdata <active_slabs> <num_slabs> <sharedavail>\n");
    slab::slabinfo(|cache| {
        let per_page = (4096 / cache.stride.max(1)).max(1);
        let _ = writeln!(
            text,
            "{:<17} {:>6} {:>6} {:>6} {:>4} {:>4} : tunables 0 0 0 : slabdata {:>6} {:>6} 0",
            cache.name,
            cache.active,
            cache.total,
            cache.object_size,
            per_page,
            cache.stride.div_ceil(4096),
            cache.pages,
            cache.pages,
        );
    });
}

/// Idle time of all CPUs, in nanoseconds.
fn idle_ns() -> u64 {
    (0..smp::nr_online()).map(sched::idle_ns).sum()
}

fn uptime(text: &mut Text<'_>) {
    for (ns, end) in [(clock::now_ns(), " "), (idle_ns(), "\n")] {
        let hundredths = ticks(ns);
        text.dec(hundredths / 100).str(".");
        text.dec(hundredths % 100 / 10)
            .dec(hundredths % 10)
            .str(end);
    }
}

fn loadavg(node: &ProcNode, text: &mut Text<'_>) {
    let (running, threads, last) = nr_running(&node.ns);
    text.str("0.00 0.00 0.00 ").dec(running as u64).str("/");
    text.dec(threads as u64).str(" ").dec(last as u64).str("\n");
}

fn stat(node: &ProcNode, text: &mut Text<'_>) {
    let (now, nr) = (clock::now_ns(), smp::nr_online());
    let line = |text: &mut Text<'_>, idle: u64, cpus: u64| {
        let busy = (now * cpus).saturating_sub(idle);
        text.str(" ").dec(ticks(busy)).str(" 0 0 ");
        text.dec(ticks(idle)).str(" 0 0 0 0 0 0\n");
    };
    text.str("cpu ");
    line(text, idle_ns(), nr as u64);
    for cpu in 0..nr {
        text.str("cpu").dec(cpu as u64);
        line(text, sched::idle_ns(cpu), 1);
    }
    let (running, ..) = nr_running(&node.ns);
    text.str("intr 0\nctxt ").dec(sched::nr_switches());
    let boot = (clock::realtime_ns() - now) / 1_000_000_000;
    text.str("\nbtime ").dec(boot).str("\nprocesses ");
    text.dec(Stat::nr_forks.sum());
    text.str("\nprocs_running ").dec(running as u64);
    text.str("\nprocs_blocked 0\n");
}

fn cpuinfo(text: &mut Text<'_>) {
    let id = core::arch::x86_64::__cpuid(1);
    let vendor = core::arch::x86_64::__cpuid(0);
    for cpu in 0..smp::nr_online() {
        if !text.record(cpu as u64) {
            return;
        }
        if (cpu as u64) < text.start_key() {
            continue;
        }
        text.str("processor\t: ")
            .dec(cpu as u64)
            .str("\nvendor_id\t: ");
        for word in [vendor.ebx, vendor.edx, vendor.ecx] {
            text.put(&word.to_le_bytes());
        }
        let family = (id.eax >> 8 & 15)
            + if id.eax >> 8 & 15 == 15 {
                id.eax >> 20 & 0xff
            } else {
                0
            };
        text.str("\ncpu family\t: ").dec(family as u64);
        text.str("\nmodel\t\t: ")
            .dec((id.eax >> 4 & 15 | id.eax >> 12 & 0xf0) as u64);
        text.str("\nmodel name\t: x86-64\nstepping\t: ")
            .dec((id.eax & 15) as u64);
        let mhz = clock::tsc_khz() / 1000;
        text.str("\ncpu MHz\t\t: ")
            .dec(mhz)
            .str(".000\nphysical id\t: ");
        text.dec(ksync::arch::cpu_to_node(cpu) as u64);
        text.str("\nsiblings\t: 1\ncore id\t\t: ").dec(cpu as u64);
        text.str("\ncpu cores\t: 1\nfpu\t\t: yes\nflags\t\t: fpu tsc msr pae cx8 apic sep pge cmov mmx fxsr sse sse2 syscall nx lm\n");
        text.str("clflush size\t: 64\naddress sizes\t: 40 bits physical, 48 bits virtual\n\n");
    }
}

/// /proc/mounts.
pub fn mounts(text: &mut Text<'_>) -> Result<(), VfsError> {
    text.str("rootfs / tmpfs rw 0 0\n");
    each_mount(text, |text, _, fs_type, path| {
        text.str(fs_type).str(" ").put(path).str(" ");
        text.str(fs_type).str(" rw,relatime 0 0\n");
    })
}

/// /proc/PID/mountinfo.
pub fn mountinfo(text: &mut Text<'_>) -> Result<(), VfsError> {
    text.str("1 1 0:1 / / rw - tmpfs rootfs rw\n");
    each_mount(text, |text, nr, fs_type, path| {
        text.dec(nr as u64 + 2).str(" 1 0:4 / ").put(path);
        text.str(" rw,relatime - ").str(fs_type).str(" ");
        text.str(fs_type).str(" rw\n");
    })
}

fn each_mount(
    text: &mut Text<'_>,
    line: impl Fn(&mut Text<'_>, usize, &'static str, &[u8]),
) -> Result<(), VfsError> {
    let fs = sched::current_ref().fs.lock().clone();
    let Some(fs) = fs else { return Ok(()) };
    let root = fs.get_root();
    let mut path = slab::KBox::new([0u8; 512])?;
    for nr in 0.. {
        let Some(mount) = vfs::nth_mount(nr) else {
            break;
        };
        if let Ok(path) = vfs::d_path(mount.root(), &root, &mut *path) {
            line(text, nr, mount.fs_type, path);
        }
    }
    Ok(())
}
