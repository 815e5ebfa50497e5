//! Every allocation fails once: the answer is ENOMEM, and nothing has changed.

use super::*;
use OpenFlags as O;
use page_alloc::fault_inject::{fail_nth, set_fail_nth};

/// Runs `op` with its 1st, 2nd, 3rd ... allocation failing, until it needs no more. After each
/// failure everything is as before. `undo` takes back what a success did.
fn sweep<T>(what: &str, op: impl Fn() -> Result<T, VfsError>, undo: impl Fn(T)) -> u32 {
    for n in 1.. {
        let before = census();
        assert!(set_fail_nth(n));
        let result = op();
        let reached = fail_nth() == 0;
        set_fail_nth(0);
        match result {
            Ok(value) => {
                assert!(
                    !reached,
                    "{what}: allocation {n} failed, and nobody noticed"
                );
                undo(value);
                let after = census();
                assert_eq!(after.objects, before.objects, "{what}: undone");
                return n - 1;
            }
            Err(e) => {
                assert!(reached, "{what}: {e} without a failure");
                assert_eq!(e, VfsError::ENOMEM, "{what}");
                let after = census();
                assert_eq!(after.objects, before.objects, "{what}: failed at {n}");
                assert_eq!(after.pages, before.pages, "{what}: failed at {n}");
            }
        }
    }
    unreachable!()
}

/// As `sweep`, of an operation that changes the tree, which is compared too.
fn sweep_tree<T>(
    m: &Machine,
    what: &str,
    op: impl Fn() -> Result<T, VfsError>,
    undo: impl Fn(T),
) -> u32 {
    let root = m.root();
    let snapshot = |path: &[u8]| {
        let dir = m.open(path, O::DIRECTORY).unwrap();
        list(&dir, 4096)
            .into_iter()
            .map(|d| (d.name, d.ino))
            .collect::<Vec<_>>()
    };
    let before = (snapshot(b"/"), snapshot(b"/d"));
    let checked = || {
        let result = op();
        if result.is_err() {
            check_tree(&root);
            assert_eq!((snapshot(b"/"), snapshot(b"/d")), before);
        }
        result
    };
    sweep(what, checked, undo)
}

const LONG: &[u8] = b"/d/a name longer than a dentry keeps inline: 0123456789";

#[test]
fn names() {
    let m = Machine::new();
    let at = m.at();
    mkdir(at, b"/d", 0o755).unwrap();
    drop(m.file(b"/f", b"x"));
    let gone = |path: &'static [u8]| move |()| unlink(at, path).unwrap();
    // inode, mapping, dentry, node of the listing; file.
    assert_eq!(
        sweep_tree(
            &m,
            "creat",
            || m.open(b"/d/x", O::CREAT).map(drop),
            gone(b"/d/x")
        ),
        5
    );
    assert_eq!(
        sweep_tree(
            &m,
            "creat long",
            || m.open(LONG, O::CREAT).map(drop),
            gone(LONG)
        ),
        6
    );
    assert_eq!(
        sweep_tree(
            &m,
            "mkdir",
            || mkdir(at, b"/d/x", 0),
            |()| rmdir(at, b"/d/x").unwrap()
        ),
        3
    );
    let null = DevId::new(1, 3);
    assert_eq!(
        sweep_tree(
            &m,
            "mknod",
            || mknod(at, b"/d/x", S_IFCHR, null),
            gone(b"/d/x")
        ),
        3
    );
    sweep_tree(&m, "symlink", || symlink(b"t", at, b"/d/x"), gone(b"/d/x"));
    assert_eq!(
        sweep_tree(
            &m,
            "link",
            || link(at, b"/f", true, at, b"/d/x"),
            gone(b"/d/x")
        ),
        2
    );
    // The first rename gives a dentry the room for its next names.
    rename(at, b"/f", at, b"/d/x", RenameFlags::empty()).unwrap();
    rename(at, b"/d/x", at, b"/f", RenameFlags::empty()).unwrap();
    let back = |()| rename(at, b"/d/x", at, b"/f", RenameFlags::empty()).unwrap();
    assert_eq!(
        sweep_tree(
            &m,
            "rename",
            || rename(at, b"/f", at, b"/d/x", RenameFlags::empty()),
            back
        ),
        2
    );
    unlink(at, b"/f").unwrap();
    drop(m.file(b"/f", b"x"));
    assert_eq!(sweep("stat", || stat(at, b"/d", true), drop), 0);
    assert_eq!(sweep("open", || m.open(b"/f", O::empty()), drop), 1);
    assert_eq!(
        sweep(
            "unlink",
            || unlink(at, b"/f"),
            |()| drop(m.file(b"/f", b"x"))
        ),
        0
    );
}

