//! Tests: the structures against a naive model ([`mappings`]) and in explored orders ([`explored`]); the page cache
//! ([`cache`]).

mod cache;
mod explored;
mod mappings;

use crate::{IMmapKind, MapNode, NodePtr};
use std::boxed::Box;
use std::sync::Mutex;

/// Tests that count free pages, or depend on what else runs, run alone.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    // Eight CPUs on three nodes.
    page_alloc::host::init(&[8192, 2048, 2048]);
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

/// Called between making a page and adding it.
pub(crate) fn lose_the_race_often() {
    std::thread::yield_now();
}

fn new_node(first: u64, last: u64) -> NodePtr {
    NodePtr::from(Box::leak(Box::new(MapNode::new(first, last))))
}

fn free_node(n: NodePtr) {
    // SAFETY: made by `new_node`; the tests free each node once, when it is unlinked.
    drop(unsafe { Box::from_raw(n.as_ptr()) });
}

fn kinds() -> impl Iterator<Item = IMmapKind> {
    IMmapKind::ALL.iter().map(|&(_, kind)| kind)
}
