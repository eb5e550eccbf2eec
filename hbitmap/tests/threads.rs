//! Many writers and one reader on a shared tracker: no mark is lost.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use hbitmap::{Granularity, HBitmap, SharedTracker};

const LEN: u64 = 1 << 24;
const WRITERS: u64 = 4;
const MARKS: u64 = 20_000;

/// Pseudo-random numbers, different for each seed.
fn next(x: &mut u64) -> u64 {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    *x
}

/// A range of a few bytes, or now and then of many.
fn range(x: &mut u64) -> std::ops::Range<u64> {
    let start = next(x) % LEN;
    let len = if next(x).is_multiple_of(500) {
        next(x) % (LEN / 4)
    } else {
        next(x) % 5000 + 1
    };
    start..(start + len).min(LEN)
}

#[test]
fn all_marks_arrive() {
    let g = Granularity::from_bits(4).unwrap();
    let tracker = SharedTracker::new(LEN, g).unwrap();
    let running = AtomicU64::new(WRITERS);
    let mut seen = HBitmap::new(LEN, g).unwrap();
    thread::scope(|s| {
        for seed in 1..=WRITERS {
            let (tracker, running) = (&tracker, &running);
            s.spawn(move || {
                let mut x = seed * 0x9e37_79b9;
                for _ in 0..MARKS / 20 {
                    tracker.mark(range(&mut x));
                }
                running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        while running.load(Ordering::SeqCst) != 0 {
            seen.merge(&tracker.drain().unwrap()).unwrap();
        }
    });
    seen.merge(&tracker.drain().unwrap()).unwrap();
    let mut expected = HBitmap::new(LEN, g).unwrap();
    for seed in 1..=WRITERS {
        let mut x = seed * 0x9e37_79b9;
        for _ in 0..MARKS / 20 {
            expected.set(range(&mut x));
        }
    }
    assert_eq!(seen, expected);
}

/// The same granule over and over: what was marked before a drain began has been seen
/// when it ends, also while others mark the neighbours.
#[test]
fn a_drain_sees_every_mark_that_came_before() {
    let tracker = SharedTracker::new(1 << 40, Granularity::from_bits(9).unwrap()).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        for seed in 1..WRITERS {
            let (tracker, stop) = (&tracker, &stop);
            s.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    tracker.mark(seed * 512..seed * 512 + 1);
                    tracker.mark(seed << 35..(seed << 35) + 1);
                }
            });
        }
        for i in 0..MARKS {
            let at = if i % 2 == 0 { 0 } else { 3 << 38 };
            tracker.mark(at..at + 1);
            assert!(tracker.snapshot().unwrap().get(at));
            assert!(tracker.drain().unwrap().get(at));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// A reader that drains while one writer counts up: each mark is seen exactly once the
/// writer has gone on, in the order of drains.
#[test]
fn marks_made_during_a_drain_are_in_it_or_the_next() {
    let tracker = SharedTracker::new(MARKS * 64, Granularity::from_bits(0).unwrap()).unwrap();
    let done = AtomicU64::new(0);
    thread::scope(|s| {
        s.spawn(|| {
            for i in 0..MARKS {
                tracker.mark(i * 64..i * 64 + 1);
                done.store(i + 1, Ordering::Release);
            }
        });
        let mut seen = HBitmap::new(MARKS * 64, tracker.granularity()).unwrap();
        loop {
            let before = done.load(Ordering::Acquire);
            seen.merge(&tracker.drain().unwrap()).unwrap();
            assert!(seen.count() >= before, "{} of {before} seen", seen.count());
            if before == MARKS {
                assert_eq!(seen.count(), MARKS);
                break;
            }
        }
    });
}