#[test]
fn contents() {
    let m = Machine::new();
    let file = m.file(b"f", b"");
    let empty = |_| file.ftruncate(0).unwrap();
    // The page and a node of the tree.
    assert!(sweep("write", || file.pwrite(&mut &b"x"[..], 0), empty) >= 2);
    sweep(
        "write far away",
        || file.pwrite(&mut &b"x"[..], 1 << 33),
        empty,
    );
    // A long write gives the count it reached.
    let data = [9u8; 3 * 4096];
    for n in 1..4 {
        file.ftruncate(0).unwrap();
        set_fail_nth(n);
        let got = file.pwrite(&mut &data[..], 0);
        set_fail_nth(0);
        match got {
            Err(e) => assert_eq!((e, file.stat().size), (VfsError::ENOMEM, 0)),
            Ok(done) => assert_eq!((done % 4096, file.stat().size), (0, done as u64)),
        }
        assert_eq!(file.stat().blocks * 512, file.stat().size);
    }
    file.ftruncate(0).unwrap();
    // Pages that come from an archive.
    unpack_initramfs(&m.root(), super::archive::one_file(b"a", &[3; 5000])).unwrap();
    let archived = m.open(b"a", O::empty()).unwrap();
    let mut buf = [0; 10];
    set_fail_nth(1);
    assert_eq!(
        archived.pread(&mut &mut buf[..], 4090),
        Err(VfsError::ENOMEM)
    );
    // The page at the end of the first is there, the next one fails.
    assert_eq!(archived.pread(&mut &mut buf[..1], 0), Ok(1));
    set_fail_nth(1);
    assert_eq!(archived.pread(&mut &mut buf[..], 4090), Ok(6));
    set_fail_nth(0);
}

#[test]
fn pipes_and_tables() {
    let m = Machine::new();
    assert_eq!(sweep("pipe", || pipe(O::empty()), drop), 3);
    let (r, w) = pipe(O::NONBLOCK).unwrap();
    let drain = |n: usize| {
        let mut buf = std::vec![0; n];
        assert_eq!(r.read(&mut &mut buf[..]), Ok(n));
    };
    assert_eq!(
        sweep("write to a pipe", || w.write(&mut &[1u8; 100][..]), drain),
        1
    );
    // Across a page's end: both pages or nothing.
    for _ in 0..crate::PIPE_CAPACITY / 4096 - 1 {
        w.write(&mut &[1u8; 4000][..]).unwrap();
    }
    drain(1);
    for n in 1..4 {
        set_fail_nth(n);
        let before = r.pipe().unwrap().len();
        let got = w.write(&mut &[1u8; 500][..]);
        set_fail_nth(0);
        match got {
            Ok(done) => assert_eq!((done, n), (500, 2)),
            Err(e) => assert_eq!((e, r.pipe().unwrap().len()), (VfsError::ENOMEM, before)),
        }
        if got.is_ok() {
            break;
        }
    }
    assert_eq!(sweep("files", Files::new, drop), 1);
    let files = Files::new().unwrap();
    let file = m.file(b"f", b"");
    for fd in [0, 1, 2, 70, 200] {
        files.install(file.clone(), false).unwrap();
        let _ = files.dup2(0, fd);
    }
    let refs = KArc::refcount(&file);
    assert_eq!(sweep("dup_for_fork", || files.dup_for_fork(), drop), 3);
    assert_eq!(KArc::refcount(&file), refs);
    files.check_invariants();
    let before = census();
    set_fail_nth(1);
    assert_eq!(files.dup2(0, 300), Err(VfsError::ENOMEM));
    assert_eq!(files.dup_from(0, 300, false), Ok(300));
    assert_eq!(
        census().objects.values().sum::<usize>(),
        before.objects.values().sum::<usize>() + 1
    );
    files.check_invariants();
    drop(files.close(300).unwrap());
    assert_eq!(sweep("fs", || m.fs.dup_for_fork(), drop), 1);
    assert_eq!(KArc::refcount(&file), refs);
    mknod(m.at(), b"fifo", S_IFIFO, DevId::new(0, 0)).unwrap();
    assert_eq!(sweep("fifo", || m.open(b"fifo", O::NONBLOCK), drop), 2);
    sweep("memfd", || memfd(b"m", O::empty()), drop);
}
