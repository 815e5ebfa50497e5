//! One promise per test.

use super::*;
use crate::{
    MMAP_BASE, MmError, RemapFlags, RssKind, STACK_GUARD_GAP, TASK_SIZE, VmFlags,
    unmap_mapping_range,
};
use ksync::arch;

const A: usize = 0x40_0000;

fn nr_areas(mm: &Mm) -> usize {
    let mut n = 0;
    mm.for_each_vma(|_| n += 1);
    n
}

#[test]
fn zero_page_then_private_page() {
    let _m = Machine::new();
    let mm = mm_with(A, 4);
    assert_eq!(read(&mm, A), Ok(0));
    assert!(entry(&mm, A).is_special());
    assert_eq!(mm.rss().total(), 0);
    write(&mm, A, 7).unwrap();
    assert_eq!(read(&mm, A), Ok(7));
    assert!(entry(&mm, A).is_anon());
    write(&mm, A + PAGE, 8).unwrap();
    assert_eq!(mm.check_invariants().rss, [0, 2, 0]);
    assert_eq!(mm.nr_tables(), 3);
}

#[test]
fn accesses_that_must_fail() {
    let _m = Machine::new();
    let mm = mm_with(A, 1);
    assert_eq!(read(&mm, A - PAGE), Err(FaultError::SegvMaperr));
    assert_eq!(read(&mm, A + PAGE), Err(FaultError::SegvMaperr));
    assert_eq!(read(&mm, TASK_SIZE), Err(FaultError::SegvMaperr));
    assert_eq!(read(&mm, usize::MAX - 7), Err(FaultError::SegvMaperr));
    assert_eq!(
        access(&mm, A, FaultFlags::EXEC).err(),
        Some(FaultError::SegvAccerr)
    );
    mm.mprotect(A, PAGE, Prot::READ).unwrap();
    assert_eq!(write(&mm, A, 1), Err(FaultError::SegvAccerr));
    mm.mprotect(A, PAGE, Prot::empty()).unwrap();
    assert_eq!(read(&mm, A), Err(FaultError::SegvAccerr));
    let f = file(2);
    let at = mm.mmap(&of_file(&f, 1, 2, false)).unwrap();
    assert_eq!(read(&mm, at), Ok(file_word(1)));
    assert_eq!(read(&mm, at + PAGE), Err(FaultError::Sigbus));
    assert_eq!(write(&mm, at + PAGE, 1), Err(FaultError::Sigbus));
}

#[test]
fn prot_none_keeps_contents() {
    let _m = Machine::new();
    let mm = mm_with(A, 3);
    write(&mm, A + PAGE, 5).unwrap();
    let before = arch::host::nr_tlb_flushes();
    mm.activate(0);
    mm.mprotect(A + PAGE, PAGE, Prot::empty()).unwrap();
    assert_eq!(
        arch::host::nr_tlb_flushes(),
        before + 1,
        "narrowing flushes"
    );
    assert_eq!(nr_areas(&mm), 3);
    assert_eq!(read(&mm, A + PAGE), Err(FaultError::SegvAccerr));
    mm.check_invariants();
    let child = mm.dup().unwrap();
    let before = arch::host::nr_tlb_flushes();
    mm.mprotect(A + PAGE, PAGE, RW).unwrap();
    assert_eq!(arch::host::nr_tlb_flushes(), before, "widening does not");
    assert_eq!(nr_areas(&mm), 1, "areas joined again");
    write(&mm, A + PAGE, 6).unwrap();
    child.mprotect(A, 3 * PAGE, Prot::READ).unwrap();
    assert_eq!(read(&child, A + PAGE), Ok(5));
    mm.deactivate(0);
}

