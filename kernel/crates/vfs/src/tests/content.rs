//! A file's bytes against a vector, for files made empty and files from an archive.

use super::*;
use proptest::prelude::*;
use std::vec;

#[derive(Debug, Clone)]
enum Op {
    Read(usize),
    Write(usize, u8),
    Pread(u64, usize),
    Pwrite(u64, usize, u8),
    Append(usize, u8),
    Seek(i64, u8),
    Truncate(u64),
    TruncatePath(u64),
    Fallocate(u64, u64),
    /// A read whose destination faults after so many bytes.
    FaultyRead(usize, usize),
    /// A write whose source faults after so many bytes.
    FaultyWrite(usize, usize, u8),
}

/// Offsets near page boundaries, and anywhere in the first few pages.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0u64..4, -2i64..3).prop_map(|(page, d)| (page * 4096).saturating_add_signed(d)),
        0u64..16384,
    ]
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..20, 0usize..9000, Just(4096)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        len().prop_map(Op::Read),
        (len(), any::<u8>()).prop_map(|(n, b)| Op::Write(n, b)),
        (offset(), len()).prop_map(|(o, n)| Op::Pread(o, n)),
        (offset(), len(), any::<u8>()).prop_map(|(o, n, b)| Op::Pwrite(o, n, b)),
        (len(), any::<u8>()).prop_map(|(n, b)| Op::Append(n, b)),
        (-9000i64..20000, 0u8..5).prop_map(|(o, w)| Op::Seek(o, w)),
        offset().prop_map(Op::Truncate),
        offset().prop_map(Op::TruncatePath),
        (offset(), 1u64..5000).prop_map(|(o, n)| Op::Fallocate(o, n)),
        (len(), len()).prop_map(|(n, good)| Op::FaultyRead(n, good)),
        (len(), len(), any::<u8>()).prop_map(|(n, good, b)| Op::FaultyWrite(n, good, b)),
    ]
}

/// `n` bytes that differ from their neighbours.
fn pattern(n: usize, seed: u8) -> Vec<u8> {
    (0..n)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed) | 1)
        .collect()
}

struct Model {
    bytes: Vec<u8>,
    pos: usize,
}

impl Model {
    fn read(&self, pos: usize, n: usize) -> &[u8] {
        let start = pos.min(self.bytes.len());
        &self.bytes[start..(start + n).min(self.bytes.len())]
    }

    fn write(&mut self, pos: usize, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        if self.bytes.len() < pos + data.len() {
            self.bytes.resize(pos + data.len(), 0);
        }
        self.bytes[pos..pos + data.len()].copy_from_slice(data);
    }

    fn seek(&mut self, offset: i64, whence: u8) -> Result<u64, VfsError> {
        let size = self.bytes.len() as i64;
        let to = match whence {
            0 => offset,
            1 => self.pos as i64 + offset,
            2 => size + offset,
            _ if offset < 0 || offset >= size => return Err(VfsError::ENXIO),
            3 => offset,
            _ => size,
        };
        if to < 0 {
            return Err(VfsError::EINVAL);
        }
        self.pos = to as usize;
        Ok(to as u64)
    }
}

fn run(
    file: &File,
    append: &File,
    m: &Machine,
    model: &mut Model,
    op: &Op,
) -> Result<(), TestCaseError> {
    match *op {
        Op::Read(n) => {
            let mut buf = std::vec![0xee; n];
            let got = file.read(&mut &mut buf[..]).unwrap();
            prop_assert_eq!(&buf[..got], model.read(model.pos, n));
            prop_assert!(buf[got..].iter().all(|&b| b == 0xee));
            model.pos += got;
        }
        Op::Write(n, seed) => {
            let data = pattern(n, seed);
            prop_assert_eq!(file.write(&mut &data[..]), Ok(n));
            model.write(model.pos, &data);
            model.pos += n;
        }
        Op::Pread(pos, n) => {
            let mut buf = std::vec![0xee; n];
            let got = file.pread(&mut &mut buf[..], pos as i64).unwrap();
            prop_assert_eq!(&buf[..got], model.read(pos as usize, n));
        }
        Op::Pwrite(pos, n, seed) => {
            let data = pattern(n, seed);
            prop_assert_eq!(file.pwrite(&mut &data[..], pos as i64), Ok(n));
            model.write(pos as usize, &data);
        }
        Op::Append(n, seed) => {
            let data = pattern(n, seed);
            prop_assert_eq!(append.write(&mut &data[..]), Ok(n));
            model.write(model.bytes.len(), &data);
        }
        Op::Seek(offset, whence) => {
            let whence_arg = Whence::from_raw(whence as u32).unwrap();
            prop_assert_eq!(file.lseek(offset, whence_arg), model.seek(offset, whence));
        }
        Op::Truncate(len) => {
            file.ftruncate(len as i64).unwrap();
            model.bytes.resize(len as usize, 0);
        }
        Op::TruncatePath(len) => {
            truncate(m.at(), b"/f", len as i64).unwrap();
            model.bytes.resize(len as usize, 0);
        }
        Op::Fallocate(offset, len) => {
            file.fallocate(0, offset as i64, len as i64).unwrap();
            let end = (offset + len) as usize;
            model.bytes.resize(model.bytes.len().max(end), 0);
        }
        Op::FaultyRead(n, good) => {
            let mut bytes = std::vec![0; n];
            let good = good.min(n);
            let got = file.read(&mut Faulty {
                bytes: &mut bytes,
                at: 0,
                good,
            });
            let want = model.read(model.pos, n).to_vec();
            let moved = want.len().min(good);
            prop_assert_eq!(&bytes[..moved], &want[..moved]);
            let fails = moved < want.len() && moved == 0;
            prop_assert_eq!(
                got,
                if fails {
                    Err(VfsError::EFAULT)
                } else {
                    Ok(moved)
                }
            );
            model.pos += moved;
        }
        Op::FaultyWrite(n, good, seed) => {
            let mut data = pattern(n, seed);
            let good = good.min(n);
            let got = file.write(&mut Faulty {
                bytes: &mut data,
                at: 0,
                good,
            });
            prop_assert_eq!(
                got,
                if n > 0 && good == 0 {
                    Err(VfsError::EFAULT)
                } else {
                    Ok(good)
                }
            );
            model.write(model.pos, &data[..good]);
            model.pos += good;
        }
    }
    Ok(())
}

