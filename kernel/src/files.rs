//! The first files: the initramfs unpacked into a ram file system, /dev, and the console behind it.

use crate::arch::clock;
use crate::{console, sched, start};
use ksync::{Mutex, lock_class};
use slab::KArc;
use vfs::{At, ConsoleOps, Files, FsStruct, Hooks, OpenFlags, PollMask, VfsError};

/// How often a read of the console looks for input, in nanoseconds.
const INPUT_POLL_NS: u64 = 10_000_000;
const LINE_MAX: usize = 256;
const CTRL_D: u8 = 4;
const BACKSPACE: u8 = 8;
const DELETE: u8 = 127;

/// The serial console as a terminal in line mode.
struct SerialConsole {
    line: Mutex<Line>,
}

/// Input that was typed and not yet read.
struct Line {
    bytes: [u8; LINE_MAX],
    len: usize,
    /// How much of it is complete, newline included.
    ready: usize,
    end_of_file: bool,
}

static CONSOLE: SerialConsole = SerialConsole {
    line: Mutex::new(
        Line {
            bytes: [0; LINE_MAX],
            len: 0,
            ready: 0,
            end_of_file: false,
        },
        lock_class!("console_line"),
    ),
};

impl Line {
    /// Takes what was typed, echoing it.
    fn fill(&mut self) {
        while self.ready == 0 && !self.end_of_file {
            let Some(byte) = console::read_byte() else {
                return;
            };
            match byte {
                b'\r' | b'\n' => {
                    console::write_bytes(b"\n");
                    self.bytes[self.len] = b'\n';
                    self.len += 1;
                    self.ready = self.len;
                }
                CTRL_D => {
                    self.ready = self.len;
                    self.end_of_file = self.len == 0;
                }
                BACKSPACE | DELETE if self.len > 0 => {
                    self.len -= 1;
                    console::write_bytes(b"\x08 \x08");
                }
                BACKSPACE | DELETE => {}
                _ if self.len < LINE_MAX - 1 => {
                    self.bytes[self.len] = byte;
                    self.len += 1;
                    console::write_bytes(&[byte]);
                }
                _ => {}
            }
        }
    }
}

impl ConsoleOps for SerialConsole {
    fn write(&self, bytes: &[u8]) -> Result<(), VfsError> {
        console::write_bytes(bytes);
        Ok(())
    }

    fn read(&self, buf: &mut [u8], nonblock: bool) -> Result<usize, VfsError> {
        loop {
            let mut line = self.line.lock();
            line.fill();
            if line.end_of_file {
                line.end_of_file = false;
                return Ok(0);
            }
            if line.ready > 0 {
                let n = buf.len().min(line.ready);
                buf[..n].copy_from_slice(&line.bytes[..n]);
                let len = line.len;
                line.bytes.copy_within(n..len, 0);
                line.len -= n;
                line.ready -= n;
                return Ok(n);
            }
            drop(line);
            if nonblock {
                return Err(VfsError::EAGAIN);
            }
            if ksync::arch::signal_pending() {
                return Err(VfsError::ERESTARTSYS);
            }
            sched::park_until(Some(clock::now_ns() + INPUT_POLL_NS));
        }
    }

    fn poll(&self) -> PollMask {
        let mut line = self.line.lock();
        line.fill();
        if line.ready > 0 || line.end_of_file {
            PollMask::IN | PollMask::OUT
        } else {
            PollMask::OUT
        }
    }
}

static HOOKS: Hooks = Hooks {
    unmap_mapping: |space, first, last, even_cow| {
        mm::unmap_mapping_range(space, first, last, even_cow)
    },
    reclaim: mm::reclaim_for_retry,
    console: &CONSOLE,
    fill_random: crate::random::fill,
};

/// Unpacks the initramfs and gives the running thread root, working directory and the console as 0, 1 and 2.
pub fn init() {
    vfs::hooks::install(&HOOKS);
    let root = vfs::new_ramfs(true).expect("memory for the root directory");
    if let Err(e) = vfs::unpack_initramfs(&root, start::initramfs()) {
        println!("initramfs: {e}");
        crate::power::off(1);
    }
    vfs::populate_dev(&root).expect("memory for /dev");
    let fs = FsStruct::new(&root).expect("memory for the first process");
    let files = Files::new().expect("memory for the first process");
    let open = || vfs::open(At::cwd(&fs), b"/dev/console", OpenFlags::RDWR, 0);
    for _ in 0..3 {
        let console = open().expect("/dev/console was just made");
        files
            .install(console, false)
            .expect("memory for the first descriptors");
    }
    match vfs::mkdir(At::cwd(&fs), b"/proc", 0o555) {
        Ok(()) | Err(VfsError::EEXIST) => {}
        Err(e) => panic!("/proc: {e}"),
    }
    crate::procfs::mount(&fs, b"/proc").expect("memory for /proc");
    let task = sched::current_ref();
    *task.fs.lock() = Some(KArc::clone(&fs));
    *task.files.lock() = Some(files);
}