#[test]
fn fork_shares_until_written() {
    let _m = Machine::new();
    let mm = mm_with(A, 600);
    for i in 0..600 {
        write(&mm, A + i * PAGE, i as u64).unwrap();
    }
    mm.activate(3);
    let before = arch::host::nr_tlb_flushes();
    let child = mm.dup().unwrap();
    assert_eq!(arch::host::nr_tlb_flushes(), before + 1);
    assert_eq!(child.rss().get(RssKind::Anon), 600);
    for i in (0..600).step_by(7) {
        assert_eq!(
            entry(&mm, A + i * PAGE).phys(),
            entry(&child, A + i * PAGE).phys()
        );
        write(&child, A + i * PAGE, 1000 + i as u64).unwrap();
        assert_eq!(read(&mm, A + i * PAGE), Ok(i as u64));
        // The parent is alone now: it gets its page back without a copy.
        let page = entry(&mm, A + i * PAGE).phys();
        write(&mm, A + i * PAGE, 2000).unwrap();
        assert_eq!(entry(&mm, A + i * PAGE).phys(), page);
        assert_eq!(read(&child, A + i * PAGE), Ok(1000 + i as u64));
    }
    let grandchild = child.dup().unwrap();
    drop(child);
    assert_eq!(read(&grandchild, A + PAGE), Ok(1));
    grandchild.check_invariants();
    mm.check_invariants();
    mm.deactivate(3);
}

#[test]
fn second_fork_flushes_only_what_was_written_again() {
    let _m = Machine::new();
    let mm = mm_with(A, 2);
    write(&mm, A, 1).unwrap();
    mm.activate(0);
    let _one = mm.dup().unwrap();
    let before = arch::host::nr_tlb_flushes();
    let _two = mm.dup().unwrap();
    assert_eq!(arch::host::nr_tlb_flushes(), before);
    write(&mm, A, 2).unwrap();
    let before = arch::host::nr_tlb_flushes();
    let _three = mm.dup().unwrap();
    assert_eq!(arch::host::nr_tlb_flushes(), before + 1);
    mm.deactivate(0);
}

#[test]
fn exit_without_cpu_does_not_flush() {
    let _m = Machine::new();
    let mm = mm_with(A, 300);
    for i in 0..300 {
        write(&mm, A + i * PAGE, 1).unwrap();
    }
    let before = arch::host::nr_tlb_flushes();
    drop(mm);
    assert_eq!(arch::host::nr_tlb_flushes(), before);
    let mm = mm_with(A, 300);
    write(&mm, A, 1).unwrap();
    mm.activate(1);
    let lazy = mm.mm();
    drop(mm);
    assert!(
        arch::host::nr_tlb_flushes() > before,
        "a lazy CPU has translations"
    );
    lazy.deactivate(1);
    assert!(Mm::try_get_user(&lazy).is_none());
}

#[test]
fn shared_file_and_private_copy() {
    let _m = Machine::new();
    let f = file(8);
    let (one, two) = (Mm::new().unwrap(), Mm::new().unwrap());
    let a = one.mmap(&of_file(&f, 2, 4, true)).unwrap();
    let b = two.mmap(&of_file(&f, 0, 8, true)).unwrap();
    let c = two.mmap(&of_file(&f, 0, 8, false)).unwrap();
    assert_eq!(read(&two, b + 3 * PAGE), Ok(file_word(3)));
    write(&one, a + PAGE, 77).unwrap();
    assert_eq!(read(&two, b + 3 * PAGE), Ok(77));
    assert_eq!(read(&two, c + 3 * PAGE), Ok(77));
    write(&two, c + 3 * PAGE, 88).unwrap();
    assert_eq!(read(&one, a + PAGE), Ok(77));
    assert_eq!(read(&two, c + 3 * PAGE), Ok(88));
    let child = two.dup().unwrap();
    assert_eq!(read(&child, c + 3 * PAGE), Ok(88));
    write(&child, c + 3 * PAGE, 99).unwrap();
    assert_eq!(read(&two, c + 3 * PAGE), Ok(88));
    for mm in [&one, &two, &child] {
        mm.check_invariants();
    }
    f.check_invariants();
}

