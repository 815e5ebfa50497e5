//! Boot, step by step; see the list at the top of `main.rs`.

use crate::arch::{self, apic, clock, fpu, gdt, paging, smp, uaccess};
use crate::params::{self, Switch};
use crate::{
    acpi_tables, bench, boot_mem, console, debug, files, ktest, process, random, sched, watchdog,
};
use bootloader_api::BootInfo;
use bundle::BundleInfo;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use ksync::arch::CpuHead;
use ksync::{lockstat, rcu, static_key, trace};
use slab::KArc;
use task::signal::SigHand;
use task::task::flags;
use task::{PidNamespace, Process, Task};
use topology::Topology;

static TOPOLOGY: spin::Once<Topology> = spin::Once::new();
static NR_PRESENT: AtomicUsize = AtomicUsize::new(1);
static BUNDLE: spin::Once<&'static BundleInfo> = spin::Once::new();

/// The boot CPU's head until its window is mapped.
#[repr(C, align(4096))]
struct EarlyHead(core::mem::MaybeUninit<CpuHead>);
// SAFETY: used by the boot CPU alone.
unsafe impl Sync for EarlyHead {}
static EARLY_HEAD: EarlyHead = EarlyHead(core::mem::MaybeUninit::zeroed());

/// The machine's shape.
pub fn topology() -> &'static Topology {
    TOPOLOGY.get().expect("the topology is known")
}

/// The boot line.
pub fn cmdline() -> &'static [u8] {
    BUNDLE.get().map_or(b"", |b| b.cmdline())
}

/// The initial files.
pub fn initramfs() -> &'static [u8] {
    BUNDLE.get().map_or(b"", |b| b.initramfs())
}

/// Where the boot stage hands over. Never returns.
pub fn run(boot: &'static mut BootInfo) -> ! {
    early_head();
    console::init();
    gdt::early_init();
    boot_mem::init_early_heap();
    let (at, len) = (
        boot.ramdisk_addr.into_option().unwrap_or(0),
        boot.ramdisk_len,
    );
    // SAFETY: our boot stage left it there; another loader's ramdisk fails the magic.
    match unsafe { BundleInfo::from_boot(at, len) } {
        Ok(bundle) => _ = BUNDLE.call_once(|| bundle),
        Err(e) => panic!("this kernel needs its own boot stage: {e:?}"),
    }
    let line =
        core::str::from_utf8(cmdline()).unwrap_or_else(|_| panic!("the boot line is not UTF-8"));
    params::init(line);
    let params = params::get();
    console::set_quiet(params.quiet);
    debug::init(params);

    let mut machine = Topology::EMPTY;
    let firmware = acpi_tables::read(boot.rsdp_addr.into_option(), &mut machine);
    for warning in firmware.warnings.iter() {
        println!("warning: {warning}");
    }
    adopt_topology(machine, params.maxcpus as usize, params.possible as usize);
    boot_mem::init(boot, topology());
    random::init(matches!(
        params.mode,
        params::ModeWord::Icount | params::ModeWord::Numasim
    ));
    paging::enable_protection();
    fpu::init_cpu(); // may turn a static key on
    patch_text(params);

    apic_and_clock(firmware.pm_timer);
    mm::set_kernel_pgd(paging::kernel_pgd());
    choose_mm(params);
    mm::init().expect("memory for the zero page");
    rcu::init();
    let idle = idle_tasks();
    sched::init(ksync::arch::nr_cpu_ids(), idle);
    rcu::cpu_online();
    start_other_cpus();
    paging::drop_identity_map();
    debug_assert!(paging::check_w_xor_x() > 0);
    watchdog::start(params.watchdog);
    banner(line);

    ksync::arch::preempt_enable_no_resched();
    process::kernel_thread("init", 0, first_process, 0).expect("memory for the first process");
    // A benchmark is to begin in the same state each time: nobody types at it or sets alarms, and what is made here is made
    // beside the first process, on another CPU.
    if params.bench.is_none() {
        crate::itimer::start();
        crate::tty::start();
    }
    debug::start_reclaim(params);
    sched::run_idle_loop(0)
}

