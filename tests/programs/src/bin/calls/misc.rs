//! uname, clocks, sleeping, affinity, getrandom, arch_prctl, reboot, numbers that don't exist.

use rt::abi::*;
use rt::process::in_child;
use rt::sys::{at, at_mut};
use rt::{Errno, Suite, sys};

pub fn run(t: &mut Suite) {
    uname(t);
    clocks(t);
    sleeping(t);
    affinity(t);
    random(t);
    segments(t);
    refused(t);
}

fn uname(t: &mut Suite) {
    let mut name = Utsname {
        fields: [[1; 65]; 6],
    };
    t.is("uname", sys!(UNAME, at_mut(&mut name)), 0);
    t.ok("uname: Linux", name.fields[0].starts_with(b"Linux\0"));
    t.ok("uname: x86_64", name.fields[4].starts_with(b"x86_64\0"));
    t.ok(
        "uname: a release number",
        name.fields[2][0].is_ascii_digit(),
    );
    t.ok(
        "uname: all strings end",
        name.fields.iter().all(|f| f.contains(&0)),
    );
}

fn clock(id: usize) -> Timespec {
    let mut time = Timespec { sec: -1, nsec: -1 };
    sys!(CLOCK_GETTIME, id, at_mut(&mut time));
    time
}

fn clocks(t: &mut Suite) {
    let mut last = clock(CLOCK_MONOTONIC);
    t.ok(
        "clock_gettime: monotonic",
        last.sec >= 0 && (0..1_000_000_000).contains(&last.nsec),
    );
    let mut steady = true;
    for _ in 0..2000 {
        let now = clock(CLOCK_MONOTONIC);
        steady &= now >= last;
        last = now;
    }
    t.ok("clock_gettime: never steps back", steady);
    let real = clock(CLOCK_REALTIME);
    t.ok(
        "clock_gettime: realtime",
        real.sec >= 0 && (0..1_000_000_000).contains(&real.nsec),
    );
    let mut time = Timespec::default();
    t.err(
        "clock_gettime: unknown clock",
        sys!(CLOCK_GETTIME, 99, at_mut(&mut time)),
        Errno::EINVAL,
    );
}

fn sleeping(t: &mut Suite) {
    let nanosleep = |sec: i64, nsec: i64| sys!(NANOSLEEP, at(&Timespec { sec, nsec }), 0);
    let before = rt::time::now_ns();
    t.is("nanosleep: 5 ms", nanosleep(0, 5_000_000), 0);
    t.ok(
        "nanosleep: not less",
        rt::time::now_ns() - before >= 5_000_000,
    );
    t.is("nanosleep: nothing", nanosleep(0, 0), 0);
    t.err(
        "nanosleep: a whole second of ns",
        nanosleep(0, 1_000_000_000),
        Errno::EINVAL,
    );
    t.err("nanosleep: negative ns", nanosleep(0, -1), Errno::EINVAL);
    t.err(
        "nanosleep: negative seconds",
        nanosleep(-1, 0),
        Errno::EINVAL,
    );
    t.is("sched_yield", sys!(SCHED_YIELD), 0);
    let sleepers: [isize; 4] = core::array::from_fn(|i| {
        rt::process::fork(|| {
            rt::time::sleep_ns(1_000_000 * (4 - i as i64));
            i as i32
        })
    });
    let sum: isize = sleepers
        .iter()
        .map(|pid| rt::process::wait(*pid).number())
        .sum();
    t.is("nanosleep: four at once", sum, 6);
}

fn affinity(t: &mut Suite) {
    let mut mask = [0u64; 128];
    let get = |pid: isize, len: usize, mask: &mut [u64; 128]| {
        sys!(SCHED_GETAFFINITY, pid, len, at_mut(mask))
    };
    let set =
        |pid: isize, len: usize, mask: &[u64; 128]| sys!(SCHED_SETAFFINITY, pid, len, at(mask));
    let len = get(0, 1024, &mut mask);
    t.ok(
        "sched_getaffinity: a multiple of 8 bytes",
        len > 0 && len % 8 == 0,
    );
    let cpus: u32 = mask.iter().map(|w| w.count_ones()).sum();
    t.ok("sched_getaffinity: some CPU", cpus > 0);
    t.err(
        "sched_getaffinity: odd length",
        get(0, 1023, &mut mask),
        Errno::EINVAL,
    );
    t.err(
        "sched_getaffinity: no length",
        get(0, 0, &mut mask),
        Errno::EINVAL,
    );
    t.err(
        "sched_getaffinity: no such process",
        get(1 << 22, 1024, &mut mask),
        Errno::ESRCH,
    );
    t.err(
        "sched_setaffinity: no such process",
        set(1 << 22, 1024, &mask),
        Errno::ESRCH,
    );
    t.err(
        "sched_setaffinity: no CPU",
        set(0, 1024, &[0; 128]),
        Errno::EINVAL,
    );
    let end = in_child(|| {
        let mut visited = 0;
        for cpu in 0..1024usize {
            let mut one = [0u64; 128];
            one[cpu / 64] = 1 << (cpu % 64);
            if mask[cpu / 64] & one[cpu / 64] == 0 {
                continue;
            }
            let mut now = [0u64; 128];
            if set(0, 1024, &one) != 0
                || get(0, 1024, &mut now) != len
                || now != one
                || cpu_mismatch(cpu)
            {
                return 1;
            }
            let inherited = in_child(|| i32::from(get(0, 1024, &mut now) != len || now != one));
            if inherited.number() != 0 {
                return 2;
            }
            visited += 1;
            if visited == 8 {
                break;
            }
        }
        set(0, 1024, &mask) as i32
    });
    t.is(
        "sched_setaffinity: move from CPU to CPU, children inherit",
        end.number(),
        0,
    );
}

