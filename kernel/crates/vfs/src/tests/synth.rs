//! Synthetic files: look-ups, links without a path, listings, texts read in pieces, mounts.

use super::*;
use crate::*;
use slab::KArc;
use std::string::String;
use std::vec::Vec;

/// A directory that has every decimal number as a name, up to a limit; each is a file with a long text, but "link"
/// leads to a dentry, "text" to "3", and "pipe" to a pipe's file.
struct Numbers {
    what: What,
}
slab::object!(Numbers, "numbers", links = 0);

enum What {
    Dir(Option<KArc<Dentry>>, Option<KArc<File>>),
    File(u64),
    Text,
    Dentry(KArc<Dentry>),
    File2(KArc<File>),
}

const LIMIT: u64 = 40;

fn node(what: What) -> Result<SynthHandle, VfsError> {
    Ok(SynthHandle::new(KArc::new(Numbers { what })?))
}

impl SynthNode for Numbers {
    fn attr(&self) -> SynthAttr {
        let mode = match self.what {
            What::Dir(..) => S_IFDIR | 0o555,
            What::File(_) => S_IFREG | 0o444,
            _ => S_IFLNK | 0o777,
        };
        SynthAttr {
            mode,
            ino: 7,
            nlink: 1,
        }
    }
    fn lookup(&self, name: &[u8]) -> Result<SynthHandle, VfsError> {
        let What::Dir(dentry, file) = &self.what else {
            return Err(VfsError::ENOENT);
        };
        node(match name {
            b"text" => What::Text,
            b"link" => What::Dentry(dentry.clone().ok_or(VfsError::ENOENT)?),
            b"pipe" => What::File2(file.clone().ok_or(VfsError::ENOENT)?),
            b"sub" => What::Dir(None, None),
            _ => {
                let text = core::str::from_utf8(name).map_err(|_| VfsError::ENOENT)?;
                let nr = text.parse().map_err(|_| VfsError::ENOENT)?;
                if nr >= LIMIT {
                    return Err(VfsError::ENOENT);
                }
                What::File(nr)
            }
        })
    }
    fn list(&self, from: u64, out: &mut Listing<'_>) -> Result<(), VfsError> {
        for nr in from - 2..LIMIT {
            let mut digits = [0; 20];
            let at = decimal(nr, &mut digits);
            if !out.put(7, nr + 3, S_IFREG, &digits[at..]) {
                break;
            }
        }
        Ok(())
    }
    fn read(&self, text: &mut Text<'_>) -> Result<(), VfsError> {
        let What::File(lines) = self.what else {
            return Err(VfsError::EINVAL);
        };
        for line in text.start_key()..lines {
            if !text.record(line) {
                break;
            }
            text.str("line ").dec(line).str(" ").hex(line, 4).int(-1);
            text.dec_wide(line, 5).str("\n");
        }
        Ok(())
    }
    fn write(&self, bytes: &[u8]) -> Result<(), VfsError> {
        if bytes == b"good" {
            Ok(())
        } else {
            Err(VfsError::EINVAL)
        }
    }
    fn text(&self) -> Option<&[u8]> {
        matches!(self.what, What::Text).then_some(b"3")
    }
    fn target(&self) -> Result<SynthTarget, VfsError> {
        match &self.what {
            What::Dentry(dentry) => Ok(SynthTarget::Dentry(dentry.clone())),
            What::File2(file) => Ok(SynthTarget::File(file.clone())),
            _ => Err(VfsError::ENOENT),
        }
    }
}

fn mounted(body: impl FnOnce(&FsStruct)) {
    let m = Machine::new();
    {
        let fs = &*m.fs;
        let at = At::cwd(fs);
        mkdir(at, b"/p", 0o755).unwrap();
        mkdir(at, b"/d", 0o755).unwrap();
        mkdir(at, b"/d/e", 0o755).unwrap();
        let target = open(at, b"/d", OpenFlags::DIRECTORY, 0).unwrap();
        let (reader, writer) = pipe(OpenFlags::empty()).unwrap();
        let root = What::Dir(target.dentry().cloned(), Some(reader));
        mount(at, b"/p", node(root).unwrap(), "numbers").unwrap();
        body(fs);
        assert_eq!(rmdir(at, b"/p"), Err(VfsError::EBUSY));
        umount(at, b"/p", false).unwrap();
        assert_eq!(umount(at, b"/p", false), Err(VfsError::EINVAL));
        assert_eq!(stat(at, b"/p/3", true), Err(VfsError::ENOENT));
        drop((writer, target));
        rmdir(at, b"/p").unwrap();
    }
}