#[test]
fn fault_around_maps_cached_neighbours() {
    let _m = Machine::new();
    let f = file(64);
    for i in 0..40 {
        f.find_or_create_page(i).unwrap().put();
    }
    let mm = Mm::new().unwrap();
    let at = 0x7000_0000;
    mm.mmap(&MapArgs {
        prot: Prot::READ,
        ..of_file(&f, 0, 64, false).fixed(at)
    })
    .unwrap();
    read(&mm, at + 20 * PAGE).unwrap();
    assert_eq!(mm.check_invariants().rss, [16, 0, 0], "one window");
    read(&mm, at + 36 * PAGE).unwrap();
    assert_eq!(mm.check_invariants().rss, [24, 0, 0], "only cached pages");
    read(&mm, at + 50 * PAGE).unwrap();
    assert_eq!(mm.check_invariants().rss, [25, 0, 0]);
    // Bounds of the area, and of what was there before.
    mm.munmap(at, 64 * PAGE).unwrap();
    mm.mmap(&of_file(&f, 3, 4, false).fixed(at + 3 * PAGE))
        .unwrap();
    write(&mm, at + 4 * PAGE, 1).unwrap();
    read(&mm, at + 5 * PAGE).unwrap();
    assert_eq!(mm.check_invariants().rss, [3, 1, 0]);
    assert_eq!(read(&mm, at + 4 * PAGE), Ok(1));
}

#[test]
fn truncation_removes_mappings_and_copies() {
    let _m = Machine::new();
    let f = file(8);
    let mm = Mm::new().unwrap();
    let s = mm.mmap(&of_file(&f, 0, 8, true)).unwrap();
    let p = mm.mmap(&of_file(&f, 0, 8, false)).unwrap();
    for i in 0..8 {
        read(&mm, s + i * PAGE).unwrap();
        write(&mm, p + i * PAGE, 5).unwrap();
    }
    let child = mm.dup().unwrap();
    f.truncate(3 * PAGE as u64);
    unmap_mapping_range(&f, 3, u64::MAX, true);
    for m in [&mm, &child] {
        m.check_invariants();
        assert_eq!(read(m, p + 2 * PAGE), Ok(5));
        assert_eq!(read(m, s + 2 * PAGE), Ok(file_word(2)));
        assert_eq!(read(m, p + 3 * PAGE), Err(FaultError::Sigbus));
        assert_eq!(read(m, s + 3 * PAGE), Err(FaultError::Sigbus));
    }
    f.extend(8 * PAGE as u64);
    assert_eq!(read(&mm, p + 3 * PAGE), Ok(0));
    // Not the copies, when a hole is punched.
    unmap_mapping_range(&f, 0, 2, false);
    assert!(entry(&mm, p).is_anon());
    assert!(entry(&mm, s).is_none());
}

#[test]
fn shared_anonymous_memory_is_shared_with_children() {
    let _m = Machine::new();
    let mm = Mm::new().unwrap();
    let at = mm.mmap(&shared_anon(3)).unwrap();
    write(&mm, at, 1).unwrap();
    let child = mm.dup().unwrap();
    assert_eq!(read(&child, at), Ok(1));
    write(&child, at + 2 * PAGE, 2).unwrap();
    assert_eq!(read(&mm, at + 2 * PAGE), Ok(2));
    assert_eq!(mm.check_invariants().rss, [0, 0, 2]);
    let key = mm.shared_object_at(at + PAGE + 12).unwrap();
    assert_eq!(key.1, PAGE + 12);
    assert_eq!(child.shared_object_at(at + PAGE + 12), Some(key));
    assert_eq!(mm.shared_object_at(at + 3 * PAGE), None);
    drop(mm);
    assert_eq!(read(&child, at), Ok(1));
}

