//! The descriptor table against a vector.

use super::*;
use proptest::prelude::*;
use std::vec;

/// Which file, and close-on-exec; `None` inside: reserved.
type Cell = Option<(Option<usize>, bool)>;

#[derive(Clone)]
struct Model {
    fds: Vec<Cell>,
    limit: usize,
}

impl Model {
    fn file(&self, fd: i32) -> Option<usize> {
        self.fds
            .get(usize::try_from(fd).ok()?)
            .copied()
            .flatten()?
            .0
    }

    fn lowest(&mut self, from: usize) -> Result<usize, VfsError> {
        let fd = (from..)
            .find(|&fd| self.fds.get(fd).is_none_or(|c| c.is_none()))
            .unwrap();
        if fd >= self.limit {
            return Err(VfsError::EMFILE);
        }
        if fd >= self.fds.len() {
            self.fds.resize(fd + 1, None);
        }
        Ok(fd)
    }

    fn install(&mut self, file: usize, from: usize, cloexec: bool) -> Result<i32, VfsError> {
        let fd = self.lowest(from)?;
        self.fds[fd] = Some((Some(file), cloexec));
        Ok(fd as i32)
    }
}

#[derive(Debug, Clone)]
enum Op {
    Install(usize, bool),
    Close(i32),
    Dup(i32),
    Dup2(i32, i32),
    Dup3(i32, i32, bool),
    DupFrom(i32, u32, bool),
    SetCloexec(i32, bool),
    Reserve(bool),
    Release,
    InstallReserved(usize),
    Fork,
    Exec,
    CloseRange(u32, u32, bool),
    SetLimit(u32),
}

fn fd() -> impl Strategy<Value = i32> {
    prop_oneof![10 => 0..8, 3 => 60..70, 2 => 120..135, 1 => Just(1000), 1 => Just(-1), 1 => Just(i32::MIN)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0usize..3, any::<bool>()).prop_map(|(f, c)| Op::Install(f, c)),
        4 => fd().prop_map(Op::Close),
        3 => fd().prop_map(Op::Dup),
        4 => (fd(), fd()).prop_map(|(a, b)| Op::Dup2(a, b)),
        4 => (fd(), fd(), any::<bool>()).prop_map(|(a, b, c)| Op::Dup3(a, b, c)),
        4 => (fd(), 0u32..140, any::<bool>()).prop_map(|(a, b, c)| Op::DupFrom(a, b, c)),
        2 => (fd(), any::<bool>()).prop_map(|(a, c)| Op::SetCloexec(a, c)),
        2 => any::<bool>().prop_map(Op::Reserve),
        1 => Just(Op::Release),
        1 => (0usize..3).prop_map(Op::InstallReserved),
        2 => Just(Op::Fork),
        1 => Just(Op::Exec),
        1 => (0u32..140, 0u32..200, any::<bool>()).prop_map(|(a, b, c)| Op::CloseRange(a, b, c)),
        1 => prop_oneof![Just(10), Just(66), Just(1024)].prop_map(Op::SetLimit),
    ]
}

/// A table, its model, and a reservation outstanding in it.
struct Pair<'a> {
    files: &'a Files,
    model: Model,
    reserved: Option<(FdSlot<'a>, bool)>,
}

impl Pair<'_> {
    fn run(&mut self, pool: &[KArc<File>], op: &Op) -> Result<(), TestCaseError> {
        let (files, model) = (self.files, &mut self.model);
        match *op {
            Op::Install(f, c) => {
                prop_assert_eq!(files.install(pool[f].clone(), c), model.install(f, 0, c));
            }
            Op::Close(fd) => {
                let got = files
                    .close(fd)
                    .map(|f| pool.iter().position(|p| KArc::ptr_eq(p, &f)));
                prop_assert_eq!(got, model.file(fd).map(Some).ok_or(VfsError::EBADF));
                if model.file(fd).is_some() {
                    model.fds[fd as usize] = None;
                }
            }
            Op::Dup(fd) => {
                let want = match model.file(fd) {
                    Some(f) => model.install(f, 0, false),
                    None => Err(VfsError::EBADF),
                };
                prop_assert_eq!(files.dup(fd), want);
            }
            Op::Dup2(a, b) if a == b => {
                prop_assert_eq!(
                    files.dup2(a, b),
                    model.file(a).map(|_| b).ok_or(VfsError::EBADF)
                );
            }
            Op::Dup2(a, b) => prop_assert_eq!(files.dup2(a, b), dup3(model, a, b, false)),
            Op::Dup3(a, b, c) => prop_assert_eq!(files.dup3(a, b, c), dup3(model, a, b, c)),
            Op::DupFrom(fd, min, c) => {
                let want = match model.file(fd) {
                    None => Err(VfsError::EBADF),
                    Some(_) if min as usize >= model.limit => Err(VfsError::EINVAL),
                    Some(f) => model.install(f, min as usize, c),
                };
                prop_assert_eq!(files.dup_from(fd, min, c), want);
            }
            Op::SetCloexec(fd, c) => {
                let want = model.file(fd).map(|_| ()).ok_or(VfsError::EBADF);
                prop_assert_eq!(files.set_cloexec(fd, c), want);
                if want.is_ok() {
                    model.fds[fd as usize].as_mut().unwrap().1 = c;
                }
            }
            Op::Reserve(c) if self.reserved.is_none() => {
                let got = files.reserve(c);
                let want = model.lowest(0);
                prop_assert_eq!(got.as_ref().map(|s| s.fd() as usize).map_err(|e| *e), want);
                if let (Ok(slot), Ok(fd)) = (got, want) {
                    model.fds[fd] = Some((None, c));
                    self.reserved = Some((slot, c));
                }
            }
            Op::Reserve(_) => {}
            Op::Release => {
                if let Some((slot, _)) = self.reserved.take() {
                    model.fds[slot.fd() as usize] = None;
                }
            }
            Op::InstallReserved(f) => {
                if let Some((slot, c)) = self.reserved.take() {
                    let fd = slot.install(pool[f].clone());
                    let c = model.fds[fd as usize].map_or(c, |cell| cell.1);
                    model.fds[fd as usize] = Some((Some(f), c));
                }
            }
            Op::Fork => {
                let copy = files.dup_for_fork().unwrap();
                let mut want = model.clone();
                want.fds
                    .iter_mut()
                    .for_each(|c| *c = c.filter(|c| c.0.is_some()));
                copy.check_invariants();
                same(&copy, &want, pool)?;
                prop_assert_eq!(
                    copy.install(pool[0].clone(), false),
                    want.install(0, 0, false)
                );
            }
            Op::Exec => {
                files.close_on_exec();
                for cell in &mut model.fds {
                    if matches!(cell, Some((Some(_), true))) {
                        *cell = None;
                    }
                }
            }
            Op::CloseRange(a, b, c) => {
                let want = if a > b { Err(VfsError::EINVAL) } else { Ok(()) };
                prop_assert_eq!(files.close_range(a, b, c), want);
                for fd in a..=b {
                    match model.fds.get_mut(fd as usize) {
                        Some(cell) if matches!(cell, Some((Some(_), _))) => {
                            *cell = if c {
                                cell.map(|(f, _)| (f, true))
                            } else {
                                None
                            };
                        }
                        _ => {}
                    }
                }
            }
            Op::SetLimit(n) => {
                files.set_limit(n);
                model.limit = n as usize;
            }
        }
        Ok(())
    }
}