/// Whether getcpu, where it exists, names another CPU.
fn cpu_mismatch(cpu: usize) -> bool {
    let mut now = 0u32;
    sys!(GETCPU, at_mut(&mut now), 0, 0) == 0 && now as usize != cpu
}

fn random(t: &mut Suite) {
    let (mut a, mut b) = ([0u8; 64], [0u8; 64]);
    t.is(
        "getrandom: 64 bytes",
        sys!(GETRANDOM, at_mut(&mut a), 64, 0),
        64,
    );
    t.is(
        "getrandom: GRND_NONBLOCK",
        sys!(GETRANDOM, at_mut(&mut b), 64, GRND_NONBLOCK),
        64,
    );
    t.ok("getrandom: differs", a != b && a != [0; 64]);
    t.is(
        "getrandom: nothing",
        sys!(GETRANDOM, at_mut(&mut a), 0, 0),
        0,
    );
    t.err(
        "getrandom: unknown flag",
        sys!(GETRANDOM, at_mut(&mut a), 64, 0x100),
        Errno::EINVAL,
    );
}

fn segments(t: &mut Suite) {
    let prctl = |code: usize, argument: usize| sys!(ARCH_PRCTL, code, argument);
    let (mut fs, mut gs) = (1usize, 1usize);
    t.is("arch_prctl: get FS", prctl(ARCH_GET_FS, at_mut(&mut fs)), 0);
    t.is("arch_prctl: set GS", prctl(ARCH_SET_GS, 0x1234_5678), 0);
    t.is("arch_prctl: get GS", prctl(ARCH_GET_GS, at_mut(&mut gs)), 0);
    t.is("arch_prctl: the GS just set", gs as isize, 0x1234_5678);
    sys!(SCHED_YIELD);
    rt::time::sleep_ns(1_000_000);
    let child = in_child(|| {
        let mut inherited = 0usize;
        prctl(ARCH_GET_GS, at_mut(&mut inherited));
        i32::from(inherited != 0x1234_5678)
    });
    t.is("arch_prctl: GS is inherited", child.number(), 0);
    prctl(ARCH_GET_GS, at_mut(&mut gs));
    t.is("arch_prctl: GS survives a sleep", gs as isize, 0x1234_5678);
    prctl(ARCH_SET_GS, 0);
    t.err(
        "arch_prctl: FS in the kernel half",
        prctl(ARCH_SET_FS, 0xffff_8000_0000_0000),
        Errno::EPERM,
    );
    t.err(
        "arch_prctl: GS in the kernel half",
        prctl(ARCH_SET_GS, 0xffff_8000_0000_0000),
        Errno::EPERM,
    );
    t.err("arch_prctl: unknown code", prctl(0x9999, 0), Errno::EINVAL);
    let mut now = 1usize;
    prctl(ARCH_GET_FS, at_mut(&mut now));
    t.is("arch_prctl: FS unchanged", now as isize, fs as isize);
}

fn refused(t: &mut Suite) {
    t.err(
        "reboot: wrong magic",
        sys!(REBOOT, 1, 2, 0x4321_fedc, 0),
        Errno::EINVAL,
    );
    t.err(
        "reboot: wrong second magic",
        sys!(REBOOT, 0xfee1_dead_u32, 1, 0x4321_fedc, 0),
        Errno::EINVAL,
    );
    for number in [600usize, 5000, 1 << 20, 1 << 29, 1 << 31, usize::MAX] {
        // SAFETY: no such call.
        let got = unsafe { rt::sys::raw(number, [0; 6]) };
        t.err("a number that does not exist", got, Errno::ENOSYS);
    }
}
