//! Pipes: the rules alone, against a queue, and between threads.

use super::*;
use crate::pipe::{PIPE_BUF, PIPE_CAPACITY};
use OpenFlags as O;
use VfsError::*;
use ksync::arch;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use std::vec;

fn put(file: &File, bytes: &[u8]) -> Result<usize, VfsError> {
    file.write(&mut &*bytes)
}

fn take(file: &File, n: usize) -> Result<Vec<u8>, VfsError> {
    let mut buf = vec![0; n];
    let got = file.read(&mut &mut buf[..])?;
    buf.truncate(got);
    Ok(buf)
}

#[test]
fn ends_and_errors() {
    let _m = Machine::new();
    assert_eq!(pipe(O::APPEND).err(), Some(EINVAL));
    let (r, w) = pipe(O::NONBLOCK | O::CLOEXEC).unwrap();
    assert_eq!(take(&w, 1), Err(EBADF));
    assert_eq!(put(&r, b"x"), Err(EBADF));
    assert_eq!(r.lseek(0, Whence::Set), Err(ESPIPE));
    assert_eq!(r.pread(&mut &mut [0; 1][..], 0), Err(ESPIPE));
    assert_eq!(w.pwrite(&mut &[0u8; 1][..], 0), Err(ESPIPE));
    assert_eq!(take(&r, 1), Err(EAGAIN));
    assert_eq!(take(&r, 0), Ok(vec![]));
    assert_eq!(put(&w, b""), Ok(0));
    assert_eq!(r.stat().mode, S_IFIFO | 0o600);
    assert_eq!(r.stat().ino, w.stat().ino);
    assert_eq!(w.poll(), PollMask::OUT | PollMask::WRNORM);
    assert_eq!(r.poll(), PollMask::empty());
    assert_eq!(put(&w, b"abc"), Ok(3));
    assert_eq!(r.poll(), PollMask::IN | PollMask::RDNORM);
    assert_eq!(take(&r, 2), Ok(b"ab".to_vec()));
    // What is in it outlives the writer; then comes the end.
    drop(w);
    assert!(r.poll().contains(PollMask::IN | PollMask::HUP));
    assert_eq!(take(&r, 9), Ok(b"c".to_vec()));
    assert_eq!(take(&r, 9), Ok(vec![]));
    let (r, w) = pipe(O::empty()).unwrap();
    drop(r);
    assert!(w.poll().contains(PollMask::ERR));
    assert_eq!(put(&w, b"x"), Err(EPIPE));
    assert_eq!(put(&w, b""), Ok(0));
}

#[test]
fn faults_move_nothing_by_halves() {
    let _m = Machine::new();
    let (r, w) = pipe(O::NONBLOCK).unwrap();
    let mut bytes = vec![5; PIPE_BUF];
    let half = PIPE_BUF / 2;
    let mut faulty = Faulty {
        bytes: &mut bytes,
        at: 0,
        good: half,
    };
    assert_eq!(w.write(&mut faulty), Err(EFAULT));
    assert_eq!(take(&r, 1), Err(EAGAIN));
    // Above PIPE_BUF what was copied stands.
    let mut bytes = vec![6; PIPE_BUF + 1];
    let mut faulty = Faulty {
        bytes: &mut bytes,
        at: 0,
        good: half,
    };
    assert_eq!(w.write(&mut faulty), Ok(half));
    let mut room = vec![0; half];
    let mut faulty = Faulty {
        bytes: &mut room,
        at: 0,
        good: 3,
    };
    assert_eq!(r.read(&mut faulty), Ok(3));
    assert_eq!(r.read(&mut faulty), Err(EFAULT));
    assert_eq!(take(&r, PIPE_CAPACITY), Ok(vec![6; half - 3]));
}

#[derive(Debug, Clone)]
enum Op {
    Write(usize),
    Read(usize),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn a_pipe_is_a_queue(ops in prop::collection::vec(prop_oneof![
        prop_oneof![0usize..30, 0usize..PIPE_CAPACITY + 100, Just(PIPE_BUF), Just(4096)].prop_map(Op::Write),
        prop_oneof![0usize..30, 0usize..PIPE_CAPACITY + 100, Just(4096)].prop_map(Op::Read),
    ], 1..60)) {
        let _m = Machine::new();
        let (r, w) = pipe(O::NONBLOCK).unwrap();
        let mut queue: VecDeque<u8> = VecDeque::new();
        let mut next = 0u8;
        for op in ops {
            match op {
                Op::Write(n) => {
                    let data: Vec<u8> = (0..n).map(|i| next.wrapping_add(i as u8)).collect();
                    let free = PIPE_CAPACITY - queue.len();
                    let want = match n {
                        0 => Ok(0),
                        n if n <= free => Ok(n),
                        n if n <= PIPE_BUF || free == 0 => Err(EAGAIN),
                        _ => Ok(free),
                    };
                    prop_assert_eq!(put(&w, &data), want);
                    let n = want.unwrap_or(0);
                    queue.extend(&data[..n]);
                    next = next.wrapping_add(n as u8);
                }
                Op::Read(n) => {
                    let want: Vec<u8> = queue.drain(..n.min(queue.len())).collect();
                    let blocks = n > 0 && want.is_empty();
                    prop_assert_eq!(take(&r, n), if blocks { Err(EAGAIN) } else { Ok(want) });
                }
            }
            prop_assert_eq!(r.pipe().unwrap().len(), queue.len());
            prop_assert_eq!(r.poll().contains(PollMask::IN), !queue.is_empty());
            prop_assert_eq!(w.poll().contains(PollMask::OUT), PIPE_CAPACITY - queue.len() >= PIPE_BUF);
        }
    }
}