fn check(file: &File, model: &Model) -> Result<(), TestCaseError> {
    let regular = file.inode().unwrap().as_regular().unwrap();
    regular.mapping().check_invariants();
    prop_assert_eq!(file.stat().size as usize, model.bytes.len());
    prop_assert!(
        regular.nr_pages() <= (model.bytes.len() as u64).div_ceil(4096),
        "INV-REG-2"
    );
    let mut buf = std::vec![0xee; model.bytes.len() + 1];
    let got = file.pread(&mut &mut buf[..], 0).unwrap();
    prop_assert!(buf[..got] == model.bytes[..]);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn a_file_is_a_vector(ops in prop::collection::vec(op(), 1..30), archived in any::<bool>()) {
        static ARCHIVED: &[u8] = include_bytes!("content.rs");
        let m = Machine::new();
        let mut model = Model { bytes: Vec::new(), pos: 0 };
        if archived {
            let archive = super::archive::one_file(b"f", ARCHIVED);
            unpack_initramfs(&m.root(), archive).unwrap();
            model.bytes = ARCHIVED.to_vec();
        }
        let file = m.open(b"/f", OpenFlags::CREAT | OpenFlags::RDWR).unwrap();
        let append = m.open(b"/f", OpenFlags::WRONLY | OpenFlags::APPEND).unwrap();
        for op in &ops {
            run(&file, &append, &m, &mut model, op)?;
        }
        check(&file, &model)?;
    }
}

#[test]
fn a_hole_reads_zero_and_costs_nothing() {
    let m = Machine::new();
    let file = m.file(b"f", b"");
    file.pwrite(&mut &b"x"[..], 1 << 40).unwrap();
    assert_eq!(file.stat().blocks, 8);
    let mut buf = [1u8; 10000];
    assert_eq!(file.pread(&mut &mut buf[..], 1 << 30), Ok(10000));
    assert!(buf.iter().all(|&b| b == 0));
    assert_eq!(file.stat().blocks, 8);
}

#[test]
fn a_write_that_fails_leaves_no_page_past_the_end() {
    let m = Machine::new();
    let file = m.file(b"f", b"");
    let mut bytes = [1; 5000];
    let mut faulty = Faulty {
        bytes: &mut bytes,
        at: 0,
        good: 0,
    };
    assert_eq!(file.pwrite(&mut faulty, 8192), Err(VfsError::EFAULT));
    assert_eq!(file.stat().blocks, 0);
    faulty.good = 4096;
    assert_eq!(file.pwrite(&mut faulty, 8192), Ok(4096));
    assert_eq!((file.stat().blocks, file.stat().size), (8, 12288));
}

#[test]
fn sizes_at_the_limit() {
    let m = Machine::new();
    let file = m.file(b"f", b"");
    let max = rmap::MAX_FILE_SIZE as i64;
    assert_eq!(file.pwrite(&mut &b"x"[..], max), Err(VfsError::EFBIG));
    assert_eq!(file.pwrite(&mut &b"xyz"[..], max - 2), Ok(2));
    assert_eq!(file.pwrite(&mut &b""[..], i64::MAX), Ok(0));
    assert_eq!(file.ftruncate(i64::MAX), Err(VfsError::EFBIG));
    assert_eq!(file.ftruncate(-1), Err(VfsError::EINVAL));
    assert_eq!(file.lseek(i64::MAX, Whence::Cur), Ok(i64::MAX as u64));
    assert_eq!(file.lseek(1, Whence::Cur), Err(VfsError::EOVERFLOW));
    assert_eq!(file.read(&mut &mut [0u8; 1][..]), Ok(0));
    assert_eq!(file.write(&mut &b"x"[..]), Err(VfsError::EFBIG));
}
