//! [`Queue`]: the way of the pieces from the threads that read them to the one that writes.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use super::lock;
use crate::io::PageBuffer;

/// A piece that was read.
pub(super) struct Job<R> {
    /// Its turn.
    pub(super) number: u64,
    /// Where it is on the disk.
    pub(super) range: Range<u64>,
    /// What it holds, and what the target made of that; `None` for nothing but zeros.
    pub(super) ready: Option<R>,
    pub(super) bytes: PageBuffer,
}

/// Pieces that were read, and the buffers for them. There are no more pieces underway than
/// buffers: who reads takes a buffer first, and a piece then, so that the piece whose turn
/// it is always has one.
pub(super) struct Queue<R> {
    state: Mutex<State<R>>,
    arrived: Condvar,
    returned: Condvar,
}

struct State<R> {
    free: Vec<PageBuffer>,
    jobs: BTreeMap<u64, Job<R>>,
    /// The number of the piece whose turn it is.
    turn: u64,
    /// Threads that read.
    readers: usize,
    stopped: bool,
}

impl<R> Queue<R> {
    /// For `readers` threads that read, and `buffers` pieces.
    pub(super) fn new(readers: usize, buffers: usize) -> Self {
        let mut free = Vec::new();
        free.resize_with(buffers, PageBuffer::default);
        let state = State {
            free,
            jobs: BTreeMap::new(),
            turn: 0,
            readers,
            stopped: false,
        };
        Self {
            state: Mutex::new(state),
            arrived: Condvar::new(),
            returned: Condvar::new(),
        }
    }

    /// A buffer, as soon as one is free; `None` if it was stopped.
    pub(super) fn buffer(&self) -> Option<PageBuffer> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                return None;
            }
            // The one that was used last: it is in the cores' caches still.
            if let Some(buffer) = state.free.pop() {
                return Some(buffer);
            }
            state = wait(&self.returned, state);
        }
    }

    /// Takes a buffer back.
    pub(super) fn give_back(&self, buffer: PageBuffer) {
        lock(&self.state).free.push(buffer);
        self.returned.notify_one();
    }

    /// Hands on a piece that was read.
    pub(super) fn push(&self, job: Job<R>) {
        let mut state = lock(&self.state);
        let is_due = job.number == state.turn;
        state.jobs.insert(job.number, job);
        drop(state);
        if is_due {
            self.arrived.notify_one();
        }
    }

    /// A thread reads no more.
    pub(super) fn leave(&self) {
        let mut state = lock(&self.state);
        state.readers = state.readers.saturating_sub(1);
        drop(state);
        self.arrived.notify_one();
    }

    /// The piece whose turn it is; `None` after the last one, or if it was stopped.
    pub(super) fn next(&self) -> Option<Job<R>> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                return None;
            }
            let turn = state.turn;
            if let Some(job) = state.jobs.remove(&turn) {
                state.turn += 1;
                return Some(job);
            }
            if state.readers == 0 {
                return None;
            }
            state = wait(&self.arrived, state);
        }
    }

    /// Nobody is to wait any more.
    pub(super) fn stop(&self) {
        lock(&self.state).stopped = true;
        self.arrived.notify_one();
        self.returned.notify_all();
    }

    /// Whether something failed.
    pub(super) fn is_stopped(&self) -> bool {
        lock(&self.state).stopped
    }
}

fn wait<'a, T>(changed: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU64, Ordering},
        thread,
    };

    use super::*;

    fn job(number: u64, bytes: PageBuffer) -> Job<()> {
        Job {
            number,
            range: number..number + 1,
            ready: None,
            bytes,
        }
    }

    #[test]
    fn pieces_come_in_order_whoever_reads_them() {
        let (queue, given) = (Queue::new(3, 4), AtomicU64::new(0));
        let mut numbers = Vec::new();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while let Some(buffer) = queue.buffer() {
                        let number = given.fetch_add(1, Ordering::SeqCst);
                        if number >= 1000 {
                            queue.give_back(buffer);
                            break;
                        }
                        queue.push(job(number, buffer));
                    }
                    queue.leave();
                });
            }
            while let Some(job) = queue.next() {
                numbers.push(job.number);
                queue.give_back(job.bytes);
            }
        });
        assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn nobody_waits_once_it_was_stopped() {
        let queue = Queue::new(2, 1);
        thread::scope(|scope| {
            // The only buffer goes with a piece whose turn never comes.
            let reader = scope.spawn(|| {
                let buffer = queue.buffer().unwrap();
                queue.push(job(7, buffer));
                queue.buffer().is_none()
            });
            let writer = scope.spawn(|| queue.next().is_none());
            thread::sleep(std::time::Duration::from_millis(10));
            assert!(!reader.is_finished() && !writer.is_finished());
            queue.stop();
            assert!(reader.join().unwrap() && writer.join().unwrap());
        });
        assert!(queue.is_stopped());
    }
}
