//! Several threads in one tree, one file, one table.

use super::*;
use OpenFlags as O;
use std::format;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::vec;

/// Numbers from a seed, for threads that must not agree on what to do.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

/// INV-WALK-1: a rename that replaces leaves no moment at which the name is missing.
#[test]
fn a_replaced_name_is_never_missing() {
    let m = Machine::new();
    mkdir(m.at(), b"d", 0).unwrap();
    drop(m.file(b"d/current", b"0"));
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(stat(m.at(), b"d/current", true).map(|s| s.size), Ok(1));
                    let file = m.open(b"/d/../d/current", O::empty()).unwrap();
                    assert_eq!(file.stat().size, 1);
                }
            });
        }
        for _ in 0..3000 {
            drop(m.file(b"d/next", b"1"));
            rename(
                m.at(),
                b"d/next",
                m.at(),
                b"d/current",
                RenameFlags::empty(),
            )
            .unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// A directory moves between two parents: the way up from inside it leads to one of them.
#[test]
fn dotdot_of_a_moving_directory() {
    let m = Machine::new();
    for dir in ["a", "b", "a/x", "a/x/y"] {
        mkdir(m.at(), dir.as_bytes(), 0).unwrap();
    }
    for parent in ["a", "b"] {
        drop(m.file(format!("{parent}/mark").as_bytes(), parent.as_bytes()));
    }
    let inside = m.open(b"a/x/y", O::PATH).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                let at = At::dir(&m.fs, &inside);
                let mut buf = [0; 64];
                while !stop.load(Ordering::Relaxed) {
                    assert!(stat(at, b"../../mark", true).is_ok());
                    assert!(stat(at, b"../../x/y/../../mark", true).is_ok());
                    let path = file_path(&m.fs, &inside, &mut buf).unwrap();
                    assert!(path == b"/a/x/y" || path == b"/b/x/y");
                }
            });
        }
        for _ in 0..3000 {
            rename(m.at(), b"a/x", m.at(), b"b/x", RenameFlags::empty()).unwrap();
            rename(m.at(), b"b/x", m.at(), b"a/x", RenameFlags::empty()).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Of all who make the same name, one wins; the others open what he made, or fail with O_EXCL.
#[test]
fn one_winner_per_name() {
    const ROUNDS: usize = 300;
    let m = Machine::new();
    let wins: Vec<AtomicUsize> = (0..ROUNDS).map(|_| AtomicUsize::new(0)).collect();
    thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for (i, won) in wins.iter().enumerate() {
                    let name = format!("{i}");
                    match m.open(name.as_bytes(), O::CREAT | O::EXCL) {
                        Ok(_) => drop(won.fetch_add(1, Ordering::Relaxed)),
                        Err(e) => assert_eq!(e, VfsError::EEXIST),
                    }
                    drop(m.open(format!("shared{i}").as_bytes(), O::CREAT).unwrap());
                    match mkdir(m.at(), format!("d{i}").as_bytes(), 0) {
                        Ok(()) => drop(won.fetch_add(1000, Ordering::Relaxed)),
                        Err(e) => assert_eq!(e, VfsError::EEXIST),
                    }
                }
            });
        }
    });
    assert!(wins.iter().all(|w| w.load(Ordering::Relaxed) == 1001));
    assert_eq!(children(&m.root()).len(), 3 * ROUNDS);
}

