//! Linux's rules, one by one: flags of open, the order of errors, link limits, listings.

use super::*;
use OpenFlags as O;
use VfsError::*;

fn err<T>(r: Result<T, VfsError>) -> Option<VfsError> {
    r.err()
}

/// /d (directory), /d/f (file with "hello"), /l -> d/f, /dl -> /d, /loop -> loop, /dangling -> d/new
fn furnished() -> Machine {
    let m = Machine::new();
    mkdir(m.at(), b"/d", 0o755).unwrap();
    drop(m.file(b"/d/f", b"hello"));
    symlink(b"d/f", m.at(), b"/l").unwrap();
    symlink(b"/d", m.at(), b"/dl").unwrap();
    symlink(b"loop", m.at(), b"/loop").unwrap();
    symlink(b"d/new", m.at(), b"/dangling").unwrap();
    m
}

#[test]
fn open_flags() {
    let m = furnished();
    let cases: &[(&[u8], O, Option<VfsError>)] = &[
        (b"", O::empty(), Some(ENOENT)),
        (b"/none", O::empty(), Some(ENOENT)),
        (b"/none/x", O::CREAT, Some(ENOENT)),
        (b"/d/f/x", O::empty(), Some(ENOTDIR)),
        (b"/d/f/", O::empty(), Some(ENOTDIR)),
        (b"/d/f/x", O::CREAT, Some(ENOTDIR)),
        (b"/d", O::empty(), None),
        (b"/d/", O::DIRECTORY, None),
        (b"/d", O::WRONLY, Some(EISDIR)),
        (b"/d", O::RDWR, Some(EISDIR)),
        (b"/d", O::TRUNC, Some(EISDIR)),
        (b"/d", O::CREAT, Some(EISDIR)),
        (b"/d", O::CREAT.union(O::EXCL), Some(EEXIST)),
        (b"/d", O::CREAT.union(O::DIRECTORY), Some(EINVAL)),
        (b"/", O::CREAT, Some(EISDIR)),
        (b"/d/..", O::CREAT, Some(EISDIR)),
        (b"/", O::CREAT.union(O::EXCL), Some(EEXIST)),
        (b"/d/new/", O::CREAT, Some(EISDIR)),
        (b"/d/f/", O::CREAT, Some(EISDIR)),
        (b"/d/f", O::DIRECTORY, Some(ENOTDIR)),
        (b"/l", O::empty(), None),
        (b"/l", O::NOFOLLOW, Some(ELOOP)),
        (b"/l", O::NOFOLLOW.union(O::DIRECTORY), Some(ENOTDIR)),
        (b"/l", O::NOFOLLOW.union(O::PATH), None),
        (b"/l", O::CREAT.union(O::EXCL), Some(EEXIST)),
        (b"/l/", O::empty(), Some(ENOTDIR)),
        (b"/dl", O::NOFOLLOW, Some(ELOOP)),
        (b"/dl/", O::NOFOLLOW, None),
        (b"/dl/f", O::NOFOLLOW, None),
        (b"/loop", O::empty(), Some(ELOOP)),
        (b"/loop", O::CREAT, Some(ELOOP)),
        (b"/loop/x", O::empty(), Some(ELOOP)),
        (b"/dangling", O::empty(), Some(ENOENT)),
        (b"/dangling", O::CREAT.union(O::EXCL), Some(EEXIST)),
        (b"/d/f", O::TMPFILE.union(O::RDWR), Some(EOPNOTSUPP)),
        // O_PATH looks at nothing else.
        (
            b"/d/f",
            O::PATH.union(O::CREAT).union(O::EXCL).union(O::TRUNC),
            None,
        ),
        (b"/none", O::PATH.union(O::CREAT), Some(ENOENT)),
    ];
    for (path, flags, want) in cases {
        assert_eq!(
            err(m.open(path, *flags)),
            *want,
            "{} {flags:?}",
            path.escape_ascii()
        );
    }
    // A dangling link leads to the new file.
    drop(m.open(b"/dangling", O::CREAT).unwrap());
    assert_eq!(
        stat(m.at(), b"/d/new", false).unwrap().mode,
        S_IFREG | 0o644
    );
    // Truncation: with O_RDONLY too.
    assert_eq!(stat(m.at(), b"/d/f", false).unwrap().size, 5);
    drop(m.open(b"/d/f", O::TRUNC).unwrap());
    assert_eq!(stat(m.at(), b"/d/f", false).unwrap().size, 0);
}