/// How address spaces are set up.
fn choose_mm(params: &params::BootParams) {
    let i_mmap = rmap::IMmapKind::from_name(params.i_mmap.name());
    rmap::space::set_default_i_mmap(i_mmap.expect("the boot words know the structures"));
    mm::set_kind(mm::MmKind::from_name(params.mm.name()).expect("the boot words know the designs"));
    mm::set_lists(
        mm::MmLists::from_name(params.mm_lists.name()).expect("the boot words know the lists"),
    );
    mm::set_group(params.mm_group as usize);
    mm::set_check(params.mm_check == Switch::On || cfg!(debug_assertions));
}

fn early_head() {
    // SAFETY: zero bytes are a valid head; only this CPU runs.
    let head = unsafe { &*EARLY_HEAD.0.as_ptr() };
    head.init(0, 0);
    let at = x86_64::VirtAddr::new(core::ptr::from_ref(head) as u64);
    x86_64::registers::model_specific::GsBase::write(at);
    // Preemption stays off until there is something to switch to.
    ksync::arch::preempt_disable();
}

/// Tells the crates below how many CPUs and nodes there are.
fn adopt_topology(mut machine: Topology, max_cpus: usize, possible: usize) {
    let boot_id = boot_apic_id();
    if !machine.set_boot_cpu(boot_id) {
        println!(
            "warning: MADT: the boot CPU, APIC id {boot_id}, is not listed; taken to be on node 0"
        );
    }
    let cpus = machine.enabled_cpus();
    let nr = cpus.len().min(max_cpus).max(1);
    let possible = possible.clamp(nr, ksync::NR_CPUS);
    ksync::arch::set_nr_cpu_ids(possible);
    ksync::arch::set_nr_node_ids(machine.nr_nodes().max(1));
    for (cpu, desc) in cpus.iter().enumerate().take(nr) {
        ksync::arch::set_cpu_node(cpu, desc.node);
        smp::set_apic_id(cpu, desc.apic_id);
    }
    // CPUs that are not there have memory all the same, spread over the nodes like those that are.
    for cpu in nr..possible {
        ksync::arch::set_cpu_node(cpu, ksync::arch::cpu_to_node(cpu % nr));
    }
    NR_PRESENT.store(nr, Relaxed);
    TOPOLOGY.call_once(|| machine);
}

/// CPUs that the machine has and that boot starts; the possible ones may be more.
pub fn nr_present() -> usize {
    NR_PRESENT.load(Relaxed)
}

fn boot_apic_id() -> u32 {
    let max = core::arch::x86_64::__cpuid(0).eax;
    if max >= 0xb {
        let leaf = core::arch::x86_64::__cpuid_count(0xb, 0);
        if leaf.ebx != 0 {
            return leaf.edx;
        }
    }
    core::arch::x86_64::__cpuid(1).ebx >> 24
}

/// Turns static keys on and, on a CPU without SMAP, its instructions off, while the text can be written.
fn patch_text(params: &params::BootParams) {
    if params.lockstat == Switch::On {
        let storage: alloc::vec::Vec<lockstat::Counters> =
            core::iter::repeat_with(lockstat::Counters::new)
                .take(lockstat::storage_len())
                .collect();
        lockstat::enable(storage.leak());
    }
    if params.lockdep == Switch::On {
        debug::enable_lockdep();
    }
    if params.strace == Switch::On {
        crate::syscall::strace::STRACE.enable();
    }
    if params.phases == Switch::On {
        trace::TRACE.enable();
    }
    if matches!(params.mode, params::ModeWord::Tcg | params::ModeWord::Kvm) {
        ksync::VIRT_SPIN.enable(); // more CPUs here than the host may have
    }
    if crate::numasim::is_on() {
        ksync::arch::sim::SIMULATED.enable();
    }
    let has_smap = core::arch::x86_64::__cpuid_count(7, 0).ebx & (1 << 20) != 0;
    paging::with_writable_text(|write| {
        static_key::patch_all(|site, bytes| write(site as *const u8, &bytes));
        if !has_smap {
            uaccess::patch_out_smap(write);
        }
    });
    core::arch::x86_64::__cpuid(0); // serialises, so that patched text is fetched anew
}