/// Everything at once on a few names; the checks are the tree's invariants and the leak check.
#[test]
fn a_storm_leaves_a_tree() {
    let m = Machine::new();
    let dirs: [&[u8]; 6] = [b"/", b"/a", b"/b", b"/a/a", b"/a/b", b"/b/a"];
    let names: [&[u8]; 3] = [
        b"a",
        b"b",
        b"a name that is too long to be kept inline in a dentry",
    ];
    thread::scope(|s| {
        for seed in 0..4 {
            let m = &m;
            s.spawn(move || {
                let mut rng = Lcg(seed);
                let fs = m.fs.dup_for_fork().unwrap();
                for _ in 0..4000 {
                    let mut path = || {
                        let dir = dirs[rng.below(dirs.len())];
                        [dir, b"/", names[rng.below(names.len())]].concat()
                    };
                    let (p, q) = (path(), path());
                    let at = At::cwd(&fs);
                    let flags = RenameFlags::empty();
                    let _ = match rng.below(9) {
                        0 | 1 => mkdir(at, &p, 0o755),
                        2 => rmdir(at, &p),
                        3 => unlink(at, &p),
                        4 => open(at, &p, O::CREAT, 0o644).map(drop),
                        5 | 6 => rename(at, &p, at, &q, flags),
                        7 => link(at, &p, false, at, &q),
                        _ => chdir(at, &p),
                    };
                    let _ = stat(at, b"../a/../b", true);
                    if rng.below(50) == 0 {
                        ksync::rcu::process_callbacks();
                    }
                }
            });
        }
        s.spawn(|| {
            for _ in 0..500 {
                if let Ok(dir) = m.open(b"/a", O::DIRECTORY) {
                    let mut buf = [0; 600];
                    while dir.getdents64(&mut &mut buf[..]).is_ok_and(|n| n > 0) {}
                }
            }
        });
    });
    check_tree(&m.root());
}

#[test]
fn appends_do_not_overlap() {
    const EACH: usize = 200;
    let m = Machine::new();
    drop(m.file(b"log", b""));
    thread::scope(|s| {
        for id in 1..=3u8 {
            let m = &m;
            s.spawn(move || {
                let file = m.open(b"log", O::WRONLY | O::APPEND).unwrap();
                for i in 0..EACH {
                    let record = vec![id; 10 + i];
                    assert_eq!(file.write(&mut &record[..]), Ok(record.len()));
                }
            });
        }
    });
    let file = m.open(b"log", O::empty()).unwrap();
    let size = file.stat().size as usize;
    assert_eq!(size, 3 * (0..EACH).map(|i| 10 + i).sum::<usize>());
    let mut all = vec![0; size];
    assert_eq!(file.read(&mut &mut all[..]), Ok(size));
    let mut next = [10; 4];
    let mut at = 0;
    while at < size {
        let id = all[at];
        let n = next[id as usize];
        assert!(all[at..at + n].iter().all(|&b| b == id));
        (at, next[id as usize]) = (at + n, n + 1);
    }
}

/// Readers beside a file that is cut and written again see its bytes or zeroes, never others'.
#[test]
fn reading_beside_truncation() {
    let m = Machine::new();
    let file = m.file(b"f", &[7; 9000]);
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                let mut buf = vec![1; 9000];
                while !stop.load(Ordering::Relaxed) {
                    let n = file.pread(&mut &mut buf[..], 0).unwrap();
                    assert!(buf[..n].iter().all(|&b| b == 7 || b == 0));
                }
            });
        }
        for i in 0..1500 {
            file.ftruncate(i % 9000).unwrap();
            file.pwrite(&mut &[7u8; 9000][..], 0).unwrap();
            if i % 64 == 0 {
                ksync::rcu::process_callbacks();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn one_table_many_threads() {
    let m = Machine::new();
    let file = m.file(b"f", b"");
    let files = Files::new().unwrap();
    thread::scope(|s| {
        for seed in 0..4 {
            let (files, file) = (&files, &file);
            s.spawn(move || {
                let mut rng = Lcg(seed);
                for _ in 0..3000 {
                    let fd = rng.below(70) as i32;
                    match rng.below(6) {
                        0 => drop(files.install(file.clone(), false)),
                        1 => drop(files.close(fd)),
                        2 => drop(files.dup2(fd, 69 - fd)),
                        3 => drop(files.get(fd).map(|f| f.stat())),
                        4 => drop(files.reserve(true)),
                        _ => drop(files.dup_for_fork().unwrap()),
                    }
                }
            });
        }
    });
    files.check_invariants();
    files.close_range(0, u32::MAX, false).unwrap();
    assert_eq!(files.nr_open(), 0);
    assert_eq!(KArc::refcount(&file), 1);
}
