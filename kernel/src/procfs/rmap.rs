//! /proc/PID/rmap: for each file that the process maps, everybody who maps it.
//!
//! Problem. The set of a file's mappings is what truncation, migration and reclaim walk, and nothing shows it. Mechanism:
//! the same walk. An area knows its address space, not whose it is, so the processes are listed first, by address space.
//!
//! ```text
//!   /lib/x86_64-linux-gnu/libc.so.6 497 pages cached, i_mmap=best, 10 mappings
//!        12 7f2a40000000-7f2a40028000 0
//!        12 7f2a40028000-7f2a40191000 40
//! ```
//!
//! A line: the process's number (`-`: none in this namespace, or it has just ended), the area, the file's page where it
//! begins. The order is the walk's.
//!
//! Lock order: pids and processes one at a time; then, for one file after the other, `i_mmap`, under which text is put
//! into memory that is there, and nothing else happens. `mmap_lock` of the process that is asked about, for moments.

use super::{ProcNode, process_of, task_of, visible};
use alloc::vec::Vec;
use mm::{Mapping, MmUser};
use pid::find_ge_pid;
use rmap::{AddressSpace, FileRmap};
use slab::KArc;
use task::{PidNamespace, Task};
use vfs::{Text, VfsError};

/// Address spaces and their processes' numbers, by address space.
struct Owners(Vec<(u64, u32)>);

impl Owners {
    /// Of all processes in `ns`. ENOMEM.
    fn find(ns: &PidNamespace) -> Result<Owners, VfsError> {
        let mut owners = Vec::new();
        let mut next = 1;
        while let Some((_, pid)) = find_ge_pid(next, ns) {
            let Some(nr) = visible(&pid, ns) else { break };
            next = nr + 1;
            let Some(process) = process_of(&pid) else {
                continue;
            };
            let is_first = visible(&process.pid, ns) == Some(nr);
            if let Some(mm) = task_of(&pid).ok().and_then(|task| task.mm_user())
                && is_first
            {
                owners.try_reserve(1).map_err(|_| VfsError::ENOMEM)?;
                owners.push((mm.id().0, nr));
            }
        }
        owners.sort_unstable();
        Ok(Owners(owners))
    }

    fn of(&self, mapping: &Mapping) -> Option<u32> {
        let from = self.0.partition_point(|o| o.0 < mapping.mm.0);
        let (mm, nr) = self.0.get(from)?;
        (*mm == mapping.mm.0).then_some(*nr)
    }
}

/// The files that `mm` maps, each once. ENOMEM.
fn files_of(mm: &MmUser) -> Result<Vec<KArc<AddressSpace>>, VfsError> {
    let mut files: Vec<KArc<AddressSpace>> = Vec::new();
    let mut failed = false;
    mm.for_each_vma(|vma| {
        if let Some((file, _)) = &vma.file
            && !files.iter().any(|f| KArc::ptr_eq(f, file))
        {
            failed |= files.try_reserve(1).is_err();
            if !failed {
                files.push(file.clone());
            }
        }
    });
    if failed {
        return Err(VfsError::ENOMEM);
    }
    Ok(files)
}

/// Makes the text. ENOMEM.
pub fn rmap(node: &ProcNode, task: &Task, text: &mut Text<'_>) -> Result<(), VfsError> {
    let Some(mm) = task.mm_user() else {
        return Ok(());
    };
    let owners = Owners::find(&node.ns)?;
    for file in files_of(&mm)? {
        let mut nr = 0;
        file.i_mmap().for_each_overlap(0, u64::MAX, |_| nr += 1);
        text.put(file.name())
            .str(" ")
            .dec(file.nr_pages() as u64)
            .str(" pages cached, i_mmap=")
            .str(file.i_mmap().name())
            .str(", ")
            .dec(nr)
            .str(" mappings\n");
        mm::for_each_mapping_of(&file, |mapping| {
            match owners.of(&mapping) {
                Some(nr) => text.dec_wide(u64::from(nr), 8),
                None => text.str("       -"),
            };
            text.str(" ")
                .hex(mapping.start as u64, 8)
                .str("-")
                .hex(mapping.end as u64, 8)
                .str(" ")
                .dec(mapping.pgoff)
                .str("\n");
        });
    }
    Ok(())
}