#[test]
fn areas_merge_and_split() {
    let _m = Machine::new();
    let mm = mm_with(A, 1);
    mm.mmap(&MapArgs::anon(PAGE, RW).fixed(A + 2 * PAGE))
        .unwrap();
    assert_eq!(nr_areas(&mm), 2);
    mm.mmap(&MapArgs::anon(PAGE, RW).fixed(A + PAGE)).unwrap();
    assert_eq!(nr_areas(&mm), 1);
    mm.munmap(A + PAGE, PAGE).unwrap();
    assert_eq!(nr_areas(&mm), 2);
    mm.mmap(&MapArgs::anon(PAGE, Prot::READ).fixed(A + PAGE))
        .unwrap();
    assert_eq!(nr_areas(&mm), 3);
    mm.mmap(&MapArgs::anon(3 * PAGE, RW).fixed(A)).unwrap();
    assert_eq!(nr_areas(&mm), 1);
    let f = file(8);
    mm.mmap(&of_file(&f, 0, 8, false).fixed(A)).unwrap();
    mm.munmap(A + 3 * PAGE, 2 * PAGE).unwrap();
    assert_eq!(read(&mm, A + 2 * PAGE), Ok(file_word(2)));
    assert_eq!(read(&mm, A + 5 * PAGE), Ok(file_word(5)));
    assert_eq!(read(&mm, A + 4 * PAGE), Err(FaultError::SegvMaperr));
    mm.check_invariants();
    assert_eq!(f.i_mmap_len(), 2);
    mm.munmap(A - PAGE, 20 * PAGE).unwrap();
    assert_eq!((nr_areas(&mm), mm.nr_tables(), f.i_mmap_len()), (0, 0, 0));
}

trait IMmapLen {
    fn i_mmap_len(&self) -> usize;
}
impl IMmapLen for AddressSpace {
    fn i_mmap_len(&self) -> usize {
        rmap::FileRmap::check_invariants(self.i_mmap())
    }
}

/// Joined areas hand down their private pages at fork, whichever of them had some.
#[test]
fn merged_areas_keep_their_pages_at_fork() {
    let _m = Machine::new();
    let mm = mm_with(A + 2 * PAGE, 1);
    write(&mm, A + 2 * PAGE, 1).unwrap();
    mm.mmap(&MapArgs::anon(PAGE, RW).fixed(A)).unwrap();
    mm.mmap(&MapArgs::anon(PAGE, RW).fixed(A + PAGE)).unwrap();
    assert_eq!(nr_areas(&mm), 1);
    assert_eq!(read(&mm.dup().unwrap(), A + 2 * PAGE), Ok(1));
    let b = A + 9 * PAGE;
    mm.mmap(&MapArgs::anon(PAGE, Prot::READ).fixed(b)).unwrap();
    mm.mmap(&MapArgs::anon(PAGE, RW).fixed(b + PAGE)).unwrap();
    write(&mm, b + PAGE, 2).unwrap();
    mm.mprotect(b, PAGE, RW).unwrap();
    assert_eq!(nr_areas(&mm), 2);
    assert_eq!(read(&mm.dup().unwrap(), b + PAGE), Ok(2));
}