fn apic_and_clock(pm_timer: Option<u16>) {
    gdt::CpuTables::prepare(0);
    gdt::CpuTables::install(0);
    arch::syscall_init();
    mask_legacy_pic();
    apic::init_cpu();
    clock::init(pm_timer);
    vfs::hooks::set_now(clock::realtime_ns());
}

/// The two old interrupt controllers say nothing from now on.
fn mask_legacy_pic() {
    for port in [0x21, 0xa1] {
        // SAFETY: the mask registers of the 8259s.
        unsafe { x86_64::instructions::port::Port::<u8>::new(port).write(0xff) };
    }
}

/// A maker of idle threads: they share a process and a pid that no namespace of programs shows.
fn idle_tasks() -> impl Fn(usize) -> KArc<Task> {
    let kind =
        pid::PidMapKind::from_name(params::get().pid.name()).expect("the boot words know the maps");
    let hidden = PidNamespace::new_root(kind).expect("memory for the idle namespace");
    let pid = pid::alloc_pid(&hidden).expect("memory for the idle pid");
    let root = PidNamespace::new_root(kind).expect("memory for the root pid namespace");
    let sighand = KArc::new(SigHand::new()).expect("memory for the idle process");
    let process = Process::new(pid.clone(), pid.clone(), pid.clone(), sighand);
    let process = KArc::new(process).expect("memory for the idle process");
    move |cpu| {
        let task = KArc::new(Task::new(
            process.clone(),
            pid.clone(),
            task::NsRef::new(&root),
            cpu,
        ))
        .expect("memory for idle tasks");
        task.set_flag(flags::KTHREAD);
        task.set_comm(b"idle");
        if cpu == 0 {
            // Keeps the pid in use, since the first process joins its group and session.
            let _ = pid.attach(pid::PidType::Tgid, task.clone());
        }
        task
    }
}

fn start_other_cpus() {
    let nr = nr_present();
    if let Err(online) = smp::start_others(nr) {
        panic!("the MADT lists {nr} CPUs, of which {online} came up");
    }
}

fn banner(line: &str) {
    let (machine, tsc) = (topology(), clock::tsc_khz());
    let mut total = 0;
    for node in 0..machine.nr_nodes() {
        total += page_alloc::nr_free(node).total * 4;
    }
    info!(
        "tine {}: {} CPUs on {} nodes, {} MiB, {}, tsc {} kHz",
        env!("CARGO_PKG_VERSION"),
        smp::nr_online(),
        machine.nr_nodes(),
        total >> 10,
        apic::mode(),
        tsc
    );
    info!("boot line: {line}");
}

/// Process 1: opens the files, then runs what the boot line asks for.
extern "C" fn first_process(_: usize) {
    ksync::arch::preempt_count();
    let params = params::get();
    crate::numasim::begin();
    files::init();
    if let Some(test) = params.test {
        ktest::run(test);
    }
    if let Some(word) = params.bench {
        bench::start(word);
    }
    exec_init();
}

/// Becomes the first program. On success returns, and the thread goes to user mode.
fn exec_init() {
    let params = params::get();
    let line = core::str::from_utf8(cmdline()).unwrap_or("");
    let (_, rest) = kparam::split_init_args(line);
    let given = params.init.as_ref().map(|t| t.as_str().as_bytes());
    let default: &[&[u8]] = &[b"/init", b"/bin/init"];
    let candidates = given
        .as_slice()
        .iter()
        .chain(if given.is_none() { default } else { &[] });
    for &path in candidates {
        let mut args = task::exec::ExecArgs::new();
        let mut push = |arg: &[u8]| args.push_arg(arg).expect("memory for init's arguments");
        push(path);
        for word in bundle::words::arguments(rest.as_bytes()) {
            let arg: alloc::vec::Vec<u8> = bundle::words::unescape(word).collect();
            push(&arg);
        }
        for env in [
            &b"HOME=/"[..],
            b"TERM=linux",
            b"PATH=/bin:/sbin:/usr/bin:/usr/sbin",
        ] {
            args.push_env(env).expect("memory for init's environment");
        }
        match process::kernel_execve(path, args) {
            Ok(()) => return,
            Err(e) => println!(
                "cannot run {}: {}",
                core::str::from_utf8(path).unwrap_or("?"),
                e
            ),
        }
    }
    println!("no program to run as process 1");
    crate::power::off(1);
}
