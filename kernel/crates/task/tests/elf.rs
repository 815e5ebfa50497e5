//! exec against ELF files that somebody damaged: the loader refuses or maps what a naive model maps, and whatever it
//! says, nothing is left behind.

use elf::abi;
use ksync::PAGE_SIZE;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use rmap::{AddressSpace, Filler};
use slab::KArc;
use std::cell::Cell;
use std::collections::BTreeMap;
use task::TaskError;
use task::exec::{AuxInfo, ExecArgs, Image, Loaded, load};
use vfs::VfsError;

const EHDR: usize = 64;
const PHDR: usize = 56;
/// Pages of one segment that the model describes: enough for every file here; what is behind is zeroes.
const PAGES_SEEN: usize = 16;

struct File {
    bytes: Vec<u8>,
    space: KArc<AddressSpace>,
}

impl File {
    /// The bytes are leaked: the page cache wants them for ever, as an initramfs gives them.
    fn new(bytes: Vec<u8>) -> File {
        let forever: &'static [u8] = bytes.clone().leak();
        let space =
            AddressSpace::new(Filler::Static(forever), bytes.len() as u64, b"prog").unwrap();
        File { bytes, space }
    }
}

impl Image for File {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, VfsError> {
        let from = self
            .bytes
            .get(usize::try_from(offset).unwrap_or(usize::MAX)..)
            .unwrap_or(&[]);
        let n = from.len().min(buf.len());
        buf[..n].copy_from_slice(&from[..n]);
        Ok(n)
    }

    fn space(&self) -> &KArc<AddressSpace> {
        &self.space
    }
}

#[derive(Clone, Copy)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    vaddr: u64,
    filesz: u64,
    memsz: u64,
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = file.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

fn get(file: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(file[at..at + 8].try_into().unwrap())
}

/// A sound program: text, data with a zeroed tail and pages behind it, and a stack note.
fn sound(pie: bool) -> Vec<u8> {
    let base: u64 = if pie { 0 } else { 0x40_0000 };
    let load = |flags, offset, vaddr, filesz, memsz| Segment {
        kind: abi::PT_LOAD,
        flags,
        offset,
        vaddr: base + vaddr,
        filesz,
        memsz,
    };
    let segments = [
        load(abi::PF_R, 0, 0, 0x300, 0x300),
        load(abi::PF_R | abi::PF_X, 0x1000, 0x1000, 0x1800, 0x1800),
        load(abi::PF_R | abi::PF_W, 0x2900, 0x3900, 0x480, 0x5000),
        Segment {
            kind: abi::PT_GNU_STACK,
            flags: abi::PF_R | abi::PF_W,
            offset: 0,
            vaddr: 0,
            filesz: 0,
            memsz: 0,
        },
    ];
    // As section headers do, something stands behind the last segment: its zeroed tail must not show it.
    let mut file: Vec<u8> = (0..0x2e40u32).map(|i| (i * 7 + i / 251) as u8).collect();
    file[..EHDR].fill(0);
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    let kind = if pie { abi::ET_DYN } else { abi::ET_EXEC };
    put(&mut file, 16, &kind.to_le_bytes());
    put(&mut file, 18, &abi::EM_X86_64.to_le_bytes());
    put(&mut file, 20, &1u32.to_le_bytes());
    put(&mut file, 24, &(base + 0x1010).to_le_bytes());
    put(&mut file, 32, &(EHDR as u64).to_le_bytes());
    put(&mut file, 52, &(EHDR as u16).to_le_bytes());
    put(&mut file, 54, &(PHDR as u16).to_le_bytes());
    put(&mut file, 56, &(segments.len() as u16).to_le_bytes());
    for (i, s) in segments.iter().enumerate() {
        let at = EHDR + i * PHDR;
        put(&mut file, at, &s.kind.to_le_bytes());
        put(&mut file, at + 4, &s.flags.to_le_bytes());
        for (word, value) in [
            s.offset,
            s.vaddr,
            s.vaddr,
            s.filesz,
            s.memsz,
            PAGE_SIZE as u64,
        ]
        .into_iter()
        .enumerate()
        {
            put(&mut file, at + 8 + word * 8, &value.to_le_bytes());
        }
    }
    file
}

/// What may happen to a file on its way here.
#[derive(Clone, Debug)]
enum Damage {
    Truncate(Index),
    /// One byte of the headers.
    Byte(Index, u8),
    /// A word of a program header (see [`sound`]).
    Word {
        segment: usize,
        word: usize,
        value: u64,
    },
    /// A word of the ELF header: entry or phoff.
    Header {
        at: usize,
        value: u64,
    },
    /// The number of program headers.
    Count(u16),
    /// Two program headers change places.
    Swap(usize, usize),
}