#[test]
fn open_modes_and_flags_later() {
    let m = furnished();
    let read = m.open(b"/d/f", O::empty()).unwrap();
    assert_eq!(read.write(&mut &b"x"[..]), Err(EBADF));
    assert_eq!(read.ftruncate(0), Err(EINVAL));
    assert_eq!(read.fallocate(0, 0, 1), Err(EBADF));
    let write = m
        .open(b"/d/f", O::WRONLY | O::NONBLOCK | O::CREAT | O::CLOEXEC)
        .unwrap();
    assert_eq!(write.read(&mut &mut [0; 1][..]), Err(EBADF));
    assert_eq!(write.flags(), O::WRONLY | O::NONBLOCK | O::LARGEFILE);
    write.set_flags(O::APPEND | O::RDWR | O::CREAT);
    assert_eq!(write.flags(), O::WRONLY | O::APPEND | O::LARGEFILE);
    assert_eq!(write.write(&mut &b"!"[..]), Ok(1));
    assert_eq!(write.lseek(0, Whence::Cur), Ok(6));
    let neither = m.open(b"/d/f", O::from_bits_retain(3)).unwrap();
    assert_eq!(neither.read(&mut &mut [0; 1][..]), Err(EBADF));
    assert_eq!(neither.write(&mut &[0u8; 1][..]), Err(EBADF));
    let dir = m.open(b"/d", O::empty()).unwrap();
    assert_eq!(dir.read(&mut &mut [0; 1][..]), Err(EISDIR));
    assert_eq!(dir.pread(&mut &mut [0; 1][..], 0), Err(EISDIR));
    assert_eq!(dir.ftruncate(0), Err(EINVAL));
    assert!(matches!(dir.mappable(), Err(ENODEV)));
    assert_eq!(read.getdents64(&mut &mut [0; 512][..]), Err(ENOTDIR));
    assert_eq!(read.pread(&mut &mut [0; 1][..], -1), Err(EINVAL));
}

#[test]
fn programs_and_writers_keep_each_other_out() {
    let m = furnished();
    let at = m.at();
    assert_eq!(err(open_exec(at, b"/d/f", true)), Some(EACCES));
    chmod(at, b"/d/f", 0o100, true).unwrap();
    assert_eq!(err(open_exec(at, b"/d", true)), Some(EACCES));
    assert_eq!(err(open_exec(at, b"/l", false)), Some(ELOOP));
    assert_eq!(err(open_exec(at, b"/none", true)), Some(ENOENT));
    let writer = m.open(b"/d/f", O::WRONLY).unwrap();
    assert_eq!(err(open_exec(at, b"/d/f", true)), Some(ETXTBSY));
    drop(writer);
    let first = open_exec(at, b"/l", true).unwrap();
    let second = open_exec(at, b"/d/f", true).unwrap();
    drop(first);
    assert_eq!(err(m.open(b"/d/f", O::RDWR)), Some(ETXTBSY));
    assert_eq!(err(m.open(b"/d/f", O::TRUNC)), Some(ETXTBSY));
    assert_eq!(truncate(at, b"/d/f", 0), Err(ETXTBSY));
    let third = reopen_exec(&m.open(b"/d/f", O::PATH).unwrap()).unwrap();
    drop(second);
    assert_eq!(err(m.open(b"/d/f", O::RDWR)), Some(ETXTBSY));
    let mut head = [0; 4];
    assert_eq!(third.pread(&mut &mut head[..], 1), Ok(4));
    assert_eq!(&head, b"ello");
    drop(third);
    drop(m.open(b"/d/f", O::RDWR | O::TRUNC).unwrap());
    assert_eq!(access(at, b"/d/f", AccessMode::EXEC, true), Ok(()));
    chmod(at, b"/d/f", 0o666, true).unwrap();
    assert_eq!(access(at, b"/d/f", AccessMode::EXEC, true), Err(EACCES));
    assert_eq!(
        access(at, b"/d/f", AccessMode::READ | AccessMode::WRITE, true),
        Ok(())
    );
    assert_eq!(access(at, b"/d", AccessMode::EXEC, true), Ok(()));
}

