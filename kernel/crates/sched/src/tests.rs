//! Run queues and the park protocol against naive models.
use super::*;
use slab::KArc;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::vec::Vec;

struct Thread {
    entity: Entity,
    id: usize,
}
slab::object!(Thread, "test_thread", links = 3);
impl Schedulable for Thread {
    fn entity(&self) -> &Entity {
        &self.entity
    }
}

fn thread(id: usize) -> KArc<Thread> {
    ksync::arch::host::init_arena(64 << 20);
    KArc::new(Thread {
        entity: Entity::new(0),
        id,
    })
    .unwrap()
}

#[test]
fn rotate_is_fifo() {
    let queue = RunQueue::new();
    let mut model: VecDeque<usize> = VecDeque::new();
    for id in 1..5 {
        queue.enqueue(thread(id));
        model.push_back(id);
    }
    let mut running = thread(0);
    let mut running_id = 0;
    for _ in 0..17 {
        running = queue.rotate(Some(running)).unwrap();
        model.push_back(running_id);
        running_id = model.pop_front().unwrap();
        assert_eq!(running.id, running_id);
    }
    assert_eq!(queue.nr_waiting(), 4);
}

#[test]
fn an_empty_queue_keeps_prev() {
    let queue = RunQueue::<Thread>::new();
    assert_eq!(queue.rotate(Some(thread(7))).unwrap().id, 7);
    assert!(queue.rotate(None).is_none());
}

#[test]
fn steal_respects_affinity_and_saving() {
    let queue = RunQueue::new();
    let (pinned, saving, free) = (thread(1), thread(2), thread(3));
    pinned.entity.restricted.store(true, Ordering::Relaxed);
    pinned.entity.allowed.set(0);
    saving.entity.set_on_cpu(true);
    for t in [&pinned, &saving, &free] {
        queue.enqueue(t.clone());
    }
    assert_eq!(queue.steal(5).unwrap().id, 3);
    assert!(queue.steal(5).is_none());
    assert_eq!(queue.steal(0).unwrap().id, 1);
    saving.entity.set_on_cpu(false);
    assert_eq!(queue.steal(5).unwrap().id, 2);
}

#[test]
fn a_token_is_never_lost_and_wakes_once() {
    // One sleeper, two wakers: every park is ended by exactly one Enqueue or a token.
    for _ in 0..200 {
        let t = thread(0);
        let enqueues = AtomicUsize::new(0);
        let parked = std::thread::scope(|s| {
            let sleeper = s.spawn(|| t.entity.try_park());
            for _ in 0..2 {
                s.spawn(|| {
                    if t.entity.wake() == Wake::Enqueue {
                        enqueues.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            sleeper.join().unwrap()
        });
        let enqueues = enqueues.load(Ordering::Relaxed);
        if parked {
            assert_eq!(enqueues, 1);
            t.entity.spend_token();
        } else {
            assert_eq!(enqueues, 0);
        }
    }
}

#[test]
fn idle_cpus_are_claimed_once_and_near_first() {
    let idle = IdleMask::new();
    for cpu in [1, 3, 6] {
        idle.set(cpu);
    }
    assert_eq!(idle.claim_near(3, |_| true), Some(3));
    assert_eq!(idle.claim_near(3, |cpu| cpu != 1), Some(6));
    assert_eq!(idle.claim_near(3, |_| true), Some(1));
    assert_eq!(idle.claim_near(3, |_| true), None);
    assert!(!idle.claim(1));
}

#[test]
fn neighbours_start_after_the_asker() {
    let order: Vec<usize> = neighbours(2, &[0, 1, 2, 3]).collect();
    assert_eq!(order, [3, 0, 1]);
}
