//! The tree against a naive model: a vector of nodes, and a recursive walk over strings.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

type Id = usize;

#[derive(Clone, Debug)]
enum Node {
    Dir {
        names: BTreeMap<Vec<u8>, Id>,
        parent: Id,
        dead: bool,
    },
    File {
        nlink: u32,
    },
    Link(Vec<u8>),
}

/// The tree as a student would write it.
struct Model {
    nodes: Vec<Node>,
    cwd: Id,
}

const ROOT: Id = 0;

/// Where a path ends: the directory, and the last name in it if there is one.
struct End {
    dir: Id,
    last: Option<Vec<u8>>,
    slash: bool,
    /// The last component as written.
    written: Vec<u8>,
}

impl Model {
    fn new() -> Self {
        let root = Node::Dir {
            names: BTreeMap::new(),
            parent: ROOT,
            dead: false,
        };
        Model {
            nodes: std::vec![root],
            cwd: ROOT,
        }
    }

    fn names(&self, id: Id) -> Option<&BTreeMap<Vec<u8>, Id>> {
        match &self.nodes[id] {
            Node::Dir { names, .. } => Some(names),
            _ => None,
        }
    }

    fn names_mut(&mut self, id: Id) -> &mut BTreeMap<Vec<u8>, Id> {
        match &mut self.nodes[id] {
            Node::Dir { names, .. } => names,
            _ => unreachable!(),
        }
    }

    fn is_dir(&self, id: Id) -> bool {
        self.names(id).is_some()
    }

    fn parent(&self, id: Id) -> Id {
        match &self.nodes[id] {
            Node::Dir { parent, .. } => *parent,
            _ => unreachable!(),
        }
    }

    fn lookup(&self, dir: Id, name: &[u8]) -> Result<Option<Id>, VfsError> {
        let names = self.names(dir).ok_or(VfsError::ENOTDIR)?;
        if name.len() > 255 {
            return Err(VfsError::ENAMETOOLONG);
        }
        Ok(names.get(name).copied())
    }

    /// Walks everything but the last component, from `start`, counting links.
    fn end(&self, start: Id, path: &[u8], links: &mut u32) -> Result<End, VfsError> {
        if path.is_empty() {
            return Err(VfsError::ENOENT);
        }
        let mut dir = if path[0] == b'/' { ROOT } else { start };
        let parts: Vec<&[u8]> = path
            .split(|&b| b == b'/')
            .filter(|c| !c.is_empty())
            .collect();
        let slash = path.ends_with(b"/");
        let Some((last, before)) = parts.split_last() else {
            return Ok(End {
                dir,
                last: None,
                slash: false,
                written: Vec::new(),
            });
        };
        for part in before {
            dir = self.enter(dir, part, links)?;
        }
        let name = match *last {
            b"." | b".." => None,
            name => Some(name.to_vec()),
        };
        if *last == b".." {
            // Callers that resolve go up; callers that modify refuse.
            return Ok(End {
                dir,
                last: None,
                slash,
                written: last.to_vec(),
            });
        }
        Ok(End {
            dir,
            last: name,
            slash,
            written: last.to_vec(),
        })
    }

    /// Goes from `dir` into the directory `part`.
    fn enter(&self, dir: Id, part: &[u8], links: &mut u32) -> Result<Id, VfsError> {
        let id = match part {
            b"." => return Ok(dir),
            b".." => return Ok(self.parent(dir)),
            name => self.lookup(dir, name)?.ok_or(VfsError::ENOENT)?,
        };
        let id = self.follow(dir, id, links)?;
        if self.is_dir(id) {
            Ok(id)
        } else {
            Err(VfsError::ENOTDIR)
        }
    }

    fn follow(&self, dir: Id, id: Id, links: &mut u32) -> Result<Id, VfsError> {
        match &self.nodes[id] {
            Node::Link(target) => {
                *links += 1;
                if *links > 40 {
                    return Err(VfsError::ELOOP);
                }
                self.resolve_from(dir, target, true, links)
            }
            _ => Ok(id),
        }
    }

    fn resolve_from(
        &self,
        start: Id,
        path: &[u8],
        follow: bool,
        links: &mut u32,
    ) -> Result<Id, VfsError> {
        let end = self.end(start, path, links)?;
        let Some(name) = end.last else {
            return Ok(if end.written == b".." {
                self.parent(end.dir)
            } else {
                end.dir
            });
        };
        let mut id = self.lookup(end.dir, &name)?.ok_or(VfsError::ENOENT)?;
        if follow || end.slash {
            id = self.follow(end.dir, id, links)?;
        }
        if end.slash && !self.is_dir(id) {
            return Err(VfsError::ENOTDIR);
        }
        Ok(id)
    }

