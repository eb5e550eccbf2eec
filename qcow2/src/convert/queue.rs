//! [`Queue`]: the way of the pieces from the threads that read them to the one that writes.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use super::lock;
use crate::io::PageBuffer;

/// The memory of a piece, which goes round: what is allocated anew for each of them comes
/// from all over the heap, and soon is several times what is needed.
#[derive(Default)]
pub(super) struct Buffers<R> {
    /// What the piece holds.
    pub(super) bytes: PageBuffer,
    /// What the target made of that.
    pub(super) ready: R,
}

/// A piece that was read.
pub(super) struct Job<R> {
    /// Its turn.
    pub(super) number: u64,
    /// Where it is on the disk.
    pub(super) range: Range<u64>,
    /// It is nothing but zeros; nothing was read.
    pub(super) is_zero: bool,
    pub(super) buffers: Buffers<R>,
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
    free: Vec<Buffers<R>>,
    jobs: BTreeMap<u64, Job<R>>,
    /// The number of the piece whose turn it is.
    turn: u64,
    /// Threads that read.
    readers: usize,
    stopped: bool,
}

impl<R: Default> Queue<R> {
    /// For `readers` threads that read, and `buffers` pieces.
    pub(super) fn new(readers: usize, buffers: usize) -> Self {
        let mut free = Vec::new();
        free.resize_with(buffers, Buffers::default);
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
}

impl<R> Queue<R> {
    /// The memory for a piece, as soon as there is some; `None` if it was stopped.
    pub(super) fn buffers(&self) -> Option<Buffers<R>> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                return None;
            }
            // The one that was used last: it is in the cores' caches still.
            if let Some(buffers) = state.free.pop() {
                return Some(buffers);
            }
            state = wait(&self.returned, state);
        }
    }

    /// Takes the memory of a piece back.
    pub(super) fn give_back(&self, buffers: Buffers<R>) {
        lock(&self.state).free.push(buffers);
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

    fn job(number: u64, buffers: Buffers<()>) -> Job<()> {
        Job {
            number,
            range: number..number + 1,
            is_zero: true,
            buffers,
        }
    }

    #[test]
    fn pieces_come_in_order_whoever_reads_them() {
        let (queue, given) = (Queue::new(3, 4), AtomicU64::new(0));
        let mut numbers = Vec::new();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while let Some(buffers) = queue.buffers() {
                        let number = given.fetch_add(1, Ordering::SeqCst);
                        if number >= 1000 {
                            queue.give_back(buffers);
                            break;
                        }
                        queue.push(job(number, buffers));
                    }
                    queue.leave();
                });
            }
            while let Some(job) = queue.next() {
                numbers.push(job.number);
                queue.give_back(job.buffers);
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
                let buffers = queue.buffers().unwrap();
                queue.push(job(7, buffers));
                queue.buffers().is_none()
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
