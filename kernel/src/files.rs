//! The first files: the initramfs unpacked into a ram file system, /dev, and the terminal behind /dev/console.

use crate::{sched, start, tty};
use slab::KArc;
use vfs::{At, Files, FsStruct, Hooks, OpenFlags, VfsError};

static HOOKS: Hooks = Hooks {
    unmap_mapping: |space, first, last, even_cow| {
        mm::unmap_mapping_range(space, first, last, even_cow)
    },
    reclaim: mm::reclaim_for_retry,
    console: &tty::Console,
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