    fn resolve(&self, path: &[u8], follow: bool) -> Result<Id, VfsError> {
        self.resolve_from(self.cwd, path, follow, &mut 0)
    }

    fn last(&self, path: &[u8]) -> Result<End, VfsError> {
        self.end(self.cwd, path, &mut 0)
    }

    /// Where a new name goes.
    fn place(&self, path: &[u8], makes_dir: bool) -> Result<(Id, Vec<u8>), VfsError> {
        let end = self.last(path)?;
        let name = end.last.ok_or(VfsError::EEXIST)?;
        if self.lookup(end.dir, &name)?.is_some() {
            return Err(VfsError::EEXIST);
        }
        if end.slash && !makes_dir {
            return Err(VfsError::ENOENT);
        }
        Ok((end.dir, name))
    }

    fn add(&mut self, place: (Id, Vec<u8>), node: Node) -> Result<(), VfsError> {
        if matches!(self.nodes[place.0], Node::Dir { dead: true, .. }) {
            return Err(VfsError::ENOENT);
        }
        self.nodes.push(node);
        let id = self.nodes.len() - 1;
        self.names_mut(place.0).insert(place.1, id);
        Ok(())
    }

    fn mkdir(&mut self, path: &[u8]) -> Result<(), VfsError> {
        let place = self.place(path, true)?;
        let node = Node::Dir {
            names: BTreeMap::new(),
            parent: place.0,
            dead: false,
        };
        self.add(place, node)
    }

    fn symlink(&mut self, target: &[u8], path: &[u8]) -> Result<(), VfsError> {
        if target.is_empty() {
            return Err(VfsError::ENOENT);
        }
        let place = self.place(path, false)?;
        self.add(place, Node::Link(target.to_vec()))
    }

    fn create(&mut self, path: &[u8], excl: bool) -> Result<(), VfsError> {
        let mut links = 0;
        let mut start = self.cwd;
        let mut path = path.to_vec();
        loop {
            let end = self.end(start, &path, &mut links)?;
            let id = match &end.last {
                Some(_) if end.slash => return Err(VfsError::EISDIR),
                None if end.written == b".." => Some(self.parent(end.dir)),
                None => Some(end.dir),
                Some(name) => self.lookup(end.dir, name)?,
            };
            let Some(id) = id else {
                let node = Node::File { nlink: 1 };
                return self.add((end.dir, end.last.unwrap()), node);
            };
            match &self.nodes[id] {
                _ if excl => return Err(VfsError::EEXIST),
                Node::Dir { .. } => return Err(VfsError::EISDIR),
                Node::File { .. } => return Ok(()),
                Node::Link(target) => {
                    links += 1;
                    if links > 40 {
                        return Err(VfsError::ELOOP);
                    }
                    (start, path) = (end.dir, target.clone());
                }
            }
        }
    }

    fn link(&mut self, old: &[u8], new: &[u8]) -> Result<(), VfsError> {
        let id = self.resolve(old, false)?;
        let place = self.place(new, false)?;
        if self.is_dir(id) {
            return Err(VfsError::EPERM);
        }
        if matches!(self.nodes[place.0], Node::Dir { dead: true, .. }) {
            return Err(VfsError::ENOENT);
        }
        if let Node::File { nlink } = &mut self.nodes[id] {
            *nlink += 1;
        }
        self.names_mut(place.0).insert(place.1, id);
        Ok(())
    }

    fn unlink(&mut self, path: &[u8]) -> Result<(), VfsError> {
        let end = self.last(path)?;
        let name = end.last.ok_or(VfsError::EISDIR)?;
        let id = self.lookup(end.dir, &name)?.ok_or(VfsError::ENOENT)?;
        if self.is_dir(id) {
            return Err(VfsError::EISDIR);
        }
        if end.slash {
            return Err(VfsError::ENOTDIR);
        }
        self.names_mut(end.dir).remove(&name);
        if let Node::File { nlink } = &mut self.nodes[id] {
            *nlink -= 1;
        }
        Ok(())
    }

    fn rmdir(&mut self, path: &[u8]) -> Result<(), VfsError> {
        let end = self.last(path)?;
        let name = end.last.ok_or(match &end.written[..] {
            b"." => VfsError::EINVAL,
            b".." => VfsError::ENOTEMPTY,
            _ => VfsError::EBUSY,
        })?;
        let id = self.lookup(end.dir, &name)?.ok_or(VfsError::ENOENT)?;
        if !self.names(id).ok_or(VfsError::ENOTDIR)?.is_empty() {
            return Err(VfsError::ENOTEMPTY);
        }
        self.names_mut(end.dir).remove(&name);
        if let Node::Dir { dead, .. } = &mut self.nodes[id] {
            *dead = true;
        }
        Ok(())
    }