/// Waits until `f` holds; the threads that the tests start settle in microseconds.
fn eventually(f: impl Fn() -> bool) {
    for _ in 0..5000 {
        if f() {
            return;
        }
        thread::sleep(Duration::from_micros(200));
    }
    panic!("it never happened");
}

/// Starts a thread and returns once it is (as good as surely) blocked.
fn blocked<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    let started = std::sync::Arc::new(AtomicBool::new(false));
    let flag = started.clone();
    let handle = thread::spawn(move || {
        flag.store(true, Ordering::Release);
        f()
    });
    eventually(|| started.load(Ordering::Acquire));
    thread::sleep(Duration::from_millis(5));
    assert!(!handle.is_finished());
    handle
}

#[test]
fn readers_wait_for_bytes_or_the_end() {
    let _m = Machine::new();
    let (r, w) = pipe(O::empty()).unwrap();
    let reader = r.clone();
    let thread = blocked(move || take(&reader, 10));
    put(&w, b"hello").unwrap();
    assert_eq!(thread.join().unwrap(), Ok(b"hello".to_vec()));
    let reader = r.clone();
    let thread = blocked(move || take(&reader, 10));
    drop(w);
    assert_eq!(thread.join().unwrap(), Ok(vec![]));
}

#[test]
fn writers_wait_for_room_or_the_last_reader() {
    let _m = Machine::new();
    let (r, w) = pipe(O::empty()).unwrap();
    put(&w, &vec![1; PIPE_CAPACITY]).unwrap();
    let writer = w.clone();
    let thread = blocked(move || put(&writer, &[2; 100]));
    assert_eq!(take(&r, PIPE_BUF).unwrap().len(), PIPE_BUF);
    assert_eq!(thread.join().unwrap(), Ok(100));
    // A long write that has begun gives its count when the reader goes, a short one EPIPE.
    let writer = w.clone();
    let long = blocked(move || put(&writer, &vec![3; 3 * PIPE_CAPACITY]));
    let writer = w.clone();
    let short = blocked(move || put(&writer, &vec![4; PIPE_BUF]));
    drop(r);
    assert_eq!(short.join().unwrap(), Err(EPIPE));
    assert_eq!(long.join().unwrap(), Ok(PIPE_BUF - 100));
}

/// One state change wakes one waiter; who leaves something for the next wakes him.
#[test]
fn a_wake_up_is_passed_on() {
    let _m = Machine::new();
    let (r, w) = pipe(O::empty()).unwrap();
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let reader = r.clone();
            blocked(move || take(&reader, 1))
        })
        .collect();
    put(&w, b"abc").unwrap();
    eventually(|| readers.iter().all(|t| t.is_finished()));
    put(&w, &vec![0; PIPE_CAPACITY]).unwrap();
    let writers: Vec<_> = (0..3)
        .map(|_| {
            let writer = w.clone();
            blocked(move || put(&writer, &vec![1; PIPE_BUF]))
        })
        .collect();
    take(&r, PIPE_CAPACITY).unwrap();
    eventually(|| writers.iter().all(|t| t.is_finished()));
    for thread in readers {
        assert_eq!(thread.join().unwrap().unwrap().len(), 1);
    }
    for thread in writers {
        assert_eq!(thread.join().unwrap(), Ok(PIPE_BUF));
    }
}

#[test]
fn a_signal_ends_a_wait() {
    let _m = Machine::new();
    let (r, w) = pipe(O::empty()).unwrap();
    let reader = r.clone();
    let result = thread::spawn(move || {
        arch::host::set_signal_pending(true);
        take(&reader, 1)
    });
    assert_eq!(result.join().unwrap(), Err(ERESTARTSYS));
    let writer = w.clone();
    let result = thread::spawn(move || {
        arch::host::set_signal_pending(true);
        let whole = put(&writer, &vec![0; PIPE_CAPACITY + 1]);
        (whole, put(&writer, b"x"))
    });
    assert_eq!(
        result.join().unwrap(),
        (Ok(PIPE_CAPACITY), Err(ERESTARTSYS))
    );
}

