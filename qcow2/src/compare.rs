//! [`compare`]: whether two disks have the same content, whatever holds them.
//!
//! What both are known to have as zeros isn't read. The rest is read on all cores; the
//! answer is that of the first place that differs, as if it were read in order.

mod tasks;

use std::{
    num::NonZero,
    sync::{Mutex, PoisonError},
    thread,
};

use crate::{Error, Result, disk::Disk};
use tasks::{Found, Tasks};

/// Threads that read; more don't make memory faster.
const MAX_THREADS: usize = 8;

/// How to compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompareOptions {
    /// Sizes must be the same, and what the disks say of each part, too: data, zeros or
    /// unallocated, and whether it has a place in a file.
    pub strict: bool,
}

/// What came of comparing two disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The content is the same; what one disk has beyond the end of the other is zeros.
    Same,
    /// The content differs first in the sector at this byte of the disk.
    Content(u64),
    /// With `strict`, what the disks say of themselves differs first here.
    Status(u64),
    /// With `strict`, the sizes differ.
    Size,
}

/// Which of two disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The first.
    First,
    /// The second.
    Second,
}

/// Why two disks could not be compared to the end. Everything before was the same.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// It can't be told what a disk has here.
    #[error("the extent at {at} can't be told")]
    Extent {
        /// The disk.
        which: Which,
        /// The byte of the disk.
        at: u64,
        /// Why not.
        #[source]
        source: Box<Error>,
    },
    /// A disk can't be read here.
    #[error("the disk can't be read at {at}")]
    Read {
        /// The disk.
        which: Which,
        /// The byte of the disk.
        at: u64,
        /// Why not.
        #[source]
        source: Box<Error>,
    },
}

/// Compares two disks. `progress` is called with the bytes that were looked at, which grow
/// up to the size of the larger disk.
///
/// # Errors
/// [`CompareError`] for the first place that can't be told or read, if nothing before it
/// differs.
pub fn compare(
    first: &dyn Disk,
    second: &dyn Disk,
    options: CompareOptions,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Comparison, CompareError> {
    if options.strict && first.size() != second.size() {
        return Ok(Comparison::Size);
    }
    let tasks = Mutex::new((Tasks::new(first, second, options), progress));
    // The next piece of work, unless something was found before it.
    let next = || {
        let mut guard = tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let (tasks, progress) = &mut *guard;
        let task = tasks.next()?;
        progress(task.range.start);
        Some(task)
    };
    let found = |found: Found| {
        let mut guard = tasks.lock().unwrap_or_else(PoisonError::into_inner);
        guard.0.found(found);
    };
    let work = || {
        let mut buffers = (Vec::new(), Vec::new());
        while let Some(task) = next() {
            if let Some(what) = task.run(first, second, &mut buffers) {
                found(what);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 1..threads.min(MAX_THREADS) {
            scope.spawn(work);
        }
        work();
    });
    let (tasks, progress) = tasks.into_inner().unwrap_or_else(PoisonError::into_inner);
    match tasks.into_first() {
        None => {
            progress(first.size().max(second.size()));
            Ok(Comparison::Same)
        }
        Some(Found::Differs(what)) => Ok(what),
        Some(Found::Failed(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests;