/// Numbers that loaders get wrong, or nearly right.
fn nasty() -> impl Strategy<Value = u64> {
    let edges = [
        0,
        1,
        0x1000,
        1 << 31,
        1 << 32,
        mm::TASK_SIZE as u64,
        1 << 47,
        1 << 63,
        u64::MAX,
        0x40_0000,
        0x2e40,
    ];
    prop_oneof![
        (prop::sample::select(edges.to_vec()), -2i64..=2)
            .prop_map(|(edge, d)| edge.wrapping_add(d as u64)),
        (prop::sample::select(edges.to_vec()), 0u64..8)
            .prop_map(|(edge, pages)| edge.wrapping_add(pages << 12)),
        0u64..0x6000,
        any::<u64>(),
    ]
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        1 => any::<Index>().prop_map(Damage::Truncate),
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        8 => (0usize..4, 0usize..7, nasty()).prop_map(|(segment, word, value)| Damage::Word { segment, word, value }),
        1 => (prop::sample::select(vec![24usize, 32]), nasty()).prop_map(|(at, value)| Damage::Header { at, value }),
        1 => prop_oneof![0u16..8, any::<u16>()].prop_map(Damage::Count),
        1 => (0usize..4, 0usize..4).prop_map(|(a, b)| Damage::Swap(a, b)),
    ]
}

fn apply(file: &mut Vec<u8>, damage: &Damage) {
    match *damage {
        Damage::Truncate(len) => file.truncate(len.index(file.len() + 1)),
        Damage::Byte(at, byte) if !file.is_empty() => {
            let headers = file.len().min(EHDR + 4 * PHDR);
            file[at.index(headers)] = byte;
        }
        Damage::Byte(..) => {}
        Damage::Word {
            segment,
            word,
            value,
        } => put(file, EHDR + segment * PHDR + word * 8, &value.to_le_bytes()),
        Damage::Header { at, value } => put(file, at, &value.to_le_bytes()),
        Damage::Count(n) => put(file, 56, &n.to_le_bytes()),
        Damage::Swap(a, b) if file.len() >= EHDR + 4 * PHDR => {
            for i in 0..PHDR {
                file.swap(EHDR + a * PHDR + i, EHDR + b * PHDR + i);
            }
        }
        Damage::Swap(..) => {}
    }
}

/// The segments that a file with a sound header names, read the plain way.
fn segments(file: &[u8]) -> Vec<Segment> {
    let (phoff, count) = (
        get(file, 32) as usize,
        u16::from_le_bytes([file[56], file[57]]) as usize,
    );
    let of = |i: usize| {
        let at = phoff + i * PHDR;
        let half = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        let [offset, vaddr, _, filesz, memsz] = std::array::from_fn(|w| get(file, at + 8 + w * 8));
        Segment {
            kind: half(at),
            flags: half(at + 4),
            offset,
            vaddr,
            filesz,
            memsz,
        }
    };
    (0..count)
        .map(of)
        .filter(|s| s.kind == abi::PT_LOAD && s.memsz > 0)
        .collect()
}

/// Pages that the program must see, by address: the file's bytes, zeroes behind them, later segments over earlier ones.
/// `None`: not readable.
fn expected(file: &[u8], bias: usize) -> BTreeMap<usize, Option<Vec<u8>>> {
    let mut pages = BTreeMap::new();
    for s in segments(file) {
        let start = bias + s.vaddr as usize;
        let (data_end, end) = (start + s.filesz as usize, start + s.memsz as usize);
        let first = start & !(PAGE_SIZE - 1);
        let last = end
            .next_multiple_of(PAGE_SIZE)
            .min(first + PAGES_SEEN * PAGE_SIZE);
        for page in (first..last).step_by(PAGE_SIZE) {
            let of_file = s.filesz > 0 && page < data_end;
            let byte = |at: usize| {
                let zeroed = at >= data_end && s.flags & abi::PF_W != 0 && end > data_end;
                let offset = (s.offset as usize + at).wrapping_sub(start);
                if of_file && !zeroed {
                    file.get(offset).copied().unwrap_or(0)
                } else {
                    0
                }
            };
            let readable = s.flags & abi::PF_R != 0;
            pages.insert(
                page,
                readable.then(|| (page..page + PAGE_SIZE).map(byte).collect()),
            );
        }
    }
    pages
}