fn expected(lines: u64) -> String {
    (0..lines)
        .map(|i| std::format!("line {i} {i:04x}-1{i:5}\n"))
        .collect()
}

#[test]
fn names_links_and_errors() {
    mounted(|fs| {
        let at = At::cwd(fs);
        assert_eq!(stat(at, b"/p/5", true).unwrap().mode, S_IFREG | 0o444);
        assert!(stat(at, b"/p", true).unwrap().mode & S_IFDIR != 0);
        for missing in [&b"/p/40"[..], b"/p/x", b"/p/sub/x", b"/p/x/y"] {
            assert_eq!(stat(at, missing, true), Err(VfsError::ENOENT));
        }
        assert_eq!(stat(at, b"/p/5/x", true), Err(VfsError::ENOTDIR));
        assert_eq!(stat(at, b"/p/5/", true), Err(VfsError::ENOTDIR));
        // Through a link with a path, and through one without, which may be followed by more.
        assert_eq!(stat(at, b"/p/text", false).unwrap().mode, S_IFLNK | 0o777);
        assert_eq!(stat(at, b"/p/text", true).unwrap().mode, S_IFREG | 0o444);
        assert!(stat(at, b"/p/link/e/..", true).unwrap().mode & S_IFDIR != 0);
        assert_eq!(stat(at, b"/p/link/none", true), Err(VfsError::ENOENT));
        assert_eq!(stat(at, b"/p/pipe", true).unwrap().mode & S_IFMT, S_IFIFO);
        assert_eq!(stat(at, b"/p/pipe/x", true), Err(VfsError::ENOTDIR));
        assert_eq!(stat(at, b"/p/pipe/", true), Err(VfsError::ENOTDIR));
        assert!(stat(at, b"/p/sub/../../d/e", true).is_ok());
        let mut buf = [0; 64];
        let n = readlink(at, b"/p/link", &mut &mut buf[..]).unwrap();
        assert_eq!(&buf[..n], b"/d");
        let n = readlink(at, b"/p/pipe", &mut &mut buf[..]).unwrap();
        assert!(buf[..n].starts_with(b"pipe:[") && buf[..n].ends_with(b"]"));
        assert_eq!(
            readlink(at, b"/p/5", &mut &mut buf[..]),
            Err(VfsError::EINVAL)
        );
        for (result, want) in [
            (mkdir(at, b"/p/new", 0o755), VfsError::ENOENT),
            (mkdir(at, b"/p/5", 0o755), VfsError::EEXIST),
            (unlink(at, b"/p/5"), VfsError::EPERM),
            (rmdir(at, b"/p/sub"), VfsError::EPERM),
            (link(at, b"/p/5", false, at, b"/five"), VfsError::EXDEV),
            (
                rename(at, b"/p", at, b"/q", RenameFlags::empty()),
                VfsError::EBUSY,
            ),
            (chdir(at, b"/p/5"), VfsError::ENOTDIR),
        ] {
            assert_eq!(result, Err(want));
        }
        let flags = OpenFlags::CREAT | OpenFlags::WRONLY;
        assert_eq!(open(at, b"/p/new", flags, 0).err(), Some(VfsError::ENOENT));
        chdir(at, b"/p/sub").unwrap();
        assert_eq!(getcwd(fs, &mut buf), Ok(&b"/p/sub"[..]));
        assert!(stat(at, b"../5", true).is_ok());
        chdir(at, b"/").unwrap();
    });
}

#[test]
fn text_in_pieces_of_every_length() {
    mounted(|fs| {
        let want = expected(30);
        for piece in 1..100 {
            let file = open(At::cwd(fs), b"/p/30", OpenFlags::empty(), 0).unwrap();
            let mut got = Vec::new();
            loop {
                let mut bytes = std::vec![0; piece];
                match file.read(&mut &mut bytes[..]).unwrap() {
                    0 => break,
                    n => got.extend_from_slice(&bytes[..n]),
                }
            }
            assert_eq!(got, want.as_bytes(), "pieces of {piece}");
            // Backwards.
            for pos in (0..want.len()).rev().step_by(7) {
                let mut bytes = std::vec![0; piece];
                let n = file.pread(&mut &mut bytes[..], pos as i64).unwrap();
                assert_eq!(bytes[..n], want.as_bytes()[pos..][..n]);
                assert!(n == piece.min(want.len() - pos));
            }
        }
        let file = open(At::cwd(fs), b"/p/2", OpenFlags::RDWR | OpenFlags::TRUNC, 0).unwrap();
        assert_eq!(file.write(&mut &b"good"[..]), Ok(4));
        assert_eq!(file.write(&mut &b"bad"[..]), Err(VfsError::EINVAL));
    });
}

