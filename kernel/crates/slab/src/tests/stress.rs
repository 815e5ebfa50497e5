//! Threads that allocate, pass on, free each other's objects, while others shrink.

use super::*;
use std::sync::mpsc::{Receiver, Sender, channel};

const ROUNDS: usize = 4000;

fn stamp(object: NonNull<u8>, size: usize, value: u8) {
    // SAFETY: a live object of that size, this thread's.
    unsafe { object.as_ptr().add(8).write_bytes(value, size - 8) };
}

fn check(object: NonNull<u8>, size: usize, value: u8) {
    // SAFETY: as above.
    let bytes = unsafe { std::slice::from_raw_parts(object.as_ptr().add(8), size - 8) };
    assert!(
        bytes.iter().all(|&b| b == value),
        "somebody else wrote into our object"
    );
}

struct Parcel(NonNull<u8>, u8);
// SAFETY: the object is owned by whoever has the parcel.
unsafe impl Send for Parcel {}

fn worker(t: usize, cache: &'static KmemCache, to: Sender<Parcel>, from: Receiver<Parcel>) {
    // Two threads per CPU take turns on its sheaves.
    arch::host::set_cpu(t % NR_CPUS);
    let size = cache.object_size();
    let mut held = Vec::new();
    let mut x = t as u64 + 1;
    for round in 0..ROUNDS {
        x = x
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let value = (x >> 56) as u8;
        match x >> 33 & 3 {
            0 | 1 if held.len() < 100 => {
                if let Ok(object) = take(cache) {
                    stamp(object, size, value);
                    held.push(Parcel(object, value));
                }
            }
            2 if !held.is_empty() => {
                let parcel = held.swap_remove((x >> 40) as usize % held.len());
                to.send(parcel).unwrap();
            }
            _ => {
                for Parcel(object, value) in from.try_iter().chain(held.pop()) {
                    check(object, size, value);
                    give_back(cache, object);
                }
            }
        }
        if round % 1500 == 1499 && t == 0 {
            cache.shrink();
        }
    }
    drop(to);
    for Parcel(object, value) in held.into_iter().chain(from.iter()) {
        check(object, size, value);
        give_back(cache, object);
    }
}

fn run(cache: &'static KmemCache) {
    let nr_threads = 2 * NR_CPUS;
    let (mut tx, mut rx): (Vec<_>, Vec<_>) = (0..nr_threads).map(|_| channel()).unzip();
    std::thread::scope(|s| {
        // Each sends to the next: objects are freed on another CPU, often another node.
        let first = tx.remove(0);
        tx.push(first);
        for t in (0..nr_threads).rev() {
            let (to, from) = (tx.pop().unwrap(), rx.pop().unwrap());
            s.spawn(move || worker(t, cache, to, from));
        }
    });
}

#[test]
fn threads_free_each_others_objects() {
    let _machine = machine();
    let before = free_pages();
    for (size, flags) in [
        (4096, CacheFlags::empty()),
        (1024, CacheFlags::TYPESAFE_BY_RCU),
        (64, CacheFlags::empty()),
        (64, CacheFlags::NO_SHEAVES),
    ] {
        let cache = test_cache("stress", size, 8, flags);
        run(cache);
        assert_eq!(cache.active(), 0);
        destroy(cache).unwrap();
    }
    assert_eq!(free_pages(), before);
}

#[test]
fn constructed_objects_stay_constructed() {
    let _machine = machine();
    let before = free_pages();
    let flags = CacheFlags::empty();
    let cache = KmemCache::create("ctor", 1000, 8, Some(ctor), Some(dtor), flags).unwrap();
    run(cache);
    cache.shrink();
    assert_eq!((cache.active(), nr_built()), (0, 0));
    destroy(cache).unwrap();
    assert_eq!(free_pages(), before);
}