#[test]
fn places_and_hints() {
    let _m = Machine::new();
    let mm = Mm::new().unwrap();
    let ro = |pages: usize| MapArgs::anon(pages * PAGE, Prot::READ);
    let a = mm.mmap(&MapArgs::anon(PAGE, RW)).unwrap();
    assert_eq!(a, MMAP_BASE - PAGE);
    let b = mm.mmap(&ro(4)).unwrap();
    assert_eq!(b, a - 4 * PAGE);
    let c = mm.mmap(&MapArgs::anon(2 * PAGE, RW)).unwrap();
    assert_eq!(c, b - 2 * PAGE);
    mm.munmap(b, 4 * PAGE).unwrap();
    assert_eq!(mm.mmap(&ro(5)).unwrap(), c - 5 * PAGE);
    assert_eq!(mm.mmap(&ro(4)).unwrap(), b);
    let hint = MapArgs {
        addr: A + 5,
        ..ro(1)
    };
    assert_eq!(mm.mmap(&hint).unwrap(), A + PAGE);
    assert_ne!(mm.mmap(&hint).unwrap(), A + PAGE);
    let noreplace = MapArgs {
        flags: MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE,
        addr: A,
        ..ro(2)
    };
    assert_eq!(mm.mmap(&noreplace), Err(MmError::Exists));
    assert_eq!(
        mm.mmap(&MapArgs {
            len: PAGE,
            ..noreplace
        }),
        Ok(A)
    );
    assert_eq!(mm.mmap(&ro(0)), Err(MmError::Invalid));
    assert_eq!(
        mm.mmap(&MapArgs {
            len: usize::MAX,
            ..ro(1)
        }),
        Err(MmError::NoMemory)
    );
    assert_eq!(mm.mmap(&ro(1).fixed(A + 1)), Err(MmError::Invalid));
    assert_eq!(mm.mmap(&ro(1).fixed(0)), Err(MmError::Perm));
    assert_eq!(mm.mmap(&ro(1).fixed(TASK_SIZE)), Err(MmError::NoMemory));
    // Below MMAP_BASE there is no room: above it there is.
    let rest = mm.mmap(&ro((MMAP_BASE - A) >> 12).fixed(A)).unwrap();
    assert_eq!(mm.mmap(&MapArgs::anon(A, RW)), Ok(TASK_SIZE - A));
    assert_eq!(
        mm.mmap(&MapArgs::anon(A - PAGE, RW)),
        Ok(PAGE),
        "the lowest gap"
    );
    assert_eq!(
        mm.mmap(&MapArgs::anon(TASK_SIZE - MMAP_BASE, RW)),
        Err(MmError::NoMemory)
    );
    assert_eq!(
        mm.mmap(&MapArgs::anon(TASK_SIZE + 1, RW)),
        Err(MmError::NoMemory)
    );
    mm.check_invariants();
    mm.munmap(rest, MMAP_BASE - A).unwrap();
    assert_eq!(
        mm.mmap(&MapArgs {
            max_prot: Prot::WRITE,
            ..ro(1)
        }),
        Err(MmError::Access)
    );
    mm.check_invariants();
}

#[test]
fn stack_grows_to_its_limit_and_keeps_a_gap() {
    let _m = Machine::new();
    let mm = Mm::new().unwrap();
    mm.set_limits(64 * PAGE, usize::MAX, usize::MAX);
    let start = mm.map_stack(TASK_SIZE, 4 * PAGE).unwrap();
    write(&mm, start, 1).unwrap();
    write(&mm, start - 3 * PAGE, 2).unwrap();
    assert_eq!(mm.vma_at(start).unwrap().start, start - 3 * PAGE);
    write(&mm, TASK_SIZE - 64 * PAGE, 3).unwrap();
    assert_eq!(
        write(&mm, TASK_SIZE - 65 * PAGE, 3),
        Err(FaultError::SegvMaperr)
    );
    mm.set_limits(8 << 20, usize::MAX, usize::MAX);
    let wall = TASK_SIZE - 70 * PAGE - STACK_GUARD_GAP;
    mm.mmap(&MapArgs::anon(PAGE, RW).fixed(wall)).unwrap();
    let lowest = wall + PAGE + STACK_GUARD_GAP;
    assert_eq!(write(&mm, lowest - PAGE, 1), Err(FaultError::SegvMaperr));
    write(&mm, lowest, 1).unwrap();
    mm.write_remote(lowest + PAGE - 3, b"remote bytes").unwrap();
    let mut back = [0; 12];
    mm.read_remote(lowest + PAGE - 3, &mut back).unwrap();
    assert_eq!(&back, b"remote bytes");
    assert_eq!(mm.read_remote(A, &mut back), Err(MmError::Fault));
    mm.check_invariants();
}