#[test]
fn listing_goes_on_where_it_stopped() {
    mounted(|fs| {
        for room in [24, 48, 100, 400, 4096] {
            let dir = open(At::cwd(fs), b"/p", OpenFlags::DIRECTORY, 0).unwrap();
            let mut names = Vec::new();
            loop {
                let mut bytes = std::vec![0; room];
                let n = dir.getdents64(&mut &mut bytes[..]).unwrap();
                if n == 0 {
                    break;
                }
                let mut at = 0;
                while at < n {
                    let len = u16::from_le_bytes([bytes[at + 16], bytes[at + 17]]) as usize;
                    let name: Vec<u8> = bytes[at + 19..at + len].to_vec();
                    let end = name.iter().position(|&b| b == 0).unwrap();
                    names.push(String::from_utf8(name[..end].to_vec()).unwrap());
                    at += len;
                }
            }
            let want: Vec<String> = [".".into(), "..".into()]
                .into_iter()
                .chain((0..LIMIT).map(|i| std::format!("{i}")))
                .collect();
            assert_eq!(names, want);
        }
        let dir = open(At::cwd(fs), b"/p", OpenFlags::DIRECTORY, 0).unwrap();
        assert_eq!(dir.getdents64(&mut &mut [0; 20][..]), Err(VfsError::EINVAL));
    });
}

#[test]
fn a_pipe_opened_by_its_link_is_the_same_pipe() {
    mounted(|fs| {
        let at = At::cwd(fs);
        let writer = open(at, b"/p/pipe", OpenFlags::WRONLY, 0).unwrap();
        let reader = open(at, b"/p/pipe", OpenFlags::NONBLOCK, 0).unwrap();
        assert_eq!(writer.write(&mut &b"x"[..]), Ok(1));
        let mut byte = [0];
        assert_eq!(reader.read(&mut &mut byte[..]), Ok(1));
    });
}

#[test]
fn mounts_stack_and_are_busy_while_used() {
    mounted(|fs| {
        let at = At::cwd(fs);
        mount(at, b"/p", node(What::Dir(None, None)).unwrap(), "numbers").unwrap();
        assert_eq!(stat(at, b"/p/link", true), Err(VfsError::ENOENT));
        assert_eq!(nth_mount(0).unwrap().fs_type, "numbers");
        chdir(at, b"/p").unwrap();
        assert_eq!(umount(at, b"/p", false), Err(VfsError::EBUSY));
        chdir(at, b"/").unwrap();
        umount(at, b"/p", false).unwrap();
        assert!(stat(at, b"/p/link", true).is_ok());
        assert_eq!(
            mount(at, b"/", node(What::Dir(None, None)).unwrap(), "numbers"),
            Err(VfsError::EBUSY)
        );
        assert_eq!(
            mount(
                at,
                b"/p/sub",
                node(What::Dir(None, None)).unwrap(),
                "numbers"
            ),
            Err(VfsError::EINVAL)
        );
        assert_eq!(
            mount(at, b"/p/5", node(What::Dir(None, None)).unwrap(), "numbers"),
            Err(VfsError::ENOTDIR)
        );
    });
}

#[test]
fn a_file_knows_its_name_until_it_is_removed() {
    let m = Machine::new();
    {
        let fs = &*m.fs;
        let at = At::cwd(fs);
        let file = open(at, b"/a", OpenFlags::CREAT | OpenFlags::RDWR, 0o644).unwrap();
        let Ok(Mappable::Cache(space)) = file.mappable() else {
            panic!("a regular file has pages")
        };
        let name = || {
            let dentry = name_of(space)?;
            let mut buf = [0; 64];
            Some(d_path(&dentry, &fs.get_root(), &mut buf).unwrap().to_vec())
        };
        assert_eq!(name().as_deref(), Some(&b"/a"[..]));
        rename(at, b"/a", at, b"/b", RenameFlags::empty()).unwrap();
        assert_eq!(name().as_deref(), Some(&b"/b"[..]));
        drop(open(at, b"/c", OpenFlags::CREAT, 0o644).unwrap());
        rename(at, b"/c", at, b"/b", RenameFlags::empty()).unwrap();
        assert_eq!(name(), None);
    }
}