    fn is_above(&self, a: Id, mut d: Id) -> bool {
        while d != a {
            if self.parent(d) == d {
                return false;
            }
            d = self.parent(d);
        }
        true
    }

    fn rename(&mut self, old: &[u8], new: &[u8], noreplace: bool) -> Result<(), VfsError> {
        let (old, new) = (self.last(old)?, self.last(new)?);
        let from = old.last.ok_or(VfsError::EBUSY)?;
        let to = new.last.ok_or(if noreplace {
            VfsError::EEXIST
        } else {
            VfsError::EBUSY
        })?;
        let source = self.lookup(old.dir, &from)?.ok_or(VfsError::ENOENT)?;
        let target = self.lookup(new.dir, &to)?;
        if noreplace && target.is_some() {
            return Err(VfsError::EEXIST);
        }
        if !self.is_dir(source) && (old.slash || new.slash) {
            return Err(VfsError::ENOTDIR);
        }
        if self.is_dir(source) && self.is_above(source, new.dir) {
            return Err(VfsError::EINVAL);
        }
        if let Some(target) = target {
            if self.is_dir(target) && self.is_above(target, old.dir) {
                return Err(VfsError::ENOTEMPTY);
            }
            if target == source {
                return Ok(());
            }
            match (self.is_dir(source), self.names(target)) {
                (true, None) => return Err(VfsError::ENOTDIR),
                (false, Some(_)) => return Err(VfsError::EISDIR),
                (true, Some(names)) if !names.is_empty() => return Err(VfsError::ENOTEMPTY),
                _ => {}
            }
        }
        if matches!(self.nodes[new.dir], Node::Dir { dead: true, .. }) {
            return Err(VfsError::ENOENT);
        }
        match target.map(|t| &mut self.nodes[t]) {
            Some(Node::Dir { dead, .. }) => *dead = true,
            Some(Node::File { nlink }) => *nlink -= 1,
            _ => {}
        }
        self.names_mut(old.dir).remove(&from);
        self.names_mut(new.dir).insert(to, source);
        if let Node::Dir { parent, .. } = &mut self.nodes[source] {
            *parent = new.dir;
        }
        Ok(())
    }

    /// Type and number of links, as stat shows them.
    fn stat(&self, path: &[u8], follow: bool) -> Result<(u32, u32), VfsError> {
        let id = self.resolve(path, follow)?;
        Ok(match &self.nodes[id] {
            Node::Dir { dead: true, .. } => (S_IFDIR, 0),
            Node::Dir { names, .. } => (
                S_IFDIR,
                2 + names.values().filter(|&&id| self.is_dir(id)).count() as u32,
            ),
            Node::File { nlink } => (S_IFREG, *nlink),
            Node::Link(_) => {
                let named = |id: &&Id| **id == self.resolve(path, false).unwrap();
                let all = self.nodes.iter().filter_map(|n| match n {
                    Node::Dir {
                        names, dead: false, ..
                    } => Some(names.values().filter(named).count()),
                    _ => None,
                });
                (S_IFLNK, all.sum::<usize>() as u32)
            }
        })
    }

    fn getcwd(&self) -> Result<Vec<u8>, VfsError> {
        let mut path = Vec::new();
        let mut at = self.cwd;
        if matches!(self.nodes[at], Node::Dir { dead: true, .. }) {
            return Err(VfsError::ENOENT);
        }
        while at != ROOT {
            let up = self.parent(at);
            let name = self
                .names(up)
                .unwrap()
                .iter()
                .find(|(_, id)| **id == at)
                .unwrap()
                .0;
            path = [b"/", &name[..], &path[..]].concat();
            at = up;
        }
        Ok(if path.is_empty() { b"/".to_vec() } else { path })
    }
}

#[derive(Debug, Clone)]
enum Op {
    Mkdir(Vec<u8>),
    Create(Vec<u8>, bool),
    Symlink(Vec<u8>, Vec<u8>),
    Link(Vec<u8>, Vec<u8>),
    Unlink(Vec<u8>),
    Rmdir(Vec<u8>),
    Rename(Vec<u8>, Vec<u8>, bool),
    Chdir(Vec<u8>),
    Stat(Vec<u8>, bool),
    List(Vec<u8>),
}