#[test]
fn short_writes_arrive_whole() {
    const WRITERS: u8 = 3;
    const ROUNDS: usize = 300;
    let _m = Machine::new();
    let (r, w) = pipe(O::empty()).unwrap();
    let done = AtomicUsize::new(0);
    thread::scope(|s| {
        for id in 0..WRITERS {
            let w = w.clone();
            s.spawn(move || {
                for round in 0..ROUNDS {
                    // A record: its writer and its length, then that many times its writer.
                    let n = 3 + round * 7 % (PIPE_BUF - 3);
                    let mut record = vec![id; n];
                    record[1..3].copy_from_slice(&(n as u16).to_le_bytes());
                    assert_eq!(put(&w, &record), Ok(n));
                }
            });
        }
        drop(w);
        for _ in 0..2 {
            // Two readers take turns at whole records: the lock is the test's.
            static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
            let (r, done) = (r.clone(), &done);
            s.spawn(move || {
                loop {
                    let turn = TURN.lock().unwrap();
                    let head = read_exactly(&r, 3);
                    if head.is_empty() {
                        return;
                    }
                    let n = u16::from_le_bytes([head[1], head[2]]) as usize;
                    let body = read_exactly(&r, n - 3);
                    drop(turn);
                    assert!(body.iter().all(|&b| b == head[0]), "INV-PIPE-3");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(done.into_inner(), WRITERS as usize * ROUNDS);
}

fn read_exactly(r: &File, n: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < n {
        let more = take(r, n - all.len()).unwrap();
        if more.is_empty() {
            assert!(all.is_empty());
            return all;
        }
        all.extend(more);
    }
    all
}

/// Many readers and writers who all block: no wake-up may be lost.
#[test]
fn nobody_sleeps_forever() {
    const EACH: usize = 20_000;
    let _m = Machine::new();
    let (r, w) = pipe(O::empty()).unwrap();
    let (sent, received) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|s| {
        for i in 0..3usize {
            let (w, sent) = (w.clone(), &sent);
            s.spawn(move || {
                let mut left = EACH;
                let mut n = i;
                while left > 0 {
                    n = (n * 31 + 7) % (2 * PIPE_BUF) + 1;
                    let n = n.min(left);
                    assert_eq!(put(&w, &vec![1; n]), Ok(n));
                    left -= n;
                    sent.fetch_add(n, Ordering::Relaxed);
                }
            });
        }
        drop(w);
        for i in 0..3usize {
            let (r, received) = (r.clone(), &received);
            s.spawn(move || {
                let mut n = i;
                loop {
                    n = (n * 17 + 3) % 900 + 1;
                    match take(&r, n).unwrap().len() {
                        0 => return,
                        got => received.fetch_add(got, Ordering::Relaxed),
                    };
                }
            });
        }
    });
    assert_eq!(
        (sent.into_inner(), received.into_inner()),
        (3 * EACH, 3 * EACH)
    );
}

#[test]
fn ping_pong() {
    let _m = Machine::new();
    let (r1, w1) = pipe(O::empty()).unwrap();
    let (r2, w2) = pipe(O::empty()).unwrap();
    let other = thread::spawn(move || {
        while let Ok(byte) = take(&r1, 1)
            && !byte.is_empty()
        {
            put(&w2, &byte).unwrap();
        }
    });
    for i in 0..2000 {
        put(&w1, &[i as u8]).unwrap();
        assert_eq!(take(&r2, 1), Ok(vec![i as u8]));
    }
    drop(w1);
    other.join().unwrap();
}

#[test]
fn fifos() {
    let m = Machine::new();
    mknod(m.at(), b"f", S_IFIFO | 0o600, DevId::new(0, 0)).unwrap();
    assert_eq!(m.open(b"f", O::WRONLY | O::NONBLOCK).err(), Some(ENXIO));
    let r = m.open(b"f", O::NONBLOCK).unwrap();
    assert_eq!(take(&r, 1), Ok(vec![]));
    assert!(!r.poll().contains(PollMask::HUP));
    let w = m.open(b"f", O::WRONLY | O::NONBLOCK).unwrap();
    assert_eq!(take(&r, 1), Err(EAGAIN));
    put(&w, b"x").unwrap();
    assert_eq!(w.stat().ino, stat(m.at(), b"f", true).unwrap().ino);
    drop((r, w));
    // What nobody had open is gone.
    let both = m.open(b"f", O::RDWR).unwrap();
    both.set_nonblock(true);
    assert_eq!(take(&both, 1), Err(EAGAIN));
    drop(both);
    // Openers wait for each other.
    let fs = m.fs.clone();
    let reader = blocked(move || open(At::cwd(&fs), b"f", O::empty(), 0).map(|f| take(&f, 1)));
    let w = m.open(b"f", O::WRONLY).unwrap();
    put(&w, b"y").unwrap();
    assert_eq!(reader.join().unwrap(), Ok(Ok(b"y".to_vec())));
    drop(w);
    let fs = m.fs.clone();
    let writer = blocked(move || open(At::cwd(&fs), b"f", O::WRONLY, 0).map(drop));
    let r = m.open(b"f", O::empty()).unwrap();
    assert_eq!(writer.join().unwrap(), Ok(()));
    drop(r);
    let fs = m.fs.clone();
    let signalled = thread::spawn(move || {
        arch::host::set_signal_pending(true);
        open(At::cwd(&fs), b"f", O::WRONLY, 0).map(drop)
    });
    assert_eq!(signalled.join().unwrap(), Err(ERESTARTSYS));
}