fn dup3(model: &mut Model, a: i32, b: i32, c: bool) -> Result<i32, VfsError> {
    if a == b {
        return Err(VfsError::EINVAL);
    }
    if b < 0 || b as usize >= model.limit {
        return Err(VfsError::EBADF);
    }
    let file = model.file(a).ok_or(VfsError::EBADF)?;
    if b as usize >= model.fds.len() {
        model.fds.resize(b as usize + 1, None);
    }
    if let Some((None, _)) = model.fds[b as usize] {
        return Err(VfsError::EBUSY);
    }
    model.fds[b as usize] = Some((Some(file), c));
    Ok(b)
}

fn same(files: &Files, model: &Model, pool: &[KArc<File>]) -> Result<(), TestCaseError> {
    let mut at = 0;
    for fd in 0..1100 {
        let want = model.file(fd);
        let got = files
            .get(fd)
            .ok()
            .map(|f| pool.iter().position(|p| KArc::ptr_eq(p, &f)).unwrap());
        prop_assert_eq!(got, want, "fd {}", fd);
        let cloexec = want
            .map(|_| model.fds[fd as usize].unwrap().1)
            .ok_or(VfsError::EBADF);
        prop_assert_eq!(files.cloexec(fd), cloexec);
        if want.is_some() {
            prop_assert_eq!(files.next_open(at).unwrap().0, fd as u32);
            at = fd as u32 + 1;
        }
    }
    prop_assert!(files.next_open(at).is_none());
    prop_assert_eq!(files.nr_open() as usize, model.fds.iter().flatten().count());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn the_table_is_a_vector(ops in prop::collection::vec(op(), 1..80)) {
        let m = Machine::new();
        let pool: Vec<_> = (0..3).map(|i| m.file(&[b'0' + i], b"")).collect();
        let files = Files::new().unwrap();
        let model = Model { fds: Vec::new(), limit: 1024 };
        let mut pair = Pair { files: &files, model, reserved: None };
        for op in &ops {
            pair.run(&pool, op)?;
            files.check_invariants();
        }
        same(&files, &pair.model, &pool)?;
        drop(pair);
        drop(files);
        for file in &pool {
            prop_assert_eq!(KArc::refcount(file), 1);
        }
    }
}

#[test]
fn a_descriptor_of_o_path_is_only_a_name() {
    let m = Machine::new();
    drop(m.file(b"f", b"abc"));
    let files = Files::new().unwrap();
    let fd = files
        .install(m.open(b"f", OpenFlags::PATH).unwrap(), false)
        .unwrap();
    assert_eq!(files.get(fd).err(), Some(VfsError::EBADF));
    let file = files.get_raw(fd).unwrap();
    assert_eq!(file.stat().size, 3);
    assert_eq!(file.read(&mut &mut [0u8; 3][..]), Err(VfsError::EBADF));
    assert_eq!(file.lseek(0, Whence::Set), Err(VfsError::EBADF));
    assert_eq!(file.ftruncate(0), Err(VfsError::EBADF));
    assert_eq!(fchmod(&file, 0), Err(VfsError::EBADF));
    assert_eq!(files.dup(fd), Ok(1));
}

#[test]
fn the_limit_is_reached_and_not_passed() {
    let m = Machine::new();
    let file = m.file(b"f", b"");
    let files = Files::new().unwrap();
    for fd in 0..1024 {
        assert_eq!(files.install(file.clone(), false), Ok(fd));
    }
    assert_eq!(files.install(file.clone(), false), Err(VfsError::EMFILE));
    assert_eq!(files.dup2(0, 1024), Err(VfsError::EBADF));
    drop(files.close(77).unwrap());
    drop(files.close(78).unwrap());
    assert_eq!(files.dup(0), Ok(77));
    assert_eq!(files.dup_from(0, 79, false), Err(VfsError::EMFILE));
    assert_eq!(files.dup(0), Ok(78));
    files.set_limit(u32::MAX);
    assert_eq!(files.limit(), NR_OPEN_MAX);
    assert_eq!(files.dup(0), Ok(1024));
}