#[test]
fn relative_to_an_open_directory() {
    let m = furnished();
    let dir = m.open(b"/d", O::PATH | O::DIRECTORY).unwrap();
    let file = m.open(b"/d/f", O::empty()).unwrap();
    let (reader, _writer) = pipe(O::empty()).unwrap();
    assert!(stat(At::dir(&m.fs, &dir), b"f", true).is_ok());
    assert!(stat(At::dir(&m.fs, &file), b"/d/f", true).is_ok());
    assert_eq!(err(stat(At::dir(&m.fs, &file), b"f", true)), Some(ENOTDIR));
    assert_eq!(
        err(stat(At::dir(&m.fs, &reader), b"f", true)),
        Some(ENOTDIR)
    );
    assert_eq!(err(stat(At::dir(&m.fs, &file), b"", true)), Some(ENOENT));
    fchdir(&m.fs, &dir).unwrap();
    assert!(stat(m.at(), b"f", true).is_ok());
    assert_eq!(fchdir(&m.fs, &file), Err(ENOTDIR));
    // The directory goes; what has it open goes on, but finds nothing.
    unlink(m.at(), b"f").unwrap();
    rmdir(m.at(), b"../d").unwrap();
    assert_eq!(err(m.open(b"x", O::CREAT)), Some(ENOENT));
    assert_eq!(mkdir(m.at(), b"x", 0), Err(ENOENT));
    assert!(stat(m.at(), b"..", true).is_ok());
    assert_eq!(stat(m.at(), b".", true).unwrap().nlink, 0);
    let mut buf = [0; 64];
    assert_eq!(getcwd(&m.fs, &mut buf), Err(ENOENT));
    assert_eq!(file_path(&m.fs, &dir, &mut buf), Ok(&b"/d (deleted)"[..]));
    chdir(m.at(), b"..").unwrap();
    assert_eq!(getcwd(&m.fs, &mut buf), Ok(&b"/"[..]));
}

#[test]
fn chroot_is_the_top() {
    let m = furnished();
    let (old_root, outside) = (m.root(), m.open(b"/", O::empty()).unwrap());
    mkdir(m.at(), b"/d/e", 0).unwrap();
    chroot(m.at(), b"/d").unwrap();
    assert!(stat(m.at(), b"/f", true).is_ok());
    assert!(stat(m.at(), b"/../../e", true).is_ok());
    assert_eq!(err(stat(m.at(), b"/dl", true)), Some(ENOENT));
    let mut buf = [0; 64];
    assert_eq!(getcwd(&m.fs, &mut buf), Ok(&b"(unreachable)/"[..]));
    assert!(stat(At::dir(&m.fs, &outside), b"dl/../e", true).is_err());
    chdir(m.at(), b"/e").unwrap();
    assert_eq!(getcwd(&m.fs, &mut buf), Ok(&b"/e"[..]));
    let mut small = [0; 1];
    assert_eq!(getcwd(&m.fs, &mut small), Err(ERANGE));
    m.fs.set_root(old_root);
    assert_eq!(getcwd(&m.fs, &mut buf), Ok(&b"/d/e"[..]));
}

#[test]
fn links_are_counted_to_forty() {
    let m = Machine::new();
    drop(m.file(b"0", b""));
    for i in 1..=41 {
        let name = |i: usize| std::format!("{i}");
        symlink(name(i - 1).as_bytes(), m.at(), name(i).as_bytes()).unwrap();
    }
    assert!(stat(m.at(), b"40", true).is_ok());
    assert_eq!(err(stat(m.at(), b"41", true)), Some(ELOOP));
    // Nested in the middle of paths: each step needs a place on the stack.
    mkdir(m.at(), b"d0", 0).unwrap();
    for i in 1..=41 {
        let target = std::format!("d{}/.", i - 1);
        symlink(target.as_bytes(), m.at(), std::format!("d{i}").as_bytes()).unwrap();
    }
    assert!(stat(m.at(), b"d40/..//./0", true).is_ok());
    assert_eq!(err(stat(m.at(), b"d41/..", true)), Some(ELOOP));
}

#[test]
fn lengths_of_paths() {
    let m = Machine::new();
    let long = |n: usize| [&b"/"[..], &std::vec![b'/'; n - 2], b"x"].concat();
    assert_eq!(mkdir(m.at(), &long(4096), 0), Err(ENAMETOOLONG));
    assert_eq!(mkdir(m.at(), &long(4095), 0), Ok(()));
    assert_eq!(symlink(&long(4096), m.at(), b"l"), Err(ENAMETOOLONG));
    assert_eq!(symlink(b"", m.at(), b"l"), Err(ENOENT));
    symlink(&long(4095), m.at(), b"l").unwrap();
    assert_eq!(stat(m.at(), b"l", false).unwrap().size, 4095);
    let mut small = [0; 3];
    assert_eq!(readlink(m.at(), b"l", &mut &mut small[..]), Ok(3));
    assert_eq!(readlink(m.at(), b"l", &mut &mut [][..]), Err(EINVAL));
    assert_eq!(readlink(m.at(), b"x", &mut &mut small[..]), Err(EINVAL));
    let link = m.open(b"l", O::PATH | O::NOFOLLOW).unwrap();
    assert_eq!(freadlink(&m.fs, &link, &mut &mut small[..]), Ok(3));
}