fn check_memory(file: &[u8], loaded: &Loaded) {
    loaded.mm.check_invariants();
    assert!(
        loaded.entry <= mm::TASK_SIZE
            && loaded.sp < task::exec::STACK_TOP
            && loaded.sp.is_multiple_of(16)
    );
    let segments = segments(file);
    let low = segments.iter().map(|s| s.vaddr as usize).min().unwrap() & !(PAGE_SIZE - 1);
    let pie = u16::from_le_bytes([file[16], file[17]]) == abi::ET_DYN;
    // Not the lowest area: a huge interpreter finds room only below the program.
    let start = loaded.mm.layout().start_code;
    let bias = if pie { start - low } else { 0 };
    assert!(bias.is_multiple_of(PAGE_SIZE));
    for (page, bytes) in expected(file, bias) {
        let mut seen = vec![0; PAGE_SIZE];
        let Some(bytes) = bytes else { continue };
        loaded
            .mm
            .read_remote(page, &mut seen)
            .unwrap_or_else(|e| panic!("page {page:#x}: {e:?}"));
        assert!(seen == bytes, "page {page:#x} is not what the file says");
    }
    let mut argc = [0; 8];
    loaded.mm.read_remote(loaded.sp, &mut argc).unwrap();
    assert_eq!(u64::from_le_bytes(argc), 2);
}

fn arguments() -> ExecArgs {
    let mut args = ExecArgs::new();
    args.push_arg(b"prog").unwrap();
    args.push_arg(b"argument").unwrap();
    args.push_env(b"A=b").unwrap();
    args
}

fn exec(file: &File, interpreter: Option<&File>) -> Result<Loaded, TaskError> {
    load(
        file,
        interpreter.map(|i| i as &dyn Image),
        &arguments(),
        b"/prog",
        &AuxInfo::default(),
    )
}

/// Free pages and live objects, when nobody holds any for later.
fn census() -> (usize, BTreeMap<&'static str, usize>) {
    ksync::rcu::barrier();
    mm::pgtable::drain_tables();
    slab::shrink_all();
    page_alloc::drain_all();
    let mut pages = percpu::host::nr_populated() + page_alloc::nr_free(0).free;
    let mut objects = BTreeMap::new();
    slab::slabinfo(|cache| {
        pages += cache.pages;
        if [
            "vm_area_struct",
            "mm_struct",
            "address_space",
            "xarray_node",
        ]
        .contains(&cache.name)
        {
            objects.insert(cache.name, cache.active);
        }
    });
    (pages, objects)
}

/// One test, for the machine is one: sound files load, damaged ones do or do not, and both leave nothing.
#[test]
fn damaged_programs_harm_nobody() {
    page_alloc::host::init(&[8192]);
    mm::init().unwrap();
    for pie in [false, true] {
        let file = File::new(sound(pie));
        check_memory(&file.bytes, &exec(&file, None).unwrap());
        check_memory(
            &file.bytes,
            &exec(&file, Some(&File::new(sound(true)))).unwrap(),
        );
        assert!(matches!(
            exec(&file, Some(&File::new(sound(false)))),
            Err(TaskError::BadProgram)
        ));
    }
    // Zeroes of 47 TB behind the interpreter's data: there is no room for them above the program.
    let mut huge = sound(true);
    put(
        &mut huge,
        EHDR + 2 * PHDR + 8 + 4 * 8,
        &(43u64 << 40).to_le_bytes(),
    );
    let file = File::new(sound(true));
    check_memory(&file.bytes, &exec(&file, Some(&File::new(huge))).unwrap());
    drop(file);
    let before = census();
    let (loaded, refused) = (Cell::new(0), Cell::new(0));
    let histories = (
        any::<bool>(),
        any::<bool>(),
        prop::collection::vec(damage(), 1..4),
    );
    let config = Config {
        cases: 1500,
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&histories, |(pie, as_interpreter, damages)| {
        let mut bytes = sound(pie);
        damages.iter().for_each(|d| apply(&mut bytes, d));
        let (damaged, fine) = (File::new(bytes), File::new(sound(pie)));
        let result = if as_interpreter {
            exec(&fine, Some(&damaged))
        } else {
            exec(&damaged, None)
        };
        match result {
            Ok(program) => {
                loaded.set(loaded.get() + 1);
                check_memory(
                    if as_interpreter {
                        &fine.bytes
                    } else {
                        &damaged.bytes
                    },
                    &program,
                );
            }
            Err(TaskError::BadProgram | TaskError::NoMemory) => refused.set(refused.get() + 1),
            Err(e) => panic!("refused with {e:?}"),
        }
        Ok(())
    });
    outcome.unwrap();
    assert_eq!(census(), before, "something was lost");
    // Both happen, or the damage is not what it should be.
    assert!(
        loaded.get() > 100 && refused.get() > 100,
        "{} loaded, {} refused",
        loaded.get(),
        refused.get()
    );
}
