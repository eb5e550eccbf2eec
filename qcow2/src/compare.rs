//! [`compare`]: whether two disks have the same content, whatever holds them;
//! [`differences`]: where they don't.
//!
//! What both are known to have as zeros isn't read. The rest is read on all cores; the
//! answer is that of the first place that differs, as if it were read in order.

mod tasks;

use std::{
    num::NonZero,
    sync::{Mutex, PoisonError},
    thread,
};

use hbitmap::SharedTracker;

use crate::{Error, Result, disk::Disk};
use tasks::{Buffers, Found, Task, Tasks};

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
    let all = first.size().max(second.size());
    let tasks = Tasks::new(first, second, options, all);
    let (tasks, progress) = on_all_cores(tasks, progress, |task, buffers| {
        task.run(first, second, buffers).map_or(Ok(0), Err)
    });
    match tasks.into_first() {
        None => {
            progress(all);
            Ok(Comparison::Same)
        }
        Some(Found::Differs(what)) => Ok(what),
        Some(Found::Failed(error)) => Err(error),
    }
}

/// Marks in `marks`, a tracker of the length of `new`, where the content of `new` isn't
/// that of `old`. What lies beyond the end of `old` counts as different, zeros too: a copy
/// of `old` has nothing there. What both read from one file behind them, at the same place,
/// isn't read: nobody may write to it meanwhile. `progress` is as for [`compare`], up to the size of the
/// smaller disk.
///
/// # Errors
/// [`CompareError`], in which [`Which::First`] is `old`, if any part that both disks have
/// can't be told or read; then the marks are not complete.
pub fn differences(
    old: &dyn Disk,
    new: &dyn Disk,
    marks: &SharedTracker,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<(), CompareError> {
    let both = old.size().min(new.size());
    marks.mark(both..marks.len());
    let tasks = Tasks::new(old, new, CompareOptions::default(), both).without_shared();
    let (tasks, progress) = on_all_cores(tasks, progress, |task, buffers| {
        task.mark(old, new, buffers, marks)
    });
    match tasks.into_first() {
        Some(Found::Failed(error)) => Err(error),
        _ => {
            progress(both);
            Ok(())
        }
    }
}

type Progress<'p> = &'p mut (dyn FnMut(u64) + Send);

/// Has `run` do all tasks, on all cores, until one finds what ends it. Otherwise it says
/// up to where nothing is left to be looked at.
fn on_all_cores<'a, 'p>(
    tasks: Tasks<'a>,
    progress: Progress<'p>,
    run: impl Fn(&Task, &mut Buffers) -> Result<u64, Found> + Sync,
) -> (Tasks<'a>, Progress<'p>) {
    let tasks = Mutex::new((tasks, progress));
    // The next piece of work, unless something was found before it.
    let next = || {
        let mut guard = tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let (tasks, progress) = &mut *guard;
        let task = tasks.next()?;
        progress(task.range.start);
        Some(task)
    };
    let work = || {
        let mut buffers = Buffers::default();
        while let Some(task) = next() {
            let done = run(&task, &mut buffers);
            if done.as_ref().is_ok_and(|skip| *skip <= task.range.end) {
                continue;
            }
            let mut guard = tasks.lock().unwrap_or_else(PoisonError::into_inner);
            match done {
                Ok(skip) => guard.0.skip(skip),
                Err(found) => guard.0.found(found),
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
    tasks.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