#[test]
fn offsets_of_a_listing_are_stable() {
    let m = Machine::new();
    mkdir(m.at(), b"d", 0).unwrap();
    for i in 0..40 {
        drop(m.file(std::format!("d/{i}").as_bytes(), b""));
    }
    let dir = m.open(b"d", O::DIRECTORY).unwrap();
    let all = list(&dir, 100);
    assert_eq!(all.len(), 42);
    assert_eq!((all[0].ino, all[0].kind), (dir.stat().ino, 4));
    assert_eq!(all[1].ino, m.root().inode().ino());
    assert_eq!(all[2].kind, 8);
    // Each record's offset leads to the record behind it, in any buffer.
    for (i, entry) in all.iter().enumerate() {
        dir.lseek(entry.off as i64, Whence::Set).unwrap();
        assert_eq!(list(&dir, 4096), all[i + 1..]);
    }
    // Names removed and added in the middle of a listing move no other name.
    dir.lseek(0, Whence::Set).unwrap();
    let mut buf = [0; 400];
    let n = dir.getdents64(&mut &mut buf[..]).unwrap();
    let mut seen = parse_dirents(&buf[..n]);
    unlink(m.at(), &[b"d/", &seen[3].name[..]].concat()).unwrap();
    unlink(m.at(), b"d/39").unwrap();
    drop(m.file(b"d/late", b""));
    rename(m.at(), b"d/38", m.at(), b"d/37", RenameFlags::empty()).unwrap();
    seen.extend(list(&dir, 400));
    let mut want: Vec<_> = all.iter().map(|d| d.name.clone()).collect();
    want.retain(|n| n != b"38" && n != b"39");
    want.push(b"late".to_vec());
    assert_eq!(
        seen.iter().map(|d| d.name.clone()).collect::<Vec<_>>(),
        want
    );
    assert_eq!(dir.getdents64(&mut &mut buf[..]), Ok(0));
    // No room for one record; a fault.
    dir.lseek(0, Whence::Set).unwrap();
    assert_eq!(dir.getdents64(&mut &mut buf[..23]), Err(EINVAL));
    let mut faulty = Faulty {
        bytes: &mut buf,
        at: 0,
        good: 10,
    };
    assert_eq!(dir.getdents64(&mut faulty), Err(EFAULT));
    assert_eq!(list(&dir, 4096).len(), 40);
    assert_eq!(dir.lseek(0, Whence::End), Err(EINVAL));
}

#[test]
fn devices() {
    let m = Machine::new();
    populate_dev(&m.root()).unwrap();
    populate_dev(&m.root()).unwrap();
    let open = |name: &str| {
        m.open(std::format!("/dev/{name}").as_bytes(), O::RDWR)
            .unwrap()
    };
    let mut buf = [7u8; 600];
    assert_eq!(open("null").read(&mut &mut buf[..]), Ok(0));
    assert_eq!(open("null").write(&mut &buf[..]), Ok(600));
    assert_eq!(open("zero").pread(&mut &mut buf[..], 99), Ok(600));
    assert_eq!(buf, [0; 600]);
    assert_eq!(open("full").write(&mut &buf[..]), Err(ENOSPC));
    assert_eq!(open("urandom").read(&mut &mut buf[..]), Ok(600));
    assert!(buf.iter().filter(|&&b| b == 0).count() < 30);
    assert!(matches!(open("zero").mappable(), Ok(Mappable::Anonymous)));
    assert!(open("console").is_console() && open("tty").is_console());
    assert_eq!(open("console").lseek(0, Whence::Set), Err(ESPIPE));
    assert_eq!(open("console").pread(&mut &mut buf[..], 0), Err(ESPIPE));
    assert_eq!(open("null").lseek(5, Whence::Set), Ok(0));
    let mut faulty = Faulty {
        bytes: &mut buf,
        at: 0,
        good: 300,
    };
    assert_eq!(open("zero").read(&mut faulty), Ok(300));
    assert_eq!(open("zero").read(&mut faulty), Err(EFAULT));
    mknod(m.at(), b"/dev/x", S_IFCHR | 0o666, DevId::new(250, 1)).unwrap();
    mknod(m.at(), b"/dev/b", S_IFBLK | 0o666, DevId::new(8, 0)).unwrap();
    mknod(m.at(), b"/dev/s", S_IFSOCK | 0o666, DevId::new(0, 0)).unwrap();
    for name in ["x", "b", "s"] {
        let path = std::format!("/dev/{name}");
        assert_eq!(err(m.open(path.as_bytes(), O::empty())), Some(ENXIO));
    }
    assert_eq!(
        mknod(m.at(), b"/dev/d", S_IFDIR, DevId::new(0, 0)),
        Err(EPERM)
    );
    assert_eq!(
        mknod(m.at(), b"/dev/d", 0o30000, DevId::new(0, 0)),
        Err(EINVAL)
    );
    for dev in [DevId::new(5, 1), DevId::new(0xabc, 0x12345)] {
        assert_eq!(DevId::decode(dev.encode() as u32), dev);
    }
}