#[test]
fn brk_moves() {
    let _m = Machine::new();
    let mm = Mm::new().unwrap();
    mm.set_brk_start(A + 0x123);
    assert_eq!(mm.brk(0), A + 0x123);
    assert_eq!(mm.brk(A + 0x200), A + 0x200);
    assert_eq!(mm.brk(A + 3 * PAGE + 1), A + 3 * PAGE + 1);
    write(&mm, A + 3 * PAGE, 1).unwrap();
    assert_eq!(nr_areas(&mm), 1);
    assert_eq!(mm.brk(A + 2 * PAGE), A + 2 * PAGE);
    assert_eq!(read(&mm, A + 3 * PAGE), Err(FaultError::SegvMaperr));
    mm.mmap(&MapArgs::anon(PAGE, Prot::READ).fixed(A + 5 * PAGE))
        .unwrap();
    assert_eq!(mm.brk(A + 6 * PAGE), A + 2 * PAGE);
    assert_eq!(mm.brk(A + 5 * PAGE), A + 5 * PAGE);
    mm.set_limits(0, usize::MAX, 3 * PAGE);
    assert_eq!(mm.brk(A), A + 5 * PAGE, "below the start");
    assert_eq!(mm.brk(A + 4 * PAGE), A + 5 * PAGE, "above the limit");
    mm.check_invariants();
}

#[test]
fn mremap_grows_shrinks_moves() {
    let _m = Machine::new();
    let mm = mm_with(A, 4);
    for i in 0..4 {
        write(&mm, A + i * PAGE, i as u64).unwrap();
    }
    let stay = RemapFlags::empty();
    assert_eq!(mm.mremap(A, 4 * PAGE, 2 * PAGE, stay, 0), Ok(A));
    assert_eq!(mm.mremap(A, 2 * PAGE, 6 * PAGE, stay, 0), Ok(A));
    assert_eq!(read(&mm, A + 2 * PAGE), Ok(0));
    mm.mmap(&MapArgs::anon(PAGE, Prot::READ).fixed(A + 6 * PAGE))
        .unwrap();
    assert_eq!(
        mm.mremap(A, 6 * PAGE, 7 * PAGE, stay, 0),
        Err(MmError::NoMemory)
    );
    let page = entry(&mm, A + PAGE).phys();
    let b = mm
        .mremap(A + PAGE, 3 * PAGE, 700 * PAGE, RemapFlags::MAYMOVE, 0)
        .unwrap();
    assert_eq!(entry(&mm, b).phys(), page, "moved, not copied");
    assert_eq!(read(&mm, b), Ok(1));
    assert_eq!(read(&mm, A + PAGE), Err(FaultError::SegvMaperr));
    assert_eq!(read(&mm, A + 4 * PAGE), Ok(0));
    mm.check_invariants();
    let fixed = RemapFlags::MAYMOVE | RemapFlags::FIXED;
    assert_eq!(
        mm.mremap(b, 700 * PAGE, PAGE, fixed, A + 5 * PAGE),
        Ok(A + 5 * PAGE)
    );
    assert_eq!(read(&mm, A + 5 * PAGE), Ok(1));
    assert_eq!(read(&mm, b), Err(FaultError::SegvMaperr));
    assert_eq!(mm.mremap(A, PAGE, PAGE, fixed, A), Err(MmError::Invalid));
    mm.check_invariants();
}

/// The old place is flushed, although entries moved rather than vanished.
#[test]
fn mremap_flushes_the_old_place() {
    let _m = Machine::new();
    let mm = mm_with(A, 4);
    tlb::access(0, &mm, A, FaultFlags::WRITE).unwrap();
    tlb::access(1, &mm, A + PAGE, FaultFlags::WRITE).unwrap();
    let b = mm
        .mremap(A, 2 * PAGE, 3 * PAGE, RemapFlags::MAYMOVE, 0)
        .unwrap();
    assert_eq!(mm.check_invariants().rss, [0, 2, 0]);
    assert_ne!(b, A);
    tlb::check();
    tlb::idle();
}

#[test]
fn room_below_areas_that_grow_down() {
    let _m = Machine::new();
    let mm = Mm::new().unwrap();
    let down = MapFlags::PRIVATE | MapFlags::ANONYMOUS | MapFlags::GROWSDOWN;
    let a = mm
        .mmap(&MapArgs {
            flags: down,
            ..MapArgs::anon(2 * PAGE, RW)
        })
        .unwrap();
    let b = mm.mmap(&MapArgs::anon(PAGE, RW)).unwrap();
    assert_eq!(b, a - STACK_GUARD_GAP - PAGE);
    let near = MapArgs {
        addr: a - PAGE,
        ..MapArgs::anon(PAGE, RW)
    };
    assert_eq!(mm.mmap(&near), Ok(b - PAGE));
    mm.check_invariants();
}