fn component() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        20 => prop::sample::select(std::vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]),
        2 => Just(b"a name longer than a dentry keeps inline: 0123456789".to_vec()),
        3 => Just(b"..".to_vec()),
        2 => Just(b".".to_vec()),
        1 => Just(Vec::new()),
        1 => Just(std::vec![b'x'; 255]),
        1 => Just(std::vec![b'x'; 256]),
    ]
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    (
        any::<bool>(),
        prop::collection::vec(component(), 1..4),
        0..8u8,
    )
        .prop_map(|(abs, parts, slash)| {
            let mut path = if abs { b"/".to_vec() } else { Vec::new() };
            path.extend(parts.join(&b'/'));
            if slash == 0 {
                path.push(b'/');
            }
            path
        })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => path().prop_map(Op::Mkdir),
        3 => (path(), any::<bool>()).prop_map(|(p, e)| Op::Create(p, e)),
        2 => (path(), path()).prop_map(|(t, p)| Op::Symlink(t, p)),
        2 => (path(), path()).prop_map(|(t, p)| Op::Link(t, p)),
        2 => path().prop_map(Op::Unlink),
        2 => path().prop_map(Op::Rmdir),
        4 => (path(), path(), any::<bool>()).prop_map(|(a, b, n)| Op::Rename(a, b, n)),
        1 => path().prop_map(Op::Chdir),
        2 => (path(), any::<bool>()).prop_map(|(p, f)| Op::Stat(p, f)),
        1 => path().prop_map(Op::List),
    ]
}

fn run(m: &Machine, model: &mut Model, op: &Op) -> Result<(), TestCaseError> {
    let at = m.at();
    match op {
        Op::Mkdir(p) => prop_assert_eq!(mkdir(at, p, 0o755), model.mkdir(p)),
        Op::Create(p, excl) => {
            let excl_flag = if *excl {
                OpenFlags::EXCL
            } else {
                OpenFlags::empty()
            };
            let got = open(at, p, OpenFlags::CREAT | excl_flag, 0o644).map(drop);
            prop_assert_eq!(got, model.create(p, *excl));
        }
        Op::Symlink(t, p) => prop_assert_eq!(symlink(t, at, p), model.symlink(t, p)),
        Op::Link(a, b) => prop_assert_eq!(link(at, a, false, at, b), model.link(a, b)),
        Op::Unlink(p) => prop_assert_eq!(unlink(at, p), model.unlink(p)),
        Op::Rmdir(p) => prop_assert_eq!(rmdir(at, p), model.rmdir(p)),
        Op::Rename(a, b, n) => {
            let flags = if *n {
                RenameFlags::NOREPLACE
            } else {
                RenameFlags::empty()
            };
            prop_assert_eq!(rename(at, a, at, b, flags), model.rename(a, b, *n));
        }
        Op::Chdir(p) => {
            let want = model
                .resolve(p, true)
                .and_then(|id| match model.is_dir(id) {
                    true => Ok(id),
                    false => Err(VfsError::ENOTDIR),
                });
            prop_assert_eq!(chdir(at, p), want.map(drop));
            model.cwd = want.unwrap_or(model.cwd);
        }
        Op::Stat(p, follow) => {
            let got = stat(at, p, *follow).map(|s| (s.mode & S_IFMT, s.nlink));
            prop_assert_eq!(got, model.stat(p, *follow));
        }
        Op::List(p) => list_both(m, model, p)?,
    }
    let mut buf = [0; 4096];
    prop_assert_eq!(getcwd(&m.fs, &mut buf).map(<[u8]>::to_vec), model.getcwd());
    Ok(())
}

fn list_both(m: &Machine, model: &Model, path: &[u8]) -> Result<(), TestCaseError> {
    let Ok(id) = model.resolve(path, true) else {
        return Ok(());
    };
    let (Some(names), Ok(file)) = (model.names(id), m.open(path, OpenFlags::DIRECTORY)) else {
        return Ok(());
    };
    let mut buf = [0; 512];
    if matches!(model.nodes[id], Node::Dir { dead: true, .. }) {
        prop_assert_eq!(file.getdents64(&mut &mut buf[..]), Err(VfsError::ENOENT));
        return Ok(());
    }
    let mut got: Vec<_> = list(&file, 280).into_iter().map(|d| d.name).collect();
    prop_assert_eq!(&got[..2], &[b".".to_vec(), b"..".to_vec()][..]);
    got.drain(..2);
    got.sort();
    prop_assert_eq!(got, names.keys().cloned().collect::<Vec<_>>());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn the_tree_is_what_the_model_says(ops in prop::collection::vec(op(), 1..60)) {
        let m = Machine::new();
        let mut model = Model::new();
        for op in &ops {
            run(&m, &mut model, op)?;
            check_tree(&m.root());
        }
    }
}