#[test]
fn masks_owners_times() {
    let m = Machine::new();
    assert_eq!(m.fs.set_umask(0o77777), 0o022);
    assert_eq!(m.fs.set_umask(0o027), 0o777);
    mkdir(m.at(), b"d", 0o7777).unwrap();
    assert_eq!(stat(m.at(), b"d", true).unwrap().mode, S_IFDIR | 0o1750);
    drop(open(m.at(), b"f", O::CREAT, 0o6777).unwrap());
    chmod(m.at(), b"f", 0o177777, true).unwrap();
    assert_eq!(stat(m.at(), b"f", true).unwrap().mode, S_IFREG | 0o7777);
    chown(m.at(), b"f", Some(5), None, true).unwrap();
    let s = stat(m.at(), b"f", true).unwrap();
    assert_eq!((s.mode, s.uid, s.gid), (S_IFREG | 0o1777, 5, 0));
    symlink(b"f", m.at(), b"l").unwrap();
    assert_eq!(chmod(m.at(), b"l", 0, false), Err(EOPNOTSUPP));
    chown(m.at(), b"l", None, Some(9), false).unwrap();
    assert_eq!(stat(m.at(), b"l", false).unwrap().gid, 9);
    assert_eq!(stat(m.at(), b"l", true).unwrap().gid, 0);
    hooks::set_now(77_000_000_001);
    utimens(m.at(), b"f", None, Some(Timespec { ns: 5 }), true).unwrap();
    let s = stat(m.at(), b"f", true).unwrap();
    assert_eq!(
        (s.mtime.ns, s.ctime.sec(), s.ctime.nsec(), s.atime.ns),
        (5, 77, 1, 0)
    );
    let f = m.file(b"f", b"x");
    assert_eq!(f.stat().mtime.ns, 77_000_000_001);
    hooks::set_now(78_000_000_000);
    f.read(&mut &mut [0; 1][..]).unwrap();
    assert_eq!(f.stat().atime.sec(), 78);
    hooks::set_now(79_000_000_000);
    f.pread(&mut &mut [0; 1][..], 0).unwrap();
    assert_eq!(f.stat().atime.sec(), 78);
    hooks::set_now(0);
}

#[test]
fn one_file_has_at_most_so_many_names() {
    let m = Machine::new();
    let f = m.file(b"f", b"");
    let inode = f.inode().unwrap();
    for _ in 1..LINK_MAX {
        inode.try_link().unwrap();
    }
    assert_eq!(link(m.at(), b"f", true, m.at(), b"g"), Err(EMLINK));
    for _ in 1..LINK_MAX {
        inode.dec_nlink();
    }
    unlink(m.at(), b"f").unwrap();
    assert_eq!(flink(&f, m.at(), b"g"), Err(ENOENT));
    let memfd = memfd(b"x", O::empty()).unwrap();
    memfd.write(&mut &b"data"[..]).unwrap();
    assert_eq!((memfd.stat().size, memfd.stat().nlink), (4, 0));
}

#[test]
fn statfs_of_everything() {
    let m = furnished();
    assert_eq!(statfs(m.at(), b"/l").unwrap().f_type, TMPFS_MAGIC);
    assert_eq!(err(statfs(m.at(), b"/none")), Some(ENOENT));
    let (reader, _writer) = pipe(O::empty()).unwrap();
    assert_eq!(fstatfs(&reader).f_type, PIPEFS_MAGIC);
    assert!(fstatfs(&m.open(b"/d", O::empty()).unwrap()).bfree > 0);
}
