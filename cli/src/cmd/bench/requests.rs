//! The requests, and the threads that work on them.

use std::{
    num::NonZero,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use qcow2::{Error, Result, io::PageBuffer};

use super::target::Target;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Requests.
    pub(super) count: u64,
    /// Bytes of each.
    pub(super) length: u64,
    /// How many may be worked on at once.
    pub(super) depth: u64,
    /// Where the first one begins.
    pub(super) offset: u64,
    /// Bytes from the beginning of one to that of the next.
    pub(super) step: u64,
    /// Requests after which a sync comes; 0 for none.
    pub(super) flush_interval: u64,
    /// A sync waits for the requests before it, and those behind it wait for the sync.
    pub(super) drain: bool,
    /// A sync comes after each request.
    pub(super) sync_each: bool,
}

/// The requests to a disk of `size` bytes.
#[derive(Debug)]
pub(super) struct Requests {
    plan: Plan,
    size: u64,
    state: Mutex<State>,
    /// A request or a sync is done.
    done: Condvar,
}

/// How far it is.
#[derive(Debug, Default)]
struct State {
    /// Requests that were begun.
    begun: u64,
    /// Requests that are being worked on.
    at_work: u64,
    /// Syncs that were begun, and those that are done.
    syncs: (u64, u64),
    /// The first error; nothing is begun after it.
    error: Option<Error>,
}

/// What a thread does next.
enum Next {
    /// The request at this offset.
    Request(u64),
    Sync,
}

impl Requests {
    /// Nothing is begun yet.
    pub(super) fn new(plan: Plan, size: u64) -> Self {
        Self {
            plan,
            size,
            state: Mutex::default(),
            done: Condvar::new(),
        }
    }

    /// Reads.
    ///
    /// # Errors
    /// Of the request that failed first.
    pub(super) fn read(self, target: &Target) -> Result<()> {
        let threads = self.threads();
        self.run(threads, 0, target, |buffer, offset| {
            target.read(offset, buffer)
        })
    }

    /// Writes `pattern`.
    ///
    /// # Errors
    /// Of the request or sync that failed first.
    pub(super) fn write(self, target: &Target, pattern: u8) -> Result<()> {
        let sync_each = self.plan.sync_each;
        // A write to an image has it for itself: threads would only wait for each other.
        self.run(1, pattern, target, |buffer, offset| {
            target.write(offset, buffer)?;
            if sync_each { target.flush() } else { Ok(()) }
        })
    }

    /// More threads than processors don't make it faster.
    fn threads(&self) -> usize {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let wanted = self.plan.depth.min(self.plan.count);
        usize::try_from(wanted).map_or(processors, |wanted| wanted.min(processors))
    }

    fn run(
        self,
        threads: usize,
        pattern: u8,
        target: &Target,
        request: impl Fn(&mut [u8], u64) -> Result<()> + Sync,
    ) -> Result<()> {
        let length = usize::try_from(self.plan.length).unwrap_or(usize::MAX);
        let work = || {
            let mut buffer = PageBuffer::new(length);
            buffer.fill(pattern);
            while let Some(next) = self.next() {
                match next {
                    Next::Request(offset) => {
                        let result = request(&mut buffer, offset);
                        self.finish(result, |state| state.at_work -= 1);
                    }
                    Next::Sync => {
                        let result = target.flush();
                        self.finish(result, |state| state.syncs.1 += 1);
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        let state = self.state.into_inner();
        let error = state.unwrap_or_else(PoisonError::into_inner).error;
        error.map_or(Ok(()), Err)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Next> {
        let plan = &self.plan;
        let mut state = self.lock();
        loop {
            if state.error.is_some() || state.begun >= plan.count {
                return None;
            }
            let syncs = state.begun.checked_div(plan.flush_interval).unwrap_or(0);
            let waits = match state.syncs {
                (begun, _) if begun < syncs => {
                    if !plan.drain || state.at_work == 0 {
                        state.syncs.0 += 1;
                        return Some(Next::Sync);
                    }
                    true
                }
                (_, done) => plan.drain && done < syncs,
            };
            if !waits {
                break;
            }
            state = self
                .done
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let offset = self.offset(state.begun);
        state.begun += 1;
        state.at_work += 1;
        Some(Next::Request(offset))
    }

    /// Where a request begins: the first one anywhere, the others within the disk.
    fn offset(&self, index: u64) -> u64 {
        if index == 0 {
            return self.plan.offset;
        }
        let far = u128::from(index) * u128::from(self.plan.step) + u128::from(self.plan.offset);
        let within = far.checked_rem(self.size.into()).unwrap_or(far);
        u64::try_from(within).unwrap_or(u64::MAX)
    }

    fn finish(&self, result: Result<()>, count: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        count(&mut state);
        if let Err(error) = result {
            state.error.get_or_insert(error);
        }
        drop(state);
        if self.plan.flush_interval > 0 {
            self.done.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan {
        count: 5,
        length: 10,
        depth: 2,
        offset: 95,
        step: 30,
        flush_interval: 0,
        drain: true,
        sync_each: false,
    };

    /// What a single thread does.
    fn done(plan: Plan) -> Vec<i64> {
        let requests = Requests::new(plan, 100);
        let mut list = Vec::new();
        while let Some(next) = requests.next() {
            match next {
                Next::Request(offset) => {
                    list.push(offset.cast_signed());
                    requests.finish(Ok(()), |state| state.at_work -= 1);
                }
                Next::Sync => {
                    list.push(-1);
                    requests.finish(Ok(()), |state| state.syncs.1 += 1);
                }
            }
        }
        list
    }

    #[test]
    fn requests_begin_again_at_the_end_of_the_disk() {
        assert_eq!(done(PLAN), [95, 25, 55, 85, 15]);
        let beyond = Plan {
            offset: 250,
            ..PLAN
        };
        assert_eq!(done(beyond), [250, 80, 10, 40, 70]);
    }

    #[test]
    fn syncs_stand_between_requests() {
        let plan = Plan {
            flush_interval: 2,
            ..PLAN
        };
        assert_eq!(done(plan), [95, 25, -1, 55, 85, -1, 15]);
    }

    #[test]
    fn a_sync_waits_for_the_requests_before_it() {
        let plan = Plan {
            flush_interval: 2,
            ..PLAN
        };
        let requests = Requests::new(plan, 100);
        requests.next();
        requests.next();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| requests.next());
            thread::sleep(std::time::Duration::from_millis(20));
            assert!(!waiting.is_finished());
            requests.finish(Ok(()), |state| state.at_work -= 1);
            requests.finish(Ok(()), |state| state.at_work -= 1);
            assert!(matches!(waiting.join().unwrap(), Some(Next::Sync)));
        });
        // Without draining it does not.
        let requests = Requests::new(
            Plan {
                drain: false,
                ..plan
            },
            100,
        );
        requests.next();
        requests.next();
        assert!(matches!(requests.next(), Some(Next::Sync)));
        assert!(matches!(requests.next(), Some(Next::Request(55))));
    }

    #[test]
    fn nothing_is_begun_after_an_error() {
        let requests = Requests::new(PLAN, 100);
        requests.next();
        requests.finish(Err(Error::NotQcow2), |state| state.at_work -= 1);
        assert!(requests.next().is_none());
    }
}
