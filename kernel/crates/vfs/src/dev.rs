//! The devices: memory's (null, zero, full, random) and the console.

use crate::VfsError;
use crate::dentry::Dentry;
use crate::flags::{DevId, OpenFlags, S_IFCHR};
use crate::fs_struct::FsStruct;
use crate::hooks::{ConsoleName, hooks};
use crate::namei::At;
use crate::ops;
use crate::poll::PollMask;
use crate::uio::{BufIn, BufOut};
use ksync::WaitQueue;
use slab::KArc;

/// A device that can be opened.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Dev {
    Null,
    Zero,
    Full,
    Urandom,
    Console,
}

/// Name, device number, permissions: what boot makes in /dev.
const NODES: &[(&[u8], DevId, u32)] = &[
    (b"/dev/null", DevId::new(1, 3), 0o666),
    (b"/dev/zero", DevId::new(1, 5), 0o666),
    (b"/dev/full", DevId::new(1, 7), 0o666),
    (b"/dev/random", DevId::new(1, 8), 0o666),
    (b"/dev/urandom", DevId::new(1, 9), 0o666),
    (b"/dev/tty", DevId::new(5, 0), 0o666),
    (b"/dev/console", DevId::new(5, 1), 0o600),
    (b"/dev/ttyS0", DevId::new(4, 64), 0o600),
];

/// Links in /dev to what /proc shows of the process that looks.
const LINKS: &[(&[u8], &[u8])] = &[
    (b"/dev/fd", b"/proc/self/fd"),
    (b"/dev/stdin", b"/proc/self/fd/0"),
    (b"/dev/stdout", b"/proc/self/fd/1"),
    (b"/dev/stderr", b"/proc/self/fd/2"),
];

/// Bytes that pass through the stack at once, on the way to and from the console.
const CHUNK: usize = 256;

impl Dev {
    /// The device with this number. ENXIO.
    pub fn from_id(id: DevId) -> Result<Self, VfsError> {
        Ok(match (id.major, id.minor) {
            (1, 3) => Dev::Null,
            (1, 5) => Dev::Zero,
            (1, 7) => Dev::Full,
            (1, 8 | 9) => Dev::Urandom,
            (5, 0 | 1) | (4, 64) => Dev::Console,
            _ => return Err(VfsError::ENXIO),
        })
    }

    /// The device with this number is opened.
    pub fn open(id: DevId, flags: OpenFlags) -> Result<Self, VfsError> {
        let dev = Dev::from_id(id)?;
        if dev == Dev::Console {
            hooks().console.open(match (id.major, id.minor) {
                (5, 0) => ConsoleName::Own,
                (4, _) if !flags.contains(OpenFlags::NOCTTY) => ConsoleName::Serial,
                _ => ConsoleName::Plain,
            })?;
        }
        Ok(dev)
    }

    /// Whether pread and pwrite make sense.
    pub fn seekable(self) -> bool {
        self != Dev::Console
    }
}

/// Makes /dev, its nodes and links, and /dev/shm, where they are missing. Boot.
pub fn populate(root: &KArc<Dentry>) -> Result<(), VfsError> {
    let fs = FsStruct::new(root)?;
    fs.set_umask(0);
    let exists_is_fine = |r| match r {
        Err(VfsError::EEXIST) => Ok(()),
        r => r,
    };
    exists_is_fine(ops::mkdir(At::cwd(&fs), b"/dev", 0o755))?;
    for &(path, dev, perm) in NODES {
        exists_is_fine(ops::mknod(At::cwd(&fs), path, S_IFCHR | perm, dev))?;
    }
    for &(path, target) in LINKS {
        exists_is_fine(ops::symlink(target, At::cwd(&fs), path))?;
    }
    exists_is_fine(ops::mkdir(At::cwd(&fs), b"/dev/shm", 0o1777))?;
    Ok(())
}

pub(crate) fn read(dev: Dev, buf: &mut impl BufOut, nonblock: bool) -> Result<usize, VfsError> {
    let wanted = buf.remaining();
    match dev {
        Dev::Null => Ok(0),
        Dev::Zero | Dev::Full => {
            let result = buf.put_zeroes(wanted);
            transferred(wanted - buf.remaining(), result.map_err(VfsError::from))
        }
        Dev::Urandom => {
            let mut chunk = [0; CHUNK];
            while buf.remaining() > 0 {
                let n = buf.remaining().min(CHUNK);
                (hooks().fill_random)(&mut chunk[..n]);
                if let Err(e) = buf.put(&chunk[..n]) {
                    return transferred(wanted - buf.remaining(), Err(e.into()));
                }
            }
            Ok(wanted)
        }
        Dev::Console => {
            if wanted == 0 {
                return Ok(0);
            }
            let mut chunk = [0; CHUNK];
            let n = hooks()
                .console
                .read(&mut chunk[..wanted.min(CHUNK)], nonblock)?;
            let result = buf.put(&chunk[..n]);
            transferred(wanted - buf.remaining(), result.map_err(VfsError::from))
        }
    }
}

pub(crate) fn write(dev: Dev, buf: &mut impl BufIn) -> Result<usize, VfsError> {
    let total = buf.remaining();
    match dev {
        Dev::Null | Dev::Zero => Ok(total),
        Dev::Full => Err(VfsError::ENOSPC),
        Dev::Urandom | Dev::Console => {
            let mut chunk = [0; CHUNK];
            let mut done = 0;
            while done < total {
                let n = match buf.get(&mut chunk[..CHUNK.min(total - done)]) {
                    Ok(n) => n,
                    Err(e) => return transferred(done, Err(e.into())),
                };
                // What is written to urandom is taken, and changes nothing.
                if dev == Dev::Console
                    && let Err(e) = hooks().console.write(&chunk[..n])
                {
                    return transferred(done, Err(e));
                }
                done += n;
            }
            Ok(done)
        }
    }
}

/// A transfer's answer: the count if there is one, else the error, else 0.
fn transferred(done: usize, result: Result<(), VfsError>) -> Result<usize, VfsError> {
    if done > 0 {
        Ok(done)
    } else {
        result.map(|()| 0)
    }
}

/// Memory devices stay at position 0; a terminal has none.
pub(crate) fn lseek(dev: Dev) -> Result<u64, VfsError> {
    if dev == Dev::Console {
        Err(VfsError::ESPIPE)
    } else {
        Ok(0)
    }
}

pub(crate) fn poll(dev: Dev) -> PollMask {
    if dev == Dev::Console {
        hooks().console.poll()
    } else {
        PollMask::ALWAYS
    }
}

pub(crate) fn wait_queue(dev: Dev) -> Option<&'static WaitQueue> {
    if dev == Dev::Console {
        hooks().console.wait_queue()
    } else {
        None
    }
}