#[test]
fn dontneed_and_populate() {
    let _m = Machine::new();
    let mm = Mm::new().unwrap();
    let args = MapArgs {
        flags: MapFlags::PRIVATE | MapFlags::POPULATE,
        ..MapArgs::anon(5 * PAGE, RW)
    };
    let at = mm.mmap(&args).unwrap();
    assert_eq!(mm.check_invariants().rss, [0, 5, 0]);
    write(&mm, at + PAGE, 3).unwrap();
    mm.madvise_dontneed(at, 2 * PAGE).unwrap();
    assert_eq!(mm.check_invariants().rss, [0, 3, 0]);
    assert_eq!(read(&mm, at + PAGE), Ok(0));
    assert_eq!(
        mm.madvise_dontneed(at + 4 * PAGE, 2 * PAGE),
        Err(MmError::NoMemory)
    );
    assert_eq!(mm.check_invariants().rss, [0, 2, 0]);
}

#[test]
fn mprotect_is_all_or_nothing() {
    let _m = Machine::new();
    let mm = mm_with(A, 2);
    let f = file(4);
    let ro = MapArgs {
        max_prot: Prot::READ,
        prot: Prot::READ,
        ..of_file(&f, 0, 2, true)
    };
    mm.mmap(&ro.fixed(A + 2 * PAGE)).unwrap();
    assert_eq!(
        mm.mprotect(A + PAGE, 2 * PAGE, RW | Prot::EXEC),
        Err(MmError::Access)
    );
    assert_eq!(
        mm.mprotect(A + PAGE, 9 * PAGE, Prot::READ),
        Err(MmError::NoMemory)
    );
    write(&mm, A + PAGE, 1).unwrap();
    assert_eq!(nr_areas(&mm), 2);
    mm.mprotect(A + PAGE, 2 * PAGE, Prot::READ).unwrap();
    assert_eq!(write(&mm, A + PAGE, 1), Err(FaultError::SegvAccerr));
    assert!(mm.vma_at(A).unwrap().flags.contains(VmFlags::WRITE));
    mm.check_invariants();
}

#[test]
fn kernel_half_is_shared() {
    let _m = Machine::new();
    let root = pgtable::test_root();
    let mut spare: Vec<usize> = Vec::new();
    let mut alloc = || {
        let page = page_alloc::alloc_page(page_alloc::Gfp::ZERO).ok()?;
        spare.push(page.phys());
        Some(page.phys())
    };
    let va = 0xffff_8880_0000_0000;
    let bits = pgtable::RW | pgtable::NX;
    // SAFETY: a root made for this test.
    unsafe {
        pgtable::map_range(root, va, 0, (1 << 30) + (2 << 20) + 4096, bits, &mut alloc).unwrap();
        let t = |off: usize| pgtable::translate(root, va + off).map(|(pa, size, _)| (pa, size));
        assert_eq!(t(12345), Some((12345, pgtable::PageSize::Size1G)));
        assert_eq!(
            t((1 << 30) + 5),
            Some(((1 << 30) + 5, pgtable::PageSize::Size2M))
        );
        assert_eq!(
            t((1 << 30) + (2 << 20)),
            Some(((1 << 30) + (2 << 20), pgtable::PageSize::Size4K))
        );
        assert_eq!(t((1 << 30) + (2 << 20) + 4096), None);
        let again = pgtable::map(root, va, 0, pgtable::PageSize::Size4K, bits, &mut alloc);
        assert_eq!(again, Err(pgtable::MapError::Occupied));
        assert_eq!(
            pgtable::unmap(root, va + 7),
            Some((0, pgtable::PageSize::Size1G))
        );
        assert_eq!(t(0), None);
    }
    for pa in spare {
        page_alloc::PageRef::from_phys(pa).put();
    }
    page_alloc::PageRef::from_phys(root).put();
}
